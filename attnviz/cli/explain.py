"""`attnviz explain`."""

from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from attnviz import selection
from attnviz.analysis.explain import RAW, Difference, Steps, difference, explain, explain_raw
from attnviz.cli import text as text_input
from attnviz.cli.answers import Answer, deliver, target_of
from attnviz.cli.options import (
    TOP,
    Sectioned,
    SelectionType,
    decoder_option,
    map_option,
    model_options,
    result_options,
    selection_options,
    text_argument,
    text_options,
    title_option,
    together,
)
from attnviz.cli.picture import Options
from attnviz.cli.questions import ROWS, given, placed, told_of
from attnviz.cli.screen import screen
from attnviz.cli.sources import loaded, prompt
from attnviz.errors import InputError, UsageError
from attnviz.models.base import require_operands
from attnviz.record import Capture
from attnviz.request import Request
from attnviz.results.explanation import explain_tables
from attnviz.selection import Named, Selection, Spot

LAST, FIRST = Selection(((-1, -1),)), Selection(((0, 0),))
Explained = tuple[Capture, Steps, Difference]

explain_options = together(
    "View",
    click.option(
        "--query",
        type=SelectionType("N or WORD", selection.parse_token),
        default="-1",
        help="The query that is followed. Default: the last token.",
    ),
    click.option("--score", type=click.Choice(RAW), help="Instead of a model: a score function, on raw vectors."),
    click.option("--top", type=TOP, help=f"Keys shown, the strongest. Default on a screen: {ROWS}."),
)


@click.command(cls=Sectioned)
@text_argument
@selection_options
@map_option
@explain_options
@title_option
@text_options
@decoder_option
@model_options
@result_options
def command(text: str | None, quiet: bool, **options: Any) -> None:
    """Compute the attention of one query of one head step by step, in real numbers.

    From the vectors over q·k, scale, mask and softmax to the sum of values: each step with its formula, and at the end
    how far it is from the model's own numbers. Without --layers and --heads it is head 0 of the last layer. --score
    shows a score function instead, on the embeddings of the built-in model as they are.

    \b
    Examples:
      attnviz explain "The cat sat because it was tired." --query it
      attnviz explain @sample:repeat -l 1 -H 3 --top 5
      attnviz explain "The cat sat." -H L0H4 -o steps.html
      attnviz explain "Hello, world" -m bert-base -l 2 -H 1 --query world
      attnviz explain "The cat saw the dog." --score additive --query cat
    """
    check(options)
    on = screen(options["width"], options["color"], full=options["full"])
    to = target_of(options)
    content = text_input.read(text, quiet)
    found = of_score(content, options, quiet) if options["score"] else of_model(content, options, quiet)
    whole = to is not None or options["full"]
    most = options["top"] if "top" in given() else None if whole else ROWS
    tables = explain_tables(*found, most, options["score"])
    deliver(Answer(tables, document(*found, options["score"]), list(records(*found))), to, on, options, quiet)


def check(options: Options) -> None:
    """Refuse options that contradict each other, or name more than one head. Raises UsageError."""
    layers, heads = options["layers"] or LAST, options["heads"] or FIRST
    if isinstance(heads, Named) and options["layers"] is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    if not (layers.is_one and heads.is_one):
        raise UsageError("explain follows one head: choose it with -l 1 -H 3, or -H L1H3")
    of_a_model = {"model", "revision", "tokenizer", "adapter", "pair", "target", "chat"}
    without = {"layers", "heads", "kind", *of_a_model} if options["score"] else set()
    for name in sorted(without & given()):
        raise UsageError(f"--{'map' if name == 'kind' else name} has no effect with --score: leave it out")


def of_model(content: str, options: Options, quiet: bool) -> Explained:
    """One query of one head of the model of the options, its weights as captured, and how far they are apart.

    Raises InputError for a query that sees nothing.
    """
    kinds = (options["kind"],) if options["kind"] else ()
    layers, heads, query = options["layers"] or LAST, options["heads"] or FIRST, options["query"]
    request = Request(layers, heads, options["truncate"], kinds, ("self", "cross"), query=query)
    model, read = require_operands(loaded(options, quiet)), prompt(content, options)
    capture = model.capture(read, request)
    weights = capture.maps[0].weights
    try:
        steps = explain(model.operands(read, request))
    except ValueError as error:
        raise InputError(f"{error}: its output is 0; choose another --query") from error
    return capture, steps, difference(steps, np.nan if weights is None else weights[0, 0, 0])


def of_score(content: str, options: Options, quiet: bool) -> Explained:
    """One query of self-attention on the embeddings of the built-in model, by a score function of our layer."""
    from attnviz.lm import store

    query: Spot = options["query"]
    capture = loaded(options, quiet).capture(
        prompt(content, options), Request(FIRST, FIRST, options["truncate"], query=query)
    )
    part = capture.maps[0]
    vectors = store.read(store.BUILTIN).parameters["embedding"][[token.id for token in part.keys]]
    steps, weights = explain_raw(options["score"], vectors, part.query_places[0])
    return capture, steps, difference(steps, weights)


def document(capture: Capture, steps: Steps, apart: Difference, score: str | None) -> dict[str, Any]:
    """Everything, for JSON."""
    part, made = capture.maps[0], steps.given
    head = {"score": score} if score else {"layer": part.layers[0], "head": part.heads[0]}
    return {
        **told_of(capture),
        "kind": part.kind,
        **head,
        "query": placed(part.queries, part.query_places)[0],
        "keys": placed(part.keys, part.key_places),
        "vectors": {"x": made.hidden, "q": made.query, "k": made.key, "v": made.value},
        "scale": made.scale,
        "softcap": made.softcap,
        "sink": made.sink,
        "visible": made.visible,
        "scores": [step._asdict() for step in steps.scores],
        "exponentials": np.where(made.visible, steps.exponentials, np.nan),
        "weights": np.where(made.visible, steps.weights, np.nan),
        "sink_weight": None if made.sink is None else steps.weight_of_sink,
        "output": steps.output,
        "own_output": made.output,
        "largest_difference": apart._asdict(),
    }


def records(capture: Capture, steps: Steps, apart: Difference) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """A line a key, for CSV."""
    part = capture.maps[0]
    for i, token in enumerate(part.keys):
        seen = bool(steps.given.visible[i])
        yield {
            "key": part.key_places[i],
            "key_token": token.text,
            **{step.name: step.values[i] for step in steps.scores},
            "exponential": steps.exponentials[i] if seen else None,
            "weight": steps.weights[i] if seen else None,
            "value_norm": np.linalg.norm(steps.given.value[i]),
        }
