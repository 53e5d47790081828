"""Which tokens mattered for a prediction by several methods, and how far to trust them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from attnviz.analysis.attribution import BASELINES, FEW, SCORINGS, chance, ranks, spearman
from attnviz.drawable import Axis, Panel, Picture, Scale, Strip, Table
from attnviz.escape import escape
from attnviz.io.formats import describe_tokens
from attnviz.record import Capture, Doubles, Token, Visible
from attnviz.results.intervention import (
    SHOWN,
    Outcome,
    describe_outcome,
    prediction_table,
    told_changes,
)
from attnviz.results.result import Result
from attnviz.views.heatmaps import title, told
from attnviz.views.labels import labels, name, short, spaced

Check: TypeAlias = Literal["knock-out", "leave-one-out"]
CHECKS: dict[Check, str] = {
    "knock-out": "the token's column is cut in all layers and heads: no other token reads it",
    "leave-one-out": "the mean over 4 tokens, drawn from the vocabulary, that are read in its place",
}
PREDICTIONS = {
    "next": "the next token {target} ({probability:.0%}), after token {place} {token}",
    "masked": "{target} ({probability:.0%}) as token {place} {token}",
    "class": "the class {target} ({probability:.0%})",
    "vector": "the last vector of token {place} {token}",
}
UNDER = "what is ranked is what the model says under this intervention; heads that are ablated do not count"
LARGEST_DIGITS = 3  # of the largest score of a column
MOST_DECIMALS = 9


@dataclass(frozen=True, repr=False)
class Attribution(Result):
    """What each token of a text is to what the model says at one of them, by several methods."""

    model: str
    text: str
    tokens: tuple[Token, ...]
    query: int
    """The place of the token whose row of attention is read."""
    kind: Literal["next", "masked", "class", "vector"]
    """What is said there: see ``Response``."""
    target: str | None
    """The token or class that is asked about; None of a vector."""
    probability: float
    """Of the target; NaN of a vector."""
    by: str
    """The method that ranks."""
    ranked: Visible
    """(token,): not special, nor the first, nor the query, nor what it has nothing of."""
    scores: Mapping[str, Doubles]
    """(token,) by method, of which some models do not have all.

    NaN for what the query has nothing of.
    """
    baselines: Mapping[str, Doubles]
    """(token,)."""
    effects: Mapping[Check, Doubles]
    """(token,) by intervention: by how much the logit of the target, less the mean of all, falls.

    Of a vector 1 - cosine. NaN for the query, and for what it has nothing of.
    """
    notes: tuple[str, ...] = ()
    outcome: Outcome | None = None
    """What changes that hold in all runs do to the prediction, if there are any."""

    @property
    def order(self) -> list[int]:
        """The places of the ranked tokens, the highest score first."""
        places = np.flatnonzero(self.ranked)
        falling = np.argsort(-self.scores[self.by][places], kind="stable")
        order: list[int] = places[falling].tolist()
        return order

    @property
    def ranked_count(self) -> int:
        """How many tokens are ranked."""
        return int(self.ranked.sum())

    def rank_tokens(self, values: Doubles) -> Doubles:
        """Rank the tokens by scores or effects, 1 for the highest: (token,).

        NaN for those that are not ranked.
        """
        token_ranks = np.full(len(self.tokens), np.nan)
        token_ranks[self.ranked] = ranks(-values[self.ranked])
        return token_ranks

    @property
    def agreement(self) -> dict[str, dict[Check, float]]:
        """The rank correlation of methods and baselines with each intervention, over ranked tokens.

        Two interventions are compared with each other too: they agree only so far, which is as much
        as can be asked of a method. NaN of one with itself.
        """
        compared: dict[str, Doubles] = {**self.scores, **self.baselines}
        if len(self.effects) > 1:
            compared |= {str(check): effect for check, effect in self.effects.items()}
        return {name: self.correlate(name, values) for name, values in compared.items()}

    def correlate(self, name: str, values: Doubles) -> dict[Check, float]:
        """Return the rank correlation of some numbers with each intervention; NaN with itself."""
        correlations: dict[Check, float] = {}
        for check, effect in self.effects.items():
            correlation = np.nan
            if name != check:
                correlation = spearman(values[self.ranked], effect[self.ranked])
            correlations[check] = correlation
        return correlations

    def under(self, outcome: Outcome) -> "Attribution":
        """Return the attribution with what the changes that hold in all its runs are and do."""
        changes = told_changes(outcome.changes, outcome.scope)
        lines = [line for line in changes if line != SHOWN]
        return replace(self, notes=(*self.notes, *lines, UNDER), outcome=outcome)

    def to_dict(self) -> dict[str, Any]:
        """Return all tokens with their scores as a document, and what interventions say of them."""
        document = describe_attribution(self)
        if self.effects:
            document["verified"] = describe_agreement(self)
        if self.outcome is not None:
            document["intervention"] = describe_outcome(self.outcome)
        return document

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each token, with its scores, ranks and effects."""
        return list_tokens(self)

    def tables(self, most: int | None = None) -> list[Picture]:
        """Return the text coloured by the scores that rank, and the tables below it.

        most: ranked tokens that are listed; None for all.
        """
        return [make_text_strip(self), make_tokens_table(self, most), *self.further_tables()]

    def tables_alone(self, most: int | None = None) -> list[Picture]:
        """Return the tables without the picture of the text, whose title and lines the first has.

        most: ranked tokens that are listed; None for all.
        """
        tokens = make_tokens_table(self, most)
        caption = *tokens.caption, *ranking_lines(self)
        return [replace(tokens, title=make_heading(self), caption=caption), *self.further_tables()]

    def further_tables(self) -> list[Picture]:
        """Return the tables of what interventions say, of those that ran."""
        tables: list[Picture] = []
        if self.effects:
            tables.append(make_agreement_table(self))
        if self.outcome is not None:
            tables.append(prediction_table(self.outcome))
        return tables


