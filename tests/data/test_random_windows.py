"""Random crops and places on a canvas: their bounds and odds, and masks that stay on their objects (cases 24, 31)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from segzoo.data.augmentation import ColorJitter, RandomFlip, ResizeFixed, build_augmentations
from segzoo.data.drawing import draw_instances, resized_box
from segzoo.data.mapper import DatasetMapper
from segzoo.data.random_windows import RandomCrop, ResizeOntoCanvas
from segzoo.data.registration import load_dataset
from segzoo.data.transforms import FlipTransform, ResizeTransform, WindowTransform, mask_sources
from segzoo.errors import ConfigError
from segzoo.geometry.masks import mask_boxes

RECIPE = {"warp_prob": 0.25, "aspect_jitter": 0.3, "shrink_prob": 0.75, "max_shrink": 0.75, "fill": (1, 2, 3)}


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def window_oracle(plane: np.ndarray, left: int, top: int, height: int, width: int, fill: Any) -> np.ndarray:
    """Pixel by pixel."""
    window = np.empty((height, width, *plane.shape[2:]), dtype=plane.dtype)
    for i in range(height):
        for j in range(width):
            is_inside = 0 <= i + top < plane.shape[0] and 0 <= j + left < plane.shape[1]
            window[i, j] = plane[i + top, j + left] if is_inside else fill
    return window


WINDOWS = st.tuples(st.integers(-12, 25), st.integers(-12, 25), st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=80, deadline=None)
@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), place=WINDOWS)
def test_window_image_mask_and_sources_equal_the_pixel_by_pixel_oracle(size: tuple, place: tuple) -> None:
    left, top, new_height, new_width = place
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = image[..., 0] > 99
    window = WindowTransform(*size, left, top, new_height, new_width, (7, 8, 9))
    expected = window_oracle(mask, left, top, new_height, new_width, False)
    np.testing.assert_array_equal(
        window.apply_image(image), window_oracle(image, left, top, new_height, new_width, (7, 8, 9))
    )
    np.testing.assert_array_equal(window.apply_segmentation(mask), expected)
    rows, columns = window.sources()
    is_seen = (rows >= 0)[:, None] & (columns >= 0)
    np.testing.assert_array_equal(mask[rows[:, None], columns] & is_seen, expected)
    # Back again, what was seen is as before, and points always are.
    back = window.inverse().apply_segmentation(expected)
    assert back.shape == mask.shape
    assert not (back & ~mask).any()
    points = np.array([[0.25, 3.5], [-4.0, 30.0]])
    np.testing.assert_array_equal(window.inverse().apply_coords(window.apply_coords(points)), points)


def test_mask_sources_nowhere_stays_nowhere_through_later_transforms() -> None:
    mask = np.random.default_rng(0).random((13, 17)) < 0.5
    transforms: list[Transform] = [WindowTransform(13, 17, 3, 2, 9, 12), ResizeTransform(9, 12, 14, 7)]
    transforms += [WindowTransform(14, 7, -5, -3, 20, 20), FlipTransform(20, 20), ResizeTransform(20, 20, 31, 15)]
    transforms += [WindowTransform(31, 15, 1, -2, 36, 13)]
    rows, columns = mask_sources(transforms, 13, 17)
    is_seen = (rows >= 0)[:, None] & (columns >= 0)
    expected = TransformList(transforms).apply_segmentation(mask)
    assert not is_seen.all()
    np.testing.assert_array_equal(mask[rows[:, None], columns] & is_seen, expected)


def draw(segmentation: Any, size: tuple[int, int], transforms: list[Transform]) -> np.ndarray:
    """The mask (H, W) of one annotation, empty if it was lost; checks that box and mask agree."""
    record = {"file_name": "none.png", "image_id": 1, "height": size[0], "width": size[1]}
    new_size = TransformList(transforms).apply_segmentation(np.zeros(size, dtype=bool)).shape
    annotation = {"id": 1, "segmentation": segmentation, "category_id": 0}
    instances, num_lost = draw_instances([annotation], TransformList(transforms), record, new_size)
    masks = instances.gt_masks.tensor
    assert num_lost == 1 - len(masks)
    assert masks.any(dim=2).any(dim=1).all()
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(masks))
    return masks.numpy()[0] if len(masks) else np.zeros(new_size, dtype=bool)


def pycocotools_mask(parts: list, height: int, width: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).astype(bool)


@st.composite
def polygons(draw_value: Any) -> tuple[tuple[int, int], list[list[float]]]:
    """An image's size and polygons that may reach beyond it at the right and the bottom.

    In binary fractions, so that moved points are exact: pycocotools rounds to fifths, where ties could go either way.
    """
    size = draw_value(st.sampled_from([1, 2, 4, 8, 16])), draw_value(st.sampled_from([1, 2, 4, 8, 16]))
    coordinate = st.integers(0, 30 * 64).map(lambda value: value / 64)
    part = st.lists(coordinate, min_size=6, max_size=12).map(lambda values: values[: len(values) // 2 * 2])
    return size, draw_value(st.lists(part, min_size=1, max_size=2))


@settings(max_examples=150, deadline=None)
@given(case=polygons(), place=WINDOWS, is_flipped=st.booleans(), is_rle=st.booleans())
def test_draw_instances_in_a_window_equal_the_whole_mask_indexed(
    case: tuple, place: tuple, is_flipped: bool, is_rle: bool
) -> None:
    size, parts = case
    whole = pycocotools_mask(parts, *size)
    expected = window_oracle(whole, *place, False)
    transforms: list[Transform] = [WindowTransform(*size, *place)]
    if is_flipped and is_rle:
        # The flip of a polygon is rounded to fifths of a pixel on the other side.
        transforms, expected = [*transforms, FlipTransform(*place[2:])], expected[:, ::-1]
    segmentation = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8))) if is_rle else parts
    np.testing.assert_array_equal(draw(segmentation, size, transforms), expected)


@settings(max_examples=100, deadline=None)
@given(case=polygons(), scale=st.tuples(st.integers(1, 40), st.integers(1, 40)), place=WINDOWS)
def test_draw_instances_resized_in_a_window_equal_a_large_drawing_that_is_cut(
    case: tuple, scale: tuple[int, int], place: tuple
) -> None:
    (height, width), parts = case
    moved = [(np.array(p).reshape(-1, 2) * [scale[1] / width, scale[0] / height]).reshape(-1) for p in parts]
    expected = window_oracle(pycocotools_mask(moved, *scale), *place, False)
    transforms = [ResizeTransform(height, width, *scale), WindowTransform(*scale, *place)]
    np.testing.assert_array_equal(draw(parts, (height, width), transforms), expected)


def test_draw_instances_outline_from_far_outside_is_not_bent() -> None:
    # Slanted edges whose ends lie left of and above the crop, at places that would round differently below zero.
    rng = np.random.default_rng(0)
    for _ in range(60):
        parts = [(rng.integers(0, 40 * 64, 8) / 64).tolist()]
        left, top = rng.integers(5, 25, 2).tolist()
        whole = pycocotools_mask(parts, 40, 40)[top : top + 15, left : left + 15]
        window = WindowTransform(40, 40, left, top, 15, 15)
        np.testing.assert_array_equal(draw(parts, (40, 40), [window]), whole)


@pytest.mark.parametrize("is_rle", [False, True])
def test_draw_instances_nothing_is_drawn_into_what_surrounds_the_image(is_rle: bool) -> None:
    # Fills the image and more, before a crop, a resize and a placement.
    parts: Any = [[0.0, 0.0, 99.0, 0.0, 99.0, 99.0, 0.0, 99.0]]
    if is_rle:
        parts = coco_mask.encode(np.ones((30, 40), dtype=np.uint8, order="F"))
    transforms = [WindowTransform(30, 40, 5, 5, 20, 25), ResizeTransform(20, 25, 10, 50)]
    transforms += [WindowTransform(10, 50, -7, -11, 60, 70), FlipTransform(60, 70)]
    expected = np.zeros((60, 70), dtype=bool)
    expected[11:21, 70 - 57 : 70 - 7] = True
    np.testing.assert_array_equal(draw(parts, (30, 40), transforms), expected)


def test_resized_box_ends_with_the_crop_and_not_in_the_canvas() -> None:
    transforms = [WindowTransform(30, 40, 5, 5, 20, 25), WindowTransform(20, 25, -7, -11, 60, 70)]
    boxes = [[0, 0, 40, 30], [10, 8, 20, 12], [0, 10, 6, 40]]
    moved = [resized_box({"bbox": box}, TransformList(transforms), (60, 70)) for box in boxes]
    assert moved == [(7, 11, 32, 31), (12, 14, 22, 18), (7, 16, 8, 31)]
    flipped = TransformList([*transforms, FlipTransform(60, 70)])
    assert resized_box({"bbox": boxes[1]}, flipped, (60, 70)) == (48, 14, 58, 18)


def random_boxes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Some boxes, among them one as large as the image, some at its borders, one of a pixel and one without area."""
    corners = np.sort(rng.uniform(0, [[width], [height]], (int(rng.integers(0, 4)), 2, 2)), axis=2)
    special = [[0, 0, width, height], [0, 0, 1, 1], [width - 1, 0, width, height], [0, height - 0.5, width, height]]
    special += [[width / 3, height / 3, width / 3, height / 2]]
    chosen = [box for box in special if rng.random() < 0.2]
    return np.concatenate([corners.transpose(0, 2, 1).reshape(-1, 4), np.array(chosen).reshape(-1, 4)])


