"""Draws docs/pictures/orientation.png: the targets of two objects of generated scenes (see docs/orientation.md).

    python -m projects.OrienMask.draw_maps docs/pictures/orientation.png

Shape shorthand: M objects of the scene, H, W its size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from orienmask.config import YOLOV4_ANCHORS
from orienmask.decode import MAP_STRIDE
from orienmask.painting import Areas
from orienmask.pictures import OrientationView, TargetView, target_pictures, target_views
from orienmask.targets import TargetRule
from segzoo.data.scenes.samples import scene_sample
from segzoo.visualization import save_image, side_by_side

# (index of the scene, anchor): a crescent whose box's centre lies at its border, and a star in two parts.
SHOWN = ((2, 7), (8, 7))
SEED, SIZE_PX = 7, 256
MARGIN_PX = 4
# YOLOv4's are made for 544 px.
ANCHORS_PX = [[side * SIZE_PX / 544 for side in anchor] for anchor in YOLOV4_ANCHORS]
RULE = TargetRule(ANCHORS_PX, (8, 16, 32))
TAU = 0.6


def draw_sheet(shown: Sequence[tuple[int, int]] = SHOWN, seed: int = SEED) -> np.ndarray:
    """Two rows of three panels for each pair of scene and anchor: image, targets, and the mask made of them."""
    panels: list[np.ndarray] = []
    titles: list[str] = []
    for index, anchor in shown:
        image, instances = scene_sample(seed, index, SIZE_PX)
        target = next(one for one in target_views(instances, RULE) if one.view.anchor == anchor)
        image, target = crop_target(image, target)
        pictures = {"image": image, **target_pictures(image, target, TAU)}
        panels.extend(pictures.values())
        titles.extend(pictures)
    return side_by_side(panels, titles, columns=3)


def crop_target(image: np.ndarray, target: TargetView) -> tuple[np.ndarray, TargetView]:
    """The part around the areas of an anchor's map, cut between cells so that the decoder sees the same cells."""
    view = target.view
    corner = (view.areas.first.amin(dim=0) - MARGIN_PX).clamp(min=0) // MAP_STRIDE * MAP_STRIDE
    left, top = corner.tolist()
    right, bottom = (view.areas.last.amax(dim=0) + 1 + MARGIN_PX).tolist()
    window = np.s_[top:bottom, left:right]
    areas = Areas(view.areas.base_px - corner, view.areas.reach_px, view.areas.first - corner, view.areas.last - corner)
    cut = OrientationView(view.anchor, view.vectors_px[:, *window], view.where[window], areas, view.sizes_px)
    return image[window], TargetView(cut, target.is_positive[window], target.is_negative[window])


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", metavar="FILE", help="the picture, .png")
    save_image(parser.parse_args(arguments).path, draw_sheet(), png_level=9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
