"""The TEXT of a command: itself, - for stdin, @file or @sample:NAME; @@ begins one with @."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from attnviz.analysis.segments import parse_segments
from attnviz.cli.talk import Talk
from attnviz.errors import InputError
from attnviz.escape import require_unicode
from attnviz.io.files import decode_utf8, read_limited, read_text
from attnviz.io.samples import read_sample
from attnviz.progress import leave_screen
from attnviz.record import Segment

SENTENCE = "The cat sat on the mat because it was tired."
SAMPLE = "sample:"
OWN_SEGMENTS = "auto"
MOST = 4 * 2**20  # bytes of a text: a million words would take a tokenizer gigabytes


def read_argument(text: str | None, talk: Talk) -> str:
    """Return the text that a command is to use.

    text: the argument, which may be - for stdin, or name a file or a sample. Without one (None) the
    text is what is piped into stdin, and if that is nothing, a sample sentence, which is told.

    Raises InputError for a text that is empty or cannot be read.
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
    """Return the texts that a command is to use, one for each argument.

    texts: the arguments; without any, stdin or a sample sentence is used. lines: each line that is
    not blank is a text of its own. Raises InputError for a text that is empty or cannot be read.
    """
    contents = [read_argument(text, talk) for text in texts or (None,)]
    if not lines:
        return contents
    every_line = [line for content in contents for line in content.splitlines()]
    return [line for line in every_line if line.strip()]


def resolve_argument(text: str) -> str:
    """Return the text that an argument stands for: stdin, a sample, a file, or the text itself."""
    if text == "-":
        return read_stdin()
    if text.startswith("@@"):
        return text[1:]
    if text.startswith(f"@{SAMPLE}"):
        return read_sample(text.removeprefix(f"@{SAMPLE}"))
    return read_text(Path(text[1:]), MOST) if text.startswith("@") else text


def read_stdin() -> str:
    """Read all of stdin. Raises InputError if it is closed, too long, or not UTF-8."""
    if sys.stdin is None:
        raise InputError("there is no stdin to read a text from")
    with leave_screen():  # the user may type, or choose the text in a program that draws
        content = read_limited(sys.stdin.buffer, "stdin", MOST)
    return decode_utf8(content, "stdin")


def stdin_is_given() -> bool:
    """Return whether stdin is a pipe or a regular file, and not a terminal or closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # it is closed, or has no file descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_segments(name: str) -> tuple[Segment, ...] | None:
    """Read the named parts of a text from a file.

    name: the file, or ``auto``, for which None is returned: the text's own parts are meant, such as
    its lines or its messages. Raises InputError for a file that cannot be used.
    """
    if name == OWN_SEGMENTS:
        return None
    content = read_text(Path(name), MOST)
    try:
        return parse_segments(content)
    except ValueError as error:
        raise InputError(f"--segments: {error}") from error
