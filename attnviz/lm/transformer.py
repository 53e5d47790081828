"""The forward of a transformer, written once for every family that runs in NumPy.

A family differs from another in sizes and switches, which an ``Architecture`` holds, and in which
parameters a layer has: a norm that has no parameters here is left out. Attention itself is that of
``attnviz.layer``.

The parameters of a layer, each a float32 array, linear ones as (out, in):

- ``attention.query``, ``.key``, ``.value`` and ``.output``, each ``.weight`` and perhaps ``.bias``;
  ``attention.query_norm.weight`` and ``attention.key_norm.weight`` of models that scale these;
- ``gate``, ``up`` and ``down`` of the feed-forward part, without ``gate`` where nothing is gated;
- norms at up to six places, each ``.weight`` and perhaps ``.bias``: ``attention_input_norm``,
  ``attention_output_norm`` (before the residual is added), ``attention_sum_norm`` (after), and the
  same three of ``feed_forward``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from attnviz.layer.arrays import Array
from attnviz.layer.attention import Attended, attend
from attnviz.layer.multihead import apply_linear, merge_heads, share_heads, split_heads
from attnviz.lm.activations import ACTIVATIONS
from attnviz.lm.corpus import Ids
from attnviz.lm.model import select_parameters
from attnviz.record import Floats, Visible
from attnviz.request import HeadInputs, OutputChange, WeighHeads

NormKind: TypeAlias = Literal["layer", "rms"]
Parameters: TypeAlias = Mapping[str, Array]
ChangeLayer: TypeAlias = Callable[[Array, WeighHeads], Array]
"""An ``OutputChange`` of one layer."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """Positions by rotation of queries and keys (Su et al. 2021, eq. 34)."""

    rates: Floats
    """The angle in radians by which each pair of numbers turns from one position to the next."""
    factor: float = 1.0
    """By which the rotated numbers are multiplied (YaRN, Peng et al. 2023)."""


@dataclass(frozen=True)
class Architecture:
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
    """By which the products of queries and keys are multiplied."""
    biased: frozenset[str]
    """The linear parameters of a layer that have a bias."""
    rotary: tuple[Rotary | None, ...]
    """By layer; None where a layer knows no positions, or all of them are in the embedding."""
    windows: tuple[int | None, ...]
    """By layer: how many keys a query sees at most, itself the last one; None for all."""
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
    """(batch, n, dim): what its attention read, after the norm before it."""
    query: Array
    """(batch, heads, n, head_dim): as queries are compared with keys."""
    key: Array
    """(batch, kv_heads, n, head_dim)."""
    value: Array
    """(batch, kv_heads, n, head_dim)."""
    attended: Attended
    """Weights and scores (batch, heads, n, n), and the output of attention (batch, n, dim)."""
    hidden: Array
    """(batch, n, dim): the residual stream after the layer."""
    projection: Array
    """(dim, heads * head_dim): what joins the outputs of heads."""


class ParameterSource(Protocol):
    """Where the parameters of a transformer come from, one layer at a time."""

    def read_layer(self, layer: int) -> Parameters:
        """Read the parameters of one layer, by the names above."""
        ...

    def embed(self, ids: Ids, segments: Ids | None) -> Floats:
        """Embed token ids (batch, n), with their positions and segments, as (batch, n, dim)."""
        ...


def run_transformer(
    source: ParameterSource,
    architecture: Architecture,
    ids: Ids,
    *,
    segments: Ids | None = None,
    masks: Mapping[int, Visible] | None = None,
    change: OutputChange | None = None,
) -> Iterator[LayerRun]:
    """Run the layers one by one on token ids (batch, n). A layer is read when its turn has come.

    segments: the number of the text that each token is of, (batch, n). masks: for some layers
    booleans (batch, heads or 1, n, n), False where an edge is cut. change: sees what the heads of
    each layer put out, (batch, n, heads, head_dim), and returns what is projected in its place.
    """
    masks = masks or {}
    hidden = source.embed(ids, segments)
    for layer in range(architecture.layers):
        parameters = source.read_layer(layer)
        change_layer = None if change is None else partial(change, layer)
        mask = join_masks(architecture, layer, ids.shape[-1], masks.get(layer))
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


def attend_layer(
    parameters: Parameters,
    architecture: Architecture,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Visible | None,
    change: ChangeLayer | None,
) -> Attended:
    """Attend in every head of a layer, merge the heads, and project what they put out.

    parameters: those of attention, without their prefix. query: (batch, heads, n, head_dim). key,
    value: (batch, kv_heads, n, head_dim). mask: booleans that broadcast to (batch, heads, n, n),
    True where a query may attend. The output is (batch, n, dim).
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
    output = merge_heads(attended.output)  # (batch, n, heads * head_dim)
    if change is not None:
        output = change_output(output, attended, value_of_heads, change)
    return attended._replace(output=apply_linear(parameters, "output", output))


