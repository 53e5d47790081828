"""The attention layer: closed forms, invariants, and torch's own attention as the oracle."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnviz.layer import (
    Attention,
    MultiHeadAttention,
    additive,
    attend,
    cosine,
    dot,
    gaussian,
    general,
    pairwise,
    scaled_dot,
)
from tests.tolerance import close

pytestmark = pytest.mark.numeric

VECTORS = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-50, 50, width=32)
)


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equal_scores_give_the_mean() -> None:
    """Where all scores are equal, weights are 1/m and the output is the mean of the values."""
    value = vectors(5, 3)
    found = attend(np.zeros((2, 4)), np.ones((5, 4)), value)
    np.testing.assert_allclose(found.weights, np.full((2, 5), 0.2), rtol=1e-6)
    np.testing.assert_allclose(found.output, np.broadcast_to(value.mean(0), (2, 3)), rtol=1e-5)


def test_self_attention_on_raw_vectors_by_hand() -> None:
    """With query = key = value = x it is softmax(x x^T / sqrt d) x, with no projections."""
    x = vectors(4, 6)
    scores = x @ x.T / np.sqrt(6)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    found = attend(x, x, x)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(found.output, weights @ x, rtol=1e-4, atol=1e-6)


def test_residual_adds_the_query() -> None:
    """residual=True gives output = query + context, with the same weights."""
    q, k, v = vectors(3, 4), vectors(5, 4, seed=1), vectors(5, 4, seed=2)
    plain, residual = attend(q, k, v), attend(q, k, v, residual=True)
    np.testing.assert_allclose(residual.output, q + plain.output, rtol=1e-6)
    np.testing.assert_array_equal(residual.weights, plain.weights)


def test_every_score_equals_its_formula() -> None:
    """Each named or made score is f(q_i, k_j), checked one pair at a time in plain NumPy."""
    q, k = vectors(3, 4), vectors(5, 4, seed=1)
    w, u, v = vectors(7, 4, seed=2), vectors(7, 4, seed=3), vectors(7, seed=4)
    square = vectors(4, 4, seed=5)
    formulas = {
        dot: lambda a, b: a @ b,
        scaled_dot: lambda a, b: a @ b / 2,
        cosine: lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        gaussian(): lambda a, b: -np.sum((a - b) ** 2) / 2,
        gaussian(3.0): lambda a, b: -np.sum((a - b) ** 2) / 18,
        general(square): lambda a, b: a @ square @ b,
        additive(w, u, v): lambda a, b: v @ np.tanh(w @ a + u @ b),
        pairwise(lambda a, b: -abs(a - b).sum(-1)): lambda a, b: -np.abs(a - b).sum(),
    }
    for score, formula in formulas.items():
        expected = [[formula(a, b) for b in k] for a in q]
        np.testing.assert_allclose(
            attend(q, k, k, score=score).scores, expected, rtol=1e-4, atol=1e-5
        )
        batched = attend(np.stack([q, q]), k, k, score=score).scores
        np.testing.assert_allclose(batched[1], expected, rtol=1e-4, atol=1e-5)


def test_names_stand_for_the_functions() -> None:
    """A score by name is the function of that name."""
    x = vectors(4, 4)
    for name, score in {
        "dot": dot,
        "scaled_dot": scaled_dot,
        "cosine": cosine,
        "gaussian": gaussian(),
    }.items():
        np.testing.assert_array_equal(attend(x, x, x, score=name).scores, score(x, x))


def test_parameters_of_scores_may_be_half() -> None:
    """General and additive work in half precision, and refuse matrices that do not fit each other."""
    x, w = torch.randn(3, 4).half(), torch.randn(4, 4).half()
    for score in (general(w), additive(w, w, w[0])):
        assert attend(x, x, x, score=score).output.dtype == torch.float16
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(4,\)"):
        additive(np.ones((5, 4)), np.ones((5, 4)), np.ones(4))


def test_gradients_of_cosine_are_finite_at_zero() -> None:
    """A zero vector has no direction, and no NaN either."""
    x = torch.zeros(3, 4, requires_grad=True)
    attend(x, x, x, score="cosine").output.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_gaussian_survives_a_common_offset() -> None:
    """Distances between vectors far from the origin do not cancel away."""
    x = vectors(4, 4)
    near, far = (
        attend(x + offset, x + offset, x, score="gaussian").weights for offset in (0, 1000)
    )
    np.testing.assert_allclose(far, near, atol=2e-3)


@given(VECTORS, st.sampled_from(["dot", "scaled_dot", "cosine", "gaussian"]), st.booleans())
@settings(max_examples=60)
def test_rows_sum_to_one(x: np.ndarray, score: str, causal: bool) -> None:
    """Whatever the vectors, each row of weights is a distribution and the output lies within the values."""
    found = attend(x, x, x, score=score, causal=causal)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)
    assert (found.weights >= 0).all()
    assert (found.output <= x.max(0) + 1e-3).all()
    assert (found.output >= x.min(0) - 1e-3).all()


@given(VECTORS, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_of_keys_does_not_matter(x: np.ndarray, random: object) -> None:
    """Permuting keys with their values permutes the weights and leaves the output."""
    order = np.array(random.sample(range(len(x)), len(x)))
    plain, permuted = attend(x, x, x), attend(x, x[order], x[order])
    np.testing.assert_allclose(permuted.weights, plain.weights[:, order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(permuted.output, plain.output, rtol=1e-3, atol=1e-3)


def test_boolean_mask_is_true_where_a_query_may_attend() -> None:
    """Masked keys get exactly 0, and the rest is the softmax over what is left."""
    x = vectors(4, 3)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], bool)
    found = attend(x, x, x, mask=mask)
    assert (found.weights[~mask] == 0).all()
    assert np.isneginf(found.scores[~mask]).all()
    for i, row in enumerate(mask):
        np.testing.assert_allclose(
            found.weights[i, row], attend(x[i : i + 1], x[row], x[row]).weights[0], rtol=1e-5
        )


def test_float_mask_is_added_to_the_scores() -> None:
    """A float mask of 0 and -inf masks; other values shift the scores."""
    x, bias = vectors(4, 3), vectors(4, 4, seed=9)
    np.testing.assert_allclose(
        attend(x, x, x, mask=bias).scores, attend(x, x, x).scores + bias, rtol=1e-5
    )
    allowed = np.tri(4, dtype=bool)
    additive_mask = np.where(allowed, 0, -np.inf).astype(np.float32)
    np.testing.assert_array_equal(
        attend(x, x, x, mask=additive_mask).weights, attend(x, x, x, mask=allowed).weights
    )


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 5), (5, 2)])
def test_causal_aligns_the_last_query_with_the_last_key(n: int, m: int) -> None:
    """Query i sees keys up to i + m - n; a query before all keys sees none and gives zeros."""
    found = attend(vectors(n, 4), vectors(m, 4, seed=1), vectors(m, 4, seed=2), causal=True)
    allowed = np.arange(m)[None] <= np.arange(n)[:, None] + m - n
    np.testing.assert_array_equal(found.weights > 0, allowed)
    np.testing.assert_array_equal(found.output[~allowed.any(1)], 0)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_fully_masked_row_gives_zeros(kind: str) -> None:
    """No NaN, in weights, output or gradients, where a query may attend to nothing."""
    x = vectors(3, 4)
    mask = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1]], bool)
    if kind == "torch":
        x, mask = torch.from_numpy(x).requires_grad_(), torch.from_numpy(mask)
    found = attend(x, x, x, mask=mask)
    assert (found.weights[0] == 0).all()
    assert (found.output[0] == 0).all()
    if kind == "torch":
        found.output.sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_ten_thousand_are_safe(dtype: torch.dtype) -> None:
    """Scores of +-1e4 neither overflow nor lose the winner, in half precision too."""
    x = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [0.0, 100.0]], dtype=dtype)
    found = attend(x, x, x, score="dot")
    assert found.scores.abs().max() == 1e4
    assert torch.equal(found.weights, torch.eye(3))
    assert found.output.dtype == dtype
    assert torch.equal(found.output, x)


def test_half_precision_is_computed_in_single() -> None:
    """The weights of float16 vectors are those of the same numbers in float32."""
    x = vectors(8, 16).astype(np.float16)
    wide = attend(x.astype(np.float32), x.astype(np.float32), x.astype(np.float32))
    found = attend(x, x, x)
    np.testing.assert_array_equal(found.weights, wide.weights)
    assert found.output.dtype == np.float16
    assert found.weights.dtype == np.float32


@pytest.mark.parametrize("causal", [False, True])
def test_numpy_and_torch_agree_with_sdpa(causal: bool) -> None:
    """The one function gives the same on both kinds of arrays, and what torch's own attention gives."""
    q, k, v = (vectors(2, 3, 7, 8, seed=i) for i in range(3))
    ours = attend(q, k, v, causal=causal)
    theirs = attend(*map(torch.from_numpy, (q, k, v)), causal=causal)
    sdpa = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), is_causal=causal
    )
    np.testing.assert_allclose(ours.weights, theirs.weights.numpy(), **close(8))
    np.testing.assert_allclose(ours.output, sdpa.numpy(), **close(8))
    np.testing.assert_allclose(theirs.output.numpy(), sdpa.numpy(), **close(8))


