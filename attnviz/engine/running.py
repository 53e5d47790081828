"""The module of a net that is running, known while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import nn
from torch.nn.modules import module as registry


class Running:
    """The module that runs now, by its name in the net, and the number of its run."""

    def __init__(self) -> None:
        self.stack: list[tuple[str, int]] = []
        """Name and run of each module that runs, the innermost last."""
        self.entries = 0
        """Runs of modules that have begun so far."""

    @property
    def name(self) -> str:
        """The name of the innermost module that runs; empty for the net itself, or if none runs."""
        if not self.stack:
            return ""
        return self.stack[-1][0]

    @property
    def entry(self) -> int:
        """The number of the present run of the innermost module; 0 if none runs.

        Runs of modules are counted from 1, so that a module has another number each time it runs.
        """
        if not self.stack:
            return 0
        return self.stack[-1][1]


@contextmanager
def watch_modules(net: nn.Module) -> Iterator[Running]:
    """Know which module of a net runs, in this thread, without a hook on any of its modules.

    Yields a ``Running``, whose name and entry are those of the module that runs at the moment.
    """
    names = {module: name for name, module in net.named_modules()}
    running = Running()
    this_thread = get_ident()  # torch calls the hooks in every thread

    def enter(module: nn.Module, _: Any) -> None:
        if get_ident() == this_thread:
            running.entries += 1
            name = names.get(module, "")
            running.stack.append((name, running.entries))

    def leave(*_: Any) -> None:
        if get_ident() == this_thread:
            running.stack.pop()

    hooks = (
        registry.register_module_forward_pre_hook(enter),
        registry.register_module_forward_hook(leave),
    )
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
