"""What the library itself says of a model's attention, and whether a capture says the same."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from attnviz.record import Capture
from tests.architectures import dense, set_eager

TOLERANCE = 1e-5
SAME_OUTPUT = 1e-3  # as a share of the largest number: less than a mask or a scale changes
KINDS = {
    "attentions": "self",
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross",
}
ALIKE = {
    None: ("self", "encoder", "decoder", "cross"),
    "self": ("self", "encoder", "decoder"),
}  # of no side
SOFTMAXES = "aten._softmax.default", "aten._safe_softmax.default"


class NoOracleError(Exception):
    """The library says nothing of a model's attention."""


class Named(NamedTuple):
    """Weights (head, query, key) of a layer in double precision, and which kind the library says they are of."""

    kind: str | None
    weights: Tensor


class Called(NamedTuple):
    """Weights (head, query, key) that an eager function of the library returns, and those that it multiplies with."""

    returned: Tensor
    used: Tensor


class Shown(NamedTuple):
    """A layer of a capture."""

    kind: str
    layer: int
    weights: Tensor
    visible: Tensor


@dataclass
class Oracle:
    """Weights that a capture must show, and those that it may show besides."""

    required: list[Named]
    permitted: list[Tensor]
    source: str
    """Where the required ones are from."""


class Softmaxes(TorchDispatchMode):
    """Computes every softmax of attention's shape a second time, in double precision.

    With torch's plain kernel for ``scaled_dot_product_attention``, all attention goes through them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []
        self.largest = 0.0
        """Of the scores that are not hidden."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch compute, and look at the scores if it is a softmax."""
        if str(func) in SOFTMAXES and args[0].ndim in (3, 4):
            scores = args[0].detach().double()
            self.results.append(scores.softmax(args[1]).nan_to_num(0.0))
            seen = scores[scores > -1e4].abs()
            self.largest = max(self.largest, float(seen.max()) if seen.numel() else 0.0)
        return func(*args, **(kwargs or {}))

    @property
    def spread(self) -> float:
        """How far the weights are from uniform: the largest above its mean."""
        return max(
            (float(part.max() - part.mean()) for part in self.results if part.shape[-1] > 1),
            default=1.0,
        )


def run_model(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """Run a model on inputs, with torch's plain kernel of attention; what is drawn at random is always the same."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return model(**inputs, **options)


def outputs_of(value: Any) -> list[Tensor]:
    """Return the numbers that a model puts out, but for its attention."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [
            part
            for name, inner in value.items()
            if "attentions" not in name
            for part in outputs_of(inner)
        ]
    if isinstance(value, (list, tuple)):
        return [part for inner in value for part in outputs_of(inner)]
    return []


def ask_library(model: Any, inputs: Mapping[str, Any]) -> Oracle:
    """Return what a model's attention is. Raises NoOracleError.

    Its layers are those that the library returns for ``output_attentions`` from a copy with eager attention, and those
    that its eager functions return in that run. Where that copy computes something else than the model itself does, or
    returns no weights of each head (SqueezeBERT returns scores, WavLM a mean), they are the softmaxes of the model's
    own run, computed a second time in double precision, of all scores that have the shape of attention.
    """
    own = Softmaxes()
    with own:
        outputs = outputs_of(run_model(copy.deepcopy(model), inputs))
    eager, returned, calls = run_eager(model, inputs)
    permitted = [part for whole in (*eager.results, *own.results) for part in split_texts(whole)]
    if returned is not None and same_numbers(outputs_of(returned), outputs):
        layers = merge_layers(named_layers(returned, model), calls)
        if layers and all(are_of_heads(layer.weights) for layer in layers):
            return Oracle(layers, permitted, "eager weights")
    layers = [
        Named(None, part)
        for whole in own.results
        if is_attention(whole)
        for part in split_texts(whole)
    ]
    if not layers:
        raise NoOracleError("the library computes no attention")
    return Oracle(layers, permitted, "softmax of the scores")


def run_eager(model: Any, inputs: Mapping[str, Any]) -> tuple[Softmaxes, Any, list[Called]]:
    """Run an eager copy: its softmaxes, what it returned (None if it cannot run), and what its functions returned."""
    for options in (
        {"output_attentions": True, "return_dict": True},
        {"output_attentions": True},
        {},
    ):
        softmaxes, calls = Softmaxes(), []
        twin = copy.deepcopy(model)
        set_eager(twin)
        try:
            with recorded_calls(calls), softmaxes:
                return softmaxes, run_model(twin, inputs, **options), calls
        except Exception:  # models refuse the options in many ways
            continue
    return Softmaxes(), None, []


