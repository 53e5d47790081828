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
from attnviz.escape import label_token, require_unicode
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
        """Return the numbers that the selection chooses among some numbers, each once.

        They are in the order of the ranges of the selection. numbers: those of the layers, or of
        the heads, that there are. noun: "layer" or "head", for errors.

        Raises UsageError for a number that is not there, and for a range that runs backwards.
        """
        if self.parts is None:
            return tuple(numbers)
        chosen: dict[int, None] = {}  # ordered, each number once
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
    """Parse numbers of layers or heads, such as ``0,3``, ``2-5``, ``-1`` or ``all``.

    Raises ValueError, whose message says what is allowed.
    """
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
    """Parse heads by their numbers, such as ``0,3``, or by their names, such as ``L5H3,L2H1``.

    Raises ValueError, whose message says what is allowed.
    """
    matches = [HEAD.fullmatch(part.strip()) for part in text.split(",")]
    if not any(matches):
        return parse_numbers(text)
    if not all(matches):
        raise ValueError(f"{text!r} mixes names and numbers: write L5H3,L2H1 or 0,3,7")
    return HeadNames(tuple((int(match[1]), int(match[2])) for match in matches if match))


def resolve_blocks(
    layers: Selection,
    heads: Selection | HeadNames,
    heads_by_layer: Mapping[int, Sequence[int]],
) -> tuple[HeadBlock, ...]:
    """Return the chosen layers and heads as blocks: some layers with the same heads of each.

    layers, heads: what was chosen; heads that are named with their layers make a block for each
    layer, and ``layers`` is not used. Otherwise neighbouring layers whose chosen heads are the same
    make one block. heads_by_layer: the numbers of the heads that each layer has.

    Raises UsageError for a layer or a head that is not there.
    """
    if isinstance(heads, HeadNames):
        return resolve_head_names(heads, heads_by_layer)
    chosen_layers = layers.resolve(tuple(heads_by_layer), "layer")
    chosen = [(layer, heads.resolve(heads_by_layer[layer], "head")) for layer in chosen_layers]
    runs = groupby(chosen, key=itemgetter(1))  # layers that have the same chosen heads
    return tuple((tuple(layer for layer, _ in run), run_heads) for run_heads, run in runs)


def resolve_head_names(
    heads: HeadNames,
    heads_by_layer: Mapping[int, Sequence[int]],
) -> tuple[HeadBlock, ...]:
    """Return, for each layer of named heads, a tuple of that layer and a tuple of its named heads.

    heads: names such as L5H3, where negative numbers count from the end. heads_by_layer: the
    numbers of the heads that each layer has. Raises UsageError for a layer or a head that is not
    there.
    """
    layer_numbers = tuple(heads_by_layer)
    layers = [find_number(layer, layer_numbers, "layer") for layer, _ in heads.heads]
    heads_of_layers: dict[int, list[int]] = {}
    for layer, (_, number) in zip(layers, heads.heads, strict=True):
        head = find_number(number, heads_by_layer[layer], "head")
        heads_of_layer = heads_of_layers.setdefault(layer, [])
        if head not in heads_of_layer:
            heads_of_layer.append(head)
    return tuple(((layer,), tuple(chosen)) for layer, chosen in heads_of_layers.items())


