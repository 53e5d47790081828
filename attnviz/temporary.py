"""Temporary files and folders, which are removed whatever happens: if not by this run, by a later.

Nothing can be removed by a process that SIGKILL ends. So the names say that attnviz made what they
name, and on which machine, and a lock, which ends with the process, says whether it is in use. The
next run that makes a temporary file in the same folder removes what is not. On Windows, where what
is open cannot be removed, that serves as the lock.
"""

import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LONGEST_BEGINNING = 50  # characters of a file's name in that of a temporary file
NAME = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-[0-9a-f]{16}\.attnviz", re.DOTALL)
PREFIX = ".attnviz"  # of the names of temporary folders
# Seconds for which a temporary file is left alone: an empty one, which may not be locked yet, and
# one of another machine, whose locks may not be seen from here.
MINUTE, DAY = 60, 86_400


def name_temporary(target: Path) -> Path:
    """Return the path of a new temporary file beside the file that it is to become."""
    return target.with_name(make_temporary_name(f".{target.name[:LONGEST_BEGINNING]}"))


def make_temporary_name(beginning: str) -> str:
    """Return a new name by which a later run knows a temporary file of attnviz."""
    return f"{beginning}.{identify_machine()}-{secrets.token_hex(8)}.attnviz"


def identify_machine() -> str:
    """Return eight digits that stand for the name of this machine."""
    checksum = zlib.crc32(platform.node().encode("utf-8", "surrogateescape"))
    return f"{checksum:08x}"


@contextmanager
def make_temporary_folder() -> Iterator[Path]:
    """Make a folder for temporary files, and remove it with all that is in it when a block ends."""
    parent = Path(tempfile.gettempdir())
    remove_leftovers(parent)
    folder = parent / make_temporary_name(PREFIX)
    folder.mkdir(mode=stat.S_IRWXU)
    try:
        with lock_path(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock_path(path: Path) -> Iterator[None]:
    """Lock a file or folder, as the sign that it is in use, while a block runs.

    Where a file system has no locks, or the system is Windows, nothing is locked.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@cache
def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of attnviz whose process is gone from a folder.

    A process does that once for each folder. What cannot be removed is left.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name):
                with suppress(OSError):
                    remove_if_left(Path(entry.path))


def remove_if_left(path: Path) -> None:
    """Remove a temporary file or folder unless it is, or may be, in use.

    Links and special files are left alone. Raises OSError if it is in use, or cannot be removed.
    """
    status = path.lstat()
    if may_be_in_use(path, status):
        return
    if stat.S_ISREG(status.st_mode):
        with hold_unused(path):
            path.unlink()
    elif stat.S_ISDIR(status.st_mode) and sys.platform != "win32":
        with hold_unused(path):
            shutil.rmtree(path)


@contextmanager
def hold_unused(path: Path) -> Iterator[None]:
    """Lock a file or folder while a block runs. Raises OSError if it is in use."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def may_be_in_use(path: Path, status: os.stat_result) -> bool:
    """Return whether a temporary file or folder is one of which a lock may not tell if it is used.

    A new one may not be locked yet, as long as it is empty, and locks of another machine may not be
    seen. After some time, neither counts.
    """
    age = time.time() - status.st_mtime
    match = NAME.fullmatch(path.name)
    if match is None or match["machine"] != identify_machine():
        return age < DAY
    is_folder = stat.S_ISDIR(status.st_mode)
    is_empty = not any(path.iterdir()) if is_folder else status.st_size == 0
    return is_empty and age < MINUTE
