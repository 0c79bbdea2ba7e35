"""COCO evaluation that holds detections as run lengths from the first image on.

Shape shorthand:
    D: detections.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as coco_mask

from segzoo.data.coco_json import lossless_int
from segzoo.data.registration import load_metadata
from segzoo.errors import DatasetError
from segzoo.evaluation.ground_truth import GroundTruth, load_ground_truth
from segzoo.evaluation.metrics import check_engine, coco_metrics
from segzoo.geometry.rle import RLEMasks, encode_in_chunks

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


class CocoEvaluator(DatasetEvaluator):
    """Box and mask AP of one data set against its json file.

    Args:
        dataset_name: a set registered by `register_coco_json` (or Detectron2's `register_coco_instances`).
        cfg: TEST.COCO_ENGINE chooses the engine, TEST.BOUNDARY_AP adds boundary AP, TEST.MASK_BUDGET_MB bounds the
            masks encoded at once.
        output_dir: where the predictions are written as COCO results; None = nowhere.

    Raises:
        ConfigError: the engine is unknown or cannot measure boundaries.
        DatasetError: the set has no json file.
    """

    def __init__(self, dataset_name: str, cfg: CfgNode, output_dir: str | None = None) -> None:
        self.dataset_name = dataset_name
        self.engine = cfg.TEST.COCO_ENGINE
        self.measures_boundaries = cfg.TEST.BOUNDARY_AP
        check_engine(self.engine, measures_boundaries=self.measures_boundaries)
        self.budget_mb = cfg.TEST.MASK_BUDGET_MB
        self.output_dir = output_dir
        metadata = load_metadata(dataset_name)
        if not metadata.get("json_file"):
            raise DatasetError(f"data set {dataset_name!r} has no json file", "register it by register_coco_json")
        self.json_file: str = metadata.json_file
        self.image_root: str = metadata.get("image_root") or ""
        mapping = metadata.thing_dataset_id_to_contiguous_id
        self.category_of_class = {
            number: lossless_int(category, "a category id") for category, number in mapping.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._detections: list[dict] = []
        self._images_seen: set[int] = set()
        # Boxes are always measured; masks when the model gives them.
        self._has_masks = False

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes a batch's predictions: inputs with "image_id", outputs with "instances" at the original size.

        pred_masks may be RLEMasks, a bool tensor (D, H, W), or absent.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            image_id = lossless_int(entry["image_id"], "image_id")
            if image_id not in self._images_seen:
                self._images_seen.add(image_id)
                self._add(image_id, output["instances"])

    def _add(self, image_id: int, instances: Instances) -> None:
        self._has_masks |= instances.has("pred_masks")
        for detection in detections_of(instances, image_id, self.budget_mb):
            self._detections.append({**detection, "category_id": self._category(detection["category_id"])})

    def _category(self, class_index: int) -> int:
        if class_index not in self.category_of_class:
            raise DatasetError(
                f"the model predicts class {class_index}, "
                f"{self.dataset_name!r} has {len(self.category_of_class)} classes",
                "evaluate on a set with the categories that the model was trained on",
            )
        return self.category_of_class[class_index]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gathers all ranks' predictions, writes them and measures them.

        Returns:
            On rank 0 {"bbox": metrics} and, when the model gives masks, "segm" and perhaps "boundary" (see
            `coco_metrics`); {} on the other ranks and for a json without annotations.

        Raises:
            DatasetError: a prediction of an image that is not in the json, or masks of another size than the json's.
        """
        gathered = comm.gather((self._detections, self._images_seen, self._has_masks), dst=0)
        if not comm.is_main_process():
            return {}
        detections: list[dict] = []
        images_seen: set[int] = set()
        for part, part_seen, _ in gathered:
            # An image that two ranks were given, to make their shares equal, counts once.
            detections.extend(detection for detection in part if detection["image_id"] not in images_seen)
            images_seen |= part_seen
        has_masks = any(has for _, _, has in gathered)
        truth = load_ground_truth(self.json_file, self.image_root)
        self._check(truth, detections, images_seen)
        if self.output_dir:
            self._write(truth, detections)
        return self._measure(truth, detections, has_masks)

    def _check(self, truth: GroundTruth, detections: list[dict], images_seen: set[int]) -> None:
        unknown = sorted(images_seen - truth.images.keys())
        if unknown:
            remedy = "evaluate with the json that the images were loaded by"
            raise DatasetError(f"{self.json_file}: does not list the predicted images {unknown[:3]}", remedy)
        missing = len(truth.images) - len(images_seen)
        if missing:
            logger.warning(
                "%d of %d images of %s were not predicted; their objects count as missed",
                missing,
                len(truth.images),
                self.dataset_name,
            )
        for detection in detections:
            image = truth.images[detection["image_id"]]
            size = detection.get("segmentation", {}).get("size", [image["height"], image["width"]])
            if list(size) != [image["height"], image["width"]]:
                raise DatasetError(
                    f"{self.json_file}: image {image['id']} is {image['height']} x {image['width']} (height x width) "
                    f"in the json, its predicted masks are {size[0]} x {size[1]}",
                    "correct the json's sizes; the audit names all that differ from the files",
                )

    def _write(self, truth: GroundTruth, detections: list[dict]) -> None:
        os.makedirs(self.output_dir, exist_ok=True)  # type: ignore[arg-type]
        path = os.path.join(self.output_dir, RESULTS_FILE)  # type: ignore[arg-type]
        results = [
            {
                **detection,
                "image_id": truth.image_ids[detection["image_id"]],
                "category_id": truth.category_ids.get(detection["category_id"], detection["category_id"]),
            }
            for detection in detections
        ]
        with open(path, "w", encoding="utf-8") as handle:
            json.dump(results, handle)
        logger.info("%d predictions written to %s", len(results), path)

    def _measure(self, truth: GroundTruth, detections: list[dict], has_masks: bool) -> dict[str, dict[str, float]]:
        if not truth.annotations:
            logger.warning("%s has no annotations: not evaluated", self.json_file)
            return {}
        if not detections:
            logger.warning("no detections on %s: every AP is 0", self.dataset_name)
        results = {"bbox": coco_metrics(truth, [box_detection(one) for one in detections], "bbox", self.engine)}
        if has_masks and truth.has_masks:
            masks = [mask_detection(one) for one in detections if "segmentation" in one]
            results["segm"] = coco_metrics(truth, masks, "segm", self.engine)
            if self.measures_boundaries:
                results["boundary"] = coco_metrics(truth, masks, "boundary", self.engine)
        elif has_masks:
            logger.warning("%s has no segmentations: masks not evaluated", self.json_file)
        return results


def detections_of(instances: Instances, image_id: int, budget_mb: float) -> list[dict]:
    """D detections of one image as entries of a COCO results file, their "category_id" still the class's index.

    Args:
        instances: pred_boxes, scores, pred_classes and perhaps pred_masks (RLEMasks, or bool (D, H, W)).
        image_id: of the json.
        budget_mb: MiB of masks encoded at once.
    """
    boxes = instances.pred_boxes.tensor.detach().double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    scores = instances.scores.detach().double().cpu().tolist()
    classes = instances.pred_classes.cpu().tolist()
    rles: list[dict | None] = [None] * len(instances)
    if instances.has("pred_masks"):
        rles = [_as_text(rle) for rle in _encoded(instances, budget_mb).rles]
    detections = [
        {"image_id": image_id, "category_id": class_index, "bbox": box, "score": score}
        for box, score, class_index in zip(boxes.tolist(), scores, classes, strict=True)
    ]
    return [one if rle is None else {**one, "segmentation": rle} for one, rle in zip(detections, rles, strict=True)]


def _encoded(instances: Instances, budget_mb: float) -> RLEMasks:
    masks = instances.pred_masks
    if isinstance(masks, RLEMasks):
        return masks
    return encode_in_chunks(lambda chosen: masks[chosen], len(masks), instances.image_size, budget_mb)


def _as_text(rle: dict) -> dict:
    counts: Any = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def box_detection(detection: dict) -> dict:
    """A detection as the engines measure its box: without the mask, with the box's area."""
    _, _, width, height = detection["bbox"]
    return {**{key: value for key, value in detection.items() if key != "segmentation"}, "area": width * height}


def mask_detection(detection: dict) -> dict:
    """A detection with a mask as the engines measure it, with the mask's area."""
    # Without the box: the engines would take the detection's area from it.
    area = float(coco_mask.area(detection["segmentation"]))
    return {**{key: value for key, value in detection.items() if key != "bbox"}, "area": area}
