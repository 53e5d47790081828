"""A language model on disk: a folder with config.json, model.safetensors (float16) and tokenizer.json."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from attnviz.errors import ModelError
from attnviz.io.files import reason, write_folder
from attnviz.layer.arrays import Array
from attnviz.layer.scores import SCORES
from attnviz.lm.model import Config, shapes

MODEL_TYPE = "attnviz"
BUILTIN = Path(__file__).with_name("builtin")
SIZES = [field.name for field in fields(Config) if field.name != "score"]
FILES = CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Stored:
    """A language model read from its folder; ``about`` is what training recorded (corpus, steps, scores ...)."""

    config: Config
    parameters: dict[str, Array]
    tokenizer: str
    """The tokenizer's JSON."""
    about: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, stored: Stored) -> None:
    """Write a model folder. Raises OutputError."""
    config = {"model_type": MODEL_TYPE, **asdict(stored.config), "about": stored.about}
    halves = {
        name: np.asarray(array, np.float16) for name, array in sorted(stored.parameters.items())
    }
    contents = {
        TOKENIZER: stored.tokenizer.encode(),
        WEIGHTS: save(halves, {"format": "np"}),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    }
    write_folder(folder, contents)


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a model that ``attnviz train`` wrote, going by its config."""
    try:
        with (folder / CONFIG).open("rb") as file:
            return bool(json.loads(file.read(1 << 20)).get("model_type") == MODEL_TYPE)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read(folder: Path) -> Stored:
    """Read a model folder, parameters as float32. Raises ModelError if it is incomplete, damaged or inconsistent."""
    config, about = read_config(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        tokenizer = (folder / TOKENIZER).read_text("utf-8")
        parameters = load(weights)
    except OSError as error:
        raise ModelError(
            f"cannot read the model in {folder}: {Path(error.filename).name}: {reason(error)}"
        ) from error
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ModelError(f"the model in {folder} is damaged: {error}") from error
    found = {name: array.shape for name, array in parameters.items()}
    if found != shapes(config):
        wrong = sorted(set(found.items()) ^ set(shapes(config).items()))[0]
        raise ModelError(f"the weights in {folder} do not fit its {CONFIG}: {wrong[0]} {wrong[1]}")
    return Stored(
        config,
        {name: array.astype(np.float32) for name, array in parameters.items()},
        tokenizer,
        about,
    )


def read_config(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The sizes in config.json and what training recorded. Raises ModelError if they cannot be."""
    try:
        data = json.loads((folder / CONFIG).read_bytes())
        score = data.get("score", Config.score)  # models of before had no other
        config = Config(**{name: data[name] for name in SIZES}, score=score)
        about = dict(data.get("about", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {folder / CONFIG}: {error}") from error
    sizes = {name: getattr(config, name) for name in SIZES}
    if (
        not all(type(size) is int and 0 < size <= 1 << 20 for size in sizes.values())
        or config.layers > 1024
    ):
        raise ModelError(f"{folder / CONFIG} asks for impossible sizes: {sizes}")
    if config.dim % (2 * config.heads):
        raise ModelError(
            f"{folder / CONFIG}: dim {config.dim} is not an even multiple of {config.heads} heads"
        )
    if score not in tuple(SCORES):  # which may be of any type
        raise ModelError(f"{folder / CONFIG}: score {score!r} is none of {', '.join(SCORES)}")
    return config, about
