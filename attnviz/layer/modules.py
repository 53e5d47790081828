"""The attention layer as torch modules.

They hold parameters; the arithmetic is in attention.py and multihead.py.
"""

from typing import Literal, overload

from torch import Tensor, nn

from attnviz.layer.attention import attend, require_vectors
from attnviz.layer.multihead import attend_heads


class Attention(nn.Module):
    """Single-head self-attention with query, key and value projections.

    Vaswani et al. 2017, eq. 1, with Q = x W_q + b_q, and K and V made in the same way; scores are
    divided by sqrt(dim).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    @overload
    def forward(self, x: Tensor, return_weights: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from each vector to all: x (..., n, dim) -> output (..., n, dim).

        With return_weights also weights (..., n, n).
        """
        query = self.query(x)
        key = self.key(x)
        value = self.value(x)
        output, weights, _ = attend(query, key, value)
        return (output, weights) if return_weights else output


class MultiHeadAttention(nn.Module):
    """Multi-head self- and cross-attention (Vaswani et al. 2017).

    Heads are grouped if kv_heads < heads. dim: width of queries and outputs. key_dim, value_dim:
    width of keys and values (default: dim). head_dim: width of one head (default: dim / heads).
    kv_heads: key and value heads, each shared by heads / kv_heads query heads (Ainslie et al.
    2023). rotary: rotary positions (Su et al. 2021). causal: see ``attend``.
    Raises ValueError if the numbers of heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        causal: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.causal = causal
        self.rotary = rotary
        require_divisible(
            dim,
            heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            rotary=rotary,
        )
        head_dim = head_dim or dim // heads
        self.query = nn.Linear(dim, heads * head_dim, bias)
        self.key = nn.Linear(key_dim or dim, self.kv_heads * head_dim, bias)
        self.value = nn.Linear(value_dim or dim, self.kv_heads * head_dim, bias)
        self.output = nn.Linear(heads * head_dim, dim, bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend in every head: query (..., n, dim) -> output (..., n, dim).

        With return_weights also weights (..., heads, n, m). key (..., m, key_dim): default query
        (self-attention). value (..., m, value_dim): default key. mask: (n, m), (batch, n, m) or
        (batch, heads, n, m); booleans (True: may attend) or floats (added to the scores).
        Raises ValueError where a width does not fit its projection, naming both.
        """
        key = query if key is None else key
        value = key if value is None else value
        require_vectors(query, key, value)
        require_width("query", query, self.query)
        require_width("key", key, self.key)
        require_width("value", value, self.value)
        if mask is not None and mask.ndim == 3:
            # One for all heads.
            mask = mask[:, None]
        merged, weights, _ = attend_heads(
            self.query(query),
            self.key(key),
            self.value(value),
            heads=self.heads,
            kv_heads=self.kv_heads,
            mask=mask,
            causal=self.causal,
            rotary=self.rotary,
        )
        output = self.output(merged)
        return (output, weights) if return_weights else output


def require_width(name: str, x: Tensor, projection: nn.Linear) -> None:
    """Raise ValueError unless vectors have the width that their projection takes.

    name: of the argument, for the message. x: the vectors, (..., width).
    """
    width = projection.in_features
    if x.shape[-1] != width:
        raise ValueError(f"{name} {tuple(x.shape)} does not fit a projection of width {width}")


def require_divisible(
    dim: int,
    heads: int,
    kv_heads: int,
    head_dim: int | None,
    rotary: bool,
) -> None:
    """Raise ValueError unless widths and numbers of heads divide as multi-head attention needs.

    dim: width of the queries. heads, kv_heads: how many query heads there are, and how many key and
    value heads. head_dim: width of one head; None: dim / heads. rotary: True for rotary positions,
    which turn pairs of dimensions, so that a head's width must be even.
    """
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share {kv_heads} key and value heads evenly")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim {dim} is not a multiple of {heads} heads; give head_dim")
    width = head_dim or dim // heads
    if rotary and width % 2:
        raise ValueError(f"rotary positions need an even head_dim, not {width}")
