"""One colour scale for all media: viridis, whose lightness rises evenly for every eye (van der Walt & Smith 2015)."""

import numpy as np
import numpy.typing as npt

STEPS = 64
# Every eleventh of viridis's 256 colours; straight lines between them stay within 3/255 of it.
ANCHORS = np.frombuffer(
    bytes.fromhex(
        "440154 471164 482071 472e7c 443b84 3f4889 39558c 34618d 2f6c8e 2a768e 26818e 228b8d "
        "1f958b 1fa088 24aa83 2fb47c 40bd72 56c667 70cf57 8bd646 a8db34 c5e021 e2e418 fde725"
    ),
    np.uint8,
).reshape(-1, 3)
# Picked by hand from the 256-colour cube: the nearest colours to viridis go from purple over grey to blue.
RAMP_256 = (17, 18, 24, 30, 36, 72, 77, 113, 149, 185, 191, 227)


def viridis(steps: int = STEPS) -> npt.NDArray[np.uint8]:
    """The scale from low to high as (steps, 3) of red, green and blue."""
    places = np.linspace(0, len(ANCHORS) - 1, steps)
    channels = [np.interp(places, range(len(ANCHORS)), ANCHORS[:, channel]) for channel in range(3)]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return colours


def step(levels: npt.NDArray[np.float32], steps: int = STEPS) -> npt.NDArray[np.int64]:
    """Levels 0 to 1 as steps of the scale, 0 to steps - 1."""
    return np.minimum((levels * steps).astype(np.int64), steps - 1)


def is_light(red: int, green: int, blue: int) -> bool:
    """Whether black text reads better than white on a colour (relative luminance, ITU-R BT.709)."""
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 110
