"""Parts of a text that have names, and the share of attention that each gets, to see which document was looked at."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.measures import Matrix, Sides, exact, ratio
from attnviz.escape import escape, require_unicode
from attnviz.record import AttentionMap, Doubles, Segment, Token, Visible

LINE = re.compile(r"(\d{1,9}):(\d{1,9})\s+(\S.*)", re.ASCII)
BLANK = re.compile(r"\n[^\S\n]*\n\s*")
BEGINNING = 8  # characters of a paragraph in its name
FORMS = 'write [{"name": "system", "start": 0, "end": 40}, ...], or lines such as 0:40 system'


def parse(content: str) -> tuple[Segment, ...]:
    """Segments as JSON, or a line each: START:END NAME, in characters.

    Raises ValueError saying what is allowed, InputError for a name that is no Unicode.
    """
    found = parse_json(content) if content.lstrip().startswith(("[", "{")) else parse_lines(content)
    if not found:
        raise ValueError(f"no segments: {FORMS}")
    for one in found:
        require_unicode(one.name, "the name of a segment")
    return found


def parse_json(content: str) -> tuple[Segment, ...]:
    """Segments of a list of objects. Raises ValueError."""
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"segments are no JSON: {FORMS}") from error
    if not isinstance(listed, list):
        raise ValueError(f"segments are no list: {FORMS}")
    return tuple(segment(part, i) for i, part in enumerate(listed))


def segment(part: Any, number: int) -> Segment:
    """One of them. Raises ValueError."""
    if not isinstance(part, dict) or part.keys() != {*Segment._fields}:
        raise ValueError(f"segment {number} needs name, start and end: {FORMS}")
    found = Segment(**part)
    numbers = all(type(at) is int for at in (found.start, found.end))
    if not (numbers and isinstance(found.name, str) and found.name.strip()):
        raise ValueError(f"segment {number} needs a name, and start and end as numbers of characters: {FORMS}")
    return found


def parse_lines(content: str) -> tuple[Segment, ...]:
    """Segments of lines, empty ones left out. Raises ValueError."""
    lines = [line.strip() for line in content.splitlines()]
    matches = [(line, LINE.fullmatch(line)) for line in lines if line]
    for line, match in matches:
        if not match:
            raise ValueError(f"'{escape(line[:40])}' is no segment: {FORMS}")
    return tuple(Segment(match[3], int(match[1]), int(match[2])) for _, match in matches if match)


def require_fit(segments: Sequence[Segment], text: str) -> None:
    """Raise ValueError if segments are empty, lie outside the text, or overlap."""
    for one in segments:
        name = shown(one)
        if one.start >= one.end:
            raise ValueError(f"segment {name} is empty: its end must be more than its start")
        if one.start < 0 or one.end > len(text):
            raise ValueError(f"segment {name} lies outside the text, which has {len(text)} characters (0:{len(text)})")
    for before, after in pairwise(sorted(segments, key=lambda one: one.start)):
        if after.start < before.end:
            raise ValueError(f"segments {shown(before)} and {shown(after)} overlap: each character belongs to one")


def shown(one: Segment) -> str:
    """A segment in an error."""
    return f"{one.start}:{one.end} {escape(one.name)[:40]}"


def paragraphs(text: str) -> tuple[Segment, ...]:
    """The parts of a text between blank lines, or else its lines. Raises ValueError if there is but one."""
    for parting, noun in ((BLANK, "paragraph"), (re.compile(r"\n\s*"), "line")):
        found = tuple(
            Segment(f"{noun} {i} {beginning(text[start:end])}", start, end)
            for i, (start, end) in enumerate(parted(text, parting), 1)
        )
        if len(found) > 1:
            return found
    raise ValueError("the text is one paragraph of one line: name its segments in a file")


def parted(text: str, parting: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where the parts of a text lie, those of white space alone left out."""
    ends = [(0, 0), *(match.span() for match in parting.finditer(text)), (len(text), len(text))]
    return ((start, end) for (_, start), (end, _) in pairwise(ends) if text[start:end].strip())


