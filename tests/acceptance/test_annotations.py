"""Cases 20 to 24, 27, 28, 30 and 31: annotations of every kind, as each method's mapper gives them to its network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from pycocotools import mask as coco_mask

from segzoo.data.augmentation import build_augmentations
from segzoo.data.coco_json import read_coco_json
from segzoo.data.mapper import LOST_INSTANCES, SURPLUS_INSTANCES
from segzoo.data.transforms import FlipTransform
from segzoo.geometry.masks import mask_boxes
from tests.acceptance.runs import flags_of, plain_config, sample_of
from tests.contract.toys import ellipse
from tests.data.conftest import CocoFolder

Runs = Callable[..., str]
HEIGHT, WIDTH = 30, 40
NAN = float("nan")


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    """Compressed, its counts as bytes."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def lengths_of(mask: np.ndarray) -> list[int]:
    """An uncompressed RLE's counts, written down the columns pixel by pixel."""
    lengths, value = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def square(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@pytest.mark.parametrize("is_crowd", [False, True])
def test_case_20_and_21_no_object_or_crowds_alone_give_every_field_with_no_row(
    method: str, folder: CocoFolder, is_crowd: bool
) -> None:
    folder.add_image()
    folder.add_image()
    folder.add_annotation(image_id=2)
    if is_crowd:
        folder.add_annotation(image_id=1, iscrowd=1)
    instances = sample_of(method, folder)["instances"]
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert (instances.gt_classes.shape, instances.gt_classes.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize("is_crowd", [False, True])
def test_case_20_and_21_images_without_an_object_are_kept_if_configured(
    filled: CocoFolder, trains: Runs, is_crowd: bool
) -> None:
    for entry in filled.content["annotations"][1:]:
        entry["iscrowd"] = 1
    if not is_crowd:
        del filled.content["annotations"][1:]
    log = trains(flags_of(filled), DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, SOLVER__MAX_ITER=2)
    assert "images     4, of which 4 are used" in log
    reason = "crowd annotations only" if is_crowd else "no valid annotation"
    assert f"3 x {reason}: 2, 3, 4" in log


def test_case_22_all_kinds_of_masks_in_one_image_equal_pycocotools(method: str, folder: CocoFolder) -> None:
    folder.add_image()
    round_mask = ellipse((HEIGHT, WIDTH), (17.3, 12.8), (9.1, 7.4))
    polygon = [3.2, 4.7, 30.1, 6.2, 21.9, 25.5, 4.1, 20.0]
    rle = rle_of(round_mask)
    folder.add_annotation(segmentation=[polygon, square(33, 20, 38, 28)])
    folder.add_annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": lengths_of(round_mask)})
    folder.add_annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()})
    folder.add_annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": lengths_of(~round_mask)}, iscrowd=1)
    masks = sample_of(method, folder)["instances"].gt_masks.tensor.numpy()
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon, square(33, 20, 38, 28)], HEIGHT, WIDTH)))
    assert len(masks) == 3, "the crowd is none of them"
    assert np.array_equal(masks[0], drawn == 1)
    assert np.array_equal(masks[1], round_mask)
    assert np.array_equal(masks[2], round_mask)


def test_case_22_counts_as_bytes_of_other_programs_are_the_same_mask(method: str, folder: CocoFolder) -> None:
    from segzoo.data.mapper import DatasetMapper

    entry = folder.add_image()
    mask = ellipse((HEIGHT, WIDTH), (17.3, 12.8), (9.1, 7.4))
    annotation = {"id": 1, "bbox": [0, 0, 1, 1], "bbox_mode": 0, "category_id": 0, "segmentation": rle_of(mask)}
    record = {"file_name": str(folder.root / entry["file_name"]), "image_id": 1, "height": HEIGHT, "width": WIDTH}
    mapper = DatasetMapper(plain_config(method), is_train=True)
    sample = mapper({**record, "annotations": [annotation]}, np.random.default_rng(0))
    assert isinstance(annotation["segmentation"]["counts"], bytes)  # type: ignore[index]
    assert np.array_equal(sample["instances"].gt_masks.tensor[0].numpy(), mask)


BAD_POLYGONS = {
    "polygon with fewer than 3 points": [1.0, 1.0, 9.0, 9.0],
    "polygon with an odd number of coordinates": [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0],
    "polygon with NaN or infinite coordinates": [1.0, 1.0, 9.0, NAN, 9.0, 9.0],
    "polygon with negative coordinates": [-5.0, 1.0, 9.0, 1.0, 9.0, 9.0],
}


@pytest.mark.parametrize("fault", BAD_POLYGONS)
def test_case_23_a_bad_polygon_is_dropped_with_count_and_ids(filled: CocoFolder, trains: Runs, fault: str) -> None:
    for number in (1, 2):
        filled.add_annotation(image_id=number, segmentation=[BAD_POLYGONS[fault]])
    log = trains(flags_of(filled))
    assert f"2 x {fault}: 5, 6" in log
    assert "instances  4, and 0 crowds" in log


def test_case_23_coordinates_beyond_the_image_are_cut(method: str, folder: CocoFolder) -> None:
    folder.add_image()
    folder.add_annotation(segmentation=[square(30, 20, 1e9, 1e6)])
    instances = sample_of(method, folder)["instances"]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[20:, 30:] = True
    assert torch.equal(instances.gt_masks.tensor[0], expected)
    assert instances.gt_boxes.tensor.tolist() == [[30, 20, 40, 30]]