# For JSON and CSV


def describe_attribution(attribution: Attribution) -> dict[str, Any]:
    """Describe what is asked, the methods, and all tokens with their scores, for JSON."""
    query = attribution.tokens[attribution.query]
    return {
        "model": attribution.model,
        "text": attribution.text,
        "notes": list(attribution.notes),
        "kind": attribution.kind,
        "query": describe_tokens([query], [attribution.query])[0],
        "target": attribution.target,
        "probability": attribution.probability,
        "by": attribution.by,
        "sinks_ranked": False,
        "methods": describe_methods(attribution.scores),
        "tokens": describe_scored_tokens(attribution),
    }


def describe_methods(methods: Iterable[str]) -> dict[str, Any]:
    """Describe what methods are and where they are from, for JSON."""
    return {
        method: {"definition": SCORINGS[method].definition, "source": SCORINGS[method].source}
        for method in methods
    }


def describe_scored_tokens(attribution: Attribution) -> list[dict[str, Any]]:
    """Describe all tokens with their scores, ranks and effects, for JSON."""
    score_ranks = rank_scores(attribution)
    described = describe_tokens(attribution.tokens, range(len(attribution.tokens)))
    for place, token in enumerate(described):
        token["ranked"] = bool(attribution.ranked[place])
        token["scores"] = pick_token(attribution.scores, place)
        token["ranks"] = pick_token(score_ranks, place)
        token["effects"] = pick_token(attribution.effects, place)
    return described


def rank_scores(attribution: Attribution) -> dict[str, Doubles]:
    """Rank the tokens by each method: (token,) by method."""
    return {
        method: attribution.rank_tokens(scores) for method, scores in attribution.scores.items()
    }


def pick_token(
    columns: Mapping[str, Doubles] | Mapping[Check, Doubles], place: int
) -> dict[str, float]:
    """Return the numbers of one token by the names of their columns."""
    return {name: values[place] for name, values in columns.items()}


def describe_agreement(attribution: Attribution) -> dict[str, Any]:
    """Describe how far methods and baselines agree with interventions, for JSON."""
    return {
        "tokens": attribution.ranked_count,
        "chance": chance(attribution.ranked_count),
        "interventions": {check: CHECKS[check] for check in attribution.effects},
        "baselines": BASELINES,
        "spearman": attribution.agreement,
    }


