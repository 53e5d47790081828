"""Text on a terminal's fixed columns: cut, filled, wrapped or stacked, so that it stays aligned."""

import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

LABEL_HEIGHT = 9  # lines of a stacked label, at most
STACKED_WIDTH = 2  # columns of a cell below a stacked label
TICK_COLUMNS = 10  # columns between two ticks
LEFT_TO_RIGHT = "\u200e"  # of no width; text after it is not drawn into a right-to-left word before
# Terminals do not agree on the width of these characters.
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_HALVES = range(0x1F1E6, 0x1F200)
VARIATION_SELECTORS = range(0xFE00, 0xFE10)
RIGHT_TO_LEFT = ("R", "AL", "AN")  # classes of Unicode's bidirectional algorithm
ASCII_NAMES = str.maketrans(
    {"·": "-", "…": "...", "√": "sqrt ", "Σ": "sum ", "␣": "_", "₁": "1", "₂": "2"},
)


def fix_width(text: str) -> str:
    """Return a text with its characters of uncertain width replaced, so that widths can be counted.

    Terminals do not agree on the width of some characters. Variation selectors, which have no
    width, are left out. Skin tones and the halves of flags are written as escape sequences.
    """
    if text.isascii():
        return text
    return "".join(map(fix_character_width, text))


def fix_character_width(character: str) -> str:
    """Return a character, or its replacement if terminals do not agree on its width."""
    code = ord(character)
    if code in VARIATION_SELECTORS:
        return ""
    if code in SKIN_TONES or code in FLAG_HALVES:
        return f"\\U{code:08x}"
    return character


def count_columns(text: str) -> int:
    """Count the columns that a text takes."""
    if text.isascii():
        return len(text)
    return cell_len(fix_width(text))


def reads_right_to_left(text: str) -> bool:
    """Return whether some of a text is written from right to left."""
    if text.isascii():
        return False
    return any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text)


def fit_columns(text: str, width: int, *, left: bool = False) -> str:
    """Return a text that takes exactly ``width`` columns: padded, or cut with an ellipsis.

    left: the text stands at the left and spaces follow; else spaces come first.
    """
    text = fix_width(text)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    mark = LEFT_TO_RIGHT if reads_right_to_left(text) else ""
    if left:
        return text + mark + space
    return space + text + mark


def stack_labels(labels: Sequence[str], width: int = STACKED_WIDTH) -> list[str]:
    """Write labels downwards beside each other, and return the lines.

    Each line has one character of every label. All labels end on the last line. Long ones are cut
    to LABEL_HEIGHT lines.

    width: the columns of the terminal that each label takes.
    """
    columns = [stack_label(label) for label in labels]
    height = max(map(len, columns))
    padded: list[list[str]] = []
    for column in columns:
        spare = height - len(column)
        padded.append([""] * spare + column)
    return [join_cells(cells, width) for cells in zip(*padded, strict=True)]


def stack_label(label: str) -> list[str]:
    """Split a label into at most LABEL_HEIGHT characters to stand below each other.

    The last one is an ellipsis where the label is cut.
    """
    characters = split_characters(fix_width(label))
    if len(characters) <= LABEL_HEIGHT:
        return characters
    return [*characters[: LABEL_HEIGHT - 1], "…"]


def join_cells(cells: Sequence[str], width: int) -> str:
    """Join texts to a line, each filled to ``width`` columns, without white space at its end."""
    texts = [fit_columns(cell, width, left=True) for cell in cells]
    return "".join(texts).rstrip()


def split_characters(label: str) -> list[str]:
    """Split a label into characters; an accent of no width stays with the character before it."""
    characters: list[str] = []
    for character in label:
        if characters and cell_len(character) == 0:
            characters[-1] += character
        else:
            characters.append(character)
    return characters


def draw_tick_line(numbers: Sequence[int], mark: str = "╷") -> str:
    """Return a line with the number of a token at every tenth column, for a heading of cells.

    A number that would not fit the line is left out.

    numbers: the number of the first token of each column. mark: a character that stands before each
    number, at its column.
    """
    line = ""
    columns = len(numbers)
    for column in range(0, columns, TICK_COLUMNS):
        tick = f"{mark}{numbers[column]}"
        if column + len(tick) <= columns:
            line = line.ljust(column) + tick
    return line


def wrap_columns(text: str, width: int) -> Iterator[str]:
    """Wrap a text to lines of at most ``width`` columns; words that are longer are broken."""
    line = ""
    for word in fix_width(text).split():
        joined_width = cell_len(line) + 1 + cell_len(word)
        if line and joined_width > width:
            yield line
            line = ""
        pieces = chop_cells(word, width) or [word]
        *full_lines, word_end = pieces
        yield from full_lines
        line = f"{line} {word_end}" if line else word_end
    if line:
        yield line


def write_ascii(text: str) -> str:
    """Return a text in ASCII: some characters are replaced, others become escape sequences."""
    named = text.translate(ASCII_NAMES)
    return named.encode("ascii", "backslashreplace").decode()


def shorten_ascii_label(label: str) -> str:
    """Return a label short enough that it needs no ellipsis, which ASCII does not have."""
    if len(label) <= LABEL_HEIGHT:
        return label
    return label[: LABEL_HEIGHT - 1] + "~"
