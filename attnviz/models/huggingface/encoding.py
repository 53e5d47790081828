"""A prompt -> the inputs of a transformers model, and its tokens as slices of the user's text."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from attnviz.errors import InputError, ModelError, UsageError
from attnviz.escape import require_unicode
from attnviz.models.checks import require_length, require_none
from attnviz.models.huggingface.attention import read_first_line, run_undisturbed, silence_library
from attnviz.models.maps import MapChoice
from attnviz.record import Kind, Segment, Token
from attnviz.request import Prompt, Vocabulary
from attnviz.selection import MapTokens

# tokens that an encoder-decoder writes at most when no target is given
MOST_WRITTEN = 64
# entries of a vocabulary that no text makes
UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")
TEXT_TYPE = "text"
TEXT_TYPES = (
    TEXT_TYPE,
    "input_text",
    "output_text",
)
"""The names that interfaces have for a part of a message that is a text."""
SPECIAL_ROLES = ("bos", "eos", "sep", "cls", "pad", "mask")
# the signs of SentencePiece and of byte-level tokenizers for a space
SPACES = "\u2581\u0120"
# the sign that a tokenizer decodes the first bytes of another sign to
BROKEN = "\ufffd"

Span: TypeAlias = tuple[int, int]
"""The start and the end of a slice of a text."""
Message: TypeAlias = Mapping[str, Any]
"""A message of a chat: its role, its content, and whatever else a template reads."""


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
        """Return the queries and keys of a kind of map."""
        if not self.target_tokens:
            return self.tokens, self.tokens
        queries = self.target_tokens if kind in ("decoder", "cross") else self.tokens
        keys = self.target_tokens if kind == "decoder" else self.tokens
        return queries, keys

    def find_map_sides(self, choice: MapChoice) -> MapTokens:
        """Return the queries and keys of a map that is to be made."""
        return self.find_sides(choice.kind)


def encode_prompt(
    tokenizer: Any,
    prompt: Prompt,
    positions: int | None,
    truncate: bool,
    name: str,
) -> EncodedText:
    """Encode the text of a prompt, and its pair.

    positions: the number of tokens that the model reads at most. truncate: whether a longer text is
    cut. name: the model's. Raises InputError for a text that does not fit, or makes no tokens.
    """
    require_none({"--pair": prompt.chat and prompt.pair}, "--chat reads all from one text")
    text = prompt.text
    segments: tuple[Segment, ...] = ()
    chat_note = None
    if prompt.chat:
        text, segments, chat_note = write_chat(tokenizer, prompt.text, name)
    texts = [text] if prompt.pair is None else [text, prompt.pair]
    options: dict[str, Any] = {
        "add_special_tokens": not prompt.chat,
        "return_special_tokens_mask": True,
        "return_offsets_mapping": tokenizer.is_fast,
    }
    with silence_library():
        encoding = tokenizer(*texts, **options)
        length = len(encoding["input_ids"])
        length_note = require_length(length, positions, truncate, name, writes=prompt.generate)
        if length_note and positions:
            room = positions - prompt.generate
            encoding = tokenizer(*texts, truncation=True, max_length=room, **options)
    ids = encoding["input_ids"]
    if not ids:
        raise InputError(f"{name} makes no tokens of this text")
    inputs = {"input_ids": torch.tensor([ids])}
    if prompt.pair is not None and "token_type_ids" in encoding:
        inputs["token_type_ids"] = torch.tensor([encoding["token_type_ids"]])
    tokens, spans_note = make_tokens(tokenizer, encoding, texts)
    notes = tuple(note for note in (length_note, chat_note, spans_note) if note)
    return EncodedText(inputs, tokens, text, notes, segments=segments)


def encode_ids(
    tokenizer: Any,
    ids: Sequence[int],
    positions: int | None,
    name: str,
) -> EncodedText:
    """Return token ids as the inputs of a model, with the text that they spell.

    Raises InputError for more ids than the model reads.
    """
    require_length(len(ids), positions, False, name, what="the sequence of ids")
    text, tokens = spell_ids(tokenizer, ids, 0, "")
    inputs = {"input_ids": torch.tensor([list(ids)])}
    return EncodedText(inputs, tokens, text)


def require_embeddings(
    encoded: EncodedText,
    model: Any,
    tokenizer: Any,
    name: str,
) -> None:
    """Raise ModelError for a token that a model has no embedding for.

    The tokenizer is one of another model then.
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
    """Count the tokens that a model has embeddings for; None if it makes them another way."""
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()
        rows: int | None = getattr(embeddings, "num_embeddings", None)
        return rows
    return None


