"""From documents to a model that can be kept: learn the tokens, train, round, measure.

Parameters are rounded to float16, as they are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer

from attnviz.errors import InputError
from attnviz.lm import corpus, evaluate, store, tokenizer
from attnviz.lm.checkpoints import ResumePoint, RunLog, StepSnapshot, TrainingState
from attnviz.lm.model import ModelConfig
from attnviz.lm.train import (
    Parameters,
    Progress,
    Recipe,
    copy_arrays,
    freeze_training,
    train_parameters,
    widen_vocabulary,
)

NARROW = 1024  # tokens of the vocabulary that the first stage of training knows
NARROW_SHARE = 23 / 30  # of the steps: 3,680 of 4,800


@dataclass(frozen=True)
class RunSetting:
    """The choices of the user."""

    steps: int
    seed: int
    vocabulary: int
    layers: int
    heads: int
    dim: int
    score: str = ModelConfig.score
    device: str = "cpu"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and how far its training went."""

    stored: store.StoredModel
    steps: int


@dataclass(frozen=True)
class TrainingStage:
    """A part of a run, with one tokenizer."""

    number: int
    tokens: Tokenizer
    recipe: Recipe
    before: int = 0
    """Steps of the run that were done when it began."""


def run_training(
    documents: Sequence[str],
    vocabulary_text: Sequence[str],
    setting: RunSetting,
    watch: Callable[[Progress], None],
    log: RunLog | None = None,
    kept: ResumePoint | None = None,
) -> TrainedModel:
    """Train a model on documents, in two stages if its vocabulary is wide.

    kept: the state of a run that is to go on. Raises InputError if the documents are too short,
    OutputError if the log cannot be written.
    """
    wide = tokenizer.learn_tokenizer(vocabulary_text, setting.vocabulary)
    narrow = tokenizer.narrow_tokenizer(wide, NARROW)
    first, second = plan_stages(setting, wide.get_vocab_size())
    train_stage = partial(run_stage, documents, setting, watch, log)
    frozen = None if kept is None else kept.frozen
    start = None
    if kept is None or kept.stage == 0:
        trained = train_stage(TrainingStage(0, narrow, first), frozen=frozen)
        if second is None or trained.steps < first.steps:
            return trained
        start = widen_parameters(trained.stored, tokenizer.list_spellings(wide, narrow))
        frozen = None
    if second is None:
        raise InputError("the state of the training is damaged: begin again with --force")
    return train_stage(TrainingStage(1, wide, second, first.steps), start=start, frozen=frozen)


def widen_parameters(stored: store.StoredModel, pieces: Sequence[Sequence[int]]) -> Parameters:
    """Return the parameters of a model for a wider vocabulary: see ``widen``."""
    narrow = {name: torch.from_numpy(array) for name, array in stored.parameters.items()}
    return widen_vocabulary(narrow, pieces)


def plan_stages(setting: RunSetting, vocabulary: int) -> tuple[Recipe, Recipe | None]:
    """Return how to train with the first tokens of the vocabulary, and then with all.

    The second recipe is None if the first stage knows all tokens already.
    """
    if vocabulary <= NARROW:
        return Recipe(steps=setting.steps, seed=setting.seed), None
    first_steps = round(setting.steps * NARROW_SHARE)
    second = Recipe(
        steps=setting.steps - first_steps,
        seed=setting.seed,
        repeated=(0.25, 0.25),
        muon_rate=0.01,
        lengthen=0.2,
    )
    return Recipe(steps=first_steps, seed=setting.seed), second


