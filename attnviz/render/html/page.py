"""A page as one HTML file that needs no network: all heads of a capture, for a browser.

Weights are stored as codes, in a block for each head: 0 where masked, else 1 and up, which rise
with the weight. A code is one byte, linear in the square root of the weight, or with ``exact`` the
bits of a float16. Codes of differences have the code of no difference in their middle, and are as
far from it as the size of the difference says. The page's script reads the codes that it shows.
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
from attnviz.render.colour import make_palette

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = "data.js", "draw.js", "lines.js", "view.js", "page.js"
BYTE_STEPS = 254  # codes of a byte but 0, masked, and 1, which is a weight of 0
FLOAT16_ONE = 0x3C00  # its bits
PAGE_COLOURS = 256  # of a colour scale
THUMBNAIL_SIDE = 24  # cells of a thumbnail, at most
SLOT = re.compile(r"\{\{(\w+)\}\}")  # in the template, a place for a part of the page
SCRIPT_ESCAPES = str.maketrans({"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"})
Codes: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


class Code(NamedTuple):
    """A way to write the weights of a section as codes."""

    full: float
    """The weight of the largest code.

    It is 1, or the largest weight if that is larger, or if the numbers are no weights.
    """
    exact: bool = False
    signed: bool = False

    @property
    def zero(self) -> int:
        """The code of 0: the first one, or of differences the one in the middle."""
        if not self.signed:
            return 1
        half = FLOAT16_ONE if self.exact else BYTE_STEPS // 2
        return 1 + half

    def encode(self, values: npt.ArrayLike) -> Codes:
        """Return the codes of weights, of any shape, none of them masked.

        >>> Code(1.0).encode([0, 0.25, 1])
        array([  1, 128, 255], dtype=uint8)
        >>> Code(1.0, signed=True).encode([-1, 0, 0.25])
        array([  1, 128, 192], dtype=uint8)
        """
        weights = np.asarray(values, np.float32)
        share = weights / np.float32(self.full)
        distances = self.encode_sizes(np.abs(share))
        zero = distances.dtype.type(self.zero)
        if not self.signed:
            codes: Codes = zero + distances
            return codes
        return np.where(share < 0, zero - distances, zero + distances)

    def encode_sizes(self, sizes: npt.NDArray[np.float32]) -> Codes:
        """Return how far the codes of weights are from the code of 0.

        sizes: of the weights, as shares of the largest code's weight.
        """
        if self.exact:
            bits: Codes = sizes.astype("<f2").view("<u2")
            return bits
        steps = BYTE_STEPS // 2 if self.signed else BYTE_STEPS
        scaled = np.sqrt(sizes) * steps
        rounded: Codes = np.rint(scaled).astype(np.uint8)
        return rounded

    def encode_panel(self, panel: Panel) -> Codes:
        """Return the codes of a matrix: (row, column), 0 where masked."""
        codes = self.encode(panel.values)
        masked = codes.dtype.type(0)
        return np.where(panel.visible, codes, masked)


def render_page(page: Page, *, exact: bool = False, colours: str = "viridis") -> bytes:
    """Write a page as an HTML file: the same bytes for the same page.

    exact: numbers are within a float16's rounding of the weights, in about three times the size;
    else within 0.004, or within 0.008 of the largest difference.
    colours: the name of a colour map.
    """
    codes = [choose_code(section, exact) for section in page.sections]
    scripts = "\n".join(map(read_asset, SCRIPTS))
    script = f"(() => {{\n{scripts}\n}})();"
    style = read_asset("page.css")
    policy = write_policy(script, style)
    metadata = describe_page(page, codes, colours)
    thumbnails = list_thumbnail_blocks(page.sections, codes)
    first_weights, *other_weights = list_weight_blocks(page.sections, codes)
    parts = {
        "title": escape(page.title),
        "policy": escape(policy),
        "style": style,
        "script": script,
        "metadata": write_script_json(metadata),
        "first": "\n".join((*thumbnails, first_weights)),
        "rest": "\n".join(other_weights),
    }

    def fill_slot(match: re.Match[str]) -> str:
        return parts[match[1]]

    return SLOT.sub(fill_slot, read_asset("page.html")).encode()


def read_asset(name: str) -> str:
    """Read a file that pages are made of."""
    return (ASSETS / name).read_text(encoding="utf-8")


def write_policy(script: str, style: str) -> str:
    """Write the Content-Security-Policy of a page.

    Nothing is loaded under it, and nothing runs but the script.
    """
    script_hash = hash_source(script)
    style_hash = hash_source(style)
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return f"{nothing}; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'"


def hash_source(text: str) -> str:
    """Return the SHA-256 of a text as a Content-Security-Policy has it, in base64."""
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b64encode(digest).decode()


def choose_code(section: Section, exact: bool) -> Code:
    """Choose the codes of a section."""
    return Code(find_full_weight(section), exact, section.grid.scale.signed)


def find_full_weight(section: Section) -> float:
    """Find the weight that the largest code of a section stands for."""
    scale = section.grid.scale
    heatmaps = [heatmap for _, _, heatmap in list_heatmaps(section)]
    if scale.signed:
        sizes = [scale.top]
        for heatmap in heatmaps:
            largest_difference = np.abs(heatmap.panel.values).max()
            sizes += [heatmap.scale.top, float(largest_difference)]
        return max(sizes) or 1.0
    largest = max(heatmap.scale.largest for heatmap in heatmaps)
    if scale.of:
        return largest or 1.0
    return max(1.0, largest)


def list_heatmaps(section: Section) -> Iterator[tuple[int, int, Heatmap]]:
    """Yield the row and the column of each head that a section has, and its heatmap."""
    for i, layer in enumerate(section.heatmaps):
        for j, heatmap in enumerate(layer):
            if heatmap:
                yield i, j, heatmap


def list_thumbnail_blocks(sections: Sequence[Section], codes: Sequence[Code]) -> Iterator[str]:
    """Yield a block for each section that holds all its heads, pooled; always in bytes."""
    for i, (section, code) in enumerate(zip(sections, codes, strict=True)):
        byte_code = code._replace(exact=False)
        heads: list[bytes] = []
        for _, _, heatmap in list_heatmaps(section):
            pooled = heatmap.panel.pool(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
            codes_of_head = byte_code.encode_panel(pooled)
            heads.append(codes_of_head.tobytes())
        yield write_block(f"thumbnails-{i}", b"".join(heads))


def list_weight_blocks(sections: Sequence[Section], codes: Sequence[Code]) -> Iterator[str]:
    """Yield a block for each head that holds its codes, row by row.

    Codes of two bytes have all their lower bytes first, then all upper ones: bytes that are alike
    stand together, and are compressed better.
    """
    for i, (section, code) in enumerate(zip(sections, codes, strict=True)):
        for j, k, heatmap in list_heatmaps(section):
            data = code.encode_panel(heatmap.panel).tobytes()
            if code.exact:
                data = data[::2] + data[1::2]
            yield write_block(f"weights-{i}-{j}-{k}", data)


def write_block(name: str, data: bytes) -> str:
    """Write bytes as an element that is not shown.

    Weights are noise with runs. Run lengths and Huffman codes store them in less than searching for
    repeats does, and five times as fast.
    """
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    compressed = compressor.compress(data) + compressor.flush()
    encoded = base64.b64encode(compressed).decode()
    return f'<script type="text/plain" id="{name}">{encoded}</script>'


def write_script_json(value: Any) -> str:
    """Write JSON that may stand in a script element: nothing in it ends that, or is a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(SCRIPT_ESCAPES)


