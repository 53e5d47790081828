"""Interventions: the options that cut edges and replace heads, and what is shown of the model under them."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import click

from attnviz import views
from attnviz.cli import output
from attnviz.cli import text as text_input
from attnviz.cli.options import SelectionType, together
from attnviz.cli.picture import Options, is_single, is_wide, look, pictures, prepared, request
from attnviz.cli.sources import loaded, prompt, tell, weighed, worded
from attnviz.derived import Source
from attnviz.errors import UsageError
from attnviz.record import Capture
from attnviz.request import Prompt, Request, Target
from attnviz.selection import ALL, Head, Named, Spot, parse_heads, parse_token, resolve
from attnviz.views import Picture

if TYPE_CHECKING:
    from attnviz.cli.answers import Answer, Record
    from attnviz.models import Model
    from attnviz.render.terminal.draw import Screen
    from attnviz.results.intervention import Changes, Effect, Outcome, Scope

EDGE = re.compile(r"\s*(\S.*?)\s*->\s*(\S.*?)\s*", re.DOTALL)  # at the first arrow that leaves something before it
EVERY = "*"
Spots: TypeAlias = tuple[Spot | None, Spot | None]
UNUSED = {"norm": "their norms mean", "rollout": "a rollout through them means"}  # of heads whose output is replaced


def parse_edge(text: str) -> Spots:
    """Parse Q->K, each a number, what a token says, or * for all. Raises ValueError saying what is allowed."""
    match = EDGE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no edge: write query->key, such as 'it->cat', '8->2' or '*->cat'")
    query, key = (None if side == EVERY else parse_token(side) for side in match.groups())
    return query, key


def parse_named(text: str) -> Named:
    """Parse heads by name. Raises ValueError saying what is allowed."""
    try:
        found = parse_heads(text)
    except ValueError:
        found = ALL
    if not isinstance(found, Named):
        raise ValueError(f"{text!r} names no head: write L5H3 or L5H3,L2H1")
    return found


intervention_options = together(
    "Interventions",
    click.option(
        "--knock-out",
        "cuts",
        multiple=True,
        type=SelectionType("Q->K", parse_edge),
        help="Cut an edge before the softmax: a query and a key, each a number, a word or * for all. Repeatable.",
    ),
    click.option(
        "--in",
        "inside",
        type=SelectionType("layers or heads", parse_heads),
        help="Where edges are cut: 3, 2-5, all, or L5H3,L2H1. Default: everywhere.",
    ),
    click.option(
        "--ablate", "ablated", type=SelectionType("heads", parse_named), help="Replace the output of heads: L5H3,L2H1."
    ),
    click.option(
        "--with",
        "replacement",
        type=click.Choice(["zero", "mean", "uniform", "permute"]),
        help="By zeros (default), its mean over queries, the mean of the values it sees, its weights in another order.",
    ),
)


def is_changed(options: Options) -> bool:
    """Whether the options ask for an intervention. Raises UsageError if they contradict each other."""
    cuts, ablated = options["cuts"], options["ablated"]
    if options["inside"] is not None and not cuts:
        raise UsageError("--in says where edges are cut: name them with --knock-out")
    if options["replacement"] is not None and ablated is None:
        raise UsageError("--with says what replaces the output of heads: name them with --ablate")
    if not cuts and ablated is None:
        return False
    name = "--knock-out" if cuts else "--ablate"
    if options.get("source") is not None:
        raise UsageError(f"{name} needs a model to run, and --from reads a capture: leave one of them out")
    if options.get("generate"):
        raise UsageError(f"{name} changes what is made of a text that is there: leave --generate out")
    if cuts and options.get("words"):
        raise UsageError("--knock-out cuts edges between tokens: leave --words out")
    if ablated is not None and options.get("method") in UNUSED:
        why = UNUSED[options["method"]]
        raise UsageError(f"--ablate replaces the output of heads, so {why} nothing: use another --weights")
    return True


class Run(NamedTuple):
    """A model under an intervention, and without."""

    outcome: "Outcome"
    before: Source
    after: Source
    """Its captures say in their notes what was changed."""


def intervened(text: str | None, options: Options, quiet: bool) -> Run:
    """Change what the options name in a run of the model on the text. Raises UsageError, ModelError, InputError."""
    from attnviz.experiments.intervention import intervention_of
    from attnviz.models.base import require_predictions

    content = text_input.read(text, quiet)
    model, read = require_predictions(loaded({**options, "predicts": True}, quiet)), prompt(content, options)
    outcome, told = changed(model, read, options, Target(options["target_token"]))
    intervention = intervention_of(outcome.changes)
    captures = partial(model.capture, read), partial(model.capture, read, intervention=intervention)
    same = {} if outcome.response.kind == "vector" else {"target_token": outcome.response.target}  # of both
    before, after = (worded(weighed(capture, {**options, **same}), options) for capture in captures)
    return Run(outcome, before, partial(noted, after, told))


def changed(model: "Model", read: Prompt, options: Options, target: Target) -> tuple["Outcome", Sequence[str]]:
    """What comes of the changes that the options name, and what these are in words."""
    from attnviz.experiments.intervention import Subject, intervene
    from attnviz.results.intervention import told_changes

    subject = Subject.of(model, read, options.get("kind"), truncate=options["truncate"])
    outcome = intervene(subject, changes_of(subject.scope, options), target, options.get("seed", 0))
    return outcome, told_changes(outcome.changes, outcome.scope)


def noted(source: Source, lines: Sequence[str], request: Request) -> Capture:
    """What a source has, with further notes."""
    found = source(request)
    return replace(found, notes=(*found.notes, *lines))


def changes_of(scope: "Scope", options: Options) -> "Changes":
    """What the options name, of a model and its text. Raises UsageError for what is not there."""
    from attnviz.results.intervention import Changes

    inside = options["inside"] or ALL
    heads = named(inside, scope) if isinstance(inside, Named) else ()
    layers = () if isinstance(inside, Named) else inside.resolve(tuple(scope.heads), "layer")
    pairs = tuple(dict.fromkeys(placed(edge, scope) for edge in options["cuts"]))
    ablated = named(options["ablated"], scope) if options["ablated"] else ()
    return Changes(scope.kind, pairs, layers, heads, ablated, options["replacement"] or "zero")


def named(heads: Named, scope: "Scope") -> tuple[Head, ...]:
    """Named heads, counted from 0. Raises UsageError for one that is not there."""
    found = resolve(ALL, heads, scope.heads)
    return tuple((layer, head) for layers, of_each in found for layer in layers for head in of_each)


def placed(edge: Spots, scope: "Scope") -> tuple[int | None, int | None]:
    """The places of an edge's tokens. Raises UsageError for a token that is not there, or there more than once."""
    query, key = edge
    return (
        None if query is None else int(query.resolve(scope.queries).start),
        None if key is None else int(key.resolve(scope.keys).start),
    )


