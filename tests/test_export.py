"""Reports: a folder of pictures and data, each of which the command beside it makes again."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from markdown_it import MarkdownIt

import attnviz
from attnviz.cli import export
from attnviz.cli.export import quote_word
from attnviz.record import Capture, Token
from tests.commands import require_failure
from tests.conftest import SENTENCE, Run, Tiny
from tests.work import keep_steps

WORDS = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat", "and"], 1300)
HOSTILE = "a 'q' \"d\" `b` ``` $HOME $(id) \\ !! *x* <b> | & ; #"


class Told(NamedTuple):
    """A command of index.md, as a shell gives it to the program."""

    arguments: tuple[str, ...]
    stdin: bytes


def commands(index: Path, folder: Path) -> list[Told]:
    """The commands in the fences of an index, read by a shell in a folder."""
    fences = [
        token.content for token in MarkdownIt().parse(index.read_text()) if token.type == "fence"
    ]
    assert fences
    said = (
        "attnviz() { printf '%s\\0' \"$@\"; printf '\\1\\0'; [ -t 0 ] || cat; printf '\\0\\2\\0'; }\n"
        + "".join(fences)
    )
    done = subprocess.run(
        ["bash", "-c", said],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=False,
    )
    assert done.stderr == b""
    found = []
    for entry in done.stdout.split(b"\0\2\0")[:-1]:
        arguments, stdin = entry.split(b"\0\1\0")
        found.append(Told(tuple(os.fsdecode(word) for word in arguments.split(b"\0")), stdin))
    return found


def assert_made_again(
    call: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "report"
) -> set[str]:
    """Each command, run where the report was made, writes the very bytes of the report. The names of the files."""
    report = folder / name
    told = commands(report / "index.md", folder)
    for arguments, stdin in told:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        done = call(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    written = {path.name for path in report.iterdir()} - {"index.html", "index.md", "text.txt"}
    made = {arguments[arguments.index("-o") + 1] for arguments, _ in told}
    assert made == written
    assert len(told) == len(written)
    for file in written:
        assert (folder / file).read_bytes() == (report / file).read_bytes(), file
        (folder / file).unlink()
    return written


@pytest.fixture
def report(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Make a report, and see that its commands make it again; the names of its files."""

    def report(*args: str | Path, stdin: str | None = None) -> set[str]:
        if stdin is not None:
            (tmp_path / "stdin").write_text(stdin, newline="")
            with (tmp_path / "stdin").open() as piped, monkeypatch.context() as patched:
                patched.setattr(sys, "stdin", piped)
                done = call("export", "-o", "report", *args)
        else:
            done = call("export", "-o", "report", *args)
        assert done.returncode == 0, done.stderr
        assert "look at report/index.html" in done.stderr
        return assert_made_again(call, tmp_path, monkeypatch)

    return report


# The commands of a report


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        HOSTILE,
        "@@home",
        "@sample:repeat",
        "@text.txt",
        "two\nlines\n\n",
        "tab\tand \x1b[2J\u202e",
        "cr\r\nlf",
        "\ufeffmark",
        "long " * 90,
        "猫 naïve",
    ],
)
def test_any_text_is_given_again(report: Run, tmp_path: Path, text: str) -> None:
    """As an argument, from a file or a sample, with all that a shell or a terminal would obey."""
    (tmp_path / "text.txt").write_text("the cat sat\n")
    assert report(text, "-l", "0", "-H", "0", "--formats", "json,md") == {
        "attention.json",
        "attention.md",
    }
    index = (tmp_path / "report" / "index.md").read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", index)
    assert len(index) < 1500


@pytest.mark.parametrize(
    "text", ["short", "- x", "-", "@home", "two\nlines", "\x1b[2J", "x " * 200, "a\0b"]
)
def test_a_text_that_was_piped_is_given_again(report: Run, tmp_path: Path, text: str) -> None:
    """A short one in the command; a long one, or one of several lines, is kept beside the pictures."""
    assert report("-l", "0", "-H", "0", "--formats", "json", stdin=text) == {"attention.json"}
    kept = tmp_path / "report" / "text.txt"
    assert kept.exists() == (text not in ("short", "- x", "@home"))
    assert not kept.exists() or kept.read_text() == f"{text}\n"


