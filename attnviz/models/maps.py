"""Calls of a model that were looked at -> attention maps with their tokens."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import Found, Seen, Site
from attnviz.engine.values import UNPROJECTED
from attnviz.errors import ModelError
from attnviz.models.checks import require_memory
from attnviz.models.interventions import hidden, require_edges, require_keys
from attnviz.record import AttentionMap, Edges, Kind, Statistics, Tiles, Token, Visible
from attnviz.request import Intervention, Request
from attnviz.selection import Sides, require_kinds, require_sides, resolve, window_notes

ACCURATE = 1e-3  # relative difference that is worth a warning
ROUNDINGS = 2  # of the type that was computed in, that explain a larger one


class Choice(NamedTuple):
    """A map that is to be made: layers of one kind, and the heads of each."""

    kind: Kind
    layers: tuple[int, ...]
    heads: tuple[int, ...]


def number_layers(
    seen: Sequence[Seen], kinds: Sequence[Kind], parts: Sequence[str] = ()
) -> tuple[Site, ...]:
    """Give each call its layer: as the modules say if they are told apart so, else by counting those of its kind.

    parts: to which part of the model each call belongs; the layers of a part are counted one after the other, before
    those of the next part. A call that repeats the one before it belongs to the same layer.
    """
    parts = parts or [""] * len(seen)
    layers: dict[int, int] = {}
    for kind in dict.fromkeys(kinds):
        numbers = [
            number
            for number, call in enumerate(seen)
            if kinds[number] == kind and not call.repeated
        ]
        order = list(dict.fromkeys(parts[number] for number in numbers))
        numbers.sort(key=lambda number, order=order: order.index(parts[number]))  # type: ignore[misc]
        names = [seen[number].layer for number in numbers]
        named = None not in names and len(set(names)) == len(names)
        for count, number in enumerate(numbers):
            layer = seen[number].layer
            layers[number] = layer if named and layer is not None else count
    for number, call in enumerate(seen):
        if call.repeated:
            layers[number] = layers[number - 1]
    return tuple(
        Site(
            kinds[number],
            layers[number],
            call.heads,
            (call.queries, call.keys),
            parts[number],
            call.repeated,
        )
        for number, call in enumerate(seen)
    )


def describe_parts(sites: Sequence[Site]) -> str | None:
    """Return a note that names the part of the model behind each run of layers, where a kind has several parts."""
    runs: list[str] = []
    for kind in dict.fromkeys(site.kind for site in sites):
        of_kind = sorted(
            (site.layer, site.part) for site in sites if site.kind == kind and not site.repeated
        )
        if len({part for _, part in of_kind}) < 2:
            continue
        for part, members in groupby(of_kind, key=lambda site: site[1]):
            layers = [layer for layer, _ in members]
            numbers = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
            runs.append(f"{'' if kind == 'self' else f'{kind} '}{numbers} {part}")
    return f"layers: {', '.join(runs)}" if runs else None


def describe_sizes(sites: Sequence[Site], tokens: int) -> str:
    """Return a note that names the layers whose queries or keys are not the tokens of the text."""
    others = [
        f"L{site.layer} ({site.size[0]} queries, {site.size[1]} keys)"
        for site in sites
        if {*site.size} != {tokens}
    ]
    return f"these layers have other lengths than the text, so that rows and columns are numbered: {', '.join(others)}"


def choose(sites: Sequence[Site], request: Request) -> tuple[Choice, ...]:
    """The maps that a request names. Raises UsageError if a kind, layer or head is not there."""
    chosen: list[Choice] = []
    for kind in require_kinds(
        request.kinds, tuple(dict.fromkeys(site.kind for site in sites)), request.preferred
    ):
        of_kind = [site for site in sites if site.kind == kind and not site.repeated]
        there = {site.layer: site for site in sorted(of_kind, key=lambda site: site.layer)}
        heads_there = {layer: range(site.heads) for layer, site in there.items()}
        for layers, heads in resolve(request.layers, request.heads, heads_there):
            alike = {layer: (there[layer].part, there[layer].size) for layer in layers}
            runs = groupby(layers, key=alike.__getitem__)
            chosen += [Choice(kind, tuple(run), heads) for _, run in runs]
    return tuple(chosen)


def numbers(sites: Sequence[Site]) -> dict[tuple[Kind, int], int]:
    """The number of each layer's call."""
    return {
        (site.kind, site.layer): number for number, site in enumerate(sites) if not site.repeated
    }


