"""Files of Darknet, YOLO's own program: a header and float32 values without names, in the order of its layers.

Shape shorthand: C channels.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segzoo.errors import CheckpointError

VERSION = struct.Struct("<3i")
# Images seen in training: 8 bytes from version 0.2 on, 4 before.
SEEN, OLD_SEEN = struct.Struct("<q"), struct.Struct("<i")
LARGEST_VERSION = 999
# How Darknet names its files, the second with the layers that are kept: darknet53.conv.74.
NAME_PATTERN = re.compile(r".+(\.weights|\.conv\.\d+)")


@dataclass(frozen=True)
class DarknetLayer:
    """A convolution of Darknet: with a batch norm and no bias, or with a bias.

    Attributes:
        name: what stands before ".weight" in our names.
        out_channels, in_channels, kernel_size: of its filters.
        has_norm: whether a batch norm follows, "<name>.norm".
    """

    name: str
    out_channels: int
    in_channels: int
    kernel_size: int
    has_norm: bool = True

    def entries(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, in the file's order."""
        leaves = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var") if self.has_norm else ("bias",)
        for leaf in leaves:
            yield f"{self.name}.{leaf}", (self.out_channels,)
        yield f"{self.name}.weight", (self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)


@dataclass(frozen=True)
class DarknetHeader:
    """What a file says before its values.

    Attributes:
        version: (major, minor, revision).
        seen: images that the network was trained with.
        num_bytes: size of the header.
    """

    version: tuple[int, int, int]
    seen: int
    num_bytes: int


def count_values(layers: Sequence[DarknetLayer]) -> int:
    """Float32 values of all tensors of `layers`."""
    return sum(math.prod(shape) for layer in layers for _, shape in layer.entries())


def is_darknet_file(path: str) -> bool:
    """Whether a file starts with a version of Darknet; zip files and pickles start with other numbers."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(VERSION.size)
    except OSError:
        return False
    return len(start) == VERSION.size and all(0 <= part <= LARGEST_VERSION for part in VERSION.unpack(start))


def claims_file(path: str) -> bool:
    """As `is_darknet_file`, but a file that is too short for a version counts if it is named as Darknet's are."""
    if is_darknet_file(path):
        return True
    is_named = NAME_PATTERN.fullmatch(os.path.basename(path)) is not None
    return is_named and os.path.isfile(path) and os.path.getsize(path) < VERSION.size


def read_header(path: str) -> DarknetHeader:
    """The header of a file.

    Raises:
        CheckpointError: no such file, no version of Darknet at its start, or no more than that.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: does not exist", "give a .weights file")
    if (num_bytes := os.path.getsize(path)) < VERSION.size:
        raise CheckpointError(
            f"{path}: truncated, {num_bytes} bytes where the header has {VERSION.size + SEEN.size} "
            f"({VERSION.size + OLD_SEEN.size} before version 0.2)",
            "download it again",
        )
    if not is_darknet_file(path):
        raise CheckpointError(f"{path}: no weights of Darknet (its first bytes are no version)", "give a .weights file")
    with open(path, "rb") as stream:
        version = VERSION.unpack(stream.read(VERSION.size))
        seen = SEEN if version[0] * 10 + version[1] >= 2 else OLD_SEEN
        rest = stream.read(seen.size)
    if len(rest) < seen.size:
        raise CheckpointError(
            f"{path}: truncated, {VERSION.size + len(rest)} bytes where the header has {VERSION.size + seen.size}",
            "download it again",
        )
    return DarknetHeader(version, seen.unpack(rest)[0], VERSION.size + seen.size)


def num_values(path: str) -> float:
    """Float32 values after the header, by the file's size; a fraction where a value is cut.

    Raises:
        CheckpointError: see `read_header`.
    """
    return (os.path.getsize(path) - read_header(path).num_bytes) / 4


def read_layers(path: str, layers: Sequence[DarknetLayer]) -> dict[str, Tensor]:
    """The tensors of a file that holds exactly `layers`, in this order.

    Raises:
        CheckpointError: no such file, or one with more or fewer values.
    """
    expected, found = count_values(layers), num_values(path)
    if found != expected:
        raise CheckpointError(f"{path}: {found:,.10g} values, expected {expected:,}", "download it again")
    values = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=read_header(path).num_bytes))
    weights, start = {}, 0
    for layer in layers:
        for name, shape in layer.entries():
            size = math.prod(shape)
            weights[name] = values[start : start + size].view(shape)
            start += size
    return weights


def backbone_layers(
    prefix: str, blocks_per_stage: Sequence[int] = (1, 2, 8, 8, 4), stem_channels: int = 32
) -> list[DarknetLayer]:
    """The convolutions of `Darknet` (segzoo.modeling.backbones.darknet), by default of Darknet-53.

    Args:
        prefix: what stands before the backbone's names, such as "backbone.".
        blocks_per_stage: residual blocks of res1..res5.
        stem_channels: C of the stem.
    """
    layers = [DarknetLayer(f"{prefix}stem", stem_channels, 3, 3)]
    for stage, num_blocks in enumerate(blocks_per_stage, start=1):
        name, channels = f"{prefix}res{stage}", stem_channels * 2**stage
        layers.append(DarknetLayer(f"{name}.down", channels, channels // 2, 3))
        for block in range(num_blocks):
            layers.append(DarknetLayer(f"{name}.blocks.{block}.conv1", channels // 2, channels, 1))
            layers.append(DarknetLayer(f"{name}.blocks.{block}.conv2", channels, channels // 2, 3))
    return layers
