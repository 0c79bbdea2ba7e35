"""Test images centred on a canvas: CenterNet's two resolutions, and results that come back to the original exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from segzoo.data.augmentation import build_resize
from segzoo.data.centering import CenterInside, CenterUnscaled, results_entry
from segzoo.data.loader import build_test_loader
from segzoo.data.mapper import DatasetMapper
from segzoo.data.registration import load_dataset
from segzoo.data.transforms import WindowTransform
from segzoo.errors import ConfigError
from segzoo.evaluation import evaluate
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.fcos.decode import output_scale
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.window import restore_originals
from tests.data.test_random_windows import COLORS, add_colored_objects, blank, nearest_color

SIDES = st.integers(1, 90)
RESIZES = {
    "square": CenterInside((64, 64)),
    "wide": CenterInside((48, 80)),
    "unscaled": CenterUnscaled(32),
    "hourglass": CenterUnscaled(128),
}


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES, name=st.sampled_from(list(RESIZES)))
def test_boxes_come_back_exactly(height: int, width: int, name: str) -> None:
    resize = RESIZES[name]
    transform = resize.get_transform(blank(height, width), np.random.default_rng(0))
    entry, size = results_entry(resize, height, width), resize.output_size(height, width)
    assert transform.apply_image(blank(height, width)).shape == (*size, 3)
    x0, y0, x1, y1 = entry["window"]
    assert (x1 - x0, y1 - y0) == (width, height)
    # Centred: as much on the left (above) as on the right (below), to a pixel.
    assert abs(entry["width"] - x1 - x0) <= 1
    assert abs(entry["height"] - y1 - y0) <= 1
    boxes = np.array([[0.0, 0.0, width, height], [0.2 * width, 0.3 * height, 0.7 * width, 0.9 * height]])
    shown = torch.from_numpy(transform.apply_box(boxes)).float()
    output_size = (entry["height"], entry["width"])
    given_back = shown * output_scale(size, output_size, shown.device).repeat(2)
    instances = build_instances(
        output_size,
        given_back,
        torch.ones(2),
        torch.zeros(2),
        RLEMasks(encode_masks(np.ones((2, *output_size))), output_size),
    )
    restored = restore_originals([entry], [{"instances": instances}])[0]["instances"]
    assert restored.image_size == restored.pred_masks.image_size == (height, width)
    np.testing.assert_allclose(restored.pred_boxes.tensor.numpy(), boxes, atol=1e-3)
    assert np.asarray(restored.pred_masks).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (512, 672)), ((512, 512), (544, 544)), ((31, 33), (32, 64)), ((1, 1), (32, 32))]
)
def test_center_unscaled_sides_are_those_of_centernet(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert CenterUnscaled(32).output_size(*size) == expected == tuple((side | 31) + 1 for side in size)
    assert CenterUnscaled(128).output_size(*size) == tuple((side | 127) + 1 for side in size)


def test_center_unscaled_shows_every_pixel_as_it_is_in_centernets_place() -> None:
    image = np.random.default_rng(0).integers(1, 256, (47, 61, 3), dtype=np.uint8)
    transform = CenterUnscaled(32).get_transform(image, np.random.default_rng(0))
    assert isinstance(transform, WindowTransform)
    shown = transform.apply_image(image)
    # CenterNet's center is (w // 2, h // 2), which goes to the middle of (96, 64) whole pixels.
    left, top = 48 - 61 // 2 - 16, 32 - 47 // 2
    np.testing.assert_array_equal(shown[top : top + 47, left : left + 61], image)
    assert np.count_nonzero(shown) == image.size


def test_center_inside_has_the_scale_of_centernet_and_black_around() -> None:
    image = np.full((480, 640, 3), 255, dtype=np.uint8)
    transform = CenterInside((512, 512)).get_transform(image, np.random.default_rng(0))
    np.testing.assert_allclose(transform.apply_coords(np.array([[0.0, 0.0], [640, 480]])), [[0, 64], [512, 448]])
    shown = transform.apply_image(image)
    assert (shown[65:447] == 255).all()
    assert not shown[:63].any()
    assert not shown[449:].any()


class ColorModel(nn.Module):
    """Finds the objects of `add_colored_objects` in the network's input, and says so at the size it is asked for."""

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        results = []
        for entry in batched_inputs:
            shown = torch.from_numpy(nearest_color(entry["image"].numpy().transpose(1, 2, 0)))
            planes = torch.stack([shown == number for number in range(len(COLORS))]).float()
            size = (entry["height"], entry["width"])
            masks = functional.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0] > 0.5
            instances = build_instances(
                size, mask_boxes(masks), torch.ones(2), torch.arange(2), RLEMasks(encode_masks(masks), size)
            )
            results.append({"instances": instances})
        return results


