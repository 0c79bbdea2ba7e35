"""The plots of a comparison as SVG to stand in a page: no fonts, no scripts, the same bytes for the same figures.

Text and axes are in `currentColor`, so that they follow the page into a dark scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from segzoo.evaluation.stages import STAGES
from segzoo.report.content import Comparison, Model, main_task
from segzoo.report.tables import TASK_TITLES

# Okabe and Ito's colours, told apart by the colour-blind; black, the eighth, would vanish in a dark scheme.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Stands for the page's colour of text; nothing else is drawn in it.
INK = "#010203"
WIDTH_INCHES = 9.0
# Up to so many classes have bars, more have dots in rows.
MAX_BAR_CLASSES = 8
# Beyond this ratio of the slowest to the fastest, times are drawn on a logarithmic axis.
LOG_RATIO = 8.0
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


def all_plots(comparison: Comparison) -> dict[str, str]:
    """Name -> SVG; plots of what was not measured are left out."""
    makers = {
        "speed": ap_against_speed,
        "classes": classes,
        "precision": precision_recall,
        "stages": stages,
        "losses": losses,
        "progress": progress,
    }
    plots = {}
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        for name, make in makers.items():
            figure = make(comparison)
            if figure is not None:
                plots[name] = to_svg(figure, name)
    return plots


def color_of(comparison: Comparison, model: Model) -> str:
    """A model's colour, the same in all plots."""
    return COLORS[_place(comparison, model) % len(COLORS)]


def _place(comparison: Comparison, model: Model) -> int:
    return next(place for place, other in enumerate(comparison.models) if other is model)


def ap_against_speed(comparison: Comparison) -> Figure | None:
    """AP over the time of an image; bars are the standard deviation over seeds."""
    task = main_task(comparison.tasks)
    shown = [model for model in comparison.models if model.speeds and model.mean(task, "AP") is not None]
    if not shown:
        return None
    figure, axes = _figure(4.2)
    times = [model.speeds[0].whole_ms["median"] for model in shown]
    for number, (model, milliseconds) in enumerate(zip(shown, times, strict=True)):
        mean, color = model.mean(task, "AP") or 0.0, color_of(comparison, model)
        marker = MARKERS[_place(comparison, model) % len(MARKERS)]
        axes.errorbar([milliseconds], [mean], yerr=model.spread(task, "AP"), color=color, marker=marker, capsize=3)
        # Above and below in turns, so that the names of neighbours do not cover each other.
        offset = (7, -12 if number % 2 else 5)
        axes.annotate(model.title, (milliseconds, mean), offset, textcoords="offset points", color=INK)
    if max(times) > LOG_RATIO * min(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    else:
        axes.set_xlim(0, max(times) * 1.22)
    axes.margins(x=0.2, y=0.2)
    axes.set(xlabel="ms an image (less is better)", ylabel=f"{TASK_TITLES[task]} AP, percent")
    return figure


def classes(comparison: Comparison) -> Figure | None:
    """AP of every class: bars of a few, rows of dots of many, the best class first."""
    task, counts = main_task(comparison.tasks), comparison.class_counts
    shown = [model for model in comparison.models if model.mean(task, "AP") is not None]
    values = {name: [model.mean(task, f"AP-{name}") for model in shown] for name in counts}
    names = [name for name, own in values.items() if any(value is not None for value in own)]
    if len(names) < 2:
        return None
    names.sort(key=lambda name: -float(np.mean([value for value in values[name] if value is not None])))
    if len(names) <= MAX_BAR_CLASSES:
        figure, axes = _figure(3.6)
        width = 0.8 / len(shown)
        for place, model in enumerate(shown):
            heights = [values[name][place] or 0.0 for name in names]
            left = np.arange(len(names)) - 0.4 + (place + 0.5) * width
            axes.bar(left, heights, width * 0.92, color=color_of(comparison, model), label=model.title)
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(f"{TASK_TITLES[task]} AP, percent")
    else:
        figure, axes = _figure(1.0 + 0.2 * len(names))
        for place, model in enumerate(shown):
            points = [(values[name][place], row) for row, name in enumerate(names) if values[name][place] is not None]
            marker = MARKERS[_place(comparison, model) % len(MARKERS)]
            color = color_of(comparison, model)
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=5, alpha=0.85, label=model.title)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(f"{TASK_TITLES[task]} AP, percent")
    _legend(figure, axes)
    return figure


