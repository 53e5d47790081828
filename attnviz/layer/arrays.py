"""The seam between NumPy and PyTorch: the few places where their spellings differ.

The rest of the layer uses names that both have (``matmul``, ``exp``, ``amax``, ``where`` ..., with ``axis`` and
``keepdims``, which torch takes as aliases). array-api-compat would serve as well, but importing its NumPy half costs
as much as NumPy itself (+140 ms of 170 ms, measured), which every start of the program would pay.
"""

import sys
from typing import Any, TypeAlias

import numpy as np

# A numpy.ndarray or a torch.Tensor. The two share no base class, so the type checker cannot help here.
Array: TypeAlias = Any


def namespace(*arrays: Array) -> Any:
    """The module whose functions work on these arrays: torch if any is a tensor, else numpy."""
    torch = sys.modules.get("torch")  # a tensor can only exist where torch is loaded already
    return torch if torch and any(isinstance(array, torch.Tensor) for array in arrays) else np


def as_array(values: Array) -> Array:
    """Tensors as they are, anything else (lists, numbers, arrays) as a NumPy array."""
    return np.asarray(values) if namespace(values) is np else values


def widen(array: Array) -> Array:
    """At least single precision: half types and integers become float32, float32 and float64 stay."""
    xp = namespace(array)
    if array.dtype in (xp.float32, xp.float64):
        return array
    return cast(array, xp.float32)


def cast(array: Array, dtype: Any) -> Array:
    """The array in another type; in torch, inside the autograd graph."""
    return array.astype(dtype) if namespace(array) is np else array.to(dtype)


def is_floating(array: Array) -> bool:
    """Whether the array holds real numbers, not booleans or integers."""
    return (
        bool(array.dtype.is_floating_point)
        if namespace(array) is not np
        else array.dtype.kind == "f"
    )


def override(*arrays: Array) -> Any:
    """Torch's handler for a function of these tensors if somebody asked to see its calls, as a tap does, else None.

    See https://pytorch.org/docs/stable/torch.overrides.html: what torch's own functions do at their beginning.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.overrides.has_torch_function(arrays):
        return None
    return torch.overrides.handle_torch_function
