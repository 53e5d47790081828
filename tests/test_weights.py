"""--weights on every command and model: the numbers, what is said of them, files of them, and what is refused."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import click
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

import attnviz
from attnviz import methods
from attnviz.analysis.rollout import compute_relevance, replace_by_relevance
from attnviz.cli.main import main
from attnviz.errors import AttnvizError, UsageError
from attnviz.io import formats
from attnviz.models import load_model
from attnviz.record import Capture
from attnviz.request import Prompt, Request
from attnviz.views import make_capture_page, make_grids, make_heatmaps
from tests.captures import make_capture
from tests.commands import require_failure
from tests.conftest import SENTENCE, Tiny
from tests.tiny import VOCABULARY, plain_tokenizer, save
from tests.tolerance import close

pytestmark = pytest.mark.numeric

Call = Callable[..., CompletedProcess[str]]
OTHERS = "norm", "gradient", "chefer", "rollout", "scores"
SAYS = {
    "norm": "Kobayashi et al. 2020",
    "gradient": "Chefer et al. 2021, eq. 5",
    "chefer": "Chefer et al. 2021, eq. 5 and 6",
    "rollout": "Abnar & Zuidema 2020",
    "scores": "before the softmax",
}
TEXT = "the cat sat on the mat"


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT that tells two classes apart."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    labels = {0: "dull", 1: "bright"}
    config = BertConfig(
        vocab_size=VOCABULARY, initializer_range=0.5, id2label=labels, label2id={"dull": 0}, **sizes
    )
    return save(
        BertForSequenceClassification(config), tmp_path_factory.mktemp("classes"), plain_tokenizer
    )


def document(done: CompletedProcess[str]) -> dict[str, Any]:
    """The JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def positive(weights: np.ndarray) -> np.ndarray:
    """I plus the mean over heads of each layer, multiplied in turn: (layer, head, n, n) -> (layer, n, n)."""
    eye, found = np.eye(weights.shape[-1]), []
    for layer in weights.astype(np.float64):
        found.append((eye + layer.mean(0)) @ (found[-1] if found else eye))
    return np.stack(found)


# Chefer et al.


def test_without_gradients_relevance_is_of_oneself() -> None:
    """R stays the identity."""
    np.testing.assert_array_equal(
        compute_relevance(np.zeros((3, 2, 4, 4))), np.broadcast_to(np.eye(4), (3, 4, 4))
    )


def test_relevance_of_equal_gradients_has_a_closed_form() -> None:
    """C = c everywhere: R_l = I + ((1 + n c)^(l + 1) - 1) / n everywhere."""
    n, c = 5, 0.3
    found = compute_relevance(np.full((4, 2, n, n), c))
    for layer in range(4):
        np.testing.assert_allclose(
            found[layer], np.eye(n) + ((1 + n * c) ** (layer + 1) - 1) / n, rtol=1e-5
        )


def test_a_later_layer_of_relevance_stands_on_the_left() -> None:
    """The first layer leads from 0 to 1, the second from 1 to 2: so 2 has some of 0; the other way round nothing."""
    first, second = np.zeros((2, 3, 3))
    first[1, 0], second[2, 1] = 0.5, 0.25
    assert compute_relevance(np.stack([first, second])[:, None])[1, 2, 0] == 0.125
    assert compute_relevance(np.stack([second, first])[:, None])[1, 2, 0] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6))
def test_relevance_is_the_product_of_the_paper(seed: int, layers: int, heads: int, n: int) -> None:
    """Equation 6, one layer after the other; it never shrinks."""
    gradients = np.random.default_rng(seed).random((layers, heads, n, n)).astype(np.float32)
    found = compute_relevance(gradients)
    np.testing.assert_allclose(found, positive(gradients), rtol=1e-5)
    assert (np.diff(found, axis=0) >= 0).all()


