"""How far long work is: what it says, and the line on the terminal that shows it."""

import io
import os
import pty
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers

from attnviz.cli.progress import (
    GuardedFile,
    ProgressLine,
    can_show_line,
    describe_work,
    format_seconds,
    join_in_width,
)
from attnviz.experiments.attribution import attribute
from attnviz.experiments.heads import find_head_roles
from attnviz.models import load_model
from attnviz.progress import (
    FOLLOWED,
    WorkStep,
    begin_step,
    count_steps,
    follow_steps,
    leave_screen,
    shorten_name,
)
from attnviz.request import Engine, Placement, Prompt, Request
from attnviz.results.head_roles import SequenceSettings
from attnviz.selection import Selection, parse_heads
from tests.conftest import SENTENCE, Tiny
from tests.tiny import load_in_torch
from tests.work import keep_steps, run_in_pipes, run_still, show_screen

TEXT = "The cat sat on the mat."


# What work says


def test_steps_lie_in_their_order_while_they_last() -> None:
    """The outermost first; each is gone when its block ends, by an error too."""
    with follow_steps() as steps:
        with begin_step("one") as outer, begin_step("two") as inner:
            assert steps == [outer, inner]
        with pytest.raises(ValueError, match="stop"), begin_step("one"):
            raise ValueError("stop")
        assert steps == []
    assert FOLLOWED.get() is None


def test_where_nobody_follows_work_goes_on_as_usual() -> None:
    """Steps count, and are kept nowhere."""
    with begin_step("one", "unit", 2) as step:
        step.advance()
    assert step.done == 1
    assert list(count_steps("ab", "one", "letter")) == ["a", "b"]
    assert FOLLOWED.get() is None


def test_items_are_counted_when_the_next_is_asked_for() -> None:
    """So the one that is worked on is not done yet; the last is when the loop ends."""
    with keep_steps() as history:
        counts = [history[0].done for _ in count_steps(["a", "b", "c"], "read", "letter")]
    assert counts == [0, 1, 2]
    assert history.find("read") == [("letter", 3, 3)]


def test_items_that_are_left_end_the_step() -> None:
    """A loop that is broken off leaves nothing behind; a single item is not counted."""
    with keep_steps() as history:
        for _ in count_steps(iter("abc"), "read", "letter"):
            break
        assert list(count_steps("a", "write", "letter")) == ["a"]
    assert history.find("read") == [("letter", 0, None)]
    assert history.find("write") == [("", 1, 1)]


def test_the_rest_is_predicted_from_what_is_done() -> None:
    """A closed form: 3 units in 6 seconds leave 14 for the other 7; what was done before does not count."""
    step = WorkStep("read", "unit", 10, began=100.0)
    assert step.predict_seconds(106.0) is None
    step.advance(3)
    assert step.predict_seconds(106.0) == pytest.approx(14.0)
    resumed = WorkStep("read", "unit", 10)
    resumed.continue_from(5)
    assert resumed.predict_seconds(resumed.began + 6) is None
    resumed.advance(3)
    assert resumed.predict_seconds(resumed.began + 6) == pytest.approx(4.0)
    assert WorkStep("read", "unit", done=3).predict_seconds(time.monotonic()) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bert", "bert"), ("org/bert", "bert"), ("/a/b/llama/", "llama"), (".", "."), ("/", "/")],
)
def test_a_long_path_is_called_by_its_end(name: str, expected: str) -> None:
    """A name of a model or a file fits the line."""
    assert shorten_name(name) == expected


# What the line says


def make_step(action: str, *counts: int, unit: str = "", seconds: float = 60.0) -> WorkStep:
    """Make a step that began some seconds ago; counts: how many units are done, and of how many."""
    done, total = counts or (0, None)
    return WorkStep(action, unit, total, done, began=time.monotonic() - seconds)


def describe(*steps: WorkStep, width: int = 80) -> str:
    """Say what is done in some steps, of work that began a minute ago; seconds are left out."""
    line = describe_work(steps, time.monotonic() - 60, width)
    return re.sub(r"\d+ min \d+ s|\d+ s", "N s", line)


def test_the_line_names_the_steps_and_what_is_left() -> None:
    """The unit that is worked on, the outermost prediction, else how long it has taken."""
    layers = make_step("reading", 11, 30, unit="layer")
    assert describe(layers) == "reading: layer 12 of 30, N s left"
    runs = make_step("checking", 0, 1075, unit="run")
    assert describe(runs, layers) == "checking: run 1 of 1,075; reading: layer 12 of 30, N s left"
    assert describe(make_step("loading")) == "loading, N s so far"
    assert describe(make_step("reading", 30, 30, unit="layer")).startswith(
        "reading: layer 30 of 30"
    )
    assert describe() == "computing, N s so far"
    counted = WorkStep("training", "step", 9, state="loss 2.1 nats")
    assert describe(counted) == "training: step 1 of 9, loss 2.1 nats, N s so far"


