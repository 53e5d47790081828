"""Bounds on what the files of a tokenizer may ask for, checked before a library reads them.

A few bytes of a tokenizer.json can make a text grow a million times, or ask for 16 GB at once,
upon which the library ends the process.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnviz.errors import ModelError
from attnviz.io.files import describe_os_error
from attnviz.io.untrusted import LARGEST_LIST, parse_json, read_json, read_regular_file
from attnviz.models.safety import LARGEST_VOCABULARY

TOKENIZER, ADDED_TOKENS = "tokenizer.json", "added_tokens.json"
MOST_ADDED = 1 << 17
"""The most tokens that are added to a vocabulary; models of speech add up to 66,000."""
MOST_EXTRA = 1 << 14
"""The most special tokens without a role, each of which transformers compares with all others."""
MOST_GROWTH = 1000
"""How many characters a normaliser or a decoder may make of one."""
MOST_PIECES = 10_000
"""The most special tokens around a text."""
LONGEST_WORD = 1000
"""The most characters of a word that pieces are looked for in, which takes their square in time."""
ADDED_ENTRIES = {
    "tokenizer_config.json": {
        "added_tokens_decoder": MOST_ADDED,
        "additional_special_tokens": MOST_EXTRA,
        "extra_special_tokens": MOST_EXTRA,
    },
    "special_tokens_map.json": {
        "additional_special_tokens": MOST_EXTRA,
        "extra_special_tokens": MOST_EXTRA,
    },
}
"""Entries that list added tokens, by the files in which they stand, and the most of each."""
TRIE_LENGTH_BYTES = 4

JSON_TEXT = rb'"(?:[^"\\]|\\.)*+"'
JSON_NUMBER = rb"-?[0-9][-+.0-9eE]*+"
JSON_ENTRY = rb"\s*+" + JSON_TEXT + rb"\s*+:\s*+" + JSON_NUMBER + rb"\s*+,?"
JSON_PAIR = rb"\[\s*+%b\s*+,\s*+(?:%b|%b)\s*+\]" % (JSON_TEXT, JSON_TEXT, JSON_NUMBER)
JSON_ITEM = rb"\s*+(?:" + JSON_TEXT + rb"|" + JSON_PAIR + rb")\s*+,?"
VOCABULARY = re.compile(
    rb'"(vocab|merges)"\s*+:\s*+(?:\{(?:%b)*+\s*+\}|\[(?:%b)*+\s*+\])' % (JSON_ENTRY, JSON_ITEM),
)
"""The long parts of a tokenizer.json: a vocabulary by token or in pairs, or pairs to merge."""


def read_tokenizer_json(path: Path) -> tuple[bytes, Any]:
    """Read a tokenizer.json: its bytes, and what it says besides vocabulary and merges.

    Raises OSError and ValueError if it cannot be read.
    """
    data = read_regular_file(path, LARGEST_VOCABULARY)
    return data, parse_json(VOCABULARY.sub(rb'"\1": null', data))


def require_bounded_tokenizer(folder: Path) -> None:
    """Raise ModelError if the files of the tokenizer in a folder ask for more than any real one.

    Files that cannot be read pass: whoever reads them says so.
    """
    for name in (*ADDED_ENTRIES, ADDED_TOKENS):
        entries = read_json_or_none(folder / name)
        if isinstance(entries, dict):
            require_bounded_entries(folder / name, entries)
    path = folder / TOKENIZER
    try:
        _, document = read_tokenizer_json(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {describe_os_error(error)}") from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if isinstance(document, dict):
        require_bounded_document(path, document)


def read_json_or_none(path: Path) -> Any:
    """Read a JSON file of a list of names; None if it is not there or cannot be read."""
    try:
        return read_json(path, LARGEST_LIST)
    except (OSError, ValueError):
        return None


def require_bounded_entries(path: Path, entries: Mapping[str, Any]) -> None:
    """Raise ModelError if a file of a tokenizer adds more tokens than any real one.

    path: that of the file. entries: what it says.
    """
    if path.name == ADDED_TOKENS:
        require_count(path, "it", entries, MOST_ADDED)
    for entry, most in ADDED_ENTRIES.get(path.name, {}).items():
        require_count(path, entry, entries.get(entry), most)


def require_count(path: Path, entry: str, values: Any, most: int) -> None:
    """Raise ModelError if an entry of a file holds more than ``most`` values."""
    if isinstance(values, (list, dict)) and len(values) > most:
        count = len(values)
        raise ModelError(f"{path}: {entry} adds {count:,} tokens; at most {most:,} are read")


def require_bounded_document(path: Path, document: Mapping[str, Any]) -> None:
    """Raise ModelError if a tokenizer.json asks for more than any real one.

    document: what it says besides its vocabulary. path: that of the file, for the message.
    """
    require_count(path, "added_tokens", document.get("added_tokens"), MOST_ADDED)
    for part in ("normalizer", "decoder"):
        growth = 1
        for step in list_steps(document.get(part)):
            growth *= measure_growth(path, step)
            if growth > MOST_GROWTH:
                raise ModelError(f"{path}: its {part} makes {growth:,} characters of one")
    for step in list_steps(document.get("post_processor")):
        for template in ("single", "pair"):
            pieces = step.get(template)
            count = len(pieces) if isinstance(pieces, list) else 0
            if count > MOST_PIECES:
                raise ModelError(f"{path}: it puts {count:,} tokens around each text")
    model = document.get("model")
    longest = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise ModelError(
            f"{path}: it looks for pieces of words of {longest:,} characters; "
            f"at most {LONGEST_WORD:,} are searched",
        )


def list_steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a component of a tokenizer, those of sequences inside it one by one."""
    if isinstance(component, list):
        for inner in component:
            yield from list_steps(inner)
    if not isinstance(component, dict):
        return
    yield component
    for value in component.values():
        if isinstance(value, list):
            yield from list_steps(value)


def measure_growth(path: Path, step: Mapping[str, Any]) -> int:
    """Return how many characters a step of a normaliser makes of one, at most.

    Raises ModelError for a table of replacements that lies about its length, upon which the library
    would ask for as much memory. path: that of the file, for the message.
    """
    growth = 1
    for name in ("content", "prepend"):
        content = step.get(name)
        if isinstance(content, str):
            growth = max(growth, len(content))
    table = step.get("precompiled_charsmap")
    if isinstance(table, str):
        replacements = read_replacements(path, table)
        growth = max(growth, max(map(len, replacements.split(b"\0"))))
    return growth


def read_replacements(path: Path, table: str) -> bytes:
    """Return the texts of a table of SentencePiece, which replace characters, with 0 between them.

    table: in base64, the length of a trie, the trie, and the texts. Raises ModelError for a table
    that is shorter than its trie.
    """
    try:
        data = b64decode(table)
    except (binascii.Error, ValueError) as error:
        raise ModelError(f"{path}: its precompiled_charsmap cannot be read: {error}") from error
    length = int.from_bytes(data[:TRIE_LENGTH_BYTES], "little")
    rest = data[TRIE_LENGTH_BYTES:]
    if len(data) < TRIE_LENGTH_BYTES or length > len(rest):
        raise ModelError(f"{path}: its precompiled_charsmap is cut short")
    return rest[length:]
