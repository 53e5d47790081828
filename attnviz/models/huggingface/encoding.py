"""A prompt -> what a transformers model reads, and the tokens of it as the user typed them."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import InputError, ModelError, UsageError
from attnviz.escape import require_unicode
from attnviz.models.checks import require_length, require_none
from attnviz.models.huggingface.attention import first_line, quiet_library, undisturbed
from attnviz.models.maps import Choice
from attnviz.record import Kind, Segment, Token
from attnviz.request import Prompt, Vocabulary
from attnviz.selection import Sides

WRITTEN = 64  # tokens that an encoder-decoder writes at most when no target is given
UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")  # entries of a vocabulary that no text makes
TEXT_PARTS = (
    "text",
    "input_text",
    "output_text",
)  # how interfaces name a part of a message that is a text
SPACES = "\u2581\u0120"  # what SentencePiece and byte-level tokenizers write for a space
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
    segments: tuple[Segment, ...] = ()
    """The messages of a chat."""

    def sides(self, kind: Kind) -> Sides:
        """The queries and keys of a map."""
        queries = self.target_tokens if kind in ("decoder", "cross") else self.tokens
        keys = self.target_tokens if kind == "decoder" else self.tokens
        return (queries, keys) if self.target_tokens else (self.tokens, self.tokens)

    def sides_of(self, choice: Choice) -> Sides:
        """The same for a map that is to be made."""
        return self.sides(choice.kind)


def encode(
    tokenizer: Any, prompt: Prompt, positions: int | None, truncate: bool, name: str
) -> Encoded:
    """The text of a prompt, and its pair. Raises InputError for a text that does not fit."""
    require_none({"--pair": prompt.chat and prompt.pair}, "--chat reads all from one text")
    text, segments, joining = (
        chat(tokenizer, prompt.text, name) if prompt.chat else (prompt.text, (), None)
    )
    texts = [text] if prompt.pair is None else [text, prompt.pair]
    options: dict[str, Any] = {
        "add_special_tokens": not prompt.chat,
        "return_special_tokens_mask": True,
    }
    options["return_offsets_mapping"] = tokenizer.is_fast
    with quiet_library():
        found = tokenizer(*texts, **options)
        note = require_length(
            len(found["input_ids"]), positions, truncate, name, writes=prompt.generate
        )
        if note and positions:
            found = tokenizer(
                *texts, truncation=True, max_length=positions - prompt.generate, **options
            )
    ids = found["input_ids"]
    if not ids:
        raise InputError(f"{name} makes no tokens of this text")
    inputs = {"input_ids": torch.tensor([ids])}
    if prompt.pair is not None and "token_type_ids" in found:
        inputs["token_type_ids"] = torch.tensor([found["token_type_ids"]])
    tokens, spelling = read_tokens(tokenizer, found, texts)
    return Encoded(
        inputs,
        tokens,
        text,
        tuple(line for line in (note, joining, spelling) if line),
        segments=segments,
    )


def encode_ids(tokenizer: Any, ids: Sequence[int], positions: int | None, name: str) -> Encoded:
    """Token ids as they are, spelt. Raises InputError for more than the model reads."""
    require_length(len(ids), positions, False, name, what="the sequence of ids")
    text, tokens = spell(tokenizer, ids, 0, "")
    return Encoded({"input_ids": torch.tensor([list(ids)])}, tokens, text)


def require_embeddings(encoded: Encoded, model: Any, tokenizer: Any, name: str) -> None:
    """Raise ModelError for a token that a model has no embedding for: its tokenizer is then of another model."""
    decoder = model.get_decoder() if "decoder_input_ids" in encoded.inputs else model
    for side, part in (("input_ids", model), ("decoder_input_ids", decoder)):
        rows, ids = count_embeddings(part), encoded.inputs.get(side)
        if rows is None or ids is None or int(ids.max()) < rows:
            continue
        number = int(ids.max())
        said = tokenizer.convert_ids_to_tokens([number])[0]
        raise ModelError(
            f"the tokenizer makes token {number} {said!r} of this text, and {name} has embeddings for the tokens 0 to "
            f"{rows - 1}: give the tokenizer that it was trained with, --tokenizer FOLDER"
        )


def count_embeddings(model: Any) -> int | None:
    """Count the tokens that a model has embeddings for; None if it makes them another way."""
    with suppress(NotImplementedError, AttributeError):
        rows: int | None = getattr(model.get_input_embeddings(), "num_embeddings", None)
        return rows
    return None


def vocabulary(tokenizer: Any, known: int, positions: int | None) -> Vocabulary:
    """What sequences are made of, for a model that knows so many tokens."""
    none = special_ids(tokenizer) | {*tokenizer.added_tokens_decoder, tokenizer.unk_token_id}
    plain = {
        number
        for name, number in tokenizer.get_vocab().items()
        if number < known and not UNUSED.fullmatch(name)
    }
    with quiet_library():
        found = tokenizer("a", return_special_tokens_mask=True)
    text = [place for place, mark in enumerate(found["special_tokens_mask"]) if not mark]
    first, last = (text[0], text[-1]) if text else (0, -1)
    ids = found["input_ids"]
    return Vocabulary(
        tuple(sorted(plain - none)), tuple(ids[:first]), tuple(ids[last + 1 :]), positions
    )


def chat(tokenizer: Any, text: str, name: str) -> tuple[str, tuple[Segment, ...], str | None]:
    """A message, or JSON messages, as the tokenizer's chat template writes them, where each stands, and a note.

    Contents may be lists of text parts, which are joined where the template takes strings only. Raises UsageError,
    InputError.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"--chat: {name} has no chat template")
    messages: Any = [{"role": "user", "content": text}]
    if text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # a message may begin with a bracket
            messages = json.loads(text)
    if not messages or not all(
        isinstance(part, dict) and {"role", "content"} <= set(part) for part in messages
    ):
        raise InputError('--chat: messages are written [{"role": "user", "content": "..."}, ...]')
    messages = [read_message(message, number) for number, message in enumerate(messages)]
    messages, note = fit_contents(tokenizer, messages, name)
    try:
        written = template(tokenizer, messages, prompted=True)
    except Exception as error:  # a template is a program of the model's, in the library's sandbox
        raise InputError(
            f"--chat: the template of {name} refuses this: {first_line(error)}"
        ) from error
    require_unicode(written, "--chat: what the template writes")
    return written, message_segments(tokenizer, messages, written), note


