"""`attnviz train`."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnviz.cli.options import (
    FIGURES,
    NOTHING_GIVEN,
    FigureOptions,
    FileOptions,
    ResultOptions,
    ScreenOptions,
    talk_options,
)
from attnviz.cli.parameters import GIVEN, option_flag, option_group
from attnviz.cli.talk import Talk
from attnviz.errors import OutputError, UsageError

if TYPE_CHECKING:
    from rich.segment import Segments

    from attnviz.drawable import Picture
    from attnviz.lm.checkpoints import Log
    from attnviz.lm.run import Trained
    from attnviz.lm.store import Stored
    from attnviz.lm.train import Progress
    from attnviz.record import Capture
    from attnviz.render.terminal.cells import Line
    from attnviz.results.training import Measurement

WATCHED = "The quick brown fox jumps. The quick brown fox jumps."  # where it repeats, induction is seen
LINES_AROUND = 14  # of the live view that are not of its picture
OF_CURVES = {"curves", "output", "force", "style"}  # options that --curves obeys
SCORES = "scaled_dot", "dot", "cosine", "gaussian"  # of attnviz.layer.scores, which would load NumPy for a help


@dataclass(frozen=True)
class SettingOptions:
    """What is trained, and how long; with these, a run that goes on is the same run."""

    steps: int = 4800
    seed: int = 0
    layers: int = 3
    heads: int = 6
    dim: int = 192
    score: str = SCORES[0]
    vocabulary: int = 4096
    given: frozenset[str] = NOTHING_GIVEN

    def to_dict(self) -> dict[str, int | str]:
        """Return the values by the names of their options."""
        return {name: value for name, value in asdict(self).items() if name != GIVEN}

    def require_sizes(self) -> None:
        """Raise UsageError unless the width divides into heads of an even size.

        Rotary positions need that.
        """
        if self.dim % (2 * self.heads):
            raise UsageError(f"--dim {self.dim} is not a multiple of 2 x {self.heads} heads")


@dataclass(frozen=True)
class CourseOptions:
    """What a model learns from, where, and what happens meanwhile."""

    corpus: tuple[Path, ...] = ()
    tokenizer_text: Path | None = None
    resume: bool = False
    minutes: float | None = None
    every: int | None = None
    live: bool = False
    device: str = "auto"
    given: frozenset[str] = NOTHING_GIVEN


@dataclass(frozen=True)
class TrainOptions:
    """What is trained and where it is written, or what run is drawn."""

    setting: SettingOptions
    course: CourseOptions
    output: Path | None = None
    force: bool = False
    curves: Path | None = None
    style: str = "screen"
    given: frozenset[str] = NOTHING_GIVEN

    def __post_init__(self) -> None:
        """Refuse options that have no effect, with --curves or without. Raises UsageError."""
        draws_figure = self.curves is not None and self.output is not None and read_form(self.output) in FIGURES
        if "style" in self.given and not draws_figure:
            raise UsageError("--style is for figures of --curves: -o FILE.png, .svg or .pdf")
        if self.curves is None:
            return
        given = self.given | self.setting.given | self.course.given
        for name in sorted(given - OF_CURVES):
            what = "a corpus" if name == "corpus" else option_flag(name)
            raise UsageError(f"{what} has no effect with --curves: leave it out")


def read_form(path: Path) -> str:
    """Return the format that the suffix of a file names, or what stands there."""
    return path.suffix.lower().removeprefix(".")


def require_number(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,  # noqa: ARG001
    value: float | None,
) -> float | None:
    """Return a number, which "nan" is not. Raises a usage error."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("a number is needed")
    return value


