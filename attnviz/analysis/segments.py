"""Parts of a text that have names, and the share of attention that each gets.

They show which document of several was looked at.
"""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.measures import (
    HeadWeights,
    compute_exact_shares,
    divide_where,
    find_positions,
)
from attnviz.escape import escape, require_unicode
from attnviz.record import AttentionMap, Capture, Doubles, Segment, Token, Visible

SEGMENT_LINE = re.compile(r"(\d{1,9}):(\d{1,9})\s+(\S.*)", re.ASCII)
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
LINE_BREAK = re.compile(r"\n\s*")
BEGINNING = 8  # characters of a paragraph in its name
NAME_SHOWN = 40  # characters of a name in an error
JSON_EXAMPLE = '[{"name": "system", "start": 0, "end": 40}, ...]'
HOW_TO_WRITE = f"write {JSON_EXAMPLE}, or lines such as 0:40 system"


# How segments are written


def parse_segments(content: str) -> tuple[Segment, ...]:
    """Parse segments written as JSON, or a line each: START:END NAME, in characters.

    Raises ValueError saying what is allowed, InputError for a name that is no Unicode.
    """
    is_json = content.lstrip().startswith(("[", "{"))
    segments = parse_segment_list(content) if is_json else parse_segment_lines(content)
    if not segments:
        raise ValueError(f"no segments: {HOW_TO_WRITE}")
    for segment in segments:
        require_unicode(segment.name, "the name of a segment")
    return segments


def parse_segment_list(content: str) -> tuple[Segment, ...]:
    """Parse segments written as a JSON list of objects. Raises ValueError."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"segments are no JSON: {HOW_TO_WRITE}") from error
    if not isinstance(entries, list):
        raise ValueError(f"segments are no list: {HOW_TO_WRITE}")
    return tuple(read_segment(entry, number) for number, entry in enumerate(entries))


def read_segment(entry: Any, number: int) -> Segment:
    """Read the segment of one entry of a JSON list. Raises ValueError."""
    fields = set(Segment._fields)
    if not isinstance(entry, dict) or set(entry) != fields:
        raise ValueError(f"segment {number} needs name, start and end: {HOW_TO_WRITE}")
    segment = Segment(**entry)
    start, end, name = segment.start, segment.end, segment.name
    has_ends = type(start) is int and type(end) is int
    has_name = isinstance(name, str) and name.strip()
    if not (has_ends and has_name):
        needs = "a name, and start and end as numbers of characters"
        raise ValueError(f"segment {number} needs {needs}: {HOW_TO_WRITE}")
    return segment


def parse_segment_lines(content: str) -> tuple[Segment, ...]:
    """Parse segments written as lines, empty ones left out. Raises ValueError."""
    segments = []
    for full_line in content.splitlines():
        line = full_line.strip()
        if not line:
            continue
        match = SEGMENT_LINE.fullmatch(line)
        if not match:
            beginning = escape(line[:NAME_SHOWN])
            raise ValueError(f"'{beginning}' is no segment: {HOW_TO_WRITE}")
        start, end, name = match.groups()
        segments.append(Segment(name, int(start), int(end)))
    return tuple(segments)


# Where segments lie


def choose_segments(capture: Capture, segments: Sequence[Segment] | None) -> tuple[Segment, ...]:
    """Return the segments of the text of a capture: those given, else the text's own.

    Its own are the messages of a chat, or else its paragraphs or lines. Raises ValueError for
    segments that do not fit the text, and for a text that has none of its own.
    """
    if segments is None:
        segments = capture.segments or find_paragraphs(capture.text)
    require_fitting_segments(segments, capture.text)
    return tuple(segments)


def require_fitting_segments(segments: Sequence[Segment], text: str) -> None:
    """Raise ValueError if segments are empty, lie outside the text, or overlap."""
    length = len(text)
    for segment in segments:
        name = describe_segment(segment)
        if segment.start >= segment.end:
            raise ValueError(f"segment {name} is empty: its end must be more than its start")
        if segment.start < 0 or segment.end > length:
            size = f"{length} characters (0:{length})"
            raise ValueError(f"segment {name} lies outside the text, which has {size}")
    in_order = sorted(segments, key=lambda segment: segment.start)
    for before, after in pairwise(in_order):
        if after.start < before.end:
            names = f"{describe_segment(before)} and {describe_segment(after)}"
            raise ValueError(f"segments {names} overlap: each character belongs to one")


def describe_segment(segment: Segment) -> str:
    """Describe a segment in an error."""
    name = escape(segment.name)[:NAME_SHOWN]
    return f"{segment.start}:{segment.end} {name}"


def find_paragraphs(text: str) -> tuple[Segment, ...]:
    """Find the parts of a text between blank lines, or else its lines.

    Raises ValueError if there is but one.
    """
    for separator, noun in ((BLANK_LINE, "paragraph"), (LINE_BREAK, "line")):
        spans = list(split_spans(text, separator))
        if len(spans) > 1:
            numbered = enumerate(spans, 1)
            return tuple(name_span(text, noun, number, span) for number, span in numbered)
    raise ValueError("the text is one paragraph of one line: name its segments in a file")


def name_span(text: str, noun: str, number: int, span: tuple[int, int]) -> Segment:
    """Return a part of a text as a segment named by its number and its beginning."""
    start, end = span
    beginning = shorten_beginning(text[start:end])
    name = f"{noun} {number} {beginning}"
    return Segment(name, start, end)


def split_spans(text: str, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a text between separators lie, but none of white space alone."""
    separators = [match.span() for match in separator.finditer(text)]
    length = len(text)
    borders = [(0, 0), *separators, (length, length)]
    for (_, start), (end, _) in pairwise(borders):
        if text[start:end].strip():
            yield start, end


