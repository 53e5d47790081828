"""Sinks, which would blind a picture: where they are, what is said of them, and a colour scale without them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from attnviz.analysis.measures import parked
from attnviz.analysis.statistics import sink
from attnviz.drawable import Panel, Scale
from attnviz.methods import SINKLESS, is_other, noun
from attnviz.record import ATTENTION, SCORES, AttentionMap, Floats, Visible
from attnviz.views.labels import name

TAKING = (
    0.3  # the share of the weight from which a special or first token is a sink (Gu et al. 2024)
)
MOST = 0.5  # and any token
NEARLY = 0.9  # of the largest weight: colours that reach so far show nearly as much
ROUNDING = 1e-6  # of float32, in a row that sums to 1


class Look(NamedTuple):
    """How weights are to be made colours."""

    whole: bool = False
    """The scale goes up to the largest weight, even if that is a sink's."""
    linear: bool = False


def shares(part: AttentionMap, layer: int, head: int, panel: Panel) -> Floats:
    """The share of the weight that each key takes, of the queries that see another one too (key); of scores nothing."""
    if part.method == SCORES:
        return np.zeros(len(part.keys), np.float32)
    if part.weights is None and part.statistics is not None:
        received = part.statistics.received[layer, head]
    else:
        columns = panel.values[panel.visible.sum(1) > 1].sum(0)
        received = np.repeat(columns, tile_width(part))[: len(part.keys)]
    total = received.sum()
    found: Floats = received / total if total else np.zeros_like(received)
    return found


def tile_width(part: AttentionMap) -> int:
    """Keys that a column of its panels stands for."""
    return part.tiles.width if part.weights is None and part.tiles else 1


def sinks(part: AttentionMap, taken: Floats) -> Visible:
    """Which keys are sinks (key), given the share that each takes.

    Of few keys, a special or first token must take twice its part to be one. Of one query alone, only these can be:
    any other may well be what it is about. So may it be in numbers that say more than weights do; gradients and scores
    have no sinks at all.
    """
    if part.method in SINKLESS:
        return np.zeros(len(part.keys), bool)
    few = 2 / max(int(np.count_nonzero(taken)), 1)
    others = MOST if len(part.queries) > 1 and not is_other(part.method) else np.inf
    least = np.where(parked(part), np.clip(few, TAKING, MOST), others)
    found: Visible = taken >= least
    return found


def covered(part: AttentionMap, hidden: Visible) -> Visible:
    """The columns of its panels that hold a sink (column), given which keys are sinks."""
    found: Visible = np.logical_or.reduceat(hidden, np.arange(0, len(hidden), tile_width(part)))
    return found


def scale(panels: Iterable[tuple[Panel, Visible]], look: Look, method: str = ATTENTION) -> Scale:
    """One colour scale for panels with columns that it leaves out (column), unless it is to be whole.

    They are not left out where the others hold nothing but what rounding leaves, or weights that are nearly as large.
    Scores, which may be below 0, are on a scale with two ends.
    """
    of = noun(method) if is_other(method) else ""
    if method == SCORES:
        largest = max(float(np.abs(panel.values).max(initial=0)) for panel, _ in panels)
        return Scale(largest or 1.0, largest, look.linear, signed=True, of=of)
    largest = top = 0.0
    for panel, hidden in panels:
        largest = max(largest, float(panel.values.max()))
        top = max(top, float(panel.values[:, ~hidden].max(initial=0)))
    blinded = ROUNDING * largest < top < NEARLY * largest
    return Scale(top if blinded and not look.whole else largest, largest, look.linear, of=of)


def beyond_line(part: AttentionMap, taken: Floats, hidden: Visible, scale: Scale) -> str:
    """What is beyond the scale and which share it takes; empty if nothing is."""
    if not scale.has_beyond:
        return ""
    (first, *others) = np.flatnonzero(hidden)
    more = "".join(f", {taken[i]:.0%} on {name(part.keys[i])}" for i in others)
    of = noun(part.method)
    return f"{taken[first]:.0%} of the {of} is on the sink {name(part.keys[first])}{more}: beyond the colours"


def sink_line(parts: Sequence[AttentionMap], places: list[tuple[int, int]] | None = None) -> str:
    """The share of the weight on the sink, as a line, over heads by their places or all.

    Empty if no query has a choice, or nothing is known of the whole rows, or of rows of maxima, which sum to anything,
    or of maps with keys of their own.
    """
    first, kept = parts[0], [part.statistics.received for part in parts if part.statistics]
    if len(kept) < len(parts) or any(
        "max" in part.heads or part.keys != first.keys for part in parts
    ):
        return ""
    received = np.concatenate([array.reshape(-1, len(first.keys)) for array in kept])
    if places is not None:
        received = received[[layer * len(first.heads) + head for layer, head in places]]
    candidates = np.flatnonzero(parked(first))
    found = sink(received, candidates.tolist()) if len(candidates) else None
    total = received.sum(dtype=np.float64) / len(
        received
    )  # 1, unless rows are given ones or see nothing
    return (
        f"{found.share / total:.0%} of the weight is on the sink {name(first.keys[found.key])}"
        if found
        else ""
    )
