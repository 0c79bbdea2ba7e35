"""Figure 7 of PolarMask, and the best of each method by the size of objects, from what was measured."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projects.upper_bound.measure import SIZES, Measured
from projects.upper_bound.report import best_rows

FIGURE_INCHES = (11.0, 4.8)
DOTS_PER_INCH = 110


def draw(measured: Measured, path: str) -> None:
    """Writes a png."""
    # Not pyplot's: it needs no window, and the caller's pyplot stays as it is.
    figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_rays(left, measured)
    draw_sizes(right, measured)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def ray_curves(measured: Measured) -> dict[str, list[tuple[int, float]]]:
    """(rays, mean IoU), ascending, of each centre and kind of parts."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, row in enumerate(measured.rows):
        if "rays" in row.settings:
            title = row.title.partition(", ")[2]
            curves[title].append((int(row.settings["rays"]), measured.mean_iou(number)))
    return {title: sorted(points) for title, points in curves.items()}


def draw_rays(axes: Axes, measured: Measured) -> None:
    """Mean IoU against the number of rays."""
    for title, points in ray_curves(measured).items():
        style: Any = "-" if "largest" in title else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=title)
    axes.set(xlabel="rays", ylabel="mean IoU", title="PolarMask (the paper's figure 7)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right")


def draw_sizes(axes: Axes, measured: Measured) -> None:
    """Mean IoU of small, medium and large objects in the best row of each method."""
    best = best_rows(measured)
    width = 0.8 / len(best)
    for place, row in enumerate(best):
        heights = [iou if iou is not None else 0.0 for iou in measured.mean_iou_by_size(row).values()]
        named = measured.rows[row]
        axes.bar(np.arange(len(SIZES)) + (place + 0.5) * width - 0.4, heights, width, label=named.name)
    axes.set(xticks=range(len(SIZES)), xticklabels=SIZES, ylabel="mean IoU", title="Best row of each method")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3, axis="y")
    # Below the axes, where it hides no bar.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize="small", frameon=False)
