"""The line on the terminal that says what a command does, and how much is left.

It appears when work takes long, on stderr if that is a terminal, and is gone before anything else
is written. A thread draws it, so that it moves whatever the work does.
"""

import io
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, TextIO

from attnviz.escape import escape
from attnviz.progress import SHOWN_ELSEWHERE, WorkStep, follow_steps

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE = 0.4  # seconds before the line appears; to start Python takes a tenth before that
PAUSE = 0.1  # seconds between two looks at the work
CLEAR_LINE = b"\r\x1b[K"
UNNAMED = "computing"
"""What is said of work that says nothing of itself."""
MINUTE, HOUR = 60, 3600  # seconds
USUAL_WIDTH = 80  # columns of a terminal that does not tell


@contextmanager
def show_progress() -> Iterator[None]:
    """Show on stderr what is done while a block runs, if that is a terminal and it takes long.

    The line ends for good when something is written to stdout. Whatever is written to stderr
    stands in its place, and the line below it.
    """
    if not can_show_line(sys.stderr):
        yield
        return
    with follow_steps() as steps:
        line = ProgressLine(sys.stderr.fileno(), sys.stderr.encoding, steps)
        with (
            guard_stream("stderr", line, ends=False),
            guard_stream("stdout", line, ends=True),
        ):
            line.start()
            try:
                yield
            finally:
                line.end()


def can_show_line(stream: TextIO | None) -> bool:
    """Return whether a line can be drawn, and cleared again, where a stream goes."""
    if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
        return False
    return os.environ.get("TERM", "") != "dumb"


class ProgressLine:
    """A line on a terminal that tells of steps, and that a thread draws until it ends."""

    def __init__(self, descriptor: int, encoding: str, steps: Sequence[WorkStep]) -> None:
        """Make a line that is not drawn yet.

        descriptor: of the file that is the terminal. encoding: of the terminal. steps: those to
        tell of, the outermost first; others may change them.
        """
        self.descriptor = descriptor
        self.encoding = encoding
        self.steps = steps
        self.began = time.monotonic()
        self.text = ""
        """What stands on the terminal."""
        # a handler of a signal may write while the line is drawn
        self.lock = RLock()
        self.over = Event()
        self.thread = Thread(target=self.draw_until_over, name="progress", daemon=True)

    def start(self) -> None:
        """Draw the line from now on, once some time has passed."""
        self.thread.start()

    def end(self) -> None:
        """Remove the line, and draw it no more."""
        self.over.set()
        self.clear()
        self.thread.join()

    def draw_until_over(self) -> None:
        """Draw the line as often as it changes, until it is over or the terminal is gone."""
        delay = PATIENCE
        while not self.over.wait(delay):
            delay = PAUSE
            try:
                self.draw()
            except OSError:
                return

    def draw(self) -> None:
        """Draw what the steps say now, in place of what was said before. Raises OSError."""
        text = describe_work(list(self.steps), self.began, find_width(self.descriptor))
        with self.lock:
            if self.over.is_set() or text == self.text:
                return
            os.write(self.descriptor, CLEAR_LINE + text.encode(self.encoding, "replace"))
            self.text = text

    def clear(self) -> None:
        """Remove the line from the terminal, if it stands there."""
        with self.lock:
            if not self.text:
                return
            self.text = ""
            try:
                os.write(self.descriptor, CLEAR_LINE)
            except OSError:  # the terminal is gone, and the line with it
                self.over.set()


class GuardedFile(io.FileIO):
    """A file that removes a line from the terminal before anything is written."""

    def __init__(self, descriptor: int, line: ProgressLine, *, ends: bool) -> None:
        """Take an open file. ends: True if the line is not to come back after that."""
        super().__init__(descriptor, "wb", closefd=False)
        self.line = line
        self.ends = ends

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write bytes where the line stood, and return how many were written. Raises OSError."""
        with self.line.lock:
            if self.ends:
                self.line.over.set()
            self.line.clear()
            return super().write(data)


@contextmanager
def guard_stream(name: str, line: ProgressLine, *, ends: bool) -> Iterator[None]:
    """Remove a line from the terminal whenever a stream writes, while a block runs.

    name: ``stdout`` or ``stderr`` of ``sys``; one that is no open file is left as it is. ends: True
    if the line is not to come back after that. Raises OSError if what was written to the stream
    cannot be written in the end; then the stream stays guarded, so that it can be abandoned.
    """
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    stream.flush()
    guarded = io.TextIOWrapper(
        io.BufferedWriter(GuardedFile(stream.fileno(), line, ends=ends)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, guarded)
    try:
        yield
    finally:
        guarded.flush()
        setattr(sys, name, stream)


# What the line says


def find_width(descriptor: int) -> int:
    """Return the columns of a terminal."""
    try:
        return os.get_terminal_size(descriptor).columns or USUAL_WIDTH
    except OSError:
        return USUAL_WIDTH


def describe_work(steps: Sequence[WorkStep], began: float, width: int) -> str:
    """Say what is done and how much is left, in less than a line; nothing if it is shown elsewhere.

    steps: those that have begun, the outermost first. It is named, and the innermost that lasts.
    began: when the work began. width: the columns of the terminal.
    """
    if any(step.action == SHOWN_ELSEWHERE for step in steps):
        return ""
    now = time.monotonic()
    lasting = [step for step in steps[1:] if now - step.began >= PATIENCE]
    named = [*steps[:1], *lasting[-1:]]
    actions = "; ".join(map(describe_step, named)) or UNNAMED
    duration = describe_time_left(named, now) or describe_time_so_far(now - began)
    return join_in_width(escape(actions), duration, width - 1)


def describe_step(step: WorkStep) -> str:
    """Say what is done in a step, and how far it is."""
    parts = [step.action]
    if step.unit:
        parts.append(f": {step.unit} {count_current_unit(step)}")
    if step.state:
        parts.append(f", {step.state}")
    return "".join(parts)


def count_current_unit(step: WorkStep) -> str:
    """Say which of its units a step is at, and of how many if that is known."""
    if step.total is None:
        return f"{step.done + 1:,}"
    current = min(step.done + 1, step.total)
    return f"{current:,} of {step.total:,}"


def describe_time_left(steps: Sequence[WorkStep], now: float) -> str | None:
    """Say how much time is left of the outermost of some steps that tells; None if none does."""
    for step in steps:
        seconds = step.predict_seconds(now)
        if seconds is not None:
            return f", {format_seconds(math.ceil(seconds))} left"
    return None


def describe_time_so_far(seconds: float) -> str:
    """Say how long work has taken whose end nobody knows; nothing in the first second."""
    if seconds < 1:
        return ""
    return f", {format_seconds(int(seconds))} so far"


def format_seconds(seconds: int) -> str:
    """Write a time with its two largest units, such as "3 min 20 s"."""
    if seconds < MINUTE:
        return f"{seconds} s"
    if seconds < HOUR:
        return f"{seconds // MINUTE} min {seconds % MINUTE} s"
    return f"{seconds // HOUR} h {seconds % HOUR // MINUTE} min"


def join_in_width(start: str, end: str, width: int) -> str:
    """Join two texts in at most ``width`` columns; of the first as much is left out as must be."""
    from attnviz.render.terminal.text_width import count_columns, fit_columns

    room = width - count_columns(end)
    if room < 1:
        return end[: max(0, width)]
    if count_columns(start) > room:
        start = fit_columns(start, room, left=True)
    return start + end
