"""Interventions: edges that are cut, heads that are replaced, against the same done by hand in other models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.stats import entropy
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from attnviz.cli.show import MOVED
from attnviz.experiments.ablation import permute_rows
from attnviz.experiments.intervention import (
    DRAWS,
    PromptedModel,
    draw_members,
    intervene,
    make_intervention,
)
from attnviz.models import Model, load_model
from attnviz.record import AttentionMap
from attnviz.request import NOTHING, Intervention, Prompt, Request
from attnviz.results.intervention import (
    InterventionChanges,
    InterventionOutcome,
    make_prediction_table,
)
from attnviz.selection import HeadNames, TokenReference, parse_edge
from tests.commands import list_loaded_packages, require_failure
from tests.conftest import ROOT, SENTENCE, Run, Tiny
from tests.tiny import make_bert_with_head
from tests.tolerance import close

pytestmark = pytest.mark.numeric

PROMPT = Prompt(SENTENCE)
TERMS = 4096  # a logit is a sum over the width, and a softmax over this vocabulary
LOWEST = torch.finfo(torch.float32).min
HEADS, WIDTH = 4, 8  # of the tiny GPT-2
BREAKS_OFF = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy"


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny) -> Model:
    """A tiny random GPT-2 that predicts next tokens."""
    return load_model(str(tiny("gpt2")), predicts=True)


def eager(folder: Path, kind: Any = AutoModelForCausalLM) -> torch.nn.Module:
    """The library's own model, whose attention shows its weights."""
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


def outcome(
    model: Model, changes: InterventionChanges, prompt: Prompt = PROMPT
) -> InterventionOutcome:
    """What changes do on a text."""
    return intervene(PromptedModel.of(model, prompt), changes)


def ids(model: Model) -> torch.Tensor:
    """The tokens of the sentence, (1, n)."""
    return torch.tensor([[token.id for token in PromptedModel.of(model, PROMPT).scope.queries]])


def captured(model: Model, intervention: Intervention = NOTHING) -> AttentionMap:
    """The attention of all layers and heads."""
    return model.capture(PROMPT, Request(), intervention).maps[0]


# Against the library


def test_a_knock_out_is_a_mask_of_four_axes(gpt2: Model, tiny: Tiny) -> None:
    """Weights and logits are those of eager attention under that mask; on the edge they are 0, and masked."""
    changes = InterventionChanges(pairs=((8, 2), (None, 3)), layers=(0, 1, 2))
    n = ids(gpt2).shape[1]
    mask = torch.full((1, 1, n, n), LOWEST).triu(1)
    mask[..., 8, 2] = mask[..., 4:, 3] = LOWEST
    with torch.inference_mode():
        expected = eager(tiny("gpt2"))(ids(gpt2), attention_mask=mask, output_attentions=True)
    part = captured(gpt2, make_intervention(changes))
    np.testing.assert_allclose(part.weights, torch.cat(expected.attentions), **close(TERMS))
    assert not part.visible[..., 8, 2].any()
    assert not part.weights[..., 8, 2].any()
    found = outcome(gpt2, changes)
    np.testing.assert_allclose(found.response.outputs[1], expected.logits[0, -1], **close(TERMS))
    assert found.effect.kl > 1e-4


def test_other_rows_of_the_layer_stay(gpt2: Model) -> None:
    """A cut in one head changes its query's row, which sums to 1 again, and nothing else before the next layer."""
    before, after = (
        captured(gpt2),
        captured(gpt2, make_intervention(InterventionChanges(pairs=((8, 2),), heads=((1, 3),)))),
    )
    same = np.ones(before.weights[:2].shape, dtype=bool)
    same[1, 3, 8] = False
    np.testing.assert_array_equal(before.visible[:2][same], after.visible[:2][same])
    np.testing.assert_allclose(before.weights[:2][same], after.weights[:2][same], atol=1e-6)
    expected = np.delete(before.weights[1, 3, 8], 2)
    np.testing.assert_allclose(
        np.delete(after.weights[1, 3, 8], 2), expected / expected.sum(), atol=1e-6
    )
    assert np.abs(before.weights[2] - after.weights[2]).max() > 1e-5


