"""What capturing costs on a GPU beside a plain forward, in bfloat16: time and peak memory, as one table.

    python tests/benchmarks/cuda.py                                     # 2,048, 8,192 and 32,768 tokens
    python tests/benchmarks/cuda.py --device cpu --lengths 64,256       # to try the benchmark itself

The model is the Llama type of capture.py with 134 M random parameters, 30 layers of 9 heads. Time is the least of
several rounds, each of all modes in turn; memory is the peak that torch allocated above the loaded model. Modes: plain,
the model's own forward with SDPA; one, tiles and statistics of the last layer; all, those of every layer.
"""

import argparse
import time
from collections.abc import Callable

import torch
from capture import build

from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import Request
from attnviz.selection import parse_numbers

ROW = "{:>8}  {:<6}{:>10}{:>8}{:>10}{:>8}{:>10}"


def modes(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, Callable[[], float | None]]:
    """Return what is compared, by name; each run gives its fidelity if it has one."""
    capturing = HuggingFace("benchmark", model)

    def run_plain() -> None:
        with torch.no_grad():
            model(ids, use_cache=False)

    def capture(layers: str) -> float | None:
        return capturing.capture_inputs(
            {"input_ids": ids}, Request(parse_numbers(layers), keep="tiles")
        ).fidelity

    return {"plain": run_plain, "one": lambda: capture("-1"), "all": lambda: capture("all")}


def measure(run: Callable[[], float | None], device: str) -> tuple[float, int, float | None]:
    """Run once. Return the seconds, the peak of bytes above what was allocated before, and the fidelity."""
    if device == "cpu":
        start = time.perf_counter()
        fidelity = run()
        return time.perf_counter() - start, 0, fidelity
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    fidelity = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before, fidelity


def compare(model: torch.nn.Module, length: int, device: str, rounds: int) -> None:
    """Print a row for each mode at one length."""
    ids = torch.randint(1000, 20000, (1, length), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    runs = modes(model, ids)
    for run in runs.values():
        run()  # warms up
    seconds = dict.fromkeys(runs, float("inf"))
    peaks = dict.fromkeys(runs, 0)
    fidelities: dict[str, float | None] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            took, peak, fidelities[name] = measure(run, device)
            seconds[name], peaks[name] = min(seconds[name], took), max(peaks[name], peak)
    for name in runs:
        time_ratio = f"{seconds[name] / seconds['plain']:.2f} x"
        memory_ratio = f"{peaks[name] / peaks['plain']:.2f} x" if peaks["plain"] else "-"
        fidelity = "-" if fidelities[name] is None else f"{fidelities[name]:.0e}"
        memory = f"{peaks[name] / 1e6:.0f} MB"
        row = (
            f"{length:,}",
            name,
            f"{seconds[name]:.3f} s",
            time_ratio,
            memory,
            memory_ratio,
            fidelity,
        )
        print(ROW.format(*row), flush=True)


def main() -> None:
    """Measure each length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", default="2048,8192,32768")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device != "cpu" else "the CPU"
    print(f"torch {torch.__version__} on {name}, bfloat16, least of {args.rounds} rounds")
    print(ROW.format("tokens", "mode", "time", "", "memory", "", "fidelity"))
    model = build("llama").to(args.device, torch.bfloat16)
    for length in map(int, args.lengths.split(",")):
        compare(model, length, args.device, args.rounds)


if __name__ == "__main__":
    main()
