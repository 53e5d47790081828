"""The command line: output, streams, exit codes, and one line for every mistake."""

import ctypes
import inspect
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import attnviz
from attnviz.cli import main as entry
from attnviz.cli import screen
from attnviz.cli import show as show_command
from attnviz.engine.observers.capture import CaptureObserver
from attnviz.io.samples import find_samples
from attnviz.lm import store
from attnviz.record import Capture
from tests.commands import require_failure, run_on_terminal
from tests.conftest import ROOT, SENTENCE, Run, Tiny
from tests.training_runs import plant_training_run

COMMANDS = list(entry.COMMANDS)


# Help


@pytest.mark.parametrize("args", [["--help"], ["-h"], *[[name, "--help"] for name in COMMANDS]])
def test_help_fits_and_has_examples(
    call: Run, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    """Each help exits with 0, fits 80 columns, and shows examples."""
    monkeypatch.setenv("COLUMNS", "80")
    done = call(*args)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(re.findall("^ +attnviz .+", done.stdout, re.MULTILINE)) >= 2


def test_the_table_of_commands_is_their_help() -> None:
    """The static table lists each command with the first sentence of its own help."""
    context = click.Context(entry.main)
    for name in COMMANDS:
        command = entry.main.get_command(context, name)
        assert command.help.startswith(entry.COMMANDS[name].rstrip(".")), name


def examples() -> list[str]:
    context = click.Context(entry.main)
    helps = [entry.main.help, *(entry.main.get_command(context, name).help for name in COMMANDS)]
    lines = (line for text in helps for line in inspect.cleandoc(text).splitlines())
    return sorted({line.strip() for line in lines if line.startswith("  attnviz ")})


def test_examples_are_found() -> None:
    """The test below runs some of every command."""
    assert {example.split()[1] for example in examples()} >= {*COMMANDS} - {"models"}
    assert len(examples()) >= 2 * len(COMMANDS)


def plant_adapter(folder: Path, base: Path) -> None:
    """Write a PEFT adapter for a BERT of 384 dimensions, which changes nothing."""
    config = {
        "peft_type": "LORA",
        "r": 1,
        "target_modules": ["query"],
        "base_model_name_or_path": str(base),
    }
    part = "base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight"
    shapes = {"A": (1, 384), "B": (384, 1)}
    weights = {
        part.format(n, side): np.zeros(shapes[side], np.float32)
        for n in range(6)
        for side in shapes
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("example", examples())
@pytest.mark.usefixtures("small_steps")
@pytest.mark.slow
def test_examples_of_help_run(call: Run, example: str, minilm: Path, tmp_path: Path) -> None:
    """Every example of every help works as it stands, with small stand-ins for downloads, corpora and captures."""
    (tmp_path / "books").mkdir()
    for name in ("notes.txt", "more.txt", "books/one.txt"):
        (tmp_path / name).write_text("\n\n".join(["some words to learn, one after the other"] * 60))
    for name in ("my-bert", "my-tokenizer"):
        (tmp_path / name).symlink_to(minilm)
    if "my-adapter" in example:
        plant_adapter(tmp_path / "my-adapter", minilm)
    if ".attn" in example:
        for name in ("read", "before", "after"):
            attnviz.save(attnviz.capture("words that were read before"), tmp_path / f"{name}.attn")
    example = re.sub(
        "(-m|--model) bert-base",
        rf"\1 {minilm}",
        example.replace("--from run.attn", "--from read.attn"),
    )
    if "--curves" in example:
        plant_training_run(tmp_path / "my-model")
    less = ["--steps", "1"] if " train " in example and "--curves" not in example else []
    less += ["--sequences", "2"] if "--ablate -H" in example else []
    done = call(*shlex.split(example)[1:], *less)
    assert done.returncode == 0, done.stderr


def test_version_and_bare_call(call: Run) -> None:
    """--version names the version of pyproject.toml; without a command there is help and exit code 2."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[
        1
    ]
    assert call("--version").stdout == f"attnviz {version}\n"
    bare = call()
    assert bare.returncode == 2
    assert "Commands:" in bare.stderr


def test_misspellings_get_a_suggestion(call: Run) -> None:
    """A misspelt command or option names the one that was meant."""
    require_failure(call("shwo"), 2, "'show'")
    require_failure(call("show", "--layrs", "1"), 2, "--layers")


# Text


def test_text_comes_from_anywhere(run: Run, tmp_path: Path) -> None:
    """The argument, - and @file give the same; stdin is read without an argument; @@ begins a text with @."""
    (tmp_path / "text.txt").write_text("the cat sat\n")
    given = run("show", "the cat sat").stdout
    assert "cat" in given
    for args, stdin in ((["-"], "the cat sat\n"), (["@text.txt"], None), ([], "the cat sat\r\n")):
        assert run("show", *args, stdin=stdin).stdout == given
    assert json.loads(run("show", "@@home", "--json").stdout)["text"] == "@home"


def test_closed_streams_are_told() -> None:
    """No stdin to read from, no stdout to write to: one line, no traceback."""
    command = f"{shlex.quote(sys.executable)} -m attnviz show"
    for call, code in ((f"{command} - <&-", 4), (f"{command} hi >&-", 5)):
        done = subprocess.run(
            ["sh", "-c", call], capture_output=True, cwd=ROOT, text=True, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


def test_without_text_there_is_a_sample(run: Run) -> None:
    """No text and nothing on stdin: a sample sentence, and stderr says so."""
    for stdin in (None, ""):
        done = run("show", stdin=stdin)
        assert done.stdout == run("show", SENTENCE).stdout
        assert SENTENCE in done.stderr


def test_samples_are_at_hand(call: Run) -> None:
    """@sample:NAME reads a sample text from anywhere; there are ten to twelve, all in the table of their README."""
    assert "fox" in call("show", "@sample:repeat").stdout
    assert 10 <= len(find_samples()) <= 12
    table = (ROOT / "sample_texts" / "README.md").read_text()
    assert all(f"`{name}`" in table for name in find_samples())
    require_failure(call("show", "@sample:nonsense"), 4, "nonsense", "repeat")


@pytest.mark.parametrize("name", sorted(find_samples()))
def test_every_sample_is_drawn(call: Run, name: str) -> None:
    """Each sample text fits the built-in model and a narrow screen."""
    done = call("show", f"@{find_samples()[name]}", "--width", "40")
    assert done.returncode == 0, done.stderr
    assert "rows: queries" in done.stdout


@pytest.mark.parametrize(
    ("args", "stdin", "told"),
    [
        (["show", ""], None, "empty"),
        (["show", "  \n"], None, "empty"),
        (["show", "-"], "", "empty"),
        (["show", "@empty.txt"], None, "empty"),
        (["show", "@no-such.txt"], None, "no-such.txt: no such file"),
        (["show", "@."], None, "directory"),
        (["show", "@latin.txt"], None, "not UTF-8 text (byte 3)"),
        (["show", "-"], b"caf\xe9", "not UTF-8 text (byte 3)"),
        (["show", "word " * 600], None, "--truncate"),
    ],
)
def test_texts_that_cannot_be_used(
    run: Run, call: Run, tmp_path: Path, args: list[str], stdin: str | bytes, told: str
) -> None:
    """Empty, missing, not UTF-8, too long: exit code 4."""
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    require_failure(call(*args) if stdin is None else run(*args, stdin=stdin), 4, told)


def test_truncate_cuts_and_says_so(call: Run) -> None:
    """--truncate takes what the model can read; the caption says what was left out."""
    done = call("show", "word " * 600, "--truncate")
    assert done.returncode == 0
    assert "only the first 512 are shown" in re.sub(r"\s+", " ", done.stdout)
    assert (
        "only the first 512 are shown" in call("show", "word " * 600, "--truncate", "--json").stderr
    )


# Choices


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-l", "3"], "3 layers (0-2"),
        (["-H", "6"], "6 heads (0-5"),
        (["-H", "L0H9"], "head 9"),
        (["-l", "x"], "2-5 or all"),
        (["-l", "2-1"], "write 1-2"),
        (["-l", "0", "-H", "L1H1"], "leave --layers out"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "nonsense"], "cpu"),
        (["--dtype", "int8"], "bfloat16"),
        (["-o", "x.bmp"], ".png, .svg, .pdf, .html, .json, .csv, .npz, .md"),
        (["-o", "x"], ".png, .svg, .pdf, .html, .json, .csv, .npz, .md"),
        (["-l", "all", "--view", "heatmap", "-o", "x.png"], "one picture, not 3"),
        (["--width", "39"], "40"),
    ],
)
def test_choices_that_are_not_there(call: Run, tmp_path: Path, args: list[str], told: str) -> None:
    """Wrong layers, heads, devices, suffixes: exit code 2, what is allowed, and no file."""
    require_failure(call("show", SENTENCE, *args), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_negative_numbers_and_ranges_parse(call: Run) -> None:
    """-l -1, -l-1 and -H -3--1 are choices, not options."""
    assert call("show", SENTENCE, "-l", "-1").stdout == call("show", SENTENCE, "-l-1").stdout
    document = json.loads(call("show", SENTENCE, "-l", "-3--1", "-H", "-1", "--json").stdout)
    assert document["maps"][0]["layers"] == [0, 1, 2]
    assert document["maps"][0]["heads"] == [5]


def test_the_default_is_the_mean_of_the_last_layer(call: Run) -> None:
    """Without -l and -H: the mean over the heads of the last layer, and stderr says how to see more."""
    done = call("show", SENTENCE, "--json")
    found = json.loads(done.stdout)["maps"][0]
    whole = json.loads(call("show", SENTENCE, "--json", "-l", "all", "-H", "all").stdout)["maps"][0]
    assert (found["layers"], found["heads"]) == ([2], ["mean"])
    row = [[head[-1][k] for head in whole["weights"][2]] for k in range(12)]
    assert found["weights"][0][0][-1] == pytest.approx([sum(heads) / 6 for heads in row], abs=1e-6)
    assert "--view grid" in call("show", SENTENCE).stderr


def test_a_reduction_says_of_what(call: Run) -> None:
    """The caption names the heads that were merged; of maxima no share on a sink is told."""
    chosen = "show", SENTENCE, "-l", "1", "-H", "1,3"
    some = call(*chosen, "--reduce", "mean").stdout
    assert "mean over heads 1, 3" in some
    assert "on the sink" in some
    largest = call(*chosen, "--reduce", "max").stdout
    assert "<bos>: beyond the colours" in largest
    assert "the weight is on" not in largest
    assert "mean over heads of 3 layers" in call("show", SENTENCE, "-l", "all").stdout


def test_several_heads_are_a_grid(call: Run) -> None:
    """Several heads are thumbnails unless --view heatmap asks for each; --view grid draws all heads of a layer."""
    assert "6 heads" in call("show", SENTENCE, "--view", "grid", "-l", "1").stdout
    assert "H5" in call("show", SENTENCE, "-H", "all").stdout
    several = call("show", SENTENCE, "-H", "0,1", "--view", "heatmap").stdout
    assert "layer 2 · head 0" in several
    assert "layer 2 · head 1" in several


# Output


def test_json_is_alone_on_stdout(call: Run) -> None:
    """--json prints one document and nothing else, the same bytes each time, talk on stderr, silenced by -q."""
    done = call("show", "--json")
    assert done.stdout == call("show", "--json", "-q").stdout
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["schema"] == "attnviz/1"
    assert done.stderr
    assert call("show", "--json", "-q").stderr == ""


def test_figures_are_written_whole(call: Run, tmp_path: Path) -> None:
    """-o FILE.png writes a picture, the same bytes each time, for a heatmap and a grid; no temporary file is left."""
    for view in ("heatmap", "grid"):
        for name in ("a.png", "b.png"):
            assert (
                call("show", "@sample:emoji_code", "--view", view, "-o", name, "--force").returncode
                == 0
            )
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_json_files_hold_what_stdout_shows(call: Run, tmp_path: Path) -> None:
    """-o FILE.json is the document of --json."""
    call("show", SENTENCE, "-o", "x.json")
    assert (tmp_path / "x.json").read_text() == call("show", SENTENCE, "--json").stdout


def test_files_are_not_overwritten(call: Run, tmp_path: Path) -> None:
    """An existing file is kept unless --force; a folder that is not there is told."""
    (tmp_path / "x.png").write_text("mine")
    require_failure(call("show", SENTENCE, "-o", "x.png"), 5, "--force")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert call("show", SENTENCE, "-o", "x.png", "--force", "-q").stderr == ""
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    require_failure(call("show", SENTENCE, "-o", "no/x.png"), 5, "folder")
    (tmp_path / "d.png").mkdir()
    require_failure(call("show", SENTENCE, "-o", "d.png", "--force"), 5, "d.png")


def test_a_full_disk_leaves_nothing() -> None:
    """A stdout that takes no more is one line and exit code 5."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "attnviz", "show", SENTENCE]
        for environment in (
            None,
            {"PATH": os.environ["PATH"]},
        ):  # with no language set, more is left for the exit
            done = subprocess.run(
                command,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
            assert done.returncode == 5
            assert done.stderr.lower().count(b"no space left") == done.stderr.count(b"\n") == 1


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    """Attnviz show ... | head -1 ends without a word, and with a code of its own: 1 is for checks that fail."""
    attnviz = (
        f"{shlex.quote(sys.executable)} -m attnviz show -q -l all -H all @sample:article --json"
    )
    command = f"({attnviz}; echo $? >&3) 3>code | head -c 10"
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        cwd=tmp_path,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.startswith(b'{"schema"')
    assert done.stderr == b""
    assert (tmp_path / "code").read_text() == "141\n"


def test_unexpected_errors_are_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of ours is exit code 70 and one line; --debug shows the traceback."""

    def broken() -> None:
        raise RuntimeError("two\nlines")

    assert entry.run_command(broken) == 70
    assert (
        capsys.readouterr().err
        == "error: a fault of attnviz: RuntimeError: two lines (see it with --debug)\n"
    )
    monkeypatch.setattr(sys, "argv", ["attnviz", "--debug"])
    assert entry.run_command(broken) == 70
    traceback, last_line = capsys.readouterr().err.rsplit("error: ", 1)
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert last_line.startswith("a fault of attnviz")


# Captures in files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with captures of the sample sentence by the built-in model."""
    for keep in ("weights", "tiles", "statistics", "edges"):
        attnviz.save(attnviz.capture(SENTENCE, keep=keep, tiles=4), tmp_path / f"{keep}.attn")
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-l", "0"],
        ["-H", "L2H3"],
        ["--view", "grid"],
        ["-l", "all", "--reduce", "max"],
        ["-l", "1", "-H", "0,4", "--rows", "3:9", "--cols", ":5"],
        ["-l", "all", "-H", "all", "--json"],
        ["--rows", "-4:", "--json"],
    ],
)
def test_a_saved_capture_is_drawn_like_the_model(call: Run, args: list[str]) -> None:
    """What was captured to a file once is shown from it, to the letter, as the model would be."""
    assert call("capture", SENTENCE, "-o", "run.attn").returncode == 0
    shown = call("show", "--from", "run.attn", *args)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == call("show", SENTENCE, *args).stdout


def test_capture_writes_what_is_asked_for(call: Run, tmp_path: Path) -> None:
    """Layers, heads and what to keep, in the format of the suffix; the note says how to draw it."""
    done = call("capture", SENTENCE, "-l", "1,0", "-H", "2-3", "-o", "some.json")
    assert (done.returncode, done.stdout) == (0, "")
    assert "attnviz show --from some.json" in done.stderr
    part = attnviz.load(tmp_path / "some.json").maps[0]
    assert (part.layers, part.heads) == ((1, 0), (2, 3))
    assert call("capture", SENTENCE, "-l", "0", "-o", "one.npz", "-q").stderr == ""
    assert np.load(tmp_path / "one.npz")["weights"].shape == (1, 6, 12, 12)
    call("capture", SENTENCE, "--keep", "tiles", "--tiles", "3", "-o", "tiles.attn")
    part = attnviz.load(tmp_path / "tiles.attn").maps[0]
    assert (part.weights, part.tiles.mean.shape, part.tiles.height) == (None, (3, 6, 3, 3), 4)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["-o", "x.bmp"], 2, ".attn, .json, .npz"),
        (["-o", "mine.attn"], 5, "--force"),
        (["-o", "no/x.attn"], 5, "folder"),
        (["-o", "x.npz", "-H", "L0H1,L1H1"], 2, "one map"),
        (["-o", "x.attn", "-H", "L0H1", "-l", "0"], 2, "leave --layers out"),
        (["-o", "x.attn", "-l", "3"], 2, "3 layers"),
        (["-o", "x.attn", "--keep", "all"], 2, "weights"),
        ([], 2, "--output"),
    ],
)
def test_captures_that_are_not_written(
    call: Run, tmp_path: Path, args: list[str], code: int, told: str
) -> None:
    """Wrong suffixes and choices, files in the way: one line, and no file."""
    (tmp_path / "mine.attn").write_text("mine")
    require_failure(call("capture", SENTENCE, *args), code, told)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.attn"]
    assert (tmp_path / "mine.attn").read_text() == "mine"