def shorten_beginning(text: str) -> str:
    """Return the first characters of a text, on one line."""
    line = " ".join(text.split())
    if len(line) <= BEGINNING:
        return line
    beginning = line[: BEGINNING - 1].rstrip()
    return f"{beginning}…"


def find_segment(name: str, segments: Sequence[Segment]) -> int:
    """Find the number of the segment of that name, or whose name begins with it.

    Raises ValueError unless there is one.
    """
    names = [segment.name for segment in segments]
    same = [i for i, other in enumerate(names) if other == name]
    longer = [i for i, other in enumerate(names) if other.startswith(f"{name} ")]
    matches = same or longer
    if len(matches) != 1:
        count = len(matches) or "no"
        listed = ", ".join(map(escape, names))
        problem = f"{count} segments are named {escape(name)!r}: there are {listed}"
        raise ValueError(problem[:300])
    return matches[0]


# What they get


class Shares(NamedTuple):
    """What segments get: arrays (layer, head, segment), or (head, segment) of several maps.

    NaN where undefined.
    """

    share: Doubles
    """Of the attention of the queries that are counted, in [0, 1]."""
    baseline: Doubles
    """The share if each query spread its attention evenly over the keys that it sees."""
    rest_share: Doubles
    """Without special and first tokens, on which heads rest, the rest made to sum to 1 again."""
    rest_baseline: Doubles
    tokens: npt.NDArray[np.int64]
    """How many keys a segment has, (segment,)."""

    @property
    def per_token(self) -> Doubles:
        """The share that each token of a segment gets, on average."""
        tokens: npt.NDArray[Any] = np.broadcast_to(self.tokens, self.share.shape)
        return divide_where(self.share, tokens)

    @property
    def lift(self) -> Doubles:
        """The share by the even share."""
        return divide_where(self.share, self.baseline)

    @property
    def rest_lift(self) -> Doubles:
        """The lift without the tokens on which heads rest."""
        return divide_where(self.rest_share, self.rest_baseline)


def join_shares(maps: Sequence[Shares]) -> Shares:
    """Return the shares of several maps as of one list of heads: arrays (head, segment)."""
    share = join_heads([shares.share for shares in maps])
    baseline = join_heads([shares.baseline for shares in maps])
    rest_share = join_heads([shares.rest_share for shares in maps])
    rest_baseline = join_heads([shares.rest_baseline for shares in maps])
    return Shares(share, baseline, rest_share, rest_baseline, maps[0].tokens)


def join_heads(arrays: Sequence[Doubles]) -> Doubles:
    """Return arrays (layer, head, segment) of several maps as one (head, segment)."""
    segment_count = arrays[0].shape[-1]
    return np.concatenate([array.reshape(-1, segment_count) for array in arrays])


