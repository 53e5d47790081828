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
from attnviz.errors import ModelError, UsageError, require_packages
from attnviz.layer.multihead import apply_linear, apply_rotary, split_heads
from attnviz.layer.norms import (
    compute_inner_products,
    measure_sum_lengths,
    measure_vector_lengths,
)
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
from attnviz.models.base import (
    SupportsLosses,
    SupportsOperands,
    SupportsPredictions,
)
from attnviz.models.checks import (
    find_torch_device,
    require_length,
    require_no_run,
    require_none,
)
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
from attnviz.selection import choose_kinds, note_windows, resolve_blocks

# the sign that the tokenizer decodes the first bytes of another sign to
BROKEN = "\ufffd"
LIKELIEST_TOKEN = -1  # in place of the id of a token

RunLayers = Callable[[int], list[LayerResult]]
"""Run the first so many layers on the ids of a text, and return them."""


class Builtin(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A language model made of our own attention layer."""

    def __init__(self, name: str, folder: Path, placement: Placement) -> None:
        """Read a model that ``attnviz train`` wrote, and place its parameters on a device.

        name: the name of the model in pictures and messages. placement: the device and the number
        type. Raises ModelError for a damaged folder, and UsageError for a device that is not there.
        """
        self.name = name
        stored = store.read_stored_model(folder)
        self.config = stored.config
        try:
            self.tokenizer = Tokenizer.from_str(stored.tokenizer)
        except Exception as error:  # the library raises the bare class
            raise ModelError(f"the tokenizer in {folder} is damaged: {error}") from error
        # the letters "<bos>" in a text are read as letters, not as the special token
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
        """Read a model that ``attnviz train`` wrote from its folder.

        name: the name of the model in pictures and messages. folders: the folder of the model; a
        folder of an adapter or of another tokenizer is refused. placement: the device and the
        number type. Raises ModelError for what is refused, and for a damaged folder.
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
        """Return a NumPy array ready to compute with, as a tensor if the model runs in torch.

        Without a torch device it stays a NumPy array. dtype: the name of the type to convert it to;
        None leaves its own.
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
        """Run the model on a prompt and return what a request names of its attention.

        intervention: what is changed in the run; nothing by default. The capture has a map for each
        rectangle of layers and heads. Raises UsageError for a layer, a head or an edge that is not
        there, for a part of the prompt that the model cannot read, and for cuts that leave a query
        without a key; InputError for a text that does not fit; ModelError for damaged weights.
        """
        self.require_readable(prompt, is_changed=intervention != NOTHING)
        choose_kinds(request.kinds, ("self",))
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
        # the query or the key that the request names becomes a window
        request = request.resolve_window((tokens, tokens))
        maps: list[AttentionMap] = []
        for layers, heads in rectangles:
            cells = np.ix_(layers, heads)
            # without cuts one matrix is that of all layers and heads
            rectangle_visible = visible[cells] if intervention.cuts else visible
            if vectors is None:
                attention_map = make_whole_map(
                    layers,
                    heads,
                    tokens,
                    weights[cells],
                    visible=rectangle_visible,
                    request=request,
                )
            else:
                attention_map = make_norm_map(
                    layers,
                    heads,
                    tokens,
                    weights[cells],
                    visible=rectangle_visible,
                    vectors=vectors[cells],
                    request=request,
                )
            maps.append(attention_map)
        notes = [note for note in (length_note, gradient_note) if note]
        if request.windowed:
            notes += note_windows(request.rows, request.columns, [(tokens, tokens)])
        return Capture(self.name, text, tuple(maps), tuple(notes))

    def require_finite(self, weights: Floats) -> None:
        """Raise ModelError if attention weights are not finite, since the model is damaged then."""
        if not np.isfinite(weights).all():
            raise ModelError(
                f"the weights of {self.name} are damaged: its attention is not a number",
            )

    def require_readable(self, prompt: Prompt, *, is_changed: bool) -> None:
        """Raise UsageError for a part of a prompt that the model cannot read.

        It reads one plain text, and no pair, target or chat. is_changed: True if an intervention
        changes the run; then the model does not write either.
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
        """Run the model under each of several interventions, and return the logits of a next token.

        An intervention is a change of one run. target: the position after which a token is
        predicted, by default the last one, and the token whose prediction is asked about, by
        default the likeliest one under the first intervention. truncate: True to cut a text that is
        too long. Raises UsageError for a target that is not one token, for edges that are not
        there, and for a part of the prompt that the model cannot read; InputError for a text that
        does not fit.
        """
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
        """Return the logits of the token that follows a position, (intervention, token id).

        ids: the token ids of the text. batch: interventions that are run at once.
        """

        def compute_logits() -> list[Any]:
            layers = self.run_layers(change_ids(ids, batch), batch)
            hidden = layers[-1].hidden[:, position]
            return [project_logits(self.parameters, hidden)]

        predictions: Floats = self.stack_arrays(compute_logits)[0]
        return predictions

    def find_target_id(self, target: Target) -> int:
        """Return the id of the token that a target names; -1 if it names none.

        -1 stands for the likeliest token, which is known only after a run. Raises UsageError if the
        text that the target gives is not exactly one token.
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
        """Multiply each attention weight with the gradient of a prediction by that weight.

        The prediction is the logit of the target's token, less the mean of all logits. Returns the
        products, (layer, head, query, key), with 0 in place of negative ones, and a note that says
        what the gradients are of.

        ids, tokens: the ids and the tokens of the text. intervention: what is changed in the run.
        """
        require_packages("a gradient", "torch")
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
        """Return the vectors that one head computes with for one query of a prompt.

        They are the query, and all keys and values. The head and the query are the first that the
        request names. Raises UsageError if they are not there, InputError for a text that does not
        fit.
        """
        layers, heads = resolve_blocks(request.layers, request.heads, self.heads_by_layer)[0]
        ids, tokens, _, _ = self.read_prompt(prompt, request.truncate)
        query = request.resolve_window((tokens, tokens)).rows.start
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
        """Return the vectors that one head of a layer computes with for one query of a text.

        They are the query, and all keys and values. The queries, keys and values are computed once
        more here, out of what the layer reads.

        ids: the token ids of the text. query: the position of the query.
        """
        head_outputs: dict[int, Any] = {}

        # called with the outputs of the heads of each layer, in order to change them
        def keep_outputs(number: int, outputs: Any, _: Any) -> Any:
            head_outputs[number] = outputs
            return outputs

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
        """Return the ids, the tokens and the text of a prompt, and a note if it was cut.

        The ids, tokens and text include what the model writes after the text, if the prompt asks
        for it. truncate: True to cut a text that is longer than the model can read. Raises
        InputError for a longer text otherwise.
        """
        require_no_run()
        if prompt.ids is not None:
            return self.read_ids(list(prompt.ids))
        encoding = self.tokenizer.encode(prompt.text)
        positions = self.config.positions
        length = len(encoding.ids)
        note = require_length(
            length,
            positions,
            truncate,
            model=self.name,
            writes=prompt.generate,
        )
        if note:
            encoding.truncate(positions - prompt.generate)
        ids = list(encoding.ids)
        tokens = list_encoding_tokens(encoding, prompt.text)
        text = prompt.text
        for count in range(1, prompt.generate + 1):
            ids.append(self.predict_token(ids))
            # a sign, such as an emoji, may take several tokens: wait until its bytes are complete
            new_ids = ids[len(tokens) :]
            piece = self.tokenizer.decode(new_ids)
            if piece.endswith(BROKEN) and count < prompt.generate:
                continue
            span = len(text), len(text) + len(piece)
            text += piece
            tokens += tuple(Token.of("", number, span, False, text) for number in new_ids)
        return ids, tokens, text, note

    def read_ids(self, ids: list[int]) -> tuple[list[int], tuple[Token, ...], str, None]:
        """Return token ids, their tokens, the text that they spell, and None in place of a note.

        Raises InputError for more ids than the model reads.
        """
        positions = self.config.positions
        require_length(
            len(ids),
            positions,
            truncate=False,
            model=self.name,
            what="the sequence of ids",
        )
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
        """Run layers of the model on token ids, and return the result of each layer.

        ids: (intervention, token). batch: the interventions, which may cut different edges, and
        replace the outputs of heads alike. count: the number of layers to run, beginning with the
        first; None for all.
        """
        masks = self.make_masks(batch, ids.shape[1])
        placed_ids = self.place_array(ids)
        steps = evaluate_layers(self.parameters, placed_ids, self.config, masks, batch[0].change)
        return list(islice(steps, count))

    def read_vocabulary(self) -> Vocabulary:
        """Return the token ids of which sequences for the model can be made up."""
        plain = tuple(range(BOS_ID + 1, self.config.vocabulary))
        return Vocabulary(plain, (BOS_ID,), (), self.config.positions)

    def losses(self, ids: Ids, change: OutputChange | None = None) -> Floats:
        """Measure how badly the model predicts each token of some sequences from those before it.

        ids: the token ids, (sequences, n). Returns the cross-entropies in nats, (sequences, n - 1),
        since the first token is not predicted. change: a function that replaces the outputs of
        heads.
        """
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
        """Return the masks of the layers in which interventions cut edges, by the layer's number.

        A mask is (intervention, head or 1, query, key), and False where an edge is cut. It does not
        hide the later keys, which the model does by itself. Layers without a cut have no mask.

        length: the number of tokens of the text. Raises UsageError for edges that are not there, or
        whose cuts leave a query without a key.
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
            causal = np.tri(length, dtype=bool)
            require_keys(causal, cut)
            masks[layer] = self.place_array(~cut)
        return masks

    def make_visible(self, intervention: Intervention, length: int) -> Visible:
        """Return a mask (layer, head, query, key), True where a query may attend to a key.

        It is (1, 1, query, key) if the intervention cuts no edges. length: the number of tokens of
        the text.
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
        """Return the attention weights, or scores, of the layers up to a last one.

        They are (layer, head, query, key), of the first text of the run. method: "scores" gives the
        scores before the softmax, with 0 where masked; any other method gives the weights.
        run_layers: a function that runs so many layers and returns their results.
        """

        def compute_layer_weights() -> list[Any]:
            return [layer.attended.weights[0] for layer in run_layers(last_layer + 1)]

        def compute_layer_scores() -> list[Any]:
            return [layer.attended.scores[0] for layer in run_layers(last_layer + 1)]

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
        """Return the vector that each head would add for each token if its whole weight lay there.

        The vectors are (layer, head, key, dim), of the layers up to a last one and of the first
        text.

        run_layers: a function that runs so many layers and returns their results. ids: the token
        ids that it runs on, (intervention, token).
        """

        def compute_layer_vectors() -> list[Any]:
            embeddings = self.parameters["embedding"][self.place_array(ids[0])]
            layer_inputs = [embeddings]
            layer_inputs += [layer.hidden[0] for layer in run_layers(last_layer)]
            return [
                compute_head_vectors(self.parameters, hidden, number, self.config.heads)
                for number, hidden in enumerate(layer_inputs)
            ]

        return self.stack_arrays(compute_layer_vectors)

    def stack_arrays(self, compute: Callable[[], list[Any]]) -> Floats:
        """Call a function that computes arrays, and stack these as one NumPy array of float32.

        torch computes them without gradients. compute: a function that returns arrays or tensors of
        one shape, such as one for each layer.
        """
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
    """Make the map of norm-weighted attention: of the lengths of the vectors that heads move.

    For a query and a key, a head moves the vector of the key times the weight. The map has the
    length of this vector for each head or, if the request asks for it, the length of the sum of the
    vectors of all heads.

    layers, heads: the numbers of the layers and heads in the arrays. tokens: the queries, which are
    also the keys. weights: (layer, head, query, key). visible: True where a query may attend; it
    broadcasts to the weights. vectors: what heads move of each key, (layer, head, key, dim).
    """
    if not request.summed:
        norms = weights * measure_vector_lengths(vectors)[:, :, None]
        return make_whole_map(layers, heads, tokens, norms, visible=visible, request=request)
    layer_norms = []
    for layer_weights, layer_vectors in zip(weights, vectors, strict=True):
        layer_norm = measure_sum_lengths(layer_weights, compute_inner_products(layer_vectors))
        layer_norms.append(layer_norm)
    norms = np.stack(layer_norms)[:, None].astype(np.float32)
    seen_by_any = np.asarray(visible.any(1, keepdims=True))
    return make_whole_map(layers, ("sum",), tokens, norms, visible=seen_by_any, request=request)


def convert_to_doubles(array: Any) -> Any:
    """Return an array of NumPy, or a tensor of any type and device, as NumPy's float64."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    return array.double().cpu().numpy()


def runs_in_numpy(placement: Placement) -> bool:
    """Return True if a model runs in NumPy on some device and in some type, rather than in torch.

    A user may ask for torch by name. NumPy has no bfloat16, and nothing is gained in its float16.
    """
    on_cpu = placement.device in ("auto", "cpu") and placement.engine != "torch"
    return on_cpu and placement.dtype in ("auto", "float32", "float64")


def list_encoding_tokens(encoding: Encoding, text: str) -> tuple[Token, ...]:
    """Return the tokens of a text as the tokenizer encoded it, special tokens included.

    Each token has its name, its id, and the span of the text that it stands for.
    """
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
