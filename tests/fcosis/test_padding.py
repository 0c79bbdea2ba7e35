"""The padding of boxes against the exact root of its equation and against trying one whole number after the other."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.padding import mask_padding, pad_boxes

CELL_PX = 4


def smallest_padding(width: Fraction, height: Fraction, foreground: Fraction) -> int:
    """Oracle: the first whole number that makes the foreground half of the padded box, or less."""
    return next(p for p in itertools.count() if (width + 2 * p) * (height + 2 * p) >= 2 * foreground)


def exact_root(width: Fraction, height: Fraction, foreground: Fraction) -> Decimal:
    """p* of (w + 2 p*) (h + 2 p*) = 2 F, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        square = (width - height) ** 2 + 8 * foreground
        root = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
        total = width + height
        return (root - Decimal(total.numerator) / Decimal(total.denominator)) / 4


def random_objects(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of whole pixels, as those of masks, from one to 400 px wide and high, and the shares that masks cover."""
    rng = np.random.default_rng(seed)
    sides = np.ceil(np.exp(rng.uniform(0, np.log(400), (count, 2))))
    corners = rng.integers(0, 900, (count, 2))
    pixels = np.ceil(rng.uniform(0, 1, count) ** 0.5 * sides.prod(axis=1))
    boxes = np.concatenate((corners, corners + sides), axis=1)
    return torch.from_numpy(boxes).float() / CELL_PX, torch.from_numpy(pixels).float() / CELL_PX**2


def as_fractions(box: Tensor, area: Tensor) -> tuple[Fraction, Fraction, Fraction]:
    left, top, right, bottom = (Fraction(value) for value in box.tolist())
    return right - left, bottom - top, Fraction(float(area))


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["whole pixels", "any float"])
def test_padding_is_the_ceiling_of_the_exact_root(shift: float) -> None:
    boxes, areas = random_objects(4000, seed=0)
    # Corners and sides that binary fractions of a pixel cannot give.
    boxes = boxes + torch.tensor([0, 0, shift, shift / 3])
    padding = mask_padding(boxes, areas)
    assert padding.dtype == torch.float32
    for box, area, found in zip(boxes, areas, padding.tolist(), strict=True):
        width, height, foreground = as_fractions(box, area)
        assert found == smallest_padding(width, height, foreground), (box, area)
        if 2 * foreground > width * height:
            assert 0 <= Decimal(found) - exact_root(width, height, foreground) < 1
        else:
            assert found == 0
    assert len(padding.unique()) > 15
    assert (padding == 0).float().mean() > 0.1


def test_padding_of_roots_that_are_whole_numbers() -> None:
    """2 F = (w + 2 p)(h + 2 p) exactly: p itself, not the next number; a sixteenth more of foreground needs p + 1."""
    sides = [Fraction(n, 4) for n in (1, 3, 7, 40, 333, 1333)]
    cases = [(w, h, p) for w in sides for h in sides for p in (0, 1, 2, 17, 100)]
    boxes = torch.tensor([[3.25, 7.5, 3.25 + float(w), 7.5 + float(h)] for w, h, _ in cases])
    areas = torch.tensor([float((w + 2 * p) * (h + 2 * p) / 2) for w, h, p in cases])
    expected = torch.tensor([float(p) for *_, p in cases])
    torch.testing.assert_close(mask_padding(boxes, areas), expected, atol=0, rtol=0)
    torch.testing.assert_close(mask_padding(boxes, areas + 1 / 16), expected + 1, atol=0, rtol=0)


def test_a_box_of_one_pixel_gets_one_cell_on_each_side() -> None:
    box, area = torch.tensor([[2.5, 1.25, 2.75, 1.5]]), torch.tensor([1 / 16])
    # (sqrt(8 / 16) - 0.5) / 4 = 0.052
    padding = mask_padding(box, area)
    assert padding.tolist() == [1.0]
    assert pad_boxes(box, padding).tolist() == [[1.5, 0.25, 3.75, 2.5]]


@pytest.mark.parametrize(
    ("foreground", "expected"), [(0.0, 0.0), (1.0, 0.0), (29.9375, 0.0), (30.0, 0.0), (30.0625, 1)]
)
def test_no_padding_where_half_is_foreground_or_less(foreground: float, expected: float) -> None:
    assert mask_padding(torch.tensor([[4.0, 5.0, 14.0, 11.0]]), torch.tensor([foreground])).tolist() == [expected]


def test_a_full_box_is_padded_to_twice_its_area() -> None:
    # 20 x 20 full cells: 28.28 wide would be exact, p* = 4.14.
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    padded = pad_boxes(boxes, mask_padding(boxes, torch.tensor([400.0])))
    assert padded.tolist() == [[-5.0, -5.0, 25.0, 25.0]]


def test_no_objects_have_no_padding() -> None:
    boxes = torch.zeros(0, 4)
    padding = mask_padding(boxes, torch.zeros(0))
    assert padding.shape == (0,)
    assert pad_boxes(boxes, padding).shape == (0, 4)
