"""Choosing layers and heads, tokens and records, JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnviz.errors import UsageError
from attnviz.escape import escape, label_token
from attnviz.io.formats import format_json
from attnviz.record import AttentionMap, Capture, Token
from attnviz.selection import ALL, parse_heads, parse_numbers, resolve_blocks
from tests.captures import make_capture


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("3", (3,)),
        ("-1", (5,)),
        ("0,3,5", (0, 3, 5)),
        ("2-4", (2, 3, 4)),
        ("-3--1", (3, 4, 5)),
        ("4,1-2,4", (4, 1, 2)),
        ("all", (0, 1, 2, 3, 4, 5)),
        (" 1 , 2 ", (1, 2)),
    ],
)
def test_numbers_and_ranges(text: str, chosen: tuple[int, ...]) -> None:
    """Numbers count from 0, negative ones from the end; each is taken once, in the order given."""
    assert parse_numbers(text).resolve(range(6), "layer") == chosen


@pytest.mark.parametrize("text", ["", "x", "1,,2", "1-2-3", "1.5", "--1", "L1H2", "9" * 30])
def test_what_is_no_selection(text: str) -> None:
    """Anything else is refused with what is allowed."""
    with pytest.raises(ValueError, match="write 3, -1"):
        parse_numbers(text)


@pytest.mark.parametrize(
    ("text", "told"), [("6", "0-5"), ("-7", "-6--1"), ("2-9", "0-5"), ("4-2", "write 2-4")]
)
def test_what_does_not_exist_names_the_range(text: str, told: str) -> None:
    """A layer that is not there is an error that says which are."""
    with pytest.raises(UsageError, match=told):
        parse_numbers(text).resolve(range(6), "layer")


SIX = dict.fromkeys(range(6), range(12))


def test_named_heads_become_one_rectangle_a_layer() -> None:
    """L5H3,L2H1,L5H0 is layer 5 with heads 3 and 0, and layer 2 with head 1."""
    assert resolve_blocks(ALL, parse_heads("L5H3,l2h1,L5H0"), SIX) == (((5,), (3, 0)), ((2,), (1,)))
    assert resolve_blocks(parse_numbers("0"), parse_heads("1-2"), SIX) == (((0,), (1, 2)),)
    assert resolve_blocks(ALL, parse_heads("L-1H-1"), SIX) == (((5,), (11,)),)
    with pytest.raises(UsageError, match="head 12"):
        resolve_blocks(ALL, parse_heads("L0H12"), SIX)
    with pytest.raises(ValueError, match="mixes"):
        parse_heads("L0H1,3")


@given(st.text(max_size=50))
def test_escaped_text_is_printable(text: str) -> None:
    """Nothing that steers a terminal or reorders a line is left, and plain text stays as it is."""
    for shown in (escape(text), label_token(text)):
        assert not any(
            ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202e\u2066\u200b\u2028"
            for char in shown
        )
    assert escape("naïve 猫 🎉 مرحبا") == "naïve 猫 🎉 مرحبا"
    assert escape("\x1b]0;x\x07\u202e") == r"\x1b]0;x\x07\u202e"


def test_labels_of_white_space() -> None:
    """A token of nothing but white space is named; space around a word is not."""
    assert [label_token(text) for text in (" cat", "\n", "  ", "\t", "", "a b")] == [
        "cat",
        "⏎",
        "␣␣",
        "⇥",
        "∅",
        "a␣b",
    ]


@pytest.mark.parametrize(
    ("text", "span", "found"),
    [
        ("the cat", (3, 7), ("cat", 4, 7)),
        ("a  b", (1, 3), ("  ", 1, 3)),
        ("ab", (1, 1), ("", 1, 1)),
        ("x\n", (1, 2), ("\n", 1, 2)),
    ],
)
def test_token_text_is_the_slice_without_space(
    text: str, span: tuple[int, int], found: tuple[str, int, int]
) -> None:
    """Start and end always cut the token's text out of the user's text."""
    token = Token.of("name", 1, span, False, text)
    assert (token.text, token.start, token.end) == found
    assert text[token.start : token.end] == token.text


def test_a_record_checks_itself(capture: Capture) -> None:
    """Weights of a wrong shape, negative, above 1 in a row, or NaN are no attention map."""
    part = capture.maps[0]
    for weights in (part.weights[:1], -part.weights, part.weights * 2, part.weights * np.nan):
        with pytest.raises(ValueError, match="weights"):
            AttentionMap(
                "self", part.layers, part.heads, part.queries, part.keys, weights, part.visible
            )


def test_reductions(capture: Capture) -> None:
    """Mean and max over heads keep rows, layers and masks."""
    part = capture.maps[0]
    mean, largest = part.reduced("mean"), part.reduced("max")
    np.testing.assert_allclose(mean.weights[:, 0], part.weights.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(largest.weights[:, 0], part.weights.max(1))
    assert (mean.heads, mean.layers, largest.heads) == (("mean",), (0, 1), ("max",))
    assert (mean.visible == part.visible[:, :1]).all()


def test_json_has_the_schema(capture: Capture) -> None:
    """One ASCII document with schema, model, maps, tokens; masked cells are null and weights come back exactly."""
    text = format_json(capture)
    document = json.loads(text)
    assert text.isascii()
    assert document["schema"] == "attnviz/1"
    found = document["maps"][0]
    assert set(found) == {
        "kind",
        "layers",
        "heads",
        "method",
        "units",
        "queries",
        "keys",
        "weights",
    }
    assert found["keys"][0] == {"text": "<bos>", "id": 0, "start": 0, "end": 0, "special": True}
    part = capture.maps[0]
    for layer, head, query, key in np.ndindex(part.weights.shape):
        value = found["weights"][layer][head][query][key]
        assert (value is None) == (key > query)
        assert value is None or np.float32(value) == part.weights[layer, head, query, key]


@given(arrays(np.float32, 5, elements=st.floats(0, 0.125, width=32)))
def test_weights_round_trip_through_json(row: np.ndarray) -> None:
    """Every float32 comes back from its shortest decimal."""
    token = Token("x", 0, 0, 1, False)
    capture = make_capture(row[None], (token,) * 5, queries=(token,))
    back = json.loads(format_json(capture))["maps"][0]["weights"]
    np.testing.assert_array_equal(np.array(back, np.float32), capture.maps[0].weights)
