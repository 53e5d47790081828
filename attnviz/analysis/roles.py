"""How strongly a head plays a known role: of its weights on a repeated block of tokens, or on a text.

A repeated block is P + B + B + S with B of ``block`` distinct random tokens, P what the tokenizer puts before a text
(BOS or [CLS], or nothing) and S what it puts after it ([SEP], or nothing). With BOS alone, BOS is at place 0, the first
copy at 1..block, the second at block + 1..2 block. Weights are (..., n, n); results (...), in [0, 1].

Three definitions of "induction" give three numbers for one head. Ours is the row-exact mean: the weight that each query
of the second copy, and no other, gives to the token that followed its first occurrence.

A head is named by what it does beyond chance, (score - chance) / (1 - chance), where chance is the score of a head that
attends to all it sees alike. No head of random Llamas, GPT-2s and BERTs of 3 and 12 layers, their weights of deviation
0.02 to 1, came to more than two thirds of a threshold: to 0.07 of most roles, 0.30 of the first token, 0.40 of
separators, 0.08 of locality.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.record import Visible, Weights

Data: TypeAlias = Literal["repeated", "text"]
NEAR = 2  # tokens on either side that are local


class Layout(NamedTuple):
    """What stands where in a sequence of n tokens."""

    visible: Visible
    """(..., n, n): True where a query may attend."""
    block: int = 0
    """Tokens of the block that is repeated; 0 for a text."""
    first: int = 1
    """The place of the first of them."""
    separators: tuple[int, ...] = ()
    """The places of tokens that part others."""


def induction(weights: Weights, block: int, first: int = 1) -> Weights:
    """Mean of A[q, q - block + 1] over the second copy (prefix matching, Olsson et al. 2022)."""
    return band(weights, range(first + block, first + 2 * block), block - 1)


def duplicate_token(weights: Weights, block: int, first: int = 1) -> Weights:
    """Mean of A[q, q - block] over the second copy (Wang et al. 2022)."""
    return band(weights, range(first + block, first + 2 * block), block)


def previous_token(weights: Weights) -> Weights:
    """Mean of A[q, q - 1] over q >= 2: at q = 1 the previous token is the sink."""
    return band(weights, range(2, weights.shape[-2]), 1)


def next_token(weights: Weights) -> Weights:
    """Mean of A[q, q + 1] over q >= 1."""
    return band(weights, range(1, weights.shape[-2] - 1), -1)


def self_token(weights: Weights) -> Weights:
    """Mean of A[q, q] over q >= 1: a causal first query sees nothing else."""
    return band(weights, range(1, weights.shape[-2]), 0)


def first_token(weights: Weights) -> Weights:
    """Mean of A[q, 0] over q >= 1 (Xiao et al. 2023)."""
    return averaged(weights[..., 1:, 0])


def separator(weights: Weights, places: tuple[int, ...]) -> Weights:
    """Mean over q >= 1 of the weight on separators (Clark et al. 2019)."""
    return averaged(weights[..., 1:, list(places)].sum(-1))


def local(weights: Weights) -> Weights:
    """Mean weight within NEAR tokens on both sides, less the largest share that one distance has of it."""
    queries = range(
        NEAR + 1, weights.shape[-2] - NEAR
    )  # those that see a key beyond on both sides, if they look there
    bands = np.stack([band(weights, queries, back) for back in range(-NEAR, NEAR + 1)])
    found: Weights = bands.sum(0) - bands.max(0)
    return found


def uniform(weights: Weights, visible: Visible) -> Weights:
    """Mean of H / ln m over the queries that see m > 1 keys, H their entropy in nats (Clark et al. 2019)."""
    exact = weights.astype(np.float64)
    logs = np.log(exact, out=np.zeros_like(exact), where=exact > 0)  # 0 log 0 = 0
    seen = np.broadcast_to(visible, weights.shape).sum(-1)  # (..., query)
    share = -np.einsum("...qk,...qk->...q", exact, logs) / np.log(np.maximum(seen, 2))
    found: Weights = (share * (seen > 1)).sum(-1) / np.where(
        (seen > 1).any(-1), (seen > 1).sum(-1), np.nan
    )
    return found


def band(weights: Weights, queries: range, back: int) -> Weights:
    """Mean weight that these queries give to the key ``back`` places before each: (..., n, n) -> (...)."""
    rows = np.asarray(queries, int)
    return averaged(weights[..., rows, rows - back])


def averaged(values: Weights) -> Weights:
    """The mean over the last axis, NaN over nothing."""
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan, values.dtype)
    mean: Weights = values.mean(-1)
    return mean


@dataclass(frozen=True)
class Role:
    """What a head may be doing."""

    short: str
    """In three letters."""
    threshold: float | None
    """What a head must reach beyond chance, on all data that it is measured on, to be named; None for no name."""
    data: tuple[Data, ...]
    score: Callable[[Weights, Layout], Weights]
    definition: str
    source: str


BOTH: tuple[Data, ...] = ("repeated", "text")
ROLES: Mapping[str, Role] = {
    "induction": Role(
        "ind",
        0.3,
        ("repeated",),
        lambda weights, at: induction(weights, at.block, at.first),
        "weight on the token that followed the query's first occurrence: the row-exact mean over the second copy",
        "prefix matching, Olsson et al. 2022",
    ),
    "duplicate_token": Role(
        "dup",
        0.3,
        ("repeated",),
        lambda weights, at: duplicate_token(weights, at.block, at.first),
        "weight on the query's first occurrence: mean over the second copy",
        "Wang et al. 2022",
    ),
    "previous_token": Role(
        "prv",
        0.4,
        BOTH,
        lambda weights, _: previous_token(weights),
        "weight on the token before the query: mean over the third query and those after it",
        "Clark et al. 2019; Olsson et al. 2022",
    ),
    "next_token": Role(
        "nxt",
        0.4,
        BOTH,
        lambda weights, _: next_token(weights),
        "weight on the token after the query, where it is visible: mean over the second query to the last but one",
        "Clark et al. 2019",
    ),
    "self_token": Role(
        "slf",
        0.4,
        BOTH,
        lambda weights, _: self_token(weights),
        "weight on the query itself: mean over the second query and those after it",
        "Clark et al. 2019",
    ),
    "first_token": Role(
        "1st",
        0.5,
        BOTH,
        lambda weights, _: first_token(weights),
        "weight on the first token, the sink: mean over the second query and those after it",
        "Xiao et al. 2023",
    ),
    "separator": Role(
        "sep",
        0.6,
        ("text",),
        lambda weights, at: separator(weights, at.separators),
        "weight on punctuation and special tokens but the first: mean over the second query and those after it",
        "Clark et al. 2019",
    ),
    "local": Role(
        "loc",
        0.2,
        BOTH,
        lambda weights, _: local(weights),
        "weight within two tokens on both sides, less that of the one distance that has most of it",
        "windowed heads, Kovaleva et al. 2019",
    ),
    "uniform": Role(
        "uni",
        None,
        BOTH,
        lambda weights, at: uniform(weights, at.visible),
        "entropy as a share of the largest possible; names no head, as none is as uniform as one of random weights",
        "broad heads, Clark et al. 2019",
    ),
}


class Measured(NamedTuple):
    """A role's score for some heads, (...), NaN where it is undefined."""

    score: npt.NDArray[np.floating]
    chance: npt.NDArray[np.floating]
    """Of a head that attends to all that it sees alike."""


def measure(weights: Weights, layout: Layout, data: Data) -> dict[str, Measured]:
    """The scores of weights (..., n, n) for the roles that are measured on such data.

    Undefined is what chance would never do: the next token of a causal model, a separator where there is none.
    """
    even, found = alike(layout.visible), {}
    for name, role in ROLES.items():
        if data in role.data:
            score, chance = role.score(weights, layout), role.score(even, layout)
            found[name] = Measured(
                np.where(chance > 0, score, np.nan), np.broadcast_to(chance, score.shape)
            )
    return found


def alike(visible: Visible) -> Weights:
    """Weights of a head that attends to all that it sees alike: (..., n, n)."""
    seen = np.maximum(visible.sum(-1, keepdims=True, dtype=np.float32), 1)
    even: Weights = np.divide(visible, seen, dtype=np.float32)
    return even


def beyond(score: float, chance: float) -> float:
    """How far a score is from chance to 1; at most 0 where chance is 1."""
    return (score - chance) / (1 - chance) if chance < 1 else 0.0
