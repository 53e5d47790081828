"""What a command works on: a model that is run on a text, or a capture from a file."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnviz.analysis.segments import require_segment_groups
from attnviz.analysis.statistics import (
    find_strongest_edges,
    measure_statistics,
    pool_map,
)
from attnviz.analysis.words import convert_to_words
from attnviz.cli import text as text_input
from attnviz.cli.options import CaptureOptions, ModelOptions, NumbersOptions
from attnviz.cli.talk import Talk
from attnviz.derived import CaptureSource, derive_capture
from attnviz.errors import InputError, UsageError
from attnviz.methods import (
    METHODS,
    METHODS_THROUGH_LAYERS,
    SUM,
    list_methods,
    note_methods,
)
from attnviz.progress import begin_step, shorten_name
from attnviz.record import (
    ATTENTION,
    FROM_ELSEWHERE,
    SCORES,
    AttentionMap,
    Capture,
)
from attnviz.request import Request
from attnviz.selection import (
    MapTokens,
    choose_kinds,
    describe_positions,
    find_window_positions,
    note_windows,
    select_heads,
)

if TYPE_CHECKING:
    from attnviz.models import Model


def open_source(
    text: str | None,
    options: CaptureOptions,
    talk: Talk,
) -> CaptureSource:
    """Return a source, that is, a function that makes a capture of a request.

    It reads the file that --from names, or else runs a model on the text. Its captures hold the
    numbers that --weights names, and with --words they are between words.

    text: the argument of the command. Raises AttnvizError.
    """
    if options.source.path is not None:
        return open_file(text, options)
    content = text_input.read_argument(text, talk)
    return open_model(content, options, talk)


def open_model(content: str, options: CaptureOptions, talk: Talk) -> CaptureSource:
    """Load the model, and return a function that makes captures of a text with it.

    Raises AttnvizError.
    """
    model = load_model_for(options, talk)
    return make_model_source(model, content, options)


def make_model_source(
    model: "Model",
    content: str,
    options: CaptureOptions,
) -> CaptureSource:
    """Return a function that makes a capture of a request by running a loaded model on a text.

    content: the text. options: they say what the numbers of the captures are, and if they are
    between words or tokens.
    """
    prompt = options.reading.prompt(content)
    weights_source = partial(model.capture, prompt)
    numbers_source = make_method_source(weights_source, options.numbers)
    return make_word_source(numbers_source, options.source.words)


def load_model_for(
    options: CaptureOptions,
    talk: Talk,
    *,
    predicts: bool = False,
) -> "Model":
    """Load a model with the parts that options need: those that predict, or that write a text.

    predicts: load the part that predicts, even if the numbers of the captures do not need it.

    Raises UsageError for a target token that has no effect, ModelError.
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

    talk: says if progress is shown. writes: load it with the part that continues a text. predicts:
    load it with the part that predicts. Raises ModelError.
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
    """Return a function that makes captures from the file that --from names.

    text: the argument of the command, which must be None.

    Raises UsageError for a text, or for options that need a model; InputError for a file that
    cannot be read, or of which the numbers that --weights names cannot be made.
    """
    unused = options.given_of_a_run
    if text is not None or unused:
        what = "TEXT" if text is not None else unused[0]
        raise UsageError(f"--from reads a capture that was made before: leave {what} out")
    assert options.source.path is not None
    source = make_file_source(options.source.path, options.numbers)
    return make_word_source(source, options.source.words)


def make_file_source(path: str, numbers: NumbersOptions) -> CaptureSource:
    """Load a saved capture, and return a function that makes captures of requests from it.

    numbers: what --weights names. The file must hold these numbers, or those of which they can be
    made; without --weights it may hold any. Weights from elsewhere, whose method is called
    ``given``, pass for attention.

    Raises InputError if the file cannot be read, or the numbers cannot be made of it.
    """
    from attnviz.io.formats import load

    numbers.require_target_effect()
    with begin_step(f"reading {shorten_name(path)}"):
        capture = load(Path(path))
    source = partial(select_requested, note_methods(capture))
    file_methods, method = list_methods(capture.maps), numbers.method
    passes_for_attention = (method, file_methods) == (ATTENTION, (FROM_ELSEWHERE,))
    if not numbers.is_named or file_methods == (method,) or passes_for_attention:
        return source
    if file_methods == (METHODS_THROUGH_LAYERS.get(method),):
        return make_method_source(source, numbers)
    raise InputError(
        f"--weights {method} is made of {METHODS[method].needs}, and {path} holds "
        f"{', '.join(file_methods)} alone: run the model with -m in place of --from",
    )


