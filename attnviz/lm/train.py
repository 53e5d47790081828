"""Self-supervised training of the language model: predict the next token, with torch.

Rows are natural text, mixed with rows that repeat a block of random tokens: without these, a model this small grows no
induction heads. They appear abruptly, while the learning rate is high, and the later the wider the vocabulary: with
1,024 tokens after some 1,400 steps, with 4,096 not within 2,000. So a model is trained in two stages: on the first
1,024 tokens of its tokenizer, and then, with the heads it has grown, on all of them. Matrices inside the layers are
trained by Muon (Jordan et al. 2024), the rest by AdamW.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnviz.errors import InputError, ModelError
from attnviz.layer.arrays import Array
from attnviz.lm.checkpoints import Frozen
from attnviz.lm.corpus import Ids
from attnviz.lm.model import Config, blocks, logits, shapes
from attnviz.lm.tokenizer import BOS_ID

IGNORED = -100  # a label that does not count in the loss


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of the first stage of the built-in model."""

    steps: int = 3680
    seed: int = 0
    tokens: int = 2048
    """In a batch."""
    length: int = 128
    """Of a row, in tokens."""
    lengthen: float = 0.0
    """Share of the steps, the last ones, whose rows are as long as the model reads."""
    repeated: tuple[float, float] = (0.5, 0.25)
    """Share of rows with a repeated random block, in the first 40 % of the steps and after."""
    rate: float = 3e-3
    muon_rate: float = 0.02
    warm_up: int = 100
    """Steps until the rate is full; from then on it falls to 2 % along a cosine."""


Parameters = dict[str, Tensor]


@dataclass
class Training:
    """All that the next step goes on from."""

    parameters: Parameters
    optimizers: list[torch.optim.Optimizer]
    rng: np.random.Generator
    step: int = 0
    loss: float = math.nan
    """Smoothed, nats per token, over the whole mix."""
    tokens: int = 0


class Progress(NamedTuple):
    """Where training stands after a step."""

    step: int
    loss: float
    """Smoothed, nats per token, over the whole mix."""
    tokens: int
    """Seen so far."""
    training: Training


def train(
    ids: Ids,
    config: Config,
    recipe: Recipe,
    *,
    start: Parameters | None = None,
    frozen: Frozen | None = None,
    device: str = "cpu",
    watch: Callable[[Progress], None],
) -> Parameters:
    """Train on token ids (n,), from ``start`` or from noise, and return the parameters, detached, on the CPU.

    ``watch`` is called after each step; a KeyboardInterrupt, there or in a step, ends the training early and the
    parameters of that moment are returned. Same seed, same machine, same threads: same parameters, also where a
    training goes on that was ``frozen``. Raises ModelError if torch is too old, InputError if what was frozen does not
    fit.
    """
    require_muon()
    now = begin(config, recipe, start, device)
    if frozen is not None:
        thaw(now, frozen)
    try:
        for step in range(now.step, recipe.steps):
            set_rates(now.optimizers, recipe, step)
            inputs, labels = batch(ids, config, recipe, step, now.rng)
            loss = descend(
                now.parameters, now.optimizers, config, inputs.to(device), labels.to(device)
            )
            now.loss = loss if math.isnan(now.loss) else 0.98 * now.loss + 0.02 * loss
            now.step, now.tokens = step + 1, now.tokens + inputs.numel()
            watch(Progress(now.step, now.loss, now.tokens, now))
    except KeyboardInterrupt:
        pass
    return {name: parameter.detach().cpu() for name, parameter in now.parameters.items()}


def begin(config: Config, recipe: Recipe, start: Parameters | None, device: str) -> Training:
    """A training before its first step, from ``start`` or from noise."""
    start = initial(config, recipe.seed) if start is None else start
    parameters = {
        name: parameter.detach().clone().to(device).requires_grad_()
        for name, parameter in start.items()
    }
    return Training(
        parameters, make_optimizers(parameters, recipe), np.random.default_rng(recipe.seed)
    )


def freeze(training: Training) -> Frozen:
    """All of a training, so that ``thaw`` goes on from the same bits."""
    found = {f"parameters/{name}": array for name, array in arrays(training.parameters).items()}
    for i, optimizer in enumerate(training.optimizers):
        for p, known in optimizer.state_dict()["state"].items():
            found |= {f"optimizers/{i}/{p}/{name}": array for name, array in arrays(known).items()}
    loss = None if math.isnan(training.loss) else training.loss
    numbers = {"step": training.step, "loss": loss, "tokens": training.tokens}
    return Frozen(found, {**numbers, "random": training.rng.bit_generator.state})