def test_a_text_that_looks_like_an_option(report: Run) -> None:
    """After --, as it was given."""
    assert report("-l", "0", "-H", "0", "--formats", "json", "--", "-o") == {"attention.json"}


CHOICES = [
    (["-H", "0"], {"grid", "L0H0", "L1H0", "L2H0"}),
    (["-l", "-2", "-H", "-2"], {"grid", "L1H4"}),
    (["-l", "-2", "-H", "-3", "--reduce", "max"], {"grid", "L1-max"}),
    (["-l", "2,0", "-H", "3"], {"grid", "L2H3", "L0H3"}),
    (["-H", "L1H3,L0H2"], {"grid", "L1H3", "L0H2"}),
    (["--reduce", "mean", "-l", "0-1"], {"grid", "L0-mean", "L1-mean"}),
    (["-l", "1", "-H", "4,0", "--reduce", "max"], {"grid", "L1-max"}),
    (["-H", "L-1H0,L0H5,L2H-1", "--reduce", "mean"], {"grid", "L2-mean", "L0-mean"}),
    (
        ["-l", "0", "-H", "0", "--special", "drop", "--range", "full", "--scale", "linear"],
        {"grid", "L0H0"},
    ),
    (
        ["-H", "L2H4", "--style", "paper", "--inches", "3.25", "--cmap", "magma", "--transparent"],
        {"grid", "L2H4"},
    ),
]


