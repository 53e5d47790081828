"""A light install: what NumPy computes is the same without torch, transformers, matplotlib and the hub's library."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import attnviz
from attnviz.cli.main import run_command
from attnviz.models import engines, load_model
from attnviz.models.hub_cache import list_cached_models
from attnviz.request import Prompt, Request
from tests.commands import require_failure
from tests.conftest import ROOT, SENTENCE, Run

LEFT_OUT = {"torch", "transformers", "huggingface-hub", "fonttools", "matplotlib"}
"""The dependencies of the project that the light install does without; pip gets the hub's library with tokenizers."""

WORKING = """
    show TEXT
    show TEXT -m MINILM --view grid
    show TEXT -m MINILM --json -l 0 -H 0-2
    show TEXT -m bert-base --words
    show TEXT -o page.html
    show TEXT -m MINILM -o data.npz
    show --from run.attn -o data.csv
    capture TEXT -m MINILM --weights norm -o norms.attn
    inspect TEXT -m MINILM -o heads.html
    explain TEXT -m MINILM -o steps.md
    compare -m builtin -m MINILM TEXT
    heads --sequences 2 --block 8
    intervene TEXT --ablate L0H2
    check TEXT --max L0H2.entropy=4
    export TEXT --formats html,json -l 0 -o report
    models
"""

REFUSED = {
    "show TEXT -o figure.png": (5, "a figure needs matplotlib", "'pip install matplotlib'"),
    "export TEXT -o report": (5, "'pip install matplotlib'"),
    "show TEXT --weights gradient": (3, "a gradient needs torch", "'pip install torch'"),
    "show TEXT -m MINILM --weights gradient": (3, "'pip install torch transformers'"),
    "show TEXT -m MINILM --generate 2": (3, "continues a text", "'pip install torch transformers'"),
    "show TEXT -m MINILM --engine torch": (3, "--engine torch", "'pip install torch transformers'"),
    "show TEXT -m OTHER": (3, "it is of the type 'other'", "'pip install torch transformers'"),
    "show TEXT -m no/such/folder": (3, "there is no model folder"),
    "show TEXT -m gpt2": (3, "not in the local cache", "'pip install huggingface_hub'"),
    "show TEXT --device cuda": (2, "'pip install torch'"),
    "train notes.txt -o model": (3, "training", "'pip install torch matplotlib'"),
}
"""Command lines, with the exit code of each and what its one line says."""

LOOP = """
import contextlib, io, json, os, sys
from attnviz.cli.main import main

for line in sys.stdin:
    folder, words = json.loads(line)
    os.chdir(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(words)
        except SystemExit as ended:
            code = ended.code
    printed = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
    print(json.dumps([code, *printed]), flush=True)
"""
"""A program that runs the command lines that it is sent, each in a folder, and answers with what they print."""

PYTHON = """
import attnviz
from attnviz.errors import ModelError, OutputError

def require_error(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

capture = attnviz.capture("The cat sat.")
figure = attnviz.show(capture, layers=0, heads=0)
require_error(OutputError, "pip install matplotlib", lambda: figure.save("figure.pdf"))
require_error(ModelError, "pip install torch", lambda: attnviz.capture("a", method="gradient"))
require_error(ModelError, "pip install huggingface_hub", lambda: attnviz.capture("a", "gpt2"))
require_error(ImportError, "pip install pandas", capture.to_frame)
ranks = attnviz.attribute("The cat sat.")
assert "gradient" not in ranks.scores
assert "<table" in ranks._repr_html_().replace("&lt;", "<")
"""


