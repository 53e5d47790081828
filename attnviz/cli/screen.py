"""What stdout can show: width and colours, by option, environment and terminal."""

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.segment import Segment, Segments

from attnviz.cli.options import ScreenOptions
from attnviz.drawable import Picture
from attnviz.render.terminal.cells import CellPaint, ColourDepth, TerminalLine
from attnviz.render.terminal.draw import Screen, draw_picture_lines

PIPED_WIDTH, NARROWEST = 100, 40
# What the functions of Windows for consoles call stdout, and the mode in which escapes are obeyed.
WINDOWS_STDOUT, WINDOWS_ESCAPES = -11, 4
SYSTEMS = {"truecolor": "truecolor", "256": "256", "16": "standard"}  # in rich's words


def open_screen(options: ScreenOptions, colours: str = "viridis") -> Screen:
    """Return what stdout can show: its width, its height if it is a terminal, and its colours.

    options: those that the user chose in place of what is found. colours: the name of the colour
    map. From here on, characters that the encoding of stdout lacks are printed as escape sequences.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    size = shutil.get_terminal_size((PIPED_WIDTH, 0))
    height = size.lines if sys.stdout.isatty() and size.lines and not options.full else None
    width = options.width or max(NARROWEST, size.columns)
    paint = CellPaint(choose_colour_depth(options.color), colours)
    return Screen(width, height, paint, options.full)


def choose_colour_depth(color: str) -> ColourDepth:
    """Return how cells of pictures are coloured on stdout, as its encoding and environment allow.

    It is a number of colours, ``shades`` of block characters without colour, or ``ascii``. color:
    the option ``--color``: auto, always or never.
    """
    if not (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf"):
        return "ascii"
    if not wants_colour(color, sys.stdout.isatty()):
        return "ascii" if os.environ.get("TERM") == "dumb" else "shades"
    if sys.stdout.isatty() and not obeys_escapes():
        return "shades"
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    return "256" if "256" in os.environ.get("TERM", "") or forces_colour(color) else "16"


def obeys_escapes() -> bool:
    """Return whether the terminal of stdout obeys escape sequences, which colours are made of.

    All do but consoles of Windows before Windows 10. Later ones are asked to by this function.
    """
    if sys.platform != "win32":
        return True
    import ctypes

    kernel = ctypes.windll.kernel32
    console = kernel.GetStdHandle(WINDOWS_STDOUT)
    mode = ctypes.c_ulong()
    if not kernel.GetConsoleMode(console, ctypes.byref(mode)):
        return False
    return bool(kernel.SetConsoleMode(console, mode.value | WINDOWS_ESCAPES))


def wants_colour(color: str, is_terminal: bool) -> bool:
    """Return whether to use colour on stdout.

    The first of these that says something decides: the option --color, then the variables NO_COLOR,
    FORCE_COLOR or CLICOLOR_FORCE, and CLICOLOR=0 or TERM=dumb, then whether stdout is a terminal.

    color: the option: auto, always or never. is_terminal: stdout is one.
    """
    environment = os.environ.get
    if color != "auto":
        return color == "always"
    if environment("NO_COLOR"):
        return False
    if forces_colour(color):
        return True
    if (
        environment("FORCE_COLOR") == "0"
        or environment("CLICOLOR") == "0"
        or environment("TERM") == "dumb"
    ):
        return False
    return is_terminal


def forces_colour(color: str) -> bool:
    """Return whether the option --color or the environment asks for colour, whatever stdout is."""
    return color == "always" or any(
        os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")
    )


class Pipe(Console):
    """A console that says when its reader has gone.

    rich would end the program with the code of a failed check.
    """

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError."""
        raise BrokenPipeError


def print_pictures(pictures: Sequence[Picture], screen: Screen) -> None:
    """Print pictures below each other, an empty line between two."""
    for i, picture in enumerate(pictures):
        lines = draw_picture_lines(picture, screen)
        print_lines([[], *lines] if i else lines, screen)


def print_lines(lines: Iterable[TerminalLine], screen: Screen) -> None:
    """Print lines on stdout, with the width and the colours of a screen.

    lines: sequences of segments, which are pieces of text with a style of rich. Raises
    BrokenPipeError if the reader of stdout has gone.
    """
    segments = [segment for line in lines for segment in (*line, Segment.line())]
    depth = screen.paint.depth
    console = Pipe(
        width=screen.width,
        color_system=SYSTEMS.get(depth),  # type: ignore[arg-type]
        force_terminal=depth in SYSTEMS,
        no_color=depth not in SYSTEMS,
        highlight=False,
        legacy_windows=False,
    )
    console.print(Segments(segments), end="", crop=False)
