"""Attention: scores, softmax, weighted sum. Written once, for NumPy arrays and torch tensors."""

import math
from typing import NamedTuple

import numpy as np

from attnviz.layer.arrays import Array, as_array, cast, is_floating, namespace, override, widen
from attnviz.layer.scores import Score, score_function


class Attended(NamedTuple):
    """What attention computed. Leading axes are those of the arguments."""

    output: Array
    """(..., query, d_v) in the type of the value: the context, plus the query if residual."""
    weights: Array
    """(..., query, key), at least float32: each row sums to 1, or is 0 where no key is visible."""
    scores: Array
    """(..., query, key), at least float32: what the softmax was given, -inf where masked."""


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    score: str | Score = "scaled_dot",
    mask: Array | None = None,
    causal: bool = False,
    residual: bool = False,
) -> Attended:
    """Attention of each query over all keys: s_ij = f(q_i, k_j), w_i = softmax_j(s_ij), y_i = sum_j w_ij v_j.

    query (..., n, d), key (..., m, d), value (..., m, d_v); leading axes broadcast. With query = key = value = x it is
    self-attention on raw vectors. Computed in float32 where the arguments are smaller, so scores of +-1e4 and half
    precision are safe. Vaswani et al. 2017, eq. 1; for other scores see ``attnviz.layer.scores``.

    score: a name (dot, scaled_dot, cosine, gaussian) or a function of queries and keys.
    mask: broadcasts to (..., n, m); boolean: True where a query may attend; float: added to the scores.
    causal: a query sees keys up to its own place, the last query being at the last key.
    residual: output = query + context.

    Raises ValueError where shapes do not fit or a sequence is empty; the message names both shapes.
    """
    overridden = override(query, key, value)
    if overridden is not None:
        options = {"score": score, "mask": mask, "causal": causal, "residual": residual}
        handled: Attended = overridden(attend, (query, key, value), query, key, value, **options)
        return handled
    query, key, value = as_array(query), as_array(key), as_array(value)
    require_sequences(query, key, value)
    q, k, v = widen(query), widen(key), widen(value)
    scores = score_function(score)(q, k)  # (..., n, m)
    require_scores(scores, q, k)
    scores = hide(scores, mask, causal)
    weights = softmax(scores)
    output = namespace(v).matmul(weights, v)  # (..., n, d_v)
    if residual:
        require_residual(q, output)
        output = q + output
    return Attended(cast(output, value.dtype) if is_floating(value) else output, weights, scores)


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; a row of nothing but -inf gives zeros, not NaN. (..., n, m) -> (..., n, m)."""
    xp = namespace(scores)
    highest = xp.amax(scores, axis=-1, keepdims=True)
    exponentials = xp.exp(scores - xp.where(highest == -math.inf, 0.0, highest))
    total = exponentials.sum(-1)[..., None]
    return exponentials / xp.where(total == 0, 1.0, total)


def hide(scores: Array, mask: Array | None, causal: bool) -> Array:
    """Scores (..., n, m) with -inf, or a float mask added, where queries may not attend."""
    xp = namespace(scores)
    visible = causal_mask(*scores.shape[-2:], like=scores) if causal else None
    if mask is not None:
        mask = as_array(mask)
        require_mask(mask, scores)
        if is_floating(mask):
            scores = scores + widen(mask)
        else:
            visible = cast(mask, xp.bool) if visible is None else visible & cast(mask, xp.bool)
    return scores if visible is None else xp.where(visible, scores, -math.inf)


def causal_mask(n: int, m: int, *, like: Array) -> Array:
    """Boolean (n, m), True where the key is not after the query; the last query is at the last key."""
    xp = namespace(like)
    places = xp.arange(max(n, m), device=like.device)
    return places[None, :m] <= places[:n, None] + (m - n)


def require_sequences(query: Array, key: Array, value: Array) -> None:
    """Raise ValueError unless these are non-empty sequences of vectors, a value for each key."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 2 or 0 in array.shape:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}; a non-empty (..., sequence, dim) is needed"
            )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in length")
    leading = [tuple(array.shape[:-2]) for array in (query, key, value)]
    try:
        np.broadcast_shapes(*leading)
    except ValueError:
        shapes = ", ".join(str(tuple(array.shape)) for array in (query, key, value))
        raise ValueError(
            f"the leading axes of query, key and value do not broadcast: {shapes}"
        ) from None


def require_scores(scores: Array, query: Array, key: Array) -> None:
    """Raise ValueError unless a score function returned one score for each query and key."""
    expected = (
        *np.broadcast_shapes(tuple(query.shape[:-2]), tuple(key.shape[:-2])),
        query.shape[-2],
        key.shape[-2],
    )
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"the score function returned {tuple(scores.shape)} for query {tuple(query.shape)} and key "
            f"{tuple(key.shape)}, not {expected}; wrap a formula over single vectors in attnviz.layer.pairwise"
        )


def require_mask(mask: Array, scores: Array) -> None:
    """Raise ValueError unless the mask broadcasts to the scores."""
    try:
        fits = np.broadcast_shapes(tuple(mask.shape), tuple(scores.shape)) == tuple(scores.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask {tuple(mask.shape)} does not broadcast to the scores {tuple(scores.shape)}"
        )


def require_residual(query: Array, output: Array) -> None:
    """Raise ValueError unless query and context can be added."""
    if query.shape[-1] != output.shape[-1]:
        raise ValueError(
            f"residual: query {tuple(query.shape)} and context {tuple(output.shape)} differ in width"
        )
