"""A capture on disk: ``.attn`` (safetensors with a JSON header), ``.json`` and ``.npz``.

The JSON is of schema attnviz/1. None of the formats needs torch, and none can run code.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from attnviz.analysis.numerics import collapse_repeats
from attnviz.analysis.statistics import measure_statistics, split_rows
from attnviz.errors import InputError, UsageError
from attnviz.io import foreign_arrays, untrusted
from attnviz.io.files import describe_os_error, require_output_path, write_file_parts
from attnviz.io.tensor_file import format_tensors
from attnviz.io.validation import (
    SCHEMA,
    read_capture,
    read_map,
    require_text_list,
)
from attnviz.methods import METHODS, holds_other_numbers, note_methods
from attnviz.record import (
    AttentionMap,
    Capture,
    Edges,
    KeyGroups,
    Statistics,
    Tiles,
    Token,
    Visible,
    Weights,
)

NPZ_ARRAYS = "weights", "visible"
NPZ_LABELS = (
    "queries",
    "keys",
    "layers",
    "heads",
    "query_places",
    "key_places",
    "kind",
    "method",
    "unit",
)
NPZ_NAMES = (*NPZ_ARRAYS, *NPZ_LABELS)
HEADER = "attnviz"  # the header's name in the metadata of a safetensors file
STORED_TYPES = {"b": np.bool_, "i": np.int32, "f": np.float32}
CELL_BYTES = 64  # in memory for a cell of the head that is measured
LONGEST_REASON = 300  # characters of an error that is said of a file


def save(capture: Capture, path: str | Path, *, force: bool = False) -> None:
    """Write a capture into a file, whole or not at all.

    The suffix of the path says the format: ``.attn``, ``.json`` or ``.npz``. force: replace a file
    that exists. Raises UsageError for another suffix, OutputError if the file exists or cannot be
    written.
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        suffixes = ", ".join(WRITERS)
        problem = f"cannot tell the format of {path}"
        raise UsageError(f"{problem}: a capture is saved as one of {suffixes}")
    require_output_path(path, force)
    write_file_parts(path, write(capture))


