"""What each head of a model is, and with the losses of an ablation, what it is for."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, Data, Role
from attnviz.drawable import Picture, Table
from attnviz.record import Capture, Floats
from attnviz.results.ablation import (
    DATA,
    Ablation,
    describe_ablation,
    list_rises,
    make_ablation_table,
)
from attnviz.results.result import Result
from attnviz.selection import Head
from attnviz.views.labels import column_name, head_name, model_title

NUMBER_COLUMNS = "repeats", "chance", "text", "chance"
MOST_BESIDE_SCORES = 9  # heads a layer whose names and scores fit beside each other on 80 columns
FEW_TOKENS = 100  # of blocks, below which names are not to be relied on
MOST_LISTED = 10  # heads in a ranking
WIDTH = 80  # of the lines that explain roles
INDENT = "     "

RoleScores: TypeAlias = Mapping[str, "RoleScore"]


class Setting(NamedTuple):
    """How sequences are made. The same setting and model give the same sequences."""

    sequences: int = 16
    block: int = 25
    """Tokens that are repeated."""
    seed: int = 0


class RoleScore(NamedTuple):
    """How strongly a head plays a role, over sequences or texts."""

    mean: float
    sd: float
    """Of a sample, n - 1 in the divisor; NaN over one."""
    chance: float
    """The mean of a head that attends to all it sees alike."""
    n: int
    """Sequences or texts where the score is defined."""


@dataclass(frozen=True)
class HeadRole:
    """A head, and what it does. Scores are by role; those that are undefined are left out."""

    layer: int
    head: int
    role: str | None
    scores: RoleScores
    """On repeated random tokens."""
    on_text: RoleScores

    @property
    def place(self) -> Head:
        """Layer and head."""
        return self.layer, self.head

    def on(self, data: Data) -> RoleScores:
        """Return the scores on such data."""
        return self.scores if data == "repeated" else self.on_text

    def best(self, role: str) -> RoleScore | None:
        """Return the score of a role where it is measured first; None if it is undefined."""
        first_data = ROLES[role].data[0]
        return self.on(first_data).get(role)


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
        """Return the heads of that name."""
        return tuple(head for head in self.heads if head.role == role)

    def ranked(self, role: str) -> list[HeadRole]:
        """Return the heads whose score of a role is defined, the highest first."""
        scores = {head.place: head.best(role) for head in self.heads}
        means = {place: score.mean for place, score in scores.items() if score is not None}
        heads = [head for head in self.heads if head.place in means]
        return sorted(heads, key=lambda head: -means[head.place])


@dataclass(frozen=True, repr=False)
class HeadsResult(Result):
    """What the heads of a model are, and what the model loses without them if that was measured."""

    roles: Roles
    ablation: Ablation | None = None
    role: str | None = None
    """The role whose scores are drawn; None: the names."""

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as a document, and the losses under ``ablation``."""
        document = describe_roles(self.roles)
        if self.ablation is not None:
            document["ablation"] = describe_ablation(self.ablation)
        return document

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each rise of a loss, or where none was measured, for each score."""
        if self.ablation is not None:
            return list_rises(self.ablation)
        return list_scores(self.roles)

    def tables(self) -> list[Picture]:
        """Return a map of all heads and a table of some, and the losses if they were measured."""
        tables: list[Picture]
        if self.role is None:
            tables = [make_names_table(self.roles), make_roles_table(self.roles)]
        else:
            tables = [
                make_scores_table(self.roles, self.role),
                make_ranking_table(self.roles, self.role),
            ]
        if self.ablation is not None:
            tables.append(make_ablation_table(self.ablation))
        return tables


# For JSON and CSV


def describe_roles(roles: Roles) -> dict[str, Any]:
    """Describe all heads, what was measured on, and what the roles are, for JSON."""
    return {
        "model": roles.model,
        **roles.setting._asdict(),
        "texts": roles.texts,
        "definitions": describe_definitions(),
        "heads": [describe_head(head) for head in roles.heads],
    }


def describe_definitions() -> dict[str, Any]:
    """Describe what the roles are, for JSON."""
    return {
        name: {
            "definition": role.definition,
            "source": role.source,
            "data": role.data,
            "threshold": role.threshold,
        }
        for name, role in ROLES.items()
    }


def describe_head(head: HeadRole) -> dict[str, Any]:
    """Describe a head with its scores, for JSON."""
    return {
        "layer": head.layer,
        "head": head.head,
        "role": head.role,
        "scores": {name: score._asdict() for name, score in head.scores.items()},
        "on_text": {name: score._asdict() for name, score in head.on_text.items()},
    }


def list_scores(roles: Roles) -> list[dict[str, Any]]:
    """List every score of every head on both data."""
    return [row for head in roles.heads for row in list_head_scores(head)]


def list_head_scores(head: HeadRole) -> list[dict[str, Any]]:
    """List the scores of a head on both data."""
    named = {"layer": head.layer, "head": head.head, "role": head.role}
    return [
        {**named, "data": data, "score": name, **score._asdict()}
        for data in DATA
        for name, score in head.on(data).items()
    ]


# Of all heads: a row a layer, a column a head


class HeadCell(NamedTuple):
    """What stands for a head in a map of all."""

    text: str
    level: float
    """On the colours, 0 to 1; NaN for none."""


NO_CELL = HeadCell("", np.nan)


def make_names_table(roles: Roles) -> Table:
    """Make a map of the names of all heads, with how strongly each plays the role."""
    heads_a_layer = len({head.head for head in roles.heads})
    shows_scores = heads_a_layer <= MOST_BESIDE_SCORES

    def make_cell(head: HeadRole) -> HeadCell:
        score = head.best(head.role) if head.role else None
        if head.role is None or score is None:
            return HeadCell("-", np.nan)
        name = ROLES[head.role].short
        return HeadCell(name + format_share(score.mean) if shows_scores else name, score.mean)

    caption = name_legend(roles), *data_lines(roles)
    return make_map(roles, f"what {len(roles.heads)} heads are", make_cell, caption)


def name_legend(roles: Roles) -> str:
    """Say what the short names of the roles that heads play stand for."""
    played = {head.role for head in roles.heads}
    names = [f"{role.short} {name}" for name, role in ROLES.items() if name in played]
    if not names:
        return "no head plays a role far above chance"
    return f"{', '.join(names)}; -: no role named"


def make_scores_table(roles: Roles, role: str) -> Table:
    """Make a map of one score of all heads, on the data that its role is measured on first."""

    def make_cell(head: HeadRole) -> HeadCell:
        score = head.best(role)
        return NO_CELL if score is None else HeadCell(format_share(score.mean), score.mean)

    definition = ROLES[role]
    title = f"{role} on {DATA[definition.data[0]]}"
    caption = f"{role}: {definition.definition} ({definition.source})", *data_lines(roles)
    return make_map(roles, title, make_cell, caption)


def make_map(
    roles: Roles, title: str, make_cell: Callable[[HeadRole], HeadCell], caption: Sequence[str]
) -> Table:
    """Make a table with a row a layer, a column a head, and a cell for each head."""
    cells = {head.place: make_cell(head) for head in roles.heads}
    layers = sorted({layer for layer, _ in cells})
    heads = sorted({head for _, head in cells})
    rows = [[cells.get((layer, head), NO_CELL) for head in heads] for layer in layers]
    levels = np.array([[cell.level for cell in row] for row in rows], np.float32)
    model = model_title(Capture(roles.model, "", ()))
    return Table(
        f"{model} · {title}",
        "",
        tuple(column_name(head) for head in heads),
        tuple(f"L{layer}" for layer in layers),
        tuple(tuple(cell.text for cell in row) for row in rows),
        levels.clip(0, 1),
        tuple(caption),
        even=True,
    )


# Of some heads: a row each


def make_roles_table(roles: Roles) -> Table:
    """Make a table of all roles, each with the head that plays it most, named or not."""
    rankings = {role: roles.ranked(role) for role in ROLES}
    strongest = {role: ranking[0] for role, ranking in rankings.items() if ranking}
    cells = []
    for role, head in strongest.items():
        count = str(len(roles.named(role)))
        cells.append(
            (count, head_name(*head.place), *score_cells(head, role), format_threshold(role))
        )
    columns = "named", "head", *NUMBER_COLUMNS, "threshold"
    return Table(
        "the head that plays each role most",
        "role",
        columns,
        tuple(strongest),
        tuple(cells),
        make_no_levels(len(cells), len(columns)),
        name_lines(),
    )


def make_ranking_table(roles: Roles, role: str) -> Table:
    """Make a table of the heads that play a role most, in falling order."""
    heads = roles.ranked(role)[:MOST_LISTED]
    title = f"{role}, threshold {format_threshold(role) or 'none'}"
    if len(heads) < len(roles.heads):
        title += f", {len(heads)} of {len(roles.heads)} heads"
    role_column = len(NUMBER_COLUMNS)
    return Table(
        title,
        "head",
        (*NUMBER_COLUMNS, "role"),
        tuple(head_name(*head.place) for head in heads),
        tuple((*score_cells(head, role), head.role or "") for head in heads),
        make_no_levels(len(heads), role_column + 1),
        name_lines(),
        frozenset({role_column}),
    )


def score_cells(head: HeadRole, role: str) -> tuple[str, ...]:
    """Return a score with its deviation and chance, on both data; empty texts where undefined."""
    cells: list[str] = []
    for data in DATA:
        score = head.on(data).get(role)
        cells += ("", "") if score is None else (format_score(score), format_share(score.chance))
    return tuple(cells)


def make_no_levels(rows: int, columns: int) -> Floats:
    """Make the levels of a table without colours."""
    return np.full((rows, columns), np.nan, np.float32)


def data_lines(roles: Roles) -> tuple[str, ...]:
    """Say what was measured on, and whether that was too little."""
    setting = roles.setting
    measured = (
        f"{setting.sequences} sequences of {roles.tokens} tokens, a block of {setting.block} "
        f"distinct random tokens twice (seed {setting.seed}), and {roles.texts} texts"
    )
    if setting.sequences * setting.block < FEW_TOKENS:
        return measured, "so few sequences name heads by chance: take more"
    return (measured,)


def name_lines() -> tuple[str, ...]:
    """Say what names and numbers mean."""
    return (
        "mean ± deviation over sequences, and over texts; chance is attending to all that is visible alike",
        "named where (score - chance) / (1 - chance) reaches the threshold on all data that a role "
        "is measured on, which no head of a random model did; of several roles by the one furthest "
        "above",
        "induction is the row-exact mean over the second copy: other definitions give other numbers",
    )


def format_score(score: RoleScore) -> str:
    """Format a score with its deviation, if it has one."""
    mean = format_share(score.mean)
    return f"{mean} ± {format_share(score.sd)}" if np.isfinite(score.sd) else mean


def format_share(share: float) -> str:
    """Format a share with two digits, without its 0: .89."""
    text = f"{share:.2f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def format_threshold(role: str) -> str:
    """Format from where a role names a head, beyond chance; empty if it names none."""
    threshold = ROLES[role].threshold
    return "" if threshold is None else format_share(threshold)


# What roles are


def explain_roles() -> list[str]:
    """Explain what each role is, in lines that fit a screen."""
    lines = []
    for name, role in ROLES.items():
        lines.append(f"{role.short}  {name} · on {name_data(role)} · {name_threshold(role)}")
        definition = f"{role.definition} ({role.source})"
        lines += textwrap.wrap(definition, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def name_data(role: Role) -> str:
    """Name the data that a role is measured on."""
    names: dict[Data, str] = {"repeated": "repeated random tokens", "text": "text"}
    return " and ".join(names[data] for data in role.data)


def name_threshold(role: Role) -> str:
    """Say from where a role names a head, beyond chance."""
    return "names no head" if role.threshold is None else f"threshold {role.threshold}"
