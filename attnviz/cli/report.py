"""The files of a report, each of which `attnviz show` writes with some options.

Captures are taken once for all of them.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from attnviz.cli.options import DATA, FIGURES, FORMATS, FigureOptions, SelectionOptions, View
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
from attnviz.io.formats import list_stored_arrays as arrays_of
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
        """Its options as they are written on the command line."""
        selection = self.selection
        values = {
            "--view": self.view,
            "-l": selection.layers,
            "-H": selection.heads,
            "--map": selection.kind,
        }
        given = [(flag, str(value)) for flag, value in values.items() if value is not None]
        return tuple(word for flag_and_value in given for word in flag_and_value)


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
    def everything(self) -> SelectionOptions:
        """The options that choose all that the report is to show, of any kind of map."""
        heads = self.selection.all_heads
        layers = None if isinstance(heads, HeadNames) else self.selection.all_layers
        return SelectionOptions(layers, heads)

    def list_parts(self) -> Iterator[Part]:
        """List parts of each kind of map, and a page of all of them."""
        figures = tuple(file_format for file_format in self.formats if file_format in FIGURES)
        data = tuple(file_format for file_format in self.formats if file_format in DATA)
        whole = self.make_part_options("heatmap", self.everything)
        maps = self.take(whole, self.formats[0], self.selection.kind).maps
        kinds = tuple(dict.fromkeys(each.kind for each in maps))
        for kind in kinds:
            only = kind if len(kinds) > 1 else None
            prefix = f"{kind}-" if len(kinds) > 1 else ""
            if figures:
                drawn = [each for each in maps if each.kind == kind]
                yield from self.list_figures(drawn, figures, prefix, only)
            if data:
                chosen = replace(self.everything, kind=only)
                yield Part(f"{prefix}{EVERYTHING}", data, None, chosen)
        if "html" in self.formats:
            yield Part(EVERYTHING, ("html",), None, self.everything)

    def list_figures(
        self,
        maps: Sequence[AttentionMap],
        formats: tuple[str, ...],
        prefix: str,
        kind: Kind | None,
    ) -> Iterator[Part]:
        """List the figures of one kind of map: a grid of all heads, then each head."""
        grid = replace(self.selection, kind=kind)
        yield Part(f"{prefix}grid", formats, "grid", grid)
        for part in self.list_heads(maps, formats):
            selection = replace(part.selection, kind=kind)
            yield replace(part, name=f"{prefix}{part.name}", selection=selection)

    def list_heads(self, maps: Sequence[AttentionMap], formats: tuple[str, ...]) -> Iterator[Part]:
        """List a part for each head, or for the heads of each layer that are made one."""
        for each in maps:
            for layer in each.layers:
                yield from self.list_heads_of_layer(each, layer, formats)

    def list_heads_of_layer(
        self,
        attention_map: AttentionMap,
        layer: int,
        formats: tuple[str, ...],
    ) -> Iterator[Part]:
        """List a part for each head of a layer, or one for those that are made one."""
        reduction = self.options.captures.numbers.reduction
        heads = [head for head in attention_map.heads if isinstance(head, int)]
        if reduction and heads and isinstance(self.selection.heads, HeadNames):
            named = HeadNames(tuple((layer, head) for head in heads))
            yield make_named_part(f"L{layer}-{reduction}", formats, named)
        elif reduction or not heads:  # a file may hold a reduction already
            reduced = reduction if reduction and heads else str(attention_map.heads[0])
            name = NOT_IN_NAMES.sub("_", reduced)
            here = Selection(((layer, layer),))
            chosen = SelectionOptions(here, self.everything.heads)
            yield Part(f"L{layer}-{name}", formats, "heatmap", chosen, layers=here)
        else:
            for head in heads:
                yield make_named_part(f"L{layer}H{head}", formats, HeadNames(((layer, head),)))

    def make_part_options(self, view: View | None, selection: SelectionOptions) -> PictureOptions:
        """Return the options of the report with a view and a selection."""
        captures = replace(self.options.captures, selection=selection)
        return replace(self.options, captures=captures, view=replace(self.options.view, view=view))

    def take(self, options: PictureOptions, file_format: str, kind: Kind | None) -> Capture:
        """Capture everything of a kind, as finely as `attnviz show` with these options would."""
        keep, tiles = choose_keep(options, file_format), 1
        if options.captures.numbers.method == ATTENTION:
            tiles = count_tiles(options, file_format, None)
        for kept, capture in self.captures.items():
            is_same = kept == (kind, keep, tiles)
            if is_same or (kept[0] == kind and keep == "tiles" and is_exact(capture, tiles)):
                return capture
        everything = self.make_part_options(options.view.view, replace(self.everything, kind=kind))
        request = replace(
            make_request(everything, file_format, None),
            preferred=(),
            keep=keep,
            tiles=tiles,
        )
        capture = self.source(request)
        self.captures[kind, keep, tiles] = capture
        return capture

    def capture(self, part: Part, file_format: str) -> tuple[Capture, PictureOptions]:
        """Return what `attnviz show` would draw for a file, and its options."""
        options = self.make_part_options(part.view, part.selection)
        shown = replace(
            make_request(options, file_format, None), layers=part.layers, heads=part.heads
        )
        # data tell how exact they are, of the kind that they are of
        kind = part.selection.kind if file_format in DATA else self.selection.kind
        capture = select_requested(self.take(options, file_format, kind), shown)
        return prepare_capture(capture, options, file_format), options

    def make(self, part: Part, file_format: str) -> Content:
        """Make the content of a file."""
        capture, options = self.capture(part, file_format)
        answer = make_capture_answer(capture, options, file_format)
        return make_content(answer, file_format, self.figure, options.look.cmap)

    def describe(self, part: Part) -> tuple[str, tuple[str, ...]]:
        """Return the title and the caption of a part."""
        file_format = part.formats[0]
        capture, options = self.capture(part, file_format)
        if file_format in FIGURES:
            picture, *_ = draw_pictures(capture, options)
            return picture.title, picture.caption
        kinds = [KIND_TITLES[kind] for kind in dict.fromkeys(each.kind for each in capture.maps)]
        return f"everything: {', '.join(kinds)}", tuple(map(escape, capture.notes))

    def digest(self, arguments: str) -> str:
        """Return what the report is of: the same for the same numbers drawn by the same command."""
        capture = self.first_capture
        about = (arguments, capture.model, capture.text, capture.notes)
        digest = hashlib.sha256(repr(about).encode())
        for each in capture.maps:
            axes = (each.kind, each.layers, each.heads, each.queries, each.keys)
            digest.update(repr(axes).encode())
            for array in arrays_of(each).values():
                digest.update(array)  # without a copy: tiles of all heads are large
        return digest.hexdigest()


def make_named_part(name: str, formats: tuple[str, ...], heads: HeadNames) -> Part:
    """Return the heatmap of heads that are named with their layers."""
    return Part(name, formats, "heatmap", SelectionOptions(heads=heads), heads=heads)


def is_exact(capture: Capture, tiles: int) -> bool:
    """Return whether a capture holds weights, of no more tokens than tiles on a side."""
    return all(
        each.weights is not None and max(len(each.queries), len(each.keys)) <= tiles
        for each in capture.maps
    )


def parse_formats(text: str) -> tuple[str, ...]:
    """Parse names of formats, parted by commas. Raises ValueError naming those that there are."""
    names = [name.strip().lower().removeprefix(".") for name in text.split(",")]
    formats = tuple(dict.fromkeys(names))
    for file_format in formats:
        if file_format not in FORMATS:
            raise ValueError(f"{file_format!r} is no format: one of {', '.join(FORMATS)}")
    return formats
