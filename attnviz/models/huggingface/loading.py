"""A transformers model and its tokenizer from a local folder: safetensors only, sizes checked, no code from it run."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from attnviz.errors import ModelError
from attnviz.models.checks import torch_device
from attnviz.models.folders import Folders
from attnviz.models.huggingface.adapter import (
    Adapter,
    apply_adapter,
    list_task_classes,
    read_adapter,
    require_fit,
    set_labels,
)
from attnviz.models.huggingface.attention import first_line, forward, quiet_library, undisturbed
from attnviz.models.huggingface.encoding import count_embeddings
from attnviz.models.huggingface.safety import require_safe
from attnviz.request import Placement

WRITERS = "ForCausalLM", "LMHeadModel"  # how the classes of models that continue a text end
CONDITIONAL = "ForConditionalGeneration"  # of encoder-decoders, and of writers that may also be given images or sound
IMPLEMENTATIONS = "attn_implementation", "_attn_implementation"
SETTINGS = {  # of a config: what a model gives back and how it computes, which is ours to say
    *IMPLEMENTATIONS,
    "return_dict",
    "use_return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "use_cache",
}
WRITING = (  # of a generation config: what would make of greedy writing something else
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "num_return_sequences",
    "cache_implementation",
    "prompt_lookup_num_tokens",
    "guidance_scale",
    "penalty_alpha",
    "dola_layers",
    "stop_strings",
    "max_time",
)
VOCABULARIES = "*token*", "vocab*", "*.model", "*.spm", "merges.txt", "*.vocab"
ELSEWHERE = "give the folder of one with --tokenizer FOLDER"
NEEDED = re.compile(
    r"pip install ([\w-]+)|install ([\w-]+) to use|requires the ([\w-]+) library|([\w-]+) is required"
)
TRIAL = 5  # tokens of a text on which a model of images or sound is tried

PREDICTORS = {
    **dict.fromkeys(WRITERS, AutoModelForCausalLM),
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}


class Source(NamedTuple):
    """What a model is loaded from."""

    folder: Path
    config: Any
    available: int
    """How many numbers the weights hold."""
    adapter: Adapter | None


class ModelParts(NamedTuple):
    """What a folder gives: a model in evaluation, its tokenizer, and notes for the user."""

    model: Any
    tokenizer: Any
    notes: tuple[str, ...]


def load_parts(
    folders: Folders, placement: Placement, *, writes: bool, predicts: bool
) -> ModelParts:
    """Load the model of a folder and its tokenizer.

    writes: with the head that continues a text; predicts: with the one that the folder was saved with, if any. An
    encoder-decoder always comes with its head, since it writes its own target. Raises ModelError, UsageError.
    """
    folder = folders.model
    available = require_safe(folder)
    device = torch_device(placement.device)
    with quiet_library():
        adapter = None if folders.adapter is None else read_adapter(folders.adapter)
        config, attention = load_config(folder)
        if writes and not config.is_encoder_decoder:
            require_writer(config, folder)
        classes = list_classes(config, writes=writes, predicts=predicts)
        if adapter is not None:
            set_labels(config, adapter)
            classes = [*list_task_classes(adapter), *classes]
        source = Source(folder, config, available, adapter)
        model = load_first(classes, source, dtype_of(placement, device))
        if adapter is not None:
            model = apply_adapter(model, adapter)
        model = model.to(device).eval()
        count_decoder_layers(model.config)
        write_plainly(model)
        model, note = keep_text_part(model, folder)
        tokenizer = load_tokenizer(folders.tokenizer or folder, model, config)
        if folders.tokenizer not in (None, folders.adapter):
            require_vocabulary(tokenizer, model, folders)
        applied = (
            adapter and f"the adapter in {adapter.folder} is merged into the weights of {folder}"
        )
        return ModelParts(
            model, tokenizer, tuple(line for line in (attention, note, applied) if line)
        )


def list_classes(config: Any, *, writes: bool, predicts: bool) -> list[Any]:
    """List the classes that may hold the model of a folder, the best first: a part of it may be all that was saved."""
    named = find_class(config)
    if config.is_encoder_decoder:
        classes = [AutoModelForSeq2SeqLM, named]
    elif writes or predicts:
        classes = [*list_predictors(config), named]
    else:
        classes = [AutoModel, named]
    return [kind for kind in classes if kind is not None]


def read_architecture(config: Any) -> str:
    """Return the name of the class that a folder was saved from; nothing if its config does not tell."""
    names = config.architectures or [""]
    return str(names[0])


def find_class(config: Any) -> Any:
    """Return the class of the library that a config names as its model's; None if the library has no such class."""
    name = read_architecture(config)
    try:
        kind: Any = getattr(
            transformers, name, None
        )  # to list all names first would take longer than to load a model
    except Exception:  # a class whose own packages are not installed
        return None
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    return kind if is_model and isinstance(config, kind.config_class or ()) else None


