"""A prompt -> what a transformers model reads, and the tokens of it as the user typed them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import InputError, ModelError, UsageError
from attnviz.models.checks import require_length
from attnviz.models.huggingface_reading import first_line, quiet_library
from attnviz.models.maps import Sides
from attnviz.record import Kind, Token
from attnviz.request import Prompt

WRITTEN = 64  # tokens that an encoder-decoder writes at most when no target is given
BROKEN = "\ufffd"  # what a tokenizer decodes the first bytes of a sign to


@dataclass(frozen=True)
class Encoded:
    """Inputs of a model, and the tokens that stand in them."""

    inputs: dict[str, Tensor]
    tokens: tuple[Token, ...]
    text: str
    """The text that the tokens are slices of: with ``--chat`` what the template made of it."""
    notes: tuple[str, ...] = ()
    target: str | None = None
    target_tokens: tuple[Token, ...] = field(default=())

    def sides(self, kind: Kind) -> Sides:
        """The queries and keys of a map."""
        queries = self.target_tokens if kind in ("decoder", "cross") else self.tokens
        keys = self.target_tokens if kind == "decoder" else self.tokens
        return (queries, keys) if self.target_tokens else (self.tokens, self.tokens)


def encode(tokenizer: Any, prompt: Prompt, positions: int | None, truncate: bool, name: str) -> Encoded:
    """The text of a prompt, and its pair. Raises InputError for a text that does not fit."""
    text = chat(tokenizer, prompt.text, name) if prompt.chat else prompt.text
    texts = [text] if prompt.pair is None else [text, prompt.pair]
    options: dict[str, Any] = {"add_special_tokens": not prompt.chat, "return_special_tokens_mask": True}
    options["return_offsets_mapping"] = tokenizer.is_fast
    room = positions and positions - prompt.generate
    with quiet_library():
        found = tokenizer(*texts, **options)
        note = require_length(len(found["input_ids"]), room, truncate, name)
        if note:
            found = tokenizer(*texts, truncation=True, max_length=room, **options)
    ids = found["input_ids"]
    if not ids:
        raise InputError(f"{name} makes no tokens of this text")
    inputs = {"input_ids": torch.tensor([ids])}
    if prompt.pair is not None and "token_type_ids" in found:
        inputs["token_type_ids"] = torch.tensor([found["token_type_ids"]])
    tokens, spelling = read_tokens(tokenizer, found, texts)
    return Encoded(inputs, tokens, text, tuple(line for line in (note, spelling) if line))


def chat(tokenizer: Any, text: str, name: str) -> str:
    """A message, or JSON messages, as the tokenizer's chat template writes them. Raises UsageError, InputError."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"--chat: {name} has no chat template")
    messages: Any = [{"role": "user", "content": text}]
    if text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # a message may begin with a bracket
            messages = json.loads(text)
    if not all(isinstance(part, dict) and {"role", "content"} <= set(part) for part in messages):
        raise InputError('--chat: messages are written [{"role": "user", "content": "..."}, ...]')
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's, in the library's sandbox
        raise InputError(f"--chat: the template of {name} refuses this: {first_line(error)}") from error


def read_tokens(tokenizer: Any, found: Any, texts: Sequence[str]) -> tuple[tuple[Token, ...], str | None]:
    """The tokens of an encoding, and a note if their places had to be guessed."""
    ids = found["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    special = [
        bool(mask) or number in tokenizer.all_special_ids
        for number, mask in zip(ids, found["special_tokens_mask"], strict=True)
    ]
    if tokenizer.is_fast:
        spans, note = found["offset_mapping"], None
        segments = [part or 0 for part in found.sequence_ids(0)] if len(texts) > 1 else [0] * len(ids)
    else:
        spans, segments, note = guess_spans(tokenizer, ids, special, texts)
    return tuple(
        Token.of(name, number, span, mark, texts[segment], segment)
        for name, number, span, mark, segment in zip(names, ids, spans, special, segments, strict=True)
    ), note


