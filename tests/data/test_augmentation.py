"""Augmentations and transforms: pixel centres, sizes, flips, colours (acceptance cases 16, 17, 31)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from fvcore.transforms.transform import Transform
from hypothesis import given, settings
from hypothesis import strategies as st

from segzoo.data.augmentation import (
    ColorJitter,
    RandomFlip,
    ResizeFixed,
    ResizeInside,
    ResizeShortestEdge,
    build_augmentations,
    build_resize,
    shortest_edge_size,
)
from segzoo.data.transforms import (
    ColorTransform,
    FlipTransform,
    Resampling,
    ResizeTransform,
    mask_sources,
    nearest_sources,
    opencv_sources,
)
from segzoo.errors import ConfigError

SIDES = st.integers(1, 60)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), new_size=st.integers(1, 3000))
def test_nearest_sources_takes_the_pixel_under_the_centre(size: int, new_size: int) -> None:
    from fractions import Fraction

    expected = [int((i + Fraction(1, 2)) * size / new_size) for i in range(new_size)]
    assert nearest_sources(size, new_size).tolist() == expected
    # Symmetric but for exact ties: a flip before and after the resize gives the same mask.
    ties = [((2 * i + 1) * size) % (2 * new_size) == 0 for i in range(new_size)]
    mirrored = size - 1 - nearest_sources(size, new_size)[::-1]
    assert all(a == b for a, b, tie in zip(mirrored.tolist(), expected, ties) if not tie)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), new_size=st.integers(1, 3000))
def test_opencv_sources_equal_cv2_resize_of_masks_on_both_axes(size: int, new_size: int) -> None:
    # Two digits, because a mask is of bytes.
    for digit in (np.arange(size) % 251, np.arange(size) // 251):
        row = np.repeat(digit.astype(np.uint8)[None], 3, axis=0)
        expected = digit[opencv_sources(size, new_size)]
        wide = cv2.resize(row, (new_size, 5), interpolation=cv2.INTER_NEAREST)
        high = cv2.resize(np.ascontiguousarray(row.T), (5, new_size), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(wide, np.repeat(expected[None], 5, axis=0))
        np.testing.assert_array_equal(high, np.repeat(expected[:, None], 5, axis=1))


def test_opencv_sources_are_within_a_pixel_of_exact_arithmetic_and_shift_by_half_a_new_one() -> None:
    exact = np.arange(849) * 705 // 849
    assert 0 < np.count_nonzero(opencv_sources(705, 849) != exact) < 10
    assert np.abs(opencv_sources(705, 849) - exact).max() == 1
    shift = nearest_sources(1000, 300) - opencv_sources(1000, 300)
    assert abs(shift.mean() - 0.5 * 1000 / 300) < 0.5


def test_mask_sources_equal_the_transforms_one_after_another() -> None:
    mask = np.random.default_rng(0).random((13, 17)) < 0.5
    for rule in ("center", "opencv"):
        transforms = [ResizeTransform(13, 17, 21, 9, Resampling(mask=rule)), FlipTransform(21, 9)]
        transforms += [FlipTransform(21, 9, is_horizontal=False), ColorTransform([], "BGR")]
        transforms += [ResizeTransform(21, 9, 8, 30, Resampling(mask=rule))]
        expected = mask
        for transform in transforms:
            expected = transform.apply_segmentation(expected)
        rows, columns = mask_sources(transforms, 13, 17)
        np.testing.assert_array_equal(mask[rows[:, None], columns], expected)


def test_mask_sources_unknown_transform_is_refused() -> None:
    class Shear(Transform):
        pass

    with pytest.raises(TypeError, match="Shear"):
        mask_sources([Shear()], 3, 3)


@pytest.mark.parametrize(
    ("size", "new_size"),
    [((47, 61), (53, 90)), ((61, 47), (30, 23)), ((3, 100), (7, 11)), ((1, 1), (4, 5)), ((9, 1), (1, 9))],
)
def test_resize_image_opencv_equals_cv2_bilinear(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    # Read as BGR an image is a view with its channels backwards.
    image = random_image(*size)[..., ::-1]
    resized = ResizeTransform(*size, *new_size, Resampling(image="opencv")).apply_image(image)
    expected = cv2.resize(image.copy(), new_size[::-1], interpolation=cv2.INTER_LINEAR)
    assert resized.shape == (*new_size, 3)
    np.testing.assert_array_equal(resized, expected)


def test_resize_image_opencv_does_not_average_when_it_shrinks() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[::8, ::8] = 255
    pillow, opencv = (ResizeTransform(64, 64, 8, 8, Resampling(image=name)) for name in ("pillow", "opencv"))
    assert pillow.apply_image(image).max() > 0
    # The four pixels around the centre of each 8 x 8 block are black.
    assert opencv.apply_image(image).max() == 0


def test_resize_mask_doubling_repeats_every_pixel() -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    resized = ResizeTransform(5, 7, 10, 14).apply_segmentation(mask)
    np.testing.assert_array_equal(resized, mask.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(ResizeTransform(10, 14, 5, 7).apply_segmentation(resized), mask)


def test_case_31_resize_keeps_an_object_in_the_last_row_and_column() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[9, :] = mask[:, 9] = True
    for new_size in (5, 10, 13, 40):
        resized = ResizeTransform(10, 10, new_size, new_size).apply_segmentation(mask)
        assert resized[-1].all()
        assert resized[:, -1].all()


def test_resize_coordinates_use_the_true_ratio_of_each_axis() -> None:
    transform = ResizeTransform(100, 333, 33, 110)
    np.testing.assert_allclose(transform.apply_coords(np.array([[333.0, 100.0], [0.0, 0.0]])), [[110, 33], [0, 0]])
    points = np.array([[12.5, 7.25]])
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)


def test_resize_image_and_mask_stay_aligned() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[10:30, 20:50] = 255
    transform = ResizeTransform(40, 60, 80, 90)
    mask = transform.apply_segmentation(image[..., 0] > 0)
    resized = transform.apply_image(image)[..., 0]
    assert resized.shape == mask.shape == (80, 90)
    # The centroid of the image's brightness is the mask's: nothing is shifted by half a pixel.
    for axis, size in ((0, 80), (1, 90)):
        places = np.arange(size) + 0.5
        of_image = (resized.sum(axis=1 - axis) * places).sum() / resized.sum(dtype=np.int64)
        of_mask = (mask.sum(axis=1 - axis) * places).sum() / mask.sum()
        assert abs(of_image - of_mask) < 0.05


@settings(max_examples=30, deadline=None)
@given(height=SIDES, width=SIDES, is_horizontal=st.booleans())
def test_case_31_flip_twice_is_the_identity(height: int, width: int, is_horizontal: bool) -> None:
    flip = FlipTransform(height, width, is_horizontal)
    image = random_image(height, width)
    mask = image[..., 0] > 127
    points = np.random.default_rng(1).uniform(0, 64, (5, 2)).round(3)
    np.testing.assert_array_equal(flip.apply_image(flip.apply_image(image)), image)
    np.testing.assert_array_equal(flip.apply_segmentation(flip.apply_segmentation(mask)), mask)
    np.testing.assert_allclose(flip.apply_coords(flip.apply_coords(points)), points, atol=1e-12)


def test_flip_moves_coordinates_with_their_pixel() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[3, 1] = True
    row, column = np.argwhere(FlipTransform(4, 6).apply_segmentation(mask))[0]
    np.testing.assert_array_equal(FlipTransform(4, 6).apply_coords(np.array([[1.5, 3.5]])), [[column + 0.5, row + 0.5]])
    row, column = np.argwhere(FlipTransform(4, 6, is_horizontal=False).apply_segmentation(mask))[0]
    upside_down = FlipTransform(4, 6, is_horizontal=False).apply_coords(np.array([[1.5, 3.5]]))
    np.testing.assert_array_equal(upside_down, [[column + 0.5, row + 0.5]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((20, 10000), (3, 1333)), ((1, 1), (800, 800))],
)
def test_case_17_shortest_edge_size_follows_detectron2(size: tuple[int, int], expected: tuple[int, int]) -> None:
    from detectron2.data.transforms import ResizeShortestEdge as Reference

    assert shortest_edge_size(*size, 800, 1333) == expected
    assert tuple(Reference.get_output_shape(*size, 800, 1333)) == expected


def test_case_17_shortest_edge_size_never_reaches_zero() -> None:
    assert shortest_edge_size(1, 100000, 800, 1333) == (1, 1333)


def test_resize_shortest_edge_range_and_choice_stay_in_their_sets() -> None:
    image = random_image(10, 20)
    rng = np.random.default_rng(0)
    in_range = {ResizeShortestEdge((4, 7), 0, "range").get_transform(image, rng).new_height for _ in range(60)}
    chosen = {ResizeShortestEdge((4, 7), 0).get_transform(image, rng).new_height for _ in range(30)}
    assert in_range == {4, 5, 6, 7}
    assert chosen == {4, 7}


def test_resize_fixed_and_inside_sizes() -> None:
    image = random_image(50, 100)
    rng = np.random.default_rng(0)
    assert ResizeFixed((30, 40)).get_transform(image, rng).apply_image(image).shape == (30, 40, 3)
    assert ResizeInside((30, 40)).get_transform(image, rng).apply_image(image).shape == (20, 40, 3)
    assert ResizeInside((30, 40)).output_size(100, 50) == (30, 15)
    assert ResizeInside((30, 40)).output_size(1, 10000) == (1, 40)


def test_random_flip_happens_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    image = random_image(2, 2)
    flips = sum(isinstance(RandomFlip().get_transform(image, rng), FlipTransform) for _ in range(200))
    assert 80 < flips < 120


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_color_transform_each_step_against_its_definition(image_format: str) -> None:
    image = random_image(4, 4) // 2
    weights = np.array([0.299, 0.587, 0.114])[:: -1 if image_format == "BGR" else 1]
    grey = image.astype(float) @ weights
    cases = {
        ("brightness", 1.5): image * 1.5,
        ("contrast", 0.5): grey.mean() + 0.5 * (image - grey.mean()),
        ("saturation", 0.0): np.repeat(grey[..., None], 3, axis=2),
        ("hue", 0.0): image.astype(float),
    }
    for step, expected in cases.items():
        changed = ColorTransform([step], image_format).apply_image(image)
        assert changed.dtype == np.uint8
        np.testing.assert_allclose(changed, expected, atol=0.51)


def test_color_transform_a_third_of_a_turn_exchanges_the_channels() -> None:
    red = np.array([[[200, 0, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(ColorTransform([("hue", 1 / 3)], "RGB").apply_image(red), [[[0, 200, 0]]])
    np.testing.assert_array_equal(ColorTransform([("hue", -1 / 3)], "RGB").apply_image(red), [[[0, 0, 200]]])
    blue_first = red[..., ::-1]
    np.testing.assert_array_equal(ColorTransform([("hue", 1 / 3)], "BGR").apply_image(blue_first), [[[0, 200, 0]]])


def test_color_jitter_draws_from_the_generator_alone() -> None:
    image = random_image(8, 8)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    steps = [jitter.get_transform(image, np.random.default_rng(seed)).steps for seed in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]
    orders = {
        tuple(name for name, _ in jitter.get_transform(image, np.random.default_rng(s)).steps) for s in range(200)
    }
    assert len(orders) == 24


def test_build_augmentations_follow_the_config(cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.COLOR_JITTER.HUE = 0.1
    kinds = [type(augmentation) for augmentation in build_augmentations(cfg, is_train=True)]
    assert kinds == [ColorJitter, ResizeShortestEdge, RandomFlip]
    assert [type(augmentation) for augmentation in build_augmentations(cfg, is_train=False)] == [ResizeShortestEdge]
    for mode, kind in (("fixed", ResizeFixed), ("letterbox", ResizeInside)):
        cfg.INPUT.RESIZE = mode
        assert isinstance(build_resize(cfg, is_train=False), kind)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("mode", ["shortest_edge", "fixed", "letterbox"])
def test_build_resize_resampling_holds_for_every_mode(mode: str, is_train: bool, cfg: CfgNode) -> None:
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = mode, (20, 33)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (21,), 21
    image, rng = random_image(51, 76), np.random.default_rng(0)
    plain = build_resize(cfg, is_train).get_transform(image, rng)
    cfg.INPUT.RESAMPLING, cfg.INPUT.RASTERIZE = "opencv", "before"
    official = build_resize(cfg, is_train).get_transform(image, rng)
    assert isinstance(plain, ResizeTransform)
    assert isinstance(official, ResizeTransform)
    assert plain.resampling == Resampling("pillow", "center")
    assert official.resampling == official.inverse().resampling == Resampling("opencv", "opencv")
    size = (official.new_width, official.new_height)
    assert size == (plain.new_width, plain.new_height)
    expected = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(official.apply_image(image), expected)
    assert not np.array_equal(plain.apply_image(image), expected)
    points = np.array([[75.5, 50.5], [3.0, 4.0]])
    np.testing.assert_array_equal(official.apply_coords(points), plain.apply_coords(points))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RESIZE", "stretch"),
        ("INPUT.RESAMPLING", "cubic"),
        ("INPUT.RASTERIZE", "never"),
        ("INPUT.RANDOM_FLIP", "diagonal"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "any"),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.MIN_SIZE_TRAIN", (-1,)),
        ("INPUT.COLOR_JITTER.HUE", 0.7),
        ("INPUT.COLOR_JITTER.BRIGHTNESS", -0.1),
    ],
)
def test_case_45_build_augmentations_impossible_value_names_the_key(key: str, value: object, cfg: CfgNode) -> None:
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=key.split("_TRAIN")[0]):
        build_augmentations(cfg, is_train=True)
