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
    compute_exact_shares,
    divide_where,
    find_resting_keys,
)
from attnviz.analysis.numerics import normalise_rows
from attnviz.escape import escape, require_unicode
from attnviz.record import (
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    KeyGroups,
    KeyNumbers,
    Segment,
    Token,
    Visible,
    Weights,
)

SEGMENT_LINE = re.compile(r"(\d{1,9}):(\d{1,9})\s+(\S.*)", re.ASCII)
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
LINE_BREAK = re.compile(r"\n\s*")
BEGINNING = 8  # characters of a paragraph in its name
NAME_SHOWN = 40  # characters of a name in an error
JSON_EXAMPLE = '[{"name": "system", "start": 0, "end": 40}, ...]'
HOW_TO_WRITE = f"write {JSON_EXAMPLE}, or lines such as 0:40 system"


# How segments are written


def parse_segments(content: str) -> tuple[Segment, ...]:
    """Parse segments, that is, named parts of a text, from JSON or from lines START:END NAME.

    START and END count characters. Raises ValueError saying what is allowed, InputError for a name
    that is no Unicode.
    """
    is_json = content.lstrip().startswith(("[", "{"))
    segments = parse_segment_list(content) if is_json else parse_segment_lines(content)
    if not segments:
        raise ValueError(f"no segments: {HOW_TO_WRITE}")
    for segment in segments:
        require_unicode(segment.name, "the name of a segment")
    return segments


def parse_segment_list(content: str) -> tuple[Segment, ...]:
    """Parse segments from a JSON list of objects. Raises ValueError saying what is allowed."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"segments are no JSON: {HOW_TO_WRITE}") from error
    if not isinstance(entries, list):
        raise ValueError(f"segments are no list: {HOW_TO_WRITE}")
    return tuple(read_segment(entry, number) for number, entry in enumerate(entries))


def read_segment(entry: Any, number: int) -> Segment:
    """Read a segment, a named part of a text, from one entry of a JSON list.

    entry: an object with just name, start and end, the latter two in characters. number: the index
    of the entry in the list, for errors. Raises ValueError saying what is allowed.
    """
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
    """Parse segments, named parts of a text, from lines START:END NAME; empty lines are left out.

    Raises ValueError, quoting the beginning of a line that has another form.
    """
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
    """Return the chosen segments of the text of a capture, or by default those it is made of.

    segments: named parts of the text. None stands for the messages of a chat or the segments that
    the capture was made for, or else for the paragraphs of the text, or its lines. Raises
    ValueError for segments that do not fit the text, and for a text of a single line.
    """
    return choose_text_segments(segments, capture.text, capture.segments)


def choose_text_segments(
    segments: Sequence[Segment] | None,
    text: str,
    messages: Sequence[Segment],
) -> tuple[Segment, ...]:
    """Return the chosen segments of a text, as ``choose_segments`` does.

    messages: those of a chat; empty if the text is none.
    """
    if segments is None:
        segments = messages or find_paragraphs(text)
    require_fitting_segments(segments, text)
    return tuple(segments)


def require_fitting_segments(segments: Sequence[Segment], text: str) -> None:
    """Raise ValueError if a segment of a text is empty or lies outside it, or if two overlap."""
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
    """Find the parts of a text between blank lines, or if there is but one, its lines.

    Each is a segment that is named by its number and its beginning. Raises ValueError if there is
    only one line.
    """
    for separator, noun in ((BLANK_LINE, "paragraph"), (LINE_BREAK, "line")):
        spans = list(split_spans(text, separator))
        if len(spans) > 1:
            numbered = enumerate(spans, 1)
            return tuple(name_span(text, noun, number, span) for number, span in numbered)
    raise ValueError("the text is one paragraph of one line: name its segments in a file")


def name_span(text: str, noun: str, number: int, span: tuple[int, int]) -> Segment:
    """Make a segment of a part of a text, named by its number and its beginning.

    noun: "paragraph" or "line". span: where the part begins and ends, in characters.
    """
    start, end = span
    beginning = shorten_beginning(text[start:end])
    name = f"{noun} {number} {beginning}"
    return Segment(name, start, end)


def split_spans(text: str, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of a text between separators, in characters.

    Parts of white space alone are left out.
    """
    separators = [match.span() for match in separator.finditer(text)]
    length = len(text)
    borders = [(0, 0), *separators, (length, length)]
    for (_, start), (end, _) in pairwise(borders):
        if text[start:end].strip():
            yield start, end


def shorten_beginning(text: str) -> str:
    """Return the first characters of a text on one line, at most BEGINNING of them.

    An ellipsis stands for what is left out.
    """
    line = " ".join(text.split())
    if len(line) <= BEGINNING:
        return line
    beginning = line[: BEGINNING - 1].rstrip()
    return f"{beginning}…"


