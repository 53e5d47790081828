"""Attention of a text while it is continued: the rectangle of all queries, row by row as they were produced."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.observers.base import Found, Observer, Source
from attnviz.engine.observers.capture import Probe
from attnviz.request import Request

WHOLE = Request()


class Steps(Observer):
    """An observer of generation: the first step reads the prompt, each later one a token, from cached keys."""

    def __init__(self, calls: int, heads: Mapping[int, tuple[int, ...]]) -> None:
        self.calls, self.heads = calls, heads
        self.probes: list[Probe] = []

    def probe(self) -> Probe:
        """The probe of the step that a call belongs to: each step makes the same calls."""
        if not self.probes or self.probes[-1].calls == self.calls:
            self.probes.append(Probe(self.heads, WHOLE, stop=False))
        return self.probes[-1]

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``."""
        return self.probe().attend(call, source)

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``."""
        return self.probe().given(weights, visible, source)

    def measured(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """See ``Observer.measured``."""
        self.probes[-1].measured(number, difference, dtype)

    def found(self, request: Request) -> dict[int, Found]:
        """What a request keeps of the rectangles that the steps make together."""
        together = Probe(
            {number: tuple(range(len(heads))) for number, heads in self.heads.items()},
            request,
            stop=False,
        )
        for number in range(self.calls):
            if number not in self.heads:
                together.calls += 1
                continue
            steps = [probe.found[number] for probe in self.probes]
            together.given(*joined(steps), Source())
            together.found[number].difference = max(
                (step.difference or 0.0 for step in steps), default=None
            )
            together.found[number].dtype = steps[0].dtype
        return together.found


def joined(steps: Sequence[Found]) -> tuple[Tensor, Tensor]:
    """Weights and what is visible, (1, head, query, key), of rows that end at their own key.

    A cache that drops old keys brings fewer than there were: these are masked.
    """
    parts = [step.weights for step in steps if step.weights is not None]
    total = sum(part.shape[1] for part in parts)
    weights = torch.zeros(1, parts[0].shape[0], total, total)
    visible = torch.zeros_like(weights, dtype=torch.bool)
    row = 0
    for step, part in zip(steps, parts, strict=True):
        stop = row + part.shape[1]
        keys = min(part.shape[2], stop)
        weights[0, :, row:stop, stop - keys : stop] = part[:, :, :keys]
        visible[0, :, row:stop, stop - keys : stop] = step.visible[:, :, :keys]
        row = stop
    return weights, visible
