"""Reading and writing files: text that must be UTF-8, outputs that are whole or not there."""

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from attnviz.errors import CHANGE_FOLDER, InputError, OutputError, has_current_folder
from attnviz.temporary import lock_path, name_temporary, remove_leftovers

DEFAULT_MODE = 0o666  # less what the umask takes away
PRIVATE_MODE = 0o600  # of a file that replaces another, until it has the permissions of that one
PERMISSIONS = 0o777  # of a mode; not the bits that let a program run as the owner of its file
MEGABYTE = 2**20
# Errors of Windows: sharing violation and lock violation; access denied.
IN_USE_ON_WINDOWS, DENIED_ON_WINDOWS = (32, 33), 5
SPECIAL_FILES = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def read_text(path: Path, most: int | None = None) -> str:
    """Read the text of a file, its last line break left out.

    most: the largest number of bytes that it may have; None for no limit. Raises InputError if it
    cannot be read, is not UTF-8, or has more bytes.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            return decode_utf8(read_limited(file, name, most), name)
    except OSError as error:
        problem = describe_os_error(error)
        raise InputError(f"cannot read {path}: {problem}") from error


def read_limited(file: BinaryIO, name: str, most: int | None) -> bytes:
    """Read all bytes of a file, or of a stream that may never end.

    name: what the file is called in the error. most: the largest number of bytes; None for no
    limit. Raises InputError if there are more.
    """
    if most is None:
        return file.read()
    data = file.read(most + 1)
    if len(data) > most:
        size = most // MEGABYTE
        raise InputError(f"{name} has more than {size} MB: no model reads so much")
    return data


def decode_utf8(data: bytes, name: str) -> str:
    """Decode bytes in UTF-8, with line breaks as in Unix, and without a last one.

    name: what the file is called in the error. Raises InputError naming the offset of the first
    wrong byte.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def require_output_path(path: Path, force: bool) -> None:
    """Raise OutputError unless a file may be written, before anything is computed for it.

    force: a regular file that is there may be replaced. It may not be written if the path leads to
    a folder, a device, a pipe or a socket, if it exists and ``force`` is not set, or if its folder
    is not there or cannot be written to. Symbolic links are followed.
    """
    require_current_folder(path)
    exists = read_regular_status(path) is not None
    if exists and not force:
        raise OutputError(f"{path} exists; choose another name or add --force")
    target = resolve_links(path) if path.is_symlink() else path
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: the folder {folder} does not exist")
    require_writable(folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, as ``write_file_parts`` does."""
    write_file_parts(path, (data,))


def write_file_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file part by part, so that it is there whole or not at all.

    parts: the content, in order; memory holds one part at a time if they are made one by one. A
    regular file that is there is replaced; its permissions and, where the system allows it, its
    owner are kept. A symbolic link is kept, and what it leads to is replaced. Raises OutputError if
    the path leads to anything else, or the file cannot be written.
    """
    before = read_regular_status(path)
    try:
        replace_file(resolve_links(path), parts, before)
    except OSError as error:
        problem = describe_os_error(error)
        raise OutputError(f"cannot write {path}: {problem}") from error


def replace_file(
    target: Path,
    parts: Iterable[bytes | memoryview],
    before: os.stat_result | None,
) -> None:
    """Write parts into a temporary file in the folder of a target, and move it there in one step.

    before: the status of the file that is replaced, whose permissions and owner are kept, or None
    for a new file, which gets the default permissions. Nothing is left behind when it fails.
    """
    remove_leftovers(target.parent)
    temporary = name_temporary(target)
    first_mode = DEFAULT_MODE if before is None else PRIVATE_MODE
    try:
        opener = partial(os.open, mode=first_mode)
        file = open(temporary, "xb", opener=opener)  # noqa: SIM115 - closed before it is moved
        with lock_path(temporary):
            with file:
                for part in parts:
                    file.write(part)
            if before is not None:
                keep_owner_and_mode(temporary, before)
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep_owner_and_mode(path: Path, before: os.stat_result) -> None:
    """Give a file the permissions of the one that it replaces, and its owner if that is allowed.

    before: the status of the file that is replaced.
    """
    if hasattr(os, "chown"):
        with suppress(PermissionError):
            os.chown(path, before.st_uid, before.st_gid)
    path.chmod(before.st_mode & PERMISSIONS)


def remove_file(path: Path) -> None:
    """Delete a regular file or a symbolic link, if there is one.

    Raises OutputError for a device, a pipe or a socket, which is never deleted.
    """
    if not path.is_symlink():
        require_regular(path)
    path.unlink(missing_ok=True)


def require_regular(path: Path) -> None:
    """Raise OutputError unless a path leads to a regular file or to nothing."""
    read_regular_status(path)


def read_regular_status(path: Path) -> os.stat_result | None:
    """Return the status of the regular file that a path leads to, or None if nothing is there.

    Symbolic links are followed. Raises OutputError for a folder, a device, a pipe or a socket, and
    if the system does not say what is there.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problem = describe_os_error(error)
        raise OutputError(f"cannot write {path}: {problem}") from error
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path} is a folder: name a file in it")
    if not stat.S_ISREG(status.st_mode):
        file_type = stat.S_IFMT(status.st_mode)
        kind = SPECIAL_FILES.get(file_type, "no regular file")
        problem = f"it is {kind}, and only regular files are written or replaced"
        raise OutputError(f"cannot write {path}: {problem}")
    return status


def resolve_links(path: Path) -> Path:
    """Return the path to which symbolic links lead, which need not exist."""
    return Path(os.path.realpath(path))


def require_current_folder(path: Path) -> None:
    """Raise OutputError if a path is in the current folder, and that was deleted."""
    if not path.is_absolute() and not has_current_folder():
        raise OutputError(f"cannot write {path}: the current folder was deleted; {CHANGE_FOLDER}")


def require_writable(folder: Path) -> None:
    """Raise OutputError unless files can be written into a folder.

    If the folder is not there, the first folder above it that is there must be writable.
    """
    require_current_folder(folder)
    candidates = folder, *folder.absolute().parents
    try:
        existing = next(path for path in candidates if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        problem = describe_os_error(error)
        raise OutputError(f"cannot write {folder}: {problem}") from error


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if need be.

    contents: the bytes of each file, by its name. Raises OutputError if one cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = describe_os_error(error)
        raise OutputError(f"cannot write {folder}: {problem}") from error
    for name, data in contents.items():
        write_whole(folder / name, data)


def describe_os_error(error: OSError) -> str:
    """Return what the system says of an error, without its number and the path.

    Windows refuses to write, replace or delete a file that is open in another program.
    """
    message = (error.strerror or str(error)).lower()
    number = getattr(error, "winerror", None)
    if number in IN_USE_ON_WINDOWS:
        return "it is open in another program; close it there"
    if number == DENIED_ON_WINDOWS:
        return f"{message.rstrip('.')}; if it is open in another program, close it there"
    return message
