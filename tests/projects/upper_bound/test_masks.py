"""Masks there and back: cases whose result is known, and slow oracles of what no method's own tests cover."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from projects import get_cfg
from projects.upper_bound import inputs
from projects.upper_bound.choice import METHODS, RAYS, SHAPE_SIZES, choose_groups
from projects.upper_bound.cut_maps import BINARY, BOX_MASK_SIZE, BoxMaskGroup, CutMapGroup
from projects.upper_bound.inputs import (
    CENTERED,
    SHORTEST_EDGE,
    WARPED,
    MaskList,
    draw_in_chunks,
    draw_objects,
    network_input,
)
from projects.upper_bound.orientation import ALONE, RELEASED, SHARED, WRITTEN, OrientationGroup
from projects.upper_bound.polar import PolarGroup
from projects.upper_bound.rows import Group
from projects.upper_bound.shapes import (
    BOTH,
    SALIENCY,
    SHAPE,
    ShapeGroup,
    cell_weights,
    logits_alone,
    perfect_saliency,
    root_logits,
    shape_shares,
)
from segzoo.config import merge_config
from segzoo.data.augmentation import build_resize
from segzoo.errors import ConfigError
from segzoo.geometry.rle import RLEMasks, encode_masks
from tests.projects.upper_bound.drawn import SIZE, blobs, disc, image_of, ious_of, rectangle


def results(group: Group, masks: list[np.ndarray], categories: list[int] | None = None) -> dict[str, list[float]]:
    """IoU of every object by the title of the row."""
    found = group.masks(image_of(masks, categories or []))
    return {row.title: ious_of(one.rles, masks) for row, one in zip(group.rows, found, strict=True)}


@pytest.mark.parametrize("rays", [8, 12, 36])
def test_polygon_of_a_disc_has_the_area_that_geometry_says(rays: int) -> None:
    # A regular polygon in a circle covers n / (2 pi) sin(2 pi / n) of it.
    expected = rays / (2 * math.pi) * math.sin(2 * math.pi / rays)
    ious = results(PolarGroup([rays]), [disc((160.0, 120.0), 110.0)])
    for title, (iou,) in ious.items():
        # The edge is 690 px long, in 38,000 px: a quarter of a pixel along it is 0.5 %.
        assert iou == pytest.approx(expected, abs=0.007), title


def test_four_rays_cut_a_square_in_half() -> None:
    # They meet its sides in the middle.
    (iou,) = results(PolarGroup([4]), [rectangle(100, 60, 120, 120)])["4 rays, mass centre, largest part"]
    assert iou == pytest.approx(0.5, abs=0.01)


def test_mass_centre_sees_more_of_a_bent_object_and_all_parts_more_of_a_torn_one() -> None:
    bent = rectangle(40, 40, 180, 30) | rectangle(40, 40, 30, 160)
    ious = results(PolarGroup([72]), [bent])
    assert ious["72 rays, mass centre, largest part"][0] != ious["72 rays, box centre, largest part"][0]
    torn = disc((160, 120), 60)
    torn[:, 190:196] = False
    ious = results(PolarGroup([72]), [torn])
    assert ious["72 rays, mass centre, all parts"][0] > ious["72 rays, mass centre, largest part"][0] + 0.05


def test_cell_weights_and_shares_equal_the_slow_oracle() -> None:
    masks = torch.from_numpy(np.stack(blobs(3, seed=2)))
    boxes = torch.tensor([[10.0, 20.0, 141.0, 97.0], [0.0, 0.0, 7.0, 5.0], [30.0, 11.0, 62.0, 43.0]])
    side, fine = 16, 5
    found = shape_shares(masks, boxes, side)
    for mask, (x0, y0, x1, y1), share in zip(masks.numpy(), boxes.int().tolist(), found.numpy(), strict=True):
        crop = mask[y0:y1, x0:x1].astype(float)
        # Each pixel becomes side x side equal ones, of which every cell then holds a whole number.
        many = np.kron(crop, np.ones((side, side)))
        expected = many.reshape(side, y1 - y0, side, x1 - x0).mean(axis=(1, 3))
        np.testing.assert_allclose(share, expected, atol=1e-5)
    np.testing.assert_allclose(cell_weights(fine, side).sum(dim=1).numpy(), 1.0, atol=1e-6)


def test_a_shape_with_a_cell_a_pixel_gives_the_mask_back() -> None:
    mask = disc((116, 116), 16) & ~disc((112, 112), 6)
    height, width = (int(mask.any(axis=axis).sum()) for axis in (1, 0))
    assert height == width
    (iou,) = results(ShapeGroup([width], None), [mask])[f"S = {width}, {SHAPE}"]
    assert iou == 1.0


def test_half_a_cell_lies_on_the_threshold_alone_and_in_the_product() -> None:
    threshold = get_cfg().MODEL.CENTERMASK.MASK_THRESH
    half = torch.tensor([0.5])
    plain, moved = (logits.sigmoid().item() for logits in logits_alone(half))
    assert (plain, moved) == (pytest.approx(0.5), pytest.approx(threshold))
    assert root_logits(half).sigmoid().item() ** 2 == pytest.approx(threshold)
    inside, outside = (root_logits(torch.tensor([share])).sigmoid().item() for share in (1.0, 0.0))
    # A network's probabilities end somewhere, far beyond the threshold.
    assert inside**2 > 0.99
    assert inside * outside < 0.1


def test_saliency_alone_holds_both_of_a_class_and_shapes_tell_them_apart() -> None:
    ring = disc((160, 120), 90) & ~disc((160, 120), 60)
    inner = disc((160, 120), 40)
    same = results(ShapeGroup([48], None), [ring, inner], [3, 3])
    other = results(ShapeGroup([48], None), [ring, inner], [3, 7])
    assert same[SALIENCY][0] < 0.8
    assert other[SALIENCY][0] > 0.9
    assert other[f"S = 48, {SHAPE}"][0] < other[f"S = 48, {BOTH}"][0]
    assert same[f"S = 48, {BOTH}"][0] > 0.9
    # What shapes alone give does not depend on classes.
    assert same[f"S = 48, {SHAPE}"] == other[f"S = 48, {SHAPE}"]


def test_saliency_does_not_depend_on_the_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(blobs(9, seed=3), [3, 7, 3, 3, 7, 3, 7, 3, 3])
    inner, channels = network_input(SIZE, CENTERED), torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 0])
    whole = perfect_saliency(image, inner, channels)
    monkeypatch.setattr(inputs, "CHUNK_PIXELS", 1)
    assert len(list(draw_in_chunks(image, inner))) == 9
    torch.testing.assert_close(perfect_saliency(image, inner, channels), whole)


def test_a_map_cut_by_the_box_never_leaves_it() -> None:
    mask = rectangle(80, 60, 40, 80)
    found = CutMapGroup(None).masks(image_of([mask]))[0]
    pixels = coco_mask.decode(found.rles[0]).astype(bool)
    assert not (pixels & ~mask).any()
    # Sides on borders of cells come back; corners are rounded.
    assert ious_of(found.rles, [mask])[0] > 0.99


def test_a_box_of_28_pixels_gives_its_mask_back() -> None:
    mask = rectangle(40, 60, 28, 28) & ~disc((48, 66), 5)
    assert BOX_MASK_SIZE == 28
    for ious in results(BoxMaskGroup(None), [mask]).values():
        assert ious == [1.0]


def test_box_masks_of_shares_hold_more_of_large_objects_than_binary_ones() -> None:
    title = "28 x 28 mask in the box"
    ious = results(BoxMaskGroup(None), [disc((160, 120), 100), disc((100, 100), 60) | rectangle(90, 90, 150, 20)])
    for best, binary in zip(ious[title], ious[f"{title}, {BINARY}"], strict=True):
        assert best > binary + 0.01
        assert best > 0.99
    assert [row.is_method for row in BoxMaskGroup(None).rows] == [True, False]


def test_a_list_keeps_the_best_of_what_is_offered() -> None:
    masks = [disc((60, 60), 30), rectangle(100, 100, 40, 20)]
    image, found, other = image_of(masks), MaskList(image_of(masks)), MaskList(image_of(masks))
    half = rectangle(100, 100, 20, 20)
    found.offer(torch.tensor([1]), RLEMasks(encode_masks(half[None]), SIZE))
    assert found.ious.tolist() == [0.0, pytest.approx(0.5)]
    # Nothing in common is no better than nothing.
    found.offer(torch.tensor([0]), RLEMasks(encode_masks(half[None]), SIZE))
    assert coco_mask.area(found.rles[0]) == 0
    other.offer(
        torch.tensor([0, 1]), RLEMasks([image.rles[0], encode_masks(rectangle(100, 100, 9, 20)[None])[0]], SIZE)
    )
    found.offer_all(other)
    assert found.ious.tolist() == [1.0, pytest.approx(0.5)]
    assert ious_of(found.rles, masks) == found.ious.tolist()


@pytest.mark.parametrize("is_recipe", [True, False])
def test_no_object_loses_by_what_a_representation_may_say_more(is_recipe: bool) -> None:
    masks = blobs(8, seed=8)
    image = image_of(masks, [3, 7, 3, 3, 7, 3, 7, 3])
    centered, warped, edge = (resize if is_recipe else None for resize in (CENTERED, WARPED, SHORTEST_EDGE))

    def ious(group: Group) -> dict[str, np.ndarray]:
        return {row.title: one.ious for row, one in zip(group.rows, group.masks(image), strict=True)}

    shapes, maps, boxes = ious(ShapeGroup([16, 32], centered)), ious(OrientationGroup(warped)), ious(BoxMaskGroup(edge))
    for side in (16, 32):
        assert (shapes[f"S = {side}, {BOTH}"] >= shapes[f"S = {side}, {SHAPE}"]).all()
        assert (shapes[f"S = {side}, {BOTH}"] >= shapes[SALIENCY]).all()
    assert (maps[ALONE] >= maps[SHARED]).all()
    assert (maps[SHARED] >= maps[WRITTEN]).all()
    title = "28 x 28 mask in the box"
    assert (boxes[title] >= boxes[f"{title}, {BINARY}"]).all()


@pytest.mark.parametrize("is_recipe", [True, False])
def test_every_group_gives_a_mask_of_the_image_to_every_object(is_recipe: bool) -> None:
    speck = np.zeros(SIZE, bool)
    speck[-1, -1] = True
    masks = [*blobs(6, seed=4), np.ones(SIZE, bool), speck]
    image = image_of(masks, [3, 7, 3, 3, 7, 3, 7, 3])
    for group in choose_groups(METHODS, [18, 36], [24, 32], is_recipe=is_recipe):
        found = group.masks(image)
        assert len(found) == len(group.rows)
        for row, one in zip(group.rows, found, strict=True):
            assert {tuple(rle["size"]) for rle in one.rles} == {SIZE}, row.name
            assert len(one.rles) == len(masks)
            assert np.mean(ious_of(one.rles, masks)) > 0.5, row.name


def test_objects_without_a_pixel_in_the_input_come_back_empty() -> None:
    # 1600 x 1600 pixels warped to 544 x 544: only a third of the columns is looked at.
    size = (1600, 1600)
    masks = [rectangle(column, 700, 1, 200, size) for column in range(800, 806)]
    image, inner = image_of(masks), network_input(size, WARPED)
    kept = draw_objects(image, inner).places.tolist()
    assert 0 < len(kept) < len(masks)
    shared = OrientationGroup(WARPED, ((SHARED, RELEASED),)).masks(image)[0]
    areas = np.array([coco_mask.area(rle) for rle in shared.rles])
    assert (areas[[place for place in range(6) if place not in kept]] == 0).all()


@pytest.mark.parametrize(
    ("config", "resize"),
    [
        ("fcosis_R50", SHORTEST_EDGE),
        ("maskfcos_R50", SHORTEST_EDGE),
        ("mask_rcnn_R50", SHORTEST_EDGE),
        ("orienmask_D53", WARPED),
        ("centermask_DLA34", CENTERED),
    ],
)
@pytest.mark.parametrize("image_size", [(480, 640), (641, 333), (100, 2000)])
def test_inputs_are_those_of_the_recipes(config: str, resize, image_size: tuple[int, int], repository: Path) -> None:
    cfg = merge_config(get_cfg(), str(repository / "configs" / f"{config}.yaml"))
    theirs, ours = (network_input(image_size, one) for one in (build_resize(cfg, is_train=False), resize))
    assert theirs[1:] == ours[1:]
    point = np.array([[10.0, 20.0], [300.0, 90.0]])
    np.testing.assert_allclose(theirs.transforms.apply_coords(point), ours.transforms.apply_coords(point))


def test_numbers_that_cannot_work_are_refused_by_name() -> None:
    for rays, sizes, message in (([2], [32], "--rays is 2"), ([36], [0], "--shape-sizes is 0")):
        with pytest.raises(ConfigError, match=message):
            choose_groups(METHODS, rays, sizes, is_recipe=True)
    rows = [row for group in choose_groups(METHODS, RAYS, SHAPE_SIZES, is_recipe=True) for row in group.rows]
    assert len({row.name for row in rows}) == len(rows)
    assert {row.input for row in rows} == {
        "the image's own size",
        "512 x 512, centred",
        "544 x 544, warped",
        "800/1333",
    }
