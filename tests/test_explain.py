"""Attention step by step: each number is what plain arithmetic, and the library's own code, make of the vectors."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM

import attnviz
from attnviz.analysis.explain import RAW_SCORES, Operands, explain_query, explain_vectors
from attnviz.errors import ModelError
from attnviz.experiments.explanation import explain_head, explain_score
from attnviz.lm.transformer import scale_by_root
from attnviz.models import load_model
from attnviz.models.builtin import Builtin
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import Engine, Placement, Prompt, Request
from attnviz.selection import Selection, TokenReference
from tests.architectures import ARCHITECTURES
from tests.commands import list_loaded_packages
from tests.conftest import SENTENCE, Tiny
from tests.tiny import load_in_torch, plain_tokenizer
from tests.tolerance import close, rounding

pytestmark = pytest.mark.numeric

Call = Callable[..., subprocess.CompletedProcess[str]]
TERMS = 64  # of the longest sum: the width of the models here
CLOSE = close(TERMS)


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether numbers agree to the rounding of a sum of numbers as large as the largest, or as 1."""
    return bool(np.abs(ours - theirs).max() <= rounding(TERMS, max(1, np.abs(theirs).max())))


def operands(model: object, layer: int, head: int, query: int, text: str = SENTENCE) -> Operands:
    one = Request(
        Selection(((layer, layer),)),
        Selection(((head, head),)),
        kinds=(),
        query=TokenReference(query),
    )
    return model.operands(Prompt(text), one)


def row(model: object, layer: int, head: int, query: int) -> np.ndarray:
    one = Request(
        Selection(((layer, layer),)), Selection(((head, head),)), query=TokenReference(query)
    )
    return model.capture(Prompt(SENTENCE), one).maps[0].weights[0, 0, 0]


# The formula


vectors = st.integers(1, 5).flatmap(
    lambda m: st.lists(
        st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=m + 1, max_size=m + 1
    )
)


@settings(max_examples=40)
@given(vectors, st.integers(0), st.sampled_from([None, 2.0]), st.sampled_from([None, 0.5]))
def test_every_step_is_its_formula(
    x: list, mask: int, cap: float | None, sink: float | None
) -> None:
    """Products, scale, soft cap, bias, mask, sink and sum, one loop over keys, give the same numbers."""
    query, key = np.array(x[0]), np.array(x[1:])
    visible = np.array([i == 0 or mask >> i & 1 == 0 for i in range(len(key))])
    bias = -0.1 * np.arange(len(key))
    steps = explain_query(
        Operands(query, key, key + 1, visible, 0.5, bias=bias, softcap=cap, sink=sink)
    )
    scores = []
    for k, b in zip(key, bias, strict=True):
        score = 0.5 * sum(a * c for a, c in zip(query, k, strict=True))
        scores.append((score if cap is None else cap * np.tanh(score / cap)) + b)
    total = sum(np.exp(s) for s, seen in zip(scores, visible, strict=True) if seen)
    total += 0 if sink is None else np.exp(sink)
    weights = [np.exp(s) / total if seen else 0 for s, seen in zip(scores, visible, strict=True)]
    assert np.allclose(steps.scores[-1].values, scores, **CLOSE)
    assert np.allclose(steps.weights, weights, **CLOSE)
    assert np.allclose(
        steps.output, sum(w * (k + 1) for w, k in zip(weights, key, strict=True)), **CLOSE
    )
    assert steps.weights.sum() + steps.weight_of_sink == pytest.approx(1)


def test_steps_that_are_not_taken_are_not_shown() -> None:
    """Only what changes a score is a step, and a scale that is not the root of the width is told as a number."""
    x = np.eye(4)
    plain = explain_query(Operands(x[0], x, x, np.ones(4, bool), 0.5))
    assert [step.name for step in plain.scores] == ["q·k", "scaled"]
    assert "√4" in plain.scores[1].formula
    assert [
        step.name for step in explain_query(Operands(x[0], x, x, np.ones(4, bool), 1.0)).scores
    ] == ["q·k"]
    assert "* 0.3" in explain_query(Operands(x[0], x, x, np.ones(4, bool), 0.3)).scores[1].formula


