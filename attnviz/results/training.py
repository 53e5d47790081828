"""How a model came to be what it is: its loss and its best heads over the steps of training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, beyond
from attnviz.drawable import Curve, Curves, Mark, Picture, Plot, Table
from attnviz.escape import escape
from attnviz.record import Floats
from attnviz.results.result import Result
from attnviz.views.labels import head_name

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40  # signs
BEST_HEADS = 2  # of each role

Measurement: TypeAlias = Mapping[str, Any]
"""An entry of history.json: step, stage, loss, tokens, and scores by role, [layer][head]."""


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """What was measured of a model while it was trained."""

    history: Sequence[Measurement]
    """One at least, by rising steps."""
    block: int
    """Tokens of the random block whose repetition the scores are of."""

    def to_dict(self) -> dict[str, Any]:
        """Return all measurements as a document."""
        return {"block": self.block, "history": self.history}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each score of each head at each step, with the loss there."""
        roles = self.history[-1]["scores"]
        return [
            row
            for measurement in self.history
            for role in roles
            for row in list_scores(measurement, role)
        ]

    def tables(self) -> list[Picture]:
        """Return the loss and the scores of the best heads over the steps."""
        return [make_learning_curves(self.history, self.block)]


def list_scores(measurement: Measurement, role: str) -> list[dict[str, Any]]:
    """List the scores of all heads in a measurement, with the loss."""
    rows = []
    for layer, scores in enumerate(measurement["scores"][role]):
        for head, score in enumerate(scores):
            named = {"step": measurement["step"], "loss": measurement["loss"], "role": role}
            rows.append({**named, "layer": layer, "head": head, "score": score})
    return rows


# The best heads


class HeadHistory(NamedTuple):
    """A head and its score over the steps that were measured."""

    role: str
    layer: int
    head: int
    scores: Floats

    @property
    def name(self) -> str:
        """The head by its short name."""
        return head_name(self.layer, self.head)


def find_best_heads(history: Sequence[Measurement]) -> Iterator[HeadHistory]:
    """Find the heads with the highest scores in the last measurement, two of each role.

    An undefined score is the least.
    """
    for role in history[-1]["scores"]:
        of_role = [measurement["scores"][role] for measurement in history]
        scores = np.array(of_role, np.float32)  # (step, layer, head), None becomes NaN
        last = np.nan_to_num(scores[-1], nan=-1.0).ravel()
        falling = np.argsort(-last, kind="stable")
        for place in falling[:BEST_HEADS].tolist():
            layer, head = divmod(place, scores.shape[-1])
            name = escape(role.replace("_", "-"))
            yield HeadHistory(name, layer, head, scores[:, layer, head])


def collect_losses(history: Sequence[Measurement]) -> Floats:
    """Collect the losses of all measurements, NaN where there is none."""
    return np.array([measurement["loss"] for measurement in history], np.float32)


# As a table that is drawn while training goes on


def make_progress_table(history: Sequence[Measurement]) -> Table:
    """Make sparklines of the loss and of the best heads, over the steps so far.

    That of the loss goes from 0 to its highest, those of scores from 0 to 1.
    """
    losses = collect_losses(history)
    heads = list(find_best_heads(history))
    highest = np.nanmax(losses) if np.isfinite(losses).any() else 1.0
    cells = [(draw_sparkline(losses / highest), format_number(losses[-1]))]
    cells += [(draw_sparkline(head.scores), format_number(head.scores[-1])) for head in heads]
    steps = f"steps {history[0]['step']} to {history[-1]['step']}"
    return Table(
        "loss and best heads",
        "",
        (steps, "now"),
        ("loss", *(f"{head.role} {head.name}" for head in heads)),
        tuple(cells),
        np.full((len(cells), 2), np.nan, np.float32),
        (
            "loss in nats per token, its curve from 0; scores from 0 to 1, of a repeated random block",
        ),
        frozenset({0}),
    )


def draw_sparkline(values: Floats) -> str:
    """Draw numbers from 0 to 1 as blocks, and a space where there is no number.

    Of many only some are drawn, the first and the last among them.

    >>> draw_sparkline(np.array([0, 0.5, 1, np.nan], np.float32))
    '▁▅█ '
    """
    if len(values) > SPARKLINE_WIDTH:
        places = np.linspace(0, len(values) - 1, SPARKLINE_WIDTH).round().astype(int)
        values = values[places]
    heights = np.clip(np.nan_to_num(values) * len(BLOCKS), 0, len(BLOCKS) - 1).astype(int)
    return "".join(
        " " if np.isnan(value) else BLOCKS[height]
        for value, height in zip(values, heights, strict=True)
    )


def format_number(value: float) -> str:
    """Format a number with two digits after the point; empty if there is none."""
    return "" if np.isnan(value) else f"{value:.2f}"


