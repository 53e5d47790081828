"""What each head of a model is: its roles, measured over many sequences and texts."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from attnviz.analysis.numerics import collapse_repeats
from attnviz.analysis.roles import (
    ROLES,
    Layout,
    RoleData,
    scale_above_chance,
    score_roles,
)
from attnviz.errors import UsageError
from attnviz.experiments.ablation import ablate
from attnviz.experiments.sequences import draw_repeated_sequences
from attnviz.models.base import Model, require_token_sequences
from attnviz.progress import count_steps
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
from attnviz.selection import (
    ALL,
    Head,
    HeadNames,
    Selection,
    require_same_tokens,
    resolve_blocks,
)

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
) -> HeadsResult:
    """Find the roles of the heads of a model, and with ``ablates`` what it loses without them.

    A role is a thing that heads are known to do, such as induction. texts: texts to measure on,
    beside random sequences, which ``setting`` describes. layers, heads: those that are listed in
    the result; None for all. role: the role whose scores a picture shows; None for the names of the
    heads. ablates: measure the loss without each of the chosen heads, or if none are chosen,
    without those that play ``role``, or any role.

    Raises UsageError for a head that is not there, for a model of two texts or a block too long for
    it, and where there is nothing to ablate; InputError for texts that the model cannot read.
    """
    all_roles = measure_head_roles(model, setting, texts)
    roles = select_roles(all_roles, layers or ALL, heads or ALL)
    if not ablates:
        return HeadsResult(roles, role=role)
    chosen = roles.heads
    if layers is None and heads is None:
        chosen = select_named_heads(roles, role)
    if not chosen:
        lacking = f"plays the role {role}" if role else "has a name"
        problem = f"no head of {model.name} {lacking}"
        raise UsageError(f"--ablate: {problem}: choose heads with -l and -H")
    ablation = ablate(model, all_roles, chosen, texts)
    return HeadsResult(roles, ablation, role)


def select_roles(roles: Roles, layers: Selection, heads: Selection | HeadNames) -> Roles:
    """Select the roles of some layers and heads. Raises UsageError for one that is not there."""
    heads_of_layer: dict[int, list[int]] = {}
    for head in roles.heads:
        heads_of_layer.setdefault(head.layer, []).append(head.head)
    chosen: set[Head] = set()
    for block_layers, block_heads in resolve_blocks(layers, heads, heads_of_layer):
        chosen.update(product(block_layers, block_heads))
    kept = [head for head in roles.heads if head.place in chosen]
    return replace(roles, heads=tuple(kept))


def select_named_heads(roles: Roles, role: str | None) -> tuple[HeadRole, ...]:
    """Select the heads that play a role; if the role is None, those that play any."""
    if role is not None:
        return roles.named(role)
    return tuple(head for head in roles.heads if head.role)


def measure_head_roles(model: Model, setting: SequenceSettings, texts: Sequence[str]) -> Roles:
    """Measure the roles of all heads, on sequences of repeated random tokens and on texts.

    A role is a thing that heads are known to do, such as induction. setting: how many sequences
    there are, how long their blocks are, and the seed. Raises UsageError for a model of two texts
    or a block too long for it, InputError for texts that it cannot read.
    """
    vocabulary = require_token_sequences(model).read_vocabulary()
    sequences = draw_repeated_sequences(vocabulary, setting, model.name)
    counted_sequences = count_steps(sequences, "measuring heads", "sequence")
    block_captures = (model.capture(Prompt("", ids=ids), ALL_HEADS) for ids in counted_sequences)
    first = len(vocabulary.prefix)
    on_blocks = collect_samples(block_captures, "repeated", setting.block, first)
    counted_texts = count_steps(texts, "measuring heads", "text")
    text_captures = (model.capture(Prompt(text), ALL_HEADS) for text in counted_texts)
    on_texts = collect_samples(text_captures, "text")
    heads = []
    for head, samples in on_blocks.items():
        block_scores = summarise_samples(samples)
        text_scores = summarise_samples(on_texts[head])
        heads.append(name_head(head, block_scores, text_scores))
    length = len(sequences[0])
    return Roles(model.name, tuple(heads), setting, tokens=length, texts=len(texts))


def collect_samples(
    captures: Iterable[Capture],
    data: RoleData,
    block: int = 0,
    first: int = 1,
) -> Samples:
    """Collect scores and chances of every head in every role, one pair for each capture.

    The chance is the score of a head that spreads its attention evenly. data: "repeated" for
    captures of repeated blocks, or "text". block, first: the length of a block, and the position of
    its first token. Returns lists of pairs by head and role.
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
    """Add to samples the scores and chances of the heads of a map, in every role.

    samples: by head and role a list of scores, each with its chance, which is the score of a head
    that spreads its attention evenly. data: "repeated" for a repeated block, or "text". block,
    first: the length of the block, and the position of its first token.
    """
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
    return tuple(position for position in after_first if is_separator(tokens[position]))


def is_separator(token: Token) -> bool:
    """Return whether a token stands between others: a special one, or punctuation."""
    return token.special or is_punctuation(token.text)


def is_punctuation(text: str) -> bool:
    """Return whether a text is punctuation and nothing else; one of white space is not."""
    categories = [unicodedata.category(character) for character in text.strip()]
    if not categories:
        return False
    return all(category.startswith("P") for category in categories)


def summarise_samples(samples: Mapping[str, Sequence[Sample]]) -> dict[str, RoleScore]:
    """Summarise the samples of one head by role; a role without a defined score is left out.

    samples: for each role pairs of a score and its chance, one pair for each sequence or text.
    """
    scores: dict[str, RoleScore] = {}
    for role, samples_of_role in samples.items():
        score = summarise_role(samples_of_role)
        if score is not None:
            scores[role] = score
    return scores


def summarise_role(samples: Sequence[Sample]) -> RoleScore | None:
    """Compute the mean and deviation of scores, and the mean of their chances.

    samples: pairs of a score and its chance, one for each sequence or text. Pairs with an undefined
    score do not count; None if no other is left.
    """
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
    """Make the record of a head, which is named by the role that it plays most clearly.

    That is the role furthest above its threshold; a head that reaches no threshold has no name.
    scores, on_text: by role the scores on repeated random tokens, and those on text.
    """
    by_data: dict[RoleData, RoleScores] = {"repeated": scores, "text": on_text}
    margins = {role: margin_above_threshold(role, by_data) for role in ROLES}
    best = max(margins, key=margins.__getitem__)
    name = best if margins[best] >= 0 else None
    return HeadRole(*head, name, scores, on_text)


def margin_above_threshold(name: str, scores: Mapping[RoleData, RoleScores]) -> float:
    """Return how far a head's scores of a role are above the threshold from which it is named.

    name: that of the role. scores: by kind of data the scores of the head by role. Scores count as
    shares of the way from chance to 1, and the lowest over the kinds of data is taken. The margin
    is negative where the head is not to be named by this role.
    """
    definition = ROLES[name]
    shares = []
    for data in definition.data:
        score = scores[data].get(name)
        if score is not None:
            shares.append(scale_above_chance(score.mean, score.chance))
    if definition.threshold is None or not shares:
        return -1.0
    return min(shares) - definition.threshold
