"""Parts that the networks are built of; importing it registers SegZoo's backbones and baselines with Detectron2."""

from __future__ import annotations

from segzoo.modeling import backbones, fcos, mask_rcnn

__all__ = ["backbones", "fcos", "mask_rcnn"]
