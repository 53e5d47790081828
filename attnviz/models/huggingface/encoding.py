"""A prompt -> the inputs of a transformers model, and its tokens as slices of the user's text."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from attnviz.errors import InputError, ModelError
from attnviz.models.checks import require_length
from attnviz.models.huggingface.attention import run_undisturbed, silence_library
from attnviz.models.maps import MapChoice
from attnviz.models.panics import refuse_tokenizer_errors
from attnviz.models.prompts import (
    EncodedPrompt,
    encode_text,
    list_special_ids,
    make_tokens,
    spell_ids,
    spell_prompt,
)
from attnviz.progress import WorkStep, begin_step
from attnviz.record import Kind, Segment, Token
from attnviz.request import Prompt
from attnviz.selection import MapTokens

# tokens that an encoder-decoder writes at most when no target is given
MOST_WRITTEN = 64


@dataclass(frozen=True)
class EncodedText:
    """The inputs of a model for a text, and the tokens that stand in them."""

    inputs: dict[str, Tensor]
    tokens: tuple[Token, ...]
    text: str
    """The text that the tokens are slices of: with ``--chat`` the text that the template wrote."""
    notes: tuple[str, ...] = ()
    target: str | None = None
    """The text that the decoder of an encoder-decoder reads."""
    target_tokens: tuple[Token, ...] = field(default=())
    segments: tuple[Segment, ...] = ()
    """The messages of a chat."""

    def find_sides(self, kind: Kind) -> MapTokens:
        """Return the tokens of the queries and of the keys of a kind of attention.

        kind: "decoder" and "cross" have the decoder's text, the target, as their queries, and
        "decoder" has it as its keys too. All others are of the text itself.
        """
        if not self.target_tokens:
            return self.tokens, self.tokens
        queries = self.target_tokens if kind in ("decoder", "cross") else self.tokens
        keys = self.target_tokens if kind == "decoder" else self.tokens
        return queries, keys

    def find_map_sides(self, choice: MapChoice) -> MapTokens:
        """Return the tokens of the queries and of the keys of a map that is to be made."""
        return self.find_sides(choice.kind)


def encode_prompt(
    tokenizer: Any,
    prompt: Prompt,
    positions: int | None,
    truncate: bool,
    name: str,
) -> EncodedText:
    """Encode the text of a prompt, and its pair if it has one, as the inputs of a model.

    A chat is written by the tokenizer's template first. positions: the largest number of tokens
    that the model reads; None if nothing limits it. truncate: True to cut a longer text. name: the
    name of the model, for messages. Raises InputError for a text that does not fit or makes no
    tokens, and UsageError for a chat with a pair, or without a template.
    """
    with silence_library():
        encoded = encode_text(tokenizer, prompt, positions, truncate, name)
    return add_tensors(encoded)


def add_tensors(encoded: EncodedPrompt) -> EncodedText:
    """Return an encoded prompt with the tensors that a model is called with."""
    inputs = {"input_ids": torch.tensor([encoded.ids])}
    if encoded.segment_ids is not None:
        inputs["token_type_ids"] = torch.tensor([encoded.segment_ids])
    return EncodedText(
        inputs,
        encoded.tokens,
        encoded.text,
        encoded.notes,
        segments=encoded.segments,
    )


def encode_ids(
    tokenizer: Any,
    ids: Sequence[int],
    positions: int | None,
    name: str,
) -> EncodedText:
    """Return token ids as the inputs of a model, with the tokens and the text that they spell.

    positions: the largest number of tokens that the model reads; None if nothing limits it. name:
    the name of the model, for messages. Raises InputError for more ids than the model reads.
    """
    return add_tensors(spell_prompt(tokenizer, ids, positions, name))


def require_embeddings(
    encoded: EncodedText,
    model: Any,
    tokenizer: Any,
    name: str,
) -> None:
    """Raise ModelError if an encoded text has a token that the model has no embedding for.

    The tokenizer is one of another model then. name: the name of the model, for the message.
    """
    decoder = model.get_decoder() if "decoder_input_ids" in encoded.inputs else model
    for input_name, reader in (("input_ids", model), ("decoder_input_ids", decoder)):
        rows = count_embeddings(reader)
        ids = encoded.inputs.get(input_name)
        if rows is None or ids is None:
            continue
        number = int(ids.max())
        if number < rows:
            continue
        token = tokenizer.convert_ids_to_tokens([number])[0]
        raise ModelError(
            f"the tokenizer makes token {number} {token!r} of this text, "
            f"and {name} has embeddings for the tokens 0 to {rows - 1}: "
            "give the tokenizer that it was trained with, --tokenizer FOLDER",
        )


def count_embeddings(model: Any) -> int | None:
    """Return the number of tokens that a model has embeddings for; None if it has no such table."""
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()
        rows: int | None = getattr(embeddings, "num_embeddings", None)
        return rows
    return None


def add_target(
    encoded: EncodedText,
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    positions: int | None,
) -> EncodedText:
    """Add a target, which the decoder of an encoder-decoder reads, to an encoded text.

    It is the target of the prompt or, if that has none, a text that the model writes. positions:
    the largest number of tokens that the model reads; None if nothing limits it. Raises InputError
    for a target that does not fit, ModelError for a model that cannot write.
    """
    notes = encoded.notes
    if prompt.target is None:
        room = (positions or MOST_WRITTEN + 1) - 1  # the token that starts a target takes one
        ids = write_target(model, encoded.inputs, min(MOST_WRITTEN, room))
        text, tokens = spell_ids(tokenizer, ids, known=0, text="")
        note = "the target is what the model wrote, greedily; --target gives another"
        notes = (*notes, note)
    else:
        text = prompt.target
        ids, tokens = encode_target(model, tokenizer, text)
        require_length(
            len(ids),
            positions,
            truncate=False,
            model="its decoder",
            what="the target",
        )
    inputs = {**encoded.inputs, "decoder_input_ids": torch.tensor([ids])}
    return replace(encoded, inputs=inputs, notes=notes, target=text, target_tokens=tokens)


def write_target(model: Any, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    """Let an encoder-decoder write a target for a text, and return the token ids of the target.

    They begin with the token that starts a target; a token that ends it is left out. inputs: the
    encoded text. count: the largest number of tokens to write. Raises ModelError for a model that
    cannot write.
    """
    try:
        with run_undisturbed(model):
            with begin_step("writing a target", "token", count) as step:
                ids = generate_ids(model, inputs, count, step)
            return drop_end_token(model, ids)
    except ModelError as error:
        raise ModelError(f"{error}, to write a target: give one with --target") from error


@refuse_tokenizer_errors("the tokenizer cannot read the target")
def encode_target(
    model: Any,
    tokenizer: Any,
    target: str,
) -> tuple[list[int], tuple[Token, ...]]:
    """Encode a target as the decoder of a model reads it, and return its ids and its tokens.

    They begin with the token that starts a target; a token that ends it is left out. target: the
    text. Raises InputError for a target that makes no tokens.
    """
    options: dict[str, Any] = {
        "return_offsets_mapping": tokenizer.is_fast,
        "return_special_tokens_mask": True,
    }
    with silence_library():
        encoding = tokenizer(text_target=target, **options)
    labels = encoding["input_ids"]
    if not labels:
        raise InputError("the target makes no tokens")
    if labels[-1] not in list_special_ids(tokenizer):
        # stands for a token that ends the text: the shift drops the last label
        labels = [*labels, labels[-1]]
    shift_labels = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift_labels is not None:
        shifted = shift_labels(labels=torch.tensor([labels]))
        ids = shifted[0].tolist()
    else:
        ids = [find_start_token(model), *labels[:-1]]
    tokens, _ = make_tokens(tokenizer, encoding, [target])
    first_name = str(tokenizer.convert_ids_to_tokens([ids[0]])[0])
    first = Token.of(first_name, ids[0], (0, 0), True, target)
    return ids, (first, *tokens[: len(ids) - 1])


def find_start_token(model: Any) -> int:
    """Return the id of the token that a model's decoder starts with.

    Raises ModelError if the configs of the model do not tell.
    """
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            number = getattr(config, name, None)
            if isinstance(number, int):
                return number
    raise ModelError("this model does not say which token its decoder starts with")


class TokenCounter(BaseStreamer):
    """Count the tokens that a model writes, in a step of the work."""

    def __init__(self, step: WorkStep) -> None:
        self.step = step
        self.has_begun = False

    def put(self, value: Tensor) -> None:
        """Count a token; the first ids are those that the model was given."""
        if self.has_begun:
            self.step.advance()
        self.has_begun = True

    def end(self) -> None:
        """Do nothing when all is written."""


def generate_ids(
    model: Any,
    inputs: Mapping[str, Tensor],
    count: int,
    step: WorkStep,
) -> list[int]:
    """Let a model write tokens greedily after a text, and return token ids.

    An encoder-decoder gives the ids that it has written; a causal model gives the ids of the text
    and of its continuation. inputs: the encoded text. count: the largest number of tokens to write.
    step: counts the tokens as they are written.
    """
    options: dict[str, Any] = {
        "max_new_tokens": count,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "streamer": TokenCounter(step),
    }
    if model.generation_config.pad_token_id is None:
        # one text is never padded; without it the library warns
        options["pad_token_id"] = 0
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    placed["attention_mask"] = torch.ones_like(placed["input_ids"])
    ids: list[int] = model.generate(**placed, **options)[0].tolist()
    return ids


def drop_end_token(model: Any, ids: list[int]) -> list[int]:
    """Return the token ids that a model wrote without the one that ends a text, if it is there.

    The model never read that token, so that it has no attention.
    """
    ends = model.generation_config.eos_token_id
    end_ids = ends if isinstance(ends, list) else [ends]
    has_end = len(ids) > 1 and ids[-1] in end_ids
    return ids[:-1] if has_end else ids


def append_continuation(
    encoded: EncodedText,
    tokenizer: Any,
    ids: Sequence[int],
) -> EncodedText:
    """Return an encoded text together with the continuation that a model wrote.

    encoded: the text that the model has continued. ids: the token ids of the text and of its
    continuation.
    """
    text, new_tokens = spell_ids(
        tokenizer,
        ids,
        known=len(encoded.tokens),
        text=encoded.text,
    )
    inputs = {**encoded.inputs, "input_ids": torch.tensor([list(ids)])}
    inputs.pop("token_type_ids", None)
    tokens = (*encoded.tokens, *new_tokens)
    return replace(encoded, inputs=inputs, text=text, tokens=tokens)
