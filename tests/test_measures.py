"""What heads do in numbers: closed forms, invariants, and oracles that know nothing of the code."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from transformers import AutoModel, AutoTokenizer

import attnviz
from attnviz.analysis.measures import COLUMNS, measure, measure_map, summarise_measures
from attnviz.analysis.statistics import measure_statistics, pool_map
from attnviz.record import AttentionMap
from tests.captures import make_map
from tests.conftest import SENTENCE
from tests.tolerance import close

pytestmark = pytest.mark.numeric

DISTRIBUTION = {"entropy", "span", "normalised", "sink", "gini", "top3"}  # which two texts have too
PLACES = {*COLUMNS} - DISTRIBUTION
STATISTICS = {"entropy", "span", "distance", "sink", "self"}


def random(layers: int, heads: int, count: int, *, causal: bool, seed: int = 0) -> AttentionMap:
    visible = np.tri(count, dtype=bool) if causal else np.ones((count, count), bool)
    weights = np.random.default_rng(seed).random((layers, heads, count, count)) ** 3 * visible
    return make_map(weights / weights.sum(-1, keepdims=True), visible=visible)


def only(part: AttentionMap) -> dict[str, float]:
    """The numbers of a map of one head."""
    return {name: values.item() for name, values in measure_map(part).items()}


# Closed forms


def test_uniform_attention() -> None:
    """Of n keys: entropy ln n, span n, Gini 0, a sink of 1/n, and three keys have 3/n."""
    found = only(make_map(np.full((8, 8), 1 / 8)))
    apart = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    assert found["entropy"] == pytest.approx(math.log(8))
    assert (found["span"], found["normalised"]) == (pytest.approx(8), pytest.approx(1))
    assert found["gini"] == pytest.approx(0, abs=1e-12)
    assert (found["sink"], found["previous"], found["self"], found["next"]) == pytest.approx(
        (1 / 8,) * 4
    )
    assert found["top3"] == pytest.approx(3 / 8)
    assert found["distance"] == pytest.approx(apart.mean())
    assert found["distance_rest"] == pytest.approx(apart[:, 1:].mean())
    assert found["locality"] == pytest.approx(np.mean([3, 4, 5, 5, 5, 5, 4, 3]) / 8)


def test_causal_uniform_attention() -> None:
    """Query q sees q + 1 keys; the first, which sees itself alone, is not counted, and no query sees the next token."""
    visible = np.tri(6, dtype=bool)
    found = only(make_map(visible / visible.sum(-1, keepdims=True), visible=visible))
    seen = np.arange(2, 7)
    assert found["entropy"] == pytest.approx(np.log(seen).mean())
    assert found["span"] == pytest.approx(seen.mean())
    assert (found["normalised"], found["gini"]) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert found["sink"] == found["self"] == pytest.approx((1 / seen).mean())
    assert found["previous"] == pytest.approx(
        (1 / seen[1:]).mean()
    )  # of the second token it is the first
    assert found["top3"] == pytest.approx(
        (3 / np.array([4, 5, 6])).mean()
    )  # of three keys it would be 1
    assert found["locality"] == pytest.approx((3 / np.array([4, 5, 6])).mean())
    assert math.isnan(found["next"])


@pytest.mark.parametrize(("step", "name"), [(-1, "previous"), (0, "self"), (1, "next")])
def test_attention_to_one_key(step: int, name: str) -> None:
    """Entropy 0, span 1, Gini (n - 1) / n, and 1 in the column of that key."""
    found = only(make_map(np.eye(9)[np.clip(np.arange(9) + step, 0, 8)]))
    assert (found["entropy"], found["span"], found["normalised"], found["top3"]) == pytest.approx(
        (0, 1, 0, 1)
    )
    assert found["gini"] == pytest.approx(8 / 9)
    assert found[name] == pytest.approx(1)
    assert found["locality"] == pytest.approx(1)


def test_a_sink() -> None:
    """What a token gets that is special or the first; without it distance is that of the rest, made to sum to 1."""
    weights = np.zeros((5, 5))
    weights[:, 0], weights[:, 4] = 0.25, 0.5
    weights[np.arange(1, 5), np.arange(4)] += 0.25
    weights[0, 1] = 0.25
    plain, special = (only(make_map(weights, f"a b c d {last}")) for last in ("e", "[SEP]"))
    assert plain["sink"] == pytest.approx(
        (4 * 0.25 + 0.5) / 5
    )  # query 1 has the first token before it
    assert special["sink"] == pytest.approx(0.5)
    assert special["distance_rest"] == pytest.approx(1)  # of query 1 nothing is left


def test_one_query_has_no_choice() -> None:
    """Of a text of one token, and of one that only looks at itself by force, nothing is defined."""
    for part in (make_map(np.ones((1, 1))), make_map(np.eye(4), visible=np.eye(4, dtype=bool))):
        assert all(math.isnan(value) for value in only(part).values())


def test_queries_that_see_nothing_are_not_counted() -> None:
    """A row of masked cells alone changes nothing."""
    part = random(1, 1, 7, causal=False)
    visible = np.ones((8, 7), bool)
    visible[7] = False
    padded = np.pad(part.weights, ((0, 0), (0, 0), (0, 1), (0, 0)))
    more = make_map(padded, part.keys, visible, kind="cross")
    less = replace(part, kind="cross")
    for name in DISTRIBUTION:
        assert only(more)[name] == pytest.approx(only(less)[name])


def test_two_texts_have_no_places() -> None:
    """Distances and neighbours are of one text; the rest is as it was."""
    part = random(1, 2, 6, causal=False)
    found, same = measure_map(replace(part, kind="cross")), measure_map(part)
    for name in COLUMNS:
        if name in PLACES:
            assert np.isnan(found[name]).all()
        else:
            np.testing.assert_allclose(found[name], same[name], **close(64))


def test_places_are_those_of_the_whole_text() -> None:
    """A part of the queries has the distances and neighbours that these have in the whole."""
    part = random(2, 2, 9, causal=True)
    rows = measure_map(part.window(range(4, 8), range(9)))
    apart = np.abs(np.subtract.outer(np.arange(4, 8), np.arange(9)))
    np.testing.assert_allclose(
        rows["distance"], (part.weights[:, :, 4:8] * apart).sum(-1).mean(-1), rtol=1e-6
    )
    near = part.weights[:, :, np.arange(4, 8), np.arange(3, 7)].mean(-1)
    np.testing.assert_allclose(rows["previous"], near, rtol=1e-6)


# Oracles


def plain(weights: np.ndarray, visible: np.ndarray) -> dict[str, float]:
    """The definitions once more, query by query, of (query, key) with the first token as the sink."""
    rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
    received = np.zeros(len(weights))
    for q, (row, mask) in enumerate(zip(weights.astype(np.float64), visible, strict=True)):
        keys = np.flatnonzero(mask)
        x, m = row[keys], len(keys)
        if m < 2:
            continue
        h = float(scipy_entropy(x))
        apart = np.abs(keys - q)
        received += row
        rows["entropy"].append(h)
        rows["span"].append(math.exp(h))
        rows["normalised"].append(h / math.log(m))
        rows["distance"].append(float(x @ apart))
        rest = keys > 0
        if rest.sum() > 1:
            rows["distance_rest"].append(float(x[rest] @ apart[rest] / x[rest].sum()))
        rows["sink"].append(row[0])
        rows["gini"].append(np.abs(np.subtract.outer(x, x)).sum() / (2 * m * m * x.mean()))
        if m > 3:
            rows["top3"].append(sum(sorted(x)[-3:]))
        if (apart > 2).any():
            rows["locality"].append(x[apart <= 2].sum())
        rows["self"].append(row[q])
        if q > 1:
            rows["previous"].append(row[q - 1])
        if q + 1 < len(weights) and mask[q + 1]:
            rows["next"].append(row[q + 1])
    return {name: float(np.mean(values)) if values else math.nan for name, values in rows.items()}


@settings(max_examples=25)
@given(count=st.integers(2, 12), causal=st.booleans(), seed=st.integers(0, 10**6))
def test_measures_are_those_of_plain_loops(count: int, causal: bool, seed: int) -> None:
    """SciPy's entropy, the pairwise Gini and loops over queries give the same."""
    part = random(1, 2, count, causal=causal, seed=seed)
    found = measure_map(part)
    for head in range(2):
        expected = plain(
            part.weights[0, head], np.broadcast_to(part.visible, part.weights.shape)[0, head]
        )
        for name, value in expected.items():
            assert found[name][0, head] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), (
                name
            )


