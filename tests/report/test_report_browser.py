"""The page in a real browser: it sorts, filters, fits narrow and wide windows, and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from segzoo.report.page import render
from tests.report import made_up

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (apt-get install chromium)")
# Written into a copy of the page: what a visitor would do, and what came of it.
PROBE = """
<script>
const seen = { errors: [], requests: [] };
window.addEventListener("error", (event) => seen.errors.push(event.message));
window.addEventListener("load", () => {
  const table = [...document.querySelectorAll("table.sortable")][0];
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const head = table.tHead.rows[0].cells[1], button = head.querySelector("button");
  button.click(); seen.down = names(); seen.sort = head.getAttribute("aria-sort");
  button.click(); seen.up = names();
  const first = table.tHead.rows[0].cells[0]; first.querySelector("button").click(); seen.byName = names();
  const box = document.querySelector(".choice input[value=fcosis]"); box.click();
  const rows = [...document.querySelectorAll("[data-model]")];
  seen.hidden = rows.filter((row) => row.hidden).map((row) => row.dataset.model);
  seen.choiceShown = !document.querySelector(".choice").hidden;
  seen.width = document.documentElement.scrollWidth;
  seen.window = window.innerWidth;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.images = [...document.images].every((image) => image.naturalWidth > 0);
  seen.plots = [...document.querySelectorAll("figure svg")].every((svg) => svg.getBoundingClientRect().height > 80);
  const result = document.createElement("pre"); result.id = "probe"; result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script></head>
"""


def visit(folder: Path, width: int) -> dict:
    """What the probe has seen in a window of this width."""
    assert BROWSER is not None
    path = folder / "report.html"
    path.write_text(render(made_up.comparison()).replace("</head>", PROBE, 1), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=4000", "--dump-dom", path.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = re.search(r'<pre id="probe">(.*?)</pre>', finished.stdout, re.DOTALL)
    assert found is not None, finished.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1280])
def test_page_works_in_a_browser(tmp_path: Path, width: int) -> None:
    seen = visit(tmp_path, width)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert (seen["down"], seen["sort"]) == (["FCOSIS", "Mask R-CNN", "PolarMask"], "descending")
    assert seen["up"] == ["PolarMask", "Mask R-CNN", "FCOSIS"]
    assert seen["byName"] == ["PolarMask", "Mask R-CNN", "FCOSIS"]
    assert seen["hidden"] == ["fcosis"]
    assert seen["choiceShown"]
    assert seen["images"]
    assert seen["plots"]
    # Wide tables scroll by themselves; the page does not.
    assert seen["width"] <= seen["window"] <= width
