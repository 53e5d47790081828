"""`attnviz train`."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from attnviz.cli.options import (
    FigureOptions,
    FileOptions,
    ResultOptions,
    ScreenOptions,
    talk_options,
)
from attnviz.cli.signals import ENDING_SIGNALS, TerminationError, handle_signals
from attnviz.cli.talk import Talk
from attnviz.cli.train_display import print_on_stderr, show_steps
from attnviz.cli.train_options import (
    TrainOptions,
    read_bare_suffix,
    train_options,
)
from attnviz.errors import OutputError, UsageError, require_packages
from attnviz.progress import begin_step

if TYPE_CHECKING:
    from attnviz.lm.checkpoints import RunLog
    from attnviz.lm.run import TrainedModel
    from attnviz.lm.train import Progress


@click.command()
@train_options
@talk_options
def command(options: TrainOptions, talk: Talk) -> None:
    """Train a small language model made of our own attention layer.

    CORPUS is text files, or folders of .txt files. An empty line parts two documents; one in fifty
    is held out. The folder works as --model, and so do the checkpoints in it, step-N; its
    history.json has the loss and the scores of all heads over steps, training.svg is drawn of it,
    and --curves draws it again. Interrupted, what has been learnt so far is saved, and the same
    command with --resume goes on. The same seed on the same machine with the same number of threads
    gives the same model, interrupted or not.

    \b
    Examples:
      attnviz train notes.txt -o my-model --steps 300
      attnviz train books/ more.txt -o my-model --layers 4 --heads 8 --dim 256
      attnviz train notes.txt -o my-model --watch --minutes 20
      attnviz train --curves my-model
      attnviz train --curves my-model --style paper -o curves.pdf
    """
    if options.curves is not None:
        draw_run(options.curves, options, talk)
        return
    if not options.course.corpus or options.output is None:
        raise UsageError(
            "name texts to learn from and -o, a folder for the model; "
            "or --curves RUN to draw a run",
        )
    require_output(options.output, force=options.force, resume=options.course.resume)
    options.setting.require_sizes()
    require_packages("training, with its curves,", "torch", "matplotlib")
    train_model(options, options.output, talk)


def train_model(options: TrainOptions, folder: Path, talk: Talk) -> None:
    """Train a model as the options say, and write it into a folder.

    While it is trained, stderr shows how far it is. Raises AttnvizError.
    """
    with begin_step("importing torch"):
        from attnviz.lm import checkpoints, corpus, run
        from attnviz.models.checks import find_torch_device

    course, setting_options = options.course, options.setting
    documents = corpus.read_corpus(course.corpus)
    vocabulary_text = (
        corpus.read_corpus([course.tokenizer_text]) if course.tokenizer_text else documents
    )
    setting = run.RunSetting(
        steps=setting_options.steps,
        seed=setting_options.seed,
        vocabulary=setting_options.vocabulary,
        layers=setting_options.layers,
        heads=setting_options.heads,
        dim=setting_options.dim,
        score=setting_options.score,
        device=find_torch_device(course.device),
    )
    steps = setting.steps
    identity = checkpoints.identify_run(setting_options.to_dict(), documents, vocabulary_text)
    resume_point = checkpoints.read_resume_point(folder, identity) if course.resume else None
    every = course.every or math.ceil(steps / checkpoints.CHECKPOINTS)  # steps a checkpoint
    with (
        wait_for_steps(course.minutes) as stop,
        show_steps(steps, talk, live=course.live) as display,
    ):
        log = checkpoints.RunLog(folder, identity, steps, every, display.look_at_heads)
        if resume_point is not None:
            log.history, log.fresh = resume_point.history, False

        def watch(progress: "Progress") -> None:
            display.watch_step(progress)
            stop.require_time()

        trained = run.run_training(documents, vocabulary_text, setting, watch, log, resume_point)
    finish_run(trained, log, stop, talk)


def finish_run(
    trained: "TrainedModel",
    log: "RunLog",
    stop: "Stop",
    talk: Talk,
) -> None:
    """Write a trained model and its learning curves into a folder, and print where they are.

    log: of the run, with its folder. stop: says who ended the run. Raises KeyboardInterrupt or
    TerminationError if a signal did so before all steps were done.
    """
    from attnviz.lm import run, store

    store.write_stored_model(log.folder, trained.stored)
    write_curves(log, talk)
    talk.note(run.describe_training(trained))
    talk.note(f"wrote {log.folder}; see it with: attnviz show --model {log.folder} ...")
    if trained.steps == log.steps:
        log.remove_state()
        return
    talk.note(
        f"stopped after {trained.steps} of {log.steps} steps; the same command with --resume"
        " goes on",
    )
    if stop.signal is not None:
        raise stop.make_error()


def require_output(folder: Path, *, force: bool, resume: bool) -> None:
    """Raise OutputError for a folder that a model could not be written into, before it is trained.

    force: the folder may hold files, which are replaced. resume: it must hold an interrupted run,
    or UsageError is raised.
    """
    from attnviz.io.files import require_regular, require_writable
    from attnviz.lm import checkpoints, store

    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a folder is needed")
    files = [folder / name for name in (*store.FILES, *checkpoints.FILES)]
    if any(file.is_dir() for file in files):
        raise OutputError(f"{folder} has folders where the files of a model belong")
    for file in files:
        require_regular(file)
    if resume:
        checkpoints.require_interrupted_run(folder)
    elif folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputError(f"{folder} exists and is not empty; choose another name or add --force")
    require_writable(folder)


# Where a run ends


class Stop:
    """Ends training after a step when a signal asks for it, or when its minutes are over."""

    def __init__(self, minutes: float | None) -> None:
        self.signal: int | None = None
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Return whether the minutes are over, and no signal had ended the training before."""
        if self.signal is not None or self.deadline is None:
            return False
        return time.monotonic() > self.deadline

    def require_time(self) -> None:
        """Raise KeyboardInterrupt if training is to end."""
        if self.signal is not None or self.is_over():
            raise KeyboardInterrupt

    def make_error(self) -> BaseException:
        """Make the error with which the command is to end that a signal has ended."""
        if self.signal is None or self.signal == signal.SIGINT:
            return KeyboardInterrupt()
        return TerminationError(self.signal)


