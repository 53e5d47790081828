"""Results into a file or to stdout, in the format that is asked for."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from attnviz.cli.options import BINARY, FIGURES, FORMATS, note
from attnviz.cli.picture import Options, look, pictures, require_cells
from attnviz.errors import OutputError, UsageError
from attnviz.io.files import require_new, write_whole
from attnviz.record import Capture

if TYPE_CHECKING:
    from attnviz.views import Page, Picture

OF_FIGURES = "style", "inches", "dpi", "transparent"


class Target(NamedTuple):
    """Where a result goes."""

    form: str
    path: Path | None
    """None for stdout."""


def target(options: Options) -> Target | None:
    """Where the result goes; None for the screen. What could not be written is refused before anything is computed.

    Raises UsageError or OutputError.
    """
    output, form = options["output"], options["form"]
    found = None
    if output not in (None, "-"):
        path = Path(output)
        if output.endswith("/"):
            raise OutputError(f"{output} is a folder: name a file in it")
        require_new(path, options["force"])
        found = Target(form or suffix(path), path)
        if path.suffix.lower().removeprefix(".") in {*FORMATS} - {found.form}:
            raise UsageError(f"--format {form} contradicts the suffix of {path}: leave one of them out")
    elif form or output or options["as_json"]:
        found = Target(form or ("json" if options["as_json"] else ""), None)
    if found:
        require_deliverable(found, options)
    require_for_figures(found, options)
    return found


def suffix(path: Path) -> str:
    """The format that the suffix of a file names. Raises UsageError."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        known = ", ".join(f".{form}" for form in FORMATS)
        raise UsageError(f"cannot tell the format of {path}: the suffix must be one of {known}, or say --format")
    return form


def require_deliverable(found: Target, options: Options) -> None:
    """Raise UsageError for two results at once, for stdout without a format, or for binary data on a terminal."""
    if options["as_json"] and (found.path is not None or found.form != "json"):
        raise UsageError("--json prints a document: leave -o and --format out, or write -o FILE.json")
    if not found.form:
        raise UsageError(f"-o - needs --format, one of {', '.join(FORMATS)}")
    if found.path is None and found.form in BINARY and sys.stdout.isatty():
        raise UsageError(f"a {found.form} is nothing for a terminal: name a file with -o, or redirect stdout")


def require_form(found: Target | None, forms: Sequence[str], what: str) -> None:
    """Raise UsageError unless what a command writes has this format."""
    if found and found.form not in forms:
        raise UsageError(f"{what} is written as {', '.join(f'.{form}' for form in forms)}, not .{found.form}")


def require_for_figures(found: Target | None, options: Options) -> None:
    """Raise UsageError for options that would have no effect."""
    given = click.get_current_context().get_parameter_source
    told = [name for name in OF_FIGURES if name in options and given(name) is not ParameterSource.DEFAULT]
    if told and (found is None or found.form not in FIGURES):
        raise UsageError(f"--{told[0]} is for figures: -o FILE.png, .svg or .pdf")
    if options["exact"] and (found is None or found.form != "html"):
        raise UsageError("--exact is for pages: -o FILE.html; data are exact as they are")


def deliver(capture: Capture, to: Target, options: Options, quiet: bool) -> None:
    """Write a capture in the format of its target, and tell on stderr what a file does not show."""
    put(MAKERS[to.form](capture, to.form, options), to, quiet)


def put(made: "Made", to: Target, quiet: bool) -> None:
    """Write what was made where it goes, and tell on stderr what is beside it."""
    if to.path is None:
        write_out(made.data)
    else:
        write_whole(to.path, made.data)
    for line in made.notes:
        note(line, quiet)
    if to.path is not None:
        note(f"wrote {to.path}", quiet)


def write_out(data: bytes) -> None:
    """Bytes to stdout. Raises BrokenPipeError if nobody reads them all."""
    sys.stdout.flush()
    left = memoryview(data)
    while left:  # where stdout has no buffer, a part may be written
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


class Made(NamedTuple):
    """The content of a file, and what is to be told beside it."""

    data: bytes
    notes: Sequence[str] = ()


def make_figure(capture: Capture, form: str, options: Options) -> Made:
    """A figure of one picture. Raises UsageError if there are several."""
    found = pictures(capture, options)
    if len(found) > 1:
        raise UsageError(f"a .{form} holds one picture, not {len(found)}: choose one head, --map, or --view grid")
    return figure_of(found[0], form, options)


def figure_of(picture: "Picture", form: str, options: Options, below: "Sequence[Picture]" = ()) -> Made:
    """A figure of a picture, and of others below it."""
    from attnviz.render.figure.figure import Style, figure

    style = Style(
        options["style"],
        inches=options["inches"],
        colours=options["cmap"],
        dpi=options["dpi"],
        transparent=options["transparent"],
    )
    return Made(*figure(picture, form, style, below))


def make_page(capture: Capture, form: str, options: Options) -> Made:  # noqa: ARG001 - there is one format of it
    """A page of everything."""
    from attnviz.views import page

    require_cells(capture)
    return page_of(page(capture, look(options)), options, capture.notes)


def page_of(page: "Page", options: Options, notes: Sequence[str]) -> Made:
    """A page, under the title of the user if there is one."""
    from attnviz.render.html.page import html

    if options["title"] is not None:
        page = replace(page, title=options["title"])
    return Made(html(page, exact=options["exact"], colours=options["cmap"]), notes)


def document_of(found: "Sequence[Picture]", options: Options) -> Made:
    """Pictures as an HTML document. Raises UsageError for an option that would have no effect."""
    from attnviz.render.html.document import document

    if options.get("exact"):
        raise UsageError("--exact is for a page of all heads: this one shows numbers as they are, leave it out")
    return Made(document(found[0].title, found, options.get("cmap", "viridis")))


def make_table(capture: Capture, form: str, options: Options) -> Made:  # noqa: ARG001
    """Markdown tables of every head."""
    return markdown_of(pictures(capture, options, apart=True))


def markdown_of(found: "Sequence[Picture]") -> Made:
    """Pictures as Markdown."""
    from attnviz.render.markdown import markdown

    return Made(markdown(found).encode())


def make_data(capture: Capture, form: str, options: Options) -> Made:  # noqa: ARG001
    """The numbers."""
    from attnviz.io.formats import WRITERS

    return Made(WRITERS[f".{form}"](capture), capture.notes)


def make_csv(capture: Capture, form: str, options: Options) -> Made:  # noqa: ARG001
    """The numbers as a table in long form."""
    from attnviz.io.csv_table import to_csv

    return Made(to_csv(capture), capture.notes)


Maker = Callable[[Capture, str, Options], Made]
MAKERS: dict[str, Maker] = {
    **dict.fromkeys(FIGURES, make_figure),
    "html": make_page,
    "md": make_table,
    "csv": make_csv,
    **dict.fromkeys(("json", "npz"), make_data),
}
