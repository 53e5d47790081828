"""What work says of itself: all steps that it began, and commands that stand still until they are seen."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from attnviz.progress import FOLLOWED, WorkStep
from tests.conftest import ROOT

WAITING = "layer 2 of"
"""What a command says while it stands still."""
MOST_DRAWN = 90
"""How often a line is drawn at most before it says that; while nothing else changes, once a second."""
STAND_IN = """
import os, sys, threading
from attnviz.cli.main import main
from attnviz.models.array_model import ArrayModel

gate, told = map(int, sys.argv[1:3])
del sys.argv[1:3]
run_layers = ArrayModel.run_layers

def stand_still(self, *arguments):
    ArrayModel.run_layers = run_layers
    for number, run in enumerate(run_layers(self, *arguments)):
        if number == 1:
            names = [thread.name for thread in threading.enumerate()]
            os.write(told, b"progress" if "progress" in names else b"nothing")
            exec(os.read(gate, 1000))
        yield run

ArrayModel.run_layers = stand_still
main()
"""
"""Runs attnviz, which stops once in the second layer of a model and does what it is told to then.

It tells first if something draws how far the work is."""
CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class StepHistory(list[WorkStep]):
    """The steps that have begun and not ended, and all that ever began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[WorkStep] = []

    def append(self, step: WorkStep) -> None:
        """Keep a step that begins."""
        self.begun.append(step)
        super().append(step)

    def find(self, action: str) -> list[tuple[str, int, int | None]]:
        """Return what was counted in the steps of an action: its unit, how many are done, and of how many."""
        return [(step.unit, step.done, step.total) for step in self.begun if step.action == action]


@contextmanager
def keep_steps() -> Iterator[StepHistory]:
    """Keep all steps that begin in a block; when it is left, all of them must have ended."""
    history = StepHistory()
    token = FOLLOWED.set(history)
    try:
        yield history
    finally:
        FOLLOWED.reset(token)
    assert list(history) == []


class Stopped(NamedTuple):
    """A command that stood still, and went on when it was told to."""

    told: str
    """What it told of itself while it stood still: ``progress`` if something draws, else ``nothing``."""
    seen: str
    """What stood on the terminal then."""
    left: str
    """What stands there in the end."""
    returncode: int
    stdout: str
    """What it wrote to a pipe, if stdout was one."""


def run_still(
    args: list[str],
    then: str = "",
    *,
    interrupt: bool = False,
    pipe_stdout: bool = False,
    waits: bool = True,
    **environment: str,
) -> Stopped:
    """Run attnviz on a terminal until it stands still in a layer and says so there; then let it go on.

    then: a line of Python that it runs before it goes on. interrupt: send SIGINT in place of that. pipe_stdout: stderr
    alone is the terminal. waits: wait until something is seen; else it goes on at once.
    """
    parent, child = pty.openpty()
    gate_out, gate_in = os.pipe()
    told_out, told_in = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, str(gate_out), str(told_in), *args],
        stdin=child,
        stdout=subprocess.PIPE if pipe_stdout else child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
        cwd=ROOT,
        pass_fds=(gate_out, told_in),
    )
    for descriptor in (child, gate_out, told_in):
        os.close(descriptor)
    told = os.read(told_out, 100).decode()
    data = b""
    while waits and WAITING.encode() not in data:
        part = read_terminal(parent)
        assert part, f"the command has ended: {data.decode()}"
        data += part
        if data.count(b"\r") > MOST_DRAWN:
            process.kill()
            raise AssertionError(f"the command never says {WAITING}: {data.decode()}")
    seen = data.decode()
    if interrupt:
        process.send_signal(signal.SIGINT)
    else:
        os.write(gate_in, (then or "pass").encode())
    while part := read_terminal(parent):
        data += part
    stdout, _ = process.communicate()
    for descriptor in (parent, gate_in, told_out):
        os.close(descriptor)
    left = show_screen(data.decode())
    return Stopped(told, show_screen(seen), left, process.returncode, (stdout or b"").decode())


def run_in_pipes(args: list[str]) -> tuple[str, subprocess.CompletedProcess[str]]:
    """Run attnviz without a terminal, and return what it tells of itself in a layer, and what it prints."""
    gate_out, gate_in = os.pipe()
    told_out, told_in = os.pipe()
    os.write(gate_in, b"pass")
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN, str(gate_out), str(told_in), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        pass_fds=(gate_out, told_in),
    )
    for descriptor in (gate_out, gate_in, told_in):
        os.close(descriptor)
    told = os.read(told_out, 100).decode()
    os.close(told_out)
    return told, done


def read_terminal(parent: int) -> bytes:
    """Read what comes next from a terminal; nothing when its other side is closed."""
    assert select.select([parent], [], [], 60)[0], "nothing was written"
    try:
        return os.read(parent, 65536)
    except OSError:  # the other side is closed
        return b""


def show_screen(data: str) -> str:
    """Return what stands on a terminal after it got some data, without colours; lines end where text does.

    The only controls are line breaks, returns to the begin of the line, and the removal of its rest.
    """
    lines = [""]
    column = 0
    while data:
        control = CONTROL.match(data)
        character = data[0]
        data = data[control.end() if control else 1 :]
        if control and control[2] == "K":
            lines[-1] = lines[-1][:column]
        elif control:
            assert control[2] == "m", f"unknown control {control[0]!r}"
        elif character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
            column = 0
        else:
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + character + line[column + 1 :]
            column += 1
    return "\n".join(lines)
