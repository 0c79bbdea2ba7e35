"""The demo end to end: a stub model behind the real Predictor, images of every kind on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from pycocotools import mask as mask_api
from torch import nn

from demo import demo
from segzoo.data.augmentation import build_augmentations
from segzoo.data.image_io import read_image
from segzoo.errors import SegZooError
from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances
from tests.contract.toys import toy_config


class LeftHalfForDemo(nn.Module):
    """Finds two objects in any image: its left half (score 1.2, class 1) and its upper half (score 0.1, class 0)."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(cfg.MODEL.FCOS.NUM_CLASSES))

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        height, width = batched_inputs[0]["height"], batched_inputs[0]["width"]
        masks = np.zeros((2, height, width), dtype=bool)
        masks[0, :, : width // 2] = True
        masks[1, : height // 2] = True
        rles = RLEMasks(encode_masks(masks), (height, width))
        found = build_instances((height, width), rles.boxes(), torch.tensor([1.2, 0.1]), torch.tensor([1, 0]), rles)
        return [{"instances": found}]


if "LeftHalfForDemo" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(LeftHalfForDemo)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder: weights of a model of three classes and its config beside them."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": {"weight": torch.ones(3)}}, folder / "model.pth")
    (folder / "config.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: LeftHalfForDemo, DEVICE: cpu, FCOS: {NUM_CLASSES: 3}, NUM_CLASSES: 3}\n"
        "DATASETS: {TRAIN: [scenes-v1_train], TEST: [scenes-v1_val]}\n"
        "INPUT: {MIN_SIZE_TEST: 32}\n"
    )
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos of \u00e9t\u00e9"
    folder.mkdir()
    for number, (height, width) in enumerate(((40, 60), (50, 30))):
        image = np.full((height, width, 3), 100, dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (folder / "notes.txt").write_text("not an image, and not named as one")
    return folder


def _run(run_folder: Path, *arguments: str | Path, opts: tuple[str, ...] = ()) -> int:
    words = [str(argument) for argument in arguments]
    return demo.main([*words, "--opts", "MODEL.WEIGHTS", str(run_folder / "model.pth"), *opts])


def test_demo_folder_gives_pictures_results_and_a_summary(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, results_file = tmp_path / "new" / "pictures", tmp_path / "new" / "results.json"
    assert _run(run_folder, "--input", photos, "--output", output, "--results", results_file, "--json") == 0
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "1.png"]
    picture = read_image(str(output / "0.png"))
    assert picture.shape == (40, 60, 3)
    assert not np.array_equal(picture[30, 10], [100] * 3)  # in the mask of score 1.2
    assert np.array_equal(picture[10, 50], [100] * 3)  # in that of score 0.1 only
    results = json.loads(results_file.read_text())
    assert [(one["image_id"], one["category_id"], one["bbox"]) for one in results] == [
        (1, 2, [0.0, 0.0, 30.0, 40.0]),
        (2, 2, [0.0, 0.0, 15.0, 50.0]),
    ]
    assert results[0]["file_name"] == str(photos / "0.png")
    assert results[0]["score"] == pytest.approx(1.2)
    expected = np.zeros((40, 60), dtype=np.uint8)
    expected[:, :30] = 1
    assert np.array_equal(mask_api.decode(results[0]["segmentation"]), expected)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["images"], summary["instances"], summary["failed"]) == (2, 2, [])


