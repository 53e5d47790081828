"""Print constraints for the oldest versions that pyproject.toml allows, for all it depends on but torch.

    python scripts/floors.py > floors.txt

Everything else is as in constraints.txt. torch stays as it is there, because a build of it takes gigabytes.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = "torch"
FLOOR = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9][0-9.]*)")
WITH_NUMPY = "pandas"  # of the tests, built for some versions of NumPy
PIN = re.compile(r"([A-Za-z0-9_.-]+)==")


def normalise(name: str) -> str:
    """Return the name of a package as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_floors() -> dict[str, str]:
    """Return the lowest version of each dependency of the package, by its name. Raise ValueError if one has none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    floors = {}
    tests = project["optional-dependencies"]["test"]
    optional = [requirement for requirement in tests if requirement.startswith(WITH_NUMPY)]
    for requirement in (*project["dependencies"], *optional):
        found = FLOOR.match(requirement)
        if found is None:
            raise ValueError(f"{requirement} names no lowest version")
        floors[normalise(found[1])] = found[2]
    del floors[KEPT]
    return floors


def constraints(floors: dict[str, str]) -> list[str]:
    """Return the lines of constraints.txt, with the floors in place of the versions there."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    others = [line for line in pins if (pin := PIN.match(line)) and normalise(pin[1]) not in floors]
    return [f"{name}=={version}" for name, version in floors.items()] + others


if __name__ == "__main__":
    print(*constraints(read_floors()), sep="\n")
