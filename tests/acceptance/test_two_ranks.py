"""Cases 32, 35, 36 and 40 on two ranks: what every model promises there, all in one pair of gloo processes."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segzoo.engine.checkpoint import read_checkpoint
from tests.acceptance.rank_runs import BAD_STEP, NUM_STEPS, run_trainers
from tests.acceptance.runs import SMALL_BACKBONE
from tests.contract.test_models_train_net import losses_of
from tests.contract.toys import MODELS, ellipse, keep_norm_statistics, make_input, toy_config
from tests.engine.tiny_run import write_tiny_coco

SIZE = (64, 96)
STEPS = 3
# Detectron2 normalises Mask R-CNN by each rank's own samples, which it draws at random.
WITH_SHARED_NORMALIZERS = sorted(set(MODELS) - {"MaskRCNN"})


LOCAL = ["SOLVER.POSITIVE_COUNT", "local"]
# On a backbone whose random features have a variance that statistics of few values resolve.
SYNC_BN = ["MODEL.ORIENMASK.NORM", "SyncBN", "MODEL.TIMM.NAME", "efficientnet_lite0"]
# Share of the variance of the start, 1, after one step.
KEPT = 0.9
# A rank that waits for another in vain fails instead.
PATIENCE = timedelta(seconds=120)


def build_toy(name: str, options: Sequence[str] = ()) -> nn.Module:
    """The same random weights on every rank; batch norms in eval mode, so that no statistics mix the images."""
    torch.manual_seed(1)
    return keep_norm_statistics(build_model(toy_config(name, *SMALL_BACKBONE, *options)))


def build_sync_bn() -> nn.Module:
    """OrienMask whose neck and heads have batch norm over the ranks, in train mode; the backbone's norms have not."""
    model = build_toy("OrienMask", SYNC_BN)
    for part in ("neck", "box_head", "orien_head"):
        model.get_submodule(part).train()
    return model