train_options = option_group(
    "options",
    TrainOptions,
    click.argument("corpus", nargs=-1, type=click.Path(path_type=Path)),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="Folder of the new model; or file of --curves.",
    ),
    click.option("--force", is_flag=True, help="Replace a model, or a file, that is there."),
    click.option("--resume", is_flag=True, help="Go on where an interrupted run in the folder stopped."),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=4800,
        show_default=True,
        help="Batches of 2,048 tokens.",
    ),
    click.option(
        "--minutes",
        type=click.FloatRange(0, 1e6, min_open=True),
        callback=require_number,
        help="Stop after so many; --resume goes on.",
    ),
    click.option(
        "--every",
        type=click.IntRange(1),
        metavar="N",
        help="Steps between checkpoints. Default: ten in a run.",
    ),
    click.option(
        "--watch",
        "live",
        is_flag=True,
        help="Show the heads and the attention of a sentence as they form.",
    ),
    click.option(
        "--curves",
        metavar="RUN",
        type=click.Path(path_type=Path),
        help="Draw what a run measured, and end.",
    ),
    click.option(
        "--style",
        default="screen",
        help="Of the figure of --curves: paper, slide, screen or a .mplstyle file.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of the weights and the batches.",
    ),
    click.option(
        "--layers",
        type=click.IntRange(1, 64),
        default=3,
        show_default=True,
        help="Number of layers.",
    ),
    click.option(
        "--heads",
        type=click.IntRange(1, 64),
        default=6,
        show_default=True,
        help="Heads in a layer.",
    ),
    click.option(
        "--dim",
        type=click.IntRange(8, 4096),
        default=192,
        show_default=True,
        help="Width of the model.",
    ),
    click.option(
        "--score",
        type=click.Choice(SCORES),
        default=SCORES[0],
        show_default=True,
        help="Of the attention.",
    ),
    click.option(
        "--vocabulary",
        type=click.IntRange(257, 65536),
        default=4096,
        show_default=True,
        help="Tokens at most.",
    ),
    click.option(
        "--tokenizer-text",
        type=click.Path(path_type=Path),
        help="Learn tokens from this text, not the corpus.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    option_group("setting", SettingOptions),
    option_group("course", CourseOptions),
)


@click.command()
@train_options
@talk_options
def command(options: TrainOptions, talk: Talk) -> None:
    """Train a small language model made of our own attention layer.

    CORPUS is text files, or folders of .txt files. An empty line parts two documents; one in fifty is held out. The
    folder works as --model, and so do the checkpoints in it, step-N; its history.json has the loss and the scores of
    all heads over steps, training.svg is drawn of it, and --curves draws it again. Interrupted, what has been learnt so
    far is saved, and the same command with --resume goes on. The same seed on the same machine with the same number of
    threads gives the same model, interrupted or not.

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
        raise UsageError("name texts to learn from and -o, a folder for the model; or --curves RUN to draw a run")
    require_output(options.output, force=options.force, resume=options.course.resume)
    options.setting.require_sizes()
    train_model(options, options.output, talk)


def train_model(options: TrainOptions, folder: Path, talk: Talk) -> None:
    """Train a model as the options say, and write it into a folder. Raises AttnvizError."""
    from attnviz.lm import checkpoints, corpus, run
    from attnviz.models.checks import torch_device

    course, chosen = options.course, options.setting
    documents = corpus.read(course.corpus)
    vocabulary_text = corpus.read([course.tokenizer_text]) if course.tokenizer_text else documents
    setting = run.Setting(
        steps=chosen.steps,
        seed=chosen.seed,
        vocabulary=chosen.vocabulary,
        layers=chosen.layers,
        heads=chosen.heads,
        dim=chosen.dim,
        score=chosen.score,
        device=torch_device(course.device),
    )
    identity = checkpoints.identify(chosen.to_dict(), documents, vocabulary_text)
    kept = checkpoints.read(folder, identity) if course.resume else None
    every = course.every or math.ceil(chosen.steps / checkpoints.CHECKPOINTS)
    with wait_for_steps(course.minutes) as stop, show_steps(chosen.steps, talk, live=course.live) as display:
        log = checkpoints.Log(folder, identity, chosen.steps, every, display.look_at_heads)
        if kept is not None:
            log.history, log.fresh = kept.history, False

        def watch(progress: "Progress") -> None:
            display.watch_step(progress)
            stop.require_time()

        trained = run.run(documents, vocabulary_text, setting, watch, log, kept)
    finish_run(trained, log, stop, talk)


def finish_run(trained: "Trained", log: "Log", stop: "Stop", talk: Talk) -> None:
    """Write what was learnt, and tell of it.

    Raises KeyboardInterrupt if the user ended the run before its steps.
    """
    from attnviz.lm import run, store

    store.write(log.folder, trained.stored)
    write_curves(log, talk)
    talk.note(run.describe(trained))
    talk.note(f"wrote {log.folder}; see it with: attnviz show --model {log.folder} ...")
    if trained.steps == log.steps:
        log.done()
        return
    talk.note(f"stopped after {trained.steps} of {log.steps} steps; the same command with --resume goes on")
    if not stop.is_over():
        raise KeyboardInterrupt


def require_output(folder: Path, *, force: bool, resume: bool) -> None:
    """Refuse a folder that could not be written, before anything is computed.

    Raises OutputError, and UsageError where there is no run to resume.
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
        checkpoints.require_state(folder)
    elif folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputError(f"{folder} exists and is not empty; choose another name or add --force")
    require_writable(folder)


