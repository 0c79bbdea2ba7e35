"""How long each trained model takes for images of the evaluated set, all models in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from projects.speed import make_subject
from segzoo.engine.predictor import Predictor
from segzoo.evaluation.speed import SpeedRow, measure_in_turns, warnings_of
from segzoo.report.content import Model, Speed


def measure_speed(
    models: Sequence[Model],
    predictors: Mapping[str, Predictor],
    images: Sequence[np.ndarray],
    *,
    device: torch.device,
    batches: Sequence[int],
    precisions: Sequence[str],
    repeats: int,
) -> list[str]:
    """Fills the speeds of the models; gives what a reader must know of them.

    Models, batches and precisions take turns. A batch of B images is timed on B images at a time, over all images.

    Args:
        models: those without a predictor are left out.
        predictors: by name.
        images: (H, W, 3) uint8 BGR each.
        device: of the predictors.
        batches: sizes, at most the number of images.
        precisions: keys of `segzoo.evaluation.speed.PRECISIONS`.
        repeats: turns, at least 1.
    """
    keys, subjects = [], []
    for model in models:
        if model.name not in predictors:
            continue
        for batch in batches:
            for precision in precisions:
                for first in range(0, len(images) - batch + 1, batch):
                    keys.append((model.name, precision, batch))
                    own = images[first : first + batch]
                    subjects.append(make_subject(model.name, predictors[model.name], own, precision))
    rows = measure_in_turns(subjects, device=device, repeats=repeats, warm_up=1)
    merged = {key: _merge([row for own, row in zip(keys, rows, strict=True) if own == key]) for key in keys}
    for model in models:
        model.speeds = [_speed(row) for (name, _, _), row in merged.items() if name == model.name]
    return warnings_of(list(merged.values()))


def _merge(rows: Sequence[SpeedRow]) -> SpeedRow:
    """One row of all turns of several images; the largest memory."""
    first = rows[0]
    merged = SpeedRow(
        first.name,
        first.batch,
        first.precision,
        sum(row.detections for row in rows) / len(rows),
        max(row.peak_mb for row in rows),
    )
    for row in rows:
        merged.whole_ms += row.whole_ms
        for stage, times in row.stages_ms.items():
            merged.stages_ms[stage] += times
    return merged


def _speed(row: SpeedRow) -> Speed:
    values = row.as_dict()
    return Speed(
        row.precision, row.batch, values["whole_ms"], values["stages_ms"], row.detections, round(row.peak_mb, 1)
    )
