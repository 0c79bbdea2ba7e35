"""The configs of this repository by name, and the rows of the papers' tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.augmentation import build_resize
from segzoo.engine.ablations import Row, read_ablations

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# The config that a method's paper is about, one a method, and the yardstick beside them.
MAIN_CONFIGS = (
    "polarmask_R50.yaml",
    "centermask_DLA34.yaml",
    "orienmask_D53.yaml",
    "fcosis_R50.yaml",
    "mask_rcnn_R50.yaml",
)
# Their relatives: what a paper compares them with, or builds on another network.
RELATIVES = (
    "fcos_R50.yaml",
    "centermask_HG104.yaml",
    "centermask_fcos_R101_2x.yaml",
    "fcosreg_R50.yaml",
    "maskfcos_R50.yaml",
)
# (height, width) px of the image that costs are counted for, as PolarMask's table 3 does.
COUNTED_IMAGE = (800, 1280)


def config_names() -> list[str]:
    """All shipped configs as names below configs/, those that train on COCO first; Base files are none."""
    names = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")]
    leaves = [name for name in names if not Path(name).name.startswith("Base-")]
    return sorted(leaves, key=lambda name: ("/" in name, name))


def read_config(name: str, options: Sequence[str] = ()) -> CfgNode:
    """A config below configs/ with KEY VALUE words over it.

    Raises:
        ConfigError: an absent file, an unknown key or an impossible value.
    """
    return merge_config(get_cfg(), str(CONFIGS / name), options)


def study_files() -> list[Path]:
    """The papers' tables: projects/<Method>/ablations.yaml."""
    return sorted(ROOT.glob("projects/*/ablations.yaml"))


def study_rows() -> list[tuple[str, Row]]:
    """(method's folder, row) of all tables of all papers."""
    return [(path.parent.name, row) for path in study_files() for row in read_ablations(str(path))]


def counted_size(cfg: CfgNode, image_size: tuple[int, int] = COUNTED_IMAGE) -> tuple[int, int]:
    """(height, width) px that the network sees of an image of `image_size` px in the recipe's evaluation."""
    if cfg.INPUT.RESIZE == "letterbox":
        return (int(cfg.INPUT.FIXED_SIZE[0]), int(cfg.INPUT.FIXED_SIZE[1]))
    height, width = build_resize(cfg, is_train=False).output_size(*image_size)
    return int(height), int(width)
