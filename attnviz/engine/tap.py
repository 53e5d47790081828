"""Calls of torch's own functions, for models that do not hand their attention to anybody.

While a tap is open it sees every call of ``scaled_dot_product_attention``, of
``multi_head_attention_forward`` (behind ``nn.MultiheadAttention`` and the ``nn.Transformer``
layers), of our own ``attend``, and every softmax that turns out to be attention: by its shape where
the lengths of the text are known, else by the product with values that follows.

The last takes a little patience. The result of a softmax waits, as ``Pending``, while the model
goes on. Each function of torch that is given it may make another form of it (dropout, another
type); a matrix product with it is where weights meet their values. Only then is it attention.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnviz.engine.agreement import (
    SAMPLE,
    compare_numbers,
    find_coarsest_dtype,
)
from attnviz.engine.call import Call, compute_default_scale, repeat_heads
from attnviz.engine.observers.base import NOWHERE, CallSource, Observer
from attnviz.layer.arrays import widen_to_single
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
Softmax = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Pending:
    """The result of a softmax, on its way to the values."""

    forms: list[Tensor]
    """The weights, and what was made of them in the same shape, as by dropout or another type."""
    visible: Tensor
    rows: Tensor
    """Some of its rows as they were made."""
    number: int | None
    """The number of the call, if the observer knows of it."""


class Tap(TorchFunctionMode):
    """Shows attention in torch's functions to an observer.

    fit: makes (B, H, N, M) of the result of a softmax that is attention by its lengths, else None.
    All other results that have heads, and every result where there is no ``fit``, are attention if
    a product with values follows. batch: texts in the input.
    """

    def __init__(self, observer: Observer, fit: Fit | None = None, *, batch: int = 1) -> None:
        super().__init__()
        self.observer = observer
        self.fit = fit
        self.batch = batch
        self.pending: list[Pending] = []
        self.source = NOWHERE
        self.found = 0
        """Calls of attention that were seen here."""
        self.busy = False
        """True if an observer computes, whose functions are not the model's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and show it to the observer if it is attention.

        torch calls this in place of every function while the tap is open. func, args, kwargs: the
        function and its arguments. Returns the function's result, or what the observer gives in its
        place.
        """
        kwargs = kwargs or {}
        if self.busy:
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self.run_sdpa(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self.run_multi_head(func, args, kwargs)
        if func is attend:
            return self.run_own_attend(args, kwargs)
        if func in SOFTMAX:
            return self.run_softmax(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.pending:
            arguments = flatten_arguments((*args, *kwargs.values()))
            operands = [argument for argument in arguments if isinstance(argument, Tensor)]
            self.follow_weights(func, operands, result)
        return result

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Show a call of attention that did not come through torch's functions to the observer.

        source: where it comes from. Returns its output as the observer gives it. Functions of torch
        that the observer uses meanwhile are no attention of the model.
        """
        self.busy = True
        try:
            return self.observer.attend(call, source)
        finally:
            self.busy = False

    def show_weights(self, weights: Tensor, visible: Tensor) -> int:
        """Show weights that are seen here to the observer, and return the number of the call.

        weights: (batch, head, query, key); visible: broadcasts to them, True where a query may
        attend.
        """
        self.found += 1
        return self.observer.see_weights(weights, visible, self.source)

    def run_sdpa(
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
        """Run a call of torch's ``scaled_dot_product_attention`` through the observer.

        The arguments are those of torch. The observer gives the output, which is returned in the
        shape that torch would give it. A dropout that a model applies in evaluation too is left
        out.
        """
        del dropout_p
        queries = self.add_axes(query)
        keys = self.add_axes(key)
        values = self.add_axes(value)
        keys, values = self.match_heads(queries, keys, values)
        mask = None if attn_mask is None else self.add_axes(attn_mask)
        if scale is None:
            scale = compute_default_scale(queries)
        call = Call(
            query=queries,
            key=keys,
            value=values,
            scale=scale,
            mask=mask,
            causal=is_causal,
        )
        self.found += 1
        output = self.observer.attend(call, self.source)
        size = *query.shape[:-1], value.shape[-1]
        return output.transpose(1, 2).reshape(size)

    def match_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values with the batch of the queries, and as many heads as each other.

        query, key, value: (batch, head, token, d); keys and values may have one text for all, and
        one head for all or for several query heads.
        """
        batch, heads = query.shape[:2]
        key = key.expand(batch, *key.shape[1:])
        value = value.expand(batch, *value.shape[1:])
        if key.shape[1] == 1 and heads != 1:
            key = key.expand(-1, heads, -1, -1)
            value = value.expand(-1, heads, -1, -1)
        if key.shape[1] != value.shape[1]:
            key = repeat_heads(key, heads)
            value = repeat_heads(value, heads)
        return key, value

    def run_multi_head(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run torch's ``multi_head_attention_forward`` with its attention through ``run_sdpa``.

        func, args, kwargs: that function and its arguments. Returns its output, and its weights or
        None. If the caller asked for weights it is run once more, unwatched, to compute them.
        """
        query, key = args[:2]
        observed = replace_global(func, "scaled_dot_product_attention", self.run_sdpa)
        without_weights = {**kwargs, "need_weights": False}
        # Self-attention is called with one tensor as query and as key.
        self.source = self.source._replace(cross=query is not key)
        output, _ = observed(*args, **without_weights)
        self.source = self.source._replace(cross=False)
        if kwargs.get("need_weights", True):
            return func(*args, **kwargs)
        return output, None

    def run_own_attend(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the ``attend`` of our own layer, and show its weights to the observer.

        args, kwargs: its arguments. Returns its result. Unless the queries are added to the output,
        the observer also hears how far weights times values are from it.
        """
        attended = attend(*args, **kwargs)
        visible = attended.scores > -torch.inf
        weights = self.add_axes(attended.weights)
        number = self.show_weights(weights, self.add_axes(visible))
        if not kwargs.get("residual"):
            value = args[2]
            product = attended.weights @ widen_to_single(value)
            dtype = find_coarsest_dtype(attended.output, value)
            difference = compare_numbers(product, attended.output)
            self.observer.record_difference(number, difference, dtype)
        return attended

    def run_softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a softmax, which may be that of attention if it is over the last axis.

        func, args, kwargs: a softmax of torch and its arguments. Returns its result, without edges
        that the observer cuts.
        """
        scores, *options = args or (kwargs.pop("input"),)
        dim = options[0] if options else kwargs.get("dim")
        if scores.ndim < 2 or dim not in (-1, scores.ndim - 1):
            return func(scores, *options, **kwargs)

        def softmax(scores: Tensor) -> Tensor:
            weights: Tensor = func(scores, *options, **kwargs)
            return weights

        if self.fit is not None:
            return self.run_fitting_softmax(softmax, scores, self.fit)
        result = softmax(scores)
        self.await_values(result, find_visible(scores, result), None)
        return result

    def run_fitting_softmax(self, softmax: Softmax, scores: Tensor, fit: Fit) -> Tensor:
        """Run a softmax, and show its result to the observer if it is attention by its shape.

        softmax: computes the weights of scores. scores: (..., query, key). fit: returns a tensor as
        (batch, head, query, key) if its shape fits the lengths of the text, else None.
        If the scores fit, the observer may cut edges of them before the softmax; a query that is
        left without a key gets zeros. A result that does not fit, but may have heads, is attention
        if a product with values follows. Returns the result of the softmax.
        """
        shown_scores = fit(scores)
        returned_scores = None if shown_scores is None else self.observer.edit_scores(shown_scores)
        is_cut = returned_scores is not shown_scores
        if returned_scores is not None and is_cut:
            scores = returned_scores.reshape(scores.shape)
        result = softmax(scores)
        if is_cut:  # a query that is left without a key gets nothing
            sees_a_key = (scores > FAR).any(-1, keepdim=True)
            result = result.where(sees_a_key, 0)
        weights = fit(result)
        if weights is not None:
            visible = weights > 0
            if returned_scores is not None and returned_scores.shape == weights.shape:
                # A weight may be 0 by underflow where the score is not masked.
                visible |= returned_scores > FAR
            number = self.show_weights(weights, visible)
            self.await_values(result, visible, number)
        elif self.may_have_heads(result):
            self.await_values(result, find_visible(scores, result), None)
        return result

    def may_have_heads(self, result: Tensor) -> bool:
        """Return whether a result has an axis of heads, so that it may be attention."""
        return result.ndim == 4 or (result.ndim == 3 and len(result) > self.batch)

    def await_values(self, weights: Tensor, visible: Tensor, number: int | None) -> None:
        """Let the result of a softmax wait for a product with values.

        That product would show that it is attention. weights: the result, (..., query, key).
        visible: True where a query may attend. number: of the call, if the weights were shown to
        the observer already, else None. A few rows are copied, to be compared with the product; the
        oldest results are given up.
        """
        step = math.ceil(weights.shape[-2] / SAMPLE)
        rows = weights[..., ::step, :].clone()
        latest = self.pending[1 - MOST :]
        pending = Pending(
            forms=[weights],
            visible=visible,
            rows=rows,
            number=number,
        )
        self.pending = [*latest, pending]

    def follow_weights(self, func: Any, operands: list[Tensor], result: Any) -> None:
        """Follow the weights that wait for their values through a function that torch has run.

        func: the function. operands: the tensors that it was given. result: what it returned. If it
        was given such weights and is a matrix product, they meet their values. Any other function,
        such as dropout, may return another form of the weights, which is followed as well.
        """
        for pending in self.pending:
            position = find_form(pending.forms, operands)
            if position is None:
                continue
            if func in PRODUCTS:
                self.meet_values(pending, func, position, operands, result)
            elif isinstance(result, Tensor) and is_form(result, pending.forms):
                first, *others = pending.forms
                pending.forms = [first, *others[1 - MOST :], result]
            return

    def meet_values(
        self,
        pending: Pending,
        func: Any,
        position: int,
        operands: list[Tensor],
        result: Tensor,
    ) -> None:
        """Take waiting weights for attention, because a matrix product with them was computed.

        pending: the weights that waited. func: the product. position: of the weights among its
        operands. operands: the tensors that it was given. result: what it returned.
        They are shown to the observer, if they were not yet. If they are the first factor of a
        plain product, the observer also hears how far they, times the values, are from its result.
        """
        self.pending.remove(pending)
        weights = pending.forms[0]
        number = pending.number
        if number is None:
            smallest_ndim = min(operand.ndim for operand in operands)
            if self.fit is not None and smallest_ndim < 3:
                # Heads have values of their own, or share them: this is another use of a softmax.
                return
            visible = self.add_axes(pending.visible)
            number = self.show_weights(self.add_axes(weights), visible)
        if func is torch.einsum or position != 0 or not are_weights_and_values(operands, weights):
            return
        factor, values = operands
        difference = compare_product(pending.rows, factor, values, result)
        dtype = find_coarsest_dtype(factor, values, result)
        self.observer.record_difference(number, difference, dtype)

    def add_axes(self, array: Tensor) -> Tensor:
        """Return an array of 2 to 4 axes as (batch, head, ...), by adding axes of length 1.

        The first axis of three is the batch if it is as long as the batch, else the heads.
        """
        if array.ndim == 2:
            return array[None, None]
        if array.ndim == 3:
            is_batch = array.shape[0] == self.batch
            return array[:, None] if is_batch else array[None]
        return array


def find_visible(scores: Tensor, weights: Tensor) -> Tensor:
    """Return booleans, True where a score is none of a mask, or its weight is above 0."""
    return (scores > FAR) | (weights > 0)


def are_weights_and_values(operands: Sequence[Tensor], weights: Tensor) -> bool:
    """Return whether the tensors given to a matrix product are weights and values, in this order.

    weights: the weights as their softmax made them; the first factor must have their last two axes,
    and be contiguous.
    """
    if len(operands) != 2 or operands[1].ndim < 2:
        return False
    factor = operands[0]
    return factor.shape[-2:] == weights.shape[-2:] and factor.is_contiguous()


def compare_product(rows: Tensor, weights: Tensor, values: Tensor, product: Tensor) -> float | None:
    """Return how far weights times values are from the product that a model made of them.

    rows: evenly spaced rows of the weights, at most SAMPLE, copied when their softmax made them.
    weights: (..., query, key), as they met the values. values: (..., key, d). product: (..., query,
    d). Returns the largest difference as a share of the largest value, or None for an empty
    product.
    """
    *lead, queries, keys = weights.shape
    step = math.ceil(queries / SAMPLE)
    sample = rows.to(values.dtype)
    expected = sample.reshape(*lead, -1, keys) @ values
    return compare_numbers(expected, product[..., ::step, :])


def flatten_arguments(arguments: Any) -> Iterator[Any]:
    """List arguments, and in place of a list of them, such as einsum takes, its entries."""
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from argument
        else:
            yield argument


def find_form(forms: list[Tensor], operands: list[Tensor]) -> int | None:
    """Return the position of the first operand that is a form of weights; None if there is none.

    forms: the weights, and what was made of them in their shape. operands: tensors that a function
    was given; one is a form also with its last two axes exchanged.
    """
    for position, operand in enumerate(operands):
        for form in forms:
            if view_same_numbers(operand, form) or view_same_numbers(turn_last_axes(operand), form):
                return position
    return None


def view_same_numbers(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are views of one piece of memory, with the same last axis."""
    if one.data_ptr() != other.data_ptr() or one.numel() != other.numel():
        return False
    last_axis = one.shape[-1:], one.stride()[-1:]
    return last_axis == (other.shape[-1:], other.stride()[-1:])


def turn_last_axes(array: Tensor) -> Tensor:
    """Return a tensor with its last two axes exchanged, if it has two."""
    return array.mT if array.ndim > 1 else array


def is_form(result: Tensor, forms: list[Tensor]) -> bool:
    """Return whether the result of a function may be another form of weights.

    It must hold floats in their shape, and not be one of the forms with its last two axes
    exchanged. forms: the weights, and what was made of them.
    """
    if not result.is_floating_point() or result.shape != forms[0].shape:
        return False
    return not any(is_turned(result, form) for form in forms)


def is_turned(result: Tensor, form: Tensor) -> bool:
    """Return whether a result is a form with its last two axes exchanged."""
    return view_same_numbers(turn_last_axes(result), form) and not view_same_numbers(result, form)


def replace_global(function: Any, name: str, value: Any) -> Any:
    """Return a copy of a Python function for which one global name has another value.

    name: the global name. value: what the copy finds under it. The function and its module stay as
    they are, so that other threads notice nothing. By its own name the copy finds itself: functions
    of torch call themselves once more where a mode, such as that of a default device, is active.
    """
    names = {**function.__globals__, name: value}
    copy = FunctionType(
        function.__code__,
        names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__globals__[function.__name__] = copy
    return copy


@contextmanager
def disable_fast_path() -> Iterator[None]:
    """Keep nn.MultiheadAttention and nn.TransformerEncoderLayer off their fused kernels.

    A fused kernel calls none of the functions in which attention could be seen.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
