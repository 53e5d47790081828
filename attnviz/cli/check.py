"""`attnviz check`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import click
import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, Name
from attnviz.analysis.measures import COLUMNS, Spread, spread
from attnviz.analysis.roles import ROLES
from attnviz.analysis.segments import shares
from attnviz.analysis.statistics import mean_of
from attnviz.cli.comparison_sources import Models, captures, comparisons, sides_options
from attnviz.cli.options import (
    Sectioned,
    SelectionType,
    lines_option,
    map_option,
    models_options,
    note,
    prompt_options,
    talk_options,
    texts_argument,
    together,
    words_option,
)
from attnviz.cli.questions import every_head, segments_of
from attnviz.errors import InputError, UsageError
from attnviz.escape import escape
from attnviz.io.validation import SCHEMA
from attnviz.record import Capture, Segment
from attnviz.results import head_roles
from attnviz.results.comparison import coverage
from attnviz.selection import HEAD, parse_token, place

OF_PAIRS = "js", "moved"
CHECKED = re.compile(r"(?:(L-?\d+H-?\d+)\.)?(\w+)", re.IGNORECASE)


class Bound(NamedTuple):
    """What a number must be at least, or at most."""

    name: str
    """A measure, of a head if it begins with one; or a segment."""
    limit: float
    least: bool
    of_segment: bool = False

    @property
    def told(self) -> str:
        """As one would say it."""
        what = f"share of {escape(self.name)!r}" if self.of_segment else self.name
        return f"{what} {'>=' if self.least else '<='} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Whether a number is within; what is undefined is not."""
        return value >= self.limit if self.least else value <= self.limit


def parse_number(text: str) -> float:
    """Parse a number. Raises ValueError for what is none, or not finite."""
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{text!r} is no number: write 0.05")
    return number


def parse_bound(text: str) -> tuple[str, float]:
    """Parse NAME=NUMBER. Raises ValueError."""
    name, _, limit = text.rpartition("=")
    if not name.strip():
        raise ValueError(f"{text!r} is no NAME=NUMBER: write L5H1.induction=0.4")
    return name.strip(), parse_number(limit)


def bounds_option(flag: str, dest: str, meaning: str) -> Any:
    """An option that may be given several times."""
    kind = SelectionType("NAME=X", parse_bound)
    return click.option(flag, dest, type=kind, multiple=True, help=meaning)


check_options = together(
    "Checks",
    bounds_option("--min", "least", "Least value of a measure: L5H1.induction, L0H2.previous, entropy, L5H1.js."),
    bounds_option("--max", "most", "Largest value of one, likewise."),
    click.option("--max-js", type=SelectionType("X", parse_number), help="Largest divergence of A and B: --max js=X."),
    bounds_option("--min-share", "least_share", "Least share of attention that a segment gets, sinks left out."),
    bounds_option("--max-share", "most_share", "Largest share, likewise."),
    click.option("--segments", metavar="FILE", help="START:END NAME a line, or JSON. Default: the text's own parts."),
    click.option(
        "--query", type=SelectionType("N or WORD", parse_token), help="What this token gives to segments, not all do."
    ),
)


@click.command(cls=Sectioned)
@texts_argument
@check_options
@map_option
@sides_options
@words_option
@lines_option
@prompt_options
@models_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@talk_options
def command(texts: tuple[str, ...], quiet: bool, as_json: bool, **options: Any) -> int:
    """Check that attention is as it should be: a line for each bound, exit code 1 if one does not hold.

    Bounds are on the columns of inspect, the roles of heads, and what compare finds (js, moved). Without a head before
    it, a column is the mean over all heads, a role that of the best head. Several texts are averaged.

    \b
    Examples:
      attnviz check --min L1H3.induction=0.75 --min L0H2.previous_token=0.8
      attnviz check "The cat sat." --with "The dog sat." --max-js 0.3
      attnviz check @sample:repeat --max L2H0.entropy=4 --min sink=0.01
      attnviz check @sample:question --min-share "line 1=0.01" --query -1
    """
    bounds = asked(options)
    require_effect(bounds, options)
    found = Measured(texts, Models({**options, "special": "keep"}, quiet))
    results = [(bound, found.value(bound)) for bound in bounds]
    passed = all(bound.holds(value) for bound, value in results)
    lines = (line(bound, value) for bound, value in results)
    click.echo(as_document(results, found.coverage) if as_json else "\n".join(lines))
    return 0 if passed else 1


