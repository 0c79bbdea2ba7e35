"""Pictures of what PolarMask's masks come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from polarmask.pictures import MAX_SHOWN, _over_levels
from tests.contract.toys import make_input, toy_config

SIZE = (72, 100)


@pytest.mark.parametrize("name", ["PolarMask", "PolarMask-official"])
def test_map_pictures_show_where_and_how_objects_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(toy_config(name)).eval()
    nn.init.constant_(model.head.cls_logits.bias, 1.0)
    drawn = []

    def draw(image: np.ndarray, centers: np.ndarray, contours: np.ndarray) -> np.ndarray:
        drawn.append((centers, contours))
        return image

    monkeypatch.setattr("polarmask.pictures.draw_rays", draw)
    sample = make_input(SIZE, [])
    pictures = model.map_pictures(sample)
    assert list(pictures) == ["class probability", "x centerness", "centres and rays"]
    assert all(picture.shape == (*SIZE, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    assert not np.array_equal(pictures["class probability"], pictures["x centerness"])
    # The rays are those of a forward's best detections, at the network's own size.
    with torch.no_grad():
        (output,) = model([{"image": sample["image"]}])
    centers, contours = drawn[0]
    assert 0 < len(centers) <= MAX_SHOWN
    np.testing.assert_allclose(contours, output["instances"].pred_contours[: len(centers)])
    np.testing.assert_allclose(centers, output["instances"].pred_centers[: len(centers)])


def test_map_pictures_are_none_where_nothing_is_found() -> None:
    model = build_model(toy_config("PolarMask")).eval()
    nn.init.constant_(model.head.cls_logits.bias, -20.0)
    assert model.map_pictures(make_input(SIZE, [])) == {}


def test_over_levels_takes_the_largest_cell_over_each_pixel() -> None:
    fine, coarse = torch.zeros(4, 5), torch.zeros(2, 3)
    fine[1, 2], fine[3, 4], coarse[0, 1] = 0.9, 0.4, 0.5
    heat = _over_levels([fine, coarse], [2, 4], (7, 9))
    expected = np.zeros((7, 9))
    expected[0:4, 4:8] = 0.5
    expected[2:4, 4:6] = 0.9
    expected[6:7, 8:9] = 0.4
    np.testing.assert_allclose(heat, expected)
