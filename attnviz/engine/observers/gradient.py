"""Gradients of a prediction by attention weights, without a graph that holds the weights.

The output of a head at query i is O_i = sum over j of A_ij v_j, so that dL/dA_ij = <dL/dO_i, v_j>:
the graph of torch need only reach the outputs, which are linear in the length of the text (torch
computes them by fused kernels that keep no weights). Weights are made again afterwards, a few
queries at a time. What is kept is the positive part of weight times gradient, as in Chefer, Gur &
Wolf 2021, eq. 5: how much a weight adds to the prediction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnviz.engine.call import HIDDEN, Call, reshape_sinks
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import (
    CallResult,
    CallSource,
    Observer,
    choose_source,
    compute_plain_output,
)
from attnviz.engine.reducers import compute_weights
from attnviz.engine.values import compute_all_scores, split_queries
from attnviz.errors import ModelError
from attnviz.request import Request

UNREACHED = (
    "gradients of this model's attention cannot be told: it shows its weights, "
    "not what they are made of"
)


class GradientObserver(Observer):
    """Keep each call and its output, from which the graph of torch goes on. For one text."""

    def __init__(self, edits: RunEdits) -> None:
        self.edits = edits
        self.calls: list[Call] = []
        self.outputs: list[Tensor] = []

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Keep a call, edited as asked, and its output, which is part of a graph of torch.

        source: where the call comes from. Returns the output, (1, query, head, d_v), changed as
        asked.
        """
        number = len(self.calls)
        edited = self.edits.edit_call(number, call)
        if call.plain:
            edited_source = choose_source(source, call, edited)
            output = compute_plain_output(edited, edited_source)
        else:
            output = compute_eager_output(edited)
        # Nothing before it is of interest: the graph begins here.
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.calls.append(edited)
        self.outputs.append(output)
        return self.edits.edit_output(number, edited, output)

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Raise ModelError: weights that a model made itself have no output to go by."""
        raise ModelError(UNREACHED)

    def compute_output_gradients(self, prediction: Tensor) -> Sequence[Tensor]:
        """Compute the gradient of a prediction by the output of each call.

        Each is (1, query, head, d_v). prediction: a number that was computed from the outputs. The
        gradient is zeros where it does not depend on one. Raises ModelError if there was no call.
        """
        if not self.outputs:
            raise ModelError(UNREACHED)
        gradients = torch.autograd.grad(
            prediction,
            self.outputs,
            allow_unused=True,
            materialize_grads=True,
        )
        return [gradient.detach() for gradient in gradients]

    def make_result(
        self,
        number: int,
        slopes: Sequence[Tensor],
        heads: tuple[int, ...],
        request: Request,
    ) -> CallResult:
        """Multiply the weights of some heads of a call with gradients by them, 0 where negative.

        The gradients are those of the prediction that the run was made for, one logit.

        number: the index of the call of attention in the run. slopes: the gradients of that logit
        by the output of each call, as ``compute_output_gradients`` returns them. heads: the numbers
        of the heads. request: has the queries and the keys to keep.
        """
        call = self.calls[number].detach()
        rows = request.rows
        products = multiply_gradients(
            call,
            slopes[number],
            heads,
            rows=rows,
            columns=request.columns,
        )
        visible = call.find_visible_cells()[0]  # of the one text of the batch
        if visible.shape[1] > 1:
            visible = visible[:, rows]
        if len(visible) > 1:
            visible = visible[list(heads)]
        return CallResult(visible[..., request.columns].cpu(), products)


def multiply_gradients(
    call: Call,
    slope: Tensor,
    heads: tuple[int, ...],
    rows: slice,
    columns: slice,
) -> Tensor:
    """Compute max(A * dL/dA, 0) for some heads, queries and keys of a call.

    A are the attention weights, L is a prediction. slope: dL/dO for the output O of the call, (1,
    query, head, d_v). heads: the numbers of the heads. rows, columns: the queries and the keys.
    Returns (head, query, key), on the CPU.
    """
    slopes = slope[0, rows].float()
    slopes_by_head = slopes[:, list(heads)].transpose(0, 1)  # (head, query, d_v)
    blocks = []
    first = 0
    for block in split_queries(call, heads, rows):
        weights = compute_weights(block, columns)[0]
        stop = first + block.query.shape[2]
        value = block.value[0, :, columns].float()  # (head, key, d_v)
        gradient = slopes_by_head[:, first:stop] @ value.mT  # (head, query, key)
        product = weights * gradient.cpu()
        blocks.append(product.clamp_min_(0))
        first = stop
    return torch.cat(blocks, 1)


def compute_eager_output(call: Call) -> Tensor:
    """Compute the output of a call by its formula, inside the graph of torch.

    All its weights are there at once. Returns (batch, query, head, d_v).
    """
    heads = range(call.query.shape[1])
    every_head = call.pick_heads(tuple(heads))
    scores = compute_all_scores(every_head).where(every_head.find_visible_cells(), HIDDEN)
    if every_head.sinks is not None:
        sinks = reshape_sinks(every_head.sinks)
        row_sinks = sinks.expand(*scores.shape[:-1], 1).to(scores.dtype)
        scores = torch.cat([scores, row_sinks], -1)
    keys = every_head.key.shape[2]
    # Without the share of the sinks.
    weights = scores.softmax(-1)[..., :keys]
    weights = weights.to(call.value.dtype)
    output: Tensor = weights @ every_head.value
    return output.transpose(1, 2)
