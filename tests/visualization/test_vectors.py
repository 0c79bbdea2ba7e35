"""Fields of vectors are checked at their pixels: no mirrored axis, no shift by half a pixel."""

from __future__ import annotations

import numpy as np
import pytest

from segzoo.visualization import color_wheel, draw_arrows, draw_vectors, gradient_magnitude, vector_colors

RED, CYAN = (0, 0, 255), (255, 255, 0)
# Lines are anti-aliased: on a line the colour is nearly the whole.
NEARLY, HALF = 200, 100
WHITE = (255, 255, 255)
DIRECTIONS = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}


@pytest.fixture
def image() -> np.ndarray:
    return np.zeros((60, 80, 3), dtype=np.uint8)


def constant(x: float, y: float, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    return np.broadcast_to(np.array([x, y], dtype=np.float32)[:, None, None], (2, *size)).copy()


def only(row: int, column: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    where = np.zeros(size, dtype=bool)
    where[row, column] = True
    return where


def test_vector_colors_of_the_four_directions() -> None:
    field = np.array([list(DIRECTIONS.values())], dtype=np.float32).transpose(2, 0, 1)
    right, down, left, up = vector_colors(field, 1.0)[0].tolist()
    assert tuple(right) == RED
    assert tuple(left) == CYAN
    assert down == pytest.approx([0, 255, 128], abs=1)
    assert up == pytest.approx([255, 0, 128], abs=1)


def test_vector_colors_are_white_at_zero_and_full_from_the_largest_length_on() -> None:
    field = np.array([[[0.0, 2.0, 4.0, 400.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert vector_colors(field, 4.0)[0].tolist() == [[255, 255, 255], [128, 128, 255], [0, 0, 255], [0, 0, 255]]


def test_vector_colors_of_opposite_vectors_are_complements() -> None:
    field = np.random.default_rng(0).normal(size=(2, 9, 9))
    long = field / np.hypot(*field)
    total = vector_colors(long, 1.0).astype(int) + vector_colors(-long, 1.0)
    assert np.abs(total - 255).max() <= 1


@pytest.mark.parametrize("diameter", [30, 31])
def test_color_wheel_pixels_have_the_colours_of_their_directions(diameter: int) -> None:
    wheel = color_wheel(diameter)
    assert wheel.shape == (diameter, diameter, 3)
    assert wheel[0, 0].max() == 0
    middle, last = diameter // 2, diameter - 1
    for (row, column), (x, y) in zip(
        ((middle, last), (last, middle), (middle, 0), (0, middle)), DIRECTIONS.values(), strict=True
    ):
        full = vector_colors(np.array([[[x]], [[y]]]), 1.0)[0, 0].astype(int)
        assert np.abs(wheel[row, column] - full).max() < 20
    # The disc lies in the middle of its square.
    assert np.array_equal(wheel.any(axis=2), wheel[::-1, ::-1].any(axis=2))


def test_color_wheel_of_one_pixel_is_white() -> None:
    assert color_wheel(1).tolist() == [[[255, 255, 255]]]


def test_draw_vectors_colours_the_wanted_cells_only(image: np.ndarray) -> None:
    drawn = draw_vectors(image, constant(3, 0), 3.0, where=only(20, 30))
    assert tuple(drawn[20, 30]) == RED
    drawn[20, 30] = 0
    assert drawn.max() == 0
    assert image.max() == 0


def test_draw_vectors_stride_gives_squares_and_cuts_the_padding(image: np.ndarray) -> None:
    size = (16, 20)
    drawn = draw_vectors(image, constant(1, 0, size), 1.0, stride=4, where=only(5, 7, size))
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 23, 28, 31)


def test_draw_vectors_opacity_and_wheel(image: np.ndarray) -> None:
    drawn = draw_vectors(image, constant(1, 0), 1.0, opacity=0.5, wheel_px=20)
    assert drawn[10, 10].tolist() == [0, 0, 128]
    assert np.array_equal(drawn[50, 60:80], color_wheel(20)[10])
    assert drawn[59, 79].tolist() == [0, 0, 128]  # beside the disc


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_draw_arrows_point_where_the_vector_points(image: np.ndarray, direction: tuple[int, int]) -> None:
    x, y = direction
    drawn = draw_arrows(image, constant(12 * x, 12 * y), where=only(24, 40), color=WHITE)
    assert drawn[24, 40].min() > HALF
    for way in (2, 6, 12):
        assert drawn[24 + way * y, 40 + way * x].min() > HALF
    for way in (-3, 15):
        assert drawn[24 + way * y, 40 + way * x].max() == 0
    # Not shifted to a side: the arrow is its own mirror image.
    axis, middle = (0, 24) if x else (1, 40)
    window = drawn.take(range(middle - 8, middle + 9), axis=axis).astype(int)
    assert np.abs(np.flip(window, axis) - window).max() < 40


def test_draw_arrows_stand_on_a_grid(image: np.ndarray) -> None:
    drawn = draw_arrows(image, constant(0, 0), spacing_px=20, color=WHITE)
    rows, columns = np.nonzero(drawn.min(axis=2) > NEARLY)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) >= {(10, 10), (10, 70), (50, 70)}
    assert len(np.unique(rows // 20)) == 3
    assert np.array_equal(draw_arrows(image, constant(9, 0), where=only(24, 41)), image)


def test_draw_arrows_are_cut_to_the_largest_length_and_keep_their_direction(image: np.ndarray) -> None:
    drawn = draw_arrows(image, constant(300, 400), where=only(8, 8), max_length_px=20.0, color=WHITE)
    bright = np.argwhere(drawn.min(axis=2) > NEARLY)
    assert drawn[8 + 8, 8 + 6].min() > 100
    assert bright[:, 0].max() == pytest.approx(8 + 16, abs=1)
    assert bright[:, 1].max() == pytest.approx(8 + 12, abs=3)


def test_draw_arrows_of_cells_start_at_their_centres(image: np.ndarray) -> None:
    # Cells of 4 px: the centre of one is a corner of pixels.
    size = (15, 20)
    zero = draw_arrows(image, constant(0, 0, size), stride=4, where=only(2, 6, size), color=WHITE)
    rows, columns = np.nonzero(zero.max(axis=2))
    assert (rows.min() + rows.max() + 1) / 2 == 2.5 * 4
    assert (columns.min() + columns.max() + 1) / 2 == 6.5 * 4


def test_draw_arrows_take_the_colours_of_their_directions(image: np.ndarray) -> None:
    blue, green, red = draw_arrows(image, constant(-12, 0), where=only(24, 24))[24, 18].tolist()
    assert min(blue, green) > NEARLY
    assert red < 60


def test_not_finite_vectors_are_not_drawn(image: np.ndarray) -> None:
    field = constant(np.nan, np.inf)
    assert np.array_equal(draw_vectors(image, field, 1.0), image)
    assert np.array_equal(draw_arrows(image, field), image)
    assert gradient_magnitude(field).max() == 0


def test_empty_fields_draw_nothing(image: np.ndarray) -> None:
    nowhere = np.zeros((60, 80), dtype=bool)
    assert np.array_equal(draw_vectors(image, constant(1, 1), 1.0, where=nowhere), image)
    assert np.array_equal(draw_arrows(image, constant(1, 1), where=nowhere), image)
    none = np.zeros((0, 0, 3), dtype=np.uint8)
    assert draw_vectors(none, np.zeros((2, 0, 0)), 1.0, wheel_px=20).shape == (0, 0, 3)
    assert draw_arrows(none, np.zeros((2, 0, 0))).shape == (0, 0, 3)
    assert gradient_magnitude(np.zeros((2, 0, 5))).shape == (0, 5)


def test_gradient_magnitude_of_a_plane_and_of_a_jump() -> None:
    y, x = np.mgrid[:10, :12].astype(float)
    np.testing.assert_allclose(gradient_magnitude(np.stack((5 - x, 4 - y))), np.sqrt(2))
    jump = np.stack((10.0 * (x >= 6), 0 * y))
    found = gradient_magnitude(jump)
    assert np.array_equal(np.flatnonzero(found[0]), [5, 6])  # both sides of the border, neither more
    assert np.array_equal(found[:, 5:7], np.full((10, 2), 10.0))
    assert np.array_equal(gradient_magnitude(jump[:, :, ::-1]), found[:, ::-1])
    assert np.array_equal(gradient_magnitude(jump.transpose(0, 2, 1)), found.T)


def test_gradient_magnitude_compares_cells_with_a_vector_only() -> None:
    _, x = np.mgrid[:10, :12].astype(float)
    field = np.stack((np.where(x < 6, x, 1e4), 0 * x))
    found = gradient_magnitude(field, x < 6)
    assert np.array_equal(found, np.where(x < 6, 1.0, 0.0))


@pytest.mark.parametrize("shape", [(60, 80), (3, 60, 80), (60, 80, 2), (2, 59, 80), (2, 60, 79)])
def test_fields_of_a_wrong_shape_are_refused(image: np.ndarray, shape: tuple[int, ...]) -> None:
    for draw in (lambda field: draw_vectors(image, field, 1.0), lambda field: draw_arrows(image, field)):
        with pytest.raises(ValueError, match="field"):
            draw(np.zeros(shape))
    if len(shape) != 3 or shape[0] != 2:
        with pytest.raises(ValueError, match="field"):
            gradient_magnitude(np.zeros(shape))


def test_cells_and_lengths_that_make_no_sense_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cells to draw"):
        draw_arrows(image, constant(1, 1), where=np.ones((60, 80)))
    with pytest.raises(ValueError, match="cells to draw"):
        gradient_magnitude(constant(1, 1), np.ones((5, 5), dtype=bool))
    with pytest.raises(ValueError, match="positive"):
        draw_vectors(image, constant(1, 1), 0.0)
