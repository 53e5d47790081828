"""Attention in torch's functions: softmax by hand, scaled_dot_product_attention, torch's modules, our own layer."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import CallResult, CallSource
from attnviz.engine.observers.capture import CaptureObserver
from attnviz.engine.observers.survey import SurveyObserver
from attnviz.engine.tap import Tap, disable_fast_path
from attnviz.layer import Attention, MultiHeadAttention
from attnviz.request import Keep, Request
from tests.calls import make, vectors
from tests.tolerance import close, rounding

pytestmark = pytest.mark.numeric

BATCH, HEADS, LENGTH, WIDTH = 1, 4, 20, 8
Fit = Callable[[Tensor], Tensor | None]


def watch(
    run: Callable[[], Any], *, fit: Fit | None = None, cut: Tensor | None = None, **request: Any
) -> list[CallResult]:
    """What is found, of all heads, at each call of attention in a run."""
    survey = SurveyObserver()
    with torch.no_grad(), disable_fast_path(), Tap(survey, fit):
        run()
    heads = {number: tuple(range(seen.heads)) for number, seen in enumerate(survey.seen)}
    probe = CaptureObserver(
        heads, Request(**request), RunEdits(hidden={} if cut is None else {0: cut}), stop=False
    )
    with torch.no_grad(), disable_fast_path(), Tap(probe, fit):
        run()
    assert probe.calls == len(survey.seen)
    return [probe.found[number] for number in heads]


def scores() -> Tensor:
    """Scores (B, H, N, M) where a query sees nothing after itself."""
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return vectors(BATCH, HEADS, LENGTH, LENGTH).masked_fill(hidden, -torch.inf)


def edges(scores: Tensor, *named: tuple[int, int, int]) -> Tensor:
    """Which edges are named by head, query and key, of scores (B, H, N, M)."""
    found = torch.zeros(scores.shape, dtype=torch.bool)
    for edge in named:
        found[0, *edge] = True
    return found


def values(*shape: int) -> Tensor:
    return vectors(*(shape or (BATCH, HEADS, LENGTH, WIDTH)), seed=1)


SOFTMAX: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.softmax": lambda given: torch.softmax(given, -1),
    "functional.softmax": lambda given: functional.softmax(given, dim=-1),
    "functional.softmax in float32": lambda given: functional.softmax(
        given, dim=-1, dtype=torch.float32
    ),
    "Tensor.softmax": lambda given: given.softmax(-1),
    "nn.Softmax": nn.Softmax(-1),
    "by name": lambda given: torch.softmax(input=given, dim=-1),
}
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.matmul": lambda weights: torch.matmul(weights, values()),
    "Tensor.matmul": lambda weights: weights.matmul(values()),
    "@": lambda weights: weights @ values(),
    "torch.bmm": lambda weights: torch.bmm(weights.view(HEADS, LENGTH, LENGTH), values()[0]),
    "Tensor.bmm": lambda weights: weights[0].bmm(values()[0]),
    "torch.einsum": lambda weights: torch.einsum("bhnm,bhmd->bnhd", weights, values()),
    "torch.einsum of a list": lambda weights: torch.einsum("bhnm,bhmd->bhnd", [weights, values()]),
    "dropout": lambda weights: functional.dropout(weights, 0.1, training=False) @ values(),
    "nn.Dropout": lambda weights: nn.Dropout(0.1).eval()(weights) @ values(),
    "a change of type": lambda weights: weights.double() @ values().double(),
    "one head of values for all": lambda weights: weights @ values(BATCH, 1, LENGTH, WIDTH),
    "a detached copy aside": lambda weights: (
        weights.detach(),
        weights.mean(1),
        weights @ values(),
    )[-1],
}


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_each_way_to_call_softmax(softmax: str) -> None:
    """A softmax whose result multiplies values is attention, however it is called."""
    expected = scores().softmax(-1)
    (found,) = watch(lambda: SOFTMAX[softmax](scores()) @ values())
    assert torch.equal(found.weights, expected[0])
    assert torch.equal(found.visible[0], torch.ones(LENGTH, LENGTH).tril().bool())
    assert found.difference <= rounding(LENGTH)


@pytest.mark.parametrize("product", PRODUCTS)
def test_each_way_to_the_values(product: str) -> None:
    """Products of all kinds, and what may stand between the softmax and them."""
    (found,) = watch(lambda: PRODUCTS[product](scores().softmax(-1)))
    assert torch.equal(found.weights, scores().softmax(-1)[0])
    assert found.difference is None or found.difference <= rounding(32)
    assert found.difference is not None or product.startswith("torch.einsum")


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "values first": lambda weights: values().mT @ weights.mT,
    "a copy kept": lambda weights: (weights.clone(), weights @ values()),
    "their logarithm looked at": lambda weights: ((weights + 1).log(), weights @ values()),
    "their support looked at": lambda weights: (weights > 0, weights @ values()),
    "torch.mm": lambda weights: torch.mm(weights[0, 0], values()[0, 0]),
    "Tensor.mm": lambda weights: weights[0, 0].mm(values()[0, 0]),
    "by name": lambda weights: torch.matmul(input=weights, other=values()),
    "values that are numbers": lambda weights: weights @ values(LENGTH),
    "heads laid after each other": lambda weights: (
        weights.reshape(-1, LENGTH) @ values(LENGTH, WIDTH)
    ),
}


@pytest.mark.parametrize("product", OTHERS)
def test_other_ways_to_the_values(product: str) -> None:
    """Products that are written otherwise, and looks at the weights that are not on the way to the values."""
    expected = scores().softmax(-1)[0]
    (found,) = watch(
        lambda: OTHERS[product](
            scores()[:, :1].softmax(-1) if "mm" in product else scores().softmax(-1)
        )
    )
    assert torch.equal(found.weights, expected[: len(found.weights)])
    assert found.difference is None or found.difference <= rounding(32)


def test_two_softmaxes_before_their_products() -> None:
    """Branches of attention may be computed side by side."""
    first, second = scores(), scores().flip(1)

    def run() -> None:
        one, other = first.softmax(-1), second.softmax(-1)
        one @ values() - other @ values()

    found = watch(run)
    assert torch.equal(found[0].weights, first.softmax(-1)[0])
    assert torch.equal(found[1].weights, second.softmax(-1)[0])


def test_two_softmaxes_one_after_the_other() -> None:
    """Each is followed to its own product; one that is never multiplied is not taken for another."""
    first, second = scores(), scores().flip(1)
    found = watch(
        lambda: (
            first.softmax(-1) @ values(),
            first.tanh().softmax(-1),
            second.softmax(-1) @ values(),
        )
    )
    assert len(found) == 2
    assert torch.equal(found[0].weights, first.softmax(-1)[0])
    assert torch.equal(found[1].weights, second.softmax(-1)[0])


def test_a_softmax_over_queries_has_no_rows() -> None:
    """Weights that sum to 1 over another axis are no attention of queries over keys."""
    assert watch(lambda: vectors(1, HEADS, LENGTH, LENGTH).softmax(-2) @ values()) == []


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_the_only_edge_of_a_query_is_cut(lowest: float) -> None:
    """Such a query gives nothing to any key, as in a layer that is computed again."""
    given = scores().clamp_min(lowest)
    (found,) = watch(
        lambda: given.softmax(-1) @ values(), fit=lambda part: part, cut=edges(scores(), (0, 0, 0))
    )
    assert found.weights[0, 0].count_nonzero() == 0


def test_the_model_computes_what_it_would() -> None:
    """Nothing changes for what a tap looks at."""
    for product in PRODUCTS.values():
        expected = product(scores().softmax(-1))
        with Tap(CaptureObserver({0: (0,)}, Request(), stop=False)):
            assert torch.equal(product(scores().softmax(-1)), expected)


def test_arrays_of_heads_without_a_batch() -> None:
    """The first of three axes is the heads of one text; of one text in a batch of one, it is the batch."""
    (heads,) = watch(lambda: scores()[0].softmax(-1) @ values()[0])
    assert heads.weights.shape == (HEADS, LENGTH, LENGTH)
    (one,) = watch(lambda: scores()[:, 0].softmax(-1) @ values()[:, 0])
    assert one.weights.shape == (1, LENGTH, LENGTH)
    (bare,) = watch(lambda: scores()[0, 0].softmax(-1) @ values()[0, 0])
    assert torch.equal(bare.weights, one.weights)


def test_weights_that_are_changed_are_told() -> None:
    """Where the model multiplies values with other weights than its softmax made, the difference is large."""
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda weights: functional.dropout(weights, 0.5, training=True),
        lambda weights: weights * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None, None],
        lambda weights: weights.masked_fill(torch.ones(LENGTH, LENGTH).tril(-2).bool(), 0.0),
    ]
    for change in changes:
        (found,) = watch(lambda change=change: change(scores().softmax(-1)) @ values())
        assert found.difference > 1e-3


@pytest.mark.parametrize("keep", ["weights", "tiles", "statistics", "edges"])
def test_all_that_can_be_kept(keep: Keep) -> None:
    """Of a model's own weights the same is kept as of a call that is computed again."""
    options = {"is_causal": True}
    query, key = (
        vectors(BATCH, HEADS, LENGTH, WIDTH, seed=2),
        vectors(BATCH, HEADS, LENGTH, WIDTH, seed=3),
    )
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def by_hand() -> Tensor:
        return (query @ key.mT / WIDTH**0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ values()

    (one,) = watch(by_hand, keep=keep)
    (other,) = watch(
        lambda: functional.scaled_dot_product_attention(query, key, values(), **options), keep=keep
    )
    assert one.summary.keys() == other.summary.keys()
    for name, part in one.summary.items():
        torch.testing.assert_close(part, other.summary[name], rtol=0, atol=1e-5)
    assert torch.equal(one.visible.expand(HEADS, -1, -1), other.visible.expand(HEADS, -1, -1))
    if one.edges is not None:
        torch.testing.assert_close(one.edges[1], other.edges[1], **close(32))


def test_a_classifier_is_not_attention() -> None:
    """A softmax whose result multiplies nothing, or over one axis, is not shown."""
    logits = vectors(1, LENGTH, 99)
    assert watch(lambda: logits.softmax(-1)) == []
    assert watch(lambda: logits.softmax(-1).argmax(-1)) == []
    assert watch(lambda: (logits.softmax(-1).sum(), logits @ logits.mT)) == []
    assert watch(lambda: logits[0, 0].softmax(-1) @ vectors(99, 3)) == []


def test_a_softmax_is_known_by_its_shape() -> None:
    """Where the shapes of attention are known nothing need follow it, and other shapes are no attention."""

    def fit(part: Tensor) -> Tensor | None:
        return part if part.shape[-2:] == (LENGTH, LENGTH) else None

    (found,) = watch(
        lambda: (vectors(1, 4, LENGTH, 5).softmax(-1) @ vectors(5, 3), scores().softmax(-1)),
        fit=fit,
    )
    assert torch.equal(found.weights, scores().softmax(-1)[0])
    assert found.difference is None


def test_an_edge_is_cut_before_the_softmax() -> None:
    """The weights of the other keys make up for the cut one, and the model goes on with them."""
    hidden = edges(scores(), (1, 9, 4), (3, 5, 5))
    cut = scores()
    cut[0, 1, 9, 4] = cut[0, 3, 5, 5] = -torch.inf
    outputs = []
    (found,) = watch(
        lambda: outputs.append(scores().softmax(-1) @ values()), fit=lambda part: part, cut=hidden
    )
    assert torch.equal(found.weights, cut.softmax(-1)[0])
    assert torch.equal(outputs[-1], cut.softmax(-1) @ values())
    assert found.difference <= rounding(LENGTH)


SDPA: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((1, 4, 20, 8), (1, 4, 20, 8), {}),
    "causal": ((1, 4, 20, 8), (1, 4, 20, 8), {"is_causal": True}),
    "its own scale": ((1, 4, 20, 8), (1, 4, 30, 8), {"scale": 0.7}),
    "grouped heads": ((1, 4, 20, 8), (1, 2, 20, 8), {"enable_gqa": True}),
    "one key head": ((1, 4, 20, 8), (1, 1, 20, 8), {}),
    "heads without a batch": ((4, 20, 8), (4, 30, 8), {}),
    "one head": ((20, 8), (30, 8), {}),
    "boolean mask": (
        (1, 4, 20, 8),
        (1, 4, 20, 8),
        {"attn_mask": torch.ones(20, 20).tril(3).bool()},
    ),
    "mask of keys": (
        (1, 4, 20, 8),
        (1, 4, 20, 8),
        {"attn_mask": torch.arange(20)[None, None, None] < 15},
    ),
    "mask of numbers": ((1, 4, 20, 8), (1, 4, 30, 8), {"attn_mask": vectors(1, 4, 20, 30, seed=4)}),
    "mask of heads": ((4, 20, 8), (4, 20, 8), {"attn_mask": vectors(4, 20, 20, seed=4)}),
}


