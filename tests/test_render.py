"""Pictures: drawables as data, golden screens at fixed widths, figures."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from attnviz.analysis.statistics import describe
from attnviz.models import Prompt, Request, load
from attnviz.record import AttentionMap, Capture, Token
from attnviz.render.colour import RAMP_256, viridis
from attnviz.render.figure import draw as draw_figure
from attnviz.render.figure import png
from attnviz.render.terminal import Screen, draw, fit, stack
from attnviz.selection import parse
from attnviz.views import grids, heatmaps
from attnviz.views.drawable import levels, pool
from tests.conftest import SENTENCE

GOLDEN = Path(__file__).parent / "golden"
WIDE = ("猫", "👩‍🚀", "é", "مرحبا", "a\x1bb", "x" * 40, "", "\n")


def text_of(drawable: object, screen: Screen) -> str:
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in draw(drawable, screen)) + "\n"


def painted(drawable: object, screen: Screen) -> str:
    """Lines with the style of each segment: golden text for colours."""
    return "\n".join(
        "".join(f"<{segment.style}>{segment.text}" if segment.style else segment.text for segment in line)
        for line in draw(drawable, screen)
    )


def long_capture(n: int, heads: int = 1) -> Capture:
    """A capture of n tokens with a sink, a diagonal and a stripe."""
    tokens = tuple(Token(f"w{i}", i, 3 * i, 3 * i + 2, False) for i in range(n))
    weights = np.full((1, heads, n, n), 0.1 / n, np.float32) + np.eye(n, dtype=np.float32) * 0.5
    weights[..., 0] += 0.3
    weights = np.tril(weights)
    weights /= weights.sum(-1, keepdims=True)
    visible = np.tri(n, dtype=bool)
    found = describe(weights, visible, True)
    part = AttentionMap("self", (0,), tuple(range(heads)), tokens, tokens, weights, visible, statistics=found)
    return Capture("toy", "", (part,))


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("paint", ["shades", "ascii"])
@pytest.mark.parametrize("view", ["heatmap", "grid"])
def test_golden_screens(width: int, paint: str, view: str, request: pytest.FixtureRequest) -> None:
    """A picture of 24 tokens looks as it did, at every width, with no colour."""
    capture = long_capture(24, heads=6)
    drawable = grids(capture)[0] if view == "grid" else heatmaps(capture)[0]
    found = text_of(drawable, Screen(width, paint))
    golden = GOLDEN / f"{view}-{width}-{paint}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


@pytest.mark.parametrize("paint", ["truecolor", "256"])
@pytest.mark.parametrize("width", [40, 120])
def test_golden_colours(width: int, paint: str, capture: Capture, request: pytest.FixtureRequest) -> None:
    """The same with colours, numbers in the cells and half blocks."""
    found = (
        painted(heatmaps(capture)[0], Screen(width, paint)) + "\n" + painted(grids(capture)[0], Screen(width, paint))
    )
    golden = GOLDEN / f"colour-{width}-{paint}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


def test_long_model_names_keep_layer_and_head(capture: Capture) -> None:
    """The title wraps rather than lose its end."""
    named = replace(capture, model="owner/" + "a-very-long-name-" * 4)
    shown = text_of(heatmaps(named)[0], Screen(40, "shades"))
    assert "layer 0 · head 0" in re.sub(r"\s+", " ", shown)
    assert max(map(cell_len, shown.splitlines())) <= 40


@pytest.mark.parametrize("paint", ["truecolor", "256", "shades", "ascii"])
@pytest.mark.parametrize("width", [40, 57, 80, 200])
@pytest.mark.parametrize("n", [1, 2, 17, 41, 150, 700])
def test_pictures_fit_the_screen(n: int, width: int, paint: str) -> None:
    """No line of any view is wider than the screen, however long the text, and a picture is never empty."""
    capture = long_capture(n, heads=13)
    for drawable in (heatmaps(capture)[0], grids(capture)[0]):
        lines = text_of(drawable, Screen(width, paint)).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert len(lines) >= 4


def test_layout_goes_by_what_fits() -> None:
    """Numbers for few tokens, stacked labels for more, half blocks with ticks for many, pooled beyond the width."""
    few, more, many, most = (text_of(heatmaps(long_capture(n))[0], Screen(100, "truecolor")) for n in (18, 40, 80, 300))
    assert " .3" in few
    assert "w\n" not in few
    assert "w w w" in more
    assert "▀" not in more
    assert "╷10" in many
    assert "▀" in many
    assert "largest weight" in most
    assert "largest weight" not in many


def test_values_in_cells_are_the_weights(capture: Capture) -> None:
    """The numbers drawn are the weights to two digits; masked cells are blank."""
    panel = heatmaps(capture)[0].panel
    lines = text_of(heatmaps(capture)[0], Screen(80, "shades")).splitlines()[2:6]
    for row, line in enumerate(lines):
        shown = [float(word) for word in line.split()[2:]]
        np.testing.assert_allclose(shown, panel.values[row, : row + 1], atol=0.006)


def test_masked_is_not_zero() -> None:
    """A visible weight of zero has a look of its own, a masked cell is blank, without colours too."""
    tokens = tuple(Token(f"w{i}", i, i, i + 1, False) for i in range(30))
    weights = np.zeros((1, 1, 30, 30), np.float32)
    weights[..., 0] = 1
    capture = Capture("toy", "", (AttentionMap("self", (0,), (0,), tokens, tokens, weights, np.tri(30, dtype=bool)),))
    for paint, zero in (("shades", "·"), ("ascii", ".")):
        line = text_of(heatmaps(capture)[0], Screen(100, paint)).splitlines()[1 + 3 + 4]
        assert line.endswith(zero * 8)
        assert line.count(zero) == 8


def test_captions_tell_what_is_seen(capture: Capture) -> None:
    """Model, layer, head, what rows and columns are, scale and range, and the share of the weight on the sink."""
    drawable = heatmaps(capture)[3]
    shown = text_of(drawable, Screen(80, "shades"))
    part = capture.maps[0]
    share = part.weights[1, 1, 1:, 0].mean()
    assert "toy · layer 1 · head 1" in shown
    assert "rows: queries, columns: keys, blank: masked" in shown
    assert "√ scale" in shown
    assert f"{share:.0%} of the weight is on the sink <bos>" in shown
    mean = replace(capture, maps=(part.reduced("mean"),), notes=("a note",))
    assert "layer 0 · mean over heads" in text_of(heatmaps(mean)[0], Screen(80, "shades"))
    assert "a note" in text_of(heatmaps(mean)[0], Screen(80, "shades"))


def test_ragged_heads_have_gaps() -> None:
    """L0H1,L2H0 is a grid with a panel for each and gaps between."""
    from attnviz.selection import ALL, parse_heads

    drawable = grids(load().capture(Prompt(SENTENCE), Request(ALL, parse_heads("L0H1,L2H0"))))[0]
    assert (drawable.rows, drawable.columns) == (("L0", "L2"), ("H1", "H0"))
    assert [[panel is not None for panel in row] for row in drawable.panels] == [[True, False], [False, True]]


@pytest.mark.parametrize("width", [40, 100])
def test_wide_and_hostile_labels_keep_columns_aligned(width: int) -> None:
    """CJK, emoji, combining marks, right-to-left, control characters, nothing: each line is as wide as the others."""
    tokens = tuple(Token(word, i, 0, 0, False) for i, word in enumerate(WIDE * 3))
    n = len(tokens)
    part = AttentionMap(
        "self", (0,), (0,), tokens, tokens, np.full((1, 1, n, n), 1 / n, np.float32), np.ones((n, n), bool)
    )
    drawable = heatmaps(Capture("toy", "", (part,)))[0]
    lines = list(draw(drawable, Screen(width, "truecolor")))
    body = [line for line in lines if line and line[-1].style and line[-1].style.bgcolor][:-1]
    assert len({sum(cell_len(segment.text) for segment in line) for line in body}) == 1
    assert "\x1b" not in "".join(segment.text for line in lines for segment in line)


@given(st.text(max_size=20), st.integers(2, 20))
def test_fit_gives_exactly_the_width(text: str, width: int) -> None:
    """Whatever the text, what is shown takes exactly its columns."""
    from attnviz.escape import escape

    assert cell_len(fit(escape(text), width)) == width


def test_stacked_labels_end_at_the_bottom() -> None:
    """Labels are written downwards, two columns each, aligned at their ends, cut with an ellipsis."""
    assert stack(("ab", "c", "猫x")) == ["a   猫", "b c x"]
    assert stack(("x" * 20,)) == ["x"] * 8 + ["…"]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_pooling_keeps_the_maximum(height: int, width: int, rows: int, columns: int) -> None:
    """A pooled matrix fits, keeps its maximum, and is the matrix itself where it fits already."""
    values = np.random.default_rng(height).random((height, width))
    pooled = pool(values, rows, columns)
    assert pooled.shape == (min(height, rows), min(width, columns))
    assert pooled.max() == values.max()
    if rows >= height and columns >= width:
        np.testing.assert_array_equal(pooled, values)


def test_levels_are_square_roots() -> None:
    """Colours go by the square root of the weight's share of the largest."""
    np.testing.assert_allclose(levels(np.array([0, 0.02, 0.08, 1], np.float32), 0.08), [0, 0.5, 1, 1])
    assert levels(np.zeros(2, np.float32), 0.0).tolist() == [0, 0]


