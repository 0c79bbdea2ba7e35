"""The picture of shape only, saliency only and both: of tiny models with random weights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from centermask.centermask import CenterMask
from centermask.decode import Detections
from centermask.maps import MAP_STRIDE, CenterMaps, saliency_channels_of
from projects import get_cfg
from projects.CenterMask import draw_variants
from projects.CenterMask.draw_variants import (
    PAIR,
    SEED,
    VARIANTS,
    Scene,
    draw_masks,
    draw_sheet,
    explain_mask,
    find_instances,
    load_variant,
    main,
    mean_iou,
    read_scene,
)
from segzoo.config import merge_config
from segzoo.data.image_io import read_image
from segzoo.data.scenes.writer import SCENES_V1_SPLITS
from segzoo.errors import ConfigError, SegZooError
from segzoo.visualization import draw_heat, instance_color
from tests.centermask.objects import true_maps

SIDE_PX, TITLE_PX, GAP_PX = 256, 18, 4
SMALL = [
    *("MODEL.DLA.CHANNELS", "(4, 8, 8, 8, 16, 16)", "MODEL.CENTERMASK.HEAD_CHANNELS", "8"),
    *("MODEL.CENTERMASK.SHAPE_SIZE", "8", "MODEL.CENTERMASK.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"),
    *("TEST.DETECTIONS_PER_IMAGE", "40"),
]


def write_run(folder: Path, name: str, repository: Path, *options: str) -> None:
    """OUTPUT_DIR of a run of a tiny variant that finds something everywhere."""
    words = [word for key, value in VARIANTS[name].items() for word in (f"MODEL.CENTERMASK.{key}", str(value))]
    config_file = repository / "configs" / "quick" / "centermask_scenes.yaml"
    cfg = merge_config(get_cfg(), str(config_file), [*SMALL, *words, *options])
    torch.manual_seed(0)
    model = build_model(cfg)
    head = model.heads[0]
    torch.nn.init.zeros_(head.heatmap[2].bias)
    torch.nn.init.constant_(head.size[2].bias, 20.0)
    # Maps that vary within a box and between the variants.
    for branch in filter(None, (head.shape, head.saliency)):
        for parameter in branch.parameters():
            torch.nn.init.normal_(parameter, std=2.0)
    (folder / name).mkdir()
    (folder / name / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / name / "model_final.pth")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> str:
    folder = tmp_path_factory.mktemp("variants")
    for name in VARIANTS:
        write_run(folder, name, repository)
    return str(folder)


@pytest.fixture(scope="module")
def models(runs: str) -> dict[str, CenterMask]:
    return {name: load_variant(runs, name) for name in VARIANTS}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return read_scene()


def panel(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = row * (SIDE_PX + TITLE_PX + GAP_PX) + TITLE_PX, column * (SIDE_PX + GAP_PX)
    return sheet[top : top + SIDE_PX, left : left + SIDE_PX]


def truth_instances(scene: Scene) -> Instances:
    """The ground truth as detections."""
    found = Instances(scene.image.shape[:2])
    found.pred_boxes, found.pred_classes = Boxes(scene.boxes), scene.classes
    found.scores, found.pred_masks = torch.ones(len(scene.classes)), torch.from_numpy(scene.masks)
    return found


def test_the_scene_has_overlaps_of_the_same_and_of_different_classes_and_is_of_no_split(scene: Scene) -> None:
    assert SEED not in [seed for _, seed in SCENES_V1_SPLITS.values()]
    overlaps = set()
    for first in range(len(scene.masks)):
        for second in range(first):
            left, right = scene.boxes[first], scene.boxes[second]
            sides = torch.minimum(left[2:], right[2:]) - torch.maximum(left[:2], right[:2])
            smaller = min(box[2:].sub(box[:2]).prod() for box in (left, right))
            # Neighbours whose boxes share a third of the smaller one, and whose masks touch.
            touches = (cv2.dilate(scene.masks[first].astype(np.uint8), np.ones((3, 3))) > 0) & scene.masks[second]
            if sides.clamp(min=0).prod() > smaller / 3 and touches.any():
                overlaps.add((second, first, bool(scene.classes[first] == scene.classes[second])))
    assert (*PAIR, True) in overlaps
    assert any(not is_same for _, _, is_same in overlaps)


def test_the_sheet_has_a_panel_a_variant_and_three_for_each_of_the_pair(
    models: dict[str, CenterMask], scene: Scene
) -> None:
    sheet = draw_sheet(models, scene)
    assert sheet.shape == (4 * (SIDE_PX + TITLE_PX) + 3 * GAP_PX, 3 * SIDE_PX + 2 * GAP_PX, 3)
    panels = [panel(sheet, row, column) for row in range(4) for column in range(3)]
    # Scene, truth, four variants and twice three maps, no two of them alike.
    assert len({one.tobytes() for one in panels}) == 12
    # A title above each.
    for row in range(4):
        for column in range(3):
            top, left = row * (SIDE_PX + TITLE_PX + GAP_PX), column * (SIDE_PX + GAP_PX)
            assert (sheet[top : top + TITLE_PX, left : left + SIDE_PX] < 128).any()
    expected = draw_masks(
        draw_variants._calm(scene.image, draw_variants.FADED), scene.masks, scene.boxes, scene.classes, scene
    )
    assert np.array_equal(panels[1], expected)


def test_the_command_writes_the_sheet_of_its_runs(
    runs: str, models: dict[str, CenterMask], scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "variants.png"
    assert main([str(path), "--runs", runs]) == 0
    assert np.array_equal(read_image(str(path)), draw_sheet(models, scene))


def test_runs_that_are_absent_or_of_another_variant_are_refused(
    runs: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "picture.png"), "--runs", str(tmp_path)]) == ConfigError.exit_code
    assert "shape_only" in capsys.readouterr().err
    write_run(tmp_path, "both_agnostic", repository, "MODEL.CENTERMASK.SALIENCY_LOSS_WEIGHT", "1.0")
    with pytest.raises(ConfigError, match=r"'SALIENCY_LOSS_WEIGHT': 1\.0"):
        load_variant(str(tmp_path), "both_agnostic")
    (Path(runs) / "both_agnostic" / "config.yaml").rename(tmp_path / "kept.yaml")
    (Path(runs) / "both_agnostic" / "config.yaml").write_text(
        (Path(runs) / "both_specific" / "config.yaml").read_text()
    )
    try:
        with pytest.raises(ConfigError, match="'SALIENCY': 'class_specific'"):
            load_variant(runs, "both_agnostic")
    finally:
        (tmp_path / "kept.yaml").rename(Path(runs) / "both_agnostic" / "config.yaml")
    assert not (tmp_path / "picture.png").exists()


def test_mean_iou_counts_objects_without_a_mask_of_their_class_as_0(scene: Scene) -> None:
    found = truth_instances(scene)
    number = len(found)
    assert mean_iou(found, scene) == 1.0
    assert mean_iou(found[:0], scene) == 0.0
    assert mean_iou(found[1:], scene) == pytest.approx((number - 1) / number, abs=0.01)
    found.pred_classes = (found.pred_classes + 1) % 3
    assert mean_iou(found, scene) < 0.1
    # One mask that is too large: its IoU is the object's share of it.
    found = truth_instances(scene)
    found.pred_masks = found.pred_masks.clone()
    found.pred_masks[-1] = True
    others = (number - 1) + scene.masks[-1].mean()
    assert mean_iou(found, scene) == pytest.approx(others / number)


def test_masks_have_the_colours_of_their_objects_whatever_their_order(scene: Scene) -> None:
    black = np.zeros_like(scene.image)
    (alone,) = np.nonzero(scene.classes.numpy() == 2)
    for index in alone.tolist():
        chosen = slice(index, index + 1)
        drawn = draw_masks(black, scene.masks[chosen], scene.boxes[chosen], scene.classes[chosen], scene)
        left, top = scene.boxes[index, :2].long().tolist()
        # The left side of its box, below the label.
        assert tuple(drawn[top + 40, left].tolist()) == instance_color(index)
    far = scene.boxes[:1] * 0.01
    drawn = draw_masks(black, scene.masks[:1], far, scene.classes[:1], scene)
    assert (drawn[scene.masks[0]] == round(128 * 0.45)).all(axis=1).any()


def test_the_explained_detection_is_the_closest_one_of_the_class(
    models: dict[str, CenterMask], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, index = models["both_agnostic"], PAIR[0]
    own, kind = scene.boxes[index], int(scene.classes[index])
    boxes = torch.stack((own, own + 9.0, own + 4.0))
    detections = Detections(
        boxes, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([(kind + 1) % 3, kind, kind]), torch.full((3, 2), 20)
    )
    monkeypatch.setattr(model, "detect", lambda *_: [detections])
    heats: list[np.ndarray] = []

    def record_heat(image: np.ndarray, heat: np.ndarray, **options: Any) -> np.ndarray:
        heats.append(heat)
        return draw_heat(image, heat, **options)

    monkeypatch.setattr(draw_variants, "draw_heat", record_heat)
    pictures = explain_mask(model, scene, index)
    assert [title.partition(": ")[2] for title in pictures] == ["local shape", "saliency", "shape x saliency"]
    left, top = (own[:2] + 4).long().tolist()
    for picture in pictures.values():
        frame = (picture == draw_variants.FRAME_COLOR).all(axis=2)
        assert (frame.any(axis=0).argmax(), frame.any(axis=1).argmax()) == (left, top)
    shape, saliency, product = heats
    np.testing.assert_allclose(product, shape * saliency, rtol=1e-5)
    assert len(np.unique(shape)) > 99
    assert len(np.unique(saliency)) > 99
    monkeypatch.setattr(model, "detect", lambda *_: [Detections(*(column[:1] for column in detections))])
    with pytest.raises(SegZooError, match="detects no leaf"):
        explain_mask(model, scene, index)


def make_perfect(model: CenterMask, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a model predict the maps that the ground truth asks for."""
    masks, objective = torch.from_numpy(scene.masks), model.objective
    channels = saliency_channels_of(scene.classes, objective.saliency_channels)
    shapes, saliency, boxes_px = true_maps(masks, channels, side=32)
    boxes = boxes_px / MAP_STRIDE
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    cells = centers.long()
    heatmap = torch.full((1, objective.num_classes, 64, 64), -9.0)
    offset, size = torch.zeros(2, 1, 2, 64, 64)
    x, y = cells.T
    heatmap[0, scene.classes, y, x] = 3.0
    offset[0, :, y, x], size[0, :, y, x] = (centers - cells).T, sizes.T
    own_saliency = saliency[None] if objective.saliency_channels else None
    maps = CenterMaps(heatmap, offset, size, own_saliency, torch.zeros(1, 8, 64, 64))

    def shapes_of(_: CenterMaps, detections: Detections, image: int) -> torch.Tensor:
        assert image == 0
        owners = (detections.cells[:, None] == cells).all(dim=2).float().argmax(dim=1)
        return shapes[owners]

    monkeypatch.setattr(model, "dense_outputs", lambda _: [maps])
    if model.heads[0].shape is not None:
        monkeypatch.setattr(model, "shapes_of", shapes_of)