def list_predictors(config: Any) -> list[Any]:
    """List the classes with the head that a folder was saved with, if that predicts tokens or classes."""
    name = read_architecture(config)
    if name.endswith(CONDITIONAL):
        return [find_class(config), AutoModelForImageTextToText, AutoModelForCausalLM]
    return [kind for end, kind in PREDICTORS.items() if name.endswith(end)] or [AutoModel]


def dtype_of(placement: Placement, device: str) -> Any:
    """The type to compute in."""
    if placement.dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, placement.dtype)


def load_config(folder: Path) -> tuple[Any, str | None]:
    """Load a model's config, and a note if it asks for an attention that is not used.

    Raises ModelError if it is of a kind that we cannot read.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_bytes())
        attention = find_attention(values)
        with TemporaryDirectory() as scratch:
            Path(scratch, "config.json").write_text(json.dumps(drop_settings(values)))
            config = AutoConfig.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False
            )
    except (
        Exception
    ) as error:  # the library raises ValueError, OSError, KeyError, TypeError ... for one bad file
        raise ModelError(f"{path} cannot be used: {first_line(error)}") from error
    config.name_or_path = str(folder)
    return (
        config,
        attention and f"config.json asks for {attention}; SDPA is used, which computes the same",
    )


def drop_settings(values: Any) -> Any:
    """Return the values of a config without those that say how it is run, in the configs inside it too."""
    if not isinstance(values, dict):
        return values
    return {name: drop_settings(value) for name, value in values.items() if name not in SETTINGS}


def find_attention(values: Any) -> str | None:
    """Return the first implementation of attention that a config, or one inside it, names beside the library's own."""
    inside = list(values.items()) if isinstance(values, dict) else []
    for name, value in inside:
        if name in IMPLEMENTATIONS and isinstance(value, str) and value not in ("eager", "sdpa"):
            return value
        deeper = find_attention(value)
        if deeper is not None:
            return deeper
    return None


def require_writer(config: Any, folder: Path) -> None:
    """Raise ModelError unless the config says that the model was trained to continue texts, or nothing at all."""
    name = read_architecture(config)
    if name and not name.endswith((*WRITERS, CONDITIONAL)):
        raise ModelError(
            f"{folder} is a {name}, which does not continue texts: leave --generate out"
        )


def load_first(classes: list[Any], source: Source, dtype: Any) -> Any:
    """Load a folder with the first of some classes that finds all of its weights there.

    Raises ModelError: the reason of the class that came furthest, which is most likely the right one.
    """
    failure = ModelError(f"{source.folder / 'config.json'} names no class of model")
    furthest = 0
    attempts: set[type] = set()
    for kind in classes:
        stage = 0
        try:
            outline = lay_out(kind, source)
            stage = 1
            require_text_input(outline, source.folder)
            if type(outline) in attempts:
                continue
            attempts.add(type(outline))
            stage = 2
            require_fit(outline, source.adapter, source.folder)
            stage = 3
            return load_model(kind, source, dtype)
        except ModelError as error:
            is_named = (
                stage == furthest and source.adapter is None
            )  # the class that the config names is tried last
            if stage > furthest or is_named:
                failure, furthest = error, stage
    raise failure


