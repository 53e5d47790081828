"""`attnviz train`: a run leaves checkpoints, goes on bit by bit, loses nothing, and shows its heads as they form."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import attnviz
from attnviz.io import files
from attnviz.layer.scores import SCORES
from attnviz.lm import checkpoints, evaluate, run, store
from attnviz.lm.model import (
    ModelConfig,
    compute_next_logits,
    evaluate_layers,
    list_parameter_shapes,
)
from attnviz.lm.train import Progress
from attnviz.results.training import (
    SPARKLINE_WIDTH,
    draw_sparkline,
    make_progress_table,
    summarise_last_measurement,
)
from tests.commands import run_on_terminal
from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("small_steps")

SIZES = ["--layers", "1", "--heads", "2", "--dim", "16", "--device", "cpu"]
ONE = [*SIZES, "--vocabulary", "300", "--steps", "6"]
TWO = [*SIZES, "--vocabulary", "1100", "--steps", "8"]  # stages: of 6 steps and of 2


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Enough different words for a vocabulary of two stages."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(900)]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words, 40)) for _ in range(60)))
    return path


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have training stopped by a signal after a step of the run; 0 for not at all."""

    def stop(step: int) -> None:
        def follow(progress: Progress, *rest: object) -> None:
            if progress.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            original(progress, *rest)

        monkeypatch.setattr(run, "log_step", follow)

    original = run.log_step
    return stop


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder and below, by their names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("options", "steps"), [(ONE, {3: 3, 4: 4}), (TWO, {2: 2, 6: 7})])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    call: Run,
    corpus: Path,
    tmp_path: Path,
    stop: Callable[[int], None],
    options: list[str],
    steps: dict[int, int],
) -> None:
    """Stopped within a stage, or at its end, when the next one begins first: every file is the same, bit for bit."""
    assert call("train", corpus, "-o", "whole", *options).returncode == 0
    for i, (asked, stopped) in enumerate(steps.items()):
        stop(asked)
        done = call("train", corpus, "-o", "cut", *options, *["--resume"] * (i > 0))
        assert done.returncode == 130, done.stderr
        assert f"stopped after {stopped} of" in done.stderr
        assert store.read_stored_model(tmp_path / "cut").about["steps"] == stopped
    stop(0)
    assert call("train", corpus, "-o", "cut", *options, "--resume").returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "whole" / checkpoints.STATE).exists()


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    call: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing could be saved at the end, what was learnt since the checkpoint is learnt again."""
    assert call("train", corpus, "-o", "whole", *TWO, "--every", "2").returncode == 0
    follow = run.log_step

    def die(progress: Progress, *rest: object) -> None:
        if progress.step == 4:
            raise MemoryError
        follow(progress, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(run, "log_step", die)
        assert call("train", corpus, "-o", "cut", *TWO, "--every", "2").returncode == 4
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        "step-2",
        checkpoints.STATE,
        checkpoints.HISTORY,
    }
    assert call("train", corpus, "-o", "cut", *TWO, "--every", "2", "--resume").returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_checkpoints_are_models_to_compare(call: Run, corpus: Path, tmp_path: Path) -> None:
    """A folder every so many steps and at the last; each works as --model, two of them in compare."""
    assert call("train", corpus, "-o", "model", *ONE, "--every", "4").returncode == 0
    folders = sorted((tmp_path / "model").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-4", "step-6"]
    assert (folders[1] / store.WEIGHTS).read_bytes() == (
        tmp_path / "model" / store.WEIGHTS
    ).read_bytes()
    done = call("compare", "abc def", "--model", "model/step-4", "--model", "model/step-6")
    assert done.returncode == 0, done.stderr
    assert "step-4" in done.stdout


def test_the_history_has_the_scores_of_the_finished_model(
    call: Run, corpus: Path, tmp_path: Path
) -> None:
    """A measurement for each step of a short run; the last is what the model that was written gives."""
    assert call("train", corpus, "-o", "model", *ONE).returncode == 0
    document = json.loads((tmp_path / "model" / checkpoints.HISTORY).read_text())
    assert document["schema"] == "attnviz/1"
    assert [measured["step"] for measured in document["history"]] == [1, 2, 3, 4, 5, 6]
    stored = store.read_stored_model(tmp_path / "model")
    ids = evaluate.make_repeated_blocks(stored.config, document["sequences"], document["block"])
    for role, scores in evaluate.score_model_roles(stored.parameters, stored.config, ids).items():
        np.testing.assert_allclose(
            document["history"][-1]["scores"][role], scores.mean(0), atol=1e-3
        )


def test_a_full_disk_loses_nothing(
    call: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be written is one line; those before it are whole, and the run can go on."""
    assert call("train", corpus, "-o", "whole", *ONE, "--every", "2").returncode == 0
    replace_file, full = Path.replace, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(path: Path, target: Path) -> Path:
        if ".step-4" in str(target) and target.name == store.WEIGHTS:
            raise full
        return replace_file(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.Path, "replace", fill)
        done = call("train", corpus, "-o", "cut", *ONE, "--every", "2", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "no space left on device" in done.stderr
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        "step-2",
        checkpoints.STATE,
        checkpoints.HISTORY,
    }
    assert call("train", corpus, "-o", "cut", *ONE, "--every", "2", "--resume").returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_run_leaves_its_figure(
    call: Run, corpus: Path, tmp_path: Path, stop: Callable[[int], None]
) -> None:
    """At its end and where it was interrupted, told on stderr, the bytes that --curves writes; gone with --force."""
    stop(3)
    for options in ([], ["--resume"]):
        done = call("train", corpus, "-o", "model", *ONE, *options)
        assert f"wrote {Path('model') / checkpoints.FIGURE}\n" in done.stderr
        assert call("train", "--curves", "model", "-o", "again.svg", "--force").returncode == 0
        assert (tmp_path / "again.svg").read_bytes() == (
            tmp_path / "model" / checkpoints.FIGURE
        ).read_bytes()
        stop(0)
    checkpoints.clear_run(tmp_path / "model")
    assert not (tmp_path / "model" / checkpoints.FIGURE).exists()