def list_tokens(attribution: Attribution) -> list[dict[str, Any]]:
    """List all tokens with their scores, ranks and effects."""
    score_ranks = rank_scores(attribution)
    named_ranks = {f"{method}_rank": values for method, values in score_ranks.items()}
    rows = []
    for place, token in enumerate(attribution.tokens):
        row: dict[str, Any] = {
            "place": place,
            "token": token.text,
            "ranked": bool(attribution.ranked[place]),
        }
        row |= pick_token(attribution.scores, place)
        row |= pick_token(named_ranks, place)
        row |= pick_token(attribution.effects, place)
        rows.append(row)
    return rows


# The text


def make_heading(attribution: Attribution) -> str:
    """Make the title: the model, what it says, and what ranks."""
    prediction = PREDICTIONS[attribution.kind].format(
        target=short(escape(repr(attribution.target))),
        probability=attribution.probability,
        place=attribution.query,
        token=name(attribution.tokens[attribution.query]),
    )
    capture = Capture(attribution.model, attribution.text, ())
    return title(capture, f"what mattered for {prediction}", f"by {attribution.by}")


def make_text_strip(attribution: Attribution) -> Strip:
    """Make the text coloured by the scores that rank, the highest being 1."""
    scores = np.where(attribution.ranked, attribution.scores[attribution.by], 0).astype(np.float32)
    largest = scores.max() or 1
    panel = Panel((scores / largest)[None], attribution.ranked[None])
    places = tuple(range(len(attribution.tokens)))
    axis = Axis("keys", labels(attribution.tokens), places, spaced=spaced(attribution.tokens))
    lines = (
        "the highest is set to 1",
        "masked are those that are not ranked: special tokens and the first, on which heads rest; "
        "the token that is asked itself; what it has nothing of",
    )
    return Strip(
        make_heading(attribution),
        axis,
        panel,
        attribution.query,
        Scale(1.0, 1.0, of=attribution.by),
        (*told(lines), *ranking_lines(attribution)),
    )


def ranking_lines(attribution: Attribution) -> tuple[str, ...]:
    """Say what ranks and where that is from, and add the notes."""
    method = SCORINGS[attribution.by]
    line = f"{attribution.by}: {method.definition} ({method.source})"
    return told((line, *attribution.notes))


# The tokens


def make_tokens_table(attribution: Attribution, most: int | None) -> Table:
    """Make a table with a row a token, in the order of their ranks, those without one last.

    It has the scores of all methods, and effects. most: tokens with a rank, and without one, that
    are listed; None for all.
    """
    places = [*attribution.order[:most], *list_unranked(attribution)[:most]]
    columns = collect_columns(attribution)
    headings: list[str] = []
    cells: list[list[str]] = []
    levels = np.full((len(places), 2 * len(columns)), np.nan, np.float32)
    for i, (heading, values) in enumerate(columns.items()):
        headings += (heading, "#")
        token_ranks = attribution.rank_tokens(values)
        scores = format_column(values, token_ranks)
        cells.append([scores[place] for place in places])
        cells.append([format_rank(token_ranks[place]) for place in places])
        levels[:, 2 * i] = column_levels(values, attribution.ranked)[places]
    return Table(
        f"Tokens by {attribution.by}",
        "token",
        tuple(headings),
        tuple(f"{place} {name(attribution.tokens[place])}" for place in places),
        tuple(zip(*cells, strict=True)),
        levels,
        told((rank_line(attribution, most), effect_line(attribution))),
        group=2,
    )


def list_unranked(attribution: Attribution) -> list[int]:
    """List the places of the tokens without a rank that the query has something of, and its own."""
    scores = list(attribution.scores.values())
    return [
        place
        for place in np.flatnonzero(~attribution.ranked).tolist()
        if place == attribution.query or any(values[place] > 0 for values in scores)
    ]


