"""What a head does with its weights, in numbers that can be compared: one for each head of a map.

Every number is a mean over queries that have a choice: a query that sees one key gives it
everything by force, and says nothing. Where no query is left, the number is undefined, NaN. Masked
cells count for nothing, not even as zeros.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.numerics import compute_row_entropies, normalise_rows
from attnviz.analysis.statistics import average_defined, compute_deviation
from attnviz.record import (
    ATTENTION,
    AttentionMap,
    Doubles,
    Statistics,
    Visible,
    Weights,
)

Measures: TypeAlias = dict[str, Doubles]
"""The columns of heads by name, NaN where undefined."""
Integers: TypeAlias = npt.NDArray[np.int64]
Band: TypeAlias = tuple[Integers, Integers]
"""Queries, and for each of them a key."""

NEAR = 2  # tokens that locality reaches, to both sides
MOST = 3  # keys that the coverage of the strongest counts
TINY = np.finfo(float).tiny
ROUNDING = 1e-4  # nats that the entropy of one key can have where it was computed block by block
NO_BAND: Band = np.zeros(0, np.int64), np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Positions:
    """Where the queries and keys of a map stand."""

    steps: Integers | None
    """(query, key): the position of the key less that of the query; None between two texts."""
    resting: Visible
    """(key,): True for the keys that heads rest on."""
    bands: Mapping[int, Band]
    """By steps, the queries that have a key so many tokens on, and those keys.

    For one token before, the second token is left out: before it is the first, where sinks are.
    """


def find_positions(attention_map: AttentionMap) -> Positions:
    """Find where the queries and keys of a map stand in the text.

    The result has three parts: the steps from each query to each key, in tokens; the keys that
    heads rest on, that is, special tokens and the first token of the text; and the bands, that is,
    the pairs of a query and a key that are -1, 0 or 1 tokens apart. The query at position 1 is left
    out of the band of -1, since the token before it is the first, which often soaks up attention.
    Between two texts there are neither steps nor bands.
    """
    resting = find_resting_keys(attention_map)
    if not is_one_text(attention_map):
        return Positions(None, resting, {})
    query_positions = np.array(attention_map.query_places)
    key_positions = np.array(attention_map.key_places)
    steps = key_positions - query_positions[:, None]  # (query, key)
    bands = {step: find_band(steps, step) for step in (-1, 0, 1)}
    queries_before, keys_before = bands[-1]
    is_later = query_positions[queries_before] > 1
    later_queries = queries_before[is_later]
    bands[-1] = later_queries, keys_before[is_later]
    return Positions(steps, resting, bands)


def find_band(steps: Integers, step: int) -> Band:
    """Find the pairs of a query and a key that are a given number of tokens apart.

    steps: (query, key), the position of each key less that of the query. step: the number to look
    for; -1 is the token before the query. Returns two arrays of one length, the indices of the
    queries and those of their keys.
    """
    queries, keys = np.nonzero(steps == step)
    return queries, keys


def is_one_text(attention_map: AttentionMap) -> bool:
    """Return whether the queries of a map stand among its keys, as positions in one text.

    They never do in cross-attention. Otherwise each query must be one of the keys, that is, the
    same token at the same position.
    """
    if attention_map.kind == "cross":
        return False
    queries = zip(attention_map.query_places, attention_map.queries, strict=True)
    keys = zip(attention_map.key_places, attention_map.keys, strict=True)
    return set(queries) <= set(keys)


def find_resting_keys(attention_map: AttentionMap) -> Visible:
    """Find the keys that heads rest on: special tokens, and the first token of the whole text.

    Returns a mask (key,), True for these keys.
    """
    keys = zip(attention_map.keys, attention_map.key_places, strict=True)
    return np.array([token.special or position == 0 for token, position in keys])


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of one head. Its rows sum to 1, or to 0 where a query sees nothing."""

    weights: Doubles
    """(query, key), as everything here that has no other shape."""
    visible: Visible
    positions: Positions

    @cached_property
    def seen(self) -> Integers:
        """The number of keys that each query may attend to, (query,)."""
        return np.asarray(self.visible.sum(-1))

    @cached_property
    def choosing(self) -> Visible:
        """A mask (query,) of queries that have a choice: they see several keys, and give weight."""
        sees_several = self.seen > 1
        return sees_several & self.weights.any(-1)

    @cached_property
    def entropies(self) -> Doubles:
        """The entropy of each query in nats, (query,)."""
        return compute_row_entropies(self.weights)

    @cached_property
    def rising(self) -> Doubles:
        """Weights of each query in rising order, (query, rank), masked cells first, as zeros."""
        narrow = self.weights.astype(np.float32)  # sorts twice as fast
        rising: Doubles = np.sort(narrow, axis=-1).astype(np.float64)
        return rising

    @cached_property
    def rest(self) -> "HeadWeights":
        """The head without special and first tokens among its keys; each row sums to 1 again.

        It has no bands, that is, no pairs of neighbouring tokens, since they are not measured on
        it.
        """
        kept = ~self.positions.resting
        steps = self.positions.steps
        steps_kept = None if steps is None else steps[:, kept]
        positions = Positions(steps_kept, self.positions.resting[kept], {})
        weights = normalise_rows(self.weights[:, kept])
        return HeadWeights(weights, self.visible[:, kept], positions)


