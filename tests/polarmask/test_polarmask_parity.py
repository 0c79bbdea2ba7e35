"""PolarMask against what its authors' program computes: targets, losses, maps and detections (reference data)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from polarmask.decode import rays_to_contours
from polarmask.losses import polar_centerness, polar_iou_loss
from polarmask.official import degree_bin_rays, find_contours
from polarmask.polar_head import PolarMaps
from polarmask.polarmask import PolarMask
from polarmask.rays import ray_angles
from polarmask.targets import PolarTargets, TargetRule, polar_targets
from polarmask.walk import WalkedContours, walked_center
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.engine.weights import load_weights
from segzoo.modeling.fcos.locations import compute_locations, map_sizes
from tools import convert_weights

pytestmark = pytest.mark.reference
STRIDES, NUM_CLASSES = [8, 16, 32, 64, 128], 80
RULE = TargetRule(36, [64, 128, 256, 512], 1.5, is_official=True)
CPU = torch.device("cpu")


@pytest.fixture
def model(repository: Any) -> PolarMask:
    config = merge_config(
        get_cfg(), str(repository / "configs/polarmask_R50_official.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    )
    return PolarMask(config).eval()


def official_targets(image: dict[str, Any], masks: torch.Tensor) -> PolarTargets:
    instances = Instances(image["size"])
    instances.gt_boxes = Boxes(image["boxes"] + torch.tensor([0.0, 0.0, 1.0, 1.0]))
    instances.gt_classes = image["gt_labels"].long() - 1
    instances.gt_masks = BitMasks(masks)
    return polar_targets(compute_locations(image["featmap_sizes"], STRIDES, CPU), [instances], NUM_CLASSES, RULE)


@pytest.mark.usefixtures("both_ways")
def test_official_contours_centres_and_rays_equal_the_authors(parity: ModuleType) -> None:
    samples = parity.load("polarmask_rays_single")
    assert len(samples) == 14
    for sample in samples:
        contours = find_contours([parity.unpack(sample["mask_packed"])[None]])
        assert contours.centers_px[0].tolist() == sample["center_xy"], sample["name"]
        assert walked_center(sample["contour"].double().numpy()) == tuple(sample["center_xy"]), sample["name"]
        points = contours.points[0] if isinstance(contours, WalkedContours) else contours.pixels.x_y
        found = set(map(tuple, points.tolist()))
        assert found == set(map(tuple, sample["contour"].long().tolist())), sample["name"]
        points = sample["points_xy"]
        rays = degree_bin_rays(contours, points, torch.zeros(len(points), dtype=torch.int64), 36)
        torch.testing.assert_close(rays, sample["dists"], rtol=0, atol=1e-3, msg=sample["name"])


@pytest.mark.usefixtures("both_ways")
def test_official_targets_equal_the_authors_at_all_locations(parity: ModuleType) -> None:
    for image in parity.load("polarmask_targets_image"):
        targets = official_targets(image, parity.unpack(image["masks_packed"]))
        labels = torch.where(targets.classes == NUM_CLASSES, 0, targets.classes + 1)
        assert torch.equal(labels, image["labels"].long())
        assert torch.equal(targets.positives, image["pos_inds"])
        torch.testing.assert_close(targets.rays_px, image["pos_mask_targets"], rtol=0, atol=1e-3)
        torch.testing.assert_close(targets.box_distances_px, image["pos_bbox_targets"], rtol=0, atol=1e-3)


def test_centerness_and_polar_iou_loss_equal_the_authors_in_value_and_gradient(parity: ModuleType) -> None:
    sample = parity.load("polarmask_losses")
    centerness = polar_centerness(sample["targets"])
    torch.testing.assert_close(centerness, sample["centerness"], rtol=1e-5, atol=0)
    rays = sample["pred"].clone().requires_grad_()
    loss = polar_iou_loss(rays, sample["targets"], centerness) / centerness.sum()
    loss.backward()
    expected = sample["loss"]["v1"]
    torch.testing.assert_close(loss.detach(), expected["value"], rtol=1e-5, atol=0)
    largest = float(expected["grad"].abs().max())
    assert float((rays.grad - expected["grad"]).abs().max()) <= 1e-4 * largest


def test_rays_to_contours_equal_the_authors(parity: ModuleType) -> None:
    sample = parity.load("polarmask_losses")
    torch.testing.assert_close(ray_angles(36).float(), sample["angles_rad"], rtol=0, atol=1e-6)
    contours = rays_to_contours(sample["points"], sample["targets"])
    torch.testing.assert_close(contours.transpose(1, 2), sample["decoded_contours"], rtol=0, atol=0.01)


def test_detections_from_the_stored_maps_equal_the_authors(parity: ModuleType, model: PolarMask) -> None:
    stored, forward = parity.load("polarmask_decode"), parity.load("polarmask_forward")
    maps = PolarMaps(
        cls_logits=list(forward["cls"]),
        centerness_logits=list(forward["ctr"]),
        ray_logits=[level.log() for level in forward["msk"]],
        box_logits=[level.log() for level in forward["box"]],
    )
    height, width = stored["img_meta"]["ori_shape"][:2]
    locations = compute_locations(map_sizes(maps.cls_logits), STRIDES, CPU)
    sizes = [tuple(stored["img_meta"]["img_shape"][:2])] * 2
    results = model.inference(maps, locations, sizes, [{"height": height, "width": width}] * 2)
    for result, expected in zip(results, stored["detections"]["box_nms"], strict=True):
        instances = result["instances"]
        assert len(instances) == len(expected["labels"]) == 100
        assert torch.equal(instances.pred_classes, expected["labels"])
        torch.testing.assert_close(instances.scores, expected["bboxes"][:, 4], rtol=0, atol=1e-4)
        contours = instances.pred_contours.transpose(1, 2)
        torch.testing.assert_close(contours, expected["contours"], rtol=0, atol=0.01)
        boxes = expected["bboxes"][:, :4] + torch.tensor([0.0, 0.0, 1.0, 1.0])
        boxes = boxes.minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(instances.pred_boxes.tensor, boxes, rtol=0, atol=0.01)
        masks, authors = np.asarray(instances.pred_masks), parity.unpack(expected["masks_packed"]).numpy()
        iou = (masks & authors).sum(axis=(1, 2)) / np.maximum((masks | authors).sum(axis=(1, 2)), 1)
        assert iou.min() >= 0.999


def test_converted_weights_give_the_authors_maps(parity: ModuleType, model: PolarMask, tmp_path: Path) -> None:
    released, ours = tmp_path / "epoch_12.pth", tmp_path / "polarmask.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": parity.state_dict("polarmask")}, released)
    assert convert_weights.main(["--input", str(released), "--output", str(ours)]) == 0
    load_weights(model, str(ours))
    stored = parity.load("polarmask_forward")
    with torch.no_grad():
        bottom_up = model.backbone.bottom_up(stored["image"].float())
        features = model.backbone(stored["image"].float())
        maps = model.dense_outputs(stored["image"].float())
    pairs = [(bottom_up["res5"][:1], stored["c5"])]
    pairs += [(features[f"p{3 + level}"][:1], expected) for level, expected in enumerate(stored["p"])]
    pairs += zip(maps.cls_logits, stored["cls"], strict=True)
    pairs += zip(maps.centerness_logits, stored["ctr"], strict=True)
    pairs += [(level.exp(), expected) for level, expected in zip(maps.ray_logits, stored["msk"], strict=True)]
    pairs += [(level.exp(), expected) for level, expected in zip(maps.box_logits, stored["box"], strict=True)]
    assert len(pairs) == 26
    for found, expected in pairs:
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= 1e-3 * float(expected.std())
