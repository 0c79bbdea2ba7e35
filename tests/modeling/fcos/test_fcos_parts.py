"""The shared FCOS parts against slow oracles."""

from __future__ import annotations

import math

import pytest
import torch

from segzoo.modeling.fcos.assign import assign_batch, assign_locations
from segzoo.modeling.fcos.decode import (
    Candidates,
    clip_boxes,
    output_scale,
    select_candidates,
    suppress,
    usable_locations,
)
from segzoo.modeling.fcos.head import FCOSHead, exp_size, predict_log_sizes
from segzoo.modeling.fcos.locations import compute_locations, flatten_levels
from segzoo.modeling.fcos.losses import box_centerness, centerness_loss, focal_loss, iou_loss

CPU = torch.device("cpu")
SIZES = [16, 32]
ALL = torch.ones(300, dtype=torch.bool)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Whole-pixel boxes, so that ties and boundary cases occur."""
    start = torch.randint(0, 50, (count, 2), generator=generator(seed)).float()
    return torch.cat((start, start + torch.randint(1, 50, (count, 2), generator=generator(seed + 1))), dim=1)


def assign_slowly(locations, boxes: list, centers: list, radius: float) -> list[int]:
    limits = [-1, *SIZES, float("inf")]
    owners = []
    for (x, y), stride, level in zip(*(column.tolist() for column in locations[:3]), strict=True):
        best, best_area = -1, float("inf")
        for m, (x0, y0, x1, y1) in enumerate(boxes):
            distances = (x - x0, y - y0, x1 - x, y1 - y)
            fits = min(distances) > 0 and limits[level] <= max(distances) <= limits[level + 1]
            if radius:
                fits &= max(abs(x - centers[m][0]), abs(y - centers[m][1])) < radius * stride
            if fits and (x1 - x0) * (y1 - y0) < best_area:
                best, best_area = m, (x1 - x0) * (y1 - y0)
        owners.append(best)
    return owners


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("max_pairs", [10**6, 700, 1])
def test_assign_locations_equals_the_slow_oracle(radius: float, max_pairs: int) -> None:
    locations = compute_locations([(12, 12), (6, 6), (3, 3)], [8, 16, 32], CPU)
    boxes = torch.cat((random_boxes(25, 3), random_boxes(3, 3)))  # the last three repeat the first: ties
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + torch.rand(28, 2, generator=generator(9)) * 4
    found = assign_locations(locations, SIZES, boxes, gt_centers=centers, center_radius=radius, max_pairs=max_pairs)
    assert found.tolist() == assign_slowly(locations, boxes.tolist(), centers.tolist(), radius)
    assert found.max() >= 0
    assert (found < 25).all()


def test_assign_locations_includes_both_ends_of_a_size_range() -> None:
    locations = compute_locations([(4, 4), (2, 2)], [8, 16], CPU)
    box = torch.tensor([[4.0, 4.0, 28.0, 28.0]])  # from (12, 12): 8, 8, 16, 16
    owners = assign_locations(locations, [16], box)
    points, levels = locations.points_px.tolist(), locations.levels.tolist()
    by_point = {(x, y, level): owner for (x, y), level, owner in zip(points, levels, owners.tolist(), strict=True)}
    assert by_point[(12.0, 12.0, 0)] == 0  # reach 16 = the end of level 0
    assert by_point[(8.0, 8.0, 1)] == 0  # reach 20, level 1
    assert by_point[(4.0, 12.0, 0)] == -1  # on the edge of the box


def test_assign_locations_without_ground_truth_is_background() -> None:
    locations = compute_locations([(3, 5)], [8], CPU)
    assert assign_locations(locations, [], torch.zeros(0, 4)).tolist() == [-1] * 15


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0, 1.5, 2.3, 40.0])
def test_assign_batch_equals_assign_locations_image_by_image(radius: float) -> None:
    generator = torch.Generator().manual_seed(int(radius * 10))
    locations = compute_locations([(13, 17), (7, 9), (4, 5), (0, 0)], [8, 16, 32, 64], torch.device("cpu"))
    counts = [6, 0, 25, 1]
    corners = torch.rand(sum(counts), 2, generator=generator) * 110
    boxes = torch.cat((corners, corners + torch.rand(sum(counts), 2, generator=generator) * 90 + 1), dim=1)
    # Whole numbers put centres and sides onto locations; twins make ties.
    boxes[::2] = boxes[::2].round()
    boxes[8], boxes[9] = boxes[7], boxes[7]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + torch.rand(sum(counts), 2, generator=generator).round() * 9
    centers[3], centers[4] = -500.0, 1e6
    found = assign_batch(locations, [24, 48, 96], boxes, counts, gt_centers=centers, center_radius=radius)
    expected, start = [], 0
    for count in counts:
        own = slice(start, start + count)
        owners = assign_locations(locations, [24, 48, 96], boxes[own], gt_centers=centers[own], center_radius=radius)
        expected.append(torch.where(owners < 0, -1, owners + start))
        start += count
    assert torch.equal(found, torch.cat(expected))
    assert len(found.unique()) > 5


def test_assign_batch_without_ground_truth_is_background() -> None:
    locations = compute_locations([(3, 5)], [8], torch.device("cpu"))
    for radius in (0.0, 1.5):
        assert assign_batch(locations, [], torch.zeros(0, 4), [0, 0], center_radius=radius).tolist() == [-1] * 30


def test_compute_locations_are_cell_centres_in_the_order_of_flatten_levels() -> None:
    locations = compute_locations([(2, 3), (1, 2)], [8, 16], CPU)
    x_maps = [torch.tensor([[4.0, 12, 20], [4, 12, 20]]), torch.tensor([[8.0, 24]])]
    flat = flatten_levels([m[None, None] for m in x_maps])
    assert torch.equal(flat[0, :, 0], locations.points_px[:, 0])
    assert locations.points_px[:, 1].tolist() == [4, 4, 4, 12, 12, 12, 8, 8]


def test_focal_loss_equals_a_float64_oracle_in_value_and_gradient() -> None:
    logits = (torch.randn(9, 4, generator=generator(0)) * 3).requires_grad_()
    classes = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 2])
    loss = focal_loss(logits, classes, alpha=0.25, gamma=2.0)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        for k in range(4):
            p = 1 / (1 + torch.exp(-exact[i, k]))
            is_target = int(classes[i]) == k
            p_t, alpha_t = (p, 0.25) if is_target else (1 - p, 0.75)
            total = total - alpha_t * (1 - p_t) ** 2 * torch.log(p_t)
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_iou_loss_equals_a_float64_oracle_in_value_and_gradient() -> None:
    pred = (torch.rand(6, 4, generator=generator(1)) * 30 + 1).requires_grad_()
    target, weights = torch.rand(6, 4, generator=generator(2)) * 30 + 1, torch.rand(6, generator=generator(3))
    loss = iou_loss(pred, target, weights)
    loss.backward()
    exact = pred.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for (left, top, right, bottom), gt, w in zip(exact, target.double().tolist(), weights.double(), strict=True):
        inter = (torch.clamp(left, max=gt[0]) + torch.clamp(right, max=gt[2])) * (
            torch.clamp(top, max=gt[1]) + torch.clamp(bottom, max=gt[3])
        )
        union = (left + right) * (top + bottom) + (gt[0] + gt[2]) * (gt[1] + gt[3]) - inter
        total = total - w * torch.log((inter + 1) / (union + 1))
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(pred.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_centerness_loss_equals_a_float64_oracle_in_value_and_gradient() -> None:
    logits, targets = torch.randn(8, generator=generator(4)).requires_grad_(), torch.rand(8, generator=generator(5))
    loss = centerness_loss(logits, targets)
    loss.backward()
    p = logits.detach().double().sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), p - targets.double(), rtol=1e-4, atol=1e-6)


def test_box_centerness_follows_equation_3() -> None:
    distances = torch.tensor([[4.0, 9.0, 16.0, 9.0], [5.0, 5.0, 5.0, 5.0], [2.0, 3.0, 8.0, 27.0]])
    expected = [math.sqrt(4 / 16), 1.0, math.sqrt(2 / 8 * 3 / 27)]
    assert box_centerness(distances).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_finite_for_wild_logits(dtype: torch.dtype) -> None:
    wild = torch.tensor([1e4, -1e4, 0.0, 1e4]).to(dtype)
    target = torch.full((1, 4), 12.0)
    logits = wild[None].clone().requires_grad_()
    total = iou_loss(exp_size(logits), target, torch.ones(1))
    total = total + centerness_loss(logits[0], torch.tensor([0.0, 1.0, 0.5, 1.0]))
    total = total + focal_loss(logits, torch.tensor([1]), 0.25, 2.0)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_exp_size_is_positive_and_bounded() -> None:
    sizes = exp_size(torch.tensor([1e4, 0.0, math.log(300.0)], dtype=torch.float32))
    assert sizes.tolist() == pytest.approx([16384.0, 1.0, 300.0], rel=1e-5)


def test_select_candidates_ranks_by_the_product_but_thresholds_the_class_alone() -> None:
    cls_scores = torch.tensor([[0.9, 0.06], [0.5, 0.04], [0.2, 0.3], [0.04, 0.03], [0.6, 0.1]])
    centerness = torch.tensor([0.1, 0.9, 0.9, 1.0, 0.5])
    found = select_candidates(
        cls_scores, centerness, ALL[:5], [4, 1], score_threshold=0.05, topk=2, centerness_bias=0.5
    )
    pairs = {(location, k): score for location, k, score in zip(*(column.tolist() for column in found), strict=True)}
    # Of level 0 the locations 1 (0.45) and 2 (0.27) stay; 0 has only 0.09.
    assert pairs == pytest.approx({(1, 0): 0.5 * 1.4, (2, 0): 0.2 * 1.4, (2, 1): 0.3 * 1.4, (4, 0): 0.6, (4, 1): 0.1})


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_select_candidates_is_bounded_when_all_or_none_pass(score: float) -> None:
    found = select_candidates(
        torch.full((300, 3), score), torch.ones(300), ALL[:300], [200, 100], score_threshold=0.05, topk=50
    )
    assert len(found.scores) == (300 if score else 0)


def test_suppress_works_class_by_class_and_keeps_the_best() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]])
    candidates = Candidates(torch.arange(4), torch.tensor([0, 0, 1, 0]), torch.tensor([0.5, 0.9, 0.4, 0.3]))
    assert suppress(boxes, candidates, nms_threshold=0.5, max_detections=100).tolist() == [1, 2, 3]
    assert suppress(boxes, candidates, nms_threshold=0.5, max_detections=2).tolist() == [1, 2]


def test_clip_boxes_and_output_scale_take_boxes_to_the_output_image() -> None:
    boxes = clip_boxes(torch.tensor([[-5.0, 2, 700, 30]]), (100, 200))
    assert boxes.tolist() == [[0, 2, 200, 30]]
    assert output_scale((100, 200), (50, 300), CPU).tolist() == [1.5, 0.5]


def test_fcos_head_starts_at_the_prior_probability() -> None:
    head = FCOSHead(channels=32, num_classes=7, num_levels=2, num_convs=1, norm="GN", prior_prob=0.01)
    maps = head([torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 2, 2)])
    assert maps.cls_logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)
    assert [tuple(m.shape) for m in maps.box_logits] == [(1, 4, 4, 4), (1, 4, 2, 2)]


def test_usable_locations_leave_out_padding_and_nan_and_count_the_nan(caplog) -> None:
    locations = compute_locations([(2, 4)], [8], CPU)
    first, second = torch.zeros(2, 8, 3), torch.zeros(2, 8, 1)
    first[0, 1, 2] = second[1, 4, 0] = float("nan")
    first[1, 3, 0] = float("nan")  # in the padding of the second image
    first[0, 0, 0] = float("inf")  # a sigmoid of 1, nothing wrong with it
    usable = usable_locations(locations.points_px, [(16, 32), (16, 28)], [first, second])
    assert usable[0].tolist() == [True, False, True, True, True, True, True, True]
    assert usable[1].tolist() == [True, True, True, False, False, True, True, False]
    assert "2 locations of 2 images gave NaN" in caplog.text


def test_select_candidates_never_takes_unusable_locations() -> None:
    cls_scores, centerness = torch.full((4, 2), 0.9), torch.ones(4)
    cls_scores[0], centerness[3] = float("nan"), float("nan")
    is_usable = torch.tensor([False, True, True, False])
    found = select_candidates(cls_scores, centerness, is_usable, [4], score_threshold=0.0, topk=4)
    assert sorted(found.locations.tolist()) == [1, 1, 2, 2]


def test_suppress_leaves_out_boxes_without_area() -> None:
    boxes = torch.tensor([[5.0, 0, 5, 10], [0, 0, 10, 10], [0, 0, 10, 9], [3, 3, 9, 3]])
    candidates = Candidates(torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.tensor([0.9, 0.5, 0.6, 0.8]))
    assert suppress(boxes, candidates, nms_threshold=0.5, max_detections=100).tolist() == [2]


def test_predict_log_sizes_stay_in_fp32_under_autocast() -> None:
    head = FCOSHead(channels=32, num_classes=2, num_levels=1, num_convs=1, norm="GN", prior_prob=0.01)
    feature = torch.randn(1, 32, 6, 6, generator=generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = head([feature])
        half = feature.bfloat16()
        sizes = predict_log_sizes(head.box_pred, head.box_scales[0], half)
    assert maps.cls_logits[0].dtype == torch.bfloat16
    assert maps.box_logits[0].dtype == sizes.dtype == torch.float32
    assert torch.equal(sizes, head.box_scales[0](head.box_pred(half.float())))
