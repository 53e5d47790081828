"""Folders of small tokenizers as those of the hub are: the same files, components and settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE, Unigram, WordPiece

from tests.conftest import ROOT

SAMPLES = {path.stem: path.read_text("utf-8") for path in sorted(ROOT.glob("sample_texts/*.txt"))}
SIZE = 600
BYTES = [f"<0x{number:02X}>" for number in range(256)]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass
class TokenizerFolder:
    """The files of a tokenizer, before they are written."""

    tokenizer: Tokenizer
    settings: dict[str, Any]
    config: dict[str, Any]
    others: dict[str, Any] = field(default_factory=dict)
    """Other files by their names: texts, or values of JSON."""
    change: Callable[[dict[str, Any]], None] | None = None
    """Change the tokenizer.json."""

    def write(self, folder: Path) -> Path:
        """Write the files."""
        folder.mkdir(parents=True, exist_ok=True)
        document = json.loads(self.tokenizer.to_str())
        if self.change is not None:
            self.change(document)
        files = {
            "tokenizer.json": document,
            "tokenizer_config.json": self.settings,
            "config.json": self.config,
            **self.others,
        }
        for name, value in files.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        return folder


def number_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """The added tokens of a tokenizer as a tokenizer_config.json has them."""
    added = tokenizer.get_added_tokens_decoder()
    return {str(number): token.__getstate__() for number, token in added.items()}


def train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    """Train a tokenizer on the sample texts."""
    tokenizer.train_from_iterator(SAMPLES.values(), trainer)
    return tokenizer


def train_wordpiece(tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer of BERT's kind."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=list(tokens), show_progress=False
    )
    return train(tokenizer, trainer)


def train_bytes(tokens: Sequence[str | AddedToken]) -> Tokenizer:
    """A tokenizer of GPT-2's kind."""
    tokenizer = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return train(tokenizer, trainer)


