"""CenterNet's warp and colours: where pixels go, by slow programs of their own; masks stay on their objects."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import TransformList
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segzoo.data.augmentation import RandomFlip, build_augmentations
from segzoo.data.colors import PCA_EIGENVALUES, PCA_EIGENVECTORS_BGR, ColorJitter
from segzoo.data.drawing import resized_box
from segzoo.data.mapper import LOST_INSTANCES, DatasetMapper
from segzoo.data.registration import load_dataset
from segzoo.data.transforms import (
    ColorTransform,
    FlipTransform,
    Resampling,
    ResizeTransform,
    WindowTransform,
    mask_sources,
)
from segzoo.data.warps import RandomWarp, WarpTransform, fitting_border
from segzoo.errors import ConfigError
from segzoo.geometry.masks import mask_boxes
from tests.data.test_random_windows import (
    add_colored_objects,
    blank,
    draw,
    grown,
    nearest_color,
    pycocotools_mask,
    window_oracle,
)

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bilinear_oracle(warp: WarpTransform, image: np.ndarray) -> np.ndarray:
    """Each new pixel's centre, taken back to the image, between the four pixels around it; `fill` outside."""

    def pixel(row: int, column: int) -> np.ndarray:
        is_inside = 0 <= row < warp.height and 0 <= column < warp.width
        return image[row, column].astype(float) if is_inside else np.array(warp.fill, dtype=float)

    result = np.empty((warp.new_height, warp.new_width, 3))
    for i in range(warp.new_height):
        for j in range(warp.new_width):
            x = (j + 0.5 - warp.shift[0]) / warp.scale[0] - 0.5
            y = (i + 0.5 - warp.shift[1]) / warp.scale[1] - 0.5
            column, row = math.floor(x), math.floor(y)
            right, lower = x - column, y - row
            upper_pixels = (1 - right) * pixel(row, column) + right * pixel(row, column + 1)
            lower_pixels = (1 - right) * pixel(row + 1, column) + right * pixel(row + 1, column + 1)
            result[i, j] = (1 - lower) * upper_pixels + lower * lower_pixels
    return result


WARPS = [
    WarpTransform(11, 14, (1.7, 1.7), (-3.3, 2.6), 20, 17, (9, 8, 7)),
    WarpTransform(11, 14, (1.3, 2.1), (4.5, -6.25), 23, 19),
    WarpTransform(9, 9, (1.0, 1.0), (2.0, -3.0), 10, 12, (1, 2, 3)),
    WarpTransform(30, 22, (0.45, 0.45), (1.7, 3.1), 19, 13),
]


@pytest.mark.parametrize("warp", WARPS)
def test_warp_image_opencv_equals_the_pixel_by_pixel_oracle(warp: WarpTransform) -> None:
    image = random_image(warp.height, warp.width)[..., ::-1]
    warp = WarpTransform(
        *(warp.height, warp.width, warp.scale, warp.shift, warp.new_height, warp.new_width, warp.fill),
        resampling=Resampling("opencv"),
    )
    # Older versions of OpenCV count in 32nds of a pixel.
    np.testing.assert_allclose(warp.apply_image(image), bilinear_oracle(warp, image), atol=255 / 32)


@pytest.mark.parametrize("warp", WARPS[:3])
def test_warp_image_pillow_enlarges_as_the_oracle_where_the_image_does_not_end_at_the_canvas(
    warp: WarpTransform,
) -> None:
    image = random_image(warp.height, warp.width)
    shown, expected = warp.apply_image(image), bilinear_oracle(warp, image)
    assert shown.shape == (warp.new_height, warp.new_width, 3)
    # Pillow rounds between its two passes.
    np.testing.assert_allclose(shown, expected, atol=1.51)


