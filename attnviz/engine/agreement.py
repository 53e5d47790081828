"""How far two computations of one output are apart."""

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.observers.base import Source

SAMPLE = 16  # queries of a layer whose output is computed a second time, by another function


def check(call: Call, source: Source, output: Tensor) -> tuple[float | None, torch.dtype]:
    """How far the output of a few queries is from what another function makes of them; None if there is none.

    Also the coarsest type of what was compared.
    """
    count = call.query.shape[2]
    rows = torch.arange(0, count, -(-count // SAMPLE), device=call.query.device)
    if call.plain:
        expected = call.rows(rows).sdpa().transpose(1, 2)
    else:
        by_reference = source.reference(rows) if source.reference else None
        if by_reference is None:
            return None, output.dtype
        expected = by_reference
    return agreement(output[:, rows], expected), coarsest(call.query, call.value, output, expected)


def coarsest(*parts: Tensor) -> torch.dtype:
    """Return the type of the largest rounding among tensors."""
    return max((part.dtype for part in parts), key=lambda dtype: torch.finfo(dtype).eps)


def agreement(ours: Tensor, theirs: Tensor) -> float | None:
    """Their difference, (1, N, H, d_v), over the queries that see a key: functions differ in what the others get."""
    seeing = ours.abs().amax(-1, keepdim=True) > 0
    return difference(ours, theirs.where(seeing, 0))


def difference(ours: Tensor, theirs: Tensor) -> float | None:
    """The largest difference as a share of the largest value."""
    if not theirs.numel():
        return None
    apart, largest = (ours.float() - theirs).abs().max(), theirs.float().abs().max()
    return float(apart / largest.clamp_min(1e-30))


def larger(one: float | None, other: float | None) -> float | None:
    """The larger of two numbers that may be missing."""
    return max((part for part in (one, other) if part is not None), default=None)
