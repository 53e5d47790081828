"""The measures of all heads: numbers of what each does with a text, or in the mean over several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.measures import (
    COLUMNS,
    Measures,
    MeasureSummary,
    measure_map,
    summarise_measures,
)
from attnviz.analysis.statistics import average_defined
from attnviz.derived import CaptureSource
from attnviz.drawable import Panel, Picture, Table, make_blank_levels
from attnviz.errors import InputError, UsageError
from attnviz.methods import holds_other_numbers, list_methods
from attnviz.record import (
    ATTENTION,
    SCORES,
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    Kind,
    Unit,
)
from attnviz.request import Request
from attnviz.results.digits import format_share
from attnviz.results.result import Result
from attnviz.selection import require_same_tokens
from attnviz.views.heatmaps import (
    index_matrices,
    join_title,
    make_caption,
    read_head_key,
    read_panel,
)
from attnviz.views.labels import (
    abbreviate_head,
    describe_head_count,
    describe_length,
    title_kind,
)

MOST_WHOLE = 512  # tokens of a text of which all weights are kept; of a longer one, statistics
EVERY_HEAD = Request(preferred=("self", "cross"), keep="tiles", tiles=MOST_WHOLE)
"""The request to a source where nothing else is chosen."""
NO_SCORES = (
    "the numbers of heads and segments are of shares that sum to 1, and scores are none: "
    "softmaxed they are the weights: use --weights attention; --token, and --query with --key, "
    "show scores"
)
ROWS_RESCALED = "these numbers are of rows that were made to sum to 1"

RISING = frozenset({"entropy", "span", "normalised"})
"""Columns of which the smallest come first: heads that know where to look."""
BY_POSITION = "head"  # the order of layers and heads, in place of that of a column


class MapHead(NamedTuple):
    """A head of a capture."""

    kind: Kind
    layer: int
    head: int | str

    @property
    def name(self) -> str:
        """The short name of the head: L5H3, or L5 mean."""
        return abbreviate_head(self.layer, self.head)


def list_map_heads(maps: Sequence[AttentionMap]) -> list[MapHead]:
    """List the heads of maps, by kind of attention, layer and number, in their order."""
    heads = []
    for index in index_matrices(maps):
        attention_map, _, _ = index
        layer, head = read_head_key(*index)
        heads.append(MapHead(attention_map.kind, layer, head))
    return heads


def list_panels(maps: Sequence[AttentionMap]) -> list[Panel]:
    """List the weights and masks of the heads of maps, in their order."""
    return [read_panel(*index) for index in index_matrices(maps)]


def name_heads(maps: Sequence[AttentionMap]) -> tuple[str, ...]:
    """Return the short name of each head of maps."""
    return tuple(head.name for head in list_map_heads(maps))


def capture_heads(source: CaptureSource, request: Request) -> Capture:
    """Make a capture of the heads that a request names.

    source: a function that takes a request and returns a capture of a model's attention. Raises
    InputError if the maps of the capture are not of the same tokens, and as the source does.
    """
    capture = source(request)
    require_same_tokens(capture.maps, "choose some with --layers")
    return capture


def note_rescaled_rows(capture: Capture) -> Capture:
    """Return a capture, with a note if its rows are made to sum to 1 before they are measured.

    They are if they hold other numbers than attention weights, or maxima over heads. Raises
    UsageError for scores before the softmax, which cannot be measured.
    """
    methods = list_methods(capture.maps)
    if SCORES in methods:
        raise UsageError(NO_SCORES)
    if all(sums_to_one(attention_map) for attention_map in capture.maps):
        return capture
    has_other_numbers = any(holds_other_numbers(method) for method in methods)
    note = f"{ROWS_RESCALED}, sinks included" if has_other_numbers else ROWS_RESCALED
    return replace(capture, notes=(*capture.notes, note))


def sums_to_one(attention_map: AttentionMap) -> bool:
    """Return whether the rows of a map sum to 1: weights do, but not their maxima over heads."""
    return attention_map.method == ATTENTION and "max" not in attention_map.heads


# The measures of all heads


@dataclass(frozen=True, eq=False)
class HeadNumbers:
    """The columns of heads as a table shows them."""

    title: str
    names: tuple[str, ...]
    mean: Measures
    """(head,) by column: the number of one text, or the mean of several."""
    sd: Measures
    """(head,) by column: the standard deviation over texts; NaN of one text."""
    notes: tuple[str, ...]

    @property
    def defined_columns(self) -> list[str]:
        """The names of the columns that are defined for some head, or of all columns if none is."""
        defined = []
        for name, values in self.mean.items():
            if np.isfinite(values).any():
                defined.append(name)
        return defined or list(self.mean)


class HeadOrder(NamedTuple):
    """The order in which a table lists heads."""

    column: str = "entropy"
    """A column, or ``head`` for the order of layers and heads."""
    reverse: bool = False

    @property
    def is_rising(self) -> bool:
        """True if the smallest number comes first."""
        return (self.column in RISING) != self.reverse

    def describe(self) -> str:
        """Describe the order in a caption, as in "smallest entropy first"."""
        if self.column == BY_POSITION:
            return "the last first" if self.reverse else "by layer and head"
        first = "smallest" if self.is_rising else "largest"
        return f"{first} {self.column} first"

    def arrange(self, numbers: HeadNumbers) -> list[int]:
        """Return the indices of the heads in this order, by a column or by layer and head.

        numbers: the columns of all heads. Heads whose column is NaN come last.
        """
        if self.column == BY_POSITION:
            indices = list(range(len(numbers.names)))
            if self.reverse:
                indices.reverse()
            return indices
        values = numbers.mean[self.column]
        sorted_by = values if self.is_rising else -values
        order: list[int] = np.argsort(sorted_by, kind="stable").tolist()
        return order


SHARPEST_FIRST = HeadOrder()


@dataclass(frozen=True, eq=False, repr=False)
class HeadMeasures(Result):
    """The measures of every head on one text, or in the mean over several."""

    captures: tuple[Capture, ...]
    """The capture of each text, of the same heads, without their numbers."""
    summary: MeasureSummary
    """The columns of the heads, (head,) each, over the texts."""

    @property
    def unit(self) -> Unit:
        """The unit that is counted: tokens, or words."""
        return self.captures[0].maps[0].unit

    @property
    def heads(self) -> list[MapHead]:
        """The heads that are measured."""
        return list_map_heads(self.captures[0].maps)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all texts, each once."""
        notes: dict[str, None] = {}
        for capture in self.captures:
            notes |= dict.fromkeys(capture.notes)
        return tuple(notes)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text."""
        return max(len(capture.maps[0].keys) for capture in self.captures)

    @property
    def numbers(self) -> HeadNumbers:
        """The columns of all heads as a table shows them, with a title and notes."""
        title = title_heads(self.captures)
        names = name_heads(self.captures[0].maps)
        return HeadNumbers(title, names, self.summary.mean, self.summary.sd, self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the columns of every head, and what the columns are, as a document for JSON."""
        first = self.captures[0]
        heads = []
        for index, head in enumerate(self.heads):
            described = head._asdict()
            described["measures"] = self.describe_measures(index)
            heads.append(described)
        texts = [capture.text for capture in self.captures]
        return {
            "model": first.model,
            "texts": texts,
            "unit": self.unit,
            "method": first.maps[0].method,
            "notes": list(self.notes),
            "columns": describe_columns(self.unit),
            "heads": heads,
        }

    def describe_measures(self, head: int) -> dict[str, Any]:
        """Describe the columns of one head for JSON: mean, deviation and number of texts.

        head: its index among all heads.
        """
        means, deviations, counts = self.summary  # (head,) by column, each
        described: dict[str, Any] = {}
        for name in COLUMNS:
            mean = means[name][head]
            sd = deviations[name][head]
            count = int(counts[name][head])
            described[name] = {"mean": mean, "sd": sd, "n": count}
        return described

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each head with its columns; over several texts also their deviations."""
        rows = []
        for index, head in enumerate(self.heads):
            row = head._asdict()
            rows.append(row | self.list_numbers(index))
        return rows

    def list_numbers(self, head: int) -> dict[str, float]:
        """Return the columns of one head by name; over several texts also their deviations.

        head: its index among all heads.
        """
        means, deviations = self.summary.mean, self.summary.sd
        numbers = {name: values[head] for name, values in means.items()}
        if len(self.captures) > 1:
            for name, values in deviations.items():
                numbers[f"{name}_sd"] = values[head]
        return numbers

    def tables(self) -> list[Picture]:
        """Return the table of all heads, the sharpest first."""
        return [self.draw_table()]

    def draw_table(
        self,
        order: HeadOrder = SHARPEST_FIRST,
        most: int | None = None,
        *,
        deviations: bool = True,
    ) -> Table:
        """Draw the table of heads.

        order: that of the rows. most: heads that are shown at most; None for all. deviations: True
        for standard deviations beside all means, False for those beside the column of the order
        alone.
        """
        return draw_heads_table(self.numbers, order, most, deviations=deviations)


def inspect_heads(sources: Iterable[CaptureSource], request: Request = EVERY_HEAD) -> HeadMeasures:
    """Measure what every head does with each of some texts.

    sources: one for each text, of the same heads: a function that takes a request and returns a
    capture of a model's attention. request: the layers, heads and kinds of map; with keep="weights"
    all columns are measured of a long text too.

    Raises UsageError for scores before the softmax, InputError if there is nothing to measure, and
    as the sources do.
    """
    measures: list[Measures] = []
    captures: list[Capture] = []
    for source in sources:
        capture = note_rescaled_rows(capture_heads(source, request))
        measures.append(measure_captured_heads(capture))
        captures.append(drop_numbers(capture))
    return HeadMeasures(tuple(captures), summarise_measures(measures))


def measure_captured_heads(capture: Capture) -> Measures:
    """Measure all heads of a capture; returns an array (head,) for each column of the table.

    The heads of all maps stand one after the other. Raises InputError if a map holds neither
    weights nor statistics.
    """
    if not all(each.weights is not None or each.statistics for each in capture.maps):
        missing = "this capture holds neither weights nor statistics"
        raise InputError(f"{missing}: there is nothing to measure")
    measures_of_maps = [measure_map(each) for each in capture.maps]
    measures: Measures = {}
    for name in COLUMNS:
        columns_of_maps = [each[name].ravel() for each in measures_of_maps]
        measures[name] = np.concatenate(columns_of_maps)
    return measures


def drop_numbers(capture: Capture) -> Capture:
    """Return a capture without its numbers, which would fill memory if there are many texts.

    If not all weights were there to be measured, a note says so.
    """
    notes = capture.notes
    if any(each.weights is None for each in capture.maps):
        length = describe_length(capture.maps)
        kept = f"of {length} only statistics were kept"
        notes = *notes, f"{kept}: columns that need all weights are left out"
    maps = tuple(map(drop_numbers_of_map, capture.maps))
    return replace(capture, maps=maps, notes=notes)


def drop_numbers_of_map(attention_map: AttentionMap) -> AttentionMap:
    """Return a map without its weights and without what was made of them."""
    return replace(
        attention_map,
        weights=None,
        tiles=None,
        statistics=None,
        edges=None,
        visible=np.array(True),
    )


def describe_columns(unit: Unit = "token") -> list[dict[str, str]]:
    """Describe the columns of a table of heads for JSON: names, definitions, sources and units.

    unit: of the maps that are measured, tokens or words; columns in tokens are in that unit.
    """
    described = []
    for column in COLUMNS.values():
        unit_of_column: str = column.unit
        if unit_of_column == "tokens":
            unit_of_column = f"{unit}s"
        description = {
            "name": column.name,
            "definition": column.definition,
            "source": column.source,
            "unit": unit_of_column,
        }
        described.append(description)
    return described


def title_heads(captures: Sequence[Capture]) -> str:
    """Make the title of a table of heads: the model, the kind of attention, heads, and tokens.

    captures: one for each text, of the same heads.
    """
    first = captures[0]
    first_map = first.maps[0]
    head_count = len(list_map_heads(first.maps))
    heads = describe_head_count(head_count, first_map.heads)
    length = describe_length(first.maps)
    if len(captures) > 1:
        lengths = [len(capture.maps[0].queries) for capture in captures]
        span = f"{min(lengths)}-{max(lengths)}"
        length = f"{len(captures)} texts of {span} {first_map.unit}s"
    return join_title(first, *title_kind(first_map), heads, length)


def draw_heads_table(
    numbers: HeadNumbers,
    order: HeadOrder = SHARPEST_FIRST,
    most: int | None = None,
    *,
    deviations: bool = True,
) -> Table:
    """Draw a table with a row for each head, and a last row of the mean over all heads.

    numbers: the columns of all heads. order: that of the rows. most: heads that are shown at most;
    None for all. deviations: True for standard deviations beside all means, False for those beside
    the column of the order alone.
    """
    shown = order.arrange(numbers)[:most]
    columns = numbers.defined_columns
    with_deviation = columns if deviations else [order.column]
    names, cells = [], []
    for head in shown:
        names.append(numbers.names[head])
        cells.append(format_head_row(numbers, head, columns, with_deviation))
    line = caption_heads(numbers, order, len(shown))
    if has_empty_cell(cells):
        line += "; empty: undefined"
    names.append("mean")
    cells.append(format_mean_row(numbers, columns))
    headings = tuple(COLUMNS[name].heading for name in columns)
    levels = colour_columns(numbers, columns, shown)
    caption = make_caption((line, *numbers.notes))
    return Table(
        title=numbers.title,
        corner="head",
        columns=headings,
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=caption,
    )


def has_empty_cell(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether any cell of some rows is empty."""
    return any("" in row for row in rows)


