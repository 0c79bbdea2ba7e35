"""Panels, text and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segzoo.data.image_io import read_image
from segzoo.errors import SegZooError
from segzoo.visualization import draw_text, save_image, side_by_side


def _panel(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_side_by_side_places_panels_of_different_sizes() -> None:
    sheet = side_by_side([_panel(10), _panel(20, 25, 40), _panel(30)], columns=2, gap_px=4)
    assert sheet.shape == (2 * 25 + 4, 2 * 40 + 4, 3)
    assert sheet[0, 0, 0] == 10
    assert sheet[24, 44, 0] == 20
    assert sheet[29, 0, 0] == 30
    assert sheet[22, 10, 0] == 255  # below the smaller panel
    assert sheet[10, 42, 0] == 255  # the gap
    assert sheet[40, 60, 0] == 255  # the cell that is left


def test_side_by_side_titles_stand_above() -> None:
    sheet = side_by_side([_panel(10, 20, 80), _panel(20, 20, 80)], ["one", "two"])
    assert sheet.shape == (38, 164, 3)
    assert sheet[:18, :80].min() < 100
    assert sheet[18, 0, 0] == 10


@pytest.mark.parametrize(("num_panels", "titles"), [(0, []), (2, ["one"])])
def test_side_by_side_wrong_numbers_are_refused(num_panels: int, titles: list[str]) -> None:
    with pytest.raises(ValueError, match="panels"):
        side_by_side([_panel(0)] * num_panels, titles)


@pytest.mark.parametrize(("left", "bottom"), [(-50, -50), (500, 500), (10, 30)])
def test_draw_text_stays_in_the_image(left: float, bottom: float) -> None:
    drawn = draw_text(_panel(128, 60, 120), "star 1.23", left, bottom, (0, 0, 250))
    rows, cols = np.nonzero(np.all(drawn == (0, 0, 250), axis=2))
    assert len(rows) > 100
    assert np.ptp(rows) < 20
    assert np.ptp(cols) > 25


def test_save_image_writes_below_new_folders_with_any_name(tmp_path: Path) -> None:
    path = str(tmp_path / "new folder" / "\u00e9\u6811 1.png")
    save_image(path, _panel(77))
    assert np.array_equal(read_image(path), _panel(77))


def test_save_image_png_level_changes_the_size_only(tmp_path: Path) -> None:
    image = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8)
    quick, small = tmp_path / "quick.png", tmp_path / "small.png"
    save_image(str(quick), image, png_level=0)
    save_image(str(small), image, png_level=9)
    assert small.stat().st_size < quick.stat().st_size / 2
    assert np.array_equal(read_image(str(quick)), read_image(str(small)))


@pytest.mark.parametrize("name", ["picture.txt", "picture"])
def test_save_image_unknown_ending_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SegZooError, match="ending"):
        save_image(str(tmp_path / name), _panel(0))


def test_save_image_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SegZooError, match="cannot write"):
        save_image(str(tmp_path / "file" / "a.png"), _panel(0))