def test_tiles_are_drawn_from_a_file(call: Run, folder: Path) -> None:
    """As a heatmap, as a grid and as a figure; a window shows the tiles that cover it."""
    shown = call("show", "--from", "tiles.attn").stdout
    assert "12 tokens on 4 cells: each is the largest weight that it stands for" in shown
    assert "18 heads · 12 tokens" in call("show", "--from", "tiles.attn", "--view", "grid").stdout
    assert call("show", "--from", "tiles.attn", "-o", "x.png").returncode == 0
    assert (folder / "x.png").exists()
    shown = call("show", "--from", "tiles.attn", "--rows", "4:5", "--cols", "7:").stdout
    assert "query 4 of 12, keys 7-11 of 12" in shown
    assert "in tiles of 3 x 3 tokens, which cover queries 3-5 of 12, keys 6-11 of 12" in shown
    require_failure(
        call("show", "--from", "tiles.attn", "--view", "rows", "--token", "4"),
        4,
        "is read from weights: this map has none",
    )
    require_failure(
        call("show", "--from", "statistics.attn", "--rows", "0:2"), 4, "and this map has neither"
    )


@pytest.mark.parametrize("keep", ["statistics", "edges"])
def test_numbers_are_not_drawn(call: Run, folder: Path, keep: str) -> None:
    """Statistics and edges are no picture, which one line says; --json prints them."""
    for args in ([], ["--view", "grid"], ["-o", "x.png"]):
        require_failure(
            call("show", "--from", f"{keep}.attn", *args), 4, "there is nothing to draw"
        )
    assert not (folder / "x.png").exists()
    assert json.loads(call("show", "--from", f"{keep}.attn", "-H", "all", "--json").stdout)["maps"][
        0
    ][keep]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["a text"], 2, "leave TEXT out"),
        (["-m", "builtin"], 2, "leave --model out"),
        (["--generate", "3"], 2, "leave --generate out"),
        (["--pair", "x"], 2, "leave --pair out"),
        (["--chat"], 2, "leave --chat out"),
        (["--dtype", "float32"], 2, "leave --dtype out"),
        (["-l", "3"], 2, "3 layers (0-2"),
        (["-H", "L0H9"], 2, "head 9"),
        (["--map", "cross"], 2, "no cross map here: only self"),
        (["--rows", "12:"], 2, "there are 12 (0-11)"),
        (["--rows", "3"], 2, "100:200"),
        (["--from", "nothing.attn"], 4, "no such file"),
        (["--from", "text.txt"], 2, ".attn, .json, .npz, .safetensors"),
    ],
)
def test_what_a_file_cannot_do(
    call: Run, folder: Path, args: list[str], code: int, told: str
) -> None:
    """Options that need a model are refused, and what the capture does not hold."""
    assert folder.exists()
    require_failure(call("show", "--from", "weights.attn", *args), code, told)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "json"])
