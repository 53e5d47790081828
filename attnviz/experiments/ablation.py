"""What a head is for: how much worse a model predicts without it.

A head's output is replaced before it is projected: by zeros, which no head puts out, or by its mean
over the queries of all sequences, which says nothing of the one at hand. How much the loss rises
tells what the model has of the head, beside how much it rises without other heads of its layer
(Michel et al. 2019; mean: Wang et al. 2022).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.roles import RoleData
from attnviz.experiments.sequences import draw_repeated_sequences
from attnviz.layer.arrays import Array, find_namespace, widen_to_single
from attnviz.models.base import Model, SupportsLosses, require_losses
from attnviz.progress import begin_step, count_steps
from attnviz.record import Doubles, Visible
from attnviz.request import (
    HeadInputs,
    OutputChange,
    Prompt,
    Replacement,
    Request,
    WeighHeads,
)
from attnviz.results.ablation import (
    MEASURED_REPLACEMENTS,
    AblatedHeads,
    Ablation,
    LossRise,
    LossSpread,
)
from attnviz.results.head_roles import HeadRole, Roles
from attnviz.selection import Head, Selection

OTHERS = 5  # other heads, or sets of heads, that are ablated for comparison, at most
FIRST_HEAD = Selection(((0, 0),))
TOKENS = Request(layers=FIRST_HEAD, truncate=True, kinds=("self",), keep="statistics")
"""What is asked of a model to learn which tokens it makes of a text."""
Losses = npt.NDArray[np.float64]
HeadGroup = tuple[tuple[Head, ...], str | None]
"""Heads that are ablated together, and their role."""


@dataclass
class EvaluationData:
    """The sequences on which losses are measured, and what was measured on them."""

    ids: Sequence[npt.NDArray[np.int64]]
    """Token ids in batches, each (batch, n)."""
    counted: slice
    """The positions of the loss that count; the first of all is that of the second token."""
    mean_outputs: dict[int, Array] = field(default_factory=dict)
    """By layer, the mean of what each head puts out, (head, d_v)."""
    losses: dict[tuple[Replacement, frozenset[Head]], Losses] = field(default_factory=dict)
    """By replacement and ablated heads, the mean loss on each sequence, (sequence,)."""


class HeadSet(NamedTuple):
    """Heads that are ablated together, and the others that are ablated for comparison."""

    heads: tuple[Head, ...]
    role: str | None
    others: list[tuple[Head, ...]]
    """Sets of as many other heads."""


def ablate(
    model: Model,
    roles: Roles,
    chosen: Sequence[HeadRole],
    texts: Sequence[str],
) -> Ablation:
    """Measure the loss without each of the chosen heads, and without all those of one role.

    roles: the roles of all heads, such as induction, as they were measured. chosen: the heads to
    ablate, that is, to replace the output of. texts: those on which the roles were measured.

    The losses are measured on the data on which the roles were. For comparison, other heads of the
    same layers are ablated that do not play the same role, or where there are not enough, such
    heads of any layer. They are drawn anew from the seed of the roles.

    Raises UsageError for a model without next tokens, ModelError for one that tells no losses.
    """
    predictor = require_losses(model)
    evaluations = make_evaluation_data(predictor, roles, texts)
    intact_losses: dict[RoleData, Losses] = {}
    for data, evaluation in evaluations.items():
        with begin_step("measuring the loss of the whole model"):
            intact_losses[data] = measure_baseline(predictor, evaluation)
    head_sets = make_head_sets(chosen, roles)
    measure_head_sets(predictor, evaluations, head_sets)
    spreads = {data: LossSpread.of(losses) for data, losses in intact_losses.items()}
    ablated = [compare_losses(head_set, evaluations, intact_losses) for head_set in head_sets]
    return Ablation(spreads, tuple(ablated))


def make_evaluation_data(
    model: SupportsLosses,
    roles: Roles,
    texts: Sequence[str],
) -> dict[RoleData, EvaluationData]:
    """Make the data on which the roles of heads were measured ready to measure losses on.

    Returns the random sequences with a repeated block under "repeated", and the texts under "text".
    On a repeated block the loss of the second copy is counted, but not that of its first token,
    which nothing foretells. Texts of one token foretell nothing either, and are left out.
    """
    vocabulary = model.read_vocabulary()
    setting = roles.setting
    sequences = np.array(draw_repeated_sequences(vocabulary, setting, model.name))
    block_start = len(vocabulary.prefix)
    second_copy_start = block_start + setting.block
    # The loss of a token stands one place before it, since the first token has none.
    second_copy = slice(second_copy_start, second_copy_start + setting.block - 1)
    evaluations: dict[RoleData, EvaluationData] = {}
    evaluations["repeated"] = EvaluationData([sequences], second_copy)
    text_ids = []
    for text in count_steps(texts, "reading texts", "text"):
        capture = model.capture(Prompt(text), TOKENS)
        ids = [token.id for token in capture.maps[0].queries]
        if len(ids) > 1:
            text_ids.append(np.array([ids]))
    if text_ids:
        evaluations["text"] = EvaluationData(text_ids, slice(None))
    return evaluations


def make_head_sets(chosen: Sequence[HeadRole], roles: Roles) -> list[HeadSet]:
    """Make the sets of heads to ablate, each with other heads that are drawn for comparison.

    chosen: the heads to ablate, each by itself, and all of one role together. roles: those of all
    heads, among which the others are drawn.
    """
    rng = np.random.default_rng(roles.setting.seed)
    head_sets = []
    for heads, role in group_heads(chosen):
        others = draw_other_heads(heads, role, roles.heads, rng)
        head_sets.append(HeadSet(heads, role, others))
    return head_sets


def measure_head_sets(
    model: SupportsLosses,
    evaluations: Mapping[RoleData, EvaluationData],
    head_sets: Sequence[HeadSet],
) -> None:
    """Measure the losses without each set of heads and without those drawn for comparison with it.

    The losses are kept in ``evaluations``, the data to measure on; each set is measured only once.
    """
    distinct: dict[frozenset[Head], None] = {}
    for head_set in head_sets:
        for heads in (head_set.heads, *head_set.others):
            distinct[frozenset(heads)] = None
    runs = list(product(evaluations.values(), MEASURED_REPLACEMENTS, distinct))
    for evaluation, replacement, ablated in count_steps(runs, "ablating heads", "run"):
        change = make_ablation(ablated, replacement, evaluation.mean_outputs)
        losses = measure_losses(model, evaluation, change)
        evaluation.losses[replacement, ablated] = losses


def compare_losses(
    head_set: HeadSet,
    evaluations: Mapping[RoleData, EvaluationData],
    intact_losses: Mapping[RoleData, Losses],
) -> AblatedHeads:
    """Compare the losses without a set of heads with those of the intact model, on all data.

    head_set: the heads, with others that were drawn for comparison. evaluations: for each kind of
    data the losses that were measured without heads. intact_losses: for each kind of data the
    losses of the model with all its heads, (sequence,).
    """
    rises: dict[tuple[RoleData, Replacement], LossRise] = {}
    for data, evaluation in evaluations.items():
        intact = intact_losses[data]
        for replacement in MEASURED_REPLACEMENTS:
            rises[data, replacement] = measure_rise(evaluation, intact, replacement, head_set)
    return AblatedHeads(head_set.heads, head_set.role, rises)


def measure_baseline(model: SupportsLosses, evaluation: EvaluationData) -> Losses:
    """Measure the loss of the intact model on each sequence, (sequence,).

    While the model runs, the mean output of each head is computed, and kept in ``evaluation``.
    """
    sums: dict[int, Array] = defaultdict(float)

    def add_outputs(layer: int, output: Array, _: WeighHeads) -> Array:
        head_sums = widen_to_single(output).sum((0, 1))  # (head, d_v)
        sums[layer] = sums[layer] + head_sums
        return output

    losses = measure_losses(model, evaluation, add_outputs)
    query_count = sum(ids.size for ids in evaluation.ids)
    evaluation.mean_outputs = {layer: total / query_count for layer, total in sums.items()}
    return losses


def measure_losses(
    model: SupportsLosses,
    evaluation: EvaluationData,
    change: OutputChange,
) -> Losses:
    """Measure the mean loss on each sequence while a model is changed, (sequence,).

    evaluation: the sequences, and the positions that are counted. change: a function that is called
    with the outputs of the heads of each layer, and returns what the model uses instead.
    """
    means = []
    for ids in evaluation.ids:
        losses = model.losses(ids, change)  # (batch, n - 1)
        counted = losses[:, evaluation.counted]
        means.append(counted.mean(1, dtype=np.float64))
    return np.concatenate(means)


def make_ablation(
    heads: Iterable[Head],
    replacement: Replacement,
    means: Mapping[int, Array],
    seed: int = 0,
) -> OutputChange:
    """Make the function that ablates heads in a running model, by replacing their outputs.

    heads: each by its layer and number. replacement: "zero"; "mean"; "uniform" or "permute", which
    stand for outputs with other weights. means: by layer the mean outputs of all heads, (head,
    d_v), which are needed for "mean" only. seed: of the order in which weights are permuted. A
    replacement is a constant: no gradient goes through it.
    """
    heads_of_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in sorted(heads):
        heads_of_layer[layer].append(head)

    def replace_outputs(layer: int, output: Array, weigh: WeighHeads) -> Array:
        """Replace the outputs of the ablated heads of a layer, (batch, query, head, d_v).

        weigh: tells the weights, the mask and the values of some heads.
        """
        if layer not in heads_of_layer:
            return output
        ablated = heads_of_layer[layer]
        xp, values = find_namespace(output), 0
        if replacement == "mean":
            values = means[layer][ablated]
        elif replacement != "zero":
            rng = np.random.default_rng((seed, layer))
            without_gradient = nullcontext() if xp is np else xp.no_grad()
            with without_gradient:
                values = compute_other_outputs(weigh(ablated), replacement, rng)
        changed = output + 0  # a copy, of NumPy as of torch
        new_outputs = xp.asarray(values, dtype=output.dtype, device=output.device)
        changed[:, :, ablated] = new_outputs
        return changed

    return replace_outputs


def compute_other_outputs(
    inputs: HeadInputs,
    replacement: Replacement,
    rng: np.random.Generator,
) -> Array:
    """Compute what heads would put out with other weights, (batch, query, head, d_v).

    inputs: the weights of these heads, their mask and their values. replacement: "uniform", the
    same weight on all visible keys, or "permute", the weights of each query in another order.
    """
    weights = convert_to_numpy(inputs.weights)
    value = convert_to_numpy(inputs.value)
    visible = np.broadcast_to(convert_to_numpy(inputs.visible), weights.shape)
    if replacement == "uniform":
        seen = visible.sum(-1, keepdims=True)
        other_weights = visible / np.maximum(seen, 1)
    else:
        other_weights = permute_rows(weights, visible, rng)
    by_head = other_weights @ value  # (batch, head, query, d_v)
    outputs: Array = np.swapaxes(by_head, 1, 2)
    return outputs.astype(np.float32)


def permute_rows(weights: Doubles, visible: Visible, rng: np.random.Generator) -> Doubles:
    """Shuffle the weights (..., key) of each row among its visible keys (Jain & Wallace 2019).

    Masked keys keep their 0. All texts of a batch, the first axis, are shuffled in one order.
    """
    # The visible keys of each row in their order, then the masked ones.
    visible_first = np.argsort(~visible, axis=-1, kind="stable")
    draws = rng.random(weights.shape[1:])  # one order for all texts of a batch
    # Masked keys come last.
    visible_draws = np.where(visible, draws, np.inf)
    shuffled_keys = np.argsort(visible_draws, axis=-1)
    shuffled_weights = np.take_along_axis(weights, shuffled_keys, -1)
    permuted = np.zeros_like(weights)
    np.put_along_axis(permuted, visible_first, shuffled_weights, -1)
    return permuted


def convert_to_numpy(array: Array) -> Array:
    """Convert an array of NumPy or torch to NumPy, without its gradients; numbers to float64."""
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu()
        if array.is_floating_point():
            array = array.double()  # NumPy has no bfloat16
        array = array.numpy()
    if array.dtype == bool:
        return array
    return array.astype(np.float64)


def group_heads(chosen: Sequence[HeadRole]) -> list[HeadGroup]:
    """Group heads for ablation: each by itself, then all of a role together where it has several.

    chosen: heads, each with its role, or None for no role. Each group stands with the role of its
    heads.
    """
    groups: list[HeadGroup] = []
    for role in dict.fromkeys(head.role for head in chosen):
        heads = [head.place for head in chosen if head.role == role]
        groups += [((head,), role) for head in heads]
        if role and len(heads) > 1:
            groups.append((tuple(heads), role))
    return groups


def draw_other_heads(
    ablated: Sequence[Head],
    role: str | None,
    all_heads: Sequence[HeadRole],
    rng: np.random.Generator,
) -> list[tuple[Head, ...]]:
    """Draw sets of as many other heads as are ablated, OTHERS sets at most.

    ablated: the heads in place of which others are drawn. role: the role of these heads; no head
    that plays it is drawn. all_heads: all heads of the model with their roles. The others are of
    the same layers if these have enough such heads, else of all layers. There is no set if the
    model has too few.
    """
    count = len(ablated)
    layers = {layer for layer, _ in ablated}
    candidates = []
    for head in all_heads:
        plays_role = role is not None and head.role == role
        if head.place not in ablated and not plays_role:
            candidates.append(head.place)
    same_layers = [head for head in candidates if head[0] in layers]
    pool = same_layers if len(same_layers) >= count else candidates
    if count == 1:
        order = rng.permutation(len(pool))
        return [(pool[i],) for i in order[:OTHERS]]
    if len(pool) < count:
        return []
    draws: dict[tuple[Head, ...], None] = {}
    for _ in range(OTHERS):
        order = rng.permutation(len(pool))
        drawn_heads = sorted(pool[i] for i in order[:count])
        draws[tuple(drawn_heads)] = None
    return list(draws)


def measure_rise(
    evaluation: EvaluationData,
    intact: Losses,
    replacement: Replacement,
    head_set: HeadSet,
) -> LossRise:
    """Measure how much the loss rises without a set of heads, and without others in its place.

    evaluation: one kind of data, with the losses that were measured on it without heads. intact:
    the losses of the model with all its heads, (sequence,). replacement: by what the output of the
    heads was replaced. head_set: the heads, with others that were drawn for comparison.
    """
    losses = evaluation.losses[replacement, frozenset(head_set.heads)]
    rise = LossSpread.of(losses - intact)
    mean_rises = []
    for heads in head_set.others:
        rises = evaluation.losses[replacement, frozenset(heads)] - intact
        mean_rises.append(float(rises.mean()))
    return LossRise(rise, LossSpread.of(mean_rises))
