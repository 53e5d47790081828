"""Start-up: whole-process CPU time of attnviz commands, as ratios to importing the library below them, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/startup.py [rounds]

Prints the least of several runs, taken in turn.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CLICK, TORCH = ("-c", "import click"), ("-c", "import torch")
SHOW = ("-m", "attnviz", "show", "The cat sat on the mat because it was tired.")
SAVED = Path(tempfile.gettempdir()) / "attnviz-startup.attn"
PAIRS = {
    "attnviz --help / import click": (("-m", "attnviz", "--help"), CLICK, 2.0),
    "attnviz show, builtin / import torch": (SHOW, TORCH, 0.35),
    "attnviz show --view grid, builtin / import torch": ((*SHOW, "--view", "grid"), TORCH, 0.35),
    "attnviz show --from a capture / import torch": (
        ("-m", "attnviz", "show", "--from", str(SAVED)),
        TORCH,
        0.35,
    ),
}


def cpu_seconds(args: tuple[str, ...]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *args], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent.parent)
    subprocess.run(
        [sys.executable, "-m", "attnviz", "capture", SHOW[-1], "-qo", SAVED, "--force"], check=True
    )
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for name, (ours, theirs, bar) in PAIRS.items():
        times = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(rounds)]
        mine, its = (min(column) for column in zip(*times, strict=True))
        print(
            f"{name:<50} {mine * 1000:6.0f} ms / {its * 1000:6.0f} ms = {mine / its:.2f} (bar {bar})"
        )
