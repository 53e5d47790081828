"""The measures of all heads: numbers of what each does with a text, or in the mean over several."""

from collections.abc import Sequence
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
from attnviz.views.labels import abbreviate_head, count_heads, describe_length, title_kind

MOST_WHOLE = 512  # tokens of a text of which all weights are kept; of a longer one, statistics
EVERY_HEAD = Request(preferred=("self", "cross"), keep="tiles", tiles=MOST_WHOLE)
"""The request to a source where nothing else is chosen."""
NO_SCORES = (
    "the numbers of heads and segments are of shares that sum to 1, and scores are none: "
    "softmaxed they are the weights: use --weights attention; --token, and --query with --key, "
    "show scores"
)
SHARED_OUT = "these numbers are of rows that were made to sum to 1"

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
    """List the heads of maps."""
    heads = []
    for index in index_matrices(maps):
        attention_map, _, _ = index
        heads.append(MapHead(attention_map.kind, *read_head_key(*index)))
    return heads


def list_panels(maps: Sequence[AttentionMap]) -> list[Panel]:
    """List the numbers of the heads of maps."""
    return [read_panel(*index) for index in index_matrices(maps)]


def name_heads(maps: Sequence[AttentionMap]) -> tuple[str, ...]:
    """Return the short name of each head of maps."""
    return tuple(head.name for head in list_map_heads(maps))


def capture_heads(source: CaptureSource, request: Request) -> Capture:
    """Capture the heads that a request names.

    Raises InputError if their maps are not of the same tokens.
    """
    capture = source(request)
    require_same_tokens(capture.maps, "choose some with --layers")
    return capture


def note_shared_rows(capture: Capture) -> Capture:
    """Return a capture with a note if its rows do not sum to 1, as rows do that are measured.

    Raises UsageError for scores, which cannot be measured.
    """
    methods = list_methods(capture.maps)
    if SCORES in methods:
        raise UsageError(NO_SCORES)
    if all(sums_to_one(attention_map) for attention_map in capture.maps):
        return capture
    has_sinks = any(holds_other_numbers(method) for method in methods)
    note = f"{SHARED_OUT}, sinks included" if has_sinks else SHARED_OUT
    return replace(capture, notes=(*capture.notes, note))


