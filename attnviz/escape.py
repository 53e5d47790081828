"""Showing hostile text: what could steer a terminal or reorder a line is written out instead."""

import unicodedata

from attnviz.errors import InputError

# Control, format (bidi, zero-width), surrogate, private, unassigned; line and paragraph separators.
HOSTILE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣"}


def escape(text: str) -> str:
    r"""Text that is safe to print: each hostile character as \xNN, \uNNNN or \UNNNNNNNN."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        written_out(char) if unicodedata.category(char) in HOSTILE else char for char in text
    )


def written_out(char: str) -> str:
    """A character as its escape sequence in source code."""
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def label(text: str) -> str:
    """The text of a token as a label: white space around it is left out, or named where there is nothing else."""
    inner = text.strip() or text
    if inner.isascii() and inner.isprintable() and " " not in inner:
        return inner or "∅"
    return escape("".join(NAMED.get(char, char) for char in inner)) if inner else "∅"


def require_unicode(text: str, name: str) -> None:
    """Raise InputError if a text holds lone surrogates: bytes that are no UTF-8 come as such from the command line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not UTF-8 (character {error.start}): it holds half of a surrogate pair, which no model can read"
        ) from error
