"""FCOS with regularised targets, as FCOSIS, FCOSReg and MaskFCOS have it: its arguments and its losses.

Shape shorthand: N images, R locations, K classes, P positives.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from fcosis.check import check_regularization
from fcosis.regularization import regularized_weights
from fcosis.targets import RegularizedTargets
from segzoo.modeling.fcos.fcos import detector_arguments
from segzoo.modeling.fcos.head import FCOSMaps, exp_size
from segzoo.modeling.fcos.locations import flatten_levels
from segzoo.modeling.fcos.losses import box_centerness, centerness_loss, focal_loss, iou_loss
from segzoo.modeling.normalizer import loss_normalizers


def regularized_arguments(cfg: CfgNode) -> dict[str, Any]:
    """FCOS's arguments (see `detector_arguments`) with the mask regularisation in place of the centre sampling.

    Raises:
        ConfigError: an impossible MODEL.FCOS, or one that asks for centre sampling.
    """
    arguments = detector_arguments(cfg)
    check_regularization(cfg, arguments["backbone"])
    # The check has seen that it is 0.
    del arguments["center_radius"]
    alpha, beta, gamma = map(float, cfg.MODEL.FCOSIS.REGULARIZATION)
    return arguments | {"regularization": (alpha, beta, gamma)}


def positive_weights(targets: RegularizedTargets, regularization: tuple[float, float, float]) -> Tensor:
    """(P,) the regularised map at the positives: weight of their box loss and target of their centerness."""
    return regularized_weights(box_centerness(targets.box_distances_px), targets.shares, regularization)


def detection_losses(
    maps: FCOSMaps,
    targets: RegularizedTargets,
    regularization: tuple[float, float, float],
    *,
    focal_alpha: float,
    focal_gamma: float,
    normalizer_mode: str,
) -> dict[str, Tensor]:
    """The three losses of FCOS, Eq. (2), with the regularised map in place of the centerness.

    The map, (alpha, beta, gamma) of centerness and mask (figure 6), is both the weight of a positive's box loss and the
    target of its centerness. The box loss is divided by the sum of the weights, the others by the positives.

    Args:
        maps: of the N images; other maps that a head gives are of no concern here.
        targets: of the N * R locations.
        regularization: (alpha, beta, gamma).
        focal_alpha, focal_gamma: of the focal loss.
        normalizer_mode: see `mean_over_ranks`.

    Returns:
        loss_cls, loss_box and loss_centerness, scalars in fp32.
    """
    positives = targets.positives
    weights = positive_weights(targets, regularization)
    normalizers = loss_normalizers(positives.new_tensor(len(positives)), weights.sum(), normalizer_mode)
    cls_logits = flatten_levels(maps.cls_logits).flatten(0, 1)
    pred_distances = exp_size(flatten_levels(maps.box_logits).flatten(0, 1)[positives])
    centerness_logits = flatten_levels(maps.centerness_logits).flatten()[positives]
    cls_loss = focal_loss(cls_logits, targets.classes, focal_alpha, focal_gamma)
    return {
        "loss_cls": cls_loss / normalizers.positives,
        "loss_box": iou_loss(pred_distances, targets.box_distances_px, weights) / normalizers.weight_sum,
        "loss_centerness": centerness_loss(centerness_logits, weights) / normalizers.positives,
    }
