"""Pictures of orientation maps: what they show is checked at pixels and end points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from orienmask.maps import OrienMaps
from orienmask.pictures import (
    GREEN,
    RED,
    YELLOW,
    decode_view,
    draw_areas,
    draw_regions,
    map_pictures,
    target_pictures,
    target_views,
)
from orienmask.targets import TargetRule, assign_anchors
from projects.OrienMask.draw_maps import RULE as SHEET_RULE
from projects.OrienMask.draw_maps import crop_target, draw_sheet, main
from segzoo.data.image_io import read_image
from segzoo.data.scenes.samples import scene_sample
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError
from segzoo.visualization import vector_colors
from tests.contract.toys import ellipse, make_input, toy_config
from tests.orienmask.objects import RULE, blob, instances_of

SIZE = (288, 352)
TAU = 0.6


@pytest.fixture
def image() -> np.ndarray:
    return np.full((*SIZE, 3), 90, dtype=np.uint8)


def one_blob() -> Instances:
    """A blob of some 100 px whose box is not symmetric in the image."""
    return instances_of([blob(SIZE, (120, 160), 50)], SIZE)


@pytest.mark.parametrize("base_position", ["box", "grid"])
def test_target_views_point_from_the_mask_to_the_base_and_from_the_rest_away(base_position: str) -> None:
    instances = one_blob()
    (target,) = target_views(instances, RULE._replace(base_position=base_position))
    vectors, base = target.view.vectors_px, target.view.areas.base_px[0].numpy()
    if base_position == "box":
        left, top, right, bottom = instances.gt_boxes.tensor[0].tolist()
        assert base.tolist() == [(left + right) / 2, (top + bottom) / 2]
    rows, columns = np.nonzero(target.is_positive)
    assert np.array_equal(target.is_positive, instances.gt_masks.tensor[0].numpy())
    ends = vectors[:, rows, columns] + np.stack((columns, rows))
    assert np.abs(ends - base[:, None]).max() < 1e-3
    rows, columns = np.nonzero(target.is_negative)
    away = np.stack((columns, rows)) - base[:, None]
    assert ((vectors[:, rows, columns] * away).sum(axis=0) >= 0).all()


def test_target_views_are_one_for_every_anchor_that_has_objects() -> None:
    masks = [blob(SIZE, (80, 80), 50), blob(SIZE, (270, 70), 10), blob(SIZE, (270, 215), 48, seed=0)]
    views = target_views(instances_of(masks, SIZE), RULE)
    assert len({target.view.anchor for target in views}) == len(views)
    assert sorted(len(target.view.sizes_px) for target in views) == [1, 2]
    assert target_views(instances_of([], SIZE), RULE) == []


def test_decode_view_gives_nearly_the_ground_truth_back() -> None:
    instances = one_blob()
    (target,) = target_views(instances, RULE)
    found, truth = decode_view(target.view, TAU), instances.gt_masks.tensor.numpy()
    assert found.shape == truth.shape
    overlap = (found & truth).sum() / (found | truth).sum()
    assert overlap > 0.96
    # A shift to any side makes it worse.
    for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
        shifted = np.roll(found, shift, axis)
        assert (shifted & truth).sum() / (shifted | truth).sum() < overlap


def test_decode_view_of_a_size_that_is_no_multiple_of_the_stride() -> None:
    size = (101, 143)
    (target,) = target_views(instances_of([ellipse(size, (70, 50), (40, 30))], size), RULE)
    found, truth = decode_view(target.view, TAU), target.is_positive
    assert found.shape == (1, *size)
    assert (found[0] & truth).sum() / (found[0] | truth).sum() > 0.95


def test_draw_areas_frames_the_pixels_with_targets_and_dots_the_base(image: np.ndarray) -> None:
    (target,) = target_views(one_blob(), RULE)
    drawn = draw_areas(image, target.view.areas)
    is_frame = (drawn == YELLOW).all(axis=2)
    where = target.is_positive | target.is_negative
    for axis in (0, 1):
        framed, expected = np.flatnonzero(is_frame.any(axis=axis)), np.flatnonzero(where.any(axis=axis))
        assert (framed[0], framed[-1]) == (expected[0], expected[-1])
    # A dot covers whole pixels: its middle is at most half a pixel from the base.
    dot = np.argwhere((drawn != 90).any(axis=2) & ~is_frame)
    assert np.abs(dot.mean(axis=0)[::-1] - target.view.areas.base_px[0].numpy()).max() <= 0.5


def test_draw_regions_are_green_in_the_mask_and_red_around_it(image: np.ndarray) -> None:
    (target,) = target_views(one_blob(), RULE)
    drawn = draw_regions(image, target).astype(int)
    assert (drawn[target.is_positive].mean(axis=0).argmax(), np.argmax(GREEN)) == (1, 1)
    assert (drawn[target.is_negative].mean(axis=0).argmax(), np.argmax(RED)) == (2, 2)
    assert np.ptp(drawn[5, 300]) == 0


def test_target_pictures_show_every_pixel_s_vector_and_the_mask(image: np.ndarray) -> None:
    (target,) = target_views(one_blob(), RULE)
    pictures = target_pictures(image, target, TAU)
    anchor = target.view.anchor
    assert list(pictures) == [
        "target area",
        f"vectors of anchor {anchor}",
        f"arrows of anchor {anchor}",
        f"gradient of anchor {anchor}",
        "mask made of the map",
    ]
    assert all(picture.shape == image.shape for picture in pictures.values())
    left, top = target.view.areas.first[0].tolist()
    colors = vector_colors(target.view.vectors_px, float(target.view.areas.reach_px.norm()))
    assert np.array_equal(pictures[f"vectors of anchor {anchor}"][top + 9, left + 9], colors[top + 9, left + 9])
    assert np.array_equal(pictures[f"vectors of anchor {anchor}"][5, 300], [90] * 3)
    masked = (pictures["mask made of the map"] == 90).all(axis=2)
    assert (masked & target.is_positive).sum() / (masked | target.is_positive).sum() > 0.96


def test_gradient_is_large_at_the_border_of_the_mask_only(image: np.ndarray) -> None:
    (target,) = target_views(one_blob(), RULE)
    gradient = target_pictures(image, target, TAU)[f"gradient of anchor {target.view.anchor}"].astype(int)
    is_hot = gradient[:, :, 2] > gradient[:, :, 0]
    base = target.view.areas.base_px[0].long().tolist()
    is_hot[base[1] - 5 : base[1] + 6, base[0] - 5 : base[0] + 6] = False  # the dot
    is_hot &= ~(draw_areas(image, target.view.areas) == YELLOW).all(axis=2)
    positive = target.is_positive
    is_border = np.zeros(SIZE, dtype=bool)
    for axis in (0, 1):
        for shift in (-1, 1):
            is_border |= positive != np.roll(positive, shift, axis)
    assert (is_hot & ~is_border).sum() == 0
    assert (is_hot & is_border).sum() / is_border.sum() > 0.9


def toy_model(**changes: Any) -> Any:
    options = [word for key, value in changes.items() for word in (f"MODEL.ORIENMASK.{key}", value)]
    return Predictor(toy_config("OrienMask", "MODEL.WEIGHTS", "", "MODEL.ORIENMASK.SCORE_THRESH_TEST", 0.0, *options))


def test_map_pictures_of_a_model_show_the_map_and_mask_of_its_best_detection() -> None:
    model = toy_model().model
    # Every pixel's vector of every anchor: half an anchor to the right, so that the hue is that of +x.
    with torch.no_grad():
        model.orien_head.pred.weight.zero_()
        model.orien_head.pred.bias.copy_(torch.tensor([1.0, 0.0]).repeat(9))
    sample = make_input((70, 90), [])
    pictures = model.map_pictures(sample)
    with torch.no_grad():
        found = model([{"image": sample["image"]}])[0]["instances"]
    anchor = int(found.pred_anchors[0])
    assert list(pictures) == [
        "area of the best detection",
        f"vectors of anchor {anchor}",
        f"arrows of anchor {anchor}",
        f"gradient of anchor {anchor}",
        "mask made of the map",
    ]
    assert all(picture.shape == (70, 90, 3) for picture in pictures.values())
    blue, green, red = pictures[f"vectors of anchor {anchor}"][:50, :60].reshape(-1, 3).T.astype(int)
    is_field = (red == 255) & (blue == green)
    assert is_field.mean() > 0.8
    # The image shows through in the order of channels that it was read in.
    channels = sample["image"].permute(1, 2, 0).numpy()
    bgr = channels[:, :, ::-1] if model.preprocessor.input_format == "RGB" else channels
    area = pictures["area of the best detection"]
    assert (area == bgr).all(axis=2).mean() > 0.5
    shown, mask = pictures["mask made of the map"], np.asarray(found.pred_masks[:1])[0]
    assert mask.any()
    assert np.array_equal(shown[mask], bgr[mask])
    assert not np.array_equal(shown[~mask], bgr[~mask])
    assert map_pictures(model, sample, index=10**6) == {}


def perfect_maps(instances: Instances, rule: TargetRule, num_classes: int) -> OrienMaps:
    """The raw maps that make the one object of an image, as a network would give them."""
    height, width = instances.image_size
    sizes = [(height // stride, width // stride) for stride in rule.strides]
    objects = assign_anchors([instances], sizes, rule)
    ((view, *_),) = target_views(instances, rule)
    level, slot = divmod(view.anchor, 3)
    anchor = torch.tensor(rule.anchors_px[view.anchor])
    boxes = [torch.full((1, 3 * (5 + num_classes), *size), -12.0) for size in sizes]
    column, row = objects.cells[0].tolist()
    offset = objects.boxes[0, :2] / rule.strides[level] - objects.cells[0]
    log_size = (objects.boxes[0, 2:] / anchor).log()
    raw = torch.cat((offset.logit(), log_size, torch.full((1 + num_classes,), 12.0)))
    boxes[level].view(3, -1, *sizes[level])[slot, :, row, column] = raw
    vectors = torch.from_numpy(view.vectors_px) / (anchor[:, None, None] / 2)
    orientations = torch.zeros(1, 2 * len(rule.anchors_px), height // 4, width // 4)
    orientations[0, 2 * view.anchor : 2 * view.anchor + 2] = torch.nn.functional.avg_pool2d(vectors, 4)
    return OrienMaps(boxes, orientations)


def test_map_pictures_of_perfect_maps_show_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model().model
    size = (96, 128)
    instances = instances_of([ellipse(size, (70, 50), (30, 22))], size, [0])
    maps = perfect_maps(instances, model.target_rule, 3)
    monkeypatch.setattr(model, "dense_outputs", lambda images: maps)
    sample = make_input(size, []) | {"image": torch.full((3, *size), 200, dtype=torch.uint8)}
    pictures = model.map_pictures(sample)
    truth = instances.gt_masks.tensor[0].numpy()
    found = (pictures["mask made of the map"] == 200).all(axis=2)
    assert (found & truth).sum() / (found | truth).sum() > 0.9
    (target,) = target_views(instances, model.target_rule)
    frame = (pictures["area of the best detection"] == YELLOW).all(axis=2)
    assert np.array_equal(frame, (draw_areas(np.zeros((*size, 3), np.uint8), target.view.areas) == YELLOW).all(axis=2))
    # Left of the base the object's vectors point to the right, which is red; right of it to the left, cyan.
    colors = pictures[f"vectors of anchor {target.view.anchor}"].astype(int)
    assert colors[50, 46, 2] - colors[50, 46, 0] > 50
    assert colors[50, 94, 0] - colors[50, 94, 2] > 50


def test_map_pictures_by_the_predictor_are_of_the_network_s_input_size() -> None:
    predictor = toy_model(BASE_POSITION="grid")
    pictures = predictor.map_pictures(np.full((120, 80, 3), 50, dtype=np.uint8))
    size = predictor.prepare(np.full((120, 80, 3), 50, dtype=np.uint8))["image"].shape[1:]
    assert {picture.shape[:2] for picture in pictures.values()} == {tuple(size)}


def test_map_pictures_of_a_method_without_them_are_refused() -> None:
    predictor = Predictor(toy_config("FCOS", "MODEL.WEIGHTS", ""))
    with pytest.raises(ConfigError, match="no pictures of its maps"):
        predictor.map_pictures(np.zeros((40, 40, 3), dtype=np.uint8))


def test_crop_target_keeps_the_vectors_and_what_they_point_at() -> None:
    image, instances = scene_sample(7, 8, 256)
    target = target_views(instances, SHEET_RULE)[-1]
    cut_image, cut = crop_target(image, target)
    assert cut_image.shape[:2] == cut.is_positive.shape
    rows, columns = np.nonzero(cut.is_positive)
    ends = cut.view.vectors_px[:, rows, columns] + np.stack((columns, rows))
    assert np.abs(ends - cut.view.areas.base_px[0].numpy()[:, None]).max() < 1e-3
    whole = decode_view(target.view, TAU)
    assert decode_view(cut.view, TAU).sum() == whole.sum()


def test_the_picture_of_the_docs_is_that_of_the_command(tmp_path: Any, repository: Any) -> None:
    path = tmp_path / "orientation.png"
    assert main([str(path)]) == 0
    in_docs = repository / "docs" / "pictures" / "orientation.png"
    drawn, kept = read_image(str(path)).astype(int), read_image(str(in_docs)).astype(int)
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1
    assert in_docs.stat().st_size < 500_000
    assert draw_sheet(shown=[(8, 7)]).shape[0] < drawn.shape[0]