def load(path: str | Path) -> Capture:
    """Read a capture that was saved, or attention that another program wrote as arrays.

    ``attnviz.io.foreign_arrays`` says how such arrays are laid out. Raises UsageError for a suffix
    that is not known, InputError if the file cannot be read or is not sound.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        suffixes = ", ".join(READERS)
        problem = f"cannot tell the format of {path}"
        raise UsageError(f"{problem}: a capture is read from one of {suffixes}")
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        with np.errstate(all="ignore"):  # what is wrong with numbers is said in words
            capture = read(path)
        require_room_for_heads(capture)
        return capture
    except OSError as error:
        problem = describe_os_error(error)
        raise InputError(f"cannot read {path}: {problem}") from error
    except MemoryError as error:
        raise InputError(f"cannot read {path}: it does not fit into memory") from error
    except ValueError as error:
        message = " ".join(str(error).split())
        problem = message[:LONGEST_REASON]
        raise InputError(f"cannot use {path}: {problem}") from error


def require_room_for_heads(capture: Capture) -> None:
    """Raise ValueError if the largest head of a capture is more than can be measured in memory."""
    cells = [
        len(each.queries) * len(each.keys) for each in capture.maps if each.weights is not None
    ]
    untrusted.require_free_memory(max(cells, default=0) * CELL_BYTES)


def read_safetensors_file(path: Path) -> Capture:
    """Read a capture from safetensors, written by attnviz or by another program.

    Raises ValueError saying what is wrong.
    """
    metadata = untrusted.read_metadata(path)
    if HEADER in metadata:
        header = untrusted.parse_json(metadata[HEADER])
        return read_capture(header, untrusted.load_tensors(path))
    if path.suffix.lower() == ".attn":
        advice = "attention from elsewhere is read as .safetensors"
        raise ValueError(f"it has no header of attnviz; {advice}")
    return foreign_arrays.read_foreign_safetensors(path, metadata)


def read_json_file(path: Path) -> Capture:
    """Read a capture from JSON, written by attnviz or by another program.

    Raises ValueError saying what is wrong.
    """
    document = untrusted.read_json(path)
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ValueError(f"it must be an object with weights, not a {kind}")
    if "schema" in document:
        return read_capture(document)
    return foreign_arrays.read_foreign_json(path.name, document)


def format_attn(capture: Capture) -> Iterator[memoryview]:
    """Write a capture as safetensors, in parts of a file.

    The tensors are named ``maps.0.weights`` and so on. A header holds the rest, in which each list
    of tokens stands only once. Raises OutputError for a header that could not be read again.
    """
    # Each list of tokens, with its number in the file.
    token_lists: dict[tuple[Token, ...], int] = {}
    map_headers = []
    tensors: dict[str, Any] = {}
    for number, each in enumerate(capture.maps):
        queries = token_lists.setdefault(each.queries, len(token_lists))
        keys = token_lists.setdefault(each.keys, len(token_lists))
        map_headers.append(make_map_header(each, queries, keys))
        for name, array in list_stored_arrays(each).items():
            tensors[f"maps.{number}.{name}"] = array
    header = make_capture_header(capture)
    header["tokens"] = list(map(describe_plain_tokens, token_lists))
    header["maps"] = map_headers
    header_text = json.dumps(header, allow_nan=False)
    return format_tensors(tensors, {HEADER: header_text})


def list_stored_arrays(attention_map: AttentionMap) -> dict[str, Any]:
    """Return the arrays of a map by their names in a file, in the types that are stored.

    They are the mask, and what there is of weights, tiles, statistics, edges and groups of keys. An
    array is copied only if it is of another type.
    """
    arrays: dict[str, Any] = {"visible": collapse_mask(attention_map.visible)}
    if attention_map.weights is not None:
        arrays["weights"] = attention_map.weights
    for group in ("tiles", "statistics", "edges", "groups"):
        arrays_of_group = getattr(attention_map, group)
        fields_of_group = fields(arrays_of_group) if arrays_of_group else ()
        for field in fields_of_group:
            value = getattr(arrays_of_group, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{group}.{field.name}"] = value
    stored: dict[str, Any] = {}
    for name, array in arrays.items():
        stored_type = STORED_TYPES[array.dtype.kind]
        stored[name] = array.astype(stored_type, copy=False)
    return stored


def collapse_mask(visible: Visible) -> Visible:
    """Return a mask that is 1 long along all axes along which it only repeats itself."""
    return collapse_repeats(visible, visible.ndim)


def make_capture_header(capture: Capture) -> dict[str, Any]:
    """Make the header of a capture, which says all of it but its maps, for a file."""
    header: dict[str, Any] = {"schema": SCHEMA, "model": capture.model}
    for name in ("text", "pair", "target"):
        text = getattr(capture, name)
        if text is not None:
            header[name] = text
    header["notes"] = capture.notes
    header["fidelity"] = capture.fidelity
    header["fidelity_reference"] = capture.fidelity_reference
    header["output_change"] = capture.output_change
    if capture.segments:
        header["segments"] = [segment._asdict() for segment in capture.segments]
    return header


def make_map_header(attention_map: AttentionMap, queries: Any, keys: Any) -> dict[str, Any]:
    """Make the header of a map, which says all of it but its arrays, for a file.

    queries, keys: the tokens as they stand in the file, or the numbers of lists of tokens.
    """
    header = {
        "kind": attention_map.kind,
        "layers": attention_map.layers,
        "heads": attention_map.heads,
        "method": attention_map.method,
        "units": describe_units(attention_map),
        "queries": queries,
        "keys": keys,
    }
    for name in ("query_places", "key_places"):
        positions = getattr(attention_map, name)
        # Positions that count from 0 say nothing: the map shows the whole text.
        if positions != tuple(range(len(positions))):
            header[name] = positions
    if attention_map.unit != "token":
        header["unit"] = attention_map.unit
    tiles = attention_map.tiles
    if tiles:
        header["tiles"] = {"height": tiles.height, "width": tiles.width}
    return header


def describe_units(attention_map: AttentionMap) -> str:
    """Return the unit of the numbers of a map, in words."""
    method = attention_map.method
    return METHODS[method].units if method in METHODS else "as given"


def describe_plain_tokens(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Describe tokens for JSON by their fields.

    The segment is left out where it is 0, as in all but the second text of a pair.
    """
    described = []
    for token in tokens:
        entry = token._asdict()
        if not token.segment:
            del entry["segment"]
        described.append(entry)
    return described


def describe_tokens(tokens: Sequence[Token], positions: Sequence[int]) -> list[dict[str, Any]]:
    """Describe tokens for JSON, each with its position in the whole text under ``place``."""
    described = []
    for position, token in zip(positions, describe_plain_tokens(tokens), strict=True):
        described.append({"place": position, **token})
    return described


