"""From the options of `attnviz show` to what is captured, and from the capture to its pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from attnviz.analysis.special import Special, drop_special
from attnviz.cli.options import DATA, CaptureOptions, HeadReduction, LookOptions, ViewOptions
from attnviz.drawable import Picture
from attnviz.errors import InputError, UsageError
from attnviz.methods import MADE_OF, SUM, list_methods, name_cell
from attnviz.record import ATTENTION, NORM, SCORES, Capture, Reduction
from attnviz.render.terminal.draw import Screen
from attnviz.request import Keep, Request
from attnviz.selection import ALL, HeadNames, Selection
from attnviz.views import (
    PAGE_CELLS,
    Look,
    make_grids,
    make_heatmaps,
    make_query_heatmaps,
    make_strips,
)

LAST_LAYER = Selection(((-1, -1),))
EVERYTHING = slice(None)
FIGURE_TILES = 1200  # on the side of a figure's one picture
THUMBNAIL_TILES = 192  # on the side of one picture among many
TILES_A_COLUMN = 4  # of the screen, so that pooling them to fit it loses nothing that can be seen


@dataclass(frozen=True)
class PictureOptions:
    """What is drawn of a capture, and how."""

    captures: CaptureOptions
    view: ViewOptions
    look: LookOptions
    title: str | None = None
    full: bool = False
    """A cell for every token, on a screen."""

    def shows_everything(self, file_format: str | None) -> bool:
        """Return whether all layers and heads are shown unless some are chosen.

        file_format: the format of a file; None for the screen.
        """
        is_page = file_format == "html" and self.view.view is None
        return is_page or self.view.view in ("grid", "rows")

    def shows_one_picture(self) -> bool:
        """Return whether one large picture is drawn at a time, rather than thumbnails."""
        selection, reduction = self.captures.selection, self.captures.numbers.reduction
        one_layer = selection.layers is None or selection.layers.is_one
        one_head = selection.heads is None or selection.heads.is_one or reduction is not None
        if self.view.view is None:
            return one_layer and one_head
        return self.view.view == "heatmap"

    def with_default_reduction(self, file_format: str | None) -> "PictureOptions":
        """Return the options with how heads are merged where none are chosen.

        That is by the mean, and of norms before they are measured.
        """
        numbers = self.captures.numbers
        chosen = self.captures.selection.heads is not None or numbers.reduction is not None
        if chosen or self.shows_everything(file_format) or numbers.method in MADE_OF:
            return self
        adds_vectors = numbers.method == NORM and self.captures.source.path is None
        reduction: HeadReduction = "sum" if adds_vectors else "mean"
        numbers = replace(numbers, reduction=reduction)
        return replace(self, captures=replace(self.captures, numbers=numbers))


def make_request(
    options: PictureOptions, file_format: str | None, screen: Screen | None
) -> Request:
    """Return what to capture for a picture in a format, or on a screen."""
    selection, view = options.captures.selection, options.view
    everything, token = options.shows_everything(file_format), view.token
    names_layers = isinstance(selection.heads, HeadNames)
    default_layers = ALL if everything or names_layers else LAST_LAYER
    return Request(
        selection.layers or default_layers,
        selection.all_heads,
        options.captures.model.truncate,
        selection.kinds,
        () if everything and not token else ("self", "cross"),
        choose_keep(options, file_format),
        count_tiles(options, file_format, screen),
        rows=view.rows or EVERYTHING,
        columns=view.columns or EVERYTHING,
        query=None if view.incoming else token,
        key=token if view.incoming else None,
    )


def choose_keep(options: PictureOptions, file_format: str | None) -> Keep:
    """Return weights where each of them is shown or needed, else tiles.

    Other numbers than weights are kept cell by cell.
    """
    needs_cells = (
        file_format in DATA
        or options.view.is_window
        or options.view.token is not None
        or (options.full and file_format is None)
        or options.look.special != "keep"
        or options.captures.numbers.method != ATTENTION
    )
    return "weights" if needs_cells else "tiles"


def count_tiles(options: PictureOptions, file_format: str | None, screen: Screen | None) -> int:
    """Return how many tiles on a side a picture can show, on a screen or in a file."""
    is_single = options.shows_one_picture()
    if screen is not None and file_format is None:
        return TILES_A_COLUMN * screen.width if is_single else screen.width
    if file_format == "html":
        return PAGE_CELLS
    return FIGURE_TILES if is_single else THUMBNAIL_TILES


def prepare_capture(capture: Capture, options: PictureOptions, file_format: str | None) -> Capture:
    """Return a capture without its special tokens, its heads merged, if that is asked for.

    Raises UsageError or InputError where that cannot be done.
    """
    if options.look.special != "keep":
        capture = drop_special_tokens(capture, options.look.special)
    reduction = options.with_default_reduction(file_format).captures.numbers.reduction
    heads = options.captures.selection.heads
    if reduction == "sum":
        return require_summed_heads(capture, heads)
    if reduction is None:
        return capture
    return reduce_heads(capture, reduction, names_them=heads is not None)


def require_summed_heads(capture: Capture, heads: Selection | HeadNames | None) -> Capture:
    """Return a capture of what heads move together, with a note which heads these are.

    Raises UsageError for a capture of what each of them moves alone.
    """
    if any(each.heads != (SUM,) for each in capture.maps):
        raise UsageError(
            "--reduce sum adds vectors, which a capture does not hold: run the model with -m, not"
            " --from",
        )
    if heads is None:
        return capture
    return replace(capture, notes=(*capture.notes, f"sum over heads {heads}"))


def drop_special_tokens(capture: Capture, how: Special) -> Capture:
    """Return a capture without special tokens, and with a note of what they had.

    Raises InputError if nothing is left, UsageError for scores of which rows would sum to 1.
    """
    methods = list_methods(capture.maps)
    are_scores = SCORES in methods
    if are_scores and how == "renormalise":
        raise UsageError(
            "--special renormalise makes rows sum to 1, which scores do not: use --special drop",
        )
    try:
        rests = [drop_special(each, how) for each in capture.maps]
    except ValueError as error:
        raise InputError(f"--special {how}: {error}") from error
    again = ""
    if how == "renormalise":
        is_attention = methods == (ATTENTION,)
        again = ", rows sum to 1 again" if is_attention else ", rows that hold anything sum to 1"
    notes: dict[str, None] = {}
    for rest in rests:
        if not rest.names:
            continue
        note = f"without {', '.join(rest.names)}"
        if not are_scores:
            note += f", which had {rest.share:.0%} of the {name_cell(rest.part.method)}{again}"
        notes[note] = None
    maps = tuple(rest.part for rest in rests)
    return replace(capture, maps=maps, notes=(*capture.notes, *notes))


def reduce_heads(capture: Capture, how: Reduction, *, names_them: bool) -> Capture:
    """Return a capture with one head a layer in place of several.

    names_them: with a note of which heads these were, where they are not all.
    """
    maps, notes = [], list(capture.notes)
    for each in capture.maps:
        is_reduced = not isinstance(each.heads[0], int)  # a file may hold a reduction already
        maps.append(each if is_reduced else each.reduced(how))
        note = f"{how} over heads {', '.join(map(str, each.heads))}"
        if names_them and not is_reduced and note not in notes:
            notes.append(note)
    return replace(capture, maps=tuple(maps), notes=tuple(notes))


def make_look(options: LookOptions) -> Look:
    """Return how weights become colours."""
    return Look(whole=options.color_range == "full", linear=options.color_scale == "linear")


def draw_pictures(
    capture: Capture,
    options: PictureOptions,
    *,
    thumbnails: bool = True,
) -> Sequence[Picture]:
    """Return the pictures of a capture: those of --view, else one heatmap, or grids of several.

    thumbnails: where they cannot be, each of several heads has a heatmap. Raises InputError if
    there is nothing to draw.
    """
    require_cells(capture)
    matrices = sum(len(each.layers) * len(each.heads) for each in capture.maps)
    view = options.view.view or ("grid" if matrices > 1 else "heatmap")
    if view == "grid" and not thumbnails:
        view = "heatmap"
    views: dict[str, Callable[[Capture, Look], Sequence[Picture]]] = {
        "heatmap": make_heatmaps,
        "grid": make_grids,
        "rows": make_query_heatmaps,
        "tokens": partial(make_strips, incoming=options.view.incoming),
    }
    pictures = views[view](capture, make_look(options.look))
    if options.title is None:
        return pictures
    return [replace(picture, title=options.title) for picture in pictures]


def require_cells(capture: Capture) -> None:
    """Raise InputError unless there is something to draw."""
    if not all(each.weights is not None or each.tiles for each in capture.maps):
        raise InputError("this capture holds statistics or edges only: there is nothing to draw")
