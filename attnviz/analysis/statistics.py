"""Statistics of attention weights (..., query, key), given which keys are visible."""

from collections.abc import Sequence
from typing import NamedTuple

from attnviz.record import Visible, Weights


class Sink(NamedTuple):
    """The token that soaks up attention."""

    key: int
    share: float
    """Of the weight, in [0, 1]: mean over the queries that see another key too."""


def sink(weights: Weights, visible: Visible, candidates: Sequence[int]) -> Sink | None:
    """The candidate key that gets most of the weight (Xiao et al. 2023; Clark et al. 2019 for [CLS] and [SEP]).

    weights, visible: (..., query, key). A query with one visible key gives it everything by force and does not count;
    None if that holds for all.
    """
    free = visible.sum(-1) > 1  # (..., query)
    if not free.any():
        return None
    shares = weights[..., list(candidates)][free].mean(0)
    best = int(shares.argmax())
    return Sink(candidates[best], float(shares[best]))
