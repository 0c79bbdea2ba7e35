"""CenterMask's centre part against CenterNet's program: maps, targets, losses, decoding (reference data)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from centermask.centermask import CenterMask
from centermask.convert import CONVERTERS
from centermask.decode import center_boxes, find_peaks
from centermask.losses import L1_MARGIN, MIN_PROBABILITY, focal_loss, l1_loss
from centermask.maps import MAP_STRIDE, gather_cells
from centermask.targets import Objects, collect_objects, gaussian_radius, heatmap_targets
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.centering import CenterInside, results_entry
from segzoo.engine.renaming import rename
from segzoo.modeling.fcos.decode import output_scale

pytestmark = pytest.mark.reference
NUM_CLASSES, SIDE = 80, 128
# Of the authors' parameters, two projections whose results are never used.
UNUSED = ("base.level3.project", "base.level4.project")
SIZE_WEIGHT = 0.1


@pytest.fixture(scope="module")
def stored(parity: ModuleType) -> dict[str, Any]:
    return parity.load("centernet_targets_losses_decode")


@pytest.fixture(scope="module")
def objects(stored: dict[str, Any]) -> Objects:
    """The 68 objects of image 0 through our targets; image 1 has none."""
    batch = []
    table = stored["objects_x1y1x2y2_cls_radius_cxi_cyi_offx_offy"]
    for rows in (table, table[:0]):
        instances = Instances((4 * SIDE, 4 * SIDE))
        instances.gt_boxes = Boxes(rows[:, :4] * 4)
        instances.gt_classes = rows[:, 4].long()
        batch.append(instances)
    found, left = collect_objects(batch, (SIDE, SIDE), 128)
    assert left == (0, 0)
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, check_dtype=False)


def build(config: str, repository: Path) -> CenterMask:
    cfg = merge_config(get_cfg(), str(repository / config), ["MODEL.DEVICE", "cpu"])
    return CenterMask(cfg).eval()


def load_converted(model: CenterMask, weights: dict[str, Tensor], name: str) -> list[str]:
    """Fills the model by the rules of a converter; returns our names that the file had no value for."""
    (converter,) = (converter for converter in CONVERTERS if converter.name == name)
    renamed = rename(weights, converter.rules)
    assert renamed.unexpected == []
    result = model.load_state_dict(renamed.weights, strict=False)
    assert result.unexpected_keys == []
    return [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]


def assert_new(names: list[str], num_heads: int) -> None:
    """Shapes, saliency and the counts of training are all that CenterNet's weights lack."""
    parts = [f"heads.{head}.{part}." for head in range(num_heads) for part in ("shape", "saliency")]
    assert {name for name in names if not name.startswith(tuple(parts))} == {"running_counts"}
    assert len(names) == 8 * num_heads + 1


def assert_close_to_authors(found: Tensor, theirs: Tensor, limit: float = 1e-3) -> None:
    assert found.shape == theirs.shape
    assert float((found - theirs).abs().max()) <= limit * float(theirs.std())


def test_dla_34_gives_the_authors_maps(parity: ModuleType, repository: Path) -> None:
    model, weights = build("configs/centermask_DLA34.yaml", repository), parity.state_dict("centernet_dla34")
    assert_new(load_converted(model, weights, "centernet-dla34"), 1)
    outputs = parity.load("centernet_dla34_outputs")
    with torch.no_grad():
        (maps,) = model.dense_outputs(outputs["image"].float())
    assert_close_to_authors(maps.feature[:1], outputs["feature"])
    for name, found in (("hm", maps.heatmap), ("wh", maps.size), ("reg", maps.offset)):
        assert_close_to_authors(found, outputs["heads"][name])


def test_dla_34_has_the_authors_parameters(parity: ModuleType, repository: Path) -> None:
    weights = parity.state_dict("centernet_dla34")
    learned = {name: value for name, value in weights.items() if not name.endswith(("mean", "var", "tracked"))}
    assert sum(value.numel() for value in learned.values()) == 19_675_892
    model = build("configs/centermask_DLA34.yaml", repository)
    own = {
        name: value for name, value in model.named_parameters() if ".shape." not in name and ".saliency." not in name
    }
    unused = sum(value.numel() for name, value in learned.items() if name.startswith(UNUSED))
    assert sum(value.numel() for value in own.values()) == 19_675_892 - unused
    assert unused == (64 * 128 + 2 * 128) + (128 * 256 + 2 * 256)


