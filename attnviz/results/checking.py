"""Bounds on what is measured of attention, and whether they hold."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.comparison import Distances, HeadName
from attnviz.analysis.measures import (
    COLUMNS,
    MeasureSummary,
    summarise_measures,
)
from attnviz.analysis.roles import ROLES
from attnviz.analysis.segments import (
    choose_segments,
    find_segment,
    measure_shares,
)
from attnviz.analysis.statistics import average_defined
from attnviz.drawable import Picture, Table, make_blank_levels
from attnviz.errors import InputError, UsageError
from attnviz.escape import escape
from attnviz.record import Capture, Segment
from attnviz.results.comparison import A_SIDE
from attnviz.results.head_roles import Roles
from attnviz.results.inspection import list_map_heads, measure_captured_heads
from attnviz.results.result import Result
from attnviz.selection import HEAD, TokenReference, find_number

JS = "js"
MOVED = "moved"
OF_PAIRS = JS, MOVED
MEASURE_NAME = re.compile(r"(?:(L-?\d+H-?\d+)\.)?(\w+)", re.IGNORECASE)
NAME_SHOWN = 40  # characters of a name in an error


class Measure(NamedTuple):
    """A number that a bound is on: a column of heads, a role, or a divergence of A from B."""

    head: HeadName | None
    """None: of all heads together."""
    name: str

    @property
    def is_of_pair(self) -> bool:
        """True if it compares the models A and B."""
        return self.name in OF_PAIRS

    @property
    def is_column(self) -> bool:
        """True if it is measured of captures of A."""
        return self.name in COLUMNS

    @property
    def is_role(self) -> bool:
        """True if it is measured by running a model on sequences and texts of its own."""
        return not (self.is_of_pair or self.is_column)


def parse_measure(text: str) -> Measure:
    """Parse the name of a measure, which stands alone or behind a head, as in L5H3.entropy.

    A measure is a divergence of two models, a column of the table of heads, or a role of heads.
    Raises UsageError for any other text.
    """
    # The groups are a head, if there is one, and a name.
    match = MEASURE_NAME.fullmatch(text)
    name = match[2] if match else ""
    if not match or name not in (*OF_PAIRS, *COLUMNS, *ROLES):
        groups = [", ".join(names) for names in (OF_PAIRS, COLUMNS, ROLES)]
        known = "; ".join(groups)
        shown = escape(text)[:NAME_SHOWN]
        raise UsageError(f"{shown!r} is nothing that is measured: [L5H3.] and one of {known}")
    head = HEAD.fullmatch(match[1]) if match[1] else None
    if head is None:
        return Measure(None, name)
    layer = int(head[1])
    number = int(head[2])
    return Measure((layer, number), name)


class Bound(NamedTuple):
    """A limit that a number must not fall below, or not exceed."""

    name: str
    """The measure that the bound is on, of a head if it begins with one; or a segment."""
    limit: float
    is_least: bool
    of_segment: bool = False

    @property
    def measure(self) -> Measure | None:
        """The measure that it is on; None for the share of a segment. Raises UsageError."""
        if self.of_segment:
            return None
        return parse_measure(self.name)

    def describe(self) -> str:
        """Return the bound in words, as "entropy >= 0.5" or "share of 'system' <= 0.2"."""
        subject = self.name
        if self.of_segment:
            subject = f"share of {escape(self.name)!r}"
        sign = ">=" if self.is_least else "<="
        return f"{subject} {sign} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Return whether a number is within the bound; an undefined one is not."""
        if self.is_least:
            return value >= self.limit
        return value <= self.limit


