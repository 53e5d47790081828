"""Our functions for the attention of transformers models, in place of the library's own.

Models look their attention function up by the name of their attention implementation, so no module
is replaced. Our functions compute the output that the library's would, and show each call to an
observer. Where a user has registered functions of their own, ours stay away: only those functions
can say what they compute, and a tap watches them instead (``attnviz.engine.tap``).
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

from attnviz.engine.call import (
    Call,
    compute_default_scale,
    make_additive_mask,
    repeat_heads,
)
from attnviz.engine.observers.base import CallSource, Observer
from attnviz.engine.tap import Tap
from attnviz.errors import ModelError
from attnviz.models.restore import list_configs

OBSERVED_SDPA = "attnviz"
"""In place of "sdpa" and of the fused kernels: a call without a mask may be causal by itself."""
OBSERVED_EAGER = "attnviz_added"
"""In place of "eager": masks are numbers that are added, and nothing else hides a key."""
KNOWN = "sdpa", "eager", "flex_attention", "paged|eager"
LIBRARY = Path(transformers.__file__).parent

_observer: ContextVar[Observer | Tap | None] = ContextVar("observer", default=None)


@contextmanager
def observe_calls(observer: Observer | Tap) -> Iterator[None]:
    """Show an observer the calls of attention that transformers models make in this thread."""
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
    """Compute attention as transformers' "sdpa" function does, and show the call to an observer.

    This is an attention function of the library's interface. query: (B, H, N, d). key, value: those
    of as many heads or fewer, (B, heads, M, d). options: whatever else the model's code passes.
    Returns the output, (B, N, H, d_v), and None in place of weights. If an observer is set, it
    computes the output. Raises ModelError for a call that cannot be read.
    """
    observer = _observer.get()

    def compute_plainly() -> Any:
        results = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return results[0]

    if observer is None:
        return compute_plainly(), None
    call = read_call(module, query, key, value, attention_mask, options)
    chooses_keys = options.get("indices") is not None
    source = CallSource(
        getattr(module, "layer_idx", None),
        plain=None if chooses_keys else compute_plainly,
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
    """Compute attention as a model's own "eager" function does, and show the call to an observer.

    Without a mask every query sees every key. This is an attention function of the library's
    interface. query, key, value: (B, heads, length, d). Returns the output, (B, N, H, d_v), and
    None in place of weights.
    """
    options["is_causal"] = False
    return attend_as_sdpa(module, query, key, value, attention_mask, **options)


def register_functions() -> None:
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
    """Make a ``Call`` of the arguments of an attention function of transformers.

    A ``Call`` holds all that decides about the weights of a call of attention. query, key, value:
    (B, heads, length, d); there may be fewer heads of keys or of values than of queries, and fewer
    texts of one than of the others. options: whatever else the model's code passes. Raises
    ModelError for sparse attention by blocks, and for masks of an unknown shape.
    """
    if options.get("block_indices") is not None:
        raise ModelError(
            "this model's attention is sparse by blocks that it chooses as it runs, "
            "which is not read",
        )
    causal = hides_later_keys(module, query, mask, options)
    scale = options.get("scaling")
    if scale is None:
        scale = compute_default_scale(query)
    query, key, value = expand_batch(query, key, value)
    if key.shape[1] != value.shape[1]:
        # fewer heads of one than of the other: each query head gets its own of both
        heads = query.shape[1]
        key = repeat_heads(key, heads)
        value = repeat_heads(value, heads)
    indices = options.get("indices")
    if indices is not None:
        full_call = Call(query, key, value, scale, mask=mask, causal=causal)
        mask = mask_unchosen_keys(full_call, indices)
        causal = False
    # the library has two names for the scores of sinks
    sinks = options.get("s_aux")
    if sinks is None:
        sinks = options.get("sinks")
    call = Call(
        query,
        key,
        value,
        scale,
        mask=mask,
        causal=causal,
        bias=options.get("position_bias"),
        softcap=options.get("softcap"),
        sinks=sinks,
    )
    require_masks(call)
    return call


def hides_later_keys(
    module: Any,
    query: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> bool:
    """Return True if a call of attention is causal by itself, without a mask that hides later keys.

    It is if its options say so; without such an option, if its module says so; and if neither says
    anything. A single query, (B, H, 1, d), sees all keys, since it is the last token of a text.
    """
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    return bool(causal) and mask is None and query.shape[2] > 1


def expand_batch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Expand queries, keys and values to the same number of texts.

    Each is (text, head, token, d). Only a first axis of one text can be expanded.
    """
    batch = max(query.shape[0], key.shape[0])
    size = batch, -1, -1, -1
    return query.expand(size), key.expand(size), value.expand(size)


