"""Cuts a small COCO json out of a large one, by rules that anybody can repeat.

    python tools/subset.py --annotations train.json --output sixteen.json --images 16 --min-annotations 3 --min-area 256

The images with the lowest ids that pass the rules are kept with all their annotations and all categories: a model that
cannot learn these few by heart has a fault, which shows in minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segzoo.data.annotation_checks import check_segmentation, crowd_flag
from segzoo.data.coco_json import entry_size, lacks_size, load_json, lossless_int
from segzoo.engine.checkpoint import write_atomically
from segzoo.errors import DatasetError, SegZooError, TrainingError
from segzoo.geometry.polygons import segmentation_to_rle

_REMEDY = "run tools/audit.py on it; docs/data.md describes the format"


def select(
    content: dict[str, Any], num_images: int, min_annotations: int, min_area_px: float, json_file: str = "the json"
) -> dict[str, Any]:
    """The json of the chosen images.

    Args:
        content: a COCO json; an area that it lacks is the mask's, as in training.
        num_images: how many images, lowest ids first.
        min_annotations: images with fewer annotations (crowds count) are passed over.
        min_area_px: images with a smaller object that is no crowd are passed over.
        json_file: where the content is from, for errors.

    Raises:
        DatasetError: not enough images pass, or an entry cannot be read (named by its id or position).
    """
    images = _by_id(content, "images", "id", json_file)
    per_image = _by_id(content, "annotations", "image_id", json_file)
    chosen = []
    for image_id in sorted(images):
        areas = [
            _area_px(annotation, images[image_id][0], json_file)
            for annotation in per_image.get(image_id, [])
            if min_area_px > 0 and not crowd_flag(annotation.get("iscrowd"))
        ]
        if len(per_image.get(image_id, [])) >= min_annotations and min(areas, default=0.0) >= min_area_px:
            chosen.append(image_id)
        if len(chosen) == num_images:
            break
    if len(chosen) < num_images:
        raise DatasetError(
            f"{json_file}: only {len(chosen)} of {num_images} images pass", "lower --min-annotations or --min-area"
        )
    annotations = [annotation for image_id in chosen for annotation in per_image.get(image_id, [])]
    return content | {"images": [images[image_id][0] for image_id in chosen], "annotations": annotations}


def _by_id(content: dict[str, Any], section: str, key: str, json_file: str) -> dict[int, list[dict[str, Any]]]:
    """The entries of a section by the whole number under `key`."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise DatasetError(f"{json_file} has no list under '{section}'", _REMEDY)
    found: dict[int, list[dict[str, Any]]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{json_file}: '{section}' entry {position} is {entry!r}, not an object", _REMEDY)
        where = f"{json_file}: '{section}' entry {position} (id {entry.get('id')}): {key}"
        found.setdefault(lossless_int(entry.get(key), where), []).append(entry)
    return found


def _area_px(annotation: dict[str, Any], image: dict[str, Any], json_file: str) -> float:
    """The area as written, else the mask's; 0 without a usable mask."""
    if annotation.get("area") is not None:
        try:
            return float(annotation["area"])
        except (TypeError, ValueError) as error:
            where = f"{json_file}: annotation id {annotation.get('id')}: area"
            raise DatasetError(f"{where} is {annotation['area']!r}, not a number", _REMEDY) from error
    if lacks_size(image):
        raise DatasetError(
            f"{json_file}: annotation id {annotation.get('id')} has no area and image id {image['id']} no size",
            "add one of them, or choose without --min-area",
        )
    height, width = entry_size(image, json_file, image_root="")
    segmentation, _, _ = check_segmentation(annotation.get("segmentation"), height, width)
    if segmentation is None:
        return 0.0
    return float(coco_mask.area(segmentation_to_rle(segmentation, height, width)))


def _write(path: str, content: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(content))
    except TrainingError as error:
        # Its remedy speaks of checkpoints.
        raise DatasetError(error.message, "check the folder of --output and the space on its disk") from error


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", "--json-file", required=True, metavar="FILE", help="the large json")
    parser.add_argument("--output", required=True, metavar="FILE", help="the small json")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--min-annotations", type=int, default=1, help="fewest annotations of an image")
    parser.add_argument("--min-area", type=float, default=0.0, help="smallest object of an image, in square pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(argv)
    try:
        content = load_json(args.annotations)
        subset = select(content, args.images, args.min_annotations, args.min_area, args.annotations)
        _write(args.output, subset)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    classes = {str(annotation.get("category_id")) for annotation in subset["annotations"]}
    counts = {"images": len(subset["images"]), "annotations": len(subset["annotations"]), "classes": len(classes)}
    print(json.dumps(counts) if args.json else ", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
