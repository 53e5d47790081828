"""`attnviz explain`."""

from dataclasses import dataclass

import click

from attnviz.analysis.explain import RAW_SCORES
from attnviz.cli import text as text_input
from attnviz.cli.options import (
    DEFAULT_ROWS,
    NOTHING_GIVEN,
    VIEW,
    ModelOptions,
    ReadingOptions,
    ResultOptions,
    SelectionOptions,
    decoder_reading_options,
    model_options,
    result_options,
    selection_options,
    text_argument,
    title_option,
)
from attnviz.cli.output import (
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
from attnviz.cli.sources import load_chosen_model
from attnviz.errors import UsageError
from attnviz.selection import TokenReference, parse_token

OF_A_MODEL = "model", "revision", "tokenizer", "adapter", "pair", "target", "chat"
"""Options that have no effect with --score, beside those that choose a head."""


@dataclass(frozen=True)
class ExplainOptions:
    """Which query is followed, by which score function, and how many keys are shown."""

    query: TokenReference
    score: str | None = None
    top: int | None = None
    given: frozenset[str] = NOTHING_GIVEN

    def count_rows(self, *, shows_all: bool) -> int | None:
        """Return the number of keys in a table, None for all.

        It is what --top says if that is given. Otherwise all keys are shown if ``shows_all``.
        """
        if "top" in self.given:
            return self.top
        return None if shows_all else DEFAULT_ROWS


explain_options = option_group(
    "explain",
    ExplainOptions,
    option_section(
        VIEW,
        click.option(
            "--query",
            type=ParsedType("N or WORD", parse_token),
            default="-1",
            help="The query that is followed. Default: the last token.",
        ),
        click.option(
            "--score",
            type=click.Choice(RAW_SCORES),
            help="Instead of a model: a score function, on raw vectors.",
        ),
        click.option(
            "--top",
            type=ROW_COUNT,
            help=f"Keys shown, the strongest. Default on a screen: {DEFAULT_ROWS}.",
        ),
    ),
)


@click.command(cls=SectionedCommand)
@text_argument
@selection_options
@explain_options
@title_option
@decoder_reading_options
@model_options
@result_options
def command(
    text: str | None,
    selection: SelectionOptions,
    explain: ExplainOptions,
    reading: ReadingOptions,
    model: ModelOptions,
    result: ResultOptions,
) -> None:
    """Compute the attention of one query of one head step by step, in real numbers.

    From the vectors over q·k, scale, mask and softmax to the sum of values: each step with its
    formula, and at the end how far it is from the model's own numbers. Without --layers and --heads
    it is head 0 of the last layer. --score shows a score function instead, on the embeddings of the
    built-in model as they are.

    \b
    Examples:
      attnviz explain "The cat sat because it was tired." --query it
      attnviz explain @sample:repeat -l 1 -H 3 --top 5
      attnviz explain "The cat sat." -H L0H4 -o steps.html
      attnviz explain "Hello, world" -m bert-base -l 2 -H 1 --query world
      attnviz explain "The cat saw the dog." --score additive --query cat
    """
    from attnviz.experiments.explanation import (
        FIRST_OF_ALL,
        LAST_OF_ALL,
        explain_head,
        explain_score,
    )

    require_one_head(selection)
    if explain.score is not None:
        require_no_model(selection, reading, model)
    screen = open_screen(result.screen)
    destination = choose_result_destination(result)
    content = text_input.read_argument(text, result.talk)
    prompt = reading.prompt(content)
    loaded_model = load_chosen_model(model, result.talk)
    if explain.score is not None:
        explanation = explain_score(
            explain.score,
            loaded_model,
            prompt,
            explain.query,
            truncate=model.truncate,
        )
    else:
        explanation = explain_head(
            loaded_model,
            prompt,
            selection.layers or LAST_OF_ALL,
            selection.heads or FIRST_OF_ALL,
            explain.query,
            kind=selection.kind,
            truncate=model.truncate,
        )
    row_count = explain.count_rows(shows_all=destination is not None or result.screen.full)
    answer = make_result_answer(explanation, result.title, pictures=explanation.draw(row_count))
    deliver(answer, destination, screen, result)


def require_one_head(selection: SelectionOptions) -> None:
    """Raise UsageError for options that choose several layers or several heads."""
    is_one_layer = selection.layers is None or selection.layers.is_one
    is_one_head = selection.heads is None or selection.heads.is_one
    if not (is_one_layer and is_one_head):
        raise UsageError("explain follows one head: choose it with -l 1 -H 3, or -H L1H3")


def require_no_model(
    selection: SelectionOptions,
    reading: ReadingOptions,
    model: ModelOptions,
) -> None:
    """Raise UsageError for options of a model on the command line, which --score does not use.

    With --score, vectors of the built-in model are compared without any of its layers and heads.
    """
    unused = (model.given | reading.given) & {*OF_A_MODEL}
    chosen = {"layers": selection.layers, "heads": selection.heads, "map": selection.kind}
    unused |= {name for name, value in chosen.items() if value is not None}
    if unused:
        raise UsageError(f"--{min(unused)} has no effect with --score: leave it out")
