"""What `attnviz compare` has found, as a document and as records."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, Name, Side
from attnviz.analysis.statistics import deviation_of, mean_of
from attnviz.io.formats import decimals, token_list
from attnviz.record import Doubles, Visible, Weights
from attnviz.results.comparison import Chosen

DIVERGENCE = {"name": "Jensen-Shannon", "units": "nats", "largest": math.log(2), "of": "mean over queries"}


def document(first: Comparison, distances: Distances, heads: Sequence[Name], chosen: Chosen) -> dict[str, Any]:
    """The one number, each of these heads of A and all of B, and of the first text the weights of the chosen heads."""
    moved = distances.moved
    a, b, seen = first.pair(*chosen)
    return {
        "texts": len(distances.divergence),
        "a": side(first.a, first.b),
        "b": side(first.b, first.a),
        "divergence": DIVERGENCE,
        "js": spread(distances.overall),
        "moved": None if moved is None else spread(mean_of(moved, 1)),
        "heads": list(heads_of(distances, heads)),
        "maps": {
            "heads": {"a": list(map(head, chosen.a)), "b": list(map(head, chosen.b))},
            "queries": token_list(first.a.queries),
            "keys": token_list(first.a.keys),
            "a": unmasked(a, seen),
            "b": unmasked(b, seen),
            "difference": unmasked(a - b, seen),
        },
    }


def side(one: Side, other: Side) -> dict[str, Any]:
    """A side, and what of it is compared."""
    capture = one.capture
    told = {"model": capture.model, "text": capture.text, "method": capture.maps[0].method, "notes": capture.notes}
    shares = {"outside": one.outside, "unseen": one.unseen(other)}
    return {**told, "words": one.words, "common_words": one.common, **shares}


def heads_of(distances: Distances, heads: Sequence[Name]) -> Iterator[dict[str, Any]]:
    """These heads of A, then all of B, each with the head that is nearest to it."""
    for which, letter in enumerate("ab"):
        nearest, near, moved = distances.nearest(which), distances.to_nearest(which), distances.moved
        for at, name in enumerate(distances.names[which]):
            if which == 1 or name in heads:
                other = nearest[at]
                yield {
                    "side": letter,
                    **head(name),
                    "nearest": None if other is None else head(distances.names[1 - which][other]),
                    "js": spread(near[:, at]),
                    "moved": None if moved is None else spread(moved[:, at]),
                }


def head(name: Name) -> dict[str, Any]:
    """A head."""
    return {"layer": name[0], "head": name[1]}


def spread(values: Doubles) -> dict[str, Any]:
    """Mean and deviation over the texts (text,) that tell."""
    counted = int(np.count_nonzero(np.isfinite(values)))
    return {"mean": float(mean_of(values, 0)), "sd": float(deviation_of(values, 0)), "n": counted}


def unmasked(weights: Weights, seen: Visible) -> Any:
    """A matrix as nested lists; null where it is masked."""
    return decimals(np.where(seen, weights, np.float32(np.nan)))


def records(distances: Distances, heads: Sequence[Name]) -> list[dict[str, Any]]:
    """A line for each of these heads of A and for all of B."""
    return [
        {
            "side": row["side"],
            "layer": row["layer"],
            "head": row["head"],
            "nearest_layer": (row["nearest"] or {}).get("layer"),
            "nearest_head": (row["nearest"] or {}).get("head"),
            "js": row["js"]["mean"],
            "js_sd": row["js"]["sd"],
            "moved": (row["moved"] or {}).get("mean"),
            "moved_sd": (row["moved"] or {}).get("sd"),
        }
        for row in heads_of(distances, heads)
    ]
