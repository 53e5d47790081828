"""`attnviz show`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from attnviz.cli.options import (
    SelectionType,
    map_option,
    model_options,
    note,
    output_options,
    prompt_options,
    screen_options,
    selection_options,
    talk_options,
    text_argument,
    verbose_option,
)
from attnviz.cli.screen import screen, show
from attnviz.cli.take import reread, take, tell
from attnviz.errors import InputError, UsageError
from attnviz.files import require_new, write_whole
from attnviz.record import Capture, Kind, Reduction
from attnviz.render.terminal import Screen, draw
from attnviz.request import Request
from attnviz.selection import ALL, Named, Selection, parse_window
from attnviz.storage import to_json
from attnviz.views import Drawable, grids, heatmaps

LAST = Selection(((-1, -1),))
WHOLE = slice(None)
FORMATS = (".png", ".json")
FIGURE, THUMBNAIL = 1200, 192  # tiles on the side of a picture in a figure, and of one among many
FINE = 4  # tiles a column of the screen, so that pooling them to fit it loses nothing that can be seen


@click.command()
@text_argument
@selection_options
@map_option
@click.option("--view", type=click.Choice(["heatmap", "grid"]), help="One picture a head, or all heads as thumbnails.")
@click.option("--reduce", "how", type=click.Choice(["mean", "max"]), help="Merge the chosen heads of a layer into one.")
@click.option("--rows", type=SelectionType("A:B", parse_window), help="Only these queries, at full resolution.")
@click.option("--cols", "columns", type=SelectionType("A:B", parse_window), help="Only these keys, likewise.")
@click.option("--from", "source", metavar="FILE", help="Draw a capture or arrays: .attn, .npz, .safetensors or .json.")
@prompt_options
@model_options
@output_options
@screen_options
@verbose_option
@talk_options
def command(
    text: str | None,
    layers: Selection | None,
    heads: Selection | Named | None,
    kind: Kind | None,
    view: str | None,
    how: Reduction | None,
    rows: slice | None,
    columns: slice | None,
    source: str | None,
    output: str | None,
    force: bool,
    as_json: bool,
    width: int | None,
    color: str,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Draw the attention of a model on a text: rows are queries, columns the keys that they attend to.

    TEXT may be - for stdin, @FILE or @sample:NAME. Without --layers and --heads it is the mean over the heads of the
    last layer; --view grid shows all of them. A long text is drawn in tiles; --rows and --cols open a window in it.

    \b
    Examples:
      attnviz show "The cat sat on the mat because it was tired."
      attnviz show --view grid @sample:repeat
      attnviz show -H L1H3 @sample:paragraph --rows 90:110
      attnviz show -l all --reduce mean "Where does it look?" --json
      attnviz show "Hello, world" --model bert-base -o hello.png
      attnviz show --from run.attn -l 0
    """
    on = screen(width, color)
    if output is not None:
        check_output(Path(output), force)
    overview = view == "grid" and how is None
    exact = as_json or (output is not None and output.lower().endswith(".json"))
    request = Request(
        *choose(layers, heads, overview),
        options["truncate"],
        (kind,) if kind else (),
        () if overview else ("self", "cross"),
        "weights" if exact or rows or columns else "tiles",
        tiles_for(single(layers, heads, view, how), on if output is None else None),
        rows=rows or WHOLE,
        columns=columns or WHOLE,
    )
    capture = take(text, request, options, quiet) if source is None else reread(text, source, request)
    if heads is None and not overview:
        how = how or "mean"
    if how:
        capture = reduce(capture, how, told=heads is not None)
    tell(capture, quiet, verbose)
    deliver(capture, view, on if output is None and not as_json else None, output, as_json, quiet)
    if output is None and not as_json and layers is None and heads is None and not overview and source is None:
        note("see more: --view grid draws every head; -l and -H choose layers and heads", quiet)


def single(layers: Selection | None, heads: Selection | Named | None, view: str | None, how: Reduction | None) -> bool:
    """Whether one large picture is drawn at a time, rather than thumbnails."""
    one_layer = layers is None or layers.is_one
    return view == "heatmap" or (view is None and (heads is None or heads.is_one or how is not None) and one_layer)


def tiles_for(alone: bool, on: Screen | None) -> int:
    """Tiles on a side that a picture can show, on a screen or else in a figure."""
    if on is None:
        return FIGURE if alone else THUMBNAIL
    return FINE * on.width if alone else on.width


def deliver(
    capture: Capture, view: str | None, on: Screen | None, output: str | None, as_json: bool, quiet: bool
) -> None:
    """Draw on the screen, or write what is asked for and tell the notes, which a picture holds."""
    if output is not None:
        write(capture, Path(output), view, quiet)
    if as_json:
        click.echo(to_json(capture))
    if on is None:
        for line in capture.notes:
            note(line, quiet)
        return
    for drawable in drawables(capture, view):
        show(draw(drawable, on), on)


def reduce(capture: Capture, how: Reduction, told: bool) -> Capture:
    """One head a layer instead of several; ``told`` if it must be said which these were, not all of them."""
    parts = [part for part in capture.maps if isinstance(part.heads[0], int)]  # a file may hold a reduction already
    notes = tuple(f"{how} over heads {', '.join(map(str, part.heads))}" for part in parts) if told else ()
    maps = tuple(part.reduced(how) if part in parts else part for part in capture.maps)
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


def drawables(capture: Capture, view: str | None) -> Sequence[Drawable]:
    """The pictures of a capture: one heatmap, or grids where there are several heads, unless --view says so."""
    if not all(part.weights is not None or part.tiles for part in capture.maps):
        raise InputError("this capture holds statistics or edges only: there is nothing to draw")
    single = sum(len(part.layers) * len(part.heads) for part in capture.maps) == 1
    if view == "grid" or (view is None and not single):
        return grids(capture)
    return heatmaps(capture)


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
            raise UsageError(f"a .png holds one picture, not {len(pictures)}: choose one head, --map, or --view grid")
        data = png(pictures[0])
    write_whole(path, data)
    note(f"wrote {path}", quiet)
