"""Checks that backends share: the device, the length of the text, the memory that the result takes."""

from collections.abc import Mapping
from threading import get_ident

import psutil

from attnviz.errors import InputError, UsageError
from attnviz.request import Edge

RUNS: dict[int, str] = {}
"""The class of the torch model that runs now, by the thread; at most one, since runs wait for each other."""


def require_no_run() -> None:
    """Raise UsageError within the run of a captured model: each of two captures would see the calls of the other."""
    name = RUNS.get(get_ident())
    if name is not None:
        raise UsageError(
            f"attnviz was called while it runs {name}, from the code of the model or from a hook: capture one model "
            "after the other"
        )


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


def require_length(
    length: int,
    positions: int | None,
    truncate: bool,
    model: str,
    *,
    what: str = "the text",
    writes: int = 0,
) -> str | None:
    """Check a text's length in tokens against the model's positions; None if it fits, a note if it is to be cut.

    writes: tokens that the model is to write after it. Raises InputError if it is too long and must not be cut.
    """
    if positions is None or length + writes <= positions:
        return None
    room = positions - writes
    if room < 1:
        raise InputError(f"{model} reads {positions} tokens: it cannot write {writes} after a text")
    also = f", {writes} of them its own" if writes else ""
    told = f"{what} has {length} tokens and {model} reads {positions}{also}"
    if not truncate:
        raise InputError(f"{told}; shorten it, or add --truncate to use the first {room}")
    return f"{told}: only the first {room} are shown"


def require_memory(heads: Mapping[tuple[int, int], int]) -> None:
    """Raise InputError if the weights of so many heads over each (queries, keys) take more memory than is free."""
    free: int = psutil.virtual_memory().available
    needed = sum(4 * n * m * count for (n, m), count in heads.items())
    if needed > free:
        n, m = max(heads, key=lambda size: size[0] * size[1])
        raise InputError(
            f"the weights of {sum(heads.values())} heads over {n:,} x {m:,} tokens take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: {free // (4 * n * m)} of them fit. Choose --layers and --heads, a window "
            "with --rows and --cols, or keep tiles or statistics, which take next to nothing"
        )


def require_none(what: Mapping[str, object], why: str) -> None:
    """Raise UsageError if any option was given, by its name, that cannot be used, and why."""
    for name, given in what.items():
        if given:
            raise UsageError(f"{name}: {why}")


def require_edge(cut: Edge, heads: int, queries: int, keys: int) -> None:
    """Raise UsageError unless there is such an edge to cut, in a layer of so many heads."""
    if not 0 <= (cut.head or 0) < heads:
        where = f"layer {cut.layer}" if cut.head is None else f"head L{cut.layer}H{cut.head}"
        raise UsageError(
            f"there is no {f'{cut.kind} ' if cut.kind else ''}{where} to cut an edge of"
        )
    if not (0 <= (cut.query or 0) < queries and 0 <= (cut.key or 0) < keys):
        raise UsageError(
            f"there is no edge {cut.query} -> {cut.key} to cut: {queries} queries, {keys} keys"
        )
