"""Parts that the networks are built of; importing this package registers SegZoo's backbones with Detectron2."""

from __future__ import annotations

from segzoo.modeling import backbones

__all__ = ["backbones"]
