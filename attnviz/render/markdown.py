"""Drawables as Markdown tables: for reports, issues and readers of plain text."""

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch
from math import isnan

from attnviz.drawable import (
    Axis,
    Curve,
    Curves,
    Heatmap,
    Picture,
    Scale,
    Series,
    Strip,
    Table,
)
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
    """Yield the Markdown lines of a picture: its title, its table, and its caption.

    A series of heatmaps has its own title, then all of each heatmap, then its own caption.
    """
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
    """Yield a sentence that says what the numbers of a heatmap or strip are; nothing for others.

    Pictures of numbers of heads say so in their own captions.
    """
    if isinstance(picture, Heatmap | Strip) and not shows_heads(picture):
        yield f"Numbers are {name_numbers(picture.scale)}; nothing where masked."


def name_numbers(scale: Scale) -> str:
    """Name the numbers on a scale in the plural: "attention weights", for example.

    The scale may have a name for one number, such as "norm of a vector", of which the noun before
    " of " becomes plural.
    """
    if scale.of:
        noun, of, attribute = scale.of.partition(" of ")
        return f"{noun}s{of}{attribute}"
    if scale.signed:
        return "differences of attention weights"
    return "attention weights"


@singledispatch
def write_table(picture: Picture) -> Iterator[str]:
    """Yield a picture's lines as a Markdown table. Each kind of picture has its own function.

    Raises TypeError if the kind of picture has no function.
    """
    raise TypeError(f"no way to write {type(picture).__name__} as a table")


@write_table.register
def write_heatmap_table(heatmap: Heatmap) -> Iterator[str]:
    """Yield the lines of a heatmap as a Markdown table: a row for each of its rows, in order.

    Masked cells are empty. The heading of the row names says what rows and columns are.
    """
    corner = f"{heatmap.rows.name} \\ {heatmap.columns.name}"
    yield from write_markdown_heading(corner, *name_cells(heatmap.columns))
    for row, name in enumerate(name_cells(heatmap.rows)):
        numbers = format_row_values(heatmap, row)
        yield write_markdown_row(escape_markdown(name), *numbers)


@write_table.register
def write_strip_table(strip: Strip) -> Iterator[str]:
    """Yield the lines of a strip as a Markdown table: a row for each token, with its number.

    A strip is a text whose tokens are coloured by one number each.
    """
    yield from write_markdown_heading("token", strip.scale.cell)
    names = name_cells(strip.tokens)
    numbers = format_row_values(strip, 0)
    for name, number in zip(names, numbers, strict=True):
        yield write_markdown_row(escape_markdown(name), number)


@write_table.register
def write_text_table(table: Table) -> Iterator[str]:
    """Yield the lines of a table in Markdown: names begin at the left, numbers end at the right."""
    headings = map(escape_markdown, (table.corner, *table.columns))
    yield write_markdown_row(*headings)
    columns = range(len(table.columns))
    rules = [choose_rule(table, column) for column in columns]
    yield write_markdown_row(NAME_RULE, *rules)
    for name, cells in zip(table.rows, table.cells, strict=True):
        texts = map(escape_markdown, (name, *cells))
        yield write_markdown_row(*texts)


def choose_rule(table: Table, column: int) -> str:
    """Return the Markdown below a column's heading, which aligns names left and numbers right."""
    return NAME_RULE if column in table.texts else NUMBER_RULE


@write_table.register
def write_curves_table(curves: Curves) -> Iterator[str]:
    """Yield the lines of curves as a Markdown table: a row for each step, a column for each curve.

    A cell is empty where the curve has no value at the step.
    """
    all_curves = [curve for plot in curves.plots for curve in plot.curves]
    names = [curve.name for curve in all_curves]
    yield from write_markdown_heading(curves.name, *names)
    for i, step in enumerate(curves.steps):
        values = [format_curve_value(curve, i) for curve in all_curves]
        yield write_markdown_row(f"{step}", *values)


def format_curve_value(curve: Curve, index: int) -> str:
    """Format the value of a curve at an index to four digits; return an empty text for NaN."""
    value = curve.values[index]
    return "" if isnan(value) else f"{value:.4f}"


def write_markdown_heading(*cells: str) -> Iterator[str]:
    """Yield the heading of a Markdown table, and the line below it that aligns the columns.

    cells: the headings as plain text. The first column holds names, and the others numbers.
    """
    texts = map(escape_markdown, cells)
    yield write_markdown_row(*texts)
    number_rules = [NUMBER_RULE] * (len(cells) - 1)
    yield write_markdown_row(NAME_RULE, *number_rules)


def write_markdown_row(*cells: str) -> str:
    """Return a row of a table."""
    content = " | ".join(cells)
    return f"| {content} |"


def name_cells(axis: Axis) -> list[str]:
    """Return the name of each row, or column, of a matrix by its axis.

    Tokens have their numbers in the text, which tell equal tokens apart. Layers and heads have
    their labels alone.
    """
    if axis.name not in TOKEN_AXES:
        return list(axis.labels)
    return [name_tile(axis, cell) for cell in range(axis.cells)]


def name_tile(axis: Axis, cell: int) -> str:
    """Name a row, or column, of a matrix by its first token: "5 cat", or "5 cat to 8" for several.

    cell: the index of the row or column. It may stand for several tokens.
    """
    tile = axis.tile(cell)
    first = tile[0]
    number = axis.numbers[first]
    name = f"{number} {axis.labels[first]}"
    if len(tile) == 1:
        return name
    last = tile[-1]
    return f"{name} to {axis.numbers[last]}"


def format_row_values(picture: Heatmap | Strip, row: int) -> list[str]:
    """Format the values of a row of a picture to four digits, with empty texts for masked cells.

    Differences and scores have a sign. Small values have four significant digits, and others four
    digits after the point.
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
    """Return the lines of a caption as Markdown that keeps them apart, in one paragraph."""
    return [f"{escape_line(line)}  " for line in caption]


def escape_line(line: str) -> str:
    """Escape a line of text so that Markdown shows it as it is, and makes no list or rule of it."""
    text = escape_markdown(line.strip())
    return STARTS.sub(r"\g<0>\\", text)


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown and HTML show it as it is, and make no link of it."""
    escaped = text.translate(MARKUP)
    return LINKS.sub(r"\\\g<0>", escaped)
