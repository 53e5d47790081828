"""Pictures below each other as an HTML document to read: tables as tables, others as SVG figures.

Nothing moves in it, no script runs, and nothing is loaded. A page to look through all heads is
``render.html.page``.
"""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from attnviz.drawable import MASKED, Picture, Steps, Table
from attnviz.render.colour import (
    STEPS,
    format_hexadecimal,
    is_light,
    sample_colours,
)
from attnviz.render.matrices import choose_level_steps

DOCUMENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
BASE_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }"""
DOCUMENT_STYLE = """
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: normal; opacity: .7; border-bottom: 1px solid; }
tbody th { border: 0; opacity: 1; }
th, td { padding: .1rem .6rem; text-align: right; white-space: pre; }
th:first-child, .name { text-align: left; }
p { margin: .3rem 0; opacity: .8; overflow-wrap: anywhere; }
img { width: 60rem; max-width: 100%; background: white; }
"""


def render_document(title: str, pictures: Sequence[Picture], colour_map: str = "viridis") -> bytes:
    """Write an HTML file that shows pictures below each other, in UTF-8.

    The same pictures give the same bytes.

    title: of the whole document. colour_map: the name of a colour map.
    """
    sections = [write_section(picture, colour_map) for picture in pictures]
    return frame_page(title, "\n".join(sections), DOCUMENT_STYLE, DOCUMENT_POLICY)


def frame_page(title: str, body: str, style: str, policy: str, digest: str | None = None) -> bytes:
    """Write a whole HTML file without a script, in UTF-8.

    title: as plain text. body: the HTML of its body. style: CSS beside the usual one. policy: its
    Content-Security-Policy. digest: the hash of the capture that it shows, which is written into a
    meta element; None for no such element.
    """
    capture = ""
    if digest is not None:
        capture = f'<meta name="attnviz" content="{digest}">\n'
    escaped_title = escape(title)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
{capture}<title>{escaped_title}</title>
<style>{BASE_STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
    return page.encode()


def write_section(picture: Picture, colour_map: str) -> str:
    """Write a picture as an HTML section with its title: a table as a table, others as an image.

    colour_map: the name of a colour map.
    """
    if isinstance(picture, Table):
        body = write_html_table(picture, colour_map)
    else:
        body = write_svg_image(picture, colour_map)
    title = escape(picture.title)
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def write_svg_image(picture: Picture, colour_map: str) -> str:
    """Write a picture as an HTML image, an SVG figure that is inside the page itself.

    The image shows the caption. Title and caption are also its text for readers who cannot see it.
    """
    from attnviz.render.figure.figure import FigureStyle, render_figure

    style = FigureStyle(colours=colour_map, title="")
    svg = render_figure(picture, "svg", style).data
    encoded = base64.b64encode(svg).decode()
    source = f"data:image/svg+xml;base64,{encoded}"
    description = escape(" ".join((picture.title, *picture.caption)))
    return f'<img src="{source}" alt="{description}">'


def write_html_table(table: Table, colour_map: str) -> str:
    """Write a table in HTML, some of its cells on colours, with its caption below it.

    colour_map: the name of a colour map.
    """
    steps = choose_level_steps(table, STEPS)
    colours = sample_colours(colour_map)
    rows: list[str] = []
    for row, row_steps in enumerate(steps):
        cells = write_html_row(table, row, row_steps, colours)
        rows.append(f"<tr>{cells}</tr>")
    body = "\n".join(rows)
    head = f"<thead><tr>{write_html_headings(table)}</tr></thead>"
    content = f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>"
    lines = [f"<p>{escape(line)}</p>" for line in table.caption if line]
    caption = "\n".join(lines)
    return f'<div class="wide">{content}</div>\n{caption}'


def write_html_headings(table: Table) -> str:
    """Write the HTML of a table's heading cells: that of the row names, and one for each column."""
    cells = [write_html_cell("th", table.corner)]
    for column, name in enumerate(table.columns):
        attributes = choose_cell_class(table, column)
        cells.append(write_html_cell("th", name, attributes))
    return "".join(cells)


def write_html_row(table: Table, row: int, steps: Steps, colours: npt.NDArray[np.uint8]) -> str:
    """Write the HTML of the cells of a row of a table, some of them on colours.

    row: its index. steps: for each column the index of the cell's colour in ``colours``, or MASKED
    for no colour: (column,). colours: bytes, (step, red green blue).
    """
    cells = [write_html_cell("th", table.rows[row])]
    for column, text in enumerate(table.cells[row]):
        attributes = choose_cell_class(table, column)
        step = steps[column]
        if step != MASKED:
            attributes += choose_cell_colours(colours[step])
        cells.append(write_html_cell("td", text, attributes))
    return "".join(cells)


def choose_cell_class(table: Table, column: int) -> str:
    """Return the HTML attribute of a column's cells: a class for names, empty for numbers.

    Names begin at the left of a column, and numbers end at its right.
    """
    return ' class="name"' if column in table.texts else ""


def choose_cell_colours(colour: npt.NDArray[np.uint8]) -> str:
    """Return the HTML attribute of a cell on a colour, whose text is black or white to be read.

    colour: red, green and blue as bytes.
    """
    red, green, blue = map(int, colour)
    ink = "black" if is_light(red, green, blue) else "white"
    return f' style="background:{format_hexadecimal(colour)};color:{ink}"'


def write_html_cell(tag: str, text: str, attributes: str = "") -> str:
    """Write a cell of a table in HTML.

    tag: "th" or "td". text: plain text, which is escaped. attributes: those of the tag, with a
    space before each.
    """
    content = escape(text)
    return f"<{tag}{attributes}>{content}</{tag}>"
