"""A PEFT adapter, merged into the weights of its base model: what runs then is the adapted model itself."""

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
from attnviz.models.folders import ADAPTER_WEIGHTS, read_adapter_config
from attnviz.models.huggingface.attention import first_line
from attnviz.models.huggingface.safety import read_shapes

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


class Adapter(NamedTuple):
    """An adapter before it is loaded."""

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """The shapes of its weights, by their names in the base model."""


def read_adapter(folder: Path) -> Adapter:
    """Read what an adapter is, without its weights. Raises ModelError if it is none that can be applied."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {ADAPTER_WEIGHTS}: an adapter is read from safetensors only, never a pickle"
        )
    config = read_adapter_config(folder)
    shapes = {name.removeprefix(PREFIX): shape for name, shape in read_shapes(path).items()}
    require_sane_ranks(config, shapes, folder)
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder} acts on the tokens after a certain one only, which is not supported"
        )
    return Adapter(folder, config, shapes)


def require_sane_ranks(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raise ModelError if an adapter's config asks for ranks that are larger than any side of its weights."""
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if isinstance(rank, int) and rank > largest:
            raise ModelError(
                f"{folder} asks for a rank of {rank:,}; its weights have at most {largest:,} on a side"
            )


def list_task_classes(adapter: Adapter) -> list[Any]:
    """List the class of model that an adapter says it was trained for, if it says so."""
    task = adapter.config.get("task_type")
    return [TASKS[task]] if isinstance(task, str) and task in TASKS else []


def set_labels(config: Any, adapter: Adapter) -> None:
    """Tell a base model's config how many classes an adapter's own classifier knows."""
    for name, shape in adapter.shapes.items():
        if name.endswith(CLASSIFIERS) and len(shape) == 2:
            config.num_labels = shape[0]


def require_fit(outline: Any, adapter: Adapter | None, folder: Path) -> None:
    """Raise ModelError if an adapter changes parts that a model, or its outline, does not have."""
    if adapter is None:
        return
    modules = {name for name, _ in outline.named_modules()}
    for name in adapter.shapes:
        parts = name.split(".")
        owners = [".".join(parts[:-count]) for count in (1, 2, 3)]
        if not any(owner in modules for owner in owners if owner):
            raise ModelError(
                f"{adapter.folder} is no adapter of {folder}, which has no {owners[1] or name}"
            )


def apply_adapter(model: Any, adapter: Adapter) -> Any:
    """Return a model with an adapter merged into its weights. Raises ModelError if it does not fit."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    resize_embeddings(model, adapter)
    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ModelError(
                f"{adapter.folder} adds tokens of its own to every text: only adapters of weights are read"
            )
        config.inference_mode = True
        wrapped = PeftModel(model, config)
        weights = load_file(adapter.folder / ADAPTER_WEIGHTS)
        result = set_peft_model_state_dict(wrapped, weights)
        require_complete(result, adapter)
        return wrapped.merge_and_unload(safe_merge=True).eval()
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # the library raises ValueError, RuntimeError, KeyError, AttributeError ...
        raise ModelError(
            f"{adapter.folder} does not fit its base model: {read_last_line(error)}"
        ) from error


def resize_embeddings(model: Any, adapter: Adapter) -> None:
    """Give a model as many embeddings as an adapter brings, which was trained with tokens of its own."""
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules():
        shape = adapter.shapes.get(f"{name}.weight")
        if module is embeddings and shape and shape[0] != embeddings.num_embeddings:
            model.resize_token_embeddings(shape[0], mean_resizing=False)


def require_complete(result: Any, adapter: Adapter) -> None:
    """Raise ModelError if an adapter's file lacks weights that its config asks for, or holds others."""
    missing = sorted(name for name in result.missing_keys if is_of_adapter(name))
    strange = sorted(result.unexpected_keys)
    if missing:
        raise ModelError(
            f"{adapter.folder} lacks {len(missing)} of its weights, such as {missing[0]}"
        )
    if strange:
        raise ModelError(
            f"{adapter.folder} does not fit its base model, which has no place for {strange[0]}"
        )


def is_of_adapter(name: str) -> bool:
    """Tell whether a parameter is one that PEFT added."""
    return ".default" in name


def read_last_line(error: Exception) -> str:
    """Return the last line of a library's message: sizes that differ are listed under a heading."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else first_line(error)