def test_gradients_equal_those_of_sdpa() -> None:
    """Torch differentiates through our function as through its own."""
    mine = [torch.from_numpy(vectors(2, 5, 8, seed=i)).requires_grad_() for i in range(3)]
    its = [x.detach().clone().requires_grad_() for x in mine]
    attend(*mine, causal=True).output.square().sum().backward()
    torch.nn.functional.scaled_dot_product_attention(*its, is_causal=True).square().sum().backward()
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ((np.zeros((2, 3)), np.zeros((4, 5)), np.zeros((4, 5))), ["(2, 3)", "(4, 5)"]),
        ((np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((5, 3))), ["(4, 3)", "(5, 3)"]),
        (
            (np.zeros((2, 2, 3)), np.zeros((3, 4, 3)), np.zeros((3, 4, 3))),
            ["(2, 2, 3)", "(3, 4, 3)"],
        ),
        ((np.zeros((0, 3)), np.zeros((4, 3)), np.zeros((4, 3))), ["(0, 3)"]),
        ((np.zeros((2, 3)), np.zeros((0, 3)), np.zeros((0, 3))), ["(0, 3)"]),
        ((np.zeros(3), np.zeros((4, 3)), np.zeros((4, 3))), ["(3,)"]),
    ],
)
def test_wrong_shapes_are_named(arguments: tuple[np.ndarray, ...], shapes: list[str]) -> None:
    """An error names both shapes; an empty sequence is an error."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, shapes))):
        attend(*arguments)


def test_wrong_masks_and_scores_are_named() -> None:
    """So it is for masks, residuals and what a score function returns."""
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(2, 2\)"):
        attend(x, x, x, mask=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match=r"\(5, 2, 2\).*\(2, 2\)"):
        attend(x, x, x, mask=np.ones((5, 2, 2), bool))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 7\)"):
        attend(x, x, np.zeros((2, 7)), residual=True)
    with pytest.raises(ValueError, match=r"\(2,\).*pairwise"):
        attend(x, x, x, score=lambda q, k: (q * k).sum(-1))
    with pytest.raises(ValueError, match="cosine"):
        attend(x, x, x, score="nonsense")
    with pytest.raises(ValueError, match="above 0"):
        gaussian(0)


def test_attention_is_projections_and_the_formula() -> None:
    """Attention(dim): softmax((xWq + bq)(xWk + bk)^T / sqrt(dim)) (xWv + bv); weights on request."""
    torch.manual_seed(0)
    layer, x = Attention(6), torch.randn(2, 5, 6)
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    expected = torch.softmax(q @ k.mT / 6**0.5, -1)
    output, weights = layer(x, return_weights=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, expected @ v)
    torch.testing.assert_close(layer(x), output)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_equals_torch(cross: bool, bias: bool) -> None:
    """With parameters copied over, outputs and per-head weights equal torch.nn.MultiheadAttention's to 1e-6."""
    torch.manual_seed(0)
    dims = {"kdim": 10, "vdim": 14} if cross else {}
    theirs = torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, **dims)
    ours = MultiHeadAttention(
        12, 3, bias=bias, key_dim=dims.get("kdim"), value_dim=dims.get("vdim")
    )
    query, key, value = (
        torch.randn(2, 5, 12),
        torch.randn(2, 7, dims.get("kdim", 12)),
        torch.randn(2, 7, 14),
    )
    value = value if cross else key
    parts = (
        [theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight]
        if cross
        else list(theirs.in_proj_weight.chunk(3))
    )
    with torch.no_grad():
        for mine, weight in zip((ours.query, ours.key, ours.value), parts, strict=True):
            mine.weight.copy_(weight)
        ours.output.weight.copy_(theirs.out_proj.weight)
        if bias:
            theirs.in_proj_bias.normal_()
            theirs.out_proj.bias.normal_()
            for mine, part in zip(
                (ours.query, ours.key, ours.value), theirs.in_proj_bias.chunk(3), strict=True
            ):
                mine.bias.copy_(part)
            ours.output.bias.copy_(theirs.out_proj.bias)
    mask = torch.rand(2, 5, 7) > 0.3
    mask[..., 0] = True
    expected, weights = theirs(
        query, key, value, attn_mask=~mask.repeat_interleave(3, 0), average_attn_weights=False
    )
    found, found_weights = ours(query, key, value, mask=mask, return_weights=True)
    torch.testing.assert_close(found, expected, **close(32))
    torch.testing.assert_close(found_weights, weights, **close(32))


