"""PolarMask's representation: a polygon through the ends of rays around a centre (figure 7 of the paper).

Shape shorthand: M objects of an image, n rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from polarmask.decode import ContourRule, contour_rles, rays_to_contours
from polarmask.rays import cast_to_sides
from polarmask.shapes import find_shapes
from projects.upper_bound.inputs import MaskList, describe_input, draw_in_chunks, network_input
from projects.upper_bound.objects import ImageObjects
from projects.upper_bound.rows import Row
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import RLEMasks

METHOD = "PolarMask"
# Centre of the rays, and the parts of a mask that they are cast to: the two of figure 7, and what other parts add.
KINDS = (("mass", "largest"), ("box", "largest"), ("mass", "all"), ("box", "all"))


@dataclass(frozen=True)
class PolarGroup:
    """Rays at the image's own size, from the exact centre, which a network has a location near.

    num_rays: numbers n of rays.
    """

    num_rays: Sequence[int]

    @property
    def rows(self) -> list[Row]:
        """Every number of rays of every kind."""
        return [
            Row(
                METHOD,
                f"{count} rays, {center} centre, {'largest part' if part == 'largest' else 'all parts'}",
                describe_input(None),
                {"rays": count, "center": center, "parts": part},
            )
            for center, part in KINDS
            for count in self.num_rays
        ]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        rows = self.rows
        found = [MaskList(image) for _ in rows]
        for masks, places in draw_in_chunks(image, network_input(image.size, None)):
            boxes = mask_boxes(masks)
            shapes = {part: find_shapes([masks], part) for _, part in KINDS}
            owners = torch.arange(len(masks))
            for row, target in zip(rows, found, strict=True):
                own = shapes[str(row.settings["parts"])]
                is_mass = row.settings["center"] == "mass"
                points = own.centers_px if is_mass else (boxes[:, :2] + boxes[:, 2:]) / 2
                rays = cast_to_sides(own.sides, points, owners, int(row.settings["rays"]))
                rles = contour_rles(rays_to_contours(points, rays), image.size, ContourRule())
                target.offer(places, RLEMasks(rles, image.size))
        return found
