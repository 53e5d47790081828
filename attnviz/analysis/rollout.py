"""Attention, and gradients, through the layers: rollout and the relevance of Chefer et al.

Rollout (Abnar & Zuidema 2020) tells where the vectors of a layer come from, if attention alone moved them. A layer
mixes its heads evenly and is half residual stream; the layers are multiplied, the later one on the left. What values,
feed-forward layers and norms do is left out: this is a picture, and no measurement.

Relevance (Chefer, Gur & Wolf 2021) does the same with what edges add to a prediction, the residual stream kept whole.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from attnviz.methods import MADE_OF, METHODS
from attnviz.record import CHEFER, ROLLOUT, AttentionMap, Capture, Floats, Visible

SOURCE = METHODS[ROLLOUT].line
CAUSAL = (
    "rollout of a causal model goes to the first tokens, the more the more layers there are, whatever the text says "
    "(here the first has {:.3f} of the last, after {} layers): do not take it for importance"
)


def rollout(weights: npt.NDArray[Any]) -> Floats:
    """The share of each token in the vectors after each layer: weights (layer, head, n, n) -> (layer, n, n).

    R_l = A_l R_{l-1} with R_{-1} = I and A_l the mean over heads plus I, its rows made to sum to 1 (section 3 of the
    paper: half and half where the rows of attention sum to 1). Raises ValueError unless the matrices are square.
    """
    if weights.ndim != 4 or weights.shape[2] != weights.shape[3] or 0 in weights.shape:
        raise ValueError(f"rollout is of weights (layer, head, n, n), not {weights.shape}")
    mixed = weights.mean(1, dtype=np.float64) + np.eye(weights.shape[-1])  # (layer, n, n)
    mixed /= mixed.sum(-1, keepdims=True)
    for layer in range(1, len(mixed)):
        mixed[layer] = mixed[layer] @ mixed[layer - 1]
    found: Floats = mixed.astype(np.float32)
    return found


def chefer(gradients: npt.NDArray[Any]) -> Floats:
    """The relevance of each token to each after each layer: gradients (layer, head, n, n) -> (layer, n, n).

    gradients: weights times their gradients where positive, max(A * dL/dA, 0). R_l = R_{l-1} + C_l R_{l-1} with
    R_{-1} = I and C_l their mean over heads (Chefer, Gur & Wolf 2021, eq. 5 and 6, the rule of self-attention); I is
    not taken off at the end. Raises ValueError unless the matrices are square.
    """
    if gradients.ndim != 4 or gradients.shape[2] != gradients.shape[3] or 0 in gradients.shape:
        raise ValueError(f"relevance is of gradients (layer, head, n, n), not {gradients.shape}")
    steps = gradients.mean(1, dtype=np.float64) + np.eye(gradients.shape[-1])  # (layer, n, n)
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer] @ steps[layer - 1]
    found: Floats = steps.astype(np.float32)
    return found


def rolled_out(capture: Capture) -> Capture:
    """Rollout instead of weights, as one head named "rollout" in each layer; the notes tell its source.

    Raises ValueError for attention between two texts, for lacking layers, heads or tokens, for weights of which a part
    or a maximum was kept, and for numbers that are no attention.
    """
    maps = by_kind(capture, ROLLOUT)
    causal = [part for part in maps if is_causal(part.visible)]
    firsts = [
        (part.weights[-1, 0, -1, 0], len(part.layers))
        for part in causal
        if part.weights is not None
    ]
    warnings = (CAUSAL.format(*first) for first in firsts[:1])
    return replace(capture, maps=maps, notes=(*capture.notes, SOURCE, *warnings))


def relevance(capture: Capture) -> Capture:
    """The relevance of Chefer et al. instead of gradients, as one head named "chefer" in each layer.

    Raises ValueError as ``rolled_out`` does, and for numbers that are no gradients.
    """
    return replace(
        capture, maps=by_kind(capture, CHEFER), notes=(*capture.notes, METHODS[CHEFER].line)
    )


def by_kind(capture: Capture, method: str) -> tuple[AttentionMap, ...]:
    """The maps of each kind through the layers, one a kind. Raises ValueError."""
    kinds = dict.fromkeys(part.kind for part in capture.maps)
    return tuple(
        of_layers([part for part in capture.maps if part.kind == kind], method) for kind in kinds
    )


def of_layers(parts: list[AttentionMap], method: str) -> AttentionMap:
    """The maps of one kind through the layers. Raises ValueError."""
    means = [require_whole(part, method).mean(1, keepdims=True, dtype=np.float64) for part in parts]
    layers = tuple(layer for part in parts for layer in part.layers)
    if layers != tuple(range(len(layers))):
        raise ValueError(
            f"{method} multiplies all layers from 0 up: here are {', '.join(map(str, layers))}"
        )
    if any(part.queries != parts[0].queries for part in parts):
        raise ValueError(f"{method} goes through layers that see the same tokens: here they do not")
    make = rollout if method == ROLLOUT else chefer
    found = make(np.concatenate(means))[:, None]  # (layer, 1, n, n)
    seen = reached(np.concatenate([part.visible.any(1) for part in parts]))[:, None]
    tokens = parts[0].queries
    return AttentionMap(
        parts[0].kind, layers, (method,), tokens, tokens, found, seen, method, unit=parts[0].unit
    )


def require_whole(part: AttentionMap, method: str) -> Floats:
    """The numbers of some layers. Raises ValueError if they are not those of all heads and tokens of one text."""
    if part.kind == "cross":
        raise ValueError(
            f"{method} goes through the layers of one text: cross-attention looks from one to another"
        )
    if part.weights is None or part.method != MADE_OF[method] or "max" in part.heads:
        named = "weights" if method == ROLLOUT else "gradients"
        raise ValueError(
            f"{method} is made of {named}: not of tiles, statistics, edges, maxima or other numbers"
        )
    if part.heads not in (("mean",), tuple(range(len(part.heads)))):
        raise ValueError(f"{method} averages all heads: here are some of them")
    places = tuple(range(len(part.queries)))
    if not part.query_places == part.key_places == places:
        raise ValueError(f"{method} needs all queries and keys of a text: here is a part")
    return part.weights


def reached(visible: Visible) -> Visible:
    """Which tokens a query can get anything of, through so many layers: (layer, n, n) -> (layer, n, n)."""
    steps = visible | np.eye(visible.shape[-1], dtype=bool)
    for layer in range(1, len(steps)):
        steps[layer] = steps[layer].astype(np.float32) @ steps[layer - 1].astype(np.float32) > 0
    return steps


def is_causal(visible: Visible) -> bool:
    """Whether no query of several sees a later key."""
    return visible.shape[-1] > 1 and not np.triu(visible, 1).any()
