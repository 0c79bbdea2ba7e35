"""Config keys of CenterMask-FCOS; its detector parts are configured by MODEL.FCOS."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_fcos_config(cfg: CfgNode) -> None:
    """Adds MODEL.CENTERMASK_FCOS; the paper says little of this variant, see projects/CenterMask/README.md."""
    node = cfg.MODEL.CENTERMASK_FCOS = CfgNode()
    # Whether local shapes are predicted, and their side S.
    node.SHAPE_ON = True
    node.SHAPE_SIZE = 32
    # Global saliency: "class_specific" (a map a class), "class_agnostic" (one map) or "none".
    node.SALIENCY = "class_specific"
    # Levels of the pyramid that the saliency is made of, finest first.
    node.SALIENCY_FEATURES = ["p3", "p4", "p5"]
    # 3x3 convolutions on their sum; norm and channels are those of MODEL.FCOS's towers.
    node.SALIENCY_NUM_CONVS = 4
    # Saliency of an untrained model; low, because few pixels belong to a class.
    node.SALIENCY_PRIOR = 0.01
    node.MASK_LOSS_WEIGHT = 1.0
    # Weight of the direct supervision of the saliency by the union of a class's masks; 0 = none.
    node.SALIENCY_LOSS_WEIGHT = 1.0
    # Positive locations of an image that masks are trained at; of more, this many are drawn.
    node.MAX_MASKS = 64
    # Pixels belong to a mask where shape x saliency is at least this.
    node.MASK_THRESH = 0.4
