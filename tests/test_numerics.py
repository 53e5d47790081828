"""Numerical steps that several analyses share."""

import numpy as np
import pytest
from scipy.special import log_softmax as expected_log_softmax
from scipy.stats import entropy

from attnviz.analysis.numerics import (
    collapse_repeats,
    compute_row_entropies,
    is_causal,
    log_softmax,
    repeats_along,
)

pytestmark = pytest.mark.numeric


def test_entropies_are_those_of_scipy_and_never_minus_zero() -> None:
    """A weight of 0 adds nothing, and a row with one key has the entropy 0 without a sign."""
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3))
    weights[0, 0] = [0, 1, 0, 0, 0]
    entropies = compute_row_entropies(weights)
    np.testing.assert_allclose(entropies, entropy(weights, axis=-1), rtol=1e-12, atol=1e-15)
    assert not np.signbit(entropies[0, 0])


def test_log_softmax_is_that_of_scipy() -> None:
    """Large logits do not overflow, and the sum of the probabilities is 1."""
    logits = np.random.default_rng(0).normal(0, 1000, (3, 7))
    found = log_softmax(logits)
    np.testing.assert_allclose(found, expected_log_softmax(logits, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-12)


def test_a_mask_is_collapsed_along_the_axes_where_it_repeats_itself() -> None:
    """Only the first so many axes, and only where broadcasting made them; what it says stays."""
    mask = np.broadcast_to(np.tri(4, dtype=bool), (2, 3, 4, 4))
    assert [repeats_along(mask, axis) for axis in range(4)] == [True, True, False, False]
    assert collapse_repeats(mask, 1).shape == (1, 3, 4, 4)
    collapsed = collapse_repeats(mask, 4)
    assert collapsed.shape == (1, 1, 4, 4)
    np.testing.assert_array_equal(np.broadcast_to(collapsed, mask.shape), mask)
    assert collapse_repeats(mask.copy(), 4).shape == mask.shape


def test_causal_is_what_has_nothing_above_the_diagonal() -> None:
    """In each of several matrices; a single key has nothing above it, and tells nothing."""
    causal = np.broadcast_to(np.tri(4), (2, 3, 4, 4)).copy()
    assert is_causal(causal)
    causal[1, 2, 0, 3] = 1e-30
    assert not is_causal(causal)
    assert not is_causal(np.ones((1, 1), bool))
