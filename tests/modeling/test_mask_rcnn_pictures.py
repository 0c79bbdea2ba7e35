"""Pictures of what Mask R-CNN's masks come from."""

from __future__ import annotations

import numpy as np
from detectron2.modeling import build_model

from segzoo.modeling.mask_rcnn_pictures import _place
from tests.contract.toys import make_input, toy_config

SIZE = (72, 100)


def test_mask_rcnn_pictures_show_proposals_and_masks() -> None:
    model = build_model(toy_config("MaskRCNN")).eval()
    pictures = model.map_pictures(make_input(SIZE, []))
    assert list(pictures) in ([], ["best proposals", "masks in their boxes"])
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    pictures = model.map_pictures(make_input(SIZE, []))
    assert list(pictures) == ["best proposals", "masks in their boxes"]
    assert all(picture.shape == (*SIZE, 3) and picture.dtype == np.uint8 for picture in pictures.values())


def test_place_stretches_a_mask_over_its_box() -> None:
    mask = np.array([[0.2, 0.4], [0.6, 0.8]], dtype=np.float32)
    heat = _place(mask[None], np.array([[2.0, 1.0, 6.0, 5.0]]), (6, 8))
    expected = np.zeros((6, 8), dtype=np.float32)
    expected[1:5, 2:6] = mask.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(heat, expected)
    beyond = _place(mask[None], np.array([[-9.0, -9.0, -1.0, -1.0]]), (6, 8))
    assert beyond.max() == 0
