"""What interventions change in the arrays that a model reads: its ids, and its edges. In NumPy."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from attnviz.errors import UsageError
from attnviz.lm.corpus import Ids
from attnviz.models.checks import require_edge
from attnviz.progress import count_steps
from attnviz.record import Kind, Visible
from attnviz.request import Edge, Intervention

ABREAST = 16  # interventions on a text that are run at once, at most
NO_KEY = "cutting these edges leaves query {} without a key: cut fewer, or other queries"


def batch_interventions(
    interventions: Sequence[Intervention],
    largest: int = ABREAST,
) -> Iterator[Sequence[Intervention]]:
    """Split interventions into batches that a model can run at once, and keep their order.

    An intervention is a change of one run of a model. Several of them can run as one batch if they
    replace the outputs of heads alike. Therefore a new batch begins wherever this change differs
    from that of the intervention before.

    largest: the number of interventions that a batch has at most.
    """
    for _, run in groupby(interventions, key=identify_change):
        members = list(run)
        for first in range(0, len(members), largest):
            yield members[first : first + largest]


def count_batches(
    interventions: Sequence[Intervention],
    largest: int = ABREAST,
) -> Iterator[Sequence[Intervention]]:
    """Split interventions into batches that a model can run at once, and say which is run.

    largest: the number of interventions that a batch has at most.
    """
    batches = list(batch_interventions(interventions, largest))
    return count_steps(batches, "changing the model", "batch")


def identify_change(intervention: Intervention) -> tuple[int, Kind | None]:
    """Return a key that is equal for interventions that replace the outputs of heads alike."""
    return id(intervention.change), intervention.kind


def change_ids(ids: Sequence[int], batch: Sequence[Intervention]) -> Ids:
    """Return the token ids that a model reads under each intervention, (intervention, token).

    ids: the token ids of the text. The tokens that an intervention names are replaced in its row.
    """
    changed_ids = np.tile(np.array(ids), (len(batch), 1))
    for row, intervention in zip(changed_ids, batch, strict=True):
        for position, new_id in intervention.tokens:
            row[position] = new_id
    return changed_ids


def mask_cut_edges(
    batch: Sequence[Intervention],
    kind: Kind,
    layer: int,
    size: tuple[int, int, int],
) -> Visible | None:
    """Return a mask of the edges that interventions cut in one layer, True where an edge is cut.

    An edge is a cell of an attention matrix, that is, a query and a key. The axes of the mask are
    (intervention, head, query, key), and that of heads is 1 long if all heads lose the same edges.
    The result is None if no intervention cuts an edge of the layer.

    kind: the kind of attention of the layer, such as "self" or "cross". layer: its number among
    those of its kind. size: the numbers of its heads, queries and keys.
    """
    cuts = [
        [edge for edge in intervention.cuts if is_in_layer(edge, kind, layer)]
        for intervention in batch
    ]
    if not any(cuts):
        return None
    heads, query_count, key_count = size
    if all(edge.head is None for edges in cuts for edge in edges):
        heads = 1
    masks = np.zeros((len(batch), heads, query_count, key_count), dtype=bool)
    for mask, edges in zip(masks, cuts, strict=True):
        for edge in edges:
            mask[:] |= mask_edge(edge, mask.shape, across=kind == "cross")
    return masks


def mask_edge(edge: Edge, shape: tuple[int, ...], *, across: bool) -> Visible:
    """Return a mask (head, query, key) that is True at the edges that one ``Edge`` names.

    A head, a query or a key that is None in it stands for all of them. Within one text, the edge of
    a token to itself is spared then: it is False if the query or the key is None.

    shape: the lengths of the axes of the mask. across: True if queries and keys are the tokens of
    two texts, so that no token has an edge to itself.
    """
    mask = np.zeros(shape, dtype=bool)
    head, query, key = (
        slice(None) if index is None else index for index in (edge.head, edge.query, edge.key)
    )
    mask[head, query, key] = True
    names_several = edge.query is None or edge.key is None
    if names_several and not across:
        _, query_count, key_count = shape
        mask &= np.arange(query_count)[:, None] != np.arange(key_count)
    return mask


def is_in_layer(edge: Edge, kind: Kind, layer: int) -> bool:
    """Return True if an edge is in a layer of a kind of attention; None in it stands for all."""
    return edge.kind in (None, kind) and edge.layer in (None, layer)


def require_edges(
    batch: Sequence[Intervention],
    sizes: Mapping[tuple[Kind, int], tuple[int, int, int]],
) -> None:
    """Raise UsageError if an edge that interventions cut is in none of the layers of a model.

    sizes: the numbers of heads, queries and keys of each layer, by the kind of its attention and
    its number.
    """
    cuts = dict.fromkeys(cut for intervention in batch for cut in intervention.cuts)
    for cut in cuts:
        sizes_of_cut = [
            size for (kind, layer), size in sizes.items() if is_in_layer(cut, kind, layer)
        ]
        # an edge of all layers need only be in the largest
        heads, queries, keys = max(sizes_of_cut, default=(0, 0, 0))
        require_edge(cut, heads, queries, keys)


def require_keys(visible: Visible, cut: Visible) -> None:
    """Raise UsageError if a query sees some keys before edges are cut, and none after.

    visible: True where a query may attend to a key. cut: True where an edge is cut. Both are
    (..., query, key), and broadcast to each other.
    """
    loses_a_key = (visible & cut).any(-1)
    keeps_a_key = (visible & ~cut).any(-1)
    emptied = np.asarray(loses_a_key & ~keeps_a_key)
    if emptied.any():
        first = np.argwhere(emptied)[0]
        raise UsageError(NO_KEY.format(int(first[-1])))
