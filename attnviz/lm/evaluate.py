"""How good a language model is: its heads on repeated random tokens, its loss on text. NumPy, without torch."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.roles import induction, previous_token
from attnviz.layer.arrays import Array
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Config, blocks, forward
from attnviz.lm.tokenizer import BOS_ID

SEQUENCES, BLOCK = 64, 25
ROWS, LENGTH, TOGETHER = 400, 128, 16


class Best(NamedTuple):
    """The head that plays a role best, and how well: mean and deviation over sequences."""

    head: str
    mean: float
    sd: float


def repeated(config: Config, sequences: int = SEQUENCES, block: int = BLOCK, seed: int = 0) -> Ids:
    """Sequences BOS + B + B of distinct random tokens: (sequences, 2 block + 1)."""
    rng = np.random.default_rng(seed)
    blocks = [1 + rng.permutation(config.vocabulary - 1)[:block] for _ in range(sequences)]
    return np.stack([np.concatenate([[BOS_ID], found, found]) for found in blocks])


def weights(parameters: Mapping[str, Array], ids: Ids, config: Config) -> npt.NDArray[np.float32]:
    """Attention weights of all layers on token ids (batch, n): (batch, layer, head, n, n)."""
    return np.stack([block.attended.weights for block in blocks(parameters, ids, config)], axis=1)


def role_scores(
    parameters: Mapping[str, Array], config: Config, ids: Ids
) -> dict[str, npt.NDArray[np.float32]]:
    """The scores of all heads on each sequence BOS + B + B of ids (batch, 2 block + 1): (batch, layer, head)."""
    found = weights(parameters, ids, config)
    return {
        "induction": induction(found, ids.shape[1] // 2),
        "previous_token": previous_token(found),
    }


def best_heads(parameters: Mapping[str, Array], config: Config, ids: Ids) -> dict[str, Best]:
    """The best induction and previous-token head on sequences BOS + B + B (batch, 2 block + 1)."""
    return {role: best(score) for role, score in role_scores(parameters, config, ids).items()}


def best(scores: npt.NDArray[np.float32]) -> Best:
    """The head with the highest mean of scores (batch, layer, head)."""
    means = scores.mean(0)
    layer, head = np.unravel_index(int(means.argmax()), means.shape)
    return Best(f"L{layer}H{head}", float(means[layer, head]), float(scores[:, layer, head].std()))


def natural_loss(
    parameters: Mapping[str, Array], ids: Ids, config: Config, length: int = LENGTH
) -> float:
    """Next-token loss in nats per token on held-out ids (n,), over evenly spaced runs of so many tokens."""
    length = min(length, len(ids) - 1)
    starts = np.linspace(0, len(ids) - length - 1, ROWS).astype(int)
    losses = []
    for some in np.array_split(starts, math.ceil(ROWS / TOGETHER)):
        rows = np.stack([ids[start : start + length + 1] for start in some])
        rows[:, 0] = BOS_ID
        predicted = forward(parameters, rows[:, :-1], config)  # (row, length, vocabulary)
        highest = predicted.max(-1)
        normaliser = np.log(np.exp(predicted - highest[..., None]).sum(-1)) + highest
        losses.append(normaliser - np.take_along_axis(predicted, rows[:, 1:, None], -1)[..., 0])
    return float(np.concatenate(losses).mean())
