"""Make what the built-in model learns from, out of two Debian packages: the King James Bible and WordNet 3.0.

    apt-get install bible-kjv bible-kjv-text wordnet-base
    python scripts/make_corpus.py build/

writes build/corpus/kjv.txt and build/corpus/wordnet.txt, one document a paragraph, and build/vocabulary.txt, the text
that the tokenizer is learnt from; the same bytes every time.
"""

import random
import re
import subprocess
import sys
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
PARTS_OF_SPEECH = "noun", "verb", "adj", "adv"
LINES_A_DOCUMENT = 8
EVERYDAY_WORDS = Path(__file__).with_name("everyday_words.txt")
EVERYDAY_COUNT = 100  # a pair this frequent is merged well before 4,096 tokens are reached


def bible() -> list[str]:
    """The verses in order, without their numbers."""
    whole = subprocess.run(
        ["bible", "-l", "100000", "Gen1:1-Rev22:21"],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
    ).stdout.decode("latin-1")
    return [verse.strip() for verse in re.findall(r"^ +\d+ (.+)$", whole, re.MULTILINE)]


def wordnet() -> list[str]:
    """One line a sense, "word: gloss; example.", shuffled: neighbours in the file share most of their words."""
    glosses = []
    for part in PARTS_OF_SPEECH:
        for line in (WORDNET / f"data.{part}").read_text("latin-1").splitlines():
            if line.startswith("  ") or "|" not in line:  # the licence, at the top of each file
                continue
            entry, gloss = line.split("|", 1)
            word = re.sub(r"\(.*?\)$", "", entry.split()[4]).replace("_", " ")
            glosses.append(f"{word}: {gloss.strip()}.")
    random.Random(0).shuffle(glosses)
    return glosses


def documents(lines: list[str]) -> list[str]:
    """Neighbouring lines as one paragraph."""
    return [
        " ".join(lines[i : i + LINES_A_DOCUMENT]) for i in range(0, len(lines), LINES_A_DOCUMENT)
    ]


def vocabulary(verses: list[str], glosses: list[str]) -> list[str]:
    """A text in which everyday words are frequent: neither source is everyday English by itself.

    WordNet's example sentences, samples of both sources, and a list of everyday words often enough that each becomes
    one token: a heatmap of word pieces teaches nobody.
    """
    quoted = re.findall(r'"([^"\n]{3,})"', "\n".join(glosses))
    examples = [text if text[-1] in ".?!" else f"{text[0].upper()}{text[1:]}." for text in quoted]
    everyday = [
        f" {word}" * EVERYDAY_COUNT + f"\n{word}" * EVERYDAY_COUNT * word[0].isupper()
        for word in EVERYDAY_WORDS.read_text("utf-8").split()
    ]
    return examples + documents(verses)[::4] + documents(glosses)[::8] + everyday


def write(path: Path, paragraphs: list[str]) -> None:
    """One paragraph a document: an empty line parts them."""
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    print(f"{path}: {len(paragraphs):,} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    verses, glosses = bible(), wordnet()
    write(folder / "corpus" / "kjv.txt", documents(verses))
    write(folder / "corpus" / "wordnet.txt", documents(glosses))
    write(folder / "vocabulary.txt", vocabulary(verses, glosses))
