"""The local cache of the Hugging Face hub, read without the library of the hub.

Importing that library takes longer than drawing a picture. The folders of the cache are documented:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"
MODELS = "models--"
"""The beginning of the names of the folders of models; the rest is that of the repository."""


def find_snapshot(repository: str, revision: str | None) -> Path | None:
    """Return the folder of the files of a repository in the cache; None if there is none.

    revision: a branch, a tag or a commit; None for the main branch. The folder may lack files.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        return None
    folder = find_cache() / (MODELS + repository.replace("/", "--"))
    commit = resolve_commit(folder, revision or MAIN)
    if commit is None:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def find_cache() -> Path:
    """Return the folder of the cache, by the variables that the library of the hub reads."""
    environment = os.environ
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    hub_home = environment.get("HF_HOME") or f"{home}/huggingface"
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    folder = os.path.expandvars(cache or f"{hub_home}/hub")
    return Path(os.path.expanduser(folder))  # noqa: PTH111 - no error for a user without a home


def resolve_commit(folder: Path, revision: str) -> str | None:
    """Return the commit that a revision means in the cached folder of a repository."""
    if COMMIT.fullmatch(revision):
        return revision
    if not REVISION.fullmatch(revision) or ".." in revision:
        return None
    reference = folder / "refs" / revision
    try:
        commit = reference.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def list_cached_models() -> list[str]:
    """List the names of the repositories of models of which the cache holds files.

    A cache that cannot be read holds none.
    """
    folders = set()
    with suppress(OSError):
        snapshots = find_cache().glob(f"{MODELS}*/snapshots/*/")
        folders = {snapshot.parent.parent for snapshot in snapshots}
    return sorted(folder.name.removeprefix(MODELS).replace("--", "/") for folder in folders)
