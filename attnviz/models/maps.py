"""From the calls of a model, as an observer saw them, to attention maps with their tokens."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnviz.analysis.segments import number_key_groups
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import (
    AttentionSite,
    CallResult,
    SurveyedCall,
)
from attnviz.engine.values import UNPROJECTED
from attnviz.errors import ModelError
from attnviz.models.interventions import (
    mask_cut_edges,
    require_edges,
    require_keys,
)
from attnviz.models.memory import (
    MapSize,
    count_kept_bytes,
    estimate_torch_work,
    estimate_writing_work,
    require_memory,
)
from attnviz.record import (
    AttentionMap,
    Edges,
    KeyGroups,
    Kind,
    Segment,
    Statistics,
    Tiles,
    Token,
    Visible,
)
from attnviz.request import Intervention, Request
from attnviz.selection import (
    MapTokens,
    choose_kinds,
    find_window_positions,
    note_windows,
    resolve_blocks,
)

ACCURATE = 1e-3  # relative difference that is worth a warning
# the roundings, of the type that was computed in, that explain a larger difference
ROUNDINGS = 2


class MapChoice(NamedTuple):
    """A map that is to be made: layers of one kind, and the heads of each."""

    kind: Kind
    layers: tuple[int, ...]
    heads: tuple[int, ...]


def number_layers(
    calls: Sequence[SurveyedCall],
    kinds: Sequence[Kind],
    parts: Sequence[str] = (),
) -> tuple[AttentionSite, ...]:
    """Give each call of attention in a run its layer, and return the calls as sites.

    A site is a call with its layer and its kind. Layers of one kind keep the numbers that the
    modules of the model give, if these differ for all calls of that kind. Otherwise the calls of a
    kind are counted from 0, those of one part of the model after those of another. A call that
    repeats the one before it belongs to the layer of that one.

    calls: in the order of the run. kinds: for each call, which tokens attend to which, such as
    "self" or "cross". parts: the name of the part of the model, such as an image encoder, that each
    call belongs to; empty if the model has one part only.
    """
    parts = parts or [""] * len(calls)
    layers: dict[int, int] = {}
    for kind in dict.fromkeys(kinds):
        numbers = [
            number
            for number, call in enumerate(calls)
            if kinds[number] == kind and not call.repeated
        ]
        layers.update(number_calls_of_kind(calls, numbers, parts))
    sites: list[AttentionSite] = []
    for number, call in enumerate(calls):
        if call.repeated:
            layers[number] = layers[number - 1]
        site = AttentionSite(
            kinds[number],
            layers[number],
            call.heads,
            (call.queries, call.keys),
            part=parts[number],
            repeated=call.repeated,
        )
        sites.append(site)
    return tuple(sites)


def number_calls_of_kind(
    calls: Sequence[SurveyedCall],
    numbers: Sequence[int],
    parts: Sequence[str],
) -> dict[int, int]:
    """Return the layers of some calls of attention, by the indices of the calls.

    The layers that the calling modules name are taken if each call has one and all differ.
    Otherwise the calls are counted from 0, those of one part of the model after those of another.

    calls: all calls of a run. numbers: the indices in ``calls`` of those that are of one kind, such
    as cross-attention. parts: the name of the part of the model that each call of the run belongs
    to.
    """
    parts_in_order = list(dict.fromkeys(parts[number] for number in numbers))

    def rank_part(number: int) -> int:
        return parts_in_order.index(parts[number])

    ordered = sorted(numbers, key=rank_part)
    known_layers = [calls[number].layer for number in ordered]
    all_differ = None not in known_layers and len(set(known_layers)) == len(known_layers)
    layers: dict[int, int] = {}
    for count, number in enumerate(ordered):
        layer = calls[number].layer
        layers[number] = layer if all_differ and layer is not None else count
    return layers


def describe_parts(sites: Sequence[AttentionSite]) -> str | None:
    """Return a note that says which layers belong to which part of a model.

    sites: the calls of attention of a run, each with the part of the model that it belongs to, such
    as an image encoder. The note is like "layers: 0-11 vision, 12-23 text". It is None if no kind
    of attention has layers in several parts.
    """
    runs: list[str] = []
    for kind in dict.fromkeys(site.kind for site in sites):
        layer_parts = sorted(
            (site.layer, site.part) for site in sites if site.kind == kind and not site.repeated
        )
        if len({part for _, part in layer_parts}) < 2:
            continue
        prefix = "" if kind == "self" else f"{kind} "
        for part, members in groupby(layer_parts, key=lambda layer_part: layer_part[1]):
            layers = [layer for layer, _ in members]
            first, last = layers[0], layers[-1]
            span = f"{first}-{last}" if len(layers) > 1 else f"{first}"
            runs.append(f"{prefix}{span} {part}")
    return f"layers: {', '.join(runs)}" if runs else None


def describe_sizes(sites: Sequence[AttentionSite], token_count: int) -> str:
    """Return a note that lists the layers whose queries or keys are not the tokens of the text.

    sites: the calls of attention, each with the numbers of its queries and keys. token_count: the
    number of tokens of the text.
    """
    whole_size = token_count, token_count
    others: list[str] = []
    for site in sites:
        queries, keys = site.size
        if site.size != whole_size:
            others.append(f"L{site.layer} ({queries} queries, {keys} keys)")
    return (
        "these layers have other lengths than the text, so that rows and columns are numbered: "
        f"{', '.join(others)}"
    )


def choose_maps(sites: Sequence[AttentionSite], request: Request) -> tuple[MapChoice, ...]:
    """Choose the attention maps to make for a request, out of the calls of attention of a model.

    A map holds layers of one kind, such as cross-attention, that belong to one part of the model
    and have the same numbers of queries and keys. A run of layers that differ in these becomes
    several maps. Raises UsageError if the request names a kind, layer or head that is not there.
    """
    choices: list[MapChoice] = []
    kinds_of_model = tuple(dict.fromkeys(site.kind for site in sites))
    for kind in choose_kinds(request.kinds, kinds_of_model, request.preferred):
        sites_of_kind = [site for site in sites if site.kind == kind and not site.repeated]
        sites_of_kind.sort(key=lambda site: site.layer)
        heads_by_layer = {site.layer: range(site.heads) for site in sites_of_kind}
        groups = {site.layer: (site.part, site.size) for site in sites_of_kind}
        for layers, heads in resolve_blocks(request.layers, request.heads, heads_by_layer):
            runs = groupby(layers, key=groups.__getitem__)
            choices += [MapChoice(kind, tuple(run), heads) for _, run in runs]
    return tuple(choices)


def number_sites(sites: Sequence[AttentionSite]) -> dict[tuple[Kind, int], int]:
    """Return the index of each layer's call of attention in a run, by the layer's kind and number.

    Calls that repeat a layer are left out.
    """
    return {
        (site.kind, site.layer): number for number, site in enumerate(sites) if not site.repeated
    }


def group_heads_by_call(
    choices: Sequence[MapChoice],
    sites: Sequence[AttentionSite],
) -> dict[int, tuple[int, ...]]:
    """Return the heads to look at in a run of a model, by the index of the call of attention.

    choices: the maps that are to be made of them. sites: all calls of the run, in order.
    """
    numbers = number_sites(sites)
    heads: dict[int, tuple[int, ...]] = {}
    for choice in choices:
        for layer in choice.layers:
            heads[numbers[choice.kind, layer]] = choice.heads
    return heads


def make_edits(
    batch: Sequence[Intervention],
    sites: Sequence[AttentionSite],
    find_sides: Callable[[Kind], MapTokens],
    *,
    pooled: bool = False,
) -> RunEdits:
    """Return the changes that interventions make to the calls of attention in one run of a model.

    batch: interventions that are run at once, each on its own copy of the text. They may cut
    different edges, and replace the outputs of heads alike. sites: the calls of the run, in order.
    find_sides: a function that returns the tokens of the queries and of the keys of a kind of
    attention. pooled: True if some layers read a shortened text.

    Raises UsageError if an edge is not there, and ModelError if edges are to be cut and the text is
    shortened. While the model runs, edges that leave a query without a key raise UsageError too.
    """
    sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
    for site in sites:
        queries, keys = find_sides(site.kind)
        sizes[site.kind, site.layer] = site.heads, len(queries), len(keys)
    require_edges(batch, sizes)
    cuts: dict[int, Tensor] = {}
    recent: list[Visible] = []
    for number, site in enumerate(sites):
        size = sizes[site.kind, site.layer]
        cut = mask_cut_edges(batch, site.kind, site.layer, size)
        if cut is None:
            continue
        if pooled:
            raise ModelError(
                "edges of this model cannot be cut: some of its layers read a shortened text",
            )
        # layers often lose the same edges: a mask that equals one of the last two is shared
        equal_masks = [other for other in recent if np.array_equal(other, cut)]
        cut = equal_masks[0] if equal_masks else cut
        recent = [*recent[-1:], cut]
        cuts[number] = torch.from_numpy(cut)
    intervention = batch[0]  # the others replace the outputs of heads alike
    layers = [site.layer if intervention.kind in (None, site.kind) else None for site in sites]
    return RunEdits(layers, cuts, intervention.change, check_keys)


def check_keys(visible: Tensor, cut: Tensor) -> None:
    """Raise UsageError if a cut of edges leaves a query without a key."""
    require_keys(visible.cpu().numpy(), cut.cpu().numpy())


def crop_sides(sides: MapTokens, request: Request) -> MapTokens:
    """Return the tokens of the queries and of the keys in the window of a request.

    sides: the tokens of all queries and of all keys. Raises UsageError for an empty window.
    """
    queries, keys = sides
    rows, columns = find_window_positions(request.rows, request.columns, sides)
    return queries[rows.start : rows.stop], keys[columns.start : columns.stop]


def describe_windows(
    choices: Sequence[MapChoice],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
) -> tuple[str, ...]:
    """Return notes that say where the window of a request lies in each of some maps.

    find_sides: a function that returns the tokens of all queries and of all keys of a map. There
    are no notes if the request has no window, that is, keeps whole maps.
    """
    if not request.windowed:
        return ()
    return note_windows(request.rows, request.columns, map(find_sides, choices))


def require_capture_memory(
    choices: Sequence[MapChoice],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
    model: Any = None,
    *,
    writes: bool = False,
) -> None:
    """Raise InputError if making some maps would take more memory than is free.

    find_sides: a function that returns the tokens of all queries and of all keys of a map. request:
    it has a window of the maps, and tells what is kept. model: that of transformers that is run;
    None for another module. writes: the weights are those of a text that the model continues, which
    come step by step. Raises UsageError for an empty window.
    """
    head_counts: dict[MapSize, int] = {}
    for choice in choices:
        queries, keys = crop_sides(find_sides(choice), request)
        size = len(queries), len(keys)
        count = len(choice.layers) * len(choice.heads)
        head_counts[size] = head_counts.get(size, 0) + count
    copied_heads = 0  # of a layer, as they are moved to their place among those of other layers
    if request.keep == "weights":
        counts = [len(choice.heads) for choice in choices if len(choice.layers) > 1]
        copied_heads = max(counts, default=0)
    # the model reads the whole text, also where a window of it is kept
    token_count = max(len(side) for choice in choices for side in find_sides(choice))
    cells = max(queries * keys for queries, keys in head_counts)
    working = estimate_torch_work(token_count, copied_heads * cells, model)
    if writes:
        kept = count_kept_bytes(head_counts, request)
        working += estimate_writing_work(copied_heads * cells, kept)
    require_memory(head_counts, request, working)


def assemble_maps(
    choices: Sequence[MapChoice],
    sites: Sequence[AttentionSite],
    results: dict[int, CallResult],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
) -> tuple[AttentionMap, ...]:
    """Make attention maps of what was kept of the calls of a run.

    The weights are moved out of the results into the maps, so that memory holds them once.

    choices: the maps to make. sites: all calls of the run, in order. results: what was kept of a
    call, by its index in the run. find_sides: a function that returns the tokens of all queries and
    of all keys of a map. Raises ModelError if weights are negative or no numbers, and if the result
    of a call is missing. That happens where the norms of what heads move were asked for: they are
    kept when the model multiplies the output of a call by a matrix, which some models never do.
    """
    numbers = number_sites(sites)
    heads_by_call = group_heads_by_call(choices, sites)
    if not results.keys() >= heads_by_call.keys():
        raise ModelError(UNPROJECTED)
    maps: list[AttentionMap] = []
    try:
        for choice in choices:
            layers = [results[numbers[choice.kind, layer]] for layer in choice.layers]
            attention_map = join_layers(choice, layers, find_sides(choice), request)
            maps.append(attention_map)
    except ValueError as error:
        raise ModelError(f"this model's attention cannot be used: {error}") from error
    return tuple(maps)


def join_layers(
    choice: MapChoice,
    layers: Sequence[CallResult],
    sides: MapTokens,
    request: Request,
) -> AttentionMap:
    """Make one attention map of what was kept of each of its layers.

    The weights are moved out of the layers' results, so that memory holds them once.

    choice: the kind, layers and heads of the map. layers: the result of each layer. sides: the
    tokens of all queries and of all keys. request: it tells what was kept, and the window of it.
    Raises ValueError if the numbers can be no attention.
    """
    rows, columns = find_window_positions(request.rows, request.columns, sides)
    queries, keys = crop_sides(sides, request)
    summary = {
        name: stack_tensors([layer.summary[name] for layer in layers]) for name in layers[0].summary
    }
    weights = take_weights(layers)
    tiles = None
    if request.keep == "tiles":
        # if each tile is one cell, its maximum is the weight of the cell
        tile_size = layers[0].tile
        tiles = Tiles(summary["mean"], summary["max"], *tile_size)
        weights = tiles.max if tile_size == (1, 1) else None
    visible = np.array(True)
    if request.keep in ("weights", "tiles"):
        visible = stack_visible([layer.visible for layer in layers])
    return AttentionMap(
        choice.kind,
        choice.layers,
        heads=("sum",) if request.summed else choice.heads,
        queries=queries,
        keys=keys,
        weights=weights,
        visible=visible,
        method=request.method,
        tiles=tiles,
        statistics=make_statistics(summary, choice.kind) if summary else None,
        edges=stack_edges(layers),
        groups=stack_groups(layers) if weights is None else None,
        query_places=tuple(rows),
        key_places=tuple(columns),
    )


def take_weights(layers: Sequence[CallResult]) -> Any:
    """Return the weights of layers as one array, and remove them from the results of the layers.

    So memory holds the weights of a long text once. The array is (layer, head, query, key), or None
    if the weights of a layer were not kept.
    """
    stacked = None
    for i, layer in enumerate(layers):
        if layer.weights is None:
            return None
        weights = layer.weights.numpy()
        layer.weights = None
        if len(layers) == 1:
            return weights[None]
        if stacked is None:
            stacked = np.empty((len(layers), *weights.shape), weights.dtype)
        stacked[i] = weights
    return stacked


def stack_tensors(tensors: Sequence[Any]) -> Any:
    """Stack tensors of one shape, one of each layer, as a NumPy array with a first axis of layers.

    A single tensor is not copied.
    """
    first = tensors[0].numpy()
    if len(tensors) == 1:
        return first[None]
    stacked = np.empty((len(tensors), *first.shape), first.dtype)
    for i, tensor in enumerate(tensors):
        stacked[i] = tensor.numpy()
    return stacked


def stack_visible(masks: Sequence[Tensor]) -> Any:
    """Stack the masks of layers as one array (layer, head or 1, query or 1, key).

    masks: the mask of each layer, (head or 1, query or 1, key), True where a query may attend. If
    all are equal, the axis of layers is 1 long.
    """
    first = masks[0]
    if all(is_equal(mask, first) for mask in masks):
        return first.numpy()[None]
    shapes = [tuple(mask.shape) for mask in masks]
    # a layer without a mask has one row for all queries
    shape = np.broadcast_shapes(*shapes)
    return np.stack([np.broadcast_to(mask.numpy(), shape) for mask in masks])


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors have the same shape and the same elements."""
    if one is other:
        return True
    return one.shape == other.shape and bool((one == other).all())


