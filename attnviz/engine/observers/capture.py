"""The run that a capture is made of: it looks at chosen calls, and keeps numbers of chosen heads.

A model is run once to survey its calls of attention and once to look at some of them. The calls of
both runs come in one order, so that a call is known by its number alone, whatever its module is
called.
"""

import operator
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.agreement import (
    check_output,
    compare_outputs,
    find_coarsest_dtype,
    find_larger,
)
from attnviz.engine.blocks import BlockPlan, CallShape, Reducer, attend_in_blocks, replay_weights
from attnviz.engine.call import Call
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import (
    CallResult,
    CallSource,
    Finished,
    Observer,
    choose_source,
    compute_plain_output,
)
from attnviz.engine.reducers import EdgesReducer, MaskSummary, SummaryReducer, WeightsReducer
from attnviz.engine.values import (
    UNPROJECTED,
    VALUELESS,
    WatchedOutput,
    compute_window_scores,
    measure_head_lengths,
    measure_summed_lengths,
    require_projection,
)
from attnviz.errors import InputError, ModelError
from attnviz.record import ATTENTION, NORM, SCORES
from attnviz.request import Request

NO_EDITS = RunEdits()
VIEWS = 4  # masks of which it is remembered what they leave visible


class ChosenReducers(NamedTuple):
    """The reducers that a request needs; None in place of the others."""

    weights: WeightsReducer | None
    edges: EdgesReducer | None
    summary: SummaryReducer | None

    @property
    def all(self) -> tuple[Reducer, ...]:
        """The reducers in the order in which they see a block."""
        return tuple(reducer for reducer in self if reducer is not None)


class MaskView(NamedTuple):
    """A mask as it is kept of a call; layers that share the mask share this."""

    masks: tuple[Tensor, ...]
    causal: bool
    size: tuple[int, int]
    """Queries and keys."""
    visible: Tensor
    sight: MaskSummary

    def is_of(self, call: Call, size: tuple[int, int]) -> bool:
        """Return whether a call of a size has this very mask."""
        if len(self.masks) != len(call.masks):
            return False
        has_same_masks = all(map(operator.is_, self.masks, call.masks))
        return has_same_masks and (self.causal, self.size) == (call.causal, size)


