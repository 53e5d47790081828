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
    """Do nothing with a model and its measurements."""


@dataclass
class RunLog:
    """Measures the heads of a run about a hundred times, and keeps checkpoints."""

    folder: Path
    identity: dict[str, Any]
    """The setting and texts that must be the same for a run to go on: see ``identify_run``."""
    steps: int
    every: int
    """Steps from one checkpoint to the next."""
    show_measurements: Callable[[store.StoredModel, Sequence[dict[str, Any]]], None] = ignore_model
    """Is called with the model, and the history up to it, when the heads were measured."""
    history: list[dict[str, Any]] = field(default_factory=list)
    fresh: bool = True
    """True if nothing of this run has been written yet."""

    def prepare_folder(self) -> None:
        """Make the folder of the run, and once take away what an earlier run left in it.

        A run that goes on takes nothing away.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            clear_run(self.folder)
        self.fresh = False

    def log_snapshot(self, now: StepSnapshot) -> None:
        """Measure the heads and write files, if that is due after a step.

        now: the run after the step. Raises OutputError if a file cannot be written; earlier files
        are there still.
        """
        is_last = now.step == self.steps
        steps_between_measurements = max(1, self.steps // MEASURED)
        if now.step % steps_between_measurements == 0 or is_last:
            model = now.model()
            self.history.append(make_history_entry(now, model))
            self.show_measurements(model, self.history)
        is_checkpoint = now.step % self.every == 0 or is_last
        if is_checkpoint:
            self.write_checkpoint(now)
        if is_checkpoint or now.ends:
            self.write_state(now)

    def write_checkpoint(self, now: StepSnapshot) -> None:
        """Write the model as it is now to the folder ``step-N``, N being the step.

        It is written under another name first, so that a folder of that name is whole. Raises
        OutputError.
        """
        self.prepare_folder()
        model = now.model()
        folder = self.folder / f"step-{now.step}"
        model.about["scores"] = describe_best_heads(model)
        # This run wrote it when it was at this step before, or it is to be replaced.
        if folder.exists():
            store.write_stored_model(folder, model)
            return
        unfinished = folder.with_name(f".{folder.name}")
        try:
            store.write_stored_model(unfinished, model)
            unfinished.rename(folder)
        finally:
            discard_model(unfinished)

    def write_state(self, now: StepSnapshot) -> None:
        """Write the history of the run, and then all that is needed to go on from this step.

        The history is first: if only one of them is written, the older state goes on without the
        newer measurements. Raises OutputError.
        """
        self.prepare_folder()
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

    def remove_state(self) -> None:
        """Remove the file of the state: the model is written, so that nothing is left to do."""
        remove_file(self.folder / STATE)


def describe_best_heads(model: store.StoredModel) -> dict[str, Any]:
    """Describe the best head for each role, such as induction, as config.json keeps it.

    Returns, by role: the head's name, the mean and the deviation of its scores, and their number n.
    """
    described = {}
    for role, scores in score_repeated_blocks(model).items():
        best = evaluate.name_best_head(scores)
        described[role] = {**best._asdict(), "n": SEQUENCES}
    return described


def make_history_entry(now: StepSnapshot, model: store.StoredModel) -> dict[str, Any]:
    """Make one measurement of all heads as an entry of history.json.

    now: the run after a step. model: the model at that step. Scores are lists [layer][head] for
    each role, means over sequences; the loss is None if it is not a number.
    """
    scores = {}
    for role, role_scores in score_repeated_blocks(model).items():
        scores[role] = round_scores(role_scores.mean(0))
    return {
        "step": now.step,
        "stage": now.stage,
        "loss": round_number(now.loss),
        "tokens": now.tokens,
        "scores": scores,
    }


def score_repeated_blocks(model: store.StoredModel) -> dict[str, Array]:
    """Score all heads on some sequences that repeat a random block of tokens.

    Returns for each role, such as induction, scores (sequence, layer, head).
    """
    ids = evaluate.make_repeated_blocks(model.config, SEQUENCES)
    return evaluate.score_model_roles(model.parameters, model.config, ids)


def round_scores(scores: Array) -> list[list[float | None]]:
    """Round scores (layer, head) to four digits after the point, as lists."""
    return [[round_number(score) for score in layer_scores] for layer_scores in scores]


def round_number(number: float) -> float | None:
    """Round a number to four digits after the point.

    Returns None for NaN and the infinities, which JSON cannot hold: training may have diverged.
    """
    if not math.isfinite(number):
        return None
    return round(float(number), 4)


def identify_run(setting: dict[str, Any], *texts: Sequence[str]) -> dict[str, Any]:
    """Return the identity of a run, by which it is known whether it can be gone on with.

    setting: the options of the run. texts: lists of documents that it learns from. The identity is
    the setting and a digest of all texts.
    """
    digest = hashlib.sha256()
    for documents in texts:
        for document in documents:
            digest.update(document.encode() + b"\0")
        digest.update(b"\1")
    return {"setting": setting, "texts": digest.hexdigest()}


def read_resume_point(folder: Path, identity: dict[str, Any]) -> ResumePoint:
    """Read the state from which the interrupted run in a folder goes on.

    identity: the setting and the digest of the texts that the run must have begun with. Raises
    UsageError if there is no such run or it has another setting, InputError if it learnt from other
    texts or its files are damaged.
    """
    require_interrupted_run(folder)
    try:
        resume_point, kept_identity = read_state(folder)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the run in {folder} cannot be gone on with, its {STATE} or {HISTORY} is damaged: "
            "begin again with --force",
        ) from error
    require_same_run(folder, kept_identity, identity)
    return resume_point


def read_state(folder: Path) -> tuple[ResumePoint, dict[str, Any]]:
    """Read the state of the interrupted run in a folder, and the run's identity.

    The identity is its setting and a digest of its texts. Measurements of the history that are
    later than the state are left out. A file that is missing or damaged raises OSError,
    LookupError, TypeError or ValueError.
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
    """Read the measurements of a run, and how many tokens its repeated block has.

    run: the folder of the run, or its history.json. Raises InputError if there is no history, or it
    is damaged or empty.
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
    """Raise an error unless the measurements of a run can be drawn.

    history: the entries of history.json, in which anything may stand. block: tokens of the repeated
    block. The error is a LookupError, TypeError, AttributeError or ValueError.
    """
    steps = [measured["step"] for measured in history]
    losses = [measured["loss"] for measured in history]
    loss_numbers = untrusted.read_number_lists(losses, "loss")
    score_numbers = []
    for role in history[-1]["scores"]:
        role_scores = [measured["scores"][role] for measured in history]
        score_numbers.append(untrusted.read_number_lists(role_scores, role))
    if not all(is_drawable_count(count) for count in (block, *steps)):
        raise ValueError
    if steps != sorted({*steps}):
        raise ValueError
    if not score_numbers or not all(map(are_head_scores, score_numbers)):
        raise ValueError
    if any(map(is_out_of_range, (loss_numbers, *score_numbers))):
        raise ValueError


def are_head_scores(scores: Array) -> bool:
    """Return whether an array has the axes (measurement, layer, head), and is not empty."""
    return bool(scores.ndim == 3 and scores.size)


def is_out_of_range(numbers: Array) -> bool:
    """Return whether some number of an array is too large to be drawn."""
    return bool((np.abs(numbers) > MOST).any())


def is_drawable_count(count: Any) -> bool:
    """Return whether a value of any type is a number of steps or tokens that can be drawn."""
    return type(count) is int and 0 < count <= MOST


def require_interrupted_run(folder: Path) -> None:
    """Raise UsageError unless a folder has the state of an interrupted run."""
    if not (folder / STATE).is_file():
        raise UsageError(
            f"there is no interrupted run in {folder}: leave --resume out, "
            "or put --force in its place, to begin one",
        )


def require_same_run(folder: Path, kept_identity: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise an error unless a run began with the same options, and learns from the same texts.

    kept_identity: the setting and the digest of the texts with which the run in the folder began.
    identity: those of now. Raises UsageError for another option, which it names, and InputError for
    other texts.
    """
    for name, value in identity["setting"].items():
        kept_value = kept_identity["setting"].get(name)
        if kept_value != value:
            raise UsageError(
                f"the run in {folder} began with --{name} {kept_value}, not {value}: "
                "give the same to go on",
            )
    if kept_identity != identity:
        raise InputError(
            f"the run in {folder} learns from other texts than these: give the same to go on",
        )


def clear_run(folder: Path) -> None:
    """Delete what an earlier run left in a folder beside its model.

    Its checkpoints are deleted as well, so that none in the folder is of another run.
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
