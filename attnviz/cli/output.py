"""Where a result goes, and how it gets there: onto the screen, into a file or to stdout."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from attnviz.cli.options import (
    BINARY,
    FIGURES,
    FORMATS,
    FigureOptions,
    FileOptions,
    ResultOptions,
)
from attnviz.cli.picture import (
    PictureOptions,
    draw_pictures,
    make_look,
    require_cells,
)
from attnviz.cli.screen import print_pictures
from attnviz.cli.talk import Talk
from attnviz.drawable import Page, Picture
from attnviz.errors import OutputError, UsageError, require_packages
from attnviz.io.documents import format_document_json, format_rows_csv
from attnviz.io.files import require_output_path, write_whole
from attnviz.progress import begin_step, shorten_name
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
    """True if a figure holds one picture, so that several are refused; else all are drawn below
    each other."""


# Where it goes


def choose_destination(file: FileOptions, figure: FigureOptions) -> Destination | None:
    """Return the file, or stdout, to which options send a result, and its format.

    None stands for the screen. What could not be written is refused here, before anything is
    computed. file: the options of the file. figure: those of figures and pages, which must have an
    effect on it.

    Raises UsageError, OutputError.
    """
    destination = None
    if file.output not in (None, "-"):
        destination = make_file_destination(str(file.output), file)
    elif file.format or file.output or file.as_json:
        default_format = "json" if file.as_json else ""
        destination = Destination(file.format or default_format, None)
    if destination:
        require_deliverable(destination, file)
    require_figure_effect(destination, figure)
    return destination


def choose_result_destination(
    options: ResultOptions,
    formats: Sequence[str] = RESULT_FORMATS,
    what: str = "what is measured",
) -> Destination | None:
    """Return the file, or stdout, to which options send a result that has some formats only.

    None stands for the screen. formats: those in which the result can be written. what: words for
    it, for the error. Raises UsageError, OutputError.
    """
    destination = choose_destination(options.file, options.figure)
    require_format(destination, formats, what)
    return destination


def make_file_destination(output: str, file: FileOptions) -> Destination:
    """Return the file that -o names and its format, which --format or its suffix says.

    Raises UsageError for an unknown suffix or another one than --format says, OutputError for a
    folder, or for a file that exists unless it may be replaced.
    """
    path = Path(output)
    if output.endswith("/"):
        raise OutputError(f"{output} is a folder: name a file in it")
    require_output_path(path, file.force)
    file_format = file.format or read_suffix(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in FORMATS and suffix != file_format:
        contradiction = f"--format {file_format} contradicts the suffix of {path}"
        raise UsageError(f"{contradiction}: leave one of them out")
    return Destination(file_format, path)


def read_suffix(path: Path) -> str:
    """Return the format that the suffix of a file names. Raises UsageError for any other suffix."""
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FORMATS:
        known = ", ".join(f".{file_format}" for file_format in FORMATS)
        raise UsageError(
            f"cannot tell the format of {path}: the suffix must be one of {known}, or say --format",
        )
    return file_format


def require_deliverable(destination: Destination, file: FileOptions) -> None:
    """Raise UsageError for a destination to which nothing can be written.

    Refused are --json beside another destination, stdout without a format, and binary data on a
    terminal. Raises OutputError for a figure that cannot be drawn.
    """
    if file.as_json and (destination.path is not None or destination.file_format != "json"):
        raise UsageError(
            "--json prints a document: leave -o and --format out, or write -o FILE.json",
        )
    if not destination.file_format:
        raise UsageError(f"-o - needs --format, one of {', '.join(FORMATS)}")
    if destination.path is None and destination.file_format in BINARY and sys.stdout.isatty():
        advice = "name a file with -o, or redirect stdout"
        raise UsageError(f"a {destination.file_format} is nothing for a terminal: {advice}")
    require_formats([destination.file_format])


def require_formats(formats: Sequence[str]) -> None:
    """Raise OutputError if figures are among some formats, and cannot be drawn."""
    if set(formats) & set(FIGURES):
        require_packages("a figure", "matplotlib", error=OutputError)


def require_format(
    destination: Destination | None,
    formats: Sequence[str],
    what: str,
) -> None:
    """Raise UsageError unless a destination has one of some formats, or is the screen (None).

    what: words for what is written, for the error.
    """
    if destination and destination.file_format not in formats:
        known = ", ".join(f".{file_format}" for file_format in formats)
        raise UsageError(f"{what} is written as {known}, not .{destination.file_format}")


def require_figure_effect(destination: Destination | None, figure: FigureOptions) -> None:
    """Raise UsageError for options of figures or pages if something else is written.

    figure: the options, with the names of those that stand on the command line.
    """
    file_format = destination.file_format if destination else None
    for name in FIGURE_FLAGS:
        if name in figure.given and file_format not in FIGURES:
            raise UsageError(f"--{name} is for figures: -o FILE.png, .svg or .pdf")
    if figure.exact and file_format != "html":
        raise UsageError("--exact is for pages: -o FILE.html; data are exact as they are")


# What is delivered


def make_capture_answer(
    capture: Capture,
    options: PictureOptions,
    file_format: str | None,
) -> Answer:
    """Make the answer of a command whose result is a capture: what is needed to draw or write it.

    options: what is drawn of the capture. file_format: the format of the file to write; None for
    the screen. Only what this format needs is made: data, a page, or pictures.

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
    """Return a page of all maps of a capture, with the title of the user if there is one.

    Raises InputError if there is nothing to draw.
    """
    from attnviz.views import make_capture_page

    require_cells(capture)
    page = make_capture_page(capture, make_look(options.look))
    return page if options.title is None else replace(page, title=options.title)


