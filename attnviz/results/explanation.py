"""Attention step by step as three tables: the vectors of one query, each key's way to its weight, what comes out."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from attnviz.analysis.explain import Difference, Operands, Steps
from attnviz.drawable import Table
from attnviz.record import Capture, Doubles
from attnviz.views.heatmaps import title, token_title, told
from attnviz.views.labels import head_titles, kind_title, short, sides

FIRST = 3  # numbers of a vector that are shown
HEADINGS = "what it is", "shape", "length", "first values"


def explain_tables(
    capture: Capture, steps: Steps, apart: Difference, most: int | None, score: str | None = None
) -> list[Table]:
    """The tables of one query, of a capture of its weights alone; so many keys at most.

    score: the name of a score function of raw vectors; None of a head of a model.
    """
    part = capture.maps[0]
    queries, keys = sides(part)
    whose = (*kind_title(part), f"{score} of raw vectors") if score else head_titles(part, 0, 0)
    heading = title(capture, *whose, token_title(queries).replace("token", "query", 1), f"{len(keys)} keys")
    names = [f"{place} {short(label)}" for place, label in zip(keys.numbers, keys.labels, strict=True)]
    vectors = raw_vectors(steps.given) if score else model_vectors(steps.given)
    chosen, best = f"{queries.labels[0]} (token {part.queries[0].id} of the vocabulary)", int(steps.weights.argmax())
    lines = (
        f"query: {chosen}; of k and v, {names[best]} is shown, which gets most",
        *vectors_lines(steps.given, raw=score is not None),
        *capture.notes,
    )
    return [
        vector_table(heading, vectors, best, lines),
        weights_table(steps, names, most),
        output_table(steps, apart, "our layer's" if score else "the model's"),
    ]


def raw_vectors(given: Operands) -> dict[str, tuple[str, Doubles]]:
    """What raw vectors are, with their numbers, by name."""
    return {
        "q": ("the query's embedding", given.query),
        "k": ("the embedding of each key", given.key),
        "v": ("the same", given.value),
    }


def model_vectors(given: Operands) -> dict[str, tuple[str, Doubles]]:
    """What the vectors of a head are, with their numbers, by name."""
    entered = {} if given.hidden is None else {"x": ("what the layer reads", given.hidden)}
    return {
        **entered,
        "q = W_Q x": ("what the query seeks", given.query),
        "k = W_K x": ("what each key answers", given.key),
        "v = W_V x": ("what each key gives", given.value),
    }


def vectors_lines(given: Operands, *, raw: bool) -> tuple[str, ...]:
    """How the vectors come about."""
    if raw:
        which = {"general": "; W is", "additive": "; W, U and a are"}.get(given.score)
        random = f"{which} random, as before any training" if which else ""
        return (f"queries, keys and values are the same vectors: nothing is projected, nothing masked{random}",)
    unknown = "what the layer reads is not known of this model" if given.hidden is None else ""
    return "q and k are as they are compared: with biases and rotary positions, if the model has them", unknown


def vector_table(heading: str, vectors: Mapping[str, tuple[str, Doubles]], row: int, caption: Sequence[str]) -> Table:
    """A row a vector, or that row of several."""
    cells = tuple((meaning, *vector_cells(vector, row)) for meaning, vector in vectors.values())
    blank = np.full((len(cells), len(HEADINGS)), np.nan, np.float32)
    return Table(heading, "vector", HEADINGS, tuple(vectors), cells, blank, told(caption), frozenset({0, 3}))


def vector_cells(vectors: Doubles, row: int) -> tuple[str, str, str]:
    """The shape of a vector (d,) or several (m, d), the length of it or of that row, and the first numbers."""
    vector = vectors if vectors.ndim == 1 else vectors[row]
    more = " …" if len(vector) > FIRST else ""
    first = " ".join(f"{value:.4f}" for value in vector[:FIRST])
    return " x ".join(map(str, vectors.shape)), f"{np.linalg.norm(vector):.4f}", first + more


def weights_table(steps: Steps, keys: Sequence[str], most: int | None) -> Table:
    """A row a key in the order of the text, the strongest if there are more; then the rest, a sink, and the sum."""
    scores = np.stack([step.values for step in steps.scores], axis=-1)  # (key, step)
    lengths = np.linalg.norm(steps.given.value, axis=-1)
    numbers = np.stack([steps.exponentials, steps.weights, lengths, steps.weights * lengths], axis=-1)
    hidden = ~steps.given.visible[:, None] & np.array([True, True, False, True])
    numbers = np.concatenate([scores, np.where(hidden, np.nan, numbers)], axis=-1)
    shown = np.sort(np.argsort(-steps.weights, kind="stable")[:most])
    rows = {keys[i]: cells(numbers[i]) for i in shown.tolist()}
    for name, exponential, weight in closing_rows(steps, shown):
        rows[name] = cells(np.array([np.nan] * scores.shape[1] + [exponential, weight, np.nan, np.nan]))
    levels = np.full((len(rows), numbers.shape[1]), np.nan, np.float32)
    levels[: len(shown), -3] = numbers[shown, -3]
    columns = (*(step.name for step in steps.scores), "e^", "weight", "|v|", "weight|v|")
    caption = told(weights_lines(steps, keys))
    return Table(
        "From scores to weights: the softmax", "key", columns, tuple(rows), tuple(rows.values()), levels, caption
    )


def closing_rows(steps: Steps, shown: npt.NDArray[np.int64]) -> list[tuple[str, float, float]]:
    """What the keys that are not shown have together, the sink if there is one, and all: exponentials and weights."""
    rest = np.setdiff1d(np.arange(len(steps.weights)), shown)
    rows = [(f"{len(rest)} others", steps.exponentials[rest].sum(), steps.weights[rest].sum())] * bool(len(rest))
    if steps.given.sink is not None:
        rows.append(("sink", steps.sink, steps.weight_of_sink))
    return [*rows, ("sum", steps.total, steps.weights.sum() + steps.weight_of_sink)]


def cells(numbers: Doubles) -> tuple[str, ...]:
    """Numbers to four digits after the point; nothing where undefined."""
    return tuple(f"{value:.4f}" if np.isfinite(value) else "" for value in numbers.round(4) + 0.0)  # no -0.0000


def weights_lines(steps: Steps, keys: Sequence[str]) -> list[str]:
    """What each column is, what is hidden, and the way of the strongest key."""
    hidden, count = int((~steps.given.visible).sum()), len(keys)
    best, last = int(steps.weights.argmax()), steps.scores[-1]
    first, *others = (f"{step.values[best]:.4f}" for step in steps.scores)
    way = [f"{product(steps.given, best)}{first}", *others]
    told_way = "; ".join(f"{step.name} = {number}" for step, number in zip(steps.scores, way, strict=True))
    return [
        f"each column is a number for each of {count} keys",
        *(f"{step.name}: {step.formula}" for step in steps.scores),
        f"mask: {hidden} of {count} keys are hidden from this query, and get no weight" if hidden else "",
        f"e^: e^({last.name} - the largest), which changes no weight and keeps numbers small",
        "sink: one more score that stands for no key; what it gets goes nowhere"
        if steps.given.sink is not None
        else "",
        "weight: e^ / the sum of e^; this is the softmax",
        "|v|: how long the value is; weight|v|: how much of it moves to the query",
        f"for {keys[best]}: {told_way}; e^ = {steps.exponentials[best]:.4f}; "
        f"weight = {steps.exponentials[best]:.4f} / {steps.total:.4f} = {steps.weights[best]:.4f}",
    ]


def product(given: Operands, key: int) -> str:
    """How the product of query and key begins, if it is one."""
    if given.score != "dot":
        return ""
    pairs = zip(given.query[:2], given.key[key, :2], strict=True)
    return " + ".join(f"({q:.4f})({k:.4f})" for q, k in pairs) + " + … = "


def output_table(steps: Steps, apart: Difference, whose: str) -> Table:
    """What the head puts out, beside what the model made, and how far they are from each other."""
    vectors = {"Σ w·v": ("weights times values", steps.output)}
    if steps.given.output is not None:
        vectors["own"] = (f"{whose} own output", steps.given.output)
    output = f"output {apart.output:.1e}" if np.isfinite(apart.output) else "output not told by this model"
    check = f"check: largest difference from {whose} own: weights {apart.weights:.1e}, {output}"
    return vector_table("What comes out: Σ w·v", vectors, 0, (check,))
