"""Leaving a model as it was found: modes, hooks, attention functions, and what else a run changes.

While a model runs it is changed, and so are settings of torch and of transformers that belong to
the whole process. Therefore runs wait for each other: a thread that captures keeps all others from
capturing until everything is restored. A capture within the run of another one is refused, since
each would see the calls of the other.
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

RUNNING = RLock()
"""One lock for all models: they may share parts and tokenizers, and they share the process."""
LONGEST = 300  # characters of another library's message in ours
REGISTRIES = (
    "_modules",
    "_parameters",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
)
"""The attributes of modules that are dicts, which a run may change in place."""


def wait_for_turn(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make calls of a function wait until no other thread runs a model.

    Calls from within a run do not wait.
    """

    @wraps(function)
    def wait_and_call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with RUNNING:
            return function(*args, **options)

    return wait_and_call


@contextmanager
def leave_as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation, and restore the attributes of its modules and configs after.

    They are restored whatever happens. So are parts that change themselves as they run: library
    models that once returned their attention keep hooks, and sparse ones turn to full attention for
    good when they read a short text.
    """
    with RUNNING, force_eager_calls():
        require_no_run()
        modules = list(model.modules())
        dicts = list_attribute_dicts(modules)
        copies = [attributes.copy() for attributes in dicts]
        for module in modules:
            vars(module)["training"] = False
        RUNS[get_ident()] = type(model).__name__
        try:
            yield
        finally:
            del RUNS[get_ident()]
            for attributes, kept in zip(dicts, copies, strict=True):
                attributes.clear()
                attributes.update(kept)


def list_attribute_dicts(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """List the dicts that hold the attributes of modules and of their configs."""
    owners = (*modules, *list_configs(modules))
    dicts = [vars(owner) for owner in owners]
    registries = [
        attributes[name] for attributes in dicts for name in REGISTRIES if name in attributes
    ]
    return dicts + registries


def list_configs(modules: Sequence[nn.Module]) -> list[Any]:
    """List the configs of transformers models and of the models in them, each once.

    Other modules have none.
    """
    configs: dict[int, Any] = {}
    owned = [vars(module).get("config") for module in modules]
    pending = [config for config in owned if config is not None]
    while pending:
        config = pending.pop()
        is_new = id(config) not in configs
        if is_new and hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = config
            pending += [getattr(config, name, None) for name in config.sub_configs]
    return list(configs.values())


@contextmanager
def force_eager_calls() -> Iterator[None]:
    """Run code that torch.compile made as it was written, so that its calls can be seen."""
    # nothing was compiled, and the import takes seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # the hooks are ours
        warnings.filterwarnings("ignore", message=".*global hooks on modules")
        yield


def describe_failure(model: nn.Module, error: Exception) -> AttnvizError | MemoryError:
    """Make the error for the user of an error that a model raised while it ran.

    It is one line with the class of the error and its reason.
    """
    if isinstance(error, AttnvizError):
        return error
    is_memory_error = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if is_memory_error or "can't allocate memory" in str(error):
        return MemoryError()
    reason = " ".join(str(error).split())[:LONGEST]
    kind = type(error).__name__
    failure = f"{kind}: {reason}" if reason else kind
    return ModelError(f"{type(model).__name__} cannot run on this input: {failure}")


@contextmanager
def translate_failures(model: nn.Module) -> Iterator[None]:
    """Raise the error of ``describe_failure`` for an error that a model raises while it runs.

    The original error is its cause.
    """
    try:
        yield
    except (AttnvizError, MemoryError):
        raise
    except Exception as error:
        raise describe_failure(model, error) from error