@pytest.mark.parametrize("min_area", [0.64, 0.2, 1.0])
def test_random_crop_keeps_its_share_of_the_image_and_of_every_box(min_area: float) -> None:
    rng, crop = np.random.default_rng(1), RandomCrop(1.0, min_area)
    smallest = 1.0
    for _ in range(500):
        height, width = rng.integers(1, 120, 2).tolist()
        boxes = random_boxes(rng, height, width)
        window = crop.get_transform(blank(height, width), rng, boxes)
        assert isinstance(window, WindowTransform)
        right, bottom = window.left + window.new_width, window.top + window.new_height
        assert 0 <= window.left < right <= width
        assert 0 <= window.top < bottom <= height
        kept = np.concatenate([boxes, [[0, 0, width, height]]])
        inside = np.clip(kept, [window.left, window.top] * 2, [right, bottom] * 2)
        # Each side keeps the square root of what the area keeps.
        sides, left_over = kept[:, 2:] - kept[:, :2], inside[:, 2:] - inside[:, :2]
        assert (left_over >= min_area**0.5 * sides - 1e-9).all()
        smallest = min(smallest, window.new_height * window.new_width / (height * width))
    # The bound is reached, not only kept.
    assert smallest < min_area + 0.1


def test_random_crop_without_boxes_reaches_its_extremes_and_boxes_hold_it_back() -> None:
    crop, image = RandomCrop(1.0, 0.64), blank(100, 100)
    free = [crop.get_transform(image, np.random.default_rng(seed), np.zeros((0, 4))) for seed in range(500)]
    again = crop.get_transform(image, np.random.default_rng(0))
    assert vars(again) == vars(free[0])
    # A border leaves sqrt(0.8) of 100, so that 10 pixels go at the most, and of the other 90, so that 9 go.
    assert {window.left for window in free} == {window.top for window in free} == set(range(11))
    assert min(window.new_width for window in free) == 81
    corner = np.array([[0.0, 0.0, 20.0, 40.0]])
    held = [crop.get_transform(image, np.random.default_rng(seed), corner) for seed in range(200)]
    assert max(window.left for window in held) == 2
    assert max(window.top for window in held) == 4


