"""A recipe's schedule at another length."""

from __future__ import annotations

import pytest

from segzoo.config import get_segzoo_cfg
from segzoo.engine.schedule import scaled_schedule


@pytest.mark.parametrize(
    ("max_iter", "steps", "warmup"),
    [
        (90_000, (60_000, 80_000), 500),
        (900, (600, 800), 90),
        (180_000, (120_000, 160_000), 500),
        (3, (2,), 0),
        (1, (), 0),
    ],
)
def test_steps_keep_their_share_of_the_training(max_iter: int, steps: tuple[int, ...], warmup: int) -> None:
    cfg = get_segzoo_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 90_000, (60_000, 80_000), 500
    assert scaled_schedule(cfg, max_iter) == {
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": steps,
        "SOLVER.WARMUP_ITERS": warmup,
        "TEST.EVAL_PERIOD": 0,
    }
