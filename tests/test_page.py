"""The page: what its bytes are, and what a reader can do with it in a browser, by real clicks and keys."""

import base64
import csv
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape as escaped
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import attnviz
from attnviz.analysis.words import convert_to_words
from attnviz.drawable import Axis, Grid, Heatmap, Page, Scale, Section
from attnviz.record import Capture
from attnviz.render.colour import MAPS, make_palette
from attnviz.render.html.page import PAGE_COLOURS, WeightCoding, render_page
from attnviz.views import Look, Panel, make_capture_page
from tests.captures import make_capture, make_tokens
from tests.conftest import ROOT, SENTENCE, Tiny

HOSTILE = (
    "</script><img src=x onerror=hacked=1>",
    "<!--",
    "]]>",
    "\u202ebidi",
    "\x1b[31mred",
    "a\0b",
    "&lt;",
    "x" * 10_000,
)
FORMULAS = ("=1+1", "+1", "-1", "@x", 'say "a, b"', "plain", "l\nm")
WORDS = ("The", "old", "woman", "opened", "window", "and", "looked", "at", "sea")


def capture_words(
    words: Sequence[str],
    layers: int = 2,
    heads: int = 2,
    *,
    causal: bool = True,
    sink: bool = False,
    seed: int = 0,
) -> Capture:
    """A capture of words with random weights, a sink or none."""
    n, random = len(words), np.random.default_rng(seed)
    visible = np.tri(n, dtype=bool) if causal else np.ones((n, n), bool)
    weights = random.random((layers, heads, n, n), np.float32) ** 4 * visible
    weights[..., 0] += 20.0 * sink
    weights /= weights.sum(-1, keepdims=True)
    return make_capture(weights, make_tokens(words), visible, measured=True)


def weights_of(capture: Capture, layer: int, head: int, part: int = 0) -> np.ndarray:
    """The weights of a head, NaN where masked."""
    found = capture.maps[part]
    return np.where(found.visible[layer, head], found.weights[layer, head], np.nan)


def decoded(codes: np.ndarray, coding: WeightCoding) -> np.ndarray:
    """The weights that codes stand for, as the page reads them."""
    if coding.exact:
        return coding.full * (codes - 1).astype(np.uint16).view(np.float16).astype(np.float64)
    return coding.full * ((codes - 1.0) / 254) ** 2


class Elements(HTMLParser):
    """The elements of a page: (name, attributes, text), as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        """Note the text of scripts and styles, which hold no elements."""
        if self.cdata_elem:
            tag, attrs, text = self.found[-1]
            self.found[-1] = tag, attrs, text + data


# The bytes


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.floats(1, 1e6, width=32), st.booleans())
def test_codes_are_near_the_weights_and_in_their_order(
    shares: list[float], full: float, exact: bool
) -> None:
    """Within 0.004 of the largest weight, 0.0005 with exact, and never in another order."""
    weights = np.sort(np.float32(shares)) * np.float32(full)
    coding = WeightCoding(full, exact)
    codes = coding.encode(weights)
    assert np.abs(decoded(codes, coding) - weights).max() <= (0.0005 if exact else 0.004) * full
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert codes.min() >= 1


def test_masked_cells_have_a_code_of_their_own() -> None:
    """A weight of 0 is code 1, a masked cell 0."""
    panel = Panel(np.float32([[0, 0]]), np.array([[True, False]]))
    assert (
        WeightCoding(1.0).encode_panel(panel).tolist()
        == WeightCoding(1.0, exact=True).encode_panel(panel).tolist()
        == [[1, 0]]
    )


@pytest.mark.parametrize("exact", [False, True])
def test_the_same_page_has_the_same_bytes(exact: bool) -> None:
    """Nothing of the time, the machine or chance."""
    assert render_page(make_capture_page(capture_words(WORDS)), exact=exact) == render_page(
        make_capture_page(capture_words(WORDS)), exact=exact
    )


def test_a_page_names_nothing_outside() -> None:
    """No address, and no element or rule that would load one."""
    text = render_page(make_capture_page(capture_words(WORDS))).decode()
    assert text.count("http") == text.count('http-equiv="Content-Security-Policy"') == 1
    assert not re.search(
        r"""["'(=]//|url\(|@import|\b(src|srcset|href|action|data)=|<(link|base|object|embed|iframe|form)\b""",
        text,
    )


def test_the_policy_allows_our_script_and_nothing_else() -> None:
    """Its hashes are those of the one script and the one style."""
    elements = Elements(render_page(make_capture_page(capture_words(WORDS))).decode()).found
    (policy,) = (
        attrs["content"] for tag, attrs, _ in elements if tag == "meta" and "http-equiv" in attrs
    )
    allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    for kind, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = (text for tag, attrs, text in elements if tag == kind and "type" not in attrs)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert allowed[rule] == f"'sha256-{digest}'"


def test_hostile_tokens_stay_text() -> None:
    """No token ends or begins an element; the page holds all of them, as long as they are."""
    plain, hostile = (
        render_page(make_capture_page(capture_words(words))).decode()
        for words in (WORDS[: len(HOSTILE)], HOSTILE)
    )
    names = [
        [(tag, sorted(attrs)) for tag, attrs, _ in Elements(text).found]
        for text in (plain, hostile)
    ]
    assert names[0] == names[1]
    (metadata,) = (
        text for _, attrs, text in Elements(hostile).found if attrs.get("id") == "metadata"
    )
    labels = json.loads(metadata)["axes"][0]["labels"]
    assert labels[0] == HOSTILE[0].replace(" ", "␣")
    assert labels[3:6] == ["\\u202ebidi", "\\x1b[31mred", "a\\x00b"]
    assert len(labels[7]) == 10_000
    assert not re.search(r"<|\u2028|\u2029", metadata)


@pytest.mark.parametrize(("exact", "most"), [(False, 1.0), (True, 3.0)])
def test_weights_take_little_room(exact: bool, most: float) -> None:
    """At most a byte a weight that is not masked, three with exact, over the page itself."""
    text = (ROOT / "sample_texts" / "paragraph.txt").read_text()
    capture = attnviz.capture(text)
    found = len(render_page(make_capture_page(capture), exact=exact)) - len(
        render_page(make_capture_page(capture_words(["a"], 1, 1)))
    )
    assert found < most * capture.maps[0].visible.sum() + 60_000


# In a browser