def test_a_knock_out_in_an_encoder_turns_its_vector(minilm: Path) -> None:
    """MiniLM predicts nothing: 1 - cos of the vector of [CLS] is that of eager attention under the mask."""
    model, library = load_model(str(minilm), predicts=True), eager(minilm, AutoModel)
    found = outcome(model, InterventionChanges(pairs=((None, 3),), layers=tuple(range(6))))
    n = ids(model).shape[1]
    mask = torch.zeros(1, 1, n, n)
    mask[..., 3] = LOWEST
    mask[..., 3, 3] = 0
    with torch.inference_mode():
        before, after = (
            library(ids(model), attention_mask=part)[0][0, 0]
            for part in (torch.zeros_like(mask), mask)
        )
    assert found.response.kind == "vector"
    np.testing.assert_allclose(found.response.outputs[1], after, atol=1e-5)
    assert found.effect.cosine == pytest.approx(cosine(before.double(), after.double()), abs=1e-6)
    assert np.isnan(found.effect.kl)
    assert found.effect.cosine > 1e-3
    assert len(found.others) == DRAWS


Fill = Callable[
    [torch.Tensor], torch.Tensor
]  # values of a head (n, d_v) -> what it is to put out (n, d_v)


def hooked(folder: Path, tokens: torch.Tensor, layer: int, head: int, fill: Fill) -> torch.Tensor:
    """Next-token logits of eager GPT-2 with a head's output set before it is projected."""
    model = eager(folder)
    attention, values = model.transformer.h[layer].attn, []
    part = slice(head * WIDTH, (head + 1) * WIDTH)
    attention.c_attn.register_forward_hook(
        lambda module, args, out: values.append(out[0, :, 2 * HEADS * WIDTH :])
    )

    def put(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:  # noqa: ARG001
        changed = args[0].clone()
        changed[0, :, part] = fill(torch.cat([values[0][:, part], changed[0, :, part]], -1))
        return (changed,)

    attention.c_proj.register_forward_pre_hook(put)
    with torch.inference_mode():
        return model(tokens).logits[0, -1]


FILLS: dict[str, Fill] = {
    "zero": lambda both: torch.zeros_like(both[:, WIDTH:]),
    "mean": lambda both: both[:, WIDTH:].mean(0),
    "uniform": lambda both: both[:, :WIDTH].cumsum(0) / torch.arange(1, len(both) + 1)[:, None],
}


@pytest.mark.parametrize("how", FILLS)
def test_an_ablated_head_puts_out_what_a_hook_puts_there(gpt2: Model, tiny: Tiny, how: Any) -> None:
    """Zeros; the mean of its output over the queries; the running mean of the values that a causal head sees."""
    found = outcome(gpt2, InterventionChanges(ablated=((1, 2),), how=how))
    expected = hooked(tiny("gpt2"), ids(gpt2), 1, 2, FILLS[how])
    np.testing.assert_allclose(found.response.outputs[1], expected, **close(TERMS))
    assert found.effect.kl > 1e-4


def test_zeros_are_zeros_in_the_projection(gpt2: Model, tiny: Tiny) -> None:
    """Heads of two layers, in a copy of the weights of which these columns of W_O are 0."""
    model, heads = eager(tiny("gpt2")), ((0, 1), (2, 0), (2, 3))
    with torch.no_grad():
        for layer, head in heads:
            model.transformer.h[layer].attn.c_proj.weight[head * WIDTH : (head + 1) * WIDTH] = 0
        expected = model(ids(gpt2)).logits[0, -1]
    found = outcome(gpt2, InterventionChanges(ablated=heads))
    np.testing.assert_allclose(found.response.outputs[1], expected, **close(TERMS))


def test_kl_and_logits_are_those_of_the_probabilities(gpt2: Model) -> None:
    """KL(before || after) by SciPy; the target is the likeliest before; nothing is changed by no change."""
    found = outcome(gpt2, InterventionChanges(ablated=((1, 2),)))
    before, after = (torch.tensor(row, dtype=torch.float64) for row in found.response.outputs[:2])
    p, q = (part.softmax(-1).numpy() for part in (before, after))
    assert found.effect.kl == pytest.approx(entropy(p, q), rel=1e-9)
    np.testing.assert_allclose(found.probabilities, [p, q], rtol=1e-9)
    target = int(p.argmax())
    assert found.response.target == target
    rise = (after - after.mean() - before + before.mean())[target]
    assert found.effect.logit == pytest.approx(float(rise), rel=1e-9)
    assert set(found.likeliest_outputs) == {*np.argsort(-p)[:5], *np.argsort(-q)[:5]}


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_a_permuted_row_keeps_its_weights(seed: int, n: int) -> None:
    """Each row has the same weights as before, in any order, on the keys that it sees."""
    rng = np.random.default_rng(seed)
    visible = rng.random((2, n, n)) < 0.6
    weights = np.where(visible, rng.random((2, n, n)), 0)
    found = permute_rows(weights, visible, rng)
    np.testing.assert_array_equal(np.sort(found, -1), np.sort(weights, -1))
    assert not found[~visible].any()


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (BertForMaskedLM, "The cat [MASK] on the mat.", "token 3 [MASK]"),
        (BertForSequenceClassification, SENTENCE, "the class of the text"),
    ],
)
def test_masked_tokens_and_classes_are_predictions(kind: Any, text: str, said: str) -> None:
    """The table names what is predicted and where, and its likeliest outputs with the library's probabilities."""
    model = make_bert_with_head(kind)
    subject = PromptedModel.of(model, Prompt(text))
    found = intervene(
        subject, InterventionChanges(pairs=((3, 1),), layers=(0, 1), ablated=((0, 1),), how="mean")
    )
    tokens = torch.tensor([[token.id for token in subject.scope.queries]])
    with torch.inference_mode():
        logits = model.model(input_ids=tokens).logits[0]
    expected = (logits if logits.ndim == 1 else logits[3]).softmax(-1)
    np.testing.assert_allclose(found.probabilities[0], expected, atol=1e-6)
    table = make_prediction_table(found)
    assert said in table.caption[0]
    assert table.cells[0][0] == f"{expected.max():.4f}"
    assert found.effect.kl > 0