def test_attention_from_elsewhere_is_drawn(call: Run, tmp_path: Path, suffix: str) -> None:
    """Arrays with tokens, from any library; rows that do not sum to 1 are shown as they are, and that is said."""
    weights = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    weights *= 0.5 / weights.sum(-1, keepdims=True)
    tokens, path = ["one", "two", "three", "four"], tmp_path / f"given.{suffix}"
    if suffix == "npz":
        np.savez(path, weights=weights, tokens=np.array(tokens))
    elif suffix == "json":
        path.write_text(json.dumps({"weights": weights.tolist(), "tokens": tokens}))
    else:
        save_file({"weights": weights}, path, {"tokens": json.dumps(tokens)})
    shown = call("show", "--from", path.name, "-l", "0", "-H", "2")
    assert shown.returncode == 0, shown.stderr
    assert f"given.{suffix} · layer 0 · head 2" in shown.stdout
    assert "three 2 " in shown.stdout
    assert "rows sum to between 0.50 and 0.50, not 1" in shown.stdout
    document = call("show", "--from", path.name, "-l", "all", "-H", "all", "--json")
    np.testing.assert_allclose(
        json.loads(document.stdout)["maps"][0]["weights"], weights, rtol=1e-6
    )
    assert "rows sum to" in document.stderr
    assert call("show", "--from", path.name, "-o", "x.png").returncode == 0


