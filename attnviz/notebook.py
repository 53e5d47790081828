"""Captures and results that show themselves: pages in a notebook, text where there is none, figures in files."""

from collections.abc import Container
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.errors import UsageError
from attnviz.io.csv_table import list_cells
from attnviz.io.files import require_new, write_whole
from attnviz.io.formats import capture_document
from attnviz.record import Capture, Reduction
from attnviz.results.result import Result
from attnviz.selection import parse, parse_heads, require_choice, select

if TYPE_CHECKING:
    from attnviz.drawable import Picture

HEIGHT = 760  # pixels of a page in a notebook
WIDTH = 100  # columns of the text


def show(
    capture: Capture,
    *,
    layers: str | int = "all",
    heads: str | int = "all",
    reduce: Reduction | None = None,
    height: int = HEIGHT,
) -> "Shown":
    """What a notebook shows of a capture: the page of ``attnviz show -o page.html``, so many pixels high.

    layers, heads: as for ``capture``. reduce: ``mean`` or ``max`` over the heads of each layer. Raises UsageError.
    """
    found = select(capture, require_choice(layers, parse), require_choice(heads, parse_heads))
    if reduce is not None:
        found = replace(found, maps=tuple(part.reduced(reduce) for part in found.maps))
    return Shown(found, height)


@dataclass(frozen=True, eq=False)
class Shown:
    """A capture that shows itself where it is the value of a cell or of a line."""

    capture: Capture
    height: int

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        """The page in a frame of its own for a browser, text for others."""
        made = {"text/plain": self.__repr__, "text/html": self.framed}
        wanted = [
            name
            for name in made
            if (not include or name in include) and not (exclude and name in exclude)
        ]
        return {name: made[name]() for name in wanted}

    def __repr__(self) -> str:
        """The picture in shades."""
        from attnviz.render.terminal.cells import Paint
        from attnviz.render.terminal.draw import Screen, draw

        on = Screen(WIDTH, paint=Paint("shades"))
        lines = (line for picture in self.pictures() for line in draw(picture, on))
        return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)

    def framed(self) -> str:
        """The page in a frame that can run its own script and nothing else of the notebook."""
        page = escape(self.page(exact=False).decode())
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="attention" '
            f'style="width: 100%; height: {int(self.height)}px; border: 0"></iframe>'
        )

    def page(self, *, exact: bool) -> bytes:
        """The page as a file."""
        from attnviz.render.html.page import html
        from attnviz.views import page

        return html(page(self.capture), exact=exact)

    def pictures(self) -> "list[Picture]":
        """A heatmap of one head, thumbnails of several."""
        from attnviz.views import grids, heatmaps

        several = sum(len(part.layers) * len(part.heads) for part in self.capture.maps) > 1
        return [*grids(self.capture)] if several else [*heatmaps(self.capture)]

    def save(
        self, path: str | Path, *, force: bool = False, exact: bool = False, **style: Any
    ) -> None:
        """Write a ``.html``, or a figure as ``.png``, ``.svg`` or ``.pdf``.

        style: see ``attnviz.render.figure.figure.Style``.

        Raises UsageError for another suffix or several pictures, OutputError if it exists or cannot be written.
        """
        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in ("html", "png", "svg", "pdf"):
            raise UsageError(
                f"cannot tell the format of {path}: the suffix must be one of .html, .png, .svg, .pdf"
            )
        require_new(path, force)
        write_whole(path, self.page(exact=exact) if form == "html" else self.figure(form, style))

    def figure(self, form: str, style: dict[str, Any]) -> bytes:
        """The one picture as a figure."""
        from attnviz.render.figure.figure import Style, figure

        (picture, *others) = self.pictures()
        if others:
            raise UsageError(f"a .{form} holds one picture, not {len(others) + 1}")
        return figure(picture, form, Style(**style)).data


def frame_capture(capture: Capture) -> str:
    """Return the page of a capture in a frame, for a notebook."""
    return Shown(capture, HEIGHT).framed()


def frame_result(result: Result) -> str:
    """Return the tables of a result as a document in a frame that runs nothing, for a notebook."""
    from attnviz.render.html.document import document

    tables = result.tables()
    page = escape(document(tables[0].title, tables).decode())
    style = f"width: 100%; height: {HEIGHT}px; border: 0"
    return f'<iframe srcdoc="{page}" sandbox title="attnviz" style="{style}"></iframe>'


def write_document(capture: Capture) -> dict[str, Any]:
    """Return a capture as the document that ``attnviz show --json`` prints, but for its schema."""
    document = capture_document(capture)
    return {name: value for name, value in document.items() if name != "schema"}


Capture.write_html = staticmethod(frame_capture)
Capture.write_document = staticmethod(write_document)
Capture.list_rows = staticmethod(list_cells)
Result.write_html = staticmethod(frame_result)
