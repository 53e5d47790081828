"""The views: which matrices of a capture are drawn, and what is said of them."""

import numpy as np

from attnviz.analysis.statistics import sink
from attnviz.escape import escape, label
from attnviz.record import AttentionMap, Capture, Token, Visible, Weights
from attnviz.views.drawable import Grid, Heatmap, Panel


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
    weights, visible = part.weights[layer, head], part.visible[layer, head]
    title = f"{model_title(capture)} · layer {part.layers[layer]} · {head_title(part.heads[head])}"
    # Rows of maxima do not sum to 1, so that no share can be told of them.
    told = "" if part.heads[head] == "max" else sink_line(weights, visible, part.keys)
    caption = (told, *capture.notes)
    return Heatmap(
        title,
        Panel(weights, visible),
        labels(part.queries),
        labels(part.keys),
        float(weights.max()),
        tuple(line for line in caption if line),
    )


def grid(capture: Capture) -> Grid:
    """All layers and heads of the capture as thumbnails, on one colour scale."""
    panels = {
        (layer, head): Panel(part.weights[i, j], part.visible[i, j])
        for part in capture.maps
        for i, layer in enumerate(part.layers)
        for j, head in enumerate(part.heads)
    }
    layers = tuple(dict.fromkeys(layer for layer, _ in panels))
    heads = tuple(dict.fromkeys(head for _, head in panels))
    return Grid(
        f"{model_title(capture)} · {panels_title(len(panels), heads)} · {len(capture.maps[0].queries)} tokens",
        tuple(f"L{layer}" for layer in layers),
        tuple(head if isinstance(head, str) else f"H{head}" for head in heads),
        tuple(tuple(panels.get((layer, head)) for head in heads) for layer in layers),
        max(float(panel.values.max()) for panel in panels.values()),
        tuple(line for line in (grid_sink_line(capture), *capture.notes) if line),
    )


def model_title(capture: Capture) -> str:
    """The model's name; of a long path its end."""
    *before, owner, name = ["", *capture.model.split("/")]
    return escape(f"…/{owner}/{name}" if any(before) else capture.model)


def panels_title(count: int, heads: tuple[int | str, ...]) -> str:
    """How many heads there are, or of how many layers a reduction."""
    return f"{count} heads" if isinstance(heads[0], int) else f"{head_title(heads[0])} of {count} layers"


def head_title(head: int | str) -> str:
    """A head by its number, or what was made of several."""
    return f"head {head}" if isinstance(head, int) else f"{head} over heads"


def labels(tokens: tuple[Token, ...]) -> tuple[str, ...]:
    """A label for each token; "+" marks one that stands for further bytes of the sign before it."""
    before = (None, *tokens[:-1])
    return tuple(
        ("+" if previous and token.start < previous.end and not token.special else "") + label(token.text)
        for previous, token in zip(before, tokens, strict=True)
    )


def sink_line(weights: Weights, visible: Visible, keys: tuple[Token, ...]) -> str:
    """The share of the weight on the sink, as a line; empty if no query has a choice."""
    candidates = [i for i, token in enumerate(keys) if token.special or i == 0]
    found = sink(weights, visible, candidates)
    return f"{found.share:.0%} of the weight is on the sink {label(keys[found.key].text)}" if found else ""


def grid_sink_line(capture: Capture) -> str:
    """The same over all layers and heads of the capture; empty for maxima, as above."""
    if any("max" in part.heads for part in capture.maps):
        return ""
    weights = np.concatenate([part.weights.reshape(-1, *part.weights.shape[2:]) for part in capture.maps])
    visible = np.concatenate([part.visible.reshape(-1, *part.visible.shape[2:]) for part in capture.maps])
    line = sink_line(weights, visible, capture.maps[0].keys)
    return line and f"{line}, over all heads shown"
