"""Any Hugging Face model that calls its attention through transformers' attention interface.

A function registered there computes the output by SDPA, as the model would without us, and beside it recomputes the
weights of the requested layers and heads with our own layer: no eager fall-back, no layers x heads x N^2 weights.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from attnviz.errors import AttnvizError, InputError, ModelError
from attnviz.layer.attention import attend, causal_mask
from attnviz.layer.multihead import share_heads
from attnviz.layer.scores import dot
from attnviz.models.huggingface_checks import require_safe
from attnviz.models.request import Placement, Request, require_length, torch_device
from attnviz.record import AttentionMap, Capture, Token
from attnviz.selection import resolve

INTERFACE = "attnviz"
# Arguments that change the weights and that the recorder does not honour. (A sliding window is in the mask already.)
CHANGES_WEIGHTS = {"softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices"}


class Recorder:
    """Keeps the weights of chosen heads, layer by layer, while a model runs."""

    def __init__(self, wanted: dict[int, tuple[int, ...]]) -> None:
        self.wanted = wanted
        self.calls = 0
        self.numbered = True
        self.weights: dict[int, Tensor] = {}
        self.visible: dict[int, Tensor] = {}

    def record(self, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Query (1, heads, n, d), key (1, kv_heads, m, d), mask boolean or additive (1, 1 or heads, n, m)."""
        changed = CHANGES_WEIGHTS & {name for name, value in options.items() if value is not None}
        if changed:
            raise ModelError(f"this model's attention uses {', '.join(sorted(changed))}, which is not read yet")
        layer = self.layer(module)
        if layer not in self.wanted:
            return
        if layer in self.weights:
            raise ModelError("this model's layers cannot be told apart: two of its attention calls have one number")
        heads = torch.tensor(self.wanted[layer], device=query.device)
        q, k = query[:, heads], share_heads(key, query.shape[1])[:, heads]
        scaling = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = is_causal(module, query, mask, options)
        mask = mask[:, heads] if mask is not None and mask.shape[1] > 1 else mask
        attended = attend(q, k, k, score=lambda q, k: dot(q * scale, k), mask=mask, causal=causal)
        self.weights[layer] = attended.weights[0].float().cpu()  # (head, query, key)
        self.visible[layer] = visible_keys(attended.scores[0], mask, causal).cpu()  # (1 or head, query, key)

    def layer(self, module: Any) -> int:
        """The number of the layer that calls: as the module says, else by the order of calls."""
        index = getattr(module, "layer_idx", None)
        self.numbered = self.numbered and index is not None
        self.calls += 1
        return self.calls - 1 if index is None else int(index)

    def require(self, layers: int) -> None:
        """Raise ModelError unless all that was wanted was recorded, from a model of so many layers."""
        if not self.numbered and self.calls != layers:
            raise ModelError(
                f"this model calls attention {self.calls} times in {layers} layers: they cannot be told apart"
            )
        missing = sorted(set(self.wanted) - set(self.weights))
        if missing:
            raise ModelError(f"no attention could be read in layer {', '.join(map(str, missing))} of this model")


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that models call: SDPA, and a look at the weights if somebody is recording."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.record(module, query, key, attention_mask, options)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def is_causal(module: Any, query: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether SDPA is told so: without a mask, and as the call or the module says."""
    asked = options.get("is_causal")
    asked = getattr(module, "is_causal", True) if asked is None else asked
    return bool(asked) and mask is None and query.shape[2] > 1


