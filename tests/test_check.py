"""`attnviz check`: bounds that hold, that do not, and that make no sense."""

import json
from pathlib import Path

import numpy as np
import pytest

import attnviz
from attnviz.analysis.comparison import Distances, compare_on_words
from attnviz.analysis.measures import measure_map
from attnviz.analysis.segments import find_segment
from attnviz.analysis.words import convert_to_words
from attnviz.io.documents import format_document_json
from attnviz.record import Segment
from attnviz.results.checking import Bound, Evidence, check_bounds
from tests.commands import require_failure
from tests.conftest import Run

pytestmark = pytest.mark.numeric

TEXT = "The cat sat on the mat because it was tired."


def checked(call: Run, *args: object) -> tuple[int, list[dict]]:
    """The exit code, and what was checked."""
    done = call("check", "-q", *args, "--json")
    return done.returncode, json.loads(done.stdout)["checks"]


def test_a_line_each_and_exit_code_one(call: Run) -> None:
    """Every bound has a line with what was measured; one that does not hold is enough for exit code 1."""
    done = call("check", TEXT, "--min", "entropy=0.1", "--max", "L0H2.entropy=0.0001")
    assert done.returncode == 1
    good, bad = done.stdout.splitlines()
    assert good.startswith("ok ")
    assert good.endswith("entropy >= 0.1")
    assert bad.startswith("FAIL ")
    assert bad.endswith("L0H2.entropy <= 0.0001")
    assert call("check", TEXT, "--min", "entropy=0.1").returncode == 0


def test_columns_are_those_of_inspect(call: Run) -> None:
    """A column with a head is its value, without one the mean over all heads; over several texts the mean."""
    other = "A dog runs."
    code, (one, every, two) = checked(
        call, TEXT, other, "--min", "L1H3.sink=0", "--min", "gini=0", "--min", "L-1H-1.span=0"
    )
    found = [measure_map(attnviz.capture(text).maps[0]) for text in (TEXT, other)]
    assert code == 0
    assert one["measured"] == pytest.approx(np.mean([each["sink"][1, 3] for each in found]))
    assert every["measured"] == pytest.approx(np.mean([each["gini"] for each in found]))
    assert two["measured"] == pytest.approx(np.mean([each["span"][2, 5] for each in found]))


def test_roles_are_those_of_heads(call: Run) -> None:
    """The built-in model's heads are what its training made them; without a head it is the one that is best."""
    code, (head, best) = checked(
        call, "--min", "L1H3.induction=0.75", "--min", "previous_token=0.8"
    )
    assert code == 0
    assert head["measured"] > 0.8
    assert best["measured"] > 0.9
    assert checked(call, "--max", "L1H3.induction=0.5")[0] == 1


def test_divergence_is_that_of_compare(call: Run) -> None:
    """--max-js is on the one number, L1H3.js on a head's way to its nearest, L1H3.moved to its own."""
    args = (
        TEXT,
        "--with",
        "The dog sat on the rug.",
        "--max-js",
        "0.5",
        "--max",
        "L1H3.js=1",
        "--max",
        "L1H3.moved=1",
    )
    code, (number, nearest, moved) = checked(call, *args)
    distances = Distances.over(
        [compare_on_words(attnviz.capture(TEXT), attnviz.capture("The dog sat on the rug."))]
    )
    assert code == 0
    assert number["measured"] == pytest.approx(distances.overall[0])
    assert nearest["measured"] == pytest.approx(distances.to_nearest(0)[0, 9])
    assert moved["measured"] == pytest.approx(distances.moved[0, 9])
    assert checked(call, *args[:3], "--max-js", "0")[0] == 1


def test_shares_of_segments(call: Run, tmp_path: Path) -> None:
    """What a segment gets, sinks left out: of a file, or of the text's own parts by name or number."""
    (tmp_path / "parts.txt").write_text("0:11 beginning\n12:44 end\n")
    code, (begins, ends) = checked(
        call,
        TEXT,
        "--segments",
        "parts.txt",
        "--min-share",
        "beginning=0",
        "--max-share",
        "end=1",
        "--query",
        "-1",
    )
    assert code == 0
    assert begins["measured"] + ends["measured"] == pytest.approx(1, abs=1e-5)
    code, (line,) = checked(call, "one two\nthree four", "--min-share", "line 1=0.01")
    assert (code, line["check"]) == (0, "share of 'line 1' >= 0.01")


def test_captures_can_be_checked(call: Run, tmp_path: Path) -> None:
    """A capture is checked without a model; two are compared; roles need a model."""
    attnviz.save(attnviz.capture(TEXT), tmp_path / "x.attn")
    assert checked(call, "--from", "x.attn", "--min", "sink=0.01")[0] == 0
    assert checked(call, "--from", "x.attn", "--from", "x.attn", "--max-js", "0")[0] == 0
    require_failure(
        call("check", "--from", "x.attn", "--min", "induction=0"), 2, "leave --from out"
    )