def train_pieces(tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer of Llama 2's kind, with the steps that its older files have."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=[*tokens, *BYTES], show_progress=False
    )
    train(tokenizer, trainer)
    document = json.loads(tokenizer.to_str())
    kept = {*tokens}
    document["added_tokens"] = [
        entry for entry in document["added_tokens"] if entry["content"] in kept
    ]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def train_unigram(tokens: Sequence[str], normalizer: Any = None) -> Tokenizer:
    """A tokenizer of XLM-RoBERTa's kind."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE,
        special_tokens=list(tokens),
        unk_token="<unk>",
        show_progress=False,
    )
    return train(tokenizer, trainer)


def surround(tokenizer: Tokenizer, single: str, pair: str, *tokens: str) -> None:
    """Let a template put special tokens around texts."""
    numbered = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=numbered
    )


def mark_mask(tokenizer: Tokenizer) -> None:
    """Let the mask take the spaces before it."""
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])


BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def make_bert(kind: str = "bert", declared: str | None = "BertTokenizer") -> TokenizerFolder:
    """BERT, and what shares its tokenizer."""
    tokenizer = train_wordpiece(BERT_TOKENS)
    surround(
        tokenizer,
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        "[CLS]",
        "[SEP]",
    )
    settings: dict[str, Any] = {
        "added_tokens_decoder": number_tokens(tokenizer),
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "model_max_length": 12,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        **BERT_ROLES,
    }
    if declared is not None:
        settings["tokenizer_class"] = declared
    return TokenizerFolder(tokenizer, settings, {"model_type": kind})


def make_roberta() -> TokenizerFolder:
    """RoBERTa."""
    tokenizer = train_bytes(ROBERTA_TOKENS)
    mark_mask(tokenizer)
    first, last = ("<s>", 0), ("</s>", 2)
    tokenizer.post_processor = processors.RobertaProcessing(last, first, True, False)
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": number_tokens(tokenizer),
        "clean_up_tokenization_spaces": True,
        "errors": "replace",
        "model_max_length": 512,
        "tokenizer_class": "RobertaTokenizer",
        "trim_offsets": True,
        **ROBERTA_ROLES,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "roberta"})


def make_xlm_roberta() -> TokenizerFolder:
    """XLM-RoBERTa."""
    tokenizer = train_unigram(ROBERTA_TOKENS)
    mark_mask(tokenizer)
    surround(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>")
    settings = {
        "added_tokens_decoder": number_tokens(tokenizer),
        "clean_up_tokenization_spaces": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "XLMRobertaTokenizer",
        **ROBERTA_ROLES,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "xlm-roberta"})


def make_camembert() -> TokenizerFolder:
    """CamemBERT."""
    unused = ["<s>NOTUSED", "</s>NOTUSED"]
    tokens = [unused[0], "<pad>", unused[1], "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
    normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer = train_unigram(tokens, normalizer)
    mark_mask(tokenizer)
    surround(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>")
    settings = {
        "added_tokens_decoder": number_tokens(tokenizer),
        "additional_special_tokens": [*unused, "<unk>NOTUSED"],
        "clean_up_tokenization_spaces": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "CamembertTokenizer",
        **ROBERTA_ROLES,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "camembert"})


def make_gpt2() -> TokenizerFolder:
    """GPT-2."""
    end = "<|endoftext|>"
    tokenizer = train_bytes([AddedToken(end, normalized=True, special=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": number_tokens(tokenizer),
        "bos_token": end,
        "clean_up_tokenization_spaces": True,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": None,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": end,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "gpt2"})


def make_neox() -> TokenizerFolder:
    """GPT-NeoX, as Pythia has it: runs of spaces are tokens that were added."""
    tokenizer = train_bytes(["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * count) for count in range(8, 1, -1)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    settings = {
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "name_or_path": "EleutherAI/gpt-neox-20b",
        "special_tokens_map_file": "/admin/home-hailey/.cache/special_tokens_map.json",
        "tokenizer_class": "GPTNeoXTokenizer",
        "unk_token": "<|endoftext|>",
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "gpt_neox"})


def make_llama() -> TokenizerFolder:
    """Llama 2."""
    tokens = ("<unk>", "<s>", "</s>")
    tokenizer = train_pieces(tokens)
    surround(tokenizer, "<s> $A", "<s> $A <s>:1 $B:1", "<s>")
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": number_tokens(tokenizer),
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": "llama"})


def make_llama3(kind: str = "llama", declared: str | None = None) -> TokenizerFolder:
    """Llama 3, and others whose file is taken as it is."""
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    tokenizer = train_bytes([begin, end, "<|start_header_id|>", "<|end_header_id|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    template = processors.TemplateProcessing(
        single=[begin, "$A"],
        pair=[begin, "$A", f"{begin}:1", "$B:1"],
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
    settings = {
        "added_tokens_decoder": number_tokens(tokenizer),
        "bos_token": begin,
        "clean_up_tokenization_spaces": True,
        "eos_token": end,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": declared or "PreTrainedTokenizerFast",
    }

    def ignore_merges(document: dict[str, Any]) -> None:
        document["model"]["ignore_merges"] = True

    return TokenizerFolder(tokenizer, settings, {"model_type": kind}, change=ignore_merges)


def make_qwen(kind: str = "qwen2") -> TokenizerFolder:
    """Qwen 2 and 3."""
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_bytes([])
    tokenizer.add_special_tokens(chat)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": number_tokens(tokenizer),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": kind})


def make_gemma(kind: str = "gemma") -> TokenizerFolder:
    """Gemma."""
    tokens = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = train_pieces(tokens)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (2, 3)])
    surround(tokenizer, "<bos> $A", "<bos> $A <bos>:1 $B:1", "<bos>")
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": number_tokens(tokenizer),
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    return TokenizerFolder(tokenizer, settings, {"model_type": kind})


def make_phi3(kind: str = "phi3") -> TokenizerFolder:
    """Phi 3: a file of Llama's kind that is taken as it is, with tokens that take the space after."""
    folder = make_llama()
    tokens = ("<|endoftext|>", "<|user|>", "<|end|>")
    folder.tokenizer.add_special_tokens([AddedToken(token, rstrip=True) for token in tokens])
    folder.settings["added_tokens_decoder"] = number_tokens(folder.tokenizer)
    folder.settings["pad_token"] = "<|endoftext|>"
    folder.config["model_type"] = kind
    return folder


FAMILIES: Mapping[str, Callable[[], TokenizerFolder]] = {
    "bert": make_bert,
    "distilbert": lambda: make_bert("distilbert", "DistilBertTokenizer"),
    "electra": lambda: make_bert("electra", None),
    "electra by name": lambda: make_bert("electra", "ElectraTokenizer"),
    "bert by no class": lambda: make_bert("bert", "PreTrainedTokenizerFast"),
    "roberta": make_roberta,
    "xlm-roberta": make_xlm_roberta,
    "camembert": make_camembert,
    "gpt2": make_gpt2,
    "gpt_neox": make_neox,
    "llama": make_llama,
    "llama 3": make_llama3,
    "llama 3 by the old name": lambda: make_llama3("llama", "LlamaTokenizerFast"),
    "smollm by the name of gpt2": lambda: make_llama3("llama", "GPT2Tokenizer"),
    "mistral": lambda: make_phi3("mistral"),
    "mistral of bytes": lambda: make_llama3("mistral", "LlamaTokenizer"),
    "qwen2": make_qwen,
    "qwen3": lambda: make_qwen("qwen3"),
    "qwen3 by no class": lambda: make_llama3("qwen3"),
    "qwen2 by another class": lambda: make_llama3("qwen2"),
    "gemma": make_gemma,
    "gemma2": lambda: make_gemma("gemma2"),
    "smollm3": lambda: make_llama3("smollm3"),
    "granite": lambda: make_llama3("granite", "GPT2Tokenizer"),
    "olmo2": lambda: make_llama3("olmo2", "GPT2Tokenizer"),
    "phi3": make_phi3,
}
"""Makers of folders, by what they are."""
