"""The base of all observers, and what they are shown: the calls of attention of a running model.

The calls of a run come in one order, the same in every run, so that a call is known by its number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.record import Kind


class AttentionSite(NamedTuple):
    """A call of attention in the run of a model."""

    kind: Kind
    layer: int
    heads: int
    size: tuple[int, int]
    """Queries and keys when it was surveyed."""
    part: str = ""
    """The part of the model, or of its input, to which the layer belongs; empty if there is one."""
    repeated: bool = False
    """True if it is a second call of one layer: queries and keys as before, with other values."""


class SurveyedCall(NamedTuple):
    """A call of attention as a survey sees it."""

    layer: int | None
    """The layer as the calling module names it, if it does."""
    heads: int
    queries: int
    keys: int
    where: str
    """The name of the module that called, if it is known."""
    cross: bool
    """True if the keys are surely not those of the queries' own text."""
    entry: int = 0
    """The number of the run of the module that called, if it is known: see ``Running``."""
    repeated: bool = False
    """True if its queries and keys are those of the call before: only the values are others."""


@dataclass(eq=False)
class CallResult:
    """The numbers that are kept of a call, on the CPU; arrays begin with (head, ...)."""

    visible: Tensor
    """(1 or head, query, key), or of tiles."""
    weights: Tensor | None = None
    summary: dict[str, Tensor] = field(default_factory=dict)
    tile: tuple[int, int] = (1, 1)
    edges: tuple[Tensor, Tensor] | None = None
    groups: tuple[Tensor, Tensor, Tensor] | None = None
    """The group of each key, (key,); what queries give to the keys of a group, (head, query,
    group); and how many of these they see, (1 or head, query or 1, group)."""
    difference: float | None = None
    """Weights times values against the model's own output, as a share of its largest number."""
    dtype: torch.dtype = torch.float32
    """The coarsest type of what was compared."""

    def pick_heads(self, heads: tuple[int, ...]) -> "CallResult":
        """Return the numbers of some of the heads, in their order.

        heads: positions on the head axis of the arrays. What is not kept of the call stays None.
        """
        numbers = torch.tensor(heads)
        visible = self.visible if len(self.visible) == 1 else self.visible[numbers]
        weights = None if self.weights is None else self.weights[numbers]
        summary = {name: array[numbers] for name, array in self.summary.items()}
        edges = None
        if self.edges is not None:
            keys, strengths = self.edges
            edges = keys[numbers], strengths[numbers]
        groups = None
        if self.groups is not None:
            key_numbers, sums, seen = self.groups
            seen_by_heads = seen if len(seen) == 1 else seen[numbers]
            groups = key_numbers, sums[numbers], seen_by_heads
        return CallResult(
            visible=visible,
            weights=weights,
            summary=summary,
            tile=self.tile,
            edges=edges,
            groups=groups,
            difference=self.difference,
            dtype=self.dtype,
        )


class Finished(BaseException):
    """All that was wanted is there: the rest of the model need not run.

    It is no error, so that no library may swallow it.
    """


class CallSource(NamedTuple):
    """The origin of a call, and other functions that compute its output."""

    layer: int | None = None
    cross: bool = False
    plain: Callable[[], Tensor] | None = None
    """The output (B, N, H, d_v) as the model would compute it; default: torch's own function."""
    reference: Callable[[Tensor], Tensor | None] | None = None
    """The output of some queries, (B, row, H, d_v), by a function that is not ours, or None."""


NOWHERE = CallSource()


class Observer(ABC):
    """Watch the calls of a running model, and give each its output."""

    @abstractmethod
    def attend(self, call: Call, source: CallSource) -> Tensor:
        """See a call of attention, and give its output, (batch, query, head, d_v).

        source: where the call comes from, and other functions that compute its output.
        """

    @abstractmethod
    def see_weights(self, weights: Tensor, visible: Tensor, source: CallSource) -> int:
        """See weights that a model made itself, and return the number of the call.

        weights: (batch, head, query, key). visible: broadcasts to them, True where a query may
        attend. source: where the call comes from.
        """

    def record_difference(  # noqa: B027 - an observer that keeps nothing need not hear it
        self,
        number: int,
        difference: float | None,
        dtype: torch.dtype,
    ) -> None:
        """Hear how far weights times values are from the output that the model went on with.

        Nothing is done with it here; an observer may keep it. number: of the call. difference: the
        largest as a share of the largest value, None if there was nothing to compare. dtype: the
        coarsest type of what was compared.
        """

    def count_calls(self, count: int) -> int:
        """Return how many calls a run makes for this observer: all, unless it ends the run before.

        count: how many calls a whole run makes.
        """
        return count

    def edit_scores(self, scores: Tensor) -> Tensor:
        """Return the scores of the next call without the edges that are cut, before their softmax.

        scores: (batch, head, query, key). The very same come back unless an observer changes the
        run.
        """
        return scores


def compute_plain_output(call: Call, source: CallSource) -> Tensor:
    """Compute the output of a call as the model itself would, (batch, query, head, d_v).

    The call must be ``plain``, that is, without a soft cap and sinks. source: has the function of
    the model, if it is not torch's scaled_dot_product_attention.
    """
    if source.plain is None:
        return call.run_sdpa().transpose(1, 2)
    return source.plain()


def choose_source(source: CallSource, call: Call, edited: Call) -> CallSource:
    """Return the source of a call that may have been edited.

    source: where the call comes from, with functions that compute its output. call, edited: the
    call before and after the edits; one and the same if nothing was changed. Else these functions
    know nothing of the edits, and a source without any is returned.
    """
    return source if edited is call else NOWHERE
