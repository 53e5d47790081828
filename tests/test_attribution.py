"""Attribution: scores are rows of captures, effects are what the library's own eager attention says without a token."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from attnviz.analysis.attribution import compute_chance_correlation, correlate_ranks, rank_values
from attnviz.analysis.rollout import compute_relevance, compute_rollout
from attnviz.errors import InputError, UsageError
from attnviz.experiments.ablation import make_ablation
from attnviz.experiments.attribution import SUBSTITUTES, attribute, draw_substitutes
from attnviz.experiments.intervention import PromptedModel, intervene
from attnviz.models import Model, load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import NOTHING, Edge, Intervention, Prompt, Request, Target
from attnviz.results.attribution import TOKEN_REMOVALS, Attribution
from attnviz.results.intervention import InterventionChanges
from attnviz.selection import TokenReference, parse_heads
from tests.commands import require_failure
from tests.conftest import SENTENCE, Tiny
from tests.tiny import VOCABULARY, load_in_torch, plain_tokenizer
from tests.tolerance import close
from tests.work import keep_steps

pytestmark = pytest.mark.numeric

Call = Callable[..., subprocess.CompletedProcess[str]]
TWICE = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy"
EVERY = tuple(TOKEN_REMOVALS)


@pytest.fixture(scope="module")
def builtin() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny) -> HuggingFace:
    """A tiny GPT-2 that predicts next tokens."""
    return load_in_torch(tiny("gpt2"), predicts=True)


@pytest.fixture(scope="module")
def bert(minilm: Path) -> Model:
    """MiniLM, which predicts nothing."""
    return load_in_torch(minilm, predicts=True)


# Rank correlation


values = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30)


@settings(max_examples=100)
@given(values)
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    """Ranks and their correlation are SciPy's, with many that are equal."""
    first, second = np.array(pairs, float).T
    assert np.array_equal(rank_values(first), rankdata(first))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert np.isnan(correlate_ranks(first, second))
    else:
        assert correlate_ranks(first, second) == pytest.approx(
            spearmanr(first, second).statistic, abs=1e-12
        )


def test_what_is_undefined_has_no_correlation() -> None:
    """One thing, or a number that is none, gives no rank correlation; nor does chance say anything of four."""
    assert np.isnan(correlate_ranks(np.ones(1), np.ones(1)))
    assert np.isnan(correlate_ranks(np.array([1, np.nan, 3]), np.arange(3)))
    assert np.isnan(compute_chance_correlation(4))
    assert compute_chance_correlation(5) == pytest.approx(0.98)


def test_chance_holds_nineteen_of_twenty() -> None:
    """Of random orders of 20 things, about 95 % correlate less than chance says."""
    rng = np.random.default_rng(0)
    inside = [
        abs(correlate_ranks(np.arange(20), rng.random(20))) <= compute_chance_correlation(20)
        for _ in range(2000)
    ]
    assert 0.94 < np.mean(inside) < 0.96


# Scores


@pytest.mark.parametrize("name", ["builtin", "gpt2"])
def test_scores_are_rows_of_captures(name: str, request: pytest.FixtureRequest) -> None:
    """Each method's score is plain arithmetic on the captured maps of all layers and heads."""
    model = request.getfixturevalue(name)
    found = attribute(model, Prompt(SENTENCE))
    weights, norms, gradients = (
        model.capture(Prompt(SENTENCE), Request(method=method, summed=method == "norm"))
        .maps[0]
        .weights
        for method in ("attention", "norm", "gradient")
    )
    expected = {
        "attention": weights[:, :, -1].mean((0, 1)),
        "rollout": compute_rollout(weights)[-1, -1],
        "norm": norms[:, 0, -1].mean(0),
        "gradient": gradients[:, :, -1].sum((0, 1)),
        "chefer": compute_relevance(gradients)[-1, -1],
    }
    assert {*found.scores} == {*expected}
    for method, scores in expected.items():
        assert np.allclose(found.scores[method], scores, rtol=1e-5, atol=1e-7), method
    assert found.by == "gradient"


def test_sinks_and_the_query_are_scored_but_not_ranked(builtin: Model, bert: Model) -> None:
    """First and special tokens and the one that is asked have scores and no rank; all others have both."""
    for model, query in ((builtin, -1), (bert, 0)):
        found = attribute(model, Prompt(SENTENCE))
        plain = [not token.special and i > 0 for i, token in enumerate(found.tokens)]
        plain[query] = False
        assert found.ranked.tolist() == plain
        assert (found.scores[found.by] > 0).all()
        assert sorted(found.rank_tokens(found.scores[found.by])[found.ranked]) == list(
            range(1, sum(plain) + 1)
        )


