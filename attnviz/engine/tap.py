"""Calls of torch's own functions, for models that do not hand their attention to anybody.

While a tap is open it sees every call of ``scaled_dot_product_attention``, of ``multi_head_attention_forward`` (behind
``nn.MultiheadAttention`` and the ``nn.Transformer`` layers), of our own ``attend``, and every softmax that turns out to
be attention: by its shape where the lengths of the text are known, else by the product with values that follows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnviz.engine.call import Call, default_scale
from attnviz.engine.probe import NOWHERE, SAMPLE, Observer, Source, difference
from attnviz.layer.arrays import widen
from attnviz.layer.attention import attend

SOFTMAX = {torch.softmax, functional.softmax, Tensor.softmax}
PRODUCTS = {torch.matmul, torch.bmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
FAR = -9e3  # no score of attention lies below; models that mask by adding use -1e4 or less

Fit = Callable[[Tensor], Tensor | None]


class Pending(NamedTuple):
    """The result of a softmax, on its way to the values."""

    weights: Tensor
    visible: Tensor
    rows: Tensor
    """Some of its rows as they were made."""
    told: bool
    """Whether the observer knows of them."""


class Tap(TorchFunctionMode):
    """Shows attention in torch's functions to an observer.

    fit: makes (B, H, N, M) of the result of a softmax, or None if that is not attention, or cannot be told yet: then a
    product with values must follow. batch: texts in the input.
    """

    def __init__(self, observer: Observer, fit: Fit | None = None, *, batch: int = 1) -> None:
        super().__init__()
        self.observer, self.fit, self.batch = observer, fit, batch
        self.pending: Pending | None = None
        self.source = NOWHERE
        self.found = 0
        """Calls of attention that were seen here."""
        self.busy = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called instead of every function of torch."""
        kwargs = kwargs or {}
        if self.busy:
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self.sdpa(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self.multi_head(func, args, kwargs)
        if func is attend:
            return self.own(args, kwargs)
        if func in SOFTMAX:
            return self.softmax(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.pending is not None:
            self.follow(func, args, result)
        return result

    def attend(self, call: Call, source: Source) -> Tensor:
        """A call that comes by another way: shown to the observer, who must not see what it is made of."""
        self.busy = True
        try:
            return self.observer.attend(call, source)
        finally:
            self.busy = False

    def given(self, weights: Tensor, visible: Tensor) -> None:
        """Weights that were found here."""
        self.found += 1
        self.observer.given(weights, visible, self.source)

    def sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``scaled_dot_product_attention``; a dropout that a model applies in evaluation too is left out."""
        del dropout_p
        q, k, v = (self.four(part) for part in (query, key, value))
        heads = q.shape[1]
        k, v = (part.expand(q.shape[0], *part.shape[1:]) for part in (k, v))
        if k.shape[1] == 1 != heads:
            k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
        mask = None if attn_mask is None else self.four(attn_mask)
        call = Call(q, k, v, default_scale(q) if scale is None else scale, mask=mask, causal=is_causal)
        self.found += 1
        output = self.observer.attend(call, self.source)
        return output.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])

    def multi_head(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``multi_head_attention_forward``, led through scaled_dot_product_attention; weights as the caller asked."""
        query, key = args[:2]
        self.source = self.source._replace(cross=query is not key)
        with torch_sdpa(self.sdpa):
            output, _ = func(*args, **{**kwargs, "need_weights": False})
        self.source = self.source._replace(cross=False)
        return func(*args, **kwargs) if kwargs.get("need_weights", True) else (output, None)

    def own(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Our own layer."""
        attended = attend(*args, **kwargs)
        visible = attended.scores > -torch.inf
        self.given(self.four(attended.weights), self.four(visible))
        if not kwargs.get("residual"):
            self.observer.measured(difference(attended.weights @ widen(args[2]), attended.output))
        return attended

    def softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A softmax that may be attention's."""
        scores = args[0] if args else kwargs.pop("input")
        fitted = self.fit(scores) if self.fit else None
        if fitted is not None:
            fitted = self.observer.before(fitted)
            scores = fitted.reshape(scores.shape) if fitted.numel() == scores.numel() else scores
        result = func(scores, *args[1:], **kwargs)
        if result.ndim < 2:
            return result
        visible = (scores > FAR) | (result > 0)
        weights = self.fit(result) if self.fit else None
        if weights is not None:
            same_cells = fitted is not None and fitted.shape == weights.shape
            self.given(weights, visible.reshape(weights.shape) if same_cells else weights > 0)
        if weights is not None or self.fit is None:
            rows = result[..., :: -(-result.shape[-2] // SAMPLE), :].clone()
            self.pending = Pending(result, visible, rows, told=weights is not None)
        return result

    def follow(self, func: Any, args: Any, result: Any) -> None:
        """Follow pending weights to their product with values, through dropout and changes of type."""
        pending = self.pending
        operands = [part for part in flat(args) if isinstance(part, Tensor)]
        at = next((i for i, part in enumerate(operands) if pending and same(part, pending.weights)), None)
        if at is None or pending is None:
            return
        if func in PRODUCTS:
            self.pending = None
            if not pending.told:
                self.given(self.four(pending.weights), self.four(pending.visible))
            if at == 0 and func is not torch.einsum:
                self.observer.measured(compare(pending.rows, operands[0], operands[1], result))
        elif at == 0 and isinstance(result, Tensor) and result.shape == pending.weights.shape:
            self.pending = pending._replace(weights=result)

    def four(self, part: Tensor) -> Tensor:
        """An array of 2 to 4 axes as (B, H, ...): a first axis of three is the batch if it is as long, else heads."""
        if part.ndim == 2:
            return part[None, None]
        if part.ndim == 3:
            return part[:, None] if part.shape[0] == self.batch else part[None]
        return part


def compare(rows: Tensor, weights: Tensor, values: Tensor, product: Tensor) -> float | None:
    """How far some rows of the weights, kept since their softmax, times values are from the product that was made."""
    every = -(-weights.shape[-2] // SAMPLE)
    expected = rows.to(values.dtype).reshape(*weights.shape[:-2], -1, weights.shape[-1]) @ values
    return difference(expected, product[..., ::every, :])


def flat(args: Any) -> Iterator[Any]:
    """Arguments, those in lists too, as einsum takes them."""
    for part in args:
        if isinstance(part, (list, tuple)):
            yield from part
        else:
            yield part


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same numbers."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


@contextmanager
def torch_sdpa(replacement: Any) -> Iterator[None]:
    """Lead multi_head_attention_forward, which looks the function up in its own module, through a replacement."""
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = replacement
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def slow_path() -> Iterator[None]:
    """Keep nn.MultiheadAttention and nn.TransformerEncoderLayer off their fused kernels, which nobody can look into."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
