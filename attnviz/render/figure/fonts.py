"""Fonts for tokens in any script: which of those that are installed have the signs that the usual font lacks."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath

BUNDLED = "DejaVu Sans"  # comes with matplotlib
HAN, KANA = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
)  # the same signs as readers of Chinese, and of Japanese, draw them
NAMED = 5  # signs that are named as missing


class Fonts(NamedTuple):
    """What a text is set in."""

    families: tuple[str, ...]
    """Those to fall back on where the usual ones lack a sign."""
    missing: frozenset[str]
    """Signs that no installed font has."""
    cubic: "tuple[tuple[str, FontPath], ...]"
    """Those with PostScript outlines, which matplotlib embeds as TrueType: some readers of a PDF then draw nothing."""


def fonts(texts: Iterable[str]) -> Fonts:
    """The fonts for texts, beside those that matplotlib is set to. Others are opened only where these lack a sign."""
    from matplotlib.font_manager import FontProperties, findfont

    families = FontProperties().get_family()
    usual, missing = taken(
        ((family, findfont(FontProperties(family=[family]))) for family in families),
        set().union(*texts),
    )
    kana = any("\u3041" <= sign <= "\u30ff" for sign in missing)
    fallback, missing = taken(others(kana=kana), missing) if missing else ({}, missing)
    cubic = [
        (family, path)
        for family, path in (usual | fallback).items()
        if not has_truetype_outlines(path)
    ]
    return Fonts(tuple(fallback), frozenset(missing), tuple(cubic))


def taken(
    fonts: Iterable[tuple[str, "FontPath"]], signs: set[str]
) -> tuple[dict[str, "FontPath"], set[str]]:
    """Those fonts that have signs which the ones before them lack, and the signs that are left."""
    found = {}
    for family, path in fonts:
        if drawn := drawn_by(path, signs):
            found[family] = path
            signs = signs - drawn
        if not signs:
            break
    return found, signs


def others(*, kana: bool) -> Iterator[tuple[str, "FontPath"]]:
    """The regular face of each family that is installed, the likeliest first."""
    from matplotlib.font_manager import FontPath, fontManager

    first = (BUNDLED, KANA if kana else HAN)
    seen = set()
    for entry in sorted(
        fontManager.ttflist,
        key=lambda entry: (
            entry.name not in first,
            not entry.name.startswith("Noto Sans"),
            entry.name,
            entry.style != "normal",
            entry.weight not in (400, "normal", "regular", "book"),
            entry.fname,
        ),
    ):
        if (
            entry.name not in seen and "last resort" not in entry.name.lower()
        ):  # which draws a box for every sign
            seen.add(entry.name)
            yield entry.name, FontPath(entry.fname, entry.index)


def drawn_by(path: "FontPath", signs: set[str]) -> set[str]:
    """Those signs that a font has; none if it cannot be opened, or is of coloured pictures."""
    from matplotlib.font_manager import get_font
    from matplotlib.ft2font import FaceFlags

    with suppress(OSError, RuntimeError):
        face = get_font(path)
        if not face.face_flags & (FaceFlags.COLOR | FaceFlags.SVG):
            return {sign for sign in signs if face.get_char_index(ord(sign))}
    return set()


def has_truetype_outlines(path: "FontPath") -> bool:
    """Whether a font's outlines are TrueType's, by the tag at the head of the font, or of one in a collection."""
    with Path(path).open("rb") as file:
        if file.read(4) == b"ttcf":
            file.seek(12 + 4 * path.face_index)
            file.seek(int.from_bytes(file.read(4), "big"))
        else:
            file.seek(0)
        return file.read(4) != b"OTTO"


def missing_line(signs: Iterable[str]) -> str:
    """Which signs no font has, and what to do."""
    found = sorted(signs)
    named = ", ".join(f"{sign} (U+{ord(sign):04X})" for sign in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    them = (
        "it is drawn as a box; a Noto font would have it"
        if len(found) == 1
        else "they are drawn as boxes; Noto fonts would have them"
    )
    return f"no installed font has {named}{more}: {them}"
