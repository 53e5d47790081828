"""`attnviz attribute`."""

from dataclasses import dataclass

import click

from attnviz.analysis.attribution import SCORINGS
from attnviz.cli import text as text_input
from attnviz.cli.interventions import try_changes
from attnviz.cli.options import (
    DEFAULT_ROWS,
    NOTHING_GIVEN,
    VIEW,
    InterventionOptions,
    ModelOptions,
    ReadingOptions,
    ResultOptions,
    make_intervention_options,
    model_options,
    plain_reading_options,
    result_options,
    target_token_option,
    text_argument,
    title_option,
)
from attnviz.cli.output import (
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
from attnviz.cli.sources import load_chosen_model
from attnviz.experiments.attribution import attribute
from attnviz.request import Target
from attnviz.results.attribution import TokenRemoval
from attnviz.selection import TokenReference, parse_token


@dataclass(frozen=True)
class AttributeOptions:
    """Which tokens are ranked, by what, and how that is checked."""

    query: TokenReference | None = None
    by: str | None = None
    verify: bool = False
    replaced: bool = False
    seed: int = 0
    top: int | None = None
    target_token: str | None = None
    given: frozenset[str] = NOTHING_GIVEN

    @property
    def target(self) -> Target:
        """The prediction that is asked about."""
        return Target(self.target_token, self.query)

    @property
    def checks(self) -> tuple[TokenRemoval, ...]:
        """The interventions that are run for comparison, by name."""
        if self.replaced:
            return "knock-out", "leave-one-out"
        return ("knock-out",) if self.verify else ()

    def count_rows(self, destination: Destination | None, result: ResultOptions) -> int | None:
        """Return the number of ranked tokens in a table; None for all.

        It is what --top says if that is given. Otherwise a file, or a screen with --full, shows all
        tokens. destination: of the table; None for the screen.
        """
        if "top" in self.given:
            return self.top
        shows_all = destination is not None or result.screen.full
        return None if shows_all else DEFAULT_ROWS


attribute_options = option_group(
    "options",
    AttributeOptions,
    option_section(
        VIEW,
        click.option(
            "--query",
            type=ParsedType("N or WORD", parse_token),
            help=(
                "The token that is asked. Default: the last of a causal model, the mask, else the"
                " first."
            ),
        ),
        click.option(
            "--by",
            type=click.Choice([*SCORINGS]),
            help="What ranks. Default: gradient, without a target norm.",
        ),
        click.option(
            "--verify",
            is_flag=True,
            help="Cut each token off, and tell how far the ranks agree with that.",
        ),
        click.option(
            "--leave-one-out",
            "replaced",
            is_flag=True,
            help="Also read other tokens in its place.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of all that is random.",
        ),
        click.option(
            "--top",
            type=ROW_COUNT,
            help=f"Ranked tokens shown. Default on a screen: {DEFAULT_ROWS}.",
        ),
    ),
    target_token_option,
)


@click.command(cls=SectionedCommand)
@text_argument
@attribute_options
@make_intervention_options()
@title_option
@plain_reading_options
@model_options
@result_options
def command(
    text: str | None,
    options: AttributeOptions,
    intervention: InterventionOptions,
    reading: ReadingOptions,
    model: ModelOptions,
    result: ResultOptions,
) -> None:
    """Rank tokens by how much they matter for a prediction, and check that against the model.

    Weights are no importance: all methods stand beside each other, and with --verify each with its
    rank correlation to what happens when a token's column is cut in all layers, a run a token. A
    model that predicts nothing is asked for the last vector of a token. First and special tokens,
    on which heads rest, are shown but not ranked.

    \b
    Examples:
      attnviz attribute "The cat sat on the mat. The cat sat on the"
      attnviz attribute @sample:repeat --verify --top 8
      attnviz attribute "To be or not to" --target-token " be" --by norm
      attnviz attribute @sample:pronoun -m bert-base --query it --verify
      attnviz attribute @sample:repeat --ablate L0H2 --top 5
      attnviz attribute "The cat sat on the mat." --leave-one-out -o ranks.csv
    """
    screen = open_screen(result.screen)
    destination = choose_result_destination(result)
    prompt = reading.prompt(text_input.read_argument(text, result.talk))
    predictor = load_chosen_model(model, result.talk, predicts=True)
    outcome = None
    if intervention.is_asked_for:
        outcome, _ = try_changes(
            predictor,
            prompt,
            intervention,
            options.target,
            truncate=model.truncate,
            seed=options.seed,
        )
    attribution = attribute(
        predictor,
        prompt,
        options.target,
        by=options.by,
        checks=options.checks,
        seed=options.seed,
        truncate=model.truncate,
        outcome=outcome,
    )
    most = options.count_rows(destination, result)
    answer = make_result_answer(
        attribution,
        result.title,
        pictures=attribution.tables(most),
        markdown=attribution.tables_alone(most),  # a picture of the text would be one more table
    )
    deliver(answer, destination, screen, result)
    if destination is None and not attribution.effects:
        result.talk.note("how far to trust it on this text: --verify, a run a token")
