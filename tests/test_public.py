"""What `import attnviz` offers: its names, what they return, and how that shows itself."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

import attnviz
import attnviz.notebook  # by which records show themselves, as with any public name
from attnviz.errors import UsageError
from attnviz.record import Capture

PUBLIC = {
    "attribute",
    "capture",
    "compare",
    "explain",
    "from_arrays",
    "heads",
    "inspect",
    "intervene",
    "load",
    "save",
    "show",
}
SENTENCE = "The cat sat because it was tired."


def test_these_are_the_public_names() -> None:
    """`dir(attnviz)` and `__all__` are the same, and nothing of how they are found is among them."""
    assert set(attnviz.__all__) == PUBLIC
    assert set(dir(attnviz)) == PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        attnviz.nothing  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_is_typed_and_documented(name: str) -> None:
    """Every argument and what is returned has a type, and the docstring tells of errors."""
    function = getattr(attnviz, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(
        each.annotation is not inspect.Parameter.empty for each in signature.parameters.values()
    )
    assert "Raises" in function.__doc__


def test_importing_is_light() -> None:
    """The package itself imports neither NumPy nor torch: only what is asked for is."""
    code = "import attnviz, sys; assert not {'numpy', 'torch', 'transformers', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_capture_is_a_line(capture: Capture) -> None:
    """What a prompt shows of a capture is one line that says what it is of."""
    assert (
        repr(capture) == "<Capture of toy: self-attention, 4 tokens, 2 layers x 2 heads, weights>"
    )
    assert (
        repr(capture.maps[0])
        == "<AttentionMap: self-attention, 4 tokens, 2 layers x 2 heads, weights>"
    )
    assert "\n" not in repr(attnviz.capture(SENTENCE))


def test_a_capture_is_a_document(capture: Capture) -> None:
    """`to_dict` is what --json prints but for its schema: plain lists and numbers, null where masked."""
    document = capture.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["model"] == "toy"
    assert "schema" not in document
    assert document["maps"][0]["weights"][0][0][0][1] is None


def test_a_capture_is_a_frame(capture: Capture) -> None:
    """`to_frame` has a line for each weight that is not masked."""
    frame = capture.to_frame()
    assert len(frame) == 2 * 2 * (4 * 5 // 2)
    last = frame.iloc[-1]
    assert (last["layer"], last["head"], last["query_token"], last["key_token"]) == (
        1,
        1,
        "sat",
        "sat",
    )
    assert last["weight"] == capture.maps[0].weights[1, 1, 3, 3]


def test_without_pandas_there_is_a_line(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pandas is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame needs pandas: pip install pandas"):
        capture.to_frame()


def test_the_old_save_still_works(capture: Capture, tmp_path) -> None:
    """`Capture.save` writes what `attnviz.save` writes, and says that it goes."""
    attnviz.save(capture, tmp_path / "new.attn")
    with pytest.warns(DeprecationWarning, match=r"attnviz\.save"):
        capture.save(tmp_path / "old.attn")
    assert (tmp_path / "old.attn").read_bytes() == (tmp_path / "new.attn").read_bytes()


def test_an_intervention_is_that_of_the_command(call) -> None:
    """`intervene` finds the numbers that `attnviz intervene --json` prints."""
    found = attnviz.intervene(SENTENCE, knock_out="it->cat", ablate="L0H2", layers=-1)
    done = call(
        "intervene", SENTENCE, "--knock-out", "it->cat", "--ablate", "L0H2", "--json", "-H", "all"
    )
    printed = json.loads(done.stdout)
    document = json.loads(json.dumps(found.to_dict()["intervention"]))
    assert document["knock_out"] == printed["intervention"]["knock_out"]
    assert document["prediction"]["kl"] == pytest.approx(
        printed["intervention"]["prediction"]["kl"], rel=1e-6
    )
    weights = np.array(printed["maps"][0]["weights"][0][0][5][3], float)
    np.testing.assert_allclose(found.after.maps[0].weights[0, 0, 5, 3], weights, atol=1e-6)
    assert found.rows()[0]["before"] > found.rows()[1]["before"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "nothing to change: give knock_out= or ablate="),
        ({"knock_out": "cat"}, "is no edge"),
        ({"ablate": "3"}, "names no head"),
        ({"ablate": "L9H0"}, "layer 9 does not exist"),
        ({"ablate": "L0H0", "replacement": "nothing"}, "must be one of zero"),
    ],
)
def test_interventions_that_cannot_be(arguments: dict, told: str) -> None:
    """What is not there, or would change nothing, is refused."""
    with pytest.raises(UsageError, match=told):
        attnviz.intervene(SENTENCE, **arguments)


def test_old_names_of_the_readme_still_work() -> None:
    """What the README imported from deep inside before works for one version, with a warning where it moved."""
    with pytest.warns(DeprecationWarning, match=r"attnviz\.request"):
        from attnviz.models import Prompt, load_model
    from attnviz.analysis.comparison import Distances, compare_on_words
    from attnviz.analysis.measures import measure
    from attnviz.analysis.segments import paragraphs, shares
    from attnviz.analysis.words import convert_to_words
    from attnviz.experiments.attribution import attribute

    capture = attnviz.capture("The cat sat.")
    assert convert_to_words(capture).maps[0].weights is not None
    assert Distances.over([compare_on_words(capture, capture)]).mean.shape == (18, 18)
    assert (
        attribute(load_model(), Prompt("one two three. one two"), checks=["knock-out"])
        .effects["knock-out"]
        .size
    )
    with pytest.warns(DeprecationWarning, match="measure_map"):
        measures = measure(capture.maps[0])
    assert measures["entropy"].shape == (3, 6)
    with pytest.warns(DeprecationWarning, match="find_paragraphs"):
        found = paragraphs("one\n\ntwo")
    with pytest.warns(DeprecationWarning, match="measure_shares"):
        assert shares(attnviz.capture("one\n\ntwo").maps[0], found).lift.shape == (3, 6, 2)


def test_inspect_is_that_of_the_command(call, capture: Capture) -> None:
    """`inspect` finds the numbers of `attnviz inspect --json`, of a text or a capture; of several their mean."""
    found = attnviz.inspect(SENTENCE)
    printed = json.loads(call("inspect", SENTENCE, "--full", "--json").stdout)
    rows, heads = found.rows(), printed["heads"]
    assert [(row["layer"], row["head"]) for row in rows] == [
        (head["layer"], head["head"]) for head in heads
    ]
    for row, head in zip(rows, heads, strict=True):
        assert row["entropy"] == pytest.approx(head["measures"]["entropy"]["mean"], rel=1e-5)
    assert attnviz.inspect(attnviz.capture(SENTENCE)).to_frame().equals(found.to_frame())
    assert attnviz.inspect([capture, capture]).rows()[0]["entropy_sd"] == 0
    assert attnviz.inspect(capture, layers=0, heads=1).rows()[0]["head"] == 1
    with pytest.raises(UsageError, match="nothing to measure"):
        attnviz.inspect([])


def test_compare_is_that_of_the_command(call) -> None:
    """`compare` finds the divergence of `attnviz compare --json`."""
    other = "The dog ran because it was tired."
    found = attnviz.compare(attnviz.capture(SENTENCE), attnviz.capture(other))
    printed = json.loads(call("compare", SENTENCE, "--with", other, "--json").stdout)
    assert found.to_dict()["js"]["mean"] == pytest.approx(printed["js"]["mean"], rel=1e-5)
    assert len(found.to_frame()) == 36
    with pytest.raises(UsageError, match="layer 9"):
        attnviz.compare(attnviz.capture("a"), attnviz.capture("a"), layers=9)


def test_heads_are_those_of_the_command(call) -> None:
    """`heads` finds the names of `attnviz heads --json`, and with `ablate` the losses."""
    found = attnviz.heads(sequences=4, block=10)
    printed = json.loads(call("heads", "--sequences", "4", "--block", "10", "--json").stdout)
    assert [head["role"] for head in found.to_dict()["heads"]] == [
        head["role"] for head in printed["heads"]
    ]
    lost = attnviz.heads(texts=["The cat sat."], ablate=True, heads="L1H3", sequences=2, block=8)
    assert lost.ablation is not None
    with pytest.raises(UsageError, match="must be one of induction"):
        attnviz.heads(role="nothing")


def test_attribution_is_that_of_the_command(call) -> None:
    """`attribute` finds the scores and effects of `attnviz attribute --verify --json`."""
    found = attnviz.attribute(SENTENCE, verify=True)
    printed = json.loads(call("attribute", SENTENCE, "--verify", "--json").stdout)
    gradients = [token["scores"]["gradient"] for token in printed["tokens"]]
    ours = [None if np.isnan(value) else value for value in found.scores["gradient"].tolist()]
    assert ours == pytest.approx(gradients, rel=1e-5)
    assert set(found.effects) == {"knock-out"}
    with pytest.raises(UsageError, match="must be one of"):
        attnviz.attribute(SENTENCE, by="nothing")


def test_an_explanation_is_that_of_the_command(call) -> None:
    """`explain` finds the weights of `attnviz explain --json`."""
    found = attnviz.explain(SENTENCE, layer=1, head=3, query="it")
    printed = json.loads(
        call("explain", SENTENCE, "-l", "1", "-H", "3", "--query", "it", "--json").stdout
    )
    weights = [weight for weight in printed["weights"] if weight is not None]
    assert found.steps.weights[: len(weights)].tolist() == pytest.approx(weights, rel=1e-6)
    with pytest.raises(UsageError, match="token 'zebra' does not occur"):
        attnviz.explain(SENTENCE, query="zebra")


def every_result() -> list:
    """Return a result of each question."""
    capture = attnviz.capture("The cat sat.")
    return [
        attnviz.inspect(capture),
        attnviz.compare(capture, capture),
        attnviz.heads(sequences=2, block=8),
        attnviz.attribute("The cat sat."),
        attnviz.explain("The cat sat."),
        attnviz.intervene("The cat sat.", ablate="L0H2"),
    ]


def test_every_result_shows_itself() -> None:
    """A line in a terminal, tables in a notebook that run nothing, a document, a frame."""
    for result in every_result():
        assert repr(result).startswith(f"<{type(result).__name__}: ")
        assert "\n" not in repr(result)
        assert len(repr(result)) < 200
        shown = result._repr_html_()
        assert shown.startswith("<iframe srcdoc=")
        assert "sandbox title" in shown
        assert isinstance(result.to_dict(), dict)
        assert len(result.to_frame()) == len(result.rows()) > 0


def test_a_notebook_shows_captures_and_results(tmp_path) -> None:
    """Run by a kernel of its own: a capture is the page, a comparison and heads are tables."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook()
    cells = [
        "import attnviz\ncapture = attnviz.capture('The cat sat.')\ncapture",
        "attnviz.compare(capture, attnviz.capture('The dog sat.'))",
        "attnviz.heads(sequences=2, block=8)",
    ]
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=resources).execute()
    shown = [cell.outputs[-1].data for cell in book.cells]
    assert all(data["text/html"].startswith("<iframe srcdoc=") for data in shown)
    assert "script" in shown[0]["text/html"]
    assert shown[0]["text/plain"].startswith("<Capture of builtin: ")
    assert shown[1]["text/plain"].startswith("<ComparisonResult: ")
    assert "divergence" in shown[1]["text/html"]
    assert "induction" in shown[2]["text/html"]
