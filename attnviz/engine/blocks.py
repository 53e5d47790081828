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
    def from_call(cls, call: Call, tiles: int) -> "CallShape":
        """Return the sizes of a call of attention that is to be computed in blocks.

        tiles: the most tiles, on a side, of the maps that are kept of it. The type is that of the
        queries, or float32 if that is smaller.
        """
        batch, heads, queries, width = call.query.shape
        key_heads, keys, value_width = call.value.shape[1:]
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        return cls(
            batch=batch,
            heads=heads,
            key_heads=key_heads,
            queries=queries,
            keys=keys,
            width=width,
            value_width=value_width,
            causal=call.causal,
            tiles=tiles,
            dtype=dtype,
            device=call.query.device,
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

    def view_block(self, groups: slice, queries: slice) -> "RowSums":
        """Return the sums of one block, (group, query, head of the group), as views of these.

        groups, queries: those of the block. A group is one key head of one text, with the query
        heads that share it.
        """
        total = self.total[groups, queries]
        mass = self.mass[groups, queries]
        expected = self.expected[groups, queries]
        return RowSums(total, mass, expected)

    def add_chunk(self, exponentials: Tensor, scores: Tensor, first_key: int) -> None:
        """Add a run of keys to the sums of a block, or begin the sums with it.

        scores, exponentials: of these keys, (group, query, head, key); a group is one key head of
        one text, with the query heads that share it. first_key: the first of the keys; runs come in
        order, and the one at key 0 begins the sums.
        The scores are overwritten, so that their products with the exponentials need no buffer.
        """
        accumulate(exponentials, self.total, first_key)
        products = scores.mul_(exponentials)
        accumulate(products, self.expected, first_key)

    def add_sinks(self, exponentials: Tensor) -> None:
        """Add the exponentials of the sinks of a block, when those of all its keys are there.

        A sink is a score that stands for no key: it takes a share of the softmax, so that the
        weights of its row sum to less than 1, to ``mass``. exponentials: (group, query, head of the
        group).
        """
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
        """Sum weights times their logarithms over the keys, for a block whose weights are finished.

        weights: (group, query, head, key), of all keys; they stay as they are.
        """
        logarithms = weights.clamp_min(TINY).log_()
        torch.sum(logarithms.mul_(weights), -1, out=self.expected)

    def compute_entropy(self) -> Tensor:
        """Compute the entropy in nats of each row of weights, (group, query, head of the group).

        Entropy is log(sum exp s) - sum w s, with the weights w and the scores s of a row: it takes
        no logarithm of each weight. Where a sink takes its share, the first term counts as much as
        the weights sum to.
        """
        entropy = self.total.log() * self.mass - self.expected
        return entropy.clamp_min_(0).abs_()  # no -0.0


def accumulate(chunk: Tensor, sums: Tensor, first_key: int) -> None:
    """Add the sums over the last axis of a chunk to ``sums``, or begin them at key 0.

    chunk: numbers of a run of keys, (..., key). sums: (...), written in place. first_key: the first
    key of the run.
    """
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
        """The number of groups: key heads of all texts, each with its query heads."""
        self.heads_a_group = shape.heads // shape.key_heads
        """Query heads that share a key head, g."""
        self.plan_tiles()
        self.plan_blocks()
        self.allocate_buffers()
        self.make_causal_masks()

    def plan_tiles(self) -> None:
        """Set the size of a tile, and the number of tiles on each side: (queries, keys).

        Tiles are the rectangles of cells by whose mean and maximum a map of attention is kept.
        There are at most ``shape.tiles`` on a side.
        """
        queries = self.shape.queries
        keys = self.shape.keys
        most_tiles = self.shape.tiles
        height = math.ceil(queries / most_tiles)
        width = math.ceil(keys / most_tiles)
        self.tile_size = height, width
        tile_rows = math.ceil(queries / height)
        tile_columns = math.ceil(keys / width)
        self.tile_grid = tile_rows, tile_columns

    def plan_blocks(self) -> None:
        """Choose how many queries, keys and groups a block has.

        The scores of a block are held at once, so on a CPU they are to fit into its cache. A group
        is one key head with the query heads that share it.
        """
        on_cpu = self.shape.device.type == "cpu"
        self.most_scores = CACHED if on_cpu else RESIDENT
        self.most_queries = ROWS if on_cpu else self.shape.queries
        in_chunks = on_cpu and self.shape.keys >= LONG
        self.chunk_keys = CHUNK if in_chunks else self.shape.keys
        self.spans = tuple(self.cut_spans())
        self.tallest = max(span.height for span in self.spans)
        most_cells = max(span.height * span.keys for span in self.spans)
        self.largest = self.heads_a_group * most_cells
        """Scores of one group in the largest block."""
        fitting_groups = self.most_scores // self.largest
        self.groups_a_block = max(1, min(self.groups, fitting_groups))

    def allocate_buffers(self) -> None:
        """Make the buffers that calls of this shape use one after the other.

        They are for the queries and keys laid out for matrix products, for the output and the sums
        of all rows, and for the scores and the weights of one block.
        """
        shape = self.shape
        heads = self.heads_a_group
        queries = shape.queries
        by_key_head = shape.batch, shape.key_heads
        self.query = self.allocate(*by_key_head, queries, heads, shape.width)
        self.key = self.allocate(*by_key_head, shape.keys, shape.width)
        self.output = self.allocate(self.groups, queries * heads, shape.value_width)
        sums = self.allocate(3, self.groups, queries, heads)
        self.sums = RowSums(*sums)
        # Whole lines of the cache, and one more before the first block.
        lines = math.ceil(self.groups_a_block * self.largest / LINE)
        blocks = self.allocate(2, LINE + lines * LINE)
        self.scores, self.weights = blocks.zero_()

    def make_causal_masks(self) -> None:
        """Make the mask of causal queries over the keys that lie at the positions of these queries.

        It is a triangle (query, 1, key) as high as the tallest block, True where the key is not
        after the query; ``causal_factors`` has 1 and 0 in its place.
        """
        size = self.tallest, self.tallest
        ones = torch.ones(size, dtype=torch.bool, device=self.shape.device)
        self.causal_corner = ones.tril_()[:, None, :]
        self.causal_factors = self.causal_corner.to(self.shape.dtype)

    def allocate(self, *size: int) -> Tensor:
        """Make a buffer of a size."""
        return torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)

    def cut_spans(self) -> Iterator[QuerySpan]:
        """Cut the queries into runs, one for each block, in order."""
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
        """Return how many queries the block that begins at query ``first`` has.

        That is as many as fit, cut to whole rows of tiles. If not even one row of tiles fits, the
        block ends with its row of tiles at the latest.
        """
        height = self.tile_size[0]
        queries_left = self.shape.queries - first
        keys = self.count_visible_keys(first + self.most_queries)
        scores_a_query = self.heads_a_group * min(keys, self.chunk_keys)
        fitting = min(self.most_queries, self.most_scores // scores_a_query)
        wanted = max(FEWEST, fitting)
        if wanted < height:
            left_of_tile = height - first % height
            return min(wanted, left_of_tile, queries_left)
        in_whole_tiles = wanted - wanted % height
        left_in_whole_tiles = queries_left - queries_left % height
        return min(in_whole_tiles, left_in_whole_tiles or queries_left)

    def list_group_runs(self) -> Iterator[slice]:
        """List the runs of groups that blocks hold together.

        A group is one key head with the query heads that share it.
        """
        for first in range(0, self.groups, self.groups_a_block):
            yield slice(first, min(self.groups, first + self.groups_a_block))

    def list_chunks(self, span: QuerySpan, *, whole: bool) -> Iterator[tuple[int, int]]:
        """List the runs of keys, called chunks, in which the scores of a block are computed.

        span: the queries of the block. whole: True if all keys are to make one chunk. Yields the
        first key of each chunk, and the key after its last.
        """
        length = span.keys if whole else self.chunk_keys
        for first_key in range(0, span.keys, length):
            yield first_key, min(first_key + length, span.keys)

    def view_buffer(
        self,
        buffer: Tensor,
        groups: int,
        span: QuerySpan,
        first_key: int,
        stop_key: int,
    ) -> Tensor:
        """Return the part of a flat buffer that holds some keys of a block.

        buffer: one axis, with room for a block; its chunks of keys lie there one after the other.
        groups: how many groups the block has. span: its queries. first_key, stop_key: the first
        key, and the key after the last. Returns a view (group, query, head of the group, stop_key -
        first_key).
        """
        rows = groups * span.height * self.heads_a_group
        keys = stop_key - first_key
        start = LINE + rows * first_key
        end = start + rows * keys
        used = buffer[start:end]
        return used.view(groups, span.height, self.heads_a_group, keys)

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
        """See a block, or one chunk of its keys: the chunks of a block come in order."""
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
    """Compute the output of a call of attention block by block, and show each block to reducers.

    A block is a run of queries of some heads. plan: the blocks and buffers for calls of this shape.
    reducers: objects that keep something of the weights; each sees all blocks, in this order.
    Returns the output (batch, query, head, d_v) in the type of the query.
    """
    layout = lay_out_call(call, plan)
    for groups in plan.list_group_runs():
        for span in plan.spans:
            sums = plan.sums.view_block(groups, span.queries)
            chunks = compute_exponentials(layout, groups, span, sums)
            finish_weights(
                chunks,
                layout,
                groups=groups,
                span=span,
                sums=sums,
                reducers=reducers,
            )
        for reducer in reducers:
            reducer.close(groups)
    if call.sinks is None:
        plan.sums.fill_mass()
    return merge_output(plan).to(call.query.dtype)


def plan_call(call: Call) -> BlockPlan:
    """Make the plan of one call of which no tiles are kept."""
    return BlockPlan(CallShape.from_call(call, UNSEEN_TILES))


def compute_output(call: Call) -> Tensor:
    """Compute the output (batch, query, head, d_v) of a call by blocks, and keep nothing else."""
    return attend_in_blocks(call, plan_call(call), ())


def merge_output(plan: BlockPlan) -> Tensor:
    """Return the output that stands in the buffers of a plan, as (batch, query, head, d_v).

    The buffer is ordered by key head, and then by query and by the heads that share the key head.
    """
    batch, heads, key_heads, queries = plan.shape[:4]
    by_key_head = plan.output.view(batch, key_heads, queries, plan.heads_a_group, -1)
    by_query = by_key_head.transpose(1, 2)
    return by_query.reshape(batch, queries, heads, -1)


def lay_out_call(call: Call, plan: BlockPlan) -> CallLayout:
    """Lay out the arguments of a call for matrix products, in the buffers of its plan.

    The queries are scaled, and all numbers are of the type that the plan computes in.
    """
    dtype = plan.shape.dtype
    query = lay_out_queries(call, plan)
    key = lay_out_keys(call, plan)
    value = call.value.to(dtype).flatten(0, 1)
    bounded = find_bounded_groups(call, query, key)
    sinks = None
    if call.sinks is not None:
        sinks = reshape_sinks(call.sinks).to(dtype)
    return CallLayout(
        call=call,
        plan=plan,
        query=query,
        key=key.transpose(1, 2),
        value=value,
        bounded=bounded,
        sinks=sinks,
        masks=call.masks,
    )


def lay_out_queries(call: Call, plan: BlockPlan) -> Tensor:
    """Scale the queries of a call, and order them for matrix products with the keys.

    The queries of the g heads that share a key head lie beside each other. Returns (group, query *
    g, d), where a group is one key head of one text of the batch.
    """
    shape = plan.shape
    by_group = shape.batch, shape.key_heads, plan.heads_a_group, shape.queries, shape.width
    query = call.query.to(shape.dtype).reshape(by_group)
    by_query = query.transpose(2, 3)  # (B, K, N, g, d)
    torch.mul(by_query, call.scale, out=plan.query)
    return plan.query.flatten(2, 3).flatten(0, 1)


def lay_out_keys(call: Call, plan: BlockPlan) -> Tensor:
    """Order the keys of a call by group, with their mean taken off where softmax does not see it.

    Returns (group, key, d). A group is one key head of one text of the batch. Softmax does not see
    a number that is taken off all scores of a row, as the mean key does, and smaller scores are
    more often bounded: see ``find_bounded_groups``. With a soft cap or sinks the mean would be
    seen, so it stays.
    """
    key = call.key.to(plan.shape.dtype)
    if call.softcap is None and call.sinks is None:
        torch.sub(key, key.mean(2, keepdim=True), out=plan.key)
    else:
        plan.key.copy_(key)
    return plan.key.flatten(0, 1)


def find_bounded_groups(call: Call, query: Tensor, key: Tensor) -> list[bool]:
    """Return for each group whether none of its scores can leave +-SAFE.

    Such scores can be put into an exponential as they are, without their maximum being taken off. A
    group is one key head with the g query heads that share it. query: (group, query * g, d),
    scaled; key: (group, key, d). The bound is that of Cauchy and Schwarz: a product is at most as
    large as the product of the lengths of its vectors.
    """
    if not is_linear(call):
        return [False] * len(query)
    squares = find_longest_square(query) * find_longest_square(key)
    bound = squares.sqrt()
    if call.softcap is not None:
        bound.clamp_max_(abs(call.softcap))
    # The sum over all keys of exponentials times scores must not overflow either.
    summable = LARGEST - math.log(SAFE * key.shape[1])
    safe = min(SAFE, summable)
    bounded: list[bool] = (bound <= safe).tolist()
    return bounded


def find_longest_square(vectors: Tensor) -> Tensor:
    """Return the largest square of a vector's length in each group: (group, n, d) -> (group,).

    The squares are summed by a product, which is faster than many sums of few numbers.
    """
    ones = vectors.new_ones(vectors.shape[-1])
    squares = vectors.square() @ ones
    return squares.amax(-1)


def is_linear(call: Call) -> bool:
    """Return whether nothing is added to the products of which the scores of a call are made.

    A bound on the products is then one on the scores too. Boolean masks only hide scores; masks of
    numbers, biases and sinks add some.
    """
    hides_only = all(mask.dtype == torch.bool for mask in call.masks)
    return call.sinks is None and hides_only


def compute_exponentials(
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
    sums: RowSums,
) -> list[Tensor]:
    """Compute the exponentials of the scores of one block, and their sums over the keys.

    A block is a run of queries (``span``) of some groups; a group is one key head with the query
    heads that share it. layout: the call, laid out for matrix products. sums: those of the block,
    which are written here. Returns the exponentials of each chunk of keys, (group, query, head,
    key).

    Scores that no bound keeps inside +-SAFE, or that masks change, come in one chunk of all keys:
    the maximum of each row must be known before any exponential is computed.
    """
    call = layout.call
    plan = layout.plan
    query = pick_rows(layout.query[groups], plan, span)
    group_count = len(query)
    whole = bool(layout.masks) or not layout.are_bounded(groups)
    shift = None
    chunks = []
    for first_key, stop_key in plan.list_chunks(span, whole=whole):
        key = layout.key[groups, :, first_key:stop_key]
        scores = plan.view_buffer(
            plan.scores,
            group_count,
            span,
            first_key=0,
            stop_key=stop_key - first_key,
        )
        compute_scores(query, key, call.softcap, scores)
        if whole:
            shift = hide_and_shift(scores, layout, groups, span)
        chunk = plan.view_buffer(
            plan.weights,
            group_count,
            span,
            first_key=first_key,
            stop_key=stop_key,
        )
        torch.exp(scores, out=chunk)
        if call.causal and stop_key > span.first:
            hide_later_keys(chunk, plan, span, first_key)
        sums.add_chunk(chunk, scores, first_key)
        chunks.append(chunk)
    if layout.sinks is not None and shift is not None:
        sinks = pick_sinks(layout.sinks, plan, groups, span)
        exponentials = (sinks - shift).exp_()
        sums.add_sinks(exponentials.squeeze(-1))
    sums.finish()
    return chunks


def pick_rows(array: Tensor, plan: BlockPlan, span: QuerySpan) -> Tensor:
    """Return the rows of one block of an array whose rows are ordered (query, head).

    array: (group, all queries * g, ...), with the g query heads of a group. span: the r queries of
    the block. Returns a view (group, r * g, ...).
    """
    first_row = span.first * plan.heads_a_group
    return array.narrow(1, first_row, span.height * plan.heads_a_group)


def compute_scores(query: Tensor, key: Tensor, softcap: float | None, scores: Tensor) -> None:
    """Compute the scores of a chunk of keys into a buffer, with the soft cap of the call if any.

    query: (group, query * g, d), with the g query heads of a group, scaled; key: (group, d, key);
    scores: the buffer, (group, query, g, key).
    """
    torch.bmm(query, key, out=scores.flatten(1, 2))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)