def find_segment(name: str, segments: Sequence[Segment]) -> int:
    """Find the index of the one segment that has a name, or whose name begins with it.

    A name that begins with it goes on with a space. Segments of exactly that name go first. Raises
    ValueError unless there is just one.
    """
    names = [segment.name for segment in segments]
    exact_matches = [i for i, other in enumerate(names) if other == name]
    beginning_matches = [i for i, other in enumerate(names) if other.startswith(f"{name} ")]
    matches = exact_matches or beginning_matches
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
    """Join the shares of several maps, as if all their heads were in one list.

    A share is the part of the attention of a head that a segment gets. The arrays (layer, head,
    segment) of the maps become arrays (head, segment).
    """
    share = join_heads([shares.share for shares in maps])
    baseline = join_heads([shares.baseline for shares in maps])
    rest_share = join_heads([shares.rest_share for shares in maps])
    rest_baseline = join_heads([shares.rest_baseline for shares in maps])
    return Shares(share, baseline, rest_share, rest_baseline, maps[0].tokens)


def join_heads(arrays: Sequence[Doubles]) -> Doubles:
    """Join arrays (layer, head, segment) of several maps to one array (head, segment)."""
    segment_count = arrays[0].shape[-1]
    return np.concatenate([array.reshape(-1, segment_count) for array in arrays])


def measure_shares(
    attention_map: AttentionMap,
    segments: Sequence[Segment],
    query: int | None = None,
) -> Shares:
    """Measure the share of attention that each segment gets, beside what an even spread would give.

    A segment is a named part of the text. Shares are means over the queries that have a choice, see
    a token of the segment, and stand outside it: attention within a segment says little of who else
    looks at it, and a query of a causal model cannot see what comes after it. query: the index of
    the one query of the map that is counted instead, wherever it stands. The shares are measured
    twice, with all keys, and without the special and first tokens that heads rest on. Raises
    ValueError if the map has neither weights nor what was kept of these segments, or keys of a
    target, which the decoder of an encoder-decoder reads.
    """
    if attention_map.kind == "decoder":
        raise ValueError("segments are of the text, and the keys of a decoder are of its target")
    numbers = np.arange(len(segments))
    key_segments = assign_tokens(attention_map.keys, segments)
    tokens = (key_segments[:, None] == numbers).sum(0)
    resting = find_resting_keys(attention_map)
    if attention_map.weights is None:
        # what is said of keys below is said of groups of them
        groups = require_segment_groups(attention_map)
        require_whole_groups(groups, key_segments, segments)
        _, first_keys = np.unique(groups.numbers, return_index=True)
        key_segments, resting = key_segments[first_keys], resting[first_keys]
    members = key_segments[:, None] == numbers  # (key, segment)
    rest = ~resting
    counted = choose_counted_queries(attention_map, segments, query)
    shape = len(attention_map.layers), len(attention_map.heads)
    shares_of_heads = np.full((4, *shape, len(segments)), np.nan)
    for index in np.ndindex(shape):
        weights, seen = read_key_weights(attention_map, index)
        shares_of_heads[:2, *index] = measure_head_shares(weights, seen, members, counted)
        # Without those that heads rest on.
        rest_weights = normalise_rows(weights[:, rest])
        rest_shares = measure_head_shares(rest_weights, seen[:, rest], members[rest], counted)
        shares_of_heads[2:, *index] = rest_shares
    share, baseline, rest_share, rest_baseline = shares_of_heads
    return Shares(share, baseline, rest_share, rest_baseline, tokens)


def read_key_weights(
    attention_map: AttentionMap,
    index: tuple[int, ...],
) -> tuple[Doubles, npt.NDArray[Any]]:
    """Return what the queries of a head give to keys, and how many keys they see, (query, key).

    For a map without weights they are what queries give to groups of keys, and see of them, (query,
    group). index: those of the layer and the head.
    """
    if attention_map.weights is not None:
        weights = compute_exact_shares(attention_map, attention_map.weights[index])
        return weights, attention_map.visible[index]
    groups = require_segment_groups(attention_map)
    seen = np.broadcast_to(groups.seen, groups.weights.shape)
    return groups.weights[index].astype(np.float64), seen[index]


def require_segment_groups(attention_map: AttentionMap) -> KeyGroups:
    """Return what a map keeps of groups of keys. Raises ValueError if it keeps nothing of them."""
    if attention_map.groups is None:
        raise ValueError(
            "shares of segments need weights, or what was kept of these segments, and this map has "
            "neither: name them with --segments when the text is captured",
        )
    return attention_map.groups