def run_stage(
    documents: Sequence[str],
    setting: RunSetting,
    watch: Callable[[Progress], None],
    log: RunLog | None,
    training_stage: TrainingStage,
    *,
    start: Parameters | None = None,
    frozen: TrainingState | None = None,
) -> TrainedModel:
    """Train with one tokenizer, round to float16, measure."""
    tokens, recipe = training_stage.tokens, training_stage.recipe
    steps_before = training_stage.before
    training_documents, held_out = corpus.split_documents(documents)
    ids = corpus.encode_documents(tokens, training_documents)
    held_out_ids = corpus.encode_documents(tokens, held_out)
    config = choose_sizes(setting, tokens.get_vocab_size())
    require_enough(ids, held_out_ids, config)
    steps_done = steps_before
    if frozen is not None:
        steps_done += frozen.numbers["step"]

    def make_model(parameters: dict[str, Any]) -> store.StoredModel:
        about = {
            "steps": steps_done,
            "seed": setting.seed,
            "tokens": steps_done * recipe.tokens,
            "corpus_tokens": len(ids),
        }
        return store.StoredModel(config, parameters, tokens.to_str(), about)

    def count_step(progress: Progress) -> None:
        nonlocal steps_done
        steps_done = steps_before + progress.step
        tokens_seen = steps_before * recipe.tokens + progress.tokens
        of_run = progress._replace(step=steps_done, tokens=tokens_seen)

        def make_current_model() -> store.StoredModel:
            return make_model(copy_arrays(progress.training.parameters))

        log_step(of_run, training_stage, watch, log, make_current_model)

    parameters = train_parameters(
        ids,
        config,
        recipe,
        start=start,
        frozen=frozen,
        device=setting.device,
        watch=count_step,
    )
    trained = make_model(round_parameters(parameters))
    characters = sum(map(len, held_out))
    measured = measure_model(trained.parameters, config, held_out_ids, characters)
    trained.about.update(measured)
    return TrainedModel(trained, steps_done)


def round_parameters(parameters: Parameters) -> dict[str, Any]:
    """Round parameters to float16, as they are kept: float32 arrays of NumPy."""
    return {name: parameter.half().float().numpy() for name, parameter in parameters.items()}


def log_step(
    progress: Progress,
    training_stage: TrainingStage,
    watch: Callable[[Progress], None],
    log: RunLog | None,
    model: Callable[[], store.StoredModel],
) -> None:
    """Log a step, then show it; whoever interrupts there finds the step in the state."""
    if log is None:
        watch(progress)
        return
    training = progress.training
    ends = training.step == training_stage.recipe.steps
    freeze = partial(freeze_training, training)
    now = StepSnapshot(
        training_stage.number,
        progress.step,
        progress.loss,
        progress.tokens,
        ends,
        freeze,
        model,
    )
    log.after(now)
    try:
        watch(progress)
    except KeyboardInterrupt:
        log.keep(now)
        raise


def choose_sizes(setting: RunSetting, vocabulary: int) -> ModelConfig:
    """Return the sizes of a model with so many tokens."""
    return ModelConfig(
        vocabulary,
        setting.dim,
        setting.layers,
        setting.heads,
        feed_forward=2 * setting.dim,
        score=setting.score,
    )


def require_enough(ids: corpus.Ids, held_out: corpus.Ids, config: ModelConfig) -> None:
    """Raise InputError if there is too little text.

    One row is needed to train on, and something to measure the loss on.
    """
    least = config.positions + 1
    if len(ids) <= least or len(held_out) < 2:
        raise InputError(
            f"the corpus has {len(ids)} tokens to train on; more than {least} are needed, "
            "in at least two documents (an empty line parts them)",
        )


def measure_model(
    parameters: dict[str, Any],
    config: ModelConfig,
    held_out: corpus.Ids,
    characters: int,
) -> dict[str, Any]:
    """Measure the loss on held-out text and the best heads, as config.json keeps them.

    characters: of the held-out text.
    """
    loss = evaluate.measure_text_loss(parameters, held_out, config)
    bits_per_token = loss / math.log(2)
    bits_per_character = bits_per_token * len(held_out) / characters
    ids = evaluate.make_repeated_blocks(config)
    best_heads = evaluate.name_best_heads(parameters, config, ids)
    scores = {}
    for role, best in best_heads.items():
        scores[role] = {**best._asdict(), "n": evaluate.SEQUENCES}
    return {
        "nats_per_token": round(loss, 4),
        "bits_per_character": round(bits_per_character, 4),
        "scores": scores,
    }


def describe_training(trained: TrainedModel) -> str:
    """Describe the measurements in a line."""
    about = trained.stored.about
    bits = about["bits_per_character"]
    described = [f"held-out text {bits:.2f} bits per character"]
    for role, score in about["scores"].items():
        name = role.replace("_", "-")
        head, mean = score["head"], score["mean"]
        described.append(f"best {name} head {head} {mean:.2f}")
    return ", ".join(described)
