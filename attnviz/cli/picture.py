"""From the options of `attnviz show` to what is captured, and from the capture to its pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from attnviz.analysis.special import Special, drop_special
from attnviz.cli.options import (
    DATA,
    CaptureOptions,
    HeadReduction,
    LookOptions,
    ViewOptions,
)
from attnviz.drawable import Picture
from attnviz.errors import InputError, UsageError
from attnviz.methods import METHODS_THROUGH_LAYERS, SUM, list_methods, name_cell
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

        That is so on a page and in the views of all heads. file_format: of the file; None for the
        screen.
        """
        is_page = file_format == "html" and self.view.view is None
        return is_page or self.view.view in ("grid", "rows")

    def shows_one_picture(self) -> bool:
        """Return whether each picture is of one head, and large, rather than of thumbnails."""
        selection, reduction = self.captures.selection, self.captures.numbers.reduction
        is_one_layer = selection.layers is None or selection.layers.is_one
        is_one_head = selection.heads is None or selection.heads.is_one or reduction is not None
        if self.view.view is None:
            return is_one_layer and is_one_head
        return self.view.view == "heatmap"

    def with_default_reduction(self, file_format: str | None) -> "PictureOptions":
        """Return the options with a way to merge the heads of a layer, if none were chosen.

        Heads are merged by their mean. Of norms, it is the vectors of the heads that are added
        before their length is measured, if a model is run. Nothing is merged in a view of all
        heads, or of numbers that have one head a layer.

        file_format: of the file to write; None for the screen.
        """
        numbers = self.captures.numbers
        is_chosen = self.captures.selection.heads is not None or numbers.reduction is not None
        has_one_head = numbers.method in METHODS_THROUGH_LAYERS
        if is_chosen or has_one_head or self.shows_everything(file_format):
            return self
        adds_vectors = numbers.method == NORM and self.captures.source.path is None
        reduction: HeadReduction = "sum" if adds_vectors else "mean"
        numbers = replace(numbers, reduction=reduction)
        return replace(self, captures=replace(self.captures, numbers=numbers))


def make_request(
    options: PictureOptions,
    file_format: str | None,
    screen: Screen | None,
) -> Request:
    """Return the request for a capture of which a picture is drawn, or a file is written.

    file_format: the format of the file; None for the screen. screen: for the size of the picture;
    None if there is none. By default a picture shows the last layer, and of an encoder-decoder its
    cross-attention. Heads that are named with their layers, and views of all heads, are of any
    layer, and such a view without a token shows all kinds of map.
    """
    selection, view = options.captures.selection, options.view
    shows_all, token = options.shows_everything(file_format), view.token
    names_layers = isinstance(selection.heads, HeadNames)
    default_layers = ALL if shows_all or names_layers else LAST_LAYER
    shows_all_kinds = shows_all and not token
    return Request(
        layers=selection.layers or default_layers,
        heads=selection.all_heads,
        truncate=options.captures.model.truncate,
        kinds=selection.kinds,
        preferred=() if shows_all_kinds else ("self", "cross"),
        keep=choose_keep(options, file_format),
        tiles=count_tiles(options, file_format, screen),
        rows=view.rows or EVERYTHING,
        columns=view.columns or EVERYTHING,
        query=None if view.incoming else token,
        key=token if view.incoming else None,
    )


def choose_keep(options: PictureOptions, file_format: str | None) -> Keep:
    """Choose what to keep of each head: ``weights`` if single cells are needed, else ``tiles``.

    Single cells are needed for files of data, for parts of a text, for a screen that shows every
    token, to drop special tokens, and for other numbers than attention weights. file_format: of the
    file; None for the screen.
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


def count_tiles(
    options: PictureOptions,
    file_format: str | None,
    screen: Screen | None,
) -> int:
    """Return the number of tiles on each side of a map that a picture can show.

    file_format: of the file that is written; None for a picture on the screen. screen: None if
    there is none.
    """
    is_single = options.shows_one_picture()
    if screen is not None and file_format is None:
        return TILES_A_COLUMN * screen.width if is_single else screen.width
    if file_format == "html":
        return PAGE_CELLS
    return FIGURE_TILES if is_single else THUMBNAIL_TILES


def prepare_capture(
    capture: Capture,
    options: PictureOptions,
    file_format: str | None,
) -> Capture:
    """Drop the special tokens of a capture and merge its heads, if the options ask for that.

    file_format: of the file to write; None for the screen. Raises UsageError or InputError where
    it cannot be done.
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
    """Raise UsageError unless the maps of a capture are sums over heads, and note which heads.

    Norms are lengths of vectors, and the vectors of several heads can be added only while a model
    runs. heads: the chosen ones; None for all, of which there is no note. Returns the capture.
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
    """Drop the rows and columns of special tokens from a capture, and note which ones.

    The notes also say what share of the weight they had, except for scores, which have no shares.
    how: ``drop``, or ``renormalise``, after which each row sums to 1 again.

    Raises InputError if nothing is left, UsageError for scores that were to be renormalised.
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
    about_rows = ""
    if how == "renormalise" and methods == (ATTENTION,):
        about_rows = ", rows sum to 1 again"
    elif how == "renormalise":
        about_rows = ", rows that hold anything sum to 1"
    notes: dict[str, None] = {}
    for rest in rests:
        if not rest.names:
            continue
        note = f"without {', '.join(rest.names)}"
        if not are_scores:
            cell_name = name_cell(rest.part.method)
            note += f", which had {rest.share:.0%} of the {cell_name}{about_rows}"
        notes[note] = None
    maps = tuple(rest.part for rest in rests)
    return replace(capture, maps=maps, notes=(*capture.notes, *notes))


def reduce_heads(capture: Capture, how: Reduction, *, names_them: bool) -> Capture:
    """Merge the heads of each layer of a capture into one, by their mean or maximum.

    A map whose heads are merged already stays as it is. names_them: add a note of which heads were
    merged.
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
    """Return the options of colours as views take them."""
    return Look(whole=options.color_range == "full", linear=options.color_scale == "linear")


def draw_pictures(
    capture: Capture,
    options: PictureOptions,
    *,
    thumbnails: bool = True,
) -> Sequence[Picture]:
    """Make the pictures of a capture, as --view says.

    Without --view it is the heatmap of a capture of one head, or a grid of thumbnails for each kind
    of map of a larger one. thumbnails: if False, a heatmap for each head stands in place of a grid.

    Raises InputError if there is nothing to draw.
    """
    require_cells(capture)
    head_count = sum(len(each.layers) * len(each.heads) for each in capture.maps)
    view = options.view.view or ("grid" if head_count > 1 else "heatmap")
    if view == "grid" and not thumbnails:
        view = "heatmap"
    make_views: dict[str, Callable[[Capture, Look], Sequence[Picture]]] = {
        "heatmap": make_heatmaps,
        "grid": make_grids,
        "rows": make_query_heatmaps,
        "tokens": partial(make_strips, incoming=options.view.incoming),
    }
    pictures = make_views[view](capture, make_look(options.look))
    if options.title is None:
        return pictures
    return [replace(picture, title=options.title) for picture in pictures]


def require_cells(capture: Capture) -> None:
    """Raise InputError unless there is something to draw."""
    if not all(each.weights is not None or each.tiles for each in capture.maps):
        raise InputError("this capture holds statistics or edges only: there is nothing to draw")
