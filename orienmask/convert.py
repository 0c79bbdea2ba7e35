"""Weights from elsewhere in our OrienMask: the authors' files, and those of Darknet that training may start from.

The authors' orientation channels begin with the anchors of stride 32, ours with those of stride 8; their box heads are
named by stride, ours count finest first.

Shape shorthand: K classes, A anchors of a level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from segzoo.engine.convert import Converter, Fit, Source
from segzoo.engine.darknet_weights import (
    DarknetLayer,
    backbone_layers,
    claims_file,
    count_values,
    num_values,
    read_header,
    read_layers,
)
from segzoo.engine.renaming import DROP_COUNTERS, LEAF, NORM_LEAF, Rule
from segzoo.errors import CheckpointError

FINAL_CONFIG, BASE_CONFIG = "configs/orienmask_D53.yaml", "configs/orienmask_D53_base.yaml"
BACKBONE_PART = ("backbone.",)
YOLO_PART = ("backbone.", "neck.", "box_head.")
NUM_STAGES = 5
# Of a box beside its classes.
BOX_VALUES = 5
# Anchors of a level in YOLOv3, whose files have no other layer that would tell.
YOLO_ANCHORS = 3
# (stride in the authors' names, level of our neck, index of our box head), in Darknet's order.
LEVELS = ((32, 5, 2), (16, 4, 1), (8, 3, 0))
# Our x and y of the anchors 0..8 are these of the authors' channels.
ORIENTATION_ORDER = (*range(12, 18), *range(6, 12), *range(6))


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    # A conv block of theirs is a convolution and a batch norm.
    return (
        Rule(rf"{theirs}\.conv_block\.0\.weight", f"{ours}.weight"),
        Rule(rf"{theirs}\.conv_block\.1\.{NORM_LEAF}", f"{ours}.norm.{{leaf}}"),
    )


def _backbone_rules(theirs: str) -> tuple[Rule, ...]:
    # Their stages count from the stem, 1, and their blocks from the stage's stride-2 convolution, 0.
    return tuple(
        rule
        for stage in range(1, NUM_STAGES + 1)
        for rule in (
            *_block_rules(rf"{theirs}conv{stage + 1}\.0", f"backbone.res{stage}.down"),
            *_block_rules(
                rf"{theirs}conv{stage + 1}\.(?P<block>[1-9]\d*)\.conv\.0",
                f"backbone.res{stage}.blocks.{{block-1}}.conv1",
            ),
            *_block_rules(
                rf"{theirs}conv{stage + 1}\.(?P<block>[1-9]\d*)\.conv\.1",
                f"backbone.res{stage}.blocks.{{block-1}}.conv2",
            ),
        )
    ) + _block_rules(rf"{theirs}conv1", "backbone.stem")


def _level_rules(stride: int, level: int, index: int) -> tuple[Rule, ...]:
    return (
        *_block_rules(rf"neck{stride}\.(?P<conv>[0-4])", f"neck.p{level}.{{conv}}"),
        *(_block_rules(rf"route{stride}\.0", f"neck.lateral{level}") if stride != 8 else ()),
        *_block_rules(rf"bbox_head{stride}\.0", f"box_head.{index}.conv"),
        Rule(rf"bbox_head{stride}\.1\.{LEAF}", f"box_head.{index}.pred.{{leaf}}"),
        *_block_rules(rf"skip{stride}\.0", f"orien_head.fuse.p{level}"),
    )


RULES = (
    *_backbone_rules(r"backbone\."),
    *(rule for level in LEVELS for rule in _level_rules(*level)),
    *_block_rules(r"skip4", "orien_head.fuse.p2"),
    *_block_rules(r"route8\.0", "orien_head.lateral3"),
    *_block_rules(r"neck4\.(?P<conv>[0-4])", "orien_head.neck.{conv}"),
    *_block_rules(r"orien_head\.(?P<conv>[0-4])", "orien_head.tower.{conv}"),
    Rule(rf"orien_head\.5\.{LEAF}", "orien_head.pred.{leaf}", order=ORIENTATION_ORDER),
    DROP_COUNTERS,
)
# Of the authors' file of a backbone alone.
BACKBONE_RULES = (*_backbone_rules(""), DROP_COUNTERS)
# What `read_darknet` names has our names already.
DARKNET_RULES = (Rule(r"(?P<name>(?:backbone|neck|box_head)\..+)", "{name}"),)


def orienmask_fit(weights: Mapping[str, Tensor]) -> Fit:
    """Which config the authors' whole model belongs to; anchors and base position leave no trace in weights.

    Raises:
        CheckpointError: an entry that tells it is missing.
    """
    takes_all_levels = "orien_head.fuse.p2.weight" in weights
    orien_channels = _shape(weights, "orien_head.neck.4.weight")[0]
    num_anchors = _shape(weights, "orien_head.pred.weight")[0] // (2 * len(LEVELS))
    network, found = _yolo_options(weights, num_anchors)
    options = network | {
        "MODEL.ORIENMASK.ORIEN_CHANNELS": orien_channels,
        "MODEL.ORIENMASK.ORIEN_INPUT": "fpn_plus" if takes_all_levels else "fpn",
    }
    found["orientation branch"] = f"{'FPN plus' if takes_all_levels else 'plain FPN'}, {orien_channels} channels"
    return Fit(FINAL_CONFIG if takes_all_levels else BASE_CONFIG, _backbone_options(weights) | options, found)


def backbone_fit(weights: Mapping[str, Tensor]) -> Fit:
    """The final model's config, for a backbone alone.

    Raises:
        CheckpointError: an entry that tells its width is missing.
    """
    return Fit(FINAL_CONFIG, _backbone_options(weights), {"holds": "the backbone"}, BACKBONE_PART)


def darknet_fit(weights: Mapping[str, Tensor]) -> Fit:
    """For a backbone the final model's config, for YOLOv3 the base model's, which has its anchors."""
    if "neck.p5.0.weight" not in weights:
        return backbone_fit(weights)
    options, found = _yolo_options(weights, YOLO_ANCHORS)
    found = {"holds": "backbone, neck and box heads of YOLOv3, trained with its anchors", **found}
    return Fit(BASE_CONFIG, _backbone_options(weights) | options, found, YOLO_PART)


def _yolo_options(weights: Mapping[str, Tensor], num_anchors: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of neck and box heads, and what they are in words."""
    channels = _shape(weights, "box_head.0.pred.weight")[0]
    num_classes = channels // max(num_anchors, 1) - BOX_VALUES
    options = {
        "MODEL.ORIENMASK.NUM_CLASSES": num_classes,
        "MODEL.ORIENMASK.NECK_CHANNELS": [_shape(weights, f"neck.p{level}.4.weight")[0] for level in (3, 4, 5)],
    }
    return options, {"box heads": f"{num_classes} classes, {num_anchors} anchors a level"}