def make_method_source(
    source: CaptureSource,
    numbers: NumbersOptions,
    target: int | None = None,
) -> CaptureSource:
    """Return a function that makes captures with the numbers that --weights names.

    For attention weights it is the source itself, that is, a function that makes captures of
    requests. target: the number of the output whose gradients are taken, in place of
    --target-token.
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
    """Make the capture that a request asks for, with the numbers that --weights names.

    source: a function that makes captures of requests. numbers: the options. target: the number of
    the output whose gradients are taken; None: as --target-token says. Raises UsageError,
    InputError.
    """
    summed = numbers.reduction == SUM
    prediction = numbers.target_token if target is None else target
    capture = derive_capture(source, request, numbers.method, prediction, summed=summed)
    if (
        numbers.method in METHODS_THROUGH_LAYERS
    ):  # made through all layers, of which the request may name some
        return select_requested(capture, request)
    return capture


def make_word_source(source: CaptureSource, words: bool) -> CaptureSource:
    """Return a function that makes captures between words, if ``words``, in place of tokens."""
    return partial(capture_words, source) if words else source


def capture_words(source: CaptureSource, request: Request) -> Capture:
    """Make the capture that a request asks for between words, by merging the tokens of each word.

    source: a function that makes captures between tokens. The windows of the request count words.
    All weights between tokens are captured first, and words are made of them.

    Raises UsageError for scores, which do not add up, InputError for a capture without words.
    """
    everything = slice(None)
    token_request = replace(
        request,
        keep="weights",
        rows=everything,
        columns=everything,
        query=None,
        key=None,
    )
    capture = source(token_request)
    if SCORES in list_methods(capture.maps):
        raise UsageError(
            "--words adds up what the pieces of a word have, and scores do not add up: leave"
            " --words out",
        )
    try:
        capture = convert_to_words(capture)
    except ValueError as error:
        raise InputError(f"--words: {error}") from error
    cropped = crop_to_window(capture, request)
    return replace(cropped, maps=tuple(keep_requested(each, request) for each in cropped.maps))


def keep_requested(attention_map: AttentionMap, request: Request) -> AttentionMap:
    """Return a map that holds what a request keeps: weights, tiles, statistics or edges.

    attention_map: one of weights; a map without them is returned as it is.
    """
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
    """Return the part of a finished capture that a request asks for.

    That is its kinds of map, layers, heads, and its window of queries and keys. Raises UsageError
    for what is not there, InputError for a window of a capture without weights.
    """
    there = tuple(dict.fromkeys(each.kind for each in capture.maps))
    kinds = choose_kinds(request.kinds, there, request.preferred)
    chosen = select_heads(capture, request.layers, request.heads, kinds)
    return crop_to_window(chosen, request)


def crop_to_window(capture: Capture, request: Request) -> Capture:
    """Return a capture of the queries and keys that a request asks for, with a note on them.

    A capture of tiles gives the tiles that cover them, with a note that says so. Raises UsageError
    for a window without tokens, InputError for a capture that has neither.
    """
    if not request.windowed:
        return capture
    sides = [(each.queries, each.keys) for each in capture.maps]
    try:
        placed = request.resolve_window(sides[0])  # finds a token that the request names
        maps = tuple(
            crop_map(each, *find_window_positions(placed.rows, placed.columns, side), request)
            for each, side in zip(capture.maps, sides, strict=True)
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    notes = note_windows(placed.rows, placed.columns, sides)
    if request.segments == ():
        notes = (*notes, *note_covering_tiles(maps, sides))
    return replace(capture, maps=maps, notes=(*capture.notes, *notes))


def crop_map(
    attention_map: AttentionMap,
    rows: range,
    columns: range,
    request: Request,
) -> AttentionMap:
    """Return the part of a map for some queries and keys: weights, or the tiles that cover them.

    rows, columns: the positions of the queries and keys. request: one that asks about segments gets
    what the queries give to these, if the map has no weights. Raises ValueError for a map that has
    nothing of this.
    """
    if attention_map.weights is not None:
        return attention_map.window(rows, columns)
    if request.segments != ():
        require_segment_groups(attention_map)
        return attention_map.pick_queries_of_groups(rows)
    if request.query is not None or request.key is not None:
        raise ValueError("what one token gives or gets is read from weights: this map has none")
    return attention_map.cover_window(rows, columns)


def note_covering_tiles(
    maps: Sequence[AttentionMap],
    sides_of_maps: Sequence[MapTokens],
) -> tuple[str, ...]:
    """Return lines that say which queries and keys tiles show that cover a window, each line once.

    maps: the covering ones. sides_of_maps: all queries and all keys of each.
    """
    lines: dict[str, None] = {}
    for attention_map, (queries, keys) in zip(maps, sides_of_maps, strict=True):
        tiles = attention_map.tiles
        if tiles is None or attention_map.weights is not None:
            continue
        size = f"tiles of {tiles.height} x {tiles.width} tokens"
        rows = describe_positions(
            as_range(attention_map.query_places), len(queries), "query", "queries"
        )
        columns = describe_positions(as_range(attention_map.key_places), len(keys), "key", "keys")
        covered = ", ".join(side for side in (rows, columns) if side)
        if covered:
            lines[f"in {size}, which cover {covered}"] = None
    return tuple(lines)


def as_range(positions: Sequence[int]) -> range:
    """Return consecutive positions as a range."""
    return range(positions[0], positions[-1] + 1)