def thaw(training: Training, frozen: Frozen) -> None:
    """Bring a training that has not begun to where it was frozen. Raises InputError if it is another's."""
    numbers = frozen.numbers
    try:
        with torch.no_grad():
            for name, parameter in training.parameters.items():
                parameter.copy_(
                    torch.from_numpy(frozen.arrays[f"parameters/{name}"]).reshape(parameter.shape)
                )
        for i, optimizer in enumerate(training.optimizers):
            known = known_of(frozen.arrays, f"optimizers/{i}/")
            require_known(known, optimizer)
            optimizer.load_state_dict(
                {"state": known, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        training.rng.bit_generator.state = numbers["random"]
        training.step, training.tokens = int(numbers["step"]), int(numbers["tokens"])
        training.loss = math.nan if numbers["loss"] is None else float(numbers["loss"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "the state of the training is damaged: begin again with --force"
        ) from error


def require_known(known: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless this is what an optimizer of that kind knows of each of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = (
        {"momentum_buffer"}
        if isinstance(optimizer, torch.optim.Muon)
        else {"step", "exp_avg", "exp_avg_sq"}
    )
    for p, parameter in enumerate(parameters):
        found = {
            name
            for name, tensor in known[p].items()
            if name == "step" or tensor.shape == parameter.shape
        }
        if found != names:
            raise ValueError(f"the optimizer knows {found} of parameter {p}, not {names}")


def known_of(found: dict[str, Array], prefix: str) -> dict[int, dict[str, Tensor]]:
    """What one optimizer knew, by the number of the parameter."""
    known: dict[int, dict[str, Tensor]] = {}
    for path, array in found.items():
        if path.startswith(prefix):
            p, name = path.removeprefix(prefix).split("/")
            known.setdefault(int(p), {})[name] = torch.from_numpy(array)
    return known


def arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    """The numbers of tensors at this moment, as NumPy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def require_muon() -> None:
    """Raise ModelError unless torch has the optimizer that training needs."""
    if not hasattr(torch.optim, "Muon"):
        raise ModelError(
            f"training needs torch 2.9 or later (torch.optim.Muon); this is {torch.__version__}"
        )


def initial(config: Config, seed: int) -> Parameters:
    """Matrices from a normal distribution of deviation 0.02, gains at 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * 0.02
        for name, shape in shapes(config).items()
    }


def widen(parameters: Parameters, pieces: Sequence[Sequence[int]]) -> Parameters:
    """The parameters for a wider vocabulary: each new token begins as the mean of the tokens it is made of.

    pieces: for each token of the new vocabulary the ids of the old that spell it; those of the old spell themselves.
    """
    embedding = parameters["embedding"]
    return {
        **parameters,
        "embedding": torch.stack([embedding[list(spelling)].mean(0) for spelling in pieces]),
    }


def make_optimizers(parameters: Parameters, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding (decayed) and the gains (not)."""
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and name != "embedding"]
    gains = [p for p in parameters.values() if p.ndim == 1]
    groups = [
        {"params": [parameters["embedding"]], "weight_decay": 0.1},
        {"params": gains, "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95)),
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.1, momentum=0.95),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Linear warm-up, then a cosine down to 2 %."""
    falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    share = min(1.0, (step + 1) / recipe.warm_up) * falling
    for optimizer, full in zip(optimizers, (recipe.rate, recipe.muon_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = full * share


def descend(
    parameters: Parameters,
    optimizers: list[torch.optim.Optimizer],
    config: Config,
    inputs: Tensor,
    labels: Tensor,
) -> float:
    """One step down the gradient of the next-token loss, clipped to norm 1; returns the loss in nats per token."""
    *_, last = blocks(parameters, inputs, config)
    counted = (
        labels != IGNORED
    )  # the vocabulary is wide: half of a step's work, saved where no label counts
    loss = cross_entropy(logits(parameters, last.hidden[counted]), labels[counted])
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def batch(
    ids: Ids, config: Config, recipe: Recipe, step: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and labels (rows, length), the labels one token ahead."""
    done = step / recipe.steps
    length = config.positions if done >= 1 - recipe.lengthen else recipe.length
    repeated = recipe.repeated[0 if done < 0.4 else 1]
    rows = [
        repeated_row(length, config.vocabulary, rng)
        if rng.random() < repeated
        else text_row(ids, length, rng)
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


def repeated_row(length: int, vocabulary: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """BOS and a random block, repeated to the end; only from its second copy on can it be predicted."""
    block = rng.integers(1, vocabulary, int(rng.integers(8, (length - 1) // 2 + 1)))
    row = np.concatenate([[BOS_ID], np.tile(block, length // len(block) + 1)])[: length + 1]
    labels = row[1:].copy()
    labels[: len(block)] = IGNORED
    return row[:-1], labels