def test_what_has_no_relevance_is_refused() -> None:
    """Weights, a part of the heads, and matrices that are not square."""
    with pytest.raises(ValueError, match="made of gradients"):
        replace_by_relevance(attnviz.capture(TEXT))
    with pytest.raises(ValueError, match="all heads"):
        replace_by_relevance(attnviz.capture(TEXT, method="gradient", heads="0,2"))
    with pytest.raises(ValueError, match="layer, head, n, n"):
        compute_relevance(np.ones((2, 3, 4)))


# Numbers


def test_python_and_the_models_agree() -> None:
    """attnviz.capture gives what the model itself gives; rollout and chefer are made of all and then chosen."""
    model = load_model(predicts=True)
    for method in ("norm", "gradient", "scores"):
        mine = attnviz.capture(TEXT, method=method, layers="1", heads="2,3").maps[0]
        whole = model.capture(Prompt(TEXT), Request(method=method)).maps[0]
        np.testing.assert_allclose(mine.weights, whole.weights[1:2, 2:4], **close(384))
    gradients = model.capture(Prompt(TEXT), Request(method="gradient")).maps[0].weights
    last = attnviz.capture(TEXT, method="chefer", layers="-1").maps[0]
    np.testing.assert_allclose(last.weights[0, 0], positive(gradients)[-1], rtol=1e-5, atol=1e-6)
    assert (last.layers, last.heads, last.method) == ((2,), ("chefer",), "chefer")


