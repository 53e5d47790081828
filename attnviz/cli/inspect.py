"""`attnviz inspect`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import wrap

import click

from attnviz.analysis.measures import COLUMNS, Column
from attnviz.cli import text as text_input
from attnviz.cli.options import (
    DEFAULT_ROWS,
    NOTHING_GIVEN,
    VIEW,
    CaptureOptions,
    NumbersOptions,
    ResultOptions,
    capture_options,
    lines_option,
    model_options,
    numbers_options,
    reading_options,
    selection_options,
    source_options,
    texts_argument,
    title_option,
    verbose_result_options,
)
from attnviz.cli.output import (
    Answer,
    Destination,
    choose_result_destination,
    deliver,
    make_result_answer,
)
from attnviz.cli.parameters import (
    ROW_COUNT,
    ParsedType,
    SectionedCommand,
    option_group,
    option_section,
)
from attnviz.cli.screen import open_screen
from attnviz.cli.sources import load_model_for, make_model_source, open_file
from attnviz.cli.talk import Talk
from attnviz.derived import CaptureSource
from attnviz.errors import UsageError
from attnviz.io.documents import format_document_json
from attnviz.progress import count_steps
from attnviz.record import ATTENTION, SCORES, Capture
from attnviz.render.terminal.draw import Screen
from attnviz.request import Request
from attnviz.results.inspection import (
    BY_POSITION,
    EVERY_HEAD,
    MOST_WHOLE,
    NO_SCORES,
    HeadOrder,
    describe_columns,
    inspect_heads,
)
from attnviz.results.segment_shares import inspect_segments
from attnviz.results.token_rows import inspect_cell, inspect_token
from attnviz.selection import TokenReference, parse_token

LINES_AROUND = 6  # of a screen: title, heading, mean, caption, a note, the prompt
FEWEST_ROWS = 4
WIDE = 130  # columns of a screen on which a standard deviation fits beside every mean
HELP_WIDTH = 80
TOKEN = ParsedType("N or WORD", parse_token)
SEE_MORE = "see more: --explain-columns, --sort, --token; all heads: --top all, -o FILE.csv"
KEEP_ALL = "--full keeps all weights of a long text, for all columns; -l and -H choose fewer heads"


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked of heads: their measures, or one token, one cell, or segments."""

    sort: str = HeadOrder().column
    reverse: bool = False
    top: int | None = None
    """Rows of a table; None for all, if it is given."""
    token: TokenReference | None = None
    query: TokenReference | None = None
    key: TokenReference | None = None
    segments: str | None = None
    explain: bool = False
    given: frozenset[str] = NOTHING_GIVEN

    def __post_init__(self) -> None:
        """Raise UsageError for options that contradict each other, or need another one.

        --token, --key and --segments each ask a question of its own, of which one is answered.
        """
        if self.explain:
            return
        questions = self.questions
        if len(questions) > 1:
            first, second, *_ = questions
            raise UsageError(f"--{first} and --{second} are two questions: ask one at a time")
        if self.query is not None and self.key is None and self.segments is None:
            raise UsageError("--query needs --key, or --segments: each is a number or a word")
        if self.key is not None and self.query is None:
            raise UsageError("--key needs --query: a number or a word")
        unused = self.given & self.without_effect
        if unused:
            raise UsageError(f"--{min(unused)} has no effect with --{questions[0]}: leave it out")

    @property
    def questions(self) -> list[str]:
        """The names of the options that ask about something else than all heads."""
        asked = {"token": self.token, "key": self.key, "segments": self.segments}
        return [name for name, value in asked.items() if value is not None]

    @property
    def without_effect(self) -> set[str]:
        """The names of the options that have no effect with the question that is asked."""
        if not self.questions:
            return set()
        of_all_heads = {"sort", "reverse"}
        return of_all_heads if self.token is not None else of_all_heads | {"top"}

    @property
    def shows_scores(self) -> bool:
        """True if the question is about cells, which may be scores, and not about shares."""
        return self.token is not None or self.key is not None

    @property
    def order(self) -> HeadOrder:
        """The order of the heads in their table."""
        return HeadOrder(self.sort, self.reverse)