def test_a_query_that_sees_nothing_has_no_softmax() -> None:
    """There is nothing to compute, and it is said."""
    with pytest.raises(ValueError, match="sees no key"):
        explain_query(
            Operands(np.ones(2), np.ones((3, 2)), np.ones((3, 2)), np.zeros(3, bool), 1.0)
        )


@pytest.mark.parametrize("name", RAW_SCORES)
def test_score_functions_on_raw_vectors(name: str) -> None:
    """Steps written out for each score function lead to the weights and the output of our layer."""
    x = np.random.default_rng(3).standard_normal((5, 6))
    steps, weights = explain_vectors(name, x, 2)
    assert np.allclose(steps.weights, weights, **CLOSE)
    assert agree(steps.output, steps.given.output)
    assert np.ptp(weights) > 0.01


def test_unknown_score_functions_are_named() -> None:
    """A name that is none is told with those that are."""
    with pytest.raises(ValueError, match="scaled_dot"):
        explain_vectors("nearest", np.eye(3), 0)


# Models


@pytest.mark.parametrize(("layer", "head", "query"), [(0, 4, 3), (1, 3, 8), (2, 0, 11)])
def test_the_builtin_model(layer: int, head: int, query: int) -> None:
    """Vectors are projections of what the layer reads, weights the capture's, the output what the head put out."""
    model = load_model("builtin")
    found = operands(model, layer, head, query)
    steps = explain_query(found)
    assert np.allclose(steps.weights, row(model, layer, head, query), **CLOSE)
    assert agree(steps.output, found.output)
    assert found.visible.tolist() == [i <= query for i in range(12)]
    part, of_head = model.parameters, slice(32 * head, 32 * head + 32)
    prefix = f"layers.{layer}.attention"
    q = part[f"{prefix}.query.weight"][of_head] @ found.hidden
    assert np.linalg.norm(q) == pytest.approx(
        np.linalg.norm(found.query), rel=1e-5
    )  # rotation keeps lengths
    assert np.allclose(
        part[f"{prefix}.value.weight"][of_head] @ found.hidden, found.value[query], atol=1e-5
    )
    if layer == 0:
        ids = list(model.encode_prompt(Prompt(SENTENCE), False).ids)
        x = scale_by_root(part["embedding"][ids], 1e-6) * part["layers.0.attention_norm"]
        assert np.allclose(found.hidden, x[query], **CLOSE)


@pytest.mark.parametrize("score", ["dot", "cosine", "gaussian"])
def test_our_models_of_another_score(score: str) -> None:
    """A model of our own layer is followed by the score function that it has."""
    model = load_model("builtin")
    model.config = replace(model.config, score=score)
    steps = explain_query(operands(model, 1, 3, 6))
    assert steps.given.score == score
    assert np.allclose(steps.weights, row(model, 1, 3, 6), **CLOSE)
    assert agree(steps.output, steps.given.output)


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", ["minilm", "gpt2", "llama", "mistral", "bytes"])
def test_models_of_the_library(name: str, engine: Engine, tiny: Tiny, minilm: Path) -> None:
    """Weights are those of a capture and of the library's eager attention; the output is what the projection gets."""
    folder = minilm if name == "minilm" else tiny(name)
    model = load_model(str(folder), placement=Placement(engine=engine))
    kind = AutoModelForCausalLM if name in ("gpt2", "llama", "mistral") else AutoModel
    eager = kind.from_pretrained(folder, attn_implementation="eager").eval()
    read = model.capture(Prompt(SENTENCE), Request()).maps[0].keys
    ids = torch.tensor([[token.id for token in read]])
    with torch.no_grad():
        expected = eager(ids, output_attentions=True).attentions
    for layer, head, query in ((0, 1, 2), (1, 3, 9)):
        found = operands(model, layer, head, query)
        steps = explain_query(found)
        assert np.allclose(steps.weights, expected[layer][0, head, query], **CLOSE)
        assert np.allclose(steps.weights, row(model, layer, head, query), **CLOSE)
        assert agree(steps.output, found.output)


