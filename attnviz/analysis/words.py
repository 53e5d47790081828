"""Tokens -> words: tokenizers cut a text in ways of their own, words stand in the text and are the same for all.

A word is what stands between two word boundaries of Unicode (UAX #29, default rules): letters, digits and what joins
them, as in ``don't`` and ``3.14159``; a run of katakana; a sign of Han, hiragana or Thai; an emoji with all that is
joined to it. Every other visible sign is a word of its own. White space, control characters and what Unicode has
ignored where it cannot be drawn (Default_Ignorable_Code_Point: joiners, soft hyphens, marks of direction) are no words.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.statistics import describe
from attnviz.record import AttentionMap, Capture, Floats, Token, Visible

Texts: TypeAlias = tuple[str, ...]  # by segment

EXTENDING = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]"
SEEN = r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]"
NOTE = "words: weights of the pieces of a key are summed, those of a query averaged"
SEVERAL = -1  # the id of a word of several tokens
OWN = -1  # in the place of a segment: that of tokens of no word


class Span(NamedTuple):
    """Where a word stands, in characters of its text."""

    start: int
    end: int


class Grouping(NamedTuple):
    """The words of tokens, and those tokens that belong to no word, in the order of the text."""

    words: tuple[Token, ...]
    members: tuple[tuple[int, ...], ...]
    """The places of the tokens of each, at least one."""


class Order(NamedTuple):
    """Tokens sorted by their words."""

    places: npt.NDArray[np.int64]
    """(token,): the place of each."""
    starts: npt.NDArray[np.int64]
    """(word,): where each word begins among them."""


def word_spans(text: str) -> tuple[Span, ...]:
    """Where the words of a text stand, in rising order, white space at their ends left out.

    >>> [text[start:end] for text in ["Don't — 3.14"] for start, end in word_spans(text)]
    ["Don't", '—', '3.14']
    """
    parts, seen = patterns()
    return tuple(
        trimmed(text, *match.span())
        for match in parts.finditer(text)
        if seen.search(text, *match.span())
    )


def trimmed(text: str, start: int, end: int) -> Span:
    """A part of a text without the white space at its ends: a mark may stand on a space."""
    piece = text[start:end]
    return Span(end - len(piece.lstrip()), start + len(piece.rstrip()))


@cache
def patterns() -> tuple[Any, Any]:
    r"""What stands between two boundaries (UAX #29, revision 45, rules WB3 to WB16), and a visible sign.

    The rules are written out since ``\b`` of ``regex`` breaks some of them: with its flag WORD it does not part a half
    flag from what follows, or a mark that begins a text. The classes of signs are its own, of the newest Unicode.
    """
    import regex  # of use here only, and felt when a command starts

    line = r"[\p{WB=CR}\p{WB=LF}\p{WB=Newline}]"
    letter, hebrew, digit = (
        signs("ALetter", "Hebrew_Letter"),
        signs("Hebrew_Letter"),
        signs("Numeric"),
    )
    in_letters, in_digits = (
        signs(name, "MidNumLet", "Single_Quote") for name in ("MidLetter", "MidNum")
    )
    katakana, joining, flag = signs("Katakana"), signs("ExtendNumLet"), signs("Regional_Indicator")
    single, double = signs("Single_Quote"), signs("Double_Quote")
    letters = f"(?:{hebrew}{double}(?={hebrew})|{letter}(?:{in_letters}(?={letter}))?)++"  # WB5 to WB7, WB7b and c
    digits = f"(?:{digit}(?:{in_digits}(?={digit}))?)++"  # WB8, WB11, WB12
    run = f"(?:(?:{letters}|{digits})++|(?:{katakana})++)"  # WB9, WB10, WB13
    joined = f"(?:{run}|(?={joining}))(?:(?:{joining})++{run}?)*+"  # WB13a and b
    quoted = rf"(?:(?<=\p{{WB=Hebrew_Letter}}{EXTENDING}*){single})?"  # WB7a
    space = rf"\p{{WB=WSegSpace}}++{EXTENDING}*+"  # WB3d
    other = f"(?!{line}).{EXTENDING}*+"  # WB4
    part = f"(?:{joined}{quoted}|{space}|{flag}(?:{flag})?+|{other})"  # WB15, WB16
    return regex.compile(
        rf"(?s)\r\n|{line}|{part}(?:(?<=\u200d)(?=\p{{ExtPict}}){part})*+"
    ), regex.compile(SEEN)


def signs(*classes: str) -> str:
    """A pattern of a sign of these classes of Unicode (Word_Break), with what extends it."""
    named = "".join(map(r"\p{{WB={}}}".format, classes))
    return f"[{named}]{EXTENDING}*+"


def coarsened(spans: Sequence[Span], tokens: Sequence[Token]) -> tuple[Span, ...]:
    """Words that one token crosses made one, so that each of these tokens of the text lies in one word at most.

    Done for two tokenizers in turn, both have the same words.
    """
    opened = np.zeros(len(spans) + 1, int)
    for token in tokens:
        words = crossed(token, spans)
        if words:
            opened[words.start] += 1
            opened[words.stop - 1] -= 1
    joined = opened.cumsum() > 0  # (word,): whether it and the next are one
    firsts = [i for i in range(len(spans)) if i == 0 or not joined[i - 1]]
    return tuple(Span(spans[i].start, spans[j - 1].end) for i, j in pairwise([*firsts, len(spans)]))


def crossed(token: Token, spans: Sequence[Span]) -> range:
    """The places of the words that a token has a part of: none if it is special or stands for no text."""
    if token.special or token.start == token.end:
        return range(0)
    first = bisect_right(spans, token.start, key=lambda span: span.end)
    return range(first, bisect_left(spans, token.end, key=lambda span: span.start))


def grouped(
    tokens: Sequence[Token], texts: Sequence[str], spans: Sequence[Sequence[Span]] | None = None
) -> Grouping:
    """The words of tokens. texts: one a segment. spans: the words to use instead of the texts' own, likewise.

    Words that a token crosses are one. A token of no word (a special one, white space, one that stands for no text) is
    a unit of its own. A word has the id of its only token, or -1.
    """
    found = [word_spans(text) for text in texts] if spans is None else spans
    words = [
        coarsened(of, [token for token in tokens if token.segment == i])
        for i, of in enumerate(found)
    ]
    members: dict[tuple[int, int], list[int]] = {}  # by segment and word
    for place, token in enumerate(tokens):
        inside = crossed(token, words[token.segment]) if token.segment in range(len(words)) else ()
        members.setdefault((token.segment, inside[0]) if inside else (OWN, place), []).append(place)
    units = (
        tokens[number]
        if segment == OWN
        else word(texts[segment], words[segment][number], [tokens[i] for i in places])
        for (segment, number), places in members.items()
    )
    return Grouping(tuple(units), tuple(map(tuple, members.values())))


def word(text: str, span: Span, pieces: Sequence[Token]) -> Token:
    """A word as a token."""
    number = pieces[0].id if len(pieces) == 1 else SEVERAL
    return Token(text[slice(*span)], number, *span, False, pieces[0].segment)


def merged(part: AttentionMap, queries: Grouping, keys: Grouping) -> AttentionMap:
    """A map of words: the weights of the tokens of a key summed, those of a query averaged, so that rows sum to 1.

    Clark et al. 2019, "What Does BERT Look At?". Tokens that see no key say nothing in the average. A cell is visible
    where any of its tokens' cells is. Statistics are made anew where there were some; a map that shows a part of a text
    merges what is there. Raises ValueError for a map without weights, or of maxima over heads, which cannot be summed.
    """
    if part.weights is None:
        raise ValueError("this capture holds no weights, of which words are made: keep weights")
    if "max" in part.heads:
        raise ValueError("maxima over heads cannot be summed: merge the words before the heads")
    rows, columns = order(queries), order(keys)
    once = (slice(None, 1) if stride == 0 else slice(None) for stride in part.visible.strides[:2])
    seen: npt.ArrayLike = part.visible[(*once,)]
    for by, axis in ((columns, 3), (rows, 2)):
        seen = together(np.logical_or, seen, by, axis)
    weights = np.empty((*part.weights.shape[:2], len(queries.words), len(keys.words)), np.float32)
    for at in np.ndindex(weights.shape[:2]):
        weights[at] = merged_head(part.weights[at], part.visible[at], rows, columns)
    visible = np.broadcast_to(seen, weights.shape)
    square = queries == keys and part.kind != "cross"
    of_heads = part.statistics is not None and all(isinstance(head, int) for head in part.heads)
    return AttentionMap(
        part.kind,
        part.layers,
        part.heads,
        queries.words,
        keys.words,
        weights,
        visible,
        part.method,
        statistics=describe(weights, visible, square) if of_heads else None,
        query_places=places(part.query_places, queries),
        key_places=places(part.key_places, keys),
        unit="word",
    )


def merged_head(
    weights: Floats, visible: Visible, rows: Order, columns: Order
) -> npt.NDArray[np.float64]:
    """The weights of one head (query, key) between words, (word, word), in float64."""
    sums = together(np.add, together(np.add, weights, columns, 1, np.float64), rows, 0)
    seeing = together(
        np.add, visible.any(-1), rows, 0, np.float64
    )  # (word,): its tokens that see a key
    mean: npt.NDArray[np.float64] = sums / np.maximum(seeing, 1)[:, None]
    return mean


def order(grouping: Grouping) -> Order:
    """Tokens sorted by their words; those of one word need not be neighbours."""
    starts = accumulate(map(len, grouping.members[:-1]), initial=0)
    return Order(np.concatenate(grouping.members), np.fromiter(starts, np.int64))


def together(
    how: np.ufunc, array: npt.ArrayLike, by: Order, axis: int, dtype: Any = None
) -> npt.NDArray[Any]:
    """The tokens along an axis of an array made words."""
    found: npt.NDArray[Any] = how.reduceat(np.take(array, by.places, axis), by.starts, axis, dtype)
    return found


def places(of_tokens: Sequence[int], grouping: Grouping) -> tuple[int, ...]:
    """The places of words: counted, or of a part of a text, where the first tokens of the words stand in the whole."""
    if tuple(of_tokens) == tuple(range(len(of_tokens))):
        return ()
    return tuple(of_tokens[members[0]] for members in grouping.members)


def texts_of(capture: Capture, part: AttentionMap) -> tuple[Texts, Texts]:
    """The texts in which the queries of a map stand, and its keys."""
    text: Texts = (capture.text,) if capture.pair is None else (capture.text, capture.pair)
    target: Texts = (capture.target or "",)
    return target if part.kind in (
        "decoder",
        "cross",
    ) else text, target if part.kind == "decoder" else text


def in_words(capture: Capture) -> Capture:
    """A capture with all its maps between words; what is in words already stays as it is.

    Raises ValueError as ``merged`` does, and if there is no text to find words in, as of tokens that are only numbers.
    """
    if all(part.unit == "word" for part in capture.maps):
        return capture
    if not (capture.text or capture.target):
        raise ValueError("these tokens are numbers without a text, in which words could be found")
    side = cache(grouped)  # most maps have the same

    def merge(part: AttentionMap) -> AttentionMap:
        queries, keys = texts_of(capture, part)
        return (
            part
            if part.unit == "word"
            else merged(part, side(part.queries, queries), side(part.keys, keys))
        )

    return replace(capture, maps=tuple(map(merge, capture.maps)), notes=(*capture.notes, NOTE))
