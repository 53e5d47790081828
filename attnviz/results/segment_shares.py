"""The share of attention that each segment of a text gets, in all heads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.measures import divide_where
from attnviz.analysis.segments import (
    Shares,
    choose_segments,
    join_shares,
    measure_shares,
)
from attnviz.analysis.statistics import average_defined
from attnviz.derived import CaptureSource
from attnviz.drawable import Axis, Picture, Table, make_blank_levels
from attnviz.errors import InputError
from attnviz.escape import escape
from attnviz.io.formats import describe_capture, describe_tokens
from attnviz.record import Capture, Doubles, Floats, Segment
from attnviz.request import Request
from attnviz.results.digits import format_share
from attnviz.results.inspection import (
    EVERY_HEAD,
    capture_heads,
    find_largest,
    format_measure,
    list_map_heads,
    name_heads,
    note_rescaled_rows,
)
from attnviz.results.result import Result
from attnviz.selection import TokenReference, join_names
from attnviz.views.heatmaps import join_title, make_caption, title_token
from attnviz.views.labels import describe_head_count, make_axes, title_kind


@dataclass(frozen=True, eq=False, repr=False)
class SegmentShares(Result):
    """The share of attention that each segment of a text gets, in all heads."""

    capture: Capture
    segments: tuple[Segment, ...]
    shares: Shares
    """Arrays (head, segment)."""
    of_one_query: bool = False
    """True if the capture is of one query, and the shares of what that gives."""

    @property
    def query(self) -> Axis | None:
        """The axis of the one query, if one was asked about."""
        if not self.of_one_query:
            return None
        queries, _ = make_axes(self.capture.maps[0])
        return queries

    def to_dict(self) -> dict[str, Any]:
        """Return the segments, and what each gets in every head, as a document for JSON."""
        first_map = self.capture.maps[0]
        query = None
        if self.of_one_query:
            (query,) = describe_tokens(first_map.queries, first_map.query_places)
        segments = []
        for segment, count in zip(self.segments, self.shares.tokens, strict=True):
            described = segment._asdict()
            described["tokens"] = int(count)
            segments.append(described)
        document = describe_capture(self.capture)
        return {**document, "query": query, "segments": segments, "shares": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each head and segment, with the numbers of the segment in that head."""
        columns = collect_share_columns(self.shares)
        rows = []
        for head_index, head in enumerate(list_map_heads(self.capture.maps)):
            for segment_index, segment in enumerate(self.segments):
                row = head._asdict()
                row["segment"] = segment.name
                row["tokens"] = int(self.shares.tokens[segment_index])
                for name, values in columns.items():
                    row[name] = values[head_index, segment_index]
                rows.append(row)
        return rows

    def tables(self) -> list[Picture]:
        """Return the table of segments."""
        return [draw_segments_table(self)]


def collect_share_columns(shares: Shares) -> dict[str, Doubles]:
    """Collect the numbers of segments by the names of their columns: (head, segment) each.

    A share is of attention, a baseline is the share if attention were spread evenly, a lift is the
    share divided by the baseline. The columns that begin with ``rest_`` leave out special tokens
    and the first.
    """
    return {
        "share": shares.share,
        "baseline": shares.baseline,
        "lift": shares.lift,
        "rest_share": shares.rest_share,
        "rest_baseline": shares.rest_baseline,
        "rest_lift": shares.rest_lift,
        "share_per_token": shares.per_token,
    }


def inspect_segments(
    source: CaptureSource,
    segments: Sequence[Segment] | None = None,
    query: TokenReference | None = None,
    request: Request = EVERY_HEAD,
) -> SegmentShares:
    """Measure the share of attention that each segment of a text gets, in every head.

    source: a function that takes a request and returns a capture of a model's attention. segments:
    parts of the text that have names; without them, the messages of a chat, or else the paragraphs
    of the text. query: the one token whose attention is shared out; without it, shares are means
    over the queries outside a segment. request: the layers, heads and kinds of map.

    Raises InputError for segments that do not fit the text, UsageError for scores before the
    softmax, and as the source does.
    """
    chosen_segments = None if segments is None else tuple(segments)
    request_weights = replace(request, keep="weights", query=query, segments=chosen_segments)
    capture = note_rescaled_rows(capture_heads(source, request_weights))
    of_one_query = query is not None
    # The maps of a request with a query have no other.
    query_index = 0 if of_one_query else None
    try:
        chosen = choose_segments(capture, segments)
        shares_of_maps = [measure_shares(each, chosen, query_index) for each in capture.maps]
    except ValueError as error:
        raise InputError(f"--segments: {error}{describe_kept_segments(capture)}") from error
    return SegmentShares(capture, chosen, join_shares(shares_of_maps), of_one_query)


def describe_kept_segments(capture: Capture) -> str:
    """Return the end of an error that names the segments a capture without weights was made for.

    It is empty for other captures.
    """
    if not any(each.groups is not None for each in capture.maps):
        return ""
    names = [escape(segment.name) for segment in capture.segments]
    return f"; it was made for {join_names(names)}"


