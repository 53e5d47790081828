"""Choosing layers and heads: `3`, `-1`, `0,3,7`, `2-5`, `-3--1`, `all`; heads by name too: `L5H3,L2H1`.

A selection is parsed before the model is known, and resolved when its layers and heads can be counted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from attnviz.errors import UsageError
from attnviz.record import AttentionMap, Capture, Kind

RANGE = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")
HEAD = re.compile(r"L(-?\d{1,9})H(-?\d{1,9})", re.IGNORECASE)
WINDOW = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")
Head = tuple[int, int]
Rectangle = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Selection:
    """Parts of a numbered row; from None, everything. Each part is first and last, -1 being the last of the row."""

    parts: tuple[tuple[int, int], ...] | None = None

    @property
    def is_one(self) -> bool:
        """Whether it names one number."""
        return self.parts is not None and len(self.parts) == 1 and self.parts[0][0] == self.parts[0][1]

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
            raise ValueError(f"{part.strip()!r} is no number or range: write 3, -1, 0,3,7, 2-5 or all")
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


def resolve(layers: Selection, heads: Selection | Named, there: Mapping[int, Sequence[int]]) -> tuple[Rectangle, ...]:
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
    there = f"0-{count - 1}" if tuple(numbers) == tuple(range(count)) else ", ".join(map(str, numbers))
    raise UsageError(f"{noun} {number} does not exist: here are {count} {noun}s ({there}, or -{count}--1)")


def parse_window(text: str) -> slice:
    """Parse A:B, :B or A:, tokens from A up to before B. Raises ValueError saying what is allowed."""
    match = WINDOW.fullmatch(text.strip())
    if not match or text.strip() == ":":
        raise ValueError(f"{text!r} is no window: write 100:200, :50 or -50:")
    first, last = (int(part) if part else None for part in match.groups())
    return slice(first, last)


def require_window(window: slice, count: int, noun: str) -> range:
    """The places of a window among so many tokens. Raises UsageError if it holds none."""
    places = range(count)[window]
    if not places:
        told = f"{'' if window.start is None else window.start}:{'' if window.stop is None else window.stop}"
        raise UsageError(f"{noun} {told} holds no tokens: there are {count} (0-{count - 1})")
    return places


def window_notes(rows: slice, columns: slice, sizes: Iterable[tuple[int, int]]) -> tuple[str, ...]:
    """Where a window lies in maps of so many queries and keys. Raises UsageError if it holds no tokens."""

    def told(window: slice, count: int, noun: str) -> str:
        places = require_window(window, count, noun)
        return f"{places.start}-{places.stop - 1} of {count}"

    return tuple(
        dict.fromkeys(f"queries {told(rows, n, '--rows')}, keys {told(columns, m, '--cols')}" for n, m in sizes)
    )


def select(capture: Capture, layers: Selection, heads: Selection | Named, kinds: Sequence[Kind] = ()) -> Capture:
    """Some layers and heads, of maps of some kinds (default: all that are there). Raises UsageError."""
    maps: list[AttentionMap] = []
    for kind in require_kinds(kinds, tuple(dict.fromkeys(part.kind for part in capture.maps))):
        of_kind = [part for part in capture.maps if part.kind == kind]
        if any(isinstance(part.heads[0], str) for part in of_kind):  # a reduction: nothing to choose among its heads
            maps += [of_layers(part, layers) for part in of_kind]
            continue
        owner = {layer: part for part in of_kind for layer in part.layers}
        for chosen, of_each in resolve(layers, heads, {layer: part.heads for layer, part in owner.items()}):  # type: ignore[misc]
            maps += [
                part.part([part.layers.index(layer) for layer in run], [part.heads.index(head) for head in of_each])
                for part, run in runs_of(chosen, owner)
            ]
    return replace(capture, maps=tuple(maps))


def of_layers(part: AttentionMap, layers: Selection) -> AttentionMap:
    """Some layers of a map."""
    chosen = layers.resolve(part.layers, "layer")
    return part.part([part.layers.index(layer) for layer in chosen], range(len(part.heads)))


def runs_of(layers: Sequence[int], owner: Mapping[int, AttentionMap]) -> list[tuple[AttentionMap, list[int]]]:
    """Neighbouring layers that stand in one map, with that map."""
    runs = groupby(layers, key=lambda layer: id(owner[layer]))
    return [(owner[run[0]], run) for run in (list(members) for _, members in runs)]


def require_kinds(wanted: Sequence[Kind], there: Sequence[Kind], preferred: Sequence[Kind] = ()) -> Sequence[Kind]:
    """The wanted kinds of map, else the first preferred that is there, else all. Raises UsageError if one is not."""
    for kind in wanted:
        if kind not in there:
            raise UsageError(f"there is no {kind} map here: only {', '.join(there)}")
    return wanted or [kind for kind in preferred if kind in there][:1] or there