@pytest.fixture(scope="module")
def light_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what requirements-light.txt asks for and nothing else, as links."""
    folder = tmp_path_factory.mktemp("light")
    names = [requirement.name for requirement in read_light_requirements()]
    done = set(LEFT_OUT)
    while names:
        name = canonicalize_name(names.pop())
        if name in done:
            continue
        done.add(name)
        package = distribution(name)
        for file in {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}:
            (folder / file).symlink_to(package.locate_file(file))
        needed = map(Requirement, package.requires or ())
        names += [each.name for each in needed if not each.marker or each.marker.evaluate()]
    return folder


@pytest.fixture(scope="module")
def light_environment(light_packages: Path, planted_cache: Path) -> dict[str, str]:
    """The environment of a Python that is run with -S, so that it has the light packages alone."""
    return {
        **os.environ,
        "PYTHONPATH": f"{light_packages}{os.pathsep}{ROOT}",
        "HF_HUB_CACHE": str(planted_cache),
        "COLUMNS": "100",
    }


@pytest.fixture(scope="module")
def light_process(
    light_environment: dict[str, str],
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return a function that runs a command line in a process that has the light packages alone."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=light_environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(folder: Path, words: list[str]) -> tuple[int, str, str]:
        print(json.dumps([str(folder), words]), file=process.stdin, flush=True)
        code, out, err = json.loads(process.stdout.readline())
        return code, out, err

    with process:
        yield ask
        process.stdin.close()


@pytest.fixture
def call_light(
    light_process: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as ``call``, in the process that has the light packages alone."""

    def call_light(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(args, *light_process(tmp_path, args))

    return call_light


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """A folder of what the command lines read."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "MINILM").symlink_to(minilm)
    plant_other_model(minilm, folder / "OTHER")
    (folder / "notes.txt").write_text("some words to learn")
    attnviz.save(attnviz.capture(SENTENCE), folder / "run.attn")
    return folder


@pytest.fixture
def linked(sources: Path, tmp_path: Path) -> Path:
    """The folder in which a test runs its commands, with links to what they read."""
    for source in sources.iterdir():
        (tmp_path / source.name).symlink_to(source)
    return tmp_path


def plant_other_model(source: Path, folder: Path) -> None:
    """Copy a model as one of a type that NumPy does not run."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "other"}))


def read_light_requirements() -> list[Requirement]:
    """Read requirements-light.txt."""
    lines = (ROOT / "requirements-light.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def split_line(line: str) -> list[str]:
    """Split a command line into words, with the sentence for TEXT."""
    return [SENTENCE if word == "TEXT" else word for word in line.split()]


def take_files(folder: Path) -> dict[str, bytes]:
    """Read all files that were written into a folder, and remove them; links stay."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    written = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    return written


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("line", [line.strip() for line in WORKING.strip().splitlines()])
def test_what_numpy_computes_is_the_same(
    line: str, call: Run, call_light: Run, linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, exit code and files are those of the whole install."""
    monkeypatch.setenv("COLUMNS", "100")
    whole = call(*split_line(line))
    whole_files = take_files(linked)
    light = call_light(*split_line(line))
    assert (light.returncode, light.stderr) == (0, whole.stderr)
    assert light.stdout == whole.stdout
    assert take_files(linked) == whole_files


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_missing_is_named(line: str, call_light: Run, linked: Path) -> None:
    """One line says which package is needed for what and how to get it, and nothing is written."""
    code, *told = REFUSED[line]
    there = set(linked.iterdir())
    require_failure(call_light(*split_line(line)), code, *told)
    assert set(linked.iterdir()) == there


def test_python_names_what_is_missing(light_environment: dict[str, str], tmp_path: Path) -> None:
    """Errors are those of attnviz; what can be had without is there."""
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", PYTHON],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=light_environment,
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_numpy_does_long_work(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text on which torch would be quicker is read nevertheless."""
    monkeypatch.setattr(engines, "is_short_work", lambda *_: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    capture = load_model(str(minilm)).capture(Prompt(SENTENCE), Request())
    assert capture.fidelity_reference is not None
    assert "NumPy" in capture.fidelity_reference


@pytest.mark.parametrize(
    ("module", "code", "words"),
    [
        (
            "planted.part",
            3,
            "this needs planted, which is not installed: run 'pip install planted'",
        ),
        ("attnviz.planted", 70, "a fault of attnviz"),
    ],
)
def test_any_missing_package_is_one_line(
    module: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package that a library imports is named too; a module that is missing of one that is there is a fault."""

    def import_module() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert run_command(import_module) == code
    assert words in capsys.readouterr().err


def test_the_cache_is_listed_as_by_the_library(hub_cache: Path) -> None:
    """The names of models in the cache of the hub are those that its own library finds."""
    (hub_cache / "datasets--some--data" / "snapshots" / "0").mkdir(parents=True, exist_ok=True)
    found = [each for each in scan_cache_dir(hub_cache).repos if each.repo_type == "model"]
    assert list_cached_models() == sorted(each.repo_id for each in found)
    assert len(found) > 1


def test_the_light_requirements_are_those_of_the_project() -> None:
    """Each is a dependency of the project in the same versions, and no other is left out than those named here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    whole = {
        canonicalize_name(each.name): each for each in map(Requirement, project["dependencies"])
    }
    light = {canonicalize_name(each.name): each for each in read_light_requirements()}
    assert light == {name: each for name, each in whole.items() if name not in LEFT_OUT}
