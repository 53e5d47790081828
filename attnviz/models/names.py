"""Model names: builtin, a folder, an alias, or a repository on the Hugging Face hub.

Each name becomes a local folder.
"""

import json
from pathlib import Path
from typing import Any

from attnviz.errors import (
    AttnvizError,
    ModelError,
    OutputError,
    list_missing_packages,
    require_packages,
)
from attnviz.io.files import require_writable
from attnviz.io.untrusted import LARGEST_LIST, read_regular_file
from attnviz.lm import store
from attnviz.models.hub_cache import find_snapshot
from attnviz.progress import leave_screen

BUILTIN = "builtin"
ALIASES = {
    "bert-base": "google-bert/bert-base-uncased",
    "bert-large": "google-bert/bert-large-uncased",
    "bert-base-multilingual": "google-bert/bert-base-multilingual-cased",
    "distilbert": "distilbert/distilbert-base-uncased",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "roberta-base": "FacebookAI/roberta-base",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "distilgpt2": "distilbert/distilgpt2",
    "pythia-70m": "EleutherAI/pythia-70m",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
}
# Only what a model needs to run: no pickles, no code, no second copies in other formats or folders.
PARTS: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"],
    "ignore_patterns": ["*/*"],
}
ADAPTER_FILES = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_PATTERNS = "tokenizer.json", "vocab.*", "*.model"
INDEX = "model.safetensors.index.json"
HUB_LIBRARY = "huggingface_hub"


def locate_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    quiet: bool = True,
) -> Path:
    """Return the local folder of a model by its name, and download the model if need be.

    name: "builtin", the path of a folder, an alias of a hub id, or a hub id. A hub id is looked up
    in the local cache first. revision: a branch, tag or commit on the hub. offline: True to
    download nothing. quiet: True to show no progress. Raises ModelError if the model cannot be had.
    """
    if name == BUILTIN:
        return store.BUILTIN
    if looks_like_path(name):
        return Path(name).expanduser()
    repository = ALIASES.get(name, name)
    folder = find_cached_folder(repository, revision)
    if folder is not None:
        return folder
    return download_model(name, repository, revision, offline=offline, quiet=quiet)


def looks_like_path(name: str) -> bool:
    """Return True if the name of a model means a local folder, and not a repository on the hub.

    It does if it could not be the name of a repository, or if there is such a folder. An alias
    never does.
    """
    if name in ALIASES:
        return False
    has_path_ends = name.startswith((".", "/", "~")) or name.endswith("/")
    if has_path_ends or name.count("/") > 1 or "\\" in name:
        return True
    try:
        return Path(name).exists()
    except OSError:  # longer than any path
        return False


def find_cached_folder(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a hub repository in the local cache; None if files of it are missing.

    The library of the hub is asked only for what is not found without it, and need not be there.
    revision: a branch, tag or commit; None for the main branch. Raises ModelError if the name could
    be that of no repository.
    """
    quick_snapshot = find_snapshot(repository, revision)
    if quick_snapshot is not None and is_whole(quick_snapshot):
        return quick_snapshot
    if list_missing_packages(HUB_LIBRARY):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(repository, revision=revision, local_files_only=True, **PARTS)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(explain_unknown_name(repository)) from error
    folder = Path(snapshot)
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Return True if a cached folder has all files that a model needs to run.

    A model needs its config, its tokenizer, and every file of its weights. An adapter, which
    changes the weights of another model, needs its own config and weights only.
    """
    if all((folder / name).exists() for name in ADAPTER_FILES):
        return True
    has_tokenizer = any(any(folder.glob(pattern)) for pattern in TOKENIZER_PATTERNS)
    weight_files = list_weight_files(folder)
    if not has_tokenizer or not (folder / "config.json").exists():
        return False
    return bool(weight_files) and all((folder / name).exists() for name in weight_files)


def list_weight_files(folder: Path) -> set[str]:
    """Return the names of the files that hold a model's weights.

    They are the files that the index in the folder names, which need not be there. Without a
    readable index they are the safetensors files in the folder.
    """
    try:
        index = json.loads(read_regular_file(folder / INDEX, LARGEST_LIST))
        return set(map(str, index["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {file.name for file in folder.glob("*.safetensors")}


def download_model(
    name: str,
    repository: str,
    revision: str | None,
    *,
    offline: bool,
    quiet: bool,
) -> Path:
    """Download a repository from the hub into the local cache, and return its folder there.

    name: the name of the model as the user wrote it, for errors. repository: the hub id that it
    stands for. revision: a branch, tag or commit. offline: True to refuse. quiet: True to show no
    progress on stderr. Raises ModelError if downloads are off, if the library of the hub is not
    installed, and for a download that fails.
    """
    model = describe_model(name, repository)
    require_packages(f"{model} is not in the local cache: a download", HUB_LIBRARY)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if offline or constants.HF_HUB_OFFLINE:
        advice = advise_offline(repository)
        raise ModelError(f"{model} is not in the local cache, and downloads are off; {advice}")
    require_writable_cache(Path(constants.HF_HUB_CACHE), model)
    if quiet:
        disable_progress_bars()
    try:
        with leave_screen():  # the library draws bars
            return Path(snapshot_download(repository, revision=revision, **PARTS))
    except KeyboardInterrupt:
        raise
    # errors of the hub library's own, and of the network library below it
    except Exception as error:
        raise explain_download_failure(error, name, repository, revision) from error


def require_writable_cache(cache: Path, model: str) -> None:
    """Raise ModelError unless the local cache can be written to, as a download needs it.

    The library of the hub would log a line for each of the files first. cache: its folder. model:
    the model in words.
    """
    try:
        require_writable(cache)
    except OutputError as error:
        advice = "set HF_HOME to a folder that can be written to"
        raise ModelError(f"{model} cannot be downloaded: {error}; {advice}") from error


def explain_download_failure(
    error: Exception,
    name: str,
    repository: str,
    revision: str | None,
) -> AttnvizError:
    """Return the error that tells the user why the download of a model failed.

    error: the exception of the hub's library. name: the name of the model as the user wrote it.
    repository: the hub id that it stands for. revision: the branch, tag or commit that was asked
    for.
    """
    from huggingface_hub import errors

    model = describe_model(name, repository)
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{model} is gated: ask for access on its page, then run 'hf auth login'")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{model} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{model} is not on the hub, or is private; 'attnviz models' lists names that work",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        advice = advise_offline(repository)
        return ModelError(
            f"{model} is not in the local cache and the hub cannot be reached; {advice}",
        )
    kind = type(error).__name__
    first_line = str(error).splitlines()[0]
    return ModelError(f"{model} cannot be downloaded: {kind}: {first_line}")


def describe_model(name: str, repository: str) -> str:
    """Return the name of a model in a message, with the repository that an alias stands for."""
    return f"model {name!r}" if name == repository else f"model {name!r} ({repository})"


def advise_offline(repository: str) -> str:
    """Say what to do without a network."""
    return (
        "use --model builtin, a local folder, "
        f"or run 'hf download {repository}' where there is a network"
    )


def explain_unknown_name(name: str) -> str:
    """Say that a name is no folder and could be no repository."""
    return (
        f"there is no model {name!r}: use builtin, a folder, an alias or a hub id "
        "('attnviz models' lists names)"
    )