def test_inner_steps_are_named_if_they_last() -> None:
    """One that has just begun would flicker."""
    inner = make_step("reading", 0, 30, unit="layer", seconds=0)
    assert describe(make_step("checking"), inner) == "checking, N s so far"


def test_of_many_steps_the_outermost_and_the_innermost_are_named() -> None:
    """So there is room for both of their counts."""
    steps = [make_step(name, 0, 9, unit="part") for name in ("one", "two", "three")]
    assert describe(*steps) == "one: part 1 of 9; three: part 1 of 9, N s so far"


def test_nothing_is_said_where_something_else_draws() -> None:
    """A bar of a library, or a user who types, has the screen alone."""
    with follow_steps() as steps, begin_step("loading"), leave_screen():
        assert describe(*steps) == ""


@pytest.mark.parametrize("width", [1, 5, 20, 40])
@pytest.mark.parametrize("action", ["loading " + "x" * 50, "loading " + "漢" * 50])
def test_the_line_fits_the_terminal(width: int, action: str) -> None:
    """It never wraps, since then it could not be cleared; what is left is kept."""
    from rich.cells import cell_len

    line = describe_work([make_step(action)], time.monotonic() - 60, width)
    assert cell_len(line) < width
    if width >= 20:
        assert line.endswith(" so far")


def test_names_on_the_line_are_escaped() -> None:
    """The name of a model may hold what a terminal obeys."""
    assert describe(make_step("loading a\x1b[2Jb")) == "loading a\\x1b[2Jb, N s so far"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (5280, "1 h 28 min")],
)
def test_times_have_two_units(seconds: int, expected: str) -> None:
    """The two largest."""
    assert format_seconds(seconds) == expected


def test_what_is_left_is_kept_of_a_line_that_is_too_long() -> None:
    """The beginning is cut; where there is no room at all, the end is."""
    assert join_in_width("loading a model", ", 3 s left", 18) == "loading…, 3 s left"
    assert join_in_width("loading", ", 3 s left", 4) == ", 3 "


# Where the line is


@pytest.fixture
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """Open a terminal: a descriptor to write to, and a function that returns all that was written."""
    parent, child = pty.openpty()
    os.set_blocking(parent, False)

    def read_all() -> str:
        data = b""
        try:
            while part := os.read(parent, 65536):
                data += part
        except BlockingIOError:
            pass
        return data.decode()

    yield child, read_all
    os.close(parent)
    os.close(child)


def test_a_line_is_drawn_when_it_changes(terminal: tuple[int, Callable[[], str]]) -> None:
    """The same words are not sent again; the end removes them, and nothing is drawn after it."""
    descriptor, read_all = terminal
    steps = [make_step("reading", 1, 3, unit="layer", seconds=0)]
    line = ProgressLine(descriptor, "utf-8", steps)
    line.draw()
    line.draw()
    first = read_all()
    assert first.count("reading: layer 2 of 3") == 1
    steps[0].advance()
    line.draw()
    changed = first + read_all()
    assert show_screen(changed).startswith("reading: layer 3 of 3")
    line.start()
    line.end()
    line.draw()
    assert show_screen(changed + read_all()) == ""


def test_what_is_written_stands_where_the_line_was(
    terminal: tuple[int, Callable[[], str]],
) -> None:
    """A note removes the line, which comes back below it; a result ends it."""
    descriptor, read_all = terminal
    line = ProgressLine(descriptor, "utf-8", [make_step("loading", seconds=0)])
    notes = GuardedFile(descriptor, line, ends=False)
    results = GuardedFile(descriptor, line, ends=True)
    line.draw()
    notes.write(b"a note\n")
    line.draw()
    drawn = read_all()
    assert show_screen(drawn) == "a note\nloading"
    results.write(b"a result\n")
    line.draw()
    assert show_screen(drawn + read_all()) == "a note\na result\n"


def test_a_terminal_that_is_gone_ends_the_line() -> None:
    """Work goes on where nobody looks any more."""
    parent, child = pty.openpty()
    line = ProgressLine(child, "utf-8", [make_step("loading")])
    line.text = "loading"
    os.close(child)
    line.clear()
    assert line.over.is_set()
    line.start()
    line.thread.join()
    os.close(parent)


