"""Score functions: how well a key answers a query, s_ij = f(q_i, k_j), before the softmax.

A score function takes queries (..., n, d_q) and keys (..., m, d_k) and returns scores (..., n, m), for NumPy arrays and
torch tensors alike. ``pairwise`` makes one out of a formula for a single query and a single key.
"""

from collections.abc import Callable
from typing import TypeAlias

from attnviz.layer.arrays import Array, cast, namespace

Score: TypeAlias = Callable[[Array, Array], Array]


def dot(query: Array, key: Array) -> Array:
    """s_ij = q_i . k_j (Luong et al. 2015, "dot"): (..., n, d), (..., m, d) -> (..., n, m)."""
    require_same_width(query, key)
    return namespace(query).matmul(query, key.swapaxes(-1, -2))


def scaled_dot(query: Array, key: Array) -> Array:
    """s_ij = q_i . k_j / sqrt(d) (Vaswani et al. 2017, eq. 1): (..., n, d), (..., m, d) -> (..., n, m)."""
    return dot(query * query.shape[-1] ** -0.5, key)


def cosine(query: Array, key: Array) -> Array:
    """s_ij = cos(q_i, k_j), in [-1, 1] (Graves et al. 2014); 0 where a vector is zero. -> (..., n, m)."""
    return dot(unit(query), unit(key))


def gaussian(width: float = 1.0) -> Score:
    """s_ij = -|q_i - k_j|^2 / (2 width^2): after the softmax, Nadaraya-Watson regression with a Gaussian kernel.

    Raises ValueError if the width is not above zero.
    """
    if not width > 0:
        raise ValueError(f"the width of a Gaussian must be above 0, not {width}")

    def score(query: Array, key: Array) -> Array:
        require_same_width(query, key)
        centre = key.mean(-2)[
            ..., None, :
        ]  # distances do not change, and large common offsets do not cancel digits
        query, key = query - centre, key - centre
        squares = (
            (query**2).sum(-1)[..., :, None] + (key**2).sum(-1)[..., None, :] - 2 * dot(query, key)
        )
        return squares.clip(0) / (-2 * width**2)  # (..., n, m)

    return score


def general(W: Array) -> Score:  # noqa: N803 - the paper's letter
    """s_ij = q_i^T W k_j with W (d_q, d_k) (Luong et al. 2015, "general")."""

    def score(query: Array, key: Array) -> Array:
        require_fit(query, W, query.shape[-1], W.shape[0])
        return dot(namespace(query).matmul(query, cast(W, query.dtype)), key)

    return score


def additive(W: Array, U: Array, v: Array) -> Score:  # noqa: N803 - the paper's letters
    """s_ij = v^T tanh(W q_i + U k_j) with W (h, d_q), U (h, d_k), v (h,) (Bahdanau et al. 2015, appendix A.1.2)."""
    if not len(W) == len(U) == len(v):
        raise ValueError(
            f"W {tuple(W.shape)}, U {tuple(U.shape)} and v {tuple(v.shape)} differ in their first axis"
        )

    def score(query: Array, key: Array) -> Array:
        require_fit(query, W, query.shape[-1], W.shape[-1])
        require_fit(key, U, key.shape[-1], U.shape[-1])
        xp = namespace(query)
        w, u, last = (cast(array, query.dtype) for array in (W, U, v))
        q, k = (
            xp.matmul(query, w.swapaxes(0, 1)),
            xp.matmul(key, u.swapaxes(0, 1)),
        )  # (..., n, h), (..., m, h)
        return xp.matmul(xp.tanh(q[..., :, None, :] + k[..., None, :, :]), last)  # (..., n, m)

    return score


def pairwise(formula: Callable[[Array, Array], Array]) -> Score:
    """A score function from a formula over single vectors, f(q_i, k_j) -> number, that sums over its last axis.

    >>> nearest = pairwise(lambda q, k: -abs(q - k).sum(-1))
    """
    return lambda query, key: formula(query[..., :, None, :], key[..., None, :, :])


SCORES: dict[str, Score] = {
    "dot": dot,
    "scaled_dot": scaled_dot,
    "cosine": cosine,
    "gaussian": gaussian(),
}


def score_function(score: str | Score) -> Score:
    """A name from SCORES, or a function, as a function. Raises ValueError for an unknown name."""
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(
            f"unknown score function {score!r}: one of {', '.join(SCORES)}, or a function"
        )
    return SCORES[score]


def unit(vectors: Array) -> Array:
    """Vectors (..., d) of length 1; a zero vector stays zero."""
    squared = (vectors**2).sum(-1)[..., None]
    return vectors / namespace(vectors).where(squared > 0, squared, 1.0) ** 0.5


def require_same_width(query: Array, key: Array) -> None:
    """Raise ValueError unless queries and keys have vectors of one width."""
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} differ in their last axis"
        )


def require_fit(vectors: Array, matrix: Array, width: int, expected: int) -> None:
    """Raise ValueError unless a matrix of a score function can be applied to these vectors."""
    if width != expected:
        raise ValueError(
            f"vectors {tuple(vectors.shape)} do not fit the score's matrix {tuple(matrix.shape)}"
        )
