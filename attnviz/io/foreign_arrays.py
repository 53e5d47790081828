"""Attention from elsewhere, given as arrays: what TensorFlow, JAX, llama.cpp or a script of one's own wrote to a file.

``.npz``, ``.safetensors`` or ``.json`` with ``weights`` (query, key), (head, query, key) or (layer, head, query, key).
Optional: ``tokens``, or ``queries`` and ``keys``, as texts; ``layers`` and ``heads``, as numbers; ``visible``, booleans
that broadcast to the weights. In safetensors the lists stand in the metadata, as JSON. What is wrong with any of it is
a ValueError of one line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from attnviz.analysis.statistics import describe
from attnviz.io.untrusted import Array, cells, numbers, parse_json, read_npz, tensors
from attnviz.io.validation import counts, head_names, require_sides, require_weights, texts
from attnviz.record import (
    GIVEN,
    ROW_TOLERANCE,
    AttentionMap,
    Capture,
    Kind,
    Token,
    Visible,
    Weights,
)

LABELS = "tokens", "queries", "keys", "layers", "heads"
ARRAYS = "weights", "visible"
UNKNOWN_ID = -1
HINT = "give outputs.attentions of a model that was loaded with attn_implementation='eager' and output_attentions=True"
CAUSAL_NOTE = "no weight is above the diagonal: taken for a causal mask"


@dataclass(frozen=True)
class Given:
    """What a file gives, its types not looked at yet."""

    weights: Array
    visible: Array | None
    labels: dict[str, Any]
    """Lists or arrays, those that are there."""
    masked: Array | None = None
    """Of the shape of the weights: where there is none."""


def from_npz(path: Path) -> Capture:
    """A capture from a .npz."""
    found = read_npz(path, (*ARRAYS, *LABELS))
    require_given(found)
    labels = {name: array for name, array in found.items() if name in LABELS}
    return build(path.name, Given(found["weights"], found.get("visible"), labels))


def from_safetensors(path: Path, metadata: dict[str, str]) -> Capture:
    """A capture from a safetensors file with its metadata."""
    found = tensors(path, ARRAYS)
    require_given(found)
    labels = {name: parse_json(metadata[name]) for name in LABELS if name in metadata}
    return build(path.name, Given(found["weights"], found.get("visible"), labels))


def from_json(name: str, document: dict[str, Any]) -> Capture:
    """A capture from a JSON object; null or absent is what is not visible."""
    require_given(document)
    weights = numbers(document["weights"], "weights")
    masked = np.isnan(weights)
    visible = document.get("visible")
    given = Given(
        np.where(masked, 0, weights),
        None if visible is None else cells(visible, "visible", np.bool_, bool),
        {name: document[name] for name in LABELS if document.get(name) is not None},
        masked if masked.any() else None,
    )
    return build(name, given)


def read_array(value: Any, name: str) -> Array:
    """Read numbers in memory as an array of NumPy: those of any library, nested lists, or a sequence of layers.

    What transformers returns, a sequence of (1, head, query, key), becomes (layer, head, query, key). Raises ValueError
    for several texts, for layers of different shapes, and for what is no array.
    """
    if value is None:
        raise ValueError(f"{name}= is None: {HINT}")
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name}= is a mapping of {', '.join(map(str, value))}: give one of these, such as attentions"
        )
    array = stack_layers(value, name) if isinstance(value, (tuple, list)) else to_numpy(value)
    if array.ndim == 5:
        if array.shape[1] != 1:
            raise ValueError(
                f"{name}= holds {array.shape[1]} texts: give one, such as [part[:1] for part in {name}]"
            )
        return array[:, 0]
    return array


def stack_layers(parts: Sequence[Any], name: str) -> Array:
    """Stack the layers of a sequence as one array. Raises ValueError if one is missing, or they differ in shape."""
    if not parts:
        raise ValueError(f"{name}= holds no layers: {HINT}")
    missing = [number for number, part in enumerate(parts) if part is None]
    if missing:
        raise ValueError(f"layer {missing[0]} of {name}= is None: {HINT}")
    if any(isinstance(part, (tuple, list)) and count_axes(part) > 3 for part in parts):
        raise ValueError(
            f"{name}= is a sequence of steps, each of layers: give the layers of one step, {name}[0]"
        )
    if not any(map(count_axes, parts)):
        return to_numpy(parts)
    arrays = [
        stack_layers(part, name) if isinstance(part, (tuple, list)) else to_numpy(part)
        for part in parts
    ]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            shapes = f"{arrays[0].shape} and {array.shape}"
            raise ValueError(
                f"layers 0 and {number} of {name}= have the shapes {shapes}: give those of one shape"
            )
    return np.stack(arrays)


def count_axes(value: Any) -> int:
    """Count the axes of an array of any library, or of the first in nested lists; 0 of numbers."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return int(getattr(value, "ndim", 0)) if hasattr(value, "__array__") else 0


def to_numpy(value: Any) -> Array:
    """Make an array of NumPy of one of any library, or of nested lists. Raises ValueError for what is no array."""
    try:
        return np.asarray(read_tensor(value) if hasattr(value, "detach") else value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"these are no array: {' '.join(str(error).split())}") from error


def read_tensor(tensor: Any) -> Any:
    """Read a tensor of torch, on any device, with a graph or without, in a type and layout that NumPy knows."""
    tensor = tensor.detach().cpu()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() else tensor


