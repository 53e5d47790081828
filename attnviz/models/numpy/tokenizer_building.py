"""Building a tokenizer of its files in the steps of a class of transformers."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram

from attnviz.io.untrusted import parse_json
from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.numpy.tokenizer_classes import (
    Arguments,
    TokenizerClass,
    make_plain_post_processor,
    name_role_token,
)
from attnviz.models.numpy.tokenizer_files import (
    EXTRA_TOKENS,
    OLD_EXTRA_TOKENS,
    OWN_TOKENS,
    ROLES,
    SETTINGS,
    TokenizerFiles,
)

NamedToken = str | AddedToken
XLM_UNKNOWN = 3
"""The id of the token for unknown pieces in XLM-RoBERTa."""
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
BPE_OPTIONS = {
    **dict.fromkeys(AFFIXES),
    "dropout": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""The options of byte pair encodings (Sennrich et al. 2016), unless a class has others."""
WORDPIECE_OPTIONS = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}


def collect_arguments(
    settings: Mapping[str, Any],
    tokenizer_class: TokenizerClass,
) -> dict[str, Any]:
    """Collect the arguments of a class: its defaults, changed by the settings of a folder."""
    arguments = {**tokenizer_class.tokens, **settings}
    if tokenizer_class.adapt is not None:
        tokenizer_class.adapt(arguments)
    if OLD_EXTRA_TOKENS in arguments and EXTRA_TOKENS not in arguments:
        arguments[EXTRA_TOKENS] = arguments.pop(OLD_EXTRA_TOKENS)
    return arguments


def build_tokenizer(
    files: TokenizerFiles,
    tokenizer_class: TokenizerClass,
    arguments: dict[str, Any],
) -> Tokenizer:
    """Build a tokenizer as a class does, with all tokens that are added.

    arguments: of the class; a token for padding that the file names is added to them. Raises
    UnsuitableError, and what the library raises for files that it does not take.
    """
    if tokenizer_class.model is None:
        tokenizer = original = Tokenizer.from_buffer(files.data)
    elif tokenizer_class.model == "Unigram":
        tokenizer, original = rebuild_unigram(files, tokenizer_class, arguments)
    else:
        tokenizer, original = rebuild_around_model(files, tokenizer_class, arguments)
    if original.padding is not None:
        arguments.setdefault("pad_token", original.padding["pad_token"])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = arguments.get("split_special_tokens", False)
    tokenizer.add_tokens(list_added_tokens(tokenizer, files.added.values(), arguments))
    make_post_processor = tokenizer_class.make_post_processor
    tokenizer.post_processor = original.post_processor
    if make_post_processor is None and tokenizer.post_processor is None:
        make_post_processor = make_plain_post_processor
    if make_post_processor is not None:
        tokenizer.post_processor = make_post_processor(arguments, partial(find_token, tokenizer))
    return tokenizer


def find_token(tokenizer: Tokenizer, name: str) -> int:
    """Find the id of a token. Raises UnsuitableError if there is no such token."""
    number = tokenizer.token_to_id(name)
    if number is None:
        raise UnsuitableError(f"its tokenizer has no token {name!r}")
    return number


def rebuild_around_model(
    files: TokenizerFiles,
    tokenizer_class: TokenizerClass,
    arguments: Arguments,
) -> tuple[Tokenizer, Tokenizer]:
    """Build a tokenizer around the model of a tokenizer.json, without its added tokens.

    Returns it, and that of the file. Raises UnsuitableError for another model than the class has.
    """
    original = Tokenizer.from_buffer(files.data)
    model = original.model
    require_model_type(files, tokenizer_class)
    unknown = name_role_token(arguments, "unk_token") if tokenizer_class.knows_unknown else None
    options = BPE_OPTIONS if isinstance(model, BPE) else WORDPIECE_OPTIONS
    for option, value in {**options, **tokenizer_class.options, "unk_token": unknown}.items():
        setattr(model, option, value)
    tokenizer = Tokenizer(model)
    set_components(tokenizer, tokenizer_class, arguments, files)
    return tokenizer, original


