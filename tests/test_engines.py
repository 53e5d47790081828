"""Which engine runs a checkpoint: NumPy where it is certain and quick, else torch, which is said."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attnviz.lm.transformer import Architecture
from attnviz.models import engines, load_model
from attnviz.models.engines import QuickModel, is_short_work
from attnviz.models.numpy.checkpoint import open_checkpoint
from attnviz.request import NOTHING, Placement, Prompt, Request, Target
from tests.commands import list_loaded_packages, require_failure
from tests.conftest import SENTENCE, Tiny
from tests.tiny import VOCABULARY
from tests.tolerance import close

Call = Callable[..., subprocess.CompletedProcess[str]]
NUMPY = "the engine is attnviz's own transformer, in NumPy"
CLOSE = close(64)


def change_json(path: Path, **entries: Any) -> None:
    """Set entries of a document."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **entries}))


def add_unknown_entry(folder: Path) -> None:
    """Give the config an entry that nobody knows."""
    change_json(folder / "config.json", attention_temperament="calm")


def add_unused_weight(folder: Path) -> None:
    """Give the checkpoint a weight that no part of the model reads."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.gate.weight"] = np.ones(4, np.float32)
    save_file(tensors, path, {"format": "pt"})


def scale_positions(folder: Path) -> None:
    """Scale positions in a way that NumPy's engine does not know."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    change_json(folder / "config.json", rope_parameters=scaling)


def add_tokenizer_setting(folder: Path) -> None:
    """Give the tokenizer a setting that nobody knows."""
    change_json(folder / "tokenizer_config.json", clean_up_twice=True)


UNKNOWN = {
    "attention_temperament": add_unknown_entry,
    "self_attn.gate": add_unused_weight,
    "dynamic": scale_positions,
    "clean_up_twice": add_tokenizer_setting,
}


@pytest.mark.parametrize("named", UNKNOWN)
def test_what_is_not_certain_is_run_by_torch(
    named: str, tiny: Tiny, tmp_path: Path, call: Call
) -> None:
    """The document is that of torch, to the byte; -v gives the reason, and --engine numpy refuses."""
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    change = UNKNOWN[named]
    change(folder)
    words = "show", SENTENCE, "-m", folder, "-l", "all", "-H", "all", "--json"
    by_itself = call(*words, "-v")
    assert by_itself.returncode == 0, by_itself.stderr
    assert by_itself.stdout == call(*words, "--engine", "torch").stdout
    reason = by_itself.stderr.splitlines()[0]
    assert reason.startswith(f"the engine is torch, since NumPy does not run {folder}: ")
    assert named in reason
    require_failure(
        call(*words, "--engine", "numpy"), 3, f"--engine numpy does not run {folder}", named
    )


@pytest.mark.parametrize("command", ["show", "inspect", "capture -o run.attn", "export -o figures"])
def test_a_sentence_needs_no_torch(command: str, tiny: Tiny, tmp_path: Path) -> None:
    """Every command that draws a sentence leaves torch and transformers alone."""
    name, *options = command.split()
    output = [
        str(tmp_path / word) if "." in word or word == "figures" else word for word in options
    ]
    loaded = list_loaded_packages(name, SENTENCE, "-m", str(tiny("llama")), *output)
    assert not loaded & {"torch", "transformers", "huggingface_hub"}


def test_the_engine_is_said(tiny: Tiny, call: Call) -> None:
    """By -v on stderr and in JSON, and nowhere else."""
    words = "show", SENTENCE, "-m", tiny("gpt2")
    told = call(*words, "-v", "--json")
    assert f"fidelity: not measured: {NUMPY}" in told.stderr
    assert json.loads(told.stdout)["fidelity_reference"] == NUMPY
    assert "engine" not in call(*words).stdout + call(*words).stderr
    other = call(*words, "-v", "--dtype", "float64")
    assert "the engine is torch, since NumPy does not run" in other.stderr
    assert "it computes in float32, and --dtype float64 is asked for" in other.stderr
    assert "the engine is torch" not in call(*words, "--dtype", "float64").stderr
    assert "engine" not in call(*words, "-v", "-q", "--dtype", "float64").stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--generate", "2"),
        ("--weights", "gradient"),
        ("--device", "cpu", "--dtype", "float16"),
    ],
    ids=" ".join,
)
def test_what_numpy_does_not_compute(options: tuple[str, ...], tiny: Tiny, call: Call) -> None:
    """Torch does it by itself; one line refuses it where only NumPy may run."""
    words = "show", SENTENCE, "-m", tiny("llama"), *options
    assert call(*words).returncode == 0
    require_failure(call(*words, "--engine", "numpy"), 3, "--engine numpy")


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_a_config_that_names_no_class(engine: str, tiny: Tiny, tmp_path: Path, call: Call) -> None:
    """A list of classes that is none is as if it were not there."""
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    change_json(folder / "config.json", architectures=3)
    done = call("show", SENTENCE, "-m", folder, "--engine", engine)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_a_tokenizer_with_other_ids(engine: str, tiny: Tiny, tmp_path: Path, call: Call) -> None:
    """Ids that no token has get one line, whatever runs the model."""
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {token: 10**9 + number for token, number in vocabulary.items()}
    path.write_text(json.dumps(document))
    done = call("show", SENTENCE, "-m", folder, "--engine", engine)
    require_failure(done, 3, "tokenizer")


def test_long_texts_are_run_by_torch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NumPy would take longer; a model that is loaded for torch stays there."""
    model = load_model(str(tiny("llama")))
    assert isinstance(model, QuickModel)
    short = model.capture(Prompt(SENTENCE), Request())
    assert model.loaded is None
    assert short.fidelity_reference == NUMPY
    monkeypatch.setattr(engines, "PATIENCE", 0.0)
    same = model.capture(Prompt(SENTENCE), Request())
    assert model.loaded is not None
    assert same.fidelity_reference != NUMPY
    np.testing.assert_allclose(same.maps[0].weights, short.maps[0].weights, **CLOSE)
    monkeypatch.undo()
    assert model.capture(Prompt(SENTENCE), Request()).fidelity_reference != NUMPY


def test_work_grows_with_the_text(tiny: Tiny) -> None:
    """Work that is short is so for every shorter text, and no text is short without end."""
    architecture: Architecture = open_checkpoint(tiny("llama")).architecture
    is_short = [is_short_work(architecture, length) for length in (1, 10, 100, 1_000, 100_000)]
    assert is_short == sorted(is_short, reverse=True)
    assert is_short[0]
    assert not is_short[-1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "minilm"])
def test_predictions_are_the_same(name: str, tiny: Tiny, minilm: Path) -> None:
    """Of both engines, with the same likeliest token and the same names."""
    folder = str(minilm if name == "minilm" else tiny(name))
    found, expected = (
        load_model(folder, placement=Placement(engine=engine), predicts=True).respond(
            Prompt(SENTENCE), [NOTHING], Target()
        )
        for engine in ("numpy", "torch")
    )
    np.testing.assert_allclose(found.outputs, expected.outputs, **close(VOCABULARY))
    assert (found.kind, found.target, found.place) == (
        expected.kind,
        expected.target,
        expected.place,
    )
    if found.kind == "next":
        assert found.name(found.target) == expected.name(expected.target)
