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


class PromptedModel(NamedTuple):
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
    ) -> "PromptedModel":
        """Run a model twice on a prompt, to see which layers, heads and tokens can be changed.

        kind: the map that is meant, of a model that has several, such as self-attention and
        cross-attention. truncate: cut a text that is longer than the model reads. Raises UsageError
        if that map is not there, or has to be named, ModelError for a model without predictions.
        """
        predictor = require_predictions(model)
        kinds = (kind,) if kind else ()
        # One cell of each head takes little, and tells all kinds, layers and heads that there are.
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
        request = Request(
            layers=ALL,
            heads=first_head,
            truncate=truncate,
            kinds=present_kinds,
            keep="statistics",
        )
        whole_map = model.capture(prompt, request).maps[0]
        scope = InterventionScope(whole_map.kind, heads, whole_map.queries, whole_map.keys)
        return cls(predictor, prompt, truncate, scope)

    def find_visible(self, layers: Selection, heads: Selection | HeadNames, rows: slice) -> Visible:
        """Find the keys that some queries see in any of some heads, as a mask (query, key).

        layers, heads: the heads that are looked at. rows: the window of the queries.
        """
        kinds = (self.scope.kind,)
        request = Request(
            layers=layers,
            heads=heads,
            truncate=self.truncate,
            kinds=kinds,
            rows=rows,
        )
        maps = self.model.capture(self.prompt, request).maps
        visible = [each.visible.any((0, 1)) for each in maps]
        return np.logical_or.reduce(visible)  # type: ignore[no-any-return]


def resolve_changes(
    scope: InterventionScope,
    knocked_out: Sequence[EdgeNames] = (),
    inside: Selection | HeadNames | None = None,
    ablated: HeadNames | None = None,
    replacement: Replacement | None = None,
) -> InterventionChanges:
    """Find the changes of a model that are asked for by the names of heads and tokens.

    scope: the layers, heads and tokens that there are. knocked_out: edges to cut, each the names of
    a query and a key. inside: layers, or heads, in which the edges are cut, by default all.
    ablated: heads whose output is replaced. replacement: what replaces it, by default zeros. Raises
    UsageError for what is not there.
    """
    inside = inside or ALL
    heads: tuple[Head, ...] = ()
    layers: tuple[int, ...] = ()
    if isinstance(inside, HeadNames):
        heads = list_named_heads(inside, scope)
    else:
        layers = inside.resolve(tuple(scope.heads), "layer")
    edges = [resolve_edge(edge, scope) for edge in knocked_out]
    pairs = tuple(dict.fromkeys(edges))
    ablated_heads = list_named_heads(ablated, scope) if ablated else ()
    return InterventionChanges(
        kind=scope.kind,
        pairs=pairs,
        layers=layers,
        heads=heads,
        ablated=ablated_heads,
        how=replacement or "zero",
    )


def list_named_heads(heads: HeadNames, scope: InterventionScope) -> tuple[Head, ...]:
    """Return named heads, each by its layer and number, counted from 0.

    scope: the layers and heads that there are. Raises UsageError for one that is not there.
    """
    named_heads: list[Head] = []
    for layers, heads_of_each in resolve_blocks(ALL, heads, scope.heads):
        for layer in layers:
            named_heads += [(layer, head) for head in heads_of_each]
    return tuple(named_heads)


def resolve_edge(edge: EdgeNames, scope: InterventionScope) -> tuple[int | None, int | None]:
    """Return the positions of the query and of the key of an edge; None for all of them.

    edge: the names of the two tokens. Raises UsageError for a token that is not there, or there
    more than once.
    """
    query, key = edge
    query_position = None if query is None else resolve_position(query, scope.queries)
    key_position = None if key is None else resolve_position(key, scope.keys)
    return query_position, key_position


def resolve_position(reference: TokenReference, tokens: Sequence[Token]) -> int:
    """Return the position of a named token. Raises UsageError if it is not there exactly once."""
    return int(reference.resolve(tokens).start)


