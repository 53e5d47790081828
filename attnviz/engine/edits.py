"""The changes of a running model: edges that are hidden, heads whose outputs are replaced."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.call import HIDDEN, Call
from attnviz.engine.reducers import compute_weights
from attnviz.errors import ModelError
from attnviz.request import HeadInputs, OutputChange

UNCUTTABLE = "edges of this attention cannot be cut: it is no matrix of queries and keys"
UNREACHABLE = "heads of this model cannot be ablated: it shows their weights, not what they put out"

Check = Callable[[Tensor, Tensor], None]


def accept_cut(visible: Tensor, cut: Tensor) -> None:
    """Let edges be cut, whatever is left."""


class RunEdits(NamedTuple):
    """The changes of one run, by the numbers of its calls.

    A head's output is replaced before it is projected: to change that is to change the input of the
    output projection, and zeros there do what zeros in its columns do.
    """

    layers: Sequence[int | None] = ()
    """The layer of each call; None for calls whose heads are left alone."""
    hidden: Mapping[int, Tensor] = {}
    """(B, H or 1, N, M), True where an edge is cut."""
    change: OutputChange | None = None
    check: Check = accept_cut
    """A function that is shown what a call makes visible, and what is to be cut of it."""

    @property
    def is_empty(self) -> bool:
        """True if nothing is changed."""
        return not self.hidden and self.change is None

    def edit_call(self, number: int, call: Call) -> Call:
        """Return a call of attention without the edges that are to be cut in it.

        number: the position of the call in the run of the model. Calls without such edges come back
        as they are. The check of these edits may raise an error.
        """
        if number not in self.hidden:
            return call
        cut = self.hidden[number].to(call.query.device)
        self.check(call.find_visible_cells(), cut)
        return call.hide_edges(cut)

    def edit_scores(self, number: int, scores: Tensor) -> Tensor:
        """Return the scores of a call without the edges that are to be cut, before their softmax.

        number: the position of the call in the run of the model. scores: (batch, head, query, key);
        a cut edge gets -inf. Without such edges the very same scores come back. The check of these
        edits may raise an error.
        """
        if number not in self.hidden:
            return scores
        cut = self.hidden[number].to(scores.device)
        self.check(scores > HIDDEN / 2, cut)
        return scores.masked_fill(cut, -torch.inf)

    def edit_output(self, number: int, call: Call, output: Tensor) -> Tensor:
        """Return the output of the heads of a call as the model is to go on with it.

        number: the position of the call in the run of the model. output: (batch, query, head, d_v),
        before it is projected. call: tells the change, on request, of what some heads made it. The
        output comes back as it is if no change is asked for, or not in this call.
        """
        if self.change is None:
            return output
        layer = self.layers[number]
        if layer is None:
            return output
        changed: Tensor = self.change(layer, output, partial(weigh_heads, call))
        return changed

    def require_none(self, number: int, *, cut: bool) -> None:
        """Raise ModelError if a call is to be changed of which the model shows its weights alone.

        number: the position of the call in the run of the model. cut: True if its edges were cut
        already, before its softmax.
        """
        if number in self.hidden and not cut:
            raise ModelError(UNCUTTABLE)
        if self.change is not None and self.layers[number] is not None:
            raise ModelError(UNREACHABLE)


def weigh_heads(call: Call, heads: Sequence[int]) -> HeadInputs:
    """Return the weights, the mask and the values of which some heads of a call make their output.

    heads: the numbers of these heads, in the order of the result.
    """
    chosen = call.pick_heads(tuple(heads))
    weights = compute_weights(chosen).to(call.query.device)
    return HeadInputs(weights, chosen.find_visible_cells(), chosen.value)
