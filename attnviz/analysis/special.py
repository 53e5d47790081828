"""Attention without special tokens, which soak much of it up and stand for no text."""

from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.numerics import normalise_rows
from attnviz.record import AttentionMap

Special: TypeAlias = Literal["keep", "drop", "renormalise"]


class Rest(NamedTuple):
    """A map without its special tokens."""

    part: AttentionMap
    """The map without them."""
    share: float
    """The share of the weight of the remaining queries that the dropped keys had, in [0, 1]."""
    names: tuple[str, ...]
    """The names of the special tokens that were dropped, each once."""


def drop_special(attention_map: AttentionMap, how: Special) -> Rest:
    """Drop the rows and columns of special tokens from a map.

    how: with ``renormalise`` the rows of each head sum to 1 again, and a row all of whose weight
    was on special tokens stays 0; otherwise the remaining weights stay as they are. Returns the map
    with the share of weight that was dropped and the names of the tokens. Raises ValueError if no
    token, or no weight, is left.
    """
    queries, keys = attention_map.queries, attention_map.keys
    rows = [position for position, token in enumerate(queries) if not token.special]
    columns = [position for position, token in enumerate(keys) if not token.special]
    if not rows or not columns:
        raise ValueError("there are only special tokens")
    kept_map = attention_map.window(rows, columns)
    if attention_map.weights is None or kept_map.weights is None:
        raise ValueError("special tokens can be dropped of weights only")
    kept_rows = attention_map.weights[..., rows, :]
    before = float(kept_rows.sum(dtype=np.float64))
    after = float(kept_map.weights.sum(dtype=np.float64))
    if how == "renormalise":
        kept_map = replace(kept_map, weights=normalise_rows(kept_map.weights))
    dropped_share = 0.0
    if before:
        dropped_share = max(0.0, 1 - after / before)
    names = [token.text for token in (*queries, *keys) if token.special]
    return Rest(kept_map, dropped_share, tuple(dict.fromkeys(names)))
