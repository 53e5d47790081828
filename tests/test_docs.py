"""The README keeps its word: its fences, its examples, its pictures."""

import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.conftest import ROOT, Run
from tests.training_runs import plant_training_run

README, PAGE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/attention.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCES = FENCE.findall(README)


def test_the_first_two_fences_set_up() -> None:
    """One line that installs and draws, one line that installs and tests; .ci/run runs both."""
    assert [kind for kind, _ in FENCES[:2]] == ["sh", "sh"]
    draw, test = (text.splitlines() for _, text in FENCES[:2])
    assert len(draw) == len(test) == 1
    assert "pip install -c constraints.txt -e . && .venv/bin/attnviz show" in draw[0]
    assert test[0].endswith(
        "pip install -c constraints.txt -e '.[test]' && .venv/bin/python -m pytest -q"
    )
    assert "fence 1" in (ROOT / ".ci" / "run").read_text()
    assert "fence 2" in (ROOT / ".ci" / "run").read_text()


def test_every_install_takes_tested_versions() -> None:
    """README, CONTRIBUTING and .ci/run install with constraints, which name all that pyproject.toml asks for."""
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        installs = re.findall(r"pip\"? install .*", (ROOT / name).read_text("utf-8"))
        assert installs
        for install in installs:
            assert "-c constraints.txt" in install or '-c "$work/floors.txt"' in install, (
                name,
                install,
            )
    pins = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE
        )
    )
    pinned = {canonicalize_name(package): version for package, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in map(
        Requirement, chain(project["dependencies"], *project["optional-dependencies"].values())
    ):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), (
            requirement
        )


