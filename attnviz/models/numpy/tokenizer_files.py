"""The files of a tokenizer, merged into settings as transformers merges them.

A setting that is not known here makes a tokenizer unsuitable: it may change the tokens of a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from attnviz.io.files import describe_os_error
from attnviz.io.untrusted import (
    LARGEST_CONFIG,
    LARGEST_LIST,
    read_json,
    read_regular_file,
)
from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.tokenizer_bounds import (
    TOKENIZER,
    read_tokenizer_json,
    require_bounded_document,
    require_bounded_entries,
)

SETTINGS = "tokenizer_config.json"
ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""The roles of special tokens, in the order of transformers."""
OWN_TOKENS = "model_specific_special_tokens"
EXTRA_TOKENS = "extra_special_tokens"
OLD_EXTRA_TOKENS = "additional_special_tokens"
READ = frozenset({
    *ROLES, "add_prefix_space", "added_tokens_decoder", OLD_EXTRA_TOKENS, EXTRA_TOKENS,
    "chat_template", "clean_up_tokenization_spaces", "do_lower_case", "legacy", "max_len",
    "model_input_names", "model_max_length", OWN_TOKENS, "split_special_tokens", "strip_accents",
    "tokenize_chinese_chars", "tokenizer_class", "trim_offsets",
})  # fmt: skip
"""Entries of a tokenizer_config.json that are read here."""
WITHOUT_EFFECT = frozenset({
    # a tokenizer.json says itself which tokens it adds
    "add_bos_token", "add_eos_token",
    # files are looked for in the folder
    "full_tokenizer_file", "merges_file", "name_or_path", "special_tokens_map_file",
    "tokenizer_file", "vocab_file",
    # of tokenizers written in Python, or of no tokenizer at all
    "clean_text", "do_basic_tokenize", "errors", "from_slow", "never_split", "processor_class",
    "sp_model_kwargs", "spaces_between_special_tokens", "use_default_system_prompt", "use_fast",
    "wordpieces_prefix",
    # of batches, or of a truncation that nobody asked for
    "max_length", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "stride",
    "truncation_side", "truncation_strategy",
    # notes of whoever saved them
    "backend", "fast", "files_loaded", "is_local", "local_files_only", "model_type",
    "response_schema", "response_template", "transformers_version", "use_auth_token", "vocab_size",
})  # fmt: skip
"""Entries of a tokenizer_config.json that have no bearing on the tokens of a text."""
OFF_ONLY = frozenset({
    "chat_control_tokens",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "fix_mistral_regex",
    "init_inputs",
})  # fmt: skip
"""Entries that are known where they say no."""
TOKEN_FIELDS = {
    "content": str,
    "single_word": bool,
    "lstrip": bool,
    "rstrip": bool,
    "normalized": bool,
    "special": bool,
}
"""The fields of an added token, with their types."""
SIDES = ("padding_side", "truncation_side")
MAP_ENTRIES = frozenset({*ROLES, OLD_EXTRA_TOKENS, EXTRA_TOKENS})
"""Entries of a special_tokens_map.json that are read here."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer."""

    data: bytes
    """The tokenizer.json, as it is."""
    document: Mapping[str, Any]
    """The tokenizer.json without its vocabulary and merges."""
    declared: str | None
    """The class of transformers that the tokenizer_config.json names."""
    settings: Mapping[str, Any]
    """The arguments that transformers gives the class, but for those that are read of the model."""
    added: Mapping[int, AddedToken]
    """The tokens that are added to the vocabulary, in order, by the numbers that files give them.

    These numbers only order them.
    """


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the files of the tokenizer in a folder.

    Raises UnsuitableError if one cannot be read, or has an entry that is not known here.
    """
    data, document = read_tokenizer_document(folder / TOKENIZER)
    settings = read_entries(folder / SETTINGS)
    require_known_settings(settings)
    declared = settings.pop("tokenizer_class", None)
    if declared is not None and not isinstance(declared, str):
        raise UnsuitableError(f"its {SETTINGS} says tokenizer_class = {declared!r}")
    settings["chat_template"] = find_chat_templates(folder, settings.get("chat_template"))
    rename_extra_tokens(settings)
    collect_own_tokens(settings)
    if "added_tokens_decoder" in settings:
        added = read_numbered_tokens(settings.pop("added_tokens_decoder"))
    else:
        merge_token_map(settings, read_entries(folder / "special_tokens_map.json"))
        added = list_older_tokens(folder, settings, document)
    settings = {name: restore_tokens(value) for name, value in settings.items()}
    return TokenizerFiles(data, document, declared, settings, dict(sorted(added.items())))


def read_tokenizer_document(path: Path) -> tuple[bytes, Mapping[str, Any]]:
    """Read a tokenizer.json: its bytes, and what it says besides vocabulary and merges."""
    try:
        data, document = read_tokenizer_json(path)
    except FileNotFoundError as error:
        raise UnsuitableError(f"it has no {path.name}") from error
    except OSError as error:
        reason = describe_os_error(error)
        raise UnsuitableError(f"its {path.name} cannot be read: {reason}") from error
    except ValueError as error:
        raise UnsuitableError(f"its {path.name} cannot be read: {error}") from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or not isinstance(document.get("added_tokens"), list):
        raise UnsuitableError(f"its {path.name} is of a form that is not known here")
    require_bounded_document(path, document)
    return data, document


def read_entries(path: Path) -> dict[str, Any]:
    """Read a JSON file of named entries; return none if there is no such file."""
    if not path.exists():
        return {}
    try:
        entries = read_json(path, LARGEST_LIST)
    except OSError as error:
        reason = describe_os_error(error)
        raise UnsuitableError(f"its {path.name} cannot be read: {reason}") from error
    except ValueError as error:
        raise UnsuitableError(f"its {path.name} cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise UnsuitableError(f"its {path.name} is no list of settings")
    require_bounded_entries(path, entries)
    return entries


def require_known_settings(settings: Mapping[str, Any]) -> None:
    """Raise UnsuitableError for an entry that is not known here, or has an unknown value."""
    for name, value in settings.items():
        is_own_token = name.endswith("_token") and isinstance(value, str)
        is_off = name in OFF_ONLY and not value
        if name not in READ | WITHOUT_EFFECT and not is_own_token and not is_off:
            raise UnsuitableError(f"its {SETTINGS} has the entry {name!r}, which is not known here")
    for name in SIDES:
        if settings.get(name, "right") not in ("left", "right"):
            raise UnsuitableError(f"its {SETTINGS} says {name} = {settings[name]!r}")


def find_chat_templates(folder: Path, template: Any) -> str | dict[str, str] | None:
    """Find the chat template of a folder, or its templates by name; None without one.

    Files of templates go before the entry of the settings. template: that entry.
    """
    templates: dict[str, str] = {}
    try:
        file = folder / "chat_template.jinja"
        if file.exists():
            templates["default"] = read_template(file)
        for file in (folder / "additional_chat_templates").glob("*.jinja"):
            templates[file.stem] = read_template(file)
    except (OSError, ValueError) as error:
        raise UnsuitableError(f"its chat template {file.name} cannot be read") from error
    if "file" in templates:
        raise UnsuitableError("its chat template 'file' has a name that transformers confuses")
    if list(templates) == ["default"]:
        return templates["default"]
    if templates:
        return templates
    if template is None or isinstance(template, str):
        return template
    return read_named_templates(template)


def read_template(file: Path) -> str:
    """Read the text of a chat template, with line breaks as in Unix. Raises OSError, ValueError."""
    text = read_regular_file(file, LARGEST_CONFIG).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_named_templates(templates: Any) -> dict[str, str]:
    """Read chat templates that a tokenizer_config.json lists. Raises UnsuitableError."""
    try:
        if isinstance(templates, list):
            templates = {entry["name"]: entry["template"] for entry in templates}
        named = dict(templates)
    except (LookupError, TypeError, ValueError) as error:
        raise UnsuitableError("its chat templates are of a form not known here") from error
    texts = [*named, *named.values()]
    if not all(isinstance(text, str) for text in texts):
        raise UnsuitableError("its chat templates are of a form not known here")
    return named


# Special tokens


def rename_extra_tokens(settings: dict[str, Any]) -> None:
    """Give special tokens without a role their newer name, unless it is in use."""
    if OLD_EXTRA_TOKENS in settings and not settings.get(EXTRA_TOKENS):
        settings[EXTRA_TOKENS] = settings.pop(OLD_EXTRA_TOKENS)


def collect_own_tokens(settings: dict[str, Any]) -> None:
    """Move the tokens of roles that only this model has to one entry of the settings.

    Raises UnsuitableError for tokens of another form.
    """
    own: dict[str, Any] = {}
    for name in list(settings):
        if name.endswith("_token") and name not in ROLES and isinstance(settings[name], str):
            own[name] = settings.pop(name)
    if isinstance(settings.get(EXTRA_TOKENS), dict):
        own |= settings.pop(EXTRA_TOKENS)
    own = own or settings.pop(OWN_TOKENS, None) or {}
    settings.pop(OWN_TOKENS, None)
    is_known = isinstance(own, dict) and not set(own) & set(ROLES)
    if not is_known or not all(isinstance(token, str) for token in own.values()):
        raise UnsuitableError(f"its {SETTINGS} has special tokens of a form not known here")
    settings[OWN_TOKENS] = own


def read_numbered_tokens(tokens: Any) -> dict[int, AddedToken]:
    """Read added tokens by their numbers. Raises UnsuitableError for another form."""
    try:
        return {int(number): make_token(token) for number, token in tokens.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsuitableError(f"its {SETTINGS} has added tokens of an unknown form") from error


def merge_token_map(settings: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Let the entries of a special_tokens_map.json go before the settings, as for older files.

    Raises UnsuitableError for entries that are not known here.
    """
    for name, value in entries.items():
        if name not in MAP_ENTRIES:
            raise UnsuitableError(f"its special_tokens_map.json has the unknown entry {name!r}")
        earlier = settings.get(name) or []
        is_role = name in ROLES
        is_list = not is_role and is_text_list(value) and is_text_list(earlier)
        if is_role and isinstance(value, dict):
            settings[name] = make_token(value, special=True)
        elif is_role and isinstance(value, str):
            settings[name] = value
        elif is_list and name == EXTRA_TOKENS:
            settings[name] = list(dict.fromkeys([*earlier, *value]))
        elif is_list:
            settings[name] = value
        else:
            raise UnsuitableError(f"its special_tokens_map.json says {name} = {value!r}")


