"""Evaluation by LVIS's rule, by Detectron2's LVIS evaluator and the package lvis.

An image counts only for the classes that it was searched for: those of its objects and those that are known to be
absent; in classes that are not annotated fully, detections without an object are no mistakes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import LVISEvaluator
from detectron2.utils import comm

from segzoo.compat import numpy_float_alias
from segzoo.data.coco_json import lossless_int
from segzoo.data.registration import load_metadata
from segzoo.errors import ConfigError, DatasetError
from segzoo.evaluation.coco import detections_of

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LvisEvaluator(LVISEvaluator):
    """Box and mask AP of one LVIS set; predictions are held as run lengths from the first image on.

    Args:
        dataset_name: a set registered by `register_lvis_json`.
        cfg: TEST.MASK_BUDGET_MB bounds the masks encoded at once.
        output_dir: where the predictions are written as LVIS results; None = nowhere.

    Raises:
        ConfigError: the package lvis is not installed.
        DatasetError: the set cannot be read.
    """

    def __init__(self, dataset_name: str, cfg: CfgNode, output_dir: str | None = None) -> None:
        require_lvis(dataset_name)
        metadata = load_metadata(dataset_name)
        super().__init__(dataset_name, output_dir=output_dir)
        if cfg.TEST.BOUNDARY_AP:
            logger.warning("%s: boundary AP is measured by COCO's rule only, not by LVIS's", dataset_name)
        self.dataset_name, self.budget_mb = dataset_name, cfg.TEST.MASK_BUDGET_MB
        self.num_classes = len(metadata.thing_classes)
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes a batch's predictions, see `CocoEvaluator.process`."""
        for entry, output in zip(inputs, outputs, strict=True):
            image_id, instances = lossless_int(entry["image_id"], "image_id"), output["instances"]
            detections = detections_of(instances, image_id, self.budget_mb)
            unknown = [one["category_id"] for one in detections if one["category_id"] >= self.num_classes]
            if unknown:
                raise DatasetError(
                    f"the model predicts class {unknown[0]}, {self.dataset_name!r} has {self.num_classes} classes",
                    "evaluate on a set with the categories that the model was trained on",
                )
            has_masks = instances.has("pred_masks")
            self._predictions.append({"image_id": image_id, "instances": detections, "has_masks": has_masks})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Gathers all ranks' predictions, writes and measures them.

        Returns:
            On rank 0 {"bbox": metrics} and, when the model gives masks, "segm", in percent; a metric without objects
            (no rare category, say) is NaN. {} on the other ranks.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return {}
        # An image that two ranks were given, to make their shares equal, counts once.
        by_image = {one["image_id"]: one for part in gathered for one in part}
        predictions = list(by_image.values())
        missing = len(self._lvis_api.get_img_ids()) - len(predictions)
        if missing > 0:
            logger.warning(
                "%d images of %s were not predicted; their objects count as missed", missing, self.dataset_name
            )
        has_masks = any(one["has_masks"] for one in predictions)
        tasks = ("bbox", "segm") if has_masks else ("bbox",)
        if not any(one["instances"] for one in predictions):
            logger.warning("no detections on %s: every AP is 0", self.dataset_name)
            return {task: dict.fromkeys(METRICS, 0.0) for task in tasks}
        self._tasks = tasks
        self._results: dict[str, dict[str, float]] = {}
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
        with numpy_float_alias():
            self._eval_predictions(predictions)
        # lvis says -1 where there is nothing to measure.
        return {
            task: {name: value if value >= 0 else float("nan") for name, value in metrics.items()}
            for task, metrics in self._results.items()
        }


def require_lvis(dataset_name: str) -> None:
    """Raises ConfigError where the package lvis is not installed."""
    if importlib.util.find_spec("lvis") is None:
        raise ConfigError(
            f"data set {dataset_name!r} is measured by LVIS's rule, but the package lvis is not installed",
            "pip install 'segzoo[lvis]' (or: pip install lvis)",
        )
