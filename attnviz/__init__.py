"""See and question attention: in a terminal, in figures, in numbers.

>>> import attnviz
>>> found = attnviz.capture("The cat sat on the mat.")
>>> found.maps[0].weights.shape  # (layer, head, query, key)
(3, 6, 9, 9)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnviz.api import capture, from_arrays
    from attnviz.io.formats import load, save
    from attnviz.notebook import show

__all__ = ["capture", "from_arrays", "load", "save", "show"]
HOMES = {"capture": "api", "from_arrays": "api", "load": "io.formats", "save": "io.formats", "show": "notebook"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that the command line starts without it."""
    if name in HOMES:
        return getattr(import_module(f"attnviz.{HOMES[name]}"), name)
    raise AttributeError(f"module 'attnviz' has no attribute {name!r}")
