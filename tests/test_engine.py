"""The engine's blocks, and all that is kept of them: plain arithmetic in float64 as the oracle."""

from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnviz.analysis.statistics import measure_statistics, pool_weights
from attnviz.engine.call import Call
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import CallResult, CallSource, Finished
from attnviz.engine.observers.capture import CaptureObserver
from attnviz.engine.observers.survey import SurveyObserver
from attnviz.engine.running import Running
from attnviz.errors import InputError
from attnviz.request import Keep, Request
from tests.calls import LOWEST, SQUARE, VARIANTS, make, reference, sinks
from tests.tolerance import close, rounding

pytestmark = pytest.mark.numeric

LENGTHS = 1, 7, 64, 65, 129, 300, 700  # around the sizes of blocks and of tiles
KEEPS: tuple[Keep, ...] = get_args(Keep)
STATISTICS = "entropy", "received", "distance", "diagonal", "previous"


def look(
    call: Call, heads: tuple[int, ...] | None = None, **request: Any
) -> tuple[Tensor, CallResult]:
    """The output (N, H, d_v) of a call, and what was found of its heads."""
    expected = reference(call)[1].float()[None]
    heads = tuple(range(call.query.shape[1])) if heads is None else heads
    probe = CaptureObserver({0: heads}, Request(**request), stop=False)
    output = probe.attend(call, CallSource(reference=lambda rows: expected[:, rows]))
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, **close(max(LENGTHS)))
    return output[0], probe.found[0]


def check(
    call: Call, heads: tuple[int, ...] | None = None, accuracy: float = 2e-6, **request: Any
) -> CallResult:
    """Compare all that a request keeps of a call with the reference."""
    weights, _, visible = reference(call)
    at = list(range(len(weights)) if heads is None else heads)
    _, found = look(call, heads, **request)
    exact, seen = weights[at], visible[at]
    if not (request.get("rows") or request.get("columns")):
        check_statistics(found.summary, exact, seen, accuracy)
    if found.weights is not None:
        window = ..., request.get("rows", slice(None)), request.get("columns", slice(None))
        near(found.weights, exact[window], accuracy, "weights")
        assert torch.equal(found.visible.expand(found.weights.shape), seen[window])
        assert found.weights[~seen[window]].count_nonzero() == 0
    else:
        tiles = pool_weights(exact[None].numpy(), request.get("tiles", 64))
        assert found.tile == (tiles.height, tiles.width)
        near(found.summary["mean"], torch.from_numpy(tiles.mean[0]), accuracy, "mean")
        near(found.summary["max"], torch.from_numpy(tiles.max[0]), accuracy, "max")
        shown = torch.from_numpy(pool_weights(seen[None].numpy(), request.get("tiles", 64)).max[0])
        assert torch.equal(found.visible.expand(shown.shape), shown > 0)
    if found.edges is not None:
        check_edges(*found.edges, exact, request["strongest"], accuracy)
    if exact.any():
        assert found.difference is not None
        assert found.difference <= rounding(max(LENGTHS))
    return found


def check_statistics(
    summary: dict[str, Tensor], weights: Tensor, visible: Tensor, accuracy: float
) -> None:
    """Compare with ``analysis.statistics.describe``, which goes by the definitions."""
    seeing = visible & weights.any(
        -1, keepdim=True
    )  # a query all of whose edges are cut sees nothing
    expected = measure_statistics(
        weights[None].numpy(), seeing[None].numpy(), weights.shape[1] == weights.shape[2]
    )
    for name in STATISTICS:
        value = getattr(expected, name)
        assert (value is None) == (name not in summary)
        if (
            value is not None
        ):  # an entropy sums up many errors, a distance is as large as the text is long
            scale = {"entropy": 5, "distance": weights.shape[-1]}.get(name, 1)
            near(summary[name], torch.from_numpy(value[0]), accuracy * scale, name)