def deliver(run: Run, to: output.Target | None, on: "Screen", options: Options, *, quiet: bool, verbose: bool) -> None:
    """Show or write what a model does under an intervention: the changed maps, and the prediction before and after."""
    from attnviz.cli import answers

    form = to.form if to else None
    wanted, single = request(options, form, on), is_single(options) and not is_wide(options, form)
    wanted = replace(wanted, keep="weights") if single else wanted  # tiles have no difference
    after = prepared(run.after(wanted), options, form)
    tell(after, quiet, verbose)
    if to and form in ("csv", "npz"):
        output.deliver(after, to, options, quiet)
        return
    before = prepared(run.before(wanted), options, form) if single and is_one(after) else None
    answers.deliver(answer(run, before, after, form, options), to, on, options, quiet)


def answer(run: Run, before: Capture | None, after: Capture, form: str | None, options: Options) -> "Answer":
    """What is told in a format. before: where one map is drawn, to compare it with."""
    from attnviz.cli.answers import Answer
    from attnviz.io.formats import to_json
    from attnviz.results.intervention import AFTER, compared, likeliest_line, prediction_lines, prediction_table

    table, page, document = prediction_table(run.outcome), None, {}
    drawn: list[Picture] = []
    if form == "json":
        document = {**json.loads(to_json(after)), "intervention": described(run.outcome)}
    elif before is not None:
        drawn = [compared(before, after, look(options))]
    elif form == "html":
        told = AFTER, *prediction_lines(run.outcome), likeliest_line(run.outcome)
        page = views.page(replace(after, notes=(*after.notes, *told)), look(options))
    else:
        after = replace(after, notes=(*after.notes, AFTER))
        drawn = [*pictures(after, options, apart=form == "md")]
    return Answer([*drawn, table], document, [], page)


def is_one(capture: Capture) -> bool:
    """Whether there is one matrix."""
    return sum(len(part.layers) * len(part.heads) for part in capture.maps) == 1


def described(outcome: "Outcome") -> "Record":
    """What was changed and what came of it, for JSON."""
    from attnviz.results.intervention import elsewhere

    changes = outcome.changes
    others = {
        "of": elsewhere(changes),
        "draws": [{**done(drawn), **effect(found)} for drawn, found in zip(outcome.drawn, outcome.others, strict=True)],
        "median": effect(outcome.scale),
    }
    return {
        **done(changes),
        "prediction": {**predicted(outcome), **effect(outcome.effect)},
        "comparison": others,
    }


def done(changes: "Changes") -> "Record":
    """What is changed, for JSON."""
    where = {"heads": names(changes.heads)} if changes.heads else {"layers": changes.layers}
    cut = {"knock_out": [{"query": query, "key": key} for query, key in changes.pairs], "in": where}
    ablated = {"ablate": names(changes.ablated), "with": changes.how}
    return {**(cut if changes.pairs else {}), **(ablated if changes.ablated else {})}


def names(heads: Sequence[Head]) -> list[str]:
    """Heads by their short names."""
    return [f"L{layer}H{head}" for layer, head in heads]


def effect(found: "Effect") -> "Record":
    """How far a prediction moved, for JSON."""
    return {"kl": found.kl, "logit_change": found.logit, "cosine_change": found.cosine}


def predicted(outcome: "Outcome") -> "Record":
    """What is predicted, where, and the likeliest outputs before and after; of vectors there are none."""
    response, likely = outcome.response, outcome.likeliest
    at = None if response.kind == "class" else response.place
    told = {"kind": response.kind, "place": at, "token": None if at is None else response.tokens[at].text}
    if response.kind == "vector":
        return told
    target = {"token": response.name(response.target), "id": response.target}
    before, after = (
        [{"token": response.name(one), "id": one, "probability": float(values[one])} for one in likely]
        for values in outcome.probabilities
    )
    return {**told, "target": target, "before": before, "after": after}
