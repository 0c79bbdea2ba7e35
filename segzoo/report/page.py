"""A comparison as one page of HTML that needs nothing beside it: no network, no fonts, no scripts of others."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from segzoo.report.content import Comparison, Model
from segzoo.report.plots import all_plots, color_of
from segzoo.report.summary import summarize
from segzoo.report.tables import ABSENT, all_tables, conditions_text

TEMPLATE = "report.html.j2"
# Name of a plot -> (section, what it shows).
FIGURES = {
    "speed": ("AP and speed", "AP over the time of one image; bars: standard deviation over seeds."),
    "classes": ("By class", "AP of every class, the mean over seeds; the best class first."),
    "precision": (
        "Precision and recall",
        "Precision over recall, the mean over classes, of the first seed's training.",
    ),
    "stages": ("Time by stage", "Median time of one image by stage, first precision and batch."),
    "losses": (
        "Trainings",
        "Losses of the first seed's training over its iterations, logarithmic. Each method has losses of its own: "
        "their values cannot be compared between methods.",
    ),
    "progress": ("Trainings", "AP over the images seen, of the first seed's training."),
}
# In their order on the page; those of nothing are left out.
SECTIONS = (
    "Overview",
    "AP and speed",
    "Size and speed",
    "All metrics",
    "By class",
    "Precision and recall",
    "Time by stage",
    "Trainings",
    "Gallery",
    "Failures",
)


def render(comparison: Comparison) -> str:
    """The page. The same comparison gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = _jpeg_uri
    tables, plots = all_tables(comparison), all_plots(comparison)
    figures: dict[str, list[tuple[str, Markup]]] = {}
    for name, svg in plots.items():
        section, caption = FIGURES[name]
        # Made by matplotlib, which escapes the names that it writes.
        figures.setdefault(section, []).append((f"{caption} {conditions_text(comparison)}.", Markup(svg)))
    has_content = {*tables, *figures}
    if comparison.gallery:
        has_content.add("Gallery")
    if any(model.failures for model in comparison.models):
        has_content.add("Failures")
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        summary=summarize(comparison),
        sections=[section for section in SECTIONS if section in has_content],
        tables=tables,
        figures=figures,
        colors={model.name: color_of(comparison, model) for model in comparison.models},
        titles={model.name: model.title for model in comparison.models},
        conditions=conditions_text(comparison),
        threshold_of=_threshold,
    )


def _jpeg_uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def _threshold(model: Model) -> str:
    return f"{model.score_threshold:.2f}" if model.best_f1 else ABSENT
