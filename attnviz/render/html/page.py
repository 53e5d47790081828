"""A page as one HTML file that needs no network: all heads of a capture, to look through in a browser.

Weights are stored as codes, a block a head: 0 where masked, else 1 and up, which rise with the weight. A code is one
byte, linear in the square root of the weight, or with ``exact`` the bits of a float16. Of differences the code in the
middle is none at all, and codes are as far from it as the size says. The page reads what it shows.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attnviz.drawable import Axis, Grid, Heatmap, Page, Panel, Section
from attnviz.render.colour import palette

FILES = Path(__file__).parent / "assets"
SCRIPTS = "data.js", "draw.js", "lines.js", "view.js", "page.js"
BYTE_STEPS = 254  # codes of a byte but 0, masked, and 1, which is a weight of 0
FLOAT16_ONE = 0x3C00  # its bits
SHADES = 256
THUMBNAIL = 24  # cells of a side, at most
Codes: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


class Code(NamedTuple):
    """How the weights of a section become codes."""

    full: float
    """What the largest code stands for: a weight of 1, or the largest where one is larger, or is no weight."""
    exact: bool = False
    signed: bool = False

    @property
    def zero(self) -> int:
        """The code of 0: the first, or of differences the one in the middle."""
        return 1 + self.signed * (FLOAT16_ONE if self.exact else BYTE_STEPS // 2)

    def of(self, values: npt.ArrayLike) -> Codes:
        """The codes of weights, of any shape, none of them masked.

        >>> Code(1.0).of([0, 0.25, 1])
        array([  1, 128, 255], dtype=uint8)
        >>> Code(1.0, signed=True).of([-1, 0, 0.25])
        array([  1, 128, 192], dtype=uint8)
        """
        share = np.asarray(values, np.float32) / np.float32(self.full)
        size = np.abs(share)
        if self.exact:
            places = size.astype("<f2").view("<u2")
        else:
            places = np.rint(np.sqrt(size) * (BYTE_STEPS // (1 + self.signed))).astype(np.uint8)
        zero = places.dtype.type(self.zero)
        found: Codes = (
            np.where(share < 0, zero - places, zero + places) if self.signed else zero + places
        )
        return found

    def panel(self, panel: Panel) -> Codes:
        """The codes of a matrix: (row, column)."""
        codes = self.of(panel.values)
        return np.where(panel.visible, codes, codes.dtype.type(0))


def html(page: Page, *, exact: bool = False, colours: str = "viridis") -> bytes:
    """An HTML file: the same bytes for the same page.

    exact: numbers are within a float16's rounding of the weights, in about three times the size, else within 0.004, or
    within 0.008 of the largest difference.
    colours: the name of a colour map.
    """
    codes = [Code(full(section), exact, section.grid.scale.signed) for section in page.sections]
    script = "\n".join(("(() => {", *map(read, SCRIPTS), "})();"))
    style = read("page.css")
    heads = weights(page.sections, codes)
    parts = {
        "title": escape(page.title),
        "policy": escape(policy(script, style)),
        "style": style,
        "script": script,
        "metadata": as_json(metadata(page, codes, colours)),
        "first": "\n".join((*thumbnails(page.sections, codes), next(heads))),
        "rest": "\n".join(heads),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html")).encode()


def read(name: str) -> str:
    """One of the files that a page is made of."""
    return (FILES / name).read_text(encoding="utf-8")


def policy(script: str, style: str) -> str:
    """The Content-Security-Policy under which nothing is loaded, and nothing runs but our own script."""
    ours, look = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    )
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return f"{nothing}; script-src 'sha256-{ours}'; style-src 'sha256-{look}'"


def full(section: Section) -> float:
    """The weight that the largest code of a section stands for."""
    if section.grid.scale.signed:
        sizes = (
            max(heatmap.scale.top, float(np.abs(heatmap.panel.values).max()))
            for _, _, heatmap in places(section)
        )
        return max(section.grid.scale.top, *sizes) or 1.0
    largest = max(heatmap.scale.largest for _, _, heatmap in places(section))
    return (largest or 1.0) if section.grid.scale.of else max(1.0, largest)


def places(section: Section) -> Iterator[tuple[int, int, Heatmap]]:
    """The heads that a section has, with their places."""
    for i, layer in enumerate(section.heatmaps):
        for j, heatmap in enumerate(layer):
            if heatmap:
                yield i, j, heatmap


def thumbnails(sections: Sequence[Section], codes: Sequence[Code]) -> Iterator[str]:
    """All heads of each section, small, one after the other; always in bytes."""
    for i, (section, code) in enumerate(zip(sections, codes, strict=True)):
        small = code._replace(exact=False)
        heads = (
            small.panel(heatmap.panel.pooled(THUMBNAIL, THUMBNAIL))
            for _, _, heatmap in places(section)
        )
        yield block(f"thumbnails-{i}", b"".join(head.tobytes() for head in heads))


def weights(sections: Sequence[Section], codes: Sequence[Code]) -> Iterator[str]:
    """The codes of each head, row by row; of two bytes first all lower, then all upper ones, which are alike."""
    for i, (section, code) in enumerate(zip(sections, codes, strict=True)):
        for j, k, heatmap in places(section):
            data = code.panel(heatmap.panel).tobytes()
            yield block(f"weights-{i}-{j}-{k}", data[::2] + data[1::2] if code.exact else data)


def block(name: str, data: bytes) -> str:
    """Bytes as an element that is not shown.

    Weights are noise with runs: run lengths and Huffman codes store them in less than searching for repeats does, and
    five times as fast.
    """
    squeeze = zlib.compressobj(strategy=zlib.Z_RLE)
    packed = base64.b64encode(squeeze.compress(data) + squeeze.flush()).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>'


def as_json(value: Any) -> str:
    """JSON that may stand within a script element: nothing in it ends that, or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def metadata(page: Page, codes: Sequence[Code], colours: str) -> dict[str, Any]:
    """All that the page says and is no weight. Each axis is there once, however many heads share it."""
    axes: dict[Axis, int] = {}
    sections = [
        section_data(page, section, code, axes)
        for section, code in zip(page.sections, codes, strict=True)
    ]
    return {
        "title": page.title,
        "caption": page.caption,
        "exact": codes[0].exact,
        "linear": any(section.grid.scale.linear for section in page.sections),
        "colours": [
            palette(colours, SHADES, signed=signed)[:-1, :3].tobytes().hex()
            for signed in (False, True)
        ],
        "sections": sections,
        "axes": [axis_data(axis) for axis in axes],
    }


