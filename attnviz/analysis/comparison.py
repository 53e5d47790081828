"""Two captures compared: on the words that both have, on the cells that both see, head by head."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.divergence import Exact, divergences, restricted
from attnviz.analysis.words import Grouping, Span, coarsened, grouped, merged, texts_of, word_spans
from attnviz.record import AttentionMap, Capture, Token, Visible, Weights

MOST_QUERIES = 128  # whose rows are compared; of a longer text so many, evenly spread
Name: TypeAlias = tuple[int, int | str]  # a head, by its layer and number


class Shared(NamedTuple):
    """The tokens of one side as words, of which some are in both."""

    grouping: Grouping
    places: list[int]
    """Where those stand among these words."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of two captures, on the words that both have."""

    capture: Capture
    """As it was taken."""
    names: tuple[Name, ...]
    """The heads that are compared."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]
    weights: Weights
    """(head, query, key): rows do not sum to 1, since what is on other keys is not here."""
    visible: Visible
    """Of that shape."""
    words: int
    """Keys that were words, common or not."""
    outside: float
    """Share of the weight of these queries that is on no common key."""

    @property
    def common(self) -> int:
        """Keys that are words: those of both."""
        return sum(map(is_word, self.keys))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are there."""
        return tuple(dict.fromkeys(layer for layer, _ in self.names))

    @property
    def seen(self) -> Visible:
        """The cells (query, key) that any head may attend to."""
        return seen_by_any(self.visible)

    def unseen(self, other: "Side") -> float:
        """Share of the weight on common words that is where no head of the other side may attend."""
        total = self.weights.sum(dtype=np.float64)
        return float(self.weights[:, ~other.seen].sum(dtype=np.float64) / total) if total else 0.0

    def mean(self, names: Iterable[Name]) -> tuple[Weights, Visible]:
        """The mean of some heads (query, key), and what any of them sees."""
        at = [self.names.index(name) for name in names]
        mean: Weights = self.weights[at].mean(0, dtype=np.float64).astype(np.float32)
        return mean, seen_by_any(self.visible[at])


def seen_by_any(visible: Visible) -> Visible:
    """What any head sees: (head, query, key) -> (query, key)."""
    found: Visible = np.logical_or.reduce(visible, axis=0)
    return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two captures, A and B."""

    a: Side
    b: Side

    @cached_property
    def divergence(self) -> Exact:
        """(A, B): Jensen-Shannon divergence of each pair of heads in nats, mean over queries; NaN if there is none.

        Of more than MOST_QUERIES words so many rows, evenly spread.
        """
        count = len(self.a.queries)
        rows = np.linspace(0, count - 1, min(count, MOST_QUERIES)).astype(int)
        a, b = self.a, self.b
        return divergences(a.weights[:, rows], b.weights[:, rows], a.visible[:, rows], b.visible[:, rows])

    def pair(self, mine: Iterable[Name], yours: Iterable[Name]) -> tuple[Weights, Weights, Visible]:
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
    found = Comparison(side(a, mine, queries[0], keys[0]), side(b, yours, queries[1], keys[1]))
    if not (found.a.seen & found.b.seen).any():
        raise ValueError("no query of one sees a key that the same query of the other sees")
    return found


def alike(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """The first map, and those of the same kind that show the same tokens."""
    first = maps[0]
    return [part for part in maps if (part.kind, part.queries, part.keys) == (first.kind, first.queries, first.keys)]


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
        coarsened(word_spans(text), [token for token in tokens if token.segment == i]) for i, text in enumerate(texts)
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


def side(capture: Capture, maps: Sequence[AttentionMap], queries: Shared, keys: Shared) -> Side:
    """One side of a comparison. Raises ValueError if a map has no weights."""
    whole = [merged(part, queries.grouping, keys.grouping) for part in maps]
    parts = [part.window(queries.places, keys.places) for part in whole]
    given, kept = (flat([part.weights for part in several]) for several in (whole, parts))
    total = float(given[:, queries.places].sum(dtype=np.float64))
    return Side(
        capture,
        tuple((layer, head) for part in maps for layer in part.layers for head in part.heads),
        parts[0].queries,
        parts[0].keys,
        kept,
        flat([part.visible for part in parts]),
        sum(map(is_word, keys.grouping.words)),
        1 - float(kept.sum(dtype=np.float64)) / total if total else 0.0,
    )


def flat(arrays: Sequence[Any]) -> Any:
    """Arrays (layer, head, query, key) as one (head, query, key)."""
    return np.concatenate([array.reshape(-1, *array.shape[2:]) for array in arrays])


@dataclass(frozen=True, eq=False)
class Distances:
    """How far heads of A and B are from each other over one text or several: divergences (text, A, B) in nats."""

    names: tuple[tuple[Name, ...], tuple[Name, ...]]
    divergence: Exact

    @classmethod
    def over(cls, comparisons: Sequence[Comparison]) -> "Distances":
        """Of comparisons of the same two models. Raises ValueError if they have other heads in other texts."""
        first = comparisons[0]
        names = first.a.names, first.b.names
        if any((each.a.names, each.b.names) != names for each in comparisons):
            raise ValueError("the heads that are compared are not the same in each text")
        return cls(names, np.stack([each.divergence for each in comparisons]))

    @cached_property
    def mean(self) -> Exact:
        """(A, B): over the texts that tell."""
        return mean(self.divergence, 0)

    def nearest(self, which: int) -> list[int | None]:
        """For each head of A (0), or of B (1), the place of the head of the other that is nearest, or None."""
        distances = self.mean if which == 0 else self.mean.T
        return [None if np.isnan(row).all() else int(np.nanargmin(row)) for row in distances]

    def to_nearest(self, which: int) -> Exact:
        """(text, head): the divergence of each head of A, or of B, from that one."""
        distances = self.divergence if which == 0 else self.divergence.swapaxes(1, 2)
        found = self.nearest(which)
        columns = [np.full(len(distances), np.nan) if at is None else distances[:, i, at] for i, at in enumerate(found)]
        return np.stack(columns, axis=1)

    @property
    def moved(self) -> Exact | None:
        """(text, head): the divergence of each head from that of the same number; None for other architectures."""
        same = self.names[0] == self.names[1]
        found: Exact = np.diagonal(self.divergence, axis1=1, axis2=2)
        return found if same else None

    @property
    def overall(self) -> Exact:
        """(text,): the one number, mean over the heads of A and those of B of the divergence from the nearest."""
        return (mean(self.to_nearest(0), 1) + mean(self.to_nearest(1), 1)) / 2


def mean(values: Exact, axis: int) -> Exact:
    """The mean of those that are numbers; NaN if there are none."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    total = np.where(there, values, 0).sum(axis)
    found: Exact = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return found


def deviation(values: Exact, axis: int) -> Exact:
    """The standard deviation of those that are numbers (n - 1); NaN of fewer than two."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    apart = np.where(there, values - np.expand_dims(mean(values, axis), axis), 0)
    squares = (apart**2).sum(axis)
    found: Exact = np.sqrt(np.divide(squares, count - 1, out=np.full(count.shape, np.nan), where=count > 1))
    return found
