"""The TEXT of a command: itself, - for stdin, @file or @sample:NAME; @@ begins one with @."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from attnviz.cli.talk import Talk
from attnviz.errors import InputError
from attnviz.escape import require_unicode
from attnviz.io.files import decode_utf8, read_limited, read_text
from attnviz.io.samples import read_sample

SENTENCE = "The cat sat on the mat because it was tired."
SAMPLE = "sample:"
MOST = 4 * 2**20  # bytes of a text: a million words would take a tokenizer gigabytes


def read_argument(text: str | None, talk: Talk) -> str:
    """Return the text that a command is to use.

    Without an argument that is stdin, else a sample sentence.

    Raises InputError.
    """
    if text is None:
        piped = read_stdin() if stdin_is_given() else ""
        if piped.strip():
            return piped
        talk.note(f"no text given; using a sample: {SENTENCE}")
        return SENTENCE
    content = resolve_argument(text)
    require_unicode(content, "the text")
    if not content.strip():
        name = "the text" if text == content else f"the text in {text}"
        raise InputError(f"{name} is empty")
    return content


def read_arguments(texts: Sequence[str], lines: bool, talk: Talk) -> list[str]:
    """Return the texts that a command is to use.

    lines: each line that says something is a text of its own. Raises InputError.
    """
    contents = [read_argument(text, talk) for text in texts or (None,)]
    if not lines:
        return contents
    every_line = [line for content in contents for line in content.splitlines()]
    return [line for line in every_line if line.strip()]


def resolve_argument(text: str) -> str:
    """Return the text that an argument stands for."""
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
    return decode_utf8(read_limited(sys.stdin.buffer, "stdin", MOST), "stdin")


def stdin_is_given() -> bool:
    """Return whether stdin is a pipe or a file, not a terminal or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # closed, or replaced by an object without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
