"""OrienMask's maps there and back: a slow oracle, its own decoding, and cases whose result is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from orienmask.decode import Detections, orientation_masks
from orienmask.orientation import orientation_targets
from projects import get_cfg
from projects.upper_bound.inputs import WARPED, draw_objects, network_input
from projects.upper_bound.orientation import (
    ALONE,
    ANCHORS,
    RELEASED,
    SETTINGS,
    SHARED,
    WRITTEN,
    OrientationGroup,
    Painting,
    assign,
    stride_4_maps,
)
from segzoo.config import merge_config
from tests.projects.upper_bound.drawn import SIZE, blobs, disc, image_of, ious_of

ONE = ((SHARED, RELEASED),)


def results(group: OrientationGroup, masks: list[np.ndarray]) -> dict[str, list[float]]:
    """IoU of every object by the title of the row."""
    found = group.masks(image_of(masks))
    return {row.title: ious_of(one.rles, masks) for row, one in zip(group.rows, found, strict=True)}


def painting_of(masks: list[np.ndarray]) -> Painting:
    inner = network_input(masks[0].shape, None)
    return assign(draw_objects(image_of(masks), inner).masks, inner, RELEASED)


def test_stride_4_maps_equal_the_slow_oracle() -> None:
    size = (96, 128)
    painting = painting_of([disc((50, 40), 20, size), disc((60, 50), 14, size), disc((100, 70), 8, size)])
    num_anchors = len(painting.rule.anchors_px)
    targets = orientation_targets(painting.objects, [painting.instances], size, num_anchors, painting.rule)
    expected = np.zeros((num_anchors, 2, size[0] // 4, size[1] // 4))
    for pair, anchor in enumerate(targets.anchor.tolist()):
        has_target = (targets.is_positive | targets.is_negative)[pair].numpy()
        for row, column in np.ndindex(size[0] // 4, size[1] // 4):
            cell = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            if has_target[cell].any():
                vectors = targets.vectors[:, pair].numpy()[:, *cell][:, has_target[cell]]
                expected[anchor, :, row, column] = vectors.mean(axis=1)
    found = stride_4_maps(targets, num_anchors)
    np.testing.assert_allclose(found.view(-1, 2, *found.shape[1:]).numpy(), expected, atol=1e-5)


def test_masks_of_several_taus_are_those_of_one_at_a_time() -> None:
    painting = painting_of(blobs(5, seed=5))
    objects, maps, taus = painting.objects, painting.written_maps(), (0.4, 0.6, 0.8)
    found = painting.read(maps, taus)
    detections = Detections(objects.boxes, objects.base_px("box"), torch.ones(5), objects.classes, objects.anchors)
    for tau, masks in zip(taus, found, strict=True):
        anchors_px = torch.tensor(painting.rule.anchors_px).float()
        sizes = {"input_size": SIZE, "output_size": SIZE}
        own = orientation_masks(maps, anchors_px, detections, **sizes, tau=tau, budget_mb=64.0)
        assert own.rles == masks.rles
    assert found[0].rles != found[1].rles


def test_fitted_maps_have_half_a_cell_on_the_edge_whatever_tau() -> None:
    # Its right side cuts cells of the map in half, far from other sides.
    mask = np.zeros((128, 128), bool)
    mask[32:96, 32:94] = True
    painting = painting_of([mask])
    areas = {tau: painting.read(*painting.fitted_maps([tau]), [tau])[0] for tau in (0.4, 0.6, 0.8)}
    for tau, masks in areas.items():
        assert ious_of(masks.rles, [mask])[0] > 0.97, tau


def test_small_objects_are_too_small_as_their_targets_are_written_and_not_fitted() -> None:
    masks = [disc((40 + 60 * column, 40 + 60 * row), 6 + column) for row in range(3) for column in range(4)]
    ious = results(OrientationGroup(None, ONE), masks)
    painting = painting_of(masks)
    (written,) = painting.read(painting.written_maps(), [RELEASED.tau])
    areas = np.array([mask.sum() for mask in masks])[painting.objects.order.numpy()]
    from pycocotools import mask as coco_mask

    assert (coco_mask.area(written.rles) < 0.95 * areas).all()
    assert np.mean(ious[SHARED]) > np.mean(ious[WRITTEN]) + 0.05


def test_objects_of_one_anchor_that_overlap_lose_pixels_that_they_have_alone() -> None:
    first, second = disc((150, 120), 50), disc((185, 120), 52)
    ious = results(OrientationGroup(None, ONE), [first, second])
    assert min(ious[ALONE]) > 0.93
    # The smaller one is painted last and keeps what both have.
    assert ious[SHARED][1] < ious[ALONE][1] - 0.1
    apart = results(OrientationGroup(None, ONE), [disc((80, 120), 50), disc((240, 120), 52)])
    np.testing.assert_allclose(apart[SHARED], apart[ALONE], atol=0.01)


def test_masks_belong_to_the_objects_they_are_named_for() -> None:
    masks = [disc((50, 60), 12), disc((200, 120), 70), disc((60, 180), 30)]
    inner = network_input(SIZE, WARPED)
    painting = assign(draw_objects(image_of(masks), inner).masks, inner, RELEASED)
    order = painting.objects.order.tolist()
    assert order == [1, 2, 0]
    (found,) = painting.read(painting.written_maps(), [RELEASED.tau])
    for place, rle in zip(order, found.rles, strict=True):
        assert ious_of([rle], [masks[place]])[0] > 0.8
    for ious in results(OrientationGroup(WARPED), masks).values():
        assert min(ious) > 0.8


def test_every_setting_of_the_papers_tables_is_a_row_of_its_own() -> None:
    settings = list(SETTINGS.values())
    assert {one.tau for one in settings} == {0.4, 0.5, 0.6, 0.7, 0.8}
    assert {one.expand_ratio for one in settings} == {1.0, 1.2, 1.4, 1.6}
    assert {one.base for one in settings} == {"box", "grid"}
    assert {one.anchors for one in settings} == {"YOLOv3", "YOLOv4"}
    for one in settings:
        assert sum(value != released for value, released in zip(one, RELEASED, strict=True)) <= 1
    rows = OrientationGroup(None).rows
    assert [row.title for row in rows if not row.is_method] == [WRITTEN, ALONE]
    masks = blobs(7, seed=7)
    ious = results(OrientationGroup(WARPED), masks)
    # Fitted to tau and whatever r, most objects come back alike: only what all objects of an image feel is compared.
    for title, setting in SETTINGS.items():
        is_felt = setting.base != RELEASED.base or setting.anchors != RELEASED.anchors or setting.tau in (0.4, 0.8)
        assert ious[title] != ious[SHARED] or not is_felt, title


@pytest.mark.parametrize(
    ("config", "anchors", "base"), [("orienmask_D53", "YOLOv4", "box"), ("orienmask_D53_base", "YOLOv3", "grid")]
)
def test_settings_are_those_of_the_recipes(config: str, anchors: str, base: str, repository: Path) -> None:
    node = merge_config(get_cfg(), str(repository / "configs" / f"{config}.yaml")).MODEL.ORIENMASK
    setting = RELEASED._replace(anchors=anchors, base=base)
    assert [list(anchor) for anchor in node.ANCHORS] == ANCHORS[anchors]
    assert (base, setting.expand_ratio, setting.tau) == (node.BASE_POSITION, node.EXPAND_RATIO, node.TAU)
    assert setting.rule().overlap_order == node.OVERLAP_ORDER