@pytest.mark.parametrize(
    ("args", "names"),
    CHOICES,
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
@pytest.mark.slow
def test_every_choice_is_made_again(report: Run, args: list[str], names: set[str]) -> None:
    """Each layer and head has a figure of its own with a name that tells which, and its command makes just that."""
    found = report(SENTENCE, *args, "--formats", "svg,html,csv,md")
    assert found == {
        *(f"{name}.svg" for name in names),
        *(f"attention.{form}" for form in ("html", "csv", "md")),
    }


def test_options_of_one_format_are_not_given_to_others(report: Run) -> None:
    """--dpi is no option of data, nor --exact of figures; an option's value may look like an option."""
    assert (
        len(
            report(
                SENTENCE, "-H", "L0H0", "--dpi", "50", "--exact", "--formats", "png,html,npz,json"
            )
        )
        == 5
    )


def test_a_report_of_a_file(report: Run, tmp_path: Path) -> None:
    """Of all of it, of a part, and of heads that were merged before."""
    capture = attnviz.capture(SENTENCE)
    attnviz.save(capture, tmp_path / "run.attn")
    assert len(report("--from", "run.attn", "-l", "0,2", "-H", "1", "--formats", "svg,json")) == 4
    (tmp_path / "report").rename(tmp_path / "before")
    attnviz.save(replace(capture, maps=(capture.maps[0].reduced("max"),)), tmp_path / "merged.attn")
    found = report(
        "--from",
        "merged.attn",
        "-l",
        "1",
        "--reduce",
        "mean",
        "--formats",
        "md,svg",
        "--special",
        "drop",
    )
    assert found == {"grid.svg", "L1-max.svg", "attention.md"}


@pytest.mark.slow
def test_a_report_of_an_encoder_decoder(report: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Each kind of map has its own files, and the page holds all; --map chooses one."""
    args = "a cat", "-m", tiny("bart"), "--target", "--exact", "-l", "0", "-H", "0"
    found = report(*args, "--formats", "svg,json,html")
    kinds = "encoder", "decoder", "cross"
    names = {
        f"{kind}-{name}" for kind in kinds for name in ("grid.svg", "L0H0.svg", "attention.json")
    }
    assert found == {*names, "attention.html"}
    (tmp_path / "report").rename(tmp_path / "before")
    assert report(*args, "--map", "cross", "--formats", "svg") == {"grid.svg", "L0H0.svg"}


def test_a_report_of_a_pair(report: Run, minilm: Path) -> None:
    """The second text is given again, also where it looks like an option or holds what a terminal would obey."""
    for pair in ("--style", "tab\there's \x1b[2J"):
        assert report(
            "a cat", "-m", minilm, "--pair", pair, "-H", "L5H3", "--formats", "md", "--force"
        )


@pytest.mark.slow
def test_a_report_of_a_long_text(report: Run, tiny: Tiny, tmp_path: Path) -> None:
    """In tiles as fine as each picture shows: thumbnails, figures and the page are those of `attnviz show`."""
    (tmp_path / "long.txt").write_text(" ".join(WORDS))
    found = report("@long.txt", "-m", tiny("gpt2-4096"), "-H", "L0H1,L2H3", "--formats", "png,html")
    assert found == {"grid.png", "L0H1.png", "L2H3.png", "attention.html"}


def test_commands_run_as_they_stand(tmp_path: Path) -> None:
    """Copied into a shell."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = ["-m", "attnviz", "export", "-l", "0", "-H", "0", "--formats", "json", "-o", "my report"]
    subprocess.run(
        [sys.executable, *run], input=b"two\nlines", cwd=tmp_path, check=True, capture_output=True
    )
    (fence,) = re.findall(
        "```sh\n(.*?)```", (tmp_path / "my report" / "index.md").read_text(), re.DOTALL
    )
    subprocess.run(
        ["bash", "-c", fence],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PATH": path},
        capture_output=True,
    )
    made = (tmp_path / "attention.json").read_bytes()
    assert made == (tmp_path / "my report" / "attention.json").read_bytes()
    assert json.loads(made)["text"] == "two\nlines"


@pytest.mark.parametrize("word", ["a b", "it's", "\x1b[2J", "\t'\\", "\udcff", "\u202e7", "\n", ""])
def test_a_shell_reads_what_was_quoted(word: str) -> None:
    """Anything, without a raw control character."""
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quote_word(word)}"], capture_output=True, check=True
    )
    assert done.stdout == os.fsencode(word)
    assert quote_word(word).isprintable()


# What is there already

SMALL = SENTENCE, "-o", "report", "-l", "0", "-H", "0-1", "--formats", "json,svg"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_report_is_the_same_bytes(call: Run, tmp_path: Path) -> None:
    """Wherever it is written, and however often; -q says nothing."""
    assert call("export", *SMALL).stderr == "wrote 4 files; look at report/index.html\n"
    assert call("export", *SMALL, "-o", "other/deep", "-q").stderr == ""
    assert files_of(tmp_path / "report") == files_of(tmp_path / "other" / "deep")


def test_what_is_there_is_kept(call: Run, tmp_path: Path) -> None:
    """A report goes on where it was; --force writes it anew."""
    call("export", *SMALL)
    whole = files_of(tmp_path / "report")
    (tmp_path / "report" / "L0H1.svg").unlink()
    (tmp_path / "report" / "L0H0.svg").write_text("mine")
    assert (
        call("export", *SMALL).stderr == "wrote 1 file, 3 were there; look at report/index.html\n"
    )
    assert files_of(tmp_path / "report") == {**whole, "L0H0.svg": b"mine"}
    assert call("export", *SMALL, "--force").stderr == "wrote 4 files; look at report/index.html\n"
    assert files_of(tmp_path / "report") == whole


