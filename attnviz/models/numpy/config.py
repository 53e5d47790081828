"""Reading a config.json so that no entry of it is overlooked.

Every entry is either read by the family of the model, or known to have no bearing on attention.
With any other the checkpoint is not run in NumPy: it may change the picture.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from attnviz.lm.activations import ACTIVATIONS
from attnviz.lm.transformer import Rotary
from attnviz.record import Floats

IRRELEVANT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_model_name_or_path",
    "_name_or_path", "unk_token_id",
    "architectures", "attn_implementation", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "cls_token_id", "dtype", "embd_pdrop", "eos_token_id", "finetuning_task",
    "gradient_checkpointing", "hidden_dropout", "id2label", "initializer_factor",
    "initializer_range", "keys_to_ignore_at_inference", "label2id", "language", "mask_token_id",
    "model_type", "name", "num_labels", "output_attentions", "output_hidden_states", "output_past",
    "pretraining_tp", "problem_type", "return_dict", "sep_token_id", "task_specific_params",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version",
    "use_cache", "use_return_dict",
})  # fmt: skip
"""Entries of configs that have no bearing on attention in evaluation."""
MOST_LAYERS = 1024
LARGEST_HEAD = 65_536
DROPOUTS = ("dropout", "_pdrop", "_dropout_prob")
"""The ends of names of rates of dropout, which is off in evaluation."""
OFF: tuple[Any, ...] = (None, False, 0, [], {})


class UnsuitableError(Exception):
    """The reason why a checkpoint is not run in NumPy; a sentence without its subject."""


class ConfigReader:
    """A config whose entries are read one by one, and which knows those that were not."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.known = set(IRRELEVANT)

    def read(self, name: str, default: Any = None) -> Any:
        """Return an entry, which may be null; the default if it is not there."""
        self.known.add(name)
        return self.values.get(name, default)

    def read_count(self, name: str, default: int | None = None) -> int:
        """Return an entry that is a whole number above 0.

        Raises UnsuitableError for another value, or if it is not there and has no default.
        """
        value = self.read(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsuitableError(f"its config says {name} = {value!r}")
        return value

    def read_layers(self, name: str, default: int | None = None) -> int:
        """Return an entry that is a number of layers, as many as are built at most.

        Raises UnsuitableError for another value.
        """
        layers = self.read_count(name, default)
        if layers > MOST_LAYERS:
            raise UnsuitableError(f"its config says {name} = {layers}")
        return layers

    def read_floor(self, name: str, default: float | None = None) -> float:
        """Return an entry that is a finite number of 0 or more. Raises UnsuitableError."""
        value = self.read_number(name, default)
        if value < 0:
            raise UnsuitableError(f"its config says {name} = {value!r}")
        return value

    def read_positive(self, name: str) -> float:
        """Return an entry that is a finite number above 0. Raises UnsuitableError."""
        value = self.read_number(name)
        if value <= 0:
            raise UnsuitableError(f"its config says {name} = {value!r}")
        return value

    def read_number(self, name: str, default: float | None = None) -> float:
        """Return an entry that is a finite number.

        Raises UnsuitableError for another value, or if it is not there and has no default.
        """
        return require_finite_number(self.read(name, default), name)

    def read_activation(self, name: str, default: str) -> str:
        """Return an entry that names an activation function. Raises UnsuitableError."""
        value = self.read(name, default)
        if value not in ACTIVATIONS:
            raise UnsuitableError(f"its config says {name} = {value!r}")
        return str(value)

    def require(self, name: str, allowed: Iterable[Any]) -> None:
        """Raise UnsuitableError unless an entry is not there or has one of some values."""
        value = self.read(name)
        if value is not None and value not in tuple(allowed):
            raise UnsuitableError(f"its config says {name} = {value!r}")

    def require_off(self, *names: str) -> None:
        """Raise UnsuitableError unless entries are not there, or say no."""
        for name in names:
            self.require(name, OFF)

    def skip(self, *names: str) -> None:
        """Note that entries have no bearing on attention in this family."""
        self.known.update(names)

    def require_all_known(self) -> None:
        """Raise UnsuitableError if an entry was neither read nor skipped."""
        for name in self.values:
            if name not in self.known and not name.endswith(DROPOUTS):
                raise UnsuitableError(f"its config has the entry {name!r}, which is not known here")


def require_finite_number(value: Any, name: str) -> float:
    """Return a finite number. Raises UnsuitableError for any other value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UnsuitableError(f"its config says {name} = {value!r}")
    return float(value)


# Positions by rotation


def read_rotary(
    reader: ConfigReader,
    head_dim: int,
    *,
    base: float = 10_000.0,
    share: float = 1.0,
) -> Rotary:
    """Read how queries and keys are rotated, in the words of today's configs or of older ones.

    base: of the rates, where the config has none. share: the share of a head's numbers that are
    rotated, likewise. Raises UnsuitableError for scalings that are not known here.
    """
    older_values = reader.read("rope_scaling")
    values = older_values or reader.read("rope_parameters") or {}
    if not isinstance(values, dict):
        raise UnsuitableError(f"its config says rope_scaling = {values!r}")
    outer_base = reader.read_number("rope_theta", base)
    outer_share = reader.read_number("partial_rotary_factor", share)
    rope = ConfigReader(values)
    rope.known.clear()
    base = rope.read_number("rope_theta", outer_base)
    share = rope.read_number("partial_rotary_factor", outer_share)
    kind = rope.read("rope_type") or rope.read("type") or "default"
    rope.skip("type")
    scale = SCALINGS.get(str(kind))
    if scale is None:
        raise UnsuitableError(f"its positions are scaled by {kind!r}, which is not known here")
    size = int(head_dim * share)
    if base <= 0 or not 2 <= size <= LARGEST_HEAD or size % 2:
        raise UnsuitableError(f"its config rotates {size} numbers by the base {base}")
    try:
        with np.errstate(all="raise"):
            rotary = scale(rope, reader, make_rates(base, size), base)
    except (ArithmeticError, ValueError) as error:
        raise UnsuitableError(f"its positions cannot be scaled: {error}") from error
    rope.require_all_known()
    return rotary


def make_rates(base: float, size: int) -> Floats:
    """Return the rates of rotation of half as many pairs as numbers: base^(-2 i / size)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    powers = np.float64(base) ** exponents.astype(np.float64)
    return np.float32(1.0) / powers.astype(np.float32)


def keep_rates(rope: ConfigReader, _: ConfigReader, rates: Floats, base: float) -> Rotary:  # noqa: ARG001 - a row of the table
    """Return rates that are not scaled."""
    return Rotary(rates)


def scale_linearly(rope: ConfigReader, _: ConfigReader, rates: Floats, base: float) -> Rotary:  # noqa: ARG001 - a row of the table
    """Divide all rates by a factor (Chen et al. 2023)."""
    factor = rope.read_positive("factor")
    return Rotary(rates / np.float32(factor))


def scale_by_wavelength(
    rope: ConfigReader,
    reader: ConfigReader,
    rates: Floats,
    base: float,  # noqa: ARG001 - a row of the table
) -> Rotary:
    """Divide slow rates by a factor, and leave fast ones, as Llama 3.1 does (2024)."""
    factor = rope.read_positive("factor")
    low = rope.read_number("low_freq_factor")
    high = rope.read_number("high_freq_factor")
    length = read_original_length(rope, reader)
    wavelengths = 2 * math.pi / rates
    slow = wavelengths > length / low
    fast = wavelengths < length / high
    scaled = np.where(slow, rates / np.float32(factor), rates)
    smooth = (length / wavelengths - low) / (high - low)
    mixed = (1 - smooth) * scaled / factor + smooth * scaled
    return Rotary(np.where(~slow & ~fast, mixed, scaled).astype(np.float32))


def scale_by_yarn(
    rope: ConfigReader,
    reader: ConfigReader,
    rates: Floats,
    base: float,
) -> Rotary:
    """Interpolate slow rates, keep fast ones, and enlarge what is rotated (Peng et al. 2023)."""
    factor = rope.read_positive("factor")
    length = read_original_length(rope, reader)
    rope.require_off("mscale", "mscale_all_dim")
    beta_fast = rope.read_number("beta_fast", 32.0)
    beta_slow = rope.read_number("beta_slow", 1.0)
    default_factor = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    attention_factor = rope.read_number("attention_factor", default_factor)
    size = 2 * len(rates)

    def find_pair(rotations: float) -> float:
        """Return the pair that turns so many times over the original length."""
        return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = find_pair(beta_fast), find_pair(beta_slow)
    if rope.read("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    pairs = np.arange(len(rates), dtype=np.float32)
    ramp = np.clip((pairs - np.float32(first)) / np.float32(last - first), 0, 1)
    keep = 1 - ramp
    interpolated = 1 / (np.float32(factor) * (1 / rates))
    mixed = interpolated * (1 - keep) + rates * keep
    return Rotary(mixed.astype(np.float32), attention_factor)


def read_original_length(rope: ConfigReader, reader: ConfigReader) -> float:
    """Read the length of the texts that a model was trained on before its positions were scaled."""
    name = "original_max_position_embeddings"
    inner = rope.read(name, reader.read("max_position_embeddings"))
    return require_finite_number(reader.read(name, inner), name)


SCALINGS = {
    "default": keep_rates,
    "linear": scale_linearly,
    "llama3": scale_by_wavelength,
    "yarn": scale_by_yarn,
}
"""How rates of rotation are made, by the name that configs have for it."""
