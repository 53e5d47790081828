"""Model names: builtin, a folder, an alias, or a repository on the Hugging Face hub; each becomes a local folder."""

import json
from pathlib import Path
from typing import Any

from attnviz.errors import AttnvizError, ModelError
from attnviz.lm import store

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


def locate(
    name: str, *, revision: str | None = None, offline: bool = False, quiet: bool = True
) -> Path:
    """The local folder of a model; a hub id is looked up in the cache, then downloaded. Raises ModelError."""
    if name == BUILTIN:
        return store.BUILTIN
    if looks_like_path(name):
        return Path(name).expanduser()
    repository = ALIASES.get(name, name)
    return cached(repository, revision) or download(
        name, repository, revision, offline=offline, quiet=quiet
    )


def looks_like_path(name: str) -> bool:
    """Whether a name means a folder rather than a repository: it exists, or it could not be a repository's name."""
    if name in ALIASES:
        return False
    if (
        name.startswith((".", "/", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
    ):
        return True
    try:
        return Path(name).exists()
    except OSError:  # longer than any path
        return False


def cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a repository in the local cache, or None if it is not there or has no config."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, **PARTS)
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(unknown(repository)) from error
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether a cached folder has all that a model needs: config, tokenizer, and every part of its weights.

    An adapter needs no more than its own config and weights.
    """
    if all(
        (folder / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors")
    ):
        return True
    tokenizer = any(
        file
        for pattern in ("tokenizer.json", "vocab.*", "*.model")
        for file in folder.glob(pattern)
    )
    try:
        parts = set(
            json.loads((folder / "model.safetensors.index.json").read_bytes())[
                "weight_map"
            ].values()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        parts = {file.name for file in folder.glob("*.safetensors")}
    return (
        tokenizer
        and (folder / "config.json").exists()
        and bool(parts)
        and all((folder / p).exists() for p in parts)
    )


def download(
    name: str, repository: str, revision: str | None, *, offline: bool, quiet: bool
) -> Path:
    """Fetch a repository into the cache, with progress on stderr unless quiet. Raises ModelError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if offline or constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{described(name, repository)} is not in the local cache, and downloads are off; {advice(repository)}"
        )
    if quiet:
        disable_progress_bars()
    try:
        return Path(snapshot_download(repository, revision=revision, **PARTS))
    except KeyboardInterrupt:
        raise
    except (
        Exception
    ) as error:  # the hub library's own errors, and those of the network library below it
        raise refusal(error, name, repository, revision) from error


def refusal(error: Exception, name: str, repository: str, revision: str | None) -> AttnvizError:
    """What a failed download means to the user."""
    from huggingface_hub import errors

    model = described(name, repository)
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{model} is gated: ask for access on its page, then run 'hf auth login'")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{model} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{model} is not on the hub, or is private; 'attnviz models' lists names that work"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(
            f"{model} is not in the local cache and the hub cannot be reached; {advice(repository)}"
        )
    return ModelError(
        f"{model} cannot be downloaded: {type(error).__name__}: {str(error).splitlines()[0]}"
    )


def described(name: str, repository: str) -> str:
    """A model by its name, and what an alias stands for."""
    return f"model {name!r}" if name == repository else f"model {name!r} ({repository})"


def advice(repository: str) -> str:
    """What to do without a network."""
    return f"use --model builtin, a local folder, or run 'hf download {repository}' where there is a network"


def unknown(name: str) -> str:
    """The message for a name that is no folder and could be no repository."""
    return f"there is no model {name!r}: use builtin, a folder, an alias or a hub id ('attnviz models' lists names)"