def test_grouped_heads_share_keys_and_values() -> None:
    """kv_heads: the same as a full layer whose key and value heads are repeated; weights are per query head."""
    torch.manual_seed(0)
    grouped, full = (
        MultiHeadAttention(12, 6, kv_heads=2, causal=True),
        MultiHeadAttention(12, 6, causal=True),
    )
    with torch.no_grad():
        for name in ("query", "output"):
            getattr(full, name).load_state_dict(getattr(grouped, name).state_dict())
        for name in ("key", "value"):
            source, target = getattr(grouped, name), getattr(full, name)
            target.weight.copy_(
                source.weight.view(2, 2, 12).repeat_interleave(3, 0).reshape(12, 12)
            )
            target.bias.copy_(source.bias.view(2, 2).repeat_interleave(3, 0).reshape(12))
    x = torch.randn(2, 5, 12)
    for a, b in zip(grouped(x, return_weights=True), full(x, return_weights=True), strict=True):
        torch.testing.assert_close(a, b)
    assert grouped(x, return_weights=True)[1].shape == (2, 6, 5, 5)


def test_rotary_weights_depend_on_distance_alone() -> None:
    """For one repeated vector, rotary weights before the softmax are the same along each diagonal."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, 2, rotary=True)
    x = torch.randn(1, 1, 8).expand(1, 6, 8)
    logs = layer(x, return_weights=True)[1].log()
    relative = logs - logs.diagonal(dim1=-2, dim2=-1)[..., None]
    for offset in range(-5, 6):
        diagonal = relative.diagonal(offset, dim1=-2, dim2=-1)
        torch.testing.assert_close(
            diagonal, diagonal[..., :1].expand_as(diagonal), rtol=1e-4, atol=1e-5
        )


def test_modules_refuse_what_does_not_divide() -> None:
    """Impossible numbers of heads and vectors of a wrong width are named."""
    with pytest.raises(ValueError, match=r"10.*3 heads"):
        MultiHeadAttention(10, 3)
    with pytest.raises(ValueError, match=r"6 heads.*4"):
        MultiHeadAttention(12, 6, kv_heads=4)
    with pytest.raises(ValueError, match="even"):
        MultiHeadAttention(9, 3, rotary=True)
    with pytest.raises(ValueError, match=r"\(1, 2, 5\).*12"):
        MultiHeadAttention(12, 3)(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"\(1, 0, 12\)"):
        MultiHeadAttention(12, 3)(torch.zeros(1, 0, 12))


def test_hooks_on_projections_fire() -> None:
    """The module calls its own Linear layers, so that hooks and parametrisations of them work."""
    layer, fired = MultiHeadAttention(12, 3), []
    for name in ("query", "key", "value", "output"):
        getattr(layer, name).register_forward_hook(lambda *_, name=name: fired.append(name))
    layer(torch.zeros(1, 2, 12))
    assert fired == ["query", "key", "value", "output"]


def test_importing_the_layer_does_not_import_torch() -> None:
    """Attend works on NumPy arrays in a process that never loads torch."""
    code = (
        "import sys, numpy as np; from attnviz.layer import attend; attend(*[np.eye(2)] * 3);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    """The layer gives the same on a GPU."""
    x = torch.from_numpy(vectors(2, 5, 8))
    found = attend(x.cuda(), x.cuda(), x.cuda(), causal=True)
    torch.testing.assert_close(
        found.weights.cpu(), attend(x, x, x, causal=True).weights, rtol=0, atol=1e-5
    )
