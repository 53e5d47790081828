"""The first run of a model, which finds its calls of attention."""

from torch import Tensor

from attnviz.engine.blocks import compute_output
from attnviz.engine.call import Call
from attnviz.engine.observers.base import CallSource, Observer, SurveyedCall
from attnviz.engine.running import Running


class SurveyObserver(Observer):
    """Write down the calls of a run.

    The model goes on with outputs that are made of weights by our own blocks: what it says in the
    end tells whether the calls were understood.
    """

    def __init__(self, running: Running | None = None) -> None:
        self.running = running or Running()
        self.seen: list[SurveyedCall] = []
        self.last: Call | None = None

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Write a call down, and compute its output."""
        heads, queries = call.query.shape[1:3]
        keys = call.key.shape[2]
        repeated = self.last is not None and share_weights(self.last, call)
        self.last = call
        self.write_down(source, (heads, queries, keys), repeated=repeated)
        return compute_output(call)

    def given(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Write weights down that a model made itself, and return the number of the call."""
        _, heads, queries, keys = weights.shape
        self.write_down(source, (heads, queries, keys), repeated=False)
        return len(self.seen) - 1

    def write_down(self, source: CallSource, size: tuple[int, int, int], *, repeated: bool) -> None:
        """Add a call of a size (heads, queries, keys) to the list."""
        name = self.running.name
        entry = self.running.entry
        seen = SurveyedCall(source.layer, *size, name, source.cross, entry, repeated)
        self.seen.append(seen)


def share_weights(one: Call, other: Call) -> bool:
    """Return whether two calls have the same weights.

    They have if their queries, keys and masks are the very same.
    """
    if (one.scale, one.causal, one.softcap) != (other.scale, other.causal, other.softcap):
        return False
    return all(map(are_one, list_operands(one), list_operands(other)))


def list_operands(call: Call) -> tuple[Tensor | None, ...]:
    """List the tensors of which the scores of a call are made."""
    return call.query, call.key, call.mask, call.bias


def are_one(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are the same numbers in memory, or both are missing."""
    if first is None or second is None:
        return first is second
    if first.data_ptr() != second.data_ptr() or first.shape != second.shape:
        return False
    return first.stride() == second.stride()
