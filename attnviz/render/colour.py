"""Colour scales of all media: their lightness rises evenly, so that a copier reads them too.

The maps of weights are viridis and magma (van der Walt & Smith 2015), cividis (Nuñez, Anderton &
Renslow 2018), and a grey that stops before the white of paper. Each has a colour of its own for
weights beyond the scale. It is far from the map for readers without red, green or blue cones too.

The map of differences has two ends, blue and red, which are as dark as each other. From either end
it grows evenly lighter towards the grey of no difference, which is darker than paper.
"""

from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

STEPS = 64  # of a scale on a terminal and in a document
RGB: TypeAlias = tuple[int, int, int]


class ColourMap(NamedTuple):
    """A scale of colours."""

    anchors: str
    """Colours at even distances, each as six hexadecimal digits.

    Straight lines between them stay within 8/255 of the map.
    """
    beyond: RGB
    """The colour of what is beyond the scale."""
    ramp_256: tuple[int, ...]
    """Colours from the 256-colour cube, by number, picked so that their lightness rises.

    The ones nearest to viridis would go from purple over grey.
    """
    beyond_256: int
    """The colour of what is beyond the scale, by its number in the 256-colour cube."""


MAPS = {
    "viridis": ColourMap(
        "440154 471164 482071 472e7c 443b84 3f4889 39558c 34618d 2f6c8e 2a768e 26818e 228b8d "
        "1f958b 1fa088 24aa83 2fb47c 40bd72 56c667 70cf57 8bd646 a8db34 c5e021 e2e418 fde725",
        (199, 125, 255),
        (17, 18, 24, 30, 36, 72, 77, 113, 149, 185, 191, 227),
        177,
    ),
    "cividis": ColourMap(
        "00224e 002a61 003171 1d396f 2d416d 3a486c 46516c 51586d 5b606e 656870 6e6f73 777777 "
        "817f78 8c8878 969077 a19975 aca172 b8aa6e c4b468 d0be62 dcc859 e8d24f f5dc41 fee838",
        (255, 51, 255),
        (17, 24, 60, 242, 243, 244, 245, 246, 143, 179, 185, 220),
        201,
    ),
    "magma": ColourMap(
        "000004 060518 110c2f 1f114a 301164 430f75 55147d 661b80 772281 892881 9b2e7f ad347c "
        "bf3a77 d0416f e04c67 ed5a5f f66d5c fa825f fd9769 feab75 fec085 fed597 fde9aa fcfdbf",
        (51, 119, 255),
        (16, 233, 53, 54, 90, 126, 168, 203, 209, 216, 222, 229),
        33,
    ),
    "gray": ColourMap(
        "000000 e6e6e6",
        (255, 119, 17),
        (16, 233, 236, 238, 59, 243, 245, 247, 250, 252, 253, 254),
        208,
    ),
}
SIGNED = ColourMap(  # a lightness (CIELAB) of 30 at both ends, 87 in the middle
    "004884 015394 0060a4 016cb4 0879c3 0586d4 1e93e1 4b9fe4 6babe4 89b7e3 a4c3e1 bfcfde dadada "
    "e2c7bf e7b4a5 e9a18d e88f77 e57c63 df6951 d75742 cd4535 c1342b b42222 a60b1a 930016",
    (0, 0, 0),  # no difference is beyond the scale
    (25, 32, 74, 110, 153, 253, 217, 181, 174, 167, 124),
    16,
)


def get_colour_map(name: str = "viridis", *, signed: bool = False) -> ColourMap:
    """Return the map of weights that has a name, or the one map of differences if ``signed``."""
    return SIGNED if signed else MAPS[name]


@cache
def sample_colours(
    name: str = "viridis",
    steps: int = STEPS,
    *,
    signed: bool = False,
) -> npt.NDArray[np.uint8]:
    """Sample a colour map at even distances from its low to its high end.

    name: of a map in MAPS. steps: the number of colours. signed: take the map of differences, and
    ignore the name. Returns bytes, (step, red green blue), which are read-only, as they are cached.
    """
    colour_map = get_colour_map(name, signed=signed)
    anchor_bytes = bytes.fromhex(colour_map.anchors)
    anchors = np.frombuffer(anchor_bytes, np.uint8)
    anchors = anchors.reshape(-1, 3)
    last = len(anchors) - 1
    positions = np.linspace(0, last, steps)
    anchor_positions = range(len(anchors))
    channels = [np.interp(positions, anchor_positions, channel) for channel in anchors.T]
    sampled = np.rint(np.stack(channels, axis=1))
    colours: npt.NDArray[np.uint8] = sampled.astype(np.uint8)
    colours.flags.writeable = False
    return colours


@cache
def make_palette(
    name: str = "viridis",
    steps: int = STEPS,
    *,
    signed: bool = False,
) -> npt.NDArray[np.uint8]:
    """Make a palette of a scale's colours, of the colour beyond the scale, and of transparent.

    The first ``steps`` colours are those of the scale, from low to high. Then comes the colour of
    weights beyond the scale. The last one is transparent, for masked cells: their index, MASKED, is
    -1. The result is bytes, (step, red green blue alpha), read-only, as they are cached.

    name: of a map in MAPS. signed: take the map of differences, and ignore the name.
    """
    colours = sample_colours(name, steps, signed=signed)
    opaque = np.insert(colours, 3, 255, axis=1)
    beyond = get_colour_map(name, signed=signed).beyond
    opaque_beyond = (*beyond, 255)
    transparent = (0, 0, 0, 0)
    palette = np.vstack([opaque, opaque_beyond, transparent])
    palette = palette.astype(np.uint8)
    palette.flags.writeable = False
    return palette


def is_light(red: int, green: int, blue: int) -> bool:
    """Return whether black text reads better than white text on a colour.

    red, green, blue: 0 to 255. The measure is the relative luminance of ITU-R BT.709.
    """
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luminance > 110


def format_hexadecimal(colour: npt.NDArray[np.uint8] | RGB) -> str:
    """Format a colour as #rrggbb."""
    channels = [int(channel) for channel in colour[:3]]
    return "#" + bytes(channels).hex()
