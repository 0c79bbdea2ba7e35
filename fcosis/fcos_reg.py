"""FCOSReg: FCOS whose targets know of the masks, boxes only (FCOSIS, table 1).

Shape shorthand: N images.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from fcosis.detector import detection_losses, regularized_arguments
from fcosis.regularization import location_shares
from fcosis.targets import regularized_targets
from segzoo.modeling.fcos import FCOS
from segzoo.modeling.fcos.fcos import head_arguments
from segzoo.modeling.fcos.head import FCOSHead, FCOSMaps
from segzoo.modeling.fcos.locations import Locations


@META_ARCH_REGISTRY.register()
class FCOSReg(FCOS):
    """FCOS v1 with regularised targets and weights; the network and the inference are FCOS's."""

    @configurable
    def __init__(self, *, regularization: tuple[float, float, float], **kwargs: Any) -> None:
        """
        Args:
            regularization: (alpha, beta, gamma) of `regularized_weights`.
            kwargs: FCOS's.
        """
        super().__init__(**kwargs)
        self.regularization = regularization

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = regularized_arguments(cfg)
        head = FCOSHead(**head_arguments(cfg, arguments["backbone"]))
        return arguments | {"center_radius": 0.0, "head": head}

    def losses(self, maps: FCOSMaps, locations: Locations, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """FCOS's three losses of N images, see `detection_losses`."""
        shares = location_shares([x.gt_masks.tensor for x in gt_instances], locations)
        return detection_losses(
            maps,
            regularized_targets(locations, gt_instances, shares, self.num_classes, self.sizes_of_interest),
            self.regularization,
            focal_alpha=self.focal_alpha,
            focal_gamma=self.focal_gamma,
            normalizer_mode=self.normalizer_mode,
        )