# Models from folders


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_cross_attention_is_shown_first(call: Run, tiny: Tiny, name: str) -> None:
    """Of an encoder-decoder, unless --map says otherwise; all three with --json and the grid."""
    show = partial(call, "show", SENTENCE, "-m", tiny(name), "--target", "a cat sat")
    assert "cross-attention · layer" in show().stdout
    assert "decoder · layer" in show("--map", "decoder").stdout
    assert "encoder · layer 0 · head 1" in show("--map", "encoder", "-l", "0", "-H", "1").stdout
    document = json.loads(show("--json").stdout)
    assert [part["kind"] for part in document["maps"]] == ["cross"]
    assert document["target"] == "a cat sat"
    assert [token["text"] for token in document["maps"][0]["queries"]][1:] == ["a", "cat", "sat"]
    assert show("--view", "grid").stdout.count(" tokens\n") == 3
    require_failure(show("--view", "grid", "-o", "x.png"), 2, "one picture, not 3", "--map")
    assert (
        call(
            "capture", SENTENCE, "-m", tiny(name), "--target", "a cat sat", "-o", "run.attn"
        ).returncode
        == 0
    )
    assert call("show", "--from", "run.attn").stdout == show().stdout
    assert (
        call("show", "--from", "run.attn", "--map", "encoder").stdout
        == show("--map", "encoder").stdout
    )


