"""Config keys of PolarMask; its detector parts are configured by MODEL.FCOS."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.POLARMASK with the paper's defaults."""
    cfg.MODEL.POLARMASK = CfgNode()
    # Rays of a contour, at equal angles (table 1a: 18, 24, 36, 72).
    cfg.MODEL.POLARMASK.NUM_RAYS = 36
    # Training targets: "exact" (mass centre of the mask, exact rays) or "official" (as the authors' program computes
    # them: truncated centroid of the largest contour, rays looked up by whole degrees, its x = 0 quirk).
    cfg.MODEL.POLARMASK.TARGETS = "exact"
    # Centre of the sampling square: "mass" or "box" (figure 7); of TARGETS "exact".
    cfg.MODEL.POLARMASK.CENTER = "mass"
    # Which parts of a mask count: "largest" (its holes filled) or "all" (farthest point of any part); as CENTER.
    cfg.MODEL.POLARMASK.PARTS = "largest"
    # Loss of the rays: "polar_iou" (Eq. 5) or "smooth_l1" (table 1b).
    cfg.MODEL.POLARMASK.MASK_LOSS = "polar_iou"
    # Weight of the ray loss (the alpha of table 1b for smooth L1).
    cfg.MODEL.POLARMASK.MASK_LOSS_WEIGHT = 1.0
    # Centerness target: "polar" (Eq. 1, from the rays) or "cartesian" (FCOS's, from the box; table 1c).
    cfg.MODEL.POLARMASK.CENTERNESS = "polar"
    # A tower and a regression of boxes beside the rays (table 1d).
    cfg.MODEL.POLARMASK.BOX_BRANCH = False
    # Boxes that NMS compares and that are given out: "contours" (those around the contours) or "predicted" (by the
    # box branch).
    cfg.MODEL.POLARMASK.BOXES = "contours"
    # Boxes whose far sides are the last pixel, x1 + w - 1, with w + 1 px sides wherever areas are compared, as in the
    # authors' program; else continuous coordinates.
    cfg.MODEL.POLARMASK.INCLUSIVE_BOXES = False
    # From a contour to a mask: "polygons" (COCO's own rule at sub-pixel positions) or "truncated" (points truncated to
    # whole pixels, outline and interior set, as in the authors' program).
    cfg.MODEL.POLARMASK.CONTOURS = "polygons"
    # Score = class probability x (centerness + CTR_BIAS): 0.5 in the authors' code, 0 in the paper's formula.
    cfg.MODEL.POLARMASK.CTR_BIAS = 0.5