# Where a run ends


class Stop:
    """Ends training after a step when the user asks for it, or when its minutes are over."""

    def __init__(self, minutes: float | None) -> None:
        self.is_asked_for = False
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Return whether the minutes are over, and the user did not end it."""
        if self.is_asked_for or self.deadline is None:
            return False
        return time.monotonic() > self.deadline

    def require_time(self) -> None:
        """Raise KeyboardInterrupt if training is to end."""
        if self.is_asked_for or self.is_over():
            raise KeyboardInterrupt


@contextmanager
def wait_for_steps(minutes: float | None) -> Iterator[Stop]:
    """Let Ctrl-C wait until a step is whole and can be kept, between the stages too.

    A second Ctrl-C does not wait.
    """
    stop = Stop(minutes)

    def ask(*_: object) -> None:
        stop.is_asked_for = True
        signal.signal(signal.SIGINT, earlier)

    earlier = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, earlier)


# What is shown of a run


def watch_nothing(progress: "Progress") -> None:
    """Show nothing after a step."""


def look_at_nothing(model: "Stored", history: "Sequence[Measurement]") -> None:
    """Show nothing when the heads were measured."""


@dataclass(frozen=True)
class Display:
    """What is shown on stderr while a model is trained."""

    watch_step: Callable[["Progress"], None] = watch_nothing
    look_at_heads: Callable[["Stored", "Sequence[Measurement]"], None] = look_at_nothing


@contextmanager
def show_steps(steps: int, talk: Talk, *, live: bool) -> Iterator[Display]:
    """Show after each step, or when the heads were measured, how far a run is.

    live: the heads as they form, in place of a bar.
    """
    if talk.quiet:
        yield Display()
    elif live and talk.shows_progress:
        with show_heads(steps) as display:
            yield display
    elif live:
        yield Display(look_at_heads=make_head_notes(steps, talk))
    elif talk.shows_progress:
        with show_bar(steps) as display:
            yield display
    else:
        yield Display(watch_step=make_loss_notes(steps, talk))


def make_loss_notes(steps: int, talk: Talk) -> Callable[["Progress"], None]:
    """Make what notes the loss every tenth of the steps."""
    tenth = max(1, steps // 10)

    def watch_step(progress: "Progress") -> None:
        if progress.step % tenth == 0:
            talk.note(f"step {progress.step}: loss {progress.loss:.3f}")

    return watch_step


def make_head_notes(steps: int, talk: Talk) -> Callable[["Stored", "Sequence[Measurement]"], None]:
    """Make what notes the loss and the best heads every tenth of the steps."""
    from attnviz.results.training import summarise_measurement

    tenth = max(1, steps // 10)

    def look_at_heads(model: "Stored", history: "Sequence[Measurement]") -> None:  # noqa: ARG001
        if history[-1]["step"] % tenth == 0:
            talk.note(summarise_measurement(history))

    return look_at_heads


@contextmanager
def show_bar(steps: int) -> Iterator[Display]:
    """Show a progress bar with loss and speed on the terminal that stderr is."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[state]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, state="")

        def watch_step(progress: "Progress") -> None:
            seconds = bar.tasks[task].elapsed or 1
            speed = progress.tokens / seconds
            state = f"loss {progress.loss:.3f} nats  {speed:,.0f} tokens/s"
            bar.update(task, completed=progress.step, state=state)

        yield Display(watch_step)


