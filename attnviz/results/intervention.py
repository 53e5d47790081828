"""What is drawn of an intervention: a map before, after, and the difference; the prediction before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.statistics import log_softmax
from attnviz.drawable import Heatmap, Panel, Picture, Series, Table
from attnviz.escape import label
from attnviz.io.formats import capture_document
from attnviz.record import SCORES, Capture, Doubles, Kind, Token
from attnviz.request import Replacement, Response
from attnviz.results.comparison import difference
from attnviz.results.result import Result
from attnviz.selection import Head
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import PLAIN, heatmap, told
from attnviz.views.labels import head_name, name, short

Pair: TypeAlias = tuple[int | None, int | None]
"""The places of a query and of a key; None for all."""

LIKELY = 5  # outputs that are named, of before and of after
REPLACED = {
    "zero": "zeros",
    "mean": "its mean over the queries of this text",
    "uniform": "the mean of the values that it sees",
    "permute": "its values with the weights of each row in another order (Jain & Wallace 2019)",
}
SAYS = {
    "next": "the next token after token {} {}",
    "masked": "token {} {}",
    "class": "the class of the text",
    "vector": "the last vector of token {} {}: nothing is predicted here",
}
SIGNS = "positive: more after, negative: less"
AFTER = "drawn is what is there after the change"
SHOWN = "the weights of an ablated head are shown, but not used"
TITLE = "The prediction, before and after"


class Scope(NamedTuple):
    """What of a model and its text can be changed."""

    kind: Kind
    heads: Mapping[int, tuple[int, ...]]
    """Of each layer."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]


@dataclass(frozen=True)
class Changes:
    """What is changed in a run. All layers, heads and places are there."""

    kind: Kind = "self"
    """Of the map of which edges are cut and heads replaced."""
    pairs: tuple[Pair, ...] = ()
    """The edges that are cut."""
    layers: tuple[int, ...] = ()
    """Where they are cut: in all heads of these."""
    heads: tuple[Head, ...] = ()
    """Or in these heads alone."""
    ablated: tuple[Head, ...] = ()
    how: Replacement = "zero"
    means: Mapping[int, Any] = field(default_factory=dict)
    """Of each layer what its heads put out in the mean, (head, d_v); for ``how="mean"``."""
    seed: int = 0
    """Of the order of weights, for ``how="permute"``."""


class Effect(NamedTuple):
    """How far a prediction moved; NaN for what there is not, of vectors or of predictions."""

    kl: float
    """KL(before || after) in nats."""
    logit: float
    """Change of the target's logit, less the mean of all."""
    cosine: float
    """1 - cos of the vectors before and after: 0 where they point the same way."""


@dataclass(frozen=True)
class Outcome:
    """What a model says before and after, and how far other changes of the same size move it."""

    changes: Changes
    scope: Scope
    """Of what these were chosen."""
    response: Response
    """Run 0 is before, run 1 after."""
    effect: Effect
    drawn: tuple[Changes, ...]
    """The others."""
    others: tuple[Effect, ...]
    """What they do."""

    @property
    def scale(self) -> Effect:
        """The median size of the others; NaN if there are none."""
        medians = np.median(np.abs(self.others), axis=0) if self.others else np.full(3, np.nan)
        return Effect(*medians.tolist())

    @property
    def probabilities(self) -> tuple[Doubles, Doubles]:
        """Of each output before and after; of a vector they mean nothing."""
        before, after = np.exp(log_softmax(self.response.outputs[:2]))
        return before, after

    @property
    def likeliest(self) -> tuple[int, ...]:
        """The LIKELY likeliest outputs before, and those that are among them only after."""
        orders = (np.argsort(-part, kind="stable")[:LIKELY].tolist() for part in self.probabilities)
        return tuple(dict.fromkeys(number for order in orders for number in order))