def asked(options: Mapping[str, Any]) -> list[Bound]:
    """The bounds, in the order of the options. Raises UsageError for none, or one that nothing is known of."""
    numbers = [(name, True, False) for name in ("least",)] + [("most", False, False)]
    shares_ = [("least_share", True, True), ("most_share", False, True)]
    found = [Bound(*each, *how) for name, *how in (*numbers, *shares_) for each in options[name]]
    if options["max_js"] is not None:
        found.insert(0, Bound("js", options["max_js"], False))
    if not found:
        raise UsageError("nothing to check: give --max-js, --min, --max, --min-share or --max-share")
    for bound in found:
        if not bound.of_segment:
            parsed(bound.name)
    return found


def require_effect(bounds: Sequence[Bound], options: Mapping[str, Any]) -> None:
    """Raise UsageError for what no bound is on: a second side, or segments."""
    pair = any(not bound.of_segment and parsed(bound.name)[1] in OF_PAIRS for bound in bounds)
    several = options["other"] is not None or len(options["models"]) + len(options["sources"]) > 1
    if several and not pair:
        raise UsageError("a second model, text or capture has no effect without a bound on js or moved: leave it out")
    chosen_ = options["segments"] is not None or options["query"] is not None
    if chosen_ and not any(bound.of_segment for bound in bounds):
        raise UsageError("--segments and --query have no effect without --min-share or --max-share: leave them out")
    if options["lines"] and options["sources"]:
        raise UsageError("--from reads a capture that was made before: leave --lines out")


def parsed(name: str) -> tuple[Name | None, str]:
    """The head and the measure that a name names. Raises UsageError."""
    match = CHECKED.fullmatch(name)
    measure = match[2] if match else ""
    if not match or measure not in (*OF_PAIRS, *COLUMNS, *ROLES):
        known = f"{', '.join(OF_PAIRS)}; {', '.join(COLUMNS)}; {', '.join(ROLES)}"
        raise UsageError(f"{escape(name)[:40]!r} is nothing that is measured: [L5H3.] and one of {known}")
    head = HEAD.fullmatch(match[1]) if match[1] else None
    return (int(head[1]), int(head[2])) if head else None, measure


@dataclass(frozen=True)
class Measured:
    """What is measured, once it is asked for."""

    texts: Sequence[str]
    models: Models
    coverage: list[str] = field(default_factory=list)
    """On how much of each text A and B were compared."""

    @cached_property
    def distances(self) -> Distances:
        """How far A and B are apart."""
        return Distances.over(self.compared())

    def compared(self) -> Iterator[Comparison]:
        """A and B on each text, and a note on what of them is compared."""
        for each in comparisons(self.texts, self.models):
            self.coverage.append(coverage(each))
            note(self.coverage[-1], self.models.quiet)
            yield each

    @cached_property
    def captures(self) -> list[Capture]:
        """What A makes of the texts."""
        return captures(self.texts, self.models)

    @cached_property
    def columns(self) -> Spread:
        """Of all heads of A."""
        return spread([every_head(capture) for capture in self.captures])

    @cached_property
    def roles(self) -> dict[Name, Mapping[str, float]]:
        """The scores of all heads of A by role."""
        from attnviz.cli.heads import PROSE
        from attnviz.cli.text import read_sample
        from attnviz.experiments import heads, sequences

        if self.models.options["sources"]:
            raise UsageError("roles are measured by running a model: leave --from out")
        texts = sequences.excerpts(list(map(read_sample, PROSE)))
        found = heads.measure_heads(self.models[0], head_roles.Setting(), texts)
        bests = ((head.place, {role: head.best(role) for role in ROLES}) for head in found.heads)
        return {place: {role: best.mean for role, best in each.items() if best} for place, each in bests}

    def value(self, bound: Bound) -> float:
        """The number that a bound is on; NaN where it is undefined. Raises AttnvizError."""
        if bound.of_segment:
            return self.share(bound.name)
        head, measure = parsed(bound.name)
        if measure in OF_PAIRS:
            return self.divergence(head, measure)
        return self.column(head, measure) if measure in COLUMNS else self.role(head, measure)

    def divergence(self, head: Name | None, measure: str) -> float:
        """How far A is from B, or one of its heads from the nearest, or from its own."""
        moved = self.distances.moved
        if measure == "moved" and moved is None:
            raise UsageError("moved compares heads of the same number, and A and B have other heads: use js")
        by_head = self.distances.to_nearest(0) if measure == "js" or moved is None else moved  # (text, head)
        if head is not None:
            return float(mean_of(by_head[:, at(head, self.distances.names[0])], 0))
        every = self.distances.overall if measure == "js" else mean_of(by_head, 1)
        return float(mean_of(every, 0))

    def column(self, head: Name | None, measure: str) -> float:
        """A column of a head, or its mean over all."""
        maps = self.captures[0].maps
        names = [(layer, number) for part in maps for layer in part.layers for number in part.heads]
        values = self.columns.mean[measure]
        found = float(mean_of(values, 0) if head is None else values[at(head, names)])
        if np.isnan(found) and any(part.weights is None for part in maps):
            raise InputError(f"{measure} needs all weights, which this capture does not hold: capture --keep weights")
        return found

    def role(self, head: Name | None, measure: str) -> float:
        """A role of a head, or of the head that plays it best."""
        scores = {name: found.get(measure, np.nan) for name, found in self.roles.items()}
        if head is not None:
            return scores[list(scores)[at(head, list(scores))]]
        return float(np.nanmax([*scores.values(), -np.inf]))

    def share(self, name: str) -> float:
        """What a segment gets, mean over heads and texts. Raises InputError."""
        return float(mean_of(np.array([share_of(capture, name, self.models.options) for capture in self.captures]), 0))


