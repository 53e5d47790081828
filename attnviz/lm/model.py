"""The small language model: a pre-norm causal decoder, a pure function of a dict of arrays.

NumPy runs it without torch; torch trains it. It is a transformer of ``attnviz.lm.transformer``, in
the shape of Llama (RMSNorm, rotary positions, SwiGLU, tied embeddings; Touvron et al. 2023).

Parameters: ``embedding`` (vocabulary, dim); for each layer i ``layers.i.attention_norm`` (dim,),
``layers.i.attention.*.weight`` (dim, dim) of query, key, value and output,
``layers.i.feed_forward_norm`` (dim,), ``layers.i.gate`` and ``layers.i.up`` (feed_forward, dim),
``layers.i.down`` (dim, feed_forward); ``norm`` (dim,).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attnviz.layer.arrays import Array, find_namespace, widen_to_single
from attnviz.layer.scores import split_score_scale
from attnviz.lm.transformer import (
    Architecture,
    LayerRun,
    Rotary,
    run_transformer,
    scale_by_root,
    select_parameters,
    take_last_run,
)
from attnviz.request import OutputChange

NORM_FLOOR = 1e-6
GENERAL_NAMES = {
    "attention_norm": "attention_input_norm.weight",
    "feed_forward_norm": "feed_forward_input_norm.weight",
    "gate": "gate.weight",
    "up": "up.weight",
    "down": "down.weight",
}
"""The names that ``attnviz.lm.transformer`` has for parameters of a layer, where they differ."""


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


class NamedParameters:
    """The parameters of a language model as a source of ``run_transformer``."""

    def __init__(self, parameters: Mapping[str, Array]) -> None:
        """Take parameters by name, NumPy arrays or torch tensors."""
        self.parameters = parameters

    def read_layer(self, layer: int) -> dict[str, Array]:
        """Return the parameters of one layer by the names of ``attnviz.lm.transformer``."""
        stored = select_parameters(self.parameters, f"layers.{layer}.")
        return {GENERAL_NAMES.get(name, name): array for name, array in stored.items()}

    def embed(self, ids: Array, segments: Array | None = None) -> Array:
        """Embed token ids (..., n) as (..., n, dim); all tokens are of one text."""
        return self.parameters["embedding"][ids]


def make_architecture(config: ModelConfig) -> Architecture:
    """Make the architecture of a language model of these sizes: that of a small Llama."""
    head_dim = config.dim // config.heads
    score, scale = split_score_scale(config.score, head_dim)
    return Architecture(
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=head_dim,
        dim=config.dim,
        feed_forward=config.feed_forward,
        vocabulary=config.vocabulary,
        positions=config.positions,
        causal=True,
        norm="rms",
        norm_floor=NORM_FLOOR,
        activation="silu",
        scale=scale,
        score=score,
        biased=frozenset(),
        rotary=(Rotary(),) * config.layers,
        windows=(None,) * config.layers,
    )


def evaluate_layers(
    parameters: Mapping[str, Array],
    ids: Array,
    config: ModelConfig,
    masks: Mapping[int, Array] | None = None,
    change: OutputChange | None = None,
) -> Iterator[LayerRun]:
    """Run the layers of a language model one by one on token ids (..., n); see ``run_transformer``.

    parameters: arrays by name, of the sizes in config.
    """
    source = NamedParameters(parameters)
    return run_transformer(source, make_architecture(config), ids, masks=masks, change=change)


def project_logits(parameters: Mapping[str, Array], hidden: Array) -> Array:
    """Compute the logits of the next token from the residual stream after the last layer.

    hidden: (..., n, dim). Returns (..., n, vocabulary).
    """
    embedding = parameters["embedding"].swapaxes(0, 1)
    x = scale_by_root(hidden, NORM_FLOOR) * parameters["norm"]
    return find_namespace(hidden).matmul(x, embedding)


def compute_next_logits(parameters: Mapping[str, Array], ids: Array, config: ModelConfig) -> Array:
    """Compute the logits of each next token, (..., n, vocabulary), from token ids (..., n)."""
    last = take_last_run(evaluate_layers(parameters, ids, config))
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
    last = take_last_run(evaluate_layers(parameters, ids, config, change=change))
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
