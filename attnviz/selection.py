"""How layers, heads, tokens and edges are named, and how they are found in a capture.

Layers and heads are written `3`, `-1`, `0,3,7`, `2-5`, `-3--1` or `all`, heads also `L5H3,L2H1`. A
selection is parsed before the model is known, and resolved when its layers and heads can be
counted.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, TypeAlias, TypeVar

from attnviz.errors import InputError, UsageError
from attnviz.escape import label, require_unicode
from attnviz.record import AttentionMap, Capture, Kind, Token

RANGE = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")
HEAD = re.compile(r"L(-?\d{1,9})H(-?\d{1,9})", re.IGNORECASE)
WINDOW = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")
PLACE = re.compile(r"-?\d{1,9}", re.ASCII)
MOST_NAMED = 12  # tokens, positions or characters in an error of one line
LONGEST = 40  # characters of what was asked for in it
Head = tuple[int, int]
HeadBlock = tuple[tuple[int, ...], tuple[int, ...]]
MapTokens = tuple[tuple[Token, ...], tuple[Token, ...]]  # queries and keys


@dataclass(frozen=True)
class Selection:
    """Parts of a numbered row; without parts, all of it.

    Each part is the first and the last number, where -1 is the last of the row.
    """

    parts: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        """Return the selection as it is written on the command line."""
        if self.parts is None:
            return "all"
        return ",".join(format_range(first, last) for first, last in self.parts)

    @property
    def is_one(self) -> bool:
        """True if it names one number."""
        if self.parts is None or len(self.parts) != 1:
            return False
        first, last = self.parts[0]
        return first == last

    def resolve(self, numbers: Sequence[int], noun: str) -> tuple[int, ...]:
        """Return the chosen ones of some numbers, in the order given, each once.

        noun: what is counted, for the error. Raises UsageError if a number is not there.
        """
        if self.parts is None:
            return tuple(numbers)
        chosen: dict[int, None] = {}
        for first, last in self.parts:
            start, stop = find_number(first, numbers, noun), find_number(last, numbers, noun)
            if start > stop:
                raise UsageError(f"{noun}s {first}-{last} run backwards: write {last}-{first}")
            chosen.update((number, None) for number in numbers if start <= number <= stop)
        return tuple(chosen)


def format_range(first: int, last: int) -> str:
    """Return a range as it is written on the command line."""
    return str(first) if first == last else f"{first}-{last}"


ALL = Selection()


@dataclass(frozen=True)
class HeadNames:
    """Heads that are named one by one, each by its layer and its number."""

    heads: tuple[Head, ...]

    def __str__(self) -> str:
        """Return the heads as they are written on the command line."""
        return ",".join(f"L{layer}H{head}" for layer, head in self.heads)

    @property
    def is_one(self) -> bool:
        """True if it names one head."""
        return len(self.heads) == 1


def parse_numbers(text: str) -> Selection:
    """Parse a choice of layers or heads by number. Raises ValueError saying what is allowed."""
    if text.strip().lower() == "all":
        return ALL
    parts = []
    for written in text.split(","):
        match = RANGE.fullmatch(written.strip())
        if not match:
            allowed = "3, -1, 0,3,7, 2-5 or all"
            raise ValueError(f"{written.strip()!r} is no number or range: write {allowed}")
        first, last = match.groups()
        parts.append((int(first), int(first if last is None else last)))
    return Selection(tuple(parts))


def parse_heads(text: str) -> Selection | HeadNames:
    """Parse a choice of heads, by number or as L5H3. Raises ValueError saying what is allowed."""
    matches = [HEAD.fullmatch(part.strip()) for part in text.split(",")]
    if not any(matches):
        return parse_numbers(text)
    if not all(matches):
        raise ValueError(f"{text!r} mixes names and numbers: write L5H3,L2H1 or 0,3,7")
    return HeadNames(tuple((int(match[1]), int(match[2])) for match in matches if match))


def resolve_blocks(
    layers: Selection,
    heads: Selection | HeadNames,
    there: Mapping[int, Sequence[int]],
) -> tuple[HeadBlock, ...]:
    """Return blocks of layers and heads that cover a choice.

    There is one block, or one a layer for named heads, or one for each run of layers that have the
    same heads. there: the numbers of the heads of each layer. Raises UsageError for a layer or a
    head that is not there.
    """
    numbers = tuple(there)
    if isinstance(heads, HeadNames):
        return resolve_names(heads, there)
    chosen = [
        (layer, heads.resolve(there[layer], "head")) for layer in layers.resolve(numbers, "layer")
    ]
    runs = groupby(chosen, key=itemgetter(1))
    return tuple((tuple(layer for layer, _ in run), of_each) for of_each, run in runs)


def resolve_names(heads: HeadNames, there: Mapping[int, Sequence[int]]) -> tuple[HeadBlock, ...]:
    """Return a block for each layer of named heads. Raises UsageError for one that is not there."""
    numbers = tuple(there)
    layers = [find_number(layer, numbers, "layer") for layer, _ in heads.heads]
    heads_of_layers: dict[int, list[int]] = {}
    for layer, (_, number) in zip(layers, heads.heads, strict=True):
        head = find_number(number, there[layer], "head")
        heads_of_layer = heads_of_layers.setdefault(layer, [])
        if head not in heads_of_layer:
            heads_of_layer.append(head)
    return tuple(((layer,), tuple(chosen)) for layer, chosen in heads_of_layers.items())


def find_number(number: int, numbers: Sequence[int], noun: str) -> int:
    """Return a number that is there, or is counted from the end because it is negative.

    noun: what is counted, for the error. Raises UsageError if the number is not there.
    """
    count = len(numbers)
    if number in numbers:
        return number
    if -count <= number < 0:
        return numbers[number]
    are_counted_from_0 = tuple(numbers) == tuple(range(count))
    known = f"0-{count - 1}" if are_counted_from_0 else ", ".join(map(str, numbers))
    raise UsageError(
        f"{noun} {number} does not exist: here are {count} {noun}s ({known}, or -{count}--1)",
    )


def parse_window(text: str) -> slice:
    """Parse A:B, :B or A:, tokens from A up to before B.

    Raises ValueError saying what is allowed.
    """
    match = WINDOW.fullmatch(text.strip())
    if not match or text.strip() == ":":
        raise ValueError(f"{text!r} is no window: write 100:200, :50 or -50:")
    first, last = (int(part) if part else None for part in match.groups())
    return slice(first, last)


def parse_token(text: str) -> "TokenReference":
    """Parse a token: its number, or what it says.

    Raises ValueError for nothing, InputError for a text that is no Unicode.
    """
    require_unicode(text, "the name of a token")
    written = text.strip()
    if not written:
        raise ValueError("a token is named by its number or by what it says")
    return TokenReference(int(written) if PLACE.fullmatch(written) else written)


class TokenReference(NamedTuple):
    """One token of a text, by its number or by what it says."""

    name: int | str

    def resolve(self, tokens: Sequence[Token]) -> slice:
        """Return the window that holds the token alone.

        Raises UsageError if it is not there, or more than once; InputError for a name that is no
        Unicode.
        """
        if isinstance(self.name, int):
            position = find_number(self.name, range(len(tokens)), "token")
            return slice(position, position + 1)
        require_unicode(self.name, "the name of a token")
        positions = find_spelling(self.name, tokens)
        if not positions:
            positions = find_spelling(self.name.casefold(), tokens, str.casefold)
        if len(positions) == 1:
            return slice(positions[0], positions[0] + 1)
        name = label(self.name)[:LONGEST]
        why = explain_mismatch(self.name, positions, tokens)
        raise UsageError(f"token {name!r} {why}; choose one by its number")


def find_spelling(
    name: str, tokens: Sequence[Token], fold: Callable[[str], str] = str
) -> list[int]:
    """Return the positions of the tokens that say something. fold: makes their texts comparable."""
    return [
        position
        for position, token in enumerate(tokens)
        if name in (fold(token.text), fold(label(token.text)))
    ]


def explain_mismatch(name: str, positions: Sequence[int], tokens: Sequence[Token]) -> str:
    """Say what there is in place of one token of that name."""
    if positions:
        return f"occurs {len(positions)} times, at {join_names(list(map(str, positions)))}"
    parts = find_pieces(name, tokens)
    if parts:
        return f"is several tokens: {number_tokens(tokens, parts)}"
    return f"does not occur: here are {number_tokens(tokens, range(len(tokens)))}"


def find_pieces(name: str, tokens: Sequence[Token]) -> range:
    """Return the positions of neighbouring tokens that together say something, but for white space.

    Empty if there are none.
    """
    wanted = "".join(name.split())
    for start in range(len(tokens)):
        text = ""
        for stop in range(start, len(tokens)):
            text += tokens[stop].text
            if text == wanted:
                return range(start, stop + 1)
            if not wanted.startswith(text):
                break
    return range(0)


def number_tokens(tokens: Sequence[Token], positions: Sequence[int]) -> str:
    """Return tokens with their numbers, as many as one line can hold."""
    return join_names([f"{i} {label(tokens[i].text)[:MOST_NAMED]}" for i in positions])


def join_names(names: Sequence[str]) -> str:
    """Return names parted by commas, as many as one line can hold."""
    shown = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        shown.append("...")
    return ", ".join(shown)


def require_window(window: slice, tokens: Sequence[Token], noun: str) -> range:
    """Return the positions of a window among tokens. Raises UsageError if it holds none."""
    count = len(tokens)
    positions = range(count)[window]
    if not positions:
        start = "" if window.start is None else window.start
        stop = "" if window.stop is None else window.stop
        raise UsageError(
            f"{noun} {start}:{stop} holds no tokens: there are {count} (0-{count - 1})",
        )
    return positions


def require_window_sides(rows: slice, columns: slice, sides: MapTokens) -> tuple[range, range]:
    """Return the positions of the queries and of the keys of a window.

    Raises UsageError if it holds no tokens.
    """
    queries, keys = sides
    return require_window(rows, queries, "--rows"), require_window(columns, keys, "--cols")


def note_windows(rows: slice, columns: slice, maps: Iterable[MapTokens]) -> tuple[str, ...]:
    """Say where a window lies in maps of such queries and keys, each line once.

    Raises UsageError if it holds no tokens.
    """
    lines: dict[str, None] = {}
    for queries, keys in maps:
        query_positions, key_positions = require_window_sides(rows, columns, (queries, keys))
        sides = [
            describe_positions(query_positions, len(queries), "query", "queries"),
            describe_positions(key_positions, len(keys), "key", "keys"),
        ]
        line = ", ".join(side for side in sides if side)
        if line:
            lines[line] = None
    return tuple(lines)


def describe_positions(positions: range, count: int, one: str, many: str) -> str:
    """Say which of so many tokens a window holds; nothing where it holds all.

    one, many: the noun.
    """
    if len(positions) == count:
        return ""
    if len(positions) == 1:
        return f"{one} {positions[0]} of {count}"
    return f"{many} {positions[0]}-{positions[-1]} of {count}"


def require_same_tokens(maps: Sequence[AttentionMap], advice: str) -> None:
    """Raise InputError, with advice, unless all maps have the same queries and the same keys."""
    first = maps[0]
    for other in maps:
        if (other.queries, other.keys) != (first.queries, first.keys):
            raise InputError(f"the maps of this capture are not of the same tokens: {advice}")


def select_heads(
    capture: Capture,
    layers: Selection,
    heads: Selection | HeadNames,
    kinds: Sequence[Kind] = (),
) -> Capture:
    """Return some layers and heads of a capture, of maps of some kinds, by default of all.

    Raises UsageError for what is not there.
    """
    there = tuple(dict.fromkeys(each.kind for each in capture.maps))
    maps: list[AttentionMap] = []
    for kind in require_kinds(kinds, there):
        of_kind = [each for each in capture.maps if each.kind == kind]
        are_reduced = any(isinstance(each.heads[0], str) for each in of_kind)
        if are_reduced:  # there is nothing to choose among their heads
            maps += [keep_layers(each, layers) for each in of_kind]
        else:
            maps += select_heads_of(of_kind, layers, heads)
    return replace(capture, maps=tuple(maps))


def keep_layers(attention_map: AttentionMap, layers: Selection) -> AttentionMap:
    """Return some layers of a map. Raises UsageError for a layer that is not there."""
    chosen = layers.resolve(attention_map.layers, "layer")
    indices = [attention_map.layers.index(layer) for layer in chosen]
    return attention_map.part(indices, range(len(attention_map.heads)))


def select_heads_of(
    maps: Sequence[AttentionMap],
    layers: Selection,
    heads: Selection | HeadNames,
) -> list[AttentionMap]:
    """Return some layers and heads of maps of one kind, none of which holds a layer of another.

    Raises UsageError for what is not there.
    """
    map_of_layer = {layer: each for each in maps for layer in each.layers}
    numbers = {layer: each.heads for layer, each in map_of_layer.items()}
    chosen = []
    for block_layers, block_heads in resolve_blocks(layers, heads, numbers):  # type: ignore[arg-type]
        for attention_map, run in group_by_map(block_layers, map_of_layer):
            layer_indices = [attention_map.layers.index(layer) for layer in run]
            head_indices = [attention_map.heads.index(head) for head in block_heads]
            chosen.append(attention_map.part(layer_indices, head_indices))
    return chosen


def group_by_map(
    layers: Sequence[int],
    map_of_layer: Mapping[int, AttentionMap],
) -> list[tuple[AttentionMap, list[int]]]:
    """Group neighbouring layers that stand in one map, each group with its map."""
    groups: list[tuple[AttentionMap, list[int]]] = []
    for layer in layers:
        attention_map = map_of_layer[layer]
        if groups and groups[-1][0] is attention_map:
            groups[-1][1].append(layer)
        else:
            groups.append((attention_map, [layer]))
    return groups


def require_kinds(
    wanted: Sequence[Kind],
    there: Sequence[Kind],
    preferred: Sequence[Kind] = (),
) -> Sequence[Kind]:
    """Return the wanted kinds of map, else the first preferred one that is there, else all.

    Raises UsageError if a wanted kind is not there.
    """
    for kind in wanted:
        if kind not in there:
            raise UsageError(f"there is no {kind} map here: only {', '.join(there)}")
    if wanted:
        return wanted
    for kind in preferred:
        if kind in there:
            return [kind]
    return there


EVERY_TOKEN = "*"
ARROW = re.compile(r"\s*(\S.*?)\s*->\s*(\S.*?)\s*", re.DOTALL)
"""At the first arrow that leaves something before it."""
EdgeNames: TypeAlias = tuple[TokenReference | None, TokenReference | None]
"""The query and the key of an edge; None for all."""


def parse_edge(text: str) -> EdgeNames:
    """Parse Q->K, each a number, a word, or * for all. Raises ValueError saying what is allowed."""
    match = ARROW.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no edge: write query->key, such as 'it->cat', '8->2' or '*->cat'",
        )
    query, key = (None if side == EVERY_TOKEN else parse_token(side) for side in match.groups())
    return query, key


def parse_head_names(text: str) -> HeadNames:
    """Parse heads by name. Raises ValueError saying what is allowed."""
    try:
        heads = parse_heads(text)
    except ValueError:
        heads = ALL
    if not isinstance(heads, HeadNames):
        raise ValueError(f"{text!r} names no head: write L5H3 or L5H3,L2H1")
    return heads


Choice = TypeVar("Choice", Selection, Selection | HeadNames)


def require_choice(choice: object, parser: Callable[[str], Choice]) -> Choice:
    """Return layers or heads that were chosen as on the command line, by a number or as an object.

    Raises UsageError.
    """
    if isinstance(choice, (Selection, HeadNames)):
        return choice  # type: ignore[return-value]
    try:
        return parser(str(choice))
    except ValueError as error:
        raise UsageError(str(error)) from error
