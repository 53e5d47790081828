"""Weights times gradients, and what models say: against autograd through eager weights, and against plain runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaForCausalLM,
)

from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.gradient import GradientObserver
from attnviz.errors import ModelError, UsageError
from attnviz.experiments.ablation import make_ablation
from attnviz.lm.model import evaluate_layers, project_logits
from attnviz.models import load_model
from attnviz.models.builtin import Builtin
from attnviz.models.huggingface.attention import AttentionReader, call_model, run_undisturbed
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import NOTHING, Edge, Intervention, Placement, Prompt, Request, Target
from attnviz.selection import TokenReference, parse_heads, parse_numbers
from tests.architectures import ARCHITECTURES, set_eager
from tests.tiny import MODELS, VOCABULARY, load_in_torch, make_bert_with_head
from tests.tolerance import close

pytestmark = pytest.mark.numeric

TEXT = "The quick brown fox jumps over the lazy dog."
HOWS = "zero", "uniform", "permute"
GRADIENT = Request(method="gradient")
KNOWN = {architecture.name: architecture for architecture in ARCHITECTURES}
READ = [
    "BERT", "ALBERT", "ModernBERT", "GPT-2", "Llama", "Mistral", "Gemma 2", "Falcon", "Phi", "DeepSeek-V3", "GPT-OSS",
    "MiMo-V2-Flash", "OLMo 2", "T5", "BART", "Whisper",
]  # fmt: skip
HIDDEN = ["DeBERTa", "GPT-Neo", "BigBird (sparse)"]


def last(outputs: Any) -> Tensor:
    """Some number that all of the last token's vector counts in."""
    vectors = outputs.last_hidden_state[0, -1].float()
    return (vectors * torch.linspace(-1, 1, len(vectors))).sum()


def graded(model: torch.nn.Module, inputs: Any) -> list[Tensor]:
    """What is kept at each call, (head, query, key)."""
    reading, seen = AttentionReader(model), GradientObserver(RunEdits())
    sites = reading.survey(inputs).sites

    def compute_output_gradients(model: Any, inputs: Any) -> Any:
        with torch.enable_grad():
            return seen.compute_output_gradients(last(call_model(model, inputs)))

    found, _ = reading.run(inputs, seen, compute_output_gradients)
    heads = [tuple(range(site.heads)) for site in sites]
    return [seen.make_result(at, found, every, Request()).weights for at, every in enumerate(heads)]


def eager(model: torch.nn.Module, inputs: Any, of: Callable[[Any], Tensor] = last) -> list[Tensor]:
    """The same by autograd through the weights that the library returns, kind after kind."""
    kinds = "attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"
    with run_undisturbed(model), torch.enable_grad():
        set_eager(model)
        outputs = call_model(model, {**inputs, "output_attentions": True})
        weights = [part for kind in kinds for part in getattr(outputs, kind, None) or ()]
        slopes = torch.autograd.grad(
            of(outputs), weights, allow_unused=True, materialize_grads=True
        )
    return [
        (part * slope)[0].clamp_min(0).detach() for part, slope in zip(weights, slopes, strict=True)
    ]


@pytest.mark.parametrize("name", READ)
def test_gradients_equal_autograd_through_eager_weights(name: str) -> None:
    """Of every head: grouped and latent ones, soft caps, sinks, relative positions, windows, two texts."""
    model, inputs = KNOWN[name].build(), KNOWN[name].inputs(None)
    found, expected = graded(model, inputs), eager(model, inputs)
    reading = AttentionReader(model)
    sites = reading.survey(inputs).sites
    order = [
        at
        for kind in ("self", "encoder", "decoder", "cross")
        for at, site in enumerate(sites)
        if site.kind == kind
    ]
    scale = max(float(part.max()) for part in expected)
    assert scale > 1e-3
    for at, part in zip(order, expected, strict=True):
        torch.testing.assert_close(found[at], part, **close(64, max(1.0, scale)))


@pytest.mark.parametrize("name", HIDDEN)
def test_attention_that_shows_its_weights_alone_is_refused(name: str) -> None:
    """There are no outputs by which to go."""
    with pytest.raises(ModelError, match="gradients of this model"):
        graded(KNOWN[name].build(), KNOWN[name].inputs(None))


