"""What every converter of weights shares, with formats made up for the test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segzoo.config import get_segzoo_cfg
from segzoo.engine.convert import (
    Converter,
    Fit,
    Report,
    Source,
    compare,
    convert,
    needed_options,
    open_source,
    plain_values,
    provenance,
    read_pth,
    write_converted,
)
from segzoo.engine.renaming import Renamed, Rule
from segzoo.errors import CheckpointError

FIT = Fit("configs/some.yaml", {}, {"backbone": "small"})
MODEL = {"conv.weight": (2, 3), "conv.bias": (2,), "norm.num_batches_tracked": ()}


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, ("true",)


def read_numbers(path: str) -> Source:
    """A format that is no pickle: text of one number a line."""
    try:
        values = [float(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise CheckpointError(f"{path}: not numbers") from error
    return Source({f"value{index}": torch.tensor(value) for index, value in enumerate(values)}, {"lines": len(values)})


PLAIN = Converter("plain", "a toy", r"layer\..+", (Rule(r"layer\.(?P<leaf>\w+)", "conv.{leaf}"),), lambda _: FIT)
OTHER = Converter("other", "another toy", r"other\..+", (), lambda _: FIT)
NUMBERS = Converter("numbers", "text", r"value\d+", (Rule(r"value(?P<i>\d+)", "v{i}"),), lambda _: FIT, read_numbers)
ALL = (OTHER, PLAIN, NUMBERS)
WEIGHTS = {"layer.weight": torch.rand(2, 3), "layer.bias": torch.rand(2)}


def save(path: Path, content: Any, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


@pytest.mark.parametrize("name", ["auto", "plain"])
def test_open_source_finds_the_format_by_its_mark(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in WEIGHTS.items()}})
    converter, source = open_source(path, ALL, name)
    assert converter is PLAIN
    assert source.notes == {"epoch": 3}
    assert list(source.weights) == ["module.layer.weight", "module.layer.bias"]


def test_open_source_tries_readers_of_other_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1.5\n2\n", encoding="utf-8")
    converter, source = open_source(str(tmp_path / "a.txt"), ALL)
    assert converter is NUMBERS
    assert convert(source, converter, "a.txt").weights["v1"] == 2.0


def test_open_source_of_an_unknown_or_another_format_lists_the_known_ones(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"state_dict": {"alien.weight": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"alien\.weight") as caught:
        open_source(path, ALL)
    assert "plain is a toy; numbers is text" in caught.value.remedy
    path = save(tmp_path / "b.pth", WEIGHTS)
    with pytest.raises(CheckpointError, match="not a file of format 'other'"):
        open_source(path, ALL, "other")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_read_pth_reads_old_and_new_files_and_keeps_plain_notes(options: dict[str, Any], tmp_path: Path) -> None:
    content = {
        "meta": {"mmdet_version": "1.0rc0", "CLASSES": ("a", "b"), "time": 1.5, "tensor": torch.zeros(3)},
        "optimizer": {"param_groups": [{"lr": 0.1}]},
        "state_dict": WEIGHTS,
    }
    source = read_pth(save(tmp_path / "a.pth", content, **options))
    assert source.notes == {"meta": {"mmdet_version": "1.0rc0", "CLASSES": ["a", "b"], "time": 1.5}}
    assert torch.equal(source.weights["layer.weight"], WEIGHTS["layer.weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"meta": {}, "state_dict": {"a": Evil()}}, "refused, it holds more than tensors"),
        ({"epoch": 3, "notes": "x"}, "entry 'epoch' is no tensor"),
        ({"state_dict": {}}, "no tensors"),
        ({"state_dict": [torch.zeros(1)]}, "no tensors"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
def test_read_pth_refuses_what_is_no_file_of_weights(content: Any, reason: str, tmp_path: Path) -> None:
    path = save(tmp_path / "odd.pth", content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_source(path, (PLAIN, OTHER))
    assert "odd.pth" in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_convert_refuses_values_that_are_not_finite(value: float) -> None:
    weights = {**WEIGHTS, "layer.bias": torch.tensor([0.0, value])}
    with pytest.raises(CheckpointError, match=r"a\.pth: NaN or infinite values in 1 entries: layer\.bias"):
        convert(Source(weights), PLAIN, "a.pth")


def test_convert_does_not_keep_views_of_larger_tensors() -> None:
    large = torch.rand(1000, 3)
    renamed = convert(Source({"layer.weight": large[:2]}), PLAIN, "a.pth")
    assert renamed.weights["conv.weight"].untyped_storage().nbytes() == 2 * 3 * 4


def test_compare_counts_missing_shapes_and_entries_that_the_model_lacks() -> None:
    weights = {"layer.weight": torch.zeros(3, 2), "layer.extra": torch.zeros(1), "what": torch.zeros(1)}
    report = compare(convert(Source(weights), PLAIN, ""), MODEL, {})
    assert report.missing == ["conv.bias"]
    assert report.renamed.unexpected == ["what", "layer.extra"]
    assert report.wrong_shape == ["conv.weight (3, 2) -> (2, 3)"]
    assert list(report.renamed.weights) == ["conv.weight"]
    assert compare(convert(Source(WEIGHTS), PLAIN, ""), MODEL, {}).problem == ""


def test_needed_options_are_those_that_differ() -> None:
    options = {"MODEL.RESNETS.DEPTH": 50, "INPUT.FORMAT": "RGB", "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [True] * 4}
    words = needed_options(get_segzoo_cfg(), options)
    assert words == ["INPUT.FORMAT", "RGB", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[True, True, True, True]"]


def test_plain_values_leaves_out_what_is_not_plain() -> None:
    value = {"a": (1, torch.zeros(1), "x"), 2: {"b": None, "c": {1, 2}}, "array": np.zeros(2), "flag": True}
    assert plain_values(value) == {"a": [1, "x"], "2": {"b": None}, "flag": True}


def test_write_converted_keeps_provenance_and_refuses_a_missing_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"meta": {"epoch": 12}, "state_dict": {**WEIGHTS, "layer.x": torch.zeros(1)}})
    converter, source = open_source(path, ALL)
    record = provenance(path, converter, source, FIT, ["SEED", "1"])
    dropped = {"of no use": ["layer.x"]}
    report = Report(record, Renamed({"conv.bias": torch.ones(2)}, {"layer.bias": "conv.bias"}, dropped), [], [])
    write_converted(str(tmp_path / "b.pth"), report)
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    assert written["model"]["conv.bias"].tolist() == [1.0, 1.0]
    assert written["source"] == {**record, "dropped": dropped}
    assert written["source"]["notes"] == {"meta": {"epoch": 12}}
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        write_converted(str(tmp_path / "none" / "b.pth"), report)
    assert "--output" in caught.value.remedy


def test_report_text_shows_every_name_and_shortens_long_notes() -> None:
    record: dict[str, Any] = dict.fromkeys(("file", "sha256", "format", "date", "segzoo"), "text")
    record |= {"config_file": "c.yaml", "options": ["K", "[1, 2]"], "found": {"backbone": "small"}}
    record |= {"notes": {"meta": {"config": "line\n" * 100}}}
    renamed = Renamed({"norm.running_var": torch.ones(7), "b": torch.ones(5)}, {"a": "b"}, {"why": ["c"]}, ["d"])
    text = Report(record, renamed, ["e"], ["f"]).text()
    for line in ("used: 1\n    a -> b", "dropped (why): 1\n    c", "missing: 1\n    e", "unexpected: 1\n    d"):
        assert line in text
    assert "parameters: 5\n" in text
    assert "meta.config: line line" in text
    assert "(499 characters)" in text
    assert "belongs to: --config-file c.yaml K '[1, 2]'" in text
