"""The classes of tokenizers in transformers 5, as data: what each makes of a vocabulary.

Most classes take only the vocabulary, the merges and perhaps the post-processor from a
tokenizer.json, and make the other components anew from settings. The class of all other tokenizers
takes the file as it is.
"""

from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors

from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.numpy.tokenizer_files import OLD_EXTRA_TOKENS, TokenizerFiles

Arguments = Mapping[str, Any]
"""The arguments of a class: its defaults, changed by settings."""
FindId = Callable[[str], int]
"""Return the id of a token."""
SPACE = "\u2581"
"""The sign of SentencePiece for a space."""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of words of Qwen 2."""


class Components(NamedTuple):
    """The components that a class makes around a model."""

    pre_tokenizer: Any
    decoder: Any
    normalizer: Any = None


@dataclass(frozen=True)
class TokenizerClass:
    """A class of tokenizers."""

    model: str | None = None
    """The type of model that it makes; None if it takes a tokenizer.json as it is."""
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    """The special tokens that it has by default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of its model that differ from those of other models of the type."""
    knows_unknown: bool = False
    """True if its model writes the token for unknown words by name."""
    make_components: Callable[[Arguments, TokenizerFiles], Components] | None = None
    make_post_processor: Callable[[Arguments, FindId], Any] | None = None
    """Make the post-processor; None if it takes that of the tokenizer.json."""
    reads_segments: bool = False
    """True if its models read which of two texts a token is of."""
    adds_tokens_again: bool = False
    """True if special tokens are added a second time, as plain ones."""
    adapt: Callable[[dict[str, Any]], None] | None = None
    """Change the arguments before anything is made of them."""


# Components


def make_bert_components(arguments: Arguments, _: TokenizerFiles) -> Components:
    """Make the components of BERT (Devlin et al. 2019)."""
    return Components(
        normalizer=normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=arguments.get("tokenize_chinese_chars", True),
            strip_accents=arguments.get("strip_accents"),
            lowercase=arguments.get("do_lower_case", True),
        ),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(prefix="##"),
    )


def make_byte_components(arguments: Arguments, _: TokenizerFiles) -> Components:
    """Make the components of GPT-2 (Radford et al. 2019), whose letters are bytes."""
    prefixed = arguments.get("add_prefix_space", False)
    return Components(pre_tokenizers.ByteLevel(add_prefix_space=prefixed), decoders.ByteLevel())


def make_neox_components(arguments: Arguments, _: TokenizerFiles) -> Components:
    """Make the components of GPT-NeoX (Black et al. 2022)."""
    pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=arguments.get("add_prefix_space", False),
        trim_offsets=arguments.get("trim_offsets", True),
    )
    return Components(pre_tokenizer, decoders.ByteLevel(), normalizers.NFC())


def make_qwen_components(arguments: Arguments, _: TokenizerFiles) -> Components:
    """Make the components of Qwen 2 (2024)."""
    prefixed = arguments.get("add_prefix_space")
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
    letters = pre_tokenizers.ByteLevel(
        add_prefix_space=False if prefixed is None else prefixed,
        use_regex=False,
    )
    pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return Components(pre_tokenizer, decoders.ByteLevel(), normalizers.NFC())


def make_llama_components(arguments: Arguments, _: TokenizerFiles) -> Components:
    """Make the components of Llama 2 (Touvron et al. 2023), which come from SentencePiece."""
    prefixed = arguments.get("add_prefix_space")
    prefixed = True if prefixed is None else prefixed
    scheme = "never"
    if prefixed:
        scheme = "always" if arguments.get("legacy", False) else "first"
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    return Components(
        pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False),
        decoders.Sequence(steps),
    )


def make_gemma_components(_: Arguments, __: TokenizerFiles) -> Components:
    """Make the components of Gemma (2024)."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return Components(
        pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False),
        decoders.Sequence(steps),
        normalizers.Replace(" ", SPACE),
    )


def make_sentencepiece_components(arguments: Arguments, files: TokenizerFiles) -> Components:
    """Make the components of XLM-RoBERTa (Conneau et al. 2020) and CamemBERT."""
    scheme = "always" if arguments.get("add_prefix_space", True) else "never"
    marked = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return Components(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marked]),
        decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme),
        read_precompiled_normalizer(files.document),
    )


