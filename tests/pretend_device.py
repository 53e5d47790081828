"""A pretend accelerator: its tensors compute on the CPU, and an operation that mixes them with the CPU's raises.

It finds the mistakes of device placement that a GPU finds, on machines without one: a mask made on the CPU for scores
on the device, an index that was never moved, a tensor that is given to NumPy. Like Apple's GPUs, it has no float64. It
says nothing of the kernels, the speed or the precision of a real device. ``with pretend_device():`` around a whole test;
inside, ``model.to("pretend")`` and ``tensor.to("pretend")`` work as for CUDA.

A pretend tensor is a wrapper: its own storage is empty and its device says ``pretend:0``, while ``on_cpu`` holds the
numbers. Torch's dispatcher hands each operation, below autograd, to ``run_operation``, which checks the devices, runs
the operation on the numbers and wraps the results.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:  # as in torch 2.9
    pytest.skip("this torch cannot register a device in Python", allow_module_level=True)

NAME = "pretend"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}  # these take tensors of two devices
SCALARS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
}  # these give a Python value
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
}  # CUDA too takes indices of the CPU


class DeviceMixError(RuntimeError):
    """An operation was given tensors of the pretend device and of the CPU."""


class PretendTensor(Tensor):
    """A tensor on the pretend device."""

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> Self:
        """Make the wrapper."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        made.on_cpu = on_cpu
        return made

    def __init__(self, on_cpu: Tensor) -> None:
        """Take the tensor; all was done when it was made."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.on_cpu})"

    def __format__(self, spec: str) -> str:
        return format(self.on_cpu, spec)

    def as_subclass(self, cls: type[Tensor]) -> Tensor:
        """See ``Tensor.as_subclass``; the result is of both classes."""
        return subclass_of_both(cls)(self.on_cpu)

    def data_ptr(self) -> int:
        """See ``Tensor.data_ptr``."""
        return self.on_cpu.data_ptr()

    def tolist(self) -> Any:
        """See ``Tensor.tolist``."""
        return self.on_cpu.tolist()

    def numpy(self, **_: Any) -> Any:
        """Refuse, as CUDA does."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")


@cache
def subclass_of_both(cls: type[Tensor]) -> Any:
    """Return a class of pretend tensors that is also another subclass of tensors."""
    return (
        cls
        if issubclass(cls, PretendTensor)
        else type(f"Pretend{cls.__name__}", (cls, PretendTensor), {})
    )


def run_operation(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation of torch on the numbers behind pretend tensors. Raise DeviceMixError."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    pretend = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    if func not in COPIES:
        require_one_device(func, tensors, pretend)
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    run = histogram if func is aten.histc.default else func
    result = run(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if pretend and torch.Tag.inplace_view in func.tags:
        reshape_in_place(func, args, kwargs)
    known = {id(tensor.on_cpu): tensor for tensor in pretend}
    on_device = torch.device(target).type == NAME if target is not None else bool(pretend)

    def wrapped(value: Any) -> Any:
        if id(value) in known:  # an operation in place gives its own argument
            return known[id(value)]
        if not (isinstance(value, Tensor) and on_device):
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{NAME} has no float64, as mps has none")
        return PretendTensor(value)

    return result if func in SCALARS else tree_map(wrapped, result)


def reshape_in_place(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Give a pretend tensor the shape that an operation such as ``squeeze_`` has given to its numbers."""
    included = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(included)


def histogram(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """See ``torch.histc``, which counts integers on CUDA only."""
    return aten.histc.default(values.double(), *args, **kwargs).to(values.dtype)


def require_one_device(func: Any, tensors: list[Tensor], pretend: list[Tensor]) -> None:
    """Raise DeviceMixError if an operation mixes devices in a way that CUDA refuses too.

    A CPU tensor of no axes is a number, which every device takes.
    """
    others = [
        tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.ndim > 0
    ]
    if pretend and others and func not in INDEXING:
        shapes = [tuple(tensor.shape) for tensor in others]
        raise DeviceMixError(f"{func} was given tensors on {NAME}:0 and on the CPU: {shapes}")


def unwrapped(value: Any) -> Any:
    """Return the numbers behind a pretend tensor, and anything else as it is."""
    return value.on_cpu if isinstance(value, PretendTensor) else value


class PretendMode(TorchDispatchMode):
    """Sees the operations that make a tensor on the pretend device out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # torch leaves it to us then to take operations apart
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return run_operation(func, args, kwargs)


@cache
def register_backend() -> torch.library.Library:
    """Register the pretend device with torch, once for the process, and keep the registration alive."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))

    def empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return PretendTensor(torch.empty(size, dtype=dtype))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001
        unwrapped(target).copy_(unwrapped(source))
        return target

    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library


@contextmanager
def pretend_device() -> Iterator[None]:
    """Make the device ``pretend`` available for a while."""
    register_backend()
    with PretendMode():
        yield
