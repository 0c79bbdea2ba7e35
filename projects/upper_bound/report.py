"""What was measured, as a table for terminals and pages, as json, and as advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from projects.upper_bound.measure import AP_TYPES, SIZES, Measured
from projects.upper_bound.objects import DataSet
from projects.upper_bound.rows import Row

COLUMNS = ("method", "representation", "input", "mean IoU", *SIZES, "AP", "AP75", "APs", "APm", "APl", "boundary AP")
# Differences of mean IoU that nobody would see in a trained network's AP.
NEGLIGIBLE_IOU = 0.01


def as_dict(measured: Measured, data: DataSet, conditions: dict[str, Any]) -> dict[str, Any]:
    """Everything, in plain values for json: conditions, objects, rows, advice."""
    names = data.truth.categories
    rows = []
    for number, row in enumerate(measured.rows):
        by_category = measured.mean_iou_by_category(number)
        entry: dict[str, Any] = {"method": row.method, "title": row.title, "input": row.input, "settings": row.settings}
        entry |= {"mean_iou": measured.mean_iou(number), "by_size": measured.mean_iou_by_size(number)}
        entry |= {"by_class": {names[category]: value for category, value in by_category.items()}}
        entry |= {"no_common_pixel": int(measured.num_lost[number])}
        for kind, metrics in measured.metrics.get(row.name, {}).items():
            entry[kind] = {key: None if math.isnan(value) else value for key, value in metrics.items()}
        rows.append(entry)
    by_size = dict(zip(SIZES, measured.counts.sum(axis=0).tolist(), strict=True))
    objects: dict[str, Any] = {"images": data.num_images, "objects": data.num_objects, "by_size": by_size}
    objects |= {"left_out": {reason: data.left_out.count(reason) for reason in data.left_out}}
    return {"files": data.files, **objects, **conditions, "rows": rows, "advice": advice(measured)}


def describe_data(data: DataSet) -> str:
    """One sentence: how many objects, and what was left out."""
    reasons = ", ".join(f"{data.left_out.count(reason)} {reason}" for reason in data.left_out)
    return (
        f"{data.num_objects} objects of {data.num_images} images; left out for all representations: {reasons or 'none'}"
    )


def table(measured: Measured) -> list[tuple[str, ...]]:
    """The header and one line a row: IoU from 0 to 1, AP in percent, "-" for what was not measured."""
    lines = [COLUMNS if measured.metrics else COLUMNS[: 4 + len(SIZES)]]
    for number, row in enumerate(measured.rows):
        by_size = measured.mean_iou_by_size(number)
        line = [row.method, row.title, row.input, _iou(measured.mean_iou(number)), *map(_iou, by_size.values())]
        if measured.metrics:
            masks, boundaries = (measured.metrics[row.name][kind] for kind in AP_TYPES)
            line += [_ap(masks[key]) for key in ("AP", "AP75", "APs", "APm", "APl")] + [_ap(boundaries["AP"])]
        lines.append(tuple(line))
    return lines


def _iou(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ap(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """A table in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for Markdown."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def page(measured: Measured, data: DataSet, conditions: dict[str, Any]) -> str:
    """The Markdown page: objects, table, classes, advice."""
    told = "; ".join(f"{name} {value}" for name, value in conditions.items())
    best = best_rows(measured)
    categories = [
        (data.truth.categories[category], str(int(count)), *(_iou(by_category[category]) for _, by_category in columns))
        for columns in [[(row, measured.mean_iou_by_category(row)) for row in best]]
        for category, count in zip(measured.categories, measured.counts.sum(axis=1), strict=True)
        if count
    ]
    head = ("class", "objects", *(measured.rows[row].name for row in best))
    return "\n".join(
        [
            "# Upper bounds of mask representations",
            "",
            f"{describe_data(data)}. {told}.",
            "",
            as_markdown(table(measured)),
            "",
            advice(measured),
            "",
            "## Mean IoU by class, of each method's best row",
            "",
            as_markdown([head, *categories]),
            "",
        ]
    )


def best_rows(measured: Measured) -> list[int]:
    """The row of the highest mean IoU of each method, in the order of the methods."""
    best: dict[str, int] = {}
    for number, row in enumerate(measured.rows):
        known = best.get(row.method)
        if row.is_method and (known is None or measured.mean_iou(number) > measured.mean_iou(known)):
            best[row.method] = number
    return list(best.values())


def advice(measured: Measured) -> str:
    """What the numbers say: which representation holds most, where it fails, and from where on more is no gain."""
    ranked = sorted(best_rows(measured), key=measured.mean_iou, reverse=True)
    first, last = measured.rows[ranked[0]], measured.rows[ranked[-1]]
    said = f"On these objects {first.name} holds most (mean IoU {measured.mean_iou(ranked[0]):.3f})"
    if len(ranked) > 1:
        said += f", {last.name} least of the methods' best ({measured.mean_iou(ranked[-1]):.3f})"
    sizes = {size: iou for size, iou in measured.mean_iou_by_size(ranked[0]).items() if iou is not None}
    worst = min(sizes, key=sizes.__getitem__)
    sentences = [f"{said}; of {first.method}'s, {worst} objects lose most ({sizes[worst]:.3f})."]
    for key, what in (("rays", "rays"), ("shape_size", "cells a side of a shape")):
        sentences += _enough(measured, key, what)
    return " ".join(sentences)


def _enough(measured: Measured, key: str, what: str) -> list[str]:
    """For the best row with a setting that counts something: the smallest count that is nearly as good."""
    counted = [number for number, row in enumerate(measured.rows) if key in row.settings]
    if not counted:
        return []
    best = max(counted, key=measured.mean_iou)
    kin = [number for number in counted if _but(measured.rows[number], key) == _but(measured.rows[best], key)]
    least = measured.mean_iou(best) - NEGLIGIBLE_IOU
    enough = min(
        (number for number in kin if measured.mean_iou(number) >= least),
        key=lambda number: int(measured.rows[number].settings[key]),
    )
    row, top = measured.rows[enough], measured.rows[best]
    return [
        f"{row.settings[key]} {what} are enough for {row.method}: {measured.mean_iou(enough):.3f}, where the best, "
        f"{top.settings[key]}, have {measured.mean_iou(best):.3f} ({top.title})."
    ]


def _but(row: Row, key: str) -> dict[str, Any]:
    return {name: value for name, value in row.settings.items() if name != key}
