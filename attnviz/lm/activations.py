"""The activation functions of feed-forward layers, by the names that configs have for them."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeAlias

import numpy as np

from attnviz.layer.arrays import Array, find_namespace
from attnviz.record import Doubles

Activation: TypeAlias = Callable[[Array], Array]
"""A function of each number of an array on its own."""

NODES_A_UNIT = 64  # of the table of the error function
TABLE_END = 6.0  # from here on the error function is 1 in double precision
SQRT_HALF = math.sqrt(0.5)


def apply_gelu(x: Array) -> Array:
    """Apply GELU, x Phi(x) with the normal distribution Phi (Hendrycks & Gimpel 2016)."""
    return x * 0.5 * (1.0 + compute_erf(x * SQRT_HALF))


def apply_tanh_gelu(x: Array) -> Array:
    """Apply the approximation of GELU by tanh (Hendrycks & Gimpel 2016, section 2)."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + find_namespace(x).tanh(inner))


def apply_sigmoid_gelu(x: Array) -> Array:
    """Apply the approximation of GELU by the logistic function, x sigmoid(1.702 x)."""
    return x * apply_sigmoid(1.702 * x)


def apply_silu(x: Array) -> Array:
    """Apply SiLU, x sigmoid(x) (Hendrycks & Gimpel 2016)."""
    return x * apply_sigmoid(x)


def apply_relu(x: Array) -> Array:
    """Apply the positive part, max(x, 0)."""
    return x.clip(0)


def apply_sigmoid(x: Array) -> Array:
    """Apply the logistic function 1 / (1 + exp(-x)), by tanh, which does not overflow."""
    return 0.5 + 0.5 * find_namespace(x).tanh(0.5 * x)


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": apply_gelu,
    "gelu_new": apply_tanh_gelu,
    "gelu_pytorch_tanh": apply_tanh_gelu,
    "quick_gelu": apply_sigmoid_gelu,
    "relu": apply_relu,
    "silu": apply_silu,
    "swish": apply_silu,
}


def compute_erf(x: Array) -> Array:
    """Compute the error function of each number, to 1e-9.

    NumPy has none, and SciPy takes as long to import as a picture takes to draw. So it is a table
    of ``math.erf``, and from the nearest node the Taylor series: erf'(a) = 2 / sqrt(pi) exp(-a^2).
    Torch computes its own.
    """
    xp = find_namespace(x)
    if xp is not np:
        return xp.erf(x)
    values, slopes = make_erf_table()
    size = np.minimum(np.abs(x), TABLE_END)
    countable = np.fmin(size, TABLE_END)  # what is not a number has a node too, and stays none
    index = (countable * NODES_A_UNIT + 0.5).astype(np.intp)
    node = index * (1.0 / NODES_A_UNIT)
    step = size - node
    # the derivatives of erf at a node are its slope times polynomials of the node
    second = -node
    third = (2.0 * node * node - 1.0) / 3.0
    fourth = node * (3.0 - 2.0 * node * node) / 6.0
    series = step * (1.0 + step * (second + step * (third + step * fourth)))
    result = values[index] + slopes[index] * series
    return np.copysign(result, x).astype(x.dtype)


@cache
def make_erf_table() -> tuple[Doubles, Doubles]:
    """Make the error function and its derivative at the nodes of the table."""
    count = int(TABLE_END * NODES_A_UNIT) + 1
    nodes = np.arange(count) / NODES_A_UNIT
    values = np.array([math.erf(node) for node in nodes])
    slopes = 2.0 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    return values, slopes