def hide_later_keys(
    exponentials: Tensor,
    plan: BlockPlan,
    span: QuerySpan,
    first_key: int,
) -> None:
    """Set the exponentials of keys that come after their query to 0, in a chunk of a block.

    exponentials: (group, query, head, key), changed in place. span: the queries of the block.
    first_key: the first key of the chunk. Only keys at positions of the span can come after a query
    of it.
    """
    stop_key = first_key + exponentials.shape[-1]
    first_in_span = max(first_key, span.first)
    in_span = exponentials[..., first_in_span - first_key :]
    columns = slice(first_in_span - span.first, stop_key - span.first)
    in_span.mul_(plan.causal_factors[: span.height, :, columns])


def hide_and_shift(
    scores: Tensor,
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
) -> Tensor | None:
    """Hide what is masked in the scores of a block, and take the maximum off each row.

    scores: (group, query, head, key), of all keys, changed in place. layout: the call, with its
    masks and sinks. groups, span: the groups and the queries of the block. Without its maximum no
    row has an exponential that overflows.
    Returns what was taken off, (group, query, head, 1). Returns None if the scores are bounded:
    then nothing is taken off, and causality is left to ``hide_later_keys``.
    """
    call = layout.call
    plan = layout.plan
    for mask in layout.masks:
        add_mask(scores, mask, plan, groups, span)
    if layout.are_bounded(groups):
        return None
    if call.causal and span.keys > span.first:
        in_span = scores[..., span.first :]
        visible = plan.causal_corner[: span.height, :, : span.keys - span.first]
        in_span.masked_fill_(~visible, HIDDEN)
    shift = scores.amax(-1, keepdim=True)
    if layout.sinks is not None:
        sinks = pick_sinks(layout.sinks, plan, groups, span)
        shift = torch.maximum(shift, sinks)
    # In a row without a visible key all exponentials are then 0.
    shift.clamp_min_(HIDDEN / 2)
    scores.sub_(shift)
    return shift