def test_a_query_in_the_middle_has_nothing_of_what_follows(builtin: Model) -> None:
    """Of a causal model, tokens after the one that is asked have neither score nor effect."""
    found = attribute(builtin, Prompt(TWICE), Target(query=TokenReference(9)), checks=EVERY)
    assert found.query == 9
    assert np.flatnonzero(found.ranked).tolist() == list(range(1, 9))
    for scores in found.scores.values():
        assert np.isfinite(scores).tolist() == [i <= 9 for i in range(len(scores))]
    for effect in found.effects.values():
        assert np.isfinite(effect).tolist() == [i < 9 for i in range(len(effect))]


def test_a_model_that_predicts_nothing_is_ranked_by_norm(bert: Model) -> None:
    """There are no gradients then, and [CLS] is asked unless another is named."""
    found = attribute(bert, Prompt(SENTENCE))
    assert (found.kind, found.by, found.query, found.target) == ("vector", "norm", 0, None)
    assert {*found.scores} == {"norm", "attention", "rollout"}
    with pytest.raises(UsageError, match="no gradient of a prediction: rank by norm"):
        attribute(bert, Prompt(SENTENCE), by="chefer")


def classifier(*, causal: bool) -> HuggingFace:
    """A tiny random model of three classes."""
    sizes = {"vocab_size": VOCABULARY, "num_labels": 3, "initializer_range": 0.3, "pad_token_id": 1}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if causal:
            model = GPT2ForSequenceClassification(
                GPT2Config(n_embd=32, n_layer=2, n_head=4, **sizes)
            )
        else:
            widths = {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
            }
            model = BertForSequenceClassification(BertConfig(**widths, **sizes))
    return HuggingFace("classifier", model.eval(), plain_tokenizer())


@pytest.mark.parametrize("causal", [False, True])
def test_a_class_is_asked_where_it_is_told(causal: bool) -> None:
    """A classifier reads its class off the first token, a causal one off the last, and no place can be chosen."""
    model = classifier(causal=causal)
    found = attribute(model, Prompt(SENTENCE), Target("LABEL_2"), checks=["knock-out"])
    assert (found.kind, found.target, found.by) == ("class", "LABEL_2", "gradient")
    assert found.query == (len(found.tokens) - 1 if causal else 0)
    assert np.isfinite(found.effects["knock-out"]).sum() == len(found.tokens) - 1
    with pytest.raises(UsageError, match="class of the whole text"):
        attribute(model, Prompt(SENTENCE), Target(query=TokenReference(3)))


# Effects


def centred(logits: torch.Tensor, target: int) -> float:
    """A logit less the mean of all."""
    return float(logits[target].double() - logits.double().mean())


def masked(n: int, key: int, *, causal: bool) -> torch.Tensor:
    """A mask to be added to scores, (1, 1, n, n): no query but the key's own sees the key."""
    hidden = np.triu(np.ones((n, n), bool), 1) if causal else np.zeros((n, n), bool)
    hidden[:, key] |= np.arange(n) != key
    return torch.where(torch.from_numpy(hidden), torch.finfo(torch.float32).min, 0.0)[None, None]


def test_knock_out_is_a_mask_on_eager(gpt2: HuggingFace, tiny: Tiny) -> None:
    """The effect of a token is that of an explicit 4-D mask on the library's eager attention, one run a token."""
    found = attribute(gpt2, Prompt(SENTENCE), Target(" the"), checks=["knock-out"])
    eager = AutoModelForCausalLM.from_pretrained(tiny("gpt2"), attn_implementation="eager").eval()
    ids, n = torch.tensor([[token.id for token in found.tokens]]), len(found.tokens)
    target = gpt2.tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    with torch.inference_mode():
        whole = centred(eager(ids).logits[0, -1], target)
        without = [
            centred(eager(ids, attention_mask=masked(n, key, causal=True)).logits[0, -1], target)
            for key in range(n - 1)
        ]
    effect = found.effects["knock-out"]
    assert np.allclose(effect[:-1], whole - np.array(without), **close(VOCABULARY))
    assert np.abs(effect[:-1]).max() > 0.1
    assert np.isnan(effect[-1])


