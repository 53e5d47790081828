"""Sinks, which would blind a picture: where they are, what is said of them, and a colour scale without them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from attnviz.analysis.statistics import sink
from attnviz.escape import label
from attnviz.record import AttentionMap, Floats, Visible
from attnviz.views.drawable import Panel, Scale

TAKING = 0.3  # the share of the weight from which a special or first token is a sink (Gu et al. 2024)
MOST = 0.5  # and any token


class Look(NamedTuple):
    """How weights are to be made colours."""

    whole: bool = False
    """The scale goes up to the largest weight, even if that is a sink's."""
    linear: bool = False


def shares(part: AttentionMap, layer: int, head: int, panel: Panel) -> Floats:
    """The share of the weight that each key takes, of the queries that see another one too (key)."""
    if part.weights is None and part.statistics is not None:
        received = part.statistics.received[layer, head]
    else:
        width = -(-len(part.keys) // panel.values.shape[1])
        received = np.repeat(panel.values[panel.visible.sum(1) > 1].sum(0), width)[: len(part.keys)]
    total = received.sum()
    found: Floats = received / total if total else np.zeros_like(received)
    return found


def sinks(part: AttentionMap, taken: Floats) -> Visible:
    """Which keys are sinks (key), given the share that each takes.

    Of one query alone, only special tokens and the first: any other may well be what it is about.
    """
    parked = [token.special or place == 0 for token, place in zip(part.keys, part.key_places, strict=True)]
    least = np.where(parked, TAKING, MOST if len(part.queries) > 1 else np.inf)
    found: Visible = taken >= least
    return found


def scale(panels: Iterable[tuple[Panel, Visible]], look: Look) -> Scale:
    """One colour scale for panels with their sinks (key), whose columns it leaves out unless it is to be whole."""
    largest = top = 0.0
    for panel, hidden in panels:
        width = -(-len(hidden) // panel.values.shape[1])
        columns = np.logical_or.reduceat(hidden, np.arange(0, len(hidden), width))
        largest = max(largest, float(panel.values.max()))
        top = max(top, float(panel.values[:, ~columns].max(initial=0)))
    return Scale(top if top and not look.whole else largest, largest, look.linear)


def beyond_line(part: AttentionMap, taken: Floats, hidden: Visible, scale: Scale) -> str:
    """What is beyond the scale and which share it takes; empty if nothing is."""
    if not scale.has_beyond:
        return ""
    (first, *others) = np.flatnonzero(hidden)
    more = "".join(f", {taken[i]:.0%} on {label(part.keys[i].text)}" for i in others)
    return f"{taken[first]:.0%} of the weight is on the sink {label(part.keys[first].text)}{more}: beyond the colours"


def sink_line(parts: Sequence[AttentionMap], places: list[tuple[int, int]] | None = None) -> str:
    """The share of the weight on the sink, as a line, over heads by their places or all.

    Empty if no query has a choice, or nothing is known of the whole rows, or of rows of maxima, which sum to anything.
    """
    if any("max" in part.heads or part.statistics is None for part in parts):
        return ""
    received = np.concatenate(
        [part.statistics.received.reshape(-1, len(part.keys)) for part in parts if part.statistics]
    )
    if places is not None:
        heads = len(parts[0].heads)
        received = received[[layer * heads + head for layer, head in places]]
    keys = parts[0].keys
    found = sink(received, [i for i, token in enumerate(keys) if token.special or i == 0])
    return f"{found.share:.0%} of the weight is on the sink {label(keys[found.key].text)}" if found else ""
