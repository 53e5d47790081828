"""Errors that a user can cause, each with its exit code.

The message says what is wrong, what is allowed, and what to do.

AttnvizError
├── UsageError    2   an option, layer, head, suffix or device that is not there
├── ModelError    3   the model cannot be had, or is refused
├── InputError    4   a text, input file or capture cannot be used
└── OutputError   5   the output cannot be written
"""


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
