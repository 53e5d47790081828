"""Choosing layers and heads: `3`, `-1`, `0,3,7`, `2-5`, `-3--1`, `all`; heads by name too: `L5H3,L2H1`.

A selection is parsed before the model is known, and resolved when its layers and heads can be counted.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
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
Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
Sides = tuple[tuple[Token, ...], tuple[Token, ...]]  # queries and keys


@dataclass(frozen=True)
class Selection:
    """Parts of a numbered row; from None, everything. Each part is first and last, -1 being the last of the row."""

    parts: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        """As it is written on the command line."""
        if self.parts is None:
            return "all"
        return ",".join(
            str(first) if first == last else f"{first}-{last}" for first, last in self.parts
        )

    @property
    def is_one(self) -> bool:
        """Whether it names one number."""
        return (
            self.parts is not None and len(self.parts) == 1 and self.parts[0][0] == self.parts[0][1]
        )

    def resolve(self, numbers: Sequence[int], noun: str) -> tuple[int, ...]:
        """The chosen of these numbers, in the order given, each once. Raises UsageError if one is not there."""
        if self.parts is None:
            return tuple(numbers)
        chosen: dict[int, None] = {}
        for first, last in self.parts:
            start, stop = place(first, numbers, noun), place(last, numbers, noun)
            if start > stop:
                raise UsageError(f"{noun}s {first}-{last} run backwards: write {last}-{first}")
            chosen.update(dict.fromkeys(number for number in numbers if start <= number <= stop))
        return tuple(chosen)


ALL = Selection()


@dataclass(frozen=True)
class Named:
    """Heads named one by one, each as layer and head."""

    heads: tuple[Head, ...]

    def __str__(self) -> str:
        """As it is written on the command line."""
        return ",".join(f"L{layer}H{head}" for layer, head in self.heads)

    @property
    def is_one(self) -> bool:
        """Whether it names one head."""
        return len(self.heads) == 1


def parse(text: str) -> Selection:
    """Parse a choice of layers or heads by number. Raises ValueError saying what is allowed."""
    if text.strip().lower() == "all":
        return ALL
    parts = []
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if not match:
            raise ValueError(
                f"{part.strip()!r} is no number or range: write 3, -1, 0,3,7, 2-5 or all"
            )
        first, last = match.groups()
        parts.append((int(first), int(last if last is not None else first)))
    return Selection(tuple(parts))


def parse_heads(text: str) -> Selection | Named:
    """Parse a choice of heads, by number or as L5H3. Raises ValueError saying what is allowed."""
    matches = [HEAD.fullmatch(part.strip()) for part in text.split(",")]
    if not any(matches):
        return parse(text)
    if not all(matches):
        raise ValueError(f"{text!r} mixes names and numbers: write L5H3,L2H1 or 0,3,7")
    return Named(tuple((int(match[1]), int(match[2])) for match in matches if match))


def resolve(
    layers: Selection, heads: Selection | Named, there: Mapping[int, Sequence[int]]
) -> tuple[Rectangle, ...]:
    """Rectangles of layers and heads that cover the choice among the heads of each layer that are there.

    One, or for named heads one a layer, or one for each run of layers that have the same heads. Raises UsageError.
    """
    numbers = tuple(there)
    if isinstance(heads, Named):
        named = [(at, place(head, there[at], "head")) for at, head in named_layers(heads, numbers)]
        return tuple(((at,), heads_of(at, named)) for at in dict.fromkeys(at for at, _ in named))
    chosen = [(at, heads.resolve(there[at], "head")) for at in layers.resolve(numbers, "layer")]
    runs = groupby(chosen, key=lambda pair: pair[1])
    return tuple((tuple(at for at, _ in run), of_each) for of_each, run in runs)


def named_layers(heads: Named, numbers: Sequence[int]) -> list[Head]:
    """Named heads, their layers counted from 0."""
    return [(place(layer, numbers, "layer"), head) for layer, head in heads.heads]


def heads_of(layer: int, named: Sequence[Head]) -> tuple[int, ...]:
    """The heads named of one layer, each once."""
    return tuple(dict.fromkeys(head for at, head in named if at == layer))


def place(number: int, numbers: Sequence[int], noun: str) -> int:
    """A number that is there, or counted from the end if negative. Raises UsageError if it is not there."""
    count = len(numbers)
    if number in numbers:
        return number
    if -count <= number < 0:
        return numbers[number]
    there = (
        f"0-{count - 1}" if tuple(numbers) == tuple(range(count)) else ", ".join(map(str, numbers))
    )
    raise UsageError(
        f"{noun} {number} does not exist: here are {count} {noun}s ({there}, or -{count}--1)"
    )


def parse_window(text: str) -> slice:
    """Parse A:B, :B or A:, tokens from A up to before B. Raises ValueError saying what is allowed."""
    match = WINDOW.fullmatch(text.strip())
    if not match or text.strip() == ":":
        raise ValueError(f"{text!r} is no window: write 100:200, :50 or -50:")
    first, last = (int(part) if part else None for part in match.groups())
    return slice(first, last)


def parse_token(text: str) -> "Spot":
    """Parse a token: its number, or what it says. Raises ValueError if that is nothing, InputError if no Unicode."""
    require_unicode(text, "the name of a token")
    if not text.strip():
        raise ValueError("a token is named by its number or by what it says")
    return Spot(int(text) if PLACE.fullmatch(text.strip()) else text.strip())


class Spot(NamedTuple):
    """One token of a text, by its number or by what it says."""

    name: int | str

    def resolve(self, tokens: Sequence[Token]) -> slice:
        """Its place among tokens, as a window.

        Raises UsageError if it is not there, or more than once; InputError for a name that is no Unicode.
        """
        if isinstance(self.name, int):
            found = place(self.name, range(len(tokens)), "token")
            return slice(found, found + 1)
        require_unicode(self.name, "the name of a token")
        places = spelling(self.name, tokens) or spelling(self.name.casefold(), tokens, str.casefold)
        if len(places) == 1:
            return slice(places[0], places[0] + 1)
        name = label(self.name)[:LONGEST]
        raise UsageError(
            f"token {name!r} {why_not_one(self.name, places, tokens)}; choose one by its number"
        )


def spelling(name: str, tokens: Sequence[Token], fold: Callable[[str], str] = str) -> list[int]:
    """The places of the tokens that say this."""
    return [
        i
        for i, token in enumerate(tokens)
        if fold(token.text) == name or fold(label(token.text)) == name
    ]


def why_not_one(name: str, places: Sequence[int], tokens: Sequence[Token]) -> str:
    """What there is instead of one token of that name."""
    if places:
        return f"occurs {len(places)} times, at {listed(list(map(str, places)))}"
    parts = pieces(name, tokens)
    if parts:
        return f"is several tokens: {numbered(tokens, parts)}"
    return f"does not occur: here are {numbered(tokens, range(len(tokens)))}"


def pieces(name: str, tokens: Sequence[Token]) -> range:
    """The places of neighbouring tokens that together say this, white space aside; empty if there are none."""
    name = "".join(name.split())
    for start in range(len(tokens)):
        said = ""
        for stop in range(start, len(tokens)):
            said += tokens[stop].text
            if said == name:
                return range(start, stop + 1)
            if not name.startswith(said):
                break
    return range(0)


def numbered(tokens: Sequence[Token], places: Sequence[int]) -> str:
    """Tokens with their numbers, as many as one line can hold."""
    return listed([f"{i} {label(tokens[i].text)[:MOST_NAMED]}" for i in places])


def listed(names: Sequence[str]) -> str:
    """As many as one line can hold."""
    return ", ".join([*names[:MOST_NAMED], "..."] if len(names) > MOST_NAMED else names)


def require_window(window: slice, tokens: Sequence[Token], noun: str) -> range:
    """The places of a window among tokens. Raises UsageError if it holds none."""
    count = len(tokens)
    places = range(count)[window]
    if not places:
        told = f"{'' if window.start is None else window.start}:{'' if window.stop is None else window.stop}"
        raise UsageError(f"{noun} {told} holds no tokens: there are {count} (0-{count - 1})")
    return places


def require_sides(rows: slice, columns: slice, sides: Sides) -> tuple[range, range]:
    """The places of the queries and the keys of a window. Raises UsageError if it holds no tokens."""
    return require_window(rows, sides[0], "--rows"), require_window(columns, sides[1], "--cols")


def window_notes(rows: slice, columns: slice, maps: Iterable[Sides]) -> tuple[str, ...]:
    """Where a window lies in maps of such queries and keys. Raises UsageError if it holds no tokens."""

    def told(places: range, count: int, one: str, many: str) -> str:
        if len(places) == count:
            return ""
        return (
            f"{one} {places[0]} of {count}"
            if len(places) == 1
            else f"{many} {places[0]}-{places[-1]} of {count}"
        )

    def line(sides: Sides) -> str:
        queries, keys = require_sides(rows, columns, sides)
        parts = (
            told(queries, len(sides[0]), "query", "queries"),
            told(keys, len(sides[1]), "key", "keys"),
        )
        return ", ".join(filter(None, parts))

    return tuple(filter(None, dict.fromkeys(map(line, maps))))


def require_same_tokens(maps: Sequence[AttentionMap], advice: str) -> None:
    """Raise InputError, with advice, unless all maps have the same queries and the same keys."""
    first = maps[0]
    if any((part.queries, part.keys) != (first.queries, first.keys) for part in maps):
        raise InputError(f"the maps of this capture are not of the same tokens: {advice}")


def select(
    capture: Capture, layers: Selection, heads: Selection | Named, kinds: Sequence[Kind] = ()
) -> Capture:
    """Some layers and heads, of maps of some kinds (default: all that are there). Raises UsageError."""
    maps: list[AttentionMap] = []
    for kind in require_kinds(kinds, tuple(dict.fromkeys(part.kind for part in capture.maps))):
        of_kind = [part for part in capture.maps if part.kind == kind]
        if any(
            isinstance(part.heads[0], str) for part in of_kind
        ):  # a reduction: nothing to choose among its heads
            maps += [of_layers(part, layers) for part in of_kind]
            continue
        owner = {layer: part for part in of_kind for layer in part.layers}
        numbers = {layer: part.heads for layer, part in owner.items()}
        for chosen, of_each in resolve(layers, heads, numbers):  # type: ignore[arg-type]
            maps += [
                part.part(
                    [part.layers.index(layer) for layer in run],
                    [part.heads.index(head) for head in of_each],
                )
                for part, run in runs_of(chosen, owner)
            ]
    return replace(capture, maps=tuple(maps))


def of_layers(part: AttentionMap, layers: Selection) -> AttentionMap:
    """Some layers of a map."""
    chosen = layers.resolve(part.layers, "layer")
    return part.part([part.layers.index(layer) for layer in chosen], range(len(part.heads)))


def runs_of(
    layers: Sequence[int], owner: Mapping[int, AttentionMap]
) -> list[tuple[AttentionMap, list[int]]]:
    """Neighbouring layers that stand in one map, with that map."""
    runs = groupby(layers, key=lambda layer: id(owner[layer]))
    return [(owner[run[0]], run) for run in (list(members) for _, members in runs)]


def require_kinds(
    wanted: Sequence[Kind], there: Sequence[Kind], preferred: Sequence[Kind] = ()
) -> Sequence[Kind]:
    """The wanted kinds of map, else the first preferred that is there, else all. Raises UsageError if one is not."""
    for kind in wanted:
        if kind not in there:
            raise UsageError(f"there is no {kind} map here: only {', '.join(there)}")
    return wanted or [kind for kind in preferred if kind in there][:1] or there


EVERY_TOKEN = "*"
ARROW = re.compile(r"\s*(\S.*?)\s*->\s*(\S.*?)\s*", re.DOTALL)
"""At the first arrow that leaves something before it."""
EdgeNames: TypeAlias = tuple[Spot | None, Spot | None]
"""The query and the key of an edge; None for all."""


def parse_edge(text: str) -> EdgeNames:
    """Parse Q->K, each a number, a word, or * for all. Raises ValueError saying what is allowed."""
    match = ARROW.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no edge: write query->key, such as 'it->cat', '8->2' or '*->cat'"
        )
    query, key = (None if side == EVERY_TOKEN else parse_token(side) for side in match.groups())
    return query, key


def parse_head_names(text: str) -> Named:
    """Parse heads by name. Raises ValueError saying what is allowed."""
    try:
        heads = parse_heads(text)
    except ValueError:
        heads = ALL
    if not isinstance(heads, Named):
        raise ValueError(f"{text!r} names no head: write L5H3 or L5H3,L2H1")
    return heads


Choice = TypeVar("Choice", Selection, Selection | Named)


def require_choice(choice: object, parser: Callable[[str], Choice]) -> Choice:
    """Return layers or heads that were chosen as on the command line, by a number or as an object.

    Raises UsageError.
    """
    if isinstance(choice, (Selection, Named)):
        return choice  # type: ignore[return-value]
    try:
        return parser(str(choice))
    except ValueError as error:
        raise UsageError(str(error)) from error
