"""Fonts for tokens in any script: installed ones that have the signs which the usual font lacks."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath

BUNDLED = "DejaVu Sans"  # comes with matplotlib
# Both have the same signs, drawn as readers of Chinese, and of Japanese, expect them.
CHINESE_FONT = "Noto Sans CJK SC"
JAPANESE_FONT = "Noto Sans CJK JP"
REGULAR_WEIGHTS = 400, "normal", "regular", "book"
MOST_NAMED_SIGNS = 5  # of the missing signs, in a note
COLLECTION_TAG, POSTSCRIPT_TAG = b"ttcf", b"OTTO"  # the first four bytes of a font file


class Fonts(NamedTuple):
    """The fonts that a text is set in."""

    families: tuple[str, ...]
    """The families to fall back on where the usual ones lack a sign."""
    missing: frozenset[str]
    """The signs that no installed font has."""
    cubic: "tuple[tuple[str, FontPath], ...]"
    """The families and files of fonts with PostScript outlines, whose curves are cubic.

    matplotlib embeds them as TrueType, which they are not: some readers of a PDF then draw nothing.
    """


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """Choose fonts for texts, beside the families that matplotlib is set to.

    Other fonts are opened only where these families lack a sign.
    """
    signs: set[str] = set().union(*texts)
    usual, missing = pick_fonts(list_usual_fonts(), signs)
    fallback: dict[str, FontPath] = {}
    if missing:
        has_kana = any("\u3041" <= sign <= "\u30ff" for sign in missing)
        fallback, missing = pick_fonts(list_installed_fonts(kana=has_kana), missing)
    cubic: list[tuple[str, FontPath]] = []
    for family, path in (usual | fallback).items():
        if not has_truetype_outlines(path):
            cubic.append((family, path))
    return Fonts(tuple(fallback), frozenset(missing), tuple(cubic))


def list_usual_fonts() -> "Iterator[tuple[str, FontPath]]":
    """Yield the families that matplotlib is set to, with their files."""
    from matplotlib.font_manager import FontProperties, findfont

    for family in FontProperties().get_family():
        yield family, findfont(FontProperties(family=[family]))


def pick_fonts(
    fonts: "Iterable[tuple[str, FontPath]]",
    signs: set[str],
) -> "tuple[dict[str, FontPath], set[str]]":
    """Pick the fonts that have signs which the fonts before them lack.

    Returns these fonts, and the signs that none has. No font is opened once all signs are there.
    """
    chosen: dict[str, FontPath] = {}
    missing = signs
    for family, path in fonts:
        available = find_signs(path, missing)
        if available:
            chosen[family] = path
            missing = missing - available
        if not missing:
            break
    return chosen, missing


def list_installed_fonts(*, kana: bool) -> "Iterator[tuple[str, FontPath]]":
    """Yield the regular face of each family that is installed, the likeliest first.

    kana: signs of Japanese are looked for, so that its font comes before the Chinese one.
    """
    from matplotlib.font_manager import FontPath, fontManager

    first = (BUNDLED, JAPANESE_FONT if kana else CHINESE_FONT)

    def rank_font(entry: Any) -> tuple[Any, ...]:
        return (
            entry.name not in first,
            not entry.name.startswith("Noto Sans"),
            entry.name,
            entry.style != "normal",
            entry.weight not in REGULAR_WEIGHTS,
            entry.fname,
        )

    seen: set[str] = set()
    for entry in sorted(fontManager.ttflist, key=rank_font):
        draws_boxes = "last resort" in entry.name.lower()  # for every sign
        if entry.name in seen or draws_boxes:
            continue
        seen.add(entry.name)
        yield entry.name, FontPath(entry.fname, entry.index)


def find_signs(path: "FontPath", signs: set[str]) -> set[str]:
    """Return the signs that a font has; none if it cannot be opened, or is of coloured pictures."""
    from matplotlib.font_manager import get_font
    from matplotlib.ft2font import FaceFlags

    with suppress(OSError, RuntimeError):
        face = get_font(path)
        is_coloured = face.face_flags & (FaceFlags.COLOR | FaceFlags.SVG)
        if not is_coloured:
            return {sign for sign in signs if face.get_char_index(ord(sign))}
    return set()


def has_truetype_outlines(path: "FontPath") -> bool:
    """Return whether the outlines of a font are TrueType's.

    The tag at the head of the font says so. In a collection of fonts (OpenType, TTC header), each
    font has a head of its own, to which an offset leads.
    """
    with Path(path).open("rb") as file:
        tag = file.read(4)
        if tag == COLLECTION_TAG:
            file.seek(12 + 4 * path.face_index)
            offset = int.from_bytes(file.read(4), "big")
            file.seek(offset)
            tag = file.read(4)
        return tag != POSTSCRIPT_TAG


def name_sign(sign: str) -> str:
    """Return a sign with its number in Unicode."""
    code = ord(sign)
    return f"{sign} (U+{code:04X})"


def describe_missing_signs(signs: Iterable[str]) -> str:
    """Say which signs no font has, and what to do."""
    missing = sorted(signs)
    names = ", ".join(name_sign(sign) for sign in missing[:MOST_NAMED_SIGNS])
    text = f"no installed font has {names}"
    unnamed = len(missing) - MOST_NAMED_SIGNS
    if unnamed > 0:
        text += f" and {unnamed} more"
    if len(missing) == 1:
        return f"{text}: it is drawn as a box; a Noto font would have it"
    return f"{text}: they are drawn as boxes; Noto fonts would have them"
