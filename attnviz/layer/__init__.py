"""Attention itself: the mathematics, for NumPy arrays and torch tensors, and the torch modules.

``attend`` and the score functions need NumPy only; ``Attention`` and ``MultiHeadAttention`` load
torch when used.
"""

from typing import TYPE_CHECKING, Any

from attnviz.layer.attention import Attended, attend, softmax
from attnviz.layer.multihead import multi_head_attend
from attnviz.layer.scores import (
    SCORES,
    additive,
    cosine,
    dot,
    gaussian,
    general,
    pairwise,
    scaled_dot,
)

if TYPE_CHECKING:
    from attnviz.layer.modules import Attention, MultiHeadAttention

__all__ = [
    "SCORES",
    "Attended",
    "Attention",
    "MultiHeadAttention",
    "additive",
    "attend",
    "cosine",
    "dot",
    "gaussian",
    "general",
    "multi_head_attend",
    "pairwise",
    "scaled_dot",
    "softmax",
]


def __getattr__(name: str) -> Any:
    """Load the torch modules on first use: importing the package must not import torch."""
    if name in ("Attention", "MultiHeadAttention"):
        from attnviz.layer import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
