"""Drawing: CPU time of our pictures, as ratios to the usual way of drawing the same, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/render.py [rounds]

Prints the least of several rounds. Making and saving are timed, importing is not. What a page costs: page.py.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from attnviz.record import AttentionMap, Capture, Token
from attnviz.render.colour import sample_colours
from attnviz.render.figure.figure import FigureStyle as FigureStyle
from attnviz.render.figure.figure import render_figure
from attnviz.render.terminal.cells import CellPaint
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.views import Heatmap, make_grids, make_heatmaps


def capture(layers: int, heads: int, n: int) -> Capture:
    """Weights that look like a causal model's: a sink, a diagonal, noise."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(layers, heads, n, n)).astype(np.float32) * 2
    scores[..., 0] += 4
    scores += np.eye(n, dtype=np.float32) * 5
    visible = np.tri(n, dtype=bool)
    weights = np.exp(scores) * visible
    weights /= weights.sum(-1, keepdims=True)
    tokens = tuple(Token(f"word{i}", i, 7 * i, 7 * i + 6, False) for i in range(n))
    return Capture(
        "model",
        "",
        (
            AttentionMap(
                "self", tuple(range(layers)), tuple(range(heads)), tokens, tokens, weights, visible
            ),
        ),
    )


def on_terminal(picture: Any) -> None:
    """Our picture, written as show writes it."""
    segments = [
        part
        for line in draw_picture_lines(picture, Screen(100, paint=CellPaint()))
        for part in (*line, Segment.line())
    ]
    console().print(Segments(segments), end="", crop=False)


def console() -> Console:
    """A terminal of 24-bit colours."""
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=200,
        legacy_windows=False,
    )


def rich_table(picture: Heatmap) -> None:
    """The same weights as a table with a text a cell."""
    table = Table(show_header=False, box=None, padding=0)
    shades = sample_colours()
    for row in picture.scale.steps(picture.panel, 64):
        styles = (
            Style(bgcolor="rgb({},{},{})".format(*shades[min(at, 63)])) if at >= 0 else Style()
            for at in row
        )
        table.add_row(*(Text("  ", style=style) for style in styles))
    console().print(table)


def matplotlib_axes(found: Capture) -> None:
    """Every head with an axes of its own, as is usual."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights = found.maps[0].weights
    layers, heads = weights.shape[:2]
    made = Figure(figsize=(heads, layers))
    FigureCanvasAgg(made)
    for i, j in np.ndindex(layers, heads):
        axes = made.add_subplot(layers, heads, i * heads + j + 1)
        axes.imshow(weights[i, j], cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{i}.{j}", fontsize=6)
    made.savefig(io.BytesIO(), format="png", dpi=100)


def our_grid(found: Capture) -> None:
    """All heads on one canvas, at the same size and resolution."""
    render_figure(make_grids(found)[0], "png", FigureStyle(inches=12, dpi=100))


def least(work: Callable[[], None], rounds: int) -> float:
    """CPU milliseconds of the quickest of so many runs."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1000


def compare(
    name: str, ours: Callable[[], None], theirs: Callable[[], None], rounds: int, bar: float
) -> None:
    """How many times faster ours is."""
    mine, its = least(ours, rounds), least(theirs, rounds)
    print(f"{name:<66} {its:8.1f} ms / {mine:7.1f} ms = {its / mine:6.1f} (bar {bar})")


def limit(name: str, ours: Callable[[], None], rounds: int, bar: float) -> None:
    """How much of what it may cost it does."""
    mine = least(ours, rounds)
    print(f"{name:<66} {mine:8.1f} ms / {bar:7.1f} ms = {mine / bar:6.2f} (bar 1)")


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    long, short, small, large = (
        capture(1, 1, 512),
        capture(1, 1, 64),
        capture(12, 12, 32),
        capture(6, 12, 512),
    )
    one = make_heatmaps(short)[0]
    limit(
        "terminal, heatmap of 512 tokens", lambda: on_terminal(make_heatmaps(long)[0]), rounds, 10
    )
    compare(
        "terminal, 64 tokens: rich.Table, a Text a cell / ours",
        lambda: on_terminal(one),
        lambda: rich_table(one),
        rounds,
        50,
    )
    compare(
        "PNG, 12 x 12 heads of 32 tokens: 144 axes / ours",
        lambda: our_grid(small),
        lambda: matplotlib_axes(small),
        rounds,
        4,
    )
    limit(
        "PNG, 6 x 12 heads of 512 tokens",
        lambda: render_figure(make_grids(large)[0], "png"),
        rounds,
        1000,
    )
    for n in (32, 128, 512):
        picture = make_heatmaps(capture(1, 1, n))[0]
        for form in ("png", "svg", "pdf"):
            limit(
                f"{form}, one head of {n} tokens",
                lambda: render_figure(picture, form),  # noqa: B023
                rounds,
                1000,
            )
