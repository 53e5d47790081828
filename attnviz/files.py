"""Reading and writing files: text that must be UTF-8, and outputs that are written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from attnviz.errors import InputError, OutputError


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a file, its last line break left out.

    Raises InputError if it cannot be read, is not UTF-8, or has more than so many bytes.
    """
    try:
        with path.open("rb") as file:
            return decode(read_some(file, str(path), most), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def read_some(file: BinaryIO, name: str, most: int | None) -> bytes:
    """All bytes of a file, or of a stream that may never end. Raises InputError if there are more than so many."""
    data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise InputError(f"{name} has more than {most // 2**20} MB: no model reads so much")
    return data


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text. Raises InputError naming the offset of the first wrong byte."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def require_new(path: Path, force: bool) -> None:
    """Raise OutputError if the path exists and may not be replaced, or lies in no folder that can be written to."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; choose another name or add --force")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    require_writable(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OutputError."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o666 & ~current_umask())  # mkstemp's own mode is for its owner alone
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


def require_writable(folder: Path) -> None:
    """Raise OutputError unless files can be written into a folder, or where one that is not there would be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error
    for name, data in contents.items():
        write_whole(folder / name, data)


def current_umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def reason(error: OSError) -> str:
    """What the system says, without the number and the path."""
    return (error.strerror or str(error)).lower()
