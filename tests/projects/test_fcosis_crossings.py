"""Scenes of leaves that cross and touch, and masks given the boxes: of tiny models with random weights."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from pycocotools import mask as mask_api

from fcosis.fcosis import FCOSIS
from projects import get_cfg
from projects.FCOSIS import given_boxes
from projects.FCOSIS.crossings import (
    CONTACT_PX,
    CROSSINGS,
    _crossing,
    _row,
    describe,
    largest_box_ious,
    lay_leaves,
    make_crossings,
)
from projects.FCOSIS.given_boxes import VARIANTS, compare, find_runs, load_model, main, read_configs
from projects.FCOSIS.segment_given import Measured, choose_sources, measure, segment_given
from segzoo.config import merge_config
from segzoo.data.scenes import generate_scenes
from segzoo.data.scenes.annotations import annotate
from segzoo.data.scenes.layout import MIN_VISIBLE_FRACTION, Layer
from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.setup import build_config, write_num_classes
from segzoo.errors import ConfigError
from segzoo.geometry.polygons import segmentation_to_rle

SIDE_PX = 256
NUM_LAID = 40
SEEDS = (1, 2)
SMALL = [
    *("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.FCOSIS.SEG_CHANNELS", "8"),
    *("MODEL.FCOS.NUM_CONVS", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(scope="module")
def laid() -> list[list[dict[str, Any]]]:
    """Annotations of scenes without their colours."""
    return [annotate(lay_leaves(np.random.default_rng([5, index]), SIDE_PX)) for index in range(NUM_LAID)]


def decode(annotation: dict[str, Any]) -> np.ndarray:
    return mask_api.decode(segmentation_to_rle(annotation["segmentation"], SIDE_PX, SIDE_PX)).astype(bool)


def iou_of_boxes(first: list[int], second: list[int]) -> float:
    """Of xywh boxes, one by one."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def slow_overlaps(annotations: list[dict[str, Any]]) -> list[float]:
    return [
        max((iou_of_boxes(one["bbox"], other["bbox"]) for other in annotations if other is not one), default=0.0)
        for one in annotations
    ]


def slow_touching(annotations: list[dict[str, Any]]) -> list[bool]:
    """Whether a pixel of another object is one of the nine around one's own."""
    masks = [decode(annotation) for annotation in annotations]
    touching = []
    for index, mask in enumerate(masks):
        near = np.zeros((SIDE_PX + 2, SIDE_PX + 2), dtype=bool)
        for down in range(3):
            for right in range(3):
                near[down : down + SIDE_PX, right : right + SIDE_PX] |= mask
        near = near[1:-1, 1:-1]
        touching.append(any((near & other).any() for number, other in enumerate(masks) if number != index))
    return touching


def shared_pixels(first: Layer, second: Layer) -> int:
    cells = [
        {(layer.top + row, layer.left + col) for row, col in np.argwhere(layer.mask).tolist()}
        for layer in (first, second)
    ]
    return len(cells[0] & cells[1])


def test_scenes_depend_on_seed_and_index_only() -> None:
    image, annotations = make_crossings(3, 4)
    again = make_crossings(3, 4)
    assert np.array_equal(image, again[0])
    assert annotations == again[1]
    assert image.shape == (SIDE_PX, SIDE_PX, 3)
    assert not np.array_equal(image, make_crossings(3, 5)[0])
    assert not np.array_equal(image, make_crossings(4, 4)[0])


def test_every_leaf_is_seen_and_of_the_one_class(laid: list[list[dict[str, Any]]]) -> None:
    for own in laid:
        assert 2 <= len(own) <= 11
        seen = np.zeros((SIDE_PX, SIDE_PX), dtype=int)
        for annotation in own:
            assert annotation["category_id"] == 1
            assert annotation["area"] >= MIN_VISIBLE_FRACTION * annotation["full_area"]
            mask = decode(annotation)
            assert mask.sum() == annotation["area"]
            seen += mask
        # No pixel is of two leaves.
        assert seen.max() == 1


def test_boxes_overlap_and_leaves_touch_as_promised(laid: list[list[dict[str, Any]]]) -> None:
    overlaps = np.array([value for annotations in laid for value in slow_overlaps(annotations)])
    assert np.mean(overlaps >= 0.3) >= 0.4
    assert np.mean(overlaps >= 0.5) >= 0.1
    touching = [slow_touching(annotations) for annotations in laid]
    assert all(any(own) for own in touching)
    assert np.mean([one for own in touching for one in own]) >= 0.8
    # A leaf across another parts it.
    assert np.mean([annotation["num_parts"] > 1 for annotations in laid for annotation in annotations]) >= 0.15


