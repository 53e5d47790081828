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
from attnviz.experiments.progress import Watch, ignore_progress
from attnviz.models.base import (
    Model,
    SupportsPredictions,
    require_predictions,
    require_token_sequences,
)
from attnviz.models.interventions import batch_interventions
from attnviz.record import ATTENTION, CHEFER, GRADIENT, NORM, AttentionMap, Capture, Doubles
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
from attnviz.selection import ALL, Head, HeadNames, Selection, TokenReference, require_same_tokens

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
    without: tuple[Head, ...] = ()
    """Heads that the intervention replaces: what they attend to, and move, is not used."""
    watch: Watch = ignore_progress

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
        """Capture the attention of all queries or one as weights, norms or gradients."""
        spot = None if query is None else TokenReference(query)
        request = Request(
            heads=heads,
            truncate=self.truncate,
            method=method,  # type: ignore[arg-type]
            summed=method == NORM,
            target=self.target,
            query=spot,
        )
        return self.model.capture(self.prompt, request, self.intervention).maps

    def average_kept_heads(self, maps: Maps) -> tuple[AttentionMap, ...]:
        """Return weights of all heads as means over those of each layer that are not replaced.

        They are 0 where none is left. Without replaced heads the maps stay as they are.
        """
        if not self.without:
            return tuple(maps)
        means: list[AttentionMap] = []
        for each in maps:
            indices = range(len(each.layers))
            means += [average_layer_without(each, index, self.without) for index in indices]
        return tuple(means)

    def select_kept_heads(self, maps: Maps) -> Selection | HeadNames:
        """Return the selection of the heads that are not replaced."""
        if not self.without:
            return ALL
        kept: list[Head] = []
        for each in maps:
            for layer in each.layers:
                heads = [(layer, int(head)) for head in each.heads]
                kept += [head for head in heads if head not in self.without]
        return HeadNames(tuple(kept))

    def respond(self, further: Sequence[Intervention]) -> Response:
        """Return what the model says under further interventions, each for itself."""
        own = self.intervention
        interventions = []
        for each in further:
            cuts = own.cuts + each.cuts
            tokens = own.tokens + each.tokens
            interventions.append(replace(own, cuts=cuts, tokens=tokens))
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
    watch: Watch = ignore_progress,
) -> Attribution:
    """Score each token for what a model says at one place of a text, by all methods that there are.

    by: the method that ranks; without it gradient where something is predicted, else norm. checks:
    interventions that are run for comparison, on each token that the query has something of: a run
    a token, or four. seed: of the random baseline, and of the tokens that are read instead.
    intervention: what the model computes otherwise in all runs; without: the heads that it
    replaces, which do not count in weights and norms; outcome: in place of these two, what
    ``intervene`` returned of changes, which the result then tells of. watch: is called with how
    many of how many runs are done.

    Raises UsageError for an encoder-decoder, for a method that cannot be had and as
    ``Model.respond`` does, ModelError for a model without predictions, InputError for a text
    without a token that could be ranked.
    """
    if outcome is not None:
        intervention = make_intervention(outcome.changes)
        without = outcome.changes.ablated
    predictor = require_predictions(model)
    runs = AttributionRuns(predictor, prompt, target, truncate, intervention, tuple(without), watch)
    attribution = attribute_runs(runs, by, checks, seed)
    return attribution if outcome is None else attribution.with_outcome(outcome)


def attribute_runs(
    runs: AttributionRuns,
    by: str | None,
    checks: Sequence[TokenRemoval],
    seed: int,
) -> Attribution:
    """Score each token for what a model says in runs that have an intervention in common."""
    capture = runs.capture()
    response = runs.respond([NOTHING])
    if by in (GRADIENT, CHEFER) and response.kind == "vector":
        raise UsageError(UNGRADED.format(runs.model.name))
    query = find_query(response, capture.maps, runs.target)
    token_count = len(response.tokens)
    ranked = find_rankable(capture.maps, query)
    if not ranked.any():
        raise InputError(UNRANKED.format(token_count))
    maps, lacking = capture_all_methods(runs, capture.maps, response, query)
    sources = find_sources(capture.maps, query)
    scored = sources.copy()
    scored[query] = True
    scores: dict[str, Doubles] = {}
    for name, values in score_tokens(maps, query).items():
        scores[name] = np.where(scored, values, np.nan)
    method = choose_ranking(by, scores, lacking)
    target = None if response.kind == "vector" else response.name(response.target)
    baselines = score_baselines(token_count, query, seed)
    source_positions = np.flatnonzero(sources).tolist()
    effects = measure_effects(runs, response, source_positions, checks, seed)
    probability = compute_probability(response)
    notes = *capture.notes, *lacking.values()
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


