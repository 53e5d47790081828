"""Draw the README's pictures of the terminal anew: docs/show.svg, docs/grid.svg and docs/minilm.svg.

    python scripts/pictures.py [MODEL_FOLDER]

Needs no network; the third picture is drawn if a folder with all-MiniLM-L6-v2 is given.
"""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.segment import Segment, Segments
from rich.terminal_theme import DIMMED_MONOKAI

from attnviz.models import Request, load
from attnviz.record import Capture
from attnviz.render.terminal import Screen, draw
from attnviz.selection import ALL, parse
from attnviz.views import Drawable, grid, heatmaps

DOCS = Path(__file__).parent.parent / "docs"
# Rich's own format without its links to fonts on the network: every monospaced font of the reader's will do.
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def write(name: str, command: str, drawable: Drawable, width: int) -> None:
    """One picture: the command line, and what it draws."""
    console = Console(width=width, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    lines = [[Segment(f"$ {command}")], *draw(drawable, Screen(width - 1, "truecolor"))]
    console.print(Segments([segment for line in lines for segment in (*line, Segment.line())]))
    svg = console.export_svg(title="attnviz", code_format=FORMAT, theme=DIMMED_MONOKAI, unique_id=name)
    (DOCS / f"{name}.svg").write_text(svg, "utf-8")
    print(DOCS / f"{name}.svg")


def sample(name: str) -> str:
    """A sample text."""
    return (DOCS.parent / "sample_texts" / f"{name}.txt").read_text("utf-8").strip()


def capture(model: str, text: str, request: Request, name: str) -> Capture:
    """A capture, under the name that the picture shows."""
    found = load(model).capture(text, request)
    return Capture(name, found.text, found.maps, found.notes)


if __name__ == "__main__":
    repeat = sample("repeat")
    one = capture("builtin", repeat, Request(parse("1"), parse("3")), "builtin")
    write("show", "attnviz show -H L1H3 @sample:repeat", heatmaps(one)[0], 100)
    every = capture("builtin", repeat, Request(ALL, ALL), "builtin")
    write("grid", "attnviz show --view grid @sample:repeat", grid(every), 100)
    if len(sys.argv) > 1:
        every = capture(sys.argv[1], sample("pronoun"), Request(ALL, ALL), "minilm")
        write("minilm", "attnviz show --view grid -m minilm @sample:pronoun", grid(every), 100)
