"""The record of a capture: tokens and attention maps.

Frozen NumPy arrays that check themselves; a record knows no model, no file and no medium.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["self", "encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = "self", "encoder", "decoder", "cross"
Reduction: TypeAlias = Literal["mean", "max"]
Unit: TypeAlias = Literal["token", "word"]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Weights: TypeAlias = Floats
Visible: TypeAlias = npt.NDArray[np.bool_]
KeyNumbers: TypeAlias = npt.NDArray[np.int32]
"""The number of the group that each key belongs to, (key,)."""
Method: TypeAlias = Literal["attention", "norm", "gradient", "scores"]
ATTENTION, FROM_ELSEWHERE = "attention", "given"
NORM, GRADIENT, SCORES = "norm", "gradient", "scores"
ROLLOUT, CHEFER = "rollout", "chefer"  # made of the attention, and of the gradients, of all layers
ROW_TOLERANCE = 1e-2  # half-precision models round; a row above 1 by more than this is no attention


class Token(NamedTuple):
    """A token and where it stands in the user's text."""

    text: str
    """The slice of the user's text, or the name of a special token."""
    id: int
    start: int
    """In characters of its text; start == end where the token stands for no text."""
    end: int
    special: bool
    segment: int = 0
    """0 for a token of the text, 1 for one of the second text of a pair."""

    @classmethod
    def of(
        cls,
        name: str,
        number: int,
        span: tuple[int, int],
        special: bool,
        text: str,
        segment: int = 0,
    ) -> "Token":
        """Make a token from what a tokenizer says of it.

        name: the tokenizer's own name of the token, which is kept for a special token only. number:
        its id. span: where it starts and ends in the text, in characters. text: the whole text of
        the user. segment: 1 if that is the second text of a pair.

        White space at the ends of a token is left out, unless the token is nothing else. Some
        tokenizers include the space before a word and others do not; without it their tokens can be
        compared.
        """
        start, end = span
        if special:
            return cls(name, number, start, end, special=True, segment=segment)
        token_text = text[start:end]
        stripped = token_text.strip()
        if stripped:
            start += token_text.index(stripped)
            end = start + len(stripped)
        return cls(text[start:end], number, start, end, special=False, segment=segment)


class Segment(NamedTuple):
    """A part of a text that has a name: a message of a chat, a document, a paragraph."""

    name: str
    start: int
    """In characters of its text."""
    end: int


@dataclass(frozen=True, eq=False)
class Tiles:
    """Weights pooled over tiles of neighbouring queries and keys: (layer, head, row, column)."""

    mean: Floats
    """Sum of the weights in a tile over its cells, masked ones counted."""
    max: Floats
    height: int
    """Queries a tile; the last row of tiles may have fewer."""
    width: int
    """Keys a tile, likewise."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What each head does with its weights, in numbers. The first axes are (layer, head)."""

    entropy: Floats
    """(layer, head, query): -sum of w log w, in nats."""
    received: Floats
    """(layer, head, key): mean weight that a key gets from the queries that see another key too.

    A query with one visible key gives it everything by force, and says nothing.
    """
    sink: Floats
    """(layer, head): what the first key received."""
    distance: Floats | None = None
    """(layer, head): mean of |query - key| over the weight, in tokens.

    None between two texts, as the next two."""
    diagonal: Floats | None = None
    """(layer, head): mean weight of a query on itself."""
    previous: Floats | None = None
    """(layer, head): mean weight of a query, from the second on, on the token before it."""


@dataclass(frozen=True, eq=False)
class Edges:
    """The strongest edges of each query, in falling order: (layer, head, query, rank)."""

    keys: npt.NDArray[np.int32]
    weights: Floats


