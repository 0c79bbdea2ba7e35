"""README's three commands (train, evaluate, predict) one after the other, on a few tiny images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train_net
from demo import demo
from tests.engine.tiny_run import write_tiny_coco

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = str(REPOSITORY / "configs" / "polarmask_EffLite0.yaml")
PREDICTIONS = "coco_instances_results.json"
# Small enough for a test; random backbone, no file of weights needed.
OPTIONS = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.FREEZE_BN", "False", "MODEL.TIMM.FREEZE_AT", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"),
    *("MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0"),
]


def test_readme_s_commands_train_evaluate_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_tiny_coco(tmp_path / "train", num_images=4)
    val = [flag.replace("--train", "--val") for flag in write_tiny_coco(tmp_path / "val", num_images=3)]
    run = tmp_path / "run"
    assert train_net.run(["--config-file", CONFIG, *train, *val, *OPTIONS, "OUTPUT_DIR", str(run)]) == 0
    weights = run / "model_final.pth"
    assert weights.is_file()
    capsys.readouterr()

    # The training data is not needed any more, and nothing of the training is replaced.
    (tmp_path / "train" / "tiny.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*.json")} | {weights: weights.read_bytes()}
    arguments = [*val, *OPTIONS, "OUTPUT_DIR", str(run), "MODEL.WEIGHTS", str(weights)]
    assert train_net.run(["--config-file", CONFIG, "--eval-only", *arguments]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["val_json"].keys() == {"bbox", "segm"}
    written = json.loads((run / "inference_model_final" / "val_json" / "metrics.json").read_text())
    assert written["results"] == results["val_json"]
    assert before == {path: path.read_bytes() for path in before}
    # The checkpoint gives the predictions of the evaluation at the end of the training.
    first, second = (
        json.loads((run / folder / "val_json" / PREDICTIONS).read_text())
        for folder in ("inference", "inference_model_final")
    )
    assert len(first) == len(second) > 0
    for ours, theirs in zip(first, second, strict=True):
        # Up to rounding: training has another memory order (SOLVER.CHANNELS_LAST).
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-2)

    photos, pictures = tmp_path / "val" / "images", tmp_path / "pictures"
    arguments = ["--input", str(photos), "--output", str(pictures), "--opts", "MODEL.WEIGHTS", str(weights)]
    assert demo.main(["--config-file", str(run / "config.yaml"), *arguments]) == 0
    assert sorted(path.name for path in pictures.iterdir()) == sorted(path.name for path in photos.iterdir())


def test_evaluation_without_weights_is_refused_before_a_model_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = [flag.replace("--train", "--val") for flag in write_tiny_coco(tmp_path, num_images=1)]
    arguments = ["--config-file", CONFIG, "--eval-only", *val, *OPTIONS, "OUTPUT_DIR", str(tmp_path / "out")]
    assert train_net.run(arguments) == 2
    assert "not a trained model" in capsys.readouterr().err