def make_intervention(changes: InterventionChanges) -> Intervention:
    """Turn changes that are asked for into an intervention, with which a model can be run.

    Edges are cut in the heads that the changes name, else in all heads of their layers. Where the
    weights of an ablated head are permuted, they are so in one order in all queries.
    """
    # Each is a layer and a head, or None for all heads.
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
    subject: PromptedModel,
    changes: InterventionChanges,
    target: Target = LIKELIEST,
    seed: int = 0,
) -> InterventionOutcome:
    """Find what a model says before and after changes, and after random others of the same size.

    subject: the model with its prompt. changes: edges to cut and heads to ablate. target: the
    prediction that is asked about. seed: of the random others.

    The others say how much any change of that size moves the prediction. In place of heads that are
    ablated, or in which edges are cut, there are as many other heads of the same layers. In place
    of edges that are cut in all heads, there are as many other keys of the same queries, never the
    query's own token. In place of a key that all queries lose, they lose another, which in a causal
    model more of them see, or fewer. If heads are ablated and edges cut at once, both are drawn
    anew. There are DRAWS sets at most, and none where there are not as many others.

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
    effect, *other_effects = [measure_effect(before, each, response) for each in after]
    return InterventionOutcome(
        changes=changes,
        scope=subject.scope,
        response=response,
        effect=effect,
        random_changes=tuple(other_changes),
        others=tuple(other_effects),
    )


def find_seen_keys(
    subject: PromptedModel,
    changes: InterventionChanges,
    pair: Pair,
) -> tuple[int, ...]:
    """Find the keys other than its own token that the query of an edge sees in the chosen heads.

    subject: the model with its prompt. changes: say in which layers or heads the edge is cut. pair:
    the positions of the query and of the key; None stands for all. If an edge is cut of all
    queries, the keys are those that any query sees. Raises UsageError if the heads mask the edge,
    so that there is nothing to cut.
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
        # The cells of each token with itself.
        own_cells = np.eye(query_count, key_count, dtype=bool)
        other_cells = visible & ~own_cells[rows]
    seen: Visible = np.logical_or.reduce(other_cells)
    is_there = seen.any() if key is None else seen[key]
    # This cell was left out above.
    if key is not None and query == key:
        is_there = is_there or visible[0, key]
    if not is_there:
        edge = " -> ".join(map(name_position, pair))
        raise UsageError(f"nothing to cut: the model masks {edge} in all of the chosen heads")
    return tuple(np.flatnonzero(seen).tolist())


def name_position(position: int | None) -> str:
    """Return the name of a position in an error; a star for all positions."""
    return "*" if position is None else str(position)