def sum_rows(weights: Doubles, values: npt.NDArray[Any]) -> Doubles:
    """Sum weights times values over the keys of each query: two (query, key) arrays to (query,)."""
    sums: Doubles = np.einsum("qk,qk->q", weights, values)
    return sums


def mean_where(values: Doubles, counted: Visible) -> float:
    """Return the mean of the values that count; NaN if none does."""
    if not counted.any():
        return np.nan
    return float(values[counted].mean())


# One function a column; ``COLUMNS`` says what each is, and who says so


def measure_entropy(head: HeadWeights) -> float:
    """Measure the mean entropy of a head in nats."""
    return mean_where(head.entropies, head.choosing)


def measure_span(head: HeadWeights) -> float:
    """Measure the mean of exp(entropy) in tokens, which is not exp of the mean."""
    return mean_where(np.exp(head.entropies), head.choosing)


def measure_normalised(head: HeadWeights) -> float:
    """Measure the mean entropy of queries as a share of ln(keys seen), the largest possible."""
    largest_entropies = np.log(np.maximum(head.seen, 2))
    return mean_where(head.entropies / largest_entropies, head.choosing)


def measure_distance(head: HeadWeights) -> float:
    """Measure the mean distance, in tokens, of the keys that the queries of a head attend to.

    For each query it is the sum over the keys of weight times |key - query|, these being positions
    in the text. The mean is over the queries that may attend to several keys. NaN between two
    texts.
    """
    steps = head.positions.steps
    if steps is None:
        return np.nan
    distances = sum_rows(head.weights, np.abs(steps))
    return mean_where(distances, head.choosing)


def measure_distance_rest(head: HeadWeights) -> float:
    """Measure the mean distance in tokens without special and first keys, which may be far away."""
    return measure_distance(head.rest)


def measure_sink(head: HeadWeights) -> float:
    """Measure the strongest sink of a head: the mean weight that its favourite resting key gets.

    Resting keys are special tokens and the first token of the text. The mean is over the queries
    that may attend to several keys, and the key is one for all of them. NaN if there is no such
    query or key.
    """
    choosing_weights = head.weights[head.choosing]
    on_resting_keys = choosing_weights[:, head.positions.resting]
    received = on_resting_keys.sum(0)
    if not received.size or not head.choosing.any():
        return np.nan
    mean_received = received.max() / head.choosing.sum()
    return float(mean_received)


def measure_band(head: HeadWeights, step: int) -> float:
    """Measure the mean weight of queries on the key that is ``step`` tokens after them.

    step: -1 for the token before, 0 for the query itself, 1 for the token after. Only queries that
    may attend to this key and to another one are counted; NaN if there are none.
    """
    queries, keys = head.positions.bands.get(step, NO_BAND)
    sees_key = head.visible[queries, keys]
    counted = sees_key & head.choosing[queries]
    return mean_where(head.weights[queries, keys], counted)


def measure_locality(head: HeadWeights) -> float:
    """Measure the mean weight of queries on keys that are at most NEAR tokens away.

    Queries that may attend to nothing farther away have no choice, and are left out. NaN between
    two texts.
    """
    steps = head.positions.steps
    if steps is None:
        return np.nan
    near = np.abs(steps) <= NEAR
    sees_farther = (head.visible & ~near).any(-1)
    near_weights = sum_rows(head.weights, near)
    return mean_where(near_weights, head.choosing & sees_farther)


