"""Boundary AP against its definition (Cheng et al., "Boundary IoU", CVPR 2021), pixel by pixel."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segzoo.errors import ConfigError
from segzoo.evaluation.ground_truth import load_ground_truth
from segzoo.evaluation.metrics import coco_metrics
from segzoo.geometry.rle import encode_masks

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = (120, 160)
SHARE = 0.02


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a (H, W) bool mask with a pixel outside of it, or outside of the image, at most d away on both
    axes, where d is 2 % of the diagonal, in whole pixels, at least 1."""
    height, width = mask.shape
    reach = max(1, round(SHARE * math.hypot(height, width)))
    around = np.zeros((height + 2 * reach, width + 2 * reach), bool)
    around[reach:-reach, reach:-reach] = mask
    is_inner = np.ones_like(mask)
    for down, right in itertools.product(range(2 * reach + 1), repeat=2):
        is_inner &= around[down : down + height, right : right + width]
    return mask & ~is_inner


def iou(first: np.ndarray, second: np.ndarray, is_crowd: bool = False) -> float:
    """Intersection over union; of a crowd as the second over the first alone, as in COCO's rule."""
    union = first if is_crowd else first | second
    return (first & second).sum() / max(union.sum(), 1)


def boundary_iou(detection: np.ndarray, truth: np.ndarray, is_crowd: bool) -> float:
    """What boundary AP compares with its thresholds."""
    whole = iou(detection, truth, is_crowd)
    return whole if is_crowd else min(whole, iou(boundary(detection), boundary(truth)))


class BoundaryOracle(COCOeval):
    """pycocotools' matching and averaging, of the IoU of the definition."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        detections, truths = self._dts[imgId, catId], self._gts[imgId, catId]
        best = sorted(detections, key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        if not best or not truths:
            return []
        return np.array(
            [[boundary_iou(decode(one), decode(other), bool(other["iscrowd"])) for other in truths] for one in best]
        )


def decode(entry: dict) -> np.ndarray:
    return coco_mask.decode(entry["segmentation"]).astype(bool)


def rle_of(mask: np.ndarray) -> dict:
    rle = encode_masks(mask[None])[0]
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def blob(rng: np.random.Generator) -> np.ndarray:
    """An ellipse, now and then with a hole, which has an edge as well; some lie across the image's border."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    half_height, half_width = np.exp(rng.uniform(1.2, 4.0, 2))
    distance = ((rows - rng.uniform(0, SIZE[0])) / half_height) ** 2
    distance = distance + ((columns - rng.uniform(0, SIZE[1])) / half_width) ** 2
    return (distance <= 1) & (distance >= (0.3 if rng.random() < 0.3 else 0.0))


def data_set(seed: int) -> tuple[dict, list[dict]]:
    """A COCO json with crowds and a gap in its ids, and detections: objects shifted a little, and false ones."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * index, "height": SIZE[0], "width": SIZE[1]} for index in range(5)]
    annotations: list[dict] = []
    detections: list[dict] = []
    for image, number in itertools.product(images, range(5)):
        mask, category_id = blob(rng), int(rng.choice([1, 7]))
        if not mask.any():
            continue
        own = {"image_id": image["id"], "category_id": category_id}
        rle = rle_of(mask)
        box = coco_mask.toBbox(rle).tolist()
        extra = {"id": len(annotations) + 1, "iscrowd": int(number == 4), "area": int(mask.sum()), "bbox": box}
        annotations.append({**own, **extra, "segmentation": rle})
        for found in (np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)), blob(rng)):
            score = float(rng.integers(1, 10) / 8)
            detections.append({**own, "score": score, "segmentation": rle_of(found), "area": float(found.sum())})
    categories = [{"id": 1, "name": "ant"}, {"id": 7, "name": "bee"}]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def write(content: dict, folder: Path) -> str:
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return str(path)


def oracle_statistics(json_file: str, detections: list[dict]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        found = truth.loadRes([{key: value for key, value in one.items() if key != "area"} for one in detections])
        evaluation = BoundaryOracle(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [value * 100 if value > -1 else math.nan for value in evaluation.stats]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_boundary_ap_equals_the_slow_oracle(seed: int, tmp_path: Path) -> None:
    content, detections = data_set(seed)
    json_file = write(content, tmp_path)
    truth = load_ground_truth(json_file)
    found, masks = (coco_metrics(truth, detections, kind, "faster") for kind in ("boundary", "segm"))
    np.testing.assert_allclose(
        [found[name] for name in STATISTICS], oracle_statistics(json_file, detections), rtol=0, atol=1e-9
    )
    assert found.keys() == masks.keys()
    assert 1 < found["AP"] < masks["AP"] - 1


def square(left: int) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[40:60, left : left + 20] = True
    return mask


def one_object(mask: np.ndarray, found: np.ndarray, tmp_path: Path) -> dict[str, dict[str, float]]:
    entry = {"image_id": 1, "category_id": 1, "segmentation": rle_of(mask), "area": int(mask.sum())}
    box = coco_mask.toBbox(entry["segmentation"]).tolist()
    content = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": [{**entry, "id": 1, "iscrowd": 0, "bbox": box}],
    }
    truth = load_ground_truth(write(content, tmp_path))
    detection = {**entry, "segmentation": rle_of(found), "area": float(found.sum()), "score": 0.5}
    return {kind: coco_metrics(truth, [detection], kind, "faster") for kind in ("segm", "boundary")}


def test_a_square_shifted_by_two_pixels_has_a_boundary_iou_of_one_half(tmp_path: Path) -> None:
    # 2 % of the diagonal are 3 px. Both rings have 400 - 14 * 14 = 204 pixels, and share 18 * 3 above, as many below
    # and 2 in each of the 14 rows between: 136 of 272. The squares share 360 of 440.
    results = one_object(square(40), square(42), tmp_path)
    assert results["boundary"]["AP"] == pytest.approx(10.0)
    assert results["boundary"]["AP50"] == pytest.approx(100.0)
    assert results["segm"]["AP"] == pytest.approx(70.0)


def test_the_object_itself_has_boundary_ap_100(tmp_path: Path) -> None:
    assert one_object(square(40), square(40), tmp_path)["boundary"]["AP"] == pytest.approx(100.0)


def test_an_engine_without_boundaries_is_refused_with_the_remedy(tmp_path: Path) -> None:
    content, detections = data_set(0)
    truth = load_ground_truth(write(content, tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)'pycocotools'.*COCO_ENGINE faster"):
        coco_metrics(truth, detections, "boundary", "pycocotools")
