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
from attnviz.io.untrusted import (
    LARGEST_CONFIG,
    LARGEST_LIST,
    MEGABYTE,
    read_json,
    read_regular_file,
    require_regular_status,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHAT_TEMPLATES = "additional_chat_templates"
LARGEST_VOCABULARY = 128 * MEGABYTE
"""The most bytes of a file of a tokenizer; the largest have about 35 MB."""
LARGEST_FILES = {
    CONFIG: LARGEST_CONFIG,
    "chat_template.*": LARGEST_CONFIG,
    f"{CHAT_TEMPLATES}/*": LARGEST_CONFIG,
    "*_config.json": LARGEST_LIST,
    "*.index.json": LARGEST_LIST,
    "added_tokens.json": LARGEST_LIST,
    "special_tokens_map.json": LARGEST_LIST,
    "tokenizer.json": LARGEST_VOCABULARY,
    "vocab*": LARGEST_VOCABULARY,
    "merges.txt": LARGEST_VOCABULARY,
    "*.model": LARGEST_VOCABULARY,
    "*.spm": LARGEST_VOCABULARY,
}
"""The most bytes of the files of a model that are read whole, by patterns of their names."""
NAMING_ENTRIES = "fast_tokenizer_files", "configuration_files", "transformers_weights"
"""Entries of configs by which the library opens other files than it otherwise would."""
MOST_LAYERS = 1024
MOST_PARTS = 1 << 17
COUNTS = {
    re.compile(r"layers?$|depths?$|groups?(_num)?$|num_.*blocks$"): MOST_LAYERS,
    re.compile(r"(labels|classes|experts|heads?)$"): MOST_PARTS,
}
"""The names of counts of parts that are built or named one by one, and the most of each."""
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
    require_inner_files(folder)
    if not files and any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise ModelError(
            f"{folder} has its weights as a pickle, which can run code: only safetensors are read",
        )
    if not files:
        raise ModelError(f"{folder} has no weights (*.safetensors)")
    return sum(count_elements(file) for file in files)


def require_plain_files(folder: Path) -> None:
    """Raise ModelError unless what a model's folder holds can be opened safely.

    Devices, pipes and sockets are refused, which may never end, and files that are too large to be
    what their name says. Links are followed: the cache of the hub is made of them. A folder that is
    not there passes.
    """
    if not folder.is_dir():
        return
    try:
        files = [*folder.iterdir(), *folder.glob(f"{CHAT_TEMPLATES}/*")]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {describe_os_error(error)}") from error
    for path in sorted(files):
        if path.exists() and not path.is_dir():
            require_plain_file(path, folder)


def require_plain_file(path: Path, folder: Path) -> None:
    """Raise ModelError for a file of a folder that is no regular one, or is too large."""
    try:
        status = path.stat()
        require_regular_status(status)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {describe_os_error(error)}") from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    name = path.relative_to(folder)
    limits = [most for pattern, most in LARGEST_FILES.items() if name.match(pattern)]
    if limits and status.st_size > limits[0]:
        size, most = status.st_size / MEGABYTE, limits[0] / MEGABYTE
        raise ModelError(f"{path} is too large: it has {size:.4g} MB, and {most:.4g} MB are read")


def require_inner_files(folder: Path) -> None:
    """Raise ModelError if the index or a config of a folder names a file outside of the folder."""
    if (folder / INDEX).exists():
        read_index(folder)
    for path in folder.glob("*config.json"):
        config = read_small_json(path)
        entries = config if isinstance(config, dict) else {}
        for entry in NAMING_ENTRIES:
            names = entries.get(entry) or []
            require_inner_names(path, names if isinstance(names, list) else [names])


def read_small_json(path: Path) -> Any:
    """Read a JSON file whose size is that of a list of names at most. Raises ModelError."""
    try:
        return json.loads(read_regular_file(path, LARGEST_LIST))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def require_inner_names(path: Path, names: Any) -> None:
    """Raise ModelError unless all of some values are names of files, without a path to them.

    path: the file that names them.
    """
    for name in names:
        is_name = isinstance(name, str) and name not in ("", ".", "..")
        if not is_name or Path(name).name != name or "\\" in name:
            raise ModelError(f"{path} names a file outside the folder: {name!r}")


def read_index(folder: Path) -> dict[str, str]:
    """Read the name of the file of each tensor from a folder. Raises ModelError for a bad index."""
    path = folder / INDEX
    try:
        index = read_json(path, LARGEST_LIST)
        file_of_tensor = dict(index["weight_map"].items())
    except OSError as error:
        raise ModelError(f"{folder} has no weights: {describe_os_error(error)}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no index of weights: {error}") from error
    require_inner_names(path, file_of_tensor.values())
    return file_of_tensor


def require_sane_config(folder: Path) -> None:
    """Raise ModelError unless a folder has a config.json that is safe to build a model from.

    It must be small JSON, bring no code of its own, and ask for no absurd number of layers.
    """
    path = folder / CONFIG
    try:
        config = json.loads(read_regular_file(path, LARGEST_CONFIG))
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
        for pattern, most in COUNTS.items():
            if pattern.search(name) and number > most:
                raise ModelError(f"{path} asks for {name} = {number}; at most {most} are built")


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
