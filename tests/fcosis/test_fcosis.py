"""FCOSIS as a whole at toy size: all groups at once, what it learns by, what it logs, and its variants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from fcosis.attention import Groups, attention_maps, group_locations
from fcosis.coloring import color_boxes
from fcosis.fcosis import FCOSIS, FCOSISMaps
from fcosis.head import DetectionMaps, GroupingHead
from fcosis.objects import Objects, all_rivals, merge_detections
from fcosis.segmentation import ContextHead, SegmentationHead, shrink
from segzoo.modeling.fcos.locations import Locations, compute_locations, flatten_levels, map_sizes
from tests.contract.toys import NUM_CLASSES, ellipse, losses_and_gradients, make_input, toy_config
from tests.fcosis.batches import hard_batch

SIZE = (128, 192)
# Objects that overlap in part, and one of a pixel: box of each, px.
BOXES = [
    [[4, 8, 60, 60], [50, 20, 120, 100], [110, 60, 180, 120], [20, 80, 90, 124], [51, 37, 52, 38], [130, 5, 190, 50]],
    [],
    [[10, 10, 180, 120], [30, 20, 80, 60], [100, 70, 150, 110]],
]


def build_toy(*options: object) -> FCOSIS:
    torch.manual_seed(1)
    model = build_model(toy_config("FCOSIS", *options))
    assert isinstance(model, FCOSIS)
    return model


def wake(model: FCOSIS) -> FCOSIS:
    """The same model with predictions that differ from place to place, as after a training, and unequal lambda, mu."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        predictions = [(model.segmentation.pred, 0.1)]
        if isinstance(model.head, GroupingHead):
            predictions += [(model.head.coarse_logits, 0.3), (model.head.center_offsets, 0.3)]
        for prediction, std in predictions:
            prediction.weight.copy_(torch.randn(prediction.weight.shape, generator=generator) * std)
            assert prediction.bias is not None
            nn.init.zeros_(prediction.bias)
        for value, weight in ((1.4, model.lam), (0.6, model.mu)):
            if weight is not None:
                weight.fill_(value)
    return model.eval()


def see(model: FCOSIS) -> tuple[FCOSISMaps, Locations]:
    generator = torch.Generator().manual_seed(3)
    maps = model.dense_outputs(torch.randn(len(BOXES), 3, *SIZE, generator=generator))
    sizes = map_sizes(maps.detection.cls_logits)
    return maps, compute_locations(sizes, model.strides, model.device)


def make_objects() -> Objects:
    boxes = torch.tensor([box for own in BOXES for box in own], dtype=torch.float32)
    count = len(boxes)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + 1.5
    counts = [len(own) for own in BOXES]
    own = torch.arange(count)
    return Objects(
        *(boxes, boxes, centers),
        **all_rivals(counts, boxes.device),
        levels=own % 3,
        classes=own % NUM_CLASSES,
        counts=counts,
    )


def one_forward(model: FCOSIS, maps: FCOSISMaps, attention: Tensor, image: int) -> Tensor:
    """Logits of one attention map (1, 1, H, W) on its image alone."""
    assert isinstance(model.segmentation, SegmentationHead)
    levels = [level[image : image + 1] for level in maps.features]
    zero = torch.zeros(1, dtype=torch.int64)
    return model.segmentation(levels, shrink(attention, len(levels)), zero, budget_mb=1000)[0]


def attention_of(model: FCOSIS, maps: FCOSISMaps, locations: Locations, objects: Objects, members: list[int]) -> Tensor:
    """(1, 1, H, W) attention to some objects of one image, for which all objects of the batch compete."""
    assert isinstance(maps.detection, DetectionMaps)
    assert model.lam is not None
    assert model.mu is not None
    coarse = flatten_levels(maps.detection.coarse_logits).sigmoid().squeeze(2)
    ways = flatten_levels(maps.detection.center_offsets) * locations.strides_px[:, None]
    is_own = group_locations(
        *(locations.points_px + ways, objects.centers_px, objects.stand_ins, objects.num_rivals), objects.counts
    )
    # The objects keep their numbers; those that are not looked at go to a second group.
    groups = torch.ones(len(objects.levels), dtype=torch.int64)
    groups[members] = 0
    placed = Groups(objects.boxes_px, objects.levels, objects.images, groups, 2)
    height, width = maps.features[0].shape[2:]
    return attention_maps(coarse, is_own, placed, locations, lam=model.lam, mu=model.mu, map_size=(height, width))[:1]