def precision_recall(comparison: Comparison) -> Figure | None:
    """Precision over recall at two IoU thresholds, and the mean of all ten."""
    task = main_task(comparison.tasks)
    ious = sorted({curve.iou for model in comparison.models for curve in model.curves if curve.task == task})
    if not ious:
        return None
    ordered = [iou for iou in ious if iou] + [iou for iou in ious if not iou]
    figure = Figure(figsize=(WIDTH_INCHES, 3.5), layout="constrained")
    panels: Sequence[Axes] = np.atleast_1d(figure.subplots(1, len(ordered), sharey=True)).tolist()
    for panel, iou in zip(panels, ordered, strict=True):
        for model in comparison.models:
            for curve in model.curves:
                if (curve.task, curve.iou) == (task, iou):
                    color = color_of(comparison, model)
                    panel.plot(curve.recall, curve.precision, color=color, linewidth=1.6, label=model.title)
        panel.set(xlabel="recall", title=f"IoU {iou:.2f}" if iou else "mean of IoU 0.50 to 0.95")
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
    panels[0].set_ylabel("precision")
    _legend(figure, panels[0])
    return figure


def stages(comparison: Comparison) -> Figure | None:
    """Where the time of an image goes: one bar a model, of its first precision and batch."""
    shown = [model for model in comparison.models if model.speeds]
    if not shown:
        return None
    figure, axes = _figure(1.3 + 0.42 * len(shown))
    palette = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, len(STAGES)))
    left = np.zeros(len(shown))
    for stage, color in zip(STAGES, palette, strict=True):
        widths = np.array([model.speeds[0].stages_ms.get(stage, {}).get("median", 0.0) for model in shown])
        axes.barh(range(len(shown)), widths, 0.66, left=left, color=color, label=stage)
        left += widths
    axes.set_yticks(range(len(shown)), [model.title for model in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms an image")
    _legend(figure, axes, columns=len(STAGES))
    return figure


def losses(comparison: Comparison) -> Figure | None:
    """A panel a model: its losses over the iterations of the first training."""
    shown = [(model, run.curve) for model in comparison.models for run in model.runs[:1] if run.curve.iterations]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH_INCHES, 2.7 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel, (model, curve) in zip(panels, shown, strict=False):
        for name, values in sorted(curve.losses.items(), key=lambda item: item[0] != "total_loss"):
            is_total = name == "total_loss"
            title = "total" if is_total else name.removeprefix("loss_")
            # A loss may be 0 for a while, which no logarithm has.
            heights = np.where(np.asarray(values) > 0, values, np.nan)
            points = curve.iterations[: len(values)]
            panel.plot(
                points, heights, color=INK if is_total else None, linewidth=1.8 if is_total else 0.9, label=title
            )
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(model.title)
        panel.legend(fontsize=7, ncols=2, loc="upper right")
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    return figure


def progress(comparison: Comparison) -> Figure | None:
    """AP over the images seen, of the first trainings with evaluations in between."""
    key = f"{main_task(comparison.tasks)}/AP"
    figure, axes = _figure(3.6)
    has_some = False
    for model in comparison.models:
        for run in model.runs[:1]:
            points = [(number * run.batch, own[key]) for number, own in run.curve.evaluations if key in own]
            if len(points) > 1:
                has_some = True
                color, marker = color_of(comparison, model), MARKERS[_place(comparison, model) % len(MARKERS)]
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=model.title)
    if not has_some:
        return None
    axes.set(xlabel="images seen", ylabel=f"{TASK_TITLES[main_task(comparison.tasks)]} AP, percent")
    _legend(figure, axes)
    return figure


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    # Not pyplot's: it needs no window, and the caller's pyplot stays as it is.
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """Above the panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)), columnspacing=1.2)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element whose ids begin with its name, so that several can stand in one page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", svg)
    # The page sets the size.
    svg = re.sub(r'<svg ([^>]*?)(?:width="[^"]*")', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)(?:height="[^"]*")', r"<svg \1", svg, count=1)
    return svg.replace(INK, "currentColor").strip()
