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
from attnviz.render.figure.draw import draw_figure_body
from attnviz.render.figure.fonts import choose_fonts, describe_missing_signs
from attnviz.render.figure.sheet import LABEL, RC, TITLE, Sheet, measure_em, measure_ems
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
    """None for the title of the drawable, empty for no title."""
    dpi: int | None = None
    """Dots an inch; None for those of the style."""
    transparent: bool = False


class FigureFile(NamedTuple):
    """A figure as a file, with notes for the user."""

    data: bytes
    notes: tuple[str, ...]


DEFAULT_STYLE = FigureStyle()
OWN_SIGNS = "…√"  # signs in figures that are in no text of a drawable
PNG_COMPRESSION = 3  # twice as fast as 6, and a tenth larger


def render_figure(
    drawable: Picture,
    form: str,
    style: FigureStyle = DEFAULT_STYLE,
    below: Sequence[Picture] = (),
) -> FigureFile:
    """Draw a figure as a file: the same bytes for the same drawables, style and fonts.

    form: one of FIGURE_FORMATS. below: further pictures in the figure, below the first.

    Raises UsageError if there is no such style, or if the figure would be too small or too large.
    """
    with compose_sheet(drawable, style, below) as sheet:
        texts = sheet.axes.texts
        fonts = choose_fonts(text.get_text() for text in texts)
        cubic_fonts = fonts.cubic if form == "pdf" else ()
        with set_in_truetype(texts, cubic_fonts) as uncopied:
            RC["pdf.fonttype"] = TYPE_3 if uncopied else TYPE_42
            data = write_file(sheet, form, style)
    notes: list[str] = []
    if fonts.missing:
        notes.append(describe_missing_signs(fonts.missing))
    for family in uncopied:
        outlines = f"{family} has no TrueType outlines"
        notes.append(f"{outlines}: the fonts in the PDF are Type 3, which some publishers refuse")
    return FigureFile(data, tuple(notes))


def write_file(sheet: Sheet, form: str, style: FigureStyle) -> bytes:
    """Write a sheet as a file. Raises UsageError if it is too large."""
    require_size(sheet)
    options: dict[str, Any] = {"dpi": sheet.dpi, "metadata": METADATA[form]}
    options["transparent"] = style.transparent or None
    if form == "png":
        options["pil_kwargs"] = {"compress_level": PNG_COMPRESSION}
    else:
        sheet.sharpen()
    file = io.BytesIO()
    sheet.figure.savefig(file, format=form, **options)
    data = file.getvalue()
    return remove_doctype(data) if form == "svg" else data


def require_size(sheet: Sheet) -> None:
    """Raise UsageError if a sheet has more dots than can be drawn."""
    width, height = sheet.figure.get_size_inches() * sheet.dpi
    if width * height > MOST_DOTS:
        size = f"{width:.0f} x {height:.0f} dots"
        advice = "lower --dpi, or choose fewer tokens"
        raise UsageError(f"a figure of {size} is too large: {advice}")


def remove_doctype(svg: bytes) -> bytes:
    """Remove the document type of an SVG, an address that no program needs."""
    start = svg.index(b"<!DOCTYPE")
    end = svg.index(b"<svg")
    return svg[:start] + svg[end:]


@contextmanager
def compose_sheet(
    drawable: Picture,
    style: FigureStyle,
    below: Sequence[Picture] = (),
) -> Iterator[Sheet]:
    """Lay out pictures below each other, while matplotlib is set to their style.

    Raises UsageError if there is no such style, or if the figure would be too small or too large.
    """
    if style.title is not None:
        drawable = replace(drawable, title=escape(style.title))
    pictures = (drawable, *below)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the notes say so
        apply_style(style.name)
        texts = chain.from_iterable(map(list_texts, pictures))
        fonts = choose_fonts([OWN_SIGNS, *texts])
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
    """Draw a picture below its title, if it has one."""
    if picture.title:
        sheet.write_lines(picture.title, TITLE)
        sheet.y += sheet.measure_em(TITLE) / 4
    draw_figure_body(picture, sheet)


def apply_style(name: str) -> None:
    """Set matplotlib to a style. Raises UsageError if there is no such style."""
    if name in PRESETS:
        RC.update(PRESET_SETTINGS | PRESETS[name].settings)
    else:
        mpl.rc_file(find_style_file(name), use_default_template=False)
    RC.update(FIXED_SETTINGS)


def find_style_file(name: str) -> Path:
    """Return the path of a style file. Raises UsageError if it is not there, or sets nothing."""
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
    """Return whether a file sets anything of matplotlib."""
    log = logging.getLogger("matplotlib")
    log.disabled = True  # it would report each line of a file that is no style
    try:
        return bool(mpl.rc_params_from_file(path, use_default_template=False))
    except (OSError, UnicodeDecodeError):
        return False
    finally:
        log.disabled = False


def choose_width(drawable: Picture, style: FigureStyle) -> float:
    """Choose the inches that a figure is wide.

    Raises UsageError if nothing can be drawn on the width that a style asks for.
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
    return preset.wide if needs_wide_figure(drawable, preset.narrow) else preset.narrow


def needs_wide_figure(drawable: Picture, narrow: float) -> bool:
    """Return whether a drawable needs more than so many inches."""
    if isinstance(drawable, Table):
        names, widths = measure_uncut_table(drawable, cache(measure_ems))
        margins = 1  # half an em on either side
        width = names + sum(widths) + margins
        return width * measure_em(LABEL) > narrow
    if isinstance(drawable, Grid):
        return len(drawable.columns) > NARROW_COLUMNS
    return isinstance(drawable, Series)


def choose_dpi(style: FigureStyle) -> float:
    """Choose the dots an inch of a figure: those that are asked for, else those of the style."""
    if style.dpi:
        return float(style.dpi)
    dpi = RC["savefig.dpi"]
    if dpi == "figure":
        dpi = RC["figure.dpi"]
    return float(dpi)
