"""Loading a transformers model and its tokenizer from a local folder.

Weights are read from safetensors only, sizes are checked, and no code from the folder is run.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook
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

from attnviz.errors import ModelError, UsageError
from attnviz.io.untrusted import LARGEST_CONFIG, read_regular_file
from attnviz.models.checks import NO_DOUBLES, find_torch_device, read_first_line
from attnviz.models.folders import Folders
from attnviz.models.huggingface.adapter import (
    Adapter,
    apply_adapter,
    list_task_classes,
    read_adapter,
    require_matching_modules,
    set_class_count,
)
from attnviz.models.huggingface.attention import (
    call_model,
    run_undisturbed,
    silence_library,
)
from attnviz.models.huggingface.encoding import count_embeddings
from attnviz.models.panics import refuse_tokenizer_errors
from attnviz.models.safety import require_inner_files, require_safe
from attnviz.models.tokenizer_bounds import require_bounded_tokenizer
from attnviz.progress import count_steps
from attnviz.request import Placement
from attnviz.temporary import make_temporary_folder

WRITERS = "ForCausalLM", "LMHeadModel"
"""The ends of the names of classes of models that continue a text."""
CONDITIONAL = "ForConditionalGeneration"
"""The end of the names of encoder-decoders, and of writers that may also read images or sound."""
IMPLEMENTATION_ENTRIES = "attn_implementation", "_attn_implementation"
SETTINGS = {
    *IMPLEMENTATION_ENTRIES,
    "return_dict",
    "use_return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "use_cache",
}
"""Entries of a config that say what a model returns and how it computes, which is for us to say."""
WRITING = (
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
"""Entries of a generation config that would make something else of greedy writing."""
VOCABULARIES = "*token*", "vocab*", "*.model", "*.spm", "merges.txt", "*.vocab"
TEXT_CONFIGS = "text_config", "text_encoder", "decoder", "generator"
ELSEWHERE = "give the folder of one with --tokenizer FOLDER"
NEEDED = re.compile(
    r"pip install ([\w-]+)|install ([\w-]+) to use"
    r"|requires the ([\w-]+) library|([\w-]+) is required",
)
WEIGHTS_BAR = "Loading weights"  # what the library calls its bar
TRIAL = 5  # tokens of a text on which a model of images or sound is tried
# parameters that a config may describe whatever the weights hold
SMALL = 1_000_000
# the largest models of experts have about 100,000
MOST_MODULES = 250_000

PREDICTORS = {
    **dict.fromkeys(WRITERS, AutoModelForCausalLM),
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}
"""The classes with a head that predicts, by the end of the name of the class that was saved."""


class ModelSource(NamedTuple):
    """The files that a model is loaded from."""

    folder: Path
    config: Any
    available: int
    """The count of numbers in the weights."""
    adapter: Adapter | None


class LoadedParts(NamedTuple):
    """A model in evaluation, its tokenizer, and notes for the user."""

    model: Any
    tokenizer: Any
    notes: tuple[str, ...]


def load_parts(
    folders: Folders,
    placement: Placement,
    *,
    writes: bool,
    predicts: bool,
) -> LoadedParts:
    """Load a transformers model and its tokenizer from local folders.

    folders: the folders of the model, and of another tokenizer and an adapter if there are such.
    The adapter is merged into the model's weights. placement: the device and the number type.
    writes: True to load the head that continues a text. predicts: True to load the head that the
    model was saved with, if any. An encoder-decoder always comes with its head, since it writes its
    own target. Model and tokenizer are returned with notes for the user. Raises ModelError for a
    folder that cannot be used, UsageError for a device that is not there.
    """
    folder = folders.model
    available = require_safe(folder)
    if folders.tokenizer is not None:
        require_inner_files(folders.tokenizer)
    device = find_torch_device(placement.device, placement.dtype)
    with silence_library():
        adapter = None if folders.adapter is None else read_adapter(folders.adapter)
        config, attention_note = load_config(folder)
        if writes and not config.is_encoder_decoder:
            require_writer(config, folder)
        classes = list_classes(config, writes=writes, predicts=predicts)
        if adapter is not None:
            set_class_count(config, adapter)
            classes = [*list_task_classes(adapter), *classes]
        source = ModelSource(folder, config, available, adapter)
        dtype = choose_dtype(placement, device)
        model = load_first_class(classes, source, dtype)
        adapter_note = None
        if adapter is not None:
            model = apply_adapter(model, adapter)
            adapter_note = f"the adapter in {adapter.folder} is merged into the weights of {folder}"
        if device == "mps" and model.dtype == torch.float64:
            raise UsageError(NO_DOUBLES)
        model = model.to(device).eval()
        count_decoder_layers(model.config)
        reset_generation(model)
        model, part_note = choose_text_part(model, folder)
        tokenizer = load_tokenizer(folders.tokenizer or folder, model, config)
        if folders.tokenizer not in (None, folders.adapter):
            require_vocabulary(tokenizer, model, folders)
        notes = attention_note, part_note, adapter_note
        return LoadedParts(model, tokenizer, tuple(note for note in notes if note))


def list_classes(config: Any, *, writes: bool, predicts: bool) -> list[Any]:
    """List the classes of the library to try to load a model as, the best first.

    There are several, since a folder may hold only a part of the model.

    config: the config of the model. writes: True if it is to continue texts. predicts: True if it
    is to have the head that it was saved with.
    """
    saved_class = find_class(config)
    if config.is_encoder_decoder:
        classes = [AutoModelForSeq2SeqLM, saved_class]
    elif writes or predicts:
        classes = [*list_predictors(config), saved_class]
    else:
        classes = [AutoModel, saved_class]
    return [kind for kind in classes if kind is not None]


def read_architecture(config: Any) -> str:
    """Return the name of the class that a folder was saved from; empty if its config has none."""
    names = config.architectures
    if not isinstance(names, list) or not names:
        return ""
    return str(names[0])


def find_class(config: Any) -> Any:
    """Return the class of transformers that a config names as that of its model.

    None if the library has no such class, or one that takes another config.
    """
    name = read_architecture(config)
    try:
        # to list all names of the library first would take longer than to load a model
        kind: Any = getattr(transformers, name, None)
    except Exception:  # a class whose own packages are not installed
        return None
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if not is_model:
        return None
    return kind if isinstance(config, kind.config_class or ()) else None


def list_predictors(config: Any) -> list[Any]:
    """List the classes of the library that load a model with the head that it was saved with.

    If this head predicts neither tokens nor classes, the class without a head is listed.
    """
    name = read_architecture(config)
    if name.endswith(CONDITIONAL):
        return [find_class(config), AutoModelForImageTextToText, AutoModelForCausalLM]
    predictors = [kind for end, kind in PREDICTORS.items() if name.endswith(end)]
    return predictors or [AutoModel]


def choose_dtype(placement: Placement, device: str) -> Any:
    """Return the number type that a model is to be loaded in, for the library.

    placement: the type that the user asks for. If that is "auto", it is float32 on a CPU, and that
    of the stored weights on any other device.
    """
    if placement.dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, placement.dtype)


def load_config(folder: Path) -> tuple[Any, str | None]:
    """Load the config of the model in a folder, and make a note if it asks for other attention.

    Entries that say how the model is to be run are left out. The config is returned with a note
    that names the attention implementation that it asks for, or with None if it asks for none or
    for "eager" or "sdpa". Raises ModelError if the library cannot read the config.
    """
    path = folder / "config.json"
    try:
        values = json.loads(read_regular_file(path, LARGEST_CONFIG))
        attention = find_other_implementation(values)
        with make_temporary_folder() as scratch:
            copy = scratch / "config.json"
            copy.write_text(json.dumps(drop_settings(values)))
            config = AutoConfig.from_pretrained(
                scratch,
                local_files_only=True,
                trust_remote_code=False,
            )
    # the library raises ValueError, OSError, KeyError, TypeError ... for one bad file
    except Exception as error:
        raise ModelError(f"{path} cannot be used: {read_first_line(error)}") from error
    config.name_or_path = str(folder)
    note = None
    if attention:
        note = f"config.json asks for {attention}; SDPA is used, which computes the same"
    return config, note


def drop_settings(values: Any) -> Any:
    """Return a config, and the configs inside it, without the entries that say how it is run."""
    if not isinstance(values, dict):
        return values
    return {name: drop_settings(value) for name, value in values.items() if name not in SETTINGS}


def find_other_implementation(values: Any) -> str | None:
    """Return the first attention implementation but "eager" and "sdpa" that a config asks for.

    values: the decoded JSON of the config. Configs inside it are searched too. None if it asks for
    no other implementation.
    """
    if not isinstance(values, dict):
        return None
    for name, value in values.items():
        is_implementation = name in IMPLEMENTATION_ENTRIES and isinstance(value, str)
        if is_implementation and value not in ("eager", "sdpa"):
            return str(value)
        inner_implementation = find_other_implementation(value)
        if inner_implementation is not None:
            return inner_implementation
    return None


def require_writer(config: Any, folder: Path) -> None:
    """Raise ModelError if a config names a class of model that does not continue texts.

    folder: the folder of the model.
    """
    name = read_architecture(config)
    if name and not name.endswith((*WRITERS, CONDITIONAL)):
        raise ModelError(
            f"{folder} is a {name}, which does not continue texts: leave --generate out",
        )


def load_first_class(classes: list[Any], source: ModelSource, dtype: Any) -> Any:
    """Load a model as the first of some classes whose weights are all in its folder.

    source: the files of the model. dtype: the number type to load it in. If no class fits, the
    ModelError of the class that came furthest is raised, which is most likely the right one.
    """
    failure = ModelError(f"{source.folder / 'config.json'} names no class of model")
    furthest = 0
    attempts: set[type] = set()
    for kind in classes:
        stage = 0  # how far this class comes
        try:
            outline = outline_model(kind, source)
            stage = 1
            require_text_input(outline, source.folder)
            if type(outline) in attempts:
                continue
            attempts.add(type(outline))
            stage = 2
            require_matching_modules(outline, source.adapter, source.folder)
            stage = 3
            return load_weights(kind, source, dtype)
        except ModelError as error:
            # if two come equally far, the later one counts: the class that the config names is last
            is_as_far = stage == furthest and source.adapter is None
            if stage > furthest or is_as_far:
                failure = error
                furthest = stage
    raise failure


def outline_model(kind: Any, source: ModelSource) -> Any:
    """Build a model of a class without memory for its weights, on torch's meta device.

    source: the files of the model, with its config. Raises ModelError if the class cannot be built
    from the config, and if the config describes far more parameters than the files hold.
    """
    path = source.folder / "config.json"
    available = source.available
    make_model = getattr(kind, "from_config", None) or kind._from_config
    try:
        with torch.device("meta"), limit_modules():
            # a copy, since the library changes the config as it builds
            config = deepcopy(source.config)
            outline = make_model(config)
        described = sum(parameter.numel() for parameter in outline.parameters())
    except Exception as error:
        raise ModelError(f"{path} cannot be built: {read_first_line(error)}") from error
    if described > 2 * available + SMALL:
        raise ModelError(
            f"{path} describes {described:,} parameters; its weights hold {available:,}",
        )
    return outline


@contextmanager
def limit_modules() -> Iterator[None]:
    """Raise ValueError as soon as a model is built of more modules than any real one.

    A config of two numbers can ask for a million experts in each of a thousand layers, for which no
    weights need be there.
    """
    count = 0

    def count_module(module: Any, name: str, part: Any) -> None:  # noqa: ARG001 - torch's signature
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise ValueError(f"it describes more than {MOST_MODULES:,} modules")

    hook = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        hook.remove()


def load_weights(kind: Any, source: ModelSource, dtype: Any) -> Any:
    """Load a model of a class from its folder, and check that none of its weights is missing.

    source: the files of the model. Weights that its adapter brings, and those of a pooling layer,
    may be missing. dtype: the number type to load it in. Raises ModelError if the model cannot be
    loaded, or if its folder lacks weights.
    """
    folder = source.folder
    # the library applies an adapter that it finds: it is to look in a folder that is not there
    adapter_options = {"subfolder": "none"}
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "dtype": dtype,
        "config": source.config,
        "adapter_kwargs": adapter_options,
    }
    try:
        with count_weights():
            model, info = kind.from_pretrained(folder, **options)
    except Exception as error:  # the library raises errors of many classes
        reason = read_first_line(error)
        raise ModelError(f"the model in {folder} cannot be loaded: {reason}") from error
    adapted = () if source.adapter is None else source.adapter.shapes
    missing = sorted(name for name in info["missing_keys"] if name not in adapted)
    missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:  # the library would fill them with random numbers
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} parameters of the model, "
            f"such as {missing[0]}",
        )
    return model


@contextmanager
def count_weights() -> Iterator[None]:
    """Say how many of the weights are there while the library loads a model.

    The library makes a bar of them, in place of which they are counted here, by versions that let
    one do that.
    """
    set_hook = getattr(transformers.logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return

    def count_bar(make_bar: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if arguments and options.get("desc") == WEIGHTS_BAR:
            return count_steps(arguments[0], "reading weights", "tensor")
        return make_bar(*arguments, **options)

    earlier_hook = set_hook(count_bar)
    try:
        yield
    finally:
        set_hook(earlier_hook)


def count_decoder_layers(config: Any) -> None:
    """Correct the number of layers in the config of a decoder that was part of an encoder-decoder.

    The library takes the number of the encoder's layers, though there is no encoder, and makes room
    for the keys and values of as many when the model continues a text. Any other config stays as it
    is.
    """
    is_decoder = getattr(config, "is_decoder", False) and not config.is_encoder_decoder
    if is_decoder and hasattr(config, "encoder_layers") and hasattr(config, "decoder_layers"):
        config.encoder_layers = config.decoder_layers


def reset_generation(model: Any) -> None:
    """Remove the settings by which a model would not write one text greedily.

    Its generation config may ask for several texts, other outputs, or another method.
    """
    settings = getattr(model, "generation_config", None)
    for name in WRITING:
        if hasattr(settings, name):
            setattr(settings, name, None)


def reads_ids(model: Any) -> bool:
    """Return True if a model can be called with the token ids of a text."""
    return "input_ids" in signature(model.forward).parameters


def require_text_input(model: Any, folder: Path) -> None:
    """Raise ModelError if a model, or its outline, reads no token ids at all."""
    if not reads_ids(model):
        raise ModelError(explain_refusal(model, folder))


def explain_refusal(model: Any, folder: Path) -> str:
    """Return the message that a model reads something other than a text, and what to do."""
    return (
        f"{folder} is a {type(model).__name__}, which does not read a text alone: "
        "load it with transformers, and give what it reads in Python, "
        "attnviz.capture(model=..., inputs=...)"
    )


def choose_text_part(model: Any, folder: Path) -> tuple[Any, str | None]:
    """Return a model or the part of it that runs on a text alone, and a note if it is a part.

    Models of images or sound are tried on a few tokens. If they refuse, the first text model inside
    them that runs is returned. folder: the folder of the model. Raises ModelError if there is none.
    """
    if reads_text_only(model) or runs_on_ids(model):
        return model, None
    for part in list_text_parts(model):
        if runs_on_ids(part):
            whole_name, part_name = type(model).__name__, type(part).__name__
            note = f"{whole_name} needs more than a text: only its text model, {part_name}, is run"
            return part, note
    raise ModelError(explain_refusal(model, folder))


def reads_text_only(model: Any) -> bool:
    """Return True if a model's class is of text, and not of images or sound as well."""
    modalities = getattr(model, "input_modalities", "text")
    return modalities == "text" or set(modalities) == {"text"}