def beginning(text: str) -> str:
    """The first characters of a part, on one line."""
    said = " ".join(text.split())
    return said if len(said) <= BEGINNING else f"{said[: BEGINNING - 1].rstrip()}…"


class Shares(NamedTuple):
    """What segments get: arrays (layer, head, segment), NaN where undefined."""

    share: Doubles
    """Of the attention of the queries that are counted, in [0, 1]."""
    baseline: Doubles
    """The same if each query spread its attention evenly over the keys that it sees."""
    rest_share: Doubles
    """Without special and first tokens, on which heads rest, the weights of each query made to sum to 1 again."""
    rest_baseline: Doubles
    tokens: npt.NDArray[np.int64]
    """How many keys a segment has, (segment,)."""

    @property
    def per_token(self) -> Doubles:
        """The share that each of its tokens gets, on average."""
        return ratio(self.share, np.broadcast_to(self.tokens, self.share.shape))

    @property
    def lift(self) -> Doubles:
        """How many times the even share a segment gets."""
        return ratio(self.share, self.baseline)

    @property
    def rest_lift(self) -> Doubles:
        """The same without the tokens on which heads rest."""
        return ratio(self.rest_share, self.rest_baseline)


def shares(part: AttentionMap, segments: Sequence[Segment], query: int | None = None) -> Shares:
    """The share of attention that each segment of the text gets, in a map, beside what an even spread would give.

    Means over the queries that have a choice, see a token of the segment, and stand outside it: what a text looks at in
    itself says little of who else does, and a query of a causal model cannot see what comes after it. ``query``: the
    one at that place of the map, wherever it stands. Raises ValueError if the map has no weights, or keys of a target.
    """
    if part.weights is None:
        raise ValueError("shares of segments need weights, and this map has none")
    if part.kind == "decoder":
        raise ValueError("segments are of the text, and the keys of a decoder are of its target")
    keys = belonging(part.keys, segments)
    queries = np.full(len(part.queries), -1) if part.kind == "cross" else belonging(part.queries, segments)
    members = keys[:, None] == np.arange(len(segments))  # (key, segment)
    counted = queries[:, None] != np.arange(len(segments))  # (query, segment)
    if query is not None:
        counted = np.broadcast_to(np.arange(len(queries))[:, None] == query, counted.shape)
    sides = Sides.of(part)
    found = np.full((4, len(part.layers), len(part.heads), len(segments)), np.nan)
    for at in np.ndindex(found.shape[1:3]):
        head = Matrix(exact(part, part.weights[at]), part.visible[at], sides)
        found[(slice(0, 2), *at)] = shares_of(head, members, counted)
        found[(slice(2, 4), *at)] = shares_of(head.rest, members[~sides.parked], counted)
    return Shares(found[0], found[1], found[2], found[3], members.sum(0))


def shares_of(head: Matrix, members: Visible, counted: Visible) -> Doubles:
    """Shares and even shares of one head, (2, segment)."""
    inside = head.visible @ members.astype(np.float64)  # (query, segment): keys of it that are seen
    counted = counted & head.choosing[:, None] & (inside > 0)
    even = inside / np.maximum(head.seen, 1)[:, None]
    sums = np.stack([np.where(counted, values, 0).sum(0) for values in (head.weights @ members, even)])
    return ratio(sums, np.broadcast_to(counted.sum(0), sums.shape))


def belonging(tokens: Sequence[Token], segments: Sequence[Segment]) -> npt.NDArray[np.int64]:
    """The segment that most of each token lies in, the first of equal ones; -1 for none, as for special tokens.

    Segments are of the first text of a pair.
    """
    starts, ends = (np.array([one[i] for one in segments]) for i in (1, 2))
    found = np.full(len(tokens), -1)
    for i, token in enumerate(tokens):
        common = np.minimum(ends, token.end) - np.maximum(starts, token.start)  # (segment,)
        if not token.special and token.segment == 0 and common.max() > 0:
            found[i] = common.argmax()
    return found
