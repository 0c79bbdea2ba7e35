"""Plots of accuracy and of time: AP against speed, AP by class, precision over recall, time by stage.

A model has one colour and one shape in all of them; several small panels rather than one crowded plot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from segzoo.report.content import Comparison, Curve, Model, Speed, main_task
from segzoo.report.svg import (
    FONT_PX,
    INK,
    LINE,
    MUTED,
    PAPER,
    Panel,
    Plot,
    drawing,
    label,
    model_color,
    model_marker,
    model_swatch,
    new_figure,
    stage_color,
    stage_swatch,
    to_svg,
    use_log,
)
from segzoo.report.tables import CLASS_PREFIX, class_names, stage_names
from segzoo.report.wording import (
    MISSING,
    accuracy_conditions,
    capitalized,
    number,
    setting_text,
    speed_at,
    speed_conditions,
    speed_settings,
    task_title,
    task_word,
)

# No wider, so that a phone need not shrink them much.
PANEL_PX = 400
# Up to here classes get bars, beyond it a line of markers each.
MAX_BAR_CLASSES = 8
CLASSES_PER_PANEL = 40
# More of them are in the table alone.
MAX_PLOTTED_CLASSES = 160
# Times that differ by more are drawn on a logarithmic axis.
LOG_RATIO = 5.0
_LETTER_PX = 0.58 * FONT_PX


def model_legend(models: Sequence[Model], shown: Sequence[Model]) -> list[tuple[str, str]]:
    """Swatches of the models that are shown."""
    return [(model_swatch(index), model.title) for index, model in enumerate(models) if model in shown]


def speed_plot(comparison: Comparison) -> Plot | None:
    """AP against ms an image, a panel for every precision and batch; None where no model has both."""
    task = main_task(comparison.tasks)
    settings = [
        (setting, points) for setting in speed_settings(comparison) if (points := _points(comparison, task, setting))
    ]
    if not settings:
        return None
    with drawing():
        panels = [
            Panel(setting_text(setting), _draw_speed(points, task, f"ap-speed-{place}"), PANEL_PX)
            for place, (setting, points) in enumerate(settings)
        ]
    has_spread = any(spread for _, points in settings for _, _, _, _, spread in points)
    bars = " Bars: standard deviation over seeds." if has_spread else ""
    caption = (
        f"{capitalized(task_word(task))} against the median time of an image; up and to the left is better. The line "
        f"joins models that no other one beats in both.{bars} {accuracy_conditions(comparison)} "
        f"{speed_conditions(comparison)}"
    )
    return Plot("ap-speed", caption, panels)


# (place of the model, its title, ms, AP, standard deviation or 0)
_Point = tuple[int, str, float, float, float]


def _points(comparison: Comparison, task: str, setting: tuple[str, int]) -> list[_Point]:
    points = []
    for index, model in enumerate(comparison.models):
        speed, ap = speed_at(model, setting), model.mean(task, "AP")
        if speed and ap is not None and speed.whole_ms["median"] > 0:
            points.append((index, model.title, speed.whole_ms["median"], ap, model.spread(task, "AP") or 0.0))
    return points


def _draw_speed(points: Sequence[_Point], task: str, name: str) -> str:
    # Margins are fixed, since where labels have room is found out before anything is drawn.
    figure, axes = new_figure(PANEL_PX, 300, has_fixed_margins=True)
    figure.subplots_adjust(left=0.12, right=0.97, top=0.96, bottom=0.16)
    times = [ms for _, _, ms, _, _ in points]
    if max(times) > LOG_RATIO * min(times):
        use_log(axes, "x", times)
        axes.set_xlim(min(times) / 1.5, max(times) * 1.5)
    else:
        room = 0.25 * (max(times) - min(times)) or 0.2 * max(times)
        axes.set_xlim(max(0.0, min(times) - room), max(times) + room)
    low, high = min(ap - sd for *_, ap, sd in points), max(ap + sd for *_, ap, sd in points)
    room = max(0.25 * (high - low), 1.0)
    axes.set_ylim(max(0.0, low - room), high + room)
    axes.grid(visible=True)
    axes.set(xlabel="ms an image", ylabel=task_word(task))
    front = _front([(ms, ap) for _, _, ms, ap, _ in points])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for index, _, ms, ap, spread in points:
        color = model_color(index)
        if spread:
            axes.errorbar(ms, ap, yerr=spread, color=color, elinewidth=1.2, capsize=3)
        axes.plot(ms, ap, marker=model_marker(index), markersize=9, color=color, markeredgecolor=PAPER, linestyle="")
    _label_points(axes, points)
    said = "; ".join(f"{title}: {number(ap)} at {number(ms)} ms" for _, title, ms, ap, _ in points)
    return to_svg(figure, name, f"{task_word(task)} against time. {said}")


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other one beats in both, from the fastest to the slowest."""
    front: list[tuple[float, float]] = []
    for ms, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or ap > front[-1][1]:
            front.append((ms, ap))
    return front


