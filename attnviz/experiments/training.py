"""What was measured of a model while it was trained, read from the files of the run."""

from pathlib import Path

from attnviz.lm.checkpoints import read_run_history
from attnviz.results.training import TrainingResult


def read_training(run: Path) -> TrainingResult:
    """Read what was measured while a model was trained by ``attnviz train``.

    run: the folder of the run, or its history.json. Raises InputError if there is no history, or it
    is damaged or empty.
    """
    history, block = read_run_history(run)
    return TrainingResult(history, block)
