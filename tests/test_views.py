"""The views: which numbers are drawn, where their colours end, and what is said of them."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attnviz
from attnviz.analysis.special import drop_special
from attnviz.analysis.statistics import measure_statistics, pool_map, pool_weights
from attnviz.drawable import MASKED, Scale
from attnviz.errors import InputError, UsageError
from attnviz.record import FROM_ELSEWHERE, Capture, Kind, Tiles, Token, Weights
from attnviz.render.colour import STEPS
from attnviz.selection import TokenReference, parse_token
from attnviz.views import (
    Look,
    make_capture_page,
    make_grids,
    make_heatmaps,
    make_query_heatmaps,
    make_strips,
)
from attnviz.views.colour_scale import measure_even_shares
from tests.captures import make_capture, make_map, make_tokens, number_words
from tests.conftest import SENTENCE
from tests.tiny import plain_tokenizer
from tests.tolerance import close

pytestmark = pytest.mark.numeric

FULL, LINEAR = Look(whole=True), Look(linear=True)
make_measured = partial(make_capture, measured=True)  # with statistics, as a model gives them


def sunk(count: int, share: float, at: int = 0) -> Weights:
    """Each query gives so much to one key, and the rest evenly to the others."""
    weights = np.full((count, count), (1 - share) / (count - 1), np.float32)
    weights[:, at] = share
    return weights


def bare(capture: Capture) -> Capture:
    """Without statistics, as a window or a file may be."""
    return replace(capture, maps=tuple(replace(part, statistics=None) for part in capture.maps))


def row_of(capture: Capture, query: int) -> Capture:
    """One query of each map, as --token has it."""
    return replace(
        capture, maps=tuple(part.window([query], range(len(part.keys))) for part in capture.maps)
    )


def column_of(capture: Capture, key: int) -> Capture:
    return replace(
        capture, maps=tuple(part.window(range(len(part.queries)), [key]) for part in capture.maps)
    )


# Sinks


@pytest.mark.parametrize("known", [True, False], ids=["statistics", "weights alone"])
def test_colours_end_before_the_sink(known: bool) -> None:
    """A key that takes most is beyond the colours, which end at the largest of the others; its share is told."""
    capture = make_measured(sunk(9, 0.6), "<bos> " + number_words(8))
    drawn = make_heatmaps(capture if known else bare(capture))[0]
    assert (drawn.scale.top, drawn.scale.largest) == (np.float32(0.05), np.float32(0.6))
    steps = drawn.scale.steps(drawn.panel, STEPS)
    assert (steps[:, 0] == STEPS).all()
    assert (steps[:, 1:] == STEPS - 1).all()
    assert drawn.caption == (
        "60% of the weight is on the sink <bos> (even share: 11%): beyond the colours",
    )


def test_colours_that_reach_nearly_as_far_show_the_sink_too() -> None:
    """A column that is hardly stronger than the others blinds nothing, and is shown to scale; its share is told."""
    weights = sunk(9, 0.6)
    weights[4] = np.eye(9)[4] * 0.58 + np.eye(9)[0] * 0.42
    drawn = make_heatmaps(make_measured(weights, "<bos> " + number_words(8)))[0]
    assert drawn.scale.top == drawn.scale.largest == np.float32(0.6)
    assert drawn.caption == ("58% of the weight is on the sink <bos> (even share: 11%)",)


def test_the_whole_range_is_there_on_request() -> None:
    """With --range full colours go up to the sink's weight, and its share is still told; linear is another matter."""
    capture = make_measured(sunk(9, 0.6), "<bos> " + number_words(8))
    drawn = make_heatmaps(capture, FULL)[0]
    assert drawn.scale.top == drawn.scale.largest == np.float32(0.6)
    assert not drawn.scale.has_beyond
    assert drawn.caption == ("60% of the weight is on the sink <bos> (even share: 11%)",)
    assert make_heatmaps(capture, LINEAR)[0].scale.top == np.float32(0.05)
    assert (drawn.scale.name, make_heatmaps(capture, LINEAR)[0].scale.name) == (
        "√ scale",
        "linear scale",
    )