@contextmanager
def recorded_calls(calls: list[Called]) -> Iterator[None]:
    """Keep the weights that the library's eager functions return."""
    name = "eager_attention_forward"
    modules = [
        module for path, module in sys.modules.items() if path.startswith("transformers.models.")
    ]
    before = [(module, getattr(module, name)) for module in modules if hasattr(module, name)]
    for module, function in before:
        setattr(module, name, keeping(function, calls))
    try:
        yield
    finally:
        for module, function in before:
            setattr(module, name, function)


def keeping(function: Callable[..., Any], calls: list[Called]) -> Callable[..., Any]:
    """Return an attention function that also keeps the weights (text, head, query, key) it returns."""

    def attend(module: Any, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        output, weights = function(module, query, key, *args, **options)
        if weights is not None:
            returned = weights.detach().double().nan_to_num(0.0)
            mask = args[1] if len(args) > 1 else options.get("attention_mask")
            used = returned * sink_share(module, query, key, mask, options.get("scaling"))
            calls.extend(map(Called, split_texts(returned), split_texts(used)))
        return output, weights

    return attend


def sink_share(
    module: Any, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Return what a sink leaves of the rows of weights, where the library lets it take its share of the output only.

    So do GraniteSWA and GraniteMoeSWA: (text, head, query, 1); 1 for all other models.
    """
    if not type(module).__name__.endswith("SWAAttention"):
        return torch.ones((), dtype=torch.double)
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.double() @ keys.double().mT * scale
    if mask is not None:
        scores = scores + mask
    total = scores.logsumexp(-1, keepdim=True)
    return (total - module.sinks.detach().double().view(1, -1, 1, 1)).sigmoid()


def named_layers(returned: Any, model: Any) -> list[Named]:
    """Return the attention in what a model returned, in the library's order."""
    layers: list[Named] = []
    banded = hasattr(model.config, "attention_window")  # Longformer, LED
    for name, kind in KINDS.items():
        given = returned.get(name) if isinstance(returned, Mapping) else None
        for weights in flatten(given):
            whole = weights.detach().double().nan_to_num(0.0)
            whole = dense(whole) if banded and kind in ("self", "encoder") else whole
            layers += [Named(kind, part) for part in split_texts(whole)]
    return layers


def merge_layers(named: Sequence[Named], calls: Sequence[Called]) -> list[Named]:
    """Return the layers that the library names, with the weights that are used in them, and those without a name."""
    layers: list[Named] = []
    left = list(calls)
    for layer in named:
        at = next(
            (at for at, call in enumerate(left) if nearly_equal(call.returned, layer.weights)), None
        )
        layers.append(layer if at is None else Named(layer.kind, left.pop(at).used))
    return layers + [Named(None, call.used) for call in left]


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples that may be weights."""
    if isinstance(value, Tensor):
        return [value] if value.ndim in (3, 4) else []
    if isinstance(value, (list, tuple)):
        return [part for inner in value for part in flatten(inner)]
    return []


def split_texts(weights: Tensor) -> list[Tensor]:
    """Split weights of several texts, windows or the like into those of each: (head, query, key)."""
    return list(weights) if weights.ndim == 4 else [weights]


def is_attention(weights: Tensor) -> bool:
    """Tell whether the result of a softmax has the shape of attention, not that of a choice between experts."""
    several = weights.ndim == 4 or weights.shape[0] > 1  # heads may be counted as texts
    return several and min(weights.shape[-2:]) > 1


def are_of_heads(weights: Tensor) -> bool:
    """Tell whether weights are those of each head, not scores, and not the mean over heads once for each (WavLM)."""
    shares = bool(weights.min() >= 0) and bool(weights.sum(-1).max() < 1 + SAME_OUTPUT)
    mean = len(weights) > 1 and bool((weights == weights[:1]).all())
    return shares and not mean


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two layers are the same."""
    return one.shape == other.shape and bool((one - other).abs().max() < 1e-6)


def same_numbers(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Tell whether two runs of a model put out the same numbers. A run with options may put out more."""
    for first, second in zip(one, other, strict=False):
        if first.shape != second.shape or not torch.equal(first.isnan(), second.isnan()):
            return False
        scale = float(second.nan_to_num().abs().max()) if second.numel() else 0.0
        if scale and float((first - second).nan_to_num().abs().max()) > SAME_OUTPUT * scale:
            return False
    return True


def compare_capture(capture: Capture, oracle: Oracle) -> tuple[bool, str]:
    """Tell whether a capture shows all that it must and nothing that it may not, and a line about it."""
    shown = layers_of(capture)
    required = join_merged(drop_repeated(oracle.required), shown)
    sizes = f"{len(shown)} shown, {len(oracle.required)} in the oracle ({oracle.source})"
    for number, layer in enumerate(required):
        nearest = find_nearest(layer.weights, shown)
        if nearest is None:
            return False, f"no layer is shown for number {number}, {describe(layer)}; {sizes}"
        difference, at = nearest
        if difference > TOLERANCE:
            return (
                False,
                f"number {number}, {describe(layer)}, is {difference:.1e} from what is shown; {sizes}",
            )
        if shown[at].kind not in kinds_alike(layer):
            return (
                False,
                f"number {number}, {describe(layer)}, is shown as {shown[at].kind}; {sizes}",
            )
        del shown[at]
    for layer in shown:
        nearest = min(
            (distance(layer, part) for part in candidates(layer, oracle.permitted)),
            default=float("inf"),
        )
        if nearest > TOLERANCE:
            return (
                False,
                f"{layer.kind} L{layer.layer} is shown and is {nearest:.1e} from any softmax; {sizes}",
            )
    return True, sizes


def kinds_alike(layer: Named) -> tuple[str | None, ...]:
    """Return the kinds that a capture may call a layer of the library by."""
    kinds = ALIKE.get(layer.kind, (layer.kind,))
    reduced = (
        layer.weights.shape[-2] != layer.weights.shape[-1]
    )  # the library calls it self-attention nevertheless
    return (*kinds, "cross") if layer.kind == "self" and reduced else kinds


def drop_repeated(required: Sequence[Named]) -> list[Named]:
    """Leave out calls of a function whose weights are those of another layer: they are used twice (DiffLlama)."""
    kept: list[Named] = []
    for layer in required:
        is_known = any(nearly_equal(layer.weights, other.weights) for other in kept)
        if layer.kind is not None or not is_known:
            kept.append(layer)
    return kept


def join_merged(required: Sequence[Named], shown: Sequence[Shown]) -> list[Named]:
    """Join the layers that the library splits where one softmax goes over the decoder's keys and the encoder's.

    A model does so if its capture has layers of so many keys, and none of the decoder's alone (T5Gemma 2).
    """
    decoders = [layer for layer in required if layer.kind == "decoder"]
    crosses = [layer for layer in required if layer.kind == "cross"]
    joined = [
        Named("cross", torch.cat([decoder.weights, cross.weights], -1))
        for decoder, cross in zip(decoders, crosses, strict=False)
    ]
    shapes = {tuple(layer.weights.shape) for layer in shown}
    if not joined or any(tuple(layer.weights.shape) in shapes for layer in decoders):
        return list(required)
    if not all(tuple(layer.weights.shape) in shapes for layer in joined):
        return list(required)
    others = [layer for layer in required if layer.kind not in ("decoder", "cross")]
    known = [layer.weights for layer in others]
    return [
        *others,
        *(
            layer
            for layer in joined
            if not any(nearly_equal(layer.weights, part) for part in known)
        ),
    ]


def layers_of(capture: Capture) -> list[Shown]:
    """Return the layers of a capture, of all kinds."""
    layers: list[Shown] = []
    for part in capture.maps:
        for number, layer in enumerate(part.layers):
            weights = torch.from_numpy(part.weights[number]).double()
            layers.append(
                Shown(part.kind, layer, weights, torch.from_numpy(part.visible[number].copy()))
            )
    return layers


def find_nearest(weights: Tensor, shown: Sequence[Shown]) -> tuple[float, int] | None:
    """Return how far the nearest layer shown is from some weights, and which it is; None if none has their shape."""
    same = [at for at, layer in enumerate(shown) if layer.weights.shape == weights.shape]
    if not same:  # the library may leave out what it put before the text (CPM-Ant's prompt)
        ends = [crop_to_end(layer, weights.shape) for layer in shown]
        return min(
            ((distance(layer, weights), at) for at, layer in enumerate(ends) if layer is not None),
            default=None,
        )
    return min(((distance(shown[at], weights), at) for at in same), default=None)


def crop_to_end(layer: Shown, shape: Sequence[int]) -> Shown | None:
    """Return the last queries and keys of a layer, so many as a shape has; None if it has fewer, or other heads."""
    heads, queries, keys = shape
    if (
        layer.weights.shape[0] != heads
        or layer.weights.shape[1] <= queries
        or layer.weights.shape[2] <= keys
    ):
        return None
    window = (slice(None), slice(-queries, None), slice(-keys, None))
    return layer._replace(weights=layer.weights[window], visible=layer.visible[window])


def candidates(layer: Shown, permitted: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the softmaxes of a layer's shape; of one with a sink, a key more, all but the sink."""
    for weights in permitted:
        if weights.shape == layer.weights.shape:
            yield weights
        elif weights[..., :-1].shape == layer.weights.shape:
            yield weights[..., :-1]


def distance(layer: Shown, expected: Tensor) -> float:
    """Return the largest difference, rows aside that see nothing: there the library's weights mean nothing."""
    rows = layer.visible.any(-1)
    if not rows.any():
        return float("inf")
    return float((layer.weights - expected)[rows].abs().max())


def describe(layer: Named) -> str:
    """Return a layer's kind, if the library names it, and its shape."""
    return " ".join(
        [*([layer.kind] if layer.kind else []), "x".join(map(str, layer.weights.shape))]
    )
