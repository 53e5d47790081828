"""Data and files: what comes out can be read again to the last bit, and what cannot be written is told at once."""

import csv
import io
import json
import os
import pty
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import attnviz
from attnviz.errors import UsageError
from attnviz.io.csv_table import CSV_COLUMNS, format_csv
from attnviz.io.formats import format_json
from attnviz.record import FROM_ELSEWHERE, AttentionMap, Capture
from attnviz.render.html.gallery import GalleryEntry, render_gallery_html, render_gallery_markdown
from attnviz.render.markdown import render_markdown
from attnviz.views import make_heatmaps, make_query_heatmaps, make_strips
from tests.captures import make_capture, make_tokens
from tests.commands import require_failure
from tests.conftest import ROOT, SENTENCE, Run

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = (
    '=HYPERLINK("x")',
    "+1",
    "-1",
    "@SUM(A1)",
    "＝1",  # noqa: RUF001
    '"',
    "a,b",
    "a\nb",
    "a\r",
    "\r",
    "\0",
    "\x1b[2J",
    "\ud800",
    "\u202e",
    "x" * 10_000,
    "",
    " ",
    "'q",
    "|",
    "\\|",
    "\\",
    "`a`",
    "``` ",
    "*b*",
    "_c_",
    "~~d~~",
    "<img src=x onerror=alert(1)>",
    "</script>",
    "&lt;",
    "[l](http://x.y)",
    "![i](x)",
    "<http://x.y>",
    "http://x.y",
    "www.x.y",
    "a@b.cd",
    "# h",
    "- l",
    "+ l",
    "1. l",
    "---",
    "===",
    "> q",
    "    code",
    "$x^2$",
    ":cat:",
    "[^1]",
)


def capture_words(words: Sequence[str], seed: int = 0) -> Capture:
    """Two layers of two heads with small, large and zero weights, some cells masked."""
    n, random = len(words), np.random.default_rng(seed)
    visible = random.random((2, 2, n, n)) < 0.8
    weights = (
        np.where(visible, random.random((2, 2, n, n)) ** random.choice([1, 9, 99], (2, 2, n, n)), 0)
        / n
    )
    weights[0, 0, 0, 0] = visible[0, 0, 0, 0] * np.float32(1e-45)
    tokens = make_tokens(words, special=())
    return make_capture(weights, tokens, visible, layers=(3, 1), heads=(2, 0))


# CSV


def read_csv(data: bytes) -> list[dict[str, str]]:
    """As pandas and the csv module do."""
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def assert_same_weights(found: list[dict[str, str]], part: AttentionMap) -> None:
    """Each visible cell has its line, with exactly its weight, and no other cell has one."""
    cells = {
        (int(line["layer"]), int(line["head"]), int(line["query"]), int(line["key"])): np.float32(
            line["weight"]
        )
        for line in found
    }
    expected = {
        (part.layers[i], part.heads[j], part.query_places[q], part.key_places[k]): part.weights[
            i, j, q, k
        ]
        for i, j, q, k in np.argwhere(part.visible).tolist()
    }
    assert len(cells) == len(found)
    assert cells == expected


def test_csv_is_exact_and_harmless() -> None:
    """A line a weight, whatever the tokens hold: no line break or control character in one, and no formula."""
    capture = capture_words(HOSTILE)
    data = format_csv(capture)
    part, found = capture.maps[0], read_csv(data)
    assert tuple(found[0]) == CSV_COLUMNS
    assert data.count(b"\n") == len(found) + 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", data.decode())
    assert_same_weights(found, part)
    for line in found:
        assert not any(
            str(cell).startswith(("=", "+", "-", "@", "＝", "\t", "\r"))  # noqa: RUF001
            for cell in line.values()
        )
    said = {int(line["key"]): line["key_token"] for line in found}
    assert [said[i] for i in (0, 2, 5, 6, 7)] == ['\'=HYPERLINK("x")', "'-1", '"', "a,b", r"a\x0ab"]
    assert [said[i] for i in (10, 12)] == [r"\x00", r"\ud800"]
    assert max(map(len, said.values())) == 10_000
    assert {(line["kind"], line["units"]) for line in found} == {("self", "share of attention")}


