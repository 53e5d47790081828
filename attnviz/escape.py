"""Showing hostile text: what could steer a terminal or reorder a line is written out instead."""

import sys
import unicodedata

from attnviz.errors import InputError

# Control, format (bidi, zero-width), surrogate, private, unassigned; line and paragraph separators.
HOSTILE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣"}


def escape(text: str) -> str:
    r"""Return a text that is safe to print on a terminal.

    Characters that could steer it, or reorder a line, are written as \xNN, \uNNNN or \UNNNNNNNN.
    """
    if text.isascii() and text.isprintable():
        return text
    characters = []
    for character in text:
        is_hostile = unicodedata.category(character) in HOSTILE
        characters.append(escape_character(character) if is_hostile else character)
    return "".join(characters)


def escape_character(character: str) -> str:
    """Return a character as its escape sequence in source code."""
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"


def label_token(text: str) -> str:
    """Return the text of a token as a short label that is safe to print.

    White space around the text is left out. White space inside it, or a text of nothing else, is
    shown by signs such as ␣. The sign ∅ stands for an empty text.
    """
    inner = text.strip() or text
    if not inner:
        return "∅"
    if inner.isascii() and inner.isprintable() and " " not in inner:
        return inner
    characters = [NAMED.get(character, character) for character in inner]
    return escape("".join(characters))


def require_unicode(text: str, name: str) -> None:
    """Raise InputError if a text holds lone surrogates, so that it cannot be encoded.

    Python makes them of bytes on the command line that are not in the encoding of the locale. name:
    what the error calls the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if is_undecoded_utf8(text):
            encoding = sys.getfilesystemencoding()
            raise InputError(
                f"{name} is UTF-8, and the locale says that the command line is {encoding}: "
                "set LC_ALL=C.UTF-8, or PYTHONUTF8=1",
            ) from error
        raise InputError(
            f"{name} is not UTF-8 (character {error.start}): it holds a byte of another encoding, "
            "or half of a surrogate pair, which no model can read",
        ) from error


def is_undecoded_utf8(text: str) -> bool:
    """Return whether the lone surrogates of a text stand for bytes that are UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return False
    return True
