"""Multi-head attention as a function over a dict of parameters: the modules and the language model share it."""

from collections.abc import Mapping

from attnviz.layer.arrays import Array, cast, namespace, widen
from attnviz.layer.attention import Attended, attend, require_sequences
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

    parameters: ``query.weight`` (heads * head_dim, dim), ``key.weight`` and ``value.weight`` (kv_heads * head_dim,
    dim), ``output.weight`` (dim, heads * head_dim), each with an optional ``.bias``.
    query (..., n, dim), key (..., m, key_dim), value (..., m, value_dim) -> output (..., n, dim), weights and scores
    (..., heads, n, m). Query head h reads key head h // (heads / kv_heads) (grouped heads, Ainslie et al. 2023).

    mask: broadcasts to (..., heads, n, m). rotary: positions by rotation (Su et al. 2021), the last query and the last
    key at one place. score: of the heads, as in ``attend``.
    """
    require_sequences(query, key, value)
    q, k, v = (
        linear(parameters, name, x)
        for name, x in (("query", query), ("key", key), ("value", value))
    )
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
    return attended._replace(output=linear(parameters, "output", attended.output))


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
    """Between the projections: split into heads, attend in each, merge.

    query (..., n, heads * head_dim), key and value (..., m, kv_heads * head_dim) -> output (..., n, heads * head_dim),
    weights and scores (..., heads, n, m). The rest is as in ``multi_head_attend``.
    """
    kv_heads = kv_heads or heads
    q = split_heads(query, heads)  # (..., heads, n, head_dim)
    k, v = split_heads(key, kv_heads), split_heads(value, kv_heads)  # (..., kv_heads, m, head_dim)
    if rotary:
        q, k = rotate(q, first=k.shape[-2] - q.shape[-2]), rotate(k)
    k, v = share_heads(k, heads), share_heads(v, heads)  # (..., heads, m, head_dim)
    attended = attend(q, k, v, score=score, mask=mask, causal=causal)
    return attended._replace(output=merge_heads(attended.output))


def linear(parameters: Mapping[str, Array], name: str, x: Array) -> Array:
    """X W^T + b with W (out, in): (..., in) -> (..., out)."""
    projected = namespace(x).matmul(x, parameters[f"{name}.weight"].swapaxes(0, 1))
    bias = parameters.get(f"{name}.bias")
    return projected if bias is None else projected + bias


def split_heads(x: Array, heads: int) -> Array:
    """(..., n, heads * head_dim) -> (..., heads, n, head_dim)."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """(..., heads, n, head_dim) -> (..., n, heads * head_dim)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def share_heads(x: Array, heads: int) -> Array:
    """Repeat each key or value head for the query heads that share it: (..., kv_heads, m, d) -> (..., heads, m, d)."""
    *lead, kv_heads, m, d = x.shape
    if kv_heads == heads:
        return x
    grouped = namespace(x).broadcast_to(
        x[..., :, None, :, :], (*lead, kv_heads, heads // kv_heads, m, d)
    )
    return grouped.reshape(*lead, heads, m, d)


def rotate(x: Array, first: int = 0) -> Array:
    """Rotary position embedding (Su et al. 2021, eq. 34) of (..., n, d), d even, from place ``first`` on.

    Dimension i is paired with i + d / 2, as in Llama.
    """
    x = widen(x)
    xp, (n, d) = namespace(x), x.shape[-2:]
    places = cast(xp.arange(n, device=x.device), x.dtype) + first
    rates = ROTARY_BASE ** (cast(xp.arange(d // 2, device=x.device), x.dtype) * (-2.0 / d))
    cos, sin = xp.cos(places[:, None] * rates), xp.sin(places[:, None] * rates)  # (n, d / 2)
    left, right = x[..., : d // 2], x[..., d // 2 :]
    return xp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
