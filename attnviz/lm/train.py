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
from attnviz.lm.model import (
    ModelConfig,
    evaluate_layers,
    list_parameter_shapes,
    project_logits,
)
from attnviz.lm.tokenizer import BOS_ID
from attnviz.lm.transformer import take_last_run

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
    """Train a model on token ids (n,) and return its parameters, detached, on the CPU.

    config: the sizes of the model. recipe: the numbers of the training. start: the parameters to
    begin with; None: random ones. frozen: the state of an interrupted training that is to go on, or
    None. watch: is called after each step.
    A KeyboardInterrupt, in ``watch`` or in a step, ends the training early, and the parameters of
    that moment are returned. Same seed, same machine, same threads: same parameters, also where an
    interrupted training goes on. Raises ModelError if torch is too old, InputError if the state is
    not one of such a training.
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
            progress = Progress(
                step=training.step,
                loss=training.loss,
                tokens=training.tokens,
                training=training,
            )
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
    """Make a training before its first step, with its own copy of the parameters.

    start: the parameters to begin with; None: random ones. device: where it computes.
    """
    if start is None:
        start = draw_parameters(config, recipe.seed)
    parameters = {}
    for name, parameter in start.items():
        copy = parameter.detach().clone()
        parameters[name] = copy.to(device).requires_grad_()
    optimizers = make_optimizers(parameters, recipe)
    return Training(parameters, optimizers, np.random.default_rng(recipe.seed))


def record_step(training: Training, loss: float, tokens: int) -> None:
    """Count a step of a training and its tokens, and add its loss to the smoothed loss.

    loss: of the step, in nats per token. tokens: of the step's batch.
    """
    if math.isnan(training.loss):
        training.loss = loss
    else:
        training.loss = KEPT * training.loss + ADDED * loss
    training.step += 1
    training.tokens += tokens


def freeze_training(training: Training) -> TrainingState:
    """Copy all that a training consists of, so that it can go on later from the same bits.

    The copy can be written to a file; ``thaw_training`` brings it back.
    """
    arrays = copy_arrays(training.parameters, "parameters/")
    for i, optimizer in enumerate(training.optimizers):
        states = optimizer.state_dict()["state"]
        for p, state in states.items():
            arrays |= copy_arrays(state, f"optimizers/{i}/{p}/")
    loss = None if math.isnan(training.loss) else training.loss
    numbers = {
        "step": training.step,
        "loss": loss,
        "tokens": training.tokens,
        "random": training.rng.bit_generator.state,
    }
    return TrainingState(arrays, numbers)


def thaw_training(training: Training, frozen: TrainingState) -> None:
    """Bring a training that has not begun to the state in which another one was frozen.

    frozen: that state. Raises InputError if it is damaged, or of a training of another kind.
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


def thaw_parameters(parameters: Parameters, arrays: dict[str, Array]) -> None:
    """Copy the parameters of a frozen training into those of a new one.

    arrays: of the frozen training; a parameter is named ``parameters/NAME``.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = torch.from_numpy(arrays[f"parameters/{name}"])
            parameter.copy_(array.reshape(parameter.shape))


def thaw_optimizer(optimizer: torch.optim.Optimizer, states: dict[int, TensorState]) -> None:
    """Give an optimizer the states that another one of its kind had.

    states: by the number of the parameter. Raises an error, of one of several kinds, if they are
    not of such an optimizer.
    """
    require_states(states, optimizer)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def require_states(states: dict[int, TensorState], optimizer: torch.optim.Optimizer) -> None:
    """Raise an error unless an optimizer can have these states, one for each of its parameters.

    states: by the number of the parameter; each must have the names and shapes that such an
    optimizer keeps. The error is a KeyError if a state is missing, else a ValueError.
    """
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


def select_states(arrays: dict[str, Array], prefix: str) -> dict[int, TensorState]:
    """Select the states of one optimizer from a frozen training, by the number of the parameter.

    arrays: of the frozen training, a state being named ``PREFIX`` and then ``NUMBER/NAME``. prefix:
    of the optimizer.
    """
    states: dict[int, TensorState] = {}
    for path, array in arrays.items():
        if path.startswith(prefix):
            p, name = path.removeprefix(prefix).split("/")
            state = states.setdefault(int(p), {})
            state[name] = torch.from_numpy(array)
    return states


def copy_arrays(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Array]:
    """Copy tensors as they are now into NumPy arrays, with a prefix before their names."""
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
    """Draw the parameters with which a training begins.

    Matrices are drawn from a normal distribution with a standard deviation of 0.02; gains are 1.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in list_parameter_shapes(config).items():
        if len(shape) == 1:
            parameters[name] = torch.ones(shape)
        else:
            parameters[name] = torch.randn(shape, generator=generator) * 0.02
    return parameters


def widen_vocabulary(parameters: Parameters, pieces: Sequence[Sequence[int]]) -> Parameters:
    """Return the parameters of a model for a wider vocabulary.

    The vector of each new token is the mean of those of the old tokens that spell it. pieces: for
    each token of the new vocabulary the ids of these; tokens that are in both spell themselves.
    """
    embedding = parameters["embedding"]
    vectors = [embedding[list(spelling)].mean(0) for spelling in pieces]
    return {**parameters, "embedding": torch.stack(vectors)}


def make_optimizers(parameters: Parameters, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a training: AdamW, and Muon for the matrices inside the layers.

    AdamW is for the embedding, which it decays, and for the gains, which it does not.
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
    """Set the learning rates of a step: a linear warm-up, then a cosine down to 2 %.

    optimizers: AdamW and Muon, in this order. recipe: has their full rates. step: counted from 0.
    """
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

    inputs: token ids, (rows, length). labels: the ids of the next tokens; those that are IGNORED do
    not count. Returns the loss before the step, in nats per token.
    """
    parameters = training.parameters
    last = take_last_run(evaluate_layers(parameters, inputs, config))
    # The vocabulary is wide: half of the work is saved where no label counts and no logit is made.
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
    """Draw a batch of rows to train on, some of text and some that repeat a random block.

    ids: the token ids of the corpus, (n,). recipe: has the length of rows, and the share of those
    that repeat a block. step: counted from 0. Returns inputs and labels, (rows, length) each: a
    label is the token after its input.
    """
    share_done = step / recipe.steps
    is_long = share_done >= 1 - recipe.lengthen
    length = config.positions if is_long else recipe.length
    early_share, late_share = recipe.repeated
    repeated_share = early_share if share_done < 0.4 else late_share
    inputs = []
    labels = []
    for _ in range(max(1, recipe.tokens // length)):
        if rng.random() < repeated_share:
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
    """Draw a run of the corpus at a random place, its first token replaced by BOS.

    ids: the token ids of the corpus, (n,). Returns inputs and labels, (length,) each: a label is
    the token after its input.
    """
    start = int(rng.integers(0, len(ids) - length))
    stop = start + length + 1
    row = ids[start:stop].copy()
    row[0] = BOS_ID
    return row[:-1], row[1:]


def draw_repeated_row(length: int, vocabulary: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Draw BOS and a block of random tokens, which is repeated to the end of the row.

    vocabulary: the number of tokens. Returns inputs and labels, (length,) each: a label is the
    token after its input. Only from its second copy on can the block be predicted, so the labels of
    the first are IGNORED.
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