def list_text_parts(model: Any) -> Iterator[Any]:
    """Yield the text models inside a model, the outer ones first.

    They are those that read token ids, and whose config is the text config of the model.
    """
    for part in model.modules():
        is_inner_model = part is not model and isinstance(part, PreTrainedModel)
        if not is_inner_model:
            continue
        if type(part.config) in list_text_configs(model.config) and reads_ids(part):
            yield part


def list_text_configs(config: Any) -> set[type]:
    """List the classes of the configs of text that a config is made of."""
    configs = [getattr(config, name, None) for name in TEXT_CONFIGS]
    return {type(inner) for inner in configs if inner is not None}


def runs_on_ids(model: Any) -> bool:
    """Run a model on the ids of a few tokens; return True if it puts out vectors or logits."""
    ids = torch.full((1, TRIAL), find_plain_id(model), device=model.device)
    inputs = {"input_ids": ids}
    if reads_target(model):
        inputs["decoder_input_ids"] = ids
    try:
        with run_undisturbed(model):
            outputs = call_model(model, inputs)
    except ModelError:
        return False
    return hasattr(outputs, "last_hidden_state") or hasattr(outputs, "logits")


def find_plain_id(model: Any) -> int:
    """Find the smallest token id that has no special meaning in the config of a model."""
    special: set[int] = set()
    for name, number in vars(model.config).items():
        if "token" in name and isinstance(number, int):
            special.add(number)
    return next(number for number in range(len(special) + 1) if number not in special)