def test_leaves_of_a_row_touch_and_those_of_a_crossing_lie_across_each_other() -> None:
    for number in range(3):
        row = _row(np.random.default_rng(number), 40.0, 3)
        crossing = _crossing(np.random.default_rng(number), 40.0, 3)
        assert len(row) == len(crossing) == 3
        for first, second in itertools.pairwise(row):
            # One step of a pixel further they would share fewer than CONTACT_PX.
            assert CONTACT_PX <= shared_pixels(first, second) < 0.1 * first.mask.sum()
        for first, second in ((0, 1), (1, 2), (0, 2)):
            assert shared_pixels(crossing[first], crossing[second]) > 0.1 * crossing[first].mask.sum()


def test_later_leaves_lie_on_top() -> None:
    layout = lay_leaves(np.random.default_rng([5, 1]), SIDE_PX)
    expected = np.full((SIDE_PX, SIDE_PX), -1)
    for number, layer in enumerate(layout.layers):
        for row, col in np.argwhere(layer.mask):
            expected[layer.top + row, layer.left + col] = number
    assert np.array_equal(layout.owner, expected)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes as val.json."""
    folder = tmp_path_factory.mktemp("crossings")
    generate_scenes(str(folder), 3, seed=9, split="val", num_workers=0, drawing=CROSSINGS)
    return folder


def test_the_json_has_one_class_and_is_described_as_it_is(data: Path) -> None:
    content = json.loads((data / "val.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "leaf"}]
    assert content["info"]["description"] == CROSSINGS.description
    per_image = [[one for one in content["annotations"] if one["image_id"] == number] for number in (1, 2, 3)]
    overlaps = [value for own in per_image for value in slow_overlaps(own)]
    flat = content["annotations"]
    assert describe(str(data / "val.json")) == {
        "images": 3,
        "objects": len(flat),
        "touching": pytest.approx(np.mean([value for own in per_image for value in slow_touching(own)])),
        "hidden": pytest.approx(np.mean([one["area"] < 0.95 * one["full_area"] for one in flat])),
        "in parts": pytest.approx(np.mean([one["num_parts"] > 1 for one in flat])),
        "box IoU >= 0.3": pytest.approx(np.mean([value >= 0.3 for value in overlaps])),
        "box IoU >= 0.5": pytest.approx(np.mean([value >= 0.5 for value in overlaps])),
    }


def test_a_single_box_overlaps_nothing() -> None:
    assert largest_box_ious(torch.tensor([[0.0, 0.0, 4.0, 4.0]])).tolist() == [0.0]
    assert largest_box_ious(torch.zeros(0, 4)).tolist() == []


def test_the_source_has_the_largest_iou_and_of_equal_ones_the_largest_score() -> None:
    generator = torch.Generator().manual_seed(0)
    # Coarse values: many are equal.
    ious = (torch.rand(40, 60, generator=generator) * 5).floor() / 5
    ious[torch.rand(40, 60, generator=generator) < 0.3] = -1.0
    scores = torch.rand(40, 60, generator=generator)
    sources = choose_sources(ious, scores).tolist()
    for own_ious, own_scores, source in zip(ious.tolist(), scores.tolist(), sources):
        near = [place for place in range(60) if own_ious[place] >= 0.9 * max(own_ious)]
        assert source == max(near, key=lambda place: own_scores[place])
    # Scores of 0 are scores too; a little less of the box is no reason against a better score.
    assert choose_sources(torch.tensor([[0.1, 0.5, 0.2]]), torch.zeros(1, 3)).tolist() == [1]
    assert choose_sources(torch.tensor([[0.8, 0.5, 0.75]]), torch.tensor([[0.1, 0.9, 0.2]])).tolist() == [2]
    # Where no box overlaps, the best of those that may be taken.
    assert choose_sources(torch.tensor([[-1.0, 0.0, 0.0]]), torch.tensor([[0.9, 0.1, 0.2]])).tolist() == [2]


def run_config(repository: Path, data: Path, folder: Path, name: str, seed: int, *options: str) -> CfgNode:
    words = [word for key, value in VARIANTS[name].items() for word in (f"MODEL.FCOSIS.{key}", str(value))]
    own = ["SEED", str(seed), "OUTPUT_DIR", str(folder / f"{name}_{seed}"), "DATASETS.TEST", "('val_json',)"]
    files = ["DATASETS.VAL_JSON", str(data / "val.json"), "DATASETS.VAL_IMAGES", str(data / "val")]
    config_file = str(repository / "configs" / "quick" / "fcosis_crossings.yaml")
    cfg = merge_config(get_cfg(), config_file, [*SMALL, *words, *own, *files, *options])
    write_num_classes(cfg, 1)
    return cfg


def untrained(cfg: CfgNode, seed: int = 0) -> FCOSIS:
    """A model whose maps vary from place to place."""
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    assert isinstance(model, FCOSIS)
    for module in (model.head, model.segmentation):
        for key, parameter in module.named_parameters():
            if "logits" in key or "pred" in key or "offsets" in key or "centerness" in key:
                torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(model.head.box_pred.bias, 3.0)
    return model


def write_config(repository: Path, data: Path, folder: Path, name: str, seed: int, *options: str) -> CfgNode:
    """OUTPUT_DIR of a run that has only begun."""
    cfg = run_config(repository, data, folder, name, seed, *options)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    return cfg


@pytest.fixture(scope="module")
def runs(repository: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in VARIANTS:
        for seed in SEEDS:
            cfg = write_config(repository, data, folder, name, seed)
            torch.save({"model": untrained(cfg, seed).state_dict()}, Path(cfg.OUTPUT_DIR) / "model_final.pth")
    return folder


@pytest.mark.parametrize("name", list(VARIANTS))
def test_detections_given_as_boxes_have_the_masks_that_inference_gives_them(
    name: str, repository: Path, data: Path, tmp_path: Path
) -> None:
    cfg = run_config(repository, data, tmp_path, name, 1, "TEST.DETECTIONS_PER_IMAGE", "9")
    model = untrained(cfg)
    image = torch.from_numpy(make_crossings(9, 0)[0].transpose(2, 0, 1).copy())
    inputs = [{"image": image, "height": 200, "width": 300}, {"image": image.flip(2), "height": 256, "width": 256}]
    with torch.no_grad():
        found = [output["instances"] for output in model(inputs)]
    assert all(len(instances) == 9 for instances in found)
    # Given objects all compete, by their own centres: here the detections do so too.
    with torch.no_grad():
        maps, locations, sizes = model.look(inputs)
        objects = model.objects_of(model.detect(maps, locations, sizes), maps, locations)
    assert objects.num_rivals.tolist() == [9] * 18
    assert objects.stand_ins.tolist() == list(range(18))
    boxes, classes = [one.pred_boxes.tensor for one in found], [one.pred_classes for one in found]
    masks, source_ious = segment_given(model, inputs, boxes, classes)
    assert source_ious.min() > 0.999
    for own, instances in zip(masks, found, strict=True):
        assert own.image_size == instances.image_size
        # Boxes went to the image's pixels and back: a pixel in a thousand may be rounded.
        differing = own.to_tensor() ^ instances.pred_masks.to_tensor()
        assert (differing.sum(dim=(1, 2)) <= 2 + 0.001 * own.area()).all()
    assert max(int(own.area().max()) for own in masks) > 50


def test_boxes_without_objects_do_not_disturb_the_batch(repository: Path, data: Path, tmp_path: Path) -> None:
    model = untrained(run_config(repository, data, tmp_path, "grouping", 1))
    inputs = [{"image": torch.full((3, 256, 256), 90.0), "height": 256, "width": 256}] * 2
    box, kind = torch.tensor([[20.0, 30.0, 150.0, 120.0]]), torch.zeros(1, dtype=torch.int64)
    masks, source_ious = segment_given(model, inputs, [box[:0], box], [kind[:0], kind])
    assert [len(own) for own in masks] == [0, 1]
    assert len(source_ious) == 1


def test_the_command_compares_the_runs_object_by_object(
    runs: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every_one: list[Measured] = []

    def record(cfg: CfgNode, model: FCOSIS) -> Measured:
        every_one.append(measure(cfg, model))
        return every_one[-1]

    monkeypatch.setattr(given_boxes, "measure", record)
    assert main([str(runs), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    measured = {name: every_one[2 * number : 2 * number + 2] for number, name in enumerate(VARIANTS)}
    annotations = json.loads((data / "val.json").read_text())["annotations"]
    for own in measured.values():
        assert all(one.images.tolist() == [annotation["image_id"] for annotation in annotations] for one in own)
        assert all(((one.ious >= 0) & (one.ious < 1)).all() for one in own)
    assert report["conditions"]["seeds"] == list(SEEDS)
    result = report["results"]["all"]
    assert result["objects"] == len(annotations)
    for name, own in measured.items():
        assert result["mean"][name] == pytest.approx(np.mean([one.ious for one in own]))
    for name in ("zero_mu", "box"):
        difference = np.array([a.ious - b.ious for a, b in zip(measured["grouping"], measured[name], strict=True)])
        found = result["differences"][f"grouping - {name}"]
        assert found["mean"] == pytest.approx(difference.mean())
        assert found["per_seed"] == pytest.approx(difference.mean(axis=1).tolist())
        assert difference.std() > 0
    least = np.array([value >= 0.3 for value in measured["box"][0].overlaps])
    assert report["results"]["box IoU >= 0.3"]["objects"] == least.sum()
    table = capsys.readouterr().out
    assert f"| {100 * result['differences']['grouping - box']['mean']:+.2f} |" in table
    assert table.count("| grouping - ") == 2 * len(report["results"])


def test_with_one_seed_there_is_no_error_of_seeds() -> None:
    one = Measured(np.array([1, 1, 2]), np.array([0.5, 0.6, 0.7]), np.ones(3), np.array([0.2, 0.2, 0.0]))
    other = one._replace(ious=np.array([0.4, 0.6, 0.5]))
    results = compare({"grouping": [one], "zero_mu": [other], "box": [one]})
    assert [result["objects"] for result in results.values()] == [3, 2]
    difference = given_boxes.as_json(results)["all"]["differences"]["grouping - zero_mu"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["seed_error"] is None
    assert "| - |" in given_boxes.table_of(results)


def test_runs_of_another_budget_variant_or_seed_are_refused(
    repository: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == ConfigError.exit_code
    assert "grouping_<seed>" in capsys.readouterr().err
    for name in VARIANTS:
        write_config(repository, data, tmp_path, name, 1)
    read_configs(find_runs(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"box_1 has no model_final\.pth"):
        load_model(get_cfg(), str(tmp_path / "box_1"))
    write_config(repository, data, tmp_path, "box", 2)
    with pytest.raises(ConfigError, match="lacks the runs grouping_2, zero_mu_2"):
        find_runs(str(tmp_path))
    (tmp_path / "box_1").rename(tmp_path / "kept")
    (tmp_path / "box_2").rename(tmp_path / "box_1")
    with pytest.raises(ConfigError, match="and seed 2"):
        read_configs(find_runs(str(tmp_path)))
    (tmp_path / "box_1").rename(tmp_path / "other")
    write_config(repository, data, tmp_path, "box", 1, "MODEL.FCOSIS.ATTENTION", "grouping")
    with pytest.raises(ConfigError, match="'ATTENTION': 'grouping'"):
        read_configs(find_runs(str(tmp_path)))
    (tmp_path / "box_1").rename(tmp_path / "another")
    write_config(repository, data, tmp_path, "box", 1, "SOLVER.MAX_ITER", "700")
    with pytest.raises(ConfigError, match=r"'SOLVER\.MAX_ITER': 700"):
        read_configs(find_runs(str(tmp_path)))


def test_the_readme_s_commands_train_the_three_variants(repository: Path) -> None:
    readme = (repository / "projects" / "FCOSIS" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    data = re.search(r'^DATA="(.*)"$', readme, re.MULTILINE)
    assert data is not None
    lines = re.findall(r"^ *python train_net\.py .*OUTPUT_DIR output/crossings/runs/.*$", readme, re.MULTILINE)
    found: dict[str, CfgNode] = {}
    for line in lines:
        words = shlex.split(line.replace("$DATA", data[1]).replace("$seed", "3"))[2:]
        words[1] = str(repository / words[1])
        cfg = build_config(get_cfg(), build_argument_parser().parse_intermixed_args(words))
        assert cfg.DATASETS.TEST == ("val_json",)
        found[Path(cfg.OUTPUT_DIR).name] = cfg
    for name, variant in VARIANTS.items():
        cfg = found.pop(f"{name}_3")
        assert {key: cfg.MODEL.FCOSIS[key] for key in variant} == variant
        assert cfg.SEED == 3
    assert not found