def test_minilm_as_eager_transformers_computes_it(minilm: Path) -> None:
    """To 1e-5, with the sink that has most among [CLS] and [SEP]; L0H2 is the previous-token head."""
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager")
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(minilm)(SENTENCE, return_tensors="pt")
        eager = (
            torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0].double().numpy()
        )
    found = measure_map(attnviz.capture(SENTENCE, model=str(minilm)).maps[0])
    n = eager.shape[-1]
    everything = np.ones((n, n), bool)
    expected = [[plain(head, everything) for head in layer] for layer in eager]
    for name in {*COLUMNS} - {"sink", "distance_rest"}:
        values = np.array([[head[name] for head in layer] for layer in expected])
        np.testing.assert_allclose(found[name], values, **close(384), err_msg=name)
    np.testing.assert_allclose(found["sink"], eager.mean(2)[..., [0, n - 1]].max(-1), **close(384))
    words = eager[..., 1:-1] / eager[..., 1:-1].sum(-1, keepdims=True)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(1, n - 1)))
    np.testing.assert_allclose(
        found["distance_rest"], (words * apart).sum(-1).mean(-1), **close(384)
    )
    assert np.unravel_index(found["previous"].argmax(), found["previous"].shape) == (0, 2)
    assert found["previous"][0, 2] > 0.99
    assert found["sink"][2, 7] == pytest.approx(0.897, abs=1e-3)


