"""Pictures of rays, heat and points are checked at their pixels."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from segzoo.visualization import draw_heat, draw_points, draw_polygons, draw_rays, instance_color

BLUE = (255, 0, 0)
# Lines are anti-aliased: on a line the colour is nearly the whole.
NEARLY = 200


@pytest.fixture
def image() -> np.ndarray:
    return np.zeros((100, 140, 3), dtype=np.uint8)


def ends_of(centers: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(D, 4, 2) ends of four rays: down, right, up, left."""
    return centers[:, None] + rays[..., None] * np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])


def test_draw_rays_shapes_that_disagree_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="centers"):
        draw_rays(image, np.zeros((2, 2)), np.zeros((3, 36, 2)))


def test_draw_rays_end_where_they_should(image: np.ndarray) -> None:
    # Centre of the pixel (row 40, col 60); the ends are centres of pixels too.
    center, rays = np.array([[60.5, 40.5]]), np.array([[30.0, 50.0, 20.0, 10.0]])
    drawn = draw_rays(image, center, ends_of(center, rays), BLUE, with_contour=False)
    for row, col in ((69, 60), (40, 109), (21, 60), (40, 51)):
        assert drawn[row, col, 0] > NEARLY
    for row, col in ((73, 60), (40, 113), (17, 60), (40, 47), (60, 80)):
        assert drawn[row, col].max() == 0
    assert np.array_equal(drawn[40, 60], BLUE)


def test_draw_rays_contour_joins_the_ends(image: np.ndarray) -> None:
    center = np.array([[60.5, 40.5]])
    ends = ends_of(center, np.full((1, 4), 30.0))
    drawn = draw_rays(image, center, ends, BLUE)
    middle = drawn[55, 75]  # half-way between the end at the bottom and that at the right
    assert middle.min() > 100
    alone = draw_rays(image, center, ends, BLUE, with_contour=False)
    assert alone[55, 75].max() == 0


def test_draw_rays_not_finite_is_left_out_with_a_warning(image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    rays = np.array([[10.0, np.nan, 10.0, 10.0], [10.0, 10.0, 10.0, 10.0]])
    with caplog.at_level(logging.WARNING):
        centers = np.array([[30.5, 40.5], [100.5, 40.5]])
        drawn = draw_rays(image, centers, ends_of(centers, rays))
    assert "1 of 2" in caplog.text
    assert drawn[:, :70].max() == 0
    assert drawn[:, 70:].max() > 0


def test_draw_rays_beyond_the_image_and_none_do_not_fail(image: np.ndarray) -> None:
    center = np.array([[60.5, 40.5]])
    drawn = draw_rays(image, center, ends_of(center, np.full((1, 4), 1e9)), BLUE)
    assert drawn[40, 139, 0] > NEARLY
    assert np.array_equal(draw_rays(image, np.zeros((0, 2)), np.zeros((0, 36, 2))), image)


def test_draw_polygons_colours_the_outline_only(image: np.ndarray) -> None:
    square = np.array([[[20.5, 20.5], [60.5, 20.5], [60.5, 60.5], [20.5, 60.5]]])
    drawn = draw_polygons(image, square, BLUE)
    assert drawn[40, 60, 0] > NEARLY
    assert drawn[20, 40, 0] > NEARLY
    assert drawn[40, 40].max() == 0


def test_draw_points_take_the_colours_of_their_owners(image: np.ndarray) -> None:
    drawn = draw_points(image, np.array([[20.5, 30.5], [80.5, 30.5]]), np.array([0, 4]))
    assert np.array_equal(drawn[30, 20], instance_color(0))
    assert np.array_equal(drawn[30, 80], instance_color(4))
    assert drawn[60, 50].max() == 0


def test_draw_heat_is_blue_where_low_and_red_where_high(image: np.ndarray) -> None:
    heat = np.zeros((13, 18))
    heat[5, 10] = 1.0
    heat[5, 11] = np.nan
    drawn = draw_heat(image, heat, stride=8)  # 104 x 144 px: the padding is cut off
    assert drawn.shape == image.shape
    blue, _, red = drawn[44, 84].tolist()
    assert red > 50 > blue
    for row, col in ((4, 4), (44, 92), (44, 76), (36, 84)):
        blue, _, red = drawn[row, col].tolist()
        assert blue > 50 > red


def test_draw_heat_without_stride_is_stretched(image: np.ndarray) -> None:
    heat = np.array([[0.0, 2.0]])
    drawn = draw_heat(image, heat, max_value=2.0)
    assert drawn[50, 60, 0] > 50 > drawn[50, 60, 2]
    assert drawn[50, 80, 2] > 50 > drawn[50, 80, 0]


@pytest.mark.parametrize(("shape", "stride"), [((5, 5), 8), ((0, 5), None), ((5,), None)])
def test_draw_heat_of_a_wrong_size_is_refused(image: np.ndarray, shape: tuple[int, ...], stride: int | None) -> None:
    with pytest.raises(ValueError, match="heat map"):
        draw_heat(image, np.zeros(shape), stride)