def read_message(message: dict[str, Any], number: int) -> dict[str, Any]:
    """Read a message whose content is a text, None, or a list of text parts. Raises InputError for anything else."""
    content = message["content"]
    if isinstance(content, list):
        return {**message, "content": [read_part(part, number) for part in content]}
    if content is not None and not isinstance(content, str):
        kind = type(content).__name__
        raise InputError(
            f"--chat: the content of message {number} is of type {kind}: write a text or a list of parts"
        )
    return message


def read_part(part: Any, number: int) -> dict[str, Any]:
    """Read a part of a message as templates know it. Raises InputError unless it is a text."""
    if isinstance(part, str):
        return {"type": TEXT_PARTS[0], "text": part}
    if (
        isinstance(part, dict)
        and part.get("type", TEXT_PARTS[0]) in TEXT_PARTS
        and isinstance(part.get("text"), str)
    ):
        return {**part, "type": TEXT_PARTS[0]}
    kind = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
    raise InputError(
        f"--chat: message {number} has a part of type {kind}: only texts are read, "
        'written {"type": "text", "text": "..."}'
    )


def fit_contents(
    tokenizer: Any, messages: Sequence[dict[str, Any]], name: str
) -> tuple[Sequence[dict[str, Any]], str | None]:
    """Make messages whose contents the template takes: lists of parts if it reads them, else their texts, joined.

    The note says so where there is more to join than one text.
    """
    lists = [message["content"] for message in messages if isinstance(message["content"], list)]
    if not lists or reads_parts(tokenizer, messages):
        return messages, None
    lines = [{**message, "content": join_parts(message["content"])} for message in messages]
    several = any(len(parts) > 1 for parts in lists)
    return (
        lines,
        f"the chat template of {name} takes no lists of parts: lines join them"
        if several
        else None,
    )


