"""Answers as HTML documents: every number is there, nothing is loaded or run, hostile text is shown."""

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from attnviz.drawable import Table
from attnviz.render.html.document import render_document

Call = Callable[..., object]
HOSTILE = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """The cells of each table, by row, and all tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a row, or a cell."""
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """Add to a cell."""
        if self.tags and self.tags[-1][0] in ("th", "td"):
            self.rows[-1][-1] += data.strip("\n")


def table(*texts: str) -> Table:
    """A table of one column, the first cell on no colour, the others on rising ones."""
    levels = np.linspace(0, 1, len(texts), dtype=np.float32)[:, None]
    levels[0] = np.nan
    return Table(
        texts[0],
        "corner",
        ("column",),
        texts,
        tuple((text,) for text in texts),
        levels,
        (texts[-1],),
    )


def test_tables_are_tables() -> None:
    """Names, numbers, colours with readable ink, the caption; an empty level has no colour."""
    reader = Reader(render_document("a title", [table("a", "0.5", "1.0")]).decode())
    assert reader.rows == [["corner", "column"], ["a", "a"], ["0.5", "0.5"], ["1.0", "1.0"]]
    looks = [attributes.get("style") for tag, attributes in reader.tags if tag == "td"]
    assert looks[0] is None
    assert looks[2] == "background:#fde725;color:black"


def test_hostile_text_is_shown() -> None:
    """It stands in cells, titles and captions as text."""
    made = render_document(HOSTILE, [table(HOSTILE, "x", HOSTILE)]).decode()
    reader = Reader(made)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.rows[1] == [HOSTILE, HOSTILE]


@pytest.mark.parametrize(
    "args",
    [
        ("explain", "a cat sat", "-H", "L1H3"),
        ("explain", "a cat sat", "--score", "additive"),
        ("inspect", "a cat sat"),
        ("inspect", "a cat sat", "--query", "cat", "--key", "0"),
        ("heads", "--sequences", "2"),
        ("attribute", "a cat sat on"),
    ],
)
def test_commands_write_documents(args: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    """Of all that is on the screen: tables in text, pictures as vector figures in the file; the same bytes again."""
    made = []
    for name in ("one.html", "two.html"):
        done = call(*args, "-o", name)
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / name).read_text("utf-8"))
    assert made[0] == made[1]
    reader = Reader(made[0])
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert reader.rows or sources
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
    assert not re.search(r"""(src|href)=["'](?!data:)""", made[0])
    assert "default-src 'none'" in made[0]


def test_exact_has_no_effect_on_a_document(call: Call) -> None:
    """It is for pages of all heads, and one line says so."""
    done = call("explain", "a cat sat", "-o", "x.html", "--exact")
    assert done.returncode == 2
    assert "--exact" in done.stderr
