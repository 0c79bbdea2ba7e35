"""Loaders: the endless deterministic training stream of a rank, and its share of an evaluation.

Every random choice of a sample comes from a generator seeded by (cfg.SEED, position in the global sample stream); see
segzoo.data.sampler for the stream. The number of loader workers changes nothing but the speed.
"""

from __future__ import annotations

import gc
import logging
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from segzoo.data.augmentation import build_resize
from segzoo.data.files import usable_dicts
from segzoo.data.mapper import DatasetMapper
from segzoo.data.registration import check_categories_agree
from segzoo.data.sampler import (
    TrainingStream,
    batches_of_equal_size,
    sample_generator,
    share_of_rank,
)
from segzoo.data.tally import Tally
from segzoo.errors import ConfigError, DatasetError, WorkerError

try:
    import resource
except ImportError:
    # Not on Windows, where no such limit exists.
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

SKIPPED_IMAGES = "bad images replaced by another (INPUT.ON_BAD_IMAGE skip)"


class TrainLoader:
    """Endless micro-batches of this rank, from a position on.

    Iterating starts at `start_position` each time. `counts` gathers what the mapper left out.

    Args:
        cfg: the config.
        dicts: the dataset dicts of all training sets.
        start_position: micro-batches that this rank has already consumed.
    """

    def __init__(self, cfg: CfgNode, dicts: list[dict[str, Any]], start_position: int = 0) -> None:
        self.num_images = len(dicts)
        self.micro_batch_size = micro_batch_size(cfg)
        self.counts = Tally()
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self._num_workers = cfg.DATALOADER.NUM_WORKERS
        self._dataset = TrainSamples(dicts, DatasetMapper(cfg, is_train=True), self.seed, cfg.INPUT.ON_BAD_IMAGE)
        self._stream = TrainingStream(
            len(dicts),
            self.micro_batch_size,
            self.seed,
            orientation_groups(dicts) if _groups_by_orientation(cfg) else None,
            comm.get_rank(),
            comm.get_world_size(),
            start_position,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in _batches_of(_torch_loader(self._dataset, self._stream, self._num_workers, self.seed)):
            for sample in batch:
                if isinstance(sample, DatasetError):
                    raise sample
                self._count(sample)
            yield batch

    def summary(self) -> str:
        """One line for each kind of thing that was left out since the start, or "" if there was none."""
        return "\n".join(f"{count} x {reason}: {first}" for reason, count, first in self.counts.rows())

    def _count(self, sample: dict[str, Any]) -> None:
        for error in sample.pop("skipped", ()):
            if not self.counts.count(SKIPPED_IMAGES):
                logger.warning("bad image, another one takes its place; the total is reported at the end: %s", error)
            self.counts.add(SKIPPED_IMAGES, error.message)
        for reason, count in sample.pop("counts").items():
            if not self.counts.count(reason):
                logger.info("image id %s: %d %s (first time)", sample["image_id"], count, reason)
            self.counts.add(reason, f"image id {sample['image_id']}", count)


class TrainSamples(Dataset):
    """(dataset index, stream position) -> sample, or the DatasetError, which crosses processes better as a value."""

    def __init__(self, dicts: list[dict[str, Any]], mapper: DatasetMapper, seed: int, on_bad_image: str) -> None:
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"INPUT.ON_BAD_IMAGE is {on_bad_image!r}", "use 'error' or 'skip'")
        # Serialised: thousands of small objects would be copied into every worker as their counters change.
        self._dicts = DatasetFromList(dicts, copy=False, serialize=True)
        self._mapper, self._seed = mapper, seed
        self._max_attempts = len(dicts) if on_bad_image == "skip" else 1

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any] | DatasetError:
        index, position = place
        skipped: list[DatasetError] = []
        for attempt in range(self._max_attempts):
            record = self._dicts[(index + attempt) % len(self._dicts)]
            generator = sample_generator(self._seed, position, attempt)
            try:
                sample = self._mapper(record, generator)
            except DatasetError as error:
                skipped.append(error)
                continue
            if skipped:
                sample["skipped"] = skipped
            # For what a model draws of this sample: as all else, it must not change when a run is resumed.
            sample["draw_seed"] = int(generator.integers(2**62))
            return sample
        return skipped[0]