def describe_page(page: Page, codes: Sequence[Code], colours: str) -> dict[str, Any]:
    """Describe all of a page but its weights, for its script.

    Each axis is there once, however many heads share it.
    """
    axes: dict[Axis, int] = {}
    pairs = zip(page.sections, codes, strict=True)
    sections = [describe_section(page, section, code, axes) for section, code in pairs]
    colour_codes = [write_colours(colours, signed=signed) for signed in (False, True)]
    return {
        "title": page.title,
        "caption": page.caption,
        "exact": codes[0].exact,
        "linear": any(section.grid.scale.linear for section in page.sections),
        "colours": colour_codes,
        "sections": sections,
        "axes": [describe_axis(axis) for axis in axes],
    }


def write_colours(name: str, *, signed: bool) -> str:
    """Write the colours of a scale, and the colour beyond it, in hexadecimal."""
    palette = make_palette(name, PAGE_COLOURS, signed=signed)
    masked_left_out = palette[:-1]
    return masked_left_out[:, :3].tobytes().hex()


def describe_section(
    page: Page,
    section: Section,
    code: Code,
    axes: dict[Axis, int],
) -> dict[str, Any]:
    """Describe the heads of a section. The ends of colour scales are given by their codes.

    axes: numbers by axis, which is extended by new ones.
    """
    grid = section.grid
    byte_code = code._replace(exact=False)
    heatmaps = [describe_layer(page, layer, code, axes) for layer in section.heatmaps]
    top = byte_code.encode(grid.scale.top)
    largest = byte_code.encode(grid.scale.largest)
    return {
        "name": section.name,
        "full": code.full,
        "signed": code.signed,
        "cell": grid.scale.cell,
        "title": grid.title,
        "caption": list_own_lines(grid, page),
        "layers": [name.removeprefix("L") for name in grid.rows],
        "heads": [name.removeprefix("H") for name in grid.columns],
        "top": int(top),
        "largest": int(largest),
        "heatmaps": heatmaps,
    }


def describe_layer(
    page: Page,
    layer: Sequence[Heatmap | None],
    code: Code,
    axes: dict[Axis, int],
) -> list[dict[str, Any] | None]:
    """Describe the heads of a layer, None where there is none.

    axes: numbers by axis, which is extended by new ones.
    """
    return [describe_heatmap(page, head, code, axes) if head else None for head in layer]


def describe_heatmap(
    page: Page,
    heatmap: Heatmap,
    code: Code,
    axes: dict[Axis, int],
) -> dict[str, Any]:
    """Describe a head. axes: numbers by axis, which is extended by new ones."""
    rows = axes.setdefault(heatmap.rows, len(axes))
    columns = axes.setdefault(heatmap.columns, len(axes))
    top = code.encode(heatmap.scale.top)
    largest = code.encode(heatmap.scale.largest)
    return {
        "title": heatmap.title,
        "caption": list_own_lines(heatmap, page),
        "rows": rows,
        "columns": columns,
        "top": int(top),
        "largest": int(largest),
    }


def list_own_lines(drawable: Heatmap | Grid, page: Page) -> list[str]:
    """List the lines of a caption that the page does not have for all of its pictures."""
    return [line for line in drawable.caption if line not in page.caption]


def describe_axis(axis: Axis) -> dict[str, Any]:
    """Describe the tokens of an axis, and how many of them are one row or column."""
    spaced = [int(has_space) for has_space in axis.spaced]
    return {
        "name": axis.name,
        "unit": axis.unit,
        "labels": axis.labels,
        "numbers": axis.numbers,
        "spaced": spaced or [1] * len(axis),
        "step": axis.step,
    }