# Invariants


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(5)), causal=st.booleans())
def test_permuted_heads_permute_the_numbers(seed: int, order: list[int], causal: bool) -> None:
    """A number of a head depends on this head alone."""
    part = random(2, 5, 6, causal=causal, seed=seed)
    found, moved = measure_map(part), measure_map(part.pick_heads(range(2), order))
    for name in COLUMNS:
        np.testing.assert_allclose(moved[name], found[name][:, order], **close(64))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), more=st.integers(1, 5), causal=st.booleans())
def test_masked_keys_change_nothing(seed: int, more: int, causal: bool) -> None:
    """Keys that no query sees are not there."""
    part = random(1, 3, 6, causal=causal, seed=seed)
    wide = ((0, 0), (0, 0), (0, 0), (0, more))
    masked = make_map(
        np.pad(part.weights, wide), visible=np.pad(part.visible, wide), queries=part.queries
    )
    found, same = measure_map(masked), measure_map(part)
    for name in COLUMNS:
        np.testing.assert_allclose(found[name], same[name], atol=1e-12, err_msg=name)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 9), causal=st.booleans())
def test_shares_lie_between_0_and_1(seed: int, count: int, causal: bool) -> None:
    """Or are undefined; a span lies between 1 and the number of keys."""
    part = random(1, 2, count, causal=causal, seed=seed)
    for name, values in measure_map(part).items():
        defined = values[np.isfinite(values)]
        top = 1 if COLUMNS[name].unit == "share" else count
        assert ((defined >= -1e-9) & (defined <= top + 1e-6)).all(), name


