"""Arrays written as a safetensors file, one after the other, so that memory holds them once.

The library's own function makes two copies of everything before the first byte is written.
"""

import json
from collections.abc import Iterator, Mapping

import numpy as np

from attnviz.errors import OutputError
from attnviz.io.untrusted import Array

TYPE_NAMES = {"f": "F32", "i": "I32", "b": "BOOL"}
"""The names of the types that are written, by NumPy's letters for their kinds, in their order."""
ALIGNMENT = 8  # bytes: the numbers begin at a multiple of them
LENGTH_BYTES = 8  # of the number that says how long the header is
LONGEST_HEADER = 100_000_000  # bytes that readers of the format take


def format_tensors(
    tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> Iterator[memoryview]:
    """Yield the content of a safetensors file in parts: its header, and then the arrays.

    tensors: booleans, int32 and float32, by name. An array that does not lie in one piece of memory
    is copied a matrix at a time. metadata: what the header says beside them. Raises OutputError if
    there are too many of these to be read again.
    """
    kinds = list(TYPE_NAMES)
    # the order of the library
    names = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype.kind), name))
    yield format_header({name: tensors[name] for name in names}, metadata)
    for name in names:
        array = tensors[name]
        little_endian = array.dtype.newbyteorder("<")
        yield from split_contiguous(array.astype(little_endian, copy=False))


def format_header(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> memoryview:
    """Return the header of a safetensors file, which says where in it each array lies.

    tensors: the arrays, in the order of the file. Raises OutputError if it is too long.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in tensors.items():
        stop = start + array.nbytes
        entries[name] = {
            "dtype": TYPE_NAMES[array.dtype.kind],
            "shape": list(array.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > LONGEST_HEADER:
        megabytes = len(text) / 1e6
        raise OutputError(
            f"the capture cannot be written as .attn: its header takes {megabytes:.0f} MB"
        )
    padding = b" " * (-len(text) % ALIGNMENT)
    length = len(text) + len(padding)
    return memoryview(length.to_bytes(LENGTH_BYTES, "little") + text + padding)


def split_contiguous(array: Array) -> Iterator[memoryview]:
    """Yield the bytes of an array in order, in pieces that are copied only if they must be."""
    if array.flags.c_contiguous or array.ndim <= 2:
        numbers = np.ascontiguousarray(array).reshape(-1)
        yield numbers.view(np.uint8).data
        return
    for part in array:
        yield from split_contiguous(part)