def test_case_24_lost_objects_leave_masks_boxes_and_classes_together(method: str, folder: CocoFolder) -> None:
    folder.add_image()
    folder.add_annotation(segmentation=[square(5, 5, 7, 7)], category_id=1)
    folder.add_annotation(segmentation=[square(0, 0, 40, 30)], category_id=2)
    # Both have no pixel from the start: one lies outside, one has no area.
    folder.add_annotation(segmentation=[square(50, 50, 60, 60)], category_id=1)
    folder.add_annotation(segmentation=[square(5, 5, 5, 9)], category_id=1)
    sample = sample_of(method, folder, "INPUT.RESIZE", "fixed", "INPUT.FIXED_SIZE", "(3, 4)")
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 4, 3]]
    assert instances.gt_masks.tensor.shape == (1, 3, 4)
    assert sample["counts"] == {LOST_INSTANCES: 1}
    dropped = read_coco_json(folder.write(), str(folder.root)).dropped
    assert dropped.first("empty mask or outside of the image") == [3, 4]


@pytest.mark.parametrize("bbox", [[20, 20, 5, 5], [5, 5, -4, 10], [5, 5, 0, 0], [5, NAN, 10, 10], [1, 2], "box"])
def test_case_27_a_wrong_box_is_taken_from_the_mask_and_counted(method: str, folder: CocoFolder, bbox: Any) -> None:
    folder.add_image()
    folder.add_annotation(bbox=bbox)
    instances = sample_of(method, folder)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[5, 5, 15, 15]]
    repaired = read_coco_json(folder.write(), str(folder.root)).repaired
    assert [repaired.first(reason) for reason in repaired] == [[1]]


@pytest.mark.parametrize("key", ["bbox", "area", "iscrowd"])
def test_case_28_missing_fields_are_derived_and_counted(filled: CocoFolder, trains: Runs, key: str) -> None:
    for entry in filled.content["annotations"][:2]:
        del entry[key]
    log = trains([*flags_of(filled), *flags_of(filled, "val")])
    assert f"2 x {key} missing" in log
    assert ": 1, 2" in log
    assert "instances  4, and 0 crowds" in log


def test_case_30_a_thousand_objects_are_cut_to_a_seeded_subset_and_counted(method: str, folder: CocoFolder) -> None:
    folder.add_image()
    for number in range(1000):
        x, y = number % WIDTH, number // WIDTH
        folder.add_annotation(segmentation=[square(x, y, x + 1, y + 1)], bbox=[x, y, 1, 1])
    limit = plain_config(method).INPUT.MAX_INSTANCES
    first, second = sample_of(method, folder), sample_of(method, folder)
    assert first["instances"].gt_masks.tensor.shape == (limit, HEIGHT, WIDTH)
    assert first["counts"] == {SURPLUS_INSTANCES: 1000 - limit}
    assert torch.equal(first["instances"].gt_boxes.tensor, second["instances"].gt_boxes.tensor)


def test_case_31_objects_at_the_borders_survive_flip_and_resize(method: str, folder: CocoFolder) -> None:
    folder.add_image()
    border = np.zeros((HEIGHT, WIDTH), dtype=bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    folder.add_annotation(segmentation=[square(0, 29, 40, 30)], bbox=[0, 29, 40, 1])
    folder.add_annotation(segmentation=[square(0, 0, 40, 30)], bbox=[0, 0, 40, 30])
    folder.add_annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": lengths_of(border)}, bbox=[0, 0, 40, 30])
    plain, doubled = (sample_of(method, folder, "INPUT.MIN_SIZE_TRAIN", f"({size},)") for size in (0, 60))
    for sample, scale in ((plain, 1), (doubled, 2)):
        instances = sample["instances"]
        assert instances.gt_boxes.tensor.tolist() == [
            [0, 29 * scale, 40 * scale, 30 * scale],
            *[[0, 0, 40 * scale, 30 * scale]] * 2,
        ]
        assert torch.equal(mask_boxes(instances.gt_masks.tensor), instances.gt_boxes.tensor)
        assert instances.gt_masks.tensor[1].all()
    assert np.array_equal(plain["instances"].gt_masks.tensor[2].numpy(), border)


@pytest.mark.parametrize("kind", ["horizontal", "vertical"])
def test_case_31_a_method_s_flip_twice_is_the_identity(method: str, cfg: CfgNode, tmp_path: Path, kind: str) -> None:
    steps = build_augmentations(plain_config(method, "INPUT.RANDOM_FLIP", kind), is_train=True)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    flips = [steps[-1].get_transform(image, np.random.default_rng(seed)) for seed in range(20)]
    flip = next(transform for transform in flips if isinstance(transform, FlipTransform))
    points = np.array([[0.0, 0.0], [40.0, 30.0], [39.5, 0.5]])
    assert not np.array_equal(flip.apply_image(image), image)
    assert np.array_equal(flip.apply_image(flip.apply_image(image)), image)
    assert np.array_equal(flip.apply_coords(flip.apply_coords(points.copy())), points)
