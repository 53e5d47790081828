"""How strongly a head plays a known role, measured on a repeated block of tokens.

The sequence is BOS + B + B with B of ``block`` distinct random tokens: BOS at place 0, the first copy at 1..block, the
second at block + 1..2 block. Weights are (..., n, n) with n = 2 block + 1; results (...), in [0, 1].

Three definitions of "induction" give three numbers for one head. Ours is the row-exact mean: the weight that each query
of the second copy, and no other, gives to the token that followed its first occurrence.
"""

import numpy as np

from attnviz.record import Weights


def induction(weights: Weights, block: int) -> Weights:
    """Mean of A[q, q - block + 1] over the second copy (prefix matching, Olsson et al. 2022)."""
    return band(weights, range(block + 1, 2 * block + 1), block - 1)


def duplicate_token(weights: Weights, block: int) -> Weights:
    """Mean of A[q, q - block] over the second copy (Wang et al. 2022)."""
    return band(weights, range(block + 1, 2 * block + 1), block)


def previous_token(weights: Weights) -> Weights:
    """Mean of A[q, q - 1] over q >= 2: at q = 1 the previous token is the sink."""
    return band(weights, range(2, weights.shape[-2]), 1)


def band(weights: Weights, queries: range, back: int) -> Weights:
    """Mean weight that these queries give to the key ``back`` places before each: (..., n, n) -> (...)."""
    rows = np.asarray(queries)
    mean: Weights = weights[..., rows, rows - back].mean(-1)
    return mean
