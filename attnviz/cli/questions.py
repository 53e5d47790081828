"""The questions of `attnviz inspect`: what each head does, what one token gives and gets, one cell, segments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
import numpy as np
from click.core import ParameterSource

from attnviz.analysis.measures import COLUMNS, Measures, Spread, measure, spread
from attnviz.analysis.segments import Shares, paragraphs, parse, require_fit, shares
from attnviz.cli.answers import Answer
from attnviz.cli.options import note
from attnviz.cli.picture import Options
from attnviz.cli.sources import Source, tell
from attnviz.cli.text import MOST
from attnviz.drawable import Table
from attnviz.errors import InputError, UsageError
from attnviz.io.files import read_text
from attnviz.io.formats import decimals, token_list
from attnviz.methods import is_other, methods_of
from attnviz.record import ATTENTION, SCORES, Capture, Doubles, Segment, Token, Unit
from attnviz.render.terminal.draw import Screen
from attnviz.request import Request
from attnviz.results.inspection import (
    GETS,
    GIVES,
    Heads,
    cell_heatmap,
    head_names,
    heads_table,
    heads_title,
    segments_table,
    side,
    token_table,
)
from attnviz.selection import ALL, require_same_tokens
from attnviz.views.heatmaps import panel, places
from attnviz.views.labels import sides, tokens_title

WHOLE = 512  # tokens of a text whose weights are all kept; of a longer one there are statistics
ROWS = 16  # of a table, where no screen says how many fit
AROUND = 6  # lines of a screen for what stands around the rows: title, heading, mean, caption, a note, the prompt
EVENED = "these numbers are of rows that were made to sum to 1"
NO_SHARES = (
    "the numbers of heads and segments are of shares that sum to 1, and scores are none: softmaxed they are the "
    "weights: use --weights attention; --token, and --query with --key, show scores"
)
WIDE = 130  # columns of a screen on which a standard deviation fits beside every mean


class Asked(NamedTuple):
    """What is asked for, and where it will be seen."""

    options: Options
    on: Screen
    written: bool
    """Into a file or a pipe, not on the screen."""
    verbose: bool
    quiet: bool

    def rows(self, lines: int = AROUND) -> int | None:
        """How many rows to show where so many lines are taken by others; None for all."""
        if self.options["top"] is not None or "top" in given():
            top: int | None = self.options["top"]
            return top
        if self.written:
            return None
        return ROWS if self.on.height is None else max(self.on.height - lines, 4)

    def take(self, source: Source, **kept: Any) -> Capture:
        """A capture of the heads that are asked for. Raises InputError if its maps are not of the same tokens."""
        options = self.options
        kinds = (options["kind"],) if options["kind"] else ()
        request = Request(
            options["layers"] or ALL, options["heads"] or ALL, options["truncate"], kinds, ("self", "cross"), **kept
        )
        capture = source(request)
        require_same_tokens(capture.maps, "choose some with --layers")
        tell(capture, self.quiet, self.verbose)
        return capture


def given() -> set[str]:
    """The options that stand on the command line."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


def measured(sources: Sequence[Source], asked: Asked) -> Answer:
    """The columns of every head, over all texts."""
    keep = "weights" if asked.options["full"] or asked.options["method"] != ATTENTION else "tiles"
    found: list[Measures] = []
    captures: list[Capture] = []
    for source in sources:
        capture = evened(asked.take(source, keep=keep, tiles=WHOLE))
        found.append(every_head(capture))
        captures.append(emptied(capture))
    over = spread(found)
    title, notes = heads_title(captures), tuple(dict.fromkeys(line for capture in captures for line in capture.notes))
    table = heads_table(
        Heads(title, head_names(captures[0].maps), over.mean, over.sd, notes),
        asked.options["sort"],
        reverse=asked.options["reverse"],
        most=asked.rows(AROUND + len(notes)),
        spread=asked.written or asked.on.width >= WIDE,
    )
    if keep == "tiles" and asked.options["source"] is None and max(len(one.maps[0].keys) for one in captures) > WHOLE:
        note("--full keeps all weights of a long text, for all columns; -l and -H choose fewer heads", asked.quiet)
    return Answer([table], document(captures, over), records(captures[0], over, several=len(found) > 1))


def names(capture: Capture) -> list[tuple[str, int, int | str]]:
    """The kind, layer and head of every head."""
    return [(part.kind, part.layers[i], part.heads[j]) for part, i, j in places(capture.maps)]


