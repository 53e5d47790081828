"""The two sides of a comparison: two models on a text, a model on two texts, saved captures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import click

from attnviz.analysis.comparison import Comparison
from attnviz.cli import text as text_input
from attnviz.cli.options import (
    READING,
    CaptureOptions,
    LookOptions,
    ModelOptions,
    ModelsOptions,
    NumbersOptions,
    ReadingOptions,
    SelectionOptions,
    SourceOptions,
)
from attnviz.cli.parameters import option_group, option_section
from attnviz.cli.picture import drop_special_tokens
from attnviz.cli.sources import (
    load_model_for,
    make_file_source,
    make_method_source,
    make_model_source,
    make_word_source,
)
from attnviz.cli.talk import Talk
from attnviz.derived import CaptureSource
from attnviz.errors import InputError, UsageError
from attnviz.progress import count_steps
from attnviz.record import SCORES, Capture, Kind
from attnviz.request import Prompt, Request
from attnviz.results.comparison import NO_SHARES, compare_captures

if TYPE_CHECKING:
    from attnviz.models import Model

Sides: TypeAlias = tuple[CaptureSource, CaptureSource]
"""What captures of A and of B are taken from."""
FIRST_MODEL, SECOND_MODEL = 0, 1
COMPARED_KINDS: tuple[Kind, ...] = ("self", "encoder")  # of models that have several kinds of map
TEXTS_OF_ONE_MODEL = "one model with TEXT and --with TEXT2"
MODELS_OR_FILES = "--model twice, or once with builtin; --from twice"
TWO_SIDES = f"two are compared: {MODELS_OR_FILES}; or {TEXTS_OF_ONE_MODEL}"


@dataclass(frozen=True)
class SidesOptions:
    """What is compared besides models: another text, or captures in files."""

    other_text: str | None = None
    paths: tuple[str, ...] = ()


sides_options = option_group(
    "sides",
    SidesOptions,
    option_section(
        READING,
        click.option(
            "--with",
            "other_text",
            metavar="TEXT",
            help="Compare TEXT with this one, on one model.",
        ),
        click.option(
            "--from",
            "paths",
            metavar="FILE",
            multiple=True,
            help="A capture: A. Given twice, A and B; once, B reads its text.",
        ),
    ),
)


@dataclass(frozen=True)
class ComparisonOptions:
    """What A and B are, and what their numbers are.

    Groups that a command does not take keep their defaults.
    """

    sides: SidesOptions
    models: ModelsOptions
    reading: ReadingOptions
    lines: bool = False
    """True if each line of a text is a text of its own."""
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    numbers: NumbersOptions = field(default_factory=NumbersOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    look: LookOptions = field(default_factory=LookOptions)

    def __post_init__(self) -> None:
        """Check the options against each other.

        Raises UsageError for scores, which cannot be compared, and for options that contradict each
        other.
        """
        if self.numbers.method == SCORES:
            raise UsageError(NO_SHARES)
        self.make_capture_options(FIRST_MODEL)  # which checks them when it is made

    def make_capture_options(self, index: int) -> CaptureOptions:
        """Make the options for capturing with one of the compared models.

        index: 0 for the first model, 1 for the second. Only the model differs between them. Raises
        UsageError for options that contradict each other.
        """
        return CaptureOptions(
            selection=self.selection,
            numbers=self.numbers,
            source=self.source,
            reading=self.reading,
            model=self.models.select_model(index),
        )

    @property
    def has_second_side(self) -> bool:
        """True if a B is named: a second model or capture, or another text."""
        is_given_twice = len(self.models.models) + len(self.sides.paths) > 1
        return is_given_twice or self.sides.other_text is not None

    def require_two_sides(self) -> None:
        """Raise UsageError unless the options name exactly two things that can be compared.

        They are two models (of which the built-in one may be left out), two captures in files, a
        capture and a model that reads its text, or two texts that one model reads.
        """
        models, paths, other_text = self.models.models, self.sides.paths, self.sides.other_text
        if len(models) + len(paths) > 2:
            raise UsageError(TWO_SIDES)
        if other_text is not None and (paths or len(models) > 1):
            raise UsageError(TWO_SIDES)
        if not models and not paths and other_text is None:
            raise UsageError(f"nothing to compare with: {TWO_SIDES}")


comparison_options = option_group("comparison", ComparisonOptions)
"""Makes one object of the groups of a comparison; it stands below them, next to the command."""


class ComparedModels:
    """Load the models of --model, and the built-in one after them, each once, when it is needed."""

    def __init__(self, options: ComparisonOptions, talk: Talk) -> None:
        self.options = options
        self.talk = talk
        self.loaded_models: dict[ModelOptions, Model] = {}

    def load(self, index: int) -> "Model":
        """Return one of the models, and load it if it is not loaded yet. Raises ModelError.

        index: 0 for the first model of the command line, 1 for the second.
        """
        options = self.options.make_capture_options(index)
        if options.model not in self.loaded_models:
            self.loaded_models[options.model] = load_model_for(options, self.talk)
        return self.loaded_models[options.model]

    def source(self, index: int, content: str) -> CaptureSource:
        """Return a function that makes captures of a text with one of the models.

        index: 0 for the first model of the command line, 1 for the second. Raises ModelError.
        """
        options = self.options.make_capture_options(index)
        return make_model_source(self.load(index), content, options)


def compare_texts(texts: Sequence[str], models: ComparedModels) -> Iterator[Comparison]:
    """Compare A with B, which are two models, texts or captures, on each text in turn.

    texts: those of the command line. models: one or two models, with the options that say what A
    and B are. Raises AttnvizError.
    """
    sides = open_sides(texts, models)
    for a_source, b_source in count_steps(sides, "comparing", "text"):
        a = capture_side(a_source, models.options)
        b = capture_side(b_source, models.options)
        yield compare_captures(a, b)


def capture_first_side(texts: Sequence[str], models: ComparedModels) -> list[Capture]:
    """Make the captures of A, the first of the two things that are compared.

    They are made by the first model, one on each text, or one is read from the file that --from
    names. Raises AttnvizError.
    """
    if models.options.sides.paths:
        sources = [open_files(texts, models)[0]]
    else:
        contents = read_contents(texts, models)
        sources = [models.source(FIRST_MODEL, content) for content in contents]
    counted_sources = count_steps(sources, "capturing", "text")
    return [capture_side(source, models.options) for source in counted_sources]


def capture_side(source: CaptureSource, options: ComparisonOptions) -> Capture:
    """Make a capture for a comparison: the weights of all layers and heads.

    source: a function that makes a capture of a request. options: the kind of map, and if special
    tokens are dropped. Raises AttnvizError.
    """
    request = Request(
        truncate=options.models.truncate,
        kinds=options.selection.kinds,
        preferred=COMPARED_KINDS,
    )
    capture = source(request)
    if options.look.special == "keep":
        return capture
    return drop_special_tokens(capture, options.look.special)


def open_sides(texts: Sequence[str], models: ComparedModels) -> list[Sides]:
    """Return pairs of functions of a request; each makes one of two captures that are compared.

    The two captures of a pair, A and B, are those of two files, of two models that read the same
    text, or, with --with, of two texts that one model reads. There is a pair for each text, but one
    alone for files.

    Raises UsageError if the options do not name two files, models or texts, and if several texts
    are to be compared with one; other kinds of AttnvizError for what cannot be read.
    """
    options = models.options
    options.require_two_sides()
    if options.sides.paths:
        return [open_files(texts, models)]
    contents = read_contents(texts, models)
    if options.sides.other_text is None:
        return [open_both_models(content, models) for content in contents]
    if len(contents) > 1:
        raise UsageError(f"--with compares one text with another: {len(contents)} texts are given")
    other_content = text_input.read_argument(options.sides.other_text, models.talk)
    a = models.source(FIRST_MODEL, contents[0])
    b = models.source(FIRST_MODEL, other_content)
    return [(a, b)]


def open_both_models(content: str, models: ComparedModels) -> Sides:
    """Return two functions that make captures of a text, one a model. Raises ModelError."""
    a = models.source(FIRST_MODEL, content)
    b = models.source(SECOND_MODEL, content)
    return a, b


def read_contents(texts: Sequence[str], models: ComparedModels) -> list[str]:
    """Read the texts of the command line, or the lines of them. Raises InputError."""
    return text_input.read_arguments(texts, models.options.lines, models.talk)


def open_files(texts: Sequence[str], models: ComparedModels) -> Sides:
    """Return two functions that make the captures to compare, of the files that --from names.

    Where it names one file, the other capture is made by the first model on the text of that file.

    texts: those of the command line. Raises UsageError if there are any, InputError for a file that
    cannot be used.
    """
    if texts:
        raise UsageError("--from reads a capture that was made before: leave TEXT out")
    options = models.options
    files = [make_file_source(path, options.numbers) for path in options.sides.paths]
    if len(files) == 1:
        text_source = partial(capture_text_of_file, files[0], models)
        files.append(make_method_source(text_source, options.numbers))
    a, b = (make_word_source(source, options.source.words) for source in files)
    return a, b


def capture_text_of_file(
    file: CaptureSource,
    models: ComparedModels,
    request: Request,
) -> Capture:
    """Run the first model on the text of a saved capture, and return what a request asks for.

    file: a function that returns the saved capture. Raises InputError if that holds no text,
    ModelError.
    """
    saved = file(Request())
    if not saved.text:
        path = models.options.sides.paths[0]
        raise InputError(f"{path} holds no text that a model could read: give a second --from")
    prompt = Prompt(saved.text, saved.pair, saved.target)
    return models.load(FIRST_MODEL).capture(prompt, request)
