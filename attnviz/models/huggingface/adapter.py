"""A PEFT adapter, merged into the weights of its base model: the adapted model itself runs then."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from attnviz.errors import ModelError
from attnviz.models.checks import read_first_line
from attnviz.models.folders import ADAPTER_WEIGHTS, read_adapter_config
from attnviz.models.safety import read_shapes

PREFIX = "base_model.model."  # of the names in an adapter's file
TASKS = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
CLASSIFIERS = "score.weight", "classifier.weight", "classifier.out_proj.weight"
# parts that an adapter's weight has in its name after that of the module
SUFFIX_LENGTHS = 1, 2, 3


class Adapter(NamedTuple):
    """An adapter before it is loaded."""

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """The shapes of its weights, by their names in the base model."""


def read_adapter(folder: Path) -> Adapter:
    """Read the config of the PEFT adapter in a folder, and the shapes of its weights.

    The weights themselves are not loaded. Raises ModelError for an adapter that is no safetensors,
    asks for absurd ranks, or acts on some tokens only.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {ADAPTER_WEIGHTS}: "
            "an adapter is read from safetensors only, never a pickle",
        )
    config = read_adapter_config(folder)
    shapes = {name.removeprefix(PREFIX): shape for name, shape in read_shapes(path).items()}
    require_sane_ranks(config, shapes, folder)
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder} acts on the tokens after a certain one only, which is not supported",
        )
    return Adapter(folder, config, shapes)


def require_sane_ranks(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> None:
    """Raise ModelError if an adapter's config asks for a rank that its weights cannot have.

    A rank is the length of a side of these weights. shapes: the shapes of the weights, by name.
    folder: the folder of the adapter.
    """
    sides = [side for shape in shapes.values() for side in shape]
    largest = max(sides, default=0)
    ranks = [config.get("r")]
    pattern = config.get("rank_pattern") or {}
    if isinstance(pattern, dict):
        ranks += pattern.values()
    for rank in ranks:
        if isinstance(rank, int) and rank > largest:
            raise ModelError(
                f"{folder} asks for a rank of {rank:,}; "
                f"its weights have at most {largest:,} on a side",
            )


def list_task_classes(adapter: Adapter) -> list[Any]:
    """Return a list of the class of model that an adapter was trained for.

    The list is empty if the adapter's config names no known task.
    """
    task = adapter.config.get("task_type")
    if not isinstance(task, str) or task not in TASKS:
        return []
    return [TASKS[task]]


def set_class_count(config: Any, adapter: Adapter) -> None:
    """Set the number of classes in a base model's config to that of an adapter's classifier.

    Nothing is changed if the adapter has no classifier.
    """
    for name, shape in adapter.shapes.items():
        if name.endswith(CLASSIFIERS) and len(shape) == 2:
            config.num_labels = shape[0]


def require_matching_modules(
    outline: Any,
    adapter: Adapter | None,
    folder: Path,
) -> None:
    """Raise ModelError if an adapter changes modules that its base model does not have.

    outline: the base model, without memory for its weights. adapter: None passes. folder: the
    folder of the base model.
    """
    if adapter is None:
        return
    modules = {name for name, _ in outline.named_modules()}
    for name in adapter.shapes:
        words = name.split(".")
        # the name of the module is what stands before a suffix of one to three words
        owners = [".".join(words[:-length]) for length in SUFFIX_LENGTHS]
        if not any(owner in modules for owner in owners if owner):
            raise ModelError(
                f"{adapter.folder} is no adapter of {folder}, which has no {owners[1] or name}",
            )


def apply_adapter(model: Any, adapter: Adapter) -> Any:
    """Merge a PEFT adapter into the weights of its base model, and return the merged model.

    Raises ModelError if the adapter does not fit the model, or adds tokens to every text.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    resize_embeddings(model, adapter)
    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ModelError(
                f"{adapter.folder} adds tokens of its own to every text: "
                "only adapters of weights are read",
            )
        config.inference_mode = True
        wrapped = PeftModel(model, config)
        weights = load_file(adapter.folder / ADAPTER_WEIGHTS)
        result = set_peft_model_state_dict(wrapped, weights)
        require_complete(result, adapter)
        return wrapped.merge_and_unload(safe_merge=True).eval()
    except ModelError:
        raise
    # the library raises ValueError, RuntimeError, KeyError, AttributeError ...
    except Exception as error:
        reason = read_last_line(error)
        raise ModelError(f"{adapter.folder} does not fit its base model: {reason}") from error


def resize_embeddings(model: Any, adapter: Adapter) -> None:
    """Give a model as many token embeddings as an adapter has for it.

    An adapter that was trained with tokens of its own brings a larger table. A model whose
    embeddings the adapter does not hold stays as it is.
    """
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules():
        shape = adapter.shapes.get(f"{name}.weight")
        if module is not embeddings or not shape:
            continue
        if shape[0] != embeddings.num_embeddings:
            model.resize_token_embeddings(shape[0], mean_resizing=False)


def require_complete(result: Any, adapter: Adapter) -> None:
    """Raise ModelError if an adapter's file lacks weights that its config calls for, or has others.

    result: what PEFT returns after it has set the weights: the names of missing and of unexpected
    ones.
    """
    missing = sorted(name for name in result.missing_keys if is_of_adapter(name))
    strange = sorted(result.unexpected_keys)
    if missing:
        raise ModelError(
            f"{adapter.folder} lacks {len(missing)} of its weights, such as {missing[0]}",
        )
    if strange:
        raise ModelError(
            f"{adapter.folder} does not fit its base model, which has no place for {strange[0]}",
        )


def is_of_adapter(name: str) -> bool:
    """Return True if a parameter is one that PEFT added."""
    return ".default" in name


def read_last_line(error: Exception) -> str:
    """Return the last line of a library's message: sizes that differ are listed under a heading."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else read_first_line(error)
