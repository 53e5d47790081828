"""How the attention of a transformers model is read, whatever its architecture, and the model left as it was found.

A short run surveys where its attention is:
- behind the function that models of today look up by the name of their attention implementation;
- else in torch's own functions, of which a softmax is known by its shape: these models are read through a tap;
- else, where it is sparse and of no common shape, in what the library returns for output_attentions.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache, partial
from inspect import signature
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from attnviz.engine.call import Call, additive, default_scale
from attnviz.engine.edits import Edits
from attnviz.engine.probe import NO_EDITS, Finished, Found, Observer, Probe, Seen, Site, Source, Survey
from attnviz.engine.tap import Tap
from attnviz.errors import AttnvizError, ModelError
from attnviz.models.maps import number_layers
from attnviz.models.restore import as_found
from attnviz.record import ROW_TOLERANCE, Kind
from attnviz.request import Request

Inputs: TypeAlias = Mapping[str, Tensor]
INTERFACE = "attnviz"
ADDED = "attnviz_added"  # the same, for models that use their masks otherwise too, as numbers that are added
SHORT = 5, 3  # tokens of a survey: of the text, and of the decoder's, so that lengths tell what attends to what
TEXT = {"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask"}
KINDS: dict[Kind, str] = {
    "self": "attentions",
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}
FAILURES = RuntimeError, ValueError, IndexError  # of a model that cannot run on its inputs
SPARSE = "the attention of this model is sparse: it is read through the library's eager output_attentions"

_observer: ContextVar[Observer | Tap | None] = ContextVar("observer", default=None)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that models call: their call is shown to the observer, who gives the output."""
    plain = partial(sdpa_attention_forward, module, query, key, value, attention_mask, **options)
    observer = _observer.get()
    if observer is None:
        return plain()[0], None
    call = read_call(module, query, key, value, attention_mask, options)
    source = Source(
        getattr(module, "layer_idx", None),
        plain=(lambda: plain()[0]) if options.get("indices") is None else None,
        reference=partial(eager_rows, module, call, options),
    )
    return observer.attend(call, source), None