def section_data(page: Page, section: Section, code: Code, axes: dict[Axis, int]) -> dict[str, Any]:
    """What is said of the heads of a section. The ends of colour scales are told by their codes."""

    def head(heatmap: Heatmap) -> dict[str, Any]:
        return {
            "title": heatmap.title,
            "caption": lines(heatmap, page),
            "rows": axes.setdefault(heatmap.rows, len(axes)),
            "columns": axes.setdefault(heatmap.columns, len(axes)),
            "top": int(code.of(heatmap.scale.top)),
            "largest": int(code.of(heatmap.scale.largest)),
        }

    small = code._replace(exact=False)
    return {
        "name": section.name,
        "full": code.full,
        "signed": code.signed,
        "cell": section.grid.scale.cell,
        "title": section.grid.title,
        "caption": lines(section.grid, page),
        "layers": [name.removeprefix("L") for name in section.grid.rows],
        "heads": [name.removeprefix("H") for name in section.grid.columns],
        "top": int(small.of(section.grid.scale.top)),
        "largest": int(small.of(section.grid.scale.largest)),
        "heatmaps": [
            [heatmap and head(heatmap) for heatmap in layer] for layer in section.heatmaps
        ],
    }


def lines(drawable: Heatmap | Grid, page: Page) -> list[str]:
    """The caption of a picture, less what the page says of all of them."""
    return [line for line in drawable.caption if line not in page.caption]


def axis_data(axis: Axis) -> dict[str, Any]:
    """The tokens of an axis, and how many of them are one row or column."""
    spaced = [int(apart) for apart in axis.spaced] or [1] * len(axis)
    sides = {"labels": axis.labels, "numbers": axis.numbers, "spaced": spaced}
    return {"name": axis.name, "unit": axis.unit, **sides, "step": axis.step}
