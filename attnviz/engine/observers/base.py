"""What an observer is, and what it is shown: the calls of attention of a running model, in their order."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.record import Kind


class Site(NamedTuple):
    """A call of attention in the run of a model."""

    kind: Kind
    layer: int
    heads: int
    size: tuple[int, int]
    """Queries and keys when it was surveyed."""
    part: str = ""
    """Which part of the model, or of its input, the layer belongs to, where there are several of one kind."""
    repeated: bool = False
    """Whether the call has the queries and keys of the one before, with other values: a second call of one layer."""


class Seen(NamedTuple):
    """What a survey tells of a call."""

    layer: int | None
    """As the calling module says, if it does."""
    heads: int
    queries: int
    keys: int
    where: str
    """The name of the module that called, if it is known."""
    cross: bool
    """Whether the keys are surely not those of the queries' own text."""
    entry: int = 0
    """The number of the run of the module that called, if it is known: see ``Running``."""
    repeated: bool = False
    """Whether its queries and keys are those of the call before: only the values are others."""


@dataclass(eq=False)
class Found:
    """What was found at a call, on the CPU; arrays begin with (head, ...)."""

    visible: Tensor
    """(1 or head, query, key), or of tiles."""
    weights: Tensor | None = None
    summary: dict[str, Tensor] = field(default_factory=dict)
    tile: tuple[int, int] = (1, 1)
    edges: tuple[Tensor, Tensor] | None = None
    difference: float | None = None
    """Of weights times values from the output that the model went on with, as a share of its largest."""
    dtype: torch.dtype = torch.float32
    """The coarsest type of what was compared."""

    def pick(self, heads: tuple[int, ...]) -> "Found":
        """Some of the heads."""
        at = torch.tensor(heads)
        visible = self.visible if len(self.visible) == 1 else self.visible[at]
        summary = {name: array[at] for name, array in self.summary.items()}
        edges = None if self.edges is None else (self.edges[0][at], self.edges[1][at])
        weights = None if self.weights is None else self.weights[at]
        return Found(visible, weights, summary, self.tile, edges, self.difference, self.dtype)


class Finished(BaseException):
    """All that was wanted is there: the rest of the model need not run. No error, so no library may swallow it."""


class Source(NamedTuple):
    """Where a call comes from."""

    layer: int | None = None
    cross: bool = False
    plain: Callable[[], Tensor] | None = None
    """The output (B, N, H, d_v) as the model would compute it; default: torch's own function."""
    reference: Callable[[Tensor], Tensor | None] | None = None
    """The output of some queries, (B, row, H, d_v), by a function that is not ours; None if there is none."""


NOWHERE = Source()


class Observer(ABC):
    """Watch the calls of a running model, and give each its output."""

    @abstractmethod
    def attend(self, call: Call, source: Source) -> Tensor:
        """See a call, and give its output (B, N, H, d_v)."""

    @abstractmethod
    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See weights (B, H, N, M) that a model made itself, and return the number of the call.

        visible broadcasts to the weights.
        """

    def measured(  # noqa: B027 - an observer that keeps nothing need not hear it
        self, number: int, difference: float | None, dtype: torch.dtype
    ) -> None:
        """Hear how far the weights of a call, times values, are from what the model went on with.

        Nothing is done with it unless an observer keeps it. dtype: the coarsest type of what was compared.
        """

    def before(self, scores: Tensor) -> Tensor:
        """Return scores (B, H, N, M) that a model is about to give to a softmax, without the edges that are cut.

        No edge is cut unless an observer changes the run.
        """
        return scores


def plain_output(call: Call, source: Source) -> Tensor:
    """The output of a call that torch's function can compute."""
    return source.plain() if source.plain else call.sdpa().transpose(1, 2)