def make_vocabulary(
    tokenizer: Any,
    known: int,
    positions: int | None,
) -> Vocabulary:
    """Return what sequences of token ids are made of.

    known: the number of tokens that the model has embeddings for. positions: the number of tokens
    that it reads at most.
    """
    excluded = list_special_ids(tokenizer)
    excluded.update(tokenizer.added_tokens_decoder)
    excluded.add(tokenizer.unk_token_id)
    plain: set[int] = set()
    for name, number in tokenizer.get_vocab().items():
        is_known = number < known and number not in excluded
        if is_known and not UNUSED.fullmatch(name):
            plain.add(number)
    with silence_library():
        encoding = tokenizer("a", return_special_tokens_mask=True)
    ids = encoding["input_ids"]
    marks = encoding["special_tokens_mask"]
    text_positions = [position for position, mark in enumerate(marks) if not mark]
    first, last = 0, -1
    if text_positions:
        first, last = text_positions[0], text_positions[-1]
    prefix, suffix = tuple(ids[:first]), tuple(ids[last + 1 :])
    return Vocabulary(tuple(sorted(plain)), prefix, suffix, positions)


def write_chat(
    tokenizer: Any,
    text: str,
    name: str,
) -> tuple[str, tuple[Segment, ...], str | None]:
    """Write a message, or JSON messages, as the tokenizer's chat template does.

    Returns the chat, the segment of each message in it, and a note. Contents may be lists of text
    parts, which are joined where the template takes strings only. Raises UsageError, InputError.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"--chat: {name} has no chat template")
    messages = read_messages(text)
    messages, note = fit_contents(tokenizer, messages, name)
    try:
        chat = apply_template(tokenizer, messages, prompted=True)
    # a template is a program of the model's, in the library's sandbox
    except Exception as error:
        reason = read_first_line(error)
        raise InputError(f"--chat: the template of {name} refuses this: {reason}") from error
    require_unicode(chat, "--chat: what the template writes")
    segments = find_message_segments(tokenizer, messages, chat)
    return chat, segments, note


def read_messages(text: str) -> Sequence[dict[str, Any]]:
    """Read JSON messages; any other text is one message of the user. Raises InputError."""
    messages: Any = [{"role": "user", "content": text}]
    if text.lstrip().startswith("["):
        # a message may begin with a bracket
        with suppress(ValueError, RecursionError):
            messages = json.loads(text)
    if not messages or not all(is_message(message) for message in messages):
        raise InputError('--chat: messages are written [{"role": "user", "content": "..."}, ...]')
    return [read_message(message, number) for number, message in enumerate(messages)]


def is_message(value: Any) -> bool:
    """Return True if a value of JSON has the role and the content of a message."""
    return isinstance(value, dict) and {"role", "content"} <= set(value)


def read_message(message: dict[str, Any], number: int) -> dict[str, Any]:
    """Read a message whose content is a text, None, or a list of text parts.

    Raises InputError for any other content. number: the message's, for the error.
    """
    content = message["content"]
    if isinstance(content, list):
        parts = [read_part(part, number) for part in content]
        return {**message, "content": parts}
    if content is not None and not isinstance(content, str):
        kind = type(content).__name__
        raise InputError(
            f"--chat: the content of message {number} is of type {kind}: "
            "write a text or a list of parts",
        )
    return message


def read_part(part: Any, number: int) -> dict[str, Any]:
    """Read a part of a message as templates know it. Raises InputError unless it is a text.

    number: the message's, for the error.
    """
    if isinstance(part, str):
        return {"type": TEXT_TYPE, "text": part}
    if isinstance(part, dict):
        has_text_type = part.get("type", TEXT_TYPE) in TEXT_TYPES
        if has_text_type and isinstance(part.get("text"), str):
            return {**part, "type": TEXT_TYPE}
        kind = repr(part.get("type"))
    else:
        kind = type(part).__name__
    raise InputError(
        f"--chat: message {number} has a part of type {kind}: only texts are read, "
        'written {"type": "text", "text": "..."}',
    )


def fit_contents(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    name: str,
) -> tuple[Sequence[dict[str, Any]], str | None]:
    """Return messages whose contents the template takes, with a note.

    Contents that are lists of parts stay lists if the template reads them; else the texts in them
    are joined. The note says so where there is more to join than one text.
    """
    contents = [message["content"] for message in messages]
    lists = [content for content in contents if isinstance(content, list)]
    if not lists or reads_parts(tokenizer, messages):
        return messages, None
    joined = [{**message, "content": join_parts(message["content"])} for message in messages]
    note = None
    if any(len(parts) > 1 for parts in lists):
        note = f"the chat template of {name} takes no lists of parts: lines join them"
    return joined, note


def reads_parts(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> bool:
    """Return True if the template writes the text of each part, in order, and not the list."""
    try:
        chat = apply_template(tokenizer, messages, prompted=True)
    except Exception:  # it takes strings only
        return False
    start = 0
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else []
        for part in parts:
            if repr(part) in chat:
                return False
            if json.dumps(part, ensure_ascii=False) in chat or json.dumps(part) in chat:
                return False
            text = part["text"].strip()
            position = chat.find(text, start)
            if position < 0:
                return False
            start = position + len(text)
    return True


def join_parts(content: Any) -> Any:
    """Join the texts of a list of parts as lines of one text; leave other contents as they are."""
    if not isinstance(content, list):
        return content
    return "\n".join(part["text"] for part in content)


def apply_template(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prompted: bool,
) -> str:
    """Write messages by the tokenizer's template. Raises whatever the template raises.

    prompted: whether the beginning of an answer follows the messages.
    """
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    return str(chat)


def find_message_segments(
    tokenizer: Any,
    messages: Sequence[Message],
    written: str,
) -> tuple[Segment, ...]:
    """Find the segment of each message in a chat, named by role; leave out messages without one.

    The content of a message is looked for between the ends of the chat before the message and after
    it, where the template tells these. written: the chat.
    """
    segments: list[Segment] = []
    stop = 0
    role_counts: Counter[str] = Counter()
    for count, message in enumerate(messages, 1):
        role = str(message["role"])
        role_counts[role] += 1
        name = role if role_counts[role] == 1 else f"{role} {role_counts[role]}"
        start = stop
        end = find_chat_end(tokenizer, messages[:count], written)
        span = find_content(message["content"], written, start, end)
        if span:
            segments.append(Segment(name, *span))
        elif end is not None and end > start:
            segments.append(Segment(name, start, end))
        stop = max(stop, end or 0)
        if segments:
            stop = max(stop, segments[-1].end)
    return tuple(segments)


def find_content(
    content: Any,
    chat: str,
    start: int,
    end: int | None,
) -> Span | None:
    """Find a content in a section of a chat, from its first text to its last.

    start, end: the section. None if no text of the content is there.
    """
    parts = content if isinstance(content, list) else [content]
    spans: list[Span] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        stripped = text.strip() if isinstance(text, str) else ""
        if not stripped:
            continue
        position = chat.find(stripped, start, end)
        if position >= 0:
            start = position + len(stripped)
            spans.append((position, start))
    if not spans:
        return None
    return spans[0][0], spans[-1][1]


def find_chat_end(
    tokenizer: Any,
    messages: Sequence[Message],
    chat: str,
) -> int | None:
    """Find the end of the first messages in a chat.

    None if the template writes them otherwise when they are alone.
    """
    try:
        beginning = apply_template(tokenizer, messages, prompted=False)
    except Exception:  # a template may refuse a chat that ends there
        return None
    return len(beginning) if chat.startswith(beginning) else None


def make_tokens(
    tokenizer: Any,
    encoding: Any,
    texts: Sequence[str],
) -> tuple[tuple[Token, ...], str | None]:
    """Make the tokens of an encoding of texts, and a note if their spans had to be guessed."""
    ids = encoding["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    special_ids = list_special_ids(tokenizer)
    marks = encoding["special_tokens_mask"]
    special = [bool(mark) or number in special_ids for number, mark in zip(ids, marks, strict=True)]
    note = None
    if not tokenizer.is_fast:
        spans, segments, note = guess_spans(tokenizer, ids, special, texts)
    else:
        spans = encoding["offset_mapping"]
        segments = [0] * len(ids)
        if len(texts) > 1:
            segments = [segment or 0 for segment in encoding.sequence_ids(0)]
    spans = place_marks(names, spans, segments, texts)
    tokens: list[Token] = []
    columns = zip(names, ids, spans, special, segments, strict=True)
    for name, number, span, is_special, segment in columns:
        token = Token.of(name, number, span, is_special, texts[segment], segment)
        tokens.append(token)
    return tuple(tokens), note


def place_marks(
    names: Sequence[str],
    spans: Sequence[Span],
    segments: Sequence[int],
    texts: Sequence[str],
) -> list[Span]:
    """Return spans in which a token that is only the sign for a space has the span of that space.

    Tokenizers put such a sign before a text that begins without a space. They say that it covers
    the first letter, which belongs to the next token: its span becomes empty here. Other tokenizers
    give an empty span to a sign that does stand for a space: its span becomes that space.

    names, spans, segments: of each token. segments: the numbers of their texts.
    """
    placed = list(spans)
    for position, (name, span, segment) in enumerate(zip(names, spans, segments, strict=True)):
        text = texts[segment]
        start, end = span
        has_letters = bool(name.strip(SPACES))
        # a user may type the sign itself
        is_typed = text[start:end] == name
        if has_letters or is_typed:
            continue
        next_start, next_end = end, end
        if position + 1 < len(spans) and segments[position + 1] == segment:
            next_start, next_end = spans[position + 1]
        earlier_end = 0
        if position and segments[position - 1] == segment:
            _, earlier_end = placed[position - 1]
        space_start = start - len(name)
        covers_next = next_start < end and next_end > start
        is_empty = start == end and space_start >= earlier_end
        if covers_next:
            placed[position] = start, start
        elif is_empty and text[space_start:start].isspace():
            placed[position] = space_start, start
    return placed


def list_special_ids(tokenizer: Any) -> set[int]:
    """List the tokens that are no text: those of a role, and those of chat templates.

    A token that only stands for an unknown word is not among them.
    """
    added_tokens = tokenizer.added_tokens_decoder.items()
    added = {number for number, token in added_tokens if token.special}
    roles = {getattr(tokenizer, f"{role}_token_id") for role in SPECIAL_ROLES}
    only_unknown = {tokenizer.unk_token_id} - roles
    return {*tokenizer.all_special_ids, *added} - only_unknown


def guess_spans(
    tokenizer: Any,
    ids: Sequence[int],
    special: Sequence[bool],
    texts: Sequence[str],
) -> tuple[list[Span], list[int], str]:
    """Find the spans of tokens in texts, for a tokenizer that does not tell them.

    Each token is looked for after the one before it. Tokens that are not found share the span that
    is left between their neighbours, as the bytes of one sign do.

    special: whether each token is special. Returns the spans, the number of the text of each token,
    and a note.
    """
    found: list[Span | None] = []
    segments: list[int] = []
    stop, segment = 0, 0
    for number, is_special in zip(ids, special, strict=True):
        piece = str(tokenizer.decode([number]))
        span = (stop, stop) if is_special else find_piece(piece, texts[segment], stop)
        if span is None and segment + 1 < len(texts):
            span = find_piece(piece, texts[segment + 1], 0)
            if span is not None:
                segment += 1
        found.append(span)
        segments.append(segment)
        if span is not None:
            _, stop = span
    note = "this tokenizer has no fast version: its tokens were looked for in the text"
    if None in found:
        note += f", {found.count(None)} of {len(ids)} were not found"
    return fill_spans(found, segments, texts), segments, note


def find_piece(piece: str, text: str, start: int) -> Span | None:
    """Find a decoded token in a text from a position on, whatever its case; None without one."""
    wanted = piece.strip().removeprefix("##").removesuffix("@@") or piece
    if not wanted:
        return None
    pattern = re.compile(re.escape(wanted), re.IGNORECASE)
    match = pattern.search(text, start)
    return match and match.span()


def fill_spans(
    found: Sequence[Span | None],
    segments: Sequence[int],
    texts: Sequence[str],
) -> list[Span]:
    """Return a span for each token, also for those that were not found.

    Such a token gets the span from the end of the token before it to the start of the next one in
    the same text. segments: the number of the text of each token.
    """
    stops: list[int] = []
    next_starts = [len(text) for text in texts]
    for span, segment in zip(reversed(found), reversed(segments), strict=True):
        stops.append(next_starts[segment])
        if span and span[0] < span[1]:  # special tokens stand nowhere
            next_starts[segment] = span[0]
    spans: list[Span] = []
    last_stops = [0] * len(texts)
    for span, segment, stop in zip(found, segments, reversed(stops), strict=True):
        spans.append(span or (last_stops[segment], stop))
        if span:
            last_stops[segment] = span[1]
    return spans


def add_target(
    encoded: EncodedText,
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    positions: int | None,
) -> EncodedText:
    """Add what the decoder of an encoder-decoder reads: the target, else what the model writes.

    Raises InputError for a target that does not fit, ModelError for a model that cannot write.
    """
    notes = encoded.notes
    if prompt.target is None:
        room = (positions or MOST_WRITTEN + 1) - 1
        ids = write_target(model, encoded.inputs, min(MOST_WRITTEN, room))
        text, tokens = spell_ids(tokenizer, ids, 0, "")
        note = "the target is what the model wrote, greedily; --target gives another"
        notes = (*notes, note)
    else:
        text = prompt.target
        ids, tokens = encode_target(model, tokenizer, text)
        require_length(len(ids), positions, False, "its decoder", what="the target")
    inputs = {**encoded.inputs, "decoder_input_ids": torch.tensor([ids])}
    return replace(encoded, inputs=inputs, notes=notes, target=text, target_tokens=tokens)


def write_target(model: Any, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    """Let an encoder-decoder write so many tokens at most, and return their ids.

    They begin with the token that starts a target; a token that ends it is left out. Raises
    ModelError for a model that cannot write.
    """
    try:
        with run_undisturbed(model):
            ids = generate_ids(model, inputs, count)
            return drop_end_token(model, ids)
    except ModelError as error:
        raise ModelError(f"{error}, to write a target: give one with --target") from error


def encode_target(
    model: Any,
    tokenizer: Any,
    target: str,
) -> tuple[list[int], tuple[Token, ...]]:
    """Encode a target as a decoder reads it, and return its ids and tokens.

    They begin with the token that starts a target; a token that ends it is left out. Raises
    InputError for a target that makes no tokens.
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
        # in place of the token that ends a text, which a decoder never reads
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
    """Find the token that a decoder starts with. Raises ModelError if the model does not tell."""
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            number = getattr(config, name, None)
            if isinstance(number, int):
                return number
    raise ModelError("this model does not say which token its decoder starts with")