@dataclass(frozen=True, eq=False)
class KeyGroups:
    """What each query gives to groups of keys, such as the tokens of a segment, all together."""

    numbers: KeyNumbers
    """(key,): the number of the group that each key belongs to."""
    weights: Floats
    """(layer, head, query, group): the sum of the weights of the keys in a group."""
    seen: npt.NDArray[np.int32]
    """How many keys of a group a query may see, (layer or 1, head or 1, query or 1, group)."""


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention of some layers and heads: rows are queries, columns keys.

    It holds weights, or what was made of them. Raises ValueError if shapes disagree, if a weight is
    NaN or negative though it is no score, or if a row of attention sums to more than 1.
    """

    kind: Kind
    layers: tuple[int, ...]
    heads: tuple[int | str, ...]
    """Numbers, or one name such as "mean" for a reduction over heads."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]
    weights: Weights | None
    """(layer, head, query, key), 0 where masked; None where only tiles, statistics or edges were
    kept."""
    visible: Visible
    """Broadcasts to the shape of the weights, or of the tiles; True where a query may attend."""
    method: str = ATTENTION
    """``attention``, or what the numbers are instead; their rows need not sum to 1.

    ``norm``: lengths of the vectors that attention moves; ``gradient``: what weights add to a
    prediction; ``scores``: before the softmax; ``rollout`` of attention and ``chefer`` of gradients
    through the layers; ``given``: from elsewhere."""
    tiles: Tiles | None = None
    statistics: Statistics | None = None
    edges: Edges | None = None
    groups: KeyGroups | None = None
    """Kept beside tiles, statistics or edges where segments of the text were named."""
    query_places: tuple[int, ...] = ()
    """Positions of the queries in the whole text, of which the map may show a part."""
    key_places: tuple[int, ...] = ()
    unit: Unit = "token"
    """What queries and keys are; of words, the weights of their tokens are merged."""

    def __post_init__(self) -> None:
        """Complete the positions and the mask, and check all arrays.

        Positions that were not passed count from 0. The mask is broadcast to the shape of the
        weights, or of the tiles. Raises ValueError for arrays that do not fit each other.
        """
        query_places = require_places(self.query_places, len(self.queries))
        key_places = require_places(self.key_places, len(self.keys))
        object.__setattr__(self, "query_places", query_places)
        object.__setattr__(self, "key_places", key_places)
        shape = len(self.layers), len(self.heads), len(self.queries), len(self.keys)
        if self.weights is not None:
            require_attention(self.weights, shape, self.method, sums="max" not in self.heads)
        require_layers_and_heads(self.statistics, shape[:2])
        require_layers_and_heads(self.edges, shape[:2])
        if self.groups is not None:
            require_groups(self.groups, shape)
        mask_shape = shape if self.tiles is None else require_tiles(self.tiles, shape)
        object.__setattr__(self, "visible", np.broadcast_to(self.visible, mask_shape))
        if self.weights is not None:
            require_zero_where_masked(self.weights, self.visible)

    def __repr__(self) -> str:
        """Say in one line what the map is of."""
        return f"<AttentionMap: {self.describe()}>"

    def describe(self) -> str:
        """Describe the map: its kind, how many tokens, layers and heads, and what it holds."""
        units = f"{self.unit}s"
        size = f"{len(self.keys)} {units}"
        if self.queries != self.keys:
            size = f"{len(self.queries)} x {size}"
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        heads = "1 head" if len(self.heads) == 1 else f"{len(self.heads)} heads"
        kept = "weights" if self.method == ATTENTION else self.method
        if self.weights is None:
            kept = "tiles" if self.tiles else "statistics"
        if self.groups is not None:
            kept += " and segments"
        return f"{self.kind}-attention, {size}, {layers} x {heads}, {kept}"

    def pick_heads(self, layers: Sequence[int], heads: Sequence[int]) -> "AttentionMap":
        """Return a map of some layers and heads, with all that is kept of them.

        layers, heads: their indices in this map, which are not the numbers that name them.
        """
        index = np.ix_(layers, heads)

        def pick(group: Any) -> Any:
            """Return tiles, statistics or edges of the chosen heads only; None for None."""
            if group is None:
                return None
            picked = {name: array[index] for name, array in named_arrays(group).items()}
            return replace(group, **picked)

        return replace(
            self,
            layers=tuple(self.layers[i] for i in layers),
            heads=tuple(self.heads[i] for i in heads),
            weights=None if self.weights is None else self.weights[index],
            visible=self.visible[index],
            tiles=pick(self.tiles),
            statistics=pick(self.statistics),
            edges=pick(self.edges),
            groups=pick_groups_of_heads(self.groups, index),
        )

    def window(self, rows: Sequence[int], columns: Sequence[int]) -> "AttentionMap":
        """Return a map of some queries and keys, which holds their weights and nothing else.

        rows, columns: the indices of these queries and keys in this map; consecutive ones where
        they are ranges. Raises ValueError if this map has no weights.
        """
        if self.weights is None:
            raise ValueError("a part of a text shows weights, and this map has none")
        index: Any
        if isinstance(rows, range) and isinstance(columns, range):  # without a copy
            index = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        else:
            index = (..., np.asarray(rows, int)[:, None], np.asarray(columns, int))
        return AttentionMap(
            kind=self.kind,
            layers=self.layers,
            heads=self.heads,
            queries=tuple(self.queries[i] for i in rows),
            keys=tuple(self.keys[i] for i in columns),
            weights=self.weights[index],
            visible=self.visible[index],
            method=self.method,
            query_places=tuple(self.query_places[i] for i in rows),
            key_places=tuple(self.key_places[i] for i in columns),
            unit=self.unit,
        )

    def pick_queries_of_groups(self, rows: Sequence[int]) -> "AttentionMap":
        """Return a map of some queries, which holds what they give to groups of keys alone.

        rows: the indices of these queries in this map. Raises ValueError if this map has no groups.
        """
        if self.groups is None:
            raise ValueError("this map does not hold what its queries give to groups of keys")
        indices = np.asarray(rows, int)
        weights = self.groups.weights[:, :, indices]
        seen = self.groups.seen
        if seen.shape[2] > 1:
            seen = seen[:, :, indices]
        return AttentionMap(
            kind=self.kind,
            layers=self.layers,
            heads=self.heads,
            queries=tuple(self.queries[i] for i in rows),
            keys=self.keys,
            weights=None,
            visible=np.array(True),
            method=self.method,
            groups=KeyGroups(self.groups.numbers, weights, seen),
            query_places=tuple(self.query_places[i] for i in rows),
            key_places=self.key_places,
            unit=self.unit,
        )

    def cover_window(self, rows: Sequence[int], columns: Sequence[int]) -> "AttentionMap":
        """Return a map of the tiles that cover some queries and keys, and of nothing else.

        rows, columns: the indices of consecutive queries and keys in this map. The queries and keys
        of the result are all those of its tiles, which may be a few more. Raises ValueError if this
        map has no tiles.
        """
        if self.tiles is None:
            raise ValueError("a part of a text shows weights or tiles, and this map has neither")
        tile_rows, queries = find_covering_tiles(rows, self.tiles.height, len(self.queries))
        tile_columns, keys = find_covering_tiles(columns, self.tiles.width, len(self.keys))
        index = (..., tile_rows, tile_columns)
        tiles = replace(self.tiles, mean=self.tiles.mean[index], max=self.tiles.max[index])
        return AttentionMap(
            kind=self.kind,
            layers=self.layers,
            heads=self.heads,
            queries=self.queries[queries],
            keys=self.keys[keys],
            weights=None,
            visible=self.visible[index],
            method=self.method,
            tiles=tiles,
            query_places=self.query_places[queries],
            key_places=self.key_places[keys],
            unit=self.unit,
        )

    def reduced(self, how: Reduction) -> "AttentionMap":
        """Return a map whose heads are merged into one, by their mean or maximum in each layer.

        how: ``mean`` or ``max``, which also names that head. It is done to weights and tiles, while
        of statistics it is always the mean; edges and groups are dropped. A
        cell of the result is visible if
        it is so in any head.
        """

        def merge(array: Any, function: str = how) -> Any:  # over axis 1, the heads
            return getattr(np, function)(array, axis=1, keepdims=True)

        tiles, statistics = self.tiles, self.statistics
        if tiles is not None:
            tiles = replace(tiles, mean=merge(tiles.mean), max=merge(tiles.max))
        if statistics is not None:
            arrays = named_arrays(statistics)
            means = {name: merge(array, "mean") for name, array in arrays.items()}
            statistics = Statistics(**means)
        return AttentionMap(
            kind=self.kind,
            layers=self.layers,
            heads=(how,),
            queries=self.queries,
            keys=self.keys,
            weights=None if self.weights is None else merge(self.weights),
            visible=np.any(self.visible, axis=1, keepdims=True),
            method=self.method,
            tiles=tiles,
            statistics=statistics,
            query_places=self.query_places,
            key_places=self.key_places,
            unit=self.unit,
        )