def attend_by_mask(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The same for models without SDPA: their own attention hides nothing but what their mask hides."""
    return attention(module, query, key, value, attention_mask, **{**options, "is_causal": False})


def read_call(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Mapping[str, Any]
) -> Call:
    """A call of the interface in our words. Raises ModelError if it asks for what is not read."""
    if options.get("block_indices") is not None:
        raise ModelError("this model's attention is sparse by blocks that it chooses as it runs, which is not read")
    scaling, asked = options.get("scaling"), options.get("is_causal")
    causal = getattr(module, "is_causal", True) if asked is None else asked
    causal = bool(causal) and mask is None and query.shape[2] > 1
    scale = default_scale(query) if scaling is None else scaling
    if options.get("indices") is not None:
        mask, causal = chosen_keys(Call(query, key, value, scale, mask=mask, causal=causal), options["indices"]), False
    return Call(
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


def chosen_keys(call: Call, indices: Tensor) -> Tensor:
    """The mask (B, 1, N, M) where queries see only the keys (B, N, k) that an indexer chose (DeepSeek-V3.2, 2025)."""
    size = indices.shape[0], 1, indices.shape[1], call.key.shape[2]
    chosen = torch.zeros(size, dtype=torch.bool, device=indices.device)
    return chosen.scatter_(-1, indices[:, None].long(), True) & call.visible()


def eager_rows(module: Any, call: Call, options: Mapping[str, Any], rows: Tensor) -> Tensor | None:
    """The output of some queries, (B, row, H, d_v), by the eager attention of the model's own code, if it has one."""
    function = getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
    part = call.rows(rows)
    mask = (
        None if part.mask is None else additive(part.mask, torch.float32).clamp_min(torch.finfo(call.query.dtype).min)
    )
    given = {**options, "position_bias": part.bias, "dropout": 0.0}
    try:
        output: Tensor = function(module, part.query, call.key, call.value, mask, **given)[0]  # type: ignore[misc]
    except Exception:  # an oracle that cannot speak says nothing
        return None
    return output


class Reading:
    """Surveys and reads one model."""

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(INTERFACE, attention)
        AttentionMaskInterface.register(INTERFACE, sdpa_mask)
        AttentionInterface.register(ADDED, attend_by_mask)
        AttentionMaskInterface.register(ADDED, eager_mask)
        self.model = model
        self.tapped = False
        """Whether some attention is found in torch's functions only."""
        self.sites: tuple[Site, ...] = ()

    def survey(self, inputs: Inputs) -> tuple[Site, ...]:
        """The calls of attention that a run on such inputs makes, found once. Raises ModelError if there are none."""
        if not self.sites:
            short = shortened(inputs)
            seen, kinds = self.look_around(short)
            if not seen:
                given = [(kind, part) for kind, parts in self.eager(short).items() for part in parts]
                seen = [Seen(None, part.shape[1], part.shape[2], part.shape[3], "", False) for _, part in given]
                kinds = [kind for kind, _ in given]
            if not seen:
                raise ModelError(f"{type(self.model).__name__} has no attention that could be shown")
            self.sites = number_layers(seen, kinds)
        return self.sites

    def look_around(self, inputs: Inputs) -> tuple[list[Seen], list[Kind]]:
        """The calls of the interface and of torch's functions, and of which kind each is."""
        survey = Survey()
        self.tapped = True
        tap = self.run(inputs, survey)[1]
        self.tapped = tap is not None and tap.found > 0
        return survey.seen, [kind_of(call, lengths(inputs)) for call in survey.seen]

    def read(
        self, inputs: Inputs, heads: Mapping[int, tuple[int, ...]], request: Request, edits: Edits = NO_EDITS
    ) -> tuple[dict[int, Found], str | None]:
        """Run the model; what was found at the numbers of the calls, and a note if it was read another way."""
        probe = Probe(heads, request, edits, stop=not self.tapped)
        self.run(inputs, probe)
        if len(probe.found) == len(heads) and (not self.tapped or probe.calls == len(self.sites)):
            return probe.found, None
        if not edits.none:
            raise ModelError("this model cannot be changed as it runs: its attention is sparse")
        return self.read_eager(inputs, heads, request)

    def read_eager(
        self, inputs: Inputs, heads: Mapping[int, tuple[int, ...]], request: Request
    ) -> tuple[dict[int, Found], str]:
        """The same from what the library returns, and what is to be said of that."""
        probe = Probe(heads, request, stop=False)
        given = {kind: iter(parts) for kind, parts in self.eager(inputs).items()}
        least = 1.0
        try:
            for site in self.sites:
                weights = next(given[site.kind])
                least = min(least, float(weights.sum(-1).amin()))
                probe.given(weights, weights > 0, Source())
        except (KeyError, StopIteration):
            raise ModelError("this model's attention changes with the length of the text and cannot be read") from None
        lacking = f", which leaves some out: rows sum to as little as {least:.2f}" if least < 1 - ROW_TOLERANCE else ""
        return probe.found, SPARSE + lacking

    def run(
        self, inputs: Inputs, observer: Observer, how: Callable[[Any, Inputs], Any] | None = None
    ) -> tuple[Any, Tap | None]:
        """Run the model before an observer: its result, or None once the observer has all it wants, and the tap."""
        tap = Tap(observer, partial(fit, lengths=lengths(inputs))) if self.tapped else None
        with undisturbed(self.model):
            set_attention(self.model, interface_of(self.model))
            token = _observer.set(observer if tap is None else tap)
            try:
                with tap or nullcontext():
                    return (how or forward)(self.model, inputs), tap
            except Finished:
                return None, tap
            finally:
                _observer.reset(token)

    def eager(self, inputs: Inputs) -> dict[Kind, list[Tensor]]:
        """Weights (1, H, N, M) by kind, layer after layer, as the library returns them; no others."""
        with undisturbed(self.model, (Exception,)):  # the library's models refuse the option in many ways
            set_attention(self.model, "eager")
            outputs = forward(self.model, {**inputs, "output_attentions": True})
        found: dict[Kind, list[Tensor]] = {}
        for kind, name in KINDS.items():
            given = [part for part in getattr(outputs, name, None) or () if part is not None]
            parts = [fit(unpadded(part, lengths(inputs)), lengths(inputs)) for part in given]
            found[kind] = [part for part in parts if part is not None]
        return found


@contextmanager
def undisturbed(model: Any, failures: tuple[type[Exception], ...] = FAILURES) -> Iterator[None]:
    """A model while it runs: in evaluation, without gradients and talk. Its failures are told as ModelError."""
    with as_found(model), quiet_library(), torch.no_grad():
        try:
            yield
        except AttnvizError:
            raise
        except failures as error:
            raise not_run(error) from error


def forward(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Call the model, without the cache of keys and values that only generation needs."""
    return model(**{**inputs, **({"use_cache": False} if takes_cache(model.__class__) else {})})


@cache
def takes_cache(kind: type) -> bool:
    """Whether models of a class can be told to keep no cache."""
    return "use_cache" in signature(kind.forward).parameters  # type: ignore[attr-defined]


def not_run(error: Exception) -> AttnvizError | MemoryError:
    """What a model's own failure means to the user."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return MemoryError()
    return ModelError(f"the model cannot run on this text: {first_line(error)}")


def interface_of(model: Any) -> str:
    """The name under which a model finds us."""
    return INTERFACE if getattr(model, "_supports_sdpa", False) else ADDED


def set_attention(model: Any, name: str) -> None:
    """Set a model's attention implementation, if it takes any but its own."""
    with suppress(Exception):  # refused, in as many ways as there are models
        model.set_attn_implementation(name)


def shortened(inputs: Inputs) -> Inputs:
    """Inputs of a text cut, or repeated, to a few tokens; of other inputs only what a decoder reads."""
    if set(inputs) <= TEXT and "input_ids" in inputs:
        short = {"input_ids": inputs["input_ids"].repeat(1, SHORT[0])[:1, : SHORT[0]]}
    else:
        short = {name: part for name, part in inputs.items() if name != "decoder_attention_mask"}
    if "decoder_input_ids" in inputs:
        count = SHORT[1] if lengths(short)[0] != SHORT[1] else SHORT[1] - 1
        short["decoder_input_ids"] = inputs["decoder_input_ids"].repeat(1, count)[:1, :count]
    return short


def lengths(inputs: Inputs) -> tuple[int | None, int | None]:
    """Tokens of the text, and of the decoder's, as far as the inputs tell."""
    sides = (("input_ids", "inputs_embeds"), ("decoder_input_ids", "decoder_inputs_embeds"))
    text, target = (next((inputs[name].shape[1] for name in names if name in inputs), None) for names in sides)
    return text, target


def sizes_of(site: Site, inputs: Inputs) -> tuple[int, int]:
    """Queries and keys of a call, as the inputs tell if they are texts, else as they were in the survey."""
    text, target = lengths(inputs)
    n, m = (text, text) if set(inputs) <= TEXT and text is not None else site.size
    if target is None or site.kind in ("self", "encoder"):
        return n, m
    return target, target if site.kind == "decoder" else m


def kind_of(call: Seen, lengths: tuple[int | None, int | None]) -> Kind:
    """Which tokens attend to which, by the lengths of the call."""
    _, target = lengths
    if target is None:
        return "self" if call.queries == call.keys else "cross"
    if call.queries != target:
        return "encoder"
    return "decoder" if call.keys == target else "cross"


def fit(part: Tensor, lengths: tuple[int | None, int | None]) -> Tensor | None:
    """The result of a softmax as (1, H, N, M) if it can be attention over so many tokens, else None."""
    text, target = lengths
    pairs = {(text, text), (target, target), (target, text)}
    if part.ndim in (3, 4) and tuple(part.shape[-2:]) in pairs:
        return part if part.ndim == 4 else part[None]
    if part.ndim == 4 and text is not None and part.shape[3] % 2 and part.shape[1] >= text:
        return from_band(part, text)
    return None


def unpadded(part: Tensor, lengths: tuple[int | None, int | None]) -> Tensor:
    """Weights (1, H, N, N) without the padding to whole blocks that a sparse encoder adds to its text."""
    text, _ = lengths
    if part.ndim == 4 and text is not None and part.shape[2] == part.shape[3] > text:
        return part[..., :text, :text]
    return part


def from_band(band: Tensor, length: int) -> Tensor | None:
    """Weights of a band of keys around each query, (1, N, H, 2 w + 1), as (1, H, N, N); None if it is no such band."""
    half = band.shape[3] // 2
    places = torch.arange(length, device=band.device)
    offset = places - places[:, None] + half  # (N, N): where in a query's band a key stands
    inside = (offset >= 0) & (offset <= 2 * half)
    rows = band[0, :length].transpose(0, 1)  # (H, N, 2 w + 1)
    dense = rows.gather(2, offset.clamp(0, 2 * half).expand(len(rows), -1, -1)) * inside
    outside = float((rows.float().sum(-1) - dense.float().sum(-1)).abs().max())
    return dense[None] if outside < 1e-3 else None


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's warnings and progress bars off stderr, and leave its settings as they were."""
    bars = transformers.logging.is_progress_bar_enabled()
    handlers = logging.getLogger("transformers").handlers  # to set its level would clear the caches of all loggers
    for handler in handlers:
        handler.addFilter(is_error)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_error)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def is_error(record: logging.LogRecord) -> bool:
    """Whether the library says that something went wrong, rather than what it thinks of it."""
    return record.levelno >= logging.ERROR


def first_line(error: Exception) -> str:
    """The beginning of a library's message, as one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
