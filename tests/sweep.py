"""The sweep: every model type of the installed transformers, built small, read by attnviz and compared.

    python -m tests.sweep [--json] [TYPE ...]

prints how many types have each outcome, then a row for each type. Each has one outcome:

- exact: all layers and heads are within 1e-5 of what the library says (``tests.sweep_oracle``)
- refused: attnviz says in one line why it shows nothing
- not buildable here: no small model of this type runs, or the library computes no attention in it
- wrong: what is shown differs
- crashed: attnviz ends otherwise, or takes too long

Each type has a process of its own, with a limit of memory and of time.
"""

import argparse
import copy
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers

import attnviz
from attnviz.errors import AttnvizError
from tests.sweep_inputs import Inputs, candidate_inputs
from tests.sweep_models import (
    build,
    config_class,
    count_parameters,
    model_classes,
    model_types,
    small_configs,
)
from tests.sweep_oracle import NoOracleError, Softmaxes, ask_library, compare_capture, run_model

EXACT, REFUSED, NOT_BUILDABLE, WRONG, CRASHED = (
    "exact",
    "refused",
    "not buildable here",
    "wrong",
    "crashed",
)
OUTCOMES = WRONG, CRASHED, REFUSED, NOT_BUILDABLE, EXACT
NOISES = (
    0.17,
    0.5,
    0.05,
    0.02,
)  # the first that makes attention neither uniform nor too steep for float32
LARGEST_SCORE = 15.0
LEAST_SPREAD = 0.1
MOST_PARAMETERS = 40_000_000
MOST_CLASSES = 3
MOST_TRIES = 24  # runs of small models that may fail before a type counts as not buildable
SEARCH_SECONDS = 5.0  # of the processor, for the same
BUILD_SECONDS = 30.0  # of the clock, until there is a small model and an oracle
SECONDS = 60.0  # of the clock, for all
MEMORY = 12 << 30
LONGEST_LINE = 200


class Row(NamedTuple):
    """What came of a model type."""

    model_type: str
    outcome: str
    line: str


@dataclass
class Subject:
    """A small model and inputs that it reads."""

    model: Any
    inputs: Inputs

    @property
    def name(self) -> str:
        """The model's class and the names of its inputs."""
        return f"{type(self.model).__name__}({', '.join(self.inputs)})"


class NotBuildableError(Exception):
    """No small model of a type runs here."""


class Search:
    """Looks for a small model of a type that runs, and keeps why others did not."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.failures: list[str] = []
        self.tries = 0
        self.start = time.process_time()

    def find(self) -> Subject:
        """Return a model and inputs. Raises NotBuildableError."""
        try:
            config = config_class(self.model_type)
            classes = model_classes(config)[:MOST_CLASSES]
        except ImportError as error:
            raise NotBuildableError(first_line(error)) from error
        if not classes:
            raise NotBuildableError("the library has no model with this config")
        for small in small_configs(config):
            if isinstance(small, Exception):
                self.failures.append(f"{config.__name__}: {first_line(small)}")
                continue
            for model_class in classes:
                subject = self.try_class(model_class, small)
                if subject is not None:
                    return subject
        raise NotBuildableError(next(iter(self.failures), "no inputs are known"))

    def try_class(self, model_class: Any, config: Any) -> Subject | None:
        """Return a model of a class, with attention that is neither uniform nor steep if there is such, or None."""
        if self.is_over() or count_parameters(model_class, config) > MOST_PARAMETERS:
            self.failures.append(f"{model_class.__name__}: too large, or too long a search")
            return None
        best: tuple[float, Subject] | None = None
        for noise in NOISES:
            try:
                model = build(model_class, config, noise)
            except Exception as error:
                self.failures.append(f"{model_class.__name__}: {first_line(error)}")
                break
            known = candidate_inputs(model) if best is None else [best[1].inputs]
            subject, softmaxes = self.try_inputs(model, known)
            if subject is None:
                break
            if softmaxes.largest < LARGEST_SCORE and softmaxes.spread > LEAST_SPREAD:
                return subject
            if best is None or softmaxes.largest < best[0]:
                best = softmaxes.largest, subject
        return None if best is None else best[1]

    def try_inputs(self, model: Any, known: Iterable[Inputs]) -> tuple[Subject | None, Softmaxes]:
        """Return a model with the first inputs that it reads, or None, and the softmaxes of that run."""
        twin = copy.deepcopy(model)  # some change as they run
        for inputs in known:
            self.tries += 1
            softmaxes = Softmaxes()
            subject = Subject(model, inputs)
            try:
                with softmaxes:
                    run_model(twin, inputs)
            except Exception as error:
                self.failures.append(f"{subject.name}: {first_line(error)}")
            else:
                return subject, softmaxes
            if self.is_over():
                break
        return None, Softmaxes()

    def is_over(self) -> bool:
        """Tell whether the search takes too long."""
        return self.tries >= MOST_TRIES or time.process_time() - self.start > SEARCH_SECONDS


def sweep_type(model_type: str, tell: Callable[[str], None]) -> Row:
    """Return what comes of a model type. tell: hears what is about to be done."""
    tell("build")
    try:
        subject = Search(model_type).find()
        oracle = ask_library(subject.model, subject.inputs)
    except (NotBuildableError, NoOracleError) as error:
        return Row(model_type, NOT_BUILDABLE, str(error))
    tell("capture")
    try:
        capture = attnviz.capture(model=subject.model, inputs=dict(subject.inputs))
    except AttnvizError as error:
        return Row(model_type, REFUSED, f"{subject.name}: {error}")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Row(model_type, CRASHED, f"{subject.name}: {first_line(error)} in {last.name}")
    tell("compare")
    same, line = compare_capture(capture, oracle)
    return Row(model_type, EXACT if same else WRONG, f"{subject.name}: {line}")


def first_line(error: BaseException) -> str:
    """Return an error's class and the beginning of its message as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_LINE]}"


