"""`attnviz inspect`: what it shows, what it writes, and what it refuses."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import attnviz
from attnviz.analysis.measures import COLUMNS, measure_map
from attnviz.analysis.segments import choose_segments
from attnviz.derived import CaptureSource
from attnviz.drawable import Heatmap, Table
from attnviz.io.documents import format_document_json, format_rows_csv
from attnviz.models import load_model
from attnviz.record import Capture, Segment
from attnviz.render.terminal.cells import CellPaint
from attnviz.render.terminal.draw import Screen
from attnviz.request import Prompt
from attnviz.results.inspection import (
    HeadNumbers,
    HeadOrder,
    draw_heads_table,
    format_measure,
    inspect_heads,
)
from attnviz.results.result import Result
from attnviz.results.segment_shares import inspect_segments
from attnviz.results.token_rows import inspect_cell, inspect_token
from attnviz.selection import TokenReference
from tests.captures import make_map
from tests.commands import require_failure
from tests.conftest import SENTENCE, Run, Tiny
from tests.tolerance import close

pytestmark = pytest.mark.numeric

HEADS = 18  # of the built-in model


def document(call: Run, *args: str | Path) -> dict[str, Any]:
    done = call("inspect", *args, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "attnviz/1"
    return found


def lines(call: Run, *args: str | Path) -> list[str]:
    done = call("inspect", *args, "--width", "80")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert max(map(len, shown)) <= 80
    return shown


# The table of heads


def test_a_table_of_heads(call: Run) -> None:
    """A row a head, as many as a screen has, the smallest entropy first; how many there are, and the mean of all."""
    shown = lines(call, SENTENCE)
    assert shown[0] == "builtin · 18 heads · 12 tokens"
    assert shown[1].split() == [
        "head",
        *(column.heading for column in COLUMNS.values() if column.name != "next"),
    ]
    entropies = [float(line.split()[1]) for line in shown[2:18]]
    assert entropies == sorted(entropies)
    found = measure_map(attnviz.capture(SENTENCE).maps[0])
    assert entropies[0] == pytest.approx(found["entropy"].min(), abs=0.005)
    assert shown[18].split()[:2] == ["mean", f"{found['entropy'].mean():.2f}"]
    assert shown[19] == "16 of 18 heads, smallest entropy first; mean: of all 18"
    assert len(shown) == 20


def test_many_heads_fit_a_screen() -> None:
    """270 heads, of 30 layers, on 80 columns: names and numbers of up to a thousand tokens."""
    names = tuple(f"L{layer}H{head}" for layer in range(30) for head in range(9))
    generator = np.random.default_rng(0)
    means = {
        name: generator.random(270) * (1 if column.unit == "share" else 999)
        for name, column in COLUMNS.items()
    }
    undefined = {name: np.full(270, np.nan) for name in COLUMNS}
    table = draw_heads_table(
        HeadNumbers("x", names, means, undefined, ()), HeadOrder("entropy"), most=16
    )
    widths = [
        max(len(text) for text in (heading, *column))
        for heading, column in zip(table.columns, zip(*table.cells, strict=True), strict=True)
    ]
    assert max(map(len, table.rows)) + 1 + sum(width + 2 for width in widths) <= 80
    assert len(table.rows) == 17


@pytest.mark.parametrize("height", [10, 24, 50])
def test_a_screen_is_filled(
    call: Run, minilm: Path, monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    """With as many heads as it has lines for, a note and the next prompt among them."""
    from attnviz.cli import inspect

    paint = CellPaint("shades", "viridis")
    monkeypatch.setattr(inspect, "open_screen", lambda *_, **__: Screen(80, height, paint))
    done = call("inspect", SENTENCE, "-m", minilm)
    taken = len(done.stdout.splitlines()) + len(done.stderr.splitlines()) + 1
    assert height - 2 <= taken <= height


@pytest.mark.parametrize(
    ("args", "name", "sign"),
    [
        (["--sort", "previous"], "previous", -1),
        (["--sort", "sink", "--reverse"], "sink", 1),
        (["--sort", "span"], "span", 1),
        (["--sort", "entropy", "--reverse"], "entropy", -1),
    ],
)
def test_the_order_of_heads(call: Run, args: list[str], name: str, sign: int) -> None:
    """As a column has it, largest shares and smallest entropies first, or the other way round."""
    found = measure_map(attnviz.capture(SENTENCE).maps[0])[name].ravel()
    names = [f"L{i // 6}H{i % 6}" for i in np.argsort(sign * found, kind="stable")]
    shown = lines(call, SENTENCE, *args, "--top", "all")
    assert [line.split()[0] for line in shown[2 : 2 + HEADS]] == names
    assert f"{'smallest' if sign == 1 else 'largest'} {name} first" in shown[-1]


def test_layer_and_head_as_order(call: Run) -> None:
    """From the first on, or from the last."""
    shown = lines(call, SENTENCE, "--sort", "head", "--top", "3")
    assert [line.split()[0] for line in shown[2:6]] == ["L0H0", "L0H1", "L0H2", "mean"]
    assert "3 of 18 heads, by layer and head" in shown[-1]
    shown = lines(call, SENTENCE, "--sort", "head", "--reverse", "-H", "L1H3,L0H2")
    assert [line.split()[0] for line in shown[2:4]] == ["L0H2", "L1H3"]


def test_undefined_numbers_are_empty(call: Run) -> None:
    """And come last in every order; they are null in JSON and nothing in CSV."""
    assert "next" not in lines(call, SENTENCE)[1].split()  # of a causal model, in no head
    found = document(call, "x", "-l", "0", "-H", "0")["heads"][0]["measures"]
    assert found["next"] == {"mean": None, "sd": None, "n": 0}
    rows = list(csv.DictReader(StringIO(call("inspect", "x", "-o", "-", "--format", "csv").stdout)))
    assert {row["next"] for row in rows} == {""}
    means = {name: np.array([np.nan, 1.0, np.nan, 3.0]) for name in COLUMNS}
    heads = HeadNumbers("x", ("a", "b", "c", "d"), means, means, ())
    for reverse, order in ((False, "dbac"), (True, "bdac")):
        table = draw_heads_table(heads, HeadOrder("sink", reverse), deviations=False)
        assert "".join(table.rows[:4]) == order
        assert np.isnan(table.levels[2:]).all()
        assert set(table.cells[2] + table.cells[3]) == {""}
        assert "empty: undefined" in table.caption[0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "share", ".00"),
        (0.999, "share", "1.00"),
        (-1e-17, "share", ".00"),
        (0.004, "nats", "0.00"),
        (9.994, "tokens", "9.99"),
        (9.996, "tokens", "10.0"),
        (99.96, "tokens", "100"),
        (1234.5, "tokens", "1234"),
        (float("nan"), "share", ""),
    ],
)
def test_numbers_take_four_columns(value: float, unit: str, text: str) -> None:
    """Three digits, of shares two; nothing where undefined."""
    assert format_measure(value, unit) == text


def test_explained_columns(call: Run) -> None:
    """Each with a line or two of definition and its source, without a text or a model."""
    done = call("inspect", "--explain-columns", "-m", "no-such-model")
    assert done.returncode == 0
    said = " ".join(done.stdout.split())
    for column in COLUMNS.values():
        assert f"{column.heading} {column.name}" in said
        assert f"{column.definition} [{column.source}]" in said
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_everything_is_in_files(call: Run, tmp_path: Path) -> None:
    """JSON, CSV, Markdown and figures hold every head, not only those of a screen, and the same bytes each time."""
    found = document(call, SENTENCE)
    expected = measure_map(attnviz.capture(SENTENCE).maps[0])
    assert [column["name"] for column in found["columns"]] == [*COLUMNS]
    assert {"definition", "source", "unit"} < found["columns"][0].keys()
    assert len(found["heads"]) == HEADS
    for head in found["heads"]:
        at = head["layer"], head["head"]
        for name, values in expected.items():
            value = None if np.isnan(values[at]) else pytest.approx(values[at])
            assert head["measures"][name]["mean"] == value
    for suffix in ("json", "csv", "md", "svg"):
        done = call("inspect", SENTENCE, "-o", f"x.{suffix}")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        again = call("inspect", SENTENCE, "-o", f"y.{suffix}")
        assert again.returncode == 0
        assert (tmp_path / f"x.{suffix}").read_bytes() == (tmp_path / f"y.{suffix}").read_bytes()
    assert json.loads((tmp_path / "x.json").read_text()) == found
    rows = list(csv.DictReader(StringIO((tmp_path / "x.csv").read_text())))
    assert len(rows) == HEADS
    assert [float(row["entropy"]) for row in rows] == pytest.approx(expected["entropy"].ravel())
    for suffix in ("md", "svg"):
        assert (tmp_path / f"x.{suffix}").read_text().count("L2H5") >= 1
    assert (
        call("inspect", SENTENCE, "-o", "x.png", "--title", "mine", "--dpi", "60").returncode == 0
    )
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > 100


# Several texts


def test_several_texts(call: Run, tmp_path: Path) -> None:
    """Mean and deviation of each head over the texts, as arguments, files or lines; the model is loaded once."""
    texts = "The cat sat on the mat.", "A dog ran away, and away, and away.", "Yes."
    (tmp_path / "a.txt").write_text(texts[0])
    (tmp_path / "bc.txt").write_text("\n\n".join(texts[1:]) + "\n")
    found = document(call, *texts)
    assert found["texts"] == [*texts]
    stacked = np.stack(
        [measure_map(attnviz.capture(text).maps[0])["entropy"].ravel() for text in texts]
    )
    entropies = [head["measures"]["entropy"] for head in found["heads"]]
    assert [one["mean"] for one in entropies] == pytest.approx(stacked.mean(0))
    assert [one["sd"] for one in entropies] == pytest.approx(stacked.std(0, ddof=1))
    assert {one["n"] for one in entropies} == {3}
    short = [head["measures"]["locality"]["n"] for head in found["heads"]]
    assert set(short) == {2}  # of three tokens none is farther away
    assert document(call, "@a.txt", "@bc.txt", "--lines") == found
    narrow, wide = (call("inspect", *texts, "--width", width).stdout for width in ("80", "160"))
    assert "3 texts of 3-" in narrow
    first = int(np.argmin(stacked.mean(0)))
    told = f"{stacked[:, first].mean():.2f}±{stacked[:, first].std(ddof=1):.2f}"
    assert told in narrow.splitlines()[2]
    assert narrow.splitlines()[2].count("±") == 1
    assert wide.splitlines()[2].count("±") == 11
    assert (
        "entropy_sd" in call("inspect", *texts, "-o", "-", "--format", "csv").stdout.splitlines()[0]
    )
    assert (
        "entropy_sd"
        not in call("inspect", texts[0], "-o", "-", "--format", "csv").stdout.splitlines()[0]
    )


def test_the_model_is_loaded_once(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts there are."""
    from attnviz import models

    loads: list[str] = []
    load = models.load_model

    def counting(name: str, **options: Any) -> Any:
        loads.append(name)
        return load(name, **options)

    monkeypatch.setattr(models, "load_model", counting)
    assert call("inspect", "one", "two", "three").returncode == 0
    assert loads == ["builtin"]


