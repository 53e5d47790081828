"""A capture as a table in long form: a line for each weight."""

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

import numpy as np

from attnviz.errors import UsageError
from attnviz.escape import escape
from attnviz.io.formats import units
from attnviz.record import AttentionMap, Capture

COLUMNS = "kind", "layer", "head", "query", "query_token", "key", "key_token", "weight", "units"
FORMULA = "=", "+", "-", "@", "＝", "＋", "－", "＠"  # noqa: RUF001 - what a spreadsheet takes for a formula's beginning


def to_csv(capture: Capture) -> bytes:
    """CSV: the columns above, of words query_word and key_word; a masked cell has no line.

    Control characters of tokens are written out, so that a line is a line. A token that a spreadsheet would take for a
    formula begins with an apostrophe (OWASP, CSV injection). Raises UsageError if there are no weights.
    """
    file = StringIO()
    lines = csv.writer(file, lineterminator="\n")
    merged = all(part.unit == "word" for part in capture.maps)
    lines.writerow(name.replace("token", "word") if merged else name for name in COLUMNS)
    for part in capture.maps:
        lines.writerows(rows(part))
    return file.getvalue().encode()


def rows(part: AttentionMap) -> Iterator[tuple[object, ...]]:
    """The lines of a map."""
    if part.weights is None:
        raise UsageError("a .csv holds weights, and this capture has none: use .json")
    queries, keys = ([text(token.text) for token in tokens] for tokens in (part.queries, part.keys))
    for (i, layer), (j, head) in (
        (a, b) for a in enumerate(part.layers) for b in enumerate(part.heads)
    ):
        values = part.weights[i, j].astype(
            str
        )  # the shortest decimals that give the same float32 back
        for query, key in np.argwhere(part.visible[i, j]).tolist():
            yield (
                part.kind,
                layer,
                head if isinstance(head, int) else text(head),
                part.query_places[query],
                queries[query],
                part.key_places[key],
                keys[key],
                values[query, key],
                units(part),
            )


def list_cells(capture: Capture) -> list[dict[str, Any]]:
    """Return a row for each weight that is not masked: the columns above, tokens as they are.

    Raises UsageError if there are no weights.
    """
    cells = []
    for each in capture.maps:
        if each.weights is None:
            raise UsageError("rows hold weights, and this capture has none: see to_dict()")
        for index in np.argwhere(np.broadcast_to(each.visible, each.weights.shape)):
            layer, head, query, key = index.tolist()
            values = (
                each.kind,
                each.layers[layer],
                each.heads[head],
                each.query_places[query],
                each.queries[query].text,
                each.key_places[key],
                each.keys[key].text,
                float(each.weights[layer, head, query, key]),
                units(each),
            )
            cells.append(dict(zip(COLUMNS, values, strict=True)))
    return cells


def text(said: str) -> str:
    """What a token says, as a spreadsheet may have it."""
    shown = escape(said)
    return f"'{shown}" if shown.startswith(FORMULA) else shown
