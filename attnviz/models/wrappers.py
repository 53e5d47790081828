"""Objects around a loaded model: what compiles, copies, adapts or serves it -> the model whose attention is read.

No library is imported here: an object of a library that was never imported cannot be value over.
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
"""Wrappers that do no more than call the module in one of their attributes: where they are defined, which, its name."""

SERVING = "sentence_transformers"  # a library whose modules feed one transformers model
PASSING = "AdaLoraModel"  # its forward changes the loss alone


class ModelParts(NamedTuple):
    """A model that is loaded, and what belongs to it."""

    model: nn.Module
    tokenizer: Any = None
    """The one that the wrapper holds, if any."""
    prompt: str = ""
    """A text that the wrapper puts before each text that it reads."""


def unwrap_model(value: Any) -> ModelParts:
    """Find the model in what a user hands over; a module of no known wrapper is the model itself.

    Raises UsageError for an object that holds no model, ModelError for a wrapper that does more than call its model.
    """
    parts = ModelParts(value)
    while True:
        inner = look_into(parts.model)
        if inner is None:
            break
        tokenizer = inner.tokenizer if parts.tokenizer is None else parts.tokenizer
        parts = ModelParts(inner.model, tokenizer, parts.prompt or inner.prompt)
    if not isinstance(parts.model, nn.Module):
        raise UsageError(
            f"model= is {describe_object(value)}: give a name, a folder, a transformers model or a torch.nn.Module"
        )
    return parts


def describe_object(value: Any) -> str:
    """Say what an object is."""
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"of type {type(value).__name__}"
    )


def look_into(model: Any) -> ModelParts | None:
    """Look one step into a wrapper; None if it is none. Raises ModelError."""
    if is_a(model, "transformers.pipelines.base", "Pipeline"):
        return ModelParts(model.model, model.tokenizer)
    if not isinstance(model, nn.Module) or is_transformers_model(model):
        return None
    for home, name, attribute in CALLING:
        if is_a(model, home, name):
            return ModelParts(getattr(model, attribute))
    if is_a(model, "peft", "PeftModel") or is_a(model, "peft", "PeftMixedModel"):
        return ModelParts(find_adapted_model(model))
    serves = any(kind.__module__.split(".")[0] == SERVING for kind in type(model).__mro__)
    if serves and list_outermost_models(model):
        return ModelParts(
            find_only_model(model), getattr(model, "tokenizer", None), read_prompt(model)
        )
    return None


def is_a(value: Any, home: str, name: str) -> bool:
    """Tell whether a value is of a class, by the module that defines it; not if that was never imported."""
    kind = getattr(sys.modules.get(home), name, None)
    return kind is not None and isinstance(value, kind)


def is_transformers_model(value: Any) -> bool:
    """Tell whether a value is a model of the transformers library."""
    return "transformers" in sys.modules and is_a(value, "transformers", "PreTrainedModel")


def find_adapted_model(model: Any) -> nn.Module:
    """Find the model in a PeftModel, whose layers apply the adapter themselves.

    Raises ModelError for adapters that are applied outside of the layers: by tokens before the text, or in each call.
    """
    tuner = model.base_model
    configs = model.peft_config.values()
    kinds = ", ".join(
        str(getattr(config.peft_type, "value", config.peft_type)) for config in configs
    )
    adds_tokens = any(config.is_prompt_learning for config in configs)
    waits_for_tokens = any(getattr(config, "alora_invocation_tokens", None) for config in configs)
    if (
        adds_tokens
        or waits_for_tokens
        or (overrides_forward(tuner) and type(tuner).__name__ != PASSING)
    ):
        raise ModelError(
            f"{type(model).__name__} applies its adapter ({escape(kinds)}) outside of the model's layers, where it "
            "cannot be read: adapters in the layers, such as LoRA, can be"
        )
    inner: nn.Module = tuner.model
    return inner


def overrides_forward(tuner: Any) -> bool:
    """Tell whether a tuner of peft does something of its own in each call."""
    base = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTuner", None)
    return base is not None and isinstance(tuner, base) and type(tuner).forward is not base.forward


def find_only_model(model: nn.Module) -> nn.Module:
    """Find the one model of transformers, or wrapper of one, in a module. Raises ModelError if there are several."""
    models = list_outermost_models(model)
    if len(models) != 1:
        raise ModelError(
            f"{type(model).__name__} holds {len(models)} transformers models: hand over the one that is to be read"
        )
    return models[0]


def list_outermost_models(model: nn.Module) -> list[nn.Module]:
    """List the models of transformers, and wrappers of such, in a module that are in no other one."""
    models: list[nn.Module] = []
    for child in model.children():
        is_outermost = is_transformers_model(child) or is_a(child, "peft", "PeftModel")
        models += [child] if is_outermost else list_outermost_models(child)
    return models


def read_prompt(model: Any) -> str:
    """Read the text that a sentence encoder puts before each text unless it is told otherwise."""
    prompts, name = getattr(model, "prompts", None), getattr(model, "default_prompt_name", None)
    return str(prompts.get(name) or "") if isinstance(prompts, dict) else ""


def describe_module(model: nn.Module) -> str:
    """Say what a module that is no transformers model needs, to be captured."""
    need = "a module needs inputs=: what it is called with"
    paths = [name for name, part in model.named_modules() if is_transformers_model(part)]
    return (
        f"{need}; to read a text, hand over the transformers model in it, .{paths[0]}"
        if paths
        else need
    )


def read_tokenizer(value: Any) -> Any:
    """Read a tokenizer, or that of a processor, from what a user hands over as such; None of None.

    Raises UsageError for anything else.
    """
    if value is None or is_a(value, "transformers", "PreTrainedTokenizerBase"):
        return value
    inner = getattr(value, "tokenizer", None)
    if is_a(inner, "transformers", "PreTrainedTokenizerBase"):
        return inner
    raise UsageError(
        f"tokenizer= is {describe_object(value)}: give a tokenizer of transformers, such as AutoTokenizer loads"
    )
