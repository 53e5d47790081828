"""Small random models of every model type of the installed transformers.

A config is made small by the names of its values: a table says how many layers, heads and the like there are. A second
table has what single types need besides. Several schemes are tried, because some models need widths that fit together.
"""

import copy
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ResNetConfig
from transformers.models.auto import configuration_auto, modeling_auto

from tests.architectures import DBRX_EXPERTS, DBRX_HEADS

VOCABULARY = 99
FIRST_SPECIAL = 80  # ids from here on stand for images, sounds and the like
MOST_LAYERS = 4


def each(value: Any, names: str) -> dict[str, Any]:
    """Return one value under each of some names."""
    return dict.fromkeys(names.split(), value)


DEPTH = each(
    2,
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth num_encoder_layers "
    "num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers l_layers x_layers r_layers "
    "num_fusion_layers num_blocks",
)
COUNTS = {
    **each(VOCABULARY, "vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size"),
    **each(
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts num_zero_experts zero_expert_num",
    ),
    **each(
        2,
        "num_experts_per_tok moe_k moe_topk moe_top_k n_group num_experts_per_token num_expert_group",
    ),
    **each(
        1,
        "n_shared_experts num_shared_experts topk_group first_k_dense_replace moe_layer_start_index",
    ),
    **each(1, "num_expert_topk_group num_limited_groups"),
    **each(9, "entity_vocab_size encoder_hash_byte_group_vocab"),
}
WIDTHS = {
    **each(
        32,
        "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size hidden_dim word_embed_proj_dim lru_width "
        "decoder_hidden_size encoder_hidden_size projection_dim out_hidden_size text_hidden_size vision_hidden_size "
        "adapter_in_dim adapter_input_size cross_attention_hidden_size n_embed text_embed_dim vision_embed_dim",
    ),
    **each(
        64,
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff d_inner mlp_dim n_inner mamba_d_ssm "
        "intermediate_size_mlp ffn_hidden_size decoder_intermediate_size dim_feedforward",
    ),
    **each(
        4,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
        "encoder_num_attention_heads decoder_num_attention_heads index_n_heads",
    ),
    **each(32, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **each(
        8,
        "d_kv head_dim kv_channels qk_rope_head_dim qk_nope_head_dim hidden_size_per_layer_input laurel_rank",
    ),
    **each(16, "q_lora_rank kv_lora_rank qk_head_dim index_head_dim"),
    **each(4, "linear_num_key_heads linear_num_value_heads linear_num_heads"),
    **each(8, "linear_key_head_dim linear_value_head_dim linear_head_dim"),
    **each(4, "mamba_n_heads mamba_num_heads n_mamba_heads mamba_chunk_size chunk_size"),
    **each(16, "mamba_d_head mamba_head_dim mamba_headdim"),
    **each(8, "mamba_d_state ssm_state_size"),
    **each(1, "mamba_n_groups n_groups"),
    "num_key_value_heads": 2,
    "v_head_dim": 12,
    "index_topk": 4,
    "rotary_dim": 4,
}
LENGTHS = {
    **each(
        64,
        "max_position_embeddings n_positions max_seq_len max_target_positions max_source_positions",
    ),
    **each(4, "sliding_window attention_chunk_size attention_window_size window_size_attention"),
    **each(8, "local_attention context_size"),
}
PERIODS = {
    **each(
        2,
        "attn_layer_period expert_layer_period full_attention_interval encoder_sparse_step decoder_sparse_step",
    ),
    **each(1, "attn_layer_offset expert_layer_offset cross_attention_frequency"),
    **each(0, "num_kv_shared_layers"),
    **each(0.0, "mask_time_prob layerdrop encoder_layerdrop decoder_layerdrop"),
}
OFTEN_UNSET = {  # by default, though the model needs them
    *(
        "vocab_size",
        "n_routed_experts",
        "num_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "head_dim",
    ),
    *(
        "n_group",
        "topk_group",
        "moe_intermediate_size",
        "num_key_value_heads",
        "shared_expert_intermediate_size",
    ),
}
SHALLOW = DEPTH | COUNTS | PERIODS
SCHEMES: tuple[Mapping[str, Any], ...] = (
    SHALLOW | WIDTHS | LENGTHS,
    SHALLOW | WIDTHS | LENGTHS | {"num_key_value_heads": 4},
    SHALLOW | WIDTHS | LENGTHS | {"num_key_value_heads": 4, "hidden_size": 64, "head_dim": 16},
    SHALLOW | LENGTHS,
    SHALLOW,
)
AS_THEY_ARE = (
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "dtype",
    "torch_dtype",
)
DERIVED = "ignore_keys_at_rope_validation", "stage_names"

REMOVED = object()
SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "feature_size": REMOVED,
}
DORY = {
    "num_hidden_layers": 4,
    "n_input_layers": 1,
    "n_recurrent_layers": 2,
    "n_output_layers": 1,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}
