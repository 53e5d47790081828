"""Small random models of many architectures, and an oracle for their attention: the library's own eager weights."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
import torch
import transformers
from torch import Tensor

VOCABULARY = 99


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, and how to make a small one."""

    name: str
    model: str  # the name of its class, without a head where there is one
    config: Mapping[str, Any]  # for the class's own config class
    family: Literal["encoder", "decoder", "encoder-decoder"]
    note: str = ""  # what is special in its attention
    pads: tuple[str, ...] = (
        "right",
        "left",
    )  # paddings that leave the weights between all other tokens as they were
    length: int = 12
    noise: float = 0.17  # added to the first weights; less where scores are not scaled

    @property
    def model_class(self) -> Any:
        """The class of its model."""
        return getattr(transformers, self.model)

    def build(self) -> torch.nn.Module:
        """The model in evaluation mode, always the same, with attention that is far from uniform."""
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(0)
            model = (
                self.model_class(self.model_class.config_class(**copy.deepcopy(self.config)))
                .float()
                .eval()
            )
            for parameter in model.parameters():
                if (
                    parameter.requires_grad
                ):  # biases and sinks too, which begin as zeros, but no tables of sines
                    parameter += self.noise * torch.randn_like(parameter)
        return model

    def inputs(self, padding: str | None) -> dict[str, Tensor]:
        """A batch of one text; with masks if it is to be padded, "right" or "left"."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCABULARY, (1, self.length), generator=generator)
        targets = torch.randint(3, VOCABULARY, (1, 7), generator=generator)
        features = torch.randn(1, 8, 2 * self.length, generator=generator)  # of speech
        pad = self.config.get("pad_token_id", 0)
        given = pad_ids("", ids, 3, padding, pad) | pad_ids("decoder_", targets, 2, padding, pad)
        taken = inspect.signature(self.model_class.forward).parameters
        if "input_features" in taken:
            given["input_features"] = features
        return {name: value for name, value in given.items() if name in taken}


def pad_ids(prefix: str, ids: Tensor, places: int, side: str | None, pad: int) -> dict[str, Tensor]:
    """Ids (1, n), and the mask that tells which are padding now, if any."""
    if side is None:
        return {f"{prefix}input_ids": ids}
    mask = torch.ones_like(ids)
    mask[:, slice(places) if side == "left" else slice(-places, None)] = 0
    return {f"{prefix}input_ids": ids.where(mask.bool(), pad), f"{prefix}attention_mask": mask}


def eager(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights (layer, head, query, key) by kind: "self", or "encoder", "decoder" and "cross".

    A copy of the model runs, because a model that has once returned its attention keeps the library's hooks. Its
    configs are set directly: ``set_attn_implementation`` refuses Falcon, which then returns weights without a mask.
    Sparse BigBird leaves some weights out of what it returns, so that its rows sum to less than 1.
    """
    model = copy.deepcopy(model)
    set_eager(model)
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, return_dict=True)
    config: Any = model.config
    kinds = ("encoder", "decoder", "cross") if config.is_encoder_decoder else ("self",)
    layers = [outputs["attentions" if kind == "self" else f"{kind}_attentions"] for kind in kinds]
    weights = [torch.cat([layer for layer in of_kind if layer is not None]) for of_kind in layers]
    if hasattr(config, "attention_window"):  # Longformer, LED
        weights[0] = dense(weights[0])
    if getattr(model, "attention_type", None) == "block_sparse":  # BigBird
        n = inputs["input_ids"].shape[1]
        weights[0] = weights[0][..., :n, :n]  # it pads the text to whole blocks
    return dict(zip(kinds, weights, strict=True))


