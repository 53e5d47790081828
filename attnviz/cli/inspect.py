"""`attnviz inspect`."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import click

from attnviz import selection
from attnviz.analysis.measures import COLUMNS
from attnviz.cli import text as text_input
from attnviz.cli.answers import as_json, deliver, target_of
from attnviz.cli.options import (
    TOP,
    Sectioned,
    SelectionType,
    lines_option,
    map_option,
    model_options,
    note,
    prompt_options,
    result_options,
    selection_options,
    source_option,
    target_option,
    texts_argument,
    title_option,
    together,
    verbose_option,
    weights_option,
    words_option,
)
from attnviz.cli.picture import Options
from attnviz.cli.questions import MODES, NO_SHARES, Asked, columns, given, measured
from attnviz.cli.screen import screen
from attnviz.cli.sources import Source, loaded, prompt, reader, weighed, worded
from attnviz.errors import UsageError
from attnviz.record import SCORES
from attnviz.results.inspection import BY_PLACE
from attnviz.selection import Named

inspect_options = together(
    "View",
    click.option(
        "--sort",
        type=click.Choice([*COLUMNS, BY_PLACE]),
        default="entropy",
        show_default=True,
        metavar="COLUMN",
        help="Order of the heads; see --explain-columns. head: by layer and head.",
    ),
    click.option("--reverse", is_flag=True, help="The other way round."),
    click.option("--top", type=TOP, help="Rows. Default: as many as the screen has."),
    click.option(
        "--token", type=SelectionType("N or WORD", selection.parse_token), help="What it gives to others, and gets."
    ),
    click.option(
        "--query", type=SelectionType("N or WORD", selection.parse_token), help="With --key: one cell in all heads."
    ),
    click.option("--key", type=SelectionType("N or WORD", selection.parse_token), help="The key of that cell."),
    click.option(
        "--segments", metavar="FILE", help="What parts of the text get: START:END NAME a line, JSON, or auto."
    ),
    click.option(
        "--explain-columns", "explain", is_flag=True, help="Say what the columns are, and where they are from."
    ),
)


@click.command(cls=Sectioned)
@texts_argument
@selection_options
@map_option
@weights_option
@target_option
@inspect_options
@title_option
@source_option
@words_option
@lines_option
@prompt_options
@model_options
@verbose_option
@result_options
def command(texts: tuple[str, ...], verbose: bool, quiet: bool, explain: bool, **options: Any) -> None:
    """Measure what each head does with a text: how widely, how far, and where to it attends.

    TEXT may be - for stdin, @FILE or @sample:NAME; of several, means and standard deviations are shown. A row is a
    head; --explain-columns says what the columns are. --token shows what one token gives and gets in all heads, --query
    with --key one cell, --segments the parts of a text. Everything is in --json and -o FILE.csv.

    \b
    Examples:
      attnviz inspect "The cat sat on the mat because it was tired."
      attnviz inspect @sample:repeat --sort previous --top all
      attnviz inspect "The cat sat because it was tired." --token it
      attnviz inspect "The cat sat because it was tired." --query it --key cat
      attnviz inspect "The cat sat because it was tired." --weights norm
      attnviz inspect @sample:question --segments auto --query -1
      attnviz inspect @sample:pronoun @sample:repeat -l 1,2 -o heads.csv
      attnviz inspect --explain-columns
    """
    if explain:
        told = as_json({"columns": columns()}).decode() if options["as_json"] else "\n".join((*explained(), ""))
        click.echo(told, nl=False)
        return
    check(options)
    on = screen(options["width"], options["color"], full=options["full"])
    to = target_of(options)
    found = opened(texts, options, quiet)
    mode = next((name for name in MODES if options[name] is not None), None)
    if mode is not None and len(found) > 1:
        raise UsageError(f"--{mode} is about one text, and here are {len(found)}")
    asked = Asked(options, on, to is not None, verbose, quiet)
    deliver(MODES[mode](found[0], asked) if mode else measured(found, asked), to, on, options, quiet)
    if to is None and mode is None:
        note("see more: --explain-columns, --sort, --token; all heads: --top all, -o FILE.csv", quiet)


def check(options: Options) -> None:
    """Refuse options that contradict each other. Raises UsageError."""
    told = [f"--{name}" for name in ("token", "key", "segments") if options[name] is not None]
    if len(told) > 1:
        raise UsageError(f"{told[0]} and {told[1]} are two questions: ask one at a time")
    if options["query"] is not None and options["key"] is None and options["segments"] is None:
        raise UsageError("--query needs --key, or --segments: each is a number or a word")
    if options["key"] is not None and options["query"] is None:
        raise UsageError("--key needs --query: a number or a word")
    unused = {"sort", "reverse"} if told else set()
    unused |= {"top"} if options["key"] is not None or options["segments"] is not None else set()
    for name in sorted(unused & given()):
        raise UsageError(f"--{name} has no effect with {told[0]}: leave it out")
    if options["method"] == SCORES and options["token"] is None and options["key"] is None:
        raise UsageError(NO_SHARES)
    if isinstance(options["heads"], Named) and options["layers"] is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")


def opened(texts: Sequence[str], options: Options, quiet: bool) -> list[Source]:
    """What captures are taken from: the file that --from names, or each text, with a model that is loaded once."""
    if options["source"] is not None:
        if options["lines"]:
            raise UsageError("--from reads a capture that was made before: leave --lines out")
        return [worded(reader(texts[0] if texts else None, options), options)]
    contents = text_input.read_all(texts, options["lines"], quiet)
    model = loaded(options, quiet)

    def source(content: str) -> Source:
        return weighed(lambda request: model.capture(prompt(content, options), request), options)

    return [worded(source(content), options) for content in contents]


def explained() -> list[str]:
    """Lines on each column: its heading and name, what it is, and who says so."""
    return [
        line
        for column in COLUMNS.values()
        for line in wrap(
            f"{column.heading:4}  {column.name}{'' if column.unit == 'share' else f' ({column.unit})'}: "
            f"{column.definition} [{column.source}]",
            80,
            subsequent_indent=" " * 6,
        )
    ]
