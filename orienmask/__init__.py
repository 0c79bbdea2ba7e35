"""OrienMask: real-time instance segmentation with discriminative orientation maps (Du et al., ICCV 2021)."""

from orienmask.config import add_config
from orienmask.orienmask import OrienMask

__all__ = ["OrienMask", "add_config"]
