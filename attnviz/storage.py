"""A capture as a JSON document (schema attnviz/1)."""

import json

import numpy as np

from attnviz.record import AttentionMap, Capture, Visible, Weights

SCHEMA = "attnviz/1"


def to_json(capture: Capture) -> str:
    """One line of plain ASCII: every other character of a token is escaped. A masked cell is null."""
    head = json.dumps({"schema": SCHEMA, "model": capture.model, "text": capture.text})
    return f'{head[:-1]}, "maps": [{", ".join(map(map_json, capture.maps))}]}}'


def map_json(part: AttentionMap) -> str:
    """One attention map; weights[layer][head][query][key]."""
    head = json.dumps(
        {
            "kind": part.kind,
            "layers": part.layers,
            "heads": part.heads,
            "method": part.method,
            "queries": [token._asdict() for token in part.queries],
            "keys": [token._asdict() for token in part.keys],
        }
    )
    layers = (
        ", ".join(matrix_json(part.weights[i, j], part.visible[i, j]) for j in range(len(part.heads)))
        for i in range(len(part.layers))
    )
    return f'{head[:-1]}, "weights": [{", ".join(f"[{heads}]" for heads in layers)}]}}'


def matrix_json(weights: Weights, visible: Visible) -> str:
    """One matrix as the shortest decimals that give the same float32 back, null where masked.

    Matrix by matrix, because nested lists of a whole capture take a hundred bytes a cell.
    """
    shortest = weights.astype(str).astype(np.float64)  # 0.1, not 0.10000000149011612
    return json.dumps(np.where(visible, shortest.astype(object), np.array(None)).tolist(), allow_nan=False)
