"""The tokenizer of a folder, read with the ``tokenizers`` library alone, without transformers.

It gives what ``AutoTokenizer`` of transformers 5 gives, and is refused where that is not certain.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE

from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.numpy.tokenizer_building import (
    build_tokenizer,
    collect_arguments,
    list_extra_tokens,
    list_roles,
)
from attnviz.models.numpy.tokenizer_classes import (
    CLASSES,
    TokenizerClass,
    choose_tokenizer_class,
)
from attnviz.models.numpy.tokenizer_files import SETTINGS, TokenizerFiles, read_tokenizer_files
from attnviz.models.panics import refuse_tokenizer_errors

NO_LIMIT = int(1e30)
"""The length of texts that transformers writes for a tokenizer that does not limit it."""
ANY_LENGTH = int(1e20)
"""The length from which on a limit is none."""
CHECKED_SIZE = 100_000
"""The size of vocabularies from which on transformers looks for a fault of some files."""
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.dev)\d+)?")
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""The spaces that are taken out of a decoded text where a folder asks for it."""


@dataclass(frozen=True, eq=False)
class FileEncoding:
    """The encoding of a text, by the names that transformers has for its parts."""

    encoding: Encoding
    parts: Mapping[str, list[Any]]

    def __getitem__(self, name: str) -> list[Any]:
        return self.parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def sequence_ids(self, index: int = 0) -> list[int | None]:
        """Return the number of the text of each token; None for a special token.

        index: of the encoding in a batch; there is one.
        """
        return list([self.encoding][index].sequence_ids)


