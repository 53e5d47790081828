"""Self-supervised training of the language model: predict the next token, with torch.

Rows are natural text, mixed with rows that repeat a block of random tokens: without these, a model
this small grows no induction heads. They appear abruptly, while the learning rate is high, and the
later the wider the vocabulary: with 1,024 tokens after some 1,400 steps, with 4,096 not within
2,000. So a model is trained in two stages: on the first 1,024 tokens of its tokenizer, and then,
with the heads it has grown, on all of them. Matrices inside the layers are trained by Muon (Jordan
et al. 2024), the rest by AdamW.
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
from attnviz.lm.checkpoints import TrainingState
from attnviz.lm.corpus import Ids
from attnviz.lm.model import ModelConfig, evaluate_layers, list_shapes, project_logits
from attnviz.lm.tokenizer import BOS_ID

IGNORED = -100  # a label that does not count in the loss
KEPT, ADDED = 0.98, 0.02  # shares of the loss so far, and of a step, in the smoothed loss
FEWEST_REPEATED = 8  # tokens of a block that is repeated


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training. The defaults are those of the built-in model's first stage."""

    steps: int = 3680
    seed: int = 0
    tokens: int = 2048
    """Tokens of a batch."""
    length: int = 128
    """Tokens of a row."""
    lengthen: float = 0.0
    """Share of the steps, the last ones, whose rows are as long as the model reads."""
    repeated: tuple[float, float] = (0.5, 0.25)
    """Share of rows with a repeated random block, in the first 40 % of the steps and after."""
    rate: float = 3e-3
    muon_rate: float = 0.02
    warm_up: int = 100
    """Steps until the rate is full; from then on it falls to 2 % along a cosine."""


Parameters = dict[str, Tensor]
TensorState = dict[str, Tensor]  # of an optimizer for one parameter


@dataclass
class Training:
    """The state of a training, from which the next step goes on."""

    parameters: Parameters
    optimizers: list[torch.optim.Optimizer]
    rng: np.random.Generator
    step: int = 0
    loss: float = math.nan
    """Smoothed, nats per token, over the whole mix."""
    tokens: int = 0


class Progress(NamedTuple):
    """The state of a training after a step, as it is shown."""

    step: int
    loss: float
    """Smoothed, nats per token, over the whole mix."""
    tokens: int
    """Seen so far."""
    training: Training


def train_parameters(
    ids: Ids,
    config: ModelConfig,
    recipe: Recipe,
    *,
    start: Parameters | None = None,
    frozen: TrainingState | None = None,
    device: str = "cpu",
    watch: Callable[[Progress], None],
) -> Parameters:
    """Train on token ids (n,) and return the parameters, detached, on the CPU.

    start: the parameters to begin with; noise by default. ``watch`` is called after each step; a
    KeyboardInterrupt, there or in a step, ends the training early and the parameters of that moment
    are returned. Same seed, same machine, same threads: same parameters, also where a training goes
    on that was ``frozen``. Raises ModelError if torch is too old, InputError if what was frozen
    does not fit.
    """
    require_muon()
    training = begin_training(config, recipe, start, device)
    if frozen is not None:
        thaw_training(training, frozen)
    try:
        for step in range(training.step, recipe.steps):
            set_rates(training.optimizers, recipe, step)
            inputs, labels = draw_batch(ids, config, recipe, step, training.rng)
            loss = descend(training, config, inputs.to(device), labels.to(device))
            record_step(training, loss, inputs.numel())
            progress = Progress(training.step, training.loss, training.tokens, training)
            watch(progress)
    except KeyboardInterrupt:
        pass
    return {name: parameter.detach().cpu() for name, parameter in training.parameters.items()}


def begin_training(
    config: ModelConfig,
    recipe: Recipe,
    start: Parameters | None,
    device: str,
) -> Training:
    """Make a training before its first step, from ``start`` or from noise."""
    if start is None:
        start = draw_parameters(config, recipe.seed)
    parameters = {}
    for name, parameter in start.items():
        own = parameter.detach().clone()
        parameters[name] = own.to(device).requires_grad_()
    optimizers = make_optimizers(parameters, recipe)
    return Training(parameters, optimizers, np.random.default_rng(recipe.seed))


