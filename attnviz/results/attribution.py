"""Which tokens mattered: the text coloured by one method, all methods beside each other, and how far to trust them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from attnviz.analysis.attribution import BASELINES, FEW, SCORINGS, chance, ranks, spearman
from attnviz.drawable import Axis, Panel, Picture, Scale, Strip, Table
from attnviz.escape import escape, label
from attnviz.record import Capture, Doubles, Token, Visible
from attnviz.views.heatmaps import title, told
from attnviz.views.labels import labels, name, short, spaced

Check: TypeAlias = Literal["knock-out", "leave-one-out"]
CHECKS: dict[Check, str] = {
    "knock-out": "the token's column is cut in all layers and heads: no other token reads it",
    "leave-one-out": "the mean over 4 tokens, drawn from the vocabulary, that are read in its place",
}
SAID = {
    "next": "the next token {said}{sure}, after token {place} {token}",
    "masked": "{said}{sure} as token {place} {token}",
    "class": "the class {said}{sure}",
    "vector": "the last vector of token {place} {token}",
}
SHARE = 3  # digits of the largest score of a column


@dataclass(frozen=True)
class Attribution:
    """The tokens of a text, what each is to what the model says at one of them, and what says how."""

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
    """(token,) by method, of which some models do not have all; NaN for what the query has nothing of."""
    baselines: Mapping[str, Doubles]
    """(token,)."""
    effects: Mapping[Check, Doubles]
    """(token,) by intervention: by how much the logit of the target, less the mean of all logits, falls; of a vector
    1 - cosine. NaN for the query, and for what it has nothing of."""
    notes: tuple[str, ...] = ()

    @property
    def order(self) -> list[int]:
        """The places of the ranked tokens, the highest score first."""
        places = np.flatnonzero(self.ranked)
        found: list[int] = places[np.argsort(-self.scores[self.by][places], kind="stable")].tolist()
        return found

    def ranks(self, values: Doubles) -> Doubles:
        """The rank of each ranked token by scores or effects, 1 for the highest, (token,); NaN for the others."""
        found = np.full(len(self.tokens), np.nan)
        found[self.ranked] = ranks(-values[self.ranked])
        return found

    @property
    def agreement(self) -> dict[str, dict[Check, float]]:
        """The rank correlation of each method, and baseline, with each intervention, over the ranked tokens.

        Two interventions agree only so far, which is as much as can be asked of a method; NaN of one with itself.
        """
        checked: dict[str, Doubles] = {**self.effects} if len(self.effects) > 1 else {}  # type: ignore[dict-item]
        return {
            name: {
                check: np.nan if name == check else spearman(values[self.ranked], effect[self.ranked])
                for check, effect in self.effects.items()
            }
            for name, values in {**self.scores, **self.baselines, **checked}.items()
        }


def attribution_pictures(found: Attribution, most: int | None) -> list[Picture]:
    """The text, and the tables below."""
    return [text_strip(found), *attribution_tables(found, most)]


def attribution_tables(found: Attribution, most: int | None, *, alone: bool = False) -> list[Picture]:
    """A table of the tokens, so many ranked ones at most, and one of what interventions say of it if they ran.

    alone: without the picture of the text.
    """
    tokens = tokens_table(found, most)
    if alone:
        tokens = replace(tokens, title=heading(found), caption=(*tokens.caption, *ranking_lines(found)))
    return [tokens, agreement_table(found)] if found.effects else [tokens]


def heading(found: Attribution) -> str:
    """The model, what it says, and what ranks."""
    said, sure = short(escape(repr(found.target))), f" ({found.probability:.0%})"
    token = name(found.tokens[found.query])
    what = SAID[found.kind].format(said=said, sure=sure, place=found.query, token=token)
    return title(Capture(found.model, found.text, ()), f"what mattered for {what}", f"by {found.by}")


def text_strip(found: Attribution) -> Strip:
    """The text coloured by the scores that rank, the highest being 1."""
    values = np.where(found.ranked, found.scores[found.by], 0).astype(np.float32)
    panel = Panel((values / (values.max() or 1))[None], found.ranked[None])
    tokens = Axis("keys", labels(found.tokens), tuple(range(len(found.tokens))), spaced=spaced(found.tokens))
    lines = (
        "the highest is set to 1",
        "masked are those that are not ranked: special tokens and the first, on which heads rest; the token that is "
        "asked itself; what it has nothing of",
    )
    caption = (*told(lines), *ranking_lines(found))
    return Strip(heading(found), tokens, panel, found.query, Scale(1.0, 1.0, of=found.by), caption)


def ranking_lines(found: Attribution) -> tuple[str, ...]:
    """What ranks, who says so, and what else is to be known."""
    how = SCORINGS[found.by]
    return told((f"{found.by}: {how.definition} ({how.source})", *found.notes))


def tokens_table(found: Attribution, most: int | None) -> Table:
    """A row a token in the order of its rank, those without one last: scores by all methods, and effects."""
    others = [place for place in np.flatnonzero(~found.ranked).tolist() if is_read(found, place)]
    shown = [*found.order[:most], *others[:most]]
    columns: dict[str, Doubles] = {found.by: found.scores[found.by], **found.scores}
    columns |= dict(found.effects.items())
    ranked = {heading: found.ranks(values) for heading, values in columns.items()}
    each = [column_cells(values, ranked[heading], shown) for heading, values in columns.items()]
    levels = np.full((len(shown), 2 * len(columns)), np.nan, np.float32)
    for i, values in enumerate(columns.values()):
        largest = values[found.ranked].max()
        shares = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
        levels[:, 2 * i] = np.sqrt(np.where(found.ranked, shares, np.nan))[shown]
    count = int(found.ranked.sum())
    lines = (
        f"#: rank among {count} tokens{f', of which {most} are shown' if most and most < count else ''}; below them, "
        "without a rank: special tokens and the first, on which heads rest, and the token that is asked",
        effect_line(found),
    )
    return Table(
        f"Tokens by {found.by}",
        "token",
        tuple(text for heading in columns for text in (heading, "#")),
        tuple(f"{place} {short(label(found.tokens[place].text))}" for place in shown),
        tuple(tuple(text for pair in row for text in pair) for row in zip(*each, strict=True)),
        levels,
        told(lines),
        group=2,
    )


def is_read(found: Attribution, place: int) -> bool:
    """Whether a token is the one that is asked, or one that it has something of."""
    return place == found.query or any(values[place] > 0 for values in found.scores.values())


def column_cells(values: Doubles, ranked: Doubles, shown: list[int]) -> list[tuple[str, str]]:
    """Scores and ranks as text; the largest of those that are ranked has three digits."""
    largest = np.abs(values[np.isfinite(ranked)]).max()
    after = int(np.clip(SHARE - 1 - np.floor(np.log10(largest)), 0, 9)) if largest > 0 else 0
    scores = [f"{value:.{after}f}" if np.isfinite(value) else "" for value in (values.round(after) + 0.0)[shown]]
    return [
        (score, f"{rank:g}" if rank == rank else "") for score, rank in zip(scores, ranked[shown].tolist(), strict=True)
    ]


def effect_line(found: Attribution) -> str:
    """What the numbers of interventions are."""
    of_logit = "by how much the logit of the prediction, less the mean of all, falls"
    what = "1 - cosine of the vector before and after" if found.kind == "vector" else of_logit
    return f"{', '.join(found.effects)}: {what}" if found.effects else ""


def agreement_table(found: Attribution) -> Table:
    """A row a method, a baseline, or one of two interventions: how far it ranks tokens as interventions do."""
    values = np.array([[*row.values()] for row in found.agreement.values()])  # (method, intervention)
    count = int(found.ranked.sum())
    lines = (
        f"rank correlation (Spearman) over {count} tokens: none special, nor the first, nor the one asked",
        *(trust_line(found, check) for check in found.effects),
        *(f"{check}: {CHECKS[check]}" for check in found.effects),
        *(f"{baseline}: {meaning}" for baseline, meaning in BASELINES.items()),
    )
    return Table(
        "How far to trust it: scores and what the model says without a token",
        "method",
        tuple(found.effects),
        tuple(found.agreement),
        tuple(tuple(f"{value:.2f}" if np.isfinite(value) else "" for value in row) for row in values.tolist()),
        np.clip(values, 0, 1).astype(np.float32),  # NaN stays
        told(lines),
    )


def trust_line(found: Attribution, check: Check) -> str:
    """How far the method that ranks agrees with an intervention, and whether that is more than chance."""
    count, agreed = int(found.ranked.sum()), found.agreement[found.by][check]
    if count < FEW:
        return f"{count} tokens are too few: a rank correlation means nothing here"
    if np.isnan(agreed):
        return f"{found.by} and {check}: one of them ranks nothing, all its numbers are equal"
    bound = chance(count)
    verdict = f"{'more' if agreed > bound else 'no more'} than chance, which is within ±{bound:.2f}"
    near = f"position alone has {found.agreement['position'][check]:.2f}"
    return f"on this input {found.by} agrees with {check} at {agreed:.2f}: {verdict}; {near}"
