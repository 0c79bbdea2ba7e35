"""The page, the Markdown and the json of a comparison: what they say, and that they say the same."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from segzoo.report.content import Comparison, Model
from segzoo.report.markdown import to_markdown
from segzoo.report.page import SECTIONS, render
from segzoo.report.plots import COLORS, all_plots
from segzoo.report.summary import summarize
from segzoo.report.tables import all_tables
from segzoo.report.write import write_report
from tests.report import made_up


class Page(HTMLParser):
    """Tables as rows of texts, headings, and everything that could reach out of the page."""

    VOID = {"meta", "img", "input", "br", "path", "use", "link"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.best: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self._classes = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self._classes = values.get("class") or ""
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
            if self._classes == "best":
                self.best.append(data)
        elif self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(made_up.comparison()))


def test_page_has_all_sections_in_their_order(page: Page) -> None:
    assert [heading for heading in page.headings if heading in SECTIONS] == list(SECTIONS)


def test_page_shows_means_spreads_and_the_best(page: Page) -> None:
    overview = page.tables[1]
    assert overview[0][:3] == ["model", "mask AP", "mask AP50"]
    # 30 and 32, of which the standard deviation is 1.414.
    assert overview[1][:3] == ["PolarMask", "31.0 ± 1.4", "32.0 ± 1.4"]
    assert overview[3][:2] == ["Mask R-CNN", "35.0"]
    assert "mask APl" not in overview[0]
    assert "40.5 ± 0.7" in page.best
    assert "35.0" not in page.best


def test_page_shows_costs_speed_and_trainings(page: Page) -> None:
    costs = next(table for table in page.tables if "GMAC" in table[0])
    row = dict(zip(costs[0], costs[2], strict=True))
    assert row["parameters, M"] == "12.34"
    assert row["GMAC"] == "5.68"
    assert row["GMAC more for"] == "1.25 a colour group"
    assert (row["input, px"], row["ms an image"], row["images a second"]) == ("256 x 320", "100.0", "10.0")
    assert (row["p95"], row["found an image"], row["MiB"]) == ("109.0", "12.5", "321")
    trainings = next(table for table in page.tables if "images seen" in table[0])
    assert len(trainings) == 1 + 6
    first, failed = (dict(zip(trainings[0], trainings[place], strict=True)) for place in (1, 6))
    assert (first["iterations"], first["images seen"], first["minutes"]) == ("100 x 8", "800", "3.2")
    assert failed["result"] == "FAILED: exit code 3: loss_mask is not finite"
    assert failed["iterations"] == "-"
    stages = next(table for table in page.tables if "to host" in table[0])
    assert len(stages) == 1 + 6


def test_page_reaches_for_nothing(page: Page) -> None:
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in page.sources)
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    html = render(made_up.comparison())
    # Names of XML's dialects are addresses that nobody opens.
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http" not in rest
    assert "@import" not in rest
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", rest)


def test_page_has_every_id_once(page: Page) -> None:
    assert len(set(page.ids)) == len(page.ids)
    assert {source[1:] for source in page.sources if source.startswith("#")} <= set(page.ids)


def test_page_is_the_same_for_the_same_figures() -> None:
    assert render(made_up.comparison()) == render(made_up.comparison())


def test_page_escapes_every_name() -> None:
    nasty = "<script>alert('x')</script> & \"y\""
    comparison = made_up.comparison((nasty, "b"))
    comparison.title = comparison.models[0].title = comparison.gallery[0].image = nasty
    comparison.models[0].failures[0].class_name = comparison.notes[0] = nasty
    comparison.models[2].runs[1].error = nasty
    html = render(comparison)
    assert html.count("<script>") == 1
    assert "alert('x')" not in html.replace("&#39;", "'").replace("&lt;script&gt;alert('x')", "")
    assert "| FAILED: <script>" in to_markdown(comparison)


@pytest.mark.parametrize("value", ["None", "nan", "NaN", "inf"])
@pytest.mark.parametrize("make", [made_up.comparison, lambda: made_up.bare("broken"), lambda: made_up.bare("a", "b")])
def test_missing_values_are_dashes(make: object, value: str) -> None:
    comparison = make()  # type: ignore[operator]
    cells = [cell.text for tables in all_tables(comparison).values() for t in tables for row in t.rows for cell in row]
    assert not any(value in cell for cell in cells)
    assert f">{value}<" not in render(comparison)


def test_report_of_failed_trainings_alone_says_why() -> None:
    comparison = made_up.bare("cannot be read", "diverged")
    html = render(comparison)
    assert "FAILED: cannot be read" in html
    assert "FAILED: diverged" in html
    assert "No training came to its end." in html
    assert [heading for heading in Page(html).headings if heading in SECTIONS] == ["Trainings"]


def boxes_alone() -> Comparison:
    comparison = made_up.comparison()
    comparison.models = comparison.models[:1]
    comparison.tasks, comparison.gallery = ["bbox"], []
    for run in comparison.models[0].runs:
        run.results = {"bbox": run.results["bbox"]}
    comparison.models[0].speeds, comparison.models[0].curves, comparison.models[0].failures = [], [], []
    return comparison


def test_report_of_one_model_without_masks() -> None:
    comparison = boxes_alone()
    page = Page(render(comparison))
    assert page.tables[1][0][:2] == ["model", "box AP"]
    assert page.best == []
    assert not {"Gallery", "Failures", "AP and speed", "Time by stage"} & set(page.headings)
    assert summarize(comparison) == ["PolarMask has a box AP of 31.0."]


@pytest.mark.parametrize("count", [1, 3, 8, 9, 80])
def test_classes_of_any_number_are_shown(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    comparison = made_up.comparison(names)
    plots = all_plots(comparison)
    assert ("classes" in plots) == (count > 1)
    html = render(comparison)
    if count > 1:
        table = next(table for table in Page(html).tables if table[0][0] == "class")
        assert [row[0] for row in table[1:]] == names
        assert all(f"class {number}" in plots["classes"] for number in range(count))
        height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', plots["classes"])[1])  # type: ignore[index]
        # Points: ten a row at least, so that names do not run into each other.
        assert height > 10 * count


def test_plots_have_one_colour_a_model_and_the_pages_ink() -> None:
    plots = all_plots(made_up.comparison())
    assert set(plots) == {"speed", "classes", "precision", "stages", "losses", "progress"}
    for name in ("speed", "classes", "precision", "progress"):
        assert all(color.lower() in plots[name].lower() for color in COLORS[:3]), name
        assert COLORS[3].lower() not in plots[name].lower()
    assert all("currentColor" in svg and "#010203" not in svg for svg in plots.values())


def two(first: tuple[float, ...], second: tuple[float, ...], times: tuple[float, float]) -> Comparison:
    comparison = made_up.comparison()
    comparison.models = [
        made_up.model("polarmask", "PolarMask", first, times[0]),
        made_up.model("fcosis", "FCOSIS", second, times[1]),
    ]
    return comparison


@pytest.mark.parametrize(
    ("comparison", "parts"),
    [
        (
            two((30.0,), (33.0,), (50.0, 100.0)),
            [
                "FCOSIS has the highest mask AP, 33.0, 3.0 points above PolarMask.",
                "how much of the differences is chance",
            ]
            + ["PolarMask is the fastest, 50 ms an image: 2.0 times as fast as FCOSIS, with 3.0 points less."],
        ),
        (
            two((30.0, 34.0), (33.0, 33.0), (50.0, 40.0)),
            [
                "1.0 points above",
                "That is within the spread over seeds (2.8 points",
                "It is the fastest as well, 40 ms",
            ],
        ),
        (two((30.0, 30.5), (36.0, 36.5), (50.0, 40.0)), ["6.0 points above", "The spread over seeds is 0.5 points"]),
    ],
)
def test_summary_says_no_more_than_the_figures(comparison: Comparison, parts: list[str]) -> None:
    text = " ".join(summarize(comparison))
    for part in parts:
        assert part in text
    assert summarize(made_up.comparison())[-1] == "Failed: Mask R-CNN (seed 2); see the trainings."


def test_write_report_says_the_same_in_all_files(tmp_path: Path) -> None:
    comparison = made_up.comparison()
    comparison.models[0].runs[0].results["segm"]["APm"] = float("nan")  # type: ignore[index]
    paths = write_report(comparison, str(tmp_path / "a" / "b"))
    assert sorted(path.name for path in paths.values()) == ["compare.json", "report.html", "report.md"]
    values = json.loads(paths["json"].read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert values["models"][0]["runs"][0]["results"]["segm"]["APm"] is None
    assert values["models"][1]["runs"][1]["results"]["segm"]["AP"] == 41.0
    assert values["models"][0]["failures"][0]["annotation_id"] == 4711
    assert "gallery" not in values
    markdown = paths["markdown"].read_text(encoding="utf-8")
    assert "| FCOSIS | **40.5 ± 0.7** |" in markdown
    assert "100 iterations a model, 2 seeds" in markdown
    html = paths["html"].read_text(encoding="utf-8")
    for table in (table for tables in all_tables(comparison).values() for table in tables):
        for row in table.rows:
            assert all(cell.text in markdown for cell in row)
            assert all(cell.text.replace("'", "&#39;") in html for cell in row)


def test_model_without_runs_has_no_figures() -> None:
    model = Model("a", "A", "a.yaml")
    assert (model.mean("segm", "AP"), model.spread("segm", "AP"), model.values("segm", "AP")) == (None, None, [])
