"""The roles of the heads of a model, and with the losses of an ablation, what heads are for."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.roles import ROLES, RoleData, RoleDefinition
from attnviz.drawable import Picture, Table, make_blank_levels
from attnviz.record import Capture
from attnviz.results.ablation import (
    DATA,
    Ablation,
    describe_ablation,
    list_rises,
    make_ablation_table,
)
from attnviz.results.digits import format_share
from attnviz.results.result import Result
from attnviz.selection import Head
from attnviz.views.labels import (
    abbreviate_head,
    abbreviate_head_column,
    name_model,
)

NUMBER_COLUMNS = "repeats", "chance", "text", "chance"
MOST_BESIDE_SCORES = 9  # heads a layer whose names and scores fit beside each other on 80 columns
FEW_TOKENS = 100  # of blocks, below which names are not to be relied on
MOST_LISTED = 10  # heads in a ranking
WIDTH = 80  # of the lines that explain roles
INDENT = "     "
FEW_SEQUENCES = "so few sequences name heads by chance: take more"
EXPLAIN_NUMBERS = (
    "mean ± deviation over sequences, and over texts; chance is attending to all that is visible "
    "alike"
)
EXPLAIN_NAMES = (
    "named where (score - chance) / (1 - chance) reaches the threshold on all data that a role is "
    "measured on, which no head of a random model did; of several roles by the one furthest above"
)
EXPLAIN_INDUCTION = (
    "induction is the row-exact mean over the second copy: other definitions give other numbers"
)

RoleScores: TypeAlias = Mapping[str, "RoleScore"]


class SequenceSettings(NamedTuple):
    """The settings of random sequences. Equal settings and one model give the same sequences."""

    sequences: int = 16
    block: int = 25
    """Tokens that are repeated."""
    seed: int = 0


class RoleScore(NamedTuple):
    """The score of a head in a role, over sequences or texts."""

    mean: float
    sd: float
    """The deviation of a sample, n - 1 in the divisor; NaN over one."""
    chance: float
    """The mean of a head that attends to all it sees alike."""
    n: int
    """Sequences or texts where the score is defined."""


@dataclass(frozen=True)
class HeadRole:
    """A head and the role that it plays. Scores are by role, without those that are undefined."""

    layer: int
    head: int
    role: str | None
    scores: RoleScores
    """The scores on repeated random tokens."""
    on_text: RoleScores

    @property
    def place(self) -> Head:
        """The layer and the number of the head."""
        return self.layer, self.head

    def scores_on(self, data: RoleData) -> RoleScores:
        """Return the scores by role on one kind of data."""
        if data == "repeated":
            return self.scores
        return self.on_text

    def find_score(self, role: str) -> RoleScore | None:
        """Return the score in a role, on the first data it is measured on; None if undefined."""
        first_data = ROLES[role].data[0]
        return self.scores_on(first_data).get(role)


@dataclass(frozen=True)
class Roles:
    """The roles of all heads of a model."""

    model: str
    heads: tuple[HeadRole, ...]
    setting: SequenceSettings
    tokens: int
    """The number of tokens of each sequence."""
    texts: int

    def named(self, role: str) -> tuple[HeadRole, ...]:
        """Return the heads that play a role."""
        return tuple(head for head in self.heads if head.role == role)

    def rank_heads(self, role: str) -> list[HeadRole]:
        """Return the heads whose score in a role is defined, the highest score first."""
        means: dict[Head, float] = {}
        heads = []
        for head in self.heads:
            score = head.find_score(role)
            if score is not None:
                means[head.place] = score.mean
                heads.append(head)

        def negated_mean(head: HeadRole) -> float:
            return -means[head.place]

        return sorted(heads, key=negated_mean)


@dataclass(frozen=True, repr=False)
class HeadsResult(Result):
    """The roles of a model's heads, and the loss without heads if that was measured."""

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
        return list_role_scores(self.roles)

    def tables(self) -> list[Picture]:
        """Return a map of all heads and a table, and the table of losses if losses were measured.

        The map shows the names of the roles that heads play, or if one role is chosen, the scores
        of all heads in it. The table below it is of all roles, or of the heads with the highest
        scores.
        """
        roles, role = self.roles, self.role
        tables: list[Picture]
        if role is None:
            tables = [make_names_table(roles), make_roles_table(roles)]
        else:
            tables = [make_scores_table(roles, role), make_ranking_table(roles, role)]
        if self.ablation is not None:
            tables.append(make_ablation_table(self.ablation))
        return tables


# For JSON and CSV


def describe_roles(roles: Roles) -> dict[str, Any]:
    """Describe all heads, the data that they were measured on, and all roles, for JSON."""
    heads = [describe_role(head) for head in roles.heads]
    return {
        "model": roles.model,
        **roles.setting._asdict(),
        "texts": roles.texts,
        "definitions": describe_role_definitions(),
        "heads": heads,
    }