@given(
    st.lists(st.text(st.characters(codec=None), max_size=6), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_csv_of_any_tokens(texts: list[str], seed: int) -> None:
    """Any text at all, lone surrogates too, and any weights."""
    capture = capture_words(texts, seed)
    assert_same_weights(read_csv(format_csv(capture)), capture.maps[0])


def test_csv_of_windows_given_and_merged_heads(capture: Capture) -> None:
    """Numbers are those of the whole text; a head that a file names is text too; weights without units say so."""
    part = capture.maps[0]
    window = replace(capture, maps=(part.window([1, 3], range(1, 3)),))
    places = {(line["query"], line["key"]) for line in read_csv(format_csv(window))}
    assert places == {("1", "1"), ("3", "1"), ("3", "2")}
    merged = replace(part.reduced("mean"), heads=("=1+1",), method=FROM_ELSEWHERE)
    found = read_csv(format_csv(replace(capture, maps=(merged,))))
    assert {(line["head"], line["units"]) for line in found} == {("'=1+1", "as given")}
    with pytest.raises(UsageError, match="this capture has none"):
        format_csv(replace(capture, maps=(replace(part, weights=None),)))


# Markdown


def document(text: str) -> list[tuple[str, str]]:
    """What a reader of Markdown makes of it: each heading, cell and line of a paragraph, as plain text."""
    found, inside = [], "p"
    for token in READER.parse(text):
        if token.nesting == 1:
            inside = token.tag
        assert token.type not in ("html_block", "code_block", "fence", "hr"), token
        assert token.tag in ("h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", ""), (
            token
        )
        if token.type == "inline":
            assert {child.type for child in token.children} <= {
                "text",
                "text_special",
                "hardbreak",
                "softbreak",
            }, token
            parts = "".join(
                "\n" if child.type.endswith("break") else child.content for child in token.children
            )
            found += [(inside, line) for line in parts.split("\n")]
    return found


def cells(text: str, tag: str) -> list[str]:
    return [said for kind, said in document(text) if kind == tag]


def as_shown(text: str) -> str:
    """White space at the ends of a cell, and a tab, are not shown."""
    return text.strip()


def test_markdown_is_read_as_it_was_written() -> None:
    """Names in the head, a row a query, weights to four digits, nothing where masked; no token becomes markup."""
    capture = capture_words(HOSTILE)
    drawn, part = make_heatmaps(capture)[1], capture.maps[0]
    text = render_markdown([drawn])
    names = [as_shown(f"{i} {label}") for i, label in enumerate(drawn.columns.labels)]
    assert cells(text, "th") == ["queries \\ keys", *names]
    body = np.array(cells(text, "td")).reshape(len(names), -1)
    assert body[:, 0].tolist() == names
    expected = np.where(part.visible[0, 1], np.vectorize("{:.4f}".format)(part.weights[0, 1]), "")
    np.testing.assert_array_equal(body[:, 1:], expected)
    assert cells(text, "h2") == [drawn.title]
    assert cells(text, "p") == [
        "Numbers are attention weights; nothing where masked.",
        *drawn.caption,
    ]


@given(st.lists(st.text(st.characters(codec=None), max_size=12), min_size=1, max_size=3), st.data())
def test_markdown_of_any_text(texts: list[str], data: st.DataObject) -> None:
    """Titles, tokens and notes of any signs come out as they went in."""
    note = data.draw(
        st.text(st.sampled_from("-+=.1 \\`*_#>|~[](){}<&a\n\t!$:/w@"), min_size=1, max_size=12)
    )
    capture = replace(capture_words(texts), notes=(note,), model=texts[0] or "m")
    drawn = make_heatmaps(capture)[0]
    text = render_markdown([drawn])
    names = [f"{i} {label}" for i, label in enumerate(drawn.columns.labels)]
    assert cells(text, "th")[1:] == [*map(as_shown, names)]
    assert cells(text, "h2") == [as_shown(drawn.title)]
    assert [line.strip() for line in cells(text, "p")[1:]] == [
        line.strip() for line in drawn.caption if line.strip()
    ]


def test_markdown_of_one_token(capture: Capture) -> None:
    """A row a token for the text, a row a head for one query in all of them; tiles say from where to where."""
    part = capture.maps[0]
    one = replace(capture, maps=(part.window([2], range(4)),))
    row = [f"{weight:.4f}" for weight in part.weights[0, 0, 2, :3]]
    found = cells(render_markdown(make_strips(one)[:1]), "td")
    assert found == ["0 <bos>", row[0], "1 the", row[1], "2 cat", row[2], "3 sat", ""]
    text = render_markdown(make_query_heatmaps(one))
    assert cells(text, "th") == ["heads \\ keys", "0 <bos>", "1 the", "2 cat", "3 sat"]
    assert cells(text, "td")[:5] == ["L0H0", *row, ""]
    tiles = attnviz.capture("the cat sat on", keep="tiles", tiles=2)
    assert cells(render_markdown(make_heatmaps(tiles)[:1]), "th") == [
        "queries \\ keys",
        "0 <bos> to 2",
        "3 sat to 4",
    ]


# The pages of a report


def evil_entry() -> GalleryEntry:
    commands = tuple(f"attnviz show {text}" for text in ("'a b'", "'`'", "'```` x'", "'</code>'"))
    return GalleryEntry(
        "</title><script>alert(1)</script> - ![x](y)",
        ("- </figure>", '" onerror="'),
        ("a b#?.png",),
        commands,
    )


def test_galleries_show_text_as_text() -> None:
    """A page holds no markup but its own; in Markdown, the commands stand in one fence, whatever they hold."""
    entry = evil_entry()
    page = render_gallery_html("<script>x", "0" * 64, [entry]).decode()
    tags = set(re.findall(r"<(/?\w+)", re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)))
    ours = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "main",
        "figure",
        "a",
        "img",
        "figcaption",
        "b",
        "br",
    }
    assert {tag.removeprefix("/") for tag in tags} <= ours
    assert page.count("<title>") == page.count("</title>") == page.count("</figure>") == 1
    assert 'src="a%20b%23%3F.png"' in page
    shown = unescape(re.sub("<[^>]*>", "", page))
    assert all(text in shown for text in (entry.title, *entry.caption))
    found = [
        (token.type, token.content)
        for token in READER.parse(render_gallery_markdown("# t", [entry]).decode())
        if token.content
    ]
    assert found[-1] == ("fence", "".join(f"{command}\n" for command in entry.commands))
    assert [kind for kind, _ in found] == ["inline"] * 5 + ["fence"]
    inline = [
        token
        for token in READER.parse(render_gallery_markdown("# t", [entry]).decode())
        if token.type == "inline"
    ]
    assert {child.type for child in inline[2].children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline[2].children) == entry.title
    (image,) = [child for child in inline[3].children if child.type == "image"]
    assert image.attrs["src"] == "a%20b%23%3F.png"
    assert not [child for child in inline[4].children if child.type.startswith(("html", "image"))]