def sums_to_one(attention_map: AttentionMap) -> bool:
    """Return whether the rows of a map sum to 1: weights do, but not the maxima over heads."""
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
        """The columns that say something of any head; all if none does."""
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
        """Describe the order in a caption."""
        if self.column == BY_POSITION:
            return "the last first" if self.reverse else "by layer and head"
        first = "smallest" if self.is_rising else "largest"
        return f"{first} {self.column} first"

    def arrange(self, numbers: HeadNumbers) -> list[int]:
        """Return the numbers of the heads in this order, last those with an undefined column."""
        if self.column == BY_POSITION:
            order = list(range(len(numbers.names)))
            if self.reverse:
                order.reverse()
            return order
        values = numbers.mean[self.column]
        keys = values if self.is_rising else -values
        arranged: list[int] = np.argsort(keys, kind="stable").tolist()
        return arranged


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
        """The columns as a table shows them."""
        heading = title_heads(self.captures)
        names = name_heads(self.captures[0].maps)
        return HeadNumbers(heading, names, self.summary.mean, self.summary.sd, self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the columns of every head, and what they are."""
        first = self.captures[0]
        heads = []
        for i, head in enumerate(self.heads):
            described = head._asdict()
            described["measures"] = self.describe_measures(i)
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
        """Describe the columns of one head, by number."""
        means, deviations, counts = self.summary
        described: dict[str, Any] = {}
        for name in COLUMNS:
            mean = means[name][head]
            sd = deviations[name][head]
            count = int(counts[name][head])
            described[name] = {"mean": mean, "sd": sd, "n": count}
        return described

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each head; of several texts with standard deviations."""
        rows = []
        for i, head in enumerate(self.heads):
            row = head._asdict()
            rows.append(row | self.list_numbers(i))
        return rows

    def list_numbers(self, head: int) -> dict[str, float]:
        """List the columns of one head, by number."""
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

        most: rows that are shown. deviations: standard deviations stand beside all means.
        """
        return draw_heads_table(self.numbers, order, most, deviations=deviations)


def inspect_heads(sources: Sequence[CaptureSource], request: Request = EVERY_HEAD) -> HeadMeasures:
    """Measure what every head does with each of some texts.

    sources: one a text, of the same heads. request: the layers, heads and kinds of map; with
    keep="weights" all columns are measured of a long text too.

    Raises UsageError for scores, InputError if there is nothing to measure, and as the sources do.
    """
    measures: list[Measures] = []
    captures: list[Capture] = []
    for source in sources:
        capture = note_shared_rows(capture_heads(source, request))
        measures.append(measure_heads_of(capture))
        captures.append(drop_numbers(capture))
    return HeadMeasures(tuple(captures), summarise_measures(measures))


def measure_heads_of(capture: Capture) -> Measures:
    """Measure the columns of all heads of a capture, (head,) each.

    Raises InputError if there is nothing to measure.
    """
    if not all(each.weights is not None or each.statistics for each in capture.maps):
        missing = "this capture holds neither weights nor statistics"
        raise InputError(f"{missing}: there is nothing to measure")
    measures_of_maps = [measure_map(each) for each in capture.maps]
    measures: Measures = {}
    for name in COLUMNS:
        columns = [each[name].ravel() for each in measures_of_maps]
        measures[name] = np.concatenate(columns)
    return measures


def drop_numbers(capture: Capture) -> Capture:
    """Return a capture without its numbers, which would fill memory with those of many texts.

    A note says of which text statistics alone were there.
    """
    notes = capture.notes
    if any(each.weights is None for each in capture.maps):
        length = describe_length(capture.maps)
        kept = f"of {length} only statistics were kept"
        notes = *notes, f"{kept}: columns that need all weights are left out"
    maps = tuple(map(drop_numbers_of_map, capture.maps))
    return replace(capture, maps=maps, notes=notes)


def drop_numbers_of_map(attention_map: AttentionMap) -> AttentionMap:
    """Return a map without its numbers."""
    return replace(
        attention_map,
        weights=None,
        tiles=None,
        statistics=None,
        edges=None,
        visible=np.array(True),
    )


def describe_columns(unit: Unit = "token") -> list[dict[str, str]]:
    """Describe what the columns are, of maps between tokens or words."""
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
    """Return the model, what attends to what, and how much text there is.

    captures: of the same heads.
    """
    first = captures[0]
    first_map = first.maps[0]
    head_count = len(list_map_heads(first.maps))
    heads = count_heads(head_count, first_map.heads)
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
    """Draw a table with a row for each head, ``most`` at most; the last row is the mean of all.

    deviations: standard deviations stand beside all means, else beside those of the column alone
    that gives the order.
    """
    shown = order.arrange(numbers)[:most]
    columns = numbers.defined_columns
    with_deviation = columns if deviations else [order.column]
    names, cells = [], []
    for head in shown:
        names.append(numbers.names[head])
        cells.append(format_head(numbers, head, columns, with_deviation))
    caption = caption_heads(numbers, order, len(shown))
    if has_empty_cell(cells):
        caption += "; empty: undefined"
    names.append("mean")
    cells.append(average_columns(numbers, columns))
    headings = tuple(COLUMNS[name].heading for name in columns)
    levels = colour_columns(numbers, columns, shown)
    lines = make_caption((caption, *numbers.notes))
    return Table(numbers.title, "head", headings, tuple(names), tuple(cells), levels, lines)


def has_empty_cell(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether any cell of some rows is empty."""
    return any("" in row for row in rows)


def colour_columns(numbers: HeadNumbers, columns: Sequence[str], shown: Sequence[int]) -> Floats:
    """Return where the columns of the shown heads lie on the colours: (row, column).

    The last row is that of the mean, which has no colours.
    """
    levels = make_blank_levels(len(shown) + 1, len(columns))
    for i, name in enumerate(columns):
        levels_of_heads = place_on_colours(name, numbers.mean[name])
        levels[:-1, i] = levels_of_heads[shown]
    return levels


def caption_heads(numbers: HeadNumbers, order: HeadOrder, shown: int) -> str:
    """Say which heads a table shows, and in which order."""
    count = len(numbers.names)
    heads = "1 head" if count == 1 else f"{count} heads"
    if shown < count:
        heads = f"{shown} of {count} heads"
    return f"{heads}, {order.describe()}; mean: of all {count}"


def average_columns(numbers: HeadNumbers, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the mean of each column over all heads, as it is shown."""
    cells = []
    for name in columns:
        mean = float(average_defined(numbers.mean[name], 0))
        cells.append(format_measure(mean, COLUMNS[name].unit))
    return tuple(cells)


def format_head(
    numbers: HeadNumbers,
    head: int,
    columns: Sequence[str],
    with_deviation: Sequence[str],
) -> tuple[str, ...]:
    """Format the row of a head. with_deviation: the columns beside which deviations stand."""
    cells = []
    for name in columns:
        has_deviation = name in with_deviation
        cells.append(format_head_column(numbers, name, head, deviation=has_deviation))
    return tuple(cells)


def format_head_column(numbers: HeadNumbers, name: str, head: int, *, deviation: bool) -> str:
    """Format a column of one head, with its standard deviation if there is one to be shown."""
    unit = COLUMNS[name].unit
    mean = format_measure(numbers.mean[name][head], unit)
    sd = numbers.sd[name][head]
    if not (deviation and np.isfinite(sd)):
        return mean
    return f"{mean}±{format_measure(sd, unit)}"


def format_measure(value: float, unit: str = "") -> str:
    """Format a number to three digits, a share to two; nothing if undefined."""
    if not np.isfinite(value):
        return ""
    if unit == "share":
        return format_share(value)
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def place_on_colours(name: str, values: Doubles) -> Doubles:
    """Return the places of a column on the colours.

    Shares lie from 0 to 1, others from 0 to the largest.
    """
    top = 1.0
    if COLUMNS[name].unit != "share":
        top = find_largest(values) or 1.0
    levels: Doubles = np.clip(values / top, 0, 1)
    return levels


def find_largest(values: Doubles) -> float:
    """Return the largest of the values that are defined; 0 if none is."""
    defined = np.nan_to_num(values)
    return float(defined.max())