def find_number(number: int, numbers: Sequence[int], noun: str) -> int:
    """Return the number that is meant among some numbers, where -1 means the last of them.

    noun: what is counted, such as "layer", for the error. Raises UsageError if the number is
    neither among them nor counts from their end.
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
    """Parse a window of tokens, ``A:B``, ``:B`` or ``A:``: from number A up to before B.

    Raises ValueError, whose message says what is allowed.
    """
    match = WINDOW.fullmatch(text.strip())
    if not match or text.strip() == ":":
        raise ValueError(f"{text!r} is no window: write 100:200, :50 or -50:")
    first, last = (int(part) if part else None for part in match.groups())
    return slice(first, last)


def parse_token(text: str) -> "TokenReference":
    """Parse what names a token: its number in the text, or its word.

    Raises ValueError for an empty text, InputError for one with lone surrogates.
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
        """Find the token in a text, and return the window that holds it alone.

        A number may count from the end. A word is compared with the texts of the tokens, first
        exactly, then in any case.

        Raises UsageError if the token is not there, or its word is there more than once; InputError
        for a word with lone surrogates.
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
        name = label_token(self.name)[:LONGEST]
        why = explain_mismatch(self.name, positions, tokens)
        raise UsageError(f"token {name!r} {why}; choose one by its number")


def find_spelling(
    name: str,
    tokens: Sequence[Token],
    fold: Callable[[str], str] = str,
) -> list[int]:
    """Return the positions of the tokens whose text, or label on pictures, is a word.

    name: the word. fold: is applied to texts and labels before they are compared with it.
    """
    return [
        position
        for position, token in enumerate(tokens)
        if name in (fold(token.text), fold(label_token(token.text)))
    ]


def explain_mismatch(
    name: str,
    positions: Sequence[int],
    tokens: Sequence[Token],
) -> str:
    """Say why a word does not name one token of a text, as the middle of an error message.

    positions: those of the tokens that it names, if there are several.
    """
    if positions:
        return f"occurs {len(positions)} times, at {join_names(list(map(str, positions)))}"
    parts = find_pieces(name, tokens)
    if parts:
        return f"is several tokens: {number_tokens(tokens, parts)}"
    return f"does not occur: here are {number_tokens(tokens, range(len(tokens)))}"


def find_pieces(name: str, tokens: Sequence[Token]) -> range:
    """Return the positions of the first neighbouring tokens whose texts together make a word.

    White space in the word is not compared. The range is empty if there are no such tokens.
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
    return join_names([f"{i} {label_token(tokens[i].text)[:MOST_NAMED]}" for i in positions])


def join_names(names: Sequence[str]) -> str:
    """Join names by commas; dots stand for those that a message of one line cannot hold."""
    shown = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        shown.append("...")
    return ", ".join(shown)


def require_window(window: slice, tokens: Sequence[Token], noun: str) -> range:
    """Return the positions of the tokens in a window. Raises UsageError if it holds none.

    noun: the option that named the window, for the error.
    """
    count = len(tokens)
    positions = range(count)[window]
    if not positions:
        start = "" if window.start is None else window.start
        stop = "" if window.stop is None else window.stop
        raise UsageError(
            f"{noun} {start}:{stop} holds no tokens: there are {count} (0-{count - 1})",
        )
    return positions


def find_window_positions(
    rows: slice,
    columns: slice,
    sides: MapTokens,
) -> tuple[range, range]:
    """Return the positions of the queries, and those of the keys, in a window of a map.

    rows, columns: the window. sides: the tokens of all queries and of all keys. Raises UsageError
    if it holds no queries or no keys.
    """
    queries, keys = sides
    return require_window(rows, queries, "--rows"), require_window(columns, keys, "--cols")


def note_windows(
    rows: slice,
    columns: slice,
    sides_of_maps: Iterable[MapTokens],
) -> tuple[str, ...]:
    """Return lines that say which queries and keys of some maps a window shows, each line once.

    rows, columns: the window of queries and of keys. sides_of_maps: all queries and all keys of
    each map. There is no line for a map that is shown whole.

    Raises UsageError if the window holds no tokens.
    """
    lines: dict[str, None] = {}  # ordered, each line once
    for queries, keys in sides_of_maps:
        query_positions, key_positions = find_window_positions(rows, columns, (queries, keys))
        sides = [
            describe_positions(query_positions, len(queries), "query", "queries"),
            describe_positions(key_positions, len(keys), "key", "keys"),
        ]
        line = ", ".join(side for side in sides if side)
        if line:
            lines[line] = None
    return tuple(lines)


def describe_positions(positions: range, count: int, one: str, many: str) -> str:
    """Say which of ``count`` tokens a window holds, as "keys 2-5 of 9"; empty if it holds all.

    positions: those in the window. one, many: the noun for one token and for several.
    """
    if len(positions) == count:
        return ""
    if len(positions) == 1:
        return f"{one} {positions[0]} of {count}"
    return f"{many} {positions[0]}-{positions[-1]} of {count}"


def require_same_tokens(maps: Sequence[AttentionMap], advice: str) -> None:
    """Raise InputError unless all maps have the same queries and the same keys.

    advice: what to do about it, for the error.
    """
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
    """Return a capture with some layers and heads only.

    kinds: the kinds of map to keep, such as ``encoder``; empty for all. A map whose heads were
    merged into one keeps that head, and only its layers are chosen.

    Raises UsageError for a kind, a layer or a head that is not there.
    """
    there = tuple(dict.fromkeys(each.kind for each in capture.maps))
    maps: list[AttentionMap] = []
    for kind in choose_kinds(kinds, there):
        of_kind = [each for each in capture.maps if each.kind == kind]
        are_reduced = any(isinstance(each.heads[0], str) for each in of_kind)
        if are_reduced:  # there is nothing to choose among their heads
            maps += [keep_layers(each, layers) for each in of_kind]
        else:
            maps += select_heads_of_kind(of_kind, layers, heads)
    return replace(capture, maps=tuple(maps))


