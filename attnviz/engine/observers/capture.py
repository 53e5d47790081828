"""The run that a capture is made of: chosen calls are looked at, and what is wanted of chosen heads is kept.

A model is run once to survey its calls of attention and once to look at some of them. The calls of both runs come in
one order, so that a call is known by its number alone, whatever its module is called.
"""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnviz.engine.agreement import agreement, check, coarsest, larger
from attnviz.engine.blocks import Plan, Reducer, Shape, attend, replay
from attnviz.engine.call import Call
from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import NOWHERE, Finished, Found, Observer, Source, plain_output
from attnviz.engine.reducers import Matrix, Sight, Strongest, Summary
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
from attnviz.record import ATTENTION, NORM, SCORES
from attnviz.request import Request

NO_EDITS = Edits()


class Probe(Observer):
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
        self.stop = (
            stop and request.method != NORM
        )  # what follows tells whether an output was projected once
        self.calls = 0
        self.cut: set[int] = set()
        """The calls whose scores were seen before the softmax."""
        self.found: dict[int, Found] = {}
        self.plans: dict[Shape, tuple[Plan, Summary]] = {}
        self.views: list[
            tuple[tuple[Tensor, ...], bool, tuple[int, int], tuple[Tensor, Sight]]
        ] = []

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

    def project(
        self, number: int, call: Call, output: Tensor, found: Found, merged: Tensor, matrix: Tensor
    ) -> None:
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
                part = part.rows(
                    torch.arange(call.query.shape[2], device=call.query.device)[self.request.rows]
                )
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
        if (
            self.request.keep == "weights"
            and self.request.method != SCORES
            and not self.request.summed
        ):
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
            found.summary = {
                name: array[0] for name, array in kept["summary"].result(sight).items()
            }
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
            view = (
                (self.causal(n, m) if self.request.keep == "weights" else causal_tiles(plan)),
                sight,
            )
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
