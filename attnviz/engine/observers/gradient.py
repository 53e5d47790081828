"""Gradients of a prediction by attention weights, without a graph that holds the weights.

What a head puts out at query i is O_i = sum over j of A_ij v_j, so that dL/dA_ij = <dL/dO_i, v_j>: the graph of torch
need only reach the outputs, which are linear in the length of the text (torch computes them by fused kernels that keep
no weights). Weights are made again afterwards, a few queries at a time. What is kept is the positive part of weight
times gradient, as in Chefer, Gur & Wolf 2021, eq. 5: how much a weight adds to the prediction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import HIDDEN, Call, spread
from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import Found, Observer, Source, plain_output
from attnviz.engine.reducers import Matrix
from attnviz.engine.values import block_scores, blocks_of
from attnviz.errors import ModelError
from attnviz.request import Request

UNREACHED = "gradients of this model's attention cannot be told: it shows its weights, not what they are made of"


class Graded(Observer):
    """An observer that keeps each call and its output, from which the graph of torch goes on. For one text."""

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.calls: list[Call] = []
        self.outputs: list[Tensor] = []

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``."""
        number = len(self.calls)
        edited = self.edits.of_call(number, call)
        plain = (
            plain_output(edited, source if edited is call else Source())
            if call.plain
            else eager_output(edited)
        )
        if not plain.requires_grad:  # nothing before it is of interest: the graph begins here
            plain = plain.detach().requires_grad_()
        self.calls.append(edited)
        self.outputs.append(plain)
        return self.edits.of_output(number, edited, plain)

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``. Raises ModelError: there is no output to go by."""
        raise ModelError(UNREACHED)

    def slopes(self, prediction: Tensor) -> Sequence[Tensor]:
        """The gradient of a number by the output of each call, (1, N, H, d_v); zeros where it does not depend on it.

        Raises ModelError if there was no call.
        """
        if not self.outputs:
            raise ModelError(UNREACHED)
        given = torch.autograd.grad(
            prediction, self.outputs, allow_unused=True, materialize_grads=True
        )
        return [slope.detach() for slope in given]

    def found(
        self, number: int, slopes: Sequence[Tensor], heads: tuple[int, ...], request: Request
    ) -> Found:
        """The weights of some heads of a call times their gradients, 0 where these are negative."""
        call, rows = self.calls[number].detached(), request.rows
        visible = call.visible()[0]
        visible = visible[:, rows] if visible.shape[1] > 1 else visible
        weights = positive(call, slopes[number], heads, rows, request.columns)
        if len(visible) > 1:
            visible = visible[list(heads)]
        return Found(visible[..., request.columns].cpu(), weights)


def positive(
    call: Call, slope: Tensor, heads: tuple[int, ...], rows: slice, columns: slice
) -> Tensor:
    """max(A * dL/dA, 0) of a window, (head, query, key), on the CPU. slope: dL/dO, (1, N, H, d_v)."""
    of_heads = slope[0, rows].float()[:, list(heads)].transpose(0, 1)  # (head, query, d_v)
    found, first = [], 0
    for block in blocks_of(call, heads, rows):
        plan = Plan(Shape.of(block, 64))
        kept = Matrix(plan, columns)
        attend(block, plan, (kept,))
        stop = first + block.query.shape[2]
        value = block.value[0, :, columns].float()  # (head, key, d_v)
        gradient = of_heads[:, first:stop] @ value.mT  # (head, query, key)
        found.append((kept.result()[0] * gradient.cpu()).clamp_min_(0))
        first = stop
    return torch.cat(found, 1)


def eager_output(call: Call) -> Tensor:
    """The output (B, N, H, d_v) of a call by its formula, with a graph; its weights are all there at once."""
    whole = call.heads(tuple(range(call.query.shape[1])))
    scores = block_scores(whole).where(whole.visible(), HIDDEN)
    if whole.sinks is not None:
        sinks = spread(whole.sinks).expand(*scores.shape[:-1], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : whole.key.shape[2]]
    output: Tensor = weights.to(call.value.dtype) @ whole.value
    return output.transpose(1, 2)