def read_precompiled_normalizer(document: Mapping[str, Any]) -> Any:
    """Read the table of letters that SentencePiece put into a tokenizer.json; None without one."""
    normalizer = document.get("normalizer")
    if not normalizer:
        return None
    is_sequence = normalizer.get("type") == "Sequence"
    steps = normalizer["normalizers"] if is_sequence else [normalizer]
    for step in steps:
        if step.get("type") == "Precompiled":
            return normalizers.Precompiled(b64decode(step["precompiled_charsmap"]))
    return None


def adapt_camembert(arguments: dict[str, Any]) -> None:
    """Let the mask of CamemBERT take the spaces before it, and add tokens that are not used."""
    if isinstance(arguments["mask_token"], str):
        arguments["mask_token"] = AddedToken(arguments["mask_token"], lstrip=True, special=True)
    if arguments.get(OLD_EXTRA_TOKENS) is None:
        arguments[OLD_EXTRA_TOKENS] = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]


# Post-processors


def make_bert_post_processor(arguments: Arguments, find_id: FindId) -> Any:
    """Put [CLS] before a text and [SEP] after each."""
    first, last = name_role_token(arguments, "cls_token"), name_role_token(arguments, "sep_token")
    return processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(first, find_id(first)), (last, find_id(last))],
    )


def make_roberta_post_processor(arguments: Arguments, find_id: FindId) -> Any:
    """Put <s> before a text and </s> after it, and two of these between texts."""
    first, last = name_role_token(arguments, "cls_token"), name_role_token(arguments, "sep_token")
    return processors.RobertaProcessing(
        (last, find_id(last)),
        (first, find_id(first)),
        arguments.get("trim_offsets", True),
        arguments.get("add_prefix_space", False),
    )


def make_sentencepiece_post_processor(arguments: Arguments, find_id: FindId) -> Any:
    """Put <s> before a text and </s> after it, and two of these between texts, all of one kind."""
    first, last = name_role_token(arguments, "bos_token"), name_role_token(arguments, "eos_token")
    return processors.TemplateProcessing(
        single=[first, "$A", last],
        pair=[first, "$A", last, last, "$B", last],
        special_tokens=[(first, find_id(first)), (last, find_id(last))],
    )


def make_camembert_post_processor(arguments: Arguments, find_id: FindId) -> Any:
    """Put the same around texts, in words of a template that tell tokens apart by spaces."""
    first, last = name_role_token(arguments, "bos_token"), name_role_token(arguments, "eos_token")
    return processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, find_id(first)), (last, find_id(last))],
    )


def make_plain_post_processor(_: Arguments, __: FindId) -> Any:
    """Put nothing before and after texts."""
    return processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def name_role_token(arguments: Arguments, role: str) -> str:
    """Return the name of the special token of a role. Raises UnsuitableError if there is none."""
    token = arguments[role]
    if token is None:
        raise UnsuitableError(f"its tokenizer has no {role}")
    return str(token)


# The table

BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
GPT2_TOKENS = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
NO_AFFIXES = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
BYTES_FOR_UNKNOWN = {"fuse_unk": True, "byte_fallback": True}
BYTE_LEVEL = b'"ByteLevel"'
"""What a tokenizer.json says if letters are bytes."""
BACKEND = "TokenizersBackend"
"""The class of transformers that takes a tokenizer.json as it is."""

