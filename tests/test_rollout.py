"""Attention rollout: closed forms, invariants, an independent product, and what it cannot be made of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnviz
from attnviz import capture
from attnviz.analysis.rollout import (
    ROLLOUT_SOURCE,
    compute_rollout,
    replace_by_rollout,
    trace_sources,
)
from attnviz.analysis.words import convert_to_words
from attnviz.io import formats
from attnviz.io.csv_table import format_csv
from tests.captures import make_capture
from tests.conftest import SENTENCE, Tiny

pytestmark = pytest.mark.numeric


def attention(seed: int, layers: int, heads: int, n: int, causal: bool) -> np.ndarray:
    """Random rows that sum to 1."""
    made = np.random.default_rng(seed).random((layers, heads, n, n)) + 1e-3
    made = np.tril(made) if causal else made
    return made / made.sum(-1, keepdims=True)


def test_tokens_that_see_themselves_stay_themselves() -> None:
    """Identity in every head: rollout is the identity in every layer."""
    found = compute_rollout(np.broadcast_to(np.eye(5), (3, 2, 5, 5)))
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(5), (3, 5, 5)))


def test_one_layer_is_half_residual() -> None:
    """(A + I) / 2, A being the mean of the heads."""
    weights = attention(0, 1, 3, 6, causal=False)
    np.testing.assert_allclose(
        compute_rollout(weights)[0], (weights[0].mean(0) + np.eye(6)) / 2, atol=1e-7
    )


def test_a_later_layer_stands_on_the_left() -> None:
    """The first layer moves token 0 to 1, the second 1 to 2: so 2 has a quarter of 0; the other way round nothing."""
    first, second = np.eye(3), np.eye(3)
    first[1], second[2] = np.eye(3)[0], np.eye(3)[1]
    np.testing.assert_allclose(
        compute_rollout(np.stack([first, second])[:, None])[1, 2], [0.25, 0.25, 0.5]
    )
    np.testing.assert_allclose(
        compute_rollout(np.stack([second, first])[:, None])[1, 2], [0, 0.5, 0.5]
    )


def test_uniform_attention_has_a_closed_form() -> None:
    """After l layers of uniform attention 2^-l of a token is its own, and the rest is of all alike."""
    found = compute_rollout(np.full((4, 2, 5, 5), 0.2))
    for layer in range(4):
        own = 0.5 ** (layer + 1)
        np.testing.assert_allclose(found[layer], own * np.eye(5) + (1 - own) / 5, atol=1e-7)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 7),
    st.booleans(),
)
def test_rows_are_shares_and_causal_stays_causal(
    seed: int, layers: int, heads: int, n: int, causal: bool
) -> None:
    """Rows sum to 1, nothing is negative, the future stays hidden, and the product is that of the matrices."""
    weights = attention(seed, layers, heads, n, causal)
    found = compute_rollout(weights)
    assert found.shape == (layers, n, n)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    if causal:
        assert not np.triu(found, 1).any()
    mixed = [(part.mean(0) + np.eye(n)) / 2 for part in weights]
    np.testing.assert_allclose(
        found[-1], np.linalg.multi_dot([*mixed[::-1], np.eye(n), np.eye(n)]), atol=1e-6
    )


def test_rows_that_sum_to_less_are_made_whole() -> None:
    """A learned sink takes a share of the weights, and a row may be empty: rows of rollout sum to 1 all the same."""
    weights = attention(1, 3, 2, 4, causal=True) * 0.3
    weights[:, :, 0] = 0
    np.testing.assert_allclose(compute_rollout(weights).sum(-1), 1, atol=1e-6)


def test_the_causal_product_runs_to_the_first_token() -> None:
    """Many layers leave nothing but the first token, whatever their weights are: why there is a warning."""
    deep = replace_by_rollout(
        make_capture(attention(2, 60, 2, 8, causal=True), visible=np.tri(8, dtype=bool))
    )
    assert deep.maps[0].weights[-1, 0, -1, 0] > 0.99
    assert deep.notes[0] == ROLLOUT_SOURCE
    assert (
        f"the first has {deep.maps[0].weights[-1, 0, -1, 0]:.3f} of the last, after"
        in deep.notes[1]
    )


def test_the_builtin_model_rolls_out() -> None:
    """One head a layer, named for what it is; its rows are shares, and it warns."""
    before = capture(SENTENCE)
    after = replace_by_rollout(before)
    (part,) = after.maps
    assert (part.method, part.heads, part.layers) == ("rollout", ("rollout",), (0, 1, 2))
    np.testing.assert_array_equal(part.visible[0, 0], before.maps[0].visible[0, 0])
    np.testing.assert_allclose(part.weights.sum(-1), 1, atol=1e-6)
    assert [note for note in after.notes if "causal model" in note]


def test_an_encoder_has_no_warning(minilm: Path) -> None:
    """The warning is of causal models; the source is told of all."""
    after = replace_by_rollout(capture(SENTENCE, str(minilm)))
    assert after.notes == (ROLLOUT_SOURCE,)
    assert after.maps[0].visible.all()


def test_words_roll_out_and_files_keep_them(tmp_path: Path) -> None:
    """Of words as of tokens; saved and read again it is the same, and CSV names the unit."""
    after = replace_by_rollout(convert_to_words(capture("unbelievably, the cat sat")))
    assert after.maps[0].unit == "word"
    attnviz.save(after, tmp_path / "file.attn")
    back = formats.load(tmp_path / "file.attn")
    np.testing.assert_array_equal(back.maps[0].weights, after.maps[0].weights)
    assert (back.maps[0].method, back.notes) == ("rollout", after.notes)
    assert {line.split(",")[-1] for line in format_csv(after).decode().splitlines()[1:]} == {
        "share of rollout"
    }


def test_what_windows_reach_grows_with_the_layers() -> None:
    """A query that sees its neighbour alone reaches one token further with each layer."""
    near = np.tri(6, dtype=bool) & ~np.tri(6, k=-2, dtype=bool)
    found = trace_sources(np.stack([near, near, near]))
    for layer in range(3):
        expected = np.tri(6, dtype=bool) & ~np.tri(6, k=-3 - layer + 1, dtype=bool)
        np.testing.assert_array_equal(found[layer], expected)


def test_what_cannot_be_rolled_out_is_refused(tiny: Tiny) -> None:
    """Each with what is lacking."""
    text = "the cat sat"
    whole = capture(text)
    part = whole.maps[0]
    cases = {
        "all layers from 0 up: here are 1, 2": capture(text, layers="1,2"),
        "all heads": capture(text, heads="0,2"),
        "not of tiles": capture(text, keep="statistics"),
        "maxima": replace(whole, maps=(part.reduced("max"),)),
        "queries and keys": replace(whole, maps=(part.window(range(1, 3), range(4)),)),
        "other numbers": replace_by_rollout(whole),
        "cross-attention": capture(text, str(tiny("t5")), target="a dog"),
    }
    for why, given_ in cases.items():
        with pytest.raises(ValueError, match=why):
            replace_by_rollout(given_)
    with pytest.raises(ValueError, match="layer, head, n, n"):
        compute_rollout(np.ones((2, 3, 4)))


def test_the_mean_of_heads_is_enough() -> None:
    """Heads are averaged first: a capture of their mean rolls out to the same."""
    whole = capture("the cat sat")
    mean = replace(whole, maps=(whole.maps[0].reduced("mean"),))
    np.testing.assert_allclose(
        replace_by_rollout(mean).maps[0].weights,
        replace_by_rollout(whole).maps[0].weights,
        atol=1e-6,
    )
