"""`attnviz check`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import click

from attnviz.analysis.comparison import Comparison
from attnviz.cli.comparison_sources import (
    FIRST_MODEL,
    ComparedModels,
    ComparisonOptions,
    capture_first_side,
    compare_texts,
    comparison_options,
    sides_options,
)
from attnviz.cli.inspect import TOKEN
from attnviz.cli.options import (
    SelectionOptions,
    lines_option,
    map_option,
    model_source_options,
    models_options,
    reading_options,
    talk_options,
    texts_argument,
)
from attnviz.cli.parameters import (
    Decorator,
    ParsedType,
    SectionedCommand,
    option_group,
    option_section,
)
from attnviz.cli.talk import Talk
from attnviz.cli.text import read_segments
from attnviz.errors import UsageError
from attnviz.io.documents import format_document_json
from attnviz.results.checking import JS, Bound, Evidence, Measure, check_bounds
from attnviz.results.comparison import describe_coverage, measure_comparisons
from attnviz.results.head_roles import Roles, SequenceSettings
from attnviz.selection import TokenReference

NamedNumber: TypeAlias = tuple[str, float]


def parse_number(text: str) -> float:
    """Parse a number. Raises ValueError for a text that is no number, or no finite one."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no number: write 0.05")
    return number


def parse_named_number(text: str) -> NamedNumber:
    """Parse ``NAME=NUMBER``, as a name and a number. Raises ValueError for any other text."""
    name, _, limit = text.rpartition("=")  # the last sign: a name may contain others
    if not name.strip():
        raise ValueError(f"{text!r} is no NAME=NUMBER: write L5H1.induction=0.4")
    return name.strip(), parse_number(limit)


@dataclass(frozen=True)
class CheckOptions:
    """Which bounds are checked."""

    least: tuple[NamedNumber, ...] = ()
    most: tuple[NamedNumber, ...] = ()
    max_js: float | None = None
    least_share: tuple[NamedNumber, ...] = ()
    most_share: tuple[NamedNumber, ...] = ()
    segments: str | None = None
    query: TokenReference | None = None

    def __post_init__(self) -> None:
        """Check the options against each other.

        Raises UsageError if there is no bound, if a bound is on an unknown measure, and if segments
        or a query are named while no bound is on the share of a segment.
        """
        if not self.bounds:
            flags = "--max-js, --min, --max, --min-share or --max-share"
            raise UsageError(f"nothing to check: give {flags}")
        names_segments = self.segments is not None or self.query is not None
        bounds_no_segment = len(self.measures) == len(self.bounds)
        if bounds_no_segment and names_segments:
            what, needed = "--segments and --query", "--min-share or --max-share"
            raise UsageError(f"{what} have no effect without {needed}: leave them out")

    @property
    def bounds(self) -> list[Bound]:
        """The limits that are checked, in the order of the options."""
        bounds = [] if self.max_js is None else [Bound(JS, self.max_js, is_least=False)]
        bounds += [Bound(name, limit, is_least=True) for name, limit in self.least]
        bounds += [Bound(name, limit, is_least=False) for name, limit in self.most]
        bounds += [
            Bound(name, limit, is_least=True, of_segment=True) for name, limit in self.least_share
        ]
        bounds += [
            Bound(name, limit, is_least=False, of_segment=True) for name, limit in self.most_share
        ]
        return bounds

    @property
    def measures(self) -> list[Measure]:
        """The measures that bounds are on, without bounds on segments, which have none.

        Raises UsageError for an unknown measure.
        """
        measures = [bound.measure for bound in self.bounds]
        return [measure for measure in measures if measure is not None]

    @property
    def needs_pair(self) -> bool:
        """True if a bound is on how far A and B are from each other."""
        return any(measure.is_of_pair for measure in self.measures)

    @property
    def needs_roles(self) -> bool:
        """True if a bound is on a role of heads."""
        return any(measure.is_role for measure in self.measures)

    @property
    def needs_captures(self) -> bool:
        """True if a bound is on what A makes of the texts."""
        needs_columns = any(measure.is_column for measure in self.measures)
        return needs_columns or bool(self.least_share or self.most_share)


def make_bounds_option(flag: str, name: str, meaning: str) -> Decorator:
    """Make an option NAME=X that may be given several times.

    flag: the option on the command line. name: of its parameter. meaning: its help.
    """
    kind = ParsedType("NAME=X", parse_named_number)
    return click.option(flag, name, type=kind, multiple=True, help=meaning)