# Long texts


@pytest.fixture(scope="module")
def long_text() -> str:
    words = np.random.default_rng(0).choice(
        ["the", "cat", "sat", "on", "a", "mat", "and", "then"], 600
    )
    return " ".join(words)


def test_a_long_text_has_what_statistics_tell(call: Run, tiny: Tiny, long_text: str) -> None:
    """The same numbers as all weights give; the others are left out, and it is said how to have them."""
    folder = tiny("gpt2-4096")
    done = call("inspect", long_text, "-m", folder)
    assert "--full keeps all weights" in done.stderr
    assert done.stdout.splitlines()[1].split() == ["head", "entr", "span", "dist", "sink", "self"]
    assert "only statistics were kept" in done.stdout
    found = document(call, long_text, "-m", folder, "-q")
    whole = document(call, long_text, "-m", folder, "--full")
    for some, every in zip(found["heads"], whole["heads"], strict=True):
        for name in COLUMNS:
            mean = some["measures"][name]["mean"]
            assert mean is None or mean == pytest.approx(every["measures"][name]["mean"], rel=1e-4)
        assert {name for name in COLUMNS if some["measures"][name]["mean"] is not None} == {
            "entropy",
            "span",
            "distance",
            "sink",
            "self",
        }
        assert {name for name in COLUMNS if every["measures"][name]["mean"] is None} == {"next"}
    assert "only statistics" in found["notes"][0]


