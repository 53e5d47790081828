"""Which calls of a model are looked at, and what was found there.

A model is run once to survey its calls of attention and once to look at some of them. The calls of both runs come in
one order, so that a call is known by its number alone, whatever its module is called.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from attnviz.engine.blocks import Plan, Reducer, Shape, attend, replay
from attnviz.engine.call import Call
from attnviz.engine.edits import Edits
from attnviz.engine.reducers import Matrix, Sight, Strongest, Summary
from attnviz.engine.running import Running
from attnviz.engine.values import (
    UNPROJECTED,
    VALUELESS,
    Watched,
    head_lengths,
    require_projection,
    scores,
    summed_lengths,
)
from attnviz.errors import InputError, ModelError
from attnviz.record import ATTENTION, NORM, SCORES, Kind
from attnviz.request import Request

NO_EDITS = Edits()
SAMPLE = 16  # queries of a layer whose output is computed a second time, by another function


class Site(NamedTuple):
    """A call of attention in the run of a model."""

    kind: Kind
    layer: int
    heads: int
    size: tuple[int, int]
    """Queries and keys when it was surveyed."""
    part: str = ""
    """Which part of the model, or of its input, the layer belongs to, where there are several of one kind."""
    repeated: bool = False
    """Whether the call has the queries and keys of the one before, with other values: a second call of one layer."""


class Seen(NamedTuple):
    """What a survey tells of a call."""

    layer: int | None
    """As the calling module says, if it does."""
    heads: int
    queries: int
    keys: int
    where: str
    """The name of the module that called, if it is known."""
    cross: bool
    """Whether the keys are surely not those of the queries' own text."""
    entry: int = 0
    """The number of the run of the module that called, if it is known: see ``Running``."""
    repeated: bool = False
    """Whether its queries and keys are those of the call before: only the values are others."""


@dataclass(eq=False)
class Found:
    """What was found at a call, on the CPU; arrays begin with (head, ...)."""

    visible: Tensor
    """(1 or head, query, key), or of tiles."""
    weights: Tensor | None = None
    summary: dict[str, Tensor] = field(default_factory=dict)
    tile: tuple[int, int] = (1, 1)
    edges: tuple[Tensor, Tensor] | None = None
    difference: float | None = None
    """Of weights times values from the output that the model went on with, as a share of its largest."""
    dtype: torch.dtype = torch.float32
    """The coarsest type of what was compared."""

    def pick(self, heads: tuple[int, ...]) -> "Found":
        """Some of the heads."""
        at = torch.tensor(heads)
        visible = self.visible if len(self.visible) == 1 else self.visible[at]
        summary = {name: array[at] for name, array in self.summary.items()}
        edges = None if self.edges is None else (self.edges[0][at], self.edges[1][at])
        weights = None if self.weights is None else self.weights[at]
        return Found(visible, weights, summary, self.tile, edges, self.difference, self.dtype)


class Finished(BaseException):
    """All that was wanted is there: the rest of the model need not run. No error, so no library may swallow it."""


