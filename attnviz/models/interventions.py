"""What interventions change in the arrays that a model reads: its ids, and its edges. In NumPy."""

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


def batch_interventions(
    interventions: Sequence[Intervention],
    most: int = ABREAST,
) -> Iterator[Sequence[Intervention]]:
    """Yield batches of interventions that can be run at once, in their order.

    They are neighbours with the same change of heads. most: how many a batch has at most.
    """
    for _, run in groupby(interventions, key=identify_change):
        members = list(run)
        for first in range(0, len(members), most):
            yield members[first : first + most]


def identify_change(intervention: Intervention) -> tuple[int, Kind | None]:
    """Return a key that is the same for interventions with the same change of heads."""
    return id(intervention.change), intervention.kind


def change_ids(ids: Sequence[int], batch: Sequence[Intervention]) -> Ids:
    """Return the ids that are read under each intervention, (intervention, token)."""
    changed = np.tile(np.array(ids), (len(batch), 1))
    for row, intervention in zip(changed, batch, strict=True):
        for position, number in intervention.tokens:
            row[position] = number
    return changed


def mask_cut_edges(
    batch: Sequence[Intervention],
    kind: Kind,
    layer: int,
    size: tuple[int, int, int],
) -> Visible | None:
    """Return a mask of the edges of a layer that interventions cut, True where an edge is cut.

    It is (intervention, head or 1, query, key), with one matrix for all heads where all lose the
    same edges; None if no edge is cut. size: the heads, queries and keys of the layer.
    """
    cuts = [
        [edge for edge in intervention.cuts if is_in_layer(edge, kind, layer)]
        for intervention in batch
    ]
    if not any(cuts):
        return None
    heads, queries, keys = size
    if all(edge.head is None for edges in cuts for edge in edges):
        heads = 1
    masks = np.zeros((len(batch), heads, queries, keys), dtype=bool)
    for mask, edges in zip(masks, cuts, strict=True):
        for edge in edges:
            mask[:] |= mask_edge(edge, mask.shape, across=kind == "cross")
    return masks


def mask_edge(edge: Edge, size: tuple[int, ...], *, across: bool) -> Visible:
    """Return a mask (head, query, key) that is True at the edges that one ``Edge`` names.

    across: True if queries and keys are of two texts. Else an edge that names all keys of a query,
    or all queries of a key, spares the edge of a token to itself.
    """
    mask = np.zeros(size, dtype=bool)
    head, query, key = (
        slice(None) if index is None else index for index in (edge.head, edge.query, edge.key)
    )
    mask[head, query, key] = True
    names_several = edge.query is None or edge.key is None
    if names_several and not across:
        _, queries, keys = size
        mask &= np.arange(queries)[:, None] != np.arange(keys)
    return mask


def is_in_layer(edge: Edge, kind: Kind, layer: int) -> bool:
    """Return True if an edge is of a kind of map, and of a layer of it."""
    return edge.kind in (None, kind) and edge.layer in (None, layer)


def require_edges(
    batch: Sequence[Intervention],
    sizes: Mapping[tuple[Kind, int], tuple[int, int, int]],
) -> None:
    """Raise UsageError unless each edge that is cut is in one of the layers, at least.

    sizes: the heads, queries and keys of each layer, by kind and layer.
    """
    cuts = dict.fromkeys(cut for intervention in batch for cut in intervention.cuts)
    for cut in cuts:
        sizes_of_cut = [
            size for (kind, layer), size in sizes.items() if is_in_layer(cut, kind, layer)
        ]
        heads, queries, keys = max(sizes_of_cut, default=(0, 0, 0))
        require_edge(cut, heads, queries, keys)


def require_keys(visible: Visible, cut: Visible) -> None:
    """Raise UsageError if edges that are cut leave a query without a key.

    visible, cut: (..., query, key).
    """
    loses_a_key = (visible & cut).any(-1)
    keeps_a_key = (visible & ~cut).any(-1)
    emptied = np.asarray(loses_a_key & ~keeps_a_key)
    if emptied.any():
        first = np.argwhere(emptied)[0]
        raise UsageError(NO_KEY.format(int(first[-1])))
