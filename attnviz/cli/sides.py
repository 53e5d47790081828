"""The two sides of a comparison: two models on a text, a model on two texts, captures from files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from attnviz.analysis.comparison import Comparison, compare
from attnviz.cli import text as text_input
from attnviz.cli.take import Source, chosen, loaded, prompt
from attnviz.errors import InputError, UsageError
from attnviz.record import Kind
from attnviz.request import Prompt, Request

if TYPE_CHECKING:
    from attnviz.models import Model

Options: TypeAlias = Mapping[str, Any]
Sides: TypeAlias = tuple[Source, Source]
BUILTIN = "builtin"
PREFERRED: tuple[Kind, ...] = ("self", "encoder")  # of models that have several kinds of map
TWO = "two are compared: --model twice, or once with builtin; --from twice; or one model with TEXT and --with TEXT2"


def comparisons(texts: Sequence[str], options: Options, quiet: bool) -> list[Comparison]:
    """A against B, on each of the texts. Raises UsageError, ModelError, InputError."""
    kinds = (options["kind"],) if options["kind"] else ()
    request = Request(truncate=options["truncate"], kinds=kinds, preferred=PREFERRED)
    return [compared(sides, request) for sides in all_sides(texts, options, quiet)]


def compared(sides: Sides, request: Request) -> Comparison:
    """One comparison. Raises InputError if there is nothing that could be compared."""
    a, b = (source(request) for source in sides)
    try:
        return compare(a, b)
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error


def all_sides(texts: Sequence[str], options: Options, quiet: bool) -> list[Sides]:
    """Where A and B are taken from, for each of the texts."""
    files, names, other = options["sources"], options["models"], options["other"]
    if len(files) + len(names) > 2 or (other is not None and (files or len(names) > 1)):
        raise UsageError(TWO)
    if not files and not names and other is None:
        raise UsageError(f"nothing to compare with: {TWO}")
    if files:
        return [of_files(texts, options, quiet)]
    contents = text_input.read_all(texts, options["lines"], quiet)
    if other is not None:
        return [of_texts(contents, options, quiet)]
    a, b = two_models((*names, BUILTIN)[:2], options, quiet)
    return [(running(a, content, options), running(b, content, options)) for content in contents]


def of_files(texts: Sequence[str], options: Options, quiet: bool) -> Sides:
    """Two captures, or one and what a model makes of the text that it is of."""
    from attnviz.storage import load

    if texts:
        raise UsageError("--from reads a capture that was made before: leave TEXT out")
    captures = [load(Path(path)) for path in options["sources"]]
    first = partial(chosen, captures[0])
    if len(captures) == 2:
        return first, partial(chosen, captures[1])
    if not captures[0].text:
        raise InputError(f"{options['sources'][0]} holds no text that a model could read: give a second --from")
    (model,) = two_models((*options["models"], BUILTIN)[:1], options, quiet)
    return first, partial(model.capture, Prompt(captures[0].text, captures[0].pair, captures[0].target))


def of_texts(contents: Sequence[str], options: Options, quiet: bool) -> Sides:
    """One model on two texts."""
    if len(contents) > 1:
        raise UsageError(f"--with compares one text with another: {len(contents)} texts are given")
    (model,) = two_models((*options["models"], BUILTIN)[:1], options, quiet)
    a, b = contents[0], text_input.read(options["other"], quiet)
    return running(model, a, options), running(model, b, options)


def running(model: "Model", content: str, options: Options) -> Source:
    """A model on a text."""
    return partial(model.capture, prompt(content, options))


def two_models(names: Sequence[str], options: Options, quiet: bool) -> list["Model"]:
    """The models of these names, each loaded once; --revision is of the first, or given twice of each."""
    found: dict[tuple[str, str | None], Model] = {}
    keys = [(name, options["revisions"][i] if i < len(options["revisions"]) else None) for i, name in enumerate(names)]
    for name, revision in keys:
        if (name, revision) not in found:
            found[name, revision] = loaded({**options, "model": name, "revision": revision}, quiet)
    return [found[key] for key in keys]