def describe_capture(capture: Capture) -> dict[str, Any]:
    """Describe a capture for the document of a result: its model, text, unit, method and notes.

    Its numbers are left out. The unit, tokens or words, and the method, such as attention or norm,
    are those of the first map.
    """
    first = capture.maps[0]
    return {
        "model": capture.model,
        "text": capture.text,
        "unit": first.unit,
        "method": first.method,
        "notes": list(capture.notes),
    }


def format_json(capture: Capture) -> str:
    """Write a capture as one line of plain ASCII: every other character of a token is escaped.

    A masked cell is null. Statistics are left out where the weights are there to compute them from.
    """
    return "".join(format_json_parts(capture))


def format_json_parts(capture: Capture) -> Iterator[str]:
    """Yield the JSON of a capture in parts, so that memory holds that of one matrix at a time."""
    header = json.dumps(make_capture_header(capture), allow_nan=False)
    # The maps are put in before the last brace of the header.
    yield f'{header[:-1]}, "maps": ['
    for number, attention_map in enumerate(capture.maps):
        if number:
            yield ", "
        yield from format_map_json(attention_map)
    yield "]}"


def make_capture_document(capture: Capture) -> dict[str, Any]:
    """Return a capture as the document that ``format_json`` writes, in plain lists and numbers."""
    document: dict[str, Any] = json.loads(format_json(capture))
    return document


def format_map_json(attention_map: AttentionMap) -> Iterator[str]:
    """Yield the JSON of a map in parts: its header, and its weights, tiles, statistics or edges.

    Weights are nested lists [layer][head][query][key], null where masked. Statistics are left out
    where there are weights.
    """
    weights = attention_map.weights
    tiles = attention_map.tiles
    visible = attention_map.visible
    queries = describe_plain_tokens(attention_map.queries)
    keys = describe_plain_tokens(attention_map.keys)
    header = make_map_header(attention_map, queries, keys)
    header.pop("tiles", None)
    yield json.dumps(header)[:-1]
    if weights is not None:
        yield ', "weights": '
        yield from format_matrices_json(weights, visible)
    entries = [""]
    if tiles is not None:
        entries.append(f'"tiles": {format_tiles_json(tiles, visible)}')
    if weights is None and tiles is None:  # no cell that could be null
        mask = collapse_mask(visible)
        mask_text = json.dumps(mask.tolist())
        entries.append(f'"visible": {mask_text}')
    if attention_map.statistics is not None and weights is None:
        entries.append(f'"statistics": {format_arrays_json(attention_map.statistics)}')
    if attention_map.edges is not None:
        entries.append(f'"edges": {format_arrays_json(attention_map.edges)}')
    if attention_map.groups is not None:
        entries.append(f'"groups": {format_arrays_json(attention_map.groups)}')
    yield ", ".join(entries)
    yield "}"


def format_tiles_json(tiles: Tiles, visible: Visible) -> str:
    """Write tiles, that is, weights pooled over blocks of cells, as JSON.

    visible: (layer, head, row, column), True where a cell of the tile is visible. A tile in which
    nothing is visible is null.
    """
    sizes = f'"height": {tiles.height}, "width": {tiles.width}'
    mean = "".join(format_matrices_json(tiles.mean, visible))
    largest = "".join(format_matrices_json(tiles.max, visible))
    return f'{{{sizes}, "mean": {mean}, "max": {largest}}}'


def format_arrays_json(arrays: Statistics | Edges | KeyGroups) -> str:
    """Write statistics, edges or groups of keys as JSON, by the names of their fields.

    An array that was not made is null, and so is a number that is not finite.
    """
    content = {}
    for field in fields(arrays):
        name = field.name
        array = getattr(arrays, name)
        content[name] = None if array is None else list_shortest_decimals(array)
    return json.dumps(content, allow_nan=False)


def list_shortest_decimals(array: Any) -> Any:
    """Return an array as nested lists of the shortest decimals that give the same float32 back.

    They are 0.1, say, not 0.10000000149011612. Integers stay as they are; None stands for NaN and
    infinity.
    """
    if array.ndim > 2:
        return [list_shortest_decimals(each) for each in array]  # as text, a number takes 128 bytes
    if array.dtype.kind == "i":
        return array.tolist()
    decimals = array.astype(str).astype(np.float64)
    is_defined = np.isfinite(decimals)
    return np.where(is_defined, decimals.astype(object), np.array(None)).tolist()


