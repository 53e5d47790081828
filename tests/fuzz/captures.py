"""Captures and arrays in files that are damaged, lie, or hold what no model computes."""

import io
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show",),
    ("show", "--json"),
    ("show", "--view", "grid"),
    ("inspect",),
    ("inspect", "--json"),
)
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, "", "x", "\x1b[31m", [], {}, [[]], [None], {"a": 1}, "nan",
)  # fmt: skip
NUMBERS = (0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38, 1e12, np.nan, np.inf)


def make_document(random: Random) -> dict[str, Any]:
    """Make the document of a sound capture of a few tokens."""
    count = random.randint(1, 5)
    weights = np.tril(np.ones((1, 2, count, count)))
    weights /= weights.sum(-1, keepdims=True)
    tokens = [
        {"text": f"w{i}", "id": i, "start": 3 * i, "end": 3 * i + 2, "special": False}
        for i in range(count)
    ]
    nested = [[[list(row) for row in head] for head in layer] for layer in weights]
    attention_map = {
        "kind": "self", "layers": [0], "heads": [0, 1], "method": "attention",
        "units": "share", "queries": tokens, "keys": tokens, "weights": nested,
    }  # fmt: skip
    text = " ".join(token["text"] for token in tokens)
    return {
        "schema": "attnviz/1", "model": "m", "text": text, "notes": [], "fidelity": None,
        "maps": [attention_map],
    }  # fmt: skip


def list_places(node: Any) -> list[tuple[Any, Any]]:
    """List all places of a document: the object or list, and the key or index in it."""
    if isinstance(node, dict):
        keys: list[Any] = list(node)
    elif isinstance(node, list):
        keys = list(range(len(node)))
    else:
        return []
    places = [(node, key) for key in keys]
    for key in keys:
        places += list_places(node[key])
    return places


def damage_bytes(random: Random, data: bytes) -> bytes:
    """Cut a file short, or change some of its bytes."""
    if random.random() < 0.3:
        return data[: random.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def make_array(random: Random) -> np.ndarray:
    """Make an array of any small shape and type, sometimes with numbers that are no weights."""
    is_sound = random.random() < 0.6
    sides = (1, 2, 3, 5) if is_sound else (0, 1, 2, 3, 5)
    axes = random.randint(2, 4) if is_sound else random.randint(0, 5)
    shape = tuple(random.choice(sides) for _ in range(axes))
    array = np.full(shape, 1.0, random.choice((np.float64, np.float32, np.float16)))
    if not array.size or random.random() < 0.4:
        return array
    if random.random() < 0.2:
        return array.astype(random.choice((np.int8, np.uint64, bool)))
    with np.errstate(all="ignore"):
        array.flat[random.randrange(array.size)] = random.choice(NUMBERS)
    return array


def make_json(random: Random) -> bytes:
    """Make a JSON file in which up to three values are something else."""
    document = make_document(random)
    for _ in range(random.randint(0, 3)):
        node, key = random.choice(list_places(document))
        value = random.choice((*JUNK, *NUMBERS))
        node[key] = value
    return json.dumps(document).encode()


def make_npz(random: Random) -> bytes:
    """Make a .npz of arrays of any shape."""
    file = io.BytesIO()
    weights = make_array(random)
    arrays: dict[str, Any] = {"weights": weights}
    labels = "visible", "tokens", "layers", "heads", "queries", "keys"
    for name in random.sample(labels, random.choice((0, 0, 1, 2))):
        names = np.array([f"{name}{i}" for i in range(weights.shape[-1] if weights.ndim else 0)])
        arrays[name] = random.choice((make_array(random), names, np.arange(3), weights > 0))
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def make_huge_npz(random: Random) -> bytes:
    """Make a .npz of a few kilobytes whose array takes megabytes."""
    file = io.BytesIO()
    side = random.choice((1, 16))
    np.savez_compressed(file, weights=np.zeros((side, 512 // side, 2048), np.float16))
    return file.getvalue()


def make_safetensors(random: Random) -> bytes:
    """Make a safetensors file of arrays of any shape, with metadata of any kind."""
    tensors = {"weights": make_array(random)}
    if random.random() < 0.3:
        tensors["visible"] = random.choice((make_array(random), np.asarray(tensors["weights"] > 0)))
    names = random.sample(("tokens", "attnviz"), random.choice((0, 0, 1, 2)))
    return save_tensors(tensors, {name: json.dumps(random.choice(JUNK)) for name in names})


MAKERS = {".json": make_json, ".npz": make_npz, ".safetensors": make_safetensors}


def make_capture_case(random: Random, folder: Path) -> list[str]:
    """Write a capture into a file, and return the arguments of a command that reads it."""
    suffix = random.choice(list(MAKERS))
    if random.random() < 0.02:
        suffix, data = ".npz", make_huge_npz(random)
    else:
        data = MAKERS[suffix](random)
    if random.random() < 0.25:
        data = damage_bytes(random, data)
    shown_suffix = ".attn" if random.random() < 0.05 else suffix
    path = folder / f"capture{shown_suffix}"
    path.write_bytes(data)
    if random.random() < 0.01:
        os.truncate(path, 1 << 30)
    return [*random.choice(COMMANDS), "--from", str(path)]
