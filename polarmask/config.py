"""Config keys of PolarMask; its detector parts are configured by MODEL.FCOS."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.POLARMASK with the paper's defaults."""
    cfg.MODEL.POLARMASK = CfgNode()
    # Rays of a contour, at equal angles (table 1a: 18, 24, 36, 72).
    cfg.MODEL.POLARMASK.NUM_RAYS = 36
    # "exact": mass centres and rays of the masks' pixels as squares, continuous coordinates, COCO's polygon rule.
    # "official": all of it as the authors' program computes it, pixels lying at whole numbers (polarmask/official.py).
    cfg.MODEL.POLARMASK.CONVENTION = "exact"
    # Centre of the sampling square: "mass" or "box" (figure 7); of CONVENTION "exact".
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
    # Score = class probability x (centerness + CTR_BIAS): 0.5 in the authors' code, 0 in the paper's formula.
    cfg.MODEL.POLARMASK.CTR_BIAS = 0.5