def record_step(training: Training, loss: float, tokens: int) -> None:
    """Count a step, its tokens and its loss."""
    if math.isnan(training.loss):
        training.loss = loss
    else:
        training.loss = KEPT * training.loss + ADDED * loss
    training.step += 1
    training.tokens += tokens


def freeze_training(training: Training) -> TrainingState:
    """Keep all of a training, so that ``thaw_training`` goes on from the same bits."""
    kept = copy_arrays(training.parameters, "parameters/")
    for i, optimizer in enumerate(training.optimizers):
        states = optimizer.state_dict()["state"]
        for p, state in states.items():
            kept |= copy_arrays(state, f"optimizers/{i}/{p}/")
    loss = None if math.isnan(training.loss) else training.loss
    numbers = {
        "step": training.step,
        "loss": loss,
        "tokens": training.tokens,
        "random": training.rng.bit_generator.state,
    }
    return TrainingState(kept, numbers)


def thaw_training(training: Training, frozen: TrainingState) -> None:
    """Bring a training that has not begun to where it was frozen.

    Raises InputError if what is frozen is another training.
    """
    numbers = frozen.numbers
    try:
        thaw_parameters(training.parameters, frozen.arrays)
        for i, optimizer in enumerate(training.optimizers):
            states = select_states(frozen.arrays, f"optimizers/{i}/")
            thaw_optimizer(optimizer, states)
        training.rng.bit_generator.state = numbers["random"]
        training.step = int(numbers["step"])
        training.tokens = int(numbers["tokens"])
        training.loss = math.nan if numbers["loss"] is None else float(numbers["loss"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "the state of the training is damaged: begin again with --force",
        ) from error


def thaw_parameters(parameters: Parameters, kept: dict[str, Array]) -> None:
    """Copy the parameters that were kept into those of a training."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = torch.from_numpy(kept[f"parameters/{name}"])
            parameter.copy_(array.reshape(parameter.shape))


def thaw_optimizer(optimizer: torch.optim.Optimizer, states: dict[int, TensorState]) -> None:
    """Give an optimizer its states, by the number of the parameter.

    Raises an error, of one of several kinds, if they are not of such an optimizer.
    """
    require_states(states, optimizer)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def require_states(states: dict[int, TensorState], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless these are states of each parameter of such an optimizer."""
    names = {"step", "exp_avg", "exp_avg_sq"}
    if isinstance(optimizer, torch.optim.Muon):
        names = {"momentum_buffer"}
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    for p, parameter in enumerate(parameters):
        fitting = set()
        for name, tensor in states[p].items():
            if name == "step" or tensor.shape == parameter.shape:
                fitting.add(name)
        if fitting != names:
            raise ValueError(f"the optimizer knows {fitting} of parameter {p}, not {names}")


def select_states(kept: dict[str, Array], prefix: str) -> dict[int, TensorState]:
    """Select the states of one optimizer, by the number of the parameter."""
    states: dict[int, TensorState] = {}
    for path, array in kept.items():
        if path.startswith(prefix):
            p, name = path.removeprefix(prefix).split("/")
            state = states.setdefault(int(p), {})
            state[name] = torch.from_numpy(array)
    return states


def copy_arrays(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Array]:
    """Copy the numbers of tensors at this moment into NumPy arrays, a prefix before their names."""
    copies = {}
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().numpy()
        copies[f"{prefix}{name}"] = array.copy()
    return copies


def require_muon() -> None:
    """Raise ModelError unless torch has the optimizer that training needs."""
    if not hasattr(torch.optim, "Muon"):
        raise ModelError(
            f"training needs torch 2.9 or later (torch.optim.Muon); this is {torch.__version__}",
        )


def draw_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Draw matrices from a normal distribution of deviation 0.02, and set gains to 1."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in list_shapes(config).items():
        if len(shape) == 1:
            parameters[name] = torch.ones(shape)
        else:
            parameters[name] = torch.randn(shape, generator=generator) * 0.02
    return parameters


def widen_vocabulary(parameters: Parameters, pieces: Sequence[Sequence[int]]) -> Parameters:
    """Return the parameters for a wider vocabulary.

    Each new token begins as the mean of the tokens it is made of. pieces: for each token of the new
    vocabulary the ids of the old that spell it; those of the old spell themselves.
    """
    embedding = parameters["embedding"]
    rows = [embedding[list(spelling)].mean(0) for spelling in pieces]
    return {**parameters, "embedding": torch.stack(rows)}


def make_optimizers(parameters: Parameters, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices inside the layers, AdamW for the embedding and the gains.

    The embedding is decayed, the gains are not.
    """
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and name != "embedding"]
    gains = [p for p in parameters.values() if p.ndim == 1]
    groups = [
        {"params": [parameters["embedding"]], "weight_decay": 0.1},
        {"params": gains, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))
    muon = torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.1, momentum=0.95)
    return [adam, muon]


def set_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Set the rates of a step: a linear warm-up, then a cosine down to 2 %."""
    cosine = math.cos(math.pi * step / recipe.steps)
    falling = 0.02 + 0.98 * 0.5 * (1 + cosine)
    warm_up = min(1.0, (step + 1) / recipe.warm_up)
    share = warm_up * falling
    full_rates = recipe.rate, recipe.muon_rate
    for optimizer, full in zip(optimizers, full_rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = full * share


def descend(training: Training, config: ModelConfig, inputs: Tensor, labels: Tensor) -> float:
    """Take one step down the gradient of the next-token loss, clipped to norm 1.

    Returns the loss in nats per token.
    """
    parameters = training.parameters
    *_, last = evaluate_layers(parameters, inputs, config)
    # The vocabulary is wide: half of a step's work is saved where no label counts.
    counted = labels != IGNORED
    predicted = project_logits(parameters, last.hidden[counted])
    loss = cross_entropy(predicted, labels[counted])
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for optimizer in training.optimizers:
        optimizer.step()
    return loss.item()


def draw_batch(
    ids: Ids,
    config: ModelConfig,
    recipe: Recipe,
    step: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw inputs and labels (rows, length), the labels one token ahead."""
    done = step / recipe.steps
    is_long = done >= 1 - recipe.lengthen
    length = config.positions if is_long else recipe.length
    early_share, late_share = recipe.repeated
    share = early_share if done < 0.4 else late_share
    inputs = []
    labels = []
    for _ in range(max(1, recipe.tokens // length)):
        if rng.random() < share:
            row, row_labels = draw_repeated_row(length, config.vocabulary, rng)
        else:
            row, row_labels = draw_text_row(ids, length, rng)
        inputs.append(row)
        labels.append(row_labels)
    return stack_rows(inputs), stack_rows(labels)


def stack_rows(rows: list[Ids]) -> Tensor:
    """Stack rows of token ids into one tensor, (rows, length)."""
    return torch.from_numpy(np.stack(rows))


def draw_text_row(ids: Ids, length: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Draw a run of the corpus, begun by BOS: inputs and labels."""
    start = int(rng.integers(0, len(ids) - length))
    stop = start + length + 1
    row = ids[start:stop].copy()
    row[0] = BOS_ID
    return row[:-1], row[1:]


def draw_repeated_row(length: int, vocabulary: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Draw a random block, repeated to the end and begun by BOS: inputs and labels.

    It can be predicted from its second copy on only, so labels of the first are ignored.
    """
    longest = (length - 1) // 2
    block_length = int(rng.integers(FEWEST_REPEATED, longest + 1))
    block = rng.integers(1, vocabulary, block_length)
    copies = length // len(block) + 1
    repeated = np.tile(block, copies)
    row = np.concatenate([[BOS_ID], repeated])[: length + 1]
    labels = row[1:].copy()
    labels[: len(block)] = IGNORED
    return row[:-1], labels
