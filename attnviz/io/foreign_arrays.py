"""Attention from elsewhere, given as arrays.

They are what TensorFlow, JAX, llama.cpp or a script of one's own wrote to a file: ``.npz``,
``.safetensors`` or ``.json`` with ``weights`` (query, key), (head, query, key) or (layer, head,
query, key). Optional: ``tokens``, or ``queries`` and ``keys``, as texts; ``layers`` and ``heads``,
as numbers; ``visible``, booleans that broadcast to the weights. In safetensors the lists stand in
the metadata, as JSON. Whatever is wrong with any of it is a ValueError of one line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.numerics import is_causal
from attnviz.analysis.statistics import measure_statistics
from attnviz.io.untrusted import (
    Array,
    load_tensors,
    parse_json,
    read_nested_lists,
    read_npz,
    read_number_lists,
)
from attnviz.io.validation import (
    fits_shape,
    require_counts,
    require_head_names,
    require_named_sides,
    require_plain_weights,
    require_text_list,
)
from attnviz.record import (
    FROM_ELSEWHERE,
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
HINT = (
    "give outputs.attentions of a model that was loaded with attn_implementation='eager' "
    "and output_attentions=True"
)
CAUSAL_NOTE = "no weight is above the diagonal: taken for a causal mask"


@dataclass(frozen=True)
class ForeignArrays:
    """The arrays and lists of a file, whose types have not been looked at yet."""

    weights: Array
    visible: Array | None
    labels: dict[str, Any]
    """Lists or arrays, by name; only those that are there."""
    masked: Array | None = None
    """Of the shape of the weights: True where the file has no weight."""


class Labels(NamedTuple):
    """The names of the layers, heads, queries and keys of weights."""

    layers: tuple[int, ...]
    heads: tuple[int | str, ...]
    queries: tuple[str, ...]
    keys: tuple[str, ...]


def read_foreign_npz(path: Path) -> Capture:
    """Read a capture from a .npz that another program wrote.

    It holds weights, perhaps a mask, and the names of layers, heads and tokens. Raises ValueError
    saying what is wrong.
    """
    arrays = read_npz(path, (*ARRAYS, *LABELS))
    require_weights_entry(arrays)
    labels = {name: array for name, array in arrays.items() if name in LABELS}
    foreign = ForeignArrays(arrays["weights"], arrays.get("visible"), labels)
    return build_foreign_capture(path.name, foreign)


def read_foreign_safetensors(path: Path, metadata: dict[str, str]) -> Capture:
    """Read a capture from a safetensors file that another program wrote.

    It holds weights, and perhaps a mask. metadata: that of the file, in which the names of layers,
    heads and tokens stand as JSON. Raises ValueError saying what is wrong.
    """
    arrays = load_tensors(path, ARRAYS)
    require_weights_entry(arrays)
    labels = {name: parse_json(metadata[name]) for name in LABELS if name in metadata}
    foreign = ForeignArrays(arrays["weights"], arrays.get("visible"), labels)
    return build_foreign_capture(path.name, foreign)


def read_foreign_json(name: str, document: dict[str, Any]) -> Capture:
    """Read a capture from a JSON object that another program wrote.

    name: the file's name. document: has weights in nested lists, perhaps a mask, and the names of
    layers, heads and tokens; a weight that is null is masked. Raises ValueError saying what is
    wrong.
    """
    require_weights_entry(document)
    weights = read_number_lists(document["weights"], "weights")
    masked = np.isnan(weights)
    visible = document.get("visible")
    if visible is not None:
        visible = read_nested_lists(visible, "visible", np.bool_, bool)
    labels = {label: document[label] for label in LABELS if document.get(label) is not None}
    masked_or_none = masked if masked.any() else None
    weights_or_zero = np.where(masked, 0, weights)
    foreign = ForeignArrays(weights_or_zero, visible, labels, masked_or_none)
    return build_foreign_capture(name, foreign)


def read_array(value: Any, name: str) -> Array:
    """Read numbers in memory as an array of NumPy.

    value: an array of any library, nested lists, or a sequence of layers. A sequence of (1, head,
    query, key), which transformers returns, becomes (layer, head, query, key). name: the argument's
    name, for errors. Raises ValueError for several texts, for layers of different shapes, and for
    what is no array.
    """
    if value is None:
        raise ValueError(f"{name}= is None: {HINT}")
    if isinstance(value, Mapping):
        entries = ", ".join(map(str, value))
        raise ValueError(
            f"{name}= is a mapping of {entries}: give one of these, such as attentions",
        )
    array = stack_or_convert(value, name)
    if array.ndim != 5:  # (layer, text, head, query, key)
        return array
    text_count = array.shape[1]
    if text_count != 1:
        advice = f"give one, such as [part[:1] for part in {name}]"
        raise ValueError(f"{name}= holds {text_count} texts: {advice}")
    return array[:, 0]


def stack_or_convert(value: Any, name: str) -> Array:
    """Make one array of a sequence of layers, or of an array of any library. Raises ValueError."""
    return stack_layers(value, name) if is_list(value) else make_numpy_array(value)


def is_list(value: Any) -> bool:
    """Return whether a value is a list or a tuple, and no array."""
    return isinstance(value, (tuple, list))


def stack_layers(layers: Sequence[Any], name: str) -> Array:
    """Stack the layers of a sequence as one array, the layers along its first axis.

    A sequence of plain numbers becomes an array as it is. name: the argument's name, for errors.
    Raises ValueError if a layer is missing, or they differ in shape.
    """
    if not layers:
        raise ValueError(f"{name}= holds no layers: {HINT}")
    for number, layer in enumerate(layers):
        if layer is None:
            raise ValueError(f"layer {number} of {name}= is None: {HINT}")
    if any(is_list(layer) and count_axes(layer) > 3 for layer in layers):
        advice = f"give the layers of one step, {name}[0]"
        raise ValueError(f"{name}= is a sequence of steps, each of layers: {advice}")
    if not any(map(count_axes, layers)):
        return make_numpy_array(layers)
    arrays = [stack_or_convert(layer, name) for layer in layers]
    first_shape = arrays[0].shape
    for number, array in enumerate(arrays):
        if array.shape != first_shape:
            layer_names = f"layers 0 and {number} of {name}="
            shapes = f"{first_shape} and {array.shape}"
            problem = f"{layer_names} have the shapes {shapes}"
            raise ValueError(f"{problem}: give those of one shape")
    return np.stack(arrays)


def count_axes(value: Any) -> int:
    """Count the axes of an array of any library, or of the first array in nested lists.

    Plain numbers in nested lists have none: 0.
    """
    while is_list(value) and value:
        value = value[0]
    if not hasattr(value, "__array__"):
        return 0
    return int(getattr(value, "ndim", 0))


def make_numpy_array(value: Any) -> Array:
    """Make an array of NumPy of one of any library, or of nested lists.

    Raises ValueError for what is no array.
    """
    try:
        return np.asarray(read_tensor(value) if hasattr(value, "detach") else value)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"these are no array: {reason}") from error


def read_tensor(tensor: Any) -> Any:
    """Convert a tensor of torch to a type and a layout that NumPy knows.

    It may be on any device, with a graph for gradients or without.
    """
    tensor = tensor.detach().cpu()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() else tensor


def require_weights_entry(entries: Mapping[str, Any]) -> None:
    """Raise ValueError if there are no weights."""
    if "weights" not in entries:
        shapes = "(query, key), (head, query, key) or (layer, head, query, key)"
        raise ValueError(f"it holds no 'weights': {shapes}")


def build_foreign_capture(name: str, foreign: ForeignArrays) -> Capture:
    """Build a capture of one map from arrays that another program wrote.

    name: the file's name, which stands for the model. foreign: the weights, perhaps a mask, and the
    names of layers, heads and tokens. If queries and keys have the same names, the map is of
    self-attention, else of cross-attention. Without a mask all cells are visible; but if no weight
    is above the diagonal in self-attention, the mask is taken to be causal, and a note says so. The
    text of the capture is the names of the keys, joined by spaces. Raises ValueError saying what is
    wrong.
    """
    weights = read_foreign_weights(foreign.weights)
    layers, heads, queries, keys = read_foreign_labels(foreign.labels, weights.shape)
    kind: Kind = "self" if queries == keys else "cross"
    mask = read_foreign_mask(foreign, weights.shape)
    notes: tuple[str, ...] = ()
    if mask is None:
        mask = np.array(True)
        if kind == "self" and is_causal(weights):
            mask = np.tri(len(queries), dtype=bool)
            notes = (CAUSAL_NOTE,)
    visible = np.broadcast_to(mask, weights.shape)
    query_tokens, key_tokens = make_named_tokens(queries), make_named_tokens(keys)
    attention_map = AttentionMap(
        kind=kind,
        layers=layers,
        heads=heads,
        queries=query_tokens,
        keys=key_tokens,
        weights=weights,
        visible=visible,
        method=FROM_ELSEWHERE,
    )
    statistics = measure_statistics(weights, visible, square=kind == "self")
    attention_map = replace(attention_map, statistics=statistics)
    notes += note_row_sums(weights, visible)
    target = None if kind == "self" else " ".join(queries)
    text = " ".join(keys)
    maps = (attention_map,)
    return Capture(model=name, text=text, maps=maps, notes=notes, target=target)


def read_foreign_weights(array: Array) -> Weights:
    """Read weights as float32 with all four axes, (layer, head, query, key).

    array: numbers of any type, which may lack the first one or two axes. Raises ValueError for what
    are no weights.
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(f"its weights are of type {array.dtype}, not numbers")
    if not 2 <= array.ndim <= 4:
        shapes = "2 (query, key), 3 (head, query, key) or 4 (layer, head, query, key)"
        raise ValueError(f"its weights have {array.ndim} dimensions, not {shapes}")
    if not array.size:
        raise ValueError(f"its weights are empty: their shape is {array.shape}")
    shape = extend_shape(array.shape)
    weights = array.reshape(shape).astype(np.float32, copy=False)
    require_plain_weights(weights)
    return weights