def reads_parts(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> bool:
    """Tell whether the template writes the text of each part, in their order, and not the list itself."""
    try:
        written = template(tokenizer, messages, prompted=True)
    except Exception:  # it takes strings only
        return False
    start = 0
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else []
        for part in parts:
            if (
                repr(part) in written
                or json.dumps(part, ensure_ascii=False) in written
                or json.dumps(part) in written
            ):
                return False
            at = written.find(part["text"].strip(), start)
            if at < 0:
                return False
            start = at + len(part["text"].strip())
    return True


def join_parts(content: Any) -> Any:
    """Join the texts of a list of parts as the lines of one text; another content as it is."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content


def template(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, prompted: bool) -> str:
    """Messages as the template writes them, with what an answer begins with if they are to be answered."""
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    )


def message_segments(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], written: str
) -> tuple[Segment, ...]:
    """Where the content of each message stands in a chat, named by role; those that are not found are left out.

    It is looked for between the ends of the chat before the message and after it, where the template tells these.
    """
    found: list[Segment] = []
    stop, times = 0, Counter[str]()
    for count, message in enumerate(messages, 1):
        role, content = str(message["role"]), message["content"]
        times[role] += 1
        name = role if times[role] == 1 else f"{role} {times[role]}"
        start, end = stop, chat_end(tokenizer, messages[:count], written)
        span = find_content(content, written, start, end)
        if span:
            found.append(Segment(name, *span))
        elif end is not None and end > start:
            found.append(Segment(name, start, end))
        stop = max(stop, end or 0, found[-1].end if found else 0)
    return tuple(found)


def find_content(content: Any, written: str, start: int, end: int | None) -> tuple[int, int] | None:
    """Find where a content stands in a part of a chat, from its first text to its last; None if it does not."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    spans: list[tuple[int, int]] = []
    for text in texts:
        inner = text.strip() if isinstance(text, str) else ""
        at = written.find(inner, start, end) if inner else -1
        if at >= 0:
            start = at + len(inner)
            spans.append((at, start))
    return (spans[0][0], spans[-1][1]) if spans else None


def chat_end(tokenizer: Any, messages: Sequence[Mapping[str, Any]], written: str) -> int | None:
    """Where the first messages of a chat end in it; None if the template writes them otherwise when they are alone."""
    try:
        alone = template(tokenizer, messages, prompted=False)
    except Exception:  # a template may refuse a chat that ends there
        return None
    return len(alone) if written.startswith(alone) else None


def read_tokens(
    tokenizer: Any, found: Any, texts: Sequence[str]
) -> tuple[tuple[Token, ...], str | None]:
    """The tokens of an encoding, and a note if their places had to be guessed."""
    ids, specials = found["input_ids"], special_ids(tokenizer)
    names = tokenizer.convert_ids_to_tokens(ids)
    special = [
        bool(mask) or number in specials
        for number, mask in zip(ids, found["special_tokens_mask"], strict=True)
    ]
    if tokenizer.is_fast:
        spans, note = found["offset_mapping"], None
        segments = (
            [part or 0 for part in found.sequence_ids(0)] if len(texts) > 1 else [0] * len(ids)
        )
    else:
        spans, segments, note = guess_spans(tokenizer, ids, special, texts)
    spans = place_marks(names, spans, segments, texts)
    return tuple(
        Token.of(name, number, span, mark, texts[segment], segment)
        for name, number, span, mark, segment in zip(
            names, ids, spans, special, segments, strict=True
        )
    ), note


def place_marks(
    names: Sequence[str],
    spans: Sequence[tuple[int, int]],
    segments: Sequence[int],
    texts: Sequence[str],
) -> list[tuple[int, int]]:
    """Return spans in which tokens that are nothing but a sign for a space stand at that space.

    Tokenizers put such a sign before a text that begins without a space, and say that it covers the first letter, which
    is that of the next token: it stands for nothing. Others leave out the space that it does stand for.
    """
    places = list(spans)
    for place, (name, span, segment) in enumerate(zip(names, spans, segments, strict=True)):
        text, (start, end) = texts[segment], span
        if name.strip(SPACES) or text[start:end] == name:  # a letter or a sign that was typed
            continue
        has_next = place + 1 < len(spans) and segments[place + 1] == segment
        next_start, next_end = spans[place + 1] if has_next else (end, end)
        earlier = places[place - 1][1] if place and segments[place - 1] == segment else 0
        gap = start - len(name)
        if next_start < end and next_end > start:  # a letter of the next token's
            places[place] = start, start
        elif start == end and gap >= earlier and text[gap:start].isspace():
            places[place] = gap, start
    return places


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no text: those of a role and of chat templates, but none that stands for an unknown word only."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = {
        getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "sep", "cls", "pad", "mask")
    }
    return {*tokenizer.all_special_ids, *added} - ({tokenizer.unk_token_id} - roles)


