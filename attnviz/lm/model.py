"""The small language model: a pre-norm causal decoder as one pure function over a dict of arrays.

NumPy runs it without torch; torch trains it. Its shape is Llama's (RMSNorm, rotary positions,
SwiGLU, tied embeddings; Touvron et al. 2023), its attention is ``attnviz.layer``.

Parameters: ``embedding`` (vocabulary, dim); for each layer i ``layers.i.attention_norm`` (dim,),
``layers.i.attention.*`` as in ``multi_head_attend``, ``layers.i.feed_forward_norm`` (dim,),
``layers.i.gate`` and ``layers.i.up`` (feed_forward, dim), ``layers.i.down`` (dim, feed_forward);
``norm`` (dim,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

from attnviz.layer.arrays import Array, find_namespace, widen_to_single
from attnviz.layer.attention import Attended
from attnviz.layer.multihead import (
    apply_linear,
    attend_heads,
    multi_head_attend,
    split_heads,
)
from attnviz.layer.norms import compute_moved_vectors
from attnviz.lm.transformer import select_parameters
from attnviz.request import HeadInputs, OutputChange, WeighHeads

NORM_FLOOR = 1e-6
HeadOptions: TypeAlias = dict[str, Any]  # of attend_heads


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a language model, and how its heads score keys.

    ``positions`` is the longest text it was trained to read, in tokens; ``score`` a name of
    ``layer.scores.SCORES``.
    """

    vocabulary: int = 4096
    dim: int = 192
    layers: int = 3
    heads: int = 6
    feed_forward: int = 384
    positions: int = 512
    score: str = "scaled_dot"


class LayerResult(NamedTuple):
    """The results of one layer."""

    hidden: Array
    """(..., n, dim): the residual stream after the layer."""
    attended: Attended
    """Its attention: weights and scores (..., heads, n, n)."""


def evaluate_layers(
    parameters: Mapping[str, Array],
    ids: Array,
    config: ModelConfig,
    masks: Mapping[int, Array] | None = None,
    change: OutputChange | None = None,
) -> Iterator[LayerResult]:
    """Run the layers of a language model one by one on token ids (..., n), and yield their results.

    Layers after the last one that is asked for are never computed.

    parameters: arrays by name, of the sizes in config. masks: by layer, for some layers, booleans
    (heads, n, n), False where an edge is cut, beside the keys that causality hides. change: a
    function that is called with the number of each layer, with what its heads put out (..., n,
    heads, head_dim), and with a function that returns the inputs of some of them; what it returns
    is projected in place of the heads' output.
    """
    masks = masks or {}
    options: HeadOptions = {
        "heads": config.heads,
        "causal": True,
        "rotary": True,
        "score": config.score,
    }
    hidden = parameters["embedding"][ids]  # (..., n, dim)
    for layer in range(config.layers):
        layer_parameters = select_parameters(parameters, f"layers.{layer}.")
        attention = select_parameters(layer_parameters, "attention.")
        x = apply_norm(hidden, layer_parameters["attention_norm"])
        mask = masks.get(layer)
        if change is None:
            attended = multi_head_attend(attention, x, x, x, mask=mask, **options)
        else:
            change_layer = partial(change, layer)
            attended = attend_changed(attention, x, mask, change_layer, options)
        hidden = hidden + attended.output
        x = apply_norm(hidden, layer_parameters["feed_forward_norm"])
        hidden = hidden + apply_feed_forward(layer_parameters, x)
        yield LayerResult(hidden, attended)


def attend_changed(
    parameters: Mapping[str, Array],
    x: Array,
    mask: Array | None,
    change: Callable[[Array, WeighHeads], Array],
    options: HeadOptions,
) -> Attended:
    """Run self-attention whose heads' outputs are changed before they are projected.

    parameters: of the attention of one layer. x: (..., n, dim). mask: broadcasts to (..., heads, n,
    n), False where an edge is cut; None for no mask. change: is called with the outputs of the
    heads, (..., n, heads, head_dim), and a function that returns the inputs of some of them, and
    returns the outputs to project. options: of ``attend_heads``.
    Returns the projected output, (..., n, dim), with the weights and scores.
    """
    query = apply_linear(parameters, "query", x)
    key = apply_linear(parameters, "key", x)
    value = apply_linear(parameters, "value", x)
    attended = attend_heads(query, key, value, mask=mask, **options)

    def weigh(heads: Sequence[int]) -> HeadInputs:
        chosen = ..., list(heads), slice(None), slice(None)
        visible = attended.scores[chosen] > -inf
        by_head = split_heads(value, options["heads"])
        return HeadInputs(attended.weights[chosen], visible, by_head[chosen])

    *lead, _ = x.shape
    output = attended.output.reshape(*lead, options["heads"], -1)
    changed = change(output, weigh)  # (..., n, heads, head_dim)
    projected = apply_linear(parameters, "output", changed.reshape(x.shape))
    return attended._replace(output=projected)