def collect_columns(attribution: Attribution) -> dict[str, Doubles]:
    """Collect the columns of the table of tokens: the method that ranks, the others, effects."""
    first = {attribution.by: attribution.scores[attribution.by]}
    effects = {str(check): effect for check, effect in attribution.effects.items()}
    return {**first, **attribution.scores, **effects}


def column_levels(values: Doubles, ranked: Visible) -> Doubles:
    """Return how far up the colours each score is, (token,): NaN for tokens that are not ranked."""
    largest = values[ranked].max()
    shares = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
    levels: Doubles = np.sqrt(np.where(ranked, shares, np.nan))
    return levels


def format_column(values: Doubles, token_ranks: Doubles) -> list[str]:
    """Format scores so that the largest that has a rank has three digits; empty where undefined."""
    largest = np.abs(values[np.isfinite(token_ranks)]).max()
    decimals = 0
    if largest > 0:
        exponent = int(np.floor(np.log10(largest)))
        decimals = min(max(LARGEST_DIGITS - 1 - exponent, 0), MOST_DECIMALS)
    rounded = values.round(decimals) + 0.0  # no -0
    return [f"{value:.{decimals}f}" if np.isfinite(value) else "" for value in rounded]


def format_rank(rank: float) -> str:
    """Format a rank, which is half a number where two are equal; empty where there is none."""
    return "" if np.isnan(rank) else f"{rank:g}"


def rank_line(attribution: Attribution, most: int | None) -> str:
    """Say what ranks are, and which tokens have none."""
    count = attribution.ranked_count
    listed = f", of which {most} are shown" if most is not None and most < count else ""
    return (
        f"#: rank among {count} tokens{listed}; below them, without a rank: special tokens and the "
        "first, on which heads rest, and the token that is asked"
    )


def effect_line(attribution: Attribution) -> str:
    """Say what the numbers of interventions are; empty if none ran."""
    if not attribution.effects:
        return ""
    checks = ", ".join(attribution.effects)
    if attribution.kind == "vector":
        return f"{checks}: 1 - cosine of the vector before and after"
    return f"{checks}: by how much the logit of the prediction, less the mean of all, falls"


# Trust


def make_agreement_table(attribution: Attribution) -> Table:
    """Make a table of how far methods and baselines rank tokens as interventions do."""
    agreement = attribution.agreement
    correlations = np.array(
        [[*row.values()] for row in agreement.values()]
    )  # (method, intervention)
    cells = tuple(
        tuple(format_correlation(value) for value in row) for row in correlations.tolist()
    )
    return Table(
        "How far to trust it: scores and what the model says without a token",
        "method",
        tuple(attribution.effects),
        tuple(agreement),
        cells,
        np.clip(correlations, 0, 1).astype(np.float32),  # NaN stays
        told(agreement_lines(attribution)),
    )


def format_correlation(value: float) -> str:
    """Format a correlation; empty where it is undefined."""
    return f"{value:.2f}" if np.isfinite(value) else ""


def agreement_lines(attribution: Attribution) -> Sequence[str]:
    """Say what the correlations are of, how far to trust them, and what they are with."""
    count = attribution.ranked_count
    return [
        f"rank correlation (Spearman) over {count} tokens: none special, nor the first, nor the one asked",
        *(trust_line(attribution, check) for check in attribution.effects),
        *(f"{check}: {CHECKS[check]}" for check in attribution.effects),
        *(f"{baseline}: {meaning}" for baseline, meaning in BASELINES.items()),
    ]


def trust_line(attribution: Attribution, check: Check) -> str:
    """Say how far the method that ranks agrees with an intervention, and whether beyond chance."""
    count, by, agreement = attribution.ranked_count, attribution.by, attribution.agreement
    if count < FEW:
        return f"{count} tokens are too few: a rank correlation means nothing here"
    correlation = agreement[by][check]
    if np.isnan(correlation):
        return f"{by} and {check}: one of them ranks nothing, all its numbers are equal"
    bound = chance(count)
    verdict = "more than chance" if correlation > bound else "no more than chance"
    return (
        f"on this input {by} agrees with {check} at {correlation:.2f}: {verdict}, which is within "
        f"±{bound:.2f}; position alone has {agreement['position'][check]:.2f}"
    )
