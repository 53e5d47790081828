"""From documents to a model that can be kept: learn the tokens, train, round to float16, measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer

from attnviz.errors import InputError
from attnviz.lm import corpus, evaluate, store, tokenizer
from attnviz.lm.checkpoints import Frozen, Kept, Log, Moment
from attnviz.lm.model import Config
from attnviz.lm.train import Parameters, Progress, Recipe, arrays, freeze, train, widen

NARROW = 1024  # tokens of the vocabulary that the first stage of training knows
NARROW_SHARE = 23 / 30  # of the steps: 3,680 of 4,800


@dataclass(frozen=True)
class Setting:
    """What the user chooses."""

    steps: int
    seed: int
    vocabulary: int
    layers: int
    heads: int
    dim: int
    score: str = Config.score
    device: str = "cpu"


@dataclass(frozen=True)
class Trained:
    """A trained model and how far its training went."""

    stored: store.Stored
    steps: int


@dataclass(frozen=True)
class Stage:
    """A part of a run, with one tokenizer."""

    number: int
    tokens: Tokenizer
    recipe: Recipe
    before: int = 0
    """Steps of the run that were done when it began."""


def run(
    documents: Sequence[str],
    vocabulary_text: Sequence[str],
    setting: Setting,
    watch: Callable[[Progress], None],
    log: Log | None = None,
    kept: Kept | None = None,
) -> Trained:
    """Train a model on documents, in two stages if its vocabulary is wide; or go on with what was kept of a run.

    Raises InputError if the documents are too short, OutputError if the log cannot be written.
    """
    wide = tokenizer.learn(vocabulary_text, setting.vocabulary)
    narrow = tokenizer.narrowed(wide, NARROW)
    first, second = stages(setting, wide.get_vocab_size())
    learn = partial(stage, documents, setting, watch, log)
    start = None
    if kept is None or kept.stage == 0:
        trained = learn(Stage(0, narrow, first), frozen=kept and kept.frozen)
        if second is None or trained.steps < first.steps:
            return trained
        start = {name: torch.from_numpy(array) for name, array in trained.stored.parameters.items()}
        start, kept = widen(start, tokenizer.pieces(wide, narrow)), None
    if second is None:
        raise InputError("the state of the training is damaged: begin again with --force")
    return learn(Stage(1, wide, second, first.steps), start=start, frozen=kept and kept.frozen)


def stages(setting: Setting, vocabulary: int) -> tuple[Recipe, Recipe | None]:
    """What to do with the first tokens of the vocabulary, and then with all if these are more."""
    if vocabulary <= NARROW:
        return Recipe(steps=setting.steps, seed=setting.seed), None
    first = round(setting.steps * NARROW_SHARE)
    second = Recipe(
        steps=setting.steps - first,
        seed=setting.seed,
        repeated=(0.25, 0.25),
        muon_rate=0.01,
        lengthen=0.2,
    )
    return Recipe(steps=first, seed=setting.seed), second


def stage(
    documents: Sequence[str],
    setting: Setting,
    watch: Callable[[Progress], None],
    log: Log | None,
    part: Stage,
    *,
    start: Parameters | None = None,
    frozen: Frozen | None = None,
) -> Trained:
    """Train with one tokenizer, round to float16, measure."""
    learnt_from, held_out = corpus.split(documents)
    ids, held_out_ids = (
        corpus.encode(part.tokens, learnt_from),
        corpus.encode(part.tokens, held_out),
    )
    config = shape(setting, part.tokens.get_vocab_size())
    require_enough(ids, held_out_ids, config)
    done = part.before + (frozen.numbers["step"] if frozen else 0)

    def stored(parameters: dict[str, Any]) -> store.Stored:
        tokens = done * part.recipe.tokens
        about = {"steps": done, "seed": setting.seed, "tokens": tokens, "corpus_tokens": len(ids)}
        return store.Stored(config, parameters, part.tokens.to_str(), about)

    def count(progress: Progress) -> None:
        nonlocal done
        done = part.before + progress.step
        now = progress._replace(
            step=done, tokens=part.before * part.recipe.tokens + progress.tokens
        )
        follow(now, part, watch, log, lambda: stored(arrays(progress.training.parameters)))

    found = train(
        ids, config, part.recipe, start=start, frozen=frozen, device=setting.device, watch=count
    )
    trained = stored({name: parameter.half().float().numpy() for name, parameter in found.items()})
    trained.about.update(measure(trained.parameters, config, held_out_ids, sum(map(len, held_out))))
    return Trained(trained, done)


def follow(
    progress: Progress,
    part: Stage,
    watch: Callable[[Progress], None],
    log: Log | None,
    model: Callable[[], store.Stored],
) -> None:
    """Log a step, then show it; whoever interrupts there finds the step in the state."""
    if log is None:
        watch(progress)
        return
    training = progress.training
    ends = training.step == part.recipe.steps
    now = Moment(
        part.number,
        progress.step,
        progress.loss,
        progress.tokens,
        ends,
        lambda: freeze(training),
        model,
    )
    log.after(now)
    try:
        watch(progress)
    except KeyboardInterrupt:
        log.keep(now)
        raise


def shape(setting: Setting, vocabulary: int) -> Config:
    """The sizes of a model with so many tokens."""
    return Config(
        vocabulary, setting.dim, setting.layers, setting.heads, 2 * setting.dim, score=setting.score
    )


def require_enough(ids: corpus.Ids, held_out: corpus.Ids, config: Config) -> None:
    """Raise InputError if there is less text than one row to train on, or none to measure the loss on."""
    if len(ids) <= config.positions + 1 or len(held_out) < 2:
        raise InputError(
            f"the corpus has {len(ids)} tokens to train on; more than {config.positions + 1} are needed, "
            "in at least two documents (an empty line parts them)"
        )


def measure(
    parameters: dict[str, Any], config: Config, held_out: corpus.Ids, characters: int
) -> dict[str, Any]:
    """The loss on held-out text and the best heads, as config.json keeps them."""
    loss = evaluate.natural_loss(parameters, held_out, config)
    heads = evaluate.best_heads(parameters, config, evaluate.repeated(config))
    return {
        "nats_per_token": round(loss, 4),
        "bits_per_character": round(loss / math.log(2) * len(held_out) / characters, 4),
        "scores": {
            role: {**best._asdict(), "n": evaluate.SEQUENCES} for role, best in heads.items()
        },
    }


def describe(trained: Trained) -> str:
    """The measurements in a line."""
    about = trained.stored.about
    heads = (
        f"best {role.replace('_', '-')} head {score['head']} {score['mean']:.2f}"
        for role, score in about["scores"].items()
    )
    return ", ".join(
        [f"held-out text {about['bits_per_character']:.2f} bits per character", *heads]
    )
