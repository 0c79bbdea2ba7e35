"""Costs beside the papers' figures: nothing is typed in twice, and the counts are those of slow programs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import projects.costs
from projects.catalog import COUNTED_IMAGE, MAIN_CONFIGS, RELATIVES, config_names, counted_size, read_config, study_rows
from projects.costs import paper_rows, recipe_rows, tables
from segzoo.engine.ablations import COSTS
from tools import complexity as command

COST_COLUMNS = {column for column, kind in COSTS.items() if kind == "complexity"}


def test_config_names_are_all_leaves_of_the_folder() -> None:
    names = config_names()
    assert len(names) == len(set(names)) > 40
    assert not any(Path(name).name.startswith("Base-") for name in names)
    assert {*MAIN_CONFIGS, *RELATIVES} <= set(names)
    assert names.index("quick/polarmask_scenes.yaml") > names.index("polarmask_X101_DCN_2x.yaml")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("polarmask_R50.yaml", (800, 1280)),
        ("polarmask_EffLite0.yaml", (250, 400)),
        ("orienmask_D53.yaml", (544, 544)),
        ("centermask_DLA34.yaml", (512, 512)),
        ("polarmask_R50_official.yaml", (768, 1280)),
    ],
)
def test_counted_size_is_that_of_the_recipes_evaluation(name: str, size: tuple[int, int]) -> None:
    assert counted_size(read_config(name)) == size


def test_counted_size_letterbox_is_the_whole_canvas() -> None:
    words = ["INPUT.RESIZE", "letterbox", "INPUT.FIXED_SIZE", "(320, 384)"]
    assert counted_size(read_config("polarmask_R50.yaml", words)) == (320, 384)


def test_counted_image_is_that_of_polarmasks_table_3() -> None:
    sizes = {row.image_size for method, row in study_rows() if method == "PolarMask" and row.table == "3"}
    assert sizes == {COUNTED_IMAGE}


def test_paper_rows_are_all_rows_with_figures_of_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = projects.costs.read_config("fcos_EffLite0.yaml", ["MODEL.TIMM.WEIGHTS", ""])
    monkeypatch.setattr(projects.costs, "row_config", lambda row, cfg: small.clone())
    rows = paper_rows()
    wanted = {(method, row.id) for method, row in study_rows() if COST_COLUMNS & set(row.figures)}
    assert {(row.method, row.row.id) for row in rows} == wanted
    assert len(wanted) == 6
    for row in rows:
        assert row.paper == {column: row.row.figures[column] for column in COST_COLUMNS & set(row.row.figures)}
        # FCOS has no maps that masks are built from: that column is left open, not filled with a guess.
        assert set(row.ours) == ({"GMAC", "trainable M"} & set(row.paper) if not row.row.cited else set())


def test_paper_rows_fcos_has_the_papers_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [pair for pair in study_rows() if pair[1].id in ("3-FCOS", "6-OrienMask")]
    monkeypatch.setattr(projects.costs, "study_rows", lambda: chosen)
    orienmask, fcos = paper_rows()
    assert fcos.ours["trainable M"] == pytest.approx(fcos.paper["trainable M"], abs=0.005)
    assert fcos.ours["GMAC"] == pytest.approx(fcos.paper["GMAC"], rel=0.005)
    assert orienmask.ours["maps MiB"] == pytest.approx(orienmask.paper["maps MiB"], abs=0.005)
    text = tables([orienmask, fcos], [])
    line = next(line for line in text.splitlines() if line.startswith("PolarMask 3-FCOS") and "GMAC" in line)
    difference = fcos.ours["GMAC"] - fcos.paper["GMAC"]
    assert line.split()[-2:] == [f"{difference:+.2f}", f"({difference / fcos.paper['GMAC']:+.1%})"]


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects.costs, "counted_size", lambda cfg, image_size: (128, 128))


@pytest.mark.usefixtures("small_sizes")
def test_recipe_rows_state_what_the_content_decides_on() -> None:
    fcosis, maskfcos = recipe_rows(["fcosis_EffLite0.yaml", "maskfcos_EffLite0.yaml"])
    stage = fcosis.complexity.object_cost
    assert stage is not None
    lines = tables([], [fcosis, maskfcos]).splitlines()
    for count, words in ((1, "1 colour group"), (3, "3 colour groups"), (6, "6 colour groups")):
        line = next(line for line in lines if line.strip().startswith(f"with {words} "))
        assert float(line.split()[-1]) == pytest.approx(fcosis.complexity.gmac + count * stage.macs / 1e9, abs=0.05)
    assert any(line.strip().startswith("with 100 boxes") for line in lines)
    assert any("maskfcos_EffLite0.yaml: each box adds" in line for line in lines)


@pytest.mark.usefixtures("small_sizes")
def test_recipe_rows_two_stages_say_how_many_proposals_and_masks() -> None:
    (row,) = recipe_rows(["mask_rcnn_EffLite0.yaml"])
    assert "that is 300 proposals and 100 masks" in row.complexity.notes
    # The mask head, counted by hand for 100 boxes: four 3x3 convolutions at 14 px, one enlarging 2x2, one 1x1 at 28 px.
    masks = 100 * (14**2 * (4 * 128 * 128 * 9 + 128 * 128 * 4) + 28**2 * 128 * 80)
    boxes = 300 * (128 * 49 * 512 + 512 * 512 + 512 * (81 + 320))
    assert row.complexity.parts["roi_heads"].macs == pytest.approx(masks + boxes, rel=1e-6)


def test_fake_tensors_count_as_real_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # A deformable network, one with a stage for objects, one with a stage that looks at values.
    from segzoo.evaluation import complexity
    from tests.contract.toys import toy_config

    models = [complexity.build_for_counting(toy_config(name)) for name in ("FCOSIS", "MaskFCOS", "CenterMaskFCOS")]
    fake = [complexity.measure_complexity(model, (64, 64)) for model in models]

    monkeypatch.setattr(complexity, "FakeTensorMode", lambda **_: nullcontext())
    real = [complexity.measure_complexity(model, (64, 64)) for model in models]
    for with_fake, with_real in zip(fake, real, strict=True):
        assert with_fake.as_dict() == with_real.as_dict()
    assert real[1].object_cost is not None
    assert all(torch.isfinite(torch.tensor(cost.gmac)) and cost.gmac > 0 for cost in real)


def test_complexity_table_prints_text_markdown_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [pair for pair in study_rows() if pair[1].id in ("3-FCOS", "3-YOLACT")]
    monkeypatch.setattr(projects.costs, "study_rows", lambda: chosen)
    monkeypatch.setattr(command, "recipe_rows", lambda: recipe_rows(["orienmask_EffLite0.yaml"]))
    assert command.main(["--table", "--markdown", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| PolarMask 3-YOLACT | 800 x 1280 | GMAC | 196.8 | - | cited |") for line in lines)
    result = json.loads(lines[-1])
    assert [row["row"] for row in result["paper"]] == ["3-FCOS", "3-YOLACT"]
    assert result["paper"][1]["figures"]["GMAC"] == {"paper": 196.8, "ours": None}
    assert result["recipes"][0]["config_file"] == "orienmask_EffLite0.yaml"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--table", "--config-file", "configs/polarmask_R50.yaml"], "--table takes no"),
        (["--table", "--size", "8", "8"], "--table takes no"),
        ([], "neither --config-file nor --table"),
        (["--config-file", "configs/polarmask_R50.yaml", "--markdown"], "--markdown belongs to --table"),
    ],
)
def test_complexity_forms_that_do_not_fit_end_with_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_complexity_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--table", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours = {row["row"]: row["figures"] for row in result["paper"]}
    for row in ("3-FCOS", "3-without-box", "3-with-box"):
        assert ours[row]["GMAC"]["ours"] == pytest.approx(ours[row]["GMAC"]["paper"], rel=0.005)
        assert ours[row]["trainable M"]["ours"] == pytest.approx(ours[row]["trainable M"]["paper"], abs=0.006)
    fcosis = next(row for row in result["recipes"] if row["config_file"] == "fcosis_R50.yaml")
    # As FCOSIS's study has them.
    assert fcosis["objects"]["gmac_with"] == pytest.approx({"1": 291.4, "3": 390.5, "6": 539.2}, abs=0.05)