def add_mask(scores: Tensor, mask: Tensor, plan: BlockPlan, groups: slice, span: QuerySpan) -> None:
    """Add a mask or a bias to the scores of a block, in place.

    scores: (group, query, head, key); a group is one key head of one text, with the query heads
    that share it. mask: (batch or 1, head or 1, query or 1, key), of all heads and queries. groups,
    span: the groups and the queries of the block.
    """
    queries = pick_axis(mask, 2, span.queries)
    for i, group in enumerate(range(groups.start, groups.stop)):
        item, heads = locate_group(group, plan)
        # A mask that serves all items of the batch has one entry.
        item_mask = mask[item % mask.shape[0]]
        mask_heads = pick_axis(mask, 1, heads)
        group_mask = item_mask[mask_heads, queries, : span.keys]  # (head or 1, query or 1, key)
        added = make_additive_mask(group_mask, scores.dtype)
        scores[i].add_(added.transpose(0, 1))


def pick_sinks(sinks: Tensor, plan: BlockPlan, groups: slice, span: QuerySpan) -> Tensor:
    """Return the sinks of a block: the scores beside those of its keys that stand for no key.

    sinks: of the whole call, (batch or 1, head, query or 1, 1). groups, span: the groups and the
    queries of the block. Returns (group, query or 1, head of the group, 1).
    """
    queries = pick_axis(sinks, 2, span.queries)
    group_sinks = []
    for group in range(groups.start, groups.stop):
        item, heads = locate_group(group, plan)
        # Sinks that serve all items of the batch have one entry.
        item_sinks = sinks[item % sinks.shape[0]]
        group_sinks.append(item_sinks[heads, queries])
    return torch.stack(group_sinks).transpose(1, 2)


