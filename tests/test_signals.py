"""Signals and streams: how a command ends from outside, and that it does without a stderr."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from attnviz.cli import main as entry
from attnviz.cli.signals import TerminationError, raise_on_signals
from attnviz.engine.observers.capture import CaptureObserver
from tests.commands import require_failure
from tests.conftest import SENTENCE, Run, Tiny

ATTNVIZ = f"{shlex.quote(sys.executable)} -m attnviz"
SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129}
WITHOUT_STDERR = "2>&-", "2>/dev/full", "<&- 2>&-"
# Runs attnviz, and sends itself a signal when the module is imported that the first argument names.
SIGNAL_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
from attnviz.cli.main import main
main.main(sys.argv[2:])
"""


def send_signal(number: int) -> Callable[..., None]:
    """Return a function that sends this process a signal."""
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_capture(
    number: int, call: Run, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM and SIGHUP while torch runs a model: one line, a code of its own, no file."""
    monkeypatch.setattr(CaptureObserver, "observe_call", send_signal(number))
    done = call("capture", SENTENCE, "-m", tiny("gpt2"), "-o", "run.attn", "--engine", "torch")
    require_failure(done, SIGNALS[number], f"ended by a signal ({signal.Signals(number).name})")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["builtin", "gpt2"])
def test_a_signal_ends_what_numpy_computes(
    model: str, call: Run, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM while NumPy runs a model: one line, exit code 143, no file."""
    monkeypatch.setattr("attnviz.models.array_model.ArrayModel.run_layers", send_signal(15))
    folder = model if model == "builtin" else tiny(model)
    done = call("show", SENTENCE, "-m", folder, "-o", "x.json", "--engine", "numpy")
    require_failure(done, 143, "SIGTERM")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.json", "x.pdf", "x.attn"])
def test_a_signal_while_a_file_is_written(
    name: str, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM before a file is moved to its place: the temporary file goes, the old one stays."""
    (tmp_path / name).write_text("old")
    monkeypatch.setattr(Path, "replace", send_signal(signal.SIGTERM))
    command = "capture" if name == "x.attn" else "show"
    require_failure(call(command, SENTENCE, "-o", name, "--force"), 143, "SIGTERM")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("module", ["attnviz.cli.show", "numpy", "torch", "torch.nn.modules"])
def test_a_signal_while_libraries_are_imported(module: str, tmp_path: Path, tiny: Tiny) -> None:
    """SIGTERM in an import, of torch too, is one line and exit code 143."""
    arguments = ["show", SENTENCE, "-m", str(tiny("gpt2")), "--engine", "torch", "-o", "x.json"]
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_IMPORT, module, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    require_failure(done, 143, "SIGTERM")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_a_library_drops() -> None:
    """An error that code swallows where the signal arrives is raised at the end of the command."""

    def drop_error() -> None:
        with raise_on_signals(), suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TerminationError):
        drop_error()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signals_that_are_ignored_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Under nohup, where SIGHUP is ignored, a command goes on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def command() -> int:
        with raise_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        return 0

    try:
        assert entry.run_command(command) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == ""


def run_in_shell(arguments: str, redirection: str, folder: Path) -> tuple[int, bytes]:
    """Run attnviz with streams that a shell redirects, and return its exit code and its stdout."""
    done = subprocess.run(
        ["sh", "-c", f"{ATTNVIZ} {arguments} {redirection}"],
        capture_output=True,
        cwd=folder,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("show", 0), ("show -l 99", 2), ("shwo", 2), ("check --max entropy=0", 1), ("help", 0)],
)
def test_a_command_does_without_stderr(arguments: str, code: int, tmp_path: Path) -> None:
    """A closed or full stderr changes neither what is printed on stdout nor the exit code."""
    expected = run_in_shell(arguments, "", tmp_path)
    assert expected[0] == code
    for redirection in WITHOUT_STDERR:
        assert run_in_shell(arguments, redirection, tmp_path) == expected


@pytest.mark.parametrize("name", ["x.json", "x.svg"])
def test_a_file_is_written_without_stderr(name: str, tmp_path: Path) -> None:
    """Notes that nobody can read are dropped; they never end up in the file that is written."""
    files = []
    for streams in ("", *WITHOUT_STDERR):
        code, printed = run_in_shell(f"show -o {name} --force", streams, tmp_path)
        assert (code, printed) == (0, b"")
        files.append((tmp_path / name).read_bytes())
    assert files == files[:1] * len(files)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_stderr_whose_reader_is_gone(tmp_path: Path) -> None:
    """A reader of stderr that leaves stops no picture either."""
    code = run_in_shell("show --json", "2>&1 >x.json | true", tmp_path)[0]
    assert code == 0
    assert json.loads((tmp_path / "x.json").read_text())["maps"]


def test_a_stderr_that_does_not_wait(tmp_path: Path) -> None:
    """A full pipe that does not wait for its reader, as some programs hand over, stops no picture."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "attnviz", "show"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=writer,
        cwd=tmp_path,
        check=False,
    )
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0
    assert done.stdout


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """What libraries write to a closed stderr does not go into a file that was opened since."""
    program = (
        "import os, sys\n"
        "from attnviz.cli.streams import prepare_streams\n"
        "prepare_streams()\n"
        "with open('x', 'w') as file:\n"
        "    assert file.fileno() > 2\n"
        "os.write(2, b'warning')\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- 2>&-"
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    assert (tmp_path / "x").read_bytes() == b""
