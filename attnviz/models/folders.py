"""The folders that a model is made of: its own, its tokenizer's, and that of an adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from attnviz.errors import ModelError, require_packages
from attnviz.io.files import describe_os_error
from attnviz.io.untrusted import LARGEST_CONFIG, read_regular_file
from attnviz.models.names import BUILTIN
from attnviz.request import Companions

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZERS = "tokenizer.json", "tokenizer_config.json"
# the end of the name of a part in modules.json
TRANSFORMER = ".Transformer"

Locate = Callable[[str, str | None], Path]
"""Return the local folder of a model, by its name and revision."""


class Folders(NamedTuple):
    """The folders of a model. Without one of its own, its tokenizer is beside its weights."""

    model: Path
    tokenizer: Path | None = None
    adapter: Path | None = None


def gather_folders(
    name: str,
    revision: str | None,
    companions: Companions,
    locate: Locate,
) -> Folders:
    """Find the folders of a model, of its tokenizer and of its adapter, by the names of these.

    An adapter is a set of changes to the weights of a base model, in a folder of its own. The base
    that the adapter names is found if the model's folder holds an adapter and no whole model, and
    if an adapter is named while the model is left at its default.

    name, revision: the name and the revision of the model. companions: the names of another
    tokenizer and of an adapter, if any. locate: a function that returns the local folder of a name
    and a revision. In the result, the tokenizer is None if it is to be read beside the model's
    weights, and the adapter is None if there is none. Raises ModelError if a folder cannot be
    found, or is no adapter where one is needed, and if there would be two adapters.
    """
    adapter = None
    if companions.adapter is not None:
        adapter = locate(companions.adapter, None)
    tokenizer = None
    if companions.tokenizer is not None:
        tokenizer = find_transformer_folder(locate(companions.tokenizer, None))
    # the value of --model when nobody names a model
    is_default = name == BUILTIN
    if adapter is not None and is_default:
        model = adapter
    else:
        model = find_transformer_folder(locate(name, revision))
    if adapter != model and holds_adapter(model):
        if adapter is not None:
            raise ModelError(
                f"{model} holds an adapter of its own: "
                "leave --adapter out, or name its base with --model",
            )
        adapter = model
    if adapter is not None:
        require_adapter(adapter)
    if holds_adapter(model) and not holds_weights(model):
        model = locate_base(model, locate)
    if tokenizer is None and adapter is not None and holds_tokenizer(adapter):
        tokenizer = adapter
    return Folders(model, tokenizer, adapter)


def holds_adapter(folder: Path) -> bool:
    """Return True if a folder holds a PEFT adapter, alone or beside its base model's weights."""
    return (folder / ADAPTER_CONFIG).exists()


def holds_weights(folder: Path) -> bool:
    """Return True if a folder holds a model's own weights, and not only those of an adapter."""
    own = [file for file in folder.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS]
    return bool(own) and (folder / "config.json").exists()


def holds_tokenizer(folder: Path) -> bool:
    """Return True if a folder holds a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZERS)


def require_adapter(folder: Path) -> None:
    """Raise ModelError unless a folder holds a PEFT adapter and the package peft is installed."""
    if not folder.is_dir():
        raise ModelError(f"there is no adapter folder {folder}")
    if not holds_adapter(folder):
        raise ModelError(f"{folder} is no adapter: it has no {ADAPTER_CONFIG}")
    require_packages(f"{folder} is a PEFT adapter, which", "peft")


def read_json_config(path: Path) -> Any:
    """Read a JSON file of the size of a config, and return the value in it.

    Raises ModelError for a file that is not there, is larger than a config, or is not JSON.
    """
    try:
        return json.loads(read_regular_file(path, LARGEST_CONFIG))
    except OSError as error:
        raise ModelError(f"{path}: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def find_transformer_folder(folder: Path) -> Path:
    """Find the folder of the transformer of a model: the model's own folder, or one inside it.

    The library sentence-transformers lists the parts of a model in modules.json, and keeps each
    part in a folder inside the model's. Without such a list the model's own folder is returned.
    Raises ModelError for a list that cannot be read, or that names a folder outside of the model's.
    """
    list_path = folder / "modules.json"
    if not list_path.exists():
        return folder
    modules = read_json_config(list_path)
    if not isinstance(modules, list):
        return folder
    for module in modules:
        entry = module if isinstance(module, dict) else {}
        kind = entry.get("type")
        subfolder = entry.get("path")
        is_transformer = isinstance(kind, str) and kind.endswith(TRANSFORMER)
        if is_transformer and isinstance(subfolder, str) and subfolder:
            return require_inside(folder, subfolder)
    return folder


def require_inside(folder: Path, subfolder: str) -> Path:
    """Return the folder inside a model's folder that its modules.json names.

    folder: the folder of the model. subfolder: a path relative to it, which an untrusted file
    names. Raises ModelError if this leads out of the model's folder, or if there is no such folder.
    """
    list_path = folder / "modules.json"
    target = folder / subfolder
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{list_path} names the folder {subfolder!r}, which is outside of {folder}",
        )
    if not target.is_dir():
        raise ModelError(f"{list_path} names the folder {subfolder!r}, which is not there")
    return target


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the config of the adapter in a folder, as the entries of its JSON by name.

    Raises ModelError if it cannot be read.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json_config(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no config of an adapter")
    return config


def locate_base(adapter: Path, locate: Locate) -> Path:
    """Find the folder of the model that the config of an adapter names as its base.

    adapter: the adapter's folder. locate: a function that returns the local folder of a name and a
    revision. Raises ModelError if the config names no base, if the base cannot be found, and if it
    is an adapter too.
    """
    config = read_adapter_config(adapter)
    base = config.get("base_model_name_or_path")
    revision = config.get("revision")
    advice = f"give its base model: --model BASE --adapter {adapter}"
    if not isinstance(base, str) or not base:
        raise ModelError(f"{adapter} is an adapter that does not name its base model; {advice}")
    try:
        folder = locate(base, revision if isinstance(revision, str) else None)
    except ModelError as error:
        raise ModelError(f"{adapter} is an adapter of {base!r}: {error}; or {advice}") from error
    folder = find_transformer_folder(folder)
    if not folder.is_dir():
        raise ModelError(f"{adapter} is an adapter of {base!r}, which is not there; {advice}")
    if holds_adapter(folder):
        raise ModelError(f"{adapter} is an adapter of {base!r}, which is an adapter too; {advice}")
    return folder