def test_warp_image_pillow_averages_when_it_shrinks_and_equals_the_plain_resize() -> None:
    image = random_image(40, 60)
    warp = WarpTransform(40, 60, (0.25, 0.25), (0.0, 0.0), 10, 15)
    np.testing.assert_array_equal(warp.apply_image(image), ResizeTransform(40, 60, 10, 15).apply_image(image))
    # Ten rows of black above; the border row is mixed with it.
    placed = WarpTransform(40, 60, (0.25, 0.25), (0.0, 10.0), 20, 15).apply_image(image)
    assert not placed[:9].any()
    np.testing.assert_array_equal(placed[11:], ResizeTransform(40, 60, 10, 15).apply_image(image)[1:])


@pytest.mark.parametrize("resampling", ["pillow", "opencv"])
@pytest.mark.parametrize("size", [(20, 40_000), (40_000, 20)])
def test_case_17_warp_extreme_ratio_needs_no_square_of_the_longer_side(size: tuple, resampling: str) -> None:
    scale = 64 / 40_000
    shift = (0.0, 30.0) if size[1] > size[0] else (30.0, 0.0)
    warp = WarpTransform(*size, (scale, scale), shift, 64, 64, resampling=Resampling(resampling))
    shown = warp.apply_image(np.full((*size, 3), 200, dtype=np.uint8))
    assert shown.shape == (64, 64, 3)
    # The image is a thirtieth of a pixel high (wide): four neighbours alone may miss it.
    assert 2 <= shown.max() <= 10 if resampling == "pillow" else shown.max() <= 200


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    new_size=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    scale=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shift=st.tuples(st.integers(-160, 160), st.integers(-160, 160)),
)
def test_warp_mask_takes_the_pixel_under_each_centre(size: tuple, new_size: tuple, scale: tuple, shift: tuple) -> None:
    # Binary fractions: exact in floating point.
    (sx, sy), (tx, ty) = ([Fraction(value, 8) for value in pair] for pair in (scale, shift))
    mask = np.random.default_rng(0).random(size) < 0.5
    expected = np.zeros(new_size, dtype=bool)
    for i in range(new_size[0]):
        for j in range(new_size[1]):
            row, column = math.floor((i + Fraction(1, 2) - ty) / sy), math.floor((j + Fraction(1, 2) - tx) / sx)
            expected[i, j] = 0 <= row < size[0] and 0 <= column < size[1] and mask[row, column]
    warp = WarpTransform(*size, (float(sx), float(sy)), (float(tx), float(ty)), *new_size)
    np.testing.assert_array_equal(warp.apply_segmentation(mask), expected)
    rows, columns = mask_sources([warp], *size)
    np.testing.assert_array_equal(mask[rows[:, None], columns] & (rows >= 0)[:, None] & (columns >= 0), expected)
    points = np.array([[0.25, 3.5], [-4.0, 30.0]])
    np.testing.assert_allclose(warp.inverse().apply_coords(warp.apply_coords(points)), points, atol=1e-9)
    x0, y0, x1, y1 = warp.content
    assert 0 <= x0 <= x1 <= new_size[1]
    assert 0 <= y0 <= y1 <= new_size[0]
    # Where a pixel of the canvas is the image's, its centre lies in the content.
    assert all(y0 <= i + 0.5 <= y1 for i in np.flatnonzero(rows >= 0))
    assert all(x0 <= j + 0.5 <= x1 for j in np.flatnonzero(columns >= 0))


def test_warp_polygons_are_moved_drawn_once_and_cut_at_the_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        size, parts = (24, 32), [(rng.integers(0, 40 * 8, 8) / 8).tolist()]
        scale, shift = int(rng.integers(2, 20)) / 8, (rng.integers(-160, 160, 2) / 8).tolist()
        warp = WarpTransform(*size, (scale, scale), tuple(shift), 48, 40)
        moved = warp.apply_coords(np.array(parts[0]).reshape(-1, 2))
        margin = 30
        whole = pycocotools_mask([(moved + margin).reshape(-1)], 48 + 2 * margin, 40 + 2 * margin)
        rows, columns = warp.sources()
        expected = window_oracle(whole, margin, margin, 48, 40, False)
        expected &= (rows >= 0)[:, None] & (columns >= 0)
        np.testing.assert_array_equal(draw(parts, size, [warp]), expected)


