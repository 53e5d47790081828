"""Fonts for tokens in any script: installed ones beside the usual font.

Other fonts are chosen only for characters that the usual font lacks.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath

BUNDLED = "DejaVu Sans"  # comes with matplotlib
# Both have the same characters, drawn as readers of Chinese, and of Japanese, expect them.
CHINESE_FONT = "Noto Sans CJK SC"
JAPANESE_FONT = "Noto Sans CJK JP"
REGULAR_WEIGHTS = 400, "normal", "regular", "book"
MOST_NAMED_CHARACTERS = 5  # of the missing characters, in a note
COLLECTION_TAG, POSTSCRIPT_TAG = b"ttcf", b"OTTO"  # the first four bytes of a font file


class Fonts(NamedTuple):
    """The fonts that a text is set in."""

    families: tuple[str, ...]
    """The families to fall back on where the usual ones lack a character."""
    missing: frozenset[str]
    """The characters that no installed font has."""
    cubic: "tuple[tuple[str, FontPath], ...]"
    """The families and files of fonts with PostScript outlines, whose curves are cubic.

    matplotlib embeds them as TrueType, which they are not: some readers of a PDF then draw nothing.
    """


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """Choose fonts that have every character of some texts.

    The families that matplotlib is set to come first. Other installed fonts are opened only where
    these lack a character. Returns the further families that are needed, the characters that no
    font has, and the chosen fonts whose outlines are not TrueType's.
    """
    characters: set[str] = set().union(*texts)
    usual, missing = pick_fonts(list_usual_fonts(), characters)
    fallback: dict[str, FontPath] = {}
    if missing:
        has_kana = any("\u3041" <= character <= "\u30ff" for character in missing)
        fallback, missing = pick_fonts(list_installed_fonts(kana=has_kana), missing)
    cubic: list[tuple[str, FontPath]] = []
    for family, path in (usual | fallback).items():
        if not has_truetype_outlines(path):
            cubic.append((family, path))
    return Fonts(tuple(fallback), frozenset(missing), tuple(cubic))


def list_usual_fonts() -> "Iterator[tuple[str, FontPath]]":
    """Yield the font families that matplotlib is set to, each with the path of its font file."""
    from matplotlib.font_manager import FontProperties, findfont

    for family in FontProperties().get_family():
        yield family, findfont(FontProperties(family=[family]))


def pick_fonts(
    fonts: "Iterable[tuple[str, FontPath]]",
    characters: set[str],
) -> "tuple[dict[str, FontPath], set[str]]":
    """Pick the fonts that have characters which the fonts before them lack.

    fonts: the family and the file of each font, the preferred ones first. They are opened one after
    the other until every character is found. Returns the file of each font that was picked, by its
    family, and the characters that no font has.
    """
    chosen: dict[str, FontPath] = {}
    missing = characters
    for family, path in fonts:
        available = find_known_characters(path, missing)
        if available:
            chosen[family] = path
            missing = missing - available
        if not missing:
            break
    return chosen, missing


def list_installed_fonts(*, kana: bool) -> "Iterator[tuple[str, FontPath]]":
    """Yield the family and the file of the regular face of each installed font family.

    Families come in the order in which they are likely to have a character that is looked for: the
    font that comes with matplotlib and a font for Chinese, or with ``kana`` for Japanese, then
    other fonts named Noto Sans, then all others.
    """
    from matplotlib.font_manager import FontPath, fontManager

    likeliest = (BUNDLED, JAPANESE_FONT if kana else CHINESE_FONT)

    def rank_font(entry: Any) -> tuple[Any, ...]:
        """Return a key that sorts likely families, and their regular faces, to the front."""
        return (
            entry.name not in likeliest,
            not entry.name.startswith("Noto Sans"),
            entry.name,
            entry.style != "normal",
            entry.weight not in REGULAR_WEIGHTS,
            entry.fname,
        )

    seen: set[str] = set()
    for entry in sorted(fontManager.ttflist, key=rank_font):
        draws_boxes = "last resort" in entry.name.lower()  # a box for every character
        if entry.name in seen or draws_boxes:
            continue
        seen.add(entry.name)
        yield entry.name, FontPath(entry.fname, entry.index)


def find_known_characters(path: "FontPath", characters: set[str]) -> set[str]:
    """Return which of some characters a font has.

    There are none if the font cannot be opened, or if its glyphs are coloured pictures, as those of
    emoji are.
    """
    from matplotlib.font_manager import get_font
    from matplotlib.ft2font import FaceFlags

    with suppress(OSError, RuntimeError):
        face = get_font(path)
        is_coloured = face.face_flags & (FaceFlags.COLOR | FaceFlags.SVG)
        if not is_coloured:
            return {character for character in characters if face.get_char_index(ord(character))}
    return set()


def has_truetype_outlines(path: "FontPath") -> bool:
    """Return whether the outlines of a font are TrueType's, and not PostScript's.

    The first four bytes of a font, its tag, tell. A collection of fonts in one file (OpenType, TTC
    header) begins with a tag of the collection, and lists the offset at which each font begins.
    """
    with Path(path).open("rb") as file:
        tag = file.read(4)
        if tag == COLLECTION_TAG:
            # The header has 12 bytes, an offset 4.
            file.seek(12 + 4 * path.face_index)
            offset = int.from_bytes(file.read(4), "big")
            file.seek(offset)
            tag = file.read(4)
        return tag != POSTSCRIPT_TAG


def name_character(character: str) -> str:
    """Return a character with its number in Unicode: é (U+00E9)."""
    code = ord(character)
    return f"{character} (U+{code:04X})"


def describe_missing_characters(characters: Iterable[str]) -> str:
    """Tell the user which characters no installed font has, and what to do.

    The first MOST_NAMED_CHARACTERS are named, the others counted.
    """
    missing = sorted(characters)
    names = ", ".join(name_character(character) for character in missing[:MOST_NAMED_CHARACTERS])
    text = f"no installed font has {names}"
    unnamed = len(missing) - MOST_NAMED_CHARACTERS
    if unnamed > 0:
        text += f" and {unnamed} more"
    if len(missing) == 1:
        return f"{text}: it is drawn as a box; a Noto font would have it"
    return f"{text}: they are drawn as boxes; Noto fonts would have them"