def measure_gini(head: HeadWeights) -> float:
    """Measure how unequal the weights of a query are: the Gini coefficient, mean over queries.

    For each query it is the sum over the keys that it sees of (2 rank - seen - 1) weight, divided
    by seen and by the sum of weights, with seen the number of these keys, and rank 1 for the
    smallest weight. Equal weights give 0.
    """
    key_count = head.weights.shape[-1]
    ranks = np.arange(1, key_count + 1)
    by_rank = 2 * (head.rising @ ranks)
    # Masked cells have the first ranks.
    masked = key_count - head.seen
    sums = head.rising.sum(-1)
    middle = 2 * masked + head.seen + 1  # doubled, as are the ranks
    inequality = by_rank - middle * sums
    scale = np.maximum(head.seen * sums, TINY)
    return mean_where(inequality / scale, head.choosing)


def measure_strongest(head: HeadWeights) -> float:
    """Measure the mean weight that queries give to their MOST strongest keys together.

    A query that may attend to no more keys gives these everything by force, and is left out.
    """
    strongest = head.rising[:, -MOST:]
    has_others = head.seen > MOST
    return mean_where(strongest.sum(-1), head.choosing & has_others)


class Column(NamedTuple):
    """A number of each head."""

    name: str
    heading: str
    """Short, for a screen."""
    definition: str
    source: str
    """The paper that it is from, or ``descriptive``."""
    unit: str
    """``nats``, ``tokens`` or ``share``."""
    measure: Callable[[HeadWeights], float]


CLARK = "Clark et al. 2019"
VIG = "Vig & Belinkov 2019"
DESCRIPTIVE = "descriptive"
COLUMN_LIST = (
    Column("entropy", "entr", "-sum of w ln w over the keys", CLARK, "nats", measure_entropy),
    Column(
        "span",
        "span",
        "exp(entropy) of each query: as many keys, all alike",
        DESCRIPTIVE,
        "tokens",
        measure_span,
    ),
    Column(
        "normalised",
        "norm",
        "entropy / ln(number of keys seen); 1 is uniform",
        DESCRIPTIVE,
        "share",
        measure_normalised,
    ),
    Column("distance", "dist", "sum of w |query - key|", VIG, "tokens", measure_distance),
    Column(
        "distance_rest",
        "rest",
        "distance without special and first tokens, the rest made to sum to 1",
        f"after {VIG}",
        "tokens",
        measure_distance_rest,
    ),
    Column(
        "sink",
        "sink",
        "most that one special or first token gets",
        f"{CLARK}; Xiao et al. 2023",
        "share",
        measure_sink,
    ),
    Column(
        "previous",
        "prev",
        "w on the token before, from the third token on",
        CLARK,
        "share",
        partial(measure_band, step=-1),
    ),
    Column("self", "self", "w on the token itself", CLARK, "share", partial(measure_band, step=0)),
    Column(
        "next",
        "next",
        "w on the token after, where it is seen",
        CLARK,
        "share",
        partial(measure_band, step=1),
    ),
    Column(
        "locality",
        "near",
        f"w within {NEAR} tokens, of queries that see farther ones",
        DESCRIPTIVE,
        "share",
        measure_locality,
    ),
    Column(
        "gini",
        "gini",
        "inequality of w over the keys seen; 0 is uniform",
        "Hurley & Rickard 2009",
        "share",
        measure_gini,
    ),
    Column(
        f"top{MOST}",
        f"top{MOST}",
        f"w of the {MOST} strongest keys, of queries that see more",
        DESCRIPTIVE,
        "share",
        measure_strongest,
    ),
)
COLUMNS: dict[str, Column] = {column.name: column for column in COLUMN_LIST}


def measure_map(attention_map: AttentionMap) -> Measures:
    """Measure each head of a map in all the ways that ``COLUMNS`` lists, such as entropy or sink.

    Returns for each name of a measure the numbers (layer, head) in float64, NaN where undefined.
    Distances and weights on neighbours are undefined between two texts; in a map of words they are
    counted in words. Rows of numbers from elsewhere, or of maxima over heads, are made to sum to 1
    first. For a map without weights, there is only what its statistics tell exactly.
    """
    shape = len(attention_map.layers), len(attention_map.heads)
    measures = {name: np.full(shape, np.nan) for name in COLUMNS}
    if attention_map.weights is None:
        if attention_map.statistics:
            measures |= read_statistics(attention_map, attention_map.statistics)
        return measures
    positions = find_positions(attention_map)
    for index in np.ndindex(shape):
        weights = compute_exact_shares(attention_map, attention_map.weights[index])
        visible = attention_map.visible[index]
        head = HeadWeights(weights, visible, positions)
        for name, column in COLUMNS.items():
            measures[name][index] = column.measure(head)
    return measures


