"""Values of config keys that cannot work or have no effect, found before anything is built."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from segzoo.data.augmentation import RESIZES, TRAIN_RESIZES
from segzoo.data.registration import FORMATS
from segzoo.engine.optimizer import CLIP_TYPES, OPTIMIZERS
from segzoo.errors import ConfigError
from segzoo.evaluation.metrics import check_engine
from segzoo.modeling.backbones.deformable_resnet import ALL_PLAIN
from segzoo.modeling.backbones.resnet_fpn import PYRAMIDS, check_resnet_fpn

CHOICES = {
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.POSITIVE_COUNT": ("reduce", "local"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "TEST.COCO_ENGINE": ("faster", "pycocotools"),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "DATASETS.VAL_FORMAT": FORMATS,
    "INPUT.RESIZE": RESIZES,
    "INPUT.RESIZE_TRAIN": TRAIN_RESIZES,
    "INPUT.ON_BAD_IMAGE": ("error", "skip"),
    "INPUT.RESAMPLING": ("pillow", "opencv"),
    "INPUT.RASTERIZE": ("after", "before"),
    "INPUT.BOXES": ("masks", "annotations"),
}
# Their upper and lower case are one.
CASELESS = ("SOLVER.OPTIMIZER",)
# Smallest value of keys that count something.
MINIMA = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_KEEP": 0,
    "SOLVER.EMA.RAMP": 1,
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "SOLVER.NUM_DECAYS": 1,
    "INPUT.KEEP_RES_MULTIPLE": 1,
    "INPUT.WARP.BORDER": 0,
    "INPUT.MAX_INSTANCES": 0,
    "INPUT.DROP_SMALL.AREA": 0,
    "INPUT.DROP_SMALL.SIDES": 0,
    "INPUT.DROP_SMALL.PIXELS": 0,
    "TEST.IMS_PER_BATCH": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.MASK_BUDGET_MB": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.NUM_CLASSES": 0,
}
# key -> (smallest value, the value it must stay below) of rates, factors and momenta.
RANGES: dict[str, tuple[float, float]] = {
    "SOLVER.MOMENTUM": (0.0, 1.0),
    "SOLVER.WEIGHT_DECAY": (0.0, 1.0),
    "SOLVER.WEIGHT_DECAY_NORM": (0.0, 1.0),
    "SOLVER.WEIGHT_DECAY_BIAS": (0.0, 1.0),
    "SOLVER.EMA.DECAY": (0.0, 1.0),
    "SOLVER.BASE_LR_END": (0.0, math.inf),
    "SOLVER.BIAS_LR_FACTOR": (0.0, math.inf),
    "SOLVER.BACKBONE_LR_FACTOR": (0.0, math.inf),
}
# Names of what a config builds; the packages of the methods register theirs when they add their keys.
REGISTRIES = {"MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY, "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY}
# With several test sets the name of one may stand in front.
METRIC_PATTERN = re.compile(r"(.+/)?(bbox|segm|boundary)/(AP(50|75|s|m|l|-.+)?|AR(1|10|100|s|m|l))")
# Thresholds in pixels, where -1 means "off".
NOT_A_FRACTION = ("MODEL.RPN.BOUNDARY_THRESH",)
# Detectron2's keys that change a run there, but nothing here: key -> (the default it must keep, what to do instead).
# Keys that only refine one of these (INPUT.CROP.SIZE) have no effect without it in Detectron2 either.
UNUSED: dict[str, tuple[Any, str]] = {
    "MODEL.LOAD_PROPOSALS": (False, "proposals always come from the model's own RPN"),
    "MODEL.KEYPOINT_ON": (False, "it finds boxes and masks, no keypoints"),
    "INPUT.CROP.ENABLED": (False, "crop by INPUT.RANDOM_CROP.PROB, which keeps a share of every object"),
    "DATASETS.PROPOSAL_FILES_TRAIN": ((), "proposals always come from the model's own RPN"),
    "DATASETS.PROPOSAL_FILES_TEST": ((), "proposals always come from the model's own RPN"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "every image comes once an epoch; repeat rare ones in the json"),
    "DATALOADER.REPEAT_THRESHOLD": (0.0, "every image comes once an epoch; repeat rare ones in the json"),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, "use SOLVER.RECIPE_IMS_PER_BATCH with SOLVER.AUTO_SCALE_LR True"),
    "TEST.AUG.ENABLED": (False, "choose one test size by INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"),
    "TEST.PRECISE_BN.ENABLED": (False, "use SOLVER.EMA.ENABLED True, or norms without statistics such as GN"),
    "TEST.EXPECTED_RESULTS": ([], "compare the results of the evaluation with yours afterwards"),
    "TEST.KEYPOINT_OKS_SIGMAS": ([], "it finds boxes and masks, no keypoints"),
    "GLOBAL.HACK": (1.0, "give your code a key of its own"),
}


def validate_config(cfg: CfgNode) -> None:
    """Checks names, choices, counts, ranges, thresholds (0..1), colours, the schedule, and keys that have no effect.

    Raises:
        ConfigError: names the key, its value and the allowed range.
    """
    for key, allowed in CHOICES.items():
        value = get_key(cfg, key)
        if (value.upper() if key in CASELESS else value) not in allowed:
            raise ConfigError(f"{key} is {value!r}", f"allowed: {', '.join(map(repr, allowed))}")
    for key, minimum in MINIMA.items():
        if get_key(cfg, key) < minimum:
            raise ConfigError(f"{key} is {get_key(cfg, key)}", f"it must be at least {minimum}")
    _check_names(cfg)
    _check_ranges(cfg)
    _check_fractions(cfg)
    _check_colors(cfg)
    _check_schedule(cfg)
    _check_unused(cfg)
    _check_backbone(cfg)


def validate_batch(cfg: CfgNode, world_size: int) -> None:
    """IMS_PER_BATCH must split evenly over processes and micro-batches.

    Raises:
        ConfigError: names the three numbers and the nearest batch that works.
    """
    share = world_size * cfg.SOLVER.ACCUMULATE
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % share:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {batch} does not split over {world_size} process(es) x SOLVER.ACCUMULATE "
            f"{cfg.SOLVER.ACCUMULATE}",
            f"it must be a multiple of {share}, such as {max(round(batch / share), 1) * share}",
        )


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def walk(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from walk(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_names(cfg: CfgNode) -> None:
    # SegZoo's own architectures and backbones are there only once this package is imported.
    import segzoo.modeling  # noqa: F401

    for key, registry in REGISTRIES.items():
        name, known = get_key(cfg, key), sorted(known for known, _ in registry)
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{key} is {name!r}, which is not registered",
                f"the nearest known name is {nearest!r} of {', '.join(known)}",
            )
    if not METRIC_PATTERN.fullmatch(cfg.TEST.BEST_METRIC):
        raise ConfigError(
            f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC!r}",
            "it must be bbox/, segm/ or boundary/ and AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl "
            "or AP-<class>, such as 'segm/AP'",
        )
    if "boundary/" in cfg.TEST.BEST_METRIC and not cfg.TEST.BOUNDARY_AP:
        raise ConfigError(f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC!r}", "it needs TEST.BOUNDARY_AP True")
    check_engine(cfg.TEST.COCO_ENGINE, measures_boundaries=cfg.TEST.BOUNDARY_AP)


def _check_ranges(cfg: CfgNode) -> None:
    for key, (smallest, limit) in RANGES.items():
        value = get_key(cfg, key)
        # WEIGHT_DECAY_BIAS is None where biases decay like weights.
        if value is not None and not smallest <= value < limit:
            raise ConfigError(f"{key} is {value}", f"it must be in [{smallest:g}, {limit:g})")
    # 1 keeps the rate at each step.
    if not 0 < cfg.SOLVER.GAMMA <= 1:
        raise ConfigError(f"SOLVER.GAMMA is {cfg.SOLVER.GAMMA}", "it must be in (0, 1], such as 0.1")
    if not 0 <= cfg.SOLVER.WARMUP_FACTOR <= 1:
        raise ConfigError(f"SOLVER.WARMUP_FACTOR is {cfg.SOLVER.WARMUP_FACTOR}", "it must be in [0, 1], such as 0.001")
    if cfg.SOLVER.NESTEROV and cfg.SOLVER.MOMENTUM == 0:
        raise ConfigError("SOLVER.NESTEROV is True, but SOLVER.MOMENTUM is 0", "give a momentum, such as 0.9")
    betas = cfg.SOLVER.BETAS
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise ConfigError(f"SOLVER.BETAS is {betas}", "it must be two numbers in [0, 1), such as (0.9, 0.999)")


def _check_fractions(cfg: CfgNode) -> None:
    for key, value in walk(cfg.MODEL, "MODEL."):
        name = key.rsplit(".", 1)[-1]
        if not ("THRESH" in name or name == "PRIOR_PROB") or key in NOT_A_FRACTION:
            continue
        for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(number, int | float) and not 0 <= number <= 1:
                raise ConfigError(f"{key} is {value}", "it must be between 0 and 1")


def _check_colors(cfg: CfgNode) -> None:
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = cfg.MODEL[key]
        if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ConfigError(f"MODEL.{key} is {values}", "it must be three numbers, one a channel of INPUT.FORMAT")
    if min(cfg.MODEL.PIXEL_STD) <= 0:
        raise ConfigError(f"MODEL.PIXEL_STD is {cfg.MODEL.PIXEL_STD}", "its numbers must be greater than 0")


def _check_unused(cfg: CfgNode) -> None:
    for key, (default, remedy) in UNUSED.items():
        if get_key(cfg, key) != default:
            raise ConfigError(
                f"{key} is {get_key(cfg, key)!r}, but SegZoo does not use this key",
                f"leave it at {default!r}: {remedy}",
            )


def _check_backbone(cfg: CfgNode) -> None:
    backbone, deformable = cfg.MODEL.BACKBONE.NAME, list(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    if backbone in PYRAMIDS:
        check_resnet_fpn(cfg)
    elif any(deformable):
        # Detectron2's own builders would need its compiled extension; other networks have no such stages.
        raise ConfigError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {deformable}, but MODEL.BACKBONE.NAME is {backbone!r}",
            f"use {' or '.join(map(repr, PYRAMIDS))}, or leave the stages at {ALL_PLAIN}",
        )


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if not 0 < solver.BASE_LR < math.inf:
        raise ConfigError(f"SOLVER.BASE_LR is {solver.BASE_LR}", "it must be positive and finite")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        raise ConfigError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}", f"it must be at most SOLVER.BASE_LR {solver.BASE_LR}"
        )
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_VALUE <= 0:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {solver.CLIP_GRADIENTS.CLIP_VALUE}", "it must be positive"
        )
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return
    steps = list(solver.STEPS)
    if steps != sorted(set(steps)):
        raise ConfigError(f"SOLVER.STEPS {tuple(steps)} do not increase", "give them in increasing order")
    if steps and (steps[-1] > solver.MAX_ITER or steps[0] < 1):
        raise ConfigError(
            f"SOLVER.STEPS {tuple(steps)} do not lie within 1..SOLVER.MAX_ITER = {solver.MAX_ITER}",
            'give SOLVER.STEPS "()" for a constant rate, or steps such as '
            f"({solver.MAX_ITER * 2 // 3}, {solver.MAX_ITER * 8 // 9})",
        )
