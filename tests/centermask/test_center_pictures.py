"""Pictures of what CenterMask's masks are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from centermask.fcos_head import FCOSMaskMaps
from centermask.map_pictures import location_scores
from centermask.pictures import enlarge_saliency, product_canvas, shape_canvas
from segzoo.engine.predictor import Predictor
from tests.contract.toys import make_input, toy_config

BOX = torch.tensor([[8.0, 4.0, 24.0, 12.0]])
SIZE = (20, 32)


# Of both meta-architectures: the title of the scores' picture.
SCORES = {"CenterMask": "heatmap and its peaks", "CenterMaskFCOS": "class score x centerness"}
NODES = {"CenterMask": "CENTERMASK", "CenterMaskFCOS": "CENTERMASK_FCOS"}


def toy_predictor(name: str = "CenterMask", *options: Any, **changes: Any) -> Predictor:
    changed = [word for key, value in changes.items() for word in (f"MODEL.{NODES[name]}.{key}", value)]
    torch.manual_seed(0)
    predictor = Predictor(toy_config(name, "MODEL.WEIGHTS", "", *options, *changed))
    if name == "CenterMask":
        torch.nn.init.constant_(predictor.model.heads[0].size[2].bias, 6.0)
    else:
        predictor.model.decode_rule = predictor.model.decode_rule._replace(score_threshold=0.0)
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


@pytest.mark.parametrize("name", SCORES)
def test_map_pictures_show_all_parts_of_the_same_detections(name: str) -> None:
    pictures = toy_predictor(name).model.map_pictures(make_input((70, 90), []))
    assert list(pictures) == [
        SCORES[name],
        "local shapes",
        "saliency",
        "shape x saliency",
        "masks made of the maps",
    ]
    assert all(picture.shape == (70, 90, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    # No two of them are the same.
    assert len({picture.tobytes() for picture in pictures.values()}) == 5


@pytest.mark.parametrize("name", SCORES)
def test_map_pictures_leave_out_what_the_model_lacks(name: str) -> None:
    sample = make_input((70, 90), [])
    shape_only = toy_predictor(name, SALIENCY="none", SALIENCY_LOSS_WEIGHT=0.0).model.map_pictures(sample)
    assert list(shape_only) == [SCORES[name], "local shapes", "shape x saliency", "masks made of the maps"]
    saliency_only = toy_predictor(name, SHAPE_ON=False).model.map_pictures(sample)
    assert list(saliency_only) == [SCORES[name], "saliency", "shape x saliency", "masks made of the maps"]


@pytest.mark.parametrize("name", SCORES)
def test_there_are_no_map_pictures_of_nothing(name: str) -> None:
    model = toy_predictor(name).model
    model.decode_rule = model.decode_rule._replace(score_threshold=1.0)
    assert model.map_pictures(make_input((70, 90), [])) == {}


def test_location_scores_are_the_largest_of_all_levels_and_classes() -> None:
    fine, coarse = torch.full((1, 2, 3, 3), -30.0), torch.full((1, 2, 2, 2), -30.0)
    fine[0, 1, 0, 2], fine[0, 0, 2, 0], coarse[0, 0, 0, 0] = 0.0, float("nan"), 30.0
    centerness = [torch.zeros(1, 1, 3, 3), torch.full((1, 1, 2, 2), 30.0)]
    heat = location_scores(FCOSMaskMaps([fine, coarse], [], centerness, []), [8, 16])
    # Half a class score by half a centerness; the coarse cell over two by two; NaN is nothing.
    torch.testing.assert_close(heat, torch.tensor([[1.0, 1.0, 0.25], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("name", "size"), [("CenterMask", (320, 320)), ("CenterMaskFCOS", (180, 120))])
def test_map_pictures_by_the_predictor_are_of_the_network_s_input_size(name: str, size: tuple[int, int]) -> None:
    # Which of the keys counts depends on the config's way of resizing.
    options = ("INPUT.FIXED_SIZE", "(320, 320)", "INPUT.MIN_SIZE_TEST", 120)
    pictures = toy_predictor(name, *options).map_pictures(np.full((120, 80, 3), 50, dtype=np.uint8))
    assert {picture.shape[:2] for picture in pictures.values()} == {size}
