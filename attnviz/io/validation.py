"""Making a ``Capture`` again of what a file says of it.

The file may come from anyone: all is checked.

Everything that is wrong is a ValueError of one line.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args

import numpy as np

from attnviz.io.untrusted import (
    Array,
    read_field,
    read_nested_lists,
    read_number_lists,
)
from attnviz.record import (
    KINDS,
    SCORES,
    AttentionMap,
    Capture,
    Edges,
    Floats,
    KeyGroups,
    Segment,
    Statistics,
    Tiles,
    Token,
    Unit,
)

SCHEMA = "attnviz/1"
LARGEST_WEIGHT = 1e12  # beyond it, sums over a row could leave float32
LARGEST_STATISTIC = 1e24  # of such weights, over a million tokens
LARGEST_NUMBER = 1 << 53  # integers up to this are the same in every reader of JSON
AXES = "layers", "heads", "queries", "keys"
NEEDED_STATISTICS = "entropy", "received", "sink"
INTEGER_ARRAYS = "keys", "numbers", "seen"
Arrays = dict[str, Array]


def read_capture(document: dict[str, Any], tensors: Mapping[str, Array] | None = None) -> Capture:
    """Read a capture from a document of JSON that may come from anyone, checking all of it.

    tensors: those of a safetensors file, whose header the document is; None for a JSON file, where
    numbers stand in the document itself. Raises ValueError saying what is wrong.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        problem = f"its schema is not {SCHEMA}"
        raise ValueError(f"{problem}: it was not written by this version of attnviz")
    maps = read_maps(document, tensors)
    if not maps:
        raise ValueError("it holds no attention map")
    model = read_field(document, "model", str)
    text = read_field(document, "text", str)
    note_list = read_field(document, "notes", list, NoneType) or []
    notes = require_text_list(note_list, "notes")
    pair = read_field(document, "pair", str, NoneType)
    target = read_field(document, "target", str, NoneType)
    fidelity = read_share(document, "fidelity")
    segment_list = read_dicts(document, "segments") if "segments" in document else []
    segments = tuple(map(read_saved_segment, segment_list))
    fidelity_reference = read_field(document, "fidelity_reference", str, NoneType)
    output_change = read_share(document, "output_change")
    return Capture(
        model=model,
        text=text,
        maps=maps,
        notes=notes,
        pair=pair,
        target=target,
        fidelity=fidelity,
        segments=segments,
        fidelity_reference=fidelity_reference,
        output_change=output_change,
    )


def read_maps(
    document: dict[str, Any],
    tensors: Mapping[str, Array] | None,
) -> tuple[AttentionMap, ...]:
    """Read the maps of a JSON document, or of the header of a safetensors file with its tensors.

    tensors: the arrays of the maps, by name; None where they stand in the document itself. Raises
    ValueError saying what is wrong.
    """
    if tensors is None:
        return read_document_maps(document)
    return read_tensor_maps(document, tensors)


def read_share(document: dict[str, Any], name: str) -> float | None:
    """Read the share, or other number from 0, that stands in a document under a name, or None.

    Raises ValueError unless it is finite and not negative.
    """
    share: float | None = read_field(document, name, float, int, NoneType)
    if share is not None and not 0 <= share <= sys.float_info.max:
        raise ValueError(f"'{name}' must be a finite number from 0")
    return share


def read_document_maps(document: dict[str, Any]) -> tuple[AttentionMap, ...]:
    """Read the maps of a JSON document, in which arrays and tokens stand inside each map.

    Raises ValueError saying what is wrong.
    """
    maps = []
    for header in read_dicts(document, "maps"):
        queries = read_saved_tokens(header, "queries")
        keys = read_saved_tokens(header, "keys")
        arrays = read_nested_arrays(header)
        maps.append(read_map(header, queries, keys, arrays))
    return tuple(maps)


