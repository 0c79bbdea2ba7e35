"""OrienMask against what its authors' program computes: maps, targets, losses and detections (reference data)."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou

from orienmask.anchors import Predictions, decode_boxes, flatten_predictions, list_predictions, to_corners
from orienmask.decode import orientation_masks, select_candidates, suppress
from orienmask.maps import OrienMaps
from orienmask.orienmask import OrienMask
from orienmask.orientation import orientation_targets
from orienmask.targets import BoxTargets, assign_anchors, box_targets, objectness_negatives
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.engine.weights import load_weights
from segzoo.modeling.fcos.locations import map_sizes
from tests.orienmask.objects import RULE, STRIDES
from tools import convert_weights

pytestmark = pytest.mark.reference
SIDE, NUM_CLASSES, NUM_ANCHORS = 544, 80, 3
SCALES = ("s8", "s16", "s32")
# The authors' program takes objects in a random order, the reference data as they stand.
GIVEN = RULE._replace(overlap_order="given")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(repository: Path) -> OrienMask:
    """The final model; its 63 million parameters are built once."""
    words = ["MODEL.DEVICE", "cpu", "MODEL.ORIENMASK.OVERLAP_ORDER", "given"]
    return OrienMask(merge_config(get_cfg(), str(repository / "configs/orienmask_D53.yaml"), words)).eval()


def ground_truth(parity: ModuleType) -> list[Instances]:
    inputs = parity.load("orienmask_inputs")
    masks, ends, batch = parity.unpack(inputs["gt_mask_packed"]), inputs["gt_index"].tolist(), []
    for start, end in itertools.pairwise(ends):
        instances = Instances((SIDE, SIDE))
        instances.gt_boxes = Boxes(to_corners(inputs["gt_bbox_cxcywh_norm"][start:end] * SIDE))
        instances.gt_classes = inputs["gt_cls"][start:end]
        instances.gt_masks = BitMasks(masks[start:end])
        batch.append(instances)
    return batch


def stored_maps(parity: ModuleType) -> OrienMaps:
    """Raw maps of images 0 and 1; the authors' orientations come scale by scale, ours by ascending anchor."""
    raw = parity.load("orienmask_fpnplus_outputs")["raw"]
    return OrienMaps([raw[scale]["bbox"] for scale in SCALES], torch.cat([raw[scale]["orien"] for scale in SCALES], 1))


def places_of(maps: OrienMaps) -> Predictions:
    return list_predictions(map_sizes(maps.boxes), STRIDES, GIVEN.anchors_px, CPU)


def slices(maps: OrienMaps) -> dict[str, slice]:
    """Scale -> its part of the R predictions."""
    counts = np.cumsum([0] + [NUM_ANCHORS * height * width for height, width in map_sizes(maps.boxes)]).tolist()
    return {scale: slice(*counts[level : level + 2]) for level, scale in enumerate(SCALES)}


class Dense(NamedTuple):
    """Targets of one scale as the authors hold them, (3, A, H, W, ...)."""

    positive: Tensor
    values: Tensor
    classes: set[tuple[int, ...]]


