"""Attention step by step: what one query of one head computes, from its vectors to its output.

The formula is that of Vaswani et al. 2017, eq. 1, softmax(q·k/√d) v, with what models add to it: a
soft cap (Gemma 2, 2024), a bias by position (Raffel et al. 2020; ALiBi: Press et al. 2022), a sink
(gpt-oss, 2025). All is computed in float64, so that what differs from a model is the model's own
rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.layer.attention import attend
from attnviz.layer.scores import SCORES, Score, additive, general, split_score_scale
from attnviz.record import Doubles, Visible

RAW_SCORES = (*SCORES, "general", "additive")
"""Score functions that can be explained on raw vectors."""


@dataclass(frozen=True, eq=False)
class Operands:
    """What the attention of one head has for one query, out of a model that ran.

    There are m keys; queries and keys are d wide, values d_v.
    """

    query: Doubles
    """(d,): as it is compared with keys, biases and rotary positions included."""
    key: Doubles
    """(m, d): as they are compared with the query, biases and rotary positions included."""
    value: Doubles
    """(m, d_v)."""
    visible: Visible
    """(m,): False where a mask hides the key."""
    scale: float
    """The number by which products are multiplied."""
    score: str = "dot"
    """The score function that makes the products: one of SCORED."""
    matrices: tuple[Doubles, ...] = ()
    """The parameters of the score function: see ``attnviz.layer.scores``.

    They are W for ``general``; W, U and a, which is its v, for ``additive``.
    """
    bias: Doubles | None = None
    """(m,): what is added to the scores."""
    softcap: float | None = None
    sink: float | None = None
    """A score in the softmax that stands for no key."""
    hidden: Doubles | None = None
    """(width,): the input of the attention layer at the query's token, if that is known."""
    output: Doubles | None = None
    """(d_v,): the output of the head for this query by the model's own function, if it has one."""


class Step(NamedTuple):
    """A number for each key."""

    name: str
    """The name, as short as the heading of a column."""
    formula: str
    values: Doubles
    """(m,)."""


@dataclass(frozen=True, eq=False)
class AttentionSteps:
    """All that was computed for one query."""

    given: Operands
    """The vectors from which all else was computed."""
    scores: tuple[Step, ...]
    """The steps up to the softmax; the last is what the softmax is of."""
    exponentials: Doubles
    """(m,): e to the score less the largest; 0 where masked."""
    sink: float
    """e to the score of the sink less the largest score; 0 if there is no sink."""
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
        """The weight that no key gets."""
        return self.sink / self.total


class Difference(NamedTuple):
    """The largest distances of what was computed here from what was computed elsewhere.

    NaN where nothing was computed elsewhere.
    """

    weights: float
    output: float


def explain_query(operands: Operands) -> AttentionSteps:
    """Compute each step of the attention of one query. Raises ValueError if it sees no key."""
    return finish_steps(operands, tuple(list_score_steps(operands)))


def list_score_steps(operands: Operands) -> Iterator[Step]:
    """Yield the steps from the vectors of a query and its keys to the scores before the softmax.

    operands: the vectors, and what the attention makes of them. Each step has a name, a formula and
    a number for each key, (m,). Scaling, a soft cap and a bias are steps only where the attention
    has them.
    """
    values = np.zeros(len(operands.key))
    for step in SCORED[operands.score](operands):
        yield step
        values = step.values
    if operands.scale != 1:
        factor = describe_score_scale(operands.scale, len(operands.query))
        formula = f"q·k {factor}: without it, wide vectors would make large scores"
        values = values * operands.scale
        yield Step("scaled", formula, values)
    if operands.softcap is not None:
        cap = f"{operands.softcap:g}"
        formula = f"{cap} tanh(score / {cap}): no score is beyond ±{cap}"
        bounded = np.tanh(values / operands.softcap)
        values = operands.softcap * bounded
        yield Step("capped", formula, values)
    if operands.bias is not None:
        yield Step("bias", "what the model adds for where the key stands", operands.bias)
        yield Step("score", "the two together", values + operands.bias)


def describe_score_scale(scale: float, width: int) -> str:
    """Say by what a scale multiplies scores: by 1 / √width, or by another number."""
    product = scale * math.sqrt(width)
    is_root_of_width = math.isclose(product, 1, rel_tol=1e-6)
    return f"/ √{width}" if is_root_of_width else f"* {scale:.4g}"


def list_dot_steps(operands: Operands) -> Iterator[Step]:
    """Yield the step of the score ``dot``, with which scaled scores begin too."""
    formula = "q₁k₁ + q₂k₂ + …: how well the key answers the query"
    yield Step("q·k", formula, operands.key @ operands.query)


def list_cosine_steps(operands: Operands) -> Iterator[Step]:
    """Yield the steps of the score ``cosine``: products, lengths, and products by lengths.

    operands: the vectors of a query and of its keys. Each step has a number for each key, (m,).
    """
    (product,) = list_dot_steps(operands)
    query_length = np.linalg.norm(operands.query)
    lengths = query_length * np.linalg.norm(operands.key, axis=1)
    yield product
    yield Step("|q||k|", "the lengths of the two, multiplied", lengths)
    divisors = np.where(lengths > 0, lengths, 1)
    formula = "q·k / |q||k|: of the angle between them, whatever their lengths"
    yield Step("cosine", formula, product.values / divisors)