@pytest.mark.parametrize("share", [0.31, 0.49, 0.51])
def test_any_key_is_a_sink_with_half_of_the_weight(share: float) -> None:
    """The first or a special token from 30%, any other from 50%, where a text has more than six keys."""
    for words_, at, least in (
        ("a b c d e f g h", 0, 0.3),
        ("a b c [SEP] e f g h", 3, 0.3),
        ("a b c d e f g h", 4, 0.5),
    ):
        drawn = make_heatmaps(make_measured(sunk(8, share, at), words_))[0]
        assert drawn.scale.has_beyond == (share >= least)
        assert any("beyond the colours" in line for line in drawn.caption) == (share >= least)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_random_models_have_no_sinks(kind: str) -> None:
    """Of 20 models of each kind, no mean over heads names one; nor does attention that is even."""
    from transformers import AutoConfig, AutoModel

    tokenizer = plain_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4}
    for seed in range(20):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, hidden_size=32, intermediate_size=64, **sizes)
        model = AutoModel.from_config(config).eval()
        capture = attnviz.capture(SENTENCE, model=model, tokenizer=tokenizer)
        mean = replace(capture, maps=(capture.maps[0].reduced("mean"),))
        pictures = [*make_heatmaps(mean), *make_grids(capture)]
        assert not any("sink" in line for picture in pictures for line in picture.caption)


@given(st.integers(1, 12), st.integers(2, 5), st.booleans())
def test_even_shares_are_those_of_even_attention(count: int, most: int, causal: bool) -> None:
    """The mean weight that keys receive of rows that share alike; of tiles as of the weights."""
    visible = np.tri(count, dtype=bool) if causal else np.ones((count, count), bool)
    weights = (visible / visible.sum(-1, keepdims=True)).astype(np.float32)
    whole = make_measured(weights, number_words(count), visible).maps[0]
    has_choice = visible.sum(-1) > 1
    expected = weights[has_choice].mean(0) if has_choice.any() else np.zeros(count)
    for attention_map in (whole, pool_map(whole, most)):
        shares = measure_even_shares(attention_map)
        assert shares.shape == (1, 1, count)
        np.testing.assert_allclose(shares[0, 0], expected, **close(count))