# What it is compared with


@given(
    st.dictionaries(
        st.integers(0, 3), st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1
    ),
    st.integers(),
)
def test_others_are_as_many_of_the_same_group(chosen: dict[int, set[int]], seed: int) -> None:
    """Each draw has as many members of each group, none of its own; all draws differ, DRAWS or all that there are."""
    own = [(group, one) for group, members in chosen.items() for one in sorted(members)]
    draws = draw_members(own, dict.fromkeys(chosen, range(6)), np.random.default_rng(abs(seed)))
    assert 1 <= len(draws) == len(set(draws)) <= DRAWS
    for draw in draws:
        assert sorted(group for group, _ in draw) == sorted(group for group, _ in own)
        assert len(set(draw)) == len(own)
        assert not set(draw) & set(own)
    if len(own) == 1:
        assert len(draws) == 5


def test_both_at_once_are_drawn_at_random() -> None:
    """Each other head with each other key that is seen, of which some are taken, the seed says which."""
    model, changes = (
        load_model(),
        InterventionChanges(pairs=((9, 3),), layers=(0, 1, 2), ablated=((1, 2),)),
    )
    first, other = (
        intervene(PromptedModel.of(model, Prompt(SENTENCE)), changes, seed=seed).random_changes
        for seed in (0, 1)
    )
    assert len(first) == DRAWS
    assert first != other
    pairs = {(one.ablated[0][1], one.pairs[0][1]) for one in first}
    assert len(pairs) == DRAWS
    assert all(head != 2 and key != 3 for head, key in pairs)
    assert len({key for _, key in pairs}) > 3


