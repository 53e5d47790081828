"""One call of attention, in the words of the field: whatever calls it, the blocks read this."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HIDDEN = -1e30  # score of a masked key: exp gives 0, and 0 * HIDDEN is 0 where 0 * -inf is nan


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of attention, as one layer makes it.

    B batch, H query heads, K key heads that H / K query heads share, N queries, M keys.

    Scores are softcap * tanh(q k * scale / softcap) + bias, hidden where the mask or causality say
    so (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; soft cap: Gemma 2, 2024; relative
    bias: Raffel et al. 2020; ALiBi: Press et al. 2022). A sink is one more score in the softmax
    that stands for no key (gpt-oss, 2025): rows then sum to less than 1.
    """

    query: Tensor
    """(B, H, N, d)."""
    key: Tensor
    """(B, K, M, d)."""
    value: Tensor
    """(B, K, M, d_v)."""
    scale: float
    mask: Tensor | None = None
    """Broadcasts to (B, H, N, M). Booleans: True where a query may attend; floats: added to scores.
    """
    causal: bool = False
    """A query sees the keys up to its own number, counted from the first of both."""
    bias: Tensor | None = None
    """Broadcasts to (B, H, N, M), added to the scores."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """(H,), or broadcasts to (B, H, N, 1)."""

    @property
    def plain(self) -> bool:
        """True if torch's scaled_dot_product_attention can compute the call."""
        return self.softcap is None and self.sinks is None

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """The tensors that change scores cell by cell, each (B or 1, H or 1, N or 1, M)."""
        masks = self.bias, self.mask
        return tuple(mask for mask in masks if mask is not None)

    def pick_heads(self, heads: tuple[int, ...]) -> "Call":
        """Return the call of some of its heads, each with a key head of its own.

        heads: numbers of query heads, in the order that the returned call is to have. The keys and
        values that several of them share are repeated.
        """
        query_heads = torch.tensor(heads, device=self.query.device)
        query_heads_a_key_head = self.query.shape[1] // self.key.shape[1]
        key_heads = query_heads // query_heads_a_key_head
        sinks = None
        if self.sinks is not None:
            sinks = reshape_sinks(self.sinks)[:, query_heads]
        query = self.query[:, query_heads]
        key = self.key[:, key_heads]
        value = self.value[:, key_heads]
        mask = pick_mask_heads(self.mask, query_heads)
        bias = pick_mask_heads(self.bias, query_heads)
        return replace(self, query=query, key=key, value=value, mask=mask, bias=bias, sinks=sinks)

    def pick_queries(self, rows: Tensor) -> "Call":
        """Return the call of some of its queries.

        rows: the positions of these queries, (row,). A causal call becomes one with a mask, because
        the positions of its queries are no longer 0, 1, 2 ...
        """
        mask = pick_mask_queries(self.mask, rows)
        if self.causal:  # causality and a mask never come together
            keys = torch.arange(self.key.shape[2], device=rows.device)
            visible = keys <= rows[:, None]  # (row, key)
            mask = visible[None, None]
        sinks = None
        if self.sinks is not None:
            sinks = pick_mask_queries(reshape_sinks(self.sinks), rows)
        query = self.query[:, :, rows]
        bias = pick_mask_queries(self.bias, rows)
        return replace(self, query=query, mask=mask, bias=bias, sinks=sinks, causal=False)

    def detach(self) -> "Call":
        """Return the call with its tensors outside of torch's autograd graph."""
        detached: Any = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                detached[name] = value.detach()
        return replace(self, **detached)

    def run_sdpa(self) -> Tensor:
        """Compute the output of the call by torch's scaled_dot_product_attention.

        The call must be ``plain``, that is, without a soft cap and sinks. Returns (batch, head,
        query, d_v).
        """
        mask = self.mask
        causal = self.causal
        # Torch takes one mask only: all goes into one of numbers.
        if self.bias is not None:
            if causal:
                mask = self.find_visible_cells()
            causal = False
            mask = add_mask_to_bias(self.bias, mask)
        is_grouped = self.query.shape[1] != self.key.shape[1]
        options: Any = {
            "attn_mask": mask,
            "is_causal": causal,
            "scale": self.scale,
            "enable_gqa": is_grouped,
        }
        return scaled_dot_product_attention(self.query, self.key, self.value, **options)

    def hide_edges(self, edges: Tensor) -> "Call":
        """Return the call without some edges: these queries may not attend to these keys.

        edges: (batch or 1, head or 1, query, key), True where an edge is cut.
        """
        if self.mask is not None and self.mask.dtype != torch.bool:
            least = torch.finfo(self.mask.dtype).min
            return replace(self, mask=torch.where(edges, least, self.mask))
        visible = self.mask
        if self.causal or visible is None:
            visible = self.find_visible_cells()
        return replace(self, mask=visible & ~edges, causal=False)

    def find_visible_cells(self) -> Tensor:
        """Return booleans that are True where a query may attend to a key.

        Their shape is (batch or 1, head or 1, query or 1, key).
        """
        queries = self.query.shape[2]
        keys = self.key.shape[2]
        device = self.query.device
        if self.causal:
            every_cell = torch.ones(queries, keys, dtype=torch.bool, device=device)
            return every_cell.tril_()[None, None]
        visible = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=device)
        for mask in self.masks:
            visible = visible & may_attend(mask)
        return visible


