"""`attnviz compare`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import click

from attnviz.analysis.comparison import Comparison, Distances, Name
from attnviz.cli.answers import Answer, deliver, target_of
from attnviz.cli.comparison_sources import Models, comparisons, sides_options
from attnviz.cli.findings import document, records
from attnviz.cli.options import (
    TOP,
    Sectioned,
    lines_option,
    look_options,
    map_option,
    models_options,
    prompt_options,
    result_options,
    selection_options,
    target_option,
    texts_argument,
    title_option,
    together,
    weights_option,
)
from attnviz.cli.picture import look
from attnviz.cli.screen import screen
from attnviz.errors import InputError, UsageError
from attnviz.results.comparison import (
    Chosen,
    counterpart,
    head_map,
    last_layers,
    method_lines,
    page,
    series,
    series_title,
    table,
)
from attnviz.selection import ALL, Named, resolve
from attnviz.views import Page, Picture

DRAWN = 4  # heads that are drawn one by one; of more, the mean over those of a layer
ROWS = 10  # heads that are listed unless --top says more


view_options = together(
    "View",
    click.option(
        "--view",
        type=click.Choice(["maps", "heads", "table"]),
        help="A, B and A - B; how far each head of A is from B, by layer or as a list. Default: maps, then table.",
    ),
    click.option("--top", type=TOP, default=ROWS, show_default=True, help="Heads listed."),
)


@click.command(cls=Sectioned)
@texts_argument
@selection_options
@map_option
@weights_option
@target_option
@view_options
@look_options
@title_option
@sides_options
@lines_option
@prompt_options
@models_options
@result_options
def command(texts: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Compare two models, two texts or two captures, word by word and head by head.

    A is the first model named, B the second or builtin. Pieces are merged to words, so that tokenizers do not matter,
    and heads are compared where both may attend, by the Jensen-Shannon divergence of their rows in nats. -l and -H
    choose heads of A: one is drawn beside its counterpart of B. Several texts give mean and deviation.

    \b
    Examples:
      attnviz compare --model bert-base
      attnviz compare -m bert-base -m my-bert "The cat sat on the mat."
      attnviz compare -m builtin -m builtin "The cat sat." "The dog ran."
      attnviz compare "The cat sat on the mat." --with "The dog sat on the rug."
      attnviz compare --from before.attn --from after.attn --json
      attnviz compare "The cat sat." --with "The dog sat." --weights norm
    """
    on = screen(options["width"], options["color"], options["cmap"], options["full"])
    to = target_of(options)
    found = comparisons(texts, Models(options, quiet))
    first = next(found)
    distances = Distances.over(chain([first], found))
    heads, chosen = choose(first, distances, options)
    drawn = pictures(first, distances, heads, chosen, options)
    answer = Answer(
        drawn,
        document(first, distances, heads, chosen[0]),
        records(distances, heads),
        whole_page(first, distances, options) if to and to.form == "html" else None,
    )
    deliver(answer, to, on, options, quiet)


def whole_page(comparison: Comparison, distances: Distances, options: Any) -> Page:
    """All heads of both. Raises InputError for a text that is too long for a page."""
    try:
        return page(comparison, distances, look(options))
    except ValueError as error:
        raise InputError(f"{error}: choose another format, or a shorter text") from error


def choose(comparison: Comparison, distances: Distances, options: Any) -> tuple[list[Name], list[Chosen]]:
    """The heads of A that are listed, and what of them is drawn. Raises UsageError for one that is not there."""
    layers, heads = options["layers"], options["heads"]
    if isinstance(heads, Named) and layers is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    there: dict[int, list[int | str]] = {}
    for layer, head in comparison.a.names:
        there.setdefault(layer, []).append(head)
    asked = {(layer, head) for run, of_each in chosen_heads(layers, heads, there) for layer in run for head in of_each}
    names = [name for name in comparison.a.names if name in asked]
    if heads is not None and len(names) <= DRAWN:
        return names, [counterpart(comparison, distances, name) for name in names]
    return names, [last_layers(comparison, names)]


def chosen_heads(layers: Any, heads: Any, there: dict[int, list[int | str]]) -> Sequence[Any]:
    """Runs of layers with the heads of each that are chosen; of a reduction there is one. Raises UsageError."""
    numbers = {layer: [head for head in of_each if isinstance(head, int)] for layer, of_each in there.items()}
    if all(numbers.values()):
        return resolve(layers or ALL, heads or ALL, numbers)
    return [((layer,), there[layer]) for layer in (layers or ALL).resolve(list(there), "layer")]


def pictures(
    comparison: Comparison, distances: Distances, heads: Sequence[Name], chosen: Sequence[Chosen], options: Any
) -> list[Picture]:
    """What is drawn: the maps of the first text, and what was found over all texts."""
    view, title = options["view"], series_title(comparison)
    drawn: list[Picture] = []
    if view in (None, "maps"):
        drawn += [series(comparison, each, look(options)) for each in chosen]
    if view == "heads":
        drawn.append(head_map(title, distances))
    if view in (None, "table"):
        drawn.append(table(title, distances, heads, options["top"]))
    if view in ("heads", "table"):
        drawn = [replace(each, caption=(*each.caption, *method_lines(comparison))) for each in drawn]
    return drawn
