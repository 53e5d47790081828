"""A checkpoint that runs in NumPy, as a model whose attention can be captured."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from attnviz.errors import ModelError
from attnviz.lm.transformer import Architecture
from attnviz.models.array_model import ArrayModel
from attnviz.models.base import SupportsSequences
from attnviz.models.checks import require_none
from attnviz.models.interventions import count_batches
from attnviz.models.kept_segments import resolve_segments
from attnviz.models.numpy.checkpoint import Checkpoint
from attnviz.models.predictions import (
    LIKELIEST_OUTPUT,
    choose_position,
    find_token_id,
    require_no_target_token,
    spell_token,
)
from attnviz.models.prompts import EncodedPrompt, encode_text, make_vocabulary, spell_prompt
from attnviz.record import Capture
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

ENGINE = "the engine is attnviz's own transformer, in NumPy"


class NumpyModel(ArrayModel, SupportsSequences):
    """A transformer of a checkpoint, with its tokenizer."""

    def __init__(self, name: str, checkpoint: Checkpoint, tokenizer: Any) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer

    @property
    def architecture(self) -> Architecture:
        """The sizes and switches of the model."""
        return self.checkpoint.architecture

    @property
    def source(self) -> Checkpoint:
        """The checkpoint, which holds the parameters."""
        return self.checkpoint

    @property
    def positions(self) -> int | None:
        """The longest text that the model and its tokenizer read, in tokens; None without limit."""
        limits = (self.architecture.positions, self.tokenizer.model_max_length)
        return min((limit for limit in limits if limit and limit > 0), default=None)

    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run the model and keep what a request names; see ``SupportsPredictions.capture``."""
        blocks = self.choose_heads(request)
        encoded = self.encode_prompt(prompt, request.truncate)
        tokens = encoded.tokens
        request = request.resolve_window((tokens, tokens))
        request = resolve_segments(request, encoded.text, encoded.segments)
        maps = self.compute_maps(encoded, blocks, intervention, request)
        capture = self.make_capture(encoded, maps, request)
        return replace(capture, pair=prompt.pair, fidelity_reference=ENGINE)

    @property
    def predicts(self) -> bool:
        """True if NumPy computes what the model predicts: next tokens, or a vector."""
        return self.checkpoint.prediction is not None

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """Return what the model predicts under interventions; see ``SupportsPredictions``.

        That is the logits of the next token, or the last vector of a model without a head. Raises
        UsageError for a target token of the latter, ModelError for a checkpoint with another head.
        """
        kind = self.checkpoint.prediction
        if kind is None:
            raise ModelError(f"NumPy does not compute what {self.name} predicts")
        encoded = self.encode_prompt(prompt, truncate)
        position = choose_position(kind, self.tokenizer, encoded.tokens, target.query)
        if kind == "vector":
            require_no_target_token(target)
        number = find_token_id(target.token, self.tokenizer)
        results = []
        with self.without_gradients():
            for batch in count_batches(interventions):
                hidden = self.run_whole(encoded.ids, batch, encoded.segment_ids)[:, position]
                if kind == "next":
                    results.append(self.checkpoint.compute_logits(hidden))
                else:
                    results.append(self.checkpoint.normalise_last(hidden))
        outputs = np.concatenate(results)
        self.require_finite(outputs)
        if kind == "next" and number == LIKELIEST_OUTPUT:
            number = int(outputs[0].argmax())
        name_output = partial(spell_token, self.tokenizer)
        return Response(kind, encoded.tokens, position, outputs, number, name_output)

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