def test_other_rows_are_made_to_sum_to_1() -> None:
    """Numbers from elsewhere, ten times as large, and rows of maxima say the same."""
    part = random(1, 2, 6, causal=True)
    found = measure_map(part)
    larger = measure_map(replace(part, weights=10 * part.weights, method="given"))
    for name in COLUMNS:
        np.testing.assert_allclose(larger[name], found[name], rtol=1e-5, err_msg=name)
    assert (measure_map(part.reduced("max"))["normalised"] <= 1).all()


# Statistics, several texts


@pytest.mark.parametrize("causal", [True, False])
def test_statistics_tell_some_of_it(causal: bool) -> None:
    """The same to rounding where they do; the rest is undefined, not another number."""
    part = random(2, 3, 20, causal=causal)
    part = replace(part, statistics=measure_statistics(part.weights, part.visible, True))
    kept = measure_map(pool_map(part, 5))
    for name, values in measure_map(part).items():
        if name in STATISTICS:
            np.testing.assert_allclose(kept[name], values, rtol=1e-5, err_msg=name)
        else:
            assert np.isnan(kept[name]).all(), name


def test_the_mean_of_entropies_is_not_that_of_a_mean() -> None:
    """Of heads that were merged to statistics, there is what is linear in the weights; of maxima nothing."""
    part = random(1, 3, 12, causal=True)
    small = pool_map(
        replace(part, statistics=measure_statistics(part.weights, part.visible, True)), 4
    )
    found, whole = measure_map(small.reduced("mean")), measure_map(part.reduced("mean"))
    for name in ("distance", "sink", "self"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)
    assert np.isnan(found["entropy"]).all()
    assert np.isnan(list(measure_map(small.reduced("max")).values())).all()


def test_statistics_of_a_strange_mask_tell_less() -> None:
    """Where queries other than the first seem to be forced, only the sink is known."""
    visible = np.tri(6, dtype=bool)
    visible[4] = np.eye(6, dtype=bool)[0]
    weights = np.where(visible, 1 / visible.sum(-1, keepdims=True), 0).astype(np.float32)[
        None, None
    ]
    part = replace(
        make_map(weights, visible=visible), statistics=measure_statistics(weights, visible, True)
    )
    found = only(replace(part, weights=None))
    assert found["sink"] == pytest.approx(only(part)["sink"])
    assert [name for name, value in found.items() if not math.isnan(value)] == ["sink"]


def test_spread_over_texts() -> None:
    """Mean and sample deviation over the texts that define a number."""
    texts = [{"a": np.array([1.0, np.nan, np.nan])}, {"a": np.array([3.0, 4.0, np.nan])}]
    found = summarise_measures(texts)
    np.testing.assert_allclose(found.mean["a"], [2, 4, np.nan])
    np.testing.assert_allclose(found.sd["a"], [np.std([1, 3], ddof=1), np.nan, np.nan])
    np.testing.assert_array_equal(found.n["a"], [2, 1, 0])
    np.testing.assert_array_equal(summarise_measures(texts[:1]).mean["a"], texts[0]["a"])
    assert np.isnan(summarise_measures(texts[:1]).sd["a"]).all()


def test_every_column_says_what_it_is() -> None:
    """A heading that fits four columns of a screen, a definition on one line, a source, a unit."""
    for name, column in COLUMNS.items():
        assert column.name == name
        assert len(column.heading) <= 4
        assert column.definition
        assert "\n" not in column.definition
        assert column.source == "descriptive" or column.source[-4:].isdecimal()
        assert column.unit in ("nats", "tokens", "share")


def test_the_former_name_warns() -> None:
    """What was called measure works for one version more, and names what to write."""
    part = attnviz.capture(SENTENCE).maps[0]
    with pytest.warns(DeprecationWarning, match="measure_map"):
        found = measure(part)
    np.testing.assert_array_equal(found["entropy"], measure_map(part)["entropy"])
