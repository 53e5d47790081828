"""The result of an intervention: the attention and the prediction before and after a change.

An intervention cuts edges of the attention or replaces the output of heads while the model runs.
The map and the prediction are drawn as they were before, as they are after, and the difference. For
scale there are random draws of other changes of the same size, and how far these move the
prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.numerics import log_softmax
from attnviz.drawable import (
    Heatmap,
    Panel,
    Picture,
    Scale,
    Series,
    Table,
    make_blank_levels,
)
from attnviz.escape import label_token
from attnviz.io.formats import make_capture_document
from attnviz.record import SCORES, Capture, Doubles, Kind, Token
from attnviz.request import Replacement, Response
from attnviz.results.comparison import draw_difference
from attnviz.results.result import Result
from attnviz.selection import Head
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import DEFAULT_LOOK, make_caption, make_heatmap
from attnviz.views.labels import (
    abbreviate_head,
    name_token,
    shorten_token_label,
)

Pair: TypeAlias = tuple[int | None, int | None]
"""The positions of a query and of a key; None for all."""

LIKELY = 5  # outputs that are named, of before and of after
REPLACED = {
    "zero": "zeros",
    "mean": "its mean over the queries of this text",
    "uniform": "the mean of the values that it sees",
    "permute": "its values with the weights of each row in another order (Jain & Wallace 2019)",
}
PREDICTED = {
    "next": "the next token after token {} {}",
    "masked": "token {} {}",
    "class": "the class of the text",
    "vector": "the last vector of token {} {}: nothing is predicted here",
}
SIGNS = "positive: more after, negative: less"
AFTER = "drawn is what is there after the change"
SHOWN = "the weights of an ablated head are shown, but not used"
TITLE = "The prediction, before and after"
OTHER_HEADS = "other heads of the same layers"
OTHER_KEYS = "other keys of the same queries"
OTHER_KEYS_OF_ALL = "other keys, each of all queries that see it"
LEAST_OF_THREE_DIGITS = 0.0995  # a number that three digits after the point show to two digits


class InterventionScope(NamedTuple):
    """The layers, heads and tokens of a model and its text that can be changed."""

    kind: Kind
    heads: Mapping[int, tuple[int, ...]]
    """By layer."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]


@dataclass(frozen=True)
class InterventionChanges:
    """The changes that are made in a run. All layers, heads and positions exist in the model."""

    kind: Kind = "self"
    """The kind of the map of which edges are cut and heads replaced."""
    pairs: tuple[Pair, ...] = ()
    """The edges that are cut."""
    layers: tuple[int, ...] = ()
    """The layers in all heads of which edges are cut."""
    heads: tuple[Head, ...] = ()
    """The heads in which alone edges are cut, in place of layers."""
    ablated: tuple[Head, ...] = ()
    how: Replacement = "zero"
    means: Mapping[int, Any] = field(default_factory=dict)
    """By layer the mean output of its heads, (head, d_v); for ``how="mean"``."""
    seed: int = 0
    """The seed of the order of weights, for ``how="permute"``."""


class Effect(NamedTuple):
    """The size of the move of a prediction.

    NaN stands for what is undefined: KL and logit of vectors, the cosine of predictions.
    """

    kl: float
    """KL(before || after) in nats."""
    logit: float
    """The change of the target's logit, less the mean of all."""
    cosine: float
    """1 - cos of the vectors before and after: 0 where they point the same way."""


