"""A prompt -> token ids, and the tokens as slices of the user's text, by the tokenizer of a model.

A tokenizer is an object that speaks as those of transformers do.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from attnviz.errors import InputError, ModelError, UsageError
from attnviz.escape import require_unicode
from attnviz.models.chat_process import ChatTemplateError, WrittenChat, write_chat_apart
from attnviz.models.checks import require_length, require_none
from attnviz.models.panics import refuse_tokenizer_errors
from attnviz.record import Segment, Token
from attnviz.request import Prompt, Vocabulary

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
class EncodedPrompt:
    """The token ids of a prompt, and the tokens that stand in it."""

    ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    text: str
    """The text that the tokens are slices of: with ``--chat`` the text that the template wrote."""
    segment_ids: tuple[int, ...] | None = None
    """The number of the text of each token, for a model that tells two texts apart; else None."""
    notes: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    """The messages of a chat."""


def encode_text(
    tokenizer: Any,
    prompt: Prompt,
    positions: int | None,
    truncate: bool,
    name: str,
) -> EncodedPrompt:
    """Encode the text of a prompt, and its pair if it has one.

    A chat is written by the tokenizer's template first. positions: the largest number of tokens
    that the model reads; None if nothing limits it. truncate: True to cut a longer text. name: the
    name of the model, for messages. Raises InputError for a text that does not fit or makes no
    tokens, and UsageError for a chat with a pair, or without a template.
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
    with refuse_tokenizer_errors(f"the tokenizer of {name} cannot read this text"):
        encoding = tokenizer(*texts, **options)
        length = len(encoding["input_ids"])
        length_note = require_length(
            length,
            positions,
            truncate,
            model=name,
            writes=prompt.generate,
        )
        if length_note and positions:
            room = positions - prompt.generate
            encoding = tokenizer(*texts, truncation=True, max_length=room, **options)
        ids = encoding["input_ids"]
        if not ids:
            raise InputError(f"{name} makes no tokens of this text")
        segment_ids = None
        if prompt.pair is not None and "token_type_ids" in encoding:
            segment_ids = tuple(encoding["token_type_ids"])
        tokens, spans_note = make_tokens(tokenizer, encoding, texts)
    notes = tuple(note for note in (length_note, chat_note, spans_note) if note)
    return EncodedPrompt(tuple(ids), tokens, text, segment_ids, notes, segments)


def spell_prompt(
    tokenizer: Any,
    ids: Sequence[int],
    positions: int | None,
    name: str,
) -> EncodedPrompt:
    """Return token ids as a prompt, with the tokens and the text that they spell.

    positions: the largest number of tokens that the model reads; None if nothing limits it. name:
    the name of the model, for messages. Raises InputError for more ids than the model reads.
    """
    length = len(ids)
    require_length(length, positions, truncate=False, model=name, what="the sequence of ids")
    text, tokens = spell_ids(tokenizer, ids, known=0, text="")
    return EncodedPrompt(tuple(ids), tokens, text)


