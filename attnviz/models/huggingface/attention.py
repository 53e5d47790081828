"""Reading the attention of a transformers model, whatever its architecture, without changing it.

A short run surveys where the attention of the model is:
- behind the function that models of today look up by the name of their attention implementation;
- else in torch's own functions, where a softmax is known by its shape: such models are read through
  a tap;
- else, where it is sparse and of no common shape, in what the library returns for
  output_attentions.

The model must put out in that run what it puts out when nobody watches. If it does, its calls of
attention were understood; if not, the model is refused.
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

from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import (
    AttentionSite,
    CallResult,
    CallSource,
    Finished,
    Observer,
    SurveyedCall,
)
from attnviz.engine.observers.capture import NO_EDITS, NO_GROUPS, CaptureObserver, NumbersOfCalls
from attnviz.engine.observers.counting import CountingObserver
from attnviz.engine.observers.survey import SurveyObserver
from attnviz.engine.running import watch_modules
from attnviz.engine.tap import Tap
from attnviz.engine.values import UNPROJECTED
from attnviz.errors import ModelError
from attnviz.models.huggingface.attention_functions import (
    find_foreign_attention,
    observe_calls,
    register_functions,
    set_attention,
    use_observed_attention,
)
from attnviz.models.maps import number_layers
from attnviz.models.restore import (
    leave_as_found,
    list_configs,
    translate_failures,
)
from attnviz.models.untouched import (
    LAYERWISE,
    explain_change,
    find_allowed_change,
    find_coarsest_type,
    measure_change,
    repeat_randomness,
)
from attnviz.progress import begin_step
from attnviz.record import NORM, ROW_TOLERANCE, Kind
from attnviz.request import Request

Inputs: TypeAlias = Mapping[str, Tensor]
Lengths: TypeAlias = tuple[int | None, int | None]
"""The number of tokens of the text, and of the decoder's text; None where it is not known."""

# tokens of a survey: the two lengths differ, so that they tell which tokens attend to which
SHORT_TEXT = 5
SHORT_TARGET = 3
TEXT_INPUTS = ("input_ids", "inputs_embeds")
TARGET_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
TEXT = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
}
"""The names of inputs that are of a text; other names are of images, sound or vectors."""
KINDS: dict[Kind, str] = {
    "self": "attentions",
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}
"""The names under which the library returns the weights of each kind."""
CROSSING = (
    "encoder_attn",
    "cross_attn",
    "encoder_decoder_attention",
)
"""The ends of the names of modules of cross-attention."""
WAYS = (
    (True, False),
    (True, True),
    (False, False),
    (False, True),
)
"""The ways in which a model can be read: with our functions or not, with its cache or not."""
# the weight of a row that may lie outside of its band
BAND_TOLERANCE = 1e-3
FUNCTIONS = (
    "torch's scaled_dot_product_attention, or the library's eager attention "
    "where that cannot compute it, on up to 16 queries of each layer"
)
SPARSE = (
    "the attention of this model is sparse: "
    "it is read through the library's eager output_attentions"
)


class ModelSurvey(NamedTuple):
    """The result of a survey: what can be read, and changed, in a run of a model on such inputs."""

    sites: tuple[AttentionSite, ...]
    """The calls of attention, in their order."""
    pooled: bool
    """True if some layers have other lengths than the text, so that each length needs a survey."""


