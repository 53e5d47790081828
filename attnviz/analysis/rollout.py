"""Attention, and gradients, through the layers: rollout and the relevance of Chefer et al.

Rollout (Abnar & Zuidema 2020) tells where the vectors of a layer come from, if attention alone
moved them. A layer mixes its heads evenly and is half residual stream; the layers are multiplied,
the later one on the left. What values, feed-forward layers and norms do is left out: this is a
picture, and no measurement.

Relevance (Chefer, Gur & Wolf 2021) does the same with what edges add to a prediction, the residual
stream kept whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from attnviz.analysis.numerics import is_causal
from attnviz.methods import METHODS, METHODS_THROUGH_LAYERS
from attnviz.record import (
    CHEFER,
    ROLLOUT,
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    Visible,
)

ROLLOUT_SOURCE = METHODS[ROLLOUT].line
CAUSAL = (
    "rollout of a causal model goes to the first tokens, the more the more layers there are, "
    "whatever the text says (here the first has {:.3f} of the last, after {} layers): "
    "do not take it for importance"
)


def compute_rollout(weights: npt.NDArray[Any]) -> Floats:
    """Compute attention rollout: the share of each token in the vectors after each layer.

    weights: (layer, head, n, n); the shares are (layer, n, n). R_l = A_l R_{l-1} with R_{-1} = I
    and A_l the mean over heads plus I, its rows made to sum to 1 (Abnar & Zuidema 2020, section 3:
    half attention and half residual stream where the rows of attention sum to 1). Raises ValueError
    unless the matrices are square.
    """
    if not is_square(weights):
        raise ValueError(f"rollout is of weights (layer, head, n, n), not {weights.shape}")
    mixed = average_with_identity(weights)
    mixed /= mixed.sum(-1, keepdims=True)
    return multiply_layers(mixed)


def compute_relevance(gradients: npt.NDArray[Any]) -> Floats:
    """Compute the relevance of each token for each other token after each layer.

    gradients: (layer, head, n, n), weights times their gradients where positive, max(A * dL/dA, 0).
    The relevance is (layer, n, n). R_l = R_{l-1} + C_l R_{l-1} with R_{-1} = I and C_l the mean of
    the gradients over heads (Chefer, Gur & Wolf 2021, eq. 5 and 6, the rule of self-attention); I
    is not taken off at the end. Raises ValueError unless the matrices are square.
    """
    if not is_square(gradients):
        raise ValueError(f"relevance is of gradients (layer, head, n, n), not {gradients.shape}")
    return multiply_layers(average_with_identity(gradients))


def is_square(numbers: npt.NDArray[Any]) -> bool:
    """Return whether an array has the shape (layer, head, n, n), and none of its sides is 0."""
    shape = numbers.shape
    if len(shape) != 4 or 0 in shape:
        return False
    return bool(shape[2] == shape[3])


def average_with_identity(numbers: npt.NDArray[Any]) -> Doubles:
    """Average (layer, head, n, n) over heads and add the residual stream, I: (layer, n, n)."""
    identity = np.eye(numbers.shape[-1])
    averages: Doubles = numbers.mean(1, dtype=np.float64) + identity
    return averages


def multiply_layers(steps: Doubles) -> Floats:
    """Replace the matrix of each layer by its product with those of all earlier layers.

    steps: (layer, n, n), which is overwritten; a later layer stands on the left of the product.
    Returns the products in float32.
    """
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer] @ steps[layer - 1]
    return steps.astype(np.float32)


def replace_by_rollout(capture: Capture) -> Capture:
    """Make a capture of attention rollout from a capture of weights; its notes tell the source.

    Each kind of map becomes one map, whose layers have one head, named "rollout". A note warns
    where the model is causal. Raises ValueError for attention between two texts, for lacking
    layers, heads or tokens, for weights of which a part or a maximum was kept, and for numbers that
    are no attention.
    """
    maps = combine_layers_by_kind(capture, ROLLOUT)
    notes = [*capture.notes, ROLLOUT_SOURCE]
    causal = [each for each in maps if each.weights is not None and is_causal(each.visible)]
    if causal:
        notes.append(warn_of_first_token(causal[0]))
    return replace(capture, maps=maps, notes=tuple(notes))


def warn_of_first_token(attention_map: AttentionMap) -> str:
    """Say how much of the last token's rollout goes to the first token of a causal model."""
    assert attention_map.weights is not None
    share = attention_map.weights[-1, 0, -1, 0]
    return CAUSAL.format(share, len(attention_map.layers))


