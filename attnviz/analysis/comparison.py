"""Two captures compared: on the words that both have, on the cells that both see, head by head.

The tokens of two models differ, so both maps are made maps of words first. Words that only one of
the captures has are left out of both. What is left are two maps with the same queries and keys,
whose rows can be compared.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.divergence import measure_divergences, restrict_rows
from attnviz.analysis.statistics import average_defined
from attnviz.analysis.words import (
    Grouping,
    WordSpan,
    coarsen_spans,
    find_word_spans,
    group_tokens,
    merge_tokens,
    select_texts,
)
from attnviz.record import (
    AttentionMap,
    Capture,
    Doubles,
    Token,
    Visible,
    Weights,
)

MOST_QUERIES = 128  # whose rows are compared; of a longer text so many, evenly spread
FEWEST_QUERIES = 16
MOST_CELLS = 1 << 31  # of all pairs of heads, which take half a minute
HeadName: TypeAlias = tuple[int, int | str]  # a head, by its layer and number


class SharedWords(NamedTuple):
    """The tokens of one side as words, of which some are in both."""

    grouping: Grouping
    positions: list[int]
    """The positions of the common words among all words of this side."""

    @property
    def words(self) -> tuple[Token, ...]:
        """The common words."""
        words = self.grouping.words
        return tuple(words[position] for position in self.positions)


@dataclass(frozen=True, eq=False)
class Side:
    """One of two captures, on the words that both have."""

    capture: Capture
    """The whole capture."""
    maps: Sequence[AttentionMap]
    """The maps of the capture that are compared."""
    shared: tuple[SharedWords, SharedWords]
    """Its queries and its keys."""
    rows: Sequence[int]
    """The common queries that are measured: all, or of a long text some, evenly spread."""
    weights: Weights
    """(head, row, key) of these. Rows do not sum to 1: the weight on other keys is not here."""
    visible: Visible
    """(head, row, key)."""
    outside: float
    """Share of the weight of these queries that is on no common key."""

    @property
    def names(self) -> tuple[HeadName, ...]:
        """The heads that are compared."""
        return list_heads_of_maps(self.maps)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of these heads."""
        layers = [layer for layer, _ in self.names]
        return tuple(dict.fromkeys(layers))

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
        """The number of keys that are words, common or not."""
        _, keys = self.shared
        return sum(map(is_word, keys.grouping.words))

    @property
    def common(self) -> int:
        """The number of keys that are words of both."""
        return sum(map(is_word, self.keys))

    @property
    def seen(self) -> Visible:
        """A mask (row, key) of the cells that any head may attend to."""
        cells: Visible = np.logical_or.reduce(self.visible, axis=0)
        return cells

    def unseen(self, other: "Side") -> float:
        """Return the share of weight on common words where no head of the other side may attend."""
        total = self.weights.sum(dtype=np.float64)
        if not total:
            return 0.0
        unseen_weights = self.weights[:, ~other.seen]
        unseen = unseen_weights.sum(dtype=np.float64)
        return float(unseen / total)

    def head(self, name: HeadName) -> tuple[Weights, Visible]:
        """Return the weights of one head between all common words, and their mask.

        name: the layer and the number of the head. Weights and mask are (query, key); the mask is
        True where the query may attend. Raises KeyError for a head that is not there.
        """
        layer, head = name
        for each in self.maps:
            if layer in each.layers and head in each.heads:
                layer_index = each.layers.index(layer)
                head_index = each.heads.index(head)
                one_head = each.pick_heads([layer_index], [head_index])
                all_rows = range(len(self.queries))
                words = share_attention(one_head, self.shared, all_rows).common
                weights = require_kept_weights(words.weights)
                visible = words.visible[0, 0]
                return weights[0, 0], visible
        raise KeyError(name)

    def mean(self, names: Sequence[HeadName]) -> tuple[Weights, Visible]:
        """Return the mean of the weights of some heads between all common words, and their mask.

        names: the layer and the number of each head. Both are (query, key); the mask is True where
        any of the heads may attend.
        """
        total = np.zeros(())
        seen = np.zeros((), bool)
        for name in names:
            weights, visible = self.head(name)
            total = total + weights.astype(np.float64)
            seen = seen | visible
        mean = total / len(names)
        return mean.astype(np.float32), seen


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two captures, A and B."""

    a: Side
    b: Side

    @cached_property
    def divergence(self) -> Doubles:
        """(A, B): Jensen-Shannon divergence of each pair of heads in nats, mean over queries.

        A pair is of a head of A and a head of B. NaN if no query can be compared.
        """
        a, b = self.a, self.b
        return measure_divergences(a.weights, b.weights, a.visible, b.visible)

    def pair(
        self,
        heads_a: Sequence[HeadName],
        heads_b: Sequence[HeadName],
    ) -> tuple[Weights, Weights, Visible]:
        """Return the mean of some heads of A, that of some of B, and the cells that both see.

        heads_a, heads_b: the layer and the number of each head. All three arrays are (query, key),
        between the words that both captures have. On the cells that both see, the rows of both
        means are made to sum to 1 again.
        """
        mean_a, seen_a = self.a.mean(heads_a)
        mean_b, seen_b = self.b.mean(heads_b)
        seen: Visible = seen_a & seen_b
        return restrict_rows(mean_a, seen), restrict_rows(mean_b, seen), seen


def compare_on_words(a: Capture, b: Capture) -> Comparison:
    """Compare captures of one text, or of texts with words in common.

    Each capture is compared by its first map and those of the same kind and tokens. Words are in
    both captures if they stand in the same place of the same text; of different texts, if they are
    the same in the same order (as a text comparison finds them). Special tokens are in both if they
    have the same name.

    Raises ValueError if there is no word in common, a map has no weights, or nothing is left that
    both see.
    """
    maps_a = select_like_first(a.maps)
    maps_b = select_like_first(b.maps)
    first_a, first_b = maps_a[0], maps_b[0]
    query_texts_a, key_texts_a = select_texts(a, first_a)
    query_texts_b, key_texts_b = select_texts(b, first_b)
    queries_a, queries_b = share_words(
        first_a.queries,
        first_b.queries,
        query_texts_a,
        query_texts_b,
    )
    keys_a, keys_b = share_words(first_a.keys, first_b.keys, key_texts_a, key_texts_b)
    heads_a = list_heads_of_maps(maps_a)
    heads_b = list_heads_of_maps(maps_b)
    head_pairs = len(heads_a) * len(heads_b)
    cells_per_query = head_pairs * len(keys_a.positions)
    rows = choose_queries(len(queries_a.positions), cells_per_query)
    side_a = make_side(a, maps_a, (queries_a, keys_a), rows)
    side_b = make_side(b, maps_b, (queries_b, keys_b), rows)
    seen_by_both = side_a.seen & side_b.seen
    if not seen_by_both.any():
        raise ValueError("no query of one sees a key that the same query of the other sees")
    return Comparison(side_a, side_b)


def choose_queries(count: int, cells_per_query: int) -> list[int]:
    """Choose which of ``count`` queries are measured: all, or some that are evenly spread.

    cells_per_query: the cells to compute for one query in all pairs of heads. The more there are,
    the fewer queries are chosen, but no fewer than FEWEST_QUERIES unless ``count`` is smaller.
    Returns the positions of the chosen queries.
    """
    affordable = max(FEWEST_QUERIES, MOST_CELLS // cells_per_query)
    chosen_count = min(count, MOST_QUERIES, affordable)
    positions = np.linspace(0, count - 1, chosen_count)
    rows: list[int] = positions.astype(int).tolist()
    return rows


def list_heads_of_maps(maps: Sequence[AttentionMap]) -> tuple[HeadName, ...]:
    """List the heads of maps, each as its layer and its number."""
    names: list[HeadName] = []
    for each in maps:
        for layer in each.layers:
            names += [(layer, head) for head in each.heads]
    return tuple(names)


def select_like_first(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Select the first map, and those of the same kind that show the same tokens."""
    first = maps[0]
    tokens = first.kind, first.queries, first.keys
    return [each for each in maps if (each.kind, each.queries, each.keys) == tokens]