def prepare(cfg: CfgNode, mode: str, size: tuple[int, int] = (256, 256)) -> CfgNode:
    cfg.INPUT.FORMAT, cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = "RGB", mode, size
    return cfg


@pytest.mark.parametrize(("mode", "least"), [("fix_res", 95.0), ("keep_res", 100.0)])
def test_evaluation_of_a_model_that_sees_the_canvas_alone(mode: str, least: float, folder: Any, cfg: CfgNode) -> None:
    add_colored_objects(folder)
    # The crowd would hide a box.
    del folder.content["annotations"][2]
    name = folder.register()
    (batch,) = list(build_test_loader(prepare(cfg, mode), name))
    assert batch[0]["image"].shape == ((3, 256, 256) if mode == "fix_res" else (3, 64, 64))
    results = evaluate(cfg, ColorModel(), name)
    assert results["segm"]["AP"] >= least
    assert results["bbox"]["AP"] >= least
    # Without the way back nothing fits.
    (output,) = ColorModel()(batch)
    assert output["instances"].image_size != (47, 61)
    masks = np.asarray(restore_originals(batch, [output])[0]["instances"].pred_masks)
    truth = load_dataset(name)
    shown = nearest_color(
        DatasetMapper(prepare(cfg, "keep_res"), False)(truth[0], np.random.default_rng(0))["image"]
        .numpy()
        .transpose(1, 2, 0)
    )
    assert masks.shape == (2, 47, 61)
    assert masks.sum() == pytest.approx((shown < 2).sum(), rel=0.03)


def test_restore_originals_leaves_out_what_lies_in_the_surroundings_and_moves_points() -> None:
    canvas, window = (40, 50), (10, 5, 40, 30)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 40.0], [5.0, 6.0, 20.0, 16.0], [45.0, 0.0, 50.0, 9.0]])
    instances = Instances(canvas)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    instances.pred_masks = torch.ones(3, *canvas, dtype=torch.bool)
    instances.pred_centers = torch.tensor([[4.0, 20.0], [12.0, 11.0], [47.0, 4.0]])
    entries: list[dict] = [{"window": window}, {}]
    first, second = restore_originals(entries, [{"instances": instances}] * 2)
    cut = first["instances"]
    assert second["instances"] is instances
    assert cut.image_size == (25, 30)
    assert cut.pred_boxes.tensor.tolist() == [[0, 1, 10, 11]]
    assert cut.scores.tolist() == pytest.approx([0.8])
    assert cut.pred_centers.tolist() == [[2, 6]]
    assert cut.pred_masks.shape == (1, 25, 30)
    # The model's own result stays as it is.
    assert torch.equal(instances.pred_boxes.tensor, boxes)


def test_case_45_impossible_multiple_and_mode_name_the_key(cfg: CfgNode) -> None:
    cfg.INPUT.RESIZE, cfg.INPUT.KEEP_RES_MULTIPLE = "keep_res", 0
    with pytest.raises(ConfigError, match=r"INPUT\.KEEP_RES_MULTIPLE is 0"):
        build_resize(cfg, is_train=False)
    cfg.INPUT.RESIZE = "keep"
    with pytest.raises(ConfigError, match=r"(?s)INPUT\.RESIZE is 'keep'.*'keep_res'"):
        build_resize(cfg, is_train=False)