class TestSamples(Dataset):
    """Dataset index -> sample without instances, or the DatasetError."""

    # Not a test class, whatever pytest makes of the name.
    __test__ = False

    def __init__(self, dicts: list[dict[str, Any]], mapper: DatasetMapper) -> None:
        self._dicts = DatasetFromList(dicts, copy=False, serialize=True)
        self._mapper = mapper

    def __getitem__(self, index: int) -> dict[str, Any] | DatasetError:
        try:
            return self._mapper(self._dicts[index], sample_generator(0, index))
        except DatasetError as error:
            return error


class TestLoader:
    """This rank's share of a data set in batches of equal padded size; len() is the number of batches."""

    __test__ = False

    def __init__(self, dataset: TestSamples, batches: list[list[int]], num_workers: int) -> None:
        self.batches = batches
        self.num_images = sum(len(batch) for batch in batches)
        self._dataset, self._num_workers = dataset, num_workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in _batches_of(_torch_loader(self._dataset, self.batches, self._num_workers, seed=0)):
            for sample in batch:
                if isinstance(sample, DatasetError):
                    raise sample
            yield batch


def build_train_loader(cfg: CfgNode, start_position: int = 0) -> TrainLoader:
    """The endless micro-batches of this rank for cfg.DATASETS.TRAIN.

    Args:
        cfg: the config.
        start_position: number of micro-batches that this rank has consumed so far; resuming there gives what the
            unbroken run would have got. (All ranks consume equally many.)

    Raises:
        DatasetError: unknown name, unreadable file, differing categories, or no image left to train on.
        ConfigError: a batch size that cannot be split.
    """
    return TrainLoader(cfg, training_dicts(cfg), start_position)


def build_test_loader(cfg: CfgNode, dataset_name: str, size_divisibility: int = 32) -> TestLoader:
    """This rank's contiguous share of a data set, in batches of at most TEST.IMS_PER_BATCH.

    Args:
        cfg: the config.
        dataset_name: a registered name.
        size_divisibility: the network's; images share a batch when they are padded to the same multiples of it.
    """
    dicts = usable_dicts(dataset_name, cfg)
    resize = build_resize(cfg, is_train=False)
    share = share_of_rank(len(dicts), comm.get_rank(), comm.get_world_size())
    sizes = [resize.output_size(dicts[index]["height"], dicts[index]["width"]) for index in share]
    padded = [(_round_up(height, size_divisibility), _round_up(width, size_divisibility)) for height, width in sizes]
    batches = batches_of_equal_size(share, padded, cfg.TEST.IMS_PER_BATCH)
    return TestLoader(TestSamples(dicts, DatasetMapper(cfg, is_train=False)), batches, cfg.DATALOADER.NUM_WORKERS)


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dataset dicts of all of cfg.DATASETS.TRAIN that are trained on, in order.

    Raises:
        DatasetError: with the reasons when none is left.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty", "name a registered data set or pass --train-json, --train-images")
    for name in names[1:]:
        check_categories_agree(names[0], name)
    dicts = [record for name in names for record in usable_dicts(name, cfg)]
    kept = [record for record in dicts if has_objects(record)] if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else dicts
    if len(kept) < len(dicts):
        logger.info("%d of %d training images have no objects and are left out", len(dicts) - len(kept), len(dicts))
    if not kept:
        num_crowd_only = sum(bool(record.get("annotations")) for record in dicts)
        raise DatasetError(
            f"no image of {', '.join(names)} can be trained on: {len(dicts)} usable images, of which {num_crowd_only} "
            f"with crowd annotations only and {len(dicts) - num_crowd_only} without valid annotations",
            "run tools/audit.py on the json; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps images without objects",
        )
    return kept


