"""The sample texts that come with the package."""

from pathlib import Path

from attnviz.errors import InputError
from attnviz.io.files import read_text

PLAIN_ENGLISH = "agreement", "article", "paragraph", "pronoun", "question", "review"
"""The samples that are prose, on which roles of heads are measured."""


def find_samples() -> dict[str, Path]:
    """Find the files of the sample texts, by name.

    They are in the installed package, or at the top of a checkout.
    """
    package = Path(__file__).parent.parent
    files: dict[str, Path] = {}
    for folder in (package / "sample_texts", package.parent / "sample_texts"):
        for file in sorted(folder.glob("*.txt")):
            files[file.stem] = file
    return files


def read_sample(name: str) -> str:
    """Read the sample text of a name. Raises InputError with all names if there is none."""
    samples = find_samples()
    if name not in samples:
        names = ", ".join(samples)
        raise InputError(f"there is no sample {name!r}: one of {names}")
    return read_text(samples[name])
