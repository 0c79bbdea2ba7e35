"""Streams images through a pool of processes: masks there and back, their IoU, and perhaps their AP.

What is held is bounded: a process works on one image, its objects in portions; the results of an image are added up or
written to a file of their row at once. For AP one row's run lengths at a time are read back, beside the ground truth's.

Shape shorthand: Z rows, M objects of an image, K categories.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from projects.upper_bound.boundaries import boundaries_of, boundary_ious
from projects.upper_bound.objects import DataSet, ImageObjects
from projects.upper_bound.rows import Group, Row
from segzoo.errors import SegZooError
from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.evaluation.metrics import coco_metrics

# COCO's: below the first small, from the second on large, px.
AREA_LIMITS = (32.0**2, 96.0**2)
SIZES = ("small", "medium", "large")
# What is measured beside mean IoU: mask AP, and the AP of boundaries.
AP_TYPES = ("segm", "boundary")
# Images that wait for a process, for each of them.
QUEUE_LENGTH = 4

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


@dataclass
class Measured:
    """What Z rows reach.

    rows: Z rows. categories: K category ids. iou_sums: (Z, K, 3) by category and size. counts: (K, 3) objects.
    num_lost: (Z,) objects of which no pixel comes back. metrics: by name of the row and AP type, in percent, see
    `coco_metrics`; empty when AP is not measured.
    """

    rows: list[Row]
    categories: list[int]
    iou_sums: np.ndarray
    counts: np.ndarray
    num_lost: np.ndarray
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def mean_iou(self, row: int) -> float:
        """Mean over all objects, 0 to 1."""
        return float(self.iou_sums[row].sum() / self.counts.sum())

    def mean_iou_by_size(self, row: int) -> dict[str, float | None]:
        """Mean over small, medium and large objects; None where there is none."""
        return dict(zip(SIZES, _means(self.iou_sums[row].sum(axis=0), self.counts.sum(axis=0)), strict=True))

    def mean_iou_by_category(self, row: int) -> dict[int, float | None]:
        """Mean over the objects of each category; None where there is none."""
        return dict(zip(self.categories, _means(self.iou_sums[row].sum(axis=1), self.counts.sum(axis=1)), strict=True))


def _means(sums: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def measure(
    data: DataSet, groups: Sequence[Group], *, num_workers: int, with_ap: bool = True, shows_progress: bool = False
) -> Measured:
    """Measures all rows of all groups on the same objects.

    Args:
        data: the objects.
        groups: what makes masks of them.
        num_workers: processes; 0 = this one.
        with_ap: whether AP_TYPES are measured too.
        shows_progress: whether progress bars are drawn on a terminal.

    Raises:
        SegZooError: a process was killed.
    """
    rows = [row for group in groups for row in group.rows]
    categories = sorted(data.truth.categories)
    shape = (len(categories), len(SIZES))
    measured = Measured(rows, categories, np.zeros((len(rows), *shape)), np.zeros(shape, int), np.zeros(len(rows), int))
    images = data.images()
    bar = functools.partial(tqdm, disable=None if shows_progress else True)
    with ExitStack() as stack:
        pool = stack.enter_context(_pool(num_workers)) if num_workers else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upper_bound_")))
        files = [folder / f"{number}.jsonl" for number in range(len(rows))] if with_ap else []
        work = functools.partial(measure_image, tuple(groups), with_ap)
        with ExitStack() as opened:
            streams = [opened.enter_context(file.open("w", encoding="utf-8")) for file in files]
            results = bounded_map(pool, work, images, QUEUE_LENGTH * num_workers)
            for image, (ious, masks) in zip(images, bar(results, total=len(images), unit="image"), strict=True):
                _add(measured, image, ious)
                for stream, own in zip(streams, masks, strict=True):
                    stream.write(json.dumps(own) + "\n")
        if with_ap:
            truth_file = folder / "truth.pickle"
            truth_file.write_bytes(pickle.dumps(data.truth))
            scored = bounded_map(pool, functools.partial(score_row, truth_file), files, 2 * num_workers)
            found = bar(scored, total=len(rows), unit="row")
            measured.metrics = dict(zip([row.name for row in rows], found, strict=True))
    return measured


def measure_image(
    groups: Sequence[Group], keeps_masks: bool, image: ImageObjects
) -> tuple[np.ndarray, list[list[dict]]]:
    """(Z, M) IoU of every object in every row; Z lists of detections as in a COCO results file, or none.

    Detections have a score for each of AP_TYPES, the IoU that it measures: the best ranking that a method could give
    them.
    """
    ious, detections = [], []
    edges = boundaries_of(image.rles) if keeps_masks else []
    for group in groups:
        for masks in group.masks(image):
            ious.append(masks.ious)
            if keeps_masks:
                scores = (masks.ious.tolist(), boundary_ious(masks.rles, edges, masks.ious).tolist())
                columns = zip(masks.rles, image.categories.tolist(), *scores, strict=True)
                detections.append([_detection(image.image_id, *column) for column in columns])
    return np.array(ious).reshape(len(ious), len(image.rles)), detections


def _detection(image_id: int, rle: dict, category_id: int, *scores: float) -> dict[str, Any]:
    text = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    ranks = dict(zip(AP_TYPES, scores, strict=True))
    area = float(coco_mask.area(rle))
    return {"image_id": image_id, "category_id": category_id, "segmentation": text, "area": area, "scores": ranks}


def score_row(truth_file: Path, file: Path) -> dict[str, dict[str, float]]:
    """AP_TYPES of one row's detections, each ranked by its own scores, by the project's evaluation."""
    with file.open(encoding="utf-8") as stream:
        detections = [one for line in stream for one in json.loads(line)]
    truth, metrics = _truth(truth_file), {}
    for kind in AP_TYPES:
        ranked = [{**one, "score": one["scores"][kind]} for one in detections]
        metrics[kind] = coco_metrics(truth, ranked, kind, "faster")
    return metrics


@functools.lru_cache(maxsize=1)
def _truth(file: Path) -> GroundTruth:
    return pickle.loads(file.read_bytes())


def _add(measured: Measured, image: ImageObjects, ious: np.ndarray) -> None:
    places = np.searchsorted(measured.categories, image.categories)
    sizes = np.searchsorted(AREA_LIMITS, image.areas, side="right")
    np.add.at(measured.counts, (places, sizes), 1)
    for row, own in enumerate(ious):
        np.add.at(measured.iou_sums[row], (places, sizes), own)
    measured.num_lost += (ious == 0).sum(axis=1)


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Not forked: a copy of threads of torch and of OpenCV may wait for locks that nobody holds.
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def bounded_map(
    pool: ProcessPoolExecutor | None, function: Callable[[Job], Outcome], jobs: Iterable[Job], limit: int
) -> Iterator[Outcome]:
    """`map` by a pool, in order, of which at most `limit` jobs are under way; by this process without a pool.

    Raises:
        SegZooError: a process was killed.
    """
    if pool is None:
        yield from map(function, jobs)
        return
    waiting: deque[Future[Outcome]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SegZooError(
            "a process of the pool ended without a result, most likely for want of memory", "use fewer --workers"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
