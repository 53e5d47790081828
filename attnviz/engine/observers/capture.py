"""The run that a capture is made of: it looks at chosen calls, and keeps numbers of chosen heads.

A model is run once to survey its calls of attention and once to look at some of them. The calls of
both runs come in one order, so that a call is known by its number alone, whatever its module is
called.
"""

import operator
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from attnviz.engine.agreement import (
    check_output,
    compare_outputs,
    find_coarsest_dtype,
    find_larger,
)
from attnviz.engine.blocks import (
    BlockPlan,
    CallShape,
    Reducer,
    attend_in_blocks,
    replay_weights,
)
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
from attnviz.engine.reducers import (
    EdgesReducer,
    GroupsReducer,
    MaskSummary,
    SummaryReducer,
    WeightsReducer,
    count_causal_keys,
    count_seen_keys,
)
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
NumbersOfCalls: TypeAlias = Mapping[int, Tensor]
"""The group of each key, (key,), by the number of the call; calls without groups are left out."""
NO_GROUPS: NumbersOfCalls = {}
VIEWS = 4  # masks of which it is remembered what they leave visible


class ChosenReducers(NamedTuple):
    """The reducers that a request needs; None in place of the others."""

    weights: WeightsReducer | None
    edges: EdgesReducer | None
    groups: GroupsReducer | None
    summary: SummaryReducer | None

    @property
    def all(self) -> tuple[Reducer, ...]:
        """The reducers that there are, in the order in which they see a block."""
        return tuple(reducer for reducer in self if reducer is not None)


class SeenGroups(NamedTuple):
    """Groups of keys, and how many keys of each group queries see."""

    numbers: Tensor
    """The group of each key, (key,)."""
    seen: Tensor
    """(1, head or 1, query or 1, group)."""


