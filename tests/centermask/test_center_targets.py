"""CenterNet's targets of a batch against the same written out object by object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from centermask import targets
from centermask.targets import collect_objects, heatmap_targets, image_numbers, peak_radii
from tests.centermask.center_oracle import boxes_to_instances, heatmap_of, list_objects, radius_of

NUM_CLASSES = 3
# Pixels and cells: the batch is padded at the right and the bottom of the second image.
SIZES, MAP_SIZE = [(120, 200), (97, 130), (120, 200)], (30, 50)


def random_batch(counts: tuple[int, int, int] = (9, 14, 0), seed: int = 0) -> list[Instances]:
    """Boxes of all sizes, some at the border; the last image has none."""
    rng = np.random.default_rng(seed)
    batch = []
    for count, (height, width) in zip(counts, SIZES, strict=True):
        corner = rng.uniform(-20, [width, height], (count, 2))
        boxes = np.concatenate((corner, corner + np.exp(rng.uniform(0, 5, (count, 2)))), axis=1)
        boxes = np.clip(boxes, 0, [width, height, width, height])
        batch.append(boxes_to_instances(boxes.tolist(), rng.integers(0, NUM_CLASSES, count).tolist(), (height, width)))
    return batch


def test_heatmaps_equal_the_oracle() -> None:
    batch = random_batch()
    objects, _ = collect_objects(batch, MAP_SIZE, 128)
    heatmap = heatmap_targets(objects, 3, NUM_CLASSES, MAP_SIZE)
    expected = np.stack([heatmap_of(list_objects(image, MAP_SIZE, 128), NUM_CLASSES, MAP_SIZE) for image in batch])
    torch.testing.assert_close(heatmap, torch.from_numpy(expected).float(), rtol=0, atol=1e-6)
    assert torch.equal(heatmap == 1, torch.from_numpy(expected == 1))
    assert not heatmap[2].any()


def test_heatmaps_made_in_small_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    objects, _ = collect_objects(random_batch(), MAP_SIZE, 128)
    whole = heatmap_targets(objects, 3, NUM_CLASSES, MAP_SIZE)
    monkeypatch.setattr(targets, "MAX_GAUSSIAN_PIXELS", 7)
    assert torch.equal(heatmap_targets(objects, 3, NUM_CLASSES, MAP_SIZE), whole)


@pytest.mark.parametrize("max_objects", [1, 4, 128])
def test_objects_equal_the_oracle(max_objects: int) -> None:
    batch = random_batch(seed=1)
    objects, left = collect_objects(batch, MAP_SIZE, max_objects)
    expected = [(i, *item) for i, image in enumerate(batch) for item in list_objects(image, MAP_SIZE, max_objects)]
    assert objects.images.tolist() == [image for image, *_ in expected]
    assert objects.classes.tolist() == [class_index for _, class_index, *_ in expected]
    assert objects.cells.tolist() == [[x, y] for *_, x, y in expected]
    boxes = np.array([box for _, _, box, _, _ in expected])
    np.testing.assert_allclose(objects.boxes, boxes, atol=1e-5)
    np.testing.assert_allclose(objects.sizes, boxes[:, 2:] - boxes[:, :2], atol=1e-5)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(objects.offsets, centers - np.floor(centers), atol=1e-5)
    assert ((objects.offsets >= 0) & (objects.offsets < 1)).all()
    # `order` says which ground truth an object is.
    assert torch.equal(torch.cat([image.gt_classes for image in batch])[objects.order], objects.classes)
    assert torch.equal(image_numbers(batch, objects.order.device)[objects.order], objects.images)
    num_solid = sum(len(list_objects(image, MAP_SIZE, 128)) for image in batch)
    assert left == (sum(map(len, batch)) - num_solid, num_solid - len(objects.cells))


def test_the_first_objects_with_an_extent_are_kept_and_the_others_counted() -> None:
    good, beside_the_map = [8.0, 8.0, 40.0, 24.0], [197.0, 8.0, 200.0, 24.0]
    boxes = [beside_the_map, good, beside_the_map, good, good]
    batch = [boxes_to_instances(boxes, [0, 1, 2, 0, 1], SIZES[0]), boxes_to_instances([good], [2], SIZES[0])]
    objects, left = collect_objects(batch, MAP_SIZE, 2)
    assert objects.order.tolist() == [1, 3, 5]
    assert objects.images.tolist() == [0, 0, 1]
    assert left == (2, 1)


def test_an_object_of_one_pixel_is_its_peak_alone() -> None:
    batch = [boxes_to_instances([[101, 57, 102, 58]], [1], SIZES[0])]
    objects, left = collect_objects(batch, MAP_SIZE, 128)
    heatmap = heatmap_targets(objects, 1, NUM_CLASSES, MAP_SIZE)
    assert heatmap.nonzero().tolist() == [[0, 1, 14, 25]]
    assert heatmap[0, 1, 14, 25] == 1
    assert objects.sizes.tolist() == [[0.25, 0.25]]
    assert left == (0, 0)


def test_two_objects_with_one_cell_and_class_share_a_peak_and_keep_their_sizes() -> None:
    boxes = [[80, 40, 100, 60], [60, 30, 121, 71]]
    objects, _ = collect_objects([boxes_to_instances(boxes, [2, 2], SIZES[0])], MAP_SIZE, 128)
    heatmap = heatmap_targets(objects, 1, NUM_CLASSES, MAP_SIZE)
    assert objects.cells.tolist() == [[22, 12], [22, 12]]
    assert int((heatmap == 1).sum()) == 1
    assert objects.sizes.tolist() == [[5.0, 5.0], [15.25, 10.25]]
    # Around the peak the wider Gaussian, whichever object comes first.
    flipped, _ = collect_objects([boxes_to_instances(boxes[::-1], [2, 2], SIZES[0])], MAP_SIZE, 128)
    assert torch.equal(heatmap, heatmap_targets(flipped, 1, NUM_CLASSES, MAP_SIZE))


def test_a_batch_without_objects_has_empty_targets() -> None:
    objects, left = collect_objects(random_batch((0, 0, 0)), MAP_SIZE, 128)
    assert [len(column) for column in objects] == [0] * 5
    assert not heatmap_targets(objects, 3, NUM_CLASSES, MAP_SIZE).any()
    assert left == (0, 0)


def test_radii_equal_the_oracle() -> None:
    sizes = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 127 + 0.2
    expected = [radius_of(*np.ceil(size.numpy()[::-1]).astype(float)) for size in sizes]
    assert peak_radii(sizes).tolist() == expected
    assert len(set(expected)) > 10