class SegmentMeans(NamedTuple):
    """The shares of segments as means over the heads: arrays (segment,), NaN where undefined."""

    tokens: Doubles
    share: Doubles
    baseline: Doubles
    rest_share: Doubles
    rest_baseline: Doubles

    @property
    def per_token(self) -> Doubles:
        """The share that each token of a segment gets, on average."""
        return divide_where(self.share, self.tokens)

    @property
    def lift(self) -> Doubles:
        """The share by the even share."""
        return divide_where(self.share, self.baseline)

    @property
    def rest_lift(self) -> Doubles:
        """The lift without the tokens on which heads rest."""
        return divide_where(self.rest_share, self.rest_baseline)


def average_shares(shares: Shares) -> SegmentMeans:
    """Average the numbers of segments over the heads.

    shares: arrays (head, segment), NaN where undefined. Returns arrays (segment,).
    """
    tokens = shares.tokens.astype(np.float64)
    share = average_defined(shares.share, 0)
    baseline = average_defined(shares.baseline, 0)
    rest_share = average_defined(shares.rest_share, 0)
    rest_baseline = average_defined(shares.rest_baseline, 0)
    return SegmentMeans(tokens, share, baseline, rest_share, rest_baseline)


def draw_segments_table(result: SegmentShares) -> Table:
    """Draw a table with a row for each segment, its numbers being means over the heads.

    The last column names the head with the largest lift, that is, its share of attention divided by
    the share that the segment would get if attention were spread evenly.
    """
    capture, shares = result.capture, result.shares
    first_map = capture.maps[0]
    head_names = name_heads(capture.maps)
    means = average_shares(shares)
    columns = format_segments(means)
    lifts_by_segment = shares.rest_lift.T
    columns["most by"] = [name_most_lift(lifts, head_names) for lifts in lifts_by_segment]
    headings = tuple(columns)
    caption = caption_segments(shares, of_one_query=result.of_one_query)
    titles = [*title_kind(first_map), f"{len(result.segments)} segments"]
    if result.query is not None:
        titles.append(title_token(result.query))
    titles.append(describe_head_count(len(head_names), first_map.heads))
    title = join_title(capture, *titles)
    segment_names = [escape(segment.name) for segment in result.segments]
    levels = colour_segments(means, headings)
    cells = zip(*columns.values(), strict=True)
    column_of_names = headings.index("most by")
    return Table(
        title=title,
        corner="segment",
        columns=headings,
        rows=tuple(segment_names),
        cells=tuple(cells),
        levels=levels,
        caption=make_caption((*caption, *capture.notes)),
        texts=frozenset({column_of_names}),
    )


def format_segments(means: SegmentMeans) -> dict[str, list[str]]:
    """Format the columns of a table of segments, by heading: a text for each segment.

    means: arrays (segment,). "each" is the share of a token, "even" the share if attention were
    spread evenly, "lift" the share divided by that. "rest" and "lift*" leave out special tokens and
    the first.
    """
    columns: dict[str, list[str]] = {}
    columns["tokens"] = [f"{count:.0f}" for count in means.tokens]
    columns["each"] = [format_share(value, 4) for value in means.per_token]
    columns["share"] = [format_share(value) for value in means.share]
    columns["even"] = [format_share(value) for value in means.baseline]
    columns["lift"] = [format_measure(value) for value in means.lift]
    columns["rest"] = [format_share(value) for value in means.rest_share]
    columns["lift*"] = [format_measure(value) for value in means.rest_lift]
    return columns


def colour_segments(means: SegmentMeans, headings: Sequence[str]) -> Floats:
    """Return the colour levels of a table of segments, from 0 to 1: (segment, column).

    Columns that are not coloured have NaN. A share is its own level; the level of a lift is its
    share of the largest lift, or of 1 if all lifts are smaller. headings: of all columns of the
    table.
    """
    lift, rest_lift = means.lift, means.rest_lift
    largest_lifts = find_largest(lift), find_largest(rest_lift)
    top = max(*largest_lifts, 1)
    coloured = {
        "share": means.share,
        "lift": lift / top,
        "rest": means.rest_share,
        "lift*": rest_lift / top,
    }
    levels = make_blank_levels(len(means.share), len(headings))
    for heading, values in coloured.items():
        levels[:, headings.index(heading)] = values
    return levels


def caption_segments(shares: Shares, *, of_one_query: bool) -> tuple[str, ...]:
    """Explain the columns of a table of segments in a line, and empty cells in another.

    shares: arrays (head, segment). A segment's cells are empty if no query sees it in any head.
    of_one_query: True if the shares are of what one query gives.
    """
    whose = "the queries outside a segment that see it"
    why_empty = "no query outside it sees it: --query -1 asks the last token"
    if of_one_query:
        whose = "this query"
        why_empty = "this query sees nothing of it"
    columns = (
        f"share: of the attention of {whose}; even: if spread evenly over the keys; "
        "lift: share / even; rest, lift*: without special and first tokens; "
        "each: share of a token; most by: the head of the largest lift*"
    )
    is_seen = np.isfinite(shares.share).any(0)
    if is_seen.all():
        return (columns,)
    return columns, f"empty: {why_empty}"


def name_most_lift(lifts: Doubles, names: Sequence[str]) -> str:
    """Name the head with the largest lift for a segment, and the lift; empty if all are undefined.

    A lift is a share of attention by the share under an even spread. lifts: (head,). names: of the
    heads.
    """
    if not np.isfinite(lifts).any():
        return ""
    best = int(np.nanargmax(lifts))
    return f"{names[best]} {format_measure(lifts[best])}"
