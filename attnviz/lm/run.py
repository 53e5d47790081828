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
from attnviz.lm import corpus, evaluate, store
from attnviz.lm.checkpoints import (
    ResumePoint,
    RunLog,
    StepSnapshot,
    TrainingState,
)
from attnviz.lm.model import ModelConfig
from attnviz.lm.tokenizer import (
    learn_tokenizer,
    list_spellings,
    narrow_tokenizer,
)
from attnviz.lm.train import (
    Parameters,
    Progress,
    Recipe,
    copy_arrays,
    freeze_training,
    train_parameters,
    widen_vocabulary,
)
from attnviz.progress import begin_step

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
    tokenizer: Tokenizer
    recipe: Recipe
    steps_before: int = 0
    """Steps of the run that were done when it began."""


def run_training(
    documents: Sequence[str],
    vocabulary_text: Sequence[str],
    setting: RunSetting,
    watch: Callable[[Progress], None],
    log: RunLog | None = None,
    resume_point: ResumePoint | None = None,
) -> TrainedModel:
    """Train a model on documents, in two stages if its vocabulary is wide.

    The first stage knows the first tokens of the tokenizer only, the second all of them. documents:
    the texts to learn from. vocabulary_text: the texts that the tokenizer is learnt from. watch: is
    called after each step. log: measures the heads and writes checkpoints as the run goes; None for
    neither. resume_point: the state of an interrupted run that is to go on; None to begin.
    Returns the model, as far as it was trained if the user interrupts. Raises InputError if the
    documents are too short or the state is damaged, OutputError if the log cannot be written.
    """
    with begin_step("learning a vocabulary"):
        wide = learn_tokenizer(vocabulary_text, setting.vocabulary)
    narrow = narrow_tokenizer(wide, NARROW)
    first_recipe, second_recipe = plan_stages(setting, wide.get_vocab_size())
    train_stage = partial(run_stage, documents, setting, watch, log)
    frozen = None if resume_point is None else resume_point.frozen
    start = None
    if resume_point is None or resume_point.stage == 0:
        first_stage = TrainingStage(0, narrow, first_recipe)
        trained = train_stage(first_stage, frozen=frozen)
        is_interrupted = trained.steps < first_recipe.steps
        if second_recipe is None or is_interrupted:
            return trained
        start = widen_parameters(trained.stored, list_spellings(wide, narrow))
        frozen = None  # it was of the first stage
    if second_recipe is None:  # though the state is one of the second stage
        raise InputError("the state of the training is damaged: begin again with --force")
    second_stage = TrainingStage(1, wide, second_recipe, steps_before=first_recipe.steps)
    return train_stage(second_stage, start=start, frozen=frozen)


def widen_parameters(stored: store.StoredModel, pieces: Sequence[Sequence[int]]) -> Parameters:
    """Return the parameters of a model for a wider vocabulary, as tensors.

    pieces: for each token of the wider vocabulary the ids of the model's own tokens that spell it.
    """
    narrow = {name: torch.from_numpy(array) for name, array in stored.parameters.items()}
    return widen_vocabulary(narrow, pieces)


def plan_stages(setting: RunSetting, vocabulary: int) -> tuple[Recipe, Recipe | None]:
    """Return the recipes of the two stages of a training.

    The first stage trains with the first tokens of the vocabulary, the second with all. vocabulary:
    the number of tokens; if the first stage knows them all, it has all the steps, and the second
    recipe is None.
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
    """Train a model with one tokenizer, round it to float16, and measure it.

    documents: the texts to learn from; some are held out, to measure the loss on. watch: is called
    after each step. log: measures the heads and writes checkpoints as the run goes, or None.
    training_stage: the tokenizer and the recipe. start: the parameters to begin with; None: random
    ones. frozen: the state of an interrupted stage that is to go on, or None.
    Steps and tokens are counted over the whole run, those of earlier stages included. Raises
    InputError if the documents are too short, OutputError if the log cannot be written.
    """
    tokenizer, recipe = training_stage.tokenizer, training_stage.recipe
    steps_before = training_stage.steps_before
    training_documents, held_out = corpus.split_documents(documents)
    ids = corpus.encode_documents(tokenizer, training_documents)
    held_out_ids = corpus.encode_documents(tokenizer, held_out)
    config = choose_sizes(setting, tokenizer.get_vocab_size())
    require_enough(ids, held_out_ids, config)
    steps_done = steps_before
    if frozen is not None:
        steps_done += frozen.numbers["step"]

    def make_model(parameters: dict[str, Any]) -> store.StoredModel:
        """Make the model of these parameters, with the record of the steps done so far."""
        about = {
            "steps": steps_done,
            "seed": setting.seed,
            "tokens": steps_done * recipe.tokens,
            "corpus_tokens": len(ids),
        }
        return store.StoredModel(
            config=config,
            parameters=parameters,
            tokenizer=tokenizer.to_str(),
            about=about,
        )

    def count_step(progress: Progress) -> None:
        """Log and show a step of this stage as one of the whole run."""
        nonlocal steps_done
        steps_done = steps_before + progress.step
        tokens_seen = steps_before * recipe.tokens + progress.tokens
        run_progress = progress._replace(step=steps_done, tokens=tokens_seen)

        def make_current_model() -> store.StoredModel:
            return make_model(copy_arrays(progress.training.parameters))

        log_step(run_progress, training_stage, watch, log, make_current_model)

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
    with begin_step("measuring the model"):
        measured = measure_model(
            trained.parameters,
            config,
            held_out=held_out_ids,
            characters=characters,
        )
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
    """Log a step of a run, and then show it to the user.

    If the user interrupts the run there, the state is written, so that it has this step. progress:
    steps and tokens of the whole run. watch: shows it. log: measures the heads and writes
    checkpoints, or None. model: makes the model as it is after the step.
    """
    if log is None:
        watch(progress)
        return
    training = progress.training
    now = StepSnapshot(
        stage=training_stage.number,
        step=progress.step,
        loss=progress.loss,
        tokens=progress.tokens,
        ends=training.step == training_stage.recipe.steps,
        freeze=partial(freeze_training, training),
        model=model,
    )
    log.log_snapshot(now)
    try:
        watch(progress)
    except KeyboardInterrupt:
        log.write_state(now)
        raise


def choose_sizes(setting: RunSetting, vocabulary: int) -> ModelConfig:
    """Return the sizes of a model.

    setting: what the user has chosen. vocabulary: the number of the model's tokens.
    """
    return ModelConfig(
        vocabulary=vocabulary,
        dim=setting.dim,
        layers=setting.layers,
        heads=setting.heads,
        feed_forward=2 * setting.dim,
        score=setting.score,
    )


def require_enough(ids: corpus.Ids, held_out: corpus.Ids, config: ModelConfig) -> None:
    """Raise InputError if there is too little text.

    One row is needed to train on, and something to measure the loss on. ids, held_out: the token
    ids of the texts for each, (n,).
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
    """Measure the loss of a model on held-out text, and its best heads, as config.json keeps them.

    held_out: the token ids of the text, (n,). characters: how many the text has. Returns nats per
    token, bits per character, and the best head for each role by name and score.
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
    """Describe the measurements of a trained model in a line for the user."""
    about = trained.stored.about
    bits = about["bits_per_character"]
    described = [f"held-out text {bits:.2f} bits per character"]
    for role, score in about["scores"].items():
        name = role.replace("_", "-")
        head, mean = score["head"], score["mean"]
        described.append(f"best {name} head {head} {mean:.2f}")
    return ", ".join(described)
