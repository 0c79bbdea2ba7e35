"""FCOSIS: attention-guided one-stage instance segmentation on FCOS.

`FCOSIS` itself, `FCOSReg` (FCOS with its mask regularisation alone) and `MaskFCOS` (its two-stage counterpart).
"""

from fcosis.config import add_config
from fcosis.fcos_reg import FCOSReg
from fcosis.fcosis import FCOSIS
from fcosis.mask_fcos import MaskFCOS

__all__ = ["FCOSIS", "FCOSReg", "MaskFCOS", "add_config"]
