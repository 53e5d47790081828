"""Our own language model, from the package or from a folder that ``attnviz train`` wrote.

On the CPU it runs in NumPy, so that nothing waits for torch. For other devices the same functions
run on torch tensors.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from attnviz.errors import InputError, ModelError, UsageError, require_packages
from attnviz.lm import store
from attnviz.lm.corpus import Ids
from attnviz.lm.model import (
    NamedParameters,
    compute_losses,
    make_architecture,
    project_logits,
)
from attnviz.lm.tokenizer import BOS_ID
from attnviz.lm.transformer import Architecture
from attnviz.models.array_model import (
    ArrayModel,
    convert_to_singles,
    keep_layer,
    list_heads,
)
from attnviz.models.base import SupportsLosses, SupportsPredictions
from attnviz.models.checks import (
    find_torch_device,
    require_length,
    require_no_run,
    require_none,
)
from attnviz.models.folders import Folders
from attnviz.models.interventions import change_ids, count_batches
from attnviz.models.kept_segments import resolve_segments
from attnviz.models.panics import refuse_tokenizer_errors
from attnviz.models.prompts import BROKEN, EncodedPrompt
from attnviz.models.tokenizer_bounds import require_bounded_tokenizer
from attnviz.models.whole_weights import join_maps_of_layers
from attnviz.progress import begin_step, count_steps
from attnviz.record import GRADIENT, Capture, Floats, Token
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
from attnviz.selection import HeadBlock

LIKELIEST_TOKEN = -1  # in place of the id of a token


class Builtin(ArrayModel, SupportsPredictions, SupportsLosses):
    """A language model made of our own attention layer."""

    def __init__(self, name: str, folder: Path, placement: Placement) -> None:
        """Read a model that ``attnviz train`` wrote, and place its parameters on a device.

        name: the name of the model in pictures and messages. placement: the device and the number
        type. Raises ModelError for a damaged folder, and UsageError for a device that is not there.
        """
        self.name = name
        stored = store.read_stored_model(folder)
        self.config = stored.config
        if folder != store.BUILTIN:
            require_bounded_tokenizer(folder)
        with refuse_tokenizer_errors(f"the tokenizer in {folder} is damaged"):
            self.tokenizer = Tokenizer.from_str(stored.tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # the letters "<bos>" in a text are read as letters, not as the special token
        self.tokenizer.encode_special_tokens = True
        if not runs_in_numpy(placement):
            self.torch_device = find_torch_device(placement.device, placement.dtype)
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
    def architecture(self) -> Architecture:
        """The sizes and switches of the model."""
        return make_architecture(self.config)

    @property
    def source(self) -> NamedParameters:
        """The parameters, which lie in memory."""
        return NamedParameters(self.parameters)

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
        blocks = self.choose_heads(request)
        encoded = self.encode_prompt(prompt, request.truncate)
        tokens = encoded.tokens
        # the query or the key that the request names becomes a window
        request = request.resolve_window((tokens, tokens))
        request = resolve_segments(request, encoded.text, encoded.segments)
        if request.method == GRADIENT:
            target = request.target
            numbers, note = self.compute_gradients(encoded, blocks, intervention, target)
            encoded = replace(encoded, notes=(*encoded.notes, note))
            visible = self.make_visible(intervention, len(tokens))
            layer_maps = (
                keep_layer(layer, heads, tokens, numbers[layer], visible, request)
                for layer, heads in list_heads(blocks).items()
            )
            maps = join_maps_of_layers(blocks, layer_maps)
        else:
            maps = self.compute_maps(encoded, blocks, intervention, request)
        return self.make_capture(encoded, maps, request)

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
        encoded = self.encode_prompt(prompt, truncate)
        tokens = encoded.tokens
        position = find_target_position(target, tokens)
        target_id = self.find_target_id(target)
        predictions = [
            self.predict_logits(encoded.ids, position, batch)
            for batch in count_batches(interventions)
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
        with self.without_gradients():
            hidden = self.run_whole(ids, batch)[:, position]
            return convert_to_singles(project_logits(self.parameters, hidden))

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
        with refuse_tokenizer_errors(f"the tokenizer of {self.name} cannot read this token"):
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
        encoded: EncodedPrompt,
        blocks: Sequence[HeadBlock],
        intervention: Intervention,
        target: Target,
    ) -> tuple[dict[int, Floats], str]:
        """Multiply each attention weight with the gradient of a prediction by that weight.

        The prediction is the logit of the target's token, less the mean of all logits. Returns the
        products, with 0 in place of negative ones, (head, query, key) by the number of the layer,
        and a note that says what the gradients are of. Raises ModelError if a product is not a
        number.
        """
        require_packages("a gradient", "torch")
        with begin_step("importing torch"):
            from attnviz.lm.gradients import compute_gradients
        from attnviz.models.restore import leave_meta_device

        tokens = encoded.tokens
        position = find_target_position(target, tokens)
        with leave_meta_device():
            weighted, chosen = compute_gradients(
                self.parameters,
                change_ids(encoded.ids, [intervention]),
                position,
                self.find_target_id(target),
                self.config,
                self.make_masks([intervention], len(tokens)),
                intervention.change,
            )
        self.require_finite(weighted)
        numbers = {
            layer: weighted[layer, list(heads)] for layer, heads in list_heads(blocks).items()
        }
        name = self.spell_token(chosen)
        note = describe_gradient("the next token after", tokens[position], position, name)
        return numbers, note

    def encode_prompt(self, prompt: Prompt, truncate: bool) -> EncodedPrompt:
        """Return a prompt as the model reads it, and a note if it was cut.

        The ids, tokens and text include what the model writes after the text, if the prompt asks
        for it. truncate: True to cut a text that is longer than the model can read. Raises
        InputError for a longer text otherwise.
        """
        require_no_run()
        if prompt.ids is not None:
            return self.read_ids(prompt.ids)
        with refuse_tokenizer_errors(f"the tokenizer of {self.name} cannot read this text"):
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
        self.require_known_tokens(ids)
        tokens = list_encoding_tokens(encoding, prompt.text)
        text = prompt.text
        written_counts = range(1, prompt.generate + 1)
        for count in count_steps(written_counts, "writing a continuation", "token"):
            ids.append(self.predict_token(ids))
            # a sign, such as an emoji, may take several tokens: wait until its bytes are complete
            new_ids = ids[len(tokens) :]
            piece = self.tokenizer.decode(new_ids)
            if piece.endswith(BROKEN) and count < prompt.generate:
                continue
            span = len(text), len(text) + len(piece)
            text += piece
            tokens += tuple(Token.of("", number, span, False, text) for number in new_ids)
        return EncodedPrompt(tuple(ids), tokens, text, notes=(note,) if note else ())

    def require_known_tokens(self, ids: Sequence[int]) -> None:
        """Raise ModelError for token ids of a text that the model has no embeddings for.

        A folder may hold the tokenizer of another model. Raises InputError if there are no ids.
        """
        if not ids:
            raise InputError(f"{self.name} makes no tokens of this text")
        rows = self.config.vocabulary
        number = max(ids)
        if number >= rows:
            raise ModelError(
                f"the tokenizer makes token {number} of this text, "
                f"and {self.name} has embeddings for the tokens 0 to {rows - 1}",
            )

    def read_ids(self, ids: tuple[int, ...]) -> EncodedPrompt:
        """Return token ids as a prompt, with their tokens and the text that they spell.

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
        return EncodedPrompt(ids, tuple(tokens), text)

    def predict_token(self, ids: list[int]) -> int:
        """Return the likeliest next token."""
        predictions = self.predict_logits(ids, -1, [NOTHING])
        return int(predictions[0].argmax())

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
        require_no_run()
        with self.without_gradients():
            placed_ids = self.place_array(ids)
            measured = compute_losses(self.parameters, placed_ids, self.config, change)
            return convert_to_singles(measured)


def find_target_position(target: Target, tokens: Sequence[Token]) -> int:
    """Return the position of the token after which a target is predicted: the last by default."""
    return target.query.resolve(tokens).start if target.query else len(tokens) - 1


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
