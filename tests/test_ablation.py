"""What heads are for: ablation is what zeros in the output projection do, and tells the heads that matter."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from attnviz.cli.heads import read_texts
from attnviz.errors import ModelError, UsageError
from attnviz.experiments.ablation import (
    EvaluationData,
    ablate,
    draw_other_heads,
    group_heads,
    make_ablation,
    make_evaluation_data,
    measure_baseline,
    measure_losses,
)
from attnviz.experiments.heads import measure_head_roles
from attnviz.lm import evaluate, store
from attnviz.models import Model, load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.results.ablation import MEASURED_REPLACEMENTS, LossSpread
from attnviz.results.head_roles import HeadRole, SequenceSettings
from tests.commands import require_failure
from tests.conftest import Run, Tiny
from tests.tiny import VOCABULARY, plain_tokenizer

pytestmark = pytest.mark.numeric

IDS = np.array([[0, 5, 900, 77, 5, 900, 77, 12], [0, 8, 8, 8, 60, 61, 62, 63]])


def bert_lm() -> torch.nn.Module:
    """A BERT that reads from left to right and predicts next tokens."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return BertLMHeadModel(
            BertConfig(vocab_size=VOCABULARY, is_decoder=True, initializer_range=0.3, **sizes)
        )


@pytest.fixture
def writer(tiny: Tiny) -> Callable[[str], HuggingFace]:
    """A tiny model that predicts next tokens."""

    def writer(name: str) -> HuggingFace:
        if name == "bert":
            return HuggingFace("bert", bert_lm().eval(), plain_tokenizer())
        model = AutoModelForCausalLM.from_pretrained(tiny(name)).eval()
        return HuggingFace(name, model, plain_tokenizer())

    return writer


def projection(model: torch.nn.Module, name: str, layer: int) -> torch.Tensor:
    """W_O of a layer, (head * d_v, dim): what heads put out times this is added to the residual stream."""
    if name == "gpt2":
        return model.transformer.h[layer].attn.c_proj.weight  # Conv1D holds it so
    if name == "bert":
        return model.bert.encoder.layer[layer].attention.output.dense.weight.T
    return model.model.layers[layer].self_attn.o_proj.weight.T


