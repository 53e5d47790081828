"""Attention step by step: the vectors of one query, the weight of each key, what comes out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.explain import AttentionSteps, Difference, Operands
from attnviz.drawable import Picture, Table, make_blank_levels
from attnviz.io.formats import describe_capture, describe_tokens
from attnviz.record import AttentionMap, Capture, Doubles
from attnviz.results.digits import format_fixed
from attnviz.results.result import Result
from attnviz.views.heatmaps import join_title, make_caption, title_token
from attnviz.views.labels import (
    make_axes,
    shorten_token_label,
    title_kind,
    title_matrix,
)

SHOWN_NUMBERS = 3  # of a vector, at its beginning
VECTOR_COLUMNS = "what it is", "shape", "length", "first values"
TEXT_COLUMNS = frozenset({0, 3})  # of VECTOR_COLUMNS
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
    """The capture of that query and head alone."""
    steps: AttentionSteps
    difference: Difference
    """The difference between the steps and what the model computed."""
    score: str | None = None
    """The score function of raw vectors; None for a head of a model."""

    @property
    def query_map(self) -> AttentionMap:
        """The map of the one query."""
        return self.capture.maps[0]

    def to_dict(self) -> dict[str, Any]:
        """Return every number of every step as a document for JSON.

        Numbers of keys that are hidden from the query are NaN. "largest_difference" says how far
        the steps are from what the model computed.
        """
        query_map = self.query_map
        (query,) = describe_tokens(query_map.queries, query_map.query_places)
        document = describe_capture(self.capture)
        document["kind"] = query_map.kind
        document |= self.describe_head()
        document["query"] = query
        document["keys"] = describe_tokens(query_map.keys, query_map.key_places)
        document |= describe_operands(self.steps.given)
        document |= describe_steps(self.steps)
        document["largest_difference"] = self.difference._asdict()
        return document

    def describe_head(self) -> dict[str, Any]:
        """Describe which head is explained by its layer and number, or else the score function."""
        if self.score is not None:
            return {"score": self.score}
        query_map = self.query_map
        return {"layer": query_map.layers[0], "head": query_map.heads[0]}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each key, with the numbers of each step."""
        return list(self.list_keys())

    def list_keys(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each key, in the order of the text, with its token and its numbers.

        These are its score after each step, its exponential and weight in the softmax, which are
        NaN for a hidden key, and the length of its value vector.
        """
        steps, query_map = self.steps, self.query_map
        visible = steps.given.visible
        exponentials = keep_visible(steps.exponentials, visible)
        weights = keep_visible(steps.weights, visible)
        for index, token in enumerate(query_map.keys):
            position = query_map.key_places[index]
            row: dict[str, Any] = {"key": position, "key_token": token.text}
            for step in steps.scores:
                row[step.name] = step.values[index]
            row["exponential"] = exponentials[index]
            row["weight"] = weights[index]
            row["value_norm"] = np.linalg.norm(steps.given.value[index])
            yield row

    def tables(self) -> list[Picture]:
        """Return the tables of the vectors, of all keys, and of the output."""
        return self.draw()

    def draw(self, most: int | None = None) -> list[Picture]:
        """Return three tables: of the vectors, of the keys, and of the output.

        most: keys that are listed at most, those of the largest weights; None for all.
        """
        keys = name_keys(self.query_map)
        owner = "the model's" if self.score is None else "our layer's"
        vectors = self.draw_vectors(keys)
        weights = make_keys_table(self.steps, keys, most)
        output = make_output_table(self.steps, self.difference, owner)
        return [vectors, weights, output]

    def draw_vectors(self, keys: Sequence[str]) -> Table:
        """Return the table of what goes in: the vectors of the query, and of one key.

        The key is the one with the largest weight. keys: a name for each key.
        """
        query_map, operands = self.query_map, self.steps.given
        queries, _ = make_axes(query_map)
        strongest = int(self.steps.weights.argmax())
        token_id = query_map.queries[0].id
        query = f"{queries.labels[0]} (token {token_id} of the vocabulary)"
        shown_key = f"of k and v, {keys[strongest]} is shown, which gets most"
        if self.score is None:
            vectors = name_head_vectors(operands)
            lines = explain_vectors_of_head(operands)
        else:
            vectors = name_raw_vectors(operands)
            lines = explain_raw_vectors(operands)
        caption = f"query: {query}; {shown_key}", *lines, *self.capture.notes
        return make_vectors_table(self.heading(), vectors, strongest, caption)

    def heading(self) -> str:
        """Return the title: the model, the head or the score function, the query, and its keys."""
        query_map = self.query_map
        queries, keys = make_axes(query_map)
        if self.score is None:
            # The map has one layer and one head, of index 0.
            titles = title_matrix(query_map, 0, 0)
        else:
            titles = *title_kind(query_map), f"{self.score} of raw vectors"
        query = title_token(queries).replace("token", "query", 1)
        return join_title(self.capture, *titles, query, f"{len(keys)} keys")


def describe_operands(operands: Operands) -> dict[str, Any]:
    """Describe what the attention of a query is computed from, for JSON.

    Vectors are "x", the input of the layer, "q" of the query, and "k" and "v" of all keys.
    """
    vectors = {
        "x": operands.hidden,
        "q": operands.query,
        "k": operands.key,
        "v": operands.value,
    }
    return {
        "vectors": vectors,
        "scale": operands.scale,
        "softcap": operands.softcap,
        "sink": operands.sink,
        "visible": operands.visible,
    }


def describe_steps(steps: AttentionSteps) -> dict[str, Any]:
    """Describe what is computed for one query from its scores to its output, as JSON will hold it.

    Arrays have a number for each key, NaN where a mask hides the key; "output" is (d_v,). They are
    left as arrays, which the writer of JSON knows. A sink is one more score in the softmax that
    stands for no key. "own_output" is the output that the model itself computed, or None.
    """
    operands = steps.given
    visible = operands.visible
    scores = [step._asdict() for step in steps.scores]
    weight_of_sink = None
    if operands.sink is not None:
        weight_of_sink = steps.weight_of_sink
    return {
        "scores": scores,
        "exponentials": keep_visible(steps.exponentials, visible),
        "weights": keep_visible(steps.weights, visible),
        "sink_weight": weight_of_sink,
        "output": steps.output,
        "own_output": operands.output,
    }


def keep_visible(values: Doubles, visible: npt.NDArray[np.bool_]) -> Doubles:
    """Return numbers of keys (key,), with NaN in place of those of hidden keys."""
    return np.where(visible, values, np.nan)


def name_keys(query_map: AttentionMap) -> list[str]:
    """Return a name for each key: its number in the text and what it says."""
    _, keys = make_axes(query_map)
    names = []
    for number, label in zip(keys.numbers, keys.labels, strict=True):
        names.append(f"{number} {shorten_token_label(label)}")
    return names


# Vectors


def name_raw_vectors(operands: Operands) -> list[NamedVectors]:
    """Name the embeddings that take the place of query, keys and values, and say what they are."""
    query = NamedVectors("q", "the query's embedding", operands.query)
    key = NamedVectors("k", "the embedding of each key", operands.key)
    value = NamedVectors("v", "the same", operands.value)
    return [query, key, value]


def name_head_vectors(operands: Operands) -> list[NamedVectors]:
    """Name the vectors of a head, and say what each of them is.

    They are the input of the layer, if it is known, the query, the keys and the values.
    """
    query = NamedVectors("q = W_Q x", "what the query seeks", operands.query)
    key = NamedVectors("k = W_K x", "what each key answers", operands.key)
    value = NamedVectors("v = W_V x", "what each key gives", operands.value)
    if operands.hidden is None:
        return [query, key, value]
    hidden = NamedVectors("x", "what the layer reads", operands.hidden)
    return [hidden, query, key, value]


def explain_raw_vectors(operands: Operands) -> list[str]:
    """Explain in a line that vectors are used as they are, and which matrices are random.

    Some score functions have matrices of their own.
    """
    matrices = RANDOM_MATRICES.get(operands.score)
    if matrices is None:
        return [PLAIN_VECTORS]
    return [f"{PLAIN_VECTORS}; {matrices} random, as before any training"]


def explain_vectors_of_head(operands: Operands) -> list[str]:
    """Explain in lines how the vectors of a head come about, and whether its input is known."""
    if operands.hidden is None:
        return [VECTORS_OF_A_HEAD, UNKNOWN_INPUT]
    return [VECTORS_OF_A_HEAD]


def make_vectors_table(
    heading: str,
    vectors: Sequence[NamedVectors],
    key: int,
    caption: Sequence[str],
) -> Table:
    """Make a table with a row for each vector: its meaning, shape, length and first numbers.

    vectors: arrays of one vector, (d,), or of a vector for each key, (key, d). key: the index of
    the key whose vectors are shown. caption: lines below the table.
    """
    names, cells = [], []
    for name, meaning, values in vectors:
        names.append(name)
        cells.append((meaning, *describe_vector(values, key)))
    blank = make_blank_levels(len(cells), len(VECTOR_COLUMNS))
    return Table(
        title=heading,
        corner="vector",
        columns=VECTOR_COLUMNS,
        rows=tuple(names),
        cells=tuple(cells),
        levels=blank,
        caption=make_caption(caption),
        texts=TEXT_COLUMNS,
    )


def describe_vector(values: Doubles, key: int) -> tuple[str, str, str]:
    """Return the shape of an array, and the length and the first numbers of one vector in it.

    values: one vector, (d,), or a vector for each key, (key, d). key: the index of the key whose
    vector is described.
    """
    vector = values if values.ndim == 1 else values[key]
    shape = " x ".join(map(str, values.shape))
    length = np.linalg.norm(vector)
    numbers = [f"{value:.4f}" for value in vector[:SHOWN_NUMBERS]]
    if len(vector) > SHOWN_NUMBERS:
        numbers.append("…")
    return shape, f"{length:.4f}", " ".join(numbers)


# From scores to weights


def make_keys_table(steps: AttentionSteps, keys: Sequence[str], most: int | None) -> Table:
    """Make a table with a row for each key, from its scores to its weight in the softmax.

    Keys stand in the order of the text. The last rows are of all keys that are not listed, of a
    sink (a score in the softmax that stands for no key) if there is one, and of the sum. keys: a
    name for each key. most: keys that are listed at most, those of the largest weights; None for
    all.
    """
    numbers = collect_key_numbers(steps)
    falling = np.argsort(-steps.weights, kind="stable")
    shown = np.sort(falling[:most])
    names = [keys[index] for index in shown]
    rows = [format_four_digits(numbers[index]) for index in shown]
    for name, exponential, weight in list_closing_rows(steps, shown):
        names.append(name)
        rows.append(format_closing_row(len(steps.scores), exponential, weight))
    levels = make_blank_levels(len(rows), numbers.shape[1])
    # No column but that of the weights has colours.
    weights = numbers[shown, WEIGHT_COLUMN]
    levels[: len(shown), WEIGHT_COLUMN] = weights
    step_names = [step.name for step in steps.scores]
    lines = explain_columns(steps, keys)
    return Table(
        title="From scores to weights: the softmax",
        corner="key",
        columns=(*step_names, *KEY_COLUMNS),
        rows=tuple(names),
        cells=tuple(rows),
        levels=levels,
        caption=make_caption(lines),
    )


def collect_key_numbers(steps: AttentionSteps) -> Doubles:
    """Collect the numbers of each key, (key, column): its score after each step, then others.

    These are its exponential and its weight in the softmax, which are NaN for a hidden key, the
    length of its value vector, and the weight times that length.
    """
    visible = steps.given.visible
    lengths = np.linalg.norm(steps.given.value, axis=-1)
    scores = [step.values for step in steps.scores]
    exponentials = keep_visible(steps.exponentials, visible)
    weights = keep_visible(steps.weights, visible)
    columns = [*scores, exponentials, weights, lengths, weights * lengths]
    return np.stack(columns, axis=-1)


def list_closing_rows(
    steps: AttentionSteps,
    shown: npt.NDArray[np.int64],
) -> Iterator[tuple[str, float, float]]:
    """Yield the rows below the listed keys: a name, an exponential and a weight each.

    They are of all keys that are not listed, of a sink (a score in the softmax that stands for no
    key) if there is one, and the sum of everything. shown: the indices of the listed keys.
    """
    all_keys = np.arange(len(steps.weights))
    others = np.setdiff1d(all_keys, shown)
    if len(others):
        exponential = steps.exponentials[others].sum()
        weight = steps.weights[others].sum()
        yield f"{len(others)} others", exponential, weight
    if steps.given.sink is not None:
        yield "sink", steps.sink, steps.weight_of_sink
    weight_of_all = steps.weights.sum() + steps.weight_of_sink
    yield "sum", steps.total, weight_of_all


def format_closing_row(step_count: int, exponential: float, weight: float) -> tuple[str, ...]:
    """Format an exponential and a weight as a row, whose other columns are empty.

    step_count: columns before these two; two more come after them.
    """
    before = [np.nan] * step_count
    numbers = [*before, exponential, weight, np.nan, np.nan]
    return format_four_digits(numbers)


def explain_columns(steps: AttentionSteps, keys: Sequence[str]) -> list[str]:
    """Explain in lines each column, how many keys are hidden, and how one key gets its weight.

    keys: a name for each key. The key that is followed is the one with the largest weight.
    """
    count = len(keys)
    hidden = count - np.count_nonzero(steps.given.visible)
    lines = [f"each column is a number for each of {count} keys"]
    lines += [f"{step.name}: {step.formula}" for step in steps.scores]
    if hidden:
        share = f"{hidden} of {count} keys"
        lines.append(f"mask: {share} are hidden from this query, and get no weight")
    last_step = steps.scores[-1]
    exponential = EXPLAIN_EXPONENTIAL.format(score=last_step.name)
    lines.append(f"e^: {exponential}")
    if steps.given.sink is not None:
        lines.append(f"sink: {EXPLAIN_SINK}")
    lines += [f"weight: {EXPLAIN_WEIGHT}", f"|v|: {EXPLAIN_LENGTHS}"]
    lines.append(explain_strongest(steps, keys))
    return lines


def explain_strongest(steps: AttentionSteps, keys: Sequence[str]) -> str:
    """Explain in a line, in equations with numbers, how the key with most weight comes to it.

    keys: a name for each key.
    """
    best = int(steps.weights.argmax())
    terms = begin_product(steps.given, best)
    equations = []
    for step in steps.scores:
        score = f"{step.values[best]:.4f}"
        equations.append(f"{step.name} = {terms}{score}")
        terms = ""  # the first step alone is the product
    exponential = f"{steps.exponentials[best]:.4f}"
    equations.append(f"e^ = {exponential}")
    division = f"{exponential} / {steps.total:.4f}"
    equations.append(f"weight = {division} = {steps.weights[best]:.4f}")
    return f"for {keys[best]}: {'; '.join(equations)}"


def begin_product(operands: Operands, key: int) -> str:
    """Return the first two terms of the dot product of the query and one key, and " + … = ".

    key: the index of the key. The text is empty if scores are not made by a dot product.
    """
    if operands.score != "dot":
        return ""
    first_of_query = operands.query[:2]
    first_of_key = operands.key[key, :2]
    terms = []
    for q, k in zip(first_of_query, first_of_key, strict=True):
        terms.append(f"({q:.4f})({k:.4f})")
    return f"{' + '.join(terms)} + … = "


# What comes out


def make_output_table(steps: AttentionSteps, difference: Difference, owner: str) -> Table:
    """Make the table of the output, with a line on how far it is from the model's own output.

    The own output, which the model or our own layer computed, is a second row if it is known.
    difference: the largest differences of weights and of outputs between the two. owner: "the
    model's" or "our layer's".
    """
    vectors = [NamedVectors("Σ w·v", "weights times values", steps.output)]
    own_output = steps.given.output
    if own_output is not None:
        vectors.append(NamedVectors("own", f"{owner} own output", own_output))
    output = "output not told by this model"
    if np.isfinite(difference.output):
        output = f"output {difference.output:.1e}"
    largest = f"largest difference from {owner} own"
    check = f"check: {largest}: weights {difference.weights:.1e}, {output}"
    return make_vectors_table("What comes out: Σ w·v", vectors, 0, (check,))


def format_four_digits(numbers: Iterable[float]) -> tuple[str, ...]:
    """Format numbers to four digits after the point; an empty text where one is NaN."""
    return tuple(format_fixed(float(number), 4) for number in numbers)
