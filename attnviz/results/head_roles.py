"""Tables of what heads are: their names by layer and head, one score of all, what removing them does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, Data
from attnviz.drawable import Table
from attnviz.record import Capture, Doubles
from attnviz.request import Replacement
from attnviz.selection import Head
from attnviz.views.labels import column_name, head_name, model_title

HOWS: tuple[Replacement, ...] = "zero", "mean"  # of which the losses are measured
Scores: TypeAlias = Mapping[str, "Score"]
WIDE = 9  # heads a layer of which names and scores fit beside each other on 80 columns
FEW = 100  # tokens of blocks, below which names are not to be relied on
MOST = 10  # heads that are listed
DATA: dict[Data, str] = {"repeated": "repeats", "text": "text"}


class Setting(NamedTuple):
    """How sequences are made. The same setting and model: the same sequences."""

    sequences: int = 16
    block: int = 25
    """Tokens that are repeated."""
    seed: int = 0


class Score(NamedTuple):
    """How strongly a head plays a role, over sequences or texts."""

    mean: float
    sd: float
    """Of a sample, n - 1 in the divisor; NaN over one."""
    chance: float
    """The mean that a head would have which attends to all it sees alike."""
    n: int
    """Sequences or texts where the score is defined."""


@dataclass(frozen=True)
class HeadRole:
    """A head, and what it does. Scores are by role; those that are undefined are left out."""

    layer: int
    head: int
    role: str | None
    scores: Scores
    """On repeated random tokens."""
    on_text: Scores

    @property
    def place(self) -> Head:
        """Layer and head."""
        return self.layer, self.head

    def on(self, data: Data) -> Scores:
        """The scores on such data."""
        return self.scores if data == "repeated" else self.on_text

    def best(self, role: str) -> Score | None:
        """The first score of a role, on the data that it is measured on first; None if it is undefined there."""
        return self.on(ROLES[role].data[0]).get(role)


@dataclass(frozen=True)
class Roles:
    """The heads of a model."""

    model: str
    heads: tuple[HeadRole, ...]
    setting: Setting
    tokens: int
    """In each of the sequences."""
    texts: int

    def named(self, role: str) -> tuple[HeadRole, ...]:
        """The heads of that name."""
        return tuple(head for head in self.heads if head.role == role)


class Spread(NamedTuple):
    """A mean in nats per token, with the deviation of a sample: NaN of none, and the deviation of one."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | Doubles) -> "Spread":
        """Of some numbers."""
        if not len(values):
            return cls(np.nan, np.nan, 0)
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan, len(values))


class Rise(NamedTuple):
    """How much the loss rises without some heads."""

    own: Spread
    """Over sequences or texts."""
    others: Spread
    """Over other heads, or sets of as many, of the mean rise without these."""


@dataclass(frozen=True)
class Ablated:
    """What was measured without one head, or all of a role."""

    heads: tuple[Head, ...]
    role: str | None
    rises: Mapping[tuple[Data, Replacement], Rise]


@dataclass(frozen=True)
class Ablation:
    """The loss of a whole model, and without heads."""

    whole: Mapping[Data, Spread]
    ablated: tuple[Ablated, ...]


def names_map(roles: Roles) -> Table:
    """The name of each head, and how strongly it plays the role: a row a layer, a column a head."""
    short = len({head.head for head in roles.heads}) > WIDE

    def cell(head: HeadRole) -> tuple[str, float]:
        found = head.best(head.role) if head.role else None
        if head.role is None or found is None:
            return "-", np.nan
        return ROLES[head.role].short + ("" if short else two_digits(found.mean)), found.mean

    named = {ROLES[head.role].short: head.role for head in roles.heads if head.role}
    legend = ", ".join(f"{role.short} {name}" for name, role in ROLES.items() if role.short in named)
    lines = f"{legend}; -: no role named" if legend else "no head plays a role far above chance", *told_of(roles)
    return by_place(roles, f"what {len(roles.heads)} heads are", cell, lines)


def score_map(roles: Roles, role: str) -> Table:
    """One score of each head, on the data that its role is measured on first."""

    def cell(head: HeadRole) -> tuple[str, float]:
        found = head.best(role)
        return (two_digits(found.mean), found.mean) if found else ("", np.nan)

    where = DATA[ROLES[role].data[0]]
    lines = f"{role}: {ROLES[role].definition} ({ROLES[role].source})", *told_of(roles)
    return by_place(roles, f"{role} on {where}", cell, lines)


def by_place(roles: Roles, title: str, cell: Callable[[HeadRole], tuple[str, float]], caption: Sequence[str]) -> Table:
    """A cell for each head, with its text and its place on the colours."""
    found = {head.place: cell(head) for head in roles.heads}
    layers, heads = (sorted({place[axis] for place in found}) for axis in (0, 1))
    cells = [[found.get((layer, head), ("", np.nan)) for head in heads] for layer in layers]
    return Table(
        f"{model_title(Capture(roles.model, '', ()))} · {title}",
        "",
        tuple(map(column_name, heads)),
        tuple(f"L{layer}" for layer in layers),
        tuple(tuple(text for text, _ in row) for row in cells),
        np.array([[level for _, level in row] for row in cells], np.float32).clip(0, 1),
        tuple(caption),
        even=True,
    )