def wanted_heads(chosen: Sequence[Choice], sites: Sequence[Site]) -> dict[int, tuple[int, ...]]:
    """The heads to look at, by the number of the call."""
    number = numbers(sites)
    return {
        number[choice.kind, layer]: choice.heads for choice in chosen for layer in choice.layers
    }


def edits(
    batch: Sequence[Intervention],
    sites: Sequence[Site],
    tokens: Callable[[Kind], Sides],
    *,
    pooled: bool = False,
) -> Edits:
    """What interventions that are run at once, with one change of heads, mean for the calls of the run.

    Raises UsageError if an edge is not there, while it runs also for edges that leave a query without a key, and
    ModelError if edges are to be cut where layers read a shortened text.
    """
    sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
    for site in sites:
        queries, keys = tokens(site.kind)
        sizes[site.kind, site.layer] = site.heads, len(queries), len(keys)
    require_edges(batch, sizes)
    found: dict[int, Tensor] = {}
    made: list[Visible] = []
    for number, site in enumerate(sites):
        cut = hidden(batch, site.kind, site.layer, sizes[site.kind, site.layer])
        if cut is not None and pooled:
            raise ModelError(
                "edges of this model cannot be cut: some of its layers read a shortened text"
            )
        if cut is not None:  # layers often lose the same: memory holds that once
            cut = next((other for other in made if np.array_equal(other, cut)), cut)
            made = [*made[-1:], cut]
            found[number] = torch.from_numpy(cut)
    changed = batch[0].kind
    layers = [site.layer if changed in (None, site.kind) else None for site in sites]
    return Edits(layers, found, batch[0].change, check_keys)


def check_keys(visible: Tensor, cut: Tensor) -> None:
    """Raise UsageError if a cut of edges leaves a query without a key."""
    require_keys(visible.cpu().numpy(), cut.cpu().numpy())


def window(sides: Sides, request: Request) -> Sides:
    """The tokens that a request shows of all. Raises UsageError for an empty window."""
    rows, columns = require_sides(request.rows, request.columns, sides)
    return sides[0][rows.start : rows.stop], sides[1][columns.start : columns.stop]


def window_places(
    chosen: Sequence[Choice], tokens: Callable[[Choice], Sides], request: Request
) -> tuple[str, ...]:
    """Where the window lies in each map, if there is one."""
    if not request.windowed:
        return ()
    return window_notes(request.rows, request.columns, map(tokens, chosen))


def require_room(
    chosen: Sequence[Choice], tokens: Callable[[Choice], Sides], request: Request
) -> None:
    """Raise InputError if what is asked for would not fit into memory, UsageError for an empty window."""
    sizes: dict[tuple[int, int], int] = {}
    for choice in chosen:
        queries, keys = window(tokens(choice), request)
        size = len(queries), len(keys)
        sizes[size] = sizes.get(size, 0) + len(choice.layers) * len(choice.heads)
    if request.keep == "weights":
        require_memory(sizes)


def assemble(
    chosen: Sequence[Choice],
    sites: Sequence[Site],
    found: dict[int, Found],
    tokens: Callable[[Choice], Sides],
    request: Request,
) -> tuple[AttentionMap, ...]:
    """The maps of what was found, which is used up.

    Raises ModelError if there are numbers that no attention has, or if outputs met no matrix, of which norms are asked.
    """
    number = numbers(sites)
    if not found.keys() >= wanted_heads(chosen, sites).keys():
        raise ModelError(UNPROJECTED)
    try:
        return tuple(
            make_map(
                choice,
                [found[number[choice.kind, layer]] for layer in choice.layers],
                tokens,
                request,
            )
            for choice in chosen
        )
    except ValueError as error:
        raise ModelError(f"this model's attention cannot be used: {error}") from error


