"""`attnviz export`: a folder with every picture of a capture, and a page to leaf through them."""

import os
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

import click
from click.core import ParameterSource

from attnviz.cli import text as text_input
from attnviz.cli.options import (
    FIGURES,
    CaptureOptions,
    FigureOptions,
    LookOptions,
    ViewOptions,
    capture_options,
    figure_options,
    look_options,
    model_options,
    reading_options,
    reduced_numbers_options,
    selection_options,
    source_options,
    talk_options,
    text_argument,
)
from attnviz.cli.output import FIGURE_FLAGS, Content
from attnviz.cli.parameters import ParsedType, SectionedCommand
from attnviz.cli.picture import PictureOptions
from attnviz.cli.report import Part, Report, parse_formats
from attnviz.cli.sources import open_file, open_model
from attnviz.cli.talk import Talk
from attnviz.errors import OutputError, UsageError
from attnviz.escape import escape
from attnviz.io.files import (
    decode_utf8,
    require_regular,
    require_writable,
    write_folder,
    write_whole,
)
from attnviz.methods import SUM
from attnviz.render.html.gallery import GalleryEntry, render_gallery_html, render_gallery_markdown
from attnviz.selection import HeadNames

File: TypeAlias = tuple[Part, str, Path]
"""A part, one of its formats, and where it goes."""
INDEX, TABLE, KEPT_TEXT = "index.html", "index.md", "text.txt"
FRONT_FILES = INDEX, TABLE, KEPT_TEXT
OF_THE_REPORT = {"output", "force", "quiet", "debug"}  # which no content depends on
OF_PARTS = {"formats", "layers", "heads"}  # which each part says for itself
PAGE_FLAGS = ("exact",)
LONGEST_ARGUMENT = 300  # characters of a text that stands in a command


@click.command(cls=SectionedCommand)
@text_argument
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder.")
@click.option(
    "--formats",
    "formats",
    type=ParsedType("A,B", parse_formats),
    default="png,html",
    show_default=True,
    help="Of png, svg, pdf, html, json, csv, npz, md.",
)
@click.option("--force", is_flag=True, help="Write anew what is there.")
@selection_options
@reduced_numbers_options
@look_options
@source_options
@reading_options
@model_options
@figure_options
@talk_options
@capture_options
def command(
    text: str | None,
    output: Path,
    formats: tuple[str, ...],
    force: bool,
    captures: CaptureOptions,
    look: LookOptions,
    figure: FigureOptions,
    talk: Talk,
) -> None:
    """Write a report: a figure of every layer and head, a page, data, and a gallery of them.

    TEXT may be - for stdin, @FILE or @sample:NAME. index.html shows the pictures, index.md the
    command that makes each of them again. What is there already is kept, so that an interrupted
    report goes on where it was.

    \b
    Examples:
      attnviz export "The cat sat on the mat." -o report
      attnviz export @sample:repeat -H L1H3 --formats pdf --style paper -o fig
      attnviz export --from run.attn --formats png,html,json -l -1 -o last
    """
    require_reducible(captures)
    words = dict(list_written_options())
    require_formats_effect(words, formats)
    require_folder(output)
    if captures.source.path is None:
        content = text_input.read_argument(text, talk)
        source, said = open_model(content, captures, talk), RepeatedText.of(text, content)
    else:
        source, said = open_file(text, captures), RepeatedText((), None)
    report = Report(source, PictureOptions(captures, ViewOptions(), look), figure, formats)
    write_report(report, output, words, said, talk, force=force)


def write_report(
    report: Report,
    folder: Path,
    words: Mapping[str, tuple[str, ...]],
    said: "RepeatedText",
    talk: Talk,
    *,
    force: bool,
) -> None:
    """Write the files of a report that are missing, or all of them with force.

    words: the options that say what the files hold, as they are written. Raises OutputError.
    """
    parts = list(report.list_parts())
    arguments = [*chain(*words.values()), *said.argument]
    digest = report.digest(shlex.join(arguments))
    entries = list_entries(report, parts, words, said, folder)
    require_same_report(folder, digest, force)
    files = list_report_files(parts, folder)
    missing = [file for file in files if force or not file[2].exists()]
    front_paths = [folder / name for name in FRONT_FILES]
    for path in (*(path for _, _, path in missing), *front_paths):
        require_regular(path)
    contents = make_one_of_each_format(report, missing)
    front = {
        INDEX: render_gallery_html(report.title, digest, entries),
        TABLE: render_gallery_markdown(report.title, entries),
    }
    if said.kept is not None:
        front[KEPT_TEXT] = f"{said.kept}\n".encode()
    write_folder(folder, front)
    write_parts(report, missing, contents, talk)
    talk.note(describe_written(len(missing), len(files), folder))


def require_reducible(captures: CaptureOptions) -> None:
    """Raise UsageError where heads of several layers would be added up."""
    names_heads = isinstance(captures.selection.heads, HeadNames)
    if names_heads and captures.numbers.reduction == SUM:
        raise UsageError("--reduce sum adds heads of every layer: choose them by number, as -H 0,3")


def list_entries(
    report: Report,
    parts: Sequence[Part],
    words: Mapping[str, tuple[str, ...]],
    said: "RepeatedText",
    folder: Path,
) -> list[GalleryEntry]:
    """List the entries of the gallery: each part with its files and the commands that make them."""
    shared_words = {name: each for name, each in words.items() if name not in OF_PARTS}
    entries = []
    for part in parts:
        title, caption = report.describe(part)
        commands = write_commands(part, shared_words, said, folder)
        entries.append(GalleryEntry(title, caption, part.files, commands))
    return entries


