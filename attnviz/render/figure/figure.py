"""Drawables as figures for papers, slides and screens: PNG, SVG and PDF by matplotlib.

Cells are one image, coloured here: an axes for each head, or weights for matplotlib to colour,
would cost many times as much. The width of a figure is the one that is asked for, its height what
it needs.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

from attnviz.drawable import Grid, Picture, Series, Table, list_texts
from attnviz.errors import UsageError
from attnviz.escape import escape
from attnviz.render.figure import IMPORT_NOTES
from attnviz.render.figure.draw import draw_figure_body
from attnviz.render.figure.fonts import (
    choose_fonts,
    describe_missing_characters,
)
from attnviz.render.figure.sheet import (
    LABEL,
    RC,
    TITLE,
    Sheet,
    measure_em,
    measure_ems,
)
from attnviz.render.figure.table import measure_uncut_table
from attnviz.render.figure.truetype import set_in_truetype

FIGURE_FORMATS = ("png", "svg", "pdf")
NARROW_COLUMNS = 4  # columns of a grid that a column of a paper holds
LEAST_WIDTH, MOST_WIDTH = 1.5, 100.0  # inches
MOST_DOTS = 2**27  # half a gigabyte while a figure is drawn
TYPE_3, TYPE_42 = 3, 42  # fonts in a PDF: drawn by programs, and TrueType


class Preset(NamedTuple):
    """A style that needs no file."""

    narrow: float
    """Inches of one matrix, or of a text."""
    wide: float
    """Inches of many matrices."""
    settings: dict[str, Any]


PRESETS = {
    "paper": Preset(
        3.25,
        6.75,
        {"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 6, "savefig.dpi": 300},
    ),
    "slide": Preset(
        10,
        10,
        {"font.size": 16, "axes.titlesize": 18, "axes.labelsize": 14, "savefig.dpi": 150},
    ),
    "screen": Preset(
        6.75,
        9,
        {"font.size": 8.5, "axes.titlesize": 10, "axes.labelsize": 8, "savefig.dpi": 200},
    ),
}
STYLES = tuple(PRESETS)
PRESET_SETTINGS = {  # of all presets
    "xtick.labelsize": "medium",
    "axes.labelcolor": "0.3",
    "axes.edgecolor": "0.4",
    "axes.linewidth": 0.5,
}
FIXED_SETTINGS = {  # of every figure, whatever the style
    "text.parse_math": False,  # tokens may hold dollar signs
    "text.usetex": False,  # and tokens are no program
    "text.hinting": "no_hinting",  # letters are as wide in every format and at every size
    "savefig.bbox": None,  # the width is the one that is asked for
    "pdf.use14corefonts": False,  # fonts are in the file
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "attnviz",  # and ids are the same each time
    "svg.image_inline": True,
}
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}


@dataclass(frozen=True)
class FigureStyle:
    """The look of a figure."""

    name: str = "screen"
    """One of STYLES, or the path of a matplotlib style file."""
    inches: float | None = None
    """The width; None for the width of the style."""
    colours: str = "viridis"
    """The name of a colour map."""
    title: str | None = None
    """None for the title of the picture, empty for no title."""
    dpi: int | None = None
    """Dots per inch; None for those of the style."""
    transparent: bool = False


class FigureFile(NamedTuple):
    """A figure as a file, with notes for the user."""

    data: bytes
    notes: tuple[str, ...]


DEFAULT_STYLE = FigureStyle()
OWN_CHARACTERS = "…√"  # characters in figures that are in no text of a picture
PNG_COMPRESSION = 3  # twice as fast as 6, and a tenth larger


def render_figure(
    picture: Picture,
    file_format: str,
    style: FigureStyle = DEFAULT_STYLE,
    below: Sequence[Picture] = (),
) -> FigureFile:
    """Draw a figure as a file: the same bytes for the same pictures, style and fonts.

    picture: the first one in the figure. file_format: "png", "svg" or "pdf". style: the figure's
    size, fonts and colours. below: further pictures in it, below the first. Returns the bytes of
    the file, and notes for the user on fonts.

    Raises UsageError if there is no such style, or if the figure would be too small or too large.
    """
    with compose_sheet(picture, style, below) as sheet:
        texts = sheet.axes.texts
        fonts = choose_fonts(text.get_text() for text in texts)
        # Some readers show no text in fonts of cubic curves that matplotlib embeds in a PDF.
        cubic_fonts = fonts.cubic if file_format == "pdf" else ()
        with set_in_truetype(texts, cubic_fonts) as uncopied:
            RC["pdf.fonttype"] = TYPE_3 if uncopied else TYPE_42
            data = write_file(sheet, file_format, style)
    notes = list(IMPORT_NOTES)
    if fonts.missing:
        notes.append(describe_missing_characters(fonts.missing))
    for family in uncopied:
        outlines = f"{family} has no TrueType outlines"
        notes.append(f"{outlines}: the fonts in the PDF are Type 3, which some publishers refuse")
    return FigureFile(data, tuple(notes))


def write_file(sheet: Sheet, file_format: str, style: FigureStyle) -> bytes:
    """Write a sheet, that is, a figure with everything drawn on it, and return the file's bytes.

    file_format: "png", "svg" or "pdf". style: says whether the background is transparent. Raises
    UsageError if the sheet has too many dots.
    """
    require_size(sheet)
    options: dict[str, Any] = {"dpi": sheet.dpi, "metadata": METADATA[file_format]}
    # None leaves it to matplotlib's settings.
    options["transparent"] = style.transparent or None
    if file_format == "png":
        options["pil_kwargs"] = {"compress_level": PNG_COMPRESSION}
    else:
        sheet.sharpen()
    file = io.BytesIO()
    sheet.figure.savefig(file, format=file_format, **options)
    data = file.getvalue()
    return remove_doctype(data) if file_format == "svg" else data


def require_size(sheet: Sheet) -> None:
    """Raise UsageError if a sheet has more dots than can be drawn: more than MOST_DOTS."""
    width, height = sheet.figure.get_size_inches() * sheet.dpi
    if width * height > MOST_DOTS:
        size = f"{width:.0f} x {height:.0f} dots"
        advice = "lower --dpi, or choose fewer tokens"
        raise UsageError(f"a figure of {size} is too large: {advice}")


def remove_doctype(svg: bytes) -> bytes:
    """Remove the document type of an SVG file: it has an address, and no program needs it."""
    start = svg.index(b"<!DOCTYPE")
    end = svg.index(b"<svg")
    return svg[:start] + svg[end:]


@contextmanager
def compose_sheet(
    first: Picture,
    style: FigureStyle,
    below: Sequence[Picture] = (),
) -> Iterator[Sheet]:
    """Draw pictures below each other on a sheet, and yield it while matplotlib is set to a style.

    first: the picture at the top; a title in the style replaces its own. below: the pictures below
    it. The sheet holds a matplotlib figure, as wide as the widest picture asks for, and as high as
    all of them take. When the context ends, matplotlib has its former settings again.

    Raises UsageError if there is no such style, or if the figure would be too small or too large.
    """
    if style.title is not None:
        first = replace(first, title=escape(style.title))
    pictures = (first, *below)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the notes say so
        apply_style(style.name)
        texts = chain.from_iterable(map(list_texts, pictures))
        fonts = choose_fonts([OWN_CHARACTERS, *texts])
        RC["font.family"] = [*RC["font.family"], *fonts.families]
        width = max(choose_width(picture, style) for picture in pictures)
        sheet = Sheet(width, choose_dpi(style), style.colours)
        for i, picture in enumerate(pictures):
            if i > 0:
                sheet.y += sheet.measure_em(TITLE)
            draw_picture(picture, sheet)
        sheet.finish()
        yield sheet


def draw_picture(picture: Picture, sheet: Sheet) -> None:
    """Draw the title of a picture, if it has one, and the picture below it.

    sheet: the figure, which is filled downwards; ``sheet.y`` is how far it is filled, in inches.
    """
    if picture.title:
        sheet.write_lines(picture.title, TITLE)
        sheet.y += sheet.measure_em(TITLE) / 4
    draw_figure_body(picture, sheet)


def apply_style(name: str) -> None:
    """Set matplotlib to a style, and to the settings that every figure must have.

    name: of a preset, or the path of a matplotlib style file. Raises UsageError if it is neither.
    """
    if name in PRESETS:
        RC.update(PRESET_SETTINGS | PRESETS[name].settings)
    else:
        mpl.rc_file(find_style_file(name), use_default_template=False)
    RC.update(FIXED_SETTINGS)


def find_style_file(name: str) -> Path:
    """Return the absolute path of a matplotlib style file, by the path that the user names.

    Raises UsageError if there is no such file, or if no line in it is a setting of matplotlib.
    """
    path = Path(name).absolute()  # matplotlib may take a relative one for an address
    if not path.is_file():
        choices = ", ".join(STYLES)
        allowed = f"{choices} or the path of a matplotlib style file"
        raise UsageError(f"no style {name}: it must be {allowed}")
    if not has_settings(path):
        missing = "it has no line like font.size: 8"
        raise UsageError(f"{name} is no matplotlib style: {missing}")
    return path


def has_settings(path: Path) -> bool:
    """Return whether a file can be read and holds at least one setting of matplotlib."""
    log = logging.getLogger("matplotlib")
    log.disabled = True  # it would report each line of a file that is no style
    try:
        return bool(mpl.rc_params_from_file(path, use_default_template=False))
    except (OSError, UnicodeDecodeError):
        return False
    finally:
        log.disabled = False


def choose_width(picture: Picture, style: FigureStyle) -> float:
    """Choose how many inches wide the figure of a picture is.

    A width that the style asks for comes first. A style file has one width. A preset has a narrow
    and a wide one, by how much room the picture needs.

    Raises UsageError if the style asks for less than LEAST_WIDTH or more than MOST_WIDTH.
    """
    if style.inches is not None:
        if not LEAST_WIDTH <= style.inches <= MOST_WIDTH:
            limits = f"{LEAST_WIDTH:g} to {MOST_WIDTH:g} inches"
            message = f"a figure is {limits} wide, not {style.inches:g}"
            raise UsageError(message)
        return style.inches
    if style.name not in PRESETS:
        return float(RC["figure.figsize"][0])
    preset = PRESETS[style.name]
    return preset.wide if needs_wide_figure(picture, preset.narrow) else preset.narrow


def needs_wide_figure(picture: Picture, narrow: float) -> bool:
    """Return whether a picture needs more room than the narrow width of a style.

    narrow: that width in inches. A series always needs more, a table where its columns do not fit
    uncut, a grid where it has more than NARROW_COLUMNS columns, and other pictures never.
    """
    if isinstance(picture, Table):
        names, widths = measure_uncut_table(picture, cache(measure_ems))
        margins = 1  # half an em on either side
        width = names + sum(widths) + margins
        return width * measure_em(LABEL) > narrow
    if isinstance(picture, Grid):
        return len(picture.columns) > NARROW_COLUMNS
    return isinstance(picture, Series)


def choose_dpi(style: FigureStyle) -> float:
    """Choose the dots per inch of a figure: those that a style asks for, else matplotlib's.

    matplotlib's ``savefig.dpi`` may be "figure", which stands for its ``figure.dpi``.
    """
    if style.dpi:
        return float(style.dpi)
    dpi = RC["savefig.dpi"]
    if dpi == "figure":
        dpi = RC["figure.dpi"]
    return float(dpi)