def format_matrices_json(array: Weights, visible: Visible) -> Iterator[str]:
    """Yield the JSON of numbers (layer, head, query, key) in parts, null where they are masked.

    It is done a matrix at a time: nested lists of a whole capture would take a hundred bytes a
    cell.
    """
    opening = "[["
    # Both are (head, query, key).
    for numbers, masks in zip(array, visible, strict=True):
        for matrix, mask in zip(numbers, masks, strict=True):
            yield f"{opening}{format_matrix_json(matrix, mask)}"
            opening = ", "
        opening = "], ["
    yield "]]"


def format_matrix_json(weights: Weights, visible: Visible) -> str:
    """Write one matrix (query, key) as JSON, null where it is masked.

    Numbers are the shortest decimals that give the same float32 back.
    """
    blocks = []
    for rows in split_rows(weights):
        shortest = weights[rows].astype(str).astype(np.float64)  # as text, a number takes 128 bytes
        numbers = shortest.astype(object)
        cells = np.where(visible[rows], numbers, np.array(None))
        block = json.dumps(cells.tolist(), allow_nan=False)
        blocks.append(block[1:-1])  # without the brackets around its rows
    return f"[{', '.join(blocks)}]"


def read_npz_file(path: Path) -> Capture:
    """Read a capture from a .npz, written by attnviz or by another program.

    One that names its method is read as ``format_npz`` wrote it. Its tokens have no ids, and its
    text is the tokens joined by spaces. Raises ValueError saying what is wrong.
    """
    method = untrusted.read_npz(path, ("method",)).get("method")
    if method is None or str(method) not in METHODS:
        return foreign_arrays.read_foreign_npz(path)
    arrays = untrusted.read_npz(path, NPZ_NAMES)
    missing = set(NPZ_NAMES) - set(arrays)
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"it holds no {names}, which a .npz of attnviz has")
    header: dict[str, Any] = {name: arrays[name].tolist() for name in NPZ_LABELS}
    query_names: list[Any] = untrusted.read_field(header, "queries", list)
    queries = foreign_arrays.make_named_tokens(require_text_list(query_names, "queries"))
    key_names: list[Any] = untrusted.read_field(header, "keys", list)
    keys = foreign_arrays.make_named_tokens(require_text_list(key_names, "keys"))
    matrices = {name: arrays[name] for name in NPZ_ARRAYS}
    attention_map = read_map(header, queries, keys, matrices)
    weights, visible = attention_map.weights, attention_map.visible
    if weights is not None and not holds_other_numbers(attention_map.method):
        is_square = attention_map.kind != "cross" and queries == keys
        statistics = measure_statistics(weights, visible, square=is_square)
        attention_map = replace(attention_map, statistics=statistics)
    text = " ".join(key_names)
    return note_methods(Capture(path.name, text, (attention_map,)))


def format_npz(capture: Capture) -> tuple[bytes]:
    """Write the one map of a capture with its weights as .npz, for NumPy; it is one part of a file.

    Raises UsageError if the capture has several maps, or no weights.
    """
    first = capture.maps[0] if len(capture.maps) == 1 else None
    if first is None or first.weights is None:
        problem = "a .npz holds the weights of one map, which this capture is not"
        raise UsageError(f"{problem}: save it as .attn or .json")
    file = BytesIO()
    query_texts = [token.text for token in first.queries]
    key_texts = [token.text for token in first.keys]
    np.savez(
        file,
        weights=first.weights,
        visible=collapse_mask(first.visible),
        queries=np.array(query_texts, dtype=str),
        keys=np.array(key_texts, dtype=str),
        layers=first.layers,
        heads=first.heads,
        query_places=first.query_places,
        key_places=first.key_places,
        kind=first.kind,
        method=first.method,
        unit=first.unit,
        units=describe_units(first),
    )
    return (file.getvalue(),)


def format_json_file(capture: Capture) -> Iterator[bytes]:
    """Write a capture as the content of a JSON file, in parts."""
    for part in format_json_parts(capture):
        yield part.encode()
    yield b"\n"


WRITERS: dict[str, Callable[[Capture], Iterable[bytes | memoryview]]] = {
    ".attn": format_attn,
    ".json": format_json_file,
    ".npz": format_npz,
}
"""What makes the content of a file, in parts, by the suffix of the file."""
READERS: dict[str, Callable[[Path], Capture]] = {
    ".attn": read_safetensors_file,
    ".json": read_json_file,
    ".npz": read_npz_file,
    ".safetensors": read_safetensors_file,
}