@dataclass(frozen=True, eq=False)
class FileTokenizer:
    """A tokenizer of a tokenizer.json, with the interface of those of transformers."""

    backend: Tokenizer
    tokens: Mapping[str, str]
    """The special tokens by their roles."""
    extra_tokens: Sequence[str]
    """The special tokens without a role."""
    model_max_length: int
    chat_template: str | Mapping[str, str] | None
    reads_segments: bool
    """True if encodings say which of two texts a token is of."""
    cleans_spaces: bool
    """True if spaces before punctuation are taken out of decoded texts."""
    is_fast: bool = True

    def __call__(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> FileEncoding:
        """Encode a text, and its pair unless that is empty.

        truncation: whether the texts are cut on the right, the longer one first; None to cut them
        if there is a max_length. max_length: the number of tokens that is left; without it, as many
        as the tokenizer allows.
        """
        cuts = max_length is not None if truncation is None else truncation
        limit = self.model_max_length if max_length is None else max_length
        is_limited = max_length is not None or limit <= ANY_LENGTH
        self.backend.no_truncation()
        if cuts and is_limited:
            self.backend.enable_truncation(limit, strategy="longest_first", direction="right")
        encoding = self.backend.encode(text, pair or None, add_special_tokens=add_special_tokens)
        parts: dict[str, list[Any]] = {"input_ids": encoding.ids}
        if self.reads_segments:
            parts["token_type_ids"] = encoding.type_ids
        if return_special_tokens_mask:
            parts["special_tokens_mask"] = encoding.special_tokens_mask
        if return_offsets_mapping:
            parts["offset_mapping"] = encoding.offsets
        return FileEncoding(encoding, parts)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens by their names."""
        return self.backend.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return the names of tokens; None for an id that there is not."""
        return [self.backend.id_to_token(number) for number in ids]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        """Return the ids of tokens; of one that is not known the id for unknown tokens."""
        return [self.find_id(token) for token in tokens]

    def find_id(self, token: str) -> int | None:
        """Return the id of a token, or that for unknown ones; None if there is no such token."""
        number = self.backend.token_to_id(token)
        return self.unk_token_id if number is None else number

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of tokens.

        clean_up_tokenization_spaces: whether spaces before punctuation are taken out; None for
        what the folder says. Those of byte pair encodings never are.
        """
        text = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        cleans = clean_up_tokenization_spaces
        if cleans is None:
            cleans = self.cleans_spaces
        if not cleans or isinstance(self.backend.model, BPE):
            return text
        for written, cleaned in CLEANED:
            text = text.replace(written, cleaned)
        return text

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The special tokens by their roles, which a chat template may read."""
        return self.tokens

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that were added to the vocabulary, by their ids."""
        return self.backend.get_added_tokens_decoder()

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once."""
        return list(dict.fromkeys([*self.tokens.values(), *self.extra_tokens]))

    @property
    def all_special_ids(self) -> list[int | None]:
        """The ids of the special tokens."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text."""
        return self.find_role_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self.find_role_id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of the token for what is not in the vocabulary."""
        return self.find_role_id("unk_token")

    @property
    def sep_token_id(self) -> int | None:
        """The id of the token between texts."""
        return self.find_role_id("sep_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills a batch."""
        return self.find_role_id("pad_token")

    @property
    def cls_token_id(self) -> int | None:
        """The id of the token that stands for a whole text."""
        return self.find_role_id("cls_token")

    @property
    def mask_token_id(self) -> int | None:
        """The id of the token for a word that is hidden."""
        return self.find_role_id("mask_token")

    def find_role_id(self, role: str) -> int | None:
        """Return the id of the special token of a role; None if there is none."""
        token = self.tokens.get(role)
        if token is None:
            return None
        return self.backend.token_to_id(token)


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> FileTokenizer:
    """Open the tokenizer of a folder as ``AutoTokenizer`` does.

    config: the config.json of its model. Raises UnsuitableError unless it is certain that
    transformers gives the same.
    """
    files = read_tokenizer_files(folder)
    name = choose_tokenizer_class(folder, config, files)
    tokenizer_class = CLASSES[name]
    try:
        with refuse_tokenizer_errors("its library gives up"):
            return make_tokenizer(files, tokenizer_class, config)
    except UnsuitableError:
        raise
    except Exception as error:  # the library raises plain ones
        raise UnsuitableError(f"its tokenizer cannot be made: {error}") from error


def make_tokenizer(
    files: TokenizerFiles,
    tokenizer_class: TokenizerClass,
    config: Mapping[str, Any],
) -> FileTokenizer:
    """Make a tokenizer of its files, as a class of transformers does.

    Raises UnsuitableError, and what the library raises for files that it does not take.
    """
    arguments = collect_arguments(files.settings, tokenizer_class)
    backend = build_tokenizer(files, tokenizer_class, arguments)
    require_known_version(backend, config)
    roles = list_roles(arguments)
    tokenizer = FileTokenizer(
        backend=backend,
        tokens={role: str(token) for role, token in roles.items()},
        extra_tokens=[str(token) for token in list_extra_tokens(arguments)],
        model_max_length=read_length_limit(arguments),
        chat_template=arguments["chat_template"],
        reads_segments=reads_segments(arguments, tokenizer_class),
        cleans_spaces=bool(arguments.get("clean_up_tokenization_spaces")),
    )
    if tokenizer_class.adds_tokens_again:
        names = tokenizer.all_special_tokens
        backend.add_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer


def read_length_limit(arguments: Mapping[str, Any]) -> int:
    """Read the number of tokens to which texts are cut. Raises UnsuitableError for no number."""
    name = "model_max_length" if "model_max_length" in arguments else "max_len"
    limit = arguments.get(name)
    if limit is None:
        return NO_LIMIT
    if type(limit) is not int:
        raise UnsuitableError(f"its {SETTINGS} says {name} = {limit!r}")
    return limit


def reads_segments(arguments: Mapping[str, Any], tokenizer_class: TokenizerClass) -> bool:
    """Return True if encodings say which of two texts a token is of.

    Raises UnsuitableError for a list of inputs that is none.
    """
    names = arguments.get("model_input_names")
    if "model_input_names" not in arguments:
        return tokenizer_class.reads_segments
    if not isinstance(names, list):
        raise UnsuitableError(f"its {SETTINGS} says model_input_names = {names!r}")
    return "token_type_ids" in names


def require_known_version(backend: Tokenizer, config: Mapping[str, Any]) -> None:
    """Raise UnsuitableError for a version of transformers, in a config, that cannot be compared.

    The library compares it where a vocabulary is large, and then changes nothing by itself.
    """
    version = config.get("transformers_version")
    if not version or backend.get_vocab_size() <= CHECKED_SIZE:
        return
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise UnsuitableError(f"its config says transformers_version = {version!r}")
