"""The page of a comparison, read as HTML."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from segzoo.report.content import Comparison, GalleryImage, TrainedRun
from segzoo.report.page import render_page
from tests.report.made_up import bare_comparison, bare_model, comparison
from tests.report.pages import Page

SECTIONS = [
    ("conditions", "Conditions"),
    ("results", "Results"),
    ("ap-speed", "AP against speed"),
    ("tasks", "All metrics"),
    ("classes", "By class"),
    ("pr", "Precision and recall"),
    ("stages", "Speed by stage"),
    ("training", "Training"),
    ("gallery", "Gallery"),
    ("failures", "Failures"),
    ("notes", "Notes"),
]


@pytest.fixture(scope="module")
def full() -> Comparison:
    return comparison()


@pytest.fixture(scope="module")
def source(full: Comparison) -> str:
    return render_page(full)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_page_has_every_section_in_its_order(page: Page, source: str) -> None:
    titles = re.findall(r'<section id="([\w-]+)">\s*<h2>([^<]+)</h2>', source)
    assert titles == SECTIONS
    assert len(set(page.ids)) == len(page.ids)


def test_main_table_shows_means_and_spreads(page: Page) -> None:
    # AP of PolarMask: 31.24 and 31.64; of CenterMask: 28.9 and 29.3.
    polarmask, centermask, _ = page.rows("main")
    assert polarmask["model"] == "PolarMask R50"
    assert polarmask["AP"] == "31.4 ± 0.3"
    assert polarmask["AP50"] == "52.4 ± 0.3"
    assert centermask["APs"] == "17.1 ± 0.3"
    assert centermask["ms"] == "18.0"
    assert centermask["img/s"] == "55.5"
    assert centermask["params, M"] == "34.3"
    assert centermask["iter. × batch"] == "1,000 × 8"
    assert centermask["images"] == "8,000"
    assert centermask["min"] == "30.5 ± 0.7"


def test_main_table_marks_the_best_of_a_column(page: Page) -> None:
    # PolarMask is the best of the first three in AP, and the smallest; CenterMask is the fastest.
    assert "31.4" in page.best["main"]
    assert "30.0" in page.best["main"]
    assert "18.0" in page.best["main"]
    assert "29.1" not in page.best["main"]


def test_task_tables_show_all_metrics_with_two_digits(page: Page) -> None:
    assert page.rows("task-segm")[0]["AP"] == "31.44 ± 0.28"
    assert page.rows("task-bbox")[0]["AR1"] == "30.44 ± 0.28"
    assert page.rows("task-boundary")[0]["ARl"] == "40.44 ± 0.28"


def test_speed_table_shows_every_precision_and_batch(page: Page) -> None:
    rows = [row for row in page.rows("speed") if row["model"] == "CenterMask DLA34"]
    assert [(row["precision"], row["batch"], row["ms"]) for row in rows] == [
        ("fp32", "1", "18.02"),
        ("fp16", "1", "12.61"),
        ("fp32", "8", "14.42"),
        ("fp16", "8", "8.11"),
    ]
    assert rows[0]["backbone"] == "7.21"


def test_captions_name_the_conditions(page: Page) -> None:
    drawings = ["plot-ap-speed", "plot-classes", "plot-pr-segm", "plot-pr-bbox", "plot-losses", "plot-growth"]
    tables = ["table-main", "table-task-segm", "table-task-bbox", "table-task-boundary", "table-classes-segm"]
    for name in [*drawings, *tables, "table-runs", "table-mean-iou"]:
        assert "scenes-v1_val, 200 images" in page.captions[name], name
        assert "1,000 iterations of 8 images" in page.captions[name], name
    for name in ["plot-ap-speed", "plot-stages", "table-main", "table-speed"]:
        assert "NVIDIA H100 80GB HBM3" in page.captions[name], name
    assert "2 seeds" in page.captions["table-main"]
    assert "cannot be compared between models" in page.captions["plot-losses"]


def test_gallery_shows_the_truth_and_every_model(page: Page, full: Comparison, source: str) -> None:
    assert source.index('alt="000000.jpg: ground truth"') < source.index('data-model="polarmask"')
    panels = [panel for image in full.gallery for row in image.rows for panel in row.panels]
    failures = [picture for model in full.models for failure in model.failures for picture in failure.pictures]
    assert page.tags.count("img") == len(full.gallery) + len(panels) + len(failures)


def test_failures_come_by_their_loss(page: Page) -> None:
    losses = [float(loss) for loss in re.findall(r"Loss (\d\.\d+)", page.text)]
    assert losses == [0.71, 0.66, 0.76, 0.71, 0.76, 0.71]
    assert "leaf · 1,234 px · 000000.jpg, annotation 70" in page.text


def test_page_reaches_for_nothing_outside(page: Page, source: str) -> None:
    assert {link.split(",")[0].split("#")[0] for link in page.links} == {"", "data:", "data:image/jpeg;base64"}
    assert not re.findall(r"https?:|//[\w.]+\.\w+/|@import|url\((?!#)", source)


def test_page_of_the_same_comparison_is_the_same(source: str) -> None:
    assert render_page(comparison()) == source


def test_names_are_escaped_and_whole_in_tables() -> None:
    evil = 'a <script>alert("x")</script> & \'b\' $\\frac{1}$ " onload="y'
    made = comparison(count=2, seeds=1, classes=[evil, "leaf"])
    made.title = made.models[0].title = made.gallery[0].image = evil
    made.models[0].failures[0].class_name = evil
    made.conditions[0] = (evil, evil)
    made.models[0].name = made.gallery[0].rows[0].model = evil
    source = render_page(made)
    page = Page(source)
    assert page.tags.count("script") == 1
    assert not any(name.startswith("on") for name in page.attributes)
    assert page.rows("classes-segm")[0]["class"] == evil
    assert page.rows("main")[0]["model"] == evil


def test_failed_runs_are_named_with_their_errors() -> None:
    made = comparison(count=2, seeds=2)
    made.models[0].runs.append(TrainedRun(7, 1000, 8, error="loss_mask is not finite at <iteration 412>"))
    made.models.append(bare_model("broken", [TrainedRun(0, 1000, 8, error="out of memory")]))
    page = Page(render_page(made))
    assert page.rows("failed") == [
        {"model": "PolarMask R50", "seed": "7", "error": "loss_mask is not finite at <iteration 412>"},
        {"model": "Broken", "seed": "0", "error": "out of memory"},
    ]
    first, _, broken = page.rows("main")
    assert first["model"] == "PolarMask R50 1 of 3 runs failed"
    assert first["AP"] == "31.4 ± 0.3"
    assert broken["model"] == "Broken 1 of 1 run failed"
    assert broken["AP"] == broken["ms"] == broken["GMAC"] == "-"
    assert "2 of 6 runs failed (PolarMask R50 and Broken)" in page.text


def without_speeds(made: Comparison) -> None:
    for model in made.models:
        model.speeds = []


def without_costs_and_curves(made: Comparison) -> None:
    for model in made.models:
        model.cost, model.curves, model.mean_iou = None, [], None


def without_pictures(made: Comparison) -> None:
    made.gallery = []
    for model in made.models:
        model.failures = []


def without_masks(made: Comparison) -> None:
    made.tasks = ["bbox"]
    for model in made.models:
        for run in model.runs:
            run.results = {"bbox": run.results["bbox"]}


def one_without_masks(made: Comparison) -> None:
    made.models[1].runs = [replace(run, results={"bbox": run.results["bbox"]}) for run in made.models[1].runs]


def with_nan(made: Comparison) -> None:
    nan = float("nan")
    for model in made.models:
        model.mean_iou = nan
        for run in model.runs:
            run.minutes = nan
            run.results = {task: {**metrics, "APs": nan, "AP-leaf": nan} for task, metrics in run.results.items()}
            run.curve.losses["total_loss"][3] = nan
    made.models[0].speeds[0].whole_ms["median"] = nan
    made.models[1].speeds[0].stages_ms["neck"]["median"] = nan


def with_equal_values(made: Comparison) -> None:
    for model in made.models:
        model.runs, model.speeds = made.models[0].runs, made.models[0].speeds


def with_nothing(made: Comparison) -> None:
    made.models, made.gallery, made.tasks, made.class_counts, made.conditions = [], [], [], {}, []


def with_one_point(made: Comparison) -> None:
    curve = made.models[0].runs[0].curve
    curve.iterations, curve.evaluations = curve.iterations[:1], curve.evaluations[:1]


CHANGES = [
    without_speeds,
    without_costs_and_curves,
    without_pictures,
    without_masks,
    one_without_masks,
    with_nan,
    with_equal_values,
    with_nothing,
    with_one_point,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_page_stands_whatever_is_missing(change) -> None:
    made = comparison(count=2, seeds=2)
    change(made)
    source = render_page(made)
    page = Page(source)
    assert [name for name in page.ids if name in dict(SECTIONS)] == [name for name, _ in SECTIONS]
    markup = re.sub(r"base64,[^\"]*|<script>.*?</script>|<style>.*?</style>", "", source, flags=re.DOTALL)
    assert not re.search(r"\b(None|nan|inf)\b", markup)


def test_page_of_bare_models_says_that_nothing_was_measured() -> None:
    page = Page(render_page(bare_comparison(bare_model())))
    for words in ("No model has results.", "No times were measured.", "No curves were kept.", "No pictures were kept."):
        assert words in page.text
    assert page.rows("main")[0]["AP"] == "-"


@pytest.mark.parametrize("count", [1, 3, 80])
def test_class_plot_names_every_class(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    page = Page(render_page(comparison(count=2, seeds=1, classes=names)))
    assert [row["class"] for row in page.rows("classes-segm")] == names
    for name in names[:-1] or names:
        # Once in the plot and once in each table.
        assert page.texts.count(name) >= 4, name


def test_gallery_of_an_unknown_model_keeps_its_name() -> None:
    made = comparison(count=1, seeds=1)
    made.gallery = [GalleryImage("a.jpg", b"", [replace(made.gallery[0].rows[0], model="other")])]
    assert "other" in Page(render_page(made)).text
