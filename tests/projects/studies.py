"""What the tests of all papers' studies share: their rows, their figures, and the steps that each row's model takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from projects import get_cfg
from segzoo.engine.ablations import Row, read_ablations, row_config
from segzoo.engine.optimizer import build_optimizer, clip_gradients
from tests.contract.toys import WITHOUT_MASKS, losses_and_gradients

REPOSITORY = Path(__file__).resolve().parents[2]
Figures = dict[str, dict[str, float | None]]


def read_study(method: str) -> dict[str, Row]:
    """The rows of projects/<method>/ablations.yaml by their ids."""
    return {row.id: row for row in read_ablations(str(REPOSITORY / "projects" / method / "ablations.yaml"))}


def figures(table: str, columns: Sequence[str], costs: Mapping[str, Mapping[str, float]]) -> Figures:
    """Row -> column -> figure, of lines "row figure figure ..." (perhaps not of all columns) and of further `costs`."""
    lines = [line.split() for line in table.strip().splitlines()]
    found = {
        words[0]: {column: float(word) for column, word in zip(columns, words[1:], strict=False)} for words in lines
    }
    for row, own in costs.items():
        found[row] = {**found.get(row, {}), **own}
    return found


def printed(study: Mapping[str, Row]) -> Figures:
    """The same of a study's file."""
    return {row.id: dict(row.figures) for row in study.values()}


def count_equal_models(study: Mapping[str, Row]) -> int:
    """How many rows evaluate another row's model as that row does; checks that both have the same figures."""
    shared = [(row, study[row.model_of]) for row in study.values() if row.model_of and row.dataset]
    same = [(row, origin) for row, origin in shared if (row.dataset, row.options) == (origin.dataset, origin.options)]
    for row, origin in same:
        metrics = {column for column in row.figures if column in origin.figures}
        assert all(row.figures[column] == origin.figures[column] for column in metrics), row.id
    return len(same)


def changes(row: Row, node: str) -> dict[str, Any]:
    """The keys of MODEL.<node> that a row sets, with its values."""
    cfg, default = row_config(row, get_cfg()).MODEL[node], get_cfg().MODEL[node]
    return {key: value for key, value in cfg.items() if value != default[key]}


def own_models(rows: Iterable[Row], quick: Collection[str]) -> list[Any]:
    """The rows that are no other row's model, as parameters of a test; slow but for those of `quick`."""
    own = [row for row in rows if not row.model_of and not row.cited]
    return [pytest.param(row, id=row.id, marks=[] if row.id in quick else [pytest.mark.slow]) for row in own]


def two_steps(cfg: CfgNode, model: torch.nn.Module, batch: list[dict]) -> set[str]:
    """Names of the trained parameters that two steps of the row's optimiser left as they were.

    Losses and gradients must be finite.
    """
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    for _ in range(2):
        losses_and_gradients(model, batch)
        clip_gradients(cfg, model.parameters())
        optimizer.step()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    return {key for key, parameter in trained.items() if torch.equal(parameter, before[key])}


def check_steps_and_inference(
    cfg: CfgNode, batch: list[dict], may_stay: str = "", prepare: Callable[[torch.nn.Module], None] | None = None
) -> None:
    """Two steps move every trained parameter (but those whose name holds `may_stay`), then come five detections.

    `prepare` changes the new model first, where one that has learnt nothing finds nothing.
    """
    model = build_model(cfg)
    if prepare is not None:
        prepare(model)
    assert not {key for key in two_steps(cfg, model, batch) if not (may_stay and may_stay in key)}
    inputs = {key: batch[0][key] for key in ("image", "height", "width")}
    with torch.no_grad():
        detections = model.eval()([inputs])[0]["instances"]
    assert len(detections) == cfg.TEST.DETECTIONS_PER_IMAGE == 5
    assert {"pred_boxes", "scores", "pred_classes"} <= set(detections.get_fields())
    assert detections.has("pred_masks") == (cfg.MODEL.META_ARCHITECTURE not in WITHOUT_MASKS)
    assert detections.image_size == (inputs["height"], inputs["width"])
    assert torch.isfinite(detections.pred_boxes.tensor).all()
