"""The same on a GPU as on the CPU: targets, masks and the losses and gradients of a step (ACCEPTANCE case 29)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from orienmask.decode import orientation_masks
from orienmask.orientation import orientation_targets
from orienmask.targets import assign_anchors, box_targets
from tests.contract.toys import backward, ellipse, keep_norm_statistics, make_input, toy_config
from tests.orienmask.objects import NUM_CLASSES, RULE, map_sizes, random_objects
from tests.orienmask.test_orienmask_decode import ANCHORS, make_detections, smooth_maps

pytestmark = pytest.mark.gpu
SIZE = (288, 352)


def test_targets_on_a_gpu_equal_those_on_the_cpu() -> None:
    batch = [random_objects(12, SIZE, 1), random_objects(0, SIZE, 2), random_objects(30, SIZE, 3)]
    found = []
    for device in ("cpu", "cuda"):
        there = [instances.to(device) for instances in batch]
        objects = assign_anchors(there, map_sizes(SIZE), RULE)
        num_predictions = 3 * sum(height * width for height, width in map_sizes(SIZE))
        boxes = box_targets(objects, len(batch), num_predictions, NUM_CLASSES, RULE)
        found.append((*boxes, *orientation_targets(objects, there, SIZE, 9, RULE)))
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=2e-5)


def test_masks_on_a_gpu_equal_those_on_the_cpu() -> None:
    maps, found = smooth_maps((136, 136)), make_detections(60, (544, 544))
    masks = []
    for device in ("cpu", "cuda"):
        there = type(found)(*(column.to(device) for column in found))
        size = {"input_size": (544, 544), "output_size": (480, 640)}
        rles = orientation_masks(maps.to(device), ANCHORS.to(device), there, **size, tau=0.6, budget_mb=16.0)
        masks.append(np.asarray(rles))
    assert masks[0].any()
    # Interpolation rounds in another order.
    assert (masks[0] != masks[1]).sum(axis=(1, 2)).max() <= 2


@pytest.mark.parametrize("name", ["OrienMask", "OrienMask-base"])
def test_losses_and_gradients_on_a_gpu_equal_those_on_the_cpu(name: str) -> None:
    size = (64, 96)
    batch = [make_input(size, [ellipse(size, (40, 30), (22, 17)), ellipse(size, (70, 40), (12, 20))])]
    found = []
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
