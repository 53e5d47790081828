"""Measure a language model: its heads on repeated random tokens, its loss on text.

NumPy does it, without torch.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.roles import measure_induction, measure_previous_token
from attnviz.layer.arrays import Array
from attnviz.lm.corpus import Ids
from attnviz.lm.model import ModelConfig, compute_next_scores, evaluate_layers
from attnviz.lm.tokenizer import BOS_ID

Singles: TypeAlias = npt.NDArray[np.float32]

SEQUENCES, BLOCK = 64, 25
ROWS, LENGTH, TOGETHER = 400, 128, 16  # runs of text, tokens of each, runs at once


class BestHead(NamedTuple):
    """The head that plays a role best, and how well: mean and deviation over sequences."""

    head: str
    mean: float
    sd: float


def make_repeated_blocks(
    config: ModelConfig, sequences: int = SEQUENCES, block: int = BLOCK, seed: int = 0
) -> Ids:
    """Make sequences BOS + B + B of distinct random tokens: (sequences, 2 block + 1)."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(sequences):
        shuffled = 1 + rng.permutation(config.vocabulary - 1)
        tokens = shuffled[:block]
        rows.append(np.concatenate([[BOS_ID], tokens, tokens]))
    return np.stack(rows)


def compute_all_weights(parameters: Mapping[str, Array], ids: Ids, config: ModelConfig) -> Singles:
    """Compute the attention weights of all layers on token ids (batch, n).

    Returns (batch, layer, head, n, n).
    """
    layers = [block.attended.weights for block in evaluate_layers(parameters, ids, config)]
    return np.stack(layers, axis=1)


def score_model_roles(
    parameters: Mapping[str, Array], config: ModelConfig, ids: Ids
) -> dict[str, Singles]:
    """Score all heads, by role, on each sequence BOS + B + B of ids (batch, 2 block + 1).

    Returns (batch, layer, head) for each role.
    """
    attention = compute_all_weights(parameters, ids, config)
    block = ids.shape[1] // 2
    return {
        "induction": measure_induction(attention, block),
        "previous_token": measure_previous_token(attention),
    }


def name_best_heads(
    parameters: Mapping[str, Array], config: ModelConfig, ids: Ids
) -> dict[str, BestHead]:
    """Find the best induction and previous-token head on sequences BOS + B + B.

    ids (batch, 2 block + 1).
    """
    scores_by_role = score_model_roles(parameters, config, ids)
    return {role: name_best_head(scores) for role, scores in scores_by_role.items()}


def name_best_head(scores: Singles) -> BestHead:
    """Find the head with the highest mean of scores (batch, layer, head)."""
    means = scores.mean(0)
    layer, head = np.unravel_index(int(means.argmax()), means.shape)
    name = f"L{layer}H{head}"
    of_head = scores[:, layer, head]
    return BestHead(name, float(means[layer, head]), float(of_head.std()))


def measure_text_loss(
    parameters: Mapping[str, Array],
    ids: Ids,
    config: ModelConfig,
    length: int = LENGTH,
) -> float:
    """Measure the next-token loss in nats per token on held-out ids (n,).

    That is the mean over evenly spaced runs of ``length`` tokens.
    """
    length = min(length, len(ids) - 1)
    last_start = len(ids) - length - 1
    starts = np.linspace(0, last_start, ROWS).astype(int)
    losses = []
    for some_starts in np.array_split(starts, math.ceil(ROWS / TOGETHER)):
        runs = [ids[start : start + length + 1] for start in some_starts]
        rows = np.stack(runs)
        rows[:, 0] = BOS_ID
        losses.append(measure_row_losses(parameters, rows, config))
    return float(np.concatenate(losses).mean())


def measure_row_losses(parameters: Mapping[str, Array], rows: Ids, config: ModelConfig) -> Singles:
    """Measure the loss of each token of rows from the second on: (row, n) -> (row, n - 1)."""
    predicted = compute_next_scores(parameters, rows[:, :-1], config)  # (row, n - 1, vocabulary)
    highest = predicted.max(-1)
    exponentials = np.exp(predicted - highest[..., None])
    normaliser = np.log(exponentials.sum(-1)) + highest
    next_tokens = rows[:, 1:, None]
    of_next_tokens = np.take_along_axis(predicted, next_tokens, -1)
    losses: Singles = normaliser - of_next_tokens[..., 0]
    return losses