def guess_spans(
    tokenizer: Any, ids: Sequence[int], special: Sequence[bool], texts: Sequence[str]
) -> tuple[list[tuple[int, int]], list[int], str]:
    """Where tokens stand, for tokenizers that do not tell: each is looked for after the one before it.

    Those that are not found share what is left between their neighbours, as the bytes of one sign do.
    """
    found: list[tuple[int, int] | None] = []
    segments: list[int] = []
    at, segment = 0, 0
    for number, mark in zip(ids, special, strict=True):
        piece = str(tokenizer.decode([number]))
        span = (at, at) if mark else locate(piece, texts[segment], at)
        if span is None and segment + 1 < len(texts):
            span = locate(piece, texts[segment + 1], 0)
            segment += span is not None
        found.append(span)
        segments.append(segment)
        at = at if span is None else span[1]
    told = f", {found.count(None)} of {len(ids)} were not found" if None in found else ""
    note = f"this tokenizer has no fast version: its tokens were looked for in the text{told}"
    return fill(found, segments, texts), segments, note


def locate(piece: str, text: str, at: int) -> tuple[int, int] | None:
    """Where a decoded token stands in a text from a place on, whatever its case; None if it does not."""
    wanted = piece.strip().removeprefix("##").removesuffix("@@") or piece
    match = re.compile(re.escape(wanted), re.IGNORECASE).search(text, at) if wanted else None
    return match and match.span()


def fill(
    found: Sequence[tuple[int, int] | None], segments: Sequence[int], texts: Sequence[str]
) -> list[tuple[int, int]]:
    """The same with a place for each: from the end of the one before to the start of the next in the same text."""
    stops: list[int] = []
    next_start, last_stop = [len(text) for text in texts], [0] * len(texts)
    for span, segment in zip(reversed(found), reversed(segments), strict=True):
        stops.append(next_start[segment])
        if span and span[0] < span[1]:  # special tokens stand nowhere
            next_start[segment] = span[0]
    spans: list[tuple[int, int]] = []
    for span, segment, stop in zip(found, segments, reversed(stops), strict=True):
        spans.append(span or (last_stop[segment], stop))
        last_stop[segment] = span[1] if span else last_stop[segment]
    return spans


def with_target(
    encoded: Encoded, model: Any, tokenizer: Any, prompt: Prompt, positions: int | None
) -> Encoded:
    """The same with what the decoder of an encoder-decoder reads: the target, or what the model writes itself.

    Raises InputError for a target that does not fit, ModelError for a model that cannot write.
    """
    if prompt.target is None:
        ids = write_target(model, encoded.inputs, min(WRITTEN, (positions or WRITTEN + 1) - 1))
        note = "the target is what the model wrote, greedily; --target gives another"
        text, tokens = spell(tokenizer, ids, 0, "")
    else:
        ids, tokens = read_target(model, tokenizer, prompt.target)
        require_length(len(ids), positions, False, "its decoder", what="the target")
        note, text = "", prompt.target
    inputs = {**encoded.inputs, "decoder_input_ids": torch.tensor([ids])}
    notes = (*encoded.notes, note) if note else encoded.notes
    return replace(encoded, inputs=inputs, notes=notes, target=text, target_tokens=tokens)


