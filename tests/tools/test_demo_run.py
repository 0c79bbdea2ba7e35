"""The demo end to end, with two iterations on a few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segzoo.data.scenes import writer
from tools.demo_run import main


@pytest.fixture
def few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SCENES_V1_SPLITS", {"train": (6, 1), "val": (3, 2)})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


@pytest.mark.parametrize(("method", "metric"), [("polarmask", "segm AP"), ("fcos", "bbox AP")])
def test_demo_run_trains_evaluates_draws_and_ends_with_the_metric(
    few_scenes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, metric: str
) -> None:
    short = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    words = ["--method", method, "--output", str(tmp_path / "out"), *short, "MODEL.TIMM.WEIGHTS", ""]
    assert main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{metric} ")
    assert 0.0 <= float(last.removeprefix(f"{metric} ")) <= 100.0
    folder = tmp_path / "out" / f"demo_{method}"
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    # A second demo goes beside the first one.
    assert main([*words, "--json"]) == 0
    assert metric in json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (tmp_path / "out" / f"demo_{method}_2" / "model_final.pth").is_file()


def test_demo_run_of_an_unknown_method_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--method", "yolo"]) == 2
    assert "fcos, fcosis, mask_rcnn, orienmask, polarmask" in capsys.readouterr().err
