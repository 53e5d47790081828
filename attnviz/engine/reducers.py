"""The reducers: each keeps something of every block that it sees once, when it is made.

Results are (B, H, ...), on the CPU, float32. Letters of shapes are those of ``blocks``.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.blocks import (
    BlockPlan,
    QuerySpan,
    WeightsBlock,
    accumulate,
    attend_in_blocks,
    plan_call,
)
from attnviz.engine.call import Call

EVERY_KEY = slice(None)
COUNTED_QUERIES = 256  # queries whose keys are counted at once


class WeightsReducer:
    """Keep the whole matrix of weights, or some columns of it.

    That grows with the square of the length, so it is for chosen layers and heads.
    """

    def __init__(self, plan: BlockPlan, columns: slice) -> None:
        self.plan = plan
        self.first_key, self.stop_key, _ = columns.indices(plan.shape.keys)
        keys = range(plan.shape.keys)[columns]
        size = plan.groups, plan.heads_a_group, plan.shape.queries, len(keys)
        self.weights = torch.zeros(size)

    def see(self, block: WeightsBlock) -> None:
        """Copy the weights of a block, or a chunk of its keys, to their place in the whole matrix.

        Keys outside of the columns that are kept are left out.
        """
        first = max(block.first, self.first_key)
        stop = min(block.stop, self.stop_key)
        if first >= stop:
            return
        kept = block.weights[..., first - block.first : stop - block.first]
        by_head = kept.transpose(1, 2)
        columns = slice(first - self.first_key, stop - self.first_key)
        place = block.groups, slice(None), block.span.queries, columns
        self.weights[place] = by_head.to("cpu", torch.float32)

    def close(self, groups: slice) -> None:
        """Do nothing: every block stands in its place already."""

    def result(self) -> Tensor:
        """Return the weights, (B, H, N, columns)."""
        return self.plan.split_groups(self.weights)


def compute_weights(call: Call, columns: slice = EVERY_KEY) -> Tensor:
    """Compute the attention weights of a call, from all its queries to some of its keys.

    columns: these keys; all by default. Returns (batch, head, query, key), float32, on the CPU.
    """
    plan = plan_call(call)
    reducer = WeightsReducer(plan, columns)
    attend_in_blocks(call, plan, (reducer,))
    return reducer.result()


class EdgesReducer:
    """Keep the strongest edges of each query."""

    def __init__(self, plan: BlockPlan, count: int) -> None:
        self.plan = plan
        self.count = min(count, plan.shape.keys)
        size = plan.groups, plan.heads_a_group, plan.shape.queries, self.count
        self.weights = torch.zeros(size)
        self.keys = torch.zeros(size, dtype=torch.int32)

    def see(self, block: WeightsBlock) -> None:
        """Merge a chunk of a block's keys into the strongest edges of the block's queries.

        A block is a run of queries of some heads, and its chunks of keys come in order: the largest
        weights of earlier chunks are kept, and compete with those of this one.
        """
        count = min(self.count, block.weights.shape[-1])
        strongest = block.weights.topk(count, -1)
        weights = strongest.values.transpose(1, 2).float()
        key_numbers = strongest.indices + block.first
        keys = key_numbers.transpose(1, 2).int()
        rows = block.groups, slice(None), block.span.queries
        kept_weights = self.weights[rows]
        kept_keys = self.keys[rows]
        if block.first:
            earlier_weights = kept_weights.to(weights.device)
            earlier_keys = kept_keys.to(keys.device)
            weights = torch.cat([earlier_weights, weights], -1)
            keys = torch.cat([earlier_keys, keys], -1)
            weights, order = weights.topk(self.count, -1)
            keys = keys.gather(-1, order)
        count = keys.shape[-1]
        kept_weights[..., :count] = weights.cpu()
        kept_keys[..., :count] = keys.cpu()

    def close(self, groups: slice) -> None:
        """Do nothing: the strongest edges are kept from block to block."""

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the keys and the weights of each query's strongest edges, by falling weight.

        Both are (batch, head, query, edge).
        """
        keys = self.plan.split_groups(self.keys)
        weights = self.plan.split_groups(self.weights)
        return keys, weights