def share_words(
    tokens_a: Sequence[Token],
    tokens_b: Sequence[Token],
    texts_a: Sequence[str],
    texts_b: Sequence[str],
) -> tuple[SharedWords, SharedWords]:
    """Group the tokens of two captures, A and B, by words, and find the words that both have.

    texts_a, texts_b: the text of each segment of A and of B. If they are equal, words are the same
    where they stand in the same place, else where they say the same in the same order. Returns for
    each side its words and the positions of those that are in both. Raises ValueError if no word is
    in both.
    """
    is_one_text = texts_a == texts_b
    # Words of one text are also joined where a token of the other side overlaps two of them.
    spans_a = find_coarse_words(texts_a, tokens_b if is_one_text else ())
    spans_b = find_coarse_words(texts_b, tokens_a if is_one_text else ())
    words_a = group_tokens(tokens_a, texts_a, spans_a)
    words_b = group_tokens(tokens_b, texts_b, spans_b)
    identities_a = list(identify_words(words_a.words, by_position=is_one_text))
    identities_b = list(identify_words(words_b.words, by_position=is_one_text))
    matcher = SequenceMatcher(None, identities_a, identities_b, autojunk=False)
    positions_a: list[int] = []
    positions_b: list[int] = []
    for block in matcher.get_matching_blocks():
        positions_a += range(block.a, block.a + block.size)
        positions_b += range(block.b, block.b + block.size)
    common_words = [words_a.words[position] for position in positions_a]
    if not any(map(is_word, common_words)):
        raise ValueError("they have no word in common")
    return SharedWords(words_a, positions_a), SharedWords(words_b, positions_b)


