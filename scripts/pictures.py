"""Make the pictures of the README and of docs/ anew, all of them: docs/*.svg, docs/*.png.

    python scripts/pictures.py MINILM_FOLDER [RUN]

Needs no network, but a folder with all-MiniLM-L6-v2, and for the picture of the page Chromium and the extra `browser`.
RUN is a folder that `attnviz train` wrote, of which the learning curves are drawn; docs/attention.md has its command,
which takes long.
"""

import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.segment import Segment, Segments
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from attnviz.io.samples import read_sample
from attnviz.models import load_model
from attnviz.models.names import ALIASES
from attnviz.notebook import show
from attnviz.record import Capture
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.request import Prompt, Request
from attnviz.selection import ALL, TokenReference, parse_heads, parse_numbers
from attnviz.views import Picture, make_grids, make_heatmaps, make_query_heatmaps, make_strips

DOCS = Path(__file__).parent.parent / "docs"
BROKEN_OFF = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy"
SENTENCE = "The cat sat on the mat because it was tired."
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


def terminal(name: str, command: str, picture: Picture, width: int) -> None:
    """A picture of a terminal: the command line, and what it draws."""
    lines = [[Segment(f"$ {command}")], *draw_picture_lines(picture, Screen(width - 1))]
    export(
        name,
        Segments([segment for line in (*lines, []) for segment in (*line, Segment.line())]),
        width,
    )


def session(name: str, command: str, minilm: str, width: int) -> None:
    """A picture of a terminal in which a command was run."""
    told = {"COLORTERM": "truecolor", "COLUMNS": str(width - 1)}
    shown = ran([*shlex.split(command), "--color", "always", "-q"], minilm, told)
    export(name, Text.from_ansi(f"$ {command}\n{shown}"), width)


def figure(name: str, command: str, minilm: str) -> None:
    """A figure that a command writes."""
    ran([*shlex.split(command), "-o", str(DOCS / f"{name}.svg"), "--force", "-q"], minilm, {})


def ran(words: list[str], minilm: str, environment: dict[str, str]) -> str:
    """What a command prints, with MiniLM in the local cache."""
    with tempfile.TemporaryDirectory() as folder:
        cached = Path(folder) / f"models--{ALIASES['minilm'].replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / ("0" * 40)).symlink_to(Path(minilm).absolute())
        told = {**os.environ, **environment, "HF_HUB_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *words], env=told, check=True, stdout=subprocess.PIPE, text=True
        )
    return done.stdout


def export(name: str, what: Segments | Text, width: int) -> None:
    """Save what a terminal shows."""
    console = Console(
        width=width, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True
    )
    console.print(what)
    svg = console.export_svg(
        title="attnviz", code_format=FORMAT, theme=DIMMED_MONOKAI, unique_id=name
    )
    (DOCS / f"{name}.svg").write_text(svg, "utf-8")


def capture(model: str, text: str, request: Request, name: str) -> Capture:
    """A capture, under the name that the picture shows."""
    found = load_model(model).capture(Prompt(text), request)
    return Capture(name, found.text, found.maps, found.notes)


def page(name: str, shown: Capture, fragment: str, width: int, height: int) -> None:
    """Save a picture of a page as a browser shows it, once the page has decoded its data and drawn them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        show(shown).save(file)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.goto(f"{file.as_uri()}#{fragment}")
        tab.wait_for_selector("html[data-ready=true]", state="attached")
        tab.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    minilm = sys.argv[1]
    repeat = read_sample("repeat")
    one = capture("builtin", repeat, Request(parse_numbers("1"), parse_numbers("3")), "builtin")
    terminal("show", "attnviz show -H L1H3 @sample:repeat", make_heatmaps(one)[0], 100)
    terminal(
        "grid",
        "attnviz show --view grid @sample:repeat",
        make_grids(capture("builtin", repeat, Request(), "builtin"))[0],
        100,
    )
    every = capture(minilm, read_sample("pronoun"), Request(), "minilm")
    terminal(
        "minilm", "attnviz show --view grid -m minilm @sample:pronoun", make_grids(every)[0], 100
    )
    token = Request(ALL, parse_heads("L1H0"), query=TokenReference("it"))
    told = f'attnviz show --view tokens --token it -H L1H0 "{SENTENCE}"'
    terminal("tokens", told, make_strips(capture("builtin", SENTENCE, token, "builtin"))[0], 100)
    told = f'attnviz show --view rows --token it "{SENTENCE}"'
    terminal(
        "rows",
        told,
        make_query_heatmaps(
            capture("builtin", SENTENCE, Request(query=TokenReference("it")), "builtin")
        )[0],
        100,
    )
    show(one).save(DOCS / "figure.svg", name="paper", force=True)
    session("inspect", "attnviz inspect -m minilm @sample:pronoun", minilm, 80)
    session("heads", "attnviz heads", minilm, 80)
    session("compare", "attnviz compare --model minilm", minilm, 150)
    session("explain", "attnviz explain @sample:repeat -H L1H3 --query 13 --top 5", minilm, 100)
    page("page", every, "layer=2&head=0", 1300, 1000)
    token = f'attnviz show -m minilm -H L3H5 --view tokens --token it "{SENTENCE}"'
    session("weights", token, minilm, 100)
    session("norms", f"{token} --weights norm", minilm, 100)
    figure("ablate", f'attnviz intervene "{BROKEN_OFF}" -H L1H3 --ablate L0H2', minilm)
    figure("attribute", "attnviz attribute -m minilm @sample:pronoun --leave-one-out", minilm)
    if len(sys.argv) > 2:
        figure("training", f"attnviz train --curves {shlex.quote(sys.argv[2])}", minilm)