def test_warp_rle_masks_are_taken_by_the_same_rows_and_columns_and_flipped_after() -> None:
    mask = np.random.default_rng(0).random((24, 32)) < 0.6
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    warp = WarpTransform(24, 32, (1.37, 1.37), (-7.3, 5.9), 40, 44)
    expected = warp.apply_segmentation(mask)[:, ::-1]
    np.testing.assert_array_equal(draw(rle, (24, 32), [warp, FlipTransform(40, 44)]), expected)


def test_resized_box_is_clipped_to_the_warped_image() -> None:
    warp = TransformList([WarpTransform(30, 40, (0.5, 0.5), (3.0, -5.0), 20, 20)])
    assert resized_box({"bbox": [0, 0, 40, 30]}, warp, (20, 20)) == (3, 0, 20, 10)
    assert resized_box({"bbox": [10, 12, 18, 21]}, warp, (20, 20)) == (8, 1, 12.5, 6)


def test_warp_lies_where_centernets_does_but_for_its_half_pixel() -> None:
    # CenterNet's map from pixel number to pixel number, of its get_affine_transform: (i - center) scale + size / 2.
    for scale in (0.4, 1.0, 1.6):
        ours = WarpTransform(48, 64, (scale, scale), (32 - scale * 32, 32 - scale * 24), 64, 64)
        number = np.array([[10.0, 7.0]])
        center_of_theirs = (number - [32, 24]) * scale + 32 + 0.5
        shift = center_of_theirs - ours.apply_coords(number + 0.5)
        np.testing.assert_allclose(shift, (1 - scale) / 2)
        # Their boxes are moved as points, as ours.
        np.testing.assert_allclose(ours.apply_coords(number), (number - [32, 24]) * scale + 32)


def test_flip_after_the_warp_is_the_warp_of_the_flipped_image() -> None:
    image = random_image(21, 34)
    warp = WarpTransform(21, 34, (1.3, 1.3), (20 - 1.3 * 9.5, 3.0), 40, 40)
    # CenterNet mirrors the image and the window's centre first.
    mirrored = WarpTransform(21, 34, (1.3, 1.3), (20 - 1.3 * (34 - 9.5), 3.0), 40, 40)
    expected = mirrored.apply_image(FlipTransform(21, 34).apply_image(image))
    np.testing.assert_allclose(FlipTransform(40, 40).apply_image(warp.apply_image(image)), expected, atol=1)