def test_random_crop_happens_with_its_probability_and_always_draws_five_numbers() -> None:
    rng, crop = np.random.default_rng(0), RandomCrop(0.5, 0.64)
    num_crops = sum(not isinstance(crop.get_transform(blank(9, 9), rng), NoOpTransform) for _ in range(400))
    assert 170 < num_crops < 230
    reference = np.random.default_rng(0)
    reference.random(5 * 400)
    assert rng.random() == reference.random()


def test_resize_onto_canvas_odds_scales_ratios_and_places() -> None:
    rng, height, width = np.random.default_rng(0), 60, 90
    augmentation = ResizeOntoCanvas((100, 120), **RECIPE)
    steps = [augmentation.get_transform(blank(height, width), rng) for _ in range(2000)]
    placed = [step.transforms for step in steps if isinstance(step, TransformList)]
    assert 0.22 < 1 - len(placed) / len(steps) < 0.28
    warped = next(step for step in steps if isinstance(step, ResizeTransform))
    assert warped.apply_image(blank(height, width)).shape == (100, 120, 3)
    fills, ratios = [], []
    for resize, window in placed:
        x0, y0, x1, y1 = window.content
        assert (y1 - y0, x1 - x0) == (resize.new_height, resize.new_width)
        assert 0 <= x0 < x1 <= 120
        assert 0 <= y0 < y1 <= 100
        assert window.apply_image(blank(resize.new_height, resize.new_width)).shape == (100, 120, 3)
        fills.append(max((x1 - x0) / 120, (y1 - y0) / 100))
        ratios.append((x1 - x0) / (y1 - y0) / (width / height))
    fills = np.array(fills)
    # A quarter fills the canvas on one axis; the others shrink evenly down to a quarter.
    assert 0.22 < (fills == 1).mean() < 0.29
    assert 0.24 < fills.min() < 0.27
    assert 0.60 < fills[fills < 1].mean() < 0.65
    assert 0.7 / 1.3 * 0.95 < min(ratios) < 0.62
    assert 1.7 < max(ratios) < 1.3 / 0.7 * 1.05
    reference = np.random.default_rng(0)
    reference.random(7 * len(steps))
    assert rng.random() == reference.random()