# JSON, npz


def test_json_and_npz_say_what_they_hold(call: Run, tmp_path: Path) -> None:
    """Tokens, layers, heads, kind and units, for a window with the places of its tokens."""
    args = "show", SENTENCE, "-H", "0,2", "-l", "1", "--rows", "3:6"
    for form in ("json", "npz", "csv"):
        assert call(*args, "-o", f"x.{form}").returncode == 0
    part = json.loads((tmp_path / "x.json").read_text())["maps"][0]
    assert (part["kind"], part["units"], part["layers"], part["heads"]) == (
        "self",
        "share of attention",
        [1],
        [0, 2],
    )
    assert [token["text"] for token in part["queries"]] == ["sat", "on", "the"]
    assert part["query_places"] == [3, 4, 5]
    with np.load(tmp_path / "x.npz") as arrays:
        assert (str(arrays["kind"]), str(arrays["units"])) == ("self", "share of attention")
        assert arrays["query_places"].tolist() == [3, 4, 5]
        assert arrays["queries"].tolist() == ["sat", "on", "the"]
        assert (arrays["layers"].tolist(), arrays["heads"].tolist()) == ([1], [0, 2])
        assert_same_weights(
            read_csv((tmp_path / "x.csv").read_bytes()), attnviz.load(tmp_path / "x.json").maps[0]
        )
        np.testing.assert_array_equal(
            arrays["weights"], attnviz.load(tmp_path / "x.json").maps[0].weights
        )
    assert make_heatmaps(attnviz.load(tmp_path / "x.json"))[0].rows.numbers == (3, 4, 5)
    assert "queries 3-5 of 12" in call("show", "--from", "x.json").stdout
    assert attnviz.load(tmp_path / "x.npz").maps[0].heads == (0, 2)


def test_json_of_hostile_tokens_comes_back(tmp_path: Path) -> None:
    """Every token, lone surrogates too, from plain ASCII, with every weight."""
    capture = capture_words(HOSTILE)
    assert format_json(capture).isascii()
    for suffix in (".json", ".attn"):
        attnviz.save(capture, tmp_path / f"x{suffix}")
        found = attnviz.load(tmp_path / f"x{suffix}").maps[0]
        assert found.keys == capture.maps[0].keys
        np.testing.assert_array_equal(found.weights, capture.maps[0].weights)
        np.testing.assert_array_equal(found.visible, capture.maps[0].visible)