def generate_ids(model: Any, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    """Let a model write so many tokens at most, greedily.

    Returns what an encoder-decoder writes; of a causal model the text and its continuation.
    """
    options: dict[str, Any] = {
        "max_new_tokens": count,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
    }
    if model.generation_config.pad_token_id is None:
        # one text is never padded; without it the library warns
        options["pad_token_id"] = 0
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    placed["attention_mask"] = torch.ones_like(placed["input_ids"])
    ids: list[int] = model.generate(**placed, **options)[0].tolist()
    return ids


def drop_end_token(model: Any, ids: list[int]) -> list[int]:
    """Return what a model wrote without the token that ends a text, from which nothing attends."""
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    has_end = len(ids) > 1 and ids[-1] in stops
    return ids[:-1] if has_end else ids


def append_continuation(
    encoded: EncodedText,
    tokenizer: Any,
    ids: Sequence[int],
) -> EncodedText:
    """Append to a text, and to its tokens, what a model wrote after it.

    ids: the tokens of the text and of its continuation.
    """
    text, new_tokens = spell_ids(tokenizer, ids, len(encoded.tokens), encoded.text)
    inputs = {**encoded.inputs, "input_ids": torch.tensor([list(ids)])}
    inputs.pop("token_type_ids", None)
    tokens = (*encoded.tokens, *new_tokens)
    return replace(encoded, inputs=inputs, text=text, tokens=tokens)


def spell_ids(
    tokenizer: Any,
    ids: Sequence[int],
    known: int,
    text: str,
) -> tuple[str, tuple[Token, ...]]:
    """Spell token ids: return the text that they make, and the tokens as slices of it.

    known: the number of ids at the beginning that ``text`` stands for; tokens are made of the
    others only. The text grows with each of these. The bytes of one sign share its span.
    """
    spans: list[Span] = []
    decoded = decode_ids(tokenizer, ids[:known])
    waiting = 0  # tokens since the last whole sign
    for count in range(known + 1, len(ids) + 1):
        longer = decode_ids(tokenizer, ids[:count])
        waiting += 1
        is_last = count == len(ids)
        if longer.endswith(BROKEN) and not is_last:
            continue
        piece = longer[len(decoded) :]
        decoded = longer
        span = len(text), len(text) + len(piece)
        spans += [span] * waiting
        text += piece
        waiting = 0
    special = list_special_ids(tokenizer)
    special.add(tokenizer.unk_token_id)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    columns = zip(names[known:], ids[known:], spans, strict=True)
    tokens = [
        Token.of(name, number, span, number in special, text) for name, number, span in columns
    ]
    return text, tuple(tokens)


def decode_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, without special ones."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)
