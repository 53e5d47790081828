"""What interventions mean for the arrays that a model reads: which ids, and which edges are hidden. NumPy."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from attnviz.errors import UsageError
from attnviz.lm.corpus import Ids
from attnviz.models.checks import require_edge
from attnviz.record import Kind, Visible
from attnviz.request import Edge, Intervention

ABREAST = 16  # texts that are run at once, at most
NO_KEY = "cutting these edges leaves query {} without a key: cut fewer, or other queries"


def batches(
    interventions: Sequence[Intervention], most: int = ABREAST
) -> Iterator[Sequence[Intervention]]:
    """Interventions that can be run at once: neighbours with the same change of heads."""
    for _, run in groupby(interventions, key=lambda one: (id(one.change), one.kind)):
        members = list(run)
        yield from (members[first : first + most] for first in range(0, len(members), most))


def changed_ids(ids: Sequence[int], batch: Sequence[Intervention]) -> Ids:
    """What is read under each intervention: (intervention, token)."""
    found = np.tile(np.array(ids), (len(batch), 1))
    for row, intervention in zip(found, batch, strict=True):
        for place, number in intervention.tokens:
            row[place] = number
    return found


def hidden(
    batch: Sequence[Intervention], kind: Kind, layer: int, size: tuple[int, int, int]
) -> Visible | None:
    """Which edges of a layer of (heads, queries, keys) are cut: (intervention, head or 1, query, key); None if none is.

    The heads have one matrix together where all lose the same.
    """
    cuts = [[edge for edge in one.cuts if of_layer(edge, kind, layer)] for one in batch]
    if not any(cuts):
        return None
    heads, queries, keys = size
    alike = all(edge.head is None for edges in cuts for edge in edges)
    found = np.zeros((len(batch), 1 if alike else heads, queries, keys), dtype=bool)
    for mask, edges in zip(found, cuts, strict=True):
        for edge in edges:
            mask[:] |= cells(edge, mask.shape, across=kind == "cross")
    return found


def cells(edge: Edge, size: tuple[int, ...], *, across: bool) -> Visible:
    """The edges of (head, query, key) that one names. ``across``: queries and keys are of two texts."""
    found = np.zeros(size, dtype=bool)
    found[tuple(slice(None) if at is None else at for at in (edge.head, edge.query, edge.key))] = (
        True
    )
    if not across and (edge.query is None or edge.key is None):
        found &= np.arange(size[1])[:, None] != np.arange(size[2])
    return found


def of_layer(edge: Edge, kind: Kind, layer: int) -> bool:
    """Whether an edge is of a kind of map, and of a layer of it."""
    return edge.kind in (None, kind) and edge.layer in (None, layer)


def require_edges(
    batch: Sequence[Intervention], there: Mapping[tuple[Kind, int], tuple[int, int, int]]
) -> None:
    """Raise UsageError unless each edge is in one of the layers, of (heads, queries, keys), at least."""
    for cut in dict.fromkeys(cut for one in batch for cut in one.cuts):
        sizes = [size for (kind, layer), size in there.items() if of_layer(cut, kind, layer)]
        require_edge(cut, *max(sizes, default=(0, 0, 0)))


def require_keys(visible: Visible, cut: Visible) -> None:
    """Raise UsageError if edges that are cut leave a query without a key: (..., query, key)."""
    emptied = np.asarray((visible & cut).any(-1) & ~(visible & ~cut).any(-1))
    if emptied.any():
        raise UsageError(NO_KEY.format(int(np.argwhere(emptied)[0][-1])))