def visible_keys(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Boolean (1 or head, n, m): True where a query may attend."""
    n, m = scores.shape[-2:]
    if mask is not None:
        allowed = mask[0] if mask.dtype == torch.bool else mask[0] > torch.finfo(mask.dtype).min / 2
        return allowed.expand(-1, n, m)
    return causal_mask(n, m, like=scores)[None] if causal else torch.ones(1, n, m, dtype=torch.bool)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Let the attention function record while a model runs."""
    token = _recorder.set(recorder)
    try:
        with torch.inference_mode():
            yield
    finally:
        _recorder.reset(token)


class HuggingFace:
    """A model and its tokenizer from a local folder: safetensors only, no code from the folder."""

    def __init__(self, name: str, folder: Path, placement: Placement) -> None:
        self.name = name
        available = require_safe(folder)
        self.device = torch_device(placement.device)
        with quiet_library():
            config = load_config(folder)
            require_size(config, available, folder)
            self.model = load_model(folder, getattr(torch, placement.dtype)).to(self.device).eval()
            self.tokenizer = load_tokenizer(folder, config)
        self.n_layers, self.n_heads = sizes(config, folder)
        limits = position_limit(self.model), self.tokenizer.model_max_length
        self.positions = min((limit for limit in limits if limit and 0 < limit < 1 << 31), default=None)

    def capture(self, text: str, request: Request) -> Capture:
        """See ``Model.capture``."""
        rectangles = resolve(request.layers, request.heads, self.n_layers, self.n_heads)
        ids, tokens, note = self.encode(text, request.truncate)
        wanted = {layer: heads for layers, heads in rectangles for layer in layers}
        recorder = Recorder(wanted)
        try:
            with quiet_library(), recording(recorder):
                self.model(ids)
            recorder.require(self.n_layers)
            maps = tuple(read_map(recorder, layers, heads, tokens) for layers, heads in rectangles)
        except AttnvizError:
            raise
        except Exception as error:  # a model can fail in any way; that is not a fault of ours
            raise ModelError(f"{self.name} cannot run on this text: {first_line(error)}") from error
        return Capture(self.name, text, maps, (note,) if note else ())

    def encode(self, text: str, truncate: bool) -> tuple[Tensor, tuple[Token, ...], str | None]:
        """Ids (1, n), tokens, and a note if the text was cut."""
        options: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        with quiet_library():
            found = self.tokenizer(text, **options)
            note = require_length(len(found["input_ids"]), self.positions, truncate, self.name)
            if note:
                found = self.tokenizer(text, truncation=True, max_length=self.positions, **options)
        ids = found["input_ids"]
        if not ids:
            raise InputError(f"{self.name} makes no tokens of this text")
        names, special = self.tokenizer.convert_ids_to_tokens(ids), map(bool, found["special_tokens_mask"])
        tokens = tuple(
            Token.of(*column, text) for column in zip(names, ids, found["offset_mapping"], special, strict=True)
        )
        return torch.tensor([ids], device=self.device), tokens, note


def read_map(
    recorder: Recorder, layers: tuple[int, ...], heads: tuple[int, ...], tokens: tuple[Token, ...]
) -> AttentionMap:
    """One rectangle of what was recorded."""
    weights = torch.stack([recorder.weights[layer] for layer in layers]).numpy()
    visible = torch.stack([recorder.visible[layer] for layer in layers]).numpy()  # (layer, 1 or head, query, key)
    return AttentionMap("self", layers, heads, tokens, tokens, weights, visible)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's warnings and progress bars off stderr, and leave its settings as they were."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_config(folder: Path) -> Any:
    """The model's config. Raises ModelError if it is of a kind that we cannot read."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises ValueError, OSError, KeyError, TypeError ... for one bad file
        raise ModelError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"{folder} is an encoder-decoder ({config.model_type}); only encoders and decoders are read yet"
        )
    return config


def require_size(config: Any, available: int, folder: Path) -> None:
    """Raise ModelError if the config describes far more parameters than the weights hold.

    The model is laid out on the meta device, which takes no memory.
    """
    try:
        with torch.device("meta"):
            outline = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        described = sum(parameter.numel() for parameter in outline.parameters())
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} cannot be built: {first_line(error)}") from error
    if described > 2 * available + 1_000_000:
        raise ModelError(f"{folder / 'config.json'} describes {described:,} parameters; its weights hold {available:,}")


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model with our attention function, every weight of it from the folder. Raises ModelError."""
    AttentionInterface.register(INTERFACE, attention)
    AttentionMaskInterface.register(INTERFACE, sdpa_mask)
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": INTERFACE,
        "output_loading_info": True,
        "dtype": dtype,
    }
    try:
        model, info = AutoModel.from_pretrained(folder, **options)
    except Exception as error:  # as above
        raise ModelError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    if not getattr(model, "_supports_sdpa", False):  # then it builds its masks for another attention
        raise ModelError(f"the attention of {folder} ({model.config.model_type}) has no SDPA form and is not read yet")
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:  # the library would fill them with random numbers
        raise ModelError(f"the weights in {folder} lack {len(missing)} parameters of the model, such as {missing[0]}")
    return model


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The model's tokenizer, which must know where its tokens stand in the text. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in {folder} has no fast version, which tells where a token stands in the text")
    tokenizer.truncation_side = "right"
    known, expected = len(tokenizer), config.get_text_config().vocab_size
    if 2 * known < expected:  # the library makes an empty one if its files are not there
        raise ModelError(f"the tokenizer in {folder} knows {known} tokens, its model {expected}: files are missing")
    return tokenizer


def sizes(config: Any, folder: Path) -> tuple[int, int]:
    """The numbers of layers and heads. Raises ModelError if the config does not tell."""
    text = config.get_text_config()
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    if not isinstance(layers, int) or not isinstance(heads, int):
        raise ModelError(f"{folder / 'config.json'} does not say how many layers and heads there are")
    return layers, heads


def position_limit(model: Any) -> int | None:
    """How many tokens a model has places for; tables with a padding row, as RoBERTa's, begin to count after it."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            return int(limit) - module.padding_idx - 1
    return limit


def first_line(error: Exception) -> str:
    """The beginning of a library's message, as one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
