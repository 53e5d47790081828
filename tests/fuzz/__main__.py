"""Run the fuzzer for a time, or for a number of cases, and print counts."""

import argparse
import json
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.captures import make_capture_case
from tests.fuzz.model_folders import make_folder_case
from tests.fuzz.texts import count_cells, is_measurable, make_text_case

KINDS: dict[str, Callable[[Random, Path], list[str]]] = {
    "texts": make_text_case,
    "captures": make_capture_case,
    "folders": make_folder_case,
}
SHARES = {"texts": 0.4, "captures": 0.3, "folders": 0.3}
"""The part of the time that each kind has."""
CODES = {0, 2, 3, 4, 5}
PATIENCE = 10.0  # seconds
STARTING = 60.0  # seconds more for the first case of a worker, which imports libraries
LARGEST = 1 << 30  # bytes
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")
ENDS_WITH_WEIGHT = re.compile(r"\s(\.\d\d|1\.0) *$")
RAMP = "·····"
"""With which the line below the rows of a heatmap goes on: the scale of colours."""


class Worker:
    """A process that runs cases, begun anew when one ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.cases = 0

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """Run a case; the answer has a ``problem`` if the process ended or took too long."""
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz.worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.cases = 0
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        patience = PATIENCE if self.cases > 20 else PATIENCE + STARTING
        begun = time.process_time(), time.monotonic()
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        self.cases += 1
        if not ready:
            self.stop()
            return {"problem": f"takes more than {time.monotonic() - begun[1]:.0f} seconds"}
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            return {"problem": f"ends the process with {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def list_problems(answer: dict[str, Any], text: str) -> Iterator[str]:
    """Yield what is wrong with what a case did. text: that of the case, if it has one."""
    if "problem" in answer:
        yield answer["problem"]
        return
    code, output, errors = answer["code"], answer["output"], answer["errors"]
    if code not in CODES:
        yield f"exit code {code}"
    if "Traceback" in output + errors or "panicked at" in errors:
        yield "traceback"
    if code and not errors.strip().splitlines()[-1:][0].startswith("error: "):
        yield "failure without a line"
    if any(is_raw(sign) for sign in output + errors):
        yield "control characters"
    if answer["size"] > LARGEST:
        yield f"memory of {answer['size'] / 1e9:.1f} GB"
    if text and not code and is_measurable(text) and not is_aligned(output):
        yield "misaligned rows"


def is_raw(sign: str) -> bool:
    """Return whether a character steers a terminal; a line break is none of these."""
    return sign in BIDI or (unicodedata.category(sign) == "Cc" and sign != "\n")


def is_aligned(output: str) -> bool:
    """Return whether all rows of a heatmap, between its ticks and its scale, are equally wide."""
    lines = output.splitlines()
    scales = [number for number, line in enumerate(lines) if RAMP in line]
    if not scales:
        return True
    rows = filter(ENDS_WITH_WEIGHT.search, lines[2 : scales[0]])
    return len({count_cells(line) for line in rows}) <= 1


def run_cases(kind: str, seed: int, count: int | None, seconds: float, verbose: bool) -> int:
    """Run cases of a kind until there are enough of them or the time is over; count problems."""
    worker = Worker()
    problems: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    number = 0
    while (count is None and time.monotonic() < end) or (count is not None and number < count):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        random = Random(f"{seed} {kind} {number}")
        arguments = KINDS[kind](random, folder)
        text = (folder / "text").read_bytes().decode() if kind == "texts" else ""
        answer = worker.run(arguments)
        codes[str(answer.get("code", "none"))] += 1
        for problem in list_problems(answer, text):
            problems[problem] += 1
            if verbose or problems[problem] <= 3:
                print(f"{kind} {number}, seed {seed}: {problem}: {arguments}", flush=True)
                print(f"  {answer.get('errors', '')[-300:]!r}", flush=True)
        if answer.get("size", 0) > LARGEST:
            worker.stop()  # its largest size would count for all that follow
        shutil.rmtree(folder)
        number += 1
    worker.stop()
    print(
        f"{kind}: {number} cases, exit codes {dict(codes)}, problems {dict(problems)}", flush=True
    )
    return problems.total()


def main() -> int:
    """Run the kinds that are asked for; return 1 if any case did what none may do."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for all kinds together")
    parser.add_argument(
        "--seed", type=int, default=None, help="default: a new one, which is printed"
    )
    parser.add_argument("--count", type=int, default=None, help="cases of each kind, however long")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--verbose", action="store_true", help="print every case with a problem")
    options = parser.parse_args()
    seed = Random().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    total = 0
    for kind in options.kind or KINDS:
        seconds = options.seconds * SHARES[kind]
        total += run_cases(kind, seed, options.count, seconds, options.verbose)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
