"""What each head of a model is: its roles, measured over many sequences and texts."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from attnviz.analysis.roles import ROLES, Data, Layout, beyond, measure
from attnviz.experiments.sequences import repeated
from attnviz.models.base import Model, require_sequences
from attnviz.record import AttentionMap, Capture, Token
from attnviz.request import Prompt, Request
from attnviz.results.head_roles import HeadRole, Roles, Score, Scores, Setting
from attnviz.selection import Head, require_same_tokens

ALL_HEADS = Request(truncate=True, kinds=("self",))


Sample = tuple[float, float]  # score and chance
Samples = dict[Head, dict[str, list[Sample]]]  # of each head and role, one a sequence


def measure_heads(model: Model, setting: Setting, texts: Sequence[str]) -> Roles:
    """The roles of all heads of a model, on sequences of repeated random tokens and on texts.

    Raises UsageError for a model of two texts or a block too long for it, ModelError for one that reads no token ids,
    InputError for texts that it cannot read.
    """
    vocabulary = require_sequences(model).read_vocabulary()
    sequences = repeated(vocabulary, setting, model.name)
    blocks = (model.capture(Prompt("", ids=ids), ALL_HEADS) for ids in sequences)
    found: dict[Data, Samples] = {
        "repeated": sampled(blocks, "repeated", setting.block, len(vocabulary.prefix)),
        "text": sampled((model.capture(Prompt(text), ALL_HEADS) for text in texts), "text"),
    }
    heads = tuple(
        head_role(place, *({role: score(samples) for role, samples in part[place].items()} for part in found.values()))
        for place in found["repeated"]
    )
    return Roles(model.name, heads, setting, len(sequences[0]), len(texts))


def sampled(captures: Iterable[Capture], data: Data, block: int = 0, first: int = 1) -> Samples:
    """What each capture says of each head and role."""
    found: Samples = defaultdict(lambda: defaultdict(list))
    for capture in captures:
        require_same_tokens(capture.maps, "heads are scored where all layers read the whole text")
        for part in capture.maps:
            assert part.weights is not None
            layout = Layout(one_mask(part), block, first, separators(part.keys))
            for role, (scores, chances) in measure(part.weights, layout, data).items():
                for (i, j), sample in np.ndenumerate(scores):
                    found[part.layers[i], int(part.heads[j])][role].append((float(sample), float(chances[i, j])))
    return found


def one_mask(part: AttentionMap) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """What is visible, once where it is the same in all layers or heads: (layer or 1, head or 1, n, n)."""
    layers, heads = (slice(0, 1) if stride == 0 else slice(None) for stride in part.visible.strides[:2])
    return part.visible[layers, heads]


def separators(tokens: Sequence[Token]) -> tuple[int, ...]:
    """The places of special tokens but the first, and of tokens of nothing but punctuation."""
    return tuple(i for i, token in enumerate(tokens) if i and (token.special or is_punctuation(token.text)))


def is_punctuation(text: str) -> bool:
    """Whether there is nothing but punctuation in a text, and some."""
    return bool(text.strip()) and all(unicodedata.category(char).startswith("P") for char in text.strip())


def score(samples: Sequence[Sample]) -> Score | None:
    """Mean and deviation of the samples that are defined; None if there are none."""
    defined = np.array([sample for sample in samples if not np.isnan(sample[0])])
    if not len(defined):
        return None
    sd = float(defined[:, 0].std(ddof=1)) if len(defined) > 1 else np.nan
    return Score(float(defined[:, 0].mean()), sd, float(defined[:, 1].mean()), len(defined))


def head_role(place: Head, repeated: Mapping[str, Score | None], text: Mapping[str, Score | None]) -> HeadRole:
    """A head with its name, from its scores on repeated tokens and on text."""
    scores, on_text = ({name: score for name, score in part.items() if score} for part in (repeated, text))
    margins = {name: margin(name, {"repeated": scores, "text": on_text}) for name in ROLES}
    best = max(margins, key=margins.__getitem__)
    return HeadRole(*place, best if margins[best] >= 0 else None, scores, on_text)


def margin(name: str, scores: Mapping[Data, Scores]) -> float:
    """How far above its threshold a role is, on the data where it is least; below 0 where it names nothing."""
    role = ROLES[name]
    found = [scores[data][name] for data in role.data if name in scores[data]]
    if role.threshold is None or not found:
        return -1.0
    return min(beyond(part.mean, part.chance) for part in found) - role.threshold
