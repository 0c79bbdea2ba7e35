"""OrienMask's backbone, neck and heads without its meta-architecture, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from torch import Tensor, nn

from orienmask.heads import build_network
from orienmask.maps import OrienMaps
from segzoo.modeling.backbones.darknet import Darknet

FEATURES = ("res2", "res3", "res4", "res5")
SMALL: dict[str, Any] = {"blocks_per_stage": (1, 1, 2, 1, 1), "stem_channels": 4}


class Network(nn.Module):
    """What OrienMask computes before it decodes, under the same names."""

    def __init__(
        self, backbone: Backbone | None = None, *, neck_channels: Sequence[int] = (16, 32, 64), **changes: Any
    ) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else Darknet(**SMALL)
        shapes: Any = self.backbone.output_shape()
        arguments = {"orien_channels": 16, "num_anchors": 3, "num_classes": 4, "orien_input": "fpn_plus", "norm": "BN"}
        modules = build_network(
            feature_channels=[shapes[name].channels for name in FEATURES],
            neck_channels=neck_channels,
            **{**arguments, **changes},
        )
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> OrienMaps:
        features = self.backbone(images)
        fine, *coarser = [features[name] for name in FEATURES]
        levels = self.get_submodule("neck")(coarser)
        return OrienMaps(self.get_submodule("box_head")(levels), self.get_submodule("orien_head")(fine, levels))


def full_network(orien_input: str = "fpn_plus", norm: str = "BN") -> Network:
    """The paper's network with 80 classes."""
    return Network(
        Darknet(norm=norm),
        neck_channels=(128, 256, 512),
        orien_channels=128,
        num_classes=80,
        orien_input=orien_input,
        norm=norm,
    )
