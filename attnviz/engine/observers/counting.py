"""A count of the calls of a run, which says how far the run is."""

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.observers.base import CallSource, Observer
from attnviz.progress import WorkStep


class CountingObserver(Observer):
    """Pass all calls on to another observer, and count them in a step of the work."""

    def __init__(self, observer: Observer, step: WorkStep) -> None:
        self.observer = observer
        self.step = step

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Let the other observer see a call and give its output, and count the call.

        The last call that is wanted counts too, at which the other observer ends the run.
        """
        try:
            return self.observer.attend(call, source)
        finally:
            self.count_seen_call()

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Let the other observer see weights that a model made itself, and count the call."""
        try:
            return self.observer.see_weights(weights, visible, source)
        finally:
            self.count_seen_call()

    def record_difference(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """Pass on how far the output of a call is from the model's own."""
        self.observer.record_difference(number, difference, dtype)

    def edit_scores(self, scores: Tensor) -> Tensor:
        """Return the scores of the next call as the other observer edits them."""
        return self.observer.edit_scores(scores)

    def count_seen_call(self) -> None:
        """Count a call; a model that writes makes all calls again for each token."""
        if self.step.done == self.step.total:
            self.step.continue_from(0)
        self.step.advance()
