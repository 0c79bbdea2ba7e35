"""Pictures of what FCOSIS makes masks of: which detections they show, and that they show what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from fcosis.fcosis import FCOSIS
from fcosis.pictures import FIGURE_6, MAX_GROUPS, MAX_SHOWN, regularization_pictures
from fcosis.regularization import location_shares
from fcosis.targets import regularized_targets
from projects.FCOSIS.draw_maps import SIZES_OF_INTEREST, STRIDES, draw_regularization, main
from segzoo.data.image_io import read_image
from segzoo.data.scenes.samples import scene_sample
from segzoo.errors import ConfigError
from tests.contract.toys import make_input, toy_config
from tests.fcosis.pyramids import pyramid

SIZE = (96, 128)
TITLES = ["coarse segmentation", "ways to the centres of mass"]


def build_toy(*options: object) -> FCOSIS:
    """A model that finds something everywhere, of any size, with maps that vary."""
    torch.manual_seed(1)
    model = build_model(toy_config("FCOSIS", *options)).eval()
    assert isinstance(model, FCOSIS)
    for parameter in (model.head.cls_logits.weight, model.head.box_pred.weight, model.segmentation.pred.weight):
        nn.init.normal_(parameter, std=1.0)
    nn.init.constant_(model.head.cls_logits.bias, 2.0)
    return model


@pytest.mark.parametrize(("attention", "titles"), [("grouping", TITLES), ("box", TITLES), ("none", [])])
def test_map_pictures_show_the_parts_that_the_model_has(attention: str, titles: list[str]) -> None:
    model = build_toy("MODEL.FCOSIS.ATTENTION", attention)
    sample = make_input(SIZE, [])
    pictures = model.map_pictures(sample)
    attentions = [title for title in pictures if title.startswith("attention, colour ")]
    assert list(pictures) == [*titles, *attentions, "masks"]
    assert (0 < len(attentions) <= MAX_GROUPS) == (attention != "none")
    assert all(picture.shape == (*SIZE, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    for picture in pictures.values():
        assert not np.array_equal(picture, model.preprocessor.to_bgr(sample["image"]))


def test_shown_masks_are_those_of_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """All detections compete and are coloured, also those that are not shown."""
    model = build_toy()
    sample = make_input(SIZE, [])
    drawn: list[np.ndarray] = []

    def keep_mask(image: np.ndarray, mask: np.ndarray, color: Any) -> np.ndarray:
        drawn.append(mask)
        return image

    monkeypatch.setattr("fcosis.pictures.draw_mask", keep_mask)
    model.map_pictures(sample)
    with torch.no_grad():
        found = model([sample])[0]["instances"]
    assert len(found) > MAX_SHOWN == len(drawn)
    masks = np.asarray(found.pred_masks)[:MAX_SHOWN]
    assert masks.any()
    # Worst first.
    assert np.array_equal(np.stack(drawn[::-1]), masks)


def test_there_are_no_map_pictures_of_nothing() -> None:
    model = build_toy("MODEL.FCOS.SCORE_THRESH_TEST", 1.0)
    assert model.map_pictures(make_input(SIZE, [])) == {}


def test_regularization_pictures_paint_the_weights_of_figure_6(monkeypatch: pytest.MonkeyPatch) -> None:
    image, instances = scene_sample(7, 446)
    heats: list[np.ndarray] = []

    def keep_heat(image: np.ndarray, heat: np.ndarray, **_: Any) -> np.ndarray:
        heats.append(heat)
        return image

    monkeypatch.setattr("fcosis.pictures.draw_heat", keep_heat)
    assert list(regularization_pictures(image, instances, STRIDES, SIZES_OF_INTEREST)) == list(FIGURE_6)
    locations = pyramid((256, 256))
    shares = location_shares([instances.gt_masks.tensor], locations)
    targets = regularized_targets(locations, [instances], shares, 3, SIZES_OF_INTEREST)
    fine = [(row, place) for row, place in enumerate(targets.positives.tolist()) if place < 32 * 32]
    assert len(fine) > 50
    centerness, share, third = heats
    for row, place in fine:
        y, x = place // 32 * 8, place % 32 * 8
        cell = np.s_[y : y + 8, x : x + 8]
        mask = instances.gt_masks.tensor[targets.owners[row]].numpy()
        left, top, right, bottom = targets.box_distances_px[row].tolist()
        ctr = (min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)) ** 0.5
        own = mask[cell].mean()
        assert np.allclose(centerness[cell], ctr, atol=1e-5)
        assert np.allclose(share[cell], own, atol=1e-5)
        assert np.allclose(third[cell], (ctr + own + (ctr * own) ** 0.5) / 3, atol=1e-5)
    in_box = np.zeros((256, 256), bool)
    for x0, y0, x1, y1 in instances.gt_boxes.tensor.tolist():
        # Cells of 64 px reach half a cell beyond a box.
        in_box[max(int(y0) - 32, 0) : int(y1) + 32, max(int(x0) - 32, 0) : int(x1) + 32] = True
    assert not in_box.all()
    assert not any(heat[~in_box].any() for heat in heats)


def test_regularization_pictures_of_no_object_show_the_image_alone() -> None:
    image, instances = scene_sample(7, 446)
    empty = instances[[]]
    drawn = [
        picture.tobytes() for picture in regularization_pictures(image, empty, STRIDES, SIZES_OF_INTEREST).values()
    ]
    assert len(set(drawn)) == 1


def test_the_regularization_of_the_docs_is_that_of_the_command(tmp_path: Path, repository: Path) -> None:
    assert main([str(tmp_path)]) == 0
    in_docs = repository / "docs" / "pictures" / "regularization.png"
    drawn, kept = (read_image(str(path)).astype(int) for path in (tmp_path / "regularization.png", in_docs))
    assert drawn.shape == kept.shape == draw_regularization().shape
    assert np.abs(drawn - kept).mean() < 1
    assert in_docs.stat().st_size < 500_000


def test_attention_is_drawn_of_a_run_of_fcosis_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = toy_config("FCOSIS", "MODEL.DEVICE", "cpu")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_toy().state_dict()}, tmp_path / "model_final.pth")
    assert main([str(tmp_path / "pictures"), "--run", str(tmp_path)]) == 0
    assert read_image(str(tmp_path / "pictures" / "attention.png")).any()
    (tmp_path / "config.yaml").write_text(toy_config("FCOSReg").dump())
    assert main([str(tmp_path / "pictures"), "--run", str(tmp_path)]) == ConfigError.exit_code
    assert "is a run of FCOSReg" in capsys.readouterr().err
