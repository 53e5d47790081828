"""Which tokens mattered for a prediction: their scores by several methods, and what a model says without each of them.

A method is worth as much as it agrees with interventions: a token's column is cut in all layers and heads, so that no
other token reads it (knock-out, Geva et al. 2023), or other tokens are read in its place (leave-one-out). Both are
changes that the model was not trained on, and two of them agree only so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from attnviz.analysis.attribution import Parts, attributed, baselines, rankable, sources
from attnviz.analysis.rollout import is_causal
from attnviz.analysis.statistics import log_softmax
from attnviz.errors import InputError, ModelError, UsageError
from attnviz.experiments.intervention import intervention_of, turn
from attnviz.experiments.progress import Watch, ignore_progress
from attnviz.models.base import Model, SupportsPredictions, require_predictions, require_sequences
from attnviz.models.interventions import batches
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
from attnviz.results.attribution import Attribution, Check
from attnviz.results.intervention import Outcome
from attnviz.selection import ALL, Head, Named, Selection, Spot, require_same_tokens

SUBSTITUTES = 4
UNRANKED = "of {} tokens there is none to rank but the first, special ones and the query"
UNGRADED = "{} predicts nothing here, so there is no gradient of a prediction: rank by norm, attention or rollout"


@dataclass(frozen=True)
class Runs:
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
        capture = self.model.capture(
            self.prompt, Request(truncate=self.truncate), self.intervention
        )
        if any(attention_map.kind != "self" for attention_map in capture.maps):
            raise UsageError(
                f"{self.model.name} reads one text and writes another: attribute is for models of one text"
            )
        require_same_tokens(
            capture.maps, "attribute is for models whose layers all read the whole text"
        )
        return capture

    def maps(self, method: str, query: int | None = None, heads: Selection | Named = ALL) -> Parts:
        """What it shows of its attention, of all queries or one, as weights, norms or gradients."""
        request = Request(
            heads=heads,
            truncate=self.truncate,
            method=method,  # type: ignore[arg-type]
            summed=method == NORM,
            target=self.target,
            query=None if query is None else Spot(query),
        )
        return self.model.capture(self.prompt, request, self.intervention).maps

    def left(self, parts: Parts) -> tuple[AttentionMap, ...]:
        """Weights of all heads as means over those of each layer that are not replaced, 0 where none is left."""
        if not self.without:
            return tuple(parts)
        return tuple(
            mean_without(part, i, self.without) for part in parts for i in range(len(part.layers))
        )

    def heads(self, parts: Parts) -> Selection | Named:
        """The heads that are not replaced."""
        every = [
            (layer, int(head)) for part in parts for layer in part.layers for head in part.heads
        ]
        return (
            Named(tuple(head for head in every if head not in self.without))
            if self.without
            else ALL
        )

    def respond(self, others: Sequence[Intervention]) -> Response:
        """What it says under further interventions, each for itself."""
        own = self.intervention
        every = [
            replace(own, cuts=own.cuts + one.cuts, tokens=own.tokens + one.tokens) for one in others
        ]
        return self.model.respond(self.prompt, every, self.target, truncate=self.truncate)


def attribute(
    model: Model,
    prompt: Prompt,
    target: Target = LIKELIEST,
    *,
    by: str | None = None,
    checks: Sequence[Check] = (),
    seed: int = 0,
    truncate: bool = False,
    intervention: Intervention = NOTHING,
    without: Sequence[Head] = (),
    outcome: Outcome | None = None,
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
    ``Model.respond`` does, ModelError for a model without predictions, InputError for a text without
    a token that could be ranked.
    """
    if outcome is not None:
        intervention, without = intervention_of(outcome.changes), outcome.changes.ablated
    predictor = require_predictions(model)
    runs = Runs(predictor, prompt, target, truncate, intervention, tuple(without), watch)
    attribution = attribute_runs(runs, by, checks, seed)
    return attribution if outcome is None else attribution.under(outcome)


def attribute_runs(runs: Runs, by: str | None, checks: Sequence[Check], seed: int) -> Attribution:
    """Score each token for what a model says in runs that have an intervention in common."""
    capture = runs.capture()
    response = runs.respond([NOTHING])
    if by in (GRADIENT, CHEFER) and response.kind == "vector":
        raise UsageError(UNGRADED.format(runs.model.name))
    query = place_of(response, capture.maps, runs.target)
    ranked = rankable(capture.maps, query)
    if not ranked.any():
        raise InputError(UNRANKED.format(len(response.tokens)))
    maps, lacking = every_map(runs, capture.maps, response, query)
    read = sources(capture.maps, query)
    seen = read.copy()
    seen[query] = True
    scores = {
        name: np.where(seen, values, np.nan) for name, values in attributed(maps, query).items()
    }
    method = ranking(by, scores, lacking)
    read_places = np.flatnonzero(read).tolist()
    return Attribution(
        model=runs.model.name,
        text=capture.text,
        tokens=response.tokens,
        query=query,
        kind=response.kind,
        target=None if response.kind == "vector" else response.name(response.target),
        probability=probability(response),
        by=method,
        ranked=ranked,
        scores=scores,
        baselines=baselines(len(response.tokens), query, seed),
        effects=effects(runs, response, read_places, checks, seed),
        notes=(*capture.notes, *lacking.values()),
    )