def test_a_token_of_a_long_text(call: Run, tiny: Tiny, long_text: str) -> None:
    """Weights of it alone are kept; the strongest are listed in the order of the text."""
    shown = lines(call, long_text, "-m", tiny("gpt2-4096"), "--token", "300", "--top", "5")
    places = [int(line.split()[0]) for line in shown[2:7]]
    assert places == sorted(places)
    assert "the 5 strongest of 601 tokens" in " ".join(shown)


# One token, one cell


def test_one_token_gives_and_gets(call: Run) -> None:
    """Means over all heads of its row and of its column, and the head with the most; a masked one is empty."""
    shown = lines(call, SENTENCE, "--token", "sat")
    weights = attnviz.capture(SENTENCE).maps[0].weights.astype(np.float64).reshape(HEADS, 12, 12)
    assert shown[0] == "builtin · token 3 sat · 18 heads"
    assert shown[1].split() == ["token", "gives", "most", "by", "gets", "most", "by"]
    row, column = weights[:, 3], weights[:, :, 3]
    best = int(row[:, 1].argmax())
    name = f"L{best // 6}H{best % 6}"
    assert shown[3].split() == [
        "1",
        "The",
        format_measure(row[:, 1].mean(), "share"),
        name,
        format_measure(row[:, 1].max(), "share"),
    ]
    assert shown[2 + 5].split()[2] == format_measure(column[:, 5].mean(), "share")
    assert "empty: masked" in shown[-2]
    found = document(call, SENTENCE, "--token", "sat")
    given = np.array([head["weights"][0] for head in found["gives"]["heads"]], float)
    np.testing.assert_allclose(given[:, :4], row[:, :4], rtol=1e-6)
    assert np.isnan(given[:, 4:]).all()
    assert found["gives"]["queries"][0] == {
        "place": 3,
        "text": "sat",
        "id": found["gives"]["queries"][0]["id"],
        "start": 8,
        "end": 11,
        "special": False,
    }
    rows = list(
        csv.DictReader(
            StringIO(call("inspect", SENTENCE, "--token", "3", "-o", "-", "--format", "csv").stdout)
        )
    )
    assert len(rows) == HEADS * 2 * 12
    assert [row["weight"] == "" for row in rows[:12]] == [False] * 4 + [True] * 8
    assert float(rows[1]["weight"]) == pytest.approx(row[0, 1], rel=1e-6)