def named_arrays(group: Tiles | Statistics | Edges) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a dataclass by name, without the fields that are None or no array."""
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def pick_groups_of_heads(groups: KeyGroups | None, index: Any) -> KeyGroups | None:
    """Return what is kept of groups of keys for some layers and heads; None for None.

    index: that of the layers and heads, as ``np.ix_`` makes it.
    """
    if groups is None:
        return None
    layers, heads = index
    seen = groups.seen
    if len(seen) > 1:
        seen = seen[layers.ravel()]
    if seen.shape[1] > 1:
        seen = seen[:, heads.ravel()]
    return replace(groups, weights=groups.weights[index], seen=seen)


def find_covering_tiles(positions: Sequence[int], size: int, count: int) -> tuple[slice, slice]:
    """Find the tiles along a side that cover some consecutive tokens, and the tokens of these.

    positions: of the tokens. size: the number of tokens of a tile. count: how many tokens there
    are. Returns the indices of the tiles, and those of their tokens.
    """
    first = positions[0] // size
    stop = positions[-1] // size + 1
    return slice(first, stop), slice(first * size, min(stop * size, count))


def require_groups(groups: KeyGroups, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless what is kept of groups of keys fits a map.

    shape: the lengths (layer, head, query, key) of the map.
    """
    *lead, key_count = shape
    *group_lead, group_count = groups.weights.shape
    fits_queries = group_lead == lead and groups.numbers.shape == (key_count,)
    if not fits_queries:
        raise ValueError(
            f"groups of keys have shapes {groups.numbers.shape} and {groups.weights.shape}, "
            f"which do not fit (layer, head, query, key) = {shape}",
        )
    if not 0 <= groups.numbers.min() <= groups.numbers.max() < group_count:
        raise ValueError(f"keys are in groups that are not there: there are {group_count}")
    np.broadcast_to(groups.seen, groups.weights.shape)


