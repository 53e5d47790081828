"""Chats written by the template of a tokenizer, in the sandbox that transformers gives it."""

import json
import re
from collections.abc import Mapping, Sequence
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


def write_messages(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    prompted: bool,
) -> str:
    """Write messages by a chat template. Raises whatever the template raises.

    tokens: special tokens by role, which the template may read. prompted: whether the beginning of
    an answer follows the messages.
    """
    if not messages:
        raise ValueError("there is no message to write")
    compiled = compile_template(template)
    chat = [prepare_message(message) for message in messages]
    return compiled.render(
        messages=chat,
        tools=None,
        documents=None,
        add_generation_prompt=prompted,
        **tokens,
    )


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
    raise TypeError(f"a message holds a value of type {kind}, which is none of JSON")


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
