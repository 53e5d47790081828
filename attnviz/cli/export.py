"""`attnviz export`: a folder with every picture of a capture, in several formats, and a page to leaf through them."""

import os
import shlex
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
from click.core import ParameterSource

from attnviz.cli import text as text_input
from attnviz.cli.options import (
    FIGURES,
    Sectioned,
    SelectionType,
    figure_options,
    look_options,
    map_option,
    model_options,
    note,
    prompt_options,
    reduce_option,
    selection_options,
    source_option,
    talk_options,
    target_option,
    text_argument,
    weights_option,
    words_option,
)
from attnviz.cli.output import OF_FIGURES, Made
from attnviz.cli.report import Part, Report, split
from attnviz.cli.sources import reader, running, worded
from attnviz.errors import OutputError, UsageError
from attnviz.escape import escape
from attnviz.io.files import decode, require_regular, require_writable, write_folder, write_whole
from attnviz.methods import SUM
from attnviz.render.html.gallery import Entry, gallery_html, gallery_md
from attnviz.selection import Named

File: TypeAlias = tuple[Part, str, Path]  # with its format and where it goes
FRONT = INDEX, TABLE, KEPT = "index.html", "index.md", "text.txt"
OF_THE_REPORT = {"output", "force", "quiet", "debug"}  # which no content depends on
OF_PARTS = {"forms", "layers", "heads"}  # which each part says for itself
OF_PAGES = ("exact",)
SHORT = 300  # characters of a text that stands in a command
UNUSED = {"view": None, "token": None, "incoming": False, "rows": None, "columns": None, "full": False, "title": None}


@click.command(cls=Sectioned)
@text_argument
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder.")
@click.option(
    "--formats",
    "forms",
    type=SelectionType("A,B", split),
    default="png,html",
    show_default=True,
    help="Of png, svg, pdf, html, json, csv, npz, md.",
)
@click.option("--force", is_flag=True, help="Write anew what is there.")
@selection_options
@reduce_option
@map_option
@weights_option
@target_option
@look_options
@source_option
@words_option
@prompt_options
@model_options
@figure_options
@talk_options
def command(text: str | None, output: Path, forms: tuple[str, ...], force: bool, quiet: bool, **options: Any) -> None:
    """Write a report: a figure of every layer and head, a page, data, and a gallery of them.

    TEXT may be - for stdin, @FILE or @sample:NAME. index.html shows the pictures, index.md the command that makes each
    of them again. What is there already is kept, so that an interrupted report goes on where it was.

    \b
    Examples:
      attnviz export "The cat sat on the mat." -o report
      attnviz export @sample:repeat -H L1H3 --formats pdf --style paper -o fig
      attnviz export --from run.attn --formats png,html,json -l -1 -o last
    """
    if isinstance(options["heads"], Named) and options["layers"] is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    if isinstance(options["heads"], Named) and options["how"] == SUM:
        raise UsageError("--reduce sum adds heads of every layer: choose them by number, as -H 0,3")
    given = dict(repeated())
    require_effect(given, forms)
    require_folder(output)
    if options["source"] is None:
        content = text_input.read(text, quiet)
        source, said = running(content, options, quiet), Said.of(text, content)
    else:
        source, said = reader(text, options), Said((), None)
    report = Report(worded(source, options), {**options, **UNUSED}, forms)
    parts = list(report.parts())
    base = {name: words for name, words in given.items() if name not in OF_PARTS}
    entries = [Entry(*report.told(part), part.files, commands(part, base, said, output)) for part in parts]
    digest = report.digest(shlex.join((*chain(*given.values()), *said.argument)))
    require_same(output, digest, force)
    files = [(part, form, output / name) for part in parts for form, name in zip(part.forms, part.files, strict=True)]
    missing = [file for file in files if force or not file[2].exists()]
    for path in (*(path for _, _, path in missing), *(output / name for name in FRONT)):
        require_regular(path)
    made = tried(report, missing)
    front = {INDEX: gallery_html(report.title, digest, entries), TABLE: gallery_md(report.title, entries)}
    write_folder(output, front | ({KEPT: f"{said.kept}\n".encode()} if said.kept is not None else {}))
    write_parts(report, missing, made, quiet=quiet)
    there = f", {len(files) - len(missing)} were there" if len(missing) < len(files) else ""
    note(f"wrote {len(missing)} file{'s' * (len(missing) != 1)}{there}; look at {output / INDEX}", quiet)