@refuse_tokenizer_errors("the vocabulary of the tokenizer cannot be read")
def make_vocabulary(
    tokenizer: Any,
    embedding_count: int,
    positions: int | None,
) -> Vocabulary:
    """Return the token ids of which sequences for a model can be made up.

    They are the ids of tokens that are plain text, and the special ones that the tokenizer puts
    before and after a text. embedding_count: the number of tokens that the model has embeddings
    for. positions: the largest number of tokens that it reads; None if nothing limits it.
    """
    excluded = list_special_ids(tokenizer)
    excluded.update(tokenizer.added_tokens_decoder)
    excluded.add(tokenizer.unk_token_id)
    plain: set[int] = set()
    for name, number in tokenizer.get_vocab().items():
        is_usable = number < embedding_count and number not in excluded
        if is_usable and not UNUSED.fullmatch(name):
            plain.add(number)
    # any text shows which special tokens are put around it
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
    """Write messages as one text, a chat, by the template that a tokenizer has for it.

    text: JSON messages, or any other text, which is one message of the user. The content of a
    message may be a list of text parts, which are joined if the template takes strings only. name:
    the name of the model, for errors and the note. Returns the chat, the slices of it that the
    messages are, and a note or None. Raises UsageError if there is no template, and InputError for
    messages that it refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"--chat: {name} has no chat template")
    messages = read_messages(text)
    note = None
    written = write_chat_of_parts(tokenizer, messages)
    try:
        if written is None:
            note = note_joined_parts(messages, name)
            messages = join_contents(messages)
            written = write_chat_apart(tokenizer, messages)
    except ChatTemplateError as error:
        raise InputError(f"--chat: the template of {name} refuses this: {error}") from error
    require_unicode(written.text, "--chat: what the template writes")
    segments = find_message_segments(messages, written)
    return written.text, segments, note


def read_messages(text: str) -> Sequence[dict[str, Any]]:
    """Read the messages of a chat from JSON; any other text is one message of the user.

    Raises InputError for JSON that is no list of messages with a role and a content, and for
    contents that are not texts.
    """
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
    """Return a message of a chat, with the text parts of its content as templates know them.

    message: its role, its content and whatever else it holds. number: its index in the chat, for
    the error. Raises InputError if the content is not a text, None, or a list of text parts.
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
    """Return a part of the content of a message as chat templates know it, with its type and text.

    part: a text, or a dict with a text and maybe a type. number: the index of the message, for the
    error. Raises InputError for a part of any other type, such as an image.
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


def write_chat_of_parts(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> WrittenChat | None:
    """Write messages with contents that are lists of text parts, if a chat template reads these.

    None if no content is a list, or if the template does not write the texts of all parts, in
    order, and no part as Python or JSON would.
    """
    contents = [message["content"] for message in messages]
    lists = [content for content in contents if isinstance(content, list)]
    if not lists:
        return None
    try:
        written = write_chat_apart(tokenizer, messages)
    except ChatTemplateError:  # it takes strings only
        return None
    chat = written.text
    start = 0
    for part in chain.from_iterable(lists):
        if repr(part) in chat:
            return None
        if json.dumps(part, ensure_ascii=False) in chat or json.dumps(part) in chat:
            return None
        text = part["text"].strip()
        position = chat.find(text, start)
        if position < 0:
            return None
        start = position + len(text)
    return written


def note_joined_parts(messages: Sequence[dict[str, Any]], name: str) -> str | None:
    """Return a note that the parts of contents are joined, if one has several parts; else None.

    name: the name of the model.
    """
    contents = [message["content"] for message in messages]
    if any(isinstance(content, list) and len(content) > 1 for content in contents):
        return f"the chat template of {name} takes no lists of parts: lines join them"
    return None


def join_contents(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return messages whose contents are texts: the parts of lists are joined by line breaks."""
    return [{**message, "content": join_parts(message["content"])} for message in messages]


def join_parts(content: Any) -> Any:
    """Return the texts of a list of parts as lines of one text, and any other content as it is."""
    if not isinstance(content, list):
        return content
    return "\n".join(part["text"] for part in content)


def find_message_segments(
    messages: Sequence[Message],
    written: WrittenChat,
) -> tuple[Segment, ...]:
    """Find the slice of a chat that each message is, and name it by the role of the message.

    The content of a message is looked for between the end of the message before it and its own end,
    as far as the template tells these. If it is not found, all that stands between the two is the
    slice. A message without a slice is left out.

    written: what the template made of the messages.
    """
    segments: list[Segment] = []
    last_end = 0
    role_counts: Counter[str] = Counter()
    for message, end in zip(messages, written.ends, strict=True):
        role = str(message["role"])
        role_counts[role] += 1
        name = role if role_counts[role] == 1 else f"{role} {role_counts[role]}"
        start = last_end
        span = find_content(message["content"], written.text, start, end)
        if span:
            segments.append(Segment(name, *span))
        elif end is not None and end > start:
            segments.append(Segment(name, start, end))
        last_end = max(last_end, end or 0)
        if segments:
            last_end = max(last_end, segments[-1].end)
    return tuple(segments)