def make_statistics(summary: Mapping[str, Any], kind: Kind) -> Statistics:
    """Make the statistics of a map out of arrays that have names.

    summary: arrays that begin with (layer, head); "entropy" and "received", the weight that each
    key received, are always among them. kind: which tokens attend to which. Cross-attention has no
    statistics of distance, since its queries and keys are not the same tokens.
    """
    names = ("distance", "diagonal", "previous") if kind != "cross" else ()
    distances = {name: summary[name] for name in names if name in summary}
    received = summary["received"]
    first_received = received[..., 0]
    return Statistics(summary["entropy"], received, first_received, **distances)


def stack_edges(layers: Sequence[CallResult]) -> Edges | None:
    """Return the strongest edges of layers, or None if they were not kept.

    Their keys and their weights are arrays (layer, head, query, rank), the strongest edge of a
    query first.
    """
    layer_edges = [layer.edges for layer in layers if layer.edges is not None]
    if not layer_edges:
        return None
    keys = stack_tensors([layer_keys for layer_keys, _ in layer_edges])
    weights = stack_tensors([layer_weights for _, layer_weights in layer_edges])
    return Edges(keys, weights)


def stack_groups(layers: Sequence[CallResult]) -> KeyGroups | None:
    """Return what the queries of layers give to groups of keys, or None if it was not kept."""
    groups_of_layers = [layer.groups for layer in layers if layer.groups is not None]
    if len(groups_of_layers) != len(layers):
        return None
    numbers = groups_of_layers[0][0].numpy()
    weights = stack_tensors([sums for _, sums, _ in groups_of_layers])
    seen = stack_visible([seen for _, _, seen in groups_of_layers])
    return KeyGroups(numbers, weights, seen)