@pytest.mark.slow
def test_hourglass_104_gives_the_authors_maps_of_both_stacks(parity: ModuleType, repository: Path) -> None:
    model, weights = build("configs/centermask_HG104.yaml", repository), parity.state_dict("centernet_hourglass104")
    assert_new(load_converted(model, weights, "centernet-hourglass104"), 2)
    outputs = parity.load("centernet_hourglass104_outputs")
    # The trunk in double precision, which is the same on every machine: tests/modeling/test_centernet_parity.py says
    # why, and how far the authors' stored values are from exact ones.
    with torch.no_grad():
        features = model.backbone.double()(outputs["image"][:1].double())
        found = [head(features[name].float()) for head, name in zip(model.heads, model.in_features, strict=True)]
    stacks = zip(found, outputs["heads"], outputs["cnvs"], (1e-3, 2e-3), strict=True)
    for maps, theirs, feature, limit in stacks:
        assert_close_to_authors(maps.feature[..., ::2, ::2], feature, limit)
        for name, values in (("hm", maps.heatmap), ("wh", maps.size), ("reg", maps.offset)):
            assert_close_to_authors(values, theirs[name], limit)


def test_gaussian_radii_equal_the_authors(stored: dict[str, Any]) -> None:
    close(gaussian_radius(stored["boxes_wh"].ceil()), stored["radius_ceil_and_raw"][:, 0])
    close(gaussian_radius(stored["boxes_wh"]), stored["radius_ceil_and_raw"][:, 1])


def test_heatmap_equals_the_authors(stored: dict[str, Any], objects: Objects) -> None:
    expected = torch.zeros(NUM_CLASSES, SIDE, SIDE)
    expected[tuple(stored["heatmap_nonzero_idx"].long().T)] = stored["heatmap_values"]
    heatmap = heatmap_targets(objects, 2, NUM_CLASSES, (SIDE, SIDE))
    close(heatmap[0], expected)
    assert torch.equal(heatmap[0] > 0, expected > 0)
    assert torch.equal(heatmap[0] == 1, expected == 1)
    assert not heatmap[1].any()


def test_cells_offsets_and_sizes_equal_the_authors(stored: dict[str, Any], objects: Objects) -> None:
    count = int(stored["reg_mask"][0].sum())
    assert len(objects.cells) == count
    assert torch.equal(objects.cells[:, 1] * SIDE + objects.cells[:, 0], stored["ind"][0, :count])
    close(objects.offsets, stored["reg"][0, :count])
    close(objects.sizes, stored["wh"][0, :count])


def centre_losses(maps: dict[str, Tensor], objects: Objects, heatmap: Tensor) -> dict[str, Tensor]:
    """CenterNet's losses of its raw maps, divided as its program does."""
    count = len(objects.cells)
    sizes, offsets = (gather_cells(maps[name], objects.images, objects.cells) for name in ("wh_pred", "off_pred"))
    return {
        "loss_hm": focal_loss(maps["pred_logits"], heatmap) / (heatmap == 1).sum(),
        "loss_wh": l1_loss(sizes, objects.sizes) / (2 * count + L1_MARGIN),
        "loss_off": l1_loss(offsets, objects.offsets) / (2 * count + L1_MARGIN),
    }


def test_losses_and_gradients_equal_the_authors(stored: dict[str, Any], objects: Objects) -> None:
    maps = {name: stored[name].clone().requires_grad_() for name in ("pred_logits", "wh_pred", "off_pred")}
    losses = centre_losses(maps, objects, heatmap_targets(objects, 2, NUM_CLASSES, (SIDE, SIDE)))
    for name, value in losses.items():
        assert float(value.detach()) == pytest.approx(float(stored[name]), rel=1e-4), name
    total = losses["loss_hm"] + SIZE_WEIGHT * losses["loss_wh"] + losses["loss_off"]
    assert float(total.detach()) == pytest.approx(float(stored["loss_total"]), rel=1e-4)
    total.backward()
    logits, sizes = maps["pred_logits"].grad, maps["wh_pred"].grad
    assert logits is not None
    assert sizes is not None
    theirs = stored["grad_hm_sample"]
    close(logits.flatten()[stored["grad_hm_sample_index"]], theirs, 1e-4 * float(theirs.abs().max()))
    expected = stored["grad_wh_nonzero"]
    x, y = objects.cells.unbind(dim=1)
    close(sizes[0, :, y, x], expected, 1e-4 * float(expected.abs().max()))
    assert int((sizes != 0).sum()) == int((expected != 0).sum())