def add_mask_to_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Return a bias and a mask as one mask of numbers that are added to the scores.

    mask: booleans, True where a query may attend, or numbers; None for no mask.
    """
    if mask is None:
        return bias
    return bias + make_additive_mask(mask, bias.dtype)


def may_attend(mask: Tensor) -> Tensor:
    """Return a mask as booleans, True where a query may attend.

    mask: booleans already, or numbers that are added to the scores: these hide a key by the least
    number of their type, or nearly.
    """
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2


def make_additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers of a type, which are added to the scores.

    mask: booleans, True where a query may attend, or numbers already. Masked cells become HIDDEN,
    or the least number of the type if that is larger, as it is for half types.
    """
    hidden = max(HIDDEN, torch.finfo(dtype).min)
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=dtype, device=mask.device)
        return zero.where(mask, hidden)
    return mask.to(dtype).masked_fill(~may_attend(mask), hidden)


def reshape_sinks(sinks: Tensor) -> Tensor:
    """Return sinks as (batch or 1, head, query or 1, 1).

    sinks: that already, or one for each head, (head,).
    """
    if sinks.ndim == 1:
        return sinks.reshape(1, -1, 1, 1)
    return sinks


def pick_mask_heads(mask: Tensor | None, heads: Tensor) -> Tensor | None:
    """Return some heads of a mask; a mask that serves all heads stays as it is.

    mask: (batch or 1, head or 1, query or 1, key or 1), or None. heads: the numbers of the heads.
    """
    if mask is None or mask.shape[1] == 1:
        return mask
    return mask[:, heads]


def pick_mask_queries(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return some queries of a mask; a mask that serves all queries stays as it is.

    mask: (batch or 1, head or 1, query or 1, key or 1), or None. rows: the positions of the
    queries.
    """
    if mask is None or mask.shape[2] == 1:
        return mask
    return mask[:, :, rows]


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat each head of keys or values for the query heads that share it.

    tensor: (batch, key head, key, d). heads: the number of query heads, a multiple of the number of
    key heads. Returns (batch, heads, key, d).
    """
    repeats = heads // tensor.shape[1]
    return tensor.repeat_interleave(repeats, 1)


def compute_default_scale(query: Tensor) -> float:
    """Return 1 / sqrt(d), by which scores are scaled unless a model says otherwise."""
    return 1 / math.sqrt(query.shape[-1])
