"""Checks on a Hugging Face folder before anything is built from it: what it holds, and how large it says it is."""

import json
import re
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from attnviz.errors import ModelError
from attnviz.io.files import reason

LARGEST_CONFIG = 1 << 20  # bytes; real ones are a few thousand
MOST_LAYERS = 1024
COUNT = re.compile(
    r"layers?$|depths?$|groups?(_num)?$|num_.*blocks$"
)  # of parts that are built one by one
ORIGINAL = "only safetensors are read, so use the folder of the model that it was made from"
PICKLES = "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack"


def require_safe(folder: Path) -> int:
    """Refuse a folder without config or safetensors, with absurd sizes or unreadable weights.

    Returns the number of elements in the weights. Raises ModelError.
    """
    if folder.is_file() and folder.suffix == ".gguf":
        raise ModelError(f"{folder} is a GGUF file: {ORIGINAL}")
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file, and a model is a folder: config.json, safetensors and a tokenizer"
        )
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("*.gguf")):
        raise ModelError(f"{folder} has its weights as GGUF: {ORIGINAL}")
    require_sane_config(folder)
    if not files and any(file for pattern in PICKLES for file in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has its weights as a pickle, which can run code: only safetensors are read"
        )
    if not files:
        raise ModelError(f"{folder} has no weights (*.safetensors)")
    return sum(elements(file) for file in files)


def require_sane_config(folder: Path) -> None:
    """Raise ModelError unless config.json can be read and its numbers of layers are possible."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{path} is too large for a config")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{folder} is no model: config.json: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if isinstance(config, dict) and config.get("auto_map"):
        raise ModelError(
            f"{folder} brings code of its own (auto_map in config.json), which is refused and never run"
        )
    for name, number in numbers(config):
        if COUNT.search(name) and number > MOST_LAYERS:
            raise ModelError(f"{path} asks for {name} = {number}; at most {MOST_LAYERS} are built")


def numbers(config: Any) -> list[tuple[str, int]]:
    """Every named integer of a config, those in lists and nested configs too."""
    found = []
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            found += numbers(value)
        found += [
            (name, item)
            for item in (value if isinstance(value, list) else [value])
            if isinstance(item, int)
        ]
    return found


def elements(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header. Raises ModelError if it is damaged."""
    return sum(prod(shape) for shape in read_shapes(file).values())


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, by its header. Raises ModelError if it is damaged."""
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