@dataclass(frozen=True)
class InterventionOutcome:
    """The prediction before and after changes, and the effects of other ones of the same size."""

    changes: InterventionChanges
    scope: InterventionScope
    """All that could be changed."""
    response: Response
    """Run 0 is before, run 1 after."""
    effect: Effect
    random_changes: tuple[InterventionChanges, ...]
    """Other changes of the same size, drawn at random."""
    others: tuple[Effect, ...]
    """The effects of these."""

    @property
    def scale(self) -> Effect:
        """The median size of each number of the other effects; NaN if there are none."""
        if not self.others:
            return Effect(np.nan, np.nan, np.nan)
        medians = np.median(np.abs(self.others), axis=0)
        return Effect(*medians.tolist())

    @property
    def probabilities(self) -> tuple[Doubles, Doubles]:
        """The probabilities (output,) before and after; meaningless if the response is a vector."""
        outputs = self.response.outputs[:2]
        before, after = np.exp(log_softmax(outputs))
        return before, after

    @property
    def likeliest_outputs(self) -> tuple[int, ...]:
        """The numbers of the likeliest outputs before the changes, then of those likely only after.

        An output is a token of the vocabulary or a class. At most LIKELY of them count before, and
        as many after.
        """
        outputs: dict[int, None] = {}
        for probabilities in self.probabilities:
            falling = np.argsort(-probabilities, kind="stable")
            outputs |= dict.fromkeys(falling[:LIKELY].tolist())
        return tuple(outputs)