def test_what_is_undefined_does_not_hold(call: Run) -> None:
    """A causal model has no weight on the next token: the number is null, and the check fails."""
    code, (found,) = checked(call, TEXT, "--min", "L0H0.next=0")
    assert (code, found["measured"], found["passed"]) == (1, None, False)


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ([], 2, "nothing to check"),
        (["--min", "L1H3.inductions=0.1"], 2, "nothing that is measured"),
        (["--min", "entropy"], 2, "NAME=NUMBER"),
        (["--min", "entropy=nan"], 2, "no number"),
        (["--min", "L7H0.entropy=1"], 2, "layer 7 does not exist"),
        (["--min", "L0H9.induction=1"], 2, "head 9 does not exist"),
        (["--max-js", "0.1"], 2, "nothing to compare with"),
        (["--max-js", "inf"], 2, "no number"),
        (["a", "--with", "b", "--max", "entropy=1"], 2, "no effect"),
        (["a", "-m", "builtin", "-m", "builtin", "--max", "entropy=1"], 2, "no effect"),
        (["a", "--segments", "auto", "--max", "entropy=1"], 2, "no effect"),
        (["a", "--query", "0", "--max", "entropy=1"], 2, "no effect"),
        (["--min-share", "x=0.1"], 4, "one paragraph"),
        (["a\n\nb", "--min-share", "x=0.1"], 4, "no segments are named 'x'"),
        (["", "--min", "entropy=1"], 4, "the text is empty"),
        (["a b", "--segments", "gone.txt", "--min-share", "x=0"], 4, "gone.txt"),
    ],
)
def test_bad_input(call: Run, args: list[str], code: int, told: str) -> None:
    """One line, and never exit code 1, which is for checks that fail."""
    require_failure(call("check", "-q", *args), code, told)


def test_segments_that_overlap_or_lie_outside(call: Run, tmp_path: Path) -> None:
    """Segments must be parts of the text, each character in one of them at most."""
    for content, told in (
        ("0:5 a\n3:9 b", "overlap"),
        ("0:500 a", "outside"),
        ("nonsense", "no segment"),
    ):
        (tmp_path / "parts.txt").write_text(content)
        require_failure(
            call("check", "-q", TEXT, "--segments", "parts.txt", "--min-share", "a=0"), 4, told
        )


def test_words_can_be_measured(call: Run) -> None:
    """--words measures columns between words."""
    text = "unbelievable tokenizers"
    (tokens,), (words,) = (
        checked(call, text, "--min", "entropy=0", *more)[1] for more in ([], ["--words"])
    )
    expected = measure_map(convert_to_words(attnviz.capture(text)).maps[0])["entropy"].mean()
    assert words["measured"] == pytest.approx(expected)
    assert words["measured"] != tokens["measured"]


def test_coverage_is_told(call: Run) -> None:
    """On how little two texts are compared stands beside the result."""
    args = TEXT, "--with", "A dog.", "--max-js", "0.5"
    assert "compared on 1 word of 11 in A and 3 in B" in call("check", *args).stderr
    assert json.loads(call("check", *args, "--json").stdout)["notes"][0].startswith(
        "compared on 1 word of 11"
    )


def test_what_a_capture_lacks_is_said(call: Run, tmp_path: Path) -> None:
    """A column that needs weights is no failed check where a capture has none."""
    attnviz.save(attnviz.capture(TEXT, keep="statistics"), tmp_path / "s.attn")
    require_failure(call("check", "--from", "s.attn", "--max", "gini=3"), 4, "needs all weights")
    assert call("check", "--from", "s.attn", "--max", "entropy=3").returncode == 0


def test_bounds_are_checked_without_a_command(call: Run) -> None:
    """A result of captures has what the command prints, and a table."""
    bounds = [Bound("entropy", 0.1, is_least=True), Bound("L0H0.next", 0.0, is_least=True)]
    result = check_bounds(bounds, Evidence([attnviz.capture(TEXT)]))
    done = call("check", TEXT, "--min", "entropy=0.1", "--min", "L0H0.next=0", "--json")
    assert format_document_json(result.to_dict()).decode() == done.stdout
    assert not result.passed
    assert [row["passed"] for row in result.rows()] == [True, False]
    assert "undefined" in result.lines()[1]
    (table,) = result.tables()
    assert table.cells[1] == ("undefined", "FAIL")


def test_a_segment_is_found_by_its_name() -> None:
    """By the whole name, or by the words that it begins with, if they are of one segment only."""
    segments = [Segment("line 1 one", 0, 3), Segment("line 10 ten", 4, 7), Segment("line", 8, 9)]
    assert find_segment("line 1", segments) == 0
    assert find_segment("line", segments) == 2
    with pytest.raises(ValueError, match="2 segments are named 'line'"):
        find_segment("line", segments[:2])
