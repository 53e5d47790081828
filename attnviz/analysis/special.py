"""What is left of attention without special tokens, which soak much of it up and stand for no text."""

from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from attnviz.record import AttentionMap

Special: TypeAlias = Literal["keep", "drop", "renormalise"]


class Rest(NamedTuple):
    """A map without its special tokens."""

    part: AttentionMap
    share: float
    """Of the weight of the queries that are left: what the dropped keys had, in [0, 1]."""
    names: tuple[str, ...]
    """What was dropped, each once."""


def without_special(part: AttentionMap, how: Special) -> Rest:
    """A map without the rows and columns of special tokens; ``renormalise`` has the rows of each head sum to 1 again.

    A row all of whose weight was on special tokens stays 0. Raises ValueError if no token, or no weight, is left.
    """
    rows = [i for i, token in enumerate(part.queries) if not token.special]
    columns = [i for i, token in enumerate(part.keys) if not token.special]
    if not rows or not columns:
        raise ValueError("there are only special tokens")
    left = part.window(rows, columns)
    if part.weights is None or left.weights is None:
        raise ValueError("special tokens can be dropped of weights only")
    before = float(part.weights[..., rows, :].sum(dtype=np.float64))
    after = float(left.weights.sum(dtype=np.float64))
    if how == "renormalise":
        sums = left.weights.sum(-1, keepdims=True)
        left = replace(
            left,
            weights=np.divide(left.weights, sums, out=np.zeros_like(left.weights), where=sums > 0),
        )
    names = (token.text for token in (*part.queries, *part.keys) if token.special)
    return Rest(left, max(0.0, 1 - after / before) if before else 0.0, tuple(dict.fromkeys(names)))
