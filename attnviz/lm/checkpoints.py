"""What a run leaves beside its model as it goes. Without torch; each file is written whole or not at all.

``step-N/`` are models, as far as they had come. ``history.json`` has the loss and the scores of all heads over steps,
``training.svg`` is a picture of it, drawn at the end.
``state.safetensors`` is what an interrupted run goes on from, bit by bit; it is gone when the run is done.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from attnviz.errors import InputError, UsageError
from attnviz.io import untrusted
from attnviz.io.files import reason, remove_file, write_whole
from attnviz.layer.arrays import Array
from attnviz.lm import evaluate, store

SCHEMA = "attnviz/1"
FILES = STATE, HISTORY, FIGURE = "state.safetensors", "history.json", "training.svg"
MEASURED = 100  # times in a run, about, that the heads are
SEQUENCES = 16  # each time: a quarter of those for a finished model, at a quarter of the cost
CHECKPOINTS = 10
MOST = 10**7  # of any number that is drawn: steps of a month, and no memory for more


class Frozen(NamedTuple):
    """A training as it can be kept in a file."""

    arrays: dict[str, Array]
    """``parameters/NAME``, and ``optimizers/I/P/NAME``: what optimizer I knows of its parameter P."""
    numbers: dict[str, Any]
    """JSON: step, loss, tokens, and the state of the random numbers."""


class Kept(NamedTuple):
    """What a run goes on from."""

    stage: int
    """0, or 1 with the wide vocabulary."""
    frozen: Frozen
    history: list[dict[str, Any]]


class Moment(NamedTuple):
    """A run after one of its steps."""

    stage: int
    step: int
    """Of the whole run."""
    loss: float
    tokens: int
    ends: bool
    """Whether it is the last step of its stage."""
    freeze: Callable[[], Frozen]
    model: Callable[[], store.Stored]
    """The model as it is, not rounded."""


def unseen(model: store.Stored, history: Sequence[dict[str, Any]]) -> None:
    """Look at nothing."""


@dataclass
class Log:
    """Measures the heads of a run about a hundred times, and keeps a checkpoint every so many steps."""

    folder: Path
    identity: dict[str, Any]
    """What must be the same for a run to go on: see ``identify``."""
    steps: int
    every: int
    look: Callable[[store.Stored, Sequence[dict[str, Any]]], None] = unseen
    """Is called with the model, and the history up to it, when the heads were measured."""
    history: list[dict[str, Any]] = field(default_factory=list)
    fresh: bool = True
    """Whether nothing of this run has been written yet."""

    def begin(self) -> None:
        """Make the folder, and where it was to be replaced take away what another run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            clear(self.folder)
        self.fresh = False

    def after(self, now: Moment) -> None:
        """Do what is due after a step. Raises OutputError; what was kept before is there still."""
        if now.step % max(1, self.steps // MEASURED) == 0 or now.step == self.steps:
            model = now.model()
            self.history.append(entry(now, model))
            self.look(model, self.history)
        due = now.step % self.every == 0 or now.step == self.steps
        if due:
            self.checkpoint(now)
        if due or now.ends:
            self.keep(now)

    def checkpoint(self, now: Moment) -> None:
        """Write the model as it is to step-N, first under another name, so that a folder of that name is whole."""
        self.begin()
        model, folder = now.model(), self.folder / f"step-{now.step}"
        best = {role: evaluate.best(scores) for role, scores in measure(model).items()}
        model.about["scores"] = {
            role: {**found._asdict(), "n": SEQUENCES} for role, found in best.items()
        }
        if folder.exists():  # this run has been here before, or may replace what has
            store.write(folder, model)
            return
        begun = folder.with_name(f".{folder.name}")
        try:
            store.write(begun, model)
            begun.rename(folder)
        finally:
            discard(begun)

    def keep(self, now: Moment) -> None:
        """Write the history, and then the state that belongs to it."""
        self.begin()
        document = {
            "schema": SCHEMA,
            **self.identity,
            "sequences": SEQUENCES,
            "block": evaluate.BLOCK,
        }
        document["history"] = self.history
        write_whole(self.folder / HISTORY, (json.dumps(document, allow_nan=False) + "\n").encode())
        frozen = now.freeze()
        state = {
            "schema": SCHEMA,
            **self.identity,
            "stage": now.stage,
            "step": now.step,
            "training": frozen.numbers,
        }
        arrays = dict(sorted(frozen.arrays.items()))
        write_whole(
            self.folder / STATE, save(arrays, {"state": json.dumps(state, allow_nan=False)})
        )

    def done(self) -> None:
        """The model is written: there is nothing to go on with."""
        remove_file(self.folder / STATE)


def entry(now: Moment, model: store.Stored) -> dict[str, Any]:
    """One measurement as history.json has it: scores are [layer][head], the loss null if it is not a number."""
    means = {role: scores.mean(0) for role, scores in measure(model).items()}
    return {
        "step": now.step,
        "stage": now.stage,
        "loss": round(now.loss, 4) if math.isfinite(now.loss) else None,
        "tokens": now.tokens,
        "scores": {
            role: [[number(cell) for cell in row] for row in rows] for role, rows in means.items()
        },
    }


def measure(model: store.Stored) -> dict[str, Array]:
    """The scores of all heads on some repeated blocks, by role: (sequence, layer, head)."""
    ids = evaluate.repeated(model.config, SEQUENCES)
    return evaluate.role_scores(model.parameters, model.config, ids)


def number(score: float) -> float | None:
    """A score to four digits, None if it is not a number: training may have diverged."""
    return round(float(score), 4) if math.isfinite(score) else None


def identify(setting: dict[str, Any], *texts: Sequence[str]) -> dict[str, Any]:
    """What a run is: its setting, and a digest of all the texts it learns from."""
    digest = hashlib.sha256()
    for documents in texts:
        for document in documents:
            digest.update(document.encode() + b"\0")
        digest.update(b"\1")
    return {"setting": setting, "texts": digest.hexdigest()}


def read(folder: Path, identity: dict[str, Any]) -> Kept:
    """What a run in a folder goes on from.

    Raises UsageError if there is none or it has another setting, InputError if it learnt from other texts or its files
    are damaged.
    """
    require_state(folder)
    try:
        state = untrusted.parse_json(untrusted.metadata(folder / STATE)["state"])
        there = {"setting": dict(state["setting"]), "texts": state["texts"]}
        history = untrusted.read_json(folder / HISTORY)["history"]
        history = [measured for measured in history if measured["step"] <= state["step"]]
        numbers = {**state["training"], "step": int(state["training"]["step"])}
        kept = Kept(state["stage"], Frozen(untrusted.tensors(folder / STATE), numbers), history)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the run in {folder} cannot be gone on with, its {STATE} or {HISTORY} is damaged: begin again with --force"
        ) from error
    require_same(folder, there, identity)
    return kept