def test_several_sinks_are_all_named() -> None:
    """[CLS] and [SEP] side by side."""
    weights = np.full((8, 8), 0.3 / 6, np.float32)
    weights[:, [0, 7]] = 0.31, 0.39
    drawn = make_heatmaps(make_measured(weights, "[CLS] a b c d e f [SEP]"))[0]
    assert drawn.scale.top == np.float32(0.05)
    assert (
        drawn.caption[0]
        == "31% of the weight is on the sink [CLS] (even share: 12%), 39% on the sink [SEP] (even share: 12%): beyond the colours"
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count", range(1, 12))
def test_even_attention_has_no_sink(count: int, causal: bool) -> None:
    """However few tokens share the weight, none of them is beyond the colours when they share it alike."""
    visible = np.tri(count, dtype=bool) if causal else np.ones((count, count), bool)
    weights = visible / visible.sum(-1, keepdims=True)
    capture = make_measured(weights, "<bos> " + number_words(count - 1), visible)
    for look in (Look(), FULL):
        assert not make_heatmaps(capture, look)[0].scale.has_beyond
        assert not make_query_heatmaps(row_of(capture, count - 1), look)[0].scale.has_beyond
        assert not make_strips(row_of(capture, count - 1), look)[0].scale.has_beyond


def test_nothing_but_a_sink_is_on_the_scale() -> None:
    """Where all weight is on one key, or what is left is rounding, there is nothing to make room for."""
    for rest in (0, 1e-9, 1e-38, 1e-45):
        weights = np.full((7, 7), rest, np.float32)
        weights[:, 0] = 1
        drawn = make_heatmaps(make_measured(weights, "<bos> " + number_words(6)))[0]
        assert (drawn.scale.top, drawn.scale.has_beyond) == (1, False)
        assert drawn.caption == ("100% of the weight is on the sink <bos> (even share: 14%)",)
        assert np.isfinite(drawn.scale.levels(drawn.panel.values)).all()


def test_one_query_may_look_at_what_it_is_about() -> None:
    """Of one row alone, only the first and special tokens are sinks, however much another takes."""
    capture = make_measured(sunk(8, 0.9, 4))
    assert make_heatmaps(capture)[0].scale.has_beyond
    assert not make_strips(row_of(capture, 2))[0].scale.has_beyond
    assert not make_query_heatmaps(row_of(capture, 2))[0].scale.has_beyond
    parked = make_measured(sunk(8, 0.9, 4), "w0 w1 w2 w3 [SEP] w5 w6 w7")
    assert (
        make_strips(row_of(parked, 2))[0].caption[1]
        == "90% of the weight is on the sink [SEP] (even share: 12%): beyond the colours"
    )
    assert make_query_heatmaps(row_of(parked, 2))[0].caption == (
        "90% of the weight is on the sink [SEP] (even share: 12%): beyond the colours",
    )


def test_a_query_without_a_choice_says_nothing_of_sinks() -> None:
    """The first query of a causal model gives all to itself by force."""
    visible = np.tri(8, dtype=bool)
    capture = make_measured(np.eye(8), "<bos> " + number_words(7), visible)
    assert make_heatmaps(capture)[0].caption == ()
    for drawn in (
        make_strips(row_of(capture, 0))[0],
        make_query_heatmaps(row_of(capture, 0))[0],
        make_heatmaps(row_of(capture, 0))[0],
    ):
        assert not drawn.scale.has_beyond
        assert not any("sink" in line for line in drawn.caption)


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    """Rows that sum to 1 or less, with zeros, masks, special tokens, peaks; or numbers from elsewhere, of any size."""
    n, m = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    kind: Kind = draw(st.sampled_from(["self", "cross"]))
    n = m if kind == "self" else n
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = random.random((n, m)) ** draw(st.sampled_from([1, 8, 60]))
    weights[:, random.integers(m)] += draw(st.sampled_from([0, 5, 1e6]))
    visible = random.random((n, m)) < draw(st.sampled_from([0.2, 0.8, 1.1]))
    weights = np.where(
        visible & (random.random((n, m)) < draw(st.sampled_from([0.5, 1.1]))), weights, 0
    )
    foreign = draw(st.booleans())
    if not foreign:
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    keys = tuple(
        Token(f"k{i}", i, i, i, special) for i, special in enumerate(random.random(m) < 0.3)
    )
    capture = make_measured(
        weights, keys, visible, kind=kind, **({"method": FROM_ELSEWHERE} if foreign else {})
    )
    return capture if draw(st.booleans()) else bare(capture)


@given(captures(), st.booleans())
def test_scales_of_anything(capture: Capture, whole: bool) -> None:
    """A masked cell has no colour; cells beyond stand in columns of sinks, which the caption names with their share."""
    part = capture.maps[0]
    weights, visible = part.weights[0, 0], part.visible[0, 0]
    for drawn in (
        make_heatmaps(capture, Look(whole=whole))[0],
        make_grids(capture, Look(whole=whole))[0],
    ):
        scale = drawn.scale
        panel = drawn.panel if hasattr(drawn, "panel") else drawn.panels[0][0]
        steps = scale.steps(panel, STEPS)
        assert ((steps == MASKED) == ~visible).all()
        assert scale.largest == weights.max()
        assert (scale.top > 0) == weights.any()
        assert (steps[visible] <= (STEPS if scale.has_beyond else STEPS - 1)).all()
        beyond = (weights > scale.top).any(0)
        assert (
            beyond.any()
            == scale.has_beyond
            == any("beyond the colours" in line for line in drawn.caption)
        )
        assert not (whole and scale.has_beyond)
        left = weights[:, ~beyond]
        assert (
            not scale.has_beyond
            or left.max() == scale.top
            or (weights[:, beyond] == scale.top).any()
        )
    choosing = weights[visible.sum(-1) > 1].sum(0, dtype=np.float64)
    shares = choosing / (choosing.sum() or 1)
    drawn = make_heatmaps(capture, Look(whole=whole))[0]
    assert (shares[(weights > drawn.scale.top).any(0)] >= 0.3 - 1e-6).all()
    for key in np.flatnonzero((weights > drawn.scale.top).any(0)):
        assert any(
            abs(shares[key] - said / 100) < 0.0051
            for said in percentages(drawn.caption[0], f"k{key}")
        )


def percentages(line: str, token: str) -> list[int]:
    """The shares that a caption tells of a token."""
    shares = re.sub(r" \(even share: \d+%\)", "", line).split(":")[0]
    pieces = shares.replace(" of the weight is", "").replace("the sink ", "").split(", ")
    return [int(piece.split("%")[0]) for piece in pieces if piece.endswith(f" on {token}")]


def test_shares_are_of_the_weight_that_there_is() -> None:
    """Numbers from elsewhere, whose rows sum to 20 or to nothing, have sinks with shares of at most 100%."""
    weights = 20 * sunk(9, 0.6)
    weights[3] = 0
    capture = make_measured(weights, "<bos> " + number_words(8), method=FROM_ELSEWHERE)
    assert make_heatmaps(capture)[0].caption == (
        "60% of the weight is on the sink <bos> (even share: 11%): beyond the colours",
    )
    assert make_heatmaps(capture, FULL)[0].caption == (
        "60% of the weight is on the sink <bos> (even share: 11%)",
    )
    assert (
        make_grids(capture)[0].caption[0]
        == "60% of the weight is on the sink <bos> (even share: 11%), over all heads shown"
    )
    nothing = make_measured(np.zeros((4, 4)), method=FROM_ELSEWHERE)
    assert (make_heatmaps(nothing)[0].scale, make_heatmaps(nothing)[0].caption) == (Scale(0, 0), ())
    assert (
        make_heatmaps(nothing)[0].scale.steps(make_heatmaps(nothing)[0].panel, STEPS) == 0
    ).all()


def test_texts_of_one_token_and_of_special_tokens_alone() -> None:
    """They are drawn, whatever there is to say of them."""
    one = make_measured(np.ones((1, 1)), "[CLS]")
    alone = make_measured(sunk(3, 0.8), "[CLS] [SEP] [SEP]")
    assert make_heatmaps(one)[0].caption == ()
    assert make_heatmaps(alone)[0].caption == (
        "80% of the weight is on the sink [CLS] (even share: 33%): beyond the colours",
    )
    for capture in (one, alone):
        for drawn in (
            *make_grids(capture),
            *make_query_heatmaps(row_of(capture, 0)),
            *make_strips(column_of(capture, 0), incoming=True),
        ):
            assert drawn.scale.largest == capture.maps[0].weights.max()
        with pytest.raises(ValueError, match="only special tokens"):
            drop_special(capture.maps[0], "drop")


def test_of_real_heads_the_sinks_are_told(minilm: Path) -> None:
    """In BERT's heads, the caption's share is the mean weight of [CLS] or [SEP], and nothing else is beyond."""
    capture = attnviz.capture("The cat sat on the mat because it was tired.", model=str(minilm))
    weights, found = capture.maps[0].weights, make_heatmaps(capture)
    blinded = 0
    for drawn, head in zip(found, weights.reshape(-1, *weights.shape[2:]), strict=True):
        shares = head.mean(0)
        hidden = shares >= np.where([token.special for token in capture.maps[0].keys], 0.3, 0.5)
        if drawn.scale.has_beyond:
            blinded += 1
            first = np.flatnonzero(hidden)[0]
            assert drawn.caption[0].startswith(f"{shares[first]:.0%} of the weight is on the sink")
            assert drawn.scale.top == head[:, ~hidden].max()
        else:
            assert drawn.scale.top == head.max()
    assert blinded > 10


# Tiles


def long(count: int, share: float, at: int) -> Capture:
    """A text of so many tokens, causal, a sink somewhere in it, a diagonal."""
    visible = np.tri(count, dtype=bool)
    weights = np.eye(count) * 0.2 + 0.1 / count
    weights[:, at] += share
    weights = np.where(visible, weights, 0)
    keys = tuple(Token(f"w{i}", i, i, i, i == at) for i in range(count))
    return make_measured(weights / weights.sum(-1, keepdims=True), keys, visible)


@pytest.mark.parametrize("at", [0, 100])
def test_sinks_of_tiles_are_those_of_the_tokens(at: int) -> None:
    """A text in tiles has the sink, and the share, of its weights, and colours end at the tiles without it."""
    capture = long(301, 0.9, at)
    drawn = make_heatmaps(capture)[0]
    part = pool_map(capture.maps[0], 64)
    shown = make_heatmaps(replace(capture, maps=(part,)))[0]
    assert (part.weights, part.tiles.width, shown.panel.values.shape) == (None, 5, (61, 61))
    assert shown.caption == drawn.caption
    assert shown.scale.has_beyond == (
        at == 0
    )  # a sink in the middle leaves the queries before it their diagonal
    others = np.delete(part.tiles.max[0, 0], at // 5, axis=1)
    assert (shown.scale.top, shown.scale.largest) == (others.max(), drawn.scale.largest)
    assert (shown.columns.step, shown.rows.cells, shown.columns.tile(60)) == (
        5,
        61,
        range(300, 301),
    )
    assert make_grids(replace(capture, maps=(part,)))[0].tokens == 301


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_tiles_are_maxima_of_what_is_visible(n: int, m: int, most: int, spread: bool) -> None:
    """Of any map, at most so many on a side; short ones stay as they are, and statistics are those of the weights."""
    random = np.random.default_rng(n * 41 + m)
    visible = np.tri(n, m, dtype=bool) if spread else random.random((2, 3, n, m)) < 0.5
    weights = np.where(visible, random.random((2, 3, n, m), np.float32) / m, 0)
    part = make_map(weights, visible=visible, kind="cross")
    found = pool_map(part, most)
    if max(n, m) <= most:
        assert found is part
        return
    height, width = found.tiles.height, found.tiles.width
    assert max(found.tiles.max.shape[2:]) <= most
    for row, column in np.ndindex(found.tiles.max.shape[2:]):
        cells = (
            ...,
            slice(row * height, (row + 1) * height),
            slice(column * width, (column + 1) * width),
        )
        np.testing.assert_array_equal(
            found.tiles.max[:, :, row, column], part.weights[cells].max((-1, -2))
        )
        np.testing.assert_array_equal(
            found.visible[:, :, row, column], part.visible[cells].any((-1, -2))
        )
    np.testing.assert_array_equal(
        found.statistics.received,
        measure_statistics(part.weights, part.visible, square=False).received,
    )


def test_tiles_of_any_width_leave_out_the_right_columns() -> None:
    """A file may hold tiles four keys wide of nine: the sink, key 3, is in the first column, not in the second."""
    capture = make_measured(sunk(9, 0.6, 3), "a b c [SEP] e f g h i")
    part = capture.maps[0]
    peaks = np.array(
        [[part.weights[0, 0, i : i + 4, j : j + 4].max() for j in (0, 4, 8)] for i in (0, 4, 8)]
    )
    tiles = Tiles(peaks[None, None], peaks[None, None], 4, 4)
    drawn = make_heatmaps(
        replace(capture, maps=(replace(part, weights=None, visible=np.array(True), tiles=tiles),))
    )[0]
    assert (drawn.scale.top, drawn.scale.largest) == (np.float32(0.05), np.float32(0.6))
    assert drawn.scale.steps(drawn.panel, STEPS)[0].tolist() == [STEPS, STEPS - 1, STEPS - 1]


def test_a_mean_of_tiles_says_what_it_is() -> None:
    """It is no mean of weights; of weights nothing of the kind is said."""
    capture = long(100, 0.1, 0)
    part = replace(pool_map(capture.maps[0], 10)).reduced("mean")
    line = "a cell is the mean over the heads of the largest weight that each has in it"
    assert line in make_heatmaps(replace(capture, maps=(part,)))[0].caption
    assert (
        line
        not in make_heatmaps(replace(capture, maps=(capture.maps[0].reduced("mean"),)))[0].caption
    )


def test_a_page_of_a_long_text_is_in_tiles() -> None:
    """At most so many on a side, the grid and each head, with the sink of the whole text."""
    capture = long(130, 0.9, 0)
    for most, cells in ((64, 44), (512, 130)):
        section = make_capture_page(capture, most=most).sections[0]
        assert (
            section.heatmaps[0][0].panel.values.shape
            == section.grid.panels[0][0].values.shape
            == (cells, cells)
        )
        assert "on the sink w0" in section.heatmaps[0][0].caption[0]


# Windows and one token


def test_windows_keep_the_places_of_the_whole_text() -> None:
    """Numbers beside rows and columns count from the whole text's beginning; so does the first token, to be a sink."""
    capture = make_measured(sunk(12, 0.45))
    part = capture.maps[0]
    window = replace(
        capture, maps=(part.window(range(6, 9), range(2, 12)).window([0, 2], range(3, 8)),)
    )
    drawn = make_heatmaps(window)[0]
    assert (drawn.rows.numbers, drawn.columns.numbers) == ((6, 8), (5, 6, 7, 8, 9))
    assert (drawn.rows.labels, drawn.columns.labels[0]) == (("w6", "w8"), "w5")
    np.testing.assert_array_equal(drawn.panel.values, part.weights[0, 0, [6, 8], 5:10])
    later = make_measured(sunk(10, 0.45))
    shifted = replace(
        later.maps[0], key_places=tuple(range(5, 15)), query_places=tuple(range(5, 15))
    )
    assert make_heatmaps(later)[0].scale.has_beyond
    assert not make_heatmaps(replace(later, maps=(shifted,)))[0].scale.has_beyond
    assert make_heatmaps(replace(later, maps=(shifted,)))[0].caption == ()


def test_what_one_token_attends_to(capture: Capture) -> None:
    """The row of the query over the whole text, the chosen token's place, and the strongest keys in falling order."""
    part = capture.maps[0]
    found = make_strips(row_of(capture, 2))
    assert len(found) == 4
    row = part.weights[1, 0, 2]
    np.testing.assert_array_equal(found[2].panel.values, row[None])
    assert found[2].panel.visible.tolist() == [[True, True, True, False]]
    assert found[2].title == "toy · layer 1 · head 0 · what token 2 cat attends to"
    assert (found[2].chosen, found[2].tokens.labels) == (2, ("<bos>", "the", "cat", "sat"))
    order = sorted(range(3), key=lambda key: -row[key])
    named = ", ".join(f"{part.keys[i].text} ({i}) {row[i]:.2f}" for i in order)
    assert found[2].caption[0] == f"strongest: {named}"


def test_what_attends_to_one_token(capture: Capture) -> None:
    """The column of the key, over the queries; nothing is a sink among queries."""
    part = capture.maps[0]
    found = make_strips(column_of(capture, 0), incoming=True)[1]
    np.testing.assert_array_equal(found.panel.values, part.weights[0, 1, :, :1].T)
    assert found.panel.visible.all()
    assert found.title == "toy · layer 0 · head 1 · what attends to token 0 <bos>"
    assert (found.chosen, found.scale.top) == (0, 1)
    masked = make_strips(column_of(capture, 2), incoming=True)[1]
    assert masked.panel.visible.tolist() == [[False, False, True, True]]


def test_between_two_texts_no_token_is_chosen() -> None:
    """A query of a cross map does not stand among its keys; without special tokens it may be missing too."""
    crossed = make_measured(sunk(6, 0.4)[:3], kind="cross")
    assert make_strips(row_of(crossed, 1))[0].chosen is None
    assert make_strips(column_of(crossed, 1), incoming=True)[0].chosen is None
    assert make_grids(crossed)[0].title.endswith("cross-attention · 1 head · 3 x 6 tokens")
    assert make_heatmaps(crossed)[0].scale.has_beyond
    own = make_measured(sunk(4, 0.4), "a [SEP] b c")
    left = drop_special(own.maps[0], "drop").part
    assert make_strips(row_of(replace(own, maps=(left,)), 1))[0].chosen == 1
    assert make_strips(row_of(replace(own, maps=(left,)), 1))[0].tokens.numbers == (0, 2, 3)


def test_one_query_in_every_head(capture: Capture) -> None:
    """A row a head, named, in order; a reduction has a row a layer."""
    drawn = make_query_heatmaps(row_of(capture, 3))[0]
    np.testing.assert_array_equal(
        drawn.panel.values, capture.maps[0].weights[:, :, 3].reshape(4, 4)
    )
    assert drawn.rows.labels == ("L0H0", "L0H1", "L1H0", "L1H1")
    assert drawn.title == "toy · token 3 sat · in 4 heads"
    merged = replace(capture, maps=(capture.maps[0].reduced("mean"),))
    assert make_query_heatmaps(row_of(merged, 3))[0].rows.labels == ("L0 mean", "L1 mean")
    assert (
        make_query_heatmaps(row_of(merged, 3))[0].title
        == "toy · token 3 sat · in mean over heads of 2 layers"
    )


def test_maps_of_one_kind_may_differ_in_size() -> None:
    """Layers that pool the text: one grid of all of them, and a picture of rows for each list of keys."""
    large, small = (
        make_measured(sunk(8, 0.5)),
        make_measured(sunk(4, 0.5)),
    )
    part = replace(small.maps[0], layers=(1,))
    both = replace(large, maps=(large.maps[0], part))
    grid = make_grids(both)[0]
    assert [row[0].values.shape for row in grid.panels] == [(8, 8), (4, 4)]
    assert (grid.tokens, grid.title) == (8, "toy · 2 heads · up to 8 tokens")
    assert [drawn.panel.values.shape for drawn in make_query_heatmaps(row_of(both, 2))] == [
        (1, 8),
        (1, 4),
    ]
    assert [row[0].panel.values.shape for row in make_capture_page(both).sections[0].heatmaps] == [
        (8, 8),
        (4, 4),
    ]
    assert [drawn.caption[0][:3] for drawn in make_heatmaps(both)] == ["50%", "50%"]


# What comes from anyone


def test_hostile_texts_stand_in_titles_and_captions_as_text() -> None:
    """Notes, names of heads, models and tokens from a file: no control or bidi character, no name of any length."""
    evil = "\x1b[2J\u202e\nx"
    keys = tuple(Token(evil + "y" * 10_000, i, 0, 0, False) for i in range(8))
    capture = make_measured(sunk(8, 0.6), keys)
    part = replace(capture.maps[0], heads=(evil,))
    capture = replace(capture, maps=(part,), notes=(evil,), model=evil)
    drawn = (
        *make_heatmaps(capture),
        *make_grids(capture),
        *make_query_heatmaps(row_of(capture, 1)),
        *make_strips(row_of(capture, 1)),
        *make_strips(column_of(capture, 1), incoming=True),
    )
    said = [text for picture in drawn for text in (picture.title, *picture.caption)]
    said += [
        *make_capture_page(capture).caption,
        make_capture_page(capture).title,
        *make_grids(capture)[0].columns,
        *drawn[2].rows.labels,
    ]
    assert said
    for text in said:
        assert not any(char in text for char in "\x1b\u202e\n")
        assert len(text) < 600
    assert r"\x1b[2J\u202e\x0ax" in make_capture_page(capture).caption[0]


# Special tokens


def test_dropping_special_tokens_by_hand() -> None:
    """Their rows and columns go; renormalised rows sum to 1 unless nothing is left of them; the share is told."""
    keys = make_tokens("[CLS] a b [SEP]")
    weights = np.array(
        [[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0, 0, 0.5], [0, 0, 0, 1]], np.float32
    )
    part = make_measured(weights, keys).maps[0]
    rest = drop_special(part, "drop")
    np.testing.assert_array_equal(rest.part.weights[0, 0], [[0.25, 0.25], [0, 0]])
    assert (rest.share, rest.names, rest.part.key_places) == (0.75, ("[CLS]", "[SEP]"), (1, 2))
    np.testing.assert_array_equal(
        drop_special(part, "renormalise").part.weights[0, 0], [[0.5, 0.5], [0, 0]]
    )
    assert rest.part.statistics is None


@given(st.integers(0, 2**32), st.integers(1, 6), st.booleans())
def test_what_special_tokens_had(seed: int, count: int, renormalise: bool) -> None:
    """For any map: what is left are the weights of the others, and the share is what they lost."""
    random = np.random.default_rng(seed)
    visible = random.random((2, 2, count, count)) < 0.7
    weights = np.where(visible, random.random((2, 2, count, count), np.float32), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    special = random.random(count) < 0.4
    keys = tuple(Token(f"k{i}", i, i, i, bool(flag)) for i, flag in enumerate(special))
    part = make_map(weights, keys, visible)
    if special.all():
        with pytest.raises(ValueError, match="only special tokens"):
            drop_special(part, "drop")
        return
    rest = drop_special(part, "renormalise" if renormalise else "drop")
    left = part.weights[:, :, ~special][..., ~special]
    before = part.weights[:, :, ~special].sum(dtype=np.float64)
    assert rest.share == pytest.approx(
        1 - left.sum(dtype=np.float64) / before if before else 0, abs=1e-12
    )
    assert rest.share >= 0
    assert rest.part.key_places == tuple(np.flatnonzero(~special))
    sums = left.sum(-1, keepdims=True)
    expected = (
        np.divide(left, sums, out=np.zeros_like(left), where=sums > 0) if renormalise else left
    )
    np.testing.assert_array_equal(rest.part.weights, expected)
    np.testing.assert_array_equal(rest.part.visible, part.visible[:, :, ~special][..., ~special])


# Tokens by name, places in files


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("3", 3),
        ("-1", 6),
        ("<bos>", 0),
        ("cat", 2),
        ("CAT", 2),
        (" cat ", 2),
        ("⏎", 6),
        ("12345678901", 5),
        ("The", 1),
    ],
)
def test_a_token_is_found_by_number_or_name(name: str, place: int) -> None:
    """As it is written, else in any case, else as its label; a number too long for a place is a word."""
    text = make_tokens("<bos> The cat the sat 12345678901")
    assert parse_token(name).resolve((*text, Token("\n", 7, 9, 9, False))) == slice(
        place, place + 1
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("the", "occurs 2 times, at 1, 4; choose one by its number"),
        ("zebra", "does not occur: here are 0 <bos>, 1 the, 2 c, 3 at, 4 the; choose"),
        ("cat", "is several tokens: 2 c, 3 at; choose"),
        ("c at", "is several tokens: 2 c, 3 at; choose"),
        ("5", "token 5 does not exist: here are 5 tokens (0-4, or -5--1)"),
        ("\x1b" * 1000, "does not occur"),
    ],
)
def test_a_token_that_is_not_one(name: str, told: str) -> None:
    """Twice there, several, not there: the places, in one line of a length that can be read."""
    with pytest.raises(UsageError) as error:
        TokenReference(int(name) if name.isdigit() else name).resolve(
            make_tokens("<bos> the c at the")
        )
    assert told in str(error.value)
    assert len(str(error.value)) < 250
    assert "\x1b" not in str(error.value)
    with pytest.raises(UsageError, match=r"occurs 30 times, at 0, 1, .*, 11, \.\.\.; choose"):
        TokenReference("a").resolve(make_tokens("a " * 30))