def test_one_cell_in_all_heads(call: Run, minilm: Path, tmp_path: Path) -> None:
    """A row a layer, a column a head."""
    capture = attnviz.capture(SENTENCE, model=str(minilm))
    found = document(call, SENTENCE, "-m", minilm, "--query", "it", "--key", "cat")
    weights = [[head["layer"], head["head"], head["weights"][0][0]] for head in found["heads"]]
    expected = capture.maps[0].weights[:, :, 8, 2]
    assert [place[:2] for place in weights] == [[i, j] for i in range(6) for j in range(12)]
    np.testing.assert_allclose([value for _, _, value in weights], expected.ravel(), **close(384))
    shown = lines(call, SENTENCE, "-m", minilm, "--query", "it", "--key", "cat")
    assert shown[0].endswith("token 8 it to token 2 cat")
    assert shown[1].split() == [f"H{head}" for head in range(12)]
    assert [line.split()[0] for line in shown[2:8]] == [f"L{layer}" for layer in range(6)]
    assert (
        call("inspect", SENTENCE, "--query", "it", "--key", "cat", "-o", "cell.pdf").returncode == 0
    )
    assert (tmp_path / "cell.pdf").read_bytes().startswith(b"%PDF")


def test_a_masked_cell_is_said_to_be(call: Run) -> None:
    """It is null, not zero."""
    assert "masked in all of the 18 heads" in " ".join(
        lines(call, SENTENCE, "--query", "cat", "--key", "it")
    )
    heads = document(call, SENTENCE, "--query", "cat", "--key", "it")["heads"]
    assert {head["weights"][0][0] for head in heads} == {None}
    done = call("inspect", SENTENCE, "--query", "cat", "--key", "it", "-o", "-", "--format", "csv")
    assert done.stdout.splitlines()[:2] == [
        "kind,layer,head,query,query_token,key,key_token,weight",
        "self,0,0,2,cat,8,it,",
    ]


