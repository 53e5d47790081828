"""What a model reads in an experiment: repeated blocks of random tokens, and texts."""

from collections.abc import Sequence

import numpy as np

from attnviz.errors import UsageError
from attnviz.request import Vocabulary
from attnviz.results.head_roles import Setting

DOCUMENTS, CHARACTERS = (
    64,
    1000,
)  # of a corpus: so many documents at most, and of each its beginning
Ids = tuple[int, ...]


def repeated(vocabulary: Vocabulary, setting: Setting, model: str) -> list[Ids]:
    """Sequences P + B + B + S, B of distinct random tokens of the vocabulary; P and S are its prefix and suffix.

    Raises UsageError for a block that is longer than the vocabulary, or twice what the model reads.
    """
    around = len(vocabulary.prefix) + len(vocabulary.suffix)
    most = min(len(vocabulary.plain), ((vocabulary.positions or 1 << 30) - around) // 2)
    if setting.block > most:
        raise UsageError(
            f"a block of {setting.block} tokens, repeated, is too long for {model}: at most {most}"
        )
    rng = np.random.default_rng(setting.seed)
    blocks = [
        rng.permutation(vocabulary.plain)[: setting.block].tolist()
        for _ in range(setting.sequences)
    ]
    return [(*vocabulary.prefix, *block, *block, *vocabulary.suffix) for block in blocks]


def excerpts(documents: Sequence[str]) -> list[str]:
    """The beginnings of documents, as many as are measured, evenly spread."""
    places = np.linspace(0, len(documents) - 1, min(DOCUMENTS, len(documents))).round().astype(int)
    return [documents[place][:CHARACTERS] for place in places]