def check_edges(keys: Tensor, weights: Tensor, exact: Tensor, count: int, accuracy: float) -> None:
    """The largest weights of each query in falling order, at the keys that have them, each once; rest is 0."""
    expected = exact.topk(min(count, exact.shape[-1]), -1).values
    near(weights, expected, accuracy, "edges")
    near(exact.gather(-1, keys.long()).float() * (weights > 0), expected, accuracy, "keys of edges")
    assert (weights.diff(dim=-1) <= 0).all()
    told = keys.where(weights > 0, -1 - torch.arange(keys.shape[-1]))
    assert told.sort(-1).values.diff(dim=-1).all()


def near(found: Tensor, expected: Tensor, accuracy: float, name: str) -> None:
    """Equal to so much."""
    assert found.shape == expected.shape, name
    assert found.dtype == torch.float32, name
    worst = (found.double() - expected.double()).abs().max() if found.numel() else torch.tensor(0.0)
    assert worst <= accuracy, f"{name} differ by {worst:.1e}"


@lru_cache(1)
def square(length: int, variant: str) -> Call:
    """A call of one text, made once for the tests that follow each other."""
    call = make(length) if length < 300 else make(length, heads=2, key_heads=1)
    return replace(call, **SQUARE[variant](call))


@pytest.mark.parametrize("keep", ["weights", "tiles", "edges"])  # all make statistics too
@pytest.mark.parametrize("variant", SQUARE)
@pytest.mark.parametrize("length", LENGTHS)
def test_all_that_is_kept_equals_the_reference(keep: Keep, length: int, variant: str) -> None:
    """Weights, tiles, statistics and edges of every kind of call, of lengths about the sizes of blocks and tiles."""
    check(square(length, variant), keep=keep, strongest=5)


LONG = [
    ("none", 1),
    ("causal", 1),
    ("causal", 100),
    ("soft cap", 1),
    ("causal, soft cap, sinks", 1),
    ("left padding", 1),
]


@pytest.mark.parametrize(("variant", "size"), LONG)
@pytest.mark.slow
def test_long_texts(variant: str, size: int) -> None:
    """The same of texts so long that not all keys of a query are looked at together, with small and large scores."""
    call = make(2100, heads=1, key_heads=1, width=4, value_width=4, size=size)
    call = replace(call, **SQUARE[variant](call))
    for keep, tiles in [("weights", 64), ("tiles", 3), ("edges", 64)]:
        check(call, keep=keep, tiles=tiles, strongest=3, accuracy=5e-6)


@pytest.mark.parametrize(("queries", "keys"), [(40, 2600), (2600, 40), (150, 2048)])
def test_a_long_and_a_short_text(queries: int, keys: int) -> None:
    """The same where one side is long; a window of its keys begins anywhere."""
    call = make(queries, keys)
    for keep in KEEPS:
        check(call, keep=keep, strongest=9)
    for columns in (slice(keys - 30, keys), slice(7, 9), slice(0, 1500), slice(600, None)):
        check(call, columns=columns)
        check(call, (3,), rows=slice(30, 38), columns=columns)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (20, 1), (33, 200), (200, 33), (129, 700)])
def test_queries_and_keys_of_two_texts(queries: int, keys: int, variant: str) -> None:
    """Cross-attention: as many queries and keys as there are; places are not compared."""
    call = make(queries, keys)
    call = replace(call, **VARIANTS[variant](call))
    for keep in KEEPS:
        check(call, keep=keep, strongest=3)


@pytest.mark.parametrize("keep", KEEPS)
def test_more_queries_than_keys_and_a_causal_mask(keep: Keep) -> None:
    """Causality counts from the first of both, so the last queries see all keys; torch's own function allows it."""
    for queries, keys in [(7, 3), (300, 100), (700, 129)]:
        check(make(queries, keys, causal=True), keep=keep, strongest=3)
        check(make(queries, keys, size=100, causal=True), keep=keep, strongest=3, accuracy=1e-5)


@pytest.mark.parametrize("keep", KEEPS)
def test_fewer_queries_than_keys_and_a_causal_mask(keep: Keep) -> None:
    """So the last keys are seen by none."""
    for queries, keys in [(1, 9), (50, 90), (129, 700)]:
        check(make(queries, keys, causal=True), keep=keep, strongest=3)


def test_one_key_receives_nothing() -> None:
    """Where no query has a choice, no key received anything, also beside a sink."""
    call = make(300, 1)
    assert not look(replace(call, **sinks(call)), keep="statistics")[1].summary["received"].any()


