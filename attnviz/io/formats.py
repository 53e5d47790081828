"""A capture on disk: ``.attn`` (safetensors with a JSON header), ``.json`` (schema attnviz/1) and ``.npz``.

None of them needs torch, and none can run code.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from attnviz.analysis.statistics import describe
from attnviz.errors import InputError, OutputError, UsageError
from attnviz.io import foreign_arrays, untrusted
from attnviz.io.files import reason, require_new, write_whole
from attnviz.io.validation import SCHEMA, read_capture, read_map, texts
from attnviz.methods import METHODS, explained, is_other
from attnviz.record import (
    AttentionMap,
    Capture,
    Edges,
    Statistics,
    Tiles,
    Token,
    Visible,
    Weights,
)

NPZ = (
    "weights",
    "visible",
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
HEADER = "attnviz"  # the header's name in the metadata of a safetensors file


def save(capture: Capture, path: str | Path, *, force: bool = False) -> None:
    """Write a capture into a file, whole or not at all: ``.attn``, or ``.json`` or ``.npz`` by the suffix.

    force: replace a file that exists. Raises UsageError for another suffix, OutputError if the file exists or cannot be
    written.
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise UsageError(
            f"cannot tell the format of {path}: a capture is saved as one of {', '.join(WRITERS)}"
        )
    require_new(path, force)
    write_whole(path, write(capture))


def load(path: str | Path) -> Capture:
    """Read a capture that was saved, or attention from elsewhere: see ``attnviz.io.foreign_arrays``.

    Raises UsageError for a suffix that is not there, InputError if the file cannot be read or is not sound.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UsageError(
            f"cannot tell the format of {path}: a capture is read from one of {', '.join(READERS)}"
        )
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        with np.errstate(all="ignore"):  # what is wrong with numbers is said in words
            return read(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except MemoryError as error:
        raise InputError(f"cannot read {path}: it does not fit into memory") from error
    except ValueError as error:
        raise InputError(f"cannot use {path}: {' '.join(str(error).split())[:300]}") from error


def read_tensors(path: Path) -> Capture:
    """A capture from safetensors, ours or not. Raises ValueError."""
    metadata = untrusted.metadata(path)
    if HEADER in metadata:
        return read_capture(untrusted.parse_json(metadata[HEADER]), untrusted.tensors(path))
    if path.suffix.lower() == ".attn":
        raise ValueError(
            "it has no header of attnviz; attention from elsewhere is read as .safetensors"
        )
    return foreign_arrays.from_safetensors(path, metadata)


def read_document(path: Path) -> Capture:
    """A capture from JSON, ours or not. Raises ValueError."""
    document = untrusted.read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"it must be an object with weights, not a {type(document).__name__}")
    return (
        read_capture(document)
        if "schema" in document
        else foreign_arrays.from_json(path.name, document)
    )


def to_attn(capture: Capture) -> bytes:
    """Safetensors: tensors ``maps.0.weights`` and so on, and a header that holds the rest, tokens only once."""
    table: dict[tuple[Token, ...], int] = {}
    heads = [
        map_header(
            part, *(table.setdefault(side, len(table)) for side in (part.queries, part.keys))
        )
        for part in capture.maps
    ]
    header = {**capture_header(capture), "tokens": list(map(token_list, table)), "maps": heads}
    tensors = {
        f"maps.{i}.{name}": array
        for i, part in enumerate(capture.maps)
        for name, array in parts(part).items()
    }
    try:
        return safetensors.save(tensors, {HEADER: json.dumps(header, allow_nan=False)})
    except SafetensorError as error:
        raise OutputError(f"the capture cannot be written as .attn: {error}") from error


def parts(part: AttentionMap) -> dict[str, Any]:
    """The arrays of a map by their names in a file, as they are stored: copied only if they lie in memory otherwise."""
    found: dict[str, Any] = {"visible": collapsed(part.visible)}
    if part.weights is not None:
        found["weights"] = part.weights
    for group in ("tiles", "statistics", "edges"):
        kept = getattr(part, group)
        named = {item.name: getattr(kept, item.name) for item in fields(kept)} if kept else {}
        found |= {
            f"{group}.{name}": array
            for name, array in named.items()
            if isinstance(array, np.ndarray)
        }
    return {
        name: np.ascontiguousarray(array, STORED_TYPES[array.dtype.kind])
        for name, array in found.items()
    }


STORED_TYPES = {"b": np.bool_, "i": np.int32, "f": np.float32}


def collapsed(visible: Visible) -> Visible:
    """The axes along which a mask only repeats itself, as broadcasting leaves them, made 1 long."""
    return visible[
        tuple(slice(None, 1) if stride == 0 else slice(None) for stride in visible.strides)
    ]


def capture_header(capture: Capture) -> dict[str, Any]:
    """What is told of a capture besides its maps."""
    texts = {"text": capture.text, "pair": capture.pair, "target": capture.target}
    return {
        "schema": SCHEMA,
        "model": capture.model,
        **{name: text for name, text in texts.items() if text is not None},
        "notes": capture.notes,
        "fidelity": capture.fidelity,
        "fidelity_reference": capture.fidelity_reference,
        "output_change": capture.output_change,
        **({"segments": [part._asdict() for part in capture.segments]} if capture.segments else {}),
    }


def map_header(part: AttentionMap, queries: Any, keys: Any) -> dict[str, Any]:
    """What is told of a map besides its arrays."""
    head = {
        "kind": part.kind,
        "layers": part.layers,
        "heads": part.heads,
        "method": part.method,
        "units": units(part),
    }
    tiles = (
        {"tiles": {"height": part.tiles.height, "width": part.tiles.width}} if part.tiles else {}
    )
    sides = {"query_places": part.query_places, "key_places": part.key_places}
    shown = {name: places for name, places in sides.items() if places != tuple(range(len(places)))}
    merged = {"unit": part.unit} if part.unit != "token" else {}
    return {**head, "queries": queries, "keys": keys, **shown, **merged, **tiles}


def units(part: AttentionMap) -> str:
    """What a weight of the map is."""
    return METHODS[part.method].units if part.method in METHODS else "as given"


def token_list(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Tokens as JSON; the segment is told of the second text of a pair."""
    return [
        {name: value for name, value in token._asdict().items() if name != "segment" or value}
        for token in tokens
    ]


