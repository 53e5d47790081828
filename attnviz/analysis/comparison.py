"""Two captures compared: on the words that both have, on the cells that both see, head by head."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.divergence import divergences, restricted
from attnviz.analysis.statistics import mean_of
from attnviz.analysis.words import Grouping, Span, coarsened, grouped, merged, texts_of, word_spans
from attnviz.record import AttentionMap, Capture, Doubles, Token, Visible, Weights

MOST_QUERIES, FEWEST_QUERIES = (
    128,
    16,
)  # whose rows are compared; of a longer text so many, evenly spread
MOST_CELLS = 1 << 31  # of all pairs of heads, which take half a minute
Name: TypeAlias = tuple[int, int | str]  # a head, by its layer and number


class Shared(NamedTuple):
    """The tokens of one side as words, of which some are in both."""

    grouping: Grouping
    places: list[int]
    """Where those stand among these words."""

    @property
    def words(self) -> tuple[Token, ...]:
        """Those."""
        return tuple(self.grouping.words[place] for place in self.places)


@dataclass(frozen=True, eq=False)
class Side:
    """One of two captures, on the words that both have."""

    capture: Capture
    """As it was taken."""
    maps: Sequence[AttentionMap]
    """Those of its maps that are compared."""
    shared: tuple[Shared, Shared]
    """Its queries and its keys."""
    rows: Sequence[int]
    """The common queries that are measured: all, or of a long text some, evenly spread."""
    weights: Weights
    """(head, row, key): of these. Rows do not sum to 1, since what is on other keys is not here."""
    visible: Visible
    """Of that shape."""
    outside: float
    """Share of the weight of these queries that is on no common key."""

    @property
    def names(self) -> tuple[Name, ...]:
        """The heads that are compared."""
        return heads(self.maps)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are there."""
        return tuple(dict.fromkeys(layer for layer, _ in self.names))

    @property
    def queries(self) -> tuple[Token, ...]:
        """The common queries."""
        return self.shared[0].words

    @property
    def keys(self) -> tuple[Token, ...]:
        """The common keys."""
        return self.shared[1].words

    @property
    def words(self) -> int:
        """How many keys were words, common or not."""
        return sum(map(is_word, self.shared[1].grouping.words))

    @property
    def common(self) -> int:
        """How many keys are words of both."""
        return sum(map(is_word, self.keys))

    @property
    def seen(self) -> Visible:
        """The cells (row, key) that any head may attend to."""
        found: Visible = np.logical_or.reduce(self.visible, axis=0)
        return found

    def unseen(self, other: "Side") -> float:
        """Share of the weight on common words that is where no head of the other side may attend."""
        total = self.weights.sum(dtype=np.float64)
        return float(self.weights[:, ~other.seen].sum(dtype=np.float64) / total) if total else 0.0

    def head(self, name: Name) -> tuple[Weights, Visible]:
        """The weights of a head between all common words (query, key), and what it sees."""
        for part in self.maps:
            if name[0] in part.layers and name[1] in part.heads:
                one = part.part([part.layers.index(name[0])], [part.heads.index(name[1])])
                found = between(one, self.shared, range(len(self.queries))).common
                return require(found.weights)[0, 0], found.visible[0, 0]
        raise KeyError(name)

    def mean(self, names: Sequence[Name]) -> tuple[Weights, Visible]:
        """The mean of some heads (query, key), and what any of them sees."""
        total, seen = np.zeros(()), np.zeros((), bool)
        for name in names:
            weights, visible = self.head(name)
            total, seen = total + weights.astype(np.float64), seen | visible
        return (total / len(names)).astype(np.float32), seen


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two captures, A and B."""

    a: Side
    b: Side

    @cached_property
    def divergence(self) -> Doubles:
        """(A, B): Jensen-Shannon divergence of each pair of heads in nats, mean over queries; NaN if there is none."""
        return divergences(self.a.weights, self.b.weights, self.a.visible, self.b.visible)

    def pair(self, mine: Sequence[Name], yours: Sequence[Name]) -> tuple[Weights, Weights, Visible]:
        """The mean of some heads of A, and of B, on the cells (query, key) that both see: rows sum to 1 again."""
        (a, seen_a), (b, seen_b) = self.a.mean(mine), self.b.mean(yours)
        seen: Visible = seen_a & seen_b
        return restricted(a, seen), restricted(b, seen), seen


def compare(a: Capture, b: Capture) -> Comparison:
    """Compare captures of one text, or of texts with words in common, each by its first map and those like it.

    Words are of both captures if they stand in the same place of the same text; of different texts, if they are the
    same in the same order (as a text comparison finds them). Special tokens are if they have the same name.
    Raises ValueError if there is no word in common, a map has no weights, or nothing is left that both see.
    """
    mine, yours = alike(a.maps), alike(b.maps)
    (queries_a, keys_a), (queries_b, keys_b) = texts_of(a, mine[0]), texts_of(b, yours[0])
    queries = together(mine[0].queries, yours[0].queries, queries_a, queries_b)
    keys = together(mine[0].keys, yours[0].keys, keys_a, keys_b)
    pairs = len(heads(mine)) * len(heads(yours)) * len(keys[0].places)
    rows = sample(len(queries[0].places), pairs)
    found = Comparison(
        side(a, mine, (queries[0], keys[0]), rows), side(b, yours, (queries[1], keys[1]), rows)
    )
    if not (found.a.seen & found.b.seen).any():
        raise ValueError("no query of one sees a key that the same query of the other sees")
    return found


def sample(count: int, each: int) -> list[int]:
    """Which of so many queries are measured, if each costs so many cells: all, or some evenly spread."""
    most = min(count, MOST_QUERIES, max(FEWEST_QUERIES, MOST_CELLS // each))
    rows: list[int] = np.linspace(0, count - 1, most).astype(int).tolist()
    return rows


def heads(maps: Sequence[AttentionMap]) -> tuple[Name, ...]:
    """The heads of maps."""
    return tuple((layer, head) for part in maps for layer in part.layers for head in part.heads)


def alike(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """The first map, and those of the same kind that show the same tokens."""
    first = maps[0]
    return [
        part
        for part in maps
        if (part.kind, part.queries, part.keys) == (first.kind, first.queries, first.keys)
    ]


def together(
    a: Sequence[Token], b: Sequence[Token], texts_a: Sequence[str], texts_b: Sequence[str]
) -> tuple[Shared, Shared]:
    """The tokens of both as words, and which of these are in both. Raises ValueError if there are none."""
    same = texts_a == texts_b
    mine = grouped(a, texts_a, words(texts_a, b if same else ()))
    yours = grouped(b, texts_b, words(texts_b, a if same else ()))
    names, others = (list(identities(group.words, same)) for group in (mine, yours))
    blocks = SequenceMatcher(None, names, others, autojunk=False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    if not any(is_word(mine.words[at]) for at, _ in pairs):
        raise ValueError("they have no word in common")
    return Shared(mine, [at for at, _ in pairs]), Shared(yours, [at for _, at in pairs])


def words(texts: Sequence[str], tokens: Sequence[Token]) -> list[tuple[Span, ...]]:
    """The words of each text, coarse enough for these tokens."""
    return [
        coarsened(word_spans(text), [token for token in tokens if token.segment == i])
        for i, text in enumerate(texts)
    ]


def is_word(token: Token) -> bool:
    """Whether a unit of a text is a word, and no special token, white space or stray byte."""
    return not token.special and bool(token.text.strip()) and token.start < token.end


def identities(words: Sequence[Token], by_place: bool) -> Iterator[tuple[object, ...]]:
    """What makes words the same: where they stand, or what they say; of special tokens their names."""
    seen = Counter[str]()
    for word in words:
        if not is_word(word):
            seen[word.text] += 1
            yield word.text, seen[word.text]
        else:
            yield (word.segment, word.start, word.end) if by_place else (word.text.casefold(),)


def side(
    capture: Capture,
    maps: Sequence[AttentionMap],
    shared: tuple[Shared, Shared],
    rows: Sequence[int],
) -> Side:
    """One side of a comparison. Raises ValueError if a map has no weights."""
    layers = (
        part.part([i], range(len(part.heads))) for part in maps for i in range(len(part.layers))
    )
    found = [between(layer, shared, rows) for layer in layers]
    weights = np.concatenate([require(each.common.weights)[0] for each in found])
    visible = np.concatenate([each.common.visible[0] for each in found])
    total = sum(each.total for each in found)
    outside = sum(each.outside for each in found) / total if total else 0.0
    return Side(capture, maps, shared, rows, weights, visible, outside)


class Between(NamedTuple):
    """The attention between some of the common queries and all common keys."""

    common: AttentionMap
    total: float
    """The sum of the weights of these queries on any key, common or not."""
    outside: float
    """The sum of their weights on keys that are not common: exactly 0 if there are none."""


def between(part: AttentionMap, shared: tuple[Shared, Shared], rows: Sequence[int]) -> Between:
    """Merge a map to words and take some of the common queries and all common keys of it."""
    queries, keys = shared
    members = [queries.grouping.members[queries.places[row]] for row in rows]
    tokens = sorted(token for word in members for token in word)
    place = {token: i for i, token in enumerate(tokens)}
    words = tuple(queries.words[row] for row in rows)
    grouping = Grouping(words, tuple(tuple(place[token] for token in word) for word in members))
    words_of_all_keys = merged(part.window(tokens, range(len(part.keys))), grouping, keys.grouping)
    weights = require(words_of_all_keys.weights)
    other_keys = np.delete(np.arange(weights.shape[-1]), keys.places)
    total = float(weights.sum(dtype=np.float64))
    outside = float(weights[..., other_keys].sum(dtype=np.float64))
    return Between(words_of_all_keys.window(range(len(rows)), keys.places), total, outside)


def require(weights: Weights | None) -> Weights:
    """Weights, which there must be. Raises ValueError."""
    if weights is None:
        raise ValueError("this capture holds no weights, which a comparison needs: keep weights")
    return weights


@dataclass(frozen=True, eq=False)
class Distances:
    """How far heads of A and B are from each other over one text or several: divergences (text, A, B) in nats."""

    names: tuple[tuple[Name, ...], tuple[Name, ...]]
    divergence: Doubles

    @classmethod
    def over(cls, comparisons: Iterable[Comparison]) -> "Distances":
        """Of comparisons of the same two models. Raises ValueError if they have other heads in other texts."""
        found = [((each.a.names, each.b.names), each.divergence) for each in comparisons]
        names = found[0][0]
        if any(other != names for other, _ in found):
            raise ValueError("the heads that are compared are not the same in each text")
        return cls(names, np.stack([divergence for _, divergence in found]))

    @cached_property
    def mean(self) -> Doubles:
        """(A, B): over the texts that tell."""
        return mean_of(self.divergence, 0)

    def nearest(self, which: int) -> list[int | None]:
        """For each head of A (0), or of B (1), the place of the head of the other that is nearest, or None."""
        distances = self.mean if which == 0 else self.mean.T
        return [None if np.isnan(row).all() else int(np.nanargmin(row)) for row in distances]

    def to_nearest(self, which: int) -> Doubles:
        """(text, head): the divergence of each head of A, or of B, from that one."""
        distances = self.divergence if which == 0 else self.divergence.swapaxes(1, 2)
        found = self.nearest(which)
        columns = [
            np.full(len(distances), np.nan) if at is None else distances[:, i, at]
            for i, at in enumerate(found)
        ]
        return np.stack(columns, axis=1)

    @property
    def moved(self) -> Doubles | None:
        """(text, head): the divergence of each head from that of the same number; None for other architectures."""
        same = self.names[0] == self.names[1]
        found: Doubles = np.diagonal(self.divergence, axis1=1, axis2=2)
        return found if same else None

    @property
    def overall(self) -> Doubles:
        """(text,): the one number, mean over the heads of A and those of B of the divergence from the nearest."""
        return (mean_of(self.to_nearest(0), 1) + mean_of(self.to_nearest(1), 1)) / 2
