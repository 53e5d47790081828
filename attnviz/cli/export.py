"""`attnviz export`: a folder with every picture of a capture, in several formats, and a page to leaf through them."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    text_argument,
)
from attnviz.cli.output import OF_FIGURES
from attnviz.cli.report import Part, Report, split
from attnviz.cli.take import reader, running
from attnviz.errors import OutputError, UsageError
from attnviz.files import require_writable, write_folder, write_whole
from attnviz.render.gallery import Entry, gallery_html, gallery_md
from attnviz.selection import Named

File: TypeAlias = tuple[Part, str, Path]  # with its format and where it goes
INDEX, KEPT = "index.html", "text.txt"
UNREPEATED = {"text", "output", "forms", "force", "layers", "heads", "how", "kind", "quiet", "debug"}  # the parts say
OF_PAGES = ("exact",)
SHORT = 300  # characters of a text that stands in a command
UNUSED = {"view": None, "token": None, "incoming": False, "rows": None, "columns": None, "full": False}  # of show


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
@look_options
@source_option
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
    require_folder(output)
    if options["source"] is None:
        content = text_input.read(text, quiet)
        source, said = running(content, options, quiet), Said.of(text, content)
    else:
        source, said = reader(text, options["source"]), Said((), None)
    report = Report(source, {**options, **UNUSED}, forms)
    parts, base = list(report.parts()), repeated()
    entries = [Entry(*report.told(part), part.files, commands(part, base, said)) for part in parts]
    digest = report.digest(shlex.join((*base, *said.argument)))
    require_same(output, digest, force)
    front = {INDEX: gallery_html(report.title, digest, entries), "index.md": gallery_md(report.title, entries)}
    write_folder(output, front | ({KEPT: said.kept.encode()} if said.kept is not None else {}))
    write_parts(report, parts, output, force=force, quiet=quiet)


class Said(NamedTuple):
    """The text of a command that is to be given again."""

    argument: tuple[str, ...]
    kept: str | None
    """What must be kept in a file for it, to be read from stdin."""

    @classmethod
    def of(cls, text: str | None, content: str) -> "Said":
        """The argument as it was; what came from elsewhere in its place, if it is short."""
        if text is not None and text != "-":
            return cls((text,), None)
        if len(content) > SHORT or "\n" in content or content == "-":
            return cls(("-",), content)
        return cls((f"@{content}" if content.startswith("@") else content,), None)


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


def repeated() -> tuple[str, ...]:
    """The options of the report that each of its commands is to be given again, as they are written."""
    context = click.get_current_context()
    told: list[str] = []
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        if isinstance(option, click.Option) and given and option.name not in UNREPEATED:
            told += [option.opts[-1]] if option.is_flag else [option.opts[-1], str(context.params[option.name or ""])]
    return tuple(told)


def commands(part: Part, base: Sequence[str], said: Said) -> tuple[str, ...]:
    """The commands that write the files of a part, without what has no effect on one."""
    stdin = f" < {KEPT}" if said.kept is not None else ""
    found = []
    for form, name in zip(part.forms, part.files, strict=True):
        useless = (() if form in FIGURES else OF_FIGURES) + (() if form == "html" else OF_PAGES)
        options = (*without(base, useless), *part.arguments, "-o", name)
        dashes = ("--",) if said.argument and said.argument[0].startswith("-") and said.kept is None else ()
        found.append(shlex.join(("attnviz", "show", *options, *dashes, *said.argument)) + stdin)
    return tuple(found)


def without(options: Sequence[str], useless: Sequence[str]) -> Iterator[str]:
    """Options as they are written, some of them left out with their values."""
    skipping = False
    for option in options:
        if option.startswith("--"):
            skipping = option.removeprefix("--") in useless
        if not skipping:
            yield option


def write_parts(report: Report, parts: Sequence[Part], folder: Path, *, force: bool, quiet: bool) -> None:
    """Write the files that are not there yet, with a progress bar on a terminal, and say what was done."""
    files = [(part, form, folder / name) for part in parts for form, name in zip(part.forms, part.files, strict=True)]
    missing = [file for file in files if force or not file[2].exists()]
    told: dict[str, None] = {}
    for part, form, path in progress(missing, quiet):
        made = report.make(part, form)
        write_whole(path, made.data)
        told |= dict.fromkeys(made.notes)
    for line in told:
        note(line, quiet)
    there = f", {len(files) - len(missing)} were there" if len(missing) < len(files) else ""
    note(f"wrote {len(missing)} file{'s' * (len(missing) != 1)}{there}; look at {folder / INDEX}", quiet)


def progress(files: Sequence[File], quiet: bool) -> Iterable[File]:
    """The same, with a progress bar on a terminal."""
    if quiet or not sys.stderr.isatty():
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, "drawing", console=Console(stderr=True))
