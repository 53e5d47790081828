"""What a command works on: a model run on a text, or a capture from a file."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from click.core import ParameterSource

from attnviz.analysis.statistics import describe, strongest, tiled
from attnviz.analysis.words import in_words
from attnviz.cli import text as text_input
from attnviz.cli.options import note
from attnviz.derived import Source as Source
from attnviz.derived import taken
from attnviz.errors import InputError, UsageError
from attnviz.escape import require_unicode
from attnviz.methods import MADE_OF, METHODS, OF_A_PREDICTION, SUM, explained, methods_of
from attnviz.record import ATTENTION, GIVEN, NORM, ROLLOUT, SCORES, AttentionMap, Capture
from attnviz.request import Companions, Placement, Prompt, Request
from attnviz.selection import ALL, require_kinds, require_sides, select, window_notes

if TYPE_CHECKING:
    from attnviz.models import Model

OF_A_RUN = (
    "model",
    "revision",
    "tokenizer",
    "adapter",
    "device",
    "dtype",
    "truncate",
    "pair",
    "target",
    "chat",
    "generate",
    "target_token",
)


def opened(text: str | None, options: Mapping[str, Any], quiet: bool) -> Source:
    """What captures are taken from: the file that --from names, else the model of the options, loaded once.

    They are of the numbers that --weights names, and with --words in words.
    """
    if options["source"] is not None:
        return worded(reader(text, options), options)
    return worded(running(text_input.read(text, quiet), options, quiet), options)


def worded(source: Source, options: Mapping[str, Any]) -> Source:
    """The same source, of captures in words if the options ask for that; windows and tokens are counted in words."""
    return partial(merged, source) if options.get("words") else source


def merged(source: Source, request: Request) -> Capture:
    """What a request asks of a source, in words, made of all weights. Raises UsageError, InputError."""
    all_of_it = slice(None)
    found = source(replace(request, keep="weights", rows=all_of_it, columns=all_of_it, query=None, key=None))
    if SCORES in methods_of(found.maps):
        raise UsageError("--words adds up what the pieces of a word have, and scores do not add up: leave --words out")
    try:
        found = in_words(found)
    except ValueError as error:
        raise InputError(f"--words: {error}") from error
    found = windowed(found, request)
    return replace(found, maps=tuple(kept(part, request) for part in found.maps))


def kept(part: AttentionMap, request: Request) -> AttentionMap:
    """What a request keeps of a map of weights."""
    if part.weights is None or request.keep == "weights":
        return part
    if request.keep == "tiles":
        return tiled(part, request.tiles)
    found = part.statistics or describe(part.weights, part.visible, part.kind != "cross" and part.queries == part.keys)
    edges = strongest(part.weights, request.strongest) if request.keep == "edges" else None
    return replace(part, weights=None, visible=np.array(True), statistics=found, edges=edges)


def running(content: str, options: Mapping[str, Any], quiet: bool) -> Source:
    """The model of the options, on a text."""
    return weighed(partial(loaded(options, quiet).capture, prompt(content, options)), options)


def weighed(source: Source, options: Mapping[str, Any]) -> Source:
    """The same source, of captures of the numbers that --weights names."""
    return source if options.get("method", ATTENTION) == ATTENTION else partial(numbered, source, options)


def numbered(source: Source, options: Mapping[str, Any], request: Request) -> Capture:
    """What a request asks of a source, in numbers of another method. Raises UsageError, InputError."""
    method = options["method"]
    found = taken(source, request, method, options["target_token"], summed=options.get("how") == SUM)
    return chosen(found, request) if method in MADE_OF else found


def require_method(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that --weights makes no sense of."""
    method, how = options.get("method", ATTENTION), options.get("how")
    if options.get("target_token") is not None and method not in OF_A_PREDICTION and not options.get("predicts"):
        raise UsageError(f"--target-token has no effect without --weights {' or '.join(OF_A_PREDICTION)}: leave it out")
    if how == SUM and method != NORM:
        raise UsageError("--reduce sum adds what heads move before it is measured: it needs --weights norm")
    if method in MADE_OF and (how is not None or options.get("heads") not in (None, ALL)):
        raise UsageError(f"--weights {method} has one head a layer, made of all: leave --heads and --reduce out")
    if options.get("generate") and method not in (ATTENTION, ROLLOUT):
        raise UsageError(
            f"--weights {method} is of a text that is there: leave --generate out, or give the text that was written"
        )