@contextmanager
def show_heads(steps: int) -> Iterator[Display]:
    """Show curves and the best induction head on a sentence, on the terminal that stderr is."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.segment import Segments

    from attnviz.cli.screen import open_screen
    from attnviz.render.terminal.draw import draw
    from attnviz.results.training import make_progress_table
    from attnviz.views.heatmaps import heatmaps

    screen = open_screen(ScreenOptions())
    picture = Segments([])
    with Live(console=Console(stderr=True)) as view:

        def watch_step(progress: "Progress") -> None:
            line = f"step {progress.step} of {steps}: loss {progress.loss:.3f} nats"
            view.update(Group(line, picture))

        def look_at_heads(model: "Stored", history: "Sequence[Measurement]") -> None:
            nonlocal picture
            (heatmap,) = heatmaps(capture_best_head(model, history))
            height = max(1, view.console.height - LINES_AROUND)
            lines = [
                *draw(make_progress_table(history), screen),
                [],
                *draw(heatmap, replace(screen, height=height)),
            ]
            picture = join_lines(lines, ends=False)

        yield Display(watch_step, look_at_heads)


def join_lines(lines: "Iterable[Line]", *, ends: bool) -> "Segments":
    """Join lines of segments for a console. ends: with an end of line after the last, too."""
    from rich.segment import Segment, Segments

    segments: list[Segment] = []
    for line in lines:
        segments += [*line, Segment.line()]
    return Segments(segments if ends else segments[:-1])


def capture_best_head(model: "Stored", history: "Sequence[Measurement]") -> "Capture":
    """Capture the attention of the best induction head on a sentence that repeats."""
    import numpy as np
    from tokenizers import Tokenizer

    from attnviz.lm.evaluate import weights
    from attnviz.models.builtin import read_tokens
    from attnviz.record import AttentionMap, Capture
    from attnviz.results.training import find_best_heads

    encoding = Tokenizer.from_str(model.tokenizer).encode(WATCHED)
    tokens = read_tokens(encoding, WATCHED)
    best = next(find_best_heads(history))
    every_head = weights(model.parameters, np.array([encoding.ids]), model.config)
    of_best = every_head[:, best.layer, best.head]  # (1, query, key)
    visible = np.tri(len(tokens), dtype=bool)
    attention_map = AttentionMap("self", (best.layer,), (best.head,), tokens, tokens, of_best[None], visible)
    return Capture("the model so far", WATCHED, (attention_map,))


# Its curves


def write_curves(log: "Log", talk: Talk) -> None:
    """Write the figure of a run into its folder, and draw it on a terminal.

    Before the first measurement there is nothing to draw. Raises OutputError.
    """
    from attnviz.io.files import write_whole
    from attnviz.lm.checkpoints import FIGURE
    from attnviz.lm.evaluate import BLOCK
    from attnviz.render.figure.figure import figure
    from attnviz.results.training import make_learning_curves

    if not log.history:
        return
    curves, path = make_learning_curves(log.history, BLOCK), log.folder / FIGURE
    write_whole(path, figure(curves, "svg").data)
    if talk.shows_progress:
        print_beside(curves)
    talk.note(f"wrote {path}")


def print_beside(picture: "Picture") -> None:
    """Print a picture that is talk, not a result, on the terminal that stderr is."""
    from rich.console import Console

    from attnviz.cli.screen import open_screen
    from attnviz.render.terminal.draw import draw

    console = Console(stderr=True)
    screen = replace(open_screen(ScreenOptions()), width=console.width, height=console.height)
    console.print(join_lines(draw(picture, screen), ends=True), end="", crop=False)


def draw_run(run: Path, options: TrainOptions, talk: Talk) -> None:
    """Draw what a run measured on the screen, or into a file by its suffix. Raises AttnvizError."""
    from attnviz.cli.output import RESULT_FORMATS, Target, answer_of_result, deliver, require_form
    from attnviz.cli.screen import open_screen
    from attnviz.experiments.training import read_training
    from attnviz.io.files import require_new

    target = None
    if options.output is not None:
        target = Target(read_form(options.output), options.output)
        require_form(target, RESULT_FORMATS, "what a run measured")
        require_new(options.output, options.force)
    result = ResultOptions(FileOptions(), FigureOptions(options.style), ScreenOptions(), talk)
    answer = answer_of_result(read_training(run))
    deliver(answer, target, open_screen(result.screen), result)
