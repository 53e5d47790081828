"""How an experiment that takes many runs tells how far it is."""

from collections.abc import Callable
from typing import TypeAlias

Watch: TypeAlias = Callable[[int, int], None]
"""A function that is called with how many runs are done, and how many there are."""


def ignore_progress(done: int, total: int) -> None:
    """Do nothing with how many of how many runs are done."""
