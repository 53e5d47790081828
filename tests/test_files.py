"""Output files: only regular files are replaced, whole or not at all, with their permissions and links kept."""

import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import attnviz
from attnviz.cli.main import main
from attnviz.errors import OutputError
from attnviz.io.files import remove_file, require_output_path, write_folder, write_whole
from tests.commands import require_failure
from tests.conftest import SENTENCE, Run

DATA = b"new"
SPECIAL = {"device": "a device", "pipe": "a pipe", "socket": "a socket"}


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a file that is not regular, of a kind: a device like /dev/null, a pipe or a socket."""
    sockets: list[socket.socket] = []

    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.png"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[0].bind(os.path.relpath(path))  # the name of a socket has about 100 bytes
        else:
            try:
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("device files are made by root only")
        return path

    yield make
    for one in sockets:
        one.close()


def kind_and_mode(path: Path) -> int:
    return path.lstat().st_mode


def refused(write: Callable[[], object], told: str) -> None:
    """See that something cannot be written, in one line."""
    with pytest.raises(OutputError) as error:
        write()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_never_replaced(kind: str, special: Callable[[str], Path]) -> None:
    """A device, a pipe and a socket stay what they are, whichever function is asked to write there."""
    path = special(kind)
    before = kind_and_mode(path)
    told = f"{path}: it is {SPECIAL[kind]}, and only regular files are written or replaced"
    refused(lambda: require_output_path(path, force=True), told)
    refused(lambda: require_output_path(path, force=False), told)
    refused(lambda: write_whole(path, DATA), told)
    refused(lambda: write_folder(path.parent, {path.name: DATA}), told)
    refused(lambda: remove_file(path), told)
    assert kind_and_mode(path) == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_link_to_a_special_file_leaves_both(
    kind: str, special: Callable[[str], Path], tmp_path: Path
) -> None:
    """A link is followed before its target is judged, as /dev/stdout must be."""
    path = special(kind)
    link = tmp_path / "link.png"
    link.symlink_to(path)
    before = kind_and_mode(path)
    refused(lambda: write_whole(link, DATA), f"it is {SPECIAL[kind]}")
    assert link.is_symlink()
    assert kind_and_mode(path) == before


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "command", ["show", "capture", "inspect", "compare", "heads", "attribute", "explain"]
)
def test_every_command_refuses_special_files(
    call: Run, command: str, kind: str, special: Callable[[str], Path], tmp_path: Path
) -> None:
    """-o PATH --force on a device, pipe or socket: one line, exit code 5, before the model is run."""
    path = special(kind)
    if command == "capture":
        path = path.rename(tmp_path / f"{kind}.attn")
    before = kind_and_mode(path)
    text = [] if command == "heads" else [SENTENCE]
    other = ["--with", "The dog sat."] if command == "compare" else []
    done = call(command, *text, *other, "-o", path, "--force")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        f"error: cannot write {path}: it is {SPECIAL[kind]}, and only regular files are written or replaced\n"
    )
    assert kind_and_mode(path) == before


def test_a_report_and_a_training_refuse_special_files(call: Run, tmp_path: Path) -> None:
    """A pipe where a file of the folder belongs is found before anything is computed."""
    report, model = tmp_path / "report", tmp_path / "model"
    for folder, name in (
        (report, "index.html"),
        (report, "L0H0.png"),
        (model, "history.json"),
        (model, "config.json"),
    ):
        folder.mkdir(exist_ok=True)
        os.mkfifo(folder / name)
        if folder is report:
            done = call(
                "export", SENTENCE, "-H", "L0H0", "--formats", "png", "-o", folder, "--force"
            )
        else:
            (tmp_path / "corpus.txt").write_text(
                "\n\n".join(["some words to learn, one after the other"] * 60)
            )
            done = call("train", tmp_path / "corpus.txt", "-o", folder, "--steps", "1", "--force")
        assert done.returncode == 5, done.stderr
        assert f"{name}: it is a pipe" in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == [name]
        assert stat.S_ISFIFO(kind_and_mode(folder / name))
        (folder / name).unlink()


@pytest.mark.parametrize("save", ["show", "save"])
def test_python_refuses_special_files(
    save: str, special: Callable[[str], Path], tmp_path: Path
) -> None:
    """The functions of Python refuse the same as the command line."""
    path = special("pipe")
    found = attnviz.capture("The cat sat.")
    if save == "show":
        refused(
            lambda: attnviz.show(found, layers=0, heads=0).save(path, force=True), "it is a pipe"
        )
    else:
        path = path.rename(tmp_path / "pipe.attn")
        refused(lambda: attnviz.save(found, path, force=True), "it is a pipe")
    assert stat.S_ISFIFO(kind_and_mode(path))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755])
def test_permissions_are_kept(mode: int, tmp_path: Path) -> None:
    """A file that is replaced keeps who may read and write it."""
    path = tmp_path / "mine.json"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_whole(path, DATA)
    assert stat.S_IMODE(kind_and_mode(path)) == mode
    assert path.read_bytes() == DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    """A file of somebody else stays theirs when root replaces it."""
    path = tmp_path / "theirs.json"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    write_whole(path, DATA)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_new_file_obeys_the_umask(tmp_path: Path) -> None:
    """A file that was not there is readable as the umask says, which is left alone."""
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new.json", DATA)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(kind_and_mode(tmp_path / "new.json")) == 0o640


@pytest.mark.parametrize("target", ["there.json", "other/there.json"])
def test_links_are_kept_and_their_targets_replaced(target: str, tmp_path: Path) -> None:
    """A link, also one through a second link into another folder, stays; the file at its end is replaced."""
    (tmp_path / "other").mkdir()
    path, middle, link = (
        tmp_path / target,
        tmp_path / "other" / "middle.json",
        tmp_path / "link.json",
    )
    path.write_bytes(b"old")
    path.chmod(0o600)
    middle.symlink_to(path)
    link.symlink_to(Path("other", "middle.json"))
    require_output_path(link, force=True)
    write_whole(link, DATA)
    assert link.is_symlink()
    assert middle.is_symlink()
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(kind_and_mode(path)) == 0o600


def test_links_to_nothing(tmp_path: Path) -> None:
    """What a link leads to is made if its folder is there; a circle and a folder that is missing are refused."""
    link, circle = tmp_path / "link.json", tmp_path / "circle.json"
    link.symlink_to(tmp_path / "new.json")
    require_output_path(link, force=False)
    write_whole(link, DATA)
    assert link.is_symlink()
    assert (tmp_path / "new.json").read_bytes() == DATA
    circle.symlink_to(circle)
    refused(lambda: require_output_path(circle, force=True), "circle.json")
    refused(lambda: write_whole(circle, DATA), "circle.json")
    lost = tmp_path / "lost.json"
    lost.symlink_to(tmp_path / "nowhere" / "x.json")
    refused(
        lambda: require_output_path(lost, force=True),
        f"the folder {tmp_path / 'nowhere'} does not exist",
    )


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, the old file stays as it was, and no other is left."""
    path = tmp_path / "mine.json"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    refused(lambda: write_whole(path, DATA), "cannot write")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (32, "cannot write x.json: it is open in another program; close it there"),
        (33, "cannot write x.json: it is open in another program; close it there"),
        (5, "cannot write x.json: access is denied; if it is open in another program, close it"),
    ],
)
def test_a_file_that_windows_holds_open(
    number: int, told: str, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program has a file open on Windows, one line says so, and the file stays as it was."""
    (tmp_path / "x.json").write_bytes(b"old")

    def refuse(*_: object) -> None:
        error = PermissionError(13, "Access is denied.")
        error.winerror = number  # type: ignore[attr-defined]  # it is there on Windows
        raise error

    monkeypatch.setattr(Path, "replace", refuse)
    require_failure(call("show", SENTENCE, "-o", "x.json", "--force"), 5, told)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_files_written_at_once_are_whole(tmp_path: Path) -> None:
    """Many threads that write one file leave one of their contents, and nothing beside it."""
    path = tmp_path / "shared.bin"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, data)) for data in contents * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


# A current folder that is gone


@pytest.fixture
def deleted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the current folder one that was deleted."""
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.usefixtures("deleted_folder")
@pytest.mark.parametrize(
    "arguments",
    [
        ["show", SENTENCE, "-o", "x.json"],
        ["show", SENTENCE, "-o", "sub/x.png"],
        ["capture", SENTENCE, "-o", "../x.attn"],
        ["export", SENTENCE, "-o", "report"],
        ["inspect", SENTENCE, "-o", "x.csv"],
        ["train", "@sample:article", "-o", "model"],
    ],
)
def test_nothing_is_written_in_a_deleted_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """-o in a folder that was deleted meanwhile: one line that says so, exit code 5."""
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    line = f"error: cannot write {arguments[-1]}: the current folder was deleted; change to another folder with cd\n"
    assert (ended.value.code, *capsys.readouterr()) == (5, "", line)


@pytest.mark.usefixtures("deleted_folder")
def test_a_deleted_folder_stops_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture, and a file in a folder that is there, do without the current folder."""
    for arguments in (["show", SENTENCE], ["show", SENTENCE, "-o", f"{tmp_path}/x.png"]):
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        assert ended.value.code == 0, capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("options", "code"), [("--weights gradient", 3), ("--dtype bfloat16", 2), ("-m ./x", 3)]
)
def test_torch_is_not_started_in_a_deleted_folder(options: str, code: int, tmp_path: Path) -> None:
    """A part of torch ends the process there without a word of ours: one line stands in its place."""
    attnviz_command = f"{shlex.quote(sys.executable)} -m attnviz show hi {options}"
    done = subprocess.run(
        ["sh", "-c", f"mkdir gone; cd gone; rmdir ../gone; {attnviz_command}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    require_failure(done, code, "torch", "the current folder was deleted")
