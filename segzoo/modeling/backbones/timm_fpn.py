"""Any timm feature extractor as a Detectron2 backbone, alone or with a feature pyramid on top.

Shape shorthand:
    N: images; C: channels of a level; H, W: size of the (padded) image.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.pyramid import build_pyramid, build_top_block
from segzoo.modeling.backbones.timm_weights import create_timm_model, expected_normalisation, load_timm_weights

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm model with `features_only` behind Detectron2's Backbone interface.

    Batch norms are frozen by keeping them in eval mode without gradient. Replacing them by FrozenBatchNorm2d would
    drop the activation, which timm fuses into its norm layers.

    Args:
        name: timm's name of the model.
        out_strides: strides of the features to give out; the feature of stride 2^i is called "res<i>".
        weights: "" (random), "hub", "package" or the path of a file; see `load_timm_weights`.
        freeze_bn: keep statistics and affine parameters of all batch norms.
        freeze_at: everything up to the feature of stride 2^freeze_at gets no gradient; 0 freezes nothing.
        in_channels: of the image.

    Raises:
        ConfigError: no timm, no such model, a stride that the model does not have, or weights that do not load.
    """

    def __init__(
        self,
        name: str,
        *,
        out_strides: Sequence[int] = (8, 16, 32),
        weights: str = "",
        freeze_bn: bool = False,
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        reductions = create_timm_model(name, features_only=True, in_chans=in_channels).feature_info.reduction()
        self.extractor = create_timm_model(
            name, features_only=True, in_chans=in_channels, out_indices=_feature_indices(name, reductions, out_strides)
        )
        load_timm_weights(self.extractor, name, weights)
        info = self.extractor.feature_info
        self._shapes = {
            f"res{int(math.log2(stride))}": ShapeSpec(channels=channels, stride=stride)
            for stride, channels in zip(info.reduction(), info.channels(), strict=True)
        }
        self._out_features = list(self._shapes)
        self._frozen_norms: list[nn.Module] = []
        self._freeze(freeze_bn, freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> {"res<i>": (N, C, H / 2^i, W / 2^i)}."""
        features = {}
        for feature, (name, shape) in zip(self.extractor(images), self._shapes.items(), strict=True):
            # Some extractors (Swin) keep channels last.
            is_channels_last = feature.shape[1] != shape.channels and feature.shape[-1] == shape.channels
            features[name] = feature.permute(0, 3, 1, 2) if is_channels_last else feature
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature by name."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """Sides of this multiple halve evenly down to the coarsest feature."""
        return max(shape.stride for shape in self._shapes.values())

    def train(self, mode: bool = True) -> TimmBackbone:
        """As nn.Module.train, but frozen norms stay in eval mode."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def _freeze(self, freeze_bn: bool, freeze_at: int) -> None:
        frozen_modules = self._modules_up_to(2**freeze_at) if freeze_at > 0 else []
        for module in frozen_modules:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        candidates = self.extractor.modules() if freeze_bn else frozen_modules
        self._frozen_norms = [module for module in candidates if isinstance(module, _BatchNorm)]
        for norm in self._frozen_norms:
            norm.eval()
            for parameter in norm.parameters():
                parameter.requires_grad_(False)

    def _modules_up_to(self, stride: int) -> list[nn.Module]:
        # timm registers modules in the order they run, so all that comes before the end of a feature's module feeds it.
        info = _feature_table(self.extractor)
        boundaries = [module_name for module_name, reduction in info if reduction <= stride]
        if not boundaries:
            return []
        names = [module_name for module_name, _ in self.extractor.named_modules()]
        last = max(i for i, module_name in enumerate(names) if _is_within(module_name, boundaries[-1]))
        return list(self.extractor.modules())[: last + 1]


def _feature_table(extractor: Any) -> list[tuple[str, int]]:
    """(module name inside the extractor, stride) of all features that lie before the extractor's end."""
    modules = dict(extractor.named_modules())
    table = []
    for entry in extractor.feature_info.info:
        # FeatureListNet flattens sequences: "stages.0" becomes "stages_0".
        for module_name in (entry["module"], entry["module"].replace(".", "_")):
            if module_name in modules:
                table.append((module_name, int(entry["reduction"])))
                break
    return table


def _is_within(module_name: str, parent: str) -> bool:
    return module_name == parent or module_name.startswith(parent + ".")


def _feature_indices(name: str, reductions: Sequence[int], out_strides: Sequence[int]) -> tuple[int, ...]:
    absent = [stride for stride in out_strides if stride not in reductions]
    if absent or not out_strides or list(out_strides) != sorted(set(out_strides)):
        raise ConfigError(
            f"MODEL.TIMM.OUT_STRIDES is {tuple(out_strides)}; {name} has features of strides {tuple(reductions)}",
            "name some of these in ascending order, each twice the one before",
        )
    if any(fine * 2 != coarse for fine, coarse in itertools.pairwise(out_strides)):
        raise ConfigError(
            f"MODEL.TIMM.OUT_STRIDES is {tuple(out_strides)}: a pyramid needs each stride to be twice the one before"
        )
    last_of_stride = {stride: index for index, stride in enumerate(reductions)}
    return tuple(last_of_stride[stride] for stride in out_strides)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """timm extractor (MODEL.TIMM) without a pyramid.

    Returns:
        A backbone (N, 3, H, W) -> {"res<i>": (N, C, H / 2^i, W / 2^i)} for the strides 2^i of MODEL.TIMM.OUT_STRIDES.

    Raises:
        ConfigError: see `TimmBackbone`.
    """
    node = cfg.MODEL.TIMM
    freeze_bn, freeze_at = _frozen_parts(cfg)
    _warn_of_other_normalisation(cfg)
    return TimmBackbone(
        node.NAME,
        out_strides=node.OUT_STRIDES,
        weights=node.WEIGHTS,
        freeze_bn=freeze_bn,
        freeze_at=freeze_at,
        in_channels=input_shape.channels,
    )


def _build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    node, bottom_up = cfg.MODEL.TIMM, build_timm_backbone(cfg, input_shape)
    names, wanted = list(bottom_up.output_shape()), list(cfg.MODEL.FPN.IN_FEATURES)
    if wanted and wanted != names:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {wanted}, but MODEL.TIMM.OUT_STRIDES {tuple(node.OUT_STRIDES)} gives {names}",
            "a timm pyramid takes all of OUT_STRIDES: change these, and leave MODEL.FPN.IN_FEATURES [] or equal",
        )
    return bottom_up


def _frozen_parts(cfg: CfgNode) -> tuple[bool, int]:
    """FREEZE_BN and FREEZE_AT, both off where there are no weights worth keeping."""
    node = cfg.MODEL.TIMM
    if node.WEIGHTS or cfg.MODEL.WEIGHTS or not (node.FREEZE_BN or node.FREEZE_AT > 0):
        return node.FREEZE_BN, node.FREEZE_AT
    # Statistics of random weights are no statistics: frozen ones let the activations explode. Frozen random
    # convolutions only withhold from the rest what it could learn from.
    logger.warning(
        "MODEL.TIMM.FREEZE_BN (%s) and MODEL.TIMM.FREEZE_AT (%d) have no effect from scratch (MODEL.TIMM.WEIGHTS and "
        "MODEL.WEIGHTS are empty): nothing is frozen",
        *(node.FREEZE_BN, node.FREEZE_AT),
    )
    return False, 0


def _warn_of_other_normalisation(cfg: CfgNode) -> None:
    expected = expected_normalisation(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS)
    if expected is None:
        return
    mean, std = expected
    given: dict[str, Any] = {"mean": list(cfg.MODEL.PIXEL_MEAN), "std": list(cfg.MODEL.PIXEL_STD)}
    is_same = torch.allclose(
        torch.tensor([given["mean"], given["std"]], dtype=torch.float64),
        torch.tensor([mean, std], dtype=torch.float64),
        atol=0.5,
    )
    if cfg.INPUT.FORMAT != "RGB" or not is_same:
        logger.warning(
            "%s (MODEL.TIMM.WEIGHTS %r) was trained on RGB with mean %s and std %s, but INPUT.FORMAT is %s, "
            "MODEL.PIXEL_MEAN %s, MODEL.PIXEL_STD %s: the features will be worse",
            *(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS, mean, std, cfg.INPUT.FORMAT, given["mean"], given["std"]),
        )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """timm extractor (MODEL.TIMM) and FPN (MODEL.FPN) with two more levels, by default P3..P7.

    A stride 4 in MODEL.TIMM.OUT_STRIDES adds P2. P6 comes from MODEL.FPN.TOP_IN_FEATURE.

    Returns:
        A backbone (N, 3, H, W) -> {"p<i>": (N, OUT_CHANNELS, H / 2^i, W / 2^i)}.

    Raises:
        ConfigError: see `TimmBackbone`; an unknown MODEL.FPN.TOP_IN_FEATURE; MODEL.FPN.IN_FEATURES is set, but not to
            the features of MODEL.TIMM.OUT_STRIDES.
    """
    bottom_up = _build_bottom_up(cfg, input_shape)
    names = list(bottom_up.output_shape())
    return build_pyramid(cfg, bottom_up, names, build_top_block(cfg, bottom_up, names[-1]))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_rcnn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """timm extractor and FPN with a max-pooled last level: P2..P6 with OUT_STRIDES (4, 8, 16, 32), for Mask R-CNN.

    Returns:
        A backbone (N, 3, H, W) -> {"p<i>": (N, OUT_CHANNELS, H / 2^i, W / 2^i)}.

    Raises:
        ConfigError: see `build_timm_fpn_backbone`; or MODEL.TIMM.OUT_STRIDES does not end in 32, which the max pooling
            needs.
    """
    if tuple(cfg.MODEL.TIMM.OUT_STRIDES)[-1:] != (32,):
        raise ConfigError(
            f"MODEL.TIMM.OUT_STRIDES is {tuple(cfg.MODEL.TIMM.OUT_STRIDES)}",
            "Mask R-CNN's pyramid needs (4, 8, 16, 32)",
        )
    bottom_up = _build_bottom_up(cfg, input_shape)
    return build_pyramid(cfg, bottom_up, list(bottom_up.output_shape()), LastLevelMaxPool())
