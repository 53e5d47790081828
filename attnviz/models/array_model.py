"""Models that ``run_transformer`` runs: what they keep of a run, and what interventions change.

They are the built-in model, in NumPy or in torch, and checkpoints in NumPy.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from attnviz.analysis.segments import number_key_groups
from attnviz.errors import ModelError
from attnviz.layer.arrays import Array
from attnviz.layer.multihead import share_heads
from attnviz.layer.norms import (
    compute_inner_products,
    compute_moved_vectors,
    measure_sum_lengths,
    measure_vector_lengths,
)
from attnviz.lm.transformer import (
    Architecture,
    LayerRun,
    ParameterSource,
    make_window,
    run_transformer,
    take_last_run,
)
from attnviz.models.base import SupportsOperands
from attnviz.models.interventions import change_ids, mask_cut_edges, require_edges, require_keys
from attnviz.models.kept_segments import note_kept_segments
from attnviz.models.memory import estimate_numpy_work, require_memory
from attnviz.models.prompts import EncodedPrompt
from attnviz.models.whole_weights import join_maps_of_layers, make_whole_map
from attnviz.progress import count_steps
from attnviz.record import (
    NORM,
    SCORES,
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    KeyNumbers,
    Kind,
    Token,
    Visible,
)
from attnviz.request import Intervention, Prompt, Request
from attnviz.selection import HeadBlock, choose_kinds, note_windows, resolve_blocks

if TYPE_CHECKING:
    from attnviz.analysis.explain import Operands

KIND: Kind = "self"


class ArrayModel(SupportsOperands):
    """A transformer whose layers are run one by one on arrays, which NumPy or torch computes."""

    torch_device: str | None = None
    """The device on which torch computes; None if NumPy does."""

    @property
    @abstractmethod
    def architecture(self) -> Architecture:
        """The sizes and switches of the model."""

    @property
    @abstractmethod
    def source(self) -> ParameterSource:
        """The source of its parameters."""

    @abstractmethod
    def encode_prompt(self, prompt: Prompt, truncate: bool) -> EncodedPrompt:
        """Return a prompt as the model reads it; truncate: True to cut a text that is too long.

        Raises UsageError for what the model cannot read, and InputError for a text that does not
        fit.
        """

    @property
    def heads_by_layer(self) -> dict[int, range]:
        """The heads of each layer."""
        architecture = self.architecture
        return {layer: range(architecture.heads) for layer in range(architecture.layers)}

    def choose_heads(self, request: Request) -> tuple[HeadBlock, ...]:
        """Return the layers and heads that a request names. Raises UsageError if there are none."""
        choose_kinds(request.kinds, (KIND,))
        return resolve_blocks(request.layers, request.heads, self.heads_by_layer)

    def compute_maps(
        self,
        encoded: EncodedPrompt,
        blocks: Sequence[HeadBlock],
        intervention: Intervention,
        request: Request,
    ) -> tuple[AttentionMap, ...]:
        """Run a text and make a map of each block of layers and heads.

        Layers after the last one of these are not computed. Of each layer only what the request
        keeps stays in memory. request: one whose window is in ``rows`` and ``columns``. Raises
        ModelError for weights that are not numbers, and InputError for more than fits into memory.
        """
        heads_by_layer = list_heads(blocks)
        self.require_free_memory(len(encoded.tokens), heads_by_layer, request)
        with self.without_gradients():
            maps = self.make_layer_maps(encoded, heads_by_layer, intervention, request)
            return join_maps_of_layers(blocks, maps)

    def require_free_memory(
        self,
        length: int,
        heads_by_layer: Mapping[int, tuple[int, ...]],
        request: Request,
    ) -> None:
        """Raise InputError if a capture of a text takes more memory than is free.

        length: of the text, in tokens. heads_by_layer: the heads that are kept.
        """
        positions = range(length)
        size = len(positions[request.rows]), len(positions[request.columns])
        count = sum(len(heads) for heads in heads_by_layer.values())
        working = estimate_numpy_work(self.architecture, length)
        require_memory({size: count}, request, working)

    def make_layer_maps(
        self,
        encoded: EncodedPrompt,
        heads_by_layer: Mapping[int, tuple[int, ...]],
        intervention: Intervention,
        request: Request,
    ) -> Iterator[AttentionMap]:
        """Run a text layer by layer, and yield the map of some heads of each that is named.

        It is for ``compute_maps``, which says what the request is and what is raised.
        """
        last = max(heads_by_layer)
        runs = self.run_layers(encoded.ids, [intervention], encoded.segment_ids)
        visible = self.make_visible(intervention, len(encoded.tokens))
        key_numbers = None
        if request.segments:
            key_numbers = number_key_groups(encoded.tokens, request.segments)
        for layer, run in enumerate(count_layers(runs, last + 1)):
            heads = heads_by_layer.get(layer)
            if heads is None:
                continue
            numbers = choose_numbers(run, heads, request)
            self.require_finite(numbers)
            yield keep_layer(
                layer, heads, encoded.tokens, numbers, visible, request, key_numbers=key_numbers
            )

    def make_capture(
        self,
        encoded: EncodedPrompt,
        maps: tuple[AttentionMap, ...],
        request: Request,
    ) -> Capture:
        """Make a capture of maps, with notes on the text and on the window of the request.

        request: one whose window is in ``rows`` and ``columns``.
        """
        notes = list(encoded.notes)
        if request.windowed:
            sides = encoded.tokens, encoded.tokens
            notes += note_windows(request.rows, request.columns, [sides])
        notes += note_kept_segments(request.segments)
        return Capture(
            self.name,
            encoded.text,
            maps,
            tuple(notes),
            segments=request.segments or encoded.segments,
        )

    def operands(self, prompt: Prompt, request: Request) -> "Operands":
        """Return the vectors of one head for one query; see ``SupportsOperands.operands``."""
        from attnviz.analysis.explain import Operands

        layers, heads = resolve_blocks(request.layers, request.heads, self.heads_by_layer)[0]
        layer, head = layers[0], heads[0]
        encoded = self.encode_prompt(prompt, request.truncate)
        tokens = encoded.tokens
        query = request.resolve_window((tokens, tokens)).rows.start
        outputs: dict[int, Array] = {}

        # called with the outputs of the heads of each layer, in order to change them
        def keep_outputs(number: int, output: Array, _: Any) -> Array:
            return outputs.setdefault(number, output)

        keeping = Intervention(change=keep_outputs)
        with self.without_gradients():
            runs = self.run_layers(encoded.ids, [keeping], encoded.segment_ids)
            run = take_last_run(count_layers(runs, layer + 1))
        architecture = self.architecture
        visible = self.make_layer_mask(layer, len(tokens))
        queries_a_key = architecture.heads // architecture.kv_heads
        key_head = head // queries_a_key
        query_vector = convert_to_doubles(run.query[0, head, query])
        keys = convert_to_doubles(run.key[0, key_head])
        values = convert_to_doubles(run.value[0, key_head])
        hidden = convert_to_doubles(run.entered[0, query])
        output = convert_to_doubles(outputs[layer][0, query, head])
        return Operands(
            query_vector,
            keys,
            values,
            visible[query],
            architecture.scale,
            architecture.score,
            softcap=architecture.softcap,
            hidden=hidden,
            output=output,
        )

    def run_layers(
        self,
        ids: Sequence[int],
        batch: Sequence[Intervention],
        segment_ids: Sequence[int] | None = None,
    ) -> Iterator[LayerRun]:
        """Run the layers one by one on a text under each intervention of a batch.

        Arrays begin with the axis of the interventions, which have the same change of heads. ids:
        of the tokens of the text. segment_ids: the number of the text that each is of, if there are
        two. Raises UsageError as ``make_masks`` does.
        """
        changed_ids = change_ids(ids, batch)
        segments = None
        if segment_ids is not None:
            segments = self.place_array(np.tile(np.array(segment_ids), (len(batch), 1)))
        return run_transformer(
            self.source,
            self.architecture,
            self.place_array(changed_ids),
            segments=segments,
            masks=self.make_masks(batch, len(ids)),
            change=batch[0].change,
        )

    def run_whole(
        self,
        ids: Sequence[int],
        batch: Sequence[Intervention],
        segment_ids: Sequence[int] | None = None,
    ) -> Array:
        """Run all layers as ``run_layers`` does; return the last output, (run, token, dim)."""
        runs = self.run_layers(ids, batch, segment_ids)
        return take_last_run(count_layers(runs, self.architecture.layers)).hidden

    def place_array(self, array: Any, dtype: str | None = None) -> Array:
        """Return a NumPy array ready to compute with, as a tensor if the model runs in torch.

        Without a torch device it stays a NumPy array. dtype: the name of the type to convert it to;
        None leaves its own.
        """
        if self.torch_device is None:
            return array.astype(dtype or array.dtype, copy=False)
        import torch

        tensor = torch.from_numpy(array)
        if dtype:  # before it is moved, since not every device has float64
            tensor = tensor.to(getattr(torch, dtype))
        return tensor.to(self.torch_device)

    def without_gradients(self) -> AbstractContextManager[object]:
        """Return a context in which torch, if it computes, keeps nothing for gradients.

        NumPy says nothing there of numbers that are not finite: ``require_finite`` does.
        """
        if self.torch_device is None:
            return np.errstate(all="ignore")
        import torch

        return torch.inference_mode()

    def require_finite(self, numbers: Floats) -> None:
        """Raise ModelError if what a layer computes is not finite, since the model is damaged."""
        if not np.isfinite(numbers).all():
            raise ModelError(
                f"the weights of {self.name} are damaged: its attention is not a number",
            )

    def make_masks(self, batch: Sequence[Intervention], length: int) -> dict[int, Array]:
        """Return the masks of the layers in which interventions cut edges, by the layer's number.

        A mask is (intervention, head or 1, query, key), and False where an edge is cut. It does not
        hide what causality and windows hide. Layers without a cut have no mask.

        length: the number of tokens of the text. Raises UsageError for edges that are not there, or
        whose cuts leave a query without a key.
        """
        architecture = self.architecture
        size = architecture.heads, length, length
        sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
        for layer in range(architecture.layers):
            sizes[KIND, layer] = size
        require_edges(batch, sizes)
        masks: dict[int, Array] = {}
        for layer in range(architecture.layers):
            cut = mask_cut_edges(batch, KIND, layer, size)
            if cut is None:
                continue
            require_keys(self.make_layer_mask(layer, length), cut)
            masks[layer] = self.place_array(~cut)
        return masks

    def make_layer_mask(self, layer: int, length: int) -> Visible:
        """Return booleans (query, key), True where causality and windows let a query attend."""
        causal = self.architecture.causal
        mask: Visible = np.tri(length, dtype=bool) if causal else np.ones((length, length), bool)
        window = self.architecture.windows[layer]
        if window is None or window >= length:
            return mask
        return np.asarray(mask & make_window(length, window, causal=causal, like=mask))

    def make_visible(self, intervention: Intervention, length: int) -> Visible:
        """Return which keys queries see: (layer or 1, head or 1, query, key).

        There is one layer, and one head, where all are alike. length: the number of tokens of the
        text.
        """
        architecture = self.architecture
        layers = range(architecture.layers)
        masks = [self.make_layer_mask(layer, length) for layer in layers]
        if not intervention.cuts:
            if all(np.array_equal(mask, masks[0]) for mask in masks):
                return masks[0][None, None]
            return np.stack(masks)[:, None]
        size = architecture.heads, length, length
        of_layers = []
        for layer, mask in zip(layers, masks, strict=True):
            cut = mask_cut_edges([intervention], KIND, layer, size)
            visible = mask if cut is None else mask & ~cut[0]
            of_layers.append(np.broadcast_to(visible, size))
        return np.stack(of_layers)


def count_layers(runs: Iterator[LayerRun], count: int) -> Iterator[LayerRun]:
    """Yield the runs of the first layers, and say how many of them are done.

    runs: those of all layers; the others are not computed. count: of the layers that are.
    """
    return count_steps(islice(runs, count), "reading the text", "layer", count)


def list_heads(blocks: Sequence[HeadBlock]) -> dict[int, tuple[int, ...]]:
    """Return the heads of blocks by the numbers of their layers."""
    return {layer: heads for layers, heads in blocks for layer in layers}


def choose_numbers(run: LayerRun, heads: tuple[int, ...], request: Request) -> Floats:
    """Choose what a request shows of some heads of a layer, (head, query, key), in float32.

    They are those of the first text of the run. Scores are 0 where masked. Norms that are summed
    over the heads are those of one head.
    """
    chosen = list(heads)
    if request.method == SCORES:
        scores = convert_to_singles(run.attended.scores[0, chosen])
        return np.where(np.isneginf(scores), np.float32(0), scores)
    weights = convert_to_singles(run.attended.weights[0, chosen])
    if request.method != NORM:
        return weights
    value = share_heads(run.value[0], run.query.shape[1])
    moved = compute_moved_vectors(value, run.projection.swapaxes(0, 1))
    vectors = convert_to_singles(moved[chosen])
    if request.summed:
        sums = measure_sum_lengths(weights, compute_inner_products(vectors))
        return np.asarray(sums[None], np.float32)
    lengths: Floats = measure_vector_lengths(vectors)
    return weights * lengths[:, None]


def keep_layer(
    layer: int,
    heads: tuple[int, ...],
    tokens: tuple[Token, ...],
    numbers: Floats,
    visible: Visible,
    request: Request,
    *,
    key_numbers: KeyNumbers | None = None,
) -> AttentionMap:
    """Make the map of one layer that a request asks for, out of its numbers (head, query, key).

    visible: True where a query may attend, (layer or 1, head or 1, query, key), of all layers and
    heads of the model, or one of each if they are alike. request: one whose window is in ``rows``
    and ``columns``. key_numbers: the group of each key, if what queries give to groups is kept.
    """
    seen = visible[[layer]] if len(visible) > 1 else visible
    if seen.shape[1] > 1:
        seen = seen[:, list(heads)]
    names: tuple[int | str, ...] = heads
    if request.summed:
        names = ("sum",)
        seen = np.asarray(seen.any(1, keepdims=True))
    return make_whole_map(
        (layer,), names, tokens, numbers[None], seen, request, key_numbers=key_numbers
    )


def convert_to_singles(array: Array) -> Floats:
    """Return an array of NumPy, or a tensor of any type and device, as NumPy's float32."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float32, copy=False)
    singles: Floats = array.float().cpu().numpy()
    return singles


def convert_to_doubles(array: Array) -> Doubles:
    """Return an array of NumPy, or a tensor of any type and device, as NumPy's float64."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    doubles: Doubles = array.cpu().double().numpy()
    return doubles