def measure_mean_outputs(subject: PromptedModel) -> dict[int, Array]:
    """Measure the mean output of each head over all queries, (head, d_v) for each layer.

    subject: a model with its prompt, which is run once.
    """
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

    changes: those in place of which others are drawn. heads: for each layer all heads, among which
    other heads are drawn. seen_keys: for each edge the keys among which another is drawn. Heads to
    ablate and edges to cut are drawn by themselves, and each draw of the one is combined with each
    of the other. There are none if a query loses all its keys in all heads.
    """
    # For each field that is changed, the values that are drawn for it.
    alternatives: list[list[dict[str, Any]]] = []
    if changes.ablated:
        other_heads = draw_members(changes.ablated, heads, rng)
        alternatives.append([{"ablated": draw} for draw in other_heads])
    if changes.heads:
        other_heads = draw_members(changes.heads, heads, rng)
        alternatives.append([{"heads": draw} for draw in other_heads])
    elif any(key is None for _, key in changes.pairs):  # no other key is left to that query
        return []
    elif changes.pairs:
        keys = {query: seen for (query, _), seen in seen_keys.items()}
        other_pairs = draw_members(changes.pairs, keys, rng)
        alternatives.append([{"pairs": draw} for draw in other_pairs])
    choices = list(product(*alternatives))
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
    replaced: Sequence[tuple[Group, Member]],
    candidates: Mapping[Group, Sequence[Member]],
    rng: np.random.Generator,
) -> list[tuple[tuple[Group, Member], ...]]:
    """Draw as many other members of each group: heads of layers, or keys of queries.

    replaced: the members in place of which others are drawn, each with its group. candidates: all
    members of each group. Returns sets of as many members, each with its group: all sets that there
    are if they are DRAWS or fewer, else DRAWS of them at random.
    """
    members: dict[Group, list[Member]] = {}
    for group, member in replaced:
        members.setdefault(group, []).append(member)
    pools: dict[Group, list[Member]] = {}
    for group in members:
        replaced_members = members[group]
        pools[group] = [each for each in candidates[group] if each not in replaced_members]
    pool_sizes = map(len, pools.values())
    counts = map(len, members.values())
    sizes = list(zip(pool_sizes, counts, strict=True))

    def name_members(way: Way) -> tuple[tuple[Group, Member], ...]:
        """Return the members at some positions of their pools, with their groups."""
        drawn_members: list[tuple[Group, Member]] = []
        for group, positions in zip(members, way, strict=True):
            pool = pools[group]
            drawn_members += [(group, pool[i]) for i in positions]
        return tuple(drawn_members)

    return [name_members(way) for way in draw_ways(sizes, rng)]


def draw_ways(sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[Way]:
    """Draw ways to take some members of each of several pools.

    sizes: for each pool, how many members it has, and how many are taken. A way is, for each pool,
    the positions of the members that are taken. All ways are returned if there are DRAWS or fewer,
    else DRAWS of them at random.
    """
    way_count = prod(comb(pool_size, count) for pool_size, count in sizes)
    if way_count <= DRAWS:
        subsets = [combinations(range(pool_size), count) for pool_size, count in sizes]
        return list(product(*subsets))
    ways: set[Way] = set()
    # There are more ways than that, so that this comes to an end.
    while len(ways) < DRAWS:
        way = []
        for pool_size, count in sizes:
            positions = rng.permutation(pool_size)[:count]
            way.append(tuple(sorted(positions.tolist())))
        ways.add(tuple(way))
    return sorted(ways)


def measure_effect(before: Doubles, after: Doubles, response: Response) -> Effect:
    """Measure how far the output of a model, (number,), moved by a change.

    before, after: logits, or vectors where the model predicts nothing. response: says which they
    are, and which logit is asked about. For logits there are the divergence KL(before || after) in
    nats, and how much the logit rose, less the mean of all; for vectors there is 1 - cosine. What
    is not measured is NaN. A divergence that rounding puts below 0 is 0.
    """
    if response.kind == "vector":
        turn = measure_turn(before, after)
        return Effect(kl=np.nan, logit=np.nan, cosine=float(turn))
    log_before = log_softmax(before)
    log_after = log_softmax(after)
    differences = log_before - log_after
    divergence = float(np.exp(log_before) @ differences)
    centred_after = after - after.mean()
    rises = centred_after - before + before.mean()
    logit_rise = float(rises[response.target])
    return Effect(kl=max(divergence, 0.0), logit=logit_rise, cosine=np.nan)


def measure_turn(before: Doubles, after: Doubles) -> Doubles:
    """Measure how far vectors turned, 1 - cos: (dim,) and (..., dim) -> (...).

    before: one vector. after: vectors that are compared with it. What rounding puts below 0 is 0;
    NaN where one of the two vectors is 0.
    """
    length_before = np.linalg.norm(before)
    lengths = length_before * np.linalg.norm(after, axis=-1)
    cosines = np.full(lengths.shape, np.nan)
    np.divide(after @ before, lengths, out=cosines, where=lengths > 0)
    return np.asarray(np.maximum(1 - cosines, 0))
