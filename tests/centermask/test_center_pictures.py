"""Pictures of what CenterMask's masks are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from centermask.pictures import enlarge_saliency, product_canvas, shape_canvas
from segzoo.engine.predictor import Predictor
from tests.contract.toys import make_input, toy_config

BOX = torch.tensor([[8.0, 4.0, 24.0, 12.0]])
SIZE = (20, 32)


def toy_predictor(**changes: Any) -> Predictor:
    options = [word for key, value in changes.items() for word in (f"MODEL.CENTERMASK.{key}", value)]
    torch.manual_seed(0)
    predictor = Predictor(toy_config("CenterMask", "MODEL.WEIGHTS", "", *options))
    torch.nn.init.constant_(predictor.model.heads[0].size[2].bias, 6.0)
    return predictor


def test_shapes_lie_in_their_boxes() -> None:
    # Left half of the box inside, right half outside.
    shapes = torch.full((1, 4, 4), -20.0)
    shapes[..., :2] = 20.0
    canvas = shape_canvas(shapes, BOX, SIZE)
    assert canvas.shape == SIZE
    assert (canvas[4:12, 8:14] > 0.99).all()
    assert (canvas[4:12, 18:24] < 0.01).all()
    canvas[4:12, 8:24] = 0
    assert not canvas.any()


def test_the_product_is_that_of_shape_and_saliency_of_the_channel() -> None:
    shapes, saliency = torch.full((1, 2, 2), 0.5), torch.zeros(2, *SIZE)
    saliency[1, :, 16:] = 2.0
    canvas = product_canvas(shapes, saliency, BOX, torch.tensor([1]), SIZE)
    shape = float(torch.tensor(0.5).sigmoid())
    torch.testing.assert_close(canvas[4:12, 8:16], torch.full((8, 8), shape / 2))
    torch.testing.assert_close(canvas[4:12, 16:24], torch.full((8, 8), shape * float(torch.tensor(2.0).sigmoid())))
    alone = product_canvas(None, saliency, BOX, torch.tensor([1]), SIZE)
    assert float(alone[5, 9]) == 0.5


def test_saliency_is_cut_to_the_image() -> None:
    assert enlarge_saliency(torch.zeros(3, 8, 8), (30, 31)).shape == (3, 30, 31)


def test_map_pictures_show_all_parts_of_the_same_detections() -> None:
    predictor = toy_predictor()
    model, sample = predictor.model, make_input((70, 90), [])
    pictures = model.map_pictures(sample)
    assert list(pictures) == [
        "heatmap and its peaks",
        "local shapes",
        "saliency",
        "shape x saliency",
        "masks made of the maps",
    ]
    assert all(picture.shape == (70, 90, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    # No two of them are the same.
    assert len({picture.tobytes() for picture in pictures.values()}) == 5


def test_map_pictures_leave_out_what_the_model_lacks() -> None:
    sample = make_input((70, 90), [])
    shape_only = toy_predictor(SALIENCY="none", SALIENCY_LOSS_WEIGHT=0.0).model.map_pictures(sample)
    assert "saliency" not in shape_only
    assert "local shapes" in shape_only
    saliency_only = toy_predictor(SHAPE_ON=False).model.map_pictures(sample)
    assert "local shapes" not in saliency_only
    assert "saliency" in saliency_only
    assert toy_predictor(SCORE_THRESH_TEST=1.0).model.map_pictures(sample) == {}


def test_map_pictures_by_the_predictor_are_of_the_network_s_input_size() -> None:
    pictures = toy_predictor().map_pictures(np.full((120, 80, 3), 50, dtype=np.uint8))
    assert {picture.shape[:2] for picture in pictures.values()} == {(320, 320)}
