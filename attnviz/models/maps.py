"""From the calls of a model, as an observer saw them, to attention maps with their tokens."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import AttentionSite, CallResult, SurveyedCall
from attnviz.engine.values import UNPROJECTED
from attnviz.errors import ModelError
from attnviz.models.checks import require_memory
from attnviz.models.interventions import mask_cut_edges, require_edges, require_keys
from attnviz.record import AttentionMap, Edges, Kind, Statistics, Tiles, Token, Visible
from attnviz.request import Intervention, Request
from attnviz.selection import (
    MapTokens,
    note_windows,
    require_kinds,
    require_window_sides,
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
    """Give each call its layer, and return the calls as sites.

    Layers have the numbers that the modules tell, if these tell all layers of a kind apart. Else
    the calls of a kind are counted, part by part. A call that repeats the one before it belongs to
    the same layer.

    kinds: of each call. parts: the part of the model that each call belongs to; empty for one part.
    """
    parts = parts or [""] * len(calls)
    layers: dict[int, int] = {}
    for kind in dict.fromkeys(kinds):
        numbers = [
            number
            for number, call in enumerate(calls)
            if kinds[number] == kind and not call.repeated
        ]
        layers.update(number_kind(calls, numbers, parts))
    sites: list[AttentionSite] = []
    for number, call in enumerate(calls):
        if call.repeated:
            layers[number] = layers[number - 1]
        site = AttentionSite(
            kinds[number],
            layers[number],
            call.heads,
            (call.queries, call.keys),
            parts[number],
            call.repeated,
        )
        sites.append(site)
    return tuple(sites)


def number_kind(
    calls: Sequence[SurveyedCall],
    numbers: Sequence[int],
    parts: Sequence[str],
) -> dict[int, int]:
    """Return the layers of the calls of one kind, by the numbers of the calls.

    numbers: of the calls of that kind. parts: the part of the model that each call belongs to.
    """
    parts_in_order = list(dict.fromkeys(parts[number] for number in numbers))

    def find_part(number: int) -> int:
        return parts_in_order.index(parts[number])

    ordered = sorted(numbers, key=find_part)
    names = [calls[number].layer for number in ordered]
    are_named = None not in names and len(set(names)) == len(names)
    layers: dict[int, int] = {}
    for count, number in enumerate(ordered):
        name = calls[number].layer
        layers[number] = name if are_named and name is not None else count
    return layers


def describe_parts(sites: Sequence[AttentionSite]) -> str | None:
    """Return a note that names the part of the model behind each run of layers.

    None if no kind of attention has several parts.
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
    """Return a note that names the layers whose queries or keys are not the tokens of the text."""
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
    """Return the maps that a request names, each of layers of one part and one size.

    Raises UsageError if a kind, layer or head is not there.
    """
    choices: list[MapChoice] = []
    kinds_of_model = tuple(dict.fromkeys(site.kind for site in sites))
    for kind in require_kinds(request.kinds, kinds_of_model, request.preferred):
        sites_of_kind = [site for site in sites if site.kind == kind and not site.repeated]
        sites_of_kind.sort(key=lambda site: site.layer)
        heads_by_layer = {site.layer: range(site.heads) for site in sites_of_kind}
        groups = {site.layer: (site.part, site.size) for site in sites_of_kind}
        for layers, heads in resolve_blocks(request.layers, request.heads, heads_by_layer):
            runs = groupby(layers, key=groups.__getitem__)
            choices += [MapChoice(kind, tuple(run), heads) for _, run in runs]
    return tuple(choices)


def number_sites(sites: Sequence[AttentionSite]) -> dict[tuple[Kind, int], int]:
    """Return the number of each layer's call, by kind and layer."""
    return {
        (site.kind, site.layer): number for number, site in enumerate(sites) if not site.repeated
    }


def group_heads_by_call(
    choices: Sequence[MapChoice],
    sites: Sequence[AttentionSite],
) -> dict[int, tuple[int, ...]]:
    """Return the heads to look at for some maps, by the number of the call."""
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
    """Return what a batch of interventions changes in the calls of a run.

    The interventions of a batch are run at once and have one change of heads. pooled: True if
    layers read a shortened text. Raises UsageError if an edge is not there, and ModelError if edges
    are to be cut where layers read a shortened text. While the model runs, edges that leave a query
    without a key raise UsageError too.
    """
    sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
    for site in sites:
        queries, keys = find_sides(site.kind)
        sizes[site.kind, site.layer] = site.heads, len(queries), len(keys)
    require_edges(batch, sizes)
    cuts: dict[int, Tensor] = {}
    recent: list[Visible] = []
    for number, site in enumerate(sites):
        cut = mask_cut_edges(batch, site.kind, site.layer, sizes[site.kind, site.layer])
        if cut is None:
            continue
        if pooled:
            raise ModelError(
                "edges of this model cannot be cut: some of its layers read a shortened text",
            )
        # layers often lose the same edges: memory holds these once
        equal = [other for other in recent if np.array_equal(other, cut)]
        cut = equal[0] if equal else cut
        recent = [*recent[-1:], cut]
        cuts[number] = torch.from_numpy(cut)
    intervention = batch[0]
    layers = [site.layer if intervention.kind in (None, site.kind) else None for site in sites]
    return RunEdits(layers, cuts, intervention.change, check_keys)