def describe_role_definitions() -> dict[str, Any]:
    """Describe the definitions of all roles, for JSON."""
    definitions: dict[str, Any] = {}
    for name, role in ROLES.items():
        definitions[name] = {
            "definition": role.definition,
            "source": role.source,
            "data": role.data,
            "threshold": role.threshold,
        }
    return definitions


def describe_role(head: HeadRole) -> dict[str, Any]:
    """Describe a head for JSON: the role that it plays, and its scores in all roles."""
    return {
        "layer": head.layer,
        "head": head.head,
        "role": head.role,
        "scores": describe_scores(head.scores),
        "on_text": describe_scores(head.on_text),
    }


def describe_scores(scores: RoleScores) -> dict[str, Any]:
    """Describe scores by role, for JSON."""
    return {name: score._asdict() for name, score in scores.items()}


def list_role_scores(roles: Roles) -> list[dict[str, Any]]:
    """List the scores of all heads on both kinds of data as rows of a CSV file.

    The kinds of data are repeated random tokens and texts.
    """
    rows = []
    for head in roles.heads:
        rows += list_head_scores(head)
    return rows


def list_head_scores(head: HeadRole) -> list[dict[str, Any]]:
    """List the scores of a head as rows of a CSV file, one for each kind of data and role.

    The kinds of data are repeated random tokens and texts.
    """
    rows = []
    for data in DATA:
        for name, score in head.scores_on(data).items():
            row = {"layer": head.layer, "head": head.head, "role": head.role}
            row |= {"data": data, "score": name}
            rows.append(row | score._asdict())
    return rows


# Of all heads: a row a layer, a column a head


class HeadCell(NamedTuple):
    """The text and the colour that stand for a head in a map of all heads."""

    text: str
    level: float
    """On the colours, 0 to 1; NaN for none."""


NO_CELL = HeadCell("", np.nan)
NO_ROLE = HeadCell("-", np.nan)


def make_names_table(roles: Roles) -> Table:
    """Make a map of all heads, a row a layer, with the short names of the roles that they play.

    The score in its role colours a head, and stands behind the name if a row has few enough heads.
    """
    heads_a_layer = len({head.head for head in roles.heads})
    shows_scores = heads_a_layer <= MOST_BESIDE_SCORES

    def make_cell(head: HeadRole) -> HeadCell:
        score = head.find_score(head.role) if head.role else None
        if head.role is None or score is None:
            return NO_ROLE
        text = ROLES[head.role].short
        if shows_scores:
            text += format_share(score.mean)
        return HeadCell(text, score.mean)

    title = f"what {len(roles.heads)} heads are"
    caption = explain_short_names(roles), *describe_data(roles)
    return make_head_table(roles, title, make_cell, caption)


def explain_short_names(roles: Roles) -> str:
    """Explain the short names of the roles that some head plays, in a line."""
    played = {head.role for head in roles.heads}
    names = []
    for name, role in ROLES.items():
        if name in played:
            names.append(f"{role.short} {name}")
    if not names:
        return "no head plays a role far above chance"
    return f"{', '.join(names)}; -: no role named"


def make_scores_table(roles: Roles, role: str) -> Table:
    """Make a map of the scores of all heads in one role, a row a layer.

    The scores are those on the first data that the role is measured on.
    """

    def make_cell(head: HeadRole) -> HeadCell:
        score = head.find_score(role)
        if score is None:
            return NO_CELL
        return HeadCell(format_share(score.mean), score.mean)

    definition = ROLES[role]
    first_data = DATA[definition.data[0]]
    title = f"{role} on {first_data}"
    explanation = f"{role}: {definition.definition} ({definition.source})"
    caption = explanation, *describe_data(roles)
    return make_head_table(roles, title, make_cell, caption)


def make_head_table(
    roles: Roles,
    title: str,
    make_cell: Callable[[HeadRole], HeadCell],
    caption: Sequence[str],
) -> Table:
    """Make a table with a row a layer, a column a head, and a cell for each head.

    title: comes after the name of the model. make_cell: returns the text and the colour of the cell
    of a head. caption: lines below the table. A cell is empty where a layer has no such head.
    """
    cells = {head.place: make_cell(head) for head in roles.heads}
    layers = sorted({layer for layer, _ in cells})
    heads = sorted({head for _, head in cells})
    texts, levels_of_rows = [], []
    for layer in layers:
        row = [cells.get((layer, head), NO_CELL) for head in heads]
        texts.append(tuple(cell.text for cell in row))
        levels_of_rows.append([cell.level for cell in row])
    levels = np.array(levels_of_rows, np.float32)
    model = name_model(Capture(roles.model, "", ()))
    columns = tuple(abbreviate_head_column(head) for head in heads)
    row_names = tuple(f"L{layer}" for layer in layers)
    return Table(
        title=f"{model} · {title}",
        corner="",
        columns=columns,
        rows=row_names,
        cells=tuple(texts),
        levels=levels.clip(0, 1),
        caption=tuple(caption),
        even=True,
    )


