"""CenterMask: single shot instance segmentation with point representation (Wang et al., CVPR 2020).

Local shapes at object centres times a global saliency map. Not the network of the same name by Lee and Park, also of
CVPR 2020, which adds a mask branch to FCOS.
"""

from centermask.centermask import CenterMask
from centermask.config import add_config

__all__ = ["CenterMask", "add_config"]
