"""In a notebook a capture shows itself: the page for browsers, text for the rest."""

from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import attnviz
from attnviz.errors import OutputError, UsageError
from attnviz.record import Capture
from attnviz.render.html.page import render_page
from attnviz.views import make_capture_page


def test_a_notebook_shows_the_page_and_text(tmp_path: Path) -> None:
    """Run by a kernel of its own, a cell's value is the page in a frame, and the picture as text."""
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(
            'import attnviz\nattnviz.show(attnviz.capture("The cat sat."), layers=1)'
        )
    ]
    NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    (output,) = book.cells[0].outputs
    assert output.output_type == "execute_result"
    assert output.data["text/html"].startswith('<iframe srcdoc="&lt;!')
    assert "builtin · 6 heads · 5 tokens" in output.data["text/plain"]


def test_the_frame_holds_the_page(capture: Capture) -> None:
    """The page itself, escaped, in a frame that may run its own script and reach nothing of the notebook."""
    shown = attnviz.show(capture, height=500)._repr_mimebundle_()["text/html"]
    inside = shown.split('srcdoc="')[1].split('"')[0]
    assert unescape(inside).encode() == render_page(make_capture_page(capture))
    assert 'sandbox="allow-scripts allow-downloads"' in shown
    assert "height: 500px" in shown


def test_only_what_is_asked_for_is_made(capture: Capture) -> None:
    """A front end names the types that it wants or does not want."""
    shown = attnviz.show(capture)
    assert set(shown._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert set(shown._repr_mimebundle_(include=["text/plain"])) == {"text/plain"}
    assert set(shown._repr_mimebundle_(exclude=["text/html"])) == {"text/plain"}


def test_layers_heads_and_reductions_are_chosen(capture: Capture) -> None:
    """As on the command line; what is not there is refused."""
    assert "layer 1 · head 0" in repr(attnviz.show(capture, layers=-1, heads="0"))
    assert "mean over heads" in repr(attnviz.show(capture, layers=0, reduce="mean"))
    assert "4 heads" in repr(attnviz.show(capture))
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        attnviz.show(capture, layers=7)


def test_it_is_saved_as_a_page_or_a_figure(capture: Capture, tmp_path: Path) -> None:
    """By the suffix; whole, and not over what is there."""
    one = attnviz.show(capture, layers=0, heads=0)
    for name in ("x.html", "x.png", "x.svg", "x.pdf"):
        one.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    one.save(tmp_path / "paper.pdf", name="paper")
    assert (tmp_path / "paper.pdf").read_bytes() != (tmp_path / "x.pdf").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        one.save(tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"\.html, \.png"):
        one.save(tmp_path / "x.gif")