def test_a_written_target_is_shown(call: Run, tiny: Tiny) -> None:
    """Without --target the model writes one, and the picture says so."""
    assert (
        "the target is what the model wrote"
        in call("show", "a cat", "-m", tiny("bart"), "--width", "200").stdout
    )


@pytest.mark.parametrize(
    ("name", "args", "code", "told"),
    [
        ("gpt2", ["--target", "x"], 2, "--target: "),
        ("minilm", ["--map", "cross"], 2, "no cross map here: only self"),
        ("minilm", ["--generate", "3"], 3, "does not continue texts: leave --generate out"),
        ("t5", ["--generate", "3"], 2, "writes its target by itself"),
        ("t5", ["--target", " "], 4, "the text of --target is empty"),
        ("t5", ["--map", "self"], 2, "'self'"),
        ("llama", ["--chat"], 2, "no chat template"),
        ("chat", ["--chat", "--pair", "x"], 2, "--pair"),
        ("mamba", [], 3, "MambaModel has no attention"),
        ("gpt2", ["--rows", "99:"], 2, "--rows 99: holds no tokens"),
    ],
)
def test_models_that_cannot(
    call: Run, tiny: Tiny, minilm: Path, name: str, args: list[str], code: int, told: str
) -> None:
    """What a kind of model has no use for is one line, exit code 2 or 3."""
    require_failure(
        call("show", SENTENCE, "-m", minilm if name == "minilm" else tiny(name), *args), code, told
    )


