"""How the code reads: names that mean one thing, docstrings that stand alone."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "attnviz"
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
# Openings that ruff's D401 lets pass, and that say nothing without what stands above.
LEANING = re.compile(r"(The same|Those|Of |One of them|Some of them|As above|Likewise)\b|See ``")
ASKING = re.compile(r"(What|Whether|How|Where|Which)\b")
SHARED = {
    "__getattr__",  # the hook of Python
    "command",  # what each file of the command line calls its command
    # the public interface calls the experiment of the same name
    "attribute",
    "compare",
    "explain",
    "heads",
    "intervene",
    # one for each medium, registered for a drawable
    "draw",
    "draw_curves",
    "draw_grid",
    "draw_heatmap",
    "draw_series",
    "draw_strip",
    "draw_table",
}


def parse_package() -> dict[str, ast.Module]:
    """Parse every file of the package, by its path."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in paths}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Return the parsed files of the package."""
    return parse_package()


def shared_names(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return the functions and classes that several files define, with the files."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                homes[node.name].append(path)
    return {name: paths for name, paths in homes.items() if len(paths) > 1}


def opening_lines(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Yield where each docstring of a function stands, and its first line."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, FUNCTIONS):
                continue
            docstring = ast.get_docstring(node)
            if docstring:
                yield f"{path}:{node.lineno}", docstring.splitlines()[0]


def test_a_name_means_one_thing(trees: dict[str, ast.Module]) -> None:
    """No two files define a function or a class of the same name, but for those listed here."""
    assert {name: paths for name, paths in shared_names(trees).items() if name not in SHARED} == {}


def test_docstrings_lean_on_nothing(trees: dict[str, ast.Module]) -> None:
    """No docstring of a function begins with a word that points to another one."""
    assert [entry for entry in opening_lines(trees) if LEANING.match(entry[1])] == []


def test_docstrings_say_what_is_done(trees: dict[str, ast.Module]) -> None:
    """No docstring of a function begins with a question word: it says what is done, or what it is."""
    assert [entry for entry in opening_lines(trees) if ASKING.match(entry[1])] == []


def test_what_breaks_the_rules_is_found() -> None:
    """A name that is defined twice, and docstrings that lean or ask, are found."""
    tree = ast.parse('def one():\n    """Those."""\ndef two():\n    """Whether it is."""\n')
    other = ast.parse("def one(): pass\n")
    assert shared_names({"a": tree, "b": other}) == {"one": ["a", "b"]}
    lines = [line for _, line in opening_lines({"a": tree})]
    assert [bool(LEANING.match(line)) for line in lines] == [True, False]
    assert [bool(ASKING.match(line)) for line in lines] == [False, True]
