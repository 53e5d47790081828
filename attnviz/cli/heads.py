"""`attnviz heads`."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnviz import selection
from attnviz.analysis.roles import ROLES
from attnviz.cli.answers import Answer, Record, as_json, deliver, target_of
from attnviz.cli.options import (
    Sectioned,
    model_options,
    note,
    result_options,
    selection_options,
    title_option,
    together,
)
from attnviz.cli.picture import Options
from attnviz.cli.screen import screen
from attnviz.cli.sources import loaded
from attnviz.cli.text import read_sample
from attnviz.errors import ModelError, UsageError
from attnviz.experiments import ablation, heads, sequences
from attnviz.lm import corpus
from attnviz.models.base import require_losses
from attnviz.results import head_roles
from attnviz.results.head_roles import ablation_table, heads_table, names_map, roles_table, score_map
from attnviz.selection import ALL, Named
from attnviz.views import Picture

if TYPE_CHECKING:
    from attnviz.models import Model

PROSE = "agreement", "article", "paragraph", "pronoun", "question", "review"  # samples that are plain English
NOT_GIVEN = {"pair": None, "target": None, "generate": None}
WIDTH = 80

reading_options = together(
    "What it reads",
    click.option("--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Random sequences."),
    click.option("--block", type=click.IntRange(4, 4096), default=25, show_default=True, help="Tokens that repeat."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random."),
    click.option(
        "--corpus", metavar="FILE", help=f"Texts, an empty line between two: {sequences.DOCUMENTS} at most are read."
    ),
)
view_options = together(
    "View",
    click.option("--role", type=click.Choice([*ROLES]), metavar="ROLE", help=f"One score: {', '.join(ROLES)}."),
    click.option("--ablate", is_flag=True, help="Measure the loss without the heads that have a name, or are chosen."),
    click.option("--explain-roles", "explain", is_flag=True, help="Say what the roles are, and where they are from."),
)


@click.command(cls=Sectioned)
@selection_options
@view_options
@title_option
@reading_options
@model_options
@result_options
def command(quiet: bool, explain: bool, **options: Any) -> None:
    """Find what each head is: induction, previous token, sink and others, and what the model loses without it.

    Scores are measured on random tokens that repeat and on texts: the samples in plain English, or those of --corpus,
    of each the first 1,000 characters, cut to what the model reads. A head is named where a score is far above chance.

    \b
    Examples:
      attnviz heads
      attnviz heads --explain-roles
      attnviz heads --role induction
      attnviz heads --ablate -H L0H2,L1H3
      attnviz heads --model bert-base -o heads.png
      attnviz heads --sequences 4 --block 10 --json
    """
    if explain:
        told = as_json({"definitions": definitions()}).decode() if options["as_json"] else "\n".join((*explained(), ""))
        click.echo(told, nl=False)
        return
    if isinstance(options["heads"], Named) and options["layers"] is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    on = screen(options["width"], options["color"], full=options["full"])
    to = target_of(options)
    texts = read_texts(options["corpus"])
    model = load(options, quiet)
    setting = head_roles.Setting(options["sequences"], options["block"], options["seed"])
    every = heads.measure_heads(model, setting, texts)
    found = chosen(every, options)
    ablated = ablate(model, every, found, texts, options, quiet) if options["ablate"] else None
    drawn = pictures(found, ablated, options["role"])
    deliver(Answer(drawn, document(found, ablated), records(found, ablated)), to, on, options, quiet)
    if to is None and not ablated:
        note("see more: --role, --explain-roles; --ablate: the loss without them; -o FILE.csv", quiet)


command.params = [param for param in command.params if param.name != "truncate"]  # texts are cut anyway


def read_texts(path: str | None) -> list[str]:
    """The texts of a corpus, or the samples. Raises InputError."""
    return sequences.excerpts(corpus.read([Path(path)]) if path is not None else list(map(read_sample, PROSE)))


def load(options: Options, quiet: bool) -> "Model":
    """The model, with the part that predicts next tokens if a loss is to be measured. Raises ModelError."""
    try:
        model = loaded({**options, **NOT_GIVEN, "generate": options["ablate"]}, quiet)
    except ModelError as error:
        raise ModelError(str(error).replace("leave --generate out", "leave --ablate out")) from error
    return require_losses(model) if options["ablate"] else model


def chosen(roles: head_roles.Roles, options: Options) -> head_roles.Roles:
    """The heads that the options name. Raises UsageError for one that is not there."""
    there: dict[int, list[int]] = {}
    for head in roles.heads:
        there.setdefault(head.layer, []).append(head.head)
    asked = selection.resolve(options["layers"] or ALL, options["heads"] or ALL, there)
    places = {(layer, head) for layers, of_each in asked for layer in layers for head in of_each}
    return replace(roles, heads=tuple(head for head in roles.heads if head.place in places))


def ablate(
    model: "Model",
    every: head_roles.Roles,
    found: head_roles.Roles,
    texts: Sequence[str],
    options: Options,
    quiet: bool,
) -> head_roles.Ablation:
    """The loss without the heads that -l and -H choose, else without those that have a name, that of --role if given.

    Raises UsageError if there are none.
    """
    wanted = found.heads
    if options["layers"] is None and options["heads"] is None:
        wanted = tuple(head for head in found.heads if head.role and options["role"] in (None, head.role))
    if not wanted:
        what = f"plays the role {options['role']}" if options["role"] else "has a name"
        raise UsageError(f"--ablate: no head of {model.name} {what}: choose heads with -l and -H")

    def watch(done: int, total: int) -> None:
        note(f"ablation: {done} of {total} runs", quiet or done % max(1, total // 4) > 0)

    return ablation.ablate(model, every, wanted, texts, watch)


def pictures(roles: head_roles.Roles, ablated: head_roles.Ablation | None, role: str | None) -> list[Picture]:
    """What is drawn."""
    drawn: list[Picture] = [names_map(roles), roles_table(roles)]
    if role is not None:
        drawn = [score_map(roles, role), heads_table(roles, role)]
    return [*drawn, ablation_table(ablated)] if ablated else drawn


def document(roles: head_roles.Roles, ablated: head_roles.Ablation | None) -> Record:
    """Everything, for JSON."""
    return {
        "model": roles.model,
        **roles.setting._asdict(),
        "texts": roles.texts,
        "definitions": definitions(),
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "role": head.role,
                "scores": {name: score._asdict() for name, score in head.scores.items()},
                "on_text": {name: score._asdict() for name, score in head.on_text.items()},
            }
            for head in roles.heads
        ],
        **({"ablation": ablation_document(ablated)} if ablated else {}),
    }


def definitions() -> Record:
    """What the roles are, for JSON."""
    return {
        name: {"definition": role.definition, "source": role.source, "data": role.data, "threshold": role.threshold}
        for name, role in ROLES.items()
    }


def ablation_document(ablated: head_roles.Ablation) -> Record:
    """The losses, for JSON."""
    without = []
    for part in ablated.ablated:
        rises: dict[str, dict[str, Any]] = {}
        for (data, how), rise in part.rises.items():
            rises.setdefault(data, {})[how] = {**rise.own._asdict(), "others": rise.others._asdict()}
        without.append({"heads": part.heads, "role": part.role, "rise": rises})
    return {"loss": {data: whole._asdict() for data, whole in ablated.whole.items()}, "without": without}


def records(roles: head_roles.Roles, ablated: head_roles.Ablation | None) -> list[Record]:
    """The numbers for CSV: of the ablation if there is one, else the scores."""
    if ablated:
        return [
            {
                "heads": " ".join(f"L{layer}H{head}" for layer, head in part.heads),
                "role": part.role,
                "data": data,
                "replaced_by": how,
                **rise.own._asdict(),
                **{f"others_{name}": value for name, value in rise.others._asdict().items()},
            }
            for part in ablated.ablated
            for (data, how), rise in part.rises.items()
        ]
    return [
        {"layer": head.layer, "head": head.head, "role": head.role, "data": data, "score": name, **score._asdict()}
        for head in roles.heads
        for data, scores in (("repeated", head.scores), ("text", head.on_text))
        for name, score in scores.items()
    ]


def explained() -> list[str]:
    """What each role is, in lines that fit a screen."""
    lines = []
    for name, role in ROLES.items():
        least = "names no head" if role.threshold is None else f"threshold {role.threshold}"
        where = " and ".join("repeated random tokens" if data == "repeated" else "text" for data in role.data)
        lines.append(f"{role.short}  {name} · on {where} · {least}")
        lines += textwrap.wrap(
            f"{role.definition} ({role.source})", WIDTH, initial_indent="     ", subsequent_indent="     "
        )
    return lines
