"""Values of config keys that cannot work, found before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from segzoo.engine.optimizer import CLIP_TYPES, OPTIMIZERS
from segzoo.errors import ConfigError

CHOICES = {
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.POSITIVE_COUNT": ("reduce", "local"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
    "TEST.COCO_ENGINE": ("faster", "pycocotools"),
    "INPUT.RESIZE": ("shortest_edge", "fixed", "letterbox"),
    "INPUT.ON_BAD_IMAGE": ("error", "skip"),
}
# Smallest value of keys that count something.
MINIMA = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_KEEP": 0,
    "SOLVER.EMA.RAMP": 1,
    "TEST.IMS_PER_BATCH": 1,
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.NUM_CLASSES": 0,
}
# Thresholds in pixels, where -1 means "off".
NOT_A_FRACTION = ("MODEL.RPN.BOUNDARY_THRESH",)


def validate_config(cfg: CfgNode) -> None:
    """Checks choices, counts, thresholds (0..1) and the schedule.

    Raises:
        ConfigError: names the key, its value and the allowed range.
    """
    for key, allowed in CHOICES.items():
        value = get_key(cfg, key)
        if value not in allowed and str(value).upper() not in allowed:
            raise ConfigError(f"{key} is {value!r}", f"allowed: {', '.join(map(repr, allowed))}")
    for key, minimum in MINIMA.items():
        if get_key(cfg, key) < minimum:
            raise ConfigError(f"{key} is {get_key(cfg, key)}", f"it must be at least {minimum}")
    _check_fractions(cfg)
    _check_schedule(cfg)


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


def _check_fractions(cfg: CfgNode) -> None:
    for key, value in walk(cfg.MODEL, "MODEL."):
        name = key.rsplit(".", 1)[-1]
        if not ("THRESH" in name or name == "PRIOR_PROB") or key in NOT_A_FRACTION:
            continue
        for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(number, int | float) and not 0 <= number <= 1:
                raise ConfigError(f"{key} is {value}", "it must be between 0 and 1")
    if not 0 <= cfg.SOLVER.EMA.DECAY < 1:
        raise ConfigError(f"SOLVER.EMA.DECAY is {cfg.SOLVER.EMA.DECAY}", "it must be in [0, 1), such as 0.9998")


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.BASE_LR <= 0:
        raise ConfigError(f"SOLVER.BASE_LR is {solver.BASE_LR}", "it must be positive")
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