def group_keys_by_call(
    sites: Sequence[AttentionSite],
    find_sides: Callable[[Kind], MapTokens],
    segments: Sequence[Segment],
) -> dict[int, Tensor]:
    """Return the group of each key, (key,), by the number of the call whose keys these are.

    sites: all calls of a run. find_sides: a function that returns the tokens of the queries and of
    the keys of a kind of attention. segments: parts of the text, of which keys make groups. Calls
    whose keys are those of a target have none, and no call has any without segments.
    """
    if not segments:
        return {}
    numbers_of_kind: dict[Kind, Tensor] = {}
    for kind in dict.fromkeys(site.kind for site in sites):
        if kind != "decoder":
            _, keys = find_sides(kind)
            numbers_of_kind[kind] = torch.from_numpy(number_key_groups(keys, segments))
    return {
        number: numbers_of_kind[site.kind]
        for number, site in enumerate(sites)
        if site.kind in numbers_of_kind
    }


def measure_fidelity(results: Mapping[int, CallResult]) -> tuple[float | None, str | None]:
    """Return how far captured weights are from explaining the outputs of a model, and a warning.

    For each call of attention, the difference between its weights times its values and the model's
    own output was measured, as a share of that output's largest number. The largest difference is
    returned, or None if none was measured. The warning is None unless a difference is larger
    than rounding can explain.

    results: what was kept of each call, by its index in the run.
    """
    largest: float | None = None
    is_rounding = True
    for result in results.values():
        difference = result.difference
        if difference is None:
            continue
        largest = difference if largest is None else max(largest, difference)
        is_rounding = is_rounding and difference <= find_allowed_difference(result.dtype)
    if largest is None or is_rounding:
        return largest, None
    warning = (
        f"these weights explain the model's own output only to {largest:.1e} of its size: "
        "do not rely on them"
    )
    return largest, warning


def find_allowed_difference(dtype: torch.dtype) -> float:
    """Return the relative difference that the rounding of a type can explain."""
    rounding = ROUNDINGS * torch.finfo(dtype).eps
    return max(ACCURATE, rounding)


def make_position_tokens(count: int) -> tuple[Token, ...]:
    """Return tokens that are named by their positions, and have neither an id nor a text."""
    return tuple(Token(str(position), -1, 0, 0, False) for position in range(count))
