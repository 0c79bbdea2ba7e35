"""Objects left out by their size in the original image: which, and under what reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segzoo.config import get_segzoo_cfg
from segzoo.data.small_objects import FEW_PIXELS, SMALL_AREA, SMALL_SIDES, SmallObjectFilter
from segzoo.errors import DatasetError

RECORD = {"file_name": "none.png", "image_id": 1, "height": 60, "width": 80}


def filter_of(area: float = 0.0, sides: float = 0.0, pixels: int = 0) -> SmallObjectFilter:
    cfg: CfgNode = get_segzoo_cfg()
    cfg.INPUT.DROP_SMALL.AREA, cfg.INPUT.DROP_SMALL.SIDES, cfg.INPUT.DROP_SMALL.PIXELS = area, sides, pixels
    return SmallObjectFilter(cfg)


def rectangle(x: float, y: float, width: float, height: float, **fields: Any) -> dict[str, Any]:
    """An annotation as coco_json gives it."""
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    box = [x, y, x + width, y + height]
    return {"id": 1, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [polygon], "category_id": 0, **fields}


@st.composite
def annotations(draw_value: Any) -> dict[str, Any]:
    x, y = draw_value(st.integers(0, 30)), draw_value(st.integers(0, 30))
    width, height = draw_value(st.integers(1, 24)), draw_value(st.integers(1, 24))
    annotation = rectangle(x, y, width, height)
    kind = draw_value(st.sampled_from(["as written", "area only", "box only", "neither", "rle"]))
    if kind in ("as written", "area only"):
        # Written by people: it need not be the mask's.
        annotation["area"] = float(draw_value(st.integers(0, 40)))
    if kind in ("area only", "neither"):
        del annotation["bbox"], annotation["bbox_mode"]
    if kind == "rle":
        drawn = coco_mask.frPyObjects(annotation["segmentation"], RECORD["height"], RECORD["width"])
        annotation["segmentation"] = coco_mask.merge(drawn)
    return annotation


def slow_reason(annotation: dict[str, Any], thresholds: tuple[float, float, int]) -> str:
    """The rule of the issue, from the whole mask."""
    max_area, min_side, min_pixels = thresholds
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, RECORD["height"], RECORD["width"]))
    mask = coco_mask.decode(segmentation)
    rows, columns = np.nonzero(mask)
    box = annotation.get("bbox", [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    if max_area and annotation.get("area", mask.sum()) <= max_area:
        return SMALL_AREA
    if box[2] - box[0] < min_side and box[3] - box[1] < min_side:
        return SMALL_SIDES
    return FEW_PIXELS if mask.sum() < min_pixels else ""


@settings(max_examples=150, deadline=None)
@given(
    objects=st.lists(annotations(), max_size=6),
    thresholds=st.sampled_from([(15.0, 10.0, 15), (0.0, 10.0, 0), (15.0, 0.0, 0), (0.0, 0.0, 15), (0.0, 0.0, 0)]),
)
def test_small_object_filter_equals_the_rule_applied_one_by_one(
    objects: list[dict], thresholds: tuple[float, float, int]
) -> None:
    reasons = [slow_reason(annotation, thresholds) for annotation in objects]
    kept, counts = filter_of(*thresholds)(objects, RECORD)
    assert kept == [annotation for annotation, reason in zip(objects, reasons, strict=True) if not reason]
    assert counts == {reason: reasons.count(reason) for reason in reasons if reason}


@pytest.mark.parametrize(("area", "is_kept"), [(15.0, False), (15.01, True)])
def test_small_object_filter_area_at_the_threshold_is_dropped(area: float, is_kept: bool) -> None:
    kept, counts = filter_of(area=15.0)([rectangle(0, 0, 30, 30, area=area)], RECORD)
    assert (len(kept), counts) == (int(is_kept), {} if is_kept else {SMALL_AREA: 1})


@pytest.mark.parametrize(
    ("width", "height", "is_kept"), [(9.99, 9.99, False), (10.0, 2.0, True), (2.0, 10.0, True), (10.0, 10.0, True)]
)
def test_small_object_filter_sides_must_both_be_below(width: float, height: float, is_kept: bool) -> None:
    annotation = rectangle(20.0, 20.0, width, height)
    assert len(filter_of(sides=10.0)([annotation], RECORD)[0]) == int(is_kept)
    written = {**annotation, "bbox": [20.0, 20.0, width, height], "bbox_mode": BoxMode.XYWH_ABS}
    assert len(filter_of(sides=10.0)([written], RECORD)[0]) == int(is_kept)


def test_small_object_filter_sides_are_the_jsons_despite_rounding() -> None:
    assert 6.01 + 10.0 - 6.01 < 10.0
    objects = [rectangle(6.01, 20.0, 10.0, 5.0), rectangle(20.0, 6.01, 5.0, 10.0)]
    assert filter_of(sides=10.0)(objects, RECORD) == (objects, {})


def test_small_object_filter_pixels_at_the_threshold_are_kept() -> None:
    kept, counts = filter_of(pixels=15)([rectangle(0, 0, 5, 3), rectangle(0, 0, 7, 2)], RECORD)
    assert [annotation["bbox"] for annotation in kept] == [[0, 0, 5, 3]]
    assert counts == {FEW_PIXELS: 1}


def test_small_object_filter_off_looks_at_nothing() -> None:
    broken = {"id": 1, "segmentation": [[1.0, 1.0]], "area": 0.0, "bbox": [0, 0, 0, 0]}
    assert filter_of()([broken], RECORD) == ([broken], {})


def test_small_object_filter_malformed_segmentation_names_file_and_ids() -> None:
    with pytest.raises(DatasetError, match=r"none\.png: image id 1: annotation id 4: a polygon with 1 points"):
        filter_of(pixels=1)([{"id": 4, "segmentation": [[1.0, 1.0]]}], RECORD)
