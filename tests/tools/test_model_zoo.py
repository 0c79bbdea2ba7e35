"""MODEL_ZOO.md is up to date, and says of every config no more than is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import projects.zoo
from projects import get_cfg
from projects.catalog import config_names, read_config, study_rows
from projects.results import RESULTS_FILE, Result, read_results
from projects.zoo import NOT_TRAINED, ZOO_FILE, backbone_text, build_zoo, known_gmac, paper_text, recipe_text, size_text
from segzoo.errors import ConfigError
from tools import model_zoo as command


def test_model_zoo_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """`python tools/model_zoo.py` writes it; GMAC are checked by the slow test."""
    assert command.main(["--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["changed_lines"] == []


@pytest.mark.slow
def test_model_zoo_gmac_are_what_is_counted() -> None:
    assert build_zoo(projects.zoo.counted_gmac) == ZOO_FILE.read_text(encoding="utf-8")


def test_model_zoo_has_the_gmac_of_every_config() -> None:
    known = known_gmac(ZOO_FILE.read_text(encoding="utf-8"))
    assert sorted(known) == sorted(config_names())
    assert all(re.fullmatch(r"\d+\.\d( \+ \d+\.\d\d a (colour group|box))?", text) for text in known.values())
    # As their own documents have it.
    assert known["fcosis_R50.yaml"] == "241.9 + 49.56 a colour group"
    assert known["orienmask_D53.yaml"] == "86.9"


def cells_of(name: str) -> list[str]:
    """The row of a config."""
    lines = [line for line in ZOO_FILE.read_text(encoding="utf-8").splitlines() if f"](configs/{name})" in line]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_model_zoo_rows_say_what_paper_and_measurements_have() -> None:
    polarmask = cells_of("polarmask_R50.yaml")
    assert polarmask[1:5] == ["PolarMask", "R-50 FPN", "SGD, 90,000 x 16, 0.01", "800 / 1333"]
    assert polarmask[5] == "32.37"
    assert polarmask[-2:] == ["29.1 val (PolarMask 1e-R-50)", NOT_TRAINED]
    both = cells_of("polarmask_R101.yaml")[-2]
    assert both == "30.4 val (PolarMask 1e-R-101); 30.4 test-dev (PolarMask 2-R-101)"
    assert cells_of("polarmask_EffLite0.yaml")[-2:] == ["none", "12.5 people-320"]
    assert cells_of("quick/fcos_scenes.yaml")[-1] == "box 50.8 scenes-v1_val"
    assert cells_of("quick/orienmask_D_overfit.yaml")[-1] == "62.2 sixteen; 45.3 sixteen"


def test_paper_text_leaves_out_rows_that_change_the_config() -> None:
    rows = study_rows()
    # Only with another depth or schedule do papers print these.
    assert paper_text("mask_rcnn_R50.yaml", rows) == "none"
    assert paper_text("fcos_R50.yaml", rows) == "none"
    # Of its own row, not of those that only take its model.
    assert paper_text("orienmask_D53_base.yaml", rows).startswith("32.5 val (OrienMask 4-base)")
    assert paper_text("fcosis_R50.yaml", rows).startswith("box 38.2 test-dev (FCOSIS 1-FCOSIS); 32.4 test-dev")
    # 3a to 3c are on val2017, and of the model as it stands.
    assert "32.4 val (FCOSIS 3a-with)" in paper_text("fcosis_R50.yaml", rows)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("polarmask_X101_DCN.yaml", [], "X-101-64x4d DCN FPN"),
        ("centermask_DLA34.yaml", [], "DLA-34"),
        ("centermask_DLA34.yaml", ["MODEL.DLA.CHANNELS", "(8, 16, 32, 64, 128, 256)"], "small DLA"),
        ("centermask_HG104.yaml", [], "Hourglass-104"),
        ("orienmask_D53.yaml", [], "Darknet-53"),
        ("quick/orienmask_D_overfit.yaml", [], "small Darknet"),
        ("orienmask_EffLite0.yaml", [], "efficientnet_lite0"),
        ("fcos_EffLite0.yaml", [], "efficientnet_lite0 FPN"),
    ],
)
def test_backbone_text(name: str, words: list[str], expected: str) -> None:
    assert backbone_text(read_config(name, words)) == expected


def test_recipe_and_size_texts() -> None:
    cfg = read_config("polarmask_R50_2x.yaml")
    assert recipe_text(cfg) == "SGD, 180,000 x 16, 0.01"
    assert size_text(cfg) == "640 to 800 / 1333; 800 / 1333"
    assert size_text(read_config("orienmask_D53.yaml")) == "544 x 544"
    keep = get_cfg()
    keep.INPUT.RESIZE = "keep_res"
    assert size_text(keep) == "own size"


def test_results_are_those_of_the_documents() -> None:
    """Each AP stands in a study's page or in docs/scenes.md, in a line with its iterations or its config."""
    root = RESULTS_FILE.parents[1]
    pages = [*root.glob("projects/*/README.md"), root / "docs/scenes.md"]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    for result in read_results()[1]:
        column = "segm/AP" if "segm/AP" in result.metrics else "bbox/AP"
        figure = re.compile(rf"(?<![\d.]){re.escape(str(result.metrics[column]))}(?![\d.])")
        words = (str(result.iterations), Path(result.config).stem)
        assert any(figure.search(line) and any(word in line for word in words) for line in lines), result


