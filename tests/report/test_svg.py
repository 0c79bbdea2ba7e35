"""Drawings as markup of a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from itertools import pairwise

import matplotlib
import pytest

from segzoo.report.plots import class_plot, speed_plot, stages_plot
from segzoo.report.svg import MODEL_COLORS, color_variables, drawing, model_swatch, new_figure, spread_apart, to_svg
from tests.report.made_up import comparison


def test_spread_apart_keeps_places_that_are_far_enough() -> None:
    assert spread_apart([10.0, 50.0], 5.0, 0.0, 100.0) == [10.0, 50.0]


def test_spread_apart_moves_neighbours_and_stays_within() -> None:
    places = spread_apart([99.0, 98.0, 97.0], 5.0, 0.0, 100.0)
    assert places == [100.0, 95.0, 90.0]


def test_to_svg_takes_the_pages_colours_and_fonts() -> None:
    with drawing():
        figure, axes = new_figure(200, 100)
        axes.plot([0, 1], [0, 1], color="#0a0301", marker="o")
        axes.set_xlabel('$x <b> #0a0101 id="a"')
        svg = to_svg(figure, "name", 'a "drawing"')
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.attrib["viewBox"] == "0 0 200 100"
    assert root.attrib["aria-label"] == 'a "drawing"'
    assert "var(--model-3)" in svg
    assert "font-family" not in svg
    assert "http" not in svg
    assert any(element.text == '$x <b> #0a0101 id="a"' for element in root.iter())
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    assert ids
    assert ids == set(re.findall(r'(?:href="|url\()#([^")]*)', svg))
    assert all(name.startswith("name-") for name in ids)


def test_drawing_ignores_the_users_settings_and_restores_them() -> None:
    made = comparison(count=2, seeds=1)
    before = speed_plot(made)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": None}):
        after = speed_plot(made)
        assert matplotlib.rcParams["font.size"] == 30
    assert before == after


def test_every_model_has_its_colour_in_light_and_dark() -> None:
    light, dark = dict(color_variables(is_dark=False)), dict(color_variables(is_dark=True))
    assert light.keys() == dark.keys()
    assert len({light[f"--model-{index}"] for index in range(len(MODEL_COLORS))}) == len(MODEL_COLORS)


def test_no_two_of_many_models_look_alike() -> None:
    assert len({model_swatch(index) for index in range(40)}) == 40


def test_a_model_has_the_same_colour_where_another_one_is_left_out() -> None:
    made = comparison(count=3, seeds=1)
    made.models[0].speeds = []
    plot = speed_plot(made)
    assert plot is not None
    assert "var(--model-0)" not in plot.panels[0].svg
    assert "var(--model-2)" in plot.panels[0].svg


def test_labels_of_points_that_coincide_lie_apart() -> None:
    made = comparison(count=4, seeds=1)
    for model in made.models:
        model.runs, model.speeds = made.models[0].runs, made.models[0].speeds
    plot = speed_plot(made)
    assert plot is not None
    texts = {
        element.text: (float(element.attrib["x"]), float(element.attrib["y"]))
        for element in xml.etree.ElementTree.fromstring(plot.panels[0].svg).iter("text")
    }
    assert len({texts[model.title] for model in made.models}) == 4


@pytest.mark.parametrize("count", [9, 80, 300])
def test_class_plot_of_many_classes_has_a_row_each_that_can_be_read(count: int) -> None:
    plot = class_plot(comparison(count=2, seeds=1, classes=[f"class {number}" for number in range(count)]))
    assert plot is not None
    heights = []
    for panel in plot.panels:
        root = xml.etree.ElementTree.fromstring(panel.svg)
        rows = [float(text.attrib["y"]) for text in root.iter("text") if (text.text or "").startswith("class ")]
        heights += [later - earlier for earlier, later in pairwise(rows)]
    assert min(heights) >= 12
    assert ("are in the table alone" in plot.caption) == (count == 300)


def test_stages_plot_shows_every_stage_in_the_order_of_the_work() -> None:
    plot = stages_plot(comparison(count=2, seeds=1))
    assert plot is not None
    assert [stage for _, stage in plot.legend][:3] == ["preprocess", "backbone", "neck"]
    assert [panel.title for panel in plot.panels] == [
        "fp32, batch 1",
        "fp16, batch 1",
        "fp32, batch 8",
        "fp16, batch 8",
    ]
