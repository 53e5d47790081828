"""The files that a run leaves beside its model as it goes. Without torch.

Each file is written whole or not at all. ``step-N/`` are models, as far as they had come.
``history.json`` has the loss and the scores of all heads over steps; ``training.svg`` is a picture
of it, drawn at the end. ``state.safetensors`` holds all that an interrupted run needs to go on, bit
by bit; it is gone when the run is done.
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
from attnviz.io.files import describe_os_error, remove_file, write_whole
from attnviz.layer.arrays import Array
from attnviz.lm import evaluate, store

SCHEMA = "attnviz/1"
FILES = STATE, HISTORY, FIGURE = "state.safetensors", "history.json", "training.svg"
MEASURED = 100  # times in a run, about, that the heads are
SEQUENCES = 16  # each time: a quarter of those for a finished model, at a quarter of the cost
CHECKPOINTS = 10
MOST = 10**7  # of any number that is drawn: steps of a month, and no memory for more


class TrainingState(NamedTuple):
    """A training as it can be kept in a file."""

    arrays: dict[str, Array]
    """``parameters/NAME``; ``optimizers/I/P/NAME`` is a state of optimizer I for parameter P."""
    numbers: dict[str, Any]
    """JSON: step, loss, tokens, and the state of the random numbers."""


class ResumePoint(NamedTuple):
    """The state from which an interrupted run goes on."""

    stage: int
    """0, or 1 with the wide vocabulary."""
    frozen: TrainingState
    history: list[dict[str, Any]]


class StepSnapshot(NamedTuple):
    """A run after one of its steps."""

    stage: int
    step: int
    """The step of the whole run."""
    loss: float
    tokens: int
    ends: bool
    """True if it is the last step of its stage."""
    freeze: Callable[[], TrainingState]
    model: Callable[[], store.StoredModel]
    """The model as it is, not rounded."""


def ignore_model(model: store.StoredModel, history: Sequence[dict[str, Any]]) -> None:
    """Look at nothing."""


@dataclass
class RunLog:
    """Measures the heads of a run about a hundred times, and keeps checkpoints."""

    folder: Path
    identity: dict[str, Any]
    """The setting and texts that must be the same for a run to go on: see ``identify``."""
    steps: int
    every: int
    """Steps from one checkpoint to the next."""
    look: Callable[[store.StoredModel, Sequence[dict[str, Any]]], None] = ignore_model
    """Is called with the model, and the history up to it, when the heads were measured."""
    history: list[dict[str, Any]] = field(default_factory=list)
    fresh: bool = True
    """True if nothing of this run has been written yet."""

    def begin(self) -> None:
        """Make the folder, and take away what another run left where it is to be replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            clear_run(self.folder)
        self.fresh = False

    def after(self, now: StepSnapshot) -> None:
        """Do what is due after a step. Raises OutputError; earlier files are there still."""
        is_last = now.step == self.steps
        steps_between_measurements = max(1, self.steps // MEASURED)
        if now.step % steps_between_measurements == 0 or is_last:
            model = now.model()
            self.history.append(make_entry(now, model))
            self.look(model, self.history)
        is_checkpoint = now.step % self.every == 0 or is_last
        if is_checkpoint:
            self.checkpoint(now)
        if is_checkpoint or now.ends:
            self.keep(now)

    def checkpoint(self, now: StepSnapshot) -> None:
        """Write the model as it is to step-N.

        It is written under another name first, so that a folder of that name is whole.
        """
        self.begin()
        model = now.model()
        folder = self.folder / f"step-{now.step}"
        model.about["scores"] = describe_best_heads(model)
        if folder.exists():  # this run has been here before, or may replace what has
            store.write_stored_model(folder, model)
            return
        begun = folder.with_name(f".{folder.name}")
        try:
            store.write_stored_model(begun, model)
            begun.rename(folder)
        finally:
            discard_model(begun)

    def keep(self, now: StepSnapshot) -> None:
        """Write the history, and then the state that belongs to it."""
        self.begin()
        history = {
            "schema": SCHEMA,
            **self.identity,
            "sequences": SEQUENCES,
            "block": evaluate.BLOCK,
            "history": self.history,
        }
        history_json = json.dumps(history, allow_nan=False) + "\n"
        write_whole(self.folder / HISTORY, history_json.encode())
        frozen = now.freeze()
        state = {
            "schema": SCHEMA,
            **self.identity,
            "stage": now.stage,
            "step": now.step,
            "training": frozen.numbers,
        }
        metadata = {"state": json.dumps(state, allow_nan=False)}
        arrays = dict(sorted(frozen.arrays.items()))
        write_whole(self.folder / STATE, save(arrays, metadata))

    def done(self) -> None:
        """Remove the state: the model is written, and there is nothing to go on with."""
        remove_file(self.folder / STATE)


def describe_best_heads(model: store.StoredModel) -> dict[str, Any]:
    """Describe the best head of each role, as config.json keeps it."""
    described = {}
    for role, scores in score_repeated_blocks(model).items():
        best = evaluate.name_best_head(scores)
        described[role] = {**best._asdict(), "n": SEQUENCES}
    return described


def make_entry(now: StepSnapshot, model: store.StoredModel) -> dict[str, Any]:
    """Make one measurement as history.json has it.

    Scores are [layer][head]; the loss is null if it is not a number.
    """
    scores = {}
    for role, of_role in score_repeated_blocks(model).items():
        scores[role] = round_scores(of_role.mean(0))
    return {
        "step": now.step,
        "stage": now.stage,
        "loss": round_number(now.loss),
        "tokens": now.tokens,
        "scores": scores,
    }


def score_repeated_blocks(model: store.StoredModel) -> dict[str, Array]:
    """Score all heads on some repeated blocks, by role: (sequence, layer, head)."""
    ids = evaluate.make_repeated_blocks(model.config, SEQUENCES)
    return evaluate.score_model_roles(model.parameters, model.config, ids)


def round_scores(scores: Array) -> list[list[float | None]]:
    """Round scores (layer, head) to four digits, as lists."""
    return [[round_number(score) for score in of_layer] for of_layer in scores]


def round_number(number: float) -> float | None:
    """Round a number to four digits; None if it is none: training may have diverged."""
    if not math.isfinite(number):
        return None
    return round(float(number), 4)


def identify_run(setting: dict[str, Any], *texts: Sequence[str]) -> dict[str, Any]:
    """Return the identity of a run: its setting, and a digest of all the texts it learns from."""
    digest = hashlib.sha256()
    for documents in texts:
        for document in documents:
            digest.update(document.encode() + b"\0")
        digest.update(b"\1")
    return {"setting": setting, "texts": digest.hexdigest()}


def read_resume_point(folder: Path, identity: dict[str, Any]) -> ResumePoint:
    """Read the state from which the run in a folder goes on.

    Raises UsageError if there is none or it has another setting, InputError if it learnt from other
    texts or its files are damaged.
    """
    require_interrupted_run(folder)
    try:
        kept, kept_identity = read_state(folder)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the run in {folder} cannot be gone on with, its {STATE} or {HISTORY} is damaged: "
            "begin again with --force",
        ) from error
    require_same_run(folder, kept_identity, identity)
    return kept


