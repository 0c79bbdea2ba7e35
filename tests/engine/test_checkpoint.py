"""Writing that survives a kill, reading that runs no code, and configs that differ on resume."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from segzoo.config import get_segzoo_cfg
from segzoo.engine import checkpoint
from segzoo.engine.checkpoint import (
    config_difference,
    last_checkpoint,
    random_state,
    read_checkpoint,
    refuse_other_config,
    save_checkpoint,
    set_random_state,
)
from segzoo.engine.resume import read_last_checkpoint
from segzoo.errors import CheckpointError, TrainingError


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


class RunsCode:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_save_checkpoint_killed_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(str(tmp_path), "model_0000001.pth", {"value": torch.ones(1)})

    def write_half(payload: object, stream) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half of a")
        raise Killed

    monkeypatch.setattr(checkpoint.torch, "save", write_half)
    for name in ("model_0000002.pth", "model_0000001.pth"):
        with pytest.raises(Killed):
            save_checkpoint(str(tmp_path), name, {"value": torch.zeros(1)})
        assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0000001.pth")
        assert read_checkpoint(last_checkpoint(str(tmp_path)))["value"].item() == 1.0
    assert not (tmp_path / "model_0000002.pth").exists()


def test_save_checkpoint_on_a_full_disk_says_so_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(payload: object, stream) -> None:  # type: ignore[no-untyped-def]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(TrainingError, match="No space left on device"):
        save_checkpoint(str(tmp_path), "model_0000002.pth", {})
    assert os.listdir(tmp_path) == []


def test_save_checkpoint_keeps_the_newest_and_never_the_best_or_final_away(tmp_path: Path) -> None:
    for name in ("model_best.pth", "model_final.pth"):
        (tmp_path / name).touch()
    for iteration in (2, 4, 6, 8):
        save_checkpoint(str(tmp_path), f"model_{iteration:07d}.pth", {}, keep=2)
    kept = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert kept == ["model_0000006.pth", "model_0000008.pth", "model_best.pth", "model_final.pth"]


def test_last_checkpoint_without_its_file_lists_the_others(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path), "model_0000001.pth", {})
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(CheckpointError, match="model_0000001"):
        last_checkpoint(str(tmp_path))


def test_last_checkpoint_without_a_pointer_is_the_newest_periodic_one(tmp_path: Path) -> None:
    assert last_checkpoint(str(tmp_path / "absent")) == ""
    for name in ("model_0000003.pth", "model_0000006.pth"):
        save_checkpoint(str(tmp_path), name, {})
    (tmp_path / "last_checkpoint").unlink()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0000006.pth")


def test_read_checkpoint_refuses_code(tmp_path: Path) -> None:
    torch.save({"model": RunsCode(tmp_path / "made")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth: refused.*could run code"):
        read_checkpoint(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "made").exists()


def test_read_checkpoint_of_a_truncated_file_names_it(tmp_path: Path) -> None:
    path = save_checkpoint(str(tmp_path), "whole.pth", {"value": torch.ones(1000)})
    (tmp_path / "half.pth").write_bytes(Path(path).read_bytes()[:1500])
    (tmp_path / "text.pth").write_text("weights: none")
    (tmp_path / "empty.pth").touch()
    for name in ("half.pth", "text.pth", "empty.pth", "absent.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(str(tmp_path / name))


def test_random_state_survives_a_checkpoint(tmp_path: Path) -> None:
    def draw() -> tuple:
        return random.random(), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()

    np.random.randn()  # leaves a cached second gaussian
    path = save_checkpoint(str(tmp_path), "state.pth", {"random": random_state()})
    first = draw()
    assert draw() != first
    set_random_state(read_checkpoint(path)["random"])
    assert draw() == first


def test_refuse_other_config_lists_what_matters_and_lets_the_rest_pass() -> None:
    saved = get_segzoo_cfg().dump()
    cfg = get_segzoo_cfg()
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.TEST.EVAL_PERIOD = "elsewhere", 7, 50
    refuse_other_config(saved, cfg, force=False)
    cfg.MODEL.FCOS.NUM_CLASSES = 3
    cfg.SOLVER.STEPS = (5,)
    assert config_difference(saved, cfg) == ["MODEL.FCOS.NUM_CLASSES: 80 -> 3", "SOLVER.STEPS: [30000] -> [5]"]
    with pytest.raises(CheckpointError, match=r"(?s)NUM_CLASSES: 80 -> 3.*--force"):
        refuse_other_config(saved, cfg, force=False)
    refuse_other_config(saved, cfg, force=True)


def test_two_spellings_of_a_path_are_no_difference() -> None:
    cfg = get_segzoo_cfg()
    cfg.DATASETS.TRAIN_IMAGES, cfg.DATASETS.TRAIN_JSON = "pictures/", os.path.abspath("a.json")
    saved = cfg.dump()
    cfg.DATASETS.TRAIN_IMAGES, cfg.DATASETS.TRAIN_JSON = "./pictures", "a.json"
    assert config_difference(saved, cfg) == []
    cfg.DATASETS.TRAIN_JSON = "b.json"
    assert len(config_difference(saved, cfg)) == 1


def test_parts_that_a_killed_write_left_are_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(str(tmp_path), "model_0000001.pth", {"value": torch.ones(1)})
    (tmp_path / ".hidden").touch()
    (tmp_path / "mine.part").touch()
    kept = sorted(os.listdir(tmp_path))

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(checkpoint.torch, "save", killed)
    with pytest.raises(Killed):
        save_checkpoint(str(tmp_path), "model_0000002.pth", {})
    assert len(os.listdir(tmp_path)) == len(kept) + 1
    checkpoint.remove_stale_parts(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == kept


def read_as_rank(rank: int, folder: Path, messages: multiprocessing.Queue) -> None:
    # Each "machine" has its own working directory, and so its own OUTPUT_DIR "out".
    os.chdir(folder / f"machine{rank}")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    try:
        state = read_last_checkpoint("out")
        messages.put((rank, "" if state is None else f"iteration {state['iteration']}"))
    except CheckpointError as error:
        messages.put((rank, str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("iteration_of_rank_1", "expected"),
    [(3, "^iteration 3$"), (None, r"rank 1 on .*out/state.pth.*does not exist"), (5, "rank 1 on .*not the file that")],
)
def test_ranks_resume_from_one_checkpoint_or_fail_together(
    tmp_path: Path, iteration_of_rank_1: int | None, expected: str
) -> None:
    for rank, iteration in enumerate((3, iteration_of_rank_1)):
        (tmp_path / f"machine{rank}" / "out").mkdir(parents=True)
        if iteration is not None:
            state = {"iteration": iteration, "num_micro_batches": iteration, "config": "SEED: 1"}
            save_checkpoint(str(tmp_path / f"machine{rank}" / "out"), "state.pth", state)
    context = multiprocessing.get_context("fork")
    messages = context.Queue()
    ranks = [context.Process(target=read_as_rank, args=(rank, tmp_path, messages)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(messages.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert found[0] == found[1]
    assert re.search(expected, found[0]), found[0]