def test_an_interrupted_report_goes_on(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C halfway: exit code 130, whole files only; again, and it is the report that it would have been."""
    call("export", *SMALL, "-o", "whole")
    write, written = export.write_whole, []

    def interrupted(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_whole", interrupted)
        done = call("export", *SMALL)
    assert (done.returncode, done.stderr.strip()) == (130, "error: interrupted")
    assert len(files_of(tmp_path / "report")) == 2 + 2
    assert (
        call("export", *SMALL).stderr == "wrote 2 files, 2 were there; look at report/index.html\n"
    )
    assert files_of(tmp_path / "report") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "other",
    [
        ["another text"],
        [SENTENCE, "--reduce", "mean"],
        [SENTENCE, "--reduce", "max"],
        [SENTENCE, "--scale", "linear"],
        [SENTENCE, "-H", "0"],
        [SENTENCE, "--formats", "json"],
        [SENTENCE, "--special", "drop"],
    ],
    ids=lambda args: " ".join(args),
)
def test_another_report_is_not_mixed_in(call: Run, tmp_path: Path, other: list[str]) -> None:
    """Pictures of the same name that would not be the same are refused, unless --force replaces them."""
    small = "export", "-o", "report", "-l", "0", "-H", "0-1", "--formats", "md,json"
    call(*small, SENTENCE)
    before = files_of(tmp_path / "report")
    args = *small, *other
    require_failure(
        call(*args),
        5,
        "report holds something else than this report; choose another folder or add --force",
    )
    assert files_of(tmp_path / "report") == before
    assert call(*args, "--force").returncode == 0
    assert files_of(tmp_path / "report") != before


def test_a_folder_of_something_else_is_refused(call: Run, tmp_path: Path) -> None:
    """With files, or with another page of that name; an empty folder is welcome."""
    for name in ("notes.txt", "index.html"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).write_text("mine")
        require_failure(
            call("export", *SMALL[:-1], "json", "-o", name[:4]), 5, "holds something else"
        )
        assert files_of(tmp_path / name[:4]) == {name: b"mine"}
    (tmp_path / "empty").mkdir()
    assert call("export", *SMALL[:-1], "json", "-o", "empty").returncode == 0


# What cannot be


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (
            [SENTENCE, "--formats", "png,bmp"],
            2,
            "'bmp' is no format: one of png, svg, pdf, html, json, csv, npz, md",
        ),
        ([SENTENCE, "--formats", ""], 2, "'' is no format"),
        ([SENTENCE, "-l", "3"], 2, "3 layers (0-2"),
        ([SENTENCE, "-l", "0", "-H", "L1H1"], 2, "leave --layers out"),
        ([SENTENCE, "--map", "cross"], 2, "no cross map here"),
        ([SENTENCE, "--style", "nowhere.mplstyle"], 2, "nowhere.mplstyle"),
        ([SENTENCE, "--style", "loud"], 2, "loud"),
        (
            [SENTENCE, "--formats", "json", "--dpi", "90"],
            2,
            "--dpi has no effect without png or svg or pdf",
        ),
        ([SENTENCE, "--formats", "png", "--exact"], 2, "--exact has no effect without html"),
        ([SENTENCE, "-H", "L0H0,L1H1", "--formats", "json,npz"], 2, "one map"),
        (
            ["--from", "tiles.attn", "--formats", "md,csv"],
            2,
            ".csv holds weights, and this capture has none",
        ),
        (["--from", "numbers.attn"], 4, "there is nothing to draw"),
        (["--from", "numbers.attn", "--formats", "json,html"], 4, "there is nothing to draw"),
        (["--from", "numbers.attn", "--formats", "json,npz"], 2, "npz"),
        (["--from", "tiles.attn", "--special", "drop"], 4, "special drop: "),
        (["--from", "tiles.attn", SENTENCE], 2, "leave TEXT out"),
        (["@no.txt"], 4, "no.txt"),
        (["<bos>", "--special", "drop", "-o", "mine/x"], 5, "mine"),
        ([SENTENCE, "-o", "mine"], 5, "mine is a file; a report needs a folder"),
        ([SENTENCE, "-o", "/proc/report"], 5, "/proc/report"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_in_time(
    call: Run, tmp_path: Path, args: list[str], code: int, told: str
) -> None:
    """One line, its exit code, and nothing is written: half a report would look like a whole one."""
    (tmp_path / "mine").write_text("mine")
    attnviz.save(attnviz.capture("a cat", keep="tiles", tiles=2), tmp_path / "tiles.attn")
    attnviz.save(attnviz.capture("a cat", keep="statistics"), tmp_path / "numbers.attn")
    before = files_of(tmp_path)
    require_failure(call("export", "-o", "report", *args), code, told)
    assert files_of(tmp_path) == before


def test_a_full_disk_leaves_whole_files_only(tmp_path: Path) -> None:
    """Exit code 5; what was written can be read, and with room again the report goes on."""
    command = [sys.executable, "-m", "attnviz", "export", *SMALL[:-2], "--formats", "csv,json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000)),
    )
    require_failure(done, 5, "cannot write report/attention.csv: file too large")
    assert {*files_of(tmp_path / "report")} == {"index.html", "index.md"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stderr == "wrote 2 files; look at report/index.html\n"


def test_files_are_counted_as_they_are_drawn(tmp_path: Path) -> None:
    """One of each format first, which is tried, and then each file that was missing."""
    with keep_steps() as history:
        args = [SENTENCE, "-H", "L0H0,L0H1", "--formats", "json,csv", "-o"]
        export.command.main([*args, str(tmp_path / "report")], standalone_mode=False)
    assert history.find("drawing") == [("format", 2, 2), ("file", 2, 2)]


# Hostile captures


def test_names_from_a_file_stay_in_the_folder(call: Run, tmp_path: Path) -> None:
    """A head, a model, notes and tokens that want to be paths or markup are names and text."""
    evil = '../../x</title><script>alert(1)</script>"\x1b[2J\n- ![i](y)'
    capture = attnviz.capture("a cat", layers="0")
    tokens = tuple(Token(evil, i, 0, 0, False) for i in range(3))
    part = replace(capture.maps[0].reduced("mean"), heads=(evil,), queries=tokens, keys=tokens)
    attnviz.save(Capture(evil, evil, (part,), (evil,)), tmp_path / "run.attn")
    done = call(
        "export", "--from", "run.attn", "--formats", "svg,html,md,csv,json", "-o", "a/report"
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a", "run.attn"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"report"}
    found = files_of(tmp_path / "a" / "report")
    assert len(found) == 8
    for name, data in found.items():
        assert re.fullmatch(r"[\w.-]+", name)
        assert b"\x1b" not in data, name
        assert b"<script>alert" not in data or name.endswith((".csv", ".json")), name
    index = MarkdownIt("commonmark", {"html": True}).parse(found["index.md"].decode())
    kinds = {child.type for token in index for child in token.children or ()}
    assert not any(kind.startswith("html") for kind in kinds)
    shown = [
        child.attrs["src"]
        for token in index
        for child in token.children or ()
        if child.type == "image"
    ]
    assert {*shown} <= {*found}


def test_the_gallery_shows_every_picture_with_its_caption(call: Run, tmp_path: Path) -> None:
    """Pictures, links to each format, title and caption, in HTML and in Markdown; nothing from elsewhere."""
    call("export", SENTENCE, "-o", "report", "-H", "L2H4,L0H3", "--formats", "png,svg,csv,html")
    html, text = ((tmp_path / "report" / name).read_text() for name in ("index.html", "index.md"))
    for name in ("grid", "L2H4", "L0H3"):
        assert f'<img src="{name}.svg"' in html
        assert f"]({name}.svg)\n" in text
        assert f'href="{name}.png"' in html
    for name in ("attention.csv", "attention.html"):
        assert f'href="{name}"' in html
        assert f"[{name}]({name})" in text
    for told in (
        "builtin · layer 2 · head 4",
        "of the weight is on the sink &lt;bos&gt;",
        "everything: self-attention",
    ):
        assert told in html
    assert not re.search("https?:|//", html)