def _backbone_options(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = [0] * NUM_STAGES
    for name in weights:
        if match := re.fullmatch(r"backbone\.res(\d)\.blocks\.\d+\.conv2\.weight", name):
            blocks[int(match[1]) - 1] += 1
    return {
        "MODEL.DARKNET.BLOCKS_PER_STAGE": tuple(blocks),
        "MODEL.DARKNET.STEM_CHANNELS": _shape(weights, "backbone.stem.weight")[0],
    }


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(
            f"missing in the file: {name}, without which the model is not known", "docs/weights.md shows their names"
        )
    shape = tuple(weights[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"{name} is {shape}, which are no filters of a convolution")
    return shape


def yolo_layers(
    num_classes: int, blocks_per_stage: Sequence[int] = (1, 2, 8, 8, 4), stem_channels: int = 32
) -> list[DarknetLayer]:
    """The convolutions of YOLOv3 in Darknet's order, under our names; the neck has half the backbone's channels.

    Args:
        num_classes: K.
        blocks_per_stage, stem_channels: of the backbone.
    """
    layers = backbone_layers("backbone.", blocks_per_stage, stem_channels)
    in_channels = 0
    for stride, level, index in LEVELS:
        # The backbone's feature of this stride has twice as many.
        channels = stem_channels * stride // 2
        in_channels += 2 * channels
        for conv in range(5):
            wide, inner = 2 * channels, in_channels if conv == 0 else 2 * channels
            sizes = (channels, inner, 1) if conv % 2 == 0 else (wide, channels, 3)
            layers.append(DarknetLayer(f"neck.p{level}.{conv}", *sizes))
        layers.append(DarknetLayer(f"box_head.{index}.conv", 2 * channels, channels, 3))
        outputs = YOLO_ANCHORS * (BOX_VALUES + num_classes)
        layers.append(DarknetLayer(f"box_head.{index}.pred", outputs, 2 * channels, 1, has_norm=False))
        if stride != 8:
            layers.append(DarknetLayer(f"neck.lateral{level}", channels // 2, channels, 1))
        # Of the lateral, beside the next finer feature.
        in_channels = channels // 2
    return layers


def read_darknet(path: str) -> Source:
    """darknet53.conv.74, or a yolov3.weights of any number of classes, which its size tells.

    Raises:
        CheckpointError: no file of Darknet, or one of another size (truncated, or of another network).
    """
    header, found = read_header(path), num_values(path)
    layers = backbone_layers("backbone.")
    alone, of_80 = count_values(layers), count_values(yolo_layers(80))
    per_class = of_80 - count_values(yolo_layers(79))
    if found != alone:
        more_classes, rest = divmod(found - of_80, per_class)
        num_classes = 80 + int(more_classes)
        if rest or num_classes < 1:
            raise CheckpointError(
                f"{path}: {found:,.10g} values after a header of {header.num_bytes} bytes; expected {alone:,} "
                f"(darknet53.conv.74) or {of_80:,} (yolov3.weights; {per_class:,} a class more or less than 80)",
                "download it again: it is truncated, or of another network",
            )
        layers = yolo_layers(num_classes)
    version = ".".join(map(str, header.version))
    return Source(read_layers(path, layers), {"darknet": {"version": version, "seen": header.seen}})


CONVERTERS = (
    Converter(
        name="orienmask",
        title="the authors' OrienMask (.pth with bbox_head32 and orien_head)",
        mark=r"(?:bbox_head32|orien_head)\..+",
        rules=RULES,
        fit=orienmask_fit,
    ),
    Converter(
        name="orienmask-backbone",
        title="the authors' Darknet-53 (.pth with conv1.conv_block)",
        mark=r"conv1\.conv_block\.0\.weight",
        rules=BACKBONE_RULES,
        fit=backbone_fit,
    ),
    Converter(
        name="darknet",
        title="Darknet's darknet53.conv.74 and yolov3.weights",
        mark=r"backbone\.stem\.weight",
        rules=DARKNET_RULES,
        fit=darknet_fit,
        read=read_darknet,
        claims=claims_file,
    ),
)
