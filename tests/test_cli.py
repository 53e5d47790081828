"""The command line: output, streams, exit codes, and one line for every mistake."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from attnviz.cli import main as entry
from attnviz.cli.text import samples
from attnviz.lm import store
from tests.conftest import ROOT, SENTENCE, Run

COMMANDS = list(entry.COMMANDS)


def fails(done: subprocess.CompletedProcess, code: int, *told: str) -> None:
    """One line on stderr, nothing on stdout, this exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for words in told:
        assert words in done.stderr


# Help


@pytest.mark.parametrize("args", [["--help"], ["-h"], *[[name, "--help"] for name in COMMANDS]])
def test_help_fits_and_has_examples(run: Run, args: list[str]) -> None:
    """Each help exits with 0, fits 80 columns, and shows examples."""
    done = run(*args, COLUMNS="80")
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
    return sorted({line.strip() for text in helps for line in text.splitlines() if line.startswith("  attnviz ")})


@pytest.mark.parametrize("example", examples())
def test_examples_of_help_run(run: Run, example: str, minilm: Path, tmp_path: Path) -> None:
    """Every example of every help works as it stands, with small stand-ins for downloads and corpora."""
    from tests.test_models import plant

    plant(tmp_path / "cache", "google-bert/bert-base-uncased", minilm)
    (tmp_path / "books").mkdir()
    for name in ("notes.txt", "more.txt", "books/one.txt"):
        (tmp_path / name).write_text("\n\n".join(["some words to learn, one after the other"] * 60))
    steps = ["--steps", "2"] if " train " in example else []
    done = run(*shlex.split(example)[1:], *steps, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


def test_version_and_bare_call(run: Run) -> None:
    """--version names the version of pyproject.toml; without a command there is help and exit code 2."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert run("--version").stdout == f"attnviz {version}\n"
    bare = run()
    assert bare.returncode == 2
    assert "Commands:" in bare.stderr


def test_misspellings_get_a_suggestion(run: Run) -> None:
    """A misspelt command or option names the one that was meant."""
    fails(run("shwo"), 2, "'show'")
    fails(run("show", "--layrs", "1"), 2, "--layers")


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
        done = subprocess.run(["sh", "-c", call], capture_output=True, cwd=ROOT, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


def test_without_text_there_is_a_sample(run: Run) -> None:
    """No text and nothing on stdin: a sample sentence, and stderr says so."""
    for stdin in (None, ""):
        done = run("show", stdin=stdin)
        assert done.stdout == run("show", SENTENCE).stdout
        assert SENTENCE in done.stderr


def test_samples_are_at_hand(run: Run) -> None:
    """@sample:NAME reads a sample text from anywhere; there are ten to twelve, all in the table of their README."""
    assert "fox" in run("show", "@sample:repeat").stdout
    assert 10 <= len(samples()) <= 12
    table = (ROOT / "sample_texts" / "README.md").read_text()
    assert all(f"`{name}`" in table for name in samples())
    fails(run("show", "@sample:nonsense"), 4, "nonsense", "repeat")


@pytest.mark.parametrize("name", sorted(samples()))
def test_every_sample_is_drawn(run: Run, name: str) -> None:
    """Each sample text fits the built-in model and a narrow screen."""
    done = run("show", f"@{samples()[name]}", "--width", "40")
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
def test_texts_that_cannot_be_used(run: Run, tmp_path: Path, args: list[str], stdin: str | bytes, told: str) -> None:
    """Empty, missing, not UTF-8, too long: exit code 4."""
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    fails(run(*args, stdin=stdin), 4, told)


def test_truncate_cuts_and_says_so(run: Run) -> None:
    """--truncate takes what the model can read; the caption says what was left out."""
    done = run("show", "word " * 600, "--truncate")
    assert done.returncode == 0
    assert "only the first 512 are shown" in re.sub(r"\s+", " ", done.stdout)
    assert "only the first 512 are shown" in run("show", "word " * 600, "--truncate", "--json").stderr


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
        (["-o", "x.bmp"], ".png, .json"),
        (["-o", "x"], ".png, .json"),
        (["-l", "all", "--view", "heatmap", "-o", "x.png"], "one picture, not 3"),
        (["--width", "39"], "40"),
    ],
)
def test_choices_that_are_not_there(run: Run, tmp_path: Path, args: list[str], told: str) -> None:
    """Wrong layers, heads, devices, suffixes: exit code 2, what is allowed, and no file."""
    fails(run("show", SENTENCE, *args), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_negative_numbers_and_ranges_parse(run: Run) -> None:
    """-l -1, -l-1 and -H -3--1 are choices, not options."""
    assert run("show", SENTENCE, "-l", "-1").stdout == run("show", SENTENCE, "-l-1").stdout
    document = json.loads(run("show", SENTENCE, "-l", "-3--1", "-H", "-1", "--json").stdout)
    assert document["maps"][0]["layers"] == [0, 1, 2]
    assert document["maps"][0]["heads"] == [5]


def test_the_default_is_the_mean_of_the_last_layer(run: Run) -> None:
    """Without -l and -H: the mean over the heads of the last layer, and stderr says how to see more."""
    done = run("show", SENTENCE, "--json")
    found = json.loads(done.stdout)["maps"][0]
    whole = json.loads(run("show", SENTENCE, "--json", "-l", "all", "-H", "all").stdout)["maps"][0]
    assert (found["layers"], found["heads"]) == ([2], ["mean"])
    row = [[head[-1][k] for head in whole["weights"][2]] for k in range(12)]
    assert found["weights"][0][0][-1] == pytest.approx([sum(heads) / 6 for heads in row], abs=1e-6)
    assert "--view grid" in run("show", SENTENCE).stderr


def test_a_reduction_says_of_what(run: Run) -> None:
    """The caption names the heads that were merged; of maxima no share on a sink is told."""
    some = run("show", SENTENCE, "-H", "0,1", "--reduce", "mean").stdout
    assert "mean over heads 0, 1" in some
    assert "on the sink" in some
    assert "on the sink" not in run("show", SENTENCE, "-H", "0,1", "--reduce", "max").stdout
    assert "mean over heads of 3 layers" in run("show", SENTENCE, "-l", "all").stdout


def test_several_heads_are_a_grid(run: Run) -> None:
    """Several heads are thumbnails unless --view heatmap asks for each; --view grid draws all heads of a layer."""
    assert "6 heads" in run("show", SENTENCE, "--view", "grid", "-l", "1").stdout
    assert "H5" in run("show", SENTENCE, "-H", "all").stdout
    several = run("show", SENTENCE, "-H", "0,1", "--view", "heatmap").stdout
    assert "layer 2 · head 0" in several
    assert "layer 2 · head 1" in several


# Output


def test_json_is_alone_on_stdout(run: Run) -> None:
    """--json prints one document and nothing else, the same bytes each time, talk on stderr, silenced by -q."""
    done = run("show", "--json")
    assert done.stdout == run("show", "--json", "-q").stdout
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["schema"] == "attnviz/1"
    assert done.stderr
    assert run("show", "--json", "-q").stderr == ""


def test_figures_are_written_whole(run: Run, tmp_path: Path) -> None:
    """-o FILE.png writes a picture, the same bytes each time, for a heatmap and a grid; no temporary file is left."""
    for view in ("heatmap", "grid"):
        for name in ("a.png", "b.png"):
            assert run("show", "@sample:emoji_code", "--view", view, "-o", name, "--force").returncode == 0
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_json_files_hold_what_stdout_shows(run: Run, tmp_path: Path) -> None:
    """-o FILE.json is the document of --json."""
    run("show", SENTENCE, "-o", "x.json")
    assert (tmp_path / "x.json").read_text() == run("show", SENTENCE, "--json").stdout


def test_files_are_not_overwritten(run: Run, tmp_path: Path) -> None:
    """An existing file is kept unless --force; a folder that is not there is told."""
    (tmp_path / "x.png").write_text("mine")
    fails(run("show", SENTENCE, "-o", "x.png"), 5, "--force")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert run("show", SENTENCE, "-o", "x.png", "--force", "-q").stderr == ""
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    fails(run("show", SENTENCE, "-o", "no/x.png"), 5, "folder")
    (tmp_path / "d.png").mkdir()
    fails(run("show", SENTENCE, "-o", "d.png", "--force"), 5, "d.png")


def test_a_full_disk_leaves_nothing() -> None:
    """A stdout that takes no more is one line and exit code 5."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "attnviz", "show", SENTENCE]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 5
    assert b"no space left" in done.stderr.lower()
    assert b"Traceback" not in done.stderr


def test_a_closed_pipe_is_silent() -> None:
    """Attnviz show ... | head -1 ends without a word."""
    command = f"{shlex.quote(sys.executable)} -m attnviz show -q @sample:article --json | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, cwd=ROOT, check=False, stdin=subprocess.DEVNULL)
    assert done.stdout.startswith(b'{"schema"')
    assert done.stderr == b""


def test_unexpected_errors_are_faults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of ours is exit code 70 and one line; --debug shows the traceback."""

    def broken() -> None:
        raise RuntimeError("two\nlines")

    assert entry.run(broken) == 70
    assert capsys.readouterr().err == "error: a fault of attnviz: RuntimeError: two lines (see it with --debug)\n"
    monkeypatch.setattr(sys, "argv", ["attnviz", "--debug"])
    with pytest.raises(RuntimeError):
        entry.run(broken)


# Hostile text


def test_hostile_text_is_shown_not_obeyed(run: Run) -> None:
    """Escape sequences, bidi and C1 controls in a text or a file name never reach the terminal or JSON raw."""
    text = "a \x1b]0;title\x07 \x1b[2J \u202eevil \x9b31m [link=x]y[/] $x^2$ </script>"
    for args in (["--color", "always"], ["--color", "never"], ["--json"], ["--view", "grid"], ["--width", "40"]):
        done = run("show", text, *args)
        assert done.returncode == 0, done.stderr
        shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
        assert not re.search(r"\x1b\[(?![0-9;]*m)", done.stdout)
    assert run("show", text, "-o", "x.png").returncode == 0
    missing = run("show", "@no\x1b[31m\u202efile")
    assert missing.returncode == 4
    assert "\x1b" not in missing.stderr
    assert r"\x1b[31m\u202efile" in missing.stderr
    assert "\x1b" not in run("show", SENTENCE, "-m", "./\x1b[2J").stderr


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
def test_colour_through_a_pipe(run: Run, environment: dict[str, str], args: list[str], coloured: bool) -> None:
    """--color beats NO_COLOR, which beats FORCE_COLOR and CLICOLOR_FORCE; a pipe has none by itself."""
    assert ("\x1b[" in run("show", SENTENCE, *args, **environment).stdout) is coloured


def on_terminal(args: list[str], **environment: str) -> str:
    """What attnviz prints on a terminal of 80 columns."""
    parent, child = pty.openpty()
    settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "attnviz", *args], stdin=child, stdout=child, stderr=child, env=settings, cwd=ROOT
    )
    os.close(child)
    data = b""
    while select.select([parent], [], [], 60)[0]:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        data += part
    process.wait()
    os.close(parent)
    return data.decode()


def test_colour_on_a_terminal() -> None:
    """256 colours by TERM, 24 bits by COLORTERM, none with TERM=dumb, CLICOLOR=0 or NO_COLOR; ASCII where dumb."""
    assert "48;5;" in on_terminal(["show", SENTENCE])
    assert "48;2;" in on_terminal(["show", SENTENCE], COLORTERM="truecolor")
    for environment in ({"TERM": "dumb"}, {"CLICOLOR": "0"}, {"NO_COLOR": "1"}):
        assert "\x1b[" not in on_terminal(["show", SENTENCE, "-q"], **environment)
    assert "█" not in on_terminal(["show", "@sample:paragraph", "-q"], TERM="dumb")


def test_a_stream_that_is_not_utf8_gets_ascii(run: Run) -> None:
    """Where stdout cannot take block characters, ramps are ASCII and the rest is escaped."""
    done = run("show", "@sample:chinese", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 100


# Models and training


def test_models_lists_what_can_be_had(run: Run) -> None:
    """The built-in model with size, corpus, licence and scores; aliases; JSON on request."""
    done = run("models")
    for words in ("parameters", "King James Bible", "WordNet", "MIT", "induction", "previous token", "bert-base"):
        assert words in done.stdout
    document = json.loads(run("models", "--json").stdout)
    assert document["aliases"]["bert-base"] == "google-bert/bert-base-uncased"
    assert document["builtin"]["layers"] == 3
    assert document["builtin"]["parameters"] <= 2_000_000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("\n\n".join(["the cat sat on the mat and the dog sat too"] * 100))
    return tmp_path / "corpus.txt"


TRAIN = ["--layers", "1", "--heads", "2", "--dim", "16", "--vocabulary", "280"]


def test_a_trained_model_is_shown(run: Run, corpus: Path, tmp_path: Path) -> None:
    """Train writes a folder that works as --model, is the same for the same seed, and is not overwritten."""
    for name in ("a", "b"):
        done = run("train", corpus, "-o", name, "--steps", "3", *TRAIN, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    assert "bits per character" in done.stderr
    for name in (store.CONFIG, store.WEIGHTS, store.TOKENIZER):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shown = run("show", "the cat sat", "--model", "a", "--json")
    assert json.loads(shown.stdout)["maps"][0]["layers"] == [0]
    fails(run("train", corpus, "-o", "a", "--steps", "3", *TRAIN), 5, "--force")


def test_interrupted_training_is_saved(corpus: Path, tmp_path: Path) -> None:
    """Ctrl-C saves what there is, says how far it got, and exits with 130."""
    command = [sys.executable, "-m", "attnviz", "train", str(corpus), "-o", "model", "--steps", "3000", *TRAIN]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr.readline().startswith("step 300:")
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert re.search(r"stopped after \d+ of 3000 steps", told)
    assert "Traceback" not in told
    assert store.read(tmp_path / "model").about["steps"] > 0


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
def test_training_that_cannot_be(run: Run, corpus: Path, tmp_path: Path, args: list[str], code: int, told: str) -> None:
    """Missing, empty and tiny corpora, impossible sizes, outputs in the way."""
    assert corpus.exists()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "tiny.txt").write_text("too\n\nlittle")
    fails(run("train", *args), code, told)
    assert not (tmp_path / "m").exists()
