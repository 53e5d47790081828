"""The rules of the house: which part may import which, and what the package offers to others."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = "attnviz"

# What the modules of a room, or a module at the top, may import of ours. A room may always import itself.
RECORD = {"errors", "escape", "record", "selection", "request"}
CAPTURES = RECORD | {"methods", "derived"}
DRAWING = {"errors", "escape", "drawable"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "record": set(),
    "progress": set(),
    "drawable": set(),
    "escape": {"errors"},
    "temporary": set(),
    "layer": set(),
    "selection": {"errors", "escape", "record"},
    "request": RECORD,
    "methods": {"record"},
    "derived": CAPTURES | {"analysis"},
    "analysis": RECORD | {"methods", "layer"},
    "io": CAPTURES | {"analysis", "temporary"},
    "lm": RECORD | {"analysis", "io", "layer", "progress"},
    "engine": RECORD | {"analysis", "layer", "progress"},
    "models": CAPTURES | {"analysis", "engine", "io", "layer", "lm", "progress", "temporary"},
    "views": CAPTURES | {"analysis", "drawable"},
    "results": CAPTURES | {"analysis", "drawable", "io", "views"},
    "experiments": CAPTURES | {"analysis", "io", "layer", "lm", "models", "progress", "results"},
    "render": DRAWING | {"temporary"},
    "api": CAPTURES | {"analysis", "experiments", "io", "models", "results"},
    "notebook": CAPTURES | DRAWING | {"io", "render", "results", "views"},
    "": {"api", "io", "notebook"},
    "__main__": {"cli"},
    "cli": CAPTURES
    | DRAWING
    | {
        "analysis",
        "experiments",
        "io",
        "layer",
        "lm",
        "models",
        "progress",
        "render",
        "results",
        "views",
    },
}
HEAVY = {
    "torch": {"layer", "lm", "engine", "models", "experiments"},
    "transformers": {"models"},
    "matplotlib": {"render"},
}
EXCEPTIONS = {("attnviz.record", "attnviz.io.formats")}
"""Capture.save, which goes with the next version."""

Modules = Mapping[str, str]
"""The source of each module, by its name."""


def read_package(root: Path, package: str = PACKAGE) -> dict[str, str]:
    """Read the source of every module of a package in a folder."""
    modules = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    return modules


def type_checking_nodes(tree: ast.Module) -> set[ast.AST]:
    """Return all nodes that only a type checker reads."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {node for block in blocks for node in ast.walk(block)}


def imported_names(source: str) -> Iterator[str]:
    """Yield the full name of all that a module imports, wherever in it, but not for the type checker alone."""
    tree = ast.parse(source)
    unread = type_checking_nodes(tree)
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(modules: Modules) -> dict[str, set[str]]:
    """Return the modules of ours that each module imports, without those that are an exception."""
    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        names = [name for name in imported_names(source) if name.split(".")[0] == PACKAGE]
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        found[module] = {target for target in targets if (module, target) not in EXCEPTIONS}
    return found


def room_of(module: str) -> str:
    """Return the room that a module is in; a module at the top is one of its own."""
    return module.split(".")[1] if "." in module else ""


def forbidden_imports(modules: Modules) -> list[str]:
    """List the imports that the rules do not allow."""
    found = []
    for module, targets in own_imports(modules).items():
        room = room_of(module)
        others = {room_of(target): target for target in targets if room_of(target) != room}
        found += [
            f"{module} imports {others[other]}" for other in others if other not in ALLOWED[room]
        ]
    return found


def cycle(modules: Modules) -> list[str]:
    """Return modules that import each other in a circle, in their order; an empty list where there are none."""
    imports = own_imports(modules)
    finished: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for target in sorted(imports.get(module, ())):
            if target != module and (circle := search(target, [*path, module])):
                return circle
        finished.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := search(module, []))), [])