def test_demo_rays_stand_beside_the_instances(
    run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_rays(self: nn.Module, batched_inputs: list[dict]) -> list[dict]:
        size = (batched_inputs[0]["height"], batched_inputs[0]["width"])
        ends = torch.tensor([[[20.0, 30.0], [30.0, 20.0], [20.0, 10.0], [10.0, 20.0]]] * 2)
        none = RLEMasks(encode_masks(np.zeros((2, *size), dtype=bool)), size)
        fields = {"pred_centers": torch.tensor([[20.5, 20.5]] * 2), "pred_contours": ends + 0.5}
        scores, boxes = torch.tensor([0.9, 0.1]), torch.tensor([[10.0, 10, 30, 30]] * 2)
        return [{"instances": build_instances(size, boxes, scores, torch.tensor([0, 0]), none, **fields)}]

    monkeypatch.setattr(LeftHalfForDemo, "forward", with_rays)
    output = tmp_path / "pictures"
    assert _run(run_folder, "--input", photos / "0.png", "--output", output, "--rays") == 0
    picture = read_image(str(output / "0.png"))
    assert picture.shape[1] > 2 * 60
    right = picture[-40:, -60:]
    assert not np.array_equal(right[20, 25], [100] * 3)  # on the ray to the right
    assert np.array_equal(right[35, 50], [100] * 3)


def test_demo_rays_of_a_method_without_rays_are_refused(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(run_folder, "--input", photos, "--output", tmp_path / "pictures", "--rays") == 2
    assert "predicts no rays" in capsys.readouterr().err


def test_demo_threshold_lets_the_low_scores_in(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    results_file = tmp_path / "results.json"
    assert _run(run_folder, "--input", photos / "0.png", "--results", results_file, "--threshold", "0.1") == 0
    assert [one["category_id"] for one in json.loads(results_file.read_text())] == [2, 1]
    assert _run(run_folder, "--input", photos / "0.png", "--results", results_file, "--threshold", "1.3") == 0
    assert json.loads(results_file.read_text()) == []


def test_demo_unreadable_files_are_listed_and_the_rest_goes_on(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "0.png").read_bytes()
    (photos / "a_truncated.png").write_bytes(whole[: len(whole) // 2])
    (photos / "b_empty.jpg").write_bytes(b"")
    (photos / "c_text.jpg").write_text("hello")
    (photos / "film.mp4").write_bytes(b"")
    inputs = [photos, photos / "film.mp4", tmp_path / "absent.png"]
    output = tmp_path / "pictures"
    assert _run(run_folder, "--input", *inputs, "--output", output, "--json") == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["images"] == 2
    reasons = {Path(entry["file"]).name: entry["reason"] for entry in summary["failed"]}
    assert set(reasons) == {"a_truncated.png", "b_empty.jpg", "c_text.jpg", "film.mp4", "absent.png"}
    assert "video" in reasons["film.mp4"]
    assert "no such file" in reasons["absent.png"]
    for name in reasons:
        assert name in captured.err
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "1.png"]


def test_demo_no_image_at_all_lists_why_and_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "holds no image" in capsys.readouterr().err


def test_demo_same_names_do_not_replace_one_another(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.PNG").write_bytes((photos / "1.png").read_bytes())
    output = tmp_path / "pictures"
    assert _run(run_folder, "--input", photos / "*.png", other, photos / "0.png", "--output", output) == 0
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "0_2.png", "1.png"]
    assert read_image(str(output / "0_2.png")).shape == (50, 30, 3)


def test_demo_pictures_never_replace_an_input(
    run_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (photos / "0.png").read_bytes()
    assert _run(run_folder, "--input", photos, "--output", photos) == 2
    assert "another folder" in capsys.readouterr().err
    assert (photos / "0.png").read_bytes() == before


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", ""], "not a trained model"),
        (["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"], "not a trained model"),
        (["MODEL.WEIGHTS", "nowhere/model.pth"], "no --config-file"),
        (["MODEL.WEIGHT", "x"], "MODEL.WEIGHTS"),
    ],
)
def test_demo_config_at_fault_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opts: list[str], message: str
) -> None:
    assert demo.main(["--input", str(photos), "--output", str(tmp_path / "out"), "--json", "--opts", *opts]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "error" in json.loads(captured.out.splitlines()[-1])


def test_demo_weights_of_another_class_count_are_refused(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--input", photos, "--output", tmp_path / "out")
    assert _run(run_folder, *arguments, opts=("MODEL.FCOS.NUM_CLASSES", "5")) == 2
    assert "(3,) -> (5,)" in capsys.readouterr().err


def test_demo_class_count_left_to_the_data_comes_from_its_names(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    opts = ("MODEL.FCOS.NUM_CLASSES", "80", "MODEL.NUM_CLASSES", "0")
    assert _run(run_folder, "--input", photos, "--output", tmp_path / "out", opts=opts) == 0


def test_demo_ctrl_c_keeps_what_was_finished(
    run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def stop_at_second(path: str) -> np.ndarray:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(demo, "read_image", stop_at_second)
    results_file = tmp_path / "results.json"
    assert _run(run_folder, "--input", photos, "--results", results_file) == 130
    assert [one["image_id"] for one in json.loads(results_file.read_text())] == [1]


def test_demo_without_anything_to_write_is_a_usage_error(photos: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--input", str(photos)])
    assert stopped.value.code == 2


def test_demo_unwritable_results_are_named(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(run_folder, "--input", photos, "--results", tmp_path) == 2
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(SegZooError, match="cannot write"):
        demo.write_results(str(tmp_path), [])


def test_find_classes_takes_names_and_category_ids_of_own_data(tmp_path: Path) -> None:
    json_file = tmp_path / "own.json"
    json_file.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.png", "height": 8, "width": 8}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 4],
                                 "segmentation": [[0, 0, 4, 0, 4, 4]]}],
                "categories": [{"id": 7, "name": "bolt"}, {"id": 90, "name": "nut"}],
            }
        )
    )  # fmt: skip
    cfg = demo.get_cfg()
    cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = str(json_file), str(tmp_path)
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = ("val_json",), ()
    classes = demo.find_classes(cfg, None)
    assert list(classes.names) == ["bolt", "nut"]
    assert [classes.category_id(index) for index in range(3)] == [7, 90, 3]
    json_file.unlink()
    cfg.DATASETS.TEST = ("train_json",)
    assert list(demo.find_classes(cfg, None).names) == []
    assert list(demo.find_classes(cfg, ["screw"]).names) == ["screw"]


def test_find_classes_of_coco_and_scenes_reads_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = demo.get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("coco_2017_val",)
    coco = demo.find_classes(cfg, None)
    assert (coco.names[79], coco.category_id(79)) == ("toothbrush", 90)
    cfg.DATASETS.TEST = ("scenes-v1_val",)
    assert list(demo.find_classes(cfg, None).names) == ["leaf", "star", "crescent"]
    assert list(tmp_path.iterdir()) == []


def test_demo_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    script = Path(demo.__file__).resolve()
    words = [sys.executable, str(script), "--input", "absent.png", "--results", "out.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "absent.png: no such file" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_demo_maps_of_orienmask_stand_beside_the_instances(photos: Path, tmp_path: Path) -> None:
    cfg = toy_config("OrienMask", "MODEL.ORIENMASK.SCORE_THRESH_TEST", 0.0)
    folder, output = tmp_path / "toy", tmp_path / "pictures"
    folder.mkdir()
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    assert _run(folder, "--input", photos / "0.png", "--output", output, "--maps", "--class-names", "a", "b", "c") == 0
    sheet = read_image(str(output / "0.png"))
    # The photo's own panel and five at the size of the network's input, three in a row.
    photo = read_image(str(photos / "0.png"))
    (resize,) = build_augmentations(cfg, is_train=False)
    height, width = resize.get_transform(photo, np.random.default_rng(0)).apply_image(photo).shape[:2]
    assert sheet.shape == (2 * (max(height, 40) + 18) + 4, 3 * max(width, 60) + 2 * 4, 3)
    assert _run(folder, "--input", photos / "0.png", "--output", output, "--class-names", "a", "b", "c") == 0
    assert read_image(str(output / "0.png")).shape == (40, 60, 3)


def test_demo_maps_of_a_method_without_them_are_refused(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(run_folder, "--input", photos, "--output", tmp_path / "pictures", "--maps") == 2
    assert "LeftHalfForDemo has no pictures of its maps" in capsys.readouterr().err