question_options = option_group(
    "question",
    QuestionOptions,
    option_section(
        VIEW,
        click.option(
            "--sort",
            type=click.Choice([*COLUMNS, BY_POSITION]),
            default=HeadOrder().column,
            show_default=True,
            metavar="COLUMN",
            help="Order of the heads; see --explain-columns. head: by layer and head.",
        ),
        click.option("--reverse", is_flag=True, help="The other way round."),
        click.option("--top", type=ROW_COUNT, help="Rows. Default: as many as the screen has."),
        click.option("--token", type=TOKEN, help="What it gives to others, and gets."),
        click.option("--query", type=TOKEN, help="With --key: one cell in all heads."),
        click.option("--key", type=TOKEN, help="The key of that cell."),
        click.option(
            "--segments",
            metavar="FILE",
            help="What parts of the text get: START:END NAME a line, JSON, or auto.",
        ),
        click.option(
            "--explain-columns",
            "explain",
            is_flag=True,
            help="Say what the columns are, and where they are from.",
        ),
    ),
)


@click.command(cls=SectionedCommand)
@texts_argument
@selection_options
@numbers_options
@question_options
@title_option
@source_options
@lines_option
@reading_options
@model_options
@verbose_result_options
@capture_options
def command(
    texts: tuple[str, ...],
    lines: bool,
    captures: CaptureOptions,
    question: QuestionOptions,
    result: ResultOptions,
) -> None:
    """Measure what each head does with a text: how widely, how far, and where to it attends.

    TEXT may be - for stdin, @FILE or @sample:NAME; of several, means and standard deviations are
    shown. A row is a head; --explain-columns says what the columns are. --token shows what one
    token gives and gets in all heads, --query with --key one cell, --segments the parts of a text.
    Everything is in --json and -o FILE.csv.

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
    if question.explain:
        print_columns(as_json=result.file.as_json)
        return
    require_method(question, captures.numbers)
    screen = open_screen(result.screen)
    destination = choose_result_destination(result)
    sources = open_sources(texts, captures, lines, result.talk)
    inspection = Inspection(captures, question, result, screen, destination)
    if question.questions:
        source = require_single_source(sources, question)
        deliver(answer_about_text(source, inspection), destination, screen, result)
        return
    deliver(answer_about_heads(sources, inspection), destination, screen, result)
    if destination is None:
        result.talk.note(SEE_MORE)


# What is read


def require_method(question: QuestionOptions, numbers: NumbersOptions) -> None:
    """Raise UsageError for numbers that cannot answer a question: scores are no shares."""
    if numbers.method == SCORES and not question.shows_scores:
        raise UsageError(NO_SCORES)


def require_single_source(
    sources: Sequence[CaptureSource],
    question: QuestionOptions,
) -> CaptureSource:
    """Return the only source of captures. Raises UsageError if there are several.

    sources: functions that make captures, one for each text. question: the options, of which
    exactly one asks a question that is about one text.
    """
    if len(sources) > 1:
        (name,) = question.questions
        raise UsageError(f"--{name} is about one text, and here are {len(sources)}")
    return sources[0]


def open_sources(
    texts: Sequence[str],
    options: CaptureOptions,
    lines: bool,
    talk: Talk,
) -> list[CaptureSource]:
    """Return functions that make a capture of a request, one for each text.

    They run a model on the texts of the command line; with --from there is one, which reads the
    capture in that file. lines: each line of a text is a text of its own. talk: tells how exact
    each capture is, if that is asked for.

    Raises AttnvizError.
    """
    if options.source.path is not None:
        if lines:
            raise UsageError("--from reads a capture that was made before: leave --lines out")
        sources = [open_file(texts[0] if texts else None, options)]
    else:
        contents = text_input.read_arguments(texts, lines, talk)
        model = load_model_for(options, talk)
        sources = [make_model_source(model, content, options) for content in contents]
    return [partial(capture_with_fidelity, source, talk) for source in sources]


def capture_with_fidelity(
    source: CaptureSource,
    talk: Talk,
    request: Request,
) -> Capture:
    """Make a capture with a source, and tell on stderr how exact it is, if that is asked for."""
    capture = source(request)
    talk.tell_fidelity(capture)
    return capture


# What is answered


@dataclass(frozen=True)
class Inspection:
    """What is asked for, and where the answer will be seen."""

    captures: CaptureOptions
    question: QuestionOptions
    result: ResultOptions
    screen: Screen
    destination: Destination | None

    def make_request(self, *, whole: bool) -> Request:
        """Return the request for a capture that answers the question.

        whole: keep all weights, also of a long text, of which otherwise only tiles and statistics
        are kept.
        """
        selection = self.captures.selection
        return Request(
            layers=selection.all_layers,
            heads=selection.all_heads,
            truncate=self.captures.model.truncate,
            kinds=selection.kinds,
            preferred=EVERY_HEAD.preferred,
            keep="weights" if whole else EVERY_HEAD.keep,
            tiles=EVERY_HEAD.tiles,
        )

    def count_rows(self, notes: int = 0) -> int | None:
        """Return the number of rows of a table; None for all.

        It is what --top says if that is given. Otherwise a file shows all rows, and a screen as
        many as it has room for. notes: the number of lines below the table.
        """
        if "top" in self.question.given:
            return self.question.top
        if self.destination is not None:
            return None
        if self.screen.height is None:
            return DEFAULT_ROWS
        return max(self.screen.height - LINES_AROUND - notes, FEWEST_ROWS)


def answer_about_heads(sources: Sequence[CaptureSource], inspection: Inspection) -> Answer:
    """Measure all heads over all texts, and return the table of them.

    sources: functions that make captures, one for each text. inspection: the options, and where
    the answer will be seen. Raises AttnvizError.
    """
    captures, result = inspection.captures, inspection.result
    whole = result.screen.full or captures.numbers.method != ATTENTION
    counted_sources = count_steps(sources, "measuring heads", "text")
    measures = inspect_heads(counted_sources, inspection.make_request(whole=whole))
    runs_model = captures.source.path is None
    if not whole and runs_model and measures.longest > MOST_WHOLE:
        result.talk.note(KEEP_ALL)
    row_count = inspection.count_rows(len(measures.notes))
    has_room = inspection.destination is not None or inspection.screen.width >= WIDE
    table = measures.draw_table(inspection.question.order, row_count, deviations=has_room)
    return make_result_answer(measures, result.title, pictures=[table])


def answer_about_text(source: CaptureSource, inspection: Inspection) -> Answer:
    """Answer a question about one text: about a token, a cell of its maps, or its segments.

    source: a function that makes captures of the text. inspection: the options, of which one asks
    the question, and where the answer will be seen. Raises AttnvizError.
    """
    question, title = inspection.question, inspection.result.title
    request = inspection.make_request(whole=True)
    if question.token is not None:
        rows = inspect_token(source, question.token, request)
        return make_result_answer(rows, title, pictures=rows.draw_tables(inspection.count_rows()))
    if question.query is not None and question.key is not None:
        cell = inspect_cell(source, question.query, question.key, request)
        return make_result_answer(cell, title)
    assert question.segments is not None
    segments = text_input.read_segments(question.segments)
    shares = inspect_segments(source, segments, question.query, request)
    return make_result_answer(shares, title)


# What the columns are


def print_columns(*, as_json: bool) -> None:
    """Print what each column of the table of heads is, and who defined it.

    as_json: print a JSON document in place of lines for a reader.
    """
    if as_json:
        click.echo(format_document_json({"columns": describe_columns()}).decode(), nl=False)
        return
    for column in COLUMNS.values():
        for line in explain_column(column):
            click.echo(line)


def explain_column(column: Column) -> Iterator[str]:
    """Yield lines that define a column of the table of heads: its name, meaning and source."""
    unit = "" if column.unit == "share" else f" ({column.unit})"
    name = f"{column.heading:4}  {column.name}{unit}"
    line = f"{name}: {column.definition} [{column.source}]"
    yield from wrap(line, HELP_WIDTH, subsequent_indent=" " * 6)
