"""The tokens that mattered for a prediction, by several methods, and how far to trust these.

A method gives each token a score. To check it, interventions take a token away and measure how far
the prediction falls. A method is as good as its ranks agree with those of the interventions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from attnviz.analysis.attribution import (
    BASELINES,
    FEWEST_CORRELATED,
    SCORINGS,
    compute_chance_correlation,
    correlate_ranks,
    rank_values,
)
from attnviz.drawable import Axis, Panel, Picture, Scale, Strip, Table
from attnviz.escape import escape
from attnviz.io.formats import describe_tokens
from attnviz.record import Capture, Doubles, Floats, Token, Visible
from attnviz.results.digits import format_fixed
from attnviz.results.intervention import (
    SHOWN,
    InterventionOutcome,
    describe_outcome,
    explain_changes,
    make_prediction_table,
)
from attnviz.results.result import Result
from attnviz.views.heatmaps import join_title, make_caption
from attnviz.views.labels import (
    find_spaces,
    label_tokens,
    name_token,
    shorten_token_label,
)

TokenRemoval: TypeAlias = Literal["knock-out", "leave-one-out"]
TOKEN_REMOVALS: dict[TokenRemoval, str] = {
    "knock-out": "the token's column is cut in all layers and heads: no other token reads it",
    "leave-one-out": "the mean over 4 tokens, drawn from the vocabulary, "
    "that are read in its place",
}
PREDICTIONS = {
    "next": "the next token {target} ({probability:.0%}), after token {place} {token}",
    "masked": "{target} ({probability:.0%}) as token {place} {token}",
    "class": "the class {target} ({probability:.0%})",
    "vector": "the last vector of token {place} {token}",
}
UNDER = (
    "what is ranked is what the model says under this intervention; heads that are ablated do not "
    "count"
)
HIGHEST_IS_ONE = "the highest is set to 1"
NOT_RANKED = (
    "masked are those that are not ranked: special tokens and the first, on which heads rest; the "
    "token that is asked itself; what it has nothing of"
)
BELOW_THE_RANKED = (
    "below them, without a rank: special tokens and the first, on which heads rest, and the token "
    "that is asked"
)
LARGEST_DIGITS = 3  # of the largest score of a column
MOST_DECIMALS = 9


@dataclass(frozen=True, repr=False)
class Attribution(Result):
    """The scores of the tokens of a text for what the model predicts at one of them.

    The token at which it predicts is the query. Several methods give scores, and one of them ranks.
    """

    model: str
    text: str
    tokens: tuple[Token, ...]
    query: int
    """The position of the token whose row of attention is read."""
    kind: Literal["next", "masked", "class", "vector"]
    """The kind of what is predicted there: see ``Response``."""
    target: str | None
    """The token or class that is asked about; None of a vector."""
    probability: float
    """The probability of the target; NaN of a vector."""
    by: str
    """The method that ranks."""
    ranked: Visible
    """(token,): False for special tokens, the first, the query, and those it has nothing of."""
    scores: Mapping[str, Doubles]
    """(token,) by method, of which some models do not have all.

    NaN for tokens that the query has nothing of.
    """
    baselines: Mapping[str, Doubles]
    """(token,) by the name of a baseline."""
    effects: Mapping[TokenRemoval, Doubles]
    """(token,) by intervention: by how much the logit of the target, less the mean of all, falls.

    Of a vector 1 - cosine. NaN for the query, and for tokens that it has nothing of.
    """
    notes: tuple[str, ...] = ()
    outcome: InterventionOutcome | None = None
    """The effect on the prediction of changes that hold in all runs, if there are any."""

    @property
    def order(self) -> list[int]:
        """The positions of the ranked tokens, the highest score by the ranking method first."""
        positions = np.flatnonzero(self.ranked)
        scores = self.scores[self.by][positions]
        falling = np.argsort(-scores, kind="stable")
        order: list[int] = positions[falling].tolist()
        return order

    @property
    def ranked_count(self) -> int:
        """The number of tokens that are ranked."""
        return int(self.ranked.sum())

    def rank_tokens(self, values: Doubles) -> Doubles:
        """Rank the tokens by some values, 1 for the highest.

        values: (token,), scores or effects. Returns ranks (token,), where equal values share their
        mean rank. NaN stands for the tokens that take no part in the ranking.
        """
        token_ranks = np.full(len(self.tokens), np.nan)
        token_ranks[self.ranked] = rank_values(-values[self.ranked])
        return token_ranks

    @property
    def agreement(self) -> dict[str, dict[TokenRemoval, float]]:
        """The rank correlation of each method and baseline with the effect of removing a token.

        It is by the name of the method or baseline, and then by the way of removing tokens:
        knock-out or leave-one-out. A baseline scores tokens without knowing the model. Only ranked
        tokens count.

        Two ways of removing tokens are compared with each other too: they agree only so far, which
        is as much as can be asked of a method. NaN of one with itself.
        """
        compared: dict[str, Doubles] = {**self.scores, **self.baselines}
        if len(self.effects) > 1:
            compared |= {str(removal): effect for removal, effect in self.effects.items()}
        return {name: self.correlate(name, values) for name, values in compared.items()}

    def correlate(self, name: str, values: Doubles) -> dict[TokenRemoval, float]:
        """Correlate some values by rank with the effects of removing tokens.

        name: the method, the baseline or the way of removing tokens that the values come from.
        values: (token,), of which only ranked tokens count. Returns a correlation for each way of
        removing tokens, knock-out and leave-one-out; it is NaN where that way is ``name`` itself.
        """
        ranked_values = values[self.ranked]
        correlations: dict[TokenRemoval, float] = {}
        for removal, effect in self.effects.items():
            if name == removal:
                correlations[removal] = np.nan
            else:
                correlations[removal] = correlate_ranks(ranked_values, effect[self.ranked])
        return correlations

    def with_outcome(self, outcome: InterventionOutcome) -> "Attribution":
        """Return the attribution with an intervention that holds in all its runs, and notes on it.

        outcome: the changes of the intervention, and how far they moved the prediction.
        """
        changes = explain_changes(outcome.changes, outcome.scope)
        # An attribution shows no weights of ablated heads.
        lines = [line for line in changes if line != SHOWN]
        return replace(self, notes=(*self.notes, *lines, UNDER), outcome=outcome)

    def to_dict(self) -> dict[str, Any]:
        """Return all tokens with their scores as a document for JSON.

        If tokens were removed, "verified" says how well the scores agree with the effects; if an
        intervention held in all runs, "intervention" says what it did.
        """
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
        """Return the pictures: the text coloured by its scores, and the tables below it.

        most: ranked tokens, and tokens without a rank, that are listed at most; None for all.
        """
        text = make_text_strip(self)
        tokens = make_tokens_table(self, most)
        return [text, tokens, *self.further_tables()]

    def tables_alone(self, most: int | None = None) -> list[Picture]:
        """Return the tables without the picture of the coloured text.

        The first table has the title of that picture, and the lines below it. most: ranked tokens,
        and tokens without a rank, that are listed at most; None for all.
        """
        tokens = make_tokens_table(self, most)
        caption = *tokens.caption, *explain_ranking(self)
        first = replace(tokens, title=make_attribution_title(self), caption=caption)
        return [first, *self.further_tables()]

    def further_tables(self) -> list[Picture]:
        """Return the tables of how far to trust the scores, and of an intervention, if any.

        The first stands where tokens were removed to check the scores, the second where an
        intervention held in all runs.
        """
        tables: list[Picture] = []
        if self.effects:
            tables.append(make_agreement_table(self))
        if self.outcome is not None:
            tables.append(make_prediction_table(self.outcome))
        return tables


# For JSON and CSV


def describe_attribution(attribution: Attribution) -> dict[str, Any]:
    """Describe what is asked, the methods, and all tokens with their scores, for JSON.

    The query is the token at which the model predicts.
    """
    position = attribution.query
    (query,) = describe_tokens([attribution.tokens[position]], [position])
    return {
        "model": attribution.model,
        "text": attribution.text,
        "notes": list(attribution.notes),
        "kind": attribution.kind,
        "query": query,
        "target": attribution.target,
        "probability": attribution.probability,
        "by": attribution.by,
        "sinks_ranked": False,
        "methods": describe_methods(attribution.scores),
        "tokens": describe_scored_tokens(attribution),
    }


def describe_methods(methods: Iterable[str]) -> dict[str, Any]:
    """Describe methods by name, with their definitions and the papers they are from, for JSON."""
    described: dict[str, Any] = {}
    for name in methods:
        method = SCORINGS[name]
        described[name] = {"definition": method.definition, "source": method.source}
    return described


def describe_scored_tokens(attribution: Attribution) -> list[dict[str, Any]]:
    """Describe all tokens with their scores, ranks and effects, for JSON.

    Scores and ranks are by method. Effects say how far the prediction falls without the token, by
    the way of removing it.
    """
    token_ranks = rank_by_method(attribution)
    tokens = attribution.tokens
    described = describe_tokens(tokens, range(len(tokens)))
    for position, token in enumerate(described):
        token["ranked"] = bool(attribution.ranked[position])
        token["scores"] = pick_token_numbers(attribution.scores, position)
        token["ranks"] = pick_token_numbers(token_ranks, position)
        token["effects"] = pick_token_numbers(attribution.effects, position)
    return described


def rank_by_method(attribution: Attribution) -> dict[str, Doubles]:
    """Rank the tokens by the scores of each method; returns ranks (token,) by method."""
    scores = attribution.scores
    return {method: attribution.rank_tokens(values) for method, values in scores.items()}


def pick_token_numbers(
    columns: Mapping[str, Doubles] | Mapping[TokenRemoval, Doubles],
    position: int,
) -> dict[str, float]:
    """Return the number of one token in each column, by the names of the columns."""
    return {name: values[position] for name, values in columns.items()}


def describe_agreement(attribution: Attribution) -> dict[str, Any]:
    """Describe how well methods and baselines agree with removing tokens, for JSON.

    "spearman" has the rank correlations over the ranked tokens, "chance" the size that correlations
    of unrelated numbers seldom exceed.
    """
    count = attribution.ranked_count
    interventions = {removal: TOKEN_REMOVALS[removal] for removal in attribution.effects}
    return {
        "tokens": count,
        "chance": compute_chance_correlation(count),
        "interventions": interventions,
        "baselines": BASELINES,
        "spearman": attribution.agreement,
    }


def list_tokens(attribution: Attribution) -> list[dict[str, Any]]:
    """List all tokens with their scores, ranks and effects as rows of a CSV file."""
    named_ranks: dict[str, Doubles] = {}
    for method, token_ranks in rank_by_method(attribution).items():
        named_ranks[f"{method}_rank"] = token_ranks
    rows = []
    for position, token in enumerate(attribution.tokens):
        is_ranked = bool(attribution.ranked[position])
        row = {"place": position, "token": token.text, "ranked": is_ranked}
        row |= pick_token_numbers(attribution.scores, position)
        row |= pick_token_numbers(named_ranks, position)
        row |= pick_token_numbers(attribution.effects, position)
        rows.append(row)
    return rows


# The text


def make_attribution_title(attribution: Attribution) -> str:
    """Make the title of the pictures: the model, what it predicts, and the method that ranks."""
    query_token = attribution.tokens[attribution.query]
    target = escape(repr(attribution.target))
    prediction = PREDICTIONS[attribution.kind].format(
        target=shorten_token_label(target),
        probability=attribution.probability,
        place=attribution.query,
        token=name_token(query_token),
    )
    capture = Capture(attribution.model, attribution.text, ())
    return join_title(capture, f"what mattered for {prediction}", f"by {attribution.by}")


def make_text_strip(attribution: Attribution) -> Strip:
    """Make the picture of the text, its tokens coloured by the scores of the ranking method.

    Scores are divided by the highest score of a ranked token. Tokens without a rank are masked.
    """
    tokens, ranked = attribution.tokens, attribution.ranked
    scores_of_ranked = np.where(ranked, attribution.scores[attribution.by], 0)
    scores = scores_of_ranked.astype(np.float32)
    # Where no score is above 0, nothing is divided by 0.
    highest = scores.max() or 1
    panel = Panel((scores / highest)[None], ranked[None])
    positions = tuple(range(len(tokens)))
    axis = Axis("keys", label_tokens(tokens), positions, spaced=find_spaces(tokens))
    scale = Scale(top=1.0, largest=1.0, of=attribution.by)
    lines = make_caption((HIGHEST_IS_ONE, NOT_RANKED))
    caption = *lines, *explain_ranking(attribution)
    title = make_attribution_title(attribution)
    return Strip(
        title=title,
        tokens=axis,
        panel=panel,
        chosen=attribution.query,
        scale=scale,
        caption=caption,
    )


def explain_ranking(attribution: Attribution) -> tuple[str, ...]:
    """Explain in lines which method ranks and which paper it is from, and add the notes."""
    name = attribution.by
    method = SCORINGS[name]
    line = f"{name}: {method.definition} ({method.source})"
    return make_caption((line, *attribution.notes))


# The tokens


def make_tokens_table(attribution: Attribution, most: int | None) -> Table:
    """Make a table of tokens in the order of their ranks, with all scores and effects.

    Tokens without a rank come last. Each method, and each way of removing tokens, has two columns:
    its numbers, and the ranks of these. most: ranked tokens, and tokens without a rank, that are
    listed at most; None for all.
    """
    ranked, unranked = attribution.order, list_unranked(attribution)
    positions = ranked[:most] + unranked[:most]
    names = []
    for position in positions:
        token = attribution.tokens[position]
        names.append(f"{position} {name_token(token)}")
    headings: list[str] = []
    columns: list[list[str]] = []
    levels: list[Floats] = []
    for heading, values in collect_columns(attribution).items():
        headings += [heading, "#"]
        columns += format_scores_and_ranks(attribution, values, positions)
        levels += colour_scores_and_ranks(attribution, values, positions)
    lines = explain_ranks(attribution, most), explain_effects(attribution)
    cells = zip(*columns, strict=True)
    return Table(
        title=f"Tokens by {attribution.by}",
        corner="token",
        columns=tuple(headings),
        rows=tuple(names),
        cells=tuple(cells),
        levels=np.stack(levels, axis=-1),
        caption=make_caption(lines),
        group=2,
    )


def format_scores_and_ranks(
    attribution: Attribution,
    values: Doubles,
    positions: Sequence[int],
) -> tuple[list[str], list[str]]:
    """Format a column of scores and one of their ranks, for the tokens that are shown.

    values: (token,), scores or effects of all tokens. positions: those of the tokens shown.
    """
    token_ranks = attribution.rank_tokens(values)
    scores = format_scores(values, token_ranks)
    shown_scores = [scores[position] for position in positions]
    shown_ranks = [format_rank(token_ranks[position]) for position in positions]
    return shown_scores, shown_ranks


def colour_scores_and_ranks(
    attribution: Attribution,
    values: Doubles,
    positions: Sequence[int],
) -> tuple[Floats, Floats]:
    """Return the colour levels of a column of scores and of one of their ranks, (row,) each.

    values: (token,), scores or effects of all tokens. positions: those of the tokens shown. Levels
    go from 0 to 1. Ranks have NaN, which stands for no colour.
    """
    levels = colour_scores(values, attribution.ranked)
    of_scores = levels[positions].astype(np.float32)
    return of_scores, np.full_like(of_scores, np.nan)


def list_unranked(attribution: Attribution) -> list[int]:
    """List the positions of tokens without a rank that some method scores above 0.

    The query, that is, the token at which the model predicts, is listed whatever its scores are.
    """
    scores = list(attribution.scores.values())
    unranked = []
    for position in np.flatnonzero(~attribution.ranked).tolist():
        has_score = any(values[position] > 0 for values in scores)
        if has_score or position == attribution.query:
            unranked.append(position)
    return unranked


def collect_columns(attribution: Attribution) -> dict[str, Doubles]:
    """Collect the columns of the table of tokens, (token,) each, by heading.

    The scores of the ranking method come first, then those of the other methods, then the effects
    of removing tokens.
    """
    columns = {attribution.by: attribution.scores[attribution.by]}
    # The ranking method is there already, and stays first.
    columns |= attribution.scores
    columns |= {str(removal): effect for removal, effect in attribution.effects.items()}
    return columns


def colour_scores(values: Doubles, ranked: Visible) -> Doubles:
    """Return the colour level of each score, from 0 to 1; NaN for tokens that are not ranked.

    A level is the square root of the score's share of the largest ranked score. values, ranked and
    the levels are (token,).
    """
    largest = values[ranked].max()
    shares = np.zeros_like(values)
    if largest > 0:
        shares = np.clip(values / largest, 0, 1)
    levels: Doubles = np.sqrt(np.where(ranked, shares, np.nan))
    return levels


def format_scores(values: Doubles, token_ranks: Doubles) -> list[str]:
    """Format scores with so many decimals that the largest ranked one shows three digits.

    values, token_ranks: (token,). A token whose rank is NaN does not count for the largest. The
    text of a score that is NaN is empty.
    """
    has_rank = np.isfinite(token_ranks)
    largest = np.abs(values[has_rank]).max()
    decimals = 0
    if largest > 0:
        exponent = int(np.floor(np.log10(largest)))
        wanted = max(LARGEST_DIGITS - 1 - exponent, 0)
        decimals = min(wanted, MOST_DECIMALS)
    rounded = values.round(decimals) + 0.0  # no -0
    texts = [f"{value:.{decimals}f}" for value in rounded]
    for position in np.flatnonzero(~np.isfinite(rounded)):
        texts[position] = ""
    return texts


def format_rank(rank: float) -> str:
    """Format a rank, which may end in .5 where two tokens share it; an empty text for NaN."""
    if np.isnan(rank):
        return ""
    return f"{rank:g}"


def explain_ranks(attribution: Attribution, most: int | None) -> str:
    """Explain the columns of ranks in a line: how many tokens are ranked, and which are not.

    most: ranked tokens that are listed at most; None for all.
    """
    count = attribution.ranked_count
    ranks_of = f"#: rank among {count} tokens"
    if most is not None and most < count:
        ranks_of = f"{ranks_of}, of which {most} are shown"
    return f"{ranks_of}; {BELOW_THE_RANKED}"


def explain_effects(attribution: Attribution) -> str:
    """Explain the columns of effects in a line; empty if no tokens were removed."""
    if not attribution.effects:
        return ""
    removals = ", ".join(attribution.effects)
    if attribution.kind == "vector":
        return f"{removals}: 1 - cosine of the vector before and after"
    return f"{removals}: by how much the logit of the prediction, less the mean of all, falls"


# Trust


def make_agreement_table(attribution: Attribution) -> Table:
    """Make a table of how well scores agree in their ranks with the effects of removing tokens.

    It has a row for each method and baseline, and a column for each way of removing tokens. Colours
    are of the rank correlations, those below 0 like 0.
    """
    agreement = attribution.agreement
    rows = [list(correlations.values()) for correlations in agreement.values()]
    cells = [tuple(format_fixed(value, 2) for value in row) for row in rows]
    shares = np.clip(np.array(rows), 0, 1)  # (row, column); NaN stays
    lines = explain_agreement(attribution)
    return Table(
        title="How far to trust it: scores and what the model says without a token",
        corner="method",
        columns=tuple(attribution.effects),
        rows=tuple(agreement),
        cells=tuple(cells),
        levels=shares.astype(np.float32),
        caption=make_caption(lines),
    )


def explain_agreement(attribution: Attribution) -> Sequence[str]:
    """Explain in lines the correlations of scores with the effects of removing tokens.

    They say which tokens count, how far to trust the ranking method, how tokens are removed, and
    what the baselines are.
    """
    over = f"over {attribution.ranked_count} tokens"
    lines = [f"rank correlation (Spearman) {over}: none special, nor the first, nor the one asked"]
    removals = attribution.effects
    lines += [describe_trust(attribution, removal) for removal in removals]
    lines += [f"{removal}: {TOKEN_REMOVALS[removal]}" for removal in removals]
    for baseline, meaning in BASELINES.items():
        lines.append(f"{baseline}: {meaning}")
    return lines


def describe_trust(attribution: Attribution, removal: TokenRemoval) -> str:
    """Say in a line how well the ranking method agrees with the effects of removing tokens.

    The line also says whether that is more than chance. removal: the way of removing tokens,
    knock-out or leave-one-out. Agreement is a rank correlation over the ranked tokens.
    """
    count, by = attribution.ranked_count, attribution.by
    if count < FEWEST_CORRELATED:
        return f"{count} tokens are too few: a rank correlation means nothing here"
    agreement = attribution.agreement
    correlation = agreement[by][removal]
    if np.isnan(correlation):
        return f"{by} and {removal}: one of them ranks nothing, all its numbers are equal"
    bound = compute_chance_correlation(count)
    verdict = "more than chance" if correlation > bound else "no more than chance"
    by_position = agreement["position"][removal]
    agrees = f"on this input {by} agrees with {removal} at {correlation:.2f}"
    reason = f"{verdict}, which is within ±{bound:.2f}"
    return f"{agrees}: {reason}; position alone has {by_position:.2f}"
