"""The audit of a data set before the first iteration: one table, and a stop where training would be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from segzoo.data.coco_json import CocoDataset
from segzoo.data.files import FileCheck, check_files
from segzoo.data.loader import has_objects
from segzoo.data.registration import coco_dataset
from segzoo.data.tally import Tally
from segzoo.errors import DatasetError

_NUM_LISTED = 5
_NUM_CLASSES_SHOWN = 200
_LINE_WIDTH = 110


@dataclass
class AuditReport:
    """What a data set holds, what is not used of it and why.

    Attributes:
        name, json_file, image_root: which data set.
        num_images: entries of the json; num_usable: those that are used with the config.
        num_instances, num_crowd: valid annotations, without and with iscrowd.
        class_counts: instances (without crowds) by class name.
        images: images that are set aside, by reason.
        dropped, repaired: annotations, by reason (see CocoDataset).
        height_range, width_range: smallest, median and largest size in the json, px.
        warnings: sentences worth a look; errors: what stops the program, each with the first few culprits.
    """

    name: str
    json_file: str
    image_root: str
    num_images: int
    num_usable: int
    num_instances: int
    num_crowd: int
    class_counts: dict[str, int]
    images: Tally
    dropped: Tally
    repaired: Tally
    height_range: tuple[int, int, int]
    width_range: tuple[int, int, int]
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises DatasetError with the table if the data set cannot be used as the config asks."""
        if self.errors:
            message = f"data set {self.name} cannot be used: {'; '.join(self.errors)}"
            raise DatasetError(f"{message}\n{self.table()}", "; ".join(dict.fromkeys(self.remedies)))

    def table(self) -> str:
        """The whole report as text."""
        lines = [
            f"data set {self.name}: {self.json_file}, images in {self.image_root}",
            f"  images     {self.num_images}, of which {self.num_usable} are used",
            f"  sizes      height {_range_text(self.height_range)}, width {_range_text(self.width_range)} px",
            f"  instances  {self.num_instances}, and {self.num_crowd} crowds",
            f"  classes    {len(self.class_counts)}",
        ]
        lines += _class_lines(self.class_counts)
        for title, tally in (
            ("images without objects or a usable file", self.images),
            ("annotations dropped", self.dropped),
            ("annotations repaired", self.repaired),
        ):
            lines += [f"  {title}"] if tally else []
            lines += [
                f"    {count} x {reason}" + (f": {first}" if first else "") for reason, count, first in tally.rows()
            ]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines += [f"  ERROR: {error}" for error in self.errors]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for json."""
        fields = dict(vars(self))
        for key in ("images", "dropped", "repaired"):
            fields[key] = fields[key].to_dict()
        return fields


def audit_dataset(name: str, cfg: CfgNode) -> AuditReport:
    """Inspects a data set and refuses it if it cannot be used.

    Args:
        name: a registered name; those in cfg.DATASETS.TRAIN are held to what training needs.
        cfg: INPUT.STRICT, INPUT.ON_BAD_IMAGE, DATALOADER.FILTER_EMPTY_ANNOTATIONS and DATASETS.TRAIN are read.

    Raises:
        DatasetError: with the table.
    """
    report = inspect_dataset(name, cfg)
    report.check()
    return report


def inspect_dataset(name: str, cfg: CfgNode) -> AuditReport:
    """The report of a data set, also of one that cannot be used (see `errors`).

    Raises:
        DatasetError: the json itself cannot be read.
    """
    dataset = coco_dataset(name)
    files = check_files(dataset.dicts)
    is_train = name in cfg.DATASETS.TRAIN
    faulty = files.faulty_indices()
    annotations = [annotation for record in dataset.dicts for annotation in record.get("annotations", ())]
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    by_class = np.bincount([a["category_id"] for a in objects], minlength=len(dataset.thing_classes)).tolist()
    filters = is_train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    usable = [k not in faulty and (not filters or has_objects(r)) for k, r in enumerate(dataset.dicts)]
    report = AuditReport(
        name=name,
        json_file=dataset.json_file,
        image_root=dataset.image_root,
        num_images=len(dataset.dicts),
        num_usable=sum(usable),
        num_instances=len(objects),
        num_crowd=len(annotations) - len(objects),
        class_counts=_by_name(dataset.thing_classes, by_class),
        images=_images_set_aside(dataset, files),
        dropped=dataset.dropped,
        repaired=dataset.repaired,
        height_range=_size_range([record["height"] for record in dataset.dicts]),
        width_range=_size_range([record["width"] for record in dataset.dicts]),
        warnings=list(dataset.warnings),
    )
    _add_warnings(report, dataset, files, is_train)
    _add_errors(report, files, cfg, is_train)
    return report


def _by_name(names: list[str], counts: list[int]) -> dict[str, int]:
    is_unique = len(set(names)) == len(names)
    return {name if is_unique else f"{k} {name}": count for k, (name, count) in enumerate(zip(names, counts))}


def _images_set_aside(dataset: CocoDataset, files: FileCheck) -> Tally:
    tally = Tally(keep=_NUM_LISTED)
    for reason, faults in (
        ("file does not exist", files.missing),
        ("file is unreadable", files.unreadable),
        ("size differs from the json", files.mismatched),
    ):
        for _, message in faults:
            tally.add(reason, message)
    if dataset.has_annotations:
        for record in dataset.dicts:
            if not has_objects(record):
                tally.add(
                    "crowd annotations only" if record["annotations"] else "no valid annotation", record["image_id"]
                )
    return tally


def _add_warnings(report: AuditReport, dataset: CocoDataset, files: FileCheck, is_train: bool) -> None:
    if len(set(dataset.thing_classes)) < len(dataset.thing_classes):
        report.warnings.append("two categories have the same name")
    if files.num_rotated:
        report.warnings.append(
            f"{files.num_rotated} images carry an EXIF orientation; they are turned upright, "
            "and their annotations are taken to lie on the upright image"
        )
    absent = [name for name, count in report.class_counts.items() if count == 0]
    if is_train and absent and report.num_instances:
        more = " ..." if len(absent) > _NUM_LISTED else ""
        report.warnings.append(f"{len(absent)} classes without an instance: {', '.join(absent[:_NUM_LISTED])}{more}")
    if not dataset.has_annotations and not is_train:
        report.warnings.append("no annotations: results are predicted and written, not evaluated")


def _add_errors(report: AuditReport, files: FileCheck, cfg: CfgNode, is_train: bool) -> None:
    stops = [(files.missing, "image files do not exist"), (files.mismatched, "images differ in size from the json")]
    # Only training can take another image instead: an evaluation would stop at it.
    is_only_trained_on = is_train and report.name not in cfg.DATASETS.TEST
    if cfg.INPUT.ON_BAD_IMAGE == "error" or not is_only_trained_on:
        stops.append((files.unreadable, "image files are unreadable"))
    if cfg.INPUT.STRICT:
        for faults, what in stops:
            if faults:
                first = "; ".join(message for _, message in faults[:_NUM_LISTED])
                report.errors.append(f"{len(faults)} {what}: {first}")
                report.remedies.append("correct them, or leave them out with INPUT.STRICT False")
    if not report.num_usable:
        report.errors.append(f"none of its {report.num_images} images can be used")
        report.remedies.append("the table lists the reasons")
    elif is_train and not report.num_instances:
        report.errors.append("it has no instance to train on")
        report.remedies.append("the table lists the reasons")


def _class_lines(class_counts: dict[str, int]) -> list[str]:
    shown = list(class_counts.items())[:_NUM_CLASSES_SHOWN]
    name_width = max(len(name) for name, _ in shown)
    cells = [f"{name:<{name_width}} {count:>7}" for name, count in shown]
    columns = max(_LINE_WIDTH // (len(cells[0]) + 3), 1)
    lines = ["    " + "   ".join(cells[k : k + columns]) for k in range(0, len(cells), columns)]
    return lines + ([f"    ... and {len(class_counts) - len(shown)} more"] if len(shown) < len(class_counts) else [])


def _size_range(sizes: list[int]) -> tuple[int, int, int]:
    return min(sizes), int(np.median(sizes)), max(sizes)


def _range_text(sizes: tuple[int, int, int]) -> str:
    smallest, median, largest = sizes
    return f"{smallest}" if smallest == largest else f"{smallest} .. {largest} (median {median})"