def lay_out(kind: Any, source: Source) -> Any:
    """Lay a model out on the meta device, which takes no memory.

    Raises ModelError if the config describes far more parameters than the weights hold.
    """
    path, available = source.folder / "config.json", source.available
    make = getattr(kind, "from_config", None) or kind._from_config
    try:
        with torch.device("meta"):
            outline = make(deepcopy(source.config))  # which the library changes as it builds
        described = sum(parameter.numel() for parameter in outline.parameters())
    except Exception as error:
        raise ModelError(f"{path} cannot be built: {first_line(error)}") from error
    if described > 2 * available + 1_000_000:
        raise ModelError(
            f"{path} describes {described:,} parameters; its weights hold {available:,}"
        )
    return outline


def load_model(kind: Any, source: Source, dtype: Any) -> Any:
    """The model, every weight of it from the folder or from its adapter. Raises ModelError."""
    folder, config, _, adapter = source
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "dtype": dtype,
        "config": config,
        "adapter_kwargs": {
            "subfolder": "none"
        },  # else the library applies an adapter that is there, as it likes
    }
    try:
        model, info = kind.from_pretrained(folder, **options)
    except Exception as error:  # as above
        raise ModelError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    given = () if adapter is None else adapter.shapes
    missing = sorted(
        name
        for name in info["missing_keys"]
        if not name.startswith("pooler.") and name not in given
    )
    if missing:  # the library would fill them with random numbers
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} parameters of the model, such as {missing[0]}"
        )
    return model


def count_decoder_layers(config: Any) -> None:
    """Correct the config of a decoder half, whose layers the library counts as those of the encoder that is not there.

    It makes room for the keys and values of as many layers as it counts, when the model continues a text.
    """
    is_half = getattr(config, "is_decoder", False) and not config.is_encoder_decoder
    if is_half and hasattr(config, "encoder_layers") and hasattr(config, "decoder_layers"):
        config.encoder_layers = config.decoder_layers


def write_plainly(model: Any) -> None:
    """Let a model write as it is asked to: one text, greedily, and nothing but its tokens."""
    settings = getattr(model, "generation_config", None)
    for name in WRITING:
        if hasattr(settings, name):
            setattr(settings, name, None)


def reads_ids(model: Any) -> bool:
    """Tell whether a model can be called with the token ids of a text."""
    return "input_ids" in signature(model.forward).parameters


def require_text_input(model: Any, folder: Path) -> None:
    """Raise ModelError if a model, or its outline, reads no token ids at all."""
    if not reads_ids(model):
        raise ModelError(explain_refusal(model, folder))


def explain_refusal(model: Any, folder: Path) -> str:
    """Say that a model reads something other than a text, and what to do."""
    return (
        f"{folder} is a {type(model).__name__}, which does not read a text alone: load it with transformers, and give "
        "what it reads in Python, attnviz.capture(model=..., inputs=...)"
    )


def keep_text_part(model: Any, folder: Path) -> tuple[Any, str | None]:
    """Return a model that reads a text alone, and a note if it is only a part of the one that was loaded.

    Models of images or sound are tried on a few tokens. Where they refuse, their text model is read instead.
    Raises ModelError if there is none.
    """
    if reads_text_only(model) or runs_on_ids(model):
        return model, None
    for part in list_text_parts(model):
        if runs_on_ids(part):
            whole = type(model).__name__
            return (
                part,
                f"{whole} needs more than a text: only its text model, {type(part).__name__}, is run",
            )
    raise ModelError(explain_refusal(model, folder))


def reads_text_only(model: Any) -> bool:
    """Tell whether a model's class is of text, and not of images or sound as well."""
    modalities = getattr(model, "input_modalities", "text")
    return modalities == "text" or set(modalities) == {"text"}


def list_text_parts(model: Any) -> Iterator[Any]:
    """Go through the models inside a model that its text config describes and that read token ids, the whole first."""
    for part in model.modules():
        inside = part is not model and isinstance(part, PreTrainedModel)
        if inside and type(part.config) in list_text_configs(model.config) and reads_ids(part):
            yield part


def list_text_configs(config: Any) -> set[type]:
    """Return the classes of the configs of text that a config is made of."""
    parts = [
        getattr(config, name, None)
        for name in ("text_config", "text_encoder", "decoder", "generator")
    ]
    return {type(part) for part in parts if part is not None}


