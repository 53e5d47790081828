"""Text on a terminal's fixed columns: cut, filled, wrapped, stacked, so that what stands beside it stays aligned."""

import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

LABEL_HEIGHT = 9
STACKED_WIDTH = 2  # columns of a cell below a stacked label
TICKS = 10  # columns between two ticks
LEFT_TO_RIGHT = (
    "\u200e"  # of no width; what follows it is not drawn into a right-to-left word before
)
# What terminals do not agree on the width of: skin tones, the halves of flags, variation selectors.
UNSTEADY = range(0x1F3FB, 0x1F400), range(0x1F1E6, 0x1F200), range(0xFE00, 0xFE10)


def steady(text: str) -> str:
    """Text that is as wide on every terminal: selectors of no width are left out, other unsteady signs written out."""
    if text.isascii():
        return text
    return "".join(map(steady_sign, text))


def columns_of(text: str) -> int:
    """How many columns a text takes."""
    return len(text) if text.isascii() else cell_len(steady(text))


def steady_sign(char: str) -> str:
    """One of its characters."""
    tones, flags, selectors = UNSTEADY
    if ord(char) in selectors:
        return ""
    return f"\\U{ord(char):08x}" if ord(char) in tones or ord(char) in flags else char


def reads_backwards(text: str) -> bool:
    """Whether any of it is written from right to left."""
    return not text.isascii() and any(
        unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text
    )


def fit(text: str, width: int, *, left: bool = False) -> str:
    """Text on exactly so many columns, cut with an ellipsis; to the right unless left."""
    text = steady(text)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    mark = LEFT_TO_RIGHT if reads_backwards(text) else ""
    return text + mark + space if left else space + text + mark


def stack(labels: Sequence[str], width: int = STACKED_WIDTH) -> list[str]:
    """Labels written downwards, ending at the line below, so many columns each."""
    columns = [signs(steady(label)) for label in labels]
    columns = [
        column if len(column) <= LABEL_HEIGHT else [*column[: LABEL_HEIGHT - 1], "…"]
        for column in columns
    ]
    height = max(map(len, columns))
    padded = [[""] * (height - len(column)) + column for column in columns]
    return [
        "".join(fit(sign, width, left=True) for sign in line).rstrip()
        for line in zip(*padded, strict=True)
    ]


def signs(label: str) -> list[str]:
    """The signs of a label, marks that take no room of their own kept with the sign before."""
    found: list[str] = []
    for char in label:
        if found and cell_len(char) == 0:
            found[-1] += char
        else:
            found.append(char)
    return found


def ticks(numbers: Sequence[int], mark: str = "╷") -> str:
    """A line of token numbers, given that of the first token of each column; one every ten columns."""
    line, columns = "", len(numbers)
    for column in range(0, columns, TICKS):
        tick = f"{mark}{numbers[column]}"
        if column + len(tick) <= columns:
            line = line.ljust(column) + tick
    return line


def wrap(text: str, width: int) -> Iterator[str]:
    """A text in lines of at most so many columns; words longer than that are broken."""
    line = ""
    for word in steady(text).split():
        if line and cell_len(line) + 1 + cell_len(word) > width:
            yield line
            line = ""
        *whole, word = chop_cells(word, width) or [word]
        yield from whole
        line = f"{line} {word}" if line else word
    if line:
        yield line


IN_ASCII = str.maketrans(
    {"·": "-", "…": "...", "√": "sqrt ", "Σ": "sum ", "␣": "_", "₁": "1", "₂": "2"}
)


def ascii_of(text: str) -> str:
    """A text with what is not ASCII written as an escape sequence."""
    return text.translate(IN_ASCII).encode("ascii", "backslashreplace").decode()


def cut(label: str) -> str:
    """A label short enough that no ellipsis is needed, which ASCII has not."""
    return label if len(label) <= LABEL_HEIGHT else label[: LABEL_HEIGHT - 1] + "~"
