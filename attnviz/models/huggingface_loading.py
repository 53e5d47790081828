"""A transformers model and its tokenizer from a local folder: safetensors only, sizes checked, no code from it run."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from attnviz.errors import ModelError
from attnviz.models.checks import torch_device
from attnviz.models.huggingface_checks import require_safe
from attnviz.models.huggingface_reading import first_line, quiet_library
from attnviz.request import Placement

WRITERS = "ForCausalLM", "LMHeadModel"  # how the classes of models that continue a text end

PREDICTORS = {
    **dict.fromkeys(WRITERS, AutoModelForCausalLM),
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}


def load_parts(folder: Path, placement: Placement, *, writes: bool, predicts: bool) -> tuple[Any, Any]:
    """The model, in evaluation, and its tokenizer.

    writes: with the head that continues a text; predicts: with the one that the folder was saved with, if any. An
    encoder-decoder always comes with its head, since it writes its own target. Raises ModelError, UsageError.
    """
    available = require_safe(folder)
    device = torch_device(placement.device)
    with quiet_library():
        config = load_config(folder)
        require_size(config, available, folder)
        kind = predictor(config) if predicts else AutoModelForCausalLM if writes else AutoModel
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else kind
        if writes and not config.is_encoder_decoder:
            require_writer(config, folder)
        model = load_model(kind, folder, dtype_of(placement, device)).to(device).eval()
        return model, load_tokenizer(folder, config)


def predictor(config: Any) -> Any:
    """The class of a model with the head that its folder was saved with, if that predicts tokens or classes."""
    named = (config.architectures or ("",))[0]
    return next((kind for end, kind in PREDICTORS.items() if named.endswith(end)), AutoModel)


def dtype_of(placement: Placement, device: str) -> Any:
    """The type to compute in."""
    if placement.dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, placement.dtype)


def load_config(folder: Path) -> Any:
    """The model's config. Raises ModelError if it is of a kind that we cannot read."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises ValueError, OSError, KeyError, TypeError ... for one bad file
        raise ModelError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from error


def require_size(config: Any, available: int, folder: Path) -> None:
    """Raise ModelError if the config describes far more parameters than the weights hold.

    The model is laid out on the meta device, which takes no memory.
    """
    try:
        with torch.device("meta"):
            outline = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        described = sum(parameter.numel() for parameter in outline.parameters())
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} cannot be built: {first_line(error)}") from error
    if described > 2 * available + 1_000_000:
        raise ModelError(f"{folder / 'config.json'} describes {described:,} parameters; its weights hold {available:,}")


def require_writer(config: Any, folder: Path) -> None:
    """Raise ModelError unless the config says that the model was trained to continue texts, or nothing at all."""
    named = config.architectures or ()
    if named and not any(name.endswith(WRITERS) for name in named):
        raise ModelError(f"{folder} is a {named[0]}, which does not continue texts: leave --generate out")


def load_model(kind: Any, folder: Path, dtype: Any) -> Any:
    """The model, every weight of it from the folder. Raises ModelError."""
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "dtype": dtype,
    }
    try:
        model, info = kind.from_pretrained(folder, **options)
    except Exception as error:  # as above
        raise ModelError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:  # the library would fill them with random numbers
        raise ModelError(f"the weights in {folder} lack {len(missing)} parameters of the model, such as {missing[0]}")
    return model


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The model's tokenizer. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    tokenizer.truncation_side = "right"
    known, expected = len(tokenizer), getattr(config.get_text_config(), "vocab_size", 0)  # 0: characters are hashed
    if 2 * known < expected:  # the library makes an empty one if its files are not there
        raise ModelError(f"the tokenizer in {folder} knows {known} tokens, its model {expected}: files are missing")
    return tokenizer


def position_limit(model: Any) -> int | None:
    """How many tokens a model has places for; tables with a padding row, as RoBERTa's, begin to count after it."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            return int(limit) - module.padding_idx - 1
    return limit
