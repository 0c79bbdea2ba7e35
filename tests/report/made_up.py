"""Comparisons made up by a formula: nothing is trained, all values are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from segzoo.data.scenes import CLASS_NAMES, make_scene
from segzoo.report.content import (
    Comparison,
    Cost,
    Curve,
    Failure,
    GalleryImage,
    GalleryRow,
    Model,
    Speed,
    TrainedRun,
    TrainingCurve,
)

METRICS = {"AP": 0.0, "AP50": 21.0, "AP75": 1.0, "APs": -12.0, "APm": 2.0, "APl": 9.0, "AR1": -4.0, "AR10": 8.0}
METRICS |= {"AR100": 10.0, "ARs": -3.0, "ARm": 11.0, "ARl": 17.0}
TASKS = ("segm", "bbox", "boundary")
# Name, title, mask AP of seed 0, ms an image, losses.
MODELS = [
    ("polarmask", "PolarMask R50", 31.24, 41.3, ("loss_cls", "loss_centerness", "loss_polar_iou")),
    ("centermask", "CenterMask DLA34", 28.9, 18.02, ("loss_heatmap", "loss_offset", "loss_size", "loss_mask")),
    ("orienmask", "OrienMask D53", 29.61, 22.75, ("loss_objectness", "loss_box", "loss_class", "loss_orientation")),
    ("fcosis", "FCOSIS R50", 33.48, 63.9, ("loss_cls", "loss_box", "loss_centerness", "loss_mask", "loss_color")),
    ("mask_rcnn", "Mask R-CNN R50", 34.05, 112.4, ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")),
]
STAGE_SHARES = {"preprocess": 0.03, "backbone": 0.4, "neck": 0.1, "heads": 0.22, "decode": 0.08}
STAGE_SHARES |= {"masks": 0.1, "to host": 0.02, "RLE": 0.05}


def metrics(ap: float, classes: Sequence[str]) -> dict[str, float | None]:
    """All that an evaluation of one task gives; the last class has nothing to find."""
    found: dict[str, float | None] = {name: ap + more for name, more in METRICS.items()}
    found |= {f"AP-{name}": ap + 9 * math.sin(7 * ap + 3 * place) for place, name in enumerate(classes)}
    if len(classes) > 3:
        found[f"AP-{classes[-1]}"] = None
    return found


def training(ap: float, iterations: int, losses: Sequence[str]) -> TrainingCurve:
    """A logged training with evaluations."""
    rng = np.random.default_rng(round(100 * ap))
    steps = list(range(20, iterations + 1, 20))
    noise = rng.lognormal(0.0, 0.12, (len(losses), len(steps)))
    parts = {
        name: [
            float((0.25 + place / 3) * (0.12 + math.exp(-step / 300)) * noise[place, at])
            for at, step in enumerate(steps)
        ]
        for place, name in enumerate(losses)
    }
    total = [sum(values) for values in zip(*parts.values(), strict=True)]
    evaluations = [
        (step, {f"{task}/AP": ap * (1 - math.exp(-3 * step / iterations)) / 0.95 for task in TASKS})
        for step in range(iterations // 5, iterations + 1, iterations // 5)
    ]
    minutes = [step / 60 for step in steps]
    return TrainingCurve(steps, minutes, {"total_loss": total, **parts}, evaluations)


def speeds(ms: float) -> list[Speed]:
    """Two precisions and two batches."""
    return [
        Speed(
            precision,
            batch,
            {"median": factor * ms, "p95": 1.13 * factor * ms},
            {name: {"median": share * factor * ms, "p95": share * factor * ms} for name, share in STAGE_SHARES.items()},
            detections=12.4,
            peak_mib=200 + 20 * ms * batch,
        )
        for precision, batch, factor in (("fp32", 1, 1.0), ("fp16", 1, 0.7), ("fp32", 8, 0.8), ("fp16", 8, 0.45))
    ]


def curves(ap: float) -> list[Curve]:
    """Precision over recall of masks and boxes."""
    recall = np.linspace(0, 1, 101)
    return [
        Curve(task, iou, recall.tolist(), np.clip(1 - recall ** (ap / 20) / high, 0, 1).tolist())
        for task in ("segm", "bbox")
        for iou, high in ((0.5, 0.9), (0.75, 0.6), (0.0, 0.5))
    ]


def jpeg(image: np.ndarray) -> bytes:
    """The bytes of a JPEG of a BGR image."""
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


def panels(index: int, place: int, size_px: int) -> list[tuple[str, bytes]]:
    """What a model finds, and one or more maps."""
    image, _ = make_scene(3, index, size_px)
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    maps = [
        ("result", image),
        ("centerness", cv2.applyColorMap(gray, cv2.COLORMAP_JET)),
        ("heat map of the class star", cv2.applyColorMap(255 - gray, cv2.COLORMAP_JET)),
        ("orientation", cv2.applyColorMap(gray, cv2.COLORMAP_HSV)),
    ]
    return [(title, jpeg(picture)) for title, picture in maps[: 2 + place % 3]]


def failures(name: str, names: Sequence[str], size_px: int) -> list[Failure]:
    """Two objects that the model finds badly."""
    image, _ = make_scene(5, len(name), size_px)
    found = []
    for number, (own, best) in enumerate(((0.12, 0.88), (0.0, 0.71))):
        ious = {other: own if other == name else best - 0.05 * place for place, other in enumerate(names)}
        pictures = [("object", jpeg(image)), ("this model", jpeg(image[::-1])), ("the best", jpeg(image[:, ::-1]))]
        found.append(
            Failure(f"{number:06d}.jpg", 70 + number, "leaf", 1234.5, ious, max(ious.values()) - own, pictures)
        )
    return found


def model(place: int, seeds: int, classes: Sequence[str], count: int, size_px: int) -> Model:
    """The model at a place of `MODELS`, with everything measured."""
    name, title, ap, ms, losses = MODELS[place]
    runs = [
        TrainedRun(
            seed,
            1000,
            8,
            minutes=30.0 + seed,
            training_minutes=28.0,
            commit="0123456789abcdef",
            results={task: metrics(ap + 0.4 * seed + shift, classes) for task, shift in zip(TASKS, (0.0, 3.0, -8.0))},
            curve=training(ap + 0.4 * seed, 1000, losses),
        )
        for seed in range(seeds)
    ]
    cost = Cost((256, 256), 30_000_000 + place * 4_300_000, 29_000_000, 12.5 + 4 * place)
    if place == 3:
        cost.object_unit, cost.object_gmac, cost.notes = "colour group", 0.42, ["A colour group is decoded at once."]
    names = [other for other, *_ in MODELS[:count]]
    return Model(
        name,
        title,
        f"configs/{name}.yaml",
        runs,
        cost,
        speeds(ms),
        curves(ap),
        mean_iou=0.6 + place / 50,
        failures=failures(name, names, size_px),
        notes=["Trained with its authors' schedule."] if place == 0 else [],
    )


def comparison(
    count: int = 3, seeds: int = 2, classes: Sequence[str] = CLASS_NAMES, images: int = 1, size_px: int = 64
) -> Comparison:
    """A comparison in which nothing is missing."""
    models = [model(place, seeds, classes, count, size_px) for place in range(count)]
    gallery = [
        GalleryImage(
            f"{index:06d}.jpg",
            jpeg(make_scene(3, index, size_px)[0]),
            [GalleryRow(one.name, panels(index, place, size_px)) for place, one in enumerate(models)],
        )
        for index in range(images)
    ]
    conditions = [
        ("data", "scenes-v1_val, 200 images of 256 × 256 px; trained on scenes-v1_train, 2,000 images"),
        ("budget", "1,000 iterations of 8 images for every model"),
        ("device", "NVIDIA H100 80GB HBM3"),
        ("versions", "torch 2.9.0, torchvision 0.24.0, detectron2 0.6"),
        ("date", "2026-11-27"),
    ]
    return Comparison(
        "Four methods and Mask R-CNN on generated scenes",
        conditions,
        models,
        {name: 40 + 17 * place for place, name in enumerate(classes)},
        list(TASKS),
        "NVIDIA H100 80GB HBM3, images of 256 × 256 px, 50 turns, from images to RLE on the host",
        gallery,
        notes=["The test images were looked at once, at the end."],
    )


def bare_model(name: str = "bare", runs: Sequence[TrainedRun] = ()) -> Model:
    """A model of which nothing but its runs is known."""
    return Model(name, name.title(), f"configs/{name}.yaml", list(runs))


def bare_comparison(*models: Model) -> Comparison:
    """A comparison of which nothing but its models is known."""
    return Comparison("Bare", [], list(models), {}, ["segm", "bbox"])
