"""What `attnviz compare` costs beside loading and running both: python tests/benchmarks/compare.py MINILM_FOLDER.

Prints CPU time of whole processes, the least of several, and their ratio.
"""

import os
import resource
import subprocess
import sys

ROUNDS = 5
TEXT = "Unbelievably, the naïve tokenizer's subwords misbehave — 3.14159 😀 ok."
ALONE = "import sys, attnviz; [attnviz.capture(sys.argv[2], model=name) for name in (sys.argv[1], 'builtin')]"


def cpu(*args: str) -> float:
    """Seconds of CPU of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(folder: str) -> None:
    """Measure in turn, so that both meet the same machine."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    compare = "-m", "attnviz", "compare", "-m", folder, TEXT, "--width", "160", "--color", "always"
    times = [(cpu("-c", ALONE, folder, TEXT), cpu(*compare)) for _ in range(ROUNDS)]
    alone, both = map(min, zip(*times, strict=True))
    print(f"load and run MiniLM and builtin  {alone:6.2f} s CPU")
    print(
        f"attnviz compare                  {both:6.2f} s CPU   ratio {both / alone:.2f} (bar 1.15)"
    )


if __name__ == "__main__":
    main(sys.argv[1])
