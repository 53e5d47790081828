"""Text files -> documents -> token ids, some held out to measure the loss on."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from attnviz.errors import InputError
from attnviz.io.files import read_text

Ids: TypeAlias = npt.NDArray[np.int64]
HELD_OUT = 50  # one document of so many


def read_corpus(paths: Iterable[Path]) -> list[str]:
    """Read the documents of text files, and of the .txt files in folders.

    An empty line parts two documents. Raises InputError if a file cannot be read or there is no
    text in any.
    """
    documents = []
    for file in list_text_files(paths):
        paragraphs = read_text(file).split("\n\n")
        stripped = [paragraph.strip() for paragraph in paragraphs]
        documents += [paragraph for paragraph in stripped if paragraph]
    if not documents:
        raise InputError(
            "there is no text in the corpus: give text files, or folders with .txt files, "
            "of some 500 words or more",
        )
    return documents


def list_text_files(paths: Iterable[Path]) -> Iterator[Path]:
    """List files, and in place of a folder the .txt files in it, at any depth, by name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.txt"))
        else:
            yield path


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split documents into those to train on, and those that are held out for measurements.

    Held out are the last document, and every fiftieth one counted back from it. Returns both in the
    order of the documents.
    """
    last = len(documents) - 1
    training = []
    held_out = []
    for i, document in enumerate(documents):
        if i % HELD_OUT == last % HELD_OUT:
            held_out.append(document)
        else:
            training.append(document)
    return training, held_out


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """Encode documents as token ids, one document after the other, each begun by BOS: (n,).

    BOS, the token for the beginning of a text, is put there by the tokenizer.
    """
    encodings = tokenizer.encode_batch(documents)
    ids = [token for encoding in encodings for token in encoding.ids]
    return np.array(ids, np.int64)
