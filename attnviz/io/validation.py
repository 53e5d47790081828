"""What a saved capture says of itself, made a ``Capture`` again. It may come from anyone: all of it is checked.

Everything that is wrong is a ValueError of one line.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args

import numpy as np

from attnviz.io.untrusted import Array, cells, field, numbers
from attnviz.record import (
    KINDS,
    SCORES,
    AttentionMap,
    Capture,
    Edges,
    Floats,
    Segment,
    Statistics,
    Tiles,
    Token,
    Unit,
)

SCHEMA = "attnviz/1"
LARGEST_WEIGHT = 1e12  # beyond it, sums over a row could leave float32
LARGEST_NUMBER = 1 << 53  # integers up to this are the same in every reader of JSON
Arrays = dict[str, Array]


def read_capture(document: dict[str, Any], tensors: Mapping[str, Array] | None = None) -> Capture:
    """A capture from a JSON document or, with tensors, from the header of a safetensors file."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(
            f"its schema is not {SCHEMA}: it was not written by this version of attnviz"
        )
    maps = read_documents(document) if tensors is None else read_tensors(document, tensors)
    if not maps:
        raise ValueError("it holds no attention map")
    return Capture(
        field(document, "model", str),
        field(document, "text", str),
        maps,
        texts(field(document, "notes", list, NoneType) or [], "notes"),
        field(document, "pair", str, NoneType),
        field(document, "target", str, NoneType),
        read_share(document, "fidelity"),
        tuple(map(read_segment, dicts(document, "segments") if "segments" in document else [])),
        field(document, "fidelity_reference", str, NoneType),
        read_share(document, "output_change"),
    )


def read_share(document: dict[str, Any], name: str) -> float | None:
    """Return a difference as a share, by its name, or None. Raises ValueError unless it is a finite number from 0."""
    share: float | None = field(document, name, float, int, NoneType)
    if share is not None and not 0 <= share <= sys.float_info.max:
        raise ValueError(f"'{name}' must be a finite number from 0")
    return share


def read_documents(document: dict[str, Any]) -> tuple[AttentionMap, ...]:
    """The maps of a JSON document, arrays and tokens inside."""
    return tuple(
        read_map(head, read_tokens(head, "queries"), read_tokens(head, "keys"), nested_arrays(head))
        for head in dicts(document, "maps")
    )


def read_tensors(
    document: dict[str, Any], tensors: Mapping[str, Array]
) -> tuple[AttentionMap, ...]:
    """The maps of a safetensors file: tokens stand in a table of their own, arrays among the tensors."""
    lists: list[Any] = field(document, "tokens", list)
    table = [read_tokens({"tokens": tokens}, "tokens") for tokens in lists]

    def side(head: dict[str, Any], name: str) -> tuple[Token, ...]:
        number: int = field(head, name, int)
        if not 0 <= number < len(table):
            raise ValueError(f"{name!r} names list {number} of {len(table)} lists of tokens")
        return table[number]

    own: dict[str, Arrays] = {}
    for name, array in tensors.items():
        number, _, part = name.removeprefix("maps.").partition(".")
        own.setdefault(number, {})[part] = array
    return tuple(
        read_map(head, side(head, "queries"), side(head, "keys"), own.get(str(i), {}))
        for i, head in enumerate(dicts(document, "maps"))
    )