@pytest.mark.exact
def test_a_token_of_two_texts(call: Run, tiny: Tiny) -> None:
    """In cross-attention a token gives if it is of the target, and gets if it is of the text; both if it is of both."""
    args = "a b c", "-m", tiny("t5"), "--target", "c d", "--map", "cross"
    assert document(call, *args, "--token", "a").keys() & {"gives", "gets"} == {"gets"}
    assert document(call, *args, "--token", "d").keys() & {"gives", "gets"} == {"gives"}
    both = call("inspect", *args, "--token", "c", "--width", "80")
    assert both.stdout.count("most by") == 2
    assert call("inspect", *args, "--token", "c", "-o", "x.png").returncode == 0
    require_failure(call("inspect", *args, "--token", "z"), 2, "does not occur")


# Segments


def test_segments_of_a_file(call: Run, tmp_path: Path) -> None:
    """A row each, in the order of the file, with its share, the even share and the lift; every head in JSON and CSV."""
    (tmp_path / "parts.txt").write_text("0:11 who\n12:27 where\n")
    shown = lines(call, SENTENCE, "--segments", "parts.txt")
    assert shown[0] == "builtin · 2 segments · 18 heads"
    assert shown[1].split() == [
        "segment",
        "tokens",
        "each",
        "share",
        "even",
        "lift",
        "rest",
        "lift*",
        "most",
        "by",
    ]
    weights = attnviz.capture(SENTENCE).maps[0].weights.astype(np.float64).reshape(HEADS, 12, 12)
    share = weights[:, 4:, 1:4].sum(-1).mean()
    even = np.mean([3 / (q + 1) for q in range(4, 12)])
    assert shown[2].split()[:5] == [
        "who",
        "3",
        f"{share / 3:.4f}"[1:],
        format_measure(share, "share"),
        format_measure(even, "share"),
    ]
    assert shown[2].split()[5] == f"{share / even:.2f}"
    found = document(call, SENTENCE, "--segments", "parts.txt")
    assert found["segments"][1] == {"name": "where", "start": 12, "end": 27, "tokens": 4}
    assert len(found["shares"]) == 2 * HEADS
    assert np.mean(
        [one["share"] for one in found["shares"] if one["segment"] == "who"]
    ) == pytest.approx(share)
    rows = list(
        csv.DictReader(
            StringIO(
                call(
                    "inspect", SENTENCE, "--segments", "parts.txt", "-o", "-", "--format", "csv"
                ).stdout
            )
        )
    )
    assert [row["segment"] for row in rows[:2]] == ["who", "where"]
    assert float(rows[0]["baseline"]) == pytest.approx(even)


