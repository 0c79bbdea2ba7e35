"""Drawings by matplotlib as SVG that lives inside a page: it takes the page's font and its light or dark colours.

The same input gives the same bytes: no dates, no random names, no settings of the user's own.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Colours that matplotlib draws with, replaced by the page's variables afterwards.
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
_MODEL, _STAGE = "#0a{:02x}01", "#0b{:02x}01"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"}

# (light page, dark page). Okabe and Ito's colours, which the colour-blind can tell apart, without yellow.
MODEL_COLORS = [
    ("#0072b2", "#4aa8e8"),
    ("#d55e00", "#ff8b4d"),
    ("#009e73", "#34c79b"),
    ("#b3589a", "#e59ccb"),
    ("#b07c00", "#f0bb3f"),
    ("#3b98cf", "#97d3f7"),
    ("#882255", "#d07a9f"),
    ("#555a60", "#b4b9bf"),
]
# Nine, so that a ninth model has neither the colour nor the shape of the first.
MARKERS = "osD^vPX<>"
# Network in blues, what comes after in browns: which half takes the time is seen at once.
STAGE_COLORS = [
    ("#9aa0a6", "#8b9299"),
    ("#08519c", "#2f7fd0"),
    ("#3182bd", "#6baed6"),
    ("#9ecae1", "#c6dbef"),
    ("#a63603", "#c4540f"),
    ("#e6550d", "#f08030"),
    ("#fdae6b", "#fdb77d"),
    ("#fdd9b5", "#fde3ca"),
]
FONT_PX = 11.0
# Points an inch, so that a unit of the SVG is a pixel of the page.
_UNITS_PER_INCH = 72.0
MAX_LABEL_LETTERS = 28
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segzoo",
    # Names may hold a dollar.
    "text.parse_math": False,
    "font.size": FONT_PX,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_PX,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT_PX - 1,
    "ytick.labelsize": FONT_PX - 1,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
}


@dataclass(frozen=True)
class Panel:
    """One drawing. title: above it. svg: markup. width_px: that it was drawn for."""

    title: str
    svg: str
    width_px: int


@dataclass
class Plot:
    """Drawings that belong together. legend: (markup of a swatch, text)."""

    name: str
    caption: str
    panels: list[Panel]
    legend: list[tuple[str, str]] = field(default_factory=list)


def model_color(index: int) -> str:
    """For matplotlib, of the model at this place of the comparison."""
    return _MODEL.format(index % len(MODEL_COLORS))


def model_marker(index: int) -> str:
    """For matplotlib, of the model at this place of the comparison."""
    return MARKERS[index % len(MARKERS)]


def stage_color(index: int) -> str:
    """For matplotlib, of the stage at this place."""
    return _STAGE.format(index % len(STAGE_COLORS))


def color_variables(is_dark: bool) -> list[tuple[str, str]]:
    """(CSS variable, colour) of models and stages."""
    column = int(is_dark)
    models = [(f"--model-{index}", pair[column]) for index, pair in enumerate(MODEL_COLORS)]
    return models + [(f"--stage-{index}", pair[column]) for index, pair in enumerate(STAGE_COLORS)]


def model_swatch(index: int) -> str:
    """Markup of the shape that a model has in all plots, 14 px."""
    marker = MarkerStyle(model_marker(index))
    # Markers reach 0.5 from their middle; y grows downwards on a page.
    rings = [
        7 + np.array([11, -11]) * np.asarray(ring)
        for ring in marker.get_path().transformed(marker.get_transform()).to_polygons()
    ]
    outlines = ["M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in ring.tolist()) + "Z" for ring in rings]
    color = f"var(--model-{index % len(MODEL_COLORS)})"
    return (
        '<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
        f'<path d="{"".join(outlines)}" style="fill: {color}"/></svg>'
    )


def stage_swatch(index: int) -> str:
    """Markup of a stage's colour, 14 px."""
    color = f"var(--stage-{index % len(STAGE_COLORS)})"
    return (
        '<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
        f'<path d="M1 1H13V13H1Z" style="fill: {color}"/></svg>'
    )


def label(text: str) -> str:
    """A name as a plot can hold it: one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LABEL_LETTERS else line[: MAX_LABEL_LETTERS - 1] + "…"


@contextmanager
def drawing() -> Iterator[None]:
    """Meanwhile matplotlib draws as this page does, whatever the user's settings; then as before."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # A letter that matplotlib's font lacks is none of ours: the page's font draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(width_px: float, height_px: float, *, has_fixed_margins: bool = False) -> tuple[Figure, Axes]:
    """A figure with one plot; within `drawing`. Its margins fit the texts unless they are fixed."""
    # Not pyplot's: it needs no window, and the caller's pyplot stays as it is.
    inches = (width_px / _UNITS_PER_INCH, height_px / _UNITS_PER_INCH)
    figure = Figure(inches, dpi=_UNITS_PER_INCH, layout=None if has_fixed_margins else "constrained")
    return figure, figure.subplots()


def use_log(axes: Axes, axis: str, values: Sequence[float]) -> None:
    """A logarithmic axis ("x" or "y") with plain numbers at it, more of them where `values` span little."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    is_wide = max(values) / min(values) > 300
    chosen.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    chosen.set_minor_formatter(NullFormatter())


def spread_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart and within the limits where they have the room."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    last = low - gap
    for index in order:
        places[index] = last = max(wanted[index], last + gap)
    last = high + gap
    for index in reversed(order):
        places[index] = last = min(places[index], last - gap)
    return places


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Markup of an <svg> for a page.

    Args:
        figure: drawn within `drawing`, which still lasts.
        name: of the drawing; no other one of the page has it.
        description: for those who cannot see it.
    """
    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its rules would hold for the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w.]+)', svg))
    # Between "<" and ">" only: what stands in a text is not ours to change.
    svg = re.sub(r"<[^>]*>", lambda tag: _mend(tag.group(), name, used), svg)
    svg = re.sub(r">\s+<", "><", svg).strip()
    return svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{escape(description)}"', 1)


def _mend(tag: str, name: str, used: set[str]) -> str:
    """A tag with the page's font and colours, names of its own, and no more than a page needs."""
    tag = re.sub(r"\n", " ", tag)
    if tag.startswith("<svg"):
        tag = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", tag)
        return re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', tag)
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    return re.sub(r"#[0-9a-f]{6}\b(?!-)", lambda color: _variable(color.group()), tag)


def _variable(color: str) -> str:
    """The page's colour for one of matplotlib's; others stay."""
    if color in _VARIABLES:
        return f"var(--{_VARIABLES[color]})"
    if color.startswith("#0a"):
        return f"var(--model-{int(color[3:5], 16)})"
    return f"var(--stage-{int(color[3:5], 16)})" if color.startswith("#0b") else color
