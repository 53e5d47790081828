"""A checkpoint that NumPy runs: its config is understood, and each of its weights accounted for.

``open_checkpoint`` takes a folder only where that is certain; for any other it says why not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnviz.errors import ModelError
from attnviz.io.untrusted import LARGEST_CONFIG, read_json
from attnviz.layer.arrays import Array
from attnviz.layer.multihead import apply_linear
from attnviz.lm.corpus import Ids
from attnviz.lm.transformer import Architecture, apply_norm, cap_smoothly
from attnviz.models.numpy.config import ConfigReader, UnsuitableError
from attnviz.models.numpy.families import FAMILIES, Family
from attnviz.models.numpy.weights import MappedTensor, map_checkpoint
from attnviz.models.predictions import PredictionKind
from attnviz.models.safety import CONFIG
from attnviz.record import Floats

ROWS_AT_ONCE = 4096
"""How many tokens logits are computed of at a time."""
WRITERS = "ForCausalLM", "LMHeadModel"
"""The ends of the names of classes of models that continue a text."""
FORMER_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Ends of names of weights that old checkpoints have, and today's names."""


@dataclass(frozen=True)
class Slot:
    """The place of one parameter in a checkpoint, and the shape that the config gives it."""

    name: str
    """The name of the tensor, without the prefix of its family."""
    shape: tuple[int, ...]
    """The shape of the parameter, a linear one (out, in)."""
    start: int = 0
    """The first of its rows in the tensor, of those that are fused."""
    rows: int = 0
    """How many rows the tensor has in all; 0 if it is the parameter itself."""


class Checkpoint:
    """The parameters of a transformer in mapped files, read as float32 one layer at a time.

    ``prediction`` is the kind of prediction that they make: "next" if they hold the matrix that
    makes logits of next tokens, "vector" if the model was saved without a head; else None.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        architecture: Architecture,
        tensors: Mapping[str, MappedTensor],
        output: MappedTensor | None,
        prediction: PredictionKind | None,
    ) -> None:
        self.output = output
        self.prediction = prediction
        self.folder = folder
        self.family = family
        self.architecture = architecture
        self.tensors = tensors
        self.stem = dict(list_stem_slots(family, architecture))

    def read_layer(self, layer: int) -> dict[str, Floats]:
        """Read the parameters of one layer, by the names of ``attnviz.lm.transformer``."""
        slots = list_layer_slots(self.family, self.architecture, layer)
        return {ours: self.read_slot(slot, in_layer=True) for ours, slot in slots}

    def read_slot(self, slot: Slot, *, in_layer: bool) -> Floats:
        """Read a parameter from its place."""
        values = self.tensors[slot.name].read()
        if in_layer and self.family.transposed and values.ndim == 2:
            values = values.T
        if not slot.rows:
            return values
        if not self.family.fused_by_head:
            return values[slot.start : slot.start + slot.shape[0]]
        # (head, query key or value, number of the head, in)
        by_head = values.reshape(self.architecture.heads, 3, -1, *values.shape[1:])
        part = slot.start // slot.shape[0]
        return by_head[:, part].reshape(slot.shape)

    def read(self, name: str) -> Floats | None:
        """Read a parameter outside of the layers, by our name; None if the model has none."""
        slot = self.stem.get(name)
        return None if slot is None else self.read_slot(slot, in_layer=False)

    def normalise_last(self, hidden: Array) -> Floats:
        """Apply the norm after the last layer, if the model has one, to its output (..., dim)."""
        parameters: dict[str, Array] = {}
        for name in ("norm.weight", "norm.bias"):
            if name in self.stem:
                parameters[name] = self.read_slot(self.stem[name], in_layer=False)
        return np.asarray(apply_norm(parameters, self.architecture, "norm", hidden), np.float32)

    def compute_logits(self, hidden: Array) -> Floats:
        """Compute the logits (..., vocabulary) of the last layer's output (..., dim).

        Raises ModelError for a checkpoint without the matrix for it.
        """
        if self.output is None:
            raise ModelError(f"{self.folder} predicts no next tokens")
        x = self.normalise_last(hidden)
        # not all rows at once: of a half type they take twice the memory that they take in the file
        starts = range(0, len(self.output.values), ROWS_AT_ONCE)
        blocks = (self.output.read(slice(start, start + ROWS_AT_ONCE)) for start in starts)
        parts = [np.matmul(x, block.T) for block in blocks]
        logits = np.concatenate(parts, axis=-1) / np.float32(self.architecture.logit_divisor)
        cap = self.architecture.logit_cap
        if cap is not None:
            logits = cap_smoothly(logits, cap)
        return np.asarray(logits, np.float32)

    def embed(self, ids: Ids, segments: Ids | None = None) -> Array:
        """Embed token ids (batch, n), with their positions and segments, as (batch, n, dim)."""
        architecture = self.architecture
        hidden = self.tensors[self.stem["embedding.weight"].name].read(ids)
        if architecture.embedding_factor != 1.0:
            hidden = hidden * np.float32(architecture.embedding_factor)
        if "segments.weight" in self.stem:
            numbers = np.zeros_like(ids) if segments is None else segments
            hidden = hidden + self.tensors[self.stem["segments.weight"].name].read(numbers)
        if "positions.weight" in self.stem:
            places = number_positions(ids, architecture.padding)
            hidden = hidden + self.tensors[self.stem["positions.weight"].name].read(places)
        parameters: dict[str, Array] = {
            name: self.read_slot(self.stem[name], in_layer=False)
            for name in ("embedding_norm.weight", "embedding_norm.bias")
            if name in self.stem
        }
        hidden = apply_norm(parameters, architecture, "embedding_norm", hidden)
        projection = self.read("embedding_projection.weight")
        if projection is None:
            return hidden
        parameters = {"projection.weight": projection}
        parameters["projection.bias"] = self.read("embedding_projection.bias")
        return apply_linear(parameters, "projection", hidden)


def number_positions(ids: Ids, padding: int | None) -> Ids:
    """Return the rows of the table of positions for token ids (batch, n).

    padding: RoBERTa's token for no text. Such tokens have the row of its number; others are counted
    from the row after it.
    """
    if padding is None:
        return np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    is_text = ids != padding
    counted = np.cumsum(is_text, axis=-1)
    rows: Ids = counted * is_text + padding
    return rows


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in a folder. Raises UnsuitableError for one that NumPy does not run.

    Raises ModelError for files that are missing or damaged.
    """
    values = read_config(folder)
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsuitableError(f"it is of the type {kind!r}, which only torch runs")
    reader = ConfigReader(values)
    reader.require("tie_word_embeddings", [True, False])
    try:
        architecture = family.describe(reader)
    except ArithmeticError as error:
        raise UnsuitableError(f"its config cannot be used: {error}") from error
    reader.require_all_known()
    stored = map_checkpoint(folder)
    tensors = name_tensors(stored, family)
    require_accounted(tensors, family, architecture)
    output = find_output(stored, tensors, family, values)
    prediction: PredictionKind | None = None
    if output is not None:
        prediction = "next"
    elif has_no_head(values):
        prediction = "vector"
    return Checkpoint(folder, family, architecture, tensors, output, prediction)


