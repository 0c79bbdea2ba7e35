"""The authors' released weights (mmdetection's .pth files) under our names: `tools/convert_weights.py`.

Facts about the names: the released files say `fcos_*` where the published code says `polar_*`; models with deformable
towers keep each tower as one flat list of convolution, norm and ReLU. Offsets need no reordering: both programs hold
(y, x) pairs, then the mask's logits.

Shape shorthand: K classes, n rays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segzoo.engine.convert import Converter, Fit
from segzoo.engine.renaming import BLOCK, DROP_COUNTERS, LEAF, Rule, resnet_rules
from segzoo.errors import CheckpointError

RESNET = "backbone.bottom_up."
# Blocks of res2 to res5 -> layers, for networks of bottlenecks.
DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# Offset channels of a deformable group of 3x3: (y, x) pairs, in modulated ones also the masks.
OFFSET_CHANNELS, MODULATED_CHANNELS = 18, 27
TOWER_WEIGHT = re.compile(r"head\.cls_tower\.\d+\.weight")
TOWER_OFFSET = re.compile(r"head\.\w+_tower\.\d+\.offset\.weight")
# The authors' ResNets start from Caffe's weights, their ResNeXts from torchvision-like ones.
CAFFE_INPUT = {
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}
PYTORCH_INPUT = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def _tower_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    convs, tower = rf"bbox_head\.{theirs}_convs\.(?P<index>\d+)", f"head.{ours}_tower."
    return (
        Rule(rf"{convs}\.conv\.weight", tower + "{3*index}.weight"),
        Rule(rf"{convs}\.gn\.{LEAF}", tower + "{3*index+1}.{leaf}"),
        # Flat towers: the index counts norms and ReLUs already, as ours does.
        Rule(rf"{convs}\.{LEAF}", tower + "{index}.{leaf}"),
        Rule(rf"{convs}\.conv_offset(?:_mask)?\.{LEAF}", tower + "{index}.offset.{leaf}"),
    )


RULES = (
    *resnet_rules("backbone.", RESNET),
    Rule(rf"backbone\.{BLOCK}\.conv2(?:_|\.conv_)offset\.{LEAF}", RESNET + "res{stage+1}.{block}.conv2_offset.{leaf}"),
    Rule(rf"neck\.lateral_convs\.(?P<level>[0-2])\.conv\.{LEAF}", "backbone.fpn_lateral{level+3}.{leaf}"),
    Rule(rf"neck\.fpn_convs\.(?P<level>[0-2])\.conv\.{LEAF}", "backbone.fpn_output{level+3}.{leaf}"),
    Rule(rf"neck\.fpn_convs\.(?P<level>[34])\.conv\.{LEAF}", "backbone.top_block.p{level+3}.{leaf}"),
    *_tower_rules("cls", "cls"),
    *_tower_rules("reg", "box"),
    *_tower_rules("mask", "mask"),
    Rule(rf"bbox_head\.(?:polar|fcos)_cls\.{LEAF}", "head.cls_logits.{leaf}"),
    Rule(rf"bbox_head\.(?:polar|fcos)_reg\.{LEAF}", "head.box_pred.{leaf}"),
    Rule(rf"bbox_head\.(?:polar|fcos)_mask\.{LEAF}", "head.ray_pred.{leaf}"),
    Rule(rf"bbox_head\.(?:polar|fcos)_centerness\.{LEAF}", "head.centerness.{leaf}"),
    # A scale is a number in theirs, a vector of one in ours.
    Rule(r"bbox_head\.scales_bbox\.(?P<level>\d)\.scale", "head.box_scales.{level}.scale", shape=(1,)),
    Rule(r"bbox_head\.scales_mask\.(?P<level>\d)\.scale", "head.mask_scales.{level}.scale", shape=(1,)),
    DROP_COUNTERS,
)


def polarmask_fit(weights: Mapping[str, Tensor]) -> Fit:
    """Which config weights under our names belong to.

    Raises:
        CheckpointError: an entry that tells it is missing, or the backbone has no known depth.
    """
    depth, groups, resnet = _resnet(weights)
    num_classes, num_rays = _shape(weights, "head.cls_logits.weight")[0], _shape(weights, "head.ray_pred.weight")[0]
    has_boxes = "head.box_pred.weight" in weights
    is_deformable = any(TOWER_OFFSET.fullmatch(name) for name in weights)
    stages, deformable = _deformable_stages(weights)
    # Norms have weights too, of one dimension.
    num_convs = sum(bool(TOWER_WEIGHT.fullmatch(name)) and value.dim() == 4 for name, value in weights.items())
    head = {
        "MODEL.FPN.OUT_CHANNELS": _shape(weights, "backbone.fpn_output3.weight")[0],
        "MODEL.FCOS.NUM_CLASSES": num_classes,
        "MODEL.FCOS.NUM_CONVS": num_convs,
        "MODEL.FCOS.DEFORMABLE": is_deformable,
        "MODEL.POLARMASK.NUM_RAYS": num_rays,
        "MODEL.POLARMASK.BOX_BRANCH": has_boxes,
        "MODEL.POLARMASK.BOXES": "predicted" if has_boxes else "contours",
    }
    backbone = f"ResNet-{depth}" if groups == 1 else f"ResNeXt-{depth}, {groups} groups"
    found = {
        "backbone": f"{backbone}; deformable: {', '.join(stages) or 'no stage'}",
        "head": f"{num_classes} classes, {num_rays} rays, {'a' if has_boxes else 'no'} box branch, "
        f"{'deformable' if is_deformable else 'plain'} towers of {num_convs} convolutions",
    }
    options = resnet | deformable | head | (CAFFE_INPUT if groups == 1 else PYTORCH_INPUT)
    return Fit("configs/polarmask_R50_official.yaml", options, found)


def _resnet(weights: Mapping[str, Tensor]) -> tuple[int, int, dict[str, Any]]:
    """Layers, groups and the options of the backbone."""
    blocks = [0, 0, 0, 0]
    for name in weights:
        if match := re.fullmatch(re.escape(RESNET) + r"res(\d)\.\d+\.conv3\.weight", name):
            blocks[int(match[1]) - 2] += 1
    if tuple(blocks) not in DEPTHS:
        raise CheckpointError(
            f"the backbone has {blocks} blocks of three convolutions in its stages",
            f"known depths: {', '.join(map(str, DEPTHS.values()))}; other numbers mean that entries are missing",
        )
    width, width_per_group = _shape(weights, f"{RESNET}res2.1.conv2.weight")[:2]
    options = {
        "MODEL.RESNETS.DEPTH": DEPTHS[tuple(blocks)],
        "MODEL.RESNETS.NUM_GROUPS": width // width_per_group,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width_per_group,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": _shape(weights, f"{RESNET}stem.conv1.weight")[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": _shape(weights, f"{RESNET}res2.0.conv3.weight")[0],
    }
    return DEPTHS[tuple(blocks)], width // width_per_group, options


def _deformable_stages(weights: Mapping[str, Tensor]) -> tuple[list[str], dict[str, Any]]:
    """Names of the deformable stages and their options."""
    names = {f"res{stage}": f"{RESNET}res{stage}.0.conv2_offset.weight" for stage in range(2, 6)}
    options: dict[str, Any] = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [name in weights for name in names.values()]}
    stages = [stage for stage, name in names.items() if name in weights]
    if stages:
        channels = _shape(weights, names[stages[0]])[0]
        # 54 could be either; the authors' modulated layers have one group.
        is_modulated = channels == MODULATED_CHANNELS
        options["MODEL.RESNETS.DEFORM_MODULATED"] = is_modulated
        options["MODEL.RESNETS.DEFORM_NUM_GROUPS"] = channels // (
            MODULATED_CHANNELS if is_modulated else OFFSET_CHANNELS
        )
    return stages, options


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The four sizes of a convolution's filters."""
    if name not in weights:
        raise CheckpointError(
            f"missing in the file: {name}, without which the model is not known", "docs/weights.md shows their names"
        )
    shape = tuple(weights[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"{name} is {shape}, which are no filters of a convolution")
    return shape


CONVERTERS = (
    Converter(
        name="polarmask",
        title="the authors' PolarMask (mmdetection .pth with bbox_head.mask_convs)",
        mark=r"bbox_head\.(?:mask_convs\..+|(?:polar|fcos)_mask\..+)",
        rules=RULES,
        fit=polarmask_fit,
    ),
)
