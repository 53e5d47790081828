"""Attention step by step: the vectors of one query, the weight of each key, what comes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.explain import Difference, Operands, Steps
from attnviz.drawable import Picture, Table
from attnviz.io.formats import describe_capture, describe_tokens
from attnviz.record import AttentionMap, Capture, Doubles
from attnviz.results.result import Result
from attnviz.views.heatmaps import title, token_title, told
from attnviz.views.labels import head_titles, kind_title, short, sides

SHOWN_NUMBERS = 3  # of a vector, at its beginning
VECTOR_COLUMNS = "what it is", "shape", "length", "first values"
KEY_COLUMNS = "e^", "weight", "|v|", "weight|v|"
"""The columns of each key after the steps to its score."""
WEIGHT_COLUMN = KEY_COLUMNS.index("weight") - len(KEY_COLUMNS)  # counted from the end
EXPLAIN_EXPONENTIAL = "e^({score} - the largest), which changes no weight and keeps numbers small"
EXPLAIN_SINK = "one more score that stands for no key; what it gets goes nowhere"
EXPLAIN_WEIGHT = "e^ / the sum of e^; this is the softmax"
EXPLAIN_LENGTHS = "how long the value is; weight|v|: how much of it moves to the query"
RANDOM_MATRICES = {"general": "W is", "additive": "W, U and a are"}
NOTHING_ELSE = "nothing is projected, nothing masked"
PLAIN_VECTORS = f"queries, keys and values are the same vectors: {NOTHING_ELSE}"
ADDED_TO_VECTORS = "with biases and rotary positions, if the model has them"
VECTORS_OF_A_HEAD = f"q and k are as they are compared: {ADDED_TO_VECTORS}"
UNKNOWN_INPUT = "what the layer reads is not known of this model"


class NamedVectors(NamedTuple):
    """A vector, or one a key, with its name and its meaning."""

    name: str
    meaning: str
    values: Doubles
    """(d,), or (m, d)."""


@dataclass(frozen=True, eq=False, repr=False)
class ExplanationResult(Result):
    """The attention of one query step by step, of a head or of a score function."""

    capture: Capture
    """Of that query and head alone."""
    steps: Steps
    apart: Difference
    """How far the steps are from what the model computed."""
    score: str | None = None
    """The score function of raw vectors; None for a head of a model."""

    def to_dict(self) -> dict[str, Any]:
        """Return every number of every step. Numbers of keys that are hidden are NaN."""
        query_map = self.capture.maps[0]
        queries = describe_tokens(query_map.queries, query_map.query_places)
        return {
            **describe_capture(self.capture),
            "kind": query_map.kind,
            **self.describe_head(),
            "query": queries[0],
            "keys": describe_tokens(query_map.keys, query_map.key_places),
            **describe_operands(self.steps.given),
            **describe_steps(self.steps),
            "largest_difference": self.apart._asdict(),
        }

    def describe_head(self) -> dict[str, Any]:
        """Describe which head is followed, or which score function."""
        if self.score is not None:
            return {"score": self.score}
        query_map = self.capture.maps[0]
        return {"layer": query_map.layers[0], "head": query_map.heads[0]}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each key, with the numbers of each step."""
        return list(self.list_keys())

    def list_keys(self) -> Iterator[dict[str, Any]]:
        """Describe the keys in their order."""
        steps, query_map = self.steps, self.capture.maps[0]
        visible = steps.given.visible
        exponentials = keep_visible(steps.exponentials, visible)
        weights = keep_visible(steps.weights, visible)
        for index, token in enumerate(query_map.keys):
            yield {
                "key": query_map.key_places[index],
                "key_token": token.text,
                **{step.name: step.values[index] for step in steps.scores},
                "exponential": exponentials[index],
                "weight": weights[index],
                "value_norm": np.linalg.norm(steps.given.value[index]),
            }

    def tables(self) -> list[Picture]:
        """Return the tables of the vectors, of all keys, and of the output."""
        return self.draw()

    def draw(self, most: int | None = None) -> list[Picture]:
        """Return the tables of the vectors, of the keys, and of the output.

        most: keys that are shown, the strongest; None for all.
        """
        query_map = self.capture.maps[0]
        keys = name_keys(query_map)
        owner = "the model's" if self.score is None else "our layer's"
        return [
            self.vectors_table(keys),
            keys_table(self.steps, keys, most),
            output_table(self.steps, self.apart, owner),
        ]

    def vectors_table(self, keys: Sequence[str]) -> Table:
        """Return the table of what goes in: the vectors of the query, and of its strongest key."""
        query_map, operands = self.capture.maps[0], self.steps.given
        queries, _ = sides(query_map)
        strongest = int(self.steps.weights.argmax())
        number = query_map.queries[0].id
        query = f"{queries.labels[0]} (token {number} of the vocabulary)"
        shown_key = f"of k and v, {keys[strongest]} is shown, which gets most"
        if self.score is None:
            vectors = vectors_of_head(operands)
            lines = explain_vectors_of_head(operands)
        else:
            vectors = raw_vectors(operands)
            lines = explain_raw_vectors(operands)
        caption = f"query: {query}; {shown_key}", *lines, *self.capture.notes
        return vector_table(self.heading(), vectors, strongest, caption)

    def heading(self) -> str:
        """Return what is followed: the model, the head or score function, and the query."""
        query_map = self.capture.maps[0]
        queries, keys = sides(query_map)
        if self.score is None:
            head = head_titles(query_map, 0, 0)
        else:
            head = *kind_title(query_map), f"{self.score} of raw vectors"
        query = token_title(queries).replace("token", "query", 1)
        return title(self.capture, *head, query, f"{len(keys)} keys")