def project_heads(
    parameters: Parameters,
    architecture: Architecture,
    x: Array,
    rotary: Rotary | None,
) -> tuple[Array, Array, Array]:
    """Project x (batch, n, dim) to queries (batch, heads, n, head_dim), keys and values.

    Keys and values are (batch, kv_heads, n, head_dim). Queries and keys are scaled and rotated.
    """
    floor, offset = architecture.norm_floor, architecture.gain_offset
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
        if gain is not None and is_whole:
            projected = scale_by_root(projected, floor) * (gain + offset)
        by_head = split_heads(projected, heads)
        if gain is not None and not is_whole:
            by_head = scale_by_root(by_head, floor) * (gain + offset)
        by_name[name] = by_head
    if rotary is not None:
        cosines, sines = make_rotation(rotary, x.shape[-2])
        by_name["query"] = rotate_pairs(by_name["query"], cosines, sines)
        by_name["key"] = rotate_pairs(by_name["key"], cosines, sines)
    return by_name["query"], by_name["key"], by_name["value"]


def compute_capped_scores(architecture: Architecture, query: Array, key: Array) -> Array:
    """Compute the scores of queries (..., n, d) for keys (..., m, d): scaled, perhaps capped."""
    scores = np.matmul(query * np.float32(architecture.scale), key.swapaxes(-1, -2))
    cap = architecture.softcap
    if cap is None:
        return scores
    return np.tanh(scores / np.float32(cap)) * np.float32(cap)


def change_output(
    output: Array,
    attended: Attended,
    value: Array,
    change: ChangeLayer,
) -> Array:
    """Return the output of heads (batch, n, heads * head_dim) as an intervention changes it.

    value: of each query head, (batch, heads, n, head_dim).
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
    length: int,
    mask: Visible | None,
) -> Visible | None:
    """Join the mask of a layer with its window: booleans, True where a query may attend.

    None where neither hides anything that causality does not hide.
    """
    window = architecture.windows[layer]
    if window is None or window >= length:
        return mask
    near = make_window(length, window, causal=architecture.causal)
    return near if mask is None else near & mask


def make_window(length: int, window: int, *, causal: bool) -> Visible:
    """Return booleans (query, key), True where a key is nearer than the window.

    Without causality that holds on both sides.
    """
    positions = np.arange(length)
    distance = positions[:, None] - positions
    if not causal:
        distance = np.abs(distance)
    return np.asarray(distance < window)


def scale_output(output: Array, architecture: Architecture) -> Array:
    """Multiply the output of a part with the factor of the residual, if there is one."""
    if architecture.residual_factor == 1.0:
        return output
    return output * np.float32(architecture.residual_factor)


def apply_feed_forward(parameters: Parameters, architecture: Architecture, x: Array) -> Array:
    """Apply the feed-forward part of a layer, gated where it has a gate (Shazeer 2020)."""
    activate = ACTIVATIONS[architecture.activation]
    up = apply_linear(parameters, "up", x)
    if "gate.weight" in parameters:
        inner = activate(apply_linear(parameters, "gate", x)) * up
    else:
        inner = activate(up)
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
    gain = gain + architecture.gain_offset
    floor = architecture.norm_floor
    if architecture.norm == "rms":
        return scale_by_root(x, floor) * gain
    scaled = standardise(x, floor) * gain
    bias = parameters.get(f"{name}.bias")
    return scaled if bias is None else scaled + bias


def scale_by_root(x: Array, floor: float) -> Array:
    """Divide by the root of the mean square over the last axis (Zhang & Sennrich 2019, eq. 4)."""
    mean_square = (x * x).mean(-1, keepdims=True)
    return x * (1.0 / np.sqrt(mean_square + np.float32(floor)))


def standardise(x: Array, floor: float) -> Array:
    """Subtract the mean over the last axis and divide by the deviation (Ba et al. 2016, eq. 3)."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(floor))


def make_rotation(rotary: Rotary, length: int) -> tuple[Floats, Floats]:
    """Return the cosines and sines of the angles of each position, each (position, pair)."""
    positions = np.arange(length, dtype=np.float32)
    angles = positions[:, None] * rotary.rates
    factor = np.float32(rotary.factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate_pairs(x: Array, cosines: Floats, sines: Floats) -> Array:
    """Rotate pairs of numbers of x (..., n, head_dim): the i-th with the one half the way on.

    cosines, sines: (n, pairs). Numbers beyond twice the pairs stay as they are.
    """
    pairs = cosines.shape[-1]
    left, right, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    rotated = [left * cosines - right * sines, right * cosines + left * sines]
    if rest.shape[-1]:
        rotated.append(rest)
    return np.concatenate(rotated, axis=-1)
