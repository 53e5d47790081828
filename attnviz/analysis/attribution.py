"""Which tokens a prediction is made of: a score of each by several methods, and how far two of them rank alike.

Attention of a layer says where vectors are read, not where they come from, nor what they are worth: the methods differ
in what they make of that. Which of them tells what a model does is found by interventions, with rank correlation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.measures import parked
from attnviz.analysis.rollout import chefer, reached, rollout
from attnviz.record import (
    ATTENTION,
    CHEFER,
    GRADIENT,
    NORM,
    ROLLOUT,
    AttentionMap,
    Doubles,
    Floats,
    Visible,
)

Parts: TypeAlias = Sequence[AttentionMap]
FEW = 5  # tokens, of which a rank correlation says nothing
NORMAL = 1.96  # deviations that hold 95 % of a normal distribution


class Scoring(NamedTuple):
    """A way to score the tokens that a query reads."""

    definition: str
    source: str
    """The paper that it is from."""
    maps: str
    """The maps that it is made of, by the name of their method."""
    score: Callable[[Parts, int], Doubles]
    """(maps of all layers, query) -> (key,)."""


def rows_of(parts: Parts, query: int) -> Doubles:
    """What a query gives to each key in every layer and head, (layer and head, key)."""
    found = []
    for part in parts:
        assert part.weights is not None
        row = part.weights[:, :, part.query_places.index(query)]  # (layer, head, key)
        found.append(row.reshape(-1, row.shape[-1]))
    return np.concatenate(found).astype(np.float64)


def mean_row(parts: Parts, query: int) -> Doubles:
    """The mean over all layers and heads, (key,)."""
    found: Doubles = rows_of(parts, query).mean(0)
    return found


def summed_row(parts: Parts, query: int) -> Doubles:
    """The sum over all layers and heads, (key,)."""
    found: Doubles = rows_of(parts, query).sum(0)
    return found


def rollout_row(parts: Parts, query: int) -> Doubles:
    """What the query's last vector has of each token, (key,)."""
    found: Doubles = rollout(means(parts))[-1, query].astype(np.float64)
    return found


def chefer_row(parts: Parts, query: int) -> Doubles:
    """The query's row of the last relevance, (key,)."""
    found: Doubles = chefer(means(parts))[-1, query].astype(np.float64)
    return found


def means(parts: Parts) -> Floats:
    """The mean over the heads of each layer, which may have different ones: (layer, 1, query, key)."""
    return np.concatenate(
        [part.weights.mean(1, keepdims=True) for part in parts if part.weights is not None]
    )


SCORINGS: dict[str, Scoring] = {
    GRADIENT: Scoring(
        "sum over layers and heads of max(A dL/dA, 0), L being the target's logit less the mean of all",
        "after Chefer et al. 2021",
        GRADIENT,
        summed_row,
    ),
    CHEFER: Scoring(
        "the same maps, averaged over heads and taken through the layers: R = R + C R",
        "Chefer et al. 2021",
        GRADIENT,
        chefer_row,
    ),
    NORM: Scoring(
        "mean over layers of the length of what all heads of a layer move of a token together",
        "Kobayashi et al. 2020",
        NORM,
        mean_row,
    ),
    ATTENTION: Scoring(
        "mean over layers and heads of the weight", "descriptive", ATTENTION, mean_row
    ),
    ROLLOUT: Scoring(
        "weights averaged over heads, half residual stream, taken through the layers",
        "Abnar & Zuidema 2020",
        ATTENTION,
        rollout_row,
    ),
}
BASELINES = {
    "position": "1 / distance from the query: near tokens first",
    "random": "one draw from the seed",
}


def attributed(maps: dict[str, Parts], query: int) -> dict[str, Doubles]:
    """The score of each token by each method, (token,), the query among them.

    maps: those of all layers by method: weights, gradients, and norms summed over the heads of a layer. Methods whose
    maps are not there are left out.
    """
    return {
        name: how.score(maps[how.maps], query) for name, how in SCORINGS.items() if how.maps in maps
    }


def baselines(count: int, query: int, seed: int) -> dict[str, Doubles]:
    """Scores of so many tokens that know nothing of the model, (token,)."""
    distance = np.abs(np.arange(count) - query)
    return {
        "position": 1 / np.maximum(distance, 0.5),
        "random": np.random.default_rng(seed).random(count),
    }


def sources(parts: Parts, query: int) -> Visible:
    """Which other tokens the last vector of a query can have anything of, (token,). Parts are of all layers."""
    found: Visible = reached(np.concatenate([part.visible.any(1) for part in parts]))[
        -1, query
    ].copy()
    found[query] = False
    return found


def rankable(parts: Parts, query: int) -> Visible:
    """Those of them that are ranked, (token,): neither special nor the first, on which heads rest."""
    return np.asarray(sources(parts, query) & ~parked(parts[0]))


def ranks(values: npt.NDArray[Any]) -> Doubles:
    """The rank of each of some numbers (n,), from 1 for the smallest; those that are equal share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Doubles = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return found


def spearman(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Rank correlation of two scores of the same things (n,), -1 to 1 (Spearman 1904); equal ones share their rank.

    NaN of fewer than two, where all of one are equal, and where one is undefined.
    """
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return np.nan
    centred = [ranks(values) - (len(values) + 1) / 2 for values in (first, second)]
    size = np.sqrt(np.prod([values @ values for values in centred]))
    return float(centred[0] @ centred[1] / size) if size else np.nan


def chance(count: int) -> float:
    """How far from 0 the rank correlation of so many things falls by chance, 19 times in 20; about 1.96 / sqrt(n - 1).

    NaN of so few that it says nothing.
    """
    return min(NORMAL / np.sqrt(count - 1), 1.0) if count >= FEW else np.nan
