"""From a prompt and a request to a capture, by the backend that reads the model.

base.py has the protocols of models, registry.py the table of backends. The questions to a model,
and its answers, are in attnviz.request.
"""

import warnings
from typing import Any

from attnviz import request
from attnviz.models.base import Model
from attnviz.models.registry import load_model

__all__ = ["Model", "load_model"]

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
    """Return a name that this module once had, and warn that the next version removes it.

    Python calls this hook for names that the module does not define. Raises AttributeError for a
    name that it never had.
    """
    if name == "load":
        warnings.warn(
            "attnviz.models.load goes with the next version: its name is load_model",
            DeprecationWarning,
            stacklevel=2,
        )
        return load_model
    if name not in _IN_REQUEST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"attnviz.models.{name} goes with the next version: import it from attnviz.request",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(request, name)
