"""What attention does for a prediction: what the model says when edges are cut or heads are replaced.

An edge is cut before the softmax, so that its weight goes to the other keys of the query; a head's output is replaced
before it is projected. What moves the prediction by this says little without a scale: beside it stands what as many
other heads, or other keys, do in their place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import comb, prod
from typing import Any, NamedTuple, TypeVar

import numpy as np

from attnviz.analysis.statistics import log_softmax
from attnviz.errors import UsageError
from attnviz.experiments.ablation import without
from attnviz.layer.arrays import Array, widen
from attnviz.models.base import Model, SupportsPredictions, require_predictions
from attnviz.record import Doubles, Kind, Visible
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Edge,
    Intervention,
    Prompt,
    Replacement,
    Request,
    Response,
    Target,
    Weigh,
)
from attnviz.results.intervention import Changes, Effect, Outcome, Pair, Scope
from attnviz.selection import ALL, EdgeNames, Head, Named, Selection, resolve

DRAWS = 10  # other heads, keys, or sets of them, that are changed for comparison, at most
Group = TypeVar("Group", int, int | None)
Member = TypeVar("Member", int, int | None)


class Subject(NamedTuple):
    """A model that reads a prompt, and what of it can be changed."""

    model: SupportsPredictions
    prompt: Prompt
    truncate: bool
    scope: Scope

    @classmethod
    def of(
        cls, model: Model, prompt: Prompt, kind: Kind | None = None, *, truncate: bool = False
    ) -> "Subject":
        """Run a model once or twice to see. kind: the map that is meant, of a model that has several.

        Raises UsageError if that is not there, or has to be said, ModelError of a model without predictions.
        """
        predictor = require_predictions(model)
        kinds = (kind,) if kind else ()
        corner = model.capture(
            prompt, Request(truncate=truncate, kinds=kinds, rows=slice(1), columns=slice(1))
        )
        if len(there := dict.fromkeys(part.kind for part in corner.maps)) > 1:
            raise UsageError(
                f"{model.name} has attention of several kinds, {', '.join(there)}: show --map says which"
            )
        heads = {
            layer: tuple(map(int, part.heads)) for part in corner.maps for layer in part.layers
        }
        first = Named(((next(iter(heads)), 0),))
        whole = model.capture(
            prompt, Request(ALL, first, truncate, tuple(there), keep="statistics")
        ).maps[0]
        return cls(predictor, prompt, truncate, Scope(whole.kind, heads, whole.queries, whole.keys))

    def window(self, layers: Selection, heads: Selection | Named, rows: slice) -> Visible:
        """What any of some heads sees, (query, key); the queries of a window."""
        request = Request(layers, heads, self.truncate, (self.scope.kind,), rows=rows)
        parts = self.model.capture(self.prompt, request).maps
        return np.logical_or.reduce([part.visible.any((0, 1)) for part in parts])  # type: ignore[no-any-return]


def find_changes(
    scope: Scope,
    knocked_out: Sequence[EdgeNames] = (),
    inside: Selection | Named | None = None,
    ablated: Named | None = None,
    replacement: Replacement | None = None,
) -> Changes:
    """Find what is named of a model and its text.

    knocked_out: edges to cut, in the layers or heads of ``inside``, by default in all. ablated:
    heads whose output is replaced, by default by zeros. Raises UsageError for what is not there.
    """
    inside = inside or ALL
    heads: tuple[Head, ...] = ()
    layers: tuple[int, ...] = ()
    if isinstance(inside, Named):
        heads = find_heads(inside, scope)
    else:
        layers = inside.resolve(tuple(scope.heads), "layer")
    pairs = tuple(dict.fromkeys(find_edge(edge, scope) for edge in knocked_out))
    replaced = find_heads(ablated, scope) if ablated else ()
    return Changes(scope.kind, pairs, layers, heads, replaced, replacement or "zero")


def find_heads(heads: Named, scope: Scope) -> tuple[Head, ...]:
    """Return named heads, counted from 0. Raises UsageError for one that is not there."""
    blocks = resolve(ALL, heads, scope.heads)
    return tuple(
        (layer, head) for layers, of_each in blocks for layer in layers for head in of_each
    )


def find_edge(edge: EdgeNames, scope: Scope) -> tuple[int | None, int | None]:
    """Return the positions of an edge's tokens; None for all.

    Raises UsageError for a token that is not there, or there more than once.
    """
    query, key = edge
    query_position = None if query is None else int(query.resolve(scope.queries).start)
    key_position = None if key is None else int(key.resolve(scope.keys).start)
    return query_position, key_position


def intervention_of(changes: Changes) -> Intervention:
    """Return changes as an intervention in a model. Weights that are permuted are so in one order in all queries."""
    places: list[tuple[int, int | None]] = [*changes.heads] or [
        (layer, None) for layer in changes.layers
    ]
    cuts = tuple(Edge(changes.kind, *place, *pair) for place in places for pair in changes.pairs)
    if not changes.ablated:
        return Intervention(cuts)
    change = without(changes.ablated, changes.how, changes.means, changes.seed)
    return Intervention(cuts, change, changes.kind)


def intervene(
    subject: Subject, changes: Changes, target: Target = LIKELIEST, seed: int = 0
) -> Outcome:
    """What the model says before and after changes, and in place of these, after others of the same size.

    Heads that are ablated, or in which edges are cut, make place for as many others of the same layers. Edges that are
    cut in all heads make place for as many other keys of the same queries, never the query's own; in place of one that
    all queries lose, another that they lose, which in a causal model more of them see, or fewer. Of both at once, both
    are drawn anew: DRAWS sets at most, from the seed, and none where there are not as many others.

    Raises UsageError for an edge that no chosen head sees, and for a query that would be left without a key.
    """
    seen = {pair: sight(subject, changes, pair) for pair in changes.pairs}
    changes = replace(changes, seed=seed, means=means(subject) if changes.how == "mean" else {})
    elsewhere = redrawn(changes, subject.scope.heads, seen, np.random.default_rng(seed))
    runs = [NOTHING, *(intervention_of(each) for each in (changes, *elsewhere))]
    response = subject.model.respond(subject.prompt, runs, target, truncate=subject.truncate)
    before, *after = response.outputs.astype(np.float64)
    own, *found = (effect(before, each, response) for each in after)
    return Outcome(changes, subject.scope, response, own, tuple(elsewhere), tuple(found))


def sight(subject: Subject, changes: Changes, pair: Pair) -> tuple[int, ...]:
    """The keys that the query of an edge sees in the heads where it is cut, or that any query sees; none its own.

    Raises UsageError if the edge is not there.
    """
    query, key = pair
    layers = Selection(tuple((layer, layer) for layer in changes.layers))
    heads: Selection | Named = Named(changes.heads) if changes.heads else ALL
    rows = slice(None) if query is None else slice(query, query + 1)
    if query is None:  # one head tells what any query sees, and takes little memory
        heads = Named(changes.heads[:1] or ((changes.layers[0], 0),))
    visible = subject.window(layers, heads, rows)
    own = np.eye(len(subject.scope.queries), len(subject.scope.keys), dtype=bool)[rows]
    seen: Visible = np.logical_or.reduce(visible if changes.kind == "cross" else visible & ~own)
    if not (seen.any() if key is None else seen[key] or (query == key and visible[0, key])):
        told = " -> ".join("*" if at is None else str(at) for at in pair)
        raise UsageError(f"nothing to cut: the model masks {told} in all of the chosen heads")
    return tuple(np.flatnonzero(seen).tolist())


def means(subject: Subject) -> dict[int, Array]:
    """What the heads of each layer put out, its mean over the queries of the prompt: (head, d_v)."""
    found: dict[int, Array] = {}

    def keep(layer: int, output: Array, _: Weigh) -> Array:
        found[layer] = widen(output).mean((0, 1))
        return output

    recorded = Intervention(change=keep, kind=subject.scope.kind)
    subject.model.respond(subject.prompt, [recorded], truncate=subject.truncate)
    return found


def redrawn(
    changes: Changes,
    heads: Mapping[int, Sequence[int]],
    seen: Mapping[Pair, tuple[int, ...]],
    rng: np.random.Generator,
) -> list[Changes]:
    """The same changes elsewhere. seen: the keys among which that of each pair can be drawn."""
    ways: list[list[dict[str, Any]]] = []
    if changes.ablated:
        ways.append([{"ablated": drawn} for drawn in others(changes.ablated, heads, rng)])
    if changes.heads:
        ways.append([{"heads": drawn} for drawn in others(changes.heads, heads, rng)])
    elif any(key is None for _, key in changes.pairs):  # nothing is left of that query
        return []
    elif changes.pairs:
        keys = {query: found for (query, _), found in seen.items()}
        ways.append([{"pairs": drawn} for drawn in others(changes.pairs, keys, rng)])
    every = list(product(*ways))  # of both at once, each with each
    if len(every) > DRAWS:
        every = [every[i] for i in sorted(rng.permutation(len(every))[:DRAWS].tolist())]
    return [replace(changes, **{name: way[name] for way in each for name in way}) for each in every]


def others(
    own: Sequence[tuple[Group, Member]],
    there: Mapping[Group, Sequence[Member]],
    rng: np.random.Generator,
) -> list[tuple[tuple[Group, Member], ...]]:
    """As many other members of each group: all ways if there are DRAWS or fewer, else so many at random."""
    members = {group: [one for at, one in own if at == group] for group, _ in own}
    pools = {group: [one for one in there[group] if one not in members[group]] for group in members}
    sizes = [(len(pools[group]), len(members[group])) for group in members]

    def named(way: Iterable[Sequence[int]]) -> tuple[tuple[Group, Member], ...]:
        """The members at these places of their pools, with their groups."""
        return tuple(
            (group, pools[group][i]) for group, at in zip(members, way, strict=True) for i in at
        )

    if prod(comb(*size) for size in sizes) <= DRAWS:
        return [
            named(way)
            for way in product(*(combinations(range(many), size) for many, size in sizes))
        ]
    found: set[tuple[tuple[int, ...], ...]] = set()
    while len(found) < DRAWS:
        found.add(
            tuple(tuple(sorted(rng.permutation(many)[:size].tolist())) for many, size in sizes)
        )
    return [named(way) for way in sorted(found)]


def effect(before: Doubles, after: Doubles, response: Response) -> Effect:
    """How far outputs (number,) moved; what rounding puts below 0 is 0."""
    if response.kind == "vector":
        return Effect(np.nan, np.nan, float(turn(before, after)))
    p, q = log_softmax(before), log_softmax(after)
    rise = (after - after.mean() - before + before.mean())[response.target]
    return Effect(max(float(np.exp(p) @ (p - q)), 0.0), float(rise), np.nan)


def turn(before: Doubles, after: Doubles) -> Doubles:
    """1 - cos of a vector (dim,) and others (..., dim): (...); what rounding puts below 0 is 0, NaN where one is 0."""
    lengths = np.linalg.norm(before) * np.linalg.norm(after, axis=-1)
    alike = np.divide(
        after @ before, lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0
    )
    return np.asarray(np.maximum(1 - alike, 0))