def mean_without(part: AttentionMap, layer: int, without: Sequence[Head]) -> AttentionMap:
    """The mean over the heads of a layer, by its place in a map of weights, but for some."""
    kept = [i for i, head in enumerate(part.heads) if (part.layers[layer], head) not in without]
    mean = part.part([layer], kept or [0]).reduced("mean")
    return (
        mean if kept or mean.weights is None else replace(mean, weights=np.zeros_like(mean.weights))
    )


def place_of(said: Response, parts: Parts, target: Target) -> int:
    """The token whose row tells what was read. A class is told by the first, of a causal model by the last.

    Raises UsageError for the choice of a place where there is none.
    """
    if said.kind != "class":
        return said.place
    if target.query is not None:
        raise UsageError("--query: this model tells a class of the whole text, leave it out")
    return len(said.tokens) - 1 if is_causal(parts[0].visible[0, 0]) else said.place


def every_map(
    runs: Runs, weights: Parts, said: Response, query: int
) -> tuple[dict[str, Parts], dict[str, str]]:
    """The maps that methods are made of, and why some are lacking, both by name."""
    heads = runs.heads(weights)
    asked: dict[str, Callable[[], Parts]] = {NORM: partial(runs.maps, NORM, query, heads)}
    if said.kind != "vector":
        asked[GRADIENT] = partial(runs.maps, GRADIENT)
    found: dict[str, Parts] = {ATTENTION: runs.left(weights)}
    lacking: dict[str, str] = {}
    if heads == Named(()):
        del asked[NORM]
        lacking[NORM] = "without norm: all heads are ablated"
    for method, take in asked.items():
        try:
            found[method] = take()
        except (
            UsageError,
            ModelError,
        ) as error:  # of a model that hides its values, or has integer weights
            lacking[method] = f"without {method}: {error}"
    return found, lacking


def ranking(by: str | None, scores: Mapping[str, Doubles], lacking: Mapping[str, str]) -> str:
    """The method that ranks. Raises UsageError if it cannot be had."""
    if by is not None and by not in scores:
        why = lacking.get(GRADIENT if by == CHEFER else by, "")
        raise UsageError(f"cannot rank by {by}: {why.partition(': ')[2]}")
    return by or next(name for name in (GRADIENT, NORM, ATTENTION) if name in scores)


def probability(said: Response) -> float:
    """Of the target, among all outputs; NaN of a vector."""
    if said.kind == "vector":
        return np.nan
    return float(np.exp(log_softmax(said.outputs[0])[said.target]))


def effects(
    runs: Runs, said: Response, places: Sequence[int], checks: Sequence[Check], seed: int
) -> dict[Check, Doubles]:
    """How much each of some tokens moves what is said, by each intervention, (token,); NaN for the others."""
    made: dict[Check, list[tuple[int, Intervention]]] = {check: [] for check in checks}
    if "knock-out" in made:
        made["knock-out"] = [
            (place, Intervention(cuts=(Edge(None, None, None, None, place),))) for place in places
        ]
    if "leave-one-out" in made:
        drawn = substitutes(runs.model, seed)
        for place in places:
            others = [number for number in drawn if number != said.tokens[place].id][:SUBSTITUTES]
            made["leave-one-out"] += [
                (place, Intervention(tokens=((place, number),))) for number in others
            ]
    total, done = sum(map(len, made.values())), 0
    found: dict[Check, Doubles] = {}
    for check, members in made.items():
        falls: list[float] = []
        for batch in batches(
            [one for _, one in members]
        ):  # what a batch says is not kept: vocabularies are wide
            falls += fall(said, runs.respond(batch)).tolist()
            done += len(batch)
            runs.watch(done, total)
        sums = np.bincount([place for place, _ in members], falls, len(said.tokens))
        counts = np.bincount([place for place, _ in members], minlength=len(said.tokens))
        found[check] = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return found


def substitutes(model: Model, seed: int) -> list[int]:
    """Tokens of text to be read instead of others, one more than are needed, since one may be the token itself.

    Raises ModelError of a model that reads no token ids.
    """
    plain = require_sequences(model).read_vocabulary().plain
    found: list[int] = np.random.default_rng(seed).permutation(plain)[: SUBSTITUTES + 1].tolist()
    return found


def fall(said: Response, other: Response) -> Doubles:
    """By how much the target's logit less the mean of all is lower in other runs, (run,); of vectors 1 - cosine."""
    before, after = said.outputs[0].astype(np.float64), other.outputs.astype(np.float64)
    if said.kind == "vector":
        return turn(before, after)
    return np.asarray(before[said.target] - before.mean() - after[:, said.target] + after.mean(-1))
