"""The stream of samples: deterministic, resumable, whatever the workers (cases 12, 13, 17, 20, 39, 40, 50)."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from segzoo.data.loader import (
    SKIPPED_IMAGES,
    build_test_loader,
    build_train_loader,
    micro_batch_size,
    naming_lost_workers,
    orientation_groups,
    training_dicts,
)
from segzoo.data.sampler import TrainingStream, batches_of_equal_size, share_of_rank
from segzoo.errors import ConfigError, DatasetError, WorkerError


def take(stream: Iterable, count: int) -> list:
    return list(islice(iter(stream), count))


def test_training_stream_each_epoch_holds_every_image_once() -> None:
    batches = take(TrainingStream(10, 5, seed=0), 6)
    epochs = [[index for index, _ in batches[k] + batches[k + 1]] for k in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [position for batch in batches for _, position in batch] == list(range(30))


def test_training_stream_batch_larger_than_the_set_repeats_images() -> None:
    (batch,) = take(TrainingStream(1, 4, seed=0), 1)
    assert batch == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_case_39_training_stream_depends_on_the_seed_alone() -> None:
    streams = [take(TrainingStream(20, 4, seed=seed), 8) for seed in (5, 5, 6)]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_stream_ranks_share_one_stream(world_size: int) -> None:
    whole = take(TrainingStream(13, 2, seed=1), 12)
    ranks = [take(TrainingStream(13, 2, 1, None, rank, world_size), 12 // world_size) for rank in range(world_size)]
    woven = [batch for group in zip(*ranks, strict=True) for batch in group]
    assert woven == whole


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("position", [0, 1, 7, 40])
def test_case_40_training_stream_resumes_at_a_position(is_grouped: bool, position: int) -> None:
    groups = np.random.default_rng(0).integers(0, 2, 11) if is_grouped else None
    for rank, world_size in ((0, 1), (1, 2)):
        unbroken = take(TrainingStream(11, 3, 2, groups, rank, world_size), position + 5)
        resumed = take(TrainingStream(11, 3, 2, groups, rank, world_size, position), 5)
        assert resumed == unbroken[position:]


def test_training_stream_groups_never_mix_and_stay_balanced() -> None:
    groups = [0] * 7 + [1] * 4
    batches = take(TrainingStream(11, 3, seed=0, groups=groups), 110)
    assert all(len({groups[index] for index, _ in batch}) == 1 for batch in batches)
    counts = np.bincount([index for batch in batches for index, _ in batch], minlength=11)
    # 330 samples of 11 images: 30 each, but for the images that wait for their batch to fill.
    assert counts.min() >= 29
    assert counts.max() <= 31


def test_case_50_batches_of_equal_size_never_mix_sizes_and_lose_nothing() -> None:
    sizes = [(32, 64), (64, 32), (32, 64), (32, 64), (64, 32)]
    assert batches_of_equal_size(range(5), sizes, 2) == [[0, 2], [1, 4], [3]]
    assert batches_of_equal_size([], [], 2) == []


@pytest.mark.parametrize(("count", "world_size"), [(10, 3), (2, 4), (0, 2), (8, 1)])
def test_share_of_rank_covers_everything_once_and_evenly(count: int, world_size: int) -> None:
    shares = [list(share_of_rank(count, rank, world_size)) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def mixed_folder(folder: Any) -> Any:
    """Eight images of two orientations with one to three objects each."""
    for k in range(8):
        folder.add_image(*((40, 30) if k % 3 else (30, 40)))
        for part in range(1 + k % 3):
            folder.add_annotation(image_id=k + 1, category_id=1 + part % 2)
    return folder


@pytest.fixture
def busy_cfg(cfg: CfgNode) -> CfgNode:
    """Everything random is on."""
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 48)
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = cfg.INPUT.COLOR_JITTER.HUE = 0.3
    cfg.INPUT.MAX_INSTANCES = 2
    return cfg


def assert_same_batches(first: list[list[dict]], second: list[list[dict]]) -> None:
    assert len(first) == len(second)
    for batch, other in zip(first, second):
        assert [sample["image_id"] for sample in batch] == [sample["image_id"] for sample in other]
        assert [sample["draw_seed"] for sample in batch] == [sample["draw_seed"] for sample in other]
        for a, b in zip(batch, other):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
            assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


def test_case_39_train_loader_workers_change_nothing(mixed_folder: Any, busy_cfg: CfgNode) -> None:
    mixed_folder.register()
    alone = take(build_train_loader(busy_cfg), 10)
    busy_cfg.DATALOADER.NUM_WORKERS = 2
    np.random.seed(99)
    torch.manual_seed(99)
    assert_same_batches(alone, take(build_train_loader(busy_cfg), 10))


def test_case_40_train_loader_resumes_bit_for_bit(mixed_folder: Any, busy_cfg: CfgNode) -> None:
    mixed_folder.register()
    unbroken = take(build_train_loader(busy_cfg), 9)
    assert_same_batches(unbroken[5:], take(build_train_loader(busy_cfg, start_position=5), 4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_case_40_train_loader_leaves_the_global_random_states_alone(
    num_workers: int, mixed_folder: Any, busy_cfg: CfgNode
) -> None:
    mixed_folder.register()
    busy_cfg.DATALOADER.NUM_WORKERS = num_workers
    before = (torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate())
    take(build_train_loader(busy_cfg), 2)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])
    assert before[2] == random.getstate()


def test_train_loader_every_sample_has_a_seed_of_its_own(mixed_folder: Any, busy_cfg: CfgNode) -> None:
    mixed_folder.register()
    seeds = [sample["draw_seed"] for batch in take(build_train_loader(busy_cfg), 10) for sample in batch]
    assert len(set(seeds)) == len(seeds)
    torch.Generator().manual_seed(max(seeds))


def test_train_loader_the_same_image_is_augmented_anew(mixed_folder: Any, busy_cfg: CfgNode) -> None:
    mixed_folder.register()
    busy_cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.9
    samples = [sample for batch in take(build_train_loader(busy_cfg), 12) for sample in batch]
    of_one = [sample["image"] for sample in samples if sample["image_id"] == 2]
    assert len(of_one) >= 2
    assert of_one[0].shape != of_one[1].shape or not torch.equal(of_one[0], of_one[1])


def test_train_loader_groups_by_orientation_on_request(mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.register()
    batches = take(build_train_loader(cfg), 12)
    assert all(len({sample["width"] > sample["height"] for sample in batch}) == 1 for batch in batches)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    batches = take(build_train_loader(cfg), 12)
    assert any(len({sample["width"] > sample["height"] for sample in batch}) == 2 for batch in batches)
    assert orientation_groups([{"width": 3, "height": 2}, {"width": 2, "height": 2}]).tolist() == [1, 0]


def test_case_30_train_loader_counts_what_was_left_out(mixed_folder: Any, busy_cfg: CfgNode) -> None:
    mixed_folder.register()
    busy_cfg.INPUT.MAX_INSTANCES = 1
    loader = build_train_loader(busy_cfg)
    batches = take(loader, 6)
    assert all("counts" not in sample for batch in batches for sample in batch)
    assert loader.counts.total() > 0
    assert "x instances beyond INPUT.MAX_INSTANCES: image id" in loader.summary()


def test_case_13_bad_image_stops_and_is_named(mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.register()
    (mixed_folder.root / "3.png").write_bytes(b"")
    for num_workers in (0, 1):
        cfg.DATALOADER.NUM_WORKERS = num_workers
        with pytest.raises(DatasetError, match=r"3\.png is empty") as error:
            take(build_train_loader(cfg), 8)
        assert "Traceback" not in str(error.value)


def test_case_13_bad_image_is_replaced_and_counted(mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.register()
    (mixed_folder.root / "3.png").write_bytes(b"")
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = build_train_loader(cfg)
    batches = take(loader, 8)
    ids = [sample["image_id"] for batch in batches for sample in batch]
    assert len(ids) == 16
    assert 3 not in ids
    assert loader.counts.count(SKIPPED_IMAGES) == 2
    assert "3.png" in loader.summary()
    assert_same_batches(batches, take(build_train_loader(cfg), 8))


def test_case_13_only_bad_images_stop_also_when_skipping(folder: Any, cfg: CfgNode) -> None:
    folder.add_image()
    folder.add_annotation()
    folder.register()
    (folder.root / "1.png").write_bytes(b"")
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    with pytest.raises(DatasetError, match="is empty"):
        take(build_train_loader(cfg), 1)
    cfg.INPUT.ON_BAD_IMAGE = "ignore"
    with pytest.raises(ConfigError, match=r"INPUT\.ON_BAD_IMAGE is 'ignore'"):
        build_train_loader(cfg)


def test_case_20_images_without_objects_are_kept_if_configured(folder: Any, cfg: CfgNode) -> None:
    for _ in range(3):
        folder.add_image()
    folder.add_annotation(image_id=1)
    folder.add_annotation(image_id=2, iscrowd=1)
    folder.register()
    assert [record["image_id"] for record in training_dicts(cfg)] == [1]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert [record["image_id"] for record in training_dicts(cfg)] == [1, 2, 3]
    samples = [sample for batch in take(build_train_loader(cfg), 6) for sample in batch]
    assert {len(sample["instances"]) for sample in samples} == {0, 1}
    assert all(sample["instances"].has("gt_masks") for sample in samples)


def test_case_12_nothing_to_train_on_is_refused(folder: Any, cfg: CfgNode) -> None:
    folder.add_image()
    folder.add_image()
    folder.add_annotation(iscrowd=1)
    folder.register()
    with pytest.raises(DatasetError, match="2 usable images, of which 1 with crowd annotations only and 1 without"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(cfg)


def test_case_9_faulty_files_are_left_out_when_not_strict(mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.content["images"][3]["width"] += 1
    mixed_folder.register()
    (mixed_folder.root / "2.png").unlink()
    (mixed_folder.root / "3.png").write_text("text")
    cfg.INPUT.STRICT = False
    assert [record["image_id"] for record in training_dicts(cfg)] == [1, 5, 6, 7, 8]
    assert build_test_loader(cfg, "test_set").num_images == 5


def test_case_6_several_training_sets_are_joined_or_refused(make_folder: Any, cfg: CfgNode) -> None:
    for number, categories in enumerate((["a"], ["a"], ["b"])):
        folder = make_folder(f"part{number}")
        folder.content["categories"] = [{"id": 1, "name": name} for name in categories]
        folder.add_image()
        folder.add_annotation()
        folder.register(f"joined_{number}")
    cfg.DATASETS.TRAIN = ("joined_0", "joined_1")
    assert len(training_dicts(cfg)) == 2
    cfg.DATASETS.TRAIN = ("joined_0", "joined_2")
    with pytest.raises(DatasetError, match="'a' in joined_0, 'b' in joined_2"):
        training_dicts(cfg)


def test_micro_batch_size_splits_the_batch_or_says_why_not(cfg: CfgNode) -> None:
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE = 8, 2
    assert micro_batch_size(cfg) == 4
    cfg.SOLVER.ACCUMULATE = 3
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 8 cannot be split"):
        micro_batch_size(cfg)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_case_50_test_loader_batches_share_their_padded_size(num_workers: int, mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.register()
    cfg.TEST.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_test_loader(cfg, "test_set", size_divisibility=8)
    batches = list(loader)
    assert len(loader) == len(batches)
    assert loader.num_images == 8
    assert sorted(sample["image_id"] for batch in batches for sample in batch) == list(range(1, 9))
    assert all(len({sample["image"].shape for sample in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == 3
    # 30 and 40 are both padded to 64.
    assert [len(batch) for batch in build_test_loader(cfg, "test_set", size_divisibility=64)] == [3, 3, 2]


def test_case_17_test_loader_extreme_aspect_keeps_the_original_size(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(3000, 6)
    folder.register()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    ((sample,),) = list(build_test_loader(cfg, "test_set"))
    assert sample["image"].shape == (3, 3, 1333)
    assert (sample["height"], sample["width"]) == (6, 3000)


def test_test_loader_bad_image_is_named(mixed_folder: Any, cfg: CfgNode) -> None:
    mixed_folder.register()
    (mixed_folder.root / "3.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"3\.png is empty"):
        list(build_test_loader(cfg, "test_set"))


def lost_worker_chain() -> BaseException:
    """What comes of a worker that is killed while it hands a batch over, and of its end, told of a moment later."""
    try:
        try:
            raise ConnectionResetError(104, "Connection reset by peer")
        except ConnectionResetError:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore")  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("error", [lost_worker_chain(), RuntimeError("DataLoader worker (pid 7) is killed by signal")])
def test_naming_lost_workers_wherever_torch_raises(error: BaseException) -> None:
    with pytest.raises(WorkerError, match=r"(?s)DataLoader worker \(pid 7\) is killed.*NUM_WORKERS") as caught:
        with naming_lost_workers():
            raise error
    assert "more" not in caught.value.message


def test_naming_lost_workers_knows_a_connection_between_processes_from_any_other() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(WorkerError, match="EOFError"), naming_lost_workers():
        ours.recv()
    for error in (ConnectionResetError("a download"), EOFError("a file"), RuntimeError("out of memory")):
        with pytest.raises(type(error)), naming_lost_workers():
            raise error