def test_colours_are_viridis_and_rise() -> None:
    """Within 4/255 of matplotlib's viridis; lightness rises at every step, on the 256-colour ramp as well."""
    from matplotlib import colormaps

    theirs = np.array(colormaps["viridis"].resampled(256)(np.linspace(0, 1, 64))[:, :3]) * 255
    assert np.abs(viridis(64) - theirs).max() <= 4
    cube = [0, 95, 135, 175, 215, 255]
    ramp = np.array([[cube[(i - 16) // 36], cube[(i - 16) // 6 % 6], cube[(i - 16) % 6]] for i in RAMP_256])
    for colours in (viridis(64), ramp):
        luminance = (np.asarray(colours, float) / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) > 0).all()


def test_figures_show_the_weights() -> None:
    """The pixels of a PNG in the middle of each cell are the colours of its weight."""
    capture = load().capture(Prompt(SENTENCE), Request(parse("0"), parse("0")))
    drawable = heatmaps(capture)[0]
    with Image.open(io.BytesIO(png(drawable))) as picture:
        pixels = np.array(picture.convert("RGB"), int)
    expected = viridis(256)[np.minimum((levels(drawable.panel.values, drawable.top) * 256).astype(int), 255)]
    left, bottom, width, height = draw_figure(drawable).axes[0].get_position().bounds
    high, wide = pixels.shape[:2]
    n = len(drawable.rows)
    for row, column in np.ndindex(n, n):
        y = int(high * (1 - bottom - height + height * (row + 0.5) / n))
        x = int(wide * (left + width * (column + 0.5) / n))
        np.testing.assert_array_equal(pixels[y, x], expected[row, column] if column <= row else [255] * 3)


@pytest.mark.parametrize("n", [1, 5, 90, 1500])
def test_figures_of_any_length(n: int) -> None:
    """One token or many, one head or a grid: a picture of sane size, the same bytes each time."""
    for drawable in (heatmaps(long_capture(n))[0], grids(long_capture(n, heads=5))[0]):
        data = png(drawable)
        assert data == png(drawable)
        with Image.open(io.BytesIO(data)) as picture:
            assert max(picture.size) < 4000