class CaptureObserver(Observer):
    """Look at chosen calls, by their numbers, and keep what a request names of chosen heads."""

    def __init__(
        self,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: RunEdits = NO_EDITS,
        *,
        stop: bool = True,
    ) -> None:
        self.heads = heads
        self.request = request
        self.edits = edits
        # Only the rest of the run tells whether an output was projected once.
        self.stop = stop and request.method != NORM
        self.calls = 0
        self.cut: set[int] = set()
        """The calls whose scores were seen before the softmax."""
        self.found: dict[int, CallResult] = {}
        self.plans: dict[CallShape, tuple[BlockPlan, SummaryReducer]] = {}
        self.views: list[MaskView] = []

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output of a call, edited, and keep what is wanted of it. Raises Finished."""
        number = self.count_call(call.query)
        edited = self.edits.edit_call(number, call)
        source = choose_source(source, call, edited)
        if number not in self.heads:
            output = self.compute_output(edited, source)
            return self.edits.edit_output(number, edited, output)
        output, result = self.look(edited, source, self.heads[number])
        output = self.edits.edit_output(number, edited, output)
        if self.request.method == NORM:
            project = partial(self.project, number, edited, output, result)
            return WatchedOutput.of(output, project)
        self.keep(number, result)
        return output

    def project(
        self,
        number: int,
        call: Call,
        output: Tensor,
        result: CallResult,
        merged: Tensor,
        matrix: Tensor,
    ) -> None:
        """Make norms of the weights of a call, once its output meets a matrix.

        merged: the tensor that is multiplied with it. Raises ModelError if it meets two.
        """
        if number in self.found:
            raise ModelError(UNPROJECTED)
        heads = self.heads[number]
        rows = self.request.rows
        columns = self.request.columns
        projection = require_projection(output, merged, matrix)
        if self.request.summed:
            result.weights = measure_summed_lengths(call, projection, heads, rows, columns)
            result.visible = result.visible.any(0, keepdim=True)
        elif result.weights is not None:
            lengths = measure_head_lengths(call, projection, heads)
            result.weights *= lengths[:, None, columns]
        self.keep(number, result)

    def given(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Keep what is wanted of weights that a model made itself. Raises Finished.

        Raises ModelError for norms and scores, which need more than weights.
        """
        number = self.count_call(weights)
        if number in self.heads and self.request.method != ATTENTION:
            raise ModelError(VALUELESS)
        self.edits.require_none(number, cut=number in self.cut)
        if number in self.heads:
            heads = torch.tensor(self.heads[number], device=weights.device)
            chosen_visible = visible.expand(weights.shape)[:, heads]
            result = self.summarise(weights[:, heads].float(), chosen_visible)
            self.keep(number, result)
        return number

    def measured(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """Keep the difference of a call from what the model went on with."""
        if number in self.found:
            self.found[number].difference = difference
            self.found[number].dtype = dtype

    def before(self, scores: Tensor) -> Tensor:
        """Return the scores of the next call without the edges that are cut."""
        self.cut.add(self.calls)
        return self.edits.edit_scores(self.calls, scores)

    def count_call(self, array: Tensor) -> int:
        """Return the number of this call. Raises InputError for several texts at once."""
        if array.shape[0] != 1:
            raise InputError(
                f"the inputs hold {array.shape[0]} texts, images or parts of them that are read at "
                "once; attention is captured of one at a time",
            )
        number = self.calls
        self.calls += 1
        return number

    def keep(self, number: int, result: CallResult) -> None:
        """Keep the numbers of a call. Raises Finished if that was the last."""
        self.found[number] = result
        if self.stop and len(self.found) == len(self.heads):
            raise Finished

    def compute_output(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output (B, N, H, d_v) of a call, nothing kept."""
        if call.plain:
            return compute_plain_output(call, source)
        plan, _ = self.find_plan(call)
        return attend_in_blocks(call, plan, ())

    def look(
        self, call: Call, source: CallSource, heads: tuple[int, ...]
    ) -> tuple[Tensor, CallResult]:
        """Compute the output of a call, and what is kept of some heads.

        Where most heads are wanted their own blocks give the output too.
        """
        are_most = len(heads) * 2 > call.query.shape[1]
        if are_most and self.request.keep != "weights":
            output, result = self.run_blocks(call)
            if heads != tuple(range(call.query.shape[1])):
                result = result.pick_heads(heads)
            is_ours = True
        else:
            output = self.compute_output(call, source)
            result = self.look_apart(call, output, heads)
            is_ours = not call.plain
        if is_ours:  # another function should say the same
            difference, dtype = check_output(call, source, output)
            result.difference = find_larger(result.difference, difference)
            result.dtype = dtype
        return output, result

    def look_apart(self, call: Call, output: Tensor, heads: tuple[int, ...]) -> CallResult:
        """Compute what is kept of some heads, in blocks of their own.

        output: that of the whole call, with which the blocks are compared.
        """
        rows = self.request.rows
        columns = self.request.columns
        chosen = call.pick_heads(heads)
        if rows != slice(None):
            numbers = torch.arange(call.query.shape[2], device=call.query.device)
            chosen = chosen.rows(numbers[rows])
        again, result = self.run_blocks(chosen)
        numbers = torch.tensor(heads, device=output.device)
        of_rows = output[:, rows]
        of_heads = of_rows[:, :, numbers]
        result.difference = compare_outputs(again, of_heads)
        result.dtype = find_coarsest_dtype(call.query, call.value, output)
        if self.request.method == SCORES:
            result.weights = compute_window_scores(call, heads, rows, columns)
        return result

    def run_blocks(self, call: Call) -> tuple[Tensor, CallResult]:
        """Compute the output (B, N, H, d_v) of a call by blocks, and what is kept of its heads."""
        plan, summary = self.find_plan(call)
        reducers = self.choose_reducers(plan, summary)
        output = attend_in_blocks(call, plan, reducers.all)
        view = self.find_view(call, plan)
        return output, self.finish(reducers, view.visible, view.sight)

    def summarise(self, weights: Tensor, visible: Tensor) -> CallResult:
        """Compute what is kept of weights (1, H, N, M) that a model made itself."""
        rows = self.request.rows
        weights = weights[:, :, rows]
        visible = visible[:, :, rows]
        _, heads, queries, keys = weights.shape
        shape = CallShape(
            batch=1,
            heads=heads,
            key_heads=heads,
            queries=queries,
            keys=keys,
            width=1,
            value_width=1,
            causal=False,
            tiles=self.request.tiles,
            dtype=weights.dtype,
            device=weights.device,
        )
        plan, summary = self.share_plan(shape)
        reducers = self.choose_reducers(plan, summary)
        replay_weights(weights, plan, reducers.all)
        shown = self.show(visible, plan)
        return self.finish(reducers, shown, MaskSummary.from_mask(visible))

    def find_plan(self, call: Call) -> tuple[BlockPlan, SummaryReducer]:
        """Return the blocks and buffers of a call."""
        return self.share_plan(CallShape.from_call(call, self.request.tiles))

    def share_plan(self, shape: CallShape) -> tuple[BlockPlan, SummaryReducer]:
        """Return the blocks and buffers of a shape, made once for all its calls."""
        if shape not in self.plans:
            plan = BlockPlan(shape)
            summary = SummaryReducer(plan, square=shape.queries == shape.keys)
            self.plans[shape] = plan, summary
        return self.plans[shape]

    def choose_reducers(self, plan: BlockPlan, summary: SummaryReducer) -> ChosenReducers:
        """Choose what sees the blocks.

        A window tells nothing of the statistics of the whole text, nor do norms or scores.
        """
        request = self.request
        weights = edges = None
        if request.keep == "weights" and request.method != SCORES and not request.summed:
            weights = WeightsReducer(plan, request.columns)
        if request.keep == "edges":
            edges = EdgesReducer(plan, request.strongest)
        is_whole = not request.windowed and request.method == ATTENTION
        return ChosenReducers(weights, edges, summary if is_whole else None)

    def finish(self, reducers: ChosenReducers, visible: Tensor, sight: MaskSummary) -> CallResult:
        """Collect the results of the reducers, of the one text."""
        result = CallResult(visible)
        if reducers.weights is not None:
            result.weights = reducers.weights.result()[0]
        if reducers.edges is not None:
            keys, weights = reducers.edges.result()
            result.edges = keys[0], weights[0]
        if reducers.summary is not None:
            results = reducers.summary.result(sight)
            result.summary = {name: array[0] for name, array in results.items()}
            result.tile = reducers.summary.plan.tile_size
        return result

    def find_view(self, call: Call, plan: BlockPlan) -> MaskView:
        """Return what is visible in a call, as it is kept, and what that leaves to choose."""
        size = plan.shape.queries, plan.shape.keys
        for view in self.views:
            if view.is_of(call, size):
                return view
        if call.causal:
            visible = self.show_causal(plan)
            sight = MaskSummary.from_causal_mask(*size, call.query.device)
        else:
            seen = call.visible()
            visible = self.show(seen, plan)
            sight = MaskSummary.from_mask(seen)
        view = MaskView(call.masks, call.causal, size, visible, sight)
        latest = self.views[1 - VIEWS :]
        self.views = [*latest, view]
        return view

    def show_causal(self, plan: BlockPlan) -> Tensor:
        """Return what is visible to causal queries, as it is kept: the window, or tiles."""
        if self.request.keep != "weights":
            return pool_causal_mask(plan)
        queries = torch.arange(plan.shape.queries)
        keys = torch.arange(plan.shape.keys)[self.request.columns]
        return (keys <= queries[:, None])[None]

    def show(self, visible: Tensor, plan: BlockPlan) -> Tensor:
        """Return what is visible, (1 or H, N or 1, M), as it is kept: the window, or tiles."""
        if self.request.keep == "weights":
            return visible[0, :, :, self.request.columns].cpu()
        return pool_mask(visible, plan)[0].cpu()


def pool_mask(visible: Tensor, plan: BlockPlan) -> Tensor:
    """Return which tiles hold a visible cell.

    (B or 1, H or 1, N or 1, M) -> (B or 1, H or 1, row or 1, column).
    """
    height, width = plan.tile_size
    tile_rows = [some.any(2) for some in torch.split(visible, height, 2)]
    rows = torch.stack(tile_rows, 2)
    tile_columns = [some.any(3) for some in torch.split(rows, width, 3)]
    return torch.stack(tile_columns, 3)


def pool_causal_mask(plan: BlockPlan) -> Tensor:
    """Return which tiles hold a cell that causal queries see, (1, row, column).

    The mask itself is not built.
    """
    rows, columns = plan.tile_grid
    height, width = plan.tile_size
    last_query = (torch.arange(rows) + 1) * height - 1
    first_key = torch.arange(columns) * width
    return (first_key <= last_query[:, None])[None]
