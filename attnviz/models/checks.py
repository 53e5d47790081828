"""Checks that backends share: the device, the length of the text, what cannot be asked."""

from collections.abc import Mapping
from threading import get_ident

from attnviz.errors import InputError, UsageError, require_packages
from attnviz.progress import begin_step
from attnviz.request import Edge

RUNS: dict[int, str] = {}
"""The class of the torch model that runs now, by the thread.

There is one at most, since runs wait for each other."""
NO_DOUBLES = "mps has no float64: use --dtype float32, or --device cpu"


def require_no_run() -> None:
    """Raise UsageError if this thread runs a model that is being captured.

    Such a call comes from the code of the model or from a hook. Each of the two captures would
    observe the calls of the other.
    """
    name = RUNS.get(get_ident())
    if name is not None:
        raise UsageError(
            f"attnviz was called while it runs {name}, from the code of the model or from a hook: "
            "capture one model after the other",
        )


def find_torch_device(name: str, dtype: str = "auto") -> str:
    """Return the name of the torch device to compute on.

    name: auto, cpu, cuda, cuda:N or mps. For auto the first CUDA device is taken, else mps, else
    the CPU; any other name is returned as it is. dtype: the number type to compute in, which mps
    may lack; auto then takes the CPU. Raises UsageError for a device that is not there or lacks the
    type, and if torch is not installed.
    """
    require_packages("this device, number type or engine", "torch", error=UsageError)
    with begin_step("importing torch"):
        import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available() and (name, dtype) != ("auto", "float64"):
        devices.append("mps")
    devices.append("cpu")
    best = devices[0]
    if name == "auto":
        return best
    is_any_cuda = name == "cuda" and best.startswith("cuda")
    if name not in devices and not is_any_cuda:
        names = ", ".join(reversed(devices))
        raise UsageError(f"there is no device {name!r} here: use auto, {names}")
    if (name, dtype) == ("mps", "float64"):
        raise UsageError(NO_DOUBLES)
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
    """Check the length of a text; return a note if the text must be cut, else None.

    length: the number of tokens of the text. positions: the largest number of tokens that the model
    reads; None if nothing limits it. truncate: True if a longer text may be cut. model: the name of
    the model. what: the name of the text, for messages. writes: the number of tokens that the model
    is to write after the text, for which there must be room. Raises InputError if the text is too
    long and must not be cut.
    """
    if positions is None or length + writes <= positions:
        return None
    room = positions - writes
    if room < 1:
        raise InputError(f"{model} reads {positions} tokens: it cannot write {writes} after a text")
    excess = f"{what} has {length} tokens and {model} reads {positions}"
    if writes:
        excess += f", {writes} of them its own"
    if not truncate:
        raise InputError(f"{excess}; shorten it, or add --truncate to use the first {room}")
    return f"{excess}: only the first {room} are shown"


def require_none(options: Mapping[str, object], reason: str) -> None:
    """Raise UsageError if any of some options is given, and say why it cannot be used.

    options: their values, by their names on the command line. A value that is false counts as none.
    reason: what the error says.
    """
    for name, value in options.items():
        if value:
            raise UsageError(f"{name}: {reason}")


def require_edge(cut: Edge, heads: int, queries: int, keys: int) -> None:
    """Raise UsageError unless a layer has the edge that is to be cut.

    An edge is a cell of an attention matrix; a head, query or key of it that is None stands for
    all. heads, queries, keys: how many of each the layer has.
    """
    has_head = 0 <= (cut.head or 0) < heads
    if not has_head:
        where = f"layer {cut.layer}" if cut.head is None else f"head L{cut.layer}H{cut.head}"
        kind = f"{cut.kind} " if cut.kind else ""
        raise UsageError(f"there is no {kind}{where} to cut an edge of")
    has_query = 0 <= (cut.query or 0) < queries
    has_key = 0 <= (cut.key or 0) < keys
    if not (has_query and has_key):
        raise UsageError(
            f"there is no edge {cut.query} -> {cut.key} to cut: {queries} queries, {keys} keys",
        )


def read_first_line(error: Exception) -> str:
    """Return the first line of a library's message; the class of the error if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
