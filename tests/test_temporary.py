"""Temporary files: gone when a process ends, or swept by the next one, and nothing else is swept."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attnviz import temporary
from attnviz.io.files import write_whole
from attnviz.temporary import make_temporary_folder, make_temporary_name, remove_leftovers
from tests.conftest import ROOT, Run

MINUTE, DAY = 60, 86_400
# Writes a file, and stops as soon as its temporary file is there in full, with a line on stdout.
STOP_WHILE_WRITING = """
import sys, time
from pathlib import Path
from attnviz.io.files import write_whole

def stop(*_):
    print("stopped", flush=True)
    sys.stdin.read()

Path.replace = stop
write_whole(Path(sys.argv[1]), b"data")
"""


@pytest.fixture(autouse=True)
def first_writing() -> None:
    """No folder has been swept by this process yet."""
    remove_leftovers.cache_clear()


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a process that is about to move its temporary file to the place of figure.svg."""
    processes = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STOP_WHILE_WRITING, str(tmp_path / "figure.svg")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        processes.append(process)
        assert process.stdout.readline() == "stopped\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make_older(path: Path, seconds: float) -> None:
    """Set the times of a file back by so many seconds."""
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def test_what_a_killed_run_leaves_is_swept(
    start_writer: Callable[[], subprocess.Popen[str]], tmp_path: Path, call: Run
) -> None:
    """SIGKILL leaves a temporary file; the next command that writes into the folder removes it, and it alone."""
    first, second = start_writer(), start_writer()
    first.kill()
    first.wait()
    assert len(list_names(tmp_path)) == 2
    assert call("show", "The cat sat.", "-o", "other.json").returncode == 0
    (left,) = list_names(tmp_path) - {"other.json"}
    assert left.startswith(".figure.svg.")  # of the second one, which still writes
    second.kill()
    second.wait()
    remove_leftovers.cache_clear()
    assert call("capture", "The cat sat.", "-o", "cat.attn").returncode == 0
    assert list_names(tmp_path) == {"other.json", "cat.attn"}


def test_a_file_in_use_stays_however_old(
    start_writer: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """As long as its process lives, a temporary file stays, and becomes the file that it is for."""
    writer = start_writer()
    (path,) = tmp_path.iterdir()
    make_older(path, 2 * DAY)
    write_whole(tmp_path / "other.json", b"data")
    assert list_names(tmp_path) == {path.name, "other.json"}
    assert path.read_bytes() == b"data"
    writer.kill()


@pytest.mark.parametrize(
    "name",
    [
        ".figure.svg.0123456789abcdef",
        "figure.svg.00000000-0123456789abcdef.attnviz",
        ".figure.svg.{machine}-0123456789abcde.attnviz",
        ".figure.svg.{machine}-0123456789abcdef.attnviz.bak",
        ".attnviz",
        "figure.svg",
        ".figure.svg~",
    ],
)
def test_other_files_stay(name: str, tmp_path: Path) -> None:
    """A file of any other name stays, however old it is."""
    path = tmp_path / name.format(machine=temporary.identify_machine())
    path.write_text("mine")
    make_older(path, 2 * DAY)
    write_whole(tmp_path / "other.json", b"data")
    assert path.read_text() == "mine"


def test_links_pipes_and_what_they_lead_to_stay(tmp_path: Path) -> None:
    """Of the names of temporary files, only regular files and folders are removed."""
    target = tmp_path / "mine"
    target.write_text("mine")
    link, pipe = (tmp_path / make_temporary_name(".figure.svg") for _ in range(2))
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path in (link, pipe):
        make_older(path, 2 * DAY)
    before = list_names(tmp_path)
    write_whole(tmp_path / "other.json", b"data")
    assert list_names(tmp_path) == before | {"other.json"}


@pytest.mark.parametrize(("content", "age"), [(b"", MINUTE), (b"data", 0)])
def test_an_empty_file_is_swept_later(content: bytes, age: int, tmp_path: Path) -> None:
    """A new file that is empty may belong to a process that has not locked it yet; any other does not."""
    path = tmp_path / make_temporary_name(".figure.svg")
    path.write_bytes(content)
    if age:
        remove_leftovers(tmp_path)
        assert path.exists()
        make_older(path, age + 1)
    remove_leftovers.cache_clear()
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_files_of_other_machines_stay_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that machines share, locks may not be seen: what is not of this one stays for a day."""
    path = tmp_path / make_temporary_name(".figure.svg")
    path.write_text("data")
    monkeypatch.setattr(temporary, "identify_machine", lambda: "00000000")
    make_older(path, DAY - MINUTE)
    remove_leftovers(tmp_path)
    assert path.exists()
    make_older(path, DAY + MINUTE)
    remove_leftovers.cache_clear()
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_temporary_folders_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a run that is gone goes with what is in it; those in use, and the new one, stay as they should."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / make_temporary_name(temporary.PREFIX)
    left.mkdir()
    (left / "0.ttf").write_text("font")
    with make_temporary_folder() as folder:
        assert not left.exists()
        (folder / "1.ttf").write_text("font")
        remove_leftovers.cache_clear()
        with make_temporary_folder():
            assert (folder / "1.ttf").exists()
    assert list_names(tmp_path) == set()


def test_a_folder_that_cannot_be_looked_through_is_no_error(tmp_path: Path) -> None:
    """Sweeping is a courtesy: where it fails, nothing is said."""
    remove_leftovers(tmp_path / "nowhere")
    shutil.rmtree(tmp_path)
    remove_leftovers(tmp_path)
