"""Tokens made words: each tokenizer cuts a text in its own way, words are the same for all.

A word is what stands between two word boundaries of Unicode (UAX #29, default rules): letters,
digits and what joins them, as in ``don't`` and ``3.14159``; a run of katakana; a sign of Han,
hiragana or Thai; an emoji with all that is joined to it. Every other visible sign is a word of its
own. White space, control characters and what Unicode has ignored where it cannot be drawn
(Default_Ignorable_Code_Point: joiners, soft hyphens, marks of direction) are no words.

A map of tokens becomes one of words in two steps: the weights of the tokens of a key are summed,
and those of a query averaged. So rows that sum to 1 still do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.numerics import collapse_repeats
from attnviz.analysis.statistics import measure_statistics
from attnviz.record import (
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    Token,
    Visible,
)

Texts: TypeAlias = tuple[str, ...]  # by segment

EXTENDING = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]"
SEEN = r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]"
WORDS_NOTE = "words: weights of the pieces of a key are summed, those of a query averaged"
SEVERAL = -1  # the id of a word of several tokens
NO_WORD = -1  # stands in place of a segment for a token that belongs to no word


class WordSpan(NamedTuple):
    """The characters of its text that a word has."""

    start: int
    end: int


class Grouping(NamedTuple):
    """The words of tokens, and the tokens that belong to no word, in the order of the text."""

    words: tuple[Token, ...]
    members: tuple[tuple[int, ...], ...]
    """The positions of the tokens of each, at least one."""


class TokenOrder(NamedTuple):
    """Tokens sorted by their words."""

    positions: npt.NDArray[np.int64]
    """(token,): the positions of the tokens, word after word."""
    starts: npt.NDArray[np.int64]
    """(word,): where each word begins among them."""


def find_word_spans(text: str) -> tuple[WordSpan, ...]:
    """Find the words of a text, in rising order, white space at their ends left out.

    >>> [text[start:end] for text in ["Don't — 3.14"] for start, end in find_word_spans(text)]
    ["Don't", '—', '3.14']
    """
    piece_pattern, visible_pattern = compile_patterns()
    spans = []
    for match in piece_pattern.finditer(text):
        start, end = match.span()
        if visible_pattern.search(text, start, end):
            spans.append(trim_span(text, start, end))
    return tuple(spans)


def trim_span(text: str, start: int, end: int) -> WordSpan:
    """Return a span of a text without the white space at its ends.

    There may be some even in a word, since a combining mark can stand on a space.
    """
    piece = text[start:end]
    trimmed_start = end - len(piece.lstrip())
    trimmed_end = start + len(piece.rstrip())
    return WordSpan(trimmed_start, trimmed_end)


@cache
def compile_patterns() -> tuple[Any, Any]:
    r"""Compile the patterns of a piece between two word boundaries, and of a visible sign.

    Boundaries are those of UAX #29, revision 45, rules WB3 to WB16. The rules are written out since
    ``\b`` of ``regex`` breaks some of them: with its flag WORD it does not part a half flag from
    what follows, or a mark that begins a text. The classes of signs are its own, of the newest
    Unicode.
    """
    import regex  # of use here only, and felt when a command starts

    line = r"[\p{WB=CR}\p{WB=LF}\p{WB=Newline}]"
    letter = make_sign_pattern("ALetter", "Hebrew_Letter")
    hebrew = make_sign_pattern("Hebrew_Letter")
    digit = make_sign_pattern("Numeric")
    in_letters = make_sign_pattern("MidLetter", "MidNumLet", "Single_Quote")
    in_digits = make_sign_pattern("MidNum", "MidNumLet", "Single_Quote")
    katakana = make_sign_pattern("Katakana")
    joining = make_sign_pattern("ExtendNumLet")
    flag = make_sign_pattern("Regional_Indicator")
    single, double = make_sign_pattern("Single_Quote"), make_sign_pattern("Double_Quote")
    quoted_hebrew = f"{hebrew}{double}(?={hebrew})"  # WB7b and c
    joined_letter = f"{letter}(?:{in_letters}(?={letter}))?"  # WB6, WB7
    letters = f"(?:{quoted_hebrew}|{joined_letter})++"  # WB5
    digits = f"(?:{digit}(?:{in_digits}(?={digit}))?)++"  # WB8, WB11, WB12
    run = f"(?:(?:{letters}|{digits})++|(?:{katakana})++)"  # WB9, WB10, WB13
    joined = f"(?:{run}|(?={joining}))(?:(?:{joining})++{run}?)*+"  # WB13a and b
    quoted = rf"(?:(?<=\p{{WB=Hebrew_Letter}}{EXTENDING}*){single})?"  # WB7a
    space = rf"\p{{WB=WSegSpace}}++{EXTENDING}*+"  # WB3d
    other = f"(?!{line}).{EXTENDING}*+"  # WB4
    flags = f"{flag}(?:{flag})?+"  # WB15, WB16
    piece = f"(?:{joined}{quoted}|{space}|{flags}|{other})"
    emoji = rf"(?:(?<=\u200d)(?=\p{{ExtPict}}){piece})*+"
    piece_pattern = regex.compile(rf"(?s)\r\n|{line}|{piece}{emoji}")
    return piece_pattern, regex.compile(SEEN)


def make_sign_pattern(*classes: str) -> str:
    """Make a pattern of a sign of these classes of Unicode (Word_Break), with what extends it."""
    properties = [rf"\p{{WB={name}}}" for name in classes]
    union = "".join(properties)
    return f"[{union}]{EXTENDING}*+"


def coarsen_spans(spans: Sequence[WordSpan], tokens: Sequence[Token]) -> tuple[WordSpan, ...]:
    """Join neighbouring words that one token overlaps, so that each token lies in one at most.

    spans: the words of the text, in rising order. tokens: those of this text. When this is done for
    the tokens of two tokenizers in turn, both have the same words.
    """
    crossing_changes = np.zeros(len(spans) + 1, int)
    for token in tokens:
        words = find_crossed_words(token, spans)
        if words:
            crossing_changes[words.start] += 1
            crossing_changes[words.stop - 1] -= 1
    joins_next = crossing_changes.cumsum() > 0  # (word,): True if it and the next are one
    joined: list[WordSpan] = []
    for number, span in enumerate(spans):
        if number > 0 and joins_next[number - 1]:
            before = joined.pop()
            joined.append(WordSpan(before.start, span.end))
        else:
            joined.append(span)
    return tuple(joined)


def find_crossed_words(token: Token, spans: Sequence[WordSpan]) -> range:
    """Find the words that a token overlaps, as a range of indices of the spans.

    spans: the words of the token's text, in rising order. The range is empty if the token is
    special or stands for no text.
    """
    if token.special or token.start == token.end:
        return range(0)
    first = bisect_right(spans, token.start, key=end_of_span)
    stop = bisect_left(spans, token.end, key=start_of_span)
    return range(first, stop)


def start_of_span(span: WordSpan) -> int:
    """Return the start of a span, as a key to search by."""
    return span.start


def end_of_span(span: WordSpan) -> int:
    """Return the end of a span, as a key to search by."""
    return span.end


def group_tokens(
    tokens: Sequence[Token],
    texts: Sequence[str],
    spans: Sequence[Sequence[WordSpan]] | None = None,
) -> Grouping:
    """Group tokens by the words that they are pieces of.

    texts: the text of each segment; there are two segments for a pair of texts. spans: for each
    segment the words to use, instead of those that are found in its text. Words that one token
    overlaps are joined. A token of no word (a special one, white space, one that stands for no
    text) is a unit of its own. Returns the words as tokens, with the positions of the tokens of
    each. A word has the id of its only token, or -1.
    """
    if spans is None:
        spans = [find_word_spans(text) for text in texts]
    words = []
    for segment, spans_of_segment in enumerate(spans):
        tokens_of_segment = [token for token in tokens if token.segment == segment]
        words.append(coarsen_spans(spans_of_segment, tokens_of_segment))
    # By segment and number of the word.
    members: dict[tuple[int, int], list[int]] = {}
    for position, token in enumerate(tokens):
        segment = token.segment
        crossed = range(0)
        if segment in range(len(words)):
            crossed = find_crossed_words(token, words[segment])
        unit = (segment, crossed[0]) if crossed else (NO_WORD, position)
        members.setdefault(unit, []).append(position)
    units: list[Token] = []
    for (segment, number), positions in members.items():
        if segment == NO_WORD:
            units.append(tokens[number])
            continue
        span = words[segment][number]
        pieces = [tokens[position] for position in positions]
        units.append(make_word(texts[segment], span, pieces))
    member_tuples = map(tuple, members.values())
    return Grouping(tuple(units), tuple(member_tuples))


def make_word(text: str, span: WordSpan, pieces: Sequence[Token]) -> Token:
    """Make one token that stands for a word of a text.

    span: the characters of the word. pieces: the tokens that it is made of. If there is only one,
    the word has its id, else the id SEVERAL.
    """
    start, end = span
    first = pieces[0]
    number = first.id if len(pieces) == 1 else SEVERAL
    characters = text[start:end]
    return Token(characters, number, start, end, False, first.segment)


def merge_tokens(attention_map: AttentionMap, queries: Grouping, keys: Grouping) -> AttentionMap:
    """Merge a map of tokens to one of words.

    queries, keys: the words of the queries and of the keys, with the tokens of each. The weights of
    the tokens of a key are summed, those of a query averaged, so that rows sum to 1 (Clark et al.
    2019, "What Does BERT Look At?"). Tokens of a query that see no key are left out of its average.
    A cell is visible where any of its tokens' cells is. Statistics are measured anew where there
    were some. In a map that shows a part of a text, what is there is merged.

    Raises ValueError for a map without weights, or of maxima over heads, which cannot be summed.
    """
    token_weights, token_visible = attention_map.weights, attention_map.visible
    if token_weights is None:
        raise ValueError("this capture holds no weights, of which words are made: keep weights")
    if "max" in attention_map.heads:
        raise ValueError("maxima over heads cannot be summed: merge the words before the heads")
    rows, columns = sort_by_words(queries), sort_by_words(keys)
    visible = collapse_repeats(token_visible, 2)
    visible = reduce_words(np.logical_or, visible, columns, axis=3)
    visible = reduce_words(np.logical_or, visible, rows, axis=2)
    lead = token_weights.shape[:2]
    shape = *lead, len(queries.words), len(keys.words)
    weights = np.empty(shape, np.float32)
    for index in np.ndindex(lead):
        head_weights, head_visible = token_weights[index], token_visible[index]
        weights[index] = merge_head(head_weights, head_visible, rows, columns)
    visible = np.broadcast_to(visible, shape)
    has_statistics = attention_map.statistics is not None
    has_numbered_heads = all(isinstance(head, int) for head in attention_map.heads)
    is_square = queries == keys and attention_map.kind != "cross"
    statistics = None
    if has_statistics and has_numbered_heads:
        statistics = measure_statistics(weights, visible, is_square)
    query_positions = find_word_positions(attention_map.query_places, queries)
    key_positions = find_word_positions(attention_map.key_places, keys)
    return AttentionMap(
        kind=attention_map.kind,
        layers=attention_map.layers,
        heads=attention_map.heads,
        queries=queries.words,
        keys=keys.words,
        weights=weights,
        visible=visible,
        method=attention_map.method,
        statistics=statistics,
        query_places=query_positions,
        key_places=key_positions,
        unit="word",
    )


def merge_head(weights: Floats, visible: Visible, rows: TokenOrder, columns: TokenOrder) -> Doubles:
    """Merge weights of one head, (query token, key token), to (query word, key word) in float64.

    visible: the mask of the weights. rows, columns: the query tokens and the key tokens, sorted by
    word. Weights are summed over the tokens of a key word, and averaged over those tokens of a
    query word that see a key.
    """
    key_sums = reduce_words(np.add, weights, columns, axis=1, dtype=np.float64)
    sums = reduce_words(np.add, key_sums, rows, axis=0)
    sees_key = visible.any(-1)  # (query,)
    seeing_counts = reduce_words(np.add, sees_key, rows, axis=0, dtype=np.float64)  # (word,)
    divisors = np.maximum(seeing_counts, 1)
    means: Doubles = sums / divisors[:, None]
    return means


def sort_by_words(grouping: Grouping) -> TokenOrder:
    """List the positions of tokens word after word, and where each word begins in this list.

    The tokens of one word need not be neighbours in the text.
    """
    lengths = map(len, grouping.members[:-1])
    starts = accumulate(lengths, initial=0)
    positions = np.concatenate(grouping.members)
    return TokenOrder(positions, np.fromiter(starts, np.int64))


def reduce_words(
    operation: np.ufunc,
    array: npt.ArrayLike,
    order: TokenOrder,
    axis: int,
    dtype: Any = None,
) -> npt.NDArray[Any]:
    """Reduce the tokens along one axis of an array to words, by adding or another operation.

    operation: a function such as np.add. order: the tokens sorted by word. dtype: the type to
    compute in, by default that of the array.
    """
    sorted_array = np.take(array, order.positions, axis)
    words: npt.NDArray[Any] = operation.reduceat(sorted_array, order.starts, axis, dtype)
    return words


def find_word_positions(token_positions: Sequence[int], grouping: Grouping) -> tuple[int, ...]:
    """Return for each word of a map the position in the text of its first token.

    Positions count the tokens of the whole text from 0. If the map begins with the text, an empty
    tuple is returned, which tells that its words are numbered from 0 as they stand.

    token_positions: the positions of the tokens of the map. grouping: the words of these tokens.
    """
    whole_text = tuple(range(len(token_positions)))
    if tuple(token_positions) == whole_text:
        return ()
    return tuple(token_positions[members[0]] for members in grouping.members)


def select_texts(capture: Capture, attention_map: AttentionMap) -> tuple[Texts, Texts]:
    """Select the texts that the queries of a map stand in, and those that its keys stand in.

    They are the text of the capture, and its second text if it is of a pair; or the target, which
    the decoder of an encoder-decoder reads.
    """
    texts: Texts = (capture.text,)
    if capture.pair is not None:
        texts = capture.text, capture.pair
    target: Texts = (capture.target or "",)
    if attention_map.kind == "decoder":
        return target, target
    if attention_map.kind == "cross":
        return target, texts
    return texts, texts


def convert_to_words(capture: Capture) -> Capture:
    """Return a capture with all its maps between words; maps in words already stay as they are.

    Raises ValueError for a map without weights or of maxima over heads, and if there is no text to
    find words in, as with tokens that are only numbers.
    """
    if all(each.unit == "word" for each in capture.maps):
        return capture
    if not (capture.text or capture.target):
        raise ValueError("these tokens are numbers without a text, in which words could be found")
    group_once = cache(group_tokens)  # most maps have the same tokens
    maps = []
    for each in capture.maps:
        if each.unit == "word":
            maps.append(each)
            continue
        query_texts, key_texts = select_texts(capture, each)
        queries = group_once(each.queries, query_texts)
        keys = group_once(each.keys, key_texts)
        maps.append(merge_tokens(each, queries, keys))
    notes = *capture.notes, WORDS_NOTE
    return replace(capture, maps=tuple(maps), notes=notes)