def read_history(run: Path) -> tuple[list[dict[str, Any]], int]:
    """What was measured of a run, given its folder or its history.json, and the tokens of a repeated block.

    Raises InputError if there is no history, or it is damaged or empty.
    """
    path = run / HISTORY if run.is_dir() else run
    try:
        document = untrusted.read_json(path)
        history, block = document["history"], document["block"]
        if history:
            require_measured(history, block)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {reason(error)}: name the folder of a run of attnviz train"
        ) from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is no history of a run of attnviz train, or damaged") from error
    if not history:
        raise InputError(
            f"nothing was measured yet in the run of {path}: go on with attnviz train --resume"
        )
    return history, block


def require_measured(history: list[dict[str, Any]], block: int) -> None:
    """Raise an error, of one of several kinds, unless these are measurements that can be drawn."""
    steps = [measured["step"] for measured in history]
    losses = untrusted.numbers([measured["loss"] for measured in history], "loss")
    scores = [
        untrusted.numbers([measured["scores"][role] for measured in history], role)
        for role in history[-1]["scores"]
    ]
    if not all(
        type(number) is int and 0 < number <= MOST for number in (block, *steps)
    ) or steps != sorted({*steps}):
        raise ValueError
    if not scores or any(found.ndim != 3 or not found.size for found in scores):
        raise ValueError
    if any((np.abs(found) > MOST).any() for found in (losses, *scores)):
        raise ValueError


def require_state(folder: Path) -> None:
    """Raise UsageError unless a run was interrupted here."""
    if not (folder / STATE).is_file():
        raise UsageError(
            f"there is no interrupted run in {folder}: leave --resume out, or put --force in its place, to begin one"
        )


def require_same(folder: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise an error that names what is not as it was when the run began."""
    for name, value in identity["setting"].items():
        was = there["setting"].get(name)
        if was != value:
            raise UsageError(
                f"the run in {folder} began with --{name} {was}, not {value}: give the same to go on"
            )
    if there != identity:
        raise InputError(
            f"the run in {folder} learns from other texts than these: give the same to go on"
        )


def clear(folder: Path) -> None:
    """Take away what an earlier run left beside its model, so that no checkpoint is of another run."""
    for name in FILES:
        remove_file(folder / name)
    for old in folder.glob("step-*"):
        if store.is_ours(old):
            discard(old)


def discard(folder: Path) -> None:
    """Delete the files of a model, and its folder if nothing else is in it."""
    for name in store.FILES:
        remove_file(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