def list_gaussian_steps(operands: Operands) -> Iterator[Step]:
    """Yield the steps of the score ``gaussian`` of width 1: distances, and scores made of them.

    operands: the vectors of a query and of its keys. Each step has a number for each key, (m,).
    """
    differences = operands.query - operands.key
    distances = np.linalg.norm(differences, axis=1)
    yield Step("|q-k|", "the distance of the key from the query", distances)
    formula = "-|q-k|² / 2: near keys get most, as in a Gaussian kernel"
    squares = distances**2
    yield Step("score", formula, -squares / 2)


def list_general_steps(operands: Operands) -> Iterator[Step]:
    """Yield the one step of the score ``general``, q·W k for each key, (m,).

    operands: the vectors of a query and of its keys, and the matrix W.
    """
    formula = "q·W k: the matrix W says what goes with what (Luong et al. 2015)"
    projected_query = operands.query @ operands.matrices[0]
    values = operands.key @ projected_query
    yield Step("score", formula, values)


def list_additive_steps(operands: Operands) -> Iterator[Step]:
    """Yield the steps of the score ``additive``, a·tanh(W q + U k).

    operands: the vectors of a query and of its keys, and the parameters W, U, both (h, d), and a.
    Each step has a number for each key, (m,).
    """
    first, second, last = operands.matrices
    projected_query = first @ operands.query
    projected_keys = operands.key @ second.T  # (m, h)
    joint = np.tanh(projected_query + projected_keys)
    lengths = np.linalg.norm(joint, axis=1)
    yield Step("|tanh|", "the length of tanh(W q + U k)", lengths)
    formula = "a·tanh(W q + U k): how far that points along a (Bahdanau et al. 2015)"
    yield Step("score", formula, joint @ last)


SCORED: dict[str, Callable[[Operands], Iterator[Step]]] = {
    "dot": list_dot_steps,
    "cosine": list_cosine_steps,
    "gaussian": list_gaussian_steps,
    "general": list_general_steps,
    "additive": list_additive_steps,
}


def finish_steps(operands: Operands, scores: tuple[Step, ...]) -> AttentionSteps:
    """Compute the softmax of the last scores over the visible keys, and the weighted sum of values.

    operands: the vectors of a query and its keys, and the mask. scores: the steps up to the
    softmax, of which the last has the scores. A sink, which is a score that stands for no key,
    takes part in the softmax. Raises ValueError if the query sees no key.
    """
    if not operands.visible.any():
        raise ValueError("this query sees no key")
    all_scores = scores[-1].values
    last_scores = np.where(operands.visible, all_scores, -np.inf)
    sink_score = operands.sink
    if sink_score is None:
        sink_score = -np.inf
    highest = max(last_scores.max(), sink_score)
    exponentials = np.exp(last_scores - highest)
    sink = float(np.exp(sink_score - highest))
    total = exponentials.sum() + sink
    weights = exponentials / total
    output = weights @ operands.value
    return AttentionSteps(operands, scores, exponentials, sink, weights, output)


def measure_difference(steps: AttentionSteps, weights: npt.ArrayLike) -> Difference:
    """Measure how far the steps are from what a model computed for the same query.

    weights: those of the model, (m,). Its output, (d_v,), is among the vectors that the steps were
    computed from, if it is known. Returns the largest distances of weights and of outputs; NaN for
    outputs if that of the model is not known.
    """
    model_weights = np.asarray(weights, np.float64)
    weight_distance = np.abs(steps.weights - model_weights).max()
    model_output = steps.given.output
    output_distance = np.nan
    if model_output is not None:
        output_distance = np.abs(steps.output - model_output).max()
    return Difference(float(weight_distance), float(output_distance))


def explain_vectors(
    name: str,
    vectors: npt.ArrayLike,
    query: int,
) -> tuple[AttentionSteps, Doubles]:
    """Compute each step of self-attention on raw vectors (n, d) by a score function.

    name: one of ``RAW_SCORES``. query: the index of the vector whose attention is computed. Returns
    the steps of this query, and its weights (n,) as ``attnviz.layer`` computes them. Queries, keys
    and values are the vectors themselves: no projection, no mask. The matrices of ``general`` and
    ``additive`` are random, always the same, as they are before any training. Raises ValueError for
    another name.
    """
    if name not in RAW_SCORES:
        names = ", ".join(RAW_SCORES)
        raise ValueError(f"unknown score function {name!r}: one of {names}")
    x = np.asarray(vectors, np.float64)
    width = x.shape[1]
    matrices = draw_matrices(width)
    functions: dict[str, Score] = dict(SCORES)
    functions["general"] = general(matrices[0])
    functions["additive"] = additive(*matrices)
    attention = attend(x, x, x, score=functions[name])
    score, scale = split_score_scale(name, width)
    visible = np.ones(len(x), dtype=bool)
    layer_output = attention.output[query]
    operands = Operands(
        query=x[query],
        key=x,
        value=x,
        visible=visible,
        scale=scale,
        score=score,
        matrices=matrices,
        output=layer_output,
    )
    weights: Doubles = attention.weights[query]
    return explain_query(operands), weights


def draw_matrices(width: int) -> tuple[Doubles, Doubles, Doubles]:
    """Draw the parameters of additive scores: W and U (width, width), and a (width,).

    The score ``general`` has the first of them. They are the same in each call.
    """
    rng = np.random.default_rng(0)
    first = rng.standard_normal((width, width))
    second = rng.standard_normal((width, width))
    last = rng.standard_normal(width)
    last /= math.sqrt(width)  # so that scores are about 1, whatever the width
    return first, second, last