def test_fidelity_of_a_query_that_is_blind_in_one_head() -> None:
    """What functions give a query that sees nothing in one head says nothing about the others."""
    call = make(8)
    mask = torch.zeros(1, 4, 8, 8)
    mask[0, 2, 5] = LOWEST
    probe = CaptureObserver({0: (0, 1, 2, 3)}, Request(), stop=False)
    probe.attend(replace(call, mask=mask), CallSource())
    assert probe.found[0].difference <= rounding(max(LENGTHS))


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 4), (6, 2), (9, 3), (5, 1)])
@pytest.mark.parametrize("value_width", [3, 16])
def test_heads_that_share_keys(heads: int, key_heads: int, value_width: int) -> None:
    """Grouped heads, one key head for all, one for each; values narrower and wider than queries."""
    for length in (70, 200):
        call = make(length, heads=heads, key_heads=key_heads, value_width=value_width, causal=True)
        for keep in KEEPS:
            check(call, keep=keep, strongest=3)
            check(replace(call, causal=False, **sinks(call)), keep=keep, strongest=3)


ALL_TURNED = (3, 2, 1, 0)


@pytest.mark.parametrize("heads", [(1,), (3,), (2, 0), (3, 0, 1), ALL_TURNED])
@pytest.mark.parametrize("variant", ["causal", "mask of numbers", "causal, ALiBi", "everything"])
def test_chosen_heads(heads: tuple[int, ...], variant: str) -> None:
    """Few heads, most heads, all heads, in the order in which they are asked for."""
    call = make(130)
    call = replace(call, **SQUARE[variant](call))
    for keep in KEEPS:
        check(call, heads, keep=keep, strongest=3)


