"""What is kept of the blocks. Each reducer sees a block once; results are (B, H, ...), on the CPU, float32."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.blocks import Block, Plan, accumulate


class Matrix:
    """The whole matrix of weights, or some columns of it: quadratic, for chosen layers and heads."""

    def __init__(self, plan: Plan, columns: slice) -> None:
        self.plan, self.columns = plan, columns
        keys = len(range(plan.shape.keys)[columns])
        self.weights = torch.zeros(plan.groups, plan.shared, plan.shape.queries, keys)

    def see(self, block: Block) -> None:
        """Copy the block, (m, r, g, n), to its place."""
        start, stop, _ = self.columns.indices(self.plan.shape.keys)
        first, last = max(block.first, start), min(block.stop, stop)
        if first < last:
            rows, found = (
                slice(block.span.first, block.span.stop),
                block.weights[..., first - block.first :],
            )
            found = found[..., : last - first].transpose(1, 2).to("cpu", torch.float32)
            self.weights[block.at, :, rows, first - start : last - start] = found

    def close(self, at: slice) -> None:
        """Nothing is pending."""

    def result(self) -> Tensor:
        """(B, H, N, columns)."""
        return self.plan.by_head(self.weights)


class Strongest:
    """The strongest edges of each query."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.plan, self.count = plan, min(count, plan.shape.keys)
        size = plan.groups, plan.shared, plan.shape.queries, self.count
        self.weights, self.keys = torch.zeros(size), torch.zeros(size, dtype=torch.int32)

    def see(self, block: Block) -> None:
        """Take the largest of each row, of those found in its earlier keys and the new ones."""
        found = block.weights.topk(min(self.count, block.weights.shape[-1]), -1)
        values, keys = (
            found.values.transpose(1, 2).float(),
            (found.indices + block.first).transpose(1, 2).int(),
        )
        at = block.at, slice(None), slice(block.span.first, block.span.stop)
        if block.first:
            values = torch.cat([self.weights[at].to(values.device), values], -1)
            keys = torch.cat([self.keys[at].to(keys.device), keys], -1)
            values, order = values.topk(self.count, -1)
            keys = keys.gather(-1, order)
        self.weights[at][..., : values.shape[-1]], self.keys[at][..., : keys.shape[-1]] = (
            values.cpu(),
            keys.cpu(),
        )

    def close(self, at: slice) -> None:
        """Nothing is pending."""

    def result(self) -> tuple[Tensor, Tensor]:
        """Keys and weights, (B, H, N, count), in falling order of weight."""
        return self.plan.by_head(self.keys), self.plan.by_head(self.weights)


class Sight(NamedTuple):
    """What a mask leaves to choose."""

    free: Tensor
    """(B or 1, H or 1, N or 1): whether a query sees more than one key."""
    only: Tensor
    """(B or 1, H or 1, N or 1): the one key that a query sees which is not free (of those that see one)."""

    @classmethod
    def of(cls, visible: Tensor) -> "Sight":
        """From (B or 1, H or 1, N or 1, M)."""
        return cls(visible.sum(-1) > 1, visible.to(torch.uint8).argmax(-1))

    @classmethod
    def causal(cls, n: int, m: int, device: torch.device) -> "Sight":
        """The same for a causal mask, without building it."""
        free = (torch.arange(n, device=device) > 0) & (m > 1)
        return cls(free[None, None], torch.zeros(1, 1, n, dtype=torch.long, device=device))