def make_map(
    choice: Choice, found: list[Found], tokens: Callable[[Choice], Sides], request: Request
) -> AttentionMap:
    """One map."""
    rows, columns = require_sides(request.rows, request.columns, tokens(choice))
    queries, keys = window(tokens(choice), request)
    summary = {name: stack([part.summary[name] for part in found]) for name in found[0].summary}
    kept = take_weights(found)
    tiles = None
    if request.keep == "tiles":
        tiles = Tiles(summary["mean"], summary["max"], *found[0].tile)
        kept = tiles.max if found[0].tile == (1, 1) else None
    return AttentionMap(
        choice.kind,
        choice.layers,
        ("sum",) if request.summed else choice.heads,
        queries,
        keys,
        kept,
        stack_visible([part.visible for part in found])
        if request.keep in ("weights", "tiles")
        else np.array(True),
        request.method,
        tiles,
        statistics(summary, choice.kind) if summary else None,
        edges(found),
        query_places=tuple(rows),
        key_places=tuple(columns),
    )


def take_weights(found: Sequence[Found]) -> Any:
    """The weights of the layers as one array, and no longer there: of a long text, memory holds them once."""
    whole = None
    for i, part in enumerate(found):
        if part.weights is None:
            return None
        given, part.weights = part.weights.numpy(), None
        if len(found) == 1:
            return given[None]
        whole = np.empty((len(found), *given.shape), given.dtype) if whole is None else whole
        whole[i] = given
    return whole


def stack(parts: list[Any]) -> Any:
    """Tensors of the layers as one array; of one layer without a copy."""
    if len(parts) == 1:
        return parts[0].numpy()[None]
    whole = np.empty((len(parts), *parts[0].shape), parts[0].numpy().dtype)
    for i, part in enumerate(parts):
        whole[i] = part.numpy()
    return whole


def stack_visible(parts: list[Tensor]) -> Any:
    """What is visible in each layer; once, if it is the same in all."""
    first = parts[0]
    if all(
        part is first or (part.shape == first.shape and bool((part == first).all()))
        for part in parts
    ):
        return first.numpy()[None]
    shape = np.broadcast_shapes(
        *(tuple(part.shape) for part in parts)
    )  # a layer without a mask has one row for all
    return np.stack([np.broadcast_to(part.numpy(), shape) for part in parts])


def statistics(summary: Mapping[str, Any], kind: Kind) -> Statistics:
    """Statistics by name; places are compared only where queries and keys are the same tokens."""
    places = ("distance", "diagonal", "previous") if kind != "cross" else ()
    compared = {name: summary[name] for name in places if name in summary}
    return Statistics(
        summary["entropy"], summary["received"], summary["received"][..., 0], **compared
    )


def edges(found: list[Found]) -> Edges | None:
    """The strongest edges, if they were kept."""
    kept = [part.edges for part in found if part.edges is not None]
    return Edges(*(stack([part[i] for part in kept]) for i in (0, 1))) if kept else None


def fidelity(found: Mapping[int, Found]) -> tuple[float | None, str | None]:
    """The largest difference of the captured layers, and a warning if it is more than rounding can explain."""
    measured = [part for part in found.values() if part.difference is not None]
    worst = max((part.difference for part in measured if part.difference is not None), default=None)
    if worst is None or all((part.difference or 0.0) <= explained(part.dtype) for part in measured):
        return worst, None
    return (
        worst,
        f"these weights explain the model's own output only to {worst:.1e} of its size: do not rely on them",
    )


def explained(dtype: torch.dtype) -> float:
    """Return the relative difference that the rounding of a type can explain."""
    return max(ACCURATE, ROUNDINGS * torch.finfo(dtype).eps)


def places(count: int) -> tuple[Token, ...]:
    """Tokens that are nothing but their places."""
    return tuple(Token(str(place), -1, 0, 0, False) for place in range(count))
