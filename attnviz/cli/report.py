"""The files of a report, each of which `attnviz show` writes with some options.

Captures are taken once for all of them.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from attnviz.cli.options import (
    DATA,
    FIGURES,
    FORMATS,
    FigureOptions,
    SelectionOptions,
    View,
)
from attnviz.cli.output import Content, make_capture_answer, make_content
from attnviz.cli.picture import (
    PictureOptions,
    choose_keep,
    count_tiles,
    draw_pictures,
    make_request,
    prepare_capture,
)
from attnviz.cli.sources import select_requested
from attnviz.derived import CaptureSource
from attnviz.escape import escape
from attnviz.io.formats import list_stored_arrays
from attnviz.io.tensor_file import split_contiguous
from attnviz.methods import METHODS, list_methods
from attnviz.record import ATTENTION, AttentionMap, Capture, Kind
from attnviz.request import Keep
from attnviz.selection import ALL, HeadNames, Selection
from attnviz.views.labels import KIND_TITLES, name_model

EVERYTHING = "attention"  # the name of files that hold all heads
NOT_IN_NAMES = re.compile(r"[^\w-]")
Kept: TypeAlias = tuple[Kind | None, Keep, int]
"""What a capture holds: the kind of map, what is kept of it, and tiles on a side."""


@dataclass(frozen=True)
class Part:
    """A picture, or all there is, in several formats."""

    name: str
    formats: tuple[str, ...]
    view: View | None
    selection: SelectionOptions
    """The options of `attnviz show` that choose it."""
    layers: Selection = ALL
    """What it shows of the capture."""
    heads: Selection | HeadNames = ALL

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(f"{self.name}.{file_format}" for file_format in self.formats)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of `attnviz show` that choose the part, as words of a command line."""
        selection = self.selection
        values = {
            "--view": self.view,
            "-l": selection.layers,
            "-H": selection.heads,
            "--map": selection.kind,
        }
        pairs = [(flag, str(value)) for flag, value in values.items() if value is not None]
        return tuple(word for pair in pairs for word in pair)


