"""A checkpoint that runs in NumPy, as a model whose attention can be captured."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from attnviz.analysis.explain import Operands
from attnviz.errors import ModelError
from attnviz.layer.multihead import share_heads
from attnviz.layer.norms import (
    compute_inner_products,
    compute_moved_vectors,
    measure_sum_lengths,
    measure_vector_lengths,
)
from attnviz.lm.corpus import Ids
from attnviz.lm.transformer import LayerRun, make_window, run_transformer
from attnviz.models.base import SupportsOperands, SupportsSequences
from attnviz.models.checks import require_memory, require_none
from attnviz.models.interventions import (
    batch_interventions,
    change_ids,
    mask_cut_edges,
    require_edges,
    require_keys,
)
from attnviz.models.numpy.checkpoint import Checkpoint
from attnviz.models.predictions import LIKELIEST_OUTPUT, choose_position, find_token_id, spell_token
from attnviz.models.prompts import EncodedPrompt, encode_text, make_vocabulary, spell_prompt
from attnviz.models.whole_weights import make_whole_map
from attnviz.record import NORM, SCORES, AttentionMap, Capture, Floats, Kind, Visible
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Intervention,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
)
from attnviz.selection import choose_kinds, note_windows, resolve_blocks

KIND: Kind = "self"
ENGINE = "the engine is attnviz's own transformer, in NumPy"


class NumpyModel(SupportsOperands, SupportsSequences):
    """A transformer of a checkpoint, with its tokenizer."""

    def __init__(self, name: str, checkpoint: Checkpoint, tokenizer: Any) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.architecture = checkpoint.architecture
        self.tokenizer = tokenizer

    @property
    def heads_by_layer(self) -> dict[int, range]:
        """The heads of each layer."""
        architecture = self.architecture
        return {layer: range(architecture.heads) for layer in range(architecture.layers)}

    @property
    def positions(self) -> int | None:
        """The longest text that the model and its tokenizer read, in tokens; None without limit."""
        limits = (self.architecture.positions, self.tokenizer.model_max_length)
        return min((limit for limit in limits if limit), default=None)

    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run the model and keep what a request names; see ``SupportsPredictions.capture``."""
        choose_kinds(request.kinds, (KIND,))
        blocks = resolve_blocks(request.layers, request.heads, self.heads_by_layer)
        encoded = self.encode_prompt(prompt, request.truncate)
        tokens = encoded.tokens
        request = request.resolve_window((tokens, tokens))
        heads_by_layer = {layer: heads for layers, heads in blocks for layer in layers}
        count = sum(len(heads) for heads in heads_by_layer.values())
        require_memory({(len(tokens), len(tokens)): count})
        numbers = self.compute_numbers(encoded, request, intervention, heads_by_layer)
        visible = self.make_visible(intervention, len(tokens))
        maps = [
            self.make_map(layers, heads, encoded, numbers, visible, request)
            for layers, heads in blocks
        ]
        notes = list(encoded.notes)
        if request.windowed:
            notes += note_windows(request.rows, request.columns, [(tokens, tokens)])
        return Capture(
            self.name,
            encoded.text,
            tuple(maps),
            tuple(notes),
            pair=prompt.pair,
            segments=encoded.segments,
            fidelity_reference=ENGINE,
        )

    def compute_numbers(
        self,
        encoded: EncodedPrompt,
        request: Request,
        intervention: Intervention,
        heads_by_layer: Mapping[int, tuple[int, ...]],
    ) -> dict[int, Floats]:
        """Compute what a request shows of heads, (head, query, key) by the number of the layer.

        That is their weights, their scores, or the norms of what they move; of norms that are
        summed over the heads there is one for all. Layers after the last one of these are not
        computed. Raises ModelError for weights that are not numbers.
        """
        numbers: dict[int, Floats] = {}
        last = max(heads_by_layer)
        for layer, run in enumerate(self.run_layers(encoded, [intervention])):
            if layer in heads_by_layer:
                numbers[layer] = choose_numbers(run, heads_by_layer[layer], request)
                self.require_finite(numbers[layer])
            if layer == last:
                break
        return numbers

    def run_layers(
        self,
        encoded: EncodedPrompt,
        batch: Sequence[Intervention],
    ) -> Iterator[LayerRun]:
        """Run the layers one by one under each intervention of a batch.

        Arrays begin with the axis of the interventions, which have the same change of heads.
        """
        ids = change_ids(encoded.ids, batch)
        segments: Ids | None = None
        if encoded.segment_ids is not None:
            segments = np.broadcast_to(np.array(encoded.segment_ids), ids.shape)
        masks = self.make_masks(batch, ids.shape[-1])
        return run_transformer(
            self.checkpoint,
            self.architecture,
            ids,
            segments=segments,
            masks=masks,
            change=batch[0].change,
        )

    def make_map(
        self,
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        encoded: EncodedPrompt,
        numbers: dict[int, Floats],
        visible: Visible,
        request: Request,
    ) -> AttentionMap:
        """Make the map of some heads of some layers out of the numbers of these layers.

        visible: (layer or 1, head or 1, query, key).
        """
        seen = pick_cells(visible, layers, heads)
        names: tuple[int | str, ...] = heads
        if request.summed:
            names = ("sum",)
            seen = np.asarray(seen.any(1, keepdims=True))
        stacked = np.stack([numbers[layer] for layer in layers])
        return make_whole_map(layers, names, encoded.tokens, stacked, seen, request)

    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """Return the vectors of one head for one query; see ``SupportsOperands.operands``."""
        layers, heads = resolve_blocks(request.layers, request.heads, self.heads_by_layer)[0]
        layer, head = layers[0], heads[0]
        encoded = self.encode_prompt(prompt, request.truncate)
        tokens = encoded.tokens
        query = request.resolve_window((tokens, tokens)).rows.start
        outputs: dict[int, Any] = {}

        def keep_outputs(number: int, output: Any, _: Any) -> Any:
            return outputs.setdefault(number, output)

        keeping = Intervention(change=keep_outputs)
        runs = self.run_layers(encoded, [keeping])
        run = next(islice(runs, layer, None))
        visible = self.make_visible(NOTHING, len(tokens))
        seen = pick_cells(visible, (layer,), (head,))[0, 0]
        shared = self.architecture.heads // self.architecture.kv_heads
        return Operands(
            run.query[0, head, query].astype(np.float64),
            run.key[0, head // shared].astype(np.float64),
            run.value[0, head // shared].astype(np.float64),
            np.broadcast_to(seen, (len(tokens), len(tokens)))[query],
            self.architecture.scale,
            softcap=self.architecture.softcap,
            hidden=run.entered[0, query].astype(np.float64),
            output=outputs[layer][0, query, head].astype(np.float64),
        )

    @property
    def predicts(self) -> bool:
        """True if the checkpoint holds what makes logits of the next token."""
        return self.checkpoint.output is not None

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """Return the logits of the next token under interventions; see ``SupportsPredictions``.

        Raises ModelError for a checkpoint that predicts no next tokens.
        """
        encoded = self.encode_prompt(prompt, truncate)
        position = choose_position("next", self.tokenizer, encoded.tokens, target.query)
        number = find_token_id(target.token, self.tokenizer)
        logits = [
            self.checkpoint.compute_logits(self.run_whole(encoded, batch)[:, position])
            for batch in batch_interventions(interventions)
        ]
        outputs = np.concatenate(logits)
        if number == LIKELIEST_OUTPUT:
            number = int(outputs[0].argmax())
        name_output = partial(spell_token, self.tokenizer)
        return Response("next", encoded.tokens, position, outputs, number, name_output)

    def run_whole(self, encoded: EncodedPrompt, batch: Sequence[Intervention]) -> Floats:
        """Run all layers under interventions; return the last one's output, (run, token, dim)."""
        *_, last = self.run_layers(encoded, batch)
        return np.asarray(last.hidden)

    def read_vocabulary(self) -> Vocabulary:
        """Return what sequences of token ids are made of; see ``SupportsSequences``."""
        return make_vocabulary(self.tokenizer, self.architecture.vocabulary, self.positions)

    def encode_prompt(self, prompt: Prompt, truncate: bool) -> EncodedPrompt:
        """Return a prompt as the model reads it.

        Raises UsageError for what the model cannot read, InputError for a text that does not fit,
        and ModelError for a tokenizer of another model.
        """
        require_none({"--target": prompt.target}, f"{self.name} has no decoder that would read it")
        if prompt.ids is not None:
            encoded = spell_prompt(self.tokenizer, prompt.ids, self.positions, self.name)
        else:
            encoded = encode_text(self.tokenizer, prompt, self.positions, truncate, self.name)
        self.require_embeddings(encoded)
        return encoded

    def require_embeddings(self, encoded: EncodedPrompt) -> None:
        """Raise ModelError for a token that the model has no embedding for."""
        rows = self.architecture.vocabulary
        number = max(encoded.ids)
        if number < rows:
            return
        token = self.tokenizer.convert_ids_to_tokens([number])[0]
        raise ModelError(
            f"the tokenizer makes token {number} {token!r} of this text, "
            f"and {self.name} has embeddings for the tokens 0 to {rows - 1}: "
            "give the tokenizer that it was trained with, --tokenizer FOLDER",
        )

    def require_finite(self, numbers: Floats) -> None:
        """Raise ModelError if what a layer computes is not a number."""
        if not np.isfinite(numbers).all():
            raise ModelError(
                f"the weights of {self.name} are damaged: its attention is not a number",
            )

    def make_masks(self, batch: Sequence[Intervention], length: int) -> dict[int, Visible]:
        """Return a mask of each layer whose edges are cut, (intervention, head or 1, query, key).

        It is False where an edge is cut. Raises UsageError for edges that are not there, or that
        leave a query without a key.
        """
        size = self.architecture.heads, length, length
        sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
        for layer in range(self.architecture.layers):
            sizes[KIND, layer] = size
        require_edges(batch, sizes)
        masks: dict[int, Visible] = {}
        for layer in range(self.architecture.layers):
            cut = mask_cut_edges(batch, KIND, layer, size)
            if cut is None:
                continue
            require_keys(self.make_layer_mask(layer, length), cut)
            masks[layer] = ~cut
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

        There is one layer, and one head, where all are alike.
        """
        layers = range(self.architecture.layers)
        masks = [self.make_layer_mask(layer, length) for layer in layers]
        if not intervention.cuts:
            if all(np.array_equal(mask, masks[0]) for mask in masks):
                return masks[0][None, None]
            return np.stack(masks)[:, None]
        size = self.architecture.heads, length, length
        of_layers = []
        for layer, mask in zip(layers, masks, strict=True):
            cut = mask_cut_edges([intervention], KIND, layer, size)
            visible = mask if cut is None else mask & ~cut[0]
            of_layers.append(np.broadcast_to(visible, size))
        return np.stack(of_layers)


def choose_numbers(run: LayerRun, heads: tuple[int, ...], request: Request) -> Floats:
    """Choose what a request shows of some heads of a layer, (head, query, key).

    Norms that are summed over the heads are those of one head.
    """
    chosen = list(heads)
    if request.method == SCORES:
        scores = run.attended.scores[0, chosen]
        return np.where(np.isneginf(scores), np.float32(0), scores)
    weights: Floats = run.attended.weights[0, chosen]
    if request.method != NORM:
        return weights
    head_count = run.query.shape[1]
    value = share_heads(run.value, head_count)[0]
    vectors = compute_moved_vectors(value, run.projection.swapaxes(0, 1))[chosen]
    if request.summed:
        sums = measure_sum_lengths(weights, compute_inner_products(vectors))
        return np.asarray(sums[None], np.float32)
    lengths: Floats = measure_vector_lengths(vectors)
    return weights * lengths[:, None]


def pick_cells(
    visible: Visible,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> Visible:
    """Pick layers and heads of a mask that may hold one of each for all of them."""
    if len(visible) > 1:
        visible = visible[list(layers)]
    if visible.shape[1] > 1:
        visible = visible[:, list(heads)]
    return visible
