"""The loop over a data set: modes, files, and the numbers it hands on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.evaluation import evaluate
from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances

SIZE = (40, 50)


class OneBox(nn.Module):
    """Finds the same rectangle in every image, and notes the mode it was called in."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(1).eval()
        self.live = nn.BatchNorm2d(1)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        self.seen.append((self.training or self.live.training, torch.is_grad_enabled()))
        mask = torch.zeros(1, *SIZE, dtype=torch.bool)
        mask[0, 5:25, 10:40] = True
        held = RLEMasks(encode_masks(mask), SIZE)
        one = build_instances(SIZE, held.boxes(), torch.tensor([0.9]), torch.tensor([0]), held)
        return [{"instances": one} for _ in batched_inputs]


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 600,
        "bbox": [10, 5, 30, 20],
        "segmentation": [[10, 5, 40, 5, 40, 25, 10, 25]],
    }
    content = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "file_name": "one.png"}],
        "categories": [{"id": 1, "name": "thing"}, {"id": 2, "name": "absent"}],
        "annotations": [annotation],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    DatasetCatalog.register("loop-under-test", lambda: [])
    MetadataCatalog.get("loop-under-test").set(json_file=str(path), thing_dataset_id_to_contiguous_id={1: 0, 2: 1})
    yield "loop-under-test"
    DatasetCatalog.remove("loop-under-test")
    MetadataCatalog.remove("loop-under-test")


def test_evaluate_runs_in_eval_mode_and_restores_every_module(dataset: str) -> None:
    model = OneBox()
    results = evaluate(get_segzoo_cfg(), model, dataset, data_loader=[[{"image_id": 1}]])
    assert model.seen == [(False, False)]
    assert model.training
    assert model.live.training
    assert not model.frozen.training, "what was frozen before must stay so"
    assert results["segm"]["AP"] == pytest.approx(100.0)


def test_evaluate_writes_strict_json_with_times_by_stage(dataset: str, tmp_path: Path) -> None:
    batches = [[{"image_id": 1}] for _ in range(5)]
    results = evaluate(get_segzoo_cfg(), OneBox(), dataset, str(tmp_path / "out"), data_loader=batches)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no json")

    written = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=refuse)
    assert written["results"]["segm"]["AP"] == results["segm"]["AP"]
    assert written["results"]["bbox"]["AP-absent"] is None
    assert set(written["seconds_per_image"]) == {"data", "model", "encode"}
    assert written["images_this_rank"] == 5
    assert [path.name for path in (tmp_path / "out").glob("*.partial")] == []
