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
    """Find the model in an object that a user hands over, through wrappers of any depth.

    A wrapper is an object of a library that compiles, copies, adapts or serves a model. A torch
    module that is no such wrapper is the model itself. The model is returned with the tokenizer and
    the prompt of the outermost wrapper that has one. Raises UsageError for an object that holds no
    model, ModelError for a wrapper that does more than call its model.
    """
    unwrapped = UnwrappedModel(value)
    while True:
        inner = unwrap_once(unwrapped.model)
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


def unwrap_once(model: Any) -> UnwrappedModel | None:
    """Return the object directly inside a wrapper of a model; None if it is no known wrapper.

    The tokenizer and the prompt of the wrapper are returned with it, if it has any. Raises
    ModelError for a wrapper that does more than call its model, or that holds several.
    """
    if is_of_class(model, "transformers.pipelines.base", "Pipeline"):
        return UnwrappedModel(model.model, model.tokenizer)
    if not isinstance(model, nn.Module) or is_transformers_model(model):
        return None
    for home, name, attribute in CALLING:
        if is_of_class(model, home, name):
            return UnwrappedModel(getattr(model, attribute))
    if is_of_class(model, "peft", "PeftModel") or is_of_class(model, "peft", "PeftMixedModel"):
        return UnwrappedModel(find_adapted_model(model))
    # the libraries that define its class and the bases of this
    packages = [base.__module__.split(".")[0] for base in type(model).__mro__]
    if SERVING in packages and list_outermost_models(model):
        inner = find_only_model(model)
        tokenizer = getattr(model, "tokenizer", None)
        return UnwrappedModel(inner, tokenizer, find_default_prompt(model))
    return None


def is_of_class(value: Any, home: str, name: str) -> bool:
    """Return True if a value is an instance of a class of a library, without importing the library.

    home: the name of the module that defines the class. name: the name of the class. The result is
    False if that module was never imported.
    """
    kind = getattr(sys.modules.get(home), name, None)
    return kind is not None and isinstance(value, kind)


def is_transformers_model(value: Any) -> bool:
    """Return True if a value is a model of the transformers library."""
    return "transformers" in sys.modules and is_of_class(value, "transformers", "PreTrainedModel")


def find_adapted_model(model: Any) -> nn.Module:
    """Return the transformers model in a PeftModel, the layers of which apply the adapter.

    Raises ModelError for adapters that act outside of the layers: they put tokens before the text,
    wait for certain tokens, or do something in each call of the whole model.
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
    """Return True if a tuner of peft has a forward of its own, which does more than call the model.

    A tuner is the object by which peft puts an adapter into a model. The result is False for any
    other object, and if peft was never imported.
    """
    base = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTuner", None)
    if base is None or not isinstance(tuner, base):
        return False
    return bool(type(tuner).forward is not base.forward)


def find_only_model(model: nn.Module) -> nn.Module:
    """Return the only transformers model, or PEFT wrapper of one, among a module's submodules.

    Models inside another model do not count. Raises ModelError if there are several, or none.
    """
    models = list_outermost_models(model)
    if len(models) != 1:
        raise ModelError(
            f"{type(model).__name__} holds {len(models)} transformers models: "
            "hand over the one that is to be read",
        )
    return models[0]


def list_outermost_models(model: nn.Module) -> list[nn.Module]:
    """List the transformers models, and PEFT wrappers of such, among the submodules of a module.

    Models inside another model are not listed.
    """
    models: list[nn.Module] = []
    for child in model.children():
        if is_transformers_model(child) or is_of_class(child, "peft", "PeftModel"):
            models.append(child)
        else:
            models += list_outermost_models(child)
    return models


def find_default_prompt(model: Any) -> str:
    """Return the prompt that a sentence encoder puts before each text by default; empty if none.

    model: one of the library sentence-transformers, which holds several prompts by name, and the
    name of the default one.
    """
    prompts = getattr(model, "prompts", None)
    name = getattr(model, "default_prompt_name", None)
    if not isinstance(prompts, dict):
        return ""
    return str(prompts.get(name) or "")


def explain_needed_inputs(model: nn.Module) -> str:
    """Return a message on what a user must give to capture a module that is no transformers model.

    It names the path of a transformers model inside the module, if there is one.
    """
    need = "a module needs inputs=: what it is called with"
    paths = [path for path, inner in model.named_modules() if is_transformers_model(inner)]
    if not paths:
        return need
    return f"{need}; to read a text, hand over the transformers model in it, .{paths[0]}"


def unwrap_tokenizer(value: Any) -> Any:
    """Return the tokenizer in an object that a user hands over.

    The object is a tokenizer of transformers, or a processor, which holds one. None is returned as
    it is. Raises UsageError for anything else.
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
