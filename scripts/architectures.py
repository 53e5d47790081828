"""Write the list of the architectures that are tested into README.md.

    python -m scripts.architectures

The tests compare the README with it.
"""

import textwrap
from pathlib import Path

from tests.architectures import ARCHITECTURES, Architecture

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- architectures -->", "<!-- /architectures -->"
WIDTH = 120
FAMILIES = {"encoder": "Encoders", "decoder": "Decoders", "encoder-decoder": "Encoder-decoders"}
SPECIAL: dict[str, tuple[str, ...]] = {  # what is special in attention, and how notes on architectures speak of it
    "Soft-capped scores": ("soft-capped",),
    "Learned sinks": ("learned sinks",),
    "ALiBi": ("ALiBi",),
    "Relative positions in the scores": ("relative position", "disentangled"),
    "Sliding windows and chunks": ("sliding window", "chunks", "band", "blocks"),
    "Latent (MLA) heads": ("latent",),
    "Keys chosen as it runs": ("chosen",),
    "Hybrids with Mamba, linear attention, recurrence or convolution": ("hybrid", "Mamba", "convolve"),
    "Layers that share their weights": ("shared layers",),
}


def table() -> str:
    """What stands between the markers: names by family, then names by what is special."""
    rows = [item(f"{title} ({len(names)})", names) for title, names in families().items()]
    return (
        "\n\n" + "\n".join(rows) + "\n\nAmong them:\n\n" + "\n".join(item(*row) for row in special().items()) + "\n\n"
    )


def families() -> dict[str, list[str]]:
    """Names by family."""
    return {title: [known.name for known in ARCHITECTURES if known.family == name] for name, title in FAMILIES.items()}


def special() -> dict[str, list[str]]:
    """Names by what is special in their attention."""
    return {title: [known.name for known in ARCHITECTURES if speaks(known, words)] for title, words in SPECIAL.items()}


def speaks(known: Architecture, words: tuple[str, ...]) -> bool:
    """Whether the note on an architecture has one of some words."""
    return any(word in known.note for word in words)


def item(title: str, names: list[str]) -> str:
    """An item of a Markdown list, in lines of at most WIDTH columns."""
    whole = f"- **{title}**: {', '.join(names)}"
    return textwrap.fill(whole, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write README.md."""
    text = README.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(text[:start] + table() + text[end:], "utf-8")


if __name__ == "__main__":
    main()
