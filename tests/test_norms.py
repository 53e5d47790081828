"""Norm-weighted attention and scores: brute force over every vector that every head moves, and what cannot be had."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import attnviz
from attnviz.engine import values
from attnviz.errors import ModelError
from attnviz.io import formats
from attnviz.io.csv_table import format_csv
from attnviz.layer.norms import (
    compute_inner_products,
    compute_moved_vectors,
    measure_sum_lengths,
    measure_vector_lengths,
)
from attnviz.models import load_model
from attnviz.models.builtin import Builtin
from attnviz.models.huggingface.model import HuggingFace
from attnviz.models.modules import capture_module
from attnviz.record import AttentionMap, Capture, Token
from attnviz.request import NOTHING, Placement, Prompt, Request
from attnviz.selection import Selection
from tests.architectures import AVAILABLE
from tests.conftest import SENTENCE, Tiny
from tests.tiny import load_in_torch
from tests.tolerance import rounding

pytestmark = pytest.mark.numeric

NORM, SUM, SCORES = (
    Request(method="norm"),
    Request(method="norm", summed=True),
    Request(method="scores"),
)
PROMPT = Prompt(SENTENCE)


def weights(capture: Capture) -> np.ndarray:
    """The numbers of a capture of one map."""
    (part,) = capture.maps
    assert part.weights is not None
    return part.weights


def brute(
    given: np.ndarray, value: Any, projection: Any, heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Norms by head (H, N, M) and of the sum (N, M): weights (H, N, M), value (M, K * d_v), W_O (H * d_v, dim)."""
    value, projection = (np.asarray(array, np.float64) for array in (value, projection))
    width = projection.shape[0] // heads
    shared = heads * width // value.shape[1]
    vectors = np.stack(
        [
            value[:, head // shared * width :][:, :width]
            @ projection[head * width : (head + 1) * width]
            for head in range(heads)
        ]
    )  # (H, M, dim)
    every = given[..., None] * vectors[:, None]  # (H, N, M, dim)
    return np.linalg.norm(every, axis=-1), np.linalg.norm(every.sum(0), axis=-1)


def parts(net: Any, name: str, layer: int) -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """The module that makes values, the values of what it gives, and W_O (H * d_v, dim) of a layer."""
    if name == "gpt2":
        attention = net.base_model.h[layer].attn
        return attention.c_attn, lambda made: made[..., -32:], attention.c_proj.weight
    if name == "llama":
        attention = net.base_model.layers[layer].self_attn
        return attention.v_proj, lambda made: made, attention.o_proj.weight.T
    attention = net.encoder.layer[layer].attention
    return attention.self.value, lambda made: made, attention.output.dense.weight.T


@pytest.mark.parametrize("name", ["minilm", "gpt2", "llama"])
def test_norms_equal_brute_force(name: str, tiny: Tiny, minilm: Path) -> None:
    """Of each head and of the sum, to 1e-5 of the largest: BERT, GPT-2 (Conv1D), and grouped heads."""
    model = load_in_torch(minilm if name == "minilm" else tiny(name))
    net, made = model.model, dict[int, Tensor]()
    alike, norms, sums = (
        weights(model.capture(PROMPT, request)) for request in (Request(), NORM, SUM)
    )
    hooks = [
        parts(net, name, layer)[0].register_forward_hook(
            lambda _, __, out, at=layer: made.update({at: out[0]})
        )
        for layer in range(len(alike))
    ]
    with torch.no_grad():
        net(**model.encode_prompt(PROMPT, Request(), ()).inputs)
    for hook in hooks:
        hook.remove()
    for layer in range(len(alike)):
        _, pick, projection = parts(net, name, layer)
        expected, total = brute(
            alike[layer], pick(made[layer]), projection.detach(), alike.shape[1]
        )
        np.testing.assert_allclose(norms[layer], expected, atol=1e-5 * expected.max())
        np.testing.assert_allclose(sums[layer, 0], total, atol=1e-5 * total.max())


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [("float32", 1e-5), ("float64", 1e-5), ("float16", 0.02)]
)
def test_norms_of_the_builtin_model_equal_brute_force(dtype: Any, accuracy: float) -> None:
    """In NumPy and, in half precision, in torch."""
    model = load_model(placement=Placement("auto", dtype))
    assert isinstance(model, Builtin)
    alike, norms, sums = (
        weights(model.capture(PROMPT, request)) for request in (Request(), NORM, SUM)
    )
    exact = load_model()
    assert isinstance(exact, Builtin)
    heads, named = exact.config.heads, exact.parameters
    ids = exact.encode_prompt(PROMPT, False).ids
    hidden = [
        named["embedding"][list(ids)],
        *(block.hidden[0] for block in exact.run_layers(ids, [NOTHING])),
    ]
    for layer in range(len(alike)):
        mine = f"layers.{layer}."
        x = (
            hidden[layer]
            / np.sqrt((hidden[layer] ** 2).mean(-1, keepdims=True) + 1e-6)
            * named[f"{mine}attention_norm"]
        )
        value = x @ named[f"{mine}attention.value.weight"].T
        expected, total = brute(
            alike[layer], value, named[f"{mine}attention.output.weight"].T, heads
        )
        np.testing.assert_allclose(norms[layer], expected, atol=accuracy * expected.max())
        np.testing.assert_allclose(sums[layer, 0], total, atol=accuracy * total.max())


