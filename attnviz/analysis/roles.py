"""How strongly a head plays a known role, by its weights on a repeated block or on a text.

A repeated block is P + B + B + S with B of ``block`` distinct random tokens, P what the tokenizer
puts before a text (BOS or [CLS], or nothing) and S what it puts after it ([SEP], or nothing). With
BOS alone, BOS is at position 0, the first copy at 1..block, the second at block + 1..2 block.
Weights are (..., n, n); results (...), in [0, 1].

Three definitions of "induction" give three numbers for one head. Ours is the row-exact mean: the
weight that each query of the second copy, and no other, gives to the token that followed its first
occurrence.

A head is named by what it does beyond chance, (score - chance) / (1 - chance), where chance is the
score of a head that attends to all it sees alike. No head of random Llamas, GPT-2s and BERTs of 3
and 12 layers, their weights of deviation 0.02 to 1, came to more than two thirds of a threshold: to
0.07 of most roles, 0.30 of the first token, 0.40 of separators, 0.08 of locality.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.analysis.numerics import compute_row_entropies
from attnviz.record import Visible, Weights

RoleData: TypeAlias = Literal["repeated", "text"]
NEAR = 2  # tokens on either side that are local


class Layout(NamedTuple):
    """The parts of a sequence of n tokens that roles are about."""

    visible: Visible
    """(..., n, n): True where a query may attend."""
    block: int = 0
    """Tokens of the block that is repeated; 0 for a text."""
    first: int = 1
    """The position of the first token of the block."""
    separators: tuple[int, ...] = ()
    """The positions of tokens that stand between others."""


def measure_induction(weights: Weights, block: int, first: int = 1) -> Weights:
    """Average A[q, q - block + 1] over the second copy of a block (Olsson et al. 2022).

    weights: A, (..., n, n), of a sequence with a block of ``block`` tokens that stands twice in a
    row, from position ``first`` on. This is called prefix matching.
    """
    second_copy = range(first + block, first + 2 * block)
    return average_band(weights, second_copy, block - 1)


def measure_duplicate_token(weights: Weights, block: int, first: int = 1) -> Weights:
    """Average A[q, q - block] over the second copy of a block (Wang et al. 2022).

    weights: A, (..., n, n), of a sequence with a block of ``block`` tokens that stands twice in a
    row, from position ``first`` on.
    """
    second_copy = range(first + block, first + 2 * block)
    return average_band(weights, second_copy, block)


def measure_previous_token(weights: Weights) -> Weights:
    """Average A[q, q - 1] over q >= 2: at q = 1 the previous token is the sink."""
    queries = range(2, weights.shape[-2])
    return average_band(weights, queries, 1)


def score_induction(weights: Weights, layout: Layout) -> Weights:
    """Score the role of ``induction`` in a sequence."""
    return measure_induction(weights, layout.block, layout.first)


def score_duplicate_token(weights: Weights, layout: Layout) -> Weights:
    """Score the role of ``duplicate_token`` in a sequence."""
    return measure_duplicate_token(weights, layout.block, layout.first)


def score_previous_token(weights: Weights, _: Layout) -> Weights:
    """Score the role of ``previous_token`` in a sequence."""
    return measure_previous_token(weights)


def score_next_token(weights: Weights, _: Layout) -> Weights:
    """Average A[q, q + 1] over q >= 1."""
    queries = range(1, weights.shape[-2] - 1)
    return average_band(weights, queries, -1)


def score_self_token(weights: Weights, _: Layout) -> Weights:
    """Average A[q, q] over q >= 1: a causal first query sees nothing else."""
    queries = range(1, weights.shape[-2])
    return average_band(weights, queries, 0)


def score_first_token(weights: Weights, _: Layout) -> Weights:
    """Average A[q, 0] over q >= 1 (Xiao et al. 2023)."""
    return average_last_axis(weights[..., 1:, 0])


def score_separator(weights: Weights, layout: Layout) -> Weights:
    """Average the weight on separators over q >= 1 (Clark et al. 2019)."""
    positions = list(layout.separators)
    on_separators = weights[..., 1:, positions]
    return average_last_axis(on_separators.sum(-1))


def score_local(weights: Weights, _: Layout) -> Weights:
    """Average the weight within NEAR tokens on both sides, less that of the strongest distance.

    The largest share that one distance has of it is left out, since a head that looks at one
    distance alone does not look at a window. Only those queries are counted that have keys farther
    away than NEAR on both sides. weights: (..., n, n); the scores are (...).
    """
    query_count = weights.shape[-2]
    queries = range(NEAR + 1, query_count - NEAR)
    distances = range(-NEAR, NEAR + 1)
    bands = np.stack([average_band(weights, queries, back) for back in distances])
    scores: Weights = bands.sum(0) - bands.max(0)
    return scores


def score_uniform(weights: Weights, layout: Layout) -> Weights:
    """Average H / ln m over queries that see m > 1 keys, H their entropy (Clark et al. 2019).

    weights: (..., n, n). layout: has the mask, True where a query may attend. The scores are (...),
    1 for a head that spreads its attention evenly over the visible keys, and NaN where no query
    sees two keys.
    """
    entropies = compute_row_entropies(weights.astype(np.float64))  # (..., query)
    visible = np.broadcast_to(layout.visible, weights.shape)
    seen = visible.sum(-1)  # (..., query)
    has_choice = seen > 1
    largest_entropies = np.log(np.maximum(seen, 2))
    shares = entropies / largest_entropies
    sums = (shares * has_choice).sum(-1)
    choosing = has_choice.sum(-1)
    counts = np.where(choosing > 0, choosing, np.nan)
    scores: Weights = sums / counts
    return scores


def average_band(weights: Weights, queries: range, back: int) -> Weights:
    """Average the weight of queries on the key ``back`` tokens before: (..., n, n) -> (...)."""
    rows = np.asarray(queries, int)
    return average_last_axis(weights[..., rows, rows - back])


def average_last_axis(values: Weights) -> Weights:
    """Average values over the last axis; NaN if that axis is empty."""
    if not values.shape[-1]:
        shape = values.shape[:-1]
        return np.full(shape, np.nan, values.dtype)
    mean: Weights = values.mean(-1)
    return mean


@dataclass(frozen=True)
class RoleDefinition:
    """A thing that a head may be doing."""

    short: str
    """The name in three letters."""
    threshold: float | None
    """The score beyond chance from which a head has the name of the role; None for no name.

    It must be reached on all data on which the role is measured.
    """
    data: tuple[RoleData, ...]
    """The data on which the role is measured."""
    score: Callable[[Weights, Layout], Weights]
    definition: str
    source: str


BOTH: tuple[RoleData, ...] = ("repeated", "text")
ROLES: Mapping[str, RoleDefinition] = {
    "induction": RoleDefinition(
        "ind",
        0.3,
        ("repeated",),
        score_induction,
        "weight on the token that followed the query's first occurrence: the row-exact "
        "mean over the second copy",
        "prefix matching, Olsson et al. 2022",
    ),
    "duplicate_token": RoleDefinition(
        "dup",
        0.3,
        ("repeated",),
        score_duplicate_token,
        "weight on the query's first occurrence: mean over the second copy",
        "Wang et al. 2022",
    ),
    "previous_token": RoleDefinition(
        "prv",
        0.4,
        BOTH,
        score_previous_token,
        "weight on the token before the query: mean over the third query and those after it",
        "Clark et al. 2019; Olsson et al. 2022",
    ),
    "next_token": RoleDefinition(
        "nxt",
        0.4,
        BOTH,
        score_next_token,
        "weight on the token after the query, where it is visible: mean over the second "
        "query to the last but one",
        "Clark et al. 2019",
    ),
    "self_token": RoleDefinition(
        "slf",
        0.4,
        BOTH,
        score_self_token,
        "weight on the query itself: mean over the second query and those after it",
        "Clark et al. 2019",
    ),
    "first_token": RoleDefinition(
        "1st",
        0.5,
        BOTH,
        score_first_token,
        "weight on the first token, the sink: mean over the second query and those after it",
        "Xiao et al. 2023",
    ),
    "separator": RoleDefinition(
        "sep",
        0.6,
        ("text",),
        score_separator,
        "weight on punctuation and special tokens but the first: mean over the second "
        "query and those after it",
        "Clark et al. 2019",
    ),
    "local": RoleDefinition(
        "loc",
        0.2,
        BOTH,
        score_local,
        "weight within two tokens on both sides, less that of the one distance that has most of it",
        "windowed heads, Kovaleva et al. 2019",
    ),
    "uniform": RoleDefinition(
        "uni",
        None,
        BOTH,
        score_uniform,
        "entropy as a share of the largest possible; names no head, as none is as uniform "
        "as one of random weights",
        "broad heads, Clark et al. 2019",
    ),
}


class MeasuredRole(NamedTuple):
    """The score of a role for some heads, (...), NaN where it is undefined."""

    score: npt.NDArray[np.floating]
    chance: npt.NDArray[np.floating]
    """The score of a head that attends to all that it sees alike."""


def score_roles(weights: Weights, layout: Layout, data: RoleData) -> dict[str, MeasuredRole]:
    """Score heads by their weights (..., n, n) for the roles that are measured on such data.

    A role is a thing that heads are known to do, such as attending to the previous token. layout:
    the mask of the sequence, and where its repeated block and its separators stand. data:
    "repeated" for a repeated block of random tokens, or "text". Returns for each name of a role the
    scores (...), and for comparison those of a head that spreads its attention evenly over the
    visible keys. A score is NaN where such a head would have none: for the next token of a causal
    model, and for separators where there are none.
    """
    # The weights of a head that plays no role.
    even_weights = spread_evenly(layout.visible)
    measured: dict[str, MeasuredRole] = {}
    for name, role in ROLES.items():
        if data not in role.data:
            continue
        score = role.score(weights, layout)
        chance = role.score(even_weights, layout)
        defined_score = np.where(chance > 0, score, np.nan)
        chances = np.broadcast_to(chance, score.shape)
        measured[name] = MeasuredRole(defined_score, chances)
    return measured


def spread_evenly(visible: Visible) -> Weights:
    """Make the weights (..., n, n) of a head that spreads its attention evenly.

    visible: (..., n, n), True where a query may attend. The visible keys of a query get the same
    weight each.
    """
    seen = visible.sum(-1, keepdims=True, dtype=np.float32)
    divisors = np.maximum(seen, 1)
    even: Weights = np.divide(visible, divisors, dtype=np.float32)
    return even


def scale_above_chance(score: float, chance: float) -> float:
    """Return how far a score is on the way from chance to 1; 0 where chance is 1."""
    if chance < 1:
        return (score - chance) / (1 - chance)
    return 0.0
