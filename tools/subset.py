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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segzoo.data.coco_json import load_json
from segzoo.engine.checkpoint import write_atomically
from segzoo.errors import DatasetError, SegZooError


def select(content: dict[str, Any], num_images: int, min_annotations: int, min_area_px: float) -> dict[str, Any]:
    """The json of the chosen images.

    Args:
        content: a COCO json with areas.
        num_images: how many images, lowest ids first.
        min_annotations: images with fewer annotations (crowds count) are passed over.
        min_area_px: images with a smaller object that is no crowd are passed over.

    Raises:
        DatasetError: not enough images pass.
    """
    per_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        per_image.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        image
        for image in sorted(content["images"], key=lambda image: image["id"])
        if _passes(per_image.get(image["id"], []), min_annotations, min_area_px)
    ][:num_images]
    if len(chosen) < num_images:
        raise DatasetError(f"only {len(chosen)} of {num_images} images pass", "lower --min-annotations or --min-area")
    annotations = [annotation for image in chosen for annotation in per_image.get(image["id"], [])]
    return content | {"images": chosen, "annotations": annotations}


def _passes(annotations: list[dict[str, Any]], min_annotations: int, min_area_px: float) -> bool:
    areas = [annotation["area"] for annotation in annotations if not annotation.get("iscrowd", 0)]
    return len(annotations) >= min_annotations and min(areas, default=0.0) >= min_area_px


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
        subset = select(load_json(args.annotations), args.images, args.min_annotations, args.min_area)
        write_atomically(args.output, json.dumps(subset))
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    classes = {annotation["category_id"] for annotation in subset["annotations"]}
    counts = {"images": len(subset["images"]), "annotations": len(subset["annotations"]), "classes": len(classes)}
    print(json.dumps(counts) if args.json else ", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
