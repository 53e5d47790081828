"""Opening files that nobody vouches for: no code is run, and nothing large is built before its size is known.

Everything that is wrong with a file is a ValueError of one line, or an OSError; whoever knows the path tells the user.
"""

import json
import math
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

Array: TypeAlias = npt.NDArray[Any]
LARGEST_NPZ = 8 << 30  # bytes unpacked; a zip of 8 MB can hold as much
JSON_GROWTH = 20  # bytes in memory for a byte of JSON, where it is all empty lists
NPY_HEADER = 1 << 14  # bytes; NumPy itself reads no more than 10,000
NUMPY_TYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


def require_room(size: int) -> None:
    """Raise ValueError unless this many bytes are at most half of the free memory: the other half is for the work."""
    import psutil

    free = psutil.virtual_memory().available
    if size > free // 2:
        raise ValueError(
            f"it needs {size / 1e9:.3g} GB of memory, more than half of the {free / 1e9:.3g} GB free"
        )


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    require_room(path.stat().st_size * JSON_GROWTH)
    return parse_json(path.read_bytes())


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON document, in which NaN is no number."""
    require_room(len(data) * JSON_GROWTH)
    try:
        return json.loads(data, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("it is no JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON that can be read: {error}") from error


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's parser would take."""
    raise ValueError(f"{name} is no number; a masked cell is null")


def field(document: dict[str, Any], name: str, *kinds: type) -> Any:
    """The entry of that name, None if it is not there. Raises ValueError unless it is exactly of one of the types."""
    value = document.get(name)
    if type(value) not in kinds:  # isinstance would take true for a number
        expected = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        raise ValueError(f"{name!r} must be of type {expected}, not {type(value).__name__}")
    return value


def cells(nested: Any, name: str, dtype: type[Any], *kinds: type) -> Array:
    """Nested lists whose items are exactly of these types, as an array; NaN for null. Raises ValueError."""
    array = np.array(nested, dtype=object)
    if not array.ndim or not set(map(type, array.ravel())) <= set(kinds):
        raise ValueError(
            f"{name!r} must be nested lists of {kinds[0].__name__}, equally long at each level"
        )
    try:
        return array.astype(dtype)
    except OverflowError as error:
        raise ValueError(f"{name!r} holds a number that is too large") from error


def numbers(nested: Any, name: str) -> npt.NDArray[np.float64]:
    """Nested lists of numbers, NaN for null. Raises ValueError."""
    return cells(nested, name, np.float64, float, int, NoneType)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose header was checked: its tensors lie inside the file, each byte in one."""
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"it is damaged or cut short: {error}") from error


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with opened(path) as file:
        return file.metadata() or {}


def tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """The tensors of a safetensors file, or those of them that are named; bfloat16 becomes float32."""
    require_room(path.stat().st_size)
    with opened(path) as file:
        there = file.keys()  # a file of safetensors is no mapping
        chosen = [name for name in there if names is None or name in names]
        return {name: tensor(path, file, name) for name in chosen}


def tensor(path: Path, file: Any, name: str) -> Array:
    """One tensor of an open file."""
    kind = file.get_slice(name).get_dtype()
    if kind == "BF16":
        return bfloat16(path, name)
    if kind not in NUMPY_TYPES:
        raise ValueError(f"{name!r} is of type {kind}, which cannot be read: save it as float32")
    array: Array = file.get_tensor(name)
    return array


def bfloat16(path: Path, name: str) -> npt.NDArray[np.float32]:
    """A bfloat16 tensor, of which NumPy has no notion: the upper halves of float32. The header has been checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, stop = entry["data_offsets"]
        file.seek(start, 1)
        halves = np.frombuffer(file.read(stop - start), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def read_npz(path: Path, names: Collection[str]) -> dict[str, Array]:
    """The named arrays of a .npz, as far as it has them. Raises ValueError; a pickle in it is never opened."""
    try:
        with warnings.catch_warnings(), ZipFile(path) as archive:
            warnings.simplefilter(
                "ignore"
            )  # a hostile header makes NumPy and the parser under it talk
            members = set(archive.namelist())
            wanted = {name: f"{name}.npy" for name in names if f"{name}.npy" in members}
            size = sum(archive.getinfo(member).file_size for member in wanted.values())
            if size > LARGEST_NPZ:
                raise ValueError(
                    f"it unpacks to {size / 1e9:.3g} GB; at most {LARGEST_NPZ / 1e9:.3g} are read"
                )
            require_room(size)
            return {name: read_member(archive, member) for name, member in wanted.items()}
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # zip, deflate and NumPy's header have a dozen kinds between them
        raise ValueError(f"it is damaged or cut short: {error}") from error


def read_member(archive: ZipFile, name: str) -> Array:
    """One array of a .npz, whose own header must agree with the size that the archive declares."""
    info = archive.getinfo(name)
    with archive.open(info) as file:
        shape, dtype, start = npy_header(file.read(NPY_HEADER))
    if dtype.hasobject:
        raise ValueError(
            f"{name} is a pickle, which can run code: save texts as np.array([...], dtype=str)"
        )
    if (
        min(shape, default=0) < 0
        or not dtype.itemsize
        or start + math.prod(shape) * dtype.itemsize != info.file_size
    ):
        raise ValueError(f"{name} says that its shape is {shape}, and does not hold as much")
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and size in bytes of the header that begins an array's file. Raises ValueError."""
    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(
            f"it holds an array of format {version}, and not of plain numbers or texts"
        )
    shape, _, dtype = readers[version](file)
    return shape, dtype, file.tell()