def guess_spans(
    tokenizer: Any, ids: Sequence[int], special: Sequence[bool], texts: Sequence[str]
) -> tuple[list[tuple[int, int]], list[int], str]:
    """Where tokens stand, for tokenizers that do not tell: each is looked for after the one before it.

    A token that is not found stands for the text up to the next that is.
    """
    spans: list[tuple[int, int]] = []
    segments: list[int] = []
    at, segment = 0, 0
    for number, mark in zip(ids, special, strict=True):
        piece = "" if mark else tokenizer.decode([number]).strip().removeprefix("##")
        place = texts[segment].lower().find(piece.lower(), at) if piece else -1
        if place < 0 and piece and segment + 1 < len(texts):
            place = texts[segment + 1].lower().find(piece.lower())
            segment, at = (segment + 1, 0) if place >= 0 else (segment, at)
        spans.append((place, place + len(piece)) if place >= 0 else (at, at))
        segments.append(segment)
        at = max(at, spans[-1][1])
    lost = sum(start == stop and not mark for (start, stop), mark in zip(spans, special, strict=True))
    told = f", {lost} of {len(ids)} were not found" if lost else ""
    return spans, segments, f"this tokenizer has no fast version: its tokens were looked for in the text{told}"


def with_target(encoded: Encoded, model: Any, tokenizer: Any, prompt: Prompt) -> Encoded:
    """The same with what the decoder of an encoder-decoder reads: the target, or what the model writes itself."""
    if prompt.target is None:
        ids = write(model, encoded.inputs, WRITTEN)
        note = "the target is what the model wrote, greedily; --target gives another"
        text, tokens = spell(tokenizer, ids, 0, "")
    else:
        ids, tokens = read_target(model, tokenizer, prompt.target)
        note, text = "", prompt.target
    inputs = {**encoded.inputs, "decoder_input_ids": torch.tensor([ids])}
    notes = (*encoded.notes, note) if note else encoded.notes
    return replace(encoded, inputs=inputs, notes=notes, target=text, target_tokens=tokens)


def read_target(model: Any, tokenizer: Any, target: str) -> tuple[list[int], tuple[Token, ...]]:
    """A target as a decoder reads it: after the token that it starts with, without the one that ends it."""
    options: dict[str, Any] = {"return_offsets_mapping": tokenizer.is_fast, "return_special_tokens_mask": True}
    with quiet_library():
        found = tokenizer(text_target=target, **options)
    labels = found["input_ids"]
    if not labels:
        raise InputError("the target makes no tokens")
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None:
        ids = shifted(labels=torch.tensor([labels]))[0].tolist()
    else:
        ids = [start_token(model), *labels[:-1]]
    tokens, _ = read_tokens(tokenizer, found, [target])
    first = Token.of(str(tokenizer.convert_ids_to_tokens([ids[0]])[0]), ids[0], (0, 0), True, target)
    return ids, (first, *tokens[: len(ids) - 1])


def start_token(model: Any) -> int:
    """The token that a decoder starts with. Raises ModelError if the model does not tell."""
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            number = getattr(config, name, None)
            if isinstance(number, int):
                return number
    raise ModelError("this model does not say which token its decoder starts with")


def write(model: Any, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    """Greedy generation: of an encoder-decoder what it writes, of a causal model text and continuation.

    The token that ends it, if it comes, is left out: nothing attends from it.
    """
    ends = model.generation_config.eos_token_id
    options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "num_beams": 1, "use_cache": True}
    pad = model.generation_config.pad_token_id
    if pad is None:
        options["pad_token_id"] = 0  # one text is never padded; without it the library warns
    given = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    ids: list[int] = model.generate(**given, **options)[0].tolist()
    stops = ends if isinstance(ends, list) else [ends]
    return ids[:-1] if len(ids) > 1 and ids[-1] in stops else ids


def continuation(encoded: Encoded, tokenizer: Any, ids: Sequence[int]) -> Encoded:
    """A text, and its tokens, with what a model wrote after it."""
    text, new = spell(tokenizer, ids, len(encoded.tokens), encoded.text)
    inputs = {**encoded.inputs, "input_ids": torch.tensor([list(ids)])}
    inputs.pop("token_type_ids", None)
    return replace(encoded, inputs=inputs, text=text, tokens=(*encoded.tokens, *new))


def spell(tokenizer: Any, ids: Sequence[int], known: int, text: str) -> tuple[str, tuple[Token, ...]]:
    """The text that grows with each token after the first ``known``, and these tokens as slices of it."""
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    spans: list[tuple[int, int]] = []
    before, waiting = decode(tokenizer, ids[:known]), 0
    for count in range(known, len(ids)):
        now = decode(tokenizer, ids[: count + 1])
        waiting += 1
        if now.endswith(BROKEN) and count + 1 < len(ids):
            continue
        piece, before = now[len(before) :], now
        spans += [(len(text), len(text) + len(piece))] * waiting  # the bytes of one sign share its place
        text, waiting = text + piece, 0
    new = zip(names[known:], ids[known:], spans, strict=True)
    return text, tuple(Token.of(name, number, span, number in special, text) for name, number, span in new)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
