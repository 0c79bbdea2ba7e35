"""Whether two programs found the same objects."""

from __future__ import annotations

import numpy as np
from detectron2.structures import Instances

from segzoo.export.runtime.detections import Detections


def check_equal(found: Detections, expected: Instances, *, score: float = 1e-4, iou: float = 0.99) -> None:
    """The same classes in the same order, scores and boxes alike, masks that overlap by more than `iou`."""
    assert found.image_size == expected.image_size
    assert found.classes.tolist() == expected.pred_classes.tolist()
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), rtol=0, atol=score)
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor.numpy(), rtol=1e-4, atol=1e-2)
    if found.masks is None:
        assert not expected.has("pred_masks")
        return
    ours, theirs = found.bool_masks(), expected.pred_masks.to_tensor().numpy()
    union = (ours | theirs).sum(axis=(1, 2))
    overlap = (ours & theirs).sum(axis=(1, 2))
    assert (overlap >= iou * union).all()
