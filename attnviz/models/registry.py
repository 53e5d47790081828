"""The table of backends: each tells whether it reads the model in a folder, and loads it.

A backend is a file or folder of its own beside this one, and a row of ``BACKENDS``. The two
functions of a row import what they need when they are called: a model loads no library but its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from attnviz.errors import ModelError
from attnviz.io.files import describe_os_error
from attnviz.models.base import LoadOptions, Model, require_predictions
from attnviz.progress import begin_step, shorten_name
from attnviz.request import NO_COMPANIONS, Companions, Placement

if TYPE_CHECKING:
    from attnviz.models.folders import Folders

Recognise: TypeAlias = Callable[[Path], bool]
"""Tell whether a backend reads the model in a folder. It must import no heavy library."""
LoadFolders: TypeAlias = Callable[[str, "Folders", LoadOptions], Model]
"""Load a model from its folders under a name. Raises ModelError, UsageError."""


@dataclass(frozen=True)
class Backend:
    """A way to run models, by the folders that they are read from."""

    name: str
    recognise: Recognise
    load: LoadFolders


def recognise_own_model(folder: Path) -> bool:
    """Tell whether a folder holds a model that ``attnviz train`` wrote."""
    from attnviz.lm import store

    return store.is_own_model(folder)


def load_own_model(name: str, folders: "Folders", options: LoadOptions) -> Model:
    """Load a model that ``attnviz train`` wrote. Raises ModelError, UsageError."""
    from attnviz.models.builtin import Builtin

    return Builtin.load(name, folders, options.placement)


def recognise_any_folder(folder: Path) -> bool:  # noqa: ARG001 - a row has this signature
    """Return True: the transformers backend takes any folder, and says what is wrong with it."""
    return True


def load_transformers_model(
    name: str,
    folders: "Folders",
    options: LoadOptions,
) -> Model:
    """Load a model of the transformers library. Raises ModelError, UsageError."""
    from attnviz.models.engines import load_quick_model

    def load_torch() -> Model:
        with begin_step("importing torch and transformers"):
            from attnviz.models.huggingface.model import HuggingFace

        return HuggingFace.load(
            name,
            folders,
            options.placement,
            writes=options.writes,
            predicts=options.predicts,
        )

    return load_quick_model(name, folders, options, load_torch)


BACKENDS: tuple[Backend, ...] = (
    Backend("numpy", recognise_own_model, load_own_model),
    Backend("transformers", recognise_any_folder, load_transformers_model),
)
"""The backends in the order in which they are asked. The last one takes any folder."""


def find_backend(folder: Path) -> Backend:
    """Return the first backend that reads the model in a folder. Raises ModelError if none does."""
    for backend in BACKENDS:
        if backend.recognise(folder):
            return backend
    raise ModelError(f"no backend of attnviz reads the model in {folder}")


def load_model(
    name: str = "builtin",
    *,
    revision: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    companions: Companions = NO_COMPANIONS,
    offline: bool = False,
    quiet: bool = True,
    writes: bool = False,
    predicts: bool = False,
) -> Model:
    """Load a model by its name: ``builtin``, a folder, an alias or a hub id.

    A hub id is looked up in the local cache first, and then downloaded. The folder of an adapter
    stands for the base model that it was made for, with the adapter applied.

    revision: a branch, tag or commit on the hub. placement: the device and the number type.
    companions: the names of another tokenizer and of an adapter. offline: True to download nothing.
    quiet: True to show no progress. writes: True to load the part that continues a text, for
    ``Prompt.generate``. predicts: True to load whatever part it has that predicts, for ``respond``
    and gradients. Raises ModelError if the model cannot be had or is refused, and UsageError if the
    device is not there.
    """
    from attnviz.models import names
    from attnviz.models.folders import gather_folders
    from attnviz.models.safety import require_plain_files

    def locate(name: str, revision: str | None) -> Path:
        return names.locate_model(name, revision=revision, offline=offline, quiet=quiet)

    try:
        folders = gather_folders(name, revision, companions, locate)
        for folder in filter(None, folders):
            require_plain_files(folder)
    except PermissionError as error:
        raise ModelError(f"{error.filename}: {describe_os_error(error)}") from error
    backend = find_backend(folders.model)
    options = LoadOptions(placement, writes=writes, predicts=predicts)
    with begin_step(f"loading {shorten_name(name)}"):
        model = backend.load(name, folders, options)
    if predicts:
        require_predictions(model)
    return model
