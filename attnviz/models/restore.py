"""A model is left as it was found: modes, hooks, attention implementation, and what else a run sets on its parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation; the attributes of its modules and configs come back, whatever happens.

    Parts that change themselves as they run are so undone too: library models that once returned their attention keep
    hooks, and sparse ones turn to full attention for good when they read a short text.
    """
    parts = [*model.modules(), *configs(model)]
    before = [(part, dict(vars(part)), inner(part)) for part in parts]
    for module in model.modules():
        module.training = False
    try:
        yield
    finally:
        for part, attributes, dicts in before:
            vars(part).clear()
            vars(part).update(attributes)
            for name, entries in dicts.items():
                attributes[name].clear()
                attributes[name].update(entries)


def inner(part: Any) -> dict[str, dict[Any, Any]]:
    """Copies of the dicts of a module: its hooks, parameters, buffers and submodules."""
    return {name: dict(value) for name, value in vars(part).items() if isinstance(value, dict) and name[:1] == "_"}


def configs(model: nn.Module) -> list[Any]:
    """The configs of a transformers model and of the models in it, each once; none of another module."""
    found: dict[int, Any] = {}
    for module in model.modules():
        pending = [vars(module).get("config")]
        while pending:
            config = pending.pop()
            if hasattr(config, "_attn_implementation_internal") and id(config) not in found:
                found[id(config)] = config
                pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return list(found.values())
