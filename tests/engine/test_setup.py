"""From the command line to a config: what is refused, what is filled in, and how errors leave the program."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from projects import get_cfg
from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.device import choose_device
from segzoo.engine.launch import launch
from segzoo.engine.setup import build_config, prepare_output_dir, resolve_num_classes, scale_learning_rate
from segzoo.engine.validate import UNUSED, validate_batch, validate_config
from segzoo.errors import ConfigError, DatasetError
from tests.engine.tiny_run import tiny_config, tiny_options, write_tiny_coco

REPOSITORY = Path(__file__).resolve().parents[2]


def config(**changes: object) -> CfgNode:
    cfg = get_segzoo_cfg()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER__STEPS": (50, 90), "SOLVER__MAX_ITER": 80}, r"SOLVER.STEPS \(50, 90\).*MAX_ITER = 80"),
        ({"SOLVER__STEPS": (50, 40)}, "do not increase"),
        ({"SOLVER__MAX_ITER": 0, "SOLVER__STEPS": ()}, "SOLVER.MAX_ITER is 0"),
        ({"SOLVER__ACCUMULATE": 0}, "SOLVER.ACCUMULATE is 0"),
        ({"SOLVER__BASE_LR": 0.0}, "SOLVER.BASE_LR is 0.0"),
        ({"SOLVER__OPTIMIZER": "LION"}, "(?s)SOLVER.OPTIMIZER is 'LION'.*'SGD', 'ADAM', 'ADAMW'"),
        ({"SOLVER__AMP__DTYPE": "float8"}, "SOLVER.AMP.DTYPE is 'float8'"),
        ({"SOLVER__EMA__DECAY": 1.0}, "SOLVER.EMA.DECAY is 1.0"),
        ({"MODEL__FCOS__SCORE_THRESH_TEST": 1.5}, "(?s)MODEL.FCOS.SCORE_THRESH_TEST is 1.5.*between 0 and 1"),
        ({"INPUT__FORMAT": "bgr"}, "(?s)INPUT.FORMAT is 'bgr'.*'BGR', 'RGB'"),
        ({"SOLVER__POSITIVE_COUNT": "mean"}, "(?s)SOLVER.POSITIVE_COUNT is 'mean'.*'reduce', 'local'"),
        ({"MODEL__PIXEL_STD": [1.0, 0.0, 1.0]}, r"(?s)MODEL.PIXEL_STD is \[1.0, 0.0, 1.0\].*greater than 0"),
        ({"MODEL__PIXEL_STD": [1.0]}, r"(?s)MODEL.PIXEL_STD is \[1.0\].*three numbers"),
        ({"MODEL__PIXEL_MEAN": [1.0, float("nan"), 2.0]}, "MODEL.PIXEL_MEAN is"),
        ({"MODEL__FPN__FUSE_TYPE": "max"}, "MODEL.FPN.FUSE_TYPE is 'max'"),
        ({"MODEL__RETINANET__IOU_THRESHOLDS": [0.4, -0.5]}, "MODEL.RETINANET.IOU_THRESHOLDS"),
        ({"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.0}, "CLIP_VALUE is 0.0"),
    ],
)
def test_validate_config_names_key_value_and_range(changes: dict[str, object], message: str) -> None:
    validate_config(config())
    with pytest.raises(ConfigError, match=message):
        validate_config(config(**changes))


@pytest.mark.parametrize("key", UNUSED)
def test_validate_config_refuses_keys_without_effect(key: str) -> None:
    default = UNUSED[key][0]
    changed = {bool: True, str: "RepeatFactorTrainingSampler", tuple: ("a",), list: ["a"]}.get(type(default), 2)
    cfg = config(**{key: type(default)(changed)})
    with pytest.raises(ConfigError, match=rf"(?s){key} is .*SegZoo does not use this key.*leave it at"):
        validate_config(cfg)


# Base-*.yaml are parts of configs; those that are added to another one need not stand alone.
LEAVES = [path for path in sorted((REPOSITORY / "configs").rglob("*.yaml")) if not path.stem.startswith("Base-")]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_validate_config_lets_the_shipped_configs_pass(path: Path) -> None:
    validate_config(merge_config(get_cfg(), str(path)))


def test_optimizer_names_have_no_case() -> None:
    validate_config(config(SOLVER__OPTIMIZER="adamw"))


def test_validate_batch_suggests_a_batch_that_works() -> None:
    validate_batch(config(SOLVER__IMS_PER_BATCH=16, SOLVER__ACCUMULATE=2), world_size=8)
    with pytest.raises(ConfigError, match=r"(?s)IMS_PER_BATCH 9.*2 process.*multiple of 4, such as 8"):
        validate_batch(config(SOLVER__IMS_PER_BATCH=9, SOLVER__ACCUMULATE=2), world_size=2)


def test_class_count_comes_from_the_json_and_reaches_every_head(tmp_path: Path) -> None:
    cfg = tiny_config([*write_tiny_coco(tmp_path, num_classes=2), *tiny_options(tmp_path / "out")])
    assert cfg.DATASETS.TRAIN == ("train_json",)
    heads = (cfg.MODEL.FCOS, cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET, cfg.MODEL)
    assert [head.NUM_CLASSES for head in heads] == [2] * 4
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54
    assert (tmp_path / "out" / "config.yaml").read_text() == cfg.dump()
    assert cfg.is_frozen()


def test_class_count_that_disagrees_with_the_json_is_refused(tmp_path: Path) -> None:
    arguments = [*write_tiny_coco(tmp_path, num_classes=2), *tiny_options(tmp_path / "out", MODEL__NUM_CLASSES=5)]
    with pytest.raises(ConfigError, match=r"(?s)MODEL.NUM_CLASSES is 5.*has 2 classes.*MODEL.NUM_CLASSES 2"):
        tiny_config(arguments)


def test_class_lists_of_train_and_val_must_agree(tmp_path: Path) -> None:
    train = write_tiny_coco(tmp_path / "train", num_classes=2)
    val = [flag.replace("--train", "--val") for flag in write_tiny_coco(tmp_path / "val", num_classes=3)]
    with pytest.raises(DatasetError, match="kind2"):
        tiny_config([*train, *val, "--skip-audit", *tiny_options(tmp_path / "out")])


def test_resolve_num_classes_without_data_leaves_the_config() -> None:
    cfg = config(MODEL__FCOS__NUM_CLASSES=7)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    resolve_num_classes(cfg)
    assert cfg.MODEL.FCOS.NUM_CLASSES == 7


def test_learning_rate_hint_and_scaling(caplog: pytest.LogCaptureFixture) -> None:
    recipe = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__RECIPE_IMS_PER_BATCH": 16, "SOLVER__BASE_LR": 0.01}
    cfg = config(**recipe)
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        scale_learning_rate(cfg)
    assert cfg.SOLVER.BASE_LR == 0.01
    assert "SOLVER.BASE_LR 0.0025" in caplog.text
    cfg = config(**recipe, SOLVER__AUTO_SCALE_LR=True)
    for _ in range(2):  # a dumped config is scaled only once
        scale_learning_rate(cfg)
        assert pytest.approx(0.0025) == cfg.SOLVER.BASE_LR
    caplog.clear()
    scale_learning_rate(config(SOLVER__IMS_PER_BATCH=16, SOLVER__RECIPE_IMS_PER_BATCH=16))
    assert caplog.text == ""


def test_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare_output_dir(str(tmp_path / "file" / "out"), must_be_new=True)


def test_build_config_wants_json_and_images_together() -> None:
    args = build_argument_parser().parse_args(["--train-json", "a.json"])
    with pytest.raises(ConfigError, match="--train-json and --train-images go together"):
        build_config(get_segzoo_cfg(), args)


def test_own_data_without_validation_drops_the_recipe_s_test_set(tmp_path: Path) -> None:
    args = build_argument_parser().parse_args(["--train-json", "a", "--train-images", "b"])
    cfg = get_segzoo_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert build_config(cfg, args).DATASETS.TEST == ()


def test_data_sets_named_on_the_command_line_count_more_than_a_runs_json(tmp_path: Path) -> None:
    cfg = get_segzoo_cfg()
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES, cfg.DATASETS.TRAIN = "a", "b", ("train_json",)
    args = build_argument_parser().parse_args([])
    args.opts = ["DATASETS.TRAIN", "('x',)"]
    assert build_config(cfg, args).DATASETS.TRAIN == ("x",)
    args = build_argument_parser().parse_args(["--train-json", "a", "--train-images", "b"])
    args.opts = ["DATASETS.TRAIN", "('x',)", "DATASETS.TEST", "('y',)"]
    with pytest.raises(ConfigError, match=r"--train-json a, but DATASETS.TRAIN is \('x',\)"):
        build_config(get_segzoo_cfg(), args)
    args.opts[1] = "('x', 'train_json')"
    datasets = build_config(get_segzoo_cfg(), args).DATASETS
    assert (datasets.TRAIN, datasets.TEST) == (("x", "train_json"), ("y",))


def as_val(flags: list[str]) -> list[str]:
    return [flag.replace("--train", "--val") for flag in flags]


def test_evaluation_needs_neither_the_training_data_nor_its_class_count(tmp_path: Path) -> None:
    flags = ["--eval-only", *as_val(write_tiny_coco(tmp_path, num_classes=2))]
    options = tiny_options(tmp_path / "out", MODEL__WEIGHTS="trained.pth", DATASETS__TRAIN="('coco_2017_train',)")
    assert tiny_config([*flags, *options]).MODEL.NUM_CLASSES == 2
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST is empty"):
        tiny_config(["--eval-only", *options, "DATASETS.TEST", "()"])


def test_evaluation_of_a_model_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    flags = ["--eval-only", *as_val(write_tiny_coco(tmp_path))]
    for weights in ("", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"):
        options = [*flags, *tiny_options(tmp_path / f"out{bool(weights)}", MODEL__WEIGHTS=weights)]
        with pytest.raises(ConfigError, match=r"(?s)not a trained model.*has no model_best.pth.*MODEL.WEIGHTS <check"):
            tiny_config(options)
        for name in ("model_final.pth", "model_best.pth"):
            path = tmp_path / f"out{bool(weights)}" / name
            path.touch()
            assert str(path) == tiny_config(options).MODEL.WEIGHTS


def test_choose_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("cuda", num_gpus=1) == "cpu"
    assert choose_device("cpu", num_gpus=1) == "cpu"
    for wanted in ("cuda:0", "abacus"):
        with pytest.raises(ConfigError, match=wanted):
            choose_device(wanted, num_gpus=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", num_gpus=1) == "cuda"
    assert choose_device("cuda", num_gpus=0) == "cpu"
    assert choose_device("cuda:1", num_gpus=1) == "cuda:1"


def fail_with(error: BaseException):  # type: ignore[no-untyped-def]
    def main(args: argparse.Namespace) -> None:
        raise error

    return main


def test_launch_gives_the_errors_exit_code_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    args = build_argument_parser().parse_args([])
    assert launch(fail_with(DatasetError("no image", "add some")), args) == 2
    assert capsys.readouterr().err == "DatasetError: no image\n  -> add some\n"
    assert launch(fail_with(KeyboardInterrupt()), args) == 130
    with pytest.raises(ZeroDivisionError):
        launch(fail_with(ZeroDivisionError()), args)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-gpus", "8"], "--num-gpus 8, but the run is on a CPU"),
        (["--num-machines", "2", "--machine-rank", "2"], r"--machine-rank 2 is not in 0..1"),
        (["--num-machines", "2"], "--dist-url auto works on one machine only"),
        (["--num-processes", "0"], "at least 1"),
    ],
)
def test_launch_refuses_impossible_processes(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = build_argument_parser().parse_args(flags)
    assert launch(fail_with(AssertionError("must not start")), args, "cpu") == 2
    assert message.replace(r"\.", ".") in capsys.readouterr().err


def test_train_net_prints_a_config_error_without_a_traceback(tmp_path: Path) -> None:
    arguments = ["--config-file", "configs/fcos_R50.yaml", "SOLVER.BASE_LRR", "0.1", "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "train_net.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "unknown config key 'SOLVER.BASE_LRR'" in done.stderr
    assert "'SOLVER.BASE_LR'" in done.stderr
    assert "Traceback" not in done.stderr
