"""A small COCO data set in a temporary folder, that tests bend as they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from segzoo.config import get_segzoo_cfg
from segzoo.data.registration import register_coco_json


class CocoFolder:
    """Images and a json under a folder; `content` is what will be written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }

    def add_image(self, width: int = 40, height: int = 30, file_name: str = "", **fields: Any) -> dict[str, Any]:
        """Writes an image of random pixels and its entry; returns the entry."""
        number = len(self.content["images"]) + 1
        entry = {"id": number, "file_name": file_name or f"{number}.png", "width": width, "height": height, **fields}
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = self.root / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        self.content["images"].append(entry)
        return entry

    def add_annotation(self, image_id: Any = 1, segmentation: Any = None, **fields: Any) -> dict[str, Any]:
        """Adds an annotation, by default the square 5..15; returns it."""
        square = [[5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]]
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": 1,
            "segmentation": square if segmentation is None else segmentation,
            "bbox": [5.0, 5.0, 10.0, 10.0],
            "area": 100.0,
            "iscrowd": 0,
            **fields,
        }
        self.content["annotations"].append(entry)
        return entry

    def write(self) -> str:
        """Writes the json and returns its path."""
        path = self.root / "annotations.json"
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return str(path)

    def register(self, name: str = "test_set") -> str:
        """Writes the json, registers it and returns the name."""
        register_coco_json(name, self.write(), str(self.root))
        return name


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    """An empty CocoFolder."""
    return CocoFolder(tmp_path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], CocoFolder]:
    """Makes further CocoFolders by name."""

    def make(name: str) -> CocoFolder:
        (tmp_path / name).mkdir()
        return CocoFolder(tmp_path / name)

    return make


@pytest.fixture
def cfg() -> CfgNode:
    """The default config, with the image size kept and nothing random."""
    config = get_segzoo_cfg()
    config.SEED = 7
    config.DATASETS.TRAIN = ("test_set",)
    config.DATALOADER.NUM_WORKERS = 0
    config.INPUT.MIN_SIZE_TRAIN = (0,)
    config.INPUT.MIN_SIZE_TEST = 0
    config.INPUT.RANDOM_FLIP = "none"
    config.SOLVER.IMS_PER_BATCH = 2
    return config