def test_segments_of_one_query(call: Run, tmp_path: Path) -> None:
    """What that query looks at, its own segment too."""
    (tmp_path / "parts.json").write_text(
        '[{"name": "who", "start": 0, "end": 11}, {"name": "rest", "start": 11, "end": 44}]'
    )
    found = document(call, SENTENCE, "--segments", "parts.json", "--query", "-1", "-H", "L1H3")
    weights = attnviz.capture(SENTENCE).maps[0].weights[1, 3, -1].astype(np.float64)
    assert [one["share"] for one in found["shares"]] == pytest.approx(
        [weights[1:4].sum(), weights[4:].sum()]
    )
    assert sum(one["rest_share"] for one in found["shares"]) == pytest.approx(1)
    assert (found["query"]["place"], found["query"]["text"]) == (11, ".")
    assert "token 11 ." in lines(call, SENTENCE, "--segments", "parts.json", "--query", "-1")[0]


def test_segments_by_themselves(call: Run, tiny: Tiny) -> None:
    """The messages of a chat, or else the paragraphs of a text; hostile names are shown, never obeyed."""
    chat = json.dumps(
        [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "and you"}]
    )
    shown = lines(call, chat, "-m", tiny("chat"), "--chat", "--segments", "auto", "--query", "-1")
    assert [line.split()[0] for line in shown[2:4]] == ["user", "assistant"]
    shown = lines(call, "one \x1b[31m two\n\nthe", "--segments", "auto")
    assert shown[2].startswith("paragraph 1 one \\x1b")
    assert shown[3].split() == ["paragraph", "2", "the", "1"]  # nothing comes after it


# Words, captures, encoder-decoders


def test_words_count_as_tokens(call: Run) -> None:
    """--words merges pieces first, and a token is a word then."""
    text = "Unbelievably, the tokenizer misbehaves."
    shown = lines(call, text, "--words")
    assert "8 words" in shown[0] or "7 words" in shown[0]
    assert document(call, text, "--words")["unit"] == "word"
    assert "Unbelievably" in lines(call, text, "--words", "--token", "Unbelievably")[0]


def test_a_saved_capture_is_measured_like_the_model(
    call: Run, tmp_path: Path, minilm: Path
) -> None:
    """Without loading the model."""
    attnviz.save(attnviz.capture(SENTENCE, model=str(minilm)), tmp_path / "run.attn")
    found = call("inspect", "--from", "run.attn").stdout
    assert found == call("inspect", SENTENCE, "-m", minilm).stdout
    assert call("inspect", "--from", "run.attn", "--token", "cat").returncode == 0


def test_numbers_from_elsewhere(call: Run, tmp_path: Path) -> None:
    """Arrays of weights are measured; named heads and causal masks are as they are read."""
    weights = np.tril(np.ones((2, 6, 6)))
    np.savez(tmp_path / "x.npz", weights=weights / weights.sum(-1, keepdims=True))
    found = document(call, "--from", "x.npz")["heads"]
    assert [head["measures"]["normalised"]["mean"] for head in found] == pytest.approx([1, 1])


def test_nothing_is_defined(call: Run, tmp_path: Path) -> None:
    """Of one query with one key, and of a segment that no other query sees: empty, null, and no fault."""
    np.savez(tmp_path / "one.npz", weights=np.ones((1, 1)))
    (tmp_path / "all.txt").write_text("0:9 all")
    assert "1 head, smallest entropy first; mean: of all 1; empty: undefined" in lines(
        call, "--from", "one.npz"
    )
    found = document(call, "--from", "one.npz")["heads"][0]["measures"]
    assert {one["mean"] for one in found.values()} == {None}
    assert lines(call, "some text", "--segments", "all.txt")[2].split() == ["all", "3"]
    shares = document(call, "some text", "--segments", "all.txt")["shares"]
    assert {one["share"] for one in shares} == {one["rest_lift"] for one in shares} == {None}
    for question in (["--from", "one.npz"], ["some text", "--segments", "all.txt"]):
        assert call("inspect", *question, "-o", "x.svg", "--force").returncode == 0


def test_maps_of_an_encoder_decoder(call: Run, tiny: Tiny) -> None:
    """Cross-attention unless --map chooses another; two texts have no distances."""
    found = document(call, "a b c d", "-m", tiny("t5"))
    assert {head["kind"] for head in found["heads"]} == {"cross"}
    assert found["heads"][0]["measures"]["distance"]["mean"] is None
    assert "cross-attention" in lines(call, "a b c d", "-m", tiny("t5"))[0]
    encoder = document(call, "a b c d", "-m", tiny("t5"), "--map", "encoder")["heads"]
    assert encoder[0]["measures"]["distance"]["mean"] > 0


