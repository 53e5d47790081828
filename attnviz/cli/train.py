"""`attnviz train`."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from attnviz.cli.options import FIGURES, note, talk_options
from attnviz.errors import OutputError, UsageError

if TYPE_CHECKING:
    from attnviz.lm.checkpoints import Log
    from attnviz.lm.run import Trained
    from attnviz.lm.store import Stored
    from attnviz.lm.train import Progress
    from attnviz.record import Capture
    from attnviz.views import Picture

Watch = Callable[["Progress"], None]
Look = Callable[["Stored", Sequence[dict[str, Any]]], None]
WATCHED = "The quick brown fox jumps. The quick brown fox jumps."  # where it repeats, induction is seen
AROUND = 14  # lines of the live view that are not of its picture
OF_CURVES = {"curves", "output", "force", "style", "quiet"}  # options that --curves obeys
SCORES = "scaled_dot", "dot", "cosine", "gaussian"  # of attnviz.layer.scores, which would load NumPy for a help


def numeric(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:  # noqa: ARG001
    """A number, which "nan" is not. Raises a usage error."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("a number is needed")
    return value


@click.command()
@click.argument("corpus", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the new model; or file of --curves.")
@click.option("--force", is_flag=True, help="Replace a model, or a file, that is there.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run in the folder stopped.")
@click.option("--steps", type=click.IntRange(1), default=4800, show_default=True, help="Batches of 2,048 tokens.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=numeric,
    help="Stop after so many; --resume goes on.",
)
@click.option("--every", type=click.IntRange(1), metavar="N", help="Steps between checkpoints. Default: ten in a run.")
@click.option("--watch", "live", is_flag=True, help="Show the heads and the attention of a sentence as they form.")
@click.option("--curves", metavar="RUN", type=click.Path(path_type=Path), help="Draw what a run measured, and end.")
@click.option("--style", default="screen", help="Of the figure of --curves: paper, slide, screen or a .mplstyle file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights and the batches.")
@click.option("--layers", type=click.IntRange(1, 64), default=3, show_default=True, help="Number of layers.")
@click.option("--heads", type=click.IntRange(1, 64), default=6, show_default=True, help="Heads in a layer.")
@click.option("--dim", type=click.IntRange(8, 4096), default=192, show_default=True, help="Width of the model.")
@click.option("--score", type=click.Choice(SCORES), default=SCORES[0], show_default=True, help="Of the attention.")
@click.option("--vocabulary", type=click.IntRange(257, 65536), default=4096, show_default=True, help="Tokens at most.")
@click.option("--tokenizer-text", type=click.Path(path_type=Path), help="Learn tokens from this text, not the corpus.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@talk_options
def command(
    corpus: tuple[Path, ...],
    output: Path | None,
    force: bool,
    resume: bool,
    minutes: float | None,
    every: int | None,
    live: bool,
    curves: Path | None,
    style: str,
    tokenizer_text: Path | None,
    device: str,
    quiet: bool,
    **chosen: Any,
) -> None:
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
    check_curves(curves, output)
    if curves:
        draw_again(curves, output, force, style, quiet)
        return
    if not corpus or output is None:
        raise UsageError("name texts to learn from and -o, a folder for the model; or --curves RUN to draw a run")
    check_output(output, force, resume)
    check_sizes(chosen["dim"], chosen["heads"])
    from attnviz.lm import checkpoints, run
    from attnviz.lm import corpus as texts
    from attnviz.models.checks import torch_device

    documents = texts.read(corpus)
    vocabulary_text = texts.read([tokenizer_text]) if tokenizer_text else documents
    setting, steps = run.Setting(device=torch_device(device), **chosen), chosen["steps"]
    identity = checkpoints.identify(chosen, documents, vocabulary_text)
    kept = checkpoints.read(output, identity) if resume else None
    with stopping(minutes) as stop, shown(steps, quiet, live) as (watch, look):
        log = checkpoints.Log(output, identity, steps, every or -(-steps // checkpoints.CHECKPOINTS), look)
        if kept:
            log.history, log.fresh = kept.history, False
        done = run.run(documents, vocabulary_text, setting, lambda now: stop(watch(now)), log, kept)
    finish(done, log, stop, quiet)


def finish(done: "Trained", log: "Log", stop: "Stop", quiet: bool) -> None:
    """Write what was learnt, and tell of it. Raises KeyboardInterrupt if the user ended it before its steps."""
    from attnviz.lm import run, store

    store.write(log.folder, done.stored)
    draw_learning(log, quiet)
    note(run.describe(done), quiet)
    note(f"wrote {log.folder}; see it with: attnviz show --model {log.folder} ...", quiet)
    if done.steps == log.steps:
        log.done()
        return
    note(f"stopped after {done.steps} of {log.steps} steps; the same command with --resume goes on", quiet)
    if not stop.over():
        raise KeyboardInterrupt


def check_curves(curves: Path | None, output: Path | None) -> None:
    """Refuse options that have no effect, with --curves or without. Raises UsageError."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    drawn = curves and output and output.suffix.lower().removeprefix(".") in FIGURES
    if "style" in given and not drawn:
        raise UsageError("--style is for figures of --curves: -o FILE.png, .svg or .pdf")
    for name in sorted(given - OF_CURVES) if curves else ():
        named = "a corpus" if name == "corpus" else f"--{'watch' if name == 'live' else name.replace('_', '-')}"
        raise UsageError(f"{named} has no effect with --curves: leave it out")


def draw_learning(log: "Log", quiet: bool) -> None:
    """Write the figure of a run into its folder, and draw it on a terminal; nothing before the first measurement."""
    from attnviz.io.files import write_whole
    from attnviz.lm.checkpoints import FIGURE
    from attnviz.lm.evaluate import BLOCK
    from attnviz.render.figure.figure import figure
    from attnviz.results.training import learning_curves

    if not log.history:
        return
    picture, path = learning_curves(log.history, BLOCK), log.folder / FIGURE
    write_whole(path, figure(picture, "svg").data)
    if sys.stderr.isatty() and not quiet:
        show_beside(picture)
    note(f"wrote {path}", quiet)


def show_beside(picture: "Picture") -> None:
    """Draw on the terminal that stderr is: a picture that is talk, not a result."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    from attnviz.cli.screen import screen
    from attnviz.render.terminal.draw import draw

    console = Console(stderr=True)
    lines = draw(picture, replace(screen(None, "auto"), width=console.width, height=console.height))
    console.print(Segments([part for line in lines for part in (*line, Segment.line())]), end="", crop=False)


def draw_again(source: Path, output: Path | None, force: bool, style: str, quiet: bool) -> None:
    """Draw what a run measured on the screen, or into a file by its suffix."""
    from attnviz.cli.answers import FORMS, Answer, deliver
    from attnviz.cli.output import Target, require_form
    from attnviz.cli.screen import screen
    from attnviz.io.files import require_new
    from attnviz.lm.checkpoints import read_history
    from attnviz.results.training import learning_curves

    to = None
    if output is not None:
        to = Target(output.suffix.lower().removeprefix("."), output)
        require_form(to, FORMS, "what a run measured")
        require_new(output, force)
    history, block = read_history(source)
    records = [
        {"step": one["step"], "loss": one["loss"], "role": role, "layer": layer, "head": head, "score": score}
        for one in history
        for role in history[-1]["scores"]
        for layer, row in enumerate(one["scores"][role])
        for head, score in enumerate(row)
    ]
    answer = Answer([learning_curves(history, block)], {"block": block, "history": history}, records)
    options = {"title": None, "style": style, "inches": None, "dpi": None, "transparent": False}
    deliver(answer, to, screen(None, "auto"), options, quiet)


def check_output(folder: Path, force: bool, resume: bool) -> None:
    """Refuse a folder that could not be written, before anything is computed. Raises OutputError, or UsageError."""
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


def check_sizes(dim: int, heads: int) -> None:
    """Raise UsageError unless the width divides into heads with an even size, which rotary positions need."""
    if dim % (2 * heads):
        raise UsageError(f"--dim {dim} is not a multiple of 2 x {heads} heads")


class Stop:
    """Ends training after a step when the user asks for it, or when its minutes are over."""

    def __init__(self, minutes: float | None) -> None:
        self.asked = False
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        """Whether it was time, not the user, that ended it."""
        return not self.asked and self.deadline is not None and time.monotonic() > self.deadline

    def __call__(self, _: None) -> None:
        """Raise KeyboardInterrupt if training is to end."""
        if self.asked or self.over():
            raise KeyboardInterrupt


@contextmanager
def stopping(minutes: float | None) -> Iterator[Stop]:
    """Let Ctrl-C wait until a step is whole and can be kept, between the stages too; a second one does not wait."""
    stop = Stop(minutes)

    def ask(*_: object) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def shown(steps: int, quiet: bool, live: bool) -> Iterator[tuple[Watch, Look]]:
    """What is shown after each step, and what when the heads were measured."""
    if not live or quiet:
        with progress(steps, quiet) as watch:
            yield watch, lambda *_: None
    elif not sys.stderr.isatty():
        yield lambda _: None, told(steps)
    else:
        with living(steps) as (watch, look):
            yield watch, look


def told(steps: int) -> Look:
    """A line every tenth of the steps with the loss and the best heads."""

    def look(_: "Stored", history: Sequence[dict[str, Any]]) -> None:
        from attnviz.results.training import line

        if history[-1]["step"] % max(1, steps // 10) == 0:
            note(line(history), quiet=False)

    return look


@contextmanager
def living(steps: int) -> Iterator[tuple[Watch, Look]]:
    """A view on the terminal that changes as the model does: curves, and the best induction head on a sentence."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.segment import Segment, Segments

    from attnviz.cli.screen import screen
    from attnviz.render.terminal.draw import draw
    from attnviz.results.training import curves
    from attnviz.views.heatmaps import heatmaps

    on, drawn = screen(None, "auto"), Segments([])
    with Live(console=Console(stderr=True)) as view:

        def watch(now: "Progress") -> None:
            view.update(Group(f"step {now.step} of {steps}: loss {now.loss:.3f} nats", drawn))

        def look(model: "Stored", history: Sequence[dict[str, Any]]) -> None:
            nonlocal drawn
            (picture,) = heatmaps(sentence(model, history))
            room = replace(on, height=max(1, view.console.height - AROUND))
            lines = [*draw(curves(history), on), [], *draw(picture, room)]
            drawn = Segments([segment for line in lines for segment in (Segment.line(), *line)][1:])

        yield watch, look


def sentence(model: "Stored", history: Sequence[dict[str, Any]]) -> "Capture":
    """The attention of the best induction head on a sentence that repeats."""
    import numpy as np
    from tokenizers import Tokenizer

    from attnviz.lm.evaluate import weights
    from attnviz.models.builtin import read_tokens
    from attnviz.record import AttentionMap, Capture
    from attnviz.results.training import best

    encoding = Tokenizer.from_str(model.tokenizer).encode(WATCHED)
    tokens, chosen = read_tokens(encoding, WATCHED), next(best(history))
    found = weights(model.parameters, np.array([encoding.ids]), model.config)[:, chosen.layer, chosen.head]
    visible = np.tri(len(tokens), dtype=bool)
    part = AttentionMap("self", (chosen.layer,), (chosen.head,), tokens, tokens, found[None], visible)
    return Capture("the model so far", WATCHED, (part,))


@contextmanager
def progress(steps: int, quiet: bool) -> Iterator[Watch]:
    """A progress bar with loss and speed on a terminal; a line every tenth elsewhere; nothing if quiet."""
    if quiet or not sys.stderr.isatty():
        yield lambda now: note(f"step {now.step}: loss {now.loss:.3f}", quiet or now.step % max(1, steps // 10) > 0)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[told]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, told="")

        def watch(now: "Progress") -> None:
            speed = now.tokens / (bar.tasks[task].elapsed or 1)
            bar.update(task, completed=now.step, told=f"loss {now.loss:.3f} nats  {speed:,.0f} tokens/s")

        yield watch
