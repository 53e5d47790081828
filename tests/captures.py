"""Captures made by hand of given weights, and what the tokens of every capture keep to."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from attnviz.analysis.statistics import measure_statistics
from attnviz.record import AttentionMap, Capture, Kind, Token

SPECIAL = "<bos>", "[CLS]", "[SEP]"


def number_words(count: int, letter: str = "w") -> str:
    """Return so many words that are told apart, "w0 w1 w2" and so on."""
    return " ".join(f"{letter}{i}" for i in range(count))


def make_tokens(
    words: str | Iterable[str], special: Collection[str] = SPECIAL
) -> tuple[Token, ...]:
    """Make tokens of words that stand in a text with a space between two.

    words: one string of them, or one each; special: the names of tokens that stand for no text.
    """
    tokens, start = [], 0
    for i, word in enumerate(words.split() if isinstance(words, str) else words):
        if word in special:
            tokens.append(Token(word, i, start, start, True))
            continue
        tokens.append(Token(word, i, start, start + len(word), False))
        start += len(word) + 1
    return tuple(tokens)


def make_map(
    weights: np.ndarray,
    keys: str | Sequence[Token] | None = None,
    visible: np.ndarray | bool = True,
    *,
    queries: Sequence[Token] | None = None,
    kind: Kind = "self",
    measured: bool = False,
    **options: Any,
) -> AttentionMap:
    """Make a map of weights (query, key), (head, query, key) or (layer, head, query, key).

    keys: tokens or words, w0, w1 and so on without them. The queries are the keys, or in a cross
    map q0, q1 and so on, unless they are given. measured: with the statistics of the weights;
    options: other fields of the map.
    """
    full = np.asarray(weights, np.float32)
    full = full.reshape((1,) * (4 - full.ndim) + full.shape)
    n_layers, n_heads, n_queries, n_keys = full.shape
    if keys is None or isinstance(keys, str):
        keys = make_tokens(keys or number_words(n_keys))
    if queries is None:
        queries = make_tokens(number_words(n_queries, "q")) if kind == "cross" else keys
    if measured:
        options["statistics"] = measure_statistics(full, np.asarray(visible), kind != "cross")
    layers = options.pop("layers", tuple(range(n_layers)))
    heads = options.pop("heads", tuple(range(n_heads)))
    sides = tuple(queries), tuple(keys)
    return AttentionMap(kind, layers, heads, *sides, full, np.asarray(visible), **options)


def make_capture(
    weights: np.ndarray,
    keys: str | Sequence[Token] | None = None,
    visible: np.ndarray | bool = True,
    *,
    text: str | None = None,
    **options: Any,
) -> Capture:
    """Make a capture of one map, which ``make_map`` makes of the same arguments.

    text: that of the tokens that are not special, where it is not given.
    """
    part = make_map(weights, keys, visible, **options)
    if text is None:
        text = " ".join(token.text for token in part.keys if not token.special)
    return Capture("toy", text, (part,))


def require_slices(tokens: Sequence[Token], *texts: str) -> None:
    """Require every token that is not special to be a slice of its text.

    Together they leave out nothing but white space.
    """
    for segment, text in enumerate(texts):
        covered = set[int]()
        for token in tokens:
            if token.segment == segment and not token.special:
                assert token.text == text[token.start : token.end]
                covered.update(range(token.start, token.end))
        assert all(sign.isspace() for place, sign in enumerate(text) if place not in covered)