def find_coarse_words(texts: Sequence[str], tokens: Sequence[Token]) -> list[tuple[WordSpan, ...]]:
    """Find the words of each text, and join those that one token of another model overlaps.

    tokens: the tokens of the other model, which stand in these texts.
    """
    words = []
    for segment, text in enumerate(texts):
        tokens_of_text = [token for token in tokens if token.segment == segment]
        words.append(coarsen_spans(find_word_spans(text), tokens_of_text))
    return words


def is_word(token: Token) -> bool:
    """Return whether a unit of a text is a word: no special token, white space or stray byte."""
    if token.special or not token.text.strip():
        return False
    return token.start < token.end


def identify_words(words: Sequence[Token], *, by_position: bool) -> Iterator[tuple[object, ...]]:
    """Yield for each word a value to compare it by: words with equal values are the same.

    by_position: words are the same if they stand in the same place, else if they say the same.
    Special tokens are the same by name and number: the second [SEP] of A is the second of B.
    """
    counts = Counter[str]()
    for word in words:
        if not is_word(word):
            counts[word.text] += 1
            yield word.text, counts[word.text]
        elif by_position:
            yield word.segment, word.start, word.end
        else:
            yield (word.text.casefold(),)


def make_side(
    capture: Capture,
    maps: Sequence[AttentionMap],
    shared: tuple[SharedWords, SharedWords],
    rows: Sequence[int],
) -> Side:
    """Make one side of a comparison: the attention of one capture between the common words.

    maps: the maps of the capture that are compared. shared: their queries and their keys, grouped
    by words, with the positions of the words that both captures have. rows: which of the common
    queries are measured. Raises ValueError if a map has no weights.
    """
    layers: list[SharedAttention] = []
    for attention_map in maps:
        for index in range(len(attention_map.layers)):
            all_heads = range(len(attention_map.heads))
            layer = attention_map.pick_heads([index], all_heads)
            layers.append(share_attention(layer, shared, rows))
    weights = [require_kept_weights(layer.common.weights)[0] for layer in layers]
    visible = [layer.common.visible[0] for layer in layers]
    total = sum(layer.total for layer in layers)
    weight_outside = sum(layer.outside for layer in layers)
    outside = weight_outside / total if total else 0.0
    all_weights = np.concatenate(weights)
    all_visible = np.concatenate(visible)
    return Side(
        capture=capture,
        maps=maps,
        shared=shared,
        rows=rows,
        weights=all_weights,
        visible=all_visible,
        outside=outside,
    )


class SharedAttention(NamedTuple):
    """The attention between some of the common queries and all common keys."""

    common: AttentionMap
    total: float
    """The sum of the weights of these queries on any key, common or not."""
    outside: float
    """The sum of their weights on keys that are not common: exactly 0 if there are none."""


