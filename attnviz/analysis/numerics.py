"""Numerical steps that several analyses share.

They are the entropy of rows, the logarithm of a softmax, rows that sum to 1, and two questions
about masks: along which axes a mask only repeats itself, and whether it is causal.
"""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from attnviz.record import Doubles, Floats, Visible

Floating = TypeVar("Floating", Floats, Doubles)


def compute_row_entropies(weights: Doubles) -> Doubles:
    """Compute the entropy of each row in nats: weights (..., query, key) to (..., query).

    A weight of 0 adds nothing, since 0 log 0 = 0.
    """
    logs = np.zeros_like(weights)
    np.log(weights, out=logs, where=weights > 0)
    sums: Doubles = np.einsum("...qk,...qk->...q", weights, logs)
    return 0 - sums  # as -x would be -0.0 for a query that gives all to one key


def log_softmax(logits: Floats | Doubles) -> Doubles:
    """Compute the logarithms of the softmax of logits (..., number), over the last axis."""
    highest = logits.max(-1, keepdims=True)
    shifted = logits.astype(np.float64) - highest
    sums = np.exp(shifted).sum(-1, keepdims=True)
    logarithms: Doubles = shifted - np.log(sums)
    return logarithms


def repeats_along(array: npt.NDArray[Any], axis: int) -> bool:
    """Return whether an array only repeats itself along an axis, as broadcasting leaves it."""
    return array.strides[axis] == 0


def collapse_repeats(visible: Visible, axis_count: int) -> Visible:
    """Shorten a mask to length 1 along those of its first axes along which it only repeats itself.

    axis_count: how many axes are looked at, from the first on; the others stay as they are.
    """
    index = []
    for axis in range(axis_count):
        length = 1 if repeats_along(visible, axis) else None
        index.append(slice(length))
    return visible[tuple(index)]


def is_causal(cells: npt.NDArray[Any]) -> bool:
    """Return whether all cells above the diagonal are 0 or False, in each matrix of (..., n, m).

    cells: a mask, or weights. A single column has nothing above a diagonal, and is not causal.
    """
    if cells.shape[-1] <= 1:
        return False
    for index in np.ndindex(cells.shape[:-1]):  # row by row: a copy of all may not fit
        later_cells = cells[index][index[-1] + 1 :]
        if later_cells.any():
            return False
    return True


def normalise_rows(weights: Floating) -> Floating:
    """Divide each row of weights (..., key) by its sum; rows of zeros stay zeros."""
    sums = weights.sum(-1, keepdims=True)
    shares = np.zeros_like(weights)
    np.divide(weights, sums, out=shares, where=sums > 0)
    return shares
