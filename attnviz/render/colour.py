"""One colour scale for all media: viridis, whose lightness rises evenly for every eye (van der Walt & Smith 2015)."""

import numpy as np
import numpy.typing as npt

STEPS = 64
# Ten of viridis's 256 colours; straight lines between them stay within 3/255 of it.
ANCHORS = (
    *((68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142)),
    *((31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37)),
)
# Picked by hand from the 256-colour cube: the nearest colours to viridis go from purple over grey to blue.
RAMP_256 = (17, 18, 24, 30, 36, 72, 77, 113, 149, 185, 191, 227)


def viridis(steps: int = STEPS) -> npt.NDArray[np.uint8]:
    """The scale from low to high as (steps, 3) of red, green and blue."""
    anchors = np.array(ANCHORS, float)
    places = np.linspace(0, len(anchors) - 1, steps)
    channels = [np.interp(places, range(len(anchors)), anchors[:, channel]) for channel in range(3)]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return colours


def step(levels: npt.NDArray[np.float32], steps: int = STEPS) -> npt.NDArray[np.int64]:
    """Levels 0 to 1 as steps of the scale, 0 to steps - 1."""
    return np.minimum((levels * steps).astype(np.int64), steps - 1)


def is_light(red: int, green: int, blue: int) -> bool:
    """Whether black text reads better than white on a colour (relative luminance, ITU-R BT.709)."""
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 110