def extend_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with four axes, of which the first are 1 long where they were lacking."""
    lacking = 4 - len(shape)
    return (1,) * lacking + shape


def read_foreign_labels(labels: Mapping[str, Any], shape: tuple[int, ...]) -> Labels:
    """Read the names of layers, heads, queries and keys; those that are not named are numbered.

    labels: lists or arrays of names, by ``layers``, ``heads``, and ``tokens`` or else ``queries``
    and ``keys``. shape: that of the weights, (layer, head, query, key). Nothing is made before
    lengths are checked. Raises ValueError for lists that do not fit.
    """
    token_labels = labels.keys() & {"tokens", "queries", "keys"}
    if token_labels not in (set(), {"tokens"}, {"queries", "keys"}):
        names = " and ".join(sorted(token_labels))
        raise ValueError(f"it names {names}: give tokens, or queries and keys")
    queries_label, keys_label = "queries", "keys"
    if "tokens" in token_labels:
        queries_label, keys_label = "tokens", "tokens"
    label_of_axis = "layers", "heads", queries_label, keys_label
    lengths = []
    for label, axis_length in zip(label_of_axis, shape, strict=True):
        length = axis_length
        if label in labels:
            length = count_values(labels[label], label)
        lengths.append(length)
    require_named_sides(shape, tuple(lengths))
    values: list[list[Any]] = []
    for label, axis_length in zip(label_of_axis, shape, strict=True):
        if label in labels:
            values.append(list_values(labels[label]))
        else:
            values.append(list(range(axis_length)))
    layers, heads, queries, keys = values
    if not token_labels:
        queries = list(map(str, queries))
        keys = list(map(str, keys))
    layer_numbers = require_counts(layers, "layers")
    head_names = require_head_names(heads)
    query_names = require_text_list(queries, queries_label)
    key_names = require_text_list(keys, keys_label)
    return Labels(layer_numbers, head_names, query_names, key_names)


def count_values(values: Any, name: str) -> int:
    """Count the values of a list or of an array of one dimension.

    name: the name of the list, for the error. Raises ValueError for anything else.
    """
    is_row = isinstance(values, np.ndarray) and values.ndim == 1
    if isinstance(values, list) or is_row:
        return len(values)
    raise ValueError(f"{name!r} must be a list")


def list_values(values: Any) -> list[Any]:
    """Return a list or an array as a list of Python's objects; bytes become texts."""
    items = values if isinstance(values, list) else values.tolist()
    return [item.decode() if isinstance(item, bytes) else item for item in items]


