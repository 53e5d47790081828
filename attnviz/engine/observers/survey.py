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
        """Write a call of attention down, and compute its output, (batch, query, head, d_v).

        source: where the call comes from. The output is made of weights by our own blocks.
        """
        heads, queries = call.query.shape[1:3]
        keys = call.key.shape[2]
        repeated = self.last is not None and share_weights(self.last, call)
        self.last = call
        self.write_down(source, (heads, queries, keys), repeated=repeated)
        return compute_output(call)

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Write weights down that a model made itself, and return the number of the call."""
        _, heads, queries, keys = weights.shape
        self.write_down(source, (heads, queries, keys), repeated=False)
        return len(self.seen) - 1

    def write_down(self, source: CallSource, size: tuple[int, int, int], *, repeated: bool) -> None:
        """Add a call to the list of the calls of this run, with the module that runs.

        source: where the call comes from. size: how many heads, queries and keys it has. repeated:
        True if it has the weights of the call before.
        """
        name = self.running.name
        entry = self.running.entry
        heads, queries, keys = size
        call = SurveyedCall(
            layer=source.layer,
            heads=heads,
            queries=queries,
            keys=keys,
            where=name,
            cross=source.cross,
            entry=entry,
            repeated=repeated,
        )
        self.seen.append(call)


def share_weights(one: Call, other: Call) -> bool:
    """Return whether two calls have the same weights.

    They have if their queries, keys and masks are the very same in memory.
    """
    if (one.scale, one.causal, one.softcap) != (other.scale, other.causal, other.softcap):
        return False
    return all(map(are_same_memory, list_operands(one), list_operands(other)))


def list_operands(call: Call) -> tuple[Tensor | None, ...]:
    """List the tensors of which the scores of a call are made."""
    return call.query, call.key, call.mask, call.bias


def are_same_memory(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are one view of the same memory, or both are missing."""
    if first is None or second is None:
        return first is second
    if first.data_ptr() != second.data_ptr() or first.shape != second.shape:
        return False
    return first.stride() == second.stride()
