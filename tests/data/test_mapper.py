"""The mapper: what a sample holds; an instance is kept or lost as a whole (cases 10, 15, 16, 20-31)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image
from pycocotools import mask as coco_mask

from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.mapper import LOST_INSTANCES, SURPLUS_INSTANCES, DatasetMapper
from segzoo.data.registration import load_dataset
from segzoo.data.small_objects import FEW_PIXELS, SMALL_AREA, SMALL_SIDES
from segzoo.errors import ConfigError, DatasetError
from segzoo.geometry.masks import mask_boxes


def map_one(folder: Any, cfg: CfgNode, is_train: bool = True, seed: int = 0, index: int = 0) -> dict[str, Any]:
    return DatasetMapper(cfg, is_train)(load_dataset(folder.register())[index], np.random.default_rng(seed))


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


def add_objects(folder: Any, width: int, height: int) -> list[np.ndarray]:
    """A polygon in two parts, an RLE and a crowd; returns the masks (H, W) bool of the first two."""
    folder.add_image(width, height)
    parts = [[3.2, 4.7, 30.1, 2.0, 25.6, 28.3], [40.0, 10.5, 55.5, 12.0, 50.2, 33.3, 41.0, 30.0]]
    blob = np.zeros((height, width), dtype=np.uint8)
    cv2.ellipse(blob, (width // 2, height // 2), (17, 9), 30, 0, 360, 1, -1)
    rle = coco_mask.encode(np.asfortranarray(blob))
    rle["counts"] = rle["counts"].decode()
    folder.add_annotation(segmentation=parts, bbox=None, area=700.0)
    folder.add_annotation(segmentation=rle, bbox=None, area=480.0, category_id=2)
    folder.add_annotation(segmentation=rle, bbox=None, iscrowd=1)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))
    return [drawn.astype(bool), blob.astype(bool)]


def test_mapper_default_keys_give_pillow_images_and_masks_drawn_at_the_final_size(folder: Any, cfg: CfgNode) -> None:
    _, blob = add_objects(folder, 61, 47)
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = "fixed", (53, 90)
    sample = map_one(folder, cfg)
    shown = Image.open(folder.root / "1.png").resize((90, 53), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(sample["image"].numpy(), np.asarray(shown).transpose(2, 0, 1)[::-1])
    scale = np.array([90 / 61, 53 / 47])
    parts = [np.array(part).reshape(-1, 2) * scale for part in folder.content["annotations"][0]["segmentation"]]
    rles = coco_mask.frPyObjects([part.reshape(-1) for part in parts], 53, 90)
    rows, columns = ((np.arange(new) + 0.5) * old / new for old, new in ((47, 53), (61, 90)))
    centres = blob[rows.astype(int)[:, None], columns.astype(int)]
    expected = np.stack([coco_mask.decode(coco_mask.merge(rles)).astype(bool), centres])
    np.testing.assert_array_equal(sample["instances"].gt_masks.tensor.numpy(), expected)
    assert sample["instances"].gt_classes.tolist() == [0, 1]
    assert sample["counts"] == {}


@pytest.mark.parametrize("size", [(640, 427), (97, 1311)])
def test_mapper_official_preset_gives_what_the_authors_steps_give(size: tuple[int, int], folder: Any) -> None:
    width, height = size
    config_file = Path(__file__).parents[2] / "configs" / "polarmask_R50_official.yaml"
    cfg = merge_config(get_cfg(), str(config_file))
    masks = add_objects(folder, width, height)
    pixels = np.asarray(Image.open(folder.root / "1.png"))[..., ::-1].copy()
    image = cv2.resize(pixels, (1280, 768), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    expected = np.stack(
        [cv2.resize(mask.astype(np.uint8), (1280, 768), interpolation=cv2.INTER_NEAREST) for mask in masks]
    ).astype(bool)
    seen = set()
    for seed in range(6):
        sample = map_one(folder, cfg, seed=seed)
        assert sample["image"].shape == (3, 768, 1280)
        is_flipped = not np.array_equal(sample["image"].numpy(), image)
        step = -1 if is_flipped else 1
        np.testing.assert_array_equal(sample["image"].numpy(), image[..., ::step])
        instances = sample["instances"]
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected[..., ::step])
        # A box x .. x + w - 1 is scaled and mirrored by its pixels' numbers, and ends one pixel later for us.
        scale = np.array([1280 / width, 768 / height] * 2)
        rows, columns = np.nonzero(masks[1])
        polygon = np.array([3.2, 2.0, 55.5 - 1, 33.3 - 1])
        ellipse = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        for box, corners in zip(instances.gt_boxes.tensor.numpy(), (polygon, ellipse), strict=True):
            x0, y0, x1, y1 = np.clip(corners * scale, 0, [1279, 767, 1279, 767])
            x0, x1 = (1279 - x1, 1279 - x0) if is_flipped else (x0, x1)
            np.testing.assert_allclose(box, [x0, y0, x1 + 1, y1 + 1], atol=1e-3)
        seen.add(is_flipped)
    assert seen == {True, False}


def test_mapper_small_objects_are_dropped_by_reason_before_the_random_choice(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(60, 60)
    for k, (side, area) in enumerate([(30, 900.0), (20, 15.0), (9, 81.0), (20, 400.0), (12, 144.0)]):
        x, y = 2.0 * k, 3.0 * k
        square = [x, y, x + side, y, x + side, y + side, x, y + side]
        folder.add_annotation(segmentation=[square], bbox=[x, y, side, side], area=area, category_id=1 + k % 2)
    sliver = [0.0, 50.0, 14.0, 50.0, 14.0, 51.0, 0.0, 51.0]
    folder.add_annotation(segmentation=[sliver], bbox=[0, 50, 14, 1], area=16.0)
    assert len(map_one(folder, cfg)["instances"]) == 6
    cfg.INPUT.DROP_SMALL.AREA, cfg.INPUT.DROP_SMALL.SIDES, cfg.INPUT.DROP_SMALL.PIXELS = 15.0, 10.0, 15
    sample = map_one(folder, cfg)
    # The sizes that count are those before the resize.
    assert [int(box[2] - box[0]) for box in sample["instances"].gt_boxes.tensor] == [30, 20, 12]
    assert sample["instances"].gt_classes.tolist() == [0, 1, 0]
    assert sample["counts"] == {SMALL_AREA: 1, SMALL_SIDES: 1, FEW_PIXELS: 1}
    cfg.INPUT.MAX_INSTANCES = 2
    sample = map_one(folder, cfg)
    assert sample["counts"] == {SMALL_AREA: 1, SMALL_SIDES: 1, FEW_PIXELS: 1, SURPLUS_INSTANCES: 1}
    assert {int(box[2] - box[0]) for box in sample["instances"].gt_boxes.tensor} < {30, 20, 12}


def test_mapper_small_objects_only_is_a_sample_without_objects(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    cfg.INPUT.DROP_SMALL.AREA, cfg.INPUT.RASTERIZE = 100.0, "before"
    sample = map_one(folder, cfg)
    assert sample["instances"].gt_masks.tensor.shape == (0, 30, 40)
    assert sample["counts"] == {SMALL_AREA: 1}


def test_mapper_test_sample_is_the_same_but_for_the_image_whatever_is_dropped(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation=[[1.0, 1.0]])
    cfg.INPUT.RASTERIZE, cfg.INPUT.DROP_SMALL.PIXELS, cfg.INPUT.MIN_SIZE_TEST = "before", 15, 45
    plain = map_one(folder, cfg, is_train=False)
    cfg.INPUT.RESAMPLING = "opencv"
    sample = map_one(folder, cfg, is_train=False)
    assert set(plain) == set(sample) == {"file_name", "image_id", "height", "width", "image"}
    assert plain["image"].shape == sample["image"].shape == (3, 45, 60)
    assert not torch.equal(plain["image"], sample["image"])


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("RESAMPLING", "bicubic", "'pillow' or 'opencv'"),
        ("RASTERIZE", "during", "'after' or 'before'"),
        ("DROP_SMALL.AREA", -1.0, "0 .* or a positive number"),
        ("DROP_SMALL.SIDES", -0.5, "0 .* or a positive number"),
        ("DROP_SMALL.PIXELS", -3, "0 .* or a positive number"),
        ("DROP_SMALL.AREA", float("nan"), "0 .* or a positive number"),
    ],
)
def test_case_45_mapper_impossible_value_names_key_value_and_choices(
    key: str, value: Any, allowed: str, is_train: bool, cfg: CfgNode
) -> None:
    cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ConfigError, match=rf"(?s)INPUT\.{key} is .?{value}.*{allowed}"):
        DatasetMapper(cfg, is_train)