def dense_targets(targets: BoxTargets, num_predictions: int, part: slice, size: tuple[int, int]) -> Dense:
    height, width = size
    shape = (3, NUM_ANCHORS, height, width)
    is_positive = torch.zeros(3 * num_predictions, dtype=torch.bool)
    is_positive[targets.positives] = True
    values = torch.zeros(3 * num_predictions, 5)
    values[targets.positives] = torch.cat((targets.offsets, targets.log_sizes, targets.scales[:, None]), dim=1)
    row, classes = targets.classes.nonzero(as_tuple=True)
    image = targets.positives[row] // num_predictions
    place = targets.positives[row] % num_predictions - part.start
    is_own = (place >= 0) & (place < part.stop - part.start)
    columns = (image, place // (height * width), place // width % height, place % width, classes)
    found = set(map(tuple, torch.stack(columns, dim=1)[is_own].tolist()))
    positive = is_positive.view(3, -1)[:, part].reshape(shape)
    return Dense(positive, values.view(3, -1, 5)[:, part].reshape(*shape, 5), found)


def test_box_targets_equal_the_authors(parity: ModuleType) -> None:
    maps, batch, stored = stored_maps(parity), ground_truth(parity), parity.load("orienmask_fpnplus_targets")
    places = places_of(maps)
    objects = assign_anchors(batch, map_sizes(maps.boxes), GIVEN)
    targets = box_targets(objects, 3, len(places.anchors), NUM_CLASSES, GIVEN)
    # The third image has no object: whatever its maps are, nothing there is ignored or positive.
    raw = flatten_predictions([torch.cat((level, level[:1])) for level in maps.boxes], NUM_ANCHORS)
    is_negative = objectness_negatives(raw, places, targets.positives, batch, 0.7)
    boxes = to_corners(decode_boxes(raw, places)).flatten(0, 1)[targets.positives]
    overlap = box_iou(boxes, to_corners(objects.boxes[targets.owners])).diag()
    iou = torch.zeros(raw.shape[:2]).index_put(
        (targets.positives // raw.shape[1], targets.positives % raw.shape[1]), overlap
    )
    for (scale, part), size in zip(slices(maps).items(), map_sizes(maps.boxes), strict=True):
        expected, found = stored[scale], dense_targets(targets, raw.shape[1], part, size)
        assert torch.equal(found.positive, expected["bbox_pos_mask"])
        assert torch.equal(is_negative[:, part].reshape(found.positive.shape), expected["bbox_neg_mask"])
        theirs = torch.cat((expected["txy"], expected["twh"], expected["bbox_pos_scale"][..., None]), dim=-1)
        torch.testing.assert_close(found.values, theirs, rtol=0, atol=1e-5)
        assert found.classes == set(map(tuple, expected["tcls"].tolist()))
        torch.testing.assert_close(iou[:, part].reshape(found.positive.shape), expected["tiou"], rtol=0, atol=1e-5)


def test_orientation_targets_equal_the_authors(parity: ModuleType) -> None:
    batch, stored = ground_truth(parity), parity.load("orienmask_fpnplus_targets")
    objects = assign_anchors(batch, [(SIDE // stride,) * 2 for stride in STRIDES], GIVEN)
    targets = orientation_targets(objects, batch, (SIDE, SIDE), 9, GIVEN)
    for level, scale in enumerate(SCALES):
        positive = torch.zeros(3, NUM_ANCHORS, SIDE, SIDE, dtype=torch.bool)
        negative, vectors = positive.clone(), torch.zeros(*positive.shape, 2)
        for pair in (targets.anchor // NUM_ANCHORS == level).nonzero().flatten().tolist():
            place = (targets.image[pair], targets.anchor[pair] % NUM_ANCHORS)
            positive[place], negative[place] = targets.is_positive[pair], targets.is_negative[pair]
            vectors[place] = targets.vectors[:, pair].permute(1, 2, 0)
        assert torch.equal(positive, parity.unpack(stored[scale]["orien_pos_mask"]))
        assert torch.equal(negative, parity.unpack(stored[scale]["orien_neg_mask"]))
        torch.testing.assert_close(vectors[positive | negative], stored[scale]["torien_valid"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained(parity: ModuleType, tmp_path_factory: pytest.TempPathFactory, model: OrienMask) -> OrienMask:
    """The authors' weights through the converter."""
    folder = tmp_path_factory.mktemp("orienmask")
    released, ours = folder / "orienmask_yolo.pth", folder / "orienmask.pth"
    torch.save({"state_dict": parity.state_dict("orienmask_fpnplus"), "config": {}}, released)
    assert convert_weights.main(["--input", str(released), "--output", str(ours)]) == 0
    load_weights(model, str(ours))
    return model


def test_the_model_has_the_papers_parameters(trained: OrienMask) -> None:
    assert sum(parameter.numel() for parameter in trained.parameters()) == 63_662_063


def test_converted_weights_give_the_authors_maps(parity: ModuleType, trained: OrienMask) -> None:
    image, expected = parity.load("orienmask_inputs")["image"], stored_maps(parity)
    with torch.no_grad():
        maps = trained.dense_outputs(image[:2].float())
    pairs = list(zip(maps.boxes, expected.boxes, strict=True))
    pairs += zip(maps.orientations.split(6, dim=1), expected.orientations.split(6, dim=1), strict=True)
    assert len(pairs) == 6
    for found, theirs in pairs:
        assert found.shape == theirs.shape
        assert float((found - theirs).abs().max()) <= 1e-3 * float(theirs.std())


def test_losses_and_gradients_equal_the_authors(parity: ModuleType, trained: OrienMask) -> None:
    stored, two = parity.load("orienmask_fpnplus_outputs"), stored_maps(parity)
    with torch.no_grad():
        third = trained.dense_outputs(parity.load("orienmask_inputs")["image"][2:].float())
    boxes = [torch.cat(pair).requires_grad_() for pair in zip(two.boxes, third.boxes, strict=True)]
    maps = OrienMaps(boxes, torch.cat((two.orientations, third.orientations)).requires_grad_())
    losses = trained.losses(maps, places_of(maps), ground_truth(parity))
    for name, value in losses.items():
        assert float(value.detach()) == pytest.approx(stored["loss_log"][f"cross_scale_{name}"], rel=1e-5), name
    total = torch.stack(list(losses.values())).sum()
    assert float(total.detach()) == pytest.approx(float(stored["loss"]), rel=1e-5)
    total.backward()
    assert maps.orientations.grad is not None
    orientations = maps.orientations.grad.split(6, dim=1)
    for level, scale in enumerate(SCALES):
        own = boxes[level].grad
        assert own is not None
        for found, theirs in (
            (own[:1], stored["grads"][scale]["bbox"]),
            (orientations[level][:1], stored["grads"][scale]["orien"]),
        ):
            assert float((found - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_loss_items_of_every_scale_equal_the_authors(parity: ModuleType, trained: OrienMask) -> None:
    """Scale by scale, by objects of that scale alone; the third image's maps add to the negatives only."""
    stored, maps, batch = parity.load("orienmask_fpnplus_outputs"), stored_maps(parity), ground_truth(parity)
    with torch.no_grad():
        third = trained.dense_outputs(parity.load("orienmask_inputs")["image"][2:].float())
    maps = OrienMaps(
        [torch.cat(pair) for pair in zip(maps.boxes, third.boxes, strict=True)],
        torch.cat((maps.orientations, third.orientations)),
    )
    anchors = assign_anchors(batch, map_sizes(maps.boxes), GIVEN).anchors
    scales = (anchors // NUM_ANCHORS).split([len(instances) for instances in batch])
    for level, scale in enumerate(("S08", "S16", "S32")):
        own = [instances[part == level] for instances, part in zip(batch, scales, strict=True)]
        losses = trained.losses(maps, places_of(maps), own)
        for name in set(losses) - {"loss_noobj"}:
            assert float(losses[name]) == pytest.approx(stored["loss_log"][f"{scale}_{name}"], rel=1e-5), (scale, name)


def check_detections(found: Any, masks: np.ndarray, expected: dict[str, Any], parity: ModuleType) -> None:
    assert len(found.scores) == len(expected["cls"]) == 100
    assert torch.equal(found.classes, expected["cls"])
    torch.testing.assert_close(found.boxes / SIDE, expected["bbox"][:, :4], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scores, expected["bbox"][:, 4], rtol=0, atol=1e-4)
    differing = (masks != parity.unpack(expected["mask_packed"]).numpy()).sum(axis=(1, 2))
    assert differing.max() <= 2


@pytest.mark.parametrize("image", [0, 1])
def test_detections_from_the_stored_maps_equal_the_authors(parity: ModuleType, model: OrienMask, image: int) -> None:
    maps = stored_maps(parity)
    raw = flatten_predictions(maps.boxes, NUM_ANCHORS)[image]
    found = suppress(select_candidates(raw, places_of(maps), (SIDE, SIDE), model.decode_rule), model.decode_rule)
    size = {"input_size": (SIDE, SIDE), "output_size": (SIDE, SIDE)}
    masks = orientation_masks(maps.orientations[image], model.anchors_px, found, **size, tau=0.6, budget_mb=64)
    check_detections(found, np.asarray(masks), parity.load("orienmask_fpnplus_outputs")["detections"][image], parity)


def test_inference_clips_boxes_after_the_masks_are_made(parity: ModuleType, model: OrienMask) -> None:
    maps = stored_maps(parity)
    inputs = [{"height": SIDE, "width": SIDE}] * 2
    results = model.inference(maps, places_of(maps), [(SIDE, SIDE)] * 2, inputs)
    for result, expected in zip(results, parity.load("orienmask_fpnplus_outputs")["detections"], strict=False):
        instances = result["instances"]
        boxes = (to_corners(expected["bbox"][:, :4]) * SIDE).clamp(0, SIDE)
        torch.testing.assert_close(instances.pred_boxes.tensor, boxes, rtol=0, atol=1e-4 * SIDE)
        theirs = parity.unpack(expected["mask_packed"]).numpy()
        assert (np.asarray(instances.pred_masks) != theirs).sum(axis=(1, 2)).max() <= 2