def test_resize_onto_canvas_every_free_place_is_taken_and_tiny_images_stay() -> None:
    plain = ResizeOntoCanvas((8, 11), 0.0, 0.0, 0.0, 0.0, (0, 0, 0))
    steps = [plain.get_transform(blank(4, 4), np.random.default_rng(seed)) for seed in range(60)]
    assert {-step[1].left for step in steps} == {0, 1, 2, 3}
    assert {-step[1].top for step in steps} == {0}
    for size in ((1, 1), (1, 500), (500, 1)):
        step = ResizeOntoCanvas((8, 11), **RECIPE).get_transform(blank(*size), np.random.default_rng(5))
        assert step.apply_image(blank(*size)).shape == (8, 11, 3)


def recipe(cfg: CfgNode, size: tuple[int, int] = (96, 80)) -> CfgNode:
    """OrienMask's augmentations, at another size."""
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE, cfg.INPUT.RESIZE_TRAIN = "fixed", size, "canvas"
    cfg.INPUT.RANDOM_CROP.PROB, cfg.INPUT.RANDOM_FLIP = 0.5, "horizontal"
    return cfg


def test_build_augmentations_of_the_recipe_come_in_its_order(cfg: CfgNode) -> None:
    recipe(cfg).INPUT.COLOR_JITTER.HUE = 0.1
    kinds = [type(augmentation) for augmentation in build_augmentations(cfg, is_train=True)]
    assert kinds == [ColorJitter, RandomCrop, ResizeOntoCanvas, RandomFlip]
    assert [type(augmentation) for augmentation in build_augmentations(cfg, is_train=False)] == [ResizeFixed]


@pytest.mark.parametrize(("image_format", "color"), [("RGB", (124, 116, 104)), ("BGR", (104, 116, 124))])
def test_canvas_color_follows_the_channel_order(image_format: str, color: tuple, cfg: CfgNode) -> None:
    recipe(cfg).INPUT.FORMAT = image_format
    cfg.INPUT.CANVAS.WARP_PROB, cfg.INPUT.CANVAS.SHRINK_PROB, cfg.INPUT.CANVAS.ASPECT_JITTER = 0.0, 1.0, 0.0
    canvas = next(step for step in build_augmentations(cfg, True) if isinstance(step, ResizeOntoCanvas))
    shown = canvas.get_transform(blank(40, 40), np.random.default_rng(0)).apply_image(blank(40, 40))
    assert {tuple(pixel) for pixel in shown.reshape(-1, 3).tolist()} == {(0, 0, 0), color}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RESIZE_TRAIN", "fixed"),
        ("RANDOM_CROP.PROB", 1.5),
        ("RANDOM_CROP.PROB", float("nan")),
        ("RANDOM_CROP.MIN_AREA", 0.0),
        ("RANDOM_CROP.MIN_AREA", 1.2),
        ("CANVAS.WARP_PROB", -0.1),
        ("CANVAS.SHRINK_PROB", 2.0),
        ("CANVAS.ASPECT_JITTER", 1.0),
        ("CANVAS.MAX_SHRINK", 1.0),
        ("CANVAS.PAD_RGB", (1.0, 2.0)),
        ("CANVAS.PAD_RGB", (1.0, 2.0, 256.0)),
        ("FIXED_SIZE", (0, 544)),
    ],
)
def test_case_45_windows_impossible_value_names_key_value_and_choices(key: str, value: Any, cfg: CfgNode) -> None:
    recipe(cfg).merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ConfigError, match=rf"(?s)INPUT\.{key} is .*use "):
        build_augmentations(cfg, is_train=True)


COLORS = {"polygon": (255, 40, 0), "rle": (0, 60, 255)}


