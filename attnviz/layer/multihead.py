"""Multi-head attention as functions over a dict of parameters.

The modules and the transformer of ``attnviz.lm`` are made of them.
"""

from collections.abc import Mapping

from attnviz.layer.arrays import Array, cast, find_namespace, widen_to_single
from attnviz.layer.attention import Attended, attend, require_vectors
from attnviz.layer.scores import Score

ROTARY_BASE = 10_000.0


def multi_head_attend(
    parameters: Mapping[str, Array],
    query: Array,
    key: Array,
    value: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    mask: Array | None = None,
    causal: bool = False,
    rotary: bool = False,
    score: str | Score = "scaled_dot",
) -> Attended:
    """Project, attend in every head, merge, project: Vaswani et al. 2017, section 3.2.2.

    parameters: ``query.weight`` (heads * head_dim, dim), ``key.weight`` and ``value.weight``
    (kv_heads * head_dim, dim), ``output.weight`` (dim, heads * head_dim), each with an optional
    ``.bias``.
    query (..., n, dim), key (..., m, key_dim), value (..., m, value_dim) -> output (..., n, dim),
    weights and scores (..., heads, n, m). Query head h reads key head h // (heads / kv_heads)
    (grouped heads, Ainslie et al. 2023); kv_heads is heads by default.

    mask: broadcasts to (..., heads, n, m); booleans, True where a query may attend, or numbers that
    are added to the scores. causal: a query sees keys up to its own position. rotary: positions by
    rotation (Su et al. 2021). With causal or rotary, the last query and the last key are at one
    position. score: of the heads, as in ``attend``.
    """
    require_vectors(query, key, value)
    q = apply_linear(parameters, "query", query)
    k = apply_linear(parameters, "key", key)
    v = apply_linear(parameters, "value", value)
    attended = attend_heads(
        q,
        k,
        v,
        heads=heads,
        kv_heads=kv_heads,
        mask=mask,
        causal=causal,
        rotary=rotary,
        score=score,
    )
    return attended._replace(output=apply_linear(parameters, "output", attended.output))


def attend_heads(
    query: Array,
    key: Array,
    value: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    mask: Array | None = None,
    causal: bool = False,
    rotary: bool = False,
    score: str | Score = "scaled_dot",
) -> Attended:
    """Split projected vectors into heads, attend in each, and merge the heads.

    query: (..., n, heads * head_dim); key, value: (..., m, kv_heads * head_dim). kv_heads: key and
    value heads, each shared by heads / kv_heads query heads; default: heads. mask: broadcasts to
    (..., heads, n, m); booleans, True where a query may attend, or numbers that are added to the
    scores. causal: a query sees keys up to its own position. rotary: positions by rotation (Su et
    al. 2021). With causal or rotary, the last query and the last key are at one position. score: of
    the heads, as in ``attend``.
    Returns the output before its projection, (..., n, heads * head_dim), and weights and scores,
    (..., heads, n, m).
    """
    kv_heads = kv_heads or heads
    q = split_heads(query, heads)  # (..., heads, n, head_dim)
    k = split_heads(key, kv_heads)  # (..., kv_heads, m, head_dim)
    v = split_heads(value, kv_heads)
    if rotary:
        keys_before = k.shape[-2] - q.shape[-2]
        q = apply_rotary(q, first=keys_before)
        k = apply_rotary(k)
    k = share_heads(k, heads)  # (..., heads, m, head_dim)
    v = share_heads(v, heads)
    attended = attend(q, k, v, score=score, mask=mask, causal=causal)
    return attended._replace(output=merge_heads(attended.output))


def apply_linear(parameters: Mapping[str, Array], name: str, x: Array) -> Array:
    """Apply a linear layer, x W^T + b: (..., in) -> (..., out).

    parameters: have ``NAME.weight`` W (out, in), and ``NAME.bias`` b (out,) if there is one.
    """
    weight = parameters[f"{name}.weight"].swapaxes(0, 1)
    # as one product: NumPy would arrange the weights anew for each text of a batch
    rows = x.reshape(-1, x.shape[-1])
    projected = find_namespace(x).matmul(rows, weight).reshape(*x.shape[:-1], weight.shape[1])
    bias = parameters.get(f"{name}.bias")
    return projected if bias is None else projected + bias


def split_heads(x: Array, heads: int) -> Array:
    """Split vectors into heads: (..., n, heads * head_dim) -> (..., heads, n, head_dim)."""
    by_head = x.reshape(*x.shape[:-1], heads, -1)
    return by_head.swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """Merge heads into vectors: (..., heads, n, head_dim) -> (..., n, heads * head_dim)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def share_heads(x: Array, heads: int) -> Array:
    """Repeat each key or value head for the query heads that share it.

    heads: the number of query heads, a multiple of kv_heads. (..., kv_heads, m, d) -> (..., heads,
    m, d).
    """
    *lead, kv_heads, m, d = x.shape
    if kv_heads == heads:
        return x
    size = *lead, kv_heads, heads // kv_heads, m, d
    grouped = find_namespace(x).broadcast_to(x[..., :, None, :, :], size)
    return grouped.reshape(*lead, heads, m, d)


def apply_rotary(x: Array, first: int = 0) -> Array:
    """Apply rotary position embedding (Su et al. 2021, eq. 34) to vectors (..., n, d), d even.

    first: the position of the first vector; the others follow one by one. Dimension i is paired
    with i + d / 2, as in Llama. The result is in float32 at least.
    """
    x = widen_to_single(x)
    n, d = x.shape[-2:]
    cosines, sines = make_rotation(make_rotary_rates(d, like=x), n, first)
    return rotate_pairs(x, cosines, sines)


def make_rotary_rates(width: int, *, like: Array) -> Array:
    """Make the angles in radians by which pairs of numbers turn from one position to the next.

    width: d, how many numbers are rotated. like: an array of the kind, type and device of the
    result, 10000^(-2 i / d) for each pair i, (d / 2,).
    """
    xp = find_namespace(like)
    pairs = cast(xp.arange(width // 2, device=like.device), like.dtype)
    return ROTARY_BASE ** (pairs * (-2.0 / width))


def make_rotation(rates: Array, length: int, first: int = 0) -> tuple[Array, Array]:
    """Make the cosines and the sines of the angles of positions, (length, pairs) each.

    rates: by which each pair turns from one position to the next, in radians, (pairs,). first: the
    first of the positions.
    """
    xp = find_namespace(rates)
    positions = cast(xp.arange(length, device=rates.device), rates.dtype) + first
    angles = positions[:, None] * rates
    return xp.cos(angles), xp.sin(angles)


def rotate_pairs(x: Array, cosines: Array, sines: Array) -> Array:
    """Rotate pairs of numbers of vectors (..., n, d): number i with number i + pairs.

    cosines, sines: of the angles, (n, pairs). Numbers beyond twice the pairs stay as they are.
    """
    pairs = cosines.shape[-1]
    left = x[..., :pairs]
    right = x[..., pairs : 2 * pairs]
    rotated_left = left * cosines - right * sines
    rotated_right = right * cosines + left * sines
    rotated = [rotated_left, rotated_right]
    if 2 * pairs < x.shape[-1]:
        rotated.append(x[..., 2 * pairs :])
    return find_namespace(x).concatenate(rotated, axis=-1)
