"""PolarMask: single shot instance segmentation with polar representation (Xie et al., CVPR 2020)."""

from polarmask.config import add_config
from polarmask.polarmask import PolarMask

__all__ = ["PolarMask", "add_config"]
