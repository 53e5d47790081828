"""`attnviz show`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from attnviz.cli import text as text_input
from attnviz.cli.options import (
    model_options,
    note,
    output_options,
    screen_options,
    selection_options,
    talk_options,
    text_argument,
)
from attnviz.cli.screen import screen, show
from attnviz.errors import UsageError
from attnviz.files import require_new, write_whole
from attnviz.models.request import Request
from attnviz.record import Capture
from attnviz.render.terminal import Screen, draw
from attnviz.selection import ALL, Named, Selection
from attnviz.storage import to_json
from attnviz.views import Drawable, grid, heatmaps

LAST = Selection(((-1, -1),))
FORMATS = (".png", ".json")


@click.command()
@text_argument
@selection_options
@click.option("--view", type=click.Choice(["heatmap", "grid"]), help="One picture a head, or all heads as thumbnails.")
@click.option("--reduce", "how", type=click.Choice(["mean", "max"]), help="Merge the chosen heads of a layer into one.")
@model_options
@output_options
@screen_options
@talk_options
def command(
    text: str | None,
    layers: Selection | None,
    heads: Selection | Named | None,
    view: Literal["heatmap", "grid"] | None,
    how: Literal["mean", "max"] | None,
    output: str | None,
    force: bool,
    as_json: bool,
    width: int | None,
    color: str,
    quiet: bool,
    truncate: bool,
    **model: Any,
) -> None:
    """Draw the attention of a model on a text: rows are queries, columns the keys that they attend to.

    TEXT may be - for stdin, @FILE or @sample:NAME. Without --layers and --heads it is the mean over the heads of the
    last layer; --view grid shows all of them.

    \b
    Examples:
      attnviz show "The cat sat on the mat because it was tired."
      attnviz show --view grid @sample:repeat
      attnviz show -H L1H3 @sample:repeat
      attnviz show -l all --reduce mean "Where does it look?" --json
      attnviz show "Hello, world" --model bert-base -o hello.png
    """
    if output is not None:
        check_output(Path(output), force)
    content = text_input.read(text, quiet)
    overview = view == "grid" and how is None
    if heads is None and not overview:
        how = how or "mean"
    chosen = choose(layers, heads, overview)
    capture = take(content, Request(*chosen, truncate), quiet, model)
    if how:
        capture = reduce(capture, how, told=heads is not None)
    if output is not None:
        write(capture, Path(output), view, quiet)
    if as_json:
        click.echo(to_json(capture))
    if output is None and not as_json:
        paint(capture, view, screen(width, color))
        if layers is None and heads is None and not overview:
            note("see more: --view grid draws every head; -l and -H choose layers and heads", quiet)
    else:
        for line in capture.notes:
            note(line, quiet)


def reduce(capture: Capture, how: Literal["mean", "max"], told: bool) -> Capture:
    """One head a layer instead of several; ``told`` if it must be said which these were, not all of them."""
    notes = tuple(f"{how} over heads {', '.join(map(str, part.heads))}" for part in capture.maps) if told else ()
    maps = tuple(part.reduced(how) for part in capture.maps)
    return replace(capture, maps=maps, notes=(*capture.notes, *dict.fromkeys(notes)))


def choose(
    layers: Selection | None, heads: Selection | Named | None, overview: bool
) -> tuple[Selection, Selection | Named]:
    """The layers and heads to capture: the last layer unless told otherwise, all of them for an overview."""
    if isinstance(heads, Named):
        if layers is not None:
            raise UsageError("--heads L5H3 names its layer: leave --layers out")
        return ALL, heads
    return layers or (ALL if overview else LAST), heads or ALL


def take(text: str, request: Request, quiet: bool, model: dict[str, Any]) -> Capture:
    """Load the model and run it."""
    from attnviz.models import Placement, load

    loaded = load(
        model["model"],
        revision=model["revision"],
        placement=Placement(model["device"], model["dtype"]),
        offline=model["offline"],
        quiet=quiet or not sys.stderr.isatty(),
    )
    return loaded.capture(text, request)


def drawables(capture: Capture, view: str | None) -> Sequence[Drawable]:
    """The pictures of a capture: one heatmap, or a grid where there are several heads, unless --view says so."""
    single = sum(len(part.layers) * len(part.heads) for part in capture.maps) == 1
    if view == "grid" or (view is None and not single):
        return [grid(capture)]
    return heatmaps(capture)


def paint(capture: Capture, view: str | None, on: Screen) -> None:
    """Draw on stdout."""
    for drawable in drawables(capture, view):
        show(draw(drawable, on), on)


def check_output(path: Path, force: bool) -> None:
    """Refuse a file that could not be written before anything is computed. Raises UsageError or OutputError."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot tell the format of {path}: the suffix must be one of {', '.join(FORMATS)}")
    require_new(path, force)


def write(capture: Capture, path: Path, view: str | None, quiet: bool) -> None:
    """Write a figure or a document, by the suffix of the file."""
    if path.suffix.lower() == ".json":
        data = to_json(capture).encode() + b"\n"
    else:
        from attnviz.render.figure import png

        pictures = drawables(capture, view)
        if len(pictures) > 1:
            raise UsageError(f"a .png holds one picture, not {len(pictures)}: choose one head, or --view grid")
        data = png(pictures[0])
    write_whole(path, data)
    note(f"wrote {path}", quiet)
