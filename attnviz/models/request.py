"""What every backend is asked for and gives."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from attnviz.errors import InputError, UsageError
from attnviz.record import Capture
from attnviz.selection import ALL, Named, Selection

DType: TypeAlias = Literal["float32", "float16", "bfloat16", "float64"]


@dataclass(frozen=True)
class Placement:
    """Where and in which type a model computes. Device: auto, cpu, cuda, cuda:N or mps."""

    device: str = "auto"
    dtype: DType = "float32"


@dataclass(frozen=True)
class Request:
    """What to keep of a run. ``truncate`` cuts a text that is longer than the model can read."""

    layers: Selection = ALL
    heads: Selection | Named = ALL
    truncate: bool = False


class Model(Protocol):
    """A loaded model."""

    name: str

    def capture(self, text: str, request: Request) -> Capture:
        """Run the model on a text and keep what the request names, one map a rectangle of layers and heads.

        Raises UsageError for a layer or head that is not there, InputError for a text that does not fit.
        """
        ...


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