# What is refused


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["x", "--sort", "entrpy"], 2, "entrpy"),
        (["x", "--top", "0"], 2, "write 20, or all"),
        (["x", "--top", "many"], 2, "write 20, or all"),
        (["x", "--token", "y"], 2, "does not occur"),
        (["x", "--token", "9"], 2, "token 9 does not exist"),
        (["x", "--query", "x"], 2, "--query needs --key"),
        (["x", "--key", "x"], 2, "--key needs --query"),
        (["x", "--query", "x", "--key", "z"], 2, "does not occur"),
        (["x", "--token", "x", "--segments", "auto"], 2, "two questions"),
        (["x", "--token", "x", "--query", "x", "--key", "x"], 2, "two questions"),
        (["x", "--token", "x", "--query", "x"], 2, "--query needs --key"),
        (["x", "--token", "x", "--sort", "sink"], 2, "--sort has no effect with --token"),
        (["x", "--segments", "auto", "--top", "3"], 2, "--top has no effect with --segments"),
        (["x", "y", "--token", "x"], 2, "--token is about one text, and here are 2"),
        (["x", "y", "--segments", "auto"], 2, "--segments is about one text"),
        (["x", "-l", "7"], 2, "layer 7 does not exist"),
        (["x", "-l", "0", "-H", "L0H0"], 2, "leave --layers out"),
        (["x", "-o", "x.npz"], 2, "not .npz"),
        (["x", "--json", "-o", "x.json"], 2, "leave -o and --format out"),
        (["x", "--from", "y.attn"], 2, "leave TEXT out"),
        (["--from", "none.attn"], 4, "none.attn"),
        (["--from", "nan.json"], 4, "nan.json"),
        (["--from", "edges.attn"], 4, "nothing to measure"),
        (["--from", "edges.attn", "--token", "0"], 4, "is read from weights"),
        ([""], 4, "the text is empty"),
        (["@empty.txt", "--lines"], 4, "empty"),
        (["x", "--segments", "none.txt"], 4, "none.txt"),
        (["x", "--segments", "auto"], 4, "--segments: the text is one paragraph"),
        (["x", "--segments", "bad.txt"], 4, "--segments: 'nonsense' is no segment"),
        (
            ["some text", "--segments", "outside.txt"],
            4,
            "lies outside the text, which has 9 characters",
        ),
        (["some text", "--segments", "overlap.txt"], 4, "overlap"),
        (["--from", "two.attn"], 4, "not of the same tokens"),
    ],
)
def test_what_is_refused(call: Run, tmp_path: Path, args: list[str], code: int, told: str) -> None:
    """One line that says what is wrong, and the exit code for it."""
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.txt").write_text("nonsense")
    (tmp_path / "outside.txt").write_text("0:99 all")
    (tmp_path / "overlap.txt").write_text("0:4 a\n3:8 b")
    (tmp_path / "nan.json").write_text('{"weights": [[NaN, 1], [0, 1]]}')
    attnviz.save(attnviz.capture("a text"), tmp_path / "y.attn")
    only_edges = attnviz.capture("a text", keep="edges").maps[0]
    bare = replace(only_edges.pick_heads([0], [0]), statistics=None)
    attnviz.save(Capture("x", "a text", (bare,)), tmp_path / "edges.attn")
    maps = make_map(np.full((2, 2), 0.5), "a b"), make_map(np.ones((1, 1)), "a", layers=(1,))
    attnviz.save(Capture("x", "a b", maps), tmp_path / "two.attn")
    require_failure(call("inspect", *args), code, told)