class GroupsReducer:
    """Keep what each query gives to groups of keys, which grows with the length of the text."""

    def __init__(self, plan: BlockPlan, numbers: Tensor) -> None:
        """Make the buffer of the sums; numbers: the group of each key, (key,)."""
        self.plan = plan
        count = int(numbers.max()) + 1
        shape = plan.shape
        self.members = torch.nn.functional.one_hot(numbers.long(), count)
        self.members = self.members.to(shape.device, shape.dtype)  # (key, group)
        self.sums = plan.allocate(plan.groups, shape.queries, plan.heads_a_group, count).zero_()

    def see(self, block: WeightsBlock) -> None:
        """Add the weights of a block, or of a chunk of its keys, group by group."""
        sums = self.sums[block.groups, block.span.queries]
        sums += block.weights @ self.members[block.first : block.stop]

    def close(self, groups: slice) -> None:
        """Do nothing: every block is in the sums already."""

    def result(self) -> Tensor:
        """Return the sums, (batch, head, query, group)."""
        by_head = self.sums.transpose(1, 2)
        return copy_to_cpu(self.plan.split_groups(by_head))


def count_seen_keys(visible: Tensor, numbers: Tensor) -> Tensor:
    """Count how many keys of each group a query may attend to.

    visible: (batch or 1, head or 1, query or 1, key), True where it may. numbers: the group of each
    key, (key,). Returns (batch or 1, head or 1, query or 1, group), int32, on the CPU.
    """
    count = int(numbers.max()) + 1
    members = torch.nn.functional.one_hot(numbers.long(), count).float().to(visible.device)
    # a run of queries at once: numbers take four times the memory of booleans
    runs = [run.float() @ members for run in torch.split(visible, COUNTED_QUERIES, 2)]
    return torch.cat(runs, 2).to("cpu", torch.int32)


def count_causal_keys(numbers: Tensor, queries: int) -> Tensor:
    """Count as ``count_seen_keys`` does for causal queries, (1, 1, query, group).

    The mask itself is not built.
    """
    members = torch.nn.functional.one_hot(numbers.long(), int(numbers.max()) + 1)
    upto = members.cumsum(0)
    last_keys = torch.arange(queries).clamp_max(len(numbers) - 1)
    return upto[last_keys].to("cpu", torch.int32)[None, None]


class MaskSummary(NamedTuple):
    """The choice that a mask leaves to each query.

    A query that sees one key must give it all its weight. What keys receive is counted from free
    queries alone, those that see more than one.
    """

    free: Tensor
    """(B or 1, H or 1, N or 1): True where a query sees more than one key."""
    only: Tensor
    """(B or 1, H or 1, N or 1): the key that a query sees, where it sees a single one."""

    @classmethod
    def from_mask(cls, visible: Tensor) -> "MaskSummary":
        """Return which queries see more than one key under a mask, and the only key of the others.

        visible: (batch or 1, head or 1, query or 1, key), True where a query may attend.
        """
        free = visible.sum(-1) > 1
        only = visible.to(torch.uint8).argmax(-1)
        return cls(free, only)

    @classmethod
    def from_causal_mask(cls, queries: int, keys: int, device: torch.device) -> "MaskSummary":
        """Return which causal queries see more than one key, and the only key of the others.

        queries, keys: how many of each there are. The mask itself is not built.
        """
        positions = torch.arange(queries, device=device)
        free = (positions > 0) & (keys > 1)
        only = torch.zeros(1, 1, queries, dtype=torch.long, device=device)
        return cls(free[None, None], only)