def prompt(content: str, options: Mapping[str, Any]) -> Prompt:
    """A text as the options have it read."""
    return Prompt(content, options["pair"], options.get("target"), options["chat"], options.get("generate") or 0)


def take(text: str | None, request: Request, options: Mapping[str, Any], quiet: bool) -> Capture:
    """Load the model that the options name, and run it on the text."""
    return opened(text, {**options, "source": None}, quiet)(request)


def loaded(options: Mapping[str, Any], quiet: bool) -> "Model":
    """The model that the options name. Raises InputError for an empty second text, before anything is loaded."""
    from attnviz.models import load

    require_method(options)
    for name in ("pair", "target"):
        given = options.get(name)
        if given is not None and not given.strip():
            raise InputError(f"the text of --{name} is empty")
        require_unicode(given or "", f"the text of --{name}")
    return load(
        options["model"],
        revision=options["revision"],
        placement=Placement(options["device"], options["dtype"]),
        companions=Companions(options.get("tokenizer"), options.get("adapter")),
        offline=options["offline"],
        quiet=quiet or not sys.stderr.isatty(),
        writes=bool(options.get("generate")),
        predicts=options.get("predicts", False) or options.get("method") in OF_A_PREDICTION,
    )


def reader(text: str | None, options: Mapping[str, Any]) -> Source:
    """The capture of the file that --from names, as far as a request names it.

    Raises UsageError for options that need a model, InputError for numbers that cannot be made of the file.
    """
    given = click.get_current_context().get_parameter_source
    told = [name for name in OF_A_RUN if given(name) not in (None, ParameterSource.DEFAULT)]
    if text is not None or told:
        what = "TEXT" if text is not None else f"--{told[0].replace('_', '-')}"
        raise UsageError(f"--from reads a capture that was made before: leave {what} out")
    return of_file(options["source"], options)


def of_file(path: str, options: Mapping[str, Any]) -> Source:
    """A saved capture of what --weights names, or without it of what it holds. Raises UsageError, InputError."""
    from attnviz.io.formats import load

    require_method(options)
    capture = load(Path(path))
    source = partial(chosen, explained(capture))
    named = click.get_current_context().get_parameter_source("method") not in (None, ParameterSource.DEFAULT)
    there, method = methods_of(capture.maps), options.get("method", ATTENTION)
    if not named or there == (method,) or (method, there) == (ATTENTION, (GIVEN,)):
        return source
    if there == (MADE_OF.get(method),):
        return weighed(source, options)
    raise InputError(
        f"--weights {method} is made of {METHODS[method].needs}, and {path} holds {', '.join(there)} alone: "
        "run the model with -m in place of --from"
    )


def chosen(capture: Capture, request: Request) -> Capture:
    """The layers, heads, kinds of map and window of a capture that a request names."""
    there = tuple(dict.fromkeys(part.kind for part in capture.maps))
    kinds = require_kinds(request.kinds, there, request.preferred)
    return windowed(select(capture, request.layers, request.heads, kinds), request)


def windowed(capture: Capture, request: Request) -> Capture:
    """The window of a capture that the request asks for. Raises UsageError, InputError."""
    if not request.windowed:
        return capture
    try:
        request = request.placed((capture.maps[0].queries, capture.maps[0].keys))
        maps = tuple(
            part.window(*require_sides(request.rows, request.columns, (part.queries, part.keys)))
            for part in capture.maps
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    where = window_notes(request.rows, request.columns, ((part.queries, part.keys) for part in capture.maps))
    return replace(capture, maps=maps, notes=(*capture.notes, *where))


def tell(capture: Capture, quiet: bool, verbose: bool) -> None:
    """Say on stderr how exact the weights are, if that is asked for."""
    if not verbose:
        return
    if capture.fidelity is None:
        note("fidelity: not measured", quiet)
    else:
        share = f"{capture.fidelity:.1e} of its size"
        note(f"fidelity: weights times values are the model's own output to {share}", quiet)
        note(f"measured against: {capture.fidelity_reference}", quiet)
    if capture.output_change is not None:
        note(f"the model's output differs by {capture.output_change:.1e} of its size from that without attnviz", quiet)