# The middle of every row and every column that the tip names, along two lines that cross in the picture.
LOCATE = """(picture, [x, y]) => {
  const tip = document.getElementById("tip"), far = Math.max(innerWidth, innerHeight), found = {};
  for (const [side, end] of [["rows", 0], ["columns", 1]]) {
    const met = new Map();
    for (let at = 0; at < far; at += 12) {
      const [clientX, clientY] = end ? [at, y] : [x, at];
      picture.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
      if (tip.hidden) continue;
      const number = /.*\\((\\d+)/.exec(tip.children[end].textContent)[1];
      met.set(number, [...(met.get(number) ?? []), at]);
    }
    found[side] = Array.from(met.values(), (places) => (places[0] + places.at(-1)) / 2);
  }
  return found;
}"""


# The page writes its address 250 ms after a choice; a timer of the same length that is set later ends later.
ADDRESS_IS_WRITTEN = "new Promise((done) => setTimeout(done, 250))"


class Reader(NamedTuple):
    """Someone who opens pages, and looks at one of them."""

    open: Callable[..., "Reader"]
    page: Any

    def text(self, name: str) -> str:
        """What an element says."""
        return self.page.locator(name).inner_text()

    def press(self, *keys: str) -> None:
        """Type keys, and wait until what they do is painted."""
        for key in keys:
            self.page.keyboard.press(key)
            self.settle()

    def settle(self) -> None:
        """Wait for reading and painting that is under way."""
        self.page.evaluate(
            "() => new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(done)), 20))"
        )

    def pixels(self, name: str) -> np.ndarray:
        """The pixels of a canvas (row, column, 4)."""
        data = self.page.locator(name).evaluate("(canvas) => canvas.toDataURL('image/png')")
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGBA")
        )

    def token(self, place: int, side: str = "rows") -> Any:
        """A token of the text."""
        return self.page.locator(f"#{side} [data-cell='{place}']")

    def backgrounds(self, side: str = "rows") -> list[tuple[int, ...]]:
        """The colours behind the tokens, as red, green and blue; empty where there is none."""
        found = self.page.locator(f"#{side} [data-cell]").evaluate_all(
            "(all) => all.map((one) => one.style.backgroundColor)"
        )
        return [tuple(map(int, re.findall(r"\d+", colour))) for colour in found]

    def locked(self) -> list[str]:
        """The tokens that are locked."""
        return self.page.locator("[data-cell][aria-pressed=true]").all_inner_texts()

    def place(self, row: int, column: int) -> tuple[float, float]:
        """Where a cell of the picture is in the window, as the page itself tells of what is under the pointer."""
        box = self.page.locator("#cells").bounding_box()
        found = self.page.locator("#picture").evaluate(
            LOCATE, [box["x"] + box["width"] / 4, box["y"] + box["height"] / 2]
        )
        self.page.mouse.move(2, 2)
        return found["columns"][column], found["rows"][row]

    def point(self, row: int, column: int) -> None:
        """Point at a cell."""
        self.page.mouse.move(*self.place(row, column))
        self.settle()

    def pixel(self, row: int, column: int) -> np.ndarray:
        """What is painted at a cell: red, green, blue, alpha."""
        (x, y), box = self.place(row, column), self.page.locator("#cells").bounding_box()
        return self.pixels("#cells")[int(y - box["y"]), int(x - box["x"])]

    def download(self, name: str) -> tuple[str, bytes]:
        """What a button gives: the name of the file, and what is in it."""
        with self.page.expect_download() as found:
            self.page.locator(name).click()
        return found.value.suggested_filename, Path(found.value.path()).read_bytes()

    def table(self) -> list[dict[str, str]]:
        """The rows of the CSV file."""
        return list(csv.DictReader(io.StringIO(self.download("#csv")[1].decode(), newline="")))

    def fragment(self) -> str:
        """What the address says, once it is written."""
        return self.page.evaluate(f"{ADDRESS_IS_WRITTEN}.then(() => location.hash)")