def test_what_is_permuted_is_permuted_by_the_seed() -> None:
    """Another seed puts weights into another order."""
    subject, changes = (
        PromptedModel.of(load_model(), Prompt(SENTENCE)),
        InterventionChanges(ablated=((1, 2),), how="permute"),
    )
    first, again, other = (intervene(subject, changes, seed=seed).effect.kl for seed in (0, 0, 1))
    assert first == again != other


def test_other_keys_are_those_that_the_query_sees() -> None:
    """Of a query with six keys, of which one is cut and one its own, there are four others; of one with two, none."""
    model = load_model()
    assert len(outcome(model, InterventionChanges(pairs=((5, 2),), layers=(0, 1, 2))).others) == 4
    assert len(outcome(model, InterventionChanges(pairs=((2, 1),), layers=(1,))).others) == 1
    lonely = outcome(model, InterventionChanges(pairs=((1, 0),), layers=(1,)))
    assert lonely.others == ()
    assert np.isnan(lonely.scale).all()
    assert outcome(model, InterventionChanges(pairs=((5, None), (5, 2)), layers=(1,))).others == ()
    assert len(outcome(model, InterventionChanges(pairs=((5, 2),), heads=((1, 0),))).others) == 5


def test_the_scale_is_the_median_of_the_others() -> None:
    """Each other head of the layer is ablated in its turn; the sizes of their effects have this median."""
    model = load_model()
    found = outcome(model, InterventionChanges(ablated=((1, 3),), how="mean"))
    alone = [
        outcome(model, InterventionChanges(ablated=((1, head),), how="mean")).effect
        for head in (0, 1, 2, 4, 5)
    ]
    np.testing.assert_allclose(found.others, alone, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.scale[:2], np.median(np.abs(alone), axis=0)[:2], rtol=1e-3)


# The story


def induction(model: Model, head: tuple[int, int], changes: Intervention) -> float:
    """The mean weight that the second copy of the sample's sentence gives to the token after its own first copy."""
    prompt = Prompt((ROOT / "sample_texts" / "repeat.txt").read_text())
    weights = model.capture(prompt, Request(heads=HeadNames((head,))), changes).maps[0].weights
    return float(np.mean([weights[0, 0, query, query - 9] for query in range(12, 21)]))


@pytest.mark.parametrize(("head", "before"), [((1, 1), 0.64), ((1, 3), 0.42)])
def test_without_the_previous_token_head_there_is_no_induction(
    head: tuple[int, int], before: float
) -> None:
    """L0H2 ablated, the induction heads lose their pattern; no other head of its layer does that."""
    model = load_model()
    without = [
        induction(model, head, make_intervention(InterventionChanges(ablated=((0, other),))))
        for other in range(6)
    ]
    assert induction(model, head, NOTHING) > before
    assert without[2] < 0.08
    assert min(without[:2] + without[3:]) > 0.2


def test_without_the_previous_token_head_a_repeat_is_not_told() -> None:
    """The sentence breaks off in its second copy: " dog" falls from a quarter to nothing, KL beyond the others'."""
    found = outcome(load_model(), InterventionChanges(ablated=((0, 2),)), Prompt(BREAKS_OFF))
    target = found.response.target
    assert found.response.name(target) == " dog"
    assert found.probabilities[0][target] > 0.2
    assert found.probabilities[1][target] < 0.001
    assert found.effect.kl > 4 * found.scale.kl > 0


