"""Words: where they stand in a text, and what becomes of attention between tokens when it is told between words."""

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uniseg.wordbreak import words as parts_by_uniseg

import attnviz
from attnviz.analysis.statistics import measure_statistics
from attnviz.analysis.words import (
    WORDS_NOTE,
    Grouping,
    WordSpan,
    coarsen_spans,
    convert_to_words,
    find_word_spans,
    group_tokens,
    merge_tokens,
)
from attnviz.io.formats import load
from attnviz.record import AttentionMap, Capture, Token, Weights
from tests.captures import make_map
from tests.commands import require_failure
from tests.conftest import Tiny
from tests.tolerance import close

pytestmark = pytest.mark.numeric

Call = Callable[..., subprocess.CompletedProcess[str]]
SENTENCE = "Unbelievably, the naïve tokenizer's subwords misbehave — 3.14159 😀 ok."
WORDS = [
    "Unbelievably",
    ",",
    "the",
    "naïve",
    "tokenizer's",
    "subwords",
    "misbehave",
    "—",
    "3.14159",
    "😀",
    "ok",
    ".",
]
SCRIPTS = (
    "aZñß19.,:;'’\"_-—$#€·٠۱ابאב׳״եացカーｶひ漢한각ᄒ가กไนমमि्ाΩжªⅷ²①Ⓜ \t\r\n\x85\u2028\u3000"  # noqa: RUF001
    "\u0301\u200b\u200c\u200d\u00ad\u2060\u202e\u0600\ufe0f😀👩🏽❤🇦🇧🇩\U000e0041"
)
# Default_Ignorable_Code_Point of DerivedCoreProperties.txt
IGNORED = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
RECLASSED = "\N{CEDILLA}"  # a letter since Unicode 17; uniseg is of 16


def said(text: str) -> list[str]:
    return [text[start:end] for start, end in find_word_spans(text)]


