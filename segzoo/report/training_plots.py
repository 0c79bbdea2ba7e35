"""Plots of trainings: the losses of every model, and how AP grows with the images seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from segzoo.report.content import Comparison, TrainedRun, TrainingCurve, main_task
from segzoo.report.plots import PANEL_PX, model_legend
from segzoo.report.svg import (
    FONT_PX,
    MUTED,
    PAPER,
    Panel,
    Plot,
    drawing,
    label,
    model_color,
    model_marker,
    new_figure,
    spread_apart,
    to_svg,
    use_log,
)
from segzoo.report.wording import accuracy_conditions, capitalized, task_word

TOTAL = "total_loss"
_DASHES: list[tuple[int, tuple[float, ...]]] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
# More points than pixels only make the page large.
MAX_POINTS = 400


def loss_plot(comparison: Comparison) -> Plot | None:
    """A panel a model: total loss and its parts against iterations; None where nothing was logged."""
    panels = []
    with drawing():
        for index, model in enumerate(comparison.models):
            curves = [run.curve for run in model.runs if _can_be_drawn(run.curve)]
            if curves:
                panels.append(Panel(model.title, _draw_losses(index, curves, f"losses-{index}"), PANEL_PX))
    if not panels:
        return None
    caption = (
        "Losses against iterations: the total in the model's colour, its parts in grey, of the first seed's run; "
        "total losses of further seeds are faint. Every method has a loss of its own: their values cannot be compared "
        f"between models. {accuracy_conditions(comparison, is_mean=False)}"
    )
    return Plot("losses", caption, panels)


def _can_be_drawn(curve: TrainingCurve) -> bool:
    return bool(curve.iterations) and any(_positive(curve, name)[0] for name in curve.losses)


def _positive(curve: TrainingCurve, name: str) -> tuple[list[int], list[float]]:
    """Iterations and values that a logarithmic axis can show, thinned out."""
    points = [
        (iteration, value)
        for iteration, value in zip(curve.iterations, curve.losses[name], strict=False)
        if math.isfinite(value) and value > 0
    ]
    step = -(-len(points) // MAX_POINTS) or 1
    # Counted from the end, since the last value is the one that matters.
    kept = points[::-1][::step][::-1]
    return [iteration for iteration, _ in kept], [value for _, value in kept]


def _draw_losses(index: int, curves: Sequence[TrainingCurve], name: str) -> str:
    figure, axes = new_figure(PANEL_PX, 280, has_fixed_margins=True)
    # On the right there is room for the names of the lines.
    figure.subplots_adjust(left=0.12, right=0.72, top=0.96, bottom=0.17)
    first = curves[0]
    parts = [part for part in first.losses if part != TOTAL]
    lines: list[tuple[str, str, float]] = []
    everything: list[float] = []
    for place, part in enumerate(parts):
        iterations, values = _positive(first, part)
        if values:
            axes.plot(iterations, values, color=MUTED, linewidth=1, linestyle=_DASHES[place % len(_DASHES)])
            lines.append((part, MUTED, values[-1]))
            everything += values
    for seed, curve in enumerate(curves):
        iterations, values = _positive(curve, TOTAL) if TOTAL in curve.losses else ([], [])
        if values:
            color = model_color(index)
            axes.plot(iterations, values, color=color, linewidth=1.8 if seed == 0 else 1, alpha=1 if seed == 0 else 0.4)
            everything += values
            if seed == 0:
                lines.append(("total", color, values[-1]))
    use_log(axes, "y", everything)
    axes.set_xlim(0, max(curve.iterations[-1] for curve in curves))
    axes.set(xlabel="iterations", ylabel="loss")
    axes.grid(visible=True)
    axes.locator_params(axis="x", nbins=4)
    _label_lines(axes, lines)
    return to_svg(figure, name, "Losses against iterations: " + ", ".join(title for title, _, _ in lines))


def _label_lines(axes: Axes, lines: Sequence[tuple[str, str, float]]) -> None:
    """Writes (name, colour, last value) at the right ends, none upon another."""
    frame = axes.get_window_extent()
    heights = [float(axes.transData.transform((1, value))[1]) for _, _, value in lines]
    gap = min(FONT_PX + 2, frame.height / max(len(lines), 1))
    places = spread_apart(heights, gap, frame.y0, frame.y1)
    for (title, color, _), height, place in zip(lines, heights, places, strict=True):
        # From the line's end to its name, in parts of the plot's size.
        end, middle = ((value - frame.y0) / frame.height for value in (height, place))
        axes.plot(
            [1, 1.03], [end, middle], color=color, linewidth=0.8, transform=axes.transAxes, clip_on=False, zorder=1
        )
        text = label(title.removeprefix("loss_"))
        axes.text(
            1.045, middle, text, color=color, fontsize=FONT_PX - 1, va="center_baseline", transform=axes.transAxes
        )


def growth_plot(comparison: Comparison) -> Plot | None:
    """AP against images seen, a line a model; None where no run was evaluated in between."""
    task = main_task(comparison.tasks)
    runs = [[points for run in model.runs if (points := _evaluated(run, f"{task}/AP"))] for model in comparison.models]
    if not any(len(points) > 1 for of_model in runs for points in of_model):
        return None
    with drawing():
        figure, axes = new_figure(PANEL_PX, 300)
        for index, of_model in enumerate(runs):
            color = model_color(index)
            if len(of_model) > 1:
                for points in of_model:
                    axes.plot(list(points), list(points.values()), color=color, linewidth=0.9, alpha=0.4)
            common = _common(of_model)
            means = [statistics.fmean(points[images] for points in of_model) for images in common]
            axes.plot(common, means, color=color, linewidth=1.8)
            axes.plot(common, means, model_marker(index), color=color, markersize=6.5, markeredgecolor=PAPER)
        axes.set(xlabel="images seen", ylabel=task_word(task), xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=True)
        svg = to_svg(figure, "growth", f"{task_word(task)} against images seen")
    caption = (
        f"{capitalized(task_word(task))} against the images seen in training (iterations × batch): the mean over "
        f"seeds, and faintly every run. {accuracy_conditions(comparison)}"
    )
    shown = [model for model, of_model in zip(comparison.models, runs, strict=True) if of_model]
    return Plot("growth", caption, [Panel("", svg, PANEL_PX)], model_legend(comparison.models, shown))


def _common(runs: Sequence[dict[int, float]]) -> list[int]:
    """Images seen that every run was evaluated after."""
    return [images for images in runs[0] if all(images in points for points in runs)] if runs else []


def _evaluated(run: TrainedRun, key: str) -> dict[int, float]:
    """Images seen -> AP of the evaluations in between."""
    return {
        iteration * run.batch: values[key]
        for iteration, values in run.curve.evaluations
        if values.get(key) is not None and math.isfinite(values[key])
    }