def test_a_text_of_no_tokens(call: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Is refused in one line."""
    folder = tmp_path / "none"
    shutil.copytree(tiny("gpt2"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    everything = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": ""}
    (folder / "tokenizer.json").write_text(
        json.dumps({**tokenizer, "normalizer": everything, "post_processor": None})
    )
    require_failure(call("inspect", "a text", "-m", folder), 4, "makes no tokens of this text")


def test_tokens_that_are_special_alone(call: Run, minilm: Path) -> None:
    """Are measured as any others; of what they leave nothing is known."""
    found = document(call, "\u200b", "-m", minilm)["heads"]
    assert {head["measures"]["distance_rest"]["mean"] for head in found} == {None}
    assert all(head["measures"]["sink"]["mean"] >= 0.5 for head in found)


def test_explanations_are_data_too(call: Run) -> None:
    """--explain-columns and --explain-roles print one document with --json."""
    columns = json.loads(call("inspect", "--explain-columns", "--json").stdout)["columns"]
    assert [column["name"] for column in columns] == [*COLUMNS]
    roles = json.loads(call("heads", "--explain-roles", "--json").stdout)["definitions"]
    assert roles["induction"]["threshold"] > 0


def test_units_are_words_where_words_are(call: Run) -> None:
    """Distances and spans of words are in words."""
    units = [
        {column["unit"] for column in document(call, "unbelievable tokenizers", *more)["columns"]}
        for more in ([], ["--words"])
    ]
    assert units == [{"nats", "tokens", "share"}, {"nats", "words", "share"}]


def test_rows_that_do_not_sum_to_one_are_told(call: Run, tmp_path: Path) -> None:
    """Numbers of rows that were made to sum to 1 say so."""
    np.savez(tmp_path / "x.npz", weights=np.array([[2.0, 0.0], [1.0, 3.0]]))
    assert "made to sum to 1" in call("inspect", "--from", "x.npz").stdout


def test_an_empty_segment_says_why(call: Run) -> None:
    """The last part of a text of a causal model is seen by no query outside it, which the caption says."""
    shown = call("inspect", "one two\nthree four", "--segments", "auto", "--width", "120").stdout
    assert "empty: no query outside it sees it" in shown


# From Python


@pytest.fixture(scope="module")
def source() -> CaptureSource:
    return partial(load_model("builtin").capture, Prompt(SENTENCE))


def same_as(result: Result, call: Run, *args: str) -> bool:
    """Whether a result makes the document and the lines that a command writes."""
    done = call("inspect", SENTENCE, *args, "--json")
    lines = call("inspect", SENTENCE, *args, "-o", "-", "--format", "csv")
    document = format_document_json(result.to_dict()).decode()
    return (document, format_rows_csv(result.rows()).decode()) == (done.stdout, lines.stdout)


def test_results_are_made_without_a_command(
    call: Run, tmp_path: Path, source: CaptureSource
) -> None:
    """Each question is a function of a source, and its result makes what the command writes."""
    (tmp_path / "parts.txt").write_text("0:11 who\n12:27 where\n")
    segments = [Segment("who", 0, 11), Segment("where", 12, 27)]
    heads = inspect_heads([source])
    token = inspect_token(source, TokenReference("it"))
    cell = inspect_cell(source, TokenReference("it"), TokenReference("cat"))
    shares = inspect_segments(source, segments)
    assert same_as(heads, call)
    assert same_as(token, call, "--token", "it")
    assert same_as(cell, call, "--query", "it", "--key", "cat")
    assert same_as(shares, call, "--segments", "parts.txt")
    assert [type(each) for result in (heads, token, shares) for each in result.tables()] == [
        Table
    ] * 3
    assert [type(each) for each in cell.tables()] == [Heatmap]
    assert len(heads.draw_table(HeadOrder("sink"), 3).rows) == 4
    assert len(token.draw_tables(5)[0].rows) == 5


def test_segments_of_a_text_that_has_none() -> None:
    """Segments that are given are taken; without them a text of one line has none."""
    capture = attnviz.capture(SENTENCE)
    segments = (Segment("who", 0, 11),)
    assert choose_segments(capture, segments) == segments
    with pytest.raises(ValueError, match="one paragraph of one line"):
        choose_segments(capture, None)
