"""The authors' and Darknet's weights in our OrienMask: every value in its place, and what is refused."""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orienmask import convert as orienmask_convert
from orienmask.convert import BACKBONE_RULES, CONVERTERS, RULES, YOLO_PART, orienmask_fit, yolo_layers
from segzoo.engine.convert import Source, compare, convert, open_source
from segzoo.engine.darknet_weights import DarknetLayer, backbone_layers, count_values, read_header, read_layers
from segzoo.engine.renaming import Rule, rename
from segzoo.engine.weights import load_weights
from segzoo.errors import CheckpointError
from segzoo.modeling.backbones.darknet import Darknet
from tests.orienmask.networks import Network, full_network
from tools.convert_weights import main

PAIRS = [
    ("backbone.conv1.conv_block.0.weight", "backbone.stem.weight"),
    ("module.backbone.conv2.0.conv_block.1.running_var", "backbone.res1.down.norm.running_var"),
    ("backbone.conv4.8.conv.0.conv_block.0.weight", "backbone.res3.blocks.7.conv1.weight"),
    ("backbone.conv6.1.conv.1.conv_block.1.bias", "backbone.res5.blocks.0.conv2.norm.bias"),
    ("neck32.0.conv_block.0.weight", "neck.p5.0.weight"),
    ("neck8.4.conv_block.1.weight", "neck.p3.4.norm.weight"),
    ("route16.0.conv_block.0.weight", "neck.lateral4.weight"),
    ("bbox_head32.0.conv_block.1.running_mean", "box_head.2.conv.norm.running_mean"),
    ("bbox_head8.1.bias", "box_head.0.pred.bias"),
    ("skip16.0.conv_block.0.weight", "orien_head.fuse.p4.weight"),
    ("skip4.conv_block.1.bias", "orien_head.fuse.p2.norm.bias"),
    ("route8.0.conv_block.0.weight", "orien_head.lateral3.weight"),
    ("neck4.2.conv_block.0.weight", "orien_head.neck.2.weight"),
    ("orien_head.3.conv_block.0.weight", "orien_head.tower.3.weight"),
]
SMALL: dict[str, Any] = {"blocks_per_stage": (1, 0, 2, 1, 1), "stem_channels": 4}


def randomised(network: nn.Module) -> nn.Module:
    """`network` with values that differ everywhere, those of its norms as well."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if "running_var" in name else -0.5))
    return network


def authors_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights as the authors' program would name and order them, without its rules."""
    table: list[tuple[str, Any]] = [
        (r"backbone\.stem\.", r"backbone.conv1."),
        (r"backbone\.res(\d)\.down\.", lambda m: f"backbone.conv{int(m[1]) + 1}.0."),
        (
            r"backbone\.res(\d)\.blocks\.(\d+)\.conv([12])\.",
            lambda m: f"backbone.conv{int(m[1]) + 1}.{int(m[2]) + 1}.conv.{int(m[3]) - 1}.",
        ),
        (r"^neck\.p(\d)\.", lambda m: f"neck{2 ** int(m[1])}."),
        (r"^neck\.lateral(\d)\.", lambda m: f"route{2 ** int(m[1])}.0."),
        (r"^box_head\.(\d)\.conv\.", lambda m: f"bbox_head{8 * 2 ** int(m[1])}.0."),
        (r"^box_head\.(\d)\.pred\.", lambda m: f"bbox_head{8 * 2 ** int(m[1])}.1."),
        (r"^orien_head\.fuse\.p2\.", "skip4."),
        (r"^orien_head\.fuse\.p(\d)\.", lambda m: f"skip{2 ** int(m[1])}.0."),
        (r"^orien_head\.lateral3\.", "route8.0."),
        (r"^orien_head\.neck\.", "neck4."),
        (r"^orien_head\.pred\.", "orien_head.5."),
        (r"^orien_head\.tower\.", "orien_head."),
    ]
    renamed = {}
    for name, value in weights.items():
        pattern, template = next((p, t) for p, t in table if re.search(p, name))
        theirs = re.sub(pattern, template, name)
        if ".pred." not in name:
            theirs = (
                re.sub(r"norm\.", "conv_block.1.", theirs)
                if ".norm." in name
                else re.sub(r"weight$", "conv_block.0.weight", theirs)
            )
        if name.startswith("orien_head.pred"):
            value = torch.cat([value[12:], value[6:12], value[:6]])
        renamed[theirs] = value
    return renamed


