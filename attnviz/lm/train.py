"""Self-supervised training of the language model: predict the next token, with torch.

Rows are natural text, mixed with rows that repeat a block of random tokens: without these, a model this small grows no
induction heads. With a vocabulary of thousands even these are not enough by themselves: among text, or with long
blocks, the model predicts "some token of this row" for thousands of steps. So training begins with nothing but short
blocks, on which a previous-token head forms within some hundred steps and copying after it; then blocks lengthen as
fast as they are learnt; then text joins. The rate stays high for most of the run and falls at its end. Matrices inside
the layers are trained by Muon (Jordan et al. 2024), the rest by AdamW.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnviz.errors import ModelError
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Config, blocks, logits, shapes
from attnviz.lm.tokenizer import BOS_ID

SHORTEST, SHORT = 3, 8  # tokens of a repeated block: the least, and the most at first
LEARNT = 1.0  # nats per token at which repeated blocks count as learnt
IGNORED = -100  # a label that does not count in the loss


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults made the built-in model."""

    steps: int = 3200
    seed: int = 0
    tokens: int = 2048
    """In a batch."""
    length: int = 128
    """Of a row, in tokens."""
    lengthen: float = 0.15
    """Share of the steps, the last ones, whose rows are as long as the model reads."""
    repeated: float = 1 / 3
    """Share of rows with a repeated block, once there is text."""
    text_from: float = 0.5
    """Share of the steps after which text joins, even if repeated blocks are not learnt yet."""
    rate: float = 3e-3
    muon_rate: float = 0.02
    warm_up: int = 100
    """Steps until the rate is full."""
    decay: float = 0.35
    """Share of the steps, the last ones, over which the rate falls to 2 %."""


class Progress(NamedTuple):
    """Where training stands after a step."""

    step: int
    loss: float
    """Smoothed, nats per token, over the whole mix."""
    tokens: int
    """Seen so far."""


Parameters = dict[str, Tensor]


def train(
    ids: Ids, config: Config, recipe: Recipe, *, device: str = "cpu", watch: Callable[[Progress], None]
) -> Parameters:
    """Train on token ids (n,) and return the parameters, detached, on the CPU.

    ``watch`` is called after each step; a KeyboardInterrupt, there or in a step, ends the training early and the
    parameters of that moment are returned. Same seed, same machine, same threads: same parameters.
    Raises ModelError if torch is too old.
    """
    require_muon()
    parameters = initial(config, recipe.seed, device)
    rng = np.random.default_rng(recipe.seed)
    optimizers = make_optimizers(parameters, recipe)
    curriculum = Curriculum()
    smoothed, seen = math.nan, 0
    try:
        for step in range(recipe.steps):
            set_rates(optimizers, recipe, step)
            length = config.positions if step >= recipe.steps * (1 - recipe.lengthen) else recipe.length
            inputs, labels = batch(ids, length, curriculum, config, recipe, rng)
            loss = descend(parameters, optimizers, config, inputs.to(device), labels.to(device))
            smoothed = loss if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * loss
            seen += inputs.numel()
            curriculum.advance(loss, length, late=step >= recipe.steps * recipe.text_from)
            watch(Progress(step + 1, smoothed, seen))
    except KeyboardInterrupt:
        pass
    return {name: parameter.detach().cpu() for name, parameter in parameters.items()}


def require_muon() -> None:
    """Raise ModelError unless torch has the optimizer that training needs."""
    if not hasattr(torch.optim, "Muon"):
        raise ModelError(f"training needs torch 2.9 or later (torch.optim.Muon); this is {torch.__version__}")


def initial(config: Config, seed: int, device: str) -> Parameters:
    """Normal noise of deviation 0.1 for the embedding, 0.02 for matrices, 0.3 for biases; gains at 1.

    A small embedding is lost among what the layers add to it, and tokens that look alike are not copied.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        deviation = 0.1 if name == "embedding" else 0.3 if name.endswith(".bias") else 0.02
        start = torch.ones(shape) if name.endswith("norm") else deviation * noise
        parameters[name] = start.to(device).requires_grad_()
    return parameters


def make_optimizers(parameters: Parameters, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW without decay for the embedding, biases and gains."""
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and name != "embedding"]
    rest = [p for name, p in parameters.items() if p.ndim == 1 or name == "embedding"]
    return [
        torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.1, momentum=0.95),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Linear warm-up, a long plateau, then a cosine down to 2 %."""
    into_decay = max(0.0, (step / recipe.steps - (1 - recipe.decay)) / recipe.decay)
    share = min(1.0, (step + 1) / recipe.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * into_decay)))
    for optimizer, full in zip(optimizers, (recipe.rate, recipe.muon_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = full * share


def descend(
    parameters: Parameters, optimizers: list[torch.optim.Optimizer], config: Config, inputs: Tensor, labels: Tensor
) -> float:
    """One step down the gradient of the next-token loss, clipped to norm 1; returns the loss in nats per token."""
    *_, last = blocks(parameters, inputs, config)
    counted = labels != IGNORED  # the vocabulary is wide: half of a step's work, saved where no label counts
    loss = cross_entropy(logits(parameters, last.hidden[counted]), labels[counted])
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@dataclass
class Curriculum:
    """What rows are made of: blocks of at most ``longest`` tokens, doubled when they are learnt; then text too."""

    longest: int = SHORT
    text: bool = False
    loss: float = math.inf

    def advance(self, loss: float, length: int, late: bool) -> None:
        """Take notice of a step's loss, in nats per token, on rows of so many tokens."""
        half = (length - 1) // 2
        self.loss = 0.9 * min(self.loss, 10.0) + 0.1 * loss
        if not self.text and (self.loss < LEARNT or late):
            self.text = late or self.longest >= half
            self.longest, self.loss = min(2 * self.longest, half), math.inf
        elif self.text:
            self.longest = half


def batch(
    ids: Ids, length: int, curriculum: Curriculum, config: Config, recipe: Recipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and labels (rows, length), the labels one token ahead."""
    share = recipe.repeated if curriculum.text else 1.0
    longest, vocabulary = min(curriculum.longest, (length - 1) // 2), config.vocabulary
    rows = [
        repeated_row(length, longest, vocabulary, rng) if rng.random() < share else text_row(ids, length, rng)
        for _ in range(max(1, recipe.tokens // length))
    ]
    inputs, labels = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return inputs, labels


def text_row(ids: Ids, length: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """BOS and a run of the corpus."""
    start = int(rng.integers(0, len(ids) - length))
    row = ids[start : start + length + 1].copy()
    row[0] = BOS_ID
    return row[:-1], row[1:]


def repeated_row(length: int, longest: int, vocabulary: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """BOS and a random block, repeated to the end; only from its second copy on can it be predicted."""
    block = rng.integers(1, vocabulary, int(rng.integers(SHORTEST, longest + 1)))
    row = np.concatenate([[BOS_ID], np.tile(block, length // len(block) + 1)])[: length + 1]
    labels = row[1:].copy()
    labels[: len(block)] = IGNORED
    return row[:-1], labels
