"""A recipe's schedule at another length, for studies with a smaller budget."""

from __future__ import annotations

from detectron2.config import CfgNode

# A warm-up that is a large part of a short run would be most of it.
MAX_WARMUP_SHARE = 0.1


def scaled_schedule(cfg: CfgNode, max_iter: int) -> dict[str, object]:
    """The config keys of the same schedule with `max_iter` iterations.

    The steps of the rate keep their share of the training; a warm-up keeps its length, but for at most a tenth of it.
    Evaluations in between are left out: the end is what is compared.

    Args:
        cfg: of the recipe.
        max_iter: at least 1.

    Returns:
        key -> value; the steps without those that would fall on the start, on the end, or on each other.
    """
    solver = cfg.SOLVER
    steps = sorted({round(step * max_iter / solver.MAX_ITER) for step in solver.STEPS})
    return {
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": tuple(step for step in steps if 0 < step < max_iter),
        "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, int(MAX_WARMUP_SHARE * max_iter)),
        "TEST.EVAL_PERIOD": 0,
    }