# Where words stand


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SENTENCE, WORDS),
        (
            "Don't can\u2019t rock'n'roll 'quoted'",
            ["Don't", "can\u2019t", "rock'n'roll", "'", "quoted", "'"],
        ),
        ("3.14159 1,000.50 12:30 x86", ["3.14159", "1,000.50", "12", ":", "30", "x86"]),
        ("U.S.A. snake_case e-mail", ["U.S.A", ".", "snake_case", "e", "-", "mail"]),
        ("so—dashes \u2013 here…", ["so", "—", "dashes", "\u2013", "here", "…"]),
        ("👩‍👩‍👧‍👦👍🏽🇩🇪🇫🇷🇩e", ["👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "🇫🇷", "🇩", "e"]),
        ("北京大学。", ["北", "京", "大", "学", "。"]),
        ("カタカナ ｶﾅ", ["カタカナ", "ｶﾅ"]),
        ("ひらがな漢字", ["ひ", "ら", "が", "な", "漢", "字"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("مرحبا بالعالم، ١٢٣\u066b٤", ["مرحبا", "بالعالم", "،", "١٢٣\u066b٤"]),
        ("צה\"ל ג'", ['צה"ל', "ג'"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया", "।"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("one\r\ntwo\n\n three\t", ["one", "two", "three"]),
        ("cafe\u0301 \u0301x", ["cafe\u0301", "\u0301", "x"]),
        ("a\u200bb \u200b \ufeff soft\xadly \x07", ["a", "b", "soft\xadly"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_stand_where_unicode_has_them(text: str, words: list[str]) -> None:
    """Words of each script, numbers, joined emoji and flags are one; what cannot be seen is none."""
    assert said(text) == words


def is_seen(sign: str) -> bool:
    """Whether a sign is neither white space nor a control character, and not ignored where it cannot be drawn."""
    return not (sign.isspace() or unicodedata.category(sign) == "Cc" or IGNORED.match(sign))


@given(st.text(st.sampled_from(SCRIPTS)) | st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_words_are_those_of_another_library(text: str) -> None:
    """Texts of many scripts fall into the words that uniseg finds, white space and the invisible left out."""
    text = text.replace(RECLASSED, "")
    assert said(text) == [part.strip() for part in parts_by_uniseg(text) if any(map(is_seen, part))]


@given(st.text(st.sampled_from(SCRIPTS)))
def test_words_rise_and_hold_all_that_is_seen(text: str) -> None:
    """Words do not overlap, stand in order, and no visible sign is outside them."""
    spans = find_word_spans(text)
    assert all(last.end <= next_.start for last, next_ in pairwise(spans))
    inside = {i for start, end in spans for i in range(start, end)}
    assert {i for i, sign in enumerate(text) if is_seen(sign)} <= inside


# Words and tokens


@st.composite
def cut(draw: st.DrawFn, text: str) -> tuple[Token, ...]:
    """A text as the tokens of a tokenizer that cuts anywhere, and covers all of it or not."""
    places = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=8))})
    spans = [span for span in pairwise(places) if draw(st.integers(0, 9))]
    return tuple(Token.of("", i, span, False, text) for i, span in enumerate(spans))


TEXTS = st.text(st.sampled_from("ab '.—1漢😀🏽\u200d"), min_size=1, max_size=20)


@given(TEXTS.flatmap(lambda text: st.tuples(st.just(text), cut(text), cut(text))))
def test_two_tokenizers_have_the_same_words(
    case: tuple[str, tuple[Token, ...], tuple[Token, ...]],
) -> None:
    """Words made coarser for two tokenizers in turn hold each token of both whole, in whatever turn."""
    text, one, other = case
    spans = coarsen_spans(coarsen_spans(find_word_spans(text), one), other)
    assert spans == coarsen_spans(coarsen_spans(find_word_spans(text), other), one)
    for token in (*one, *other):
        assert (
            sum(
                start < token.end and token.start < end
                for start, end in spans
                if token.start < token.end
            )
            <= 1
        )


def test_a_token_across_words_makes_them_one() -> None:
    """A piece over a space or over two signs of Han joins the words that it crosses, and no others."""
    text = "in New York 北京市"
    tokens = (
        Token("New York", 1, 3, 11, False),
        Token("北京", 2, 12, 14, False),
        Token("in New", 3, 0, 6, True),
    )
    assert [text[start:end] for start, end in coarsen_spans(find_word_spans(text), tokens)] == [
        "in",
        "New York",
        "北京",
        "市",
    ]


def test_groups_follow_the_text() -> None:
    """Pieces of a word are together; special tokens, white space and what stands for no text are units of their own."""
    text, second = "un do\n😀", "un"
    tokens = (
        Token("[CLS]", 101, 0, 0, True),
        Token("u", 7, 0, 1, False),
        Token("", 8, 1, 1, False),
        Token("n", 9, 1, 2, False),
        Token("do", 10, 3, 5, False),
        Token("\n", 11, 5, 6, False),
        Token("😀", 12, 6, 7, False),
        Token("😀", 13, 6, 7, False),
        Token("[SEP]", 102, 0, 0, True),
        Token("un", 14, 0, 2, False, 1),
        Token("?", 15, 0, 1, False, 2),
    )
    found = group_tokens(tokens, (text, second))
    assert found.members == ((0,), (1, 3), (2,), (4,), (5,), (6, 7), (8,), (9,), (10,))
    assert found.words[1] == Token("un", -1, 0, 2, False)
    assert found.words[5] == Token("😀", -1, 6, 7, False)
    assert [found.words[i] for i in (0, 2, 3, 4, 6, 7, 8)] == [
        tokens[i] for i in (0, 2, 4, 5, 8, 9, 10)
    ]


def test_groups_take_the_words_that_are_given() -> None:
    """Words of one's own replace those of the text, one list a segment."""
    tokens = tuple(Token(part, i, 2 * i, 2 * i + 1, False) for i, part in enumerate("abc"))
    found = group_tokens(tokens, ("a b c",), [[WordSpan(0, 3), WordSpan(4, 5)]])
    assert found.members == ((0, 1), (2,))
    assert [word.text for word in found.words] == ["a b", "c"]


# Merging


@st.composite
def maps(draw: st.DrawFn) -> tuple[AttentionMap, Grouping]:
    """Weights of a few tokens, and words of neighbouring ones."""
    n, heads = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = random.dirichlet(np.full(n, 0.5), (heads, n)).astype(np.float32)
    tokens = tuple(Token(f"t{i}", i, i, i + 1, False) for i in range(n))
    starts = [0, *(i for i in range(1, n) if draw(st.booleans())), n]
    members = tuple(tuple(range(*ends)) for ends in pairwise(starts))
    return make_map(weights, tokens, measured=True), Grouping(
        tuple(tokens[places[0]] for places in members), members
    )


def merged_by_clark(weights: Weights, words: Sequence[Sequence[int]]) -> np.ndarray:
    """``get_word_word_attention`` of Clark et al. 2019 (bpe_utils.py, mode "mean"), step by step."""
    found = np.array(weights, np.float64)
    later = [place for word in words for place in word[1:]]
    for word in words:
        found[:, word[0]] = found[:, list(word)].sum(-1)
    found = np.delete(found, later, -1)
    for word in words:
        found[word[0]] = np.mean(found[list(word)], axis=0)
    return np.delete(found, later, 0)


@given(maps())
def test_merging_is_that_of_clark(case: tuple[AttentionMap, Grouping]) -> None:
    """Each head is merged as in the paper's own code, to the rounding of float32."""
    part, words = case
    found = merge_tokens(part, words, words)
    for i, weights in enumerate(part.weights[0]):
        np.testing.assert_allclose(
            found.weights[0, i], merged_by_clark(weights, words.members), atol=1e-7
        )


@given(maps())
def test_rows_of_words_sum_to_one(case: tuple[AttentionMap, Grouping]) -> None:
    """Nothing is lost or made: what rows sum to stays 1, and so does what the statistics say of it."""
    part, words = case
    found = merge_tokens(part, words, words)
    np.testing.assert_allclose(found.weights.sum(-1, dtype=np.float64), 1, **close(64))
    expected = measure_statistics(found.weights, found.visible, True)
    for name in ("entropy", "received", "sink", "distance", "diagonal", "previous"):
        np.testing.assert_array_equal(getattr(found.statistics, name), getattr(expected, name))


@given(maps())
def test_heads_are_merged_alone(case: tuple[AttentionMap, Grouping]) -> None:
    """To turn the heads round and then merge is to merge and then turn them round."""
    part, words = case
    turned = range(len(part.heads) - 1, -1, -1)
    one, other = (
        merge_tokens(part.pick_heads([0], turned), words, words),
        merge_tokens(part, words, words).pick_heads([0], turned),
    )
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.heads == other.heads


@given(maps())
def test_words_of_one_token_change_nothing(case: tuple[AttentionMap, Grouping]) -> None:
    """Merging words that are tokens gives the same weights, tokens and statistics."""
    part, _ = case
    alone = Grouping(part.queries, tuple((i,) for i in range(len(part.queries))))
    found = merge_tokens(part, alone, alone)
    np.testing.assert_array_equal(found.weights, part.weights)
    np.testing.assert_array_equal(found.statistics.entropy, part.statistics.entropy)
    assert (found.queries, found.keys, found.unit) == (part.queries, part.keys, "word")


def pieces(text: str, *spans: tuple[int, int]) -> tuple[Token, ...]:
    return tuple(Token.of("", i, span, False, text) for i, span in enumerate(spans))


def test_pieces_need_not_be_neighbours() -> None:
    """Tokens of one word are merged wherever they stand among the others."""
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 4)).astype(np.float32)
    part = make_map(weights, "a b c d", measured=True)
    words = Grouping(part.queries[:2], ((0, 2, 3), (1,)))
    found = merge_tokens(part, words, words).weights[0]
    np.testing.assert_allclose(found[:, 1, 0], weights[:, 1, [0, 2, 3]].sum(-1), **close(4))
    np.testing.assert_allclose(found[:, 0, 1], weights[:, [0, 2, 3], 1].mean(-1), **close(4))


def test_a_cell_is_visible_where_a_piece_is() -> None:
    """Causal tokens make words that see themselves; a query that sees nothing has no part in the average."""
    tokens = pieces("abc d", (0, 1), (1, 2), (2, 3), (4, 5))
    visible = np.tri(4, dtype=bool)
    visible[0] = False
    weights = (visible / np.maximum(visible.sum(-1, keepdims=True), 1)).astype(np.float32)
    part = make_map(np.stack([weights[None]] * 2), tokens, visible)
    words = group_tokens(tokens, ("abc d",))
    found = merge_tokens(part, words, words)
    np.testing.assert_array_equal(
        found.visible, np.broadcast_to(np.tri(2, dtype=bool), (2, 1, 2, 2))
    )
    np.testing.assert_allclose(found.weights[0, 0], [[1, 0], [0.75, 0.25]], atol=1e-7)
    assert found.statistics is None


def test_a_window_merges_what_is_there() -> None:
    """Of a part of a text, words are made of the pieces in it, and stand where the first of these does."""
    weights = np.full((1, 5, 5), 0.2, np.float32)
    tokens = pieces("ab cd e", (0, 1), (1, 2), (3, 4), (4, 5), (6, 7))
    part = make_map(weights, tokens, measured=True).window(range(1, 4), range(5))
    capture = convert_to_words(Capture("toy", "ab cd e", (part,)))
    (found,) = capture.maps
    assert [word.text for word in found.queries] == ["ab", "cd"]
    assert found.query_places == (1, 2)
    assert found.key_places == (0, 1, 2)
    np.testing.assert_allclose(found.weights[0, 0], [[0.4, 0.4, 0.2]] * 2, atol=1e-7)


def test_heads_merged_before_have_no_statistics_of_heads() -> None:
    """A mean over heads is merged as a head is; maxima cannot be, and that is said."""
    part = make_map(np.full((2, 2, 2), 0.5), pieces("ab", (0, 1), (1, 2)), measured=True)
    words = group_tokens(part.queries, ("ab",))
    mean = merge_tokens(part.reduced("mean"), words, words)
    assert (mean.weights.tolist(), mean.statistics) == ([[[[1.0]]]], None)
    with pytest.raises(ValueError, match="maxima over heads"):
        merge_tokens(part.reduced("max"), words, words)
    with pytest.raises(ValueError, match="no weights"):
        merge_tokens(replace(part, weights=None), words, words)


# Of models


def require_words(capture: Capture, words: Sequence[str] = WORDS) -> AttentionMap:
    """A map between these words, and units for other tokens, whose rows sum to 1."""
    found = convert_to_words(capture)
    assert found.notes == (*capture.notes, WORDS_NOTE)
    for part in found.maps:
        assert part.unit == "word"
        np.testing.assert_allclose(part.weights.sum(-1, dtype=np.float64), 1, **close(64))
        assert [token.text for token in part.queries if token.text in words] == list(words)
    return found.maps[0]


@pytest.mark.exact
def test_minilm_in_words(minilm: Path) -> None:
    """Fifteen words of a tokenizer of word pieces: the hard sentence, and two special tokens."""
    part = require_words(attnviz.capture(SENTENCE, model=str(minilm)))
    assert [token.text for token in part.keys] == ["[CLS]", *WORDS, "[SEP]"]
    assert part.weights.shape == (6, 12, 14, 14)


def test_the_builtin_model_in_words() -> None:
    """Spaces that are tokens of their own stay so, and rows sum to 1."""
    part = require_words(attnviz.capture(SENTENCE))
    assert {token.text for token in part.keys} == {"<bos>", " ", *WORDS}
    assert bool(part.visible[0, 0].all()) is False
    assert part.statistics.distance.shape == (3, 6)


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_tokens_of_bytes_in_words(tiny: Tiny, name: str) -> None:
    """Bytes that share the place of one sign are one word with it."""
    capture = attnviz.capture(SENTENCE, model=str(tiny(name)))
    part = require_words(capture)
    sign = [token.text for token in part.keys].index("😀")
    of_sign = [i for i, token in enumerate(capture.maps[0].keys) if token.text == "😀"]
    assert len(of_sign) > 1
    pieces = capture.maps[0].weights[0, 0, -1, of_sign]  # the last token is a unit of its own
    np.testing.assert_allclose(part.weights[0, 0, -1, sign], pieces.sum(), atol=1e-6)


def test_both_texts_of_a_pair_are_in_words(minilm: Path) -> None:
    """Words of the second text are its own, though they stand in the same places."""
    part = convert_to_words(
        attnviz.capture("unbelievably so", model=str(minilm), pair="misbehaves not")
    ).maps[0]
    assert [(token.text, token.segment) for token in part.keys if not token.special] == [
        ("unbelievably", 0),
        ("so", 0),
        ("misbehaves", 1),
        ("not", 1),
    ]


def test_text_and_target_are_in_words(tiny: Tiny) -> None:
    """Between two texts, queries are words of the target and keys words of the text."""
    capture = attnviz.capture(
        "Unbelievably naïve.", model=str(tiny("t5")), target="Misbehaving subwords!"
    )
    found = {part.kind: part for part in convert_to_words(capture).maps}
    text, target = ["Unbelievably", "naïve", ".", "</s>"], ["<bos>", "Misbehaving", "subwords", "!"]
    for kind, queries, keys in (
        ("encoder", text, text),
        ("decoder", target, target),
        ("cross", target, text),
    ):
        assert [token.text for token in found[kind].queries] == queries
        assert [token.text for token in found[kind].keys] == keys
        np.testing.assert_allclose(found[kind].weights.sum(-1, dtype=np.float64), 1, **close(64))
    assert found["cross"].statistics.distance is None


def test_words_are_merged_once() -> None:
    """What is in words stays as it is; what has no text has no words."""
    found = convert_to_words(attnviz.capture(SENTENCE))
    assert convert_to_words(found) is found
    net = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    of_numbers = attnviz.capture(model=net, inputs=[torch.ones(1, 3, 8)] * 3)
    with pytest.raises(ValueError, match="numbers without a text"):
        convert_to_words(of_numbers)


# On the command line


def shown(call: Call, *args: str | Path) -> dict:
    """The one map of a document."""
    done = call("show", "--words", "--json", "-q", *args)
    assert done.returncode == 0, done.stderr
    (part,) = json.loads(done.stdout)["maps"]
    return part


def texts(tokens: Sequence[dict]) -> list[str]:
    return [token["text"] for token in tokens]


@pytest.mark.exact
def test_show_words(call: Call, minilm: Path) -> None:
    """The picture has words on its sides, its title counts them, and the note says how they came about."""
    grid = call("show", SENTENCE, "--words", "--view", "grid", "-m", minilm, "--width", "200")
    assert "72 heads · 14 words" in grid.stdout
    picture = call("show", SENTENCE, "--words", "-m", minilm)
    assert "Unbelievably" in picture.stdout
    assert picture.stdout.count(WORDS_NOTE) == 1


def test_the_mean_of_heads_is_of_words(call: Call) -> None:
    """What show writes is the mean over the heads of the last layer of the merged weights."""
    part = shown(call, SENTENCE)
    expected = convert_to_words(attnviz.capture(SENTENCE, layers="-1")).maps[0].weights.mean(1)
    found = np.array(part["weights"], np.float64)[0]
    np.testing.assert_allclose(np.nan_to_num(found), expected, atol=1e-6)
    assert part["unit"] == "word"


def test_windows_count_words(call: Call) -> None:
    """--rows and --cols take words, as they stand in the whole text."""
    part = shown(call, SENTENCE, "--rows", "1:3", "--cols", ":2")
    assert texts(part["queries"]) == ["Unbelievably", ","]
    assert texts(part["keys"]) == ["<bos>", "Unbelievably"]
    assert part["query_places"] == [1, 2]


@pytest.mark.parametrize("name", ["Unbelievably", "1", "unbelievably"])
@pytest.mark.parametrize("view", ["tokens", "rows"])
def test_a_word_is_named_whole(call: Call, name: str, view: str) -> None:
    """--token finds a word that is several tokens, by what it says or by its number among words."""
    done = call("show", SENTENCE, "--words", "--view", view, "--token", name)
    assert done.returncode == 0, done.stderr
    assert "1 Unbelievably" in done.stdout


def test_a_word_that_is_looked_at(call: Call) -> None:
    """--incoming shows the queries of one word."""
    part = shown(call, SENTENCE, "--view", "tokens", "--token", "misbehave", "--incoming")
    assert texts(part["keys"]) == ["misbehave"]
    assert len(part["queries"]) == 15


def test_words_of_a_file(call: Call, tmp_path: Path) -> None:
    """A capture of tokens from a file is shown in words as it would be from the model."""
    attnviz.save(attnviz.capture(SENTENCE), tmp_path / "run.attn")
    from_file = shown(call, "--from", "run.attn", "-l", "-1", "--rows", "2:4")
    assert from_file == shown(call, SENTENCE, "--rows", "2:4")


@pytest.mark.parametrize("suffix", ["attn", "json"])
def test_words_are_kept_in_files(call: Call, tmp_path: Path, suffix: str) -> None:
    """A capture that was written in words is read in words, and asking for words again changes nothing."""
    assert call("capture", SENTENCE, "--words", "-o", f"run.{suffix}").returncode == 0
    (part,) = load(tmp_path / f"run.{suffix}").maps
    assert (part.unit, len(part.keys)) == ("word", 15)
    again = call("show", "--from", f"run.{suffix}", "--words", "--view", "grid")
    assert again.stdout == call("show", "--from", f"run.{suffix}", "--view", "grid").stdout
    assert again.stdout.count(WORDS_NOTE) == 1


@pytest.mark.parametrize("keep", ["tiles", "statistics", "edges"])
def test_less_is_kept_of_words(call: Call, tmp_path: Path, keep: str) -> None:
    """Tiles, statistics and edges are those of the merged weights."""
    assert (
        call(
            "capture", SENTENCE, "--words", "--keep", keep, "--tiles", "4", "-o", "run.attn"
        ).returncode
        == 0
    )
    (part,) = load(tmp_path / "run.attn").maps
    (whole,) = convert_to_words(attnviz.capture(SENTENCE)).maps
    assert part.weights is None
    np.testing.assert_array_equal(part.statistics.entropy, whole.statistics.entropy)
    if keep == "tiles":
        np.testing.assert_array_equal(
            part.tiles.max[..., 0, 0], whole.weights[..., :4, :4].max((-2, -1))
        )
    if keep == "edges":
        np.testing.assert_array_equal(part.edges.weights[..., 0], whole.weights.max(-1))


@pytest.mark.exact
def test_a_long_text_in_words_is_tiled(call: Call, tiny: Tiny) -> None:
    """Words are merged before tiles are made, so that a narrow screen shows all of a long text."""
    done = call(
        "show", " ".join([SENTENCE] * 40), "--words", "-m", tiny("gpt2-4096"), "--width", "40"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b(5[0-9]{2}|6[0-9]{2}) \w+ on ", done.stdout)


def test_columns_of_a_table_are_named_for_words(call: Call) -> None:
    """A .csv says that its sides are words."""
    head, first, *_ = call("show", SENTENCE, "--words", "--format", "csv", "-q").stdout.splitlines()
    assert head == "kind,layer,head,query,query_word,key,key_word,weight,units"
    assert first == "self,2,mean,0,<bos>,0,<bos>,1.0,share of attention"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("gpt2", ["--generate", "4"], WORDS),
        ("chat", ["--chat"], ["<bos>", "<|user|>", *WORDS[:2]]),
        ("t5", ["--map", "encoder", "--reduce", "max", "-H", "0-1"], [*WORDS, "</s>"]),
        ("t5", ["--target", "naïve", "--map", "cross"], [*WORDS, "</s>"]),
        ("bytes", ["--special", "drop"], WORDS),
    ],
)
def test_words_go_with_other_options(
    call: Call, tiny: Tiny, model: str, options: list[str], words: list[str]
) -> None:
    """What is written, put through a template, reduced or dropped is in words too."""
    found = iter(texts(shown(call, SENTENCE, "-m", tiny(model), *options)["keys"]))
    assert all(word in found for word in words)  # in this order


def test_a_report_in_words(call: Call, tmp_path: Path) -> None:
    """Each file of a report is what its command writes, in words."""
    options = ["--words", "-l", "0", "-H", "0-1"]
    assert (
        call("export", SENTENCE, *options, "--formats", "svg,json", "-o", "report").returncode == 0
    )
    assert "attnviz show --words " in (tmp_path / "report" / "index.md").read_text("utf-8")
    assert (
        call(
            "show", SENTENCE, "--words", "--view", "heatmap", "-H", "L0H1", "-o", "again.svg"
        ).returncode
        == 0
    )
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "report" / "L0H1.svg").read_bytes()
    document = json.loads((tmp_path / "report" / "attention.json").read_text("utf-8"))
    assert {part["unit"] for part in document["maps"]} == {"word"}


def test_what_has_no_words_is_told(call: Call, tmp_path: Path) -> None:
    """Files without weights, of maxima or of numbers are refused in one line, as are words that are not there."""
    attnviz.save(attnviz.capture(SENTENCE, keep="edges"), tmp_path / "edges.attn")
    require_failure(
        call("show", "--from", "edges.attn", "--words"), 4, "--words: this capture holds no weights"
    )
    whole = attnviz.capture(SENTENCE)
    attnviz.save(replace(whole, maps=(whole.maps[0].reduced("max"),)), tmp_path / "max.attn")
    require_failure(call("show", "--from", "max.attn", "--words"), 4, "--words: maxima over heads")
    attnviz.save(replace(whole, text=""), tmp_path / "numbers.attn")
    require_failure(
        call("export", "--from", "numbers.attn", "--words", "-o", "x"),
        4,
        "--words: these tokens are numbers",
    )
    require_failure(
        call("show", SENTENCE, "--words", "--view", "rows", "--token", "able"),
        2,
        "'able' does not occur",
    )
    require_failure(call("show", SENTENCE, "--words", "--rows", "15:"), 2, "there are 15 (0-14)")


def test_places_outside_the_text_are_no_words(call: Call, tmp_path: Path) -> None:
    """A file whose tokens lie about their places is shown all the same."""
    part = attnviz.capture("a b", layers=0, heads=0).maps[0]
    keys = tuple(
        token._replace(start=10**9, end=10**12, segment=7 * i) for i, token in enumerate(part.keys)
    )
    attnviz.save(
        Capture("toy", "a b", (replace(part, queries=keys, keys=keys),)), tmp_path / "lies.attn"
    )
    assert len(shown(call, "--from", "lies.attn")["keys"]) == len(keys)


@pytest.mark.exact
def test_words_are_looked_for_when_they_are_wanted() -> None:
    """A picture of tokens waits for no tables of Unicode."""
    code = "import sys; from attnviz.cli.main import main\ntry: main()\nfinally: print('regex' in sys.modules)"
    for options, told in (([], "False"), (["--words"], "True")):
        line = [sys.executable, "-c", code, "show", SENTENCE, "--json", *options]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == told
