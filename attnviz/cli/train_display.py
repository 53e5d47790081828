"""What `attnviz train` shows on stderr while a model is trained, and of what was learnt."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnviz.cli.options import ScreenOptions
from attnviz.cli.talk import Talk
from attnviz.progress import begin_step, leave_screen

if TYPE_CHECKING:
    from rich.segment import Segments

    from attnviz.drawable import Picture
    from attnviz.lm.store import StoredModel
    from attnviz.lm.train import Progress
    from attnviz.record import Capture
    from attnviz.render.terminal.cells import TerminalLine
    from attnviz.results.training import Measurement

WATCHED = (  # where it repeats, induction is seen
    "The quick brown fox jumps. The quick brown fox jumps."
)
SHORTEST = 1e-3  # seconds that a training is taken to last at least
LINES_AROUND = 14  # of the live view that are not of its picture


def watch_nothing(progress: "Progress") -> None:
    """Show nothing after a step."""


def look_at_nothing(model: "StoredModel", history: "Sequence[Measurement]") -> None:
    """Show nothing when the heads were measured."""


@dataclass(frozen=True)
class Display:
    """What is shown on stderr while a model is trained."""

    watch_step: Callable[["Progress"], None] = watch_nothing
    look_at_heads: Callable[["StoredModel", "Sequence[Measurement]"], None] = look_at_nothing


@contextmanager
def show_steps(steps: int, talk: Talk, *, live: bool) -> Iterator[Display]:
    """Show on stderr how far a training is, while a block runs.

    Yields two functions that training calls: one after each step, one when the heads were measured.
    On a terminal they show it; elsewhere they print a line now and then.

    steps: the number of all steps. live: show the heads as they form, in place of a line.
    """
    if talk.quiet:
        yield Display()
    elif live and talk.shows_progress:
        with show_heads(steps) as display:
            yield display
    elif live:
        yield Display(look_at_heads=make_head_notes(steps, talk))
    elif talk.shows_progress:
        with count_training(steps) as display:
            yield display
    else:
        yield Display(watch_step=make_loss_notes(steps, talk))


def make_loss_notes(steps: int, talk: Talk) -> Callable[["Progress"], None]:
    """Make a function that prints the loss on stderr at every tenth of the steps of a training."""
    tenth = max(1, steps // 10)

    def watch_step(progress: "Progress") -> None:
        if progress.step % tenth == 0:
            talk.note(f"step {progress.step}: loss {progress.loss:.3f}")

    return watch_step


def make_head_notes(
    steps: int,
    talk: Talk,
) -> Callable[["StoredModel", "Sequence[Measurement]"], None]:
    """Make a function that prints the loss and the best heads at every tenth of the steps.

    The function is called when the heads were measured, with all measurements so far.
    """
    from attnviz.results.training import summarise_last_measurement

    tenth = max(1, steps // 10)

    def look_at_heads(model: "StoredModel", history: "Sequence[Measurement]") -> None:  # noqa: ARG001
        if history[-1]["step"] % tenth == 0:
            talk.note(summarise_last_measurement(history))

    return look_at_heads


@contextmanager
def count_training(steps: int) -> Iterator[Display]:
    """Say how far a training is, with loss and speed, while a block runs.

    Yields the function that training calls after each step.
    """
    first: Progress | None = None
    with begin_step("training", "step", steps) as training:

        def watch_step(progress: "Progress") -> None:
            nonlocal first
            if first is None:
                first = progress
                training.continue_from(progress.step)
                return
            seconds = time.monotonic() - training.began
            speed = (progress.tokens - first.tokens) / max(seconds, SHORTEST)
            training.state = f"loss {progress.loss:.3f} nats, {speed:,.0f} tokens/s"
            training.done = progress.step

        yield Display(watch_step)


@contextmanager
def show_heads(steps: int) -> Iterator[Display]:
    """Show on stderr, a terminal, how heads form in a training, while a block runs.

    It shows a line with the loss, a table of what was measured, and the attention of the best
    induction head on a sentence. Yields two functions that training calls: one after each step, and
    one when the heads were measured.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.segment import Segments

    from attnviz.cli.screen import open_screen
    from attnviz.render.terminal.draw import draw_picture_lines
    from attnviz.results.training import make_progress_table
    from attnviz.views.heatmaps import make_heatmaps

    screen = open_screen(ScreenOptions())
    picture = Segments([])
    with leave_screen(), Live(console=Console(stderr=True)) as view:

        def watch_step(progress: "Progress") -> None:
            line = f"step {progress.step} of {steps}: loss {progress.loss:.3f} nats"
            view.update(Group(line, picture))

        def look_at_heads(model: "StoredModel", history: "Sequence[Measurement]") -> None:
            nonlocal picture
            (heatmap,) = make_heatmaps(capture_best_head(model, history))  # of one head
            height = max(1, view.console.height - LINES_AROUND)
            lines = [
                *draw_picture_lines(make_progress_table(history), screen),
                [],
                *draw_picture_lines(heatmap, replace(screen, height=height)),
            ]
            picture = join_lines(lines, ends=False)

        yield Display(watch_step, look_at_heads)


def join_lines(lines: "Iterable[TerminalLine]", *, ends: bool) -> "Segments":
    """Join lines of styled segments to one object that a console of rich prints.

    ends: put an end of line after the last line, too.
    """
    from rich.segment import Segment, Segments

    segments: list[Segment] = []
    for line in lines:
        segments += [*line, Segment.line()]
    return Segments(segments if ends else segments[:-1])


def capture_best_head(model: "StoredModel", history: "Sequence[Measurement]") -> "Capture":
    """Capture the attention of the best induction head of a model on a sentence that repeats.

    model: as it is trained so far. history: what was measured of it; the last entry says which head
    is the best.
    """
    import numpy as np
    from tokenizers import Tokenizer

    from attnviz.lm.evaluate import compute_all_weights
    from attnviz.models.builtin import list_encoding_tokens
    from attnviz.record import AttentionMap, Capture
    from attnviz.results.training import find_best_heads

    encoding = Tokenizer.from_str(model.tokenizer).encode(WATCHED)
    tokens = list_encoding_tokens(encoding, WATCHED)
    best = next(find_best_heads(history))
    ids = np.array([encoding.ids])
    all_weights = compute_all_weights(model.parameters, ids, model.config)
    best_weights = all_weights[:, best.layer, best.head]  # (1, query, key), of the one text
    causal_mask = np.tri(len(tokens), dtype=bool)
    attention_map = AttentionMap(
        kind="self",
        layers=(best.layer,),
        heads=(best.head,),
        queries=tokens,
        keys=tokens,
        weights=best_weights[None],
        visible=causal_mask,
    )
    return Capture("the model so far", WATCHED, (attention_map,))


def print_on_stderr(picture: "Picture") -> None:
    """Print a picture on stderr, a terminal, because it is no result of the command."""
    from rich.console import Console

    from attnviz.cli.screen import open_screen
    from attnviz.render.terminal.draw import draw_picture_lines

    console = Console(stderr=True)
    screen = replace(open_screen(ScreenOptions()), width=console.width, height=console.height)
    console.print(join_lines(draw_picture_lines(picture, screen), ends=True), end="", crop=False)
