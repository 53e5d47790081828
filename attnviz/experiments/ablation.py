"""What a head is for: how much worse a model predicts without it.

A head's output is replaced before it is projected: by zeros, which no head puts out, or by its mean over the queries of
all sequences, which says nothing of the one at hand. How much the loss rises tells what the model has of the head,
beside how much it rises without other heads of its layer (Michel et al. 2019; mean: Wang et al. 2022).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from attnviz.analysis.roles import Data
from attnviz.experiments.progress import Watch, ignore_progress
from attnviz.experiments.sequences import repeated
from attnviz.layer.arrays import Array, namespace, widen
from attnviz.models.base import Model, SupportsLosses, require_losses
from attnviz.record import Doubles, Visible
from attnviz.request import Change, Prompt, Replacement, Request, Weigh, Weighed
from attnviz.results.ablation import HOWS, AblatedHeads, Ablation, LossRise, LossSpread
from attnviz.results.head_roles import HeadRole, Roles
from attnviz.selection import Head, Selection

OTHERS = 5  # other heads, or sets of heads, that are ablated for comparison, at most
TOKENS = Request(layers=Selection(((0, 0),)), truncate=True, kinds=("self",), keep="statistics")
Losses = npt.NDArray[np.float64]


@dataclass
class Passages:
    """What is read, what of the loss counts, and what was found of it."""

    ids: Sequence[npt.NDArray[np.int64]]
    """Each (batch, n)."""
    counted: slice
    """Places of the loss, of which the first is that of the second token."""
    means: dict[int, Array] = field(default_factory=dict)
    """Of each layer, the mean of what each head puts out (head, d_v)."""
    losses: dict[tuple[Replacement, frozenset[Head]], Losses] = field(default_factory=dict)
    """Of each sequence, without some heads."""


def ablate(
    model: Model,
    roles: Roles,
    chosen: Sequence[HeadRole],
    texts: Sequence[str],
    watch: Watch = ignore_progress,
) -> Ablation:
    """The loss without each of the chosen heads, and without all those of one role, on the data of the roles.

    Others are heads of the same layers that do not play the same role, else such heads of any layer; drawn anew from
    the seed. ``watch`` hears how many of how many runs are done. Raises UsageError of a model without next tokens,
    ModelError of one that tells no losses.
    """
    predictor = require_losses(model)
    data = passages(predictor, roles, texts)
    whole = {name: baseline(predictor, part) for name, part in data.items()}
    rng = np.random.default_rng(roles.setting.seed)
    sets = [(heads, role, drawn(heads, role, roles.heads, rng)) for heads, role in together(chosen)]
    every = list(
        dict.fromkeys(frozenset(heads) for own, _, others in sets for heads in (own, *others))
    )
    jobs = [(part, how, heads) for part in data.values() for how in HOWS for heads in every]
    for done, (part, how, heads) in enumerate(jobs, 1):
        part.losses[how, heads] = losses(predictor, part, without(heads, how, part.means))
        watch(done, len(jobs))
    ablated = tuple(
        AblatedHeads(
            own,
            role,
            {
                (name, how): rise(data[name], whole[name], how, own, others)
                for name in data
                for how in HOWS
            },
        )
        for own, role, others in sets
    )
    return Ablation({name: LossSpread.of(found) for name, found in whole.items()}, ablated)


def passages(model: SupportsLosses, roles: Roles, texts: Sequence[str]) -> dict[Data, Passages]:
    """The sequences and texts of the roles. Of a repeated block counts the second copy but its first token.

    That one nothing foretells. Texts of one token foretell nothing either, and are left out.
    """
    vocabulary = model.read_vocabulary()
    setting, first = roles.setting, len(vocabulary.prefix)
    sequences = np.array(repeated(vocabulary, setting, model.name))
    read = [model.capture(Prompt(text), TOKENS).maps[0].queries for text in texts]
    ids = [np.array([[token.id for token in tokens]]) for tokens in read if len(tokens) > 1]
    second = slice(first + setting.block, first + 2 * setting.block - 1)
    found: dict[Data, Passages] = {"repeated": Passages([sequences], second)}
    return {**found, "text": Passages(ids, slice(None))} if ids else found


def baseline(model: SupportsLosses, part: Passages) -> Losses:
    """The loss of the whole model on each sequence; the means of its heads' outputs are kept meanwhile."""
    sums: dict[int, Array] = defaultdict(float)

    def add(layer: int, output: Array, _: Weigh) -> Array:
        sums[layer] = sums[layer] + widen(output).sum((0, 1))  # (head, d_v)
        return output

    found = losses(model, part, add)
    queries = sum(ids.size for ids in part.ids)
    part.means = {layer: total / queries for layer, total in sums.items()}
    return found


