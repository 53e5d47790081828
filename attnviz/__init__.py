"""See and question attention: in a terminal, in figures, in numbers.

>>> import attnviz
>>> capture = attnviz.capture("The cat sat on the mat.")
>>> capture.maps[0].weights.shape  # (layer, head, query, key)
(3, 6, 9, 9)
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnviz.api import (
        attribute,
        capture,
        compare,
        explain,
        from_arrays,
        heads,
        inspect,
        intervene,
    )
    from attnviz.io.formats import load, save
    from attnviz.notebook import show

__all__ = [
    "attribute",
    "capture",
    "compare",
    "explain",
    "from_arrays",
    "heads",
    "inspect",
    "intervene",
    "load",
    "save",
    "show",
]

_MODULES = {
    **dict.fromkeys(__all__, "api"),
    "load": "io.formats",
    "save": "io.formats",
    "show": "notebook",
}
"""Where each public name is defined."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that the command line starts without it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'attnviz' has no attribute {name!r}")
    _import_module("attnviz.notebook")  # it gives captures and results what a notebook displays
    return getattr(_import_module(f"attnviz.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