def test_pairs_chats_and_continuations(call: Run, tiny: Tiny, minilm: Path) -> None:
    """--pair, --chat and --generate reach the model, and JSON tells what was read."""
    pair = json.loads(call("show", "a cat", "-m", minilm, "--pair", "a dog", "--json").stdout)
    assert pair["pair"] == "a dog"
    assert [token["text"] for token in pair["maps"][0]["keys"] if token.get("segment")] == [
        "a",
        "dog",
    ]
    chat = json.loads(call("show", "hi", "-m", tiny("chat"), "--chat", "--json").stdout)
    assert chat["text"] == "<bos><|user|>hi\n<|assistant|>"
    longer = json.loads(
        call("show", "a cat", "-m", tiny("gpt2"), "--generate", "4", "--json").stdout
    )
    assert longer["text"].startswith("a cat")
    assert len(longer["maps"][0]["queries"]) == 3 + 4
    assert "9 tokens" in call("show", "a cat", "--generate", "6", "--view", "grid").stdout


def test_how_exact_it_is(call: Run, tiny: Tiny) -> None:
    """-v tells the difference of weights times values from the model's output, and so does JSON; -q says nothing."""
    model = "-m", tiny("llama"), "--engine", "torch"
    told = call("show", SENTENCE, *model, "-v", "--json")
    assert 0 < json.loads(told.stdout)["fidelity"] < 1e-5
    assert re.search(
        r"fidelity: weights times values are the model's own output to \d\.\de-0\d of its size",
        told.stderr,
    )
    assert "fidelity" not in call("show", SENTENCE, *model).stderr
    assert call("show", SENTENCE, *model, "-v", "-q").stderr == ""
    assert "fidelity: not measured" in call("show", SENTENCE, "-v").stderr
    assert "fidelity: weights" in call("capture", SENTENCE, *model, "-v", "-o", "x.attn").stderr
    assert "fidelity: weights" in call("show", "--from", "x.attn", "-v").stderr