def share_attention(
    attention_map: AttentionMap,
    shared: tuple[SharedWords, SharedWords],
    rows: Sequence[int],
) -> SharedAttention:
    """Merge a map to words, and keep some of the common queries and all common keys of it.

    shared: the queries and the keys of the map, grouped by words, with the positions of the words
    that both captures have. rows: which of the common queries are kept, by their number among
    these. Returns the map of words, with the sums of the weights of these queries on all keys and
    on keys that are not common. Raises ValueError if the map has no weights.
    """
    queries, keys = shared
    positions = [queries.positions[row] for row in rows]
    members = [queries.grouping.members[position] for position in positions]
    # The tokens of these queries, as indices in the map.
    tokens = sorted(chain.from_iterable(members))
    new_positions = {token: i for i, token in enumerate(tokens)}
    new_members = [tuple(new_positions[token] for token in word) for word in members]
    words = tuple(queries.words[row] for row in rows)
    # The words again, as indices in the map of these rows alone.
    grouping = Grouping(words, tuple(new_members))
    all_tokens = range(len(attention_map.keys))
    token_rows = attention_map.window(tokens, all_tokens)
    words_of_all_keys = merge_tokens(token_rows, grouping, keys.grouping)
    weights = require_kept_weights(words_of_all_keys.weights)
    all_keys = np.arange(weights.shape[-1])
    other_keys = np.delete(all_keys, keys.positions)
    total = float(weights.sum(dtype=np.float64))
    weights_outside = weights[..., other_keys]
    outside = float(weights_outside.sum(dtype=np.float64))
    all_rows = range(len(rows))
    common = words_of_all_keys.window(all_rows, keys.positions)
    return SharedAttention(common, total, outside)


def require_kept_weights(weights: Weights | None) -> Weights:
    """Return weights. Raises ValueError if there are none."""
    if weights is None:
        raise ValueError("this capture holds no weights, which a comparison needs: keep weights")
    return weights


@dataclass(frozen=True, eq=False)
class Distances:
    """How far heads of A and B are from each other over one text or several."""

    names: tuple[tuple[HeadName, ...], tuple[HeadName, ...]]
    """The heads of A, and those of B."""
    divergence: Doubles
    """(text, A, B), in nats."""

    @classmethod
    def over(cls, comparisons: Iterable[Comparison]) -> "Distances":
        """Measure the distances in comparisons of two models, one for each text.

        Raises ValueError if the heads that are compared are not the same in each text.
        """
        names = []
        divergences = []
        for each in comparisons:
            names.append((each.a.names, each.b.names))
            divergences.append(each.divergence)
        if any(other != names[0] for other in names):
            raise ValueError("the heads that are compared are not the same in each text")
        return cls(names[0], np.stack(divergences))

    @cached_property
    def mean(self) -> Doubles:
        """(A, B): the mean over the texts for which the divergence is defined."""
        return average_defined(self.divergence, 0)

    def nearest(self, side: int) -> list[int | None]:
        """Return for each head of one side the index of the nearest head of the other side.

        side: 0 for each head of A, 1 for each of B. The nearest is that of the least mean
        divergence over the texts; None where no divergence is defined.
        """
        distances = self.mean if side == 0 else self.mean.T
        indices: list[int | None] = []
        for row in distances:
            is_undefined = np.isnan(row).all()
            indices.append(None if is_undefined else int(np.nanargmin(row)))
        return indices

    def to_nearest(self, side: int) -> Doubles:
        """Return the divergence of each head of one side from its nearest, (text, head).

        side: 0 for each head of A, 1 for each of B. Its nearest is the head of the other side with
        the least mean divergence over all texts. NaN where no divergence of a head is defined.
        """
        distances = self.divergence if side == 0 else self.divergence.swapaxes(1, 2)
        undefined = np.full(len(distances), np.nan)
        columns = []
        for head, other in enumerate(self.nearest(side)):
            column = undefined if other is None else distances[:, head, other]
            columns.append(column)
        return np.stack(columns, axis=1)

    @property
    def moved(self) -> Doubles | None:
        """(text, head): the divergence of each head of A from the head of B of the same number.

        It is in nats, and the number includes the layer. None for models of different heads.
        """
        if self.names[0] != self.names[1]:
            return None
        distances: Doubles = np.diagonal(self.divergence, axis1=1, axis2=2)
        return distances

    @property
    def overall(self) -> Doubles:
        """(text,): the divergence from the nearest head in nats, mean over the heads of A and B.

        It is the mean of two means: that over the heads of A, and that over the heads of B.
        """
        mean_a = average_defined(self.to_nearest(0), 1)
        mean_b = average_defined(self.to_nearest(1), 1)
        return (mean_a + mean_b) / 2
