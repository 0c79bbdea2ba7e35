"""The benchmark's oracles agree with the package, and its command line says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from projects.CenterMask import benchmark as centermask
from projects.OrienMask import benchmark as orienmask
from projects.PolarMask import benchmark as polarmask
from segzoo.errors import SegZooError
from segzoo.evaluation.timing import Comparison, compare_times, peak_memory_mb
from tools import benchmark as command

CPU = torch.device("cpu")
SMALL = (192, 256)


def test_compare_times_gives_medians_per_image_and_their_ratio() -> None:
    calls = []
    row = compare_times(
        "loop",
        lambda: calls.append("ours"),
        lambda: (calls.append("oracle"), sum(range(200_000))),
        repeats=3,
        images=2,
    )
    assert calls == ["ours", "oracle"] * 4
    assert row.oracle_ms > row.ours_ms > 0
    assert row.ratio == pytest.approx(row.oracle_ms / row.ours_ms)
    assert Comparison("x", 2.0, 5.0).as_dict() == {"name": "x", "ours_ms": 2.0, "oracle_ms": 5.0, "ratio": 2.5}


def test_benchmark_targets_compares_equal_targets_for_both_rules_and_batches() -> None:
    rows = list(polarmask.benchmark_targets(1, CPU, counts=(3,), batches=(1, 2), size=SMALL))
    assert [row.name.split(",")[0] for row in rows] == ["exact rays", "degree bins"] * 2
    assert all(row.ours_ms > 0 and row.oracle_ms > 0 for row in rows)


def test_benchmark_targets_that_disagree_with_the_oracle_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polarmask, "_exact_rays", lambda sides, point: np.ones(polarmask.NUM_RAYS))
    with pytest.raises(SegZooError, match="rays differ"):
        list(polarmask.benchmark_targets(1, CPU, counts=(3,), batches=(1,), size=SMALL))


def test_benchmark_decode_compares_equal_detections_for_both_presets() -> None:
    rows = list(polarmask.benchmark_decode(1, CPU, cases=((SMALL, (150, 200)),)))
    assert [row.name.split(",")[0] for row in rows] == ["polygons", "truncated contours"]


def test_benchmark_prints_rows_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Comparison("a part", 1.0, 12.0)]
    monkeypatch.setattr(polarmask, "BENCHMARKS", {"targets": lambda repeats, device: iter(rows)})
    assert command.main(["targets", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("a part" in line and "12.0x" in line for line in lines)
    assert json.loads(lines[-1])["rows"] == [rows[0].as_dict()]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["targets", "--repeats", "0"], "--repeats 0"),
        (["decode", "--threads", "0"], "--threads 0"),
        (["decode"], "no benchmark 'decode'"),
        (["targets", "--device", "abacus"], "abacus"),
    ],
)
def test_benchmark_bad_input_ends_with_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polarmask, "BENCHMARKS", {"targets": polarmask.benchmark_targets})
    assert command.main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert text in json.loads(captured.out.splitlines()[-1])["error"]


def test_orienmask_targets_equal_the_oracle_over_whole_maps_and_areas() -> None:
    rows = list(orienmask.benchmark_targets(1, CPU, counts=(3,), batches=(1, 2), size=(192, 256)))
    assert [row.name.split("numpy over ")[1] for row in rows] == ["whole maps", "areas alone"] * 2


def test_orienmask_targets_that_disagree_with_the_oracle_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orienmask, "RULE", orienmask.RULE._replace(expand_ratio=1.3))
    with pytest.raises(SegZooError, match="disagree about the pixels"):
        list(orienmask.benchmark_targets(1, CPU, counts=(3,), batches=(1,), size=(192, 256)))


def test_orienmask_masks_equal_the_oracle_and_take_less_memory() -> None:
    (row,) = orienmask.benchmark_decode(1, CPU, count=12, size=(192, 256))
    assert row.ours_mb is not None
    assert row.oracle_mb is not None
    assert row.ours_mb < row.oracle_mb / 4
    assert {"ours_mb", "oracle_mb"} <= set(row.as_dict())


def test_centermask_shapes_equal_the_dense_map_and_take_a_fraction_of_its_memory() -> None:
    (row,) = centermask.benchmark_shape(1, CPU, counts=(5,), batch=2, size=(64, 64))
    assert row.ours_mb is not None
    assert row.oracle_mb is not None
    assert row.ours_mb < 0.02 * row.oracle_mb
    assert row.ratio > 10


def test_centermask_shapes_that_differ_from_the_dense_map_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centermask.ShapeHead, "dense", lambda head, features: head.pred(head.hidden(features)))
    with pytest.raises(SegZooError, match="differ from the dense map"):
        list(centermask.benchmark_shape(1, CPU, counts=(2,), batch=1, size=(8, 8)))


def test_benchmark_shape_is_that_of_centermask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Comparison("shapes", 1.0, 120.0, 1.0, 640.0)]
    monkeypatch.setattr(centermask, "BENCHMARKS", {"shape": lambda repeats, device: iter(rows)})
    assert command.main(["shape", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("120.0x" in line for line in lines)
    assert any("640.0 MiB" in line for line in lines)
    assert json.loads(lines[-1])["method"] == "centermask"


def test_peak_memory_counts_the_arrays_of_torch_and_numpy() -> None:
    assert 12.0 <= peak_memory_mb(lambda: torch.ones(2**20).mul_(2) + torch.ones(2**20)) < 12.5
    assert 8.0 <= peak_memory_mb(lambda: np.ones(2**20)) < 8.5