def colour_columns(numbers: HeadNumbers, columns: Sequence[str], shown: Sequence[int]) -> Floats:
    """Return the colour levels of a table of heads, from 0 to 1: (row, column).

    shown: the indices of the heads in the rows. The last row, the mean over all heads, has NaN,
    which stands for no colour.
    """
    levels = make_blank_levels(len(shown) + 1, len(columns))
    for index, name in enumerate(columns):
        levels_of_heads = colour_column(name, numbers.mean[name])
        levels[:-1, index] = levels_of_heads[shown]
    return levels


def caption_heads(numbers: HeadNumbers, order: HeadOrder, shown_count: int) -> str:
    """Say in a line how many of all heads a table shows, and in which order."""
    count = len(numbers.names)
    heads = "1 head" if count == 1 else f"{count} heads"
    if shown_count < count:
        heads = f"{shown_count} of {count} heads"
    return f"{heads}, {order.describe()}; mean: of all {count}"


def format_mean_row(numbers: HeadNumbers, columns: Sequence[str]) -> tuple[str, ...]:
    """Format the mean of each of some columns over all heads, shown or not."""
    cells = []
    for name in columns:
        mean = float(average_defined(numbers.mean[name], 0))
        cells.append(format_measure(mean, COLUMNS[name].unit))
    return tuple(cells)


