"""The forward of a transformer, written once for every family, for NumPy arrays and torch tensors.

A family differs from another in sizes and switches, which an ``Architecture`` holds, and in which
parameters a layer has: a norm that has no parameters here is left out. Attention itself is that of
``attnviz.layer``.

The parameters of a layer are arrays of one type, linear ones (out, in):

- ``attention.query``, ``.key``, ``.value`` and ``.output``, each ``.weight`` and perhaps ``.bias``;
  ``attention.query_norm.weight`` and ``attention.key_norm.weight`` of models that scale these;
- ``gate``, ``up`` and ``down`` of the feed-forward part, without ``gate`` where nothing is gated;
- norms at up to six places, each ``.weight`` and perhaps ``.bias``: ``attention_input_norm``,
  ``attention_output_norm`` (before the residual is added), ``attention_sum_norm`` (after), and the
  same three of ``feed_forward``.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypeAlias

from attnviz.layer.arrays import Array, convert_like, find_namespace, widen_to_single
from attnviz.layer.attention import Attended, attend
from attnviz.layer.multihead import (
    apply_linear,
    make_rotary_rates,
    make_rotation,
    merge_heads,
    rotate_pairs,
    share_heads,
    split_heads,
)
from attnviz.layer.scores import SCORES
from attnviz.lm.activations import ACTIVATIONS
from attnviz.record import Floats
from attnviz.request import HeadInputs, OutputChange, WeighHeads

NormKind: TypeAlias = Literal["layer", "rms"]
Parameters: TypeAlias = Mapping[str, Array]
ChangeLayer: TypeAlias = Callable[[Array, WeighHeads], Array]
"""An ``OutputChange`` of one layer."""


class Rotary(NamedTuple):
    """Positions by rotation of queries and keys (Su et al. 2021, eq. 34)."""

    rates: Floats | None = None
    """The angle in radians by which each pair of numbers turns from one position to the next.

    None for 10000^(-2 i / head_dim) of each pair i, in the type of the queries.
    """
    factor: float = 1.0
    """By which the rotated numbers are multiplied (YaRN, Peng et al. 2023)."""


class Architecture(NamedTuple):
    """The sizes of a transformer, and the switches in which families differ."""

    layers: int
    heads: int
    kv_heads: int
    """Heads of keys and values, each shared by several query heads (Ainslie et al. 2023)."""
    head_dim: int
    dim: int
    feed_forward: int
    vocabulary: int
    positions: int | None
    """The longest text that the model reads, in tokens; None if nothing limits it."""
    causal: bool
    norm: NormKind
    norm_floor: float
    """Added to the mean square, or to the variance, before its root is taken."""
    activation: str
    """A name of ``ACTIVATIONS``."""
    scale: float
    """By which queries are multiplied before they are compared with keys."""
    biased: frozenset[str]
    """The linear parameters of a layer that have a bias."""
    rotary: tuple[Rotary | None, ...]
    """By layer; None where a layer knows no positions, or all of them are in the embedding."""
    windows: tuple[int | None, ...]
    """By layer: how many keys a query sees at most, itself the last one; None for all."""
    score: str = "dot"
    """How queries are compared with keys: a name of ``layer.scores.SCORES``."""
    softcap: float | None = None
    """Scores s become c tanh(s / c) (Gemma 2, 2024)."""
    gain_offset: float = 0.0
    """Added to the gain of every norm: Gemma stores it less 1."""
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    """By which each part's output is multiplied before it is added (Granite, 2024)."""
    embedding_dim: int = 0
    """The size of embeddings where it is not ``dim``; 0 where it is."""
    segments: int = 0
    """How many texts the embeddings tell apart; 0 where they tell none."""
    padding: int | None = None
    """The token from which on RoBERTa counts positions; None where they are counted from 0."""
    logit_cap: float | None = None
    """Logits z become c tanh(z / c) (Gemma 2, 2024)."""
    logit_divisor: float = 1.0
    """By which logits are divided (Granite, 2024)."""
    parallel: bool = False
    """True if the feed-forward part reads what attention reads (GPT-NeoX, 2022)."""


class LayerRun(NamedTuple):
    """What one layer read, made and put out."""

    entered: Array
    """(..., n, dim): what its attention read, after the norm before it."""
    query: Array
    """(..., heads, n, head_dim): as queries are compared with keys."""
    key: Array
    """(..., kv_heads, n, head_dim)."""
    value: Array
    """(..., kv_heads, n, head_dim)."""
    attended: Attended
    """Weights and scores (..., heads, n, n), and the output of attention (..., n, dim)."""
    hidden: Array
    """(..., n, dim): the residual stream after the layer."""
    projection: Array
    """(dim, heads * head_dim): what joins the outputs of heads."""


class ParameterSource(Protocol):
    """Where the parameters of a transformer come from, one layer at a time."""

    def read_layer(self, layer: int) -> Parameters:
        """Read the parameters of one layer, by the names above."""
        ...

    def embed(self, ids: Array, segments: Array | None) -> Array:
        """Embed token ids (..., n), with their positions and segments, as (..., n, dim)."""
        ...