def require_attention(
    weights: Weights,
    shape: tuple[int, ...],
    method: str,
    *,
    sums: bool,
) -> None:
    """Raise ValueError unless an array can hold attention weights, or the numbers of a method.

    shape: the lengths (layer, head, query, key) that it must have. method: what the numbers are;
    only ``scores`` may be negative. sums: no row of attention weights may sum to more than 1;
    without it, for a maximum over heads, no single weight may be more.
    """
    if weights.shape != shape:
        raise ValueError(
            f"weights have shape {weights.shape}, not (layer, head, query, key) = {shape}",
        )
    if 0 in shape:
        return
    least, highest = weights.min(), weights.max()
    are_finite = np.isfinite(least) and np.isfinite(highest)
    has_wrong_sign = least < 0 and method != SCORES
    if not are_finite or has_wrong_sign:
        raise ValueError("attention weights must be numbers of 0 or more")
    if method != ATTENTION:
        return
    totals = weights.sum(-1) if sums else weights
    largest = float(totals.max())
    if largest > 1 + ROW_TOLERANCE:
        raise ValueError(f"each row of attention weights must sum to at most 1, not {largest:.4g}")


def require_zero_where_masked(weights: Weights, visible: Visible) -> None:
    """Raise ValueError unless weights are 0 wherever a query may not attend.

    weights, visible: (layer, head, query, key), visible being True where a query may attend.
    """
    for layer in range(len(weights)):
        for head in range(weights.shape[1]):  # one by one: a copy of all of them may not fit
            if weights[layer, head][~visible[layer, head]].any():
                raise ValueError("attention weights must be 0 where masked")


