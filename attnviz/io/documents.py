"""Results in files: a document as JSON, rows as CSV."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np

from attnviz.io.csv_table import escape_formula
from attnviz.io.validation import SCHEMA


def format_document_json(document: Mapping[str, Any]) -> bytes:
    """Write a document as one line of JSON of schema attnviz/1; an undefined number is null."""
    content = {"schema": SCHEMA, **make_plain(document)}
    line = json.dumps(content, allow_nan=False)
    return f"{line}\n".encode()


def format_rows_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows that have the same names as CSV, below a line of the names.

    A number that is undefined is left empty. Control characters are written out, and a text that a
    spreadsheet would take for a formula begins with an apostrophe.
    """
    file = StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(rows[0])
    for row in rows:
        values = [make_plain(value) for value in row.values()]
        lines.writerow([escape_cell(value) for value in values])
    return file.getvalue().encode()


def escape_cell(value: Any) -> Any:
    """Return a value as it may stand in a spreadsheet: texts are escaped."""
    return escape_formula(value) if isinstance(value, str) else value


def make_plain(value: Any) -> Any:
    """Return a value in Python's numbers and lists in place of NumPy's; None for NaN and infinity.

    Mappings, lists and tuples are gone through to the end; other values stay as they are.
    """
    if isinstance(value, Mapping):
        return {name: make_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [make_plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return make_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
