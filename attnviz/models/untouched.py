"""The comparison of what a model puts out while it is watched with what it puts out untouched."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.errors import ModelError

# the change of float32 outputs that no rounding explains: deep models reach 1e-5
EXACT = 1e-3
# the roundings, of the coarsest type, that the layers of a model may add up to: 0.12 in bfloat16
ROUNDINGS = 16
LAYERWISE = "the output that each layer went on with"
SKIPPED = (
    "attentions",
    "past_key_values",
    "cache",
)
"""The ends of the names of outputs that depend on how attention is computed."""


@contextmanager
def repeat_randomness(device: torch.device) -> Iterator[None]:
    """Let torch draw the same random numbers in each run, and restore its generators afterwards.

    device: the device of the model, whose generator is seeded and restored as well.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def collect_tensors(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors in a model's output, in order, however they are nested.

    The entries of mappings are left out whose names end like those of caches and of attention
    weights, since these depend on how attention is computed.
    """
    if isinstance(outputs, Tensor):
        return [outputs.detach()] if outputs.is_floating_point() else []
    items: list[Any] = []
    if isinstance(outputs, Mapping):
        items = [item for name, item in outputs.items() if not str(name).endswith(SKIPPED)]
    elif isinstance(outputs, (list, tuple)):
        items = list(outputs)
    return [tensor for item in items for tensor in collect_tensors(item)]


def measure_change(untouched: Any, watched: Any) -> float:
    """Return the largest relative change of a tensor between two outputs of one model.

    untouched: the output when nobody watches the model. watched: the output when its attention is
    observed. The change of a tensor is the Euclidean norm of the difference, as a share of the norm
    before. It is infinite if the numbers or shapes of tensors differ, or if a number that was
    finite is so no longer.
    """
    before = collect_tensors(untouched)
    after = collect_tensors(watched)
    shapes_before = [tensor.shape for tensor in before]
    shapes_after = [tensor.shape for tensor in after]
    if shapes_before != shapes_after:
        return math.inf
    return max(map(measure_tensor_change, before, after), default=0.0)


def measure_tensor_change(before: Tensor, after: Tensor) -> float:
    """Return the relative change of a tensor: the norm of the difference by the norm before.

    Only the numbers that were finite before are compared. If one of them is finite no longer, the
    change is infinite.
    """
    finite = before.isfinite()
    before = before[finite].float()
    after = after[finite].float()
    if not after.isfinite().all():
        return math.inf
    difference = float((after - before).norm())
    size = float(before.norm())
    # outputs that are zero but for rounding are compared with the size of that rounding
    rounding = torch.finfo(torch.float32).eps * math.sqrt(before.numel())
    return difference / max(size, rounding) if difference else 0.0


def find_allowed_change(outputs: Any, *types: torch.dtype) -> float:
    """Return the largest relative change of a model's outputs that rounding can explain.

    outputs: an output of the model, whose types count. types: further types that the model computes
    in.
    """
    all_types = {*types, *(tensor.dtype for tensor in collect_tensors(outputs))}
    roundings = [torch.finfo(dtype).eps for dtype in all_types if dtype.is_floating_point]
    return max(EXACT, ROUNDINGS * max(roundings))


def find_coarsest_type(net: nn.Module) -> torch.dtype:
    """Return the type of the largest rounding among a module's parameters."""
    types = {parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def explain_change(net: nn.Module, change: float) -> ModelError:
    """Return the error for a model whose output changes when its attention is observed.

    change: the relative change of the output, or infinity. If weights of the model are not finite,
    the error says so instead.
    """
    name = type(net).__name__
    if not has_finite_weights(net):
        return ModelError(f"{name} cannot be used: some of its weights are not finite numbers")
    extent = f"by {change:.1e} of its size" if math.isfinite(change) else "altogether"
    return ModelError(
        f"what {name} computes changes {extent} when its attention is read: "
        "its code does something that attnviz does not understand, so nothing is shown",
    )


def has_finite_weights(net: nn.Module) -> bool:
    """Return True if the floating-point parameters of a module are all finite numbers."""
    weights = [parameter for parameter in net.parameters() if parameter.is_floating_point()]
    return all(bool(weight.isfinite().all()) for weight in weights)