LLAMA_4_PROJECTOR = "projector_input_dim projector_output_dim vision_output_dim"
PERCEIVER = {
    **each(32, "d_model d_latents"),
    **each(4, "num_self_attention_heads num_cross_attention_heads"),
    "num_latents": 8,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
}
ERNIE_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SAM = {"image_size": 64, "image_embedding_size": 4}
FLORENCE = {
    "embed_dim": [16, 16, 32, 32],
    "num_heads": [2, 2, 4, 4],
    "num_groups": [2, 2, 4, 4],
    "projection_dim": 32,
}

# What single types need besides, by model type. REMOVED takes a value out, so that the config derives it.
SPECIAL: dict[str, dict[str, Any]] = {
    "align_vision_model": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 80},
    "autoformer": SERIES,
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 90, "IMGIMGA": 91}},
    "dbrx": {"attn_config": DBRX_HEADS, "ffn_config": DBRX_EXPERTS},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"top_k_experts": 2},
    "dory": DORY,
    "emu3": {"vocabulary_map": {"<image>": 90, "IMGIMGA": 91}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ERNIE_ROPE},
    "esm": {"mask_token_id": 3, "pad_token_id": 0},
    "florence_vision": FLORENCE,
    "glm5_next_text": {"index_kpool": 2, "qk_rope_head_dim": 0, "index_topk": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "informer": SERIES,
    "llama4_vision_model": {"intermediate_size": 128, **each(32, LLAMA_4_PROJECTOR)},
    "mimi": {"upsample_groups": 32},
    "perceiver": PERCEIVER,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "sam_prompt_encoder": SAM,
    "sam_hq_prompt_encoder": SAM,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "time_series_transformer": SERIES,
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
}


@cache
def model_types() -> tuple[str, ...]:
    """Return every model type that has a config class of its own, in the order of the alphabet."""
    first: dict[str, str] = {}
    for model_type, config in configuration_auto.CONFIG_MAPPING_NAMES.items():
        first.setdefault(config, model_type)
    return tuple(sorted(first.values()))


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return the config class of a model type."""
    return configuration_auto.CONFIG_MAPPING[model_type]


def model_classes(config: type[PreTrainedConfig]) -> list[type[PreTrainedModel]]:
    """Return the model classes with a config of that class: plain ones first, then those with a head, then parts."""
    package = config.__module__.rpartition(".")[0]
    there: dict[str, type[PreTrainedModel]] = {}
    for file in modeling_modules(package):
        for value in vars(import_module(file)).values():
            if is_model(value, file) and value.config_class is config:
                there[value.__name__] = value
    listed = modeling_auto.MODEL_MAPPING_NAMES.get(config.model_type, ())
    stem = config.__name__.removesuffix("Config")
    order = [listed] if isinstance(listed, str) else list(listed)
    order += [f"{stem}Model", f"{stem}ForConditionalGeneration", stem]
    order += sorted(there, key=lambda name: (not name.endswith("Model"), name))
    return [there[name] for name in dict.fromkeys(order) if name in there]


def modeling_modules(package: str) -> list[str]:
    """Return the names of the modules of a package that hold models."""
    path = getattr(import_module(package), "__path__", [])
    names = [file.name for file in pkgutil.iter_modules(path)]
    return [f"{package}.{name}" for name in names if name.startswith("modeling_")]


def is_model(value: Any, file: str) -> bool:
    """Tell whether a value is a model class that a module itself defines and that can run."""
    if not inspect.isclass(value) or not issubclass(value, PreTrainedModel):
        return False
    abstract = (
        value.__name__.endswith("PreTrainedModel") or value.forward is PreTrainedModel.forward
    )
    return value.__module__ == file and not abstract


def small_configs(config: type[PreTrainedConfig]) -> Iterator[PreTrainedConfig | Exception]:
    """Yield small configs of a class, one for each scheme, or why there is none."""
    for scheme in SCHEMES:
        try:
            yield shrink_config(config(), scheme)
        except Exception as error:
            yield error


def shrink_config(config: PreTrainedConfig, scheme: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a config of the same class with small numbers in place of large ones; so are the configs in it."""
    if config.model_type in ("timm_backbone", "timm_wrapper"):
        return small_resnet(config)
    values = copy.deepcopy(vars(config))
    kept = [] if "depths" in values else layers_of_each_kind(values)
    if "depths" in values:  # the widths of a pyramid's stages hang together
        scheme = {name: value for name, value in scheme.items() if name not in WIDTHS}
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith("_") or name in (*AS_THEY_ARE, *DERIVED):
            continue
        small[name] = shrink_value(name, value, scheme, kept)
    for name in DEPTH:
        if kept and name in small:
            small[name] = len(kept)
    fit_stages(small, values)
    fit_latent_heads(small)
    fit_rotary_sections(small, config)
    fit_picture(small)
    small |= SPECIAL.get(config.model_type, {})
    return type(config)(**{name: value for name, value in small.items() if value is not REMOVED})


