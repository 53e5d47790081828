"""The tensors of a checkpoint, mapped into memory from its safetensors files and read as float32.

A mapped file takes no memory of the program: what is read of it lies in the cache of the system.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from attnviz.errors import ModelError
from attnviz.lm.corpus import Ids
from attnviz.models.safety import INDEX, WEIGHTS, read_index
from attnviz.record import Floats

LENGTH_BYTES = 8  # of the length of the header, with which a file begins
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
"""The types of numbers with a fraction, and the type of NumPy that their bytes are read as."""


@dataclass(frozen=True, eq=False)
class MappedTensor:
    """A tensor in a mapped file."""

    file: Path
    kind: str
    """Its type, as safetensors names it."""
    values: npt.NDArray[Any]
    """The numbers as they lie in the file, of bfloat16 the upper halves of float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.values.shape

    def read(self, rows: Ids | slice | None = None) -> Floats:
        """Return the tensor in float32, or some of its rows; without a copy if it is float32."""
        chosen = self.values if rows is None else self.values[rows]
        if self.kind == "BF16":
            return (chosen.astype(np.uint32) << 16).view(np.float32)
        return chosen.astype(np.float32, copy=False)


def map_checkpoint(folder: Path) -> dict[str, MappedTensor]:
    """Map the tensors of the weights in a folder, by their names.

    They are in one file, or in those that an index names. Raises ModelError for files that are
    missing, damaged or outside the folder.
    """
    if (folder / WEIGHTS).exists():
        return map_file(folder / WEIGHTS)
    file_of_tensor = read_index(folder)
    tensors: dict[str, MappedTensor] = {}
    for file in sorted(set(file_of_tensor.values())):
        tensors |= map_file(folder / file)
    found = {name: tensor.file.name for name, tensor in tensors.items()}
    if found != file_of_tensor:
        raise ModelError(f"{folder / INDEX} names other tensors than its files hold")
    return tensors


def map_file(path: Path) -> dict[str, MappedTensor]:
    """Map the tensors of a safetensors file. Raises ModelError if it is damaged or missing."""
    try:
        with safe_open(path, framework="np"):
            pass  # the library checks that the tensors lie inside the file, each byte in one
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    start = LENGTH_BYTES + length
    tensors: dict[str, MappedTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = entry["dtype"]
        dtype = np.dtype(FLOATS.get(kind, "u1"))
        count = (end - begin) // dtype.itemsize
        values = np.frombuffer(mapped, dtype, count, start + begin)
        if kind in FLOATS:
            values = values.reshape(entry["shape"])
        tensors[name] = MappedTensor(path, kind, values)
    return tensors


def refuse_tensor(name: str, tensor: MappedTensor, shape: tuple[int, ...]) -> NoReturn:
    """Raise ModelError for a tensor that has not the shape that the config describes."""
    raise ModelError(
        f"{name} in {tensor.file} is {tensor.kind} {tensor.shape}, the config describes {shape}",
    )
