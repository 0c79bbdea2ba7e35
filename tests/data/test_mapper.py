"""The mapper: masks are pycocotools' bit for bit; an instance is kept or lost as a whole (cases 10, 15, 16, 20-31)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import TransformList
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from segzoo.data.mapper import LOST_INSTANCES, SURPLUS_INSTANCES, DatasetMapper, draw_instances
from segzoo.data.registration import load_dataset
from segzoo.data.transforms import FlipTransform, ResizeTransform
from segzoo.errors import ConfigError, DatasetError
from segzoo.geometry.masks import mask_boxes


def map_one(folder: Any, cfg: CfgNode, is_train: bool = True, seed: int = 0, index: int = 0) -> dict[str, Any]:
    return DatasetMapper(cfg, is_train)(load_dataset(folder.register())[index], np.random.default_rng(seed))


def record_of(height: int, width: int) -> dict[str, Any]:
    return {"file_name": "none.png", "image_id": 1, "height": height, "width": width}


def draw(segmentations: list[Any], height: int, width: int, *transforms: Any) -> tuple[Any, int]:
    size = (height, width)
    for transform in transforms:
        size = transform.apply_segmentation(np.zeros(size, dtype=np.uint8)).shape
    annotations = [{"id": k, "segmentation": s, "category_id": k} for k, s in enumerate(segmentations)]
    return draw_instances(annotations, TransformList(list(transforms)), record_of(height, width), size)


@st.composite
def polygons(draw_value: Any) -> tuple[int, int, list[list[float]]]:
    height, width = draw_value(st.integers(1, 40)), draw_value(st.integers(1, 40))
    coordinate = st.floats(-0.5, 60.0, allow_nan=False).map(lambda value: round(value, 2))
    part = st.lists(coordinate, min_size=6, max_size=16).map(lambda values: values[: len(values) // 2 * 2])
    return height, width, draw_value(st.lists(part, min_size=1, max_size=3))


def oracle(parts: list[list[float]], height: int, width: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).astype(bool)


@settings(max_examples=150, deadline=None)
@given(case=polygons())
def test_case_22_draw_instances_polygons_equal_pycocotools_bit_for_bit(case: tuple[int, int, list]) -> None:
    height, width, parts = case
    expected = oracle(parts, height, width)
    instances, num_lost = draw([parts], height, width)
    assert num_lost == int(not expected.any())
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected[None][: int(expected.any())])
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor))


@settings(max_examples=60, deadline=None)
@given(case=polygons(), new_size=st.tuples(st.integers(1, 60), st.integers(1, 60)), is_flipped=st.booleans())
def test_case_22_draw_instances_transformed_polygons_are_drawn_at_the_final_size(
    case: tuple[int, int, list], new_size: tuple[int, int], is_flipped: bool
) -> None:
    height, width, parts = case
    new_height, new_width = new_size
    moved = []
    for part in parts:
        points = np.array(part).reshape(-1, 2) * [new_width / width, new_height / height]
        if is_flipped:
            points[:, 0] = new_width - points[:, 0]
        moved.append(points.reshape(-1).tolist())
    expected = oracle(moved, new_height, new_width)
    transforms = [ResizeTransform(height, width, new_height, new_width)]
    transforms += [FlipTransform(new_height, new_width)] if is_flipped else []
    instances, _ = draw([parts], height, width, *transforms)
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected[None][: int(expected.any())])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99), density=st.sampled_from([0.1, 0.9])
)
def test_case_22_draw_instances_rle_is_transformed_pixel_by_pixel(
    height: int, width: int, seed: int, density: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    resize, flip = ResizeTransform(height, width, 17, 9), FlipTransform(17, 9)
    for transforms, expected in (
        ([], mask),
        ([resize, flip], flip.apply_segmentation(resize.apply_segmentation(mask))),
    ):
        instances, _ = draw([rle], height, width, *transforms)
        kept = expected[None][: int(expected.any())]
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), kept)
        assert torch.equal(instances.gt_boxes.tensor, mask_boxes(torch.from_numpy(kept.copy())))


def test_case_24_lost_instances_leave_every_list_together(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation=[[5.0, 5.0, 7.0, 5.0, 7.0, 7.0, 5.0, 7.0]], category_id=1)
    folder.add_annotation(segmentation=[[0.0, 0.0, 40.0, 0.0, 40.0, 30.0, 0.0, 30.0]], category_id=2)
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = "fixed", (3, 4)
    sample = map_one(folder, cfg)
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 4, 3]]
    assert instances.gt_masks.tensor.shape == (1, 3, 4)
    assert sample["counts"] == {LOST_INSTANCES: 1}


@pytest.mark.parametrize("is_crowd", [False, True])
def test_case_20_and_21_no_objects_still_give_every_field(is_crowd: bool, folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_image(40, 30)
    folder.add_annotation(image_id=2)
    if is_crowd:
        folder.add_annotation(image_id=1, iscrowd=1)
    instances = map_one(folder, cfg)["instances"]
    assert len(instances) == 0
    assert instances.image_size == (30, 40)
    assert instances.gt_masks.tensor.shape == (0, 30, 40)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_mapper_training_sample_fields(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(category_id=2)
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    sample = map_one(folder, cfg)
    assert sample["image"].shape == (3, 60, 80)
    assert sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"], sample["image_id"]) == (30, 40, 1)
    instances = sample["instances"]
    assert instances.image_size == (60, 80)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor))
    assert instances.gt_classes.tolist() == [1]


def test_mapper_channel_order_follows_the_config(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(4, 3)
    stored = torch.from_numpy(np.array(Image.open(folder.root / "1.png")).transpose(2, 0, 1))
    assert torch.equal(map_one(folder, cfg)["image"], stored.flip(0))
    cfg.INPUT.FORMAT = "RGB"
    assert torch.equal(map_one(folder, cfg)["image"], stored)
    cfg.INPUT.FORMAT = "YUV"
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT is 'YUV'"):
        map_one(folder, cfg)


def test_mapper_test_sample_has_no_instances_and_the_original_size(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = "letterbox", (64, 64)
    sample = map_one(folder, cfg, is_train=False)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "pad_to"}
    assert sample["image"].shape == (3, 48, 64)
    assert (sample["height"], sample["width"], sample["pad_to"]) == (30, 40, (64, 64))


def test_mapper_same_generator_same_sample_and_the_dict_is_not_changed(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 30, 40, 50)
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.5
    before = repr(load_dataset(folder.register()))
    samples = [map_one(folder, cfg, seed=seed) for seed in (3, 3, 4)]
    assert repr(load_dataset("test_set")) == before
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert torch.equal(samples[0]["instances"].gt_masks.tensor, samples[1]["instances"].gt_masks.tensor)
    different = samples[0]["image"].shape != samples[2]["image"].shape
    assert different or not torch.equal(samples[0]["image"], samples[2]["image"])


def test_case_30_a_thousand_instances_are_cut_to_a_seeded_subset(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    for k in range(1000):
        x, y = k % 40, k // 40
        square = [x, y, x + 1, y, x + 1, y + 1, x, y + 1]
        folder.add_annotation(segmentation=[[float(value) for value in square]], bbox=[x, y, 1, 1])
    cfg.INPUT.MAX_INSTANCES = 50
    first, again, other = (map_one(folder, cfg, seed=seed) for seed in (0, 0, 1))
    assert first["instances"].gt_masks.tensor.shape == (50, 30, 40)
    assert first["counts"] == {SURPLUS_INSTANCES: 950}
    assert torch.equal(first["instances"].gt_boxes.tensor, again["instances"].gt_boxes.tensor)
    assert not torch.equal(first["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
    cfg.INPUT.MAX_INSTANCES = 0
    assert len(map_one(folder, cfg)["instances"]) == 1000


def test_case_31_objects_at_the_borders_survive_flip_and_resize(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation=[[0.0, 29.0, 40.0, 29.0, 40.0, 30.0, 0.0, 30.0]], bbox=[0, 29, 40, 1])
    folder.add_annotation(segmentation=[[0.0, 0.0, 40.0, 0.0, 40.0, 30.0, 0.0, 30.0]], bbox=[0, 0, 40, 30])
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    plain = map_one(folder, cfg)["instances"]
    assert plain.gt_boxes.tensor.tolist() == [[0, 58, 80, 60], [0, 0, 80, 60]]
    assert plain.gt_masks.tensor[0, 58:].all()
    assert plain.gt_masks.tensor[1].all()
    cfg.INPUT.RANDOM_FLIP = "vertical"
    samples = [map_one(folder, cfg, seed=seed)["instances"] for seed in range(8)]
    tops = {int(sample.gt_boxes.tensor[0, 1]) for sample in samples}
    assert tops == {0, 58}
    assert all(sample.gt_masks.tensor[1].all() for sample in samples)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5)])
def test_case_16_tiny_images_pass(size: tuple[int, int], folder: Any, cfg: CfgNode) -> None:
    height, width = size
    folder.add_image(width, height)
    whole = [0.0, 0.0, float(width), 0.0, float(width), float(height), 0.0, float(height)]
    folder.add_annotation(segmentation=[whole], bbox=[0, 0, width, height])
    instances = map_one(folder, cfg)["instances"]
    assert instances.gt_masks.tensor.shape == (1, height, width)
    assert instances.gt_masks.tensor.all()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (32,), 64
    assert map_one(folder, cfg)["instances"].gt_masks.tensor.all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_15_masks_lie_on_the_upright_image(orientation: int, folder: Any, cfg: CfgNode) -> None:
    upright = np.zeros((30, 40, 3), dtype=np.uint8)
    upright[5:12, 20:38] = 255
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    folder.add_image(40, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder.root / "1.png", exif=exif)
    folder.add_annotation(segmentation=[[20.0, 5.0, 38.0, 5.0, 38.0, 12.0, 20.0, 12.0]], bbox=[20, 5, 18, 7])
    sample = map_one(folder, cfg)
    assert torch.equal(sample["instances"].gt_masks.tensor[0], sample["image"][0] == 255)


@pytest.mark.parametrize("is_train", [True, False])
def test_case_10_size_that_differs_is_refused_while_loading(is_train: bool, folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)["height"] = 31
    with pytest.raises(DatasetError, match=r"\(image id 1\) is 40 x 30 .* but 40 x 31 in the json"):
        map_one(folder, cfg, is_train)


def test_draw_instances_bad_segmentation_of_foreign_code_names_file_and_ids() -> None:
    with pytest.raises(DatasetError, match=r"none\.png: image id 1: annotation id 0: a polygon with 2 points"):
        draw([[[1.0, 1.0, 2.0, 2.0]]], 10, 10)
