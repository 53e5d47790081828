"""Calls of torch's own functions, for models that do not hand their attention to anybody.

While a tap is open it sees every call of ``scaled_dot_product_attention``, of ``multi_head_attention_forward`` (behind
``nn.MultiheadAttention`` and the ``nn.Transformer`` layers), of our own ``attend``, and every softmax that turns out to
be attention: by its shape where the lengths of the text are known, else by the product with values that follows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnviz.engine.agreement import SAMPLE, coarsest, difference
from attnviz.engine.call import Call, default_scale
from attnviz.engine.observers.base import NOWHERE, Observer, Source
from attnviz.layer.arrays import widen
from attnviz.layer.attention import attend

SOFTMAX = {torch.softmax, functional.softmax, Tensor.softmax}
PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.mm,
    Tensor.bmm,
    Tensor.__matmul__,
}
MOST = 8  # softmaxes that wait for their values at once, and forms of one
FAR = -9e3  # no score of attention lies below; models that mask by adding use -1e4 or less

Fit = Callable[[Tensor], Tensor | None]


@dataclass(eq=False)
class Pending:
    """The result of a softmax, on its way to the values."""

    forms: list[Tensor]
    """The weights, and what was made of them in the same shape: by dropout, another type, or for another purpose."""
    visible: Tensor
    rows: Tensor
    """Some of its rows as they were made."""
    number: int | None
    """Of the call, if the observer knows of it."""


class Tap(TorchFunctionMode):
    """Shows attention in torch's functions to an observer.

    fit: makes (B, H, N, M) of the result of a softmax that is attention by its lengths, else None. Whatever else has
    heads, and everything where there is no ``fit``, is attention if a product with values follows. batch: texts in the
    input.
    """

    def __init__(self, observer: Observer, fit: Fit | None = None, *, batch: int = 1) -> None:
        super().__init__()
        self.observer, self.fit, self.batch = observer, fit, batch
        self.pending: list[Pending] = []
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
        if self.pending:
            self.follow(
                func,
                [part for part in flat((*args, *kwargs.values())) if isinstance(part, Tensor)],
                result,
            )
        return result

    def attend(self, call: Call, source: Source) -> Tensor:
        """A call that comes by another way: shown to the observer, who must not see what it is made of."""
        self.busy = True
        try:
            return self.observer.attend(call, source)
        finally:
            self.busy = False

    def given(self, weights: Tensor, visible: Tensor) -> int:
        """Weights that were found here; the number of the call."""
        self.found += 1
        return self.observer.given(weights, visible, self.source)

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
        if k.shape[1] != v.shape[1]:
            k, v = (part.repeat_interleave(heads // part.shape[1], 1) for part in (k, v))
        mask = None if attn_mask is None else self.four(attn_mask)
        call = Call(
            q, k, v, default_scale(q) if scale is None else scale, mask=mask, causal=is_causal
        )
        self.found += 1
        output = self.observer.attend(call, self.source)
        return output.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])

    def multi_head(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``multi_head_attention_forward``, led through scaled_dot_product_attention; weights as the caller asked."""
        query, key = args[:2]
        self.source = self.source._replace(cross=query is not key)
        observed = with_global(func, "scaled_dot_product_attention", self.sdpa)
        output, _ = observed(*args, **{**kwargs, "need_weights": False})
        self.source = self.source._replace(cross=False)
        return func(*args, **kwargs) if kwargs.get("need_weights", True) else (output, None)

    def own(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Our own layer."""
        attended = attend(*args, **kwargs)
        visible = attended.scores > -torch.inf
        number = self.given(self.four(attended.weights), self.four(visible))
        if not kwargs.get("residual"):
            product = attended.weights @ widen(args[2])
            dtype = coarsest(attended.output, args[2])
            self.observer.measured(number, difference(product, attended.output), dtype)
        return attended

    def softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A softmax that may be attention's: one over the last axis."""
        scores, *others = args or (kwargs.pop("input"),)
        dim = others[0] if others else kwargs.get("dim")
        if scores.ndim < 2 or dim not in (-1, scores.ndim - 1):
            return func(scores, *others, **kwargs)

        def softmax(scores: Tensor) -> Tensor:
            made: Tensor = func(scores, *others, **kwargs)
            return made

        if self.fit is not None:
            return self.fitted(softmax, scores, self.fit)
        result = softmax(scores)
        self.wait(result, (scores > FAR) | (result > 0), None)
        return result

    def fitted(self, softmax: Callable[[Tensor], Tensor], scores: Tensor, fit: Fit) -> Tensor:
        """A softmax that is attention if it fits the lengths of the text; with the edges cut that are to be."""
        shown = fit(scores)
        cut = None if shown is None else self.observer.before(shown)
        if cut is not None and cut is not shown:
            scores = cut.reshape(scores.shape)
        result = softmax(scores)
        if cut is not shown:  # a query that is left without a key gets nothing
            result = result.where((scores > FAR).any(-1, keepdim=True), 0)
        weights = fit(result)
        if weights is not None:
            visible = weights > 0
            if cut is not None and cut.shape == weights.shape:
                visible |= cut > FAR
            self.wait(result, visible, self.given(weights, visible))
        elif result.ndim == 4 or (
            result.ndim == 3 and len(result) > self.batch
        ):  # has heads, so it may be attention
            self.wait(result, (scores > FAR) | (result > 0), None)
        return result

    def wait(self, weights: Tensor, visible: Tensor, number: int | None) -> None:
        """Wait for the product of weights with values."""
        rows = weights[..., :: -(-weights.shape[-2] // SAMPLE), :].clone()
        self.pending = [*self.pending[1 - MOST :], Pending([weights], visible, rows, number)]

    def follow(self, func: Any, operands: list[Tensor], result: Any) -> None:
        """Follow pending weights to their product with values, through dropout, changes of type and the like."""
        for pending in self.pending:
            for at, part in enumerate(operands):
                if any(same(part, form) or same(turned(part), form) for form in pending.forms):
                    if func in PRODUCTS:
                        self.arrive(pending, func, at, operands, result)
                    elif isinstance(result, Tensor) and is_form(result, pending.forms):
                        pending.forms = [pending.forms[0], *pending.forms[1:][1 - MOST :], result]
                    return

    def arrive(
        self, pending: Pending, func: Any, at: int, operands: list[Tensor], result: Tensor
    ) -> None:
        """Pending weights meet their values: they are attention, and its output is there to compare with."""
        self.pending.remove(pending)
        weights = pending.forms[0]
        number = pending.number
        if number is None and self.fit is not None and min(part.ndim for part in operands) < 3:
            return  # heads have values of their own, or share them: a matrix for all is another use of a softmax
        if number is None:
            number = self.given(self.four(weights), self.four(pending.visible))
        plain = at == 0 and func is not torch.einsum and len(operands) == 2 and operands[1].ndim > 1
        if plain and operands[0].shape[-2:] == weights.shape[-2:] and operands[0].is_contiguous():
            apart = compare(pending.rows, operands[0], operands[1], result)
            self.observer.measured(number, apart, coarsest(operands[0], operands[1], result))

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
    """Whether two tensors are views of the same numbers, with the same last axis."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.numel() == other.numel()
        and (one.shape[-1:], one.stride()[-1:]) == (other.shape[-1:], other.stride()[-1:])
    )


def turned(part: Tensor) -> Tensor:
    """A tensor with its last two axes exchanged, if it has two."""
    return part.mT if part.ndim > 1 else part


def is_form(result: Tensor, forms: list[Tensor]) -> bool:
    """Whether a result can stand for weights: numbers of their shape, not the weights turned."""
    lies = any(same(turned(result), form) and not same(result, form) for form in forms)
    return result.is_floating_point() and result.shape == forms[0].shape and not lies


def with_global(function: Any, name: str, value: Any) -> Any:
    """Return a copy of a Python function that finds another value under one global name.

    The function itself and its module stay as they are, so that other threads notice nothing.
    """
    names = {**function.__globals__, name: value}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def slow_path() -> Iterator[None]:
    """Keep nn.MultiheadAttention and nn.TransformerEncoderLayer off their fused kernels, which nobody can look into."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
