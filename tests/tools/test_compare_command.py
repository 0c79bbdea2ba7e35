"""tools/compare.py from the first iteration to the page, and what it refuses before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.tiny_run import write_tiny_coco
from tools.compare import main

# Small enough for a test; random backbones, no file of weights needed.
OPTIONS = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.FREEZE_BN", "False", "MODEL.TIMM.FREEZE_AT", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "DATALOADER.NUM_WORKERS", "0", "INPUT.FIXED_SIZE", "(64, 64)"),
    *("MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
]


@pytest.mark.slow
def test_compare_trains_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_coco(tmp_path / "train", num_images=4)
    data += [flag.replace("--train", "--val") for flag in write_tiny_coco(tmp_path / "val", num_images=3)]
    output = tmp_path / "out put"
    words = [*data, "--method", "polarmask", "--method", "mask_rcnn", "--max-iter", "2", "--batch", "2"]
    words += ["--images", "2", "--speed-repeats", "1", "--output", str(output), "--json", "--opts", *OPTIONS]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["failed"] == 0
    values = json.loads((output / "compare.json").read_text())
    assert [model["name"] for model in values["models"]] == ["polarmask", "mask_rcnn"]
    for model in values["models"]:
        (run,) = model["runs"]
        assert (run["iterations"], run["batch"], run["error"]) == (2, 2, "")
        assert {"segm", "boundary", "bbox"} == set(run["results"])
        assert run["training_minutes"] > 0
        assert run["minutes"] > run["training_minutes"]
        assert model["speeds"][0]["whole_ms"]["median"] > 0
        assert model["cost"]["image_size"] == [64, 64]
    conditions = dict(values["conditions"])
    assert conditions["evaluated on"] == "tiny.json"
    assert conditions["device"].startswith("cpu, ")
    page = (output / "report.html").read_text()
    assert "PolarMask" in page
    assert page.count("data:image/jpeg;base64,") >= 2 * (1 + 2)
    # Done trainings are not done again; another budget in the same folder is refused, and the report stays.
    before = (output / "polarmask_1" / "metrics.json").read_bytes()
    assert main([*words[: words.index("--json")], "--report-only", *words[words.index("--opts") :]]) == 0
    assert (output / "polarmask_1" / "metrics.json").read_bytes() == before
    report = (output / "report.html").read_bytes()
    capsys.readouterr()
    assert main([*words, "SOLVER.BASE_LR", "0.5"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert (output / "report.html").read_bytes() == report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--minutes", "2", "--max-iter", "5"], "--minutes 2 and --max-iter 5"),
        ([], "--minutes 0 and --max-iter 0"),
        (["--minutes", "-1"], "--minutes -1"),
        (["--quick", "--seed", "1", "--seed", "1"], "--seed is given twice"),
        (["--quick", "--batch", "-1"], "--batch -1 is below 0"),
        (["--quick", "--evaluations", "0"], "--evaluations 0"),
        (["--quick", "--speed-batch", "0"], "--speed-batch [0]"),
        (["--quick", "--method", "yolact"], "unknown method 'yolact'"),
        (["--minutes", "1"], "DATASETS.TRAIN is ()"),
        (["--minutes", "1", "--config-file", "absent.yaml"], "absent.yaml"),
        (["--quick", "--speed-batch", "1", "64"], "--speed-batch 64 with --images 6"),
    ],
)
def test_compare_refuses_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    output = tmp_path / "out"
    assert main([*words, "--output", str(output), "--json"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "error" in json.loads(captured.out.splitlines()[-1])
    assert not list(output.glob("*")) if output.exists() else True