def run_transformer(
    source: ParameterSource,
    architecture: Architecture,
    ids: Array,
    *,
    segments: Array | None = None,
    masks: Mapping[int, Array] | None = None,
    change: OutputChange | None = None,
) -> Iterator[LayerRun]:
    """Run the layers one by one on token ids (..., n), and yield what each computes.

    A layer is read when its turn has come; those after the last one that is asked for never are.

    segments: the number of the text that each token is of, (..., n). masks: for some layers
    booleans that broadcast to (..., heads, n, n), False where an edge is cut, beside what causality
    and windows hide. change: is called with the number of each layer, with what its heads put out,
    (..., n, heads, head_dim), and with a function that returns the inputs of some of them; what it
    returns is projected in place of the heads' output.
    """
    masks = masks or {}
    hidden = source.embed(ids, segments)
    for layer in range(architecture.layers):
        parameters = source.read_layer(layer)
        change_layer = None if change is None else partial(change, layer)
        mask = join_masks(architecture, layer, ids, masks.get(layer))
        rotary = architecture.rotary[layer]
        apply_part_norm = partial(apply_norm, parameters, architecture)

        x = apply_part_norm("attention_input_norm", hidden)
        attention = select_parameters(parameters, "attention.")
        query, key, value = project_heads(attention, architecture, x, rotary)
        attended = attend_layer(
            attention,
            architecture,
            query,
            key,
            value,
            mask=mask,
            change=change_layer,
        )
        entered = x
        output = apply_part_norm("attention_output_norm", attended.output)
        after_attention = hidden + scale_output(output, architecture)
        after_attention = apply_part_norm("attention_sum_norm", after_attention)

        read = hidden if architecture.parallel else after_attention
        x = apply_part_norm("feed_forward_input_norm", read)
        output = apply_feed_forward(parameters, architecture, x)
        output = apply_part_norm("feed_forward_output_norm", output)
        hidden = after_attention + scale_output(output, architecture)
        hidden = apply_part_norm("feed_forward_sum_norm", hidden)
        projection = attention["output.weight"]
        yield LayerRun(entered, query, key, value, attended, hidden, projection)


def take_last_run(runs: Iterator[LayerRun]) -> LayerRun:
    """Run all layers and return the last; what the others computed is not kept."""
    return deque(runs, maxlen=1).pop()


def attend_layer(
    parameters: Parameters,
    architecture: Architecture,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None,
    change: ChangeLayer | None,
) -> Attended:
    """Attend in every head of a layer, merge the heads, and project what they put out.

    parameters: those of attention, without their prefix. query: (..., heads, n, head_dim). key,
    value: (..., kv_heads, n, head_dim). mask: booleans that broadcast to (..., heads, n, n),
    True where a query may attend. The output is (..., n, dim).
    """
    value_of_heads = share_heads(value, architecture.heads)
    attended = attend(
        query,
        share_heads(key, architecture.heads),
        value_of_heads,
        score=partial(compute_capped_scores, architecture),
        mask=mask,
        causal=architecture.causal,
    )
    output = merge_heads(attended.output)  # (..., n, heads * head_dim)
    if change is not None:
        output = change_output(output, attended, value_of_heads, change)
    return attended._replace(output=apply_linear(parameters, "output", output))


def project_heads(
    parameters: Parameters,
    architecture: Architecture,
    x: Array,
    rotary: Rotary | None,
) -> tuple[Array, Array, Array]:
    """Project x (..., n, dim) to queries (..., heads, n, head_dim), keys and values.

    Keys and values are (..., kv_heads, n, head_dim). Queries and keys are scaled and rotated; then
    they are in float32 at least.
    """
    by_name: dict[str, Array] = {}
    for name, heads in (
        ("query", architecture.heads),
        ("key", architecture.kv_heads),
        ("value", architecture.kv_heads),
    ):
        projected = apply_linear(parameters, name, x)
        gain = parameters.get(f"{name}_norm.weight")
        # some models scale all heads of a token together (OLMo 2), others each head (Qwen 3)
        is_whole = gain is not None and len(gain) == projected.shape[-1]
        if is_whole:
            projected = scale_with_gain(projected, gain, architecture)
        by_head = split_heads(projected, heads)
        if gain is not None and not is_whole:
            by_head = scale_with_gain(by_head, gain, architecture)
        by_name[name] = by_head
    query, key, value = by_name["query"], by_name["key"], by_name["value"]
    if rotary is None:
        return query, key, value
    query = widen_to_single(query)
    key = widen_to_single(key)
    cosines, sines = compute_rotation(rotary, query)
    return rotate_pairs(query, cosines, sines), rotate_pairs(key, cosines, sines), value


def compute_rotation(rotary: Rotary, query: Array) -> tuple[Array, Array]:
    """Compute by which numbers queries (..., n, head_dim), and keys, are rotated.

    They are the cosines and the sines of the angles of each position, (n, pairs) each, times the
    factor.
    """
    length, width = query.shape[-2:]
    if rotary.rates is None:
        rates = make_rotary_rates(width, like=query)
    else:
        rates = convert_like(rotary.rates, query)
    cosines, sines = make_rotation(rates, length)
    if rotary.factor == 1.0:
        return cosines, sines
    return cosines * rotary.factor, sines * rotary.factor


