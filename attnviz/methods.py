"""The table of what is shown of attention: weights, or numbers that say more."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from attnviz.record import (
    ATTENTION,
    CHEFER,
    GRADIENT,
    NORM,
    ROLLOUT,
    SCORES,
    AttentionMap,
    Capture,
)

MethodName: TypeAlias = Literal["attention", "norm", "gradient", "chefer", "rollout", "scores"]
SUM = "sum"
"""The head that stands for all of a layer, where vectors are added before they are measured."""


class MethodNumbers(NamedTuple):
    """What the cells of a map hold."""

    noun: str
    """One of them, in a sentence."""
    units: str
    """The same in a file."""
    needs: str
    """What they are made of."""
    line: str = ""
    """What they are and who says so, for captions and notes; of weights nothing need be said."""


METHODS: dict[str, MethodNumbers] = {
    ATTENTION: MethodNumbers("weight", "share of attention", "a run of a model"),
    NORM: MethodNumbers(
        "norm",
        "length of vector",
        "the values of a model",
        "norms, no weights: how long the vector is that a head moves from key to query (Kobayashi"
        " et al. 2020)",
    ),
    GRADIENT: MethodNumbers(
        "gradient",
        "weight times gradient",
        "the gradients of a model",
        "gradients, no weights: weight times the gradient of a prediction by it, where that is"
        " above 0 (Chefer et al. 2021, eq. 5)",
    ),
    CHEFER: MethodNumbers(
        "relevance",
        "relevance",
        "the gradients of all layers and heads",
        "chefer (Chefer et al. 2021, eq. 5 and 6): gradients averaged over heads, through all"
        " layers up to this one; each token begins with 1 of its own",
    ),
    ROLLOUT: MethodNumbers(
        "rollout weight",
        "share of rollout",
        "the attention of all layers and heads",
        "rollout (Abnar & Zuidema 2020): heads averaged, each layer half residual stream, layers"
        " multiplied",
    ),
    SCORES: MethodNumbers(
        "score",
        "score",
        "the queries and keys of a model",
        "scores before the softmax: only differences within a row mean something",
    ),
}
SUMMED = (
    "norms, no weights: how long the sum of the vectors is that the heads of a layer move from key"
    " to query (Kobayashi et al. 2020)"
)
METHODS_THROUGH_LAYERS = {ROLLOUT: ATTENTION, CHEFER: GRADIENT}  # through all layers, of all heads
METHODS_OF_A_PREDICTION = GRADIENT, CHEFER
METHODS_WITHOUT_SINKS = (
    GRADIENT,
    CHEFER,
    SCORES,
)  # where what is large is what was looked for, and no sink


def name_cell(method: str) -> str:
    """Return a word for one number of a map, by its method; "weight" if that is not known."""
    return METHODS.get(method, METHODS[ATTENTION]).noun


def holds_other_numbers(method: str) -> bool:
    """Return whether a map of a method holds other numbers than attention weights."""
    return method in METHODS and method != ATTENTION


def describe_method(attention_map: AttentionMap) -> str:
    """Return a line that says what the numbers of a map are, and who defined them.

    The line is empty for attention weights, and for a method that is not known.
    """
    if attention_map.method == NORM and SUM in attention_map.heads:
        return SUMMED
    if attention_map.method not in METHODS:
        return ""
    return METHODS[attention_map.method].line


def note_methods(capture: Capture) -> Capture:
    """Return a capture with notes that say what the numbers of its maps are, each note once."""
    lines = [describe_method(attention_map) for attention_map in capture.maps]
    notes = dict.fromkeys((*capture.notes, *filter(None, lines)))
    return replace(capture, notes=tuple(notes))


def list_methods(maps: Iterable[AttentionMap]) -> tuple[str, ...]:
    """Return the names of what the numbers of maps are, such as ``attention``, each once."""
    return tuple(dict.fromkeys(attention_map.method for attention_map in maps))