def test_a_figure_that_cannot_be_written_loses_nothing(
    call: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is there, one line says what is not, and --resume ends as if nothing had been."""
    assert call("train", corpus, "-o", "whole", *ONE).returncode == 0
    replace_file, full = Path.replace, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(path: Path, target: Path) -> Path:
        if target.name == checkpoints.FIGURE:
            raise full
        return replace_file(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.Path, "replace", fill)
        done = call("train", corpus, "-o", "cut", *ONE, "-q")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "training.svg: no space left on device" in done.stderr
    assert call("train", corpus, "-o", "cut", *ONE, "--resume").returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_terminal_shows_the_curves(corpus: Path, tmp_path: Path) -> None:
    """At the end of a run they are drawn where the talk is; stdout, where results are, has nothing."""
    shown = run_on_terminal(
        ["train", str(corpus), "-o", str(tmp_path / "model"), *ONE, "--steps", "2"], TERM="dumb"
    )
    assert "scores of the best heads" in shown
    assert "* induction L0H" in shown or "● induction L0H" in shown
    assert shown.index("training steps") < shown.index("wrote ")


def test_resuming_what_cannot_be(
    call: Run, corpus: Path, tmp_path: Path, stop: Callable[[int], None]
) -> None:
    """No run, a finished run, another setting, other texts, a damaged state: one line each, and what to do."""
    stop(2)
    call("train", corpus, "-o", "cut", *ONE)
    stop(0)
    (tmp_path / "other.txt").write_text(corpus.read_text() + " more")
    state = tmp_path / "cut" / checkpoints.STATE
    for args, code, told in (
        ([corpus, "-o", "none", *ONE], 2, "no interrupted run in none"),
        ([corpus, "-o", "cut", *ONE, "--seed", "1"], 2, "began with --seed 0, not 1"),
        (["other.txt", "-o", "cut", *ONE], 4, "learns from other texts"),
    ):
        done = call("train", *args, "--resume")
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert told in done.stderr
    data = state.read_bytes()
    parts = (
        b'\\"bit_generator\\"',
        b'\\"step\\"',
        b'\\"setting\\"',
        b'optimizers/0/0/exp_avg"',
        b"parameters/norm",
    )
    for damaged in (b"", data[:-100], *(data.replace(part, part.swapcase()) for part in parts)):
        state.write_bytes(damaged)
        done = call("train", corpus, "-o", "cut", *ONE, "--resume", "-q")
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert "--force" in done.stderr


def test_a_new_run_takes_the_checkpoints_of_the_old_away(
    call: Run, corpus: Path, tmp_path: Path
) -> None:
    """With --force no checkpoint of another run stays, and nothing else in the folder goes."""
    call("train", corpus, "-o", "model", *ONE, "--every", "1")
    (tmp_path / "model" / "step-1" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "step-x").mkdir()
    assert call("train", corpus, "-o", "model", *ONE, "--every", "6", "--force").returncode == 0
    assert sorted(path.name for path in (tmp_path / "model").glob("step-*")) == [
        "step-1",
        "step-6",
        "step-x",
    ]
    assert [path.name for path in (tmp_path / "model" / "step-1").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_minutes_are_a_number(minutes: str, call: Run, corpus: Path) -> None:
    """One above 0 that ends; others are refused before anything is read."""
    done = call("train", corpus, "-o", "model", *ONE, "--minutes", minutes)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--minutes" in done.stderr


def test_minutes_end_a_run_that_can_go_on(call: Run, corpus: Path, tmp_path: Path) -> None:
    """After its minutes a run stops with what it has, and that is no error."""
    done = call("train", corpus, "-o", "model", *ONE, "--minutes", "1e-9")
    assert done.returncode == 0
    assert "stopped after 1 of 6 steps" in done.stderr
    assert store.read_stored_model(tmp_path / "model").about["steps"] == 1
    assert call("train", corpus, "-o", "model", *ONE, "--resume").returncode == 0


@pytest.mark.parametrize("score", SCORES)
def test_another_score_is_trained_kept_and_read(
    call: Run, corpus: Path, tmp_path: Path, score: str
) -> None:
    """config.json names it, and what the model then shows is that score's attention, not another's."""
    done = call(
        "train",
        corpus,
        "-o",
        "model",
        *SIZES,
        "--vocabulary",
        "300",
        "--steps",
        "2",
        "--score",
        score,
    )
    assert done.returncode == 0, done.stderr
    stored = store.read_stored_model(tmp_path / "model")
    assert stored.config.score == score
    part = attnviz.capture("abc abc", model=str(tmp_path / "model")).maps[0]
    ids = np.array([token.id for token in part.keys])
    for name in SCORES:
        block = next(evaluate_layers(stored.parameters, ids, replace(stored.config, score=name)))
        assert np.allclose(part.weights[0], block.attended.weights, atol=1e-7) == (name == score)


@pytest.mark.parametrize("score", SCORES)
def test_numpy_and_torch_agree_on_every_score(score: str) -> None:
    """The language model's logits are the same in NumPy and in torch, whatever scores its keys."""
    config = ModelConfig(vocabulary=50, dim=16, layers=2, heads=2, feed_forward=32, score=score)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in list_parameter_shapes(config).items()
    }
    ids = torch.arange(20)[None]
    theirs = compute_next_logits(
        {name: tensor.numpy() for name, tensor in tensors.items()}, ids.numpy(), config
    )
    np.testing.assert_allclose(compute_next_logits(tensors, ids, config).numpy(), theirs, atol=1e-4)


