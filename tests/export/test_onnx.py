"""Exports by the dynamo ONNX exporter, run in onnxruntime: the maps, the detections, what the files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segzoo.errors import CheckpointError, ConfigError
from segzoo.export import parity
from segzoo.export.files import Exported, export_model, fixed_config
from segzoo.export.graphs import DenseGraph
from segzoo.export.plan import plan_of
from tests.export.comparing import check_alike
from tests.export.conftest import EXPORTED, IMAGE_SIZES, Toy, build_toy, make_image

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[export]'")

from segzoo.export.runtime import load_model
from segzoo.export.runtime.model import second_path

Export = Callable[[str], Toy]
# Multiples of 32, the padding of every toy.
INPUT_SIZES = [(64, 96), (128, 64), (96, 224)]


@pytest.mark.parametrize("name", EXPORTED)
def test_maps_and_detections_equal_the_models(export_toy: Export, name: str) -> None:
    toy = export_toy(name)
    model, runtime = toy.predictor.model, load_model(toy.path, num_threads=1)
    dense = DenseGraph(model, plan_of(model), False)
    for size in INPUT_SIZES:
        for batch in (1, 3):
            images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = dense.named(images)
            maps = runtime.maps(images.numpy())
            assert list(maps) == list(expected)
            for key, values in expected.items():
                # Of the largest value: a sum of large terms of both signs may be small.
                largest = max(1.0, float(values.abs().max()))
                np.testing.assert_allclose(maps[key], values.numpy(), rtol=0, atol=1e-4 * largest, err_msg=key)
    runtime.settings["score_threshold"] = model.decode_rule.score_threshold
    for seed, size in enumerate(IMAGE_SIZES):
        image = make_image(size, seed)
        # Scores of random models nearly tie; test_runtime_decoders.py compares order and masks from the same maps.
        # OrienMask's random masks are noise, whose pixels lie on the edge.
        iou = 0.0 if name == "OrienMask" else 0.99
        check_alike(runtime(image), toy.predictor(image), model.decode_rule.score_threshold, iou=iou)


@pytest.mark.parametrize("name", EXPORTED)
def test_metadata_says_what_a_deployment_needs(export_toy: Export, name: str) -> None:
    toy = export_toy(name)
    runtime = load_model(toy.path, num_threads=1)
    cfg, metadata = toy.predictor.cfg, runtime.metadata
    assert metadata["method"] == name
    assert metadata["classes"] == runtime.class_names == ["car", "cat", "cup"]
    rule = metadata["input"]
    assert rule["mean"] == pytest.approx(cfg.MODEL.PIXEL_MEAN)
    assert rule["std"] == pytest.approx(cfg.MODEL.PIXEL_STD)
    assert rule["format"] == cfg.INPUT.FORMAT
    assert rule["divisor"] == 32
    # Nothing of it is fixed.
    assert (rule["size"], rule["batch"]) == (None, None)
    assert metadata["settings"]["max_detections"] == 25
    assert metadata["second"] == second_path(toy.path).is_file() == (name in ("CenterMask", "FCOSIS"))
    assert [entry.name for entry in runtime.session.get_inputs()] == ["images"]
    if cfg.INPUT.RESIZE == "shortest_edge":
        assert rule["resize"] == {"mode": "shortest_edge", "shortest": 160, "longest": 256}


def test_a_second_graph_of_another_model_is_refused(export_toy: Export, tmp_path: Path) -> None:
    import onnx

    toy = export_toy("CenterMask")
    copy = tmp_path / "model.onnx"
    copy.write_bytes(toy.path.read_bytes())
    with pytest.raises(CheckpointError, match="second graph"):
        load_model(copy)
    other = onnx.load(second_path(toy.path))
    for entry in other.metadata_props:
        if entry.key == "segzoo.identity":
            entry.value = json.dumps("0" * 16)
    onnx.save(other, second_path(copy))
    with pytest.raises(CheckpointError, match="another model"):
        load_model(copy)


def test_inputs_that_a_graph_does_not_take_are_refused(export_toy: Export) -> None:
    runtime = load_model(export_toy("PolarMask").path, num_threads=1)
    with pytest.raises(ConfigError, match="multiples of 32"):
        runtime.maps(np.zeros((1, 3, 64, 100), np.float32))
    with pytest.raises(ConfigError, match="float32"):
        runtime.maps(np.zeros((1, 3, 64, 64), np.float64))


@pytest.mark.parametrize("break_it", ["NaN", "bias"])
def test_parity_finds_a_file_that_differs(export_toy: Export, break_it: str) -> None:
    toy = export_toy("CenterMask")
    runtime = load_model(toy.path, num_threads=1)
    model = toy.predictor.model
    plan = plan_of(model)
    from segzoo.export.graphs import object_graph

    graph = object_graph(plan.objects)
    bias = model.heads[-1].shape.pred.bias
    before = bias.detach().clone()
    exported = Exported([second_path(toy.path)], [graph], runtime.metadata, takes_raw=False)
    assert parity.check_parity(exported, num_threads=1)[0].worst < parity.TOLERANCE
    with torch.no_grad():
        bias[0] = float("nan") if break_it == "NaN" else bias[0] + 0.01
    try:
        with pytest.raises(CheckpointError, match="parity"):
            parity.check_parity(exported, num_threads=1)
    finally:
        with torch.no_grad():
            bias.copy_(before)


def test_a_fixed_size_takes_every_image_and_only_its_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[export]'")
    predictor = build_toy("CenterMask", "INPUT.RESIZE", "letterbox", "INPUT.FIXED_SIZE", "(96, 128)")
    cfg, path = predictor.cfg, tmp_path / "fixed.onnx"
    with pytest.raises(ConfigError, match="96 128"):
        export_model(cfg, predictor.model, path, size=(90, 128))
    exported = export_model(cfg, predictor.model, path, size=(96, 128), batch=1, takes_raw=True)
    assert exported.metadata["input"]["size"] == [96, 128]
    assert exported.metadata["input"]["batch"] == 1
    assert max(result.worst for result in parity.check_parity(exported, num_threads=1)) < 1e-4
    runtime = load_model(path, num_threads=1)
    runtime.settings["score_threshold"] = predictor.model.decode_rule.score_threshold
    for size in ((200, 100), (50, 300)):
        threshold = predictor.model.decode_rule.score_threshold
        check_alike(runtime(make_image(size)), predictor(make_image(size)), threshold)
    # More images than the graph takes go through it one by one.
    assert runtime.maps(np.zeros((2, 3, 96, 128), np.float32))["heatmap"].shape[0] == 2
    with pytest.raises(ConfigError, match="96 x 128 only"):
        runtime.maps(np.zeros((1, 3, 128, 128), np.float32))


def test_fixed_config_keeps_the_ratio_and_refuses_what_has_no_size() -> None:
    cfg = build_toy("FCOS").cfg
    fixed = fixed_config(cfg, (96, 160))
    assert (fixed.INPUT.RESIZE, tuple(fixed.INPUT.FIXED_SIZE)) == ("letterbox", (96, 160))
    fixed.INPUT.RESIZE = "keep_res"
    with pytest.raises(ConfigError, match="keep_res"):
        fixed_config(fixed, (96, 160))


def test_mask_rcnn_and_wrong_options_are_refused(tmp_path: Path) -> None:
    from detectron2.modeling import build_model

    from tests.contract.toys import toy_config

    cfg = toy_config("MaskRCNN")
    model = build_model(cfg)
    with pytest.raises(ConfigError, match="MaskRCNN cannot be exported"):
        export_model(cfg, model, tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="does not end in"):
        export_model(cfg, model, tmp_path / "model.pt2")
    with pytest.raises(ConfigError, match="no folder"):
        export_model(cfg, model, tmp_path / "absent" / "model.onnx")
    with pytest.raises(ConfigError, match="--format"):
        export_model(cfg, model, tmp_path / "model.trt", file_format="trt")


def test_torch_export_is_written_and_compared(tmp_path: Path) -> None:
    predictor = build_toy("CenterMask")
    path = tmp_path / "model.pt2"
    exported = export_model(predictor.cfg, predictor.model, path, file_format="torch")
    assert [file.name for file in exported.paths] == ["model.pt2", "model.objects.pt2"]
    results = parity.check_parity(exported)
    assert len(results) == len(parity.MULTIPLES) * len(parity.BATCHES) + 1
    assert max(result.worst for result in results) < 1e-4
    extra = {"segzoo.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["segzoo.json"])["decoder"] == "center_shapes"
