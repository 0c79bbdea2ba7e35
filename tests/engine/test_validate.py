"""Names, choices and ranges that are refused by key and value before anything is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segzoo.config import get_segzoo_cfg
from segzoo.engine.validate import validate_config
from segzoo.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
# The least that the ResNet with a pyramid P3..P7 needs, and its deformable stages.
P3P7: dict[str, object] = {
    "MODEL__BACKBONE__NAME": "build_resnet_fpn_p3p7_backbone",
    "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
}
DEFORMABLE: dict[str, object] = {"MODEL__RESNETS__DEFORM_ON_PER_STAGE": [False, True, True, True]}


def validate(**changes: object) -> None:
    cfg = get_segzoo_cfg()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    validate_config(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__META_ARCHITECTURE": "FCOS2"}, "(?s)MODEL.META_ARCHITECTURE is 'FCOS2'.*nearest known name is 'FCOS'"),
        (
            {"MODEL__BACKBONE__NAME": "build_resnet_fpn_p3p7_backbon"},
            "(?s)MODEL.BACKBONE.NAME is .*nearest known name is 'build_resnet_fpn_p3p7_backbone'",
        ),
        ({"MODEL__BACKBONE__NAME": "foo"}, "(?s)MODEL.BACKBONE.NAME is 'foo'.*build_timm_fpn_backbone"),
        ({"SOLVER__LR_SCHEDULER_NAME": "Foo"}, "(?s)SOLVER.LR_SCHEDULER_NAME is 'Foo'.*'WarmupCosineLR'"),
        ({"SOLVER__WARMUP_METHOD": "foo"}, "(?s)SOLVER.WARMUP_METHOD is 'foo'.*'linear', 'constant'"),
        ({"SOLVER__BETAS": (0.9,)}, r"(?s)SOLVER.BETAS is \(0.9,\).*two numbers"),
        ({"SOLVER__BETAS": (0.9, 1.0)}, r"SOLVER.BETAS is \(0.9, 1.0\)"),
        ({"SOLVER__BETAS": (0.9, "b")}, "SOLVER.BETAS is"),
        ({"SOLVER__MOMENTUM": 3.0}, r"(?s)SOLVER.MOMENTUM is 3.0.*\[0, 1\)"),
        ({"SOLVER__MOMENTUM": float("nan")}, "SOLVER.MOMENTUM is nan"),
        ({"SOLVER__MOMENTUM": 0.0, "SOLVER__NESTEROV": True}, "SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0"),
        ({"SOLVER__GAMMA": -1.0}, r"(?s)SOLVER.GAMMA is -1.0.*\(0, 1\]"),
        ({"SOLVER__WARMUP_FACTOR": 2.0}, "SOLVER.WARMUP_FACTOR is 2.0"),
        ({"SOLVER__WEIGHT_DECAY": -0.1}, "SOLVER.WEIGHT_DECAY is -0.1"),
        ({"SOLVER__BACKBONE_LR_FACTOR": -1.0}, "SOLVER.BACKBONE_LR_FACTOR is -1.0"),
        ({"SOLVER__BASE_LR": float("inf")}, "SOLVER.BASE_LR is inf"),
        (
            {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER__BASE_LR_END": 1.0},
            "(?s)SOLVER.BASE_LR_END is 1.0.*at most SOLVER.BASE_LR 0.001",
        ),
        ({"INPUT__MAX_INSTANCES": -5}, "(?s)INPUT.MAX_INSTANCES is -5.*at least 0"),
        ({"TEST__MASK_BUDGET_MB": -1}, "(?s)TEST.MASK_BUDGET_MB is -1.*at least 1"),
        ({"TEST__BEST_METRIC": "segm/APP"}, "(?s)TEST.BEST_METRIC is 'segm/APP'.*such as 'segm/AP'"),
        ({"TEST__BEST_METRIC": "AP"}, "TEST.BEST_METRIC is 'AP'"),
        ({"TEST__BEST_METRIC": "boundary/AP"}, "(?s)TEST.BEST_METRIC is 'boundary/AP'.*TEST.BOUNDARY_AP True"),
        ({"TEST__BOUNDARY_AP": True, "TEST__COCO_ENGINE": "pycocotools"}, "(?s)'pycocotools'.*COCO_ENGINE faster"),
        (
            {**P3P7, "MODEL__RESNETS__DEFORM_ON_PER_STAGE": [True, True]},
            r"(?s)DEFORM_ON_PER_STAGE is \[True, True\].*four",
        ),
        (
            {**P3P7, **DEFORMABLE, "MODEL__RESNETS__DEFORM_NUM_GROUPS": 7},
            "(?s)DEFORM_NUM_GROUPS is 7.*divisor of the 128",
        ),
        (
            {**P3P7, **DEFORMABLE, "MODEL__RESNETS__DEPTH": 34},
            "(?s)RES2_OUT_CHANNELS is 256 with MODEL.RESNETS.DEPTH 34",
        ),
        (
            {**P3P7, "MODEL__BACKBONE__NAME": "build_resnet_fpn_p2p7_backbone", "MODEL__RESNETS__DEPTH": 99},
            "MODEL.RESNETS.DEPTH is 99",
        ),
        (
            {**DEFORMABLE, "MODEL__BACKBONE__NAME": "build_timm_fpn_backbone"},
            "(?s)DEFORM_ON_PER_STAGE is .*'build_timm_fpn_backbone'.*'.*p3p7_backbone' or '.*p2p7_backbone', or leave",
        ),
        ({**DEFORMABLE, "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone"}, "DEFORM_ON_PER_STAGE is "),
    ],
)
def test_validate_refuses_by_key_value_and_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL__META_ARCHITECTURE": "MaskRCNN", "MODEL__BACKBONE__NAME": "build_timm_fpn_rcnn_backbone"},
        {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER__WARMUP_METHOD": "constant"},
        {"SOLVER__MOMENTUM": 0.0, "SOLVER__GAMMA": 1.0, "SOLVER__WARMUP_FACTOR": 1.0, "SOLVER__BETAS": (0.0, 0.99)},
        {"SOLVER__WEIGHT_DECAY_BIAS": 0.0, "INPUT__MAX_INSTANCES": 0, "TEST__MASK_BUDGET_MB": 1},
        {"TEST__BEST_METRIC": "bbox/AP75"},
        {"TEST__BEST_METRIC": "boundary/AP75", "TEST__BOUNDARY_AP": True},
        P3P7,
        {**P3P7, **DEFORMABLE, "MODEL__RESNETS__DEFORM_MODULATED": True, "MODEL__RESNETS__DEFORM_NUM_GROUPS": 4},
        {"TEST__BEST_METRIC": "segm/AP-traffic light/x"},
        {"TEST__BEST_METRIC": "coco_2017_val/segm/AR100"},
    ],
)
def test_validate_lets_values_at_the_limits_pass(changes: dict[str, object]) -> None:
    validate(**changes)


def test_names_are_checked_without_importing_a_method() -> None:
    # In a fresh process nobody else has imported the packages of the methods, nor SegZoo's architectures.
    code = (
        "import sys; from segzoo.config import get_segzoo_cfg; from segzoo.engine.validate import validate_config;"
        "cfg = get_segzoo_cfg(); cfg.MODEL.META_ARCHITECTURE = 'FCOS'; validate_config(cfg);"
        "assert not {'polarmask', 'projects'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
