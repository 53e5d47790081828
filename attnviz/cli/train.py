"""`attnviz train`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnviz.cli.options import note, talk_options
from attnviz.errors import OutputError, UsageError

if TYPE_CHECKING:
    from attnviz.lm.train import Progress

Watch = Callable[["Progress"], None]


@click.command()
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the new model.")
@click.option("--force", is_flag=True, help="Replace a model that is there.")
@click.option("--steps", type=click.IntRange(1), default=4800, show_default=True, help="Batches of 2,048 tokens.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights and the batches.")
@click.option("--layers", type=click.IntRange(1, 64), default=3, show_default=True, help="Number of layers.")
@click.option("--heads", type=click.IntRange(1, 64), default=6, show_default=True, help="Heads in a layer.")
@click.option("--dim", type=click.IntRange(8, 4096), default=192, show_default=True, help="Width of the model.")
@click.option("--vocabulary", type=click.IntRange(257, 65536), default=4096, show_default=True, help="Tokens at most.")
@click.option("--tokenizer-text", type=click.Path(path_type=Path), help="Learn tokens from this text, not the corpus.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@talk_options
def command(
    corpus: tuple[Path, ...],
    output: Path,
    force: bool,
    tokenizer_text: Path | None,
    vocabulary: int,
    steps: int,
    seed: int,
    device: str,
    quiet: bool,
    **sizes: int,
) -> None:
    """Train a small language model made of our own attention layer.

    CORPUS is text files, or folders of .txt files. An empty line parts two documents; one in fifty is held out. The
    folder works as --model. Interrupted, what has been learnt so far is saved. The same seed on the same machine with
    the same number of threads gives the same model.

    \b
    Examples:
      attnviz train notes.txt -o my-model --steps 300
      attnviz train books/ more.txt -o my-model --layers 4 --heads 8 --dim 256
    """
    check_output(output, force)
    check_sizes(sizes["dim"], sizes["heads"])
    from attnviz.lm import corpus as texts
    from attnviz.lm import run, store
    from attnviz.models.checks import torch_device

    documents = texts.read(corpus)
    vocabulary_text = texts.read([tokenizer_text]) if tokenizer_text else documents
    setting = run.Setting(steps=steps, seed=seed, vocabulary=vocabulary, device=torch_device(device), **sizes)
    with progress(steps, quiet) as watch:
        done = run.run(documents, vocabulary_text, setting, watch)
    store.write(output, done.stored)
    note(run.describe(done), quiet)
    note(f"wrote {output}; see it with: attnviz show --model {output} ...", quiet)
    if done.steps < steps:
        note(f"stopped after {done.steps} of {steps} steps", quiet)
        raise KeyboardInterrupt


def check_output(folder: Path, force: bool) -> None:
    """Refuse a folder that could not be written, before anything is computed. Raises OutputError."""
    from attnviz.files import require_writable
    from attnviz.lm import store

    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a folder is needed")
    if any((folder / name).is_dir() for name in (store.CONFIG, store.WEIGHTS, store.TOKENIZER)):
        raise OutputError(f"{folder} has folders where the files of a model belong")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputError(f"{folder} exists and is not empty; choose another name or add --force")
    require_writable(folder)


def check_sizes(dim: int, heads: int) -> None:
    """Raise UsageError unless the width divides into heads with an even size, which rotary positions need."""
    if dim % (2 * heads):
        raise UsageError(f"--dim {dim} is not a multiple of 2 x {heads} heads")


@contextmanager
def progress(steps: int, quiet: bool) -> Iterator[Watch]:
    """A progress bar with loss and speed on a terminal; a line every tenth elsewhere; nothing if quiet."""
    if quiet or not sys.stderr.isatty():
        yield lambda now: note(f"step {now.step}: loss {now.loss:.3f}", quiet or now.step % max(1, steps // 10) > 0)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[told]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, told="")

        def watch(now: "Progress") -> None:
            speed = now.tokens / (bar.tasks[task].elapsed or 1)
            bar.update(task, completed=now.step, told=f"loss {now.loss:.3f} nats  {speed:,.0f} tokens/s")

        yield watch
