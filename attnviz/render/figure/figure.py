"""Drawables as figures for papers, slides and screens: PNG, SVG and PDF by matplotlib's object interface.

Cells are one image, coloured here: an axes a head, or a canvas of weights for matplotlib to colour, costs many times as
much. The width of a figure is what is asked for, its height what it takes.
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
from attnviz.render.figure.draw import draw
from attnviz.render.figure.fonts import fonts, missing_line
from attnviz.render.figure.sheet import LABEL, RC, TITLE, Sheet, em, ems
from attnviz.render.figure.table import natural
from attnviz.render.figure.truetype import in_truetype

FORMATS = ("png", "svg", "pdf")
NARROW = 4  # columns of a grid that a column of a paper holds
LEAST_WIDTH, MOST_WIDTH = 1.5, 100.0  # inches
MOST_DOTS = 2**27  # half a gigabyte while it is drawn


class Preset(NamedTuple):
    """A style of ours."""

    narrow: float
    """Inches of one matrix, or of a text."""
    wide: float
    """Inches of many matrices."""
    settings: dict[str, Any]


PRESETS = {
    "paper": Preset(
        3.25, 6.75, {"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 6, "savefig.dpi": 300}
    ),
    "slide": Preset(
        10, 10, {"font.size": 16, "axes.titlesize": 18, "axes.labelsize": 14, "savefig.dpi": 150}
    ),
    "screen": Preset(
        6.75, 9, {"font.size": 8.5, "axes.titlesize": 10, "axes.labelsize": 8, "savefig.dpi": 200}
    ),
}
STYLES = tuple(PRESETS)
OURS = {
    "xtick.labelsize": "medium",
    "axes.labelcolor": "0.3",
    "axes.edgecolor": "0.4",
    "axes.linewidth": 0.5,
}
FIXED = {
    "text.parse_math": False,  # tokens may hold dollar signs
    "text.usetex": False,  # and are no program
    "text.hinting": "no_hinting",  # letters are as wide in every format and at every size
    "savefig.bbox": None,  # the width is what is asked for
    "pdf.use14corefonts": False,  # fonts are in the file
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "attnviz",  # and ids what they are
    "svg.image_inline": True,
}
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}


@dataclass(frozen=True)
class Style:
    """How a figure is to look."""

    name: str = "screen"
    """One of STYLES, or the path of a matplotlib style file."""
    inches: float | None = None
    """The width; None for that of the style."""
    colours: str = "viridis"
    title: str | None = None
    """None for that of the drawable, empty for none."""
    dpi: int | None = None
    transparent: bool = False


class Drawn(NamedTuple):
    """A figure, and what is to be said of it."""

    data: bytes
    notes: tuple[str, ...]


PLAIN = Style()
OWN_SIGNS = "…√"  # that figures hold besides the texts of what they show


def figure(
    drawable: Picture, form: str, style: Style = PLAIN, below: Sequence[Picture] = ()
) -> Drawn:
    """A file in one of FORMATS: the same bytes for the same drawables, style and fonts. ``below``: what else is in it.

    Raises UsageError if the style is not there or is none, or if the figure would be too small or too large.
    """
    with composed(drawable, style, below) as sheet:
        drawn = sheet.axes.texts
        found = fonts(text.get_text() for text in drawn)
        with in_truetype(drawn, found.cubic if form == "pdf" else ()) as uncopied:
            RC["pdf.fonttype"] = 3 if uncopied else 42
            data = saved(sheet, form, style)
    notes = [missing_line(found.missing)] if found.missing else []
    notes += [
        f"{family} has no TrueType outlines: the fonts in the PDF are Type 3, which some publishers refuse"
        for family in uncopied
    ]
    return Drawn(data, tuple(notes))


def saved(sheet: Sheet, form: str, style: Style) -> bytes:
    """The file of a sheet. Raises UsageError if it is too large."""
    wide, high = sheet.figure.get_size_inches() * sheet.dpi
    if wide * high > MOST_DOTS:
        raise UsageError(
            f"a figure of {wide:.0f} x {high:.0f} dots is too large: lower --dpi, or choose fewer tokens"
        )
    file = io.BytesIO()
    options: dict[str, Any] = {
        "pil_kwargs": {"compress_level": 3}
    }  # twice as fast as 6, and a tenth larger
    if form != "png":
        sheet.sharpen()
        options = {}
    options |= {
        "dpi": sheet.dpi,
        "transparent": style.transparent or None,
        "metadata": METADATA[form],
    }
    sheet.figure.savefig(file, format=form, **options)
    data = file.getvalue()
    if form != "svg":
        return data
    start, end = (
        data.index(b"<!DOCTYPE"),
        data.index(b"<svg"),
    )  # an address, of no use to any program
    return data[:start] + data[end:]


@contextmanager
def composed(drawable: Picture, style: Style, below: Sequence[Picture] = ()) -> Iterator[Sheet]:
    """Drawables laid out below each other, while matplotlib is set to their style."""
    if style.title is not None:
        drawable = replace(drawable, title=escape(style.title))
    every = drawable, *below
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the notes tell of it
        dress(style.name)
        RC["font.family"] = [
            *RC["font.family"],
            *fonts([OWN_SIGNS, *chain(*map(list_texts, every))]).families,
        ]
        sheet = Sheet(max(width(each, style) for each in every), dots(style), style.colours)
        for i, each in enumerate(every):
            sheet.y += sheet.em(TITLE) * (i > 0)
            if each.title:
                sheet.lines(each.title, TITLE)
                sheet.y += sheet.em(TITLE) / 4
            draw(each, sheet)
        sheet.finish()
        yield sheet


def dress(name: str) -> None:
    """Set matplotlib to a style. Raises UsageError."""
    if name in PRESETS:
        RC.update(OURS | PRESETS[name].settings)
    else:
        mpl.rc_file(style_file(name), use_default_template=False)
    RC.update(FIXED)


def style_file(name: str) -> Path:
    """The path of a style file. Raises UsageError if it is not there, or sets nothing."""
    path = Path(name).absolute()  # which is not taken for an address
    if not path.is_file():
        raise UsageError(
            f"no style {name}: it must be {', '.join(STYLES)} or the path of a matplotlib style file"
        )
    log = logging.getLogger("matplotlib")
    log.disabled = True  # it would tell of every line of what is no style
    try:
        found = bool(mpl.rc_params_from_file(path, use_default_template=False))
    except (OSError, UnicodeDecodeError):
        found = False
    finally:
        log.disabled = False
    if not found:
        raise UsageError(f"{name} is no matplotlib style: it has no line like font.size: 8")
    return path


def width(drawable: Picture, style: Style) -> float:
    """Inches of a figure. Raises UsageError if nothing can be drawn on so many."""
    if style.inches is not None:
        if not LEAST_WIDTH <= style.inches <= MOST_WIDTH:
            raise UsageError(
                f"a figure is {LEAST_WIDTH:g} to {MOST_WIDTH:g} inches wide, not {style.inches:g}"
            )
        return style.inches
    if style.name not in PRESETS:
        return float(RC["figure.figsize"][0])
    preset = PRESETS[style.name]
    return preset.wide if is_wide(drawable, preset.narrow) else preset.narrow


def is_wide(drawable: Picture, narrow: float) -> bool:
    """Whether a drawable needs more than so many inches."""
    if isinstance(drawable, Table):
        names, widths = natural(drawable, cache(ems))
        return (names + sum(widths) + 1) * em(
            LABEL
        ) > narrow  # with half an em of margin on either side
    return isinstance(drawable, Series) or (
        isinstance(drawable, Grid) and len(drawable.columns) > NARROW
    )


def dots(style: Style) -> float:
    """Dots an inch."""
    usual = RC["savefig.dpi"]
    return float(style.dpi or (RC["figure.dpi"] if usual == "figure" else usual))
