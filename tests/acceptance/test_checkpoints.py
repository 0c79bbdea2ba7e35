"""Cases 40 to 46: interrupted, damaged and foreign checkpoints, and configs that cannot work, of every method."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from segzoo.engine import checkpoint as checkpoint_module
from segzoo.engine import trainer as trainer_module
from segzoo.engine.checkpoint import read_checkpoint
from segzoo.engine.weights import load_weights
from segzoo.errors import CheckpointError
from tests.acceptance.runs import SMALL_BACKBONE, run_method
from tests.contract.test_models_train_net import losses_of
from tests.contract.toys import NUM_CLASSES, build_toy
from tests.engine.test_checkpoint import RunsCode
from tests.engine.test_resume import HARD
from tests.engine.tiny_run import write_tiny_coco

Refuse = Callable[..., str]
LONG = {**HARD, "SOLVER__MAX_ITER": 6, "SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__IMS_PER_BATCH": 2}
SHORT = {"SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 1, "SOLVER__CHECKPOINT_PERIOD": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*write_tiny_coco(tmp_path_factory.mktemp("tiny")), "--skip-audit"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def killing(function: Callable, at: int) -> Callable:
    """The same function, but the call of this number (from 0) never comes back."""
    calls = iter(range(10**6))

    def call(*args: object, **kwargs: object) -> object:
        if next(calls) == at:
            raise Killed
        return function(*args, **kwargs)

    return call


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and averaged weights of a finished run."""
    final = read_checkpoint(str(folder / "model_final.pth"))
    return {**final["model"], **{f"ema {name}": value for name, value in final["ema"]["shadow"].items()}}