def test_gradients_at_peaks_and_of_offsets_equal_those_in_fp64(stored: dict[str, Any], objects: Objects) -> None:
    """The stored gradients have no peak and no offset; by hand: d/dx of the terms, in fp64."""
    maps = {name: stored[name].clone().requires_grad_() for name in ("pred_logits", "wh_pred", "off_pred")}
    heatmap = heatmap_targets(objects, 2, NUM_CLASSES, (SIDE, SIDE))
    losses = centre_losses(maps, objects, heatmap)
    (losses["loss_hm"] + losses["loss_off"]).backward()
    is_peak = heatmap == 1
    logits, found = stored["pred_logits"][is_peak].double(), maps["pred_logits"].grad
    assert found is not None
    p = 1 / (1 + (-logits).exp())
    # -(1 - p)^2 log p with dp/dx = p (1 - p); none where p is clamped.
    expected = -((1 - p) ** 2 * (1 - p) - 2 * (1 - p) * p * (1 - p) * p.log()) / int(is_peak.sum())
    expected = expected * ((p > MIN_PROBABILITY) & (p < 1 - MIN_PROBABILITY))
    close(found[is_peak].double(), expected, 1e-4 * float(expected.abs().max()))
    offsets = maps["off_pred"].grad
    assert offsets is not None
    away = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.float64)
    for number in range(len(objects.cells)):
        x, y = objects.cells[number].tolist()
        predicted, target = stored["off_pred"][0, :, y, x].double(), stored["reg"][0, number].double()
        away[0, :, y, x] += (predicted - target).sign() / (2 * len(objects.cells) + 1e-4)
    close(offsets.double(), away, 1e-4 * float(away.abs().max()))


def test_an_empty_image_alone_has_the_authors_undivided_loss(stored: dict[str, Any]) -> None:
    logits = stored["pred_logits"][1:]
    assert float(focal_loss(logits, torch.zeros_like(logits))) == pytest.approx(
        float(stored["loss_hm_empty"]), rel=1e-4
    )


@pytest.mark.parametrize("count", [40, 100])
def test_decoded_boxes_equal_the_authors(stored: dict[str, Any], count: int) -> None:
    found = decoded(stored, count)
    expected = {str(key): value for key, value in stored["decode"].items()}[str(count)]
    close(found, expected)


def decoded(stored: dict[str, Any], count: int) -> Tensor:
    """(2, D, 6) xyxy in cells, score, class of the stored maps."""
    peaks = find_peaks(stored["pred_logits"].sigmoid(), count)
    rows = []
    for image in range(2):
        offsets, sizes = (gather_cells(stored[name], image, peaks.cells[image]) for name in ("off_pred", "wh_pred"))
        boxes = center_boxes(peaks.cells[image], offsets, sizes)
        rows.append(torch.cat((boxes, peaks.scores[image][:, None], peaks.classes[image][:, None]), dim=1))
    return torch.stack(rows)


def test_number_of_peaks_equals_the_authors(stored: dict[str, Any]) -> None:
    scores = stored["pred_logits"].sigmoid()
    peaks = find_peaks(scores, SIDE * SIDE * NUM_CLASSES)
    assert int((peaks.scores > 0).sum()) == stored["nms_count"]


def test_boxes_in_the_image_equal_the_authors(stored: dict[str, Any]) -> None:
    """By the fixed-size test of an image whose longer side fills the map, as CenterNet's c and s say."""
    (center_x, center_y), longer = stored["post_meta"]["c"], stored["post_meta"]["s"]
    height, width = int(2 * center_y), int(2 * center_x)
    assert longer == max(height, width)
    resize = CenterInside((4 * SIDE, 4 * SIDE))
    entry = results_entry(resize, height, width)
    scale = output_scale(resize.size, (entry["height"], entry["width"]), torch.device("cpu")).double()
    corner = torch.tensor(entry["window"][:2], dtype=torch.float64)
    found = decoded(stored, 100).double()
    boxes = found[..., :4] * MAP_STRIDE * scale.repeat(2) - corner.repeat(2)
    # Theirs are listed by class.
    for image, theirs in enumerate(stored["post"]):
        ours = torch.cat((boxes[image], found[image, :, 4:]), dim=1)
        order = ours[:, 5].argsort(stable=True)
        close(ours[order], theirs)
