"""Config keys of FCOSIS and its relatives; the detector's parts are configured by MODEL.FCOS.

MaskFCOS takes its second stage from Detectron2's own MODEL.ROI_HEADS and MODEL.ROI_MASK_HEAD.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.FCOSIS with the paper's values."""
    node = cfg.MODEL.FCOSIS = CfgNode()
    # alpha, beta, gamma: weights of centerness, occupancy and their geometric mean, 1 together. (1, 0, 0) is FCOS's
    # centerness (figure 6).
    node.REGULARIZATION = [1 / 3, 1 / 3, 1 / 3]
    # What tells the objects of a picture apart in the segmentation: "grouping" (boxes, coarse segmentation and
    # centres), "box" (boxes alone, table 3c) or "none" (no attention: a map of each class is cropped, table 3a).
    node.ATTENTION = "grouping"
    # False: mu stays 0, so that nothing pushes back what belongs to others (table 3b).
    node.LEARN_MU = True
    node.SEG_CHANNELS = 256
    # MiB of features that colour groups hold at once; more groups are done one part after the other, in training
    # twice (again for the gradient).
    node.GROUP_BUDGET_MB = 4096
