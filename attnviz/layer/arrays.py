"""The seam between NumPy and PyTorch: the few places where their spellings differ.

The rest of the layer uses names that both have (``matmul``, ``exp``, ``amax``, ``where`` ..., with
``axis`` and ``keepdims``, which torch takes as aliases). array-api-compat would serve as well, but
importing its NumPy half costs as much as NumPy itself (+140 ms of 170 ms, measured), which every
start of the program would pay.
"""

import sys
from typing import Any, TypeAlias

import numpy as np

# A numpy.ndarray or a torch.Tensor. They share no base class, so the type checker cannot help here.
Array: TypeAlias = Any


def find_namespace(*arrays: Array) -> Any:
    """Return the module whose functions work on these arrays.

    That is torch if any of them is a tensor, else numpy.
    """
    torch = sys.modules.get("torch")  # a tensor can only exist where torch is loaded already
    if torch and any(isinstance(array, torch.Tensor) for array in arrays):
        return torch
    return np


def as_array(values: Array) -> Array:
    """Return tensors as they are, anything else (lists, numbers, arrays) as a NumPy array."""
    return np.asarray(values) if find_namespace(values) is np else values


def widen_to_single(array: Array) -> Array:
    """Return an array in single precision at least.

    Half types and integers become float32; float32 and float64 stay as they are.
    """
    xp = find_namespace(array)
    if array.dtype in (xp.float32, xp.float64):
        return array
    return cast(array, xp.float32)


def cast(array: Array, dtype: Any) -> Array:
    """Return an array in another type; in torch, inside the autograd graph."""
    return array.astype(dtype) if find_namespace(array) is np else array.to(dtype)


def convert_like(array: Array, like: Array) -> Array:
    """Return an array as one of the kind, NumPy or torch, type and device of another array."""
    return find_namespace(like).asarray(array, dtype=like.dtype, device=like.device)


def is_floating(array: Array) -> bool:
    """Return whether an array holds real numbers, not booleans or integers."""
    if find_namespace(array) is np:
        return bool(array.dtype.kind == "f")
    return bool(array.dtype.is_floating_point)


def find_override(*arrays: Array) -> Any:
    """Return torch's handler for a call with these tensors, if anything watches torch's functions.

    The handler passes the call on to what watches, such as ``attnviz.engine.tap``. Returns None if
    nothing does. Torch's own functions ask for this at their beginning: see
    https://pytorch.org/docs/stable/torch.overrides.html.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.overrides.has_torch_function(arrays):
        return None
    return torch.overrides.handle_torch_function
