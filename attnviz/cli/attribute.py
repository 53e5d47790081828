"""`attnviz attribute`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from attnviz import selection
from attnviz.analysis.attribution import BASELINES, SCORINGS, chance
from attnviz.cli import text as text_input
from attnviz.cli.answers import Answer, Record, deliver, target_of
from attnviz.cli.interventions import changed, described, intervention_options, is_changed
from attnviz.cli.options import (
    TOP,
    Sectioned,
    SelectionType,
    model_options,
    note,
    result_options,
    target_option,
    text_argument,
    text_options,
    title_option,
    together,
)
from attnviz.cli.picture import Options
from attnviz.cli.questions import ROWS, given, placed
from attnviz.cli.screen import screen
from attnviz.cli.sources import loaded, prompt
from attnviz.experiments.attribution import Watch, attribute
from attnviz.experiments.intervention import intervention_of
from attnviz.request import NOTHING, Target
from attnviz.results.attribution import CHECKS, Attribution, Check, attribution_pictures, attribution_tables
from attnviz.results.intervention import SHOWN, prediction_table

if TYPE_CHECKING:
    from attnviz.results.intervention import Outcome

UNDER = "what is ranked is what the model says under this intervention; heads that are ablated do not count"
MANY = 64  # runs that take a while

attribute_options = together(
    "View",
    click.option(
        "--query",
        type=SelectionType("N or WORD", selection.parse_token),
        help="The token that is asked. Default: the last of a causal model, the mask, else the first.",
    ),
    click.option("--by", type=click.Choice([*SCORINGS]), help="What ranks. Default: gradient, without a target norm."),
    click.option("--verify", is_flag=True, help="Cut each token off, and tell how far the ranks agree with that."),
    click.option("--leave-one-out", "replaced", is_flag=True, help="Also read other tokens in its place."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."),
    click.option("--top", type=TOP, help=f"Ranked tokens shown. Default on a screen: {ROWS}."),
)


@click.command(cls=Sectioned)
@text_argument
@attribute_options
@target_option
@intervention_options
@title_option
@text_options
@model_options
@result_options
def command(text: str | None, quiet: bool, **options: Any) -> None:
    """Rank tokens by how much they matter for a prediction, and check that against the model.

    Weights are no importance: all methods stand beside each other, and with --verify each with its rank correlation to
    what happens when a token's column is cut in all layers, a run a token. A model that predicts nothing is asked for
    the last vector of a token. First and special tokens, on which heads rest, are shown but not ranked.

    \b
    Examples:
      attnviz attribute "The cat sat on the mat. The cat sat on the"
      attnviz attribute @sample:repeat --verify --top 8
      attnviz attribute "To be or not to" --target-token " be" --by norm
      attnviz attribute @sample:pronoun -m bert-base --query it --verify
      attnviz attribute @sample:repeat --ablate L0H2 --top 5
      attnviz attribute "The cat sat on the mat." --leave-one-out -o ranks.csv
    """
    on = screen(options["width"], options["color"], full=options["full"])
    to = target_of(options)
    content = text_input.read(text, quiet)
    model, read = loaded({**options, "predicts": True}, quiet), prompt(content, options)
    target = Target(options["target_token"], options["query"])
    outcome, told = changed(model, read, options, target) if is_changed(options) else (None, ())
    found = attribute(
        model,
        read,
        target,
        intervention=intervention_of(outcome.changes) if outcome else NOTHING,
        without=outcome.changes.ablated if outcome else (),
        by=options["by"],
        checks=checks(options),
        seed=options["seed"],
        truncate=options["truncate"],
        watch=watching(quiet),
    )
    most = options["top"] if "top" in given() else None if to is not None or options["full"] else ROWS
    in_tables = to is not None and to.form == "md"  # where a picture of the text would be one more table
    if outcome:
        found = replace(found, notes=(*found.notes, *(line for line in told if line != SHOWN), UNDER))
    answer = Answer(
        attribution_tables(found, most, alone=True) if in_tables else attribution_pictures(found, most),
        document(found),
        records(found),
    )
    deliver(answer if outcome is None else with_prediction(answer, outcome), to, on, options, quiet)
    if to is None and not found.effects:
        note("how far to trust it on this text: --verify, a run a token", quiet)


def with_prediction(answer: Answer, outcome: "Outcome") -> Answer:
    """The same with what an intervention did to the prediction, whose tokens are ranked as it is under it."""
    told = {**answer.document, "intervention": described(outcome)}
    return answer._replace(pictures=[*answer.pictures, prediction_table(outcome)], document=told)


def checks(options: Options) -> Sequence[Check]:
    """The interventions that are asked for."""
    return [*CHECKS][: 2 if options["replaced"] else int(options["verify"])]


def watching(quiet: bool) -> Watch:
    """Tell of many runs how far they are, four times."""
    told = 0

    def watch(done: int, total: int) -> None:
        nonlocal told
        if total >= MANY and 4 * done // total > told:
            told = 4 * done // total
            note(f"checked in {done} of {total} runs", quiet)

    return watch


def document(found: Attribution) -> Record:
    """Everything, for JSON."""
    ranked = int(found.ranked.sum())
    return {
        "model": found.model,
        "text": found.text,
        "notes": list(found.notes),
        "kind": found.kind,
        "query": placed([found.tokens[found.query]], [found.query])[0],
        "target": found.target,
        "probability": found.probability,
        "by": found.by,
        "sinks_ranked": False,
        "methods": {
            name: {"definition": SCORINGS[name].definition, "source": SCORINGS[name].source} for name in found.scores
        },
        "tokens": [
            {**token, "ranked": bool(found.ranked[place]), **numbers(found, place)}
            for place, token in enumerate(placed(found.tokens, range(len(found.tokens))))
        ],
        **({"verified": verified(found, ranked)} if found.effects else {}),
    }


def numbers(found: Attribution, place: int) -> Record:
    """The scores, ranks and effects of a token."""
    return {
        "scores": {name: values[place] for name, values in found.scores.items()},
        "ranks": {name: found.ranks(values)[place] for name, values in found.scores.items()},
        "effects": {name: values[place] for name, values in found.effects.items()},
    }


def verified(found: Attribution, ranked: int) -> Record:
    """How far methods and baselines agree with interventions, for JSON."""
    return {
        "tokens": ranked,
        "chance": chance(ranked),
        "interventions": {check: CHECKS[check] for check in found.effects},
        "baselines": BASELINES,
        "spearman": found.agreement,
    }


def records(found: Attribution) -> list[Record]:
    """A line a token, for CSV."""
    ranks = {name: found.ranks(values) for name, values in found.scores.items()}
    return [
        {
            "place": place,
            "token": token.text,
            "ranked": bool(found.ranked[place]),
            **{name: values[place] for name, values in found.scores.items()},
            **{f"{name}_rank": values[place] for name, values in ranks.items()},
            **{name: values[place] for name, values in found.effects.items()},
        }
        for place, token in enumerate(found.tokens)
    ]
