"""What a capture must leave as it was: the state of a model, and what belongs to the whole process."""

import warnings
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as registry
from torch.overrides import _get_current_function_mode_stack

from attnviz.models.huggingface.attention_functions import _observer


def state(net: nn.Module) -> list[Any]:
    """What a module and its parts hold, by identity where it is no plain value, and numbers as they are."""
    parts = [
        part
        for module in net.modules()
        for part in (module, getattr(module, "config", None))
        if part is not None
    ]
    held = [{name: told(value) for name, value in vars(part).items()} for part in parts]
    numbers = [
        (part.requires_grad, part.grad, part.tolist())
        for part in (*net.parameters(), *net.buffers())
    ]
    return [held, numbers]


def told(value: Any) -> Any:
    """A value that a later change of the same object does not change."""
    if isinstance(value, dict):
        return [(key, told(inner)) for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return [told(inner) for inner in value]
    return value if isinstance(value, (str, int, float, type(None))) else id(value)


def world() -> list[Any]:
    """What is common to all modules."""
    return [
        torch.backends.mha.get_fastpath_enabled(),
        functional.scaled_dot_product_attention,
        functional.multi_head_attention_forward,
        torch.is_grad_enabled(),
        _get_current_function_mode_stack(),
        list(registry._global_forward_hooks) + list(registry._global_forward_pre_hooks),
        _observer.get(),
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
        list(warnings.filters),
    ]