def pick_axis(mask: Tensor, axis: int, wanted: slice) -> slice:
    """Return the wanted entries of a mask on an axis, or the first if one serves for all."""
    return wanted if mask.shape[axis] > 1 else slice(0, 1)


def locate_group(group: int, plan: BlockPlan) -> tuple[int, slice]:
    """Return the item of the batch that a group belongs to, and the group's query heads."""
    item, key_head = divmod(group, plan.shape.key_heads)
    first_head = key_head * plan.heads_a_group
    return item, slice(first_head, first_head + plan.heads_a_group)


def finish_weights(
    chunks: list[Tensor],
    layout: CallLayout,
    groups: slice,
    span: QuerySpan,
    sums: RowSums,
    reducers: Reducers,
) -> None:
    """Turn the exponentials of a block into weights, and use these while they are in the cache.

    chunks: the exponentials of each chunk of keys, (group, query, head, key), changed in place.
    layout: the call, laid out for matrix products. groups, span: the groups and the queries of the
    block. sums: of the block, with the totals by which they are divided. The output of the block is
    written into the buffer of the plan, and each reducer sees each chunk.
    """
    plan = layout.plan
    inverse = sums.total.reciprocal().unsqueeze(-1)
    output = pick_rows(plan.output[groups], plan, span)
    first_key = 0
    for weights in chunks:
        weights *= inverse
        stop_key = first_key + weights.shape[-1]
        rows = weights.flatten(1, 2)
        values = layout.value[groups, first_key:stop_key]
        if first_key:
            torch.baddbmm(output, rows, values, out=output)
        else:
            torch.bmm(rows, values, out=output)
        block = WeightsBlock(weights, first_key, span, groups)
        for reducer in reducers:
            reducer.see(block)
        first_key = stop_key


def replay_weights(weights: Tensor, plan: BlockPlan, reducers: Reducers) -> None:
    """Show weights that a model made itself to reducers, block by block.

    weights: (batch, head, query, key). plan: the blocks for such weights, with as many key heads as
    heads. The sums of the rows are written into its buffers.
    """
    by_group = weights.flatten(0, 1)[:, :, None]  # (G, N, 1, M)
    plan.sums.begin_weights(by_group)
    for groups in plan.list_group_runs():
        for span in plan.spans:
            rows = by_group[groups, span.queries].contiguous()  # (m, r, 1, M)
            plan.sums.view_block(groups, span.queries).add_weights(rows)
            block = WeightsBlock(rows, 0, span, groups)
            for reducer in reducers:
                reducer.see(block)
        for reducer in reducers:
            reducer.close(groups)