def require_places(places: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the positions of the tokens of a map in the whole text.

    places: one for each of the ``count`` tokens, in rising order; empty for 0, 1, 2 and so on.
    Raises ValueError for a wrong number of positions or another order.
    """
    positions = places or tuple(range(count))
    rises = all(last < following for last, following in pairwise(positions))
    if len(positions) != count or not rises:
        raise ValueError(f"{count} tokens need as many places in rising order")
    return positions


def require_layers_and_heads(group: Statistics | Edges | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError if an array of statistics or edges has a wrong number of layers or heads.

    group: its arrays have the axes (layer, head, ...); None is allowed. shape: the numbers of
    layers and heads that they must have.
    """
    if group is None:
        return
    for array in named_arrays(group).values():
        if array.shape[:2] != shape:
            raise ValueError(
                f"statistics or edges have shape {array.shape}, not (layer, head, ...) = {shape}",
            )


def require_tiles(tiles: Tiles, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (layer, head, row, column) that tiles must have to cover a map.

    shape: the lengths (layer, head, query, key) of the map. Raises ValueError if the arrays of the
    tiles have another shape.
    """
    *layers_and_heads, queries, keys = shape
    rows = math.ceil(queries / tiles.height)
    columns = math.ceil(keys / tiles.width)
    expected = (*layers_and_heads, rows, columns)
    if tiles.mean.shape != expected or tiles.max.shape != expected:
        raise ValueError(
            f"tiles have shapes {tiles.mean.shape} and {tiles.max.shape}, not {expected}",
        )
    return expected


class Presentable(ABC):
    """Something that a notebook shows and pandas holds: a capture, or a result."""

    write_html: ClassVar[Callable[[Any], str] | None] = None
    """Makes what a notebook shows. ``attnviz.notebook`` sets it: a record knows no medium."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return everything as a document for JSON."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of a table, all with the same names."""

    def to_frame(self) -> Any:
        """Return the rows as a pandas.DataFrame.

        Raises ImportError where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pd.DataFrame(self.rows())

    def _repr_html_(self) -> str | None:
        """Return the HTML that a notebook shows; None, for plain text, if nothing here makes it."""
        write = type(self).write_html
        return None if write is None else write(self)


@dataclass(frozen=True, eq=False)
class Capture(Presentable):
    """What a model did with a text."""

    model: str
    text: str
    maps: tuple[AttentionMap, ...]
    notes: tuple[str, ...] = ()
    """What the reader should know of how this came about: truncation, for example."""
    pair: str | None = None
    """The second text of a pair."""
    target: str | None = None
    """The text of the decoder of an encoder-decoder."""
    fidelity: float | None = None
    """Largest difference between weights times values and the output that the model went on with.

    As a share of that layer's largest output; None where it was not measured."""
    segments: tuple[Segment, ...] = ()
    """The messages of a chat, or the segments that a capture without weights was made for."""
    fidelity_reference: str | None = None
    """What the fidelity was measured against; None where it was not measured."""
    output_change: float | None = None
    """How much the output of the model changes while its attention is read, as a share of it; None
    if not measured."""

    write_document: ClassVar[Callable[["Capture"], dict[str, Any]] | None] = None
    list_rows: ClassVar[Callable[["Capture"], list[dict[str, Any]]] | None] = None
    """Make the document and the rows. ``attnviz.notebook`` sets them: a record knows no format."""

    def __repr__(self) -> str:
        """Say in one line what the capture is of."""
        return f"<Capture of {self.model}: {'; '.join(each.describe() for each in self.maps)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the document that ``attnviz show --json`` prints, without its ``schema`` entry."""
        write = type(self).write_document
        assert write is not None, "import attnviz, not attnviz.record alone"
        return write(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each weight that is not masked, as in ``attnviz show -o FILE.csv``."""
        list_rows = type(self).list_rows
        assert list_rows is not None, "import attnviz, not attnviz.record alone"
        return list_rows(self)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write a file as ``attnviz.save`` does, with a warning that this method is deprecated."""
        from attnviz.io import formats  # the one import of ours here, for as long as this stays

        warnings.warn(
            "Capture.save goes with the next version: write attnviz.save(capture, path)",
            DeprecationWarning,
            stacklevel=2,
        )
        formats.save(self, path, force=force)