# Of some heads: a row each


def make_roles_table(roles: Roles) -> Table:
    """Make a table with a row for each role, with the head that has the highest score in it.

    The columns are the number of heads that are named by the role, the head of the highest score,
    which need not be named, its scores and chance on both kinds of data, and the threshold.
    """
    names, cells = [], []
    for role in ROLES:
        ranking = roles.rank_heads(role)
        if not ranking:
            continue
        strongest = ranking[0]
        count = str(len(roles.named(role)))
        head = abbreviate_head(*strongest.place)
        scores = format_score_cells(strongest, role)
        names.append(role)
        cells.append((count, head, *scores, format_threshold(role)))
    columns = "named", "head", *NUMBER_COLUMNS, "threshold"
    levels = make_blank_levels(len(cells), len(columns))
    return Table(
        title="the head that plays each role most",
        corner="role",
        columns=columns,
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=list_explanations(),
    )


def make_ranking_table(roles: Roles, role: str) -> Table:
    """Make a table of the heads with the highest scores in one role, in falling order.

    The columns are the score and chance on both kinds of data, and the role that names the head,
    which may be another one.
    """
    heads = roles.rank_heads(role)[:MOST_LISTED]
    threshold = format_threshold(role) or "none"
    title = f"{role}, threshold {threshold}"
    count, head_count = len(heads), len(roles.heads)
    if count < head_count:
        title += f", {count} of {head_count} heads"
    names, cells = [], []
    for head in heads:
        role_of_head = head.role or ""
        names.append(abbreviate_head(*head.place))
        cells.append((*format_score_cells(head, role), role_of_head))
    columns = *NUMBER_COLUMNS, "role"
    levels = make_blank_levels(count, len(columns))
    columns_of_names = frozenset({columns.index("role")})
    return Table(
        title=title,
        corner="head",
        columns=columns,
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=list_explanations(),
        texts=columns_of_names,
    )


def format_score_cells(head: HeadRole, role: str) -> tuple[str, ...]:
    """Format the scores of a head in a role, and chance, on each kind of data: four cells.

    A score has its deviation beside it. Chance is the score of a head that attends equally to all
    that it sees. Cells are empty where the score is undefined.
    """
    cells: list[str] = []
    for data in DATA:
        score = head.scores_on(data).get(role)
        if score is None:
            cells += ["", ""]
        else:
            cells += [format_role_score(score), format_share(score.chance)]
    return tuple(cells)


def describe_data(roles: Roles) -> tuple[str, ...]:
    """Say in a line on which data heads were measured, and in another if that was too little."""
    setting = roles.setting
    sequences = f"{setting.sequences} sequences of {roles.tokens} tokens"
    block = f"a block of {setting.block} distinct random tokens twice (seed {setting.seed})"
    measured = f"{sequences}, {block}, and {roles.texts} texts"
    tokens_of_blocks = setting.sequences * setting.block
    if tokens_of_blocks < FEW_TOKENS:
        return measured, FEW_SEQUENCES
    return (measured,)


def list_explanations() -> tuple[str, ...]:
    """Explain in lines what the numbers and the names of roles mean."""
    return EXPLAIN_NUMBERS, EXPLAIN_NAMES, EXPLAIN_INDUCTION


def format_role_score(score: RoleScore) -> str:
    """Format a score with its deviation, if it has one."""
    mean = format_share(score.mean)
    if not np.isfinite(score.sd):
        return mean
    return f"{mean} ± {format_share(score.sd)}"


def format_threshold(role: str) -> str:
    """Format the score beyond chance from which a role names a head; empty if it names none."""
    threshold = ROLES[role].threshold
    if threshold is None:
        return ""
    return format_share(threshold)


# What roles are


def explain_roles() -> list[str]:
    """Explain what each role is, in lines that fit a screen."""
    lines = []
    for name, role in ROLES.items():
        data, threshold = name_data(role), name_threshold(role)
        heading = f"{role.short}  {name}"
        definition = f"{role.definition} ({role.source})"
        lines.append(f"{heading} · on {data} · {threshold}")
        lines += textwrap.wrap(definition, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def name_data(role: RoleDefinition) -> str:
    """Name the data that a role is measured on."""
    names: dict[RoleData, str] = {"repeated": "repeated random tokens", "text": "text"}
    return " and ".join(names[data] for data in role.data)


def name_threshold(role: RoleDefinition) -> str:
    """Say from which score beyond chance a role names a head, or that it names none."""
    if role.threshold is None:
        return "names no head"
    return f"threshold {role.threshold}"