def _label_points(axes: Axes, points: Sequence[_Point]) -> None:
    """Writes names beside the points, where neither a point nor another name is."""
    spots = []
    for _, title, ms, ap, spread in points:
        (x, low), (_, high) = axes.transData.transform([(ms, ap - spread), (ms, ap + spread)])
        spots.append((label(title), x, low - 7, high + 7))
    taken = [(x - 7, low, x + 7, high) for _, x, low, high in spots]
    frame = axes.get_window_extent()
    for text, x, low, high in spots:
        width, half, middle = len(text) * _LETTER_PX, 0.6 * FONT_PX, (low + high) / 2
        # (alignment, where the text begins, its middle's height): right, left, above, below, and further away.
        starts = [("left", x + 10, middle), ("right", x - 10 - width, middle)]
        for far in (0, 14, 28):
            starts += [("center", x - width / 2, high + half + far), ("center", x - width / 2, low - half - far)]
        inside = [start for start in starts if start[1] >= frame.x0 and start[1] + width <= frame.x1 + 8]
        boxes = [(left, height - half, left + width, height + half) for _, left, height in inside or starts]
        hits = [sum(_overlaps(box, other) for other in taken) for box in boxes]
        best = hits.index(min(hits))
        align, left, height = (inside or starts)[best]
        taken.append(boxes[best])
        anchor = {"left": left, "right": left + width, "center": left + width / 2}[align]
        place = axes.transData.inverted().transform((anchor, height))
        axes.text(place[0], place[1], text, ha=align, va="center_baseline")