def write_target(model: Any, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    """What an encoder-decoder writes, from the token that it starts with to the one before that which ends it."""
    try:
        with undisturbed(model):
            return unended(model, write(model, inputs, count))
    except ModelError as error:
        raise ModelError(f"{error}, to write a target: give one with --target") from error


def read_target(model: Any, tokenizer: Any, target: str) -> tuple[list[int], tuple[Token, ...]]:
    """A target as a decoder reads it: after the token that it starts with, without the one that ends it."""
    options: dict[str, Any] = {
        "return_offsets_mapping": tokenizer.is_fast,
        "return_special_tokens_mask": True,
    }
    with quiet_library():
        found = tokenizer(text_target=target, **options)
    labels = found["input_ids"]
    if not labels:
        raise InputError("the target makes no tokens")
    if labels[-1] not in special_ids(tokenizer):
        labels = [
            *labels,
            labels[-1],
        ]  # in the place of the token that ends a text, which a decoder never reads
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None:
        ids = shifted(labels=torch.tensor([labels]))[0].tolist()
    else:
        ids = [start_token(model), *labels[:-1]]
    tokens, _ = read_tokens(tokenizer, found, [target])
    first = Token.of(
        str(tokenizer.convert_ids_to_tokens([ids[0]])[0]), ids[0], (0, 0), True, target
    )
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
    """Greedy generation: of an encoder-decoder what it writes, of a causal model text and continuation."""
    options: dict[str, Any] = {
        "max_new_tokens": count,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
    }
    pad = model.generation_config.pad_token_id
    if pad is None:
        options["pad_token_id"] = 0  # one text is never padded; without it the library warns
    given = {name: part.to(model.device) for name, part in inputs.items()}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    ids: list[int] = model.generate(**given, **options)[0].tolist()
    return ids


def unended(model: Any, ids: list[int]) -> list[int]:
    """What a model wrote without the token that ends it, if it came: nothing attends from that."""
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    return ids[:-1] if len(ids) > 1 and ids[-1] in stops else ids


def continuation(encoded: Encoded, tokenizer: Any, ids: Sequence[int]) -> Encoded:
    """A text, and its tokens, with what a model wrote after it."""
    text, new = spell(tokenizer, ids, len(encoded.tokens), encoded.text)
    inputs = {**encoded.inputs, "input_ids": torch.tensor([list(ids)])}
    inputs.pop("token_type_ids", None)
    return replace(encoded, inputs=inputs, text=text, tokens=(*encoded.tokens, *new))


def spell(
    tokenizer: Any, ids: Sequence[int], known: int, text: str
) -> tuple[str, tuple[Token, ...]]:
    """The text that grows with each token after the first ``known``, and these tokens as slices of it."""
    special = special_ids(tokenizer) | {tokenizer.unk_token_id}
    names = tokenizer.convert_ids_to_tokens(list(ids))
    spans: list[tuple[int, int]] = []
    before, waiting = decode(tokenizer, ids[:known]), 0
    for count in range(known, len(ids)):
        now = decode(tokenizer, ids[: count + 1])
        waiting += 1
        if now.endswith(BROKEN) and count + 1 < len(ids):
            continue
        piece, before = now[len(before) :], now
        spans += [
            (len(text), len(text) + len(piece))
        ] * waiting  # the bytes of one sign share its place
        text, waiting = text + piece, 0
    new = zip(names[known:], ids[known:], spans, strict=True)
    return text, tuple(
        Token.of(name, number, span, number in special, text) for name, number, span in new
    )


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
