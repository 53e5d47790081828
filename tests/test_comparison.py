"""Divergences and alignment: against closed forms, SciPy, and captures whose likeness is known."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from attnviz import capture as take
from attnviz.analysis.comparison import Comparison, Distances, compare_on_words
from attnviz.analysis.divergence import measure_divergences, restrict_rows
from attnviz.analysis.statistics import average_defined, compute_deviation
from attnviz.drawable import Panel, Series, Table
from attnviz.errors import InputError, UsageError
from attnviz.record import Capture
from attnviz.render.html.page import find_full_weight, render_page
from attnviz.results.comparison import (
    compare_captures,
    draw_difference,
    list_coverage,
    make_series,
    measure_comparisons,
    pair_head,
    pair_last_layers,
)
from attnviz.results.comparison_page import make_comparison_page
from attnviz.selection import ALL, HeadNames
from attnviz.views import Look
from attnviz.views.labels import make_axes
from tests.captures import make_capture, make_map
from tests.tolerance import close, rounding

pytestmark = pytest.mark.numeric

HARD = "Unbelievably, the naïve tokenizer's subwords misbehave — 3.14159 😀 ok."
EXACT = close(64, dtype=np.float64)
ZERO = pytest.approx(0, abs=EXACT["atol"])  # of a divergence, a sum over at most 64 keys in float64
WHOLE = np.ones((1, 1, 1), bool)


def rows(*shape: int, seed: int = 0, sharp: float = 1.0) -> np.ndarray:
    """Random weights whose rows sum to 1."""
    scores = np.random.default_rng(seed).normal(size=shape) * sharp
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


# Divergence


def test_closed_forms() -> None:
    """Equal rows are 0 apart, exactly; rows that share no key ln 2; half of the way what the formula says."""
    one, other = np.eye(4, dtype=np.float32)[None], np.eye(4, dtype=np.float32)[None, ::-1]
    assert measure_divergences(one, one, WHOLE, WHOLE) == ZERO
    assert measure_divergences(one, other, WHOLE, WHOLE) == pytest.approx(np.log(2), abs=1e-15)
    half = np.full((1, 2, 2), 0.5, np.float32)
    sure = np.array([[[1, 0], [1, 0]]], np.float32)
    expected = 0.5 * np.log(1 / 0.75) + 0.5 * (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    assert measure_divergences(half, sure, WHOLE, WHOLE) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("causal", ["neither", "b", "both"])
def test_agrees_with_scipy(causal: str) -> None:
    """It is the square of SciPy's Jensen-Shannon distance over the keys that both see, mean over queries with two."""
    a, b = rows(3, 9, 9, sharp=3), rows(2, 9, 9, seed=1, sharp=3)
    lower = np.tri(9, dtype=bool)[None]
    if causal != "neither":
        b = restrict_rows(b, lower)
    if causal == "both":
        a = restrict_rows(a, lower)
    seen_a, seen_b = (
        (lower if causal == "both" else WHOLE),
        (WHOLE if causal == "neither" else lower),
    )
    found = measure_divergences(a, b, seen_a, seen_b)
    assert found.shape == (3, 2)
    first, keys = (0, lambda query: 9) if causal == "neither" else (1, lambda query: query + 1)
    for i, j in np.ndindex(3, 2):
        expected = [
            jensenshannon(a[i, q, : keys(q)], b[j, q, : keys(q)]) ** 2 for q in range(first, 9)
        ]
        assert found[i, j] == pytest.approx(np.mean(expected), abs=rounding(9))


