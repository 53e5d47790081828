"""How the attention of a transformers model is read, whatever its architecture, and the model left as it was found.

A short run surveys where its attention is:
- behind the function that models of today look up by the name of their attention implementation;
- else in torch's own functions, of which a softmax is known by its shape: these models are read through a tap;
- else, where it is sparse and of no common shape, in what the library returns for output_attentions.

What the model says in that run must be what it says untouched: the calls were understood, or the model is refused.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from inspect import signature
from typing import Any, NamedTuple, TypeAlias

import torch
import transformers
from torch import Tensor

from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import Finished, Found, Observer, Seen, Site, Source
from attnviz.engine.observers.capture import NO_EDITS, Probe
from attnviz.engine.observers.survey import Survey
from attnviz.engine.running import follow
from attnviz.engine.tap import Tap
from attnviz.engine.values import UNPROJECTED
from attnviz.errors import ModelError
from attnviz.models.huggingface.attention_functions import (
    find_foreign_attention,
    observe,
    register,
    set_attention,
    use_observed_attention,
)
from attnviz.models.maps import number_layers
from attnviz.models.restore import as_found, configs, translate_failures
from attnviz.models.untouched import (
    LAYERWISE,
    allowed_change,
    coarsest_type,
    explain_change,
    measure_change,
    same_randomness,
)
from attnviz.record import NORM, ROW_TOLERANCE, Kind
from attnviz.request import Request

Inputs: TypeAlias = Mapping[str, Tensor]
SHORT = (
    5,
    3,
)  # tokens of a survey: of the text, and of the decoder's, so that lengths tell what attends to what
TEXT = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
}
KINDS: dict[Kind, str] = {
    "self": "attentions",
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}
CROSSING = (
    "encoder_attn",
    "cross_attn",
    "encoder_decoder_attention",
)  # how modules of cross-attention are called
WAYS = (
    (True, False),
    (True, True),
    (False, False),
    (False, True),
)  # in which a model is read: observed, cached
FUNCTIONS = (
    "torch's scaled_dot_product_attention, or the library's eager attention where that cannot compute it, "
    "on up to 16 queries of each layer"
)
SPARSE = "the attention of this model is sparse: it is read through the library's eager output_attentions"


class Surveyed(NamedTuple):
    """What a survey of a model tells: what can be read, and changed, in a run on such inputs."""

    sites: tuple[Site, ...]
    """The calls of attention, in their order."""
    pooled: bool
    """Whether some layers have other lengths than the text, so that each length needs a survey."""


class Reading:
    """Surveys and reads one model."""

    def __init__(self, model: Any) -> None:
        register()
        self.model = model
        self.observed = True
        """Whether the model is to call our functions in the place of the library's, as far as it takes them."""
        self.cached = False
        """Whether the model computes something else without its cache of keys and values, so that it must keep one."""
        self.tapped = False
        """Whether some attention is found in torch's functions only."""
        self.surveyed: Surveyed | None = None
        """The last survey; None before the first."""
        self.lengths: tuple[int | None, int | None] = (None, None)
        """The lengths of what was surveyed last, where that matters."""
        self.change: float | None = None
        """How much what the model says changes when it is watched, as a share of it; see ``measure_change``."""

    def survey(self, inputs: Inputs) -> Surveyed:
        """Return the calls of attention that a run on such inputs makes, looked for once.

        Raises ModelError if there are none, or if the model says something else when it is watched.
        """
        if self.surveyed is None:
            self.surveyed = self.find_sites(inputs)
        if self.surveyed.pooled and self.lengths != lengths(inputs):
            seen, kinds, _ = self.look_around(inputs)
            sites = self.number(seen, kinds, inputs)
            self.surveyed, self.lengths = Surveyed(sites, pooled=True), lengths(inputs)
        return self.surveyed

    def find_sites(self, inputs: Inputs) -> Surveyed:
        """Survey a short run, in the first way in which the model says what it says untouched. Raises ModelError."""
        short = shortened(inputs)
        untouched = self.run_untouched(short)
        seen, kinds = self.find_way(short, untouched)
        if not seen:
            seen, kinds = self.look_at_eager(short, untouched)
        if not seen:
            raise ModelError(f"{type(self.model).__name__} has no attention that could be shown")
        pooled = any(not fits(call, lengths(short)) for call in seen) and set(short) <= TEXT
        return Surveyed(self.number(seen, kinds, short), pooled)

    def find_way(self, short: Inputs, untouched: Any) -> tuple[list[Seen], list[Kind]]:
        """Take the first way in which the model says what it says untouched, and return the calls seen in it.

        Raises ModelError if there is no such way, or if a function of the user's hides what it computes.
        """
        foreign = find_foreign_attention(self.model)
        allowed = allowed_change(untouched, coarsest_type(self.model))
        most_calls, failure = 0, None
        for observed, cached in WAYS:
            if cached and not takes_cache(self.model.__class__):
                continue
            self.observed, self.cached = observed, cached
            try:
                seen, kinds, outputs = self.look_around(short)
            except ModelError as error:  # our functions do not know what is asked of them
                failure = failure or error
                continue
            most_calls = max(most_calls, len(seen))
            self.change = measure_change(untouched, outputs)
            is_own_code = not (foreign and observed)
            if self.change <= allowed and is_own_code:
                break
        else:
            raise failure or explain_change(
                self.model, math.inf if self.change is None else self.change
            )
        if failure and not seen:
            raise failure
        if foreign and len(seen) < most_calls:
            raise ModelError(
                f"the attention function {foreign!r} of this model is not the library's, and neither a softmax nor "
                "torch's scaled_dot_product_attention is seen in it: its weights cannot be told"
            )
        return seen, kinds

    def number(
        self, seen: Sequence[Seen], kinds: Sequence[Kind], inputs: Inputs
    ) -> tuple[Site, ...]:
        """Give each call its layer, in the part of the model that it belongs to."""
        return number_layers(seen, kinds, name_parts(seen, kinds, towers=not set(inputs) <= TEXT))

    def describe_reference(self, measured: float | None) -> str | None:
        """Return what the fidelity of a capture was measured against; None where it was not measured."""
        if measured is None:
            return None
        return LAYERWISE if self.tapped else FUNCTIONS

    def run_untouched(self, inputs: Inputs) -> Any:
        """Return what the model says as it was handed over. Raises ModelError if it cannot run."""
        with undisturbed(self.model):
            return self.model(**inputs)

    def look_around(self, inputs: Inputs) -> tuple[list[Seen], list[Kind], Any]:
        """Return the calls of the interface and of torch's functions, their kinds, and what the model says."""
        self.tapped = True
        with follow(self.model) as running:
            survey = Survey(running)
            outputs, tap = self.run(inputs, survey)
        self.tapped = tap is not None and tap.found > 0
        kinds = [kind_of(call, lengths(inputs), outputs) for call in survey.seen]
        return survey.seen, kinds, outputs

    def look_at_eager(self, inputs: Inputs, untouched: Any) -> tuple[list[Seen], list[Kind]]:
        """Return the layers that the library tells of, and of which kind each is."""
        weights, outputs = self.eager(inputs)
        self.require_same(untouched, outputs)
        pairs = [(kind, part) for kind, parts in weights.items() for part in parts]
        seen = [
            Seen(None, part.shape[1], part.shape[2], part.shape[3], "", False) for _, part in pairs
        ]
        return seen, [kind for kind, _ in pairs]

    def require_same(self, untouched: Any, outputs: Any) -> None:
        """Raise ModelError unless the model said the same as untouched, but for rounding."""
        self.change = measure_change(untouched, outputs)
        if self.change > allowed_change(untouched, coarsest_type(self.model)):
            raise explain_change(self.model, self.change)

    def read(
        self,
        surveyed: Surveyed,
        inputs: Inputs,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: Edits = NO_EDITS,
    ) -> tuple[dict[int, Found], str | None]:
        """Run the model, and return what was found at the numbers of the calls.

        The note says how the model was read if that is not how it was surveyed, and is None otherwise.
        """
        count = len(surveyed.sites)
        probe = Probe(heads, request, edits, stop=not self.tapped)
        self.run(inputs, probe)
        if len(probe.found) == len(heads) and (not self.tapped or probe.calls == count):
            return probe.found, None
        if request.method == NORM and probe.calls == count:
            raise ModelError(UNPROJECTED)
        if not edits.none:
            raise ModelError("this model cannot be changed as it runs: its attention is sparse")
        return self.read_eager(surveyed, inputs, heads, request)

    def read_eager(
        self,
        surveyed: Surveyed,
        inputs: Inputs,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
    ) -> tuple[dict[int, Found], str]:
        """The same from what the library returns, and what is to be said of that."""
        probe = Probe(heads, request, stop=False)
        layers, outputs = self.eager(inputs)
        self.require_same(self.run_untouched(inputs), outputs)
        parts = {kind: iter(weights) for kind, weights in layers.items()}
        least = 1.0
        try:
            for site in surveyed.sites:
                if site.repeated:  # the library tells of its weights once
                    probe.calls += 1
                    continue
                weights = next(parts[site.kind])
                least = min(least, float(weights.sum(-1).amin()))
                probe.given(weights, weights > 0, Source())
        except (KeyError, StopIteration):
            raise ModelError(
                "this model's attention changes with the length of the text and cannot be read"
            ) from None
        lacking = (
            f", which leaves some out: rows sum to as little as {least:.2f}"
            if least < 1 - ROW_TOLERANCE
            else ""
        )
        return probe.found, SPARSE + lacking

    def run(
        self, inputs: Inputs, observer: Observer, how: Callable[[Any, Inputs], Any] | None = None
    ) -> tuple[Any, Tap | None]:
        """Run the model before an observer: its result, or None once the observer has all it wants, and the tap."""
        tap = Tap(observer, partial(fit, lengths=lengths(inputs))) if self.tapped else None
        if self.cached:
            inputs = {**inputs, "use_cache": True}  # type: ignore[dict-item]
        with undisturbed(self.model):
            if self.observed:
                use_observed_attention(self.model)
            with observe(observer if tap is None else tap), tap or nullcontext():
                try:
                    return (how or forward)(self.model, inputs), tap
                except Finished:
                    return None, tap

    def eager(self, inputs: Inputs) -> tuple[dict[Kind, list[Tensor]], Any]:
        """Return weights (1, H, N, M) by kind, layer after layer, of the library, and what the model says."""
        with undisturbed(self.model):
            set_attention(self.model, "eager")
            outputs = forward(self.model, {**inputs, "output_attentions": True})
        weights: dict[Kind, list[Tensor]] = {}
        for kind, name in KINDS.items():
            layers = [
                part for part in getattr(outputs, name, None) or () if isinstance(part, Tensor)
            ]
            parts = [fit(unpadded(part, lengths(inputs)), lengths(inputs)) for part in layers]
            weights[kind] = [part for part in parts if part is not None]
        return weights, outputs


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Let a model run in evaluation, without gradients and talk. Raises ModelError for whatever it raises itself."""
    with (
        as_found(model),
        quiet_library(),
        torch.no_grad(),
        same_randomness(model.device),
        translate_failures(model),
    ):
        for config in configs(list(model.modules())):
            config.return_dict = (
                True  # outputs are found by name, whatever the model's config asks for
            )
        yield


def forward(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Call the model, without the cache of keys and values that only generation needs, unless the inputs ask for it."""
    options = {"use_cache": False} if takes_cache(model.__class__) else {}
    return model(**{**options, **inputs})