def replace_by_relevance(capture: Capture) -> Capture:
    """Make a capture of the relevance of Chefer et al. from a capture of gradients.

    Each kind of map becomes one map, whose layers have one head, named "chefer". Raises ValueError
    for attention between two texts, for lacking layers, heads or tokens, for gradients of which a
    part or a maximum was kept, and for numbers that are no gradients.
    """
    maps = combine_layers_by_kind(capture, CHEFER)
    notes = *capture.notes, METHODS[CHEFER].line
    return replace(capture, maps=maps, notes=notes)


def combine_layers_by_kind(capture: Capture, method: str) -> tuple[AttentionMap, ...]:
    """Combine the layers of each kind of map by rollout or relevance, into one map a kind.

    method: ``rollout`` or ``chefer``, which stands for relevance. Raises ValueError where the maps
    of a kind cannot be combined.
    """
    maps_of_kind: dict[str, list[AttentionMap]] = {}
    for each in capture.maps:
        maps_of_kind.setdefault(each.kind, []).append(each)
    return tuple(combine_layers(maps, method) for maps in maps_of_kind.values())


def combine_layers(maps: Sequence[AttentionMap], method: str) -> AttentionMap:
    """Combine all layers of one kind of map by rollout or relevance, into one map.

    maps: attention maps that hold the layers in order. method: ``rollout`` or ``chefer``, which
    stands for relevance. The map that is returned has one head, named after the method. A cell is
    visible if the key can have reached the query through the layers. Raises ValueError if layers
    are missing, or do not all read the same tokens.
    """
    means = []
    layers: list[int] = []
    for each in maps:
        numbers = require_whole_layers(each, method)
        means.append(numbers.mean(1, keepdims=True, dtype=np.float64))
        layers += each.layers
    if layers != list(range(len(layers))):
        names = ", ".join(map(str, layers))
        raise ValueError(f"{method} multiplies all layers from 0 up: here are {names}")
    first = maps[0]
    tokens = first.queries
    if any(each.queries != tokens for each in maps):
        raise ValueError(f"{method} goes through layers that see the same tokens: here they do not")
    compute = compute_rollout if method == ROLLOUT else compute_relevance
    combined = compute(np.concatenate(means))  # (layer, n, n)
    visible = [each.visible.any(1) for each in maps]
    sources = trace_sources(np.concatenate(visible))
    return AttentionMap(
        kind=first.kind,
        layers=tuple(layers),
        heads=(method,),
        queries=tokens,
        keys=tokens,
        weights=combined[:, None],
        visible=sources[:, None],
        method=method,
        unit=first.unit,
    )


def require_whole_layers(attention_map: AttentionMap, method: str) -> Floats:
    """Return the numbers of a map, (layer, head, query, key), if ``method`` can use them.

    method: ``rollout``, which is made of weights, or ``chefer``, which is made of gradients. Raises
    ValueError for cross-attention, for a map of other numbers, and for one that lacks some of the
    heads or tokens.
    """
    if attention_map.kind == "cross":
        reason = "cross-attention looks from one to another"
        raise ValueError(f"{method} goes through the layers of one text: {reason}")
    weights = attention_map.weights
    heads = attention_map.heads
    has_method = attention_map.method == METHODS_THROUGH_LAYERS[method]
    if weights is None or not has_method or "max" in heads:
        numbers = "weights" if method == ROLLOUT else "gradients"
        others = "tiles, statistics, edges, maxima or other numbers"
        raise ValueError(f"{method} is made of {numbers}: not of {others}")
    all_heads = tuple(range(len(heads)))
    if heads not in (("mean",), all_heads):
        raise ValueError(f"{method} averages all heads: here are some of them")
    positions = tuple(range(len(attention_map.queries)))
    if not attention_map.query_places == attention_map.key_places == positions:
        raise ValueError(f"{method} needs all queries and keys of a text: here is a part")
    return weights


def trace_sources(visible: Visible) -> Visible:
    """Trace which tokens can have reached each query, through all layers up to each layer.

    visible: (layer, n, n), True where a query may attend in that layer. Returns (layer, n, n), True
    where the vector of the query can depend on the key after that layer. It always depends on its
    own token.
    """
    itself = np.eye(visible.shape[-1], dtype=bool)
    sources = visible | itself
    for layer in range(1, len(sources)):
        step = sources[layer].astype(np.float32)
        # The product counts the ways in which a key reaches a query.
        before = sources[layer - 1].astype(np.float32)
        sources[layer] = step @ before > 0
    return sources