@contextmanager
def wait_for_steps(minutes: float | None) -> Iterator[Stop]:
    """Make a signal end a training after a whole step, which can be kept, while a block runs.

    Ctrl-C, and a signal that would end the process, are noted in the object that is yielded.
    Training asks this object after each step if it is to end, for a signal or because its minutes
    are over. A second signal does not wait.

    minutes: the time after which training is to end; None for no limit.
    """
    stop = Stop(minutes)

    def note_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python gives both
        is_second = stop.signal is not None
        stop.signal = number
        if is_second:
            raise stop.make_error()

    with handle_signals([signal.SIGINT, *ENDING_SIGNALS], note_signal):
        yield stop


# The curves of a run


def write_curves(log: "RunLog", talk: Talk) -> None:
    """Write the learning curves of a run into its folder, and draw them if stderr is a terminal.

    log: of the run, with what was measured of it; if that is nothing yet, nothing is written.
    Raises OutputError.
    """
    from attnviz.io.files import write_whole
    from attnviz.lm.checkpoints import FIGURE
    from attnviz.lm.evaluate import BLOCK
    from attnviz.render.figure.figure import render_figure
    from attnviz.results.training import make_learning_curves

    if not log.history:
        return
    curves, path = make_learning_curves(log.history, BLOCK), log.folder / FIGURE
    with begin_step(f"drawing {path.name}"):
        write_whole(path, render_figure(curves, "svg").data)
    if talk.is_on_terminal:
        print_on_stderr(curves)
    talk.note(f"wrote {path}")


def draw_run(run: Path, options: TrainOptions, talk: Talk) -> None:
    """Draw the curves of a training, on the screen or in the file that -o names.

    They are the losses and the scores of heads that were measured as it went on, and are read from
    its folder.

    run: the folder of the training. options: the file, whose suffix says the format, and the style
    of a figure. talk: tells on stderr what was written, unless it is quiet. Raises AttnvizError.
    """
    from attnviz.cli.output import (
        RESULT_FORMATS,
        Destination,
        deliver,
        make_result_answer,
        require_format,
    )
    from attnviz.cli.screen import open_screen
    from attnviz.experiments.training import read_training
    from attnviz.io.files import require_output_path

    destination = None
    if options.output is not None:
        destination = Destination(read_bare_suffix(options.output), options.output)
        require_format(destination, RESULT_FORMATS, "what a run measured")
        require_output_path(options.output, options.force)
    result = ResultOptions(FileOptions(), FigureOptions(options.style), ScreenOptions(), talk)
    answer = make_result_answer(read_training(run))
    deliver(answer, destination, open_screen(result.screen), result)
