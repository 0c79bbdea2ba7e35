"""The page in a browser: it sorts, filters and enlarges, fits phone and desktop, and reaches for nothing outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from segzoo.report.content import TrainedRun
from segzoo.report.page import render_page
from tests.report.made_up import comparison

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1280)
# Before all else: nothing that goes wrong may go unheard.
LISTEN = """<script>
const heard = [];
addEventListener("error", (event) => heard.push(`error: ${event.message}`), true);
addEventListener("securitypolicyviolation", (event) => heard.push(`refused: ${event.blockedURI}`));
console.error = console.warn = (...words) => heard.push(words.join(" "));
</script>"""
# After all else: does what a reader does, and tells the page around it.
PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter((element) => {
    const scroll = element.closest(".scroll");
    const box = element.getBoundingClientRect();
    return (!scroll || scroll === element) && box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
  });
  const main = document.querySelector("#table-main table");
  const head = [...main.querySelectorAll("thead tr:last-child th")].find((cell) => cell.textContent === "AP");
  const names = () => [...main.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const state = () => [head.getAttribute("aria-sort"), names()];
  const sorted = [state()];
  for (let click = 0; click < 2; click++) { head.querySelector("button").click(); sorted.push(state()); }
  const box = document.querySelector(".filter input");
  box.click();
  const hidden = [...document.querySelectorAll(".row")].filter((row) => row.hidden).map((row) => row.dataset.model);
  document.querySelector(".pictures img").click();
  const texts = [...document.querySelectorAll(".plot text")];
  const requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage({
    width: innerWidth,
    scroll_width: document.documentElement.scrollWidth,
    wide: wide.map((element) => element.outerHTML.slice(0, 100)),
    sorted, hidden, filter: box.value,
    enlarged: document.querySelector("dialog").open,
    small_texts: texts.filter((text) => text.getBoundingClientRect().height < 8).length,
    requests: requests.filter((name) => !name.startsWith("data:")),
    heard,
  }, "*");
});
</script>"""
# A window of the browser may not be as narrow as a phone, a frame within it may.
FRAMES = """<!doctype html><body>{frames}<script>
addEventListener("message", ({{ data }}) => {{
  const found = document.createElement("pre");
  found.textContent = JSON.stringify(data);
  document.body.append(found);
}});
</script>{loads}"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The path of a browser, or a skip."""
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found[0]


@pytest.fixture(scope="module")
def probed(browser: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Width in px -> what the probe has found there, in a rich comparison."""
    folder = tmp_path_factory.mktemp("browser")
    made = comparison(count=3, seeds=2, classes=[f"class {number}" for number in range(30)])
    made.models[1].runs.append(TrainedRun(9, 1000, 8, error="a very long error " * 20))
    source = render_page(made).replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{PROBE}</body>")
    (folder / "page.html").write_text(source, encoding="utf-8")
    frames = "".join(f'<iframe width="{width}" height="900" style="border: 0"></iframe>' for width in WIDTHS)
    # Pages are loaded after the listener stands.
    loads = '<script>for (const frame of document.querySelectorAll("iframe")) frame.src = "page.html";</script>'
    (folder / "frames.html").write_text(FRAMES.format(frames=frames, loads=loads), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--disable-background-networking"]
    finished = subprocess.run(
        [browser, *flags, "--dump-dom", (folder / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    found = [json.loads(unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", finished.stdout, re.DOTALL)]
    return {probe["width"]: probe for probe in found}


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_window(probed: dict[int, dict[str, Any]], width: int) -> None:
    assert probed[width]["scroll_width"] <= width
    assert probed[width]["wide"] == []
    assert probed[width]["small_texts"] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_page_reports_no_error_and_sends_no_request(probed: dict[int, dict[str, Any]], width: int) -> None:
    assert probed[width]["heard"] == []
    assert probed[width]["requests"] == []


def test_click_on_a_header_sorts_down_and_up(probed: dict[int, dict[str, Any]]) -> None:
    unsorted, down, up = probed[1280]["sorted"]
    assert unsorted[0] is None
    assert down[0] == "descending"
    assert up[0] == "ascending"
    order = ["PolarMask", "OrienMask", "CenterMask"]
    assert [name.split()[0] for name in down[1]] == order
    assert [name.split()[0] for name in up[1]] == order[::-1]


def test_filter_hides_a_model_and_a_picture_grows(probed: dict[int, dict[str, Any]]) -> None:
    assert probed[1280]["hidden"] == [probed[1280]["filter"]]
    assert probed[1280]["enlarged"]


def test_page_without_scripts_hides_nothing(tmp_path: Path) -> None:
    source = re.sub(r"<script>.*?</script>", "", render_page(comparison(count=2, seeds=1)), flags=re.DOTALL)
    # But for the filter, which is of no use then.
    assert re.findall(r"<(\w+)[^>]* hidden", source) == ["fieldset"]
