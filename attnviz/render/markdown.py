"""Drawables as Markdown tables: for reports, issues and readers of plain text."""

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch
from math import isnan

from attnviz.drawable import Axis, Curves, Heatmap, Picture, Scale, Series, Strip, Table
from attnviz.render.matrices import TOKENS, of_heads

MARKS = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>()#!|~$@"} | {"&": "&amp;"})
LINKS = re.compile(
    r"(?<=:)/(?=/)|(?<=www)\."
)  # of which readers of Markdown make links by themselves
STARTS = re.compile(r"^\d*(?=[-+=.])")  # what makes a list, a rule or a heading of a line


def markdown(pictures: Sequence[Picture]) -> str:
    """A heading, a table and the caption of each."""
    return "\n".join("\n".join(part(picture)) for picture in pictures)


def part(picture: Picture) -> Iterator[str]:
    """The lines of one; of a series, those of each of its heatmaps."""
    yield from (f"## {literal(picture.title)}", "")
    if isinstance(picture, Series):
        for heatmap in picture.heatmaps:
            yield from part(heatmap)
        yield from (*lines(picture.caption), "")
    else:
        yield from table(picture)
        yield from ("", *lines((*units(picture), *picture.caption)), "")


def units(picture: Picture) -> Iterator[str]:
    """What the numbers are, unless the picture itself says so."""
    if isinstance(picture, Heatmap | Strip) and not of_heads(picture):
        yield f"Numbers are {numbers_of(picture.scale)}; nothing where masked."


def numbers_of(scale: Scale) -> str:
    """What the numbers on a scale are."""
    if not scale.of:
        return "differences of attention weights" if scale.signed else "attention weights"
    one, of, others = scale.of.partition(" of ")
    return f"{one}s{of}{others}"


@singledispatch
def table(picture: Picture) -> Iterator[str]:
    """The lines of a table."""
    raise TypeError(f"no way to write {type(picture).__name__} as a table")


@table.register
def heatmap_table(picture: Heatmap) -> Iterator[str]:
    """A row a query, a column a key; masked cells are empty."""
    yield from heading(f"{picture.rows.name} \\ {picture.columns.name}", *names(picture.columns))
    for i, name in enumerate(names(picture.rows)):
        yield line(literal(name), *numbers(picture, i))


@table.register
def strip_table(picture: Strip) -> Iterator[str]:
    """A row a token."""
    yield from heading("token", picture.scale.cell)
    for name, weight in zip(names(picture.tokens), numbers(picture, 0), strict=True):
        yield line(literal(name), weight)


@table.register
def text_table(picture: Table) -> Iterator[str]:
    """The cells as they are; names begin at the left, numbers end at the right."""
    yield line(*map(literal, (picture.corner, *picture.columns)))
    yield line(
        "---", *("---" if j in picture.texts else "---:" for j in range(len(picture.columns)))
    )
    for name, cells in zip(picture.rows, picture.cells, strict=True):
        yield line(*map(literal, (name, *cells)))


@table.register
def curves_table(picture: Curves) -> Iterator[str]:
    """A row a step, a column a curve; nothing where there is no number."""
    found = [curve for plot in picture.plots for curve in plot.curves]
    yield from heading(picture.name, *(curve.name for curve in found))
    for i, step in enumerate(picture.steps):
        yield line(
            f"{step}",
            *("" if isnan(curve.values[i]) else f"{curve.values[i]:.4f}" for curve in found),
        )


def heading(*cells: str) -> Iterator[str]:
    """The head of a table: its first column for names, the others for numbers."""
    yield line(*map(literal, cells))
    yield line("---", *["---:"] * (len(cells) - 1))


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def names(axis: Axis) -> list[str]:
    """Tokens with their numbers, which tell equal ones apart; the ends of tiles; layers and heads as they are."""
    if axis.name not in TOKENS:
        return list(axis.labels)
    tiles = (axis.tile(cell) for cell in range(axis.cells))
    return [
        f"{axis.numbers[tile[0]]} {axis.labels[tile[0]]}"
        + (f" to {axis.numbers[tile[-1]]}" if len(tile) > 1 else "")
        for tile in tiles
    ]


def numbers(picture: Heatmap | Strip, row: int) -> list[str]:
    """The values of a row to four digits, differences and scores with their signs; nothing where masked."""
    cells = zip(picture.panel.values[row], picture.panel.visible[row], strict=True)
    sign = "+" if picture.scale.signed else ""
    digits = f"{sign}.4{'g' if picture.scale.small else 'f'}"
    return [f"{value:{digits}}" if visible else "" for value, visible in cells]


def lines(caption: Sequence[str]) -> list[str]:
    """A paragraph whose lines stay lines."""
    told = (STARTS.sub(r"\g<0>\\", literal(line.strip())) for line in caption)
    return [f"{text}  " for text in told]


def literal(text: str) -> str:
    """Text of which Markdown and HTML make nothing else."""
    return LINKS.sub(r"\\\g<0>", text.translate(MARKS))
