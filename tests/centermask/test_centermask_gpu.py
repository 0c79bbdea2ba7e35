"""CenterMask on a GPU as on the CPU: targets, detections, losses and gradients of a step (ACCEPTANCE case 29)."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from centermask.decode import find_peaks
from centermask.objective import build_targets
from tests.centermask.test_center_decode import distinct_scores
from tests.centermask.test_centermask import MAP_SIZE, SIZE, toy, two_objects
from tests.contract.toys import backward, keep_norm_statistics, make_input, toy_config

pytestmark = pytest.mark.gpu


def test_targets_on_a_gpu_equal_those_on_the_cpu() -> None:
    objective = toy().objective
    batch = [make_input(SIZE, masks)["instances"] for masks in (two_objects(), [], two_objects()[:1])]
    found = []
    for device in ("cpu", "cuda"):
        targets = build_targets([instances.to(device) for instances in batch], MAP_SIZE, objective)
        assert targets.unions is not None
        found.append((*targets.objects, targets.heatmap, targets.masks, targets.unions, *targets.counts))
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)


def test_peaks_on_a_gpu_equal_those_on_the_cpu() -> None:
    scores = distinct_scores(0, 2, 4, 31, 43)
    for on_cpu, on_gpu in zip(find_peaks(scores, 100), find_peaks(scores.cuda(), 100), strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("name", ["CenterMask", "CenterMask-stacks"])
def test_losses_and_gradients_on_a_gpu_equal_those_on_the_cpu(name: str) -> None:
    batch, found = [make_input(SIZE, two_objects())], []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model = keep_norm_statistics(build_model(toy_config(name))).to(device)
        losses = backward(model, batch)
        gradients = {key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
        found.append(({key: value.cpu() for key, value in losses.items()}, gradients))
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_cpu.keys() == on_gpu.keys()
        for key, value in on_cpu.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(on_gpu[key], value, rtol=1e-3, atol=1e-3 * scale + 1e-8, msg=key)
