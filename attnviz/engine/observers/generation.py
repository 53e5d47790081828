"""Attention of a text while it is continued.

The rectangle of all queries is made row by row, as these were produced.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.observers.base import (
    NOWHERE,
    CallResult,
    CallSource,
    Observer,
)
from attnviz.engine.observers.capture import CaptureObserver
from attnviz.request import Request

WHOLE = Request()


class GenerationObserver(Observer):
    """Watch a model generate: each step makes the same calls, and has a probe of its own.

    The first step reads the prompt, each later one a token, from cached keys.
    """

    def __init__(self, calls: int, heads: Mapping[int, tuple[int, ...]]) -> None:
        self.calls = calls
        self.heads = heads
        self.probes: list[CaptureObserver] = []

    def choose_probe(self) -> CaptureObserver:
        """Return the probe, an observer of one step, of the step that the next call belongs to.

        A new probe is made when the latest one has seen all calls of a step.
        """
        if not self.probes or self.probes[-1].calls == self.calls:
            self.probes.append(CaptureObserver(self.heads, WHOLE, stop=False))
        return self.probes[-1]

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Show a call to the probe of its step, and return its output."""
        return self.choose_probe().attend(call, source)

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Show weights that a model made itself to the probe of their step."""
        return self.choose_probe().see_weights(weights, visible, source)

    def record_difference(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """Keep the difference of a call from the model's own output."""
        self.probes[-1].record_difference(number, difference, dtype)

    def make_results(self, request: Request) -> dict[int, CallResult]:
        """Return what a request keeps of the whole attention matrices that the steps make together.

        The first step has the rows of the prompt, each later one the row of one token. Returns the
        numbers of the chosen heads by the number of the call. The steps give up what they have kept
        of each call in turn, so that memory holds the weights of a long text once.
        """
        # The probes have kept the chosen heads alone, counted anew from 0.
        every_head = {number: tuple(range(len(heads))) for number, heads in self.heads.items()}
        whole = CaptureObserver(every_head, request, stop=False)
        last_visible: Tensor | None = None  # shared by the layers that have the same
        for number in range(self.calls):
            if number not in self.heads:
                # It is counted, though nothing is kept of it.
                whole.calls += 1
                continue
            steps = [probe.found.pop(number) for probe in self.probes]
            weights, visible = join_steps(steps)
            if last_visible is None or not torch.equal(visible, last_visible):
                last_visible = visible
            whole.see_weights(weights, last_visible, NOWHERE)
            difference = find_largest_difference(steps)
            whole.record_difference(number, difference, steps[0].dtype)
        return whole.found


def find_largest_difference(steps: Sequence[CallResult]) -> float | None:
    """Return the largest difference of steps from the model's own output; None if no step is."""
    return max((step.difference or 0.0 for step in steps), default=None)


def join_steps(steps: Sequence[CallResult]) -> tuple[Tensor, Tensor]:
    """Join the weights of the steps of a generation, and what is visible, into whole matrices.

    The first step reads the text, each later one a token. The rows of a step stand below those of
    the step before, and their last key is the last token that was read by then. A cache may have
    dropped the oldest keys: these stay masked.

    steps: what was kept of one call in each step, in order, with weights. Returns the weights, (1,
    head, query, key), and booleans that are True where a query may attend, of one head where all
    have the same.
    """
    rows = [step.weights for step in steps if step.weights is not None]
    heads = rows[0].shape[0]
    total = sum(step_rows.shape[1] for step_rows in rows)
    weights = torch.zeros(1, heads, total, total)
    masks = max(len(step.visible) for step in steps)
    visible = torch.zeros(1, masks, total, total, dtype=torch.bool)
    first = 0
    for step, step_rows in zip(steps, rows, strict=True):
        stop = first + step_rows.shape[1]
        keys = min(step_rows.shape[2], stop)  # a cache may have room for more than was read
        place = 0, slice(None), slice(first, stop), slice(stop - keys, stop)
        weights[place] = step_rows[:, :, :keys]
        visible[place] = step.visible[:, :, :keys]
        first = stop
    return weights, visible