def reads_target(model: Any) -> bool:
    """Return True if a model has a decoder that reads a text of its own, the target.

    A decoder or an encoder that was taken out of an encoder-decoder has none.
    """
    if not model.config.is_encoder_decoder:
        return False
    return "decoder_input_ids" in signature(model.forward).parameters


def load_tokenizer(folder: Path, model: Any, config: Any) -> Any:
    """Load the tokenizer in a folder for a model that is loaded already.

    config: the config of the model, from which the library chooses the class of a tokenizer whose
    folder does not name it. Raises ModelError if there is no tokenizer, if it cannot be loaded, and
    if it knows less than half of the tokens that the model does: then files of it are missing.
    """
    require_bounded_tokenizer(folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    is_model_folder = config.name_or_path == str(folder)
    if is_model_folder or not (folder / "config.json").exists():
        options["config"] = config
    try:
        with refuse_tokenizer_errors("its library gives up"):
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the library raises errors of many classes
        raise ModelError(explain_tokenizer_failure(folder, error)) from error
    limit = tokenizer.model_max_length
    if not isinstance(limit, (int, float)):
        raise ModelError(f"the tokenizer in {folder} says model_max_length = {limit!r}")
    tokenizer.truncation_side = "right"
    known = len(tokenizer)
    text_config = model.config.get_text_config()
    # 0 for a model that hashes letters
    expected = getattr(text_config, "vocab_size", 0)
    # models may have a few more embeddings than their tokenizer has tokens
    if 2 * known >= expected:
        return tokenizer
    # without the files of a vocabulary the library makes a tokenizer with an empty one
    if not holds_vocabulary(folder):
        raise ModelError(f"{folder} has no tokenizer; {ELSEWHERE}")
    raise ModelError(
        f"the tokenizer in {folder} knows {known} tokens, its model {expected}: "
        f"files are missing; {ELSEWHERE}",
    )


def require_vocabulary(tokenizer: Any, model: Any, folders: Folders) -> None:
    """Raise ModelError if a tokenizer knows more tokens than a model has embeddings for.

    folders: the folder of the model, and that of the tokenizer if it is another one.
    """
    known = len(tokenizer)
    rows = count_embeddings(model)
    if rows is not None and known > rows:
        raise ModelError(
            f"the tokenizer in {folders.tokenizer} knows {known} tokens, "
            f"and the model in {folders.model} has embeddings for {rows}: "
            "give the tokenizer that it was trained with",
        )


def holds_vocabulary(folder: Path) -> bool:
    """Return True if a folder holds any file of a tokenizer."""
    return any(file for pattern in VOCABULARIES for file in folder.glob(pattern))


def explain_tokenizer_failure(folder: Path, error: Exception) -> str:
    """Return the message why a folder's tokenizer cannot be loaded, and what to do.

    error: the exception of the library.
    """
    if not holds_vocabulary(folder):
        return f"{folder} has no tokenizer; {ELSEWHERE}"
    package = find_missing_package(folder, error)
    if package is not None:
        return f"the tokenizer in {folder} needs the package {package}: run 'pip install {package}'"
    return f"the tokenizer in {folder} cannot be loaded: {read_first_line(error)}; {ELSEWHERE}"


def find_missing_package(folder: Path, error: Exception) -> str | None:
    """Return the name of a package that a tokenizer needs and that is not installed, or None.

    folder: the folder of the tokenizer. error: the exception of the library, whose message names
    the package.
    """
    match = NEEDED.search(str(error))
    if match is None:
        return None
    package = next(name for name in match.groups() if name).lower()
    if package == "tiktoken" and any(is_sentencepiece(file) for file in folder.glob("*.model")):
        # the library blames tiktoken for every vocabulary that it cannot read
        package = "sentencepiece"
    module = package.replace("-", "_")
    return package if find_spec(module) is None else None


def is_sentencepiece(file: Path) -> bool:
    """Return True if the file of a vocabulary is one of SentencePiece.

    Such a file is a protocol buffer, which begins with the tag of its first piece, the byte of a
    line break. Vocabularies of other kinds begin with a line of text.
    """
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"


def find_position_limit(model: Any) -> int | None:
    """Return the largest number of tokens that a model has positions for; None if it is not known.

    The model's config tells. Some tables of positions, such as RoBERTa's, have a row for padding,
    and count from the row after it: then there are fewer positions than rows.
    """
    text_config = model.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    for module in model.modules():
        if not isinstance(module, torch.nn.Embedding) or module.padding_idx is None:
            continue
        if module.num_embeddings == limit:
            return int(limit) - module.padding_idx - 1
    return limit