def layers_of_each_kind(values: Mapping[str, Any]) -> list[int]:
    """Return the numbers of a few layers, each of another kind, if a config lists the kinds of its layers."""
    count = next((values[name] for name in DEPTH if isinstance(values.get(name), int)), 0)
    lists = [
        value
        for value in values.values()
        if isinstance(value, (list, tuple)) and len(value) == count
    ]
    if count <= 2 or not lists:
        return []
    first: dict[str, int] = {}
    for number, kinds in enumerate(zip(*lists, strict=True)):
        first.setdefault(str(kinds), number)
    numbers = sorted(first.values())[:MOST_LAYERS]
    return numbers if len(numbers) > 1 else [0, 1]


def shrink_value(name: str, value: Any, scheme: Mapping[str, Any], kept: Sequence[int]) -> Any:
    """Return a small value for one of a config."""
    if isinstance(value, PreTrainedConfig):
        return shrink_config(value, scheme)
    if value is None:
        return scheme.get(name) if name in OFTEN_UNSET else None
    if name in scheme and type(value) in (int, float):
        return scheme[name]
    if name.endswith(("token_id", "token_index")) and type(value) is int and value >= VOCABULARY:
        return FIRST_SPECIAL + sum(map(ord, name)) % (VOCABULARY - FIRST_SPECIAL)
    if isinstance(value, (list, tuple)):
        return shrink_list(name, value, kept)
    return value


def shrink_list(name: str, value: Sequence[Any], kept: Sequence[int]) -> Sequence[Any]:
    """Return the part of a list that the layers kept have; one block for each stage of a pyramid."""
    if name == "depths":
        return type(value)(1 for _ in value)  # type: ignore[call-arg]
    if name == "attn_layer_indices":
        return [1]
    if kept and len(value) > max(MOST_LAYERS, *kept):
        return type(value)(value[number] for number in kept)  # type: ignore[call-arg]
    return value


def fit_rotary_sections(small: dict[str, Any], config: PreTrainedConfig) -> None:
    """Divide the pairs of a head's rotary part between time, height and width, where a model does so."""
    rope = small.get("rope_parameters")
    if not isinstance(rope, dict) or "mrope_section" not in getattr(
        config, "ignore_keys_at_rope_validation", ()
    ):
        return
    head = small.get("head_dim") or small["hidden_size"] // small["num_attention_heads"]
    pairs = (
        int(head * rope.get("partial_rotary_factor", small.get("partial_rotary_factor") or 1.0))
        // 2
    )
    section = {"mrope_section": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]}
    if all(isinstance(part, dict) for part in rope.values()):  # one for each kind of layer
        small["rope_parameters"] = {kind: part | section for kind, part in rope.items()}
    else:
        small["rope_parameters"] = rope | section


def fit_stages(small: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Let a backbone hand out as many stages as it did, of as many layers."""
    stages = values.get("_out_indices") or ()
    if len(stages) < 2:
        return
    if "depths" in small or "stage_out_channels" in small:
        small["out_indices"] = list(stages)
        return
    for name in DEPTH:
        if name in small:
            small[name] = len(stages)
    small["out_indices"] = list(range(1, len(stages) + 1))


def fit_latent_heads(small: dict[str, Any]) -> None:
    """Give latent (MLA) attention as many key heads as query heads, and heads as wide as their rotary part."""
    if small.get("kv_lora_rank") and "qk_rope_head_dim" in small:
        if "num_key_value_heads" in small:
            small["num_key_value_heads"] = small["num_attention_heads"]
        if "head_dim" in small:
            small["head_dim"] = small["qk_rope_head_dim"]


def fit_picture(small: dict[str, Any]) -> None:
    """Make pictures of 4 x 4 patches, but for pyramids."""
    patch = small.get("patch_size")
    if "depths" not in small and type(small.get("image_size")) is int and type(patch) is int:
        small["image_size"] = 4 * patch


def small_resnet(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a small backbone in place of one of timm's, which the tests do not install."""
    wanted = getattr(config, "out_indices", None) or [4]
    stages = [f"stage{max(1, min(4, index))}" for index in wanted if index != 0]
    names = sorted(set(stages)) or ["stage4"]
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=names
    )


def build(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, noise: float
) -> PreTrainedModel:
    """Return a model in evaluation mode, always the same, with attention that is far from uniform.

    noise: what is added to each first weight, as a share of a normal number.
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = model_class(copy.deepcopy(config)).float().eval()
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0, 0.0, 0.0).clamp_(-10, 10)  # some are left as memory was
            if parameter.requires_grad:
                parameter += noise * torch.randn_like(parameter)
    return model


def count_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """Return how many parameters a model would have; 0 where that cannot be told without building it."""
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(config))
    except Exception:
        return 0
    return sum(parameter.numel() for parameter in model.parameters())
