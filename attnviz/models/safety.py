"""Checks on a Hugging Face folder before anything is built from it: its files, and their sizes."""

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from attnviz.errors import ModelError
from attnviz.io.files import describe_os_error

LARGEST_CONFIG = 1 << 20  # bytes; real ones are a few thousand
MOST_LAYERS = 1024
COUNT = re.compile(r"layers?$|depths?$|groups?(_num)?$|num_.*blocks$")
"""The names of counts of parts that are built one by one."""
ORIGINAL = "only safetensors are read, so use the folder of the model that it was made from"
PICKLES = "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack"


def require_safe(folder: Path) -> int:
    """Check that a model can be loaded safely from a folder, and count the numbers in its weights.

    Raises ModelError for a folder without config or safetensors, for a config that brings code or
    asks for absurd sizes, and for weights that cannot be read.
    """
    if folder.is_file() and folder.suffix == ".gguf":
        raise ModelError(f"{folder} is a GGUF file: {ORIGINAL}")
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file, and a model is a folder: "
            "config.json, safetensors and a tokenizer",
        )
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("*.gguf")):
        raise ModelError(f"{folder} has its weights as GGUF: {ORIGINAL}")
    require_sane_config(folder)
    if not files and any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise ModelError(
            f"{folder} has its weights as a pickle, which can run code: only safetensors are read",
        )
    if not files:
        raise ModelError(f"{folder} has no weights (*.safetensors)")
    return sum(count_elements(file) for file in files)


def require_sane_config(folder: Path) -> None:
    """Raise ModelError unless a folder has a config.json that is safe to build a model from.

    It must be small JSON, bring no code of its own, and ask for no absurd number of layers.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{path} is too large for a config")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{folder} is no model: config.json: {describe_os_error(error)}",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if isinstance(config, dict) and config.get("auto_map"):
        raise ModelError(
            f"{folder} brings code of its own (auto_map in config.json), "
            "which is refused and never run",
        )
    for name, number in list_integers(config):
        if COUNT.search(name) and number > MOST_LAYERS:
            raise ModelError(f"{path} asks for {name} = {number}; at most {MOST_LAYERS} are built")


def list_integers(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and the value of each integer of a config, nested configs included.

    An integer in a list has the name of the list.
    """
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        if isinstance(value, dict):
            yield from list_integers(value)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, int):
                yield name, item


def count_elements(file: Path) -> int:
    """Count the numbers in a safetensors file by its header. Raises ModelError if it is damaged."""
    return sum(prod(shape) for shape in read_shapes(file).values())


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, by their names.

    Only the header of the file is read. Raises ModelError if it is damaged.
    """
    try:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
