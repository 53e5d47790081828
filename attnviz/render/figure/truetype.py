"""Copies of fonts with PostScript outlines as TrueType, for PDFs whose text can be read anywhere.

Fonts for Chinese, Japanese and Korean mostly have PostScript outlines, made of cubic curves.
matplotlib 3.11 embeds every font in a PDF as TrueType (``pdf.fonttype`` 42), made of quadratic
curves, and does not convert these: some readers then draw nothing. Its other choice is Type 3,
which some publishers refuse. Labels drawn as paths would be no text that a reader can copy.

fontTools converts curves (``Cu2QuPen``) and has a recipe for whole fonts, ``otf2ttf``, among its
examples. No function of the package makes a TrueType font of a PostScript one (``FontBuilder``
makes new fonts, or leaves a font the kind that it is), so that the recipe stands here, for the
characters of the figure alone.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from attnviz.temporary import make_temporary_folder

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath

TOLERANCE = 1 / 1000  # of the em: how far a quadratic curve may be from the cubic one
# The texts of the name table, by name ID: of family, style, font, and font in PostScript.
NAME_TEMPLATES = {1: "{}", 2: "Regular", 4: "{}", 6: "{}"}
POSTSCRIPT_TABLES = "CFF ", "CFF2", "VORG", "DSIG"
PROGRAM_LIMITS = (  # of programs in a font, of which there are none
    "maxTwilightPoints",
    "maxStorage",
    "maxFunctionDefs",
    "maxInstructionDefs",
    "maxStackElements",
    "maxSizeOfInstructions",
    "maxComponentElements",
)
MAXP_VERSION = 0x00010000  # of TrueType outlines
POST_VERSION = 3.0  # in which glyphs have no names
TRUETYPE_TAG = "\0\1\0\0"


@contextmanager
def set_in_truetype(
    texts: Sequence[Any],
    fonts: Sequence[tuple[str, "FontPath"]],
) -> Iterator[tuple[str, ...]]:
    """Make TrueType copies of fonts, set texts in them, and yield the families without a copy.

    A copy has only the characters of the texts. matplotlib knows the copies, whose files are
    temporary, while this context lasts. A font that cannot be copied for any reason is left as it
    is, and the name of its family is among those that are yielded.

    texts: the text objects of a matplotlib figure. fonts: the family and the file of each font.
    """
    from matplotlib.font_manager import fontManager

    installed = list(fontManager.ttflist)
    characters = set().union(*(text.get_text() for text in texts))
    copies: dict[str, str] = {}
    with make_temporary_folder() as folder:
        for i, (family, path) in enumerate(fonts):
            with suppress(Exception):  # whatever a font of this machine holds
                copy_path = folder / f"{i}.ttf"
                copy_name = f"{family.replace(' ', '')}TrueType"
                copy = convert_font(path, characters, copy_name)
                copy_path.write_bytes(copy)
                fontManager.addfont(copy_path)
                copies[family] = fontManager.ttflist[-1].name
        if copies:
            replace_families(texts, copies)
        try:
            yield tuple(family for family, _ in fonts if family not in copies)
        finally:
            fontManager.ttflist[:] = installed


def replace_families(texts: Iterable[Any], copies: dict[str, str]) -> None:
    """Set texts in the copies of their font families; a family without a copy stays.

    texts: the text objects of a matplotlib figure. copies: the name of each copy by the name of the
    family that it replaces.
    """
    for text in texts:
        families = text.get_fontfamily()
        text.set_fontfamily([copies.get(family, family) for family in families])


def convert_font(path: "FontPath", characters: Iterable[str], name: str) -> bytes:
    """Make a TrueType font that has some characters of another font.

    path: the file of the other font. name: of the new font and of its family. Returns the bytes of
    the new font's file, which are the same each time.
    """
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    file = io.BytesIO()
    options = Options(name_IDs=list(NAME_TEMPLATES), notdef_outline=True, hinting=False)
    with TTFont(path, fontNumber=path.face_index, recalcTimestamp=False, lazy=True) as font:
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=map(ord, characters))
        subsetter.subset(font)
        set_outlines(font, convert_outlines(font))
        for record in font["name"].names:
            template = NAME_TEMPLATES[record.nameID]
            record.string = template.format(name)
        font.save(file)
    return file.getvalue()


def convert_outlines(font: Any) -> dict[str, Any]:
    """Convert the outlines of a font to quadratic curves, which TrueType fonts are made of.

    font: a TTFont of fontTools, whose outlines may be cubic curves. Returns the new outline of each
    glyph by the glyph's name.
    """
    from fontTools.pens.cu2quPen import Cu2QuPen
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    tolerance = TOLERANCE * font["head"].unitsPerEm
    outlines = font.getGlyphSet()
    glyphs: dict[str, Any] = {}
    for name in font.getGlyphOrder():
        pen = TTGlyphPen(None)
        converter = Cu2QuPen(pen, tolerance, reverse_direction=True)
        outlines[name].draw(converter)
        glyphs[name] = pen.glyph()
    return glyphs


def set_outlines(font: Any, glyphs: dict[str, Any]) -> None:
    """Replace the PostScript outlines of a font, so that it becomes a TrueType font.

    What the tables glyf, hmtx, maxp and post must hold is in the specification of OpenType.

    font: a TTFont of fontTools, which is changed. glyphs: the new outlines, in quadratic curves, by
    glyph name.
    """
    from fontTools.ttLib import newTable

    for tag in POSTSCRIPT_TABLES:
        if tag in font:
            del font[tag]
    font["loca"] = newTable("loca")
    outlines = newTable("glyf")
    font["glyf"] = outlines
    outlines.glyphOrder = list(glyphs)
    outlines.glyphs = glyphs
    metrics = font["hmtx"]
    for name, glyph in glyphs.items():
        glyph.recalcBounds(outlines)
        advance, _ = metrics[name]
        left_side_bearing = getattr(glyph, "xMin", 0)
        metrics[name] = advance, left_side_bearing
    limits = font["maxp"]
    limits.tableVersion = MAXP_VERSION
    limits.maxZones = 1
    for limit in PROGRAM_LIMITS:
        setattr(limits, limit, 0)
    font["post"].formatType = POST_VERSION
    font.sfntVersion = TRUETYPE_TAG
