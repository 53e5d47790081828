"""What `import attnviz` offers: its names, what they return, and how that shows itself."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

import attnviz
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
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert "Raises" in function.__doc__


def test_importing_is_light() -> None:
    """The package itself imports neither NumPy nor torch: only what is asked for is."""
    code = "import attnviz, sys; assert not {'numpy', 'torch', 'transformers', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_capture_is_a_line(capture: Capture) -> None:
    """What a prompt shows of a capture is one line that says what it is of."""
    assert repr(capture) == "<Capture of toy: self-attention, 4 tokens, 2 layers x 2 heads, weights>"
    assert repr(capture.maps[0]) == "<AttentionMap: self-attention, 4 tokens, 2 layers x 2 heads, weights>"
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
    assert (last["layer"], last["head"], last["query_token"], last["key_token"]) == (1, 1, "sat", "sat")
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
    done = call("intervene", SENTENCE, "--knock-out", "it->cat", "--ablate", "L0H2", "--json", "-H", "all")
    printed = json.loads(done.stdout)
    document = json.loads(json.dumps(found.to_dict()["intervention"]))
    assert document["knock_out"] == printed["intervention"]["knock_out"]
    assert document["prediction"]["kl"] == pytest.approx(printed["intervention"]["prediction"]["kl"], rel=1e-6)
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
