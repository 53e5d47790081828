"""Curves over steps: where they stand on a screen and a figure, and the picture of a training with its phase change."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from attnviz.analysis.roles import measure_induction, spread_evenly
from attnviz.drawable import Curve, Curves, Mark, Plot
from attnviz.experiments.training import read_training
from attnviz.render.figure.curves import CURVE_ZORDER
from attnviz.render.figure.figure import (
    FIGURE_FORMATS,
    STYLES,
    FigureStyle,
    compose_sheet,
    render_figure,
)
from attnviz.render.figure.layout import spread_positions
from attnviz.render.markdown import render_markdown
from attnviz.render.terminal.cells import ColourDepth
from attnviz.render.terminal.chart import ASCII_CURVE_SIGNS, CURVE_SIGNS, choose_round_numbers
from attnviz.render.terminal.draw import Screen
from attnviz.render.terminal.text_width import count_columns
from attnviz.results.training import make_learning_curves
from tests.commands import list_loaded_packages
from tests.conftest import Run
from tests.pictures import (
    GOLDEN,
    draw_styled_text,
    draw_text,
    find_overlaps,
    make_screen,
    measure_text_boxes,
)
from tests.training_runs import (
    BLOCK,
    RISING_SCORES,
    make_history,
    make_measurement,
    plant_training_run,
)


def chart(
    *curves: list[float], steps: tuple[int, ...] = (), marks: tuple[Mark, ...] = ()
) -> Curves:
    """One plot from 0 to 1."""
    named = tuple(
        Curve(f"curve {i}", np.array(values, np.float32)) for i, values in enumerate(curves)
    )
    steps = steps or tuple(range(1, len(curves[0]) + 1))
    return Curves(
        "a chart", "steps", steps, (Plot("shares", 0.0, 1.0, named),), ("what it is",), marks
    )


def cells(drawable: Curves, width: int = 60, depth: ColourDepth = "shades") -> list[str]:
    """The lines of the first plot, from its axis on."""
    lines = draw_text(drawable, make_screen(width, depth)).splitlines()
    return [
        line[line.index(sign) + 1 :]
        for line in lines
        for sign in "│┤|+"
        if line[:6].strip(" .0125").startswith(sign)
    ]


# On a screen


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "shades", "ascii"])
def test_golden_screens(width: int, depth: ColourDepth, request: pytest.FixtureRequest) -> None:
    """The picture of a training looks as it did, at every width, in every number of colours."""
    drawable = make_learning_curves(make_history(widened=15), BLOCK)
    found = (draw_text if depth in ("shades", "ascii") else draw_styled_text)(
        drawable, make_screen(width, depth)
    )
    golden = GOLDEN / f"curves-{width}-{depth}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


def test_a_line_from_corner_to_corner() -> None:
    """A curve that rises evenly is a diagonal: its ends in the corners, a cell of it in every line and column."""
    lines = cells(chart([0.0, 0.5, 1.0]))
    assert len(lines) == 12
    grid = np.array([list(line.ljust(60)) for line in lines]) == CURVE_SIGNS[0]
    columns = np.flatnonzero(grid.any(0))
    assert grid.any(1).all()
    assert columns.tolist() == list(range(columns[-1] + 1))
    assert grid[-1, 0]
    assert grid[0, columns[-1]]


def test_a_gap_is_a_gap() -> None:
    """Where there is no number nothing is drawn, and a number between two gaps is one cell."""
    lines = cells(chart([0.0, np.nan, 0.0, np.nan, 0.0]))
    assert "".join(lines).count(CURVE_SIGNS[0]) == 3
    assert (
        draw_text(chart([np.nan, np.nan]), make_screen(60, "shades")).count(CURVE_SIGNS[0]) == 1
    )  # that of its name


@pytest.mark.parametrize(
    ("depth", "signs"),
    [("shades", CURVE_SIGNS), ("truecolor", CURVE_SIGNS), ("ascii", ASCII_CURVE_SIGNS)],
)
def test_each_curve_has_a_sign_besides_its_colour(depth: ColourDepth, signs: str) -> None:
    """The sign before its name is that of its cells; of curves in one place the first is seen."""
    drawable = chart(*([i / 5] * 4 for i in range(6)), [0.2] * 4)
    shown = draw_text(drawable, make_screen(80, depth))
    for i in range(6):
        assert f"{signs[i]} curve {i} {i / 5:.3g}" in shown
        assert sum(signs[i] * 20 in line for line in shown.splitlines()) == 1
    assert shown.isascii() == (depth == "ascii")


@pytest.mark.parametrize("depth", ["truecolor", "ascii"])
@pytest.mark.parametrize("n", [1, 2, 20, 500])
def test_charts_fit_the_screen(n: int, depth: ColourDepth) -> None:
    """No line is wider than the screen, and with a prompt below it the chart is no higher, whatever the run."""
    drawable = make_learning_curves(make_history((RISING_SCORES * 25)[:n], widened=n // 2), BLOCK)
    for width in (40, 57, 80, 200):
        assert (
            max(map(count_columns, draw_text(drawable, make_screen(width, depth)).splitlines()))
            <= width
        )
        for height in (24 if width >= 80 else 32, 50):
            assert (
                len(
                    draw_text(
                        drawable, Screen(width, height, make_screen(width, depth).paint)
                    ).splitlines()
                )
                < height
            )


def test_a_mark_stands_at_its_step() -> None:
    """A line of its own sign through the plot, named below with its step."""
    drawable = chart([0.0] * 5, marks=(Mark(3, "here"),))
    lines = cells(drawable)
    assert {line.index("┊") for line in lines[:-1]} == {round((len(lines[-1].rstrip()) - 1) / 2)}
    assert "┊ here: step 3" in draw_text(drawable, make_screen(60, "shades"))


@given(st.floats(-100, 100), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_round_numbers_are_round_and_even(start: float, span: float, most: int) -> None:
    """Inside the range, at most so many, evenly apart by 1, 2 or 5 times a power of ten."""
    low, high = start * span, start * span + span
    places = choose_round_numbers(low, high, most)
    assert len(places) <= most
    assert all(low - 1e-6 * span <= place <= high + 1e-6 * span for place in places)
    for apart in np.diff(places):
        digits = f"{apart:.4e}".split("e")[0]
        assert digits in ("1.0000", "2.0000", "5.0000")
        assert abs(places[0] / apart - round(places[0] / apart)) < 1e-4
    assert len(places) >= 1 + (most >= 6)


# On a figure


def curve_parts(drawable: Curves, style: FigureStyle = FigureStyle()) -> list[LineCollection]:  # noqa: B008 - it never changes
    """The curves of a figure, the last of a plot first."""
    with compose_sheet(drawable, style) as sheet:
        return [
            one
            for one in sheet.axes.collections
            if isinstance(one, LineCollection) and one.get_zorder() == CURVE_ZORDER
        ]


def test_figures_have_their_points_in_place() -> None:
    """Steps and values go evenly to inches: the line through (step, value) is recovered by a linear map."""
    drawable = chart([0.0, 0.3, 1.0, 0.1], [0.5, 0.5, 0.2, 0.9], steps=(10, 20, 50, 100))
    for curve, drawn in zip(drawable.plots[0].curves[::-1], curve_parts(drawable), strict=True):
        (x, y) = np.concatenate(drawn.get_segments()).T
        for found, given_ in ((x, drawable.steps), (y, curve.values)):
            fit = np.polyfit(given_, found, 1)
            np.testing.assert_allclose(np.polyval(fit, given_), found, atol=1e-6)


def test_figures_have_gaps_and_dots() -> None:
    """A curve is broken where there is no number; a number between two gaps is a short stroke."""
    (drawn,) = curve_parts(chart([0.1, 0.2, np.nan, 0.4, np.nan, 0.6, 0.7]))
    assert [len(part) for part in drawn.get_segments()] == [2, 2, 2]
    middle = drawn.get_segments()[1]
    assert 0 < np.ptp(middle[:, 0]) < 0.05
    assert np.ptp(middle[:, 1]) == 0


def test_curves_differ_in_dashes_besides_their_colours() -> None:
    """No two of six curves have the same dashes, or the same colour."""
    drawn = curve_parts(chart(*([i / 5] * 4 for i in range(6))))
    assert len({str(one.get_linestyle()) for one in drawn}) == 6
    assert len({tuple(one.get_colors()[0]) for one in drawn}) == 6


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["a run", "one step", "equal ends", "no numbers"])
def test_every_text_has_its_room(kind: str, style: str) -> None:
    """No text is cut off, and none overlaps another, also where curves end in one place or nothing was measured."""
    drawable = {
        "a run": make_learning_curves(make_history(widened=15), BLOCK),
        "one step": make_learning_curves(make_history([0.9]), BLOCK),
        "equal ends": chart(*[[0.0, 1.0]] * 6, marks=(Mark(1, "first"), Mark(2, "last"))),
        "no numbers": make_learning_curves([make_measurement(1, None, None)], BLOCK),
    }[kind]
    with compose_sheet(drawable, FigureStyle(style, dpi=100)) as sheet:
        texts, page = measure_text_boxes(sheet), sheet.figure.bbox
    assert texts[:, :2].min() > 0
    assert (texts[:, 2:].max(0) < (page.width, page.height)).all()
    assert not np.triu(find_overlaps(texts, texts), 1).any()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_names_are_spread_in_order(places: list[float]) -> None:
    """Each far enough from the next and inside, in the order they were; those that were so stay where they are."""
    found = np.array(spread_positions(places, 1.0, 10.0))
    order = np.argsort(places, kind="stable")
    assert np.diff(found[order]).min(initial=1) >= 1 - 1e-9
    assert found.min() >= 0.5 - 1e-9
    assert found.max() <= 9.5 + 1e-9
    np.testing.assert_allclose(spread_positions(found.tolist(), 1.0, 10.0), found)


@pytest.mark.parametrize("form", FIGURE_FORMATS)
def test_files_are_the_same_each_time(form: str) -> None:
    """The same bytes for the same history; in an SVG all text is text."""
    drawable = make_learning_curves(make_history(), BLOCK)
    data = render_figure(drawable, form).data
    assert data == render_figure(drawable, form).data
    if form == "svg":
        texts = "".join(ET.fromstring(data).itertext())
        assert "induction L1H1 at half" in texts
        assert b"<image" not in data


def test_a_table_has_all_numbers() -> None:
    """A line a step, a column a curve, nothing where there is no number."""
    lines = render_markdown([chart([0.25, np.nan], [0.5, 1.0], steps=(7, 9))]).splitlines()
    assert lines[2:6] == [
        "| steps | curve 0 | curve 1 |",
        "| --- | ---: | ---: |",
        "| 7 | 0.2500 | 0.5000 |",
        "| 9 |  | 1.0000 |",
    ]


# Of a training


def test_the_phase_change_is_told() -> None:
    """The first step at which the best induction head has half of its last score, and how long the rise takes."""
    drawable = make_learning_curves(make_history(), BLOCK)
    assert drawable.marks == (Mark(1200, "induction L1H1 at half"),)
    assert drawable.caption == (
        "induction: L1H1 is at half of its last score, 0.85, by step 1,200; from a tenth of it (step 1,100) "
        "to nine tenths (step 1,300) it takes 200 steps; chance is 0.03",
    )
    loss, scores = drawable.plots
    assert (loss.low, loss.high) == (3, 7)
    assert [curve.name for curve in scores.curves][::2] == ["induction L1H1", "previous-token L0H0"]


@pytest.mark.parametrize("score", [0.02, 0.3, None])
def test_no_phase_change_is_made_up(score: float | None) -> None:
    """A head below the threshold of ``attnviz heads`` is none, however much it rose, nor is one without a score."""
    drawable = make_learning_curves(make_history([0.001] * 5 + [score]), BLOCK)
    assert drawable.marks == ()
    assert drawable.caption[0].startswith("no induction head so far: the best, L")
    assert "0.32 would name one" in drawable.caption[0]
    assert make_learning_curves(make_history([0.001] * 5 + [0.33]), BLOCK).marks == (
        Mark(600, "induction L1H1 at half"),
    )


@pytest.mark.parametrize("block", [3, 25])
def test_chance_is_that_of_a_head_that_sees_all_alike(block: int) -> None:
    """The caption's chance is the role's own score of even causal weights."""
    even = float(measure_induction(spread_evenly(np.tri(2 * block + 1, dtype=bool)), block))
    assert f"chance is {even:.2f}" in make_learning_curves(make_history(), block).caption[0]


def test_the_second_stage_is_marked() -> None:
    """Where the vocabulary was widened, if the history tells it: those of before had no stages."""
    drawable = make_learning_curves(make_history(widened=15), BLOCK)
    assert drawable.marks[1] == Mark(1600, "whole vocabulary")
    assert "the whole vocabulary by step 1,600" in drawable.caption[1]
    old = [
        {name: value for name, value in one.items() if name != "stage"} for one in make_history()
    ]
    assert (
        make_learning_curves(old, BLOCK).marks == make_learning_curves(make_history(), BLOCK).marks
    )


def test_a_run_is_drawn_again(call: Run, tmp_path: Path) -> None:
    """On the screen, and into a file of each format by its suffix, from the folder or the file of its history."""
    plant_training_run(tmp_path / "my-model")
    assert "● induction L1H1 0.85" in call("train", "--curves", "my-model").stdout
    for form in ("png", "svg", "pdf", "json", "csv", "md"):
        style = ["--style", "paper"] if form in FIGURE_FORMATS else []
        done = call("train", "--curves", "my-model/history.json", "-o", f"curves.{form}", *style)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"wrote curves.{form}\n")
    assert json.loads((tmp_path / "curves.json").read_text())["history"] == make_history()
    table = (tmp_path / "curves.csv").read_text().splitlines()
    assert table[:2] == ["step,loss,role,layer,head,score", "100,7.0,induction,0,0,0.02"]
    assert len(table) == 1 + 20 * 8
    done = call("train", "--curves", "my-model", "-o", "curves.svg")
    assert (done.returncode, "--force" in done.stderr) == (5, True)


HOSTILE = "</svg>\x1b[31m\u202e"


def test_what_cannot_be_drawn_again(call: Run, tmp_path: Path) -> None:
    """No run, no history, a damaged or an empty one, a format or an option without use: one line each."""
    good = make_history()
    plant_training_run(tmp_path / "my-model")
    plant_training_run(tmp_path / "empty", history=[])
    for i, damaged in enumerate(
        [
            {"history": {}},
            {"history": [1]},
            {"block": 0},
            {"block": "25"},
            {"block": 10**12},
            {"history": [good[1], good[0]]},
            {"history": [{**good[0], "step": "1"}]},
            {"history": [{**good[0], "loss": "much"}]},
            {"history": [{**good[0], "loss": 1e300}]},
            {"history": [{**good[0], "scores": []}]},
            {"history": [{**good[0], "scores": {"induction": [[0.1], []]}}]},
            {"history": [{**good[0], "scores": {"induction": [[]]}}]},
        ]
    ):
        plant_training_run(tmp_path / f"damaged{i}", **damaged)
        done = call("train", "--curves", f"damaged{i}")
        assert (done.returncode, done.stderr.count("\n")) == (4, 1), damaged
    for args, code, told in (
        (["--curves", "none"], 4, "name the folder of a run"),
        (["--curves", "empty"], 4, "nothing was measured yet"),
        (["--curves", "my-model", "-o", "x.npz"], 2, ".png, .svg, .pdf, .html, .json, .csv, .md"),
        (["--curves", "my-model", "--steps", "3"], 2, "--steps has no effect with --curves"),
        (["some.txt", "--curves", "my-model"], 2, "a corpus has no effect with --curves"),
        (["some.txt", "-o", "x", "--style", "paper"], 2, "--style is for figures of --curves"),
        (
            ["--curves", "my-model", "-o", "x.md", "--style", "paper"],
            2,
            "--style is for figures of --curves",
        ),
        ([], 2, "--curves RUN"),
    ):
        done = call("train", *args)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (code, 1, ""), done.stderr
        assert told in done.stderr
    plant_training_run(tmp_path / "hostile", history=[{**good[0], "scores": {HOSTILE: [[0.5]]}}])
    done = call("train", "--curves", "hostile")
    assert done.returncode == 0
    assert not {"\x1b", "\u202e"} & {*done.stdout}


def test_drawing_again_needs_no_torch(tmp_path: Path) -> None:
    """A run is drawn from its history alone, on a screen without matplotlib too."""
    plant_training_run(tmp_path / "run")
    assert not list_loaded_packages("train", "--curves", str(tmp_path / "run")) & {
        "torch",
        "transformers",
        "matplotlib",
    }


def test_a_run_is_read_in_python(tmp_path: Path) -> None:
    """The result has all measurements, a row a score, and the curves."""
    plant_training_run(tmp_path / "run")
    result = read_training(tmp_path / "run")
    assert result.to_dict() == {"block": BLOCK, "history": make_history()}
    assert result.rows()[0] == {
        "step": 100,
        "loss": 7.0,
        "role": "induction",
        "layer": 0,
        "head": 0,
        "score": 0.02,
    }
    assert len(result.rows()) == 20 * 8
    (curves,) = result.tables()
    assert isinstance(curves, Curves)
    assert len(curves.steps) == 20
