"""Every model type of the installed transformers, in numbers that may only get better: see ``tests.sweep``."""

import json
import re
import subprocess
import sys

import pytest

from scripts.architectures import PAGE, REFUSED_BEGIN, REFUSED_END, read_refused, refused_section
from tests.conftest import ROOT
from tests.sweep import CRASHED, EXACT, NOT_BUILDABLE, REFUSED, WRONG, Row
from tests.sweep_models import model_types

LEAST_EXACT = 535  # a few may not be built in time on a slow machine
MOST_REFUSED = 30
MOST_NOT_BUILDABLE = 255
MOST_UNNAMED = (
    3  # models that choose the largest of random scores may choose others on another processor
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Run the sweep as its command does, in a process of its own, which forks."""
    command = [sys.executable, "-m", "tests.sweep", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Row(*row) for row in json.loads(done.stdout)]


@pytest.mark.sweep
def test_every_model_type_is_exact_or_refused(rows: list[Row]) -> None:
    """No capture is wrong and none crashes; no fewer are exact, and no more refused or left out, than before."""
    assert [row.model_type for row in sorted(rows)] == sorted(model_types())
    by_outcome = {
        outcome: {row.model_type: row.line for row in rows if row.outcome == outcome}
        for outcome in (WRONG, CRASHED, REFUSED, NOT_BUILDABLE, EXACT)
    }
    assert by_outcome[WRONG] == {}
    assert by_outcome[CRASHED] == {}
    known = {name: without_numbers(line) for name, line in read_refused().items()}
    refused = {name: without_numbers(line) for name, line in by_outcome[REFUSED].items()}
    unnamed = [line for name, line in refused.items() if line != known.get(name)]
    assert len(unnamed) <= MOST_UNNAMED
    assert all("computes changes by" in line for line in unnamed)
    assert len(by_outcome[REFUSED]) <= MOST_REFUSED
    assert len(by_outcome[NOT_BUILDABLE]) <= MOST_NOT_BUILDABLE
    assert len(by_outcome[EXACT]) >= LEAST_EXACT


def without_numbers(line: str) -> str:
    """Return a line with a sign for each number, of which rounding may change some."""
    return re.sub(r"\d[\d.e+-]*", "#", line)


def test_the_page_lists_the_refused() -> None:
    """The model types that docs/architectures.md calls refused are those of the table, with the same lines."""
    page = PAGE.read_text("utf-8")
    assert page.split(REFUSED_BEGIN)[1].split(REFUSED_END)[0] == refused_section()
