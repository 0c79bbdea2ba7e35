"""Config keys of OrienMask; the backbone is configured by MODEL.BACKBONE and MODEL.DARKNET or MODEL.TIMM."""

from __future__ import annotations

from detectron2.config import CfgNode

# (width, height) px of the network input, smallest first: YOLOv4's, which the final model takes (table 4).
YOLOV4_ANCHORS = [[12, 16], [19, 36], [40, 28], [36, 75], [76, 55], [72, 146], [142, 110], [192, 243], [459, 401]]


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.ORIENMASK with the defaults of the final model."""
    cfg.MODEL.ORIENMASK = CfgNode()
    cfg.MODEL.ORIENMASK.NUM_CLASSES = 80
    _add_network_keys(cfg.MODEL.ORIENMASK)
    _add_training_keys(cfg.MODEL.ORIENMASK)
    _add_test_keys(cfg.MODEL.ORIENMASK)


def _add_network_keys(node: CfgNode) -> None:
    # Features of strides 4, 8, 16 and 32.
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Channels of the YOLO neck at strides 8, 16 and 32; the box heads' hidden layers have twice as many.
    node.NECK_CHANNELS = [128, 256, 512]
    # Channels of the orientation branch at stride 4; laterals have half, the head's 3x3 convolutions twice as many.
    node.ORIEN_CHANNELS = 128
    # What the orientation branch sees: "fpn_plus" (all three neck levels) or "fpn" (that of stride 8), each beside the
    # backbone's stride-4 feature (table 4).
    node.ORIEN_INPUT = "fpn_plus"
    # "BN" or "SyncBN" (over the ranks of a distributed run; as BN in a single process).
    node.NORM = "BN"
    # (width, height) px of the network input, by size; a third of them for each of the strides 8, 16 and 32.
    node.ANCHORS = YOLOV4_ANCHORS


def _add_training_keys(node: CfgNode) -> None:
    # A prediction whose IoU with some object exceeds this is no negative of the objectness.
    node.IGNORE_THRESH = 0.7
    # What orientations point at: "box" (the box's centre) or "grid" (the centre of its cell, the base model; table 4).
    node.BASE_POSITION = "box"
    # Size of the area with targets, in boxes (r of table 1).
    node.EXPAND_RATIO = 1.2
    # Which object has a pixel or a cell that several claim, the last one in an order: "large_first" (small ones stay)
    # or "given" (that of the annotations).
    node.OVERLAP_ORDER = "large_first"
    # Weight of the orientation losses (lambda of table 2); all others have 1.
    node.ORIEN_LOSS_WEIGHT = 20.0


def _add_test_keys(node: CfgNode) -> None:
    # A pixel belongs to a detection if it points closer to its base than this share of half the box (tau of table 3).
    node.TAU = 0.6
    # Pairs of anchor and class with a smaller objectness x class probability are dropped, PRE_NMS_TOPK are kept.
    node.SCORE_THRESH_TEST = 0.005
    node.PRE_NMS_TOPK = 400
    node.NMS_THRESH_TEST = 0.5