@pytest.mark.parametrize("border", [128, 100, 0])
def test_fitting_border_is_halved_until_a_pixel_is_left(border: int) -> None:
    for side in (1, 2, 3, 64, 65, 128, 129, 200, 256, 257, 640):
        found = fitting_border(border, side)
        assert side - found > found
        halves = [border // 2**k for k in range(9)]
        assert found == next(half for half in halves if side - half > half)


def test_random_warp_scales_centres_and_its_three_numbers() -> None:
    rng, augmentation, image = np.random.default_rng(0), RandomWarp((64, 64), SCALES, 128), blank(300, 400)
    warps = [augmentation.get_transform(image, rng) for _ in range(4000)]
    windows = {round(64 / warp.scale[0] / 400, 6) for warp in warps}
    assert windows == set(SCALES)
    centers = np.array([[(32 - warp.shift[axis]) / warp.scale[axis] for axis in (0, 1)] for warp in warps])
    # 128 px from each side of 400; of 300 as well. In the middle of pixels.
    np.testing.assert_allclose(centers % 1, 0.5, atol=1e-6)
    np.testing.assert_allclose(centers.min(axis=0), [128.5, 128.5])
    np.testing.assert_allclose(centers.max(axis=0), [271.5, 171.5])
    np.testing.assert_allclose(centers.mean(axis=0), [200, 150], atol=2)
    reference = np.random.default_rng(0)
    reference.random(3 * len(warps))
    assert rng.random() == reference.random()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_case_16_random_warp_tiny_images_pass(size: tuple[int, int]) -> None:
    warp = RandomWarp((32, 48), SCALES, 128).get_transform(blank(*size), np.random.default_rng(5))
    assert warp.apply_image(blank(*size)).shape == (32, 48, 3)
    assert isinstance(warp, WarpTransform)
    x0, y0, x1, y1 = warp.content
    assert x0 < x1
    assert y0 < y1


def recipe(cfg: CfgNode, size: tuple[int, int] = (96, 96)) -> CfgNode:
    """CenterNet's augmentations, at another size."""
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE, cfg.INPUT.RESIZE_TRAIN = "fix_res", size, "warp"
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    return cfg


def test_build_augmentations_of_the_recipe_come_in_its_order(cfg: CfgNode) -> None:
    recipe(cfg).INPUT.COLOR_JITTER.LIGHTING = 0.1
    kinds = [type(augmentation) for augmentation in build_augmentations(cfg, is_train=True)]
    assert kinds == [ColorJitter, RandomWarp, RandomFlip]
    warp = build_augmentations(cfg, is_train=True)[1]
    assert isinstance(warp, RandomWarp)
    assert (warp.size, warp.scales, warp.border) == ((96, 96), SCALES, 128)


@pytest.mark.parametrize("resampling", ["opencv", "pillow"])
@pytest.mark.parametrize("boxes", ["masks", "annotations"])
def test_mapper_recipe_masks_and_boxes_lie_on_the_objects(
    boxes: str, resampling: str, folder: Any, cfg: CfgNode
) -> None:
    add_colored_objects(folder)
    recipe(cfg).INPUT.FORMAT = "RGB"
    cfg.INPUT.RESAMPLING, cfg.INPUT.BOXES = resampling, boxes
    mapper, record = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())[0]
    areas, shifts, num_lost = set(), [], 0
    for seed in range(60):
        sample = mapper(record, np.random.default_rng(seed))
        instances = sample["instances"]
        assert sample["image"].shape == (3, 96, 96)
        assert (sample["height"], sample["width"]) == (47, 61)
        assert "window" not in sample
        num_lost += sample["counts"].get(LOST_INSTANCES, 0)
        assert len(instances) + sample["counts"].get(LOST_INSTANCES, 0) == 2
        shown = nearest_color(sample["image"].numpy().transpose(1, 2, 0))
        for color, mask in zip(instances.gt_classes.tolist(), instances.gt_masks.tensor.numpy(), strict=True):
            # A pixel half of an object and half of its surroundings may count as either.
            assert (shown[grown(mask, -1)] == color).all()
            assert (shown[~grown(mask, 2)] != color).all()
            areas.add(int(mask.sum()))
            if min(mask.sum(), (shown == color).sum()) > 30:
                shifts.append(np.argwhere(mask).mean(axis=0) - np.argwhere(shown == color).mean(axis=0))
        # The annotation's box, scaled by its last pixel, ends up to an old pixel's new size before the mask.
        tolerance = 1e-6 if boxes == "masks" else 3
        assert (instances.gt_boxes.tensor - mask_boxes(instances.gt_masks.tensor)).abs().max() <= tolerance
    assert len(areas) > 20
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1


def test_mapper_recipe_objects_beyond_the_window_are_dropped_and_counted(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(400, 400)
    corner = [0.0, 0.0, 40.0, 0.0, 40.0, 40.0, 0.0, 40.0]
    folder.add_annotation(segmentation=[corner], bbox=[0, 0, 40, 40])
    folder.add_annotation(segmentation=[[0.0, 0.0, 400.0, 0.0, 400.0, 400.0, 0.0, 400.0]], bbox=[0, 0, 400, 400])
    recipe(cfg).INPUT.WARP.SCALES = (0.6,)
    mapper, record = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())[0]
    samples = [mapper(record, np.random.default_rng(seed)) for seed in range(30)]
    assert {len(sample["instances"]) for sample in samples} == {1, 2}
    for sample in samples:
        assert sample["counts"].get(LOST_INSTANCES, 0) == 2 - len(sample["instances"])