@pytest.mark.parametrize("budget_mb", [4096, 1], ids=["at once", "one by one"])
@torch.no_grad()
def test_all_groups_of_all_images_equal_one_forward_a_group_and_a_lonely_object(budget_mb: int) -> None:
    model = wake(build_toy("MODEL.FCOSIS.GROUP_BUDGET_MB", budget_mb))
    maps, locations = see(model)
    objects = make_objects()
    logits, groups = model.segment(maps, locations, objects)
    assert logits.shape == (int(groups.max()) + 1, SIZE[0] // 4, SIZE[1] // 4)
    assert logits.dtype == torch.float32
    assert logits.std() > 0.1
    first = 0
    num_shared = num_alone = 0
    for image, count in enumerate(objects.counts):
        own = range(first, first + count)
        colors = color_boxes(objects.apart_px[first : first + count], [count]).colors.tolist()
        # Objects of a colour are a group, which no other image has a part in.
        assert len({(color, int(groups[m])) for color, m in zip(colors, own, strict=True)}) == len(set(colors))
        for color in sorted(set(colors)):
            members = [m for m, other in zip(own, colors, strict=True) if other == color]
            attention = attention_of(model, maps, locations, objects, members)
            expected = one_forward(model, maps, attention, image)
            torch.testing.assert_close(logits[groups[members[0]]], expected, atol=1e-5, rtol=1e-5)
            num_alone += len(members) == 1
            num_shared += len(members) > 1
        first += count
    assert num_alone >= 2
    assert num_shared >= 2


@torch.no_grad()
def test_in_its_box_an_object_of_a_group_is_attended_to_as_if_alone() -> None:
    model = wake(build_toy())
    maps, locations = see(model)
    objects = make_objects()
    attention, groups, _ = model.attend(maps, locations, objects)
    for m, (x0, y0, x1, y1) in enumerate(objects.boxes_px.tolist()):
        alone = attention_of(model, maps, locations, objects, [m])[0, 0]
        rows = [y for y in range(SIZE[0] // 4) if y0 <= 4 * y + 2 < y1]
        columns = [x for x in range(SIZE[1] // 4) if x0 <= 4 * x + 2 < x1]
        found = attention[0][groups[m], 0]
        for y in rows:
            torch.testing.assert_close(found[y, columns], alone[y, columns])
        assert alone.any()


@torch.no_grad()
def test_without_attention_an_object_has_the_map_of_its_class() -> None:
    model = wake(build_toy("MODEL.FCOSIS.ATTENTION", "none"))
    assert isinstance(model.segmentation, ContextHead)
    maps, locations = see(model)
    objects = make_objects()
    logits, channels = model.segment(maps, locations, objects)
    assert maps.class_logits is not None
    images = [image for image, own in enumerate(BOXES) for _ in own]
    for image, number, channel in zip(images, objects.classes.tolist(), channels.tolist(), strict=True):
        assert torch.equal(logits[channel], maps.class_logits[image, number])


def ordinary_batch() -> list[dict]:
    """Objects that overlap, with and without others beside them."""
    masks = [ellipse(SIZE, (60, 50), (55, 20)), ellipse(SIZE, (60, 50), (20, 45)), ellipse(SIZE, (150, 90), (35, 30))]
    return [make_input(SIZE, masks, 0), make_input(SIZE, masks[2:], 1)]


@pytest.mark.parametrize(
    ("attention", "learns_mu"),
    [("grouping", True), ("grouping", False), ("box", True), ("none", True)],
    ids=["grouping", "mu = 0", "box", "none"],
)
def test_no_parameter_is_unused(attention: str, learns_mu: bool) -> None:
    model = build_toy("MODEL.FCOSIS.ATTENTION", attention, "MODEL.FCOSIS.LEARN_MU", learns_mu)
    assert (model.lam is not None) == (attention != "none")
    assert (model.mu is not None) == (attention == "grouping" and learns_mu)
    # What attention by boxes does not use is learned all the same: attention alone differs.
    assert isinstance(model.head, GroupingHead) == (attention != "none")
    names = {"loss_cls", "loss_box", "loss_centerness", "loss_mask"}
    names |= {"loss_coarse", "loss_center"} if attention != "none" else set()
    # With objects, with none in one image, with none at all: every parameter has a gradient.
    for batch in (ordinary_batch(), hard_batch("one empty image", SIZE), hard_batch("none", SIZE)):
        losses = losses_and_gradients(model, batch)
        assert set(losses) == names
        has_objects = any(len(sample["instances"]) for sample in batch)
        assert (float(losses["loss_mask"]) > 0) == has_objects
        if attention != "none":
            assert (float(losses["loss_center"]) > 0) == has_objects
            # A mean within objects, and one outside; log 2 each at first.
            assert float(losses["loss_coarse"]) == pytest.approx(math.log(2) * (1 + has_objects), rel=0.1)
        for weight in (model.lam, model.mu):
            assert weight is None or (weight.grad is not None and bool(weight.grad.any()) == has_objects)


@pytest.mark.parametrize("kind", ["twins", "pixel", "300"])
def test_training_on_hard_objects(kind: str) -> None:
    losses = losses_and_gradients(build_toy(), hard_batch(kind, SIZE))
    assert float(losses["loss_mask"]) > 0


@pytest.mark.parametrize(
    ("attention", "names"),
    [("grouping", {"colors", "lambda", "mu"}), ("box", {"colors", "lambda"}), ("none", set())],
)
def test_colors_and_learned_weights_are_logged_in_training(attention: str, names: set[str]) -> None:
    model = build_toy("MODEL.FCOSIS.ATTENTION", attention)
    with torch.no_grad():
        for value, weight in ((1.25, model.lam), (-0.5, model.mu)):
            if weight is not None:
                weight.fill_(value)
    batch = [*ordinary_batch(), make_input(SIZE, [], 2)]
    with EventStorage() as storage:
        model.train()(batch)
        latest = {name: value for name, (value, _) in storage.latest().items() if name.startswith("fcosis/")}
    # Two bars that cross and a disc, whose padded box one of them meets, a disc alone, and nothing.
    expected = {"colors": (2 + 1 + 0) / 3, "lambda": 1.25, "mu": -0.5}
    assert latest == pytest.approx({f"fcosis/{name}": expected[name] for name in names})
    with EventStorage() as storage, torch.no_grad():
        model.eval()([{key: value for key, value in batch[0].items() if key != "instances"}])
        assert not [name for name in storage.latest() if name.startswith("fcosis/")]


@torch.no_grad()
def test_detections_have_the_masks_of_their_own_maps() -> None:
    """Boxes, centres and levels of the detections decide; masks are cut from the maps of their groups."""
    model = wake(build_toy("MODEL.FCOS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 12))
    inputs = [make_input(SIZE, [], 0, height=64, width=96), make_input((100, 150), [], 1)]
    seen: list[tuple[Objects, Tensor, Tensor]] = []
    segment = model.segment

    def spy(maps: FCOSISMaps, locations: Locations, objects: Objects) -> tuple[Tensor, Tensor]:
        logits, channels = segment(maps, locations, objects)
        seen.append((objects, logits, channels))
        return logits, channels

    model.segment = spy  # type: ignore[method-assign]
    outputs = [output["instances"] for output in model(inputs)]
    ((objects, logits, channels),) = seen
    assert objects.counts == [len(found) for found in outputs] == [12, 12]
    assert [found.image_size for found in outputs] == [(64, 96), (100, 150)]
    # The second image is at the network's size: each pixel by bilinear interpolation of its own map.
    maps = nn.functional.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=False)[:, 0]
    masks = np.asarray(outputs[1].pred_masks)
    for mask, channel, (x0, y0, x1, y1) in zip(
        masks, channels[12:].tolist(), objects.boxes_px[12:].tolist(), strict=True
    ):
        y, x = np.mgrid[:100, :150] + 0.5
        is_inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
        logit = maps[channel, :100, :150].numpy()
        is_clear = np.abs(logit) > 1e-4
        assert np.array_equal(mask[is_clear & is_inside], (logit >= 0)[is_clear & is_inside])
        assert is_inside.sum() <= 1 or not mask[~is_inside].any()
    assert masks.any()


def test_a_mask_without_a_pixel_has_no_loss() -> None:
    """None comes through the mapper; who makes instances by hand gets finite losses, of the other objects alone."""
    model = wake(build_toy()).train()
    disc = [ellipse(SIZE, (40, 40), (30, 25))]
    expected = float(model([make_input(SIZE, disc, 1)])["loss_mask"].detach())
    sample = make_input(SIZE, [*disc, ellipse(SIZE, (150, 90), (35, 30))], 1)
    both = float(model([sample])["loss_mask"].detach())
    assert abs(both - expected) > 0.01
    # Apart from the disc, so that nothing of its attention is near.
    sample["instances"].gt_masks.tensor[1] = False
    losses = model([sample])
    assert all(torch.isfinite(loss) for loss in losses.values())
    shared = float(losses["loss_mask"].detach())
    assert abs(shared - expected) < 0.2 * abs(both - expected)


@torch.no_grad()
def test_a_duplicate_of_another_class_takes_no_pixels() -> None:
    """What competes is the object: with a second detection on it, nearer to its pixels, the mask stays."""
    model = wake(build_toy())
    maps, locations = see(model)
    assert isinstance(maps.detection, DetectionMaps)
    # Each location is its object's and points two pixels beside its centre, where the duplicate's lies.
    center = torch.tensor([100.0, 60.0])
    for level, logits in enumerate(maps.detection.coarse_logits):
        logits.fill_(8.0)
        own = locations.levels == level
        ways = (center + torch.tensor([2.0, 0.0]) - locations.points_px[own]) / locations.strides_px[own, None]
        maps.detection.center_offsets[level].copy_(ways.T.view(1, 2, *logits.shape[2:]))
    boxes = torch.tensor([[60.0, 20, 140, 100], [62.0, 20, 142, 100]])
    centers = torch.stack((center, center + torch.tensor([2.0, 0.0])))
    zeros = torch.zeros(2, dtype=torch.int64)

    def own_share(stand_ins: Tensor, num_rivals: list[int]) -> list[float]:
        objects = Objects(boxes, boxes, centers, stand_ins, torch.tensor(num_rivals), zeros, zeros, [2, 0, 0])
        attention, groups, _ = model.attend(maps, locations, objects)
        return [float((attention[0][group] > 0).sum() / (attention[0][group] != 0).sum()) for group in groups.tolist()]

    assert own_share(torch.arange(2), [2, 2]) == [0.0, 1.0]
    # One object; or a rival that is not worth it.
    assert own_share(merge_detections(boxes, centers, [2]), [2, 2]) == [1.0, 1.0]
    assert own_share(torch.arange(2), [1, 2]) == [1.0, 1.0]