def has_objects(record: dict[str, Any]) -> bool:
    """Whether an image has an annotation that is not a crowd."""
    return any(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))


def orientation_groups(dicts: Sequence[dict[str, Any]]) -> np.ndarray:
    """(len(dicts),) 1 for images wider than high, else 0."""
    return np.array([int(record["width"] > record["height"]) for record in dicts])


def micro_batch_size(cfg: CfgNode) -> int:
    """Images of one forward pass of one rank: IMS_PER_BATCH / (ranks x SOLVER.ACCUMULATE).

    Raises:
        ConfigError: it is not a whole number.
    """
    parts = comm.get_world_size() * cfg.SOLVER.ACCUMULATE
    if parts > cfg.SOLVER.IMS_PER_BATCH or cfg.SOLVER.IMS_PER_BATCH % parts:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be split over {comm.get_world_size()} processes "
            f"x SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}",
            f"use a multiple of {parts}",
        )
    return cfg.SOLVER.IMS_PER_BATCH // parts


def _groups_by_orientation(cfg: CfgNode) -> bool:
    # Images of one fixed size need no grouping.
    return cfg.DATALOADER.ASPECT_RATIO_GROUPING and cfg.INPUT.RESIZE == "shortest_edge"


def _round_up(size: int, divisor: int) -> int:
    return -(-size // divisor) * divisor if divisor > 1 else size


def _torch_loader(dataset: Dataset, batches: Iterable[list], num_workers: int, seed: int) -> DataLoader:
    if num_workers > 0:
        _allow_many_open_files()
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_WorkerInit(seed),
        # Its own, or starting to iterate would draw from the global state that the trainer saves and restores.
        generator=torch.Generator().manual_seed(seed),
    )


def _batches_of(loader: DataLoader) -> Iterator[list]:
    """The batches of a loader; raises as `naming_lost_workers` does."""
    with naming_lost_workers():
        yield from loader


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Says what is to be done about a worker that was killed, by a lack of memory more often than not.

    torch raises wherever the program happens to be when the system tells of the worker's end; a batch that was just
    being handed over breaks off with an error of the connection, before or instead.

    Raises:
        WorkerError: a worker was killed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = _lost_worker(error)
        if reason is None:
            raise
        raise WorkerError(
            f"a process that loads samples has ended before its time: {reason}",
            "mostly memory has run out: lower DATALOADER.NUM_WORKERS or INPUT.MAX_INSTANCES, or give more shared "
            "memory (docker run --shm-size 4g); then go on with --resume",
        ) from error


def _lost_worker(error: BaseException | None) -> str | None:
    """The words for a lost worker of an error or of one that it came from; None where it is about something else."""
    reason = None
    while error is not None:
        text = str(error)
        if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
            return text.splitlines()[0]
        if isinstance(error, ConnectionError | EOFError) and _is_of_multiprocessing(error):
            reason = f"{type(error).__name__}: {text}"
        error = error.__cause__ or error.__context__
    return reason


def _is_of_multiprocessing(error: BaseException) -> bool:
    """Whether it was raised between processes, and not by a file or a network."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return name.startswith("multiprocessing.")


def _allow_many_open_files() -> None:
    """Raises the soft limit: each tensor that a worker hands over holds an open file, 4 a sample."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _as_list(samples: list) -> list:
    return samples


class _WorkerInit:
    """Prepares a worker: memory, signals, threads, and the global generators, which only a user's code might use."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rank = seed, comm.get_rank()

    def __call__(self, worker_id: int) -> None:
        # A collection writes to every object it looks at, which would copy the dicts that the json was read into.
        gc.freeze()
        state = int(np.random.default_rng([self.seed, self.rank, worker_id]).integers(2**31))
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        # Ctrl-C and a cluster's SIGTERM reach the whole process group. The trainer answers them at the end of its step,
        # for which it needs its workers; they end with it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # One process a worker is the parallelism; more threads would fight over the cores.
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
