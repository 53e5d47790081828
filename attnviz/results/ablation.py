"""The loss of a model without some of its heads: how much worse it predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, RoleData
from attnviz.drawable import Table
from attnviz.record import Doubles, Floats
from attnviz.request import Replacement
from attnviz.selection import Head
from attnviz.views.labels import abbreviate_head

MEASURED_REPLACEMENTS: tuple[Replacement, ...] = (
    "zero",
    "mean",
)  # replacements of which the losses are measured
DATA: dict[RoleData, str] = {"repeated": "repeats", "text": "text"}
SMALLEST_RISE = 1e-9  # nats that the colours reach at least, so that nothing is divided by 0
EXPLAIN_REPLACEMENTS = (
    "zero, mean: what a head puts out is replaced by zeros, or by its mean over all queries of the "
    "data"
)
EXPLAIN_OTHERS = (
    "others: without as many heads of the same layers that do not play the role, of all layers if "
    "these are too few; mean ± deviation over up to 5 draws"
)

Condition: TypeAlias = tuple[RoleData, Replacement]
"""The data that a loss is measured on, and what stands in place of heads."""


class LossSpread(NamedTuple):
    """A mean loss in nats per token, with the deviation of a sample; NaN where undefined."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, losses: Sequence[float] | Doubles) -> "LossSpread":
        """Summarise losses by their mean, their deviation and their number.

        losses: (n,), in nats per token. The deviation is that of a sample, with n - 1 in the
        divisor. Without losses both numbers are NaN, and of a single loss the deviation is NaN.
        """
        count = len(losses)
        if count == 0:
            return cls(np.nan, np.nan, 0)
        sd = np.nan
        if count > 1:
            sd = float(np.std(losses, ddof=1))
        return cls(float(np.mean(losses)), sd, count)


class LossRise(NamedTuple):
    """The rise of the loss without some heads, and for scale without others."""

    own: LossSpread
    """Over sequences or texts."""
    others: LossSpread
    """Over other heads, or sets of as many, of the mean rise without these."""


@dataclass(frozen=True)
class AblatedHeads:
    """The rises of the loss without one head, or without all heads of a role."""

    heads: tuple[Head, ...]
    role: str | None
    rises: Mapping[Condition, LossRise]


@dataclass(frozen=True)
class Ablation:
    """The loss of a whole model, and without heads."""

    loss: Mapping[RoleData, LossSpread]
    """The loss of the whole model, by data."""
    ablated: tuple[AblatedHeads, ...]


# For JSON and CSV


def describe_ablation(ablation: Ablation) -> dict[str, Any]:
    """Describe the losses of the whole model and without heads, for JSON."""
    losses = {data: loss._asdict() for data, loss in ablation.loss.items()}
    without = [describe_ablated_heads(ablated) for ablated in ablation.ablated]
    return {"loss": losses, "without": without}


def describe_ablated_heads(ablated: AblatedHeads) -> dict[str, Any]:
    """Describe how much the loss rises without some heads, for JSON.

    The rises are nested by the data that the loss is measured on, and by what replaces the output
    of the heads. "others" holds, for comparison, the rise without as many other heads.
    """
    rises: dict[str, dict[str, Any]] = {}
    for (data, replacement), rise in ablated.rises.items():
        entry = rise.own._asdict()
        entry["others"] = rise.others._asdict()
        rises_on_data = rises.setdefault(data, {})
        rises_on_data[replacement] = entry
    return {"heads": ablated.heads, "role": ablated.role, "rise": rises}


def list_rises(ablation: Ablation) -> list[dict[str, Any]]:
    """List the rises of the loss without heads as rows of a CSV file.

    There is a row for each head or set of heads that was ablated, data and replacement.
    """
    rows = []
    for ablated in ablation.ablated:
        rows += list_ablated_rises(ablated)
    return rows


def list_ablated_rises(ablated: AblatedHeads) -> list[dict[str, Any]]:
    """List how much the loss rises without some heads as rows of a CSV file.

    There is a row for each kind of data that the loss is measured on and each replacement of the
    output of the heads. Columns that begin with ``others_`` are, for comparison, of the rise
    without as many other heads.
    """
    names = [abbreviate_head(*head) for head in ablated.heads]
    heads = " ".join(names)
    rows = []
    for (data, replacement), rise in ablated.rises.items():
        row = {"heads": heads, "role": ablated.role}
        row |= {"data": data, "replaced_by": replacement}
        row |= rise.own._asdict()
        for name, value in rise.others._asdict().items():
            row[f"others_{name}"] = value
        rows.append(row)
    return rows


