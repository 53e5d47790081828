"""The history of a training: the loss and the best heads of a model over the steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, scale_above_chance
from attnviz.drawable import (
    Curve,
    Curves,
    Mark,
    Picture,
    Plot,
    Table,
    make_blank_levels,
)
from attnviz.escape import escape
from attnviz.record import Floats, Visible
from attnviz.results.digits import format_fixed
from attnviz.results.result import Result
from attnviz.views.labels import abbreviate_head

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40  # signs
BEST_HEADS = 2  # of each role
EXPLAIN_SPARKLINES = (
    "loss in nats per token, its curve from 0; scores from 0 to 1, of a repeated random block"
)
STARTED, HALF, NEARLY_DONE = 0.1, 0.5, 0.9  # shares of the last score of an induction head

Measurement: TypeAlias = Mapping[str, Any]
"""An entry of history.json: step, stage, loss, tokens, and scores by role, [layer][head]."""


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """The measurements of a model while it was trained."""

    history: Sequence[Measurement]
    """One at least, by rising steps."""
    block: int
    """Tokens of the random block whose repetition the scores are of."""

    def to_dict(self) -> dict[str, Any]:
        """Return all measurements as a document."""
        return {"block": self.block, "history": self.history}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each score of each head at each step, with the loss at that step."""
        roles = self.history[-1]["scores"]
        rows = []
        for measurement in self.history:
            for role in roles:
                rows += list_measured_scores(measurement, role)
        return rows

    def tables(self) -> list[Picture]:
        """Return the loss and the scores of the best heads over the steps."""
        return [make_learning_curves(self.history, self.block)]


def list_measured_scores(measurement: Measurement, role: str) -> list[dict[str, Any]]:
    """List the scores of all heads in one role at one step as rows, each with the loss.

    measurement: has the step, the loss, and scores by role, as lists [layer][head].
    """
    rows = []
    for layer, scores in enumerate(measurement["scores"][role]):
        for head, score in enumerate(scores):
            row = {"step": measurement["step"], "loss": measurement["loss"], "role": role}
            row |= {"layer": layer, "head": head, "score": score}
            rows.append(row)
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
        return abbreviate_head(self.layer, self.head)


def find_best_heads(history: Sequence[Measurement]) -> Iterator[HeadHistory]:
    """Yield the two heads with the highest last scores in each role, with all their scores.

    history: measurements during a training, by rising steps. An undefined score counts as the
    least.
    """
    for role in history[-1]["scores"]:
        scores_by_step = [measurement["scores"][role] for measurement in history]
        scores = np.array(scores_by_step, np.float32)  # (step, layer, head), None becomes NaN
        last_scores = np.nan_to_num(scores[-1], nan=-1.0).ravel()
        falling = np.argsort(-last_scores, kind="stable")
        role_name = escape(role.replace("_", "-"))
        head_count = scores.shape[-1]
        for index in falling[:BEST_HEADS].tolist():
            layer, head = divmod(index, head_count)
            yield HeadHistory(role_name, layer, head, scores[:, layer, head])


def collect_losses(history: Sequence[Measurement]) -> Floats:
    """Collect the losses of all measurements, (step,), NaN where there is none."""
    return np.array([measurement["loss"] for measurement in history], np.float32)


# As a table that is drawn while training goes on


def make_progress_table(history: Sequence[Measurement]) -> Table:
    """Make a table of sparklines, of the loss and of the best heads, over the steps so far.

    The sparkline of the loss goes from 0 to its highest, those of scores go from 0 to 1. The last
    number stands beside each.
    """
    losses = collect_losses(history)
    highest = 1.0
    if np.isfinite(losses).any():
        highest = float(np.nanmax(losses))
    names = ["loss"]
    cells = [draw_progress(losses / highest, last=losses[-1])]
    for head in find_best_heads(history):
        names.append(f"{head.role} {head.name}")
        cells.append(draw_progress(head.scores, last=head.scores[-1]))
    first, last = history[0], history[-1]
    steps = f"steps {first['step']} to {last['step']}"
    levels = make_blank_levels(len(cells), 2)
    return Table(
        title="loss and best heads",
        corner="",
        columns=(steps, "now"),
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=(EXPLAIN_SPARKLINES,),
        texts=frozenset({0}),
    )


