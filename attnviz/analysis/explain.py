"""Attention step by step: what one query of one head computes, from its vectors to what it puts out.

The formula is that of Vaswani et al. 2017, eq. 1, softmax(q·k/√d) v, with what models add to it: a soft cap (Gemma 2,
2024), a bias by position (Raffel et al. 2020; ALiBi: Press et al. 2022), a sink (gpt-oss, 2025). All in float64, so
that what differs from a model is the model's own rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.layer.attention import attend
from attnviz.layer.scores import SCORES, Score, additive, general
from attnviz.record import Doubles, Visible

RAW = (*SCORES, "general", "additive")
"""Score functions that can be explained on raw vectors."""


@dataclass(frozen=True, eq=False)
class Operands:
    """What the attention of one head has for one query, out of a model that ran. m keys, d and d_v wide."""

    query: Doubles
    """(d,): as it is compared with keys, biases and rotary positions included."""
    key: Doubles
    """(m, d), likewise."""
    value: Doubles
    """(m, d_v)."""
    visible: Visible
    """(m,): False where a mask hides the key."""
    scale: float
    """By which products are multiplied."""
    score: str = "dot"
    """How they are made: one of SCORED."""
    matrices: tuple[Doubles, ...] = ()
    """Of ``general`` W, of ``additive`` W, U and a, which is its v: see ``attnviz.layer.scores``."""
    bias: Doubles | None = None
    """(m,), added to the scores."""
    softcap: float | None = None
    sink: float | None = None
    """A score in the softmax that stands for no key."""
    hidden: Doubles | None = None
    """(width,): what the attention layer was given of the query's token, if that is known."""
    output: Doubles | None = None
    """(d_v,): what the head put out for this query by the model's own function, if that can be asked."""


class Step(NamedTuple):
    """A number for each key."""

    name: str
    """As short as the heading of a column."""
    formula: str
    values: Doubles
    """(m,)."""


@dataclass(frozen=True, eq=False)
class Steps:
    """All that was computed for one query."""

    given: Operands
    scores: tuple[Step, ...]
    """Up to the softmax; the last is what it is given."""
    exponentials: Doubles
    """(m,): e to the score less the largest; 0 where masked."""
    sink: float
    """The same of the sink; 0 if there is none."""
    weights: Doubles
    """(m,): 0 where masked. With the weight of the sink they sum to 1."""
    output: Doubles
    """(d_v,): the sum of weights times values."""

    @property
    def total(self) -> float:
        """The sum of all exponentials, by which each is divided."""
        return float(self.exponentials.sum()) + self.sink

    @property
    def weight_of_sink(self) -> float:
        """What no key gets."""
        return self.sink / self.total


class Difference(NamedTuple):
    """The largest distances of what was computed here from what was computed elsewhere; NaN if nothing was."""

    weights: float
    output: float


def explain(given: Operands) -> Steps:
    """Each step of the attention of one query. Raises ValueError if the query sees no key."""
    return finished(given, tuple(scored(given)))


def scored(given: Operands) -> Iterator[Step]:
    """The steps from vectors to scores, those alone that are taken."""
    values = np.zeros(len(given.key))
    for step in SCORED[given.score](given):
        yield step
        values = step.values
    if given.scale != 1:
        name, values = scale_name(given.scale, len(given.query)), values * given.scale
        yield Step(
            "scaled", f"q·k {name}: without it, wide vectors would make large scores", values
        )
    if given.softcap is not None:
        cap, values = f"{given.softcap:g}", given.softcap * np.tanh(values / given.softcap)
        yield Step("capped", f"{cap} tanh(score / {cap}): no score is beyond ±{cap}", values)
    if given.bias is not None:
        yield Step("bias", "what the model adds for where the key stands", given.bias)
        yield Step("score", "the two together", values + given.bias)


def scale_name(scale: float, width: int) -> str:
    """How products are scaled: by the root of their width, or by a number of the model's own."""
    return (
        f"/ √{width}"
        if math.isclose(scale * math.sqrt(width), 1, rel_tol=1e-6)
        else f"* {scale:.4g}"
    )


def dot_steps(given: Operands) -> Iterator[Step]:
    """The steps of ``dot``, with which scaled scores begin too."""
    yield Step(
        "q·k", "q₁k₁ + q₂k₂ + …: how well the key answers the query", given.key @ given.query
    )