# As a table


def make_ablation_table(ablation: Ablation) -> Table:
    """Make a table of how much the loss rises without heads, and without others for comparison.

    It has a row for each head or set of heads that was ablated, and two columns for each condition,
    that is, for each data that losses are measured on and each replacement of what heads put out.
    """
    conditions = list_conditions(ablation)
    names, spreads = [], []
    for ablated in ablation.ablated:
        names.append(name_ablated_heads(ablated))
        spreads.append(list_spreads(ablated, conditions))
    cells = map(format_rises, spreads)
    return Table(
        title="the loss without heads: rise in nats per token",
        corner="without",
        columns=name_conditions(conditions),
        rows=tuple(names),
        cells=tuple(cells),
        levels=colour_rises(spreads),
        caption=explain_losses(ablation),
        group=2,
    )


def list_conditions(ablation: Ablation) -> list[Condition]:
    """List the conditions of the losses: each data that was measured, with each replacement."""
    measured_data = [data for data in DATA if data in ablation.loss]
    return [(data, replacement) for data in measured_data for replacement in MEASURED_REPLACEMENTS]


def name_conditions(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """Return two column headings for each condition: for some heads, and for others.

    conditions: pairs of the data that a loss is measured on and what replaces the heads' output.
    """
    headings = []
    for data, replacement in conditions:
        headings += [f"{DATA[data]}, {replacement}", "others"]
    return tuple(headings)


def list_spreads(ablated: AblatedHeads, conditions: Sequence[Condition]) -> list[LossSpread]:
    """List the rises of the loss without some heads and without others, under each condition.

    conditions: pairs of the data that a loss is measured on and what replaces the heads' output.
    Returns two means with deviations for each condition, one after the other.
    """
    spreads: list[LossSpread] = []
    for condition in conditions:
        rise = ablated.rises[condition]
        spreads += (rise.own, rise.others)
    return spreads


def format_rises(spreads: Sequence[LossSpread]) -> tuple[str, ...]:
    """Format rises of the loss with their signs and deviations."""
    return tuple(format_loss(spread, "+") for spread in spreads)


def colour_rises(spreads: Sequence[Sequence[LossSpread]]) -> Floats:
    """Return the colour levels, from 0 to 1, of a table of rises of the loss: (row, column).

    A level is the square root of the rise's share of the largest rise. A loss that falls has level
    0, an undefined one NaN, which stands for no colour. spreads: rows of equal length.
    """
    means_of_rows = [[spread.mean for spread in row] for row in spreads]
    means = np.array(means_of_rows).reshape(len(spreads), -1)
    largest = np.nanmax(means, initial=SMALLEST_RISE)
    shares = means.clip(0) / largest
    levels: Floats = np.sqrt(shares).astype(np.float32)
    return levels


def explain_losses(ablation: Ablation) -> tuple[str, ...]:
    """Explain the loss of the whole model, and what replaces heads, in lines of a caption."""
    losses = []
    for data, loss in ablation.loss.items():
        losses.append(f"{format_loss(loss)} on {DATA[data]}")
    whole_model = (
        f"loss of the whole model {', '.join(losses)}: nats per token, mean ± deviation; "
        "on repeats that of the second copy, its first token left out"
    )
    return whole_model, EXPLAIN_REPLACEMENTS, EXPLAIN_OTHERS


def name_ablated_heads(ablated: AblatedHeads) -> str:
    """Name ablated heads in a table: one by its short name, several by their number.

    The short name of their role follows, if they have one.
    """
    count = len(ablated.heads)
    name = f"all {count}"
    if count == 1:
        name = abbreviate_head(*ablated.heads[0])
    if ablated.role is None:
        return name
    return f"{name} {ROLES[ablated.role].short}"


def format_loss(spread: LossSpread, sign: str = "") -> str:
    """Format a mean loss in nats with its deviation, if it has one; empty for no losses.

    sign: "+" to write the sign of a positive mean too, "" to write that of a negative one alone.
    """
    if not spread.n:
        return ""
    mean = f"{spread.mean:{sign}.2f}"
    if not np.isfinite(spread.sd):
        return mean
    return f"{mean} ± {spread.sd:.2f}"
