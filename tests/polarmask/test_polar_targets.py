"""PolarMask's targets of a batch against an oracle that goes through images, locations and objects one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from polarmask.losses import polar_centerness
from polarmask.rays import NO_HIT_PX
from polarmask.targets import TargetRule, polar_targets
from segzoo.geometry.components import largest_parts
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.runs import find_runs
from segzoo.modeling.fcos.assign import assign_batch
from segzoo.modeling.fcos.locations import Locations, compute_locations
from tests.polarmask.casting import cast_rays

pytestmark = pytest.mark.usefixtures("both_ways")

NUM_CLASSES, SIZES, RADIUS = 5, [16, 32, 64], 1.5
CPU = torch.device("cpu")


def make_instances(masks: torch.Tensor, classes: list[int]) -> Instances:
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_boxes = Boxes(mask_boxes(masks))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    return instances


def ellipse(size: tuple[int, int], center: tuple[float, float], radii: tuple[float, float]) -> torch.Tensor:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return torch.from_numpy(((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1)


def pyramid(size: tuple[int, int]) -> Locations:
    strides = [4, 8, 16, 32]
    return compute_locations([(-(-size[0] // s), -(-size[1] // s)) for s in strides], strides, CPU)


def targets_of(locations: Locations, batch: list[Instances], num_rays: int = 36, sizes=SIZES, **options):
    return polar_targets(locations, batch, NUM_CLASSES, TargetRule(num_rays, sizes, RADIUS, **options))


def owner_of(locations: Locations, index: int, instances: Instances, centers: list[list[float]]) -> int:
    """The ground truth of one location by the words of SPEC: centre square, inside the box, level, smallest area."""
    x, y = locations.points_px[index].tolist()
    limits = [-1, *SIZES, float("inf")]
    level = int(locations.levels[index])
    best, best_area = -1, float("inf")
    for m, (x0, y0, x1, y1) in enumerate(instances.gt_boxes.tensor.tolist()):
        half = RADIUS * float(locations.strides_px[index])
        distances = (x - x0, y - y0, x1 - x, y1 - y)
        if min(distances) <= 0 or abs(x - centers[m][0]) >= half or abs(y - centers[m][1]) >= half:
            continue
        if not limits[level] <= max(distances) <= limits[level + 1]:
            continue
        area = (x1 - x0) * (y1 - y0)
        if area < best_area:
            best, best_area = m, area
    return best


@pytest.fixture
def batch() -> list[Instances]:
    size = (96, 128)
    crowded = torch.stack(
        [
            ellipse(size, (40, 40), (30, 22)),
            ellipse(size, (46, 44), (14, 10)),
            ellipse(size, (100, 60), (20, 30)),
            ellipse(size, (100.5, 60), (20, 30)),
            ellipse(size, (8, 88), (5, 5)),
        ]
    )
    empty = torch.zeros(0, *size, dtype=torch.bool)
    small_image = torch.stack([ellipse((64, 80), (30, 30), (9, 17))])
    return [make_instances(crowded, [0, 1, 2, 3, 4]), make_instances(empty, []), make_instances(small_image, [2])]


def test_polar_targets_equal_the_oracle_location_by_location(batch: list[Instances]) -> None:
    locations = pyramid((96, 128))
    targets = targets_of(locations, batch)
    num_locations, found = len(locations.points_px), []
    for image, instances in enumerate(batch):
        centers = largest_parts(find_runs(instances.gt_masks.tensor), len(instances)).centers_px.tolist()
        for index in range(num_locations):
            owner = owner_of(locations, index, instances, centers)
            expected = NUM_CLASSES if owner < 0 else int(instances.gt_classes[owner])
            assert int(targets.classes[image * num_locations + index]) == expected
            if owner >= 0:
                found.append((image * num_locations + index, image, index, owner))
    assert targets.positives.tolist() == [row[0] for row in found]
    assert len({(image, owner) for _, image, _, owner in found}) >= 5
    for row, (_, image, index, owner) in enumerate(found):
        point = locations.points_px[index : index + 1]
        mask = batch[image].gt_masks.tensor[owner : owner + 1]
        torch.testing.assert_close(targets.rays_px[row], cast_rays(find_runs(mask), point, torch.tensor([0]), 36)[0])
        x, y = point[0].tolist()
        x0, y0, x1, y1 = batch[image].gt_boxes.tensor[owner].tolist()
        assert targets.box_distances_px[row].tolist() == pytest.approx([x - x0, y - y0, x1 - x, y1 - y])


def test_polar_targets_of_a_batch_without_objects_are_background_only() -> None:
    empty = make_instances(torch.zeros(0, 96, 128, dtype=torch.bool), [])
    targets = targets_of(pyramid((96, 128)), [empty, empty])
    assert (targets.classes == NUM_CLASSES).all()
    assert targets.rays_px.shape == (0, 36)
    assert targets.box_distances_px.shape == (0, 4)


@pytest.mark.parametrize("height", [1, 12])
def test_polar_targets_of_one_pixel_wide_masks_are_finite(height: int) -> None:
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[0, 20 : 20 + height, 14] = True
    targets = targets_of(compute_locations([(96, 128)], [1], CPU), [make_instances(mask, [1])])
    assert len(targets.positives) >= 1
    assert (targets.rays_px > 0).all()
    assert torch.isfinite(targets.rays_px).all()
    assert torch.isfinite(polar_centerness(targets.rays_px)).all()


def test_polar_targets_in_parts_follow_the_largest_part_or_all() -> None:
    mask = ellipse((96, 128), (40, 40), (20, 20)) | ellipse((96, 128), (100, 40), (6, 6))
    locations = compute_locations([(12, 16)], [8], CPU)
    reach = {}
    for parts in ("largest", "all"):
        targets = targets_of(locations, [make_instances(mask[None], [0])], num_rays=4, sizes=[], parts=parts)
        points = locations.points_px[targets.positives]
        reach[parts] = (points[:, 0] + targets.rays_px[:, 1]).amax()
    assert float(reach["largest"]) == pytest.approx(60, abs=1)
    assert float(reach["all"]) == pytest.approx(106, abs=1)


def test_polar_targets_sample_around_the_mass_or_the_box_centre() -> None:
    # A mass in the upper left of its box.
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[0, 8:40, 8:40] = mask[0, 40:88, 8:16] = mask[0, 8:16, 40:120] = True
    locations = compute_locations([(24, 32)], [4], CPU)
    for center, expected in (("mass", largest_parts(find_runs(mask), 1).centers_px[0]), ("box", (64.0, 48.0))):
        targets = targets_of(locations, [make_instances(mask, [0])], sizes=[], center=center)
        points = locations.points_px[targets.positives]
        assert len(points) >= 4
        assert ((points - torch.as_tensor(expected)).abs() < RADIUS * 4).all()


@pytest.mark.parametrize("is_official", [False, True])
def test_polar_targets_without_a_radius_take_all_of_the_box(batch: list[Instances], is_official: bool) -> None:
    locations, counts = pyramid((96, 128)), [len(instances) for instances in batch]
    targets = polar_targets(locations, batch, NUM_CLASSES, TargetRule(36, SIZES, 0.0, is_official=is_official))
    last_pixel = torch.tensor([0.0, 0, 1, 1]) * is_official
    boxes = torch.cat([instances.gt_boxes.tensor for instances in batch])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    matched = assign_batch(locations, SIZES, boxes - last_pixel, counts, gt_areas=areas)
    assert torch.equal(targets.positives, (matched >= 0).nonzero().squeeze(1))
    assert len(targets.positives) > len(targets_of(locations, batch, is_official=is_official).positives) > 0


def test_official_polar_targets_have_boxes_that_end_at_the_last_pixel() -> None:
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[0, 10:41, 20:61] = True
    locations = compute_locations([(12, 16)], [8], CPU)
    point = locations.points_px[targets_of(locations, [make_instances(mask, [0])], sizes=[]).positives[0]]
    for is_official, corners in ((False, (20, 10, 61, 41)), (True, (20, 10, 60, 40))):
        targets = targets_of(locations, [make_instances(mask, [0])], sizes=[], is_official=is_official)
        x, y = point.tolist()
        expected = [x - corners[0], y - corners[1], corners[2] - x, corners[3] - y]
        assert targets.box_distances_px[0].tolist() == expected


def test_polar_targets_of_a_ring_look_through_its_hole() -> None:
    mask = ellipse((96, 128), (60, 48), (30, 30)) & ~ellipse((96, 128), (60, 48), (20, 20))
    locations = compute_locations([(12, 16)], [8], CPU)
    targets = targets_of(locations, [make_instances(mask[None], [3])], sizes=[])
    from_center = (locations.points_px[targets.positives] - torch.tensor([60.0, 48.0])).norm(dim=1)
    assert (targets.rays_px.amin(dim=1) >= 30 - from_center - 1).all()


def test_polar_targets_of_specks_that_no_ray_meets_are_background() -> None:
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    # The largest part is one pixel of three; 9 rays seen from a few pixels beside it may miss it.
    mask[0, 20, 30] = mask[0, 60, 30] = mask[0, 20, 90] = True
    locations = compute_locations([(24, 32)], [4], CPU)
    near = ((locations.points_px - torch.tensor([30.5, 20.5])).abs() < 6).all(dim=1)
    inside = (locations.points_px > torch.tensor([30.0, 20.0])).all(dim=1)
    candidates = (near & inside).nonzero().squeeze(1)
    part = find_runs(mask).select(torch.tensor([0]))
    rays = cast_rays(part, locations.points_px[candidates], torch.zeros_like(candidates), 9)
    is_blind = rays.amax(dim=1) <= NO_HIT_PX
    assert is_blind.any()
    assert not is_blind.all()
    targets = targets_of(locations, [make_instances(mask, [1])], num_rays=9, sizes=[])
    assert targets.positives.tolist() == candidates[~is_blind].tolist()
    assert len(targets.box_distances_px) == len(targets.positives) == int((targets.classes == 1).sum())


@pytest.mark.parametrize("is_official", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_case_29_polar_targets_are_the_same_on_every_device(
    batch: list[Instances], device: str, is_official: bool
) -> None:
    twins = make_instances(batch[0].gt_masks.tensor[[0, 0, 1, 1]], [4, 3, 2, 1])
    expected = targets_of(pyramid((96, 128)), [twins, *batch], is_official=is_official)
    locations = pyramid((96, 128)).to(device)
    found = targets_of(locations, [instances.to(device) for instances in [twins, *batch]], is_official=is_official)
    assert torch.equal(found.classes.cpu(), expected.classes)
    assert torch.equal(found.positives.cpu(), expected.positives)
    torch.testing.assert_close(found.rays_px.cpu(), expected.rays_px, rtol=1e-5, atol=1e-3)
    # Of twins the first one in the list has the locations.
    own = set(expected.classes[: len(locations.levels)].tolist())
    assert own == {4, 2, NUM_CLASSES}