def test_scores_softmaxed_are_the_weights() -> None:
    """Which is why the numbers of heads are refused for scores."""
    scores, weights = (
        attnviz.capture(TEXT, method=method).maps[0] for method in ("scores", "attention")
    )
    shown = np.where(scores.visible, scores.weights.astype(np.float64), -np.inf)
    shares = np.exp(shown - shown.max(-1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(-1, keepdims=True), weights.weights, atol=1e-6)


def test_a_named_target_changes_the_gradient(classifier: Path) -> None:
    """Of the other class it is another; of the likelier one, the same as of none."""
    found = {
        name: attnviz.capture(TEXT, str(classifier), method="gradient", target_token=name)
        for name in (None, "dull", "bright")
    }
    equal = [
        np.array_equal(found[None].maps[0].weights, found[name].maps[0].weights)
        for name in ("dull", "bright")
    ]
    assert sorted(equal) == [False, True]
    assert "logit of the class, 'bright'" in found["bright"].notes[0]


@pytest.mark.parametrize("method", OTHERS)
def test_a_saved_capture_keeps_its_method(method: str, tmp_path: Path) -> None:
    """In .attn, .json and .npz: the same numbers, mask and method, and what these are is told once."""
    capture = attnviz.capture(TEXT, method=method, layers="1,2")
    (part,) = capture.maps
    for suffix in ("attn", "json", "npz"):
        attnviz.save(capture, tmp_path / f"it.{suffix}")
        read = attnviz.load(tmp_path / f"it.{suffix}")
        (back,) = read.maps
        np.testing.assert_array_equal(back.weights, part.weights)
        np.testing.assert_array_equal(back.visible, part.visible)
        assert (back.method, back.layers, back.heads, back.kind) == (
            method,
            (1, 2),
            part.heads,
            "self",
        )
        assert sum(SAYS[method] in note for note in read.notes) == 1


def test_attention_in_npz_is_attention(tmp_path: Path) -> None:
    """Its method, places and sinks are there again; a .npz that lies is refused in words."""
    capture = attnviz.capture(TEXT, layers="0")
    attnviz.save(capture, tmp_path / "it.npz")
    (back,) = attnviz.load(tmp_path / "it.npz").maps
    assert (back.method, back.statistics is not None) == ("attention", True)
    arrays = dict(np.load(tmp_path / "it.npz"))
    lies = {
        "kind": np.array("other"),
        "queries": np.array(3.0),
        "layers": np.array([0.5]),
        "method": np.array("norm"),
    }
    for name, lie in {**lies, "weights": -arrays["weights"]}.items():
        np.savez(tmp_path / "lie.npz", **{**arrays, name: lie})
        if name == "method":
            assert attnviz.load(tmp_path / "lie.npz").maps[0].method == "norm"
            continue
        with pytest.raises(AttnvizError, match=r"lie\.npz"):
            attnviz.load(tmp_path / "lie.npz")


# Commands


@pytest.mark.exact
@pytest.mark.parametrize("method", OTHERS)
def test_every_command_shows_every_method(method: str, call: Call, tmp_path: Path) -> None:
    """show, inspect, export, compare and capture: JSON names the method, and a line among the notes its source."""
    shown = document(call("show", TEXT, "--weights", method, "--json"))
    assert {part["method"] for part in shown["maps"]} == {method}
    assert [note for note in shown["notes"] if SAYS[method] in note]
    assert SAYS[method] in " ".join(
        call("show", TEXT, "--weights", method, "--width", "200").stdout.split()
    )
    question = ["--token", "cat"] if method == "scores" else []
    asked = document(call("inspect", TEXT, "--weights", method, *question, "--json"))
    assert asked["method"] == method
    assert [note for note in asked["notes"] if SAYS[method] in note]
    if method != "scores":
        compared = document(
            call("compare", TEXT, "--with", "the cat ran", "--weights", method, "--json")
        )
        assert (compared["a"]["method"], compared["b"]["method"]) == (method, method)
        assert (
            "sinks included"
            in call("compare", TEXT, "--with", "the cat ran", "--weights", method).stdout
        )
    assert call("capture", TEXT, "--weights", method, "-o", "it.attn").returncode == 0
    again = document(call("show", "--from", "it.attn", "-l", "-1", "--json"))
    assert again["maps"][0]["method"] == method
    done = call(
        "export",
        TEXT,
        "--weights",
        method,
        "-l",
        "-1",
        "--formats",
        "html,json,csv,md",
        "-o",
        "report",
    )
    assert done.returncode == 0, done.stderr
    assert f"--weights {method}" in (tmp_path / "report" / "index.md").read_text()
    lines = csv.DictReader(StringIO((tmp_path / "report" / "attention.csv").read_text()))
    assert {line["units"] for line in lines} == {methods.METHODS[method].units}
    assert "attention weights" not in (tmp_path / "report" / "attention.md").read_text()


@pytest.mark.parametrize(
    ("name", "method"), [("gpt2", method) for method in OTHERS] + [("bert", "gradient")]
)
def test_models_of_the_library_have_them_too(
    name: str, method: str, call: Call, tiny: Tiny, classifier: Path
) -> None:
    """A causal model and a classifier: numbers of the kind that was asked for, 0 where masked."""
    folder = classifier if name == "bert" else tiny(name)
    (part,) = document(
        call("show", TEXT, "-m", folder, "--weights", method, "-l", "all", "-H", "all", "--json")
    )["maps"]
    values = np.array(part["weights"], dtype=float)  # null becomes NaN
    assert np.isnan(values).any() == (name == "gpt2")
    assert (np.nanmin(values) < 0) == (method == "scores")
    assert (
        document(
            call("inspect", TEXT, "-m", folder, "--weights", method, "--token", "0", "--json")
        )["method"]
        == method
    )


def test_norms_are_added_before_they_are_measured(call: Call, minilm: Path) -> None:
    """Show without -H shows the norm of the sum, which is at most the sum of the norms; --reduce mean the mean."""
    run = ["show", TEXT, "-m", minilm, "--weights", "norm", "--json"]
    summed, mean, each = (
        document(call(*run, *more))["maps"][0] for more in ([], ["--reduce", "mean"], ["-H", "all"])
    )
    assert (summed["heads"], mean["heads"]) == (["sum"], ["mean"])
    norms = np.array(each["weights"])
    np.testing.assert_allclose(np.array(mean["weights"]), norms.mean(1, keepdims=True), rtol=1e-5)
    assert (np.array(summed["weights"]) <= norms.sum(1, keepdims=True) * (1 + 1e-5)).all()
    told = call(
        "show", TEXT, "-m", minilm, "--weights", "norm", "-H", "0,3", "--reduce", "sum"
    ).stdout
    assert "sum over heads 0,3" in told


def test_words_and_windows_are_of_the_numbers(call: Call) -> None:
    """Rollout is made of tokens, then merged to words, then a window is cut out."""
    text = "unbelievably, the cat sat"
    whole = document(call("show", text, "--weights", "rollout", "--words", "-l", "all", "--json"))[
        "maps"
    ][0]
    part = document(
        call("show", text, "--weights", "rollout", "--words", "-l", "2", "--rows", "3:5", "--json")
    )["maps"][0]
    window, same = (
        np.array(rows, np.float64) for rows in (part["weights"][0][0], whole["weights"][2][0][3:5])
    )
    np.testing.assert_allclose(window, same, **close(384))


def test_a_file_of_attention_rolls_out(call: Call) -> None:
    """As the model itself does; of some layers alone it cannot."""
    call("capture", TEXT, "-o", "whole.attn")
    call("capture", TEXT, "-l", "1", "-o", "part.attn")
    mine, own = (
        document(call("show", *source, "--weights", "rollout", "-l", "-1", "--json"))["maps"]
        for source in (["--from", "whole.attn"], [TEXT])
    )
    assert mine == own
    require_failure(
        call("show", "--from", "part.attn", "--weights", "rollout"),
        4,
        "all layers from 0 up: here are 1",
    )


@pytest.mark.exact
def test_encoder_decoders_roll_out_by_themselves(call: Call, tiny: Tiny) -> None:
    """Encoder and decoder, each through its own layers; from one to the other nothing can be."""
    run = ["show", TEXT, "--target", "a dog", "-m", tiny("t5"), "--weights", "rollout", "-l", "all"]
    assert [part["kind"] for part in document(call(*run, "--json"))["maps"]] == [
        "encoder",
        "decoder",
    ]
    require_failure(call(*run, "--map", "cross"), 2, "--map encoder or --map decoder")


# Pictures


def capture_causal(weights: np.ndarray, method: str) -> Capture:
    """One head with such numbers, causal, and with the notes on them."""
    visible = np.tri(len(weights), dtype=bool)
    capture = make_capture(np.where(visible, weights, 0), visible=visible, method=method)
    return methods.note_methods(capture)


def test_scores_have_two_ends_and_masks_stay_masks() -> None:
    """0 is in the middle of the colours, in heatmaps, grids and pages; what is masked has no colour."""
    capture = capture_causal(
        np.random.default_rng(0).normal(0, 5, (6, 6)).astype(np.float32), "scores"
    )
    (shown,) = make_heatmaps(capture)
    largest = float(np.abs(capture.maps[0].weights).max())
    assert (shown.scale.signed, shown.scale.top, shown.scale.cell) == (True, largest, "score")
    steps = shown.scale.steps(shown.panel, 64)
    assert (steps[~shown.panel.visible] == -1).all()
    assert ((steps >= 32) == (shown.panel.values >= 0))[shown.panel.visible].all()
    assert make_grids(capture)[0].scale.signed
    assert make_capture_page(capture).sections[0].grid.scale.signed


def test_tiles_of_scores_show_the_largest_size() -> None:
    """On a page of fewer cells than tokens a deep score is not lost below a small one."""
    weights = np.full((8, 8), 0.5, np.float32)
    weights[6, 1] = -9
    (section,) = make_capture_page(capture_causal(weights, "scores"), most=4).sections
    assert section.heatmaps[0][0].panel.values[3, 0] == -9


def test_gradients_have_no_sinks() -> None:
    """A token that takes nearly all is what was asked for: nothing is beyond the colours."""
    weights = np.full((6, 6), 1e-4, np.float32)
    weights[-1, -1] = 0.8
    (shown,) = make_heatmaps(capture_causal(weights, "gradient"))
    assert not shown.scale.has_beyond
    assert "sink" not in " ".join(shown.caption)
    (rolled,) = make_heatmaps(replace(capture_causal(weights, "norm")))
    assert not rolled.scale.has_beyond


def test_numbers_of_any_size_are_told(call: Call) -> None:
    """Small gradients keep two digits, in lists and on pages, where weights would be rounded to nothing."""
    told = call(
        "inspect", SENTENCE, "--weights", "gradient", "--token", "-1", "--top", "all"
    ).stdout
    assert "0.00" in told
    assert (
        "sinks included"
        in call("inspect", SENTENCE, "--weights", "gradient", "--token", "-1", "--top", "4").stdout
    )
    strongest = call(
        "show", SENTENCE, "--weights", "gradient", "--view", "tokens", "--token", "-1"
    ).stdout
    assert "strongest, sinks included: " in strongest
    section = make_capture_page(attnviz.capture(SENTENCE, method="gradient")).sections[0]
    from attnviz.render.html.page import find_full_weight

    assert find_full_weight(section) == max(
        head.scale.largest for row in section.heatmaps for head in row
    )


def test_scores_are_told_with_their_signs(call: Call) -> None:
    """Of one token in all heads, and of one cell."""
    cell = document(
        call("inspect", SENTENCE, "--weights", "scores", "--query", "it", "--key", "cat", "--json")
    )
    values = [head["weights"][0][0] for head in cell["heads"]]
    table = call("inspect", SENTENCE, "--weights", "scores", "--token", "it").stdout
    row = next(line for line in table.splitlines() if line.startswith("2 cat"))
    best = int(np.argmax(values))
    assert f"{np.mean(values):+.2f}" in row
    assert f"L{best // 6}H{best % 6} {values[best]:+.2f}" in row


# What is refused


@pytest.mark.exact
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", TEXT, "--target-token", "a"], 2, ["no effect", "gradient or chefer"]),
        (["show", TEXT, "--weights", "norm", "--target-token", "a"], 2, ["no effect"]),
        (
            ["show", TEXT, "--weights", "gradient", "--target-token", "unbelievably"],
            2,
            ["is 6 tokens", "'un'"],
        ),
        (["show", TEXT, "--reduce", "sum"], 2, ["--weights norm"]),
        (["show", TEXT, "--weights", "rollout", "-H", "L1H3"], 2, ["one head a layer", "--heads"]),
        (
            ["show", TEXT, "--weights", "chefer", "--reduce", "max"],
            2,
            ["one head a layer", "--reduce"],
        ),
        (["show", TEXT, "--weights", "norm", "--generate", "3"], 2, ["--generate"]),
        (["show", TEXT, "--weights", "scores", "--words"], 2, ["do not add up"]),
        (["show", TEXT, "--weights", "scores", "--special", "renormalise"], 2, ["--special drop"]),
        (["inspect", TEXT, "--weights", "scores"], 2, ["--weights attention", "--token"]),
        (
            ["inspect", TEXT, "--weights", "scores", "--segments", "auto"],
            2,
            ["--weights attention"],
        ),
        (["compare", TEXT, "--with", "the cat", "--weights", "scores"], 2, ["--weights attention"]),
        (
            ["capture", TEXT, "--weights", "norm", "--keep", "tiles", "-o", "x.attn"],
            2,
            ["leave --keep"],
        ),
        (
            ["export", TEXT, "--weights", "norm", "--reduce", "sum", "-H", "L0H1", "-o", "x"],
            2,
            ["by number"],
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(
    call: Call, arguments: list[str], code: int, said: list[str]
) -> None:
    """Each says what is wrong and what to do."""
    require_failure(call(*arguments), code, *said)


@pytest.mark.exact
def test_an_encoder_that_predicts_nothing_says_so(call: Call, minilm: Path) -> None:
    """And names what works."""
    require_failure(
        call("show", TEXT, "-m", minilm, "--weights", "gradient"),
        2,
        "predicts nothing",
        "--weights norm",
    )


@pytest.mark.exact
@pytest.mark.parametrize("method", ["norm", "gradient", "chefer", "scores"])
def test_a_file_of_attention_has_no_more_than_that(call: Call, method: str) -> None:
    """What is needed, and that the model has it; a target has no place beside a file."""
    call("capture", TEXT, "-o", "it.attn")
    for command in (["show"], ["inspect", "--token", "1"], ["export", "-o", "x"]):
        done = call(*command, "--from", "it.attn", "--weights", method)
        require_failure(
            done, 4, methods.METHODS[method].needs, "it.attn holds attention alone", "-m"
        )
    if method == "gradient":
        require_failure(
            call("show", "--from", "it.attn", "--weights", method, "--target-token", "a"),
            2,
            "leave --target-token",
        )


def test_a_file_of_norms_is_no_attention(call: Call) -> None:
    """Asked for weights, or for the norm of a sum, it says what it holds; not asked, it shows it."""
    call("capture", TEXT, "--weights", "norm", "-o", "norms.attn")
    require_failure(
        call("show", "--from", "norms.attn", "--weights", "attention"), 4, "holds norm alone"
    )
    require_failure(
        call("show", "--from", "norms.attn", "--weights", "norm", "--reduce", "sum"),
        2,
        "adds vectors",
    )
    assert document(call("show", "--from", "norms.attn", "--json"))["maps"][0]["heads"] == ["mean"]
    call("capture", TEXT, "-o", "weights.attn")
    require_failure(
        call("compare", "--from", "norms.attn", "--from", "weights.attn"),
        4,
        "attention and norm",
        "the same --weights",
    )


def test_python_refuses_the_same() -> None:
    """With the names of its own arguments."""
    cases: dict[str, dict[str, Any]] = {
        "method='sums': must be one of attention, norm": {"method": "sums"},
        "target_token= has no effect": {"target_token": "a"},
        "kept cell by cell": {"method": "norm", "keep": "tiles"},
        "one head a layer": {"method": "rollout", "heads": "L0H1"},
    }
    for why, options in cases.items():
        with pytest.raises(UsageError, match=why):
            attnviz.capture(TEXT, **options)
    with pytest.raises(UsageError, match="not inputs="):
        attnviz.capture(model=torch.nn.Linear(1, 1), inputs=torch.ones(1, 1), method="gradient")


def test_every_method_says_what_it_is() -> None:
    """All but attention have a line, and each a noun, a unit and what it is made of."""
    assert set(methods.METHODS) == {"attention", *OTHERS}
    for method, numbers in methods.METHODS.items():
        assert all(numbers[:3])
        assert bool(numbers.line) == (method != "attention")
    assert (
        formats.describe_units(capture_causal(np.ones((2, 2), np.float32), "given").maps[0])
        == "as given"
    )


def test_a_report_names_what_was_made_of_heads(call: Call, tmp_path: Path) -> None:
    """A picture a layer of rollout, and of sums; the command beside each makes the same picture again."""
    for name, options in {
        "rollout": ["--weights", "rollout"],
        "sum": ["--weights", "norm", "--reduce", "sum"],
    }.items():
        done = call("export", TEXT, *options, "-l", "1,2", "--formats", "svg", "-o", name)
        assert done.returncode == 0, done.stderr
        made = {path.name for path in (tmp_path / name).iterdir()}
        assert made >= {f"L1-{name}.svg", f"L2-{name}.svg", "grid.svg"}
        again = call(
            "show", TEXT, *options, "--view", "heatmap", "-l", "2", "-H", "all", "-o", f"{name}.svg"
        )
        assert again.returncode == 0, again.stderr
        assert (tmp_path / f"{name}.svg").read_bytes() == (
            tmp_path / name / f"L2-{name}.svg"
        ).read_bytes()


@pytest.mark.parametrize("name", ["show", "inspect", "export", "compare", "capture"])
def test_the_option_offers_what_there_is(name: str) -> None:
    """The choices of --weights are the methods, on every command."""
    command = main.get_command(click.Context(main), name)
    (option,) = (option for option in command.params if option.name == "method")
    assert set(option.type.choices) == set(methods.METHODS)
