"""tools/convert_weights.py from the authors' file to a model, and each way in which it refuses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import segzoo
from projects import CONVERTERS, get_cfg
from segzoo.config import merge_config
from segzoo.engine.weights import load_weights
from tests.polarmask.authors_network import AuthorsPolarMask
from tools.convert_weights import REPOSITORY, main

META = {"mmdet_version": "1.0rc0", "CLASSES": ("person", "bicycle"), "config": "model = dict(type='PolarMask')\n"}


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, ("true",)


def write(path: Path, change: dict[str, Any] | None = None, **arguments: Any) -> str:
    weights = {**AuthorsPolarMask(**arguments).state_dict(), **(change or {})}
    torch.save({"meta": META, "state_dict": {k: v for k, v in weights.items() if v is not None}}, path)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], source: str, output: Path, *words: str) -> tuple[int, dict, str]:
    """The exit code, the JSON of the last line, and what went to stderr."""
    code = main(["--input", source, "--output", str(output), "--json", *words])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.err


@pytest.mark.parametrize("arguments", [{}, {"groups": 4, "deformable": True, "prefix": "fcos"}], ids=["plain", "dcn"])
def test_convert_weights_writes_what_the_named_config_loads(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "epoch_12.pth", **arguments), tmp_path / "ours.pth"
    code, result, _ = run(capsys, source, output)
    assert code == 0
    assert result["missing"] == result["unexpected"] == result["wrong_shape"] == []
    words = [*result["options"], "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(output)]
    model = build_model(merge_config(get_cfg(), str(REPOSITORY / result["config_file"]), words))
    load_weights(model, str(output))
    authors, loaded = AuthorsPolarMask(**arguments).state_dict(), model.state_dict()
    assert set(result["used"].values()) == set(loaded)
    for theirs, ours in result["used"].items():
        assert torch.equal(loaded[ours].flatten(), authors[theirs].flatten()), theirs
    assert result["parameters"] == sum(v.numel() for k, v in loaded.items() if ".running_" not in k)


def test_convert_weights_keeps_and_prints_where_the_file_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "epoch_12.pth"), tmp_path / "ours.pth"
    assert main(["--input", source, "--output", str(output), "--format", "polarmask"]) == 0
    printed = capsys.readouterr().out
    record = torch.load(output, weights_only=True)["source"]
    assert record["sha256"] == hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert (record["file"], record["format"], record["segzoo"]) == ("epoch_12.pth", "polarmask", segzoo.__version__)
    assert record["notes"]["meta"] == {**META, "CLASSES": ["person", "bicycle"]}
    assert len(next(iter(record["dropped"].values()))) == 53
    for text in (record["sha256"], record["date"], "missing: 0", "backbone.bn1.num_batches_tracked", "ResNet-50"):
        assert text in printed
    assert "bbox_head.polar_cls.bias -> head.cls_logits.bias" in printed
    assert f"written: {output}" in printed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"neck.lateral_convs.1.conv.bias": None}, "missing in the file (1): backbone.fpn_lateral4.bias"),
        ({"bbox_head.polar_cls.weight": None}, "missing in the file: head.cls_logits.weight"),
        ({"bbox_head.angles": torch.zeros(36)}, "unexpected in the file (1): bbox_head.angles"),
        ({"backbone.bn1.bias": torch.zeros(3)}, "backbone.bottom_up.stem.conv1.norm.bias (3,) -> (16,)"),
        ({"bbox_head.fcos_cls.bias": torch.zeros(5)}, "are both head.cls_logits.bias"),
        ({"backbone.bn1.bias": torch.full((16,), float("nan"))}, "NaN or infinite values in 1 entries"),
        ({"bbox_head.scales_mask.0.scale": torch.zeros(2)}, "scales_mask.0.scale' is (2,), not (1,)"),
        ({"backbone.layer1.2.conv3.weight": None}, "[2, 4, 6, 3] blocks"),
        ({"backbone.bn1.bias": "text"}, "entry 'backbone.bn1.bias' is no tensor"),
        ({"backbone.bn1.bias": Evil()}, "could run code"),
    ],
)
def test_convert_weights_refuses_damaged_files_and_writes_nothing(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "epoch_12.pth", change)
    code, result, printed = run(capsys, source, tmp_path / "ours.pth")
    assert code == 2
    assert source in printed
    assert expected in printed
    assert expected in result["error"]
    assert not (tmp_path / "ours.pth").exists()


def test_convert_weights_with_a_mismatch_lists_all_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "epoch_12.pth", {f"bbox_head.extra{i}": torch.zeros(1) for i in range(20)})
    code, result, _ = run(capsys, source, tmp_path / "ours.pth")
    assert code == 2
    assert result["unexpected"] == [f"bbox_head.extra{i}" for i in range(20)]
    assert len(result["used"]) > 300


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "not a checkpoint"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "not a file of format"),
        ({"meta": META}, "is no tensor"),
    ],
)
def test_convert_weights_refuses_other_files(
    content: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "other.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    for name in ("auto", "polarmask"):
        code, result, printed = run(capsys, str(source), tmp_path / "ours.pth", "--format", name)
        assert code == 2
        assert expected in printed
        assert "other.pth" in result["error"]


def test_convert_weights_checks_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "epoch_12.pth")
    before = Path(source).read_bytes()
    for output, expected in (
        (tmp_path / "ours.pkl", "does not end in .pth"),
        (Path(source), "is the input itself"),
        (tmp_path / "none" / "ours.pth", "cannot be written"),
    ):
        code, _, printed = run(capsys, source, output)
        assert code == 2
        assert expected in printed
    assert Path(source).read_bytes() == before


def test_convert_weights_refuses_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--input", "a.pth", "--output", "b.pth", "--format", "alien"])
    assert caught.value.code == 2


def test_converters_have_names_of_their_own_and_configs_that_exist() -> None:
    names = [converter.name for converter in CONVERTERS]
    assert len(set(names)) == len(names)
    assert "auto" not in names
