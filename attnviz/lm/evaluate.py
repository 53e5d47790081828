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
from attnviz.lm.model import ModelConfig, compute_next_logits, evaluate_layers
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
    config: ModelConfig,
    sequences: int = SEQUENCES,
    block: int = BLOCK,
    seed: int = 0,
) -> Ids:
    """Make sequences BOS + B + B, B being a block of random tokens that are all different.

    sequences: how many; block: tokens of B; seed: of the random numbers. Returns token ids,
    (sequences, 2 block + 1).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(sequences):
        shuffled = 1 + rng.permutation(config.vocabulary - 1)
        tokens = shuffled[:block]
        rows.append(np.concatenate([[BOS_ID], tokens, tokens]))
    return np.stack(rows)


def compute_all_weights(parameters: Mapping[str, Array], ids: Ids, config: ModelConfig) -> Singles:
    """Compute the attention weights of all layers of a model on token ids (batch, n).

    parameters: arrays by name, of the sizes in config. Returns (batch, layer, head, n, n).
    """
    layers = [block.attended.weights for block in evaluate_layers(parameters, ids, config)]
    return np.stack(layers, axis=1)


def score_model_roles(
    parameters: Mapping[str, Array],
    config: ModelConfig,
    ids: Ids,
) -> dict[str, Singles]:
    """Score how well each head of a model plays each role, on sequences that repeat a block.

    The roles are those of induction and previous-token heads. ids: (batch, 2 block + 1), each
    sequence BOS + B + B with a block B of random tokens. Returns scores (batch, layer, head) by
    role.
    """
    attention = compute_all_weights(parameters, ids, config)
    block = ids.shape[1] // 2
    return {
        "induction": measure_induction(attention, block),
        "previous_token": measure_previous_token(attention),
    }


def name_best_heads(
    parameters: Mapping[str, Array],
    config: ModelConfig,
    ids: Ids,
) -> dict[str, BestHead]:
    """Find the head of a model that plays each role best, on sequences that repeat a block.

    ids: (batch, 2 block + 1), each sequence BOS + B + B with a block B of random tokens. Returns by
    role, such as induction, the head with its mean score and the deviation over sequences.
    """
    scores_by_role = score_model_roles(parameters, config, ids)
    return {role: name_best_head(scores) for role, scores in scores_by_role.items()}


def name_best_head(scores: Singles) -> BestHead:
    """Find the head with the highest mean of scores (sequence, layer, head)."""
    means = scores.mean(0)
    layer, head = np.unravel_index(int(means.argmax()), means.shape)
    name = f"L{layer}H{head}"
    head_scores = scores[:, layer, head]
    return BestHead(name, float(means[layer, head]), float(head_scores.std()))


def measure_text_loss(
    parameters: Mapping[str, Array],
    ids: Ids,
    config: ModelConfig,
    length: int = LENGTH,
) -> float:
    """Measure the next-token loss of a model on text, in nats per token.

    ids: the token ids of the text, (n,). length: tokens of a run, or fewer if the text is shorter.
    The loss is the mean over evenly spaced runs, each of which begins with BOS in place of its
    first token.
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
    """Measure the loss in nats of each token but the first of rows of token ids.

    A token's loss is measured with the tokens before it as context. (row, n) -> (row, n - 1).
    """
    predicted = compute_next_logits(parameters, rows[:, :-1], config)  # (row, n - 1, vocabulary)
    highest = predicted.max(-1)
    exponentials = np.exp(predicted - highest[..., None])
    # Log of the sum of exp(predicted).
    normaliser = np.log(exponentials.sum(-1)) + highest
    next_tokens = rows[:, 1:, None]
    next_scores = np.take_along_axis(predicted, next_tokens, -1)
    losses: Singles = normaliser - next_scores[..., 0]
    return losses
