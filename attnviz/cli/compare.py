"""`attnviz compare`."""

from dataclasses import dataclass

import click

from attnviz.cli.comparison_sources import (
    ComparedModels,
    ComparisonOptions,
    compare_texts,
    comparison_options,
    sides_options,
)
from attnviz.cli.options import (
    VIEW,
    ResultOptions,
    lines_option,
    look_options,
    models_options,
    numbers_options,
    reading_options,
    result_options,
    selection_options,
    texts_argument,
    title_option,
)
from attnviz.cli.output import (
    choose_result_destination,
    deliver,
    make_result_answer,
)
from attnviz.cli.parameters import (
    ROW_COUNT,
    SectionedCommand,
    option_group,
    option_section,
)
from attnviz.cli.picture import make_look
from attnviz.cli.screen import open_screen
from attnviz.results.comparison import ComparisonView, measure_comparisons
from attnviz.results.comparison_page import make_comparison_page

VIEW_HELP = """\
A, B and A - B; how far each head of A is from B, by layer or as a list. \
Default: maps, then table."""
LISTED = 10  # heads that are listed unless --top says more


@dataclass(frozen=True)
class ComparisonViewOptions:
    """What is drawn of a comparison."""

    view: ComparisonView | None = None
    top: int | None = LISTED


comparison_view_options = option_group(
    "view",
    ComparisonViewOptions,
    option_section(
        VIEW,
        click.option(
            "--view",
            type=click.Choice(["maps", "heads", "table"]),
            help=VIEW_HELP,
        ),
        click.option(
            "--top",
            type=ROW_COUNT,
            default=LISTED,
            show_default=True,
            help="Heads listed.",
        ),
    ),
)


@click.command(cls=SectionedCommand)
@texts_argument
@selection_options
@numbers_options
@comparison_view_options
@look_options
@title_option
@sides_options
@lines_option
@reading_options
@models_options
@result_options
@comparison_options
def command(
    texts: tuple[str, ...],
    comparison: ComparisonOptions,
    view: ComparisonViewOptions,
    result: ResultOptions,
) -> None:
    """Compare two models, two texts or two captures, word by word and head by head.

    A is the first model named, B the second or builtin. Pieces are merged to words, so that
    tokenizers do not matter, and heads are compared where both may attend, by the Jensen-Shannon
    divergence of their rows in nats. -l and -H choose heads of A: one is drawn beside its
    counterpart of B. Several texts give mean and deviation.

    \b
    Examples:
      attnviz compare --model bert-base
      attnviz compare -m bert-base -m my-bert "The cat sat on the mat."
      attnviz compare -m builtin -m builtin "The cat sat." "The dog ran."
      attnviz compare "The cat sat on the mat." --with "The dog sat on the rug."
      attnviz compare --from before.attn --from after.attn --json
      attnviz compare "The cat sat." --with "The dog sat." --weights norm
    """
    screen = open_screen(result.screen, comparison.look.cmap)
    destination = choose_result_destination(result)
    models = ComparedModels(comparison, result.talk)
    selection = comparison.selection
    comparisons = compare_texts(texts, models)
    measured = measure_comparisons(comparisons, selection.layers, selection.heads)
    look = make_look(comparison.look)
    page = None
    if destination is not None and destination.file_format == "html":
        page = make_comparison_page(measured, look)
    answer = make_result_answer(
        measured,
        result.title,
        pictures=measured.draw(view.view, look, view.top),
        page=page,
    )
    deliver(answer, destination, screen, result, comparison.look.cmap)
