"""Small random checkpoints of the families that NumPy runs, with every switch of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

VOCABULARY = 300
LONGEST = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": LONGEST + 5,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": LONGEST}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": LONGEST,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 80,
}


@dataclass(frozen=True)
class RandomCheckpoint:
    """A kind of model, and what its config says besides the kind."""

    kind: str
    config: Mapping[str, Any]
    switches: Mapping[str, Any] = field(default_factory=dict)
    """The entries in which it differs from the others of its kind."""

    def __str__(self) -> str:
        """Name the kind and the switches."""
        switches = ",".join(f"{name}={value}" for name, value in self.switches.items())
        return f"{self.kind}[{switches}]"

    def save(self, folder: Path, **options: Any) -> None:
        """Write the model into a folder, always the same, with attention far from uniform."""
        config = AutoConfig.for_model(self.kind, **self.config, **self.switches)
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(0)
            model = AutoModel.from_config(config).float().eval()
            for name, parameter in model.named_parameters():
                is_gain = parameter.ndim == 1 and name.endswith("weight")
                centre = 1.0 if is_gain and not self.kind.startswith("gemma") else 0.0
                spread = 0.15 if parameter.ndim > 1 else 0.1
                parameter.copy_(centre + spread * torch.randn_like(parameter))
        dtype = options.pop("dtype", None)
        if dtype is not None:
            model = model.to(dtype)
        model.save_pretrained(folder, **options)


def list_checkpoints() -> list[RandomCheckpoint]:
    """List a checkpoint for each switch of each family."""
    made = RandomCheckpoint
    bert_kinds = ("bert", "roberta", "xlm-roberta", "camembert")
    return [
        *(made(kind, SIZES) for kind in bert_kinds),
        made("bert", SIZES, {"hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-5}),
        made("bert", SIZES, {"hidden_act": "gelu_new"}),
        made("distilbert", DISTILBERT),
        made("electra", SIZES, {"embedding_size": 32}),
        made("electra", SIZES, {"embedding_size": 64}),
        made("gpt2", GPT2, SPECIAL),
        made("gpt2", GPT2, {**SPECIAL, "n_inner": 100, "activation_function": "gelu"}),
        made("gpt_neox", SIZES),
        made("gpt_neox", SIZES, {"use_parallel_residual": False}),
        made(
            "gpt_neox",
            SIZES,
            {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        ),
        made("llama", GROUPED),
        made("llama", GROUPED, {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        made("llama", GROUPED, {"rope_parameters": {"rope_theta": 500000.0}}),
        made(
            "llama",
            GROUPED,
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        ),
        made("llama", GROUPED, {"rope_parameters": LLAMA3}),
        made("llama", GROUPED, {"rope_parameters": YARN}),
        made(
            "llama",
            GROUPED,
            {
                "rope_parameters": {
                    **YARN,
                    "beta_fast": 16,
                    "beta_slow": 2,
                    "truncate": False,
                    "attention_factor": 1.3,
                }
            },
        ),
        made("mistral", GROUPED, {"sliding_window": 5}),
        made("mistral", GROUPED, {"sliding_window": None}),
        made("qwen2", GROUPED),
        made(
            "qwen2",
            GROUPED,
            {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        ),
        made("qwen3", GROUPED, {"head_dim": 16}),
        made("qwen3", GROUPED, {"head_dim": 16, "attention_bias": True}),
        made("smollm3", GROUPED, SPECIAL),
        made("smollm3", GROUPED, {**SPECIAL, "no_rope_layer_interval": 2}),
        made("gemma", GROUPED, {"head_dim": 16}),
        made("gemma", GROUPED, {"head_dim": 16, "hidden_act": "gelu"}),
        made(
            "gemma2",
            GROUPED,
            {
                "head_dim": 16,
                "sliding_window": 6,
                "query_pre_attn_scalar": 20,
                "attn_logit_softcapping": 2.0,
            },
        ),
        made("olmo2", GROUPED, SPECIAL),
        made(
            "granite",
            GROUPED,
            {
                "attention_multiplier": 0.2,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.5,
            },
        ),
        made("phi3", GROUPED, SPECIAL),
        made("phi3", GROUPED, {**SPECIAL, "sliding_window": 5}),
    ]
