"""What was found, as pictures, a document and records: onto the screen or into a file."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.cli.options import FIGURES
from attnviz.cli.output import (
    Made,
    Target,
    document_of,
    figure_of,
    markdown_of,
    page_of,
    put,
    require_form,
    target,
)
from attnviz.cli.picture import Options
from attnviz.cli.screen import show
from attnviz.io.csv_table import text
from attnviz.io.validation import SCHEMA
from attnviz.render.terminal.draw import Screen, draw
from attnviz.views import Page, Picture

Record: TypeAlias = Mapping[str, Any]
FORMS = (*FIGURES, "html", "json", "csv", "md")


class Answer(NamedTuple):
    """One result in all its forms."""

    pictures: Sequence[Picture]
    document: Mapping[str, Any]
    """For JSON. NaN stands for what is undefined, and is written as null."""
    records: Sequence[Record]
    """For CSV, all with the same names; what is undefined is empty."""
    page: Page | None = None
    """For HTML, if there is more to look through than the pictures."""


def target_of(options: Options, forms: Sequence[str] = FORMS) -> Target | None:
    """Where an answer goes, in one of these formats; None for the screen. Raises UsageError or OutputError."""
    found = target(options)
    require_form(found, forms, "what is measured")
    return found


def deliver(answer: Answer, to: Target | None, on: Screen, options: Options, quiet: bool) -> None:
    """Draw an answer on the screen, or write it in the format of its target."""
    if options["title"] is not None:
        first, *others = answer.pictures
        answer = answer._replace(pictures=[replace(first, title=options["title"]), *others])
    if to:
        put(made(answer, to.form, options), to, quiet)
        return
    for i, picture in enumerate(answer.pictures):
        show([[], *draw(picture, on)] if i else draw(picture, on), on)


def made(answer: Answer, form: str, options: Options) -> Made:
    """The content of a file."""
    if form == "json":
        return Made(as_json(answer.document))
    if form == "csv":
        return Made(as_csv(answer.records))
    if form == "md":
        return markdown_of(answer.pictures)
    if form == "html":
        return document_of(answer.pictures, options) if answer.page is None else page_of(answer.page, options, ())
    first, *others = answer.pictures
    return figure_of(first, form, {"cmap": "viridis", **options}, others)


def as_json(document: Mapping[str, Any]) -> bytes:
    """One line of schema attnviz/1."""
    return f"{json.dumps({'schema': SCHEMA, **defined(document)}, allow_nan=False)}\n".encode()


def as_csv(records: Sequence[Record]) -> bytes:
    """A line a record, below their names."""
    file = StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(records[0])
    for record in records:
        values = map(defined, record.values())
        lines.writerow([text(value) if isinstance(value, str) else value for value in values])
    return file.getvalue().encode()


def defined(part: Any) -> Any:
    """The same with None for every number that is none, and plain numbers and lists for those of NumPy."""
    if isinstance(part, Mapping):
        return {name: defined(value) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [defined(value) for value in part]
    if isinstance(part, (np.ndarray, np.generic)):
        return defined(part.tolist())
    return None if isinstance(part, float) and not np.isfinite(part) else part
