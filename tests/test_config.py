"""Config files and overrides: what is wrong is said with the key, the value and the remedy (ACCEPTANCE case 45)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.augmentation import ColorJitter, RandomFlip, ResizeFixed, build_augmentations
from segzoo.data.random_windows import RandomCrop, ResizeOntoCanvas
from segzoo.data.transforms import Resampling
from segzoo.errors import ConfigError


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_merges(path: Path) -> None:
    cfg = merge_config(get_cfg(), str(path))
    known = (
        "FCOS",
        "PolarMask",
        "MaskRCNN",
        "OrienMask",
        "CenterMask",
        "CenterMaskFCOS",
        "FCOSIS",
        "FCOSReg",
        "MaskFCOS",
    )
    assert path.stem.startswith("Base") or cfg.MODEL.META_ARCHITECTURE in known


def test_polarmask_r50_is_the_recipe_of_the_paper(repository: Path) -> None:
    cfg = merge_config(get_cfg(), str(repository / "configs/polarmask_R50.yaml"))
    assert cfg.MODEL.POLARMASK.NUM_RAYS == 36
    assert cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS == 1.5
    assert cfg.MODEL.FCOS.SIZES_OF_INTEREST == [64, 128, 256, 512]
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.01, 16)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_BIAS, cfg.SOLVER.BIAS_LR_FACTOR) == (1e-4, 0.0, 2.0)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333)


@pytest.mark.parametrize("leaf", ["R101", "R101_DCN", "X101", "X101_DCN"])
@pytest.mark.parametrize("schedule", ["", "_2x"])
def test_centermask_fcos_is_the_recipe_of_fcos(leaf: str, schedule: str, repository: Path) -> None:
    cfg = merge_config(get_cfg(), str(repository / f"configs/centermask_fcos_{leaf}{schedule}.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE == "CenterMaskFCOS"
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == ("SGD", 16, 0.01)
    assert (180_000 if schedule else 90_000, 1333) == (cfg.SOLVER.MAX_ITER, cfg.INPUT.MAX_SIZE_TRAIN)
    assert ((640, 800) if schedule else (800,)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS, cfg.MODEL.FCOS.NMS_THRESH_TEST) == (0.0, 0.6)
    assert cfg.MODEL.FCOS.DEFORMABLE is leaf.endswith("DCN") is cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[3]
    assert (101, 64 if leaf.startswith("X") else 1) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS)
    assert (cfg.MODEL.CENTERMASK_FCOS.SHAPE_SIZE, cfg.MODEL.CENTERMASK_FCOS.SALIENCY) == (32, "class_specific")


@pytest.mark.parametrize(("leaf", "norm"), [("orienmask_D53", "SyncBN"), ("orienmask_D53_base", "BN")])
def test_orienmask_d53_is_the_recipe_of_the_paper(leaf: str, norm: str, repository: Path) -> None:
    cfg = merge_config(get_cfg(), str(repository / "configs" / f"{leaf}.yaml"))
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.MOMENTUM, solver.NESTEROV) == ("SGD", 0.9, False)
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.RECIPE_IMS_PER_BATCH) == (1e-3, 16, 16)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_BIAS, solver.WEIGHT_DECAY_NORM) == (5e-4, 5e-4, 5e-4)
    assert (solver.BIAS_LR_FACTOR, solver.BACKBONE_LR_FACTOR, cfg.MODEL.BACKBONE.FREEZE_AT) == (1.0, 1.0, 0)
    # 100 epochs of the 118,287 images.
    assert abs(solver.MAX_ITER - 100 * 118_287 / 16) < 1000
    assert (solver.STEPS, solver.GAMMA) == ((520_000, 660_000), 0.1)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (1000, 0.1, "linear")
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert solver.POSITIVE_COUNT == "local"
    assert {cfg.MODEL.DARKNET.NORM, cfg.MODEL.ORIENMASK.NORM} == {norm}
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


@pytest.mark.parametrize("leaf", ["orienmask_D53", "orienmask_D53_base"])
def test_orienmask_d53_augments_as_its_authors_do(leaf: str, repository: Path) -> None:
    cfg = merge_config(get_cfg(), str(repository / "configs" / f"{leaf}.yaml"))
    # Each with all that it holds, so that no default may change unseen; (124, 116, 104) is ImageNet's mean, rounded.
    resampling = Resampling("opencv", "center")
    expected: list[tuple[type, dict[str, Any]]] = [
        (
            ColorJitter,
            {
                "strengths": {"brightness": 0.2, "contrast": 0.5, "saturation": 0.5, "hue": 0.1},
                "image_format": "RGB",
                "lighting": 0.0,
            },
        ),
        (RandomCrop, {"prob": 0.5, "min_area": 0.64}),
        (
            ResizeOntoCanvas,
            {
                **{"size": (544, 544), "fill": (124, 116, 104), "resampling": resampling},
                **{"warp_prob": 0.25, "aspect_jitter": 0.3, "shrink_prob": 0.75, "max_shrink": 0.75},
            },
        ),
        (RandomFlip, {"is_horizontal": True}),
    ]
    assert [(type(step), vars(step)) for step in build_augmentations(cfg, is_train=True)] == expected
    (resize,) = build_augmentations(cfg, is_train=False)
    assert (type(resize), vars(resize)) == (ResizeFixed, {"size": (544, 544), "resampling": resampling})


def test_merge_config_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  POLARMASK:\n    NUM_RAY: 36\n")
    with pytest.raises(ConfigError, match=r"NUM_RAY'(.|\n)*MODEL\.POLARMASK\.NUM_RAYS"):
        merge_config(get_cfg(), str(path))
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LRR'(.|\n)*SOLVER\.BASE_LR'"):
        merge_config(get_cfg(), "", ["SOLVER.BASE_LRR", "0.1"])


def test_merge_config_wrong_type_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"NUM_RAYS many"):
        merge_config(get_cfg(), "", ["MODEL.POLARMASK.NUM_RAYS", "many"])


def test_merge_config_odd_number_of_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="KEY VALUE"):
        merge_config(get_cfg(), "", ["SOLVER.BASE_LR"])


@pytest.mark.parametrize(
    "text",
    ["MODEL: [unclosed", "MODEL: !!python/object/apply:os.system ['echo never > pwned']"],
    ids=["broken", "code"],
)
def test_merge_config_reads_files_as_data_only(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        merge_config(get_cfg(), "bad.yaml")
    assert not (tmp_path / "pwned").exists()


def test_merge_config_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        merge_config(get_cfg(), "nowhere.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("NUM_RAYS", "2"), ("PARTS", "some"), ("MASK_LOSS", "iou"), ("CENTERNESS", "box"), ("CENTER", "corner")),
        *(("CONVENTION", "paper"), ("BOXES", "all"), ("BOXES", "predicted"), ("MASK_LOSS_WEIGHT", "-1.0")),
        ("CTR_BIAS", "-0.5"),
    ],
)
def test_polarmask_impossible_values_are_refused(key: str, value: str) -> None:
    from polarmask import PolarMask

    cfg = merge_config(get_cfg(), "", [f"MODEL.POLARMASK.{key}", value])
    with pytest.raises(ConfigError, match=rf"MODEL\.POLARMASK\.{key}"):
        PolarMask.from_config(cfg)


@pytest.mark.parametrize(("key", "value"), [("NUM_RAYS", "35"), ("CENTER", "box"), ("PARTS", "all")])
def test_polarmask_official_convention_refuses_what_it_cannot_do(key: str, value: str) -> None:
    from polarmask import PolarMask

    words = ["MODEL.POLARMASK.CONVENTION", "official", f"MODEL.POLARMASK.{key}", value]
    with pytest.raises(ConfigError, match=rf"MODEL\.POLARMASK\.{key}.*'official'"):
        PolarMask.from_config(merge_config(get_cfg(), "", words))
