"""Our own language model, from the package or from a folder that ``attnviz train`` wrote.

On the CPU it runs in NumPy, so that nothing waits for torch. For other devices the same functions
run on torch tensors. Its texts are short, so whatever is to be kept is made of all of its weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from attnviz.analysis.explain import Operands, split_score_scale
from attnviz.errors import ModelError, UsageError
from attnviz.layer.multihead import apply_linear, apply_rotary, split_heads
from attnviz.layer.norms import measure_lengths, measure_sums, multiply_vectors
from attnviz.lm import store
from attnviz.lm.corpus import Ids
from attnviz.lm.model import (
    LayerResult,
    apply_norm,
    compute_head_vectors,
    compute_losses,
    evaluate_layers,
    project_logits,
    select_parameters,
)
from attnviz.lm.tokenizer import BOS_ID
from attnviz.models.base import SupportsLosses, SupportsOperands, SupportsPredictions
from attnviz.models.checks import find_torch_device, require_length, require_no_run, require_none
from attnviz.models.folders import Folders
from attnviz.models.interventions import (
    batch_interventions,
    change_ids,
    mask_cut_edges,
    require_edges,
    require_keys,
)
from attnviz.models.whole_weights import make_whole_map
from attnviz.record import (
    GRADIENT,
    NORM,
    SCORES,
    AttentionMap,
    Capture,
    Floats,
    Kind,
    Method,
    Token,
    Visible,
)
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Intervention,
    OutputChange,
    Placement,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
    describe_gradient,
    explain_no_token,
    restore_space,
)
from attnviz.selection import note_windows, require_kinds, resolve_blocks

# the sign that the tokenizer decodes the first bytes of another sign to
BROKEN = "\ufffd"
LIKELIEST_TOKEN = -1  # in place of the id of a token

RunLayers = Callable[[int], list[LayerResult]]
"""Run the first so many layers on the ids of a text, and return them."""


class Builtin(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A language model made of our own attention layer."""

    def __init__(self, name: str, folder: Path, placement: Placement) -> None:
        self.name = name
        stored = store.read_stored_model(folder)
        self.config = stored.config
        try:
            self.tokenizer = Tokenizer.from_str(stored.tokenizer)
        except Exception as error:  # the library raises the bare class
            raise ModelError(f"the tokenizer in {folder} is damaged: {error}") from error
        # "<bos>" in a text is text
        self.tokenizer.encode_special_tokens = True
        self.torch_device = None
        if not runs_in_numpy(placement):
            self.torch_device = find_torch_device(placement.device)
        dtype = "float32" if placement.dtype == "auto" else placement.dtype
        self.parameters = {
            name: self.place_array(array, dtype) for name, array in stored.parameters.items()
        }

    @classmethod
    def load(cls, name: str, folders: Folders, placement: Placement) -> "Builtin":
        """Read a model from its folders.

        Raises ModelError for a damaged folder, and for an adapter or another tokenizer.
        """
        if folders.adapter or folders.tokenizer:
            advice = "name another model with --model"
            raise ModelError(f"{name} takes no adapter and no other tokenizer: {advice}")
        return cls(name, folders.model, placement)

    @property
    def heads_by_layer(self) -> dict[int, range]:
        """The heads of each layer."""
        return {layer: range(self.config.heads) for layer in range(self.config.layers)}

    def place_array(self, array: Any, dtype: str | None = None) -> Any:
        """Return an array as it is computed with: in NumPy, or as a tensor on the torch device.

        dtype: the type to convert it to; None leaves its own.
        """
        if self.torch_device is None:
            return array.astype(dtype or array.dtype, copy=False)
        import torch

        tensor = torch.from_numpy(array).to(self.torch_device)
        return tensor.to(getattr(torch, dtype)) if dtype else tensor

    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run the model and keep what a request names; see ``SupportsPredictions.capture``."""
        self.require_readable(prompt, is_changed=intervention != NOTHING)
        require_kinds(request.kinds, ("self",))
        rectangles = resolve_blocks(request.layers, request.heads, self.heads_by_layer)
        ids, tokens, text, length_note = self.read_prompt(prompt, request.truncate)
        last_layer = max(max(layers) for layers, _ in rectangles)
        gradient_note = None
        vectors = None
        if request.method == GRADIENT:
            target = request.target
            weights, gradient_note = self.compute_gradients(ids, tokens, intervention, target)
        else:
            changed_ids = change_ids(ids, [intervention])
            run_layers = partial(self.run_layers, changed_ids, [intervention])
            weights = self.compute_weights(run_layers, last_layer, request.method)
            if request.method == NORM:
                vectors = self.compute_vectors(run_layers, changed_ids, last_layer)
        self.require_finite(weights)
        visible = self.make_visible(intervention, len(ids))
        request = request.placed((tokens, tokens))
        maps: list[AttentionMap] = []
        for layers, heads in rectangles:
            cells = np.ix_(layers, heads)
            seen = visible[cells] if intervention.cuts else visible
            if vectors is None:
                attention_map = make_whole_map(layers, heads, tokens, weights[cells], seen, request)
            else:
                attention_map = make_norm_map(
                    layers,
                    heads,
                    tokens,
                    weights[cells],
                    seen,
                    vectors[cells],
                    request,
                )
            maps.append(attention_map)
        notes = [note for note in (length_note, gradient_note) if note]
        if request.windowed:
            notes += note_windows(request.rows, request.columns, [(tokens, tokens)])
        return Capture(self.name, text, tuple(maps), tuple(notes))

    def require_finite(self, weights: Floats) -> None:
        """Raise ModelError if the weights of attention are no numbers."""
        if not np.isfinite(weights).all():
            raise ModelError(
                f"the weights of {self.name} are damaged: its attention is not a number",
            )

    def require_readable(self, prompt: Prompt, *, is_changed: bool) -> None:
        """Raise UsageError for a part of a prompt that the model cannot read.

        is_changed: whether an intervention changes the run.
        """
        other_inputs = {"--pair": prompt.pair, "--target": prompt.target, "--chat": prompt.chat}
        require_none(other_inputs, f"{self.name} reads one plain text")
        changed_writing = {"--generate": prompt.generate and is_changed}
        require_none(changed_writing, "what is changed is a text that is there")

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """Return what the model predicts under interventions; see ``SupportsPredictions``."""
        self.require_readable(prompt, is_changed=True)
        ids, tokens, _, _ = self.read_prompt(prompt, truncate)
        position = find_target_position(target, tokens)
        target_id = self.find_target_id(target)
        predictions = [
            self.predict_logits(ids, position, batch)
            for batch in batch_interventions(interventions)
        ]
        outputs = np.concatenate(predictions)
        if target_id < 0:
            target_id = int(outputs[0].argmax())
        return Response("next", tokens, position, outputs, target_id, self.spell_token)

    def predict_logits(
        self,
        ids: Sequence[int],
        position: int,
        batch: Sequence[Intervention],
    ) -> Floats:
        """Return the logits of the token after a position, (intervention, token)."""

        def compute_logits() -> list[Any]:
            layers = self.run_layers(change_ids(ids, batch), batch)
            hidden = layers[-1].hidden[:, position]
            return [project_logits(self.parameters, hidden)]

        predictions: Floats = self.stack_arrays(compute_logits)[0]
        return predictions

    def find_target_id(self, target: Target) -> int:
        """Return the id of the token that a target names, -1 for the likeliest.

        Raises UsageError unless it is one token.
        """
        if target.token is None:
            return LIKELIEST_TOKEN
        if isinstance(target.token, int):
            return target.token
        if target.token == self.tokenizer.id_to_token(BOS_ID):
            return BOS_ID
        encoding = self.tokenizer.encode(restore_space(target.token), add_special_tokens=False)
        if len(encoding.ids) != 1:
            pieces = [self.spell_token(number) for number in encoding.ids]
            raise UsageError(explain_no_token(target.token, pieces))
        return int(encoding.ids[0])

    def spell_token(self, number: int) -> str:
        """Return the text of a token; its name if it has no text."""
        return self.tokenizer.decode([number]) or str(self.tokenizer.id_to_token(number))

    def compute_gradients(
        self,
        ids: list[int],
        tokens: tuple[Token, ...],
        intervention: Intervention,
        target: Target,
    ) -> tuple[Floats, str]:
        """Multiply weights with the gradients of a target's logit by them, where that is positive.

        The products are (layer, head, query, key), and 0 where they are negative. torch computes
        them. A note says what the gradients are of.
        """
        from attnviz.lm.gradients import compute_gradients

        position = find_target_position(target, tokens)
        masks = self.make_masks([intervention], len(ids))
        changed_ids = change_ids(ids, [intervention])
        weighted, chosen = compute_gradients(
            self.parameters,
            changed_ids,
            position,
            self.find_target_id(target),
            self.config,
            masks,
            intervention.change,
        )
        name = self.spell_token(chosen)
        note = describe_gradient("the next token after", tokens[position], position, name)
        return weighted, note

    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """Return the vectors of one head for one query; see ``SupportsOperands.operands``."""
        layers, heads = resolve_blocks(request.layers, request.heads, self.heads_by_layer)[0]
        ids, tokens, _, _ = self.read_prompt(prompt, request.truncate)
        query = request.placed((tokens, tokens)).rows.start
        if self.torch_device is None:
            return self.compute_operands(ids, layers[0], heads[0], query)
        import torch

        with torch.inference_mode():
            return self.compute_operands(ids, layers[0], heads[0], query)

    def compute_operands(
        self,
        ids: list[int],
        layer: int,
        head: int,
        query: int,
    ) -> Operands:
        """Return the vectors of one head for one query of a text.

        The queries, keys and values are computed anew, out of what the layer reads.
        """
        head_outputs: dict[int, Any] = {}

        def keep_outputs(number: int, outputs: Any, _: Any) -> Any:
            return head_outputs.setdefault(number, outputs)

        placed_ids = self.place_array(np.array(ids))
        steps = evaluate_layers(self.parameters, placed_ids, self.config, change=keep_outputs)
        run = list(islice(steps, layer + 1))
        parameters = select_parameters(self.parameters, f"layers.{layer}.")
        hidden = run[layer - 1].hidden if layer else self.parameters["embedding"][placed_ids]
        x = apply_norm(hidden, parameters["attention_norm"])  # (n, dim)
        attention = select_parameters(parameters, "attention.")
        q, k, v = (
            split_heads(apply_linear(attention, name, x), self.config.heads)
            for name in ("query", "key", "value")
        )
        query_row = convert_to_doubles(apply_rotary(q)[head, query])
        keys = convert_to_doubles(apply_rotary(k)[head])
        values = convert_to_doubles(v[head])
        score, scale = split_score_scale(self.config.score, keys.shape[-1])
        visible = np.arange(len(ids)) <= query
        return Operands(
            query_row,
            keys,
            values,
            visible,
            scale,
            score,
            hidden=convert_to_doubles(x[query]),
            output=convert_to_doubles(head_outputs[layer][query, head]),
        )

    def read_prompt(
        self,
        prompt: Prompt,
        truncate: bool,
    ) -> tuple[list[int], tuple[Token, ...], str, str | None]:
        """Return the ids and tokens of a prompt, its text, and a note if it was cut.

        All three include what the model writes after the text. Raises InputError for a text that
        does not fit.
        """
        require_no_run()
        if prompt.ids is not None:
            return self.read_ids(list(prompt.ids))
        encoding = self.tokenizer.encode(prompt.text)
        positions = self.config.positions
        length = len(encoding.ids)
        note = require_length(length, positions, truncate, self.name, writes=prompt.generate)
        if note:
            encoding.truncate(positions - prompt.generate)
        ids = list(encoding.ids)
        tokens = list_encoding_tokens(encoding, prompt.text)
        text = prompt.text
        for count in range(1, prompt.generate + 1):
            ids.append(self.predict_token(ids))
            new_ids = ids[len(tokens) :]  # since the last whole sign
            piece = self.tokenizer.decode(new_ids)
            if piece.endswith(BROKEN) and count < prompt.generate:
                continue
            span = len(text), len(text) + len(piece)
            text += piece
            tokens += tuple(Token.of("", number, span, False, text) for number in new_ids)
        return ids, tokens, text, note

    def read_ids(self, ids: list[int]) -> tuple[list[int], tuple[Token, ...], str, None]:
        """Return token ids with their tokens, the text that they spell, and no note.

        Raises InputError for more ids than the model reads.
        """
        positions = self.config.positions
        require_length(len(ids), positions, False, self.name, what="the sequence of ids")
        tokens: list[Token] = []
        text = ""
        for number in ids:
            start = len(text)
            text += self.tokenizer.decode([number])
            name = str(self.tokenizer.id_to_token(number))
            token = Token.of(name, number, (start, len(text)), number == BOS_ID, text)
            tokens.append(token)
        return ids, tuple(tokens), text, None

    def predict_token(self, ids: list[int]) -> int:
        """Return the likeliest next token."""
        predictions = self.predict_logits(ids, -1, [NOTHING])
        return int(predictions[0].argmax())

    def run_layers(
        self,
        ids: Ids,
        batch: Sequence[Intervention],
        count: int | None = None,
    ) -> list[LayerResult]:
        """Run the first so many layers, or all, on ids (intervention, token).

        Layers after them are not computed. The interventions have the same change of heads.
        """
        masks = self.make_masks(batch, ids.shape[1])
        placed_ids = self.place_array(ids)
        steps = evaluate_layers(self.parameters, placed_ids, self.config, masks, batch[0].change)
        return list(islice(steps, count))

    def read_vocabulary(self) -> Vocabulary:
        """Return what sequences of token ids are made of; see ``SupportsSequences``."""
        plain = tuple(range(BOS_ID + 1, self.config.vocabulary))
        return Vocabulary(plain, (BOS_ID,), (), self.config.positions)

    def losses(self, ids: Ids, change: OutputChange | None = None) -> Floats:
        """Measure the loss of each next token, in nats; see ``SupportsLosses.losses``."""
        measured: Floats
        require_no_run()
        if self.torch_device is None:
            measured = compute_losses(self.parameters, ids, self.config, change)
        else:
            import torch

            with torch.inference_mode():
                tensor = compute_losses(self.parameters, self.place_array(ids), self.config, change)
                measured = tensor.cpu().numpy()
        return measured.astype(np.float32)

    def make_masks(self, batch: Sequence[Intervention], length: int) -> dict[int, Any]:
        """Return a mask of each layer whose edges are cut, (intervention, head or 1, query, key).

        It is False where an edge is cut. Raises UsageError for edges that are not there, or that
        leave a query without a key.
        """
        size = self.config.heads, length, length
        sizes: dict[tuple[Kind, int], tuple[int, int, int]] = {}
        for layer in range(self.config.layers):
            sizes["self", layer] = size
        require_edges(batch, sizes)
        masks: dict[int, Any] = {}
        for layer in range(self.config.layers):
            cut = mask_cut_edges(batch, "self", layer, size)
            if cut is None:
                continue
            require_keys(np.tri(length, dtype=bool), cut)
            masks[layer] = self.place_array(~cut)
        return masks

    def make_visible(self, intervention: Intervention, length: int) -> Visible:
        """Return which keys queries see, (layer, head, query, key).

        It is (1, 1, query, key) where no edges are cut.
        """
        causal = np.tri(length, dtype=bool)
        if not intervention.cuts:
            return causal[None, None]
        size = self.config.heads, length, length
        layers = []
        for layer in range(self.config.layers):
            cut = mask_cut_edges([intervention], "self", layer, size)
            visible = causal if cut is None else causal & ~cut[0]
            layers.append(np.broadcast_to(visible, size))
        return np.stack(layers)

    def compute_weights(
        self,
        run_layers: RunLayers,
        last_layer: int,
        method: Method,
    ) -> Floats:
        """Return the weights (layer, head, query, key) of the layers up to the last one asked for.

        For the method of scores they are the scores, 0 where masked.
        """

        def compute_layer_weights() -> list[Any]:
            return [block.attended.weights[0] for block in run_layers(last_layer + 1)]

        def compute_layer_scores() -> list[Any]:
            return [block.attended.scores[0] for block in run_layers(last_layer + 1)]

        if method != SCORES:
            return self.stack_arrays(compute_layer_weights)
        scores = self.stack_arrays(compute_layer_scores)
        return np.where(np.isneginf(scores), np.float32(0), scores)

    def compute_vectors(
        self,
        run_layers: RunLayers,
        ids: Ids,
        last_layer: int,
    ) -> Floats:
        """Return what heads move of each token, (layer, head, key, dim), up to the last layer."""

        def compute_layer_vectors() -> list[Any]:
            embeddings = self.parameters["embedding"][self.place_array(ids[0])]
            layer_inputs = [embeddings]
            layer_inputs += [block.hidden[0] for block in run_layers(last_layer)]
            return [
                compute_head_vectors(self.parameters, hidden, layer, self.config.heads)
                for layer, hidden in enumerate(layer_inputs)
            ]

        return self.stack_arrays(compute_layer_vectors)

    def stack_arrays(self, compute: Callable[[], list[Any]]) -> Floats:
        """Compute an array of each layer, and return them as one array of NumPy."""
        if self.torch_device is None:
            return np.stack(compute(), dtype=np.float32)
        import torch

        with torch.inference_mode():
            stacked: Floats = torch.stack(compute()).float().cpu().numpy()
        return stacked


def find_target_position(target: Target, tokens: Sequence[Token]) -> int:
    """Return the position of the token after which a target is predicted: the last by default."""
    return target.query.resolve(tokens).start if target.query else len(tokens) - 1


def make_norm_map(
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    tokens: tuple[Token, ...],
    weights: Floats,
    visible: Visible,
    vectors: Floats,
    request: Request,
) -> AttentionMap:
    """Make the map of the norms that heads move, each alone, or summed over them.

    weights: (layer, head, query, key). vectors: what heads move of each token, (layer, head, key,
    dim).
    """
    if not request.summed:
        norms = weights * measure_lengths(vectors)[:, :, None]
        return make_whole_map(layers, heads, tokens, norms, visible, request)
    layer_norms = []
    for layer_weights, layer_vectors in zip(weights, vectors, strict=True):
        layer_norm = measure_sums(layer_weights, multiply_vectors(layer_vectors))
        layer_norms.append(layer_norm)
    norms = np.stack(layer_norms)[:, None].astype(np.float32)
    seen_by_any = np.asarray(visible.any(1, keepdims=True))
    return make_whole_map(layers, ("sum",), tokens, norms, seen_by_any, request)


def convert_to_doubles(array: Any) -> Any:
    """Return an array of NumPy, or a tensor of any type and device, as NumPy's float64."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    return array.double().cpu().numpy()


def runs_in_numpy(placement: Placement) -> bool:
    """Return True if a placement is computed in NumPy.

    NumPy has no bfloat16, and nothing is gained in its float16.
    """
    on_cpu = placement.device in ("auto", "cpu")
    return on_cpu and placement.dtype in ("auto", "float32", "float64")


def list_encoding_tokens(encoding: Encoding, text: str) -> tuple[Token, ...]:
    """Return the tokens of an encoding: slices of the text, and special tokens by name."""
    columns = (
        encoding.tokens,
        encoding.ids,
        encoding.offsets,
        encoding.special_tokens_mask,
    )
    return tuple(
        Token.of(name, number, span, bool(mark), text)
        for name, number, span, mark in zip(*columns, strict=True)
    )
