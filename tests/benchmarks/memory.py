"""The peak of memory of a capture beside its forecast, above what the loaded model takes.

    python tests/benchmarks/memory.py FOLDER                          # every case; a quarter of an hour
    python tests/benchmarks/memory.py FOLDER --engine torch --keep tiles --tokens 2048 --layers 0-3

FOLDER holds a causal model that reads 8,192 tokens. Each case is a process of its own, after a short capture that has
the libraries and the weights of the model in memory. The ratio is that of the whole process, forecast to peak: what a
short run leaves in the heap of the process is as much as tiles of a short text take. Linux only: the kernel says the
peak.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from attnviz.io.formats import save
from attnviz.models import load_model, memory
from attnviz.request import Placement, Prompt, Request
from attnviz.selection import parse_numbers

CASES = (
    ("torch", "weights", 512, "all"),
    ("torch", "tiles", 512, "all"),
    ("torch", "weights", 2048, "0-9"),
    ("torch", "tiles", 2048, "all"),
    ("torch", "weights", 8192, "0"),
    ("torch", "tiles", 8192, "all"),
    ("numpy", "weights", 512, "all"),
    ("numpy", "tiles", 512, "all"),
    ("numpy", "weights", 2048, "0-2"),
    ("numpy", "tiles", 2048, "0-2"),
)


def read_status(name: str) -> int:
    """Read a number of bytes that the kernel says of this process: VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def measure_case(folder: str, engine: str, keep: str, tokens: int, layers: str) -> None:
    """Capture a text of so many tokens into a file, and print a row of the table."""
    forecasts: list[int] = []
    forecast = memory.forecast_memory

    def note_forecast(*arguments: object) -> int:
        forecasts.append(forecast(*arguments))
        return forecasts[-1]

    memory.forecast_memory = note_forecast
    model = load_model(folder, placement=Placement(engine=engine), offline=True)
    request = Request(layers=parse_numbers(layers), keep=keep)
    model.capture(Prompt("The cat sat on the mat."), request)
    text = " ".join(["the"] * (tokens - 1))
    before = read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    capture = model.capture(Prompt(text), request)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.attn"
        save(capture, path)
        size = path.stat().st_size
    peak = read_status("VmHWM") - before
    count = len(capture.maps[0].keys)
    ratio = (before + forecasts[-1]) / (before + peak)
    sizes = [f"{number / 1e6:.0f}" for number in (size, before, peak, forecasts[-1])]
    print(engine, keep, count, layers, *sizes, f"{ratio:.2f}", sep="\t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--engine")
    parser.add_argument("--keep", default="tiles")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", default="all")
    options = parser.parse_args()
    if options.engine:
        measure_case(options.folder, options.engine, options.keep, options.tokens, options.layers)
        return
    headings = "engine", "keep", "tokens", "layers", "file", "loaded", "peak above it", "forecast"
    print(*headings, "ratio", sep="\t", flush=True)
    for engine, keep, tokens, layers in CASES:
        words = "--engine", engine, "--keep", keep, "--tokens", str(tokens), "--layers", layers
        subprocess.run([sys.executable, __file__, options.folder, *words], check=True)


if __name__ == "__main__":
    main()