def losses(model: SupportsLosses, part: Passages, change: Change) -> Losses:
    """The mean loss on each sequence."""
    return np.concatenate(
        [model.losses(ids, change)[:, part.counted].mean(1, dtype=np.float64) for ids in part.ids]
    )


def without(
    heads: Iterable[Head], how: Replacement, means: Mapping[int, Array], seed: int = 0
) -> Change:
    """The change that ablates heads. means: of each layer (head, d_v), for the mean; seed: of what is permuted.

    What is put there is a constant: no gradient goes through it.
    """
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, head in sorted(heads):
        chosen[layer].append(head)

    def change(layer: int, output: Array, weigh: Weigh) -> Array:
        if layer not in chosen:
            return output
        xp, values = namespace(output), 0
        if how == "mean":
            values = means[layer][chosen[layer]]
        elif how != "zero":
            with nullcontext() if xp is np else xp.no_grad():
                values = reweighed(weigh(chosen[layer]), how, np.random.default_rng((seed, layer)))
        changed = output + 0  # a copy, of NumPy as of torch
        changed[:, :, chosen[layer]] = xp.asarray(values, dtype=output.dtype, device=output.device)
        return changed

    return change


def reweighed(made: Weighed, how: Replacement, rng: np.random.Generator) -> Array:
    """What heads put out with other weights: (batch, query, head, d_v)."""
    weights, value = as_numpy(made.weights), as_numpy(made.value)
    visible = np.broadcast_to(as_numpy(made.visible), weights.shape)
    even = visible / np.maximum(visible.sum(-1, keepdims=True), 1)
    other = even if how == "uniform" else permuted(weights, visible, rng)
    found: Array = np.swapaxes(other @ value, 1, 2).astype(np.float32)
    return found


def permuted(weights: Doubles, visible: Visible, rng: np.random.Generator) -> Doubles:
    """Weights with each row in another order among the keys that are visible (Jain & Wallace 2019): (..., key)."""
    places = np.argsort(~visible, axis=-1, kind="stable")  # the visible keys first, in their order
    drawn = rng.random(weights.shape[1:])  # one order for all texts of a batch
    shuffled = np.argsort(np.where(visible, drawn, np.inf), axis=-1)
    found = np.zeros_like(weights)
    np.put_along_axis(found, places, np.take_along_axis(weights, shuffled, -1), -1)
    return found


def as_numpy(array: Array) -> Array:
    """An array of NumPy, or a tensor outside of its graph, as NumPy's; numbers in float64."""
    if not isinstance(array, np.ndarray):  # NumPy has no bfloat16
        array = array.detach().cpu()
        array = (array.double() if array.is_floating_point() else array).numpy()
    return array if array.dtype == bool else array.astype(np.float64)


def together(chosen: Sequence[HeadRole]) -> list[tuple[tuple[Head, ...], str | None]]:
    """Each head by itself, and after those of a role, where they are several, all of them."""
    found: list[tuple[tuple[Head, ...], str | None]] = []
    for role in dict.fromkeys(head.role for head in chosen):
        heads = [head.place for head in chosen if head.role == role]
        found += [((place,), role) for place in heads]
        if role and len(heads) > 1:
            found.append((tuple(heads), role))
    return found


def drawn(
    own: Sequence[Head], role: str | None, heads: Sequence[HeadRole], rng: np.random.Generator
) -> list[tuple[Head, ...]]:
    """Sets of as many other heads: of the same layers if there are enough, else of all."""
    layers = {layer for layer, _ in own}
    other = [
        head.place
        for head in heads
        if head.place not in own and (role is None or head.role != role)
    ]
    near = [place for place in other if place[0] in layers]
    pool = near if len(near) >= len(own) else other
    if len(own) == 1:
        return [(pool[i],) for i in rng.permutation(len(pool))[:OTHERS]]
    if len(pool) < len(own):
        return []
    sets = (
        tuple(sorted(pool[i] for i in rng.permutation(len(pool))[: len(own)]))
        for _ in range(OTHERS)
    )
    return list(dict.fromkeys(sets))


def rise(
    part: Passages,
    whole: Losses,
    how: Replacement,
    own: Sequence[Head],
    others: Sequence[Sequence[Head]],
) -> LossRise:
    """The rise of the loss without some heads, and without others."""
    rises = [part.losses[how, frozenset(heads)] - whole for heads in (own, *others)]
    return LossRise(
        LossSpread.of(rises[0]), LossSpread.of([float(found.mean()) for found in rises[1:]])
    )
