"""The parts of FCOS v1 (Tian et al., ICCV 2019) that the single-shot methods are built on, and FCOS itself.

Own code rather than Detectron2's DenseDetector, because the methods need what that one does not return:
the matched ground truth, the location and the level of every positive and of every detection.
"""

from segzoo.modeling.fcos.fcos import FCOS

__all__ = ["FCOS"]