def check_keys(visible: Tensor, cut: Tensor) -> None:
    """Raise UsageError if a cut of edges leaves a query without a key."""
    require_keys(visible.cpu().numpy(), cut.cpu().numpy())


def crop_sides(sides: MapTokens, request: Request) -> MapTokens:
    """Return the tokens of the window of a request. Raises UsageError for an empty window."""
    queries, keys = sides
    rows, columns = require_window_sides(request.rows, request.columns, sides)
    return queries[rows.start : rows.stop], keys[columns.start : columns.stop]


def describe_windows(
    choices: Sequence[MapChoice],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
) -> tuple[str, ...]:
    """Return notes of where the window of a request lies in each map; none without a window."""
    if not request.windowed:
        return ()
    return note_windows(request.rows, request.columns, map(find_sides, choices))


def require_weights_memory(
    choices: Sequence[MapChoice],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
) -> None:
    """Raise InputError if the weights that are asked for would not fit into memory.

    Raises UsageError for an empty window, whatever is to be kept.
    """
    head_counts: dict[tuple[int, int], int] = {}
    for choice in choices:
        queries, keys = crop_sides(find_sides(choice), request)
        size = len(queries), len(keys)
        count = len(choice.layers) * len(choice.heads)
        head_counts[size] = head_counts.get(size, 0) + count
    if request.keep == "weights":
        require_memory(head_counts)


def assemble_maps(
    choices: Sequence[MapChoice],
    sites: Sequence[AttentionSite],
    results: dict[int, CallResult],
    find_sides: Callable[[MapChoice], MapTokens],
    request: Request,
) -> tuple[AttentionMap, ...]:
    """Make maps of the results of calls, whose weights are used up.

    results: by the number of the call. Raises ModelError if there are numbers that no attention
    has, or if outputs met no matrix, of which norms are asked.
    """
    numbers = number_sites(sites)
    wanted = group_heads_by_call(choices, sites)
    if not results.keys() >= wanted.keys():
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
    """Make one map of the results of its layers, whose weights are used up.

    sides: the queries and keys of the map. Raises ValueError for numbers that no attention has.
    """
    rows, columns = require_window_sides(request.rows, request.columns, sides)
    queries, keys = crop_sides(sides, request)
    summary = {
        name: stack_tensors([layer.summary[name] for layer in layers]) for name in layers[0].summary
    }
    weights = take_weights(layers)
    tiles = None
    if request.keep == "tiles":
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
        query_places=tuple(rows),
        key_places=tuple(columns),
    )


def take_weights(layers: Sequence[CallResult]) -> Any:
    """Return the weights of layers as one array, and remove them from the results of the layers.

    So memory holds the weights of a long text once. None if they were not kept.
    """
    whole = None
    for i, layer in enumerate(layers):
        if layer.weights is None:
            return None
        weights = layer.weights.numpy()
        layer.weights = None
        if len(layers) == 1:
            return weights[None]
        if whole is None:
            whole = np.empty((len(layers), *weights.shape), weights.dtype)
        whole[i] = weights
    return whole


def stack_tensors(tensors: Sequence[Any]) -> Any:
    """Return the tensors of layers as one array; of one layer without a copy."""
    first = tensors[0].numpy()
    if len(tensors) == 1:
        return first[None]
    whole = np.empty((len(tensors), *first.shape), first.dtype)
    for i, tensor in enumerate(tensors):
        whole[i] = tensor.numpy()
    return whole


def stack_visible(masks: Sequence[Tensor]) -> Any:
    """Return what queries see in each layer, as one array; once if it is the same in all layers."""
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
    """Make statistics of a summary by name.

    Positions are compared only where queries and keys are the same tokens.
    """
    names = ("distance", "diagonal", "previous") if kind != "cross" else ()
    compared = {name: summary[name] for name in names if name in summary}
    received = summary["received"]
    return Statistics(summary["entropy"], received, received[..., 0], **compared)


def stack_edges(layers: Sequence[CallResult]) -> Edges | None:
    """Return the strongest edges of layers as arrays; None if they were not kept."""
    kept = [layer.edges for layer in layers if layer.edges is not None]
    if not kept:
        return None
    keys = stack_tensors([layer_keys for layer_keys, _ in kept])
    weights = stack_tensors([layer_weights for _, layer_weights in kept])
    return Edges(keys, weights)


def measure_fidelity(results: Mapping[int, CallResult]) -> tuple[float | None, str | None]:
    """Return the largest difference of captured layers from the model's outputs, and a warning.

    The difference is None where none was measured. The warning is None unless the difference is
    larger than rounding can explain.
    """
    worst: float | None = None
    is_explained = True
    for result in results.values():
        difference = result.difference
        if difference is None:
            continue
        worst = difference if worst is None else max(worst, difference)
        is_explained = is_explained and difference <= find_allowed_difference(result.dtype)
    if worst is None or is_explained:
        return worst, None
    warning = (
        f"these weights explain the model's own output only to {worst:.1e} of its size: "
        "do not rely on them"
    )
    return worst, warning


def find_allowed_difference(dtype: torch.dtype) -> float:
    """Return the relative difference that the rounding of a type can explain."""
    rounding = ROUNDINGS * torch.finfo(dtype).eps
    return max(ACCURATE, rounding)


def make_position_tokens(count: int) -> tuple[Token, ...]:
    """Return tokens that are named by their positions, and have no text."""
    return tuple(Token(str(position), -1, 0, 0, False) for position in range(count))
