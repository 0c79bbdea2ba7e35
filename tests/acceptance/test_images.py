"""Cases 13 to 19: image files of every kind and of no kind, through each method's training and prediction."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo import demo
from segzoo.data.image_io import EXIF_ORIENTATION
from segzoo.engine.predictor import Predictor
from segzoo.evaluation.timing import peak_memory_mb
from tests.acceptance.runs import SMALL_BACKBONE, flags_of, plain_config, run_method, sample_of
from tests.contract.toys import FIND_ALL, build_toy, toy_config
from tests.data.conftest import CocoFolder

Runs = Callable[..., str]
# What turns an upright image into the one that is stored with each EXIF orientation.
UNDO = dict(
    zip(
        range(2, 9),
        ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"),
    )
)


def cut_in_half(path: Path) -> None:
    """What an interrupted copy leaves: a sound header, half of the pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_case_13_a_truncated_image_is_named(
    method: str, filled: CocoFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_in_half(filled.root / "3.png")
    assert run_method(method, flags_of(filled), tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "3.png cannot be decoded" in printed
    assert "INPUT.ON_BAD_IMAGE skip" in printed
    assert "Traceback" not in printed


def test_case_13_a_truncated_image_is_replaced_and_counted_on_request(filled: CocoFolder, trains: Runs) -> None:
    cut_in_half(filled.root / "3.png")
    log = trains(flags_of(filled), INPUT__ON_BAD_IMAGE="skip", SOLVER__MAX_ITER=4)
    assert log.count("bad image, another one takes its place") == 1
    assert "2 x bad images replaced by another (INPUT.ON_BAD_IMAGE skip): image " in log


def images_of_every_kind() -> dict[str, Image.Image]:
    """By the mode they are stored in."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    grey = pixels[:, :, 0]
    return {
        "L": Image.fromarray(grey),
        "P": Image.fromarray(pixels[:, :, :3]).quantize(64),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "RGBA": Image.fromarray(pixels),
        "CMYK": Image.fromarray(pixels, mode="CMYK"),
    }


@pytest.mark.parametrize("mode", images_of_every_kind())
def test_case_14_every_kind_of_pixels_is_the_same_in_training_and_prediction(
    method: str, folder: CocoFolder, mode: str
) -> None:
    entry = folder.add_image(file_name="image.tif" if mode == "CMYK" else "image.png")
    path = folder.root / entry["file_name"]
    images_of_every_kind()[mode].save(path)
    assert Image.open(path).mode == mode
    folder.add_annotation()
    image = sample_of(method, folder)["image"]
    assert (image.shape, image.dtype) == ((3, 30, 40), torch.uint8)
    predictor = Predictor(plain_config(method, "INPUT.MIN_SIZE_TEST", 0))
    assert torch.equal(predictor.prepare(str(path))["image"], image)
    if mode in ("L", "I;16"):
        assert torch.equal(image[0], torch.from_numpy(np.array(images_of_every_kind()["L"])))
        assert torch.equal(image[0], image[2])
    if mode == "RGBA":
        order = slice(None) if predictor.cfg.INPUT.FORMAT == "RGB" else slice(None, None, -1)
        rgb = np.array(images_of_every_kind()["RGBA"])[:, :, :3][:, :, order]
        assert torch.equal(image, torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_15_masks_lie_on_the_image_as_shown(method: str, folder: CocoFolder, orientation: int) -> None:
    upright = np.zeros((30, 40, 3), dtype=np.uint8)
    upright[5:12, 20:38] = 255
    stored = Image.fromarray(upright)
    if orientation in UNDO:
        stored = stored.transpose(Image.Transpose[UNDO[orientation]])
    folder.add_image(40, 30)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(folder.root / "1.png", exif=exif)
    folder.add_annotation(segmentation=[[20.0, 5.0, 38.0, 5.0, 38.0, 12.0, 20.0, 12.0]])
    sample = sample_of(method, folder)
    assert torch.equal(sample["instances"].gt_masks.tensor[0], sample["image"][0] == 255)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (40, 1), (5, 7)])
def test_case_16_tiny_images_train_and_are_evaluated(folder: CocoFolder, trains: Runs, width: int, height: int) -> None:
    for number in (1, 2):
        folder.add_image(width, height)
        corners = [[0.0, 0.0, float(width), 0.0, float(width), float(height), 0.0, float(height)]]
        folder.add_annotation(image_id=number, segmentation=corners, bbox=[0, 0, width, height])
    trains([*flags_of(folder), *flags_of(folder, "val")], INPUT__MIN_SIZE_TRAIN="(0,)", INPUT__MIN_SIZE_TEST=0)


# MiB beside the network: three copies of a 12-megapixel image with three channels (decoded, in the channels' order, and
# one on the way between), and as much again for masks and maps.
LARGE_IMAGE_MB = 160


@pytest.mark.parametrize(("width", "height"), [(4000, 3000), (10_000, 20), (20, 10_000)])
def test_case_17_large_and_long_images_stay_within_the_budget(
    method: str, tmp_path: Path, width: int, height: int
) -> None:
    Image.new("RGB", (width, height), (90, 120, 30)).save(tmp_path / "large.png", compress_level=1)
    predictor = Predictor(toy_config(method, *SMALL_BACKBONE, *FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 5))
    found = []
    peak = peak_memory_mb(lambda: found.append(predictor(str(tmp_path / "large.png"))))
    assert found[0].image_size == (height, width)
    assert found[0].pred_masks.image_size == (height, width)
    limit = max(predictor.cfg.INPUT.MAX_SIZE_TEST, *predictor.cfg.INPUT.FIXED_SIZE)
    assert max(predictor.prepare(str(tmp_path / "large.png"))["image"].shape) <= limit
    assert peak < LARGE_IMAGE_MB


def test_case_18_files_that_are_no_single_image_are_listed_and_the_rest_goes_on(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    good, other = Image.new("RGB", (40, 30), (9, 9, 9)), Image.new("RGB", (40, 30), (200, 9, 9))
    good.save(photos / "good.png")
    for name in ("film.gif", "pages.tif"):
        good.save(photos / name, save_all=True, append_images=[other])
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not a picture")
    torch.save({"model": build_toy(method, *SMALL_BACKBONE).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(toy_config(method, *SMALL_BACKBONE).dump())
    words = [
        "--input",
        str(photos),
        "--output",
        str(tmp_path / "drawn"),
        "--config-file",
        str(tmp_path / "config.yaml"),
    ]
    assert (
        demo.main([*words, "--class-names", "a", "b", "c", "--opts", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 1
    )
    printed = capsys.readouterr().err
    assert "4 could not be used" in printed
    for reason in (
        "film.gif has 2 frames",
        "pages.tif has 2 frames",
        "empty.jpg is empty (0 bytes)",
        "text.jpg is not an image",
    ):
        assert reason in printed
    assert "Traceback" not in printed
    assert os.listdir(tmp_path / "drawn") == ["good.png"]


def test_case_19_unusual_names_and_symlinks_work(folder: CocoFolder, trains: Runs) -> None:
    names = ["bild \u00f6 \u56fe\u50cf.png", "a b/c d.png", f"{'long' * 40}/{'deep' * 40}/1.png", "link.png"]
    for number, name in enumerate(names, start=1):
        folder.add_image(file_name=name)
        folder.add_annotation(image_id=number)
    (folder.root / "link.png").rename(folder.root / "target.png")
    os.symlink(folder.root / "target.png", folder.root / "link.png")
    assert "images     4, of which 4 are used" in trains(flags_of(folder), SOLVER__MAX_ITER=2)