@pytest.mark.parametrize("tiles", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize(("queries", "keys"), [(700, 700), (300, 300), (500, 90), (90, 500)])
def test_tiles_of_any_size(queries: int, keys: int, tiles: int) -> None:
    """Tiles higher than blocks, blocks higher than tiles, one tile, a tile a weight."""
    call = make(queries, keys, heads=2, key_heads=1)
    for variant in ("none", "hidden keys") + (
        ("causal", "left padding") if queries == keys else ()
    ):
        check(replace(call, **SQUARE[variant](call)), keep="tiles", tiles=tiles)


@pytest.mark.parametrize("variant", SQUARE)
def test_windows(variant: str) -> None:
    """Of a window only its weights are kept, those of the whole text, not of the window alone."""
    call = make(150)
    call = replace(call, **SQUARE[variant](call))
    for rows, columns in [
        (slice(20, 90), slice(None)),
        (slice(None), slice(100, 140)),
        (slice(149, 150), slice(0, 1)),
    ]:
        assert check(call, rows=rows, columns=columns).summary == {}
        check(call, (3, 1), rows=rows, columns=columns)


@pytest.mark.parametrize("size", [100, 1000, 100_000])
@pytest.mark.parametrize("variant", SQUARE)
def test_large_scores(variant: str, size: int) -> None:
    """Scores whose exponentials float32 cannot hold, up to one-hot rows; float32's own rounding grows with them."""
    call = make(100, size=size, heads=2, key_heads=1)
    call = replace(call, **SQUARE[variant](call))
    call = replace(
        call, query=call.query.bfloat16().float(), key=call.key.bfloat16().float(), scale=0.25
    )
    for keep in KEEPS:
        probe = CaptureObserver({0: (0, 1)}, Request(keep=keep), stop=False)
        probe.attend(call, CallSource())
        found = probe.found[0]
        assert all(part.isfinite().all() for part in found.summary.values())
        if found.weights is not None:
            near(found.weights, reference(call)[0], 2e-8 * size, "weights")


def test_scores_far_from_zero() -> None:
    """What all scores of a row have in common changes nothing, however large it is."""
    call = make(80, causal=True)
    shifted = replace(call, key=call.key + 50.0)
    for keep in KEEPS:
        probe = CaptureObserver({0: (0, 1, 2, 3)}, Request(keep=keep), stop=False)
        probe.attend(shifted, CallSource())
        check_statistics(probe.found[0].summary, *reference(call)[::2], accuracy=1e-4)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any call that a model may make."""
    queries, keys = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    square = draw(st.booleans())
    key_heads = draw(st.integers(1, 3))
    call = make(
        queries,
        queries if square else keys,
        heads=key_heads * draw(st.integers(1, 2)) if key_heads < 3 else 3,
        key_heads=key_heads,
        width=draw(st.integers(1, 9)),
        value_width=draw(st.integers(1, 9)),
        size=draw(st.sampled_from([0, 1, 8, 40])),
    )
    variants = SQUARE if square else VARIANTS
    return replace(call, **variants[draw(st.sampled_from(sorted(variants)))](call))


@settings(max_examples=120, derandomize=True)
@given(calls(), st.sampled_from(KEEPS), st.integers(1, 90), st.integers(1, 9))
def test_any_call_equals_the_reference(call: Call, keep: Keep, tiles: int, strongest: int) -> None:
    """The same for shapes, sizes, masks and requests that nobody chose."""
    check(call, keep=keep, tiles=tiles, strongest=strongest, accuracy=5e-6)


@settings(max_examples=60, derandomize=True)
@given(calls())
def test_rows_are_distributions(call: Call) -> None:
    """Rows of weights sum to 1, to less where a sink takes its share, to 0 where nothing is seen; none is negative."""
    weights = look(call)[1].weights
    seeing = reference(call)[0].sum(-1) > 0
    sums = weights.sum(-1)
    assert (weights >= 0).all()
    assert (sums[~seeing] == 0).all()
    if call.sinks is None:
        assert ((sums[seeing] - 1).abs() <= 1e-5).all()
    else:
        assert (sums[seeing] < 1 + 1e-6).all()
        assert (sums < 1 - 1e-4).any() or not seeing.any()


@settings(max_examples=40, derandomize=True)
@given(calls(), st.integers(1, 90))
def test_statistics_agree_with_each_other(call: Call, tiles: int) -> None:
    """Tiles hold all the weight, the largest is in one of them, entropy is at most that of equal weights."""
    weights = look(call)[1].weights
    _, found = look(call, keep="tiles", tiles=tiles)
    (n, m), (height, width) = weights.shape[1:], found.tile
    areas = torch.outer(
        *(
            torch.tensor([min(t, c - at) for at in range(0, c, t)])
            for c, t in ((n, height), (m, width))
        )
    )
    near((found.summary["mean"] * areas).sum((1, 2)), weights.sum((1, 2)), 1e-5 * n, "sums")
    near(found.summary["max"].amax((1, 2)), weights.amax((1, 2)), 1e-6, "peaks")
    assert (found.summary["mean"] <= found.summary["max"] + 1e-6).all()
    assert (found.summary["entropy"] <= np.log(m + 1) + 1e-5).all()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("variant", SQUARE)
def test_weights_made_by_a_model(variant: str, keep: Keep) -> None:
    """Of the same weights, made elsewhere, the same is kept."""
    for length in (5, 130, 300):
        call = make(length)
        call = replace(call, **SQUARE[variant](call))
        weights, _, visible = reference(call)
        probe = CaptureObserver({0: (0, 2)}, Request(keep=keep, strongest=4), stop=False)
        probe.see_weights(weights[None].float(), visible[None], CallSource())
        found, (_, expected) = probe.found[0], look(call, (0, 2), keep=keep, strongest=4)
        assert torch.equal(*torch.broadcast_tensors(found.visible, expected.visible))
        assert found.tile == expected.tile
        assert found.summary.keys() == expected.summary.keys()
        for name, part in expected.summary.items():
            near(found.summary[name], part, 2e-6 * (length if name == "distance" else 5), name)
        if expected.weights is not None:
            near(found.weights, expected.weights, 2e-6, "weights")
        if expected.edges is not None:
            check_edges(*found.edges, weights[[0, 2]], 4, 2e-6)


def test_calls_do_not_disturb_each_other() -> None:
    """Layers of equal and other shapes and masks share buffers; what was found of one stays as it was."""
    made = [
        make(length, size=2 + place) for place, length in enumerate((300, 90, 300, 300, 90, 300))
    ]
    names = "causal", "hidden keys", "sinks", "causal", "none", "left padding"
    layers = [replace(call, **SQUARE[name](call)) for call, name in zip(made, names, strict=True)]
    for keep, tiles in [*((keep, 64) for keep in KEEPS), ("tiles", 1)]:
        request = Request(keep=keep, strongest=4, tiles=tiles)
        together = CaptureObserver(dict.fromkeys(range(6), (0, 1, 2, 3)), request, stop=False)
        outputs = [together.attend(call, CallSource()) for call in layers]
        for number, call in enumerate(layers):
            alone = CaptureObserver({0: (0, 1, 2, 3)}, request, stop=False)
            assert torch.equal(alone.attend(call, CallSource()), outputs[number])
            one, other = alone.found[0], together.found[number]
            assert torch.equal(one.visible, other.visible)
            assert all(torch.equal(part, other.summary[name]) for name, part in one.summary.items())
            assert one.weights is None or torch.equal(one.weights, other.weights)
            assert one.edges is None or all(map(torch.equal, one.edges, other.edges))


def test_a_mask_and_causality_are_told_apart() -> None:
    """Two layers of one shape, one of which sees all, are each shown with what they see."""
    call = make(20)
    probe = CaptureObserver({0: (0,), 1: (0,)}, Request(), stop=False)
    for causal in (True, False):
        probe.attend(replace(call, causal=causal), CallSource())
    assert torch.equal(probe.found[0].visible[0], torch.ones(20, 20, dtype=torch.bool).tril())
    assert probe.found[1].visible.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keep", KEEPS)
def test_other_types(dtype: torch.dtype, keep: Keep) -> None:
    """Half and double precision: computed in float32 at least, kept in float32; the output is in the model's type."""
    call = make(70, causal=True)
    given = replace(
        call, **{name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    )
    probe = CaptureObserver({0: (0, 1, 2, 3)}, Request(keep=keep), stop=False)
    output = probe.attend(given, CallSource())
    assert output.dtype == dtype
    found = probe.found[0]
    exact = replace(
        given, **{name: getattr(given, name).float() for name in ("query", "key", "value")}
    )
    weights, _, visible = reference(exact)
    if keep == "weights":
        near(found.weights, weights, 2e-6, "weights")
    check_statistics(found.summary, weights, visible, 2e-6)
    assert found.difference <= 1e-2


class Peak(TorchDispatchMode):
    """Bytes of the tensors that live at one time, at most, of those that are made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {
            key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()
        }
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return result


def peak(length: int, variant: str, **request: Any) -> int:
    """Bytes that looking at a call of so many tokens takes, at most."""
    call = make(length, heads=1, key_heads=1)
    call = replace(call, **SQUARE[variant](call))
    with Peak() as counted:
        CaptureObserver({0: (0,)}, Request(**request), stop=False).attend(call, CallSource())
    return counted.bytes


@pytest.mark.exact
@pytest.mark.parametrize("variant", ["causal", *((name) for name in ("none", "sinks"))])
@pytest.mark.parametrize("keep", ["tiles", "statistics", "edges"])
def test_memory_grows_with_the_length(keep: Keep, variant: str) -> None:
    """Four times the text take at most five times the memory, unless matrices are asked for."""
    assert peak(4096, variant, keep=keep) < 5 * peak(1024, variant, keep=keep)


@pytest.mark.parametrize("side", ["rows", ("columns")])
@pytest.mark.parametrize("variant", ["none", "causal"])
def test_memory_of_a_window_grows_with_the_length(variant: str, side: str) -> None:
    """The same for a few rows, or a few columns, of weights."""
    window = {side: slice(8, 40)}
    assert peak(4096, variant, **window) < 5 * peak(1024, variant, **window)


def test_memory_is_counted() -> None:
    """The count sees a matrix where there is one."""
    assert peak(2048, "causal") > 4 * 2048**2


def test_fidelity_tells_a_wrong_reading() -> None:
    """Weights that do not explain the model's own output are known by a large difference."""
    call = make(40, causal=True)
    right = reference(call)[1].float()[None]
    capped = replace(call, softcap=2.0)
    cases = [
        (call, CallSource(plain=lambda: right * 1.01), "weights"),
        (call, CallSource(plain=lambda: right.flip(2)), "weights"),
        (replace(call, scale=call.scale * 1.1), CallSource(plain=lambda: right), "weights"),
        *((capped, CallSource(reference=lambda rows: right[:, rows]), keep) for keep in KEEPS),
    ]
    for wrong, source, keep in cases:
        probe = CaptureObserver({0: (0, 1, 2, 3)}, Request(keep=keep), stop=False)
        probe.attend(wrong, source)
        assert probe.found[0].difference > 1e-3


def test_fidelity_of_what_cannot_be_compared_is_left_open() -> None:
    """Without another function for soft caps there is no measure of what is our own."""
    call = make(40, softcap=2.0)
    probe = CaptureObserver({0: (0, 1, 2, 3)}, Request(keep="tiles"), stop=False)
    probe.attend(call, CallSource())
    assert probe.found[0].difference is None


def test_the_model_goes_on_with_its_own_output() -> None:
    """Where weights are looked at beside the run, and where nothing is looked at, the model's function is what runs."""
    call, own = make(10), torch.full((1, 10, 4, 8), 7.0)
    probe = CaptureObserver({1: (0,)}, Request(), stop=False)
    assert probe.attend(call, CallSource(plain=lambda: own)) is own
    assert probe.attend(call, CallSource(plain=lambda: own)) is own


def test_edges_are_cut_in_layers_that_are_not_looked_at() -> None:
    """A cut changes what the model goes on with, whether or not its layer is kept."""
    call = make(20, causal=True)
    edges = torch.zeros(1, 4, 20, 20, dtype=torch.bool)
    edges[0, [1, 1, 3], [9, 9, 0], [4, 5, 0]] = True
    expected, uncut = reference(call.hide_edges(edges))[1].float(), reference(call)[1].float()[None]
    probe = CaptureObserver({1: (0,)}, Request(), RunEdits(hidden={0: edges, 1: edges}), stop=False)
    for _ in range(2):
        output = probe.attend(call, CallSource(plain=lambda: uncut))
        torch.testing.assert_close(output[0], expected, **close(20))
    assert expected[0, 3].count_nonzero() == 0


def test_the_run_ends_with_the_last_call_that_is_wanted() -> None:
    """Of a model whose calls are counted, only as much runs as is needed."""
    call = make(6)
    probe = CaptureObserver({0: (0,), 2: (1,)}, Request())
    probe.attend(call, CallSource())
    probe.attend(call, CallSource())
    with pytest.raises(Finished):
        probe.attend(call, CallSource())
    assert sorted(probe.found) == [0, 2]


def test_several_texts_are_refused() -> None:
    """A batch has no one map."""
    call = make(6)
    several = replace(
        call,
        **{name: getattr(call, name).expand(2, -1, -1, -1) for name in ("query", "key", "value")},
    )
    with pytest.raises(InputError, match="2 texts"):
        CaptureObserver({0: (0,)}, Request()).attend(several, CallSource())
    with pytest.raises(InputError, match="3 texts"):
        CaptureObserver({0: (0,)}, Request()).see_weights(
            torch.ones(3, 1, 2, 2) / 2, torch.ones(1, 1, 2, 2).bool(), CallSource()
        )


def test_a_survey_tells_calls_and_their_output() -> None:
    """It writes down heads, lengths and where each call comes from, and changes nothing."""
    running = Running()
    survey = SurveyObserver(running)
    running.stack.append(("decoder.layer", 7))
    for call in (make(9, 5), make(7, softcap=1.5), make(6, **sinks(make(6)))):
        output = survey.attend(call, CallSource(3, cross=True))
        torch.testing.assert_close(output[0], reference(call)[1].float(), **close(20))
    survey.see_weights(torch.ones(1, 3, 4, 4) / 4, torch.ones(1, 1, 4, 4).bool(), CallSource())
    assert [(seen.heads, seen.queries, seen.keys) for seen in survey.seen] == [
        (4, 9, 5),
        (4, 7, 7),
        (4, 6, 6),
        (3, 4, 4),
    ]
    first = survey.seen[0]
    assert (first.layer, first.where, first.entry, first.cross) == (3, "decoder.layer", 7, True)
