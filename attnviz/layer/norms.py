"""Norm-weighted attention (Kobayashi et al. 2020): how long the vectors are that attention moves.

Each head adds to query i the sum over j of w_ij f(x_j), with f(x_j) = v_j W_O. The bias of the values is in v_j; that
of the output belongs to no token, and is left out. For NumPy arrays and torch tensors.
"""

from attnviz.layer.arrays import Array, cast, namespace, widen


def moved(value: Array, projection: Array) -> Array:
    """The vectors f(x_j): value (heads, m, d_v) and W_O (heads * d_v, dim) -> (heads, m, dim)."""
    heads, _, width = value.shape
    return namespace(value).matmul(widen(value), widen(projection).reshape(heads, width, -1))


def lengths(vectors: Array) -> Array:
    """How long vectors are: (..., dim) -> (...)."""
    return (vectors**2).sum(-1) ** 0.5


def products(vectors: Array) -> Array:
    """The products of each token's vectors with each other: (heads, m, dim) -> (m, heads, heads), in float64.

    Where heads cancel each other, a small sum is left of large parts: single precision would not do.
    """
    xp = namespace(vectors)
    of_token = cast(vectors, xp.float64).swapaxes(0, 1)  # (m, heads, dim)
    return xp.matmul(of_token, of_token.swapaxes(1, 2))


def summed(weights: Array, inner: Array) -> Array:
    """How long the sum over heads of w_ij f(x_j) is: weights (heads, n, m), products (m, heads, heads) -> (n, m)."""
    xp = namespace(weights)
    by_key = cast(weights, xp.float64).swapaxes(0, 2)  # (m, n, heads)
    squares = (xp.matmul(by_key, inner) * by_key).sum(-1)
    return (squares * (squares > 0)).swapaxes(0, 1) ** 0.5
