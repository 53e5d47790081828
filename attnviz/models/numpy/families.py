"""The families of models that run in NumPy, as data: entries of configs, and names of weights.

A family says how an ``Architecture`` follows from a config, and where in a checkpoint the
parameters of ``attnviz.lm.transformer`` are. A ``{}`` in a name stands for the number of the layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnviz.lm.transformer import Architecture
from attnviz.models.numpy.config import (
    ConfigReader,
    UnsuitableError,
    read_rotary,
    require_finite_number,
)

ATTENTION = frozenset({"attention.query", "attention.key", "attention.value", "attention.output"})
FEED_FORWARD = frozenset({"gate", "up", "down"})
Describe = Callable[[ConfigReader], Architecture]
"""Make an architecture of a config. Raises UnsuitableError for what it does not know."""


@dataclass(frozen=True)
class Family:
    """Models whose configs and weights have the same names."""

    describe: Describe
    prefix: str
    """What names of weights begin with in a checkpoint that was saved with a head."""
    stem: Mapping[str, str]
    """Names of parameters outside of layers: ours, and those in the checkpoint."""
    layer: Mapping[str, str]
    """Names of parameters of a layer: ours, and those in the checkpoint."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameters in a checkpoint that hold several of ours, one after the other."""
    fused_by_head: bool = False
    """True if queries, keys and values of one head stand together in what is fused."""
    transposed: bool = False
    """True if weights of layers are stored as (in, out)."""
    norms_each_head: bool = False
    """True if queries and keys are scaled head by head, and not all heads of a token together."""
    heads: str = r"lm_head\."
    """The pattern of names of weights that bear on predictions only."""
    output: str = "lm_head"
    """The name of the matrix that makes logits of the last layer's output."""
    ties: bool = False
    """True if that matrix is the embedding where the config does not say it."""
    unused: str = r"(?!)"
    """The pattern of names of other weights that have no bearing on attention."""


# Encoders whose norm follows the residual: BERT and its kin


