"""What a head does with its weights, in numbers that can be compared: one for each head of a map.

Every number is a mean over queries that have a choice: a query that sees one key gives it everything by force, and says
nothing. Where no query is left, the number is undefined, NaN. Masked cells count for nothing, not even as zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.statistics import deviation_of, mean_of
from attnviz.record import ATTENTION, AttentionMap, Doubles, Statistics, Visible, Weights

Measures: TypeAlias = dict[str, Doubles]
NEAR = 2  # tokens that locality reaches, to both sides
MOST = 3  # keys that the coverage of the strongest counts
ROUNDING = 1e-4  # nats that the entropy of one key can have where it was computed block by block


@dataclass(frozen=True, eq=False)
class Sides:
    """Where the queries and keys of a map stand."""

    steps: npt.NDArray[np.int64] | None
    """(query, key): the place of the key less that of the query. None where they are of two texts."""
    parked: Visible
    """(key,): whether it is one that heads rest on."""
    bands: Mapping[int, tuple[Any, Any]]
    """The queries that have a key so many steps on, and those keys; each but the first two tokens for the one before.

    The token before the second is the first, where sinks are.
    """

    @classmethod
    def of(cls, part: AttentionMap) -> "Sides":
        """Those of a map."""
        queries, keys = np.array(part.query_places), np.array(part.key_places)
        steps = keys - queries[:, None] if is_one_text(part) else None
        found: dict[int, Any] = {} if steps is None else {step: np.nonzero(steps == step) for step in (-1, 0, 1)}
        if found:
            later = queries[found[-1][0]] > 1
            found[-1] = found[-1][0][later], found[-1][1][later]
        return cls(steps, parked(part), found)


def is_one_text(part: AttentionMap) -> bool:
    """Whether the queries of a map stand among its keys, so that the places of both mean the same."""
    queries = zip(part.query_places, part.queries, strict=True)
    return part.kind != "cross" and {*queries} <= {*zip(part.key_places, part.keys, strict=True)}


def parked(part: AttentionMap) -> Visible:
    """Which keys heads rest on: special tokens, and the first of the whole text, (key,)."""
    return np.array([token.special or place == 0 for token, place in zip(part.keys, part.key_places, strict=True)])


@dataclass(frozen=True, eq=False)
class Matrix:
    """One head. Its rows sum to 1, or to 0 where a query sees nothing."""

    weights: Doubles
    """(query, key), as everything here that has no other shape."""
    visible: Visible
    sides: Sides

    @cached_property
    def seen(self) -> npt.NDArray[np.int64]:
        """How many keys each query sees, (query,)."""
        return np.asarray(self.visible.sum(-1))

    @cached_property
    def choosing(self) -> Visible:
        """Which queries have a choice, (query,)."""
        return (self.seen > 1) & self.weights.any(-1)

    @cached_property
    def entropies(self) -> Doubles:
        """In nats, (query,)."""
        logs = np.log(self.weights, out=np.zeros_like(self.weights), where=self.weights > 0)  # 0 log 0 = 0
        return 0 - rowwise(self.weights, logs)

    @cached_property
    def rising(self) -> Doubles:
        """The weights of each query from the smallest on; masked cells come first, as zeros."""
        found: Doubles = np.sort(self.weights.astype(np.float32), axis=-1).astype(np.float64)  # twice as fast
        return found

    @cached_property
    def rest(self) -> "Matrix":
        """The same without the keys that heads rest on, its rows made to sum to 1 again."""
        left = ~self.sides.parked
        steps = None if self.sides.steps is None else self.sides.steps[:, left]
        return Matrix(
            shared_out(self.weights[:, left]), self.visible[:, left], Sides(steps, self.sides.parked[left], {})
        )


def shared_out(weights: Doubles) -> Doubles:
    """Rows made to sum to 1; those of nothing stay so."""
    sums = weights.sum(-1, keepdims=True)
    found: Doubles = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    return found


def rowwise(weights: Doubles, values: npt.NDArray[Any]) -> Doubles:
    """The sum of weights times values of each query, (query,)."""
    found: Doubles = np.einsum("qk,qk->q", weights, values)
    return found


def mean(values: Doubles, counted: Visible) -> float:
    """The mean of those that count; NaN if none does."""
    return float(values[counted].mean()) if counted.any() else np.nan


def entropy(head: Matrix) -> float:
    """See ``COLUMNS``, as for each of the functions below."""
    return mean(head.entropies, head.choosing)


def span(head: Matrix) -> float:
    """The mean of exp(entropy), which is not exp of the mean."""
    return mean(np.exp(head.entropies), head.choosing)


def normalised(head: Matrix) -> float:
    """Queries that see few keys have less to spread over."""
    return mean(head.entropies / np.log(np.maximum(head.seen, 2)), head.choosing)


def distance(head: Matrix) -> float:
    """In tokens."""
    if head.sides.steps is None:
        return np.nan
    return mean(rowwise(head.weights, np.abs(head.sides.steps)), head.choosing)


def distance_rest(head: Matrix) -> float:
    """A sink is as far away as the text is long."""
    return distance(head.rest)


def sink(head: Matrix) -> float:
    """One token, the same for all queries."""
    received = head.weights[head.choosing][:, head.sides.parked].sum(0)
    return float(received.max() / head.choosing.sum()) if received.size and head.choosing.any() else np.nan


def band(head: Matrix, step: int) -> float:
    """The mean weight on the key so many steps on, over the queries that see it and another."""
    rows, columns = head.sides.bands.get(step, (np.zeros(0, int),) * 2)
    return mean(head.weights[rows, columns], head.visible[rows, columns] & head.choosing[rows])


def locality(head: Matrix) -> float:
    """Queries that see nothing farther away have no choice."""
    if head.sides.steps is None:
        return np.nan
    near = np.abs(head.sides.steps) <= NEAR
    farther = (head.visible & ~near).any(-1)
    return mean(rowwise(head.weights, near), head.choosing & farther)


def gini(head: Matrix) -> float:
    """By ranks among the keys that a query sees: sum of (2 rank - seen - 1) weight / seen."""
    ranks = np.arange(1, head.weights.shape[-1] + 1)
    by_rank = 2 * (head.rising @ ranks)
    masked = head.weights.shape[-1] - head.seen
    sums = head.rising.sum(-1)
    spread = by_rank - (2 * masked + head.seen + 1) * sums
    return mean(spread / np.maximum(head.seen * sums, np.finfo(float).tiny), head.choosing)


def strongest(head: Matrix) -> float:
    """Of fewer keys it would be 1 by force."""
    return mean(head.rising[:, -MOST:].sum(-1), head.choosing & (head.seen > MOST))


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
    of: Callable[[Matrix], float]


CLARK, VIG = "Clark et al. 2019", "Vig & Belinkov 2019"
COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("entropy", "entr", "-sum of w ln w over the keys", CLARK, "nats", entropy),
        Column("span", "span", "exp(entropy) of each query: as many keys, all alike", "descriptive", "tokens", span),
        Column(
            "normalised", "norm", "entropy / ln(number of keys seen); 1 is uniform", "descriptive", "share", normalised
        ),
        Column("distance", "dist", "sum of w |query - key|", VIG, "tokens", distance),
        Column(
            "distance_rest",
            "rest",
            "distance without special and first tokens, the rest made to sum to 1",
            f"after {VIG}",
            "tokens",
            distance_rest,
        ),
        Column(
            "sink", "sink", "most that one special or first token gets", f"{CLARK}; Xiao et al. 2023", "share", sink
        ),
        Column(
            "previous",
            "prev",
            "w on the token before, from the third token on",
            CLARK,
            "share",
            lambda head: band(head, -1),
        ),
        Column("self", "self", "w on the token itself", CLARK, "share", lambda head: band(head, 0)),
        Column("next", "next", "w on the token after, where it is seen", CLARK, "share", lambda head: band(head, 1)),
        Column(
            "locality",
            "near",
            f"w within {NEAR} tokens, of queries that see farther ones",
            "descriptive",
            "share",
            locality,
        ),
        Column(
            "gini", "gini", "inequality of w over the keys seen; 0 is uniform", "Hurley & Rickard 2009", "share", gini
        ),
        Column(
            f"top{MOST}",
            f"top{MOST}",
            f"w of the {MOST} strongest keys, of queries that see more",
            "descriptive",
            "share",
            strongest,
        ),
    )
}


def measure(part: AttentionMap) -> Measures:
    """The columns of a map by name, each (layer, head) in float64; NaN where undefined.

    Distances and neighbours are of maps of one text only; words count as tokens where the map is of words. Rows of
    numbers from elsewhere, or of maxima, are made to sum to 1 first. Of a map without weights, there is what its
    statistics tell exactly.
    """
    shape = len(part.layers), len(part.heads)
    found = {name: np.full(shape, np.nan) for name in COLUMNS}
    if part.weights is None:
        return found | (of_statistics(part, part.statistics) if part.statistics else {})
    sides = Sides.of(part)
    for at in np.ndindex(shape):
        head = Matrix(exact(part, part.weights[at]), part.visible[at], sides)
        for name, column in COLUMNS.items():
            found[name][at] = column.of(head)
    return found


def exact(part: AttentionMap, weights: Weights) -> Doubles:
    """The weights of a head in float64, shares of each row."""
    found = weights.astype(np.float64)
    return found if part.method == ATTENTION and "max" not in part.heads else shared_out(found)


def of_statistics(part: AttentionMap, kept: Statistics) -> Measures:
    """The columns that statistics tell, by the same definitions.

    They do not tell what a query sees, but where a head spreads its weight there is a choice. If any other than the
    first seems to have none, only the sink is known. Distance and diagonal are of all queries: the first, if it has no
    choice, sees itself, and is taken out.
    """
    if not kept.received.any() or "max" in part.heads:
        return {}
    found: Measures = {}
    if parked(part).any():
        found["sink"] = kept.received[..., parked(part)].max(-1).astype(np.float64)
    choosing = np.asarray((kept.entropy > ROUNDING).any((0, 1)))  # (query,)
    count, n = int(choosing.sum()), len(choosing)
    if not choosing[1:].all():
        return found
    if "mean" not in part.heads:  # the mean of entropies is not the entropy of the mean
        entropies = kept.entropy[..., choosing].astype(np.float64)  # (layer, head, query)
        found |= {"entropy": entropies.mean(-1), "span": np.exp(entropies).mean(-1)}
    if kept.distance is not None and kept.diagonal is not None and is_one_text(part):
        found["distance"] = kept.distance.astype(np.float64) * n / count
        found["self"] = (kept.diagonal.astype(np.float64) * n - (n - count)) / count
    return found


class Spread(NamedTuple):
    """Columns over several texts: arrays (layer, head) by name."""

    mean: Measures
    sd: Measures
    """Of a sample, n - 1 in the divisor; NaN of fewer than two texts."""
    texts: Measures
    """Texts for which the number is defined."""


def spread(found: Sequence[Mapping[str, Doubles]]) -> Spread:
    """The mean and standard deviation over the texts for which a number is defined; NaN where it is of none."""
    every = {name: np.stack([one[name] for one in found]) for name in found[0]}  # (text, layer, head)
    return Spread(
        {name: mean_of(values, 0) for name, values in every.items()},
        {name: deviation_of(values, 0) for name, values in every.items()},
        {name: np.isfinite(values).sum(0).astype(np.float64) for name, values in every.items()},
    )


def ratio(above: Doubles, below: Doubles) -> Doubles:
    """A quotient, NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
