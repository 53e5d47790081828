"""Heads whose outputs are changed while a model runs, as in ablation: before they are merged and projected."""

from collections.abc import Sequence

from torch import Tensor

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import Call
from attnviz.engine.probe import Source, plain_output
from attnviz.errors import ModelError
from attnviz.request import Change


class Changed:
    """An observer that shows a change what the heads of each call put out; the model goes on with what it gives.

    To change that is to change the input of the output projection: zeros do what zeros in its columns do.
    """

    def __init__(self, layers: Sequence[int], change: Change | None) -> None:
        self.layers, self.change = layers, change
        """The layer of each call, in the order of the calls."""
        self.calls = 0

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``. Any number of texts."""
        output = plain_output(call, source) if call.plain else attend(call, Plan(Shape.of(call, 64)), ())
        self.calls += 1
        if self.change is None:
            return output
        changed: Tensor = self.change(self.layers[self.calls - 1], output)
        return changed

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``. Raises ModelError: the outputs of these heads are nowhere to be changed."""
        raise ModelError("heads of this model cannot be ablated: it shows their weights, not what they put out")

    def measured(self, number: int, difference: float | None) -> None:
        """See ``Observer.measured``."""

    def before(self, scores: Tensor) -> Tensor:
        """See ``Observer.before``."""
        return scores