class CheckedBound(NamedTuple):
    """A bound, and the number that it is on."""

    bound: Bound
    value: float
    """NaN if it is undefined."""

    @property
    def passed(self) -> bool:
        """True if the bound holds."""
        return bool(self.bound.holds(self.value))

    @property
    def verdict(self) -> str:
        """A word that says if the bound holds."""
        if self.passed:
            return "ok"
        return "FAIL"

    def format_value(self) -> str:
        """Format the number that was measured."""
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.4f}"

    def describe(self) -> str:
        """Describe in a line whether the bound holds, what was measured, and the bound itself."""
        value, bound = self.format_value(), self.bound.describe()
        line = f"{self.verdict:4}  {value:>9}  {bound}"
        if math.isnan(self.value):
            return f"{line}: there is nothing to measure it on"
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return the bound, what was measured, and whether it holds, as an entry for JSON.

        The limit stands under "min" or under "max".
        """
        bound = self.bound
        limit_name = "min" if bound.is_least else "max"
        return {
            "check": bound.describe(),
            "name": bound.name,
            "measured": self.value,
            limit_name: bound.limit,
            "passed": self.passed,
        }


@dataclass(frozen=True, repr=False)
class CheckResult(Result):
    """Bounds, what was measured for each, and whether they hold."""

    checks: tuple[CheckedBound, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if all bounds hold."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """Return a line for each bound."""
        return [check.describe() for check in self.checks]

    def to_dict(self) -> dict[str, Any]:
        """Return every bound with what was measured, and whether all hold."""
        checks = [check.to_dict() for check in self.checks]
        return {"passed": self.passed, "checks": checks, "notes": list(self.notes)}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each bound, with "min" or "max" None."""
        # All rows have both columns.
        no_limits: dict[str, Any] = {"min": None, "max": None}
        return [no_limits | check.to_dict() for check in self.checks]

    def tables(self) -> list[Picture]:
        """Return one table, with a row for each bound: what was measured, and whether it holds."""
        names, cells = [], []
        for check in self.checks:
            names.append(check.bound.describe())
            cells.append((check.format_value(), check.verdict))
        levels = make_blank_levels(len(cells), 2)
        notes = tuple(map(escape, self.notes))
        table = Table(
            title="Checks",
            corner="bound",
            columns=("measured", "holds"),
            rows=tuple(names),
            cells=tuple(cells),
            levels=levels,
            caption=notes,
            texts=frozenset({1}),
        )
        return [table]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements that bounds are checked against; those that none needs may be left out."""

    captures: Sequence[Capture] = ()
    """The capture of A on each text."""
    distances: Distances | None = None
    """The distances between A and B."""
    roles: Roles | None = None
    """The roles of the heads of A."""
    segments: Sequence[Segment] | None = None
    """Without them, the own segments of each text."""
    query: TokenReference | None = None
    """The token whose attention segments share; None: of all outside a segment."""
    notes: tuple[str, ...] = ()
    """On what this was measured."""

    @cached_property
    def columns(self) -> MeasureSummary:
        """The columns of all heads of A, over the texts. Raises InputError."""
        measures = [measure_captured_heads(capture) for capture in self.captures]
        return summarise_measures(measures)


def check_bounds(bounds: Iterable[Bound], evidence: Evidence) -> CheckResult:
    """Check bounds against measurements, and return each with the number that it is on.

    evidence: the captures and other measurements that the bounds need. Raises UsageError for a head
    that is not there, InputError for what cannot be measured.
    """
    checks = []
    for bound in bounds:
        value = measure_bound(bound, evidence)
        checks.append(CheckedBound(bound, value))
    notes = dict.fromkeys(evidence.notes)
    return CheckResult(tuple(checks), tuple(notes))


def measure_bound(bound: Bound, evidence: Evidence) -> float:
    """Return the number that a bound limits; NaN where it is undefined.

    It is the share of attention that a segment of the text gets, a divergence between two models, a
    column of the table of heads, or the score of heads in a role. Raises UsageError for a head that
    is not there, InputError for what cannot be measured.
    """
    measure = bound.measure
    if measure is None:
        return average_share(bound.name, evidence)
    if measure.is_of_pair:
        assert evidence.distances is not None
        return measure_divergence(measure, evidence.distances)
    if measure.is_column:
        return measure_column(measure, evidence)
    assert evidence.roles is not None
    return measure_role(measure, evidence.roles)


def measure_divergence(measure: Measure, distances: Distances) -> float:
    """Return the divergence of model A, or of one head of A, from model B in nats.

    measure: the name "js" compares each head with the nearest head of the other model, "moved" with
    the head of the same layer and number. distances: between all heads of A and B on each text. The
    number is a mean over texts; NaN where undefined.

    Raises UsageError for a head that is not there, and for "moved" if the models have different
    heads.
    """
    if measure.name == JS:
        by_head = distances.to_nearest(A_SIDE)  # (text, head)
        by_text = distances.overall  # (text,)
    else:
        if distances.moved is None:
            reason = "A and B have other heads"
            raise UsageError(f"moved compares heads of the same number, and {reason}: use js")
        by_head = distances.moved
        by_text = average_defined(distances.moved, 1)
    if measure.head is None:
        return float(average_defined(by_text, 0))
    index = find_head(measure.head, distances.names[A_SIDE])
    return float(average_defined(by_head[:, index], 0))


def measure_column(measure: Measure, evidence: Evidence) -> float:
    """Return a column of the table of heads, such as entropy: of one head, or the mean over all.

    evidence: holds the captures of model A, one of each text; columns are means over the texts. NaN
    where undefined. Raises UsageError for a head that is not there, InputError for a column that
    needs all weights where a capture does not hold them.
    """
    maps = evidence.captures[0].maps
    values = evidence.columns.mean[measure.name]
    if measure.head is None:
        value = float(average_defined(values, 0))
    else:
        heads = [(head.layer, head.head) for head in list_map_heads(maps)]
        index = find_head(measure.head, heads)
        value = float(values[index])
    if math.isnan(value) and any(attention_map.weights is None for attention_map in maps):
        lacking = "which this capture does not hold"
        raise InputError(f"{measure.name} needs all weights, {lacking}: capture --keep weights")
    return value


def measure_role(measure: Measure, roles: Roles) -> float:
    """Return the score of one head in a role, or the best score of any head.

    NaN where it is undefined. Raises UsageError for a head that is not there.
    """
    scores = score_heads(measure.name, roles)
    if measure.head is not None:
        heads = list(scores)
        index = find_head(measure.head, heads)
        return scores[heads[index]]
    defined = [score for score in scores.values() if not math.isnan(score)]
    return max(defined, default=math.nan)


def score_heads(role: str, roles: Roles) -> Mapping[HeadName, float]:
    """Return the score of each head in a role, by layer and number; NaN where it is undefined."""
    scores: dict[HeadName, float] = {}
    for head in roles.heads:
        score = head.find_score(role)
        scores[head.place] = math.nan if score is None else score.mean
    return scores


def average_share(name: str, evidence: Evidence) -> float:
    """Return the share of attention of a named segment, as a mean over heads and texts.

    Raises InputError for a text that has no such segment.
    """
    shares = [measure_share(capture, name, evidence) for capture in evidence.captures]
    return float(average_defined(np.array(shares), 0))


def measure_share(capture: Capture, name: str, evidence: Evidence) -> float:
    """Return the share of attention that a named segment of one text gets, as a mean over heads.

    The tokens on which heads rest, special ones and the first, are left out. evidence: holds the
    segments, or None for the messages or paragraphs of the text itself, and the token whose
    attention is shared out, or None for all tokens outside the segment. Raises InputError for
    segments that cannot be measured.
    """
    try:
        segments = choose_segments(capture, evidence.segments)
        segment_index = find_segment(name, segments)
        query_index = None
        if evidence.query is not None:
            window = evidence.query.resolve(capture.maps[0].queries)
            query_index = window.start
        shares_of_maps = [measure_shares(each, segments, query_index) for each in capture.maps]
    except ValueError as error:
        raise InputError(f"segments: {error}") from error
    shares_of_segment = [shares.rest_share[..., segment_index].ravel() for shares in shares_of_maps]
    return float(average_defined(np.concatenate(shares_of_segment), 0))


def find_head(head: HeadName, names: Sequence[HeadName]) -> int:
    """Return the index of a head in a list of heads.

    head, names: heads by their layer and number. A negative layer counts from the last one that is
    listed, a negative number from the last head of the layer. Raises UsageError for a head that is
    not there.
    """
    layers = list(dict.fromkeys(layer for layer, _ in names))
    layer = find_number(head[0], layers, "layer")
    numbers = []
    for layer_of_head, number in names:
        if layer_of_head == layer and isinstance(number, int):
            numbers.append(number)
    number = find_number(int(head[1]), numbers, "head")
    return list(names).index((layer, number))