def every_head(capture: Capture) -> Measures:
    """The columns of all maps, (head,). Raises InputError if there is nothing to measure."""
    if not all(part.weights is not None or part.statistics for part in capture.maps):
        raise InputError("this capture holds neither weights nor statistics: there is nothing to measure")
    found = [measure(part) for part in capture.maps]
    return {name: np.concatenate([one[name].ravel() for one in found]) for name in COLUMNS}


def evened(capture: Capture) -> Capture:
    """The same, with a note if its rows do not sum to 1, as those do of which numbers are made.

    Raises UsageError for scores, of which none can be made.
    """
    methods = methods_of(capture.maps)
    if SCORES in methods:
        raise UsageError(NO_SHARES)
    given = any(part.method != ATTENTION or "max" in part.heads for part in capture.maps)
    told = EVENED + ", sinks included" * any(map(is_other, methods))
    return replace(capture, notes=(*capture.notes, *((told,) * given)))


def emptied(capture: Capture) -> Capture:
    """A capture without its numbers, which would fill memory with those of many texts; it says what was not kept."""
    partly = f"of {tokens_title(capture.maps)} only statistics were kept: columns that need all weights are left out"
    whole = all(part.weights is not None for part in capture.maps)
    maps = (
        replace(part, weights=None, tiles=None, statistics=None, edges=None, visible=np.array(True))
        for part in capture.maps
    )
    return replace(capture, maps=tuple(maps), notes=capture.notes if whole else (*capture.notes, partly))


def columns(unit: Unit = "token") -> list[dict[str, str]]:
    """What the columns are, for JSON, of maps between tokens or words."""
    units = {"tokens": f"{unit}s"}
    return [
        {
            "name": column.name,
            "definition": column.definition,
            "source": column.source,
            "unit": units.get(column.unit, column.unit),
        }
        for column in COLUMNS.values()
    ]


def document(captures: Sequence[Capture], over: Spread) -> dict[str, Any]:
    """Everything, for JSON."""
    first = captures[0]
    return {
        "model": first.model,
        "texts": [capture.text for capture in captures],
        "unit": first.maps[0].unit,
        "method": first.maps[0].method,
        "notes": list(dict.fromkeys(line for capture in captures for line in capture.notes)),
        "columns": columns(first.maps[0].unit),
        "heads": [
            {
                "kind": kind,
                "layer": layer,
                "head": head,
                "measures": {
                    name: {"mean": over.mean[name][i], "sd": over.sd[name][i], "n": int(over.texts[name][i])}
                    for name in COLUMNS
                },
            }
            for i, (kind, layer, head) in enumerate(names(first))
        ],
    }


def records(capture: Capture, over: Spread, *, several: bool) -> list[dict[str, Any]]:
    """A line a head, for CSV."""
    return [
        {
            "kind": kind,
            "layer": layer,
            "head": head,
            **{name: over.mean[name][i] for name in COLUMNS},
            **({f"{name}_sd": over.sd[name][i] for name in COLUMNS} if several else {}),
        }
        for i, (kind, layer, head) in enumerate(names(capture))
    ]


def one_token(source: Source, asked: Asked) -> Answer:
    """What a token gives to each of the others, and gets, in all heads. Raises UsageError if it is nowhere."""
    spot, found, errors = asked.options["token"], dict[str, Capture](), list[UsageError]()
    for heading, window in ((GIVES, {"query": spot}), (GETS, {"key": spot})):
        try:
            found[heading] = asked.take(source, **window)
        except UsageError as error:  # a token of one side of a cross-attention
            errors.append(error)
    if not found:
        raise errors[0]
    first = next(iter(found.values()))
    return Answer(
        token_tables(found, asked.rows()),
        {**told_of(first), **{heading: given_by_head(capture) for heading, capture in found.items()}},
        [line for capture in found.values() for line in cells(capture)],
    )


def token_tables(found: Mapping[str, Capture], most: int | None) -> list[Table]:
    """One table of what a token gives and gets, or two where it stands in one text and the others in another."""
    read = [(capture, *side(capture, heading)) for heading, capture in found.items()]
    if read[0][0].maps[0].kind != "cross":
        capture, _, one, others = read[0]
        return [token_table(capture, one, others, [of for _, of, _, _ in read], most)]
    return [token_table(capture, one, others, [of], most) for capture, of, one, others in read]


def one_cell(source: Source, asked: Asked) -> Answer:
    """The weight that one query gives to one key, in all heads."""
    capture = asked.take(source, query=asked.options["query"], key=asked.options["key"])
    return Answer([cell_heatmap(capture)], {**told_of(capture), **given_by_head(capture)}, list(cells(capture)))