@cache
def takes_cache(kind: type) -> bool:
    """Whether models of a class can be told to keep no cache."""
    return "use_cache" in signature(kind.forward).parameters  # type: ignore[attr-defined]


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
    text, target = (
        next((inputs[name].shape[1] for name in names if name in inputs), None) for names in sides
    )
    return text, target


def sizes_of(site: Site, inputs: Inputs) -> tuple[int, int]:
    """Queries and keys of a call, as the inputs tell if they are texts, else as they were in the survey."""
    text, target = lengths(inputs)
    n, m = (text, text) if set(inputs) <= TEXT and text is not None else site.size
    if target is None or site.kind in ("self", "encoder"):
        return n, m
    return target, target if site.kind == "decoder" else m


def kind_of(call: Seen, lengths: tuple[int | None, int | None], outputs: Any) -> Kind:
    """Return which tokens attend to which, by the lengths of the call.

    Where no lengths tell, the library's names do: those of the model's outputs, and of the module that calls.
    """
    _, target = lengths
    where = call.where.lower()
    square = call.queries == call.keys
    if target is not None:
        if call.queries != target:
            return "encoder"
        return "decoder" if call.keys == target else "cross"
    if hasattr(outputs, "encoder_attentions") and hasattr(outputs, "decoder_attentions"):
        if "decoder" not in where.partition("encoder")[0]:
            return "encoder"
        return "decoder" if square and not where.endswith(CROSSING) else "cross"
    crosses = hasattr(outputs, "cross_attentions") or not hasattr(outputs, "attentions")
    return "cross" if not square and (crosses or "cross" in where) else "self"