def read_tensor_maps(
    document: dict[str, Any],
    tensors: Mapping[str, Array],
) -> tuple[AttentionMap, ...]:
    """Read the maps of a safetensors file from its header and its tensors.

    document: the header. In it, lists of tokens stand in a table of their own. tensors: the arrays,
    those of map 0 named ``maps.0.weights`` and so on. Raises ValueError saying what is wrong.
    """
    lists: list[Any] = read_field(document, "tokens", list)
    table = [read_saved_tokens({"tokens": tokens}, "tokens") for tokens in lists]
    arrays_of_map: dict[str, Arrays] = {}
    for full_name, array in tensors.items():
        short_name = full_name.removeprefix("maps.")
        number, _, name = short_name.partition(".")
        arrays_of_map.setdefault(number, {})[name] = array
    maps = []
    for i, header in enumerate(read_dicts(document, "maps")):
        queries = look_up_tokens(table, header, "queries")
        keys = look_up_tokens(table, header, "keys")
        arrays = arrays_of_map.get(str(i), {})
        maps.append(read_map(header, queries, keys, arrays))
    return tuple(maps)


def look_up_tokens(
    table: list[tuple[Token, ...]],
    header: dict[str, Any],
    name: str,
) -> tuple[Token, ...]:
    """Look up the queries or keys of a map, which its header names by their number in a table.

    table: all lists of tokens of the file. name: ``queries`` or ``keys``. Raises ValueError for a
    number that is not in the table.
    """
    number: int = read_field(header, name, int)
    if not 0 <= number < len(table):
        count = len(table)
        raise ValueError(f"{name!r} names list {number} of {count} lists of tokens")
    return table[number]


