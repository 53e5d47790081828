"""What is imported when: the rule that keeps start-up fast."""

import subprocess
import sys
from pathlib import Path

import pytest

import attnviz
from attnviz.record import Capture
from tests.conftest import SENTENCE

HEAVY = {
    "numpy",
    "rich",
    "torch",
    "transformers",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
}


def loaded(*args: str) -> set[str]:
    """The heavy packages that a run of attnviz imports."""
    code = (
        "import sys; from attnviz.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\nLOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return HEAVY & set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_help_imports_nothing_heavy() -> None:
    """Attnviz --help and --version import neither NumPy nor rich nor anything of the models."""
    assert loaded("--help") == set()
    assert loaded("--version") == set()
    assert loaded("shwo") == set()


@pytest.mark.parametrize(
    "args", [["show", SENTENCE], ["show", "--view", "grid"], ["show", SENTENCE, "--json"]]
)
def test_the_builtin_model_needs_no_torch(args: list[str]) -> None:
    """Show on the built-in model runs in NumPy."""
    assert not loaded(*args) & {"torch", "transformers", "matplotlib", "huggingface_hub"}


@pytest.mark.parametrize("args", [[], ["--view", "grid"], ["--json"], ["--rows", "1:3"]])
def test_a_saved_capture_needs_no_torch(args: list[str], capture: Capture, tmp_path: Path) -> None:
    """Show on a file loads neither torch nor transformers nor the libraries of models."""
    attnviz.save(capture, tmp_path / "run.attn")
    heavy = {"torch", "transformers", "matplotlib", "huggingface_hub", "tokenizers"}
    assert not loaded("show", "--from", str(tmp_path / "run.attn"), *args) & heavy


def test_listing_models_needs_no_torch() -> None:
    """Models reads configs and the cache only."""
    assert not loaded("models") & {"torch", "transformers", "matplotlib"}


def test_a_png_needs_no_torch(tmp_path: Path) -> None:
    """A figure of the built-in model loads matplotlib, not torch."""
    found = loaded("show", SENTENCE, "-o", str(tmp_path / "x.png"))
    assert "matplotlib" in found
    assert "torch" not in found