def read_class_name(config: Mapping[str, Any]) -> str:
    """Return the name of the class that a folder was saved from; empty if its config has none."""
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def has_no_head(config: Mapping[str, Any]) -> bool:
    """Return True if a model was saved without a part that predicts, as BertModel is."""
    name = read_class_name(config)
    return not name or (name.endswith("Model") and not name.endswith(WRITERS))


def find_output(
    stored: Mapping[str, MappedTensor],
    tensors: Mapping[str, MappedTensor],
    family: Family,
    config: Mapping[str, Any],
) -> MappedTensor | None:
    """Find the matrix that makes logits of the last layer's output, (vocabulary, dim).

    None for a model that does not continue texts, and where it is not certain which one it is.
    stored: all tensors of the checkpoint; tensors: those that bear on attention, by their names
    without a prefix.
    """
    if not read_class_name(config).endswith(WRITERS):
        return None
    if f"{family.output}.bias" in stored:
        return None
    separate = stored.get(f"{family.output}.weight")
    tied = config.get("tie_word_embeddings", family.ties)
    if not tied:
        return separate
    embedding = tensors[f"{family.stem['embedding']}.weight"]
    is_same = separate is None or np.array_equal(separate.values, embedding.values)
    return embedding if is_same else None


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of a folder. Raises ModelError."""
    path = folder / CONFIG
    try:
        values = read_json(path, LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no config of a model")
    return values


def name_tensors(
    tensors: Mapping[str, MappedTensor],
    family: Family,
) -> dict[str, MappedTensor]:
    """Return the tensors that bear on attention by today's names, without the family's prefix."""
    left_out = re.compile(f"(?:{family.heads})|(?:{family.unused})")
    named: dict[str, MappedTensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(family.prefix)
        for former, today in FORMER_NAMES.items():
            if bare.endswith(former):
                bare = bare.removesuffix(former) + today
        if left_out.match(bare):
            continue
        if bare in named:
            raise UnsuitableError(f"its weights hold {bare} twice")
        named[bare] = tensor
    return named


def require_accounted(
    tensors: Mapping[str, MappedTensor],
    family: Family,
    architecture: Architecture,
) -> None:
    """Raise UnsuitableError unless there is one tensor for each parameter, of its shape."""
    slots = [slot for _, slot in list_stem_slots(family, architecture)]
    for layer in range(architecture.layers):
        slots += [slot for _, slot in list_layer_slots(family, architecture, layer)]
    expected: dict[str, tuple[int, ...]] = {}
    stem = {slot.name for _, slot in list_stem_slots(family, architecture)}
    for slot in slots:
        shape = slot.shape if not slot.rows else (slot.rows, *slot.shape[1:])
        is_turned = family.transposed and slot.name not in stem
        expected[slot.name] = shape[::-1] if is_turned else shape
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise UnsuitableError(f"its weights lack {name}")
        if tensor.shape != shape:
            raise UnsuitableError(
                f"its weight {name} is {tensor.kind} {tensor.shape}, and its config describes "
                f"{shape}"
            )
    for name in tensors:
        if name not in expected:
            raise UnsuitableError(f"its weights hold {name}, which is not known here")


def list_stem_slots(family: Family, architecture: Architecture) -> Iterator[tuple[str, Slot]]:
    """Yield the parameters outside of layers, by our names, with their places."""
    dim = architecture.dim
    size = architecture.embedding_dim or dim
    rows = architecture.positions or 0
    if architecture.padding is not None:
        rows += architecture.padding + 1
    shapes = {
        "embedding": (architecture.vocabulary, size),
        "positions": (rows, size),
        "segments": (architecture.segments, size),
        "embedding_projection": (dim, size),
    }
    for ours, theirs in family.stem.items():
        if ours == "embedding_projection" and not architecture.embedding_dim:
            continue
        if ours in shapes:
            yield f"{ours}.weight", Slot(f"{theirs}.weight", shapes[ours])
            if ours == "embedding_projection":
                yield f"{ours}.bias", Slot(f"{theirs}.bias", (dim,))
            continue
        gain = (size,) if ours == "embedding_norm" else (dim,)
        yield f"{ours}.weight", Slot(f"{theirs}.weight", gain)
        if architecture.norm == "layer":
            yield f"{ours}.bias", Slot(f"{theirs}.bias", gain)


def list_layer_slots(
    family: Family,
    architecture: Architecture,
    layer: int,
) -> Iterator[tuple[str, Slot]]:
    """Yield the parameters of a layer, by our names, with their places."""
    shapes = list_linear_shapes(architecture)
    for ours, theirs in family.layer.items():
        name = theirs.format(layer)
        if ours in shapes:
            yield f"{ours}.weight", Slot(f"{name}.weight", shapes[ours])
            if ours in architecture.biased:
                yield f"{ours}.bias", Slot(f"{name}.bias", shapes[ours][:1])
            continue
        gain = find_gain_shape(ours, family, architecture)
        yield f"{ours}.weight", Slot(f"{name}.weight", gain)
        has_bias = architecture.norm == "layer"
        if has_bias:
            yield f"{ours}.bias", Slot(f"{name}.bias", gain)
    for theirs, parts in family.fused.items():
        name = theirs.format(layer)
        rows = sum(shapes[ours][0] for ours in parts)
        start = 0
        for ours in parts:
            shape = shapes[ours]
            yield f"{ours}.weight", Slot(f"{name}.weight", shape, start, rows)
            if ours in architecture.biased:
                yield f"{ours}.bias", Slot(f"{name}.bias", shape[:1], start, rows)
            start += shape[0]


def list_linear_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the linear parameters of a layer."""
    dim, wide = architecture.dim, architecture.feed_forward
    queries = architecture.heads * architecture.head_dim
    keys = architecture.kv_heads * architecture.head_dim
    return {
        "attention.query": (queries, dim),
        "attention.key": (keys, dim),
        "attention.value": (keys, dim),
        "attention.output": (dim, queries),
        "gate": (wide, dim),
        "up": (wide, dim),
        "down": (dim, wide),
    }


def find_gain_shape(name: str, family: Family, architecture: Architecture) -> tuple[int, ...]:
    """Return the shape of the gain of a norm of a layer, by our name."""
    sizes = {
        "attention.query_norm": architecture.heads * architecture.head_dim,
        "attention.key_norm": architecture.kv_heads * architecture.head_dim,
    }
    if name not in sizes:
        return (architecture.dim,)
    return (architecture.head_dim if family.norms_each_head else sizes[name],)
