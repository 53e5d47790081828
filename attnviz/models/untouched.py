"""Does a model say the same while it is watched? What it computes untouched is compared with what it computes then."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.errors import ModelError

EXACT = 1e-3  # change of float32 outputs that no rounding explains: deep models reach 1e-5
ROUNDINGS = 16  # of the coarsest type, that the layers of a model may add up to: 0.12 in bfloat16
LAYERWISE = "the output that each layer went on with"
SKIPPED = (
    "attentions",
    "past_key_values",
    "cache",
)  # outputs that depend on how attention is computed


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in each run, and leave the generators of the process as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def collect_tensors(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of what a model puts out, in order, however they are nested."""
    if isinstance(outputs, Tensor):
        return [outputs.detach()] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        kept = [part for name, part in outputs.items() if not str(name).endswith(SKIPPED)]
        return [tensor for part in kept for tensor in collect_tensors(part)]
    if isinstance(outputs, (list, tuple)):
        return [tensor for part in outputs for tensor in collect_tensors(part)]
    return []


def measure_change(untouched: Any, watched: Any) -> float:
    """Return the largest relative change among the tensors of two outputs, each by its Euclidean norm.

    Infinite if they hold other tensors, or numbers that are no longer finite.
    """
    before, after = collect_tensors(untouched), collect_tensors(watched)
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return math.inf
    return max(map(measure_tensor_change, before, after), default=0.0)


def measure_tensor_change(before: Tensor, after: Tensor) -> float:
    """Return the relative change of one tensor, where it was finite before."""
    finite = before.isfinite()
    before, after = before[finite].float(), after[finite].float()
    if not after.isfinite().all():
        return math.inf
    apart, size = float((after - before).norm()), float(before.norm())
    rounding = torch.finfo(torch.float32).eps * math.sqrt(
        before.numel()
    )  # numbers that cancel out are all rounding
    return apart / max(size, rounding) if apart else 0.0


def allowed_change(outputs: Any, *types: torch.dtype) -> float:
    """Return the change of such outputs that rounding can explain. types: those that a model computes in."""
    all_types = {*types, *(tensor.dtype for tensor in collect_tensors(outputs))}
    coarsest = max(torch.finfo(each).eps for each in all_types if each.is_floating_point)
    return max(EXACT, ROUNDINGS * coarsest)


def coarsest_type(net: nn.Module) -> torch.dtype:
    """Return the type of the largest rounding among a module's parameters."""
    types = {part.dtype for part in net.parameters() if part.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def explain_change(net: nn.Module, change: float) -> ModelError:
    """Return the error for a model that says something else when it is watched."""
    name = type(net).__name__
    if not all(
        bool(part.isfinite().all()) for part in net.parameters() if part.is_floating_point()
    ):
        return ModelError(f"{name} cannot be used: some of its weights are not finite numbers")
    how = f"by {change:.1e} of its size" if math.isfinite(change) else "altogether"
    return ModelError(
        f"what {name} computes changes {how} when its attention is read: "
        "its code does something that attnviz does not understand, so nothing is shown"
    )
