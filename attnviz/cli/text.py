"""The TEXT of a command: the argument itself, - for stdin, @file, @sample:NAME; @@ begins a text with one @."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from attnviz.cli.talk import Talk
from attnviz.errors import InputError
from attnviz.escape import require_unicode
from attnviz.io.files import decode, read_some, read_text
from attnviz.io.samples import read_sample

SENTENCE = "The cat sat on the mat because it was tired."
SAMPLE = "sample:"
MOST = (
    4 * 2**20
)  # bytes of a text: a million words, which would take a tokenizer seconds and gigabytes


def read(text: str | None, talk: Talk) -> str:
    """The text that a command is to use; without an argument stdin, else a sample sentence. Raises InputError."""
    if text is None:
        piped = read_stdin() if stdin_is_given() else ""
        if piped.strip():
            return piped
        talk.note(f"no text given; using a sample: {SENTENCE}")
        return SENTENCE
    found = resolve(text)
    require_unicode(found, "the text")
    if not found.strip():
        raise InputError("the text is empty" if text == found else f"the text in {text} is empty")
    return found


def read_all(texts: Sequence[str], lines: bool, talk: Talk) -> list[str]:
    """The texts that a command is to use, each as ``read`` does; with ``lines`` each line of them that says something.

    Raises InputError.
    """
    found = [read(text, talk) for text in texts or (None,)]
    return (
        [line for text in found for line in text.splitlines() if line.strip()] if lines else found
    )


def resolve(text: str) -> str:
    """An argument as the text that it stands for."""
    if text == "-":
        return read_stdin()
    if text.startswith("@@"):
        return text[1:]
    if text.startswith(f"@{SAMPLE}"):
        return read_sample(text.removeprefix(f"@{SAMPLE}"))
    return read_text(Path(text[1:]), MOST) if text.startswith("@") else text


def read_stdin() -> str:
    """All of stdin. Raises InputError if it is closed or not UTF-8."""
    if sys.stdin is None:
        raise InputError("there is no stdin to read a text from")
    return decode(read_some(sys.stdin.buffer, "stdin", MOST), "stdin")


def stdin_is_given() -> bool:
    """Whether stdin is a pipe or a file, not a terminal or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # closed, or replaced by an object without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
