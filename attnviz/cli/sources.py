"""What a command works on: a model that is run on a text, or a capture from a file."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnviz.analysis.statistics import find_strongest_edges, measure_statistics, pool_map
from attnviz.analysis.words import convert_to_words
from attnviz.cli import text as text_input
from attnviz.cli.options import CaptureOptions, ModelOptions, NumbersOptions
from attnviz.cli.talk import Talk
from attnviz.derived import CaptureSource, derive_capture
from attnviz.errors import InputError, UsageError
from attnviz.methods import MADE_OF, METHODS, SUM, list_methods, note_methods
from attnviz.record import ATTENTION, GIVEN, SCORES, AttentionMap, Capture
from attnviz.request import Request
from attnviz.selection import note_windows, require_kinds, require_window_sides, select_heads

if TYPE_CHECKING:
    from attnviz.models import Model


def open_source(text: str | None, options: CaptureOptions, talk: Talk) -> CaptureSource:
    """Return what captures are taken from: the file that --from names, else a model on the text.

    The captures hold the numbers that --weights names, between words with --words. Raises
    AttnvizError.
    """
    if options.source.path is not None:
        return open_file(text, options)
    content = text_input.read_argument(text, talk)
    return open_model(content, options, talk)


def open_model(content: str, options: CaptureOptions, talk: Talk) -> CaptureSource:
    """Load the model, and return what it captures of a text. Raises AttnvizError."""
    model = load_model_for(options, talk)
    return make_model_source(model, content, options)


def make_model_source(model: "Model", content: str, options: CaptureOptions) -> CaptureSource:
    """Return what a loaded model captures of a text, in the numbers and units of the options."""
    prompt = options.reading.prompt(content)
    weights = partial(model.capture, prompt)
    return make_word_source(make_method_source(weights, options.numbers), options.source.words)


def load_model_for(options: CaptureOptions, talk: Talk, *, predicts: bool = False) -> "Model":
    """Load a model with the parts that the options need of it. Raises UsageError, ModelError.

    predicts: a prediction is asked about, whatever the numbers are.
    """
    if not predicts:
        options.numbers.require_target_effect()
    return load_chosen_model(
        options.model,
        talk,
        writes=bool(options.reading.generate),
        predicts=predicts or options.numbers.of_a_prediction,
    )


def load_chosen_model(
    options: ModelOptions,
    talk: Talk,
    *,
    writes: bool = False,
    predicts: bool = False,
) -> "Model":
    """Load the model that the options name.

    writes: with the part that continues a text; predicts: with the part that predicts. Raises
    ModelError.
    """
    from attnviz.models import load_model

    return load_model(
        options.model,
        revision=options.revision,
        placement=options.placement,
        companions=options.companions,
        offline=options.offline,
        quiet=not talk.shows_progress,
        writes=writes,
        predicts=predicts,
    )


def open_file(text: str | None, options: CaptureOptions) -> CaptureSource:
    """Return the capture of the file that --from names.

    Raises UsageError for a text or options that need a model, InputError for numbers that cannot be
    made of the file.
    """
    unused = options.given_of_a_run
    if text is not None or unused:
        what = "TEXT" if text is not None else unused[0]
        raise UsageError(f"--from reads a capture that was made before: leave {what} out")
    assert options.source.path is not None
    source = make_file_source(options.source.path, options.numbers)
    return make_word_source(source, options.source.words)


def make_file_source(path: str, numbers: NumbersOptions) -> CaptureSource:
    """Return a saved capture in the numbers that --weights names, or without it in its own.

    Raises InputError if the file cannot be read, or those numbers cannot be made of it.
    """
    from attnviz.io.formats import load

    numbers.require_target_effect()
    capture = load(Path(path))
    source = partial(select_requested, note_methods(capture))
    held, method = list_methods(capture.maps), numbers.method
    is_given = (method, held) == (ATTENTION, (GIVEN,))
    if not numbers.is_named or held == (method,) or is_given:
        return source
    if held == (MADE_OF.get(method),):
        return make_method_source(source, numbers)
    raise InputError(
        f"--weights {method} is made of {METHODS[method].needs}, and {path} holds "
        f"{', '.join(held)} alone: run the model with -m in place of --from",
    )


def make_method_source(
    source: CaptureSource, numbers: NumbersOptions, target: int | None = None
) -> CaptureSource:
    """Return a source of the same captures in the numbers that --weights names.

    target: the number of the output that gradients are of, in place of --target-token.
    """
    if numbers.method == ATTENTION:
        return source
    return partial(capture_numbers, source, numbers, target)


def capture_numbers(
    source: CaptureSource,
    numbers: NumbersOptions,
    target: int | None,
    request: Request,
) -> Capture:
    """Capture in numbers of another method. Raises UsageError, InputError."""
    summed = numbers.reduction == SUM
    prediction = numbers.target_token if target is None else target
    capture = derive_capture(source, request, numbers.method, prediction, summed=summed)
    if numbers.method in MADE_OF:  # of all layers and heads, whichever are asked for
        return select_requested(capture, request)
    return capture


def make_word_source(source: CaptureSource, words: bool) -> CaptureSource:
    """Return a source of the same captures between words, where windows count words."""
    return partial(capture_words, source) if words else source


def capture_words(source: CaptureSource, request: Request) -> Capture:
    """Capture between words, of all weights between tokens. Raises UsageError, InputError."""
    everything = slice(None)
    of_tokens = replace(
        request,
        keep="weights",
        rows=everything,
        columns=everything,
        query=None,
        key=None,
    )
    capture = source(of_tokens)
    if SCORES in list_methods(capture.maps):
        raise UsageError(
            "--words adds up what the pieces of a word have, and scores do not add up: leave"
            " --words out",
        )
    try:
        capture = convert_to_words(capture)
    except ValueError as error:
        raise InputError(f"--words: {error}") from error
    window = crop_to_window(capture, request)
    return replace(window, maps=tuple(keep_requested(each, request) for each in window.maps))


def keep_requested(attention_map: AttentionMap, request: Request) -> AttentionMap:
    """Return of a map of weights what a request keeps: weights, tiles, statistics or edges."""
    weights = attention_map.weights
    if weights is None or request.keep == "weights":
        return attention_map
    if request.keep == "tiles":
        return pool_map(attention_map, request.tiles)
    is_of_one_text = attention_map.kind != "cross" and attention_map.queries == attention_map.keys
    statistics = attention_map.statistics or measure_statistics(
        weights,
        attention_map.visible,
        is_of_one_text,
    )
    edges = find_strongest_edges(weights, request.strongest) if request.keep == "edges" else None
    return replace(
        attention_map,
        weights=None,
        visible=np.array(True),
        statistics=statistics,
        edges=edges,
    )


def select_requested(capture: Capture, request: Request) -> Capture:
    """Return the layers, heads, kinds of map and window of a capture that a request names."""
    there = tuple(dict.fromkeys(each.kind for each in capture.maps))
    kinds = require_kinds(request.kinds, there, request.preferred)
    chosen = select_heads(capture, request.layers, request.heads, kinds)
    return crop_to_window(chosen, request)


def crop_to_window(capture: Capture, request: Request) -> Capture:
    """Return the window of a capture that a request asks for. Raises UsageError, InputError."""
    if not request.windowed:
        return capture
    sides = [(each.queries, each.keys) for each in capture.maps]
    try:
        placed = request.placed(sides[0])
        maps = tuple(
            each.window(*require_window_sides(placed.rows, placed.columns, side))
            for each, side in zip(capture.maps, sides, strict=True)
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    notes = note_windows(placed.rows, placed.columns, sides)
    return replace(capture, maps=maps, notes=(*capture.notes, *notes))