def describe_bert(reader: ConfigReader) -> Architecture:
    """Describe BERT (Devlin et al. 2019) and models with the same config."""
    reader.require("position_embedding_type", ["absolute"])
    reader.require_off("is_decoder", "add_cross_attention", "is_encoder_decoder", "use_task_id")
    reader.skip("pad_token_id", "task_type_vocab_size", "directionality")
    reader.skip("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    reader.skip("pooler_size_per_head", "pooler_type")
    reader.skip("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
    dim = reader.read_count("hidden_size", 768)
    heads = reader.read_count("num_attention_heads", 12)
    layers = reader.read_layers("num_hidden_layers", 12)
    return make_encoder(
        layers=layers,
        heads=heads,
        dim=dim,
        feed_forward=reader.read_count("intermediate_size", 3072),
        vocabulary=reader.read_count("vocab_size", 30522),
        positions=reader.read_count("max_position_embeddings", 512),
        norm_floor=reader.read_floor("layer_norm_eps", 1e-12),
        activation=reader.read_activation("hidden_act", "gelu"),
        segments=reader.read_count("type_vocab_size", 2),
    )


def describe_electra(reader: ConfigReader) -> Architecture:
    """Describe ELECTRA (Clark et al. 2020)."""
    require_entries(reader, "hidden_size", "num_attention_heads", "intermediate_size")
    bert = describe_bert(reader)
    size = reader.read_count("embedding_size", 128)
    return replace_fields(bert, embedding_dim=0 if size == bert.dim else size)


def describe_roberta(reader: ConfigReader) -> Architecture:
    """Describe RoBERTa (Liu et al. 2019), whose positions are counted from the padding on."""
    padding = reader.read("pad_token_id", 1)
    if not isinstance(padding, int) or padding < 0:
        raise UnsuitableError(f"its config says pad_token_id = {padding!r}")
    bert = describe_bert(reader)
    positions = (bert.positions or 0) - padding - 1
    if positions < 1:
        raise UnsuitableError(f"its config says max_position_embeddings = {bert.positions}")
    return replace_fields(bert, positions=positions, padding=padding)


def describe_distilbert(reader: ConfigReader) -> Architecture:
    """Describe DistilBERT (Sanh et al. 2019)."""
    reader.skip("sinusoidal_pos_embds", "pad_token_id", "tie_weights_")
    reader.require_off("is_decoder", "add_cross_attention", "is_encoder_decoder")
    return make_encoder(
        layers=reader.read_layers("n_layers", 6),
        heads=reader.read_count("n_heads", 12),
        dim=reader.read_count("dim", 768),
        feed_forward=reader.read_count("hidden_dim", 3072),
        vocabulary=reader.read_count("vocab_size", 30522),
        positions=reader.read_count("max_position_embeddings", 512),
        norm_floor=1e-12,
        activation=reader.read_activation("activation", "gelu"),
    )


def make_encoder(
    *,
    layers: int,
    heads: int,
    dim: int,
    feed_forward: int,
    vocabulary: int,
    positions: int,
    norm_floor: float,
    activation: str,
    segments: int = 0,
) -> Architecture:
    """Make the architecture of an encoder in which all tokens see each other."""
    head_dim = divide_into_heads(dim, heads)
    return Architecture(
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        dim=dim,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        positions=positions,
        causal=False,
        norm="layer",
        norm_floor=norm_floor,
        activation=activation,
        scale=head_dim**-0.5,
        biased=ATTENTION | {"up", "down"},
        rotary=(None,) * layers,
        windows=(None,) * layers,
        segments=segments,
    )


# Decoders


def describe_gpt2(reader: ConfigReader) -> Architecture:
    """Describe GPT-2 (Radford et al. 2019)."""
    reader.require_off(
        "add_cross_attention", "is_encoder_decoder", "scale_attn_by_inverse_layer_idx"
    )
    reader.require("scale_attn_weights", [True])
    reader.skip("reorder_and_upcast_attn", "n_ctx", "pad_token_id", "is_decoder")
    reader.skip("summary_type", "summary_use_proj", "summary_activation")
    reader.skip("summary_proj_to_labels", "summary_first_dropout")
    dim = reader.read_count("n_embd", 768)
    heads = reader.read_count("n_head", 12)
    layers = reader.read_layers("n_layer", 12)
    inner = reader.read("n_inner")
    head_dim = divide_into_heads(dim, heads)
    return Architecture(
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        dim=dim,
        feed_forward=4 * dim if inner is None else reader.read_count("n_inner"),
        vocabulary=reader.read_count("vocab_size", 50257),
        positions=reader.read_count("n_positions", 1024),
        causal=True,
        norm="layer",
        norm_floor=reader.read_floor("layer_norm_epsilon", 1e-5),
        activation=reader.read_activation("activation_function", "gelu_new"),
        scale=head_dim**-0.5,
        biased=ATTENTION | {"up", "down"},
        rotary=(None,) * layers,
        windows=(None,) * layers,
    )


def describe_llama(reader: ConfigReader) -> Architecture:
    """Describe Llama (Touvron et al. 2023), and what decoders after it share with it."""
    reader.require_off("is_encoder_decoder", "add_cross_attention")
    reader.require("attention_bias", [True, False])
    reader.require("mlp_bias", [True, False])
    biased = ATTENTION if reader.read("attention_bias") else frozenset()
    if reader.read("mlp_bias"):
        biased |= FEED_FORWARD
    reader.skip("pad_token_id", "is_decoder", "is_llama_config", "transformers.js_config")
    reader.require_off("rope_interleaved")
    dim = reader.read_count("hidden_size")
    heads = reader.read_count("num_attention_heads")
    layers = reader.read_layers("num_hidden_layers")
    shared = reader.read("num_key_value_heads")
    kv_heads = heads if shared is None else reader.read_count("num_key_value_heads")
    given = reader.read("head_dim")
    head_dim = divide_into_heads(dim, heads) if given is None else reader.read_count("head_dim")
    if heads % kv_heads:
        raise UnsuitableError(f"its config has {heads} heads over {kv_heads} of keys and values")
    rotary = read_rotary(reader, head_dim)
    return Architecture(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dim=dim,
        feed_forward=reader.read_count("intermediate_size"),
        vocabulary=reader.read_count("vocab_size"),
        positions=reader.read_count("max_position_embeddings"),
        causal=True,
        norm="rms",
        norm_floor=reader.read_floor("rms_norm_eps"),
        activation=reader.read_activation("hidden_act", "silu"),
        scale=head_dim**-0.5,
        biased=biased,
        rotary=(rotary,) * layers,
        windows=(None,) * layers,
    )


def describe_mistral(reader: ConfigReader) -> Architecture:
    """Describe Mistral (Jiang et al. 2023), in which a window may end what a query sees."""
    reader.require_off("attention_bias", "mlp_bias")
    llama = describe_llama(reader)
    require_entries(reader, "num_key_value_heads")
    window = None
    if reader.read("sliding_window", 4096) is not None:
        window = reader.read_count("sliding_window", 4096)
    return replace_fields(llama, windows=(window,) * llama.layers)


def describe_qwen(reader: ConfigReader) -> Architecture:
    """Describe what Qwen2 and Qwen3 share (Yang et al. 2024, 2025): windows in the last layers."""
    llama = describe_llama(reader)
    require_entries(reader, "num_key_value_heads")
    reader.skip("max_window_layers", "sliding_window")
    if not reader.read("use_sliding_window", False):
        reader.skip("layer_types")
        require_layer_kinds(reader, llama.layers, ("full_attention",))
        return llama
    first = reader.read("max_window_layers", 28)
    kinds = [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(llama.layers)
    ]
    return replace_fields(llama, windows=read_windows(reader, llama.layers, kinds))


def describe_qwen2(reader: ConfigReader) -> Architecture:
    """Describe Qwen2, whose queries, keys and values have a bias."""
    reader.require_off("attention_bias", "mlp_bias")
    biased = frozenset({"attention.query", "attention.key", "attention.value"})
    return replace_fields(describe_qwen(reader), biased=biased)


def describe_qwen3(reader: ConfigReader) -> Architecture:
    """Describe Qwen3, whose heads have a size of their own."""
    require_entries(reader, "head_dim")
    reader.require_off("mlp_bias")
    return describe_qwen(reader)


def describe_smollm3(reader: ConfigReader) -> Architecture:
    """Describe SmolLM3 (2025), some of whose layers know no positions."""
    llama = describe_llama(reader)
    require_entries(reader, "num_key_value_heads")
    reader.require_off("use_sliding_window")
    reader.skip("sliding_window", "layer_types", "max_window_layers")
    require_layer_kinds(reader, llama.layers, ("full_attention",))
    interval = reader.read_count("no_rope_layer_interval", 4)
    default = [int((layer + 1) % interval != 0) for layer in range(llama.layers)]
    given = reader.read("no_rope_layers")
    rotated = default if given is None else given
    is_list = isinstance(rotated, list) and len(rotated) == llama.layers
    if not is_list or any(flag not in (0, 1) for flag in rotated):
        raise UnsuitableError(f"its config says no_rope_layers = {rotated!r}")
    rotary = tuple(
        rotation if flag else None for rotation, flag in zip(llama.rotary, rotated, strict=True)
    )
    return replace_fields(llama, rotary=rotary)


def describe_gemma(reader: ConfigReader) -> Architecture:
    """Describe Gemma (2024): gains less 1, and embeddings times the root of their size."""
    reader.require_off("mlp_bias")
    require_entries(reader, "head_dim", "num_key_value_heads")
    reader.require_off("use_bidirectional_attention")
    llama = describe_llama(reader)
    reader.skip("hidden_activation")
    # a config that says gelu means its approximation by tanh
    activation = "gelu_pytorch_tanh" if reader.read("hidden_act") == "gelu" else llama.activation
    if "hidden_act" not in reader.values:
        activation = "gelu_pytorch_tanh"
    return replace_fields(
        llama,
        activation=activation,
        gain_offset=1.0,
        embedding_factor=llama.dim**0.5,
    )


def describe_gemma2(reader: ConfigReader) -> Architecture:
    """Describe Gemma 2 (2024): capped scores, and windows in every second layer."""
    require_entries(reader, "query_pre_attn_scalar", "sliding_window")
    reader.skip("cache_implementation")
    logit_cap = reader.read("final_logit_softcapping", 30.0)
    activation = reader.read_activation("hidden_activation", "gelu_pytorch_tanh")
    reader.skip("hidden_act")
    gemma = describe_gemma(reader)
    cap = reader.read("attn_logit_softcapping", 50.0)
    kinds = [
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(gemma.layers)
    ]
    return replace_fields(
        gemma,
        activation=activation,
        scale=reader.read_number("query_pre_attn_scalar") ** -0.5,
        softcap=None if cap is None else reader.read_number("attn_logit_softcapping", 50.0),
        logit_cap=None
        if logit_cap is None
        else require_finite_number(logit_cap, "final_logit_softcapping"),
        windows=read_windows(reader, gemma.layers, kinds),
    )


def describe_olmo2(reader: ConfigReader) -> Architecture:
    """Describe OLMo 2 (2025), whose norms follow each part, inside the residual."""
    reader.require_off("mlp_bias")
    return describe_llama(reader)


def describe_granite(reader: ConfigReader) -> Architecture:
    """Describe Granite (2024), a Llama whose parts are weighed by factors."""
    llama = describe_llama(reader)
    return replace_fields(
        llama,
        logit_divisor=reader.read_number("logits_scaling", 1.0),
        scale=reader.read_number("attention_multiplier", 1.0),
        embedding_factor=reader.read_number("embedding_multiplier", 1.0),
        residual_factor=reader.read_number("residual_multiplier", 1.0),
    )


def describe_phi3(reader: ConfigReader) -> Architecture:
    """Describe Phi-3 (Abdin et al. 2024): fused projections, a window over all layers."""
    reader.require_off("attention_bias", "mlp_bias")
    llama = describe_llama(reader)
    # an entry that only scaled positions need, which are read elsewhere
    reader.skip("original_max_position_embeddings")
    scaling = reader.read("rope_scaling") or reader.read("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise UnsuitableError(f"its positions are scaled by {kind!r}, which is not known here")
    window = None
    if reader.read("sliding_window") is not None:
        window = reader.read_count("sliding_window")
    return replace_fields(llama, windows=(window,) * llama.layers)


def describe_neox(reader: ConfigReader) -> Architecture:
    """Describe GPT-NeoX (Black et al. 2022): the parts of a layer read the same."""
    reader.require_off("is_encoder_decoder", "add_cross_attention", "is_decoder")
    reader.require("attention_bias", [True])
    reader.require("use_parallel_residual", [True, False])
    reader.skip("pad_token_id")
    dim = reader.read_count("hidden_size")
    heads = reader.read_count("num_attention_heads")
    layers = reader.read_layers("num_hidden_layers")
    head_dim = divide_into_heads(dim, heads)
    base = reader.read_number("rotary_emb_base", 10_000.0)
    share = reader.read_number("rotary_pct", 0.25)
    rotary = read_rotary(reader, head_dim, base=base, share=share)
    return Architecture(
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        dim=dim,
        feed_forward=reader.read_count("intermediate_size"),
        vocabulary=reader.read_count("vocab_size"),
        positions=reader.read_count("max_position_embeddings"),
        causal=True,
        norm="layer",
        norm_floor=reader.read_floor("layer_norm_eps", 1e-5),
        activation=reader.read_activation("hidden_act", "gelu"),
        scale=head_dim**-0.5,
        biased=ATTENTION | {"up", "down"},
        rotary=(rotary,) * layers,
        windows=(None,) * layers,
        parallel=bool(reader.read("use_parallel_residual", True)),
    )


# Steps that several families share


def replace_fields(architecture: Architecture, **fields: Any) -> Architecture:
    """Return an architecture with some fields replaced."""
    return architecture._replace(**fields)


def divide_into_heads(dim: int, heads: int) -> int:
    """Return the size of a head. Raises UnsuitableError if heads do not divide the whole."""
    if dim % heads:
        raise UnsuitableError(f"its config has {heads} heads over {dim} numbers")
    return dim // heads


def require_entries(reader: ConfigReader, *names: str) -> None:
    """Raise UnsuitableError for entries that are not there, whose defaults nobody relies on."""
    for name in names:
        if name not in reader.values:
            raise UnsuitableError(f"its config lacks {name}")


def read_kinds(reader: ConfigReader, layers: int, default: list[str]) -> list[str]:
    """Read the kind of attention of each layer. Raises UnsuitableError for kinds not known here."""
    given = reader.read("layer_types")
    kinds = default if given is None else given
    known = ("full_attention", "sliding_attention")
    is_list = isinstance(kinds, list) and len(kinds) == layers
    if not is_list or any(kind not in known for kind in kinds):
        raise UnsuitableError(f"its config says layer_types = {kinds!r}")
    return kinds


def require_layer_kinds(reader: ConfigReader, layers: int, allowed: tuple[str, ...]) -> None:
    """Raise UnsuitableError if a layer has another kind of attention than those allowed."""
    kinds = read_kinds(reader, layers, [allowed[0]] * layers)
    if any(kind not in allowed for kind in kinds):
        raise UnsuitableError(f"its config says layer_types = {kinds!r}")


def read_windows(
    reader: ConfigReader,
    layers: int,
    default: list[str],
) -> tuple[int | None, ...]:
    """Read the window of each layer. default: the kinds of layers where the config has none."""
    kinds = read_kinds(reader, layers, default)
    if "sliding_attention" not in kinds:
        reader.skip("sliding_window")
        return (None,) * layers
    window = reader.read_count("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


# The names of weights

BERT_STEM = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
BERT_LAYER = {
    "attention.query": "encoder.layer.{}.attention.self.query",
    "attention.key": "encoder.layer.{}.attention.self.key",
    "attention.value": "encoder.layer.{}.attention.self.value",
    "attention.output": "encoder.layer.{}.attention.output.dense",
    "attention_sum_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense",
    "feed_forward_sum_norm": "encoder.layer.{}.output.LayerNorm",
}
BERT_HEADS = r"cls\.|pooler\.|classifier\.|qa_outputs\.|lm_head\.|logits_proj\."
BERT_UNUSED = r"embeddings\.(position|token_type)_ids$"
LLAMA_STEM = {"embedding": "embed_tokens", "norm": "norm"}
LLAMA_LAYER = {
    "attention_input_norm": "layers.{}.input_layernorm",
    "attention.query": "layers.{}.self_attn.q_proj",
    "attention.key": "layers.{}.self_attn.k_proj",
    "attention.value": "layers.{}.self_attn.v_proj",
    "attention.output": "layers.{}.self_attn.o_proj",
    "feed_forward_input_norm": "layers.{}.post_attention_layernorm",
    "gate": "layers.{}.mlp.gate_proj",
    "up": "layers.{}.mlp.up_proj",
    "down": "layers.{}.mlp.down_proj",
}
HEAD_NORMS = {
    "attention.query_norm": "layers.{}.self_attn.q_norm",
    "attention.key_norm": "layers.{}.self_attn.k_norm",
}
LLAMA_HEADS = r"lm_head\.|score\.|classifier\.|qa_outputs\."
LLAMA_UNUSED = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|rotary_emb\.inv_freq$"


def make_bert_family(prefix: str, describe: Describe, **fields: Any) -> Family:
    """Make a family with the weights of BERT."""
    return Family(
        describe, prefix, BERT_STEM, BERT_LAYER, heads=BERT_HEADS, unused=BERT_UNUSED, **fields
    )


def make_llama_family(
    describe: Describe,
    layer: Mapping[str, str] = LLAMA_LAYER,
    **fields: Any,
) -> Family:
    """Make a family with the weights of Llama, or with those of ``layer`` in each layer."""
    return Family(
        describe, "model.", LLAMA_STEM, layer, heads=LLAMA_HEADS, unused=LLAMA_UNUSED, **fields
    )


def leave_out(names: Mapping[str, str], *left_out: str) -> dict[str, str]:
    """Return a table of names without some of them."""
    return {ours: theirs for ours, theirs in names.items() if ours not in left_out}


GEMMA2_LAYER = {
    **LLAMA_LAYER,
    "attention_output_norm": "layers.{}.post_attention_layernorm",
    "feed_forward_input_norm": "layers.{}.pre_feedforward_layernorm",
    "feed_forward_output_norm": "layers.{}.post_feedforward_layernorm",
}
OLMO2_LAYER = {
    **leave_out(LLAMA_LAYER, "attention_input_norm", "feed_forward_input_norm"),
    **HEAD_NORMS,
    "attention_output_norm": "layers.{}.post_attention_layernorm",
    "feed_forward_output_norm": "layers.{}.post_feedforward_layernorm",
}
DISTILBERT = Family(
    describe_distilbert,
    "distilbert.",
    leave_out(BERT_STEM, "segments"),
    {
        "attention.query": "transformer.layer.{}.attention.q_lin",
        "attention.key": "transformer.layer.{}.attention.k_lin",
        "attention.value": "transformer.layer.{}.attention.v_lin",
        "attention.output": "transformer.layer.{}.attention.out_lin",
        "attention_sum_norm": "transformer.layer.{}.sa_layer_norm",
        "up": "transformer.layer.{}.ffn.lin1",
        "down": "transformer.layer.{}.ffn.lin2",
        "feed_forward_sum_norm": "transformer.layer.{}.output_layer_norm",
    },
    heads=r"vocab_(transform|layer_norm|projector)\.|pre_classifier\.|classifier\.|qa_outputs\.",
)
ELECTRA = Family(
    describe_electra,
    "electra.",
    {**BERT_STEM, "embedding_projection": "embeddings_project"},
    BERT_LAYER,
    heads=r"(generator|discriminator)_|generator_lm_head\.|classifier\.|qa_outputs\.",
    unused=BERT_UNUSED,
)
GPT2 = Family(
    describe_gpt2,
    "transformer.",
    {"embedding": "wte", "positions": "wpe", "norm": "ln_f"},
    {
        "attention_input_norm": "h.{}.ln_1",
        "attention.output": "h.{}.attn.c_proj",
        "feed_forward_input_norm": "h.{}.ln_2",
        "up": "h.{}.mlp.c_fc",
        "down": "h.{}.mlp.c_proj",
    },
    fused={"h.{}.attn.c_attn": ("attention.query", "attention.key", "attention.value")},
    transposed=True,
    ties=True,
    heads=r"lm_head\.|score\.|classifier\.|multiple_choice_head\.|qa_outputs\.",
    unused=r"h\.\d+\.attn\.(bias|masked_bias)$",
)
PHI3 = Family(
    describe_phi3,
    "model.",
    LLAMA_STEM,
    leave_out(LLAMA_LAYER, "attention.query", "attention.key", "attention.value", "gate", "up"),
    fused={
        "layers.{}.self_attn.qkv_proj": ("attention.query", "attention.key", "attention.value"),
        "layers.{}.mlp.gate_up_proj": ("gate", "up"),
    },
    heads=LLAMA_HEADS,
    unused=LLAMA_UNUSED,
)
NEOX = Family(
    describe_neox,
    "gpt_neox.",
    {"embedding": "embed_in", "norm": "final_layer_norm"},
    {
        "attention_input_norm": "layers.{}.input_layernorm",
        "attention.output": "layers.{}.attention.dense",
        "feed_forward_input_norm": "layers.{}.post_attention_layernorm",
        "up": "layers.{}.mlp.dense_h_to_4h",
        "down": "layers.{}.mlp.dense_4h_to_h",
    },
    fused={
        "layers.{}.attention.query_key_value": (
            "attention.query",
            "attention.key",
            "attention.value",
        ),
    },
    fused_by_head=True,
    output="embed_out",
    heads=r"embed_out\.|score\.|classifier\.|qa_outputs\.",
    unused=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
)
FAMILIES: Mapping[str, Family] = {
    "bert": make_bert_family("bert.", describe_bert),
    "roberta": make_bert_family("roberta.", describe_roberta),
    "xlm-roberta": make_bert_family("roberta.", describe_roberta),
    "camembert": make_bert_family("roberta.", describe_roberta),
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "llama": make_llama_family(describe_llama),
    "mistral": make_llama_family(describe_mistral),
    "qwen2": make_llama_family(describe_qwen2),
    "qwen3": make_llama_family(describe_qwen3, {**LLAMA_LAYER, **HEAD_NORMS}, norms_each_head=True),
    "smollm3": make_llama_family(describe_smollm3, ties=True),
    "gemma": make_llama_family(describe_gemma, ties=True),
    "gemma2": make_llama_family(describe_gemma2, GEMMA2_LAYER, ties=True),
    "olmo2": make_llama_family(describe_olmo2, OLMO2_LAYER),
    "granite": make_llama_family(describe_granite),
    "phi3": PHI3,
}
"""The families, by the ``model_type`` of a config."""