def add_colored_objects(folder: Any) -> None:
    """Rectangles of two colours on black, one as a polygon, one as an RLE, and a crowd over everything."""
    folder.add_image(61, 47)
    pixels = blank(47, 61)
    pixels[8:30, 5:25], pixels[20:47, 33:61] = COLORS["polygon"], COLORS["rle"]
    Image.fromarray(pixels).save(folder.root / "1.png")
    is_rle = np.asfortranarray((pixels == COLORS["rle"]).all(axis=2).astype(np.uint8))
    rle = coco_mask.encode(is_rle)
    rle["counts"] = rle["counts"].decode()
    folder.add_annotation(segmentation=[[5.0, 8.0, 25.0, 8.0, 25.0, 30.0, 5.0, 30.0]], bbox=[5, 8, 20, 22])
    folder.add_annotation(segmentation=rle, bbox=[33, 20, 28, 27], category_id=2)
    folder.add_annotation(segmentation=rle, bbox=[0, 0, 1, 1], iscrowd=1)


def nearest_color(image: np.ndarray) -> np.ndarray:
    """(H, W): the place in COLORS of each pixel's nearest colour, or more for the background and the canvas."""
    colors = np.array([*COLORS.values(), (0, 0, 0), (124, 116, 104)])
    return np.abs(image[:, :, None].astype(int) - colors).sum(axis=3).argmin(axis=2)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask with `by` pixels more on every side, or fewer if negative."""
    if by < 0:
        return ~grown(~mask, -by)
    padded = np.pad(mask, by)
    size = 2 * by + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size)).any(axis=(2, 3))


@pytest.mark.parametrize("rasterize", ["after", "before"])
@pytest.mark.parametrize("boxes", ["masks", "annotations"])
def test_mapper_recipe_masks_and_boxes_lie_on_the_objects(
    rasterize: str, boxes: str, folder: Any, cfg: CfgNode
) -> None:
    add_colored_objects(folder)
    recipe(cfg).INPUT.FORMAT = "RGB"
    # The four nearest pixels, so that colours are mixed at the borders only.
    cfg.INPUT.RESAMPLING, cfg.INPUT.RASTERIZE, cfg.INPUT.BOXES = "opencv", rasterize, boxes
    mapper, record = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())[0]
    scales, shifts = set(), []
    for seed in range(50):
        sample = mapper(record, np.random.default_rng(seed))
        instances = sample["instances"]
        assert sample["image"].shape == (3, 96, 80)
        assert sample["counts"] == {}
        shown = nearest_color(sample["image"].numpy().transpose(1, 2, 0))
        for color, mask in enumerate(instances.gt_masks.tensor.numpy()):
            # A pixel half of an object and half of its surroundings may count as either.
            assert (shown[grown(mask, -1)] == color).all()
            assert (shown[~grown(mask, 1)] != color).all()
            shifts.append(np.argwhere(mask).mean(axis=0) - np.argwhere(shown == color).mean(axis=0))
            scales.add(round(mask.any(axis=0).mean(), 1))
        # The annotation's box, scaled by its last pixel, ends up to an old pixel's new size before the mask.
        tolerance = 1e-6 if boxes == "masks" else 3
        assert (instances.gt_boxes.tensor - mask_boxes(instances.gt_masks.tensor)).abs().max() <= tolerance
    assert len(scales) > 4
    if rasterize == "after":
        # A pixel too far to one side would be a shift of one. (Drawn before, masks are shifted; see docs/data.md.)
        assert np.abs(shifts).max() < 0.7
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.1


def test_mapper_recipe_same_generator_same_sample_and_empty_images_pass(folder: Any, cfg: CfgNode) -> None:
    add_colored_objects(folder)
    folder.add_image(30, 20)
    recipe(cfg).INPUT.COLOR_JITTER.BRIGHTNESS = 0.2
    cfg.INPUT.RANDOM_CROP.PROB = 1.0
    mapper, records = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())
    for record, num_objects in zip(records, (2, 0), strict=True):
        first, again, other = (mapper(record, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["instances"].gt_masks.tensor, again["instances"].gt_masks.tensor)
        assert not torch.equal(first["image"], other["image"])
        assert first["instances"].gt_masks.tensor.shape == (num_objects, 96, 80)


def test_mapper_crop_reckons_with_boxes_that_the_annotations_lack(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    cfg.INPUT.RANDOM_CROP.PROB = 1.0
    mapper, record = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())[0]
    sizes = [mapper(record, np.random.default_rng(seed))["instances"].gt_boxes.tensor for seed in range(20)]
    del record["annotations"][0]["bbox"]
    again = [mapper(record, np.random.default_rng(seed))["instances"].gt_boxes.tensor for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(sizes, again, strict=True))
