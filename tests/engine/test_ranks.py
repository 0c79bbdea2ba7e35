"""Several processes on a CPU: by spawn and by torchrun, with a rank without objects, and with a rank that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.test_resume import run_tiny
from tests.engine.tiny_run import read_losses, tiny_options, write_tiny_coco

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def data_with_an_empty_rank(folder: Path) -> list[str]:
    # Every image is empty but one, so in most steps a rank has no object at all.
    return [*write_tiny_coco(folder, num_images=8, num_empty=7), "--skip-audit"]


def options(output_dir: Path, **changes: object) -> list[str]:
    defaults = {"DATALOADER__FILTER_EMPTY_ANNOTATIONS": False, "SOLVER__IMS_PER_BATCH": 2, "SOLVER__MAX_ITER": 5}
    return tiny_options(output_dir, **defaults | changes)


def assert_ranks_have_equal_tensors(output_dir: Path, kind: str) -> dict[str, torch.Tensor]:
    first, second = (torch.load(output_dir / f"{kind}_rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    return first


def test_torchrun_ranks_end_with_equal_weights_though_one_has_no_objects(tmp_path: Path) -> None:
    data = data_with_an_empty_rank(tmp_path)
    val = ["--val-json", data[1], "--val-images", data[3]]
    changes = {"SOLVER__EMA__ENABLED": True}
    code, output = run_tiny([*data, *val, *options(tmp_path / "out", **changes)], prefix=TORCHRUN)
    assert code == 0, output
    assert sorted(read_losses(tmp_path / "out")) == list(range(5))
    assert_ranks_have_equal_tensors(tmp_path / "out", "weights")
    # Batch norm's statistics are each rank's own, but both evaluate what is saved.
    evaluated = assert_ranks_have_equal_tensors(tmp_path / "out", "evaluated")
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)["model"]
    for name, tensor in best.items():
        assert torch.equal(tensor, evaluated[name]), name


@pytest.mark.slow
def test_spawned_ranks_give_the_losses_of_torchrun(tmp_path: Path) -> None:
    data = data_with_an_empty_rank(tmp_path)
    code, output = run_tiny(data + options(tmp_path / "torchrun"), prefix=TORCHRUN)
    assert code == 0, output
    code, output = run_tiny([*data, "--num-processes", "2", *options(tmp_path / "spawn")])
    assert code == 0, output
    assert read_losses(tmp_path / "torchrun") == read_losses(tmp_path / "spawn")


def test_a_loss_that_is_not_finite_on_rank_1_stops_both_in_that_step(tmp_path: Path) -> None:
    arguments = [*data_with_an_empty_rank(tmp_path), "--num-processes", "2", *options(tmp_path / "out")]
    code, output = run_tiny(arguments, TINY_FAULT="nan", TINY_FAULT_ITERATION="3", TINY_FAULT_RANK="1")
    assert code == 3, output
    assert output.count("TrainingError: iteration 3") == 1, "the message stands once, not once a rank"
    assert "Traceback" not in output
    assert "rank 1: loss_box = nan: image id " in output
    assert ".png" in output
    assert sorted(read_losses(tmp_path / "out")) == [0, 1, 2]
    dump = json.loads((tmp_path / "out" / "nonfinite_iteration3_rank1.json").read_text())
    assert dump["rank"] == 1
    assert dump["micro_batches"][0]["images"][0]["file_name"].endswith(".png")
    assert not (tmp_path / "out" / "nonfinite_iteration3_rank0.json").exists()
    assert not (tmp_path / "out" / "model_final.pth").exists()


@pytest.mark.slow
def test_sigterm_on_one_rank_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    arguments = [*data_with_an_empty_rank(tmp_path), "--num-processes", "2", *options(tmp_path / "out")]
    code, output = run_tiny(arguments, TINY_FAULT="TERM", TINY_FAULT_ITERATION="1", TINY_FAULT_RANK="1")
    assert code == 75, output
    assert (tmp_path / "out" / "model_0000002.pth").is_file()


@pytest.mark.slow
def test_an_error_before_training_is_printed_once_by_spawned_ranks(tmp_path: Path) -> None:
    arguments = [*data_with_an_empty_rank(tmp_path), "--num-processes", "2"]
    code, output = run_tiny([*arguments, *options(tmp_path / "out", MODEL__NUM_CLASSES=5)])
    assert code == 2, output
    assert output.count("MODEL.NUM_CLASSES is 5") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_bad_image_of_one_rank_in_mid_training_stands_alone(tmp_path: Path) -> None:
    arguments = [*data_with_an_empty_rank(tmp_path), "--num-processes", "2", *options(tmp_path / "out")]
    (tmp_path / "images" / "002.png").write_bytes(b"no picture")
    code, output = run_tiny(arguments)
    assert code == 2, output
    assert output.count("DatasetError: ") == 1
    assert "002.png" in output
    assert "Traceback" not in output, "the other rank's broken connection says nothing about the cause"
    assert read_losses(tmp_path / "out"), "some steps were trained before"