def encode_capture(capture: Capture, file_format: str) -> bytes:
    """Return the bytes of a capture as ``json``, ``csv`` or ``npz``.

    Raises UsageError for a capture that the format cannot hold.
    """
    if file_format == "csv":
        from attnviz.io.csv_table import format_csv

        return format_csv(capture)
    from attnviz.io.formats import WRITERS

    return b"".join(WRITERS[f".{file_format}"](capture))


def make_result_answer(
    result: Result,
    title: str | None = None,
    *,
    pictures: Sequence[Picture] | None = None,
    markdown: Sequence[Picture] | None = None,
    page: Page | None = None,
) -> Answer:
    """Make the answer of a command whose result is numbers: what is needed to draw or write it.

    title: the user's own, which replaces that of the first picture and of the page. pictures: what
    is drawn; None for the tables of the result. markdown: what is written to Markdown, if that is
    not the pictures. page: what is written to HTML, if that is not the pictures.
    """

    def write_data(file_format: str) -> Content:
        if file_format == "json":
            return Content(format_document_json(result.to_dict()))
        return Content(format_rows_csv(result.rows()))

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
    """Draw an answer on the screen, or write it to a file or stdout.

    answer: what a command found. destination: the file, or stdout; None for the screen. options:
    those of figures, and of what is told on stderr. cmap: the name of the colours. Raises
    AttnvizError.
    """
    if destination is None:
        print_pictures(answer.pictures, screen)
        return
    name = shorten_name(str(destination.path or destination.file_format))
    with begin_step(f"drawing {name}"):
        content = make_content(answer, destination.file_format, options.figure, cmap)
    write_content(content, destination, options.talk)


def make_content(
    answer: Answer,
    file_format: str,
    figure: FigureOptions,
    cmap: str = "viridis",
) -> Content:
    """Make the content of the file of an answer in a format, such as ``pdf`` or ``csv``.

    figure: the options of figures and pages. cmap: the name of their colours. Raises UsageError for
    an answer that the format cannot hold.
    """
    if file_format in FIGURES:
        return make_figure(answer, file_format, figure, cmap)
    if file_format == "html":
        return make_html(answer, figure, cmap)
    if file_format == "md":
        from attnviz.render.markdown import render_markdown

        pictures = answer.pictures if answer.markdown is None else answer.markdown
        return Content(render_markdown(pictures).encode())
    return answer.data(file_format)


def make_figure(
    answer: Answer,
    file_format: str,
    options: FigureOptions,
    cmap: str,
) -> Content:
    """Make a figure of the pictures of an answer, below each other.

    file_format: ``png``, ``svg`` or ``pdf``. cmap: the name of the colours. Raises UsageError for
    several pictures if the answer allows only one in a figure.
    """
    from attnviz.render.figure.figure import FigureStyle, render_figure

    first, *others = answer.pictures
    if others and answer.one_picture:
        count = len(answer.pictures)
        advice = "choose one head, --map, or --view grid"
        raise UsageError(f"a .{file_format} holds one picture, not {count}: {advice}")
    style = FigureStyle(
        options.style,
        inches=options.inches,
        colours=cmap,
        dpi=options.dpi,
        transparent=options.transparent,
    )
    return Content(*render_figure(first, file_format, style, others))


def make_html(answer: Answer, options: FigureOptions, cmap: str) -> Content:
    """Make an HTML file of an answer: its page if it has one, else a document of its pictures.

    cmap: the name of the colours. Raises UsageError for --exact where there is no page.
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
    """Write content to a file or to stdout, and its notes to stderr. Raises OutputError."""
    if destination.path is None:
        write_stdout(content.data)
    else:
        with begin_step(f"writing {destination.path.name}"):
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
