"""A folder of pictures as one page to leaf through: in HTML for a browser, and in Markdown.

The Markdown page has the commands that make each picture again.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

from attnviz.render.html.document import frame_page
from attnviz.render.markdown import escape_markdown, write_paragraph

GALLERY_STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 2rem; }
figure { margin: 0; }
img { max-width: 100%; background: white; }
figcaption, li { overflow-wrap: anywhere; }
"""
GALLERY_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
IMAGE_SUFFIXES = ".svg", ".png"  # which a browser shows in a page, the best first
LEAST_FENCE = 3  # backticks around a block of code in Markdown


class GalleryEntry(NamedTuple):
    """A picture, or another file of a capture, in one or several formats."""

    title: str
    caption: tuple[str, ...]
    files: tuple[str, ...]
    """The files, by name: one for each format."""
    commands: tuple[str, ...]
    """The commands that make the files again."""

    @property
    def picture(self) -> str | None:
        """The name of the file that a page shows, an SVG if there is one; None without an image."""
        for suffix in IMAGE_SUFFIXES:
            for name in self.files:
                if name.endswith(suffix):
                    return name
        return None


def render_gallery_html(title: str, digest: str, entries: Sequence[GalleryEntry]) -> bytes:
    """Write an HTML page that shows the pictures in its folder, and links to their files.

    digest: the hash of the capture that the pictures show, which is written into the page. entries:
    the pictures with their captions and files.
    """
    figures = "\n".join(map(write_html_entry, entries))
    body = f"<h1>{escape(title)}</h1>\n<main>\n{figures}\n</main>"
    return frame_page(title, body, GALLERY_STYLE, GALLERY_POLICY, digest)


def write_html_entry(entry: GalleryEntry) -> str:
    """Write a picture as an HTML figure, with its title, its caption and links to its files.

    An entry that has no file which a browser shows has no image.
    """
    title = escape(entry.title)
    image = write_html_image(entry.picture, title) if entry.picture else ""
    lines = [f"<b>{title}</b>", *map(escape, entry.caption)]
    links = [write_html_link(name, escape(name)) for name in entry.files]
    lines.append(" · ".join(links))
    description = "<br>".join(lines)
    return f"<figure>{image}<figcaption>{description}</figcaption></figure>"


def write_html_image(name: str, title: str) -> str:
    """Write an image in HTML that is a link to its file.

    name: of the file. title: in HTML, that is, escaped.
    """
    address = quote(name)
    image = f'<img src="{address}" alt="{title}" loading="lazy">'
    return write_html_link(name, image)


def write_html_link(name: str, content: str) -> str:
    """Write a link to a file in HTML. content: in HTML, that is, escaped."""
    address = quote(name)
    return f'<a href="{address}">{content}</a>'


def render_gallery_markdown(title: str, entries: Sequence[GalleryEntry]) -> bytes:
    """Write a Markdown page that shows the pictures in its folder, in UTF-8.

    Each has links to its files, and the commands that make these again.
    """
    introduction = "Each with the commands that make it again, where this report was made."
    lines = [f"# {escape_markdown(title)}", "", introduction, ""]
    for entry in entries:
        lines += write_markdown_entry(entry)
    return "\n".join(lines).encode()


def write_markdown_entry(entry: GalleryEntry) -> list[str]:
    """Return the Markdown lines of a picture: title, image, caption, links to files, commands."""
    title = escape_markdown(entry.title)
    lines = [f"## {title}", ""]
    if entry.picture:
        image = write_markdown_link(entry.picture, title)
        lines += [f"!{image}", ""]
    lines += write_paragraph(entry.caption)
    links = [write_markdown_link(name, escape_markdown(name)) for name in entry.files]
    lines += [", ".join(links), ""]
    fence = choose_fence(entry.commands)
    lines += [f"{fence}sh", *entry.commands, fence, ""]
    return lines


def write_markdown_link(name: str, content: str) -> str:
    """Write a link to a file in Markdown. content: as Markdown."""
    address = quote(name)
    return f"[{content}]({address})"


def choose_fence(commands: Sequence[str]) -> str:
    """Choose the fence of a Markdown code block: longer than any run of backticks in the commands.

    It is also at least LEAST_FENCE backticks long.
    """
    runs = [run for command in commands for run in re.findall("`+", command)]
    longest = max(map(len, runs), default=0)
    return "`" * max(LEAST_FENCE, longest + 1)
