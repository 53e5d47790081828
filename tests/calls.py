"""Calls of attention of every kind, of random vectors, and what comes of them by plain arithmetic in float64."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attnviz.engine.call import Call

LOWEST = torch.finfo(torch.float32).min


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chance(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make(
    queries: int, keys: int | None = None, heads: int = 4, key_heads: int = 2, **options: Any
) -> Call:
    """A call of random vectors; size stretches the scores. Other options are those of Call."""
    size, width, value_width = (options.pop(name, 8) for name in ("size", "width", "value_width"))
    keys = queries if keys is None else keys
    query = vectors(1, heads, queries, width) * size / 8
    key, value = (
        vectors(1, key_heads, keys, width, seed=1),
        vectors(1, key_heads, keys, value_width, seed=2),
    )
    return Call(query, key, value, width**-0.5, **options)


def places(call: Call) -> tuple[Tensor, Tensor]:
    """The numbers of queries, (N, 1), and of keys, (M,)."""
    return torch.arange(call.query.shape[2])[:, None], torch.arange(call.key.shape[2])


def left(call: Call) -> dict[str, Any]:
    """Three keys of padding before a causal text: the first queries see nothing."""
    query, key = places(call)
    return {"mask": ((key <= query) & (key >= 3))[None, None]}


def sliding(call: Call) -> dict[str, Any]:
    """A window of five keys, the query's own the last."""
    query, key = places(call)
    return {"mask": ((key <= query) & (key > query - 5))[None, None]}


def added(call: Call) -> dict[str, Any]:
    """A mask of numbers for each head that hides a fifth of the cells, but no query's first key."""
    _, key = places(call)
    size = 1, call.query.shape[1], call.query.shape[2], call.key.shape[2]
    return {
        "mask": vectors(*size, seed=3).masked_fill(
            (chance(*size, seed=4) < 0.2) & (key > 0), LOWEST
        )
    }


def slope(call: Call) -> dict[str, Any]:
    """ALiBi: (1, H, 1, M)."""
    _, key = places(call)
    return {
        "bias": (key * torch.tensor([0.05, 0.02, 0.01, 0.005])[: call.query.shape[1], None])[
            None, :, None
        ]
    }


def cut(call: Call) -> Tensor:
    """A tenth of the edges, but none of a query to its own number or the first, (1, H, N, M)."""
    query, key = places(call)
    size = 1, call.query.shape[1], call.query.shape[2], call.key.shape[2]
    return (chance(*size, seed=5) < 0.1) & (key != query) & (key > 0)


def cuts(call: Call) -> dict[str, Any]:
    """The mask of a call without these edges."""
    found = call.hide_edges(cut(call))
    return {"mask": found.mask, "causal": found.causal}


def bias(call: Call) -> dict[str, Any]:
    return {"bias": vectors(1, call.query.shape[1], call.query.shape[2], call.key.shape[2], seed=6)}


def sinks(call: Call) -> dict[str, Any]:
    return {"sinks": vectors(call.query.shape[1], seed=7)}


def hidden_keys(call: Call) -> dict[str, Any]:
    return {"mask": (chance(1, 1, 1, call.key.shape[2], seed=8) < 0.7)}


VARIANTS: dict[str, Callable[[Call], dict[str, Any]]] = {
    "none": lambda call: {},
    "hidden keys": hidden_keys,
    "mask of numbers": added,
    "bias": bias,
    "bias and mask": lambda call: bias(call) | hidden_keys(call),
    "soft cap": lambda call: {"softcap": 2.0},
    "sinks": sinks,
    "sinks of queries": lambda call: {"sinks": vectors(1, *call.query.shape[1:3], 1, seed=9)},
    "cuts": cuts,
    "everything": lambda call: {"softcap": 2.0} | sinks(call) | bias(call) | hidden_keys(call),
    "cuts of numbers": lambda call: cuts(replace(call, **added(call))),
}
SQUARE = VARIANTS | {
    "causal": lambda call: {"causal": True},
    "causal, ALiBi": lambda call: {"causal": True} | slope(call),
    "causal, soft cap, sinks": lambda call: {"causal": True, "softcap": 2.0} | sinks(call),
    "causal, cuts": lambda call: cuts(replace(call, causal=True)),
    "left padding": left,
    "sliding window": sliding,
}


@lru_cache(2)
def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (H, N, M) and output (N, H, d_v) in float64; what is visible (H, N, M)."""
    shared = call.query.shape[1] // call.key.shape[1]
    key, value = (part[0].double().repeat_interleave(shared, 0) for part in (call.key, call.value))
    scores = call.query[0].double() @ key.transpose(1, 2) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    query, place = places(call)
    visible = torch.ones_like(scores, dtype=torch.bool) & ((place <= query) | (not call.causal))
    if call.bias is not None:
        scores = scores + call.bias[0]
    if call.mask is not None and call.mask.dtype == torch.bool:
        visible &= call.mask[0]
    elif call.mask is not None:
        visible &= call.mask[0] > LOWEST
        scores = scores + call.mask[0]
    scores = scores.masked_fill(~visible, -torch.inf)
    if call.sinks is not None:
        sink = call.sinks.double().reshape(len(scores), -1, 1).expand(-1, scores.shape[1], -1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1).nan_to_num(0)[..., : key.shape[1]]
    return weights, (weights @ value).transpose(0, 1), visible