@pytest.fixture(scope="module")
def llama() -> HuggingFace:
    torch.manual_seed(0)
    build, tokenizer = MODELS["llama"]
    return HuggingFace("llama", build().eval(), tokenizer())


def prediction(target: int, place: int | None) -> Callable[[Any], Tensor]:
    """The logit of a target less the mean of all; place: of the token, None for a class."""

    def of(outputs: Any) -> Tensor:
        said = outputs.logits[0] if place is None else outputs.logits[0, place]
        return said[target] - said.mean()

    return of


def test_the_gradient_is_of_the_next_token(llama: HuggingFace) -> None:
    """The likeliest, which a note names, or the one that is asked for."""
    whole = llama.capture(Prompt(TEXT), GRADIENT)
    (part,) = whole.maps
    inputs = {"input_ids": torch.tensor([[token.id for token in part.keys]])}
    said = llama.model(**inputs).logits[0, -1]
    place = len(part.keys) - 1
    for target, found in (
        (int(said.argmax()), whole),
        (
            300,
            llama.capture(
                Prompt(TEXT),
                Request(method="gradient", target=Target(llama.tokenizer.decode([300]))),
            ),
        ),
    ):
        expected = torch.stack(eager(llama.model, inputs, prediction(target, place)))
        np.testing.assert_allclose(
            found.maps[0].weights, expected, **close(VOCABULARY, float(expected.max()))
        )
        assert found.maps[0].method == "gradient"
        assert repr(llama.tokenizer.decode([target])) in found.notes[0]
        assert f"the next token after token {place}" in found.notes[0]


def test_the_gradient_of_a_class() -> None:
    """By name, by number, or the likeliest; others are refused with those that there are."""
    model = make_bert_with_head(
        BertForSequenceClassification, num_labels=3, id2label={0: "good", 1: "bad", 2: "ugly"}
    )
    ids = [token.id for token in model.capture(Prompt(TEXT), Request()).maps[0].keys]
    inputs = {"input_ids": torch.tensor([ids])}
    for token, target in (
        ("bad", 1),
        ("2", 2),
        (None, int(model.model(**inputs).logits[0].argmax())),
    ):
        found = (
            model.capture(Prompt(TEXT), Request(method="gradient", target=Target(token)))
            .maps[0]
            .weights
        )
        np.testing.assert_allclose(
            found, torch.stack(eager(model.model, inputs, prediction(target, None))), **close(64)
        )
    with pytest.raises(UsageError, match="no class of this model: 0 good, 1 bad, 2 ugly"):
        model.capture(Prompt(TEXT), Request(method="gradient", target=Target("pretty")))


def test_the_gradient_of_a_masked_token() -> None:
    """At the mask, or at a token that is named; a text without one predicts nothing."""
    model = make_bert_with_head(BertForMaskedLM)
    text = "The cat [MASK] on the mat."
    part = model.capture(Prompt(text), GRADIENT).maps[0]
    inputs = {"input_ids": torch.tensor([[token.id for token in part.keys]])}
    place = [token.text for token in part.keys].index("[MASK]")
    target = int(model.model(**inputs).logits[0, place].argmax())
    np.testing.assert_allclose(
        part.weights,
        torch.stack(eager(model.model, inputs, prediction(target, place))),
        **close(VOCABULARY),
    )
    named = Request(method="gradient", target=Target(None, TokenReference(1)))
    target = int(model.model(**inputs).logits[0, 1].argmax())
    np.testing.assert_allclose(
        model.capture(Prompt(text), named).maps[0].weights,
        torch.stack(eager(model.model, inputs, prediction(target, 1))),
        **close(VOCABULARY),
    )
    with pytest.raises(UsageError, match=r"no \[MASK\] in the text.*--weights norm"):
        model.capture(Prompt(TEXT), GRADIENT)
    with pytest.raises(UsageError, match=r"no \[MASK\]"):
        model.respond(Prompt(TEXT), [NOTHING], Target("cat"))


def builtin_gradients(model: Builtin, ids: list[int], place: int, target: int) -> np.ndarray:
    """By autograd through the weights of our own model."""
    tensors = {
        name: torch.from_numpy(array).requires_grad_() for name, array in model.parameters.items()
    }
    run = list(evaluate_layers(tensors, torch.tensor(ids), model.config))
    said = project_logits(tensors, run[-1].hidden[place])
    weights = [block.attended.weights for block in run]
    slopes = torch.autograd.grad(said[target] - said.mean(), weights)
    return np.stack(
        [(part * slope).clamp_min(0).detach() for part, slope in zip(weights, slopes, strict=True)]
    )


