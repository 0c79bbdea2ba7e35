"""Which dicts are used with INPUT.STRICT False, and that their files are looked at once only."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode

from segzoo.data import files
from segzoo.errors import DatasetError


def test_usable_dicts_reads_each_header_once_until_the_json_changes(
    folder: Any, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = files.image_size
    monkeypatch.setattr(files, "image_size", lambda path: read.append(path) or original(path))
    for _ in range(2):
        folder.add_image()
    (folder.root / "2.png").write_text("text")
    name = folder.register()
    cfg.INPUT.STRICT = False
    for _ in range(3):
        assert [record["image_id"] for record in files.usable_dicts(name, cfg)] == [1]
    assert len(read) == 2
    folder.add_image()
    folder.register()
    assert [record["image_id"] for record in files.usable_dicts(name, cfg)] == [1, 3]
    assert len(read) == 5


def test_usable_dicts_with_strict_reads_no_header(folder: Any, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise DatasetError(path)

    monkeypatch.setattr(files, "image_size", refuse)
    folder.add_image()
    assert len(files.usable_dicts(folder.register(), cfg)) == 1
