"""Fonts with PostScript outlines as TrueType for PDFs: matplotlib embeds others as what they are not, or as Type 3."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath

TOLERANCE = 1 / 1000  # of the em: how far a quadratic curve may be from the cubic one
NAMES = {1: "{}", 2: "Regular", 4: "{}", 6: "{}"}  # of family, style, font, and font in PostScript
NOT_OF_TRUETYPE = "CFF ", "CFF2", "VORG", "DSIG"
LIMITS = (
    "maxTwilightPoints",
    "maxStorage",
    "maxFunctionDefs",
    "maxInstructionDefs",
    "maxStackElements",
    "maxSizeOfInstructions",
    "maxComponentElements",
)  # of programs in a font, of which there are none


@contextmanager
def in_truetype(
    texts: Sequence[Any], fonts: Iterable[tuple[str, "FontPath"]]
) -> Iterator[tuple[str, ...]]:
    """While this lasts, texts are set in copies of such fonts. Yields the families that could not be copied."""
    from matplotlib.font_manager import fontManager

    listed = list(fontManager.ttflist)
    signs = set().union(*(text.get_text() for text in texts))
    copies = {}
    with TemporaryDirectory() as folder:
        for i, (family, path) in enumerate(fonts):
            with suppress(Exception):  # whatever a font of this machine holds
                copy = Path(folder) / f"{i}.ttf"
                copy.write_bytes(truetype(path, signs, f"{family.replace(' ', '')}TrueType"))
                fontManager.addfont(copy)
                copies[family] = fontManager.ttflist[-1].name
        for text in texts if copies else ():
            text.set_fontfamily([copies.get(family, family) for family in text.get_fontfamily()])
        try:
            yield tuple(family for family, _ in fonts if family not in copies)
        finally:
            fontManager.ttflist[:] = listed


def truetype(path: "FontPath", signs: Iterable[str], name: str) -> bytes:
    """Those signs of a font as a TrueType font of that name: the same bytes each time."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    file = io.BytesIO()
    with TTFont(path, fontNumber=path.face_index, recalcTimestamp=False, lazy=True) as font:
        cutter = Subsetter(Options(name_IDs=list(NAMES), notdef_outline=True, hinting=False))
        cutter.populate(unicodes=map(ord, signs))
        cutter.subset(font)
        set_outlines(font, quadratic(font))
        for record in font["name"].names:
            record.string = NAMES[record.nameID].format(name)
        font.save(file)
    return file.getvalue()


def quadratic(font: Any) -> dict[str, Any]:
    """The outlines of a font as TrueType has them, by the names of its glyphs."""
    from fontTools.pens.cu2quPen import Cu2QuPen
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    outlines, found = font.getGlyphSet(), {}
    for name in font.getGlyphOrder():
        pen = TTGlyphPen(None)
        outlines[name].draw(
            Cu2QuPen(pen, TOLERANCE * font["head"].unitsPerEm, reverse_direction=True)
        )
        found[name] = pen.glyph()
    return found


def set_outlines(font: Any, glyphs: dict[str, Any]) -> None:
    """Make a font one of these outlines (OpenType, tables glyf, hmtx, maxp and post)."""
    from fontTools.ttLib import newTable

    for tag in NOT_OF_TRUETYPE:
        if tag in font:
            del font[tag]
    font["loca"], font["glyf"] = newTable("loca"), newTable("glyf")
    font["glyf"].glyphOrder, font["glyf"].glyphs = list(glyphs), glyphs
    for name, glyph in glyphs.items():
        glyph.recalcBounds(font["glyf"])
        font["hmtx"][name] = font["hmtx"][name][0], getattr(glyph, "xMin", 0)
    font["maxp"].tableVersion, font["maxp"].maxZones = 0x00010000, 1
    for limit in LIMITS:
        setattr(font["maxp"], limit, 0)
    font["post"].formatType = 3.0  # glyphs have no names
    font.sfntVersion = "\0\1\0\0"
