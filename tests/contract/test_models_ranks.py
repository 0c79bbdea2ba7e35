"""What every model promises on two ranks: all of them in one pair of gloo processes (ACCEPTANCE cases 35 and 36)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.contract.toys import MODELS, ellipse, keep_norm_statistics, make_input, toy_config

SIZE = (64, 96)
STEPS = 3
# Detectron2 normalises Mask R-CNN by each rank's own samples, which it draws at random.
WITH_SHARED_NORMALIZERS = sorted(set(MODELS) - {"MaskRCNN"})


def build_toy(name: str) -> nn.Module:
    """The same random weights on every rank; batch norms in eval mode, so that no statistics mix the images."""
    torch.manual_seed(1)
    return keep_norm_statistics(build_model(toy_config(name)))


def uneven_batch() -> list[dict]:
    """Four images with 3, 1, 0 and 0 objects: of two ranks one has none."""
    masks = [ellipse(SIZE, (40, 30), (22, 17)), ellipse(SIZE, (70, 40), (12, 20)), ellipse(SIZE, (15, 50), (9, 9))]
    return [
        make_input(SIZE, masks, 0),
        make_input(SIZE, masks[:1], 1),
        make_input(SIZE, [], 2),
        make_input(SIZE, [], 3),
    ]


def gradients_of(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.stack(list(model(batch).values())).sum().backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    share = uneven_batch()[2 * rank : 2 * rank + 2]
    outcome: dict[str, dict] = {}
    for name in sorted(MODELS):
        # No find_unused_parameters: a parameter without a gradient would hang or raise here.
        model = DistributedDataParallel(build_toy(name), broadcast_buffers=False)
        first_gradients = gradients_of(model, share)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
        for _ in range(STEPS):
            gradients_of(model, share)
            optimizer.step()
        outcome[name] = {"gradients": first_gradients, "weights": dict(model.module.named_parameters())}
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"rank{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_case_35_a_rank_without_objects_ends_with_the_same_weights(outcomes: list[dict], name: str) -> None:
    first, second = (outcome[name]["weights"] for outcome in outcomes)
    assert first.keys() == second.keys()
    start = dict(build_toy(name).named_parameters())
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert any(not torch.equal(first[key], start[key]) for key in first)


@pytest.mark.parametrize("name", WITH_SHARED_NORMALIZERS)
def test_case_36_two_ranks_have_the_gradient_of_one_with_all_images(outcomes: list[dict], name: str) -> None:
    expected = gradients_of(build_toy(name), uneven_batch())
    for key, value in outcomes[0][name]["gradients"].items():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=key)
