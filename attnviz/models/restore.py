"""A model is left as it was found: modes, hooks, attention implementation, and what else a run sets on its parts.

While a model runs it is changed, and so are settings of torch and of transformers that belong to the whole process.
Therefore runs wait for each other: a thread that captures keeps all others from capturing until everything is restored.
A capture within the run of another one is refused, since each would see the calls of the other.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from threading import RLock, get_ident
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from attnviz.errors import AttnvizError, ModelError
from attnviz.models.checks import RUNS, require_no_run

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

RUNNING = (
    RLock()
)  # one for all models: they may share parts and tokenizers, and they share the process
LONGEST = 300  # characters of another library's message in ours
REGISTRIES = (
    "_modules",
    "_parameters",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
)  # what modules hold in dicts


def in_turn(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make calls of a function wait until no other thread runs a model; calls from within a run do not wait."""

    @wraps(function)
    def wait_and_call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with RUNNING:
            return function(*args, **options)

    return wait_and_call


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation; the attributes of its modules and configs come back, whatever happens.

    Parts that change themselves as they run are so undone too: library models that once returned their attention keep
    hooks, and sparse ones turn to full attention for good when they read a short text.
    """
    with RUNNING, force_eager_calls():
        require_no_run()
        modules = list(model.modules())
        dicts = [vars(part) for part in (*modules, *configs(modules))]
        dicts += [
            attributes[name] for attributes in dicts for name in REGISTRIES if name in attributes
        ]
        before = [(attributes, attributes.copy()) for attributes in dicts]
        for module in modules:
            vars(module)["training"] = False
        RUNS[get_ident()] = type(model).__name__
        try:
            yield
        finally:
            del RUNS[get_ident()]
            for attributes, kept in before:
                attributes.clear()
                attributes.update(kept)


def configs(modules: Sequence[nn.Module]) -> list[Any]:
    """The configs of transformers models and of the models in them, each once; none of other modules."""
    found: dict[int, Any] = {}
    pending = [
        config
        for config in (vars(module).get("config") for module in modules)
        if config is not None
    ]
    while pending:
        config = pending.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def force_eager_calls() -> Iterator[None]:
    """Run code that torch.compile made as it was written, so that its calls can be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=".*global hooks on modules")  # ours
        yield


def describe_failure(model: nn.Module, error: Exception) -> AttnvizError | MemoryError:
    """Make the error that a user gets of what a model raised while it ran: one line with its class and the reason."""
    if isinstance(error, AttnvizError):
        return error
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(
        error
    ):
        return MemoryError()
    reason = " ".join(str(error).split())[:LONGEST]
    kind = type(error).__name__
    failure = f"{kind}: {reason}" if reason else kind
    return ModelError(f"{type(model).__name__} cannot run on this input: {failure}")


@contextmanager
def translate_failures(model: nn.Module) -> Iterator[None]:
    """Raise what a model raises while it runs as ``describe_failure`` says; the original error is its cause."""
    try:
        yield
    except (AttnvizError, MemoryError):
        raise
    except Exception as error:
        raise describe_failure(model, error) from error