class AttentionReader:
    """A reader of the attention of one model: it surveys the model once, and then reads it."""

    def __init__(self, model: Any) -> None:
        register_functions()
        self.model = model
        self.observed = True
        """True if the model is to call our functions in place of the library's, where it can."""
        self.cached = False
        """True if the model must keep its cache of keys and values, without which it changes."""
        self.tapped = False
        """True if some attention is found in torch's functions only."""
        self.latest: ModelSurvey | None = None
        """The last survey; None before the first."""
        self.lengths: Lengths = (None, None)
        """The lengths of what was surveyed last, where that matters."""
        self.change: float | None = None
        """The relative change of the model's output when it is watched; see ``measure_change``."""

    def survey(self, inputs: Inputs) -> ModelSurvey:
        """Return the calls of attention that a run of the model on some inputs makes.

        The first time, they are found in a short run. This survey is kept for all inputs, unless
        layers of the model shorten the text: then the calls are listed anew for each length of a
        text. Raises ModelError if there are no calls, or if the model's output changes when its
        attention is observed.
        """
        if self.latest is None:
            with begin_step("looking for attention in the model"):
                self.latest = self.find_sites(inputs)
        lengths = read_lengths(inputs)
        if self.latest.pooled and self.lengths != lengths:
            calls, kinds, _ = self.watch_calls(inputs)
            sites = self.number_calls(calls, kinds, inputs)
            self.latest = ModelSurvey(sites, pooled=True)
            self.lengths = lengths
        return self.latest

    def find_sites(self, inputs: Inputs) -> ModelSurvey:
        """List the calls of attention that the model makes in a short run.

        They are found in the first way of reading that leaves the model's output as it is. Raises
        ModelError if there is no such way, or no attention.

        inputs: the inputs of the model, of which a few tokens are run.
        """
        short = shorten_inputs(inputs)
        untouched = self.run_untouched(short)
        calls, kinds = self.choose_way(short, untouched)
        if not calls:
            calls, kinds = self.list_eager_calls(short, untouched)
        if not calls:
            raise ModelError(f"{type(self.model).__name__} has no attention that could be shown")
        lengths = read_lengths(short)
        has_other_lengths = any(not has_text_lengths(call, lengths) for call in calls)
        reads_text = set(short) <= TEXT
        sites = self.number_calls(calls, kinds, short)
        return ModelSurvey(sites, pooled=has_other_lengths and reads_text)

    def choose_way(self, short: Inputs, untouched: Any) -> tuple[list[SurveyedCall], list[Kind]]:
        """Choose the first way of reading attention that leaves the model's output as it is.

        A way is with our attention functions in place of the library's or without, and with the
        model's cache of keys and values or without. The choice is kept in this object.

        short: the inputs of a short run. untouched: the output on them without an observer. Returns
        the calls of attention that are seen in the chosen way, and for each of them which tokens
        attend to which. Raises ModelError if there is no such way, or if an attention function of
        the user's hides what it computes.
        """
        foreign = find_foreign_attention(self.model)
        allowed = find_allowed_change(untouched, find_coarsest_type(self.model))
        most_calls = 0
        failure: ModelError | None = None
        for observed, cached in WAYS:
            if cached and not takes_cache(self.model.__class__):
                continue
            self.observed = observed
            self.cached = cached
            try:
                calls, kinds, outputs = self.watch_calls(short)
            # the model asks our functions for something that they do not know
            except ModelError as error:
                failure = failure or error
                continue
            most_calls = max(most_calls, len(calls))
            self.change = measure_change(untouched, outputs)
            # a user's own attention function must not be replaced by ours
            replaces_foreign = foreign and observed
            if self.change <= allowed and not replaces_foreign:
                break
        else:
            change = math.inf if self.change is None else self.change
            raise failure or explain_change(self.model, change)
        if failure and not calls:
            raise failure
        if foreign and len(calls) < most_calls:
            raise ModelError(
                f"the attention function {foreign!r} of this model is not the library's, "
                "and neither a softmax nor torch's scaled_dot_product_attention is seen in it: "
                "its weights cannot be told",
            )
        return calls, kinds

    def number_calls(
        self,
        calls: Sequence[SurveyedCall],
        kinds: Sequence[Kind],
        inputs: Inputs,
    ) -> tuple[AttentionSite, ...]:
        """Give each call of attention in a run its layer, and return the calls as sites.

        kinds: for each call, which tokens attend to which, such as "self" or "cross". inputs: the
        inputs of the run. If they are more than texts, such as images, layers are counted by the
        parts of the model, such as an image encoder.
        """
        reads_text = set(inputs) <= TEXT
        parts = name_parts(calls, kinds, towers=not reads_text)
        return number_layers(calls, kinds, parts)

    def describe_reference(self, fidelity: float | None) -> str | None:
        """Return a phrase that says what the fidelity of a capture is measured against.

        fidelity: how far the weights are from explaining the model's output, or None if that was
        not measured; then None is returned.
        """
        if fidelity is None:
            return None
        return LAYERWISE if self.tapped else FUNCTIONS

    def run_untouched(self, inputs: Inputs) -> Any:
        """Run the model without an observer, and return its output.

        Raises ModelError if it cannot run.
        """
        with run_undisturbed(self.model):
            return self.model(**inputs)

    def watch_calls(self, inputs: Inputs) -> tuple[list[SurveyedCall], list[Kind], Any]:
        """Run the model, and return the calls of attention that it makes, and its output.

        The calls are seen in our attention functions and in torch's. Returns the calls; for each of
        them, which tokens attend to which, such as "self" or "cross"; and the output.
        """
        # torch's functions are watched in this run, in order to see whether calls are found there
        self.tapped = True
        with watch_modules(self.model) as running:
            survey = SurveyObserver(running)
            outputs, tap = self.run(inputs, survey)
        self.tapped = tap is not None and tap.found > 0
        lengths = read_lengths(inputs)
        kinds = [classify_call(call, lengths, outputs) for call in survey.seen]
        return survey.seen, kinds, outputs

    def list_eager_calls(
        self,
        inputs: Inputs,
        untouched: Any,
    ) -> tuple[list[SurveyedCall], list[Kind]]:
        """List the layers of a model that is read through the weights which transformers returns.

        Transformers returns them when it computes attention in its plain, "eager" way. Such a model
        is not watched as it computes, so that of each layer no more is known than the size of its
        weights: it is listed as a call without a module and without a place in the code.

        untouched: the output of the model when nobody asks for weights. Returns the calls and, for
        each of them, the kind of attention, such as "cross". Raises ModelError if the output
        changes when the weights are asked for.
        """
        weights, outputs = self.run_eager(inputs)
        self.require_same_output(untouched, outputs)
        calls: list[SurveyedCall] = []
        kinds: list[Kind] = []
        for kind, layers in weights.items():
            for layer in layers:
                _, heads, queries, keys = layer.shape
                calls.append(SurveyedCall(None, heads, queries, keys, where="", cross=False))
                kinds.append(kind)
        return calls, kinds

    def require_same_output(self, untouched: Any, outputs: Any) -> None:
        """Raise ModelError if the model's output changes by more than rounding when it is observed.

        untouched: the output without an observer. outputs: the output with one.
        """
        self.change = measure_change(untouched, outputs)
        allowed = find_allowed_change(untouched, find_coarsest_type(self.model))
        if self.change > allowed:
            raise explain_change(self.model, self.change)

    def read_calls(
        self,
        survey: ModelSurvey,
        inputs: Inputs,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: RunEdits = NO_EDITS,
        *,
        groups: NumbersOfCalls = NO_GROUPS,
    ) -> tuple[dict[int, CallResult], str | None]:
        """Run the model, and return what a request keeps of calls of attention, with a note.

        survey: all calls that a run makes. heads: the heads to look at, by the index of their call
        in the run. request: what to keep. edits: what is changed in the run; nothing by default.
        groups: those of the keys of calls, of which the sums are kept too.
        Returns what was kept of each of these calls, by its index. The note says how the model was
        read if that is not how it was surveyed, and is None otherwise. Raises ModelError if the
        model cannot be read, or changed, as asked.
        """
        count = len(survey.sites)
        probe = CaptureObserver(heads, request, edits, stop=not self.tapped, groups=groups)
        self.run(inputs, probe)
        saw_all_calls = probe.calls == count
        # a run that was watched by our functions alone may stop when all is seen
        is_understood = saw_all_calls or not self.tapped
        if len(probe.found) == len(heads) and is_understood:
            return probe.found, None
        if request.method == NORM and saw_all_calls:
            raise ModelError(UNPROJECTED)
        if not edits.is_empty:
            raise ModelError("this model cannot be changed as it runs: its attention is sparse")
        probe = CaptureObserver(heads, request, stop=False, groups=groups)
        return self.read_eager(survey, inputs, probe)

    def read_eager(
        self,
        survey: ModelSurvey,
        inputs: Inputs,
        probe: CaptureObserver,
    ) -> tuple[dict[int, CallResult], str]:
        """Return what is kept of the attention weights that the library gives, and a note.

        survey: all calls of attention that a run makes. probe: a new observer, which keeps what is
        asked for. Returns what was kept of each of these calls, by its index. The note says how
        the weights were read. Raises ModelError if the library does not return weights for all
        calls of the survey, or if the model's output changes when they are asked for.
        """
        weights, outputs = self.run_eager(inputs)
        self.require_same_output(self.run_untouched(inputs), outputs)
        layers = {kind: iter(tensors) for kind, tensors in weights.items()}
        least_sum = 1.0
        try:
            for site in survey.sites:
                if site.repeated:  # the library returns its weights once
                    probe.calls += 1
                    continue
                layer = next(layers[site.kind])
                row_sums = layer.sum(-1)
                least_sum = min(least_sum, float(row_sums.amin()))
                probe.see_weights(layer, layer > 0, CallSource())
        except (KeyError, StopIteration):
            raise ModelError(
                "this model's attention changes with the length of the text and cannot be read",
            ) from None
        note = SPARSE
        if least_sum < 1 - ROW_TOLERANCE:
            note += f", which leaves some out: rows sum to as little as {least_sum:.2f}"
        return probe.found, note

    def run(
        self,
        inputs: Inputs,
        observer: Observer,
        run_model: Callable[[Any, Inputs], Any] | None = None,
    ) -> tuple[Any, Tap | None]:
        """Run the model while an observer sees its calls of attention, and return the result.

        run_model: a function that calls the model on the inputs; None for a plain call. The result
        is what it returns, or None if the observer ended the run because it had all that it wants.
        It is returned with the tap, which watches torch's functions for calls of attention, or with
        None if this model makes no call there.
        """
        with begin_step("reading the text", "layer", self.count_expected_calls(observer)) as step:
            return self.run_observed(inputs, CountingObserver(observer, step), run_model)

    def count_expected_calls(self, observer: Observer) -> int | None:
        """Return how many calls of attention a run makes for an observer; None before a survey."""
        return None if self.latest is None else observer.count_calls(len(self.latest.sites))

    def run_observed(
        self,
        inputs: Inputs,
        observer: Observer,
        run_model: Callable[[Any, Inputs], Any] | None,
    ) -> tuple[Any, Tap | None]:
        """Run the model as ``run`` does, without saying how far it is."""
        tap = None
        if self.tapped:
            tap = Tap(observer, partial(shape_weights, lengths=read_lengths(inputs)))
        if self.cached:
            inputs = {**inputs, "use_cache": True}  # type: ignore[dict-item]
        run_model = run_model or call_model
        with run_undisturbed(self.model):
            if self.observed:
                use_observed_attention(self.model)
            with observe_calls(observer if tap is None else tap), tap or nullcontext():
                try:
                    return run_model(self.model, inputs), tap
                except Finished:
                    return None, tap

    def run_eager(self, inputs: Inputs) -> tuple[dict[Kind, list[Tensor]], Any]:
        """Run the model with the library's eager attention, and return its weights and its output.

        The weights are a list for each kind of attention, such as "self" or "cross", with a tensor
        (1, head, query, key) for each layer.
        """
        with begin_step("reading the text"), run_undisturbed(self.model):
            set_attention(self.model, "eager")
            outputs = call_model(self.model, {**inputs, "output_attentions": True})
        lengths = read_lengths(inputs)
        weights: dict[Kind, list[Tensor]] = {}
        for kind, name in KINDS.items():
            weights[kind] = []
            for layer in getattr(outputs, name, None) or ():
                if not isinstance(layer, Tensor):
                    continue
                shaped = shape_weights(cut_padding(layer, lengths), lengths)
                if shaped is not None:
                    weights[kind].append(shaped)
        return weights, outputs