def describe_operands(operands: Operands) -> dict[str, Any]:
    """Describe what the attention of a query is computed of, for JSON."""
    return {
        "vectors": {
            "x": operands.hidden,
            "q": operands.query,
            "k": operands.key,
            "v": operands.value,
        },
        "scale": operands.scale,
        "softcap": operands.softcap,
        "sink": operands.sink,
        "visible": operands.visible,
    }


def describe_steps(steps: Steps) -> dict[str, Any]:
    """Describe what is computed, step by step, for JSON."""
    visible, has_sink = steps.given.visible, steps.given.sink is not None
    return {
        "scores": [step._asdict() for step in steps.scores],
        "exponentials": keep_visible(steps.exponentials, visible),
        "weights": keep_visible(steps.weights, visible),
        "sink_weight": steps.weight_of_sink if has_sink else None,
        "output": steps.output,
        "own_output": steps.given.output,
    }


def keep_visible(values: Doubles, visible: npt.NDArray[np.bool_]) -> Doubles:
    """Return numbers of keys (m,), NaN where a key is hidden."""
    return np.where(visible, values, np.nan)


def name_keys(query_map: AttentionMap) -> list[str]:
    """Return a name for each key: its number and its text."""
    _, keys = sides(query_map)
    labels = [short(label) for label in keys.labels]
    return [f"{number} {label}" for number, label in zip(keys.numbers, labels, strict=True)]


# Vectors


def raw_vectors(operands: Operands) -> list[NamedVectors]:
    """Return raw vectors with what they are."""
    return [
        NamedVectors("q", "the query's embedding", operands.query),
        NamedVectors("k", "the embedding of each key", operands.key),
        NamedVectors("v", "the same", operands.value),
    ]


def vectors_of_head(operands: Operands) -> list[NamedVectors]:
    """Return the vectors of a head with what they are."""
    vectors = [
        NamedVectors("q = W_Q x", "what the query seeks", operands.query),
        NamedVectors("k = W_K x", "what each key answers", operands.key),
        NamedVectors("v = W_V x", "what each key gives", operands.value),
    ]
    if operands.hidden is None:
        return vectors
    return [NamedVectors("x", "what the layer reads", operands.hidden), *vectors]


def explain_raw_vectors(operands: Operands) -> list[str]:
    """Explain in a line how raw vectors come about, and matrices if there are any."""
    matrices = RANDOM_MATRICES.get(operands.score)
    if matrices is None:
        return [PLAIN_VECTORS]
    return [f"{PLAIN_VECTORS}; {matrices} random, as before any training"]


def explain_vectors_of_head(operands: Operands) -> list[str]:
    """Explain in lines how the vectors of a head come about."""
    if operands.hidden is None:
        return [VECTORS_OF_A_HEAD, UNKNOWN_INPUT]
    return [VECTORS_OF_A_HEAD]


def vector_table(
    heading: str,
    vectors: Sequence[NamedVectors],
    row: int,
    caption: Sequence[str],
) -> Table:
    """Make a table of a row a vector; of several vectors, one is shown, by its row."""
    cells = [(vector.meaning, *describe_vector(vector.values, row)) for vector in vectors]
    names = tuple(vector.name for vector in vectors)
    blank = np.full((len(cells), len(VECTOR_COLUMNS)), np.nan, np.float32)
    text_columns = frozenset({0, 3})
    return Table(
        heading,
        "vector",
        VECTOR_COLUMNS,
        names,
        tuple(cells),
        blank,
        told(caption),
        text_columns,
    )


def describe_vector(values: Doubles, row: int) -> tuple[str, str, str]:
    """Return the shape of vectors (d,) or (m, d), and length and first numbers of that in a row."""
    vector = values if values.ndim == 1 else values[row]
    shape = " x ".join(str(size) for size in values.shape)
    length = f"{np.linalg.norm(vector):.4f}"
    first_numbers = " ".join(f"{value:.4f}" for value in vector[:SHOWN_NUMBERS])
    if len(vector) > SHOWN_NUMBERS:
        first_numbers = f"{first_numbers} …"
    return shape, length, first_numbers


# From scores to weights


