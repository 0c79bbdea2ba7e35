"""tools/ablate.py builds every row, and one that cannot be built stops no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import projects.ablation_rows
from segzoo.data.scenes import generate_scenes
from tools.ablate import main

REPOSITORY = Path(__file__).resolve().parents[2]
POLARMASK = str(REPOSITORY / "projects/PolarMask/ablations.yaml")
STUDY = """\
configs: configs
tables:
  "7":
    title: three of a kind
    columns: [segm/AP]
    dataset: coco_2017_val
    config: polarmask_R50.yaml
    rows:
      good: {paper: [29.1]}
      unknown-key: {options: {MODEL.POLARMASK.RAYS: 18}, paper: [26.2]}
      impossible: {options: {MODEL.POLARMASK.NUM_RAYS: 2}, paper: [1.5]}
      no-file: {config: polarmask_R51.yaml, paper: [2.5]}
      other: {options: {MODEL.POLARMASK.NUM_RAYS: 72}, paper: [27.6]}
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "configs").mkdir()
    for name in ("Base-FCOS-R50.yaml", "polarmask_R50.yaml"):
        shutil.copy(REPOSITORY / "configs" / name, tmp_path / "configs")
    (tmp_path / "study.yaml").write_text(STUDY)
    return str(tmp_path / "study.yaml")


def test_ablate_builds_every_row_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["failed"] == []
    rows = {row["row"]: row for row in result["rows"] if "PolarMask" in row["file"]}
    assert len(rows) == 46
    assert {row for row, entry in rows.items() if entry["cited"]} == {"3-YOLACT", "4-TensorMask-R-101", "6-ESE-Seg"}
    assert all(entry["cited"] or entry["trainable_parameters"] > 30e6 for entry in rows.values())
    # The paper's table 3: 32.02, 32.09, 34.46 and (with another count of the heads) 44.18 M.
    counts = [rows[row]["trainable_parameters"] for row in ("3-FCOS", "3-without-box", "3-with-box", "3-Mask-R-CNN")]
    assert counts[:3] == [32_019_802, 32_093_562, 34_464_131]
    assert counts[3] == pytest.approx(44.18e6, rel=0.002)
    assert rows["1a-18"]["options"]["MODEL.POLARMASK.NUM_RAYS"] == 18
    assert rows["2-X-101"] | {"title": ""} == {
        "row": "2-X-101",
        "table": "2",
        "title": "",
        "kinds": ["train"],
        "file": rows["1a-18"]["file"],
        "config_file": rows["1e-X-101"]["config_file"],
        "options": {},
        "model_of": "1e-X-101",
        "dataset": "coco_2017_test-dev",
        "device": "",
        "image_size": [],
        "note": "",
        "cited": "",
        "paper": dict(zip(rows["1e-X-101"]["paper"], [32.9, 55.4, 33.8, 15.5, 35.1, 46.3], strict=True)),
        "trainable_parameters": rows["1e-X-101"]["trainable_parameters"],
    }
    sizes = {row["row"]: row["trainable_parameters"] for row in result["rows"] if "OrienMask" in row["file"]}
    assert len(sizes) == 19
    # Plain FPN and FPN plus.
    assert set(sizes.values()) == {63_596_143, 63_662_063}
    line = next(line for line in captured.out.splitlines() if line.startswith("1b-smooth-l1-0.05 "))
    assert "34.46 M" in line
    assert "24.7" in line
    assert "polarmask_R50.yaml" in line
    assert "MODEL.POLARMASK.MASK_LOSS_WEIGHT 0.05" in line


