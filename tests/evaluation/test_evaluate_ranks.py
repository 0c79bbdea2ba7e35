"""Two ranks (gloo) measure what one does, with shares of unequal size."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.evaluation import evaluate
from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances

SIZE = (32, 48)
NUM_IMAGES = 5


class Shifted(nn.Module):
    """A rectangle shifted by the image's number, so that every image has another overlap."""

    def __init__(self) -> None:
        super().__init__()
        # A buffer: a distributed wrapper would synchronise it in every forward.
        self.norm = nn.BatchNorm2d(1)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        outputs = []
        for entry in batched_inputs:
            mask = torch.zeros(1, *SIZE, dtype=torch.bool)
            mask[0, 5:25, 10 + entry["image_id"] : 30] = True
            held = RLEMasks(encode_masks(mask), SIZE)
            scores = torch.tensor([0.1 * entry["image_id"]])
            outputs.append({"instances": build_instances(SIZE, held.boxes(), scores, torch.tensor([0]), held)})
        return outputs


def write_json(folder: Path) -> str:
    box = {"iscrowd": 0, "area": 400, "bbox": [10, 5, 20, 20], "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]]}
    numbers = range(1, NUM_IMAGES + 1)
    content = {
        "images": [{"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n}.png"} for n in numbers],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, **box} for n in numbers],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return str(path)


def evaluate_share(json_file: str, image_ids: list[int], model: nn.Module) -> dict:
    DatasetCatalog.register("ranks-under-test", lambda: [])
    MetadataCatalog.get("ranks-under-test").set(json_file=json_file, thing_dataset_id_to_contiguous_id={1: 0})
    try:
        batches = [[{"image_id": number}] for number in image_ids]
        return evaluate(get_segzoo_cfg(), model, "ranks-under-test", data_loader=batches)
    finally:
        DatasetCatalog.remove("ranks-under-test")
        MetadataCatalog.remove("ranks-under-test")


def run_rank(rank: int, port: int, json_file: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Shifted())
    # Rank 0 has four images, rank 1 two: one of them is on both.
    results = evaluate_share(json_file, [1, 2, 3, 4] if rank == 0 else [4, 5], model)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_evaluate_two_ranks_of_unequal_share_equal_one(tmp_path: Path) -> None:
    json_file = write_json(tmp_path)
    expected = evaluate_share(json_file, list(range(1, NUM_IMAGES + 1)), Shifted())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, (port, json_file, str(tmp_path)), nprocs=2)
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    first = json.loads((tmp_path / "rank0.json").read_text())
    assert 0 < expected["segm"]["AP"] < 100
    for task in ("bbox", "segm"):
        assert first[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)
