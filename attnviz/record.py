"""The record of a capture: tokens and attention maps. Frozen, NumPy, self-checking; it knows no model and no screen."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["self", "encoder", "decoder", "cross"]
Weights: TypeAlias = npt.NDArray[np.float32]
Visible: TypeAlias = npt.NDArray[np.bool_]
ROW_TOLERANCE = 1e-2  # half-precision models round; a row above 1 by more than this is no attention


class Token(NamedTuple):
    """A token and where it stands in the user's text."""

    text: str
    """The slice of the user's text, or the name of a special token."""
    id: int
    start: int
    """In characters; start == end where the token stands for no text."""
    end: int
    special: bool

    @classmethod
    def of(cls, name: str, number: int, span: tuple[int, int], special: bool, text: str) -> "Token":
        """A token as tokenizers tell of it. White space at its ends is left out, unless it is nothing else.

        Byte-level tokens carry the space before a word, others do not: without it, models can be compared.
        """
        start, end = span
        if special:
            return cls(name, number, start, end, True)
        inner = text[start:end].strip()
        if inner:
            start += text[start:end].index(inner)
            end = start + len(inner)
        return cls(text[start:end], number, start, end, False)


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention weights of some layers and heads. Axes are (layer, head, query, key); rows are queries.

    Raises ValueError if shapes disagree, a weight is negative or NaN, or a row sums to more than 1.
    """

    kind: Kind
    layers: tuple[int, ...]
    heads: tuple[int | str, ...]
    """Numbers, or one name such as "mean" for a reduction over heads."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]
    weights: Weights
    """(layer, head, query, key), 0 where masked."""
    visible: Visible
    """Broadcasts to the shape of the weights; True where a query may attend."""
    method: str = "attention"

    def __post_init__(self) -> None:
        shape = len(self.layers), len(self.heads), len(self.queries), len(self.keys)
        if self.weights.shape != shape:
            raise ValueError(f"weights have shape {self.weights.shape}, not (layer, head, query, key) = {shape}")
        object.__setattr__(self, "visible", np.broadcast_to(self.visible, shape))
        if 0 not in shape and not (self.weights.min() >= 0 and self.largest() <= 1 + ROW_TOLERANCE):
            raise ValueError("attention weights must be 0 or more, and each row must sum to at most 1")
        if np.where(self.visible, 0, self.weights).any():
            raise ValueError("attention weights must be 0 where masked")

    def largest(self) -> float:
        """The largest sum of a row; of maxima over heads, which need not sum to 1, the largest weight."""
        return float((self.weights if "max" in self.heads else self.weights.sum(-1)).max())

    def reduced(self, how: Literal["mean", "max"]) -> "AttentionMap":
        """The mean or the maximum over the heads, as one head of that name."""
        weights = getattr(self.weights, how)(axis=1, keepdims=True)
        visible = np.any(self.visible, axis=1, keepdims=True)
        return AttentionMap(self.kind, self.layers, (how,), self.queries, self.keys, weights, visible, self.method)


@dataclass(frozen=True, eq=False)
class Capture:
    """What a model did with a text."""

    model: str
    text: str
    maps: tuple[AttentionMap, ...]
    notes: tuple[str, ...] = ()
    """What the reader should know of how this came about: truncation, for example."""