def test_mapper_recipe_same_generator_same_sample_and_empty_images_pass(folder: Any, cfg: CfgNode) -> None:
    add_colored_objects(folder)
    folder.add_image(30, 20)
    jitter = recipe(cfg).INPUT.COLOR_JITTER
    jitter.BRIGHTNESS = jitter.CONTRAST = jitter.SATURATION = 0.4
    jitter.LIGHTING = 0.1
    mapper, records = DatasetMapper(cfg, is_train=True), load_dataset(folder.register())
    for record, num_objects in zip(records, (2, 0), strict=True):
        first, again, other = (mapper(record, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["instances"].gt_masks.tensor, again["instances"].gt_masks.tensor)
        assert not torch.equal(first["image"], other["image"])
        assert first["instances"].gt_masks.tensor.shape == (num_objects, 96, 96)


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_lighting_moves_all_pixels_along_the_principal_components(image_format: str) -> None:
    # Orthonormal columns, as eigenvectors are.
    np.testing.assert_allclose(PCA_EIGENVECTORS_BGR.T @ PCA_EIGENVECTORS_BGR, np.eye(3), atol=1e-6)
    image = np.full((2, 3, 3), 128, dtype=np.uint8)
    jitter = ColorJitter(0, 0, 0, 0, image_format, lighting=0.1)
    shifts = []
    for seed in range(2000):
        transform = jitter.get_transform(image, np.random.default_rng(seed))
        assert isinstance(transform, ColorTransform)
        amounts = np.random.default_rng(seed).normal(scale=0.1, size=3)
        expected = 255 * PCA_EIGENVECTORS_BGR @ (PCA_EIGENVALUES * amounts)
        shifts.append(transform.shift if image_format == "BGR" else transform.shift[::-1])
        np.testing.assert_allclose(shifts[-1], expected)
    assert np.ptp(jitter.get_transform(image, np.random.default_rng(1)).apply_image(image), axis=(0, 1)).max() == 0
    # Nearly grey: 0.1 x 0.214 x 255 x 0.58 = 3.2 in each channel.
    np.testing.assert_allclose(np.std(shifts, axis=0), 3.2, atol=0.3)
    assert np.corrcoef(np.array(shifts).T).min() > 0.9


def test_lighting_is_added_last_and_clipped() -> None:
    image = np.array([[[10, 100, 250]]], dtype=np.uint8)
    shown = ColorTransform([("brightness", 0.5)], "BGR", (-20.0, 3.0, 200.0)).apply_image(image)
    np.testing.assert_array_equal(shown, [[[0, 53, 255]]])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RESIZE_TRAIN", "wrap"),
        ("WARP.SCALES", ()),
        ("WARP.SCALES", (0.5, 0.0)),
        ("WARP.SCALES", (0.5, float("nan"))),
        ("WARP.BORDER", -1),
        ("COLOR_JITTER.LIGHTING", -0.1),
        ("COLOR_JITTER.LIGHTING", 1.5),
        ("FIXED_SIZE", (0, 512)),
    ],
)
def test_case_45_warp_impossible_value_names_key_value_and_choices(key: str, value: Any, cfg: CfgNode) -> None:
    recipe(cfg).merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ConfigError, match=rf"(?s)INPUT\.{key} is .*use "):
        build_augmentations(cfg, is_train=True)


def test_warp_of_whole_pixels_is_a_window() -> None:
    image = random_image(9, 12)
    for resampling in ("pillow", "opencv"):
        warp = WarpTransform(9, 12, (1.0, 1.0), (-3.0, 2.0), 10, 10, (5, 6, 7), Resampling(resampling))
        window = WindowTransform(9, 12, 3, -2, 10, 10, (5, 6, 7))
        np.testing.assert_array_equal(warp.apply_image(image), window.apply_image(image))
