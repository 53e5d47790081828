"""How a model came to be what it is: its loss, and the scores of its best heads, over the steps of its training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, beyond
from attnviz.drawable import Curve, Curves, Mark, Plot, Table
from attnviz.escape import escape
from attnviz.record import Floats
from attnviz.views.labels import head_name

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 40  # signs of a curve
BEST = 2  # heads of each role
Measured = Mapping[str, Any]  # an entry of history.json
Told: TypeAlias = tuple[tuple[str, ...], tuple[Mark, ...]]  # lines of a caption, and what they tell of


class Followed(NamedTuple):
    """A head and its score over the steps that were measured."""

    role: str
    layer: int
    head: int
    scores: Floats


def best(history: Sequence[Measured]) -> Iterator[Followed]:
    """The heads with the highest scores in the last measurement, two of each role. An undefined score is the least."""
    for role in history[-1]["scores"]:
        scores = np.array([measured["scores"][role] for measured in history], np.float32)  # (step, layer, head)
        ranks = np.nan_to_num(scores[-1], nan=-1.0).ravel()
        for place in np.argsort(-ranks, kind="stable")[:BEST].tolist():
            layer, head = divmod(place, scores.shape[-1])
            yield Followed(escape(role.replace("_", "-")), layer, head, scores[:, layer, head])


def curves(history: Sequence[Measured]) -> Table:
    """The loss, from 0 to its highest, and the scores of the best heads, from 0 to 1, over the steps so far."""
    losses = np.array([measured["loss"] for measured in history], np.float32)
    found = list(best(history))
    rows = "loss", *(f"{one.role} {head_name(one.layer, one.head)}" for one in found)
    top = np.nanmax(losses) if np.isfinite(losses).any() else 1.0
    cells = (curve(losses / top), told(losses[-1])), *((curve(one.scores), told(one.scores[-1])) for one in found)
    return Table(
        "loss and best heads",
        "",
        (f"steps {history[0]['step']} to {history[-1]['step']}", "now"),
        rows,
        cells,
        np.full((len(rows), 2), np.nan, np.float32),
        ("loss in nats per token, its curve from 0; scores from 0 to 1, of a repeated random block",),
        frozenset({0}),
    )


def learning_curves(history: Sequence[Measured], block: int) -> Curves:
    """The loss above the scores of the best heads, and where induction appears (Olsson et al. 2022).

    block: tokens of the random block whose repetition the scores are of.
    """
    losses = np.array([measured["loss"] for measured in history], np.float32)
    found = list(best(history))
    steps = tuple(measured["step"] for measured in history)
    known = losses[np.isfinite(losses)]
    low, high = (np.floor(known.min()), np.ceil(known.max())) if len(known) else (0.0, 1.0)
    heads = tuple(Curve(f"{one.role} {head_name(one.layer, one.head)}", one.scores) for one in found)
    measure = "loss in nats per token of text and of repeated random blocks, a running mean"
    plots = (
        Plot(measure, float(low), float(max(high, low + 1)), (Curve("loss", losses),)),
        Plot(f"scores of the best heads, on repeated blocks of {block} random tokens", 0.0, 1.0, heads),
    )
    formed, appears = appearance(steps, next((one for one in found if one.role == "induction"), None), block)
    widened, widens = widening(history)
    return Curves("learning curves", "training steps", steps, plots, (*formed, *widened), (*appears, *widens))


def appearance(steps: Sequence[int], best: Followed | None, block: int) -> Told:
    """When the best induction head came to half of its last score, and how abruptly; or that none is beyond chance.

    Chance is the score of a head that attends to all it sees alike, the threshold that of ``attnviz heads``.
    """
    threshold = ROLES["induction"].threshold
    if best is None or threshold is None:
        return (), ()
    name, final = head_name(best.layer, best.head), float(best.scores[-1])
    chance = float((1 / np.arange(block + 2, 2 * block + 2)).mean())
    if not beyond(final, chance) >= threshold:  # which NaN is not
        least = chance + threshold * (1 - chance)
        return (
            f"no induction head so far: the best, {name}, has {told(final) or 'no score'}; "
            f"chance is {chance:.2f}, and {least:.2f} would name one",
        ), ()
    tenth, half, most = (steps[int(np.argmax(best.scores >= share * final))] for share in (0.1, 0.5, 0.9))
    return (
        f"induction: {name} is at half of its last score, {final:.2f}, by step {half:,}; "
        f"from a tenth of it (step {tenth:,}) to nine tenths (step {most:,}) it takes {most - tenth:,} steps; "
        f"chance is {chance:.2f}",
    ), (Mark(half, f"induction {name} at half"),)


def widening(history: Sequence[Measured]) -> Told:
    """Where a second stage with the whole vocabulary begins, if there is one. Old histories do not say."""
    later = next((one["step"] for one in history if one.get("stage") == 1), None)
    if later is None or later == history[0]["step"]:
        return (), ()
    return (
        f"the whole vocabulary by step {later:,}: its tokens are longer, so losses before and after do not compare",
    ), (Mark(later, "whole vocabulary"),)


def curve(values: Floats) -> str:
    """Numbers from 0 to 1 as blocks, of many some, the first and the last among them; a space where there is no number.

    >>> curve(np.array([0, 0.5, 1, np.nan], np.float32))
    '▁▅█ '
    """
    if len(values) > CURVE:
        values = values[np.linspace(0, len(values) - 1, CURVE).round().astype(int)]
    steps = np.clip(np.nan_to_num(values) * len(BLOCKS), 0, len(BLOCKS) - 1).astype(int)
    return "".join(" " if np.isnan(value) else BLOCKS[step] for value, step in zip(values, steps, strict=True))


def told(value: float) -> str:
    """A number as it is shown, nothing for none."""
    return "" if np.isnan(value) else f"{value:.2f}"


def line(history: Sequence[Measured]) -> str:
    """The last measurement in a line, with the best head of each role."""
    heads = {one.role: one for one in reversed(list(best(history)))}
    scores = [f"{one.role} {head_name(one.layer, one.head)} {told(one.scores[-1])}" for one in reversed(heads.values())]
    loss = history[-1]["loss"]
    return ", ".join([f"step {history[-1]['step']}: loss {'' if loss is None else f'{loss:.3f}'}".rstrip(), *scores])