@pytest.mark.slow
def test_case_40_killed_and_resumed_gives_the_unbroken_run_bit_for_bit(
    method: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Averaged weights, two micro-batches a step, two loader workers, clipping. Killed between the micro-batches of the
    # fourth step, after the checkpoint of two, and once more in the writing of the checkpoint of four.
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_method(method, data, whole, **LONG) == 0
    accumulate = trainer_module.Trainer._accumulate_gradient
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_accumulate_gradient", killing(accumulate, at=7))
        with pytest.raises(Killed):
            run_method(method, data, broken, **LONG)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.torch, "save", killing(torch.save, at=0))
        with pytest.raises(Killed):
            run_method(method, data, broken, "--resume", **LONG)
    assert (broken / "last_checkpoint").read_text() == "model_0000002.pth"
    assert run_method(method, data, broken, "--resume", **LONG) == 0
    assert sorted(losses_of(whole)) == list(range(6))
    assert losses_of(broken) == losses_of(whole)
    ours, theirs = final_state(broken), final_state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Else the system would end the process.
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_case_41_and_46_a_disk_that_is_full_in_the_writing_leaves_the_checkpoint_before(
    method: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_method(method, data, tmp_path, **{**SHORT, "SOLVER__MAX_ITER": 1}) == 0
    (tmp_path / "model_final.pth").rename(tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    with largest_file(len(before) // 2):
        assert run_method(method, data, tmp_path, "--resume", "--force", **SHORT) == 3
    printed = capsys.readouterr().err
    assert "model_final.pth: cannot be written: " in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "model_final.pth").exists()
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert run_method(method, data, tmp_path, "--resume", "--force", **SHORT) == 0


def test_case_42_another_class_count_is_listed_in_groups_and_the_rest_is_loaded_on_request(
    model_name: str, tmp_path: Path
) -> None:
    source = build_toy(model_name, *SMALL_BACKBONE).state_dict()
    first = next(iter(source))
    source["alien.weight"] = source.pop(first)
    torch.save({"model": source}, tmp_path / "model.pth")
    classes = [word for head in HEADS for word in (f"MODEL.{head}.NUM_CLASSES", NUM_CLASSES + 1)]
    target = build_toy(model_name, *SMALL_BACKBONE, *classes)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, str(tmp_path / "model.pth"))
    text = str(caught.value)
    assert f"missing in the file (1): {first}" in text
    assert "unexpected in the file (1): alien.weight" in text
    assert "wrong shape (file -> model)" in text
    assert "--allow-head-mismatch" in text
    load_weights(target, str(tmp_path / "model.pth"), allow_head_mismatch=True)
    for name, value in target.state_dict().items():
        fits = name in source and source[name].shape == value.shape
        assert torch.equal(value, source[name] if fits else before[name]), name


HEADS = ("FCOS", "ROI_HEADS", "ORIENMASK", "CENTERMASK")


def test_case_42_a_truncated_or_foreign_checkpoint_is_named(
    method: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": build_toy(method, *SMALL_BACKBONE).state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    torch.save({"alien.weight": torch.ones(1)}, tmp_path / "alien.pth")
    for name, reason in (("half", "truncated or not a checkpoint"), ("alien", "none of its 1 entries fits the model")):
        weights = str(tmp_path / f"{name}.pth")
        assert run_method(method, data, tmp_path / name, **SHORT, MODEL__WEIGHTS=weights) == 2
        printed = capsys.readouterr().err
        assert f"{weights}: {reason}" in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_case_43_a_pickle_with_code_is_refused_and_not_run(
    method: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = {"model": RunsCode(tmp_path / "made")}
    if name.endswith(".pth"):
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    assert run_method(method, data, tmp_path / "out", **SHORT, MODEL__WEIGHTS=tmp_path / name) == 2
    printed = capsys.readouterr().err
    assert f"{name}: refused" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "made").exists()


def test_case_43_arrays_of_a_zoo_pickle_fill_the_backbone(method: str, tmp_path: Path) -> None:
    model = build_toy(method, *SMALL_BACKBONE)
    state = model.backbone.state_dict()
    arrays = {name: np.full(tuple(value.shape), 0.25, np.float32) for name, value in state.items() if value.dim() == 4}
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    load_weights(model, str(tmp_path / "zoo.pkl"))
    assert all((value == 0.25).all() for name, value in model.backbone.state_dict().items() if name in arrays)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> Callable[[str], Path]:
    """The folder of a short run of a method, made once."""
    made: dict[str, Path] = {}

    def folder_of(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("run") / "out"
            assert run_method(method, data, made[method], **SHORT) == 0
        return made[method]

    return folder_of


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.txt"}


def test_case_44_a_resume_with_another_config_shows_the_difference_and_is_refused(
    method: str, data: list[str], trained: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(method)
    before = contents(folder)
    changes = {**SHORT, "SOLVER__MAX_ITER": 3, "SOLVER__STEPS": "(2,)", "MODEL__TIMM__NAME": "efficientnet_lite0"}
    assert run_method(method, data, folder, "--resume", **changes) == 2
    printed = capsys.readouterr().err
    for line in (
        "SOLVER.STEPS: [] -> [2]",
        "SOLVER.MAX_ITER: 2 -> 3",
        "MODEL.TIMM.NAME: 'test_efficientnet' -> 'efficientnet_lite0'",
        "--force",
    ):
        assert line in printed
    assert contents(folder) == before


IMPOSSIBLE = {
    "PolarMask": ("MODEL.POLARMASK.NUM_RAYS", "2"),
    "CenterMask": ("MODEL.CENTERMASK.SHAPE_SIZE", "-1"),
    "OrienMask": ("MODEL.ORIENMASK.TAU", "-0.5"),
    "FCOSIS": ("MODEL.FCOSIS.GROUP_BUDGET_MB", "0"),
    "MaskRCNN": ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.5"),
}


def test_case_45_a_value_of_the_method_that_cannot_work_is_named_with_its_range(
    method: str, data: list[str], refuse: Refuse
) -> None:
    key, value = IMPOSSIBLE[method]
    printed = refuse(data, **{key.replace(".", "__"): value})
    assert f"{key} is {value}" in printed
    assert "must be" in printed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LRR", "0.1", "the nearest known key is 'SOLVER.BASE_LR'"),
        ("SOLVER.MAX_ITER", "many", "SOLVER.MAX_ITER many"),
        ("SOLVER.STEPS", "(900,)", "SOLVER.STEPS (900,) do not lie within 1..SOLVER.MAX_ITER = 8"),
        ("MODEL.FCOS.SCORE_THRESH_TEST", "1.5", "MODEL.FCOS.SCORE_THRESH_TEST is 1.5\n  -> it must be between 0 and 1"),
        ("INPUT.ON_BAD_IMAGE", "ignore", "INPUT.ON_BAD_IMAGE is 'ignore'\n  -> allowed: 'error', 'skip'"),
    ],
)
def test_case_45_unknown_keys_wrong_types_and_impossible_values_are_named(
    data: list[str], refuse: Refuse, key: str, value: str, message: str
) -> None:
    assert message in refuse(data, **{key.replace(".", "__"): value})


def test_case_46_a_run_is_not_overwritten_without_resume(
    method: str, data: list[str], trained: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(method)
    before = contents(folder)
    assert run_method(method, data, folder, **SHORT) == 2
    printed = capsys.readouterr().err
    assert "holds a run already" in printed
    assert "--resume" in printed
    assert contents(folder) == before


def test_case_46_a_folder_that_cannot_be_written_is_refused_before_training(
    method: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_method(method, data, tmp_path / "file" / "out", **SHORT) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_case_46_a_disk_that_fills_up_in_the_log_of_losses_ends_with_a_remedy(
    method: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "metrics.json"))

    def onto_full_disk(self: trainer_module.MetricsJsonWriter) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.MetricsJsonWriter, "write", onto_full_disk)
        assert run_method(method, data, folder, **SHORT) == 3
    printed = capsys.readouterr().err
    assert f"metrics.json: cannot be written: {full.strerror}" in printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert run_method(method, data, folder, "--resume", **SHORT) == 0
    assert json.loads((folder / "metrics.json").read_text().splitlines()[-1])["iteration"] == 1