class MaskView(NamedTuple):
    """A mask as it is kept of a call; layers that share the mask share this."""

    masks: tuple[Tensor, ...]
    causal: bool
    size: tuple[int, int]
    """Queries and keys."""
    visible: Tensor
    mask_summary: MaskSummary
    groups: SeenGroups | None
    """The groups of the keys, if there are any."""

    def has_mask_of(self, call: Call, size: tuple[int, int], numbers: Tensor | None) -> bool:
        """Return whether a call has the very mask that is remembered here, and the same groups.

        size: the queries and the keys of the call. numbers: the group of each key, if any.
        """
        own_numbers = None if self.groups is None else self.groups.numbers
        if len(self.masks) != len(call.masks) or numbers is not own_numbers:
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
        groups: NumbersOfCalls = NO_GROUPS,
    ) -> None:
        self.heads = heads
        self.groups = groups
        self.request = request
        self.edits = edits
        # Norms need the whole run, which tells whether an output is projected once only.
        self.stop = stop and request.method != NORM
        self.calls = 0
        self.cut: set[int] = set()
        """The calls whose scores were seen before the softmax."""
        self.found: dict[int, CallResult] = {}
        self.plans: dict[CallShape, tuple[BlockPlan, SummaryReducer]] = {}
        self.views: list[MaskView] = []

    def count_calls(self, count: int) -> int:
        """Return how many calls a run makes before all that is wanted was seen.

        count: how many calls a whole run makes.
        """
        return max(self.heads) + 1 if self.stop and self.heads else count

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output of a call, edited as asked, and keep what the request names of it.

        source: where the call comes from. Returns the output, (batch, query, head, d_v). Raises
        Finished if nothing more of the run is wanted. For norms the output is watched until it
        meets a matrix.
        """
        number = self.count_call(call.query)
        edited = self.edits.edit_call(number, call)
        source = choose_source(source, call, edited)
        if number not in self.heads:
            output = self.compute_output(edited, source)
            return self.edits.edit_output(number, edited, output)
        output, result = self.observe_call(edited, source, self.heads[number])
        output = self.edits.edit_output(number, edited, output)
        if self.request.method == NORM:
            arrive = partial(self.apply_norms, number, edited, output, result)
            return WatchedOutput.watch(output, arrive)
        self.keep_result(number, result)
        return output

    def apply_norms(
        self,
        number: int,
        call: Call,
        output: Tensor,
        result: CallResult,
        merged: Tensor,
        matrix: Tensor,
    ) -> None:
        """Turn the weights of a call into norms, once its output is multiplied with a matrix.

        number: of the call. output: its output, (1, query, head, d_v). result: what is kept of it
        so far. merged, matrix: the factors of the product; the matrix must be the output projection
        of all heads. Raises ModelError if it is not, or if the output meets a second matrix.
        """
        if number in self.found:
            raise ModelError(UNPROJECTED)
        heads = self.heads[number]
        rows = self.request.rows
        columns = self.request.columns
        projection = require_projection(output, merged, matrix)
        if self.request.summed:
            result.weights = measure_summed_lengths(
                call,
                projection,
                heads,
                rows=rows,
                columns=columns,
            )
            result.visible = result.visible.any(0, keepdim=True)
        elif result.weights is not None:
            lengths = measure_head_lengths(call, projection, heads)
            result.weights *= lengths[:, None, columns]
        self.keep_result(number, result)

    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """Keep what the request names of weights that a model made itself.

        weights: (1, head, query, key). visible: broadcasts to them, True where a query may attend.
        Returns the number of the call. Raises Finished if nothing more of the run is wanted,
        ModelError for norms and scores, which need more than weights, and for edits of such a call.
        """
        number = self.count_call(weights)
        if number in self.heads and self.request.method != ATTENTION:
            raise ModelError(VALUELESS)
        self.edits.require_none(number, cut=number in self.cut)
        if number in self.heads:
            heads = self.heads[number]
            chosen_weights = pick_axis_heads(weights, heads).float()
            # a mask that all heads share stays one mask
            mask_heads = visible.shape[1] if visible.ndim == 4 else 1
            batch, _, queries, keys = weights.shape
            mask = visible.expand(batch, mask_heads, queries, keys)
            result = self.reduce_weights(chosen_weights, pick_axis_heads(mask, heads))
            self.keep_result(number, result)
        return number

    def record_difference(self, number: int, difference: float | None, dtype: torch.dtype) -> None:
        """Keep how far weights times values of a call are from what the model went on with.

        number: of the call. difference: a share of the largest value, or None. dtype: the coarsest
        type of what was compared.
        """
        if number in self.found:
            self.found[number].difference = difference
            self.found[number].dtype = dtype

    def edit_scores(self, scores: Tensor) -> Tensor:
        """Return the scores of the next call without the edges that are cut, before their softmax.

        scores: (batch, head, query, key).
        """
        self.cut.add(self.calls)
        return self.edits.edit_scores(self.calls, scores)

    def count_call(self, array: Tensor) -> int:
        """Return the number of this call: how many calls of the run came before it.

        array: a tensor of the call, (batch, ...). Raises InputError for several texts at once.
        """
        if array.shape[0] != 1:
            raise InputError(
                f"the inputs hold {array.shape[0]} texts, images or parts of them that are read at "
                "once; attention is captured of one at a time",
            )
        number = self.calls
        self.calls += 1
        return number

    def keep_result(self, number: int, result: CallResult) -> None:
        """Keep the numbers of a call. Raises Finished if those of all chosen calls are there."""
        self.found[number] = result
        if self.stop and len(self.found) == len(self.heads):
            raise Finished

    def compute_output(self, call: Call, source: CallSource) -> Tensor:
        """Compute the output of a call and keep nothing of it, (batch, query, head, d_v).

        source: where the call comes from.
        """
        if call.plain:
            return compute_plain_output(call, source)
        plan, _ = self.find_plan(call)
        return attend_in_blocks(call, plan, ())

    def observe_call(
        self,
        call: Call,
        source: CallSource,
        heads: tuple[int, ...],
    ) -> tuple[Tensor, CallResult]:
        """Compute the output of a call, and what is kept of some of its heads.

        source: where the call comes from. heads: the numbers of these heads. Returns the output,
        (batch, query, head, d_v), and what is kept. If most heads are wanted, one computation in
        blocks gives both; else the heads are computed a second time, in blocks of their own. Output
        of our blocks is checked by another function.
        """
        are_most = len(heads) * 2 > call.query.shape[1]
        # Shares of segments are to be those of a run that keeps weights, to the same rounding.
        is_like_weights = self.request.keep == "weights" or bool(self.groups)
        if are_most and not is_like_weights:
            output, result = self.run_blocks(call)
            if heads != tuple(range(call.query.shape[1])):
                result = result.pick_heads(heads)
            is_ours = True
        else:
            output = self.compute_output(call, source)
            result = self.run_heads_apart(call, output, heads)
            is_ours = not call.plain
        if is_ours:  # another function should say the same
            difference, dtype = check_output(call, source, output)
            result.difference = find_larger(result.difference, difference)
            result.dtype = dtype
        return output, result

    def run_heads_apart(self, call: Call, output: Tensor, heads: tuple[int, ...]) -> CallResult:
        """Compute what is kept of some heads of a call, in blocks of their own.

        output: of the whole call, (1, query, head, d_v); the output of the blocks is compared with
        it. heads: the numbers of these heads.
        """
        rows = self.request.rows
        columns = self.request.columns
        chosen = call.pick_heads(heads)
        if rows != slice(None):
            positions = torch.arange(call.query.shape[2], device=call.query.device)
            chosen = chosen.pick_queries(positions[rows])
        block_output, result = self.run_blocks(chosen)
        head_numbers = torch.tensor(heads, device=output.device)
        of_rows = output[:, rows]
        of_heads = of_rows[:, :, head_numbers]
        result.difference = compare_outputs(block_output, of_heads)
        result.dtype = find_coarsest_dtype(call.query, call.value, output)
        if self.request.method == SCORES:
            result.weights = compute_window_scores(
                call,
                heads,
                rows=rows,
                columns=columns,
            )
        return result

    def run_blocks(self, call: Call) -> tuple[Tensor, CallResult]:
        """Compute the output of a call in blocks, and what is kept of all its heads.

        Returns the output, (batch, query, head, d_v), and what is kept.
        """
        plan, summary = self.find_plan(call)
        reducers = self.choose_reducers(plan, summary)
        output = attend_in_blocks(call, plan, reducers.all)
        view = self.find_view(call, plan)
        return output, self.collect_results(reducers, view.visible, view.mask_summary, view.groups)

    def reduce_weights(self, weights: Tensor, visible: Tensor) -> CallResult:
        """Compute what is kept of weights that a model made itself.

        weights: (1, head, query, key), at least float32. visible: booleans of that shape, True
        where a query may attend.
        """
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
        kept_visible = self.reduce_mask(visible, plan)
        numbers = self.find_groups(plan)
        groups = None
        if numbers is not None:
            groups = SeenGroups(numbers, count_seen_keys(visible, numbers))
        return self.collect_results(reducers, kept_visible, MaskSummary.from_mask(visible), groups)

    def find_plan(self, call: Call) -> tuple[BlockPlan, SummaryReducer]:
        """Return the blocks and buffers of a call."""
        return self.share_plan(CallShape.from_call(call, self.request.tiles))

    def share_plan(self, shape: CallShape) -> tuple[BlockPlan, SummaryReducer]:
        """Return the blocks and buffers for calls of a shape, made once for all of them."""
        if shape not in self.plans:
            plan = BlockPlan(shape)
            summary = SummaryReducer(plan, square=shape.queries == shape.keys)
            self.plans[shape] = plan, summary
        return self.plans[shape]

    def choose_reducers(self, plan: BlockPlan, summary: SummaryReducer) -> ChosenReducers:
        """Choose the reducers that see the blocks of a call, by what the request keeps.

        plan: the blocks. summary: the reducer that makes tiles and statistics. It is left out for a
        window, which tells nothing of the statistics of the whole text, and for norms and scores.
        """
        request = self.request
        weights = edges = None
        # Scores, and norms that are summed over heads, are computed in another way.
        if request.keep == "weights" and request.method != SCORES and not request.summed:
            weights = WeightsReducer(plan, request.columns)
        if request.keep == "edges":
            edges = EdgesReducer(plan, request.strongest)
        numbers = self.find_groups(plan)
        groups = None if numbers is None else GroupsReducer(plan, numbers)
        is_whole = not request.windowed and request.method == ATTENTION
        return ChosenReducers(weights, edges, groups, summary if is_whole else None)

    def find_groups(self, plan: BlockPlan) -> Tensor | None:
        """Return the group of each key of the call that is looked at, None if none are asked for.

        A call of another number of keys than was expected has none either.
        """
        numbers = self.groups.get(self.calls - 1)
        if numbers is None or len(numbers) != plan.shape.keys:
            return None
        return numbers

    def collect_results(
        self,
        reducers: ChosenReducers,
        visible: Tensor,
        mask_summary: MaskSummary,
        groups: SeenGroups | None,
    ) -> CallResult:
        """Collect the results of the reducers of a call of one text.

        visible: where queries may attend, as it is kept. mask_summary: the choice that the mask
        leaves to each query. groups: the group of each key, and what queries see of them, if
        that is kept.
        """
        result = CallResult(visible)
        if reducers.groups is not None and groups is not None:
            result.groups = groups.numbers, reducers.groups.result()[0], groups.seen[0]
        if reducers.weights is not None:
            result.weights = reducers.weights.result()[0]
        if reducers.edges is not None:
            keys, weights = reducers.edges.result()
            result.edges = keys[0], weights[0]
        if reducers.summary is not None:
            results = reducers.summary.result(mask_summary)
            result.summary = {name: array[0] for name, array in results.items()}
            result.tile = reducers.summary.plan.tile_size
        return result

    def find_view(self, call: Call, plan: BlockPlan) -> MaskView:
        """Return where queries may attend in a call, as it is kept, and the choice they have.

        Layers share their masks as a rule, so the latest few are remembered.
        """
        size = plan.shape.queries, plan.shape.keys
        numbers = self.find_groups(plan)
        for view in self.views:
            if view.has_mask_of(call, size, numbers):
                return view
        if call.causal:
            visible = self.reduce_causal_mask(plan)
            mask_summary = MaskSummary.from_causal_mask(*size, call.query.device)
        else:
            mask = call.find_visible_cells()
            visible = self.reduce_mask(mask, plan)
            mask_summary = MaskSummary.from_mask(mask)
        view = MaskView(
            masks=call.masks,
            causal=call.causal,
            size=size,
            visible=visible,
            mask_summary=mask_summary,
            groups=self.count_groups(call, numbers),
        )
        latest = self.views[1 - VIEWS :]
        self.views = [*latest, view]
        return view

    def count_groups(self, call: Call, numbers: Tensor | None) -> SeenGroups | None:
        """Count how many keys of each group the queries of a call see; None without groups.

        numbers: the group of each key.
        """
        if numbers is None:
            return None
        if call.causal:
            return SeenGroups(numbers, count_causal_keys(numbers, call.query.shape[2]))
        return SeenGroups(numbers, count_seen_keys(call.find_visible_cells(), numbers))

    def reduce_causal_mask(self, plan: BlockPlan) -> Tensor:
        """Return where causal queries may attend, as it is kept: cell by cell, or by tiles.

        plan: the blocks of the call. Returns booleans, (1, query, key) or (1, row of tiles, column
        of tiles).
        """
        if self.request.keep != "weights":
            return pool_causal_mask(plan)
        queries = torch.arange(plan.shape.queries)
        keys = torch.arange(plan.shape.keys)[self.request.columns]
        return (keys <= queries[:, None])[None]

    def reduce_mask(self, visible: Tensor, plan: BlockPlan) -> Tensor:
        """Return where queries may attend, as it is kept: cell by cell, or by tiles.

        visible: (1, head or 1, query or 1, key). plan: the blocks of the call. Returns booleans
        without the first axis, for the chosen keys or for all tiles.
        """
        if self.request.keep == "weights":
            return visible[0, :, :, self.request.columns].cpu()
        return pool_mask(visible, plan)[0].cpu()


def pick_axis_heads(array: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Return some heads of an array (batch, head or 1, query, key), without a copy if all are.

    An array of one head for all stays as it is.
    """
    count = array.shape[1]
    if count == 1 or heads == tuple(range(count)):
        return array
    return array[:, torch.tensor(heads, device=array.device)]


def pool_mask(visible: Tensor, plan: BlockPlan) -> Tensor:
    """Return which tiles hold a cell that is visible.

    visible: (batch or 1, head or 1, query or 1, key), True where a query may attend. plan: has the
    size of a tile, in queries and keys. Returns (batch or 1, head or 1, row of tiles, column of
    tiles); one row serves for all if one query does.
    """
    height, width = plan.tile_size
    tile_rows = [some.any(2) for some in torch.split(visible, height, 2)]
    rows = torch.stack(tile_rows, 2)
    tile_columns = [some.any(3) for some in torch.split(rows, width, 3)]
    return torch.stack(tile_columns, 3)


def pool_causal_mask(plan: BlockPlan) -> Tensor:
    """Return which tiles hold a cell that causal queries see, (1, row of tiles, column of tiles).

    The mask itself is not built.
    """
    rows, columns = plan.tile_grid
    height, width = plan.tile_size
    last_query = (torch.arange(rows) + 1) * height - 1
    first_key = torch.arange(columns) * width
    return (first_key <= last_query[:, None])[None]
