"""CenterMask: single shot instance segmentation with point representation (Wang et al., CVPR 2020).

Local shapes at object centres times a global saliency map, on CenterNet (`CenterMask`) and on FCOS (`CenterMaskFCOS`).
Not the network of the same name by Lee and Park, also of CVPR 2020, which adds a mask branch to FCOS.
"""

from detectron2.config import CfgNode

from centermask.centermask import CenterMask
from centermask.centermask_fcos import CenterMaskFCOS
from centermask.config import add_config as add_centermask_config
from centermask.config_fcos import add_fcos_config

__all__ = ["CenterMask", "CenterMaskFCOS", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Adds MODEL.CENTERMASK and MODEL.CENTERMASK_FCOS with their defaults."""
    add_centermask_config(cfg)
    add_fcos_config(cfg)
