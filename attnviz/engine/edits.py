"""What is changed in the calls of a running model: edges that are hidden, and heads whose outputs are replaced."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import HIDDEN, Call
from attnviz.engine.reducers import Matrix
from attnviz.errors import ModelError
from attnviz.request import Change, Weighed

Check = Callable[[Tensor, Tensor], None]


def unchecked(visible: Tensor, cut: Tensor) -> None:
    """Let edges be cut, whatever is left."""


class Edits(NamedTuple):
    """The changes of one run, by the numbers of its calls.

    A head's output is replaced before it is projected: to change that is to change the input of the output projection,
    and zeros there do what zeros in its columns do.
    """

    layers: Sequence[int | None] = ()
    """The layer of each call; None of those whose heads are left alone."""
    hidden: Mapping[int, Tensor] = {}
    """(B, H or 1, N, M), True where an edge is cut."""
    change: Change | None = None
    check: Check = unchecked
    """Is shown what a call makes visible, and what is to be cut of it."""

    @property
    def none(self) -> bool:
        """Whether nothing is changed."""
        return not self.hidden and self.change is None

    def of_call(self, number: int, call: Call) -> Call:
        """The call, without the edges that are cut."""
        if number not in self.hidden:
            return call
        cut = self.hidden[number].to(call.query.device)
        self.check(call.visible(), cut)
        return call.hiding(cut)

    def of_scores(self, number: int, scores: Tensor) -> Tensor:
        """Scores (B, H, N, M) that a model is about to give to a softmax, without these edges."""
        if number not in self.hidden:
            return scores
        cut = self.hidden[number].to(scores.device)
        self.check(scores > HIDDEN / 2, cut)
        return scores.masked_fill(cut, -torch.inf)

    def of_output(self, number: int, call: Call, output: Tensor) -> Tensor:
        """What heads put out, (B, N, H, d_v), as the model is to go on with it."""
        layer = None if self.change is None else self.layers[number]
        if self.change is None or layer is None:
            return output
        changed: Tensor = self.change(layer, output, partial(weighed, call))
        return changed

    def require_none(self, number: int, *, cut: bool) -> None:
        """Raise ModelError if something is to be changed of a call that shows its weights alone.

        cut: its edges were, before its softmax.
        """
        if number in self.hidden and not cut:
            raise ModelError(
                "edges of this attention cannot be cut: it is no matrix of queries and keys"
            )
        if self.change is not None and self.layers[number] is not None:
            raise ModelError(
                "heads of this model cannot be ablated: it shows their weights, not what they put out"
            )


def weighed(call: Call, heads: Sequence[int]) -> Weighed:
    """What some heads make their output of."""
    part = call.heads(tuple(heads))
    plan = Plan(Shape.of(part, 64))
    kept = Matrix(plan, slice(None))
    attend(part, plan, (kept,))
    return Weighed(kept.result().to(call.query.device), part.visible(), part.value)