def fits(call: Seen, lengths: tuple[int | None, int | None]) -> bool:
    """Return whether the queries and keys of a call are those of the text, or of the target."""
    text, target = lengths
    return (call.queries, call.keys) in {(text, text), (target, target), (target, text)}


def name_parts(seen: Sequence[Seen], kinds: Sequence[Kind], *, towers: bool) -> list[str]:
    """Return the part of the model, or of its input, that each call belongs to; empty names where that is no question.

    towers: whether what the parts of the model read are different things, as images and texts are. A module that calls
    attention several times as it runs once does so for parts of its input, such as the images of a batch.
    """
    earlier: Counter[tuple[int, Kind]] = Counter()
    numbers: list[int] = []
    for call, kind in zip(seen, kinds, strict=True):
        entry = call.entry, kind
        earlier[entry] += bool(call.entry) and not call.repeated
        numbers.append(max(earlier[entry], 1))
    names = [name_tower(call.where) for call in seen]
    most = {
        name: max(number for number, its in zip(numbers, names, strict=True) if its == name)
        for name in names
    }
    if not towers:
        names = ["" if most[name] == 1 else name for name in names]
    return [
        f"{name} (part {number} of {most[name]} of its input)" if most.get(name, 1) > 1 else name
        for name, number in zip(names, numbers, strict=True)
    ]


def name_tower(where: str) -> str:
    """Return the stack of layers that a module is in: what comes before the first number in its name."""
    words = where.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), len(words))
    return ".".join(words[:first])


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
    handlers = logging.getLogger(
        "transformers"
    ).handlers  # to set its level would clear the caches of all loggers
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