def require_given(found: dict[str, Any]) -> None:
    """Raise ValueError if there are no weights."""
    if "weights" not in found:
        raise ValueError(
            "it holds no 'weights': (query, key), (head, query, key) or (layer, head, query, key)"
        )


def build(name: str, given: Given) -> Capture:
    """A capture of one map; the name of the file stands for the model."""
    weights = read_weights(given.weights)
    layers, heads, queries, keys = read_labels(given.labels, weights.shape)
    kind: Kind = "self" if queries == keys else "cross"
    shown = read_visible(given, weights.shape)
    causal = shown is None and kind == "self" and is_causal(weights)
    if shown is None:
        shown = np.tri(len(queries), dtype=bool) if causal else np.array(True)
    visible = np.broadcast_to(shown, weights.shape)
    part = AttentionMap(kind, layers, heads, tokens(queries), tokens(keys), weights, visible, GIVEN)
    part = replace(part, statistics=describe(weights, visible, kind == "self"))
    notes = (CAUSAL_NOTE,) * causal + sums_note(weights, visible)
    return Capture(
        name, " ".join(keys), (part,), notes, target=None if kind == "self" else " ".join(queries)
    )


def read_weights(array: Array) -> Weights:
    """Weights with all four axes."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"its weights are of type {array.dtype}, not numbers")
    if not 2 <= array.ndim <= 4:
        raise ValueError(
            f"its weights have {array.ndim} dimensions, "
            "not 2 (query, key), 3 (head, query, key) or 4 (layer, head, query, key)"
        )
    if not array.size:
        raise ValueError(f"its weights are empty: their shape is {array.shape}")
    weights = array.reshape((1,) * (4 - array.ndim) + array.shape).astype(np.float32, copy=False)
    require_weights(weights)
    return weights


def read_labels(
    labels: dict[str, Any], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int | str, ...], tuple[str, ...], tuple[str, ...]]:
    """Layers, heads, queries and keys as named, or else by their places; nothing is made before lengths are checked."""
    named = labels.keys() & {"tokens", "queries", "keys"}
    if named not in (set(), {"tokens"}, {"queries", "keys"}):
        raise ValueError(
            f"it names {' and '.join(sorted(named))}: give tokens, or queries and keys"
        )
    names = (
        "layers",
        "heads",
        *(("tokens", "tokens") if "tokens" in named else ("queries", "keys")),
    )
    sizes = (
        size(labels[name], name) if name in labels else side
        for name, side in zip(names, shape, strict=True)
    )
    require_sides(shape, tuple(sizes))
    layers, heads, queries, keys = (
        listed(labels[name]) if name in labels else list(range(side))
        for name, side in zip(names, shape, strict=True)
    )
    if not named:
        queries, keys = list(map(str, queries)), list(map(str, keys))
    return (
        counts(layers, "layers"),
        head_names(heads),
        texts(queries, names[2]),
        texts(keys, names[3]),
    )


def size(values: Any, name: str) -> int:
    """The length of a list or of an array of one dimension."""
    if isinstance(values, list) or (isinstance(values, np.ndarray) and values.ndim == 1):
        return len(values)
    raise ValueError(f"{name!r} must be a list")


def listed(values: Any) -> list[Any]:
    """A list of Python's objects."""
    found = values if isinstance(values, list) else values.tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in found]


def read_visible(given: Given, shape: tuple[int, ...]) -> Visible | None:
    """What is visible, as far as the file tells."""
    unmasked = None if given.masked is None else ~given.masked.reshape(shape)
    array = given.visible
    if array is None:
        return unmasked
    if array.dtype != np.bool_ or not 2 <= array.ndim <= 4:
        raise ValueError(
            f"its visible must be booleans of 2 to 4 dimensions, not {array.dtype} of {array.ndim}"
        )
    sides = (1,) * (4 - array.ndim) + array.shape
    if any(side not in (1, count) for side, count in zip(sides, shape, strict=True)):
        raise ValueError(
            f"its visible has the shape {array.shape}, which does not fit weights of {shape}"
        )
    visible = np.broadcast_to(array, shape)
    return visible if unmasked is None else visible & unmasked


def is_causal(weights: Weights) -> bool:
    """Whether nothing at all, exactly 0, is above the diagonal, and there is something above it."""
    n = weights.shape[-1]
    return n > 1 and not any(np.triu(matrix, 1).any() for matrix in weights.reshape(-1, n, n))


def sums_note(weights: Weights, visible: Visible) -> tuple[str, ...]:
    """Says so if a query that sees a key gives away more or less than 1."""
    sums = weights.sum(-1, dtype=np.float64)[visible.any(-1)]
    if np.abs(sums - 1).max(initial=0) <= ROW_TOLERANCE:
        return ()
    return (f"rows sum to between {sums.min():.2f} and {sums.max():.2f}, not 1: shown as they are",)


def tokens(names: tuple[str, ...]) -> tuple[Token, ...]:
    """Tokens as they stand in the text that joins them by spaces."""
    starts = accumulate((len(name) + 1 for name in names[:-1]), initial=0)
    return tuple(
        Token(name, UNKNOWN_ID, start, start + len(name), False)
        for name, start in zip(names, starts, strict=True)
    )
