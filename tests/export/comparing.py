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


def check_alike(
    found: Detections, expected: Instances, threshold: float, *, score: float = 1e-3, iou: float = 0.0
) -> None:
    """As `check_equal`, for random models whose scores nearly tie: of equal scores either may come first, and what lies
    within `score` of the threshold, or of the worst of as many as are allowed, may be missing.
    """
    assert found.image_size == expected.image_size
    theirs = (expected.scores.numpy(), expected.pred_classes.numpy(), expected.pred_boxes.tensor.numpy())
    ours = (found.scores, found.classes, found.boxes)
    has_masks = found.masks is not None
    assert has_masks == expected.has("pred_masks")
    masks = (found.bool_masks(), expected.pred_masks.to_tensor().numpy()) if has_masks else None
    least = max([threshold, *(float(scores.min()) for scores, *_ in (ours, theirs) if len(scores))]) + score
    for turn, (one, other) in enumerate(((ours, theirs), (theirs, ours))):
        sure = one[0] > least
        assert sure.any()
        for place in np.flatnonzero(sure):
            value, number, box = (values[place] for values in one)
            is_it = (np.abs(other[0] - value) < score) & (other[1] == number)
            # A tenth of a pixel: random sizes are exponentials of large numbers.
            is_it &= (np.abs(other[2] - box) < 0.1).all(axis=1)
            assert is_it.any()
            if masks is not None:
                own, candidates = masks[turn][place], masks[1 - turn][is_it]
                overlap, union = (own & candidates).sum(axis=(1, 2)), (own | candidates).sum(axis=(1, 2))
                assert (overlap >= iou * union).any()
