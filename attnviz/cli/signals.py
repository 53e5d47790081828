"""Signals that end a command from outside: SIGTERM, and SIGHUP when its terminal is closed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
SIGNAL_CODES = 128  # less than the exit code of a process that a signal ends, in every shell
Handler = Callable[[int, FrameType | None], object]


class TerminationError(BaseException):
    """A signal asks the process to end. As with KeyboardInterrupt, no ``except Exception`` has it.

    number: that of the signal.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"ended by a signal ({name})")
        self.exit_code = SIGNAL_CODES + number


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise TerminationError for a signal that would end the process, while a block runs.

    So what the block has open is closed, and its temporary files are removed. The error is raised
    where the program is when the signal arrives, and once more at the end of the block, since a
    library may drop it there.
    """
    received: list[int] = []

    def end_block(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python gives both
        received.append(number)
        raise TerminationError(number)

    with handle_signals(ENDING_SIGNALS, end_block):
        try:
            yield
        finally:
            if received:
                raise TerminationError(received[0])


@contextmanager
def handle_signals(numbers: list[signal.Signals], handler: Handler) -> Iterator[None]:
    """Call a handler for signals while a block runs.

    A signal that would end the process and that it ignores stays ignored, as nohup wants it.
    Outside the main thread, where Python sets no handlers, nothing is changed.
    """
    earlier_handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            is_ignored = signal.getsignal(number) == signal.SIG_IGN
            if not (is_ignored and number in ENDING_SIGNALS):
                earlier_handlers[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier_handler in earlier_handlers.items():
            signal.signal(number, earlier_handler)
