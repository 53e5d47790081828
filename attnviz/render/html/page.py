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


class WeightCoding(NamedTuple):
    """A way to write the weights of a section as codes, that is, as whole numbers in bytes."""

    full: float
    """The weight of the largest code.

    It is 1, or the largest weight if that is larger, or if the numbers are no weights.
    """
    exact: bool = False
    signed: bool = False

    @property
    def zero(self) -> int:
        """The code that stands for 0: the first one, or of differences the one in the middle."""
        if not self.signed:
            return 1
        half = FLOAT16_ONE if self.exact else BYTE_STEPS // 2
        return 1 + half

    def encode(self, values: npt.ArrayLike) -> Codes:
        """Return the codes of weights: an array of the same shape.

        The codes are whole numbers from 1 on, one or two bytes each, which rise with the weight. If
        the values are differences, negative ones have codes below that of 0. No value is masked.

        >>> WeightCoding(1.0).encode([0, 0.25, 1])
        array([  1, 128, 255], dtype=uint8)
        >>> WeightCoding(1.0, signed=True).encode([-1, 0, 0.25])
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
        """Return how far the codes of some weights are from the code of 0.

        sizes: the weights without their signs, as shares of the weight that the largest code stands
        for, 0 to 1, in an array of any shape.
        """
        if self.exact:
            bits: Codes = sizes.astype("<f2").view("<u2")
            return bits
        steps = BYTE_STEPS // 2 if self.signed else BYTE_STEPS
        scaled = np.sqrt(sizes) * steps
        rounded: Codes = np.rint(scaled).astype(np.uint8)
        return rounded

    def encode_panel(self, panel: Panel) -> Codes:
        """Return the codes of a matrix of weights: (row, column), 0 where a cell is masked."""
        codes = self.encode(panel.values)
        masked = codes.dtype.type(0)
        return np.where(panel.visible, codes, masked)


def render_page(page: Page, *, exact: bool = False, colours: str = "viridis") -> bytes:
    """Write a page of all heads of a capture as an HTML file: the same bytes for the same page.

    exact: weights are stored as float16, which takes about three times the size. Else their errors
    are up to 0.004 of the largest weight, and those of differences up to 0.008 of the largest.
    colours: the name of a colour map.
    """
    codings = [choose_coding(section, exact) for section in page.sections]
    scripts = "\n".join(map(read_asset, SCRIPTS))
    script = f"(() => {{\n{scripts}\n}})();"
    style = read_asset("page.css")
    policy = write_policy(script, style)
    metadata = describe_page(page, codings, colours)
    thumbnails = list_thumbnail_blocks(page.sections, codings)
    first_weights, *other_weights = list_weight_blocks(page.sections, codings)
    # What the page shows first stands before its script, so that the rest may load later.
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
        """Return the part of the page that stands in place of a {{name}} in the template."""
        return parts[match[1]]

    return SLOT.sub(fill_slot, read_asset("page.html")).encode()


def read_asset(name: str) -> str:
    """Read a file that pages are made of."""
    return (ASSETS / name).read_text(encoding="utf-8")


def write_policy(script: str, style: str) -> str:
    """Write the Content-Security-Policy of a page with this one script and this one style sheet.

    Under it a browser loads nothing from anywhere, and runs and applies nothing else.
    """
    script_hash = hash_source(script)
    style_hash = hash_source(style)
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return f"{nothing}; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'"


def hash_source(text: str) -> str:
    """Return the SHA-256 of a script or style in base64, as a Content-Security-Policy has it."""
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b64encode(digest).decode()


def choose_coding(section: Section, exact: bool) -> WeightCoding:
    """Choose how the weights of a section are written as codes. exact: as float16, not as bytes."""
    full = find_full_weight(section)
    return WeightCoding(full, exact, signed=section.grid.scale.signed)


def find_full_weight(section: Section) -> float:
    """Find the weight that the largest code of a section stands for.

    A section holds the maps of one kind on a page, and its weights are stored as whole numbers, the
    codes. Of differences it is the largest one, whatever its sign. Of attention weights it is 1, or
    the largest weight if that is above 1. Of other numbers it is the largest of them.
    """
    scale = section.grid.scale
    heatmaps = [heatmap for _, _, heatmap in list_heatmaps(section)]
    if scale.signed:
        sizes = [float(np.abs(heatmap.panel.values).max()) for heatmap in heatmaps]
        return max([scale.top, *sizes]) or 1.0
    largest = max(heatmap.scale.largest for heatmap in heatmaps)
    if scale.of:
        return largest or 1.0
    return max(1.0, largest)


def list_heatmaps(section: Section) -> Iterator[tuple[int, int, Heatmap]]:
    """Yield the row, the column and the heatmap of each head that a section has.

    Rows are layers, columns heads, both counted from 0. Places without a head are left out.
    """
    for row, heatmaps_of_layer in enumerate(section.heatmaps):
        for column, heatmap in enumerate(heatmaps_of_layer):
            if heatmap:
                yield row, column, heatmap


def list_thumbnail_blocks(
    sections: Sequence[Section],
    codings: Sequence[WeightCoding],
) -> Iterator[str]:
    """Yield an HTML element for each section, with small versions of all its matrices as data.

    Matrices are pooled to at most THUMBNAIL_SIDE cells a side. Their codes, one byte each, follow
    each other in the order of the heads.

    sections: of a page, each the maps of one kind of attention. codings: how the weights of each
    section are written as codes.
    """
    for i, (section, coding) in enumerate(zip(sections, codings, strict=True)):
        byte_coding = coding._replace(exact=False)
        heads: list[bytes] = []
        for _, _, heatmap in list_heatmaps(section):
            pooled = heatmap.panel.pool(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
            codes_of_head = byte_coding.encode_panel(pooled)
            heads.append(codes_of_head.tobytes())
        yield write_block(f"thumbnails-{i}", b"".join(heads))


def list_weight_blocks(
    sections: Sequence[Section],
    codings: Sequence[WeightCoding],
) -> Iterator[str]:
    """Yield an HTML element for each head of all sections, with the codes of its weights as data.

    The codes follow each other row by row. If they have two bytes each, all lower bytes come first,
    then all upper ones: bytes that are alike stand together, and are compressed better.

    sections: of a page, each the maps of one kind of attention. codings: how the weights of each
    section are written as codes.
    """
    for i, (section, coding) in enumerate(zip(sections, codings, strict=True)):
        for row, column, heatmap in list_heatmaps(section):
            data = coding.encode_panel(heatmap.panel).tobytes()
            if coding.exact:
                data = data[::2] + data[1::2]
            yield write_block(f"weights-{i}-{row}-{column}", data)


def write_block(name: str, data: bytes) -> str:
    """Write bytes, compressed and in base64, as an HTML element that a browser does not show.

    Weights are noise with runs of equal bytes. zlib's run-length strategy stores them in fewer
    bytes than its search for repeats does, and five times as fast.

    name: the id of the element.
    """
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    compressed = compressor.compress(data) + compressor.flush()
    encoded = base64.b64encode(compressed).decode()
    return f'<script type="text/plain" id="{name}">{encoded}</script>'


def write_script_json(value: Any) -> str:
    """Write a value as JSON that is safe in an HTML script element.

    Characters that could end the element, open a comment or break a line of the script are written
    as escape sequences.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(SCRIPT_ESCAPES)


