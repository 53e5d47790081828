"""The sample texts that come with the package."""

from pathlib import Path

from attnviz.errors import InputError
from attnviz.io.files import read_text

PLAIN_ENGLISH = "agreement", "article", "paragraph", "pronoun", "question", "review"
"""The samples that are prose, on which roles of heads are measured."""


def find_samples() -> dict[str, Path]:
    """Return the files of the sample texts by name: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    folders = package / "sample_texts", package.parent / "sample_texts"
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.txt"))}


def read_sample(name: str) -> str:
    """Return a sample text. Raises InputError naming those that there are."""
    samples = find_samples()
    if name not in samples:
        raise InputError(f"there is no sample {name!r}: one of {', '.join(samples)}")
    return read_text(samples[name])
