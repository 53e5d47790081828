"""Leaving a model as it was found: modes, hooks, attention functions, and what else a run changes.

While a model runs it is changed, and so are settings of torch and of transformers that belong to
the whole process. Therefore runs wait for each other: a thread that captures keeps all others from
capturing until everything is restored. A capture within the run of another one is refused, since
each would see the calls of the other.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    """Decorate a function so that its calls wait until no other thread runs a model.

    Calls from the thread that runs one do not wait. Tensors are made with numbers in them, also
    where the caller asked torch for none; see ``leave_meta_device``.
    """

    @wraps(function)
    def wait_and_call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with RUNNING, leave_meta_device():
            return function(*args, **options)

    return wait_and_call


def leave_meta_device() -> AbstractContextManager[object]:
    """Return a context in which new tensors hold numbers.

    They hold none if the caller has made "meta" the default device, as one does to build large
    models. Another default device stays, since a model may count on it.
    """
    if torch.get_default_device().type != "meta":
        return nullcontext()
    return torch.device("cpu")


@contextmanager
def leave_as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation, and restore its modules and configs afterwards.

    Their attributes are restored also if an error is raised, and if the model changed them itself:
    library models that once returned their attention keep hooks, and sparse ones turn to full
    attention for good when they read a short text. Other threads wait meanwhile. Raises UsageError
    if this thread runs a model already.
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
            for attributes, saved in zip(dicts, copies, strict=True):
                attributes.clear()
                attributes.update(saved)


def list_attribute_dicts(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """List the dicts that hold the attributes of modules and of their configs.

    They are the ``__dict__`` of each, and the dicts in these that torch changes in place, such as
    those of parameters and hooks.
    """
    owners = (*modules, *list_configs(modules))
    dicts = [vars(owner) for owner in owners]
    registries = [
        attributes[name] for attributes in dicts for name in REGISTRIES if name in attributes
    ]
    return dicts + registries


def list_configs(modules: Sequence[nn.Module]) -> list[Any]:
    """List the transformers configs that modules hold, and the configs inside these, each once.

    Modules without such a config are passed over.
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
    """Run functions that torch.compile has compiled as they were written before.

    Only then can the calls in them be observed.
    """
    # if this was never imported, nothing was compiled; to import it would take seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # torch warns of global hooks, which are our own
        warnings.filterwarnings("ignore", message=".*global hooks on modules")
        yield


def describe_failure(model: nn.Module, error: Exception) -> AttnvizError | MemoryError:
    """Return the error that a user sees for an error that a model raised while it ran.

    An error of attnviz stays as it is, and any lack of memory becomes a MemoryError. All others
    become a ModelError of one line, with the class and the message of the original.
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
    """Replace an error that a model raises while it runs by one that a user can read.

    Errors of attnviz, and a lack of memory, pass as they are. Others become a ModelError of one
    line, of which the original is the cause.
    """
    try:
        yield
    except (AttnvizError, MemoryError):
        raise
    except Exception as error:
        raise describe_failure(model, error) from error