def draw_progress(values: Floats, last: float) -> tuple[str, str]:
    """Draw numbers from 0 to 1 as a sparkline, and format a last number to stand beside it."""
    return draw_sparkline(values), format_fixed(last, 2)


def draw_sparkline(values: Floats) -> str:
    """Draw numbers from 0 to 1 as blocks of rising height, and a space for NaN.

    Of many numbers only some are drawn, evenly spread, the first and the last among them.

    >>> draw_sparkline(np.array([0, 0.5, 1, np.nan], np.float32))
    '▁▅█ '
    """
    if len(values) > SPARKLINE_WIDTH:
        last = len(values) - 1
        indices = np.linspace(0, last, SPARKLINE_WIDTH).round()
        values = values[indices.astype(int)]
    highest = len(BLOCKS) - 1
    scaled = np.nan_to_num(values) * len(BLOCKS)
    heights = np.clip(scaled, 0, highest).astype(int)
    signs = [BLOCKS[height] for height in heights]
    for index in np.flatnonzero(np.isnan(values)):
        signs[index] = " "
    return "".join(signs)


def summarise_last_measurement(history: Sequence[Measurement]) -> str:
    """Describe the last measurement in a line: step, loss, and the best head of each role.

    history: measurements during a training, by rising steps.
    """
    last = history[-1]
    step, loss = last["step"], last["loss"]
    pieces = [f"step {step}: loss"]
    if loss is not None:
        pieces = [f"step {step}: loss {loss:.3f}"]
    best_by_role: dict[str, HeadHistory] = {}
    for head in find_best_heads(history):
        # The best of a role comes first.
        best_by_role.setdefault(head.role, head)
    for role, head in best_by_role.items():
        score = format_fixed(head.scores[-1], 2)
        pieces.append(f"{role} {head.name} {score}")
    return ", ".join(pieces)


# As curves


class Event(NamedTuple):
    """Something that happened in a training."""

    line: str
    """The line of the caption about it."""
    mark: Mark | None = None
    """The step at which it happened, if it did."""


def make_learning_curves(history: Sequence[Measurement], block: int) -> Curves:
    """Make curves of the loss and of the best heads, and mark where induction appears.

    history: measurements during a training, by rising steps. block: the number of tokens of the
    random block whose repetition the scores are of. Source of the phase change: Olsson et al. 2022.
    """
    steps = tuple(measurement["step"] for measurement in history)
    heads = list(find_best_heads(history))
    lines, marks = [], []
    for event in list_events(history, heads, block):
        lines.append(event.line)
        if event.mark is not None:
            marks.append(event.mark)
    plots = make_loss_plot(history), make_scores_plot(heads, block)
    return Curves(
        title="learning curves",
        name="training steps",
        steps=steps,
        plots=plots,
        caption=tuple(lines),
        marks=tuple(marks),
    )


def make_loss_plot(history: Sequence[Measurement]) -> Plot:
    """Make the plot of the loss over the steps, between whole numbers of nats."""
    losses = collect_losses(history)
    known = losses[np.isfinite(losses)]
    low, high = 0.0, 1.0
    if len(known):
        low = float(np.floor(known.min()))
        high = float(np.ceil(known.max()))
    measure = "loss in nats per token of text and of repeated random blocks, a running mean"
    curve = Curve("loss", losses)
    # Where all losses are one whole number, the plot needs a height.
    high = max(high, low + 1)
    return Plot(measure, low, high, (curve,))


