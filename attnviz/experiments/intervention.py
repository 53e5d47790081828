"""What attention does for a prediction: the model's output when edges are cut or heads replaced.

An edge is cut before the softmax, so that its weight goes to the other keys of the query; a head's
output is replaced before it is projected. How far the prediction moves by this says little without
a scale: beside it stands what as many other heads, or other keys, do in their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import comb, prod
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from attnviz.analysis.numerics import log_softmax
from attnviz.errors import UsageError
from attnviz.experiments.ablation import make_ablation
from attnviz.layer.arrays import Array, widen_to_single
from attnviz.models.base import Model, SupportsPredictions, require_predictions
from attnviz.record import Doubles, Kind, Token, Visible
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
    WeighHeads,
)
from attnviz.results.intervention import (
    Effect,
    InterventionChanges,
    InterventionOutcome,
    InterventionScope,
    Pair,
)
from attnviz.selection import (
    ALL,
    EdgeNames,
    Head,
    HeadNames,
    Selection,
    TokenReference,
    resolve_blocks,
)

DRAWS = 10  # other heads, keys, or sets of them, that are changed for comparison, at most
Group = TypeVar("Group", int, int | None)
Member = TypeVar("Member", int, int | None)
Way: TypeAlias = tuple[tuple[int, ...], ...]
"""For each group, the positions in its pool of the members that are drawn."""


class Subject(NamedTuple):
    """A model that reads a prompt, and what of it can be changed."""

    model: SupportsPredictions
    prompt: Prompt
    truncate: bool
    scope: InterventionScope

    @classmethod
    def of(
        cls,
        model: Model,
        prompt: Prompt,
        kind: Kind | None = None,
        *,
        truncate: bool = False,
    ) -> "Subject":
        """Run a model twice, to see what of it can be changed.

        kind: the map that is meant, of a model that has several. Raises UsageError if that map is
        not there, or has to be named, ModelError for a model without predictions.
        """
        predictor = require_predictions(model)
        kinds = (kind,) if kind else ()
        corner_request = Request(truncate=truncate, kinds=kinds, rows=slice(1), columns=slice(1))
        corner_maps = model.capture(prompt, corner_request).maps
        all_kinds = [each.kind for each in corner_maps]
        present_kinds = tuple(dict.fromkeys(all_kinds))
        if len(present_kinds) > 1:
            names = ", ".join(present_kinds)
            problem = f"{model.name} has attention of several kinds, {names}"
            raise UsageError(f"{problem}: show --map says which")
        heads: dict[int, tuple[int, ...]] = {}
        for corner in corner_maps:
            for layer in corner.layers:
                heads[layer] = tuple(map(int, corner.heads))
        first_layer = next(iter(heads))
        first_head = HeadNames(((first_layer, 0),))
        request = Request(ALL, first_head, truncate, present_kinds, keep="statistics")
        whole = model.capture(prompt, request).maps[0]
        scope = InterventionScope(whole.kind, heads, whole.queries, whole.keys)
        return cls(predictor, prompt, truncate, scope)

    def find_visible(self, layers: Selection, heads: Selection | HeadNames, rows: slice) -> Visible:
        """Find what any of some heads sees, (query, key), of the queries of a window."""
        kinds = (self.scope.kind,)
        request = Request(layers, heads, self.truncate, kinds, rows=rows)
        maps = self.model.capture(self.prompt, request).maps
        visible = [each.visible.any((0, 1)) for each in maps]
        return np.logical_or.reduce(visible)  # type: ignore[no-any-return]


def find_changes(
    scope: InterventionScope,
    knocked_out: Sequence[EdgeNames] = (),
    inside: Selection | HeadNames | None = None,
    ablated: HeadNames | None = None,
    replacement: Replacement | None = None,
) -> InterventionChanges:
    """Find what is named of a model and its text.

    knocked_out: edges to cut, in the layers or heads of ``inside``, by default in all. ablated:
    heads whose output is replaced, by default by zeros. Raises UsageError for what is not there.
    """
    inside = inside or ALL
    heads: tuple[Head, ...] = ()
    layers: tuple[int, ...] = ()
    if isinstance(inside, HeadNames):
        heads = find_heads(inside, scope)
    else:
        layers = inside.resolve(tuple(scope.heads), "layer")
    edges = [find_edge(edge, scope) for edge in knocked_out]
    pairs = tuple(dict.fromkeys(edges))
    ablated_heads = find_heads(ablated, scope) if ablated else ()
    return InterventionChanges(
        scope.kind, pairs, layers, heads, ablated_heads, replacement or "zero"
    )


def find_heads(heads: HeadNames, scope: InterventionScope) -> tuple[Head, ...]:
    """Return named heads, counted from 0. Raises UsageError for one that is not there."""
    named_heads: list[Head] = []
    for layers, heads_of_each in resolve_blocks(ALL, heads, scope.heads):
        for layer in layers:
            named_heads += [(layer, head) for head in heads_of_each]
    return tuple(named_heads)


def find_edge(edge: EdgeNames, scope: InterventionScope) -> tuple[int | None, int | None]:
    """Return the positions of an edge's tokens; None for all.

    Raises UsageError for a token that is not there, or there more than once.
    """
    query, key = edge
    query_position = None if query is None else find_position(query, scope.queries)
    key_position = None if key is None else find_position(key, scope.keys)
    return query_position, key_position


def find_position(spot: TokenReference, tokens: Sequence[Token]) -> int:
    """Return the position of a named token. Raises UsageError if it is not there exactly once."""
    return int(spot.resolve(tokens).start)


def make_intervention(changes: InterventionChanges) -> Intervention:
    """Make the intervention in a model that changes stand for.

    Weights that are permuted are so in one order in all queries.
    """
    where_cut: list[tuple[int, int | None]] = [*changes.heads]
    if not where_cut:
        where_cut = [(layer, None) for layer in changes.layers]
    kind = changes.kind
    cuts = []
    for layer, head in where_cut:
        cuts += [Edge(kind, layer, head, query, key) for query, key in changes.pairs]
    if not changes.ablated:
        return Intervention(tuple(cuts))
    change = make_ablation(changes.ablated, changes.how, changes.means, changes.seed)
    return Intervention(tuple(cuts), change, changes.kind)


def intervene(
    subject: Subject,
    changes: InterventionChanges,
    target: Target = LIKELIEST,
    seed: int = 0,
) -> InterventionOutcome:
    """Find what a model says before and after changes, and after others of the same size.

    The others say how much any change of that size moves the prediction. In place of heads that are
    ablated, or in which edges are cut, there are as many other heads of the same layers. In place
    of edges that are cut in all heads, there are as many other keys of the same queries, never the
    query's own. In place of a key that all queries lose, they lose another, which in a causal model
    more of them see, or fewer. Of both at once, both are drawn anew. There are DRAWS sets at most,
    from the seed, and none where there are not as many others.

    Raises UsageError for an edge that no chosen head sees, and for a query that would be left
    without a key.
    """
    seen_keys = {pair: find_seen_keys(subject, changes, pair) for pair in changes.pairs}
    mean_outputs = measure_mean_outputs(subject) if changes.how == "mean" else {}
    changes = replace(changes, seed=seed, means=mean_outputs)
    rng = np.random.default_rng(seed)
    other_changes = draw_changes(changes, subject.scope.heads, seen_keys, rng)
    interventions = map(make_intervention, (changes, *other_changes))
    runs = [NOTHING, *interventions]
    response = subject.model.respond(subject.prompt, runs, target, truncate=subject.truncate)
    before, *after = response.outputs.astype(np.float64)
    own_effect, *other_effects = [measure_effect(before, each, response) for each in after]
    return InterventionOutcome(
        changes,
        subject.scope,
        response,
        own_effect,
        tuple(other_changes),
        tuple(other_effects),
    )


def find_seen_keys(subject: Subject, changes: InterventionChanges, pair: Pair) -> tuple[int, ...]:
    """Find the keys that the query of an edge sees in the heads where it is cut, but its own.

    Where an edge is cut of all queries, these are the keys that any of them sees. Raises UsageError
    if the edge is not there.
    """
    query, key = pair
    layer_ranges = [(layer, layer) for layer in changes.layers]
    layers = Selection(tuple(layer_ranges))
    heads: Selection | HeadNames = ALL
    if query is None:  # one head tells what any query sees, and takes little memory
        rows = slice(None)
        first_heads = changes.heads[:1]
        heads = HeadNames(first_heads or ((changes.layers[0], 0),))
    else:
        rows = slice(query, query + 1)
        if changes.heads:
            heads = HeadNames(changes.heads)
    visible = subject.find_visible(layers, heads, rows)
    other_cells = visible
    if changes.kind != "cross":
        scope = subject.scope
        query_count, key_count = len(scope.queries), len(scope.keys)
        own_cells = np.eye(query_count, key_count, dtype=bool)
        other_cells = visible & ~own_cells[rows]
    seen: Visible = np.logical_or.reduce(other_cells)
    is_there = seen.any() if key is None else seen[key]
    if key is not None and query == key:
        is_there = is_there or visible[0, key]
    if not is_there:
        edge = " -> ".join(map(name_position, pair))
        raise UsageError(f"nothing to cut: the model masks {edge} in all of the chosen heads")
    return tuple(np.flatnonzero(seen).tolist())


def name_position(position: int | None) -> str:
    """Return the name of a position in an error; a star for all positions."""
    return "*" if position is None else str(position)


def measure_mean_outputs(subject: Subject) -> dict[int, Array]:
    """Measure what the heads of each layer put out in the mean over queries, (head, d_v)."""
    mean_outputs: dict[int, Array] = {}

    def keep_mean(layer: int, output: Array, _: WeighHeads) -> Array:
        outputs = widen_to_single(output)  # (batch, query, head, d_v)
        mean_outputs[layer] = outputs.mean((0, 1))
        return output

    recording = Intervention(change=keep_mean, kind=subject.scope.kind)
    subject.model.respond(subject.prompt, [recording], truncate=subject.truncate)
    return mean_outputs


def draw_changes(
    changes: InterventionChanges,
    heads: Mapping[int, Sequence[int]],
    seen_keys: Mapping[Pair, tuple[int, ...]],
    rng: np.random.Generator,
) -> list[InterventionChanges]:
    """Draw changes of the same size elsewhere, DRAWS at most.

    heads: all, by layer, among which others are drawn. seen_keys: by edge, the keys among which
    another is drawn.
    """
    alternatives: list[list[dict[str, Any]]] = []  # for each thing that is changed
    if changes.ablated:
        other_heads = draw_members(changes.ablated, heads, rng)
        alternatives.append([{"ablated": draw} for draw in other_heads])
    if changes.heads:
        other_heads = draw_members(changes.heads, heads, rng)
        alternatives.append([{"heads": draw} for draw in other_heads])
    elif any(key is None for _, key in changes.pairs):  # nothing is left of that query
        return []
    elif changes.pairs:
        keys = {query: seen for (query, _), seen in seen_keys.items()}
        other_pairs = draw_members(changes.pairs, keys, rng)
        alternatives.append([{"pairs": draw} for draw in other_pairs])
    choices = list(product(*alternatives))  # of both at once, each with each
    if len(choices) > DRAWS:
        order = rng.permutation(len(choices))[:DRAWS]
        choices = [choices[i] for i in sorted(order.tolist())]
    drawn_changes = []
    for combination in choices:
        fields: dict[str, Any] = {}
        for alternative in combination:
            fields |= alternative
        drawn_changes.append(replace(changes, **fields))
    return drawn_changes


def draw_members(
    own: Sequence[tuple[Group, Member]],
    candidates: Mapping[Group, Sequence[Member]],
    rng: np.random.Generator,
) -> list[tuple[tuple[Group, Member], ...]]:
    """Draw as many other members of each group: heads of layers, or keys of queries.

    own: the members in place of which others are drawn, with their groups. candidates: all members
    of each group. All ways are returned if there are DRAWS or fewer, else so many at random.
    """
    members: dict[Group, list[Member]] = {}
    for group, member in own:
        members.setdefault(group, []).append(member)
    pools: dict[Group, list[Member]] = {}
    for group in members:
        own_members = members[group]
        pools[group] = [each for each in candidates[group] if each not in own_members]
    pool_sizes = map(len, pools.values())
    counts = map(len, members.values())
    sizes = list(zip(pool_sizes, counts, strict=True))

    def name_members(way: Way) -> tuple[tuple[Group, Member], ...]:
        """Return the members at these positions of their pools, with their groups."""
        drawn_members: list[tuple[Group, Member]] = []
        for group, positions in zip(members, way, strict=True):
            pool = pools[group]
            drawn_members += [(group, pool[i]) for i in positions]
        return tuple(drawn_members)

    return [name_members(way) for way in draw_ways(sizes, rng)]


def draw_ways(sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[Way]:
    """Draw ways to take some members of each of several pools.

    sizes: how many members a pool has, and how many are taken. All ways are returned if there are
    DRAWS or fewer, else so many at random.
    """
    way_count = prod(comb(pool_size, count) for pool_size, count in sizes)
    if way_count <= DRAWS:
        subsets = [combinations(range(pool_size), count) for pool_size, count in sizes]
        return list(product(*subsets))
    ways: set[Way] = set()
    while len(ways) < DRAWS:
        way = []
        for pool_size, count in sizes:
            positions = rng.permutation(pool_size)[:count]
            way.append(tuple(sorted(positions.tolist())))
        ways.add(tuple(way))
    return sorted(ways)


def measure_effect(before: Doubles, after: Doubles, response: Response) -> Effect:
    """Measure how far outputs (number,) moved; what rounding puts below 0 is 0."""
    if response.kind == "vector":
        turn = measure_turn(before, after)
        return Effect(np.nan, np.nan, float(turn))
    log_before = log_softmax(before)
    log_after = log_softmax(after)
    differences = log_before - log_after
    divergence = float(np.exp(log_before) @ differences)
    centred_after = after - after.mean()
    rises = centred_after - before + before.mean()
    logit_rise = float(rises[response.target])
    return Effect(max(divergence, 0.0), logit_rise, np.nan)


def measure_turn(before: Doubles, after: Doubles) -> Doubles:
    """Measure how far vectors turned, 1 - cos: (dim,) and (..., dim) -> (...).

    What rounding puts below 0 is 0; NaN where one of the two vectors is 0.
    """
    length_before = np.linalg.norm(before)
    lengths = length_before * np.linalg.norm(after, axis=-1)
    cosines = np.full(lengths.shape, np.nan)
    np.divide(after @ before, lengths, out=cosines, where=lengths > 0)
    return np.asarray(np.maximum(1 - cosines, 0))
