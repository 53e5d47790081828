"""`attnviz compare`."""

from collections.abc import Sequence
from typing import Any

import click

from attnviz.analysis.comparison import Comparison, Distances, Name
from attnviz.cli.answers import FORMS as MEASURED
from attnviz.cli.answers import Answer, deliver, target_of
from attnviz.cli.drawing import look
from attnviz.cli.findings import document, records
from attnviz.cli.options import (
    FIGURES,
    TOP,
    Sectioned,
    figure_options,
    lines_option,
    look_options,
    map_option,
    models_options,
    output_options,
    prompt_options,
    screen_options,
    selection_options,
    talk_options,
    texts_argument,
    title_option,
    together,
)
from attnviz.cli.screen import screen
from attnviz.cli.sides import Models, comparisons, sides_options
from attnviz.errors import UsageError
from attnviz.selection import ALL, Named, select
from attnviz.views import Picture
from attnviz.views.comparison import Chosen, counterpart, head_map, last_layers, page, series, table

ROWS = 10  # heads that are listed unless --top says more
FORMS = (*MEASURED, "html")


view_options = together(
    "View",
    click.option(
        "--view",
        type=click.Choice(["maps", "heads", "table"]),
        help="A, B and A - B; how far each head of A is from B; a list of these. Default on a screen: maps and table.",
    ),
    click.option("--top", type=TOP, default=ROWS, show_default=True, help="Heads listed."),
)


@click.command(cls=Sectioned)
@texts_argument
@selection_options
@map_option
@view_options
@look_options
@title_option
@sides_options
@lines_option
@prompt_options
@models_options
@output_options
@figure_options
@screen_options
@talk_options
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
    """
    on = screen(options["width"], options["color"], options["cmap"], options["full"])
    to = target_of(options, FORMS)
    found = comparisons(texts, Models(options, quiet))
    distances = Distances.over(found)
    heads, chosen = choose(found[0], distances, options)
    drawn = pictures(found[0], distances, heads, chosen, options)
    answer = Answer(
        drawn[:1] if to and to.form in FIGURES else drawn,
        document(found, distances, heads, chosen),
        records(distances, heads),
        page(found[0], distances, look(options)) if to and to.form == "html" else None,
    )
    deliver(answer, to, on, options, quiet)


def choose(comparison: Comparison, distances: Distances, options: Any) -> tuple[list[Name], Chosen]:
    """The heads of A that are listed, and what of them is drawn. Raises UsageError for one that is not there."""
    layers, heads = options["layers"], options["heads"]
    if isinstance(heads, Named) and layers is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    kept = select(comparison.a.capture, layers or ALL, heads or ALL)
    asked = {(layer, head) for part in kept.maps for layer in part.layers for head in part.heads}
    names = [name for name in comparison.a.names if name in asked]
    if not names:
        raise UsageError("none of these heads is among those that can be compared")
    if len(names) == 1:
        return names, counterpart(comparison, distances, names[0])
    return names, last_layers(comparison, names[-1][0])


def pictures(
    comparison: Comparison, distances: Distances, heads: Sequence[Name], chosen: Chosen, options: Any
) -> list[Picture]:
    """What is drawn: the maps of the first text, and what was found over all texts."""
    view = options["view"]
    drawn: list[Picture] = []
    if view in (None, "maps"):
        drawn.append(series(comparison, chosen, look(options)))
    if view == "heads":
        drawn.append(head_map(distances))
    if view in (None, "table"):
        drawn.append(table(distances, heads, options["top"]))
    return drawn
