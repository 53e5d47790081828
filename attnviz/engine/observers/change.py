"""A run that is only changed: nothing is kept of it but what the model says."""

from torch import Tensor

from attnviz.engine.blocks import compute_output
from attnviz.engine.call import Call
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import (
    CallSource,
    Observer,
    choose_source,
    compute_plain_output,
)


class ChangeObserver(Observer):
    """Change calls, and what they put out; any number of texts at once."""

    def __init__(self, edits: RunEdits) -> None:
        self.edits = edits
        self.calls = 0
        self.cut: set[int] = set()
        """The calls whose scores were seen before the softmax."""

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output of a call without the edges that are cut, and change it as asked.

        source: where the call comes from. Returns (batch, query, head, d_v).
        """
        number = self.count_call()
        edited = self.edits.edit_call(number, call)
        if call.plain:
            edited_source = choose_source(source, call, edited)
            output = compute_plain_output(edited, edited_source)
        else:
            output = compute_output(edited)
        return self.edits.edit_output(number, edited, output)

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Count weights that a model made itself, and return the number of the call.

        Raises ModelError if the call was to be changed.
        """
        number = self.count_call()
        self.edits.require_none(number, cut=number in self.cut)
        return number

    def edit_scores(self, scores: Tensor) -> Tensor:
        """Return the scores of the next call without the edges that are cut, before their softmax.

        scores: (batch, head, query, key).
        """
        self.cut.add(self.calls)
        return self.edits.edit_scores(self.calls, scores)

    def count_call(self) -> int:
        """Return the number of this call: how many came before it."""
        number = self.calls
        self.calls += 1
        return number