def test_an_old_encoding_gets_what_it_has(terminal: tuple[int, Callable[[], str]]) -> None:
    """A character that it lacks takes one column, as it would."""
    descriptor, read_all = terminal
    ProgressLine(descriptor, "ascii", [make_step("loading é", seconds=0)]).draw()
    assert show_screen(read_all()) == "loading ?"


def test_only_a_terminal_gets_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pipe, no file, no stream of another program, and no terminal without controls."""
    parent, child = pty.openpty()
    with os.fdopen(child, "w", encoding="utf-8") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert can_show_line(stream)
        monkeypatch.setenv("TERM", "dumb")
        assert not can_show_line(stream)
    monkeypatch.setenv("TERM", "xterm")
    assert not can_show_line(io.StringIO())
    assert not can_show_line(None)
    with Path(os.devnull).open("w", encoding="utf-8") as stream:
        assert not can_show_line(stream)
    os.close(parent)


# Commands


def test_slow_work_is_shown_and_gone_in_the_end() -> None:
    """The layer is told while a model stands still in it; then the picture stands alone."""
    stopped = run_still(["show", TEXT, "--color", "never"])
    assert stopped.told == "progress"
    assert "reading the text: layer 2 of" in stopped.seen
    quick = run_still(["show", TEXT, "--color", "never"], waits=False)
    assert stopped.returncode == quick.returncode == 0
    assert stopped.left == quick.left
    assert "reading" not in stopped.left


@pytest.mark.parametrize(
    "args",
    [
        ["inspect", TEXT],
        ["capture", TEXT, "-o", "OUT.attn"],
        ["explain", TEXT, "-l", "-1", "-H", "0"],
        ["compare", TEXT, "--with", "The dog sat on the mat."],
        ["check", TEXT, "--max", "entropy=9"],
        ["attribute", TEXT, "--by", "norm"],
        ["intervene", TEXT, "--ablate", "L0H2"],
        ["heads", "--sequences", "2", "--block", "8"],
        ["export", TEXT, "-H", "L1H0", "--formats", "json", "-o", "OUT"],
        ["show", TEXT, "-o", "OUT.json"],
    ],
    ids=lambda args: args[0],
)
def test_every_command_shows_its_work(args: list[str], tmp_path: Path) -> None:
    """Whatever runs a model tells the layer, and leaves no word of it on the screen."""
    stopped = run_still([word.replace("OUT", str(tmp_path / "out")) for word in args])
    assert "layer 2 of" in stopped.seen
    assert "layer 2 of" not in stopped.left
    assert "so far" not in stopped.left


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        (["-q"], {}),
        (["-vq"], {}),
        (["--quiet"], {}),
        ([], {"TERM": "dumb"}),
    ],
)
def test_nothing_is_shown_where_it_is_not_wanted(
    args: list[str], environment: dict[str, str]
) -> None:
    """Neither with -q nor on a terminal without controls: nothing draws, and no control is sent."""
    stopped = run_still(["show", TEXT, "--color", "never", *args], waits=False, **environment)
    assert stopped.told == "nothing"
    assert stopped.returncode == 0


def test_nothing_is_shown_in_pipes() -> None:
    """Nothing draws, and stderr holds the notes alone."""
    told, done = run_in_pipes(["show", TEXT])
    assert told == "nothing"
    assert "\x1b" not in done.stdout + done.stderr
    assert "reading" not in done.stderr


def test_a_pipe_gets_the_same_bytes_while_stderr_shows_the_work() -> None:
    """Stdout may go elsewhere: nothing of the line is in it, and nothing stays on the terminal."""
    stopped = run_still(["show", TEXT, "--json"], pipe_stdout=True)
    assert "layer 2 of" in stopped.seen
    assert stopped.left == ""
    _, done = run_in_pipes(["show", TEXT, "--json"])
    assert stopped.stdout == done.stdout


def test_a_note_stands_where_the_line_was() -> None:
    """A line on stderr is not drawn over, and holds nothing of the progress."""
    note = "sys.stderr.write('a note\\n')"
    stopped = run_still(["show", TEXT, "--json"], note, pipe_stdout=True)
    assert stopped.left == "a note\n"


@pytest.mark.parametrize(
    ("then", "error", "code"),
    [
        (
            "from attnviz.errors import ModelError; raise ModelError('it is damaged')",
            "error: it is damaged\n",
            3,
        ),
        ("raise MemoryError", "error: out of memory: choose fewer layers or heads", 4),
        ("raise RuntimeError('odd')", "error: a fault of attnviz: RuntimeError: odd", 70),
        ("raise SystemExit(143)", "", 143),
    ],
)
def test_an_error_stands_alone(then: str, error: str, code: int) -> None:
    """The line is gone before the message, whatever ends the work."""
    stopped = run_still(["show", TEXT], then)
    assert "layer 2 of" in stopped.seen
    assert stopped.left.startswith(error)
    assert "layer" not in stopped.left.replace("choose fewer layers", "")
    assert stopped.returncode == code


def test_an_interrupted_command_leaves_one_line() -> None:
    """Ctrl-C while the line stands."""
    stopped = run_still(["show", TEXT], interrupt=True)
    assert (stopped.left.strip(), stopped.returncode) == ("error: interrupted", 130)


def test_a_reader_that_goes_away_gets_no_complaint() -> None:
    """As without a terminal: the exit code of a broken pipe, and not a word."""
    broken_stdout = "read, write = os.pipe(); os.close(read); os.dup2(write, 1)"
    stopped = run_still(["show", TEXT, "--json"], broken_stdout)
    assert (stopped.left, stopped.returncode) == ("", 141)


# What is counted

ALL_LAYERS = Request()
FIRST_LAYERS = Request(layers=Selection(((0, 1),)))


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_are_counted_on_both_engines(engine: Engine, name: str, tiny: Tiny) -> None:
    """All three layers, whatever runs the model; no further than the last one that is asked for."""
    with keep_steps() as history:
        model = load_model(str(tiny(name)), placement=Placement(engine=engine))
        model.capture(Prompt("a b c d"), ALL_LAYERS)  # torch surveys the model first
    assert history.find(f"loading {name}")
    assert history.find("reading the text")[-1] == ("layer", 3, 3)
    with keep_steps() as history:
        model.capture(Prompt("a b c d"), FIRST_LAYERS)
    assert history.find("reading the text") == [("layer", 2, 2)]


def test_layers_of_the_builtin_model_are_counted() -> None:
    """It runs in NumPy, and says nothing of a load that is none."""
    model = load_model()
    layers = model.architecture.layers  # type: ignore[attr-defined]
    with keep_steps() as history:
        model.capture(Prompt(TEXT), ALL_LAYERS)
    assert history.find("reading the text") == [("layer", layers, layers)]


def test_calls_are_counted_where_a_model_hides_its_attention(tiny: Tiny) -> None:
    """Those of an encoder-decoder too, each once a run; what it writes is counted in tokens."""
    model = load_model(str(tiny("bart")))
    with keep_steps() as history:
        model.capture(Prompt("a b c"), ALL_LAYERS)
    ((unit, done, total),) = history.find("writing a target")
    assert unit == "token"
    assert total is not None
    assert 0 < done <= total
    unit, done, total = history.find("reading the text")[-1]
    assert (unit, done) == ("layer", total)


@pytest.mark.parametrize("name", ["builtin", "gpt2"])
def test_tokens_that_are_written_are_counted(name: str, tiny: Tiny) -> None:
    """Each token as it is written, and within it all layers again."""
    folder = name if name == "builtin" else str(tiny(name))
    model = load_model(folder, writes=True)
    with keep_steps() as history:
        model.capture(Prompt("a b c", generate=3), ALL_LAYERS)
    ((unit, done, total),) = history.find("writing a continuation")
    assert (unit, done) == ("token", total)
    assert total in (3, 4)  # torch writes one more, to read the last one
    assert all(0 < done <= (total or 0) for _, done, total in history.find("reading the text")[-1:])


def test_weights_are_counted_while_the_library_loads_them(tiny: Tiny) -> None:
    """All of them, in place of the bar of the library, whose hook is given back."""
    earlier = transformers.logging.set_tqdm_hook(None)
    transformers.logging.set_tqdm_hook(earlier)
    with keep_steps() as history:
        load_in_torch(tiny("gpt2"))
    ((unit, done, total),) = history.find("reading weights")
    assert (unit, done) == ("tensor", total)
    assert done > 10
    assert transformers.logging.set_tqdm_hook(earlier) is earlier


def test_runs_of_experiments_are_counted() -> None:
    """Each run of a check, each sequence and text, each ablation; all are done in the end."""
    model = load_model()
    with keep_steps() as history:
        attribute(model, Prompt(TEXT), checks=["knock-out"])
    ((unit, done, total),) = history.find("taking tokens away")
    assert (unit, done) == ("run", total)
    with keep_steps() as history:
        find_head_roles(
            model,
            [TEXT, SENTENCE],
            SequenceSettings(3, 8),
            heads=parse_heads("L0H2,L1H3"),
            ablates=True,
        )
    assert history.find("measuring heads") == [("sequence", 3, 3), ("text", 2, 2)]
    ((unit, done, total),) = history.find("ablating heads")
    assert (unit, done) == ("run", total)
