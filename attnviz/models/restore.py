"""A model is left as it was found: modes, hooks, attention implementation, and what else a run sets on its parts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

REGISTRIES = "_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"  # what modules hold in dicts


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation; the attributes of its modules and configs come back, whatever happens.

    Parts that change themselves as they run are so undone too: library models that once returned their attention keep
    hooks, and sparse ones turn to full attention for good when they read a short text.
    """
    modules = list(model.modules())
    dicts = [vars(part) for part in (*modules, *configs(modules))]
    dicts += [attributes[name] for attributes in dicts for name in REGISTRIES if name in attributes]
    before = [(attributes, attributes.copy()) for attributes in dicts]
    for module in modules:
        vars(module)["training"] = False
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)


def configs(modules: Sequence[nn.Module]) -> list[Any]:
    """The configs of transformers models and of the models in them, each once; none of other modules."""
    found: dict[int, Any] = {}
    pending = [config for config in (vars(module).get("config") for module in modules) if config is not None]
    while pending:
        config = pending.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