def cosine_steps(given: Operands) -> Iterator[Step]:
    """The steps of ``cosine``."""
    (product,) = dot_steps(given)
    lengths = np.linalg.norm(given.query) * np.linalg.norm(given.key, axis=1)
    yield product
    yield Step("|q||k|", "the lengths of the two, multiplied", lengths)
    cosine = product.values / np.where(lengths > 0, lengths, 1)
    yield Step("cosine", "q·k / |q||k|: of the angle between them, whatever their lengths", cosine)


def gaussian_steps(given: Operands) -> Iterator[Step]:
    """The steps of ``gaussian`` of width 1."""
    apart = np.linalg.norm(given.query - given.key, axis=1)
    yield Step("|q-k|", "the distance of the key from the query", apart)
    yield Step("score", "-|q-k|² / 2: near keys get most, as in a Gaussian kernel", -(apart**2) / 2)


def general_steps(given: Operands) -> Iterator[Step]:
    """The steps of ``general``."""
    values = given.key @ (given.query @ given.matrices[0])
    yield Step("score", "q·W k: the matrix W says what goes with what (Luong et al. 2015)", values)


def additive_steps(given: Operands) -> Iterator[Step]:
    """The steps of ``additive``."""
    first, second, last = given.matrices
    joint = np.tanh(first @ given.query + given.key @ second.T)  # (m, h)
    yield Step("|tanh|", "the length of tanh(W q + U k)", np.linalg.norm(joint, axis=1))
    yield Step(
        "score",
        "a·tanh(W q + U k): how far that points along a (Bahdanau et al. 2015)",
        joint @ last,
    )


SCORED: dict[str, Callable[[Operands], Iterator[Step]]] = {
    "dot": dot_steps,
    "cosine": cosine_steps,
    "gaussian": gaussian_steps,
    "general": general_steps,
    "additive": additive_steps,
}


def finished(given: Operands, scores: tuple[Step, ...]) -> Steps:
    """The softmax of the last scores over what is visible, and the sum of values."""
    if not given.visible.any():
        raise ValueError("this query sees no key")
    last = np.where(given.visible, scores[-1].values, -np.inf)
    sink = -np.inf if given.sink is None else given.sink
    highest = max(last.max(), sink)
    exponentials, of_sink = np.exp(last - highest), float(np.exp(sink - highest))
    weights = exponentials / (exponentials.sum() + of_sink)
    return Steps(given, scores, exponentials, of_sink, weights, weights @ given.value)


def difference(steps: Steps, weights: npt.ArrayLike) -> Difference:
    """How far the steps are from weights (m,) of the same query, and from the output that the model made."""
    output = (
        np.nan if steps.given.output is None else np.abs(steps.output - steps.given.output).max()
    )
    return Difference(
        float(np.abs(steps.weights - np.asarray(weights, np.float64)).max()), float(output)
    )


def explain_raw(name: str, vectors: npt.ArrayLike, query: int) -> tuple[Steps, Doubles]:
    """The same for self-attention on raw vectors (n, d) by a score function of RAW, with the weights (n,) of our layer.

    Queries, keys and values are the vectors themselves: no projection, no mask. The matrices of ``general`` and
    ``additive`` are random, always the same, as they are before any training. Raises ValueError for another name.
    """
    if name not in RAW:
        raise ValueError(f"unknown score function {name!r}: one of {', '.join(RAW)}")
    x = np.asarray(vectors, np.float64)
    width, rng = x.shape[1], np.random.default_rng(0)
    first, second, last = (
        rng.standard_normal(shape) for shape in ((width, width), (width, width), width)
    )
    last /= math.sqrt(width)  # so that scores are about 1, whatever the width
    made: dict[str, Score] = {
        **SCORES,
        "general": general(first),
        "additive": additive(first, second, last),
    }
    layer = attend(x, x, x, score=made[name])
    score, scale = plainly(name, width)
    visible, matrices = np.ones(len(x), dtype=bool), (first, second, last)
    given = Operands(
        x[query], x, x, visible, scale, score, matrices=matrices, output=layer.output[query]
    )
    weights: Doubles = layer.weights[query]
    return explain(given), weights


def plainly(name: str, width: int) -> tuple[str, float]:
    """A score function as one of ``SCORED``, and what its scores are multiplied by."""
    return ("dot", width**-0.5) if name == "scaled_dot" else (name, 1.0)
