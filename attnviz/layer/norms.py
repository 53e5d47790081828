"""Norm-weighted attention (Kobayashi et al. 2020): how long the vectors are that attention moves.

Each head adds to query i the sum over j of w_ij f(x_j), with f(x_j) = v_j W_O. The bias of the
values is in v_j; that of the output belongs to no token, and is left out. For NumPy arrays and
torch tensors.
"""

from attnviz.layer.arrays import Array, cast, find_namespace, widen_to_single


def compute_moved_vectors(value: Array, projection: Array) -> Array:
    """Compute the vectors f(x_j) = v_j W_O that heads move from each token j to the queries.

    value: v_j of each head, (heads, m, d_v). projection: W_O, the parts of the heads one after the
    other, (heads * d_v, dim). Returns (heads, m, dim).
    """
    heads, _, width = value.shape
    by_head = widen_to_single(projection).reshape(heads, width, -1)
    return find_namespace(value).matmul(widen_to_single(value), by_head)


def measure_vector_lengths(vectors: Array) -> Array:
    """Measure how long vectors are: (..., dim) -> (...)."""
    return (vectors**2).sum(-1) ** 0.5


def compute_inner_products(vectors: Array) -> Array:
    """Compute the inner products of each token's vectors, those of one head with another's.

    vectors: (heads, m, dim). Returns (m, heads, heads), in float64: where heads cancel each other,
    a small sum is left of large parts, and single precision would not do.
    """
    xp = find_namespace(vectors)
    by_token = cast(vectors, xp.float64).swapaxes(0, 1)  # (m, heads, dim)
    return xp.matmul(by_token, by_token.swapaxes(1, 2))


def measure_sum_lengths(weights: Array, inner: Array) -> Array:
    """Measure the length of the sum over heads of w_ij f(x_j), for queries i and keys j.

    weights: w_ij, (heads, n, m). inner: the inner products of the vectors f(x_j) of the heads, (m,
    heads, heads), as ``compute_inner_products`` computes them. Returns (n, m), in float64.
    """
    xp = find_namespace(weights)
    by_key = cast(weights, xp.float64).swapaxes(0, 2)  # (m, n, heads)
    # |sum_h w_h f_h|^2 = sum_hk w_h w_k <f_h, f_k>, which rounding may bring below 0
    squares = (xp.matmul(by_key, inner) * by_key).sum(-1)
    not_negative = squares * (squares > 0)
    return not_negative.swapaxes(0, 1) ** 0.5
