"""A comparison as one page that needs nothing else: no network, no other file, and no script to be read.

Sections always stand in the same order; one without anything to show says so.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from segzoo.report import tables
from segzoo.report.content import Comparison, Failure, Model
from segzoo.report.plots import class_plot, precision_recall_plots, speed_plot, stages_plot
from segzoo.report.svg import Plot, color_variables, model_swatch
from segzoo.report.tables import Table
from segzoo.report.training_plots import growth_plot, loss_plot
from segzoo.report.wording import MISSING, accuracy_conditions, collect_notes, number, summary

TEMPLATES = Path(__file__).parent / "templates"
# Longer tables are folded: a reader opens them, and paper shows them open.
MAX_OPEN_ROWS = 24


@dataclass
class Section:
    """nothing: what is said in place of tables and plots, where there are none."""

    name: str
    title: str
    nothing: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot | None] = ()


def render_page(comparison: Comparison) -> str:
    """The whole of `report.html`; the same comparison gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, jpeg=_data_uri, split_spread=_split_spread)
    titles = {model.name: model.title for model in comparison.models}
    swatches = {model.name: Markup(model_swatch(index)) for index, model in enumerate(comparison.models)}
    return environment.get_template("report.html").render(
        comparison=comparison,
        summary=summary(comparison),
        sections=_sections(comparison),
        titles=titles,
        swatches=swatches,
        light=color_variables(is_dark=False),
        dark=color_variables(is_dark=True),
        conditions=accuracy_conditions(comparison, is_mean=False),
        gallery_models=_gallery_models(comparison),
        mean_iou=tables.failures_table(comparison),
        failures=[(model, _sorted_failures(model)) for model in comparison.models],
        notes=collect_notes(comparison),
        max_open_rows=MAX_OPEN_ROWS,
        missing=MISSING,
        markup=Markup,
    )


def _sections(comparison: Comparison) -> list[Section]:
    """Those that hold tables and plots alone."""
    main = [tables.main_table(comparison), tables.failed_table(comparison)]
    tasks = [tables.task_table(comparison, task) for task in comparison.tasks]
    classes = [tables.class_table(comparison, task) for task in comparison.tasks]
    sections = [
        Section(
            "conditions",
            "Conditions",
            "Nothing is known of them.",
            [tables.conditions_table(comparison), tables.models_table(comparison)],
        ),
        Section("results", "Results", "No model was compared.", main),
        Section("ap-speed", "AP against speed", "No model has both an AP and a time.", [], [speed_plot(comparison)]),
        Section("tasks", "All metrics", "Nothing was evaluated.", tasks),
        Section("classes", "By class", "No class was evaluated.", classes, [class_plot(comparison)]),
        Section("pr", "Precision and recall", "No curves were kept.", [], precision_recall_plots(comparison)),
        Section(
            "stages",
            "Speed by stage",
            "No times were measured.",
            [tables.speed_table(comparison)],
            [stages_plot(comparison)],
        ),
        Section(
            "training",
            "Training",
            "No training was logged.",
            [tables.runs_table(comparison)],
            [loss_plot(comparison), growth_plot(comparison)],
        ),
    ]
    for section in sections:
        section.tables = [table for table in section.tables if table.rows]
        section.plots = [plot for plot in section.plots if plot]
    return sections


def _gallery_models(comparison: Comparison) -> list[str]:
    """Names of the models of the gallery, in the order of the comparison."""
    shown = {row.model: None for image in comparison.gallery for row in image.rows}
    order = [model.name for model in comparison.models if model.name in shown]
    return order + [name for name in shown if name not in order]


def _sorted_failures(model: Model) -> list[Failure]:
    return sorted(model.failures, key=lambda failure: -failure.loss)


def _data_uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def _split_spread(text: str) -> tuple[str, str]:
    """A mean, and " ± 0.4" or ""."""
    mean, sign, spread = text.partition(" ± ")
    return mean, f" ± {spread}" if sign else ""
