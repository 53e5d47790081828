"""Wrappers of a loaded model, which compile, copy, adapt or serve it: the model is found in them.

No library is imported here: an object of a library that was never imported cannot be handed over.
"""

import sys
from typing import Any, NamedTuple

from torch import nn

from attnviz.errors import ModelError, UsageError
from attnviz.escape import escape

CALLING = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel", "DataParallel", "module"),
    ("torch.nn.parallel", "DistributedDataParallel", "module"),
    ("torch.optim.swa_utils", "AveragedModel", "module"),
)
"""Wrappers that do no more than call the module in one of their attributes.

Each row is the module that defines the class, the name of the class, and that of the attribute."""

# a library whose modules feed one transformers model
SERVING = "sentence_transformers"
PASSING = "AdaLoraModel"  # its forward changes the loss alone


class UnwrappedModel(NamedTuple):
    """A model that is loaded, and what belongs to it."""

    model: nn.Module
    tokenizer: Any = None
    """The tokenizer that the wrapper holds, if any."""
    prompt: str = ""
    """A text that the wrapper puts before each text that it reads."""


def unwrap_model(value: Any) -> UnwrappedModel:
    """Find the model in an object that a user hands over.

    A module of no known wrapper is the model itself. Raises UsageError for an object that holds no
    model, ModelError for a wrapper that does more than call its model.
    """
    unwrapped = UnwrappedModel(value)
    while True:
        inner = open_wrapper(unwrapped.model)
        if inner is None:
            break
        tokenizer = unwrapped.tokenizer
        if tokenizer is None:
            tokenizer = inner.tokenizer
        prompt = unwrapped.prompt or inner.prompt
        unwrapped = UnwrappedModel(inner.model, tokenizer, prompt)
    if not isinstance(unwrapped.model, nn.Module):
        raise UsageError(
            f"model= is {describe_object(value)}: "
            "give a name, a folder, a transformers model or a torch.nn.Module",
        )
    return unwrapped


def describe_object(value: Any) -> str:
    """Say of which type an object is, or which class it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"of type {type(value).__name__}"


def open_wrapper(model: Any) -> UnwrappedModel | None:
    """Return the object inside a wrapper; None if it is no wrapper. Raises ModelError."""
    if is_of_class(model, "transformers.pipelines.base", "Pipeline"):
        return UnwrappedModel(model.model, model.tokenizer)
    if not isinstance(model, nn.Module) or is_transformers_model(model):
        return None
    for home, name, attribute in CALLING:
        if is_of_class(model, home, name):
            return UnwrappedModel(getattr(model, attribute))
    if is_of_class(model, "peft", "PeftModel") or is_of_class(model, "peft", "PeftMixedModel"):
        return UnwrappedModel(find_adapted_model(model))
    packages = [kind.__module__.split(".")[0] for kind in type(model).__mro__]
    if SERVING in packages and list_outermost_models(model):
        inner = find_only_model(model)
        tokenizer = getattr(model, "tokenizer", None)
        return UnwrappedModel(inner, tokenizer, read_prompt(model))
    return None


def is_of_class(value: Any, home: str, name: str) -> bool:
    """Return True if a value is of a class, by its name and the module that defines it.

    It is not if that module was never imported.
    """
    kind = getattr(sys.modules.get(home), name, None)
    return kind is not None and isinstance(value, kind)


def is_transformers_model(value: Any) -> bool:
    """Return True if a value is a model of the transformers library."""
    return "transformers" in sys.modules and is_of_class(value, "transformers", "PreTrainedModel")


def find_adapted_model(model: Any) -> nn.Module:
    """Find the model in a PeftModel, whose layers apply the adapter themselves.

    Raises ModelError for adapters that are applied outside of the layers: by tokens before the
    text, or in each call.
    """
    tuner = model.base_model
    configs = model.peft_config.values()
    types = [config.peft_type for config in configs]
    kinds = ", ".join(str(getattr(kind, "value", kind)) for kind in types)
    adds_tokens = any(config.is_prompt_learning for config in configs)
    waits_for_tokens = any(getattr(config, "alora_invocation_tokens", None) for config in configs)
    acts_outside = overrides_forward(tuner) and type(tuner).__name__ != PASSING
    if adds_tokens or waits_for_tokens or acts_outside:
        raise ModelError(
            f"{type(model).__name__} applies its adapter ({escape(kinds)}) "
            "outside of the model's layers, where it cannot be read: "
            "adapters in the layers, such as LoRA, can be",
        )
    inner: nn.Module = tuner.model
    return inner


def overrides_forward(tuner: Any) -> bool:
    """Return True if a tuner of peft does something of its own in each call."""
    base = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTuner", None)
    if base is None or not isinstance(tuner, base):
        return False
    return bool(type(tuner).forward is not base.forward)


def find_only_model(model: nn.Module) -> nn.Module:
    """Find the one model of transformers, or wrapper of one, in a module.

    Raises ModelError if there are several.
    """
    models = list_outermost_models(model)
    if len(models) != 1:
        raise ModelError(
            f"{type(model).__name__} holds {len(models)} transformers models: "
            "hand over the one that is to be read",
        )
    return models[0]


def list_outermost_models(model: nn.Module) -> list[nn.Module]:
    """List the models of transformers, or wrappers of such, in a module and in no other model."""
    models: list[nn.Module] = []
    for child in model.children():
        if is_transformers_model(child) or is_of_class(child, "peft", "PeftModel"):
            models.append(child)
        else:
            models += list_outermost_models(child)
    return models


def read_prompt(model: Any) -> str:
    """Read the text that a sentence encoder puts before each text unless it is told otherwise."""
    prompts = getattr(model, "prompts", None)
    name = getattr(model, "default_prompt_name", None)
    if not isinstance(prompts, dict):
        return ""
    return str(prompts.get(name) or "")


def describe_module(model: nn.Module) -> str:
    """Say what is needed to capture a module that is no transformers model."""
    need = "a module needs inputs=: what it is called with"
    paths = [path for path, inner in model.named_modules() if is_transformers_model(inner)]
    if not paths:
        return need
    return f"{need}; to read a text, hand over the transformers model in it, .{paths[0]}"


def read_tokenizer(value: Any) -> Any:
    """Return a tokenizer that a user hands over, or the tokenizer of a processor; None of None.

    Raises UsageError for anything else.
    """
    if value is None or is_of_class(value, "transformers", "PreTrainedTokenizerBase"):
        return value
    inner = getattr(value, "tokenizer", None)
    if is_of_class(inner, "transformers", "PreTrainedTokenizerBase"):
        return inner
    raise UsageError(
        f"tokenizer= is {describe_object(value)}: "
        "give a tokenizer of transformers, such as AutoTokenizer loads",
    )