def at(head: Name, names: Sequence[Name]) -> int:
    """The place of a head. Raises UsageError if it is not there."""
    layers = list(dict.fromkeys(layer for layer, _ in names))
    layer = place(head[0], layers, "layer")
    numbers = [number for each, number in names if each == layer and isinstance(number, int)]
    return list(names).index((layer, place(int(head[1]), numbers, "head")))


def share_of(capture: Capture, name: str, options: Mapping[str, Any]) -> float:
    """What a segment of a text gets, mean over heads, sinks left out."""
    try:
        segments = segments_of(capture, options["segments"] or "auto")
        number = named(name, segments)
        spot = options["query"]
        query = None if spot is None else spot.resolve(capture.maps[0].queries).start
        found = [shares(part, segments, query).rest_share[..., number].ravel() for part in capture.maps]
    except ValueError as error:
        raise InputError(f"segments: {error}") from error
    return float(mean_of(np.concatenate(found), 0))


def named(name: str, segments: Sequence[Segment]) -> int:
    """The place of the segment of that name, or whose name begins with it. Raises ValueError unless there is one."""
    exact = [i for i, segment in enumerate(segments) if segment.name == name]
    found = exact or [i for i, segment in enumerate(segments) if segment.name.startswith(f"{name} ")]
    if len(found) != 1:
        there = ", ".join(escape(segment.name) for segment in segments)
        raise ValueError(f"{len(found) or 'no'} segments are named {escape(name)!r}: there are {there}"[:300])
    return found[0]


def line(bound: Bound, value: float) -> str:
    """A bound with what was measured."""
    told = "undefined" if np.isnan(value) else f"{value:.4f}"
    why = ": there is nothing to measure it on" if np.isnan(value) else ""
    return f"{'ok  ' if bound.holds(value) else 'FAIL'}  {told:>9}  {bound.told}{why}"


def as_document(results: Sequence[tuple[Bound, float]], coverage: Sequence[str]) -> str:
    """All of them as JSON."""

    def entries() -> Iterator[dict[str, Any]]:
        for bound, value in results:
            ends = {"check": bound.told, "name": bound.name, "measured": None if np.isnan(value) else value}
            yield {**ends, "min" if bound.least else "max": bound.limit, "passed": bool(bound.holds(value))}

    checks = list(entries())
    passed = all(each["passed"] for each in checks)
    return json.dumps({"schema": SCHEMA, "passed": passed, "checks": checks, "notes": list(dict.fromkeys(coverage))})