@pytest.mark.parametrize("case", SDPA)
@pytest.mark.parametrize("keep", ["weights", "statistics"])
def test_scaled_dot_product_attention(case: str, keep: Keep) -> None:
    """Its weights, seen by a value that is the unit matrix; its output is as it would be."""
    of_queries, of_keys, options = SDPA[case]
    query, key = vectors(*of_queries, seed=2), vectors(*of_keys, seed=3)
    unit = torch.eye(of_keys[-2]).expand(*of_keys[:-1], -1)
    expected = functional.scaled_dot_product_attention(query, key, unit, **options)
    outputs = []
    run = functional.scaled_dot_product_attention
    (found,) = watch(lambda: outputs.append(run(query, key, unit, **options)), keep=keep)
    torch.testing.assert_close(outputs[-1], expected, **close(32))
    heads = 1 if len(of_queries) == 2 else of_queries[-3]
    weights = expected.reshape(heads, *expected.shape[-2:])
    if keep == "weights":
        torch.testing.assert_close(found.weights, weights, **close(32))
    else:
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        torch.testing.assert_close(found.summary["entropy"], entropy, **close(64))
    assert found.difference <= rounding(32)


MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "boolean": {"attn_mask": torch.ones(LENGTH, LENGTH).triu(1).bool()},
    "of numbers": {"attn_mask": vectors(LENGTH, LENGTH, seed=5)},
    "of heads": {"attn_mask": vectors(HEADS, LENGTH, LENGTH, seed=6)},
    "padding": {"key_padding_mask": torch.arange(LENGTH)[None] >= 15},
    "both": {
        "attn_mask": torch.ones(LENGTH, LENGTH).triu(1).bool(),
        "key_padding_mask": torch.arange(LENGTH)[None] >= 15,
    },
}


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
@pytest.mark.parametrize(
    "weights", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str
)
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention(mask: str, weights: dict[str, bool], options: dict[str, bool]) -> None:
    """nn.MultiheadAttention gives what it gives without us, and its heads are the ones that it shows itself."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, HEADS, **options).eval()
    given = vectors(1, LENGTH, 32) if options.get("batch_first") else vectors(LENGTH, 1, 32)
    with torch.no_grad(), disable_fast_path():
        expected = module(given, given, given, **MASKS[mask], **weights)
        heads = module(given, given, given, **MASKS[mask], average_attn_weights=False)[1][0]
    outputs: list[tuple[Tensor, Tensor | None]] = []
    (found,) = watch(lambda: outputs.append(module(given, given, given, **MASKS[mask], **weights)))
    torch.testing.assert_close(outputs[-1][0], expected[0], **close(32))
    assert (outputs[-1][1] is None) == (weights.get("need_weights") is False)
    if expected[1] is not None:
        torch.testing.assert_close(outputs[-1][1], expected[1], **close(32))
    torch.testing.assert_close(found.weights, heads, **close(32))
    assert torch.equal(found.visible.expand(heads.shape), heads > 0)
    assert found.difference <= rounding(32)


def test_multihead_attention_of_two_texts() -> None:
    """Other keys than queries, also as many of them, are known to be another text's."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, HEADS, kdim=6, vdim=5, batch_first=True).eval()
    survey = SurveyObserver()
    with torch.no_grad(), disable_fast_path(), Tap(survey):
        module(vectors(1, 7, 32), vectors(1, 7, 6), vectors(1, 7, 5))
        module(vectors(7, 32), vectors(9, 6), vectors(9, 5))  # no batch
    assert [(seen.queries, seen.keys, seen.cross) for seen in survey.seen] == [
        (7, 7, True),
        (7, 9, True),
    ]


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first: bool) -> None:
    """nn.Transformer runs off its fused kernels while we look, and is allowed them again afterwards."""
    torch.manual_seed(0)
    options = {"batch_first": True, "norm_first": norm_first, "dropout": 0.3}
    net = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, HEADS, **options), 3, enable_nested_tensor=False
    ).eval()
    given = vectors(1, LENGTH, 32)
    expected, outputs = net(given), []
    assert torch.backends.mha.get_fastpath_enabled()
    found = watch(lambda: outputs.append(net(given)))
    assert torch.backends.mha.get_fastpath_enabled()
    assert len(found) == 3
    assert max(part.difference for part in found) <= rounding(32)
    torch.testing.assert_close(outputs[-1], expected, **close(64))