def test_ablate_rows_that_cannot_be_built_fail_alone(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([study, "--dry-run", "--json"]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["failed"] == ["7-unknown-key", "7-impossible", "7-no-file"]
    assert ["trainable_parameters" in row for row in result["rows"]] == [True, False, False, False, True]
    assert result["rows"][4]["trainable_parameters"] > result["rows"][0]["trainable_parameters"]
    for row, part in [("unknown-key", "RAYS"), ("impossible", "NUM_RAYS is 2"), ("no-file", "polarmask_R51.yaml")]:
        assert any(f"row 7-{row}: " in line and part in line for line in captured.err.splitlines()), row
    assert captured.out.count("FAILED") == 3


def test_ablate_library_errors_fail_their_row_alone(
    study: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = projects.ablation_rows.count_trainable
    monkeypatch.setattr(
        projects.ablation_rows,
        "count_trainable",
        lambda cfg: count(cfg) if cfg.MODEL.POLARMASK.NUM_RAYS == 72 else 1 // 0,
    )
    assert main([study, "--dry-run", "--row", "7-good", "--row", "7-other", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["failed"] == ["7-good"]
    assert "row 7-good: ZeroDivisionError" in captured.err


def test_ablate_takes_the_rows_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([POLARMASK, "--dry-run", "--row", "5-R-50-DCN-2x", "--row", "1d-without", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["row"] for row in rows] == ["1d-without", "5-R-50-DCN-2x"]


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--row", "1a-19"], "1a-19"), (["absent.yaml"], "absent.yaml"), ([str(REPOSITORY / "Makefile")], "Makefile")],
    ids=["row", "file", "no yaml"],
)
def test_ablate_bad_input_ends_with_code_2(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run"]) == 2
    assert part in capsys.readouterr().err
    assert main([*words, "--dry-run", "--json"]) == 2
    captured = capsys.readouterr()
    assert part in json.loads(captured.out)["error"]
    assert captured.err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "part"),
    [([], "0 files to run"), ([POLARMASK, POLARMASK], "2 files to run"), ([POLARMASK, "--max-iter", "-1"], "below 0")],
    ids=["none", "two", "max-iter"],
)
def test_ablate_runs_one_file(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert part in capsys.readouterr().err


SMALL_STUDY = """\
configs: {configs}
tables:
  "1":
    title: rays
    columns: [segm/AP, bbox/AP50, FPS]
    dataset: coco_2017_val
    device: V100
    config: polarmask_scenes.yaml
    options: {{MODEL.TIMM.WEIGHTS: "", MODEL.DEVICE: cpu}}
    rows:
      "12": {{options: {{MODEL.POLARMASK.NUM_RAYS: 12}}, paper: [26.2, null, 20]}}
      strict: {{model_of: 1-12, options: {{MODEL.FCOS.SCORE_THRESH_TEST: 0.9}}, paper: [26.0, 40.0, 21]}}
      wrong: {{options: {{MODEL.POLARMASK.NUM_RAYS: 2}}, paper: [1.0, 2.0, 3]}}
"""


@pytest.mark.slow
def test_ablate_trains_and_measures_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_scenes(str(tmp_path / "scenes"), num_images=4, seed=7, split="few")
    study, output = tmp_path / "study.yaml", tmp_path / "output"
    study.write_text(SMALL_STUDY.format(configs=REPOSITORY / "configs" / "quick"))
    json_file, images = str(tmp_path / "scenes" / "few.json"), str(tmp_path / "scenes" / "few")
    words = [str(study), "--output", str(output), "--max-iter", "2", "--json"]
    words += ["--train-json", json_file, "--train-images", images, "--val-json", json_file, "--val-images", images]
    words += ["--opts", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(words) == 1
    rows = {row["row"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert "NUM_RAYS is 2" in rows["1-wrong"]["error"]
    for name in ("1-12", "1-strict"):
        assert rows[name]["error"] == ""
        assert set(rows[name]["measured"]) == {"segm/AP", "bbox/AP50", "FPS"}
        assert "val_json, 2 iterations of 2" in rows[name]["conditions"]
    # No score reaches 0.9 after two iterations.
    assert rows["1-strict"]["measured"]["segm/AP"] == 0
    assert sorted(path.name for path in output.glob("*.log")) == ["1-12.log", "1-strict.log", "1-wrong.log"]
    table = (output / "ablations.md").read_text()
    assert "| row | segm/AP: paper | ours | difference | bbox/AP50: paper | ours | difference | FPS" in table
    assert "| 1-12 | 26.2 |" in table
    assert "FAILED" in table
    # Once more: nothing is done again but what failed.
    logs = {name: (output / name).read_text() for name in ("1-12.log", "1-strict.log")}
    assert main(words) == 1
    assert {name: (output / name).read_text() for name in logs} == logs
    assert (output / "1-wrong.log").read_text().count("NUM_RAYS is 2") == 2
    assert (output / "ablations.md").read_text() == table
