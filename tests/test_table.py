"""Tables: names and numbers in columns, on colours, in every medium."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from attnviz.drawable import Table
from attnviz.escape import label_token
from attnviz.render.colour import STEPS, is_light, make_palette
from attnviz.render.figure.figure import FIGURE_FORMATS, FigureStyle, compose_sheet, render_figure
from attnviz.render.figure.layout import LEAST_POINTS
from attnviz.render.figure.sheet import COLOURS
from attnviz.render.markdown import render_markdown
from attnviz.render.matrices import split_columns
from attnviz.render.terminal.cells import ColourDepth
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.render.terminal.text_width import count_columns
from tests.pictures import (
    GOLDEN,
    HOSTILE_LABELS,
    WIDE_LABELS,
    draw_styled_text,
    draw_text,
    make_screen,
)

NAMES = (
    "entropy",
    "span",
    "distance",
    "role",
    "sink",
    "previous",
    "self",
    "next",
    "gini",
    "local",
    "top-5",
    "share",
)
ROLES = ("", "induction", "previous-token", "前のトークン")


def table(rows: int = 5, columns: int = 6, names: tuple[str, ...] = ()) -> Table:
    """Numbers a row a head, column 3 with names, column 1 without colours, some cells with nothing."""
    levels = (
        np.random.default_rng(0)
        .permutation(rows * columns)
        .reshape(rows, columns)
        .astype(np.float32)
    )
    levels /= rows * columns
    cells = [[f"{level:.3f}" for level in row] for row in levels]
    for i, row in enumerate(cells):
        row[3:4] = [ROLES[i % len(ROLES)]][: len(row[3:4])]
    cells[0][0], levels[0, 0], levels[:, [1, 3]] = "", np.nan, np.nan
    rows_named = names or tuple(f"L{i // 12}H{i % 12}" for i in range(rows))
    headings = tuple(NAMES[j % len(NAMES)] for j in range(columns))
    return Table(
        "the heads",
        "head",
        headings,
        rows_named,
        tuple(map(tuple, cells)),
        levels,
        ("what each is",),
        frozenset({3}),
    )


def body(drawable: Table, screen: Screen) -> list[str]:
    """The lines between title and caption."""
    return draw_text(drawable, screen).splitlines()[1:-1]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "shades", "ascii"])
def test_golden_screens(width: int, depth: ColourDepth, request: pytest.FixtureRequest) -> None:
    """A table of twelve columns looks as it did, at every width, in every number of colours."""
    found = (draw_text if depth in ("shades", "ascii") else draw_styled_text)(
        table(5, 12), make_screen(width, depth)
    )
    golden = GOLDEN / f"table-{width}-{depth}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


def test_columns_are_aligned() -> None:
    """Numbers end where their heading ends, names begin where theirs begins; rows are named on the left."""
    heading, *lines = (
        "".join(sign.ljust(count_columns(sign), "\0") for sign in line)
        for line in body(table(), make_screen(80, "shades"))
    )
    assert [line.split()[0] for line in (heading, *lines)] == [
        "head",
        "L0H0",
        "L0H1",
        "L0H2",
        "L0H3",
        "L0H4",
    ]
    for j, name in enumerate(NAMES[:6]):
        start, end = heading.index(name), heading.index(name) + len(name)
        for line, cells in zip(lines, table().cells, strict=True):
            if j == 3:
                assert line[start:].replace("\0", "").startswith(cells[j])
            else:
                assert line[:end].endswith(cells[j])


@pytest.mark.parametrize("depth", ["truecolor", "256"])
def test_cells_stand_on_the_colours_of_their_levels(depth: ColourDepth) -> None:
    """Their text black or white, whichever reads better; a cell without a level has no colour."""
    drawable = table()
    lines = list(draw_picture_lines(drawable, make_screen(80, depth)))[2:-1]
    for line, cells, levels in zip(lines, drawable.cells, drawable.levels, strict=True):
        coloured = [part for part in line if part.style and part.style.bgcolor]
        known = ~np.isnan(levels)
        assert [part.text.strip() for part in coloured] == [
            cell for cell, one in zip(cells, known, strict=True) if one
        ]
        for part, level in zip(coloured, levels[known], strict=True):
            rgb = tuple(map(int, make_palette()[min(int(level * STEPS), STEPS - 1), :3]))
            if depth == "truecolor":
                assert tuple(part.style.bgcolor.triplet) == rgb
            assert part.style.color.number == (16 if is_light(*rgb) else 231)


@pytest.mark.parametrize("depth", ["16", "shades", "ascii"])
def test_without_colours_there_is_text_alone(depth: ColourDepth) -> None:
    """No cell has a style where there are too few colours to put text on."""
    for line in list(draw_picture_lines(table(), make_screen(80, depth)))[2:-1]:
        assert not any(part.style and (part.style.bgcolor or part.style.color) for part in line)


@pytest.mark.parametrize("depth", ["truecolor", "shades", "ascii"])
@pytest.mark.parametrize("width", [40, 57, 80, 200])
@pytest.mark.parametrize("columns", [4, 6, 12, 40])
def test_tables_fit_the_screen_and_lose_no_column(
    columns: int, width: int, depth: ColourDepth
) -> None:
    """What does not fit goes on in blocks below, each with the names of the rows; unless it is to be shown in full."""
    drawable = table(3, columns)
    lines = body(drawable, make_screen(width, depth))
    assert max(map(count_columns, lines)) <= width
    headings = [line.split()[1:] for line in lines if line.startswith("head ")]
    assert tuple(name for names in headings for name in names) == drawable.columns
    assert sum(line.startswith("L0H2 ") for line in lines) == len(headings) == lines.count("") + 1
    full = body(drawable, Screen(width, paint=make_screen(width, depth).paint, full=True))
    assert full[0].split()[1:] == list(drawable.columns)


@given(st.lists(st.floats(0.1, 50), max_size=30), st.floats(1, 100))
def test_blocks_hold_every_column_once_in_order(widths: list[float], room: float) -> None:
    """Each as many as fit: no block is wider than the room unless it is of one column, or could hold one more."""
    found = list(split_columns(widths, room))
    assert [j for block in found for j in block] == list(range(len(widths)))
    for block, after in zip(found, [*found[1:], None], strict=True):
        assert len(block) <= 1 or sum(widths[j] for j in block) <= room + 1e-6
        assert after is None or sum(widths[j] for j in (*block, after[0])) > room - 1e-6


def test_long_names_are_cut_with_an_ellipsis() -> None:
    """Of rows and of cells, where there is no room for all of them; in ASCII with a sign that it has."""
    drawable = replace(table(1, 4, names=("n" * 60,)), cells=(("0.5", "1", "2", "t" * 300),))
    for depth, mark in (("shades", "…"), ("ascii", "~")):
        lines = body(drawable, make_screen(80, depth))
        assert re.search(f"nn{mark} ", "\n".join(lines))
        assert re.search(f"tt{mark}", "\n".join(lines))
        assert max(map(count_columns, lines)) <= 80
    wide = body(drawable, make_screen(500, "shades"))
    assert "n" * 60 in wide[1]
    assert "t" * 300 in wide[1]


@pytest.mark.parametrize("depth", ["truecolor", "shades", "ascii"])
def test_wide_and_hostile_names_keep_columns_aligned(depth: ColourDepth) -> None:
    """CJK, emoji, right-to-left, control characters, nothing: numbers still end below each other."""
    names = tuple(map(label_token, WIDE_LABELS))
    drawable = table(len(names), 4, names=names)
    drawable = replace(
        drawable,
        cells=tuple((*row[:3], name) for row, name in zip(drawable.cells, names, strict=True)),
    )
    lines = list(draw_picture_lines(drawable, make_screen(120, depth)))[2:-1]
    ends = set()
    for line, cells in zip(lines, drawable.cells, strict=True):
        text = "".join(part.text for part in line)
        assert "\x1b" not in text
        assert "\n" not in text
        ends.add(count_columns(text[: text.index(f" {cells[2]} ") + len(cells[2]) + 1]))
    assert len(ends) == 1
    if depth == "ascii":
        assert draw_text(drawable, make_screen(120, depth)).isascii()


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.integers(40, 120))
def test_no_text_breaks_a_line(texts: list[str], width: int) -> None:
    """Whatever is in the cells, a line is a line, and no wider than the screen."""
    cells = tuple(map(label_token, texts))
    drawable = Table(
        "t",
        "c",
        cells,
        cells,
        (cells,) * len(cells),
        np.full((len(cells),) * 2, 0.5),
        (),
        frozenset({0}),
    )
    lines = [
        "".join(part.text for part in line)
        for line in draw_picture_lines(drawable, make_screen(width, "truecolor"))
    ]
    assert max(map(count_columns, lines)) <= width
    assert not any(set(line) & set("\n\r\x1b\x9b\u202e") for line in lines)


def test_empty_tables_have_their_headings() -> None:
    """Without rows, and without columns."""
    nothing = Table("none", "head", ("a", "b"), (), (), np.zeros((0, 2), np.float32), ())
    assert draw_text(nothing, make_screen(80, "shades")) == "none\nhead  a  b\n"
    bare = Table("bare", "head", (), ("L0H0",), ((),), np.zeros((1, 0), np.float32), ())
    assert draw_text(bare, make_screen(80, "shades")) == "bare\nhead\nL0H0\n"
    for drawable in (nothing, bare):
        assert render_figure(drawable, "svg").data
        assert render_markdown([drawable]).startswith("## ")


# Figures


def test_figures_have_every_text_and_colour() -> None:
    """Each cell has a box of its colour behind it, each without a level none, and text that can be read on it."""
    drawable = table()
    with compose_sheet(drawable, FigureStyle()) as sheet:
        boxes = sheet.axes.collections[0]
        written = {text.get_text(): text for text in sheet.axes.texts}
        inside = [path.get_extents() for path in boxes.get_paths()]
    assert {"the heads", "head", *NAMES[:6], "L0H3", "induction", "what each is"} <= set(written)
    known = np.argwhere(~np.isnan(drawable.levels))
    assert len(inside) == len(known)
    for box, colour, (i, j) in zip(inside, boxes.get_facecolors(), known, strict=True):
        rgb = make_palette(steps=COLOURS)[
            min(int(drawable.levels[i, j] * COLOURS), COLOURS - 1), :3
        ]
        np.testing.assert_allclose(colour[:3] * 255, rgb, atol=0.01)
        text = written[drawable.cells[i][j]]
        assert box.contains(*text.get_position())
        assert text.get_color() == ("black" if is_light(*map(int, rgb)) else "white")


@pytest.mark.parametrize("style", ["paper", "slide", "screen"])
@pytest.mark.parametrize("columns", [4, 12, 60])
def test_figures_of_tables_fit_the_width(columns: int, style: str) -> None:
    """Columns that do not fit are smaller, but never too small to be read, and then go on below."""
    with compose_sheet(table(3, columns), FigureStyle(style)) as sheet:
        renderer = FigureCanvasAgg(sheet.figure).get_renderer()
        ends = [text.get_window_extent(renderer).x1 for text in sheet.axes.texts]
        sizes = {
            text.get_fontsize()
            for text in sheet.axes.texts
            if text.get_text().startswith(("L0H", "head"))
        }
        heads = sum(text.get_text() == "head" for text in sheet.axes.texts)
    assert max(ends) <= sheet.width * sheet.dpi
    assert len(sizes) == 1
    assert min(sizes) >= LEAST_POINTS
    assert (heads > 1) == (columns == 60)


def test_small_tables_are_no_wider_than_they_need() -> None:
    """A few columns take a column of a paper, more its page."""
    assert [figure_width(table(3, columns)) for columns in (4, 12)] == [3.25, 6.75]


def figure_width(drawable: Table) -> float:
    with compose_sheet(drawable, FigureStyle("paper")) as sheet:
        return sheet.figure.get_figwidth()


@pytest.mark.parametrize("form", FIGURE_FORMATS)
@pytest.mark.slow
def test_files_are_the_same_each_time(form: str) -> None:
    """The same bytes for the same table."""
    assert render_figure(table(), form).data == render_figure(table(), form).data


def test_hostile_texts_stay_text_in_files() -> None:
    """No element comes of a name, a heading or a cell."""
    names = tuple(map(label_token, HOSTILE_LABELS))
    cells = (names[:4],) * len(names)
    drawable = Table(
        "</svg>", "<b>", names[:4], names, cells, np.full((len(names), 4), np.nan), ("<i>",)
    )
    tree = ET.fromstring(render_figure(drawable, "svg").data)
    kinds = {element.tag.split("}")[-1] for element in tree.iter()}
    assert not kinds & {"img", "script", "b", "i"}
    texts = "".join(tree.itertext())
    assert "</scr" in texts
    assert "<b>" in texts
    assert render_figure(drawable, "pdf").data.startswith(b"%PDF")


# Markdown


def test_markdown_tables_have_the_cells_as_they_are() -> None:
    """Headings, names and cells of each row; numbers end at the right, names do not; the caption follows."""
    drawable = table(2, 4)
    assert render_markdown([drawable]).splitlines() == [
        "## the heads",
        "",
        "| head | entropy | span | distance | role |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| {name} | {' | '.join(cells)} |"
            for name, cells in zip(drawable.rows, drawable.cells, strict=True)
        ),
        "",
        "what each is  ",
    ]
    hostile = replace(drawable, rows=("a|b", "<i>"))
    assert "| a\\|b |" in render_markdown([hostile])
    assert "| \\<i\\> |" in render_markdown([hostile])


def test_even_columns_are_as_wide_as_the_widest() -> None:
    """Columns that stand for things of one kind are of one width, on a terminal and in a figure."""
    cells = (("ind.89", "-", "-"),)
    table = Table(
        "map",
        "",
        ("H0", "H1", "H2"),
        ("L0",),
        cells,
        np.full((1, 3), np.nan, np.float32),
        (),
        even=True,
    )
    heading, row = (
        "".join(part.text for part in line)
        for line in list(draw_picture_lines(table, Screen(40)))[1:3]
    )
    assert [heading.index(name) + 2 for name in table.columns] == [10, 18, 26]
    assert row == "L0  ind.89       -       -"


def test_groups_of_columns_are_not_parted() -> None:
    """A value and its comparison stand in one block, however narrow the screen."""
    columns = tuple(f"{name}{i}" for i in range(4) for name in ("value", "other"))
    cells = (tuple(columns),)
    table = Table(
        "t", "", columns, ("row",), cells, np.full((1, 8), np.nan, np.float32), (), group=2
    )
    for width in (40, 50, 60, 80):
        lines = [
            "".join(part.text for part in line) for line in draw_picture_lines(table, Screen(width))
        ]
        for line in lines:
            assert [name[-1] for name in line.split() if name.startswith("value")] == [
                name[-1] for name in line.split() if name.startswith("other")
            ]
