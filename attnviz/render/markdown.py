"""Drawables as Markdown tables: for reports, issues and readers of plain text."""

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch
from math import isnan

from attnviz.drawable import Axis, Curve, Curves, Heatmap, Picture, Scale, Series, Strip, Table
from attnviz.render.matrices import TOKEN_AXES, shows_heads

NAME_RULE = "---"  # the line below the heading of a column that begins at the left
NUMBER_RULE = "---:"  # of a column that ends at the right
ESCAPES = {char: f"\\{char}" for char in "\\`*_{}[]<>()#!|~$@"}
MARKUP = str.maketrans({**ESCAPES, "&": "&amp;"})
LINKS = re.compile(r"(?<=:)/(?=/)|(?<=www)\.")  # text that readers of Markdown make a link of
STARTS = re.compile(r"^\d*(?=[-+=.])")  # what makes a list, a rule or a heading of a line


def render_markdown(pictures: Sequence[Picture]) -> str:
    """Write pictures as Markdown: each as a heading, a table and its caption."""
    sections = ["\n".join(write_picture(picture)) for picture in pictures]
    return "\n".join(sections)


def write_picture(picture: Picture) -> Iterator[str]:
    """Yield the lines of a picture; a series has those of each of its heatmaps."""
    yield f"## {escape_markdown(picture.title)}"
    yield ""
    if isinstance(picture, Series):
        for heatmap in picture.heatmaps:
            yield from write_picture(heatmap)
        yield from write_paragraph(picture.caption)
    else:
        yield from write_table(picture)
        yield ""
        yield from write_paragraph((*explain_numbers(picture), *picture.caption))
    yield ""


def explain_numbers(picture: Picture) -> Iterator[str]:
    """Say what the numbers are, unless the picture itself says so."""
    if isinstance(picture, Heatmap | Strip) and not shows_heads(picture):
        yield f"Numbers are {name_numbers(picture.scale)}; nothing where masked."


def name_numbers(scale: Scale) -> str:
    """Name what the numbers on a scale are, in the plural."""
    if scale.of:
        one, of, others = scale.of.partition(" of ")
        return f"{one}s{of}{others}"
    if scale.signed:
        return "differences of attention weights"
    return "attention weights"


@singledispatch
def write_table(picture: Picture) -> Iterator[str]:
    """Yield the lines of the table of a picture. Each kind of picture has its own function."""
    raise TypeError(f"no way to write {type(picture).__name__} as a table")


@write_table.register
def write_heatmap_table(picture: Heatmap) -> Iterator[str]:
    """Yield a row for each query, with a column for each key; masked cells are empty."""
    corner = f"{picture.rows.name} \\ {picture.columns.name}"
    yield from write_markdown_heading(corner, *name_cells(picture.columns))
    for row, name in enumerate(name_cells(picture.rows)):
        numbers = format_row_values(picture, row)
        yield write_markdown_row(escape_markdown(name), *numbers)


@write_table.register
def write_strip_table(picture: Strip) -> Iterator[str]:
    """Yield a row for each token of a text."""
    yield from write_markdown_heading("token", picture.scale.cell)
    names = name_cells(picture.tokens)
    numbers = format_row_values(picture, 0)
    for name, number in zip(names, numbers, strict=True):
        yield write_markdown_row(escape_markdown(name), number)


@write_table.register
def write_text_table(picture: Table) -> Iterator[str]:
    """Yield a table, its cells as they are: names begin at the left, numbers end at the right."""
    headings = map(escape_markdown, (picture.corner, *picture.columns))
    yield write_markdown_row(*headings)
    columns = range(len(picture.columns))
    rules = [choose_rule(picture, column) for column in columns]
    yield write_markdown_row(NAME_RULE, *rules)
    for name, cells in zip(picture.rows, picture.cells, strict=True):
        texts = map(escape_markdown, (name, *cells))
        yield write_markdown_row(*texts)


def choose_rule(picture: Table, column: int) -> str:
    """Return the line below the heading of a column, which says where its cells are aligned."""
    return NAME_RULE if column in picture.texts else NUMBER_RULE


@write_table.register
def write_curves_table(picture: Curves) -> Iterator[str]:
    """Yield a row for each step, with a column for each curve; empty where there is no number."""
    curves = [curve for plot in picture.plots for curve in plot.curves]
    names = [curve.name for curve in curves]
    yield from write_markdown_heading(picture.name, *names)
    for i, step in enumerate(picture.steps):
        values = [format_curve_value(curve, i) for curve in curves]
        yield write_markdown_row(f"{step}", *values)


def format_curve_value(curve: Curve, index: int) -> str:
    """Format a value of a curve to four digits after the point; nothing if there is none."""
    value = curve.values[index]
    return "" if isnan(value) else f"{value:.4f}"


def write_markdown_heading(*cells: str) -> Iterator[str]:
    """Yield the head of a table whose first column holds names, and the others numbers."""
    texts = map(escape_markdown, cells)
    yield write_markdown_row(*texts)
    number_rules = [NUMBER_RULE] * (len(cells) - 1)
    yield write_markdown_row(NAME_RULE, *number_rules)


def write_markdown_row(*cells: str) -> str:
    """Return a row of a table."""
    content = " | ".join(cells)
    return f"| {content} |"


def name_cells(axis: Axis) -> list[str]:
    """Name the rows, or columns, of an axis.

    Tokens have their numbers, which tell equal ones apart. Layers and heads are named as they are.
    """
    if axis.name not in TOKEN_AXES:
        return list(axis.labels)
    return [name_tile(axis, cell) for cell in range(axis.cells)]


def name_tile(axis: Axis, cell: int) -> str:
    """Name a row, or column, by its first token and, if it stands for several, by its last."""
    tile = axis.tile(cell)
    first = tile[0]
    number = axis.numbers[first]
    name = f"{number} {axis.labels[first]}"
    if len(tile) == 1:
        return name
    last = tile[-1]
    return f"{name} to {axis.numbers[last]}"


def format_row_values(picture: Heatmap | Strip, row: int) -> list[str]:
    """Format the values of a row to four digits; nothing where masked.

    Differences and scores have their signs.
    """
    sign = "+" if picture.scale.signed else ""
    kind = "g" if picture.scale.small else "f"
    digits = f"{sign}.4{kind}"
    values = picture.panel.values[row]
    is_visible = picture.panel.visible[row]
    texts: list[str] = []
    for value, visible in zip(values, is_visible, strict=True):
        text = f"{value:{digits}}" if visible else ""
        texts.append(text)
    return texts


def write_paragraph(caption: Sequence[str]) -> list[str]:
    """Return a paragraph whose lines stay lines."""
    return [f"{escape_line(line)}  " for line in caption]


def escape_line(line: str) -> str:
    """Escape a line of text so that Markdown makes no list, rule or heading of it."""
    text = escape_markdown(line.strip())
    return STARTS.sub(r"\g<0>\\", text)


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown and HTML show it as it is."""
    escaped = text.translate(MARKUP)
    return LINKS.sub(r"\\\g<0>", escaped)