def require_masks(call: Call) -> None:
    """Raise ModelError unless the masks and biases of a call broadcast to its scores.

    Scores are (text, head, query, key). A mask must have these axes, each 1 or as long.
    """
    batch, heads, queries, _ = call.query.shape
    keys = call.key.shape[2]
    for mask in call.masks:
        axes = zip(mask.shape, (batch, heads, queries, keys), strict=False)
        if mask.ndim != 4 or any(length not in (1, expected) for length, expected in axes):
            shape = tuple(mask.shape)
            raise ModelError(
                f"this model masks its attention by {shape} where there are {queries} x {keys}",
            )


def mask_unchosen_keys(call: Call, indices: Tensor) -> Tensor:
    """Return a mask (text, 1, query, key), True at the keys that an indexer chose for each query.

    An indexer is a part of a sparse model that chooses k keys for each query. Keys that the call
    hides in any case stay hidden. indices: the positions of the chosen keys, (text, query, k).
    Source: DeepSeek-V3.2 (2025).
    """
    batch, queries, _ = indices.shape
    size = batch, 1, queries, call.key.shape[2]
    unchosen = torch.zeros(size, dtype=torch.bool, device=indices.device)
    chosen = unchosen.scatter_(-1, indices[:, None].long(), True)
    return chosen & call.find_visible_cells()


def compute_eager_rows(
    module: Any,
    call: Call,
    options: Mapping[str, Any],
    rows: Tensor,
) -> Tensor | None:
    """Compute the output of some queries of a call by the eager attention of the model's own code.

    It serves to check our output. module: the attention module that made the call. options: what
    the model's code passed beside the arrays. rows: the positions of the queries. The output is
    (text, row, head, d_v); None if the model's code has no eager attention, or one that cannot
    compute the call.
    """
    home = sys.modules.get(type(module).__module__)
    function = getattr(home, "eager_attention_forward", None)
    row_call = call.pick_queries(rows)
    mask = None
    if row_call.mask is not None:
        lowest = torch.finfo(call.query.dtype).min
        mask = make_additive_mask(row_call.mask, torch.float32).clamp_min(lowest)
    row_options = {**options, "position_bias": row_call.bias, "dropout": 0.0}
    try:
        results = function(module, row_call.query, call.key, call.value, mask, **row_options)  # type: ignore[misc]
        output: Tensor = results[0]
    except Exception:  # without a reference nothing is compared
        return None
    return output


def use_observed_attention(model: Any) -> None:
    """Let a transformers model, and the models in it, call our attention functions.

    They stand in place of the functions that the configs name now. A model that used the eager
    function gets ours that computes as eager does.
    """
    modules = list(model.modules())
    eager_configs = {
        id(config)
        for config in list_configs(modules)
        if config._attn_implementation_internal == "eager"
    }
    takes_sdpa = getattr(model, "_supports_sdpa", False)
    set_attention(model, OBSERVED_SDPA if takes_sdpa else OBSERVED_EAGER)
    for config in list_configs(modules):
        was_eager = id(config) in eager_configs
        if was_eager and config._attn_implementation_internal == OBSERVED_SDPA:
            config._attn_implementation_internal = OBSERVED_EAGER


def set_attention(model: Any, name: str) -> None:
    """Set a model's attention implementation, if it takes any but its own."""
    # refused, in as many ways as there are models
    with suppress(Exception):
        model.set_attn_implementation(name)


def find_foreign_attention(model: Any) -> str | None:
    """Return the name of an attention implementation of a model that is not the library's own.

    A user may have registered it, or replaced the attention or mask function of an implementation
    of the library. The first that is found is returned, or None if the model has none.
    """
    for config in list_configs(list(model.modules())):
        name = config._attn_implementation_internal
        # kernels from the hub are the library's fused attention
        if name is None or "/" in name:
            continue
        if name not in KNOWN and not name.startswith("flash_attention"):
            return str(name)
        functions = ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
        if not all(function is None or is_library_function(function) for function in functions):
            return str(name)
    return None


def is_library_function(function: Any) -> bool:
    """Return True if the code of a function is in a file of transformers.

    A function that other code wraps is not.
    """
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(LIBRARY)
