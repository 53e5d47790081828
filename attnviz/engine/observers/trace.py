"""One query of one head, as a running model has it: what its attention is made of, and what it puts out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.analysis.explain import Operands
from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import Call
from attnviz.engine.observers.base import Finished, Observer, Source, plain_output
from attnviz.errors import ModelError
from attnviz.record import Doubles

HIDDEN_STEPS = (
    "attention of this model cannot be followed: it shows its weights, not what they are made of"
)


class Followed(Observer):
    """An observer that keeps one query of one head of one call, by its number."""

    def __init__(
        self, number: int, head: int, query: int, running: Sequence[Tensor | None]
    ) -> None:
        self.number, self.head, self.query, self.running = number, head, query, running
        """running: see ``inputs_of_running``."""
        self.calls = 0
        self.found: Operands | None = None

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``. Raises Finished once the call was seen."""
        output = (
            plain_output(call, source) if call.plain else attend(call, Plan(Shape.of(call, 64)), ())
        )
        self.calls += 1
        if self.calls - 1 == self.number:
            self.found = self.operands(call, source, output)
            raise Finished
        return output

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``. Raises ModelError if this is the call: there is nothing but weights."""
        self.calls += 1
        if self.calls - 1 == self.number:
            raise ModelError(HIDDEN_STEPS)
        return self.calls - 1

    def operands(self, call: Call, source: Source, output: Tensor) -> Operands:
        """What the head has for the query, of the one text."""
        part = call.heads((self.head,)).rows(torch.tensor([self.query], device=call.query.device))
        keys = call.key.shape[2]
        visible = part.visible()[0, 0, 0].expand(keys).cpu().numpy()
        added = [mask[0, 0, 0].expand(keys) for mask in part.masks if mask.dtype != torch.bool]
        bias = sum(doubles(mask) for mask in added) if added else np.zeros(keys)
        bias = np.where(visible, bias, 0.0)
        return Operands(
            doubles(part.query[0, 0, 0]),
            doubles(part.key[0, 0]),
            doubles(part.value[0, 0]),
            visible,
            float(part.scale),
            bias=bias if bias.any() else None,
            softcap=part.softcap,
            sink=None if part.sinks is None else float(part.sinks.reshape(-1)[0]),
            hidden=self.hidden(call.query.shape[2]),
            output=self.own(call, source, output),
        )

    def hidden(self, count: int) -> Doubles | None:
        """The query's token as it came to the module that called, if that was given one vector a query."""
        entered = self.running[-1] if self.running else None
        if entered is None or entered.ndim != 3 or entered.shape[:2] != (1, count):
            return None
        return doubles(entered[0, self.query])

    def own(self, call: Call, source: Source, output: Tensor) -> Doubles | None:
        """The output of the head for the query by a function that is not ours; None if there is none."""
        if call.plain:
            return doubles(output[0, self.query, self.head])
        rows = torch.tensor([self.query], device=call.query.device)
        found = source.reference(rows) if source.reference else None
        return None if found is None else doubles(found[0, 0, self.head])


def doubles(array: Tensor) -> Doubles:
    """A tensor of any type and device as NumPy's float64."""
    found: Doubles = array.detach().double().cpu().numpy()
    return found


@contextmanager
def inputs_of_running(model: nn.Module) -> Iterator[Sequence[Tensor | None]]:
    """The first tensor that each module that runs now was given, the innermost last: attention is made of that."""
    running: list[Tensor | None] = []
    this_thread = get_ident()  # another one may run the model meanwhile

    def enter(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if get_ident() == this_thread:
            running.append(
                next((part for part in (*args, *named.values()) if isinstance(part, Tensor)), None)
            )

    def leave(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:  # noqa: ARG001
        if get_ident() == this_thread:
            running.pop()

    hooks = [
        hook
        for module in model.modules()
        for hook in (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        )
    ]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
