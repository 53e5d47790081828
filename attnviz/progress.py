"""How far long work is: said by whoever works, and shown by whoever follows.

Work in any room says what it does with ``begin_step`` or ``count_steps``, and knows nothing of a
screen. The steps that have begun and not ended lie in a list, the outermost first. Whoever follows
looks into that list when it suits; where nobody does, a step is made and forgotten.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeVar

Item = TypeVar("Item")
SHOWN_ELSEWHERE = ""
"""The action of a step that is not to be shown, since something else draws on the screen."""


@dataclass(eq=False)
class WorkStep:
    """A piece of work that has begun."""

    action: str
    """What is done, such as "reading the text"."""
    unit: str = ""
    """What is counted, such as "layer"; empty if nothing is."""
    total: int | None = None
    """How many units there are; None if nobody knows."""
    done: int = 0
    """How many units are done."""
    state: str = ""
    """What else is to be said, such as a loss."""
    began: float = field(default_factory=time.monotonic)
    """When the step began, in seconds of ``time.monotonic``."""
    done_before: int = 0
    """How many units had been done when it began."""

    def advance(self, count: int = 1) -> None:
        """Say that some more units are done."""
        self.done += count

    def continue_from(self, done: int) -> None:
        """Say that the step begins only now, and that some units were done before.

        How long these took tells nothing of how long the others take.
        """
        self.done = done
        self.done_before = done
        self.began = time.monotonic()

    def predict_seconds(self, now: float) -> float | None:
        """Predict how many seconds the rest takes, if each unit takes as long as those so far.

        now: the time of ``time.monotonic``. None if no unit is done yet, or nobody knows how many
        there are.
        """
        done_here = self.done - self.done_before
        if self.total is None or done_here <= 0:
            return None
        seconds_of_unit = (now - self.began) / done_here
        return seconds_of_unit * max(0, self.total - self.done)


FOLLOWED: ContextVar[list[WorkStep] | None] = ContextVar("FOLLOWED", default=None)
"""The steps that have begun, the outermost first; None if nobody follows."""


@contextmanager
def follow_steps() -> Iterator[list[WorkStep]]:
    """Follow the work that a block does: yield the list of its steps, the outermost first.

    The list changes as steps begin and end.
    """
    steps: list[WorkStep] = []
    token = FOLLOWED.set(steps)
    try:
        yield steps
    finally:
        FOLLOWED.reset(token)


@contextmanager
def begin_step(action: str, unit: str = "", total: int | None = None) -> Iterator[WorkStep]:
    """Say what is done while a block runs, and yield the step, which counts what is done of it.

    action: what is done, such as "reading the text". unit: what is counted, such as "layer". total:
    how many there are, if that is known.
    """
    step = WorkStep(action, unit, total)
    steps = FOLLOWED.get()
    if steps is None:
        yield step
        return
    steps.append(step)
    try:
        yield step
    finally:
        steps.remove(step)


def count_steps(
    items: Iterable[Item],
    action: str,
    unit: str,
    total: int | None = None,
) -> Iterator[Item]:
    """Yield items, and say that each is done when the next one is asked for.

    A single item is not counted. action: what is done with them. unit: what one of them is
    called. total: how many there are; None for the length of a collection, or if nobody knows.
    """
    if total is None and isinstance(items, Collection):
        total = len(items)
    counted_unit = "" if total == 1 else unit
    with begin_step(action, counted_unit, total) as step:
        for item in items:
            yield item
            step.advance()


def leave_screen() -> AbstractContextManager[WorkStep]:
    """Say that something else draws on the screen, or that the user types, while a block runs."""
    return begin_step(SHOWN_ELSEWHERE)


def shorten_name(name: str) -> str:
    """Return the last part of the name of a model or a file, which may be a long path."""
    return PurePath(name).name or name
