"""Texts of every script and of none, long words, control characters, and options to draw them."""

import unicodedata
from pathlib import Path
from random import Random

SIGNS = (
    "abc XYZ 0123 .,!?'\"-_()[]{}<>|/\\@#&*%$~^`;:+=",
    "äöüßéñçøåšžłı",
    "αβγδ Жщыя אבגד مرحبا 日本語 한국어 ไทย हिन्दी தமிழ்",
    "e\u0301a\u0308\u0323o\u0302\u0303 \u200b\u200d\u2060\ufeff\u00ad",
    "\t\n\r\x0b\x0c\x00\x1b[31m\x07\x08\x7f\x85\x9b",
    "\u202a\u202e\u2066\u2069\u061c\u2028\u2029",
    "😀👩\u200d🚀🇩🇪✈\ufe0f⚠①½ﬁ\U0001f3fb",
    "\ue000\ufffd\ufffe\U0010ffff\U000e0041",
    "｡ｱﾞＡ　、。",
)
UNCERTAIN = {"Mc", "Cn", "Co", "Cf", "Sk"}
"""Categories of Unicode whose signs are drawn with other widths by other terminals."""
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("show",),
    ("show", "--full"),
    ("show", "--view", "tokens", "--token", "-1"),
    ("show", "--view", "rows", "--token", "0"),
    ("show", "--view", "grid"),
    ("show", "--words"),
    ("show", "--json"),
    ("inspect",),
    ("inspect", "--words", "--json"),
    ("explain",),
)


def make_text(random: Random) -> str:
    """Make a text of a few kinds of signs, or of any signs at all."""
    length = random.choice((1, 2, 5, 12, 30, 60))
    if random.random() < 0.2:
        codes = [random.randrange(0x110000) for _ in range(length)]
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000) or "a"
    sources = random.sample(SIGNS, random.randint(1, 3))
    words = []
    for _ in range(length):
        signs = random.choice(sources)
        words.append("".join(random.choices(signs, k=random.choice((1, 3, 8)))))
    return random.choice(("", " ", "  ")).join(words)[:300]


def make_text_case(random: Random, folder: Path) -> list[str]:
    """Write a text into a file, and return the arguments of a command that reads it."""
    path = folder / "text"
    path.write_bytes(make_text(random).encode())
    return [*random.choice(OPTIONS), f"@{path}"]


def is_measurable(text: str) -> bool:
    """Return whether every terminal gives each sign of a text the same width.

    Joined emoji, flags, marks that take room, and signs that are not assigned are none of these.
    """
    categories = {unicodedata.category(sign) for sign in text}
    has_joined = any(sign in "\u200d\ufe0f" for sign in text)
    return not has_joined and not categories & {
        "Mc",
        "Cn",
        "Co",
        "Sk",
        "So",
        "Lo",
        "Cf",
        "Mn",
        "Me",
    }


def count_cells(line: str) -> int:
    """Count the cells of a terminal that a line takes, by what Unicode says of each sign."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in line)
    marks = sum(unicodedata.category(sign) in ("Mn", "Me") for sign in line)
    return len(line) + wide - marks