def write_darknet(
    path: Path, layers: Sequence[DarknetLayer], version: tuple[int, int, int] = (0, 2, 0), seed: int = 0
) -> dict[str, np.ndarray]:
    """Writes seeded values as Darknet does; returns them by our names."""
    random, weights = np.random.default_rng(seed), {}
    with path.open("wb") as stream:
        stream.write(struct.pack("<3i", *version) + struct.pack("<q" if version[:2] >= (0, 2) else "<i", 32_013_312))
        for layer in layers:
            filters = (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)
            leaves = ["norm.bias", "norm.weight", "norm.running_mean", "norm.running_var"]
            for leaf in leaves if layer.has_norm else ["bias"]:
                weights[f"{layer.name}.{leaf}"] = random.random(layer.out_channels, dtype=np.float32)
            weights[f"{layer.name}.weight"] = random.random(filters, dtype=np.float32)
        for value in weights.values():
            value.tofile(stream)
    return weights


def converter_of(name: str):
    return next(converter for converter in CONVERTERS if converter.name == name)


@pytest.fixture
def small_darknet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Darknet's files of a network of SMALL's size, so that tests need no files of hundreds of MB."""
    monkeypatch.setattr(orienmask_convert, "backbone_layers", lambda prefix, *_: backbone_layers(prefix, **SMALL))
    monkeypatch.setattr(orienmask_convert, "yolo_layers", lambda num_classes: yolo_layers(num_classes, **SMALL))


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[theirs for theirs, _ in PAIRS])
def test_rules_rename_each_kind_of_entry(theirs: str, ours: str) -> None:
    assert rename({theirs: torch.zeros(1)}, RULES).used == {theirs: ours}
    bare = theirs.removeprefix("module.").removeprefix("backbone.")
    expected = {bare: ours} if ours.startswith("backbone.") else {}
    assert rename({bare: torch.zeros(1)}, BACKBONE_RULES).used == expected


def test_rules_bring_the_anchors_of_stride_8_to_the_front() -> None:
    anchors_of_theirs = [6, 7, 8, 3, 4, 5, 0, 1, 2]
    bias = torch.tensor([10.0 * anchor + axis for anchor in anchors_of_theirs for axis in (0, 1)])
    renamed = rename({"orien_head.5.bias": bias}, RULES).weights["orien_head.pred.bias"]
    assert renamed.tolist() == [10.0 * anchor + axis for anchor in range(9) for axis in (0, 1)]
    with pytest.raises(CheckpointError, match=r"orien_head\.5\.bias' is \(12,\), not one of 18 rows"):
        rename({"orien_head.5.bias": bias[:12]}, RULES)


@pytest.mark.parametrize("orien_input", ["fpn_plus", "fpn"])
def test_authors_weights_of_either_input_land_unchanged(orien_input: str, tmp_path: Path) -> None:
    source = randomised(Network(Darknet(**SMALL), orien_input=orien_input))
    torch.save({"state_dict": authors_names(source.state_dict()), "config": {"epochs": 100}}, tmp_path / "theirs.pth")
    converter, found = open_source(str(tmp_path / "theirs.pth"), CONVERTERS)
    assert (converter.name, found.notes) == ("orienmask", {"config": {"epochs": 100}})
    renamed = convert(found, converter, "theirs.pth")
    assert renamed.unexpected == []
    fit = orienmask_fit(renamed.weights)
    assert fit.part == ()
    assert fit.options["MODEL.ORIENMASK.ORIEN_INPUT"] == orien_input
    assert fit.options["MODEL.ORIENMASK.NUM_CLASSES"] == 4
    assert fit.options["MODEL.ORIENMASK.NECK_CHANNELS"] == [16, 32, 64]
    assert fit.options["MODEL.DARKNET.BLOCKS_PER_STAGE"] == (1, 0, 2, 1, 1)
    torch.save({"model": renamed.weights}, tmp_path / "ours.pth")
    target = Network(Darknet(**SMALL), orien_input=orien_input)
    load_weights(target, str(tmp_path / "ours.pth"))
    for name, value in source.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize(("version", "num_bytes"), [((0, 2, 0), 20), ((0, 1, 0), 16)])
def test_read_layers_of_either_header_gives_every_value(
    version: tuple[int, int, int], num_bytes: int, tmp_path: Path
) -> None:
    layers = yolo_layers(3, **SMALL)
    written = write_darknet(tmp_path / "yolov3.weights", layers, version)
    read = read_layers(str(tmp_path / "yolov3.weights"), layers)
    assert read_header(str(tmp_path / "yolov3.weights")).num_bytes == num_bytes
    assert list(read) == list(written)
    assert all(np.array_equal(read[name].numpy(), value) for name, value in written.items())
    model = Network(Darknet(**SMALL), neck_channels=(16, 32, 64), num_classes=3).state_dict()
    assert {name: value.shape for name, value in read.items()} == {
        name: value.shape
        for name, value in model.items()
        if name.startswith(YOLO_PART) and not name.endswith("num_batches_tracked")
    }


def test_darknets_layers_have_the_values_of_the_published_files() -> None:
    assert count_values(backbone_layers("backbone.")) == 40_620_640
    assert count_values(yolo_layers(80)) == 62_001_757
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in full_network().state_dict().items()}
    assert all(shapes[name] == shape for layer in yolo_layers(80) for name, shape in layer.entries())


@pytest.mark.parametrize(("num_classes", "left_out"), [(None, {"neck", "box_head", "orien_head"}), (2, {"orien_head"})])
def test_darknet_files_fill_their_part_and_leave_the_rest(
    num_classes: int | None,
    left_out: set[str],
    small_darknet: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    layers = backbone_layers("backbone.", **SMALL) if num_classes is None else yolo_layers(num_classes, **SMALL)
    written = write_darknet(tmp_path / "theirs.weights", layers)
    converter, source = open_source(str(tmp_path / "theirs.weights"), CONVERTERS)
    renamed = convert(source, converter, "theirs.weights")
    fit = converter.fit(renamed.weights)
    network = Network(Darknet(**SMALL), num_classes=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = compare(renamed, {n: tuple(v.shape) for n, v in before.items()}, {}, fit.part)
    assert report.problem == ""
    assert {name.split(".")[0] for name in report.left_out} == left_out
    torch.save({"model": renamed.weights, "part": list(fit.part)}, tmp_path / "ours.pth")
    with caplog.at_level(logging.INFO):
        load_weights(network, str(tmp_path / "ours.pth"))
    assert all(part in caplog.text.split("as initialised")[1] for part in left_out)
    for name, value in network.state_dict().items():
        expected = torch.from_numpy(written[name]) if name in written else before[name]
        assert torch.equal(value, expected), name


def test_load_weights_of_a_part_is_refused_where_it_lacks_something(tmp_path: Path) -> None:
    network = Network(Darknet(**SMALL))
    weights = {name: value for name, value in network.state_dict().items() if name.startswith("backbone.")}
    torch.save({"model": weights}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="missing in the file"):
        load_weights(network, str(tmp_path / "whole.pth"))
    weights.pop("backbone.res3.down.weight")
    torch.save({"model": weights, "part": ["backbone."]}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file \(1\): backbone\.res3\.down\.weight"):
        load_weights(network, str(tmp_path / "part.pth"))
    torch.save({"model": weights, "part": 1}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="'part' is 1"):
        load_weights(network, str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("change", [-1, -4, 4, 400])
def test_darknet_files_of_another_size_are_refused(change: int, small_darknet: None, tmp_path: Path) -> None:
    path = tmp_path / "darknet53.conv.74"
    layers = backbone_layers("backbone.", **SMALL)
    write_darknet(path, layers)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(CheckpointError) as caught:
        open_source(str(path), CONVERTERS)
    expected = count_values(layers)
    assert str(path) in str(caught.value)
    assert f"expected {expected:,}" in str(caught.value)
    assert f"{expected + change / 4:,.10g} values" in str(caught.value)


@pytest.mark.parametrize("num_bytes", [0, 8, 14])
@pytest.mark.parametrize(
    ("name", "words"), [("yolov3.weights", []), ("darknet53.conv.74", []), ("theirs.bin", ["--format", "darknet"])]
)
def test_darknet_files_shorter_than_their_header_are_refused(
    name: str, words: list[str], num_bytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / name, tmp_path / "ours.pth"
    path.write_bytes((struct.pack("<3i", 0, 2, 0) + bytes(2))[:num_bytes])
    with pytest.raises(CheckpointError) as caught:
        open_source(str(path), CONVERTERS, *words[1:])
    expected = f"{path}: truncated, {num_bytes} bytes where the header has 20"
    assert caught.value.message.startswith(expected)
    assert main(["--input", str(path), "--output", str(output), *words]) == 2
    assert expected in capsys.readouterr().err
    assert not output.exists()


def test_a_file_named_as_darknets_may_still_be_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "theirs.weights"
    torch.save({"state_dict": authors_names(Network(Darknet(**SMALL)).state_dict())}, path)
    assert open_source(str(path), CONVERTERS)[0].name == "orienmask"
    with pytest.raises(CheckpointError, match=r"none\.weights: does not exist"):
        open_source(str(tmp_path / "none.weights"), CONVERTERS, "darknet")


def test_read_header_refuses_what_is_no_darknet_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, expected in (
        (b"", "0 bytes where the header has 20"),
        (b"not a version", "no weights of Darknet"),
        (struct.pack("<3i", 0, 2, 0) + b"123", "15 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=expected):
            read_header(str(path))
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="no weights of Darknet"):
        read_header(str(path))


def test_load_weights_of_a_darknet_file_names_the_converter(tmp_path: Path) -> None:
    path = tmp_path / "yolov3.weights"
    write_darknet(path, backbone_layers("backbone.", **SMALL))
    with pytest.raises(CheckpointError, match=r"convert_weights\.py --input .*yolov3\.weights"):
        load_weights(Network(Darknet(**SMALL)), str(path))


@pytest.mark.parametrize("kind", ["authors", "backbone", "darknet"])
def test_convert_weights_writes_what_the_named_config_loads(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    source, output = tmp_path / "theirs.bin", tmp_path / "ours.pth"
    network = randomised(Network(Darknet(**SMALL)))
    if kind == "darknet":
        request.getfixturevalue("small_darknet")
        write_darknet(source, yolo_layers(4, **SMALL))
    else:
        weights = authors_names(network.state_dict())
        if kind == "backbone":
            weights = {n.removeprefix("backbone."): v for n, v in weights.items() if n.startswith("backbone.")}
        torch.save(weights if kind == "backbone" else {"state_dict": weights}, source)
    assert main(["--input", str(source), "--output", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["missing"] == result["unexpected"] == result["wrong_shape"] == []
    assert torch.load(output, weights_only=True).get("part", []) == result["part"]
    load_weights(Network(Darknet(**SMALL)), str(output))


def test_rename_order_is_checked_and_applied_before_the_shape() -> None:
    rules = (Rule("pair", "pair", shape=(1, 2), order=(1, 0)),)
    assert rename({"pair": torch.tensor([1.0, 2.0])}, rules).weights["pair"].tolist() == [[2.0, 1.0]]
    with pytest.raises(CheckpointError, match="not one of 2 rows"):
        rename({"pair": torch.tensor(1.0)}, rules)
    assert convert(Source({"pair": torch.ones(2)}), converter_of("orienmask"), "x").unexpected == ["pair"]
