"""A folder of pictures as one page to leaf through: in HTML for a browser, in Markdown with how each was made."""

from collections.abc import Sequence
from html import escape
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

from attnviz.render.html.document import framed
from attnviz.render.markdown import lines, literal

STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 2rem; }
figure { margin: 0; }
img { max-width: 100%; background: white; }
figcaption, li { overflow-wrap: anywhere; }
"""
POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
SHOWN = ".svg", ".png"  # what a browser shows in a page; the first that is there


class Entry(NamedTuple):
    """A picture, or other file of the capture."""

    title: str
    caption: tuple[str, ...]
    files: tuple[str, ...]
    """The same in several formats."""
    commands: tuple[str, ...]
    """How each of the files is made again."""

    @property
    def picture(self) -> str | None:
        """The file that a page shows."""
        return next(
            (name for suffix in SHOWN for name in self.files if name.endswith(suffix)), None
        )


def gallery_html(title: str, digest: str, entries: Sequence[Entry]) -> bytes:
    """A page that shows the pictures beside it; ``digest`` tells of which capture."""
    figures = "\n".join(map(figure, entries))
    body = f"<h1>{escape(title)}</h1>\n<main>\n{figures}\n</main>"
    return framed(title, body, STYLE, POLICY, digest)


def figure(entry: Entry) -> str:
    """A picture with its caption, and links to its files."""
    links = " · ".join(f'<a href="{quote(name)}">{escape(name)}</a>' for name in entry.files)
    picture, title = entry.picture, escape(entry.title)
    image = (
        f'<a href="{quote(picture)}"><img src="{quote(picture)}" alt="{title}" loading="lazy"></a>'
        if picture
        else ""
    )
    told = "".join(f"<br>{escape(line)}" for line in entry.caption)
    return f"<figure>{image}<figcaption><b>{title}</b>{told}<br>{links}</figcaption></figure>"


def gallery_md(title: str, entries: Sequence[Entry]) -> bytes:
    """The same in Markdown, with the commands."""
    told = "Each with the commands that make it again, where this report was made."
    return "\n".join([f"# {literal(title)}", "", told, "", *chain(*map(section, entries))]).encode()


def section(entry: Entry) -> list[str]:
    """A picture with its caption and the commands that make it."""
    picture = [f"![{literal(entry.title)}]({quote(entry.picture)})", ""] if entry.picture else []
    links = ", ".join(f"[{literal(name)}]({quote(name)})" for name in entry.files)
    fence = "`" * max(3, 1 + max(len(run) for command in entry.commands for run in ticks(command)))
    body = *picture, *lines(entry.caption), links
    return [f"## {literal(entry.title)}", "", *body, "", f"{fence}sh", *entry.commands, fence, ""]


def ticks(text: str) -> list[str]:
    """The runs of backticks of a text, at least an empty one: a fence around it must be longer."""
    return "".join(char if char == "`" else " " for char in text).split() or [""]