def describe_page(page: Page, codings: Sequence[WeightCoding], colours: str) -> dict[str, Any]:
    """Return all of a page but its weights, as a dict that becomes JSON for the page's script.

    Each axis, with the tokens along it, is there once in a list. Heads refer to it by its index,
    however many of them share it.

    codings: how the weights of each section are written as codes. colours: the name of a colour
    map.
    """
    axes: dict[Axis, int] = {}
    pairs = zip(page.sections, codings, strict=True)
    sections = [describe_section(page, section, coding, axes) for section, coding in pairs]
    weight_colours = write_colours(colours, signed=False)
    difference_colours = write_colours(colours, signed=True)
    return {
        "title": page.title,
        "caption": page.caption,
        "exact": codings[0].exact,
        "linear": any(section.grid.scale.linear for section in page.sections),
        "colours": [weight_colours, difference_colours],
        "sections": sections,
        "axes": [describe_axis(axis) for axis in axes],
    }


def write_colours(name: str, *, signed: bool) -> str:
    """Write the colours of a scale, and the one of weights beyond it, as one hexadecimal number.

    Each colour has six digits. signed: the colours are those of differences.
    """
    palette = make_palette(name, PAGE_COLOURS, signed=signed)
    masked_left_out = palette[:-1]
    return masked_left_out[:, :3].tobytes().hex()


