"""What is imported when: the rule that keeps start-up fast."""

from pathlib import Path

import pytest

import attnviz
from attnviz.record import Capture
from tests.commands import list_loaded_packages
from tests.conftest import SENTENCE


def test_help_imports_nothing_heavy() -> None:
    """Attnviz --help and --version import neither NumPy nor rich nor anything of the models."""
    assert list_loaded_packages("--help") == set()
    assert list_loaded_packages("--version") == set()
    assert list_loaded_packages("shwo") == set()


@pytest.mark.parametrize(
    "args", [["show", SENTENCE], ["show", "--view", "grid"], ["show", SENTENCE, "--json"]]
)
def test_the_builtin_model_needs_no_torch(args: list[str]) -> None:
    """Show on the built-in model runs in NumPy."""
    assert not list_loaded_packages(*args) & {
        "torch",
        "transformers",
        "matplotlib",
        "huggingface_hub",
    }


@pytest.mark.parametrize("args", [[], ["--view", "grid"], ["--json"], ["--rows", "1:3"]])
def test_a_saved_capture_needs_no_torch(args: list[str], capture: Capture, tmp_path: Path) -> None:
    """Show on a file loads neither torch nor transformers nor the libraries of models."""
    attnviz.save(capture, tmp_path / "run.attn")
    heavy = {"torch", "transformers", "matplotlib", "huggingface_hub", "tokenizers"}
    assert not list_loaded_packages("show", "--from", str(tmp_path / "run.attn"), *args) & heavy


def test_listing_models_needs_no_torch() -> None:
    """Models reads configs and the cache only."""
    assert not list_loaded_packages("models") & {"torch", "transformers", "matplotlib"}


def test_a_png_needs_no_torch(tmp_path: Path) -> None:
    """A figure of the built-in model loads matplotlib, not torch."""
    found = list_loaded_packages("show", SENTENCE, "-o", str(tmp_path / "x.png"))
    assert "matplotlib" in found
    assert "torch" not in found
