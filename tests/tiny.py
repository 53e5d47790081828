"""Small random models, most saved as folders from a hub are: config, safetensors, a tokenizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from attnviz.lm import store
from attnviz.lm.model import ModelConfig
from attnviz.models import load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import Placement

TORCH = Placement(engine="torch")
VOCABULARY = 4096  # tokens of the built-in tokenizer; three are added where they are needed
END, USER, ASSISTANT = "</s>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{{ bos_token }}{% for part in messages %}"
    "{% if part['role'] not in ('user', 'assistant') %}{{ raise_exception('user and assistant only') }}{% endif %}"
    "<|{{ part['role'] }}|>{{ part['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Sizes of a model like the built-in one.
TINY_CONFIG = ModelConfig(vocabulary=300, dim=16, layers=2, heads=2, feed_forward=32, positions=32)


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer under the library's own class: a text begins with <bos>, and has no end."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(store.read_stored_model(store.BUILTIN).tokenizer),
        bos_token="<bos>",
    )


def ending_tokenizer() -> PreTrainedTokenizerFast:
    """The same, but a text has no beginning, and ends with </s>."""
    tokenizer = Tokenizer.from_str(store.read_stored_model(store.BUILTIN).tokenizer)
    tokenizer.add_special_tokens([END])
    tokenizer.post_processor = TemplateProcessing(
        f"$A {END}", f"$A {END} $B:1 {END}:1", [(END, VOCABULARY)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token="<bos>")


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The plain one with a chat template for two roles; their marks are special, but have no role of the library's."""
    tokenizer = plain_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in (END, USER, ASSISTANT)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def gpt2(positions: int = 64) -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=positions,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=None,
        )
    )


SIZES = {
    "vocab_size": VOCABULARY + 3,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
}


def llama() -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mistral() -> torch.nn.Module:
    """Its window is shorter than the texts that it reads here."""
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6))


def albert() -> torch.nn.Module:
    return AlbertModel(
        AlbertConfig(
            vocab_size=VOCABULARY,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            initializer_range=0.3,
        )
    )


def gpt_neo() -> torch.nn.Module:
    """Not behind the library's attention interface; every other layer sees a window."""
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_layers=4,
            attention_types=[[["global", "local"], 2]],
            num_heads=4,
            window_size=5,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=None,
        )
    )


def t5(
    vocabulary: int = VOCABULARY + 3, end: int = VOCABULARY, decoder_layers: int = 2
) -> torch.nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=decoder_layers,
            num_heads=4,
            initializer_factor=1.5,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=end,
        )
    )


def bart() -> torch.nn.Module:
    """Its decoder has more layers than its encoder, and fewer heads."""
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY + 3,
            d_model=32,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=40,
            init_std=0.3,
            decoder_start_token_id=VOCABULARY,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=VOCABULARY,
            forced_eos_token_id=None,
        )
    )


def mamba() -> torch.nn.Module:
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    )


def bert(vocabulary: int) -> torch.nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            initializer_range=0.3,
        )
    )


def make_bert_with_head(kind: Any, **options: Any) -> HuggingFace:
    """Make a small BERT of a class with a head.

    Its texts end with a special token, and begin with none; options: of its config.
    """
    torch.manual_seed(0)
    sizes = {**SIZES, "num_attention_heads": 4, "initializer_range": 0.3, **options}
    tokenizer = ending_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    config = BertConfig(**{**sizes, "vocab_size": len(tokenizer)})
    return HuggingFace("bert", kind(config).eval(), tokenizer)


BYTES = 384  # tokens of ByT5Tokenizer, which the library has in Python only
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], object]]] = {
    "gpt2": (gpt2, plain_tokenizer),
    "gpt2-4096": (partial(gpt2, 4096), plain_tokenizer),
    "llama": (llama, plain_tokenizer),
    "mistral": (mistral, plain_tokenizer),
    "albert": (albert, plain_tokenizer),
    "gpt_neo": (gpt_neo, plain_tokenizer),
    "mamba": (mamba, plain_tokenizer),
    "chat": (llama, chat_tokenizer),
    "t5": (t5, ending_tokenizer),
    "t5-deep": (partial(t5, decoder_layers=3), ending_tokenizer),
    "bart": (bart, ending_tokenizer),
    "byt5": (partial(t5, BYTES, 1), ByT5Tokenizer),
    "bytes": (partial(bert, BYTES), ByT5Tokenizer),
}


def save(
    model: torch.nn.Module, folder: Path, tokenizer: Callable[[], object] = plain_tokenizer
) -> Path:
    """Write a model with its tokenizer to a folder."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def make(name: str, folder: Path) -> Path:
    """Write the model of that name, always the same, to a folder."""
    build, tokenizer = MODELS[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return save(build(), folder, tokenizer)


def load_in_torch(folder: Path, **options: Any) -> HuggingFace:
    """Load the model in a folder for torch, which computes gradients and shows its modules.

    options: those of ``load_model``.
    """
    model = load_model(str(folder), placement=TORCH, **options)
    assert isinstance(model, HuggingFace)
    return model
