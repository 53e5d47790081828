"""Write docs/architectures.md: the list of the architectures that are tested, and what the sweep found.

    python -m scripts.architectures
    python -m scripts.architectures --sweep

The second runs the sweep first (``tests.sweep``, some minutes) and renews what the page and the table of refused model
types say of it. The tests compare the page with the list and with that table.
"""

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.architectures import ARCHITECTURES, Architecture
from tests.sweep import CRASHED, EXACT, NOT_BUILDABLE, REFUSED, WRONG, Row, sweep_all

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architectures.md"
TABLE = ROOT / "tests" / "sweep_refused.tsv"
BEGIN, END = "<!-- architectures -->", "<!-- /architectures -->"
COUNTS_BEGIN, COUNTS_END = "<!-- counts -->", "<!-- /counts -->"
REFUSED_BEGIN, REFUSED_END = "<!-- refused -->", "<!-- /refused -->"
WIDTH = 120
FAMILIES = {"encoder": "Encoders", "decoder": "Decoders", "encoder-decoder": "Encoder-decoders"}
SPECIAL: dict[
    str, tuple[str, ...]
] = {  # what is special in attention, and how notes on architectures speak of it
    "Soft-capped scores": ("soft-capped",),
    "Learned sinks": ("learned sinks",),
    "ALiBi": ("ALiBi",),
    "Relative positions in the scores": ("relative position", "disentangled"),
    "Sliding windows and chunks": ("sliding window", "chunks", "band", "blocks"),
    "Latent (MLA) heads": ("latent",),
    "Keys chosen as it runs": ("chosen",),
    "Hybrids with Mamba, linear attention, recurrence or convolution": (
        "hybrid",
        "Mamba",
        "convolve",
    ),
    "Layers that share their weights": ("shared layers",),
}


def table() -> str:
    """What stands between the markers: names by family, then names by what is special."""
    rows = [item(f"{title} ({len(names)})", names) for title, names in families().items()]
    return (
        "\n\n"
        + "\n".join(rows)
        + "\n\nAmong them:\n\n"
        + "\n".join(item(*row) for row in special().items())
        + "\n\n"
    )


def families() -> dict[str, list[str]]:
    """Names by family."""
    return {
        title: [known.name for known in ARCHITECTURES if known.family == name]
        for name, title in FAMILIES.items()
    }


def special() -> dict[str, list[str]]:
    """Names by what is special in their attention."""
    return {
        title: [known.name for known in ARCHITECTURES if speaks(known, words)]
        for title, words in SPECIAL.items()
    }


def speaks(known: Architecture, words: tuple[str, ...]) -> bool:
    """Whether the note on an architecture has one of some words."""
    return any(word in known.note for word in words)


def item(title: str, names: list[str]) -> str:
    """An item of a Markdown list, in lines of at most WIDTH columns."""
    whole = f"- **{title}**: {', '.join(names)}"
    return textwrap.fill(
        whole, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def read_refused() -> dict[str, str]:
    """Return the line of each refused model type, from the table."""
    lines = TABLE.read_text("utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def write_refused(rows: Sequence[Row]) -> None:
    """Write the table of refused model types anew."""
    refused = sorted((row.model_type, row.line) for row in rows if row.outcome == REFUSED)
    TABLE.write_text("".join(f"{model_type}\t{line}\n" for model_type, line in refused), "utf-8")


def refused_section() -> str:
    """Return the refused model types with their lines, as the page has them."""
    rows = [
        f"| `{model_type}` | {line.replace('|', chr(92) + '|')} |"
        for model_type, line in read_refused().items()
    ]
    return "\n\n" + "\n".join(["| model type | what attnviz says |", "|---|---|", *rows]) + "\n\n"


def counts_section(rows: Sequence[Row]) -> str:
    """Return how many model types have each outcome, as the page has it."""
    counts = Counter(row.outcome for row in rows)
    meanings = {
        EXACT: "every weight of every layer and head is within 1e-5 of the library's",
        REFUSED: "nothing is shown, and one line says why: see below",
        NOT_BUILDABLE: "no small model of the type runs, or it computes no attention",
        WRONG: "what is shown differs, or a layer is missing",
        CRASHED: "attnviz ends with an error that is not its own",
    }
    lines = [
        f"| {outcome} | {counts[outcome]} | {meaning} |" for outcome, meaning in meanings.items()
    ]
    return (
        "\n\n"
        + "\n".join(["| outcome | model types | meaning |", "|---|---|---|", *lines])
        + "\n\n"
    )


def replace_between(text: str, begin: str, end: str, new: str) -> str:
    """Return a text with something else between two marks."""
    before, rest = text.split(begin, 1)
    return before + begin + new + end + rest.split(end, 1)[1]


def main() -> None:
    """Write the page."""
    text = replace_between(PAGE.read_text("utf-8"), BEGIN, END, table())
    if "--sweep" in sys.argv[1:]:
        rows = sweep_all()
        write_refused(rows)
        text = replace_between(text, COUNTS_BEGIN, COUNTS_END, counts_section(rows))
    text = replace_between(text, REFUSED_BEGIN, REFUSED_END, refused_section())
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
