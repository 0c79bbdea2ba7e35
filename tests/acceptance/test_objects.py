"""Cases 16, 20, 21, 25, 26, 29 to 31: images without objects and hard objects, in training of every model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.contract.toys import ellipse, losses_and_gradients, make_input

SIZE = (64, 96)
Build = Callable[..., torch.nn.Module]


# Parts of the names of losses that objects alone have.
OF_POSITIVES = ("box", "mask", "centerness", "rpn_loc", "_xy", "_wh", "_obj", "_orien", "_offset", "_size")


def test_case_20_no_objects_leave_only_the_class_losses(build: Build) -> None:
    losses = losses_and_gradients(build(), [make_input(SIZE, [], seed) for seed in range(2)])
    dense = ("cls", "noobj", "heatmap")
    assert any(part in key and float(value) > 0 for key, value in losses.items() for part in dense)
    for key, value in losses.items():
        if any(part in key for part in OF_POSITIVES):
            assert float(value) == 0.0, key


def test_case_20_one_empty_image_of_two_trains(build: Build) -> None:
    batch = [make_input(SIZE, [ellipse(SIZE, (40, 30), (22, 17))], 0), make_input(SIZE, [], 1)]
    losses = losses_and_gradients(build(), batch)
    assert sum(float(value) > 0 for value in losses.values()) >= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 5)])
def test_case_16_images_smaller_than_a_stride_train(build: Build, size: tuple[int, int]) -> None:
    full = np.ones(size, dtype=bool)
    losses_and_gradients(build(), [make_input(size, [full], 0), make_input(SIZE, [ellipse(SIZE, (40, 30), (9, 9))], 1)])


def hard_masks() -> dict[str, np.ndarray]:
    """One mask for each hard kind of object."""
    blank = np.zeros(SIZE, dtype=bool)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    masks = {name: blank.copy() for name in ("pixel", "row", "last", "parts", "border", "cross", "specks")}
    masks["pixel"][20, 30] = True
    masks["row"][33, 5:70] = True
    masks["last"][-1, 40:60] = True
    masks["parts"][5:9, 5:9] = masks["parts"][50:60, 60:90] = True
    masks["border"][[0, -1]] = masks["border"][:, [0, -1]] = True
    masks["cross"][27:29, 10:80] = masks["cross"][5:60, 43:45] = True
    masks["specks"][[10, 50, 10], [12, 12, 80]] = True
    masks["ring"] = ellipse(SIZE, (48, 32), (30, 28)) & ~ellipse(SIZE, (48, 32), (24, 22))
    masks["arc"] = masks["ring"] & (x + y < 60)  # its mass centre lies outside
    masks["full"] = ~blank
    return masks


# No location of a stride of 8 lies strictly inside the box of an object one pixel high or wide.
WITHOUT_LOCATION = {"pixel", "row", "last"}


@pytest.mark.parametrize("kind", sorted(hard_masks()))
def test_case_25_26_31_hard_masks_give_finite_losses(build: Build, model_name: str, kind: str) -> None:
    losses = losses_and_gradients(build(), [make_input(SIZE, [hard_masks()[kind]])])
    if model_name in ("FCOS", "PolarMask"):
        regressed = losses["loss_box" if model_name == "FCOS" else "loss_mask"]
        assert (regressed > 0) == (kind not in WITHOUT_LOCATION)
        assert regressed < 12


def test_case_29_identical_objects_are_assigned_the_same_way_each_time(build: Build) -> None:
    mask = ellipse(SIZE, (40, 30), (22, 17))
    model = build()
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        losses = losses_and_gradients(model, [make_input(SIZE, [mask, mask, mask])])
        values.append({key: value.item() for key, value in losses.items()})
    assert values[0] == values[1]


def test_case_30_three_hundred_objects_train(build: Build) -> None:
    rng = np.random.default_rng(0)
    masks = [
        ellipse(SIZE, (x, y), (r, r))
        for x, y, r in zip(rng.uniform(5, 90, 300), rng.uniform(5, 60, 300), rng.uniform(2, 9, 300), strict=True)
    ]
    losses_and_gradients(build(), [make_input(SIZE, masks)])