def find_content(
    content: Any,
    chat: str,
    start: int,
    end: int | None,
) -> Span | None:
    """Find the content of a message in a chat, and return where it starts and ends.

    The content is a text or a list of text parts, of which the span goes from the first that is
    found to the last. chat: a text that was made of messages. start, end: the positions between
    which to look; an end of None is the end of the chat. The result is None if no part is found.
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


def make_tokens(
    tokenizer: Any,
    encoding: Any,
    texts: Sequence[str],
) -> tuple[tuple[Token, ...], str | None]:
    """Make the tokens of a text, or of a pair of texts, that a tokenizer has encoded.

    Each token has its name, its id, and the span of its text that it stands for. encoding: what the
    tokenizer returned. texts: the texts that it read. The tokens are returned with a note, or None.
    The note says that the spans had to be looked for, since the tokenizer does not tell them.
    """
    ids = encoding["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    for number, name in zip(ids, names, strict=True):
        if name is None:
            raise ModelError(f"the tokenizer makes token {number}, which has no name in it")
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
    spans = correct_space_spans(names, spans, segments, texts)
    tokens: list[Token] = []
    columns = zip(names, ids, spans, special, segments, strict=True)
    for name, number, span, is_special, segment in columns:
        token = Token.of(name, number, span, is_special, texts[segment], segment)
        tokens.append(token)
    return tuple(tokens), note


def correct_space_spans(
    names: Sequence[str],
    spans: Sequence[Span],
    segments: Sequence[int],
    texts: Sequence[str],
) -> list[Span]:
    """Correct the spans of tokens that are nothing but a tokenizer's sign for a space.

    Tokenizers put such a sign before a text that begins without a space. They say that it covers
    the first letter, which belongs to the next token: its span becomes empty here. Other tokenizers
    give an empty span to a sign that does stand for a space: its span becomes that space.

    names: the name of each token. spans: the start and end of each token in its text. segments: the
    index in ``texts`` of each token's text. Returns the spans of all tokens.
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
    """Return the ids of a tokenizer's special tokens, which are no text.

    They have a role, such as the beginning of a text, or were added, as for chat templates. A token
    that only stands for unknown words is not among them.
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
    """Find the spans of tokens in their texts, for a tokenizer that does not tell them.

    Each token is looked for after the one before it. Tokens that are not found share the span that
    is left between their neighbours, as the bytes of one sign do.

    ids: the ids of the tokens. special: for each token, True if it is special and stands for no
    text. texts: the one or two texts that were encoded. Returns the start and end of each token in
    its text, the index of its text, and a note that says how many were not found.
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
    """Find a decoded token in a text, and return its start and its end; None if it is not there.

    Upper and lower case are equal. Signs by which tokenizers mark the continuation of a word are
    dropped. start: the position in the text from which to look.
    """
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
    """Return a span for each token, also for those that were not found in their text.

    Such a token gets the span from the end of the found token before it to the start of the next
    one in the text. found: the span of each token, or None. segments: the index in ``texts`` of
    each token's text.
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


@refuse_tokenizer_errors("the tokenizer cannot spell its tokens")
def spell_ids(
    tokenizer: Any,
    ids: Sequence[int],
    known: int,
    text: str,
) -> tuple[str, tuple[Token, ...]]:
    """Return the text that token ids make, and tokens that are slices of this text.

    The first ids may be those of a text that is there already: their text is not made anew, and no
    tokens are made of them. Tokens that are the bytes of one sign, such as an emoji, share its
    span.

    ids: all token ids. known: the number of ids at the beginning whose text is there. text: that
    text, to which the text of the other ids is added. Returns the whole text, and the tokens of the
    other ids.
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