def test_our_own_layer() -> None:
    """Our modules under a tap show the weights that they return."""
    torch.manual_seed(0)
    given = vectors(1, LENGTH, 32)
    for module in (Attention(32), MultiHeadAttention(32, HEADS, kv_heads=2, causal=True)):
        _, weights = module(given, return_weights=True)
        (found,) = watch(lambda module=module: module(given))
        torch.testing.assert_close(
            found.weights, weights.detach().view(found.weights.shape), **close(32)
        )
        assert torch.equal(found.visible.expand(found.weights.shape), found.weights > 0)
        assert found.difference <= rounding(32)


def test_nothing_is_seen_after_a_tap_is_closed() -> None:
    """The innermost of taps sees what runs while it is open, and nothing later, also after an error."""
    outer, inner = SurveyObserver(), SurveyObserver()

    def attend() -> None:
        functional.scaled_dot_product_attention(values(), values(), values())

    with Tap(outer):
        attend()
        with Tap(inner):
            attend()
        attend()
        assert (len(outer.seen), len(inner.seen)) == (2, 1)
    with suppress(ValueError), Tap(outer):
        raise ValueError
    attend()
    assert (len(outer.seen), len(inner.seen)) == (2, 1)
    original = functional.scaled_dot_product_attention
    with suppress(AssertionError), disable_fast_path(), Tap(outer):
        nn.MultiheadAttention(32, HEADS)(*[vectors(LENGTH, 1, 31)] * 3)
    assert functional.scaled_dot_product_attention is original
    assert torch.backends.mha.get_fastpath_enabled()


def test_calls_that_come_by_another_way_are_not_seen_twice() -> None:
    """A call that is handed over is not found again in the functions that it is made of."""
    probe = CaptureObserver({0: (0, 1)}, Request(keep="tiles"), stop=False)
    tap = Tap(probe)
    with tap:
        tap.attend(make(LENGTH), CallSource())
    assert (probe.calls, tap.found) == (1, 0)
