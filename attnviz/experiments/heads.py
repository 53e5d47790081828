"""What each head of a model is: its roles, measured over many sequences and texts."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from attnviz.analysis.numerics import collapse_repeats
from attnviz.analysis.roles import ROLES, Layout, RoleData, scale_above_chance, score_roles
from attnviz.errors import UsageError
from attnviz.experiments.ablation import ablate
from attnviz.experiments.progress import Watch, ignore_progress
from attnviz.experiments.sequences import draw_repeated_sequences
from attnviz.models.base import Model, require_token_sequences
from attnviz.record import AttentionMap, Capture, Token
from attnviz.request import Prompt, Request
from attnviz.results.head_roles import (
    HeadRole,
    HeadsResult,
    Roles,
    RoleScore,
    RoleScores,
    SequenceSettings,
)
from attnviz.selection import ALL, Head, HeadNames, Selection, require_same_tokens, resolve_blocks

ALL_HEADS = Request(truncate=True, kinds=("self",))
DEFAULT_SETTING = SequenceSettings()

Sample = tuple[float, float]  # score and chance
Samples = dict[Head, dict[str, list[Sample]]]  # of each head and role, one a sequence


def find_head_roles(
    model: Model,
    texts: Sequence[str],
    setting: SequenceSettings = DEFAULT_SETTING,
    *,
    layers: Selection | None = None,
    heads: Selection | HeadNames | None = None,
    role: str | None = None,
    ablates: bool = False,
    watch: Watch = ignore_progress,
) -> HeadsResult:
    """Find the roles of the heads of a model, and with ``ablates`` what it loses without them.

    layers, heads: those that are listed; None for all. role: the one that is drawn. Without the
    chosen heads the loss is measured, and where none are chosen, without those that have a name, or
    play ``role``. watch: is called with how many of how many runs of the ablation are done.

    Raises UsageError for a head that is not there, for a model of two texts or a block too long for
    it, and where there is nothing to ablate; InputError for texts that the model cannot read.
    """
    all_roles = measure_heads(model, setting, texts)
    roles = select_roles(all_roles, layers or ALL, heads or ALL)
    if not ablates:
        return HeadsResult(roles, role=role)
    chosen = roles.heads
    if layers is None and heads is None:
        chosen = heads_with_name(roles, role)
    if not chosen:
        lacking = f"plays the role {role}" if role else "has a name"
        problem = f"no head of {model.name} {lacking}"
        raise UsageError(f"--ablate: {problem}: choose heads with -l and -H")
    ablation = ablate(model, all_roles, chosen, texts, watch)
    return HeadsResult(roles, ablation, role)


def select_roles(roles: Roles, layers: Selection, heads: Selection | HeadNames) -> Roles:
    """Return the roles of some heads only. Raises UsageError for one that is not there."""
    heads_of_layer: dict[int, list[int]] = {}
    for head in roles.heads:
        heads_of_layer.setdefault(head.layer, []).append(head.head)
    chosen: set[Head] = set()
    for block_layers, block_heads in resolve_blocks(layers, heads, heads_of_layer):
        chosen.update(product(block_layers, block_heads))
    kept = [head for head in roles.heads if head.place in chosen]
    return replace(roles, heads=tuple(kept))


def heads_with_name(roles: Roles, role: str | None) -> tuple[HeadRole, ...]:
    """Return the heads that have the name of a role; without a role, those that have any."""
    if role is not None:
        return roles.named(role)
    return tuple(head for head in roles.heads if head.role)


def measure_heads(model: Model, setting: SequenceSettings, texts: Sequence[str]) -> Roles:
    """Measure the roles of all heads, on sequences of repeated random tokens and on texts.

    Raises UsageError for a model of two texts or a block too long for it, InputError for texts that
    it cannot read.
    """
    vocabulary = require_token_sequences(model).read_vocabulary()
    sequences = draw_repeated_sequences(vocabulary, setting, model.name)
    block_captures = (model.capture(Prompt("", ids=ids), ALL_HEADS) for ids in sequences)
    first = len(vocabulary.prefix)
    on_blocks = collect_samples(block_captures, "repeated", setting.block, first)
    text_captures = (model.capture(Prompt(text), ALL_HEADS) for text in texts)
    on_texts = collect_samples(text_captures, "text")
    heads = []
    for head, samples in on_blocks.items():
        block_scores = summarise_samples(samples)
        text_scores = summarise_samples(on_texts[head])
        heads.append(name_head(head, block_scores, text_scores))
    length = len(sequences[0])
    return Roles(model.name, tuple(heads), setting, length, len(texts))


def collect_samples(
    captures: Iterable[Capture],
    data: RoleData,
    block: int = 0,
    first: int = 1,
) -> Samples:
    """Collect the scores of every head by role, one a capture.

    block, first: the length of a repeated block, and the position of its first token.
    """
    samples: Samples = defaultdict(lambda: defaultdict(list))
    for capture in captures:
        require_same_tokens(capture.maps, "heads are scored where all layers read the whole text")
        for attention_map in capture.maps:
            add_samples(samples, attention_map, data, block, first)
    return samples


def add_samples(
    samples: Samples,
    attention_map: AttentionMap,
    data: RoleData,
    block: int,
    first: int,
) -> None:
    """Add the scores and chances of the heads of a map to samples."""
    assert attention_map.weights is not None
    visible = collapse_repeats(attention_map.visible, 2)  # (layer or 1, head or 1, n, n)
    separators = find_separators(attention_map.keys)
    layout = Layout(visible, block, first, separators)
    measured = score_roles(attention_map.weights, layout, data)
    for role, (scores, chances) in measured.items():
        for (i, j), score in np.ndenumerate(scores):
            layer = attention_map.layers[i]
            head = attention_map.heads[j]
            chance = chances[i, j]
            samples_of_head = samples[layer, int(head)]
            samples_of_head[role].append((float(score), float(chance)))


def find_separators(tokens: Sequence[Token]) -> tuple[int, ...]:
    """Find the positions of special tokens and of punctuation, but never the first token."""
    after_first = range(1, len(tokens))
    return tuple(position for position in after_first if parts_text(tokens[position]))


def parts_text(token: Token) -> bool:
    """Return whether a token stands between others: a special one, or punctuation."""
    return token.special or is_punctuation(token.text)


def is_punctuation(text: str) -> bool:
    """Return whether there is nothing but punctuation in a text, and some."""
    categories = [unicodedata.category(character) for character in text.strip()]
    if not categories:
        return False
    return all(category.startswith("P") for category in categories)


def summarise_samples(samples: Mapping[str, Sequence[Sample]]) -> dict[str, RoleScore]:
    """Summarise the samples of a head by role; a role without a defined score is left out."""
    scores: dict[str, RoleScore] = {}
    for role, samples_of_role in samples.items():
        score = summarise_role(samples_of_role)
        if score is not None:
            scores[role] = score
    return scores


def summarise_role(samples: Sequence[Sample]) -> RoleScore | None:
    """Return mean and deviation of the samples that are defined; None if there are none."""
    defined = [(score, chance) for score, chance in samples if not np.isnan(score)]
    count = len(defined)
    if not count:
        return None
    scores, chances = np.array(defined).T
    mean = float(scores.mean())
    mean_chance = float(chances.mean())
    deviation = float(scores.std(ddof=1)) if count > 1 else np.nan
    return RoleScore(mean, deviation, mean_chance, count)


def name_head(head: Head, scores: RoleScores, on_text: RoleScores) -> HeadRole:
    """Make a head with its name, from its scores on repeated tokens and on text."""
    by_data: dict[RoleData, RoleScores] = {"repeated": scores, "text": on_text}
    margins = {role: margin_above_threshold(role, by_data) for role in ROLES}
    best = max(margins, key=margins.__getitem__)
    name = best if margins[best] >= 0 else None
    return HeadRole(*head, name, scores, on_text)


def margin_above_threshold(name: str, scores: Mapping[RoleData, RoleScores]) -> float:
    """Return how far above its threshold a role is, on the data where it is least.

    A head is not named by a role for which this is below 0.
    """
    role = ROLES[name]
    shares = []
    for data in role.data:
        score = scores[data].get(name)
        if score is not None:
            shares.append(scale_above_chance(score.mean, score.chance))
    if role.threshold is None or not shares:
        return -1.0
    return min(shares) - role.threshold