@pytest.mark.parametrize("suffix", [".attn", ".json"])
def test_places_survive_a_file(capture: Capture, tmp_path: Path, suffix: str) -> None:
    """A window, also one with holes, is the same window when it is read again."""
    part = capture.maps[0].window([1, 3], range(1, 4))
    attnviz.save(replace(capture, maps=(part,)), tmp_path / f"x{suffix}")
    found = attnviz.load(tmp_path / f"x{suffix}").maps[0]
    assert (found.query_places, found.key_places) == ((1, 3), (1, 2, 3))
    np.testing.assert_array_equal(found.weights, part.weights)
    assert make_heatmaps(attnviz.load(tmp_path / f"x{suffix}"))[0].rows.numbers == (1, 3)


@pytest.mark.parametrize(
    "places", ["[3, 1]", "[1]", "[1, 1]", "[-1, 3]", "[1.5, 3]", '["1", "3"]', "[true, 3]", "7"]
)
def test_places_that_cannot_be(capture: Capture, tmp_path: Path, places: str) -> None:
    """Falling, too few, twice, below 0, no whole numbers: one line."""
    part = capture.maps[0].window([1, 3], range(1, 4))
    path = tmp_path / "x.json"
    attnviz.save(replace(capture, maps=(part,)), path)
    path.write_text(path.read_text().replace('"query_places": [1, 3]', f'"query_places": {places}'))
    with pytest.raises(InputError, match=r"^cannot use [^\n]*(places|rising)[^\n]*$"):
        attnviz.load(path)


def test_tiles_are_told_from_weights_by_what_is_drawn() -> None:
    """A map with both, a tile a weight, is drawn as weights; one with neither is refused."""
    capture = make_measured(sunk(6, 0.5))
    part = capture.maps[0]
    both = replace(part, tiles=pool_weights(part.weights, 6))
    assert make_heatmaps(replace(capture, maps=(both,)))[0].columns.step == 1
    neither = replace(part, weights=None)
    with pytest.raises(ValueError, match="no weights and no tiles"):
        make_heatmaps(replace(capture, maps=(neither,)))