def describe_tokens(tokens: Sequence[Token], positions: Sequence[int]) -> list[dict[str, Any]]:
    """Describe tokens for JSON, each with its position in the whole text under ``place``."""
    described = token_list(tokens)
    return [{"place": place, **token} for place, token in zip(positions, described, strict=True)]


def describe_capture(capture: Capture) -> dict[str, Any]:
    """Describe what the numbers of a capture are of, for the document of a result; not the numbers."""
    first = capture.maps[0]
    return {
        "model": capture.model,
        "text": capture.text,
        "unit": first.unit,
        "method": first.method,
        "notes": list(capture.notes),
    }


def to_json(capture: Capture) -> str:
    """One line of plain ASCII: every other character of a token is escaped. A masked cell is null.

    Statistics are left out where the weights are there to compute them from.
    """
    head = json.dumps(capture_header(capture), allow_nan=False)
    return f'{head[:-1]}, "maps": [{", ".join(map(map_json, capture.maps))}]}}'


def capture_document(capture: Capture) -> dict[str, Any]:
    """Return a capture as the document that ``to_json`` writes, in plain lists and numbers."""
    document: dict[str, Any] = json.loads(to_json(capture))
    return document


def map_json(part: AttentionMap) -> str:
    """One attention map; weights[layer][head][query][key]."""
    header = map_header(part, token_list(part.queries), token_list(part.keys))
    header.pop("tiles", None)
    pieces = [json.dumps(header)[1:-1]]
    if part.weights is not None:
        pieces.append(f'"weights": {matrices_json(part.weights, part.visible)}')
    if part.tiles is not None:
        pieces.append(f'"tiles": {tiles_json(part.tiles, part.visible)}')
    if part.weights is None and part.tiles is None:  # no cell that could be null
        pieces.append(f'"visible": {json.dumps(collapsed(part.visible).tolist())}')
    for name in ("statistics", "edges"):
        kept = getattr(part, name)
        if kept is not None and (part.weights is None or name == "edges"):
            pieces.append(f'"{name}": {arrays_json(kept)}')
    return f"{{{', '.join(pieces)}}}"