def dicts(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects."""
    found: list[dict[str, Any]] = field(document, name, list)
    if not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{name!r} must be a list of objects")
    return found


def read_tokens(document: dict[str, Any], name: str) -> tuple[Token, ...]:
    """A list of tokens."""
    return tuple(map(read_token, dicts(document, name)))


def read_token(entry: dict[str, Any]) -> Token:
    """A token; its place in a text must be one."""
    entry = {"segment": 0, **entry}
    number, start, end, segment = (
        field(entry, name, int) for name in ("id", "start", "end", "segment")
    )
    if max(map(abs, (number, end, segment))) > LARGEST_NUMBER:
        raise ValueError("a token has a number that is too large")
    if not 0 <= start <= end:
        raise ValueError(f"a token has no place in the text: {start} to {end}")
    return Token(
        field(entry, "text", str), number, start, end, field(entry, "special", bool), segment
    )


def read_segment(entry: dict[str, Any]) -> Segment:
    """A part of a text that has a name."""
    start, end = (field(entry, name, int) for name in ("start", "end"))
    if not 0 <= start <= end <= LARGEST_NUMBER:
        raise ValueError(f"a segment has no place in the text: {start} to {end}")
    return Segment(field(entry, "name", str), start, end)


def texts(values: list[Any], name: str) -> tuple[str, ...]:
    """A list of texts."""
    if not all(type(value) is str for value in values):
        raise ValueError(f"{name!r} must be a list of texts")
    return tuple(values)


def counts(values: list[Any], name: str) -> tuple[int, ...]:
    """A list of numbers that count from 0."""
    if not all(type(value) is int and 0 <= value < LARGEST_NUMBER for value in values):
        raise ValueError(f"{name!r} must be a list of whole numbers from 0")
    return tuple(values)


def head_names(values: list[Any]) -> tuple[int | str, ...]:
    """The heads: numbers, or the one name of a reduction."""
    return (
        texts(values, "heads")
        if len(values) == 1 and isinstance(values[0], str)
        else counts(values, "heads")
    )


def nested_arrays(head: dict[str, Any]) -> Arrays:
    """The arrays of a map in JSON, by the names that they have in a safetensors file."""
    found: Arrays = {}
    if "visible" in head:
        found["visible"] = cells(head["visible"], "visible", np.bool_, bool)
    if "weights" in head:
        found["weights"], found["visible"] = unmasked(head["weights"], "weights")
    if "tiles" in head:  # where both are kept, visible is of the tiles
        for name in ("mean", "max"):
            found[f"tiles.{name}"], found["visible"] = unmasked(
                field(head, "tiles", dict).get(name), name
            )
    for group in ("statistics", "edges"):
        nested = field(head, group, dict) if group in head else {}
        found |= {
            f"{group}.{name}": plain(value, name)
            for name, value in nested.items()
            if value is not None
        }
    return found


def unmasked(nested: Any, name: str) -> tuple[Floats, Array]:
    """Numbers, 0 where null, and where they are not null."""
    array = numbers(nested, name)
    visible = ~np.isnan(array)
    return np.where(visible, array, 0).astype(np.float32), visible


def plain(nested: Any, name: str) -> Array:
    """Numbers as they are stored: keys as integers."""
    return (
        cells(nested, name, np.int32, int)
        if name == "keys"
        else numbers(nested, name).astype(np.float32)
    )


def read_map(
    head: dict[str, Any], queries: tuple[Token, ...], keys: tuple[Token, ...], arrays: Arrays
) -> AttentionMap:
    """A map from its header and its arrays."""
    layers, heads = (
        counts(field(head, "layers", list), "layers"),
        head_names(field(head, "heads", list)),
    )
    if head.get("kind") not in KINDS:
        raise ValueError(f"the kind of a map must be one of {', '.join(KINDS)}")
    shape = len(layers), len(heads), len(queries), len(keys)
    if 0 in shape:
        raise ValueError("it holds an attention map without layers, heads, queries or keys")
    weights = arrays.get("weights")
    if weights is not None:
        require_sides(weights.shape, shape)
        read = finite if head.get("method") == SCORES else weights_named
        weights = read("weights", arrays, shape)
    if head.get("unit", "token") not in get_args(Unit):
        raise ValueError(f"the unit of a map must be one of {', '.join(get_args(Unit))}")
    tiles = read_tiles(head, arrays, shape)
    if tiles is not None and weights is not None and tiles.mean.shape != shape:
        raise ValueError("it holds a map with both weights and tiles of several cells")
    return AttentionMap(
        head["kind"],
        layers,
        heads,
        queries,
        keys,
        weights,
        read_visible(arrays, shape if tiles is None else tiles.mean.shape),
        field(head, "method", str),
        tiles,
        read_statistics(arrays, shape),
        read_edges(arrays, shape),
        query_places=read_places(head, "query_places"),
        key_places=read_places(head, "key_places"),
        unit=head.get("unit", "token"),
    )


def read_places(head: dict[str, Any], name: str) -> tuple[int, ...]:
    """Where the queries or the keys stand in the whole text; nothing if they are all of it."""
    return counts(field(head, name, list, NoneType) or [], name)


def require_sides(found: tuple[int, ...], named: tuple[int, ...]) -> None:
    """Raise ValueError unless weights have as many layers, heads, queries and keys as are named."""
    if len(found) != len(named):
        raise ValueError(f"its weights have {len(found)} dimensions, not (layer, head, query, key)")
    for noun, side, count in zip(("layers", "heads", "queries", "keys"), found, named, strict=True):
        if side != count:
            raise ValueError(f"its weights have {side} {noun}, but {count} are named")


def require_weights(weights: Array, name: str = "weights") -> None:
    """Raise ValueError unless weights of any shape are finite and not negative."""
    low, high = float(weights.min(initial=0)), float(weights.max(initial=0))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"its {name} are not all finite numbers (NaN or infinity)")
    if low < 0:
        raise ValueError(
            f"its {name} go down to {low:.3g}: are these scores? apply the softmax first"
        )
    if high > LARGEST_WEIGHT:
        raise ValueError(f"its {name} go up to {high:.3g}: that is no attention")


def weights_named(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """Weights of that shape, which must be there. Raises ValueError."""
    found = floats(name, arrays, shape)
    require_weights(found, name)
    return found


def floats(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """A float32 array of that shape, which must be there. Raises ValueError."""
    array = typed(name, arrays, np.float32)
    if array.shape != shape:
        raise ValueError(f"its {name} has the shape {array.shape}, not {shape}")
    return array


def finite(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """The same, without NaN or infinity. Raises ValueError."""
    array = floats(name, arrays, shape)
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} holds NaN or infinity")
    return array


def typed(name: str, arrays: Arrays, dtype: type[Any]) -> Array:
    """An array of that type, which must be there. Raises ValueError."""
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"it holds no {name} for one of its maps")
    if array.dtype != dtype:
        raise ValueError(f"its {name} is of type {array.dtype}, not {np.dtype(dtype)}")
    return array


def read_visible(arrays: Arrays, shape: tuple[int, ...]) -> Array:
    """What is visible; repeated along the axes that have one entry."""
    visible = typed("visible", arrays, np.bool_)
    if len(visible.shape) != 4 or any(
        side not in (1, count) for side, count in zip(visible.shape, shape, strict=True)
    ):
        raise ValueError(f"its visible has the shape {visible.shape}, which does not fit {shape}")
    return np.broadcast_to(visible, shape)


def read_tiles(head: dict[str, Any], arrays: Arrays, shape: tuple[int, ...]) -> Tiles | None:
    """The tiles of a map, if it has some."""
    if "tiles" not in head:
        return None
    height, width = (field(field(head, "tiles", dict), name, int) for name in ("height", "width"))
    if min(height, width) < 1:
        raise ValueError(f"its tiles are of {height} queries and {width} keys")
    tiled = *shape[:2], -(-shape[2] // height), -(-shape[3] // width)
    mean, largest = (weights_named(name, arrays, tiled) for name in ("tiles.mean", "tiles.max"))
    return Tiles(mean, largest, height, width)


def read_statistics(arrays: Arrays, shape: tuple[int, ...]) -> Statistics | None:
    """The statistics of a map, if it has some."""
    kept = [name for name in arrays if name.startswith("statistics.")]
    if not kept:
        return None
    *lead, n, m = shape
    shapes = {"entropy": (*lead, n), "received": (*lead, m)}
    needed = "entropy", "received", "sink"
    names = {item.name: f"statistics.{item.name}" for item in fields(Statistics)}
    return Statistics(
        **{
            name: finite(stored, arrays, shapes.get(name, tuple(lead)))
            for name, stored in names.items()
            if stored in kept or name in needed
        }
    )


def read_edges(arrays: Arrays, shape: tuple[int, ...]) -> Edges | None:
    """The strongest edges of a map, if it has some."""
    if "edges.keys" not in arrays:
        return None
    keys = typed("edges.keys", arrays, np.int32)
    if keys.ndim != 4 or keys.shape[:3] != shape[:3]:
        raise ValueError(f"its edges.keys has the shape {keys.shape}, not {(*shape[:3], 'rank')}")
    first, last = keys.min(initial=0), keys.max(initial=0)
    if not 0 <= first <= last < shape[3]:
        raise ValueError(f"its edges lead to keys {first} to {last} of {shape[3]}")
    return Edges(keys, weights_named("edges.weights", arrays, keys.shape))