class Observer(Protocol):
    """Sees the calls of a running model."""

    def attend(self, call: Call, source: "Source") -> Tensor:
        """See a call, and give its output (B, N, H, d_v)."""
        ...

    def given(self, weights: Tensor, visible: Tensor, source: "Source") -> int:
        """See weights (B, H, N, M) that a model made itself, visible broadcasts to them; the number of the call."""
        ...

    def measured(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """Hear how far the weights of a call, times values, are from what the model went on with.

        dtype: the coarsest type of what was compared.
        """
        ...

    def before(self, scores: Tensor) -> Tensor:
        """Scores (B, H, N, M) that a model is about to give to a softmax, with the edges hidden that are to be cut."""
        ...


class Source(NamedTuple):
    """Where a call comes from."""

    layer: int | None = None
    cross: bool = False
    plain: Callable[[], Tensor] | None = None
    """The output (B, N, H, d_v) as the model would compute it; default: torch's own function."""
    reference: Callable[[Tensor], Tensor | None] | None = None
    """The output of some queries, (B, row, H, d_v), by a function that is not ours; None if there is none."""


NOWHERE = Source()


def plain_output(call: Call, source: Source) -> Tensor:
    """The output of a call that torch's function can compute."""
    return source.plain() if source.plain else call.sdpa().transpose(1, 2)


class Survey:
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
        self.seen.append(Seen(source.layer, *size, running.name, source.cross, running.entry, repeated))

    def measured(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """See ``Observer.measured``."""

    def before(self, scores: Tensor) -> Tensor:
        """See ``Observer.before``."""
        return scores


def share_weights(one: Call, other: Call) -> bool:
    """Return whether two calls have the same weights, because they have the very same queries, keys and masks."""
    parts = ((one.query, other.query), (one.key, other.key), (one.mask, other.mask), (one.bias, other.bias))
    same_scores = (one.scale, one.causal, one.softcap) == (other.scale, other.causal, other.softcap)
    return same_scores and all(are_one(first, second) for first, second in parts)


def are_one(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are the same numbers in memory, or both are missing."""
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr() and (first.shape, first.stride()) == (second.shape, second.stride())


class Probe:
    """Looks at chosen calls, by their numbers, and keeps what is wanted of chosen heads."""

    def __init__(
        self,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: Edits = NO_EDITS,
        *,
        stop: bool = True,
    ) -> None:
        self.heads, self.request, self.edits = heads, request, edits
        self.stop = stop and request.method != NORM  # what follows tells whether an output was projected once
        self.calls = 0
        self.cut: set[int] = set()
        """The calls whose scores were seen before the softmax."""
        self.found: dict[int, Found] = {}
        self.plans: dict[Shape, tuple[Plan, Summary]] = {}
        self.views: list[tuple[tuple[Tensor, ...], bool, tuple[int, int], tuple[Tensor, Sight]]] = []

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``. Raises Finished."""
        number = self.count(call.query)
        edited = self.edits.of_call(number, call)
        call, source = edited, source if edited is call else NOWHERE
        if number not in self.heads:
            return self.edits.of_output(number, call, self.output(call, source))
        output, found = self.look(call, source, self.heads[number])
        output = self.edits.of_output(number, call, output)
        if self.request.method == NORM:
            return Watched.of(output, partial(self.project, number, call, output, found))
        self.keep(number, found)
        return output

    def project(self, number: int, call: Call, output: Tensor, found: Found, merged: Tensor, matrix: Tensor) -> None:
        """The weights of a call become norms once its output meets a matrix. Raises ModelError if it meets two."""
        if number in self.found:
            raise ModelError(UNPROJECTED)
        heads, rows, columns = self.heads[number], self.request.rows, self.request.columns
        projection = require_projection(output, merged, matrix)
        if self.request.summed:
            found.weights = summed_lengths(call, projection, heads, rows, columns)
            found.visible = found.visible.any(0, keepdim=True)
        elif found.weights is not None:
            found.weights *= head_lengths(call, projection, heads)[:, None, columns]
        self.keep(number, found)

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``. Raises Finished."""
        number = self.count(weights)
        if number in self.heads and self.request.method != ATTENTION:
            raise ModelError(VALUELESS)
        self.edits.require_none(number, cut=number in self.cut)
        if number in self.heads:
            pick = torch.tensor(self.heads[number], device=weights.device)
            visible = visible.expand(weights.shape)
            self.keep(number, self.summarise(weights[:, pick].float(), visible[:, pick]))
        return number

    def measured(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """See ``Observer.measured``."""
        if number in self.found:
            self.found[number].difference = difference
            self.found[number].dtype = dtype

    def before(self, scores: Tensor) -> Tensor:
        """See ``Observer.before``."""
        self.cut.add(self.calls)
        return self.edits.of_scores(self.calls, scores)

    def count(self, array: Tensor) -> int:
        """The number of this call. Raises InputError for several texts at once."""
        if array.shape[0] != 1:
            raise InputError(
                f"the inputs hold {array.shape[0]} texts, images or parts of them that are read at once; "
                "attention is captured of one at a time"
            )
        self.calls += 1
        return self.calls - 1

    def keep(self, number: int, found: Found) -> None:
        """Keep what was found; raise Finished if that was the last."""
        self.found[number] = found
        if self.stop and len(self.found) == len(self.heads):
            raise Finished

    def output(self, call: Call, source: Source) -> Tensor:
        """The output of a call, nothing kept."""
        if call.plain:
            return plain_output(call, source)
        return attend(call, self.plan(call)[0], ())

    def look(self, call: Call, source: Source, heads: tuple[int, ...]) -> tuple[Tensor, Found]:
        """The output, and what is kept. Where most heads are wanted their own blocks give the output too."""
        everything = len(heads) * 2 > call.query.shape[1] and self.request.keep != "weights"
        if everything:
            output, found = self.run(call)
            found = found if heads == tuple(range(call.query.shape[1])) else found.pick(heads)
        else:
            output = self.output(call, source)
            part = call.heads(heads)
            if self.request.rows != slice(None):
                part = part.rows(torch.arange(call.query.shape[2], device=call.query.device)[self.request.rows])
            again, found = self.run(part)
            of_heads = torch.tensor(heads, device=output.device)
            found.difference = agreement(again, output[:, self.request.rows][:, :, of_heads])
            found.dtype = coarsest(call.query, call.value, output)
            if self.request.method == SCORES:
                found.weights = scores(call, heads, self.request.rows, self.request.columns)
        if everything or not call.plain:  # the output is ours: another function should say the same
            difference, dtype = check(call, source, output)
            found.difference = larger(found.difference, difference)
            found.dtype = dtype
        return output, found

    def run(self, call: Call) -> tuple[Tensor, Found]:
        """The output (B, N, H, d_v) of a call by blocks, and what is kept of all its heads."""
        plan, summary = self.plan(call)
        kept = self.reducers(plan, summary)
        output = attend(call, plan, tuple(kept.values()))
        return output, self.finish(kept, *self.view(call, plan))

    def summarise(self, weights: Tensor, visible: Tensor) -> Found:
        """What is kept of weights (1, H, N, M) that a model made itself."""
        weights, visible = weights[:, :, self.request.rows], visible[:, :, self.request.rows]
        _, h, n, m = weights.shape
        shape = Shape(1, h, h, n, m, 1, 1, False, self.request.tiles, weights.dtype, weights.device)
        plan, summary = self.shared(shape)
        kept = self.reducers(plan, summary)
        replay(weights, plan, tuple(kept.values()))
        return self.finish(kept, self.shown(visible, plan), Sight.of(visible))

    def plan(self, call: Call) -> tuple[Plan, Summary]:
        """The blocks and buffers of a call."""
        return self.shared(Shape.of(call, self.request.tiles))

    def shared(self, shape: Shape) -> tuple[Plan, Summary]:
        """The same for a shape, made once."""
        if shape not in self.plans:
            plan = Plan(shape)
            self.plans[shape] = plan, Summary(plan, square=shape.queries == shape.keys)
        return self.plans[shape]

    def reducers(self, plan: Plan, summary: Summary) -> dict[str, Any]:
        """What sees the blocks. A window tells nothing of the statistics of the whole, nor do norms or scores."""
        kept: dict[str, Reducer] = {}
        if self.request.keep == "weights" and self.request.method != SCORES and not self.request.summed:
            kept["weights"] = Matrix(plan, self.request.columns)
        if self.request.keep == "edges":
            kept["edges"] = Strongest(plan, self.request.strongest)
        whole = not self.request.windowed and self.request.method == ATTENTION
        return {**kept, "summary": summary} if whole else kept

    def finish(self, kept: dict[str, Any], visible: Tensor, sight: Sight) -> Found:
        """The results of the reducers, of the one text."""
        found = Found(visible)
        if "weights" in kept:
            found.weights = kept["weights"].result()[0]
        if "edges" in kept:
            keys, weights = kept["edges"].result()
            found.edges = keys[0], weights[0]
        if "summary" in kept:
            found.summary = {name: array[0] for name, array in kept["summary"].result(sight).items()}
            found.tile = kept["summary"].plan.tile
        return found

    def view(self, call: Call, plan: Plan) -> tuple[Tensor, Sight]:
        """What is visible, as it is kept, and what that leaves to choose; layers that share a mask share these."""
        (n, m), masks = plan.shape[3:5], call.masks
        for known, causal, shape, view in self.views:
            same = len(known) == len(masks) and all(map(operator.is_, known, masks))
            if same and (causal, shape) == (call.causal, (n, m)):
                return view
        if call.causal:
            sight = Sight.causal(n, m, call.query.device)
            view = (self.causal(n, m) if self.request.keep == "weights" else causal_tiles(plan)), sight
        else:
            visible = call.visible()
            view = self.shown(visible, plan), Sight.of(visible)
        self.views = [*self.views[-3:], (masks, call.causal, (n, m), view)]
        return view

    def causal(self, n: int, m: int) -> Tensor:
        """What is visible to causal queries of the keys of the window: (1, N, keys)."""
        return (torch.arange(m)[self.request.columns] <= torch.arange(n)[:, None])[None]

    def shown(self, visible: Tensor, plan: Plan) -> Tensor:
        """What is visible, (1 or H, N or 1, M), as it is kept: the window, or tiles."""
        if self.request.keep == "weights":
            return visible[0, :, :, self.request.columns].cpu()
        return pooled(visible, plan)[0].cpu()


def pooled(visible: Tensor, plan: Plan) -> Tensor:
    """Which tiles hold a visible cell: (B or 1, H or 1, N or 1, M) -> (B or 1, H or 1, row or 1, column)."""
    height, width = plan.tile
    rows = torch.stack([part.any(2) for part in torch.split(visible, height, 2)], 2)
    return torch.stack([part.any(3) for part in torch.split(rows, width, 3)], 3)


def causal_tiles(plan: Plan) -> Tensor:
    """The same of one causal mask, without building it: (1, row, column)."""
    (rows, columns), (height, width) = plan.tiles, plan.tile
    last = (torch.arange(rows) + 1) * height - 1
    return (torch.arange(columns) * width <= last[:, None])[None]


def check(call: Call, source: Source, output: Tensor) -> tuple[float | None, torch.dtype]:
    """How far the output of a few queries is from what another function makes of them; None if there is none.

    Also the coarsest type of what was compared.
    """
    count = call.query.shape[2]
    rows = torch.arange(0, count, -(-count // SAMPLE), device=call.query.device)
    if call.plain:
        expected = call.rows(rows).sdpa().transpose(1, 2)
    else:
        by_reference = source.reference(rows) if source.reference else None
        if by_reference is None:
            return None, output.dtype
        expected = by_reference
    return agreement(output[:, rows], expected), coarsest(call.query, call.value, output, expected)


def coarsest(*parts: Tensor) -> torch.dtype:
    """Return the type of the largest rounding among tensors."""
    return max((part.dtype for part in parts), key=lambda dtype: torch.finfo(dtype).eps)


def agreement(ours: Tensor, theirs: Tensor) -> float | None:
    """Their difference, (1, N, H, d_v), over the queries that see a key: functions differ in what the others get."""
    seeing = ours.abs().amax(-1, keepdim=True) > 0
    return difference(ours, theirs.where(seeing, 0))


def difference(ours: Tensor, theirs: Tensor) -> float | None:
    """The largest difference as a share of the largest value."""
    if not theirs.numel():
        return None
    apart, largest = (ours.float() - theirs).abs().max(), theirs.float().abs().max()
    return float(apart / largest.clamp_min(1e-30))


def larger(one: float | None, other: float | None) -> float | None:
    """The larger of two numbers that may be missing."""
    return max((part for part in (one, other) if part is not None), default=None)