def describe_section(
    page: Page,
    section: Section,
    coding: WeightCoding,
    axes: dict[Axis, int],
) -> dict[str, Any]:
    """Return the maps of one kind of attention as a dict that becomes JSON for the page's script.

    The ends of colour scales are written as codes, as the weights are.

    page: the whole page, whose caption lines are not repeated. coding: how weights of the section
    are written as codes. axes: the index of each axis of the page so far; new axes are added.
    """
    grid = section.grid
    byte_coding = coding._replace(exact=False)
    heatmaps = [describe_layer(page, layer, coding, axes) for layer in section.heatmaps]
    top = byte_coding.encode(grid.scale.top)
    largest = byte_coding.encode(grid.scale.largest)
    return {
        "name": section.name,
        "full": coding.full,
        "signed": coding.signed,
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
    coding: WeightCoding,
    axes: dict[Axis, int],
) -> list[dict[str, Any] | None]:
    """Return the heatmaps of a layer as dicts that become JSON, in the order of the heads.

    Where the page shows no heatmap of a head, as one that the user left out, None stands for it.

    page: the whole page; lines of its caption are left out of the captions of heatmaps. coding: how
    the page writes a weight as a whole number of one or two bytes, its code. axes: the index of
    each axis of the page so far, to which new axes are added.
    """
    return [describe_heatmap(page, head, coding, axes) if head else None for head in layer]


def describe_heatmap(
    page: Page,
    heatmap: Heatmap,
    coding: WeightCoding,
    axes: dict[Axis, int],
) -> dict[str, Any]:
    """Return all of a heatmap but its weights, as a dict that becomes JSON for the page's script.

    Its axes are written as their indices, the ends of its colour scale as codes like the weights.

    page: the whole page, whose caption lines are not repeated. coding: how weights are
    written as codes. axes: the index of each axis of the page so far; new axes are added.
    """
    row_axis = axes.setdefault(heatmap.rows, len(axes))
    column_axis = axes.setdefault(heatmap.columns, len(axes))
    # The colours of equal heads end anywhere, which may be beyond what codes stand for.
    top = coding.encode(min(heatmap.scale.top, coding.full))
    largest = coding.encode(heatmap.scale.largest)
    return {
        "title": heatmap.title,
        "caption": list_own_lines(heatmap, page),
        "rows": row_axis,
        "columns": column_axis,
        "top": int(top),
        "largest": int(largest),
    }


def list_own_lines(picture: Heatmap | Grid, page: Page) -> list[str]:
    """List the lines of a picture's caption that are not in the caption of its page too."""
    return [line for line in picture.caption if line not in page.caption]


def describe_axis(axis: Axis) -> dict[str, Any]:
    """Return an axis as a dict that becomes JSON for the page's script.

    It has the tokens along the axis, and the number of tokens that a cell stands for. Where nothing
    says whether white space stands before a token, it stands before all tokens.
    """
    spaced = [int(has_space) for has_space in axis.spaced]
    return {
        "name": axis.name,
        "unit": axis.unit,
        "labels": axis.labels,
        "numbers": axis.numbers,
        "spaced": spaced or [1] * len(axis),
        "step": axis.step,
    }