# stdout and files


def out(*args: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run attnviz with its stdout as bytes."""
    command = [sys.executable, "-m", "attnviz", *args]
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("form", ["csv", "npz", "md", "png"])
@pytest.mark.slow
def test_stdout_gets_what_a_file_would(form: str, call: Run, tmp_path: Path) -> None:
    """-o - --format X, --format X alone and -o FILE.X give the same bytes, nothing else, and each time the same."""
    assert call("show", SENTENCE, "-H", "L1H3", "-o", f"x.{form}").returncode == 0
    data = (tmp_path / f"x.{form}").read_bytes()
    done = out("show", SENTENCE, "-H", "L1H3", "-o", "-", "--format", form, "-q")
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", data)
    assert call("show", SENTENCE, "-H", "L1H3", "-o", f"y.{form}").returncode == 0
    assert (tmp_path / f"y.{form}").read_bytes() == data


def test_a_terminal_gets_no_binary_data() -> None:
    """A figure or an archive is refused where it would be shown as letters; text is not."""
    parent, child = pty.openpty()
    try:
        for form in ("png", "npz"):
            done = out("show", SENTENCE, "-o", "-", "--format", form, stdout=child)
            assert done.returncode == 2
            assert done.stderr.decode() == (
                f"error: a {form} is nothing for a terminal: name a file with -o, or redirect stdout\n"
            )
        assert (
            out("show", "hi", "-l", "0", "-H", "0", "--format", "csv", stdout=child).returncode == 0
        )
        assert os.read(parent, 1000).startswith(b"kind,layer,head,query")
    finally:
        os.close(parent)
        os.close(child)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["-o", "x.xls"], 2, ".png, .svg, .pdf, .html, .json, .csv, .npz, .md"),
        (["-o", "x"], 2, "--format"),
        (["-o", "-"], 2, "-o - needs --format"),
        (["-o", "x.csv", "--format", "xls"], 2, "'csv'"),
        (["-o", "x.csv", "--format", "pdf"], 2, "--format pdf contradicts the suffix of x.csv"),
        (["--pair", "caf\udce9"], 4, "the text of --pair is not UTF-8"),
        (["-o", "folder"], 5, "is a folder: name a file in it"),
        (["-o", "folder.csv"], 5, "is a folder: name a file in it"),
        (["-o", "folder.csv", "--force"], 5, "is a folder: name a file in it"),
        (["-o", "x.csv/"], 5, "x.csv/ is a folder"),
        (["-o", "mine.csv/x.csv"], 5, "mine.csv"),
        (["-o", "nowhere/x.csv"], 5, "the folder nowhere does not exist"),
        (["-o", "/proc/x.csv"], 5, "/proc"),
        (["-o", "mine.csv"], 5, "choose another name or add --force"),
        (["-o", f"{'x' * 300}.csv"], 5, "name too long"),
        (["-o", "x.csv", "--json"], 2, "leave -o and --format out"),
        (["--json", "--format", "md"], 2, "leave -o and --format out"),
        (["-o", "x.csv", "--style", "paper"], 2, "--style is for figures"),
        (["--inches", "3"], 2, "--inches is for figures"),
        (["-o", "x.csv", "--exact"], 2, "--exact is for pages"),
        (["-o", "x.npz", "-H", "L0H0,L1H1"], 2, "one map"),
        (["--width", "39"], 2, "40"),
        (["--view", "rows"], 2, "--view rows needs --token"),
        (["--view", "tokens"], 2, "--view tokens needs --token"),
        (["--token", "1"], 2, "--token needs --view tokens or --view rows"),
        (["--incoming"], 2, "--incoming is for --view tokens"),
        (["--view", "rows", "--incoming", "--token", "1"], 2, "--incoming is for --view tokens"),
        (["--view", "rows", "--token", "1", "--cols", "2:"], 2, "leave --rows and --cols out"),
        (["--view", "rows", "--token", " "], 2, "its number or by what it says"),
        (
            ["--view", "rows", "--token", "the"],
            2,
            "occurs 2 times, at 1, 5; choose one by its number",
        ),
        (
            ["--view", "tokens", "--token", "zebra"],
            2,
            "does not occur: here are 0 <bos>, 1 the, 2 cat",
        ),
        (
            ["--view", "tokens", "--incoming", "--token", "7"],
            2,
            "here are 7 tokens (0-6, or -7--1)",
        ),
        (
            ["--special", "drop", "--view", "rows", "--token", "0"],
            4,
            "there are only special tokens",
        ),
        (["--special", "all"], 2, "'renormalise'"),
        (["--rows", "9:"], 2, "--rows 9: holds no tokens: there are 7 (0-6)"),
        (["--range", "half"], 2, "'full'"),
    ],
)
def test_what_cannot_be_written_is_told_at_once(
    call: Run, tmp_path: Path, args: list[str], code: int, told: str
) -> None:
    """One line that says what is wrong and what is allowed, the right exit code, and no file."""
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.csv").write_text("mine")
    require_failure(call("show", "the cat sat on the mat", *args), code, told)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "folder.csv", "mine.csv"]
    assert (tmp_path / "mine.csv").read_text() == "mine"


@pytest.mark.parametrize("form", ["csv", "md"])
def test_a_full_disk_leaves_no_data(tmp_path: Path, form: str) -> None:
    """Half a table would be taken for a whole one: there is none at all."""
    done = subprocess.run(
        [sys.executable, "-m", "attnviz", "show", "@sample:article", "-o", f"x.{form}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    require_failure(done, 5, f"cannot write x.{form}: file too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["png", "svg", "pdf", "html", "csv", "md", "json"])
@pytest.mark.parametrize(
    "view",
    [
        ["heatmap", "--special", "drop"],
        ["rows", "--token", "cat", "--range", "full"],
        ["tokens", "--token", "-1", "--incoming", "--scale", "linear"],
        ["tokens", "--token", "it", "--special", "renormalise"],
    ],
    ids=lambda view: view[0],
)
def test_every_view_in_every_format(call: Run, tmp_path: Path, form: str, view: list[str]) -> None:
    """Each can be written, without a warning."""
    done = call("show", SENTENCE, "--view", *view, "-H", "L2H4", "-o", f"x.{form}")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / f"x.{form}").read_bytes()) > 100


def test_thumbnails_are_no_table_but_their_heads_are(call: Run) -> None:
    """As Markdown, a grid is a table a head."""
    done = call("show", "the cat", "--view", "grid", "-l", "0", "-o", "-", "--format", "md")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## builtin · layer 0 · head ") == 6


def test_a_title_is_text_everywhere(call: Run, tmp_path: Path) -> None:
    """What could steer a terminal, or is no XML, is written out."""
    title = "a\x1b[2J\0</title>"
    assert call("show", "hi", "--title", title).stdout.startswith("a\\x1b[2J\\x00</title>\n")
    for form in ("svg", "html", "md"):
        assert call("show", "hi", "--title", title, "-o", f"x.{form}").returncode == 0
        shown = (tmp_path / f"x.{form}").read_text("utf-8")
        assert not re.search("[\0\x1b]", shown)
    ET.parse(tmp_path / "x.svg")


def test_a_text_that_is_no_unicode_is_refused(call: Run) -> None:
    """An argument in another encoding is an input that cannot be used, not a fault."""
    require_failure(call("show", "caf\udce9"), 4, "the text is not UTF-8 (character 3)")


def test_a_refused_report_leaves_nothing(call: Run, tmp_path: Path) -> None:
    """Whether files could be written is found out without making folders."""
    require_failure(call("export", "", "-o", "a/b/c"), 4, "the text is empty")
    assert list(tmp_path.iterdir()) == []


def test_what_was_dropped_is_told(call: Run, tmp_path: Path) -> None:
    """The share of the special tokens stands in the caption, beside data on stderr."""
    part = attnviz.capture(SENTENCE).maps[0]
    share = f"{part.weights[2, :, 1:, 0].sum() / part.weights[2, :, 1:].sum():.0%}"
    drop = call("show", SENTENCE, "--special", "drop", "--width", "200", "-H", "all")
    assert f"without <bos>, which had {share} of the weight" in drop.stdout
    again = call("show", SENTENCE, "--special", "renormalise", "-H", "all", "-o", "x.npz")
    assert f"without <bos>, which had {share} of the weight, rows sum to 1 again" in again.stderr
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_allclose(arrays["weights"].sum(-1), 1, rtol=1e-6)
        assert arrays["key_places"].tolist() == list(range(1, 12))
