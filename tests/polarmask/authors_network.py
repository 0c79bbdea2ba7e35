"""A small PolarMask whose modules have the names of the authors' program, to have weights in their format.

Written from the description of the network in the paper, out of torchvision's parts; nothing of segzoo or
polarmask is used, so that equal maps prove that converted weights are in the right places.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import deform_conv2d

CHANNELS, NUM_CLASSES, NUM_CONVS = 32, 5, 4
PLANES, BLOCKS = (8, 16, 32, 64), (3, 4, 6, 3)


class DeformableBottleneck(Bottleneck):
    """Torchvision's block with version 1 of the deformable convolution in its middle."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        width, stride = self.conv2.in_channels, self.conv2.stride
        self.conv2_offset = nn.Conv2d(width, 18, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        offsets = self.conv2_offset(inner)
        inner = deform_conv2d(inner, offsets, self.conv2.weight, stride=self.conv2.stride, padding=1)
        return F.relu(self.bn3(self.conv3(F.relu(self.bn2(inner)))) + shortcut)


class Backbone(nn.Module):
    def __init__(self, groups: int, deformable: bool, caffe_style: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        # A width of `planes` at 64 channels a group.
        width = 64 // groups
        inputs = 16
        for stage, (planes, blocks) in enumerate(zip(PLANES, BLOCKS, strict=True), start=1):
            kind = DeformableBottleneck if deformable and stage > 1 else Bottleneck
            layers = []
            for index in range(blocks):
                stride = 2 if index == 0 and stage > 1 else 1
                downsample = None
                if index == 0:
                    conv = nn.Conv2d(inputs, 4 * planes, 1, stride=stride, bias=False)
                    downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * planes))
                block = kind(inputs, planes, stride, downsample, groups, width)
                if caffe_style:
                    block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
                    if deformable and stage > 1:
                        block.conv2_offset.stride = (1, 1)
                layers.append(block)
                inputs = 4 * planes
            self.add_module(f"layer{stage}", nn.Sequential(*layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        feature = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        features = []
        for stage in range(1, 5):
            feature = self.get_submodule(f"layer{stage}")(feature)
            features.append(feature)
        return features[1:]


class ConvModule(nn.Module):
    def __init__(self, inputs: int, kernel_size: int, stride: int = 1, norm: bool = False) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(inputs, CHANNELS, kernel_size, stride=stride, padding=padding, bias=not norm)
        if norm:
            self.gn = nn.GroupNorm(32, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x))) if hasattr(self, "gn") else self.conv(x)


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(4 * planes, 1) for planes in PLANES[1:])
        self.fpn_convs = nn.ModuleList(ConvModule(CHANNELS, 3, stride=1 if level < 3 else 2) for level in range(5))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        c3, c4, c5 = (conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True))
        c4 = c4 + F.interpolate(c5, scale_factor=2)
        c3 = c3 + F.interpolate(c4, scale_factor=2)
        levels = [self.fpn_convs[index](feature) for index, feature in enumerate((c3, c4, c5))]
        levels.append(self.fpn_convs[3](levels[2]))
        levels.append(self.fpn_convs[4](F.relu(levels[3])))
        return levels


class ModulatedDeformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CHANNELS, CHANNELS, 3, 3))
        self.bias = nn.Parameter(torch.empty(CHANNELS))
        self.conv_offset_mask = nn.Conv2d(CHANNELS, 27, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second, mask = self.conv_offset_mask(x).chunk(3, dim=1)
        offsets = torch.cat((first, second), dim=1)
        return deform_conv2d(x, offsets, self.weight, self.bias, padding=1, mask=mask.sigmoid())


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Head(nn.Module):
    def __init__(self, deformable: bool, prefix: str, num_rays: int) -> None:
        super().__init__()
        for branch in ("cls", "reg", "mask"):
            layers: list[nn.Module] = []
            for _ in range(NUM_CONVS):
                flat = [ModulatedDeformable(), nn.GroupNorm(32, CHANNELS), nn.ReLU()]
                layers += flat if deformable else [ConvModule(CHANNELS, 3, norm=True)]
            self.add_module(f"{branch}_convs", nn.ModuleList(layers))
        outputs = {"cls": NUM_CLASSES, "reg": 4, "mask": num_rays, "centerness": 1}
        for name, number in outputs.items():
            self.add_module(f"{prefix}_{name}", nn.Conv2d(CHANNELS, number, 3, padding=1))
        self.scales_bbox = nn.ModuleList(Scale() for _ in range(5))
        self.scales_mask = nn.ModuleList(Scale() for _ in range(5))
        self.prefix = prefix

    def _branch(self, name: str, feature: Tensor) -> Tensor:
        for layer in self.get_submodule(f"{name}_convs"):
            feature = layer(feature)
        return feature

    def forward(self, levels: list[Tensor]) -> dict[str, list[Tensor]]:
        maps: dict[str, list[Tensor]] = {"cls": [], "centerness": [], "reg": [], "mask": []}
        out = {name: self.get_submodule(f"{self.prefix}_{name}") for name in maps}
        for level, feature in enumerate(levels):
            cls_feature = self._branch("cls", feature)
            maps["cls"].append(out["cls"](cls_feature))
            maps["centerness"].append(out["centerness"](cls_feature))
            maps["reg"].append(self.scales_bbox[level].scale * out["reg"](self._branch("reg", feature)))
            maps["mask"].append(self.scales_mask[level].scale * out["mask"](self._branch("mask", feature)))
        return maps


class AuthorsPolarMask(nn.Module):
    """Every value differs from every other one, and depends only on its name.

    Args:
        groups: of the 3x3 convolutions; more than 1 makes it a ResNeXt, with its strides where torchvision has them.
        deformable: stages 2 to 4 and all towers.
        prefix: "polar" or "fcos", of the last layers' names.
        num_rays: outputs of the mask branch.
    """

    def __init__(self, groups: int = 1, deformable: bool = False, prefix: str = "polar", num_rays: int = 36) -> None:
        super().__init__()
        self.backbone = Backbone(groups, deformable, caffe_style=groups == 1)
        self.neck = Neck()
        self.bbox_head = Head(deformable, prefix, num_rays)
        for name, value in self.state_dict().items():
            if value.is_floating_point():
                value.copy_(_values(name, value))
        self.eval()

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """(N, 3, H, W) -> maps of five levels; those of sizes before exp."""
        return self.bbox_head(self.neck(self.backbone(images)))


def _values(name: str, value: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.rand(value.shape, generator=random)
    if name.endswith("running_var") or name.endswith(".scale") or (name.endswith("weight") and value.dim() == 1):
        return 0.5 + noise
    if value.dim() == 4:
        return (noise - 0.5) * (12 / value[0].numel()) ** 0.5
    return noise - 0.5
