"""Attention in blocks: no more is ever held, so memory grows with the length of a text.

The whole matrix of weights would grow with the square of the length. A block is a run of queries of
a few heads. Its scores are small enough to stay in the cache of the processor while the output and
all reducers take from them what they need; then the next block overwrites them.

Shapes: B batch, H query heads, K key heads, g = H / K query heads that share one, G = B * K groups,
N queries, M keys; in a block m groups, r queries, n keys. Scores and weights are (m, r, g, n): rows
are ordered (query, head), so that any run of queries is one contiguous matrix and a key head is
read once for the g that share it. In long texts the keys of a block come in chunks, each a matrix
of its own.

Buffers: a ``BlockPlan`` makes all of them once for calls of one shape, and the next call overwrites
them. The sums that a softmax needs of each row belong to ``RowSums``, which alone writes them.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attnviz.engine.call import HIDDEN, Call, make_additive_mask, reshape_sinks

LONG = 2048  # keys of a text whose blocks are looked at in chunks: longer rows leave the cache
CHUNK = 512  # keys of a chunk, whose scores are held at once
CACHED = 1 << 18  # scores a block on a CPU: with the weights 2 MB, about a second-level cache
RESIDENT = 1 << 25  # scores a block on a GPU, where a block is a kernel call
ROWS = 128  # queries a block, at most, on a CPU: more waste work above the diagonal
FEWEST = 32  # queries a block, at least: fewer make thin products
SAFE = 80.0  # scores within +-SAFE need no row maximum: their sums stay inside float32
LARGEST = math.log(torch.finfo(torch.float32).max)
TINY = 1e-37  # total of a row that sees no key: its weights stay 0
UNSEEN_TILES = 64  # on a side, of calls of which no tiles are kept
LINE = 16  # floats in a line of the cache, at which buffers start


class QuerySpan(NamedTuple):
    """A run of queries that holds whole rows of tiles, or lies inside one row of tiles."""

    first: int
    stop: int
    keys: int
    """The number of keys that some query of the run can see: the first ones."""

    @property
    def queries(self) -> slice:
        """The queries of the run, as an index."""
        return slice(self.first, self.stop)

    @property
    def height(self) -> int:
        """The number of queries."""
        return self.stop - self.first


class CallShape(NamedTuple):
    """The sizes that calls must have in common to share a plan."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    """The width of queries and keys, d."""
    value_width: int
    causal: bool
    tiles: int
    """Tiles on a side, at most."""
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, call: Call, tiles: int) -> "CallShape":
        """Return the shape of a call, computed in float32 at least."""
        batch, heads, queries, width = call.query.shape
        key_heads, keys, value_width = call.value.shape[1:]
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        return cls(
            batch,
            heads,
            key_heads,
            queries,
            keys,
            width,
            value_width,
            call.causal,
            tiles,
            dtype,
            call.query.device,
        )


class RowSums(NamedTuple):
    """The sums over keys that a softmax needs of each row, (G, N, g), or (m, r, g) of a block.

    These buffers have one owner, this class: a call writes them block by block, through the methods
    here, and reducers read them when it is done. They hold until the next call of the same plan.
    """

    total: Tensor
    """The sum of the exponentials of scores, those of sinks included; at least TINY."""
    mass: Tensor
    """The sum of the weights: 1, less where a sink takes its share, 0 where no key is seen."""
    expected: Tensor
    """The sum of weights times scores, of which the entropy is made."""

    def of_block(self, groups: slice, queries: slice) -> "RowSums":
        """Return the sums of one block, as views of these."""
        total = self.total[groups, queries]
        mass = self.mass[groups, queries]
        expected = self.expected[groups, queries]
        return RowSums(total, mass, expected)

    def add_chunk(self, exponentials: Tensor, scores: Tensor, first_key: int) -> None:
        """Add a chunk of keys, (m, r, g, n) each; the first one begins the sums.

        The scores are overwritten, so that their products with the exponentials need no buffer.
        """
        accumulate(exponentials, self.total, first_key)
        products = scores.mul_(exponentials)
        accumulate(products, self.expected, first_key)

    def add_sinks(self, exponentials: Tensor) -> None:
        """Add the exponentials of sinks, (m, r, g), when all chunks are there."""
        torch.div(self.total, self.total + exponentials, out=self.mass)
        self.total.add_(exponentials)

    def finish(self) -> None:
        """Divide the products by the totals, when all chunks and sinks are there."""
        self.total.clamp_min_(TINY)
        self.expected.div_(self.total)

    def fill_mass(self) -> None:
        """Set the sum of the weights of a call without sinks: 1 where a key is seen, else 0."""
        torch.gt(self.total, TINY, out=self.mass)

    def begin_weights(self, weights: Tensor) -> None:
        """Set the sums for finished weights, (G, N, g, M), which have scores no more."""
        self.total.fill_(1)
        torch.sum(weights, -1, out=self.mass)

    def add_weights(self, weights: Tensor) -> None:
        """Sum weights times their logarithms, of a block (m, r, g, M) of finished weights."""
        logarithms = weights.clamp_min(TINY).log_()
        torch.sum(logarithms.mul_(weights), -1, out=self.expected)

    def compute_entropy(self) -> Tensor:
        """Compute the entropy of each row in nats, (G, N, g).

        Entropy is log(sum exp s) - sum w s, without a logarithm a weight; where a sink takes its
        share, the first term counts as much as the weights sum to.
        """
        entropy = self.total.log() * self.mass - self.expected
        return entropy.clamp_min_(0).abs_()  # no -0.0


def accumulate(chunk: Tensor, sums: Tensor, first_key: int) -> None:
    """Add the sums over the last axis of a chunk, or begin with them at key 0."""
    if first_key:
        sums += chunk.sum(-1)
    else:
        torch.sum(chunk, -1, out=sums)


class BlockPlan:
    """The blocks and buffers of calls of one shape, shared by all layers that make such calls.

    Buffers are made once, because fresh memory costs a page fault every 4 KB. What stands in them
    is that of the call which ran last.
    """

    def __init__(self, shape: CallShape) -> None:
        self.shape = shape
        self.groups = shape.batch * shape.key_heads
        self.shared = shape.heads // shape.key_heads
        """Query heads that share a key head, g."""
        self.plan_tiles()
        self.plan_blocks()
        self.allocate_buffers()
        self.make_causal_masks()

    def plan_tiles(self) -> None:
        """Set the size of a tile, and the number of tiles on each side: (queries, keys)."""
        queries = self.shape.queries
        keys = self.shape.keys
        most = self.shape.tiles
        height = math.ceil(queries / most)
        width = math.ceil(keys / most)
        self.tile_size = height, width
        high = math.ceil(queries / height)
        wide = math.ceil(keys / width)
        self.tile_grid = high, wide

    def plan_blocks(self) -> None:
        """Choose how many queries, keys and groups a block has."""
        on_cpu = self.shape.device.type == "cpu"
        self.most_scores = CACHED if on_cpu else RESIDENT
        self.most_queries = ROWS if on_cpu else self.shape.queries
        in_chunks = on_cpu and self.shape.keys >= LONG
        self.chunk_keys = CHUNK if in_chunks else self.shape.keys
        self.spans = tuple(self.cut_spans())
        self.tallest = max(span.height for span in self.spans)
        most_cells = max(span.height * span.keys for span in self.spans)
        self.largest = self.shared * most_cells
        """Scores of one group in the largest block."""
        fitting = self.most_scores // self.largest
        self.groups_a_block = max(1, min(self.groups, fitting))

    def allocate_buffers(self) -> None:
        """Make the buffers of a call: its arguments laid out, its sums and output, one block."""
        shape = self.shape
        shared = self.shared
        batch = shape.batch
        key_heads = shape.key_heads
        self.query = self.allocate(batch, key_heads, shape.queries, shared, shape.width)
        self.key = self.allocate(batch, key_heads, shape.keys, shape.width)
        self.output = self.allocate(self.groups, shape.queries * shared, shape.value_width)
        sums = self.allocate(3, self.groups, shape.queries, shared)
        self.sums = RowSums(*sums)
        lines = math.ceil(self.groups_a_block * self.largest / LINE)
        blocks = self.allocate(2, LINE + lines * LINE)
        self.scores, self.weights = blocks.zero_()

    def make_causal_masks(self) -> None:
        """Make the mask of a causal query over the keys of its own block, (r, 1, r)."""
        size = self.tallest, self.tallest
        ones = torch.ones(size, dtype=torch.bool, device=self.shape.device)
        self.causal_corner = ones.tril_()[:, None, :]
        self.causal_factors = self.causal_corner.to(self.shape.dtype)

    def allocate(self, *size: int) -> Tensor:
        """Make a buffer of a size."""
        return torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)

    def cut_spans(self) -> Iterator[QuerySpan]:
        """Cut the queries into those of blocks, in order."""
        first = 0
        while first < self.shape.queries:
            stop = first + self.count_queries(first)
            yield QuerySpan(first, stop, self.count_visible_keys(stop))
            first = stop

    def count_visible_keys(self, stop: int) -> int:
        """Return how many keys the queries before ``stop`` can see."""
        if self.shape.causal:
            return min(stop, self.shape.keys)
        return self.shape.keys

    def count_queries(self, first: int) -> int:
        """Return how many queries the block that begins at ``first`` has.

        That is as many as fit, in whole rows of tiles if one fits.
        """
        height = self.tile_size[0]
        left = self.shape.queries - first
        keys = self.count_visible_keys(first + self.most_queries)
        scores_a_query = self.shared * min(keys, self.chunk_keys)
        fitting = min(self.most_queries, self.most_scores // scores_a_query)
        rows = max(FEWEST, fitting)
        if rows < height:
            left_of_tile = height - first % height
            return min(rows, left_of_tile, left)
        whole_tiles = rows - rows % height
        whole_tiles_left = left - left % height
        return min(whole_tiles, whole_tiles_left or left)

    def list_group_runs(self) -> Iterator[slice]:
        """List the groups that blocks hold together."""
        for first in range(0, self.groups, self.groups_a_block):
            yield slice(first, min(self.groups, first + self.groups_a_block))

    def list_chunks(self, span: QuerySpan, *, whole: bool) -> Iterator[tuple[int, int]]:
        """List the first key of each chunk of a block, and the key after its last.

        whole: all keys make one chunk.
        """
        width = span.keys if whole else self.chunk_keys
        for first in range(0, span.keys, width):
            yield first, min(first + width, span.keys)

    def view_buffer(
        self,
        buffer: Tensor,
        groups: int,
        span: QuerySpan,
        first: int,
        stop: int,
    ) -> Tensor:
        """Return a part of a buffer for some keys of a block, (m, r, g, stop - first)."""
        rows = groups * span.height * self.shared
        start = LINE + rows * first
        end = start + rows * (stop - first)
        used = buffer[start:end]
        return used.view(groups, span.height, self.shared, stop - first)

    def split_groups(self, array: Tensor) -> Tensor:
        """Return an array of groups by item of the batch and head: (G, g, ...) -> (B, H, ...)."""
        return array.reshape(self.shape.batch, self.shape.heads, *array.shape[2:])


class WeightsBlock(NamedTuple):
    """The weights that a reducer sees; the next block overwrites them."""

    weights: Tensor
    """(m, r, g, n) on n keys of its chunk."""
    first: int
    """The first of these keys."""
    span: QuerySpan
    groups: slice

    @property
    def stop(self) -> int:
        """The key after its last."""
        return self.first + self.weights.shape[-1]


class Reducer(Protocol):
    """An object that keeps something of every block."""

    def see(self, block: WeightsBlock) -> None:
        """See a block, or a chunk of it: the keys come in order."""
        ...

    def close(self, groups: slice) -> None:
        """Finish with these groups: all their blocks have been seen."""
        ...


Reducers = tuple[Reducer, ...]


class CallLayout(NamedTuple):
    """A call laid out for the matrix products, in the buffers of its plan."""

    call: Call
    plan: BlockPlan
    query: Tensor
    """(G, N * g, d), scaled."""
    key: Tensor
    """(G, d, M)."""
    value: Tensor
    """(G, M, d_v)."""
    bounded: list[bool]
    """For each group, True if no score can leave +-SAFE."""
    sinks: Tensor | None
    """(B or 1, H, N or 1, 1)."""
    masks: tuple[Tensor, ...]
    """Masks and biases, (B or 1, H or 1, N or 1, M)."""

    def are_bounded(self, groups: slice) -> bool:
        """Return whether no score of these groups can leave +-SAFE."""
        return all(self.bounded[groups])


def attend_in_blocks(call: Call, plan: BlockPlan, reducers: Reducers) -> Tensor:
    """Compute the output (B, N, H, d_v) of a call, in the type of its query.

    Each reducer, in order, sees each block.
    """
    layout = lay_out_call(call, plan)
    for groups in plan.list_group_runs():
        for span in plan.spans:
            sums = plan.sums.of_block(groups, span.queries)
            chunks = compute_exponentials(layout, groups, span, sums)
            finish_weights(chunks, layout, groups, span, sums, reducers)
        for reducer in reducers:
            reducer.close(groups)
    if call.sinks is None:
        plan.sums.fill_mass()
    return merge_output(plan).to(call.query.dtype)


def plan_call(call: Call) -> BlockPlan:
    """Make the plan of one call of which no tiles are kept."""
    return BlockPlan(CallShape.of(call, UNSEEN_TILES))


def compute_output(call: Call) -> Tensor:
    """Compute the output (B, N, H, d_v) of a call by blocks, with nothing kept of them."""
    return attend_in_blocks(call, plan_call(call), ())


def merge_output(plan: BlockPlan) -> Tensor:
    """Return the output of a plan by query and head, (B, N, H, d_v)."""
    batch, heads, key_heads, queries = plan.shape[:4]
    by_key_head = plan.output.view(batch, key_heads, queries, plan.shared, -1)
    by_query = by_key_head.transpose(1, 2)
    return by_query.reshape(batch, queries, heads, -1)


def lay_out_call(call: Call, plan: BlockPlan) -> CallLayout:
    """Lay out a call in the buffers of its plan."""
    dtype = plan.shape.dtype
    query = lay_out_queries(call, plan)
    key = lay_out_keys(call, plan)
    value = call.value.to(dtype).flatten(0, 1)
    bounded = find_bounded_groups(call, query, key)
    sinks = None
    if call.sinks is not None:
        sinks = reshape_sinks(call.sinks).to(dtype)
    return CallLayout(call, plan, query, key.transpose(1, 2), value, bounded, sinks, call.masks)


def lay_out_queries(call: Call, plan: BlockPlan) -> Tensor:
    """Scale the queries, those of one key head beside each other: (G, N * g, d)."""
    shape = plan.shape
    by_group = shape.batch, shape.key_heads, plan.shared, shape.queries, shape.width
    query = call.query.to(shape.dtype).reshape(by_group)
    by_query = query.transpose(2, 3)  # (B, K, N, g, d)
    torch.mul(by_query, call.scale, out=plan.query)
    return plan.query.flatten(2, 3).flatten(0, 1)


def lay_out_keys(call: Call, plan: BlockPlan) -> Tensor:
    """Centre the keys, which softmax does not see, so that more scores are bounded: (G, M, d).

    They are not centred where a soft cap or a sink would see it.
    """
    key = call.key.to(plan.shape.dtype)
    if call.softcap is None and call.sinks is None:
        torch.sub(key, key.mean(2, keepdim=True), out=plan.key)
    else:
        plan.key.copy_(key)
    return plan.key.flatten(0, 1)


def find_bounded_groups(call: Call, query: Tensor, key: Tensor) -> list[bool]:
    """Return for each group whether no score can leave +-SAFE.

    query (G, N * g, d), key (G, M, d). The bound is that of Cauchy and Schwarz: a product is at
    most as large as the product of the lengths of its vectors.
    """
    if not is_linear(call):
        return [False] * len(query)
    squares = find_longest_square(query) * find_longest_square(key)
    bound = squares.sqrt()
    if call.softcap is not None:
        bound.clamp_max_(abs(call.softcap))
    # So many exponentials times scores can be summed, too.
    summable = LARGEST - math.log(SAFE * key.shape[1])
    safe = min(SAFE, summable)
    bounded: list[bool] = (bound <= safe).tolist()
    return bounded


def find_longest_square(vectors: Tensor) -> Tensor:
    """Return the largest square of a vector's length, (G, n, d) -> (G,).

    The squares are summed by a product, which is faster than many sums of few numbers.
    """
    ones = vectors.new_ones(vectors.shape[-1])
    squares = vectors.square() @ ones
    return squares.amax(-1)


def is_linear(call: Call) -> bool:
    """Return whether a bound on products is one on scores: nothing is added to them."""
    hides_only = all(mask.dtype == torch.bool for mask in call.masks)
    return call.sinks is None and hides_only


def compute_exponentials(
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
    sums: RowSums,
) -> list[Tensor]:
    """Compute the exponentials of a block's scores, (m, r, g, n) each chunk, and their sums.

    Scores without a bound, or with some hidden, come in one chunk: their row maximum must be known
    first.
    """
    call = layout.call
    plan = layout.plan
    query = pick_rows(layout.query[groups], plan, span)
    count = len(query)
    whole = bool(layout.masks) or not layout.are_bounded(groups)
    shift = None
    chunks = []
    for first, stop in plan.list_chunks(span, whole=whole):
        scores = plan.view_buffer(plan.scores, count, span, 0, stop - first)
        key = layout.key[groups, :, first:stop]
        compute_scores(query, key, call.softcap, scores)
        if whole:
            shift = hide_and_shift(scores, layout, groups, span)
        chunk = plan.view_buffer(plan.weights, count, span, first, stop)
        torch.exp(scores, out=chunk)
        if call.causal and stop > span.first:
            hide_later_keys(chunk, plan, span, first)
        sums.add_chunk(chunk, scores, first)
        chunks.append(chunk)
    if layout.sinks is not None and shift is not None:
        sinks = pick_sinks(layout.sinks, plan, groups, span)
        exponentials = (sinks - shift).exp_()
        sums.add_sinks(exponentials.squeeze(-1))
    sums.finish()
    return chunks


def pick_rows(array: Tensor, plan: BlockPlan, span: QuerySpan) -> Tensor:
    """Return the rows of a block, (m, N * g, ...) -> (m, r * g, ...), ordered (query, head)."""
    first = span.first * plan.shared
    return array.narrow(1, first, span.height * plan.shared)


def compute_scores(query: Tensor, key: Tensor, softcap: float | None, scores: Tensor) -> None:
    """Compute the scores of a chunk into a buffer: (m, r * g, d), (m, d, n) -> (m, r, g, n)."""
    torch.bmm(query, key, out=scores.flatten(1, 2))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)


def hide_later_keys(exponentials: Tensor, plan: BlockPlan, span: QuerySpan, first: int) -> None:
    """Set the exponentials of keys after their query to 0, in a chunk that begins at key first.

    Only the keys from the first query of the block on can be such keys.
    """
    stop = first + exponentials.shape[-1]
    own_first = max(first, span.first)
    own_keys = slice(own_first - span.first, stop - span.first)
    own = exponentials[..., own_first - first :]
    own.mul_(plan.causal_factors[: span.height, :, own_keys])


def hide_and_shift(
    scores: Tensor,
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
) -> Tensor | None:
    """Hide what is masked in the scores of a block, and take the maximum off each row.

    Returns what was taken off, (m, r, g, 1); None if the scores are bounded, so that nothing was.
    """
    call = layout.call
    plan = layout.plan
    for mask in layout.masks:
        add_mask(scores, mask, plan, groups, span)
    if layout.are_bounded(groups):
        return None
    if call.causal and span.keys > span.first:
        own_keys = span.keys - span.first
        visible = plan.causal_corner[: span.height, :, :own_keys]
        own = scores[..., span.first :]
        own.masked_fill_(~visible, HIDDEN)
    shift = scores.amax(-1, keepdim=True)
    if layout.sinks is not None:
        sinks = pick_sinks(layout.sinks, plan, groups, span)
        shift = torch.maximum(shift, sinks)
    shift.clamp_min_(HIDDEN / 2)
    scores.sub_(shift)
    return shift


def add_mask(scores: Tensor, mask: Tensor, plan: BlockPlan, groups: slice, span: QuerySpan) -> None:
    """Add a mask or a bias to the scores of a block."""
    queries = pick_axis(mask, 2, span.queries)
    for i, group in enumerate(range(groups.start, groups.stop)):
        item, heads = locate_group(group, plan)
        of_item = mask[item % mask.shape[0]]
        mask_heads = pick_axis(mask, 1, heads)
        of_group = of_item[mask_heads, queries, : span.keys]  # (g, r, n)
        added = make_additive_mask(of_group, scores.dtype)
        scores[i].add_(added.transpose(0, 1))


def pick_sinks(sinks: Tensor, plan: BlockPlan, groups: slice, span: QuerySpan) -> Tensor:
    """Return the sinks of a block, (m, r or 1, g, 1)."""
    queries = pick_axis(sinks, 2, span.queries)
    of_groups = []
    for group in range(groups.start, groups.stop):
        item, heads = locate_group(group, plan)
        of_item = sinks[item % sinks.shape[0]]
        of_groups.append(of_item[heads, queries])
    return torch.stack(of_groups).transpose(1, 2)


def pick_axis(mask: Tensor, axis: int, wanted: slice) -> slice:
    """Return the entries of a mask on an axis: those wanted, or the one that serves for all."""
    return wanted if mask.shape[axis] > 1 else slice(0, 1)


def locate_group(group: int, plan: BlockPlan) -> tuple[int, slice]:
    """Return the item of the batch, and the query heads, of a group."""
    item, key_head = divmod(group, plan.shape.key_heads)
    first = key_head * plan.shared
    return item, slice(first, first + plan.shared)


def finish_weights(
    chunks: list[Tensor],
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
    sums: RowSums,
    reducers: Reducers,
) -> None:
    """Make weights of the exponentials of a block, and use them while they are in the cache.

    They go into the output and to the reducers.
    """
    plan = layout.plan
    inverse = sums.total.reciprocal().unsqueeze(-1)
    output = pick_rows(plan.output[groups], plan, span)
    first = 0
    for weights in chunks:
        weights *= inverse
        stop = first + weights.shape[-1]
        rows = weights.flatten(1, 2)
        values = layout.value[groups, first:stop]
        if first:
            torch.baddbmm(output, rows, values, out=output)
        else:
            torch.bmm(rows, values, out=output)
        block = WeightsBlock(weights, first, span, groups)
        for reducer in reducers:
            reducer.see(block)
        first = stop


def replay(weights: Tensor, plan: BlockPlan, reducers: Reducers) -> None:
    """Show weights (B, H, N, M) that a model made itself to reducers, block by block.

    The plan must have a key head for each head.
    """
    by_group = weights.flatten(0, 1)[:, :, None]  # (G, N, 1, M)
    plan.sums.begin_weights(by_group)
    for groups in plan.list_group_runs():
        for span in plan.spans:
            rows = by_group[groups, span.queries].contiguous()  # (m, r, 1, M)
            plan.sums.of_block(groups, span.queries).add_weights(rows)
            block = WeightsBlock(rows, 0, span, groups)
            for reducer in reducers:
                reducer.see(block)
        for reducer in reducers:
            reducer.close(groups)