def measured(step: int, loss: float | None, induction: float) -> dict[str, object]:
    scores = {"induction": [[0.01, induction]], "previous_token": [[0.9, 0.2]]}
    return {"step": step, "loss": loss, "tokens": step * 2048, "scores": scores}


def test_the_curves_are_of_the_best_heads() -> None:
    """The loss and the two best heads of each role, the best first, each to its last value; no number is a blank."""
    history = [measured(1, 8.0, 0.0), measured(2, None, 0.5), measured(3, 4.0, 1.0)]
    table = make_progress_table(history)
    assert table.columns == ("steps 1 to 3", "now")
    assert table.rows == (
        "loss",
        "induction L0H1",
        "induction L0H0",
        "previous-token L0H0",
        "previous-token L0H1",
    )
    assert table.cells[0] == ("█ ▅", "4.00")
    assert table.cells[1] == ("▁▅█", "1.00")
    assert (
        summarise_last_measurement(history)
        == "step 3: loss 4.000, induction L0H1 1.00, previous-token L0H0 0.90"
    )


@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(0, 1, width=32)))
def test_a_curve_is_never_wider_than_its_place(values: np.ndarray) -> None:
    """As many signs as numbers, up to a limit, the first and the last among them."""
    drawn = draw_sparkline(values)
    assert len(drawn) == min(len(values), SPARKLINE_WIDTH)
    assert drawn[0] == draw_sparkline(values[:1])
    assert drawn[-1] == draw_sparkline(values[-1:])


def test_watching_without_a_terminal_is_lines(call: Run, corpus: Path) -> None:
    """A line every tenth with the best heads, and none if quiet."""
    done = call("train", corpus, "-o", "model", *ONE, "--watch")
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert all("induction L0H" in line and "previous-token L0H" in line for line in lines)
    assert call("train", corpus, "-o", "quiet", *ONE, "--watch", "-q").stderr == ""
