"""tools/export.py from a checkpoint to a file, its parity and its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.export.conftest import build_toy, make_image
from tools.export import main

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[export]'")


def test_tool_exports_and_prints_parity_sizes_and_opset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = build_toy("CenterMask")
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump(), encoding="utf-8")
    torch.save({"model": predictor.model.state_dict()}, tmp_path / "weights.pth")
    words = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "weights.pth")]
    words += ["--output", str(tmp_path / "model.onnx"), "--class-names", "car", "cat", "cup", "--json"]
    words += ["--opts", "MODEL.CENTERMASK.SCORE_THRESH_TEST", "0.0"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    values = json.loads(printed.splitlines()[-1])
    assert values["worst"] < 1e-4
    assert len(values["parity"]) == 7
    assert values["notes"] == []
    assert "opset 20" in printed
    assert "image size: any multiples of 32; batch: any" in printed
    assert [Path(file).name for file in values["files"]] == ["model.onnx", "model.objects.onnx"]

    from segzoo.export.runtime import load_model

    runtime = load_model(tmp_path / "model.onnx", num_threads=1)
    assert runtime.class_names == ["car", "cat", "cup"]
    assert len(runtime(make_image((80, 100)))) > 0


def test_tool_refuses_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = build_toy("CenterMask")
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump(), encoding="utf-8")
    torch.save({"model": predictor.model.state_dict()}, tmp_path / "weights.pth")
    words = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "weights.pth")]
    assert main([*words, "--output", str(tmp_path / "model.onnx"), "--size", "100", "130", "--json"]) == 2
    captured = capsys.readouterr()
    assert "use --size 128 160" in captured.err
    assert "multiples of 32" in json.loads(captured.out.splitlines()[-1])["error"]
    assert main([*words, "--output", str(tmp_path / "model.pth")]) == 2
    assert "does not end in .onnx" in capsys.readouterr().err
    assert main([*words[:2], "--weights", "absent.pth", "--output", str(tmp_path / "model.onnx")]) == 2
    assert "absent.pth" in capsys.readouterr().err