def _overlaps(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Boxes (left, bottom, right, top)."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def class_plot(comparison: Comparison) -> Plot | None:
    """AP by class: bars of a few classes, markers of many; None where no class has an AP."""
    task = main_task(comparison.tasks)
    shown = [
        name
        for name in class_names(comparison, task)
        if any(model.mean(task, CLASS_PREFIX + name) is not None for model in comparison.models)
    ]
    models = [model for model in comparison.models if model.values(task, "AP")]
    if not shown or not models:
        return None
    left_out = len(shown) - MAX_PLOTTED_CLASSES
    if left_out > 0:
        frequent = sorted(shown, key=lambda name: -comparison.class_counts.get(name, 0))[:MAX_PLOTTED_CLASSES]
        shown = [name for name in shown if name in set(frequent)]
    parts = [shown[start : start + CLASSES_PER_PANEL] for start in range(0, len(shown), CLASSES_PER_PANEL)]
    draw = _draw_class_bars if len(shown) <= MAX_BAR_CLASSES else _draw_class_markers
    ends = [np.add(means, spreads) for _, means, spreads in _class_values(comparison, task, shown)]
    limit = 1.12 * max(float(np.nanmax(ends)), 1.0)
    with drawing():
        panels = [
            Panel("", draw(comparison, part, limit, f"classes-{place}"), PANEL_PX) for place, part in enumerate(parts)
        ]
    caption = f"{capitalized(task_word(task))} by class, percent. {accuracy_conditions(comparison)}"
    if left_out > 0:
        caption += f" The {MAX_PLOTTED_CLASSES} most frequent classes; {left_out:,} others are in the table alone."
    return Plot("classes", caption, panels, model_legend(comparison.models, models))


# (place of the model, AP of each class or NaN, standard deviations or 0)
_ClassValues = tuple[int, list[float], list[float]]


def _class_values(comparison: Comparison, task: str, names: Sequence[str]) -> list[_ClassValues]:
    """Of models with an AP of any class."""
    values = []
    for index, model in enumerate(comparison.models):
        keys = [CLASS_PREFIX + name for name in names]
        means = [model.mean(task, key) for key in keys]
        if any(mean is not None for mean in means):
            spreads = [model.spread(task, key) or 0.0 for key in keys]
            values.append((index, [np.nan if mean is None else mean for mean in means], spreads))
    return values


def _draw_class_bars(comparison: Comparison, names: Sequence[str], limit: float, name: str) -> str:
    task = main_task(comparison.tasks)
    values = _class_values(comparison, task, names)
    bar_px = 15
    height = 60 + len(names) * (len(values) * bar_px + 14)
    figure, axes = new_figure(PANEL_PX, height)
    thick = bar_px / (len(values) * bar_px + 14)
    for place, (index, means, spreads) in enumerate(values):
        rows = np.arange(len(names)) + (place - (len(values) - 1) / 2) * thick
        bars = axes.barh(rows, means, 0.86 * thick, color=model_color(index))
        if any(spreads):
            axes.errorbar(means, rows, xerr=spreads, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
        for bar, mean, spread in zip(bars, means, spreads, strict=True):
            if np.isfinite(mean):
                middle = bar.get_y() + bar.get_height() / 2
                axes.annotate(
                    number(mean),
                    (mean + spread, middle),
                    (4, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    fontsize=FONT_PX - 1,
                    color=MUTED,
                )
    _finish_classes(axes, task, names, limit)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return to_svg(figure, name, f"{task_word(task)} by class, as bars; the figures are in the table")


def _draw_class_markers(comparison: Comparison, names: Sequence[str], limit: float, name: str) -> str:
    task = main_task(comparison.tasks)
    figure, axes = new_figure(PANEL_PX, 60 + 17 * len(names))
    values = _class_values(comparison, task, names)
    table = np.array([means for _, means, _ in values])
    for row, column in enumerate(table.T):
        found = column[np.isfinite(column)]
        if found.size:
            axes.plot([found.min(), found.max()], [row, row], color=MUTED, linewidth=1)
    for index, means, _ in values:
        axes.plot(
            means,
            range(len(names)),
            linestyle="",
            marker=model_marker(index),
            markersize=6,
            color=model_color(index),
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            clip_on=False,
        )
    _finish_classes(axes, task, names, limit)
    axes.grid()
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    return to_svg(figure, name, f"{task_word(task)} by class, a row a class; the figures are in the table")


def _finish_classes(axes: Axes, task: str, names: Sequence[str], limit: float) -> None:
    """Names at the rows, the first one at the top, and the axis of AP, the same in all panels."""
    axes.set_yticks(range(len(names)), [label(class_name) for class_name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, limit)
    axes.set_xlabel(task_word(task))


def precision_recall_plots(comparison: Comparison) -> list[Plot]:
    """A plot a task, a panel for every IoU threshold."""
    plots = []
    for task in comparison.tasks:
        with drawing():
            panels = _recall_panels(comparison, task)
        if panels:
            shown = [model for model in comparison.models if any(curve.task == task for curve in model.curves)]
            caption = (
                f"{task_title(task)}: precision over recall, the mean over classes, of the first seed's run. "
                f"{accuracy_conditions(comparison, is_mean=False)}"
            )
            plots.append(Plot(f"pr-{task}", caption, panels, model_legend(comparison.models, shown)))
    return plots


def _recall_panels(comparison: Comparison, task: str) -> list[Panel]:
    thresholds = {curve.iou for model in comparison.models for curve in model.curves if curve.task == task}
    panels = []
    # The mean, written as 0, comes last.
    for place, iou in enumerate(sorted(thresholds, key=lambda iou: (iou == 0, iou))):
        curves = [
            (index, curve)
            for index, model in enumerate(comparison.models)
            for curve in model.curves
            if curve.task == task and curve.iou == iou
        ]
        title = f"IoU {iou:.2f}" if iou else "mean of IoU 0.50 to 0.95"
        panels.append(Panel(title, _draw_recall(curves, f"pr-{task}-{place}", title), 320))
    return panels


def _draw_recall(curves: Sequence[tuple[int, Curve]], name: str, title: str) -> str:
    figure, axes = new_figure(320, 280)
    for index, curve in curves:
        axes.plot(
            curve.recall,
            curve.precision,
            color=model_color(index),
            linewidth=1.8,
            marker=model_marker(index),
            markersize=5,
            markevery=max(1, len(curve.recall) // 6),
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="auto")
    axes.grid()
    return to_svg(figure, name, f"Precision over recall, {title}")


def stages_plot(comparison: Comparison) -> Plot | None:
    """Time by stage as stacked bars, a panel for every precision and batch; None without any."""
    stages = stage_names(comparison)
    panels = []
    with drawing():
        for place, setting in enumerate(speed_settings(comparison)):
            rows = [(model.title, speed) for model in comparison.models if (speed := speed_at(model, setting))]
            rows = [(title, speed) for title, speed in rows if speed.stages_ms]
            if rows:
                panels.append(Panel(setting_text(setting), _draw_stages(rows, stages, f"stages-{place}"), PANEL_PX))
    if not panels:
        return None
    legend = [(stage_swatch(index), stage) for index, stage in enumerate(stages)]
    caption = (
        "Median ms an image of each stage, in the order in which an image goes through them; the figure at the end is "
        f"their sum. {speed_conditions(comparison)}"
    )
    return Plot("stages", caption, panels, legend)


def _draw_stages(rows: Sequence[tuple[str, Speed]], stages: Sequence[str], name: str) -> str:
    figure, axes = new_figure(PANEL_PX, 56 + 30 * len(rows))
    ends = np.zeros(len(rows))
    for index, stage in enumerate(stages):
        times = np.array([speed.stages_ms.get(stage, {}).get("median", 0.0) for _, speed in rows])
        times = np.nan_to_num(times)
        axes.barh(range(len(rows)), times, 0.66, left=ends, color=stage_color(index), edgecolor=PAPER, linewidth=0.8)
        ends += times
    for row, end in enumerate(ends):
        axes.annotate(number(float(end)), (end, row), (5, 0), textcoords="offset points", va="center_baseline")
    axes.set_yticks(range(len(rows)), [label(title) for title, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * max(float(ends.max()), 1e-3))
    axes.set_xlabel("ms an image")
    axes.grid(axis="x", color=LINE)
    axes.tick_params(axis="y", length=0)
    said = "; ".join(f"{title}: {number(float(end))} ms" for (title, _), end in zip(rows, ends, strict=True))
    return to_svg(figure, name, f"Time by stage. {said if said else MISSING}")
