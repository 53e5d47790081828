"""The history of a training that never ran: a loss that falls, and an induction head that forms."""

import json
from pathlib import Path

import numpy as np

from attnviz.lm import checkpoints

BLOCK = 25  # tokens of the random block whose repetition the scores are of
# Scores at 20 measurements, of which the eleventh is at step 1,100.
RISING_SCORES = [0.03] * 10 + [0.1, 0.45, 0.8] + [0.85] * 7


def make_measurement(
    step: int, loss: float | None, score: float | None, stage: int = 0
) -> dict[str, object]:
    """Make what is measured at one step; score: of the one head that learns induction."""
    scores = {
        "induction": [[0.02, 0.02], [0.02, score]],
        "previous_token": [[0.9, 0.2], [0.1, 0.05]],
    }
    return {"step": step, "stage": stage, "loss": loss, "tokens": step * 2048, "scores": scores}


def make_history(scores: list[float] = RISING_SCORES, widened: int = 99) -> list[dict[str, object]]:
    """Make a measurement each hundred steps, of which that many are of the first stage."""
    losses = np.linspace(7, 3, len(scores)).round(4).tolist()
    return [
        make_measurement(100 * (i + 1), loss, score, int(i >= widened))
        for i, (loss, score) in enumerate(zip(losses, scores, strict=True))
    ]


def plant_training_run(folder: Path, **changed: object) -> None:
    """Write what a run leaves of its history; changed: fields of the document."""
    folder.mkdir(exist_ok=True)
    document = {"schema": "attnviz/1", "block": BLOCK, "history": make_history(), **changed}
    (folder / checkpoints.HISTORY).write_text(json.dumps(document))