def rebuild_unigram(
    files: TokenizerFiles,
    tokenizer_class: TokenizerClass,
    arguments: Arguments,
) -> tuple[Tokenizer, Tokenizer]:
    """Build a tokenizer around a unigram model (Kudo 2018) with the pieces of a tokenizer.json.

    The library reads some of the scores in that file by a last digit otherwise than Python, from
    which the class has them: so has this. Returns the tokenizer, and that of the file, with one
    piece. Raises UnsuitableError for another model than the class has.
    """
    require_model_type(files, tokenizer_class)
    pieces = parse_json(files.data)["model"]["vocab"]
    stub = {**files.document["model"], "vocab": [["", 0.0]], "unk_id": 0}
    stubbed = {**files.document, "model": stub, "added_tokens": []}
    original = Tokenizer.from_str(json.dumps(stubbed))
    unknown_id = XLM_UNKNOWN
    if tokenizer_class.knows_unknown:
        unknown = name_role_token(arguments, "unk_token")
        names = [name for name, _ in pieces]
        unknown_id = names.index(unknown) if unknown in names else 0
    vocabulary = [(name, score) for name, score in pieces]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=unknown_id, byte_fallback=False))
    set_components(tokenizer, tokenizer_class, arguments, files)
    return tokenizer, original


def require_model_type(files: TokenizerFiles, tokenizer_class: TokenizerClass) -> None:
    """Raise UnsuitableError unless a tokenizer.json has the model that a class has."""
    model = files.document["model"]
    kind = model.get("type")
    if kind != tokenizer_class.model:
        raise UnsuitableError(f"its tokenizer has the model {kind!r}, which its class has not")
    if kind == "BPE" and any(model.get(affix) for affix in AFFIXES):
        raise UnsuitableError("its tokenizer marks parts of words, which its class does not")


def set_components(
    tokenizer: Tokenizer,
    tokenizer_class: TokenizerClass,
    arguments: Arguments,
    files: TokenizerFiles,
) -> None:
    """Give a tokenizer the components that a class makes."""
    assert tokenizer_class.make_components is not None
    components = tokenizer_class.make_components(arguments, files)
    if components.normalizer is not None:
        tokenizer.normalizer = components.normalizer
    tokenizer.pre_tokenizer = components.pre_tokenizer
    tokenizer.decoder = components.decoder


# Special tokens


def list_roles(arguments: Arguments) -> dict[str, NamedToken]:
    """List the special tokens that have a role, in the order of transformers.

    Raises UnsuitableError for a token of another form.
    """
    roles = {role: arguments.get(role) for role in ROLES}
    roles |= arguments[OWN_TOKENS]
    for role, token in roles.items():
        is_token = isinstance(token, str | AddedToken) and str(token)
        if token is not None and not is_token:
            raise UnsuitableError(f"its {SETTINGS} says {role} = {token!r}")
    return {role: token for role, token in roles.items() if token is not None}


def list_extra_tokens(arguments: Arguments) -> list[NamedToken]:
    """List the special tokens without a role. Raises UnsuitableError for one of another form."""
    extra = arguments.get(EXTRA_TOKENS)
    if extra is None:
        return []
    is_list = isinstance(extra, list)
    if not is_list or not all(
        isinstance(token, str | AddedToken) and str(token) for token in extra
    ):
        raise UnsuitableError(f"its {SETTINGS} says {EXTRA_TOKENS} = {extra!r}")
    return list(extra)


def list_added_tokens(
    tokenizer: Tokenizer,
    added: Iterable[AddedToken],
    arguments: Arguments,
) -> list[AddedToken]:
    """List the tokens that are added to a vocabulary, in order.

    These are the added tokens of the files, also those that the tokenizer has, and special tokens
    that it has not. added: the former.
    """
    roles = list_roles(arguments)
    tokens: list[NamedToken] = list(added)
    present = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    present += [str(token) for token in tokens]
    for token in [*roles.values(), *list_extra_tokens(arguments)]:
        if str(token) not in present and token not in tokens:
            tokens.append(token)
    names = [str(token) for token in roles.values()]
    return [mark_special(token, names) for token in tokens]


def mark_special(token: NamedToken, names: Iterable[str]) -> AddedToken:
    """Return a token as an added one; it is special if it is only a name, or one of some names."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if str(token) in names:
        token.special = True
    return token
