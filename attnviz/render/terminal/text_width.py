"""Text on a terminal's fixed columns: cut, filled, wrapped or stacked, so that it stays aligned."""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from attnviz.escape import escape_character

LABEL_HEIGHT = 9  # lines of a stacked label, at most
STACKED_WIDTH = 2  # columns of a cell below a stacked label
TICK_COLUMNS = 10  # columns between two ticks
LEFT_TO_RIGHT = "\u200e"  # of no width; text after it is not drawn into a right-to-left word before
# Terminals do not agree on the width of these characters.
UNCERTAIN_WIDTHS = (
    range(0x1F3FB, 0x1F400),  # skin tones
    range(0x1F1E6, 0x1F200),  # halves of flags
    # symbols that are wide since Unicode 16, or to glibc alone
    range(0x2630, 0x2638),
    range(0x268A, 0x2690),
    range(0x3248, 0x3250),
    range(0x4DC0, 0x4E00),
    range(0x1D300, 0x1D357),
    range(0x1D360, 0x1D377),
)
VARIATION_SELECTORS = range(0xFE00, 0xFE10)
NO_WIDTH = ("Mn", "Me", "Cf")  # general categories: marks without an advance, format characters
WIDE = ("W", "F")  # classes of the East Asian width
# Vowels and final consonants of Hangul, drawn into the column of the consonant before them.
HANGUL_ENDINGS = (range(0x1160, 0x1200), range(0xD7B0, 0xD7C7), range(0xD7CB, 0xD7FC))
RIGHT_TO_LEFT = ("R", "AL", "AN")  # classes of Unicode's bidirectional algorithm
ASCII_NAMES = str.maketrans(
    {"·": "-", "…": "...", "√": "sqrt ", "Σ": "sum ", "␣": "_", "₁": "1", "₂": "2"},
)


def fix_width(text: str) -> str:
    """Return a text with its characters of uncertain width replaced, so that widths can be counted.

    Terminals do not agree on the width of some characters. Variation selectors, which have no
    width, are left out. Skin tones, the halves of flags and symbols that are wide to some
    terminals are written as escape sequences.
    """
    if text.isascii():
        return text
    return "".join(map(fix_character_width, text))


@cache
def fix_character_width(character: str) -> str:
    """Return a character, or its replacement if terminals do not agree on its width."""
    code = ord(character)
    if code in VARIATION_SELECTORS:
        return ""
    if any(code in codes for codes in UNCERTAIN_WIDTHS):
        return escape_character(character)
    return character


def count_columns(text: str) -> int:
    """Count the columns that a text takes on a terminal, once its widths are fixed."""
    if text.isascii():
        return len(text)
    return sum(map(count_character_columns, fix_width(text)))


@cache
def count_character_columns(character: str) -> int:
    """Count the columns that a character takes on a terminal: 0, 1 or 2.

    It is what the C library of Linux says (wcwidth), and what terminals do. A spacing mark, such
    as a vowel sign of Hindi, Tamil, Khmer or Burmese (general category Mc), takes a column of its
    own; a mark above or below the character before it takes none.
    """
    code = ord(character)
    if any(code in codes for codes in HANGUL_ENDINGS):
        return 0
    if unicodedata.category(character) in NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in WIDE else 1


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
    if count_columns(text) > width:
        beginning = cut_columns(text, width - 1)
        text = f"{beginning}…"
    space = " " * (width - count_columns(text))
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
    """Split a label into characters to be stacked.

    An accent of no width stays with the character before it, and so does a mark with a width where
    both fit into STACKED_WIDTH columns.
    """
    characters: list[str] = []
    for character in label:
        if characters and joins_character(character, characters[-1]):
            characters[-1] += character
        else:
            characters.append(character)
    return characters


def joins_character(character: str, before: str) -> bool:
    """Return whether a character stands in the same stacked cell as what is before it."""
    columns = count_character_columns(character)
    if columns == 0:
        return True
    is_mark = unicodedata.category(character) == "Mc"
    return is_mark and count_columns(before) + columns <= STACKED_WIDTH


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
        joined_width = count_columns(line) + 1 + count_columns(word)
        if line and joined_width > width:
            yield line
            line = ""
        *full_lines, word_end = break_columns(word, width)
        yield from full_lines
        line = f"{line} {word_end}" if line else word_end
    if line:
        yield line


def cut_columns(text: str, width: int) -> str:
    """Return the longest beginning of a text that takes at most ``width`` columns."""
    used = 0
    for i, character in enumerate(text):
        used += count_character_columns(character)
        if used > width:
            return text[:i]
    return text


def break_columns(text: str, width: int) -> list[str]:
    """Break a text into pieces of at most ``width`` columns, each as long as can be.

    A character that is wider than that is a piece of its own. There is one piece at least.
    """
    pieces = [""]
    used = 0
    for character in text:
        columns = count_character_columns(character)
        used += columns
        if used > width and pieces != [""]:
            pieces.append("")
            used = columns
        pieces[-1] += character
    return pieces


def write_ascii(text: str) -> str:
    """Return a text in ASCII: some characters are replaced, others become escape sequences."""
    named = text.translate(ASCII_NAMES)
    return named.encode("ascii", "backslashreplace").decode()


def shorten_ascii_label(label: str) -> str:
    """Return a label short enough that it needs no ellipsis, which ASCII does not have."""
    if len(label) <= LABEL_HEIGHT:
        return label
    return label[: LABEL_HEIGHT - 1] + "~"