def require_whole_groups(
    groups: KeyGroups,
    key_segments: npt.NDArray[np.int64],
    segments: Sequence[Segment],
) -> None:
    """Raise ValueError if a segment has some keys of a group and not all of them.

    key_segments: the index of the segment of each key, -1 for none.
    """
    for number in range(groups.weights.shape[-1]):
        segments_of_group = np.unique(key_segments[groups.numbers == number])
        if len(segments_of_group) > 1:
            name = describe_segment(segments[segments_of_group[-1]])
            raise ValueError(
                f"this capture keeps no shares of segment {name}, which is neither one of those "
                "that it was made for nor several of them joined",
            )


def number_key_groups(
    keys: Sequence[Token],
    segments: Sequence[Segment],
) -> KeyNumbers:
    """Give each key the number of its group, (key,), so that groups tell what segments get.

    The weights of groups answer every question about shares of the segments. A group is a run of
    keys of one segment, or of none. The special tokens, on which heads rest,
    are one group, and the first token of a segment is its own if it is the first of the text.
    Segments that are made of several of these can be asked about too.
    """
    key_segments = assign_tokens(keys, segments)
    numbers = np.zeros(len(keys), np.int32)
    count = 0
    special: int | None = None
    last: tuple[int, bool] | None = None
    for i, token in enumerate(keys):
        if token.special and special is not None:
            numbers[i] = special
            last = None
            continue
        owner = int(key_segments[i]), i == 0
        begins = token.special or owner != last
        count += begins
        numbers[i] = count - 1
        last = None if token.special else owner
        if token.special:
            special = count - 1
    return numbers


def sum_key_groups(
    weights: Weights,
    visible: Visible,
    numbers: KeyNumbers,
) -> KeyGroups:
    """Sum weights (layer, head, query, key) over groups of keys, and count the keys that are seen.

    visible: the mask, (layer or 1, head or 1, query, key). numbers: the group of each key, (key,).
    """
    members = numbers[:, None] == np.arange(numbers.max() + 1)  # (key, group)
    sums: Floats = weights @ members.astype(np.float32)
    seen = visible.astype(np.float32) @ members.astype(np.float32)
    return KeyGroups(numbers, sums, seen.astype(np.int32))


def choose_counted_queries(
    attention_map: AttentionMap,
    segments: Sequence[Segment],
    query: int | None,
) -> Visible:
    """Choose the queries that are counted for each segment, as a mask (query, segment).

    query: the index of the one query that is counted for all segments. If it is None, the queries
    outside a segment are counted for it. In cross-attention these are all, since they are of
    another text.
    """
    count = len(attention_map.queries)
    shape = count, len(segments)
    if query is not None:
        is_asked = np.arange(count) == query
        return np.broadcast_to(is_asked[:, None], shape)
    # Queries are of another text.
    if attention_map.kind == "cross":
        return np.ones(shape, bool)
    query_segments = assign_tokens(attention_map.queries, segments)
    numbers = np.arange(len(segments))
    members: Visible = query_segments[:, None] == numbers
    return ~members


def measure_head_shares(
    weights: Doubles,
    seen: npt.NDArray[Any],
    members: Visible,
    counted: Visible,
) -> Doubles:
    """Measure for one head the shares that segments get, and their even shares, (2, segment).

    An even share is what a segment would get if each query spread its attention evenly over the
    keys that it sees. Both are means over the queries that are counted, NaN where none is.

    weights: (query, key). seen: how many keys each is, for a query that sees it: a mask, or counts
    where groups of keys stand for keys. members: (key, segment), True where the key is in the
    segment. counted: (query, segment), True where the query may be counted; it is if it sees
    several keys, and at least one of the segment.
    """
    keys_inside = seen @ members.astype(np.float64)  # (query, segment): seen keys of it
    sees_inside = keys_inside > 0
    seen_keys = seen.sum(-1)
    is_choosing = (seen_keys > 1) & weights.any(-1)
    counted = counted & is_choosing[:, None] & sees_inside
    shares = weights @ members
    even_shares = keys_inside / np.maximum(seen_keys, 1)[:, None]
    share_sums = np.where(counted, shares, 0).sum(0)
    even_sums = np.where(counted, even_shares, 0).sum(0)
    sums = np.stack([share_sums, even_sums])
    counts = np.broadcast_to(counted.sum(0), sums.shape)
    return divide_where(sums, counts)


def assign_tokens(tokens: Sequence[Token], segments: Sequence[Segment]) -> npt.NDArray[np.int64]:
    """Find for each token the index of the segment that most of it lies in, (token,).

    It is the first of equal ones, and -1 for a token in no segment, for a special one, and for one
    of the second text of a pair, in which there are no segments.
    """
    starts = np.array([segment.start for segment in segments])
    ends = np.array([segment.end for segment in segments])
    numbers = np.full(len(tokens), -1)
    for i, token in enumerate(tokens):
        last_starts = np.maximum(starts, token.start)
        common = np.minimum(ends, token.end) - last_starts  # (segment,): characters in it
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