def read_dicts(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Read the list of objects that stands in a document under a name.

    Raises ValueError if it is anything else.
    """
    items: list[dict[str, Any]] = read_field(document, name, list)
    if not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{name!r} must be a list of objects")
    return items


def read_saved_tokens(document: dict[str, Any], name: str) -> tuple[Token, ...]:
    """Read the list of tokens that stands in a document under a name."""
    return tuple(map(read_saved_token, read_dicts(document, name)))


def read_saved_token(entry: dict[str, Any]) -> Token:
    """Read a token from its entry in a document, checking that its place in a text can be one.

    Raises ValueError for a field that is missing or of another type, and for an impossible number.
    """
    entry = {"segment": 0, **entry}
    number = read_field(entry, "id", int)
    start = read_field(entry, "start", int)
    end = read_field(entry, "end", int)
    segment = read_field(entry, "segment", int)
    if max(abs(number), abs(end), abs(segment)) > LARGEST_NUMBER:
        raise ValueError("a token has a number that is too large")
    if not 0 <= start <= end:
        raise ValueError(f"a token has no place in the text: {start} to {end}")
    text = read_field(entry, "text", str)
    special = read_field(entry, "special", bool)
    return Token(text, number, start, end, special, segment)


def read_saved_segment(entry: dict[str, Any]) -> Segment:
    """Read a segment, a part of a text that has a name, from its entry in a document.

    Raises ValueError for a field that is missing or of another type, and for an impossible place.
    """
    start = read_field(entry, "start", int)
    end = read_field(entry, "end", int)
    if not 0 <= start <= end <= LARGEST_NUMBER:
        raise ValueError(f"a segment has no place in the text: {start} to {end}")
    return Segment(read_field(entry, "name", str), start, end)


def require_text_list(values: list[Any], name: str) -> tuple[str, ...]:
    """Return a list of texts. Raises ValueError for anything else in it."""
    if not all(type(value) is str for value in values):
        raise ValueError(f"{name!r} must be a list of texts")
    return tuple(values)


def require_counts(values: list[Any], name: str) -> tuple[int, ...]:
    """Return a list of numbers that count from 0. Raises ValueError for anything else in it."""
    if not all(map(is_count, values)):
        raise ValueError(f"{name!r} must be a list of whole numbers from 0")
    return tuple(values)


def is_count(value: Any) -> bool:
    """Return whether a value is a number that counts from 0; true and false are none."""
    return type(value) is int and 0 <= value < LARGEST_NUMBER


def require_head_names(values: list[Any]) -> tuple[int | str, ...]:
    """Return the names of heads: numbers, or the one name of a reduction. Raises ValueError."""
    is_reduction = len(values) == 1 and isinstance(values[0], str)
    return require_text_list(values, "heads") if is_reduction else require_counts(values, "heads")


def read_nested_arrays(header: dict[str, Any]) -> Arrays:
    """Read the arrays of a map from JSON, by the names that they have in a safetensors file.

    header: the entry of the map, in which they stand as nested lists. A number that is null is
    masked, so that weights and tiles have their mask with them. Raises ValueError for what are no
    such lists.
    """
    arrays: Arrays = {}
    if "visible" in header:
        arrays["visible"] = read_nested_lists(header["visible"], "visible", np.bool_, bool)
    if "weights" in header:
        arrays["weights"], arrays["visible"] = split_nulls(header["weights"], "weights")
    if "tiles" in header:  # where both are kept, visible is of the tiles
        nested_tiles = read_field(header, "tiles", dict)
        for name in ("mean", "max"):
            values, visible = split_nulls(nested_tiles.get(name), name)
            arrays[f"tiles.{name}"] = values
            arrays["visible"] = visible
    for group in ("statistics", "edges", "groups"):
        nested = read_field(header, group, dict) if group in header else {}
        for name, value in nested.items():
            if value is not None:
                arrays[f"{group}.{name}"] = read_nested_numbers(value, name)
    return arrays


def split_nulls(nested: Any, name: str) -> tuple[Floats, Array]:
    """Read nested lists of numbers as an array, 0 where null, and a mask, False where null.

    name: what the numbers are called in errors. Raises ValueError for what are no numbers.
    """
    array = read_number_lists(nested, name)
    # Null was read as NaN.
    visible = ~np.isnan(array)
    values = np.where(visible, array, 0)
    return values.astype(np.float32), visible


def read_nested_numbers(nested: Any, name: str) -> Array:
    """Read nested lists of numbers in the type that is stored: int32 or float32, by the name."""
    if name in INTEGER_ARRAYS:
        return read_nested_lists(nested, name, np.int32, int)
    return read_number_lists(nested, name).astype(np.float32)


def read_map(
    header: dict[str, Any],
    queries: tuple[Token, ...],
    keys: tuple[Token, ...],
    arrays: Arrays,
) -> AttentionMap:
    """Make an attention map from what a file says of it, checking all of it.

    header: its layers, heads, kind, method and so on. queries, keys: its tokens. arrays: its
    weights, mask, tiles, statistics and edges, by name. Raises ValueError saying what is wrong.
    """
    layers = require_counts(read_field(header, "layers", list), "layers")
    heads = require_head_names(read_field(header, "heads", list))
    if header.get("kind") not in KINDS:
        raise ValueError(f"the kind of a map must be one of {', '.join(KINDS)}")
    axes = layers, heads, queries, keys
    shape = tuple(map(len, axes))
    if 0 in shape:
        raise ValueError("it holds an attention map without layers, heads, queries or keys")
    weights = read_map_weights(header, arrays, shape)
    unit = header.get("unit", "token")
    if unit not in get_args(Unit):
        names = ", ".join(get_args(Unit))
        raise ValueError(f"the unit of a map must be one of {names}")
    tiles = read_tiles(header, arrays, shape)
    if tiles is not None and weights is not None and tiles.mean.shape != shape:
        raise ValueError("it holds a map with both weights and tiles of several cells")
    visible_shape = shape if tiles is None else tiles.mean.shape
    visible = read_mask(arrays, visible_shape)
    method = read_field(header, "method", str)
    statistics = read_saved_statistics(arrays, shape)
    edges = read_edges(arrays, shape)
    groups = read_groups(arrays, shape)
    query_positions = read_positions(header, "query_places")
    key_positions = read_positions(header, "key_places")
    kind = header["kind"]
    return AttentionMap(
        kind=kind,
        layers=layers,
        heads=heads,
        queries=queries,
        keys=keys,
        weights=weights,
        visible=visible,
        method=method,
        tiles=tiles,
        statistics=statistics,
        edges=edges,
        groups=groups,
        query_places=query_positions,
        key_places=key_positions,
        unit=unit,
    )


def read_map_weights(
    header: dict[str, Any],
    arrays: Arrays,
    shape: tuple[int, ...],
) -> Floats | None:
    """Return the weights of a map, or its scores from before the softmax; None if it has none.

    header: says by its method which they are. arrays: those of the map, by name. shape: (layer,
    head, query, key). Raises ValueError for another shape, and for numbers that cannot be such.
    """
    weights = arrays.get("weights")
    if weights is None:
        return None
    require_named_sides(weights.shape, shape)
    if header.get("method") == SCORES:
        return read_finite_array("weights", arrays, shape)
    return read_weights_array("weights", arrays, shape)


def read_positions(header: dict[str, Any], name: str) -> tuple[int, ...]:
    """Read the positions of queries or keys in the whole text; none if they are all of it."""
    positions = read_field(header, name, list, NoneType) or []
    return require_counts(positions, name)


def require_named_sides(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless weights have as many layers, heads, queries and keys as are named.

    shape: that of the weights. expected: how many of each are named.
    """
    if len(shape) != len(expected):
        raise ValueError(f"its weights have {len(shape)} dimensions, not (layer, head, query, key)")
    for noun, side, count in zip(AXES, shape, expected, strict=True):
        if side != count:
            raise ValueError(f"its weights have {side} {noun}, but {count} are named")


def require_plain_weights(weights: Array, name: str = "weights") -> None:
    """Raise ValueError unless weights of any shape are finite, not negative and not too large.

    name: what they are called in the error.
    """
    low = float(weights.min(initial=0))
    high = float(weights.max(initial=0))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"its {name} are not all finite numbers (NaN or infinity)")
    if low < 0:
        advice = "are these scores? apply the softmax first"
        raise ValueError(f"its {name} go down to {low:.3g}: {advice}")
    if high > LARGEST_WEIGHT:
        raise ValueError(f"its {name} go up to {high:.3g}: that is no attention")


