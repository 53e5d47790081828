"""Segments: how they are named, where they lie, and the share of attention that each gets, against brute force."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnviz
from attnviz.analysis.segments import (
    assign_tokens,
    find_paragraphs,
    measure_shares,
    number_key_groups,
    paragraphs,
    parse_segments,
    require_fitting_segments,
    shares,
    sum_key_groups,
)
from attnviz.cli.sources import select_requested
from attnviz.errors import InputError
from attnviz.models import load_model
from attnviz.models.chat_process import WrittenChat, write_chat_apart
from attnviz.models.prompts import find_message_segments
from attnviz.record import Segment, Token
from attnviz.request import Keep, Placement, Prompt, Request
from attnviz.results.segment_shares import inspect_segments
from attnviz.selection import parse_token
from tests.captures import make_map
from tests.conftest import Tiny
from tests.tiny import load_in_torch

pytestmark = pytest.mark.numeric

TWO = (Segment("a", 0, 4), Segment("b b", 5, 9))


# How they are written


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([one._asdict() for one in TWO]),
        "0:4 a\n5:9 b b\n",
        "\n  0:4\ta  \r\n\n5:9   b b",
    ],
)
def test_segments_are_json_or_lines(content: str) -> None:
    """Both say the same; white space around them says nothing."""
    assert parse_segments(content) == TWO


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no segments"),
        ("[]", "no segments"),
        ("0:4", "'0:4' is no segment"),
        ("0-4 a", "is no segment"),
        ("a 0:4", "is no segment"),
        ("-1:4 a", "is no segment"),
        ("\x1b[31m", "'\\x1b[31m' is no segment"),
        ("[1, 2", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"name": "a", "start": 0, "end": 4}', "no list"),
        ("[1]", "segment 0 needs name, start and end"),
        ('[{"name": "a", "start": 0}]', "segment 0 needs name, start and end"),
        ('[{"name": "a", "start": 0, "end": 4, "more": 1}]', "segment 0 needs"),
        ('[{"name": "a", "start": "0", "end": 4}]', "as numbers of characters"),
        ('[{"name": "a", "start": 0, "end": 4.0}]', "as numbers of characters"),
        ('[{"name": "a", "start": true, "end": 4}]', "as numbers of characters"),
        ('[{"name": " ", "start": 0, "end": 4}]', "needs a name"),
    ],
)
def test_what_is_no_segments(content: str, told: str) -> None:
    """One line that says what is allowed."""
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        parse_segments(content)
    assert "\n" not in str(raised.value)
    assert "0:40 system" in str(raised.value)


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        ([Segment("a", 3, 3)], "segment 3:3 a is empty"),
        ([Segment("a", 4, 3)], "is empty"),
        ([Segment("a", 0, 11)], "lies outside the text, which has 10 characters"),
        ([Segment("a", -1, 4)], "lies outside the text"),
        ([Segment("a", 0, 10**30)], "lies outside the text"),
        ([Segment("b", 4, 6), Segment("\x1b", 0, 5)], "segments 0:5 \\x1b and 4:6 b overlap"),
    ],
)
def test_segments_that_do_not_fit(segments: list[Segment], told: str) -> None:
    """Each character of the text belongs to one segment at most, and each segment to the text."""
    with pytest.raises(ValueError, match=re.escape(told)):
        require_fitting_segments(segments, "0123456789")


def test_segments_that_fit() -> None:
    """In any order, with gaps or without."""
    require_fitting_segments([Segment("b", 5, 10), Segment("a", 0, 5)], "0123456789")
    require_fitting_segments(TWO, "0123456789")


# Paragraphs


def test_paragraphs() -> None:
    """Blank lines part them, also such of white space; their names begin as they do."""
    text = "\nThe first one,\nof two lines.\n \t\n\n  second\n\n\n"
    found = find_paragraphs(text)
    assert [text[start:end] for _, start, end in found] == [
        "\nThe first one,\nof two lines.",
        "second\n\n\n"[:6],
    ]
    assert [name for name, _, _ in found] == ["paragraph 1 The fir…", "paragraph 2 second"]


def test_lines_of_one_paragraph() -> None:
    """Are taken where there are no blank lines."""
    text = "one\r\n  two\nthree\n"
    found = find_paragraphs(text)
    assert [name for name, _, _ in found] == ["line 1 one", "line 2 two", "line 3 three"]
    assert [text[start:end].strip() for _, start, end in found] == ["one", "two", "three"]
    for nothing in ("one line", "one line\n\n", ""):
        with pytest.raises(ValueError, match="one paragraph of one line"):
            find_paragraphs(nothing)


@settings(max_examples=50)
@given(text=st.text(st.sampled_from("ab \n\t\r"), max_size=40))
def test_paragraphs_fit_their_text(text: str) -> None:
    """They never overlap, and leave out nothing but white space."""
    try:
        found = find_paragraphs(text)
    except ValueError:
        return
    require_fitting_segments(found, text)
    inside = {at for _, start, end in found for at in range(start, end)}
    assert all(text[at].isspace() for at in range(len(text)) if at not in inside)


# Shares


def tokens(spans: list[tuple[int, int]], special: tuple[int, ...] = ()) -> tuple[Token, ...]:
    return tuple(Token("x", 0, start, end, i in special) for i, (start, end) in enumerate(spans))


def test_a_token_belongs_where_most_of_it_lies() -> None:
    """The first of equal ones; special tokens, those of no text and those of a second text belong to none."""
    spans = [(0, 0), (0, 3), (3, 6), (3, 7), (4, 6), (9, 11), (0, 3), (2, 2)]
    side = tokens(spans, special=(6,))
    side = (*side, Token("x", 0, 0, 3, False, segment=1))
    found = assign_tokens(side, [Segment("a", 0, 5), Segment("b", 5, 9)])
    assert found.tolist() == [-1, 0, 0, 0, 0, -1, -1, -1, -1]
    assert assign_tokens(
        tokens([(3, 7), (4, 8)]), [Segment("b", 5, 9), Segment("a", 0, 5)]
    ).tolist() == [0, 0]


def brute(
    weights: np.ndarray, visible: np.ndarray, where: list[int], parked: list[bool], wanted: int
) -> list[float]:
    """Share, even share, and both without parked keys, of one segment, cell by cell."""
    sums: dict[str, list[float]] = {name: [] for name in ("share", "even", "rest", "rest_even")}
    for q, row in enumerate(weights.tolist()):
        if where[q] == wanted:
            continue
        for without, names in ((False, ("share", "even")), (True, ("rest", "rest_even"))):
            keys = [k for k in range(len(row)) if visible[q][k] and not (without and parked[k])]
            inside = [k for k in keys if where[k] == wanted]
            total = sum(row[k] for k in keys)
            if len(keys) > 1 and inside and total > 0:
                sums[names[0]].append(sum(row[k] for k in inside) / total)
                sums[names[1]].append(len(inside) / len(keys))
    return [float(np.mean(values)) if values else np.nan for values in sums.values()]


@settings(max_examples=40)
@given(
    where=st.lists(st.integers(-1, 2), min_size=2, max_size=9),
    special=st.integers(0, 8),
    causal=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_shares_are_those_of_brute_force(
    where: list[int], special: int, causal: bool, seed: int
) -> None:
    """Of the queries outside a segment that see it, with and without special and first tokens."""
    n = len(where)
    visible = np.tri(n, dtype=bool) if causal else np.ones((n, n), bool)
    weights = np.random.default_rng(seed).random((1, 2, n, n)) * visible
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    spans = [(10 * segment, 10 * segment + 5) if segment >= 0 else (90, 95) for segment in where]
    side = tokens(spans, special=(special,))
    where = [-1 if token.special else segment for token, segment in zip(side, where, strict=True)]
    part = make_map(weights, side, visible)
    segments = [Segment(name, 10 * i, 10 * i + 5) for i, name in enumerate("abc")]
    found = measure_shares(part, segments)
    parked = [i in (0, special) for i in range(n)]
    for head in range(2):
        for i in range(3):
            expected = brute(weights[0, head], visible, where, parked, i)
            values = [array[0, head, i] for array in found[:4]]
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
    assert found.tokens.tolist() == [where.count(i) for i in range(3)]
    np.testing.assert_allclose(found.lift, found.share / found.baseline, equal_nan=True)
    np.testing.assert_allclose(
        found.rest_lift, found.rest_share / found.rest_baseline, equal_nan=True
    )


def test_even_attention_has_a_lift_of_one() -> None:
    """Whatever the mask: queries that stand before a segment do not count against it."""
    n, spans = 8, [(i, i + 1) for i in range(8)]
    visible = np.tri(n, dtype=bool)
    weights = (visible / visible.sum(-1, keepdims=True)).astype(np.float32)
    part = make_map(weights, tokens(spans), visible)
    found = measure_shares(part, [Segment("a", 0, 2), Segment("b", 3, 5), Segment("c", 6, 8)])
    np.testing.assert_allclose(found.lift[0, 0], [1, 1, np.nan], rtol=1e-6)
    np.testing.assert_allclose(
        found.rest_lift[0, 0], [1, 1, np.nan], rtol=1e-6
    )  # nothing comes after the last
    assert found.per_token[0, 0, 0] == pytest.approx(found.share[0, 0, 0] / 2)


def test_one_query_counts_wherever_it_stands() -> None:
    """Its own segment too, and the shares of segments that cover the text sum to 1."""
    capture = attnviz.capture("The cat sat. It was tired.")
    part = capture.maps[0]
    found = measure_shares(
        part, [Segment("one", 0, 12), Segment("two", 12, 26)], query=len(part.queries) - 1
    )
    np.testing.assert_allclose(
        found.rest_share.sum(-1) + 0, 1, atol=1e-6
    )  # <bos> stands outside both
    last = part.weights[:, :, -1].astype(np.float64)
    inside = [token.end <= 12 and not token.special for token in part.keys]
    np.testing.assert_allclose(found.share[..., 0], last[..., inside].sum(-1), atol=1e-7)


def test_a_part_of_the_queries_will_do() -> None:
    """A window of one query says what the whole map says of it."""
    part = attnviz.capture("The cat sat. It was tired.").maps[0]
    segments = [Segment("one", 0, 12), Segment("two", 12, 26)]
    row = part.window(range(6, 7), range(len(part.keys)))
    for found, expected in zip(
        measure_shares(row, segments, 0), measure_shares(part, segments, 6), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_shares_need_weights_of_the_text() -> None:
    """Not statistics, nor the keys of a target."""
    capture = attnviz.capture("The cat sat.", keep="statistics")
    with pytest.raises(ValueError, match="need weights"):
        measure_shares(capture.maps[0], TWO)
    part = attnviz.capture("The cat sat.").maps[0]
    decoder = make_map(part.weights, part.keys, part.visible, kind="decoder")
    with pytest.raises(ValueError, match="of its target"):
        measure_shares(decoder, TWO)


def test_queries_of_a_target_stand_outside(tiny: Tiny) -> None:
    """In cross-attention, where the characters of a target are not those of the text."""
    capture = attnviz.capture(
        "the cat sat on the mat", model=str(tiny("t5")), target="a dog ran on the rug"
    )
    part = next(part for part in capture.maps if part.kind == "cross")
    found = measure_shares(part, [Segment("all", 0, 22)])
    inside = [not token.special for token in part.keys]
    np.testing.assert_allclose(
        found.share[..., 0], part.weights[..., inside].sum(-1).mean(-1), rtol=1e-5
    )


# Without the weights


@settings(max_examples=40)
@given(
    where=st.lists(st.integers(-1, 2), min_size=2, max_size=12),
    special=st.integers(0, 11),
    causal=st.booleans(),
    by_head=st.booleans(),
    query=st.none() | st.integers(0, 11),
    seed=st.integers(0, 10**6),
)
def test_groups_of_keys_tell_the_shares(
    where: list[int], special: int, causal: bool, by_head: bool, query: int | None, seed: int
) -> None:
    """What is kept of groups of keys gives all numbers of the segments, and of several as one."""
    n, rng = len(where), np.random.default_rng(seed)
    mask = np.tri(n, dtype=bool) if causal else np.ones((n, n), bool)
    visible = mask & (rng.random((1, 2, n, n)) < 0.8) if by_head else mask[None, None]
    weights = rng.random((1, 2, n, n)) * visible
    weights = (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)).astype(np.float32)
    spans = [(10 * segment, 10 * segment + 5) if segment >= 0 else (90, 95) for segment in where]
    whole = make_map(weights, tokens(spans, special=(special,)), visible)
    segments = [Segment(name, 10 * i, 10 * i + 5) for i, name in enumerate("abc")]
    groups = sum_key_groups(weights, visible, number_key_groups(whole.keys, segments))
    without_weights = replace(whole, weights=None, visible=np.array(True), groups=groups)
    query = None if query is None or query >= n else query
    for asked in (segments, segments[1:], [Segment("a and b", 0, 15)]):
        expected = measure_shares(whole, asked, query)
        found = measure_shares(without_weights, asked, query)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    if query is None:
        return
    row = without_weights.pick_heads([0], [1]).pick_queries_of_groups([query])
    expected = measure_shares(whole.pick_heads([0], [1]), segments, query)
    for one, other in zip(measure_shares(row, segments, 0), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", ["tiles", "statistics", "edges"])
@pytest.mark.parametrize("engine", ["builtin", "numpy", "torch"])
@pytest.mark.parametrize("query", [None, "-1"])
def test_captures_without_weights_keep_exact_shares(
    keep: Keep, engine: str, query: str | None, tiny: Tiny
) -> None:
    """Every engine keeps shares as those of its weights, of all queries and of one."""
    placement = Placement(engine="auto" if engine == "builtin" else engine)
    name = "builtin" if engine == "builtin" else str(tiny("llama"))
    model = load_model(name, placement=placement)
    prompt = Prompt("the cat sat on the mat\n\nthe dog ran\n\nthe cat ran on the rug")
    kept = model.capture(prompt, Request(keep=keep, tiles=4, segments=None))
    whole = model.capture(prompt, Request())
    assert all(each.weights is None for each in kept.maps)
    assert [segment.start for segment in kept.segments] == [0, 24, 37]
    assert any("shares of 3 segments are exact" in note for note in kept.notes)
    token = None if query is None else parse_token(query)
    found, expected = (
        inspect_segments(partial(select_requested, capture), kept.segments, token).shares
        for capture in (kept, whole)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_messages_of_a_chat_are_kept(engine: str, tiny: Tiny) -> None:
    """Tiles of a chat tell what its messages get, by their names."""
    model = load_model(str(tiny("chat")), placement=Placement(engine=engine))
    prompt = Prompt(json.dumps(CHAT), chat=True)
    kept = model.capture(prompt, Request(keep="tiles", tiles=4, segments=None))
    whole = model.capture(prompt, Request())
    found = inspect_segments(partial(select_requested, kept))
    expected = inspect_segments(partial(select_requested, whole))
    assert found.segments == expected.segments
    np.testing.assert_allclose(found.shares.share, expected.shares.share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "albert", "gpt2"])
def test_other_types_of_models_keep_exact_shares(name: str, tiny: Tiny) -> None:
    """Encoders, cross-attention and models without rotary positions keep them too."""
    model = load_in_torch(tiny(name))
    target = "a dog ran" if name == "t5" else None
    prompt = Prompt("the cat sat on the mat\n\nthe dog ran on the rug", target=target)
    kept = model.capture(prompt, Request(keep="statistics", segments=None))
    whole = model.capture(prompt, Request())
    for one, other in zip(kept.maps, whole.maps, strict=True):
        if one.kind == "decoder":
            assert one.groups is None
            continue
        found, expected = (measure_shares(each, kept.segments) for each in (one, other))
        np.testing.assert_allclose(found.share, expected.share, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.rest_baseline, expected.rest_baseline, atol=1e-6)


def test_segments_that_were_not_kept_are_refused() -> None:
    """The line says which there are."""
    prompt = Prompt("The cat sat.\n\nIt was tired.\n\nIt slept.")
    segments = (Segment("cat", 0, 12), Segment("tired", 14, 27))
    capture = load_model("builtin").capture(
        prompt, Request(keep="tiles", tiles=4, segments=segments)
    )
    source = partial(select_requested, capture)
    assert inspect_segments(source).segments == segments
    told = r"this capture keeps no shares of segment 0:7 x, which .*; it was made for cat, tired$"
    with pytest.raises(InputError, match=told):
        inspect_segments(source, [Segment("x", 0, 7)])
    bare = load_model("builtin").capture(prompt, Request(keep="tiles", tiles=4))
    for query in (None, parse_token("-1")):
        with pytest.raises(InputError, match="name them with --segments when the text is captured"):
            inspect_segments(partial(select_requested, bare), segments, query)


def test_a_run_of_the_model_refuses_segments_that_do_not_fit(tiny: Tiny) -> None:
    """In one line, on every engine, before anything is captured."""
    segments = (Segment("x", 0, 999),)
    for model in (load_model("builtin"), load_in_torch(tiny("llama"))):
        with pytest.raises(InputError, match="lies outside the text"):
            model.capture(Prompt("the cat"), Request(keep="tiles", segments=segments))


# Chats


CHAT = [
    {"role": "user", "content": "Who was it?"},
    {"role": "assistant", "content": " the cat "},
    {"role": "user", "content": "Who was it?"},
]


def test_messages_of_a_chat_are_segments(tiny: Tiny) -> None:
    """By role, the second of one with its number; they hold what was said, and tokens of it."""
    capture = load_model(str(tiny("chat"))).capture(Prompt(json.dumps(CHAT), chat=True), Request())
    names, starts, _ = zip(*capture.segments, strict=True)
    assert names == ("user", "assistant", "user 2")
    assert [capture.text[start:end] for _, start, end in capture.segments] == [
        "Who was it?",
        "the cat",
        "Who was it?",
    ]
    assert list(starts) == sorted(starts)
    assert (measure_shares(capture.maps[0], capture.segments).tokens > 0).all()
    assert load_model(str(tiny("chat"))).capture(Prompt("plain"), Request()).segments == ()


WRITTEN = "{% for part in messages %}<{{ part.role }}>{{ part.content }}\n{% endfor %}"


def write_with(template: str, messages: list[dict[str, Any]]) -> WrittenChat:
    """Write messages by a template, as those of models are."""
    return write_chat_apart(
        SimpleNamespace(chat_template=template, special_tokens_map={}), messages
    )


def test_a_template_that_tells_no_beginning() -> None:
    """Where a chat that ends earlier is written otherwise, or refused, what was said is looked for in order."""
    otherwise = "{{ messages | length }} messages\n" + WRITTEN
    picky = "{% if messages | length < 3 %}{{ raise_exception('no') }}{% endif %}" + WRITTEN
    for template, ends in ((WRITTEN, 3), (otherwise, 1), (picky, 1)):
        chat = write_with(template, CHAT)
        assert sum(end is not None for end in chat.ends) == ends
        found = find_message_segments(CHAT, chat)
        assert [name for name, _, _ in found] == ["user", "assistant", "user 2"]
        assert [chat.text[start:end] for _, start, end in found] == [
            "Who was it?",
            "the cat",
            "Who was it?",
        ]
        require_fitting_segments(found, chat.text)


def test_messages_that_are_not_found() -> None:
    """What a template changes is its whole part of the chat; what it leaves out has no segment."""
    messages = [
        {"role": "user", "content": "loud"},
        {"role": "tool", "content": [1]},
        {"role": "user", "content": ""},
    ]
    changing = "{% for part in messages %}{{ '<LOUD>' if part.content == 'loud' }}{% endfor %}"
    found = find_message_segments(messages, write_with(changing, messages))
    assert found == (Segment("user", 0, 6),)


def test_former_names_warn() -> None:
    """What was called paragraphs and shares works for one version more, and names what to write."""
    capture = attnviz.capture("one\n\ntwo")
    with pytest.warns(DeprecationWarning, match="find_paragraphs"):
        found = paragraphs(capture.text)
    assert found == find_paragraphs(capture.text)
    with pytest.warns(DeprecationWarning, match="measure_shares"):
        lifts = shares(capture.maps[0], found).lift
    np.testing.assert_array_equal(lifts, measure_shares(capture.maps[0], found).lift)
