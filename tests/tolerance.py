"""How far two ways to compute the same numbers may lie apart, on any processor.

Libraries choose their kernels by the processor: these add in another order, in wider registers, or round once where
others round twice. A test that compares floats therefore allows what the arithmetic allows, never what one machine
printed.
"""

import math
from typing import Any

import numpy as np

MINILM_WIDTH = 384  # the longest sums of MiniLM are over so many terms


def rounding(terms: int, largest: float = 1.0, dtype: Any = np.float32) -> float:
    """Return the difference allowed between two sums of so many terms, of which none is larger than ``largest``.

    Each addition rounds by up to half the machine epsilon of its result. The errors of n additions are as large as n
    of them at worst, and about the square root of n of them as a rule (Higham 2002, section 4.2); eight times the rule
    is allowed, because a model chains several sums.
    """
    return 8 * float(np.finfo(dtype).eps) * math.sqrt(terms) * largest


def close(terms: int, largest: float = 1.0, dtype: Any = np.float32) -> dict[str, float]:
    """Return the options ``rtol`` and ``atol`` of assert_allclose and assert_close for such sums."""
    return {"rtol": rounding(terms, dtype=dtype), "atol": rounding(terms, largest, dtype)}


def require_close(found: Any, expected: Any, terms: int = MINILM_WIDTH) -> None:
    """Require two arrays to be as close as sums of so many terms must be."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), **close(terms))