@contextmanager
def run_undisturbed(model: Any) -> Iterator[None]:
    """Let a model run in evaluation, without gradients, warnings and progress bars.

    It draws the same random numbers each time, and is restored afterwards. Raises ModelError for an
    error that the model raises.
    """
    with (
        leave_as_found(model),
        silence_library(),
        torch.no_grad(),
        repeat_randomness(model.device),
        translate_failures(model),
    ):
        for config in list_configs(list(model.modules())):
            # outputs are found by name, whatever the model's config asks for
            config.return_dict = True
        yield


def call_model(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a model on inputs by name, and return its output.

    Its cache of keys and values, which only generation needs, is off unless the inputs turn it on.
    """
    options = {}
    if takes_cache(model.__class__):
        options["use_cache"] = False
    return model(**{**options, **inputs})


@cache
def takes_cache(kind: type) -> bool:
    """Return True if models of a class can be told to keep no cache of keys and values."""
    parameters = signature(kind.forward).parameters  # type: ignore[attr-defined]
    return "use_cache" in parameters


def shorten_inputs(inputs: Inputs) -> Inputs:
    """Return the inputs of a short run: texts of a few tokens, cut from the texts or repeated.

    If some inputs are of images, sound or vectors, only what a decoder reads is shortened. The text
    and the decoder's text get different lengths, which tell the calls of attention apart.
    """
    if set(inputs) <= TEXT and "input_ids" in inputs:
        ids = inputs["input_ids"].repeat(1, SHORT_TEXT)
        short = {"input_ids": ids[:1, :SHORT_TEXT]}
    else:
        short = {name: value for name, value in inputs.items() if name != "decoder_attention_mask"}
    if "decoder_input_ids" in inputs:
        text_length, _ = read_lengths(short)
        # another length than that of the text
        count = SHORT_TARGET if text_length != SHORT_TARGET else SHORT_TARGET - 1
        ids = inputs["decoder_input_ids"].repeat(1, count)
        short["decoder_input_ids"] = ids[:1, :count]
    return short


def read_lengths(inputs: Inputs) -> Lengths:
    """Return the number of tokens of the text, and of the decoder's text; None where unknown."""
    return read_length(inputs, TEXT_INPUTS), read_length(inputs, TARGET_INPUTS)


def read_length(inputs: Inputs, names: Sequence[str]) -> int | None:
    """Return the number of tokens of the first input that has one of some names; None without."""
    for name in names:
        if name in inputs:
            return int(inputs[name].shape[1])
    return None


def find_call_size(site: AttentionSite, inputs: Inputs) -> tuple[int, int]:
    """Return the numbers of queries and of keys of a call of attention in a run on some inputs.

    They are the lengths of the texts in the inputs, as far as these are known, and otherwise what
    they were in the run in which the call was found.

    site: the call, which tells which tokens attend to which.
    """
    text, target = read_lengths(inputs)
    queries, keys = site.size
    if set(inputs) <= TEXT and text is not None:
        queries, keys = text, text
    if target is None or site.kind in ("self", "encoder"):
        return queries, keys
    return target, target if site.kind == "decoder" else keys


def classify_call(call: SurveyedCall, lengths: Lengths, outputs: Any) -> Kind:
    """Return which tokens attend to which in a call of attention.

    The numbers of its queries and keys tell, if the length of the decoder's text is known.
    Otherwise the library's names do: those of the model's outputs, and of the calling module.

    lengths: the numbers of tokens of the text and of the decoder's text. outputs: the model's
    output. Returns "encoder", "decoder" or "cross" for an encoder-decoder, and "self" or "cross"
    for other models.
    """
    _, target = lengths
    where = call.where.lower()
    is_square = call.queries == call.keys
    if target is not None:
        if call.queries != target:
            return "encoder"
        return "decoder" if call.keys == target else "cross"
    if hasattr(outputs, "encoder_attentions") and hasattr(outputs, "decoder_attentions"):
        # a module such as decoder.layers.0.encoder_attn belongs to the decoder
        before_encoder, _, _ = where.partition("encoder")
        if "decoder" not in before_encoder:
            return "encoder"
        return "decoder" if is_square and not where.endswith(CROSSING) else "cross"
    if is_square:
        return "self"
    may_cross = hasattr(outputs, "cross_attentions") or not hasattr(outputs, "attentions")
    return "cross" if may_cross or "cross" in where else "self"


def has_text_lengths(call: SurveyedCall, lengths: Lengths) -> bool:
    """Return True if queries and keys of a call are as many as the tokens of the texts."""
    return (call.queries, call.keys) in list_text_sizes(lengths)


def list_text_sizes(lengths: Lengths) -> set[tuple[int | None, int | None]]:
    """List the numbers of queries and keys that attention over texts of some lengths can have.

    lengths: the number of tokens of the text and of the decoder's text.
    """
    text, target = lengths
    return {(text, text), (target, target), (target, text)}


def name_parts(
    calls: Sequence[SurveyedCall],
    kinds: Sequence[Kind],
    *,
    towers: bool,
) -> list[str]:
    """Name the part of a model, or of its input, that each call of attention belongs to.

    A part of the model is a stack of layers, such as an image encoder. A module that calls
    attention several times in one run of itself does so for parts of its input, such as the images
    of a batch, which are counted from 1. Returns a name for each call, which is empty if there is
    one part only.

    kinds: for each call, which tokens attend to which. towers: True if stacks of layers read
    different things, such as images and texts, so that a stack is named in any case.
    """
    run_counts: Counter[tuple[int, Kind]] = Counter()
    input_parts: list[int] = []
    # the entry of a call is the number of the run of its module, or 0 if that is not known
    for call, kind in zip(calls, kinds, strict=True):
        run = call.entry, kind
        if call.entry and not call.repeated:
            run_counts[run] += 1
        input_parts.append(max(run_counts[run], 1))
    names = [name_tower(call.where) for call in calls]
    part_counts: dict[str, int] = {}
    for name, number in zip(names, input_parts, strict=True):
        part_counts[name] = max(part_counts.get(name, 0), number)
    if not towers:
        names = ["" if part_counts[name] == 1 else name for name in names]
    parts: list[str] = []
    for name, number in zip(names, input_parts, strict=True):
        count = part_counts.get(name, 1)
        suffix = f" (part {number} of {count} of its input)" if count > 1 else ""
        parts.append(name + suffix)
    return parts


def name_tower(where: str) -> str:
    """Return the name of the stack of layers that a module is in.

    where: the dotted name of the module in the model, such as "vision.layers.3.attention". The name
    of the stack is what stands before the first number.
    """
    words: list[str] = []
    for word in where.split("."):
        if word.isdigit():
            break
        words.append(word)
    return ".".join(words)


def shape_weights(weights: Tensor, lengths: Lengths) -> Tensor | None:
    """Return the result of a softmax as (1, head, query, key) if it can be attention over texts.

    Its shape tells. It may be (head, query, key), with or without a first axis of one text, or the
    band of keys around each query that a sparse encoder computes, (1, query, head, 2 w + 1). None
    is returned for anything else.

    lengths: the number of tokens of the text and of the decoder's text.
    """
    text, _ = lengths
    if weights.ndim in (3, 4) and tuple(weights.shape[-2:]) in list_text_sizes(lengths):
        return weights if weights.ndim == 4 else weights[None]
    if weights.ndim != 4 or text is None:
        return None
    has_odd_width = weights.shape[3] % 2 == 1
    if has_odd_width and weights.shape[1] >= text:
        return unfold_band(weights, text)
    return None


def cut_padding(weights: Tensor, lengths: Lengths) -> Tensor:
    """Return the weights of self-attention without the padding of the text.

    A sparse encoder pads its text to whole blocks. weights: (1, head, query, key); those with other
    axes, or no more queries and keys than tokens, are returned as they are. lengths: the number of
    tokens of the text, and of the decoder's text.
    """
    text, _ = lengths
    if weights.ndim == 4 and text is not None and weights.shape[2] == weights.shape[3] > text:
        return weights[..., :text, :text]
    return weights


def unfold_band(band: Tensor, length: int) -> Tensor | None:
    """Return the weights of a band of keys around each query as a matrix of all queries and keys.

    Longformer computes such bands: w keys before the query, its own, and w keys after it.

    band: (1, query, head, 2 w + 1), where the queries may be more than the text has tokens. length:
    the number of tokens, N. Returns the weights (1, head, N, N), 0 outside of the band; None if
    weight lies on keys outside of the text, so that the numbers are no such band.
    """
    half = band.shape[3] // 2
    positions = torch.arange(length, device=band.device)
    distances = positions - positions[:, None]
    # the position of a key in the band of a query, (N, N)
    columns = distances + half
    is_inside = (columns >= 0) & (columns <= 2 * half)
    rows = band[0, :length].transpose(0, 1)  # (H, N, 2 w + 1)
    columns = columns.clamp(0, 2 * half).expand(len(rows), -1, -1)
    dense = rows.gather(2, columns) * is_inside
    lost = rows.float().sum(-1) - dense.float().sum(-1)
    is_band = float(lost.abs().max()) < BAND_TOLERANCE
    return dense[None] if is_band else None


@contextmanager
def silence_library() -> Iterator[None]:
    """Keep warnings and progress bars of transformers off stderr, and restore its settings.

    Its errors are still logged.
    """
    shows_bars = transformers.logging.is_progress_bar_enabled()
    # its handlers are filtered, since to set its level would clear the caches of all loggers
    handlers = logging.getLogger("transformers").handlers
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
        if shows_bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def is_error(record: logging.LogRecord) -> bool:
    """Return True if the library logs an error, rather than a warning or a remark."""
    return record.levelno >= logging.ERROR
