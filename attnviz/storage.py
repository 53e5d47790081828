"""A capture as a JSON document (schema attnviz/1)."""

import json
from typing import Any

import numpy as np

from attnviz.record import AttentionMap, Capture, Token

SCHEMA = "attnviz/1"


def to_json(capture: Capture) -> str:
    """One line of plain ASCII: every other character of a token is escaped. A masked cell is null."""
    document = {
        "schema": SCHEMA,
        "model": capture.model,
        "text": capture.text,
        "maps": [map_document(part) for part in capture.maps],
    }
    return json.dumps(document, allow_nan=False)


def map_document(part: AttentionMap) -> dict[str, Any]:
    """One attention map; weights[layer][head][query][key]."""
    return {
        "kind": part.kind,
        "layers": part.layers,
        "heads": part.heads,
        "method": part.method,
        "queries": [token_document(token) for token in part.queries],
        "keys": [token_document(token) for token in part.keys],
        "weights": weights_document(part),
    }


def token_document(token: Token) -> dict[str, Any]:
    """A token by the names of its fields."""
    return token._asdict()


def weights_document(part: AttentionMap) -> Any:
    """Nested lists of the shortest decimals that give the same float32 back, null where masked."""
    shortest = part.weights.astype(str).astype(np.float64)  # 0.1, not 0.10000000149011612
    return np.where(part.visible, shortest.astype(object), np.array(None)).tolist()