def measure_shares(
    attention_map: AttentionMap,
    segments: Sequence[Segment],
    query: int | None = None,
) -> Shares:
    """Measure the share of attention that each segment gets, beside what an even spread would give.

    Means over the queries that have a choice, see a token of the segment, and stand outside it:
    what a text looks at in itself says little of who else does, and a query of a causal model
    cannot see what comes after it. query: the one at that position of the map, wherever it stands.
    Raises ValueError if the map has no weights, or keys of a target.
    """
    if attention_map.weights is None:
        raise ValueError("shares of segments need weights, and this map has none")
    if attention_map.kind == "decoder":
        raise ValueError("segments are of the text, and the keys of a decoder are of its target")
    numbers = np.arange(len(segments))
    key_segments = assign_tokens(attention_map.keys, segments)
    members = key_segments[:, None] == numbers  # (key, segment)
    counted = choose_counted_queries(attention_map, segments, query)
    positions = find_positions(attention_map)
    rest_members = members[~positions.resting]
    shape = len(attention_map.layers), len(attention_map.heads)
    shares_of_heads = np.full((4, *shape, len(segments)), np.nan)
    for layer, head in np.ndindex(shape):
        weights = compute_exact_shares(attention_map, attention_map.weights[layer, head])
        whole = HeadWeights(weights, attention_map.visible[layer, head], positions)
        shares_of_heads[:2, layer, head] = measure_head_shares(whole, members, counted)
        shares_of_heads[2:, layer, head] = measure_head_shares(whole.rest, rest_members, counted)
    share, baseline, rest_share, rest_baseline = shares_of_heads
    return Shares(share, baseline, rest_share, rest_baseline, members.sum(0))


def choose_counted_queries(
    attention_map: AttentionMap,
    segments: Sequence[Segment],
    query: int | None,
) -> Visible:
    """Choose which queries count for which segment, (query, segment).

    That is the query at one position of the map, or without one, all outside the segment.
    """
    count = len(attention_map.queries)
    shape = count, len(segments)
    if query is not None:
        is_asked = np.arange(count) == query
        return np.broadcast_to(is_asked[:, None], shape)
    if attention_map.kind == "cross":  # queries of another text
        return np.ones(shape, bool)
    own_segments = assign_tokens(attention_map.queries, segments)
    numbers = np.arange(len(segments))
    members: Visible = own_segments[:, None] == numbers
    return ~members


def measure_head_shares(head: HeadWeights, members: Visible, counted: Visible) -> Doubles:
    """Measure the shares and the even shares of segments for one head, (2, segment).

    members: (key, segment). counted: (query, segment).
    """
    keys_inside = head.visible @ members.astype(np.float64)  # (query, segment): seen keys of it
    sees_inside = keys_inside > 0
    counted = counted & head.choosing[:, None] & sees_inside
    shares = head.weights @ members
    seen = np.maximum(head.seen, 1)
    even_shares = keys_inside / seen[:, None]
    share_sums = np.where(counted, shares, 0).sum(0)
    even_sums = np.where(counted, even_shares, 0).sum(0)
    sums = np.stack([share_sums, even_sums])
    counts = np.broadcast_to(counted.sum(0), sums.shape)
    return divide_where(sums, counts)


def assign_tokens(tokens: Sequence[Token], segments: Sequence[Segment]) -> npt.NDArray[np.int64]:
    """Return the number of the segment that most of each token lies in, the first of equal ones.

    It is -1 for none, as for special tokens. Segments are of the first text of a pair.
    """
    starts = np.array([segment.start for segment in segments])
    ends = np.array([segment.end for segment in segments])
    numbers = np.full(len(tokens), -1)
    for i, token in enumerate(tokens):
        last_starts = np.maximum(starts, token.start)
        common = np.minimum(ends, token.end) - last_starts  # (segment,)
        is_of_text = not token.special and token.segment == 0
        if is_of_text and common.max() > 0:
            numbers[i] = common.argmax()
    return numbers


# Names that go with the next version


def paragraphs(text: str) -> tuple[Segment, ...]:
    """Find paragraphs as ``find_paragraphs`` does, which is the new name."""
    message = "paragraphs goes with the next version: write find_paragraphs(text)"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return find_paragraphs(text)


def shares(
    attention_map: AttentionMap,
    segments: Sequence[Segment],
    query: int | None = None,
) -> Shares:
    """Measure shares as ``measure_shares`` does, which is the new name."""
    message = "shares goes with the next version: write measure_shares(attention_map, segments)"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return measure_shares(attention_map, segments, query)