def test_vectors_of_bert_and_gpt2(tiny: Tiny, minilm: Path) -> None:
    """Q and v are the projections of what the attention module was given, computed here by plain products."""
    bert = load_in_torch(minilm)
    found, mine = operands(bert, 2, 5, 4), bert.model.encoder.layer[2].attention.self
    of_head = slice(5 * 32, 6 * 32)
    for linear, vector in (
        (mine.query, found.query),
        (mine.key, found.key[4]),
        (mine.value, found.value[4]),
    ):
        weight, bias = (part.detach().double().numpy() for part in (linear.weight, linear.bias))
        assert np.allclose(weight[of_head] @ found.hidden + bias[of_head], vector, atol=1e-5)
    gpt2 = load_in_torch(tiny("gpt2"))
    found, mine = operands(gpt2, 1, 2, 4), gpt2.model.h[1].attn.c_attn
    whole = (
        found.hidden @ mine.weight.detach().double().numpy() + mine.bias.detach().double().numpy()
    )
    q, k, v = whole.reshape(3, 4, 8)[:, 2]
    for ours, theirs in ((found.query, q), (found.key[4], k), (found.value[4], v)):
        assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["Gemma 2", "GPT-OSS"])
def test_soft_caps_and_sinks(name: str) -> None:
    """They are steps of their own, and lead to the captured weights and to the output of the model's eager code."""
    made = next(one for one in ARCHITECTURES if one.name == name)
    model = HuggingFace(name, made.build(), plain_tokenizer())
    ids = Prompt("", ids=tuple(range(3, 12)))
    one = Request(Selection(((1, 1),)), Selection(((1, 1),)), query=TokenReference(5))
    found = model.operands(ids, one)
    steps = explain_query(found)
    assert np.allclose(steps.weights, model.capture(ids, one).maps[0].weights[0, 0, 0], **CLOSE)
    assert agree(steps.output, found.output)
    assert (found.softcap is not None, found.sink is not None) == (
        name == "Gemma 2",
        name == "GPT-OSS",
    )
    assert ("capped" in [step.name for step in steps.scores]) == (name == "Gemma 2")
    assert (steps.weight_of_sink > 0) == (name == "GPT-OSS")


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_an_encoder_decoder(kind: str, tiny: Tiny) -> None:
    """Each map of T5 is followed; its scores have a bias by position and no scale."""
    model, prompt = load_model(str(tiny("t5"))), Prompt(SENTENCE, target="it sat there")
    one = Request(
        Selection(((1, 1),)), Selection(((2, 2),)), kinds=(kind,), query=TokenReference(1)
    )
    steps = explain_query(model.operands(prompt, one))
    assert np.allclose(steps.weights, model.capture(prompt, one).maps[0].weights[0, 0, 0], **CLOSE)
    assert agree(steps.output, steps.given.output)
    biased = ["q·k", "bias", "score"]
    assert [step.name for step in steps.scores] == (["q·k"] if kind == "cross" else biased)


def test_models_that_show_weights_alone(tiny: Tiny) -> None:
    """A model whose attention is found as the result of a softmax cannot be followed, in one line."""
    with pytest.raises(ModelError, match="cannot be followed"):
        operands(load_model(str(tiny("gpt_neo"))), 0, 0, 3)


@pytest.mark.parametrize("score", [None, "additive"])
def test_a_result_is_made_of_a_model_and_a_prompt(score: str | None) -> None:
    """Without a command, an explanation gives the document, a row for each key, and three tables with all keys."""
    model, prompt = load_model("builtin"), Prompt(SENTENCE)
    result = explain_score(score, model, prompt) if score else explain_head(model, prompt)
    document = result.to_dict()
    assert document["query"]["place"] == 11
    assert (
        {"layer": 2, "head": 0}.items() <= document.items()
        if score is None
        else document["score"] == score
    )
    assert len(result.rows()) == len(document["keys"]) == 12
    assert sum(row["weight"] for row in result.rows()) == pytest.approx(1)
    vectors, keys, output = result.tables()
    assert (vectors.corner, keys.corner, output.corner) == ("vector", "key", "vector")
    assert keys.rows[-1] == "sum"
    assert len(keys.rows) == 13


# The command


def test_the_page_is_read_from_top_to_bottom(call: Call) -> None:
    """Vectors, each key's way to its weight, the output, and a check, with formulas and real numbers."""
    done = call("explain", SENTENCE, "--query", "it", "-l", "1", "-H", "3")
    assert done.returncode == 0, done.stderr
    for told in (
        "layer 1 · head 3 · query 8 it",
        "W_Q x",
        "q·k / √32",
        "3 of 12 keys are hidden",
        "Σ w·v",
        "check:",
    ):
        assert told in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert done.stdout == call("explain", SENTENCE, "--query", "8", "-H", "L1H3").stdout