def compute_head_vectors(
    parameters: Mapping[str, Array],
    hidden: Array,
    layer: int,
    heads: int,
) -> Array:
    """Compute the vector that each head of a layer moves from each token, at a weight of 1.

    That is the token's value times the head's part of the output projection. hidden: the residual
    stream before the layer, (n, dim). heads: how many heads the layer has. Returns (heads, n, dim).
    See ``attnviz.layer.norms``.
    """
    layer_parameters = select_parameters(parameters, f"layers.{layer}.")
    attention = select_parameters(layer_parameters, "attention.")
    x = apply_norm(hidden, layer_parameters["attention_norm"])
    value = apply_linear(attention, "value", x)
    projection = attention["output.weight"].swapaxes(0, 1)
    return compute_moved_vectors(split_heads(value, heads), projection)


def project_logits(parameters: Mapping[str, Array], hidden: Array) -> Array:
    """Compute the logits of the next token from the residual stream after the last layer.

    hidden: (..., n, dim). Returns (..., n, vocabulary).
    """
    embedding = parameters["embedding"].swapaxes(0, 1)
    x = apply_norm(hidden, parameters["norm"])
    return find_namespace(hidden).matmul(x, embedding)


def compute_next_logits(parameters: Mapping[str, Array], ids: Array, config: ModelConfig) -> Array:
    """Compute the logits of each next token, (..., n, vocabulary), from token ids (..., n)."""
    *_, last = evaluate_layers(parameters, ids, config)
    return project_logits(parameters, last.hidden)


def compute_losses(
    parameters: Mapping[str, Array],
    ids: Array,
    config: ModelConfig,
    change: OutputChange | None = None,
) -> Array:
    """Compute the loss in nats of each token but the first, given the tokens before it.

    ids: (batch, n). change: what is done to the outputs of heads, as in ``evaluate_layers``.
    Returns (batch, n - 1).
    """
    *_, last = evaluate_layers(parameters, ids, config, change=change)
    predicted = project_logits(parameters, last.hidden[:, :-1])
    predicted = widen_to_single(predicted)
    xp = find_namespace(predicted)
    batch, n = ids.shape
    highest = xp.amax(predicted, axis=-1)
    exponentials = xp.exp(predicted - highest[..., None])
    # Log of the sum of exp(predicted).
    normaliser = xp.log(exponentials.sum(-1)) + highest
    rows = xp.arange(batch, device=ids.device)
    positions = xp.arange(n - 1, device=ids.device)
    next_tokens = ids[:, 1:]
    return normaliser - predicted[rows[:, None], positions, next_tokens]


def apply_norm(x: Array, gain: Array) -> Array:
    """Apply RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last axis.

    x: (..., dim). gain: (dim,), by which the normed numbers are multiplied.
    """
    mean_square = (x**2).mean(-1)
    scale = (mean_square[..., None] + NORM_FLOOR) ** -0.5
    return x * scale * gain


def apply_feed_forward(parameters: Mapping[str, Array], x: Array) -> Array:
    """Apply a SwiGLU feed-forward layer (Shazeer 2020, eq. 6): (..., dim) -> (..., dim).

    parameters: ``gate`` and ``up`` (feed_forward, dim), ``down`` (dim, feed_forward).
    """
    xp = find_namespace(x)
    to_gate = parameters["gate"].swapaxes(0, 1)
    gate = xp.matmul(x, to_gate)  # (..., feed_forward)
    # The logistic function by tanh, without an exponential that overflows.
    sigmoid = 0.5 + 0.5 * xp.tanh(0.5 * gate)
    swish = gate * sigmoid
    to_up = parameters["up"].swapaxes(0, 1)
    up = xp.matmul(x, to_up)
    to_output = parameters["down"].swapaxes(0, 1)
    return xp.matmul(swish * up, to_output)


def list_parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a model of these sizes, by name."""
    dim = config.dim
    width = config.feed_forward
    square = (dim, dim)
    gain = (dim,)
    all_shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocabulary, dim), "norm": gain}
    layer_shapes: dict[str, tuple[int, ...]] = {
        "attention.query.weight": square,
        "attention.key.weight": square,
        "attention.value.weight": square,
        "attention.output.weight": square,
        "gate": (width, dim),
        "up": (width, dim),
        "down": (dim, width),
        "attention_norm": gain,
        "feed_forward_norm": gain,
    }
    for layer in range(config.layers):
        for name, shape in layer_shapes.items():
            all_shapes[f"layers.{layer}.{name}"] = shape
    return all_shapes
