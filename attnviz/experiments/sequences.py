"""What a model reads in an experiment: repeated blocks of random tokens, and texts."""

from collections.abc import Sequence

import numpy as np

from attnviz.errors import UsageError
from attnviz.request import Vocabulary
from attnviz.results.head_roles import SequenceSettings

MOST_DOCUMENTS = 64  # of a corpus, at most
EXCERPT_CHARACTERS = 1000  # from the beginning of each document
NO_LIMIT = 1 << 30  # tokens, where a model does not say how many it reads
Ids = tuple[int, ...]


def draw_repeated_sequences(
    vocabulary: Vocabulary,
    setting: SequenceSettings,
    model: str,
) -> list[Ids]:
    """Draw sequences of token ids, P + B + B + S, B being a block of distinct random tokens.

    P and S are the prefix and the suffix that the tokenizer puts around a text. setting: how many
    sequences to draw, how many tokens a block has, and the seed. model: its name, for the error.
    Raises UsageError for a block that is longer than the vocabulary, or that twice is longer than
    what the model reads.
    """
    prefix, suffix = vocabulary.prefix, vocabulary.suffix
    most_tokens = vocabulary.positions or NO_LIMIT
    room = most_tokens - len(prefix) - len(suffix)
    longest = min(len(vocabulary.plain), room // 2)
    if setting.block > longest:
        problem = f"a block of {setting.block} tokens, repeated, is too long for {model}"
        raise UsageError(f"{problem}: at most {longest}")
    rng = np.random.default_rng(setting.seed)
    sequences = []
    for _ in range(setting.sequences):
        shuffled = rng.permutation(vocabulary.plain)
        block = shuffled[: setting.block].tolist()
        sequences.append((*prefix, *block, *block, *suffix))
    return sequences


def take_excerpts(documents: Sequence[str]) -> list[str]:
    """Take the beginnings of MOST_DOCUMENTS documents at most, which are evenly spread."""
    count = min(MOST_DOCUMENTS, len(documents))
    spread = np.linspace(0, len(documents) - 1, count)
    positions = spread.round().astype(int)
    return [documents[position][:EXCERPT_CHARACTERS] for position in positions]