def test_leave_one_out_is_other_ids(gpt2: HuggingFace, tiny: Tiny) -> None:
    """The effect is the mean over four substitutes of plain runs that read them in the token's place."""
    found = attribute(gpt2, Prompt(SENTENCE), checks=["leave-one-out"], seed=3)
    plain = AutoModelForCausalLM.from_pretrained(tiny("gpt2")).eval()
    ids, n = torch.tensor([[token.id for token in found.tokens]]), len(found.tokens)
    drawn = draw_substitutes(gpt2, 3)
    with torch.inference_mode():
        logits = plain(ids).logits[0, -1]
        target = int(logits.argmax())
        for place in range(n - 1):
            others = [number for number in drawn if number != ids[0, place]][:SUBSTITUTES]
            falls = []
            for number in others:
                changed = ids.clone()
                changed[0, place] = number
                falls.append(
                    centred(logits, target) - centred(plain(changed).logits[0, -1], target)
                )
            assert found.effects["leave-one-out"][place] == pytest.approx(np.mean(falls), abs=1e-5)


def test_a_token_is_not_its_own_substitute(builtin: Model) -> None:
    """Where the token is among those that were drawn, the spare one is read instead."""
    own = draw_substitutes(builtin, 0)[0]
    found = attribute(builtin, Prompt("", ids=(0, 700, own, 701)), checks=["leave-one-out"])
    others = [Intervention(tokens=((2, number),)) for number in draw_substitutes(builtin, 0)[1:]]
    response = builtin.respond(Prompt("", ids=(0, 700, own, 701)), [NOTHING, *others])
    logits = response.outputs - response.outputs.mean(1, keepdims=True)
    falls = logits[0, response.target] - logits[1:, response.target]
    assert found.effects["leave-one-out"][2] == pytest.approx(falls.mean(), abs=1e-5)


def test_a_vector_is_compared_by_its_angle(bert: Model, minilm: Path) -> None:
    """Of a model that predicts nothing the effect is 1 - cosine of the chosen vector, as eager attention has it."""
    found = attribute(
        bert, Prompt(SENTENCE), Target(query=TokenReference("mat")), checks=["knock-out"]
    )
    eager = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    ids, n = torch.tensor([[token.id for token in found.tokens]]), len(found.tokens)
    with torch.inference_mode():
        whole = eager(ids).last_hidden_state[0, found.query].double()
        for key in {*range(n)} - {found.query}:
            other = (
                eager(ids, attention_mask=masked(n, key, causal=False))
                .last_hidden_state[0, found.query]
                .double()
            )
            turned = 1 - torch.cosine_similarity(whole, other, dim=0).item()
            assert found.effects["knock-out"][key] == pytest.approx(turned, abs=1e-6)


@pytest.mark.parametrize("name", ["builtin", "gpt2"])
def test_batches_are_runs_one_by_one(name: str, request: pytest.FixtureRequest) -> None:
    """More tokens than fit into a batch have the effects that each has alone; every run is counted."""
    model = request.getfixturevalue(name)
    with keep_steps() as history:
        found = attribute(model, Prompt(TWICE), checks=["knock-out"])
    n = len(found.tokens)
    assert n > 17
    assert history.find("taking tokens away") == [("run", n - 1, n - 1)]
    whole = model.respond(Prompt(TWICE), [NOTHING])
    for place in range(n - 1):
        alone = model.respond(
            Prompt(TWICE), [Intervention(cuts=(Edge(None, None, None, None, place),))]
        )
        fall = np.diff(
            [part.outputs[0, whole.target] - part.outputs[0].mean() for part in (alone, whole)]
        )
        assert found.effects["knock-out"][place] == pytest.approx(fall[0], abs=1e-4)


def test_what_is_changed_in_all_runs_is_changed(builtin: Model) -> None:
    """With another token read, scores and effects are those of the text that has it."""
    ids = (0, 500, 501, 502, 503, 501)
    found = attribute(
        builtin, Prompt("", ids=ids), checks=EVERY, intervention=Intervention(tokens=((2, 777),))
    )
    other = attribute(builtin, Prompt("", ids=(0, 500, 777, 502, 503, 501)), checks=EVERY)
    for name in ("gradient", "chefer", "norm", "attention", "rollout"):
        assert np.allclose(found.scores[name], other.scores[name], rtol=1e-5, atol=1e-6), name
    for check in EVERY:
        assert np.allclose(
            found.effects[check], other.effects[check], rtol=0, atol=1e-5, equal_nan=True
        ), check