@settings(max_examples=50)
@given(
    arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)),
    arrays(np.float32, (2, 4, 5), elements=st.floats(0, 1, width=32)),
    arrays(np.bool_, (1, 4, 5)),
)
def test_invariants(a: np.ndarray, b: np.ndarray, seen: np.ndarray) -> None:
    """From 0 to ln 2, the same in both directions, 0 from itself; heads come in any order; masked cells are none."""
    a, b = np.where(seen, a, 0), np.where(seen, b, 0)
    found = measure_divergences(a, b, seen, seen)
    measured = found[~np.isnan(found)]
    assert ((measured >= 0) & (measured <= np.log(2) + 1e-12)).all()
    np.testing.assert_allclose(found, measure_divergences(b, a, seen, seen).T, atol=1e-12)
    np.testing.assert_allclose(found[::-1], measure_divergences(a[::-1], b, seen, seen), **EXACT)
    assert np.nan_to_num(np.diag(measure_divergences(a, a, seen, seen))).max() == ZERO
    wider = (
        np.pad(a, ((0, 0), (0, 0), (0, 3))),
        np.pad(b, ((0, 0), (0, 0), (0, 3))),
        np.pad(seen, ((0, 0),) * 2 + ((0, 3),)),
    )
    np.testing.assert_allclose(
        found, measure_divergences(wider[0], wider[1], wider[2], wider[2]), atol=1e-12
    )


def test_heads_with_masks_of_their_own() -> None:
    """Of heads that see other keys (sliding windows beside full attention) each pair is compared where both see."""
    full, near = np.tri(6, dtype=bool), np.tri(6, dtype=bool) & ~np.tri(6, k=-3, dtype=bool)
    seen = np.stack([full, near])
    a = np.stack([restrict_rows(rows(6, 6), full), restrict_rows(rows(6, 6, seed=1), near)])
    found = measure_divergences(a, a[::-1], seen, seen[::-1])
    assert found[0, 1] == found[1, 0] == 0
    alone = measure_divergences(a[:1], a[1:], near[None], near[None])
    assert found[0, 0] == pytest.approx(alone[0, 0], abs=1e-12)


def test_a_row_of_nothing_is_left_out() -> None:
    """A query that gives the compared keys nothing does not count; where none counts, there is no number."""
    a, b = rows(1, 3, 3), rows(1, 3, 3, seed=1)
    a[0, 1] = 0
    expected = np.mean([jensenshannon(a[0, q], b[0, q]) ** 2 for q in (0, 2)])
    assert measure_divergences(a, b, WHOLE, WHOLE) == pytest.approx(expected, abs=1e-7)
    assert np.isnan(measure_divergences(np.zeros_like(a), b, WHOLE, WHOLE))
    assert np.isnan(measure_divergences(a, b, np.eye(3, dtype=bool)[None], WHOLE))


# Alignment


