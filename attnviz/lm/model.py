"""The small language model: a pre-norm causal decoder as one pure function over a dict of arrays.

NumPy runs it without torch; torch trains it. Its shape is Llama's (RMSNorm, rotary positions, SwiGLU, tied embeddings;
Touvron et al. 2023), its attention is ``attnviz.layer``.

Parameters: ``embedding`` (vocabulary, dim); for each layer i ``layers.i.attention_norm`` (dim,),
``layers.i.attention.*`` as in ``multi_head_attend``, ``layers.i.feed_forward_norm`` (dim,), ``layers.i.gate`` and
``layers.i.up`` (feed_forward, dim), ``layers.i.down`` (dim, feed_forward); ``norm`` (dim,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

from attnviz.layer.arrays import Array, namespace, widen
from attnviz.layer.attention import Attended
from attnviz.layer.multihead import attend_heads, linear, multi_head_attend, split_heads
from attnviz.layer.norms import moved
from attnviz.request import Change, Weigh, Weighed

NORM_FLOOR = 1e-6
How: TypeAlias = dict[str, Any]  # options of attend_heads


@dataclass(frozen=True)
class Config:
    """The sizes of a language model, and how its heads score keys.

    ``positions`` is the longest text it was trained to read, in tokens; ``score`` a name of ``layer.scores.SCORES``.
    """

    vocabulary: int = 4096
    dim: int = 192
    layers: int = 3
    heads: int = 6
    feed_forward: int = 384
    positions: int = 512
    score: str = "scaled_dot"


class Block(NamedTuple):
    """What one layer did."""

    hidden: Array
    """(..., n, dim): the residual stream after the layer."""
    attended: Attended
    """Its attention: weights and scores (..., heads, n, n)."""


def blocks(
    parameters: Mapping[str, Array],
    ids: Array,
    config: Config,
    masks: Mapping[int, Array] | None = None,
    change: Change | None = None,
) -> Iterator[Block]:
    """Run the layers one by one on token ids (..., n). Stop iterating and the layers after are never computed.

    masks: for some layers booleans (heads, n, n), False where an edge is cut, beside what causality hides.
    change: sees what the heads of each layer put out (..., n, heads, head_dim), and may ask what some of them make it
    of; it gives what is projected.
    """
    masks = masks or {}
    how: How = {"heads": config.heads, "causal": True, "rotary": True, "score": config.score}
    hidden = parameters["embedding"][ids]  # (..., n, dim)
    for layer in range(config.layers):
        mine = within(parameters, f"layers.{layer}.")
        x = normalise(hidden, mine["attention_norm"])
        attention, mask = within(mine, "attention."), masks.get(layer)
        if change is None:
            attended = multi_head_attend(attention, x, x, x, mask=mask, **how)
        else:
            attended = attend_changed(attention, x, mask, partial(change, layer), how)
        hidden = hidden + attended.output
        hidden = hidden + feed_forward(mine, normalise(hidden, mine["feed_forward_norm"]))
        yield Block(hidden, attended)


def attend_changed(
    parameters: Mapping[str, Array],
    x: Array,
    mask: Array | None,
    change: Callable[[Array, Weigh], Array],
    how: How,
) -> Attended:
    """Self-attention whose heads' outputs are changed before they are projected: (..., n, dim) -> (..., n, dim)."""
    q, k, v = (linear(parameters, name, x) for name in ("query", "key", "value"))
    attended = attend_heads(q, k, v, mask=mask, **how)

    def weigh(heads: Sequence[int]) -> Weighed:
        value = split_heads(v, how["heads"])[..., list(heads), :, :]
        return Weighed(
            attended.weights[..., list(heads), :, :],
            attended.scores[..., list(heads), :, :] > -inf,
            value,
        )

    outputs = change(
        attended.output.reshape(*x.shape[:-1], how["heads"], -1), weigh
    )  # (..., n, heads, head_dim)
    return attended._replace(output=linear(parameters, "output", outputs.reshape(x.shape)))


def head_vectors(parameters: Mapping[str, Array], hidden: Array, layer: int, heads: int) -> Array:
    """What each head of a layer moves of each token, if all its weight lies there: see ``attnviz.layer.norms``.

    hidden: the residual stream before the layer (n, dim) -> (heads, n, dim).
    """
    mine = within(parameters, f"layers.{layer}.")
    attention, x = within(mine, "attention."), normalise(hidden, mine["attention_norm"])
    return moved(
        split_heads(linear(attention, "value", x), heads), attention["output.weight"].swapaxes(0, 1)
    )


def logits(parameters: Mapping[str, Array], hidden: Array) -> Array:
    """Scores of the next token from the last layer's residual stream: (..., n, dim) -> (..., n, vocabulary)."""
    embedding = parameters["embedding"].swapaxes(0, 1)
    return namespace(hidden).matmul(normalise(hidden, parameters["norm"]), embedding)


def forward(parameters: Mapping[str, Array], ids: Array, config: Config) -> Array:
    """Token ids (..., n) -> scores of each next token (..., n, vocabulary)."""
    *_, last = blocks(parameters, ids, config)
    return logits(parameters, last.hidden)


def losses(
    parameters: Mapping[str, Array], ids: Array, config: Config, change: Change | None = None
) -> Array:
    """Loss in nats of each token from the second on, given those before it: (batch, n) -> (batch, n - 1)."""
    *_, last = blocks(parameters, ids, config, change=change)
    predicted = widen(logits(parameters, last.hidden[:, :-1]))
    xp, (batch, n) = namespace(predicted), ids.shape
    highest = xp.amax(predicted, axis=-1)
    normaliser = xp.log(xp.exp(predicted - highest[..., None]).sum(-1)) + highest
    rows, places = (xp.arange(count, device=ids.device) for count in (batch, n - 1))
    return normaliser - predicted[rows[:, None], places, ids[:, 1:]]


def normalise(x: Array, gain: Array) -> Array:
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last axis."""
    return x * ((x**2).mean(-1)[..., None] + NORM_FLOOR) ** -0.5 * gain


def feed_forward(parameters: Mapping[str, Array], x: Array) -> Array:
    """SwiGLU (Shazeer 2020, eq. 6): (..., dim) -> (..., dim)."""
    xp = namespace(x)
    gate = xp.matmul(x, parameters["gate"].swapaxes(0, 1))  # (..., feed_forward)
    swish = gate * (
        0.5 + 0.5 * xp.tanh(0.5 * gate)
    )  # x * sigmoid(x), without an exponential that overflows
    up = xp.matmul(x, parameters["up"].swapaxes(0, 1))
    return xp.matmul(swish * up, parameters["down"].swapaxes(0, 1))


def within(parameters: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The parameters under a prefix, by the rest of their names."""
    return {
        name[len(prefix) :]: array for name, array in parameters.items() if name.startswith(prefix)
    }


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by name."""
    dim, wide = config.dim, config.feed_forward
    found: dict[str, tuple[int, ...]] = {"embedding": (config.vocabulary, dim), "norm": (dim,)}
    for layer in range(config.layers):
        for name in ("query", "key", "value", "output"):
            found[f"layers.{layer}.attention.{name}.weight"] = (dim, dim)
        for name, shape in (("gate", (wide, dim)), ("up", (wide, dim)), ("down", (dim, wide))):
            found[f"layers.{layer}.{name}"] = shape
        for name in ("attention_norm", "feed_forward_norm"):
            found[f"layers.{layer}.{name}"] = (dim,)
    return found