def compute_capped_scores(architecture: Architecture, query: Array, key: Array) -> Array:
    """Compute the scores of queries (..., n, d) for keys (..., m, d): scaled, perhaps capped."""
    if architecture.scale != 1.0:
        query = query * architecture.scale
    scores = SCORES[architecture.score](query, key)
    if architecture.softcap is None:
        return scores
    return cap_smoothly(scores, architecture.softcap)


def cap_smoothly(x: Array, cap: float) -> Array:
    """Return c tanh(x / c), which is between -c and c, for a cap c (Gemma 2, 2024)."""
    return find_namespace(x).tanh(x / cap) * cap


def change_output(
    output: Array,
    attended: Attended,
    value: Array,
    change: ChangeLayer,
) -> Array:
    """Return the output of heads (..., n, heads * head_dim) as an intervention changes it.

    value: of each query head, (..., heads, n, head_dim).
    """

    def weigh(heads: Sequence[int]) -> HeadInputs:
        chosen = ..., list(heads), slice(None), slice(None)
        visible = attended.scores[chosen] > -math.inf
        return HeadInputs(attended.weights[chosen], visible, value[chosen])

    *lead, heads, _, head_dim = value.shape
    by_head = output.reshape(*lead, -1, heads, head_dim)
    changed: Array = change(by_head, weigh)
    return changed.reshape(output.shape)


def join_masks(
    architecture: Architecture,
    layer: int,
    ids: Array,
    mask: Array | None,
) -> Array | None:
    """Join the mask of a layer with its window: booleans, True where a query may attend.

    ids: the token ids, (..., n). None where neither hides anything that causality does not hide.
    """
    window = architecture.windows[layer]
    length = ids.shape[-1]
    if window is None or window >= length:
        return mask
    near = make_window(length, window, causal=architecture.causal, like=ids)
    return near if mask is None else near & mask


def make_window(length: int, window: int, *, causal: bool, like: Array) -> Array:
    """Return booleans (query, key), True where a key is nearer than the window.

    Without causality that holds on both sides. like: an array of the kind, NumPy or torch, and on
    the device of the result.
    """
    positions = find_namespace(like).arange(length, device=like.device)
    distance = positions[:, None] - positions
    if not causal:
        distance = abs(distance)
    return distance < window


def scale_output(output: Array, architecture: Architecture) -> Array:
    """Multiply the output of a part with the factor of the residual, if there is one."""
    if architecture.residual_factor == 1.0:
        return output
    return output * architecture.residual_factor


def apply_feed_forward(parameters: Parameters, architecture: Architecture, x: Array) -> Array:
    """Apply the feed-forward part of a layer, (..., n, dim) -> (..., n, dim).

    It is gated where it has a gate (Shazeer 2020, eq. 6).
    """
    activate = ACTIVATIONS[architecture.activation]
    if "gate.weight" in parameters:
        gate = activate(apply_linear(parameters, "gate", x))
        inner = gate * apply_linear(parameters, "up", x)
    else:
        inner = activate(apply_linear(parameters, "up", x))
    return apply_linear(parameters, "down", inner)


def apply_norm(
    parameters: Parameters,
    architecture: Architecture,
    name: str,
    x: Array,
) -> Array:
    """Apply the norm of a name over the last axis; return x as it is if there is no such norm."""
    gain = parameters.get(f"{name}.weight")
    if gain is None:
        return x
    if architecture.norm == "rms":
        return scale_with_gain(x, gain, architecture)
    scaled = standardise(x, architecture.norm_floor) * offset_gain(gain, architecture)
    bias = parameters.get(f"{name}.bias")
    return scaled if bias is None else scaled + bias


def scale_with_gain(x: Array, gain: Array, architecture: Architecture) -> Array:
    """Apply RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last axis, with its gain (dim,)."""
    return scale_by_root(x, architecture.norm_floor) * offset_gain(gain, architecture)


def offset_gain(gain: Array, architecture: Architecture) -> Array:
    """Return the gain of a norm, with the offset of the family if it has one."""
    return gain + architecture.gain_offset if architecture.gain_offset else gain


def scale_by_root(x: Array, floor: float) -> Array:
    """Divide by the root of the mean square over the last axis (Zhang & Sennrich 2019, eq. 4)."""
    mean_square = (x**2).mean(-1)
    scale = (mean_square[..., None] + floor) ** -0.5
    return x * scale


def standardise(x: Array, floor: float) -> Array:
    """Subtract the mean over the last axis and divide by the deviation (Ba et al. 2016, eq. 3)."""
    centred = x - x.mean(-1)[..., None]
    variance = (centred**2).mean(-1)[..., None]
    return centred / (variance + floor) ** 0.5


def select_parameters(parameters: Parameters, prefix: str) -> dict[str, Array]:
    """Return the parameters whose names begin with a prefix, by the rest of their names."""
    start = len(prefix)
    chosen = {}
    for name, array in parameters.items():
        if name.startswith(prefix):
            chosen[name[start:]] = array
    return chosen
