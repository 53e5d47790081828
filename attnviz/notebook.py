"""Captures and results that show themselves: pages in notebooks, text, figures in files."""

from collections.abc import Container
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.errors import UsageError, list_missing_packages
from attnviz.io.csv_table import list_visible_cells
from attnviz.io.files import require_output_path, write_whole
from attnviz.io.formats import make_capture_document
from attnviz.record import Capture, Reduction
from attnviz.results.result import Result
from attnviz.selection import (
    parse_choice,
    parse_heads,
    parse_numbers,
    select_heads,
)

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
) -> "ShownCapture":
    """Show a capture in a notebook, as the page that ``attnviz show -o page.html`` writes.

    layers, heads: those that are shown, written as for ``attnviz.capture``. reduce: show the
    ``mean`` or the ``max`` over the heads of each layer. height: of the page, in pixels.

    Raises UsageError for a layer or a head that is not there.
    """
    chosen_heads = parse_choice(heads, parse_heads)
    chosen = select_heads(capture, parse_choice(layers, parse_numbers), chosen_heads)
    if reduce is not None:
        maps = tuple(attention_map.reduced(reduce) for attention_map in chosen.maps)
        chosen = replace(chosen, maps=maps)
    return ShownCapture(chosen, height)


@dataclass(frozen=True, eq=False)
class ShownCapture:
    """A capture that shows itself where it is the value of a cell or of a line."""

    capture: Capture
    height: int

    def _repr_mimebundle_(
        self,
        include: Container[str] | None = None,
        exclude: Container[str] | None = None,
    ) -> dict[str, str]:
        """Return what Jupyter displays, by media type: an HTML page in a frame, and plain text.

        include, exclude: media types that are asked for, or not wanted; None for no limit.
        """
        makers = {"text/plain": self.__repr__, "text/html": self.framed}
        wanted = [name for name in makers if not include or name in include]
        chosen = [name for name in wanted if not exclude or name not in exclude]
        return {name: makers[name]() for name in chosen}

    def __repr__(self) -> str:
        """Return the pictures as text, with characters of block shades in place of colours."""
        from attnviz.render.terminal.cells import CellPaint
        from attnviz.render.terminal.draw import Screen, draw_picture_lines

        screen = Screen(WIDTH, paint=CellPaint("shades"))
        lines = [
            line for picture in self.pictures() for line in draw_picture_lines(picture, screen)
        ]
        texts = ["".join(segment.text for segment in line) for line in lines]
        return "\n".join(text.rstrip() for text in texts)

    def framed(self) -> str:
        """Return the page as an HTML frame, which runs its script apart from the notebook."""
        page = escape(self.page(exact=False).decode())
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="attention" '
            f'style="width: 100%; height: {int(self.height)}px; border: 0"></iframe>'
        )

    def page(self, *, exact: bool) -> bytes:
        """Return the HTML page of the capture. exact: write its weights with more digits."""
        from attnviz.render.html.page import render_page
        from attnviz.views import make_capture_page

        return render_page(make_capture_page(self.capture), exact=exact)

    def pictures(self) -> "list[Picture]":
        """Return the heatmap of a capture of one head, or thumbnails of the heads of another."""
        from attnviz.views import make_grids, make_heatmaps

        head_count = sum(len(each.layers) * len(each.heads) for each in self.capture.maps)
        make_pictures = make_grids if head_count > 1 else make_heatmaps
        return list(make_pictures(self.capture))

    def save(
        self,
        path: str | Path,
        *,
        force: bool = False,
        exact: bool = False,
        **style: Any,
    ) -> None:
        """Write the capture as a page (``.html``) or as a figure (``.png``, ``.svg``, ``.pdf``).

        force: replace a file that exists. exact: write the weights of a page with more digits.
        style: of a figure, the fields of ``attnviz.render.figure.figure.FigureStyle``.

        Raises UsageError for another suffix, or for a figure of several pictures; OutputError for a
        file that exists or cannot be written.
        """
        path = Path(path)
        format_name = path.suffix.lower().removeprefix(".")
        if format_name not in ("html", "png", "svg", "pdf"):
            raise UsageError(
                f"cannot tell the format of {path}: the suffix must be one of .html, .png, .svg,"
                " .pdf",
            )
        require_output_path(path, force)
        is_page = format_name == "html"
        write_whole(path, self.page(exact=exact) if is_page else self.figure(format_name, style))

    def figure(self, format_name: str, style: dict[str, Any]) -> bytes:
        """Return the one picture of the capture as a file. Raises UsageError if there are several.

        format_name: ``png``, ``svg`` or ``pdf``. style: the fields of a FigureStyle.
        """
        from attnviz.render.figure.figure import FigureStyle, render_figure

        picture, *others = self.pictures()
        if others:
            raise UsageError(f"a .{format_name} holds one picture, not {len(others) + 1}")
        return render_figure(picture, format_name, FigureStyle(**style)).data


def frame_capture(capture: Capture) -> str:
    """Return the page of a capture in a frame, for a notebook."""
    return ShownCapture(capture, HEIGHT).framed()


def frame_result(result: Result) -> str:
    """Return what a result draws as an HTML frame without scripts, for a notebook.

    Without matplotlib these are its tables only.
    """
    from attnviz.drawable import Table
    from attnviz.render.html.document import render_document

    pictures = result.tables()
    title = pictures[0].title
    if list_missing_packages("matplotlib"):
        pictures = [picture for picture in pictures if isinstance(picture, Table)]
    page = escape(render_document(title, pictures).decode())
    style = f"width: 100%; height: {HEIGHT}px; border: 0"
    return f'<iframe srcdoc="{page}" sandbox title="attnviz" style="{style}"></iframe>'


def write_document(capture: Capture) -> dict[str, Any]:
    """Return a capture as the document that ``attnviz show --json`` prints, but for its schema."""
    document = make_capture_document(capture)
    return {name: value for name, value in document.items() if name != "schema"}


Capture.write_html = staticmethod(frame_capture)
Capture.write_document = staticmethod(write_document)
Capture.list_rows = staticmethod(list_visible_cells)
Result.write_html = staticmethod(frame_result)