CLASSES: Mapping[str, TokenizerClass] = {
    BACKEND: TokenizerClass(),
    "BertTokenizer": TokenizerClass(
        model="WordPiece",
        tokens=BERT_TOKENS,
        knows_unknown=True,
        make_components=make_bert_components,
        make_post_processor=make_bert_post_processor,
        reads_segments=True,
    ),
    "DistilBertTokenizer": TokenizerClass(
        model="WordPiece",
        tokens=BERT_TOKENS,
        knows_unknown=True,
        make_components=make_bert_components,
        make_post_processor=make_bert_post_processor,
    ),
    "RobertaTokenizer": TokenizerClass(
        model="BPE",
        tokens=ROBERTA_TOKENS,
        options=NO_AFFIXES,
        make_components=make_byte_components,
        make_post_processor=make_roberta_post_processor,
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        model="Unigram",
        tokens=ROBERTA_TOKENS,
        make_components=make_sentencepiece_components,
        make_post_processor=make_sentencepiece_post_processor,
    ),
    "CamembertTokenizer": TokenizerClass(
        model="Unigram",
        tokens=ROBERTA_TOKENS,
        knows_unknown=True,
        adapt=adapt_camembert,
        make_components=make_sentencepiece_components,
        make_post_processor=make_camembert_post_processor,
    ),
    "GPT2Tokenizer": TokenizerClass(
        model="BPE",
        tokens={**GPT2_TOKENS, "pad_token": None},
        options=NO_AFFIXES,
        make_components=make_byte_components,
    ),
    "GPTNeoXTokenizer": TokenizerClass(
        model="BPE",
        tokens={**GPT2_TOKENS, "pad_token": "<|padding|>"},
        options=NO_AFFIXES,
        make_components=make_neox_components,
        make_post_processor=make_plain_post_processor,
    ),
    "LlamaTokenizer": TokenizerClass(
        model="BPE",
        tokens={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        options=BYTES_FOR_UNKNOWN,
        make_components=make_llama_components,
    ),
    "Qwen2Tokenizer": TokenizerClass(
        model="BPE",
        tokens={**GPT2_TOKENS, "bos_token": None, "pad_token": "<|endoftext|>"},
        options=NO_AFFIXES,
        make_components=make_qwen_components,
        adds_tokens_again=True,
    ),
    "GemmaTokenizer": TokenizerClass(
        model="BPE",
        tokens={
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        options=BYTES_FOR_UNKNOWN,
        knows_unknown=True,
        make_components=make_gemma_components,
    ),
}
"""The classes that are known here, by their names."""
NAMES_OF_CLASSES: Mapping[str, str] = {
    **{name: name for name in CLASSES},
    **{f"{name}Fast": name for name in CLASSES if name != BACKEND},
    "ElectraTokenizer": "BertTokenizer",
    "ElectraTokenizerFast": "BertTokenizer",
    "PreTrainedTokenizerFast": BACKEND,
}
"""The classes by the names that folders have for them."""
CLASSES_BY_MODEL: Mapping[str, str | None] = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "granite": BACKEND,
    "llama": None,
    "mistral": BACKEND,
    "olmo2": BACKEND,
    "phi3": BACKEND,
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "smollm3": None,
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""The class of each type of model; None where the folder alone tells it."""
MISNAMED = ("phi3", "qwen2")
"""Types of models whose folders name a wrong class."""
PATCHED_FOLDERS = (
    "deepseek-ai/deepseek-r1-distill-llama-*", "deepseek-ai/deepseek-coder-*",
    "allenai/dolma2-tokenizer", "google/umt5-small", "naver-clova-ix/donut-*",
    "salesforce/blip2-opt-*", "salesforce/blip2-flan-t5-*", "salesforce/instructblip-flan-t5-*",
    "stepfun-ai/step-3.7-*",
)  # fmt: skip
"""Folders that transformers knows by name, and for which it has rules of their own."""


def choose_tokenizer_class(
    folder: Path,
    config: Mapping[str, Any],
    files: TokenizerFiles,
) -> str:
    """Choose the class of a folder's tokenizer as ``AutoTokenizer`` does.

    config: the model's. Raises UnsuitableError for a type of model or a class not known here.
    """
    require_plain_folder(folder, config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES_BY_MODEL:
        raise UnsuitableError(f"its tokenizer is that of a {kind!r}, which is not known here")
    registered = CLASSES_BY_MODEL[kind]
    declared = files.declared
    if declared is None:
        declared = config.get("tokenizer_class")
    if isinstance(declared, str) and declared.startswith("MistralCommon"):
        raise UnsuitableError(f"its tokenizer is a {declared!r}, which is not known here")
    if registered is not None and (registered == BACKEND or kind in MISNAMED):
        return registered
    if declared is None:
        return registered or BACKEND
    if declared not in NAMES_OF_CLASSES:
        raise UnsuitableError(f"its tokenizer is a {declared!r}, which is not known here")
    name = NAMES_OF_CLASSES[declared]
    if name == "LlamaTokenizer" and BYTE_LEVEL in files.data:
        return BACKEND
    return name


def require_plain_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsuitableError for a folder for which transformers has rules of its own."""
    names = str(folder), str(config.get("_name_or_path"))
    for name in names:
        if any(fnmatch(name.lower(), pattern) for pattern in PATCHED_FOLDERS):
            raise UnsuitableError(f"transformers has rules of its own for {name}")
    if "model_name" in config:
        raise UnsuitableError("its config has the entry 'model_name', which is not known here")
    if (folder / "tekken.json").exists():
        raise UnsuitableError("it has a tekken.json, which is not read here")