def keep_layers(attention_map: AttentionMap, layers: Selection) -> AttentionMap:
    """Return some layers of a map. Raises UsageError for a layer that is not there."""
    chosen = layers.resolve(attention_map.layers, "layer")
    indices = [attention_map.layers.index(layer) for layer in chosen]
    return attention_map.pick_heads(indices, range(len(attention_map.heads)))


def select_heads_of_kind(
    maps: Sequence[AttentionMap],
    layers: Selection,
    heads: Selection | HeadNames,
) -> list[AttentionMap]:
    """Return maps with some layers and heads only, in the order in which they were chosen.

    maps: all of one kind, each with other layers; one map may be split into several. Raises
    UsageError for a layer or a head that is not there.
    """
    map_of_layer = {layer: each for each in maps for layer in each.layers}
    numbers = {layer: each.heads for layer, each in map_of_layer.items()}
    chosen = []
    for block_layers, block_heads in resolve_blocks(layers, heads, numbers):  # type: ignore[arg-type]
        for attention_map, run in group_by_map(block_layers, map_of_layer):
            layer_indices = [attention_map.layers.index(layer) for layer in run]
            head_indices = [attention_map.heads.index(head) for head in block_heads]
            chosen.append(attention_map.pick_heads(layer_indices, head_indices))
    return chosen


def group_by_map(
    layers: Sequence[int],
    map_of_layer: Mapping[int, AttentionMap],
) -> list[tuple[AttentionMap, list[int]]]:
    """Group neighbours among some layers that are held by the same map.

    Returns pairs of a map and the numbers of its layers, in the order of ``layers``.
    """
    groups: list[tuple[AttentionMap, list[int]]] = []
    for layer in layers:
        attention_map = map_of_layer[layer]
        if groups and groups[-1][0] is attention_map:
            groups[-1][1].append(layer)
        else:
            groups.append((attention_map, [layer]))
    return groups


def choose_kinds(
    wanted: Sequence[Kind],
    available: Sequence[Kind],
    preferred: Sequence[Kind] = (),
) -> Sequence[Kind]:
    """Choose kinds of map, such as ``encoder``, among the available ones.

    They are the wanted ones; or if none are wanted, the first preferred one that is available; or
    else all of them. Raises UsageError if a wanted kind is not available.
    """
    for kind in wanted:
        if kind not in available:
            raise UsageError(f"there is no {kind} map here: only {', '.join(available)}")
    if wanted:
        return wanted
    for kind in preferred:
        if kind in available:
            return [kind]
    return available


EVERY_TOKEN = "*"
ARROW = re.compile(r"\s*(\S.*?)\s*->\s*(\S.*?)\s*", re.DOTALL)
"""At the first arrow that leaves something before it."""
EdgeNames: TypeAlias = tuple[TokenReference | None, TokenReference | None]
"""The query and the key of an edge; None for all."""


def parse_edge(text: str) -> EdgeNames:
    """Parse an edge ``query->key``, each a number, a word, or * for all tokens.

    Returns the query and the key, None for all. Raises ValueError, whose message says what is
    allowed.
    """
    match = ARROW.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no edge: write query->key, such as 'it->cat', '8->2' or '*->cat'",
        )
    query, key = (None if side == EVERY_TOKEN else parse_token(side) for side in match.groups())
    return query, key


def parse_head_names(text: str) -> HeadNames:
    """Parse heads by their names, such as ``L5H3,L2H1``.

    Raises ValueError, whose message says what is allowed.
    """
    try:
        heads = parse_heads(text)
    except ValueError:
        heads = ALL
    if not isinstance(heads, HeadNames):
        raise ValueError(f"{text!r} names no head: write L5H3 or L5H3,L2H1")
    return heads


Choice = TypeVar("Choice", Selection, Selection | HeadNames)


def parse_choice(choice: object, parser: Callable[[str], Choice]) -> Choice:
    """Return a choice of layers or heads, parsed if it is a number or a text.

    choice: a number, a text as on the command line, or an object that is parsed already, which is
    returned as it is. Raises UsageError in place of the ValueError of the parser.
    """
    if isinstance(choice, (Selection, HeadNames)):
        return choice  # type: ignore[return-value]
    try:
        return parser(str(choice))
    except ValueError as error:
        raise UsageError(str(error)) from error
