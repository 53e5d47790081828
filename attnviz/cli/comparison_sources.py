"""The two sides of a comparison: two models on a text, a model on two texts, captures from files."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from attnviz.analysis.comparison import Comparison, compare
from attnviz.cli import text as text_input
from attnviz.cli.options import together
from attnviz.cli.picture import drop_special
from attnviz.cli.sources import Source, loaded, of_file, prompt, weighed, worded
from attnviz.errors import InputError, UsageError
from attnviz.methods import methods_of
from attnviz.record import GIVEN, SCORES, Capture, Kind
from attnviz.request import Prompt, Request

if TYPE_CHECKING:
    from attnviz.models import Model

Options: TypeAlias = Mapping[str, Any]
Sides: TypeAlias = tuple[Source, Source]
BUILTIN = "builtin"
PREFERRED: tuple[Kind, ...] = ("self", "encoder")  # of models that have several kinds of map
TWO = "two are compared: --model twice, or once with builtin; --from twice; or one model with TEXT and --with TEXT2"

NO_SHARES = (
    "rows are compared as shares that sum to 1, and scores are none: softmaxed they are the weights: use --weights "
    "attention"
)

sides_options = together(
    "What it reads",
    click.option("--with", "other", metavar="TEXT", help="Compare TEXT with this one, on one model."),
    click.option(
        "--from",
        "sources",
        metavar="FILE",
        multiple=True,
        help="A capture: A. Given twice, A and B; once, B reads its text.",
    ),
)


class Models:
    """The models of --model, and builtin after them, each loaded once and when it is needed."""

    def __init__(self, options: Options, quiet: bool) -> None:
        self.options, self.quiet = options, quiet
        self.names = (*options["models"], BUILTIN)
        self.loaded: dict[tuple[str | None, ...], Model] = {}

    def __getitem__(self, at: int) -> "Model":
        """The model at a place; --revision and its like are of the first, or given twice of each. Raises ModelError."""
        named = {name: self.option(f"{name}s", at) for name in ("revision", "tokenizer", "adapter")}
        key = self.names[at], *named.values()
        if key not in self.loaded:
            self.loaded[key] = loaded({**self.options, "model": self.names[at], **named}, self.quiet)
        return self.loaded[key]

    def option(self, name: str, at: int) -> str | None:
        """Return the value of an option for the model at a place, if it was given so often."""
        values: Sequence[str] = self.options[name]
        return values[at] if at < len(values) else None

    def source(self, at: int, content: str) -> Source:
        """One of them on a text."""
        return weighed(partial(self[at].capture, prompt(content, self.options)), self.options)


def comparisons(texts: Sequence[str], models: Models) -> Iterator[Comparison]:
    """A against B, on each of the texts, one after the other. Raises UsageError, ModelError, InputError."""
    return (compared(sides, models.options) for sides in all_sides(texts, models))


def captures(texts: Sequence[str], models: Models) -> list[Capture]:
    """What A makes of each of the texts, or the capture that --from names."""
    if models.options["sources"]:
        (first, *_) = of_files(texts, models)
        return [taken(first, models.options)]
    contents = text_input.read_all(texts, models.options["lines"], models.quiet)
    return [taken(models.source(0, content), models.options) for content in contents]


def taken(source: Source, options: Options) -> Capture:
    """All heads of one kind, with their weights."""
    kinds = (options["kind"],) if options["kind"] else ()
    found = worded(source, options)(Request(truncate=options["truncate"], kinds=kinds, preferred=PREFERRED))
    return found if options["special"] == "keep" else drop_special(found, options["special"])


def compared(sides: Sides, options: Options) -> Comparison:
    """One comparison. Raises InputError if there is nothing that could be compared."""
    a, b = (taken(source, options) for source in sides)
    require_same_method(a, b)
    try:
        return compare(a, b)
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error


def require_same_method(a: Capture, b: Capture) -> None:
    """Raise InputError unless both hold numbers of one method, of which rows can be made to sum to 1."""
    mine, yours = ({*methods_of(capture.maps)} - {GIVEN} for capture in (a, b))
    if SCORES in mine | yours:
        raise InputError(NO_SHARES)
    if len(mine | yours) > 1:
        held = " and ".join(sorted(mine | yours))
        raise InputError(f"A and B are of {held}, which cannot be compared: make both with the same --weights")


def all_sides(texts: Sequence[str], models: Models) -> list[Sides]:
    """Where A and B are taken from, for each of the texts."""
    options = models.options
    if options.get("method") == SCORES:
        raise UsageError(NO_SHARES)
    files, names, other = options["sources"], options["models"], options["other"]
    if len(files) + len(names) > 2 or (other is not None and (files or len(names) > 1)):
        raise UsageError(TWO)
    if not files and not names and other is None:
        raise UsageError(f"nothing to compare with: {TWO}")
    if files:
        return [of_files(texts, models)]
    contents = text_input.read_all(texts, options["lines"], models.quiet)
    if other is None:
        return [(models.source(0, content), models.source(1, content)) for content in contents]
    if len(contents) > 1:
        raise UsageError(f"--with compares one text with another: {len(contents)} texts are given")
    return [(models.source(0, contents[0]), models.source(0, text_input.read(other, models.quiet)))]


def of_files(texts: Sequence[str], models: Models) -> Sides:
    """Two captures, or one and what a model makes of the text that it is of."""
    if texts:
        raise UsageError("--from reads a capture that was made before: leave TEXT out")
    paths = models.options["sources"]
    first, *others = (of_file(path, models.options) for path in paths)
    if others:
        return first, others[0]

    def read(request: Request) -> Capture:
        held = first(Request())
        if not held.text:
            raise InputError(f"{paths[0]} holds no text that a model could read: give a second --from")
        return models[0].capture(Prompt(held.text, held.pair, held.target), request)

    return first, weighed(read, models.options)
