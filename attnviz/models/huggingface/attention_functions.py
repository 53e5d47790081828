"""The function that transformers models call for their attention, put in the place of the library's own.

Models look it up by the name of their attention implementation, so that no module is replaced. Ours computes what the
library's would, and shows each call to an observer. Where a user has registered functions of their own, ours stays
away: what those compute is for them to say, and a tap watches them instead (``attnviz.engine.tap``).
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    eager_mask,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnviz.engine.call import Call, additive, default_scale
from attnviz.engine.observers.base import Observer, Source
from attnviz.engine.tap import Tap
from attnviz.errors import ModelError
from attnviz.models.restore import configs

OBSERVED_SDPA = "attnviz"
"""In the place of "sdpa" and of the fused kernels: a call without a mask may be causal by itself."""
OBSERVED_EAGER = "attnviz_added"
"""In the place of "eager": masks are numbers that are added, and nothing else hides a key."""
KNOWN = "sdpa", "eager", "flex_attention", "paged|eager"
LIBRARY = Path(transformers.__file__).parent

_observer: ContextVar[Observer | Tap | None] = ContextVar("observer", default=None)


@contextmanager
def observe(observer: Observer | Tap) -> Iterator[None]:
    """Show the calls that models of this thread make to an observer."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def attend_as_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention as the library's "sdpa" does, before the observer, who gives the output."""
    observer = _observer.get()
    plain = partial(sdpa_attention_forward, module, query, key, value, attention_mask, **options)
    if observer is None:
        return plain()[0], None
    call = read_call(module, query, key, value, attention_mask, options)
    source = Source(
        getattr(module, "layer_idx", None),
        plain=(lambda: plain()[0]) if options.get("indices") is None else None,
        reference=partial(compute_eager_rows, module, call, options),
    )
    return observer.attend(call, source), None


def attend_as_eager(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention as a model's own "eager" function does: without a mask every query sees every key."""
    return attend_as_sdpa(
        module, query, key, value, attention_mask, **{**options, "is_causal": False}
    )


def register() -> None:
    """Make our functions known to the library, under names of our own."""
    AttentionInterface.register(OBSERVED_SDPA, attend_as_sdpa)
    AttentionMaskInterface.register(OBSERVED_SDPA, sdpa_mask)
    AttentionInterface.register(OBSERVED_EAGER, attend_as_eager)
    AttentionMaskInterface.register(OBSERVED_EAGER, eager_mask)


def read_call(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> Call:
    """Return a call of the interface in our words. Raises ModelError if it asks for what is not read."""
    if options.get("block_indices") is not None:
        raise ModelError(
            "this model's attention is sparse by blocks that it chooses as it runs, which is not read"
        )
    scaling, asked = options.get("scaling"), options.get("is_causal")
    causal = getattr(module, "is_causal", True) if asked is None else asked
    causal = bool(causal) and mask is None and query.shape[2] > 1
    scale = default_scale(query) if scaling is None else scaling
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (part.expand(batch, -1, -1, -1) for part in (query, key, value))
    if (
        key.shape[1] != value.shape[1]
    ):  # fewer heads of one than of the other: each query head gets its own of both
        key, value = (
            part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value)
        )
    if options.get("indices") is not None:
        unchosen = Call(query, key, value, scale, mask=mask, causal=causal)
        mask, causal = mask_unchosen_keys(unchosen, options["indices"]), False
    call = Call(
        query,
        key,
        value,
        scale,
        mask=mask,
        causal=causal,
        bias=options.get("position_bias"),
        softcap=options.get("softcap"),
        sinks=options.get("s_aux") if options.get("s_aux") is not None else options.get("sinks"),
    )
    require_masks(call)
    return call


def require_masks(call: Call) -> None:
    """Raise ModelError unless the masks and biases of a call broadcast to its scores, (B, H, N, M)."""
    (batch, heads, queries, _), keys = call.query.shape, call.key.shape[2]
    for mask in call.masks:
        sides = zip(mask.shape, (batch, heads, queries, keys), strict=False)
        if mask.ndim != 4 or any(side not in (1, size) for side, size in sides):
            raise ModelError(
                f"this model masks its attention by {tuple(mask.shape)} where there are {queries} x {keys}"
            )


def mask_unchosen_keys(call: Call, indices: Tensor) -> Tensor:
    """Return a mask (B, 1, N, M) by which queries see only the keys (B, N, k) that an indexer chose.

    Source: DeepSeek-V3.2 (2025).
    """
    size = indices.shape[0], 1, indices.shape[1], call.key.shape[2]
    chosen = torch.zeros(size, dtype=torch.bool, device=indices.device)
    return chosen.scatter_(-1, indices[:, None].long(), True) & call.visible()


def compute_eager_rows(
    module: Any, call: Call, options: Mapping[str, Any], rows: Tensor
) -> Tensor | None:
    """Return the output of some queries, (B, row, H, d_v), by the eager attention of the model's own code.

    None if it has none, or if that does not take the call.
    """
    function = getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
    part = call.rows(rows)
    mask = None
    if part.mask is not None:
        mask = additive(part.mask, torch.float32).clamp_min(torch.finfo(call.query.dtype).min)
    changed = {**options, "position_bias": part.bias, "dropout": 0.0}
    try:
        output: Tensor = function(module, part.query, call.key, call.value, mask, **changed)[0]  # type: ignore[misc]
    except Exception:  # an oracle that cannot speak says nothing
        return None
    return output


def use_observed_attention(model: Any) -> None:
    """Let a model, and the models in it, call our functions, each in the place of the one that it calls now."""
    models = list(model.modules())
    eager = {
        id(config) for config in configs(models) if config._attn_implementation_internal == "eager"
    }
    set_attention(
        model, OBSERVED_SDPA if getattr(model, "_supports_sdpa", False) else OBSERVED_EAGER
    )
    for config in configs(models):
        if id(config) in eager and config._attn_implementation_internal == OBSERVED_SDPA:
            config._attn_implementation_internal = OBSERVED_EAGER


def set_attention(model: Any, name: str) -> None:
    """Set a model's attention implementation, if it takes any but its own."""
    with suppress(Exception):  # refused, in as many ways as there are models
        model.set_attn_implementation(name)


def find_foreign_attention(model: Any) -> str | None:
    """Return the name of an attention implementation of a model that is not the library's own, if there is one.

    It may be one that a user registered, or one of the library's whose attention or mask function they replaced.
    """
    for config in configs(list(model.modules())):
        name = config._attn_implementation_internal
        if name is None or "/" in name:  # kernels from the hub are the library's fused attention
            continue
        if name not in KNOWN and not name.startswith("flash_attention"):
            return str(name)
        functions = ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
        if not all(function is None or is_library_function(function) for function in functions):
            return str(name)
    return None


def is_library_function(function: Any) -> bool:
    """Return whether a function is written in transformers itself, and not wrapped by other code."""
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(LIBRARY)
