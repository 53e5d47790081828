"""Chats written by the template of a model, in a process of its own.

A template is a program of whoever made the model. Jinja keeps it from files and from Python, and
not from time and memory: it may loop for ever, multiply texts, or overflow the stack. So it runs in
a child, ``chat_template.py``, that is bounded, and whose end is no end of ours.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("chat_template.py")
PATIENCE = 60  # seconds, in which the child may wait for a processor
MEMORY_ERROR = "it takes more than 1 GB of memory"
TIME_ERROR = "it takes more than 8 seconds"


class ChatTemplateError(Exception):
    """What a chat template says against some messages, or what it does that is not allowed."""


@dataclass(frozen=True)
class WrittenChat:
    """Messages that a chat template has written as one text."""

    text: str
    ends: tuple[int | None, ...]
    """The position at which each message ends; None where the template does not tell."""


def write_chat_apart(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> WrittenChat:
    """Write messages, and the beginning of an answer, by the chat template of a tokenizer.

    Raises ChatTemplateError for whatever the template raises, and where it takes too much time or
    memory, or writes too much.
    """
    template = choose_template(tokenizer)
    special_tokens = tokenizer.special_tokens_map.items()
    tokens = {role: token for role, token in special_tokens if isinstance(token, str)}
    try:
        request = json.dumps({"template": template, "tokens": tokens, "messages": messages})
    except (RecursionError, TypeError, ValueError) as error:
        raise ChatTemplateError(str(error)) from error
    answer = run_template_program(request)
    if "error" in answer:
        raise ChatTemplateError(answer["error"])
    return WrittenChat(answer["text"], tuple(answer["ends"]))


def choose_template(tokenizer: Any) -> str:
    """Return the chat template of a tokenizer; of several, the one that is named the default.

    Raises ChatTemplateError if there is none.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise ChatTemplateError("there is no chat template, or none by the name 'default'")
    return template


def run_template_program(request: str) -> dict[str, Any]:
    """Run the child on a request, and return its answer. Raises ChatTemplateError if it has none.

    It finds packages where this process finds them, but not in the folder in which that stands.
    """
    search_path = os.pathsep.join(folder for folder in sys.path if folder)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)],
            input=request.encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "PYTHONPATH": search_path},
        )
    except subprocess.TimeoutExpired as error:
        raise ChatTemplateError(TIME_ERROR) from error
    except OSError as error:
        raise ChatTemplateError(f"no process can be started for it: {error}") from error
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    raise ChatTemplateError(explain_end(done))


def explain_end(done: "subprocess.CompletedProcess[bytes]") -> str:
    """Say why the child ended without an answer."""
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        return TIME_ERROR
    if b"MemoryError" in done.stderr:
        return MEMORY_ERROR
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return f"it ends the program that runs it{said}"
