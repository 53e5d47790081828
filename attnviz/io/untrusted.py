"""Opening files that nobody vouches for.

No code is run, and nothing large is built before its size is known. Everything that is wrong with a
file is a ValueError of one line, or an OSError; whoever knows the path tells the user.
"""

import json
import math
import os
import stat
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeAlias
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from attnviz.io.files import SPECIAL_FILES

Array: TypeAlias = npt.NDArray[Any]
LARGEST_NPZ = 8 << 30  # bytes unpacked; a zip of 8 MB can hold as much
LARGEST_JSON = 8 << 30  # bytes; less fits into the memory of most machines
JSON_GROWTH = 30  # bytes in memory for a byte of JSON, where it is all small lists or objects
ARRAY_GROWTH = 2  # bytes in memory for a byte of an array, which may be copied in another type
NPY_HEADER = 1 << 14  # bytes; NumPy itself reads no more than 10,000
NUMPY_TYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
GIGABYTE = 1e9
MEGABYTE = 1 << 20
LARGEST_CONFIG = MEGABYTE  # bytes; real ones are a few thousand
LARGEST_LIST = 64 * MEGABYTE
"""The most bytes of a list of names, such as an index of weights; the longest have about 15 MB."""


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file as ``open`` does, but without waiting for another program to write to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular_file(path: Path, most: int) -> bytes:
    """Read a regular file, or one that links lead to, of at most ``most`` bytes.

    Raises OSError if it cannot be read, and ValueError for a folder, a device, a pipe or a socket,
    and for a larger file.
    """
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        require_regular_status(status)
        if status.st_size > most:
            size, limit = status.st_size / MEGABYTE, most / MEGABYTE
            raise ValueError(f"it has {size:.4g} MB, and at most {limit:.4g} MB are read")
        return file.read(status.st_size)


def require_regular_status(status: os.stat_result) -> None:
    """Raise ValueError unless a status is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        file_type = stat.S_IFMT(status.st_mode)
        kind = SPECIAL_FILES.get(file_type, "a folder")
        raise ValueError(f"it is {kind}, and only regular files are read")


def require_free_memory(size: int) -> None:
    """Raise ValueError if a number of bytes is more than half of the free memory.

    The other half is for the work with them.
    """
    import psutil

    free = psutil.virtual_memory().available
    if size > free // 2:
        needed_gigabytes, free_gigabytes = size / GIGABYTE, free / GIGABYTE
        limit = f"more than half of the {free_gigabytes:.3g} GB free"
        raise ValueError(f"it needs {needed_gigabytes:.3g} GB of memory, {limit}")


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """Read the value of a JSON file of at most ``most`` bytes. Raises OSError and ValueError."""
    size = path.stat().st_size
    require_free_memory(size * JSON_GROWTH)
    return parse_json(read_regular_file(path, most))


def parse_json(data: str | bytes) -> Any:
    """Parse a JSON document in which NaN and infinity are not allowed.

    Raises ValueError for anything else, and for a document that may not fit into memory.
    """
    require_free_memory(len(data) * JSON_GROWTH)
    try:
        return json.loads(data, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("it is no JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON that can be read: {error}") from error


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's parser would take."""
    raise ValueError(f"{name} is no number; a masked cell is null")


def read_field(document: dict[str, Any], name: str, *kinds: type) -> Any:
    """Read the entry of a name in a document, whose type must be one of ``kinds``.

    An entry that is missing reads as None. The type must be exactly one of these: true is no int.
    Raises ValueError if it is not.
    """
    value = document.get(name)
    if type(value) not in kinds:  # isinstance would take true for a number
        expected = " or ".join(map(name_type, kinds))
        actual = type(value).__name__
        raise ValueError(f"{name!r} must be of type {expected}, not {actual}")
    return value


def name_type(kind: type) -> str:
    """Return the name of a type in an error; null, as JSON says, for None."""
    return "null" if kind is NoneType else kind.__name__


def read_nested_lists(nested: Any, name: str, dtype: type[Any], *kinds: type) -> Array:
    """Read nested lists whose items are exactly of some types as an array.

    nested: a value from a JSON document. name: what it is called in errors. dtype: the type of the
    array. kinds: the types that items may have; where None is allowed beside numbers, it becomes
    NaN. Raises ValueError for other items, and for lists that are not equally long.
    """
    array = np.array(nested, dtype=object)
    item_types = set(map(type, array.ravel()))
    if not array.ndim or not item_types <= set(kinds):
        expected = f"nested lists of {kinds[0].__name__}"
        raise ValueError(f"{name!r} must be {expected}, equally long at each level")
    try:
        return array.astype(dtype)
    except OverflowError as error:
        raise ValueError(f"{name!r} holds a number that is too large") from error


