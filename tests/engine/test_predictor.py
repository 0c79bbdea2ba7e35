"""Predictor: the same input as the mapper gives, and results at the original size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.data.mapper import DatasetMapper
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError
from segzoo.modeling.postprocess import build_instances


class EchoUnderTest(nn.Module):
    """Keeps what it is given; finds one box as large as the output."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.inputs: list[dict] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.inputs.extend(batched_inputs)
        height, width = batched_inputs[0]["height"], batched_inputs[0]["width"]
        box = torch.tensor([[0.0, 0.0, width, height]])
        found = build_instances((height, width), box, torch.tensor([0.5]), torch.tensor([0]), None)
        return [{"instances": found}]


if "EchoUnderTest" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(EchoUnderTest)


def settings(image_format: str, resize: str) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.META_ARCHITECTURE = "EchoUnderTest"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.RESIZE = resize
    cfg.INPUT.FIXED_SIZE = (48, 64)
    cfg.INPUT.MIN_SIZE_TEST = 40
    return cfg


@pytest.fixture
def photo(tmp_path: Path) -> tuple[str, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    path = str(tmp_path / "photo.png")
    cv2.imwrite(path, image)
    return path, image


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("resize", ["shortest_edge", "fixed", "letterbox"])
def test_predictor_gives_the_network_what_the_mapper_gives(photo, image_format: str, resize: str) -> None:
    path, array = photo
    cfg = settings(image_format, resize)
    predictor = Predictor(cfg)
    results = [predictor(path), predictor(Path(path)), predictor(array)]
    record = {"file_name": path, "image_id": 1, "height": 30, "width": 50}
    expected = DatasetMapper(cfg, is_train=False)(record, np.random.default_rng(0))
    for seen in predictor.model.inputs:
        assert torch.equal(seen["image"], expected["image"])
        assert (seen["height"], seen["width"]) == (30, 50)
        assert seen.get("pad_to") == expected.get("pad_to")
    for found in results:
        assert found.image_size == (30, 50)
        assert found.pred_boxes.tensor.tolist() == [[0, 0, 50, 30]]


def test_predictor_other_arrays_are_refused() -> None:
    predictor = Predictor(settings("BGR", "shortest_edge"))
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            predictor(wrong)


def test_predictor_loads_the_weights_of_the_config(tmp_path: Path) -> None:
    cfg = settings("BGR", "shortest_edge")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": {"weight": torch.tensor([7.0])}}, cfg.MODEL.WEIGHTS)
    assert Predictor(cfg).model.weight.item() == 7.0


def test_predictor_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cfg = settings("BGR", "shortest_edge")
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    predictor = Predictor(cfg)
    assert predictor.cfg.MODEL.DEVICE == "cpu"
    assert predictor.model.weight.device.type == "cpu"
    assert cfg.MODEL.DEVICE == "cuda", "the caller's config stays as it is"
    cfg = settings("BGR", "shortest_edge")
    cfg.MODEL.DEVICE = "cuda:0"
    with pytest.raises(ConfigError, match="cuda:0"):
        Predictor(cfg)