def roles_table(roles: Roles) -> Table:
    """Each role with the head that plays it most, whether that is named or not."""
    found = {}
    for role in ROLES:
        first = ranked(roles, role)[:1]
        if first:
            found[role] = first[0], (str(len(roles.named(role))), head_name(*first[0].place), *numbers(first[0], role))
    return Table(
        "the head that plays each role most",
        "role",
        ("named", "head", *NUMBERS, "threshold"),
        tuple(found),
        tuple((*cells, threshold(role)) for role, (_, cells) in found.items()),
        np.full((len(found), len(NUMBERS) + 3), np.nan, np.float32),
        told_of_names(),
    )


def heads_table(roles: Roles, role: str) -> Table:
    """The heads that play a role most, in falling order."""
    found = ranked(roles, role)[:MOST]
    more = f", {len(found)} of {len(roles.heads)} heads" if len(found) < len(roles.heads) else ""
    return Table(
        f"{role}, threshold {threshold(role) or 'none'}{more}",
        "head",
        (*NUMBERS, "role"),
        tuple(head_name(*head.place) for head in found),
        tuple((*numbers(head, role), head.role or "") for head in found),
        np.full((len(found), len(NUMBERS) + 1), np.nan, np.float32),
        told_of_names(),
        frozenset({len(NUMBERS)}),
    )


NUMBERS = "repeats", "chance", "text", "chance"


def ranked(roles: Roles, role: str) -> list[HeadRole]:
    """The heads in the order of a score, the highest first; those of which it is undefined are left out."""
    found = [(score.mean, head) for head in roles.heads if (score := head.best(role))]
    return [head for _, head in sorted(found, key=lambda pair: -pair[0])]


def numbers(head: HeadRole, role: str) -> tuple[str, ...]:
    """A score with its deviation and chance, on both data; empty where it is undefined."""
    found = (head.on(data).get(role) for data in DATA)
    return tuple(text for score in found for text in (spread(score), two_digits(score.chance) if score else ""))


def spread(score: Score | None) -> str:
    """A score with its deviation."""
    if score is None:
        return ""
    return two_digits(score.mean) + (f" ± {two_digits(score.sd)}" if np.isfinite(score.sd) else "")


def two_digits(value: float) -> str:
    """A share without its 0: .89."""
    told = f"{value:.2f}"
    return told.removeprefix("0") if told.startswith("0.") else told


def threshold(role: str) -> str:
    """From where a role names a head, beyond chance."""
    found = ROLES[role].threshold
    return "" if found is None else two_digits(found)


def told_of(roles: Roles) -> tuple[str, ...]:
    """What was measured on."""
    setting = roles.setting
    return (
        f"{setting.sequences} sequences of {roles.tokens} tokens, a block of {setting.block} distinct random tokens "
        f"twice (seed {setting.seed}), and {roles.texts} texts",
        *(("so few sequences name heads by chance: take more",) * (setting.sequences * setting.block < FEW)),
    )


def told_of_names() -> tuple[str, ...]:
    """What names and numbers mean."""
    return (
        "mean ± deviation over sequences, and over texts; chance is attending to all that is visible alike",
        "named where (score - chance) / (1 - chance) reaches the threshold on all data that a role is measured on, "
        "which no head of a random model did; of several roles by the one furthest above",
        "induction is the row-exact mean over the second copy: other definitions give other numbers",
    )


def ablation_table(ablation: Ablation) -> Table:
    """How much the loss rises without heads, and without others."""
    kinds = [(data, how) for data in DATA if data in ablation.whole for how in HOWS]
    rises = [[part for kind in kinds for part in found.rises[kind]] for found in ablation.ablated]
    means = np.array([[part.mean for part in row] for row in rises]).reshape(len(rises), -1)
    largest = np.nanmax(means, initial=1e-9)
    whole = ", ".join(f"{spread_of(found)} on {DATA[data]}" for data, found in ablation.whole.items())
    return Table(
        "the loss without heads: rise in nats per token",
        "without",
        tuple(name for data, how in kinds for name in (f"{DATA[data]}, {how}", "others")),
        tuple(ablated_name(found.heads, found.role) for found in ablation.ablated),
        tuple(tuple(spread_of(part, sign="+") for part in row) for row in rises),
        np.sqrt(means.clip(0) / largest).astype(np.float32),
        (
            f"loss of the whole model {whole}: nats per token, mean ± deviation; on repeats that of the second copy, "
            "its first token left out",
            "zero, mean: what a head puts out is replaced by zeros, or by its mean over all queries of the data",
            "others: without as many heads of the same layers that do not play the role, of all layers if these are "
            "too few; mean ± deviation over up to 5 draws",
        ),
        group=2,
    )


def ablated_name(heads: Sequence[tuple[int, int]], role: str | None) -> str:
    """One head by its name, several by their role."""
    if len(heads) > 1:
        return f"all {len(heads)} {ROLES[role].short if role else ''}".rstrip()
    return head_name(*heads[0]) + (f" {ROLES[role].short}" if role else "")


def spread_of(found: Spread, sign: str = "") -> str:
    """A mean in nats with its deviation, empty of nothing."""
    if not found.n:
        return ""
    return f"{found.mean:{sign}.2f}" + (f" ± {found.sd:.2f}" if np.isfinite(found.sd) else "")