def test_the_copied_token_matters_most(builtin: Model) -> None:
    """Where the model copies, the token after the first copy's last one is found by gradients and by knock-out."""
    found = attribute(builtin, Prompt(TWICE), checks=["knock-out"])
    names = [token.text for token in found.tokens]
    copied = names.index("lazy") + 1
    assert found.target == " dog"
    assert names[copied] == "dog"
    assert found.order[0] == copied
    assert int(np.nanargmax(found.effects["knock-out"])) == copied


def test_the_seed_gives_the_numbers(builtin: Model) -> None:
    """The same seed gives the same effects and baselines, another one others."""

    def effect(seed: int) -> Attribution:
        return attribute(builtin, Prompt(SENTENCE), checks=["leave-one-out"], seed=seed)

    first, again, other = effect(1), effect(1), effect(2)
    assert first.agreement == again.agreement
    assert not np.array_equal(first.baselines["random"], other.baselines["random"])
    assert not np.allclose(
        first.effects["leave-one-out"][1:-1], other.effects["leave-one-out"][1:-1]
    )


@pytest.mark.exact
def test_models_of_two_texts_are_refused(tiny: Tiny) -> None:
    """An encoder-decoder is told in one line; so is a text of which nothing is left to rank."""
    with pytest.raises(UsageError, match="reads one text and writes another"):
        attribute(load_model(str(tiny("t5")), predicts=True), Prompt("a cat"))
    with pytest.raises(InputError, match="none to rank"):
        attribute(load_model(), Prompt("a"))


# The command


def test_the_screen_shows_text_tokens_and_trust(call: Call) -> None:
    """The text, a table of so many tokens with sinks below, and a table of trust with a sentence."""
    done = call("attribute", TWICE, "--leave-one-out", "--top", "3", "--width", "110")
    assert done.returncode == 0
    assert "what mattered for the next token ' dog'" in done.stdout
    lines = done.stdout.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("token "))
    names = [line.split()[1] for line in lines[table + 1 : table + 6]]
    assert (names[0], names[3:]) == ("dog", ["<bos>", "lazy"])
    assert "on this input gradient agrees with knock-out at" in done.stdout
    assert [line.split()[0] for line in lines if line.startswith(("position", "random"))][:2] == [
        "position",
        "random",
    ]
    assert max(map(len, lines)) <= 110


def test_json_has_everything(call: Call, minilm: Path) -> None:
    """Methods with their sources, ranks that leave sinks out, effects, and the correlations SciPy finds in them."""
    found = json.loads(
        call(
            "attribute", SENTENCE, "-m", minilm, "--query", "mat", "--leave-one-out", "--json"
        ).stdout
    )
    assert (found["kind"], found["by"], found["target"], found["sinks_ranked"]) == (
        "vector",
        "norm",
        None,
        False,
    )
    assert found["methods"]["norm"]["source"] == "Kobayashi et al. 2020"
    assert found["query"]["text"] == "mat"
    assert [token["text"] for token in found["tokens"] if not token["ranked"]] == [
        "[CLS]",
        "mat",
        "[SEP]",
    ]
    ranked = [token for token in found["tokens"] if token["ranked"]]
    assert found["verified"]["tokens"] == len(ranked)
    correlations = found["verified"]["spearman"]
    assert correlations["knock-out"]["leave-one-out"] == correlations["leave-one-out"]["knock-out"]
    assert correlations["knock-out"]["knock-out"] is None
    for method, row in correlations.items():
        if method in found["methods"]:
            for check, value in row.items():
                pairs = [(token["scores"][method], token["effects"][check]) for token in ranked]
                assert value == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


def test_csv_has_a_line_a_token(call: Call, tmp_path: Path) -> None:
    """Scores, ranks and effects of every token, empty where there are none."""
    assert call("attribute", TWICE, "--verify", "-o", "x.csv").returncode == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text("utf-8"))))
    assert [row["token"] for row in rows][:3] == ["<bos>", "The", "quick"]
    assert rows[0]["gradient_rank"] == rows[-1]["knock-out"] == ""
    assert sorted(float(row["gradient_rank"]) for row in rows[1:-1]) == list(
        range(1, len(rows) - 1)
    )


