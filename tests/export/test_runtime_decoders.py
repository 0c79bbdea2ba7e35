"""The numpy decoders find what the models find, given the model's own maps: no export is needed for that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segzoo.engine.predictor import Predictor
from segzoo.export.files import input_rule
from segzoo.export.graphs import DenseGraph
from segzoo.export.plan import plan_of
from segzoo.export.runtime.model import RuntimeModel
from tests.contract.toys import MODELS
from tests.export.comparing import check_equal
from tests.export.conftest import IMAGE_SIZES, build_toy, make_image

# Mask R-CNN is not exported.
NAMES = sorted(set(MODELS) - {"MaskRCNN"})


class EagerGraphs(RuntimeModel):
    """The runtime with torch's own modules in place of onnxruntime's sessions."""

    def __init__(self, predictor: Predictor, *, takes_raw: bool = False) -> None:
        plan = plan_of(predictor.model)
        rule = input_rule(predictor.cfg, predictor.model.preprocessor, takes_raw) | {"size": None, "batch": None}
        self.metadata = {"decoder": plan.decoder, "input": rule}
        self.settings, self.class_names = dict(plan.settings), []
        self.dense = DenseGraph(predictor.model, plan, takes_raw)
        self.objects = None if plan.objects is None else plan.objects.module

    @torch.no_grad()
    def maps(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values.numpy() for name, values in self.dense.named(torch.from_numpy(batch)).items()}

    @torch.no_grad()
    def _run_objects(self, *inputs: np.ndarray) -> np.ndarray:
        return self.objects(*map(torch.from_numpy, inputs)).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_runtime_finds_what_the_model_finds(name: str) -> None:
    predictor = build_toy(name)
    runtime = EagerGraphs(predictor)
    num_pixels = 0
    for seed, size in enumerate(IMAGE_SIZES):
        image = make_image(size, seed)
        expected = predictor(image)
        assert len(expected) == 25
        check_equal(runtime(image), expected)
        num_pixels += int(expected.pred_masks.area().sum()) if expected.has("pred_masks") else 1
    assert num_pixels > 0


@pytest.mark.parametrize(
    "resize",
    [
        ["INPUT.RESIZE", "fixed", "INPUT.FIXED_SIZE", "(96, 160)"],
        ["INPUT.RESIZE", "letterbox", "INPUT.FIXED_SIZE", "(160, 200)"],
        ["INPUT.RESIZE", "fix_res", "INPUT.FIXED_SIZE", "(128, 192)"],
        ["INPUT.RESIZE", "fix_res", "INPUT.FIXED_SIZE", "(128, 192)", "INPUT.RESAMPLING", "opencv"],
        ["INPUT.RESIZE", "keep_res"],
        ["INPUT.RESAMPLING", "opencv"],
        ["INPUT.FORMAT", "RGB"],
        ["INPUT.MIN_SIZE_TEST", 0],
    ],
    ids=lambda words: "-".join(str(word) for word in words[1::2]),
)
def test_images_reach_the_network_as_in_evaluation(resize: list) -> None:
    predictor = build_toy("FCOS", *resize)
    for size, takes_raw in (((61, 90), False), ((200, 33), True)):
        image = make_image(size)
        check_equal(EagerGraphs(predictor, takes_raw=takes_raw)(image), predictor(image))


def test_a_mask_on_a_canvas_is_cut_to_the_image() -> None:
    predictor = build_toy("PolarMask", "INPUT.RESIZE", "keep_res")
    image = make_image((70, 90))
    found = EagerGraphs(predictor)(image)
    check_equal(found, predictor(image))
    assert found.bool_masks().shape == (len(found), 70, 90)


@pytest.mark.parametrize("name", NAMES)
def test_no_detections_leave_all_fields_empty(name: str) -> None:
    predictor = build_toy(name)
    runtime = EagerGraphs(predictor)
    runtime.settings["score_threshold"] = 2.0
    found = runtime(make_image((40, 56)))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.bool_masks().shape == (0, 40, 56)
    assert found.to_results() == []
