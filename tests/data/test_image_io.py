"""Image files of every kind, and of no kind (acceptance cases 13, 14, 15, 18, 19)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from segzoo.data.image_io import image_size, read_image
from segzoo.errors import DatasetError


@pytest.fixture
def pixels() -> np.ndarray:
    """(6, 4, 3) uint8 RGB, no two pixels alike."""
    return np.random.default_rng(0).permutation(256)[: 6 * 4 * 3].reshape(6, 4, 3).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def test_read_image_rgb_and_bgr_are_reverses(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)
    np.testing.assert_array_equal(read_image(path), pixels[:, :, ::-1])
    assert read_image(path).flags.c_contiguous


# Where the pixel (row, column) of the upright image lies in the stored one, from the EXIF standard's table:
# the stored row 0 and column 0 are, in this order, the visual side named.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_15_read_image_exif_orientation_gives_the_upright_image(
    orientation: int, tmp_path: Path, pixels: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](pixels))
    path = save(tmp_path / "a.png", Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(Image.open(path))), pixels)
    header = image_size(path)
    assert (header.height, header.width, header.orientation) == (6, 4, orientation)
    assert header.stored_size == stored.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_case_15_read_image_impossible_orientation_is_ignored(
    orientation: int, tmp_path: Path, pixels: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_case_15_read_image_damaged_exif_is_read_as_stored(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(path).shape == (6, 4, 3)


def test_case_14_read_image_grey_repeats_the_value(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(pixels[:, :, 0]))
    np.testing.assert_array_equal(read_image(path), np.repeat(pixels[:, :, :1], 3, axis=2))


def test_case_14_read_image_one_bit_gives_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    path = save(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(read_image(path)[:, :, 1], np.array([[255, 0], [0, 255]], dtype=np.uint8))


def test_case_14_read_image_palette_gives_its_colours(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(pixels).quantize(256))
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


def test_case_14_read_image_palette_transparency_is_dropped(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(pixels).quantize(256), transparency=3)
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


def test_case_14_read_image_sixteen_bits_keep_the_high_byte(tmp_path: Path) -> None:
    grey = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(grey))
    np.testing.assert_array_equal(read_image(path)[:, :, 0], np.array([[0, 0, 1, 255]], dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_case_14_read_image_alpha_is_dropped_not_blended(mode: str, tmp_path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels if mode == "RGBA" else pixels[:, :, 0])
    image.putalpha(Image.fromarray(np.full((6, 4), 10, dtype=np.uint8)))
    assert image.mode == mode
    expected = pixels if mode == "RGBA" else np.repeat(pixels[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", image), "RGB"), expected)


def test_case_14_read_image_cmyk_is_converted(tmp_path: Path) -> None:
    white_and_cyan = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]]], dtype=np.uint8)
    path = save(tmp_path / "a.tif", Image.fromarray(white_and_cyan, mode="CMYK"))
    np.testing.assert_array_equal(read_image(path, "RGB")[0], [[255, 255, 255], [0, 255, 255]])


def test_case_14_read_image_floating_point_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(DatasetError, match=r"a\.tif has floating-point pixels"):
        read_image(path)


def test_case_16_read_image_one_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.array([[[1, 2, 3]]], dtype=np.uint8)))
    np.testing.assert_array_equal(read_image(path), [[[3, 2, 1]]])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_case_13_read_image_truncated_file_is_named(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = Path(save(tmp_path / f"cut.{suffix}", Image.fromarray(noise)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"cut\.{suffix} cannot be decoded"):
        read_image(str(path))


def test_case_13_read_image_corrupt_png_is_named(tmp_path: Path, pixels: np.ndarray) -> None:
    path = Path(save(tmp_path / "bad.png", Image.fromarray(pixels)))
    content = bytearray(path.read_bytes())
    # 8 bytes of signature, 25 of IHDR, 8 before the compressed data.
    content[41:51] = bytes(10)
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"bad\.png"):
        read_image(str(path))


def test_case_18_read_image_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(DatasetError, match=r"empty\.jpg is empty \(0 bytes\)"):
        read_image(str(path))


def test_case_18_read_image_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not a picture")
    for read in (read_image, image_size):
        with pytest.raises(DatasetError, match=r"text\.jpg is not an image"):
            read(str(path))


def test_case_18_read_image_folder_and_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be decoded"):
        read_image(str(tmp_path))
    with pytest.raises(DatasetError, match="does not exist"):
        read_image(str(tmp_path / "none.jpg"))


@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_case_18_read_image_several_frames_are_refused(suffix: str, tmp_path: Path, pixels: np.ndarray) -> None:
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    path = save(tmp_path / f"film.{suffix}", first, save_all=True, append_images=[second])
    with pytest.raises(DatasetError, match=rf"film\.{suffix} has 2 frames or pages"):
        read_image(path)


def test_case_18_read_image_gif_of_one_frame_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "still.gif", Image.fromarray(pixels).quantize(256))
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


def test_case_19_read_image_unusual_paths_and_symlinks_work(tmp_path: Path, pixels: np.ndarray) -> None:
    deep = tmp_path / ("long" * 40) / "mit Leerzeichen" / "ümläut 图像"
    deep.mkdir(parents=True)
    path = save(deep / "bild ö.png", Image.fromarray(pixels))
    link = tmp_path / "link.png"
    os.symlink(path, link)
    for name in (path, str(link)):
        np.testing.assert_array_equal(read_image(name, "RGB"), pixels)
