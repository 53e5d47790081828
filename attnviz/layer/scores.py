"""Score functions: how well a key answers a query, s_ij = f(q_i, k_j), before the softmax.

A score function takes queries (..., n, d_q) and keys (..., m, d_k) and returns scores (..., n, m),
for NumPy arrays and torch tensors alike. ``pairwise`` makes one out of a formula for a single query
and a single key.
"""

from collections.abc import Callable
from typing import TypeAlias

from attnviz.layer.arrays import Array, cast, find_namespace

Score: TypeAlias = Callable[[Array, Array], Array]


def dot(query: Array, key: Array) -> Array:
    """Compute s_ij = q_i . k_j (Luong et al. 2015, "dot").

    (..., n, d), (..., m, d) -> (..., n, m).
    """
    require_same_width(query, key)
    turned = key.swapaxes(-1, -2)
    return find_namespace(query).matmul(query, turned)


def scaled_dot(query: Array, key: Array) -> Array:
    """Compute s_ij = q_i . k_j / sqrt(d) (Vaswani et al. 2017, eq. 1).

    (..., n, d), (..., m, d) -> (..., n, m).
    """
    scale = query.shape[-1] ** -0.5
    return dot(query * scale, key)


def cosine(query: Array, key: Array) -> Array:
    """Compute s_ij = cos(q_i, k_j), in [-1, 1] (Graves et al. 2014); 0 where a vector is zero.

    (..., n, d), (..., m, d) -> (..., n, m).
    """
    return dot(scale_to_unit(query), scale_to_unit(key))


def gaussian(width: float = 1.0) -> Score:
    """Make the score function s_ij = -|q_i - k_j|^2 / (2 width^2).

    width: the standard deviation of the Gaussian, in the units of the vectors. After the softmax
    that is Nadaraya-Watson regression with a Gaussian kernel. Raises ValueError if the width is not
    above zero.
    """
    if not width > 0:
        raise ValueError(f"the width of a Gaussian must be above 0, not {width}")

    def score(query: Array, key: Array) -> Array:
        """Compute -|q_i - k_j|^2 / (2 width^2): (..., n, d), (..., m, d) -> (..., n, m)."""
        require_same_width(query, key)
        # Distances stay as they are, and large common offsets cost no digits.
        centre = key.mean(-2)[..., None, :]
        query = query - centre
        key = key - centre
        query_squares = (query**2).sum(-1)[..., :, None]
        key_squares = (key**2).sum(-1)[..., None, :]
        squares = query_squares + key_squares - 2 * dot(query, key)
        return squares.clip(0) / (-2 * width**2)  # (..., n, m)

    return score


def general(W: Array) -> Score:  # noqa: N803 - the paper's letter
    """Make the score function s_ij = q_i^T W k_j (Luong et al. 2015, "general").

    W: (d_q, d_k). The function raises ValueError if the queries or the keys do not fit it.
    """

    def score(query: Array, key: Array) -> Array:
        require_matrix_fit(query, W, W.shape[0])
        matrix = cast(W, query.dtype)
        return dot(find_namespace(query).matmul(query, matrix), key)

    return score


def additive(W: Array, U: Array, v: Array) -> Score:  # noqa: N803 - the paper's letters
    """Make the score function s_ij = v^T tanh(W q_i + U k_j).

    W (h, d_q), U (h, d_k), v (h,): Bahdanau et al. 2015, appendix A.1.2. Raises ValueError if these
    differ in h; the function does if the queries or the keys do not fit them.
    """
    if not len(W) == len(U) == len(v):
        w_shape = tuple(W.shape)
        u_shape = tuple(U.shape)
        v_shape = tuple(v.shape)
        raise ValueError(f"W {w_shape}, U {u_shape} and v {v_shape} differ in their first axis")

    def score(query: Array, key: Array) -> Array:
        """Compute v^T tanh(W q_i + U k_j): (..., n, d_q), (..., m, d_k) -> (..., n, m)."""
        require_matrix_fit(query, W, W.shape[-1])
        require_matrix_fit(key, U, U.shape[-1])
        xp = find_namespace(query)
        query_matrix = cast(W, query.dtype)
        key_matrix = cast(U, query.dtype)
        vector = cast(v, query.dtype)
        q = xp.matmul(query, query_matrix.swapaxes(0, 1))  # (..., n, h)
        k = xp.matmul(key, key_matrix.swapaxes(0, 1))  # (..., m, h)
        pairs = q[..., :, None, :] + k[..., None, :, :]
        return xp.matmul(xp.tanh(pairs), vector)  # (..., n, m)

    return score


def pairwise(formula: Callable[[Array, Array], Array]) -> Score:
    """Make a score function from a formula over single vectors, f(q_i, k_j) -> number.

    The formula is called once, with queries (..., n, 1, d) and keys (..., 1, m, d), and must sum
    over the last axis.

    >>> nearest = pairwise(lambda q, k: -abs(q - k).sum(-1))
    """

    def score(query: Array, key: Array) -> Array:
        queries = query[..., :, None, :]
        keys = key[..., None, :, :]
        return formula(queries, keys)

    return score


SCORES: dict[str, Score] = {
    "dot": dot,
    "scaled_dot": scaled_dot,
    "cosine": cosine,
    "gaussian": gaussian(),
}


def find_score_function(score: str | Score) -> Score:
    """Return the score function of a name, or a function as it is.

    score: a name from SCORES, or a function of queries and keys. Raises ValueError for an unknown
    name.
    """
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(
            f"unknown score function {score!r}: one of {', '.join(SCORES)}, or a function",
        )
    return SCORES[score]


def split_score_scale(name: str, width: int) -> tuple[str, float]:
    """Split a score function into one that does not scale, and the number that multiplies scores.

    name: one of SCORES. width: of queries and keys. Returns the name of the other function, and the
    number, which is 1 for all but ``scaled_dot``.
    """
    if name == "scaled_dot":
        return "dot", width**-0.5
    return name, 1.0


def scale_to_unit(vectors: Array) -> Array:
    """Scale vectors (..., d) to length 1; a zero vector stays zero."""
    squared = (vectors**2).sum(-1)[..., None]
    not_zero = find_namespace(vectors).where(squared > 0, squared, 1.0)
    return vectors / not_zero**0.5


def require_same_width(query: Array, key: Array) -> None:
    """Raise ValueError unless queries and keys have vectors of one width.

    query: (..., n, d), key: (..., m, d).
    """
    query_shape = tuple(query.shape)
    key_shape = tuple(key.shape)
    if query_shape[-1] != key_shape[-1]:
        raise ValueError(f"query {query_shape} and key {key_shape} differ in their last axis")


def require_matrix_fit(vectors: Array, matrix: Array, width: int) -> None:
    """Raise ValueError unless a matrix of a score function can be applied to these vectors.

    vectors: (..., width). matrix: named in the message by its shape. width: the width that it
    takes.
    """
    shape = tuple(vectors.shape)
    if shape[-1] != width:
        matrix_shape = tuple(matrix.shape)
        raise ValueError(f"vectors {shape} do not fit the score's matrix {matrix_shape}")