# The command


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("it->cat", ("it", "cat")),
        (" 8 -> -2 ", (8, -2)),
        ("*->cat", (None, "cat")),
        ("->->cat", ("->", "cat")),
        ("cat->->", ("cat", "->")),
        ("a->b->c", ("a", "b->c")),
    ],
)
def test_edges_are_parted_at_the_first_arrow_that_has_two_sides(
    text: str, sides: tuple[Any, Any]
) -> None:
    """A number, a word or * on either side; an arrow may be a token."""
    assert parse_edge(text) == tuple(
        None if side is None else TokenReference(side) for side in sides
    )


def test_the_screen_shows_before_after_and_the_difference(call: Run) -> None:
    """One map three times, what was done, then the prediction with KL and its scale; the same bytes each time."""
    args = (
        "intervene",
        BREAKS_OFF,
        "--ablate",
        "L0H2",
        "-H",
        "L1H3",
        "--width",
        "120",
        "--color",
        "never",
    )
    done = call(*args)
    assert done.returncode == 0, done.stderr
    for told in (
        "before  ",
        "after  ",
        "after - before",
        "ablated: L0H2, the output replaced by zeros",
        "␣dog",
    ):
        assert told in done.stdout
    assert "KL(before || after) 2.015 nats" in done.stdout
    assert "median of 5 draws" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert call(*args).stdout == done.stdout


def test_several_maps_are_shown_changed(call: Run) -> None:
    """A grid shows what the model does under the intervention, and says so."""
    done = call(
        "intervene",
        SENTENCE,
        "--knock-out",
        "it->cat",
        "--in",
        "1-2",
        "--view",
        "grid",
        "--color",
        "never",
    )
    assert "cut before the softmax: 8 it -> 2 cat, in all heads of layers 1, 2" in done.stdout
    assert "after - before" not in done.stdout
    assert "other keys of the same queries" in done.stdout


def test_json_holds_the_changed_map_and_the_prediction(call: Run) -> None:
    """The usual document, and beside it what was changed, the probabilities in both runs, and the comparison."""
    done = call(
        "intervene",
        SENTENCE,
        "-H",
        "L1H3",
        "--knock-out",
        "it->cat",
        "--in",
        "L1H3",
        "--json",
        "-q",
    )
    data = json.loads(done.stdout, parse_constant=pytest.fail)
    part = captured(
        load_model(), make_intervention(InterventionChanges(pairs=((8, 2),), heads=((1, 3),)))
    )
    row = data["maps"][0]["weights"][0][0][8]
    assert row[2] is None
    np.testing.assert_allclose([row[0], row[1]], part.weights[1, 3, 8, :2], rtol=1e-6)
    found = data["intervention"]
    assert (found["knock_out"], found["in"]) == ([{"query": 8, "key": 2}], {"heads": ["L1H3"]})
    draws = found["comparison"]["draws"]
    assert [draw["in"]["heads"] for draw in draws] == [[f"L1H{head}"] for head in (0, 1, 2, 4, 5)]
    assert found["comparison"]["median"]["kl"] == pytest.approx(
        np.median([draw["kl"] for draw in draws])
    )
    prediction = found["prediction"]
    assert (prediction["kind"], prediction["place"], prediction["token"]) == ("next", 11, ".")
    assert prediction["target"] == {name: prediction["before"][0][name] for name in ("token", "id")}
    assert [one["id"] for one in prediction["before"]] == [one["id"] for one in prediction["after"]]
    assert prediction["cosine_change"] is None
    assert prediction["kl"] > 0


@pytest.mark.exact
@pytest.mark.parametrize("name", ["x.png", "x.md", "x.html", "x.csv", "x.npz"])
def test_every_format_is_written(call: Run, tmp_path: Path, name: str) -> None:
    """Figures with the table below, Markdown, a page and data; text says what was done."""
    done = call("intervene", SENTENCE, "--ablate", "L0H2", "--with", "uniform", "-o", name)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / name).read_bytes()
    assert data
    if name.endswith((".md", ".html")):
        assert (
            "ablated: L0H2, the output replaced by the mean of the values that it sees"
            in data.decode()
        )
        assert "other heads of the same layers" in data.decode()


