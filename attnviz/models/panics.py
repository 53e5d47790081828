"""What the tokenizers library does with files that it does not expect, as errors of one line.

The library is written in Rust. Where it gives up, it raises a ``PanicException``, which no
``except Exception`` catches, and it reports that on stderr by itself, in a hundred lines.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import BinaryIO

from attnviz.errors import ModelError, is_panic

STDERR = 2
STDERR_LOCK = RLock()


@contextmanager
def refuse_tokenizer_errors(what: str) -> Iterator[None]:
    """Turn errors of a tokenizer in Rust into a ModelError, and keep its reports off stderr.

    what: says what cannot be done, for the message. The library raises panics and the bare class
    Exception; all other errors go through.
    """
    with hold_stderr() as held:
        try:
            yield
        except BaseException as error:
            if is_panic(error):
                held.truncate(0)
            elif type(error) is not Exception:
                raise
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise ModelError(f"{what}: {reason}") from error


@contextmanager
def hold_stderr() -> Iterator[BinaryIO]:
    """Hold back what is written to stderr, by any library, until the end; then write it.

    Yields the file that holds it. It has a lock, since stderr is that of the whole process.
    """
    with STDERR_LOCK, tempfile.TemporaryFile() as held:
        try:
            original = os.dup(STDERR)
        except OSError:  # there is no stderr
            yield held
            return
        os.dup2(held.fileno(), STDERR)
        try:
            yield held
        finally:
            os.dup2(original, STDERR)
            os.close(original)
            write_held(held)


def write_held(held: BinaryIO) -> None:
    """Write to stderr what a file holds."""
    held.seek(0)
    data = held.read()
    while data:
        written = os.write(STDERR, data)
        data = data[written:]
