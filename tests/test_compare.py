"""`attnviz compare`: two models, two texts, two captures, on the screen and in files."""

import csv
import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import attnviz
from tests.commands import require_failure
from tests.conftest import Run, Tiny
from tests.tolerance import rounding

pytestmark = pytest.mark.numeric

ZERO = pytest.approx(
    0, abs=rounding(600, dtype=np.float64)
)  # of a divergence, a sum over keys in float64
HARD = "Unbelievably, the naïve tokenizer's subwords misbehave — 3.14159 😀 ok."


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Captures of two texts."""
    for name, text in (("a", "The cat sat."), ("b", "The dog sat down.")):
        attnviz.save(attnviz.capture(text), tmp_path / f"{name}.attn")
    return tmp_path / "a.attn", tmp_path / "b.attn"


def test_minilm_beside_builtin(call: Run, minilm: Path) -> None:
    """One model named is A, B is builtin: three pictures in words, the heads of A with their nearest, one number."""
    done = call("compare", "--model", minilm, HARD, "--width", "160")
    assert done.returncode == 0, done.stderr
    for part in (
        "B builtin",
        "A - B",
        "compared on all 12 words",
        "head of A",
        "62 more",
        "A and B: 0.",
    ):
        assert part in done.stdout


def test_stacked_where_there_is_no_room(call: Run) -> None:
    """At 160 columns the pictures stand beside each other, at 80 below."""
    wide, narrow = (
        call("compare", "-m", "builtin", "The cat sat on it.", "--width", width).stdout
        for width in (160, 60)
    )
    assert any(line.count("A builtin") == 1 and "A - B" in line for line in wide.splitlines()[1:])
    assert not any("B  builtin" in line and "A - B" in line for line in narrow.splitlines())
    assert len(narrow.splitlines()) > len(wide.splitlines())


@pytest.mark.exact
@pytest.mark.usefixtures("hub_cache")
def test_bert_base_from_the_cache(call: Run) -> None:
    """`attnviz compare --model bert-base` draws as it stands when that model is in the local cache."""
    done = call("compare", "--model", "bert-base")
    assert done.returncode == 0, done.stderr
    assert "A bert-base · B builtin" in done.stdout
    assert "no text given; using a sample" in done.stderr


def test_itself(call: Run, minilm: Path) -> None:
    """A model beside itself: every head is its own nearest, 0 apart, and the number is 0."""
    done = call("compare", "-m", minilm, "-m", minilm, HARD, "--json")
    found = json.loads(done.stdout)
    assert found["js"] == {"mean": ZERO, "sd": None, "n": 1}
    assert found["moved"]["mean"] == ZERO
    assert len(found["heads"]) == 144
    for head in found["heads"]:
        assert head["nearest"] == {"layer": head["layer"], "head": head["head"]}
        assert head["js"]["mean"] == head["moved"]["mean"] == ZERO
    assert (found["a"]["outside"], found["a"]["unseen"]) == (0, 0)


def test_permuted_heads_are_matched_back(call: Run, minilm: Path, tmp_path: Path) -> None:
    """A copy of MiniLM with the heads of each layer in another order: each head finds the one that it was."""
    copy, order = tmp_path / "copy", np.random.default_rng(0).permutation(12)
    shutil.copytree(minilm, copy)
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    for name, array in weights.items():
        if ".attention.self." in name:  # (head * d, ...)
            weights[name] = np.ascontiguousarray(
                array.reshape(12, 32, -1)[order].reshape(array.shape)
            )
        elif name.endswith("attention.output.dense.weight"):  # (dim, head * d)
            weights[name] = np.ascontiguousarray(
                array.reshape(-1, 12, 32)[:, order].reshape(array.shape)
            )
    save_file(weights, file, {"format": "pt"})
    found = json.loads(call("compare", "-m", copy, "-m", minilm, HARD, "--json").stdout)
    for head in found["heads"][:72]:
        assert head["nearest"] == {"layer": head["layer"], "head": order[head["head"]]}
        assert head["js"]["mean"] < 1e-6
    assert found["js"]["mean"] < 1e-6
    assert found["moved"]["mean"] > 0.05


def test_two_texts_on_one_model(call: Run) -> None:
    """--with compares on the words that both texts have."""
    found = json.loads(call("compare", "The cat sat.", "--with", "The dog sat.", "--json").stdout)
    assert [key["text"] for key in found["maps"]["keys"]] == ["<bos>", "The", "sat", "."]
    assert (found["a"]["words"], found["a"]["common_words"]) == (4, 3)
    a, b, apart = (found["maps"][name] for name in ("a", "b", "difference"))
    assert a[0][1] is None
    assert apart[3][2] == pytest.approx(a[3][2] - b[3][2], abs=1e-6)


def test_two_captures(call: Run, files: tuple[Path, Path]) -> None:
    """--from twice compares captures, once a capture with what a model makes of its text; TEXT has no place then."""
    both = call("compare", "--from", files[0], "--from", files[1], "--json")
    assert json.loads(both.stdout)["a"]["text"] == "The cat sat."
    one = json.loads(call("compare", "--from", files[0], "--json").stdout)
    assert one["b"]["text"] == "The cat sat."
    assert one["js"]["mean"] == ZERO
    require_failure(
        call("compare", "text", "--from", files[0], "--from", files[1]), 2, "leave TEXT out"
    )


@pytest.mark.exact
def test_captures_need_no_torch(run: Run, files: tuple[Path, Path]) -> None:
    """Two captures are compared without torch."""
    done = run("compare", "--from", files[0], "--from", files[1], PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert not any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())


def test_several_texts_give_a_spread(call: Run, tmp_path: Path) -> None:
    """Of several texts, or of the lines of one, the number has a deviation, and each head one."""
    (tmp_path / "lines.txt").write_text("The cat sat.\n\nA dog runs home.\nBirds fly.\n")
    done = call(
        "compare", "-m", "builtin", "-m", "builtin", "--lines", f"@{tmp_path}/lines.txt", "--json"
    )
    found = json.loads(done.stdout)
    assert (found["texts"], found["js"]["n"]) == (3, 3)
    shown = call("compare", "-m", "builtin", "The cat sat.", "A dog runs home.", "--with", "x")
    require_failure(shown, 2, "2 texts are given")
    told = call("compare", "-m", "builtin", "The cat sat.", "A dog runs home.")
    assert "over 2 texts" in told.stdout
    assert "± sd" in told.stdout


def test_one_head_and_its_counterpart(call: Run, minilm: Path) -> None:
    """-H draws one head of A beside its own of B, or of another architecture the nearest; -l lists those of a layer."""
    same = call("compare", "-m", "builtin", "-H", "L1H3", "The cat sat.", "--json")
    assert json.loads(same.stdout)["maps"]["heads"] == {
        "a": [{"layer": 1, "head": 3}],
        "b": [{"layer": 1, "head": 3}],
    }
    other = json.loads(call("compare", "-m", minilm, "-H", "L0H2", HARD, "--json").stdout)
    (mine,) = [head for head in other["heads"] if head["side"] == "a"]
    assert other["maps"]["heads"]["b"] == [mine["nearest"]]
    layer = json.loads(call("compare", "-m", "builtin", "-l", "1", "The cat sat.", "--json").stdout)
    assert [head["layer"] for head in layer["heads"] if head["side"] == "a"] == [1] * 6
    require_failure(
        call("compare", "-q", "-m", "builtin", "-H", "L9H9"), 2, "layer 9 does not exist"
    )


DRAWN = [
    pytest.param(form, marks=pytest.mark.exact) for form in ("png", "pdf")
]  # the numbers are those of svg


@pytest.mark.parametrize("form", [*DRAWN, "svg", "html", "json", "csv", "md"])
@pytest.mark.slow
def test_every_format(call: Run, tmp_path: Path, form: str) -> None:
    """Every renderer takes it, and writes the same bytes again."""
    for name in ("one", "two"):
        done = call("compare", "-m", "builtin", "The cat sat.", "-o", f"{name}.{form}")
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / f"{name}.{form}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one) > 300


@pytest.mark.exact
@pytest.mark.parametrize("view", ["maps", "heads", "table"])
@pytest.mark.parametrize("form", ["svg", "md"])
def test_every_view_as_figure(call: Run, view: str, form: str) -> None:
    """Each view can be had alone, as a figure and as Markdown."""
    done = call(
        "compare", "-m", "builtin", "The cat sat.", "--view", view, "-o", "-", "--format", form
    )
    assert done.returncode == 0, done.stderr
    assert ("A - B" in done.stdout) == (view == "maps")


def test_csv_has_all_heads(call: Run) -> None:
    """A line for each head of A and of B, its nearest and the numbers."""
    done = call("compare", "-m", "builtin", "The cat sat.", "-o", "-", "--format", "csv")
    lines = list(csv.DictReader(StringIO(done.stdout)))
    assert len(lines) == 36
    assert {line["side"] for line in lines} == {"a", "b"}
    assert float(lines[0]["js"]) == ZERO
    assert lines[0]["js_sd"] == ""


def test_kinds_of_model(call: Run, tiny: Tiny, minilm: Path) -> None:
    """An encoder beside a decoder, and beside the encoder of an encoder-decoder; what is left out is told."""
    done = call("compare", "-m", minilm, "-m", tiny("bart"), "the cat sat on the mat", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["b"]["unseen"] == 0
    decoder = call("compare", "-m", minilm, "-m", tiny("gpt2"), "the cat sat on the mat")
    assert "left out, where the other may not attend" in decoder.stdout
    cross = call(
        "compare",
        "-m",
        tiny("bart"),
        "-m",
        tiny("bart"),
        "--map",
        "cross",
        "a cat",
        "--target",
        "a dog",
        "--json",
    )
    assert json.loads(cross.stdout)["js"]["mean"] == ZERO
    require_failure(call("compare", "-m", minilm, "--map", "cross", "a cat"), 2, "no cross map")


def test_special_tokens_can_be_left_out(call: Run) -> None:
    """--special drop leaves them out of the comparison."""
    found = json.loads(
        call("compare", "-m", "builtin", "The cat sat.", "--special", "drop", "--json").stdout
    )
    assert [key["text"] for key in found["maps"]["keys"]] == ["The", "cat", "sat", "."]


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ([], 2, "nothing to compare with"),
        (["-m", "a", "-m", "b", "-m", "c"], 2, "two are compared"),
        (["--with", "x", "-m", "a", "-m", "b"], 2, "two are compared"),
        (["-m", "builtin", ""], 4, "the text is empty"),
        (["-m", "builtin", "cat", "--with", ""], 4, "the text is empty"),
        (["the cat", "--with", "a dog"], 4, "no word in common"),
        (["-m", "builtin", "-m", "no/such-model", "--offline"], 3, "no/such-model"),
        (["-m", "builtin", "--top", "0"], 2, "no number of rows"),
        (["-m", "builtin", "-o", "x.npz"], 2, "not .npz"),
        (["-m", "builtin", "-l", "0", "-H", "L1H1"], 2, "names its layer"),
        (["--from", "gone.attn"], 4, "gone.attn"),
        (["-m", "builtin", "--exact"], 2, "--exact"),
    ],
)
def test_bad_input(call: Run, args: list[str], code: int, told: str) -> None:
    """One line, and the right exit code."""
    require_failure(call("compare", "-q", *args), code, told)


def test_nan_in_a_capture(call: Run, tmp_path: Path) -> None:
    """A capture with numbers that are none is refused."""
    np.savez(tmp_path / "bad.npz", weights=np.full((1, 2, 2), np.nan, np.float32))
    require_failure(call("compare", "--from", "bad.npz", "--from", "bad.npz"), 4, "NaN")


def test_a_capture_without_weights(call: Run, tmp_path: Path) -> None:
    """Statistics alone cannot be compared."""
    attnviz.save(attnviz.capture("the cat", keep="statistics"), tmp_path / "s.attn")
    require_failure(call("compare", "--from", "s.attn", "--from", "s.attn"), 4, "weights")


def test_arrays_from_elsewhere(call: Run, tmp_path: Path) -> None:
    """Arrays with tokens that are words compare as captures do."""
    weights = np.full((2, 3, 3), 1 / 3, np.float32)
    np.savez(tmp_path / "x.npz", weights=weights, tokens=np.array(["a", "b", "c"]))
    done = call("compare", "--from", "x.npz", "--from", "x.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["js"]["mean"] == ZERO


def test_chosen_heads_are_drawn_one_by_one(call: Run) -> None:
    """A few heads each stand beside their counterpart; of many the mean of a layer, which says of which."""
    few = call(
        "compare", "-m", "builtin", "The cat sat.", "-H", "L1H3,L2H0", "--view", "maps"
    ).stdout
    assert [few.count(f"layer {layer} · head {head}") for layer, head in ((1, 3), (2, 0))] == [2, 2]
    many = call(
        "compare", "-m", "builtin", "The cat sat.", "-H", "0-4", "--view", "maps", "--width", "160"
    ).stdout
    assert many.count("layer 2 · mean over heads") == 2
    assert "mean over heads 0, 1, 2, 3, 4" in many


def test_no_difference_is_said(call: Run) -> None:
    """Where A and B are the same, the third picture says so."""
    assert "no difference" in call("compare", "-m", "builtin", "The cat sat.").stdout


def test_a_page_holds_so_many_words(call: Run, tmp_path: Path) -> None:
    """A page of a text that is too long for it is refused; the other formats take it."""
    text = "a " * 520
    weights = np.full((1, 520, 520), 1 / 520, np.float32)
    attnviz.save(attnviz.from_arrays(weights, tokens=text.split()), tmp_path / "x.attn")
    require_failure(
        call("compare", "--from", "x.attn", "--from", "x.attn", "-o", "x.html"), 4, "512 words"
    )
    done = call("compare", "--from", "x.attn", "--from", "x.attn", "--json")
    assert json.loads(done.stdout)["js"]["mean"] == ZERO