@dataclass
class Report:
    """What is to be written of a source."""

    source: CaptureSource
    options: PictureOptions
    figure: FigureOptions
    formats: Sequence[str]
    captures: dict[Kept, Capture] = field(default_factory=dict)
    """Those that were taken so far."""

    @property
    def first_capture(self) -> Capture:
        """The capture that was taken first, of everything."""
        return next(iter(self.captures.values()))

    @property
    def title(self) -> str:
        """The model and the methods that it is of."""
        methods = list_methods(self.first_capture.maps)
        names = [method if method in METHODS else ATTENTION for method in methods]
        return f"{name_model(self.first_capture)}: {', '.join(dict.fromkeys(names))}"

    @property
    def selection(self) -> SelectionOptions:
        """The options of the report that choose layers, heads and the kind of map."""
        return self.options.captures.selection

    @property
    def whole_selection(self) -> SelectionOptions:
        """The layers and heads that the report is to show, of any kind of map."""
        heads = self.selection.all_heads
        layers = None if isinstance(heads, HeadNames) else self.selection.all_layers
        return SelectionOptions(layers, heads)

    def list_parts(self) -> Iterator[Part]:
        """List the parts of the report, each of which becomes a file in each of its formats.

        For each kind of map there are figures, and a part of data with all heads. At the end comes
        a page of all kinds. A capture is made first, to see which layers and heads there are.
        """
        figure_formats = tuple(name for name in self.formats if name in FIGURES)
        data_formats = tuple(name for name in self.formats if name in DATA)
        options = self.make_part_options("heatmap", self.whole_selection)
        maps = self.capture_all_heads(options, self.formats[0], self.selection.kind).maps
        kinds = tuple(dict.fromkeys(each.kind for each in maps))
        has_several_kinds = len(kinds) > 1
        for kind in kinds:
            chosen_kind = kind if has_several_kinds else None
            prefix = f"{kind}-" if has_several_kinds else ""
            if figure_formats:
                maps_of_kind = [each for each in maps if each.kind == kind]
                yield from self.list_figures(maps_of_kind, figure_formats, prefix, chosen_kind)
            if data_formats:
                selection = replace(self.whole_selection, kind=chosen_kind)
                yield Part(f"{prefix}{EVERYTHING}", data_formats, None, selection)
        if "html" in self.formats:
            yield Part(EVERYTHING, ("html",), None, self.whole_selection)

    def list_figures(
        self,
        maps: Sequence[AttentionMap],
        formats: tuple[str, ...],
        prefix: str,
        kind: Kind | None,
    ) -> Iterator[Part]:
        """List the parts that are figures of one kind of map: a grid of all heads, then each head.

        maps: all of that kind. formats: those of the figures. prefix: what their file names begin
        with. kind: what --map must say to choose it; None where there is no other kind.
        """
        grid = replace(self.selection, kind=kind)
        yield Part(f"{prefix}grid", formats, "grid", grid)
        for part in self.list_heads(maps, formats):
            selection = replace(part.selection, kind=kind)
            yield replace(part, name=f"{prefix}{part.name}", selection=selection)

    def list_heads(self, maps: Sequence[AttentionMap], formats: tuple[str, ...]) -> Iterator[Part]:
        """List a part for each head, or for each layer where its heads are merged into one."""
        for each in maps:
            for layer in each.layers:
                yield from self.list_heads_of_layer(each, layer, formats)

    def list_heads_of_layer(
        self,
        attention_map: AttentionMap,
        layer: int,
        formats: tuple[str, ...],
    ) -> Iterator[Part]:
        """List a part for each head of a layer, or one part where its heads are merged into one.

        attention_map: one that holds the layer. formats: those of the figures.
        """
        reduction = self.options.captures.numbers.reduction
        heads = [head for head in attention_map.heads if isinstance(head, int)]  # not merged yet
        if reduction and heads and isinstance(self.selection.heads, HeadNames):
            names = HeadNames(tuple((layer, head) for head in heads))
            yield make_named_part(f"L{layer}-{reduction}", formats, names)
        elif reduction or not heads:
            merged_name = reduction if reduction and heads else str(attention_map.heads[0])
            name = NOT_IN_NAMES.sub("_", merged_name)
            this_layer = Selection(((layer, layer),))
            selection = SelectionOptions(this_layer, self.whole_selection.heads)
            yield Part(f"L{layer}-{name}", formats, "heatmap", selection, layers=this_layer)
        else:
            for head in heads:
                yield make_named_part(f"L{layer}H{head}", formats, HeadNames(((layer, head),)))

    def make_part_options(self, view: View | None, selection: SelectionOptions) -> PictureOptions:
        """Return the options of the report with another view, layers, heads and kind of map."""
        captures = replace(self.options.captures, selection=selection)
        part_view = replace(self.options.view, view=view)
        return replace(self.options, captures=captures, view=part_view)

    def capture_all_heads(
        self,
        options: PictureOptions,
        file_format: str,
        kind: Kind | None,
    ) -> Capture:
        """Capture all layers and heads of the report, or return such a capture made before.

        It keeps what a picture of ``options`` needs in a file of the format: weights, or so many
        tiles. A capture is used again if it kept the same, or weights where tiles would show each
        of them. kind: the kind of map; None for all.
        """
        keep, tiles = choose_keep(options, file_format), 1
        if options.captures.numbers.method == ATTENTION:
            tiles = count_tiles(options, file_format, None)
        for kept, capture in self.captures.items():
            keeps_same = kept == (kind, keep, tiles)
            is_of_kind = kept[0] == kind
            if keeps_same or (is_of_kind and keep == "tiles" and is_exact(capture, tiles)):
                return capture
        selection = replace(self.whole_selection, kind=kind)
        whole_options = self.make_part_options(options.view.view, selection)
        request = replace(
            make_request(whole_options, file_format, None),
            preferred=(),
            keep=keep,
            tiles=tiles,
        )
        capture = self.source(request)
        self.captures[kind, keep, tiles] = capture
        return capture

    def capture_part(self, part: Part, file_format: str) -> tuple[Capture, PictureOptions]:
        """Return the capture that `attnviz show` draws for a file of a part, and its options."""
        options = self.make_part_options(part.view, part.selection)
        request = make_request(options, file_format, None)
        part_request = replace(request, layers=part.layers, heads=part.heads)
        # data also hold how exact they are, which is to be measured on their own kind of map
        kind = part.selection.kind if file_format in DATA else self.selection.kind
        all_heads = self.capture_all_heads(options, file_format, kind)
        capture = select_requested(all_heads, part_request)
        return prepare_capture(capture, options, file_format), options

    def make_file(self, part: Part, file_format: str) -> Content:
        """Make the content of the file of a part in one of its formats."""
        capture, options = self.capture_part(part, file_format)
        answer = make_capture_answer(capture, options, file_format)
        return make_content(answer, file_format, self.figure, options.look.cmap)

    def describe(self, part: Part) -> tuple[str, tuple[str, ...]]:
        """Return the title and the lines of the caption of a part, for the gallery."""
        file_format = part.formats[0]
        capture, options = self.capture_part(part, file_format)
        if file_format in FIGURES:
            picture, *_ = draw_pictures(capture, options)
            return picture.title, picture.caption
        kinds = [KIND_TITLES[kind] for kind in dict.fromkeys(each.kind for each in capture.maps)]
        return f"everything: {', '.join(kinds)}", tuple(map(escape, capture.notes))

    def digest(self, arguments: str) -> str:
        """Return a digest that is equal for reports of the same numbers and the same command.

        arguments: those of the command, in one text.
        """
        capture = self.first_capture
        description = (arguments, capture.model, capture.text, capture.notes)
        digest = hashlib.sha256(repr(description).encode())
        for each in capture.maps:
            axes = (each.kind, each.layers, each.heads, each.queries, each.keys)
            digest.update(repr(axes).encode())
            for array in list_stored_arrays(each).values():
                for part in split_contiguous(array):  # tiles of all heads are large
                    digest.update(part)
        return digest.hexdigest()


def make_named_part(name: str, formats: tuple[str, ...], heads: HeadNames) -> Part:
    """Make the part of a report that is a heatmap of heads named with their layers."""
    return Part(name, formats, "heatmap", SelectionOptions(heads=heads), heads=heads)


def is_exact(capture: Capture, tiles: int) -> bool:
    """Return whether a capture holds weights of so few tokens that tiles would show each of them.

    tiles: their number on a side.
    """
    return all(
        each.weights is not None and max(len(each.queries), len(each.keys)) <= tiles
        for each in capture.maps
    )


def parse_formats(text: str) -> tuple[str, ...]:
    """Parse names of formats, separated by commas, and return each once.

    Raises ValueError for an unknown one, with a message that lists all formats.
    """
    names = [name.strip().lower().removeprefix(".") for name in text.split(",")]
    formats = tuple(dict.fromkeys(names))
    for file_format in formats:
        if file_format not in FORMATS:
            raise ValueError(f"{file_format!r} is no format: one of {', '.join(FORMATS)}")
    return formats