def misplaced_libraries(modules: Modules) -> list[str]:
    """List the imports of heavy libraries in rooms that are to do without."""
    found = []
    for module, source in modules.items():
        used = {name.split(".")[0] for name in imported_names(source)}
        found += [
            f"{module} imports {name}"
            for name in used & set(HEAVY)
            if room_of(module) not in HEAVY[name]
        ]
    return found


def imported_tests(modules: Modules) -> list[str]:
    """List the imports of test files, or of names in them."""
    return [
        f"{module} imports {name}"
        for module, source in modules.items()
        for name in imported_names(source)
        if any(part.startswith("test_") for part in name.split("."))
    ]


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    """Return the source of every module of the package."""
    return read_package(ROOT)


def test_imports_follow_the_flow(modules: dict[str, str]) -> None:
    """No module imports one that lies behind it in the flow of data."""
    assert forbidden_imports(modules) == []


def test_there_is_no_cycle(modules: dict[str, str]) -> None:
    """No modules import each other in a circle, imports inside functions counted."""
    assert cycle(modules) == []


def test_heavy_libraries_stay_in_their_rooms(modules: dict[str, str]) -> None:
    """torch, transformers and matplotlib are imported where they are needed only."""
    assert misplaced_libraries(modules) == []


def test_no_file_imports_a_test_file() -> None:
    """What several test files use stands in a module of its own, named by what it holds."""
    assert imported_tests(read_package(ROOT, "tests")) == []


def test_every_room_has_a_rule(modules: dict[str, str]) -> None:
    """A new room gets a rule, and no rule is left of one that is gone."""
    assert {room_of(module) for module in modules} == set(ALLOWED)


def test_exceptions_are_needed(modules: dict[str, str]) -> None:
    """An exception that is no import any more goes."""
    for module, target in EXCEPTIONS:
        assert any(name.startswith(target) for name in imported_names(modules[module])), (
            module,
            target,
        )


@pytest.mark.parametrize(
    ("module", "target"),
    [
        (f"attnviz.{room}", f"attnviz.{other}")
        for room in ALLOWED
        if room not in ("", "__main__")
        for other in ALLOWED
        if other not in ("", "__main__", room) and other not in ALLOWED[room]
    ],
)
def test_a_planted_import_is_found(module: str, target: str) -> None:
    """Each import that a rule forbids is found, in a function too."""
    planted = {f"{module}.planted": f"def run():\n    from {target} import planted\n"}
    assert forbidden_imports(planted) == [f"{module}.planted imports {target}"]


def test_a_planted_circle_is_found() -> None:
    """Two modules that import each other inside functions are a circle."""
    one = "def run():\n    from attnviz.views.planted_b import value\n"
    other = "def run():\n    from attnviz.views import planted_a\n"
    planted = {"attnviz.views.planted_a": one, "attnviz.views.planted_b": other}
    assert cycle(planted) == [
        "attnviz.views.planted_a",
        "attnviz.views.planted_b",
        "attnviz.views.planted_a",
    ]


@pytest.mark.parametrize("name", HEAVY)
def test_a_planted_library_is_found(name: str) -> None:
    """A heavy library in a view is found."""
    assert misplaced_libraries({"attnviz.views.planted": f"import {name}\n"})


@pytest.mark.parametrize(
    "line",
    [
        "from tests.test_planted import value",
        "from tests import test_planted",
        "import tests.test_planted",
        "from .test_planted import value",
        "from . import test_planted",
    ],
)
def test_a_planted_import_of_a_test_file_is_found(line: str) -> None:
    """However it is written, and in a function too."""
    (found,) = imported_tests({"tests.helpers": f"def run():\n    {line}\n"})
    assert found.startswith("tests.helpers imports ")
    assert "test_planted" in found


def test_what_only_a_type_checker_reads_is_no_import() -> None:
    """A block for the type checker makes no circle."""
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from attnviz.cli import main\n"
    )
    assert list(imported_names(source)) == ["typing.TYPE_CHECKING"]
