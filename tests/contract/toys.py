"""Every registered model at toy size, for the checks that all of them must pass.

A new method joins by an entry in MODELS; test_models_cover_the_registry fails until it has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from projects import get_cfg
from segzoo.config import merge_config
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import RLEMasks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_CLASSES = 3
FCOS_TOY = ["MODEL.FCOS.NUM_CONVS", "1", "MODEL.FPN.OUT_CHANNELS", "64", "MODEL.TIMM.WEIGHTS", ""]
RCNN_TOY = [
    *("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
]
# The preset of the authors' program: box branch, degree bins, drawn contours.
OFFICIAL_TOY = [
    *("MODEL.POLARMASK.CONVENTION", "official", "MODEL.POLARMASK.BOX_BRANCH", "True"),
    *("MODEL.POLARMASK.BOXES", "predicted"),
]
ORIENMASK_TOY = [
    *("MODEL.TIMM.WEIGHTS", "", "MODEL.ORIENMASK.NECK_CHANNELS", "[8, 16, 32]", "MODEL.ORIENMASK.ORIEN_CHANNELS", "16"),
    *(
        "MODEL.ORIENMASK.ANCHORS",
        "[[6, 6], [12, 8], [8, 14], [18, 18], [30, 16], [16, 32], [44, 30], [34, 48], [80, 60]]",
    ),
]
# The base model of the paper's tables.
ORIENMASK_BASE = [*("MODEL.ORIENMASK.BASE_POSITION", "grid", "MODEL.ORIENMASK.ORIEN_INPUT", "fpn")]
CENTERMASK_TOY = [
    *("MODEL.TIMM.WEIGHTS", "", "MODEL.CENTERMASK.HEAD_CHANNELS", "16", "MODEL.CENTERMASK.SHAPE_SIZE", "8"),
]
# Losses on two stacks, one saliency map for all classes, masks trained in the predicted boxes.
CENTERMASK_STACKS = [
    *("MODEL.HOURGLASS.CHANNELS", "(16, 16, 24)", "MODEL.HOURGLASS.BLOCKS", "(1, 1, 1)"),
    *("MODEL.CENTERMASK.HEAD_CHANNELS", "16", "MODEL.CENTERMASK.SHAPE_SIZE", "8"),
    *("MODEL.CENTERMASK.SALIENCY", "class_agnostic", "MODEL.CENTERMASK.CROP_BOXES", "predicted"),
    *("INPUT.FIXED_SIZE", "(128, 128)"),
]
CENTERMASK_FCOS_TOY = [
    *("MODEL.META_ARCHITECTURE", "CenterMaskFCOS", "MODEL.CENTERMASK_FCOS.SHAPE_SIZE", "8"),
    *("MODEL.CENTERMASK_FCOS.SALIENCY_NUM_CONVS", "1"),
]
# All of a picture's groups do not fit into the budget, so that they are done in parts.
FCOSIS_TOY = [*FCOS_TOY, "MODEL.FCOSIS.SEG_CHANNELS", "64", "MODEL.FCOSIS.GROUP_BUDGET_MB", "1"]
MASKFCOS_TOY = [*FCOS_TOY, "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"]
# meta-architecture, perhaps with a variant after a dash -> (config, changes that make it small)
MODELS: dict[str, tuple[str, list[str]]] = {
    "FCOS": ("fcos_EffLite0.yaml", FCOS_TOY),
    "PolarMask": ("polarmask_EffLite0.yaml", FCOS_TOY),
    "PolarMask-official": ("polarmask_EffLite0.yaml", FCOS_TOY + OFFICIAL_TOY),
    "OrienMask": ("orienmask_EffLite0.yaml", ORIENMASK_TOY),
    "OrienMask-base": ("orienmask_EffLite0.yaml", ORIENMASK_TOY + ORIENMASK_BASE),
    "CenterMask": ("centermask_EffLite0.yaml", CENTERMASK_TOY),
    "CenterMask-stacks": ("centermask_HG104.yaml", CENTERMASK_STACKS),
    "CenterMaskFCOS": ("fcos_EffLite0.yaml", FCOS_TOY + CENTERMASK_FCOS_TOY),
    "FCOSIS": ("fcosis_EffLite0.yaml", FCOSIS_TOY),
    "FCOSIS-box": ("fcosis_EffLite0.yaml", [*FCOSIS_TOY, "MODEL.FCOSIS.ATTENTION", "box"]),
    "FCOSIS-context": ("fcosis_EffLite0.yaml", [*FCOS_TOY, "MODEL.FCOSIS.ATTENTION", "none"]),
    "FCOSReg": ("fcosreg_EffLite0.yaml", FCOS_TOY),
    "MaskFCOS": ("maskfcos_EffLite0.yaml", MASKFCOS_TOY),
    "MaskRCNN": ("mask_rcnn_EffLite0.yaml", RCNN_TOY),
}
# Cells.
UNTRAINED_SIZE = 6.0
WITHOUT_MASKS = {"FCOS", "FCOSReg"}
# Thresholds 0: an untrained model finds as much as it may.
THRESHOLDS = [f"MODEL.{head}.SCORE_THRESH_TEST" for head in ("FCOS", "ROI_HEADS", "ORIENMASK", "CENTERMASK")]
FIND_ALL = [word for key in THRESHOLDS for word in (key, 0.0)]
FIND_NONE = [word for key in THRESHOLDS for word in (key, 1.0)]


def toy_config(name: str, *options: Any) -> CfgNode:
    """The config of a model of MODELS at toy size, for a CPU."""
    config_file, changes = MODELS[name]
    heads = ("FCOS", "ROI_HEADS", "ORIENMASK", "CENTERMASK")
    classes = [word for head in heads for word in (f"MODEL.{head}.NUM_CLASSES", str(NUM_CLASSES))]
    words = [*changes, *classes, "MODEL.DEVICE", "cpu", *map(str, options)]
    return merge_config(get_cfg(), str(CONFIGS / config_file), words)


def build_toy(name: str, *options: Any) -> torch.nn.Module:
    """The model of a name with given config changes, always from the same random weights.

    Sizes that are predicted as such (CenterMask's) are not negative before any training.
    """
    torch.manual_seed(1)
    model = build_model(toy_config(name, *options))
    for key, parameter in model.named_parameters():
        if key.endswith(".size.2.bias"):
            torch.nn.init.constant_(parameter, UNTRAINED_SIZE)
    return model


def ellipse(size: tuple[int, int], center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """(H, W) boolean mask."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1


def make_input(size: tuple[int, int], masks: list[np.ndarray], seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A mapper's training sample: a noise image of `size` (H, W) and the given masks, of classes 0, 1, 2, 0, ..."""
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    stack = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)
    instances = Instances(size)
    instances.gt_boxes = Boxes(mask_boxes(stack))
    instances.gt_classes = torch.arange(len(stack)) % NUM_CLASSES
    instances.gt_masks = BitMasks(stack)
    sample = {"image": image, "height": size[0], "width": size[1], "file_name": f"{seed}.png", "image_id": seed}
    return sample | {"instances": instances} | fields


def losses_and_gradients(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Losses of a training step; checks that they are finite and reach every trainable parameter."""
    model.train()
    return backward(model, batch)


def keep_norm_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """The same model in training, but its batch norms do not mix what lies in a batch."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def backward(model: torch.nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """As `losses_and_gradients`, but every module in the mode that it has."""
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    torch.stack(list(losses.values())).sum().backward()
    for key, value in losses.items():
        assert torch.isfinite(value), key
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{key} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{key} has a gradient that is not finite"
    return {key: value.detach() for key, value in losses.items()}


def predict(model: torch.nn.Module, batch: list[dict]) -> list[Instances]:
    model.eval()
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def check_fields(instances: Instances, model_name: str, size: tuple[int, int]) -> None:
    count = len(instances.scores)
    assert instances.image_size == size
    assert isinstance(instances.pred_boxes, Boxes)
    assert instances.pred_boxes.tensor.shape == (count, 4)
    assert instances.pred_classes.shape == (count,)
    assert instances.pred_classes.dtype == torch.int64
    assert instances.has("pred_masks") == (model_name not in WITHOUT_MASKS)
    if instances.has("pred_masks"):
        assert isinstance(instances.pred_masks, RLEMasks)
        assert instances.pred_masks.to_tensor().shape == (count, *size)
