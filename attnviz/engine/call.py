"""One call of attention, in the words of the field: whatever calls it, this is what the blocks read."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HIDDEN = -1e30  # score of a masked key: exp gives 0, and 0 * HIDDEN is 0 where 0 * -inf is nan


@dataclass(frozen=True, eq=False)
class Call:
    """What one layer is asked to do.

    B batch, H query heads, K key heads that H / K query heads share, N queries, M keys.

    Scores are softcap * tanh(q k * scale / softcap) + bias, hidden where the mask or causality say so (Vaswani et al.
    2017; grouped heads: Ainslie et al. 2023; soft cap: Gemma 2, 2024; relative bias: Raffel et al. 2020; ALiBi: Press
    et al. 2022). A sink is one more score in the softmax that stands for no key (gpt-oss, 2025): rows then sum to less
    than 1.
    """

    query: Tensor
    """(B, H, N, d)."""
    key: Tensor
    """(B, K, M, d)."""
    value: Tensor
    """(B, K, M, d_v)."""
    scale: float
    mask: Tensor | None = None
    """Broadcasts to (B, H, N, M). Boolean: True where a query may attend; float: added to the scores."""
    causal: bool = False
    """A query sees the keys up to its own number, counted from the first of both."""
    bias: Tensor | None = None
    """Broadcasts to (B, H, N, M), added to the scores."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """(H,), or broadcasts to (B, H, N, 1)."""

    @property
    def plain(self) -> bool:
        """Whether torch's scaled_dot_product_attention can compute it."""
        return self.softcap is None and self.sinks is None

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """What changes scores cell by cell, each (B or 1, H or 1, N or 1, M)."""
        return tuple(part for part in (self.bias, self.mask) if part is not None)

    def heads(self, chosen: tuple[int, ...]) -> "Call":
        """The same for some of its heads, each with a key head of its own."""
        pick = torch.tensor(chosen, device=self.query.device)
        shared = pick // (self.query.shape[1] // self.key.shape[1])
        bias, mask = (pick_heads(part, pick) for part in (self.bias, self.mask))
        sinks = None if self.sinks is None else spread(self.sinks)[:, pick]
        query, key, value = self.query[:, pick], self.key[:, shared], self.value[:, shared]
        return replace(self, query=query, key=key, value=value, mask=mask, bias=bias, sinks=sinks)

    def rows(self, rows: Tensor) -> "Call":
        """The same for some of its queries, by their numbers."""
        hidden = None
        if self.causal:
            hidden = (
                torch.arange(self.key.shape[2], device=rows.device) <= rows[:, None]
            )  # (row, M)
        bias, mask = (pick_rows(part, rows) for part in (self.bias, self.mask))
        sinks = None if self.sinks is None else pick_rows(spread(self.sinks), rows)
        mask = (
            mask if hidden is None else hidden[None, None]
        )  # causality and a mask never come together
        return replace(
            self, query=self.query[:, :, rows], mask=mask, bias=bias, sinks=sinks, causal=False
        )

    def detached(self) -> "Call":
        """The same outside of torch's graph."""
        parts: Any = {
            name: part.detach() for name, part in vars(self).items() if isinstance(part, Tensor)
        }
        return replace(self, **parts)

    def sdpa(self) -> Tensor:
        """The output (B, H, N, d_v) by torch's own function, which must be able to: see ``plain``."""
        mask, causal = self.mask, self.causal
        if self.bias is not None:
            mask, causal = (self.visible() if causal else mask), False
            mask = self.bias if mask is None else self.bias + additive(mask, self.bias.dtype)
        grouped = self.query.shape[1] != self.key.shape[1]
        given: Any = {
            "attn_mask": mask,
            "is_causal": causal,
            "scale": self.scale,
            "enable_gqa": grouped,
        }
        return scaled_dot_product_attention(self.query, self.key, self.value, **given)

    def hiding(self, cut: Tensor) -> "Call":
        """The same without some edges: (B or 1, H or 1, N, M), True where one is cut."""
        if self.mask is not None and self.mask.dtype != torch.bool:
            least = torch.finfo(self.mask.dtype).min
            return replace(self, mask=torch.where(cut, least, self.mask))
        seen = self.visible() if self.causal or self.mask is None else self.mask
        return replace(self, mask=seen & ~cut, causal=False)

    def visible(self) -> Tensor:
        """Boolean (B or 1, H or 1, N or 1, M): True where a query may attend."""
        n, m = self.query.shape[2], self.key.shape[2]
        if self.causal:
            return torch.ones(n, m, dtype=torch.bool, device=self.query.device).tril_()[None, None]
        seen = torch.ones(1, 1, 1, m, dtype=torch.bool, device=self.query.device)
        for part in self.masks:
            seen = seen & may_attend(part)
        return seen


def may_attend(mask: Tensor) -> Tensor:
    """A mask of either kind as a boolean one: a float one hides by the least number of its type, or nearly."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of either kind as numbers to add to the scores; HIDDEN, or the least of a half type, where masked."""
    hidden = max(HIDDEN, torch.finfo(dtype).min)
    if mask.dtype == torch.bool:
        return torch.zeros((), dtype=dtype, device=mask.device).where(mask, hidden)
    return mask.to(dtype).masked_fill(~may_attend(mask), hidden)


def spread(sinks: Tensor) -> Tensor:
    """Sinks as (B or 1, H, N or 1, 1)."""
    return sinks.reshape(1, -1, 1, 1) if sinks.ndim == 1 else sinks


def pick_heads(part: Tensor | None, heads: Tensor) -> Tensor | None:
    """Some heads of a mask that may have one for all."""
    return part if part is None or part.shape[1] == 1 else part[:, heads]


def pick_rows(part: Tensor | None, rows: Tensor) -> Tensor | None:
    """Some queries of a mask that may have one row for all."""
    return part if part is None or part.shape[2] == 1 else part[:, :, rows]


def default_scale(query: Tensor) -> float:
    """1 / sqrt(d)."""
    return 1 / math.sqrt(query.shape[-1])