@dataclass
class Child:
    """A process that sweeps one model type and writes what it does, line by line, to a pipe."""

    model_type: str
    process: int
    start: float
    written: bytes = b""

    @property
    def late(self) -> bool:
        """Whether its time is up."""
        allowed = SECONDS if b"capture" in self.written else BUILD_SECONDS
        return time.monotonic() - self.start > allowed

    def row(self, how: str) -> Row:
        """Return its row; if it ended before it wrote one, what it was doing then. how: it ended."""
        lines = [json.loads(line) for line in self.written.splitlines() if line.endswith(b"]")]
        last = lines[-1] if lines else ["build"]
        if len(last) == len(Row._fields):
            return Row(*last)
        outcome = CRASHED if last == ["capture"] else NOT_BUILDABLE
        return Row(self.model_type, outcome, f"{last[0]}: {how}")


def sweep(names: Sequence[str], jobs: int) -> Iterator[Row]:
    """Yield a row for each model type, as each is done. jobs: processes at once."""
    gc.collect()
    gc.freeze()  # children need not copy what they only look through for garbage
    pending = list(reversed(names))
    running: dict[int, Child] = {}  # by the pipe that is read
    try:
        while pending or running:
            while pending and len(running) < jobs:
                start_child(pending.pop(), running)
            ready = select.select(list(running), [], [], 0.5)[0]
            for pipe, child in list(running.items()):
                written = os.read(pipe, 1 << 16) if pipe in ready else None
                child.written += written or b""
                if written == b"" or child.late:
                    yield end_child(pipe, running)
    finally:
        for pipe in list(running):
            end_child(pipe, running)


def start_child(model_type: str, running: dict[int, Child]) -> None:
    """Start a process for a model type. It has all modules that this one has loaded."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            run_child(model_type, write)
        finally:
            os._exit(0)
    os.close(write)
    running[read] = Child(model_type, process, time.monotonic())


def run_child(model_type: str, pipe: int) -> None:
    """Sweep a model type in silence, and write what is done and what comes of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stdout.fileno())
    os.dup2(silent, sys.stderr.fileno())
    warnings.simplefilter("ignore")

    def tell(*parts: str) -> None:
        os.write(pipe, f"{json.dumps(parts)}\n".encode())

    doing = ["build"]

    def begin(step: str) -> None:
        doing.append(step)
        tell(step)

    try:
        tell(*sweep_type(model_type, begin))
    except BaseException as error:  # of the sweep itself, or of a library that exits
        tell(
            model_type,
            CRASHED if doing[-1] != "build" else NOT_BUILDABLE,
            f"{doing[-1]}: {first_line(error)}",
        )


def end_child(pipe: int, running: dict[int, Child]) -> Row:
    """End a process and return its row."""
    child = running.pop(pipe)
    late = child.late
    if late:
        os.kill(child.process, signal.SIGKILL)
    os.close(pipe)
    status = os.waitpid(child.process, 0)[1]
    return child.row("its time is up" if late else f"ended with status {status}")


def sweep_all(names: Sequence[str] = ()) -> list[Row]:
    """Return the rows of some model types, else of all, sorted by outcome and name."""
    torch.set_num_threads(1)
    rows = sweep(names or model_types(), os.cpu_count() or 1)
    return sorted(rows, key=lambda row: (OUTCOMES.index(row.outcome), row.model_type))


def count_outcomes(rows: Iterable[Row]) -> str:
    """Return how many rows have each outcome, as a line."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in reversed(OUTCOMES))


def main() -> None:
    """Print the outcomes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sweep", description="Sweep through transformers."
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="a model type; default: all")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    rows = sweep_all(options.types)
    if options.json:
        sys.stdout.write(json.dumps(rows))
        return
    sys.stdout.write(
        f"{count_outcomes(rows)} of {len(rows)} types of transformers {transformers.__version__}\n\n"
    )
    for row in rows:
        sys.stdout.write(f"{row.model_type:36} {row.outcome:19} {row.line}\n")


if __name__ == "__main__":
    main()