def format_head_row(
    numbers: HeadNumbers,
    head: int,
    columns: Sequence[str],
    with_deviation: Sequence[str],
) -> tuple[str, ...]:
    """Format the row of one head: the number of each column, some with standard deviations.

    head: its index among all heads. with_deviation: the columns that have deviations.
    """
    cells = []
    for name in columns:
        has_deviation = name in with_deviation
        cells.append(format_head_column(numbers, name, head, deviation=has_deviation))
    return tuple(cells)


def format_head_column(numbers: HeadNumbers, name: str, head: int, *, deviation: bool) -> str:
    """Format one column of one head, with its standard deviation if that is asked for and defined.

    head: its index among all heads.
    """
    unit = COLUMNS[name].unit
    mean = format_measure(numbers.mean[name][head], unit)
    sd = numbers.sd[name][head]
    if not (deviation and np.isfinite(sd)):
        return mean
    return f"{mean}±{format_measure(sd, unit)}"


def format_measure(value: float, unit: str = "") -> str:
    """Format a number to three digits, a share to two; an empty text where it is undefined."""
    if not np.isfinite(value):
        return ""
    if unit == "share":
        return format_share(value)
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def colour_column(name: str, values: Doubles) -> Doubles:
    """Return the colour levels of a column of heads, from 0 to 1: (head,).

    name: of the column; it says whether values, (head,), are shares. A share is its own level; the
    level of other numbers is their share of the largest.
    """
    top = 1.0
    if COLUMNS[name].unit != "share":
        top = find_largest(values) or 1.0
    levels: Doubles = np.clip(values / top, 0, 1)
    return levels


def find_largest(values: Doubles) -> float:
    """Return the largest of some values, where an undefined one counts as 0."""
    defined = np.nan_to_num(values)
    return float(defined.max())