class Summary:
    """Means and maxima of tiles, and the statistics of ``record.Statistics``: linear in N.

    Its buffers serve one layer after the other.
    """

    def __init__(self, plan: Plan, square: bool) -> None:
        self.plan, self.square = plan, square
        (high, wide), (height, width) = plan.tiles, plan.tile
        groups, shared, keys = plan.groups, plan.shared, plan.shape.keys
        self.mean, self.peak = plan.empty(2, groups, high, shared, wide)
        self.received = plan.empty(groups, shared, keys)
        self.queries, self.keys = places(plan.shape.queries, plan), places(keys, plan)
        if square and not plan.shape.causal:
            self.near, self.before = plan.empty(2, groups, plan.shape.queries, shared)
            self.columns = plan.empty(groups, shared)
            tallest = places(
                max(span.stop - span.first + span.first % plan.tile[0] for span in plan.spans), plan
            )
            self.back = (tallest[:, None] - tallest).clamp_min_(0)[
                :, None
            ]  # (r, 1, r): how far a key lies behind
            self.edges = self.keys_before_edges(wide * width)
        self.diagonals = plan.empty(groups, plan.shape.queries, shared, 2).zero_()
        self.areas = sizes(plan.shape.queries, height, plan)[:, None, None] * sizes(
            keys, width, plan
        )
        self.sums, self.peaks = plan.empty(2, plan.abreast, high, shared, wide * width).zero_()

    def see(self, block: Block) -> None:
        """Add to the tiles and the statistics."""
        self.add_to_strips(block)
        if self.square:
            self.add_diagonals(block)
            if not self.plan.shape.causal:
                self.add_behind(block)

    def add_to_strips(self, block: Block) -> None:
        """Strips (m, high, g, wide * width) are rows of tiles whose columns are not merged yet.

        Adding whole rows is a vector operation, adding inside a row is not. Cells that no block reaches stay 0.
        """
        (m, r, g, n), span = block.weights.shape, block.span
        top, inside = divmod(span.first, self.plan.tile[0])
        count = max(1, r // self.plan.tile[0])
        rows = block.weights.view(m, count, r // count, g, n)
        sums, peaks = (
            strips[:m, top : top + count, :, block.first : block.stop]
            for strips in (self.sums, self.peaks)
        )
        if inside:
            fresh = (
                max(0, span.first - block.first) if self.plan.shape.causal else n
            )  # keys new to this row of tiles
            sums[..., fresh:], peaks[..., fresh:] = 0, 0
            sums += rows.sum(2)
            torch.maximum(peaks, rows.amax(2), out=peaks)
        else:
            torch.sum(rows, 2, out=sums)
            torch.amax(rows, 2, out=peaks)

    def add_diagonals(self, block: Block) -> None:
        """The weight of each query on the key before it and on itself, (m, r, g, 2).

        As one strided view: the next query's pair lies one row and one key further. Where a chunk begins or ends
        between the two, only one of them is there. Query 0 has no key before it: its place stays 0.
        """
        (m, _, g, n), span, kept = block.weights.shape, block.span, self.diagonals[block.at]
        first, stop = max(span.first, block.first + 1), min(span.stop, block.stop)
        if first < stop:
            start = (
                block.weights.storage_offset()
                + (first - span.first) * g * n
                + first
                - 1
                - block.first
            )
            size, strides = (m, stop - first, g, 2), (block.weights.stride(0), g * n + 1, n, 1)
            kept[:, first:stop] = block.weights.as_strided(size, strides, start)
        for query, key, place in ((block.first, 0, 1), (block.stop, -1, 0)):
            if span.first <= query < span.stop:
                kept[:, query, :, place] = block.weights[:, query - span.first, :, key]

    def add_behind(self, block: Block) -> None:
        """What ``distance`` needs of the keys before their query.

        Keys before the edge, the first query of the block's first row of tiles, lie behind all its queries: sums over
        rows and columns tell. Only of those between the edge and its last query each weight is looked at.
        """
        span, start = block.span, block.first
        edge = span.first - span.first % self.plan.tile[0]
        here, split, stop = (
            slice(span.first, span.stop),
            max(start, edge),
            min(block.stop, span.stop),
        )
        before = block.weights[..., : max(0, min(edge, block.stop) - start)]
        accumulate(before, self.before[block.at, here], start)
        near = block.weights[..., split - start : max(split, stop) - start]
        back = self.back[
            span.first - edge : span.stop - edge, :, split - edge : max(split, stop) - edge
        ]
        spare = self.plan.room(
            self.plan.scores, len(near), span, 0, near.shape[-1]
        )  # the scores have had their day
        accumulate(torch.mul(near, back, out=spare), self.near[block.at, here], start)

    def keys_before_edges(self, width: int) -> Tensor:
        """The place of each key that lies before the edge of a row of tiles, else 0: (high * width,)."""
        height, edges = self.plan.tile[0], torch.zeros(self.plan.tiles[0], device=self.keys.device)
        for span in self.plan.spans:
            edges[span.first // height : -(-span.stop // height)] = span.first - span.first % height
        keys = places(width, self.plan)
        return (keys * (keys < edges[:, None])).flatten()

    def close(self, at: slice) -> None:
        """Merge the columns of the strips."""
        plan, m = self.plan, at.stop - at.start
        tiles = m, plan.tiles[0], plan.shared, plan.tiles[1], plan.tile[1]
        torch.sum(self.sums[:m].view(tiles), -1, out=self.mean[at])
        torch.amax(self.peaks[:m].view(tiles), -1, out=self.peak[at])
        self.received[at] = self.sums[:m].sum(1)[..., : plan.shape.keys]
        if self.square and not plan.shape.causal:
            self.columns[at] = self.sums[:m].transpose(1, 2).flatten(2) @ self.edges

    def result(self, sight: Sight) -> dict[str, Tensor]:
        """Tiles and statistics by the names of their fields, (B, H, ...).

        Entropy is log(sum exp s) - sum w s, without a logarithm a weight; where a sink takes its share, the first term
        counts as much as the weights sum to.
        """
        plan = self.plan
        entropy = (plan.total.log() * plan.mass - plan.expected).clamp_min_(0).abs_()  # no -0.0
        found = {
            "mean": (self.mean / self.areas).transpose(1, 2),
            "max": self.peak.transpose(1, 2),
            "entropy": entropy.transpose(1, 2),
        }
        named = {name: plan.by_head(array) for name, array in found.items()}
        named["received"] = self.free_received(sight)
        if self.square:
            alive = (plan.mass > 0).to(plan.shape.dtype)  # (G, N, g)
            previous, diagonal = self.diagonals.sum(1).unbind(-1)  # (G, g)
            seeing, later = alive.sum(1).clamp_min(1), alive[:, 1:].sum(1).clamp_min(1)
            means = {
                "diagonal": diagonal / seeing,
                "previous": previous / later,
                "distance": self.distance() / seeing,
            }
            named |= {name: plan.by_head(array) for name, array in means.items()}
        return {name: array.to("cpu", torch.float32, copy=True) for name, array in named.items()}

    def free_received(self, sight: Sight) -> Tensor:
        """Mean weight that a key gets from free queries, (B, H, M): what the others give by force is taken away."""
        plan = self.plan
        received = plan.by_head(self.received).clone()  # (B, H, M)
        mass = plan.by_head(plan.mass.transpose(1, 2))  # (B, H, N)
        free, only = sight.free.expand(mass.shape), sight.only.expand(mass.shape)
        received.scatter_add_(-1, only, -mass.masked_fill(free, 0))
        choosing = (mass * free > 0).sum(-1, keepdim=True)
        return (received / choosing.clamp_min(1)).clamp_min_(0) * (choosing > 0)

    def distance(self) -> Tensor:
        """Sum of weight * |i - j|, (G, g): weight * (j - i), known from row and column sums, + 2 * behind."""
        keys, queries = (
            self.keys.double(),
            self.queries.double(),
        )  # large numbers that nearly cancel
        onward: Tensor = (
            self.received.double() @ keys - self.plan.mass.transpose(1, 2).double() @ queries
        )
        if self.plan.shape.causal:
            return -onward
        behind: Tensor = (
            self.near.sum(1) + self.before.transpose(1, 2).double() @ queries - self.columns
        )
        return onward + 2 * behind


def places(count: int, plan: Plan) -> Tensor:
    """0, 1, 2 ... as the plan computes."""
    return torch.arange(count, dtype=plan.shape.dtype, device=plan.shape.device)


def sizes(length: int, tile: int, plan: Plan) -> Tensor:
    """How many tokens each tile of a side holds."""
    starts = range(0, length, tile)
    return torch.tensor(
        [min(tile, length - at) for at in starts], dtype=plan.shape.dtype, device=plan.shape.device
    )