def test_the_oldest_versions_are_those_of_the_project() -> None:
    """scripts/floors.py puts the lowest allowed version of each dependency in place of the tested one, but of torch."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "floors.py"], capture_output=True, text=True, check=True
    )
    oldest = dict(line.split("==") for line in done.stdout.splitlines())
    tested = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name == "torch":
            assert f"torch=={oldest['torch']}" in tested
        else:
            assert f">={oldest[requirement.name]}" in map(str, requirement.specifier)


def test_the_drawn_sample_is_there() -> None:
    """The file that the first command draws is in the checkout."""
    path = re.search(r"@(sample_texts/\S+)", FENCES[0][1])[1]
    assert (ROOT / path).is_file()


def console_lines(fences: list[tuple[str, str]]) -> list[str]:
    """Return the command lines of fences."""
    return [line[2:] for kind, text in fences if kind == "console" for line in text.splitlines()]


EVERY = [*FENCES, *FENCE.findall(PAGE)]
CONSOLE = [
    *console_lines(FENCES),
    *(pytest.param(line, marks=pytest.mark.slow) for line in console_lines(FENCE.findall(PAGE))),
]


IN_PROCESSES = (
    "attnviz show",
    "attnviz show -m bert-base some text",
    "attnviz show --view grid @sample:pronoun",
    "attnviz models",
)


@pytest.mark.usefixtures("hub_cache", "small_steps")
@pytest.mark.parametrize("line", CONSOLE)
def test_console_lines_run(line: str, call: Run, run: Run, tmp_path: Path) -> None:
    """Each command line of the README and of the page works, with small stand-ins for downloads and corpora.

    A few are processes of their own, as they are for a reader; the others run here, where the libraries are loaded.
    """
    (tmp_path / "prompt.txt").write_text("a prompt")
    (tmp_path / "notes.txt").write_text(
        "\n\n".join(["some words to learn, one after the other"] * 60)
    )
    command = shlex.split(line.rsplit("attnviz ", 1)[1], comments=True)
    if "--from" in command:
        call("capture", "some text", "-o", "run.attn")
    if "--curves" in command:
        plant_training_run(tmp_path / "my-model")
    if command[0] == "train" and "--curves" not in command:
        command += ["--steps", "1"]
    if "--ablate" in command and command[0] == "heads":
        command += ["--sequences", "2"]
    if shlex.join(["attnviz", *command]).replace("'", "") in IN_PROCESSES:
        done = run(*command, stdin="a prompt" if line.startswith("cat ") else None)
    else:
        done = call(*command)
    assert done.returncode == 0, done.stderr
    made = "figure.png", "figure.pdf", "page.html", "report", "my-model", "run.attn", "long.attn"
    assert done.stdout or any((tmp_path / name).exists() for name in made)


def test_some_console_lines_are_processes() -> None:
    """Each of the lines that are run as processes is there."""
    lines = {" ".join(shlex.split(line, comments=True)) for line in console_lines(EVERY)}
    assert {*IN_PROCESSES[1:], f"cat prompt.txt | {IN_PROCESSES[0]}"} <= lines


def test_python_fences_run(tmp_path: Path) -> None:
    """The Python examples run one after the other."""
    code = "\n".join(text for kind, text in FENCES if kind == "python")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, env=os.environ, cwd=tmp_path
    )


def test_pictures_and_links_are_there() -> None:
    """Every picture and every link to a file or a heading leads somewhere; pictures load nothing from elsewhere."""
    for text, folder in ((README, ROOT), (PAGE, ROOT / "docs")):
        titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
        headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        targets = [
            target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")
        ]
        assert len(targets) >= 5
        for target in targets:
            assert (
                target[1:] in headings if target.startswith("#") else (folder / target).exists()
            ), target
    for picture in (ROOT / "docs").glob("*.svg"):
        urls = set(re.findall(r"https?://[^\s\"')]+", picture.read_text("utf-8")))
        assert urls <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }  # the names of the format


PICTURES = sorted(path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".svg"))


def require_drawn(image: Image.Image) -> None:
    """See that the middle of a picture is in colour, and in more than one; text and lines are grey."""
    width, height = image.size
    middle = image.convert("RGB").crop((width // 6, height // 6, width * 5 // 6, height * 5 // 6))
    pixels = np.asarray(middle).reshape(-1, 3).astype(int)
    in_colour = pixels[np.ptp(pixels, axis=1) > 40]
    colours = {tuple(colour) for colour in in_colour // 32}
    assert len(in_colour) > 0.001 * len(pixels)
    assert len(colours) > 1


def test_a_blank_picture_is_noticed() -> None:
    """White, one colour alone, and grey text on white are no drawing."""
    grey_text = Image.new("RGB", (60, 60), "white")
    grey_text.paste((90, 100, 110), (10, 25, 50, 35))
    for blank in (
        Image.new("RGB", (60, 60), "white"),
        Image.new("RGB", (60, 60), "purple"),
        grey_text,
    ):
        with pytest.raises(AssertionError):
            require_drawn(blank)


@pytest.mark.parametrize(
    "path", [path for path in PICTURES if path.suffix == ".png"], ids=lambda path: path.name
)
def test_screenshots_are_drawn(path: Path) -> None:
    """Where the drawing should be there is one: the page had decoded its data when its picture was taken."""
    with Image.open(path) as image:
        require_drawn(image)


@pytest.mark.browser
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_are_drawn(path: Path, chromium: Any) -> None:
    """Every picture of the README and of docs/ shows something in colour when a browser opens it."""
    tab = chromium.new_page()
    try:
        tab.goto(path.as_uri())
        require_drawn(Image.open(io.BytesIO(tab.screenshot())))
    finally:
        tab.close()


def test_no_machine_is_named() -> None:
    """Nothing that is shipped names a folder of the machine it was made on."""
    for path in [
        *(ROOT / "docs").iterdir(),
        ROOT / "README.md",
        *(ROOT / "attnviz" / "lm" / "builtin").iterdir(),
    ]:
        if path.suffix in (".svg", ".md", ".json"):
            assert not re.search(r"/(tmp|root|home|work)/", path.read_text("utf-8")), path
