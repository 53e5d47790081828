"""Where a result goes, and how it gets there: onto the screen, into a file or to stdout."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from attnviz.cli.options import BINARY, FIGURES, FORMATS, FigureOptions, FileOptions, ResultOptions
from attnviz.cli.picture import PictureOptions, draw_pictures, make_look, require_cells
from attnviz.cli.screen import print_pictures
from attnviz.cli.talk import Talk
from attnviz.drawable import Page, Picture
from attnviz.errors import OutputError, UsageError
from attnviz.io.documents import format_document_json, format_rows_csv
from attnviz.io.files import require_new, write_whole
from attnviz.record import Capture
from attnviz.render.terminal.draw import Screen
from attnviz.results.result import Result

FIGURE_FLAGS = "style", "inches", "dpi", "transparent"
RESULT_FORMATS = (*FIGURES, "html", "json", "csv", "md")


class Destination(NamedTuple):
    """Where a result goes."""

    file_format: str
    path: Path | None
    """None for stdout."""


class Content(NamedTuple):
    """The content of a file, and what is to be told beside it."""

    data: bytes
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """A result in the formats in which it can be delivered, each made when it is asked for."""

    pictures: Sequence[Picture]
    """For the screen, figures, and where there is no page, an HTML document."""
    data: Callable[[str], Content]
    """Makes JSON, CSV or NPZ, by the name of the format."""
    markdown: Sequence[Picture] | None = None
    """For Markdown, where it is not the pictures."""
    page: Page | None = None
    """For HTML, if there is more to look through than the pictures."""
    notes: Sequence[str] = ()
    """What is told beside a page."""
    one_picture: bool = False
    """Return whether a figure holds one picture, so that several are refused; else all are drawn
    below each other."""


# Where it goes


def choose_destination(file: FileOptions, figure: FigureOptions) -> Destination | None:
    """Return where the result goes; None for the screen.

    What could not be written is refused before anything is computed. Raises UsageError,
    OutputError.
    """
    destination = None
    if file.output not in (None, "-"):
        destination = make_file_destination(str(file.output), file)
    elif file.format or file.output or file.as_json:
        destination = Destination(file.format or ("json" if file.as_json else ""), None)
    if destination:
        require_deliverable(destination, file)
    require_figure_effect(destination, figure)
    return destination


def choose_result_destination(
    options: ResultOptions,
    formats: Sequence[str] = RESULT_FORMATS,
    what: str = "what is measured",
) -> Destination | None:
    """Return where a result goes that is written in some formats only.

    Raises UsageError, OutputError.
    """
    destination = choose_destination(options.file, options.figure)
    require_format(destination, formats, what)
    return destination


def make_file_destination(output: str, file: FileOptions) -> Destination:
    """Return the file that -o names, with its format. Raises UsageError, OutputError."""
    path = Path(output)
    if output.endswith("/"):
        raise OutputError(f"{output} is a folder: name a file in it")
    require_new(path, file.force)
    file_format = file.format or read_suffix(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in FORMATS and suffix != file_format:
        raise UsageError(
            f"--format {file_format} contradicts the suffix of {path}: leave one of them out"
        )
    return Destination(file_format, path)


def read_suffix(path: Path) -> str:
    """Return the format that the suffix of a file names. Raises UsageError."""
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FORMATS:
        known = ", ".join(f".{file_format}" for file_format in FORMATS)
        raise UsageError(
            f"cannot tell the format of {path}: the suffix must be one of {known}, or say --format",
        )
    return file_format


def require_deliverable(destination: Destination, file: FileOptions) -> None:
    """Raise UsageError for a destination that cannot be.

    That is two results at once, stdout without a format, or binary data on a terminal.
    """
    if file.as_json and (destination.path is not None or destination.file_format != "json"):
        raise UsageError(
            "--json prints a document: leave -o and --format out, or write -o FILE.json",
        )
    if not destination.file_format:
        raise UsageError(f"-o - needs --format, one of {', '.join(FORMATS)}")
    if destination.path is None and destination.file_format in BINARY and sys.stdout.isatty():
        raise UsageError(
            f"a {destination.file_format} is nothing for a terminal: name a file with -o, or redirect stdout",
        )


def require_format(destination: Destination | None, formats: Sequence[str], what: str) -> None:
    """Raise UsageError unless what a command writes has one of these formats."""
    if destination and destination.file_format not in formats:
        known = ", ".join(f".{file_format}" for file_format in formats)
        raise UsageError(f"{what} is written as {known}, not .{destination.file_format}")


def require_figure_effect(destination: Destination | None, figure: FigureOptions) -> None:
    """Raise UsageError for options of figures and pages that would have no effect."""
    file_format = destination.file_format if destination else None
    for name in FIGURE_FLAGS:
        if name in figure.given and file_format not in FIGURES:
            raise UsageError(f"--{name} is for figures: -o FILE.png, .svg or .pdf")
    if figure.exact and file_format != "html":
        raise UsageError("--exact is for pages: -o FILE.html; data are exact as they are")


# What is delivered


def make_capture_answer(
    capture: Capture, options: PictureOptions, file_format: str | None
) -> Answer:
    """Return a capture as it is delivered in a format, or on the screen for None.

    Raises InputError if there is nothing to draw.
    """

    def write_data(file_format: str) -> Content:
        return Content(encode_capture(capture, file_format), capture.notes)

    if file_format in ("json", "csv", "npz"):
        return Answer([], write_data)
    if file_format == "html":
        return Answer([], write_data, page=make_page(capture, options), notes=capture.notes)
    pictures = draw_pictures(capture, options, thumbnails=file_format != "md")
    return Answer(pictures, write_data, one_picture=True)


def make_page(capture: Capture, options: PictureOptions) -> Page:
    """Return the page of a capture, under the title of the user if there is one."""
    from attnviz.views import make_capture_page

    require_cells(capture)
    whole = make_capture_page(capture, make_look(options.look))
    return whole if options.title is None else replace(whole, title=options.title)


def encode_capture(capture: Capture, file_format: str) -> bytes:
    """Write a capture as JSON, CSV or NPZ. Raises UsageError for what a format cannot hold."""
    if file_format == "csv":
        from attnviz.io.csv_table import format_csv

        return format_csv(capture)
    from attnviz.io.formats import WRITERS

    return WRITERS[f".{file_format}"](capture)


def make_result_answer(
    result: Result,
    title: str | None = None,
    *,
    pictures: Sequence[Picture] | None = None,
    markdown: Sequence[Picture] | None = None,
    page: Page | None = None,
) -> Answer:
    """Return a result as it is delivered.

    title: of the user's own, for the first picture and the page. pictures: in place of the result's
    own tables; markdown: in place of the pictures, in Markdown.
    """

    def write_data(file_format: str) -> Content:
        return Content(
            format_document_json(result.to_dict())
            if file_format == "json"
            else format_rows_csv(result.rows()),
        )

    drawn = list(result.tables() if pictures is None else pictures)
    if title is not None:
        drawn[0] = replace(drawn[0], title=title)
        if markdown:
            markdown = [replace(markdown[0], title=title), *markdown[1:]]
        page = page and replace(page, title=title)
    return Answer(drawn, write_data, markdown, page)


# How it gets there


def deliver(
    answer: Answer,
    destination: Destination | None,
    screen: Screen,
    options: ResultOptions,
    cmap: str = "viridis",
) -> None:
    """Draw an answer on the screen, or write it in the format of its destination.

    Raises AttnvizError.
    """
    if destination is None:
        print_pictures(answer.pictures, screen)
        return
    content = make_content(answer, destination.file_format, options.figure, cmap)
    write_content(content, destination, options.talk)


def make_content(
    answer: Answer,
    file_format: str,
    figure: FigureOptions,
    cmap: str = "viridis",
) -> Content:
    """Make the content of a file of an answer. Raises UsageError for what a format cannot hold."""
    if file_format in FIGURES:
        return make_figure(answer, file_format, figure, cmap)
    if file_format == "html":
        return make_html(answer, figure, cmap)
    if file_format == "md":
        from attnviz.render.markdown import render_markdown

        pictures = answer.pictures if answer.markdown is None else answer.markdown
        return Content(render_markdown(pictures).encode())
    return answer.data(file_format)


def make_figure(answer: Answer, file_format: str, options: FigureOptions, cmap: str) -> Content:
    """Make a figure of the pictures of an answer. Raises UsageError if it may hold one only."""
    from attnviz.render.figure.figure import FigureStyle, render_figure

    first, *others = answer.pictures
    if others and answer.one_picture:
        count = len(answer.pictures)
        raise UsageError(
            f"a .{file_format} holds one picture, not {count}: choose one head, --map, or --view grid",
        )
    style = FigureStyle(
        options.style,
        inches=options.inches,
        colours=cmap,
        dpi=options.dpi,
        transparent=options.transparent,
    )
    return Content(*render_figure(first, file_format, style, others))


def make_html(answer: Answer, options: FigureOptions, cmap: str) -> Content:
    """Make a page of all heads, or a document of the pictures.

    Raises UsageError for --exact there.
    """
    if answer.page is not None:
        from attnviz.render.html.page import render_page

        return Content(render_page(answer.page, exact=options.exact, colours=cmap), answer.notes)
    from attnviz.render.html.document import render_document

    if options.exact:
        raise UsageError(
            "--exact is for a page of all heads: this one shows numbers as they are, leave it out",
        )
    return Content(render_document(answer.pictures[0].title, answer.pictures, cmap))


def write_content(content: Content, destination: Destination, talk: Talk) -> None:
    """Write content where it goes, and tell on stderr what is beside it. Raises OutputError."""
    if destination.path is None:
        write_stdout(content.data)
    else:
        write_whole(destination.path, content.data)
    for line in content.notes:
        talk.note(line)
    if destination.path is not None:
        talk.note(f"wrote {destination.path}")


def write_stdout(data: bytes) -> None:
    """Write bytes to stdout. Raises BrokenPipeError if nobody reads them all."""
    sys.stdout.flush()
    left = memoryview(data)
    while left:  # where stdout has no buffer, a part may be written
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()
