"""Choosing layers and heads: `3`, `-1`, `0,3,7`, `2-5`, `-3--1`, `all`; heads by name too: `L5H3,L2H1`.

A selection is parsed before the model is known, and resolved when its layers and heads can be counted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnviz.errors import UsageError

RANGE = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")
HEAD = re.compile(r"L(-?\d{1,9})H(-?\d{1,9})", re.IGNORECASE)
Head = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """Parts of a numbered row; from None, everything. Each part is first and last, -1 being the last of the row."""

    parts: tuple[tuple[int, int], ...] | None = None

    def resolve(self, count: int, noun: str) -> tuple[int, ...]:
        """The chosen numbers in the order given, each once. Raises UsageError if one is not there."""
        if self.parts is None:
            return tuple(range(count))
        chosen: dict[int, None] = {}
        for first, last in self.parts:
            start, stop = place(first, count, noun), place(last, count, noun)
            if start > stop:
                raise UsageError(f"{noun}s {first}-{last} run backwards: write {last}-{first}")
            chosen.update(dict.fromkeys(range(start, stop + 1)))
        return tuple(chosen)


ALL = Selection()


@dataclass(frozen=True)
class Named:
    """Heads named one by one, each as layer and head."""

    heads: tuple[Head, ...]


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


def resolve(
    layers: Selection, heads: Selection | Named, n_layers: int, n_heads: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Rectangles of (layers, heads) that cover the choice: one, or for named heads one a layer. Raises UsageError."""
    if isinstance(heads, Selection):
        return ((layers.resolve(n_layers, "layer"), heads.resolve(n_heads, "head")),)
    named = [(place(layer, n_layers, "layer"), place(head, n_heads, "head")) for layer, head in heads.heads]
    return tuple(((layer,), heads_of(layer, named)) for layer in dict.fromkeys(layer for layer, _ in named))


def heads_of(layer: int, named: Sequence[Head]) -> tuple[int, ...]:
    """The heads named of one layer, each once."""
    return tuple(dict.fromkeys(head for at, head in named if at == layer))


def place(number: int, count: int, noun: str) -> int:
    """A number counted from 0, or from the end if negative. Raises UsageError if it is not there."""
    if not -count <= number < count:
        raise UsageError(
            f"{noun} {number} does not exist: this model has {count} {noun}s (0-{count - 1}, or -{count}--1)"
        )
    return number % count