check_options = option_group(
    "check",
    CheckOptions,
    option_section(
        "Checks",
        make_bounds_option(
            "--min",
            "least",
            "Least value of a measure: L5H1.induction, L0H2.previous, entropy, L5H1.js.",
        ),
        make_bounds_option("--max", "most", "Largest value of one, likewise."),
        click.option(
            "--max-js",
            type=ParsedType("X", parse_number),
            help="Largest divergence of A and B: --max js=X.",
        ),
        make_bounds_option(
            "--min-share",
            "least_share",
            "Least share of attention that a segment gets, sinks left out.",
        ),
        make_bounds_option("--max-share", "most_share", "Largest share, likewise."),
        click.option(
            "--segments",
            metavar="FILE",
            help="START:END NAME a line, or JSON. Default: the text's own parts.",
        ),
        click.option(
            "--query",
            type=TOKEN,
            help="What this token gives to segments, not all do.",
        ),
    ),
)


@click.command(cls=SectionedCommand)
@texts_argument
@check_options
@option_group("selection", SelectionOptions, map_option)
@sides_options
@model_source_options
@lines_option
@reading_options
@models_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@talk_options
@comparison_options
def command(
    texts: tuple[str, ...],
    check: CheckOptions,
    comparison: ComparisonOptions,
    as_json: bool,
    talk: Talk,
) -> int:
    """Check bounds on attention: a line for each, exit code 1 if one does not hold.

    Bounds are on the columns of inspect, the roles of heads, and what compare finds (js, moved).
    Without a head before it, a column is the mean over all heads, a role that of the best head.
    Several texts are averaged.

    \b
    Examples:
      attnviz check --min L1H3.induction=0.75 --min L0H2.previous_token=0.8
      attnviz check "The cat sat." --with "The dog sat." --max-js 0.3
      attnviz check @sample:repeat --max L2H0.entropy=4 --min sink=0.01
      attnviz check @sample:question --min-share "line 1=0.01" --query -1
    """
    require_sides_effect(check, comparison)
    evidence = collect_evidence(texts, check, ComparedModels(comparison, talk))
    result = check_bounds(check.bounds, evidence)
    if as_json:
        click.echo(format_document_json(result.to_dict()).decode(), nl=False)
    else:
        click.echo("\n".join(result.lines()))
    return 0 if result.passed else 1


def require_sides_effect(check: CheckOptions, comparison: ComparisonOptions) -> None:
    """Raise UsageError for options of what is measured that would have no effect.

    One is a second model, text or capture, if no bound is on a measure that compares two, which are
    ``js`` and ``moved``. Another is --lines, which splits texts, beside --from, which reads
    captures in place of texts.
    """
    if comparison.has_second_side and not check.needs_pair:
        what = "a second model, text or capture"
        raise UsageError(f"{what} has no effect without a bound on js or moved: leave it out")
    if comparison.lines and comparison.sides.paths:
        raise UsageError("--from reads a capture that was made before: leave --lines out")


def collect_evidence(
    texts: Sequence[str],
    check: CheckOptions,
    models: ComparedModels,
) -> Evidence:
    """Measure what the bounds of a check are on, and nothing that none of them needs.

    texts: those of the command line. models: one or two models that are loaded when they are
    needed; the first is called A and the second B. Raises AttnvizError.
    """
    notes: list[str] = []
    distances, roles = None, None
    if check.needs_pair:
        comparisons = compare_texts(texts, models)
        noted_comparisons = note_coverage(comparisons, notes, models.talk)
        distances = measure_comparisons(noted_comparisons).distances
    captures = capture_first_side(texts, models) if check.needs_captures else []
    if check.needs_roles:
        roles = measure_roles(models)
    segments = None if check.segments is None else read_segments(check.segments)
    return Evidence(captures, distances, roles, segments, check.query, tuple(notes))


def note_coverage(
    comparisons: Iterable[Comparison],
    notes: list[str],
    talk: Talk,
) -> Iterator[Comparison]:
    """Yield comparisons unchanged, after a line on how much of its two texts each covers.

    notes: a list to which the lines are added. talk: prints them on stderr.
    """
    for comparison in comparisons:
        coverage = describe_coverage(comparison)
        notes.append(coverage)
        talk.note(coverage)
        yield comparison


def measure_roles(models: ComparedModels) -> Roles:
    """Run the first model to measure the roles of its heads, such as induction.

    Raises UsageError where a saved capture stands in place of a model, ModelError.
    """
    from attnviz.cli.heads import read_texts
    from attnviz.experiments.heads import measure_head_roles

    if models.options.sides.paths:
        raise UsageError("roles are measured by running a model: leave --from out")
    return measure_head_roles(models.load(FIRST_MODEL), SequenceSettings(), read_texts(None))