@dataclass(frozen=True, repr=False)
class InterventionResult(Result):
    """What a model says and attends to before and after changes."""

    outcome: Outcome
    before: Capture
    after: Capture
    """Its notes say what was changed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the changed capture as a document, and what came of the changes under ``intervention``."""
        return {**capture_document(self.after), "intervention": describe_outcome(self.outcome)}

    def rows(self) -> list[dict[str, Any]]:
        """Return the likeliest outputs, a row each, with their probabilities; of vectors there are none."""
        return list_likeliest(self.outcome)

    def tables(self) -> list[Picture]:
        """Return the map before, after and the difference, where there is one, and the prediction."""
        pictures: list[Picture] = []
        if count_matrices(self.after) == 1:
            pictures.append(compared(self.before, self.after))
        return [*pictures, prediction_table(self.outcome)]


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Describe what was changed and what came of it, for JSON."""
    draws = [
        {**describe_changes(changes), **describe_effect(effect)}
        for changes, effect in zip(outcome.drawn, outcome.others, strict=True)
    ]
    return {
        **describe_changes(outcome.changes),
        "prediction": {**describe_prediction(outcome), **describe_effect(outcome.effect)},
        "comparison": {
            "of": elsewhere(outcome.changes),
            "draws": draws,
            "median": describe_effect(outcome.scale),
        },
    }


def describe_changes(changes: Changes) -> dict[str, Any]:
    """Describe which edges were cut, and which heads ablated, for JSON."""
    described: dict[str, Any] = {}
    if changes.pairs:
        edges = [{"query": query, "key": key} for query, key in changes.pairs]
        names_heads = {"heads": head_names(changes.heads)}
        where = names_heads if changes.heads else {"layers": changes.layers}
        described |= {"knock_out": edges, "in": where}
    if changes.ablated:
        described |= {"ablate": head_names(changes.ablated), "with": changes.how}
    return described


def head_names(heads: Sequence[Head]) -> list[str]:
    """Return heads by their short names."""
    return [head_name(*head) for head in heads]


def describe_effect(effect: Effect) -> dict[str, float]:
    """Describe how far a prediction moved, for JSON."""
    return {
        "kl": effect.kl,
        "logit_change": effect.logit,
        "cosine_change": effect.cosine,
    }


def describe_prediction(outcome: Outcome) -> dict[str, Any]:
    """Describe what is predicted, where, and the likeliest outputs; of vectors there are none."""
    response = outcome.response
    place = None if response.kind == "class" else response.place
    token = None if place is None else response.tokens[place].text
    described: dict[str, Any] = {"kind": response.kind, "place": place, "token": token}
    if response.kind == "vector":
        return described
    target = {"token": response.name(response.target), "id": response.target}
    before, after = (
        [
            {"token": response.name(output), "id": output, "probability": float(each[output])}
            for output in outcome.likeliest
        ]
        for each in outcome.probabilities
    )
    return {**described, "target": target, "before": before, "after": after}


def list_likeliest(outcome: Outcome) -> list[dict[str, Any]]:
    """List the likeliest outputs with their probabilities before and after."""
    if outcome.response.kind == "vector":
        return []
    before, after = outcome.probabilities
    return [
        {
            "token": outcome.response.name(output),
            "id": output,
            "before": float(before[output]),
            "after": float(after[output]),
        }
        for output in outcome.likeliest
    ]


def count_matrices(capture: Capture) -> int:
    """Return how many matrices a capture holds: one a layer and head."""
    return sum(len(each.layers) * len(each.heads) for each in capture.maps)


def told_changes(changes: Changes, scope: Scope) -> tuple[str, ...]:
    """What was changed, and where: a line for edges, two for heads."""
    lines = []
    if changes.pairs:
        edges = ", ".join(edge_name(pair, scope) for pair in changes.pairs)
        lines.append(f"cut before the softmax: {edges}, in {where_told(changes, scope)}")
    if changes.ablated:
        lines.append(
            f"ablated: {heads_told(changes.ablated)}, the output replaced by {REPLACED[changes.how]}"
        )
        lines.append(SHOWN)
    return tuple(lines)


def where_told(changes: Changes, scope: Scope) -> str:
    """The heads in which edges are cut."""
    if changes.heads:
        return heads_told(changes.heads)
    if len(changes.layers) == len(scope.heads):
        return "all heads"
    return (
        f"all heads of layer{'s' * (len(changes.layers) > 1)} {', '.join(map(str, changes.layers))}"
    )


def heads_told(heads: Sequence[Head]) -> str:
    """Heads by name."""
    return ", ".join(head_name(*head) for head in heads)


def edge_name(pair: Pair, scope: Scope) -> str:
    """An edge by the numbers and names of its tokens."""
    other = "" if scope.kind == "cross" else "other "
    sides = zip(
        pair, (scope.queries, scope.keys), (f"every {other}query", f"every {other}key"), strict=True
    )
    return " -> ".join(
        every if at is None else f"{at} {name(tokens[at])}" for at, tokens, every in sides
    )


def compared(before: Capture, after: Capture, look: Look = PLAIN) -> Series:
    """The one map of two captures, and after - before, on one scale."""

    def both(look: Look) -> list[Heatmap]:
        return [
            heatmap(replace(each, notes=()), each.maps[0], 0, 0, look) for each in (before, after)
        ]

    drawn = both(look)
    if not all(
        each.scale.has_beyond for each in drawn
    ):  # nothing is beyond colours that both share
        drawn = both(look._replace(whole=True))
    tops, largest = ([getattr(each.scale, part) for each in drawn] for part in ("top", "largest"))
    shared = drawn[0].scale._replace(top=max(tops), largest=max(largest))
    first, second = (
        replace(each, title=title, scale=shared)
        for each, title in zip(drawn, ("before", "after"), strict=True)
    )
    seen = first.panel.visible  # a weight that was cut is 0 after, which is the change
    if after.maps[0].method == SCORES:
        seen = seen & second.panel.visible
    panel = Panel(
        np.where(seen, second.panel.values - first.panel.values, 0).astype(np.float32), seen
    )
    method = after.maps[0].method
    apart = difference("after - before", panel, first.rows, first.columns, look, method)
    apart = replace(apart, caption=(SIGNS if apart.scale.largest else "no difference",))
    notes = dict.fromkeys((*before.notes, *after.notes))
    return Series(drawn[1].title, (first, second, apart), told(tuple(notes)))


def prediction_table(outcome: Outcome) -> Table:
    """The likeliest outputs with their probabilities before and after; of vectors, how far they turned."""
    if outcome.response.kind == "vector":
        cells = ((number(outcome.effect.cosine), number(outcome.scale.cosine)),)
        blank = np.full((1, 2), np.nan, np.float32)
        return Table(
            TITLE, "", ("here", "for scale"), ("1 - cos",), cells, blank, prediction_lines(outcome)
        )
    values = np.stack(outcome.probabilities, axis=-1)[list(outcome.likeliest)]  # (output, 2)
    levels = np.full((len(values), 3), np.nan, np.float32)
    levels[:, :2] = np.sqrt(values)
    return Table(
        TITLE,
        "class" if outcome.response.kind == "class" else "token",
        ("before", "after", "change"),
        tuple(output_name(outcome, each) for each in outcome.likeliest),
        tuple(
            (f"{p:.4f}", f"{q:.4f}", f"{round(q - p, 4) + 0.0:+.4f}") for p, q in values.tolist()
        ),
        levels,
        prediction_lines(outcome),
    )


def output_name(outcome: Outcome, output: int) -> str:
    """What an output says, with the space before it, which tells tokens apart."""
    said = outcome.response.name(output)
    return short(f"{'␣' * (said != said.lstrip(' ') and bool(said.strip()))}{label(said)}")


def prediction_lines(outcome: Outcome) -> tuple[str, ...]:
    """What is predicted, how far it moved, and for scale how far other changes of the same size move it."""
    response, effect = outcome.response, outcome.effect
    where = SAYS[response.kind].format(response.place, name(response.tokens[response.place]))
    moved = f"1 - cos of it before and after: {number(effect.cosine)}"
    if response.kind != "vector":
        target = f"logit of '{output_name(outcome, response.target)}', less the mean of all"
        moved = f"KL(before || after) {number(effect.kl)} nats; {target}, {effect.logit:+.3f}"
    return told((where, moved, scale_line(outcome)))


def likeliest_line(outcome: Outcome) -> str:
    """The likeliest outputs with their probabilities before and after, in a line; nothing of vectors."""
    if outcome.response.kind == "vector":
        return ""
    before, after = outcome.probabilities
    each = (
        f"{output_name(outcome, one)} {before[one]:.4f} to {after[one]:.4f}"
        for one in outcome.likeliest
    )
    return f"probabilities before and after: {', '.join(each)}"


def scale_line(outcome: Outcome) -> str:
    """The median of the others, and what these are."""
    what, count, scale = (
        " and ".join(elsewhere(outcome.changes)),
        len(outcome.others),
        outcome.scale,
    )
    if not count:
        return f"nothing to compare it with: there are not as many {what}"
    median = f"1 - cos {number(scale.cosine)}"
    if outcome.response.kind != "vector":
        median = f"KL {number(scale.kl)} nats, logit ±{scale.logit:.3f}"
    return f"for scale, as many {what}: {median}, median of {count} draw{'s' * (count != 1)}"


def elsewhere(changes: Changes) -> list[str]:
    """What makes other changes of the same size as these."""
    heads = ["other heads of the same layers"] * bool(changes.ablated or changes.heads)
    every = any(query is None for query, _ in changes.pairs)
    keys = (
        "other keys, each of all queries that see it" if every else "other keys of the same queries"
    )
    return heads + [keys] * bool(changes.pairs and not changes.heads)


def number(value: float) -> str:
    """A number to three digits, also a small one; nothing if there is none."""
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if value >= 0.0995 or value == 0 else f"{value:.2g}"
