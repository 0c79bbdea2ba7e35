"""What every model promises at test time beside the acceptance cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model

from tests.contract.toys import FIND_ALL, make_input, predict, toy_config

Build = Callable[..., torch.nn.Module]


@pytest.mark.parametrize("pad_to", [(64, 96), (256, 256)])
def test_padding_gives_no_detections(build: Build, pad_to: tuple[int, int]) -> None:
    model = build(*FIND_ALL)
    (instances,) = predict(model, [make_input((40, 40), [], pad_to=pad_to)])
    assert len(instances.scores) > 0
    assert (instances.pred_boxes.area() > 0).all()


def test_results_scale_with_the_output_size(build: Build, model_name: str) -> None:
    model = build(*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 20)
    (small,) = predict(model, [make_input((64, 96), [])])
    (large,) = predict(model, [make_input((64, 96), [], height=128, width=288)])
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    if model_name.endswith("-official"):
        # The authors' boxes end at their last pixel, whatever its size: what is given out ends one pixel later.
        pixel = torch.tensor([0.0, 0.0, 1.0, 1.0])
        last = (small.pred_boxes.tensor - pixel) * scale + pixel
        inside = (last < torch.tensor([288.0, 128.0, 288.0, 128.0])).all(dim=1)
        inside &= (small.pred_boxes.tensor < torch.tensor([96.0, 64.0, 96.0, 64.0])).all(dim=1)
        torch.testing.assert_close(large.pred_boxes.tensor[inside], last[inside], rtol=1e-4, atol=1e-2)
        return
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * scale, rtol=1e-4, atol=1e-2)


def test_polarmask_keeps_centres_and_contours_for_pictures() -> None:
    torch.manual_seed(1)
    model = build_model(toy_config("PolarMask", *FIND_ALL))
    (instances,) = predict(model, [make_input((64, 96), [], height=128, width=288)])
    contours = instances.pred_contours
    assert instances.pred_centers.shape == (len(instances.scores), 2)
    assert contours.shape == (len(instances.scores), 36, 2)
    # Ray 0 points down and ray 9 of 36 to the right of the centre.
    assert torch.equal(contours[:, 0, 0], instances.pred_centers[:, 0])
    assert (contours[:, 0, 1] > instances.pred_centers[:, 1]).all()
    assert (contours[:, 9, 0] > instances.pred_centers[:, 0]).all()
    corners = torch.cat((contours.amin(dim=1), contours.amax(dim=1)), dim=1)
    limit = torch.tensor([288.0, 128.0, 288.0, 128.0])
    torch.testing.assert_close(instances.pred_boxes.tensor, corners.clamp(min=0).minimum(limit))
