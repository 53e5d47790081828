"""Which tokens mattered for a prediction: scores, and what a model says without each token.

A method is worth as much as it agrees with interventions: a token's column is cut in all layers and
heads, so that no other token reads it (knock-out, Geva et al. 2023), or other tokens are read in
its place (leave-one-out). Both are changes that the model was not trained on, and two of them agree
only so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from attnviz.analysis.attribution import (
    Maps,
    find_rankable,
    find_sources,
    score_baselines,
    score_tokens,
)
from attnviz.analysis.numerics import is_causal, log_softmax
from attnviz.errors import InputError, ModelError, UsageError
from attnviz.experiments.intervention import make_intervention, measure_turn
from attnviz.models.base import (
    Model,
    SupportsPredictions,
    require_predictions,
    require_token_sequences,
)
from attnviz.models.interventions import batch_interventions
from attnviz.progress import begin_step
from attnviz.record import (
    ATTENTION,
    CHEFER,
    GRADIENT,
    NORM,
    AttentionMap,
    Capture,
    Doubles,
)
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Edge,
    Intervention,
    Prompt,
    Request,
    Response,
    Target,
)
from attnviz.results.attribution import Attribution, TokenRemoval
from attnviz.results.intervention import InterventionOutcome
from attnviz.selection import (
    ALL,
    Head,
    HeadNames,
    Selection,
    TokenReference,
    require_same_tokens,
)

SUBSTITUTES = 4
UNRANKED = "of {} tokens there is none to rank but the first, special ones and the query"
UNGRADED = (
    "{} predicts nothing here, so there is no gradient of a prediction: "
    "rank by norm, attention or rollout"
)
DEFAULT_RANKINGS = GRADIENT, NORM, ATTENTION
"""The methods that rank where none is chosen: the first that a model has."""
TokenRuns: TypeAlias = list[tuple[int, Intervention]]
"""Interventions, each with the position of the token that it takes away."""


@dataclass(frozen=True)
class AttributionRuns:
    """A model on a prompt, changed or not, that is run many times."""

    model: SupportsPredictions
    prompt: Prompt
    target: Target
    truncate: bool = False
    intervention: Intervention = NOTHING
    """What all runs have in common."""
    replaced_heads: tuple[Head, ...] = ()
    """Heads whose output the intervention replaces: their weights and norms are not counted."""

    def capture(self) -> Capture:
        """Capture the weights of all layers and heads.

        Raises UsageError for an encoder-decoder, and where layers read different parts of the text.
        """
        request = Request(truncate=self.truncate)
        capture = self.model.capture(self.prompt, request, self.intervention)
        if any(attention_map.kind != "self" for attention_map in capture.maps):
            problem = f"{self.model.name} reads one text and writes another"
            raise UsageError(f"{problem}: attribute is for models of one text")
        advice = "attribute is for models whose layers all read the whole text"
        require_same_tokens(capture.maps, advice)
        return capture

    def capture_maps(
        self,
        method: str,
        query: int | None = None,
        heads: Selection | HeadNames = ALL,
    ) -> Maps:
        """Capture the attention of all layers as weights, norms or gradients.

        method: ``attention``, ``norm`` or ``gradient``. Norms are summed over the heads of a layer.
        query: the position of the one query to capture; None for all. heads: the heads to capture.
        """
        reference = None if query is None else TokenReference(query)
        request = Request(
            heads=heads,
            truncate=self.truncate,
            method=method,  # type: ignore[arg-type]
            summed=method == NORM,
            target=self.target,
            query=reference,
        )
        return self.model.capture(self.prompt, request, self.intervention).maps

    def average_kept_heads(self, maps: Maps) -> tuple[AttentionMap, ...]:
        """Average the weights of each layer over the heads that are not replaced.

        maps: weights of all heads. Where no head is left, the averages are 0. If no head is
        replaced, the maps stay as they are.
        """
        if not self.replaced_heads:
            return tuple(maps)
        means: list[AttentionMap] = []
        for each in maps:
            indices = range(len(each.layers))
            means += [average_kept_of_layer(each, index, self.replaced_heads) for index in indices]
        return tuple(means)

    def select_kept_heads(self, maps: Maps) -> Selection | HeadNames:
        """Select the heads that are not replaced, out of all heads of these maps.

        If no head is replaced, the selection is ALL.
        """
        if not self.replaced_heads:
            return ALL
        kept: list[Head] = []
        for each in maps:
            for layer in each.layers:
                heads = [(layer, int(head)) for head in each.heads]
                kept += [head for head in heads if head not in self.replaced_heads]
        return HeadNames(tuple(kept))

    def respond(self, further: Sequence[Intervention]) -> Response:
        """Run the model once for each of some interventions, and return what it says.

        further: cuts of edges and replacements of tokens, which come on top of what is changed in
        all runs.
        """
        common = self.intervention
        interventions = []
        for each in further:
            cuts = common.cuts + each.cuts
            tokens = common.tokens + each.tokens
            interventions.append(replace(common, cuts=cuts, tokens=tokens))
        return self.model.respond(self.prompt, interventions, self.target, truncate=self.truncate)


def attribute(
    model: Model,
    prompt: Prompt,
    target: Target = LIKELIEST,
    *,
    by: str | None = None,
    checks: Sequence[TokenRemoval] = (),
    seed: int = 0,
    truncate: bool = False,
    intervention: Intervention = NOTHING,
    without: Sequence[Head] = (),
    outcome: InterventionOutcome | None = None,
) -> Attribution:
    """Score each token for what a model says at one place of a text, by all methods that there are.

    target: the prediction that is asked about. by: the method that ranks the tokens; without it
    gradient where something is predicted, else norm. checks: interventions that are run for
    comparison, on each token that can have reached the query: one run a token, or four. seed: of
    the random baseline, and of the tokens that are read in place of others. truncate: cut a text
    that is longer than the model reads. intervention: what the model computes otherwise in all
    runs. without: the heads that the intervention replaces, which are not counted in weights and
    norms. outcome: what ``intervene`` returned; its changes are made in all runs, in place of the
    two above, and the result tells of them.

    Raises UsageError for an encoder-decoder, for a method that cannot be had and as
    ``Model.respond`` does, ModelError for a model without predictions, InputError for a text
    without a token that could be ranked.
    """
    if outcome is not None:
        intervention = make_intervention(outcome.changes)
        without = outcome.changes.ablated
    predictor = require_predictions(model)
    runs = AttributionRuns(
        model=predictor,
        prompt=prompt,
        target=target,
        truncate=truncate,
        intervention=intervention,
        replaced_heads=tuple(without),
    )
    attribution = attribute_runs(runs, by, checks, seed)
    return attribution if outcome is None else attribution.with_outcome(outcome)


def attribute_runs(
    runs: AttributionRuns,
    by: str | None,
    checks: Sequence[TokenRemoval],
    seed: int,
) -> Attribution:
    """Score each token for what a model says, from runs that have an intervention in common.

    by: the method that ranks the tokens; None for the default. checks: interventions that are run
    for comparison, on each token that can have reached the query. seed: of the random baseline, and
    of the tokens that are read in place of others.

    Raises UsageError for a method that cannot be had, InputError for a text without a token that
    could be ranked.
    """
    capture = runs.capture()
    response = runs.respond([NOTHING])
    if by in (GRADIENT, CHEFER) and response.kind == "vector":
        raise UsageError(UNGRADED.format(runs.model.name))
    query = find_query(response, capture.maps, runs.target)
    token_count = len(response.tokens)
    ranked = find_rankable(capture.maps, query)
    if not ranked.any():
        raise InputError(UNRANKED.format(token_count))
    maps, notes_on_missing = capture_all_methods(runs, capture.maps, response, query)
    sources = find_sources(capture.maps, query)
    has_score = sources.copy()
    has_score[query] = True
    scores: dict[str, Doubles] = {}
    with begin_step("scoring tokens"):
        token_scores = score_tokens(maps, query)
    for name, values in token_scores.items():
        scores[name] = np.where(has_score, values, np.nan)
    method = choose_ranking(by, scores, notes_on_missing)
    target = None if response.kind == "vector" else response.name(response.target)
    baselines = score_baselines(token_count, query, seed)
    source_positions = np.flatnonzero(sources).tolist()
    effects = measure_effects(runs, response, source_positions, checks, seed)
    probability = compute_probability(response)
    notes = *capture.notes, *notes_on_missing.values()
    return Attribution(
        model=runs.model.name,
        text=capture.text,
        tokens=response.tokens,
        query=query,
        kind=response.kind,
        target=target,
        probability=probability,
        by=method,
        ranked=ranked,
        scores=scores,
        baselines=baselines,
        effects=effects,
        notes=notes,
    )


def average_kept_of_layer(
    attention_map: AttentionMap,
    layer: int,
    replaced_heads: Sequence[Head],
) -> AttentionMap:
    """Average the weights of one layer over its heads but for those that are replaced.

    layer: its index in the map. replaced_heads: heads, each by its layer and number. If no head is
    left, the weights are 0.
    """
    number = attention_map.layers[layer]
    names = [(number, head) for head in attention_map.heads]
    kept = [i for i, name in enumerate(names) if name not in replaced_heads]
    # If no head is left, one is taken, and its weights are set to 0 below.
    one_layer = attention_map.pick_heads([layer], kept or [0])
    mean = one_layer.reduced("mean")
    if kept or mean.weights is None:
        return mean
    return replace(mean, weights=np.zeros_like(mean.weights))


def find_query(response: Response, maps: Maps, target: Target) -> int:
    """Find the position of the token whose row of attention tells what was read.

    It is the token at which the model made its prediction. A class of the text is told by the last
    token of a causal model, by the first one of any other. Raises UsageError if the target names a
    token, and the model tells a class.
    """
    if response.kind != "class":
        return response.place
    if target.query is not None:
        raise UsageError("--query: this model tells a class of the whole text, leave it out")
    last = len(response.tokens) - 1
    first_head = maps[0].visible[0, 0]
    return last if is_causal(first_head) else response.place


def capture_all_methods(
    runs: AttributionRuns,
    weights: Maps,
    response: Response,
    query: int,
) -> tuple[dict[str, Maps], dict[str, str]]:
    """Capture the maps that the methods of attribution are made of: weights, norms and gradients.

    weights: the maps of weights, which were captured before. response: what the model says. query:
    the position of the query. Returns the maps by their name, and by name a note why others cannot
    be had.
    """
    heads = runs.select_kept_heads(weights)
    captures: dict[str, Callable[[], Maps]] = {}
    notes_on_missing: dict[str, str] = {}
    if heads == HeadNames(()):
        notes_on_missing[NORM] = "without norm: all heads are ablated"
    else:
        captures[NORM] = partial(runs.capture_maps, NORM, query, heads)
    if response.kind != "vector":
        captures[GRADIENT] = partial(runs.capture_maps, GRADIENT)
    maps: dict[str, Maps] = {ATTENTION: runs.average_kept_heads(weights)}
    for method, capture in captures.items():
        try:
            maps[method] = capture()
        except (UsageError, ModelError) as error:  # values are hidden, or weights are integers
            notes_on_missing[method] = f"without {method}: {error}"
    return maps, notes_on_missing


def choose_ranking(
    by: str | None,
    scores: Mapping[str, Doubles],
    notes_on_missing: Mapping[str, str],
) -> str:
    """Choose the method that ranks the tokens. Raises UsageError if it cannot be had.

    by: the name of a method; None for the first of DEFAULT_RANKINGS that has scores. scores: by
    method. notes_on_missing: by the name of what could not be captured, a note why.
    """
    if by is not None and by not in scores:
        needed = GRADIENT if by == CHEFER else by
        note = notes_on_missing.get(needed, "")
        _, _, reason = note.partition(": ")
        raise UsageError(f"cannot rank by {by}: {reason}")
    return by or next(name for name in DEFAULT_RANKINGS if name in scores)


def compute_probability(response: Response) -> float:
    """Compute the probability of the target among all outputs; NaN if the output is a vector."""
    if response.kind == "vector":
        return np.nan
    logarithms = log_softmax(response.outputs[0])
    return float(np.exp(logarithms[response.target]))


def measure_effects(
    runs: AttributionRuns,
    response: Response,
    positions: Sequence[int],
    checks: Sequence[TokenRemoval],
    seed: int,
) -> dict[TokenRemoval, Doubles]:
    """Measure how much each of some tokens moves what is said, by each intervention.

    response: what the model says of the whole text. positions: those of the tokens. checks: the
    interventions, "knock-out" (no other token reads this one) and "leave-one-out" (other tokens are
    read in its place). seed: of the tokens that are read instead. Returns for each intervention the
    fall of the target's logit, (token,), mean over the runs of a token; NaN for the tokens at other
    positions.
    """
    token_runs: dict[TokenRemoval, TokenRuns] = {check: [] for check in checks}
    if "knock-out" in token_runs:
        token_runs["knock-out"] = make_knock_outs(positions)
    if "leave-one-out" in token_runs:
        substitute_ids = draw_substitutes(runs.model, seed)
        token_runs["leave-one-out"] = make_substitutions(response, positions, substitute_ids)
    total = sum(map(len, token_runs.values()))
    effects: dict[TokenRemoval, Doubles] = {}
    with begin_step("taking tokens away", "run", total) as step:
        for check, runs_of_check in token_runs.items():
            falls: list[float] = []
            interventions = [intervention for _, intervention in runs_of_check]
            # The outputs of a batch are not kept, since vocabularies are wide.
            for batch in batch_interventions(interventions):
                falls += measure_fall(response, runs.respond(batch)).tolist()
                step.advance(len(batch))
            removed = [position for position, _ in runs_of_check]
            effects[check] = average_by_token(removed, falls, len(response.tokens))
    return effects


def average_by_token(positions: Sequence[int], values: Sequence[float], count: int) -> Doubles:
    """Average the values of each token, (count,); NaN for a token that has none.

    positions: for each value that of its token. count: the number of tokens.
    """
    sums = np.bincount(positions, values, count)
    counts = np.bincount(positions, minlength=count)
    means = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def make_knock_outs(positions: Sequence[int]) -> TokenRuns:
    """Make for each of some tokens an intervention in which no other token attends to it.

    The token's column is cut in all layers and heads. Returns each intervention with the position
    of its token; nothing is run.
    """
    token_runs: TokenRuns = []
    for position in positions:
        column = Edge(kind=None, layer=None, head=None, query=None, key=position)
        token_runs.append((position, Intervention(cuts=(column,))))
    return token_runs


def make_substitutions(
    response: Response,
    positions: Sequence[int],
    substitute_ids: Sequence[int],
) -> TokenRuns:
    """Make for each of some tokens interventions that read other tokens in its place.

    response: has the tokens of the text. positions: those of the tokens to replace. substitute_ids:
    the ids of other tokens; the first SUBSTITUTES that are not the token itself are used. Returns
    each intervention with the position of its token; nothing is run.
    """
    token_runs: TokenRuns = []
    for position in positions:
        own_id = response.tokens[position].id
        others = [each for each in substitute_ids if each != own_id]
        for other in others[:SUBSTITUTES]:
            replacement = Intervention(tokens=((position, other),))
            token_runs.append((position, replacement))
    return token_runs


def draw_substitutes(model: Model, seed: int) -> list[int]:
    """Draw the ids of tokens of text, to be read in place of others.

    They are one more than are needed for a token, since one may be the token itself. Raises
    ModelError for a model that reads no token ids.
    """
    plain = require_token_sequences(model).read_vocabulary().plain
    shuffled = np.random.default_rng(seed).permutation(plain)
    drawn_ids: list[int] = shuffled[: SUBSTITUTES + 1].tolist()
    return drawn_ids


def measure_fall(response: Response, changed: Response) -> Doubles:
    """Measure how much the target's logit falls in changed runs, (run,).

    response: what the model says without a change. changed: what it says in the other runs. The
    mean of all logits is taken off each logit. If the outputs are vectors, the fall is 1 - cosine.
    """
    before = response.outputs[0].astype(np.float64)  # (number,)
    after = changed.outputs.astype(np.float64)  # (run, number)
    if response.kind == "vector":
        return measure_turn(before, after)
    target = response.target
    logit_before = before[target] - before.mean()
    logits_after = after[:, target]  # (run,)
    falls = logit_before - logits_after + after.mean(-1)
    return np.asarray(falls)