def expected_losses(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """The library's own logits, and torch's own loss."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)).logits[:, :-1]
        return cross_entropy(logits.mT, torch.from_numpy(ids)[:, 1:], reduction="none").numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bert"])
def test_losses_are_those_of_the_library(writer: Callable[[str], HuggingFace], name: str) -> None:
    """Without a change, and with one that changes nothing; a batch is its sequences one by one."""
    model = writer(name)
    expected = expected_losses(model.model, IDS)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def look(layer: int, output: torch.Tensor, _: object) -> torch.Tensor:
        seen.append((layer, tuple(output.shape[:2])))
        return output

    np.testing.assert_allclose(model.losses(IDS), expected, atol=1e-5)
    np.testing.assert_allclose(model.losses(IDS, look), expected, atol=1e-5)
    assert seen == [(layer, IDS.shape) for layer in range(model.model.config.num_hidden_layers)]
    one_by_one = np.concatenate([model.losses(ids[None]) for ids in IDS])
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_zeros_do_what_zeros_in_the_projection_do(
    writer: Callable[[str], HuggingFace], name: str
) -> None:
    """Two heads of one layer and one of another, in GPT-2 (Conv1D), grouped heads and BERT; the model is as before."""
    model = writer(name)
    heads = [(0, 1), (1, 0), (1, 3)]
    before = model.losses(IDS)
    found = model.losses(IDS, make_ablation(heads, "zero", {}))
    np.testing.assert_array_equal(model.losses(IDS), before)
    width = model.model.config.hidden_size // model.model.config.num_attention_heads
    with torch.no_grad():
        for layer, head in heads:
            projection(model.model, name, layer)[head * width : (head + 1) * width] = 0
    expected = expected_losses(model.model, IDS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - before).max() > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_means_are_those_of_the_input_of_the_projection(
    writer: Callable[[str], HuggingFace], name: str
) -> None:
    """Mean ablation equals a hook on the projection that puts the mean over queries and sequences there."""
    model = writer(name)
    layers = model.model.transformer.h if name == "gpt2" else model.model.model.layers
    module = layers[1].attn.c_proj if name == "gpt2" else layers[1].self_attn.o_proj
    inputs: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    expected_losses(model.model, IDS)
    hook.remove()
    width = model.model.config.hidden_size // model.model.config.num_attention_heads
    part = slice(2 * width, 3 * width)

    def put(_: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        changed = args[0].clone()
        changed[..., part] = inputs[0].mean((0, 1))[part]
        return (changed,)

    hook = module.register_forward_pre_hook(put)
    expected = expected_losses(model.model, IDS)
    hook.remove()
    found = measured(model, SequenceSettings(1, 4), [])
    found.ids, found.counted = [IDS], slice(None)
    measure_baseline(model, found)
    change = make_ablation([(1, 2)], "mean", found.mean_outputs)
    np.testing.assert_allclose(model.losses(IDS, change), expected, atol=1e-5)


def measured(model: Model, setting: SequenceSettings, texts: list[str]) -> EvaluationData:
    return make_evaluation_data(model, measure_head_roles(model, setting, texts), texts)["repeated"]


def test_zeros_in_the_builtin_model(tmp_path: Path) -> None:
    """Ablation in NumPy equals a model whose projection has zeros for these heads; without a change nothing changes."""
    stored = store.read_stored_model(store.BUILTIN)
    ids = evaluate.make_repeated_blocks(stored.config, sequences=3, block=10)
    model = load_model()
    plain = model.losses(ids)
    np.testing.assert_allclose(model.losses(ids, lambda _, output, weigh: output), plain, atol=1e-6)
    found = model.losses(ids, make_ablation([(0, 2), (1, 3)], "zero", {}))
    for layer, head in ((0, 2), (1, 3)):
        stored.parameters[f"layers.{layer}.attention.output.weight"][
            :, 32 * head : 32 * (head + 1)
        ] = 0
    store.write_stored_model(tmp_path / "cut", stored)
    np.testing.assert_allclose(found, load_model(str(tmp_path / "cut")).losses(ids), atol=1e-4)
    assert found[:, 11:].mean() > plain[:, 11:].mean() + 5
    np.testing.assert_array_equal(model.losses(ids), plain)


def test_the_builtin_model_in_torch_has_the_same_losses() -> None:
    """The same functions on tensors, with and without heads, to 1e-4."""
    from attnviz.models.builtin import Builtin
    from attnviz.request import Placement

    ids = evaluate.make_repeated_blocks(
        store.read_stored_model(store.BUILTIN).config, sequences=2, block=6
    )
    ours, other = load_model(), Builtin("builtin", store.BUILTIN, Placement(dtype="bfloat16"))
    assert other.torch_device == "cpu"
    other.parameters = {name: torch.from_numpy(part) for name, part in ours.parameters.items()}
    for change in (None, make_ablation([(1, 1)], "zero", {})):
        np.testing.assert_allclose(other.losses(ids, change), ours.losses(ids, change), atol=1e-4)


def test_the_induction_heads_of_the_builtin_model_matter() -> None:
    """Without all of them repeats cost far more than without others, text no more; likewise the head they rest on."""
    model, texts = load_model(), read_texts(None)
    roles = measure_head_roles(model, SequenceSettings(4), texts)
    named = [head for head in roles.heads if head.role in ("induction", "previous_token")]
    found = ablate(model, roles, named, texts)
    assert found.loss["repeated"].mean < 0.5
    together_ = {
        part.role: part
        for part in found.ablated
        if part.role == "previous_token" or len(part.heads) > 1
    }
    for how in MEASURED_REPLACEMENTS:
        induction, previous = (together_[role].rises for role in ("induction", "previous_token"))
        for rises in (induction, previous):
            rise = rises["repeated", how]
            assert rise.own.n == 4
            assert rise.own.mean > 5 > 5 * abs(rise.others.mean)
        assert abs(induction["text", how].own.mean) < 0.5
    for part in found.ablated:
        if part.role == "induction" and len(part.heads) == 1:
            rise = part.rises["repeated", "mean"]
            assert rise.own.mean > 5 * abs(rise.others.mean)


def heads_of(roles: dict[tuple[int, int], str | None]) -> list[HeadRole]:
    return [HeadRole(*place, role, {}, {}) for place, role in roles.items()]


def test_others_are_of_the_same_layers_and_another_role() -> None:
    """Never the heads themselves, nor any of their role; five draws at most, the same for a seed."""
    heads = heads_of(
        {(i, j): "induction" if i == 1 and j < 3 else None for i in range(3) for j in range(9)}
    )
    for own in ([(1, 0)], [(1, 0), (1, 1), (1, 2)]):
        found = draw_other_heads(own, "induction", heads, np.random.default_rng(0))
        assert len(found) == 5
        assert all(len(set(others)) == len(own) for others in found)
        assert {place for others in found for place in others} <= {(1, j) for j in range(3, 9)}
        assert draw_other_heads(own, "induction", heads, np.random.default_rng(0)) == found
    narrow = heads_of({(0, 0): "induction", (0, 1): "induction", (1, 0): None, (1, 1): None})
    assert draw_other_heads([(0, 0)], "induction", narrow, np.random.default_rng(0)) != []
    assert draw_other_heads([(0, 0), (0, 1)], "induction", narrow, np.random.default_rng(0)) == [
        ((1, 0), (1, 1))
    ]
    assert (
        draw_other_heads([(0, 0), (0, 1)], "induction", narrow[:3], np.random.default_rng(0)) == []
    )


def test_heads_of_a_role_are_ablated_together_too() -> None:
    """Each by itself, then all of a role where they are several; heads without a role never together."""
    heads = heads_of(
        {(0, 0): None, (0, 1): None, (1, 0): "local", (1, 2): "local", (2, 0): "induction"}
    )
    assert [own for own, _ in group_heads(heads)] == [
        *[((0, 0),), ((0, 1),)],
        *[((1, 0),), ((1, 2),), ((1, 0), (1, 2))],
        ((2, 0),),
    ]


def test_the_second_copy_counts_without_its_first_token() -> None:
    """Of the loss on a repeated block: the tokens that the first copy foretells."""
    model = load_model()
    part = measured(model, SequenceSettings(2, 10), [])
    whole = model.losses(part.ids[0])
    np.testing.assert_allclose(
        measure_losses(model, part, lambda _, output, weigh: output),
        whole[:, 11:20].mean(1),
        rtol=1e-5,
    )


def test_a_spread_of_little_is_undefined() -> None:
    """No mean of nothing, no deviation of one."""
    nothing, one, two = (LossSpread.of(values) for values in ([], [1.5], [1.0, 3.0]))
    assert (nothing.n, np.isnan(nothing.mean), np.isnan(nothing.sd)) == (0, True, True)
    assert (one.n, one.mean, np.isnan(one.sd)) == (1, 1.5, True)
    assert two == (2.0, np.sqrt(2), 2)


# What is refused


@pytest.mark.exact
def test_models_without_next_tokens_are_refused(minilm: Path, tiny: Tiny) -> None:
    """Encoders, encoder-decoders, and causal models loaded without their head."""
    for folder in (minilm, tiny("t5"), tiny("gpt2")):
        with pytest.raises(UsageError, match="predicts no next tokens"):
            load_model(str(folder)).losses(IDS)


@pytest.mark.exact
def test_models_that_hide_their_outputs_are_refused(tiny: Tiny) -> None:
    """GPT-Neo shows a softmax only: one line, and the model stays usable."""
    model = load_model(str(tiny("gpt_neo")), writes=True)
    with pytest.raises(ModelError, match="cannot be ablated"):
        model.losses(IDS, make_ablation([(0, 0)], "zero", {}))


# The command


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Two short texts."""
    (tmp_path / "corpus.txt").write_text(
        "the cat sat on the mat.\n\nin the beginning was the word."
    )
    return "corpus.txt"


def test_the_command_tells_what_removing_heads_does(call: Run, corpus: str) -> None:
    """A row a head with its rise and that of others, on repeats and text; 80 columns; the same bytes each time."""
    args = (
        "heads",
        "--ablate",
        "-H",
        "L1H3,L0H2",
        "--sequences",
        "2",
        "--width",
        "80",
        "--color",
        "never",
        "--corpus",
        corpus,
    )
    done = call(*args)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for told in (
        "L1H3 ind",
        "L0H2 prv",
        "repeats, zero",
        "text, mean",
        "others",
        "loss of the whole model",
    ):
        assert told in done.stdout
    assert done.stderr == ""
    quiet = call(*args, "-q")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_json_and_csv_hold_the_ablation(call: Run, corpus: str, tmp_path: Path) -> None:
    """Heads, role and rises by data and way; what is undefined is null or empty."""
    args = (
        "heads",
        "--ablate",
        "--role",
        "previous_token",
        "--sequences",
        "1",
        "--corpus",
        corpus,
        "-q",
    )
    data = json.loads(call(*args, "--json").stdout, parse_constant=pytest.fail)
    assert data["ablation"]["loss"]["text"]["n"] == 2
    (found,) = data["ablation"]["without"]
    assert (found["heads"], found["role"]) == ([[0, 2]], "previous_token")
    assert found["rise"]["repeated"]["zero"]["mean"] > 5
    assert found["rise"]["repeated"]["zero"]["sd"] is None
    assert found["rise"]["text"]["mean"]["others"]["n"] == 5
    call(*args, "-o", "rises.csv")
    with (tmp_path / "rises.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["heads"], row["data"], row["replaced_by"]) for row in rows] == [
        ("L0H2", data, how) for data in ("repeated", "text") for how in ("zero", "mean")
    ]
    assert rows[0]["sd"] == ""
    assert float(rows[0]["mean"]) == found["rise"]["repeated"]["zero"]["mean"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_any_causal_model_can_be_ablated(call: Run, tiny: Tiny, corpus: str, name: str) -> None:
    """With heads that are chosen; a random model has none with a name, which is told in one line."""
    options = "-m", str(tiny(name)), "--sequences", "2", "--block", "8", "--corpus", corpus, "-q"
    data = json.loads(call("heads", "--ablate", "-l", "1", "--json", *options).stdout)
    assert [part["heads"] for part in data["ablation"]["without"]] == [
        [[1, head["head"]]] for head in data["heads"]
    ]
    require_failure(call("heads", "--ablate", *options), 2, "choose heads with -l and -H")


@pytest.mark.exact
def test_encoders_are_refused_in_one_line(call: Run, minilm: Path, tiny: Tiny) -> None:
    """What they lack, and which option to leave out."""
    require_failure(
        call("heads", "--ablate", "-m", minilm, "--sequences", "1"), 3, "leave --ablate out"
    )
    require_failure(
        call("heads", "--ablate", "-m", tiny("t5"), "--sequences", "1"),
        2,
        "reads a text and a target",
    )
    args = "--sequences", "1", "--block", "8", "-l", "0", "-q"
    require_failure(call("heads", "--ablate", "-m", tiny("gpt_neo"), *args), 3, "cannot be ablated")
