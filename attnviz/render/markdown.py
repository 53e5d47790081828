"""Drawables as Markdown tables: for reports, issues and readers of plain text."""

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch

from attnviz.views.drawable import Axis, Heatmap, Panel, Picture, Strip

MARKS = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>()#!|~$@"} | {"&": "&amp;"})
LINKS = re.compile(r"(?<=:)/(?=/)|(?<=www)\.")  # of which readers of Markdown make links by themselves
STARTS = re.compile(r"^\d*(?=[-+=.])")  # what makes a list, a rule or a heading of a line
UNITS = "Numbers are attention weights; nothing where masked."


def markdown(pictures: Sequence[Picture]) -> str:
    """A heading, a table and the caption of each."""
    return "\n".join("\n".join(part(picture)) for picture in pictures)


def part(picture: Picture) -> Iterator[str]:
    """The lines of one."""
    yield from (f"## {literal(picture.title)}", "")
    yield from table(picture)
    yield from ("", *lines((UNITS, *picture.caption)), "")


@singledispatch
def table(picture: Picture) -> Iterator[str]:
    """The lines of a table."""
    raise TypeError(f"no way to write {type(picture).__name__} as a table")


@table.register
def heatmap_table(picture: Heatmap) -> Iterator[str]:
    """A row a query, a column a key; masked cells are empty."""
    yield from heading(f"{picture.rows.name} \\ {picture.columns.name}", *names(picture.columns))
    for i, name in enumerate(names(picture.rows)):
        yield line(literal(name), *weights(picture.panel, i))


@table.register
def strip_table(picture: Strip) -> Iterator[str]:
    """A row a token."""
    yield from heading("token", "weight")
    for name, weight in zip(names(picture.tokens), weights(picture.panel, 0), strict=True):
        yield line(literal(name), weight)


def heading(*cells: str) -> Iterator[str]:
    """The head of a table: its first column for names, the others for numbers."""
    yield line(*map(literal, cells))
    yield line("---", *["---:"] * (len(cells) - 1))


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def names(axis: Axis) -> list[str]:
    """Tokens with their numbers, which tell equal ones apart; the ends of tiles; heads as they are."""
    if axis.name == "heads":
        return list(axis.labels)
    tiles = (axis.tile(cell) for cell in range(axis.cells))
    return [
        f"{axis.numbers[tile[0]]} {axis.labels[tile[0]]}" + (f" to {axis.numbers[tile[-1]]}" if len(tile) > 1 else "")
        for tile in tiles
    ]


def weights(panel: Panel, row: int) -> list[str]:
    """The weights of a row to four digits; nothing where masked."""
    cells = zip(panel.values[row], panel.visible[row], strict=True)
    return [f"{value:.4f}" if visible else "" for value, visible in cells]


def lines(caption: Sequence[str]) -> list[str]:
    """A paragraph whose lines stay lines."""
    told = (STARTS.sub(r"\g<0>\\", literal(line.strip())) for line in caption)
    return [f"{text}  " for text in told]


def literal(text: str) -> str:
    """Text of which Markdown and HTML make nothing else."""
    return LINKS.sub(r"\\\g<0>", text.translate(MARKS))
