"""The page in a real browser, where one is installed: narrow, dark and on paper; rules otherwise.

What a medium is given is applied to the screen in a copy of the page, which a script measures.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from m4.eval import operating, table_one
from m4.eval.report import page as report
from m4.eval.results import compose, write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
MEASURE = """
<script>window.addEventListener('load', () => {
  const both = document.querySelectorAll('table, .plot svg');
  const wide = [...both].map(e => e.getBoundingClientRect());
  const folds = [...document.querySelectorAll('details')].map(d => d.lastElementChild);
  const style = getComputedStyle(document.body);
  const ink = document.querySelector('.plot svg text');
  document.documentElement.innerHTML = '<pre id="out">' + JSON.stringify({
    scroll: document.documentElement.scrollWidth, inner: innerWidth,
    right: Math.max(...wide.map(r => r.right)),
    folds: folds.length, open: folds.filter(e => e.getBoundingClientRect().height > 0 &&
      e.checkVisibility({contentVisibilityAuto: true})).length,
    paper: style.backgroundColor, colour: style.color, ink: ink && getComputedStyle(ink).fill,
    narrowest: Math.min(...[...document.querySelectorAll('.plot svg')]
      .map(e => e.getBoundingClientRect().width)),
  }) + '</pre>';
});</script>"""


@pytest.fixture(scope="module")
def page(fabricate, tmp_path_factory):
    """A page with every section that one split's results can give."""
    folder = tmp_path_factory.mktemp("page")
    small = {"rows": 400, "modalities": ("vitals", "labs"), "tasks": ("ihm", "los")}
    spec, subsets, predictions = fabricate(**small)
    x = np.random.default_rng(0).normal(60, 15, (400, 2))
    names = [("vitals", "heart_rate"), ("labs", "urea")]
    values = {"test": table_one.Values(names, x, predictions.patient)}
    own = {"cuts": operating.choose(predictions, spec), "values": values, "draws": 30}
    document = compose(predictions, spec, subsets, split="test", **own)
    write(document, folder)
    return report.render(folder)


def measure(text: str, folder: Path, width: int, *media: str) -> dict:
    """What a browser makes of the page in a window, as if some media rules were for the screen."""
    assert BROWSER is not None
    for medium in media:
        assert medium in text
        text = text.replace(medium, "@media all")
    path = folder / "page.html"
    path.write_text(text.replace("</body>", f"{MEASURE}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    args = [BROWSER, *flags, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    out = subprocess.run(args, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="out">(.*?)</pre>', out, re.DOTALL)
    assert found, out[:500]
    return json.loads(found[1])


@needs_browser
def test_narrow_screens_scroll_tables_and_plots_alone(page, tmp_path):
    found = measure(page, tmp_path, 500)  # a headless window is not narrower
    assert found["scroll"] <= found["inner"], found
    assert found["narrowest"] >= 600 or found["inner"] > 700, found


@needs_browser
def test_on_paper_every_fold_is_open_and_nothing_is_cut(page, tmp_path):
    closed = measure(page, tmp_path, 720)
    assert closed["folds"] > 3 and closed["open"] < closed["folds"]  # the measure sees a closed one
    found = measure(page, tmp_path, 720, "@media print")  # A4 less its margins: 703 pixels
    assert found["open"] == found["folds"] and found["right"] <= found["inner"] + 1, found


@needs_browser
def test_dark_screens_have_a_dark_page_with_light_letters_also_in_plots(page, tmp_path):
    def light(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    day = measure(page, tmp_path, 1100)
    night = measure(page, tmp_path, 1100, "@media screen and (prefers-color-scheme: dark)")
    assert light(day["paper"]) > 240 > 80 > light(day["ink"])
    assert light(night["paper"]) < 40 and min(map(light, (night["ink"], night["colour"]))) > 150


@needs_browser
def test_it_prints(page, tmp_path):
    assert BROWSER is not None
    (tmp_path / "page.html").write_text(page)
    target = tmp_path / "page.pdf"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={target}"]
    uri = (tmp_path / "page.html").as_uri()
    subprocess.run([BROWSER, *flags, uri], capture_output=True, timeout=120, check=True)
    assert target.read_bytes().count(b"/Type /Page\n") >= 4


def test_the_rules_are_there_without_a_browser(page):
    css = page[page.index("<style>") : page.index("</style>")]
    rules = ["details::details-content", "prefers-color-scheme: dark", "max-width: 700px"]
    rules += ["content-visibility: visible !important", "overflow: visible", "min-width: 620px"]
    for rule in rules:
        assert rule in css, rule
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawn and all("var(--ink, #1f2937)" in svg for svg in drawn)
