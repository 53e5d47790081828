"""Captures and results that show themselves: pages in notebooks, text, figures in files."""

from collections.abc import Container
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.errors import UsageError
from attnviz.io.csv_table import list_visible_cells
from attnviz.io.files import require_new, write_whole
from attnviz.io.formats import make_capture_document
from attnviz.record import Capture, Reduction
from attnviz.results.result import Result
from attnviz.selection import parse_heads, parse_numbers, require_choice, select_heads

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
    """Show a capture in a notebook: the page of ``attnviz show -o page.html``.

    layers, heads: as for ``capture``. reduce: ``mean`` or ``max`` over the heads of each layer.
    height: in pixels. Raises UsageError for a layer or a head that is not there.
    """
    chosen_heads = require_choice(heads, parse_heads)
    chosen = select_heads(capture, require_choice(layers, parse_numbers), chosen_heads)
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
        """Return the page in a frame of its own for a browser, and text for others."""
        forms = {"text/plain": self.__repr__, "text/html": self.framed}
        wanted = [name for name in forms if not include or name in include]
        chosen = [name for name in wanted if not exclude or name not in exclude]
        return {name: forms[name]() for name in chosen}

    def __repr__(self) -> str:
        """Return the picture as text, in shades."""
        from attnviz.render.terminal.cells import CellPaint
        from attnviz.render.terminal.draw import Screen, draw_picture_lines

        screen = Screen(WIDTH, paint=CellPaint("shades"))
        lines = [
            line for picture in self.pictures() for line in draw_picture_lines(picture, screen)
        ]
        texts = ["".join(segment.text for segment in line) for line in lines]
        return "\n".join(text.rstrip() for text in texts)

    def framed(self) -> str:
        """Return the page in a frame that runs its own script and nothing of the notebook."""
        page = escape(self.page(exact=False).decode())
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="attention" '
            f'style="width: 100%; height: {int(self.height)}px; border: 0"></iframe>'
        )

    def page(self, *, exact: bool) -> bytes:
        """Return the page as a file."""
        from attnviz.render.html.page import render_page
        from attnviz.views import make_capture_page

        return render_page(make_capture_page(self.capture), exact=exact)

    def pictures(self) -> "list[Picture]":
        """Return a heatmap of one head, or thumbnails of several."""
        from attnviz.views import make_grids, make_heatmaps

        matrices = sum(len(each.layers) * len(each.heads) for each in self.capture.maps)
        views = make_grids if matrices > 1 else make_heatmaps
        return list(views(self.capture))

    def save(
        self,
        path: str | Path,
        *,
        force: bool = False,
        exact: bool = False,
        **style: Any,
    ) -> None:
        """Write a ``.html``, or a figure as ``.png``, ``.svg`` or ``.pdf``.

        style: see ``attnviz.render.figure.figure.FigureStyle``.

        Raises UsageError for another suffix or several pictures, OutputError if it exists or cannot
        be written.
        """
        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in ("html", "png", "svg", "pdf"):
            raise UsageError(
                f"cannot tell the format of {path}: the suffix must be one of .html, .png, .svg,"
                " .pdf",
            )
        require_new(path, force)
        write_whole(path, self.page(exact=exact) if form == "html" else self.figure(form, style))

    def figure(self, form: str, style: dict[str, Any]) -> bytes:
        """Return the one picture as a figure. Raises UsageError if there are several."""
        from attnviz.render.figure.figure import FigureStyle, render_figure

        picture, *others = self.pictures()
        if others:
            raise UsageError(f"a .{form} holds one picture, not {len(others) + 1}")
        return render_figure(picture, form, FigureStyle(**style)).data


def frame_capture(capture: Capture) -> str:
    """Return the page of a capture in a frame, for a notebook."""
    return ShownCapture(capture, HEIGHT).framed()


def frame_result(result: Result) -> str:
    """Return the tables of a result as a document in a frame that runs nothing, for a notebook."""
    from attnviz.render.html.document import render_document

    tables = result.tables()
    page = escape(render_document(tables[0].title, tables).decode())
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
