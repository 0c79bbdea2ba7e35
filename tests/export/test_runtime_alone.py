"""The runtime without torch and Detectron2; images, resizes and errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segzoo.errors import CheckpointError, DatasetError
from segzoo.export.runtime import pillow, read_image
from segzoo.export.runtime.__main__ import main
from segzoo.export.runtime.boxes import nms
from segzoo.export.runtime.model import KEYS, PREFIX, load_model, read_metadata
from tests.export.comparing import check_equal
from tests.export.conftest import Toy, make_image

ROOT = Path(__file__).resolve().parents[2]
# What a deployment does without.
BLOCKED = ["torch", "torchvision", "detectron2", "fvcore", "PIL", "onnx", "onnxscript", "matplotlib", "timm", "yaml"]


# What docs/export.md says to copy.
DEPLOYED = [
    *("segzoo/__init__.py", "segzoo/errors.py", "segzoo/export/__init__.py", "segzoo/export/runtime"),
    *("segzoo/geometry/__init__.py", "segzoo/geometry/edges.py", "segzoo/geometry/polygons.py"),
]


def run_without_torch(program: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python of its own in which the BLOCKED packages cannot be imported; `root` has the package segzoo."""
    block = f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", block + program],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_needs_neither_torch_nor_detectron2() -> None:
    program = "import segzoo.export.runtime, segzoo.export.runtime.__main__\n"
    # What is None was blocked; nothing else of these may have come in.
    program += "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'detectron2') "
    program += "and sys.modules[name] is not None])"
    finished = run_without_torch(program)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "[]"


def test_a_deployment_detects_without_torch(export_toy: Callable[[str], Toy], tmp_path: Path) -> None:
    toy = export_toy("PolarMask")
    image, results, picture = make_image((120, 160)), tmp_path / "out.json", tmp_path / "out.png"
    cv2.imwrite(str(tmp_path / "image.png"), image)
    words = [str(toy.path), str(tmp_path / "image.png"), "--output", str(results), "--picture", str(picture)]
    words += ["--threshold", "0", "--threads", "1"]
    server = tmp_path / "server"
    for name in DEPLOYED:
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, server / name)
    program = f"from segzoo.export.runtime.__main__ import main\nsys.exit(main({words!r}))"
    finished = run_without_torch(program, server)
    assert finished.returncode == 0, finished.stderr
    entries = json.loads(results.read_text())
    found = load_model(toy.path, num_threads=1)(image)
    assert len(entries) == len(found) > 0
    assert "detections reach 0.0" in finished.stdout
    assert cv2.imread(str(picture)).shape == (120, 160, 3)


def test_command_line_writes_results_and_a_picture(
    export_toy: Callable[[str], Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = export_toy("PolarMask")
    threshold = toy.predictor.model.decode_rule.score_threshold
    image = make_image((120, 160))
    cv2.imwrite(str(tmp_path / "image.png"), image)

    def load_with_threshold(*args: object, **kwargs: object) -> object:
        runtime = load_model(*args, **kwargs)
        runtime.settings["score_threshold"] = threshold
        return runtime

    monkeypatch.setattr("segzoo.export.runtime.__main__.load_model", load_with_threshold)
    output, picture = tmp_path / "out.json", tmp_path / "out.png"
    words = [str(toy.path), str(tmp_path / "image.png"), "--output", str(output), "--picture", str(picture)]
    assert main([*words, "--threshold", "0"]) == 0
    results = json.loads(output.read_text())
    expected = toy.predictor(image)
    assert len(results) == len(expected) > 0
    assert results[0]["category_name"] in ("car", "cat", "cup")
    assert results[0]["segmentation"]["size"] == [120, 160]
    assert results[0]["score"] == pytest.approx(float(expected.scores[0]), abs=1e-4)
    assert not np.array_equal(cv2.imread(str(picture)), image)
    check_equal(load_with_threshold(toy.path)(tmp_path / "image.png"), expected)


def test_command_line_refuses_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[export]'")
    assert main([str(tmp_path / "absent.onnx"), "image.png"]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert main([str(tmp_path / "broken.onnx"), "image.png"]) == 2
    assert "no ONNX model" in capsys.readouterr().err
    assert main([str(tmp_path / "broken.onnx"), "a.png", "b.png", "--picture", "out.png"]) == 2
    assert "one image at a time" in capsys.readouterr().err


def test_a_model_without_our_metadata_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[export]'")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[export]'")
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    same = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["images"], ["same"])], "plain", [value], [same])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(CheckpointError, match="metadata"):
        load_model(tmp_path / "plain.onnx")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [("format", "99", "format 99"), ("decoder", '"lines"', "'lines'"), ("settings", "{", "no json")],
)
def test_metadata_that_cannot_be_read_is_refused(key: str, text: str, message: str) -> None:
    entries = {PREFIX + name: json.dumps({"format": 1, "decoder": "boxes"}.get(name, {})) for name in KEYS}
    assert read_metadata(entries, "model.onnx")["decoder"] == "boxes"
    with pytest.raises(CheckpointError, match=message):
        read_metadata(entries | {PREFIX + key: text}, "model.onnx")


def test_resize_equals_pillow_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, new_height, new_width = (int(side) for side in rng.integers(1, 120, 4))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        start, end = np.sort(rng.uniform(0, width, 2)).tolist()
        for box in (None, (start, 0, max(end, min(start + 0.5, width)), height)):
            if box is not None and box[2] - box[0] < 0.25:
                continue
            shown = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR, box=box)
            np.testing.assert_array_equal(pillow.resize(image, new_height, new_width, box), np.asarray(shown))


def test_nms_equals_torchvision() -> None:
    torch = pytest.importorskip("torch")
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(1)
    for count in (0, 1, 60, 1500):
        corners = rng.uniform(0, 90, (count, 2)).astype(np.float32)
        boxes = np.concatenate((corners, corners + rng.uniform(1, 40, (count, 2)).astype(np.float32)), axis=1)
        scores, classes = rng.random(count).astype(np.float32), rng.integers(0, 3, count)
        expected = batched_nms(*map(torch.from_numpy, (boxes, scores, classes)), 0.5)
        assert nms(boxes, scores, classes, 0.5).tolist() == expected.tolist()


def test_images_are_read_upright_and_refused_by_name(tmp_path: Path) -> None:
    image = make_image((20, 30))
    for mode in ("RGB", "RGBA", "L"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(image[:, :, ::-1]).convert(mode).save(path)
        expected = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
        np.testing.assert_array_equal(read_image(path), expected)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (30, 20, 3)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    for name in ("absent.png", "empty.png", "text.png"):
        with pytest.raises(DatasetError, match=name):
            read_image(tmp_path / name)