def test_json_holds_every_number(call: Call) -> None:
    """What is drawn can be computed again from the document; masked weights are null."""
    found = json.loads(call("explain", SENTENCE, "--query", "it", "-H", "L1H3", "--json").stdout)
    expected = attnviz.capture(SENTENCE).maps[0].weights[1, 3, 8]
    q, k = np.array(found["vectors"]["q"]), np.array(found["vectors"]["k"])
    assert np.allclose(k @ q, found["scores"][0]["values"], **CLOSE)
    assert found["weights"][9:] == [None] * 3
    assert np.allclose(found["weights"][:9], expected[:9], **CLOSE)
    assert max(found["largest_difference"].values()) < 1e-6


def test_long_texts_are_cut_to_the_strongest(call: Call) -> None:
    """--top keeps the strongest keys in their order; the others have one row, and all add up to 1."""
    done = call("explain", "@sample:repeat", "-H", "L1H3", "--top", "2")
    rows = [line for line in done.stdout.split("scores to weights")[1].splitlines()[2:] if line][:4]
    others, total = rows[2].split(), rows[3].split()
    assert others[1] == "others"
    assert total[0] == "sum"
    assert total[-1] == "1.0000"
    assert sum(float(line.split()[-3]) for line in rows[:2]) + float(others[-1]) == pytest.approx(
        1, abs=2e-4
    )


@pytest.mark.parametrize("suffix", ["md", "csv", "json", "svg"])
def test_files(call: Call, tmp_path: Path, suffix: str) -> None:
    """The page is written in each form, the same bytes each time."""
    for name in ("one", "two"):
        assert call("explain", SENTENCE, "-o", f"{name}.{suffix}").returncode == 0
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


@pytest.mark.parametrize("name", RAW_SCORES)
def test_scores_need_no_model(call: Call, name: str) -> None:
    """Each score function is drawn, and agrees with our layer."""
    found = json.loads(
        call("explain", SENTENCE, "--score", name, "--query", "cat", "--json").stdout
    )
    assert found["score"] == name
    assert sum(found["weights"]) == pytest.approx(1)
    assert max(found["largest_difference"].values()) < 1e-12


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["-l", "3"], 2, "layer 3 does not exist"),
        (["-H", "6"], 2, "head 6 does not exist"),
        (["--query", "dog"], 2, "does not occur"),
        (["--query", "99"], 2, "token 99 does not exist"),
        (["-H", "all"], 2, "one head"),
        (["-l", "0,1"], 2, "one head"),
        (["-H", "L1H3", "-l", "1"], 2, "leave --layers out"),
        (["--generate", "3"], 2, "--generate"),
        (["--score", "dot", "-l", "1"], 2, "leave it out"),
        (["--score", "dot", "--map", "cross"], 2, "--map"),
        (["-o", "x.npz"], 2, "npz"),
    ],
)
def test_what_cannot_be_explained(call: Call, args: list[str], code: int, told: str) -> None:
    """One line says what is wrong, and nothing is drawn."""
    done = call("explain", SENTENCE, *args)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


@pytest.mark.exact
def test_what_cannot_be_followed(call: Call, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that shows its weights alone, and a query that sees no key, are told in one line."""
    done = call("explain", SENTENCE, "-m", tiny("gpt_neo"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "cannot be followed" in done.stderr
    blind = replace(operands(load_model("builtin"), 1, 3, 4), visible=np.zeros(12, bool))
    monkeypatch.setattr(Builtin, "operands", lambda *_: blind)
    done = call("explain", SENTENCE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert "choose another --query" in done.stderr


@pytest.mark.exact
@pytest.mark.parametrize("args", [["-H", "L1H3"], ["--score", "additive"]])
def test_no_torch_is_needed(args: list[str]) -> None:
    """The built-in model is explained in NumPy."""
    assert not list_loaded_packages("explain", SENTENCE, *args) & {
        "torch",
        "transformers",
        "matplotlib",
    }


def test_hostile_text_is_shown_not_obeyed(call: Call) -> None:
    """Control characters of a token are written out."""
    done = call("explain", "a\x1b[31mb c", "--top", "all")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\\x1b" in done.stdout
