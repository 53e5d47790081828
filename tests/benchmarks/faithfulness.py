"""Which scores of tokens tell what a model does: rank correlation with interventions, and what these cost.

    python tests/benchmarks/faithfulness.py [MODEL_DIR ...]
    python tests/benchmarks/faithfulness.py --cost [MODEL_DIR ...]

The built-in model reads blocks of distinct random tokens, repeated and cut inside the second copy, so that the right
next token is known: it is the target. Any other model reads the sentences below and the sample texts in plain English,
and is asked for the likeliest next token, or for the last vector of its first token if it predicts none. First and
special tokens, and the query, are left out. Beside the methods stand a baseline of position and one of chance.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch

from attnviz.experiments.attribution import attribute
from attnviz.experiments.sequences import draw_repeated_sequences
from attnviz.io.samples import read_sample
from attnviz.lm.model import evaluate_layers, project_logits
from attnviz.models import Model, load_model
from attnviz.models.builtin import Builtin
from attnviz.models.interventions import ABREAST
from attnviz.request import LIKELIEST, NOTHING, Prompt, Target
from attnviz.results.attribution import TOKEN_REMOVALS, Attribution, TokenRemoval
from attnviz.results.head_roles import SequenceSettings

SEQUENCES = SequenceSettings(sequences=20, block=10, seed=0)
SAMPLES = "agreement", "article", "pronoun", "question", "review"
SENTENCES = (
    "The capital of France is the city of",
    "When Mary and John went to the store, John gave a drink to",
    "The keys to the old wooden cabinet are on the",
    "After a long day at work, Anna poured herself a cup of",
    "The opposite of hot is cold, and the opposite of big is",
    "A dog barks, a cat meows, and a cow",
    "She plays the piano and he plays the",
    "In winter the lake freezes, and the children go out to",
    "The doctor told the patient to take the medicine twice a",
    "Monday, Tuesday, Wednesday, Thursday,",
    "The teacher asked the students to open their books and",
    "He put the letter into an envelope and wrote the address on",
)
TOKENS, ROUNDS, LIMIT = 64, 11, 1.3


class Question(NamedTuple):
    """A prompt, and what is asked of it."""

    prompt: Prompt
    target: Target


def questions(model: Model, name: str) -> Iterator[Question]:
    """What a model is asked."""
    if name == "builtin":
        rng = np.random.default_rng(SEQUENCES.seed)
        for ids in draw_repeated_sequences(model.read_vocabulary(), SEQUENCES, name):
            cut = (
                1 + SEQUENCES.block + int(rng.integers(3, SEQUENCES.block - 1))
            )  # of BOS, a copy and some of another
            yield Question(Prompt("", ids=ids[:cut]), Target(said(model, ids[cut])))
        return
    for text in (*SENTENCES, *map(read_sample, SAMPLES)):
        yield Question(Prompt(text), LIKELIEST)


def said(model: Model, number: int) -> str:
    """What a token of the built-in model says."""
    return model.respond(Prompt("", ids=(0, number)), [NOTHING]).name(number)


def correlations(found: Sequence[Attribution]) -> None:
    """Print the mean correlation of each method with its deviation, and how often both name the same token first."""
    lengths = [len(one.tokens) for one in found]
    print(f"  {len(found)} prompts of {min(lengths)}-{max(lengths)} tokens")
    print(f"  {'':13}" + "".join(f"  {check:^15} {'top-1':>7}" for check in TOKEN_REMOVALS))
    for method in found[0].agreement:
        print(f"  {method:13}" + "".join(cell(found, method, check) for check in TOKEN_REMOVALS))


def cell(found: Sequence[Attribution], method: str, check: TokenRemoval) -> str:
    """The numbers of a method and an intervention; nothing of one and itself."""
    if method == check:
        return " " * 25
    values = [one.agreement[method][check] for one in found]
    pairs = [
        ({**one.scores, **one.baselines, **one.effects}[method], one.effects[check])
        for one in found
    ]
    same = [
        best(one, first) == best(one, second)
        for one, (first, second) in zip(found, pairs, strict=True)
    ]
    return f"  {np.mean(values):6.2f} ± {np.std(values, ddof=1):.2f} {np.mean(same):9.0%}"


def best(one: Attribution, values: np.ndarray) -> int:
    """The ranked token of the largest number."""
    return int(np.where(one.ranked, values, -np.inf).argmax())


def cost(model: Model) -> None:
    """Print what attributing and verifying 64 tokens takes, against as many plain runs in batches of the same size."""
    ids = draw_repeated_sequences(
        model.read_vocabulary(), SequenceSettings(1, TOKENS, 1), "a model"
    )[0][:TOKENS]
    prompt = Prompt("", ids=ids)
    found = attribute(model, prompt, checks=("knock-out",))
    count = 1 + int(
        np.isfinite(found.effects["knock-out"]).sum()
    )  # one of the whole, one for each token cut off
    whole, plain = [], []
    for _ in range(ROUNDS):  # in turn, so that both meet the same machine
        whole.append(taken(lambda: attribute(model, prompt, checks=("knock-out",))))
        plain.append(taken(lambda: plain_runs(model, np.tile(np.array(ids), (count, 1)))))
    ratio = median(whole) / median(plain)
    print(
        f"  {TOKENS} tokens, by {found.by}: {median(whole):.3f} s; {count} plain runs {median(plain):.3f} s"
    )
    print(f"  ratio {ratio:.2f} (bar {LIMIT})")


def plain_runs(model: Any, ids: np.ndarray) -> None:
    """Run what is inside a model, and nothing around it, on ids (text, token)."""
    for batch in np.split(ids, range(ABREAST, len(ids), ABREAST)):
        plain_run(model, batch)


def plain_run(model: Any, batch: np.ndarray) -> Any:
    """What it says after the last token of each text of a batch."""
    if isinstance(model, Builtin):
        *_, last = evaluate_layers(model.parameters, batch, model.config)
        return project_logits(model.parameters, last.hidden[:, -1])
    with torch.inference_mode():
        return model.model(input_ids=torch.from_numpy(batch))


def taken(work: Callable[[], object]) -> float:
    """Seconds of this process."""
    start = process_time()
    work()
    return process_time() - start


def main(arguments: Sequence[str]) -> None:
    """Measure the built-in model, and those of the folders."""
    costs = "--cost" in arguments
    for name in ("builtin", *(argument for argument in arguments if argument != "--cost")):
        model = load_model(name, predicts=True)
        print(name.rstrip("/").rsplit("/", 2)[-2] if "/" in name else name)
        if costs:
            cost(model)
            continue
        correlations(
            [
                attribute(model, *question, checks=tuple(TOKEN_REMOVALS))
                for question in questions(model, name)
            ]
        )


if __name__ == "__main__":
    main(sys.argv[1:])
