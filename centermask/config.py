"""Config keys of CenterMask on CenterNet; the backbone is configured by MODEL.BACKBONE and the node of its own."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.CENTERMASK with the defaults of the paper's DLA-34 model with direct saliency supervision."""
    cfg.MODEL.CENTERMASK = CfgNode()
    cfg.MODEL.CENTERMASK.NUM_CLASSES = 80
    _add_network_keys(cfg.MODEL.CENTERMASK)
    _add_training_keys(cfg.MODEL.CENTERMASK)
    _add_test_keys(cfg.MODEL.CENTERMASK)


def _add_network_keys(node: CfgNode) -> None:
    # Of stride 4: one feature ("p2" of DLA), or that of every supervised stack, of which the last one is used at test
    # ("stack0", "stack1" of the hourglass). Of several strides from 4 on, finest first: they are summed at stride 4.
    node.IN_FEATURES = ["p2"]
    # Channels of that sum; each feature reaches them by a 1x1 convolution.
    node.FUSED_CHANNELS = 64
    # Hidden channels of every head.
    node.HEAD_CHANNELS = 256
    # Whether local shapes are predicted (table 1c).
    node.SHAPE_ON = True
    # Side S of a local shape (table 1a).
    node.SHAPE_SIZE = 32
    # Global saliency: "class_specific" (a map a class), "class_agnostic" (one map) or "none" (tables 1d and 1e).
    node.SALIENCY = "class_specific"
    # Saliency of an untrained model; low, because few pixels belong to a class.
    node.SALIENCY_PRIOR = 0.01


def _add_training_keys(node: CfgNode) -> None:
    # Weights of the losses.
    node.HEATMAP_LOSS_WEIGHT = 1.0
    node.OFFSET_LOSS_WEIGHT = 1.0
    node.SIZE_LOSS_WEIGHT = 0.1
    node.MASK_LOSS_WEIGHT = 1.0
    # Of the direct supervision of the saliency by the union of a class's masks; 0 = none (table 1f).
    node.SALIENCY_LOSS_WEIGHT = 1.0
    # Boxes that the mask loss is taken in: "gt" or "predicted" (offset and size at the object's centre).
    node.CROP_BOXES = "gt"
    # Objects of an image that centres, sizes and masks are trained on; further ones are counted and logged.
    node.MAX_OBJECTS = 128


def _add_test_keys(node: CfgNode) -> None:
    # Peaks of the heatmap at or below this are no detections; the best TEST.DETECTIONS_PER_IMAGE of the rest are.
    node.SCORE_THRESH_TEST = 0.0
    # Pixels belong to a mask where shape x saliency is at least this.
    node.MASK_THRESH = 0.4
