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
from attnviz.methods import MADE_OF, METHODS
from attnviz.record import CHEFER, ROLLOUT, AttentionMap, Capture, Doubles, Floats, Visible

ROLLOUT_SOURCE = METHODS[ROLLOUT].line
CAUSAL = (
    "rollout of a causal model goes to the first tokens, the more the more layers there are, "
    "whatever the text says (here the first has {:.3f} of the last, after {} layers): "
    "do not take it for importance"
)


def compute_rollout(weights: npt.NDArray[Any]) -> Floats:
    """Compute the share of each token in the vectors after each layer.

    weights: (layer, head, n, n); the shares are (layer, n, n). R_l = A_l R_{l-1} with R_{-1} = I
    and A_l the mean over heads plus I, its rows made to sum to 1 (section 3 of the paper: half and
    half where the rows of attention sum to 1). Raises ValueError unless the matrices are square.
    """
    if not is_square(weights):
        raise ValueError(f"rollout is of weights (layer, head, n, n), not {weights.shape}")
    mixed = average_with_identity(weights)
    mixed /= mixed.sum(-1, keepdims=True)
    return multiply_layers(mixed)


def compute_relevance(gradients: npt.NDArray[Any]) -> Floats:
    """Compute the relevance of each token to each after each layer.

    gradients: (layer, head, n, n), weights times their gradients where positive, max(A * dL/dA, 0);
    the relevance is (layer, n, n). R_l = R_{l-1} + C_l R_{l-1} with R_{-1} = I and C_l their mean
    over heads (Chefer, Gur & Wolf 2021, eq. 5 and 6, the rule of self-attention); I is not taken
    off at the end. Raises ValueError unless the matrices are square.
    """
    if not is_square(gradients):
        raise ValueError(f"relevance is of gradients (layer, head, n, n), not {gradients.shape}")
    return multiply_layers(average_with_identity(gradients))


def is_square(numbers: npt.NDArray[Any]) -> bool:
    """Return whether numbers are (layer, head, n, n), and there are some."""
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
    """Multiply each layer with those before it, later ones on the left, in place; (layer, n, n)."""
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer] @ steps[layer - 1]
    return steps.astype(np.float32)


def replace_by_rollout(capture: Capture) -> Capture:
    """Return a capture of rollout instead of weights; its notes tell the source.

    Each layer has one head, named "rollout". Raises ValueError for attention between two texts, for
    lacking layers, heads or tokens, for weights of which a part or a maximum was kept, and for
    numbers that are no attention.
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
    """Return a capture of the relevance of Chefer et al. instead of gradients.

    Each layer has one head, named "chefer". Raises ValueError as ``rolled_out`` does, and for
    numbers that are no gradients.
    """
    maps = combine_layers_by_kind(capture, CHEFER)
    notes = *capture.notes, METHODS[CHEFER].line
    return replace(capture, maps=maps, notes=notes)


def combine_layers_by_kind(capture: Capture, method: str) -> tuple[AttentionMap, ...]:
    """Combine the maps of each kind through the layers, into one a kind. Raises ValueError."""
    maps_of_kind: dict[str, list[AttentionMap]] = {}
    for each in capture.maps:
        maps_of_kind.setdefault(each.kind, []).append(each)
    return tuple(combine_layers(maps, method) for maps in maps_of_kind.values())


def combine_layers(maps: Sequence[AttentionMap], method: str) -> AttentionMap:
    """Combine maps of one kind through the layers by rollout or relevance.

    Raises ValueError if they are not of all layers, or not of the same tokens.
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
        first.kind,
        tuple(layers),
        (method,),
        tokens,
        tokens,
        combined[:, None],
        sources[:, None],
        method,
        unit=first.unit,
    )


def require_whole_layers(attention_map: AttentionMap, method: str) -> Floats:
    """Return the numbers of some layers.

    Raises ValueError if they are not those of all heads and tokens of one text.
    """
    if attention_map.kind == "cross":
        reason = "cross-attention looks from one to another"
        raise ValueError(f"{method} goes through the layers of one text: {reason}")
    weights = attention_map.weights
    heads = attention_map.heads
    has_method = attention_map.method == MADE_OF[method]
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
    """Trace which tokens a query can get anything of, through the layers up to each.

    visible: (layer, n, n), what each layer sees; the sources are (layer, n, n) too.
    """
    itself = np.eye(visible.shape[-1], dtype=bool)
    sources = visible | itself
    for layer in range(1, len(sources)):
        step = sources[layer].astype(np.float32)
        before = sources[layer - 1].astype(np.float32)
        sources[layer] = step @ before > 0
    return sources