def test_of_perfect_maps_shape_and_saliency_together_give_the_best_masks(
    models: dict[str, CenterMask], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in models.values():
        make_perfect(model, scene, monkeypatch)
    found = {name: find_instances(model, scene) for name, model in models.items()}
    assert {len(instances) for instances in found.values()} == {len(scene.masks)}
    ious = {name: mean_iou(instances, scene) for name, instances in found.items()}
    # Everything in a box is salient, objects of other classes too; local shapes part what one map for all joins.
    assert ious["saliency_only"] < 0.75
    assert min(ious["shape_only"], ious["both_agnostic"], ious["both_specific"]) > 0.93
    # Each of the pair is told from the other in its own panel.
    heats: list[np.ndarray] = []
    monkeypatch.setattr(draw_variants, "draw_heat", lambda image, heat, **_: heats.append(heat) or image)
    for index in PAIR:
        explain_mask(models["both_agnostic"], scene, index)
    for index, other, (shape, saliency, product) in zip(PAIR, PAIR[::-1], (heats[:3], heats[3:]), strict=True):
        in_box = saliency > 0
        own, others = scene.masks[index], scene.masks[other] & in_box
        assert saliency[own].mean() > 0.9
        assert saliency[others].mean() > 0.9
        assert product[own].mean() > 0.9
        assert product[others].mean() < 0.1
        assert (product <= shape).all()


def test_only_detections_above_the_least_score_are_drawn(models: dict[str, CenterMask], scene: Scene) -> None:
    model = models["shape_only"]
    found = find_instances(model, scene)
    assert 0 < len(found) <= 40
    assert found.image_size == scene.image.shape[:2]
    bias = model.heads[0].heatmap[2].bias
    kept = bias.detach().clone()
    torch.nn.init.constant_(bias, -9.0)
    try:
        nothing = find_instances(model, scene)
        assert len(nothing) == 0
        assert mean_iou(nothing, scene) == 0.0
    finally:
        bias.data.copy_(kept)


def test_the_readme_s_commands_train_the_four_variants(repository: Path) -> None:
    readme = (repository / "projects" / "CenterMask" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, Any] = {}
    for line in re.findall(r"^python train_net\.py .* OUTPUT_DIR output/variants/.*$", readme, re.MULTILINE):
        words = shlex.split(line)[2:]
        assert words[0] == "--config-file"
        cfg = merge_config(get_cfg(), str(repository / words[1]), words[2:])
        name = Path(cfg.OUTPUT_DIR).name
        found[name] = {key: cfg.MODEL.CENTERMASK[key] for key in VARIANTS[name]}
    assert found == VARIANTS