def read_weights_array(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """Return the weights of a name and a shape, which must be there. Raises ValueError."""
    weights = read_float_array(name, arrays, shape)
    require_plain_weights(weights, name)
    return weights


def read_float_array(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """Return the float32 array of a name and a shape, which must be among the arrays.

    Raises ValueError if it is not there, or of another type or shape.
    """
    array = read_typed_array(name, arrays, np.float32)
    if array.shape != shape:
        raise ValueError(f"its {name} has the shape {array.shape}, not {shape}")
    return array


def read_finite_array(name: str, arrays: Arrays, shape: tuple[int, ...]) -> Floats:
    """Return the float32 array of a name and a shape, without NaN or infinity.

    Raises ValueError if it is not there, of another type or shape, or has such numbers.
    """
    array = read_float_array(name, arrays, shape)
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} holds NaN or infinity")
    return array


def read_typed_array(name: str, arrays: Arrays, dtype: type[Any]) -> Array:
    """Return the array of a name and a type, which must be among the arrays.

    Raises ValueError if it is not there, or of another type.
    """
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"it holds no {name} for one of its maps")
    if array.dtype != dtype:
        expected = np.dtype(dtype)
        raise ValueError(f"its {name} is of type {array.dtype}, not {expected}")
    return array


def fits_shape(sides: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether an array with these sides can be repeated to a shape of as many axes."""
    return all(side in (1, count) for side, count in zip(sides, shape, strict=True))


def read_mask(arrays: Arrays, shape: tuple[int, ...]) -> Array:
    """Return the mask of a map, repeated along the axes that have one entry.

    shape: that of the map's weights or tiles, (layer, head, query, key). Raises ValueError if the
    mask is not there, or does not fit.
    """
    visible = read_typed_array("visible", arrays, np.bool_)
    if visible.ndim != 4 or not fits_shape(visible.shape, shape):
        raise ValueError(f"its visible has the shape {visible.shape}, which does not fit {shape}")
    return np.broadcast_to(visible, shape)


def read_tiles(header: dict[str, Any], arrays: Arrays, shape: tuple[int, ...]) -> Tiles | None:
    """Read the tiles of a map, that is, weights pooled over blocks of cells; None if it has none.

    header: has the height and the width of a tile, in queries and keys. arrays: has means and
    maxima. shape: that of the map, (layer, head, query, key). Raises ValueError if they do not fit
    each other.
    """
    if "tiles" not in header:
        return None
    sizes = read_field(header, "tiles", dict)
    height = read_field(sizes, "height", int)
    width = read_field(sizes, "width", int)
    if min(height, width) < 1:
        raise ValueError(f"its tiles are of {height} queries and {width} keys")
    layer_count, head_count, query_count, key_count = shape
    rows = count_tiles_along(query_count, height)
    columns = count_tiles_along(key_count, width)
    tiled_shape = layer_count, head_count, rows, columns
    mean = read_weights_array("tiles.mean", arrays, tiled_shape)
    largest = read_weights_array("tiles.max", arrays, tiled_shape)
    return Tiles(mean, largest, height, width)


def count_tiles_along(count: int, size: int) -> int:
    """Count the tiles of a size along an axis; the last may have fewer cells."""
    whole, rest = divmod(count, size)  # a hostile size may be too large for a float
    return whole + 1 if rest else whole


def read_saved_statistics(arrays: Arrays, shape: tuple[int, ...]) -> Statistics | None:
    """Read the statistics of a map, such as the entropy of each query; None if it has none.

    shape: that of the map, (layer, head, query, key), which says what shape each of them has.
    Raises ValueError if one that is needed is not there, or one is of another shape or not finite.
    """
    prefix = "statistics."
    if not any(name.startswith(prefix) for name in arrays):
        return None
    *lead, query_count, key_count = shape
    shapes = {"entropy": (*lead, query_count), "received": (*lead, key_count)}
    statistics: dict[str, Floats] = {}
    for field in fields(Statistics):
        stored_name = prefix + field.name
        if stored_name in arrays or field.name in NEEDED_STATISTICS:
            # All but the entropy and what keys received are one number for each head.
            field_shape = shapes.get(field.name, tuple(lead))
            array = read_finite_array(stored_name, arrays, field_shape)
            largest = float(np.abs(array).max(initial=0))
            if largest > LARGEST_STATISTIC:
                raise ValueError(
                    f"its {stored_name} goes up to {largest:.3g}: that is no attention"
                )
            statistics[field.name] = array
    return Statistics(**statistics)


def read_edges(arrays: Arrays, shape: tuple[int, ...]) -> Edges | None:
    """Read the strongest edges of each query of a map; None if it has none.

    The file has for each query the keys, and the weights that it gives them, both (layer, head,
    query, rank). shape: that of the map, (layer, head, query, key). Raises ValueError for arrays
    that do not fit the map.
    """
    if "edges.keys" not in arrays:
        return None
    keys = read_typed_array("edges.keys", arrays, np.int32)
    lead, key_count = shape[:3], shape[3]
    if keys.ndim != 4 or keys.shape[:3] != lead:
        expected = (*lead, "rank")
        raise ValueError(f"its edges.keys has the shape {keys.shape}, not {expected}")
    first = keys.min(initial=0)
    last = keys.max(initial=0)
    if not 0 <= first <= last < key_count:
        raise ValueError(f"its edges lead to keys {first} to {last} of {key_count}")
    weights = read_weights_array("edges.weights", arrays, keys.shape)
    return Edges(keys, weights)


def read_groups(arrays: Arrays, shape: tuple[int, ...]) -> KeyGroups | None:
    """Read what the queries of a map give to groups of keys; None if it has none.

    shape: that of the map, (layer, head, query, key). Raises ValueError for arrays that do not fit
    the map.
    """
    if "groups.numbers" not in arrays:
        return None
    numbers = read_typed_array("groups.numbers", arrays, np.int32)
    lead, key_count = shape[:3], shape[3]
    if numbers.shape != (key_count,):
        raise ValueError(f"its groups.numbers has the shape {numbers.shape}, not {(key_count,)}")
    first, last = int(numbers.min()), int(numbers.max())
    if not 0 <= first <= last < key_count:
        raise ValueError(f"its keys are in groups {first} to {last} of {key_count}")
    group_shape = *lead, last + 1
    weights = read_weights_array("groups.weights", arrays, group_shape)
    seen = read_typed_array("groups.seen", arrays, np.int32)
    if seen.ndim != 4 or not fits_shape(seen.shape, group_shape):
        raise ValueError(f"its groups.seen has the shape {seen.shape}, not {group_shape}")
    if seen.min() < 0:
        raise ValueError("its groups.seen has numbers below 0")
    if len(np.unique(numbers)) != last + 1:
        raise ValueError("its groups.numbers leaves groups without a key")
    return KeyGroups(numbers, weights, seen)