def list_report_files(parts: Sequence[Part], folder: Path) -> list[File]:
    """List the files of all parts."""
    files: list[File] = []
    for part in parts:
        for file_format, name in zip(part.formats, part.files, strict=True):
            files.append((part, file_format, folder / name))
    return files


def describe_written(written: int, files: int, folder: Path) -> str:
    """Say how many files were written, and where to look."""
    plural = "" if written == 1 else "s"
    kept = files - written
    there = f", {kept} were there" if kept else ""
    return f"wrote {written} file{plural}{there}; look at {folder / INDEX}"


class RepeatedText(NamedTuple):
    """The text of a command that is to be given again."""

    argument: tuple[str, ...]
    kept: str | None
    """What must be kept in a file for it, to be read from stdin."""

    @classmethod
    def of(cls, text: str | None, content: str) -> "RepeatedText":
        """Return the name of a file or sample as it was, and any other text itself.

        A text that is long, or of several lines, is kept in a file and read from stdin.
        """
        if text is not None and text.startswith("@") and not text.startswith("@@"):
            return cls((text,), None)
        plain = len(content) <= LONGEST_ARGUMENT and escape(content) == content and content != "-"
        if plain or decode_utf8(f"{content}\n".encode(), KEPT_TEXT) != content:
            return cls((f"@{content}" if content.startswith("@") else content,), None)
        return cls(("-",), content)


def list_written_options() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the options that say what the files hold, by name, each as it is written."""
    context = click.get_current_context()
    for option in context.command.params:
        name, flag = option.name or "", option.opts[-1]
        is_given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if not isinstance(option, click.Option) or not is_given or name in OF_THE_REPORT:
            continue
        yield name, (flag,) if option.is_flag else (flag, str(context.params[name]))


def require_formats_effect(given: Container[str], formats: Sequence[str]) -> None:
    """Raise UsageError for options that would have no effect on any of the formats."""
    for names, wanted in ((FIGURE_FLAGS, FIGURES), (PAGE_FLAGS, ("html",))):
        for name in names:
            if name in given and not set(wanted) & set(formats):
                raise UsageError(
                    f"--{name} has no effect without {' or '.join(wanted)} in --formats",
                )


def require_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, before anything is computed.

    Raises OutputError.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a report needs a folder")
    require_writable(folder)


def require_same_report(folder: Path, digest: str, force: bool) -> None:
    """Raise OutputError if a folder holds anything but this very report.

    force: what is there may be replaced.
    """
    index = folder / INDEX
    if force or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not index.is_file() or digest.encode() not in index.read_bytes():
        raise OutputError(
            f"{folder} holds something else than this report; choose another folder or add --force",
        )


def write_commands(
    part: Part,
    words: Mapping[str, tuple[str, ...]],
    said: RepeatedText,
    folder: Path,
) -> tuple[str, ...]:
    """Write the commands that make the files of a part, without what has no effect on one."""
    needs_dashes = any(text.startswith("-") and text != "-" for text in said.argument)
    dashes = ("--",) if needs_dashes else ()
    stdin = "" if said.kept is None else f" < {quote_word(str(folder / KEPT_TEXT))}"
    commands = []
    for file_format, name in zip(part.formats, part.files, strict=True):
        useless = set() if file_format in FIGURES else set(FIGURE_FLAGS)
        if file_format != "html":
            useless |= set(PAGE_FLAGS)
        options = [each for option, each in words.items() if option not in useless]
        command = ["attnviz", "show", *chain(*options), *part.arguments, "-o", name]
        command += [*dashes, *said.argument]
        commands.append(" ".join(map(quote_word, command)) + stdin)
    return tuple(commands)


def quote_word(word: str) -> str:
    """Quote a word for a shell.

    A word that could steer a terminal becomes an escape sequence, which bash and zsh read.
    """
    if escape(word) == word:
        return shlex.quote(word)
    characters = []
    for character in word:
        is_plain = escape(character) == character and character not in "\\'"
        characters.append(character if is_plain else escape_bytes(character))
    return f"$'{''.join(characters)}'"


def escape_bytes(character: str) -> str:
    """Return the bytes of a character as escape sequences of a shell."""
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def make_one_of_each_format(report: Report, missing: Sequence[File]) -> dict[Path, Content]:
    """Make the first file of each format, so that what cannot be made is refused in time."""
    first = {file_format: (part, path) for part, file_format, path in reversed(missing)}
    return {path: report.make(part, file_format) for file_format, (part, path) in first.items()}


def write_parts(
    report: Report,
    missing: Sequence[File],
    contents: dict[Path, Content],
    talk: Talk,
) -> None:
    """Write files with a progress bar on a terminal, and tell their notes.

    contents: of those that are made already.
    """
    notes: dict[str, None] = {}
    for part, file_format, path in show_progress(missing, talk):
        content = contents.pop(path, None) or report.make(part, file_format)
        write_whole(path, content.data)
        notes |= dict.fromkeys(content.notes)
    for line in notes:
        talk.note(line)


def show_progress(files: Sequence[File], talk: Talk) -> Iterable[File]:
    """Yield the files, with a progress bar on a terminal."""
    if not talk.shows_progress:
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, "drawing", console=Console(stderr=True))