class Said(NamedTuple):
    """The text of a command that is to be given again."""

    argument: tuple[str, ...]
    kept: str | None
    """What must be kept in a file for it, to be read from stdin."""

    @classmethod
    def of(cls, text: str | None, content: str) -> "Said":
        """The name of a file or sample as it was; any other text in its place, if it is short and of one line."""
        if text is not None and text.startswith("@") and not text.startswith("@@"):
            return cls((text,), None)
        plain = len(content) <= SHORT and escape(content) == content and content != "-"
        if plain or decode(f"{content}\n".encode(), KEPT) != content:
            return cls((f"@{content}" if content.startswith("@") else content,), None)
        return cls(("-",), content)


def repeated() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The options that say what the files hold, by name, each as it is written."""
    context = click.get_current_context()
    for option in context.command.params:
        name, flag = option.name or "", option.opts[-1]
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if isinstance(option, click.Option) and given and name not in OF_THE_REPORT:
            yield name, (flag,) if option.is_flag else (flag, str(context.params[name]))


def require_effect(given: Container[str], forms: Sequence[str]) -> None:
    """Raise UsageError for options that would have no effect on any of the formats."""
    for names, wanted in ((OF_FIGURES, FIGURES), (OF_PAGES, ("html",))):
        for name in names:
            if name in given and not set(wanted) & set(forms):
                raise UsageError(f"--{name} has no effect without {' or '.join(wanted)} in --formats")


def require_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, before anything is computed. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a report needs a folder")
    require_writable(folder)


def require_same(folder: Path, digest: str, force: bool) -> None:
    """Raise OutputError if a folder holds anything but a report of the same, unless that may be replaced."""
    index = folder / INDEX
    if force or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not index.is_file() or digest.encode() not in index.read_bytes():
        raise OutputError(f"{folder} holds something else than this report; choose another folder or add --force")


def commands(part: Part, base: Mapping[str, tuple[str, ...]], said: Said, folder: Path) -> tuple[str, ...]:
    """The commands that write the files of a part, without what has no effect on one."""
    dashes = ("--",) if any(text.startswith("-") and text != "-" for text in said.argument) else ()
    stdin = f" < {quoted(str(folder / KEPT))}" if said.kept is not None else ""
    found = []
    for form, name in zip(part.forms, part.files, strict=True):
        useless = (() if form in FIGURES else OF_FIGURES) + (() if form == "html" else OF_PAGES)
        options = chain(*(words for option, words in base.items() if option not in useless), part.arguments)
        words = "attnviz", "show", *options, "-o", name, *dashes, *said.argument
        found.append(" ".join(map(quoted, words)) + stdin)
    return tuple(found)


def quoted(word: str) -> str:
    """A word for a shell; if it could steer a terminal, as an escape sequence, which bash and zsh read."""
    if escape(word) == word:
        return shlex.quote(word)
    return "$'" + "".join(char if escape(char) == char and char not in "\\'" else octal(char) for char in word) + "'"


def octal(char: str) -> str:
    """The bytes of a character as escape sequences of a shell."""
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(char))


def tried(report: Report, missing: Sequence[File]) -> dict[Path, Made]:
    """The first file of each format, made before anything is written: what cannot be is refused in time."""
    first = {form: (part, path) for part, form, path in reversed(missing)}
    return {path: report.make(part, form) for form, (part, path) in first.items()}


def write_parts(report: Report, missing: Sequence[File], made: dict[Path, Made], *, quiet: bool) -> None:
    """Write files, some of which are made already, with a progress bar on a terminal, and tell their notes."""
    told: dict[str, None] = {}
    for part, form, path in progress(missing, quiet):
        done = made.pop(path, None) or report.make(part, form)
        write_whole(path, done.data)
        told |= dict.fromkeys(done.notes)
    for line in told:
        note(line, quiet)


def progress(files: Sequence[File], quiet: bool) -> Iterable[File]:
    """The same, with a progress bar on a terminal."""
    if quiet or not sys.stderr.isatty():
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, "drawing", console=Console(stderr=True))
