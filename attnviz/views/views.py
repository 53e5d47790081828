"""The views: which matrices of a capture are drawn, and what is said of them."""

import numpy as np

from attnviz.analysis.statistics import sink
from attnviz.escape import escape, label
from attnviz.record import AttentionMap, Capture, Token
from attnviz.views.drawable import Grid, Heatmap, Panel

KINDS = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}  # "self" goes without saying


def heatmaps(capture: Capture) -> list[Heatmap]:
    """A heatmap for every layer and head of the capture."""
    return [
        heatmap(capture, part, i, j)
        for part in capture.maps
        for i in range(len(part.layers))
        for j in range(len(part.heads))
    ]


def heatmap(capture: Capture, part: AttentionMap, layer: int, head: int) -> Heatmap:
    """One matrix of a map, by the places of its layer and head."""
    shown = panel(part, layer, head)
    where = *kind_title(part), f"layer {part.layers[layer]}", head_title(part.heads[head])
    caption = sink_line([part], [(layer, head)]), pooled_line(part), *capture.notes
    return Heatmap(
        " · ".join((model_title(capture), *where)),
        shown,
        labels(part.queries),
        labels(part.keys),
        float(shown.values.max()),
        tuple(line for line in caption if line),
        (part.tiles.height, part.tiles.width) if part.tiles else (1, 1),
    )


def grids(capture: Capture) -> list[Grid]:
    """All layers and heads of the capture as thumbnails, a grid for each kind of map."""
    kinds = dict.fromkeys(part.kind for part in capture.maps)
    return [grid(capture, [part for part in capture.maps if part.kind == kind]) for kind in kinds]


def grid(capture: Capture, parts: list[AttentionMap]) -> Grid:
    """The layers and heads of maps of one kind, on one colour scale."""
    panels = {
        (layer, head): panel(part, i, j)
        for part in parts
        for i, layer in enumerate(part.layers)
        for j, head in enumerate(part.heads)
    }
    layers = tuple(dict.fromkeys(layer for layer, _ in panels))
    heads = tuple(dict.fromkeys(head for _, head in panels))
    told = sink_line(parts)
    caption = told and f"{told}, over all heads shown", pooled_line(parts[0]), *capture.notes
    where = *kind_title(parts[0]), panels_title(len(panels), heads), tokens_title(parts[0])
    return Grid(
        " · ".join((model_title(capture), *where)),
        tuple(f"L{layer}" for layer in layers),
        tuple(head if isinstance(head, str) else f"H{head}" for head in heads),
        tuple(tuple(panels.get((layer, head)) for head in heads) for layer in layers),
        max(float(shown.values.max()) for shown in panels.values()),
        tuple(line for line in caption if line),
        max(len(parts[0].queries), len(parts[0].keys)),
    )


def panel(part: AttentionMap, layer: int, head: int) -> Panel:
    """The weights of a head, or the largest of each tile. Raises ValueError if only statistics were kept."""
    shown = part.tiles.max if part.weights is None and part.tiles else part.weights
    if shown is None:
        raise ValueError("this capture has no weights and no tiles to draw")
    return Panel(shown[layer, head], part.visible[layer, head])


def model_title(capture: Capture) -> str:
    """The model's name; of a long path its end."""
    *before, owner, name = ["", *capture.model.split("/")]
    return escape(f"…/{owner}/{name}" if any(before) else capture.model)


def kind_title(part: AttentionMap) -> tuple[str, ...]:
    """What attends to what, where there is more than one possibility."""
    return (KINDS[part.kind],) if part.kind in KINDS else ()


def tokens_title(part: AttentionMap) -> str:
    """How many tokens there are."""
    n, m = len(part.queries), len(part.keys)
    return f"{n} tokens" if n == m else f"{n} x {m} tokens"


def panels_title(count: int, heads: tuple[int | str, ...]) -> str:
    """How many heads there are, or of how many layers a reduction."""
    noun, title = ("head", "") if isinstance(heads[0], int) else ("layer", f"{head_title(heads[0])} of ")
    return f"{title}{count} {noun}{'s' * (count != 1)}"


def head_title(head: int | str) -> str:
    """A head by its number, or what was made of several."""
    return f"head {head}" if isinstance(head, int) else f"{head} over heads"


def labels(tokens: tuple[Token, ...]) -> tuple[str, ...]:
    """A label for each token; "+" marks one that stands for further bytes of the sign before it."""
    before = (None, *tokens[:-1])
    return tuple(
        ("+" if previous and continues(previous, token) else "") + label(token.text)
        for previous, token in zip(before, tokens, strict=True)
    )


def continues(previous: Token, token: Token) -> bool:
    """Whether a token stands for further bytes of the sign that the one before it stands for."""
    return token.start < previous.end and token.segment == previous.segment and not token.special


def pooled_line(part: AttentionMap) -> str:
    """What a mean over heads of tiles is, which is not a mean of weights; empty where there is no such thing."""
    averaged = part.weights is None and part.tiles is not None and "mean" in part.heads
    return "a cell is the mean over the heads of the largest weight that each has in it" if averaged else ""


def sink_line(parts: list[AttentionMap], places: list[tuple[int, int]] | None = None) -> str:
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
