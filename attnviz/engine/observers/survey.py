"""The first run of a model: which calls of attention there are."""

from torch import Tensor

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import Call
from attnviz.engine.observers.base import Observer, Seen, Source
from attnviz.engine.running import Running


class Survey(Observer):
    """Write down what calls there are.

    The model goes on with outputs that are made of weights by our own blocks: what it says in the end tells whether
    the calls were understood.
    """

    def __init__(self, running: Running | None = None) -> None:
        self.running = running or Running()
        self.seen: list[Seen] = []
        self.last: Call | None = None

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``."""
        (_, heads, n, _), m = call.query.shape, call.key.shape[2]
        repeated = self.last is not None and share_weights(self.last, call)
        self.last = call
        self.write_down(source, (heads, n, m), repeated=repeated)
        return attend(call, Plan(Shape.of(call, 64)), ())

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``."""
        _, heads, n, m = weights.shape
        self.write_down(source, (heads, n, m), repeated=False)
        return len(self.seen) - 1

    def write_down(self, source: Source, size: tuple[int, int, int], *, repeated: bool) -> None:
        """Add a call of a size (heads, queries, keys) to the list."""
        running = self.running
        self.seen.append(
            Seen(source.layer, *size, running.name, source.cross, running.entry, repeated)
        )


def share_weights(one: Call, other: Call) -> bool:
    """Return whether two calls have the same weights, because they have the very same queries, keys and masks."""
    parts = (
        (one.query, other.query),
        (one.key, other.key),
        (one.mask, other.mask),
        (one.bias, other.bias),
    )
    same_scores = (one.scale, one.causal, one.softcap) == (other.scale, other.causal, other.softcap)
    return same_scores and all(are_one(first, second) for first, second in parts)


def are_one(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are the same numbers in memory, or both are missing."""
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr() and (first.shape, first.stride()) == (
        second.shape,
        second.stride(),
    )
