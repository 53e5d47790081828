"""Attention: scores, softmax, weighted sum. Written once, for NumPy arrays and torch tensors."""

import math
from typing import NamedTuple

import numpy as np

from attnviz.layer.arrays import (
    Array,
    as_array,
    cast,
    find_namespace,
    find_override,
    is_floating,
    widen_to_single,
)
from attnviz.layer.scores import Score, find_score_function


class Attended(NamedTuple):
    """The results of attention. Leading axes are those of the arguments."""

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
    """Attend from each query to all keys.

    s_ij = f(q_i, k_j), w_i = softmax_j(s_ij), y_i = sum_j w_ij v_j: Vaswani et al. 2017, eq. 1; for
    other scores see ``attnviz.layer.scores``. With query = key = value = x it is self-attention on
    raw vectors. Computed in float32 where the arguments are smaller, so scores of +-1e4 and half
    precision are safe.

    query (..., n, d), key (..., m, d), value (..., m, d_v); leading axes broadcast.
    score: a name (dot, scaled_dot, cosine, gaussian) or a function of queries and keys.
    mask: broadcasts to (..., n, m); booleans: True where a query may attend; floats: added to the
    scores.
    causal: a query sees keys up to its own position, the last query being at the last key.
    residual: output = query + context.

    Raises ValueError where shapes do not fit or a sequence is empty; the message names both shapes.
    """
    overridden = find_override(query, key, value)
    if overridden is not None:
        options = {"score": score, "mask": mask, "causal": causal, "residual": residual}
        handled: Attended = overridden(attend, (query, key, value), query, key, value, **options)
        return handled
    query = as_array(query)
    key = as_array(key)
    value = as_array(value)
    require_vectors(query, key, value)
    q = widen_to_single(query)
    k = widen_to_single(key)
    v = widen_to_single(value)
    scores = find_score_function(score)(q, k)  # (..., n, m)
    require_scores(scores, q, k)
    scores = mask_scores(scores, mask, causal)
    weights = softmax(scores)
    output = find_namespace(v).matmul(weights, v)  # (..., n, d_v)
    if residual:
        require_residual(q, output)
        output = q + output
    if is_floating(value):
        output = cast(output, value.dtype)
    return Attended(output, weights, scores)


def softmax(scores: Array) -> Array:
    """Apply softmax over the last axis: (..., n, m) -> (..., n, m).

    A row of nothing but -inf gives zeros, not NaN.
    """
    xp = find_namespace(scores)
    highest = xp.amax(scores, axis=-1, keepdims=True)
    shift = xp.where(highest == -math.inf, 0.0, highest)
    exponentials = xp.exp(scores - shift)
    total = exponentials.sum(-1)[..., None]
    divisor = xp.where(total == 0, 1.0, total)
    return exponentials / divisor


def mask_scores(scores: Array, mask: Array | None, causal: bool) -> Array:
    """Return scores that are -inf where queries may not attend; a mask of numbers is added.

    scores: (..., n, m), for n queries and m keys. mask: broadcasts to them; booleans are True where
    a query may attend; None for no mask. causal: a query may attend to keys up to its own position,
    the last query being at the last key.
    """
    xp = find_namespace(scores)
    visible = make_causal_mask(*scores.shape[-2:], like=scores) if causal else None
    if mask is not None:
        mask = as_array(mask)
        require_mask(mask, scores)
        if is_floating(mask):
            scores = scores + widen_to_single(mask)
        else:
            allowed = cast(mask, xp.bool)
            visible = allowed if visible is None else visible & allowed
    if visible is None:
        return scores
    return xp.where(visible, scores, -math.inf)


def make_causal_mask(n: int, m: int, *, like: Array) -> Array:
    """Return booleans (n, m), True where the key is not after the query.

    n queries stand at the positions of the last n of m keys. like: an array of the kind, NumPy or
    torch, and on the device that the booleans are to be of.
    """
    xp = find_namespace(like)
    positions = xp.arange(max(n, m), device=like.device)
    last_visible = positions[:n, None] + (m - n)
    return positions[None, :m] <= last_visible


def require_vectors(query: Array, key: Array, value: Array) -> None:
    """Raise ValueError unless these are non-empty sequences of vectors, with a value for each key.

    query: (..., n, d), key: (..., m, d), value: (..., m, d_v); their leading axes must broadcast.
    """
    arrays = {"query": query, "key": key, "value": value}
    for name, array in arrays.items():
        if array.ndim < 2 or 0 in array.shape:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}; "
                "a non-empty (..., sequence, dim) is needed",
            )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in length")
    leading = [tuple(array.shape[:-2]) for array in arrays.values()]
    try:
        np.broadcast_shapes(*leading)
    except ValueError:
        shapes = ", ".join(str(tuple(array.shape)) for array in arrays.values())
        raise ValueError(
            f"the leading axes of query, key and value do not broadcast: {shapes}",
        ) from None


def require_scores(scores: Array, query: Array, key: Array) -> None:
    """Raise ValueError unless a score function returned one score for each query and key.

    scores: what it returned; they must be (..., n, m) for queries (..., n, d) and keys (..., m, d).
    """
    query_shape = tuple(query.shape)
    key_shape = tuple(key.shape)
    leading = np.broadcast_shapes(query_shape[:-2], key_shape[:-2])
    expected = *leading, query_shape[-2], key_shape[-2]
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"the score function returned {tuple(scores.shape)} for query {query_shape} and key "
            f"{key_shape}, not {expected}; wrap a formula over single vectors in "
            "attnviz.layer.pairwise",
        )


def require_mask(mask: Array, scores: Array) -> None:
    """Raise ValueError unless the mask broadcasts to the scores, (..., n, m)."""
    mask_shape = tuple(mask.shape)
    scores_shape = tuple(scores.shape)
    try:
        fits = np.broadcast_shapes(mask_shape, scores_shape) == scores_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask {mask_shape} does not broadcast to the scores {scores_shape}")


def require_residual(query: Array, output: Array) -> None:
    """Raise ValueError unless queries can be added to the output of attention.

    query: (..., n, d); output: (..., n, d_v), the context. They can if d is d_v.
    """
    if query.shape[-1] != output.shape[-1]:
        raise ValueError(
            f"residual: query {tuple(query.shape)} and context {tuple(output.shape)} "
            "differ in width",
        )
