"""One query of one head, as a running model has it: its vectors, and its output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.analysis.explain import Operands
from attnviz.engine.blocks import compute_output
from attnviz.engine.call import Call
from attnviz.engine.observers.base import (
    CallSource,
    Finished,
    Observer,
    compute_plain_output,
)
from attnviz.errors import ModelError
from attnviz.record import Doubles

HIDDEN_STEPS = (
    "attention of this model cannot be followed: it shows its weights, not what they are made of"
)


class TraceObserver(Observer):
    """Keep one query of one head of one call, by its number."""

    def __init__(
        self,
        number: int,
        head: int,
        query: int,
        running_inputs: Sequence[Tensor | None],
    ) -> None:
        self.number = number
        self.head = head
        self.query = query
        self.running_inputs = running_inputs
        """The inputs of the modules that run: see ``watch_running_inputs``."""
        self.calls = 0
        self.found: Operands | None = None

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output of a call, (batch, query, head, d_v).

        source: where the call comes from. Raises Finished when this is the call that is followed,
        once the vectors of its query are read.
        """
        output = compute_plain_output(call, source) if call.plain else compute_output(call)
        if self.count_call() == self.number:
            self.found = self.read_operands(call, source, output)
            raise Finished
        return output

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Count weights that a model made itself, and return the number of the call.

        Raises ModelError if this is the call that is followed, of which there is nothing but
        weights.
        """
        number = self.count_call()
        if number == self.number:
            raise ModelError(HIDDEN_STEPS)
        return number

    def count_call(self) -> int:
        """Return the number of this call."""
        number = self.calls
        self.calls += 1
        return number

    def read_operands(self, call: Call, source: CallSource, output: Tensor) -> Operands:
        """Read all numbers of which the head makes its output for the followed query.

        call: of one text. source: where it comes from. output: of the call, (1, query, head, d_v).
        """
        row = torch.tensor([self.query], device=call.query.device)
        chosen = call.pick_heads((self.head,)).pick_queries(row)
        query = copy_to_doubles(chosen.query[0, 0, 0])
        key = copy_to_doubles(chosen.key[0, 0])
        value = copy_to_doubles(chosen.value[0, 0])
        scale = float(chosen.scale)
        queries = call.query.shape[2]
        keys = call.key.shape[2]
        row_visible = chosen.find_visible_cells()[0, 0, 0]
        visible = row_visible.expand(keys).cpu().numpy()
        bias = np.where(visible, add_biases(chosen, keys), 0.0)
        sink = None
        if chosen.sinks is not None:
            sink = float(chosen.sinks.reshape(-1)[0])
        return Operands(
            query=query,
            key=key,
            value=value,
            visible=visible,
            scale=scale,
            bias=bias if bias.any() else None,
            softcap=chosen.softcap,
            sink=sink,
            hidden=self.read_hidden_state(queries),
            output=self.read_output(call, source, output),
        )

    def read_hidden_state(self, queries: int) -> Doubles | None:
        """Return the vector of the followed query as the module that made the call was given it.

        queries: how many the call has. Returns None unless the module was given one vector a query.
        """
        module_input = self.running_inputs[-1] if self.running_inputs else None
        if module_input is None or module_input.ndim != 3:
            return None
        if module_input.shape[:2] != (1, queries):
            return None
        return copy_to_doubles(module_input[0, self.query])

    def read_output(self, call: Call, source: CallSource, output: Tensor) -> Doubles | None:
        """Return the output of the head for the followed query by a function that is not ours.

        output: of the call, (1, query, head, d_v): that of such a function if the call is
        ``plain``. source: may have another one. Returns (d_v,), or None if there is no such
        function.
        """
        if call.plain:
            return copy_to_doubles(output[0, self.query, self.head])
        if source.reference is None:
            return None
        row = torch.tensor([self.query], device=call.query.device)
        reference = source.reference(row)
        if reference is None:
            return None
        return copy_to_doubles(reference[0, 0, self.head])


def add_biases(call: Call, keys: int) -> Doubles:
    """Add up all numbers that are added to the scores of one query of one head, (key,).

    call: of this query and head alone. keys: how many keys it has.
    """
    biases = np.zeros(keys)
    for mask in call.masks:
        if mask.dtype != torch.bool:
            biases = biases + copy_to_doubles(mask[0, 0, 0].expand(keys))
    return biases


def copy_to_doubles(array: Tensor) -> Doubles:
    """Return a tensor of any type and device as NumPy's float64."""
    doubles: Doubles = array.detach().cpu().double().numpy()
    return doubles


@contextmanager
def watch_running_inputs(model: nn.Module) -> Iterator[Sequence[Tensor | None]]:
    """Know the first tensor that each module that runs now was given.

    Yields a list that changes as the model runs in this thread: an entry for each running module,
    the innermost last, and None for one that was given no tensor. Attention is made of that tensor.
    """
    running: list[Tensor | None] = []
    this_thread = get_ident()  # another one may run the model meanwhile

    def enter(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if get_ident() == this_thread:
            running.append(find_tensor((*args, *named.values())))

    def leave(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:  # noqa: ARG001
        if get_ident() == this_thread:
            running.pop()

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def find_tensor(arguments: tuple[Any, ...]) -> Tensor | None:
    """Return the first tensor of arguments, or None."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument
    return None
