"""The real models through the real command line: killed and resumed, and under torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segzoo.data.scenes import generate_scenes
from tests.contract.toys import CONFIGS, MODELS

REPOSITORY = CONFIGS.parent
# The hardest mix for a resume: averaged weights, two micro-batches a step, two loader workers.
OPTIONS = {
    "INPUT.MIN_SIZE_TRAIN": "(64, 80)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "4",
    "SOLVER.ACCUMULATE": "2",
    "SOLVER.EMA.ENABLED": "True",
    "SOLVER.MAX_ITER": "8",
    "SOLVER.STEPS": "()",
    "SOLVER.CHECKPOINT_PERIOD": "3",
    "SOLVER.LOG_PERIOD": "1",
    "DATALOADER.NUM_WORKERS": "2",
    "SEED": "5",
}
TIMEOUT_S = 240
with_others_slow = pytest.mark.parametrize(
    "name", ["PolarMask", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(MODELS) - {"PolarMask"}))]
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a set of 12 small scenes, every second of which has lost its objects."""
    folder = tmp_path_factory.mktemp("scenes")
    json_file = Path(generate_scenes(str(folder), 12, 3, size_px=64, num_workers=1))
    content = json.loads(json_file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] % 2]
    json_file.write_text(json.dumps(content))
    return ["--train-json", str(json_file), "--train-images", str(folder / "train")]


def start(name: str, words: list[str], launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen:
    """train_net.py with the toy model, in a process group of its own."""
    config_file, changes = MODELS[name]
    return subprocess.Popen(
        [*launcher, "train_net.py", "--config-file", str(CONFIGS / config_file), *words, *changes],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Waits for success; gives the output. Nothing of the process group is left behind."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def words_of(data: list[str], output_dir: Path, **changes: str) -> list[str]:
    options = OPTIONS | {"OUTPUT_DIR": str(output_dir), "MODEL.DEVICE": "cpu"}
    options |= {key.replace("__", "."): value for key, value in changes.items()}
    return [*data, *(word for pair in options.items() for word in pair)]


def losses_of(output_dir: Path) -> dict[int, dict[str, float]]:
    """{iteration: {loss: value}} of metrics.json."""
    lines = [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]
    return {
        line["iteration"]: {key: value for key, value in line.items() if "loss" in key}
        for line in lines
        if "total_loss" in line
    }


@with_others_slow
def test_case_40_killed_and_resumed_gives_the_losses_of_the_unbroken_run(
    data: list[str], tmp_path: Path, name: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(name, words_of(data, whole)))
    process = start(name, words_of(data, broken))
    deadline = time.monotonic() + TIMEOUT_S
    while not (broken / "last_checkpoint").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert not (broken / "model_final.pth").exists(), output
    assert "Resuming from" in finish(start(name, ["--resume", *words_of(data, broken)]))
    expected = losses_of(whole)
    assert sorted(expected) == list(range(8))
    assert losses_of(broken) == expected


@with_others_slow
def test_case_35_torchrun_with_images_without_objects_ends(data: list[str], tmp_path: Path, name: str) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = words_of(
        data,
        tmp_path,
        DATALOADER__FILTER_EMPTY_ANNOTATIONS="False",
        SOLVER__ACCUMULATE="1",
        SOLVER__IMS_PER_BATCH="2",
        SOLVER__MAX_ITER="5",
    )
    finish(start(name, words, launcher))
    losses = losses_of(tmp_path)
    assert sorted(losses) == list(range(5))
    assert (tmp_path / "model_final.pth").is_file()