@pytest.fixture
def reader(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """Opens a capture as a page. Whatever it does, it asks for nothing but its file, and has nothing to complain of."""
    contexts, complaints, files = [], [], []

    def open_(
        shown: Capture | bytes,
        fragment: str = "",
        size: tuple[int, int] = (1300, 1000),
        **options: Any,
    ) -> Reader:
        data = shown if isinstance(shown, bytes) else render_page(make_capture_page(shown))
        files.append(tmp_path / f"{len(files)}.html")
        files[-1].write_bytes(data)
        contexts.append(
            chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        )
        tab = contexts[-1].new_page()
        tab.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on(
            "request",
            lambda request: complaints.append(request.url) if not is_ours(request.url) else None,
        )
        tab.goto(files[-1].as_uri() + fragment)
        tab.wait_for_selector("html[data-ready=true]", state="attached")
        found = Reader(open_, tab)
        found.settle()
        return found

    def is_ours(url: str) -> bool:
        return url.partition("#")[0] in [file.as_uri() for file in files] or url.startswith("blob:")

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def require_told(on: Reader, beginning: str, labels: Sequence[str], weights: np.ndarray) -> None:
    """The page names five tokens with the largest weights, by text and number, the largest first."""
    text = on.text("#told")
    assert text.startswith(beginning)
    named = re.findall(r"(\S+) \((\d+)\) ([\d.e-]+)", text.removeprefix(beginning))
    assert [label for label, _, _ in named] == [labels[int(number)] for _, number, _ in named]
    told = [float(weight) for _, _, weight in named]
    assert told == pytest.approx([weights[int(number)] for _, number, _ in named], abs=0.005)
    enough = np.sort(weights[weights >= 0.01])[::-1][:5]
    assert told[: len(enough)] == pytest.approx(list(enough), abs=0.005)


def steps(capture: Capture, layer: int, head: int, panel: Panel) -> np.ndarray:
    """The colours of weights on the scale of a head."""
    return (
        make_capture_page(capture)
        .sections[0]
        .heatmaps[layer][head]
        .scale.steps(panel, PAGE_COLOURS)
    )


@pytest.mark.browser
def test_a_head_is_chosen_by_click_and_by_arrows(reader: Callable[..., Reader]) -> None:
    """The title, the mark, the picture and the caption follow; at the edges arrows stay."""
    on = reader(capture_words(WORDS, 2, 3))
    assert on.text("#head-title") == "Layer 0, head 0"
    before = on.pixels("#cells")
    on.page.get_by_role("button", name="layer 1, head 1").click()
    on.settle()
    assert on.text("#head-title") == "Layer 1, head 1"
    assert on.page.locator("#heads [aria-current]").get_attribute("aria-label") == "layer 1, head 1"
    assert (on.pixels("#cells") != before).any()
    assert "toy · layer 1 · head 1" in on.text("#caption")
    for key, title in (
        ("Right", "1, head 2"),
        ("Right", "1, head 2"),
        ("Up", "0, head 2"),
        ("Left", "0, head 1"),
        ("Down", "1, head 1"),
    ):
        on.press(f"Arrow{key}")
        assert on.text("#head-title") == f"Layer {title}"


@pytest.mark.browser
@pytest.mark.parametrize(("exact", "off"), [(False, 0.004), (True, 0.0005)])
def test_the_table_of_a_head_holds_its_weights(
    reader: Callable[..., Reader], minilm: Path, exact: bool, off: float
) -> None:
    """Every weight of a whole head, within 0.004, or 0.0005 with exact, with the numbers and texts of its tokens."""
    capture = attnviz.capture(SENTENCE, model=str(minilm), layers="2", heads="3-5")
    on = reader(render_page(make_capture_page(capture), exact=exact), "#layer=2&head=4")
    rows, weights = on.table(), weights_of(capture, 0, 1)
    found = np.float64([row["weight"] for row in rows]).reshape(weights.shape)
    assert np.abs(found - weights).max() <= off
    tokens = [token.text for token in capture.maps[0].keys]
    assert (
        [row["key_token"] for row in rows[: len(tokens)]]
        == [row["query_token"] for row in rows[:: len(tokens)]]
        == tokens
    )
    assert {(row["layer"], row["head"]) for row in rows} == {("2", "4")}
    assert [row["query"] for row in rows[:: len(tokens)]] == [str(i) for i in range(len(tokens))]
    assert ("float16" if exact else "within 0.004") in on.text("footer")


@pytest.mark.browser
def test_masked_cells_are_not_in_the_table_and_not_painted(reader: Callable[..., Reader]) -> None:
    """A causal head has no rows for what lies ahead; nothing is painted there, and the page says what that means."""
    on = reader(capture_words(WORDS))
    places = [(int(row["query"]), int(row["key"])) for row in on.table()]
    assert places == [(i, j) for i in range(len(WORDS)) for j in range(i + 1)]
    for row, column, alpha in ((2, 5, 0), (5, 2, 255)):
        assert on.pixel(row, column)[3] == alpha
    on.point(2, 5)
    assert on.text("#tip").split("\n") == ["query woman (2)", "key and (5)", "masked"]


@pytest.mark.browser
def test_a_cell_tells_its_weight_and_has_its_colour(reader: Callable[..., Reader]) -> None:
    """Under the pointer, for the very query and key; the colour is that of every medium."""
    capture = capture_words(WORDS, causal=False)
    on, weights = reader(capture, "#layer=1&head=1"), weights_of(capture, 1, 1)
    colours = make_palette("viridis", PAGE_COLOURS)[
        steps(capture, 1, 1, capture_panel(capture, 1, 1))
    ]
    for row, column in ((0, 0), (3, 7), (8, 2)):
        on.point(row, column)
        query, key, weight = on.text("#tip").split("\n")
        assert (query, key) == (f"query {WORDS[row]} ({row})", f"key {WORDS[column]} ({column})")
        assert float(weight) == pytest.approx(weights[row, column], abs=0.005)
        assert np.abs(on.pixel(row, column).astype(int) - colours[row, column]).max() <= 6
    on.page.mouse.move(2, 2)
    assert on.page.locator("#tip").is_hidden()


def capture_panel(capture: Capture, layer: int, head: int) -> Panel:
    return Panel(capture.maps[0].weights[layer, head], capture.maps[0].visible[layer, head])


@pytest.mark.browser
def test_what_is_beyond_the_scale_has_its_colour_until_the_range_is_full(
    reader: Callable[..., Reader],
) -> None:
    """A sink is beyond the colours, in the picture and at the bar; with the full range it is the end of the scale."""
    on = reader(capture_words(WORDS, sink=True))
    assert (on.pixels("#cells")[..., :3] == MAPS["viridis"].beyond).all(-1).any()
    assert tuple(on.pixel(5, 0)[:3]) == MAPS["viridis"].beyond
    assert "beyond the colours" in on.text("#caption")
    on.page.get_by_text("full", exact=True).click()
    on.settle()
    assert not (on.pixels("#cells")[..., :3] == MAPS["viridis"].beyond).all(-1).any()
    assert tuple(on.pixel(5, 0)[:2]) > (200, 200)


@pytest.mark.browser
def test_scale_and_theme_change_what_is_painted(reader: Callable[..., Reader]) -> None:
    """The linear scale darkens small weights; the theme changes the ground, and auto is the reader's own."""
    on = reader(capture_words(WORDS), color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark, root, small = on.page.evaluate(ground), on.pixel(8, 0), on.pixels("#heads canvas")
    on.page.get_by_text("linear", exact=True).click()
    on.settle()
    assert on.pixel(8, 0).astype(int).sum() < root.astype(int).sum()
    assert (on.pixels("#heads canvas") != small).any()
    on.page.get_by_text("light", exact=True).click()
    on.settle()
    light = on.page.evaluate(ground)
    assert [max(map(int, re.findall(r"\d+", colour))) > 128 for colour in (dark, light)] == [
        False,
        True,
    ]
    on.page.emulate_media(color_scheme="light")
    on.page.get_by_text("dark", exact=True).click()
    assert on.page.evaluate(ground) == dark
    on.page.get_by_role("group", name="Theme").get_by_text("auto").click()
    assert on.page.evaluate(ground) == light


@pytest.mark.browser
def test_a_linear_look_and_another_colour_map_are_kept(reader: Callable[..., Reader]) -> None:
    """The page begins on the scale that was asked for, with the colours that were."""
    on = reader(
        render_page(make_capture_page(capture_words(WORDS), Look(linear=True)), colours="magma")
    )
    assert on.page.locator("[name=scale][value=linear]").is_checked()
    assert tuple(on.pixel(0, 0)[:3]) == tuple(
        make_palette("magma", PAGE_COLOURS)[PAGE_COLOURS - 1, :3]
    )
    assert on.fragment() == ""


# The text


@pytest.mark.browser
def test_a_token_shows_what_it_attends_to(reader: Callable[..., Reader]) -> None:
    """Pointing colours the text by its row, and names the strongest keys; the masked ones are faint, not coloured."""
    capture = capture_words(WORDS)
    on, weights = reader(capture, "#layer=1&head=0"), weights_of(capture, 1, 0)
    assert set(on.backgrounds()) == {()}
    on.token(5).hover()
    require_told(on, "and (5) attends to", WORDS, weights[5])
    shades = make_palette("viridis", PAGE_COLOURS)[
        steps(capture, 1, 0, capture_panel(capture, 1, 0))
    ][5]
    for colour, shade, weight in zip(on.backgrounds(), shades, weights[5], strict=True):
        plain = np.isnan(weight) or weight < 0.009 * np.nanmax(weights)
        assert (
            (colour == ())
            if plain
            else np.abs(np.subtract(colour, shade[:3].astype(int))).max() <= 6
        )
    faint = on.page.locator("#rows .masked").all_inner_texts()
    assert faint == list(WORDS[6:])
    on.page.mouse.move(2, 2)
    assert set(on.backgrounds()) == {()}


@pytest.mark.browser
def test_a_token_shows_what_attends_to_it(reader: Callable[..., Reader]) -> None:
    """Turned round, a token stands for its column; t turns back."""
    capture = capture_words(WORDS)
    on, weights = reader(capture), weights_of(capture, 0, 0)
    on.page.get_by_text("is attended by").click()
    on.token(3).hover()
    require_told(on, "opened (3) is attended by", WORDS, weights[:, 3])
    assert on.page.locator("#rows .masked").all_inner_texts() == list(WORDS[:3])
    on.press("t")
    require_told(on, "opened (3) attends to", WORDS, weights[3])


@pytest.mark.browser
def test_a_click_locks_a_token(reader: Callable[..., Reader]) -> None:
    """Until it is clicked again or Escape is typed; beside it another token tells the weight between the two."""
    capture = capture_words(WORDS)
    on, weights = reader(capture), weights_of(capture, 0, 0)
    on.token(6).click()
    on.page.mouse.move(2, 2)
    on.settle()
    assert on.locked() == ["looked"]
    assert on.text("#told").startswith("looked (6) attends to")
    assert (
        on.page.locator("#status")
        .text_content()
        .startswith("layer 0, head 0. looked (6) attends to")
    )
    on.token(2).hover()
    found = re.match(r"looked \(6\) attends to woman \(2\): ([\d.e-]+); most to ", on.text("#told"))
    assert found
    assert float(found[1]) == pytest.approx(weights[6, 2], abs=0.005)
    on.token(6).click()
    on.settle()
    assert on.locked() == []
    on.token(6).click()
    on.press("Escape")
    assert on.locked() == []


@pytest.mark.browser
def test_a_click_in_the_picture_locks_the_row_or_what_a_label_names(
    reader: Callable[..., Reader],
) -> None:
    """A cell its query, the label of a column its key."""
    on = reader(capture_words(WORDS))
    on.page.mouse.click(*on.place(4, 1))
    on.settle()
    assert on.text("#told").startswith("window (4) attends to")
    x, y = on.place(0, 7)
    on.page.mouse.click(x + 4, y - 34)
    on.settle()
    assert on.text("#told").startswith("at (7) is attended by")
    assert on.page.locator("[name=direction][value=by]").is_checked()


@pytest.mark.browser
def test_a_finger_gets_what_a_pointer_gets(reader: Callable[..., Reader]) -> None:
    """A tap on a cell locks its query and tells its weight; a tap on a token locks it."""
    on = reader(capture_words(WORDS), size=(400, 800), has_touch=True, is_mobile=True)
    on.page.locator("#picture").scroll_into_view_if_needed()
    on.page.touchscreen.tap(*on.place(6, 2))
    on.settle()
    assert on.locked() == ["looked"]
    assert on.text("#tip").startswith("query looked (6)\nkey woman (2)\n0.")
    on.token(3).tap()
    on.settle()
    assert on.locked() == ["opened"]


@pytest.mark.browser
def test_keys_lock_the_next_token_and_the_one_before(reader: Callable[..., Reader]) -> None:
    """] and j go on, [ and k go back, and stop at the ends."""
    on = reader(capture_words(WORDS))
    for keys, token in (("]", "The"), ("jj", "woman"), ("k", "old"), ("[[[", "The")):
        on.press(*keys)
        assert on.locked() == [token]


@pytest.mark.browser
def test_a_token_is_found_by_its_text_or_number(reader: Callable[..., Reader]) -> None:
    """Enter locks the next match, again and again; Escape leaves the box, and then unlocks."""
    on = reader(capture_words(("the", "cat", "and", "The", "dog", "7", "x")))
    on.press("/")
    for typed, expected in (
        ("THE", ["the", "The", "the"]),
        ("5", ["7"]),
        ("d", ["and", "dog"]),
        ("7", ["7"]),
    ):
        on.page.keyboard.type(typed)
        for token in expected:
            on.press("Enter")
            assert on.locked() == [token], typed
        on.page.locator("#find").fill("")
    on.page.keyboard.type("nowhere")
    on.press("Enter")
    assert on.text("#found") == "none"
    on.press("Escape")
    assert on.locked() == ["7"]
    on.press("Escape")
    assert on.locked() == []


@pytest.mark.browser
def test_the_text_is_read_and_locked_by_keys(reader: Callable[..., Reader]) -> None:
    """Arrows in the text go from token to token, and not from head to head; Enter locks."""
    on = reader(capture_words(WORDS))
    on.token(0).focus()
    on.press("ArrowRight", "ArrowRight")
    assert on.text("#told").startswith("woman (2) attends to")
    on.press("Enter", "ArrowLeft")
    assert on.locked() == ["woman"]
    assert on.page.locator("#status").text_content().startswith("woman (2) attends to old (1): 0.")
    on.press("End")
    assert on.page.evaluate("document.activeElement.textContent") == "sea"
    assert on.text("#head-title") == "Layer 0, head 0"


@pytest.mark.browser
def test_white_space_stands_where_it_stood(reader: Callable[..., Reader]) -> None:
    """Tokens without white space between them run together, as in the text."""
    capture = capture_words(("un", "believ", "able"))
    tokens = tuple(
        token._replace(start=3 * i, end=3 * i + 3) for i, token in enumerate(capture.maps[0].keys)
    )
    on = reader(replace(capture, maps=(replace(capture.maps[0], queries=tokens, keys=tokens),)))
    assert on.text("#rows") == "unbelievable"


# Lines


@pytest.mark.browser
def test_lines_of_several_heads_are_told_apart(reader: Callable[..., Reader]) -> None:
    """The key m keeps those of the head that is shown, shift and a click those of another; each has its colour."""
    on = reader(capture_words(WORDS))
    assert on.text("#legend").split() == ["L0H0"]
    assert near(on.pixels("#scroll canvas"), legend_colours(on)[0])
    on.press("m", "ArrowRight")
    on.page.get_by_role("button", name="layer 1, head 1").click(modifiers=["Shift"])
    on.settle()
    assert on.text("#head-title") == "Layer 0, head 1"
    assert re.findall(r"L\dH\d", on.text("#legend")) == ["L0H1", "L0H0", "L1H1"]
    colours, pixels = legend_colours(on), on.pixels("#scroll canvas")
    assert len(set(colours)) == 3
    assert all(near(pixels, colour) for colour in colours)
    on.page.get_by_role("button", name="drop the lines of layer 1, head 1").click()
    on.settle()
    assert re.findall(r"L\dH\d", on.text("#legend")) == ["L0H1", "L0H0"]


def legend_colours(on: Reader) -> list[tuple[int, ...]]:
    found = on.page.locator("#legend i").evaluate_all(
        "(all) => all.map((one) => one.style.backgroundColor)"
    )
    return [tuple(map(int, re.findall(r"\d+", colour))) for colour in found]


def near(pixels: np.ndarray, colour: tuple[int, ...]) -> bool:
    """Whether a colour is among pixels, in any opacity."""
    seen = pixels[pixels[..., 3] > 60][:, :3].astype(int)
    return bool((np.abs(seen - colour).max(1) <= 3).any())


@pytest.mark.browser
def test_a_locked_token_has_its_lines_alone(reader: Callable[..., Reader]) -> None:
    """One query has fewer lines than all; a click on a token of the lines locks it."""
    on = reader(capture_words(WORDS))
    every = (on.pixels("#scroll canvas")[..., 3] > 0).sum()
    box = on.page.locator("#scroll").bounding_box()
    on.page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 20 * 2.5)
    on.page.mouse.move(2, 2)
    on.settle()
    assert on.text("#told").startswith("woman (2) is attended by")
    assert (on.pixels("#scroll canvas")[..., 3] > 0).sum() < 0.8 * every
    assert "none below" in on.text("#threshold")


@pytest.mark.browser
def test_lines_of_a_long_text_are_drawn_where_one_looks(reader: Callable[..., Reader]) -> None:
    """The canvas is no higher than its window; scrolling shows other tokens, locking scrolls to the token."""
    on = reader(capture_words([f"w{i}" for i in range(300)], 1, 1))
    above = on.pixels("#scroll canvas")
    assert above.shape[0] <= 1000
    on.page.locator("#scroll").evaluate("(box) => box.scrollTo(0, 1e6)")
    on.settle()
    assert (on.pixels("#scroll canvas") != above).any()
    on.page.locator("#find").fill("w7")
    on.press("Enter")
    seen = on.page.locator("#scroll").evaluate(
        "(box) => [box.scrollTop, box.scrollTop + box.clientHeight]"
    )
    assert seen[0] <= 7 * 20 < seen[1]


# The address


@pytest.mark.browser
def test_the_address_restores_what_was_chosen(reader: Callable[..., Reader]) -> None:
    """Layer, head, token, direction, scale, range, theme and kept heads; a plain look adds nothing."""
    capture = capture_words(WORDS, sink=True)
    on = reader(capture)
    assert on.fragment() == ""
    on.press("m", "ArrowDown", "ArrowRight", "j", "j", "t")
    for choice in ("linear", "full", "dark"):
        on.page.get_by_text(choice, exact=True).click()
    fragment = on.fragment()
    again = reader(capture, fragment)
    assert again.text("#head-title") == "Layer 1, head 1"
    assert again.locked() == ["old"]
    assert again.text("#told") == on.text("#told")
    assert re.findall(r"L\dH\d", again.text("#legend")) == ["L1H1", "L0H0"]
    for name in ("#cells", "#scroll canvas", "#heads canvas"):
        assert (again.pixels(name) == on.pixels(name)).all()
    assert again.fragment() == fragment
    again.page.evaluate("location.hash = '#layer=0&head=1&token=4'")
    again.settle()
    assert (again.text("#head-title"), again.locked()) == ("Layer 0, head 1", ["window"])


@pytest.mark.browser
@pytest.mark.parametrize(
    "fragment",
    [
        "#",
        "#layer=99&head=-1",
        "#layer=1e1&head=__proto__&token=constructor",
        "#token=1e9&line=9.9&line=x&line=..&line=0&line=0.0.0&line=__proto__&direction=up",
        "#map=cross-attention&theme=%3Cimg%20src=x%20onerror=alert(1)%3E&scale[]=linear",
        "#%E0%A4%A&&==&layer",
        "#" + "a=1&" * 5000,
    ],
)
def test_a_broken_address_is_ignored(fragment: str, reader: Callable[..., Reader]) -> None:
    """What it names that is not there is as if it were not said."""
    on = reader(capture_words(WORDS), fragment)
    assert (on.text("#head-title"), on.locked()) == ("Layer 0, head 0", [])
    assert on.text("#legend").split() == ["L0H0"]
    on.press("ArrowRight")
    assert on.text("#head-title") == "Layer 0, head 1"


# Downloads


@pytest.mark.browser
def test_no_spreadsheet_takes_a_token_for_a_formula(reader: Callable[..., Reader]) -> None:
    """A field that begins like one has an apostrophe before it; quotes, commas and lines stay in their field."""
    on = reader(capture_words(FORMULAS, 1, 1))
    name, data = on.download("#csv")
    assert name == "self-attention-L0H0.csv"
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert rows[0] == ["layer", "head", "query", "query_token", "key", "key_token", "weight"]
    assert {len(row) for row in rows} == {7}
    queries = list(dict.fromkeys(row[3] for row in rows[1:]))
    assert queries == ["'=1+1", "'+1", "'-1", "'@x", 'say␣"a,␣b"', "plain", "l⏎m"]
    assert not any(field[0] in "=+-@\t\r" for row in rows for field in row)


@pytest.mark.browser
def test_the_picture_holds_the_head_and_its_words(reader: Callable[..., Reader]) -> None:
    """A PNG file with the colours of the head, opaque, on the ground of the theme."""
    on = reader(capture_words(WORDS, sink=True), "#layer=1&theme=dark")
    name, data = on.download("#png")
    assert name == "self-attention-L1H0.png"
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert (picture[..., 3] == 255).all()
    colours = {tuple(colour) for colour in picture[..., :3].reshape(-1, 3)}
    assert MAPS["viridis"].beyond in colours
    assert (
        len(colours & {tuple(colour[:3]) for colour in make_palette("viridis", PAGE_COLOURS)}) > 20
    )
    assert picture[0, 0, :3].max() < 64
    assert min(picture.shape[:2]) > 600


# Kinds of captures


@pytest.mark.browser
def test_cross_attention_has_two_texts(tiny: Tiny, reader: Callable[..., Reader]) -> None:
    """A map of its own to choose; tokens of one text colour the other."""
    capture = attnviz.capture("The cat sat.", model=str(tiny("bart")), target="A dog ran home.")
    on, cross = reader(capture), capture.maps[2]
    assert on.page.locator("#map option").all_inner_texts() == [
        "encoder",
        "decoder",
        "cross-attention",
    ]
    assert on.page.locator("#columns").is_hidden()
    on.page.locator("#map").select_option("cross-attention")
    on.settle()
    queries, keys = ([token.text for token in tokens] for tokens in (cross.queries, cross.keys))
    assert [
        on.page.locator(f"#{side} [data-cell]").all_inner_texts() for side in ("rows", "columns")
    ] == [
        queries,
        keys,
    ]
    weights = weights_of(capture, 0, 0, 2)
    on.token(1).hover()
    require_told(on, f"{queries[1]} (1) attends to", keys, weights[1])
    assert set(on.backgrounds("rows")) == {()} != set(on.backgrounds("columns"))
    on.token(2, "columns").click()
    on.settle()
    require_told(on, f"{keys[2]} (2) is attended by", queries, weights[:, 2])
    assert "map=cross-attention" in on.fragment()
    assert len(on.table()) == len(queries) * len(keys)


@pytest.mark.browser
def test_a_pair_is_one_text(minilm: Path, reader: Callable[..., Reader]) -> None:
    """Both segments and the special tokens between them, in order."""
    on = reader(attnviz.capture("He sat.", model=str(minilm), pair="Who sat?", layers="0"))
    assert on.text("#rows") == "[CLS] He sat. [SEP] Who sat? [SEP]"
    assert on.page.locator("#columns").is_hidden()


@pytest.mark.browser
def test_a_long_text_is_shown_in_tiles(reader: Callable[..., Reader]) -> None:
    """A token stands for its tile, which the page says; ranges stand where numbers would."""
    text = (ROOT / "sample_texts" / "paragraph.txt").read_text()
    capture = attnviz.capture(text, keep="tiles", tiles=16, layers="1", heads="0-1")
    (part,) = capture.maps
    size, tiles = part.tiles.height, part.tiles.max
    on = reader(capture)
    assert on.page.locator("#rows [data-cell]").count() == tiles.shape[-1] == 16
    assert f"tile of {size} tokens" in on.text("#told")
    assert f"{size} x {size} tokens" in on.text("#caption")
    written = capture.text[part.keys[3 * size].start : part.keys[4 * size - 1].end]
    assert on.token(3).inner_text() == " ".join(written.split())
    on.token(3).hover()
    assert f"({3 * size}\u2013{4 * size - 1}) attends to" in on.text("#told")
    on.point(3, 1)
    assert f"({size}\u2013{2 * size - 1})" in on.text("#tip")
    assert float(on.text("#tip").split("\n")[-1]) == pytest.approx(tiles[0, 0, 3, 1], abs=0.005)
    row = on.table()[4]
    assert (row["query"], row["key"]) == (f"{2 * size}..{3 * size - 1}", f"{size}..{2 * size - 1}")
    on.page.locator("#find").fill(f"{5 * size + 1}")
    on.page.locator("#find").press("Enter")
    on.settle()
    assert on.page.locator("[aria-pressed=true]").get_attribute("data-cell") == "5"


@pytest.mark.browser
def test_one_token_and_one_head_are_a_page(reader: Callable[..., Reader]) -> None:
    """The least there can be; arrows have nowhere to go, and locking works."""
    on = reader(attnviz.capture("x", layers="1", heads="2"))
    on.press("ArrowRight", "ArrowDown", "j")
    assert on.text("#head-title") == "Layer 1, head 2"
    assert len(on.locked()) == 1
    alone = reader(capture_words(["a"], 1, 1))
    assert float(alone.table()[0]["weight"]) == 1
    assert alone.page.locator("#heads button").count() == 1


@pytest.mark.browser
def test_heads_may_be_missing_and_differ_in_size(reader: Callable[..., Reader]) -> None:
    """Arrows go past what is not there; text, picture and lines are those of each head."""
    (wide,), (narrow,) = (
        capture_words(WORDS, 1, 3).maps,
        capture_words(WORDS[:4], 1, 1, seed=1).maps,
    )
    low = tuple(replace(narrow, layers=(1,), heads=(head,)) for head in (0, 2))
    on = reader(Capture("toy", "", (wide, *low)), "#layer=0&head=2&token=8&line=0.0")
    assert on.page.locator("#heads button").count() == 5
    assert on.locked() == ["sea"]
    on.press("Escape")
    on.token(7).hover()
    on.press("ArrowDown")
    assert (on.text("#head-title"), on.text("#rows")) == ("Layer 1, head 2", "The old woman opened")
    assert "undefined" not in on.text("#told")
    assert on.text("#legend").splitlines()[-1].startswith("L0H0 (other tokens)")
    on.press("ArrowLeft")
    assert on.text("#head-title") == "Layer 1, head 0"
    on.press("ArrowUp", "ArrowRight", "ArrowDown")
    assert on.text("#head-title") == "Layer 0, head 1"


@pytest.mark.browser
def test_a_reduction_over_heads_has_its_name(reader: Callable[..., Reader]) -> None:
    """One head a layer, the mean."""
    capture = capture_words(WORDS)
    on = reader(replace(capture, maps=(capture.maps[0].reduced("mean"),)))
    assert on.text("#head-title") == "Layer 0, mean over heads"
    assert on.text("#legend").strip() == "L0 mean"
    on.press("ArrowDown")
    assert "head=mean" in on.fragment()


@pytest.mark.browser
@pytest.mark.parametrize("exact", [False, True])
def test_given_weights_may_be_above_one(exact: bool, reader: Callable[..., Reader]) -> None:
    """They are told as they are, and the page says how near."""
    capture = capture_words(WORDS)
    given_ = replace(
        capture.maps[0], weights=capture.maps[0].weights * 50, method="given", statistics=None
    )
    on = reader(render_page(make_capture_page(replace(capture, maps=(given_,))), exact=exact))
    found = np.float64([row["weight"] for row in on.table()])
    weights = given_.weights[0, 0][np.tri(len(WORDS), dtype=bool)]
    assert np.abs(found - weights).max() <= 50 * (0.0005 if exact else 0.004)
    assert exact or "within 0.2 of" in on.text("footer")


@pytest.mark.browser
def test_hostile_tokens_are_shown_and_not_obeyed(reader: Callable[..., Reader]) -> None:
    """In the text, the tips, the lines and the files; no script of theirs runs, no element of theirs is there."""
    on = reader(capture_words(HOSTILE, 1, 1))
    assert on.token(0).inner_text() == HOSTILE[0].replace(" ", "␣")
    for place in range(len(HOSTILE)):
        on.token(place).click()
    assert on.locked() == ["x" * 10_000]
    on.point(7, 0)
    assert on.text("#tip").startswith("query xxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxx (7)")
    assert on.page.evaluate("[typeof hacked, document.querySelectorAll('img').length]") == [
        "undefined",
        0,
    ]
    for name in ("html", "#rows", "#caption", "#told"):
        assert on.page.locator(name).evaluate("(box) => box.scrollWidth <= box.clientWidth"), name
    assert on.table()[0]["query_token"] == HOSTILE[0].replace(" ", "␣")
    on.download("#png")


# The page as a whole


@pytest.mark.browser
def test_a_notebook_can_frame_it(reader: Callable[..., Reader]) -> None:
    """In a sandboxed frame without an address of its own it works as elsewhere."""
    source = escaped(render_page(make_capture_page(capture_words(WORDS))).decode())
    frame = f'<!doctype html><iframe srcdoc="{source}" sandbox="allow-scripts allow-downloads" height="760" width="900">'
    ready = '</iframe><script>document.documentElement.dataset.ready = "true"</script>'
    on = reader((frame + ready).encode())
    inside = on.page.frame_locator("iframe")
    inside.locator("html[data-ready=true]").wait_for(state="attached")
    inside.locator("#rows [data-cell='3']").click()
    on.press("ArrowDown", "Escape", "]")
    inside.get_by_role("button", name="layer 1, head 1").click()
    inside.locator("html").evaluate(f"() => {ADDRESS_IS_WRITTEN}")
    assert inside.locator("#head-title").inner_text() == "Layer 1, head 1"
    assert inside.locator("[aria-pressed=true]").inner_text() == "The"


# What is in focus, by a name, and how its outline is drawn; that of a radio button is around its label.
FOCUSED = """() => {
  const at = document.activeElement, seen = at.type === "radio" ? at.nextElementSibling : at;
  return [at.id || at.name || at.ariaLabel || at.textContent, getComputedStyle(seen).outlineStyle];
}"""


@pytest.mark.browser
def test_all_of_it_is_reached_by_the_keyboard(reader: Callable[..., Reader]) -> None:
    """Tab comes by everything, and where it is can be seen; arrows belong to what is in focus."""
    on = reader(capture_words(WORDS))
    met = {}
    for _ in range(22):
        on.page.keyboard.press("Tab")
        name, outline = on.page.evaluate(FOCUSED)
        met[name] = outline
    for name in (
        "scale",
        "range",
        "theme",
        "find",
        "png",
        "csv",
        "help",
        "layer 0, head 0",
        "keep",
        "scroll",
        "direction",
        "The",
    ):
        assert met.get(name) == "solid", name
    assert met["How to read this page"] != "none"
    on.page.get_by_role("button", name="layer 0, head 0").focus()
    on.press("ArrowRight")
    assert on.page.evaluate("document.activeElement.ariaLabel") == "layer 0, head 1"
    on.page.locator("#scroll").focus()
    on.press("ArrowDown")
    on.page.locator("[name=scale]:checked").focus()
    on.press("ArrowRight")
    assert on.page.locator("[name=scale][value=linear]").is_checked()
    assert on.text("#head-title") == "Layer 0, head 1"


@pytest.mark.browser
def test_it_says_what_it_is_to_those_who_do_not_see_it(reader: Callable[..., Reader]) -> None:
    """Names and roles of what there is, and a live region for what changes."""
    on = reader(capture_words(WORDS))
    tree = on.page.locator("body").aria_snapshot()
    for part in (
        'button "layer 0, head 0"',
        'group "Scale"',
        'radio "attends to" [checked]',
        'searchbox "Find"',
        'img "toy · layer 0 · head 0; rows are queries, columns are keys"',
        'group "Tokens"',
        'button "woman"',
        "status: layer 0, head 0.",
        'group "Queries on the left, keys on the right"',
    ):
        assert part in tree
    on.press("ArrowDown", "j")
    assert (
        on.page.locator("#status").text_content().startswith("layer 1, head 0. The (0) attends to")
    )


@pytest.mark.browser
def test_all_keys_are_listed_on_demand(reader: Callable[..., Reader]) -> None:
    """? shows them and hides them, so does Escape, without unlocking."""
    on = reader(capture_words(WORDS), "#token=3")
    assert on.page.locator("#keys").is_hidden()
    on.press("?")
    assert "lock the previous, the next token" in on.text("#keys")
    on.press("Escape")
    assert on.page.locator("#keys").is_hidden()
    assert on.locked() == ["opened"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 400, 700, 3840])