def told_of(capture: Capture) -> dict[str, Any]:
    """What a document says of a capture besides its numbers."""
    return {
        "model": capture.model,
        "text": capture.text,
        "unit": capture.maps[0].unit,
        "method": capture.maps[0].method,
        "notes": list(capture.notes),
    }


def given_by_head(capture: Capture) -> dict[str, Any]:
    """The tokens of a window, and its weights by head; null where masked."""
    part = capture.maps[0]
    return {
        "queries": placed(part.queries, part.query_places),
        "keys": placed(part.keys, part.key_places),
        "heads": [
            {
                "kind": kind,
                "layer": layer,
                "head": head,
                "weights": decimals(np.where(panel(*place).visible, panel(*place).values, np.float32(np.nan))),
            }
            for (kind, layer, head), place in zip(names(capture), places(capture.maps), strict=True)
        ],
    }


def placed(tokens: Sequence[Token], at: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens for JSON, with their places in the whole text."""
    return [{"place": place, **token} for place, token in zip(at, token_list(tokens), strict=True)]


def cells(capture: Capture) -> Iterator[dict[str, Any]]:
    """A line for each cell of a window, for CSV; without a weight where it is masked."""
    for (kind, layer, head), place in zip(names(capture), places(capture.maps), strict=True):
        part, shown = place[0], panel(*place)
        weights = shown.values.astype(str)  # the shortest decimals that give the same float32 back
        for query, key in np.ndindex(weights.shape):
            yield {
                "kind": kind,
                "layer": layer,
                "head": head,
                "query": part.query_places[query],
                "query_token": part.queries[query].text,
                "key": part.key_places[key],
                "key_token": part.keys[key].text,
                "weight": str(weights[query, key]) if shown.visible[query, key] else None,
            }


def by_segment(source: Source, asked: Asked) -> Answer:
    """The share of attention that each segment of the text gets."""
    query = asked.options["query"]
    capture = evened(asked.take(source, query=query))
    try:
        segments = segments_of(capture, asked.options["segments"])
        parts = [shares(part, segments, None if query is None else 0) for part in capture.maps]
    except ValueError as error:
        raise InputError(f"--segments: {error}") from error
    found = by_head(parts)
    asker = None if query is None else sides(capture.maps[0])[0]
    table = segments_table(capture, segments, found, head_names(capture.maps), asker)
    lines = list(segment_lines(capture, segments, found))
    described = [{**one._asdict(), "tokens": int(found.tokens[i])} for i, one in enumerate(segments)]
    first = capture.maps[0]
    counted = None if query is None else placed(first.queries, first.query_places)[0]
    return Answer([table], {**told_of(capture), "query": counted, "segments": described, "shares": lines}, lines)


def by_head(parts: Sequence[Shares]) -> Shares:
    """The shares of several maps as of one: arrays (head, segment)."""

    def heads(arrays: Iterable[Doubles]) -> Doubles:
        return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])

    return Shares(
        heads(one.share for one in parts),
        heads(one.baseline for one in parts),
        heads(one.rest_share for one in parts),
        heads(one.rest_baseline for one in parts),
        parts[0].tokens,
    )


def segments_of(capture: Capture, name: str) -> tuple[Segment, ...]:
    """The segments of a file, or those of the text: messages of a chat, or else paragraphs. Raises ValueError."""
    own = name == "auto"
    found = (capture.segments or paragraphs(capture.text)) if own else parse(read_text(Path(name), MOST))
    require_fit(found, capture.text)
    return found


def segment_lines(capture: Capture, segments: Sequence[Segment], found: Shares) -> Iterator[dict[str, Any]]:
    """A line for each head and segment."""
    for i, (kind, layer, head) in enumerate(names(capture)):
        for j, one in enumerate(segments):
            yield {
                "kind": kind,
                "layer": layer,
                "head": head,
                "segment": one.name,
                "tokens": int(found.tokens[j]),
                "share": found.share[i, j],
                "baseline": found.baseline[i, j],
                "lift": found.lift[i, j],
                "rest_share": found.rest_share[i, j],
                "rest_baseline": found.rest_baseline[i, j],
                "rest_lift": found.rest_lift[i, j],
                "share_per_token": found.per_token[i, j],
            }


Question: TypeAlias = Callable[[Source, Asked], Answer]
MODES: dict[str, Question] = {"token": one_token, "key": one_cell, "segments": by_segment}