@pytest.mark.exact
@pytest.mark.parametrize("how", ["mean", "uniform", "permute"])
@pytest.mark.parametrize("method", ["gradient", "scores"])
def test_other_numbers_are_shown_too(call: Run, tiny: Tiny, how: str, method: str) -> None:
    """Gradients and scores of a model whose heads are ablated and edges cut."""
    changes = "--ablate", "L0H1", "--with", how, "--knock-out", "4->1"
    done = call(
        "show",
        "a cat sat on",
        "-m",
        tiny("llama"),
        "--weights",
        method,
        *changes,
        "--color",
        "never",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "as many other heads of the same layers and other keys of the same queries" in done.stdout
    )


@pytest.mark.exact
def test_an_encoder_decoder_says_whose_edges_are_cut(call: Run, tiny: Tiny) -> None:
    """Cross-attention from a token of the target to one of the text; --map must be said."""
    args = (
        "intervene",
        "a cat sat",
        "--target",
        "the dog ran",
        "-m",
        tiny("t5"),
        "--knock-out",
        "dog->cat",
        "--json",
        "-q",
    )
    require_failure(call(*args), 2, "encoder, decoder, cross: show --map says which")
    data = json.loads(call(*args, "--map", "cross").stdout)
    queries, keys = (
        [token["text"] for token in data["maps"][0][side]] for side in ("queries", "keys")
    )
    (cut,) = data["intervention"]["knock_out"]
    assert (queries[cut["query"]], keys[cut["key"]]) == ("dog", "cat")
    assert data["maps"][0]["weights"][0][0][cut["query"]][cut["key"]] is None
    require_failure(
        call("intervene", "a cat", "-m", tiny("t5"), "--ablate", "L0H0"), 2, "--map says which"
    )


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_heads_of_an_encoder_decoder_are_those_of_one_map(kind: str, tiny: Tiny) -> None:
    """Zeros in place of the output of one, and zeros in its columns of W_O: the same logits."""
    model = load_model(str(tiny("t5")), predicts=True)
    prompt = Prompt("a cat sat", target="the dog ran")
    subject = PromptedModel.of(model, prompt, kind)
    outputs = intervene(subject, InterventionChanges(kind, ablated=((1, 2),))).response.outputs
    stack = model.model.encoder if kind == "encoder" else model.model.decoder
    layer = stack.block[1].layer[1 if kind == "cross" else 0]
    attention = layer.EncDecAttention if kind == "cross" else layer.SelfAttention
    kept = attention.o.weight.detach().clone()
    with torch.no_grad():
        attention.o.weight[:, 16:24] = 0
        expected = model.respond(prompt, [NOTHING]).outputs[0]
        attention.o.weight.copy_(kept)
    np.testing.assert_allclose(outputs[1], expected, rtol=0, atol=1e-5)
    assert np.abs(outputs[1] - outputs[0]).max() > 1e-3