def test_it_fits_the_screen(width: int, minilm: Path, reader: Callable[..., Reader]) -> None:
    """No page is wider than its window, and the picture is within it."""
    on = reader(attnviz.capture(SENTENCE, model=str(minilm)), "#token=3", (width, 800))
    on.press("?")
    assert on.page.evaluate("document.documentElement.scrollWidth") <= width
    box = on.page.locator("#cells").bounding_box()
    assert box["x"] + box["width"] <= width
    assert (on.pixels("#cells")[..., 3] == 255).sum() > 50 * 50


@pytest.mark.browser
def test_a_page_is_of_use_before_all_of_it_is_there(
    reader: Callable[..., Reader], chromium: Any
) -> None:
    """What comes first shows the first head; one that is still on its way is waited for, unless another is chosen."""
    data, more = render_page(make_capture_page(capture_words(WORDS, 3, 3))), threading.Event()
    cut = data.index(b'id="weights-0-2-1"') + 40  # in the midst of its codes

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Send the first part, and the rest when it is time."""
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(data[:cut])
            self.wfile.flush()
            more.wait(20)
            self.wfile.write(data[cut:])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = chromium.new_page()
    try:
        tab.goto(f"http://127.0.0.1:{server.server_port}/page.html", wait_until="commit")
        tab.wait_for_selector("html[data-ready=true]", state="attached")
        tab.keyboard.press("ArrowRight")
        on = Reader(reader, tab)
        on.settle()
        assert on.text("#head-title") == "Layer 0, head 1"
        tab.get_by_role("button", name="layer 2, head 1").click()
        on.settle()
        assert tab.locator("#head").get_attribute("aria-busy") == "true"
        tab.get_by_role("button", name="layer 0, head 2").click()
        on.settle()
        more.set()
        tab.wait_for_load_state("load")
        on.settle()
        assert "layer 0 · head 2" in on.text("#caption")
        tab.get_by_role("button", name="layer 2, head 1").click()
        on.settle()
        assert "layer 2 · head 1" in on.text("#caption")
    finally:
        more.set()
        tab.close()
        server.shutdown()
        server.server_close()


# Differences


def differing(seed: int = 0) -> Page:
    """A page of the differences between the heads of two captures."""
    one, other = (capture_words(WORDS, 2, 3, seed=seed + i) for i in range(2))
    found = make_capture_page(one)
    (section,) = found.sections
    values = one.maps[0].weights - other.maps[0].weights
    scale = Scale(float(np.abs(values).max()), float(np.abs(values).max()), signed=True)

    def differ(panel: Panel, layer: int, head: int) -> Panel:
        return panel._replace(values=values[layer, head])

    panels = tuple(
        tuple(differ(p, i, j) for j, p in enumerate(row))
        for i, row in enumerate(section.grid.panels)
    )
    heatmaps = tuple(
        tuple(
            replace(one, panel=panels[i][j], scale=scale, caption=()) for j, one in enumerate(row)
        )
        for i, row in enumerate(section.heatmaps)
    )
    grid = replace(section.grid, panels=panels, scale=scale, caption=())
    return replace(found, sections=(Section("difference", grid, heatmaps),))


def differences(shown: Page, layer: int, head: int) -> np.ndarray:
    """Those of a head, NaN where masked."""
    panel = shown.sections[0].heatmaps[layer][head].panel
    return np.where(panel.visible, panel.values, np.nan)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1),
    st.floats(0.015625, 100, width=32),
    st.booleans(),
)
def test_signed_codes_are_near_the_differences_and_in_their_order(
    shares: list[float], full: float, exact: bool
) -> None:
    """Within 0.008 of the largest, 0.0005 with exact, never in another order; the code of 0 is in the middle."""
    values = np.sort(np.float32(shares)) * np.float32(full)
    coding = WeightCoding(full, exact, signed=True)
    codes = coding.encode(np.clip(values, -full, full)).astype(int)
    far = codes - coding.zero
    size = np.abs(far).astype(np.uint16).view(np.float16) if exact else (np.abs(far) / 127) ** 2
    assert (
        np.abs(np.sign(far) * size.astype(float) * full - values).max()
        <= (0.0005 if exact else 0.008) * full
    )
    assert (np.diff(codes) >= 0).all()
    assert codes.min() >= 1
    assert int(coding.encode(0)) == coding.zero
    assert (
        int(coding.encode(full)) - coding.zero
        == coding.zero - int(coding.encode(-full))
        == coding.zero - 1
    )


@pytest.mark.browser
@pytest.mark.parametrize("exact", [False, True])
def test_a_signed_cell_tells_its_difference_and_has_its_colour(
    reader: Callable[..., Reader], exact: bool
) -> None:
    """Under the pointer with its sign; blue below zero and red above it, as in every medium; masked is not painted."""
    shown = differing()
    on, values = (
        reader(render_page(shown, exact=exact), "#layer=1&head=2"),
        differences(shown, 1, 2),
    )
    heatmap = shown.sections[0].heatmaps[1][2]
    colours = make_palette("viridis", PAGE_COLOURS, signed=True)[
        heatmap.scale.steps(heatmap.panel, PAGE_COLOURS)
    ]
    low, high = (
        np.unravel_index(find(values), values.shape) for find in (np.nanargmin, np.nanargmax)
    )
    for row, column in (low, high, (8, 2)):
        on.point(row, column)
        told = on.text("#tip").split("\n")[2]
        assert told[0] == ("-" if values[row, column] < 0 else "+")
        assert float(told) == pytest.approx(values[row, column], abs=0.0005 if exact else 0.008)
        assert np.abs(on.pixel(row, column).astype(int) - colours[row, column]).max() <= 6
    assert on.pixel(*low)[2] > on.pixel(*low)[0]
    assert on.pixel(*high)[2] < on.pixel(*high)[0]
    assert on.pixel(2, 5)[3] == 0
    assert ("float16" if exact else "within 0.0") in on.text("footer")


@pytest.mark.browser
def test_the_signed_table_holds_the_differences(reader: Callable[..., Reader]) -> None:
    """Every one that is not masked, in a column of that name."""
    shown = differing()
    on, values = reader(render_page(shown, exact=True), "#layer=0&head=1"), differences(shown, 0, 1)
    found = {(int(row["query"]), int(row["key"])): float(row["difference"]) for row in on.table()}
    wanted = {
        place: values[place] for place in np.ndindex(values.shape) if not np.isnan(values[place])
    }
    assert found == pytest.approx(wanted, abs=0.0005)


@pytest.mark.browser
def test_a_signed_token_names_the_largest_differences_of_both_signs(
    reader: Callable[..., Reader],
) -> None:
    """By their size, the text in the colours of their signs; negative lines are dashed, and that is said."""
    shown = differing()
    on, row = reader(render_page(shown)), differences(shown, 0, 0)[7]
    on.token(7).hover()
    on.settle()
    text = on.text("#told")
    assert text.startswith("at (7) differs at ")
    told = [
        (int(number), float(value))
        for number, value in re.findall(r"\((\d+)\) ([+-][\d.e-]+)", text)
    ]
    order = np.argsort(-np.abs(np.nan_to_num(row)), kind="stable")[:5]
    assert [abs(value) for _, value in told] == pytest.approx(np.abs(row[order]), abs=0.008)
    assert [value for _, value in told] == pytest.approx(
        [row[number] for number, _ in told], abs=0.008
    )
    assert {np.sign(value) for _, value in told} == {-1, 1}
    backgrounds = on.backgrounds()
    for number, value in told[:3]:
        red, _, blue = backgrounds[number]
        assert (red > blue) == (value > 0)
    assert "dashed where it is negative" in on.text("#threshold")
    assert on.pixels("#scroll canvas")[..., 3].any()


@pytest.mark.browser
def test_signed_pictures_keep_the_largest_size_where_they_are_pooled(
    reader: Callable[..., Reader],
) -> None:
    """A single negative cell among thousands of small positive ones is seen, in the picture and in the thumbnail."""
    n = 700
    axis = Axis("queries", tuple(f"w{i}" for i in range(n)), tuple(range(n)), 1, (True,) * n)
    values = np.full((n, n), 0.01, np.float32)
    values[300:304, 300:304] = -1
    panel, scale = Panel(values, np.ones((n, n), bool)), Scale(1.0, 1.0, signed=True)
    large = Heatmap("one", panel, axis, replace(axis, name="keys"), scale, ())
    small = Grid("all", ("L0",), ("H0",), ((panel,),), scale, (), n)
    on = reader(
        render_page(Page("toy", (Section("difference", small, ((large,),)),), ())), size=(800, 700)
    )
    blue = make_palette("viridis", PAGE_COLOURS, signed=True)[0, :3].astype(int)
    for name in ("#cells", "#heads canvas"):
        assert (np.abs(on.pixels(name)[..., :3].astype(int) - blue).max(-1) <= 6).any()


@pytest.mark.browser
def test_a_page_of_words_says_words(reader: Callable[..., Reader]) -> None:
    """What may be pointed at are words where the capture is in words."""
    text = "unbelievable tokenizers"
    assert "Point at a word to" in reader(convert_to_words(attnviz.capture(text))).text("body")
    assert "Point at a token to" in reader(attnviz.capture(text)).text("body")
