"""Text files -> documents -> token ids, some held out to measure the loss on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from attnviz.errors import InputError
from attnviz.io.files import read_text

Ids: TypeAlias = npt.NDArray[np.int64]
HELD_OUT = 50  # one document of so many


def read(paths: Iterable[Path]) -> list[str]:
    """The documents of text files and of folders of .txt files; an empty line parts two documents.

    Raises InputError if a file cannot be read or there is no text in any.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])
    ]
    documents = [
        part.strip() for file in files for part in read_text(file).split("\n\n") if part.strip()
    ]
    if not documents:
        raise InputError(
            "there is no text in the corpus: give text files, or folders with .txt files, of some 500 words or more"
        )
    return documents


def split(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Documents to train on, and the last of every fifty held out."""
    held_out = [i % HELD_OUT == (len(documents) - 1) % HELD_OUT for i in range(len(documents))]
    return (
        [text for text, held in zip(documents, held_out, strict=True) if not held],
        [text for text, held in zip(documents, held_out, strict=True) if held],
    )


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """Token ids (n,) of all documents in a row, each begun by BOS."""
    return np.array(
        [token for found in tokenizer.encode_batch(documents) for token in found.ids], np.int64
    )