def measure(attention_map: AttentionMap) -> Measures:
    """Measure a map by ``measure_map``, which is the new name; this goes with the next version."""
    message = "measure goes with the next version: write measure_map(attention_map)"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return measure_map(attention_map)


def compute_exact_shares(attention_map: AttentionMap, weights: Weights) -> Doubles:
    """Convert weights (query, key) of one head of a map to float64, each row summing to 1.

    Rows of attention do so already, and stay as they are. Rows of other numbers, and of maxima over
    heads, are divided by their sums.
    """
    exact = weights.astype(np.float64)
    sums_to_one = attention_map.method == ATTENTION and "max" not in attention_map.heads
    return exact if sums_to_one else normalise_rows(exact)


def read_statistics(attention_map: AttentionMap, statistics: Statistics) -> Measures:
    """Compute the measures of heads, (layer, head) by name, that stored statistics tell exactly.

    Statistics do not tell which keys a query sees, but a query has a choice where some head spreads
    its weight, so that its entropy is not 0. If any query but the first seems to have no choice,
    only the sink is known. Stored distance and diagonal are means over all queries. The first
    query, if it has no choice, sees only itself; it is taken out of these means.
    """
    if not statistics.received.any() or "max" in attention_map.heads:
        return {}
    measures: Measures = {}
    resting = find_resting_keys(attention_map)
    if resting.any():
        received = statistics.received[..., resting]
        largest = received.max(-1)
        measures["sink"] = largest.astype(np.float64)
    spreads = statistics.entropy > ROUNDING  # (layer, head, query)
    choosing = np.asarray(spreads.any((0, 1)))  # (query,)
    if not choosing[1:].all():
        return measures
    if "mean" not in attention_map.heads:  # the mean of entropies is not the entropy of the mean
        entropies = statistics.entropy[..., choosing]  # (layer, head, query)
        entropies = entropies.astype(np.float64)
        spans = np.exp(entropies)
        measures["entropy"] = entropies.mean(-1)
        measures["span"] = spans.mean(-1)
    count = len(choosing)
    count_choosing = int(choosing.sum())
    distance, diagonal = statistics.distance, statistics.diagonal
    if distance is not None and diagonal is not None and is_one_text(attention_map):
        # One query at most, the first.
        without_choice = count - count_choosing
        distance_sums = distance.astype(np.float64) * count
        measures["distance"] = distance_sums / count_choosing
        diagonal_sums = diagonal.astype(np.float64) * count
        measures["self"] = (diagonal_sums - without_choice) / count_choosing
    return measures


class MeasureSummary(NamedTuple):
    """The columns of heads over several texts, each an array a name."""

    mean: Measures
    sd: Measures
    """Of a sample, n - 1 in the divisor; NaN of fewer than two texts."""
    n: Measures
    """Texts for which the number is defined."""


def summarise_measures(measures_of_texts: Sequence[Mapping[str, Doubles]]) -> MeasureSummary:
    """Compute the mean and the deviation of each measure over several texts, and count the texts.

    measures_of_texts: for each text the numbers (head,) by the name of their measure. A text for
    which a number is NaN is not counted for it.
    """
    summary = MeasureSummary({}, {}, {})
    for name in measures_of_texts[0]:
        values = np.stack([text[name] for text in measures_of_texts])  # (text, head)
        summary.mean[name] = average_defined(values, 0)
        summary.sd[name] = compute_deviation(values, 0)
        counts = np.isfinite(values).sum(0)
        summary.n[name] = counts.astype(np.float64)
    return summary


def divide_where(dividend: Doubles, divisor: Doubles) -> Doubles:
    """Divide two arrays of one shape; the quotient is NaN where the divisor is not above 0."""
    quotient = np.full_like(dividend, np.nan)
    return np.divide(dividend, divisor, out=quotient, where=divisor > 0)