LAST = "o_proj", "c_proj", "dense", "out_proj"  # what some models call W_O
FIRST = ["GPT-2", "GPT-NeoX", "OPT", "Gemma", "DeepSeek-V3", "LongCat-Flash", "GPT-OSS", "Falcon"]


@pytest.mark.parametrize("name", [name for name in FIRST if name in AVAILABLE])
def test_the_first_token_moves_what_the_projection_makes_of_it(name: str) -> None:
    """A causal first query has one key: its norm is how long W_O's output is without its bias; latent heads, sinks."""
    known = AVAILABLE[name]
    net, made = known.build(), list[Tensor]()

    def keep(module: Any, _: Any, out: Tensor) -> None:
        bias = getattr(module, "bias", None)
        made.append(out[0, 0] if bias is None else out[0, 0] - bias)

    ends = tuple(
        f"{attention}.{last}" for attention in ("attn", "attention", "self_attn") for last in LAST
    )
    for path, module in net.named_modules():
        if path.endswith((*ends, "self_attn.0.o_proj", "self_attn.1.o_proj")):
            module.register_forward_hook(keep)
    inputs = known.inputs(None)
    with torch.no_grad():
        net(**inputs)
    expected = [float(part.norm()) for part in made]
    found = weights(HuggingFace(name, net).capture_inputs(inputs, SUM))
    assert len(expected) == len(found)
    np.testing.assert_allclose(found[:, 0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["ModernBERT", "T5", "BART", "Whisper", "Mistral", "Gemma 2", "DeepSeek-V3.2"]
)
def test_every_kind_of_map_has_norms(name: str) -> None:
    """Encoders, cross-attention, windows, biases, speech: norms where weights are; the sum is at most that of norms."""
    known = AVAILABLE[name]
    model, inputs = HuggingFace(name, known.build()), known.inputs(None)
    every = [model.capture_inputs(inputs, request).maps for request in (Request(), NORM, SUM)]
    for plain, norm, total in zip(*every, strict=True):
        assert (norm.kind, norm.layers, norm.heads, norm.method) == (
            plain.kind,
            plain.layers,
            plain.heads,
            "norm",
        )
        assert (total.heads, total.statistics, norm.statistics) == (("sum",), None, None)
        np.testing.assert_array_equal(norm.weights > 0, plain.weights > 0)
        assert (total.weights[:, 0] <= norm.weights.sum(1) * (1 + 1e-5) + 1e-7).all()
        assert total.weights.any()


@pytest.mark.parametrize("request_", [NORM, SUM, SCORES], ids=["norm", "sum", "scores"])
@pytest.mark.parametrize("name", ["builtin", "llama"])
def test_a_window_is_that_part_of_the_whole(name: str, request_: Request, tiny: Tiny) -> None:
    """Rows and columns, of some heads of some layers."""
    model = load_model(name if name == "builtin" else str(tiny(name)))
    method = {"method": request_.method, "summed": request_.summed}
    whole = weights(model.capture(PROMPT, request_))
    part = model.capture(PROMPT, Request(**method, rows=slice(3, 6), columns=slice(1, 5))).maps[0]
    np.testing.assert_allclose(part.weights, whole[:, :, 3:6, 1:5], atol=2e-6 * np.abs(whole).max())
    assert (part.query_places, part.key_places) == ((3, 4, 5), (1, 2, 3, 4))


@pytest.mark.parametrize("request_", [NORM, SUM, SCORES], ids=["norm", "sum", "scores"])
def test_pieces_make_the_whole(
    request_: Request, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few queries and keys are held at once, the numbers are the same."""
    model = load_model(str(tiny("llama")))
    whole = weights(model.capture(PROMPT, request_))
    monkeypatch.setattr(values, "KEYS", 3)
    monkeypatch.setattr(values, "CELLS", 200)
    np.testing.assert_allclose(
        weights(model.capture(PROMPT, request_)), whole, atol=2e-6 * np.abs(whole).max()
    )


def test_some_heads_are_summed(tiny: Tiny) -> None:
    """The sum is over the chosen heads: of one head it is that head's norm."""
    for model in (load_model(), load_model(str(tiny("llama")))):
        norms = weights(model.capture(PROMPT, NORM))
        one = Request(method="norm", summed=True, heads=Selection(((2, 2),)))
        np.testing.assert_allclose(
            weights(model.capture(PROMPT, one))[:, 0], norms[:, 2], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("name", ["builtin", "minilm", "gpt2", "llama", "t5", "Gemma 2"])
def test_softmax_of_scores_gives_the_weights(name: str, tiny: Tiny, minilm: Path) -> None:
    """Also with grouped heads, relative biases and a soft cap; a masked cell is 0 and not visible."""
    if name in AVAILABLE:
        model, inputs = HuggingFace(name, AVAILABLE[name].build()), AVAILABLE[name].inputs(None)
        plain, scored = (model.capture_inputs(inputs, request) for request in (Request(), SCORES))
    else:
        loaded = load_model(
            name if name == "builtin" else str(minilm if name == "minilm" else tiny(name))
        )
        plain, scored = (
            loaded.capture(Prompt(SENTENCE), request) for request in (Request(), SCORES)
        )
    for expected, found in zip(plain.maps, scored.maps, strict=True):
        raw = np.where(found.visible, found.weights.astype(np.float64), -np.inf)
        made = np.exp(raw - raw.max(-1, keepdims=True))
        np.testing.assert_allclose(made / made.sum(-1, keepdims=True), expected.weights, atol=5e-6)
        assert found.method == "scores"
        assert (found.weights < 0).any()


class Attentive(nn.Module):
    """A layer of torch's own, between two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_bias += torch.randn(48)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, 16) -> the same."""
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def test_norms_of_a_module_of_torch() -> None:
    """nn.MultiheadAttention has them, with the bias of its values; the module is as it was."""
    torch.manual_seed(0)
    net, x = Attentive().eval(), torch.randn(1, 7, 16)
    before = net(x)
    alike, norms, sums = (
        weights(capture_module(net, x, request)) for request in (Request(), NORM, SUM)
    )
    value = (x[0] @ net.attention.in_proj_weight[32:].T + net.attention.in_proj_bias[32:]).detach()
    expected, total = brute(alike[0], value, net.attention.out_proj.weight.detach().T, 4)
    np.testing.assert_allclose(norms[0], expected, atol=1e-5)
    np.testing.assert_allclose(sums[0, 0], total, atol=1e-5)
    assert type(net(x)) is Tensor
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


class Projected(nn.Module):
    """Attention whose output is multiplied with so many matrices, as adapters do, and the results added."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.output = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(1, head, token, 4) -> (1, token, 8)."""
        merged = scaled_dot_product_attention(x, x, x).transpose(1, 2).flatten(2)
        return sum((linear(merged) for linear in self.output), torch.zeros(()))


@pytest.mark.parametrize("count", [0, 2])
def test_an_output_without_one_projection_is_refused(count: int) -> None:
    """No matrix, or one and an adapter beside it: norms by one of two would be wrong."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 4)
    assert weights(capture_module(Projected(1), x, NORM)).any()
    with pytest.raises(ModelError, match="something else with them"):
        capture_module(Projected(count), x, NORM)


@pytest.mark.parametrize(
    ("name", "request_", "why"),
    [
        ("Qwen3-Next", NORM, "something else with them"),  # a gate
        ("BitNet", SUM, "something else with them"),  # a norm
        ("GPT-Neo", NORM, "its weights alone"),
        ("GPT-Neo", SCORES, "its weights alone"),
        ("JetMoE", NORM, "use the weights"),  # a projection an expert
    ],
)
def test_norms_that_cannot_be_told_are_refused(name: str, request_: Request, why: str) -> None:
    """One line, and no number that would be wrong."""
    known = AVAILABLE[name]
    with pytest.raises(ModelError, match=why) as error:
        HuggingFace(name, known.build()).capture_inputs(known.inputs(None), request_)
    assert "\n" not in str(error.value)


def test_norms_of_a_text_that_a_model_writes(tiny: Tiny) -> None:
    """The built-in model has them, others say that they have not."""
    prompt = Prompt(SENTENCE, generate=2)
    assert weights(load_model().capture(prompt, NORM)).any()
    with pytest.raises(ModelError, match="writes a text"):
        load_model(str(tiny("llama")), writes=True).capture(prompt, NORM)


@pytest.mark.parametrize(
    "wrong",
    [{"method": "norm", "keep": "tiles"}, {"method": "scores", "keep": "edges"}, {"summed": True}],
)
def test_requests_that_mean_nothing(wrong: dict[str, Any]) -> None:
    """Norms and scores are kept cell by cell; only norms are summed."""
    with pytest.raises(ValueError, match=r"cell by cell|norms are summed"):
        Request(**wrong)


@pytest.mark.parametrize("request_", [NORM, SUM, SCORES], ids=["norm", "sum", "scores"])
def test_files_keep_the_method(request_: Request, tmp_path: Path) -> None:
    """The formats that say what numbers are give back what was written; CSV says of what unit each number is."""
    capture = load_model().capture(Prompt("the cat sat"), request_)
    for suffix in (".attn", ".json"):
        attnviz.save(capture, tmp_path / f"file{suffix}")
        back = formats.load(tmp_path / f"file{suffix}").maps[0]
        assert (back.method, back.heads) == (request_.method, capture.maps[0].heads)
        np.testing.assert_array_equal(back.weights, weights(capture))
    unit = {"norm": "length of vector", "scores": "score"}[request_.method]
    assert {line.split(",")[-1] for line in format_csv(capture).decode().splitlines()[1:]} == {unit}


@pytest.mark.parametrize(
    ("method", "least", "right"),
    [
        ("scores", -3.0, True),
        ("norm", -3.0, False),
        ("norm", 7.0, True),
        ("attention", 7.0, False),
        ("scores", np.nan, False),
        ("scores", -np.inf, False),
    ],
)
def test_only_scores_are_negative(method: str, least: float, right: bool) -> None:
    """And rows of attention alone are held to 1."""
    tokens = (Token("a", 0, 0, 1, False),)
    made = np.full((1, 1, 1, 1), least, np.float32)
    if right:
        assert (
            AttentionMap("self", (0,), (0,), tokens, tokens, made, np.array(True), method).weights
            is made
        )
        return
    with pytest.raises(ValueError, match="weights"):
        AttentionMap("self", (0,), (0,), tokens, tokens, made, np.array(True), method)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_sums_and_norms_in_any_dimension(seed: int, heads: int, n: int, m: int) -> None:
    """The products of vectors give the length of their sum, in NumPy and in torch."""
    random = np.random.default_rng(seed)
    given, value = random.random((heads, n, m)), random.normal(size=(heads, m, 3))
    vectors = compute_moved_vectors(value, random.normal(size=(heads * 3, 7)))
    expected = np.linalg.norm((given[..., None] * vectors[:, None]).sum(0), axis=-1)
    np.testing.assert_allclose(
        measure_sum_lengths(given, compute_inner_products(vectors)), expected, atol=1e-7
    )
    np.testing.assert_allclose(measure_vector_lengths(vectors), np.linalg.norm(vectors, axis=-1))
    tensors = torch.from_numpy(given), torch.from_numpy(vectors)
    np.testing.assert_allclose(
        measure_sum_lengths(tensors[0], compute_inner_products(tensors[1])).numpy(),
        expected,
        atol=1e-7,
    )


def test_heads_that_cancel_each_other_move_nothing() -> None:
    """Two heads that move opposite vectors: each is long, their sum is 0."""
    vectors = np.array([[[3.0, 4.0]], [[-3.0, -4.0]]], np.float32)
    given = np.full((2, 1, 1), 0.7, np.float32)
    square = rounding(4, 25)  # of the sum that cancels; the length is its root
    assert measure_sum_lengths(given, compute_inner_products(vectors)) == pytest.approx(
        0, abs=math.sqrt(square)
    )
    np.testing.assert_array_equal(measure_vector_lengths(vectors), 5)