@dataclass(frozen=True, repr=False)
class InterventionResult(Result):
    """The attention and the prediction of a model before and after changes."""

    outcome: InterventionOutcome
    before: Capture
    after: Capture
    """Its notes say what was changed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the changed capture as a document, and under "intervention" what came of it."""
        document = make_capture_document(self.after)
        return {**document, "intervention": describe_outcome(self.outcome)}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each likeliest output, with its probabilities; none for vectors."""
        return list_likeliest(self.outcome)

    def tables(self) -> list[Picture]:
        """Return the prediction before and after, and maps if a single matrix was captured.

        The maps are of that matrix before, after, and of the difference.
        """
        pictures: list[Picture] = []
        if count_matrices(self.after) == 1:
            pictures.append(draw_intervention(self.before, self.after))
        return [*pictures, make_prediction_table(self.outcome)]


# For JSON and CSV


def describe_outcome(outcome: InterventionOutcome) -> dict[str, Any]:
    """Describe what was changed in a run of a model and what came of it, for JSON.

    "comparison" has, for scale, the effects of other changes of the same size, drawn at random.
    """
    prediction = describe_prediction(outcome)
    prediction |= describe_effect(outcome.effect)
    draws = []
    for random_changes, effect in zip(outcome.random_changes, outcome.others, strict=True):
        draws.append({**describe_changes(random_changes), **describe_effect(effect)})
    comparison = {
        "of": name_other_changes(outcome.changes),
        "draws": draws,
        "median": describe_effect(outcome.scale),
    }
    changes = describe_changes(outcome.changes)
    return {**changes, "prediction": prediction, "comparison": comparison}


def describe_changes(changes: InterventionChanges) -> dict[str, Any]:
    """Describe for JSON which edges were cut, in which heads or layers, and which heads ablated.

    An edge is from a query to a key, by their positions; None stands for all. "with" says what
    replaced the output of ablated heads.
    """
    described: dict[str, Any] = {}
    if changes.pairs:
        edges = [{"query": query, "key": key} for query, key in changes.pairs]
        described["knock_out"] = edges
        if changes.heads:
            described["in"] = {"heads": abbreviate_heads(changes.heads)}
        else:
            described["in"] = {"layers": changes.layers}
    if changes.ablated:
        described["ablate"] = abbreviate_heads(changes.ablated)
        described["with"] = changes.how
    return described


def abbreviate_heads(heads: Sequence[Head]) -> list[str]:
    """Return the short names of heads, as L5H3, in their order."""
    return [abbreviate_head(*head) for head in heads]


def describe_effect(effect: Effect) -> dict[str, float]:
    """Describe how far a prediction moved by its divergence, logit and cosine, for JSON."""
    return {
        "kl": effect.kl,
        "logit_change": effect.logit,
        "cosine_change": effect.cosine,
    }


def describe_prediction(outcome: InterventionOutcome) -> dict[str, Any]:
    """Describe for JSON what is predicted, where, and the likeliest outputs before and after.

    Where the model predicts nothing, and only its last vector is read, there are no outputs.
    """
    response = outcome.response
    position = None if response.kind == "class" else response.place
    token = None if position is None else response.tokens[position].text
    described: dict[str, Any] = {"kind": response.kind, "place": position, "token": token}
    if response.kind == "vector":
        return described
    before, after = outcome.probabilities
    target = response.target
    described["target"] = {"token": response.name(target), "id": target}
    described["before"] = describe_likeliest(outcome, before)
    described["after"] = describe_likeliest(outcome, after)
    return described


def describe_likeliest(
    outcome: InterventionOutcome,
    probabilities: Doubles,
) -> list[dict[str, Any]]:
    """Describe the likeliest outputs with their probabilities in one run, for JSON.

    They are the outputs that are likely before or after the changes. probabilities: (output,), of
    the run before or of that after.
    """
    outputs = []
    for output in outcome.likeliest_outputs:
        text = outcome.response.name(output)
        probability = float(probabilities[output])
        outputs.append({"token": text, "id": output, "probability": probability})
    return outputs


def list_likeliest(outcome: InterventionOutcome) -> list[dict[str, Any]]:
    """List the likeliest outputs with their probabilities before and after, for a CSV file.

    There are none where the model predicts nothing and only its last vector is read.
    """
    if outcome.response.kind == "vector":
        return []
    before, after = outcome.probabilities
    rows = []
    for output in outcome.likeliest_outputs:
        row = {"token": outcome.response.name(output), "id": output}
        row["before"] = float(before[output])
        row["after"] = float(after[output])
        rows.append(row)
    return rows


# In words


def count_matrices(capture: Capture) -> int:
    """Return how many matrices a capture holds: one for each layer and head of its maps."""
    count = 0
    for attention_map in capture.maps:
        count += len(attention_map.layers) * len(attention_map.heads)
    return count


def explain_changes(changes: InterventionChanges, scope: InterventionScope) -> tuple[str, ...]:
    """Explain what was changed in lines: one on cut edges, two on ablated heads.

    scope: all tokens and heads that could be changed, which gives edges their names.
    """
    lines = []
    if changes.pairs:
        edges = ", ".join(name_edge(pair, scope) for pair in changes.pairs)
        heads = name_changed_heads(changes, scope)
        lines.append(f"cut before the softmax: {edges}, in {heads}")
    if changes.ablated:
        heads = ", ".join(abbreviate_heads(changes.ablated))
        replacement = REPLACED[changes.how]
        lines.append(f"ablated: {heads}, the output replaced by {replacement}")
        lines.append(SHOWN)
    return tuple(lines)


def name_changed_heads(changes: InterventionChanges, scope: InterventionScope) -> str:
    """Name the heads in which edges are cut: each by its name, or all heads of some layers.

    scope: all heads that could be changed.
    """
    if changes.heads:
        return ", ".join(abbreviate_heads(changes.heads))
    layer_count = len(changes.layers)
    if layer_count == len(scope.heads):
        return "all heads"
    noun = "layers" if layer_count > 1 else "layer"
    layers = ", ".join(map(str, changes.layers))
    return f"all heads of {noun} {layers}"


def name_edge(pair: Pair, scope: InterventionScope) -> str:
    """Name an edge from a query to a key by the positions and texts of its tokens.

    pair: the positions of the query and the key; None stands for every one but the other token
    itself, as a token is not cut from itself. In cross-attention, which is between two texts, None
    stands for every one. scope: the tokens and the kind of attention.
    """
    query, key = pair
    other = "" if scope.kind == "cross" else "other "
    query_name = f"every {other}query"
    if query is not None:
        query_name = f"{query} {name_token(scope.queries[query])}"
    key_name = f"every {other}key"
    if key is not None:
        key_name = f"{key} {name_token(scope.keys[key])}"
    return f"{query_name} -> {key_name}"


# The map before, after, and the difference


def draw_intervention(before: Capture, after: Capture, look: Look = DEFAULT_LOOK) -> Series:
    """Draw the map of one head before and after a change, and their difference.

    before, after: captures of that head alone. The first two heatmaps have one colour scale.
    """
    first, second = draw_on_one_scale(before, after, look)
    method = after.maps[0].method
    panel = subtract_before(first.panel, second.panel, method)
    difference = draw_change(panel, first, look, method)
    notes = dict.fromkeys((*before.notes, *after.notes))
    heatmaps = (
        replace(first, title="before"),
        replace(second, title="after"),
        difference,
    )
    return Series(second.title, heatmaps, make_caption(tuple(notes)))


def draw_on_one_scale(before: Capture, after: Capture, look: Look) -> tuple[Heatmap, Heatmap]:
    """Draw the map of one head before and after a change, on a colour scale that both share.

    Sinks, that is, keys that soak up attention, lie beyond the end of the scale only if there are
    some in both.
    """
    first = draw_first_matrix(before, look)
    second = draw_first_matrix(after, look)
    both_have_sinks = first.scale.has_beyond and second.scale.has_beyond
    if not both_have_sinks:
        # The colours reach the largest weight.
        whole = look._replace(whole=True)
        first = draw_first_matrix(before, whole)
        second = draw_first_matrix(after, whole)
    top = max(first.scale.top, second.scale.top)
    largest = max(first.scale.largest, second.scale.largest)
    shared: Scale = first.scale._replace(top=top, largest=largest)
    return replace(first, scale=shared), replace(second, scale=shared)


def draw_first_matrix(capture: Capture, look: Look) -> Heatmap:
    """Draw the first matrix of a capture, without the notes of the capture."""
    without_notes = replace(capture, notes=())
    return make_heatmap(without_notes, capture.maps[0], 0, 0, look)


def subtract_before(before: Panel, after: Panel, method: str) -> Panel:
    """Return the change of a matrix, after - before, and the cells where it is defined.

    method: the kind of numbers. A weight that was cut is 0 after, which is a change like others. A
    score before the softmax that was cut is not there any more, and its cell is not visible.
    """
    visible = before.visible
    if method == SCORES:
        visible = visible & after.visible
    change = after.values - before.values
    values = np.where(visible, change, 0).astype(np.float32)
    return Panel(values, visible)


def draw_change(panel: Panel, before: Heatmap, look: Look, method: str) -> Heatmap:
    """Draw the change of a matrix on the axes of the map before, with a line about its signs.

    panel: after - before. method: the kind of numbers that were subtracted.
    """
    rows, columns = before.rows, before.columns
    heatmap = draw_difference("after - before", panel, rows, columns, look, method)
    line = SIGNS if heatmap.scale.largest else "no difference"
    return replace(heatmap, caption=(line,))


# The prediction before and after


def make_prediction_table(outcome: InterventionOutcome) -> Table:
    """Make a table of the likeliest outputs with their probabilities before and after a change.

    Where the model predicts nothing, it is a table of how far its last vector turned.
    """
    if outcome.response.kind == "vector":
        return make_vector_table(outcome)
    outputs = list(outcome.likeliest_outputs)
    names = [name_output(outcome, output) for output in outputs]
    values = np.stack(outcome.probabilities, axis=-1)[outputs]  # (output, 2)
    cells = [format_change(before, after) for before, after in values.tolist()]
    levels = make_blank_levels(len(outputs), 3)
    levels[:, :2] = np.sqrt(values)
    heading = "class" if outcome.response.kind == "class" else "token"
    return Table(
        title=TITLE,
        corner=heading,
        columns=("before", "after", "change"),
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=explain_prediction(outcome),
    )


def make_vector_table(outcome: InterventionOutcome) -> Table:
    """Make a table of how far a vector turned by a change, and by other changes for scale."""
    here = format_effect(outcome.effect.cosine)
    for_scale = format_effect(outcome.scale.cosine)
    return Table(
        title=TITLE,
        corner="",
        columns=("here", "for scale"),
        rows=("1 - cos",),
        cells=((here, for_scale),),
        levels=make_blank_levels(1, 2),
        caption=explain_prediction(outcome),
    )


def format_change(before: float, after: float) -> tuple[str, str, str]:
    """Format a probability before and after, and the change, to four digits after the point."""
    change = round(after - before, 4) + 0.0  # no -0.0000
    return f"{before:.4f}", f"{after:.4f}", f"{change:+.4f}"


def name_output(outcome: InterventionOutcome, output: int) -> str:
    """Name an output by its text: what a token says, or the name of a class.

    A sign stands for a space before it, which alone tells some tokens apart. output: its number.
    """
    text = outcome.response.name(output)
    begins_with_space = text != text.lstrip(" ")
    space = ""
    if begins_with_space and text.strip():
        space = "␣"
    return shorten_token_label(f"{space}{label_token(text)}")


def explain_prediction(outcome: InterventionOutcome) -> tuple[str, ...]:
    """Explain in lines what is predicted, how far it moved, and how far other changes move it."""
    response, effect = outcome.response, outcome.effect
    token = name_token(response.tokens[response.place])
    predicted = PREDICTED[response.kind].format(response.place, token)
    if response.kind == "vector":
        moved = f"1 - cos of it before and after: {format_effect(effect.cosine)}"
    else:
        divergence = f"KL(before || after) {format_effect(effect.kl)} nats"
        output = name_output(outcome, response.target)
        logit = f"logit of '{output}', less the mean of all, {effect.logit:+.3f}"
        moved = f"{divergence}; {logit}"
    return make_caption((predicted, moved, describe_other_changes(outcome)))


def summarise_likeliest(outcome: InterventionOutcome) -> str:
    """Say in a line how the probabilities of the likeliest outputs changed.

    It is empty where the model predicts nothing and only its last vector is read.
    """
    if outcome.response.kind == "vector":
        return ""
    before, after = outcome.probabilities
    pieces = []
    for output in outcome.likeliest_outputs:
        name = name_output(outcome, output)
        change = f"{before[output]:.4f} to {after[output]:.4f}"
        pieces.append(f"{name} {change}")
    return f"probabilities before and after: {', '.join(pieces)}"


def describe_other_changes(outcome: InterventionOutcome) -> str:
    """Say in a line how far other changes of the same size moved the prediction, for scale.

    They are drawn at random, and the line has the median of their effects.
    """
    other_changes = " and ".join(name_other_changes(outcome.changes))
    count = len(outcome.others)
    if not count:
        return f"nothing to compare it with: there are not as many {other_changes}"
    median = outcome.scale
    if outcome.response.kind == "vector":
        effect = f"1 - cos {format_effect(median.cosine)}"
    else:
        effect = f"KL {format_effect(median.kl)} nats, logit ±{median.logit:.3f}"
    draws = "1 draw" if count == 1 else f"{count} draws"
    return f"for scale, as many {other_changes}: {effect}, median of {draws}"


def name_other_changes(changes: InterventionChanges) -> list[str]:
    """Name the heads and keys that other changes of the same size are drawn from."""
    names = []
    if changes.ablated or changes.heads:
        names.append(OTHER_HEADS)
    if changes.pairs and not changes.heads:
        cuts_all_queries = any(query is None for query, _ in changes.pairs)
        names.append(OTHER_KEYS_OF_ALL if cuts_all_queries else OTHER_KEYS)
    return names


def format_effect(value: float) -> str:
    """Format a number to three digits after the point, or a small one to two significant digits.

    Small are numbers other than 0 of which three digits after the point would show less. The text
    for NaN is empty.
    """
    if np.isnan(value):
        return ""
    if value >= LEAST_OF_THREE_DIGITS or value == 0:
        return f"{value:.3f}"
    return f"{value:.2g}"