def is_text_list(value: Any) -> bool:
    """Return True for a list of texts, which may be empty."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def list_older_tokens(
    folder: Path,
    settings: Mapping[str, Any],
    document: Mapping[str, Any],
) -> dict[int, AddedToken]:
    """List the added tokens of an added_tokens.json and of the tokenizer.json, which goes before.

    Raises UnsuitableError for tokens of another form.
    """
    names = {str(settings[role]) for role in ROLES if settings.get(role)}
    names.update(str(token) for token in settings.get(EXTRA_TOKENS) or [])
    added: dict[int, AddedToken] = {}
    for text, number in read_entries(folder / "added_tokens.json").items():
        if type(number) is not int:
            raise UnsuitableError(f"its added_tokens.json says {text} = {number!r}")
        is_special = text in names
        added[number] = AddedToken(text, normalized=not is_special, special=is_special)
    for entry in document["added_tokens"]:
        fields = dict(entry) if isinstance(entry, dict) else {}
        number = fields.pop("id", None)
        if type(number) is not int:
            raise UnsuitableError(f"its {TOKENIZER} has added tokens of an unknown form")
        added[number] = make_token(fields)
    return added


def make_token(fields: Mapping[str, Any], **changes: Any) -> AddedToken:
    """Make an added token of its fields in a file. Raises UnsuitableError for unknown fields."""
    known = {name: fields[name] for name in fields if TOKEN_FIELDS.get(name) is type(fields[name])}
    if len(known) < len(fields) or "content" not in fields:
        raise UnsuitableError(f"it has an added token of an unknown form: {dict(fields)}")
    return AddedToken(**{**known, **changes})


def restore_tokens(value: Any) -> Any:
    """Make added tokens of the entries in a setting that stand for one."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        fields = {name: entry for name, entry in value.items() if name != "__type"}
        return make_token(fields)
    if isinstance(value, list):
        return [restore_tokens(item) for item in value]
    return value