GOOD: dict[str, Any] = {
    "config": "fcos_R50.yaml",
    "dataset": "here",
    "commit": "0123abc",
    "machine": "a GPU",
    "iterations": 10,
    "minutes": 1.5,
    "metrics": {"bbox/AP": 12.5},
}


def write(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / "results.yaml"
    path.write_text(yaml.safe_dump({"datasets": {"here": "ten images"}, "results": [entry]}), encoding="utf-8")
    return path


def test_read_results_gives_entries_as_they_are(tmp_path: Path) -> None:
    datasets, results = read_results(write(tmp_path, GOOD | {"note": "alone"}))
    assert datasets == {"here": "ten images"}
    assert results == [Result(**GOOD, note="alone")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "fcos_R51.yaml"}, r"result 1: 'fcos_R51.yaml' is no config"),
        ({"dataset": "elsewhere"}, r"'elsewhere' is not described"),
        ({"commit": "main"}, r"commit is 'main'"),
        ({"commit": 1234567}, r"commit is 1234567"),
        ({"iterations": 0}, r"0 iterations"),
        ({"minutes": 0}, r"in 0 minutes"),
        ({"metrics": {}}, r"no metrics"),
        ({"metrics": {"mAP": 12.5}}, r"metric 'mAP' is 12.5"),
        ({"metrics": {"bbox/AP": 125.0}}, r"'bbox/AP' is 125.0"),
        ({"metrics": {"bbox/AP": "good"}}, r"'bbox/AP' is 'good'"),
        ({"mashine": "a GPU"}, r"unknown key 'mashine'"),
        ({"machine": None}, r"machine is None"),
    ],
)
def test_read_results_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_results(write(tmp_path, GOOD | change))


@pytest.mark.parametrize("text", ["datasets: [", "results: []", "- a"], ids=["yaml", "keys", "list"])
def test_read_results_refuses_other_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"results\.yaml: "):
        read_results(tmp_path / "results.yaml")


@pytest.fixture
def two_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects.zoo, "config_names", lambda: ["fcos_EffLite0.yaml", "quick/fcos_scenes.yaml"])


@pytest.mark.usefixtures("two_configs")
def test_model_zoo_writes_checks_and_keeps_what_was_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo.md"
    assert command.main(["--file", str(path), "--check"]) == 1
    assert not path.exists()
    assert "out of date" in capsys.readouterr().err
    assert command.main(["--file", str(path)]) == 0
    assert command.main(["--file", str(path), "--check"]) == 0
    counted = known_gmac(path.read_text())
    assert set(counted) == {"fcos_EffLite0.yaml", "quick/fcos_scenes.yaml"}
    # A line that somebody changed comes back, and nothing is counted for it.
    path.write_text(path.read_text().replace("box 50.8", "box 60.8").replace(counted["fcos_EffLite0.yaml"], "999.9"))
    monkeypatch.setattr(projects.zoo, "counted_gmac", lambda *_: pytest.fail("counted again"))
    capsys.readouterr()
    assert command.main(["--file", str(path), "--keep-gmac"]) == 0
    assert capsys.readouterr().out.startswith("+ | [fcos_scenes]")
    assert "box 50.8" in path.read_text()
    assert known_gmac(path.read_text())["fcos_EffLite0.yaml"] == "999.9"


def test_model_zoo_error_ends_with_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = write(tmp_path, GOOD | {"commit": "main"})
    monkeypatch.setattr(projects.zoo, "read_results", lambda: read_results(broken))
    assert command.main(["--check", "--json"]) == 2
    captured = capsys.readouterr()
    assert "commit is 'main'" in json.loads(captured.out)["error"]
    assert captured.err.startswith("error: ")