def read_state(folder: Path) -> tuple[ResumePoint, dict[str, Any]]:
    """Read the state of a run, and its identity.

    Raises an error of one of several kinds if a file is damaged: see ``read``.
    """
    metadata = untrusted.read_metadata(folder / STATE)
    state = untrusted.parse_json(metadata["state"])
    identity = {"setting": dict(state["setting"]), "texts": state["texts"]}
    history = untrusted.read_json(folder / HISTORY)["history"]
    last_step = state["step"]
    history = [measured for measured in history if measured["step"] <= last_step]
    training = state["training"]
    numbers = {**training, "step": int(training["step"])}
    frozen = TrainingState(untrusted.load_tensors(folder / STATE), numbers)
    return ResumePoint(state["stage"], frozen, history), identity


def read_run_history(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the measurements of a run, and the tokens of a repeated block.

    run: its folder or its history.json. Raises InputError if there is no history, or it is damaged
    or empty.
    """
    path = run / HISTORY if run.is_dir() else run
    try:
        document = untrusted.read_json(path)
        history = document["history"]
        block = document["block"]
        if history:
            require_measured(history, block)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {describe_os_error(error)}: "
            "name the folder of a run of attnviz train",
        ) from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is no history of a run of attnviz train, or damaged") from error
    if not history:
        raise InputError(
            f"nothing was measured yet in the run of {path}: go on with attnviz train --resume",
        )
    return history, block


def require_measured(history: list[dict[str, Any]], block: int) -> None:
    """Raise an error, of one of several kinds, unless these are measurements that can be drawn."""
    steps = [measured["step"] for measured in history]
    losses = [measured["loss"] for measured in history]
    loss_numbers = untrusted.read_number_lists(losses, "loss")
    score_numbers = []
    for role in history[-1]["scores"]:
        of_role = [measured["scores"][role] for measured in history]
        score_numbers.append(untrusted.read_number_lists(of_role, role))
    if not all(is_drawable_count(count) for count in (block, *steps)):
        raise ValueError
    if steps != sorted({*steps}):
        raise ValueError
    if not score_numbers or not all(map(is_of_heads, score_numbers)):
        raise ValueError
    if any(map(is_out_of_range, (loss_numbers, *score_numbers))):
        raise ValueError


def is_of_heads(scores: Array) -> bool:
    """Return whether an array is one of scores (measurement, layer, head)."""
    return bool(scores.ndim == 3 and scores.size)


def is_out_of_range(numbers: Array) -> bool:
    """Return whether some number of an array is too large to be drawn."""
    return bool((np.abs(numbers) > MOST).any())


def is_drawable_count(count: Any) -> bool:
    """Return whether a value of any type is a number of steps or tokens that can be drawn."""
    return type(count) is int and 0 < count <= MOST


def require_interrupted_run(folder: Path) -> None:
    """Raise UsageError unless a run was interrupted here."""
    if not (folder / STATE).is_file():
        raise UsageError(
            f"there is no interrupted run in {folder}: leave --resume out, "
            "or put --force in its place, to begin one",
        )


def require_same_run(folder: Path, kept_identity: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise an error that names what is not as it was when the run began."""
    for name, value in identity["setting"].items():
        was = kept_identity["setting"].get(name)
        if was != value:
            raise UsageError(
                f"the run in {folder} began with --{name} {was}, not {value}: "
                "give the same to go on",
            )
    if kept_identity != identity:
        raise InputError(
            f"the run in {folder} learns from other texts than these: give the same to go on",
        )


def clear_run(folder: Path) -> None:
    """Take away what an earlier run left beside its model.

    So no checkpoint in the folder is of another run.
    """
    for name in FILES:
        remove_file(folder / name)
    for checkpoint in folder.glob("step-*"):
        if store.is_own_model(checkpoint):
            discard_model(checkpoint)


def discard_model(folder: Path) -> None:
    """Delete the files of a model, and its folder if nothing else is in it."""
    for name in store.FILES:
        remove_file(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