@pytest.mark.exact
def test_the_builtin_model_is_changed_without_torch() -> None:
    """NumPy alone, for cuts, means and permutations."""
    args = "intervene", SENTENCE, "--knock-out", "it->cat", "--ablate", "L0H2,L1H1", "--with"
    assert not list_loaded_packages(*args, "mean") & {"torch", "transformers", "matplotlib"}


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--ablate", "L9H2"), "layer 9 does not exist: here are 3 layers"),
        (("--ablate", "L0H9"), "head 9 does not exist: here are 6 heads"),
        (("--ablate", "3"), "'3' names no head: write L5H3"),
        (("--knock-out", "cat->"), "'cat->' is no edge: write query->key"),
        (("--knock-out", "zebra->cat"), "token 'zebra' does not occur"),
        (("--knock-out", "cat->it"), "nothing to cut: the model masks 2 -> 8"),
        (("--knock-out", "*->11"), "nothing to cut: the model masks * -> 11"),
        (("--knock-out", "0->0"), "leaves query 0 without a key"),
        (("--knock-out", "it->cat", "--in", "7"), "layer 7 does not exist"),
        (("--knock-out", "it->cat", "--in", "L1H9"), "head 9 does not exist"),
        (("--knock-out", "it->cat", "--with", "mean"), "name them with --ablate"),
        (("--ablate", "L0H2", "--in", "3"), "name them with --knock-out"),
        (("--ablate", "L0H2", "--generate", "2"), "leave --generate out"),
        (("--ablate", "L0H2", "--weights", "norm"), "their norms mean nothing"),
        (("--ablate", "L0H2", "--weights", "rollout"), "a rollout through them means nothing"),
        (("--knock-out", "it->cat", "--words"), "leave --words out"),
        (("--ablate", "L0H2", "--target-token", "two tokens"), "choose one of them"),
    ],
)
def test_mistakes_get_one_line(call: Run, args: tuple[str, ...], told: str) -> None:
    """What is wrong, and what to do next."""
    require_failure(call("show", SENTENCE, *args), 2, told)


def test_a_saved_capture_cannot_be_changed(call: Run) -> None:
    """There is no model in it."""
    require_failure(
        call("show", "--from", "run.attn", "--ablate", "L0H2"), 2, "needs a model to run"
    )
    require_failure(
        call("intervene", "The the cat", "--knock-out", "cat->THE"), 2, "occurs 2 times"
    )


@pytest.mark.parametrize("how", ["uniform", "permute"])
@pytest.mark.parametrize("name", ["builtin", "gpt2"])
def test_texts_that_are_run_at_once_are_changed_alike(name: str, how: str, tiny: Tiny) -> None:
    """The same change of several texts at once is that of each alone: weights are permuted in one order."""
    model = load_model(name if name == "builtin" else str(tiny(name)), predicts=True)
    one = make_intervention(InterventionChanges(ablated=((0, 2),), how=how))
    outputs = model.respond(Prompt(SENTENCE), [one] * 3).outputs
    np.testing.assert_allclose(outputs, outputs[:1].repeat(3, 0), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        outputs[:1], model.respond(Prompt(SENTENCE), [one]).outputs, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("how", ["zero", "mean", "uniform", "permute"])
def test_heads_are_ablated_in_bfloat16(how: str, call: Run) -> None:
    """Which NumPy does not have."""
    done = call(
        "intervene",
        SENTENCE,
        "--ablate",
        "L0H1",
        "--with",
        how,
        "--dtype",
        "bfloat16",
        "--json",
        "-q",
    )
    assert done.returncode == 0, done.stderr


def test_gradients_before_and_after_are_of_one_prediction(call: Run) -> None:
    """That of the table: the likeliest before."""
    done = call(
        "intervene",
        "The cat sat on the mat. The cat sat on the",
        "--weights",
        "gradient",
        "--ablate",
        "L0H0",
    )
    assert done.stdout.count("gradient of the logit of") == 1


def test_show_still_intervenes_and_says_where_that_went(call: Run) -> None:
    """For one version `show` takes the options of `intervene`, out of its help, with a note."""
    args = "The cat sat.", "--ablate", "L0H2"
    shown, intervened = call("show", *args), call("intervene", *args)
    assert shown.stdout == intervened.stdout
    assert shown.stderr == f"{intervened.stderr}{MOVED}\n"
    help_text = call("show", "--help").stdout
    assert "--ablate" not in help_text
    assert "--knock-out" not in help_text


def test_an_intervention_changes_something(call: Run) -> None:
    """Without an edge or a head there is nothing to do."""
    require_failure(
        call("intervene", "The cat sat."),
        2,
        "nothing to change: name edges with --knock-out, or heads with",
    )
