"""The standard streams of a process: those that are closed, and a stderr that takes no more."""

import io
import os
import sys
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDERR = 2  # its file descriptor


class LenientFile(io.FileIO):
    """A file that drops what cannot be written into it, from the first failure on."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write bytes; if that fails, send them and all that follow to nowhere."""
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size  # nothing, if a pipe that does not wait is full
        except OSError:
            send_to_nowhere(self)
            return size


def prepare_streams() -> None:
    """Let a command run whatever its stdin and stderr are.

    A closed one is replaced by an empty one: else the next file that is opened would get its
    number, and libraries would read or write that file. What is said on a stderr that is full or
    broken is dropped, and the command goes on.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # it gets the number of stdin, the lowest one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open to the end
    if is_plain_stderr(sys.stderr):
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(LenientFile(STDERR, "wb", closefd=False)),
            encoding=sys.stderr.encoding,
            errors=sys.stderr.errors,
            line_buffering=True,
        )


def is_plain_stderr(stream: TextIO) -> bool:
    """Return whether a stream is as Python opened it, and its bytes are written as they are.

    They are not on a console of Windows.
    """
    if stream is not sys.__stderr__:
        return False
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return isinstance(raw, io.FileIO)


def send_to_nowhere(stream: IO[str] | io.FileIO) -> None:
    """Send what is written to a stream to nowhere from now on, so that it does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