@pytest.mark.parametrize("form", [pytest.param("png", marks=pytest.mark.exact), "svg", "md"])
@pytest.mark.slow
def test_the_same_files_each_time(call: Call, tmp_path: Path, form: str) -> None:
    """Figures and Markdown are the same bytes from the same input."""
    for name in ("a", "b"):
        assert call("attribute", SENTENCE, "--verify", "-o", f"{name}.{form}").returncode == 0
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


def test_few_tokens_are_not_trusted(call: Call) -> None:
    """Of fewer than five ranked tokens, a rank correlation is said to mean nothing."""
    done = call("attribute", "a cat sat", "--verify")
    assert "2 tokens are too few: a rank correlation means nothing here" in done.stdout
    assert "more than chance" not in done.stdout


@pytest.mark.exact
def test_mistakes_are_one_line(call: Call, minilm: Path, tiny: Tiny) -> None:
    """What cannot be attributed says what can be."""
    require_failure(call("attribute", "a"), 4, "none to rank")
    require_failure(call("attribute", SENTENCE, "--generate", "3"), 2, "No such option")
    require_failure(call("attribute", SENTENCE, "--target-token", "zebrafinches"), 2, "tokens")
    require_failure(
        call("attribute", SENTENCE, "-m", minilm, "--by", "gradient"), 2, "rank by norm"
    )
    require_failure(
        call("attribute", SENTENCE, "-m", minilm, "--target-token", "x"), 2, "predicts no tokens"
    )
    require_failure(
        call("attribute", SENTENCE, "-m", tiny("t5")), 2, "reads one text and writes another"
    )
    require_failure(call("attribute", SENTENCE, "--query", "dog"), 2, "does not occur")


def test_hostile_tokens_are_shown(call: Call) -> None:
    """Escape sequences in a text are written out, in the picture and in both tables."""
    done = call(
        "attribute", "red \x1b[31m and \u202e back again, and so on", "--verify", "--color", "never"
    )
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_ablated_heads_do_not_count(builtin: Model) -> None:
    """In weights, norms and rollout: they are those of the other heads, as the model has them under the ablation."""
    head = (1, 3)
    change = Intervention(change=make_ablation([head], "zero", {}))
    found = attribute(builtin, Prompt(TWICE), intervention=change, without=[head])
    weights = builtin.capture(Prompt(TWICE), Request(), change).maps[0].weights.astype(np.float64)
    means = np.stack(
        [
            np.delete(layer, 3, 0).mean(0) if i == 1 else layer.mean(0)
            for i, layer in enumerate(weights)
        ]
    )
    np.testing.assert_allclose(found.scores["attention"], means[:, -1].mean(0), atol=1e-6)
    np.testing.assert_allclose(
        found.scores["rollout"], compute_rollout(means[:, None])[-1, -1], atol=1e-6
    )
    others = ",".join(f"L{i}H{j}" for i in range(3) for j in range(6) if (i, j) != head)
    request = Request(heads=parse_heads(others), method="norm", summed=True)
    norms = np.concatenate(
        [part.weights[:, 0] for part in builtin.capture(Prompt(TWICE), request, change).maps]
    )
    np.testing.assert_allclose(found.scores["norm"], norms[:, -1].mean(0), rtol=1e-5)


def test_all_heads_may_be_ablated(builtin: Model) -> None:
    """There are no norms then, and a note says why."""
    every = [(layer, head) for layer in range(3) for head in range(6)]
    change = Intervention(change=make_ablation(every, "zero", {}))
    found = attribute(builtin, Prompt(TWICE), intervention=change, without=every)
    assert "norm" not in found.scores
    assert "without norm: all heads are ablated" in found.notes
    assert not found.scores["attention"].any()


def test_what_changes_do_is_part_of_the_result(builtin: Model) -> None:
    """Of an outcome the result has the document, the notes and the table, and what is ranked is under it."""
    prompt = Prompt(TWICE)
    subject = PromptedModel.of(builtin, prompt)
    outcome = intervene(subject, InterventionChanges(ablated=((1, 3),)))
    found = attribute(builtin, prompt, outcome=outcome)
    change = Intervention(change=make_ablation([(1, 3)], "zero", {}))
    same = attribute(builtin, prompt, intervention=change, without=[(1, 3)])
    np.testing.assert_allclose(found.scores["attention"], same.scores["attention"], atol=1e-6)
    assert found.to_dict()["intervention"]["ablate"] == ["L1H3"]
    assert any(line.startswith("ablated: L1H3") for line in found.notes)
    assert len(found.tables()) == len(same.tables()) + 1
    assert len(found.rows()) == len(found.tokens)
