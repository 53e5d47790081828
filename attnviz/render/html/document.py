"""Pictures below each other as an HTML document to read: tables as tables, others as vector figures in the file.

Nothing moves in it, no script runs, and nothing is loaded; a page to look through all heads is ``render.html``.
"""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from attnviz.drawable import MASKED, Picture, Table
from attnviz.render.colour import STEPS, colours, hexadecimal, is_light
from attnviz.render.matrices import level_steps

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
BASE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }"""
STYLE = """
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


def document(title: str, pictures: Sequence[Picture], colour_map: str = "viridis") -> bytes:
    """An HTML file that shows pictures: the same bytes for the same pictures. colour_map: the name of one."""
    return framed(
        title, "\n".join(section(picture, colour_map) for picture in pictures), STYLE, POLICY
    )


def framed(title: str, body: str, style: str, policy: str, digest: str | None = None) -> bytes:
    """A whole HTML file without a script; ``digest`` tells of which capture it is."""
    of = "" if digest is None else f'<meta name="attnviz" content="{digest}">\n'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
{of}<title>{escape(title)}</title>
<style>{BASE}{style}</style>
</head>
<body>
{body}
</body>
</html>
""".encode()


def section(picture: Picture, colour_map: str) -> str:
    """One picture below its title."""
    body = table(picture, colour_map) if isinstance(picture, Table) else figure(picture, colour_map)
    return f"<section>\n<h2>{escape(picture.title)}</h2>\n{body}\n</section>"


def figure(picture: Picture, colour_map: str) -> str:
    """A picture as an image, with its caption in it."""
    from attnviz.render.figure.figure import Style
    from attnviz.render.figure.figure import figure as draw

    data, _ = draw(picture, "svg", Style(colours=colour_map, title=""))
    source = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escape(" ".join((picture.title, *picture.caption)))}">'


def table(picture: Table, colour_map: str) -> str:
    """A table with its caption."""
    steps, shades = level_steps(picture, STEPS), colours(colour_map)
    names = [
        cell("th", picture.corner),
        *(cell("th", name, j in picture.texts) for j, name in enumerate(picture.columns)),
    ]
    rows = [
        cell("th", name)
        + "".join(
            cell("td", text, j in picture.texts, shades, step)
            for j, (text, step) in enumerate(zip(texts, row, strict=True))
        )
        for name, texts, row in zip(picture.rows, picture.cells, steps.tolist(), strict=True)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    told = "\n".join(f"<p>{escape(line)}</p>" for line in picture.caption if line)
    head = f"<thead><tr>{''.join(names)}</tr></thead>"
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>\n{told}'


def cell(
    tag: str,
    text: str,
    name: bool = False,
    shades: npt.NDArray[np.uint8] | None = None,
    step: int = MASKED,
) -> str:
    """A cell, on its colour if it has one; names begin at the left."""
    look = ' class="name"' if name else ""
    if shades is not None and step != MASKED:
        shade = shades[step]
        ink = "black" if is_light(*map(int, shade)) else "white"
        look += f' style="background:{hexadecimal(shade)};color:{ink}"'
    return f"<{tag}{look}>{escape(text)}</{tag}>"
