"""Which tokens a prediction is made of: scores by several methods, and how far two of them agree.

Attention of a layer says where vectors are read, not where they come from, nor what they are worth:
the methods differ in what they make of that. Which of them tells what a model does is found by
interventions, with rank correlation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.measures import find_resting_keys
from attnviz.analysis.rollout import (
    compute_relevance,
    compute_rollout,
    trace_sources,
)
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

Maps: TypeAlias = Sequence[AttentionMap]
FEWEST_CORRELATED = 5  # tokens, of which a rank correlation says nothing
NORMAL = 1.96  # deviations that hold 95 % of a normal distribution
LEAST_DISTANCE = 0.5  # tokens, so that the query itself has a score by position


class Scoring(NamedTuple):
    """A way to score the tokens that a query reads."""

    definition: str
    source: str
    """The paper that it is from."""
    maps: str
    """The maps that it is made of, by the name of their method."""
    score: Callable[[Maps, int], Doubles]
    """(maps of all layers, query) -> (key,)."""


def collect_rows(maps: Maps, query: int) -> Doubles:
    """Collect the weights that one query gives in all layers and heads, (layer and head, key).

    maps: attention maps of all layers. query: the position of the query in the whole text.
    """
    rows = []
    for each in maps:
        assert each.weights is not None
        index = each.query_places.index(query)
        row = each.weights[:, :, index]  # (layer, head, key)
        key_count = row.shape[-1]
        rows.append(row.reshape(-1, key_count))
    return np.concatenate(rows).astype(np.float64)


def score_by_mean(maps: Maps, query: int) -> Doubles:
    """Score tokens by the mean of a query's row over all layers and heads, (key,)."""
    scores: Doubles = collect_rows(maps, query).mean(0)
    return scores


def score_by_sum(maps: Maps, query: int) -> Doubles:
    """Score tokens by the sum of a query's row over all layers and heads, (key,)."""
    scores: Doubles = collect_rows(maps, query).sum(0)
    return scores


def score_by_rollout(maps: Maps, query: int) -> Doubles:
    """Score tokens by their share in the query's vector after the last layer, (key,)."""
    shares = compute_rollout(average_heads(maps))
    scores: Doubles = shares[-1, query].astype(np.float64)
    return scores


def score_by_relevance(maps: Maps, query: int) -> Doubles:
    """Score tokens by their relevance for the query after the last layer, (key,)."""
    relevance = compute_relevance(average_heads(maps))
    scores: Doubles = relevance[-1, query].astype(np.float64)
    return scores


def average_heads(maps: Maps) -> Floats:
    """Average the weights over the heads of each layer: (layer, 1, query, key).

    Maps may differ in their number of heads; a map without weights is left out.
    """
    all_weights = [each.weights for each in maps if each.weights is not None]
    means = [weights.mean(1, keepdims=True) for weights in all_weights]
    return np.concatenate(means)


SCORINGS: dict[str, Scoring] = {
    GRADIENT: Scoring(
        "sum over layers and heads of max(A dL/dA, 0), "
        "L being the target's logit less the mean of all",
        "after Chefer et al. 2021",
        GRADIENT,
        score_by_sum,
    ),
    CHEFER: Scoring(
        "the same maps, averaged over heads and taken through the layers: R = R + C R",
        "Chefer et al. 2021",
        GRADIENT,
        score_by_relevance,
    ),
    NORM: Scoring(
        "mean over layers of the length of what all heads of a layer move of a token together",
        "Kobayashi et al. 2020",
        NORM,
        score_by_mean,
    ),
    ATTENTION: Scoring(
        "mean over layers and heads of the weight",
        "descriptive",
        ATTENTION,
        score_by_mean,
    ),
    ROLLOUT: Scoring(
        "weights averaged over heads, half residual stream, taken through the layers",
        "Abnar & Zuidema 2020",
        ATTENTION,
        score_by_rollout,
    ),
}
BASELINES = {
    "position": "1 / distance from the query: near tokens first",
    "random": "one draw from the seed",
}


def score_tokens(maps: Mapping[str, Maps], query: int) -> dict[str, Doubles]:
    """Score each token, the query among them, by every method whose maps there are, (token,).

    maps: the attention maps of all layers, by what they hold: weights, gradients, or norms summed
    over the heads of a layer. query: the position of the query in the text. Returns the scores by
    the name of the method; a method whose maps are not there is left out.
    """
    scores: dict[str, Doubles] = {}
    for name, scoring in SCORINGS.items():
        if scoring.maps in maps:
            scores[name] = scoring.score(maps[scoring.maps], query)
    return scores


def score_baselines(count: int, query: int, seed: int) -> dict[str, Doubles]:
    """Score tokens in two ways that know nothing of the model: by position, and at random.

    count: the number of tokens. query: the position from which distances are counted. seed: of the
    random scores. Returns the scores (token,) by the name of the baseline.
    """
    distances = np.abs(np.arange(count) - query)
    by_position = 1 / np.maximum(distances, LEAST_DISTANCE)
    at_random = np.random.default_rng(seed).random(count)
    return {"position": by_position, "random": at_random}


def find_sources(maps: Maps, query: int) -> Visible:
    """Find the other tokens that can have reached a query's vector after the last layer.

    maps: attention maps of all layers, in order. query: the position of the query. Returns a mask
    (token,), False for the query itself.
    """
    visible = np.concatenate([each.visible.any(1) for each in maps])  # (layer, query, key)
    sources_of_all = trace_sources(visible)[-1]  # (query, key)
    sources: Visible = sources_of_all[query].copy()
    sources[query] = False
    return sources


def find_rankable(maps: Maps, query: int) -> Visible:
    """Find the tokens that are ranked when a query is explained, as a mask (token,).

    They are the other tokens that can have reached the query's vector after the last layer. Special
    tokens and the first one, on which heads rest, are left out. maps: attention maps of all layers,
    in order. query: the position of the query.
    """
    resting = find_resting_keys(maps[0])
    return np.asarray(find_sources(maps, query) & ~resting)


def rank_values(values: npt.NDArray[Any]) -> Doubles:
    """Rank numbers (n,), from 1 for the smallest; equal ones share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)  # of each group of equal numbers
    mean_ranks = last_ranks - (counts - 1) / 2
    ranks_of_values: Doubles = mean_ranks[group]
    return ranks_of_values


def correlate_ranks(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Correlate two scores of the same things, each (n,), by rank, from -1 to 1 (Spearman 1904).

    Equal scores share their rank. The result is NaN for fewer than two things, where all scores of
    one kind are equal, and where a score is undefined.
    """
    count = len(first)
    if count < 2:
        return np.nan
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return np.nan
    middle = (count + 1) / 2
    first_ranks = rank_values(first) - middle
    second_ranks = rank_values(second) - middle
    squares = [first_ranks @ first_ranks, second_ranks @ second_ranks]
    size = np.sqrt(np.prod(squares))
    if not size:
        return np.nan
    return float(first_ranks @ second_ranks / size)


def compute_chance_correlation(count: int) -> float:
    """Compute how far from 0 a rank correlation falls by chance, 19 times in 20.

    That is about 1.96 / sqrt(n - 1) for n things. NaN of so few things that it says nothing.
    """
    if count < FEWEST_CORRELATED:
        return np.nan
    distance: float = NORMAL / np.sqrt(count - 1)
    return min(distance, 1.0)
