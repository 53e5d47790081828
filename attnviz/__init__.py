"""See and question attention: in a terminal, in figures, in numbers.

>>> import attnviz
>>> found = attnviz.capture("The cat sat on the mat.")
>>> found.maps[0].weights.shape  # (layer, head, query, key)
(3, 6, 9, 9)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnviz.api import capture
    from attnviz.display import show
    from attnviz.storage import load

__all__ = ["capture", "load", "show"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that the command line starts without it."""
    if name == "capture":
        from attnviz.api import capture

        return capture
    if name == "load":
        from attnviz.storage import load

        return load
    if name == "show":
        from attnviz.display import show

        return show
    raise AttributeError(f"module 'attnviz' has no attribute {name!r}")
