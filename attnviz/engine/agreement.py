"""How far two computations of one output are apart."""

import math

import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.observers.base import CallSource

SAMPLE = 16  # queries of a layer whose output is computed a second time, by another function
NO_DIVISOR = 1e-30  # in place of a largest value of 0


def check_output(
    call: Call,
    source: CallSource,
    output: Tensor,
) -> tuple[float | None, torch.dtype]:
    """Compare the output of a call with that of another function, for a few of its queries.

    call: a call of attention. source: where the call comes from, with other functions that compute
    its output. output: what our blocks computed, (1, query, head, d_v).
    Returns the largest difference as a share of the largest value, and the coarsest type of what
    was compared. The difference is None if there is no other function.
    """
    query_count = call.query.shape[2]
    # Every so many queries, at most SAMPLE of them.
    step = math.ceil(query_count / SAMPLE)
    rows = torch.arange(0, query_count, step, device=call.query.device)
    expected = compute_reference(call, source, rows)
    if expected is None:
        return None, output.dtype
    dtype = find_coarsest_dtype(call.query, call.value, output, expected)
    return compare_outputs(output[:, rows], expected), dtype


def compute_reference(call: Call, source: CallSource, rows: Tensor) -> Tensor | None:
    """Compute the output of some queries by a function that is not ours.

    rows: the positions of these queries, (row,). The function is torch's
    scaled_dot_product_attention where that can compute the call, else the reference of ``source``,
    which comes with the call.
    Returns (batch, row, head, d_v), or None if there is no such function.
    """
    if call.plain:
        return call.pick_queries(rows).run_sdpa().transpose(1, 2)
    if source.reference is None:
        return None
    return source.reference(rows)


def find_coarsest_dtype(*arrays: Tensor) -> torch.dtype:
    """Return the type of floats, among the types of some tensors, that rounds the most."""
    dtypes = (array.dtype for array in arrays)
    return max(dtypes, key=measure_rounding)


def measure_rounding(dtype: torch.dtype) -> float:
    """Return the distance from 1 to the next number of a type."""
    return torch.finfo(dtype).eps


def compare_outputs(ours: Tensor, theirs: Tensor) -> float | None:
    """Return the largest difference of two outputs as a share of the largest value of the second.

    ours, theirs: (1, query, head, d_v). Queries whose output of ours is 0 see no key, and are left
    out, because functions differ in what they give them. Returns None for empty outputs.
    """
    sees_a_key = ours.abs().amax(-1, keepdim=True) > 0
    return compare_numbers(ours, theirs.where(sees_a_key, 0))


def compare_numbers(ours: Tensor, theirs: Tensor) -> float | None:
    """Return the largest difference of two tensors as a share of the largest value of the second.

    ours, theirs: of one shape. Returns None if they are empty.
    """
    if not theirs.numel():
        return None
    largest_difference = (ours.float() - theirs).abs().max()
    largest_value = theirs.float().abs().max()
    return float(largest_difference / largest_value.clamp_min(NO_DIVISOR))


def find_larger(one: float | None, other: float | None) -> float | None:
    """Return the larger of two numbers that may be missing; None if both are."""
    if one is None:
        return other
    if other is None:
        return one
    return max(one, other)