def keys_table(steps: Steps, keys: Sequence[str], most: int | None) -> Table:
    """Make a table of a row a key in the order of the text, then of what closes the sum.

    most: keys that are shown, the strongest; None for all.
    """
    numbers = numbers_of_keys(steps)
    shown = np.sort(np.argsort(-steps.weights, kind="stable")[:most])
    names = [keys[index] for index in shown]
    rows = [format_numbers(numbers[index]) for index in shown]
    for name, exponential, weight in closing_rows(steps, shown):
        names.append(name)
        rows.append(format_closing_row(len(steps.scores), exponential, weight))
    levels = np.full((len(rows), numbers.shape[1]), np.nan, np.float32)
    levels[: len(shown), WEIGHT_COLUMN] = numbers[shown, WEIGHT_COLUMN]
    step_names = [step.name for step in steps.scores]
    return Table(
        "From scores to weights: the softmax",
        "key",
        (*step_names, *KEY_COLUMNS),
        tuple(names),
        tuple(rows),
        levels,
        told(explain_columns(steps, keys)),
    )


def numbers_of_keys(steps: Steps) -> Doubles:
    """Return the numbers (key, column) of each step and of KEY_COLUMNS, NaN where there is none."""
    visible = steps.given.visible
    lengths = np.linalg.norm(steps.given.value, axis=-1)
    scores = [step.values for step in steps.scores]
    exponentials = keep_visible(steps.exponentials, visible)
    weights = keep_visible(steps.weights, visible)
    columns = [*scores, exponentials, weights, lengths, weights * lengths]
    return np.stack(columns, axis=-1)


def closing_rows(steps: Steps, shown: npt.NDArray[np.int64]) -> Iterator[tuple[str, float, float]]:
    """Yield exponentials and weights by name: of all other keys, of a sink, and their sum."""
    others = np.setdiff1d(np.arange(len(steps.weights)), shown)
    if len(others):
        exponentials, weights = steps.exponentials[others], steps.weights[others]
        yield f"{len(others)} others", exponentials.sum(), weights.sum()
    if steps.given.sink is not None:
        yield "sink", steps.sink, steps.weight_of_sink
    yield "sum", steps.total, steps.weights.sum() + steps.weight_of_sink


def format_closing_row(step_count: int, exponential: float, weight: float) -> tuple[str, ...]:
    """Return an exponential and a weight as a row whose other columns are empty."""
    steps = [np.nan] * step_count
    return format_numbers(np.array([*steps, exponential, weight, np.nan, np.nan]))


def format_numbers(numbers: Doubles) -> tuple[str, ...]:
    """Return numbers to four digits after the point; an empty text where one is undefined."""
    rounded = numbers.round(4) + 0.0  # no -0.0000
    return tuple(f"{value:.4f}" if np.isfinite(value) else "" for value in rounded)


def explain_columns(steps: Steps, keys: Sequence[str]) -> list[str]:
    """Explain in lines each column, what is hidden, and the way of the strongest key."""
    count, last_step = len(keys), steps.scores[-1]
    hidden = int((~steps.given.visible).sum())
    lines = [f"each column is a number for each of {count} keys"]
    lines += [f"{step.name}: {step.formula}" for step in steps.scores]
    if hidden:
        share = f"{hidden} of {count} keys"
        lines.append(f"mask: {share} are hidden from this query, and get no weight")
    lines.append(f"e^: {EXPLAIN_EXPONENTIAL.format(score=last_step.name)}")
    if steps.given.sink is not None:
        lines.append(f"sink: {EXPLAIN_SINK}")
    lines += [f"weight: {EXPLAIN_WEIGHT}", f"|v|: {EXPLAIN_LENGTHS}"]
    return [*lines, explain_strongest(steps, keys)]


def explain_strongest(steps: Steps, keys: Sequence[str]) -> str:
    """Explain in a line, with its numbers, how the strongest key comes to its weight."""
    best = int(steps.weights.argmax())
    numbers = [f"{step.values[best]:.4f}" for step in steps.scores]
    numbers[0] = f"{begin_product(steps.given, best)}{numbers[0]}"
    names = [step.name for step in steps.scores]
    way = "; ".join(f"{name} = {number}" for name, number in zip(names, numbers, strict=True))
    exponential, weight = f"{steps.exponentials[best]:.4f}", f"{steps.weights[best]:.4f}"
    division = f"{exponential} / {steps.total:.4f}"
    return f"for {keys[best]}: {way}; e^ = {exponential}; weight = {division} = {weight}"


def begin_product(operands: Operands, key: int) -> str:
    """Return the first terms of the product of query and key; an empty text for other scores."""
    if operands.score != "dot":
        return ""
    pairs = zip(operands.query[:2], operands.key[key, :2], strict=True)
    terms = " + ".join(f"({q:.4f})({k:.4f})" for q, k in pairs)
    return f"{terms} + … = "


# What comes out


def output_table(steps: Steps, apart: Difference, owner: str) -> Table:
    """Make the table of the output, beside that of its owner, with how far they are apart."""
    vectors = [NamedVectors("Σ w·v", "weights times values", steps.output)]
    if steps.given.output is not None:
        vectors.append(NamedVectors("own", f"{owner} own output", steps.given.output))
    output = "output not told by this model"
    if np.isfinite(apart.output):
        output = f"output {apart.output:.1e}"
    largest = f"largest difference from {owner} own"
    check = f"check: {largest}: weights {apart.weights:.1e}, {output}"
    return vector_table("What comes out: Σ w·v", vectors, 0, (check,))