def norms_of(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms in train mode."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d) and part.training}


def uneven_batch(is_spread: bool = False) -> list[dict]:
    """Four images with 3, 1, 0 and 0 objects: of two ranks one has none, or has 1 if they are spread."""
    masks = [ellipse(SIZE, (40, 30), (22, 17)), ellipse(SIZE, (70, 40), (12, 20)), ellipse(SIZE, (15, 50), (9, 9))]
    first, second = make_input(SIZE, masks, 0), make_input(SIZE, masks[:1], 1)
    third, fourth = make_input(SIZE, [], 2), make_input(SIZE, [], 3)
    return [first, third, second, fourth] if is_spread else [first, second, third, fourth]


def gradients_of(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.stack(list(model(batch).values())).sum().backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def train_steps(model: nn.Module, share: list[dict]) -> dict[str, dict]:
    """Some steps on the ranks: the gradients of the first, and the weights after the last.

    No find_unused_parameters: a parameter without a gradient would hang or raise here.
    """
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    first_gradients = gradients_of(wrapped, share)
    # Of the first step alone, to be compared with one process.
    statistics = {
        f"{name}.{leaf}": value.clone()
        for name, norm in norms_of(model).items()
        for leaf, value in norm.state_dict().items()
        if leaf.startswith("running_")
    }
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(STEPS):
        gradients_of(wrapped, share)
        optimizer.step()
    return {"gradients": first_gradients, "statistics": statistics, "weights": dict(model.named_parameters())}


def run_rank(rank: int, folder: str, data: list[str]) -> None:
    torch.set_num_threads(1)
    # As train_net.py does: a spawned process would spawn its loader workers too.
    multiprocessing.set_start_method("fork", force=True)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=PATIENCE)
    comm.create_local_process_group(2)
    share = uneven_batch()[2 * rank : 2 * rank + 2]
    outcome = {name: train_steps(build_toy(name), share) for name in sorted(MODELS)}
    outcome["local"] = train_steps(build_toy("OrienMask", LOCAL), share)
    outcome["local-spread"] = train_steps(build_toy("OrienMask", LOCAL), uneven_batch(True)[2 * rank : 2 * rank + 2])
    outcome["SyncBN"] = train_steps(build_sync_bn(), share)
    outcome["trainers"] = run_trainers(data, Path(folder))
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks have left what they ended with, and their runs."""
    folder = tmp_path_factory.mktemp("ranks")
    data = [*write_tiny_coco(folder, num_empty=2), "--skip-audit"]
    mp.spawn(run_rank, args=(str(folder), data), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder_of_ranks: Path) -> list[dict]:
    """What both ranks ended with."""
    return [torch.load(folder_of_ranks / f"rank{rank}.pth", weights_only=True) for rank in range(2)]


def test_case_32_a_loss_that_is_not_finite_on_one_rank_stops_both_in_that_step(
    outcomes: list[dict], folder_of_ranks: Path, method: str
) -> None:
    first, second = (outcome["trainers"][method] for outcome in outcomes)
    assert first == second
    assert (first["step"], first["has_moved"]) == (BAD_STEP, False)
    message = first["message"]
    assert f"iteration {BAD_STEP}: a loss or gradient is not finite" in message
    assert re.search(r"rank 1: .*loss_\w+ = nan.*: image id \d+ \(.*\.png\)", message)
    assert "rank 0: " not in message
    dump = json.loads((folder_of_ranks / f"{method}_nan" / f"nonfinite_iteration{BAD_STEP}_rank1.json").read_text())
    assert dump["micro_batches"][0]["images"][0]["file_name"].endswith(".png")
    assert not (folder_of_ranks / f"{method}_nan" / "model_final.pth").exists()


def test_case_40_two_ranks_killed_and_resumed_give_the_unbroken_run_bit_for_bit(
    outcomes: list[dict], folder_of_ranks: Path, method: str
) -> None:
    whole, broken = (folder_of_ranks / f"{method}_{name}" for name in ("whole", "broken"))
    assert "Resuming from iteration 2" in (broken / "log.txt").read_text()
    assert sorted(losses_of(whole)) == list(range(NUM_STEPS))
    assert losses_of(broken) == losses_of(whole)
    ours, theirs = (read_checkpoint(str(folder / "model_final.pth")) for folder in (broken, whole))
    for name, value in (ours["model"] | ours["ema"]["shadow"]).items():
        assert torch.equal(value, (theirs["model"] | theirs["ema"]["shadow"])[name]), name
    for own, other in zip(ours["ranks"], theirs["ranks"], strict=True):
        assert all(torch.equal(value, other["buffers"][name]) for name, value in own["buffers"].items())


@pytest.mark.parametrize("name", [*sorted(MODELS), "local", "local-spread", "SyncBN"])
def test_case_35_a_rank_without_objects_ends_with_the_same_weights(outcomes: list[dict], name: str) -> None:
    first, second = (outcome[name]["weights"] for outcome in outcomes)
    assert first.keys() == second.keys()
    start = dict(build_toy(name if name in MODELS else "OrienMask").named_parameters())
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert any(not torch.equal(first[key], start[key]) for key in first)


@pytest.mark.parametrize("name", WITH_SHARED_NORMALIZERS)
def test_case_36_two_ranks_have_the_gradient_of_one_with_all_images(outcomes: list[dict], name: str) -> None:
    assert_gradients(outcomes, name, gradients_of(build_toy(name), uneven_batch()))


def assert_gradients(
    outcomes: list[dict], name: str, expected: dict[str, torch.Tensor], rounding: float = 1e-8
) -> None:
    for outcome in outcomes:
        for key, value in outcome[name]["gradients"].items():
            scale = float(expected[key].abs().max())
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4 * scale + rounding, msg=key)


@pytest.mark.parametrize("name", ["local", "local-spread"])
def test_local_counts_give_the_mean_of_the_ranks_own_gradients(outcomes: list[dict], name: str) -> None:
    model, batch = build_toy("OrienMask", LOCAL), uneven_batch(name == "local-spread")
    first, second = gradients_of(model, batch[:2]), gradients_of(model, batch[2:])
    assert_gradients(outcomes, name, {key: (first[key] + second[key]) / 2 for key in first})
    # OrienMask's counts are quotients, in which a rank without objects changes nothing; others do.
    reduced = gradients_of(build_toy("OrienMask"), batch)["orien_head.pred.bias"]
    found = outcomes[0][name]["gradients"]["orien_head.pred.bias"]
    scale = float(reduced.abs().max())
    assert torch.allclose(found, reduced, rtol=0, atol=1e-3 * scale) is (name == "local")


def test_sync_bn_gives_the_gradient_and_statistics_of_one_process_with_all_images(outcomes: list[dict]) -> None:
    model = build_sync_bn()
    norms = norms_of(model)
    counts: dict[str, int] = {}

    def count_values(name: str) -> Callable:
        return lambda module, inputs, output: counts.update({name: inputs[0].numel() // inputs[0].shape[1]})

    for name, norm in norms.items():
        norm.register_forward_hook(count_values(name))
    # A bias just before a batch norm has no gradient but what rounding leaves.
    assert_gradients(outcomes, "SyncBN", gradients_of(model, uneven_batch()), rounding=1e-6)
    statistics = dict(model.named_buffers())
    for name in norms:
        mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        # Detectron2's norm keeps the variance of the n values as it is, torch's n / (n - 1) times it.
        biased = KEPT + (variance - KEPT) * (counts[name] - 1) / counts[name]
        for outcome in outcomes:
            found = outcome["SyncBN"]["statistics"]
            torch.testing.assert_close(found[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[f"{name}.running_var"], biased, rtol=1e-4, atol=1e-5)
