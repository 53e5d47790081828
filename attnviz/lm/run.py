"""From documents to a model that can be kept: learn the tokens, train, round to float16, measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from attnviz.errors import InputError
from attnviz.lm import corpus, evaluate, store, tokenizer
from attnviz.lm.model import Config
from attnviz.lm.train import Parameters, Progress, Recipe, train, widen

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
    device: str = "cpu"


@dataclass(frozen=True)
class Trained:
    """A trained model and how far its training went."""

    stored: store.Stored
    steps: int


def run(
    documents: Sequence[str], vocabulary_text: Sequence[str], setting: Setting, watch: Callable[[Progress], None]
) -> Trained:
    """Train a model on documents, in two stages if its vocabulary is wide. Raises InputError if they are too short."""
    wide = tokenizer.learn(vocabulary_text, setting.vocabulary)
    narrow = tokenizer.narrowed(wide, NARROW)
    first, second = stages(setting, wide.get_vocab_size())
    trained = stage(documents, narrow, setting, first, watch)
    if second is None or trained.steps < first.steps:
        return trained
    start = {name: torch.from_numpy(array) for name, array in trained.stored.parameters.items()}
    start = widen(start, tokenizer.pieces(wide, narrow))
    return stage(documents, wide, setting, second, watch, start=start, before=first.steps)


def stages(setting: Setting, vocabulary: int) -> tuple[Recipe, Recipe | None]:
    """What to do with the first tokens of the vocabulary, and then with all if these are more."""
    if vocabulary <= NARROW:
        return Recipe(steps=setting.steps, seed=setting.seed), None
    first = round(setting.steps * NARROW_SHARE)
    second = Recipe(steps=setting.steps - first, seed=setting.seed, repeated=(0.25, 0.25), muon_rate=0.01, lengthen=0.2)
    return Recipe(steps=first, seed=setting.seed), second


def stage(
    documents: Sequence[str],
    tokens: Tokenizer,
    setting: Setting,
    recipe: Recipe,
    watch: Callable[[Progress], None],
    *,
    start: Parameters | None = None,
    before: int = 0,
) -> Trained:
    """Train with one tokenizer, round to float16, measure; so many steps were done before."""
    learnt_from, held_out = corpus.split(documents)
    ids, held_out_ids = corpus.encode(tokens, learnt_from), corpus.encode(tokens, held_out)
    feed_forward = 2 * setting.dim
    config = Config(tokens.get_vocab_size(), setting.dim, setting.layers, setting.heads, feed_forward)
    require_enough(ids, held_out_ids, config)
    done = before

    def count(progress: Progress) -> None:
        nonlocal done
        done = before + progress.step
        watch(progress._replace(step=done, tokens=before * recipe.tokens + progress.tokens))

    found = train(ids, config, recipe, start=start, device=setting.device, watch=count)
    rounded = {name: parameter.half().float().numpy() for name, parameter in found.items()}
    about = {"steps": done, "seed": setting.seed, "tokens": done * recipe.tokens, "corpus_tokens": len(ids)}
    about |= measure(rounded, config, held_out_ids, sum(map(len, held_out)))
    return Trained(store.Stored(config, rounded, tokens.to_str(), about), done)


def require_enough(ids: corpus.Ids, held_out: corpus.Ids, config: Config) -> None:
    """Raise InputError if there is less text than one row to train on, or none to measure the loss on."""
    if len(ids) <= config.positions + 1 or len(held_out) < 2:
        raise InputError(
            f"the corpus has {len(ids)} tokens to train on; more than {config.positions + 1} are needed, "
            "in at least two documents (an empty line parts them)"
        )


def measure(parameters: dict[str, Any], config: Config, held_out: corpus.Ids, characters: int) -> dict[str, Any]:
    """The loss on held-out text and the best heads, as config.json keeps them."""
    loss = evaluate.natural_loss(parameters, held_out, config)
    heads = evaluate.best_heads(parameters, config, evaluate.repeated(config))
    return {
        "nats_per_token": round(loss, 4),
        "bits_per_character": round(loss / math.log(2) * len(held_out) / characters, 4),
        "scores": {role: {**best._asdict(), "n": evaluate.SEQUENCES} for role, best in heads.items()},
    }


def describe(trained: Trained) -> str:
    """The measurements in a line."""
    about = trained.stored.about
    heads = (
        f"best {role.replace('_', '-')} head {score['head']} {score['mean']:.2f}"
        for role, score in about["scores"].items()
    )
    return ", ".join([f"held-out text {about['bits_per_character']:.2f} bits per character", *heads])
