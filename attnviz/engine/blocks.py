"""Attention in blocks: no more is ever held, so memory grows with the length of a text, not with its square.

A block is a run of queries of a few heads, whose scores stay in the cache while all that wants to see them does.

Shapes: B batch, H query heads, K key heads, g = H / K query heads that share one, G = B * K groups, N queries, M keys;
in a block m groups, r queries, n keys. Scores and weights are (m, r, g, n): rows are ordered (query, head), so that
any run of queries is one contiguous matrix and a key head is read once for the g that share it. In long texts the keys
of a block come in chunks, each a matrix of its own.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attnviz.engine.call import HIDDEN, Call, additive, spread

CHUNK = 512  # keys of a block whose scores are held at once, in texts of LONG keys or more: longer rows leave the cache
LONG = 2048
CACHED = 1 << 18  # scores a block on a CPU: with the weights 2 MB, about a second-level cache
RESIDENT = 1 << 25  # on a GPU, where a block is a kernel call
ROWS, FEWEST = (
    128,
    32,
)  # queries a block: more waste work above the diagonal, fewer make thin products
SAFE = 80.0  # scores within +-SAFE need no row maximum: their exponentials and sums stay inside float32
LARGEST = math.log(torch.finfo(torch.float32).max)
TINY = 1e-37  # total of a row that sees no key: its weights stay 0
LINE = 16  # floats in a line of the cache, at which buffers start


class Span(NamedTuple):
    """A run of queries that holds whole rows of tiles, or lies inside one row of tiles."""

    first: int
    stop: int
    keys: int
    """Keys that some query of the run can see: the first so many."""


class Shape(NamedTuple):
    """What calls must share to share a plan."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    """Of queries and keys, d."""
    value_width: int
    causal: bool
    tiles: int
    """Tiles on a side, at most."""
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, call: Call, tiles: int) -> "Shape":
        """The shape of a call, computed in float32 at least."""
        b, h, n, d = call.query.shape
        k, m, dv = call.value.shape[1:]
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        return cls(b, h, k, n, m, d, dv, call.causal, tiles, dtype, call.query.device)


class Plan:
    """The blocks and buffers of a shape, shared by all layers: fresh memory costs a page fault every 4 KB."""

    def __init__(self, shape: Shape) -> None:
        b, h, k, n, m, d, dv = shape[:7]
        self.shape, self.groups, self.shared = shape, b * k, h // k
        self.tile = math.ceil(n / shape.tiles), math.ceil(m / shape.tiles)
        self.tiles = math.ceil(n / self.tile[0]), math.ceil(m / self.tile[1])
        on_cpu = shape.device.type == "cpu"
        self.block, self.most = (
            (CACHED, ROWS) if on_cpu else (RESIDENT, n)
        )  # scores, and queries, at most
        self.chunk = CHUNK if on_cpu and m >= LONG else m
        self.spans = tuple(self.cut())
        largest = self.shared * max((span.stop - span.first) * span.keys for span in self.spans)
        self.abreast = max(1, min(self.groups, self.block // largest))  # groups a block
        self.query, self.key = self.empty(b, k, n, self.shared, d), self.empty(b, k, m, d)
        self.output = self.empty(self.groups, n * self.shared, dv)
        self.total, self.mass, self.expected = self.empty(3, self.groups, n, self.shared)
        self.scores, self.weights = self.empty(
            2, LINE + math.ceil(self.abreast * largest / LINE) * LINE
        ).zero_()
        tallest = max(span.stop - span.first for span in self.spans)
        ones = torch.ones(tallest, tallest, dtype=torch.bool, device=shape.device).tril_()
        self.corner = ones[
            :, None, :
        ]  # (r, 1, r): what a causal query sees of the keys of its own block
        self.lower = self.corner.to(shape.dtype)

    def empty(self, *size: int) -> Tensor:
        """A buffer."""
        return torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)

    def cut(self) -> Iterator[Span]:
        """The blocks' queries, in order."""
        first = 0
        while first < self.shape.queries:
            stop = first + self.step(first)
            yield Span(
                first, stop, min(stop, self.shape.keys) if self.shape.causal else self.shape.keys
            )
            first = stop

    def step(self, first: int) -> int:
        """Queries in the block that begins at ``first``: as many as fit, in whole rows of tiles if one fits."""
        height, left = self.tile[0], self.shape.queries - first
        keys = min(self.shape.keys, first + self.most) if self.shape.causal else self.shape.keys
        rows = max(FEWEST, min(self.most, self.block // (self.shared * min(keys, self.chunk))))
        if rows < height:
            return min(rows, height - first % height, left)
        return min(rows - rows % height, left - left % height or left)

    def chunks(self, span: Span, whole: bool = False) -> Iterator[tuple[int, int]]:
        """The first key of each chunk of a block, and the key after its last."""
        width = span.keys if whole else self.chunk
        for first in range(0, span.keys, width):
            yield first, min(first + width, span.keys)

    def room(self, buffer: Tensor, groups: int, span: Span, first: int, stop: int) -> Tensor:
        """The part of a buffer for these keys of a block, (m, r, g, stop - first)."""
        size = groups, span.stop - span.first, self.shared, stop - first
        start = LINE + math.prod(size[:3]) * first
        return buffer[start : start + math.prod(size)].view(size)

    def by_head(self, array: Tensor) -> Tensor:
        """(G, g, ...) -> (B, H, ...)."""
        return array.reshape(self.shape.batch, self.shape.heads, *array.shape[2:])


class Block(NamedTuple):
    """What a reducer sees; the next block overwrites it."""

    weights: Tensor
    """(m, r, g, n) on n keys of its chunk."""
    first: int
    """The first of these keys."""
    span: Span
    at: slice
    """The groups."""

    @property
    def stop(self) -> int:
        """The key after its last."""
        return self.first + self.weights.shape[-1]


class Reducer(Protocol):
    """Keeps something of every block."""

    def see(self, block: Block) -> None:
        """See a block, or a chunk of it: the keys come in order."""
        ...

    def close(self, at: slice) -> None:
        """All blocks of these groups have been seen."""
        ...


class Laid(NamedTuple):
    """A call laid out for the products."""

    query: Tensor
    """(G, N * g, d), scaled."""
    key: Tensor
    """(G, d, M)."""
    value: Tensor
    """(G, M, d_v)."""
    bounded: list[bool]
    """For each group, whether no score can leave +-SAFE."""
    sinks: Tensor | None
    """(B or 1, H, N or 1, 1)."""
    hide: tuple[Tensor, ...]
    """Masks and biases, (B or 1, H or 1, N or 1, M)."""


def attend(call: Call, plan: Plan, reducers: tuple[Reducer, ...]) -> Tensor:
    """The output (B, N, H, d_v) in the type of the query. Each reducer, in order, sees each block."""
    laid = lay_out(call, plan)
    for first in range(0, plan.groups, plan.abreast):
        groups = range(first, min(plan.groups, first + plan.abreast))
        at = slice(groups.start, groups.stop)
        for span in plan.spans:
            chunks = weigh(call, laid, groups, span, plan)
            share(chunks, laid, span, at, plan, reducers)
        for reducer in reducers:
            reducer.close(at)
    if call.sinks is None:
        torch.gt(plan.total, TINY, out=plan.mass)
    b, h, k, n = plan.shape[:4]
    output = plan.output.view(b, k, n, h // k, -1).transpose(1, 2).reshape(b, n, h, -1)
    return output.to(call.query.dtype)


def share(
    chunks: list[Tensor],
    laid: Laid,
    span: Span,
    at: slice,
    plan: Plan,
    reducers: tuple[Reducer, ...],
) -> None:
    """Make weights of exponentials; into the output and to the reducers with them, while they are in the cache."""
    inverse = plan.total[at, span.first : span.stop].reciprocal().unsqueeze(-1)
    output = plan.output[at].narrow(
        1, span.first * plan.shared, (span.stop - span.first) * plan.shared
    )
    first = 0
    for weights in chunks:
        weights *= inverse
        stop = first + weights.shape[-1]
        product = partial(torch.baddbmm, output) if first else torch.bmm
        product(weights.flatten(1, 2), laid.value[at, first:stop], out=output)
        for reducer in reducers:
            reducer.see(Block(weights, first, span, at))
        first = stop


def lay_out(call: Call, plan: Plan) -> Laid:
    """Scale the queries, and centre the keys, which softmax does not see, so that more scores are bounded.

    Not where a soft cap or a sink would see it. The bound is that of Cauchy and Schwarz.
    """
    shape = plan.shape
    by_group = shape.batch, shape.key_heads, plan.shared, shape.queries, shape.width
    query = call.query.to(shape.dtype).reshape(by_group).transpose(2, 3)  # (B, K, N, g, d)
    torch.mul(query, call.scale, out=plan.query)
    key = call.key.to(shape.dtype)
    if call.softcap is None and call.sinks is None:
        torch.sub(key, key.mean(2, keepdim=True), out=plan.key)
    else:
        plan.key.copy_(key)
    q, k = plan.query.flatten(2, 3).flatten(0, 1), plan.key.flatten(0, 1)
    bound = (longest(q) * longest(k)).sqrt()
    if call.softcap is not None:
        bound.clamp_max_(abs(call.softcap))
    safe = min(
        SAFE, LARGEST - math.log(SAFE * shape.keys)
    )  # so many exponentials times scores can be summed, too
    bounded = (bound <= safe).tolist() if is_linear(call) else [False] * plan.groups
    sinks = None if call.sinks is None else spread(call.sinks).to(shape.dtype)
    return Laid(
        q, k.transpose(1, 2), call.value.to(shape.dtype).flatten(0, 1), bounded, sinks, call.masks
    )


def longest(vectors: Tensor) -> Tensor:
    """The largest square of a vector's length, (G, n, d) -> (G,); by a product, which is faster than sums of few."""
    return (vectors.square() @ vectors.new_ones(vectors.shape[-1])).amax(-1)


def is_linear(call: Call) -> bool:
    """Whether the bound on products is one on scores: nothing is added to them."""
    return call.sinks is None and all(part.dtype == torch.bool for part in call.masks)


def weigh(call: Call, laid: Laid, groups: range, span: Span, plan: Plan) -> list[Tensor]:
    """The exponentials of a block's scores, (m, r, g, n) each chunk.

    Their sums go to plan.total, those of their products with the scores, over the total, to plan.expected. Scores
    without a bound, or with some hidden, come in one chunk: their row maximum must be known first.
    """
    at, rows = slice(groups.start, groups.stop), slice(span.first, span.stop)
    query = laid.query[at].narrow(
        1, span.first * plan.shared, (span.stop - span.first) * plan.shared
    )
    total, expected = plan.total[at, rows], plan.expected[at, rows]
    whole = bool(laid.hide) or not all(laid.bounded[group] for group in groups)
    shift, chunks = None, []
    for first, stop in plan.chunks(span, whole):
        scores = plan.room(plan.scores, len(groups), span, 0, stop - first)
        torch.bmm(query, laid.key[at, :, first:stop], out=scores.flatten(1, 2))
        if call.softcap is not None:
            scores.div_(call.softcap).tanh_().mul_(call.softcap)
        if whole:
            shift = settle(scores, call, laid, groups, span, plan)
        weights = torch.exp(scores, out=plan.room(plan.weights, len(groups), span, first, stop))
        if call.causal and stop > span.first:
            own = max(first, span.first)
            weights[..., own - first :] *= plan.lower[
                : len(total[0]), :, own - span.first : stop - span.first
            ]
        accumulate(weights, total, first)
        accumulate(scores.mul_(weights), expected, first)
        chunks.append(weights)
    if laid.sinks is not None and shift is not None:
        extra = (sinks_of(laid.sinks, groups, span, plan) - shift).exp_().squeeze(-1)
        torch.div(total, total + extra, out=plan.mass[at, rows])
        total += extra
    expected /= total.clamp_min_(TINY)
    return chunks


def accumulate(part: Tensor, total: Tensor, first: int) -> None:
    """Add the sums over the last axis of a chunk, or begin with them."""
    if first:
        total += part.sum(-1)
    else:
        torch.sum(part, -1, out=total)


def settle(
    scores: Tensor, call: Call, laid: Laid, groups: range, span: Span, plan: Plan
) -> Tensor | None:
    """Hide what is masked, and take the maximum off each row if it may be large: (m, r, g, 1) that was taken off."""
    for mask in laid.hide:
        add(scores, mask, groups, span, plan)
    if all(laid.bounded[group] for group in groups):
        return None
    if call.causal and span.keys > span.first:
        corner = plan.corner[: span.stop - span.first, :, : span.keys - span.first]
        scores[..., span.first :].masked_fill_(~corner, HIDDEN)
    shift = scores.amax(-1, keepdim=True)
    if laid.sinks is not None:
        shift = torch.maximum(shift, sinks_of(laid.sinks, groups, span, plan))
    scores -= shift.clamp_min_(HIDDEN / 2)
    return shift


def add(scores: Tensor, mask: Tensor, groups: range, span: Span, plan: Plan) -> None:
    """Add a mask or a bias to the scores of a block."""
    rows = slice(span.first, span.stop) if mask.shape[2] > 1 else slice(0, 1)
    for i, group in enumerate(groups):
        b, heads = heads_of(group, plan)
        part = mask[
            b % mask.shape[0], heads if mask.shape[1] > 1 else slice(0, 1), rows, : span.keys
        ]  # (g, r, n)
        scores[i] += additive(part, scores.dtype).transpose(0, 1)


def sinks_of(sinks: Tensor, groups: range, span: Span, plan: Plan) -> Tensor:
    """The sinks of a block, (m, r or 1, g, 1)."""
    rows = slice(span.first, span.stop) if sinks.shape[2] > 1 else slice(0, 1)
    found = [
        sinks[b % sinks.shape[0], heads, rows]
        for b, heads in (heads_of(group, plan) for group in groups)
    ]
    return torch.stack(found).transpose(1, 2)


def heads_of(group: int, plan: Plan) -> tuple[int, slice]:
    """The item of the batch, and the query heads, of a group."""
    b, key_head = divmod(group, plan.shape.key_heads)
    return b, slice(key_head * plan.shared, (key_head + 1) * plan.shared)


def replay(weights: Tensor, plan: Plan, reducers: tuple[Reducer, ...]) -> None:
    """Show weights (B, H, N, M) that a model made itself to reducers, block by block; plan has a key head a head."""
    given = weights.flatten(0, 1)[:, :, None]  # (G, N, 1, M)
    plan.total.fill_(1)
    torch.sum(given, -1, out=plan.mass)
    for first in range(0, plan.groups, plan.abreast):
        at = slice(first, min(plan.groups, first + plan.abreast))
        for span in plan.spans:
            rows = slice(span.first, span.stop)
            part = given[at, rows].contiguous()  # (m, r, 1, M)
            torch.sum(part.clamp_min(TINY).log_().mul_(part), -1, out=plan.expected[at, rows])
            for reducer in reducers:
                reducer.see(Block(part, 0, span, at))
        for reducer in reducers:
            reducer.close(at)
