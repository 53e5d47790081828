"""What was found about captures, as JSON (schema attnviz/1) and CSV: null, or an empty cell, where there is nothing."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, Name, Side, deviation, mean
from attnviz.analysis.divergence import Exact
from attnviz.record import Visible, Weights
from attnviz.storage import token_list
from attnviz.stored import SCHEMA
from attnviz.table import text
from attnviz.views.comparison import Chosen

COLUMNS = "side", "layer", "head", "nearest_layer", "nearest_head", "js", "js_sd", "moved", "moved_sd"
DIVERGENCE = {"name": "Jensen-Shannon", "units": "nats", "largest": math.log(2), "of": "mean over queries"}


def as_json(found: Sequence[Comparison], distances: Distances, heads: Sequence[Name], chosen: Chosen) -> bytes:
    """A comparison: the one number, each of these heads of A and all of B, and the weights of the chosen heads."""
    first = found[0]
    a, b, seen = first.pair(*chosen)
    moved = distances.moved
    document = {
        "schema": SCHEMA,
        "texts": len(found),
        "a": side(first.a, first.b),
        "b": side(first.b, first.a),
        "divergence": DIVERGENCE,
        "js": spread(distances.overall),
        "moved": None if moved is None else spread(mean(moved, 1)),
        "heads": list(rows(distances, heads)),
        "maps": {
            "heads": {"a": list(map(head, chosen.a)), "b": list(map(head, chosen.b))},
            "queries": token_list(first.a.queries),
            "keys": token_list(first.a.keys),
            "a": nulled(a, seen),
            "b": nulled(b, seen),
            "difference": nulled(a - b, seen),
        },
    }
    return f"{json.dumps(document, allow_nan=False)}\n".encode()


def side(one: Side, other: Side) -> dict[str, Any]:
    """A side, and what of it is compared."""
    shares = {"outside": number(one.outside), "unseen": number(one.unseen(other))}
    told = {"model": one.capture.model, "text": one.capture.text, "notes": one.capture.notes}
    return {**told, "words": one.words, "common_words": one.common, **shares}


def rows(distances: Distances, heads: Sequence[Name]) -> Iterator[dict[str, Any]]:
    """Heads with those that are nearest to them."""
    for which, letter in enumerate("ab"):
        nearest, near = distances.nearest(which), distances.to_nearest(which)
        for at, name in enumerate(distances.names[which]):
            if which == 1 or name in heads:
                other, moved = nearest[at], None if distances.moved is None else spread(distances.moved[:, at])
                found = None if other is None else head(distances.names[1 - which][other])
                yield {"side": letter, **head(name), "nearest": found, "js": spread(near[:, at]), "moved": moved}


def head(name: Name) -> dict[str, Any]:
    """A head."""
    return {"layer": name[0], "head": name[1]}


def spread(values: Exact) -> dict[str, Any]:
    """Mean and deviation over texts (text,), as far as there are some."""
    column = values[:, None]
    counted = int(np.count_nonzero(~np.isnan(values)))
    return {"mean": number(mean(column, 0)[0]), "sd": number(deviation(column, 0)[0]), "n": counted}


def number(value: float) -> float | None:
    """A number, or none."""
    return None if math.isnan(value) else float(value)


def nulled(weights: Weights, seen: Visible) -> list[list[float | None]]:
    """A matrix; null where it is masked."""
    cells = zip(weights.tolist(), seen.tolist(), strict=True)
    return [[value if there else None for value, there in zip(*row, strict=True)] for row in cells]


def as_csv(distances: Distances, heads: Sequence[Name]) -> bytes:
    """A line for each of these heads of A and for all of B."""
    file = StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)
    for row in rows(distances, heads):
        nearest, moved = row["nearest"] or {}, row["moved"] or {}
        names = row["layer"], row["head"], nearest.get("layer"), nearest.get("head")
        values = row["js"]["mean"], row["js"]["sd"], moved.get("mean"), moved.get("sd")
        told = (text(part) if isinstance(part, str) else part for part in (row["side"], *names))
        lines.writerow([*told, *values])
    return file.getvalue().encode()