def test_two_tokenizers_meet_in_words(minilm) -> None:
    """Every word of the hard sentence stands in both, and the rows of what is compared sum to 1."""
    found = compare_on_words(take(HARD, model=str(minilm)), take(HARD))
    words = [
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
    assert [token.text for token in found.a.keys] == [token.text for token in found.b.keys] == words
    assert (found.a.words, found.b.words) == (12, 12)
    for head in found.a.names:
        a, b, seen = found.pair([head], [(0, 0)])
        np.testing.assert_array_equal(seen, np.tri(12, dtype=bool))
        np.testing.assert_allclose(a.sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(b.sum(-1), 1, atol=1e-6)
    assert found.a.outside > 0.1
    assert (found.b.unseen(found.a), found.a.unseen(found.b) > 0.1) == (0, True)


def test_against_plain_numpy(minilm) -> None:
    """MiniLM and builtin by hand: words by their places, keys summed, queries averaged, SciPy's divergence."""
    text = "The tokenizers disagree here."
    one, other = take(text, model=str(minilm)), take(text)
    found = compare_on_words(one, other)
    spans = [(0, 3), (4, 14), (15, 23), (24, 28), (28, 29)]

    def by_hand(capture: Capture, layer: int, head: int) -> np.ndarray:
        tokens = capture.maps[0].queries
        of = [
            [i for i, t in enumerate(tokens) if t.start < t.end and s <= t.start and t.end <= e]
            for s, e in spans
        ]
        weights = capture.maps[0].weights[layer, head].astype(np.float64)
        words = np.array([[weights[np.ix_(q, k)].sum(1).mean() for k in of] for q in of])
        words = np.tril(words)
        return words / words.sum(-1, keepdims=True)

    for i, j in ((0, 0), (2, 3), (5, 17)):
        a = by_hand(one, *found.a.names[i * 12])
        b = by_hand(other, *found.b.names[j])
        expected = np.mean([jensenshannon(a[q, : q + 1], b[q, : q + 1]) ** 2 for q in range(1, 5)])
        assert found.divergence[i * 12, j] == pytest.approx(expected, abs=1e-6)


def test_itself_is_nowhere_apart(minilm) -> None:
    """A capture compared with itself: 0 for every head, each nearest to itself, nothing left out, special tokens in."""
    for one in (take(HARD, model=str(minilm)), take(HARD)):
        found = compare_on_words(one, one)
        distances = Distances.over([found])
        assert np.diag(found.divergence).max() == ZERO
        assert distances.nearest(0) == distances.nearest(1) == list(range(len(found.a.names)))
        assert distances.overall.max() == ZERO
        assert distances.moved.max() == ZERO
        assert found.a.outside == 0
        assert any(token.special for token in found.a.keys)


def test_permuted_heads_are_matched_back() -> None:
    """A copy whose heads stand in another order: each finds itself, at no distance."""
    weights, order = rows(6, 5, 5, sharp=3), [3, 1, 5, 0, 4, 2]
    distances = Distances.over(
        [
            compare_on_words(
                make_capture(weights, "a b c d e"), make_capture(weights[order], "a b c d e")
            )
        ]
    )
    assert distances.nearest(1) == order
    assert [order.index(i) for i in range(6)] == distances.nearest(0)
    assert distances.overall.max() == ZERO
    assert distances.moved.max() > 0.01


def test_special_tokens_of_one_name_are_common() -> None:
    """[CLS] beside [CLS] is compared, beside <bos> it is left out, and the share that it had is told."""
    weights = rows(2, 4, 4)
    same = compare_on_words(
        make_capture(weights, "[CLS] a b c"), make_capture(weights, "[CLS] a b c")
    )
    assert [token.text for token in same.a.keys] == ["[CLS]", "a", "b", "c"]
    apart = compare_on_words(
        make_capture(weights, "[CLS] a b c"), make_capture(weights, "<bos> a b c")
    )
    assert [token.text for token in apart.a.keys] == ["a", "b", "c"]
    assert apart.a.outside == pytest.approx(
        weights[:, 1:, 0].sum() / weights[:, 1:].sum(), abs=1e-6
    )
    assert any(
        "left out, on tokens that the other does not have" in line for line in list_coverage(apart)
    )


def test_two_texts_share_their_words_in_order() -> None:
    """Of two texts the words that are in both, in the order of both, are compared; with none there is nothing to do."""
    one, other = (
        make_capture(rows(1, 5, 5), "the cat sat down here"),
        make_capture(rows(1, 4, 4), "here the dog sat"),
    )
    found = compare_on_words(one, other)
    assert [token.text for token in found.a.keys] == ["the", "sat"]
    assert [token.start for token in found.b.keys] == [5, 13]
    assert (found.a.words, found.b.words, found.a.common) == (5, 4, 2)
    with pytest.raises(ValueError, match="no word in common"):
        compare_on_words(one, make_capture(rows(1, 2, 2), "birds fly"))


def test_nothing_that_both_see() -> None:
    """Where one sees only what the other may not, there is nothing to compare."""
    upper = np.triu(np.ones((3, 3), bool), 1)
    lower = upper.T
    with pytest.raises(ValueError, match="sees"):
        compare_on_words(
            make_capture(restrict_rows(rows(1, 3, 3), lower), "a b c", lower),
            make_capture(restrict_rows(rows(1, 3, 3), upper), "a b c", upper),
        )


def test_a_cut_text_is_compared_where_it_goes_on() -> None:
    """A capture of a text that was cut has words in common with one of all of it."""
    whole, cut = make_capture(rows(1, 4, 4), "a b c d"), make_capture(rows(1, 2, 2), "a b")
    found = compare_on_words(whole, replace(cut, text="a b c d"))
    assert [token.text for token in found.a.keys] == ["a", "b"]
    assert (found.a.words, found.b.words) == (4, 2)


def test_tiles_cannot_be_compared() -> None:
    """A capture without weights is refused."""
    whole = take("the cat sat on the mat")
    with pytest.raises(ValueError, match="weights"):
        compare_on_words(whole, take("the cat sat on the mat", keep="statistics"))


def test_long_texts_compare_a_sample_of_rows() -> None:
    """Of 300 words 128 rows are compared, spread over all of them: nearly the mean over all."""
    found = compare_on_words(
        make_capture(rows(1, 300, 300)), make_capture(rows(1, 300, 300, seed=1))
    )
    (a, seen_a), (b, seen_b) = found.a.head((0, 0)), found.b.head((0, 0))
    all_of_them = measure_divergences(a[None], b[None], seen_a[None], seen_b[None])
    assert (a.shape, found.a.weights.shape) == ((300, 300), (1, 128, 300))
    np.testing.assert_array_equal(found.a.weights[0], a[found.a.rows])
    assert found.divergence != all_of_them
    assert any("128 of the 300 queries" in line for line in list_coverage(found))
    assert found.divergence == pytest.approx(all_of_them, rel=0.02)


# Over texts, and what is drawn


def test_over_several_texts() -> None:
    """Mean and deviation are over the texts; the nearest head is that of the mean."""
    first = [
        compare_on_words(
            make_capture(rows(2, 3, 3, seed=i), "a b c"),
            make_capture(rows(3, 3, 3, seed=9 + i), "a b c"),
        )
        for i in range(4)
    ]
    distances = Distances.over(first)
    every = np.stack([each.divergence for each in first])
    np.testing.assert_allclose(distances.mean, every.mean(0))
    assert distances.nearest(0) == every.mean(0).argmin(1).tolist()
    near = (
        every[:, range(2), distances.nearest(0)].mean(1),
        every[:, distances.nearest(1), range(3)].mean(1),
    )
    np.testing.assert_allclose(distances.overall, (near[0] + near[1]) / 2)
    np.testing.assert_allclose(compute_deviation(every, 0), every.std(0, ddof=1))
    assert distances.moved is None
    assert np.isnan(compute_deviation(every[:1], 0)).all()
    np.testing.assert_allclose(
        average_defined(np.array([[1.0, np.nan], [3.0, np.nan]]), 0), [2, np.nan]
    )


def test_the_difference_is_of_what_is_shown() -> None:
    """The third picture is the first less the second, on one scale; equal architectures stand head by head."""
    one, other = take("The cat sat."), take("The dog sat.")
    found = compare_on_words(one, other)
    drawn = make_series(found, pair_last_layers(found), Look(linear=True))
    a, b, apart = drawn.heatmaps
    np.testing.assert_allclose(apart.panel.values, a.panel.values - b.panel.values, atol=1e-7)
    assert a.scale == b.scale
    for each in (a, b):
        assert any("beyond" in line for line in each.caption) == each.scale.has_beyond
    assert (apart.scale.signed, apart.scale.top) == (True, np.abs(apart.panel.values).max())
    distances = Distances.over([found])
    assert pair_head(found, distances, (1, 3)) == (((1, 3),), ((1, 3),))


def test_the_counterpart_of_another_architecture_is_the_nearest() -> None:
    """Where heads have no namesakes, one is drawn beside the head that is nearest to it."""
    weights = rows(3, 4, 4, sharp=3)
    found: Comparison = compare_on_words(
        make_capture(weights[:2], "a b c d"), make_capture(weights[[2, 1, 0]], "a b c d")
    )
    assert pair_head(found, Distances.over([found]), (0, 0)) == (((0, 0),), ((0, 2),))


def test_a_result_is_made_of_captures_alone() -> None:
    """Without a command, captures give the document, the rows and the pictures of all heads or of chosen ones."""
    pairs = [(take(text), take(f"{text} Yes.")) for text in ("The cat sat.", "A dog ran home.")]
    result = measure_comparisons(compare_captures(a, b) for a, b in pairs)
    document = result.to_dict()
    assert document["texts"] == document["js"]["n"] == 2
    assert (
        [entry["side"] for entry in document["heads"]]
        == [row["side"] for row in result.rows()]
        == ["a"] * 18 + ["b"] * 18
    )
    series_drawn, table = result.tables()
    assert (type(series_drawn), type(table), len(table.rows)) == (Series, Table, 18)
    assert [section.name[0] for section in make_comparison_page(result).sections] == ["A", "B", "A"]
    one = measure_comparisons([compare_captures(*pairs[0])], heads=HeadNames(((1, 3),)))
    assert one.heads == ((1, 3),)
    assert one.groups == ((((1, 3),), ((1, 3),)),)
    assert len(measure_comparisons([compare_captures(*pairs[0])], heads=ALL).groups) == 1


@pytest.mark.parametrize("apart", [0.0, 1e-7])
def test_rounding_is_drawn_as_no_difference(apart: float) -> None:
    """Of heads that are equal but for rounding the page says so, and others keep their colours."""
    weights = np.full((2, 2, 2), 0.5)
    change = np.array([[[apart, -apart]] * 2, [[0.25, -0.25]] * 2])
    captures = make_capture(weights), make_capture(weights + change)
    page = make_comparison_page(measure_comparisons([compare_captures(*captures)]))
    section = page.sections[-1]
    equal, different = (heatmap for heatmap in section.heatmaps[0] if heatmap)
    assert equal.caption == ("no difference",)
    assert different.caption != ("no difference",)
    assert find_full_weight(section) == section.grid.scale.top == pytest.approx(0.25)
    metadata = re.search(r'id="metadata">(.*?)</script>', render_page(page).decode(), re.DOTALL)
    assert metadata is not None
    drawn = json.loads(metadata[1])["sections"][-1]["heatmaps"][0]
    assert [(heatmap["top"], heatmap["largest"]) for heatmap in drawn] == [(255, 128), (255, 255)]


@pytest.mark.parametrize(("method", "largest"), [("attention", 0.0), ("given", 1e-8)])
def test_small_numbers_of_the_user_are_no_rounding(method: str, largest: float) -> None:
    """Numbers that are no weights of a model may be small and mean something."""
    panel = Panel(np.array([[1e-8, -5e-9]]), np.ones((1, 2), bool))
    rows, columns = make_axes(make_map(np.full((1, 2), 0.5), kind="cross"))
    heatmap = draw_difference("A - B", panel, rows, columns, Look(), method)
    assert heatmap.scale.largest == largest
    assert (heatmap.caption == ("no difference",)) is (largest == 0)


def test_a_result_refuses_what_cannot_be_measured() -> None:
    """No text, heads that differ from text to text, and a head that is not there are told."""
    one, other = make_capture(rows(2, 2, 2), "a b"), make_capture(rows(3, 2, 2), "a b")
    with pytest.raises(InputError, match="there is no text"):
        measure_comparisons([])
    with pytest.raises(InputError, match="not the same in each text"):
        measure_comparisons([compare_captures(one, one), compare_captures(one, other)])
    with pytest.raises(InputError, match="no word in common"):
        compare_captures(one, make_capture(rows(2, 2, 2), "c d"))
    with pytest.raises(UsageError, match="head 9"):
        measure_comparisons([compare_captures(one, one)], heads=HeadNames(((0, 9),)))
