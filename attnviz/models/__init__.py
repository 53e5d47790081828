"""A prompt and a request -> Capture, by the backend that reads the model.

base.py says what a model has, registry.py which backend reads it. What is asked of a model, and
what it answers, is in attnviz.request.
"""

import warnings
from typing import Any

from attnviz import request
from attnviz.models.base import Model
from attnviz.models.registry import load

__all__ = ["Model", "load"]

_IN_REQUEST = (
    "LIKELIEST",
    "NOTHING",
    "NO_COMPANIONS",
    "Change",
    "Companions",
    "Edge",
    "Intervention",
    "Placement",
    "Prompt",
    "Request",
    "Response",
    "Target",
    "Vocabulary",
)


def __getattr__(name: str) -> Any:
    """Return what stood here once and is in attnviz.request now. It goes with the next version."""
    if name not in _IN_REQUEST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"attnviz.models.{name} goes with the next version: import it from attnviz.request",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(request, name)
