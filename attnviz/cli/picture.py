"""From the options of a command to what is captured, and from the capture to its pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from attnviz.analysis.special import Special, without_special
from attnviz.cli.options import DATA
from attnviz.errors import InputError, UsageError
from attnviz.methods import MADE_OF, SUM, methods_of, noun
from attnviz.record import ATTENTION, NORM, SCORES, Capture, Reduction
from attnviz.render.terminal.draw import Screen
from attnviz.request import Keep, Request
from attnviz.selection import ALL, Named, Selection
from attnviz.views import PAGE, Look, Picture, grids, heatmaps, rows, strips

Options = Mapping[str, Any]
LAST = Selection(((-1, -1),))
WHOLE = slice(None)
FIGURE, THUMBNAIL = 1200, 192  # tiles on the side of a figure's picture, and of one among many
FINE = 4  # tiles a column of the screen, so that pooling them to fit it loses nothing that can be seen
OF_ONE_TOKEN = "tokens", "rows"


def check(options: Options) -> None:
    """Refuse options that contradict each other. Raises UsageError."""
    view, token = options["view"], options["token"]
    if view in OF_ONE_TOKEN and token is None:
        raise UsageError(f"--view {view} needs --token: a number or a word")
    if view not in OF_ONE_TOKEN and token is not None:
        raise UsageError("--token needs --view tokens or --view rows")
    if options["incoming"] and view != "tokens":
        raise UsageError("--incoming is for --view tokens")
    if token is not None and (options["rows"] or options["columns"]):
        raise UsageError("--token shows one row: leave --rows and --cols out")
    if isinstance(options["heads"], Named) and options["layers"] is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")


def settled(options: Options, form: str | None) -> Options:
    """The options with how heads are merged where none are chosen: by the mean, of norms before they are measured."""
    if options["heads"] is not None or options["how"] or is_wide(options, form) or options["method"] in MADE_OF:
        return options
    measured_last = options["method"] == NORM and options["source"] is None
    return {**options, "how": SUM if measured_last else "mean"}


def is_wide(options: Options, form: str | None) -> bool:
    """Whether all layers and heads are shown unless some are chosen."""
    return options["view"] in ("grid", "rows") or (form == "html" and options["view"] is None)


def request(options: Options, form: str | None, on: Screen | None) -> Request:
    """What to capture for a picture in a format, or on a screen."""
    wide, token = is_wide(options, form), options["token"]
    layers, heads = options["layers"], options["heads"]
    return Request(
        layers or (ALL if wide or isinstance(heads, Named) else LAST),
        heads or ALL,
        options["truncate"],
        (options["kind"],) if options["kind"] else (),
        () if wide and not token else ("self", "cross"),
        keep(options, form),
        tiles(options, form, on),
        rows=options["rows"] or WHOLE,
        columns=options["columns"] or WHOLE,
        query=None if options["incoming"] else token,
        key=token if options["incoming"] else None,
    )


def keep(options: Options, form: str | None) -> Keep:
    """Weights where each of them is shown or needed, else tiles; other numbers are kept cell by cell."""
    window = options["rows"] or options["columns"] or options["token"]
    full = options["full"] and form is None
    special = options["special"] != "keep"
    return "weights" if form in DATA or window or full or special or options["method"] != ATTENTION else "tiles"


def tiles(options: Options, form: str | None, on: Screen | None) -> int:
    """Tiles on a side that a picture can show, on a screen or in a file."""
    if on is not None and form is None:
        return FINE * on.width if is_single(options) else on.width
    return PAGE if form == "html" else FIGURE if is_single(options) else THUMBNAIL


def is_single(options: Options) -> bool:
    """Whether one large picture is drawn at a time, rather than thumbnails."""
    layers, heads, view = options["layers"], options["heads"], options["view"]
    one_layer = layers is None or layers.is_one
    return view == "heatmap" or (
        view is None and (heads is None or heads.is_one or options["how"] is not None) and one_layer
    )


def prepared(capture: Capture, options: Options, form: str | None) -> Capture:
    """A capture without its special tokens, its heads merged, if that is asked for."""
    if options["special"] != "keep":
        capture = drop_special(capture, options["special"])
    how, heads = settled(options, form)["how"], options["heads"]
    if how == SUM:
        return together(capture, heads)
    return reduce(capture, how, told=heads is not None) if how else capture


def together(capture: Capture, heads: Selection | Named | None) -> Capture:
    """A capture of what heads move together, which says which heads these are. Raises UsageError for each alone."""
    if any(part.heads != (SUM,) for part in capture.maps):
        raise UsageError("--reduce sum adds vectors, which a capture does not hold: run the model with -m, not --from")
    return replace(capture, notes=(*capture.notes, *(f"sum over heads {heads}",) * (heads is not None)))


def drop_special(capture: Capture, how: Special) -> Capture:
    """The capture without special tokens, and a note of what they had.

    Raises InputError if nothing is left, UsageError for scores of which rows would sum to 1.
    """
    scored = SCORES in methods_of(capture.maps)
    if scored and how == "renormalise":
        raise UsageError("--special renormalise makes rows sum to 1, which scores do not: use --special drop")
    try:
        found = [without_special(part, how) for part in capture.maps]
    except ValueError as error:
        raise InputError(f"--special {how}: {error}") from error
    again = ", rows that hold anything sum to 1" if how == "renormalise" else ""
    if methods_of(capture.maps) == (ATTENTION,):
        again = again and ", rows sum to 1 again"
    notes = dict.fromkeys(
        f"without {', '.join(rest.names)}"
        + f", which had {rest.share:.0%} of the {noun(rest.part.method)}{again}" * (not scored)
        for rest in found
        if rest.names
    )
    return replace(capture, maps=tuple(rest.part for rest in found), notes=(*capture.notes, *notes))


def reduce(capture: Capture, how: Reduction, told: bool) -> Capture:
    """One head a layer instead of several; ``told`` if it must be said which these were, not all of them."""
    parts = [part for part in capture.maps if isinstance(part.heads[0], int)]  # a file may hold a reduction already
    notes = tuple(f"{how} over heads {', '.join(map(str, part.heads))}" for part in parts) if told else ()
    maps = tuple(part.reduced(how) if part in parts else part for part in capture.maps)
    return replace(capture, maps=maps, notes=(*capture.notes, *dict.fromkeys(notes)))


def look(options: Options) -> Look:
    """How weights are to be made colours."""
    return Look(whole=options["range"] == "full", linear=options["scale"] == "linear")


def pictures(capture: Capture, options: Options, *, apart: bool = False) -> Sequence[Picture]:
    """The pictures of a capture: one heatmap, or grids where there are several heads, unless --view says so.

    apart: a heatmap for each of several heads, where they are not to be thumbnails.
    """
    require_cells(capture)
    several = sum(len(part.layers) * len(part.heads) for part in capture.maps) > 1
    view = options["view"] or ("grid" if several else "heatmap")
    view = "heatmap" if apart and view == "grid" else view
    views: dict[str, Callable[[Capture, Look], Sequence[Picture]]] = {
        "heatmap": heatmaps,
        "grid": grids,
        "rows": rows,
        "tokens": partial(strips, incoming=options["incoming"]),
    }
    found = views[view](capture, look(options))
    return found if options["title"] is None else [replace(picture, title=options["title"]) for picture in found]


def require_cells(capture: Capture) -> None:
    """Raise InputError unless there is something to draw."""
    if not all(part.weights is not None or part.tiles for part in capture.maps):
        raise InputError("this capture holds statistics or edges only: there is nothing to draw")