def set_eager(model: torch.nn.Module) -> None:
    """Let a model compute its attention by the library's eager code from now on."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"


def dense(bands: Tensor) -> Tensor:
    """Matrices (layer, head, token, token) of bands (layer, head, token, width), each about its own token."""
    *start, n, width = bands.shape
    matrices = torch.zeros(*start, n, n)
    for query in range(n):
        for column in range(width):
            key = query + column - width // 2
            if 0 <= key < n:
                matrices[..., query, key] = bands[..., query, column]
    return matrices


def each(value: Any, *names: str) -> dict[str, Any]:
    """One value for what configs name differently."""
    return dict.fromkeys(names, value)


TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
BASE = TOKENS | SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4}
LOCAL_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"]}

MODERNBERT = BASE | LOCAL_GLOBAL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
DEBERTA = BASE | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
SHORT = TOKENS | {
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}  # names that some configs have
DISTILBERT = SHORT | {"dim": 32, "hidden_dim": 64}
XLM = SHORT | {"emb_dim": 32, "pad_index": 0}
XLNET = TOKENS | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
SPARSE = BASE | {"max_position_embeddings": 96, "block_size": 8, "num_random_blocks": 2}

GPT = TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT_NEO = BASE | {"attention_types": [[["global", "local"], 1]], "window_size": 4}
XGLM = TOKENS | {
    "d_model": 32,
    "num_layers": 2,
    "attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
}
GROUPED = BASE | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = GROUPED | LOCAL_GLOBAL | {"sliding_window": 4}
EXPERTS = GROUPED | {
    **each(4, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    **each(2, "num_experts_per_tok", "moe_k", "moe_topk", "n_group"),
    **each(1, "n_shared_experts", "num_shared_experts", "topk_group", "first_k_dense_replace"),
    **each(
        32, "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"
    ),
}
DBRX_HEADS = {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0}
DBRX_EXPERTS = {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}
DBRX = SHORT | {
    "d_model": 32,
    "max_seq_len": 64,
    "attn_config": DBRX_HEADS,
    "ffn_config": DBRX_EXPERTS,
}
LLAMA_4 = EXPERTS | {"intermediate_size_mlp": 64, "attention_chunk_size": 4}
LLAMA_4 |= {"layer_types": ["chunked_attention", "full_attention"]}
GEMMA_2 = SLIDING | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
GEMMA_3N = SLIDING | {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 99,
    "num_kv_shared_layers": 0,
}
GEMMA_3N |= {
    "laurel_rank": 8,
    "activation_sparsity_pattern": None,
    "head_dim": 4,
    "global_head_dim": 6,
}
RANKS = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
LATENT = (
    {name: value for name, value in EXPERTS.items() if name != "head_dim"}
    | RANKS
    | {"num_key_value_heads": 4}
)
CHOSEN = LATENT | {"index_topk": 4, "index_n_heads": 8, "index_head_dim": 16}
LONGCAT = LATENT | {"num_layers": 1, "head_dim": 8, "ffn_hidden_size": 64, "zero_expert_num": 1}

LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **each(4, "linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"),
    **each(8, "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"),
}
MAMBA = {
    **each(
        4, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "mamba_chunk_size", "chunk_size"
    ),
    **each(16, "mamba_d_head", "mamba_head_dim", "mamba_headdim"),
    **each(8, "mamba_d_state", "ssm_state_size"),
    **each(1, "mamba_n_groups", "n_groups"),
}
GRANITE = EXPERTS | {"attention_multiplier": 0.3}
GRANITE_4 = GRANITE | MAMBA | {"layer_types": ["mamba", "attention"]}
NEMOTRON_H = GROUPED | MAMBA | {"layers_block_type": ["mamba", "attention"]}
ZAMBA2 = BASE | MAMBA | {"layers_block_type": ["mamba", "hybrid"]}
JAMBA = EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1}
GRIFFIN = GROUPED | {
    "block_types": ["recurrent", "attention"],
    "lru_width": 32,
    "attention_window_size": 4,
}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}

T5 = TOKENS | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SWITCH = T5 | {"num_experts": 4, "num_decoder_layers": 2}
BART = TOKENS | {
    "d_model": 32,
    "decoder_start_token_id": 1,
    **each(64, "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings"),
    **each(4, "encoder_attention_heads", "decoder_attention_heads"),
    **each(2, "encoder_layers", "decoder_layers"),
}
NLLB = BART | {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2}

RIGHT = ("right",)
encoder = partial(Architecture, family="encoder")
decoder = partial(Architecture, family="decoder")
both = partial(Architecture, family="encoder-decoder")

ARCHITECTURES: tuple[Architecture, ...] = (
    encoder("BERT", "BertModel", BASE, pads=RIGHT),
    encoder("RoBERTa", "RobertaModel", BASE),
    encoder("XLM-RoBERTa", "XLMRobertaModel", BASE),
    encoder("CamemBERT", "CamembertModel", BASE),
    encoder("ERNIE", "ErnieModel", BASE, pads=RIGHT),
    encoder("DistilBERT", "DistilBertModel", DISTILBERT, pads=RIGHT),
    encoder(
        "ALBERT", "AlbertModel", BASE | {"embedding_size": 16}, note="shared layers", pads=RIGHT
    ),
    encoder("ELECTRA", "ElectraModel", BASE | {"embedding_size": 16}, pads=RIGHT),
    encoder(
        "ConvBERT",
        "ConvBertModel",
        BASE | {"embedding_size": 32},
        note="half of the heads convolve",
        pads=(),
    ),
    encoder("RemBERT", "RemBertModel", BASE | {"input_embedding_size": 16}, pads=RIGHT),
    encoder("Megatron-BERT", "MegatronBertModel", BASE, pads=RIGHT),
    encoder("LUKE", "LukeModel", BASE | {"entity_vocab_size": 5, "entity_emb_size": 8}),
    encoder("XLM", "XLMModel", XLM, pads=RIGHT),
    encoder("FlauBERT", "FlaubertModel", XLM, pads=RIGHT),
    encoder("MPNet", "MPNetModel", BASE | {"pad_token_id": 1}, note="relative position bias"),
    encoder("XLNet", "XLNetModel", XLNET, note="relative positions", noise=0.3),
    encoder("DeBERTa", "DebertaModel", DEBERTA, note="disentangled positions"),
    encoder(
        "DeBERTa-v2",
        "DebertaV2Model",
        DEBERTA | {"position_buckets": 8},
        note="disentangled positions",
    ),
    encoder("RoFormer", "RoFormerModel", BASE | {"embedding_size": 32}, note="rotary"),
    encoder("ModernBERT", "ModernBertModel", MODERNBERT, note="rotary, sliding window"),
    encoder("EuroBERT", "EuroBertModel", GROUPED, note="rotary, grouped heads"),
    encoder("NomicBERT", "NomicBertModel", BASE, note="rotary"),
    encoder("Jina Embeddings v3", "JinaEmbeddingsV3Model", BASE, note="rotary"),
    encoder("GTE", "GteModel", BASE, note="rotary"),
    encoder(
        "ESM-2",
        "EsmModel",
        BASE | {"mask_token_id": 3, "position_embedding_type": "rotary"},
        note="rotary",
    ),
    encoder("ESM C", "EsmcModel", BASE, note="rotary, normed queries and keys"),
    encoder(
        "Longformer",
        "LongformerModel",
        BASE | {"attention_window": 8},
        note="band (sliding chunks)",
    ),
    encoder("BigBird", "BigBirdModel", BASE | {"attention_type": "original_full"}, pads=RIGHT),
    encoder(
        "BigBird (sparse)",
        "BigBirdModel",
        SPARSE,
        note="window and global blocks",
        pads=RIGHT,
        length=94,
    ),
    encoder("CLIP (text)", "CLIPTextModel", BASE, note="causal", pads=RIGHT),
    encoder("SigLIP (text)", "SiglipTextModel", BASE, pads=RIGHT),
    decoder("GPT", "OpenAIGPTModel", GPT, pads=RIGHT, noise=0.3),
    decoder("GPT-2", "GPT2Model", GPT, pads=RIGHT),
    decoder("GPT-Neo", "GPTNeoModel", GPT_NEO, note="sliding window, unscaled scores", pads=RIGHT),
    decoder("GPT-BigCode", "GPTBigCodeModel", GPT, note="one key head", pads=RIGHT),
    decoder("GPT-J", "GPTJModel", GPT | {"rotary_dim": 4}, note="rotary in part"),
    decoder("GPT-NeoX", "GPTNeoXModel", BASE, note="rotary in part"),
    decoder("CodeGen", "CodeGenModel", GPT | {"rotary_dim": 4}, note="rotary in part"),
    decoder("CTRL", "CTRLModel", GPT | {"dff": 64}, pads=RIGHT),
    decoder("OPT", "OPTModel", BASE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    decoder("BioGPT", "BioGptModel", BASE, pads=RIGHT),
    decoder("XGLM", "XGLMModel", XGLM, pads=RIGHT),
    decoder("BLOOM", "BloomModel", BASE | {"n_layer": 2, "n_head": 4}, note="ALiBi"),
    decoder("MPT", "MptModel", SHORT | {"d_model": 32, "max_seq_len": 64}, note="ALiBi"),
    decoder("Falcon", "FalconModel", BASE, note="one key head"),
    # Eager Falcon adds ALiBi twice, once in the mask and once by itself; its SDPA does not.
    decoder("Falcon (ALiBi)", "FalconModel", BASE | {"alibi": True}, note="one key head, ALiBi"),
    decoder("Persimmon", "PersimmonModel", BASE, note="normed queries and keys"),
    decoder("Llama", "LlamaModel", GROUPED, note="grouped heads"),
    decoder("Llama 4", "Llama4TextModel", LLAMA_4, note="grouped heads, chunks"),
    decoder(
        "Mistral",
        "MistralModel",
        GROUPED | {"sliding_window": 4},
        note="grouped heads, sliding window",
    ),
    decoder("Ministral", "MinistralModel", SLIDING, note="grouped heads, sliding window"),
    decoder("Ministral 3", "Ministral3Model", GROUPED, note="grouped heads"),
    decoder("Mistral 4", "Mistral4Model", LATENT, note="latent (MLA) heads"),
    decoder("Mixtral", "MixtralModel", EXPERTS, note="grouped heads"),
    decoder("Qwen2", "Qwen2Model", GROUPED, note="grouped heads"),
    decoder("Qwen2-MoE", "Qwen2MoeModel", EXPERTS, note="grouped heads"),
    decoder(
        "Qwen3",
        "Qwen3Model",
        GROUPED | {"head_dim": 16},
        note="grouped heads, normed queries and keys",
    ),
    decoder("Qwen3-MoE", "Qwen3MoeModel", EXPERTS, note="grouped heads, normed queries and keys"),
    decoder("Qwen3-Next", "Qwen3NextModel", EXPERTS | LINEAR, note="hybrid with linear attention"),
    decoder("Qwen3.5", "Qwen3_5TextModel", GROUPED | LINEAR, note="hybrid with linear attention"),
    decoder("Gemma", "GemmaModel", GROUPED | {"head_dim": 16}, note="grouped heads"),
    decoder("Gemma 2", "Gemma2Model", GEMMA_2, note="soft-capped scores, sliding window"),
    decoder(
        "Gemma 3", "Gemma3TextModel", SLIDING | {"query_pre_attn_scalar": 8}, note="sliding window"
    ),
    decoder("Gemma 3n", "Gemma3nTextModel", GEMMA_3N, note="sliding window, unscaled scores"),
    decoder("Gemma 4", "Gemma4TextModel", GEMMA_3N, note="sliding window, unscaled scores"),
    decoder("VaultGemma", "VaultGemmaModel", GEMMA_2, note="soft-capped scores, sliding window"),
    decoder(
        "RecurrentGemma", "RecurrentGemmaModel", GRIFFIN, note="hybrid with recurrence", pads=RIGHT
    ),
    decoder("Phi", "PhiModel", GROUPED, note="rotary in part"),
    decoder("Phi-3", "Phi3Model", GROUPED, note="grouped heads"),
    decoder("Phi-3.5-MoE", "PhimoeModel", EXPERTS, note="grouped heads"),
    decoder("OLMo", "OlmoModel", GROUPED, note="grouped heads"),
    decoder("OLMo 2", "Olmo2Model", GROUPED, note="grouped heads, normed queries and keys"),
    decoder("OLMo 3", "Olmo3Model", SLIDING, note="sliding window, normed queries and keys"),
    decoder(
        "OLMo Hybrid", "OlmoHybridModel", GROUPED | LINEAR, note="hybrid with linear attention"
    ),
    decoder("OLMoE", "OlmoeModel", EXPERTS, note="grouped heads, normed queries and keys"),
    decoder("FlexOlmo", "FlexOlmoModel", EXPERTS, note="grouped heads, normed queries and keys"),
    decoder("Cohere", "CohereModel", GROUPED, note="grouped heads"),
    decoder("Cohere 2", "Cohere2Model", SLIDING, note="grouped heads, sliding window"),
    decoder("StableLM", "StableLmModel", GROUPED, note="rotary in part"),
    decoder(
        "StarCoder2", "Starcoder2Model", GROUPED | {"sliding_window": 4}, note="sliding window"
    ),
    decoder("Granite", "GraniteModel", GRANITE, note="its own scale of scores"),
    decoder("Granite-MoE", "GraniteMoeModel", GRANITE, note="its own scale of scores"),
    decoder("Granite 4", "GraniteMoeHybridModel", GRANITE_4, note="hybrid with Mamba"),
    decoder("GLM", "GlmModel", GROUPED, note="rotary in part"),
    decoder("GLM-4", "Glm4Model", GROUPED, note="rotary in part"),
    decoder("GLM-4-MoE", "Glm4MoeModel", EXPERTS, note="rotary in part"),
    decoder("GLM-4.7-Flash", "Glm4MoeLiteModel", LATENT, note="latent (MLA) heads"),
    decoder(
        "GLM-5", "GlmMoeDsaModel", CHOSEN, note="latent (MLA) heads, keys chosen by an indexer"
    ),
    decoder(
        "SmolLM3",
        "SmolLM3Model",
        GROUPED | {"no_rope_layers": [1, 0]},
        note="a layer without positions",
    ),
    decoder("DeepSeek-V2", "DeepseekV2Model", LATENT, note="latent (MLA) heads"),
    decoder("DeepSeek-V3", "DeepseekV3Model", LATENT, note="latent (MLA) heads"),
    decoder(
        "DeepSeek-V3.2",
        "DeepseekV32Model",
        CHOSEN,
        note="latent (MLA) heads, keys chosen by an indexer",
    ),
    decoder("MiniCPM3", "MiniCPM3Model", LATENT, note="latent (MLA) heads"),
    decoder("LongCat-Flash", "LongcatFlashModel", LONGCAT, note="latent (MLA) heads"),
    decoder("Youtu-LLM", "YoutuModel", LATENT, note="latent (MLA) heads"),
    decoder("Kimi Linear", "KimiLinearModel", LATENT | LINEAR, note="hybrid with linear attention"),
    decoder("Ling 3.0", "BailingHybridModel", LATENT | LINEAR, note="hybrid with linear attention"),
    decoder("GPT-OSS", "GptOssModel", SLIDING | EXPERTS, note="learned sinks, sliding window"),
    decoder(
        "MiMo-V2-Flash", "MiMoV2FlashModel", SLIDING | EXPERTS, note="learned sinks, sliding window"
    ),
    decoder(
        "Bamba",
        "BambaModel",
        GROUPED | MAMBA | {"attn_layer_indices": [1]},
        note="hybrid with Mamba",
    ),
    decoder("Jamba", "JambaModel", JAMBA, note="hybrid with Mamba"),
    decoder(
        "Falcon-H1",
        "FalconH1Model",
        GROUPED | MAMBA | {"mamba_d_ssm": 64},
        note="Mamba beside attention",
    ),
    decoder("Nemotron-H", "NemotronHModel", NEMOTRON_H, note="hybrid with Mamba"),
    decoder("Zamba2", "Zamba2Model", ZAMBA2, note="hybrid with Mamba"),
    decoder("LFM2", "Lfm2Model", GROUPED | CONVOLUTION, note="hybrid with convolution"),
    decoder("LFM2-MoE", "Lfm2MoeModel", EXPERTS | CONVOLUTION, note="hybrid with convolution"),
    decoder("Helium", "HeliumModel", GROUPED, note="grouped heads"),
    decoder("Nemotron", "NemotronModel", GROUPED, note="rotary in part", noise=0.1),
    decoder("EXAONE 4", "Exaone4Model", SLIDING, note="sliding window, normed queries and keys"),
    decoder("ERNIE 4.5", "Ernie4_5Model", GROUPED, note="grouped heads"),
    decoder("ERNIE 4.5 MoE", "Ernie4_5_MoeModel", EXPERTS, note="grouped heads"),
    decoder(
        "MiniMax-M2", "MiniMaxM2Model", EXPERTS, note="rotary in part, normed queries and keys"
    ),
    decoder("Apertus", "ApertusModel", GROUPED, note="grouped heads, normed queries and keys"),
    decoder("Seed-OSS", "SeedOssModel", GROUPED, note="grouped heads"),
    decoder("dots.llm1", "Dots1Model", EXPERTS, note="grouped heads, normed queries and keys"),
    decoder(
        "Doge",
        "DogeModel",
        GROUPED | {"keep_window_size": 6},
        note="learned mask, chosen keys",
        pads=(),
    ),
    decoder("BitNet", "BitNetModel", GROUPED, note="grouped heads"),
    decoder(
        "Trinity (AFMoE)",
        "AfmoeModel",
        SLIDING | EXPERTS,
        note="sliding window, normed queries and keys",
    ),
    decoder(
        "Hunyuan",
        "HunYuanDenseV1Model",
        GROUPED,
        note="queries and keys normed after rotation",
        pads=RIGHT,
    ),
    decoder("NanoChat", "NanoChatModel", GROUPED, note="grouped heads, normed queries and keys"),
    decoder("JetMoE", "JetMoeModel", EXPERTS | {"kv_channels": 8}, note="experts of heads"),
    decoder("DBRX", "DbrxModel", DBRX, note="clipped queries and keys"),
    decoder(
        "ModernBERT Decoder", "ModernBertDecoderModel", MODERNBERT, note="rotary, sliding window"
    ),
    both("T5", "T5Model", T5, note="relative position bias, unscaled scores", noise=0.05),
    both("mT5", "MT5Model", T5, note="relative position bias, unscaled scores", noise=0.05),
    both(
        "UMT5",
        "UMT5Model",
        T5,
        note="relative position bias in every layer, unscaled scores",
        noise=0.05,
    ),
    both(
        "Switch",
        "SwitchTransformersModel",
        SWITCH,
        note="relative position bias, unscaled scores",
        noise=0.05,
    ),
    both(
        "T5Gemma",
        "T5GemmaModel",
        {"encoder": GEMMA_2, "decoder": GEMMA_2},
        note="soft-capped scores, sliding window",
    ),
    both("BART", "BartModel", BART, pads=RIGHT),
    both("mBART", "MBartModel", BART, pads=RIGHT),
    both("PLBart", "PLBartModel", BART, pads=RIGHT),
    both("MVP", "MvpModel", BART, pads=RIGHT),
    both("Pegasus", "PegasusModel", BART | {"scale_embedding": True}, pads=RIGHT),
    both("Marian", "MarianModel", BART | {"scale_embedding": True}, pads=RIGHT),
    both("Blenderbot", "BlenderbotModel", BART, pads=RIGHT),
    both("M2M100", "M2M100Model", BART),
    both("NLLB-MoE", "NllbMoeModel", NLLB),
    both(
        "LED",
        "LEDModel",
        BART | {"attention_window": 8},
        note="band (sliding chunks) in the encoder",
        pads=RIGHT,
    ),
    both(
        "BigBird-Pegasus",
        "BigBirdPegasusModel",
        BART | {"attention_type": "original_full"},
        pads=RIGHT,
    ),
    both(
        "Whisper",
        "WhisperModel",
        BART | {"num_mel_bins": 8, "max_source_positions": 12},
        note="speech",
        pads=(),
    ),
)

OF_LIBRARY = {*dir(transformers)}  # without loading them
AVAILABLE = {known.name: known for known in ARCHITECTURES if known.model in OF_LIBRARY}
MECHANISMS = (  # one architecture for each way in which attention is computed or found
    "BERT", "GPT-2", "Llama", "Gemma 2", "GPT-OSS", "MPNet", "DeBERTa", "XLNet", "Longformer",
    "BigBird (sparse)", "Falcon (ALiBi)", "DeepSeek-V3.2", "Llama 4", "T5", "BART", "NLLB-MoE",
    "Whisper",
)  # fmt: skip


def choose_marks(name: str) -> Any:
    """Return the marker of an architecture that is not in all runs, or none."""
    return () if name in MECHANISMS else pytest.mark.sweep


SWEPT = [
    pytest.param(known, id=name, marks=choose_marks(name)) for name, known in AVAILABLE.items()
]