def make_scores_plot(heads: Sequence[HeadHistory], block: int) -> Plot:
    """Make the plot of the scores of the best heads over the steps, from 0 to 1.

    block: the number of random tokens that are repeated.
    """
    measure = f"scores of the best heads, on repeated blocks of {block} random tokens"
    curves = []
    for head in heads:
        name = f"{head.role} {head.name}"
        curves.append(Curve(name, head.scores))
    return Plot(measure, 0.0, 1.0, tuple(curves))


def list_events(
    history: Sequence[Measurement],
    heads: Sequence[HeadHistory],
    block: int,
) -> list[Event]:
    """List when induction appeared, or that it did not, and when the vocabulary was widened.

    history: measurements during a training, by rising steps. heads: the best of each role, those
    with the highest last scores first. block: the number of random tokens that are repeated.
    """
    steps = [measurement["step"] for measurement in history]
    induction_heads = [head for head in heads if head.role == "induction"]
    threshold = ROLES["induction"].threshold
    events = []
    if induction_heads and threshold is not None:
        best = induction_heads[0]
        events.append(find_appearance(steps, best, block, threshold))
    widening = find_widening(history)
    if widening is not None:
        events.append(widening)
    return events


def find_appearance(steps: Sequence[int], best: HeadHistory, block: int, threshold: float) -> Event:
    """Find when the best induction head reached half of its last score, and how abruptly.

    steps: those of the scores of the head. block: the number of random tokens that are repeated.
    threshold: the score beyond chance from which a head has induction as its role. A head that is
    below it has not appeared, and the event then has no step. Chance is the score of a head that
    attends equally to all that it sees.
    """
    final = float(best.scores[-1])
    chance = compute_induction_chance(block)
    chance_line = f"chance is {chance:.2f}"
    is_named = scale_above_chance(final, chance) >= threshold  # False for NaN
    if not is_named:
        least = chance + threshold * (1 - chance)
        score = format_fixed(final, 2) or "no score"
        nothing_yet = f"no induction head so far: the best, {best.name}, has {score}"
        return Event(f"{nothing_yet}; {chance_line}, and {least:.2f} would name one")
    start = find_first_step(steps, best.scores >= STARTED * final)
    half = find_first_step(steps, best.scores >= HALF * final)
    end = find_first_step(steps, best.scores >= NEARLY_DONE * final)
    half_line = f"{best.name} is at half of its last score, {final:.2f}, by step {half:,}"
    span = f"from a tenth of it (step {start:,}) to nine tenths (step {end:,})"
    duration = f"it takes {end - start:,} steps"
    mark = Mark(half, f"induction {best.name} at half")
    return Event(f"induction: {half_line}; {span} {duration}; {chance_line}", mark)


def compute_induction_chance(block: int) -> float:
    """Return the induction score of a head that attends equally to all it sees, behind one BOS.

    block: the number of random tokens, which come twice, one copy after the other.
    """
    visible_counts = np.arange(block + 2, 2 * block + 2)  # of the queries of the second copy
    return float((1 / visible_counts).mean())


def find_first_step(steps: Sequence[int], is_reached: Visible) -> int:
    """Return the first of some steps at which a score is reached.

    is_reached: (step,), True for one step at least.
    """
    index = int(np.argmax(is_reached))
    return steps[index]


def find_widening(history: Sequence[Measurement]) -> Event | None:
    """Find the step at which a second stage, with the whole vocabulary, begins.

    history: measurements during a training, by rising steps. None if there is no second stage, or
    no first, or if an old history does not say which stage a step is of.
    """
    second_stage = [measurement for measurement in history if measurement.get("stage") == 1]
    if not second_stage or second_stage[0]["step"] == history[0]["step"]:
        return None
    step = second_stage[0]["step"]
    mark = Mark(step, "whole vocabulary")
    reason = "its tokens are longer, so losses before and after do not compare"
    return Event(f"the whole vocabulary by step {step:,}: {reason}", mark)