@pytest.mark.parametrize("query", [None, 4])
def test_gradients_of_the_builtin_model(query: int | None) -> None:
    """The same as autograd through its weights, at the last token or at another."""
    model = load_model()
    assert isinstance(model, Builtin)
    asked = Target(None, None if query is None else TokenReference(query))
    part = model.capture(Prompt(TEXT), Request(method="gradient", target=asked)).maps[0]
    ids = [token.id for token in part.keys]
    response = model.respond(Prompt(TEXT), [NOTHING], asked)
    place = len(ids) - 1 if query is None else query
    assert (response.kind, response.place) == ("next", place)
    expected = builtin_gradients(model, ids, place, response.target)
    np.testing.assert_allclose(part.weights, expected, rtol=0, atol=1e-6)
    assert not part.weights[:, :, place + 1 :].any()


@pytest.mark.parametrize("name", ["builtin", "llama"])
def test_a_window_of_gradients(name: str, llama: HuggingFace) -> None:
    """Some layers, heads, queries and keys are those of the whole."""
    model = load_model() if name == "builtin" else llama
    whole = model.capture(Prompt(TEXT), GRADIENT).maps[0].weights
    request = Request(
        parse_numbers("1-2"),
        parse_heads("0,3"),
        method="gradient",
        rows=slice(3, None),
        columns=slice(0, 4),
    )
    part = model.capture(Prompt(TEXT), request).maps[0]
    np.testing.assert_allclose(part.weights, whole[1:3, [0, 3], 3:, :4], rtol=0, atol=1e-6)
    assert part.visible.shape == part.weights.shape


@pytest.mark.exact
def test_models_without_a_gradient_are_refused(minilm: Path) -> None:
    """One that predicts nothing, and one in integers; the line says what to use."""
    with pytest.raises(UsageError, match="--weights norm"):
        load_model(str(minilm), predicts=True).capture(Prompt(TEXT), GRADIENT)
    build, tokenizer = MODELS["llama"]
    model = build().eval()
    model.is_quantized = True
    with pytest.raises(UsageError, match="floating point"):
        HuggingFace("llama", model, tokenizer()).capture(Prompt(TEXT), GRADIENT)


@pytest.mark.parametrize("name", ["builtin", "llama"])
def test_a_target_is_written_as_it_is_shown(name: str, llama: HuggingFace) -> None:
    """With a sign in the place of a space, or as a special token by name."""
    model = load_model() if name == "builtin" else llama
    targets = [
        model.respond(Prompt(TEXT), [NOTHING], Target(token)).target
        for token in (" and", "␣and", "<bos>")
    ]
    assert targets[0] == targets[1]
    assert targets[2] == 0


@pytest.mark.parametrize("name", ["builtin", "llama"])
def test_a_target_is_one_token(name: str, llama: HuggingFace) -> None:
    """Else its pieces are told."""
    model = load_model() if name == "builtin" else llama
    with pytest.raises(UsageError, match="is 3 tokens: ' P', 'ar', 'iss'"):
        model.respond(Prompt(TEXT), [NOTHING], Target(" Pariss"))


def test_the_model_is_left_as_found(llama: HuggingFace) -> None:
    """No gradients lie in its parameters, and it computes what it did."""
    ids = torch.tensor([[5, 6, 7, 8]])
    before = llama.model(ids).logits
    llama.capture(Prompt(TEXT), GRADIENT)
    assert all(parameter.grad is None for parameter in llama.model.parameters())
    assert torch.equal(llama.model(ids).logits, before)


COLUMN = Intervention((Edge(None, None, None, None, 3),))
HEAD = Intervention((Edge("self", 1, 2, 7, 5), Edge(None, 0, None, 6, 1)))
OTHER = Intervention(tokens=((3, 77), (5, 99)))


