"""A language model on disk: a folder with its sizes, its parameters and its tokenizer.

The files are config.json, model.safetensors (float16) and tokenizer.json.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from attnviz.errors import ModelError
from attnviz.io.files import describe_os_error, write_folder
from attnviz.io.untrusted import LARGEST_CONFIG, read_regular_file
from attnviz.layer.arrays import Array
from attnviz.layer.scores import SCORES
from attnviz.lm.model import ModelConfig, list_parameter_shapes

MODEL_TYPE = "attnviz"
BUILTIN = Path(__file__).with_name("builtin")
SIZES = [field.name for field in fields(ModelConfig) if field.name != "score"]
FILES = CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LARGEST_HEADER = 1 << 20  # bytes of the file of weights before the numbers
BYTES_A_NUMBER = 8  # at most; the model has float16
LARGEST_TOKENIZER = 1 << 27  # bytes
LARGEST_SIZE = 1 << 20
MOST_LAYERS = 1024


@dataclass(frozen=True)
class StoredModel:
    """A language model read from its folder."""

    config: ModelConfig
    parameters: dict[str, Array]
    tokenizer: str
    """The tokenizer's JSON."""
    about: dict[str, Any] = field(default_factory=dict)
    """The record of its training (corpus, steps, scores ...)."""


def write_stored_model(folder: Path, stored: StoredModel) -> None:
    """Write a language model into a folder, its parameters as float16.

    Raises OutputError if a file cannot be written.
    """
    config = {"model_type": MODEL_TYPE, **asdict(stored.config), "about": stored.about}
    halves = {}
    for name, array in sorted(stored.parameters.items()):
        halves[name] = np.asarray(array, np.float16)
    config_json = json.dumps(config, indent=2) + "\n"
    contents = {
        TOKENIZER: stored.tokenizer.encode(),
        WEIGHTS: save(halves, {"format": "np"}),
        CONFIG: config_json.encode(),
    }
    write_folder(folder, contents)


def is_own_model(folder: Path) -> bool:
    """Return whether a folder holds a model that ``attnviz train`` wrote.

    It does if its config.json says so; a file that cannot be read says nothing.
    """
    try:
        config = json.loads(read_regular_file(folder / CONFIG, LARGEST_CONFIG))
        return bool(config.get("model_type") == MODEL_TYPE)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_stored_model(folder: Path) -> StoredModel:
    """Read a language model from its folder, its parameters as float32.

    Raises ModelError if a file is missing or damaged, or if the files do not fit each other.
    """
    config, about = read_model_config(folder)
    try:
        weights = read_regular_file(folder / WEIGHTS, limit_weights(config))
        tokenizer = read_regular_file(folder / TOKENIZER, LARGEST_TOKENIZER).decode()
        halves = load(weights)
    except OSError as error:
        file = Path(error.filename).name
        raise ModelError(
            f"cannot read the model in {folder}: {file}: {describe_os_error(error)}",
        ) from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"the model in {folder} is damaged: {error}") from error
    require_shapes(folder, halves, config)
    parameters = {name: array.astype(np.float32) for name, array in halves.items()}
    return StoredModel(
        config=config,
        parameters=parameters,
        tokenizer=tokenizer,
        about=about,
    )


def limit_weights(config: ModelConfig) -> int:
    """Return how many bytes the weights of a model of some sizes have at most."""
    number_count = sum(map(math.prod, list_parameter_shapes(config).values()))
    return LARGEST_HEADER + BYTES_A_NUMBER * number_count


def require_shapes(folder: Path, parameters: dict[str, Array], config: ModelConfig) -> None:
    """Raise ModelError unless parameters have the names and shapes that a config asks for.

    folder: of the model, for the message.
    """
    stored = {name: array.shape for name, array in parameters.items()}
    expected = list_parameter_shapes(config)
    if stored != expected:
        wrong = set(stored.items()) ^ set(expected.items())
        name, shape = sorted(wrong)[0]
        raise ModelError(f"the weights in {folder} do not fit its {CONFIG}: {name} {shape}")


def read_model_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read the sizes of a language model from its config.json, and the record of its training.

    Raises ModelError if the file cannot be read, or asks for sizes that no model can have.
    """
    path = folder / CONFIG
    try:
        data = json.loads(read_regular_file(path, LARGEST_CONFIG))
        # Older files name no score function.
        score = data.get("score", ModelConfig.score)
        sizes = {name: data[name] for name in SIZES}
        config = ModelConfig(**sizes, score=score)
        about = dict(data.get("about", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    are_possible = all(map(is_possible_size, sizes.values()))
    if not are_possible or config.layers > MOST_LAYERS:
        raise ModelError(f"{path} asks for impossible sizes: {sizes}")
    dim, heads = config.dim, config.heads
    if dim % (2 * heads):
        raise ModelError(f"{path}: dim {dim} is not an even multiple of {heads} heads")
    # A tuple can be asked for a score of any type, a dict for one that can be hashed only.
    if score not in tuple(SCORES):
        known = ", ".join(SCORES)
        raise ModelError(f"{path}: score {score!r} is none of {known}")
    return config, about


def is_possible_size(size: Any) -> bool:
    """Return whether a value of any type can be a size of a model."""
    return type(size) is int and 0 < size <= LARGEST_SIZE