def read_foreign_mask(foreign: ForeignArrays, shape: tuple[int, ...]) -> Visible | None:
    """Read the mask of weights, True where a query may attend; None where the file tells of none.

    shape: that of the weights, (layer, head, query, key), to which the mask is broadcast. A cell
    without a weight is masked too. Raises ValueError for an array that is no mask, or does not fit.
    """
    present = None
    if foreign.masked is not None:
        present = ~foreign.masked.reshape(shape)
    array = foreign.visible
    if array is None:
        return present
    if array.dtype != np.bool_ or not 2 <= array.ndim <= 4:
        actual = f"{array.dtype} of {array.ndim}"
        raise ValueError(f"its visible must be booleans of 2 to 4 dimensions, not {actual}")
    if not fits_shape(extend_shape(array.shape), shape):
        problem = f"its visible has the shape {array.shape}"
        raise ValueError(f"{problem}, which does not fit weights of {shape}")
    visible = np.broadcast_to(array, shape)
    return visible if present is None else visible & present


def note_row_sums(weights: Weights, visible: Visible) -> tuple[str, ...]:
    """Return a note if a query's weights sum to more or less than 1, else nothing.

    Queries that see no key do not count.
    """
    sees_key = visible.any(-1)
    sums = weights.sum(-1, dtype=np.float64)[sees_key]
    largest_error = np.abs(sums - 1).max(initial=0)
    if largest_error <= ROW_TOLERANCE:
        return ()
    lowest, highest = sums.min(), sums.max()
    limits = f"{lowest:.2f} and {highest:.2f}"
    return (f"rows sum to between {limits}, not 1: shown as they are",)


def make_named_tokens(names: Sequence[str]) -> tuple[Token, ...]:
    """Make tokens of names, placed as in the text that joins the names by spaces."""
    # The space after each name is counted.
    lengths = [len(name) + 1 for name in names[:-1]]
    starts = accumulate(lengths, initial=0)
    tokens = []
    for name, start in zip(names, starts, strict=True):
        end = start + len(name)
        tokens.append(Token(name, UNKNOWN_ID, start, end, False))
    return tuple(tokens)