def summarise_measurement(history: Sequence[Measurement]) -> str:
    """Say the last measurement in a line, with the best head of each role."""
    step, loss = history[-1]["step"], history[-1]["loss"]
    best: dict[str, HeadHistory] = {}
    for head in find_best_heads(history):
        best.setdefault(head.role, head)
    pieces = [f"step {step}: loss" if loss is None else f"step {step}: loss {loss:.3f}"]
    pieces += [
        f"{role} {head.name} {format_number(head.scores[-1])}" for role, head in best.items()
    ]
    return ", ".join(pieces)


# As curves


class Event(NamedTuple):
    """Something that happened in a training."""

    line: str
    """Of the caption."""
    mark: Mark | None = None
    """Where it happened, if it did."""


def make_learning_curves(history: Sequence[Measurement], block: int) -> Curves:
    """Make curves of the loss and of the best heads, and mark where induction appears.

    block: tokens of the random block whose repetition the scores are of. Source of the phase
    change: Olsson et al. 2022.
    """
    steps = tuple(measurement["step"] for measurement in history)
    heads = list(find_best_heads(history))
    events = list_events(history, heads, block)
    return Curves(
        "learning curves",
        "training steps",
        steps,
        (make_loss_plot(history), make_scores_plot(heads, block)),
        tuple(event.line for event in events),
        tuple(event.mark for event in events if event.mark is not None),
    )


def make_loss_plot(history: Sequence[Measurement]) -> Plot:
    """Make the plot of the loss, between whole numbers of nats."""
    losses = collect_losses(history)
    known = losses[np.isfinite(losses)]
    low, high = 0.0, 1.0
    if len(known):
        low, high = float(np.floor(known.min())), float(np.ceil(known.max()))
    measure = "loss in nats per token of text and of repeated random blocks, a running mean"
    return Plot(measure, low, max(high, low + 1), (Curve("loss", losses),))


def make_scores_plot(heads: Sequence[HeadHistory], block: int) -> Plot:
    """Make the plot of the scores of the best heads."""
    measure = f"scores of the best heads, on repeated blocks of {block} random tokens"
    curves = tuple(Curve(f"{head.role} {head.name}", head.scores) for head in heads)
    return Plot(measure, 0.0, 1.0, curves)


def list_events(
    history: Sequence[Measurement], heads: Sequence[HeadHistory], block: int
) -> list[Event]:
    """List when induction appeared, and when the vocabulary was widened, if they did."""
    steps = [measurement["step"] for measurement in history]
    best = next((head for head in heads if head.role == "induction"), None)
    threshold = ROLES["induction"].threshold
    events = []
    if best is not None and threshold is not None:
        events.append(find_appearance(steps, best, block, threshold))
    widening = find_widening(history)
    return events if widening is None else [*events, widening]


def find_appearance(steps: Sequence[int], best: HeadHistory, block: int, threshold: float) -> Event:
    """Find when the best induction head came to half of its last score, and how abruptly.

    A head that is not beyond chance is none. Chance is the score of a head that attends to all it
    sees alike; threshold: that of ``attnviz heads``.
    """
    final, chance = float(best.scores[-1]), induction_chance(block)
    is_named = beyond(final, chance) >= threshold  # which NaN is not
    if not is_named:
        least = chance + threshold * (1 - chance)
        return Event(
            f"no induction head so far: the best, {best.name}, has {format_number(final) or 'no score'}; "
            f"chance is {chance:.2f}, and {least:.2f} would name one"
        )
    tenth, half, most = (
        first_step(steps, best.scores >= share * final) for share in (0.1, 0.5, 0.9)
    )
    line = (
        f"induction: {best.name} is at half of its last score, {final:.2f}, by step {half:,}; "
        f"from a tenth of it (step {tenth:,}) to nine tenths (step {most:,}) it takes {most - tenth:,} steps; "
        f"chance is {chance:.2f}"
    )
    return Event(line, Mark(half, f"induction {best.name} at half"))


def induction_chance(block: int) -> float:
    """Return the induction score of a head that attends to all it sees alike, behind one BOS."""
    visible_keys = np.arange(block + 2, 2 * block + 2)  # of the queries of the second copy
    return float((1 / visible_keys).mean())


def first_step(steps: Sequence[int], reached: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """Return the first step at which something was reached."""
    return steps[int(np.argmax(reached))]


def find_widening(history: Sequence[Measurement]) -> Event | None:
    """Find where a second stage with the whole vocabulary begins; None if there is none.

    Old histories do not say.
    """
    second_stage = [measurement["step"] for measurement in history if measurement.get("stage") == 1]
    if not second_stage or second_stage[0] == history[0]["step"]:
        return None
    step = second_stage[0]
    line = f"the whole vocabulary by step {step:,}: its tokens are longer, so losses before and after do not compare"
    return Event(line, Mark(step, "whole vocabulary"))
