"""Files of a paper's rows: what they mean, and what is refused with the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.engine.ablations import Row, count_trainable, kind_of, read_ablations, row_config, select_rows
from segzoo.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = "MODEL:\n  META_ARCHITECTURE: FCOS\n  RESNETS: {DEPTH: 50}\n"
STUDY = """\
configs: configs
tables:
  "1a":
    title: depth
    columns: [segm/AP, FPS]
    dataset: coco_2017_val
    device: V100
    config: base.yaml
    options: {SOLVER.BASE_LR: 0.02}
    rows:
      "50": {paper: [30.0, 20]}
      "101": {options: {MODEL.RESNETS.DEPTH: 101}, device: A100, paper: [32.5, 12.5]}
  "2":
    title: small images
    columns: [GMAC]
    image_size: [400, 640]
    rows:
      small: {model_of: 1a-101, options: {INPUT.MIN_SIZE_TEST: 400}, note: tested only, paper: [77]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").write_text(CONFIG)
    return tmp_path


def read(folder: Path, old: str = "", new: str = "") -> list[Row]:
    """The rows of STUDY with one piece of its text replaced."""
    assert old in STUDY
    (folder / "study.yaml").write_text(STUDY.replace(old, new, 1) if old else STUDY)
    return read_ablations(str(folder / "study.yaml"))


def test_read_ablations_rows_have_what_the_table_and_the_other_row_give(folder: Path) -> None:
    first, second, small = read(folder)
    config = str(folder / "configs" / "base.yaml")
    assert (first.id, first.table, first.title, first.config_file) == ("1a-50", "1a", "depth", config)
    assert first.figures == {"segm/AP": 30.0, "FPS": 20}
    assert (first.kinds, first.dataset, first.device) == (("train", "speed"), "coco_2017_val", "V100")
    assert second.options == {"SOLVER.BASE_LR": 0.02, "MODEL.RESNETS.DEPTH": 101}
    assert second.device == "A100"
    assert (small.config_file, small.model_of, small.note) == (config, "1a-101", "tested only")
    assert small.options == {**second.options, "INPUT.MIN_SIZE_TEST": 400}
    assert (small.kinds, small.dataset, small.image_size) == (("complexity",), "", (400, 640))


def test_read_ablations_evaluation_keys_may_stand_beside_model_of(folder: Path) -> None:
    text = STUDY.replace("configs: configs", "configs: configs\nevaluation_keys: [MODEL.RETINANET.TOPK]")
    text = text.replace("INPUT.MIN_SIZE_TEST: 400", "MODEL.RETINANET.TOPK: 400")
    path = folder / "study.yaml"
    path.write_text(text)
    assert read_ablations(str(path))[2].options["MODEL.RETINANET.TOPK"] == 400
    # No other key, nor one that only begins with it.
    for other in ("SOLVER.MAX_ITER", "MODEL.RETINANET.TOPK_CANDIDATES"):
        path.write_text(text.replace("MODEL.RETINANET.TOPK: 400", f"{other}: 9"))
        with pytest.raises(ConfigError, match=f"row small: {other} beside model_of"):
            read_ablations(str(path))


def test_row_config_merges_the_options_over_the_file(folder: Path) -> None:
    small = read(folder)[2]
    assert small.words == ["SOLVER.BASE_LR", "0.02", "MODEL.RESNETS.DEPTH", "101", "INPUT.MIN_SIZE_TEST", "400"]
    cfg = row_config(small, get_segzoo_cfg())
    assert (cfg.SOLVER.BASE_LR, cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST) == (0.02, 101, 400)


REFUSED = {
    "key of the file": ("configs: configs", "configs: configs\nmethod: A", r"study\.yaml: unknown key 'method'"),
    "key of a table": ("title: depth", "title: depth\n    note: x", r"table 1a: unknown key 'note'"),
    "key of a row": ('"50": {paper', '"50": {papers', r"table 1a, row 50: unknown key 'papers'(.|\n)*'paper'"),
    "missing key": ("    columns: [GMAC]\n", "", r"table 2: columns is missing or empty"),
    "no column": ("columns: [GMAC]", "columns: []", r"table 2: columns is missing or empty"),
    "type": ("title: small images", "title: [small]", r"table 2: title is \['small'\](.|\n)*a text"),
    "row that is no mapping": ('"50": {paper: [30.0, 20]}', '"50": 30.0', r"row 50: is 30\.0"),
    "unquoted name": ('  "2":', "  2:", r'the name 2 is a int(.|\n)*in quotes: "2"'),
    "row given twice": ('"101": {', '"50": {', r"'50' stands twice"),
    "column": ("[GMAC]", "[GFLOPs]", r"table 2: unknown column 'GFLOPs'(.|\n)*GMAC"),
    "column twice": ("[segm/AP, FPS]", "[FPS, FPS]", r"name one twice"),
    "number of figures": ("[30.0, 20]", "[30.0]", r"row 50: 1 figures for the 2 columns segm/AP, FPS"),
    "figure": ("[30.0, 20]", "[30.0, fast]", r"row 50: 'fast' is no figure"),
    "truth value as figure": ("[30.0, 20]", "[30.0, True]", r"True is no figure"),
    "infinite figure": ("[30.0, 20]", "[.inf, 20]", r"inf is no figure"),
    "no data set": ("    dataset: coco_2017_val\n", "", r"row 50: has figures of kind 'train' but no dataset"),
    "no device": ("    device: V100\n", "", r"row 50: has figures of kind 'speed' but no device"),
    "no image size": ("    image_size: [400, 640]\n", "", r"row small: has figures of kind 'complexity'"),
    "image size": ("[400, 640]", "[400]", r"image_size is \[400\](.|\n)*\[800, 1280\]"),
    "no config": ("    config: base.yaml\n", "", r"row 50: neither config nor model_of"),
    "both": ("model_of: 1a-101", "model_of: 1a-101, config: base.yaml", r"both config and model_of"),
    "other training": ("INPUT.MIN_SIZE_TEST: 400", "SOLVER.MAX_ITER: 9", r"row small: SOLVER.MAX_ITER beside model_of"),
    "evaluation keys that are no list": (
        *("configs: configs", "configs: configs\nevaluation_keys: MODEL.MASK_ON"),
        r"evaluation_keys is 'MODEL\.MASK_ON'(.|\n)*a list",
    ),
    "evaluation key that is no text": (
        *("configs: configs", "configs: configs\nevaluation_keys: [MODEL.MASK_ON, 3]"),
        r"3 in evaluation_keys is no key",
    ),
    "unknown model": ("model_of: 1a-101", "model_of: 1a-102", r"model_of '1a-102' is no row(.|\n)*'1a-101'"),
    "model of itself": ("model_of: 1a-101", "model_of: 2-small", r"'2-small' has no model of its own"),
    "yaml": ("title: depth", "title: [depth", r"study\.yaml: not valid yaml"),
    "code": ("title: depth", "title: !!python/object/apply:os.getcwd []", r"study\.yaml: not valid yaml"),
}


@pytest.mark.parametrize(("old", "new", "message"), REFUSED.values(), ids=REFUSED)
def test_read_ablations_refuses(folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(folder, old, new)


def test_read_ablations_two_ways_to_one_id_are_refused(folder: Path) -> None:
    # Table "1a" with row "50-x", and table "1a-50" with row "x".
    text = STUDY.replace('"50": {', '"50-x": {').replace('  "2":', '  "1a-50":').replace("small: {", "x: {")
    (folder / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match="two rows are called '1a-50-x'"):
        read_ablations(str(folder / "study.yaml"))


def test_read_ablations_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        read_ablations(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("content", ["", "- a list", "configs: configs"])
def test_read_ablations_file_without_tables_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"study\.yaml: (is|tables is missing)"):
        read_ablations(str(tmp_path / "study.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SOLVER.BASE_LR", "SOLVER.BASE_LRR", r".*'SOLVER\.BASE_LRR'(.|\n)*SOLVER\.BASE_LR'"),
        ("SOLVER.BASE_LR: 0.02", "SOLVER.BASE_LR: -1.0", r"SOLVER\.BASE_LR is -1\.0"),
        ("SOLVER.BASE_LR: 0.02", "SOLVER.BASE_LR: fast", r".*SOLVER\.BASE_LR fast"),
        ("config: base.yaml", "config: basis.yaml", r"config file '.*basis\.yaml' does not exist"),
    ],
    ids=["unknown key", "impossible value", "wrong type", "missing file"],
)
def test_row_config_names_what_cannot_be_merged(folder: Path, old: str, new: str, message: str) -> None:
    row = read(folder, old, new)[0]
    with pytest.raises(ConfigError, match=message):
        row_config(row, get_segzoo_cfg())


def test_select_rows_keeps_the_order_and_refuses_unknown_ids(folder: Path) -> None:
    rows = read(folder)
    assert select_rows(rows, []) == rows
    assert select_rows(rows, ["2-small", "1a-50"]) == [rows[0], rows[2]]
    with pytest.raises(ConfigError, match=r"no row '1a-51'(.|\n)*'1a-50'"):
        select_rows(rows, ["1a-51"])


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("segm/AP", "train"),
        ("bbox/AP75", "train"),
        ("GMAC", "complexity"),
        ("maps MiB", "complexity"),
        ("ms", "speed"),
        ("AP", ""),
        ("segm/AP60", ""),
    ],
)
def test_kind_of_knows_metrics_and_costs(column: str, kind: str) -> None:
    assert kind_of(column) == kind


def test_count_trainable_builds_the_model_without_weights_and_leaves_the_config() -> None:
    cfg = merge_config(get_segzoo_cfg(), str(CONFIGS / "fcos_R50.yaml"), ["MODEL.WEIGHTS", "absent.pth"])
    cfg.freeze()
    before = cfg.dump()
    # The paper's table 3 prints 32.02 M.
    assert count_trainable(cfg) == 32_019_802
    assert cfg.dump() == before