def runs_on_ids(model: Any) -> bool:
    """Tell whether a model runs on the ids of a few tokens and nothing else, and gives vectors or logits of them."""
    marks = {
        number
        for name, number in vars(model.config).items()
        if "token" in name and isinstance(number, int)
    }
    plain = next(number for number in range(len(marks) + 1) if number not in marks)
    ids = torch.full((1, TRIAL), plain, device=model.device)
    inputs = {"input_ids": ids}
    if reads_target(model):
        inputs["decoder_input_ids"] = ids
    try:
        with undisturbed(model):
            outputs = forward(model, inputs)
    except ModelError:
        return False
    return any(hasattr(outputs, name) for name in ("last_hidden_state", "logits"))


def reads_target(model: Any) -> bool:
    """Tell whether a model has a decoder that reads a text of its own: half of an encoder-decoder has none."""
    return (
        bool(model.config.is_encoder_decoder)
        and "decoder_input_ids" in signature(model.forward).parameters
    )


def load_tokenizer(folder: Path, model: Any, config: Any) -> Any:
    """The model's tokenizer. Raises ModelError if there is none, or one of another model.

    config: the model's, as far as the tokenizer does not say by itself of which kind it is.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if config.name_or_path == str(folder) or not (folder / "config.json").exists():
        options["config"] = config
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # as above
        raise ModelError(explain_failure(folder, error)) from error
    tokenizer.truncation_side = "right"
    known, expected = (
        len(tokenizer),
        getattr(model.config.get_text_config(), "vocab_size", 0),
    )  # 0: letters are hashed
    if 2 * known < expected and not holds_vocabulary(folder):
        raise ModelError(f"{folder} has no tokenizer; {ELSEWHERE}")
    if 2 * known < expected:  # the library makes an empty one if its files are not there
        raise ModelError(
            f"the tokenizer in {folder} knows {known} tokens, its model {expected}: files are missing; {ELSEWHERE}"
        )
    return tokenizer


def require_vocabulary(tokenizer: Any, model: Any, folders: Folders) -> None:
    """Raise ModelError if a tokenizer of another folder knows tokens that a model has no embeddings for."""
    known, rows = len(tokenizer), count_embeddings(model)
    if rows is not None and known > rows:
        raise ModelError(
            f"the tokenizer in {folders.tokenizer} knows {known} tokens, and the model in {folders.model} has "
            f"embeddings for {rows}: give the tokenizer that it was trained with"
        )


def holds_vocabulary(folder: Path) -> bool:
    """Tell whether a folder holds any file of a tokenizer."""
    return any(file for pattern in VOCABULARIES for file in folder.glob(pattern))


def explain_failure(folder: Path, error: Exception) -> str:
    """Say why a folder's tokenizer cannot be loaded, and what to do."""
    if not holds_vocabulary(folder):
        return f"{folder} has no tokenizer; {ELSEWHERE}"
    package = find_package(folder, error)
    if package is not None:
        return f"the tokenizer in {folder} needs the package {package}: run 'pip install {package}'"
    return f"the tokenizer in {folder} cannot be loaded: {first_line(error)}; {ELSEWHERE}"


def find_package(folder: Path, error: Exception) -> str | None:
    """Return the package that a tokenizer needs and that is not installed, as far as the library's message tells."""
    match = NEEDED.search(str(error))
    if match is None:
        return None
    package = next(name for name in match.groups() if name).lower()
    if package == "tiktoken" and any(is_sentencepiece(file) for file in folder.glob("*.model")):
        package = "sentencepiece"  # the library takes every vocabulary that it cannot read for one of tiktoken
    return package if find_spec(package.replace("-", "_")) is None else None


def is_sentencepiece(file: Path) -> bool:
    """Tell whether a vocabulary is one of SentencePiece, which begins with its first piece, rather than lines."""
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"


def position_limit(model: Any) -> int | None:
    """How many tokens a model has places for; tables with a padding row, as RoBERTa's, begin to count after it."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for module in model.modules():
        if (
            isinstance(module, torch.nn.Embedding)
            and module.num_embeddings == limit
            and module.padding_idx is not None
        ):
            return int(limit) - module.padding_idx - 1
    return limit
