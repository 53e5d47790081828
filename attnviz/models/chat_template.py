"""Chats written by the template of a tokenizer, in the sandbox that transformers gives it.

``chat_process.py`` runs this file as a program: so it imports nothing of ours. The program reads a
request from stdin and writes its answer to stdout, both as JSON.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SAFE_JINJA = (3, 1, 6)
REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which a message has its reasoning; templates read the first."""
MOST_MEMORY = 1 << 30  # bytes
MOST_SECONDS = 8  # of a processor
MOST_ADDED = 1 << 20  # characters that a template may write besides messages
MOST_COPIES = 4  # of all messages that it may write


def answer_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the messages of a request by its template: the text, or the error of the template.

    request: the ``template``, the special ``tokens`` by role, and the ``messages``. The answer has
    the ``text`` and the ``ends`` of the messages in it, or the ``error``.
    """
    template, tokens, messages = request["template"], request["tokens"], request["messages"]
    try:
        text = write_messages(template, messages, tokens, prompted=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever the template raises
        lines = str(error).strip().splitlines()
        return {"error": lines[0] if lines else type(error).__name__}
    ends = [
        find_chat_end(template, messages[: count + 1], tokens, text)
        for count in range(len(messages))
    ]
    return {"text": text, "ends": ends}


def find_chat_end(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    chat: str,
) -> int | None:
    """Return the position in a chat at which its first messages end, or None if it is not known.

    messages: the first ones of the chat. The template writes them alone, and the chat is to begin
    with that text. chat: the text that the template made of all messages.
    """
    try:
        beginning = write_messages(template, messages, tokens, prompted=False)
    except MemoryError:
        raise
    except Exception:  # a template may refuse a chat that ends there
        return None
    return len(beginning) if chat.startswith(beginning) else None


def write_messages(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    prompted: bool,
) -> str:
    """Write messages by a chat template. Raises whatever the template raises.

    tokens: special tokens by role, which the template may read. prompted: whether the beginning of
    an answer follows the messages. Raises ValueError if the template writes far more than these.
    """
    if not messages:
        raise ValueError("there is no message to write")
    compiled = compile_template(template)
    chat = [prepare_message(message) for message in messages]
    pieces = compiled.generate(
        messages=chat,
        tools=None,
        documents=None,
        add_generation_prompt=prompted,
        **tokens,
    )
    size = len(write_json(chat))
    return join_limited(pieces, MOST_ADDED + MOST_COPIES * size)


def join_limited(pieces: Iterator[str], most: int) -> str:
    """Join pieces of text. Raises ValueError as soon as they have more than ``most`` characters."""
    joined: list[str] = []
    length = 0
    for piece in pieces:
        joined.append(piece)
        length += len(piece)
        if length > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return "".join(joined)


def prepare_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a message without entries that are None, and with its reasoning under known names."""
    copied = {name: copy_json(value) for name, value in message.items() if value is not None}
    for name in REASONING:
        reasoning = copied.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **copied, "reasoning_content": reasoning}
    return copied


def copy_json(value: Any) -> Any:
    """Copy a value of JSON. Raises TypeError for any other, which a template could misuse."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {copy_json(name): copy_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    kind = type(value).__name__
    raise TypeError(f"a message holds a value of type {kind}, which JSON does not have")


@lru_cache(maxsize=8)
def compile_template(template: str) -> Template:
    """Compile a chat template, in which nothing can be changed and no code of Python reached."""
    require_safe_jinja()
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationExtension, LoopControlExtension],
    )
    environment.filters["tojson"] = write_json
    environment.globals["raise_exception"] = raise_template_error
    environment.globals["strftime_now"] = format_now
    environment.globals["dict"] = DictionaryMaker()
    environment.globals["namespace"] = GuardedNamespace
    return environment.from_string(template)


def require_safe_jinja() -> None:
    """Raise ImportError for a version of Jinja out of whose sandbox templates can break."""
    version = jinja2.__version__
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < SAFE_JINJA:
        raise ImportError(f"chat templates need jinja2 3.1.6, and {version} is installed")


class GenerationExtension(Extension):
    """The block in which templates mark what the model wrote; it is written as it is."""

    tags = frozenset({"generation"})  # type: ignore[assignment] # a set nobody changes

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block as a call that returns what is in it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("write_block")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def write_block(self, caller: Macro) -> str:
        """Return what is in the block."""
        return str(caller())


class DictionaryMaker:
    """The function ``dict`` of templates, without the attributes of the type."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        """Make a dictionary as ``dict`` does."""
        return dict(*args, **entries)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dictionary as ``dict.fromkeys`` does."""
        return dict.fromkeys(*args)


class GuardedNamespace(Namespace):
    """A namespace of templates that holds no attribute of Python's own."""

    def __init__(*args: Any, **entries: Any) -> None:  # an entry may be named self
        self, *others = args
        attributes = dict(*others, **entries)
        for name in attributes:
            require_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        require_public(name)
        super().__setitem__(name, value)


def require_public(name: Any) -> None:
    """Raise SecurityError for a name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot store {name!r} in a namespace")


def raise_template_error(message: str) -> NoReturn:
    """Raise an error that a template asks for."""
    raise TemplateError(message)


def write_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write a value as JSON, without the escapes for HTML that Jinja's own filter writes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def format_now(pattern: str) -> str:
    """Write the date and time of now by a pattern of ``strftime``."""
    return datetime.now().strftime(pattern)


def limit_process() -> None:
    """Bound the memory and the time of this process, as far as the system can do that."""
    try:
        import resource
    except ImportError:  # on Windows the parent stops what takes too long
        return
    limits = {
        resource.RLIMIT_AS: (MOST_MEMORY, MOST_MEMORY),
        resource.RLIMIT_CPU: (MOST_SECONDS, MOST_SECONDS + 1),  # the first is told, the second ends
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, pair in limits.items():
        with suppress(OSError, ValueError):  # there may be a lower limit, or none on this system
            resource.setrlimit(kind, pair)


def answer_stdin() -> None:
    """Answer the request on stdin."""
    limit_process()
    request = json.load(sys.stdin)
    answer = answer_request(request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    answer_stdin()