def test_a_difference_is_a_warning(call: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that do not explain the model's output are shown with a warning, without being asked."""
    model = "-m", tiny("llama"), "--engine", "torch"
    monkeypatch.setattr(
        CaptureObserver,
        "keep_result",
        lambda self, number, found: self.found.update({number: found}),
    )
    monkeypatch.setattr("attnviz.engine.agreement.compare_numbers", lambda *_: 0.25)
    told = "explain the model's own output only to 2.5e-01 of its size: do not rely on them"
    assert told in call("show", SENTENCE, *model, "--width", "200").stdout
    assert told in call("show", SENTENCE, *model, "--json").stderr


# Long texts


@pytest.fixture(scope="module")
def long_text() -> str:
    words = np.random.default_rng(0).choice(
        ["the", "cat", "sat", "on", "a", "mat", "and", "then"], 2000
    )
    return " ".join(words)


def test_a_long_text_is_drawn_in_tiles(
    call: Run, tiny: Tiny, long_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being asked; nothing is kept that grows with the square of the text, and it is said what a cell is."""
    taken: list[Capture] = []
    open_source = show_command.open_source

    def spy(*args: Any) -> Any:
        source = open_source(*args)
        return lambda request: taken.append(source(request)) or taken[-1]

    monkeypatch.setattr(show_command, "open_source", spy)
    shown = call("show", long_text, "-m", tiny("gpt2-4096"), "--width", "60")
    assert shown.returncode == 0, shown.stderr
    assert re.search(
        r"2001 tokens on 5\d cells: each is the largest weight", re.sub(r"\s+", " ", shown.stdout)
    )
    assert max(map(len, shown.stdout.splitlines())) <= 60
    assert (
        "2001 tokens on 16 cells"
        in call("show", long_text, "-m", tiny("gpt2-4096"), "--view", "grid").stdout
    )
    assert call("show", long_text, "-m", tiny("gpt2-4096"), "-o", "x.png").returncode == 0
    for found in taken:
        part = found.maps[0]
        sizes = [
            array.size for array in (part.tiles.mean, part.tiles.max, part.statistics.received)
        ]
        assert part.weights is None
        assert len(part.keys) == 2001
        assert max(sizes) <= 4 * 1200**2
        assert part.visible.shape == part.tiles.mean.shape


def test_a_window_is_at_full_resolution(call: Run, tiny: Tiny, long_text: str) -> None:
    """--rows and --cols open it: weights of eager to 1e-5, and the picture says where it lies."""
    folder = tiny("gpt2-4096")
    window = (
        "show",
        long_text,
        "-m",
        folder,
        "-l",
        "all",
        "-H",
        "all",
        "--rows",
        "100:140",
        "--cols",
        "90:140",
    )
    found = json.loads(call(*window, "--json").stdout)["maps"][0]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(folder)(
            long_text[:1500], return_tensors="pt"
        )  # causal: the rest is later
        expected = torch.cat(
            model(input_ids=inputs["input_ids"], output_attentions=True).attentions
        )
    weights = np.array(found["weights"], np.float32)  # null, where masked, becomes NaN
    np.testing.assert_allclose(
        np.nan_to_num(weights), expected[..., 100:140, 90:140], rtol=0, atol=1e-5
    )
    assert [token["id"] for token in found["keys"]] == inputs["input_ids"][0, 90:140].tolist()
    assert "queries 100-139 of 2001, keys 90-139 of 2001" in call(*window).stdout


# Runs that are cut short


@contextmanager
def started(command: list[Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that can be interrupted, also where these tests run in the background, and that ends with the test."""
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_an_interrupted_capture_leaves_nothing(
    call: Run, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a model runs: one line, exit code 130, no file."""
    monkeypatch.setattr(
        CaptureObserver, "observe_call", lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    done = call("capture", SENTENCE, "-m", tiny("gpt2"), "-o", "run.attn", "--engine", "torch")
    assert (done.returncode, done.stderr.strip()) == (
        130,
        "error: interrupted",
    )  # click breaks the line of ^C first
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["capture", "show"])
def test_a_full_disk_leaves_no_file(tmp_path: Path, command: str) -> None:
    """A file that cannot be written whole is not there at all: one line, exit code 5."""
    done = subprocess.run(
        [sys.executable, "-m", "attnviz", command, "@sample:article", "-o", "x.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    require_failure(done, 5, "cannot write x.json: file too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_one_line(
    call: Run, tiny: Tiny, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs out of it, Python or torch: what to do, and no file."""

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(CaptureObserver, "observe_call", fail)
    done = call("capture", SENTENCE, "-m", tiny("gpt2"), "-o", "run.attn", "--engine", "torch")
    require_failure(done, 4, "out of memory: choose fewer layers or heads")
    assert list(tmp_path.iterdir()) == []


# Hostile text


def test_hostile_text_is_shown_not_obeyed(call: Run) -> None:
    """Escape sequences, bidi and C1 controls in a text or a file name never reach the terminal or JSON raw."""
    text = "a \x1b]0;title\x07 \x1b[2J \u202eevil \x9b31m [link=x]y[/] $x^2$ </script>"
    for args in (
        ["--color", "always"],
        ["--color", "never"],
        ["--json"],
        ["--view", "grid"],
        ["--width", "40"],
    ):
        done = call("show", text, *args)
        assert done.returncode == 0, done.stderr
        shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
        assert not re.search(r"\x1b\[(?![0-9;]*m)", done.stdout)
    assert call("show", text, "-o", "x.png").returncode == 0
    missing = call("show", "@no\x1b[31m\u202efile")
    assert missing.returncode == 4
    assert "\x1b" not in missing.stderr
    assert r"\x1b[31m\u202efile" in missing.stderr
    assert "\x1b" not in call("show", SENTENCE, "-m", "./\x1b[2J").stderr


# Colour


@pytest.mark.parametrize(
    ("environment", "args", "coloured"),
    [
        ({}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": "0"}, [], False),
        ({"CLICOLOR_FORCE": "1"}, [], True),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
    ],
)
def test_colour_through_a_pipe(
    run: Run, environment: dict[str, str], args: list[str], coloured: bool
) -> None:
    """--color beats NO_COLOR, which beats FORCE_COLOR and CLICOLOR_FORCE; a pipe has none by itself."""
    assert ("\x1b[" in run("show", SENTENCE, *args, **environment).stdout) is coloured


def test_colour_on_a_terminal() -> None:
    """256 colours by TERM, 24 bits by COLORTERM, none with TERM=dumb, CLICOLOR=0 or NO_COLOR; ASCII where dumb."""
    assert "48;5;" in run_on_terminal(["show", SENTENCE])
    assert "48;2;" in run_on_terminal(["show", SENTENCE], COLORTERM="truecolor")
    for environment in ({"TERM": "dumb"}, {"CLICOLOR": "0"}, {"NO_COLOR": "1"}):
        assert "\x1b[" not in run_on_terminal(["show", SENTENCE, "-q"], **environment)
    assert "█" not in run_on_terminal(["show", "@sample:paragraph", "-q"], TERM="dumb")


def test_a_stream_that_is_not_utf8_gets_ascii(run: Run) -> None:
    """Where stdout cannot take block characters, ramps are ASCII and the rest is escaped."""
    done = run("show", "@sample:chinese", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(("is_old", "depth"), [(True, "shades"), (False, "16")])
def test_an_old_console_of_windows_gets_no_escapes(
    is_old: bool, depth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console is asked to obey escape sequences; one that cannot is sent none, whatever --color says."""
    modes = []

    def tell_mode(_: int, mode: Any) -> int:
        mode._obj.value = 3
        return 1

    def set_mode(_: int, mode: int) -> int:
        modes.append(mode)
        return int(not is_old)

    console = SimpleNamespace(
        GetStdHandle=lambda _: 7, GetConsoleMode=tell_mode, SetConsoleMode=set_mode
    )
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=console), raising=False)
    terminal = SimpleNamespace(encoding="utf-8", isatty=lambda: True)
    monkeypatch.setattr(screen, "sys", SimpleNamespace(platform="win32", stdout=terminal))
    monkeypatch.setenv("TERM", "")
    assert screen.choose_colour_depth("auto") == depth
    if is_old:
        assert screen.choose_colour_depth("always") == "shades"
    assert set(modes) == {7}  # 3 and the bit of escape sequences, 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["Der Käse"],
        ["a", "--with", "猫"],
        ["Käse", "--token", "Käse", "--view", "tokens"],
        ["a", "--title", "Käse"],
        ["a", "--title", "Käse", "-o", "x.svg"],
        ["a", "--title", "Käse", "-o", "x.html"],
    ],
)
def test_utf8_arguments_in_a_locale_of_ascii(arguments: list[str], run: Run) -> None:
    """Texts that Python cannot decode get one line that says which setting is wrong, and what to set."""
    command = "compare" if "--with" in arguments else "show"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(command, *arguments, **locale)
    require_failure(done, 4, "is UTF-8", "ascii", "set LC_ALL=C.UTF-8")


def test_utf8_file_names_in_a_locale_of_ascii(run: Run, tmp_path: Path) -> None:
    """Names of files need not be decoded: they are read and written as they are."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "Käse.txt").write_text("Der Käse", "utf-8")
    done = run("show", "@Käse.txt", "-o", "Käse.json", **locale)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "Käse.json").read_text("utf-8"))["text"] == "Der Käse"


# Models and training


def test_models_lists_what_can_be_had(call: Run) -> None:
    """The built-in model with size, corpus, licence and scores; aliases; JSON on request."""
    done = call("models")
    for words in (
        "parameters",
        "King James Bible",
        "WordNet",
        "MIT",
        "induction",
        "previous token",
        "bert-base",
    ):
        assert words in done.stdout
    document = json.loads(call("models", "--json").stdout)
    assert document["aliases"]["bert-base"] == "google-bert/bert-base-uncased"
    assert document["builtin"]["layers"] == 3
    assert document["builtin"]["parameters"] <= 2_000_000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(["the cat sat on the mat and the dog sat too"] * 100)
    )
    return tmp_path / "corpus.txt"


TRAIN = ["--layers", "1", "--heads", "2", "--dim", "16", "--vocabulary", "280"]


@pytest.mark.slow
def test_a_trained_model_is_shown(run: Run, call: Run, corpus: Path, tmp_path: Path) -> None:
    """Train writes a folder that works as --model, is the same for the same seed, and is not overwritten."""
    for name, train in (("a", run), ("b", call)):
        done = train("train", corpus, "-o", name, "--steps", "3", *TRAIN)
        assert done.returncode == 0, done.stderr
    assert "bits per character" in done.stderr
    for name in (store.CONFIG, store.WEIGHTS, store.TOKENIZER):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shown = call("show", "the cat sat", "--model", "a", "--json")
    assert json.loads(shown.stdout)["maps"][0]["layers"] == [0]
    require_failure(call("train", corpus, "-o", "a", "--steps", "3", *TRAIN), 5, "--force")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "told_last"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by a signal (SIGTERM)")],
)
def test_interrupted_training_is_saved(
    corpus: Path, tmp_path: Path, number: signal.Signals, code: int, told_last: str
) -> None:
    """Ctrl-C and SIGTERM save what there is, say how far it got, and have exit codes of their own."""
    command = [
        sys.executable,
        "-m",
        "attnviz",
        "train",
        str(corpus),
        "-o",
        "model",
        "--steps",
        "200",
        *TRAIN,
    ]
    with started(command, tmp_path) as process:
        assert process.stderr.readline().startswith("step 20:")
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert told.splitlines()[-1] == f"error: {told_last}"
    assert re.search(r"stopped after \d+ of 200 steps", told)
    assert "Traceback" not in told
    assert store.read_stored_model(tmp_path / "model").about["steps"] > 0


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["no-such.txt", "-o", "m"], 4, "no such file"),
        (["empty.txt", "-o", "m"], 4, "no text"),
        (["tiny.txt", "-o", "m"], 4, "more than 513"),
        (["corpus.txt", "-o", "m", "--dim", "20"], 2, "--dim"),
        (["corpus.txt", "-o", "corpus.txt"], 5, "is a file"),
        (["corpus.txt", "-o", "corpus.txt/m"], 5, "corpus.txt"),
        (["corpus.txt", "-o", "m", "--steps", "0"], 2, "steps"),
    ],
)
def test_training_that_cannot_be(
    call: Run, corpus: Path, tmp_path: Path, args: list[str], code: int, told: str
) -> None:
    """Missing, empty and tiny corpora, impossible sizes, outputs in the way."""
    assert corpus.exists()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "tiny.txt").write_text("too\n\nlittle")
    require_failure(call("train", *args), code, told)
    assert not (tmp_path / "m").exists()


def test_endless_texts_are_refused(call: Run, tmp_path: Path) -> None:
    """More than any model reads is refused before a tokenizer sees it, from a file, a device or as segments."""
    (tmp_path / "huge.txt").write_bytes(b"word " * 2**20)
    require_failure(call("show", "@huge.txt"), 4, "huge.txt has more than 4 MB")
    require_failure(call("show", "@/dev/zero"), 4, "more than 4 MB")
    require_failure(call("inspect", "some text", "--segments", "/dev/zero"), 4, "more than 4 MB")
