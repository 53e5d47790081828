"""Checks that backends share: the device, the length of the text, the memory that the result takes."""

from collections.abc import Mapping

import psutil

from attnviz.errors import InputError, UsageError


def torch_device(name: str) -> str:
    """The torch device of that name, which must be there; auto takes cuda, then mps, then cpu. Raises UsageError."""
    import torch

    here = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
    here = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + here[::-1]
    if name == "auto":
        return here[0]
    if name not in here and not (name == "cuda" and here[0].startswith("cuda")):
        raise UsageError(f"there is no device {name!r} here: use auto, {', '.join(reversed(here))}")
    return name


def require_length(length: int, positions: int | None, truncate: bool, model: str) -> str | None:
    """Check a text's length in tokens against the model's positions; None if it fits, a note if it is to be cut.

    Raises InputError if it is too long and must not be cut.
    """
    if positions is None or length <= positions:
        return None
    told = f"the text has {length} tokens and {model} reads {positions}"
    if not truncate:
        raise InputError(f"{told}; shorten it, or add --truncate to use the first {positions}")
    return f"{told}: only the first {positions} are shown"


def require_memory(heads: int, sizes: tuple[int, int]) -> None:
    """Raise InputError if the weights of so many heads over (queries, keys) would take more memory than is free."""
    free: int = psutil.virtual_memory().available
    each = 4 * sizes[0] * sizes[1]
    if heads * each > free:
        raise InputError(
            f"the weights of {heads} heads over {sizes[0]:,} x {sizes[1]:,} tokens take {heads * each / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free: {free // each} heads fit. Choose --layers and --heads, a window with "
            "--rows and --cols, or keep tiles or statistics, which take next to nothing"
        )


def require_none(what: Mapping[str, object], model: str) -> None:
    """Raise UsageError if any option was given that this model has no use for; ``what`` is its reason by its name."""
    for name, given in what.items():
        if given:
            raise UsageError(f"{name}: {model} cannot do that")
