"""How much worse a model predicts without some of its heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.roles import ROLES, Data
from attnviz.drawable import Table
from attnviz.record import Doubles
from attnviz.request import Replacement
from attnviz.selection import Head
from attnviz.views.labels import head_name

HOWS: tuple[Replacement, ...] = "zero", "mean"  # replacements of which the losses are measured
DATA: dict[Data, str] = {"repeated": "repeats", "text": "text"}


class LossSpread(NamedTuple):
    """A mean loss in nats per token, with the deviation of a sample; NaN where undefined."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, losses: Sequence[float] | Doubles) -> "LossSpread":
        """Make the spread of some losses: no mean of none, no deviation of one."""
        if not len(losses):
            return cls(np.nan, np.nan, 0)
        sd = float(np.std(losses, ddof=1)) if len(losses) > 1 else np.nan
        return cls(float(np.mean(losses)), sd, len(losses))


class LossRise(NamedTuple):
    """How much the loss rises without some heads."""

    own: LossSpread
    """Over sequences or texts."""
    others: LossSpread
    """Over other heads, or sets of as many, of the mean rise without these."""


@dataclass(frozen=True)
class AblatedHeads:
    """What was measured without one head, or all of a role."""

    heads: tuple[Head, ...]
    role: str | None
    rises: Mapping[tuple[Data, Replacement], LossRise]


@dataclass(frozen=True)
class Ablation:
    """The loss of a whole model, and without heads."""

    loss: Mapping[Data, LossSpread]
    """Of the whole model."""
    ablated: tuple[AblatedHeads, ...]


# For JSON and CSV


def describe_ablation(ablation: Ablation) -> dict[str, Any]:
    """Describe the losses of the whole model and without heads, for JSON."""
    return {
        "loss": {data: loss._asdict() for data, loss in ablation.loss.items()},
        "without": [describe_ablated(ablated) for ablated in ablation.ablated],
    }


def describe_ablated(ablated: AblatedHeads) -> dict[str, Any]:
    """Describe how much the loss rises without some heads, by data and replacement, for JSON."""
    rises: dict[str, dict[str, Any]] = {}
    for (data, replacement), rise in ablated.rises.items():
        described = {**rise.own._asdict(), "others": rise.others._asdict()}
        rises.setdefault(data, {})[replacement] = described
    return {"heads": ablated.heads, "role": ablated.role, "rise": rises}


def list_rises(ablation: Ablation) -> list[dict[str, Any]]:
    """List how much the loss rises without heads, and without others."""
    return [row for ablated in ablation.ablated for row in list_ablated_rises(ablated)]


def list_ablated_rises(ablated: AblatedHeads) -> list[dict[str, Any]]:
    """List how much the loss rises without some heads, by data and replacement."""
    heads = " ".join(head_name(*head) for head in ablated.heads)
    rows = []
    for (data, replacement), rise in ablated.rises.items():
        others = {f"others_{name}": value for name, value in rise.others._asdict().items()}
        row = {"heads": heads, "role": ablated.role, "data": data, "replaced_by": replacement}
        rows.append({**row, **rise.own._asdict(), **others})
    return rows


# As a table


def make_ablation_table(ablation: Ablation) -> Table:
    """Make a table of how much the loss rises without heads, and without others."""
    measured = [(data, how) for data in DATA if data in ablation.loss for how in HOWS]
    columns: list[str] = []
    for data, how in measured:
        columns += (f"{DATA[data]}, {how}", "others")
    spreads = [list_spreads(ablated, measured) for ablated in ablation.ablated]
    means = np.array([[spread.mean for spread in row] for row in spreads])
    means = means.reshape(len(spreads), -1)
    largest = np.nanmax(means, initial=1e-9)
    return Table(
        "the loss without heads: rise in nats per token",
        "without",
        tuple(columns),
        tuple(name_ablated(ablated) for ablated in ablation.ablated),
        tuple(tuple(format_loss(spread, "+") for spread in row) for row in spreads),
        np.sqrt(means.clip(0) / largest).astype(np.float32),
        ablation_lines(ablation),
        group=2,
    )


def list_spreads(
    ablated: AblatedHeads, measured: Sequence[tuple[Data, Replacement]]
) -> list[LossSpread]:
    """List the rise without some heads and that without others, for each data and replacement."""
    spreads: list[LossSpread] = []
    for data, replacement in measured:
        rise = ablated.rises[data, replacement]
        spreads += (rise.own, rise.others)
    return spreads


def ablation_lines(ablation: Ablation) -> tuple[str, ...]:
    """Say what the losses are, and what stands in place of heads."""
    losses = [f"{format_loss(loss)} on {DATA[data]}" for data, loss in ablation.loss.items()]
    return (
        f"loss of the whole model {', '.join(losses)}: nats per token, mean ± deviation; on repeats "
        "that of the second copy, its first token left out",
        "zero, mean: what a head puts out is replaced by zeros, or by its mean over all queries of the data",
        "others: without as many heads of the same layers that do not play the role, of all layers "
        "if these are too few; mean ± deviation over up to 5 draws",
    )


def name_ablated(ablated: AblatedHeads) -> str:
    """Name one head by its name, several by their number, and add the role."""
    count = len(ablated.heads)
    name = head_name(*ablated.heads[0]) if count == 1 else f"all {count}"
    return name if ablated.role is None else f"{name} {ROLES[ablated.role].short}"


def format_loss(spread: LossSpread, sign: str = "") -> str:
    """Format a mean in nats with its deviation; empty if there is none.

    sign: "+" shows it always.
    """
    if not spread.n:
        return ""
    mean = f"{spread.mean:{sign}.2f}"
    return f"{mean} ± {spread.sd:.2f}" if np.isfinite(spread.sd) else mean