def average_layer_without(
    attention_map: AttentionMap,
    layer: int,
    without: Sequence[Head],
) -> AttentionMap:
    """Return a layer's mean of weights over its heads but for some; 0 if no head is left.

    layer: its position in the map.
    """
    number = attention_map.layers[layer]
    names = [(number, head) for head in attention_map.heads]
    kept = [i for i, name in enumerate(names) if name not in without]
    one_layer = attention_map.part([layer], kept or [0])
    mean = one_layer.reduced("mean")
    if kept or mean.weights is None:
        return mean
    return replace(mean, weights=np.zeros_like(mean.weights))


def find_query(response: Response, maps: Maps, target: Target) -> int:
    """Find the position of the token whose row of attention tells what was read.

    A class is told by the first token, and by the last of a causal model. Raises UsageError for the
    choice of a position where there is none.
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
    """Capture the maps that methods are made of, and say why some are lacking, both by name."""
    heads = runs.select_kept_heads(weights)
    captures: dict[str, Callable[[], Maps]] = {}
    lacking: dict[str, str] = {}
    if heads == HeadNames(()):
        lacking[NORM] = "without norm: all heads are ablated"
    else:
        captures[NORM] = partial(runs.capture_maps, NORM, query, heads)
    if response.kind != "vector":
        captures[GRADIENT] = partial(runs.capture_maps, GRADIENT)
    maps: dict[str, Maps] = {ATTENTION: runs.average_kept_heads(weights)}
    for method, capture in captures.items():
        try:
            maps[method] = capture()
        except (UsageError, ModelError) as error:  # values are hidden, or weights are integers
            lacking[method] = f"without {method}: {error}"
    return maps, lacking


def choose_ranking(
    by: str | None,
    scores: Mapping[str, Doubles],
    lacking: Mapping[str, str],
) -> str:
    """Choose the method that ranks. Raises UsageError if it cannot be had."""
    if by is not None and by not in scores:
        needed = GRADIENT if by == CHEFER else by
        note = lacking.get(needed, "")
        _, _, reason = note.partition(": ")
        raise UsageError(f"cannot rank by {by}: {reason}")
    return by or next(name for name in DEFAULT_RANKINGS if name in scores)


def compute_probability(response: Response) -> float:
    """Compute the probability of the target among all outputs; NaN of a vector."""
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

    The effects are (token,), NaN for the tokens that are not at these positions.
    """
    token_runs: dict[TokenRemoval, TokenRuns] = {check: [] for check in checks}
    if "knock-out" in token_runs:
        token_runs["knock-out"] = cut_columns(positions)
    if "leave-one-out" in token_runs:
        substitute_ids = draw_substitutes(runs.model, seed)
        token_runs["leave-one-out"] = replace_tokens(response, positions, substitute_ids)
    total = sum(map(len, token_runs.values()))
    done = 0
    token_count = len(response.tokens)
    effects: dict[TokenRemoval, Doubles] = {}
    for check, members in token_runs.items():
        falls: list[float] = []
        interventions = [intervention for _, intervention in members]
        for batch in batch_interventions(
            interventions
        ):  # its outputs are not kept: vocabularies are wide
            falls += measure_fall(response, runs.respond(batch)).tolist()
            done += len(batch)
            runs.watch(done, total)
        removed = [position for position, _ in members]
        sums = np.bincount(removed, falls, token_count)
        counts = np.bincount(removed, minlength=token_count)
        means = np.full(len(sums), np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        effects[check] = means
    return effects


def cut_columns(positions: Sequence[int]) -> TokenRuns:
    """Make the interventions that cut the column of each of some tokens in all layers and heads."""
    token_runs: TokenRuns = []
    for position in positions:
        column = Edge(None, None, None, None, position)
        token_runs.append((position, Intervention(cuts=(column,))))
    return token_runs


def replace_tokens(
    response: Response,
    positions: Sequence[int],
    substitute_ids: Sequence[int],
) -> TokenRuns:
    """Make the interventions that read substitutes in place of each of some tokens.

    A token is replaced by the first SUBSTITUTES of the substitutes that are not itself.
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
    """Draw tokens of text to be read instead of others.

    They are one more than are needed, since one may be the token itself. Raises ModelError for a
    model that reads no token ids.
    """
    plain = require_token_sequences(model).read_vocabulary().plain
    shuffled = np.random.default_rng(seed).permutation(plain)
    drawn_ids: list[int] = shuffled[: SUBSTITUTES + 1].tolist()
    return drawn_ids


def measure_fall(response: Response, other: Response) -> Doubles:
    """Measure by how much the target's logit, less the mean of all, is lower in other runs, (run,).

    Of vectors it is 1 - cosine.
    """
    before = response.outputs[0].astype(np.float64)  # (number,)
    after = other.outputs.astype(np.float64)  # (run, number)
    if response.kind == "vector":
        return measure_turn(before, after)
    target = response.target
    logit_before = before[target] - before.mean()
    logits_after = after[:, target]  # (run,)
    falls = logit_before - logits_after + after.mean(-1)
    return np.asarray(falls)
