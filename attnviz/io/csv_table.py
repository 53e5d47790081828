"""A capture as a table in long form: a line for each weight."""

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

import numpy as np

from attnviz.errors import UsageError
from attnviz.escape import escape
from attnviz.io.formats import describe_units
from attnviz.record import AttentionMap, Capture

CSV_COLUMNS = (
    "kind",
    "layer",
    "head",
    "query",
    "query_token",
    "key",
    "key_token",
    "weight",
    "units",
)
FORMULA = "=", "+", "-", "@", "＝", "＋", "－", "＠"  # noqa: RUF001 - where spreadsheets see formulas


def format_csv(capture: Capture) -> bytes:
    """Write a capture as CSV with the columns CSV_COLUMNS; a masked cell has no line.

    If queries and keys are words, the columns are named query_word and key_word. Control characters
    of tokens are written out, so that a line is a line. A token that a spreadsheet would take for a
    formula begins with an apostrophe (OWASP, CSV injection). Raises UsageError if there are no
    weights.
    """
    file = StringIO()
    lines = csv.writer(file, lineterminator="\n")
    columns = list(CSV_COLUMNS)
    if all(each.unit == "word" for each in capture.maps):
        columns = [name.replace("token", "word") for name in columns]
    lines.writerow(columns)
    for each in capture.maps:
        lines.writerows(list_csv_lines(each))
    return file.getvalue().encode()


def list_csv_lines(attention_map: AttentionMap) -> Iterator[tuple[object, ...]]:
    """Yield a line of CSV for each visible cell of a map, its values in the order of CSV_COLUMNS.

    Tokens are escaped for a spreadsheet. Raises UsageError if the map has no weights.
    """
    weights, visible = attention_map.weights, attention_map.visible
    if weights is None:
        raise UsageError("a .csv holds weights, and this capture has none: use .json")
    queries = [escape_formula(token.text) for token in attention_map.queries]
    keys = [escape_formula(token.text) for token in attention_map.keys]
    query_positions, key_positions = attention_map.query_places, attention_map.key_places
    weight_units = describe_units(attention_map)
    for i, layer in enumerate(attention_map.layers):
        for j, head in enumerate(attention_map.heads):
            head_name = head if isinstance(head, int) else escape_formula(head)
            texts = weights[i, j].astype(str)  # the shortest that give the same float32 back
            cells = np.argwhere(visible[i, j])
            for query, key in cells.tolist():
                yield (
                    attention_map.kind,
                    layer,
                    head_name,
                    query_positions[query],
                    queries[query],
                    key_positions[key],
                    keys[key],
                    texts[query, key],
                    weight_units,
                )


def list_visible_cells(capture: Capture) -> list[dict[str, Any]]:
    """List the weights of a capture that are not masked, each as a row by CSV_COLUMNS.

    Tokens stand in the rows as they are, without any escape. Raises UsageError if there are no
    weights.
    """
    cells = []
    for each in capture.maps:
        if each.weights is None:
            raise UsageError("rows hold weights, and this capture has none: see to_dict()")
        visible = np.broadcast_to(each.visible, each.weights.shape)
        for index in np.argwhere(visible):
            layer, head, query, key = index.tolist()
            weight = each.weights[layer, head, query, key]
            cell: dict[str, Any] = {}
            cell["kind"] = each.kind
            cell["layer"] = each.layers[layer]
            cell["head"] = each.heads[head]
            cell["query"] = each.query_places[query]
            cell["query_token"] = each.queries[query].text
            cell["key"] = each.key_places[key]
            cell["key_token"] = each.keys[key].text
            cell["weight"] = float(weight)
            cell["units"] = describe_units(each)
            cells.append(cell)
    return cells


def escape_formula(text: str) -> str:
    """Escape a text for a spreadsheet, which would obey a formula; control characters are shown."""
    shown = escape(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown
