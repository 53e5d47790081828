"""`attnviz export`: a folder with every picture of a capture, and a page to leaf through them."""

import os
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
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
from attnviz.cli.output import FIGURE_FLAGS, Content, require_formats
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
from attnviz.progress import count_steps
from attnviz.render.html.gallery import (
    GalleryEntry,
    render_gallery_html,
    render_gallery_markdown,
)
from attnviz.selection import HeadNames

File: TypeAlias = tuple[Part, str, Path]
"""A part of a report, one of its formats, and the path of its file."""
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
    options = dict(list_written_options())
    require_formats_effect(options, formats)
    require_formats(formats)
    require_folder(output)
    if captures.source.path is None:
        content = text_input.read_argument(text, talk)
        source = open_model(content, captures, talk)
        written_text = WrittenText.of(text, content)
    else:
        source = open_file(text, captures)
        written_text = WrittenText((), None)
    report = Report(source, PictureOptions(captures, ViewOptions(), look), figure, formats)
    write_report(report, output, options, written_text, talk, force=force)


def write_report(
    report: Report,
    folder: Path,
    options: Mapping[str, tuple[str, ...]],
    written_text: "WrittenText",
    talk: Talk,
    *,
    force: bool,
) -> None:
    """Write the files of a report that are missing in a folder, and the pages that list all.

    options: the options of the command that change what the files hold; of each, the words that
    stand for it on the command line. written_text: the text of the command, as it is written there.
    force: write all files anew.

    Raises OutputError for a folder that holds something else, or that cannot be written.
    """
    parts = list(report.list_parts())
    arguments = [*chain(*options.values()), *written_text.arguments]
    digest = report.digest(shlex.join(arguments))
    entries = list_entries(report, parts, options, written_text, folder)
    require_same_report(folder, digest, force)
    files = list_report_files(parts, folder)
    missing = [file for file in files if force or not file[2].exists()]  # 2: its path
    missing_paths = [path for _, _, path in missing]
    front_paths = [folder / name for name in FRONT_FILES]
    for path in (*missing_paths, *front_paths):
        require_regular(path)
    contents = make_one_of_each_format(report, missing)
    front = {
        INDEX: render_gallery_html(report.title, digest, entries),
        TABLE: render_gallery_markdown(report.title, entries),
    }
    if written_text.stdin is not None:
        front[KEPT_TEXT] = f"{written_text.stdin}\n".encode()
    write_folder(folder, front)
    write_parts(report, missing, contents, talk)
    talk.note(describe_written(len(missing), len(files), folder))


def require_reducible(captures: CaptureOptions) -> None:
    """Raise UsageError for ``--reduce sum`` of heads that are named with their layers.

    It adds up the heads of one layer, and such heads may be of several.
    """
    names_heads = isinstance(captures.selection.heads, HeadNames)
    if names_heads and captures.numbers.reduction == SUM:
        raise UsageError("--reduce sum adds heads of every layer: choose them by number, as -H 0,3")


def list_entries(
    report: Report,
    parts: Sequence[Part],
    options: Mapping[str, tuple[str, ...]],
    written_text: "WrittenText",
    folder: Path,
) -> list[GalleryEntry]:
    """List the entries of the gallery: each part with its files and the commands that make them.

    options: of each option, by its name, the words that stand for it on the command line.
    """
    shared_options = {name: words for name, words in options.items() if name not in OF_PARTS}
    entries = []
    for part in parts:
        title, caption = report.describe(part)
        commands = write_commands(part, shared_options, written_text, folder)
        entries.append(GalleryEntry(title, caption, part.files, commands))
    return entries


def list_report_files(parts: Sequence[Part], folder: Path) -> list[File]:
    """List the files of all parts, each as its part, its format and its path in a folder."""
    files: list[File] = []
    for part in parts:
        for file_format, name in zip(part.formats, part.files, strict=True):
            files.append((part, file_format, folder / name))
    return files


def describe_written(written: int, files: int, folder: Path) -> str:
    """Say how many files of a report were written, how many were kept, and where to look.

    written: the number of files that were written. files: the number of all files.
    """
    plural = "" if written == 1 else "s"
    kept = files - written
    there = f", {kept} were there" if kept else ""
    return f"wrote {written} file{plural}{there}; look at {folder / INDEX}"


class WrittenText(NamedTuple):
    """The text of a command, as it is written in a command that reads it again."""

    arguments: tuple[str, ...]
    """One argument; empty where a capture is read in place of a text."""
    stdin: str | None
    """The text to keep in a file and read from stdin, where the argument says so."""

    @classmethod
    def of(cls, text: str | None, content: str) -> "WrittenText":
        """Choose how a text is written in a command that reads it again.

        The name of a file or sample stays as it is. Any other text is written out, unless it is
        long or has several lines: then it is read from stdin.

        text: the argument, None for none. content: the text that it stands for.
        """
        if text is not None and text.startswith("@") and not text.startswith("@@"):
            return cls((text,), None)
        is_plain = (
            len(content) <= LONGEST_ARGUMENT and escape(content) == content and content != "-"
        )
        if is_plain or decode_utf8(f"{content}\n".encode(), KEPT_TEXT) != content:
            argument = f"@{content}" if content.startswith("@") else content
            return cls((argument,), None)
        return cls(("-",), content)


def list_written_options() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the options of the running command that change what the files of a report hold.

    Each is its name and the words that stand for it on the command line. Options that were not
    given are left out.
    """
    context = click.get_current_context()
    for option in context.command.params:
        name, flag = option.name or "", option.opts[-1]
        is_given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if not isinstance(option, click.Option) or not is_given or name in OF_THE_REPORT:
            continue
        if option.is_flag:
            yield name, (flag,)
        else:
            yield name, (flag, str(context.params[name]))


def require_formats_effect(given: Container[str], formats: Sequence[str]) -> None:
    """Raise UsageError for options that have no effect on any of the formats that are written.

    given: the names of the options that stand on the command line.
    """
    for names, obeying_formats in ((FIGURE_FLAGS, FIGURES), (PAGE_FLAGS, ("html",))):
        for name in names:
            if name in given and not set(obeying_formats) & set(formats):
                needed = " or ".join(obeying_formats)
                raise UsageError(f"--{name} has no effect without {needed} in --formats")


def require_folder(folder: Path) -> None:
    """Raise OutputError for a folder that could not be written, before anything is computed."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a report needs a folder")
    require_writable(folder)


def require_same_report(folder: Path, digest: str, force: bool) -> None:
    """Raise OutputError if a folder holds anything else than an earlier state of this report.

    digest: a hash of the command that makes the report and of the numbers in it; the index of a
    report contains its own. force: do not check, since the user lets any file be replaced.
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
    options: Mapping[str, tuple[str, ...]],
    written_text: WrittenText,
    folder: Path,
) -> tuple[str, ...]:
    """Write the commands that make the files of a part of a report, one command for each file.

    options: of each option, by its name, the words that stand for it on the command line; those
    without effect on a file are left out of its command. folder: that of the report, where a text
    for stdin is kept.
    """
    looks_like_option = any(text.startswith("-") and text != "-" for text in written_text.arguments)
    dashes = ("--",) if looks_like_option else ()
    stdin = "" if written_text.stdin is None else f" < {quote_word(str(folder / KEPT_TEXT))}"
    commands = []
    for file_format, name in zip(part.formats, part.files, strict=True):
        useless = set() if file_format in FIGURES else set(FIGURE_FLAGS)
        if file_format != "html":
            useless |= set(PAGE_FLAGS)
        useful = [words for option, words in options.items() if option not in useless]
        command = ["attnviz", "show", *chain(*useful), *part.arguments, "-o", name]
        command += [*dashes, *written_text.arguments]
        commands.append(" ".join(map(quote_word, command)) + stdin)
    return tuple(commands)


def quote_word(word: str) -> str:
    """Quote a word of a command for a shell.

    If the word holds characters that could steer a terminal, it is written as ``$'...'``, with
    these characters as escape sequences, which bash and zsh read.
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
    """Make the content of the first missing file of each format, before anything is written.

    So a format that cannot be made is refused in time. Returns the contents by their paths.
    """
    first = {file_format: (part, path) for part, file_format, path in reversed(missing)}
    contents = {}
    for file_format, (part, path) in count_steps(first.items(), "drawing", "format"):
        contents[path] = report.make_file(part, file_format)
    return contents


def write_parts(
    report: Report,
    missing: Sequence[File],
    contents: dict[Path, Content],
    talk: Talk,
) -> None:
    """Write the missing files of a report.

    contents: those that are made already, by path; they are removed as they are written. The notes
    of all files are printed on stderr at the end, each once.
    """
    notes: dict[str, None] = {}
    for part, file_format, path in count_steps(missing, "drawing", "file"):
        content = contents.pop(path, None) or report.make_file(part, file_format)
        write_whole(path, content.data)
        notes |= dict.fromkeys(content.notes)
    for line in notes:
        talk.note(line)