def read_number_lists(nested: Any, name: str) -> npt.NDArray[np.float64]:
    """Read nested lists of numbers as an array; NaN for null. Raises ValueError."""
    return read_nested_lists(nested, name, np.float64, float, int, NoneType)


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, whose header is checked, for reading its tensors.

    The check makes sure that the tensors lie inside the file, each byte in one of them. Raises
    ValueError for a damaged file.
    """
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"it is damaged or cut short: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


def load_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """Read the tensors of a safetensors file, or only those that are named.

    names: those to read, as far as the file has them; None for all. A tensor of bfloat16 becomes
    float32. Raises ValueError for other types that NumPy does not have.
    """
    require_free_memory(path.stat().st_size * ARRAY_GROWTH)
    with open_safetensors(path) as file:
        all_names = file.keys()  # a file of safetensors is no mapping
        wanted = [name for name in all_names if names is None or name in names]
        return {name: read_tensor_named(path, file, name) for name in wanted}


def read_tensor_named(path: Path, file: Any, name: str) -> Array:
    """Read one tensor of an open safetensors file as an array.

    path: that of the open file. A tensor of bfloat16 becomes float32. Raises ValueError for other
    types that NumPy does not have.
    """
    stored_type = file.get_slice(name).get_dtype()
    if stored_type == "BF16":
        return read_bfloat16(path, name)
    if stored_type not in NUMPY_TYPES:
        problem = f"{name!r} is of type {stored_type}, which cannot be read"
        raise ValueError(f"{problem}: save it as float32")
    array: Array = file.get_tensor(name)
    return array


def read_bfloat16(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Read a bfloat16 tensor of a safetensors file, whose header has been checked.

    NumPy has no such type: its numbers are the upper halves of float32.
    """
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
        entry = header[name]
        start, stop = entry["data_offsets"]
        file.seek(start, 1)
        data = file.read(stop - start)
    halves = np.frombuffer(data, "<u2").astype(np.uint32)
    values = (halves << 16).view(np.float32)
    return values.reshape(entry["shape"])


def read_npz(path: Path, names: Collection[str]) -> dict[str, Array]:
    """Read the named arrays of a .npz, as far as it has them.

    Raises ValueError for what cannot be read; a pickle in it is never opened.
    """
    try:
        with warnings.catch_warnings(), ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # a hostile header makes NumPy and its parser talk
            return read_members(archive, names)
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # zip, deflate and NumPy's header have a dozen kinds between them
        raise ValueError(f"it is damaged or cut short: {error}") from error


def read_members(archive: ZipFile, names: Collection[str]) -> dict[str, Array]:
    """Read the named arrays of an open .npz, as far as it has them.

    Raises ValueError if they are too large together.
    """
    members = set(archive.namelist())
    present: dict[str, str] = {}
    size = 0
    for name in names:
        file = f"{name}.npy"
        if file in members:
            present[name] = file
            size += archive.getinfo(file).file_size
    if size > LARGEST_NPZ:
        gigabytes, limit = size / GIGABYTE, LARGEST_NPZ / GIGABYTE
        most = f"at most {limit:.3g} are read"
        raise ValueError(f"it unpacks to {gigabytes:.3g} GB; {most}")
    require_free_memory(size * ARRAY_GROWTH)
    return {name: read_member(archive, file) for name, file in present.items()}


def read_member(archive: ZipFile, name: str) -> Array:
    """Read one array of an open .npz, by the name of its file in the archive.

    Raises ValueError for a pickle, and if the header of the array does not agree with the size that
    the archive declares.
    """
    info = archive.getinfo(name)
    with archive.open(info) as file:
        shape, dtype, header_size = read_npy_header(file.read(NPY_HEADER))
    if dtype.hasobject:
        advice = "save texts as np.array([...], dtype=str)"
        raise ValueError(f"{name} is a pickle, which can run code: {advice}")
    is_negative = min(shape, default=0) < 0
    size = header_size + math.prod(shape) * dtype.itemsize
    if is_negative or not dtype.itemsize or size != info.file_size:
        raise ValueError(f"{name} says that its shape is {shape}, and does not hold as much")
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Read the shape, the type and the size in bytes of the header that begins a .npy file.

    Raises ValueError for a format of other things than plain numbers or texts.
    """
    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        problem = f"it holds an array of format {version}"
        raise ValueError(f"{problem}, and not of plain numbers or texts")
    shape, _, dtype = readers[version](file)
    return shape, dtype, file.tell()
