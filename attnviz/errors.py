"""Errors that a user can cause, each with its exit code.

The message says what is wrong, what is allowed, and what to do.

AttnvizError
├── UsageError    2   an option, layer, head, suffix or device that is not there
├── ModelError    3   the model cannot be had, or is refused
├── InputError    4   a text, input file or capture cannot be used
└── OutputError   5   the output cannot be written

A package that is not installed is one of them: ``require_packages`` names it where it is needed.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

CHANGE_FOLDER = "change to another folder with cd"


class AttnvizError(Exception):
    """Base of all errors of this package that are the user's to mend."""

    exit_code = 70


class UsageError(AttnvizError):
    """An option, layer, head, suffix or device that is not there."""

    exit_code = 2


class ModelError(AttnvizError):
    """The model cannot be had, or is refused."""

    exit_code = 3


class InputError(AttnvizError):
    """A text, input file or capture cannot be used."""

    exit_code = 4


class OutputError(AttnvizError):
    """The output cannot be written."""

    exit_code = 5


def is_panic(error: BaseException) -> bool:
    """Return True for the error by which a library in Rust says that it gives up.

    It is no ``Exception``, and its class can be told by its name only, since Rust makes it.
    """
    return type(error).__name__ == "PanicException"


def require_packages(
    use: str,
    *packages: str,
    error: type[AttnvizError] = ModelError,
) -> None:
    """Raise an error with the command that installs packages, unless all of them can be imported.

    use: what needs them, in the singular. packages: their names, as they are imported.
    """
    missing = list_missing_packages(*packages)
    if missing:
        raise error(f"{use} needs {explain_missing_packages(missing)}")
    # MKL, a part of torch, ends the process where it finds no current folder.
    is_to_come = "torch" in packages and "torch" not in sys.modules
    if is_to_come and not has_current_folder():
        reason = "cannot start here because the current folder was deleted"
        raise error(f"{use} needs torch, which {reason}: {CHANGE_FOLDER}")


def has_current_folder() -> bool:
    """Return whether the current folder of the process is still there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def list_missing_packages(*packages: str) -> list[str]:
    """List those of some packages that are not installed; none of them is imported."""
    return [package for package in packages if find_spec(package) is None]


def explain_missing_packages(packages: Sequence[str]) -> str:
    """Name packages, say that they are not installed, and how to get them.

    To pip, the names of all packages that attnviz imports are those of the modules.
    """
    verb = "is" if len(packages) == 1 else "are"
    names, words = " and ".join(packages), " ".join(packages)
    return f"{names}, which {verb} not installed: run 'pip install {words}'"