def tiles_json(tiles: Tiles, visible: Visible) -> str:
    """Tiles, null where nothing in them is visible."""
    mean, largest = matrices_json(tiles.mean, visible), matrices_json(tiles.max, visible)
    return f'{{"height": {tiles.height}, "width": {tiles.width}, "mean": {mean}, "max": {largest}}}'


def arrays_json(kept: Statistics | Edges) -> str:
    """Arrays by the names of their fields; null for one that was not made."""
    named = {item.name: getattr(kept, item.name) for item in fields(kept)}
    return json.dumps(
        {name: None if array is None else decimals(array) for name, array in named.items()}
    )


def decimals(array: Any) -> Any:
    """Nested lists of the shortest decimals that give the same float32 back: 0.1, not 0.10000000149011612."""
    if array.ndim > 2:
        return [decimals(part) for part in array]  # as text, a number takes 128 bytes
    return (
        array.tolist() if array.dtype.kind == "i" else array.astype(str).astype(np.float64).tolist()
    )


def matrices_json(array: Weights, visible: Visible) -> str:
    """(layer, head, query, key), a matrix at a time: nested lists of a whole capture take a hundred bytes a cell."""
    layers = (", ".join(map(matrix_json, *layer)) for layer in zip(array, visible, strict=True))
    return f"[{', '.join(f'[{heads}]' for heads in layers)}]"


def matrix_json(weights: Weights, visible: Visible) -> str:
    """One matrix, null where masked."""
    shortest = weights.astype(str).astype(np.float64)
    return json.dumps(
        np.where(visible, shortest.astype(object), np.array(None)).tolist(), allow_nan=False
    )


def read_matrices(path: Path) -> Capture:
    """A capture from a .npz: one that names its method as ``to_npz`` wrote it, any other as arrays from elsewhere."""
    method = untrusted.read_npz(path, ("method",)).get("method")
    if method is None or str(method) not in METHODS:
        return foreign_arrays.from_npz(path)
    found = untrusted.read_npz(path, NPZ)
    if set(found) != set(NPZ):
        raise ValueError(
            f"it holds no {', '.join(sorted(set(NPZ) - set(found)))}, which a .npz of attnviz has"
        )
    head: dict[str, Any] = {
        name: found[name].tolist() for name in NPZ if name not in ("weights", "visible")
    }
    queries, keys = (
        foreign_arrays.tokens(texts(untrusted.field(head, name, list), name))
        for name in ("queries", "keys")
    )
    part = read_map(head, queries, keys, {name: found[name] for name in ("weights", "visible")})
    if part.weights is not None and not is_other(part.method):
        part = replace(
            part,
            statistics=describe(
                part.weights, part.visible, part.kind != "cross" and queries == keys
            ),
        )
    return explained(Capture(path.name, " ".join(head["keys"]), (part,)))


def to_npz(capture: Capture) -> bytes:
    """One map with its weights for NumPy. Raises UsageError unless the capture holds just that."""
    weights = capture.maps[0].weights if len(capture.maps) == 1 else None
    if weights is None:
        raise UsageError(
            "a .npz holds the weights of one map, which this capture is not: save it as .attn or .json"
        )
    part, file = capture.maps[0], BytesIO()
    np.savez(
        file,
        weights=weights,
        visible=collapsed(part.visible),
        queries=np.array([token.text for token in part.queries], dtype=str),
        keys=np.array([token.text for token in part.keys], dtype=str),
        layers=np.array(part.layers),
        heads=np.array(part.heads),
        query_places=np.array(part.query_places),
        key_places=np.array(part.key_places),
        kind=np.array(part.kind),
        method=np.array(part.method),
        unit=np.array(part.unit),
        units=np.array(units(part)),
    )
    return file.getvalue()


WRITERS = {
    ".attn": to_attn,
    ".json": lambda capture: to_json(capture).encode() + b"\n",
    ".npz": to_npz,
}
READERS = {
    ".attn": read_tensors,
    ".json": read_document,
    ".npz": read_matrices,
    ".safetensors": read_tensors,
}
