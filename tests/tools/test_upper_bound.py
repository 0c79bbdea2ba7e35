"""The command line of the upper bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.projects.upper_bound.drawn import annotation, blobs, write_json
from tools import upper_bound


@pytest.fixture
def json_file(tmp_path: Path) -> str:
    return write_json(tmp_path / "a.json", [annotation(mask, 10 + 10 * (n % 2)) for n, mask in enumerate(blobs(4, 1))])


def test_upper_bound_prints_and_writes_all_of_every_row(json_file: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "deep" / "out"
    arguments = ["--annotations", json_file, "--output", str(output), "--workers", "1", "--json"]
    assert upper_bound.main([*arguments, "--rays", "36", "18", "--shape-sizes", "24"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert json.loads((output / "report.json").read_text()) == report
    assert [row["method"] for row in report["rows"]] == [
        *["PolarMask"] * 8,
        *["CenterMask"] * 3,
        *["OrienMask"] * 12,
        "FCOSIS",
        *["Mask R-CNN, MaskFCOS"] * 2,
    ]
    for row in report["rows"]:
        assert 0.5 < row["mean_iou"] <= 1
        assert row["boundary"]["AP"] <= row["segm"]["AP"] <= 100
        assert row["title"] in printed
    assert report["advice"] in (output / "report.md").read_text()
    assert (output / "report.png").is_file()


def test_iou_only_measures_no_ap_and_methods_are_chosen(json_file: str, tmp_path: Path, capsys) -> None:
    arguments = ["--annotations", json_file, "--output", str(tmp_path), "--workers", "1", "--iou-only", "--json"]
    assert upper_bound.main([*arguments, "--methods", "fcosis", "box_masks", "--input", "image"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["input"] for row in report["rows"]] == ["the image's own size"] * 3
    assert "segm" not in report["rows"][0]


def test_processes_are_as_many_as_this_one_may_use_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert upper_bound.build_argument_parser().parse_args(["--annotations", "a.json"]).workers == 3
    monkeypatch.delattr("os.sched_getaffinity")
    assert upper_bound.usable_cores() == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rays", "2"], "--rays is 2"),
        (["--workers", "0"], "--workers is 0"),
        (["--annotations", "missing.json"], "missing.json does not exist"),
        (["--output", "/proc/nothing"], "--output /proc/nothing"),
    ],
)
def test_user_mistakes_end_with_code_2_and_one_line(
    options: list[str], message: str, json_file: str, tmp_path: Path, capsys
) -> None:
    fast = ["--methods", "box_masks", "--iou-only", "--workers", "1"]
    assert upper_bound.main(["--annotations", json_file, "--output", str(tmp_path), *fast, *options, "--json"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert message in json.loads(captured.out.splitlines()[-1])["error"]