@pytest.mark.parametrize("name", ["builtin", "llama", "minilm", "gpt_neo", "bart"])
def test_several_interventions_at_once(
    name: str, minilm: Path, tiny: Callable[[str], Path]
) -> None:
    """What a model says under each is what it says under that one alone; the first changes nothing."""
    model = load_model(
        "builtin" if name == "builtin" else str(minilm if name == "minilm" else tiny(name)),
        predicts=True,
    )
    prompt = Prompt(TEXT, target="a b c d e f g h") if name == "bart" else Prompt(TEXT)
    several = (
        [NOTHING, COLUMN, OTHER, NOTHING]
        if name == "bart"
        else [NOTHING, COLUMN, HEAD, OTHER, NOTHING]
    )
    together = model.respond(prompt, several)
    for row, one in zip(together.outputs, several, strict=True):
        np.testing.assert_allclose(row, model.respond(prompt, [one]).outputs[0], rtol=0, atol=1e-4)
    assert np.abs(together.outputs[1:-1] - together.outputs[0]).max(-1).min() > 1e-4
    assert together.kind == ("vector" if name == "minilm" else "next")


def masked(model: LlamaForCausalLM, ids: Tensor, hidden: Tensor) -> Tensor:
    """The logits of a model whose eager attention is given a mask of four axes, hidden edges in it."""
    count = ids.shape[1]
    hidden = hidden | torch.ones(count, count, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, count, count).masked_fill(hidden, torch.finfo(torch.float32).min)
    with run_undisturbed(model):
        set_eager(model)
        return model(ids, attention_mask=mask).logits


def test_a_knocked_out_token_is_one_that_a_mask_hides(llama: HuggingFace) -> None:
    """From all other queries, in all layers and heads: the logits of eager with that mask, to 1e-5."""
    response = llama.respond(Prompt(TEXT), [NOTHING, COLUMN])
    count = len(response.tokens)
    ids = torch.tensor([[token.id for token in response.tokens]])
    hidden = torch.zeros(count, count, dtype=torch.bool)
    hidden[:, 3] = True
    hidden[3, 3] = False
    expected = masked(llama.model, ids, hidden)[0, -1]
    np.testing.assert_allclose(
        response.outputs[1], expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    captured = llama.capture(Prompt(TEXT), Request(), COLUMN).maps[0]
    assert not captured.weights[:, :, 4:, 3].any()
    assert not captured.visible[:, :, 4:, 3].any()


def test_what_is_said_after_another_token(llama: HuggingFace) -> None:
    """A query may be named."""
    whole = llama.respond(Prompt(TEXT), [NOTHING], Target(query=TokenReference(4)))
    ids = torch.tensor([[token.id for token in whole.tokens]])
    np.testing.assert_allclose(
        whole.outputs[0], llama.model(ids).logits[0, 4].detach(), rtol=0, atol=1e-5
    )
    assert whole.place == 4
    assert whole.target == int(whole.outputs[0].argmax())


def test_what_an_encoder_says_is_a_vector(minilm: Path) -> None:
    """Of its first token, unless another is named."""
    model = load_in_torch(minilm, predicts=True)
    for query, place in ((None, 0), (TokenReference("fox"), 4)):
        response = model.respond(Prompt(TEXT), [NOTHING], Target(query=query))
        ids = torch.tensor([[token.id for token in response.tokens]])
        expected = model.model(ids).last_hidden_state[0, place].detach()
        assert (response.kind, response.place, response.target) == ("vector", place, -1)
        np.testing.assert_allclose(response.outputs[0], expected, rtol=0, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["builtin", "gpt2", "llama"])
def test_cuda_equals_cpu(name: str, tiny: Callable[[str], Path]) -> None:
    """Gradients, and what is said without edges, heads and tokens, to 1e-4."""
    folder = name if name == "builtin" else str(tiny(name))
    interventions = [
        NOTHING,
        COLUMN,
        HEAD,
        OTHER,
        *(Intervention(change=make_ablation([(0, 2)], how, {})) for how in HOWS),
    ]
    cpu, cuda = (
        load_model(folder, placement=Placement(device), predicts=True) for device in ("cpu", "cuda")
    )
    for request in (GRADIENT, Request(method="norm"), Request(method="scores")):
        expected, found = (
            model.capture(Prompt(TEXT), request).maps[0].weights for model in (cpu, cuda)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    expected, found = (model.respond(Prompt(TEXT), interventions).outputs for model in (cpu, cuda))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