class SummaryReducer:
    """Keep means and maxima of tiles, and the statistics of ``record.Statistics``.

    All of it is linear in the length of the text. The weights of a row of tiles are first added up
    column by column, in strips (m, high, g, wide * width) that are rows of tiles whose columns are
    not merged yet: adding whole rows is a vector operation, adding inside a row is not. When all
    blocks of some groups have been seen, ``close`` merges the columns.

    Its buffers serve one layer after the other.
    """

    def __init__(self, plan: BlockPlan, square: bool) -> None:
        self.plan = plan
        self.square = square
        """True if there are as many queries as keys, so that positions can be compared."""
        # Causal queries see no later keys: sums over rows and columns give their distances.
        self.looks_behind = square and not plan.shape.causal
        self.query_numbers = count_up(plan.shape.queries, plan)
        self.key_numbers = count_up(plan.shape.keys, plan)
        self.allocate_tiles()
        if self.looks_behind:
            self.allocate_distances()

    def allocate_tiles(self) -> None:
        """Make the buffers of tiles, of the weight that keys receive, and of diagonals.

        A tile is a rectangle of cells, queries by keys, whose mean and maximum are kept.
        """
        plan = self.plan
        shape = plan.shape
        tile_rows, tile_columns = plan.tile_grid
        height, width = plan.tile_size
        tiles = 2, plan.groups, tile_rows, plan.heads_a_group, tile_columns
        # Until they are divided by the areas of the tiles, the means are sums.
        self.mean, self.peak = plan.allocate(*tiles)
        self.received = plan.allocate(plan.groups, plan.heads_a_group, shape.keys)
        self.diagonals = plan.allocate(plan.groups, shape.queries, plan.heads_a_group, 2)
        self.diagonals.zero_()
        heights = measure_tiles(shape.queries, height, plan)
        widths = measure_tiles(shape.keys, width, plan)
        self.areas = heights[:, None, None] * widths
        strips = 2, plan.groups_a_block, tile_rows, plan.heads_a_group, tile_columns * width
        # Cells that no block reaches stay 0.
        self.sums, self.peaks = plan.allocate(*strips).zero_()

    def allocate_distances(self) -> None:
        """Make the buffers of the sums over keys before their query, which ``add_behind`` writes.

        The edge of a query is the first query of its block's first row of tiles.
        """
        plan = self.plan
        rows = 2, plan.groups, plan.shape.queries, plan.heads_a_group
        # For each query: the sum of weight * distance over the keys from the edge to itself, and
        # the sum of weight over the keys before the edge.
        self.distance_near, self.weight_before = plan.allocate(*rows)
        # The sum, over queries, of weight * position of the keys before the edge.
        self.position_before = plan.allocate(plan.groups, plan.heads_a_group)
        height, width = plan.tile_size
        tallest = max(span.height + span.first % height for span in plan.spans)
        numbers = count_up(tallest, plan)
        behind = numbers[:, None] - numbers
        behind.clamp_min_(0)
        # How far a key lies before its query, (query, 1, key), both counted from the edge.
        self.behind = behind[:, None]
        self.keys_before = self.number_keys_before_edges(plan.tile_grid[1] * width)

    def see(self, block: WeightsBlock) -> None:
        """Add a block to the tiles and the statistics."""
        self.add_to_strips(block)
        if self.square:
            self.add_diagonals(block)
        if self.looks_behind:
            self.add_behind(block)

    def add_to_strips(self, block: WeightsBlock) -> None:
        """Add the weights of a block to the strips, column by column.

        A strip is a row of tiles, rectangles of cells, whose columns are not merged yet: it has the
        sum and the maximum of each key over its queries. A block covers whole rows of tiles, or a
        part of one row of tiles.
        """
        span = block.span
        groups, queries, heads, keys = block.weights.shape
        height = self.plan.tile_size[0]
        top, queries_above = divmod(span.first, height)
        tile_rows = max(1, queries // height)
        in_tiles = groups, tile_rows, queries // tile_rows, heads, keys
        rows = block.weights.view(in_tiles)
        strips = slice(top, top + tile_rows)
        columns = slice(block.first, block.stop)
        sums = self.sums[:groups, strips, :, columns]
        peaks = self.peaks[:groups, strips, :, columns]
        if queries_above:  # the block goes on with a row of tiles that another one began
            new_keys = self.find_new_keys(block)
            sums[..., new_keys:] = 0
            peaks[..., new_keys:] = 0
            sums += rows.sum(2)
            torch.maximum(peaks, rows.amax(2), out=peaks)
        else:
            torch.sum(rows, 2, out=sums)
            torch.amax(rows, 2, out=peaks)

    def find_new_keys(self, block: WeightsBlock) -> int:
        """Return the first column of a block that earlier blocks of its row of tiles did not reach.

        Causal queries of earlier blocks see no key at or after the first query of this one. Other
        queries see all keys, so that no column is new: the number of columns is returned.
        """
        if self.plan.shape.causal:
            return max(0, block.span.first - block.first)
        return block.weights.shape[-1]

    def add_diagonals(self, block: WeightsBlock) -> None:
        """Copy the weight of each query of a block on the key before it and on itself.

        They are written to ``diagonals``, (group, query, head, 2), if they lie in the keys of this
        chunk of the block. Query 0 has no key before it: its place stays 0.
        """
        span = block.span
        diagonals = self.diagonals[block.groups]
        first = max(span.first, block.first + 1)
        stop = min(span.stop, block.stop)
        if first < stop:
            diagonals[:, first:stop] = view_diagonals(block, first, stop)
        # Where a chunk begins or ends between the two keys, only one of them is there.
        if span.first <= block.first < span.stop:
            row = block.first - span.first
            on_itself = block.weights[:, row, :, 0]
            diagonals[:, block.first, :, 1] = on_itself
        if span.first <= block.stop < span.stop:
            row = block.stop - span.first
            on_key_before = block.weights[:, row, :, -1]
            diagonals[:, block.stop, :, 0] = on_key_before

    def add_behind(self, block: WeightsBlock) -> None:
        """Add a block to the sums over keys before their query, which ``compute_distance`` needs.

        The edge is the first query of the block's first row of tiles. Keys before it lie before all
        queries of the block, so that sums over rows and columns suffice. Only for the keys between
        the edge and the last query is each weight multiplied by its distance.
        """
        span = block.span
        edge = self.find_edge(span)
        stop_before = max(0, min(edge, block.stop) - block.first)
        before = block.weights[..., :stop_before]
        sums_before = self.weight_before[block.groups, span.queries]
        accumulate(before, sums_before, block.first)
        first_near = max(block.first, edge)
        stop_near = max(first_near, min(block.stop, span.stop))
        near = block.weights[..., first_near - block.first : stop_near - block.first]
        rows = slice(span.first - edge, span.stop - edge)
        behind = self.behind[rows, :, first_near - edge : stop_near - edge]
        products = self.multiply_in_place_of_scores(near, behind, span)
        sums_near = self.distance_near[block.groups, span.queries]
        accumulate(products, sums_near, block.first)

    def multiply_in_place_of_scores(
        self,
        weights: Tensor,
        factors: Tensor,
        span: QuerySpan,
    ) -> Tensor:
        """Multiply weights of a block by factors, in the buffer of the block's scores.

        The scores are needed no more. weights: (group, query, head, key). factors: broadcast to
        them. span: the queries of the block.
        """
        groups, _, _, keys = weights.shape
        products = self.plan.view_buffer(
            self.plan.scores,
            groups,
            span,
            first_key=0,
            stop_key=keys,
        )
        return torch.mul(weights, factors, out=products)

    def find_edge(self, span: QuerySpan) -> int:
        """Return the first query of the first row of tiles that a span reaches."""
        return span.first - span.first % self.plan.tile_size[0]

    def number_keys_before_edges(self, width: int) -> Tensor:
        """Return the number of each key that lies before the edge of a row of tiles, else 0.

        A block may cover several rows of tiles: their edge is the first query of the first of them.
        width: how many keys a row of tiles has. Returns (rows of tiles * width,).
        """
        height = self.plan.tile_size[0]
        edges = torch.zeros(self.plan.tile_grid[0], device=self.key_numbers.device)
        for span in self.plan.spans:
            top = span.first // height
            bottom = math.ceil(span.stop / height)
            edges[top:bottom] = self.find_edge(span)
        keys = count_up(width, self.plan)
        lies_before = keys < edges[:, None]
        return (keys * lies_before).flatten()

    def close(self, groups: slice) -> None:
        """Merge the columns of the strips into tiles, when all blocks of some groups were seen.

        groups: a run of groups; a group is one key head with the query heads that share it.
        """
        plan = self.plan
        count = groups.stop - groups.start
        sums = self.sums[:count]
        peaks = self.peaks[:count]
        tile_rows, tile_columns = plan.tile_grid
        tiles = count, tile_rows, plan.heads_a_group, tile_columns, plan.tile_size[1]
        torch.sum(sums.view(tiles), -1, out=self.mean[groups])
        torch.amax(peaks.view(tiles), -1, out=self.peak[groups])
        by_column = sums.sum(1)
        self.received[groups] = by_column[..., : plan.shape.keys]
        if self.looks_behind:
            by_head = sums.transpose(1, 2).flatten(2)
            self.position_before[groups] = by_head @ self.keys_before

    def result(self, mask_summary: MaskSummary) -> dict[str, Tensor]:
        """Return the tiles and the statistics by the names of their fields.

        Each is (batch, head, ...). mask_summary: the choice that the mask leaves to queries, which
        decides who counts in what keys receive.
        """
        mean = self.mean / self.areas
        entropy = self.plan.sums.compute_entropy()
        by_group = {
            "mean": mean.transpose(1, 2),
            "max": self.peak.transpose(1, 2),
            "entropy": entropy.transpose(1, 2),
        }
        results = split_all_groups(by_group, self.plan)
        results["received"] = self.average_received(mask_summary)
        if self.square:
            results |= self.average_positions()
        return {name: copy_to_cpu(array) for name, array in results.items()}

    def average_positions(self) -> dict[str, Tensor]:
        """Average statistics that compare positions of queries and keys, (batch, head) each.

        They are returned by name. diagonal: the weight of a query on itself; previous: on the key
        before it; distance: the sum over keys of weight * |query - key|, in tokens. Each is the
        mean over the queries that see a key; for the key before, without query 0.
        """
        plan = self.plan
        has_weight = plan.sums.mass > 0  # (G, N, g)
        sees_a_key = has_weight.to(plan.shape.dtype)
        queries = sees_a_key.sum(1).clamp_min(1)
        later_queries = sees_a_key[:, 1:].sum(1).clamp_min(1)
        diagonals = self.diagonals.sum(1)  # (G, g, 2)
        previous, diagonal = diagonals.unbind(-1)
        means = {
            "diagonal": diagonal / queries,
            "previous": previous / later_queries,
            "distance": self.compute_distance() / queries,
        }
        return split_all_groups(means, plan)

    def average_received(self, mask_summary: MaskSummary) -> Tensor:
        """Average the weight that each key gets from free queries, (batch, head, key).

        Free queries see more than one key. The weight of the others, which they must give to their
        only key, is taken away from the sums. mask_summary: which queries are free, and the only
        keys of the others.
        """
        plan = self.plan
        received = plan.split_groups(self.received).clone()  # (B, H, M)
        mass = plan.split_groups(plan.sums.mass.transpose(1, 2))  # (B, H, N)
        free = mask_summary.free.expand(mass.shape)
        only = mask_summary.only.expand(mass.shape)
        forced = mass.masked_fill(free, 0)
        received.scatter_add_(-1, only, -forced)
        chooses = mass * free > 0
        choosing = chooses.sum(-1, keepdim=True)
        means = received / choosing.clamp_min(1)
        return means.clamp_min_(0) * (choosing > 0)

    def compute_distance(self) -> Tensor:
        """Compute the sum of weight * |i - j| over all queries i and keys j.

        Returns (group, head of the group). It is the sum of weight * (j - i), which the sums of
        rows and columns give, plus twice that of weight * (i - j) over the keys before their query.
        The sums are large numbers that nearly cancel, so they are made in double precision, and on
        the CPU, since not every device has that.
        """
        keys = copy_to_cpu_doubles(self.key_numbers)
        queries = copy_to_cpu_doubles(self.query_numbers)
        mass = copy_to_cpu_doubles(self.plan.sums.mass.transpose(1, 2))
        received = copy_to_cpu_doubles(self.received)
        onward = received @ keys - mass @ queries
        if self.plan.shape.causal:
            return (-onward).to(self.received)
        before = copy_to_cpu_doubles(self.weight_before.transpose(1, 2)) @ queries
        near = copy_to_cpu_doubles(self.distance_near.sum(1))
        behind = near + before - copy_to_cpu_doubles(self.position_before)
        return (onward + 2 * behind).to(self.received)


def copy_to_cpu_doubles(tensor: Tensor) -> Tensor:
    """Return a tensor of any device on the CPU, in double precision."""
    return tensor.cpu().double()


def view_diagonals(block: WeightsBlock, first: int, stop: int) -> Tensor:
    """View the weights of some queries of a block on the key before them and on themselves.

    first, stop: the first of these queries, and the one after the last. Returns a strided view
    (group, query, head, 2): the pair of the next query lies one row and one key further.
    """
    groups, _, heads, keys = block.weights.shape
    size = groups, stop - first, heads, 2
    row_stride = heads * keys
    strides = block.weights.stride(0), row_stride + 1, keys, 1
    row = first - block.span.first
    column = first - 1 - block.first
    offset = row * row_stride + column
    start = block.weights.storage_offset() + offset
    return block.weights.as_strided(size, strides, start)


def split_all_groups(arrays: dict[str, Tensor], plan: BlockPlan) -> dict[str, Tensor]:
    """Return arrays of groups by item of the batch and head: (G, g, ...) -> (B, H, ...)."""
    return {name: plan.split_groups(array) for name, array in arrays.items()}


def copy_to_cpu(array: Tensor) -> Tensor:
    """Copy an array out of the buffers, as float32."""
    return array.to("cpu", torch.float32, copy=True)


def count_up(count: int, plan: BlockPlan) -> Tensor:
    """Return 0, 1, 2 ... in the type and on the device of a plan."""
    return torch.arange(count, dtype=plan.shape.dtype, device=plan.shape.device)


def measure_tiles(length: int, tile: int, plan: BlockPlan) -> Tensor:
    """Return how many tokens each tile of one side holds.

    That is ``tile``, but the last one may have fewer. length: the number of tokens on that side.
    The type and device are those of the plan.
    """
    starts = range(0, length, tile)
    sizes = [min(tile, length - start) for start in starts]
    return torch.tensor(sizes, dtype=plan.shape.dtype, device=plan.shape.device)
